"""How long a client waits for the answer to a batch.

50 clients, each with a connection of its own, together make 20 requests a second on a fixed
timetable, from another process. All workers run, and the simulator takes longer than the
benchmark: the slots are full from the start, so what is measured beside the request itself is
the admission that each one triggers, and no image is being made. The baseline is a view behind
the same server, middleware and authentication that does nothing; the two take turns.
"""

from benchmarks.harness import REPETITIONS, Row, median_percentile
from benchmarks.lab import User, batch_body, make_users, running_stack
from benchmarks.load import Shot, fire

CLIENTS = 50
RATE_PER_S = 20
REQUESTS = 80
BATCH_SIZE = 10
NO_OP = "/benchmarks/no-op/"
BATCHES = "/api/v1/batches/"
PROMPT = "A lighthouse on a cliff at dawn, fog below, gulls, oil painting, number {}"


def run(repetitions: int = REPETITIONS, requests: int = REQUESTS) -> list[Row]:
    posts: list[list[float]] = []
    no_ops: list[list[float]] = []
    with running_stack(run_seconds=3_600) as (stack, _):
        users = make_users(CLIENTS)
        fire(stack.url, shots(users, requests // 2))
        for _ in range(repetitions):
            for path, latencies in ((BATCHES, posts), (NO_OP, no_ops)):
                hits = fire(stack.url, shots(users, requests, path))
                latencies.append([1_000 * hit.latency_s for hit in hits])
    load = (
        f"{CLIENTS} clients, {RATE_PER_S} requests/s, POST of {BATCH_SIZE} prompts; "
        f"median of {repetitions} x {requests} requests"
    )
    return [
        Row(
            "api-post p95",
            f"95th percentile: {load}",
            median_percentile(posts, 95),
            "ms",
            at_most=50,
        ),
        Row(
            "api-post p50",
            f"50th percentile: {load}; baseline: an authenticated view that does nothing",
            median_percentile(posts, 50),
            "ms",
            baseline=median_percentile(no_ops, 50),
            at_most=4,
        ),
    ]


def shots(users: list[User], count: int, path: str = BATCHES) -> list[Shot]:
    """Return the timetable: the clients take turns at an even pace."""
    body = batch_body([PROMPT.format(number) for number in range(BATCH_SIZE)])
    return [
        Shot(
            at_s=number / RATE_PER_S,
            client=number % len(users),
            token=users[number % len(users)].token,
            path=path,
            body=body if path == BATCHES else None,
        )
        for number in range(count)
    ]
