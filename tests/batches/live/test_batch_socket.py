"""One batch over a WebSocket."""

import time
import uuid

import pytest
from django.test.utils import CaptureQueriesContext

from batches import lifecycle, wake
from batches.live import hub as hub_module
from batches.models import Batch, Event
from batches.scheduling import admit
from tests.batches.live.support import complete, fail, has_ended, kinds, start
from tests.factories import make_batch, make_user


def test_who_comes_is_told_how_the_batch_stands(live, owner):
    batch = make_batch(owner, 2, name="Lighthouses")
    first, second = start(batch)
    image = complete(first)
    fail(second, "Not that.")
    batch.refresh_from_db()
    told = live.batch(owner, batch).next()
    items = told.pop("items")
    assert told == {
        "type": "snapshot",
        "batch_id": str(batch.pk),
        "name": "Lighthouses",
        "status": "partial",
        "total_count": 2,
        "completed_count": 1,
        "failed_count": 1,
        "cancelled_count": 0,
        "progress": 100,
        "version": batch.version,
    }
    for generation in (first, second):
        generation.refresh_from_db()
    assert items == [
        {
            "id": str(first.pk),
            "index": 0,
            "status": "completed",
            "progress": 100,
            "image_id": str(image.pk),
            "error": None,
            "version": first.version,
        },
        {
            "id": str(second.pk),
            "index": 1,
            "status": "failed",
            "progress": 0,
            "image_id": None,
            "error": {"code": "content_policy", "message": "Not that."},
            "version": second.version,
        },
    ]


def test_each_end_is_told_once_in_order_and_how_the_batch_stands_then(live, owner, hints, seldom):
    batch = make_batch(owner, 3)
    socket = live.batch(owner, batch)
    snapshot = socket.next()
    hints()
    generations = start(batch)
    images = [complete(one) for one in generations[:2]]
    fail(generations[2])
    messages = socket.until(has_ended)
    ends = [one for one in messages if one["type"] == "batch_job_complete"]
    batch.refresh_from_db()
    assert [one["generation_id"] for one in ends] == [str(one.pk) for one in generations]
    assert [one["index"] for one in ends] == [0, 1, 2]
    assert [one["success"] for one in ends] == [True, True, False]
    assert [one["status"] for one in ends] == ["completed", "completed", "failed"]
    assert [one["image_id"] for one in ends] == [*(str(one.pk) for one in images), None]
    assert [one["error"] for one in ends] == [
        None,
        None,
        {"code": "content_policy", "message": "No."},
    ]
    versions = [one["version"] for one in messages]
    assert versions == sorted(versions)
    assert versions[0] > snapshot["version"]
    assert len({one["version"] for one in ends}) == 3
    last = messages[-1]
    assert (last["status"], last["completed_count"], last["failed_count"], last["progress"]) == (
        "partial",
        2,
        1,
        100,
    )
    assert last["version"] == batch.version


def test_an_event_comes_as_soon_as_its_hint(live, owner, hints, seldom):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()
    hints()
    began_s = time.monotonic()
    lifecycle.pause_batch(batch=batch)
    assert socket.next()["status"] == "paused"
    assert time.monotonic() - began_s < 5


def test_batches_that_begin_together_are_each_told_of_by_one_hint(live, owner, hints, seldom):
    batches = [make_batch(one, 1) for one in (owner, owner, make_user())]
    sockets = [live.batch(one.owner, one) for one in batches]
    for socket in sockets:
        assert socket.next()["status"] == "pending"
    hints()
    admit()
    assert [socket.next()["status"] for socket in sockets] == ["processing"] * 3


def test_without_any_hint_it_comes_within_a_second_or_so(live, owner, no_hints):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()
    began_s = time.monotonic()
    lifecycle.pause_batch(batch=batch)
    assert socket.next()["status"] == "paused"
    assert time.monotonic() - began_s < 5


def test_what_nobody_can_read_is_no_hint(live, owner, hints):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()
    hints()
    for told in ("", "x", f"1 {batch.pk} 2", f"x {batch.pk}", "\N{BLACK STAR}"):
        wake._tell_now(told)
    lifecycle.pause_batch(batch=batch)
    assert socket.next()["status"] == "paused"


def test_many_changes_are_told_together_and_the_last_state_always(live, owner, hints, monkeypatch):
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 0.05)
    batch = make_batch(owner, 2)
    socket = live.batch(owner, batch)
    socket.next()
    hints()
    began_s = time.monotonic()
    for _ in range(20):
        lifecycle.pause_batch(batch=batch)
        lifecycle.resume_batch(batch=batch)
    lifecycle.cancel_batch(batch=batch)
    messages = socket.until(has_ended)
    took_s = time.monotonic() - began_s
    progress = [one for one in messages if one["type"] == "batch_progress"]
    assert len(progress) <= 2 + took_s / hub_module.FLUSH_EVERY_S
    assert kinds(messages).count("batch_job_complete") == 2
    assert messages[-1]["version"] == Batch.objects.get().version
    assert socket.is_silent(for_s=0.3)


