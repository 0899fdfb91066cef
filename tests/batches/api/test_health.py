import pytest
from rest_framework.test import APIClient

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
    assert response.json()["status"] == "ok"
