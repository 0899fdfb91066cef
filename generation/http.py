"""The only HTTP client: deadlines that hold, sizes that are capped, failures as values.

A timeout of a socket bounds one read, so that a server which sends a byte now and then can hold
a caller for ever. Every exchange here has a deadline for the whole of it: one watchdog thread per
process shuts the socket down when its time is over, and host names are looked up in threads that
nobody waits for any longer. Reading the file that is sent, and writing the one that is received,
are not covered.

Four kinds of exchange:

    json()          an API call: the answer's status, headers and body, or a `TransportError` that
                    says whether the request can have reached the server
    upload()        the same, with a file
    download()      a file of unknown worth, from allowed hosts only: `Downloaded`, or a `Failure`
    fetch_public()  the same, from whatever public address a user names
"""

import base64
import hashlib
import json
import math
import os
import re
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from urllib3.fields import RequestField
from urllib3.util import parse_url

from generation.connections import (
    Adapter,
    NotPublicError,
    PublicAdapter,
    Watch,
    current_watch,
    watchdog,
)
from generation.provider import Downloaded, ErrorClass, Failure, HostPolicy, InputFile

USER_AGENT = "picture/0.1"
JSON_MAX_BYTES = 4 * 1024 * 1024
MAX_REDIRECTS = 3

_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({403, 404, 410})
# The escapes of NUL and of surrogates, and surrogates in UTF-8.
_UNSTORABLE = re.compile(rb"\\u(0000|[dD][89a-fA-F])|\xed[\xa0-\xbf]")
_DIGITS_LIMIT = 300  # of a whole number; a float holds somewhat more
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
    """Return what a body says, `None` when it is not JSON in UTF-8 (an HTML error page, say).

    Its text holds no NUL and no lone surrogate, and numbers that no float can hold are `None`:
    those cannot be stored, and no answer may be lost for what its author let slip into a log.
    """
    try:
        data = json.loads(
            body.decode("utf-8-sig", "surrogatepass"),
            parse_constant=lambda name: None,
            parse_float=_finite,
            parse_int=_bounded,
        )
        return _storable(data) if _UNSTORABLE.search(body) else data
    except (ValueError, RecursionError):
        return None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _bounded(digits: str) -> int | None:
    return int(digits) if len(digits) <= _DIGITS_LIMIT else None


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
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
    its body did not arrive, or was `too_large`. `message` holds the host and the reason, no path
    and no header.
    """

    kind: Literal["connect", "sent", "read"]
    message: str
    status: int | None = None
    too_large: bool = False


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
        place = _place(url)
        if place is None:
            return False
        scheme, host, port = place
        if any(_entry_matches(entry, host, port, scheme) for entry in self.extra):
            return True
        return (
            scheme == "https"
            and port in (None, 443)
            and any(
                host.endswith(entry) if entry.startswith(".") else host == entry
                for entry in self.public
            )
        )


def _place(url: str) -> tuple[str, str, int | None] | None:
    """Return scheme, host and port of an http(s) URL, `None` when there is any doubt of them."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
        # Two parsers that read a URL differently are how lists of hosts get bypassed; the request
        # is made by way of both.
        other = parse_url(url)
        if (other.host or "").strip("[]").lower() != host or other.port != port:
            return None
    except (ValueError, urllib3.exceptions.HTTPError):
        return None
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc:
        return None
    return parts.scheme, host, port


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
        self._adapter = Adapter(pool_maxsize=pool_size)
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
        request_headers, request_body = dict(headers or {}), None
        if json is not None:
            request_headers["Content-Type"] = "application/json"
            request_body = _dumps(json)
        return self._call(method, url, request_headers, request_body, deadline_s, max_bytes)

    def upload(
        self,
        url: str,
        file: InputFile,
        *,
        field: str,
        filename: str | None = None,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        max_bytes: int = JSON_MAX_BYTES,
    ) -> Response | TransportError:
        """POST a file as the part `field` of a form, once, reading it while it is sent.

        `filename` is the file's own unless given; `fields` are further parts, sent before it. The
        rest is as for `json`. Raises OSError when the file cannot be read, or is not as long as
        it says: that is our fault, not the server's.
        """
        with file.open() as source:
            form = _Form(file, source, field, filename or file.filename, fields or {})
            request_headers = {**(headers or {}), "Content-Type": form.content_type}
            answer = self._call("POST", url, request_headers, form, deadline_s, max_bytes)
        if form.failure is not None:
            raise form.failure
        return answer

    def _call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body_sent: "bytes | _Form | None",
        deadline_s: float | None,
        max_bytes: int,
    ) -> Response | TransportError:
        deadline_s = self._timeout_s if deadline_s is None else deadline_s
        exchange = _Exchange(self._current_adapter(), time.monotonic() + deadline_s)
        with exchange:
            error = exchange.start(
                method, url, headers, body=body_sent, connect_timeout_s=self._connect_timeout_s
            )
            if error:
                return error
            body = bytearray()
            for chunk in exchange.chunks():
                body += chunk
                if len(body) > max_bytes:
                    message = f"{exchange.host}: the answer is larger than {max_bytes:,} bytes"
                    return TransportError("read", message, exchange.status, too_large=True)
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

        def adapter_for(url: str) -> Adapter | Failure:
            if hosts.allows(url):
                return self._current_adapter()
            return Failure(ErrorClass.BAD_OUTPUT, f"Files from {_host(url)} are not accepted.")

        return self._get(url, sink, adapter_for, max_bytes, deadline_s, headers or {})

    def fetch_public(
        self,
        url: str,
        sink: BinaryIO,
        *,
        max_bytes: int,
        deadline_s: float | None = None,
        exempt: HostPolicy | None = None,
    ) -> Downloaded | Failure:
        """Stream what a user's URL names into `sink`; after a `Failure` it may hold a part of it.

        Only http(s) on the ports 80 and 443, without credentials, and from public addresses: a
        name is looked up once, and the connection goes to an address that was checked. What
        `exempt` allows may be anywhere. Every redirect is checked like the first URL. `max_bytes`
        and `deadline_s` are as for `download`. Classes of failure:

            INVALID_INPUT    a URL that is not accepted, too large, too many redirects, 4xx
            DOWNLOAD_FAILED  408, 429, 5xx, no such host, no connection, deadline, cut off

        `provider_code` is "invalid_url", "private_address", "too_large", the status of an answer,
        or "". Messages name the host at most. Raises OSError when `sink` cannot be written.
        """
        with closing(PublicAdapter()) as public:

            def adapter_for(url: str) -> Adapter | Failure:
                if exempt is not None and exempt.allows(url):
                    return self._current_adapter()
                place = _place(url)
                if place is not None and place[2] in (None, 80, 443):
                    return public
                message = "The address must be one of http or https, on the usual port."
                return Failure(ErrorClass.INVALID_INPUT, message, provider_code="invalid_url")

            result = self._get(url, sink, adapter_for, max_bytes, deadline_s, {})
        if isinstance(result, Failure) and result.error_class != ErrorClass.DOWNLOAD_FAILED:
            return replace(result, error_class=ErrorClass.INVALID_INPUT)
        return result

    def _get(
        self,
        url: str,
        sink: BinaryIO,
        adapter_for: Callable[[str], Adapter | Failure],
        max_bytes: int,
        deadline_s: float | None,
        headers: Mapping[str, str],
    ) -> Downloaded | Failure:
        ends_at = time.monotonic() + (self._timeout_s if deadline_s is None else deadline_s)
        request_headers = {"Accept-Encoding": "identity", **headers}
        for _ in range(MAX_REDIRECTS + 1):
            # Asked anew after each redirect, or the first hop only would be guarded.
            adapter = adapter_for(url)
            if isinstance(adapter, Failure):
                return adapter
            exchange = _Exchange(adapter, ends_at)
            with exchange:
                error = exchange.start(
                    "GET", url, request_headers, connect_timeout_s=self._connect_timeout_s
                )
                if error:
                    if exchange.is_not_public:
                        message = f"{exchange.host} has no public address."
                        code = "private_address"
                        return Failure(ErrorClass.INVALID_INPUT, message, provider_code=code)
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

    def _current_adapter(self) -> Adapter:
        # Parent and child must not talk over the same connections after a fork.
        if self._pid != os.getpid():
            self._adapter, self._pid = Adapter(pool_maxsize=self._pool_size), os.getpid()
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
    message = f"The file is larger than {max_bytes:,} bytes."
    return Failure(ErrorClass.BAD_OUTPUT, message, provider_code="too_large")


