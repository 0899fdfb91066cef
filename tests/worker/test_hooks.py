"""The receiver of a provider's webhooks: what it takes in, refuses, and does about it."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from kombu.exceptions import OperationalError as BrokerError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from batches import invariants, lifecycle
from batches.models import Attempt, AttemptOutcome, Batch, Generation, Lease, WebhookReceipt
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import make_batch, make_generation
from worker import canvas, tasks
from worker.providers import get_provider

pytestmark = pytest.mark.django_db

KEY = b"the key of these tests, nobody else's"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
PUBLISH = canvas.publish
# What the receiver may ask the database for, savepoints aside.
QUERIES_OF_A_REPORT = 5


@pytest.fixture(autouse=True)
def secret(settings):
    settings.REPLICATE_WEBHOOK_SECRET = SECRET
    get_provider.cache_clear()
    yield
    get_provider.cache_clear()


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """The messages sent, as members."""
    members = []
    monkeypatch.setattr(canvas, "publish", members.append)
    return members


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


def submitted(prediction_id="p1", **fields):
    """The attempt of a generation that is running; `None` as the id: not answered yet."""
    make_generation(**fields)
    (member,) = admit().admitted
    attempt = lifecycle.begin_attempt(generation=Generation.objects.get(pk=member.generation_id))
    if prediction_id is not None:
        prediction = Prediction(prediction_id, PredictionStatus.RUNNING)
        assert lifecycle.record_submission(attempt=attempt, prediction=prediction)
    return attempt


def body_of(prediction_id="p1", status="succeeded", **fields):
    body = {"id": prediction_id, "status": status, "output": ["https://replicate.delivery/0.webp"]}
    return json.dumps({**body, **fields}).encode()


def signed(body, *, webhook_id="msg_1", time_s=None, key=KEY):
    """The headers of a delivery, as the provider makes them."""
    time_s = int(time.time()) if time_s is None else time_s
    digest = hmac.new(key, f"{webhook_id}.{time_s}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(time_s),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def path_of(attempt, provider="replicate"):
    token = attempt.callback_token if isinstance(attempt, Attempt) else attempt
    return f"/hooks/{provider}/{token}/"


def deliver(attempt, body=None, *, provider="replicate", client=None, headers=None, **options):
    body = body_of() if body is None else body
    return (client or Client()).post(
        path_of(attempt, provider),
        data=body,
        content_type="application/json",
        headers=signed(body, **options) if headers is None else headers,
    )


def state_of(attempt):
    """Everything that a webhook may change."""
    rows = Attempt.objects.filter(pk=attempt.pk)
    return (
        rows.values_list("provider_id", "submitted_at", "report", "outcome").get(),
        Generation.objects.values_list("status", "version").get(pk=attempt.generation_id),
        WebhookReceipt.objects.count(),
    )


# --- What is taken in ---------------------------------------------------------------------------


def test_the_end_of_a_prediction_is_kept_and_its_generation_is_looked_at_now(published):
    attempt = submitted()
    answer = deliver(attempt)
    assert (answer.status_code, answer.content) == (200, b"")
    attempt.refresh_from_db()
    assert attempt.report["output"] == ["https://replicate.delivery/0.webp"]
    assert attempt.outcome == AttemptOutcome.OPEN  # the worker ends it
    lease = Lease.objects.get()
    (member,) = published
    assert (member.generation_id, member.lease_id, member.turn) == (
        attempt.generation_id,
        lease.pk,
        lease.turn,
    )


def test_the_message_of_a_report_names_the_turn_of_the_moment(published):
    attempt = submitted()
    Lease.objects.update(turn=7)
    deliver(attempt)
    assert [member.turn for member in published] == [7]


def test_a_member_of_a_batch_is_published_with_its_place_in_the_chord(published):
    batch = make_batch(size=2)
    _, member = admit().admitted
    generation = Generation.objects.get(pk=member.generation_id)
    attempt = lifecycle.begin_attempt(generation=generation)
    deliver(attempt)
    (sent,) = published
    assert (sent.batch_id, sent.index, sent.has_chord) == (batch.pk, member.index, True)
    assert sent.chord_size is None  # that was told with the first


@pytest.mark.parametrize("status", ["failed", "canceled", "aborted"])
def test_every_way_to_end_is_an_end(published, status):
    attempt = submitted()
    assert deliver(attempt, body_of(status=status, output=None)).status_code == 200
    assert len(published) == 1


def test_what_the_report_says_is_done_without_asking_the_provider(published):
    attempt = submitted()
    deliver(attempt)
    (member,) = published
    # Nothing answers at the provider's address of the tests: the report is all there is.
    args = (str(member.generation_id), str(member.lease_id), member.turn)
    outcome = tasks.generate.run(*args)
    assert outcome == {"status": "downloading", "turn": member.turn + 1}
    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.report) == (AttemptOutcome.SUCCEEDED, None)
    assert attempt.outputs == ["https://replicate.delivery/0.webp"]


def test_a_report_that_overtakes_the_answer_to_the_submission_brings_the_id(published):
    attempt = submitted(None)
    assert deliver(attempt).status_code == 200
    attempt.refresh_from_db()
    assert attempt.provider_id == "p1"
    assert attempt.submitted_at is not None
    assert attempt.report["status"] == "succeeded"
    assert len(published) == 1
    # The answer comes after all, and changes nothing.
    prediction = Prediction("p1", PredictionStatus.STARTING)
    assert not lifecycle.record_submission(attempt=attempt, prediction=prediction)


def test_a_sign_of_life_before_the_answer_brings_the_id_and_wakes_nobody(published):
    attempt = submitted(None)
    assert deliver(attempt, body_of(status="processing", output=None)).status_code == 200
    attempt.refresh_from_db()
    assert (attempt.provider_id, attempt.report) == ("p1", None)
    assert published == []


def test_a_report_on_a_submission_given_up_as_unanswered_is_followed(published):
    attempt = submitted(None)
    lifecycle.record_lost_answer(
        attempt=attempt, failure=Failure(ErrorClass.TIMEOUT_UNKNOWN, "no answer")
    )
    assert deliver(attempt).status_code == 200
    assert len(published) == 1
    attempt.refresh_from_db()
    assert attempt.provider_id == "p1"


# --- Again, late, in another order --------------------------------------------------------------


def test_the_same_delivery_any_number_of_times_has_one_effect(published):
    attempt = submitted()
    body = body_of()
    headers = signed(body)
    assert deliver(attempt, body, headers=headers).status_code == 200
    before = state_of(attempt)
    for _ in range(5):
        assert deliver(attempt, body, headers=headers).status_code == 200
    assert state_of(attempt) == before
    assert len(published) == 1


def test_a_second_report_of_the_same_end_under_another_id_has_no_effect(published):
    attempt = submitted()
    deliver(attempt)
    later = body_of(output=["https://replicate.delivery/other.webp"])
    assert deliver(attempt, later, webhook_id="msg_2").status_code == 200
    attempt.refresh_from_db()
    assert attempt.report["output"] == ["https://replicate.delivery/0.webp"]
    assert len(published) == 1


def test_an_id_that_was_used_before_has_no_effect_even_with_another_body(published):
    attempt = submitted()
    deliver(attempt, body_of(status="processing", output=None))
    assert deliver(attempt, body_of()).status_code == 200
    attempt.refresh_from_db()
    assert attempt.report is None
    assert published == []


def test_what_was_earlier_and_comes_later_changes_nothing(published):
    attempt = submitted()
    deliver(attempt)
    before = state_of(attempt)[:2]
    for number, status in enumerate(("starting", "processing")):
        body = body_of(status=status, output=None)
        assert deliver(attempt, body, webhook_id=f"msg_early_{number}").status_code == 200
    assert state_of(attempt)[:2] == before
    assert len(published) == 1


def ended(attempt, *, how):
    generation = Generation.objects.get(pk=attempt.generation_id)
    prediction = Prediction("p1", PredictionStatus.SUCCEEDED, outputs=("data:,",))
    if how == "failed":
        failure = Failure(ErrorClass.TIMEOUT_RUN, "too late")
        assert lifecycle.fail_generation(generation=generation, attempt=attempt, failure=failure)
    elif how == "requeued":
        failure = Failure(ErrorClass.INTERRUPTED, "once more")
        assert lifecycle.requeue_generation(
            generation=generation, attempt=attempt, failure=failure, delay_s=9, counts_as_retry=True
        )
    elif how == "cancelled":
        assert lifecycle.cancel_generation(generation=generation)
        assert lifecycle.confirm_cancel(generation=generation, attempt=attempt, result=prediction)
    else:
        assert lifecycle.begin_download(
            generation=generation, attempt=attempt, prediction=prediction, cost_usd=0
        )


@pytest.mark.parametrize("how", ["failed", "requeued", "cancelled", "downloading"])
def test_a_report_on_what_has_moved_on_is_taken_and_changes_nothing(published, how):
    attempt = submitted()
    ended(attempt, how=how)
    before = state_of(attempt)[:2]
    assert deliver(attempt).status_code == 200
    assert state_of(attempt)[:2] == before
    assert published == []


def test_a_report_on_an_earlier_attempt_does_not_touch_the_present_one(published):
    first = submitted()
    ended(first, how="requeued")
    Generation.objects.update(not_before=Now() - timedelta(seconds=1))
    (member,) = admit().admitted
    second = lifecycle.begin_attempt(generation=Generation.objects.get(pk=member.generation_id))
    before = state_of(second)[:2]
    assert deliver(first).status_code == 200
    assert state_of(second)[:2] == before
    assert published == []


def test_a_report_on_what_is_being_cancelled_wakes_the_worker_that_ends_it(published):
    attempt = submitted()
    generation = Generation.objects.get()
    assert lifecycle.cancel_generation(generation=generation)
    assert deliver(attempt, body_of(status="canceled", output=None)).status_code == 200
    (member,) = published
    outcome = tasks.generate.run(str(generation.pk), str(member.lease_id), member.turn)
    assert outcome == "cancelled"


def test_a_report_on_what_was_deleted_meanwhile_is_for_nobody(published):
    attempt = submitted()
    generation = Generation.objects.get()
    ended(attempt, how="failed")
    assert lifecycle.delete_generation(generation=generation)
    assert deliver(attempt).status_code == 404
    assert published == []


@pytest.mark.django_db(transaction=True)
def test_copies_that_come_at_once_have_one_effect(published):
    attempt = submitted(None)
    body = body_of()
    headers = signed(body)
    start = threading.Barrier(6)
    statuses = []

    def send():
        try:
            start.wait(timeout=30)
            statuses.append(deliver(attempt, body, headers=headers).status_code)
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6
    assert len(published) == 1
    assert WebhookReceipt.objects.count() == 1


# --- What is refused ----------------------------------------------------------------------------


def refused(attempt, answer, status, code):
    """Nothing has come of it, and a genuine delivery still does what it should."""
    assert (answer.status_code, answer.json()) == (status, {"code": code})
    assert state_of(attempt)[2] == 0
    assert state_of(attempt)[0][2] is None
    assert deliver(attempt).status_code == 200
    attempt.refresh_from_db()
    assert attempt.report is not None


@pytest.mark.parametrize(
    "forge",
    [
        lambda body: signed(body, key=b"another key"),
        lambda body: signed(body + b" "),
        lambda body: {**signed(body), "webhook-id": "msg_2"},
        lambda body: {**signed(body), "webhook-timestamp": str(int(time.time()) + 1)},
        lambda body: {**signed(body), "webhook-signature": "v1,"},
        lambda body: {**signed(body), "webhook-signature": "v1," + "A" * 44},
        lambda body: {
            **signed(body),
            "webhook-signature": signed(body)["webhook-signature"].replace("v1,", "v2,"),
        },
    ],
    ids=["key", "body", "id", "time", "empty", "noise", "version"],
)
def test_what_the_provider_has_not_signed_is_refused(published, forge):
    attempt = submitted()
    answer = deliver(attempt, headers=forge(body_of()))
    assert published == []
    refused(attempt, answer, 401, "bad_signature")


@pytest.mark.parametrize("age_s", [-86_400, -310, 310, 86_400])
def test_what_was_signed_long_ago_or_long_hence_is_refused(published, age_s):
    attempt = submitted()
    answer = deliver(attempt, time_s=int(time.time()) - age_s)
    assert published == []
    refused(attempt, answer, 401, "stale")


@pytest.mark.parametrize("age_s", [-240, 240])
def test_clocks_may_differ_by_minutes(published, age_s):
    attempt = submitted()
    assert deliver(attempt, time_s=int(time.time()) - age_s).status_code == 200
    assert len(published) == 1


@pytest.mark.parametrize("wrong_s", [-3_600, 3_600])
def test_the_clock_of_this_machine_does_not_matter(published, monkeypatch, wrong_s):
    attempt = submitted()
    now = time.time
    body = body_of()
    headers = signed(body)
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: now() + wrong_s)
        assert deliver(attempt, body, headers=headers).status_code == 200
    assert len(published) == 1


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize("value", [None, "", "?" * 3_000])
def test_a_header_that_is_missing_or_cannot_be_is_refused(published, name, value):
    attempt = submitted()
    headers = {key: text for key, text in signed(body_of()).items() if key != name}
    if value is not None:
        headers[name] = value
    answer = deliver(attempt, headers=headers)
    assert published == []
    refused(attempt, answer, 400, "missing_header")


def test_a_token_that_nobody_has_is_not_found(published):
    attempt = submitted()
    answer = deliver(uuid.uuid4())
    assert published == []
    refused(attempt, answer, 404, "unknown_attempt")


@pytest.mark.parametrize("token", ["1", "not-a-token", "%00"])
def test_a_token_that_is_none_is_not_found(token):
    assert deliver(token).status_code == 404


def test_a_provider_that_we_do_not_have_is_not_found(published):
    attempt = submitted()
    answer = deliver(attempt, provider="elsewhere")
    assert published == []
    refused(attempt, answer, 404, "unknown_provider")


def test_a_token_of_another_provider_is_not_found(published):
    attempt = submitted()
    Attempt.objects.update(provider="elsewhere")
    assert deliver(attempt).json() == {"code": "unknown_attempt"}
    assert state_of(attempt)[2] == 0
    assert published == []


def test_a_body_of_another_prediction_is_not_found(published):
    attempt = submitted()
    answer = deliver(attempt, body_of("p2"))
    assert published == []
    refused(attempt, answer, 404, "unknown_attempt")


def test_a_body_of_another_prediction_is_not_found_by_a_token_of_nobody(published):
    attempt = submitted()
    answer = deliver(uuid.uuid4(), body_of("p1"))
    assert published == []
    refused(attempt, answer, 404, "unknown_attempt")


@pytest.mark.parametrize("own_id", [None, "p2"])
def test_a_report_is_for_the_attempt_that_has_found_its_prediction(published, own_id):
    finder = submitted("p1")
    named = submitted(own_id)
    before = state_of(named)[:2]
    assert deliver(named, body_of("p1")).status_code == 200
    assert state_of(named)[:2] == before
    finder.refresh_from_db()
    assert finder.report["id"] == "p1"
    assert [member.generation_id for member in published] == [finder.generation_id]


@pytest.mark.django_db(transaction=True)
def test_a_prediction_that_is_found_by_another_meanwhile_is_not_given_twice(published, monkeypatch):
    named, finder = submitted(None), submitted(None)
    note = WebhookReceipt.objects.note

    def find_it_first(*delivery):
        prediction = Prediction("p1", PredictionStatus.RUNNING)
        done = threading.Thread(target=in_own_connection, args=(finder, prediction))
        done.start()
        done.join()
        return note(*delivery)

    def in_own_connection(attempt, prediction):
        try:
            assert lifecycle.record_submission(attempt=attempt, prediction=prediction)
        finally:
            connection.close()

    with monkeypatch.context() as receipts:
        receipts.setattr(WebhookReceipt.objects, "note", find_it_first)
        assert deliver(named).status_code == 404
    assert state_of(named)[0][:3] == (None, None, None)
    assert published == []
    # The provider sends it again.
    assert deliver(named).status_code == 200
    assert [member.generation_id for member in published] == [finder.generation_id]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"not json",
        b'{"id": "p1"}',
        b'{"id": 1, "status": "succeeded"}',
        b'{"id": "", "status": "succeeded"}',
        b'{"id": "%s", "status": "succeeded"}' % (b"p" * 101),
        b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_prediction_is_not_processed(published, body):
    attempt = submitted()
    answer = deliver(attempt, body)
    assert published == []
    refused(attempt, answer, 422, "not_a_prediction")


def test_text_that_cannot_be_stored_does_not_keep_a_report_out(published):
    attempt = submitted()
    body = body_of(logs="").replace(b'"logs": ""', rb'"logs": "a\u0000b \ud83d"')
    assert rb"\u0000" in body
    assert deliver(attempt, body).status_code == 200
    attempt.refresh_from_db()
    assert attempt.report["logs"] == "ab ?"


@pytest.mark.parametrize("method", ["get", "head", "put", "patch", "delete", "options"])
def test_only_a_post_is_a_delivery(published, method):
    attempt = submitted()
    body = body_of()
    answer = Client().generic(method.upper(), path_of(attempt), body, headers=signed(body))
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert state_of(attempt)[2] == 0
    assert published == []


def test_a_body_of_more_than_the_limit_is_refused_before_it_is_looked_at(published):
    attempt = submitted()
    body = body_of(logs="x" * django_settings.MAX_BODY_BYTES)
    answer = deliver(attempt, body)
    assert answer.status_code in (400, 413)
    assert state_of(attempt)[2] == 0
    assert published == []
    assert deliver(attempt).status_code == 200


def test_a_webhook_that_cannot_be_checked_is_to_be_sent_again(published, settings):
    attempt = submitted()
    settings.REPLICATE_WEBHOOK_SECRET = ""  # and where to ask for it, nobody answers
    get_provider.cache_clear()
    answer = deliver(attempt)
    assert published == []
    settings.REPLICATE_WEBHOOK_SECRET = SECRET
    get_provider.cache_clear()
    refused(attempt, answer, 503, "not_checked")


# --- What it needs, and what it does without ----------------------------------------------------


def test_neither_session_nor_csrf_token_nor_login_is_asked_for(published):
    attempt = submitted()
    client = Client(enforce_csrf_checks=True)
    with CaptureQueriesContext(connection) as queries:
        answer = deliver(attempt, client=client)
    assert answer.status_code == 200
    assert (dict(answer.cookies), dict(client.cookies)) == ({}, {})
    assert not [query for query in queries if "session" in query["sql"] or "auth" in query["sql"]]


def queries_of(send):
    """The statements of a delivery, without those that only mark a place to go back to."""
    with CaptureQueriesContext(connection) as queries:
        assert send().status_code == 200
    return [query["sql"] for query in queries if "SAVEPOINT" not in query["sql"]]


def test_the_number_of_queries_is_small_and_does_not_grow(published):
    first = submitted()
    alone = queries_of(lambda: deliver(first))
    for number in range(10):
        submitted(f"other {number}")
    attempt = submitted("p9")
    among_many = queries_of(lambda: deliver(attempt, body_of("p9"), webhook_id="msg_9"))
    again = queries_of(lambda: deliver(attempt, body_of("p9"), webhook_id="msg_9"))
    assert len(alone) == len(among_many) == QUERIES_OF_A_REPORT
    assert len(again) < QUERIES_OF_A_REPORT


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("statement", range(QUERIES_OF_A_REPORT - 1))
def test_a_database_that_goes_away_leaves_nothing_half_done(published, statement):
    attempt = submitted(None)
    executed = []

    def going_away(execute, sql, params, many, context):
        executed.append(sql)
        if len(executed) > statement:
            raise OperationalError("the database system is shutting down")
        return execute(sql, params, many, context)

    client = Client(raise_request_exception=False)
    before = state_of(attempt)
    with connection.execute_wrapper(going_away):
        # Not a success: the provider is to send it again.
        assert deliver(attempt, client=client).status_code >= 500
    assert state_of(attempt) == before
    assert published == []
    assert deliver(attempt).status_code == 200
    assert len(published) == 1


@pytest.mark.parametrize(
    "error", [BrokerError("connection refused"), RedisConnectionError("connection refused")]
)
def test_a_broker_that_is_away_does_not_keep_a_report_out(monkeypatch, error):
    attempt = submitted()

    def away(member):
        raise error

    with monkeypatch.context() as broker:
        broker.setattr(canvas, "publish", away)
        assert deliver(attempt).status_code == 200
    attempt.refresh_from_db()
    assert attempt.report is not None


# As in the web process, which knows the tasks by name only.
PUBLISH_ELSEWHERE = """
import time, uuid
import django
django.setup()
import picture.urls
from celery import current_app
from batches.models import Member
from worker import canvas
assert not [name for name in current_app._tasks if name.startswith("work.")]
member = Member(uuid.uuid4(), uuid.uuid4(), 0, uuid.uuid4(), 0, True)
began = time.monotonic()
try:
    canvas.publish(member)
