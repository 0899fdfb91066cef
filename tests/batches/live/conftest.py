"""Clients of the WebSockets as a server would have them, and a hub on a loop of its own thread."""

import asyncio
import json
import queue
import threading
import time

import pytest
import redis
from django.conf import settings as django_settings

from batches import wake
from batches.live import hub as hub_module
from batches.live.consumers import live_application
from batches.live.hub import Hub
from tests.batches.live.support import close_hub
from tests.factories import make_token, make_user

ME = "/ws/me/"
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def rows_of_others_gone(transactional_db):
    """Other threads read what a test writes, so it is committed."""


class Socket:
    """One connection. `takes`: unset, the client takes nothing."""

    def __init__(self, loop, application, path, headers, subprotocols, query):
        self._loop = loop
        self._sent = queue.Queue()
        self._to_server = asyncio.Queue()
        self.takes = threading.Event()
        self.takes.set()
        self.aborted = False
        self.subprotocol = None
        self.scope = {
            "type": "websocket",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": list(subprotocols),
        }
        self.call({"type": "websocket.connect"})
        run = application(self.scope, self._to_server.get, self.server_send)
        self.task = asyncio.run_coroutine_threadsafe(run, loop)

    # What the application sees of the server beside the calls: see `LiveConsumer._cut`.
    @property
    def transport(self):
        return self

    def abort(self):
        self.aborted = True
        self._to_server.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def server_send(self, message):
        while not self.takes.is_set():
            await asyncio.sleep(0.005)
        if message["type"] == "websocket.close":
            self._to_server.put_nowait({"type": "websocket.disconnect", "code": 1000})
        self._sent.put(message)

    def call(self, message):
        self._loop.call_soon_threadsafe(self._to_server.put_nowait, message)

    def say(self, text):
        self.call({"type": "websocket.receive", "text": text})

    def leave(self):
        self.call({"type": "websocket.disconnect", "code": 1001})
        self.task.result(PATIENCE_S)

    def _next(self, timeout_s=PATIENCE_S):
        message = self._sent.get(timeout=timeout_s)
        if message["type"] == "websocket.accept":
            self.subprotocol = message["subprotocol"]
            return self._next(timeout_s)
        return message

    def next(self, timeout_s=PATIENCE_S):
        """The next message as it was sent, decoded."""
        message = self._next(timeout_s)
        assert message["type"] == "websocket.send", message
        return json.loads(message["text"])

    def until(self, wanted):
        """Messages up to the first that is `wanted`."""
        messages = [self.next()]
        while not wanted(messages[-1]):
            messages.append(self.next())
        return messages

    def closed(self):
        """The code that it is closed with, now."""
        message = self._next()
        assert message["type"] == "websocket.close", message
        self.task.result(PATIENCE_S)
        return message["code"]

    def is_silent(self, for_s=0.0):
        """Whether nothing has come so far, or comes for a while."""
        try:
            self._next(for_s or 0.001)
        except queue.Empty:
            return True
        return False


class Live:
    """A hub that runs, and sockets to it."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.hub = self.run(self._make())
        self.application = live_application(self.hub)
        self.sockets = []

    async def _make(self):
        return Hub()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_S)

    def socket(self, path, headers=None, subprotocols=(), query=""):
        socket = Socket(self.loop, self.application, path, headers or {}, subprotocols, query)
        self.sockets.append(socket)
        return socket

    def connect(self, user, path, query=""):
        return self.socket(path, {"authorization": f"Bearer {make_token(user)}"}, query=query)

    def batch(self, user, batch, query=""):
        return self.connect(user, f"/ws/batches/{batch.pk}/", query)

    def me(self, user):
        return self.connect(user, ME)

    def await_that(self, condition):
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.005)

    def close(self):
        for socket in self.sockets:
            socket.takes.set()
            if not socket.task.done():
                socket.leave()
        self.run(close_hub(self.hub))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def live():
    live = Live()
    yield live
    live.close()


@pytest.fixture
def hints(live):
    """Waits until the hub hears hints: before, an event may be a second late."""

    def wait():
        client = redis.Redis.from_url(django_settings.REDIS_URL)
        live.await_that(lambda: client.pubsub_numsub(wake.NEWS)[0][1] > 0)
        client.close()

    return wait


@pytest.fixture
def owner(db):
    return make_user()


@pytest.fixture
def seldom(monkeypatch):
    """The hub looks by itself so seldom that what comes soon comes by a hint."""
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 60.0)


@pytest.fixture
def no_hints(monkeypatch):
    monkeypatch.setattr(wake, "_tell_now", lambda message: None)
