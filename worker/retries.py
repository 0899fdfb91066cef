"""How long to wait before something is tried again, for all tasks."""

from collections.abc import Callable
from typing import Any

from batches.database import DATABASE_AWAY

JITTER = 0.25
DATABASE_RETRY_S = 2.0
# A restart of the database puts a task off; only the rows know how far it had come.
WHILE_DATABASE_AWAY: dict[str, Any] = {
    "autoretry_for": DATABASE_AWAY,
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "max_retries": None,
}


def backoff_s(retry: int, *, delays: list[float], rand: Callable[[], float]) -> float:
    """Seconds before retry number `retry`, from 0: as configured, and up to a quarter more."""
    return delays[retry] * (1 + JITTER * rand())
