"""Who may open a WebSocket, for how long, and who is cut off."""

import asyncio
import time
from datetime import timedelta

import psycopg2
import pytest
from django.conf import settings as django_settings
from django.contrib.auth import SESSION_KEY
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone
from knox.models import get_token_model
from uvicorn.config import Config
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol
from uvicorn.server import ServerState

from batches import lifecycle
from batches.live import consumers
from batches.live import hub as hub_module
from tests.batches.live.conftest import ME
from tests.batches.live.support import has_ended
from tests.factories import make_batch, make_token, make_user
from tests.faults.proxy import TcpProxy


def session_of(user):
    client = Client()
    client.force_login(user)
    return client.cookies[django_settings.SESSION_COOKIE_NAME].value


def with_cookie(live, user, **headers):
    cookie = f"theme=dark; {django_settings.SESSION_COOKIE_NAME}={session_of(user)}"
    return live.socket(ME, {"host": "localhost:8000", "cookie": cookie, **headers})


def test_a_token_comes_in_the_header_or_as_a_subprotocol(live, owner):
    token = make_token(owner)
    in_header = live.socket(ME, {"authorization": f"bearer {token}"})
    in_subprotocol = live.socket(ME, subprotocols=["bearer", token])
    for socket, subprotocol in ((in_header, None), (in_subprotocol, "bearer")):
        assert socket.next()["type"] == "snapshot"
        assert socket.subprotocol == subprotocol


@pytest.mark.parametrize(
    ("headers", "subprotocols"),
    [
        ({}, []),
        ({"authorization": "Bearer pic_unknown"}, []),
        ({"authorization": "Bearer"}, []),
        ({"authorization": "Bearer pic_\N{LATIN SMALL LETTER E WITH ACUTE}"}, []),
        ({"authorization": "Basic dXNlcjpwYXNz"}, []),
        ({}, ["bearer"]),
        ({}, ["bearer", "pic_unknown"]),
        ({"cookie": "sessionid=unknown", "origin": "http://x", "host": "x"}, []),
        ({"cookie": "sessionid=unknown", "origin": "http://localhost", "host": "localhost"}, []),
        (
            {
                "cookie": 'sessionid="\\000aaaaaaaa"',  # NUL, when it has been unquoted
                "origin": "http://localhost",
                "host": "localhost",
            },
            [],
        ),
    ],
)
def test_nobody_is_told_anything(live, owner, headers, subprotocols):
    socket = live.socket(ME, headers, subprotocols)
    assert socket.closed() == 4401
    assert socket.subprotocol == ("bearer" if subprotocols else None)


def test_a_token_in_the_address_is_none(live, owner):
    assert live.socket(ME, query=f"token={make_token(owner)}").closed() == 4401


def test_a_token_that_has_expired_or_whose_user_is_gone_is_none(live):
    users = [make_user(), make_user(is_active=False)]
    tokens = [make_token(user) for user in users]
    get_token_model().objects.filter(user=users[0]).update(expiry=timezone.now())
    for token in tokens:
        assert live.socket(ME, {"authorization": f"Bearer {token}"}).closed() == 4401


