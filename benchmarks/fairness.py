"""What a newcomer loses when somebody else has filled the queue.

A crowd of one: 1,000 images of one user in line. Then another user asks for 5. Its makespan,
from the POST to the end of its last prediction, against the same when nobody else is there. Once
with the default caps, where the crowd cannot hold all slots; once with no more slots than one
user may hold: then a fair half of them is left for the newcomer, and twice the time is fair.
"""

from statistics import median

from benchmarks.api import BATCHES
from benchmarks.harness import REPETITIONS, Row
from benchmarks.lab import Simulator, User, batch_body, make_users, running_stack
from benchmarks.load import Shot, fire
from picture.stack import Stack

CROWD = 1_000
IMAGES = 5
RUN_S = 0.5
BATCH_SIZE = 25


def run(repetitions: int = REPETITIONS, crowd: int = CROWD) -> list[Row]:
    rows = []
    for slots, name, at_most in ((20, "fairness", 1.5), (3, "fairness, 3 slots", 2.0)):
        with running_stack(env={"MAX_PARALLEL_GLOBAL": str(slots)}, run_seconds=RUN_S) as parts:
            alone, crowded = _makespans(*parts, repetitions, crowd)
        rows.append(
            Row(
                name,
                f"{IMAGES} images of {RUN_S} s each behind {crowd:,} of another user, "
                f"{slots} slots; baseline: alone; median of {repetitions}",
                crowded,
                "s",
                baseline=alone,
                at_most=at_most,
            )
        )
    return rows


def _makespans(
    stack: Stack, simulator: Simulator, repetitions: int, crowd: int
) -> tuple[float, float]:
    """Return the medians, alone and in the crowd."""
    newcomer, other = make_users(2)
    _makespan_s(stack, simulator, newcomer, "warm-up")
    series = range(repetitions)
    alone = median(_makespan_s(stack, simulator, newcomer, f"alone {number}") for number in series)
    batch = batch_body(["one of many"] * BATCH_SIZE)
    fire(stack.url, [Shot(0, 0, other.token, BATCHES, batch)] * (crowd // BATCH_SIZE))
    crowded = median(
        _makespan_s(stack, simulator, newcomer, f"crowded {number}") for number in series
    )
    return alone, crowded


def _makespan_s(stack: Stack, simulator: Simulator, user: User, series: str) -> float:
    prompts = [f"{series}, picture {number}" for number in range(IMAGES)]
    (hit,) = fire(stack.url, [Shot(0, 0, user.token, BATCHES, batch_body(prompts))])
    predictions = simulator.await_ended(series, IMAGES)
    return max(float(one["ended_monotonic"]) for one in predictions) - hit.due_monotonic
