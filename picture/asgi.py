"""The ASGI application.

Django's synchronous stack runs on a bounded set of long-lived threads. Under Django's own ASGI
handler every request gets a thread of its own, and with it a new database connection.

A thread is taken when the request is complete: bodies are bounded, so they are read here first.
It is given back when the answer is taken, or the client has had its time: one that sends slowly,
reads slowly or never ends holds nobody up for long.

Importing this module waits until the database answers, so that no server listens before.
"""

import asyncio
import contextlib
import os
import signal
import string
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import quote

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "picture.settings")

import psycopg2
from a2wsgi import WSGIMiddleware
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection

WEB_THREADS = 8
BODY_TIMEOUT_S = 20.0
# To take one piece of an answer, and all of it.
PIECE_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 300.0
# Of one try to reach the database at the start, and between two of them.
CONNECT_TIMEOUT_S = 5
CONNECT_PAUSE_S = 1.0

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def wait_for_database() -> None:
    """Return when the database takes connections; say so on stderr if that is not at once."""
    with _ending_when_asked():
        reason = _database_trouble()
        if not reason:
            return
        print(f"picture: waiting for the database: {reason}", file=sys.stderr, flush=True)
        while _database_trouble():
            time.sleep(CONNECT_PAUSE_S)
        print("picture: the database is there", file=sys.stderr, flush=True)


def _database_trouble() -> str:
    """One line on why the database cannot be used, empty when it can."""
    # By the driver: servers import this inside of an event loop, where Django would refuse.
    params = connection.get_connection_params()
    try:
        psycopg2.connect(**{**params, "connect_timeout": CONNECT_TIMEOUT_S}).close()
    except psycopg2.OperationalError as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


@contextlib.contextmanager
def _ending_when_asked() -> Iterator[None]:
    """Signals end the process: a server only notes them until its application is imported.

    By a handler of our own: the first process of a container is spared the default one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + signum)

    handlers = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)


_django = WSGIMiddleware(get_wsgi_application(), workers=WEB_THREADS)  # type: ignore[arg-type]
wait_for_database()


async def application(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read_body(receive)
    except TimeoutError:
        await send({"type": "http.response.start", "status": 408, "headers": []})
        await send({"type": "http.response.body"})
        return
    if body is None:
        return
    await _django(_complete(scope, body), _replay(body, receive), _impatient(send))  # type: ignore[arg-type]


async def _read_body(receive: Receive) -> bytes | None:
    """The body, or of one that is too large a byte more than allowed; `None`: the client left."""
    body = bytearray()
    while len(body) <= settings.MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body[: settings.MAX_BODY_BYTES + 1])


def _complete(scope: Message, body: bytes) -> Message:
    """The scope with the body's length, and with nothing in it that WSGI cannot hold."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name not in (b"content-length", b"transfer-encoding")
    ]
    if body:
        headers.append((b"content-length", str(len(body)).encode()))
    query = quote(scope["query_string"], safe=string.punctuation).encode()
    return {**scope, "headers": headers, "query_string": query}


def _replay(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _impatient(send: Send) -> Send:
    """Drops what a client does not take in time, so that the thread behind it can finish."""
    deadline_s = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_S
    gone = False

    async def send_in_time(message: Message) -> None:
        nonlocal gone
        if gone:
            return
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now_s + PIECE_TIMEOUT_S, deadline_s)):
                await send(message)
        except TimeoutError:
            gone = True

    return send_in_time
