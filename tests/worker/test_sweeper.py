"""What the sweep makes up for: lost messages, dead workers, forgotten rows."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from batches import invariants, lifecycle
from batches.models import (
    Alert,
    Attempt,
    Batch,
    Generation,
    IdempotentRequest,
    Lane,
    Lease,
    WebhookReceipt,
)
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import make_batch, make_generation, make_user
from worker import sweeper

pytestmark = pytest.mark.django_db
DONE = Prediction("p1", PredictionStatus.SUCCEEDED, outputs=("https://x/y.png",))


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


@pytest.fixture(autouse=True)
def published(monkeypatch):
    members = []
    monkeypatch.setattr(sweeper.canvas, "publish", members.append)
    return members


def expire():
    Lease.objects.update(expires_at=Now() - timedelta(seconds=1))


def take_turn(member, holds_slot=True):
    turn = Lease.objects.get(pk=member.lease_id).turn
    return Generation.objects.take_turn(
        str(member.generation_id), str(member.lease_id), turn, holds_slot=holds_slot
    )


def test_a_lease_that_lives_is_left_alone(published):
    make_generation()
    admit()
    assert sweeper.sweep()
    assert published == []


def test_a_message_that_was_never_sent_is_sent_soon(published, settings):
    make_batch(size=1)
    (member,) = admit().admitted
    left = Lease.objects.filter(expires_at__lte=Now() + timedelta(seconds=6))
    assert left.exists()  # long before a whole lease
    expire()
    assert sweeper.sweep()
    (sent,) = published
    assert (sent.generation_id, sent.lease_id, sent.turn) == (
        member.generation_id,
        member.lease_id,
        0,
    )
    assert sent.has_chord
    assert Lease.objects.get().crash_count == 0
    assert sweeper.sweep()
    assert len(published) == 1  # and not again before its time


def test_a_delivery_that_died_is_taken_over_with_the_next_turn(published):
    make_generation()
    (member,) = admit().admitted
    assert take_turn(member)
    expire()
    sweeper.sweep()
    assert [sent.turn for sent in published] == [1]
    assert Lease.objects.get().crash_count == 1
    assert not Generation.objects.take_turn(
        str(member.generation_id), str(member.lease_id), 0, holds_slot=True
    )
    assert take_turn(published[0])


def test_downloads_that_wait_are_sent_again_ever_more_seldom(published, settings):
    make_generation()
    admit()
    generation = Generation.objects.get()
    attempt = lifecycle.begin_attempt(generation=generation)
    lifecycle.begin_download(generation=generation, attempt=attempt, prediction=DONE, cost_usd=0)
    waits = []
    for age_s in (0, 100, 200, 600):
        Lease.objects.update(created_at=Now() - timedelta(seconds=age_s))
        expire()
        sweeper.sweep()
        waits.append(round((Lease.objects.get().expires_at - timezone.now()).total_seconds()))
    assert waits == pytest.approx([60, 100, 200, 300], abs=2)
    assert len(published) == 4
    take_turn(published[-1], holds_slot=False)
    assert Lease.objects.get().expires_at <= timezone.now() + timedelta(seconds=60)
    Lease.objects.update(created_at=Now())


def test_what_is_at_the_provider_is_missed_every_lease(published):
    make_generation()
    admit()
    Lease.objects.update(created_at=Now() - timedelta(seconds=300))
    expire()
    sweeper.sweep()
    assert Lease.objects.get().expires_at <= timezone.now() + timedelta(seconds=61)


def test_the_dead_go_before_those_that_wait(monkeypatch, published):
    monkeypatch.setattr(sweeper, "LIMIT", 1)
    make_batch(size=2)
    first, second = admit().admitted
    take_turn(second)
    expire()
    Lease.objects.filter(pk=first.lease_id).update(expires_at=Now() - timedelta(minutes=5))
    sweeper.sweep()
    assert [one.lease_id for one in published] == [second.lease_id]


def test_a_delivery_that_was_put_off_in_order_is_no_crash(published):
    make_generation()
    (member,) = admit().admitted
    lifecycle.put_off(work=take_turn(member), progress=10)
    expire()
    sweeper.sweep()
    assert len(published) == 1
    assert Lease.objects.get().crash_count == 0


def test_a_generation_that_keeps_killing_its_worker_is_given_up(published):
    batch = make_batch(size=2)
    member, other = admit().admitted
    for _ in range(sweeper.POISON_AFTER):
        assert take_turn(member)
        expire()
        sweeper.sweep()
    generation = Generation.objects.get(pk=member.generation_id)
    assert (generation.status, generation.error_code) == ("failed", "poison")
    assert Alert.objects.get().code == "poison"
    assert Generation.objects.get(pk=other.generation_id).status == "processing"
    batch.refresh_from_db()
    assert (batch.failed_count, batch.has_chord) == (1, False)


def test_what_a_poisonous_submission_may_have_cost_is_told(published):
    generation = make_generation()
    (member,) = admit().admitted
    for _ in range(sweeper.POISON_AFTER):
        take_turn(member)
        if not Attempt.objects.exists():
            lifecycle.begin_attempt(generation=Generation.objects.get())
        expire()
        sweeper.sweep()
    generation.refresh_from_db()
    assert generation.error_code == "poison"
    assert "may have been charged" in generation.error_message
    assert Attempt.objects.get().outcome == "submission_unknown"


def test_a_poisonous_generation_that_its_owner_has_cancelled_ends_cancelled(published):
    generation = make_generation()
    (member,) = admit().admitted
    lifecycle.cancel_generation(generation=generation)
    for _ in range(sweeper.POISON_AFTER):
        take_turn(member)
        expire()
        sweeper.sweep()
    generation.refresh_from_db()
    assert generation.status == "cancelled"


def test_a_broker_that_is_away_leaves_the_leases_for_the_next_sweep(monkeypatch, published):
    make_generation()
    (member,) = admit().admitted
    take_turn(member)
    expire()

    def away(member):
        raise ConnectionError("no broker")

    with monkeypatch.context() as broker:
        broker.setattr(sweeper.canvas, "publish", away)
        assert sweeper.sweep()
    assert Lease.objects.get().crash_count == 0
    sweeper.sweep()
    assert len(published) == 1


def test_a_step_that_fails_does_not_keep_the_others_from_their_turn(monkeypatch, caplog):
    batch = make_batch(size=1)
    admit()
    generation = batch.generations.get()
    lifecycle.fail_generation(
        generation=generation,
        attempt=None,
        failure=Failure(ErrorClass.INVALID_INPUT, "no"),
    )

    def broken(limit):
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(Lease.objects.all()), "take_over", broken)
    assert sweeper.sweep()
    assert Batch.objects.get().status == "failed"
    assert "take_over failed" in caplog.text


def test_a_download_without_a_lease_gets_one(published):
    """As workers of before there were turns leave it."""
    generation = make_generation()
    admit()
    attempt = lifecycle.begin_attempt(generation=Generation.objects.get())
    generation.refresh_from_db()
    lifecycle.begin_download(generation=generation, attempt=attempt, prediction=DONE, cost_usd=0)
    Lease.objects.all().delete()
    sweeper.sweep()
    assert not Lease.objects.get().holds_slot
    expire()
    sweeper.sweep()
    assert len(published) == 1
    assert take_turn(published[0], holds_slot=False)


def test_a_lease_whose_work_is_over_is_dropped(published):
    generation = make_generation()
    admit()
    Generation.objects.update(status="queued")
    expire()
    sweeper.sweep()
    assert published == []
    assert not Lease.objects.exists()
    Lane.objects.update(queued=1)
    assert generation.pk


def test_what_is_kept_for_a_time_only_is_forgotten():
    owner = make_user()
    for number, age in enumerate([timedelta(minutes=11), timedelta(minutes=1)]):
        WebhookReceipt.objects.create(provider="replicate", webhook_id=f"msg_{number}")
        WebhookReceipt.objects.filter(webhook_id=f"msg_{number}").update(received_at=Now() - age)
    for number, age in enumerate([timedelta(hours=25), timedelta(hours=23)]):
        request = IdempotentRequest.objects.create(
            owner=owner,
            method="POST",
            path="/",
            key=str(number),
            payload_sha256="",
            status=202,
            body={},
        )
        IdempotentRequest.objects.filter(pk=request.pk).update(created_at=Now() - age)
    sweeper.sweep()
    assert WebhookReceipt.objects.get().webhook_id == "msg_1"
    assert IdempotentRequest.objects.get().key == "1"


def test_the_take_over_is_bounded(monkeypatch, published):
    monkeypatch.setattr(sweeper, "LIMIT", 2)
    make_batch(size=3)
    admit()
    expire()
    sweeper.sweep()
    assert len(published) == 2
    sweeper.sweep()
    assert len(published) == 3


@pytest.mark.django_db(transaction=True)
def test_of_two_sweeps_at_once_one_sweeps(monkeypatch, published):
    make_generation()
    admit()
    expire()
    inside, go_on = threading.Event(), threading.Event()

    def slow(member):
        published.append(member)
        inside.set()
        go_on.wait(10)

    monkeypatch.setattr(sweeper.canvas, "publish", slow)
    results = []

    def work():
        try:
            results.append(sweeper.sweep())
        finally:
            connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    assert not sweeper.sweep()
    go_on.set()
    thread.join()
    assert results == [True]
    assert len(published) == 1
    assert sweeper.sweep()
    assert not Attempt.objects.exists()
