"""Waking the workers by task name: the one way from here to `worker`.

A wake-up is a hint. All that waits is in rows, and the beat looks at them every second; so a
broker that is away delays work and never fails the call that made it.
"""

import contextlib
import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from celery import current_app
from django.conf import settings
from django.db import transaction
from kombu.exceptions import OperationalError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

logger = logging.getLogger(__name__)

DISPATCH = "work.dispatch"
FOLLOW = "work.follow"
PUBLISH = "publish.dispatch"
NAMES = (DISPATCH, FOLLOW, PUBLISH)

# Where it is told which batches, or generations without one, have a new version.
NEWS = "picture:news"
BROKER_AWAY = (RedisError, OperationalError)
_PENDING_KEY = "picture:dispatch"
_PENDING_TIMEOUT_S = 1
# What piles up without a worker is bounded; by more than the clocks of two machines may differ, or
# a worker that is ahead would drop every one of them.
EXPIRES_S = 900


@cache
def _redis() -> Redis:
    """One pool of connections per process. A broker that is away costs milliseconds."""
    return Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=1,
        socket_timeout=1,
        retry=Retry(NoBackoff(), 1),
    )


@contextlib.contextmanager
def _hint(otherwise: str) -> Iterator[None]:
    try:
        yield
    except BROKER_AWAY as error:
        logger.warning("broker unavailable, %s: %s", otherwise, error)


def _send(name: str, **options: Any) -> None:
    current_app.send_task(name, **options, expires=EXPIRES_S, retry=False, ignore_result=True)


def dispatch() -> None:
    """Have the admission run once the current transaction is committed."""
    transaction.on_commit(dispatch_now)


def dispatch_now(countdown_s: float = 0) -> None:
    # One message on its way is enough for any number of wakers: it clears the key before it
    # reads the rows, so whoever finds the key set has committed in time to be seen.
    key = f"{_PENDING_KEY}-later" if countdown_s else _PENDING_KEY
    with _hint("the beat will dispatch"):
        if _redis().set(key, 1, nx=True, ex=_PENDING_TIMEOUT_S):
            _send(DISPATCH, countdown=countdown_s or None)


def follow(generation_ids: Sequence[uuid.UUID]) -> None:
    """Have these looked at once the current transaction is committed, and not when planned."""
    transaction.on_commit(partial(_follow_now, [str(one) for one in generation_ids]))


def _follow_now(generation_ids: list[str]) -> None:
    with _hint("they are looked at when planned"):
        _send(FOLLOW, args=(generation_ids,))


def publish() -> None:
    """Have what is due to be published worked on once the current transaction is committed."""
    transaction.on_commit(_publish_now)


def _publish_now() -> None:
    with _hint("the sweep will publish"):
        _send(PUBLISH)


def tell(news: Iterable[tuple[int, uuid.UUID]]) -> None:
    """Have those who follow batches, or single generations, told once this is committed.

    By owner and id; as one message, a line each.
    """
    if message := "\n".join(f"{owner_id} {subject}" for owner_id, subject in news):
        transaction.on_commit(partial(_tell_now, message))


def _tell_now(message: str) -> None:
    with _hint("followers look at the rows"):
        _redis().publish(NEWS, message)


def dispatch_begins() -> None:
    _redis().delete(_PENDING_KEY, f"{_PENDING_KEY}-later")
