"""`Idempotency-Key`: the same request twice is one."""

import threading
from collections import Counter
from datetime import timedelta
from functools import partial

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from batches import lifecycle
from batches.api import idempotency
from batches.api.idempotency import digest, parse_key
from batches.models import Batch, Generation, IdempotentRequest, Lane
from batches.scheduling import admit
from tests.batches.api.support import (
    BATCHES,
    GENERATIONS,
    client_of,
    fail,
    failed_batch,
    invalid,
    problem,
    rows,
)
from tests.factories import make_batch, make_generation, make_user
from tests.support import at_once, in_background

pytestmark = pytest.mark.django_db

FOX = {"prompt": "a fox"}
KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


@pytest.fixture
def send(post):
    """POST with a key."""

    def call(path, body=None, key=KEY):
        return post(path, {} if body is None else body, headers={"Idempotency-Key": key})

    return call


def is_replay(answer):
    if "Idempotent-Replayed" in answer:
        assert answer["Idempotent-Replayed"] == "true"
        return True
    return False


def failed_generation(owner):
    generation = make_generation(owner)
    admit()
    fail(generation)
    return generation


CREATING = {
    "batch": lambda owner: (BATCHES, {"prompt": "a fox", "count": 3}),
    "generation": lambda owner: (GENERATIONS, FOX),
    "batch retry": lambda owner: (f"{BATCHES}{failed_batch(owner, 2).pk}/retry/", {}),
    "generation retry": lambda owner: (f"{GENERATIONS}{failed_generation(owner).pk}/retry/", {}),
}


@pytest.mark.parametrize("name", CREATING)
def test_the_same_request_is_done_once_and_answered_again(name, send, owner, queued):
    path, body = CREATING[name](owner)
    first = send(path, body)
    assert first.status_code in (200, 202), first.content
    assert not is_replay(first)
    after, messages = rows(), queued()
    for _ in range(2):
        again = send(path, body)
        assert is_replay(again)
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.get("Location") == first.get("Location")
        assert again["Content-Type"] == first["Content-Type"]
    assert (rows(), queued()) == (after, messages)


def test_without_a_key_every_request_is_done(post):
    for count in (1, 2):
        assert not is_replay(post(BATCHES, FOX))
        assert Batch.objects.count() == count
    assert not IdempotentRequest.objects.exists()


def test_another_key_is_another_request(send):
    assert send(BATCHES, FOX, "one").json()["id"] != send(BATCHES, FOX, "two").json()["id"]


def test_the_first_answer_is_given_whatever_has_become_of_the_work(send):
    first = send(BATCHES, FOX)
    assert lifecycle.delete_batch(batch=Batch.objects.get())
    again = send(BATCHES, FOX)
    assert is_replay(again)
    assert again.json() == first.json()


@pytest.mark.parametrize(
    ("body", "same"),
    [
        ('{"count": 2, "prompt": "a f\\u00f6x", "settings": {"steps": 2, "width": 512}}', False),
        ('{ "settings": {}, "count":2,\n"prompt": "a f\\u00f6x"}', True),
        ('{"prompt": "a föx", "count": 2, "settings": {}}', True),
        ('{"prompt": "a föx", "count": 3, "settings": {}}', False),
        ('{"prompt": "a föx", "count": 2}', False),
        ('{"prompt": "a föx", "count": "2", "settings": {}}', False),
    ],
)
def test_the_payload_is_what_the_body_says_and_not_how(body, same, api, send):
    first = send(BATCHES, {"prompt": "a föx", "count": 2, "settings": {}})
    assert first.status_code == 202
    before = rows()
    again = api.post(
        BATCHES,
        body.encode(),
        content_type="application/json",
        headers={"Idempotency-Key": KEY},
    )
    if same:
        assert is_replay(again)
    else:
        assert problem(again, 422, "idempotency_key_reused")["errors"] == []
    assert rows() == before


def test_an_empty_body_is_the_same_as_an_empty_object(api, owner):
    path = f"{BATCHES}{failed_batch(owner, 1).pk}/retry/"
    headers = {"Idempotency-Key": KEY}
    assert api.post(path, headers=headers).status_code == 200
    assert is_replay(api.post(path, {}, headers=headers))


def test_digests_differ_where_values_do():
    values = [{}, [], None, 1, 1.5, "1", True, {"a": 1}, {"a": [1]}, {"a": None}, "", "{}"]
    assert len({digest(value) for value in values}) == len(values)


# --- Whose key it is ----------------------------------------------------------------------------


def test_another_user_has_keys_of_their_own(send, django_capture_on_commit_callbacks):
    first = send(BATCHES, FOX)
    other = client_of(make_user())
    answer = other.post(BATCHES, {"prompt": "a cat"}, headers={"Idempotency-Key": KEY})
    assert answer.status_code == 202
    assert not is_replay(answer)
    assert answer.json()["id"] != first.json()["id"]


