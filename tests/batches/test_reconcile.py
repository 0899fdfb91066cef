"""Counters that differ from their rows are put right, and told as the bug that they are."""

import pytest

from batches import invariants, reconcile
from batches.models import Alert, Batch, Lane
from batches.scheduling import admit
from tests.factories import make_batch, make_generation

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


def test_counters_that_are_right_are_left_alone():
    make_batch(size=5)
    admit()
    assert reconcile.reconcile_lanes(None) is None
    assert reconcile.reconcile_batches(None) is None
    assert not Alert.objects.exists()


def test_a_lane_that_differs_is_put_right_and_reported():
    make_batch(size=5)
    admit()
    Lane.objects.update(running=7, queued=0)
    reconcile.reconcile_lanes(None)
    lane = Lane.objects.get()
    assert (lane.running, lane.queued) == (3, 2)
    alert = Alert.objects.get()
    assert (alert.code, alert.subject) == ("counter_drift", f"lane {lane.pk}")
    assert "'running': 7" in alert.message


def test_a_batch_that_differs_is_put_right_and_reported():
    batch = make_batch(size=3)
    Batch.objects.update(failed_count=2)
    reconcile.reconcile_batches(None)
    batch.refresh_from_db()
    assert batch.failed_count == 0
    assert Alert.objects.get().subject == f"batch {batch.pk}"


def test_every_row_has_its_turn_in_the_course_of_time(monkeypatch):
    monkeypatch.setattr(reconcile, "PAGE", 2)
    for _ in range(5):
        make_generation()
    Lane.objects.update(running=1)
    after, calls = None, 0
    while calls == 0 or after is not None:
        after = reconcile.reconcile_lanes(after)
        calls += 1
    assert calls == 3
    assert set(Lane.objects.values_list("running", flat=True)) == {0}


def test_a_line_that_is_too_long_to_count_is_left_out(monkeypatch):
    monkeypatch.setattr(reconcile, "ROWS_MAX", 3)
    make_batch(size=4)
    Lane.objects.update(running=1)
    reconcile.reconcile_lanes(None)
    assert Lane.objects.get().running == 1
    Lane.objects.update(running=0)
