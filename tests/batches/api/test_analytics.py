"""Figures over HTTP: what is asked, and what is told."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db.models.functions import Now
from rest_framework.test import APIClient

from batches.models import Attempt, Generation, Image
from tests.batches.api.support import BATCHES, client_of, invalid, problem
from tests.factories import MODEL, make_batch, make_image, make_user

pytestmark = pytest.mark.django_db

ANALYTICS = "/api/v1/analytics/"
KEYS = {
    *("generations", "completed", "failed", "cancelled", "open", "cost_usd", "images", "approved"),
    *("rejected", "published", "success_rate", "approval_rate", "publish_rate"),
    *("median_run_seconds", "p90_run_seconds"),
}


@pytest.fixture
def batch(owner):
    """Three generations: one completed and approved, one failed, one open."""
    batch = make_batch(owner, size=3)
    completed, failed, _ = batch.generations.order_by("index")
    make_image(completed)
    Generation.objects.filter(pk=completed.pk).update(cost_usd="0.003")
    Image.objects.update(review_status="approved", reviewed_at=Now())
    Attempt.objects.create(
        generation=completed,
        number=1,
        model=MODEL,
        outcome="succeeded",
        finished_at=datetime.now(UTC),
        total_s=1.23456,
    )
    Generation.objects.filter(pk=failed.pk).update(
        status="failed", error_code="unknown", finished_at=Now()
    )
    return batch


FIGURES = {
    "generations": 3,
    "completed": 1,
    "failed": 1,
    "cancelled": 0,
    "open": 1,
    "cost_usd": "0.003000",
    "images": 1,
    "approved": 1,
    "rejected": 0,
    "published": 0,
    "success_rate": 0.5,
    "approval_rate": 1.0,
    "publish_rate": 0.0,
    "median_run_seconds": 1.235,
    "p90_run_seconds": 1.235,
}


def get(client, path=ANALYTICS, **asked):
    answer = client.get(path, asked)
    assert answer.status_code == 200, answer.content
    return answer.json()


def of(batch):
    return f"{BATCHES}{batch.pk}/analytics/"


def test_the_figures_of_a_batch(api, batch):
    told = get(api, of(batch))
    assert told == {"group_by": "none", "total": FIGURES, "groups": []}
    told = get(api, of(batch), group_by="model")
    assert told["groups"] == [{"key": MODEL, **FIGURES}]


def test_the_figures_of_the_last_thirty_days(api, batch):
    told = get(api, group_by="day")
    begin, end = (datetime.fromisoformat(told[name]) for name in ("from", "to"))
    assert end - begin == timedelta(days=30)
    assert timedelta(0) <= datetime.now(UTC) - end < timedelta(minutes=1)
    assert told["total"] == FIGURES
    (group,) = told["groups"]
    assert group == {"key": f"{batch.created_at:%Y-%m-%d}", **FIGURES}


def test_a_range_and_filters_can_be_asked_for(api, batch):
    past = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00+01:00"}
    told = get(api, **past)
    assert (told["from"], told["to"]) == ("2026-01-01T00:00:00Z", "2026-01-31T23:00:00Z")
    assert told["total"]["generations"] == 0
    assert told["total"]["success_rate"] is None
    assert told["total"].keys() == KEYS
    for asked, count in (
        ({"model": MODEL}, 3),
        ({"model": "own/other"}, 0),
        ({"style": ""}, 3),
        ({"style": "retro"}, 0),
        ({"batch": batch.pk}, 3),
        ({"batch": uuid.uuid4()}, 0),
    ):
        assert get(api, **asked)["total"]["generations"] == count, asked
        if "batch" not in asked:
            assert get(api, of(batch), **asked)["total"]["generations"] == count, asked


@pytest.mark.parametrize(
    ("asked", "field", "code"),
    [
        ({"group_by": "month"}, "group_by", "invalid_choice"),
        ({"from": "yesterday"}, "from", "invalid"),
        ({"from": "2026-01-01T00:00:00"}, "from", "no_offset"),
        ({"from": "2026-02-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}, "from", "not_before_to"),
        ({"from": "2999-01-01T00:00:00Z"}, "from", "not_before_to"),
        ({"from": "2024-01-01T00:00:00Z", "to": "2025-06-01T00:00:00Z"}, "from", "range_too_long"),
        ({"to": "0001-01-02T00:00:00Z"}, "to", "out_of_range"),
        ({"batch": "nonsense"}, "batch", "invalid"),
        ({"models": MODEL}, "models", "unknown_parameter"),
        ({"model": " "}, "model", "blank"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, field, code, api):
    assert invalid(api.get(ANALYTICS, asked))[field][0] == code


@pytest.mark.parametrize("raw", ["%00", "%FF", "%ED%A0%80", "9999-12-31T23:59:59Z", "-1", "1e9"])
@pytest.mark.parametrize("name", ["from", "to", "model", "style", "batch", "group_by"])
def test_whatever_is_asked_is_no_error_of_ours(name, raw, api):
    assert api.get(f"{ANALYTICS}?{name}={raw}").status_code in (200, 422)


def test_what_is_not_ones_own_is_not_told(batch):
    problem(APIClient().get(ANALYTICS), 401, "not_authenticated")
    stranger = client_of(make_user())
    problem(stranger.get(of(batch)), 404, "not_found")
    assert get(stranger, batch=batch.pk)["total"]["generations"] == 0


def test_the_queries_are_as_many_for_any_number_of_rows(api, owner, django_assert_num_queries):
    for _ in range(2):
        make_batch(owner)
        with django_assert_num_queries(3):
            get(api, group_by="style")