def test_another_path_has_keys_of_its_own(send, owner):
    one, two = failed_batch(owner, 1), failed_batch(owner, 1)
    paths = [BATCHES, GENERATIONS, *(f"{BATCHES}{batch.pk}/retry/" for batch in (one, two))]
    for path in paths:
        answer = send(path, {} if "retry" in path else FOX)
        assert answer.status_code in (200, 202)
        assert not is_replay(answer)
    assert IdempotentRequest.objects.count() == 4


def test_a_user_is_the_same_by_token_and_by_session(send, owner, client):
    first = send(BATCHES, FOX)
    client.force_login(owner)
    again = client.post(
        BATCHES, FOX, content_type="application/json", headers={"Idempotency-Key": KEY}
    )
    assert is_replay(again)
    assert again.json() == first.json()


# --- The key ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("abc", "abc"),
        ('"abc"', "abc"),
        ('"a\\"b\\\\c"', 'a"b\\c'),
        ("x" * 255, "x" * 255),
        (f'"{"x" * 255}"', "x" * 255),
        ("!~'%", "!~'%"),
        ('a"b', 'a"b'),
    ],
)
def test_a_key_may_be_quoted(header, key):
    assert parse_key(header) == key


def test_a_quoted_key_and_a_bare_one_are_the_same(send):
    assert not is_replay(send(BATCHES, FOX, "abc"))
    assert is_replay(send(BATCHES, FOX, '"abc"'))


@pytest.mark.parametrize(
    "header",
    [
        *("", '""', '"', '"abc', '"a"b"', '"a\\b"', '"abc";x=1', '"abc", "def"'),
        *("a b", '"a b"', "a\tb", "a\nb", "a\x00b", "\x7f", "é", "\N{FOX FACE}"),
        *("x" * 256, f'"{"x" * 256}"'),
    ],
)
@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_a_key_that_is_none_is_refused(path, header, api, nothing_happens):
    with nothing_happens():
        # As it comes from the wire: the client of the tests would refuse some of them.
        answer = api.post(path, FOX, HTTP_IDEMPOTENCY_KEY=header)
    assert problem(answer, 400, "invalid_idempotency_key")["errors"] == []


def test_an_action_that_makes_no_work_takes_no_key(send, owner):
    path = f"{BATCHES}{make_batch(owner).pk}/pause/"
    assert send(path).status_code == 200
    problem(send(path), 409, "invalid_transition", extensions=["current_status"])
    assert not IdempotentRequest.objects.exists()


# --- What is not stored -------------------------------------------------------------------------


def test_a_refused_request_leaves_its_key_free(send, nothing_happens):
    with nothing_happens():
        assert "prompts" in invalid(send(BATCHES))
    assert not IdempotentRequest.objects.exists()
    assert not is_replay(send(BATCHES, FOX))


def test_so_does_a_retry_that_cannot_be_done(send, owner):
    batch = make_batch(owner, size=1)
    path = f"{BATCHES}{batch.pk}/retry/"
    problem(send(path), 409, "invalid_transition", extensions=["current_status"])
    admit()
    fail(batch.generations.get())
    assert send(path).status_code == 200
    assert is_replay(send(path))


def test_a_malformed_body_leaves_the_key_free(api, send):
    headers = {"Idempotency-Key": KEY}
    answer = api.post(BATCHES, b"{", content_type="application/json", headers=headers)
    problem(answer, 400, "invalid_json")
    assert send(BATCHES, FOX).status_code == 202


def test_without_a_token_nobody_learns_of_a_key(send, api):
    send(BATCHES, FOX)
    api.credentials()
    answer = api.post(BATCHES, FOX, headers={"Idempotency-Key": KEY})
    problem(answer, 401, "not_authenticated")


# --- How long -----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [FOX, {"prompt": "a cat"}])
def test_a_key_is_free_again_after_a_day(body, send):
    first = send(BATCHES, FOX)
    stored = IdempotentRequest.objects
    stored.update(created_at=F("created_at") - IdempotentRequest.KEPT + timedelta(minutes=1))
    assert is_replay(send(BATCHES, FOX))
    stored.update(created_at=F("created_at") - timedelta(minutes=1))
    second = send(BATCHES, body)
    assert not is_replay(second)
    assert second.json()["id"] != first.json()["id"]
    # In place of the first one, and for a day of its own.
    assert stored.count() == 1
    again = send(BATCHES, body)
    assert is_replay(again)
    assert again.json() == second.json()


# --- Both or neither ----------------------------------------------------------------------------


class Crash(Exception):
    pass


