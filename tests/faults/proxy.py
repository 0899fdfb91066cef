"""A TCP proxy whose network can be made to fail, in a thread of the test process.

It knows no protocol, so it can stand before an HTTP server, Redis or PostgreSQL alike. "Up" is from
the client to the target, "down" the way back. Every control holds for connections that exist and
for those to come, is in force when the call returns, and stays so, beside the others, until
`heal()`.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable
from typing import Literal, Self

Direction = Literal["up", "down"]

READ_BYTES = 64 * 1024
# A dripping connection passes as much at a time as is due in this time, at least one byte.
DRIP_INTERVAL_S = 0.05
# Makes closing a socket send RST; whatever is not delivered by then is lost.
LINGER_NONE = struct.pack("ii", 1, 0)


class _Link:
    """One connection of a client, and the one to the target that belongs to it.

    passed: bytes by direction since the connection began, or since `reset_after` was called.
    """

    task: asyncio.Task[None]

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.client: asyncio.StreamWriter | None = None
        self.target: asyncio.StreamWriter | None = None
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}

    def has_client(self) -> bool:
        """Tell whether the client is still connected."""
        return self.client is None or not self.client.is_closing()

    def reset(self) -> None:
        """Send RST to both sides."""
        socks = [self.sock]
        if self.target is not None:
            socks.append(self.target.get_extra_info("socket"))
        for sock in socks:
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
        self.close()

    def close(self) -> None:
        """Close both sides at once."""
        if self.client is None:
            self.sock.close()
        for writer in (self.client, self.target):
            if writer is not None:
                writer.transport.abort()


class TcpProxy:
    """Listens on 127.0.0.1 and passes bytes to `target` and back.

    target: a host and port, or the path of a Unix socket.

    connections: accepted so far, those reset at once included. resets: RSTs sent to clients, also
    because the target could not be reached or was lost. answers_lost: those of
    `reset_next_answer`. bytes_up, bytes_down: passed on; what a peer has received is counted.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.port = 0
        self.connections = self.resets = self.answers_lost = 0
        self.bytes_up = self.bytes_down = 0
        self._target = target
        self._links: set[_Link] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen on a free port, told by `port`."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._flow, self._changed = asyncio.Event(), asyncio.Event()
        self._calm()
        self._loop = asyncio.new_event_loop()
        self._loop.add_reader(self._listener, self._accept)
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy")
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections, and end the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def blackout(self) -> None:
        """Reset all connections, and new ones as soon as they are made."""
        self._control(self._go_dark)

    def freeze(self) -> None:
        """Keep and accept connections, but pass nothing, not even the end of a connection.

        Up to 64 kB already on their way to a peer that was not reading may still arrive.
        """
        self._control(self._flow.clear)

    def drip(self, bytes_per_s: float, direction: Direction = "down") -> None:
        """Pass no more than so many bytes a second on each connection, a small piece at a time."""
        self._control(lambda: self._rates.update({direction: bytes_per_s}))

    def reset_after(self, nbytes: int, direction: Direction) -> None:
        """Reset each connection once exactly so many bytes, counted from now, have passed.

        With 0 it is reset when the first byte comes, before that is passed.
        """
        self._control(lambda: self._limit(nbytes, direction))

    def reset_next_answer(self) -> None:
        """Reset the connection the target sends something on next, instead of passing it.

        The request was delivered and its answer is lost. Two calls are for two answers.
        """
        self._control(self._lose_answer)

    def heal(self) -> None:
        """End what the other controls began; bytes held back go on their way."""
        self._control(self._calm)

    def _control(self, change: Callable[[], None]) -> None:
        async def apply() -> None:
            change()
            # Whoever sleeps between two pieces looks again at what is in force.
            self._changed.set()
            self._changed = asyncio.Event()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result()

    def _go_dark(self) -> None:
        self._is_dark = True
        for link in self._links:
            self._reset(link)
            link.task.cancel()

    def _limit(self, nbytes: int, direction: Direction) -> None:
        self._limits[direction] = nbytes
        for link in self._links:
            link.passed[direction] = 0

    def _lose_answer(self) -> None:
        self._answers_to_lose += 1

    def _calm(self) -> None:
        self._is_dark = False
        self._answers_to_lose = 0
        self._rates: dict[Direction, float] = {}
        self._limits: dict[Direction, int] = {}
        self._flow.set()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # The client is gone already.
            return
        self.connections += 1
        link = _Link(sock)
        if self._is_dark:
            self._reset(link)
            return
        sock.setblocking(False)
        link.task = self._loop.create_task(self._serve(link))
        link.task.add_done_callback(lambda _: self._forget(link))
        self._links.add(link)

    def _reset(self, link: _Link) -> None:
        # Counted first: who has seen the reset finds it counted.
        self.resets += link.has_client()
        link.reset()

    def _forget(self, link: _Link) -> None:
        link.close()
        self._links.discard(link)

    async def _close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        tasks = [link.task for link in self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, link: _Link) -> None:
        try:
            reader, link.client = await asyncio.open_connection(sock=link.sock)
            await self._flow.wait()
            target_reader, link.target = await self._dial()
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, "up", reader, link.target))
                pumps.create_task(self._pump(link, "down", target_reader, link.client))
        except* OSError:
            # Decided here, or one of the peers is gone: the other learns it the same way.
            self._reset(link)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, str):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _pump(
        self,
        link: _Link,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        # `drain` then waits until the kernel has everything.
        writer.transport.set_write_buffer_limits(0)
        while data := await reader.read(READ_BYTES):
            await self._flow.wait()
            if direction == "down" and self._answers_to_lose:
                self._answers_to_lose -= 1
                self.answers_lost += 1
                raise ConnectionResetError
            while data:
                data = data[await self._pass_some(link, direction, writer, data) :]
        await self._flow.wait()
        writer.write_eof()

    async def _pass_some(
        self, link: _Link, direction: Direction, writer: asyncio.StreamWriter, data: bytes
    ) -> int:
        """Pass the beginning of `data` as the controls allow; return how many bytes."""
        await self._flow.wait()
        rate, limit = self._rates.get(direction), self._limits.get(direction)
        size = len(data) if rate is None else max(1, int(rate * DRIP_INTERVAL_S))
        if limit is not None:
            size = min(size, limit - link.passed[direction])
        piece = data[:size]
        if piece:
            link.passed[direction] += len(piece)
            if direction == "up":
                self.bytes_up += len(piece)
            else:
                self.bytes_down += len(piece)
            writer.write(piece)
            await writer.drain()
        if limit is not None and link.passed[direction] >= limit:
            await _delivered(writer)
            raise ConnectionResetError
        if rate is not None:
            await self._sleep(len(piece) / rate)
        return len(piece)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until a control is used."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return


async def _delivered(writer: asyncio.StreamWriter) -> None:
    """Wait until the peer's kernel has all that was written, so that a reset takes none of it."""
    sock = writer.get_extra_info("socket")
    # A Unix socket delivers at once.
    while sock.family != socket.AF_UNIX and not writer.is_closing():
        if fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)) == bytes(4):
            return
        await asyncio.sleep(0.001)
