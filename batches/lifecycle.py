"""Every write of a status.

All of them go through `_move`, a compare-and-set on the row: the update names the statuses it
may start from, and of any number of callers exactly one sees it succeed. `False` means that
someone else was faster: the caller returns quietly. Counters, leases and the version change in
the same transaction as the status they belong to.

Rows are locked in the order generation, lane, batch.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce, Now

from batches import wake
from batches.models import (
    BATCH_FROM,
    GENERATION_FROM,
    NOTHING_OPEN,
    PRIORITY_BATCH,
    PRIORITY_SINGLE,
    Attempt,
    AttemptOutcome,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Image,
    Lane,
    Lease,
    Pool,
)
from generation.provider import ErrorClass, Failure, Prediction


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """One generation to be made, already checked against its model."""

    prompt: str
    final_prompt: str
    model: str
    provider: str
    settings: dict[str, Any]
    input: dict[str, Any]
    negative_prompt: str = ""
    seed: int | None = None
    name: str = ""
    custom_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


# --- Submission ---------------------------------------------------------------------------------


@transaction.atomic
def submit_batch(
    *,
    owner_id: int,
    generations: Sequence[NewGeneration],
    settings_asked: dict[str, Any],
    name: str = "",
    style: str = "",
    genre: str = "",
    tags: Sequence[str] = (),
    priority: int = PRIORITY_BATCH,
) -> Batch:
    """Store a batch with its generations in line. All of it, or nothing.

    The result knows its `generations`: reading them takes no query.
    """
    batch = Batch.objects.create(
        owner_id=owner_id,
        name=name,
        settings=settings_asked,
        style=style,
        genre=genre,
        tags=list(tags),
        priority=priority,
        total_count=len(generations),
    )
    rows = _enqueue(owner_id, generations, priority, batch)
    known = batch.generations.all()
    known._result_cache = rows
    # What a prefetch leaves behind.
    batch._prefetched_objects_cache = {"generations": known}  # type: ignore[attr-defined]
    return batch


@transaction.atomic
def submit_generation(
    *, owner_id: int, generation: NewGeneration, priority: int = PRIORITY_SINGLE
) -> Generation:
    """Store a single generation, in line."""
    return _enqueue(owner_id, [generation], priority, batch=None)[0]


def _enqueue(
    owner_id: int, generations: Sequence[NewGeneration], priority: int, batch: Batch | None
) -> list[Generation]:
    rows = Generation.objects.bulk_create(
        Generation(
            owner_id=owner_id,
            batch=batch,
            index=index,
            priority=priority,
            prompt=new.prompt,
            final_prompt=new.final_prompt,
            negative_prompt=new.negative_prompt,
            seed=new.seed,
            name=new.name,
            custom_id=new.custom_id,
            metadata=new.metadata,
            model=new.model,
            provider=new.provider,
            settings=new.settings,
            input=new.input,
        )
        for index, new in enumerate(generations)
    )
    Lane.objects.enqueue(owner_id, len(rows), default_cap=settings.MAX_PARALLEL_PER_USER)
    wake.dispatch()
    return rows


# --- The primitive ------------------------------------------------------------------------------


def _move(
    generation_ids: Collection[uuid.UUID],
    to: GenerationStatus,
    assignments: str,
    values: Sequence[Any] = (),
    *,
    only_from: GenerationStatus | None = None,
    attempt_count: int | None = None,
) -> int:
    """Set the status of those generations that may go there; how many did.

    `attempt_count` is the admission that the caller acts for: a late delivery of an earlier one
    finds the status it expects and must not move what belongs to the next. `assignments` is SQL:
    the most frequent write of all is not built anew each time.
    """
    allowed = GENERATION_FROM[to] if only_from is None else (only_from,)
    condition = "" if attempt_count is None else " AND attempt_count = %s"
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE batches_generation SET status = %s, version = version + 1, {assignments} "
            f"WHERE id = ANY(%s) AND status = ANY(%s){condition}",
            [
                to,
                *values,
                list(generation_ids),
                list(allowed),
                *([] if attempt_count is None else [attempt_count]),
            ],
        )
        return int(cursor.rowcount)


def _move_batches(batches: Q, to: BatchStatus | Case, **fields: Any) -> int:
    """Set the status of those batches that may go there; how many did.

    All terminal statuses may be reached from the same ones, so one rule serves a computed `to`.
    """
    allowed = BATCH_FROM[to if isinstance(to, BatchStatus) else BatchStatus.COMPLETED]
    return Batch.objects.filter(batches, status__in=allowed).update(
        status=to, version=F("version") + 1, **fields
    )


def _count_in_batch(generation: Generation, counter: str) -> None:
    """Count one ended generation, in the transaction that ends it."""
    if generation.batch_id is not None:
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE batches_batch SET {counter} = {counter} + 1, version = version + 1, "
                "cost_usd = cost_usd + %s WHERE id = %s",
                [generation.cost_usd, generation.batch_id],
            )


# --- Processing ---------------------------------------------------------------------------------


def start_generations(
    *, generation_ids: Collection[uuid.UUID], batch_ids: Collection[uuid.UUID]
) -> None:
    """Move admitted generations on, and those batches of which they are the first.

    The caller holds the rows of the generations, so none can be lost on the way.
    """
    _move(
        generation_ids,
        GenerationStatus.PROCESSING,
        "started_at = COALESCE(started_at, statement_timestamp()), "
        "attempt_count = attempt_count + 1, progress = 0",
    )
    if batch_ids:
        _move_batches(Q(pk__in=batch_ids), BatchStatus.PROCESSING, started_at=Now())


def begin_attempt(*, generation: Generation) -> Attempt:
    """Record that a submission is about to be made. Must be committed before it is.

    Raises IntegrityError when this admission has begun its one attempt already.
    """
    return Attempt.objects.create(
        generation=generation,
        number=generation.attempt_count,
        provider=generation.provider,
        model=generation.model,
    )


def record_submission(*, attempt: Attempt, prediction: Prediction) -> None:
    """Keep the provider's id of an accepted submission."""
    Attempt.objects.filter(pk=attempt.pk, provider_id=None).update(
        provider_id=prediction.id, submitted_at=Now()
    )


