"""How much of the provider's capacity is used while there is work.

20 users with 10 images of 2 s each, 20 slots: 20 s if no slot were ever idle. From the first
submission's arrival at the simulator to the end of the last prediction.
"""

from statistics import median

from django.conf import settings

from batches.models import Batch
from benchmarks.api import BATCHES
from benchmarks.harness import REPETITIONS, Row
from benchmarks.lab import Simulator, User, await_that, batch_body, make_users, running_stack
from benchmarks.load import Shot, fire
from picture.stack import Stack

USERS = 20
IMAGES = 10
RUN_S = 2.0


def run(users: int = USERS, images: int = IMAGES, repetitions: int = REPETITIONS) -> list[Row]:
    took_s = []
    with running_stack(run_seconds=RUN_S) as (stack, simulator):
        owners = make_users(users)
        _makespan_s(stack, simulator, owners, 2, "warm-up")
        for number in range(repetitions):
            took_s.append(_makespan_s(stack, simulator, owners, images, f"series {number}"))
    slots = min(settings.MAX_PARALLEL_GLOBAL, users * settings.MAX_PARALLEL_PER_USER)
    ideal_s = users * images * RUN_S / slots
    return [
        Row(
            "makespan efficiency",
            f"{users} users with {images} images of {RUN_S:.0f} s each on {slots} slots: "
            f"{median(took_s):.2f} s of at least {ideal_s:.0f} s; median of {repetitions}",
            100 * ideal_s / median(took_s),
            "%",
            at_least=95,
        )
    ]


def _makespan_s(
    stack: Stack, simulator: Simulator, users: list[User], images: int, series: str
) -> float:
    """Have every user submit one batch at once; seconds until the provider has made them all."""
    fire(
        stack.url,
        [
            Shot(
                0,
                user.id,
                user.token,
                BATCHES,
                batch_body([f"{series}, user {user.id}, picture {n}" for n in range(images)]),
            )
            for user in users
        ],
    )
    predictions = simulator.await_ended(series, len(users) * images)
    # Also ours have to be at rest before the next series.
    await_that(lambda: not Batch.objects.filter(finished_at=None).exists(), "all batches finished")
    took_s: float = max(one["ended_monotonic"] for one in predictions) - min(
        one["received_monotonic"] for one in predictions
    )
    return took_s
