import contextlib

import pytest
import redis
from django.conf import settings
from django.core.signing import time as signing_time

from batches.models import Batch, Generation, Lane
from tests.batches.api.support import client_of
from tests.factories import make_user
from tests.s3 import BUCKET, running, storage

QUEUES = ("generate", "download", "control", "webhooks")


@pytest.fixture(autouse=True)
def broker():
    """The broker, empty: what stands in it afterwards is this test's doing."""
    client = redis.Redis.from_url(settings.REDIS_URL)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture(autouse=True)
def assets_found_when_asked_for(settings):
    """Each test client loads the middleware anew, which would go through all assets."""
    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture
def queued(broker):
    """How many messages each queue holds."""
    return lambda: {name: broker.llen(name) for name in QUEUES if broker.llen(name)}


@pytest.fixture
def owner(db):
    return make_user()


@pytest.fixture
def api(owner):
    return client_of(owner)


@pytest.fixture
def post(api, django_capture_on_commit_callbacks):
    """POST with all that follows the commit."""

    def call(path, body, **headers):
        with django_capture_on_commit_callbacks(execute=True):
            return api.post(path, body, **headers)

    return call


@pytest.fixture
def nothing_happens(db, broker, queued):
    """A block that must leave no row and no message behind."""

    @contextlib.contextmanager
    def block():
        def stored():
            return [model.objects.count() for model in (Batch, Generation, Lane)]

        before = stored(), queued(), broker.dbsize()
        yield
        assert (stored(), queued(), broker.dbsize()) == before

    return block


@pytest.fixture
def clock(monkeypatch):
    """Moves the time that signatures are made and checked by."""
    real = signing_time.time

    class Clock:
        ahead_s = 0.0

        def time(self):
            return real() + self.ahead_s

    clock = Clock()
    monkeypatch.setattr("django.core.signing.time", clock)
    return clock


@pytest.fixture(scope="module")
def bucket():
    with running() as bucket:
        yield bucket
        storage(**bucket.options).connection.meta.client.close()


@pytest.fixture
def s3(bucket, settings, media):
    """The bucket, empty, with the product told to keep its files there."""
    settings.STORAGE_BUCKET = BUCKET
    default = {"BACKEND": "tests.s3.storage", "OPTIONS": bucket.options}
    settings.STORAGES = {**settings.STORAGES, "default": default}
    bucket.set()
    yield bucket
    bucket.set()
    bucket.empty()
