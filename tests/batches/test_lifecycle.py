from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from batches import invariants, lifecycle, wake
from batches.models import (
    BATCH_FROM,
    BATCH_OPEN,
    BATCH_TERMINAL,
    GENERATION_FROM,
    GENERATION_OPEN,
    GENERATION_TERMINAL,
    Attempt,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Image,
    Lane,
    Lease,
    Pool,
)
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import make_batch, make_generation, make_user, new_generation
from tests.support import at_once

pytestmark = pytest.mark.django_db

INTERRUPTED = Failure(ErrorClass.INTERRUPTED, "lost", provider_code="PA", raw="a body")
DONE = Prediction(
    "p1", PredictionStatus.SUCCEEDED, outputs=("https://x/y.png",), run_s=1.0, total_s=2.0
)


def start(generation):
    """Admit everything; the generation as it is now and a new attempt."""
    admit()
    generation.refresh_from_db()
    return generation, lifecycle.begin_attempt(generation=generation)


def download(generation):
    generation, attempt = start(generation)
    assert lifecycle.begin_download(
        generation=generation,
        attempt=attempt,
        prediction=DONE,
        cost_usd=Decimal("0.003"),
    )
    generation.refresh_from_db()
    return generation


def new_image(generation, **overrides):
    fields = {
        "generation": generation,
        "owner_id": generation.owner_id,
        "file": f"{generation.pk}.png",
        "thumbnail": f"{generation.pk}.webp",
        "format": "png",
        "width": 8,
        "height": 8,
        "size_bytes": 80,
        "sha256": "0" * 64,
    }
    return Image(**{**fields, **overrides})


def broken():
    codes_without_files = [one for one in invariants.CHECKS if one[2] is not invariants._files]
    return [(code, rule, rows) for code, rule, find in codes_without_files if (rows := find())]


def test_every_status_is_either_open_or_terminal():
    assert {*GENERATION_OPEN, *GENERATION_TERMINAL} == set(GenerationStatus)
    assert {*BATCH_OPEN, *BATCH_TERMINAL} == set(BatchStatus)


def test_no_transition_leaves_a_terminal_status():
    assert not set(GENERATION_TERMINAL) & {s for froms in GENERATION_FROM.values() for s in froms}
    assert not set(BATCH_TERMINAL) & {s for froms in BATCH_FROM.values() for s in froms}


def test_submitting_stores_all_or_nothing():
    user = make_user()
    unstorable = new_generation(prompt=None)
    with pytest.raises(IntegrityError), transaction.atomic():
        lifecycle.submit_batch(
            owner_id=user.pk, generations=[new_generation(), unstorable], settings_asked={}
        )
    assert (Batch.objects.count(), Generation.objects.count(), Lane.objects.count()) == (0, 0, 0)


def test_workers_are_woken_after_the_commit_and_not_before(
    monkeypatch, django_capture_on_commit_callbacks
):
    woken = []
    monkeypatch.setattr(wake, "dispatch_now", lambda: woken.append("dispatch"))
    monkeypatch.setattr(wake, "_tell_now", lambda message: woken.append("tell"))
    with django_capture_on_commit_callbacks(execute=True):
        make_batch()
        assert woken == []
    assert sorted(woken) == ["dispatch", "tell"]


def test_the_provider_being_done_frees_the_slot_before_the_download():
    generation = download(make_batch(size=1).generations.get())
    assert generation.status == "downloading"
    assert not Lease.objects.get().holds_slot
    assert Lane.objects.get().running == 0
    assert {pool.running for pool in Pool.objects.with_running()} == {0}
    attempt = generation.attempts.get()
    assert (attempt.outcome, attempt.provider_id, attempt.outputs) == (
        "succeeded",
        "p1",
        ["https://x/y.png"],
    )
    assert broken() == []


def test_completion_publishes_image_counters_and_status_in_one_step():
    batch = make_batch(size=2)
    generation = download(batch.generations.get(index=0))
    assert lifecycle.complete_generation(generation=generation, images=[new_image(generation)])
    batch.refresh_from_db()
    assert (batch.completed_count, batch.cost_usd) == (1, Decimal("0.003"))
    assert generation.images.count() == 1
    assert broken() == []


