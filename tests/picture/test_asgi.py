"""What happens to a request before Django's threads see it."""

import asyncio
import json
import signal

import pytest

from picture import asgi


@pytest.fixture
def handed_on(monkeypatch):
    """Requests that reach Django: scope and body."""
    requests = []

    async def django(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        requests.append((scope, body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    monkeypatch.setattr(asgi, "_django", django)
    return requests


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Whoever says who it is is taken for that: there is no database here."""

    async def user_id(scope):
        return dict(scope["headers"]).get(b"authorization")

    monkeypatch.setattr(asgi, "_user_id", user_id)


REQUEST = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "headers": [],
    "query_string": b"",
}


def call(messages, headers=(), query=b"", **scope):
    """The statuses answered to a request that arrives in these messages, then in no more."""
    return [status for status, _, _ in answers_to(messages, headers, query, **scope)]


def answers_to(messages, headers=(), query=b"", **scope):
    """As `call`, with the headers and bodies of the answers."""
    scope = {**REQUEST, "headers": list(headers), "query_string": query, **scope}
    return asyncio.run(one_request(scope, list(messages)))


async def one_request(scope, messages):
    answers = []

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message):
        if message["type"] == "http.response.start":
            answers.append((message["status"], dict(message["headers"]), bytearray()))
        else:
            answers[-1][2].extend(message.get("body", b""))

    await asgi.application(scope, receive, send)
    return answers


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


UPLOAD = {"method": "POST", "path": "/api/v1/references/"}
ANONYMOUS = [(b"content-type", b"multipart/form-data; boundary=x")]


def bearer(token):
    return b"authorization", f"Bearer pic_{token}".encode()


FORM = [*ANONYMOUS, bearer("x")]


@pytest.fixture
def small(settings, monkeypatch):
    """Bodies of 10 bytes, files of 1,000 in forms of 100 more."""
    settings.MAX_BODY_BYTES, settings.MAX_REFERENCE_BYTES = 10, 1_000
    monkeypatch.setattr(asgi, "FORM_BYTES", 100)


@pytest.mark.usefixtures("small")
def test_a_file_may_be_larger_than_other_bodies(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "PIECE_BYTES", 300)
    sent = bytes(range(256)) * 4
    assert call([chunk(sent[:900]), chunk(sent[900:], more=False)], FORM, **UPLOAD) == [200]
    ((scope, body),) = handed_on
    assert body == sent
    assert (b"content-length", b"1024") in scope["headers"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("headers", "scope"),
    [
        ([(b"content-type", b"application/json")], UPLOAD),
        (FORM, {**UPLOAD, "method": "PUT"}),
        (FORM, {**UPLOAD, "path": "/api/v1/batches/"}),
        ([], UPLOAD),
    ],
)
def test_nothing_else_may(headers, scope, handed_on):
    assert call([chunk(b"x" * 50)], headers, **scope) == [200]
    assert len(handed_on[0][1]) == 11


@pytest.mark.usefixtures("small")
def test_a_file_that_is_too_large_is_taken_to_its_end_and_kept_no_further_than_shows(handed_on):
    pieces = [chunk(b"x" * 700) for _ in range(5)]
    assert call([*pieces, chunk(b"", more=False)], FORM, **UPLOAD) == [200]
    assert len(handed_on[0][1]) == 1_101


@pytest.mark.usefixtures("small")
def test_a_file_without_end_is_not_taken_any_further(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "DRAIN_BYTES", 3_000)
    assert call([chunk(b"x" * 700) for _ in range(5)], FORM, **UPLOAD) == [200]
    assert len(handed_on[0][1]) == 1_101


@pytest.mark.usefixtures("small")
def test_a_file_is_not_held_in_memory(handed_on, monkeypatch):
    spools = []
    make = asgi.tempfile.SpooledTemporaryFile

    def watched(**options):
        spools.append(make(**options))
        return spools[-1]

    monkeypatch.setattr(asgi.tempfile, "SpooledTemporaryFile", watched)
    on_disk = []

    async def django(scope, receive, send):
        on_disk.append(spools[-1]._rolled)

    monkeypatch.setattr(asgi, "_django", django)
    call([chunk(b"x" * 900, more=False)], FORM, **UPLOAD)
    call([chunk(b"x" * 900, more=False)])
    assert on_disk == [True, False]
    assert all(spool.closed for spool in spools)


def test_a_client_that_never_ends_its_file_takes_no_thread(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "UPLOAD_TIMEOUT_S", 0.05)
    assert call([chunk(b"ab")], FORM, **UPLOAD) == [408]
    assert handed_on == []


def test_a_file_that_is_known_to_be_too_large_is_answered_when_its_time_is_up(
    handed_on, monkeypatch, settings
):
    settings.MAX_REFERENCE_BYTES = 1_000
    monkeypatch.setattr(asgi, "UPLOAD_TIMEOUT_S", 0.05)
    assert call([chunk(b"x" * 100_000)], FORM, **UPLOAD) == [200]
    assert len(handed_on[0][1]) == 1_000 + asgi.FORM_BYTES + 1


@pytest.mark.usefixtures("small")
def test_of_a_file_from_nobody_nothing_is_kept(handed_on, monkeypatch):
    written = []
    make = asgi.tempfile.SpooledTemporaryFile

    def watched(**options):
        spool = make(**options)
        write = spool.write
        spool.write = lambda piece: (written.append(len(piece)), write(piece))
        return spool

    monkeypatch.setattr(asgi.tempfile, "SpooledTemporaryFile", watched)
    messages = [chunk(b"x" * 700), chunk(b"x" * 700, more=False)]
    assert call(messages, ANONYMOUS, **UPLOAD) == [200]
    ((scope, body),) = handed_on
    assert (sum(written), body) == (0, b"")
    assert not any(name == b"content-length" for name, _ in scope["headers"])


def test_a_file_from_nobody_is_refused_as_everything_else_is():
    refused = answers_to([chunk(b"x" * 700, more=False)], ANONYMOUS, **UPLOAD)
    as_json = answers_to([chunk(b"{}", more=False)], [(b"content-type", b"text/json")], **UPLOAD)
    ((status, headers, body),) = refused
    ((_, other_headers, other),) = as_json
    assert status == 401
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"www-authenticate"] == other_headers[b"www-authenticate"]
    told = json.loads(body)
    assert (told["code"], told["errors"]) == ("not_authenticated", [])
    assert {**told, "request_id": ""} == {**json.loads(other), "request_id": ""}


def test_a_file_from_nobody_that_never_ends_is_refused_when_its_time_is_up(monkeypatch):
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_S", 0.05)
    assert call([chunk(b"ab")], ANONYMOUS, **UPLOAD) == [401]


def test_so_many_files_are_read_at_a_time_and_others_told_to_come_again(handed_on):
    async def run():
        hang = [asyncio.Event() for _ in range(asgi.UPLOADS_AT_A_TIME)]
        started, statuses = [], []

        async def upload(event, number):
            async def receive():
                if event not in started:
                    started.append(event)
                    return chunk(b"ab")
                await event.wait()
                return chunk(b"cd", more=False)

            async def send(message):
                statuses.append(message.get("status"))

            await asgi.application(scope_of(number % 4), receive, send)

        def scope_of(caller):
            return {**REQUEST, **UPLOAD, "headers": [*ANONYMOUS, bearer(caller)]}

        async with asyncio.timeout(30):
            tasks = [asyncio.create_task(upload(event, n)) for n, event in enumerate(hang)]
            while len(started) < len(hang):
                await asyncio.sleep(0)
            scope = scope_of("another")
            refused = await one_request(scope, [chunk(b"ab"), chunk(b"cd", more=False)])
            other = await one_request(REQUEST, [chunk(b"", more=False)])
            hang[0].set()
            await tasks[0]
            taken = await one_request(scope, [chunk(b"ab", more=False)])
            for event in hang:
                event.set()
            await asyncio.gather(*tasks)
        return refused, other, taken, statuses

    refused, other, taken, statuses = asyncio.run(run())
    ((status, headers, body),) = refused
    assert status == 503
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"retry-after"] == b"2"
    told = json.loads(body)
    assert (told["status"], told["code"], told["errors"]) == (503, "busy", [])
    assert told["request_id"].encode() == headers[b"x-request-id"]
    assert [answer[0][0] for answer in (other, taken)] == [200, 200]
    assert statuses.count(200) == asgi.UPLOADS_AT_A_TIME == 16
    assert [body for _, body in handed_on].count(b"abcd") == 16


def test_nobody_takes_all_places_for_files(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "_uploads", asgi._Places(4, 1))
    mine, theirs = ({**REQUEST, **UPLOAD, "headers": [*ANONYMOUS, bearer(n)]} for n in (1, 2))

    async def run():
        first = [chunk(b"ab")]
        task = asyncio.create_task(one_request(mine, first))
        while first:
            await asyncio.sleep(0)
        second = await one_request(mine, [chunk(b"ab", more=False)])
        other = await one_request(theirs, [chunk(b"ab", more=False)])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        third = await one_request(mine, [chunk(b"ab", more=False)])
        return [answer[0][0] for answer in (second, other, third)]

    assert asyncio.run(run()) == [503, 200, 200]


def test_files_that_are_given_up_leave_room_for_others(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "_uploads", asgi._Places(1, 1))
    monkeypatch.setattr(asgi, "UPLOAD_TIMEOUT_S", 0.05)
    assert call([chunk(b"ab")], FORM, **UPLOAD) == [408]
    assert call([chunk(b"ab"), {"type": "http.disconnect"}], FORM, **UPLOAD) == []
    assert call([chunk(b"ab", more=False)], FORM, **UPLOAD) == [200]


HOOK = {"method": "POST", "path": "/hooks/runpod/f8a1d1f0-0000-4000-8000-000000000000/"}


@pytest.mark.usefixtures("small")
def test_a_webhook_that_is_too_large_is_taken_to_its_end_and_kept_no_further_than_shows(handed_on):
    messages = [*[chunk(b"x" * 700) for _ in range(5)], chunk(b"", more=False)]
    given = list(messages)

    async def receive():
        return given.pop(0)

    async def send(message):
        pass

    asyncio.run(asgi.application({**REQUEST, **HOOK}, receive, send))
    assert given == []
    assert len(handed_on[0][1]) == 11


@pytest.mark.usefixtures("small")
def test_a_webhook_without_end_is_not_taken_any_further(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "HOOK_DRAIN_BYTES", 3_000)
    assert call([chunk(b"x" * 700) for _ in range(5)], **HOOK) == [200]
    assert len(handed_on[0][1]) == 11


def test_a_client_that_never_ends_takes_no_thread(handed_on, monkeypatch):
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_S", 0.05)
    ((status, headers, body),) = answers_to([chunk(b"ab")])
    assert (status, headers[b"content-type"]) == (408, b"application/problem+json")
    told = json.loads(body)
    assert (told["status"], told["code"], told["errors"]) == (408, "body_too_late", [])
    assert told["request_id"].encode() == headers[b"x-request-id"]
    assert b"retry-after" not in headers
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

    asyncio.run(asyncio.wait_for(asgi.application(REQUEST, receive, stuck), timeout=5))
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

    asyncio.run(asyncio.wait_for(asgi.application(REQUEST, receive, drip), timeout=5))
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