@pytest.mark.parametrize("name", CREATING)
@pytest.mark.parametrize("at", ["_store", "JSONRenderer"])
def test_a_crash_between_the_work_and_its_answer_leaves_neither(
    at, name, owner, monkeypatch, queued, broker, django_capture_on_commit_callbacks
):
    path, body = CREATING[name](owner)
    broker.flushdb()
    client = client_of(owner)
    before = rows()

    def crash(*_, **__):
        assert rows() != before
        raise Crash

    headers = {"Idempotency-Key": KEY}
    monkeypatch.setattr(idempotency, at, crash)
    with django_capture_on_commit_callbacks(execute=True), pytest.raises(Crash):
        client.post(path, body, headers=headers)
    assert (rows(), queued()) == (before, {})
    assert not IdempotentRequest.objects.exists()
    monkeypatch.undo()
    with django_capture_on_commit_callbacks(execute=True):
        answer = client.post(path, body, headers=headers)
    assert answer.status_code in (200, 202)
    assert not is_replay(answer)
    assert queued() == {"control": 1}


def test_a_crash_after_the_answer_was_stored_leaves_neither(owner, monkeypatch):
    def stored_then_crash(*args):
        store(*args)
        raise Crash

    store = idempotency._store
    monkeypatch.setattr(idempotency, "_store", stored_then_crash)
    with pytest.raises(Crash):
        client_of(owner).post(BATCHES, FOX, headers={"Idempotency-Key": KEY})
    assert not IdempotentRequest.objects.exists()
    assert not Batch.objects.exists()


# --- At the same time ---------------------------------------------------------------------------


def is_in_use(answer):
    if answer.status_code != 409:
        return False
    problem(answer, 409, "idempotency_key_in_use")
    assert answer["Retry-After"] == "1"
    return True


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", CREATING)
def test_fifty_identical_requests_at_once_are_one(name, owner, queued, broker):
    path, body = CREATING[name](owner)
    clients = [client_of(owner) for _ in range(50)]
    generations = Generation.objects.count()
    broker.flushdb()

    def all_at_once():
        headers = {"Idempotency-Key": KEY}
        return at_once(*(partial(one.post, path, body, headers=headers) for one in clients))

    answers = all_at_once()
    in_use = [answer for answer in answers if is_in_use(answer)]
    served = [answer for answer in answers if answer not in in_use]
    assert Counter(map(is_replay, served)) == {
        False: 1,
        **({True: len(served) - 1} if len(served) > 1 else {}),
    }
    (first,) = (answer for answer in served if not is_replay(answer))
    after = rows()
    again = all_at_once()
    assert all(map(is_replay, again))
    for answer in [*served, *again]:
        assert answer.status_code == first.status_code
        assert answer.json() == first.json()
    assert rows() == after
    assert IdempotentRequest.objects.count() == 1
    made = {"batch": 3, "generation": 1}.get(name, 0)
    assert Generation.objects.count() == generations + made
    assert Lane.objects.get().queued == (made or Generation.objects.count())
    assert queued() == {"control": 1}


@pytest.mark.django_db(transaction=True)
def test_a_key_is_taken_until_the_first_request_is_over(owner, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    submit = lifecycle.submit_batch

    def slowly(**fields):
        begun.set()
        assert go_on.wait(30)
        return submit(**fields)

    monkeypatch.setattr(lifecycle, "submit_batch", slowly)
    client = client_of(owner)
    first = in_background(lambda: client.post(BATCHES, FOX, headers={"Idempotency-Key": KEY}))
    assert begun.wait(30)
    second = client_of(owner)
    # Whatever the payload: there is nothing yet to compare it with.
    for body in (FOX, {"prompt": "a cat"}):
        assert is_in_use(second.post(BATCHES, body, headers={"Idempotency-Key": KEY}))
    go_on.set()
    assert second.post(BATCHES, FOX, headers={"Idempotency-Key": "other"}).status_code == 202
    answer = first.result(30)
    again = second.post(BATCHES, FOX, headers={"Idempotency-Key": KEY})
    assert is_replay(again)
    assert again.json() == answer.json()


# --- How much work it is ------------------------------------------------------------------------


@pytest.mark.usefixtures("warm_caches")
def test_a_key_costs_a_few_queries_whatever_the_size(send, post):
    def queries(call, count, *key):
        with CaptureQueriesContext(connection) as captured:
            assert call(BATCHES, {"prompt": "a fox", "count": count}, *key).status_code == 202
        return len(captured)

    few, many = queries(send, 5, "five"), queries(send, 25, "many")
    assert few == many
    # The lock, the look, a transaction, the answer, and the lock given back.
    assert few - queries(post, 5) == 6
    # And the token.
    assert queries(send, 5, "five") == queries(send, 25, "many") == 4
