"""The WebSockets `/ws/batches/{id}/` and `/ws/me/`.

A client whose messages pile up, or that does not take one in time, is cut off: nobody waits for
it, and it can come back and go on where it was.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import URLRouter
from django.urls import path, re_path

from batches.database import DATABASE_AWAY
from batches.live.credentials import SUBPROTOCOL, credentials_of, offers_token
from batches.live.hub import Closing, Hub

logger = logging.getLogger(__name__)

# What may wait for a client: many hundred events.
MAX_WAITING_CHARS = 256 * 1024
SEND_TIMEOUT_S = 10.0

_VERSION = re.compile(r"[0-9]{1,9}")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class LiveConsumer(AsyncWebsocketConsumer):
    """One connection. What it is told waits in its own queue, which is sent while there is some."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self._waiting: deque[str] = deque()
        self._waiting_chars = 0
        self._close_code: int | None = None
        self._sender: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self.accept(SUBPROTOCOL if offers_token(self.scope) else None)
        try:
            credentials = await self._hub.read(partial(credentials_of, self.scope))
            if credentials is None:
                self.end(Closing.UNAUTHENTICATED)
            elif not self._hub.admit(self, credentials):
                self.end(Closing.TOO_MANY)
            else:
                await self.begin(credentials.user_id)
        except DATABASE_AWAY:
            self.end(Closing.TRY_LATER)
        except BaseException:
            # Then nothing calls `disconnect`, and the hub would keep it for ever.
            self._hub.leave(self)
            raise

    async def begin(self, user_id: int) -> None:
        """Begin to follow what this address is for."""
        raise NotImplementedError

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data is not None and _is_ping(text_data):
            self.tell(['{"type":"pong"}'])
        else:
            self.end(Closing.BAD_MESSAGE)

    async def disconnect(self, code: int) -> None:
        self._forget()
        if self._sender is not None:
            self._sender.cancel()

    def tell(self, messages: Sequence[str]) -> None:
        """Have messages sent, in order."""
        if self._close_code is not None:
            return
        is_slow = bool(self._waiting)
        self._waiting.extend(messages)
        self._waiting_chars += sum(map(len, messages))
        # Not by one large message alone, which may be the first.
        if is_slow and self._waiting_chars > MAX_WAITING_CHARS:
            self._cut()
        else:
            self._send_on()

    def end(self, code: int) -> None:
        """Have the connection closed, after what is still to be sent."""
        if self._close_code is None:
            self._close_code = code
            self._hub.leave(self)
            self._send_on()

    def _send_on(self) -> None:
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self.send(text_data=self._waiting[0])
                self._waiting_chars -= len(self._waiting.popleft())
            if self._close_code is not None:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await self.close(self._close_code)
        except TimeoutError:
            self._cut()
        except (OSError, RuntimeError):
            pass  # it has left, or the server has given it up: `disconnect` is told

    def _cut(self) -> None:
        """End the connection without a word, which would not be taken either."""
        self._forget()
        self._close_code = Closing.TRY_LATER
        if self._sender is not None and self._sender is not asyncio.current_task():
            self._sender.cancel()
        # The server would go on to wait until what it has written is taken, and has no other way
        # to be told.
        transport = getattr(getattr(self.base_send, "__self__", None), "transport", None)
        if transport is not None:
            logger.info("a slow client was cut off")
            transport.abort()

    def _forget(self) -> None:
        self._hub.leave(self)
        self._waiting.clear()
        self._waiting_chars = 0


class BatchConsumer(LiveConsumer):
    """One batch. With `?version=N`, what has happened after that version instead of a snapshot."""

    async def begin(self, user_id: int) -> None:
        query = parse_qs(self.scope["query_string"].decode("latin1"), keep_blank_values=True)
        given = query.get("version", [None])[-1]
        if given is not None and not _VERSION.fullmatch(given):
            self.end(Closing.BAD_MESSAGE)
            return
        batch_id = self.scope["url_route"]["kwargs"]["batch_id"]
        since = None if given is None else int(given)
        if not await self._hub.follow(self, owner_id=user_id, batch_id=batch_id, since=since):
            self.end(Closing.NOT_FOUND)


class UserConsumer(LiveConsumer):
    """All that the user has."""

    async def begin(self, user_id: int) -> None:
        await self._hub.watch(self, owner_id=user_id)


def _is_ping(text: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return bool(json.loads(text) == {"type": "ping"})
    return False


async def _nothing_here(scope: Message, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close"})  # before it is accepted: 403


def live_application(hub: Hub) -> Application:
    """The ASGI application of all WebSockets."""
    application: Application = URLRouter(
        [
            path("ws/batches/<uuid:batch_id>/", BatchConsumer.as_asgi(hub=hub)),
            path("ws/me/", UserConsumer.as_asgi(hub=hub)),
            re_path("", cast(Any, _nothing_here)),
        ]
    )
    return application
