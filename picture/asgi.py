"""The ASGI application.

Django's synchronous stack runs on a bounded set of long-lived threads. Under Django's own ASGI
handler every request gets a thread of its own, and with it a new database connection.

A thread is taken when the request is complete: bodies are bounded, so they are read here first,
into memory, and files that are uploaded onto the disk, of so many at a time.
It is given back when the answer is taken, or the client has had its time: one that sends slowly,
reads slowly or never ends holds nobody up for long. ZIPs may take hours, so they have threads of
their own. Who waits for the end of what he has asked for, or is told of it over a WebSocket, holds
none at all.

Importing this module waits until the database answers, so that no server listens before.
"""

import asyncio
import contextlib
import io
import math
import os
import re
import signal
import string
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast
from urllib.parse import quote

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "picture.settings")

import psycopg2
from a2wsgi import WSGIMiddleware
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection

from batches.database import DATABASE_AWAY, reason

WEB_THREADS = 8
BODY_TIMEOUT_S = 20.0
UPLOAD_PATH = "/api/v1/references/"
UPLOAD_TIMEOUT_S = 120.0
# Each may take the disk for a whole file.
UPLOADS_AT_A_TIME, UPLOADS_EACH = 16, 8
# Of a form around its file.
FORM_BYTES = 64 * 1024
# More than this of a body that is too large is not waited for: some clients hear nothing of an
# answer while they are sending.
DRAIN_BYTES = 100 * 1024 * 1024
HOOKS_PATH = "/hooks/"
EXPORT_PATH = re.compile(r"/api/v1/(?:images|batches/[^/]+)/export/")
EXPORTS_AT_A_TIME, EXPORTS_EACH = 4, 2
# RunPod tells by webhook all that it has made.
HOOK_DRAIN_BYTES = 32 * 1024 * 1024
PIECE_BYTES = 256 * 1024
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
        trouble = _database_trouble()
        if not trouble:
            return
        print(f"picture: waiting for the database: {trouble}", file=sys.stderr, flush=True)
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
        return reason(error)
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


_wsgi: Any = get_wsgi_application()


