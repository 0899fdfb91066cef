"""What may be changed: the limits of lanes and pools, and nothing else."""

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse

from batches.admin.operations import LimitsAdmin
from batches.models import Lane, Pool
from tests.batches.admin.support import (
    MODELS,
    READ_ONLY,
    html_of,
    list_url,
    make_rows,
    page,
    page_url,
    stop,
)

pytestmark = pytest.mark.django_db


def save(client, row, **fields):
    """Submit a form as it is shown, with some fields changed."""
    form = client.get(page_url(row)).context["adminform"].form
    data = {}
    for name in form.fields:
        value = form.initial.get(name)
        if name == "blocked_until":
            data |= {"blocked_until_0": "", "blocked_until_1": ""}
        elif value not in (None, False):
            data[name] = value
    return client.post(page_url(row), {**data, **fields})


@pytest.mark.parametrize("model", MODELS)
def test_nothing_can_be_added_or_deleted(operator, model):
    make_rows(1)
    row = model.objects.first()
    name = f"admin:batches_{model._meta.model_name}"
    assert operator.get(reverse(f"{name}_add")).status_code == 403
    assert operator.post(reverse(f"{name}_add"), {}).status_code == 403
    for answer in (
        operator.get(reverse(f"{name}_delete", args=[row.pk])),
        operator.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}),
    ):
        assert answer.status_code == 403
    answer = operator.post(
        list_url(model), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )
    assert answer.status_code in (200, 302)
    assert model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", READ_ONLY)
def test_rows_of_the_product_cannot_be_changed(operator, model):
    make_rows(1)
    row = model.objects.first()
    before = model.objects.filter(pk=row.pk).values().get()
    answer = operator.post(page_url(row), {"status": "completed", "name": "changed", "index": 9})
    assert answer.status_code == 403
    assert model.objects.filter(pk=row.pk).values().get() == before
    assert 'name="_save"' not in page(operator, row)


def own_lane():
    make_rows(1)
    return Lane.objects.get()


def test_a_changed_cap_becomes_the_lanes_own(operator):
    lane = own_lane()
    assert save(operator, lane, cap=7).status_code == 302
    lane.refresh_from_db()
    assert (lane.cap, lane.cap_is_own) == (7, True)
    assert LogEntry.objects.count() == 1


def test_a_changed_weight_leaves_the_cap_to_the_default(operator):
    lane = own_lane()
    assert save(operator, lane, weight=2.5).status_code == 302
    lane.refresh_from_db()
    assert (lane.weight, lane.cap_is_own) == (2.5, False)


def test_a_lane_can_be_given_back_to_the_default(operator):
    lane = own_lane()
    save(operator, lane, cap=7)
    data = {"cap": 7, "weight": 1}  # a box that is not ticked is not sent
    assert operator.post(page_url(lane), data).status_code == 302
    lane.refresh_from_db()
    assert not lane.cap_is_own


def test_saving_a_lane_or_a_pool_leaves_its_counters_alone(operator, monkeypatch):
    lane, pool = own_lane(), Pool.objects.get(pk="replicate")

    def admit_meanwhile(self, row, names):
        type(row).objects.filter(pk=row.pk).update(vtime=9)
        return original(self, row, names)

    original = LimitsAdmin.save_changed
    monkeypatch.setattr(LimitsAdmin, "save_changed", admit_meanwhile)
    for row, field in ((lane, "cap"), (pool, "capacity")):
        assert save(operator, row, **{field: 50}).status_code == 302
        row.refresh_from_db()
        assert (row.vtime, getattr(row, field)) == (9, 50)


def test_the_counters_of_a_lane_and_a_pool_cannot_be_sent(operator):
    lane, pool = own_lane(), Pool.objects.get(pk="replicate")
    for row in (lane, pool):
        before = (row.vtime, getattr(row, "queued", None), getattr(row, "tokens", None))
        assert save(operator, row, running=99, vtime=99, queued=99, tokens=99).status_code == 302
        row.refresh_from_db()
        assert (row.vtime, getattr(row, "queued", None), getattr(row, "tokens", None)) == before


@pytest.mark.parametrize(
    "fields", [{"weight": 0}, {"weight": "1e-320"}, {"weight": "nan"}, {"cap": -1}, {"cap": 10**10}]
)
def test_a_lane_refuses_what_would_stop_the_ring(operator, fields):
    lane = own_lane()
    assert "errornote" in html_of(save(operator, lane, **fields))
    before = (lane.cap, lane.weight)
    lane.refresh_from_db()
    assert (lane.cap, lane.weight) == before


def test_a_pool_takes_new_limits(operator):
    make_rows(1)
    pool = Pool.objects.get(pk="replicate")
    save(
        operator,
        pool,
        capacity=40,
        rate_per_s=2.5,
        burst=20,
        blocked_until_0="2040-01-01",
        blocked_until_1="12:00:00",
    )
    pool.refresh_from_db()
    assert (pool.capacity, pool.rate_per_s, pool.burst) == (40, 2.5, 20)
    assert pool.blocked_until.year == 2040
    assert "2040-01-01 12:00:00 UTC" in html_of(operator.get(list_url(Pool)))


def test_a_smaller_burst_takes_the_tokens_that_no_longer_fit(operator):
    make_rows(1)
    Pool.objects.filter(pk="replicate").update(burst=60, tokens=60, rate_per_s=10)
    pool = Pool.objects.get(pk="replicate")
    assert save(operator, pool, burst=5).status_code == 302
    pool.refresh_from_db()
    assert (pool.burst, pool.tokens) == (5, 5)


@pytest.mark.parametrize("fields", [{"rate_per_s": 0}, {"rate_per_s": "1e-300"}, {"burst": 0}])
def test_a_pool_refuses_what_would_stop_admission(operator, fields):
    make_rows(1)
    pool = Pool.objects.get(pk="replicate")
    assert "errornote" in html_of(save(operator, pool, **fields))


def test_the_pool_of_the_system_is_read_only(operator):
    make_rows(1)
    pool = Pool.objects.get(pk=Pool.SYSTEM)
    assert 'name="capacity"' not in page(operator, pool)
    assert operator.post(page_url(pool), {"capacity": 5, "burst": 1}).status_code == 403


def test_new_limits_wake_the_admission(operator, django_capture_on_commit_callbacks, monkeypatch):
    lane = own_lane()
    woken = []
    monkeypatch.setattr("batches.wake.dispatch_now", lambda: woken.append(True))
    with django_capture_on_commit_callbacks(execute=True):
        save(operator, lane, cap=7)
    assert woken


def test_the_state_of_a_pool_cannot_be_sent(operator):
    stop()
    pool = Pool.objects.get(pk="replicate")
    assert save(operator, pool, capacity=5, stopped_by="", failure_count=0).status_code == 302
    pool.refresh_from_db()
    assert (pool.capacity, pool.stopped_by) == (5, "auth")
