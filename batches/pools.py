"""Providers in trouble: what is admitted to them meanwhile, and who is told.

rate limit      nothing more until the time that the provider names
unavailable     after `CIRCUIT_THRESHOLD` in a row the circuit is open: nothing for
                `CIRCUIT_OPEN_S`, then one probe at a time until one is accepted
refused         credentials or credit: nothing until an operator clears the alert
"""

from datetime import timedelta
from enum import StrEnum

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from batches import wake
from batches.models import Alert, AlertCode, Pool
from generation.provider import ErrorClass

# Less than the attempts of one generation, so that an outage never fails one that is alone.
CIRCUIT_THRESHOLD = 3
CIRCUIT_OPEN_S = 10
# A probe is answered by then, or its worker has died.
PROBE_S = 20

STOPPING = {
    ErrorClass.AUTH: AlertCode.AUTH,
    ErrorClass.INSUFFICIENT_CREDIT: AlertCode.INSUFFICIENT_CREDIT,
}


class PoolState(StrEnum):
    OK = "ok"
    RATE_LIMITED = "rate_limited"
    CIRCUIT_OPEN = "circuit_open"
    CIRCUIT_HALF_OPEN = "circuit_half_open"
    STOPPED = "stopped"


def state_of(pool: Pool, *, is_blocked: bool) -> PoolState:
    """`is_blocked`: whether its `blocked_until` is still to come, by the database's clock."""
    if pool.stopped_by:
        return PoolState.STOPPED
    if pool.failure_count >= CIRCUIT_THRESHOLD:
        return PoolState.CIRCUIT_OPEN if is_blocked else PoolState.CIRCUIT_HALF_OPEN
    return PoolState.RATE_LIMITED if is_blocked else PoolState.OK


def states() -> dict[str, PoolState]:
    """Every provider's pool by name."""
    pools = Pool.objects.exclude(name=Pool.SYSTEM).order_by("name")
    blocked = set(pools.filter(blocked_until__gt=Now()).values_list("name", flat=True))
    return {pool.name: state_of(pool, is_blocked=pool.name in blocked) for pool in pools}


def away() -> list[str]:
    """The providers whose circuit is open, and which nobody has stopped."""
    pools = Pool.objects.filter(failure_count__gte=CIRCUIT_THRESHOLD, stopped_by="")
    return list(pools.order_by("name").values_list("name", flat=True))


def usable() -> set[str]:
    """The providers that are there, as far as is known."""
    pools = Pool.objects.exclude(name=Pool.SYSTEM)
    fit = pools.filter(failure_count__lt=CIRCUIT_THRESHOLD, stopped_by="")
    return set(fit.values_list("name", flat=True))


def block_pool(*, name: str, seconds: float) -> None:
    """Admit nothing more to a provider for a while. Never shortens a block."""
    until = Now() + timedelta(seconds=seconds)
    Pool.objects.filter(Q(blocked_until=None) | Q(blocked_until__lt=until), name=name).update(
        blocked_until=until
    )


@transaction.atomic
def record_unavailable(*, name: str, message: str) -> bool:
    """Count a submission that found nobody there; whether the circuit is open now."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE batches_pool
            SET failure_count = failure_count + 1,
                blocked_until = CASE WHEN failure_count + 1 >= %(threshold)s THEN
                    GREATEST(blocked_until,
                             statement_timestamp() + make_interval(secs => %(open)s))
                    ELSE blocked_until END
            WHERE name = %(name)s RETURNING failure_count >= %(threshold)s
            """,
            {"name": name, "threshold": CIRCUIT_THRESHOLD, "open": CIRCUIT_OPEN_S},
        )
        row = cursor.fetchone()
    is_open = bool(row and row[0])
    if is_open:
        Alert.objects.raise_(AlertCode.CIRCUIT_OPEN, name, message)
    return is_open


@transaction.atomic
def record_available(*, name: str) -> None:
    """A submission was answered: forget those that were not."""
    pool = Pool.objects.select_for_update().filter(name=name, failure_count__gt=0).first()
    if pool is None:
        return
    was_open = pool.failure_count >= CIRCUIT_THRESHOLD
    pool.failure_count = 0
    if was_open:
        pool.blocked_until = None
    pool.save(update_fields=["failure_count", "blocked_until"])
    if was_open:
        Alert.objects.open().filter(code=AlertCode.CIRCUIT_OPEN, subject=name).update(
            cleared_at=Now()
        )
        wake.dispatch()


@transaction.atomic
def stop_pool(*, name: str, error_class: ErrorClass, message: str) -> None:
    """Admit nothing more to a provider until an operator clears the alert."""
    Pool.objects.filter(name=name).update(stopped_by=error_class)
    Alert.objects.raise_(STOPPING[error_class], name, message)


@transaction.atomic
def clear_alert(*, alert_id: int, user_id: int | None) -> bool:
    """Close an alert and let the work that it stopped go on. `False`: it was closed already."""
    alert = Alert.objects.open().filter(pk=alert_id).first()
    if alert is None:
        return False
    # The pool before the alert, as everywhere.
    list(Pool.objects.select_for_update().filter(name=alert.subject))
    if not Alert.objects.open().filter(pk=alert_id).update(cleared_at=Now(), cleared_by=user_id):
        return False
    if alert.code in STOPPING.values():
        others = Alert.objects.open().filter(code__in=STOPPING.values(), subject=alert.subject)
        left = others.values_list("code", flat=True).first() or ""
        Pool.objects.filter(name=alert.subject).update(stopped_by=left)
    if alert.code == AlertCode.CIRCUIT_OPEN:
        Pool.objects.filter(name=alert.subject).update(failure_count=0, blocked_until=None)
    wake.dispatch()
    return True