def _while_taken(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Django, as long as somebody takes what it says: nothing else would stop it."""
    gone: threading.Event = environ["asgi.scope"]["picture.gone"]
    answer = _wsgi(environ, start_response)
    try:
        for piece in answer:
            if gone.is_set():
                return
            yield piece
    finally:
        answer.close()


_taken: Any = _while_taken
_django = WSGIMiddleware(_wsgi, workers=WEB_THREADS)
_zips: Any = WSGIMiddleware(_taken, workers=EXPORTS_AT_A_TIME)
wait_for_database()

# They import models, for which Django must have been set up.
from rest_framework.exceptions import APIException  # noqa: E402

from batches.api import errors  # noqa: E402
from batches.live.consumers import live_application  # noqa: E402
from batches.live.credentials import caller_of  # noqa: E402
from batches.live.hub import Hub  # noqa: E402
from picture.waiting import Waiting  # noqa: E402

_hub = Hub()
_live = live_application(_hub)


class _Places:
    """So many requests at a time, and of one user not more than its share."""

    def __init__(self, count: int, each: int) -> None:
        self._count, self._each = count, each
        self._held: Counter[int] = Counter()

    def is_full(self, user_id: int) -> bool:
        return self._held.total() >= self._count or self._held[user_id] >= self._each

    @contextlib.contextmanager
    def taken(self, user_id: int) -> Iterator[None]:
        self._held[user_id] += 1
        try:
            yield
        finally:
            self._held[user_id] -= 1
            self._held += Counter()  # forgets those that have none


_uploads = _Places(UPLOADS_AT_A_TIME, UPLOADS_EACH)
_exports = _Places(EXPORTS_AT_A_TIME, EXPORTS_EACH)


class _Bounds(NamedTuple):
    """Of a body: how much is kept, how much is taken before it is answered, and how long."""

    keep_bytes: int
    take_bytes: int
    timeout_s: float


async def application(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await _waiting.serve(_answer, scope, receive, send)
    elif scope["type"] == "websocket":
        await _live(scope, receive, send)


async def _answer(scope: Message, receive: Receive, send: Send) -> None:
    is_export, is_upload = _is_export(scope), _is_upload(scope)
    if not is_export and not is_upload:
        await _serve(_django, scope, receive, send, _bounds(scope))
    elif (user_id := await _user_id(scope)) is None:
        # Django refuses it, and needs no body for that.
        await _serve(_django, scope, receive, send, _kept_nothing())
    elif is_export:
        await _export(user_id, scope, receive, send)
    elif _uploads.is_full(user_id):
        await _serve(_refusing(errors.TooBusy), scope, receive, send, _kept_nothing())
    else:
        with _uploads.taken(user_id):
            await _serve(_django, scope, receive, send, _upload_bounds())


async def _export(user_id: int, scope: Message, receive: Receive, send: Send) -> None:
    """Hand out a ZIP, however long that takes, as long as each piece is taken in time."""
    with io.BytesIO() as nothing:
        if await _read_body(receive, nothing, _kept_nothing()) is None:
            return
    if _exports.is_full(user_id):
        await _refusing(errors.ExportsBusy)(scope, receive, send)
        return
    with _exports.taken(user_id):
        gone = threading.Event()
        watch = asyncio.create_task(_note_end(receive, gone))
        try:
            told = {**_complete(scope, 0), "picture.gone": gone}
            await _zips(told, _empty, _impatient(send, is_long=True, gone=gone))
        finally:
            watch.cancel()


async def _note_end(receive: Receive, gone: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _empty() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _serve(app: Any, scope: Message, receive: Receive, send: Send, bounds: _Bounds) -> None:
    with tempfile.SpooledTemporaryFile(max_size=settings.MAX_BODY_BYTES + 1) as spool:
        body = cast(BinaryIO, spool)
        try:
            size_bytes = await _read_body(receive, body, bounds)
        except TimeoutError:
            await _refusing(errors.BodyTooLate)(scope, receive, send)
            return
        if size_bytes is None:
            return
        body.seek(0)
        await app(_complete(scope, size_bytes), _replay(body, receive), _impatient(send))


def _is_upload(scope: Message) -> bool:
    content_type = dict(scope["headers"]).get(b"content-type", b"")
    is_form = content_type.lower().startswith(b"multipart/form-data")
    return bool(is_form and scope["method"] == "POST" and scope["path"] == UPLOAD_PATH)


def _is_export(scope: Message) -> bool:
    is_read = scope["method"] in ("GET", "HEAD")
    return bool(is_read and EXPORT_PATH.fullmatch(scope["path"]))


async def _user_id(scope: Message) -> int | None:
    """Who asks, looked up: what anybody can make up must not hold a place. `None`: nobody.

    While the database is away nobody can tell, and Django says so.
    """
    try:
        caller = await _hub.read(partial(caller_of, scope))
    except DATABASE_AWAY:
        return None
    return caller.user_id if caller else None


def _bounds(scope: Message) -> _Bounds:
    # A byte more than is allowed shows that it is too large.
    keep_bytes = settings.MAX_BODY_BYTES + 1
    is_hook = scope["method"] == "POST" and scope["path"].startswith(HOOKS_PATH)
    take_bytes = max(keep_bytes, HOOK_DRAIN_BYTES) if is_hook else keep_bytes
    return _Bounds(keep_bytes, take_bytes, BODY_TIMEOUT_S)


def _upload_bounds() -> _Bounds:
    keep_bytes = settings.MAX_REFERENCE_BYTES + FORM_BYTES + 1
    return _Bounds(keep_bytes, max(keep_bytes, DRAIN_BYTES), UPLOAD_TIMEOUT_S)


def _kept_nothing() -> _Bounds:
    return _Bounds(0, DRAIN_BYTES, BODY_TIMEOUT_S)


async def _read_body(receive: Receive, body: BinaryIO, bounds: _Bounds) -> int | None:
    """Write what is to be kept of the body; how many bytes. `None`: the client left.

    Raises TimeoutError, unless all is there that is to be kept.
    """
    read_bytes = 0
    try:
        async with asyncio.timeout(bounds.timeout_s):
            while read_bytes < bounds.take_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                piece = message.get("body", b"")
                body.write(piece[: max(0, bounds.keep_bytes - read_bytes)])
                read_bytes += len(piece)
                if not message.get("more_body"):
                    break
    except TimeoutError:
        if read_bytes < bounds.keep_bytes:
            raise
    return min(read_bytes, bounds.keep_bytes)


def _refusing(error: type[APIException]) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """An application that answers everything with this one of the API's errors."""

    async def refuse(scope: Message, receive: Receive, send: Send) -> None:
        response = errors.unread(error)
        headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
        status = response.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": response.content})

    return refuse


def _complete(scope: Message, size_bytes: int) -> Message:
    """The scope with the body's length, and with nothing in it that WSGI cannot hold."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name not in (b"content-length", b"transfer-encoding")
    ]
    if size_bytes:
        headers.append((b"content-length", str(size_bytes).encode()))
    query = quote(scope["query_string"], safe=string.punctuation).encode()
    return {**scope, "headers": headers, "query_string": query}


def _replay(body: BinaryIO, receive: Receive) -> Receive:
    is_over = False

    async def replay() -> Message:
        nonlocal is_over
        if is_over:
            return await receive()
        piece = body.read(PIECE_BYTES)
        is_over = len(piece) < PIECE_BYTES
        return {"type": "http.request", "body": piece, "more_body": not is_over}

    return replay


def _impatient(send: Send, *, is_long: bool = False, gone: threading.Event | None = None) -> Send:
    """Drops what a client does not take in time, so that the thread behind it can finish.

    `gone` is set then. What `is_long` has no deadline for all of it.
    """
    timeout_s = math.inf if is_long else ANSWER_TIMEOUT_S
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    gone = gone or threading.Event()

    async def send_in_time(message: Message) -> None:
        if gone.is_set():
            return
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now_s + PIECE_TIMEOUT_S, deadline_s)):
                await send(message)
        except TimeoutError:
            gone.set()

    return send_in_time


async def _fetch(scope: Message, receive: Receive, send: Send) -> None:
    app: Any = _django
    await app(scope, receive, send)


_waiting = Waiting(_hub, fetch=_fetch, impatient=_impatient)
