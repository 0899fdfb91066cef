"""Waking the workers by task name: the one way from here to `worker`.

A wake-up is a hint. All that waits is in rows, and the beat looks at them every second; so a
broker that is away delays work and never fails the call that made it.
"""

import logging
import uuid
from collections.abc import Sequence
from functools import cache, partial

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

# Where it is told that a batch, or a generation without one, has a new version.
NEWS = "picture:news"
_PENDING_KEY = "picture:dispatch"
_PENDING_TIMEOUT_S = 1


@cache
def _redis() -> Redis:
    """One pool of connections per process. A broker that is away costs milliseconds."""
    return Redis.from_url(
        settings.REDIS_URL,
        socket_connect_timeout=1,
        socket_timeout=1,
        retry=Retry(NoBackoff(), 1),
    )


def dispatch() -> None:
    """Have the admission run once the current transaction is committed."""
    transaction.on_commit(dispatch_now)


def dispatch_now(countdown_s: float = 0) -> None:
    # One message on its way is enough for any number of wakers: it clears the key before it
    # reads the rows, so whoever finds the key set has committed in time to be seen.
    key = f"{_PENDING_KEY}-later" if countdown_s else _PENDING_KEY
    try:
        if _redis().set(key, 1, nx=True, ex=_PENDING_TIMEOUT_S):
            current_app.send_task(
                DISPATCH, countdown=countdown_s or None, retry=False, ignore_result=True
            )
    except (RedisError, OperationalError) as error:
        logger.warning("broker unavailable, the beat will dispatch: %s", error)


def follow(generation_ids: Sequence[uuid.UUID]) -> None:
    """Have these looked at once the current transaction is committed, and not when planned."""
    transaction.on_commit(partial(_follow_now, [str(one) for one in generation_ids]))


def _follow_now(generation_ids: list[str]) -> None:
    try:
        current_app.send_task(FOLLOW, args=(generation_ids,), retry=False, ignore_result=True)
    except (RedisError, OperationalError) as error:
        logger.warning("broker unavailable, they are looked at when planned: %s", error)


def publish() -> None:
    """Have what is due to be published worked on once the current transaction is committed."""
    transaction.on_commit(_publish_now)


def _publish_now() -> None:
    try:
        current_app.send_task(PUBLISH, retry=False, ignore_result=True)
    except (RedisError, OperationalError) as error:
        logger.warning("broker unavailable, the sweep will publish: %s", error)


def tell(owner_id: int, subject: uuid.UUID) -> None:
    """Have those who follow a batch, or a single generation, told once this is committed.

    A hint like the others: what there is to tell stands in the rows.
    """
    transaction.on_commit(partial(_tell_now, f"{owner_id} {subject}"))


def _tell_now(message: str) -> None:
    try:
        _redis().publish(NEWS, message)
    except (RedisError, OperationalError) as error:
        logger.warning("broker unavailable, followers look at the rows: %s", error)


def dispatch_begins() -> None:
    _redis().delete(_PENDING_KEY, f"{_PENDING_KEY}-later")