def test_a_batch_that_has_ended_is_followed_on_for_it_may_be_tried_again(live, owner, hints):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()
    (generation,) = start(batch)
    fail(generation)
    socket.until(has_ended)
    batch.refresh_from_db()
    assert lifecycle.retry_generations(batch=batch, generations=[generation]) == 1
    assert socket.next()["status"] == "processing"


def test_who_follows_a_batch_is_told_of_its_deletion_and_of_nothing_more(live, owner):
    batch, other = make_batch(owner, 1), make_batch(owner, 1)
    socket, beside = live.batch(owner, batch), live.batch(owner, other)
    socket.next()
    beside.next()
    lifecycle.delete_batch(batch=batch)
    assert socket.next()["batch_id"] == str(batch.pk)
    assert socket.closed() == 1000
    lifecycle.pause_batch(batch=other)
    assert beside.next()["batch_id"] == str(other.pk)


def test_the_deletion_of_a_batch_at_work_is_told_at_once(live, owner):
    batch = make_batch(owner, 1)
    start(batch)
    socket = live.batch(owner, batch)
    version = socket.next()["version"]
    lifecycle.delete_batch(batch=batch)
    told = socket.next()
    assert told == {
        "type": "batch_deleted",
        "batch_id": str(batch.pk),
        "version": told["version"],
    }
    assert told["version"] > version
    assert socket.closed() == 1000


def test_who_comes_back_is_told_what_he_has_missed(live, owner):
    batch = make_batch(owner, 3)
    first, second, third = start(batch)
    complete(first)
    seen = Batch.objects.get().version
    image = complete(second)
    fail(third)
    messages = live.batch(owner, batch, f"version={seen}").until(has_ended)
    assert kinds(messages) == ["batch_job_complete", "batch_job_complete", "batch_progress"]
    assert [one.get("image_id") for one in messages[:2]] == [str(image.pk), None]
    assert messages[-1]["version"] == Batch.objects.get().version


def test_who_has_missed_nothing_is_told_how_it_stands_and_then_what_comes(live, owner):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch, f"version={batch.version}")
    told = socket.next()
    assert (told["type"], told["version"]) == ("batch_progress", batch.version)
    lifecycle.pause_batch(batch=batch)
    assert socket.next()["status"] == "paused"


@pytest.mark.parametrize("version", [0, 999])
def test_what_the_log_does_not_tell_is_told_by_a_snapshot(live, owner, version):
    batch = make_batch(owner, 1)
    lifecycle.pause_batch(batch=batch)
    Event.objects.filter(version=1).delete()
    told = live.batch(owner, batch, f"version={version}").next()
    assert (told["type"], told["version"]) == ("snapshot", 2)


@pytest.mark.parametrize("query", ["version=", "version=-1", "version=x", "version=1.0"])
def test_a_version_that_is_none_is_refused(live, owner, query):
    assert live.batch(owner, make_batch(owner, 1), query).closed() == 4400


def test_another_users_batch_is_not_there(live, owner):
    batch = make_batch(make_user(), 1)
    assert live.batch(owner, batch).closed() == 4404
    assert live.batch(owner, batch, "version=0").closed() == 4404


def test_nor_is_one_that_is_deleted_or_never_was(live, owner):
    batch = make_batch(owner, 1)
    start(batch)
    lifecycle.delete_batch(batch=batch)
    assert live.batch(owner, batch).closed() == 4404
    assert live.connect(owner, f"/ws/batches/{uuid.uuid4()}/").closed() == 4404


@pytest.mark.parametrize("path", ["/ws/", "/ws/batches/", "/ws/batches/7/", "/api/v1/batches/"])
def test_at_other_addresses_there_is_nothing(live, owner, path):
    socket = live.connect(owner, path)
    assert socket._next() == {"type": "websocket.close"}
    assert socket.subprotocol is None


def test_nobody_is_told_of_batches_that_he_does_not_follow(live, owner, hints):
    batch, other = make_batch(owner, 1), make_batch(make_user(), 1)
    socket, beside = live.batch(owner, batch), live.batch(other.owner, other)
    socket.next()
    beside.next()
    hints()
    lifecycle.pause_batch(batch=other)
    assert beside.next()["batch_id"] == str(other.pk)
    assert socket.is_silent(for_s=0.1)


def test_a_look_takes_as_many_queries_for_all_as_for_one(live, owner, monkeypatch):
    import batches.live.news as news

    counts = []
    read = hub_module.read_news

    def counted(**kwargs):
        with CaptureQueriesContext(news.connection) as queries:
            found = read(**kwargs)
        counts.append((len(queries), len(found.batches)))
        return found

    monkeypatch.setattr(hub_module, "read_news", counted)
    batches = [make_batch(owner, 2) for _ in range(5)]
    sockets = [live.batch(owner, one) for one in batches for _ in range(3)]
    watcher = live.me(owner)
    for socket in (*sockets, watcher):
        socket.next()
    monkeypatch.setattr(wake, "_tell_now", lambda message: None)
    for batch in batches:
        lifecycle.cancel_batch(batch=batch)
    for socket in sockets:
        assert len(socket.until(has_ended)) == 3
    assert max(queries for queries, _ in counts) <= 2
    assert max(told for _, told in counts) > 1
