"""What the hub keeps of whom, and how often it looks."""

import threading
import time
import uuid

import pytest

from batches import lifecycle, wake
from batches.live import hub as hub_module
from tests.batches.live.conftest import ME, PATIENCE_S
from tests.batches.live.support import fail, has_ended, start
from tests.factories import make_batch, make_generation, make_token, make_user


class Looks:
    """Reads of what is new, counted; the next one is held back, once it has read, if so asked."""

    def __init__(self, read):
        self._read, self.count = read, 0
        self._hold, self._has_read, self._go_on = (threading.Event() for _ in range(3))

    def __call__(self, **kwargs):
        news = self._read(**kwargs)
        self.count += 1
        if self._hold.is_set():
            self._hold.clear()
            self._has_read.set()
            assert self._go_on.wait(PATIENCE_S)
        return news

    def hold(self):
        """Hold back a look for all: those that were asked for by then are over."""
        self.await_two()
        self._hold.set()
        assert self._has_read.wait(PATIENCE_S)

    def go_on(self):
        self._go_on.set()

    def await_two(self):
        """One may have begun before this is called; the second has not."""
        count, deadline_s = self.count, time.monotonic() + PATIENCE_S
        while self.count < count + 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)


@pytest.fixture
def looks(monkeypatch):
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 0.05)
    looks = Looks(hub_module.read_news)
    monkeypatch.setattr(hub_module, "read_news", looks)
    yield looks
    looks.go_on()


def told_next_of_what_is_new(socket, user):
    """Whether the next that a client hears is of what ends now, and of nothing before."""
    new = make_generation(user)
    lifecycle.cancel_generation(generation=new)
    return socket.next()["generation_id"] == str(new.pk)


def test_who_comes_during_a_look_for_others_is_told_nothing_old(live, owner, looks):
    other = make_user()
    lifecycle.cancel_generation(generation=make_generation(other))
    live.me(owner).next()
    looks.hold()
    socket = live.me(other)
    assert socket.next()["type"] == "snapshot"
    looks.go_on()
    looks.await_two()
    assert told_next_of_what_is_new(socket, other)


def test_nor_of_a_batch_that_he_has_followed_to_its_end(live, owner, looks):
    other = make_user()
    batch = make_batch(other, 1)
    alone = live.batch(other, batch)
    alone.next()
    (generation,) = start(batch)
    fail(generation)
    alone.until(has_ended)
    live.me(owner).next()
    looks.hold()
    socket = live.me(other)
    assert socket.next()["type"] == "snapshot"
    alone.leave()
    looks.go_on()
    looks.await_two()
    new = make_batch(other, 1)
    assert socket.next()["batch_id"] == str(new.pk)


def test_who_comes_back_during_a_look_is_told_nothing_old(live, owner, looks):
    live.me(owner).next()
    first = live.me(other := make_user())
    first.next()
    looks.hold()
    lifecycle.cancel_generation(generation=make_generation(other))
    first.leave()
    socket = live.me(other)
    assert socket.next()["type"] == "snapshot"
    looks.go_on()
    looks.await_two()
    assert told_next_of_what_is_new(socket, other)


@pytest.mark.parametrize("read", ["read_overview", "read_first"])
def test_of_who_cannot_be_told_anything_nothing_is_kept(live, owner, monkeypatch, read):
    def broken(**kwargs):
        raise ZeroDivisionError

    batch, token = make_batch(owner, 1), make_token(owner)
    path = ME if read == "read_overview" else f"/ws/batches/{batch.pk}/"
    with monkeypatch.context() as patched:
        patched.setattr(hub_module, read, broken)
        for _ in range(hub_module.MAX_CLIENTS_PER_USER):
            socket = live.socket(path, {"authorization": f"Bearer {token}"})
            with pytest.raises(ZeroDivisionError):
                socket.task.result(PATIENCE_S)
    assert (live.hub._clients, live.hub._per_user) == ({}, {})
    assert live.connect(owner, path).next()["type"] == "snapshot"


def test_who_leaves_takes_nothing_from_others(live, owner, hints):
    batch, second = make_batch(owner, 1), make_batch(owner, 1)
    leaver, stays = live.batch(owner, batch), live.batch(owner, batch)
    alone, everything = live.batch(owner, second), live.me(owner)
    beside = live.batch(other := make_user(), theirs := make_batch(other, 1))
    for socket in (leaver, stays, alone, everything, beside):
        socket.next()
    hints()
    leaver.leave()
    alone.leave()
    for one in (batch, second, theirs):
        lifecycle.pause_batch(batch=one)
    assert stays.next()["batch_id"] == str(batch.pk)
    assert beside.next()["batch_id"] == str(theirs.pk)
    assert {everything.next()["batch_id"] for _ in range(2)} == {str(batch.pk), str(second.pk)}
    everything.leave()
    assert set(live.hub._tracks) == {batch.pk, theirs.pk}
    assert dict(live.hub._tracks_of) == {owner.pk: {batch.pk}, other.pk: {theirs.pk}}


def test_many_hints_of_a_user_are_looked_after_five_times_a_second(
    live, owner, hints, looks, monkeypatch
):
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 60.0)
    socket = live.me(owner)
    socket.next()
    hints()
    count, began_s = looks.count, time.monotonic()
    while (took_s := time.monotonic() - began_s) < 5 * hub_module.FLUSH_EVERY_S:
        wake._tell_now(f"{owner.pk} {uuid.uuid4()}")
    batch = make_batch(owner, 1)
    assert socket.next()["batch_id"] == str(batch.pk)
    took_s = time.monotonic() - began_s
    assert 3 <= looks.count - count <= 2 + took_s / hub_module.FLUSH_EVERY_S


def test_the_first_event_after_he_came_does_not_wait(request, owner, monkeypatch, seldom):
    monkeypatch.setattr(hub_module, "FLUSH_EVERY_S", 60.0)
    live, hints = request.getfixturevalue("live"), request.getfixturevalue("hints")
    socket = live.me(owner)
    socket.next()
    hints()
    batch = make_batch(owner, 1)
    assert socket.next()["batch_id"] == str(batch.pk)
