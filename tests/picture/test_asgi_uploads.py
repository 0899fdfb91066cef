"""Who sends a file is looked up before a place is held for it."""

import asyncio

import pytest
from django.db import OperationalError

from picture import asgi
from tests.factories import make_token, make_user

pytestmark = pytest.mark.django_db(transaction=True)


def is_known(*headers):
    scope = {"type": "http", "headers": list(headers)}
    return asyncio.run(asgi._is_known(scope))


def bearer(token):
    return b"authorization", f"Bearer {token}".encode()


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """Reads here and now: the threads of the real one keep connections of other tests."""

    class Hub:
        async def read(self, function):
            return await asyncio.to_thread(function)

    monkeypatch.setattr(asgi, "_hub", Hub())


def test_a_good_token_is_known():
    assert is_known(bearer(make_token(make_user())))


@pytest.mark.parametrize("headers", [[], [bearer("pic_made_up")], [(b"cookie", b"sessionid=x")]])
def test_anything_else_is_not(headers):
    assert not is_known(*headers)


def test_nobody_is_known_while_the_database_is_away(monkeypatch):
    def away(scope):
        raise OperationalError

    monkeypatch.setattr(asgi, "credentials_of", away)
    assert not is_known(bearer("pic_x"))
