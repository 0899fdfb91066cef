"""Providers in trouble: what is admitted to them, and who is told."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from batches import pools
from batches.models import Alert, Pool
from batches.pools import CIRCUIT_OPEN_S, CIRCUIT_THRESHOLD, PoolState
from batches.scheduling import admit
from generation.provider import ErrorClass
from tests.factories import make_batch, make_generation, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def one_provider(settings):
    settings.PROVIDER_POOLS = {"replicate": settings.PROVIDER_POOLS["replicate"]}


NAME = "replicate"


@pytest.fixture(autouse=True)
def pool(db):
    admit()  # the first one makes the pools
    return Pool.objects.get(name=NAME)


def fail(times):
    return [pools.record_unavailable(name=NAME, message="away") for _ in range(times)]


def let_the_block_end():
    Pool.objects.update(blocked_until=Now() - timedelta(seconds=1))


def test_the_circuit_opens_when_nobody_is_there_several_times_in_a_row():
    make_generation()
    assert fail(CIRCUIT_THRESHOLD) == [False] * (CIRCUIT_THRESHOLD - 1) + [True]
    assert pools.states() == {NAME: PoolState.CIRCUIT_OPEN}
    assert admit().admitted == []
    left_s = (Pool.objects.get(name=NAME).blocked_until - timezone.now()).total_seconds()
    assert left_s == pytest.approx(CIRCUIT_OPEN_S, abs=2)
    alert = Alert.objects.get()
    assert (alert.code, alert.subject, alert.cleared_at) == ("circuit_open", NAME, None)


def test_an_answer_in_between_starts_the_count_anew():
    fail(CIRCUIT_THRESHOLD - 1)
    pools.record_available(name=NAME)
    assert not any(fail(CIRCUIT_THRESHOLD - 1))
    assert pools.states() == {NAME: PoolState.OK}


def test_a_half_open_circuit_lets_one_probe_through_at_a_time():
    make_batch(size=3)
    make_batch(make_user(), size=3)
    fail(CIRCUIT_THRESHOLD)
    let_the_block_end()
    assert pools.states() == {NAME: PoolState.CIRCUIT_HALF_OPEN}
    assert len(admit().admitted) == 1
    assert admit().admitted == []


def test_a_probe_that_fails_keeps_the_circuit_open():
    make_batch(size=3)
    fail(CIRCUIT_THRESHOLD)
    let_the_block_end()
    admit()
    assert fail(1) == [True]
    assert pools.states() == {NAME: PoolState.CIRCUIT_OPEN}
    assert Alert.objects.get().count == 2


def test_a_probe_that_is_answered_closes_the_circuit_and_the_alert():
    make_batch(size=3)
    fail(CIRCUIT_THRESHOLD)
    let_the_block_end()
    admit()
    pools.record_available(name=NAME)
    assert pools.states() == {NAME: PoolState.OK}
    assert len(admit().admitted) == 2
    alert = Alert.objects.get()
    assert alert.cleared_at is not None
    assert alert.cleared_by is None


def test_a_rate_limit_is_not_shortened_by_an_answer():
    pools.block_pool(name=NAME, seconds=60)
    fail(1)
    pools.record_available(name=NAME)
    assert pools.states() == {NAME: PoolState.RATE_LIMITED}


@pytest.mark.parametrize("error_class", sorted(pools.STOPPING))
def test_a_refusal_of_our_account_stops_everything_until_the_alert_is_cleared(error_class):
    make_batch(size=2)
    for _ in range(3):
        pools.stop_pool(name=NAME, error_class=error_class, message="no")
    assert pools.states() == {NAME: PoolState.STOPPED}
    admission = admit()
    assert (admission.admitted, admission.next_in_s) == ([], None)
    alert = Alert.objects.get()
    assert (alert.code, alert.count) == (error_class, 3)
    operator = make_user()
    assert pools.clear_alert(alert_id=alert.pk, user_id=operator.pk)
    assert not pools.clear_alert(alert_id=alert.pk, user_id=operator.pk)
    alert.refresh_from_db()
    assert alert.cleared_by == operator
    assert len(admit().admitted) == 2


def test_clearing_one_alert_does_not_clear_another():
    make_generation()
    pools.stop_pool(name=NAME, error_class=ErrorClass.AUTH, message="no")
    pools.stop_pool(name=NAME, error_class=ErrorClass.INSUFFICIENT_CREDIT, message="no")
    alerts = {alert.code: alert.pk for alert in Alert.objects.all()}
    for first, second in (
        (ErrorClass.AUTH, ErrorClass.INSUFFICIENT_CREDIT),
        (ErrorClass.INSUFFICIENT_CREDIT, ErrorClass.AUTH),
    ):
        Alert.objects.update(cleared_at=None)
        pools.clear_alert(alert_id=alerts[first], user_id=None)
        assert admit().admitted == []
        assert Pool.objects.get(name=NAME).stopped_by == second
        pools.clear_alert(alert_id=alerts[second], user_id=None)
    assert len(admit().admitted) == 1


def test_an_operator_may_close_the_circuit():
    make_generation()
    fail(CIRCUIT_THRESHOLD)
    pools.clear_alert(alert_id=Alert.objects.get().pk, user_id=None)
    assert len(admit().admitted) == 1


def test_an_alert_that_was_cleared_is_raised_anew():
    pools.stop_pool(name=NAME, error_class=ErrorClass.AUTH, message="no")
    pools.clear_alert(alert_id=Alert.objects.get().pk, user_id=None)
    pools.stop_pool(name=NAME, error_class=ErrorClass.AUTH, message="still no")
    assert Alert.objects.open().get().message == "still no"
    assert Alert.objects.count() == 2
