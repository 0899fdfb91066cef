"""Two thousand generations of fifty users, while workers and the broker keep dying."""

import itertools
import random
import tempfile
import time
from pathlib import Path

import pytest

from tests.faults.harness import WORKERS, Faults, FaultStack, make_users
from tests.waiting import wait_until

USERS, BATCHES, SIZE = 50, 100, 20
KILL_EVERY_S = 5.0
REDIS_DIES_AFTER = (0.3, 0.6)  # when so much of the work has ended
LIMIT_S = 420.0

pytestmark = pytest.mark.timeout(LIMIT_S + 180)


@pytest.fixture
def soaked(fault_rows):
    env = {"MAX_PARALLEL_GLOBAL": "100", "MAX_PARALLEL_PER_USER": "5"}
    with (
        tempfile.TemporaryDirectory(prefix="picture-soak-") as folder,
        FaultStack(Path(folder), env=env) as stack,
    ):
        soaked = Faults(stack, fault_rows)
        soaked.reset()
        yield soaked


def test_two_thousand_generations_survive_all_of_it(soaked):
    stack = soaked.stack
    users = make_users(stack, [f"soak{number}" for number in range(USERS)])
    # As many a second as can be downloaded: a line of downloads would hide how soon things go on.
    soaked.simulator.settings(run_seconds=4.0)
    # The first that matches applies.
    soaked.simulator.fault("fail", rate=0.02)
    soaked.simulator.fault("interrupt", rate=0.1)
    dice = random.Random(7)
    with soaked.injecting("soak: a worker killed every 5 s, Redis twice") as fault:
        batches = [
            user.submit([f"soak {number}.{place}" for place in range(SIZE)])
            for number, user in zip(range(BATCHES), itertools.cycle(users), strict=False)
        ]
        total = BATCHES * SIZE
        redis_dies_at = [share * total for share in REDIS_DIES_AFTER]
        begun_at = next_kill_at = time.monotonic()
        hit = {}
        while (ended := _ended(stack)) < total and time.monotonic() < begun_at + LIMIT_S:
            name = dice.choice(WORKERS)
            if redis_dies_at and ended >= redis_dies_at[0]:
                redis_dies_at.pop(0)
                name = "redis"
            affected = stack.hit_by_killing(name)
            killed_at = stack.kill(name)
            if name == "redis":
                stack.empty_redis()
                stack.restart("redis")
            for one in affected:
                hit.setdefault(one, []).append(killed_at)
            fault.injected(len(affected))
            next_kill_at += KILL_EVERY_S
            wait_until(
                lambda at=next_kill_at: time.monotonic() > at or _ended(stack) == total,
                every_s=0.2,
            )
        fault.settle(batches)
        fault.recovered(soaked.worst_recovery(hit))
    assert not redis_dies_at
    outcomes = {
        (row["status"], row["error_code"]): row["count"]
        for row in stack.rows(
            "SELECT status, error_code, count(*) FROM batches_generation GROUP BY 1, 2"
        )
    }
    assert sum(outcomes.values()) == total
    assert set(outcomes) == {("completed", ""), ("failed", "invalid_input")}
    attempts = stack.rows("SELECT provider_id FROM batches_attempt WHERE provider_id IS NOT NULL")
    charges = soaked.simulator.charges()
    assert {one["provider_id"] for one in attempts} == {one["prediction_id"] for one in charges}
    assert len(attempts) == len(charges)


def _ended(stack):
    return stack.value("SELECT count(*) FROM batches_generation WHERE finished_at IS NOT NULL")
