"""Keeps answers back for clients that would rather wait: `Prefer: wait=N`, without a thread.

Django answers as always, and its thread is free again. Where it says so by a header (see
`batches.api.waiting`), its answer is held while the hub follows the work. When that has ended, a
second request, made up here, fetches the result in the name of the same client; when the time is
over first, it fetches how far the work has come, and the answer is 202 as before.
"""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from batches.api.waiting import WAIT_HEADER
from batches.live.hub import Hub

# Each holds an answer in memory; who comes when there are so many is answered at once.
MAX_WAITING = 1_000

_HEADER = WAIT_HEADER.lower().encode()
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Of the request: who it is, and which address it was sent to.
_KEPT_OF_REQUEST = (b"authorization", b"cookie", b"host", b"x-forwarded-proto")
# Of the first answer, beside what the second says.
_KEPT_OF_ANSWER = (b"location", b"idempotent-replayed")

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class _Answer:
    start: Message = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    has_ended: bool = True

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.body += message.get("body", b"")

    async def give(self, send: Send) -> None:
        await send(self.start)
        await send({"type": "http.response.body", "body": bytes(self.body)})


class _Gate:
    """Passes an answer on, or holds it if it says so; the header that does goes no further."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.order = ""
        self.held = _Answer()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = message["headers"]
            self.order = dict(headers).get(_HEADER, b"").decode("latin1")
            if self.order:
                kept = [(name, value) for name, value in headers if name != _HEADER]
                message = {**message, "headers": kept}
        await (self.held.take if self.order else self._send)(message)


class Waiting:
    """`fetch` answers the requests that are made up here; `impatient` bounds how long a client
    may take for its answer."""

    def __init__(self, hub: Hub, *, fetch: App, impatient: Callable[[Send], Send]) -> None:
        self._hub, self._fetch, self._impatient = hub, fetch, impatient
        self._count = 0

    async def serve(self, app: App, scope: Message, receive: Receive, send: Send) -> None:
        """Have `app` answer, and keep the answer back if that says so."""
        gate = _Gate(send)
        await app(scope, receive, gate.send)
        if not gate.order:
            return
        answer, can_wait = gate.held, self._count < MAX_WAITING
        if can_wait:
            self._count += 1
            try:
                result = await self._result(gate.order, scope, receive)
            except asyncio.CancelledError:
                await answer.give(send)  # the server stops: better than no answer
                raise
            finally:
                self._count -= 1
            if result is None:
                return
            if result.start.get("status") == 200:
                kept = [one for one in answer.start["headers"] if one[0] in _KEPT_OF_ANSWER]
                result.start["headers"] = [*result.start["headers"], *kept]
                if not result.has_ended:
                    result.start["status"] = answer.start["status"]
                answer = result
            if any(name == b"prefer" for name, _ in scope["headers"]):
                seconds = gate.order.partition(" ")[0].encode()
                answer.start["headers"].append((b"preference-applied", b"wait=" + seconds))
        await answer.give(self._impatient(send))

    async def _result(self, order: str, scope: Message, receive: Receive) -> _Answer | None:
        """What there is once the work has ended, or its time is over.

        `None`: the client has left.
        """
        seconds, _, path = order.partition(" ")
        subject = uuid.UUID(_UUID.findall(path)[-1])
        ended = asyncio.create_task(self._hub.ended(subject, int(seconds)))
        left = asyncio.create_task(_await_leaving(receive))
        try:
            await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return None
            result = _Answer(has_ended=ended.result())
            await self._fetch(_request(scope, path), _nothing_more, result.take)
            return result
        finally:
            for task in (ended, left):
                task.cancel()
            await asyncio.gather(ended, left, return_exceptions=True)


def _request(scope: Message, path: str) -> Message:
    """For what stands at a path, in the name of who sent the request with this scope."""
    headers = [(name, value) for name, value in scope["headers"] if name in _KEPT_OF_REQUEST]
    place = {"path": path, "raw_path": path.encode(), "query_string": b""}
    return {**scope, **place, "method": "GET", "headers": headers}


async def _await_leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing_more() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
