"""Who sends a file or fetches a ZIP is looked up before a place is held for him."""

import asyncio

import pytest
from django.conf import settings
from django.db import OperationalError
from django.test import Client

from picture import asgi
from tests.factories import make_token, make_user

pytestmark = pytest.mark.django_db(transaction=True)


def user_id(*headers):
    return asyncio.run(asgi._user_id({"type": "http", "headers": list(headers)}))


def bearer(token):
    return b"authorization", f"Bearer {token}".encode()


def session_of(user):
    client = Client()
    client.force_login(user)
    key = client.cookies[settings.SESSION_COOKIE_NAME].value
    return f"{settings.SESSION_COOKIE_NAME}={key}".encode()


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """Reads here and now: the threads of the real one keep connections of other tests."""

    class Hub:
        async def read(self, function):
            return await asyncio.to_thread(function)

    monkeypatch.setattr(asgi, "_hub", Hub())


def test_a_user_is_one_caller_whatever_he_says_beside():
    user, other = make_user(), make_user()
    token, session = bearer(make_token(user)), session_of(user)
    ways = [
        (token,),
        (token, (b"cookie", b"theme=dark")),
        (token, (b"cookie", session_of(other))),
        (bearer(make_token(user)),),
        ((b"cookie", session),),
        ((b"cookie", b"theme=dark; " + session),),
    ]
    assert {user_id(*headers) for headers in ways} == {user.pk}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("pic_made_up")],
        [(b"cookie", b"sessionid=x")],
        [(b"cookie", b"x")],
        [(b"cookie", b'sessionid="\\000aaaaaaaa"')],  # NUL, when it has been unquoted
    ],
)
def test_anybody_else_is_nobody(headers):
    assert user_id(*headers) is None


def test_nor_does_a_session_stand_in_for_a_bad_token():
    session = b"cookie", session_of(make_user())
    assert user_id(bearer("pic_made_up"), session) is None


def test_nobody_is_known_while_the_database_is_away(monkeypatch):
    def away(scope):
        raise OperationalError

    monkeypatch.setattr(asgi, "caller_of", away)
    assert user_id(bearer("pic_x")) is None
