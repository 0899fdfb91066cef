"""How soon clients are told what happened to a batch, and what each of them costs.

Five users have ten batches of ten each, and ten clients follow each batch: 500 WebSockets to one
web process, from a process of their own. When all are there, the work is let go: all workers run,
the simulator makes the pictures, and the caps let twenty run at a time. The delay is from when an
event was logged, which is shortly before its commit, to when a client has it, by the one clock of
this machine; so it counts what was coalesced as well. One more client for each user follows all
that the user has. Everything that anybody is told must be about what is his, and be told to each
client once and in order.
"""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

import psutil
from django.utils import timezone

from batches import lifecycle, wake
from batches.lifecycle import NewGeneration
from batches.models import Batch, Event, Pool
from benchmarks.followers import HANDSHAKES_AT_A_TIME, Follower, Told, open_socket
from benchmarks.harness import Row, percentile
from benchmarks.lab import MODEL, SIZE_PX, User, make_users, running_stack
from picture.stack import Stack

PROVIDER = "replicate"
USERS = 5
BATCHES_PER_USER = 10
BATCH_SIZE = 10
CLIENTS_PER_BATCH = 10
RUNNING = 20
RUN_S = 1.5


def run() -> list[Row]:
    env = {"MAX_PARALLEL_PER_USER": str(RUNNING // USERS), "MAX_PARALLEL_GLOBAL": str(RUNNING)}
    with running_stack(env=env, run_seconds=RUN_S) as (stack, _):
        users = make_users(USERS)
        owners = _hold_batches(users)
        followers = [
            Follower(user.id, user.token, batch_id)
            for user in users
            for batch_id in _of(owners, user) * CLIENTS_PER_BATCH
        ]
        followers += [Follower(one.id, one.token, batches=BATCHES_PER_USER) for one in users]
        _warm_up(stack, followers)
        before = _memory_kb(stack)
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.followers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as clients:
            told, grown_kb = _watch(stack, clients, followers, before)
        events = {
            (str(one.batch_id), one.version): one.created_at.timestamp()
            for one in Event.objects.filter(kind="batch_job_complete")
        }
    _verify(told, followers, owners, events)
    delays = [
        1_000 * (when - events[batch_id, version])
        for _, batch_id, version, kind, when in told
        if kind == "batch_job_complete"
    ]
    shape = (
        f"{len(followers)} clients on {len(owners)} batches of {BATCH_SIZE} of {USERS} users; "
        f"{len(delays):,} ends told, none of another user's; one repetition"
    )
    return [
        Row(
            "live p95",
            f"from the event's row to the client: {shape}",
            percentile(delays, 95),
            "ms",
            at_most=250,
        ),
        Row("live p50", "the same", percentile(delays, 50), "ms"),
        Row(
            "live memory",
            "growth of the web process for each client that has been told all",
            grown_kb / len(followers),
            "kB",
            at_most=150,
        ),
    ]


def _of(owners: dict[str, int], user: User) -> list[str]:
    return [batch_id for batch_id, owner_id in owners.items() if owner_id == user.id]


def _hold_batches(users: Sequence[User]) -> dict[str, int]:
    """The owners of new batches, which are held back by a closed pool."""
    closed = {"blocked_until": timezone.now() + timedelta(hours=1)}
    Pool.objects.update_or_create(
        name=PROVIDER, defaults=closed, create_defaults={"capacity": 10_000, **closed}
    )
    generation = NewGeneration(
        prompt="a lighthouse",
        final_prompt="a lighthouse",
        model=MODEL,
        provider=PROVIDER,
        settings={"model": MODEL},
        input={"prompt": "a lighthouse", "width": SIZE_PX, "height": SIZE_PX},
    )
    owners = {}
    for user in [*users] * BATCHES_PER_USER:
        batch = lifecycle.submit_batch(
            owner_id=user.id, generations=[generation] * BATCH_SIZE, settings_asked={}
        )
        owners[str(batch.pk)] = user.id
    return owners


def _warm_up(stack: Stack, followers: Sequence[Follower]) -> None:
    """Have the process load what it needs for any client."""

    async def come_and_go() -> None:
        for follower in followers[:HANDSHAKES_AT_A_TIME]:
            async with open_socket(stack.url, follower) as socket:
                await socket.recv()

    asyncio.run(come_and_go())


def _memory_kb(stack: Stack) -> float:
    return float(psutil.Process(stack.pids["web"]).memory_info().rss / 1024)


def _watch(
    stack: Stack,
    clients: "subprocess.Popen[str]",
    followers: Sequence[Follower],
    before_kb: float,
) -> tuple[list[Told], float]:
    """Let all batches go with all clients there; what they were told, and the memory it took."""
    assert clients.stdin is not None
    assert clients.stdout is not None
    order = {"url": stack.url, "followers": [asdict(one) for one in followers]}
    clients.stdin.write(json.dumps(order) + "\n")
    clients.stdin.flush()
    assert clients.stdout.readline() == "ready\n"
    Pool.objects.filter(name=PROVIDER).update(blocked_until=None)
    wake.dispatch_now()
    told = [tuple(one) for one in json.loads(clients.stdout.readline())]
    assert not Batch.objects.exclude(status="completed").exists()
    return told, _memory_kb(stack) - before_kb


def _verify(
    told: Sequence[Told],
    followers: Sequence[Follower],
    owners: dict[str, int],
    events: dict[tuple[str, int], float],
) -> None:
    """Nobody was told of others' batches; everybody of all of his, once and in order."""
    seen: dict[tuple[int, str], list[int]] = {}
    progress: Counter[tuple[int, str]] = Counter()
    for number, batch_id, version, kind, _ in told:
        follower = followers[number]
        assert owners[batch_id] == follower.user
        assert follower.batch_id in ("", batch_id)
        if kind == "batch_job_complete":
            seen.setdefault((number, batch_id), []).append(version)
        else:
            progress[number, batch_id] += 1
    ends: dict[str, list[int]] = {}
    for batch_id, version in sorted(events):
        ends.setdefault(batch_id, []).append(version)
    for number, follower in enumerate(followers):
        own = [one for one, owner_id in owners.items() if owner_id == follower.user]
        for batch_id in [follower.batch_id] if follower.batch_id else own:
            assert seen[number, batch_id] == ends[batch_id], follower.path
            assert progress[number, batch_id] >= 1
