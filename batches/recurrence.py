"""When a rule falls due: RRULE of RFC 5545 by the clock on the wall of a time zone.

A rule is taken apart once, strictly, and its times are found month by month, or year by year, from
where one looks: each is a rule of its own that python-dateutil works out, and that has no second
period. So neither the age of a schedule nor a rule that never falls due costs more than
`HORIZON` has months.

A local time that does not exist, because clocks are put forward, is taken by the offset before the
change: it falls due that much later by the new clock. One that comes twice counts the first time.
Source: RFC 5545, sections 3.3.5 and 3.3.10, read 2026-11-20
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from itertools import islice, pairwise, product
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from dateutil.rrule import rrulestr

# No two due times are closer to one another.
SPACING = timedelta(minutes=5)
# What does not fall due within it never does.
HORIZON = timedelta(days=3_653)
# Counting begins at the start.
COUNT_MAX = 1_000
MISSED_MAX = 1_000
# A longer one is that of another frequency.
INTERVAL_MAX = {"MINUTELY": 1_440}
# More than any change of a clock.
_SLACK = timedelta(days=1)
_MIDNIGHT: dict[str, Any] = {"hour": 0, "minute": 0, "second": 0, "microsecond": 0}

DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_UNITS = {
    "WEEKLY": timedelta(days=7),
    "DAILY": timedelta(days=1),
    "HOURLY": timedelta(hours=1),
    "MINUTELY": timedelta(minutes=1),
}
FREQUENCIES = ("YEARLY", "MONTHLY", *_UNITS)
# A step that leaves the calendar.
_ONLY_ONE = {"YEARLY": 10_000, "MONTHLY": 120_000}


_DAY = "|".join(DAYS)
_SINGLE = {
    "FREQ": "[A-Z]+",
    "INTERVAL": r"[1-9]\d{0,3}",
    "COUNT": r"[1-9]\d{0,8}",
    "UNTIL": r"\d{8}(?:T\d{6}Z?)?",
    "WKST": _DAY,
}
_YEAR_DAY = r"[+-]?(?!0+$)(?:[0-2]?\d{1,2}|3[0-5]\d|36[0-6])"
# Of one item each.
_LISTS = {
    "BYMONTH": "0?[1-9]|1[0-2]",
    "BYMONTHDAY": r"[+-]?(?:0?[1-9]|[12]\d|3[01])",
    "BYYEARDAY": _YEAR_DAY,
    "BYWEEKNO": r"[+-]?(?:0?[1-9]|[1-4]\d|5[0-3])",
    "BYDAY": rf"(?:[+-]?(?:0?[1-9]|[1-4]\d|5[0-3]))?(?:{_DAY})",
    "BYSETPOS": _YEAR_DAY,
    "BYHOUR": r"[01]?\d|2[0-3]",
    "BYMINUTE": r"[0-5]?\d",
    "BYSECOND": r"[0-5]?\d",
}
_PARTS = {name: re.compile(one, re.ASCII) for name, one in {**_SINGLE, **_LISTS}.items()}
_CHOOSE_DAYS = ("BYWEEKNO", "BYYEARDAY", "BYMONTHDAY", "BYDAY")
# What goes with some frequencies only.
_GOES_WITH = {
    "BYWEEKNO": ("YEARLY",),
    "BYYEARDAY": ("YEARLY",),
    "BYMONTHDAY": ("YEARLY", "MONTHLY", "DAILY", "HOURLY", "MINUTELY"),
    "BYSETPOS": ("YEARLY", "MONTHLY"),
}


_LONG_AGO = datetime(1970, 1, 2)


class Unusable(Exception):
    """A rule or a time zone that cannot be used. `code` is for programs, `args` for people."""

    def __init__(self, field: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.code, self.detail = field, code, detail


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The due times of a rule. `rule` is as it is stored: in capitals, without spaces around it."""

    rule: str
    starts_at: datetime
    zone: tzinfo
    until: datetime | None
    count: int | None
    _frequency: str
    _interval: int
    _by: str  # the whole of it, nothing left to be taken from the start
    _week_starts: int

    def first_after(self, moment: datetime) -> datetime | None:
        """Its first due time after `moment`; `None` when none comes within `HORIZON`."""
        first: tuple[datetime, datetime] | None = None
        for local, at in self._due(moment, moment + HORIZON):
            if first is not None and local > first[1] + _SLACK:
                break
            if at > moment and (first is None or at < first[0]):
                first = at, local
        return first and first[0]

    def count_between(self, after: datetime, until: datetime) -> int:
        """How many due times lie after the one and not after the other; at most `MISSED_MAX`."""
        found: set[datetime] = set()
        for _, at in self._due(after, until):
            if after < at <= until:
                found.add(at)
                if len(found) == MISSED_MAX:
                    break
        return len(found)

    def _due(self, after: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Its times from about `after` to about `until`: by the wall in order, and as they are."""
        last = until if self.until is None else min(until, self.until)
        begin, end = self._local(after) - _SLACK, self._local(last) + _SLACK
        times = self._times(begin if self.count is None else self._local(self.starts_at), end)
        for local in islice(times, self.count):
            at = _instant(local, self.zone)
            if at >= self.starts_at and local >= begin and (not self.until or at <= self.until):
                yield local, at

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _times(self, begin: datetime, end: datetime) -> Iterator[datetime]:
        """Its local times from `begin` to `end`, in order, however many it may have in all."""
        start = self._local(self.starts_at)
        is_due = self._rhythm(start)
        for first_day in self._periods(start, max(begin, start), end):
            for local in rrulestr(self._by, dtstart=first_day):
                if local > end:
                    return
                if local >= start and local >= begin and is_due(local):
                    yield local

    def _periods(self, start: datetime, begin: datetime, end: datetime) -> Iterator[datetime]:
        """The first days of the months that may have any, or of the years."""
        if self._frequency == "YEARLY":
            skipped = (begin.year - start.year) % self._interval
            first = begin.year + (self._interval - skipped if skipped else 0)
            for year in range(first, end.year + 1, self._interval):
                yield datetime(year, 1, 1)
            return
        step = self._interval if self._frequency == "MONTHLY" else 1
        month = begin.year * 12 + begin.month - 1
        month += (start.year * 12 + start.month - 1 - month) % step
        for number in range(month, end.year * 12 + end.month, step):
            yield datetime(number // 12, number % 12 + 1, 1)

    def _rhythm(self, start: datetime) -> Callable[[datetime], bool]:
        """Tells a time whose turn it is by the interval, for what is more frequent than a month."""
        unit = _UNITS.get(self._frequency)
        if unit is None or self._interval == 1:
            return lambda local: True
        base = start.replace(second=0)
        if self._frequency == "HOURLY":
            base = base.replace(minute=0)
        elif self._frequency != "MINUTELY":
            base = base.replace(**_MIDNIGHT)
        if self._frequency == "WEEKLY":
            base -= timedelta(days=(base.weekday() - self._week_starts) % 7)
        return lambda local: (local - base) // unit % self._interval == 0


def _instant(local: datetime, zone: tzinfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(UTC)


@cache
def _zones() -> frozenset[str]:
    # Beside those of the world there is that of the machine.
    return frozenset(available_timezones() - {"localtime", "Factory"})


def read_zone(name: str) -> ZoneInfo:
    """Raises `Unusable`."""
    if name not in _zones():
        detail = "Must be the name of a time zone such as Europe/Berlin or UTC."
        raise Unusable("time_zone", "unknown_time_zone", detail)
    return ZoneInfo(name)


def read_rule(rule: str, *, time_zone: str, starts_at: datetime) -> Recurrence:
    """Take a rule apart. Whether it ever falls due is not looked at. Raises `Unusable`."""
    zone = read_zone(time_zone)
    if starts_at.year == datetime.max.year:
        raise Unusable("starts_at", "never_fires", "There is no time after it.")
    start = starts_at.astimezone(zone).replace(tzinfo=None, fold=0)
    text = rule.strip().upper()
    parts = _parts(text)
    frequency, interval = parts["FREQ"], int(parts.get("INTERVAL", 1))
    if "COUNT" in parts and int(parts["COUNT"]) > COUNT_MAX:
        raise _invalid(f"COUNT may be at most {COUNT_MAX:,}.")
    if interval > INTERVAL_MAX.get(frequency, interval):
        raise _invalid(f"INTERVAL may be at most {INTERVAL_MAX[frequency]:,} of FREQ={frequency}.")
    chosen = _chosen(parts, frequency, interval, start)
    _refuse_too_often(parts, chosen, frequency, interval)
    period = "YEARLY" if frequency == "YEARLY" else "MONTHLY"
    kept: dict[str, str] = {
        name: parts[name] for name in ("WKST", "BYMONTH", "BYSETPOS") if name in parts
    }
    whole: dict[str, Any] = {"FREQ": period, "INTERVAL": _ONLY_ONE[period], **kept, **chosen}
    recurrence = Recurrence(
        rule=text,
        starts_at=starts_at,
        zone=zone,
        until=_until(parts["UNTIL"], zone) if "UNTIL" in parts else None,
        count=int(parts["COUNT"]) if "COUNT" in parts else None,
        _frequency=frequency,
        _interval=interval,
        _by=";".join(f"{name}={value}" for name, value in whole.items()),
        _week_starts=DAYS.index(parts.get("WKST", "MO")),
    )
    try:
        rrulestr(recurrence._by, dtstart=start)
    except ValueError as error:
        raise _invalid(f"{error}.") from error
    return recurrence


def first_due(recurrence: Recurrence, now: datetime) -> datetime:
    """The first due time after now. Raises `Unusable` if there is none."""
    if found := recurrence.first_after(now):
        return found
    was_due = recurrence.starts_at <= now and (
        recurrence.first_after(recurrence.starts_at - timedelta(seconds=1)) is not None
    )
    if was_due or (recurrence.until is not None and recurrence.until <= now):
        raise Unusable("rule", "in_the_past", "All its due times are in the past.")
    years = HORIZON.days // 365
    raise Unusable("rule", "never_fires", f"Nothing is due by it within the next {years} years.")


def _invalid(detail: str) -> Unusable:
    return Unusable("rule", "invalid_rule", detail)


def _parts(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if not equals or name not in _PARTS:
            known = ", ".join(_PARTS)
            raise _invalid(
                f"Must be parts such as FREQ=DAILY;BYHOUR=9, in one line; known are {known}."
            )
        if name in parts:
            raise _invalid(f"{name} is given twice.")
        items = value.split(",") if name in _LISTS else [value]
        if not all(_PARTS[name].fullmatch(item) for item in items):
            raise _invalid(f"{name} has a value that it cannot have.")
        parts[name] = value
    frequency = parts.get("FREQ")
    if frequency == "SECONDLY":
        raise _too_often()
    if frequency not in FREQUENCIES:
        raise _invalid(f"FREQ is required: one of {', '.join(FREQUENCIES)}.")
    if "COUNT" in parts and "UNTIL" in parts:
        raise _invalid("COUNT and UNTIL cannot be combined.")
    for name, frequencies in _GOES_WITH.items():
        if name in parts and frequency not in frequencies:
            raise _invalid(f"{name} cannot be combined with FREQ={frequency}.")
    has_numbers = re.search(r"\d", parts.get("BYDAY", ""))
    if has_numbers and (frequency not in ("MONTHLY", "YEARLY") or "BYWEEKNO" in parts):
        raise _invalid("BYDAY may have numbers with FREQ=MONTHLY and FREQ=YEARLY without BYWEEKNO.")
    if "BYSETPOS" in parts and not any(
        name.startswith("BY") for name in parts.keys() - {"BYSETPOS"}
    ):
        raise _invalid("BYSETPOS needs another part that begins with BY.")
    return parts


def _chosen(
    parts: Mapping[str, str], frequency: str, interval: int, start: datetime
) -> dict[str, str]:
    """The days and times of a rule, with what it takes from its start."""
    days = {name: parts[name] for name in _CHOOSE_DAYS if name in parts}
    if not days:
        if frequency == "YEARLY" and "BYMONTH" not in parts:
            days["BYMONTH"] = str(start.month)
        if frequency in ("YEARLY", "MONTHLY"):
            days["BYMONTHDAY"] = str(start.day)
        else:
            days["BYDAY"] = DAYS[start.weekday()] if frequency == "WEEKLY" else ",".join(DAYS)
    minutes = str(start.minute)
    if frequency == "MINUTELY":
        step = math.gcd(interval, 60)
        minutes = ",".join(str(one) for one in range(start.minute % step, 60, step))
    is_within_day = frequency in ("HOURLY", "MINUTELY")
    hours = ",".join(map(str, range(24))) if is_within_day else str(start.hour)
    return {
        **days,
        "BYHOUR": parts.get("BYHOUR", hours),
        "BYMINUTE": parts.get("BYMINUTE", minutes),
        "BYSECOND": parts.get("BYSECOND", str(start.second)),
    }


def _refuse_too_often(
    parts: Mapping[str, str], chosen: Mapping[str, str], frequency: str, interval: int
) -> None:
    hours, minutes, seconds = (
        {int(one) for one in chosen[name].split(",")} for name in ("BYHOUR", "BYMINUTE", "BYSECOND")
    )
    if frequency == "MINUTELY" and "BYMINUTE" not in parts:
        if len(seconds) > 1 or timedelta(minutes=interval) < SPACING:
            raise _too_often()
        return
    at = sorted(h * 3_600 + m * 60 + s for h, m, s in product(hours, minutes, seconds))
    # As if every day were chosen: the first of a day comes after the last of the day before.
    if any(
        after - before < SPACING.total_seconds()
        for before, after in pairwise([*at, at[0] + 86_400])
    ):
        raise _too_often()


def _too_often() -> Unusable:
    minutes = SPACING.seconds // 60
    return Unusable("rule", "too_often", f"May fall due every {minutes} minutes at the most.")


def _until(value: str, zone: tzinfo) -> datetime:
    """The end of a day, or a time: by the wall, or in UTC."""
    try:
        if len(value) == 8:
            value += "T235959"
        local = datetime.strptime(value.removesuffix("Z"), "%Y%m%dT%H%M%S")
        # All of it is over by then, and earlier ones have no local time everywhere.
        if local < _LONG_AGO:
            local = _LONG_AGO
        return local.replace(tzinfo=UTC) if value.endswith("Z") else _instant(local, zone)
    except (ValueError, OverflowError):
        raise _invalid("UNTIL is not a date or time.") from None
