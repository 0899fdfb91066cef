"""Clients of the WebSockets, in a process of their own so that they slow nothing else down.

`python -m benchmarks.followers` reads a URL and followers from its input, writes `ready` when all
are connected and have their snapshot, and what they were told when all batches have completed.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import connect

HANDSHAKES_AT_A_TIME = 20
TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class Follower:
    """A client and what it follows: a batch, or with `batch_id` empty all `batches` of its user."""

    user: int
    token: str
    batch_id: str = ""
    batches: int = 1

    @property
    def path(self) -> str:
        return f"/ws/batches/{self.batch_id}/" if self.batch_id else "/ws/me/"


# Client, batch, version, type, when.
Told = tuple[int, str, int, str, float]


def open_socket(url: str, follower: Follower) -> Any:
    return connect(
        url.replace("http", "ws", 1) + follower.path,
        additional_headers={"Authorization": f"Bearer {follower.token}"},
        compression=None,
        proxy=None,
        open_timeout=60,
    )


async def _follow(url: str, followers: Sequence[Follower]) -> list[Told]:
    told: list[Told] = []
    gate = asyncio.Semaphore(HANDSHAKES_AT_A_TIME)
    there = asyncio.Barrier(len(followers) + 1)

    async def follow(number: int, follower: Follower) -> None:
        async with gate:
            socket = await open_socket(url, follower)
            assert json.loads(await socket.recv())["type"] == "snapshot"
        await there.wait()
        completed: set[str] = set()
        async with socket:
            while len(completed) < follower.batches:
                one = json.loads(await socket.recv())
                told.append((number, one["batch_id"], one["version"], one["type"], time.time()))
                if one["type"] == "batch_progress" and one["status"] == "completed":
                    completed.add(one["batch_id"])
            await there.wait()  # nobody leaves before all have been told

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for number, follower in enumerate(followers):
            group.create_task(follow(number, follower))
        await there.wait()
        print("ready", flush=True)
        await there.wait()
    return told


def main() -> None:
    order = json.loads(sys.stdin.readline())
    followers = [Follower(**one) for one in order["followers"]]
    print(json.dumps(asyncio.run(_follow(order["url"], followers))), flush=True)


if __name__ == "__main__":
    main()
