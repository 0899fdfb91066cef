"""Signs of life of the deliveries that this process is working on.

A lease is good for `LEASE_SECONDS`. One thread per process prolongs those that are held for
longer, at a third of that time; with the process, or with its way to the database, it ends, and
then others take over.
"""

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Iterator

from django.conf import settings
from django.db import Error, connection

from batches.models import Lease

logger = logging.getLogger(__name__)

_turns: dict[uuid.UUID, int] = {}
_lock = threading.Lock()
_pid = 0


@contextlib.contextmanager
def holding(lease_id: uuid.UUID, turn: int) -> Iterator[None]:
    """Prolong a lease for as long as the block takes."""
    _start()
    with _lock:
        _turns[lease_id] = turn
    try:
        yield
    finally:
        with _lock:
            # A later turn of the same lease may be held by now.
            if _turns.get(lease_id) == turn:
                del _turns[lease_id]


def interval_s() -> float:
    return float(settings.LEASE_SECONDS) / 3


def _start() -> None:
    """Start the thread of this process: threads do not live on in a forked child."""
    global _pid
    if _pid == os.getpid():
        return
    with _lock:
        if _pid != os.getpid():
            _pid = os.getpid()
            _turns.clear()
            threading.Thread(target=_beat, name="heartbeat", daemon=True).start()


def _beat() -> None:
    pause = threading.Event()
    while not pause.wait(interval_s()):
        with _lock:
            turns = dict(_turns)
        if not turns:
            continue
        try:
            Lease.objects.renew(turns)
        except Error as error:
            logger.warning("cannot prolong %d leases: %s", len(turns), error)
        finally:
            connection.close()
