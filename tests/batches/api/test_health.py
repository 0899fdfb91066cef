from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from rest_framework.test import APIClient

from batches.models import Pool
from batches.pools import CIRCUIT_THRESHOLD
from picture import health

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(health, "WORKERS_TIMEOUT_S", 0.1)


def test_a_process_that_answers_is_alive():
    response = APIClient().get("/health/live")
    assert response.status_code == 200
    assert response.json() == {"status": "ok"}
    assert "no-store" in response["Cache-Control"]


def test_being_alive_needs_nothing_else(django_assert_num_queries, broker):
    with django_assert_num_queries(0):
        APIClient().get("/health/live")
    assert broker.dbsize() == 0


def test_without_workers_the_system_is_not_ready_and_says_so(media):
    response = APIClient().get("/health/ready")
    assert response.status_code == 503
    body = response.json()
    assert body["status"] == "unavailable"
    assert body["checks"].keys() == {"database", "broker", "storage", "workers"}
    assert body["providers"] == {}
    assert {name for name, result in body["checks"].items() if result != "ok"} == {"workers"}
    for queue in ("generate", "download", "control"):
        assert queue in body["checks"]["workers"]
    assert [path for path in media.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("part", ["database", "broker", "storage", "workers"])
def test_each_part_that_fails_is_named_and_its_address_only_logged(part, monkeypatch, caplog):
    def fail():
        raise ConnectionError("nobody at 10.1.2.3")

    checks = dict.fromkeys(health.CHECKS, lambda: None) | {part: fail}
    monkeypatch.setattr(health, "CHECKS", checks)
    response = APIClient().get("/health/ready")
    assert response.status_code == 503
    results = response.json()["checks"]
    assert results.pop(part) == "ConnectionError"
    assert "10.1.2.3" in caplog.text
    assert set(results.values()) == {"ok"}


def test_with_every_part_there_the_system_is_ready(monkeypatch):
    monkeypatch.setattr(health, "CHECKS", dict.fromkeys(health.CHECKS, lambda: None))
    response = APIClient().get("/health/ready")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ok",
        "checks": dict.fromkeys(health.CHECKS, "ok"),
        "providers": {},
    }


IN_TROUBLE = {
    "rate_limited": {"blocked_until": Now() + timedelta(hours=1)},
    "circuit_open": {
        "blocked_until": Now() + timedelta(hours=1),
        "failure_count": CIRCUIT_THRESHOLD,
    },
    "circuit_half_open": {"failure_count": CIRCUIT_THRESHOLD},
    "stopped": {"stopped_by": "auth"},
}


@pytest.mark.parametrize("state", IN_TROUBLE)
def test_a_provider_in_trouble_is_named_and_work_is_still_taken(state, monkeypatch):
    monkeypatch.setattr(health, "CHECKS", dict.fromkeys(health.CHECKS, lambda: None))
    for name in (Pool.SYSTEM, "alright", "replicate"):
        Pool.objects.create(name=name, capacity=1)
    Pool.objects.filter(name="replicate").update(**IN_TROUBLE[state])
    response = APIClient().get("/health/ready")
    assert response.status_code == 200
    body = response.json()
    assert body["status"] == "degraded"
    assert body["providers"] == {"alright": "ok", "replicate": state}


def test_a_part_that_fails_counts_for_more_than_a_provider_in_trouble():
    Pool.objects.create(name="replicate", capacity=1, stopped_by="auth")
    response = APIClient().get("/health/ready")
    assert response.status_code == 503
    assert response.json()["status"] == "unavailable"
    assert response.json()["providers"] == {"replicate": "stopped"}


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_is_one_check_of_all(monkeypatch):
    checks = dict.fromkeys(health.CHECKS, lambda: None) | {"database": health._database}
    monkeypatch.setattr(health, "CHECKS", checks)
    connection.close()
    with monkeypatch.context() as away:
        away.setitem(connection.settings_dict, "HOST", "/nowhere")
        response = APIClient().get("/health/ready")
        assert APIClient().get("/health/live").status_code == 200
    assert response.status_code == 503
    assert response.json() == {
        "status": "unavailable",
        "checks": {**dict.fromkeys(checks, "ok"), "database": "OperationalError"},
        "providers": {},
    }
    assert APIClient().get("/health/ready").status_code == 200
