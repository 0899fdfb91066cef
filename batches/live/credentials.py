"""Who opens a connection, and whether that still holds.

A token comes in the header `Authorization: Bearer <token>`, or from a browser, which cannot set
one, as the subprotocol after `bearer`; never in the address, which is logged. A session's cookie
counts only with the `Origin` of our own pages: a browser sends it along from any page.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user, get_user_model
from django.contrib.sessions.models import Session
from django.db.models import Q
from django.db.models.functions import Now
from django.http.cookie import parse_cookie
from django.http.request import split_domain_port, validate_host
from knox.crypto import hash_token
from knox.models import get_token_model

SUBPROTOCOL = "bearer"

_UNEXPIRED = Q(expiry=None) | Q(expiry__gt=Now())


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a connection was opened with: the digest of a token, or the key of a session."""

    user_id: int
    token_digest: str = ""
    session_key: str = ""
    session_hash: str = ""


def offers_token(scope: Mapping[str, Any]) -> bool:
    """Whether the client speaks our subprotocol; then it wants to hear it."""
    return SUBPROTOCOL in scope["subprotocols"]


def credentials_of(scope: Mapping[str, Any]) -> Credentials | None:
    """Whose connection this is; `None`: nobody's. One query, of a session two."""
    headers = dict(scope["headers"])
    token = _token_in(headers)
    if token is None and offers_token(scope):
        others = [one for one in scope["subprotocols"] if one != SUBPROTOCOL]
        token = others[0] if others else ""
    if token is not None:
        return _by_token(token)
    key = _session_key_in(headers)
    return _by_session(key) if key and _is_from_our_pages(headers) else None


def caller_of(scope: Mapping[str, Any]) -> Credentials | None:
    """Whose HTTP request this is; `None`: nobody's. What a session may do is Django's to say."""
    headers = dict(scope["headers"])
    token = _token_in(headers)
    if token is not None:
        return _by_token(token)
    key = _session_key_in(headers)
    return _by_session(key) if key else None


def _token_in(headers: Mapping[bytes, bytes]) -> str | None:
    said = headers.get(b"authorization", b"").decode("latin1")
    kind, _, token = said.strip().partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _session_key_in(headers: Mapping[bytes, bytes]) -> str | None:
    cookies = parse_cookie(headers.get(b"cookie", b"").decode("latin1"))
    return cookies.get(settings.SESSION_COOKIE_NAME)


def _by_token(token: str) -> Credentials | None:
    if not token.isascii() or not token.isprintable():
        return None
    digest = hash_token(token)
    found = get_token_model().objects.filter(_UNEXPIRED, pk=digest, user__is_active=True)
    user_id = found.values_list("user_id", flat=True).first()
    return None if user_id is None else Credentials(user_id, token_digest=digest)


def _by_session(key: str) -> Credentials | None:
    if not key.isascii() or not key.isprintable():  # quoted, a cookie may hold what no text may
        return None
    session = import_module(settings.SESSION_ENGINE).SessionStore(key)
    user = get_user(cast(Any, SimpleNamespace(session=session)))
    if user.pk is None or not user.is_active:
        return None
    return Credentials(user.pk, session_key=key, session_hash=user.get_session_auth_hash())


def _is_from_our_pages(headers: Mapping[bytes, bytes]) -> bool:
    origin = headers.get(b"origin", b"").decode("latin1").lower()
    host = headers.get(b"host", b"").decode("latin1").lower()
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    domain, _ = split_domain_port(host)
    return (
        bool(domain)
        and validate_host(domain, settings.ALLOWED_HOSTS)
        and urlsplit(origin).netloc == host
    )


def still_valid(held: Collection[Credentials]) -> set[Credentials]:
    """Those that would still be taken. Three queries, however many there are."""
    digests = {one.token_digest for one in held if one.token_digest}
    keys = {one.session_key for one in held if one.session_key}
    tokens = get_token_model().objects.filter(_UNEXPIRED, pk__in=digests, user__is_active=True)
    known_digests = set(tokens.values_list("pk", flat=True)) if digests else set()
    known_keys: set[str] = set()
    hashes: dict[int, str] = {}
    if keys:
        sessions = Session.objects.filter(pk__in=keys, expire_date__gt=Now())
        known_keys = set(sessions.values_list("pk", flat=True))
        ids = {one.user_id for one in held if one.session_key}
        users = get_user_model().objects.filter(pk__in=ids, is_active=True)
        hashes = {user.pk: user.get_session_auth_hash() for user in users}
    return {
        one
        for one in held
        if one.token_digest in known_digests
        or (one.session_key in known_keys and hashes.get(one.user_id) == one.session_hash)
    }
