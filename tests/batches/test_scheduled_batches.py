from datetime import timedelta

import pytest
from django.db.models.functions import Now

from batches import invariants, lifecycle
from batches.models import Batch, Generation, Lane
from batches.scheduling import admit
from tests.factories import make_batch
from worker import sweeper

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


def later(**delta):
    return Now() + timedelta(**delta)


def scheduled(size=2):
    return make_batch(size=size, start_at=later(hours=1))


def make_due(batch):
    Batch.objects.filter(pk=batch.pk).update(start_at=Now())


def status(batch):
    return Batch.objects.get(pk=batch.pk).status


def items(batch):
    return set(batch.generations.values_list("status", flat=True))


def test_a_scheduled_batch_waits_out_of_line():
    batch = scheduled()
    assert (status(batch), items(batch)) == ("scheduled", {"pending"})
    assert not Lane.objects.filter(owner=batch.owner_id, queued__gt=0).exists()
    assert admit().admitted == []
    assert lifecycle.start_scheduled(limit=10) == 0
    assert status(batch) == "scheduled"


def test_a_scheduled_batch_starts_when_its_time_has_come_and_once():
    batch = scheduled()
    make_due(batch)
    sweeper.start_scheduled()
    assert (status(batch), items(batch)) == ("pending", {"queued"})
    assert lifecycle.start_scheduled(limit=10) == 0
    assert len(admit().admitted) == 2


def test_a_scheduled_batch_ends_by_its_chord_like_any_other():
    batch = scheduled()
    make_due(batch)
    lifecycle.start_scheduled(limit=10)
    assert [member.chord_size for member in admit().admitted] == [2, None]


def test_a_scheduled_batch_can_be_cancelled_and_does_not_start_then():
    batch = scheduled()
    assert lifecycle.cancel_batch(batch=batch)
    make_due(batch)
    assert lifecycle.start_scheduled(limit=10) == 0
    assert (status(batch), items(batch)) == ("cancelled", {"cancelled"})


def test_a_scheduled_batch_can_be_deleted():
    batch = scheduled()
    assert lifecycle.delete_batch(batch=batch)
    assert not Batch.objects.filter(pk=batch.pk).exists()


@pytest.mark.parametrize("action", [lifecycle.pause_batch, lifecycle.resume_batch])
def test_a_scheduled_batch_is_neither_paused_nor_resumed(action):
    batch = scheduled()
    assert not action(batch=batch)
    assert (status(batch), items(batch)) == ("scheduled", {"pending"})


def test_an_item_of_a_scheduled_batch_does_not_start_alone():
    batch = scheduled()
    one = batch.generations.first()
    assert not lifecycle.resume_generation(generation=one)
    assert lifecycle.cancel_generation(generation=one)
    one.refresh_from_db()
    assert lifecycle.retry_generations(batch=batch, generations=[one]) == 1
    assert items(batch) == {"pending"}
    make_due(batch)
    assert lifecycle.start_scheduled(limit=10) == 1
    assert items(batch) == {"queued"}


def test_what_is_cancelled_of_a_scheduled_batch_stays_so_when_it_starts():
    batch = scheduled()
    assert lifecycle.cancel_generation(generation=batch.generations.first())
    make_due(batch)
    lifecycle.start_scheduled(limit=10)
    assert items(batch) == {"cancelled", "queued"}
    assert Generation.objects.filter(status="queued").count() == 1
