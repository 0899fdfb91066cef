"""The only HTTP client: deadlines that hold, sizes that are capped, failures as values.

A timeout of a socket bounds one read, so that a server which sends a byte now and then can hold
a caller for ever. Every exchange here has a deadline for the whole of it: one watchdog thread per
process shuts the socket down when its time is over. Looking up a host name alone is not covered.

Two kinds of exchange:

    json()      an API call: the answer's status, headers and body, or a `TransportError` that
                says whether the request can have reached the server
    download()  a file of unknown worth, from allowed hosts only: `Downloaded`, or a `Failure`
"""

import base64
import hashlib
import heapq
import itertools
import json
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import parse_url

from generation.provider import ErrorClass, Failure, HostPolicy

USER_AGENT = "picture/0.1"
JSON_MAX_BYTES = 4 * 1024 * 1024
MAX_REDIRECTS = 3

_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({403, 404, 410})
# The escapes of NUL and of surrogates, surrogates in UTF-8, and numbers whose exponent may be out
# of range.
_UNSTORABLE = re.compile(rb"\\u(0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]|[0-9][eE]\+?[0-9]{3}")
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.I)


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer of whatever status. `headers` ignores case; `body` is decoded bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the parsed body, see `parse_json`."""
        return parse_json(self.body)


def parse_json(body: bytes) -> Any:
    """Return what a body says, `None` when it is not JSON (an HTML error page, say).

    Its text holds no NUL and no lone surrogate, and its numbers are finite: those cannot be
    stored, and no answer may be lost for what its author let slip into a log.
    """
    try:
        data = json.loads(body, parse_constant=lambda name: None)
        return _storable(data) if _UNSTORABLE.search(body) else data
    except (ValueError, RecursionError):
        return None


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class TransportError:
    """No complete answer.

    `connect`: nothing of the request was sent. `sent`: it was sent, wholly or in part, and no
    answer came; the server may have acted on it. `read`: the answer began, with `status`, but
    its body did not arrive. `message` holds the host and the reason, no path and no header.
    """

    kind: Literal["connect", "sent", "read"]
    message: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file written to the sink. `content_type` is what the server claims, "" for nothing."""

    size_bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True, slots=True)
class OutputHosts:
    """Which URLs may be downloaded.

    `public` hosts are reached by https on port 443 only: an exact host name, or ".name" for all
    of its subdomains. `extra` hosts come from the operator, are written as `host` or `host:port`,
    and may use http and, without a port in the entry, any port.
    """

    public: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def allows(self, url: str) -> bool:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
            # Two parsers that read a URL differently are how allow-lists get bypassed; the
            # request is made by way of both.
            other = parse_url(url)
            if (other.host or "").strip("[]").lower() != host or other.port != port:
                return False
        except (ValueError, urllib3.exceptions.HTTPError):
            return False
        if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc:
            return False
        if any(_entry_matches(entry, host, port, parts.scheme) for entry in self.extra):
            return True
        return (
            parts.scheme == "https"
            and port in (None, 443)
            and any(
                host.endswith(entry) if entry.startswith(".") else host == entry
                for entry in self.public
            )
        )


def _entry_matches(entry: str, host: str, port: int | None, scheme: str) -> bool:
    wanted = urlsplit(f"//{entry}")
    if wanted.hostname != host:
        return False
    return wanted.port is None or wanted.port == (port or {"http": 80, "https": 443}[scheme])


