"""What waiting costs Redis and our processes: nothing, since the queue is rows.

At rest, after a few images have been made so that everything is loaded; then with 100,000
generations in line, put there by `lifecycle.submit_batch` with the wake-ups that belong to it,
while a closed pool holds them back and the beat goes on looking. The memory is what a process
has for itself (USS), with its children's.
"""

import contextlib
import time
from datetime import timedelta

import psutil
from django.conf import settings
from django.utils import timezone

from batches import lifecycle
from batches.lifecycle import NewGeneration
from batches.models import Lane, Pool
from benchmarks.api import BATCHES
from benchmarks.harness import Row, number
from benchmarks.lab import MODEL, batch_body, make_users, running_stack
from benchmarks.load import Shot, fire
from picture.stack import SIMULATOR, Stack

QUEUED = 100_000
BATCH_SIZE = 500
USERS = 20
SETTLE_S = 6.0
NOT_OURS = ("postgres", SIMULATOR)


def run(queued: int = QUEUED) -> list[Row]:
    with running_stack(run_seconds=0.1) as (stack, simulator):
        users = make_users(USERS)
        body = batch_body(["a lighthouse"] * settings.MAX_BATCH_SIZE)
        fire(stack.url, [Shot(0, user.id, user.token, BATCHES, body) for user in users[:8]])
        simulator.await_ended("a lighthouse", 8 * settings.MAX_BATCH_SIZE)
        Pool.objects.update(blocked_until=timezone.now() + timedelta(hours=1))
        time.sleep(SETTLE_S)
        rest = _memory_mb(stack)
        generation = NewGeneration(
            prompt="a lighthouse",
            final_prompt="a lighthouse",
            model=MODEL,
            provider="replicate",
            settings={"model": MODEL},
            input={"prompt": "a lighthouse"},
        )
        for batch in range(queued // BATCH_SIZE):
            lifecycle.submit_batch(
                owner_id=users[batch % USERS].id,
                generations=[generation] * BATCH_SIZE,
                settings_asked={"model": MODEL},
            )
        time.sleep(SETTLE_S)
        full = _memory_mb(stack)
        assert sum(Lane.objects.values_list("queued", flat=True)) == queued
    grown = {name: full[name] - rest[name] for name in full}
    split = ", ".join(f"{name} {number(mb)}" for name, mb in sorted(grown.items()))
    return [
        Row(
            "memory",
            f"growth of Redis and our processes from rest ({number(sum(rest.values()))} MB) to "
            f"{queued:,} in line: {split}; one repetition, it takes over 20 s",
            sum(grown.values()),
            "MB",
            at_most=50,
        )
    ]


def _memory_mb(stack: Stack) -> dict[str, float]:
    used = {}
    for name, pid in stack.pids.items():
        if name in NOT_OURS:
            continue
        root = psutil.Process(pid)
        used[name] = 0.0
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used[name] += process.memory_full_info().uss / 2**20
    return used
