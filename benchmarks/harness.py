"""Rows of the table, the verdict on each, and the two statistics that are used."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

REPETITIONS = 5
WIDTHS = (26, 15, 15, 8, 12, 7)
HEADINGS = ("benchmark", "figure", "baseline", "ratio", "bound", "verdict")
TEXT_WIDTH = sum(WIDTHS) + 2 * (len(WIDTHS) - 1)


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure.

    With a `baseline`, measured in the same run, the bound is on figure / baseline, otherwise on
    the figure itself. A row without a bound informs, and is always well.
    """

    name: str
    what: str
    figure: float
    unit: str
    baseline: float | None = None
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.baseline is None else self.figure / self.baseline

    @property
    def ok(self) -> bool:
        value = self.figure if self.ratio is None else self.ratio
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high

    @property
    def verdict(self) -> str:
        if self.at_most is None and self.at_least is None:
            return "info"
        return "ok" if self.ok else "over"

    def lines(self) -> Iterator[str]:
        """Yield the row of the table and, below it, what was measured."""
        unit = "x" if self.baseline is not None else f" {self.unit}"
        bound = ""
        if self.at_most is not None:
            bound = f"<= {number(self.at_most)}{unit}"
        if self.at_least is not None:
            bound = f">= {number(self.at_least)}{unit}"
        yield line(
            self.name,
            f"{number(self.figure)} {self.unit}",
            "" if self.baseline is None else f"{number(self.baseline)} {self.unit}",
            "" if self.ratio is None else f"{self.ratio:.2f}x",
            bound,
            self.verdict,
        )
        yield textwrap.fill(self.what, TEXT_WIDTH, initial_indent="    ", subsequent_indent="    ")


def number(value: float) -> str:
    """Return a number with three significant digits, or all of them before the point."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def line(*cells: str) -> str:
    """Return the cells of a row, the first to the left and the others to the right."""
    name, *values = cells
    padded = [value.rjust(width) for value, width in zip(values, WIDTHS[1:], strict=True)]
    return "  ".join([name.ljust(WIDTHS[0]), *padded])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least of the values that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def median_percentile(repetitions: Sequence[Sequence[float]], percent: float) -> float:
    """Return the median over the repetitions of each one's percentile."""
    return median(percentile(values, percent) for values in repetitions)