class HttpClient:
    """Makes HTTP exchanges over pooled connections. Safe to share between threads and to fork.

    `timeout_s` is the deadline of an exchange that names none, `connect_timeout_s` the wait for
    one address of the server, `pool_size` the idle connections kept per host. Nothing is retried,
    proxies and credentials from the environment are not used, cookies are not kept.
    """

    def __init__(
        self, *, timeout_s: float = 30.0, connect_timeout_s: float = 5.0, pool_size: int = 20
    ) -> None:
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._pool_size = pool_size
        self._adapter = _Adapter(pool_maxsize=pool_size)
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client can be used again."""
        self._adapter.close()

    def json(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        deadline_s: float | None = None,
        max_bytes: int = JSON_MAX_BYTES,
    ) -> Response | TransportError:
        """Make one API call, once. Redirects are answers like any other.

        `json` becomes the body unless it is `None`. `deadline_s` bounds the whole exchange, and
        an answer of more than `max_bytes` after decoding is a `TransportError` of kind `read`.
        Raises TypeError or ValueError when `json` cannot be written as JSON.
        """
        deadline_s = self._timeout_s if deadline_s is None else deadline_s
        request_headers, request_body = dict(headers or {}), None
        if json is not None:
            request_headers["Content-Type"] = "application/json"
            request_body = _dumps(json)
        exchange = _Exchange(self._current_adapter(), time.monotonic() + deadline_s)
        with exchange:
            error = exchange.start(
                method,
                url,
                request_headers,
                body=request_body,
                connect_timeout_s=self._connect_timeout_s,
            )
            if error:
                return error
            body = bytearray()
            for chunk in exchange.chunks():
                body += chunk
                if len(body) > max_bytes:
                    message = f"{exchange.host}: the answer is larger than {max_bytes:,} bytes"
                    return TransportError("read", message, exchange.status)
            if exchange.problem:
                return TransportError("read", exchange.problem, exchange.status)
            return Response(exchange.status, exchange.headers, bytes(body))

    def download(
        self,
        url: str,
        sink: BinaryIO,
        *,
        hosts: HostPolicy,
        max_bytes: int,
        deadline_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Downloaded | Failure:
        """Stream one file into `sink`; after a `Failure` it may hold a part of it.

        `url` is http(s) or a base64 `data:` URI. `max_bytes` caps what comes out of any content
        encoding. `deadline_s` bounds all of it, redirects included. Classes of failure:

            BAD_OUTPUT       host not allowed, too large, too many redirects, other statuses
            OUTPUT_EXPIRED   403, 404, 410
            DOWNLOAD_FAILED  408, 429, 5xx, no connection, deadline, cut off; worth repeating

        Raises OSError when `sink` cannot be written: that is our fault, not the provider's.
        """
        if url[:5].lower() == "data:":
            return _decode_data_uri(url, sink, max_bytes)
        ends_at = time.monotonic() + (self._timeout_s if deadline_s is None else deadline_s)
        request_headers = {"Accept-Encoding": "identity", **(headers or {})}
        for _ in range(MAX_REDIRECTS + 1):
            # Checked anew after each redirect, or the list would guard the first hop only.
            if not hosts.allows(url):
                host = _host(url)
                return Failure(ErrorClass.BAD_OUTPUT, f"Files from {host} are not accepted.")
            exchange = _Exchange(self._current_adapter(), ends_at)
            with exchange:
                error = exchange.start(
                    "GET", url, request_headers, connect_timeout_s=self._connect_timeout_s
                )
                if error:
                    return Failure(ErrorClass.DOWNLOAD_FAILED, f"Download failed: {error.message}.")
                location = exchange.headers.get("location")
                if exchange.status in _REDIRECTS and location:
                    url = _join(url, location)
                    continue
                if exchange.status != 200:
                    return _bad_status(exchange)
                return _save(exchange, sink, max_bytes)
        message = f"The file is behind more than {MAX_REDIRECTS} redirects."
        return Failure(ErrorClass.BAD_OUTPUT, message)

    def _current_adapter(self) -> "_Adapter":
        # Parent and child must not talk over the same connections after a fork.
        if self._pid != os.getpid():
            self._adapter, self._pid = _Adapter(pool_maxsize=self._pool_size), os.getpid()
        return self._adapter


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds to wait that a Retry-After header names, `None` if it names none.

    Takes seconds (also with a fraction) and HTTP dates; a date in the past is 0. The result has
    no upper bound: how long to wait at most is the caller's matter.
    Source: RFC 9110, section 10.2.3, read 2026-11-20
    """
    value = (value or "").strip()
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _join(url: str, location: str) -> str:
    """Return where a redirect leads, "" (which no list of hosts allows) for nonsense."""
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _dumps(value: Any) -> bytes:
    # Inside `HttpClient.json` that name is the parameter.
    return json.dumps(value, allow_nan=False).encode()