def test_a_failing_image_row_leaves_the_generation_as_it_was():
    generation = download(make_batch(size=1).generations.get())
    with pytest.raises(IntegrityError), transaction.atomic():
        lifecycle.complete_generation(
            generation=generation, images=[new_image(generation, size_bytes=0)]
        )
    generation.refresh_from_db()
    assert generation.status == "downloading"
    assert Batch.objects.get().completed_count == 0


def test_only_the_first_of_two_completions_counts():
    generation = download(make_batch(size=1).generations.get())
    assert lifecycle.complete_generation(generation=generation, images=[new_image(generation)])
    assert not lifecycle.complete_generation(generation=generation, images=[new_image(generation)])
    assert Batch.objects.get().completed_count == 1
    assert Image.objects.count() == 1


def test_nothing_moves_a_generation_that_has_ended():
    generation, attempt = start(make_generation())
    assert lifecycle.fail_generation(generation=generation, attempt=attempt, failure=INTERRUPTED)
    version = Generation.objects.get().version
    stale = generation  # still says `processing`
    assert not lifecycle.fail_generation(generation=stale, attempt=attempt, failure=INTERRUPTED)
    assert not lifecycle.begin_download(
        generation=stale,
        attempt=attempt,
        prediction=DONE,
        cost_usd=Decimal(1),
    )
    assert not lifecycle.requeue_generation(
        generation=stale,
        attempt=attempt,
        failure=INTERRUPTED,
        delay_s=0,
        counts_as_retry=True,
    )
    assert not lifecycle.complete_generation(generation=stale, images=[])
    after = Generation.objects.get()
    assert (after.status, after.version) == ("failed", version)
    assert broken() == []


def test_a_late_delivery_does_not_move_what_belongs_to_the_next_admission():
    stale, attempt = start(make_generation())
    fields = {
        "generation": stale,
        "attempt": attempt,
        "failure": INTERRUPTED,
    }
    assert lifecycle.requeue_generation(**fields, delay_s=0, counts_as_retry=True)
    Generation.objects.update(not_before=None)
    Lane.objects.update(queued=1)
    admit()
    assert not lifecycle.requeue_generation(**fields, delay_s=0, counts_as_retry=True)
    assert not lifecycle.fail_generation(**fields)
    assert not lifecycle.begin_download(
        generation=stale,
        attempt=attempt,
        prediction=DONE,
        cost_usd=Decimal(1),
    )
    assert Generation.objects.get().status == "processing"
    assert Lease.objects.count() == 1
    assert broken() == []


def test_a_requeued_generation_keeps_its_history_and_frees_its_slot():
    generation, attempt = start(make_generation())
    assert lifecycle.requeue_generation(
        generation=generation,
        attempt=attempt,
        failure=INTERRUPTED,
        delay_s=5,
        counts_as_retry=True,
    )
    generation.refresh_from_db()
    attempt.refresh_from_db()
    assert (generation.status, generation.retry_count) == ("queued", 1)
    assert generation.not_before is not None
    assert (attempt.outcome, attempt.error_class, attempt.raw) == (
        "failed",
        "interrupted",
        {"body": "a body", "fields": {}},
    )
    assert Lease.objects.count() == 0
    assert Lane.objects.get().queued == 0  # not in line while it waits
    assert broken() == []


def test_releasing_a_lease_twice_changes_nothing():
    generation, attempt = start(make_generation())
    make_batch(generation.owner, size=1)
    admit()
    prediction = Prediction("p1", PredictionStatus.SUCCEEDED, outputs=("x",))
    done = {"attempt": attempt, "prediction": prediction, "cost_usd": Decimal(0)}
    assert lifecycle.begin_download(generation=generation, **done)
    running = Lane.objects.get().running
    assert not lifecycle.begin_download(generation=generation, **done)
    assert not Lease.objects.end(generation.pk).happened  # it held no slot any more
    assert not Lease.objects.end(generation.pk).happened
    assert Lane.objects.get().running == running == 1
    assert Pool.objects.with_running().get(name="system").running == 1


