from functools import partial

import pytest

from batches import lifecycle, wake
from batches.models import Batch, Event, Generation
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure
from tests.factories import make_batch, make_generation, make_user
from tests.support import at_once

UNAVAILABLE = Failure(ErrorClass.PROVIDER_UNAVAILABLE, "away")


@pytest.fixture
def told(monkeypatch):
    """What is published, in order."""
    told = []
    monkeypatch.setattr(wake, "_tell_now", told.append)
    return told


def log(batch):
    rows = Event.objects.filter(batch_id=batch.pk).order_by("version")
    return list(rows.values_list("version", "kind", "status"))


def fail(generation):
    row = Generation.objects.get(pk=generation.pk)
    assert lifecycle.fail_generation(generation=row, attempt=None, failure=UNAVAILABLE)


@pytest.mark.django_db
def test_every_transition_of_a_batch_is_logged_with_its_version():
    batch = make_batch(size=2)
    admit()
    first, second = batch.generations.order_by("index")
    fail(first)
    assert lifecycle.pause_batch(batch=batch)
    assert lifecycle.resume_batch(batch=batch)
    fail(second)
    assert lifecycle.finalise_batch(batch_id=batch.pk)
    assert log(batch) == [
        (1, "batch_progress", "pending"),
        (2, "batch_progress", "processing"),
        (3, "batch_job_complete", "failed"),
        (4, "batch_progress", "paused"),
        (5, "batch_progress", "processing"),
        (6, "batch_job_complete", "failed"),
        (7, "batch_progress", "failed"),
    ]
    assert Batch.objects.get(pk=batch.pk).version == 7
    assert set(Event.objects.values_list("owner_id", flat=True)) == {batch.owner_id}


@pytest.mark.django_db
def test_generations_that_end_together_have_a_version_each():
    batch = make_batch(size=3)
    assert lifecycle.cancel_batch(batch=batch)
    ended = Event.objects.filter(batch_id=batch.pk, kind="batch_job_complete")
    assert set(ended.values_list("generation_id", flat=True)) == set(
        batch.generations.values_list("pk", flat=True)
    )
    assert sorted(ended.values_list("version", flat=True)) == [3, 4, 5]
    # With nobody left to complete the chord, the last one ends the batch.
    assert log(batch)[-1] == (6, "batch_progress", "cancelled")


@pytest.mark.django_db
def test_an_action_that_is_refused_logs_nothing():
    batch = make_batch(size=1)
    assert lifecycle.cancel_batch(batch=batch)
    before = log(batch)
    assert not lifecycle.cancel_batch(batch=batch)
    assert not lifecycle.pause_batch(batch=batch)
    assert log(batch) == before


@pytest.mark.django_db
def test_a_single_generation_is_logged_when_it_ends():
    generation = make_generation()
    admit()
    fail(generation)
    (event,) = Event.objects.all()
    row = Generation.objects.get(pk=generation.pk)
    assert (event.batch_id, event.generation_id) == (None, generation.pk)
    assert (event.status, event.version) == ("failed", row.version)


@pytest.mark.django_db
def test_a_deletion_is_logged_and_outlives_the_batch():
    batch = make_batch(size=1)
    assert lifecycle.delete_batch(batch=batch)
    assert not Batch.objects.filter(pk=batch.pk).exists()
    assert log(batch)[0] == (1, "batch_progress", "pending")
    assert len(log(batch)) > 1


@pytest.mark.django_db
def test_followers_are_told_after_the_commit_and_not_before(
    told, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        batch = make_batch(size=1)
        assert told == []
    assert told == [f"{batch.owner_id} {batch.pk}"]


@pytest.mark.django_db
def test_of_all_that_an_admission_begins_followers_are_told_at_once(
    told, django_capture_on_commit_callbacks
):
    owner = make_user()
    batches = [make_batch(one, size=2) for one in (owner, owner, make_user())]
    with django_capture_on_commit_callbacks(execute=True):
        admit()
    (message,) = told
    assert sorted(message.splitlines()) == sorted(f"{one.owner_id} {one.pk}" for one in batches)
    assert [log(one)[1:] for one in batches] == [[(2, "batch_progress", "processing")]] * 3


@pytest.mark.django_db
def test_a_transition_that_is_undone_is_neither_logged_nor_told(
    told, django_capture_on_commit_callbacks, monkeypatch
):
    batch = make_batch(size=1)
    monkeypatch.setattr(lifecycle, "_count_cancelled", lambda ended: 1 / 0)
    with django_capture_on_commit_callbacks(execute=True), pytest.raises(ZeroDivisionError):
        lifecycle.cancel_batch(batch=batch)
    assert log(batch) == [(1, "batch_progress", "pending")]
    assert told == []


@pytest.mark.django_db(transaction=True)
def test_versions_have_no_gap_and_no_double_under_contention():
    batch = make_batch(make_user(), size=8)
    generations = list(batch.generations.all())

    def cancel(mine):
        for generation in mine:
            lifecycle.cancel_generation(generation=generation)

    at_once(*(partial(cancel, generations[number::4]) for number in range(4)))
    version = Batch.objects.get(pk=batch.pk).version
    assert [one[0] for one in log(batch)] == list(range(1, version + 1))
    assert version == 1 + 8 + 1
