"""HTTP clients with a timetable, in a process of their own so that they slow nothing else down.

`python -m benchmarks.load` reads a URL and shots from its input and writes what became of them.
Each client keeps one connection, opened before the first shot. A shot is late if its client
still waits for an answer; latencies count from the time in the timetable, so that a slow server
cannot hide behind requests that were not made.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

LEAD_S = 0.2
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Shot:
    """One POST of a client, `at_s` after the start."""

    at_s: float
    client: int
    token: str
    path: str
    body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """When a shot was due (`time.monotonic`, of this whole machine), and its answer."""

    due_monotonic: float
    latency_s: float
    status: int


def fire(url: str, shots: Sequence[Shot]) -> list[Hit]:
    """Make the requests and return their answers in the same order.

    Raises:
        RuntimeError: an answer was not a success.
    """
    order = json.dumps({"url": url, "shots": [asdict(shot) for shot in shots]})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load"],
        input=order,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    hits = [Hit(**hit) for hit in json.loads(done.stdout)]
    for hit, shot in zip(hits, shots, strict=True):
        if not 200 <= hit.status < 300:
            raise RuntimeError(f"POST {shot.path} answered {hit.status}")
    return hits


async def _fire(url: str, shots: list[Shot]) -> list[Hit]:
    hits: dict[int, Hit] = {}
    sessions = {
        client: aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        for client in {shot.client for shot in shots}
    }

    async def shoot(number: int, shot: Shot, start: float) -> None:
        due = start + shot.at_s
        await asyncio.sleep(due - time.monotonic())
        headers = {"Authorization": f"Bearer {shot.token}"}
        async with sessions[shot.client].post(
            f"{url}{shot.path}", json=shot.body, headers=headers
        ) as answer:
            await answer.read()
            hits[number] = Hit(due, time.monotonic() - due, answer.status)

    async def connect(session: aiohttp.ClientSession) -> None:
        async with session.get(f"{url}/health/live") as answer:
            await answer.read()

    try:
        await asyncio.gather(*(connect(session) for session in sessions.values()))
        start = time.monotonic() + LEAD_S
        await asyncio.gather(*(shoot(number, shot, start) for number, shot in enumerate(shots)))
    finally:
        for session in sessions.values():
            await session.close()
    return [hits[number] for number in range(len(shots))]


def main() -> None:
    order = json.load(sys.stdin)
    hits = asyncio.run(_fire(order["url"], [Shot(**shot) for shot in order["shots"]]))
    json.dump([asdict(hit) for hit in hits], sys.stdout)


if __name__ == "__main__":
    main()