def _bad_status(exchange: "_Exchange") -> Failure:
    status = exchange.status
    message = f"{exchange.host} answered {status} instead of the file."
    if status in _GONE:
        return Failure(ErrorClass.OUTPUT_EXPIRED, message, provider_code=str(status))
    if status in (408, 429) or status >= 500:
        return Failure(
            ErrorClass.DOWNLOAD_FAILED,
            message,
            provider_code=str(status),
            retry_after_s=parse_retry_after(exchange.headers.get("retry-after")),
        )
    return Failure(ErrorClass.BAD_OUTPUT, message, provider_code=str(status))


def _save(exchange: "_Exchange", sink: BinaryIO, max_bytes: int) -> Downloaded | Failure:
    digest, size_bytes = hashlib.sha256(), 0
    for chunk in exchange.chunks():
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            return _too_large(max_bytes)
        digest.update(chunk)
        sink.write(chunk)
    if exchange.problem:
        return Failure(ErrorClass.DOWNLOAD_FAILED, f"Download failed: {exchange.problem}.")
    content_type = exchange.headers.get("content-type", "")
    return Downloaded(size_bytes, digest.hexdigest(), content_type)


def _decode_data_uri(uri: str, sink: BinaryIO, max_bytes: int) -> Downloaded | Failure:
    head = _DATA_URI.match(uri[:1024])
    if not head:
        return Failure(ErrorClass.BAD_OUTPUT, "The data URI is not in base64.")
    if (len(uri) - head.end()) * 3 // 4 > max_bytes + 2:
        return _too_large(max_bytes)
    try:
        data = base64.b64decode(uri[head.end() :], validate=True)
    except ValueError:
        return Failure(ErrorClass.BAD_OUTPUT, "The data URI is not valid base64.")
    if len(data) > max_bytes:
        return _too_large(max_bytes)
    sink.write(data)
    return Downloaded(len(data), hashlib.sha256(data).hexdigest(), head[1] or "")


def _too_large(max_bytes: int) -> Failure:
    return Failure(ErrorClass.BAD_OUTPUT, f"The file is larger than {max_bytes:,} bytes.")