except Exception as error:
    print("raised", type(error).__module__, type(error).__name__, time.monotonic() - began)
"""


def test_a_broker_that_is_away_is_given_up_within_moments():
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "picture.settings",
        "REDIS_URL": "redis://127.0.0.1:9/0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH_ELSEWHERE],
        cwd=django_settings.BASE_DIR,
        env=env,
        text=True,
        capture_output=True,
        timeout=60,
    )
    (raised,) = [line.split() for line in done.stdout.splitlines() if line.startswith("raised")]
    # One of those that the receiver expects; a web thread has waited for it.
    assert raised[1:3] == ["kombu.exceptions", "OperationalError"], done.stderr
    assert float(raised[3]) < 10


def test_the_message_is_in_the_queue_when_the_provider_is_answered(monkeypatch):
    monkeypatch.setattr(canvas, "publish", PUBLISH)
    redis = Redis.from_url(django_settings.REDIS_URL)
    redis.delete("generate")
    attempt = submitted()
    assert deliver(attempt).status_code == 200
    (message,) = redis.lrange("generate", 0, -1)
    redis.delete("generate")
    redis.close()
    envelope = json.loads(message)
    args, _, _ = json.loads(base64.b64decode(envelope["body"]))
    lease = Lease.objects.get()
    assert envelope["headers"]["task"] == "work.generate"
    assert args == [str(attempt.generation_id), str(lease.pk), lease.turn]
    assert Batch.objects.count() == 0


# --- A provider that does not sign --------------------------------------------------------------


def runpod_attempt(settings, provider_id=None):
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "rpa_x", "endpoint"
    settings.PROVIDER_POOLS = {"runpod": {"capacity": 9}}
    get_provider.cache_clear()
    generation = make_generation(provider="runpod", model="runpod/sdxl")
    admit()
    generation.refresh_from_db()
    attempt = lifecycle.begin_attempt(generation=generation)
    if provider_id:
        prediction = Prediction(provider_id, PredictionStatus.STARTING)
        lifecycle.record_submission(attempt=attempt, prediction=prediction)
    return attempt


def tell(attempt, body, token=None):
    return Client().post(
        f"/hooks/runpod/{token or attempt.callback_token}/", body, content_type="application/json"
    )


def test_an_unsigned_report_wakes_the_chain_and_is_not_believed(published, settings):
    attempt = runpod_attempt(settings, "endpoint/job-1")
    body = json.dumps({"id": "job-1", "status": "COMPLETED", "output": {"images": []}})
    assert tell(attempt, body).status_code == 200
    (member,) = published
    assert member.generation_id == attempt.generation_id
    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.outputs) == (AttemptOutcome.OPEN, [])
    assert attempt.report == {"id": "job-1"}
    assert tell(attempt, body).status_code == 200
    assert len(published) == 1


def test_an_unsigned_report_that_is_too_large_to_read_still_wakes_the_chain(published, settings):
    attempt = runpod_attempt(settings, "endpoint/job-1")
    body = json.dumps({"delayTime": 5, "id": "job-1", "output": {"images": "A" * 2_000_000}})
    assert tell(attempt, body).status_code == 200
    assert len(published) == 1
    attempt.refresh_from_db()
    assert attempt.report == {"id": "job-1"}


def test_one_whose_id_stands_behind_its_pictures_wakes_the_chain_as_well(published, settings):
    attempt = runpod_attempt(settings, "endpoint/job-1")
    body = json.dumps({"output": {"id": "no", "images": "A" * 2_000_000}, "id": "job-1"})
    assert tell(attempt, body).status_code == 200
    assert len(published) == 1
    attempt.refresh_from_db()
    assert attempt.report is None


@pytest.mark.parametrize("provider", ["runpod", "comfyui"])
def test_a_provider_without_credentials_receives_nothing(published, settings, provider):
    settings.RUNPOD_API_KEY = settings.COMFYUI_URL = ""
    get_provider.cache_clear()
    answer = Client().post(f"/hooks/{provider}/{uuid.uuid4()}/", "{}", content_type="text/plain")
    assert answer.status_code == 404


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"id": "../x", "status": "COMPLETED"}'])
def test_what_is_no_job_is_refused(published, settings, body):
    attempt = runpod_attempt(settings)
    assert tell(attempt, body).status_code == 422
    assert published == []


def test_an_unsigned_report_for_nobody_is_not_found(published, settings):
    attempt = runpod_attempt(settings)
    body = json.dumps({"id": "job-1", "status": "COMPLETED"})
    assert tell(attempt, body, token=uuid.uuid4()).status_code == 404
    assert published == []
