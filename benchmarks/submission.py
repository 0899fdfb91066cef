"""How soon a request that finds a free slot is at the provider.

Batches of a single prompt, each by another user and on a fixed timetable that leaves the system
idle in between. From the moment the client sends its POST to the moment the simulator receives
the submission, both by the machine's monotonic clock.
"""

from benchmarks.api import BATCHES
from benchmarks.harness import REPETITIONS, Row, median_percentile
from benchmarks.lab import batch_body, make_users, running_stack
from benchmarks.load import Shot, fire

REQUESTS = 40
INTERVAL_S = 0.15
WARM_UP = "warm-up"


def run(repetitions: int = REPETITIONS, requests: int = REQUESTS) -> list[Row]:
    delays: list[list[float]] = []
    with running_stack(run_seconds=0.02) as (stack, simulator):
        users = make_users(requests)
        for series in (WARM_UP, *(f"series {number}" for number in range(repetitions))):
            prompts = [f"{series}, picture {number:04}" for number in range(requests)]
            hits = fire(
                stack.url,
                [
                    Shot(number * INTERVAL_S, number, user.token, BATCHES, batch_body([prompt]))
                    for number, (user, prompt) in enumerate(zip(users, prompts, strict=True))
                ],
            )
            received = {
                one["prompt"]: one["received_monotonic"]
                for one in simulator.await_ended(series, requests)
            }
            delays.append(
                [
                    1_000 * (received[prompt] - hit.due_monotonic)
                    for prompt, hit in zip(prompts, hits, strict=True)
                ]
            )
    del delays[0]  # the warm-up
    what = (
        "from a client's POST to the submission's arrival at the provider, free slots; "
        f"median of {repetitions} x {requests} requests, {INTERVAL_S} s apart"
    )
    return [
        Row("post-to-submit p95", what, median_percentile(delays, 95), "ms", at_most=100),
        Row("post-to-submit p50", "the same", median_percentile(delays, 50), "ms"),
    ]
