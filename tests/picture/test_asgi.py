"""What happens to a request before Django's threads see it."""

import asyncio
import signal

import pytest

from picture import asgi


@pytest.fixture
def handed_on(monkeypatch):
    """Requests that reach Django: scope and body."""
    requests = []

    async def django(scope, receive, send):
        message = await receive()
        assert not message["more_body"]
        requests.append((scope, message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(asgi, "_django", django)
    return requests


def call(messages, headers=(), query=b""):
    """The statuses answered to a request that arrives in these messages, then in no more."""
    statuses = []
    messages = list(messages)

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "headers": list(headers), "query_string": query}
    asyncio.run(asgi.application(scope, receive, send))
    return statuses


def chunk(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_chunks_arrives_in_one_piece_with_its_length(handed_on):
    headers = [(b"transfer-encoding", b"chunked"), (b"x-other", b"1")]
    assert call([chunk(b"ab"), chunk(b"cd"), chunk(b"", more=False)], headers) == [200]
    ((scope, body),) = handed_on
    assert body == b"abcd"
    assert scope["headers"] == [(b"x-other", b"1"), (b"content-length", b"4")]


def test_a_body_that_is_too_large_is_read_no_further_than_that_shows(handed_on, settings):
    settings.MAX_BODY_BYTES = 10
    assert call([chunk(b"x" * 8), chunk(b"y" * 8)]) == [200]
    ((_, body),) = handed_on
    assert len(body) == 11


def test_a_client_that_never_ends_takes_no_thread(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_S", 0.05)
    assert call([chunk(b"ab")]) == [408]
    assert handed_on == []


def test_a_client_that_leaves_takes_no_thread(handed_on):
    assert call([chunk(b"ab"), {"type": "http.disconnect"}]) == []
    assert handed_on == []


def test_a_query_that_is_not_ascii_is_quoted(handed_on):
    assert call([chunk(b"", more=False)], query="a=é&b=%41+c".encode()) == [200]
    assert handed_on[0][0]["query_string"] == b"a=%C3%A9&b=%41+c"


def test_other_protocols_are_not_answered(handed_on):
    asyncio.run(asgi.application({"type": "lifespan"}, None, None))
    assert handed_on == []


def test_a_client_that_does_not_take_its_answer_gives_the_thread_back(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "PIECE_TIMEOUT_S", 0.05)

    async def stuck(message):
        await asyncio.Event().wait()

    async def receive():
        return chunk(b"", more=False)

    scope = {"type": "http", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(asgi.application(scope, receive, stuck), timeout=5))
    assert len(handed_on) == 1


def test_an_answer_in_drips_ends_at_its_deadline(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "ANSWER_TIMEOUT_S", 0.0)
    assert call([chunk(b"", more=False)]) in ([], [200])
    taken = []

    async def drip(message):
        taken.append(message)
        await asyncio.Event().wait()

    async def receive():
        return chunk(b"", more=False)

    scope = {"type": "http", "headers": [], "query_string": b""}
    asyncio.run(asyncio.wait_for(asgi.application(scope, receive, drip), timeout=5))
    assert len(taken) == 1


def test_nothing_is_said_of_a_database_that_is_there(capfd):
    asgi.wait_for_database()
    assert capfd.readouterr() == ("", "")


def test_the_signals_are_again_what_they_were(monkeypatch):
    monkeypatch.setattr(asgi, "CONNECT_PAUSE_S", 0.0)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    answers = iter(["away", "away", ""])
    during = []

    def trouble():
        during.append(signal.getsignal(signal.SIGTERM))
        return next(answers)

    monkeypatch.setattr(asgi, "_database_trouble", trouble)
    asgi.wait_for_database()
    assert len(during) == 3
    assert before[0] not in during
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
