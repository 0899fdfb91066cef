"""How often something is told of."""

import math
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Subject = TypeVar("Subject", bound=Hashable)


class Pace(Generic[Subject]):
    """Says which subjects are due: each at once, and after it was told not for `interval_s`.

    What is noted while a subject rests is due when it has rested, once; so nothing that was noted
    last is forgotten. Times are seconds of any clock that only goes on.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due_s: dict[Subject, float] = {}
        self._told_s: dict[Subject, float] = {}

    @property
    def next_s(self) -> float:
        """When the next one is due; infinite when none is."""
        return min(self._due_s.values(), default=math.inf)

    def note(self, subject: Subject, now_s: float) -> None:
        rested_s = self._told_s.get(subject, -math.inf) + self._interval_s
        self._due_s.setdefault(subject, max(now_s, rested_s))

    def take(self, now_s: float) -> set[Subject]:
        """Those that are due, which are no longer then."""
        due = {one for one, due_s in self._due_s.items() if due_s <= now_s}
        for one in due:
            del self._due_s[one]
        return due

    def told(self, subject: Subject, now_s: float) -> None:
        """It was told of, and now rests."""
        self._told_s[subject] = now_s

    def resting(self, subjects: Iterable[Subject], now_s: float) -> set[Subject]:
        since_s = now_s - self._interval_s
        return {one for one in subjects if self._told_s.get(one, -math.inf) > since_s}

    def forget(self, now_s: float) -> None:
        """Drop what is known of those that have rested."""
        since_s = now_s - self._interval_s
        self._told_s = {one: at_s for one, at_s in self._told_s.items() if at_s > since_s}
