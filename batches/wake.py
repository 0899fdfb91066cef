"""Waking the workers by task name: the one way from here to `worker`.

A wake-up is a hint. All that waits is in rows, and the beat looks at them every second; so a
broker that is away delays work and never fails the call that made it.
"""

import logging

from celery import current_app
from django.core.cache import cache
from django.db import transaction
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

DISPATCH = "work.dispatch"
FINALISE = "work.finalise_batch"
NAMES = (DISPATCH, FINALISE)

_PENDING_KEY = "dispatch-pending"
_PENDING_TIMEOUT_S = 1


def dispatch() -> None:
    """Have the admission run once the current transaction is committed."""
    transaction.on_commit(dispatch_now)


def dispatch_now(countdown_s: float = 0) -> None:
    # One message on its way is enough for any number of wakers: it clears the key before it
    # reads the rows, so whoever finds the key set has committed in time to be seen.
    key = f"{_PENDING_KEY}-later" if countdown_s else _PENDING_KEY
    try:
        if cache.add(key, 1, timeout=_PENDING_TIMEOUT_S):
            current_app.send_task(DISPATCH, countdown=countdown_s or None, retry=False)
    except (RedisError, OperationalError) as error:
        logger.warning("broker unavailable, the beat will dispatch: %s", error)


def dispatch_begins() -> None:
    cache.delete_many([_PENDING_KEY, f"{_PENDING_KEY}-later"])


def finalise(batch_id: object) -> None:
    """Have a batch finalised once the current transaction is committed."""

    def send() -> None:
        try:
            current_app.send_task(FINALISE, args=[str(batch_id)], retry=False)
        except (RedisError, OperationalError) as error:
            logger.warning("broker unavailable, the sweep will finalise: %s", error)

    transaction.on_commit(send)
