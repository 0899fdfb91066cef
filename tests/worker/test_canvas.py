"""The late-bound chord on a real broker and a real worker, with steps that do nothing."""

import threading
import uuid
from dataclasses import replace

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from django.conf import settings

from batches import wake
from batches.models import Member
from picture.celery import app, celery_url
from worker import canvas, tasks  # noqa: F401  (registers the tasks)


@pytest.fixture
def bodies():
    return []


@pytest.fixture
def stub_app(bodies):
    """Another app on the same broker: our tasks, with bodies that do nothing."""
    url = celery_url(settings.REDIS_URL)
    stub = Celery("stub", broker=url, backend=url, set_as_current=False)
    stub.conf.update(task_default_queue=f"stub-{uuid.uuid4()}", task_ignore_result=True)
    stub.finalize()
    done = threading.Event()

    def finalise_batch(batch_id):
        bodies.append(batch_id)
        done.set()

    stub.tasks["work.generate"].run = lambda generation_id, lease_id, turn: "downloading"
    stub.tasks["work.download"].run = lambda outcome, generation_id, lease_id: "completed"
    stub.tasks["work.finalise_batch"].run = finalise_batch
    stub.set_current()
    with start_worker(stub, pool="threads", concurrency=2, perform_ping_check=False):
        stub.done = done
        yield stub
    app.set_current()
    stub.close()


def member(batch_id, index, size=None):
    return Member(uuid.uuid4(), uuid.uuid4(), 0, batch_id, index, True, size)


def test_the_body_runs_once_when_all_members_have_come_one_by_one(stub_app, bodies):
    batch_id = uuid.uuid4()
    canvas.publish(member(batch_id, 0, size=3))
    canvas.publish(member(batch_id, 1))
    assert not stub_app.done.wait(0.3)
    canvas.publish(member(batch_id, 2))
    assert stub_app.done.wait(10)
    assert bodies == [str(batch_id)]


def test_a_member_published_twice_counts_once(stub_app, bodies):
    batch_id = uuid.uuid4()
    first = member(batch_id, 0, size=2)
    canvas.publish(first)
    canvas.publish(replace(first, chord_size=None))
    assert not stub_app.done.wait(0.3)
    canvas.publish(member(batch_id, 1))
    assert stub_app.done.wait(10)
    assert bodies == [str(batch_id)]


def test_every_name_that_is_sent_is_a_registered_task():
    app.loader.import_default_modules()
    sent = {*wake.NAMES, "work.generate", "work.download", "work.finalise_batch"}
    sent |= {entry["task"] for entry in app.conf.beat_schedule.values()}
    assert sent <= set(app.tasks)


def test_every_task_has_a_queue_that_a_worker_serves():
    app.loader.import_default_modules()
    queues = {
        name: app.amqp.router.route({}, name)["queue"].name
        for name in app.tasks
        if name.startswith("work.")
    }
    assert queues == {
        "work.dispatch": "control",
        "work.follow": "control",
        "work.generate": "generate",
        "work.download": "download",
        "work.finalise_batch": "control",
        "work.sweep": "control",
        "work.clean_files": "control",
        "work.run_schedules": "control",
    }
