"""What a parameter of a model takes, and the sizes that a model offers by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

PROMPT_MAX_LENGTH = 4_000
ARRAY_MAX_ITEMS = 16
MEGAPIXEL = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ParameterProblem:
    """One thing wrong with a request.

    `field` is a common field, or `parameters.<name>` for one of the model's own. `code` is one
    of `required`, `unsupported`, `invalid_type`, `out_of_range`, `not_a_multiple`,
    `not_allowed`, `too_long`, `too_many`, `conflict`. `allowed` is what would be accepted, ready
    for JSON: `{"min", "max", "multiple_of"}`, `{"max_length"}`, a list of values, or `None`.
    """

    field: str
    code: str
    message: str
    allowed: Any = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input parameter of one model; see `generation.catalogue` for its data."""

    name: str
    type: str  # string, integer, number, boolean, enum, array, file or files
    role: str | None = None
    required: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    max_with_reference: float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()
    max_items: int = ARRAY_MAX_ITEMS
    only_when: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False
    bindings: tuple[tuple[str, str], ...] = ()

    def check(self, value: object, *, field: str, model_id: str) -> ParameterProblem | None:
        """Say what is wrong with `value`, `None` when nothing is. Not for files."""

        def problem(code: str, rule: str, allowed: Any = None) -> ParameterProblem:
            return ParameterProblem(field, code, f"{field} of {model_id} must be {rule}.", allowed)

        if not _TYPE_CHECKS[self.type](value):
            return problem("invalid_type", TYPE_NAMES[self.type])
        if self.type == "enum" and value not in self.choices:
            return problem("not_allowed", f"one of {listing(self.choices)}", list(self.choices))
        if isinstance(value, str) and len(value) > PROMPT_MAX_LENGTH:
            return problem(
                "too_long",
                f"at most {PROMPT_MAX_LENGTH:,} characters long, not {len(value):,}",
                {"max_length": PROMPT_MAX_LENGTH},
            )
        if isinstance(value, list) and len(value) > self.max_items:
            return problem(
                "too_long", f"at most {self.max_items} items long", {"max_length": self.max_items}
            )
        if isinstance(value, (int, float)) and self.type != "boolean":
            if (self.min is not None and value < self.min) or (
                self.max is not None and value > self.max
            ):
                return problem("out_of_range", self._range(), self._limits())
            if self.multiple_of and value % self.multiple_of:
                return problem(
                    "not_a_multiple", f"a multiple of {self.multiple_of}", self._limits()
                )
        return None

    def with_reference(self) -> "Parameter":
        """Return the parameter as it is when a reference image is given."""
        limit = self.max_with_reference
        return self if limit is None else replace(self, max=limit)

    def describe(self) -> dict[str, Any]:
        """Return what a form needs to know, ready for JSON; keys without a value are left out."""
        described: dict[str, Any] = {
            "type": self.type,
            "required": self.required,
            "default": self.default,
            **self._limits(),
        }
        if self.max_with_reference is not None:
            described["max_with_reference"] = self.max_with_reference
        if self.choices:
            described["choices"] = list(self.choices)
        if self.type == "string":
            described["max_length"] = PROMPT_MAX_LENGTH
        if self.type == "array":
            described["max_items"] = self.max_items
        if self.only_when:
            described["only_when"] = dict(self.only_when)
        return described

    def _limits(self) -> dict[str, float]:
        limits = {"min": self.min, "max": self.max, "multiple_of": self.multiple_of}
        return {key: value for key, value in limits.items() if value is not None}

    def _range(self) -> str:
        if self.min is None:
            return f"at most {self.max}"
        if self.max is None:
            return f"at least {self.min}"
        return f"between {self.min} and {self.max}"


@dataclass(frozen=True, slots=True)
class SizeOption:
    """One size that a model offers by name. `ratio` is empty for an exact size.

    `size_px` is (width, height); where it is not known, `area_px` may be, nearly.
    """

    input: Mapping[str, str]
    ratio: str
    size_px: tuple[int, int] | None
    area_px: float | None = None

    def ratio_error(self, ratio: float) -> float:
        """Return the distance between this size's shape and `ratio` (width / height).

        The nominal ratio counts as well as the real one: "16:9" is 1344x768 on some models,
        and whoever asks for 1920x1080 means the former, for 1344x768 the latter.
        """
        shapes = [ratio_value(self.ratio)] if self.ratio else []
        if self.size_px:
            shapes.append(self.size_px[0] / self.size_px[1])
        return min(distance(ratio, shape) for shape in shapes)

    def area_error(self, area_px: float) -> float:
        """Return the distance between this size's area and `area_px`, 0 if it is not known."""
        own_px = math.prod(self.size_px) if self.size_px else self.area_px
        return distance(area_px, own_px) if own_px else 0.0

    def __str__(self) -> str:
        if self.size_px:
            size = "{}x{}".format(*self.size_px)
            return f"{size} ({self.ratio})" if self.ratio else size
        if self.area_px:
            return f"{self.ratio} (about {self.area_px / MEGAPIXEL:.2g} megapixels)"
        return self.ratio


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_array(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) or _is_number(v) for v in value)


_TYPE_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "enum": lambda value: isinstance(value, str),
    "integer": is_integer,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": _is_array,
}
TYPE_NAMES = {
    "string": "a string",
    "enum": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list of strings or numbers",
}


def ratio_value(ratio: str) -> float:
    width, height = ratio.split(":")
    return int(width) / int(height)


def distance(a: float, b: float) -> float:
    """Return how far apart two positive numbers are by proportion, the same both ways round."""
    return abs(math.log(a / b))


def as_distance(tolerance: float) -> float:
    """Return a relative tolerance as a `distance`, with room for rounding."""
    return math.log1p(tolerance) + 1e-9


def listing(values: Sequence[str]) -> str:
    return ", ".join(values)
