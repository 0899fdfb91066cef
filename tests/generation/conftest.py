"""A server whose every byte is scripted, on a real loopback socket."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest


@dataclass
class Request:
    """One request as it arrived; `connection` counts from 1."""

    head: str
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return self.head.split(" ")[1]

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.split("\r\n")[1:]
        return {k.lower(): v for k, v in (line.split(": ", 1) for line in lines if line)}


# Answers one request on its socket; returns False to have the connection closed.
Script = Callable[[socket.socket, Request], bool]


@dataclass
class ScriptedServer:
    script: Script
    listener: socket.socket
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)
    _sockets: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def start(self) -> None:
        self._spawn(self._accept)

    def stop(self) -> None:
        self.stopping.set()
        for sock in (self.listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
        self.listener.close()

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            self._spawn(self._serve, sock, self.connections)

    def _serve(self, sock: socket.socket, connection: int) -> None:
        with sock, suppress(OSError):
            while (request := self._read(sock, connection)) is not None:
                self.requests.append(request)
                if not self.script(sock, request):
                    return

    def _read(self, sock: socket.socket, connection: int) -> Request | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := sock.recv(65536)):
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        request = Request(head.decode(), body, connection)
        length = int(request.headers.get("content-length", 0))
        while len(request.body) < length:
            if not (more := sock.recv(65536)):
                return None
            request.body += more
        return request

    def drip(self, sock: socket.socket, data: bytes, *, gap_s: float = 0.02) -> None:
        """Send one byte at a time until all are sent, the peer is gone or the test is over."""
        for byte in data:
            sock.sendall(bytes([byte]))
            if self.stopping.wait(gap_s):
                return

    def hang(self, at_most_s: float = 5.0) -> None:
        self.stopping.wait(at_most_s)


def http_answer(
    body: bytes = b"", *, status: str = "200 OK", headers: dict[str, str] | None = None
) -> bytes:
    fields = {"Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[..., bool]], ScriptedServer]]:
    """Start servers: `serve(script)`, where a script may take the server as a third argument."""
    servers = []

    def start(script: Callable[..., bool]) -> ScriptedServer:
        listener = socket.create_server(("127.0.0.1", 0))
        server = ScriptedServer(lambda sock, request: script(sock, request, server), listener)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def answer() -> Callable[..., bytes]:
    return http_answer
