"""Pausing, resuming, cancelling and deleting, as their owner asks for it."""

import uuid
from decimal import Decimal

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from batches import invariants, lifecycle
from batches.models import Batch, Generation, Image, Lane
from batches.scheduling import admit
from generation.provider import Prediction, PredictionStatus
from tests.batches.api.support import (
    BATCHES,
    GENERATIONS,
    IMAGES,
    invalid,
    problem,
    refused,
    rows,
)
from tests.factories import make_batch, make_generation, make_image

pytestmark = pytest.mark.django_db

ACTIONS = ("pause", "resume", "cancel", "retry")
DONE = {"pause": "paused", "resume": "resumed", "cancel": "cancelled", "retry": "retried"}
PLACES = {"batch": BATCHES, "generation": GENERATIONS}
MAKERS = {"batch": make_batch, "generation": make_generation}
MODELS = {"batch": Batch, "generation": Generation}
ENDED = ("completed", "failed", "cancelled")


def statuses(body):
    return [item["status"] for item in body["items"]]


def force(row, status, **fields):
    """Put a row into a state, whatever it takes to get there."""
    fields.setdefault("finished_at", Now() if status in (*ENDED, "partial") else None)
    if isinstance(row, Generation):
        fields["error_code"] = "x" if status == "failed" else ""
    type(row).objects.filter(pk=row.pk).update(status=status, **fields)
    row.refresh_from_db()
    return row


@pytest.fixture
def act(post):
    """An action on a batch or a generation; its path ends so."""

    def call(row, action, body=None):
        path = BATCHES if isinstance(row, Batch) else GENERATIONS
        return post(f"{path}{row.pk}/{action}/", {} if body is None else body)

    return call


@pytest.fixture
def done(act, api):
    """The same, which must be done; the answer is the object as it is afterwards."""

    def call(row, action, body=None):
        answer = act(row, action, body)
        assert answer.status_code == 200, answer.content
        path = BATCHES if isinstance(row, Batch) else GENERATIONS
        assert answer.json() == api.get(f"{path}{row.pk}/").json()
        assert [one for one in invariants.check() if one.broken] == []
        return answer.json()

    return call


@pytest.fixture
def delete(api, django_capture_on_commit_callbacks):
    def call(row):
        path = BATCHES if isinstance(row, Batch) else GENERATIONS
        with django_capture_on_commit_callbacks(execute=True):
            return api.delete(f"{path}{row.pk}/")

    return call


@pytest.fixture
def running(owner):
    """A batch of three of which two run."""
    batch = make_batch(owner)
    Lane.objects.filter(owner=owner).update(cap=2, cap_is_own=True)
    admit()
    batch.refresh_from_db()
    return batch


# --- Batches ------------------------------------------------------------------------------------


def test_nothing_more_of_a_paused_batch_is_started(done, running):
    body = done(running, "pause")
    assert (body["status"], statuses(body)) == ("paused", ["processing", "processing", "pending"])
    Lane.objects.update(cap=9)
    assert admit().admitted == []


def test_a_resumed_batch_goes_on(done, owner):
    batch = make_batch(owner, size=2)
    assert done(batch, "pause")["status"] == "paused"
    body = done(batch, "resume")
    assert (body["status"], statuses(body)) == ("pending", ["queued", "queued"])
    assert len(admit().admitted) == 2


def test_a_batch_that_only_waits_is_cancelled_at_once(done, owner):
    body = done(make_batch(owner, size=2), "cancel")
    assert (body["status"], statuses(body)) == ("cancelled", ["cancelled", "cancelled"])
    assert (body["cancelled_count"], body["progress"]) == (2, 100)
    assert body["cancel_requested_at"] is not None
    assert Lane.objects.get().queued == 0


def test_what_runs_of_a_cancelled_batch_ends_when_its_provider_has_stopped(done, running, queued):
    body = done(running, "cancel")
    assert (body["status"], body["cancelled_count"]) == ("processing", 1)
    assert statuses(body) == ["processing", "processing", "cancelled"]
    assert all(item["cancel_requested_at"] for item in body["items"])
    assert queued()["control"] >= 1


def test_a_deleted_batch_is_gone_with_its_images(delete, api, owner, media):
    image = make_image(make_batch(owner, size=1).generations.get())
    batch = image.generation.batch
    assert [path for path in media.rglob("*") if path.is_file()]
    answer = delete(batch)
    assert (answer.status_code, answer.content) == (204, b"")
    for path in (
        f"{BATCHES}{batch.pk}/",
        f"{GENERATIONS}{image.generation_id}/",
        f"{IMAGES}{image.pk}/",
    ):
        problem(api.get(path), 404, "not_found")
    assert api.get(BATCHES).json()["results"] == []
    assert not Image.objects.exists()
    assert not [path for path in media.rglob("*") if path.is_file()]


