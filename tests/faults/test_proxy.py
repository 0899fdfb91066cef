"""The proxy itself: every control, before servers on TCP and on Unix sockets."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis
import requests
from django.db import connection

from tests.faults.proxy import TcpProxy

PATIENCE_S = 20.0
# How long to look for something that must not come.
QUIET_S = 0.1


def eventually(probe: Callable[[], object]) -> None:
    """Wait until `probe` answers something true."""
    give_up = time.monotonic() + PATIENCE_S
    while not probe():
        assert time.monotonic() < give_up, f"never happened: {probe}"
        time.sleep(0.002)


class Echo:
    """A server that sends back all it gets, on a Unix socket or on TCP.

    received: all bytes of all connections, in the order they came. ended: connections that are
    over, for whatever reason.
    """

    def __init__(self, path: str | None) -> None:
        self.received = bytearray()
        self.ended = 0
        echo = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                try:
                    while data := self.request.recv(65536):
                        echo.received += data
                        self.request.sendall(data)
                except OSError:
                    """A reset ends a connection as well."""
                finally:
                    echo.ended += 1

        self.server: socketserver.BaseServer
        self.address: Any
        if path is None:
            tcp = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
            self.server, self.address = tcp, tcp.server_address
        else:
            self.server = socketserver.ThreadingUnixStreamServer(path, Handler)
            self.address = path


def serve(server: socketserver.BaseServer) -> Callable[[], None]:
    """Run a server in a thread; return what ends it."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()

    def end() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return end


@pytest.fixture(params=["tcp", "unix"])
def echo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Echo]:
    echo = Echo(None if request.param == "tcp" else str(tmp_path / "echo.sock"))
    end = serve(echo.server)
    yield echo
    end()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with TcpProxy(echo.address) as proxy:
        yield proxy