def record_progress(*, generation: Generation, progress: int) -> None:
    """Show how far the provider is. Never moves backwards."""
    Generation.objects.filter(
        pk=generation.pk, status=GenerationStatus.PROCESSING, progress__lt=progress
    ).update(progress=progress, version=F("version") + 1)


def _fail_attempt(attempt: Attempt, failure: Failure) -> None:
    """Record why an attempt gave no image; also of one that succeeded with a useless output."""
    outcome = AttemptOutcome.FAILED
    if failure.error_class == ErrorClass.TIMEOUT_UNKNOWN:
        outcome = AttemptOutcome.SUBMISSION_UNKNOWN
    fields: dict[str, Any] = {"raw": {"body": failure.raw}} if failure.raw else {}
    Attempt.objects.filter(
        pk=attempt.pk, outcome__in=(AttemptOutcome.OPEN, AttemptOutcome.SUCCEEDED)
    ).update(
        outcome=outcome,
        finished_at=Coalesce("finished_at", Now()),
        error_class=failure.error_class,
        error_message=failure.message,
        provider_code=failure.provider_code[:100],
        **fields,
    )


@transaction.atomic
def begin_download(
    *,
    generation: Generation,
    lease_id: uuid.UUID,
    attempt: Attempt,
    prediction: Prediction,
    cost_usd: Decimal,
) -> bool:
    """The provider is done: keep its outputs and give the slot back."""
    moved = _move(
        [generation.pk],
        GenerationStatus.DOWNLOADING,
        "downloading_at = statement_timestamp(), progress = 100, cost_usd = cost_usd + %s",
        [cost_usd],
        attempt_count=generation.attempt_count,
    )
    if not moved:
        return False
    Attempt.objects.filter(pk=attempt.pk, outcome=AttemptOutcome.OPEN).update(
        outcome=AttemptOutcome.SUCCEEDED,
        finished_at=Now(),
        provider_id=prediction.id,
        submitted_at=Coalesce("submitted_at", Now()),
        outputs=list(prediction.outputs),
        raw=prediction.raw,
        run_s=prediction.run_s,
        total_s=prediction.total_s,
        cost_usd=cost_usd,
    )
    _release(lease_id)
    return True