def test_what_runs_of_a_deleted_batch_is_hidden_at_once_and_cancelled(delete, api, running):
    assert delete(running).status_code == 204
    problem(api.get(f"{BATCHES}{running.pk}/"), 404, "not_found")
    assert api.get(GENERATIONS).json()["results"] == []
    left = Generation.objects.filter(status="processing")
    assert left.filter(cancel_requested_at__isnull=False, deleted_at__isnull=False).count() == 2


# --- Generations --------------------------------------------------------------------------------


def test_a_generation_is_held_back_and_put_in_line_again(done, owner):
    generation = make_generation(owner)
    assert done(generation, "pause")["status"] == "pending"
    assert admit().admitted == []
    assert done(generation, "resume")["status"] == "queued"
    assert len(admit().admitted) == 1


def test_a_generation_that_waits_is_cancelled_at_once(done, owner):
    body = done(make_generation(owner), "cancel")
    assert body["status"] == "cancelled"
    assert body["cancel_requested_at"] is not None


def test_a_generation_that_runs_is_cancelled_when_its_provider_has_stopped(done, running):
    body = done(running.generations.get(index=0), "cancel")
    assert body["status"] == "processing"
    assert body["cancel_requested_at"] is not None


def test_an_item_is_paused_and_cancelled_without_the_others(done, api, owner):
    batch = make_batch(owner)
    done(batch.generations.get(index=0), "pause")
    done(batch.generations.get(index=1), "cancel")
    body = api.get(f"{BATCHES}{batch.pk}/").json()
    assert (body["status"], statuses(body)) == ("pending", ["pending", "cancelled", "queued"])


def test_a_deleted_generation_is_gone_with_its_images(delete, api, owner, media):
    image = make_image(make_generation(owner))
    answer = delete(image.generation)
    assert (answer.status_code, answer.content) == (204, b"")
    problem(api.get(f"{GENERATIONS}{image.generation_id}/"), 404, "not_found")
    problem(api.get(f"{IMAGES}{image.pk}/"), 404, "not_found")
    assert not [path for path in media.rglob("*") if path.is_file()]


def test_a_generation_of_a_batch_is_deleted_with_its_batch_only(delete, owner):
    generation = make_batch(owner).generations.get(index=1)
    before = rows()
    body = problem(delete(generation), 409, "part_of_batch")
    assert body["errors"] == []
    assert rows() == before


# --- What cannot be done ------------------------------------------------------------------------

NEVER = {
    "batch": [
        *((action, status) for action in ("pause", "resume", "cancel") for status in ENDED),
        *((action, "partial") for action in ("pause", "resume", "cancel")),
        ("pause", "paused"),
        *(("resume", status) for status in ("pending", "processing")),
    ],
    "generation": [
        *((action, status) for action in ("pause", "resume", "cancel") for status in ENDED),
        *(("pause", status) for status in ("pending", "processing", "downloading")),
        *(("resume", status) for status in ("queued", "processing", "downloading")),
        *(("retry", s) for s in ("pending", "queued", "processing", "downloading", "completed")),
    ],
}


@pytest.mark.parametrize(
    ("kind", "action", "status"), [(kind, *one) for kind, all_ in NEVER.items() for one in all_]
)
def test_what_cannot_be_done_is_refused_in_words_and_changes_nothing(
    kind, action, status, act, owner
):
    row = force(MAKERS[kind](owner), status)
    before = rows()
    detail = f"A {status} {kind} cannot be {DONE[action]}."
    refused(act(row, action), status, detail)
    assert rows() == before


@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_a_batch_that_is_being_cancelled_cannot_be_turned_back(action, act, done, running):
    done(running, "cancel")
    before = rows()
    detail = f"A batch that is being cancelled cannot be {DONE[action]}."
    refused(act(running, action), "processing", detail)
    assert rows() == before


@pytest.mark.parametrize("action", ACTIONS)
def test_a_generation_that_is_being_cancelled_cannot_be_turned_back(action, act, done, running):
    generation = running.generations.get(index=0)
    done(generation, "cancel")
    before = rows()
    detail = f"A generation that is being cancelled cannot be {DONE[action]}."
    refused(act(generation, action), "processing", detail)
    assert rows() == before


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_a_batch_that_is_about_to_end_is_left_alone(action, act, owner):
    batch = make_batch(owner, size=1)
    generation = force(batch.generations.get(), "cancelled")
    Lane.objects.dequeue(generation.owner_id, 1)
    Batch.objects.filter(pk=batch.pk).update(cancelled_count=1)
    detail = f"A batch of which everything has ended cannot be {DONE[action]}."
    refused(act(batch, action), "pending", detail)


