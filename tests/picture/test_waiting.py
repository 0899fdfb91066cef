"""`Prefer: wait=N`: answers that are kept back, without a thread."""

import asyncio
import json
import threading

import pytest

from batches import lifecycle
from batches.api.waiting import preferred_wait_s
from batches.live.hub import Hub
from batches.models import Batch, Generation
from picture import asgi, waiting
from tests.batches.live.support import close_hub
from tests.factories import make_token, make_user
from tests.waiting import wait_until

BATCHES = "/api/v1/batches/"
GENERATIONS = "/api/v1/generations/"
BODY = {"prompts": [{"text": "a lighthouse"}]}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("WAIT = 5", 5),
        ('wait="5"', 5),
        ("wait=5; x=1", 5),
        ("respond-async, wait=5", 5),
        ('handling=lenient, x="a, wait=9", wait=5', 5),
        ("wait=5, wait=9", 5),
        ("wait=0", 0),
        ("wait=61", 60),
        ("wait=999999999", 60),
        ("wait=99999999999999999999", 60),
        (f'wait="{"9" * 5_000}"', 60),
        (f"wait={'0' * 5_000}7", 7),
        ("wait=00", 0),
        ("wait", 0),
        ("wait=", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=x", 0),
        ("wait=x, wait=5", 0),
        ("wait=\N{ARABIC-INDIC DIGIT FIVE}", 0),
        ("waiting=5", 0),
        ('"wait=5', 0),
        (",;=,", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_what_does_not_say_how_long_counts_as_not_there(header, seconds):
    assert preferred_wait_s(header) == seconds


@pytest.fixture
def world(transactional_db, monkeypatch):
    """The application with a hub of its own, on a loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    async def make():
        return Hub()

    hub = run(make()).result()
    own = waiting.Waiting(hub, fetch=asgi._fetch, impatient=asgi._impatient)
    monkeypatch.setattr(asgi, "_waiting", own)
    yield run
    run(close_hub(hub)).result(20)
    run(close_connections()).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def close_connections():
    """Of Django's own threads."""
    from django.db import connections

    together = threading.Barrier(asgi.WEB_THREADS)

    def close():
        together.wait(10)
        connections.close_all()

    pool = asgi._django.executor
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(pool, close) for _ in range(asgi.WEB_THREADS)))


class Answer:
    def __init__(self, started, body):
        self.status = started["status"]
        self.headers = {name.decode(): value.decode() for name, value in started["headers"]}
        assert "x-picture-wait" not in self.headers
        self.body = json.loads(body)


