"""ZIPs are handed out by threads of their own, for as long as somebody takes them."""

import asyncio
import itertools
import json
import threading

import pytest

from picture import asgi

TOKEN = [(b"authorization", b"Bearer pic_x")]
OTHER = [(b"authorization", b"Bearer pic_y")]
SESSION = [(b"cookie", b"sessionid=x")]
THIRD = [(b"authorization", b"Bearer pic_z")]
USERS = {TOKEN[0]: 1, OTHER[0]: 2, SESSION[0]: 3, THIRD[0]: 4}
IMAGES = "/api/v1/images/export/"
BATCH = "/api/v1/batches/0b0e4b9c-0000-0000-0000-000000000000/export/"
WAIT_S = 30


def scope(path=IMAGES, headers=TOKEN, method="GET"):
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "headers": list(headers),
        "query_string": b"",
    }


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """There is no database here; for who is looked up there, see `test_asgi_callers`."""

    async def user_id(scope):
        return next((USERS[one] for one in scope["headers"] if one in USERS), None)

    monkeypatch.setattr(asgi, "_user_id", user_id)


class Wsgi:
    """Stands for Django: answers with these pieces, and notes when it is closed."""

    def __init__(self, pieces=(b"a", b"b")):
        self.pieces, self.threads, self.closed = pieces, [], threading.Event()

    def __call__(self, environ, start_response):
        self.threads.append(threading.current_thread())
        start_response("200 OK", [("Content-Type", "application/zip")])
        return self

    def __iter__(self):
        yield from self.pieces

    def close(self):
        self.closed.set()


@pytest.fixture
def wsgi(monkeypatch):
    wsgi = Wsgi()
    monkeypatch.setattr(asgi, "_wsgi", wsgi)
    monkeypatch.setattr(asgi, "_exports", asgi._Places(asgi.EXPORTS_AT_A_TIME, asgi.EXPORTS_EACH))
    return wsgi


@pytest.fixture
def ordinary(monkeypatch):
    """The paths that reach the threads of all other requests."""
    paths = []

    async def django(scope, receive, send):
        paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(asgi, "_django", django)
    return paths


class Client:
    """Takes what it is sent; leaves when `left` is set, stops taking when `stuck` is."""

    def __init__(self):
        self.messages, self.left, self.stuck = [], asyncio.Event(), asyncio.Event()
        self.begun = asyncio.Event()
        self._asked = False

    async def receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.messages.append(message)
        self.begun.set()
        if self.stuck.is_set():
            await asyncio.Event().wait()

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)


def run(work):
    async def bounded():
        async with asyncio.timeout(WAIT_S):
            return await work()

    return asyncio.run(bounded())


def fetch(**how):
    async def work():
        client = Client()
        await asgi.application(scope(**how), client.receive, client.send)
        return client

    return run(work)


@pytest.mark.parametrize("path", [IMAGES, BATCH])
@pytest.mark.parametrize("headers", [TOKEN, SESSION])
def test_a_zip_comes_from_other_threads_than_all_else(path, headers, wsgi, ordinary):
    client = fetch(path=path, headers=headers)
    assert (client.status, client.body) == (200, b"ab")
    assert client.messages[-1].get("more_body", False) is False
    assert ordinary == []
    assert wsgi.closed.is_set()
    assert wsgi.threads[0] in asgi._zips.executor._threads
    assert asgi._zips.executor._max_workers == asgi.EXPORTS_AT_A_TIME == 4


@pytest.mark.parametrize(
    "how",
    [
        {"headers": ()},
        {"headers": [(b"authorization", b"Bearer pic_made_up")]},
        {"headers": [(b"cookie", b"sessionid=made_up")]},
        {"method": "POST"},
        {"path": "/api/v1/images/"},
        {"path": "/api/v1/batches/x/y/export/"},
        {"path": IMAGES + "x"},
    ],
)
def test_nothing_else_does(how, wsgi, ordinary):
    assert fetch(**how).status == 200
    assert ordinary == [scope(**how)["path"]]
    assert wsgi.threads == []


