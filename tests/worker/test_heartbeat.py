"""A delivery that is at work keeps its lease, and one that is not loses it."""

import uuid

import pytest
from django.db import OperationalError, connections
from django.db.models.functions import Now

from batches.models import Generation, Lease
from batches.scheduling import admit
from tests.acceptance.conftest import wait_until
from tests.factories import make_generation
from worker import heartbeat

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def work(settings, monkeypatch):
    settings.LEASE_SECONDS = 60
    monkeypatch.setattr(heartbeat, "interval_s", lambda: 0.02)
    monkeypatch.setattr(heartbeat, "_pid", 0)  # a thread of its own for each test
    make_generation()
    (member,) = admit().admitted
    yield Generation.objects.take_turn(
        str(member.generation_id), str(member.lease_id), 0, holds_slot=True
    )
    monkeypatch.setattr(heartbeat, "interval_s", lambda: 3_600)
    connections.close_all()


def expire():
    Lease.objects.update(expires_at=Now())


def is_alive():
    return Lease.objects.filter(expires_at__gt=Now()).exists()


def test_a_lease_is_prolonged_while_it_is_held_and_not_afterwards(work):
    with heartbeat.holding(work.lease_id, work.turn):
        for _ in range(3):
            expire()
            wait_until(is_alive, timeout_s=10)
    assert heartbeat._held == {}
    wait_until(lambda: (expire(), not is_alive())[1], timeout_s=10)


def test_a_lease_that_others_have_taken_over_is_not_prolonged(work):
    Lease.objects.update(turn=work.turn + 1)
    expire()
    Lease.objects.renew({work.lease_id: work.turn})
    assert not is_alive()
    Lease.objects.renew({work.lease_id: work.turn + 1})
    assert is_alive()


def test_the_end_of_an_earlier_turn_does_not_end_a_later_one(work):
    first = heartbeat.holding(work.lease_id, 1)
    first.__enter__()
    with heartbeat.holding(work.lease_id, 2):
        first.__exit__(None, None, None)
        assert {pk: one.turn for pk, one in heartbeat._held.items()} == {work.lease_id: 2}


@pytest.mark.parametrize("error", [OperationalError("gone"), RuntimeError("nobody expected this")])
def test_an_error_does_not_end_the_heartbeat(work, monkeypatch, error):
    renew = type(Lease.objects.all()).renew
    calls = []

    def away_at_first(self, turns):
        calls.append(turns)
        if len(calls) == 1:
            raise error
        renew(self, turns)

    monkeypatch.setattr(type(Lease.objects.all()), "renew", away_at_first)
    expire()
    with heartbeat.holding(work.lease_id, work.turn):
        wait_until(is_alive, timeout_s=10)
    assert len(calls) >= 2


@pytest.mark.parametrize("error", [OperationalError("gone"), RuntimeError("nobody expected this")])
def test_what_cannot_be_prolonged_does_not_keep_others_from_it(work, error):
    tried = []

    def fails(turns):
        tried.append(turns)
        raise error

    expire()
    with (
        heartbeat.holding(uuid.uuid4(), 1, fails),
        heartbeat.holding(work.lease_id, work.turn),
    ):
        wait_until(is_alive, timeout_s=10)
        wait_until(lambda: len(tried) >= 2, timeout_s=10)


def test_a_delivery_that_hangs_is_not_kept_alive_for_ever(work, monkeypatch):
    monkeypatch.setattr(heartbeat, "HELD_MAX_S", 0.0)
    with heartbeat.holding(work.lease_id, work.turn):
        expire()
        renewed = []
        monkeypatch.setattr(
            type(Lease.objects.all()), "renew", lambda self, turns: renewed.append(turns)
        )
        ticks = []
        monkeypatch.setattr(heartbeat, "interval_s", lambda: ticks.append(1) or 0.02)
        wait_until(lambda: len(ticks) > 3, timeout_s=10)
    assert renewed == []


def test_a_delivery_that_has_come_further_does_not_hang(work):
    with heartbeat.holding(work.lease_id, work.turn):
        # It was begun so long ago that it would be given up.
        heartbeat._held[work.lease_id].since_s -= heartbeat.HELD_MAX_S
        heartbeat.goes_on(work.lease_id)
        expire()
        wait_until(is_alive, timeout_s=10)
