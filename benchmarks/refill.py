"""How soon a slot that has become free is used again.

Users with longer lines than their caps allow, enough slots in all: so the n-th completion of a
user frees the slot of that user's submission number cap + n. Measured from `downloading_at`,
which is when the poll has seen the completion, to the next arrival at the simulator, by this
machine's wall clock; for information also from the completion itself.
"""

from collections import defaultdict

from django.conf import settings

from batches.models import Generation
from benchmarks.api import BATCHES
from benchmarks.harness import REPETITIONS, Row, median_percentile
from benchmarks.lab import await_that, batch_body, make_users, running_stack
from benchmarks.load import Shot, fire

USERS = 2
IMAGES = 20
RUN_S = 0.5
JITTER = 0.3


def run(repetitions: int = REPETITIONS, images: int = IMAGES) -> list[Row]:
    seen: list[list[float]] = []
    done: list[list[float]] = []
    with running_stack(run_seconds=RUN_S, run_jitter=JITTER) as (stack, simulator):
        users = make_users(USERS)
        for series in ("warm-up", *(f"series {number}" for number in range(repetitions))):
            prompts = {
                user: [f"{series}, user {user.id}, picture {number}" for number in range(images)]
                for user in users
            }
            fire(
                stack.url,
                [
                    Shot(0, number, user.token, BATCHES, batch_body(prompts[user]))
                    for number, user in enumerate(users)
                ],
            )
            owner = {prompt: user.id for user in users for prompt in prompts[user]}
            requests = simulator.await_ended(series, USERS * images)
            ours = Generation.objects.filter(prompt__startswith=series)
            await_that(
                lambda: not ours.filter(downloading_at=None).exists(),  # noqa: B023
                "all completions seen",
            )
            received, ended, downloading = (defaultdict[int, list[float]](list) for _ in range(3))
            for one in requests:
                received[owner[one["prompt"]]].append(one["received_at"])
                ended[owner[one["prompt"]]].append(one["ended_at"])
            for owner_id, at in ours.values_list("owner_id", "downloading_at"):
                assert at is not None
                downloading[owner_id].append(at.timestamp())
            seen.append([])
            done.append([])
            for user in users:
                seen[-1] += refills(downloading[user.id], received[user.id])
                done[-1] += refills(ended[user.id], received[user.id])
    del seen[0], done[0]  # the warm-up
    load = (
        f"{USERS} users with {images} images of {RUN_S} s each; "
        f"median of {repetitions} x {len(seen[0])} refills"
    )
    return [
        Row(
            "slot-refill p95",
            f"from a completion seen to the user's next submission at the provider: {load}",
            median_percentile(seen, 95),
            "ms",
            at_most=100,
        ),
        Row(
            "slot-refill p95 from end",
            "the same from the provider's own completion, which a poll sees later "
            f"(medians: {median_percentile(seen, 50):.0f} and {median_percentile(done, 50):.0f})",
            median_percentile(done, 95),
            "ms",
        ),
    ]


def refills(freed: list[float], received: list[float]) -> list[float]:
    """Return the milliseconds from each freed slot to the submission that uses it."""
    waiting = sorted(received)[settings.MAX_PARALLEL_PER_USER :]
    return [
        1_000 * (next_at - freed_at)
        for freed_at, next_at in zip(sorted(freed), waiting, strict=False)
    ]