class _Exchange:
    """One request and its answer under one deadline; a context manager that frees both."""

    def __init__(self, adapter: "_Adapter", ends_at: float) -> None:
        self._adapter = adapter
        self._watch = _Watch(ends_at)
        self._response: requests.Response | None = None
        self.host = ""
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.problem = ""  # why the body ended early, "" if it did not

    def __enter__(self) -> Self:
        _watchdog.add(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.close()
        if self._response is not None:
            self._response.close()

    def start(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_timeout_s: float,
        body: bytes | None = None,
    ) -> TransportError | None:
        """Send the request and wait for the answer's headers."""
        self.host = _host(url)
        # The watchdog is what ends a slow exchange; these are the same bounds seen from within.
        left_s = max(0.001, self._watch.ends_at - time.monotonic())
        token = _current_watch.set(self._watch)
        try:
            # Not by way of a Session: it keeps cookies, heeds the environment, and reads the
            # whole body of a redirect even when told not to follow it.
            request = requests.Request(
                method, url, headers={"User-Agent": USER_AGENT, **headers}, data=body
            )
            self._response = self._adapter.send(
                request.prepare(), stream=True, timeout=(min(connect_timeout_s, left_s), left_s)
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            kind: Literal["connect", "sent"] = "sent" if self._watch.request_sent else "connect"
            return TransportError(kind, f"{self.host}: {self._reason(error)}")
        finally:
            _current_watch.reset(token)
        self.status = self._response.status_code
        self.headers = self._response.headers
        return None

    def chunks(self) -> Iterator[bytes]:
        """Yield the decoded body; sets `problem` when it is not complete."""
        assert self._response is not None
        try:
            yield from self._response.raw.stream(_CHUNK_BYTES, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.problem = f"{self.host}: {self._reason(error)}"
        # A body without a length ends with its connection, so the watchdog's end looks like any.
        if self._watch.expired:
            self.problem = f"{self.host}: the deadline passed"

    def _reason(self, error: BaseException) -> str:
        """Say in a few words what went wrong, without the URL or any header."""
        if self._watch.expired:
            return "the deadline passed"
        for cause in _causes(error):
            if isinstance(cause, (TimeoutError, urllib3.exceptions.TimeoutError)):
                return "timed out"
            if isinstance(cause, urllib3.exceptions.IncompleteRead):
                return "the answer was cut off"
            if isinstance(cause, ssl.SSLError):
                return f"TLS failed ({cause.reason or 'handshake'})"
            if isinstance(cause, socket.gaierror):
                return "the host name could not be resolved"
            if isinstance(cause, OSError) and cause.strerror:
                return cause.strerror.lower()
        return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what lies beneath `error`, innermost first, then itself."""
    inner = [a for a in (*error.args, getattr(error, "reason", None)) if isinstance(a, Exception)]
    for cause in (*inner, error.__cause__, error.__context__):
        if cause is not None and cause is not error:
            yield from _causes(cause)
    yield error


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or "(no host)"
    except ValueError:
        return "(no host)"


class _Watch:
    """The deadline of one exchange and the socket to shut down when it passes.

    It holds a duplicate of the socket. That one survives the original's being wrapped for TLS or
    handed to the response, and cannot come to mean another connection when a number is reused.
    """

    __slots__ = ("_closed", "_lock", "_socket", "ends_at", "expired", "request_sent")

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.expired = False
        self.request_sent = False
        self._socket: socket.socket | None = None
        self._closed = False
        self._lock = threading.Lock()

    def attach(self, sock: socket.socket) -> None:
        """Watch over `sock`. Raises TimeoutError, and closes it, when the time is over already."""
        with self._lock:
            if self.expired:
                sock.close()
                raise TimeoutError
            self._detach()
            # A TLS socket refuses to be duplicated; its descriptor does not mind.
            self._socket = socket.socket(fileno=os.dup(sock.fileno()))

    def expire(self) -> None:
        with self._lock:
            if self._closed:
                return
            self.expired = True
            if self._socket is not None:
                with suppress(OSError):  # closed by the peer already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._detach()

    def _detach(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Watchdog:
    """One daemon thread that expires watches on time."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._wake = threading.Condition()
        self._heap: list[tuple[float, int, _Watch]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, watch: _Watch) -> None:
        with self._wake:
            is_first = not self._heap or watch.ends_at < self._heap[0][0]
            heapq.heappush(self._heap, (watch.ends_at, next(self._numbers), watch))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="http-deadlines", daemon=True
                )
                self._thread.start()
            elif is_first:
                self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                left_s = self._heap[0][0] - time.monotonic() if self._heap else math.inf
                if left_s > 0:
                    # Exchanges that ended stay in the heap until their time is over: cheaper
                    # than finding them, and they hold no socket.
                    self._wake.wait(min(left_s, threading.TIMEOUT_MAX))
                    continue
                watch = heapq.heappop(self._heap)[2]
            watch.expire()


_watchdog = _Watchdog()
_current_watch: ContextVar[_Watch | None] = ContextVar("current_watch", default=None)


class _WatchedHTTPConnection(HTTPConnection):
    """A connection that tells the current exchange's watch of its socket and of bytes sent.

    urllib3 opens the socket in `_new_conn`, before any TLS, so that the handshake is watched too.
    """

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        if watch := _current_watch.get():
            watch.attach(sock)
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        if (watch := _current_watch.get()) and self.sock is not None:
            watch.attach(self.sock)  # from the pool
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if watch := _current_watch.get():
            watch.request_sent = True
        super().send(data)


class _WatchedHTTPSConnection(_WatchedHTTPConnection, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