@pytest.mark.parametrize(
    ("headers", "is_taken"),
    [
        ({"origin": "http://localhost:8000"}, True),
        ({"origin": "https://studio.example"}, True),
        ({"origin": "http://localhost:8001"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://localhost:8000.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({}, False),
        ({"origin": "http://evil.example", "host": "evil.example"}, False),
    ],
)
def test_a_session_counts_from_our_own_pages_only(live, owner, settings, headers, is_taken):
    settings.CSRF_TRUSTED_ORIGINS = ["https://studio.example"]
    socket = with_cookie(live, owner, **headers)
    if is_taken:
        assert socket.next()["type"] == "snapshot"
    else:
        assert socket.closed() == 4401


def test_a_session_without_anybody_is_nobody(live, owner):
    client = Client()
    session = client.session
    session["x"] = 1
    session.save()
    assert SESSION_KEY not in session
    cookie = f"{django_settings.SESSION_COOKIE_NAME}={session.session_key}"
    headers = {"host": "localhost", "origin": "http://localhost", "cookie": cookie}
    assert live.socket(ME, headers).closed() == 4401


def test_who_is_signed_out_later_is_sent_away(owner, monkeypatch, request):
    monkeypatch.setattr(hub_module, "CREDENTIALS_EVERY_S", 0.05)
    live = request.getfixturevalue("live")
    other, third, leaver = make_user(), make_user(), make_user()
    tokens = {user: make_token(user) for user in (owner, other, third)}
    sockets = {
        user: live.socket(ME, {"authorization": f"Bearer {token}"})
        for user, token in tokens.items()
    }
    origin = {"origin": "http://localhost:8000"}
    stays, changes = with_cookie(live, owner, **origin), with_cookie(live, leaver, **origin)
    for socket in (*sockets.values(), stays, changes):
        socket.next()
    get_token_model().objects.filter(user=owner).delete()
    expired = timezone.now() - timedelta(seconds=1)
    get_token_model().objects.filter(user=other).update(expiry=expired)
    leaver.set_password("another")
    leaver.save()
    assert [sockets[owner].closed(), sockets[other].closed(), changes.closed()] == [4401] * 3
    assert sockets[third].is_silent(for_s=0.2)
    assert stays.is_silent()


def test_a_user_has_so_many_connections_and_others_have_theirs(live, owner, monkeypatch):
    monkeypatch.setattr(hub_module, "MAX_CLIENTS_PER_USER", 2)
    sockets = [live.me(owner), live.me(owner)]
    for socket in sockets:
        socket.next()
    assert live.me(owner).closed() == 4429
    assert live.me(make_user()).next()["type"] == "snapshot"
    sockets[0].leave()
    assert live.me(owner).next()["type"] == "snapshot"


def test_a_ping_is_answered(live, owner):
    socket = live.me(owner)
    socket.next()
    socket.say('{"type": "ping"}')
    assert socket.next() == {"type": "pong"}


@pytest.mark.parametrize("text", ["", "x", "{}", '{"type": "follow"}', "[" * 500, None])
def test_anything_else_ends_the_connection(live, owner, text):
    socket = live.me(owner)
    socket.next()
    socket.call({"type": "websocket.receive", "text": text, "bytes": None if text else b"x"})
    assert socket.closed() == 4400


def test_who_takes_nothing_is_cut_off_and_nobody_waits_for_him(live, owner, monkeypatch, hints):
    monkeypatch.setattr(consumers, "SEND_TIMEOUT_S", 0.3)
    batch = make_batch(owner, 1)
    slow, other = live.batch(owner, batch), live.batch(owner, batch)
    slow.next()
    other.next()
    hints()
    slow.takes.clear()
    began_s = time.monotonic()
    lifecycle.pause_batch(batch=batch)
    assert other.next()["status"] == "paused"
    live.await_that(lambda: slow.aborted)
    slow.task.result(10)
    assert time.monotonic() - began_s < 10
    lifecycle.resume_batch(batch=batch)
    assert other.next()["status"] == "pending"
    assert len(live.hub._clients) == 1


def test_the_server_of_the_product_has_what_a_client_is_cut_off_by():
    config, loop = Config("x", log_config=None, interface="asgi3"), asyncio.new_event_loop()
    config.loaded, config.loaded_app = True, None
    protocol = AutoWebSocketsProtocol(config, ServerState(), {}, _loop=loop)
    loop.close()
    assert protocol.send.__self__ is protocol
    assert "transport" in vars(protocol)


def test_who_takes_too_slowly_is_cut_off_before_much_piles_up(live, owner, monkeypatch, hints):
    monkeypatch.setattr(consumers, "MAX_WAITING_CHARS", 300)
    monkeypatch.setattr(hub_module, "FLUSH_EVERY_S", 0.01)
    batch = make_batch(owner, 1)
    slow = live.batch(owner, batch)
    slow.next()
    hints()
    slow.takes.clear()
    deadline_s = time.monotonic() + 20
    while not slow.aborted:
        assert time.monotonic() < deadline_s
        lifecycle.pause_batch(batch=batch)
        lifecycle.resume_batch(batch=batch)
    assert not live.hub._clients


def cut_off_all():
    """End the connections that threads of the hub have, from the other side."""
    params = connection.get_connection_params()
    with psycopg2.connect(**params) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)",
            [connection.connection.info.backend_pid],
        )
    other.close()


def test_a_database_that_restarts_costs_no_event(live, owner, hints, caplog):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()
    for _ in range(3):
        cut_off_all()
        lifecycle.pause_batch(batch=batch)
        assert socket.next()["status"] == "paused"
        lifecycle.resume_batch(batch=batch)
        assert socket.next()["status"] == "pending"
    assert live.batch(owner, batch).next()["type"] == "snapshot"


def test_while_the_database_is_away_clients_stay_and_new_ones_come_later(
    live, owner, monkeypatch, caplog
):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()

    def away(**kwargs):
        raise OperationalError("gone\nfor a while")

    with monkeypatch.context() as patched:
        patched.setattr(hub_module, "read_news", away)
        patched.setattr(consumers, "credentials_of", lambda scope: away())
        lifecycle.cancel_batch(batch=batch)
        live.await_that(lambda: "live events while the database is away: gone" in caplog.text)
        assert live.batch(owner, batch).closed() == 1013
    assert socket.until(has_ended)[-1]["status"] == "cancelled"
    assert caplog.text.count("while the database is away") == 1


def test_an_error_of_ours_does_not_end_the_news(live, owner, monkeypatch, caplog):
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()

    def broken(**kwargs):
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(hub_module, "read_news", broken)
        lifecycle.pause_batch(batch=batch)
        live.await_that(lambda: "looking for news failed" in caplog.text)
    assert socket.next()["status"] == "paused"


@pytest.fixture
def broker_behind(settings):
    """A proxy before Redis for the hub."""
    path = settings.REDIS_URL.removeprefix("unix://").partition("?")[0]
    with TcpProxy(path) as proxy:
        settings.REDIS_URL = f"redis://127.0.0.1:{proxy.port}/0"
        yield proxy


@pytest.mark.parametrize("fault", ["blackout", "freeze"])
def test_a_redis_that_goes_away_and_comes_back_costs_a_second_at_most(
    fault, broker_behind, request, owner, monkeypatch, caplog
):
    monkeypatch.setattr(hub_module, "SILENCE_S", 0.2)
    monkeypatch.setattr(hub_module, "RECONNECT_S", 0.05)
    live = request.getfixturevalue("live")
    heard = []
    monkeypatch.setattr(
        hub_module.Hub, "_hear", lambda self, told, hear=hub_module.Hub._hear: (
            heard.append(told), hear(self, told)
        )
    )  # fmt: skip
    batch = make_batch(owner, 1)
    socket = live.batch(owner, batch)
    socket.next()

    def hears():
        lifecycle.pause_batch(batch=batch)
        lifecycle.resume_batch(batch=batch)
        return heard

    live.await_that(hears)
    getattr(broker_behind, fault)()
    live.await_that(lambda: "broker unavailable" in caplog.text)
    heard.clear()
    lifecycle.pause_batch(batch=batch)
    assert socket.until(lambda one: one["status"] == "paused")
    assert not heard
    lifecycle.resume_batch(batch=batch)
    broker_behind.heal()
    live.await_that(hears)
