"""What makes up for everything that was lost: messages, workers, the broker.

One sweep runs at a time, by an advisory lock of the database. Each step is idempotent and bounded,
and one that fails does not keep the others from their turn. Files are cleaned beside it, and
schedules are run, under locks of their own: a storage that hangs, or a picture that has to be
fetched, must not hold up everything else.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta

from celery import current_app
from django.db import connection, transaction
from django.db.models.functions import Now

from batches import cleanup, lifecycle, pools, publications, reconcile, schedules, scheduling, wake
from batches.models import (
    Alert,
    AlertCode,
    Attempt,
    AttemptOutcome,
    Batch,
    Event,
    Generation,
    GenerationStatus,
    IdempotentRequest,
    Image,
    Lease,
    TakenOver,
    WebhookReceipt,
)
from generation.provider import ErrorClass, Failure
from worker import canvas
from worker.providers import can_make, get_provider

logger = logging.getLogger(__name__)

LIMIT = 200
DESCRIBE_LIMIT = 2_000
# More than the workers have room for in a while.
PUBLISH_LIMIT = 50
# Folders at a time: a storage may be slow.
CLEAN_LIMIT = 20
# A generation that so many deliveries have died of is given up.
POISON_AFTER = 5
POISON = "poison"
RECONCILE_EVERY_S = 30.0
# Twice the age at which a webhook is refused as stale.
RECEIPTS_KEPT = timedelta(minutes=10)
EVENTS_KEPT = timedelta(days=7)
# Among the advisory locks of the database.
SWEEP_LOCK, FILES_LOCK, SCHEDULES_LOCK = 0x70696374, 0x70696375, 0x70696376


def sweep() -> bool:
    """Take every step once. `False`: another sweep is at it."""
    with _alone(SWEEP_LOCK) as alone:
        if not alone:
            return False
        for step in STEPS:
            try:
                step()
            except Exception:
                logger.exception("sweep: %s failed", step.__name__)
        return True


def clean_files() -> bool:
    """Delete files that no picture needs. `False`: somebody is at it."""
    with _alone(FILES_LOCK) as alone:
        if alone:
            cleanup.clean_due(CLEAN_LIMIT)
        return alone


def run_schedules() -> bool:
    """Make the batches whose time has come. `False`: somebody is at it."""
    with _alone(SCHEDULES_LOCK) as alone:
        if alone:
            schedules.run_due(limit=LIMIT)
        return alone


@contextlib.contextmanager
def _alone(lock: int) -> Iterator[bool]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [lock])
        (alone,) = cursor.fetchone()
    try:
        yield alone
    finally:
        # With the connection the lock is gone as well.
        if alone and connection.connection is not None and not connection.connection.closed:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [lock])


def dispatch() -> None:
    scheduling.follow_default_cap()
    wake.dispatch_now()


def start_scheduled() -> None:
    """Put batches in line whose time has come."""
    lifecycle.start_scheduled(limit=LIMIT)


def fall_back() -> None:
    """Have what waits for a provider that is away made by another, where there is one."""
    for provider in pools.away():
        usable = pools.usable()
        moved = lifecycle.fall_back_queued(
            provider=provider, usable=usable, can_make=can_make(usable), limit=LIMIT
        )
        if moved:
            logger.warning("%s is away: %d generations fall back to another", provider, moved)


def take_over() -> None:
    """Send messages for the leases that have run out; give up what keeps killing its worker."""
    Lease.objects.adopt(LIMIT)
    # Undone when the broker is away, so that they are taken over as soon as it is back.
    with transaction.atomic():
        taken = Lease.objects.take_over(LIMIT)
        for one in taken:
            if one.status not in (GenerationStatus.PROCESSING, GenerationStatus.DOWNLOADING):
                continue
            if one.crash_count < POISON_AFTER:
                logger.warning(
                    "generation %s: lease taken over, %d crashes",
                    one.member.generation_id,
                    one.crash_count,
                )
                canvas.publish(one.member)
    for one in taken:
        if one.status not in (GenerationStatus.PROCESSING, GenerationStatus.DOWNLOADING):
            Lease.objects.end(one.member.generation_id)
        elif one.crash_count >= POISON_AFTER:
            _give_up(one)


def _give_up(taken: TakenOver) -> None:
    generation = Generation.objects.filter(pk=taken.member.generation_id).first()
    if generation is None:
        return
    attempt = Attempt.objects.filter(
        generation=generation,
        number=generation.attempt_count,
        outcome__in=(AttemptOutcome.OPEN, AttemptOutcome.SUCCEEDED),
    ).first()
    if taken.status == GenerationStatus.PROCESSING and attempt and attempt.provider_id:
        # Nobody will follow it any more. Whatever the answer, it stops by itself in time.
        try:
            get_provider(generation.provider).cancel(attempt.provider_id)
        except Exception:  # what killed its workers must not keep others from being given up
            logger.exception("generation %s: cannot be cancelled", generation.pk)
    message = f"Its worker died {taken.crash_count} times while working on it."
    failure = Failure(ErrorClass.INTERRUPTED, message)
    if attempt is not None and attempt.provider_id is None:
        message += " It may have been charged."
        failure = Failure(ErrorClass.TIMEOUT_UNKNOWN, message)
    if lifecycle.fail_generation(
        generation=generation, attempt=attempt, failure=failure, code=POISON, outside_chain=True
    ):
        logger.error("generation %s: given up: %s", generation.pk, message)
        Alert.objects.raise_(AlertCode.POISON, f"generation {generation.pk}", message)
    else:
        lifecycle.confirm_cancel(
            generation=generation, attempt=attempt, result=failure, outside_chain=True
        )


def publish_due(limit: int = PUBLISH_LIMIT) -> None:
    """Send messages for publications that are due; give up what keeps killing its worker."""
    # As in `take_over`.
    with transaction.atomic():
        due = publications.take_due(limit)
        for one in due:
            if one.crash_count < POISON_AFTER:
                current_app.send_task(
                    "publish.deliver",
                    args=(str(one.publication_id), one.turn),
                    expires=wake.EXPIRES_S,
                    retry=False,
                    ignore_result=True,
                )
    for one in due:
        if one.crash_count >= POISON_AFTER:
            message = f"Its worker died {one.crash_count} times while working on it."
            if publications.fail_publication(
                publication_id=one.publication_id, turn=one.turn, code=POISON, message=message
            ):
                logger.error("publication %s: given up: %s", one.publication_id, message)
                Alert.objects.raise_(AlertCode.POISON, f"publication {one.publication_id}", message)


def finalise() -> None:
    stragglers = Batch.objects.ready_to_finalise().values_list("pk", flat=True)[:LIMIT]
    for batch_id in stragglers:
        lifecycle.finalise_batch(batch_id=batch_id)


def remove_deleted() -> None:
    lifecycle.remove_deleted(limit=LIMIT)


def describe_images() -> None:
    """Have the gallery find the images of before there was one."""
    Image.objects.describe(DESCRIBE_LIMIT)


def forget() -> None:
    """Drop what is kept for a time only."""
    receipts = WebhookReceipt.objects.filter(received_at__lt=Now() - RECEIPTS_KEPT)
    WebhookReceipt.objects.filter(
        pk__in=receipts.order_by("received_at").values("pk")[: LIMIT * 10]
    ).delete()
    events = Event.objects.filter(created_at__lt=Now() - EVENTS_KEPT)
    Event.objects.filter(pk__in=events.order_by("created_at").values("pk")[: LIMIT * 10]).delete()
    requests = IdempotentRequest.objects.filter(created_at__lt=Now() - IdempotentRequest.KEPT)
    IdempotentRequest.objects.filter(
        pk__in=requests.order_by("created_at").values("pk")[: LIMIT * 10]
    ).delete()


_reconciled_at_s = 0.0
_lanes_after: int | None = None
_batches_after: uuid.UUID | None = None


def compare_counters() -> None:
    """A page of lanes and one of batches, now and then; all of them in the course of time."""
    global _reconciled_at_s, _lanes_after, _batches_after
    if time.monotonic() - _reconciled_at_s < RECONCILE_EVERY_S:
        return
    _reconciled_at_s = time.monotonic()
    _lanes_after = reconcile.reconcile_lanes(_lanes_after)
    _batches_after = reconcile.reconcile_batches(_batches_after)


STEPS: tuple[Callable[[], None], ...] = (
    dispatch,
    start_scheduled,
    fall_back,
    take_over,
    publish_due,
    finalise,
    remove_deleted,
    describe_images,
    forget,
    compare_counters,
)
