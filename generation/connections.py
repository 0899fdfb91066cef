"""Connections that are watched over: shut down at a deadline, and kept to public addresses.

A timeout of a socket bounds one read. A `Watch` bounds all that is done over a socket, by shutting
it down from a thread of its own. Who makes a request sets `current_watch` to its watch; the
connections of an `Adapter` tell it of their sockets.
"""

import errno
import heapq
import itertools
import math
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import connection

from generation.addresses import is_public, look_up


class NotPublicError(OSError):
    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is not public")


class Watch:
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
        self._heap: list[tuple[float, int, Watch]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, watch: Watch) -> None:
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


watchdog = _Watchdog()
current_watch: ContextVar[Watch | None] = ContextVar("current_watch", default=None)


class _HTTPConnection(HTTPConnection):
    """A connection that tells the current exchange's watch of its socket and of bytes sent.

    urllib3 opens the socket in `_new_conn`, before any TLS, so that the handshake is watched too;
    that checks the name that was asked for, whatever address it led to.
    """

    public_only = False

    def _new_conn(self) -> socket.socket:
        watch = current_watch.get()
        ends_at = watch.ends_at if watch else math.inf
        left_s = min(ends_at - time.monotonic(), threading.TIMEOUT_MAX)
        addresses = look_up(self._dns_host, self.port, timeout_s=left_s)
        if self.public_only:
            addresses = [address for address in addresses if is_public(address)]
            if not addresses:
                raise NotPublicError
        sock = self._connected(addresses, ends_at)
        if watch:
            watch.attach(sock)
        return sock

    def _connected(self, addresses: list[str], ends_at: float) -> socket.socket:
        failure: OSError = TimeoutError()
        for address in addresses:
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                break
            own_s = self.timeout if isinstance(self.timeout, (int, float)) else math.inf
            wait_s = min(own_s, left_s)
            try:
                # An address and no name: nothing is looked up again.
                return connection.create_connection(
                    (address, self.port),
                    wait_s if wait_s < math.inf else None,
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as error:
                failure = error
        # Never as it is: urllib3 takes a reset or a broken pipe for one of a request that was sent,
        # and goes on to read an answer from a connection that there is not.
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from failure
        raise NewConnectionError(self, "no connection") from failure

    def request(self, *args: Any, **kwargs: Any) -> None:
        if (watch := current_watch.get()) and self.sock is not None:
            watch.attach(self.sock)  # from the pool
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if watch := current_watch.get():
            watch.request_sent = True
        super().send(data)


class _HTTPSConnection(_HTTPConnection, HTTPSConnection):
    pass


class _PublicHTTPConnection(_HTTPConnection):
    public_only = True


class _PublicHTTPSConnection(_HTTPSConnection):
    public_only = True


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTPConnection


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPSConnection


class Adapter(HTTPAdapter):
    pools: Mapping[str, type[HTTPConnectionPool]] = {"http": _HTTPPool, "https": _HTTPSPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = dict(self.pools)


class PublicAdapter(Adapter):
    """Connects to public addresses only."""

    pools: Mapping[str, type[HTTPConnectionPool]] = {
        "http": _PublicHTTPPool,
        "https": _PublicHTTPSPool,
    }
