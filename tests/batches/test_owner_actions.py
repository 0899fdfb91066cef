"""What an owner may do with a batch or a generation, at every place where it may stand."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.core.files.base import ContentFile
from django.db import transaction
from django.db.models.functions import Now

from batches import invariants, lifecycle
from batches.models import (
    Attempt,
    Batch,
    ChannelAccount,
    Discarded,
    Generation,
    Image,
    Lane,
    Lease,
    Pool,
    Publication,
)
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import (
    make_batch,
    make_generation,
    make_image,
    make_publication,
    make_user,
    new_generation,
)
from tests.support import in_background, wait_for_locks

pytestmark = pytest.mark.django_db
DONE = Prediction("p1", PredictionStatus.SUCCEEDED, outputs=("https://x/y.png",))
STOPPED = Prediction(
    "p1", PredictionStatus.FAILED, failure=Failure(ErrorClass.CANCELED, "cancelled")
)
INTERRUPTED = Failure(ErrorClass.INTERRUPTED, "lost")
INVALID = Failure(ErrorClass.INVALID_INPUT, "no")


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


def statuses(batch):
    return list(batch.generations.order_by("index").values_list("status", flat=True))


def running(batch):
    """Admit what may run; the first of the batch with an attempt under way."""
    admit()
    generation = batch.generations.get(index=0)
    attempt = lifecycle.begin_attempt(generation=generation)
    lifecycle.record_submission(attempt=attempt, prediction=DONE)
    return generation, attempt


def downloading(batch):
    generation, attempt = running(batch)
    assert lifecycle.begin_download(
        generation=generation, attempt=attempt, prediction=DONE, cost_usd=Decimal("0.003")
    )
    generation.refresh_from_db()
    return generation, attempt


def fail(generation, failure=INVALID):
    generation.refresh_from_db()
    attempt = generation.attempts.filter(number=generation.attempt_count).first()
    assert lifecycle.fail_generation(generation=generation, attempt=attempt, failure=failure)


# --- Pause and resume ---------------------------------------------------------------------------


def test_a_paused_batch_starts_nothing_more_and_goes_on_when_resumed():
    batch = make_batch(size=5)
    admit()
    assert lifecycle.pause_batch(batch=batch)
    assert statuses(batch) == ["processing"] * 3 + ["pending"] * 2
    fail(batch.generations.get(index=0))
    assert admit().admitted == []
    batch.refresh_from_db()
    assert batch.status == "paused"
    assert lifecycle.resume_batch(batch=batch)
    batch.refresh_from_db()
    assert batch.status == "processing"
    assert len(admit().admitted) == 1


def test_a_batch_that_is_paused_before_it_starts_has_its_chord_when_it_does():
    batch = make_batch(size=2)
    assert lifecycle.pause_batch(batch=batch)
    assert admit().admitted == []
    assert lifecycle.resume_batch(batch=batch)
    assert Batch.objects.get().status == "pending"
    assert [member.chord_size for member in admit().admitted] == [2, None]


def test_what_is_requeued_in_a_paused_batch_waits_with_the_others():
    batch = make_batch(size=2)
    generation, attempt = running(batch)
    assert lifecycle.pause_batch(batch=batch)
    assert lifecycle.requeue_generation(
        generation=generation,
        attempt=attempt,
        failure=INTERRUPTED,
        delay_s=0,
        counts_as_retry=True,
    )
    Generation.objects.filter(not_before__isnull=False).update(
        not_before=Now() - timedelta(seconds=1)
    )
    assert admit().admitted == []
    assert statuses(batch) == ["pending", "processing"]
    assert lifecycle.resume_batch(batch=batch)
    assert [member.index for member in admit().admitted] == [0]


def test_backoff_goes_on_while_a_batch_is_paused():
    batch = make_batch(size=1)
    generation, attempt = running(batch)
    lifecycle.requeue_generation(
        generation=generation,
        attempt=attempt,
        failure=INTERRUPTED,
        delay_s=60,
        counts_as_retry=True,
    )
    assert lifecycle.pause_batch(batch=batch)
    assert lifecycle.resume_batch(batch=batch)
    assert admit().admitted == []
    assert Generation.objects.get().not_before is not None


def test_a_paused_batch_of_which_everything_ends_is_over():
    batch = make_batch(size=1)
    running(batch)
    assert lifecycle.pause_batch(batch=batch)
    fail(batch.generations.get())
    assert lifecycle.finalise_batch(batch_id=batch.pk)
    assert Batch.objects.get().status == "failed"


@pytest.mark.parametrize("action", [lifecycle.pause_batch, lifecycle.cancel_batch])
def test_what_has_ended_can_be_neither_paused_nor_cancelled(action):
    batch = make_batch(size=1)
    running(batch)
    fail(batch.generations.get())
    before = Batch.objects.values().get()
    assert not action(batch=batch)  # nor while nobody has finalised it yet
    assert Batch.objects.values().get() == before
    lifecycle.finalise_batch(batch_id=batch.pk)
    assert not action(batch=batch)


def test_only_what_is_paused_can_be_resumed():
    batch = make_batch(size=1)
    assert not lifecycle.resume_batch(batch=batch)
    assert lifecycle.pause_batch(batch=batch)
    assert not lifecycle.pause_batch(batch=batch)
    assert lifecycle.resume_batch(batch=batch)
    assert not lifecycle.resume_batch(batch=batch)


def test_a_single_generation_can_be_held_back_while_it_waits():
    generation = make_generation()
    assert lifecycle.pause_generation(generation=generation)
    assert admit().admitted == []
    assert lifecycle.resume_generation(generation=generation)
    assert len(admit().admitted) == 1
    assert not lifecycle.pause_generation(generation=generation)
    assert not lifecycle.resume_generation(generation=generation)


def test_an_item_of_a_paused_batch_is_not_resumed_alone():
    batch = make_batch(size=2)
    lifecycle.pause_batch(batch=batch)
    assert not lifecycle.resume_generation(generation=batch.generations.get(index=0))


# --- Cancel -------------------------------------------------------------------------------------


def test_cancelling_ends_what_waits_and_asks_the_rest_to_stop():
    batch = make_batch(size=5)
    generation, attempt = running(batch)
    assert lifecycle.cancel_batch(batch=batch)
    assert statuses(batch) == ["processing"] * 3 + ["cancelled"] * 2
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled_count) == ("processing", 2)
    assert batch.cancel_requested_at is not None
    assert Lease.objects.filter(holds_slot=True).count() == 3
    generation.refresh_from_db()
    assert generation.cancel_requested_at is not None
    assert lifecycle.confirm_cancel(generation=generation, attempt=attempt, result=STOPPED)
    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.error_class) == ("failed", "canceled")
    for other in batch.generations.filter(status="processing"):
        assert lifecycle.confirm_cancel(generation=other, attempt=None, result=INTERRUPTED)
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled_count) == ("cancelled", 5)
    assert Lease.objects.count() == 0


def test_a_batch_that_has_not_begun_is_cancelled_at_once():
    batch = make_batch(size=3)
    assert lifecycle.cancel_batch(batch=batch)
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled_count) == ("cancelled", 3)
    assert not lifecycle.cancel_batch(batch=batch)
    assert Lane.objects.get().queued == 0


def test_what_is_to_be_cancelled_goes_nowhere_else():
    batch = make_batch(size=1)
    generation, attempt = running(batch)
    assert lifecycle.cancel_batch(batch=batch)
    fields = {"generation": generation, "attempt": attempt}
    assert not lifecycle.begin_download(**fields, prediction=DONE, cost_usd=Decimal(1))
    assert not lifecycle.fail_generation(**fields, failure=INVALID)
    assert not lifecycle.requeue_generation(
        **fields, failure=INTERRUPTED, delay_s=0, counts_as_retry=True
    )
    assert lifecycle.confirm_cancel(**fields, result=DONE, cost_usd=Decimal("0.003"))
    lifecycle.finalise_batch(batch_id=batch.pk)
    batch.refresh_from_db()
    # It was paid for, and that stays on record.
    assert (batch.status, batch.cost_usd) == ("cancelled", Decimal("0.003"))
    assert generation.attempts.get().outcome == "succeeded"


def test_a_download_is_cancelled_at_once_and_leaves_no_file(media):
    batch = make_batch(size=1)
    generation, _ = downloading(batch)
    file = media / str(generation.owner_id) / str(batch.pk) / str(generation.pk) / "0.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    assert lifecycle.cancel_batch(batch=batch)
    assert statuses(batch) == ["cancelled"]
    assert Discarded.objects.count() == 1
    assert not lifecycle.complete_generation(generation=generation, images=[])


def test_an_item_is_cancelled_alone_and_the_batch_ends_with_the_others():
    batch = make_batch(size=2)
    assert lifecycle.cancel_generation(generation=batch.generations.get(index=1))
    assert not lifecycle.cancel_generation(generation=batch.generations.get(index=1))
    generation, _ = downloading(batch)
    image = Image(
        generation=generation,
        owner_id=generation.owner_id,
        file="a",
        thumbnail="b",
        format="png",
        width=1,
        height=1,
        size_bytes=1,
        sha256="0" * 64,
    )
    # No chord waits for the item that never ran, so its last member ends the batch.
    assert admit().admitted == []
    assert not Batch.objects.get().has_chord
    image.file.save("0.png", _file(), save=False)
    image.thumbnail.save("0.thumbnail.webp", _file(), save=False)
    assert lifecycle.complete_generation(generation=generation, images=[image])
    batch.refresh_from_db()
    assert (batch.status, batch.completed_count, batch.cancelled_count) == ("partial", 1, 1)


def _file():
    return ContentFile(b"x")


def test_a_batch_that_was_cancelled_before_it_began_begins_when_it_is_tried_again():
    batch = make_batch(size=1)
    lifecycle.cancel_batch(batch=batch)
    assert lifecycle.retry_generations(
        batch=batch, generations=list(Generation.objects.filter(batch=batch))
    )
    assert Batch.objects.get().status == "pending"
    admit()
    batch.refresh_from_db()
    assert (batch.status, batch.started_at is None) == ("processing", False)


def test_what_has_moved_on_begins_no_attempt():
    generation = make_generation()
    admit()
    generation.refresh_from_db()
    lifecycle.cancel_generation(generation=generation)
    assert lifecycle.begin_attempt(generation=generation) is None
    assert not Attempt.objects.exists()


def test_nobody_ends_a_generation_over_an_attempt_that_he_does_not_know_of():
    generation = make_generation()
    admit()
    generation.refresh_from_db()
    lifecycle.begin_attempt(generation=generation)
    assert not lifecycle.fail_generation(generation=generation, attempt=None, failure=INVALID)
    lifecycle.cancel_generation(generation=generation)
    assert not lifecycle.confirm_cancel(generation=generation, attempt=None, result=INTERRUPTED)
    generation.refresh_from_db()
    assert generation.status == "processing"


# --- Retry --------------------------------------------------------------------------------------


def test_failed_items_are_tried_again_and_the_batch_is_open_once_more():
    batch = make_batch(size=2)
    admit()
    for generation in batch.generations.all():
        fail(generation)
    lifecycle.finalise_batch(batch_id=batch.pk)
    failed = list(batch.generations.all())
    assert lifecycle.retry_generations(batch=batch, generations=failed) == 2
    batch.refresh_from_db()
    assert (batch.status, batch.failed_count, batch.finished_at) == ("processing", 0, None)
    assert statuses(batch) == ["queued", "queued"]
    members = admit().admitted
    assert [member.has_chord for member in members] == [False, False]
    for generation in batch.generations.all():
        assert (generation.attempt_count, generation.retry_count) == (2, 0)
        fail(generation)
    batch.refresh_from_db()
    assert (batch.status, batch.failed_count) == ("failed", 2)


def test_a_retry_may_change_the_settings_and_the_attempts_keep_the_old_ones():
    generation = make_generation()
    admit()
    generation.refresh_from_db()
    attempt = lifecycle.begin_attempt(generation=generation)
    lifecycle.fail_generation(generation=generation, attempt=attempt, failure=INVALID)
    plan = new_generation(settings={"steps": 2}, input={"prompt": "x", "steps": 2}, seed=9)
    generation.refresh_from_db()
    assert (
        lifecycle.retry_generations(
            batch=None, generations=[generation], plans={generation.pk: plan}
        )
        == 1
    )
    generation.refresh_from_db()
    assert (generation.settings, generation.input, generation.seed) == (
        {"steps": 2},
        {"prompt": "x", "steps": 2},
        9,
    )
    kept = Attempt.objects.get()
    assert (kept.input, kept.settings["model"]) == ({"prompt": "a lighthouse"}, generation.model)


def test_only_what_failed_or_was_cancelled_is_tried_again():
    batch = make_batch(size=1)
    assert not lifecycle.retry_generations(batch=batch, generations=list(batch.generations.all()))
    lifecycle.cancel_batch(batch=batch)
    assert lifecycle.retry_generations(batch=batch, generations=list(batch.generations.all()))
    batch.refresh_from_db()
    assert (batch.status, batch.cancelled_count, batch.cancel_requested_at) == (
        "pending",
        0,
        None,
    )


def test_nothing_is_tried_again_while_its_batch_is_being_cancelled():
    batch = make_batch(size=2)
    generation, _ = running(batch)
    fail(generation)
    assert lifecycle.cancel_batch(batch=batch)
    assert not lifecycle.retry_generations(batch=batch, generations=[generation])
    assert statuses(batch) == ["failed", "processing"]


def test_what_was_deleted_is_not_tried_again_while_it_is_still_there():
    batch = make_batch(size=1)
    admit()
    assert lifecycle.delete_batch(batch=batch)
    generation = batch.generations.get()
    assert lifecycle.confirm_cancel(generation=generation, attempt=None, result=INTERRUPTED)
    assert not lifecycle.retry_generations(batch=batch, generations=[generation])
    assert not lifecycle.retry_generations(batch=None, generations=[generation])
    assert lifecycle.remove_deleted(limit=10) == 1


def test_a_retry_in_a_paused_batch_waits():
    batch = make_batch(size=4)
    generation, _ = running(batch)
    fail(generation)
    assert lifecycle.pause_batch(batch=batch)
    assert lifecycle.retry_generations(batch=batch, generations=[generation]) == 1
    assert statuses(batch)[0] == "pending"
    assert admit().admitted == []
    assert Batch.objects.get().status == "paused"


def test_the_cost_of_what_is_tried_again_is_counted_once():
    batch = make_batch(size=1)
    generation, attempt = downloading(batch)
    lifecycle.fail_generation(generation=generation, attempt=attempt, failure=INVALID)
    lifecycle.finalise_batch(batch_id=batch.pk)
    assert Batch.objects.get().cost_usd == Decimal("0.003")
    generation.refresh_from_db()
    lifecycle.retry_generations(batch=batch, generations=[generation])
    assert Batch.objects.get().cost_usd == 0
    admit()
    fail(generation)
    assert Batch.objects.get().cost_usd == Decimal("0.003")


# --- Delete -------------------------------------------------------------------------------------


def test_a_deleted_batch_is_gone_with_its_files(media, django_capture_on_commit_callbacks):
    image = make_image(make_batch(size=1).generations.get())
    batch = Batch.objects.get()
    Batch.objects.update(completed_count=1)
    lifecycle.finalise_batch(batch_id=batch.pk)
    with django_capture_on_commit_callbacks(execute=True):
        assert lifecycle.delete_batch(batch=batch)
    assert not Batch.objects.exists()
    assert not Generation.objects.exists()
    assert not [path for path in media.rglob("*") if path.is_file()]
    assert not lifecycle.delete_batch(batch=batch)
    assert image.pk


def test_what_runs_of_a_deleted_batch_is_stopped_first():
    batch = make_batch(size=4)
    generation, attempt = running(batch)
    assert lifecycle.delete_batch(batch=batch)
    assert not Batch.objects.owned_by(batch.owner_id).exists()
    assert not Generation.objects.owned_by(batch.owner_id).exists()
    assert statuses(batch) == ["processing"] * 3 + ["cancelled"]
    assert lifecycle.remove_deleted(limit=10) == 0
    lifecycle.confirm_cancel(generation=generation, attempt=attempt, result=STOPPED)
    for other in batch.generations.filter(status="processing"):
        lifecycle.confirm_cancel(generation=other, attempt=None, result=INTERRUPTED)
    assert lifecycle.remove_deleted(limit=10) == 1
    assert not Batch.objects.exists()
    assert not Attempt.objects.exists()
    assert Lane.objects.get().running == 0


def test_a_single_generation_is_deleted_and_an_item_is_not():
    generation = make_generation()
    assert lifecycle.delete_generation(generation=generation)
    assert not Generation.objects.exists()
    batch = make_batch(size=1)
    assert not lifecycle.delete_generation(generation=batch.generations.get())


def test_a_running_single_generation_is_stopped_and_then_removed():
    generation = make_generation()
    admit()
    assert lifecycle.delete_generation(generation=generation)
    generation.refresh_from_db()
    assert lifecycle.confirm_cancel(generation=generation, attempt=None, result=INTERRUPTED)
    assert lifecycle.remove_deleted(limit=10) == 1
    assert not Generation.objects.exists()


def being_published(generation):
    image = completed(generation)
    publish(image)
    return image


def completed(generation):
    Batch.objects.filter(generations=generation).update(completed_count=1)
    return make_image(generation)


def publish(image):
    ChannelAccount.objects.create(owner=image.owner, channel="printify")
    make_publication(image)


def end_publications():
    Publication.objects.update(status="published", published_at=Now(), finished_at=Now())


def test_a_batch_is_not_deleted_while_an_image_of_it_is_being_published(
    media, django_capture_on_commit_callbacks
):
    batch = make_batch(size=3)
    being_published(batch.generations.get(index=1))
    running(batch)
    before = [list(one.objects.order_by("pk").values()) for one in (Batch, Generation, Image)]
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        assert not lifecycle.delete_batch(batch=batch)
    assert callbacks == []
    after = [list(one.objects.order_by("pk").values()) for one in (Batch, Generation, Image)]
    assert after == before
    assert Lane.objects.get().running == 2
    end_publications()
    assert lifecycle.delete_batch(batch=batch)


def test_a_generation_is_not_deleted_while_its_image_is_being_published():
    generation = make_generation()
    image = being_published(generation)
    assert not lifecycle.delete_generation(generation=generation)
    generation.refresh_from_db()
    assert (generation.deleted_at, generation.cancel_requested_at) == (None, None)
    assert Image.objects.get() == image
    end_publications()
    assert lifecycle.delete_generation(generation=generation)
    assert Publication.objects.get().image_id is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("of_a_batch", [True, False])
def test_a_deletion_waits_for_a_publication_that_is_being_begun(of_a_batch):
    batch = make_batch(size=1) if of_a_batch else None
    generation = batch.generations.get() if batch else make_generation()
    image = completed(generation)

    def delete():
        if batch:
            return lifecycle.delete_batch(batch=batch)
        return lifecycle.delete_generation(generation=generation)

    with transaction.atomic():
        list(Image.objects.select_for_update(no_key=True))
        deletion = in_background(delete)
        wait_for_locks()
        publish(image)
    assert deletion.result(30) is False
    assert Image.objects.get() == image


# --- One at a time ------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_an_action_waits_for_an_admission_and_an_admission_for_an_action():
    make_generation()
    admit()
    batch = make_batch(make_user(), size=2)
    with transaction.atomic():
        Pool.objects.hold_admissions()
        action = in_background(lambda: lifecycle.pause_batch(batch=batch))
        wait_for_locks()
    assert action.result(30)
    assert lifecycle.resume_batch(batch=batch)
    with transaction.atomic():
        Pool.objects.hold_admissions()
        admission = in_background(admit)
        wait_for_locks()
    assert {one.generation_id for one in admission.result(30).admitted} == {
        *batch.generations.values_list("pk", flat=True)
    }
