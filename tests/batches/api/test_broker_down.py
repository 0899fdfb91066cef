"""A broker that is away delays work and never fails the call that made it."""

import socket
import time

import pytest
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from batches import wake
from batches.models import Batch, Generation, Lane
from picture.celery import app
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES
from tests.factories import make_generation, make_image

pytestmark = pytest.mark.django_db

# The longest wait is for a broker that takes no message though its Redis answers.
SOON_S = 1.5


@pytest.fixture
def dead_url():
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


@pytest.fixture
def redis_away(dead_url, settings):
    settings.REDIS_URL = dead_url
    wake._redis.cache_clear()
    yield
    wake._redis.cache_clear()


@pytest.fixture
def broker_away(dead_url, monkeypatch):
    away = Celery("away", broker=dead_url, set_as_current=False)
    for name in ("broker_connection_timeout", "broker_transport_options"):
        away.conf[name] = app.conf[name]
    monkeypatch.setattr(wake, "current_app", away)
    yield
    away.close()


def stored_soon(post, path, body, rows):
    started = time.monotonic()
    answer = post(path, body)
    assert time.monotonic() - started < SOON_S
    assert answer.status_code == 202
    assert Generation.objects.filter(status="queued").count() == rows
    assert Lane.objects.get().queued == rows


@pytest.mark.parametrize("away", [["redis_away"], ["broker_away"], ["redis_away", "broker_away"]])
@pytest.mark.parametrize(
    ("path", "body", "rows"),
    [(BATCHES, {"prompt": "a fox", "count": 3}, 3), (GENERATIONS, {"prompt": "a fox"}, 1)],
)
def test_a_submission_is_stored_while_nobody_listens(
    away, path, body, rows, post, request, caplog, queued
):
    for name in away:
        request.getfixturevalue(name)
    stored_soon(post, path, body, rows)
    assert "broker unavailable" in caplog.text
    assert queued() == {}


@pytest.mark.parametrize(
    "error",
    [RedisConnectionError("refused"), RedisTimeoutError("slow"), OperationalError("refused")],
)
@pytest.mark.parametrize("at", ["redis", "send"])
def test_a_submission_is_stored_whatever_the_broker_says(
    error, at, post, monkeypatch, caplog, queued
):
    def fail(*_, **__):
        raise error

    if at == "redis":
        monkeypatch.setattr(wake, "_redis", fail)
    else:
        monkeypatch.setattr(app, "send_task", fail)
    stored_soon(post, BATCHES, {"prompt": "a fox", "count": 2}, 2)
    assert Batch.objects.get().total_count == 2
    assert "broker unavailable" in caplog.text
    assert queued() == {}


def test_reads_and_deletions_need_no_broker(api, owner, redis_away, broker_away):
    image = make_image(make_generation(owner))
    for path in (BATCHES, GENERATIONS, IMAGES, f"{IMAGES}{image.pk}/"):
        assert api.get(path).status_code == 200
    assert api.delete(f"{IMAGES}{image.pk}/").status_code == 204


def test_the_workers_are_woken_again_once_the_broker_is_back(post, monkeypatch, queued):
    with monkeypatch.context() as patched:
        patched.setattr(wake, "_redis", lambda: (_ for _ in ()).throw(RedisConnectionError))
        post(BATCHES, {"prompt": "a fox"})
    assert queued() == {}
    post(BATCHES, {"prompt": "a fox"})
    assert queued() == {"control": 1}
