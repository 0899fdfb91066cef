"""Signs of life of the deliveries that this process is working on.

A lease is good for `LEASE_SECONDS`, of a generation as of a publication. One thread per process
prolongs those that are held for longer, at a third of that time; with the process, or with its way
to the database, it ends, and then others take over.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from django.conf import settings
from django.db import Error, connection

from batches.models import Lease

logger = logging.getLogger(__name__)

# Each thing that a delivery waits for has a bound; one that takes longer hangs, and others may go
# on.
HELD_MAX_S = 300.0

# Prolongs what is held: turns by id.
Renew = Callable[[dict[uuid.UUID, int]], None]


@dataclass(slots=True)
class _Held:
    turn: int
    renew: Renew
    since_s: float


_held: dict[uuid.UUID, _Held] = {}
_lock = threading.Lock()
_pid = 0


@contextlib.contextmanager
def holding(lease_id: uuid.UUID, turn: int, renew: Renew | None = None) -> Iterator[None]:
    """Prolong a lease for as long as the block takes; by `renew` if it is none of a generation."""
    _start()
    with _lock:
        _held[lease_id] = _Held(turn, renew or Lease.objects.renew, time.monotonic())
    try:
        yield
    finally:
        with _lock:
            # A later turn of the same lease may be held by now.
            if lease_id in _held and _held[lease_id].turn == turn:
                del _held[lease_id]


def goes_on(lease_id: uuid.UUID) -> None:
    """Say that a block which holds a lease has come further: it does not hang."""
    with _lock:
        if lease_id in _held:
            _held[lease_id].since_s = time.monotonic()


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
            _held.clear()
            threading.Thread(target=_beat, name="heartbeat", daemon=True).start()


def _beat() -> None:
    pause = threading.Event()
    while not pause.wait(interval_s()):
        since_s = time.monotonic() - HELD_MAX_S
        turns: defaultdict[Renew, dict[uuid.UUID, int]] = defaultdict(dict)
        with _lock:
            for lease_id, one in _held.items():
                if one.since_s > since_s:
                    turns[one.renew][lease_id] = one.turn
        for renew, mine in turns.items():
            try:
                renew(mine)
            except Error as error:
                logger.warning("cannot prolong %d leases: %s", len(mine), error)
            except Exception:
                # Whatever it is, it must not end all signs of life of this process for good.
                logger.exception("cannot prolong %d leases", len(mine))
            finally:
                connection.close()