def _release(lease_id: uuid.UUID) -> None:
    if Lease.objects.release(lease_id).is_wanted:
        wake.dispatch()


@transaction.atomic
def requeue_generation(
    *,
    generation: Generation,
    lease_id: uuid.UUID | None,
    attempt: Attempt,
    failure: Failure,
    delay_s: float,
    counts_as_retry: bool,
) -> bool:
    """Send a generation back in line for another attempt, not before `delay_s` from now."""
    moved = _move(
        [generation.pk],
        GenerationStatus.QUEUED,
        # While nothing was ever accepted, the time to the deadline has not begun either.
        "not_before = statement_timestamp() + make_interval(secs => %s), progress = 0, "
        "retry_count = retry_count + %s, started_at = CASE WHEN %s OR EXISTS (SELECT FROM "
        "batches_attempt WHERE generation_id = batches_generation.id AND provider_id IS NOT NULL) "
        "THEN started_at END",
        [delay_s, int(counts_as_retry), counts_as_retry],
        only_from=GenerationStatus(generation.status),
        attempt_count=generation.attempt_count,
    )
    if not moved:
        return False
    _fail_attempt(attempt, failure)
    if lease_id is not None:
        Lease.objects.release(lease_id)
    wake.dispatch()  # for the slot, and for the time when this one is due
    return True


@transaction.atomic
def fail_generation(
    *,
    generation: Generation,
    lease_id: uuid.UUID | None,
    attempt: Attempt | None,
    failure: Failure,
    code: str = "",
) -> bool:
    """End a generation without an image. `code` defaults to the failure's class."""
    moved = _move(
        [generation.pk],
        GenerationStatus.FAILED,
        "finished_at = statement_timestamp(), not_before = NULL, "
        "error_code = %s, error_message = %s",
        [code or failure.error_class, failure.message],
        only_from=GenerationStatus(generation.status),
        attempt_count=generation.attempt_count,
    )
    if not moved:
        return False
    if attempt is not None:
        _fail_attempt(attempt, failure)
    if lease_id is not None:
        _release(lease_id)
    _count_in_batch(generation, "failed_count")
    return True


@transaction.atomic
def complete_generation(*, generation: Generation, images: Sequence[Image]) -> bool:
    """Publish the stored images and end the generation, in one step."""
    moved = _move(
        [generation.pk],
        GenerationStatus.COMPLETED,
        "finished_at = statement_timestamp(), progress = 100",
        attempt_count=generation.attempt_count,
    )
    if not moved:
        return False
    Image.objects.bulk_create(images)
    _count_in_batch(generation, "completed_count")
    return True


def discard_files(images: Sequence[Image]) -> None:
    """Delete stored files whose rows were never saved."""
    for image in images:
        image.file.delete(save=False)
        image.thumbnail.delete(save=False)


@transaction.atomic
def delete_image(*, image: Image) -> None:
    """Delete an image: its row now, its files once that is certain."""
    deleted, _ = Image.objects.filter(pk=image.pk).delete()
    if not deleted:
        return
    Generation.objects.filter(pk=image.generation_id).update(
        deleted_image_count=F("deleted_image_count") + 1, version=F("version") + 1
    )
    transaction.on_commit(lambda: discard_files([image]))


# --- Batches ------------------------------------------------------------------------------------


def finalise_batch(*, batch_id: uuid.UUID) -> bool:
    """End a batch of which nothing is open.

    Called by the chord's body and by the sweep, in any order and any number of times.
    """
    outcome = Case(
        When(completed_count=F("total_count"), then=Value(BatchStatus.COMPLETED)),
        When(completed_count__gt=0, then=Value(BatchStatus.PARTIAL)),
        When(failed_count=0, then=Value(BatchStatus.CANCELLED)),
        default=Value(BatchStatus.FAILED),
    )
    return _move_batches(Q(pk=batch_id) & NOTHING_OPEN, outcome, finished_at=Now()) == 1


# --- Pools --------------------------------------------------------------------------------------


def block_pool(*, name: str, seconds: float) -> None:
    """Admit nothing more to a provider for a while. Never shortens a block."""
    until = Now() + timedelta(seconds=seconds)
    Pool.objects.filter(Q(blocked_until=None) | Q(blocked_until__lt=until), name=name).update(
        blocked_until=until
    )