def test_an_item_of_a_paused_batch_is_not_resumed_alone(act, done, owner):
    batch = make_batch(owner)
    done(batch, "pause")
    detail = "A generation of a paused batch cannot be resumed."
    refused(act(batch.generations.get(index=0), "resume"), "pending", detail)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("action", [*ACTIONS, "delete"])
def test_what_is_not_there_or_has_been_deleted_is_not_found(kind, action, act, delete, owner):
    unknown = MODELS[kind](pk=uuid.uuid4())
    gone = MAKERS[kind](owner)
    # Something of it runs, so that its row is still there.
    admit()
    assert delete(gone).status_code == 204
    assert MODELS[kind].objects.filter(pk=gone.pk).exists()
    before = rows()
    for row in (unknown, gone):
        answer = delete(row) if action == "delete" else act(row, action)
        problem(answer, 404, "not_found")
    assert rows() == before


# --- Bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("action", ["pause", "resume", "cancel"])
def test_an_action_takes_no_fields(kind, action, act, owner):
    row = MAKERS[kind](owner)
    before = rows()
    errors = invalid(act(row, action, {"ids": [], "x": 1}))
    assert {field: code for field, (code, _) in errors.items()} == {
        "ids": "unknown_field",
        "x": "unknown_field",
    }
    assert rows() == before


@pytest.mark.parametrize("body", ["[]", "null", "7", '"pause"', "[{}]"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_body_that_is_no_object_is_refused(action, body, api, owner):
    path = f"{BATCHES}{make_batch(owner).pk}/{action}/"
    assert list(invalid(api.post(path, body, content_type="application/json"))) == [None]


@pytest.mark.parametrize("content_type", ["application/json", "", "text/plain"])
@pytest.mark.parametrize("kind", PLACES)
def test_an_empty_body_is_as_good_as_none(kind, content_type, api, owner):
    row = MAKERS[kind](owner)
    answer = api.generic("POST", f"{PLACES[kind]}{row.pk}/pause/", b"", content_type)
    assert answer.status_code == 200, answer.content


# --- How much work it is ------------------------------------------------------------------------


def waiting(owner, size):
    return make_batch(owner, size)


def paused(owner, size):
    batch = make_batch(owner, size)
    assert lifecycle.pause_batch(batch=batch)
    return batch


def at_the_provider(owner, size):
    batch = make_batch(owner, size)
    while batch.generations.filter(status="queued").exists():
        admit()
    return batch


def downloading(owner, size):
    batch = at_the_provider(owner, size)
    for generation in Generation.objects.filter(batch=batch):
        attempt = lifecycle.begin_attempt(generation=generation)
        prediction = Prediction(uuid.uuid4().hex, PredictionStatus.SUCCEEDED, outputs=("x",))
        assert lifecycle.begin_download(
            generation=generation, attempt=attempt, prediction=prediction, cost_usd=Decimal(0)
        )
    return batch


def completed(owner, size):
    batch = make_batch(owner, size)
    for generation in batch.generations.all():
        make_image(generation)
    return force(batch, "completed", completed_count=size)


@pytest.mark.usefixtures("warm_caches")
@pytest.mark.parametrize(
    ("action", "make"),
    [
        *(("pause", make) for make in (waiting, at_the_provider)),
        ("resume", paused),
        *(("cancel", make) for make in (waiting, paused, at_the_provider, downloading)),
        *(("delete", make) for make in (waiting, at_the_provider, downloading, completed)),
    ],
)
def test_an_action_takes_the_same_number_of_queries_for_any_size(
    action, make, post, delete, owner, settings
):
    settings.MAX_PARALLEL_PER_USER = settings.MAX_PARALLEL_GLOBAL = 100

    def queries(size):
        batch = make(owner, size)
        with CaptureQueriesContext(connection) as captured:
            if action == "delete":
                assert delete(batch).status_code == 204
            else:
                assert post(f"{BATCHES}{batch.pk}/{action}/", {}).status_code == 200
        return [query["sql"] for query in captured]

    queries(1)  # the first of all makes the pool
    few, many = queries(5), queries(25)
    assert len(few) == len(many), "\n".join(many)
