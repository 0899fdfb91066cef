"""How long it will take: run times of models, and when a batch will have ended.

A batch's remaining work is laid out on the slots that its owner can count on, the way an
admission would: what runs goes on for as long as such runs usually do, then what is ahead in the
owner's line, then the batch's own queue. The estimate is the mean over a few layouts, so that the
last run, which is a long one now and then, is reckoned with.
"""

import heapq
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from statistics import fmean, median

from batches.catalogue import get_model
from batches.models import (
    BATCH_TERMINAL,
    Attempt,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Outlook,
    Pool,
)
from batches.pools import CIRCUIT_THRESHOLD

# Run times are read again after so long, so that reading a batch costs no query of its own.
RUN_TIMES_TTL_S = 0.5
RECENT_RUNS = 20
DEFAULT_USUAL_S = 5.0
SHORTEST_S = 0.05
# Until a model has run here: how much longer than usual one run in ten takes.
PRIOR_P90 = 1.5
# From a slot being free to the submission in it, and from a result to its being stored.
OVERHEAD_S = 0.15
# Runs that are laid out for one estimate, over all layouts; and layouts at most.
MAX_RUNS_LAID_OUT, MAX_LAYOUTS = 2_000, 12


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Seconds from acceptance to result. `samples` are sorted; a prior where nothing has run."""

    samples: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return median(self.samples)

    @property
    def mean_s(self) -> float:
        return fmean(self.samples)

    def at(self, quantile: float) -> float:
        """The run time that a share of `quantile` (0 to 1, exclusive) stays below."""
        place = quantile * len(self.samples) - 0.5
        low = min(max(math.floor(place), 0), len(self.samples) - 1)
        high = min(low + 1, len(self.samples) - 1)
        part = min(max(place - low, 0.0), 1.0)
        return self.samples[low] * (1 - part) + self.samples[high] * part

    def left_s(self, elapsed_s: float) -> float:
        """What is left on average of a run that has taken `elapsed_s` so far."""
        longer = [sample for sample in self.samples if sample > elapsed_s]
        if longer:
            return fmean(longer) - elapsed_s
        return 0.25 * self.median_s  # late already: any moment now


_known: dict[str, tuple[float, RunTimes]] = {}


def run_times(model_id: str) -> RunTimes:
    """Of the model's latest runs, or what the catalogue says."""
    known = _known.get(model_id)
    if known is None or known[0] < time.monotonic():
        recent = Attempt.objects.recent_run_times(model_id, RECENT_RUNS)
        found = RunTimes(tuple(sorted(recent))) if recent else _prior(model_id)
        known = (time.monotonic() + RUN_TIMES_TTL_S, found)
        _known[model_id] = known
    return known[1]


def _prior(model_id: str) -> RunTimes:
    model = get_model(model_id)
    usual_s = max(model.est_seconds if model else DEFAULT_USUAL_S, SHORTEST_S)
    # Nine in ten about as usual, one in ten longer.
    return RunTimes((*[usual_s] * 8, *[usual_s * PRIOR_P90] * 2))


