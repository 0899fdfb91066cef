"""The baseline of the engine: a chain of two tasks that do nothing, and the end of its chord."""

import time

from celery import shared_task


@shared_task(name="benchmarks.first")
def first() -> str:
    return "done"


@shared_task(name="benchmarks.second")
def second(outcome: str) -> str:
    return outcome


@shared_task(name="benchmarks.last", ignore_result=False)
def last() -> float:
    """Return when the chord's body ran."""
    return time.monotonic()