def test_so_many_zips_are_fetched_at_a_time_and_others_told_to_come_again(
    wsgi, ordinary, monkeypatch
):
    go_on = threading.Event()

    class Slow(Wsgi):
        def __iter__(self):
            yield b"a"
            go_on.wait(WAIT_S)
            yield b"b"

    async def work():
        clients = [Client() for _ in range(asgi.EXPORTS_AT_A_TIME)]
        try:
            tasks = [
                asyncio.create_task(asgi.application(mine, one.receive, one.send))
                for one, mine in zip(clients, [scope(), scope(headers=OTHER)] * 2, strict=True)
            ]
            for one in clients:
                await one.begun.wait()
            refused, other = Client(), Client()
            third = scope(headers=THIRD)
            await asgi.application(third, refused.receive, refused.send)
            await asgi.application(scope(path="/other/"), other.receive, other.send)
        finally:
            go_on.set()
        await asyncio.gather(*tasks)
        again = Client()
        await asgi.application(scope(), again.receive, again.send)
        return clients, refused, other, again

    monkeypatch.setattr(asgi, "_wsgi", Slow())
    clients, refused, other, again = run(work)
    headers = dict(refused.messages[0]["headers"])
    assert (refused.status, headers[b"retry-after"]) == (503, b"15")
    assert headers[b"content-type"] == b"application/problem+json"
    assert json.loads(refused.body)["code"] == "busy"
    assert "ZIP" in json.loads(refused.body)["detail"]
    assert other.status == 200
    assert [one.body for one in (*clients, again)] == [b"ab"] * 5


def test_one_caller_leaves_places_for_others_and_a_request_without_end_takes_none(
    wsgi, ordinary, monkeypatch
):
    go_on = threading.Event()

    class Slow(Wsgi):
        def __iter__(self):
            yield b"a"
            go_on.wait(WAIT_S)

    class Unfinished(Client):
        async def receive(self):
            self.begun.set()
            await self.left.wait()
            return {"type": "http.disconnect"}

    async def work():
        idle = [Unfinished() for _ in range(2 * asgi.EXPORTS_AT_A_TIME)]
        mine = [Client() for _ in range(asgi.EXPORTS_EACH)]
        try:
            tasks = [
                asyncio.create_task(asgi.application(scope(), one.receive, one.send))
                for one in (*idle, *mine)
            ]
            for one in (*idle, *mine):
                await one.begun.wait()
            refused, other = Client(), Client()
            as_another = scope(headers=[*TOKEN, (b"cookie", b"theme=dark")])
            await asgi.application(as_another, refused.receive, refused.send)
            theirs = scope(headers=OTHER)
            tasks.append(asyncio.create_task(asgi.application(theirs, other.receive, other.send)))
            await other.begun.wait()
        finally:
            go_on.set()
            for one in idle:
                one.left.set()
        await asyncio.gather(*tasks)
        return [one.status for one in (*mine, refused, other)]

    monkeypatch.setattr(asgi, "_wsgi", Slow())
    assert run(work) == [200, 200, 503, 200]


def test_what_nobody_takes_any_more_is_made_no_further(wsgi, ordinary):
    wsgi.pieces = itertools.repeat(b"a")

    async def work():
        client = Client()
        task = asyncio.create_task(asgi.application(scope(), client.receive, client.send))
        await client.begun.wait()
        client.left.set()
        await task

    run(work)
    assert wsgi.closed.is_set()


def test_who_does_not_take_a_piece_in_time_is_not_waited_for(wsgi, ordinary, monkeypatch):
    monkeypatch.setattr(asgi, "PIECE_TIMEOUT_S", 0.05)
    wsgi.pieces = itertools.repeat(b"a")

    async def work():
        client = Client()
        client.stuck.set()
        await asgi.application(scope(), client.receive, client.send)
        return client

    client = run(work)
    assert wsgi.closed.is_set()
    # Without an end, the server cuts the connection.
    assert all(message.get("more_body", True) for message in client.messages)


def test_a_zip_may_take_longer_than_other_answers(wsgi, ordinary, monkeypatch):
    monkeypatch.setattr(asgi, "ANSWER_TIMEOUT_S", 0.0)
    assert fetch().body == b"ab"


def test_a_zip_that_fails_midway_has_no_end(wsgi, ordinary):
    def failing():
        yield b"a"
        raise RuntimeError("the storage is gone")

    wsgi.pieces = failing()
    client = Client()

    async def work():
        await asgi.application(scope(), client.receive, client.send)

    with pytest.raises(RuntimeError, match="gone"):
        run(work)
    assert wsgi.closed.is_set()
    assert all(message.get("more_body", True) for message in client.messages)
