"""How many generations a second the engine puts through when the provider costs nothing.

A provider inside the worker that is done at once. Everything else is the product's own:
admission, canvas, rows, verification, storage. All batches are in line before the clock starts,
held back by a closed pool, and the caps are too wide to limit; the clock stops when the last
batch is final.

The baseline is the least that Celery does for work of this shape: chords of chains of two empty
tasks, on the same broker, by the same workers. The two take turns.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median

from celery import chain, chord
from django.db.models import Max
from django.utils import timezone

from batches import lifecycle, wake
from batches.intake import DEFAULT_MODEL
from batches.lifecycle import NewGeneration
from batches.models import Batch, BatchStatus, Pool
from benchmarks import tasks
from benchmarks.harness import REPETITIONS, Row, number
from benchmarks.instant import InstantProvider
from benchmarks.lab import User, await_that, cpu_s, make_users, running_stack

USERS = 20
BATCHES_PER_USER = 2
BATCH_SIZE = 10
SLOTS = 200
RESULT_TIMEOUT_S = 120

Spent = dict[str, float]


def run(repetitions: int = REPETITIONS, batches_per_user: int = BATCHES_PER_USER) -> list[Row]:
    batches = USERS * batches_per_user
    generations = batches * BATCH_SIZE
    rates: dict[Callable[[int], float], list[float]] = {_engine_s: [], _chords_s: []}
    spent: dict[Callable[[int], float], list[Spent]] = {_engine_s: [], _chords_s: []}
    caps = {"MAX_PARALLEL_PER_USER": str(SLOTS), "MAX_PARALLEL_GLOBAL": str(SLOTS)}
    with running_stack(env=caps) as (stack, _):
        users = make_users(USERS)
        for repetition in range(repetitions + 1):
            _queue(users, batches_per_user)
            for work in (_engine_s, _chords_s):
                before = cpu_s(stack.pids)
                took_s = work(batches)
                if repetition:  # the first one is the warm-up
                    rates[work].append(generations / took_s)
                    spent[work].append(
                        {
                            name: 1_000 * (after_s - before[name]) / generations
                            for name, after_s in cpu_s(stack.pids).items()
                        }
                    )
    ours, plain = spent[_engine_s], spent[_chords_s]
    shape = f"{generations} of {USERS} users in batches of {BATCH_SIZE}"
    return [
        Row(
            "engine",
            f"generations/s with an instant provider, {shape}; baseline: chords of chains of two "
            f"empty tasks on the same workers; median of {repetitions}",
            median(rates[_engine_s]),
            "/s",
            baseline=median(rates[_chords_s]),
            at_least=1 / 3,
        ),
        Row(
            "engine processor time",
            f"per generation, all processes: {_split(ours)}; baseline: {_split(plain)}",
            _total(ours),
            "ms",
            baseline=_total(plain),
        ),
    ]


def _queue(users: list[User], batches_per_user: int) -> None:
    """Put all work in line and keep it there."""
    closed = {"blocked_until": timezone.now() + timedelta(hours=1)}
    Pool.objects.update_or_create(
        name=InstantProvider.name, defaults=closed, create_defaults={"capacity": 10_000, **closed}
    )
    generation = NewGeneration(
        prompt="a lighthouse",
        final_prompt="a lighthouse",
        model=DEFAULT_MODEL,
        provider=InstantProvider.name,
        settings={},
        input={"prompt": "a lighthouse"},
    )
    for user in users * batches_per_user:
        lifecycle.submit_batch(
            owner_id=user.id, generations=[generation] * BATCH_SIZE, settings_asked={}
        )


def _engine_s(batches: int) -> float:
    """Let the work in line through; how long it took."""
    before = Batch.objects.exclude(finished_at=None).count()
    began_s = time.time()
    Pool.objects.filter(name=InstantProvider.name).update(blocked_until=None)
    wake.dispatch_now()
    final = Batch.objects.exclude(finished_at=None)
    await_that(lambda: final.count() == before + batches, "all batches final")
    assert not final.exclude(status=BatchStatus.COMPLETED).exists()
    ended_at = final.aggregate(Max("finished_at"))["finished_at__max"]
    return float(ended_at.timestamp() - began_s)


def _chords_s(batches: int) -> float:
    """Do the same with tasks that are empty; how long it took."""
    one = chain(tasks.first.si().set(queue="generate"), tasks.second.s().set(queue="download"))
    end = tasks.last.si().set(queue="control")
    began_s = time.monotonic()
    results = [chord([one] * BATCH_SIZE)(end) for _ in range(batches)]
    ended_s: list[float] = [result.get(timeout=RESULT_TIMEOUT_S) for result in results]
    return max(ended_s) - began_s


def _total(spent: list[Spent]) -> float:
    return median(sum(one.values()) for one in spent)


def _split(spent: list[Spent]) -> str:
    """Return what each process used, most first, without those that hardly count."""
    used = {name: median(one[name] for one in spent) for name in spent[0]}
    ordered = sorted(used.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number(ms)}" for name, ms in ordered if ms >= 0.1)