class NoEta(StrEnum):
    """Why nobody can say when a batch will have ended."""

    ENDED = "ended"
    PAUSED = "paused"
    SCHEDULED = "scheduled"
    CANCELLING = "cancelling"
    # Nothing is submitted to its provider until an operator clears an alert, or it is back.
    PROVIDER_STOPPED = "provider_stopped"
    PROVIDER_AWAY = "provider_away"
    NO_SLOTS = "no_slots"
    FAR_BACK = "far_back_in_line"
    # In the answer to its submission, which does not wait for this.
    NOT_ESTIMATED = "not_estimated"


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds until the last generation has ended, or the reason why they are not known."""

    seconds: int | None
    reason: NoEta | None = None


def batch_eta(batch: Batch, items: Sequence[Generation], outlook: Outlook | None) -> Eta:
    """Estimate when a batch will have ended. `items` are its generations, in any order."""
    reason = _no_eta(batch, items, outlook)
    if reason is not None:
        return Eta(None, reason)
    assert outlook is not None
    if outlook.ahead >= Outlook.MAX_AHEAD:
        return Eta(None, NoEta.FAR_BACK)
    seconds = _layout_s(items, outlook)
    return Eta(max(1, round(seconds)))


def _no_eta(batch: Batch, items: Sequence[Generation], outlook: Outlook | None) -> NoEta | None:
    if batch.status in BATCH_TERMINAL:
        return NoEta.ENDED
    if batch.cancel_requested_at is not None:
        return NoEta.CANCELLING
    if batch.status == BatchStatus.PAUSED:
        return NoEta.PAUSED
    if batch.status == BatchStatus.SCHEDULED:
        return NoEta.SCHEDULED
    if any(item.status == GenerationStatus.PENDING for item in items):
        return NoEta.PAUSED
    if outlook is None:
        return NoEta.NOT_ESTIMATED
    waiting = {item.provider for item in items if item.status == GenerationStatus.QUEUED}
    pools = [outlook.pools[name] for name in sorted(waiting) if name in outlook.pools]
    if any(pool.is_stopped for pool in pools):
        return NoEta.PROVIDER_STOPPED
    if any(pool.failure_count >= CIRCUIT_THRESHOLD for pool in pools):
        return NoEta.PROVIDER_AWAY
    if waiting and _slots(outlook, waiting) < 1:
        return NoEta.NO_SLOTS
    return None


def _slots(outlook: Outlook, providers: set[str]) -> int:
    """How many of its owner's generations can run at a time, others taking their share."""
    capacity = outlook.pools[Pool.SYSTEM].capacity if Pool.SYSTEM in outlook.pools else outlook.cap
    places = [outlook.pools[name].capacity for name in providers if name in outlook.pools]
    if places:
        capacity = min(capacity, sum(places))
    share = max(1, capacity // max(outlook.busy_lanes, 1))
    return min(outlook.cap, capacity, max(share, outlook.running))


def _layout_s(items: Sequence[Generation], outlook: Outlook) -> float:
    times = {model: run_times(model) for model in {item.model for item in items}}
    running = [
        _left_s(item, times[item.model], outlook.now)
        for item in items
        if item.status == GenerationStatus.PROCESSING
    ]
    queued = [item for item in items if item.status == GenerationStatus.QUEUED]
    ends = [OVERHEAD_S * any(one.status == GenerationStatus.DOWNLOADING for one in items)]
    ends += [left + OVERHEAD_S for left in running]
    if not queued:
        return max(ends)
    mean_s = fmean(times[item.model].mean_s for item in queued)
    # Of the owner's other work nothing is known but that it takes slots before ours.
    others = max(0, outlook.running - len(running))
    slots = max(_slots(outlook, {item.provider for item in queued}), 1)
    start_s = max(
        (
            outlook.pools[item.provider].blocked_s
            for item in queued
            if item.provider in outlook.pools
        ),
        default=0.0,
    )
    free_at = sorted([*running, *[mean_s / 2] * others])
    free_at = [max(one, start_s) for one in [0.0] * max(0, slots - len(free_at)) + free_at][-slots:]
    waits = [_wait_s(item, outlook.now) for item in queued]
    layouts = max(1, min(MAX_LAYOUTS, MAX_RUNS_LAID_OUT // len(queued)))
    return max(
        *ends,
        fmean(
            _one_layout_s(queued, times, waits, free_at, outlook.ahead, mean_s, number / layouts)
            for number in range(layouts)
        ),
    )


def _one_layout_s(
    queued: Sequence[Generation],
    times: Mapping[str, RunTimes],
    waits: Sequence[float],
    free_at: Sequence[float],
    ahead: int,
    mean_s: float,
    shift: float,
) -> float:
    """One way in which it may go, told from others by `shift`, from 0 to 1."""
    slots = list(free_at)
    heapq.heapify(slots)
    for _ in range(ahead):
        heapq.heapreplace(slots, slots[0] + mean_s + OVERHEAD_S)
    last = 0.0
    for number, (item, wait_s) in enumerate(zip(queued, waits, strict=True)):
        # Golden steps cover the run times evenly, in an order that has none.
        quantile = (shift + (number + 0.5) * 0.6180339887) % 1
        began = max(slots[0] + OVERHEAD_S, wait_s)
        ended = began + times[item.model].at(quantile)
        heapq.heapreplace(slots, ended)
        last = max(last, ended)
    return last + OVERHEAD_S


def _left_s(item: Generation, times: RunTimes, now: datetime) -> float:
    elapsed_s = times.median_s * item.progress / 100
    if item.attempt_count == 1 and item.started_at is not None:
        elapsed_s = (now - item.started_at).total_seconds()
    return times.left_s(elapsed_s)


def _wait_s(item: Generation, now: datetime) -> float:
    """Until it may be admitted again after a failure."""
    return max(0.0, (item.not_before - now).total_seconds()) if item.not_before else 0.0