class Peer:
    """A client of the proxy."""

    def __init__(self, proxy: TcpProxy) -> None:
        self.sock = socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes, fewer only at the end of the connection."""
        data = b""
        while len(data) < size and (piece := self.sock.recv(size - len(data))):
            data += piece
        return data

    def read_until_reset(self) -> bytes:
        """Return all that comes before a reset, which must come."""
        data = b""
        try:
            while piece := self.sock.recv(65536):
                data += piece
        except ConnectionResetError:
            return data
        raise AssertionError("ended instead of being reset")

    def is_quiet(self) -> bool:
        """Tell whether nothing comes for a while, no end either."""
        self.sock.settimeout(QUIET_S)
        try:
            self.sock.recv(1)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE_S)
        return False

    def ask(self, data: bytes) -> bytes:
        """Send bytes and return as many of the answer."""
        self.send(data)
        return self.read(len(data))


def is_reset_at_once(proxy: TcpProxy) -> bool:
    """Tell whether a new connection is reset, be it while it is still being made."""
    try:
        with Peer(proxy) as peer:
            peer.sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def test_bytes_pass_both_ways_and_are_counted(proxy: TcpProxy) -> None:
    with Peer(proxy) as one, Peer(proxy) as other:
        assert one.ask(b"hello") == b"hello"
        assert other.ask(b"you") == b"you"
    assert (proxy.connections, proxy.resets) == (2, 0)
    assert (proxy.bytes_up, proxy.bytes_down) == (8, 8)


def test_much_passes_unchanged_while_nobody_reads(proxy: TcpProxy) -> None:
    data = os.urandom(3_000_000)
    with Peer(proxy) as peer:
        sending = threading.Thread(target=peer.send, args=(data,))
        sending.start()
        answer = peer.read(len(data))
        sending.join()
    assert answer == data


def test_one_side_can_end_and_still_hear_the_other(proxy: TcpProxy) -> None:
    with Peer(proxy) as peer:
        peer.send(b"last words")
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.read(100) == b"last words"


def test_the_target_learns_that_a_client_is_gone(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as peer:
        peer.ask(b"x")
    eventually(lambda: echo.ended == 1)
    assert proxy.resets == 0


def test_a_target_that_is_not_there_resets_the_client(tmp_path: Path) -> None:
    with TcpProxy(str(tmp_path / "nobody.sock")) as proxy:
        assert is_reset_at_once(proxy)
        assert (proxy.connections, proxy.resets) == (1, 1)


def test_a_blackout_resets_what_there_is_and_what_comes(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as old:
        old.ask(b"x")
        proxy.blackout()
        assert old.read_until_reset() == b""
        eventually(lambda: echo.ended == 1)
        assert is_reset_at_once(proxy)
        assert (proxy.connections, proxy.resets) == (2, 2)
        proxy.heal()
    with Peer(proxy) as later:
        assert later.ask(b"again") == b"again"


def test_a_frozen_connection_stays_and_is_delivered_later(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as old:
        old.ask(b"x")
        proxy.freeze()
        with Peer(proxy) as new:
            old.send(b"old")
            new.send(b"new")
            assert old.is_quiet()
            assert new.is_quiet()
            assert echo.received == b"x"
            proxy.heal()
            assert (old.read(3), new.read(3)) == (b"old", b"new")
    assert proxy.resets == 0


def test_the_end_of_a_frozen_connection_is_held_back_as_well(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as peer:
        peer.ask(b"x")
        proxy.freeze()
        peer.send(b"bye")
    with Peer(proxy) as other:
        assert other.is_quiet()
    assert (echo.received, echo.ended) == (b"x", 0)
    proxy.heal()
    eventually(lambda: echo.ended >= 1 and echo.received == b"xbye")


def test_a_frozen_connection_can_be_blacked_out(proxy: TcpProxy) -> None:
    with Peer(proxy) as peer:
        peer.ask(b"x")
        proxy.freeze()
        peer.send(b"lost")
        proxy.blackout()
        assert peer.read_until_reset() == b""


def test_answers_drip(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as peer:
        peer.ask(b"x")
        proxy.drip(100)
        began = time.monotonic()
        peer.send(b"0123456789" * 3)
        pieces = []
        while sum(map(len, pieces)) < 30:
            pieces.append(peer.sock.recv(65536))
        spent_s = time.monotonic() - began
    assert b"".join(pieces) == b"0123456789" * 3
    assert echo.received == b"x" + b"0123456789" * 3
    # Five bytes at a time: the first at once, the last after five pauses of 50 ms.
    assert len(pieces) > 1
    assert spent_s > 0.2


def test_requests_can_drip_and_a_healed_drip_goes_on_at_once(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as peer:
        proxy.drip(0.01, "up")
        peer.send(b"0123456789")
        eventually(lambda: echo.received == b"0")
        assert peer.read(1) == b"0"
        proxy.heal()
        assert peer.read(9) == b"123456789"


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_a_connection_is_reset_after_so_many_answered_bytes(proxy: TcpProxy, size: int) -> None:
    data = os.urandom(150_000)
    with Peer(proxy) as peer:
        peer.ask(b"not counted")
        down_before = proxy.bytes_down
        proxy.reset_after(size, "down")
        peer.send(data)
        assert peer.read_until_reset() == data[:size]
    assert proxy.bytes_down - down_before == size
    assert proxy.resets == 1


def test_a_connection_is_reset_after_so_many_asked_bytes(proxy: TcpProxy, echo: Echo) -> None:
    proxy.reset_after(5, "up")
    for _ in range(2):
        with Peer(proxy) as peer:
            assert peer.ask(b"123") == b"123"
            peer.send(b"4567")
            peer.read_until_reset()
    eventually(lambda: echo.ended == 2)
    assert echo.received == b"1234512345"
    proxy.heal()
    with Peer(proxy) as peer:
        assert peer.ask(b"1234567") == b"1234567"


def test_an_idle_connection_is_not_reset_by_a_limit(proxy: TcpProxy) -> None:
    with Peer(proxy) as peer:
        peer.ask(b"12345")
        proxy.reset_after(3, "down")
        assert peer.is_quiet()
        proxy.heal()
        assert peer.ask(b"12345") == b"12345"


def test_one_answer_is_lost_though_the_request_was_delivered(proxy: TcpProxy, echo: Echo) -> None:
    with Peer(proxy) as one, Peer(proxy) as other:
        one.ask(b"a")
        other.ask(b"b")
        proxy.reset_next_answer()
        one.send(b"c")
        assert one.read_until_reset() == b""
        assert other.ask(b"d") == b"d"
    assert echo.received == b"abcd"
    assert (proxy.answers_lost, proxy.resets, proxy.bytes_down) == (1, 1, 3)


def test_as_many_answers_are_lost_as_asked_for_unless_healed(proxy: TcpProxy) -> None:
    for _ in range(3):
        proxy.reset_next_answer()
    for _ in range(2):
        with Peer(proxy) as peer:
            peer.send(b"x")
            peer.read_until_reset()
    proxy.heal()
    with Peer(proxy) as peer:
        assert peer.ask(b"x") == b"x"
    assert proxy.answers_lost == 2


@pytest.mark.parametrize("control", ["freeze", "blackout", "heal"])
def test_nothing_is_left_of_a_stopped_proxy(echo: Echo, control: str) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    proxy = TcpProxy(echo.address)
    proxy.start()
    with Peer(proxy) as asked, Peer(proxy) as silent:
        asked.ask(b"x")
        getattr(proxy, control)()
        with socket.socket() as late:
            late.connect_ex(("127.0.0.1", proxy.port))
            proxy.stop()
        for peer in (asked, silent):
            try:
                assert peer.read(1) == b""
            except ConnectionResetError:
                assert control == "blackout"
    with pytest.raises(ConnectionRefusedError):
        Peer(proxy)
    # The threads of the target end when they learn that the connection is closed.
    eventually(lambda: threading.active_count() <= threads)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= files)


def test_a_post_whose_answer_is_lost_was_carried_out() -> None:
    handled = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            handled.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    end = serve(server)
    with TcpProxy(("127.0.0.1", server.server_port)) as proxy, requests.Session() as http:
        http.trust_env = False
        url = f"http://127.0.0.1:{proxy.port}/"
        assert http.post(url, data=b"1", timeout=PATIENCE_S).status_code == 201
        proxy.reset_next_answer()
        with pytest.raises(requests.ConnectionError):
            http.post(url, data=b"2", timeout=PATIENCE_S)
        assert http.post(url, data=b"3", timeout=PATIENCE_S).status_code == 201
        assert (proxy.connections, proxy.answers_lost) == (2, 1)
    end()
    assert handled == [b"1", b"2", b"3"]


def test_it_stands_before_redis() -> None:
    with TcpProxy(urlsplit(os.environ["REDIS_URL"]).path) as proxy:
        client = redis.Redis(port=proxy.port, socket_timeout=PATIENCE_S, retry=None)
        with client:
            client.set("proxy:count", 0)
            proxy.reset_next_answer()
            with pytest.raises(redis.ConnectionError):
                client.incr("proxy:count")
            assert client.getdel("proxy:count") == b"1"
            proxy.blackout()
            with pytest.raises(redis.ConnectionError):
                client.ping()
            proxy.heal()
            assert client.ping()


def test_it_stands_before_postgresql() -> None:
    wanted: dict[str, Any] = connection.settings_dict
    server = f"{wanted['OPTIONS']['host']}/.s.PGSQL.{wanted['PORT'] or 5432}"
    with TcpProxy(server) as proxy:
        link = psycopg2.connect(
            host="127.0.0.1",
            port=proxy.port,
            user=wanted["USER"],
            password=wanted["PASSWORD"] or None,
            dbname="postgres",
        )
        with link.cursor() as cursor:
            cursor.execute("SELECT repeat('x', 200000)")
            (text,) = cursor.fetchone()
            assert len(text) == 200_000
            proxy.reset_next_answer()
            with pytest.raises(psycopg2.OperationalError):
                cursor.execute("SELECT 1")
        link.close()
        assert (proxy.connections, proxy.resets) == (1, 1)