def test_a_released_slot_is_wanted_when_a_lane_could_use_it(settings):
    settings.MAX_PARALLEL_PER_USER = 1
    first = make_generation()
    start(first)
    assert not Lease.objects.end(first.pk).is_wanted
    own_line = make_batch(make_user(), size=2)
    admit()
    lease = Lease.objects.get(owner=own_line.owner)
    assert Lease.objects.end(lease.generation_id).is_wanted
    release = Lease.objects.end(first.pk)
    assert (release.happened, release.is_wanted) == (False, False)


def test_every_transition_raises_the_version():
    generation = make_generation()
    versions = [generation.version]
    generation = download(generation)
    versions.append(generation.version)
    lifecycle.complete_generation(generation=generation, images=[new_image(generation)])
    versions.append(Generation.objects.get().version)
    assert versions == [1, 3, 4]


@pytest.mark.parametrize(
    ("completed", "failed", "cancelled", "status"),
    [
        (3, 0, 0, "completed"),
        (2, 1, 0, "partial"),
        (1, 0, 2, "partial"),
        (0, 3, 0, "failed"),
        (0, 2, 1, "failed"),
        (0, 0, 3, "cancelled"),
    ],
)
def test_a_batch_ends_as_its_counts_say(completed, failed, cancelled, status):
    batch = make_batch(size=3)
    Batch.objects.update(completed_count=completed, failed_count=failed, cancelled_count=cancelled)
    assert lifecycle.finalise_batch(batch_id=batch.pk)
    batch.refresh_from_db()
    assert batch.status == status
    assert batch.finished_at is not None


def test_a_batch_with_open_work_is_not_finalised():
    batch = make_batch(size=3)
    Batch.objects.update(completed_count=2)
    assert not lifecycle.finalise_batch(batch_id=batch.pk)
    assert not Batch.objects.ready_to_finalise().exists()


@pytest.mark.django_db(transaction=True)
def test_a_batch_is_finalised_once_however_many_try():
    batch = make_batch(size=1)
    Batch.objects.update(failed_count=1)
    wins = at_once(*[lambda: lifecycle.finalise_batch(batch_id=batch.pk)] * 8)
    assert sorted(wins) == [False] * 7 + [True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "completed"},
        {"finished_at": Now()},
        {"completed_count": 4},
        {"total_count": 0},
        {"priority": 10},
    ],
)
def test_the_database_refuses_wrong_batches(wrong):
    make_batch(size=3)
    with pytest.raises(IntegrityError), transaction.atomic():
        Batch.objects.update(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "failed", "finished_at": Now()},
        {"status": "completed"},
        {"error_code": "x"},
        {"status": "processing", "not_before": Now()},
        {"progress": 101},
        {"index": 1},
    ],
)
def test_the_database_refuses_wrong_generations(wrong):
    batch = make_batch(size=2)
    with pytest.raises(IntegrityError), transaction.atomic():
        batch.generations.filter(index=0).update(**wrong)


def test_the_database_refuses_a_second_open_attempt():
    generation, _ = start(make_generation())
    with pytest.raises(IntegrityError), transaction.atomic():
        Attempt.objects.create(generation=generation, number=9, provider="replicate", model="m")


def test_the_database_refuses_the_same_prediction_twice():
    _, one = start(make_generation())
    _, two = start(make_generation())
    assert lifecycle.record_submission(attempt=one, prediction=DONE)
    assert not lifecycle.record_submission(attempt=two, prediction=DONE)
    assert not lifecycle.record_submission(attempt=one, prediction=DONE)
    with pytest.raises(IntegrityError), transaction.atomic():
        Attempt.objects.filter(pk=two.pk).update(provider_id=DONE.id, submitted_at=Now())


def test_progress_never_moves_backwards():
    generation, _ = start(make_generation())
    lease = generation.lease
    work = Generation.objects.take_turn(generation.pk, lease.pk, lease.turn, holds_slot=True)
    lifecycle.put_off(work=work, progress=60)
    lifecycle.put_off(work=work, progress=40)
    generation.refresh_from_db()
    assert generation.progress == 60


def test_what_an_invariant_forbids_is_found():
    batch = make_batch(size=3)
    admit()
    Lease.objects.first().delete()
    Batch.objects.update(completed_count=1)
    Lane.objects.update(queued=5)
    assert {code for code, _, _ in broken()} == {"I3", "I4"}
    assert batch.pk