class Browser:
    """A client of one user. Calls give futures of answers."""

    def __init__(self, run, user):
        self._run = run
        self._token = make_token(user)

    def call(self, method, path, body=None, **headers):
        return self._run(self._call(method, path, body, headers, asyncio.Event()))

    def post(self, path, body, **headers):
        return self.call("POST", path, body, **headers)

    async def _call(self, method, path, body, headers, leaves):
        given = {
            "host": "localhost",
            "authorization": f"Bearer {self._token}",
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        pieces = [json.dumps(body).encode() if body is not None else b""]
        sent = []

        async def receive():
            if pieces:
                return {"type": "http.request", "body": pieces.pop(), "more_body": False}
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await asgi.application(scope, receive, send)
        if not sent:
            return None
        return Answer(sent[0], b"".join(one.get("body", b"") for one in sent[1:]))


@pytest.fixture
def browser(world):
    return Browser(world, make_user())


def await_rows(model, count):
    wait_until(lambda: model.objects.count() >= count, timeout_s=30, every_s=0.005)


def await_waiting(count):
    """Until so many answers are kept back."""
    wait_until(lambda: asgi._waiting._count == count, timeout_s=30, every_s=0.005)


@pytest.mark.parametrize(("path", "model"), [(BATCHES, Batch), (GENERATIONS, Generation)])
def test_what_ends_in_time_is_answered_with_its_result(browser, path, model):
    body = BODY if model is Batch else {"prompt": "a lighthouse"}
    answer = browser.post(path, body, prefer="respond-async, wait=30")
    await_rows(model, 1)
    row = model.objects.get()
    if model is Batch:
        assert lifecycle.cancel_batch(batch=row)
    else:
        assert lifecycle.cancel_generation(generation=row)
    given = answer.result(20)
    assert (given.status, given.body["status"]) == (200, "cancelled")
    assert given.headers["preference-applied"] == "wait=30"
    assert given.headers["location"] == f"http://localhost{path}{row.pk}/"
    assert int(given.headers["content-length"]) > 0
    again = browser.call("GET", f"{path}{row.pk}/").result(20)
    assert given.body["version"] == again.body["version"]


def test_what_has_not_ended_in_time_is_told_as_far_as_it_has_come(browser):
    answer = browser.post(BATCHES, {"prompt": "a fox", "count": 2}, prefer="wait=5")
    await_rows(Batch, 1)
    batch = Batch.objects.get()
    assert lifecycle.cancel_generation(generation=batch.generations.first())
    given = answer.result(20)
    assert (given.status, given.body["cancelled_count"]) == (202, 1)
    assert given.headers["preference-applied"] == "wait=5"
    assert given.headers["location"] == f"http://localhost{BATCHES}{batch.pk}/"


def test_what_does_not_is_answered_as_it_was_accepted(browser):
    given = browser.post(BATCHES, BODY, prefer="wait=1").result(20)
    assert (given.status, given.body["status"]) == (202, "pending")
    assert given.headers["preference-applied"] == "wait=1"
    assert given.headers["location"].endswith(f"{given.body['id']}/")


@pytest.mark.parametrize("prefer", ["wait=0", "wait=x", "respond-async"])
def test_who_does_not_ask_to_wait_does_not(browser, prefer):
    given = browser.post(BATCHES, BODY, prefer=prefer).result(20)
    assert given.status == 202
    assert "preference-applied" not in given.headers


def test_what_is_refused_is_refused_at_once(browser):
    given = browser.post(BATCHES, {"prompts": []}, prefer="wait=30").result(20)
    assert given.status == 422


def test_no_client_can_ask_by_our_own_header(browser):
    given = browser.post(BATCHES, BODY, x_picture_wait=f"30 {BATCHES}").result(20)
    assert given.status == 202


def test_a_request_that_is_sent_again_waits_as_well(browser):
    headers = {"prefer": "wait=30", "idempotency_key": "once"}
    first = browser.post(BATCHES, BODY, **headers)
    await_waiting(1)
    second = browser.post(BATCHES, BODY, **headers)
    await_waiting(2)
    lifecycle.cancel_batch(batch=Batch.objects.get())
    given = [first.result(20), second.result(20)]
    third = browser.post(BATCHES, BODY, **headers).result(20)
    given.append(third)  # it has ended before
    assert [(one.status, one.body["status"]) for one in given] == [(200, "cancelled")] * 3
    assert third.headers["idempotent-replayed"] == "true"
    assert Batch.objects.count() == 1


def test_what_is_deleted_meanwhile_is_answered_as_it_was_accepted(browser):
    answer = browser.post(BATCHES, BODY, prefer="wait=30")
    await_rows(Batch, 1)
    lifecycle.delete_batch(batch=Batch.objects.get())
    given = answer.result(20)
    assert (given.status, given.body["status"]) == (202, "pending")


def test_a_hundred_wait_and_others_are_answered(browser):
    answers = [browser.post(BATCHES, BODY, prefer="wait=60") for _ in range(100)]
    await_waiting(100)
    for _ in range(3):
        assert browser.call("GET", "/health/live").result(10).status == 200
    assert not any(answer.done() for answer in answers)
    for batch in Batch.objects.all():
        lifecycle.cancel_batch(batch=batch)
    assert {answer.result(30).status for answer in answers} == {200}


def test_when_too_many_wait_others_are_answered_at_once(browser, monkeypatch):
    monkeypatch.setattr(waiting, "MAX_WAITING", 0)
    given = browser.post(BATCHES, BODY, prefer="wait=60").result(20)
    assert given.status == 202
    assert "preference-applied" not in given.headers


def test_who_leaves_is_waited_for_no_more(world, browser):
    async def leave():
        leaves = asyncio.Event()
        call = asyncio.create_task(
            browser._call("POST", BATCHES, BODY, {"prefer": "wait=60"}, leaves)
        )
        while not asgi._waiting._count:
            await asyncio.sleep(0.005)
        leaves.set()
        return await call

    assert world(leave()).result(20) is None
    assert asgi._waiting._count == 0
    assert not asgi._waiting._hub._awaited


def test_a_server_that_stops_answers_first_what_it_has(world, browser):
    async def stop():
        sent = []

        async def receive():
            await asyncio.Event().wait()

        async def app(scope, receive, send):
            headers = [
                (b"x-picture-wait", f"60 {BATCHES}{'0' * 8}{'-0000' * 3}-{'0' * 12}/".encode())
            ]
            await send({"type": "http.response.start", "status": 202, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

        async def send(message):
            sent.append(message)

        waits = asyncio.Event()

        class Never:
            async def ended(self, subject, timeout_s):
                waits.set()
                await asyncio.Event().wait()

        own = waiting.Waiting(Never(), fetch=app, impatient=asgi._impatient)
        task = asyncio.create_task(own.serve(app, {"headers": []}, receive, send))
        await waits.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled(), [one.get("status", one.get("body")) for one in sent]

    assert world(stop()).result(20) == (True, [202, b"{}"])
