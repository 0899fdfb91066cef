"""All that a user has over one WebSocket."""

from batches import lifecycle
from batches.live import hub as hub_module
from batches.live.news import MAX_OPEN_BATCHES
from batches.models import Batch
from tests.batches.live.support import complete, fail, has_ended, kinds, start
from tests.factories import make_batch, make_generation, make_user


def test_it_begins_with_what_is_open_newest_first(live, owner):
    ended, older, newer = (make_batch(owner, 1, name=name) for name in ("ended", "older", "newer"))
    lifecycle.cancel_batch(batch=ended)
    make_batch(make_user(), 1)
    told = live.me(owner).next()
    assert told["type"] == "snapshot"
    assert [one["batch_id"] for one in told["batches"]] == [str(newer.pk), str(older.pk)]
    assert told["batches"][0] == {
        "batch_id": str(newer.pk),
        "name": "newer",
        "status": "pending",
        "total_count": 1,
        "completed_count": 0,
        "failed_count": 0,
        "cancelled_count": 0,
        "progress": 0,
        "version": 1,
    }


def test_it_begins_with_so_many_at_most(live, owner):
    for _ in range(MAX_OPEN_BATCHES + 1):
        make_batch(owner, 1)
    assert len(live.me(owner).next()["batches"]) == MAX_OPEN_BATCHES


def test_a_new_batch_is_told_of_and_then_what_becomes_of_it(live, owner, hints, seldom):
    socket = live.me(owner)
    assert socket.next()["batches"] == []
    hints()
    batch = make_batch(owner, 1)
    told = socket.next()
    assert (told["type"], told["batch_id"], told["version"]) == ("batch_progress", str(batch.pk), 1)
    complete(*start(batch))
    lifecycle.finalise_batch(batch_id=batch.pk)
    messages = socket.until(has_ended)
    assert kinds(messages).count("batch_job_complete") == 1
    assert messages[-1]["status"] == "completed"


def test_without_any_hint_all_of_it_comes_by_the_next_look(live, owner, no_hints):
    socket = live.me(owner)
    socket.next()
    batch = make_batch(owner, 1)
    assert socket.next()["batch_id"] == str(batch.pk)
    single = make_generation(owner)
    lifecycle.cancel_generation(generation=single)
    assert socket.next()["generation_id"] == str(single.pk)


def test_the_end_of_a_single_image_is_told_once(live, owner, hints, monkeypatch):
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 0.05)
    before, during = make_generation(owner), make_generation(owner)
    lifecycle.cancel_generation(generation=before)
    socket = live.me(owner)
    socket.next()
    hints()
    lifecycle.cancel_generation(generation=during)
    during.refresh_from_db()
    assert socket.next() == {
        "type": "batch_job_complete",
        "batch_id": None,
        "generation_id": str(during.pk),
        "index": 0,
        "status": "cancelled",
        "success": False,
        "image_id": None,
        "error": None,
        "version": during.version,
    }
    assert socket.is_silent(for_s=0.3)


def test_others_hear_nothing_of_it(live, owner, hints):
    other = make_user()
    socket, beside = live.me(owner), live.me(other)
    socket.next()
    beside.next()
    hints()
    batch = make_batch(other, 1)
    lifecycle.cancel_generation(generation=make_generation(other))
    seen = [beside.next(), beside.next()]
    assert {one["batch_id"] for one in seen} == {str(batch.pk), None}
    assert socket.is_silent(for_s=0.1)


def test_a_deletion_is_told_and_the_connection_stays(live, owner, hints):
    batch = make_batch(owner, 1)
    socket = live.me(owner)
    socket.next()
    hints()
    lifecycle.delete_batch(batch=batch)
    assert socket.next()["type"] == "batch_deleted"
    other = make_batch(owner, 1)
    assert socket.next()["batch_id"] == str(other.pk)


def test_all_who_follow_are_told_whatever_else_is_followed(live, owner, hints, monkeypatch):
    """Who follows one batch, or comes later, takes nothing away from who follows all."""
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 0.05)
    first = live.me(owner)
    first.next()
    hints()
    batch = make_batch(owner, 2)
    alone, second = live.batch(owner, batch), live.me(owner)
    alone.next()
    second.next()
    for generation in start(batch):
        fail(generation)
    ends = {}
    for name, socket in (("first", first), ("alone", alone), ("second", second)):
        messages = socket.until(has_ended)
        ends[name] = [one["version"] for one in messages if one["type"] == "batch_job_complete"]
        assert messages[-1]["version"] == Batch.objects.get().version
    assert len(set(ends["first"])) == len(ends["first"]) == 2
    assert ends["first"] == ends["alone"] == ends["second"]


def test_a_batch_that_is_tried_again_long_after_is_told_of_from_there(live, owner, monkeypatch):
    monkeypatch.setattr(hub_module, "OVERLAP_S", 0.0)
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 0.05)
    batch = make_batch(owner, 2)
    socket = live.me(owner)
    socket.next()
    generations = start(batch)
    for generation in generations:
        fail(generation)
    socket.until(has_ended)
    live.await_that(lambda: batch.pk not in live.hub._tracks)
    batch.refresh_from_db()
    lifecycle.retry_generations(batch=batch, generations=generations[:1])
    told = socket.next()
    assert (told["type"], told["status"]) == ("batch_progress", "processing")


def test_nothing_is_kept_of_who_has_left(live, owner, hints):
    batch = make_batch(owner, 1)
    sockets = [live.batch(owner, batch), live.me(owner)]
    for socket in sockets:
        socket.next()
        socket.leave()
    hub = live.hub
    kept = [*hub._tracks, *hub._tracks_of, *hub._watches, *hub._clients, *hub._per_user]
    assert kept == []
