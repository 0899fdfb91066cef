"""Is this process alive; can the system take and do work."""

import logging
import uuid
from collections.abc import Callable

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import Error, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache

from batches import pools
from batches.pools import PoolState
from picture.celery import app

logger = logging.getLogger(__name__)

BROKER_TIMEOUT_S = 1
WORKERS_TIMEOUT_S = 1.0


@never_cache
def live(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


class NotServed(Exception):
    """Some queue has no worker."""


def _database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _broker() -> None:
    with app.connection_for_read() as broker:
        broker.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_S)


def _storage() -> None:
    name = default_storage.save(f"health/{uuid.uuid4()}", ContentFile(b"ok"))
    default_storage.delete(name)


def _workers() -> None:
    served: set[str] = set()
    queues = app.control.inspect(timeout=WORKERS_TIMEOUT_S).active_queues() or {}
    for worker_queues in queues.values():
        served |= {queue["name"] for queue in worker_queues}
    if missing := {"generate", "download", "control"} - served:
        raise NotServed(f"no worker serves {', '.join(sorted(missing))}")


CHECKS: dict[str, Callable[[], None]] = {
    "database": _database,
    "broker": _broker,
    "storage": _storage,
    "workers": _workers,
}


def _providers() -> dict[str, PoolState]:
    """What is admitted to each provider; nothing while nobody can tell."""
    try:
        return pools.states()
    except Error:  # told by the check of the database
        return {}


@never_cache
def ready(request: HttpRequest) -> JsonResponse:
    """200 when all parts answer, 503 with the reasons when one does not.

    A provider in trouble is no reason: work is taken and waits. Then the status is `degraded`.
    """
    checks = {}
    for name, check in CHECKS.items():
        try:
            check()
            checks[name] = "ok"
        except Exception as error:  # whatever keeps a part from answering is the finding
            # The address of a part is for the log, not for whoever asks.
            logger.warning("%s does not answer: %s", name, error)
            checks[name] = str(error) if isinstance(error, NotServed) else type(error).__name__
    providers = _providers()
    is_ready = all(result == "ok" for result in checks.values())
    if not is_ready:
        status = "unavailable"
    elif any(state != PoolState.OK for state in providers.values()):
        status = "degraded"
    else:
        status = "ok"
    return JsonResponse(
        {"status": status, "checks": checks, "providers": providers},
        status=200 if is_ready else 503,
    )