class _Exchange:
    """One request and its answer under one deadline; a context manager that frees both."""

    def __init__(self, adapter: Adapter, ends_at: float) -> None:
        self._adapter = adapter
        self._watch = Watch(ends_at)
        self._response: requests.Response | None = None
        self.host = ""
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.problem = ""  # why the body ended early, "" if it did not
        self.is_not_public = False  # nothing was sent because of that

    def __enter__(self) -> Self:
        watchdog.add(self._watch)
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
        body: "bytes | _Form | None" = None,
    ) -> TransportError | None:
        """Send the request and wait for the answer's headers."""
        self.host = _host(url)
        # The watchdog is what ends a slow exchange; these are the same bounds seen from within.
        left_s = max(0.001, self._watch.ends_at - time.monotonic())
        token = current_watch.set(self._watch)
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
            self.is_not_public = any(isinstance(cause, NotPublicError) for cause in _causes(error))
            kind: Literal["connect", "sent"] = "sent" if self._watch.request_sent else "connect"
            return TransportError(kind, f"{self.host}: {self._reason(error)}")
        finally:
            current_watch.reset(token)
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


class _Form:
    """A form with one file, to be read once, while it is sent.

    `failure` is why the file could not be read, if it could not.
    Source: RFC 7578, read 2026-11-20
    """

    def __init__(
        self,
        file: InputFile,
        source: BinaryIO,
        field: str,
        filename: str,
        fields: Mapping[str, str],
    ) -> None:
        boundary = uuid.uuid4().hex
        parts = [(_part(name), value) for name, value in fields.items()]
        parts.append((_part(field, filename, file.content_type), ""))
        self._head = f"\r\n--{boundary}\r\n".join(
            ["", *(head + value for head, value in parts)]
        ).encode()[2:]
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._source = source
        self._size_bytes = file.size_bytes
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.failure: OSError | None = None

    def __len__(self) -> int:
        return len(self._head) + self._size_bytes + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        left_bytes = self._size_bytes
        while chunk := self._read():
            left_bytes -= len(chunk)
            if left_bytes < 0:
                break
            yield chunk
        if left_bytes:
            self.failure = OSError("The file is not as long as it was.")
            raise self.failure
        yield self._tail

    def _read(self) -> bytes:
        try:
            return self._source.read(_CHUNK_BYTES)
        except OSError as error:
            self.failure = error
            raise


def _part(name: str, filename: str | None = None, content_type: str | None = None) -> str:
    """Return the head of one part of a form."""
    part = RequestField(name, "", filename)
    part.make_multipart(content_type=content_type)
    return part.render_headers()
