"""Every write of a status.

All of them go through `_move`, a compare-and-set on the row: the update names the statuses it
may start from, and of any number of callers exactly one sees it succeed. `False` means that
someone else was faster: the caller returns quietly. Counters, leases and the version change in
the same transaction as the status they belong to.

Rows are locked in the order generation, lane, batch. What takes work out of line, or puts it
back, holds the admissions before all of them.
"""

import contextlib
import json
import operator
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Case, F, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce, Now

from batches import cleanup, database, wake
from batches.models import (
    BATCH_FROM,
    BATCH_HELD,
    BATCH_OPEN,
    BATCH_TERMINAL,
    END_LEASE,
    FREE_SLOT,
    GENERATION_FROM,
    GENERATION_OPEN,
    GENERATION_RETRYABLE,
    IS_SLOT_WANTED,
    NOTHING_OPEN,
    PRIORITY_BATCH,
    PRIORITY_SINGLE,
    SLOTS_OF_GONE,
    Attempt,
    AttemptOutcome,
    AtWork,
    Batch,
    BatchStatus,
    Event,
    EventKind,
    Generation,
    GenerationKind,
    GenerationReference,
    GenerationStatus,
    Image,
    Lane,
    Lease,
    Pool,
    Publication,
    PublicationStatus,
    WebhookReceipt,
    image_folder,
    search_sql,
)
from generation.provider import ErrorClass, Failure, Prediction


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """One generation to be made, already checked against its model.

    `references` are the ids of the pictures that it is made from, in order. `fallbacks` are other
    ways of making it, see `Generation`.
    """

    prompt: str
    final_prompt: str
    model: str
    provider: str
    settings: dict[str, Any]
    input: dict[str, Any]
    negative_prompt: str = ""
    style: str = ""
    genre: str = ""
    seed: int | None = None
    name: str = ""
    custom_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    kind: str = GenerationKind.GENERATE
    references: tuple[uuid.UUID, ...] = ()
    output_count: int = 1
    fallbacks: Sequence[Mapping[str, Any]] = ()


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
    start_at: datetime | None = None,
    template_id: uuid.UUID | None = None,
) -> Batch:
    """Store a batch with its generations in line. All of it, or nothing.

    With `start_at` they are held back until then. The result knows its `generations`: reading
    them takes no query.
    """
    batch = Batch.objects.create(
        owner_id=owner_id,
        status=BatchStatus.PENDING if start_at is None else BatchStatus.SCHEDULED,
        name=name,
        settings=settings_asked,
        style=style,
        genre=genre,
        tags=list(tags),
        priority=priority,
        total_count=len(generations),
        start_at=start_at,
        template_id=template_id,
    )
    rows = _store_generations(owner_id, generations, priority, batch)
    if start_at is None:
        _line_up(owner_id, len(rows))
    _tell_batches([batch.pk])
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
    (row,) = _store_generations(owner_id, [generation], priority, batch=None)
    _line_up(owner_id, 1)
    return row


def _store_generations(
    owner_id: int, generations: Sequence[NewGeneration], priority: int, batch: Batch | None
) -> list[Generation]:
    is_held = batch is not None and batch.status in BATCH_HELD
    rows = [
        Generation(
            owner_id=owner_id,
            batch=batch,
            index=index,
            status=GenerationStatus.PENDING if is_held else GenerationStatus.QUEUED,
            priority=priority,
            prompt=new.prompt,
            final_prompt=new.final_prompt,
            negative_prompt=new.negative_prompt,
            style=new.style,
            genre=new.genre,
            seed=new.seed,
            name=new.name,
            custom_id=new.custom_id,
            metadata=new.metadata,
            model=new.model,
            provider=new.provider,
            settings=new.settings,
            input=new.input,
            kind=new.kind,
            output_count=new.output_count,
            fallbacks=list(new.fallbacks),
        )
        for index, new in enumerate(generations)
    ]
    database.insert(rows)
    _keep_references(zip(rows, generations, strict=True))
    return rows


def _line_up(owner_id: int, count: int) -> None:
    if count:
        Lane.objects.enqueue(owner_id, count, default_cap=settings.MAX_PARALLEL_PER_USER)
        wake.dispatch()


def _keep_references(planned: Iterable[tuple[Generation, NewGeneration]]) -> None:
    """Note which pictures generations are made from. Raises IntegrityError if one is gone."""
    rows = [
        GenerationReference(generation=generation, reference_id=one, position=position)
        for generation, new in planned
        for position, one in enumerate(new.references)
    ]
    if rows:
        GenerationReference.objects.bulk_create(rows)


# --- The primitive ------------------------------------------------------------------------------


class _Moved(NamedTuple):
    """A generation whose status was set, and where it stood before.

    `told` is what the consequences of the move tell, see `_Consequences`.
    """

    id: uuid.UUID
    was: str
    was_in_line: bool
    cost_usd: Decimal
    owner_id: int
    batch_id: uuid.UUID | None
    version: int
    told: Any = None


@dataclass(frozen=True, slots=True)
class _Consequences:
    """What goes with a move in the same statement, for the moves that every image makes.

    `ctes` is SQL: further parts of its WITH, which may read `moved` (id, was, was_in_line,
    cost_usd, owner_id, batch_id, version). They lock in the order lane, batch. `tells` is an
    expression for what is to be told of it.
    """

    ctes: str = ""
    params: Sequence[Any] = ()
    tells: str = "NULL"


NO_CONSEQUENCES = _Consequences()


def _move(
    generation_ids: Collection[uuid.UUID],
    to: GenerationStatus,
    assignments: str,
    values: Sequence[Any] = (),
    *,
    allowed: Collection[GenerationStatus] = (),
    attempt_count: int | None = None,
    by_owner: bool = False,
    consequences: _Consequences = NO_CONSEQUENCES,
) -> list[_Moved]:
    """Set the status of those generations that may go there, and tell which did.

    `allowed` narrows down what `GENERATION_FROM` says; `by_owner`: it goes beyond that.
    `attempt_count` is the admission that the caller acts for: a late delivery of an earlier one
    finds the status it expects and must not move what belongs to the next. What its owner has
    asked to be cancelled goes nowhere else, and nothing else goes there. `assignments` is SQL:
    the most frequent write of all is not built anew each time.
    """
    assert by_owner or set(allowed) <= set(GENERATION_FROM[to])
    conditions = ""
    if not by_owner:
        is_cancel = to == GenerationStatus.CANCELLED
        conditions += f" AND cancel_requested_at IS {'NOT NULL' if is_cancel else 'NULL'}"
    if attempt_count is not None:
        conditions += " AND attempt_count = %s"
    with connection.cursor() as cursor:
        database.execute(
            cursor,
            f"""
            WITH chosen AS (
                SELECT id, status, status = 'queued' AND not_before IS NULL AS was_in_line
                FROM batches_generation
                WHERE id = ANY(%s) AND status = ANY(%s){conditions} FOR UPDATE
            ), moved AS (
                UPDATE batches_generation generation
                SET status = %s, version = version + 1, {assignments}
                FROM chosen WHERE generation.id = chosen.id
                RETURNING generation.id, chosen.status AS was, was_in_line, cost_usd, owner_id,
                          batch_id, version
            ){consequences.ctes}
            SELECT id, was, was_in_line, cost_usd, owner_id, batch_id, version,
                   {consequences.tells} FROM moved
            """,
            [
                list(generation_ids),
                list(allowed or GENERATION_FROM[to]),
                *([] if attempt_count is None else [attempt_count]),
                to,
                *values,
                *consequences.params,
            ],
        )
        return [_Moved(*row) for row in cursor.fetchall()]


def _move_batches(
    batches: Q, to: BatchStatus | Case, *, ids: Collection[uuid.UUID], **fields: Any
) -> int:
    """Set the status of those batches of these ids that may go there; how many did.

    All terminal statuses may be reached from the same ones, so one rule serves a computed `to`.
    """
    allowed = BATCH_FROM[to if isinstance(to, BatchStatus) else BatchStatus.COMPLETED]
    return _change_batches(batches & Q(status__in=allowed), ids=ids, status=to, **fields)


def _change_batches(batches: Q, *, ids: Collection[uuid.UUID], **fields: Any) -> int:
    """Write to those batches of these ids that are as told, as a new version; how many are."""
    with transaction.atomic(savepoint=False):
        rows = Batch.objects.filter(batches, pk__in=ids)
        changed = rows.update(version=F("version") + 1, **fields)
        if changed:
            _tell_batches(ids)
    return changed


def _tell_batches(ids: Collection[uuid.UUID]) -> None:
    """Log how these batches stand, unless that has been; in the transaction that made it so."""
    with connection.cursor() as cursor:
        database.execute(
            cursor, _LOG_BATCHES.format("batches_batch WHERE id = ANY(%s)"), [list(ids)]
        )
        wake.tell(cursor.fetchall())


# Of which rows: owner_id, id, status, version.
_LOG_BATCHES = """
    INSERT INTO batches_event (owner_id, batch_id, kind, status, version, created_at)
    SELECT owner_id, id, 'batch_progress', status, version, statement_timestamp() FROM {}
    ON CONFLICT (batch_id, version) WHERE batch_id IS NOT NULL DO NOTHING
    RETURNING owner_id, batch_id
"""


def _count_in_batch(
    ended: Sequence[_Moved], counter: str, status: GenerationStatus, *, outside_chain: bool = False
) -> None:
    """Count generations of one batch, or a single one, in the transaction that ends them; log it.

    `outside_chain`: their chains are never completed, so the batch's chord never is either. Then
    whoever ends the last one ends the batch as well.
    """
    if not ended:
        return
    batch_id, version, has_chord = ended[0].batch_id, ended[0].version, True
    if batch_id is not None:
        cost_usd = sum((one.cost_usd for one in ended), Decimal(0))
        with connection.cursor() as cursor:
            cursor.execute(
                f"""
                UPDATE batches_batch
                SET {counter} = {counter} + %s, version = version + %s,
                    cost_usd = cost_usd + %s, has_chord = has_chord AND NOT %s
                WHERE id = %s
                RETURNING version - %s + 1, has_chord
                """,
                [len(ended), len(ended), cost_usd, outside_chain, batch_id, len(ended)],
            )
            version, has_chord = cursor.fetchone()
    Event.objects.bulk_create(
        Event(
            owner_id=one.owner_id,
            batch_id=batch_id,
            generation_id=one.id,
            kind=EventKind.BATCH_JOB_COMPLETE,
            status=status,
            version=version + number,
        )
        for number, one in enumerate(ended)
    )
    wake.tell([(ended[0].owner_id, batch_id or ended[0].id)])
    if batch_id is not None and not has_chord:
        finalise_batch(batch_id=batch_id)


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
        _begin_batches(batch_ids)


def _begin_batches(ids: Collection[uuid.UUID]) -> None:
    """As `_move_batches`, in one statement: an admission may begin as many as it has slots."""
    with connection.cursor() as cursor:
        database.execute(
            cursor,
            f"""
            WITH begun AS (
                UPDATE batches_batch
                SET status = %s, version = version + 1,
                    started_at = COALESCE(started_at, statement_timestamp())
                WHERE id = ANY(%s) AND status = ANY(%s)
                RETURNING owner_id, id, status, version
            ) {_LOG_BATCHES.format("begun")}
            """,
            [BatchStatus.PROCESSING, list(ids), list(BATCH_FROM[BatchStatus.PROCESSING])],
        )
        wake.tell(cursor.fetchall())


def begin_attempt(*, generation: Generation) -> Attempt | None:
    """Record that a submission is about to be made. Must be committed before it is.

    A compare-and-set like every other: `None` when the generation has moved on, or is to be
    cancelled. Raises IntegrityError when this admission has begun its one attempt already.
    """
    token = uuid.uuid4()
    with connection.cursor() as cursor:
        database.execute(
            cursor,
            """
            INSERT INTO batches_attempt
                (generation_id, number, provider, model, callback_token, outcome, outputs,
                 error_class, error_message, provider_code, cost_usd, created_at)
            SELECT id, attempt_count, provider, model, %s::uuid, %s, '[]', '', '', '', 0,
                   statement_timestamp()
            FROM (
                SELECT id, attempt_count, provider, model FROM batches_generation
                WHERE id = %s AND attempt_count = %s AND status = %s
                  AND cancel_requested_at IS NULL
                FOR NO KEY UPDATE
            ) generation
            RETURNING id, created_at
            """,
            [
                token,
                AttemptOutcome.OPEN,
                generation.pk,
                generation.attempt_count,
                GenerationStatus.PROCESSING,
            ],
        )
        row = cursor.fetchone()
    return row and Attempt(
        id=row[0],
        generation=generation,
        number=generation.attempt_count,
        provider=generation.provider,
        model=generation.model,
        callback_token=token,
        created_at=row[1],
    )


def _was_begun_meanwhile(generation: Generation) -> bool:
    """Whether an attempt exists that the caller, who ends its generation, does not know of."""
    return Attempt.objects.filter(
        generation=generation.pk, number=generation.attempt_count
    ).exists()


def record_submission(*, attempt: Attempt, prediction: Prediction) -> bool:
    """Keep the provider's id of an accepted submission.

    `False`: one is known already, or another attempt has it.
    """
    with contextlib.suppress(IntegrityError), transaction.atomic():
        return bool(
            Attempt.objects.filter(pk=attempt.pk, provider_id=None).update(
                provider_id=prediction.id, submitted_at=Now()
            )
        )
    return False


def record_lost_answer(*, attempt: Attempt, failure: Failure) -> None:
    """Keep that the answer to a submission is not coming any more.

    If it was given up meanwhile as one that never arrived, it may have arrived after all.
    """
    told = {"error_class": failure.error_class, "error_message": failure.message}
    unanswered = Attempt.objects.filter(pk=attempt.pk, provider_id=None)
    if not unanswered.filter(outcome=AttemptOutcome.OPEN).update(**told):
        unanswered.update(outcome=AttemptOutcome.SUBMISSION_UNKNOWN, **told)


def put_off(*, work: AtWork, progress: int) -> None:
    """End a delivery that is to look again: show how far the provider is, let go of the lease.

    Progress never moves backwards.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH lease AS (
                UPDATE batches_lease SET is_held = false WHERE id = %s AND turn = %s
            )
            UPDATE batches_generation SET progress = %s, version = version + 1
            WHERE id = %s AND status = %s AND progress < %s
            """,
            [
                work.lease_id,
                work.turn,
                progress,
                work.generation.pk,
                work.generation.status,
                progress,
            ],
        )


class Report(NamedTuple):
    """What a webhook's delivery came to.

    `is_known`: it is about an attempt of ours. `follow`: the generation that has waited for it.
    """

    is_known: bool
    follow: uuid.UUID | None = None


def record_hint(*, provider: str, callback_token: uuid.UUID, delivery_id: str, body: Any) -> Report:
    """Take in an unsigned webhook, once for each delivery: it is time to look.

    What it claims, if anything, is kept as the report, for whoever looks to ask the provider about.
    """
    with transaction.atomic():
        attempt = (
            Attempt.objects.select_for_update()
            .filter(callback_token=callback_token, provider=provider)
            .only("generation_id", "outcome")
            .first()
        )
        if attempt is None:
            return Report(is_known=False)
        is_new = WebhookReceipt.objects.note(provider, delivery_id)
        if not is_new or attempt.outcome != AttemptOutcome.OPEN:
            return Report(is_known=True)
        if body:
            Attempt.objects.filter(pk=attempt.pk).update(report=body)
        return Report(True, attempt.generation_id)


def record_report(
    *, provider: str, callback_token: uuid.UUID, delivery_id: str, prediction: Prediction, body: Any
) -> Report:
    """Take in what a provider's webhook tells, once for each delivery.

    It is about the attempt that has the prediction, if one has: of submissions that cannot be
    told apart, each may have found the other's. Else about the one that the token names.
    """
    with contextlib.suppress(IntegrityError), transaction.atomic():
        named = Q(callback_token=callback_token)
        attempts = {
            attempt.provider_id: attempt
            for attempt in Attempt.objects.select_for_update()
            .filter(named | Q(provider_id=prediction.id), provider=provider)
            .only("generation_id", "provider_id", "callback_token", "outcome", "report")
            .order_by("pk")
        }
        is_ours = any(one.callback_token == callback_token for one in attempts.values())
        attempt = attempts.get(prediction.id) or attempts.get(None)
        if not is_ours or attempt is None:
            return Report(is_known=False)
        is_new = WebhookReceipt.objects.note(provider, delivery_id)
        if not is_new:
            return Report(is_known=True)
        fields: dict[str, Any] = {}
        if attempt.provider_id is None:
            fields = {"provider_id": prediction.id, "submitted_at": Now()}
        is_awaited = attempt.outcome == AttemptOutcome.OPEN and prediction.is_terminal
        if is_awaited and attempt.report is None:
            fields["report"] = body
        if fields:
            Attempt.objects.filter(pk=attempt.pk).update(**fields)
        return Report(True, attempt.generation_id if "report" in fields else None)
    return Report(is_known=False)  # at this moment somebody else has found it for another attempt


@dataclass(frozen=True, slots=True)
class Spent:
    """What work that gave no image has cost. `run_s` are the seconds that it was billed for."""

    cost_usd: Decimal = Decimal(0)
    run_s: float | None = None


NOTHING_SPENT = Spent()


def _end_attempt(
    attempt: Attempt, failure: Failure, *, unanswered: bool, spent: Spent = NOTHING_SPENT
) -> bool:
    """Record why an attempt gave no image; also of one that succeeded with a useless output.

    `unanswered`: that nobody knows its id is the reason, and must still be so.
    """
    outcome = AttemptOutcome.FAILED
    if failure.error_class == ErrorClass.TIMEOUT_UNKNOWN:
        outcome = AttemptOutcome.SUBMISSION_UNKNOWN
    fields: dict[str, Any] = {}
    if failure.answer is not None:
        fields["raw"] = failure.answer
    if spent is not NOTHING_SPENT:
        fields |= {"cost_usd": spent.cost_usd, "run_s": spent.run_s}
    attempts = Attempt.objects.filter(
        pk=attempt.pk, outcome__in=(AttemptOutcome.OPEN, AttemptOutcome.SUCCEEDED)
    )
    if unanswered:
        attempts = attempts.filter(provider_id=None)
    return bool(
        attempts.update(
            outcome=outcome,
            finished_at=Coalesce("finished_at", Now()),
            error_class=failure.error_class,
            error_message=failure.message,
            provider_code=failure.provider_code[:100],
            **fields,
        )
    )


class _Answered(Exception):
    """A submission that was given up was answered after all, or one was made that the caller does
    not know of: undo the transaction."""


def _keep_result(
    attempt: Attempt, prediction: Prediction, outcome: AttemptOutcome, cost_usd: Decimal
) -> None:
    Attempt.objects.filter(pk=attempt.pk, outcome=AttemptOutcome.OPEN).update(
        outcome=outcome,
        finished_at=Now(),
        provider_id=prediction.id,
        submitted_at=Coalesce("submitted_at", Now()),
        outputs=list(prediction.outputs),
        raw=prediction.raw,
        run_s=prediction.run_s,
        total_s=prediction.total_s if outcome == AttemptOutcome.SUCCEEDED else None,
        cost_usd=cost_usd,
        report=None,
        error_class="",
        error_message="",
    )


def begin_download(
    *, generation: Generation, attempt: Attempt, prediction: Prediction, cost_usd: Decimal
) -> bool:
    """The provider is done: keep its outputs and give the slot back."""
    error_class, error_message = "", ""
    if (given := len(prediction.outputs)) < generation.output_count:
        error_class = ErrorClass.PARTIAL_OUTPUT
        error_message = f"{given} of {generation.output_count} images came."
    kept = """
        , kept AS (
            UPDATE batches_attempt attempt
            SET outcome = 'succeeded', finished_at = statement_timestamp(), provider_id = %s,
                submitted_at = COALESCE(submitted_at, statement_timestamp()),
                outputs = %s, raw = %s, run_s = %s, total_s = %s, cost_usd = %s, report = NULL,
                error_class = %s, error_message = %s
            FROM moved WHERE attempt.id = %s AND outcome = 'open'
        )"""
    moved = _move(
        [generation.pk],
        GenerationStatus.DOWNLOADING,
        "downloading_at = statement_timestamp(), progress = 100, cost_usd = cost_usd + %s",
        [cost_usd],
        attempt_count=generation.attempt_count,
        consequences=_Consequences(
            kept + FREE_SLOT + SLOTS_OF_GONE,
            [
                prediction.id,
                json.dumps(list(prediction.outputs)),
                json.dumps(prediction.raw),
                prediction.run_s,
                prediction.total_s,
                cost_usd,
                error_class,
                error_message,
                attempt.pk,
                settings.LEASE_SECONDS,
            ],
            tells=IS_SLOT_WANTED,
        ),
    )
    if moved and moved[0].told:
        wake.dispatch()
    return bool(moved)


def _end_lease(generation_id: uuid.UUID) -> None:
    if Lease.objects.end(generation_id).is_wanted:
        wake.dispatch()


Way = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Detour:
    """Another way of making a generation, `{model, provider, input}`, and those that are left."""

    way: Way
    fallbacks: list[Way]


def find_detour(
    generation: Generation, can_make: Callable[[Way], bool], *, is_refused: bool = False
) -> Detour | None:
    """Find another way of making a generation: the first of its fallbacks that can make it now.

    The way of before stays the last one. `is_refused`: that one refuses it, and goes; if it is
    itself a detour, the way that was asked for is taken up again at the latest. `None`: there is
    no other.
    """
    ways = list(generation.fallbacks)
    original = next((n for n, way in enumerate(ways) if way.get("is_original")), None)
    if is_refused and original is None:
        return None
    place = next((n for n, way in enumerate(ways) if can_make(way)), None)
    if place is None and is_refused:
        place = original
    if place is None:
        return None
    current = {
        "model": generation.model,
        "provider": generation.provider,
        "input": generation.input,
        "is_original": original is None,
    }
    left = [*ways[:place], *ways[place + 1 :]]
    return Detour(ways[place], left if is_refused else [*left, current])


def _fall_back(detours: Mapping[uuid.UUID, Detour]) -> None:
    """Have generations made another way from now on.

    The attempts so far keep what they were made of.
    """
    _keep_in_attempts(list(detours))
    rows = [
        (
            one,
            detour.way["model"],
            detour.way["provider"],
            json.dumps(detour.way["input"]),
            json.dumps(detour.fallbacks),
        )
        for one, detour in detours.items()
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE batches_generation generation
            SET model = given.model, provider = given.provider, input = given.input::jsonb,
                fallbacks = given.fallbacks::jsonb
            FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[])
                AS given (id, model, provider, input, fallbacks)
            WHERE generation.id = given.id
            """,
            [list(column) for column in zip(*rows, strict=True)],
        )


@transaction.atomic
def fall_back_queued(
    *, provider: str, usable: Collection[str], can_make: Callable[[Way], bool], limit: int
) -> int:
    """Have queued generations of a provider that is away made by another; how many.

    `usable` are the providers that can be given work. One without a way there stays.
    """
    Pool.objects.hold_admissions()
    ways = [Q(fallbacks__contains=[{"provider": name}]) for name in sorted(usable)]
    if not ways:
        return 0
    waiting = Generation.objects.filter(
        reduce(operator.or_, ways), provider=provider, status=GenerationStatus.QUEUED
    ).exclude(fallbacks=[])
    rows = waiting.only("model", "provider", "input", "fallbacks").order_by("pk")[:limit]
    detours = {one.pk: found for one in rows if (found := find_detour(one, can_make)) is not None}
    if detours:
        _fall_back(detours)
        wake.dispatch()
    return len(detours)


def requeue_generation(
    *,
    generation: Generation,
    attempt: Attempt,
    failure: Failure,
    delay_s: float,
    counts_as_retry: bool,
    unanswered: bool = False,
    spent: Spent = NOTHING_SPENT,
    detour: Detour | None = None,
) -> bool:
    """Send a generation back in line for another attempt, not before `delay_s` from now.

    `unanswered`: because it is certain that its submission never arrived. `detour`: it is made
    another way from now on.
    """
    with contextlib.suppress(_Answered), transaction.atomic():
        moved = _move(
            [generation.pk],
            GenerationStatus.QUEUED,
            # Waiting is no work: neither in line, nor for a provider that takes nothing.
            "not_before = statement_timestamp() + make_interval(secs => %s), progress = 0, "
            "cost_usd = cost_usd + %s, retry_count = retry_count + %s, "
            "active_s = active_s + COALESCE((SELECT "
            "extract(epoch FROM statement_timestamp() - created_at) FROM batches_lease "
            "WHERE generation_id = generation.id), 0) * %s",
            [delay_s, spent.cost_usd, int(counts_as_retry), int(counts_as_retry)],
            allowed=[GenerationStatus(generation.status)],
            attempt_count=generation.attempt_count,
        )
        if not moved:
            return False
        if not _end_attempt(attempt, failure, unanswered=unanswered, spent=spent) and unanswered:
            raise _Answered
        if detour is not None:
            _fall_back({generation.pk: detour})
        if generation.status == GenerationStatus.DOWNLOADING:
            cleanup.discard(image_folder(generation))
        Lease.objects.end(generation.pk)
        # Last, as everywhere: and under a lock, so that a pause that is on its way is either seen
        # here or sees what was requeued.
        batch = Batch.objects.select_for_update(of=("self",)).filter(generations=generation.pk)
        if set(BATCH_HELD) & set(batch.values_list("status", flat=True)):
            _move([generation.pk], GenerationStatus.PENDING, "progress = 0")
        wake.dispatch()  # for the slot, and for the time when this one is due
        return True
    return False


def fail_generation(
    *,
    generation: Generation,
    attempt: Attempt | None,
    failure: Failure,
    code: str = "",
    unanswered: bool = False,
    outside_chain: bool = False,
    spent: Spent = NOTHING_SPENT,
) -> bool:
    """End a generation without an image. `code` defaults to the failure's class.

    `unanswered`: because nobody can tell whether its submission arrived.
    """
    with contextlib.suppress(_Answered), transaction.atomic():
        moved = _move(
            [generation.pk],
            GenerationStatus.FAILED,
            "finished_at = statement_timestamp(), not_before = NULL, "
            "error_code = %s, error_message = %s, cost_usd = cost_usd + %s",
            [code or failure.error_class, failure.message, spent.cost_usd],
            allowed=[GenerationStatus(generation.status)],
            attempt_count=generation.attempt_count,
        )
        if not moved:
            return False
        if attempt is None:
            if _was_begun_meanwhile(generation):
                raise _Answered
        elif not _end_attempt(attempt, failure, unanswered=unanswered, spent=spent) and unanswered:
            raise _Answered
        if generation.status == GenerationStatus.DOWNLOADING:
            cleanup.discard(image_folder(generation))
        _end_lease(generation.pk)
        _count_in_batch(moved, "failed_count", GenerationStatus.FAILED, outside_chain=outside_chain)
        return True
    return False


def complete_generation(
    *,
    generation: Generation,
    images: Sequence[Image],
    attempt: Attempt | None = None,
    missing: Failure | None = None,
) -> bool:
    """Publish the stored images and end the generation, in one step.

    `missing`: why some of the outputs of its attempt are not among them.
    """
    if attempt is None or missing is None:
        return _complete(generation, images)
    message = f"Only {len(images)} of {len(attempt.outputs)} images are good: {missing.message}"
    with transaction.atomic():
        if not _complete(generation, images):
            return False
        Attempt.objects.filter(pk=attempt.pk).update(
            error_class=ErrorClass.PARTIAL_OUTPUT, error_message=message
        )
        cleanup.discard(image_folder(generation))  # what of the others may be there
    return True


_SEARCH = search_sql(prompt="prompt", owner_id="moved.owner_id", tags="'{}'::text[]")


def _complete(generation: Generation, images: Sequence[Image]) -> bool:
    published = f"""
        , published AS (
            INSERT INTO batches_image
                (id, generation_id, owner_id, batch_id, model, search, index, file, thumbnail,
                 preview, format, width, height, made_width, made_height, size_bytes, sha256,
                 is_saved, tags, review_status, created_at)
            SELECT image.id, moved.id, moved.owner_id, moved.batch_id, moved.model, moved.search,
                   index, file, thumbnail, preview, format, width, height, made_width,
                   made_height, size_bytes, sha256, false, ARRAY[]::text[], 'pending',
                   statement_timestamp()
            FROM (
                SELECT moved.*, model, {_SEARCH} AS search
                FROM moved JOIN batches_generation generation USING (id)
            ) moved CROSS JOIN jsonb_to_recordset(%s) AS image (
                id uuid, index int, file text, thumbnail text, preview text, format text,
                width int, height int, made_width int, made_height int, size_bytes bigint,
                sha256 text)
        )"""
    counted = """
        , counted AS (
            UPDATE batches_batch batch
            SET completed_count = completed_count + 1, version = batch.version + 1,
                cost_usd = batch.cost_usd + moved.cost_usd
            FROM moved WHERE batch.id = moved.batch_id AND (SELECT count(*) FROM lane) >= 0
            RETURNING has_chord, batch.id, batch.version
        ), logged AS (
            INSERT INTO batches_event
                (owner_id, batch_id, generation_id, kind, status, version, created_at)
            SELECT owner_id, batch_id, moved.id, 'batch_job_complete', 'completed',
                   COALESCE(counted.version, moved.version), statement_timestamp()
            FROM moved LEFT JOIN counted ON counted.id = batch_id
        )"""
    fields = (
        "index", "format", "width", "height", "made_width", "made_height", "size_bytes", "sha256"
    )  # fmt: skip
    rows = [
        {
            "id": str(image.pk),
            **{name: getattr(image, name) for name in fields},
            **{name: getattr(image, name).name for name in ("file", "thumbnail", "preview")},
        }
        for image in images
    ]
    moved = _move(
        [generation.pk],
        GenerationStatus.COMPLETED,
        "finished_at = statement_timestamp(), progress = 100",
        attempt_count=generation.attempt_count,
        consequences=_Consequences(
            published + END_LEASE + SLOTS_OF_GONE + counted,
            [json.dumps(rows)],
            tells="(SELECT NOT has_chord FROM counted)",
        ),
    )
    if moved:
        wake.tell([(generation.owner_id, generation.batch_id or generation.pk)])
        if moved[0].told and generation.batch_id is not None:
            finalise_batch(batch_id=generation.batch_id)  # else the sweep does it
    return bool(moved)


def confirm_cancel(
    *,
    generation: Generation,
    attempt: Attempt | None,
    result: Prediction | Failure,
    cost_usd: Decimal = Decimal(0),
    outside_chain: bool = False,
) -> bool:
    """End a running generation whose owner has cancelled it, now that its provider is done.

    `result` is what the provider says became of the work, or why nobody can tell.
    """
    with contextlib.suppress(_Answered), transaction.atomic():
        moved = _move(
            [generation.pk],
            GenerationStatus.CANCELLED,
            "finished_at = statement_timestamp(), cost_usd = cost_usd + %s",
            [cost_usd],
            allowed=[GenerationStatus.PROCESSING],
            attempt_count=generation.attempt_count,
        )
        if not moved:
            return False
        if attempt is None:
            if _was_begun_meanwhile(generation):
                raise _Answered
        elif isinstance(result, Failure):
            _end_attempt(attempt, result, unanswered=False)
        elif result.failure is not None:
            _keep_result(attempt, result, AttemptOutcome.FAILED, cost_usd)
            Attempt.objects.filter(pk=attempt.pk).update(
                error_class=result.failure.error_class, error_message=result.failure.message
            )
        else:
            _keep_result(attempt, result, AttemptOutcome.SUCCEEDED, cost_usd)
        _end_lease(generation.pk)
        _count_in_batch(
            moved, "cancelled_count", GenerationStatus.CANCELLED, outside_chain=outside_chain
        )
        return True
    return False


# --- The end of a batch -------------------------------------------------------------------------


def finalise_batch(*, batch_id: uuid.UUID) -> bool:
    """End a batch of which nothing is open.

    Called by the chord's body and by the sweep, in any order and any number of times.
    """
    cancelled = Value(BatchStatus.CANCELLED)
    outcome = Case(
        When(cancel_requested_at__isnull=False, cancelled_count__gt=0, then=cancelled),
        When(completed_count=F("total_count"), then=Value(BatchStatus.COMPLETED)),
        When(completed_count__gt=0, then=Value(BatchStatus.PARTIAL)),
        When(failed_count=0, then=cancelled),
        default=Value(BatchStatus.FAILED),
    )
    return _move_batches(NOTHING_OPEN, outcome, ids=[batch_id], finished_at=Now()) == 1


# --- What an owner may do -----------------------------------------------------------------------
#
# Each of these holds the admissions, so that it and they never see half of each other's work.
# `False`, or nothing: it cannot be done as things stand.


def _hold_back(owner_id: int, generation_ids: Collection[uuid.UUID]) -> int:
    """Take queued generations out of line; how many."""
    moved = _move(generation_ids, GenerationStatus.PENDING, "progress = 0")
    Lane.objects.dequeue(owner_id, sum(one.was_in_line for one in moved))
    return len(moved)


def _let_go(owner_id: int, generation_ids: Collection[uuid.UUID]) -> int:
    """Put generations that were held back in line again; how many."""
    moved = _move(
        generation_ids, GenerationStatus.QUEUED, "progress = 0", allowed=[GenerationStatus.PENDING]
    )
    due = Generation.objects.filter(pk__in=[one.id for one in moved], not_before=None)
    _line_up(owner_id, due.count())
    wake.dispatch()  # for those that wait for their time
    return len(moved)


def _cancel(generations: Sequence[Generation]) -> tuple[int, list[_Moved]]:
    """Cancel generations: what is not at the provider now, the rest as soon as that has stopped.

    How many are stopping, and those that have ended; the caller counts them in their batch.
    """
    ids = [generation.pk for generation in generations]
    running = Generation.objects.filter(
        pk__in=ids, status=GenerationStatus.PROCESSING, cancel_requested_at=None
    )
    stopping = list(running.select_for_update(no_key=True).values_list("pk", flat=True))
    Generation.objects.filter(pk__in=stopping).update(
        cancel_requested_at=Now(), version=F("version") + 1
    )
    if stopping:
        wake.follow(stopping)
    ended = _move(
        ids,
        GenerationStatus.CANCELLED,
        "finished_at = statement_timestamp(), not_before = NULL, "
        "cancel_requested_at = statement_timestamp()",
        allowed=[
            GenerationStatus.PENDING,
            GenerationStatus.QUEUED,
            GenerationStatus.DOWNLOADING,
        ],
        by_owner=True,
    )
    if downloading := {one.id for one in ended if one.was == GenerationStatus.DOWNLOADING}:
        Lease.objects.filter(generation__in=downloading).delete()  # without a slot by then
        cleanup.discard(*(image_folder(one) for one in generations if one.pk in downloading))
    if in_line := sum(one.was_in_line for one in ended):
        Lane.objects.dequeue(generations[0].owner_id, in_line)
    return len(stopping), ended


def _count_cancelled(ended: Sequence[_Moved]) -> None:
    _count_in_batch(ended, "cancelled_count", GenerationStatus.CANCELLED, outside_chain=True)


def _of_batch(batch: Batch, *statuses: GenerationStatus) -> list[Generation]:
    """A batch's generations in these statuses, with no more than their places."""
    found = batch.generations.filter(status__in=statuses).only("pk", "owner_id", "batch_id")
    return list(found)


def _ids(generations: Iterable[Generation]) -> list[uuid.UUID]:
    return [generation.pk for generation in generations]


class _Refused(Exception):
    """It turned out that it cannot be done: undo the transaction."""


@contextlib.contextmanager
def _by_owner() -> Iterator[None]:
    """A transaction of an owner's action; one that raises `_Refused` changes nothing."""
    with contextlib.suppress(_Refused), transaction.atomic():
        Pool.objects.hold_admissions()
        yield


def pause_batch(*, batch: Batch) -> bool:
    """Start nothing more of a batch; what runs is finished."""
    with _by_owner():
        _hold_back(batch.owner_id, _ids(_of_batch(batch, GenerationStatus.QUEUED)))
        if not _move_batches(
            Q(cancel_requested_at=None) & ~NOTHING_OPEN, BatchStatus.PAUSED, ids=[batch.pk]
        ):
            raise _Refused
        # And what was requeued until the batch was locked, see `requeue_generation`.
        _hold_back(batch.owner_id, _ids(_of_batch(batch, GenerationStatus.QUEUED)))
        return True
    return False


def resume_batch(*, batch: Batch) -> bool:
    """Go on with a batch that was paused."""
    with _by_owner():
        _let_go(batch.owner_id, _ids(_of_batch(batch, GenerationStatus.PENDING)))
        paused = Q(status=BatchStatus.PAUSED, cancel_requested_at=None)
        fresh = paused & Q(started_at=None)
        if not _move_batches(fresh, BatchStatus.PENDING, ids=[batch.pk]) and not (
            _move_batches(paused, BatchStatus.PROCESSING, ids=[batch.pk])
        ):
            raise _Refused
        # And what was held back until the batch was locked, see `requeue_generation`.
        _let_go(batch.owner_id, _ids(_of_batch(batch, GenerationStatus.PENDING)))
        return True
    return False


def start_scheduled(*, limit: int) -> int:
    """Put those batches in line whose time has come; how many."""
    due = Batch.objects.filter(status=BatchStatus.SCHEDULED, start_at__lte=Now())
    started = 0
    for batch in due.only("pk", "owner_id").order_by("start_at")[:limit]:
        with _by_owner():
            _let_go(batch.owner_id, _ids(_of_batch(batch, GenerationStatus.PENDING)))
            scheduled = Q(status=BatchStatus.SCHEDULED, cancel_requested_at=None)
            if not _move_batches(scheduled, BatchStatus.PENDING, ids=[batch.pk]):
                raise _Refused
            started += 1
    return started


def cancel_batch(*, batch: Batch) -> bool:
    """End a batch: what waits at once, what runs when its provider has stopped."""
    with _by_owner():
        _, ended = _cancel(_of_batch(batch, *GENERATION_OPEN))
        stoppable = ~NOTHING_OPEN & Q(status__in=BATCH_OPEN, cancel_requested_at=None)
        if not _change_batches(stoppable, ids=[batch.pk], cancel_requested_at=Now()):
            raise _Refused
        _count_cancelled(ended)
        return True
    return False


def delete_batch(*, batch: Batch) -> bool:
    """Delete a batch with its images. What runs is cancelled, and gone when that has ended.

    Nothing is done while any of its images is being published.
    """
    with _by_owner():
        # First, since it locks all of them: the lane's turn is after the generations. In the
        # order in which actions on images lock them.
        list(batch.generations.order_by("pk").select_for_update(no_key=True).values_list("pk"))
        batch.generations.update(deleted_at=Now())
        _, ended = _cancel(_of_batch(batch, *GENERATION_OPEN))
        _remove_images(Generation.objects.filter(batch=batch.pk))
        if not _change_batches(
            Q(deleted_at=None),
            ids=[batch.pk],
            deleted_at=Now(),
            cancel_requested_at=Coalesce("cancel_requested_at", Now()),
        ):
            raise _Refused
        _count_cancelled(ended)
        cleanup.discard(f"{batch.owner_id}/{batch.pk}")
        _remove_deleted_batches(Q(pk=batch.pk))
        return True
    return False


def pause_generation(*, generation: Generation) -> bool:
    """Hold back one generation that waits."""
    with _by_owner():
        return _hold_back(generation.owner_id, [generation.pk]) == 1
    return False


def resume_generation(*, generation: Generation) -> bool:
    """Put one generation back in line, unless its batch is paused or scheduled."""
    with _by_owner():
        if Batch.objects.filter(generations=generation.pk, status__in=BATCH_HELD).exists():
            raise _Refused
        return _let_go(generation.owner_id, [generation.pk]) == 1
    return False


def cancel_generation(*, generation: Generation) -> bool:
    """End one generation: at once, or when its provider has stopped."""
    with _by_owner():
        stopping, ended = _cancel([generation])
        _count_cancelled(ended)
        return bool(stopping or ended)
    return False


def delete_generation(*, generation: Generation) -> bool:
    """Delete a single generation with its images; one of a batch goes with its batch only.

    Nothing is done while any of its images is being published.
    """
    with _by_owner():
        if generation.batch_id is not None:
            raise _Refused
        row = Generation.objects.filter(pk=generation.pk, deleted_at=None)
        if not row.update(deleted_at=Now(), version=F("version") + 1):
            raise _Refused
        _count_cancelled(_cancel([generation])[1])
        _remove_images(Generation.objects.filter(pk=generation.pk))
        cleanup.discard(image_folder(generation))
        _remove_deleted_generations(Q(pk=generation.pk))
        return True
    return False


def retry_generations(
    *,
    batch: Batch | None,
    generations: Sequence[Generation],
    plans: Mapping[uuid.UUID, NewGeneration] | None = None,
) -> int:
    """Put failed or cancelled generations of one batch, or a single one, in line once more.

    How many; the others had not ended so. `plans` are their new settings, where those are to
    change; the attempts so far keep the old ones.
    """
    retried = 0
    with _by_owner():
        asked = Generation.objects.filter(pk__in=_ids(generations), deleted_at=None)
        ids = list(asked.values_list("pk", flat=True))
        held = Batch.objects.filter(generations__in=ids, status__in=BATCH_HELD)
        is_held = batch is not None and held.exists()
        moved = _move(
            ids,
            GenerationStatus.PENDING if is_held else GenerationStatus.QUEUED,
            "error_code = '', error_message = '', finished_at = NULL, started_at = NULL, "
            "downloading_at = NULL, not_before = NULL, cancel_requested_at = NULL, "
            "progress = 0, retry_count = 0, active_s = 0",
            allowed=GENERATION_RETRYABLE,
            by_owner=True,
        )
        if not moved:
            raise _Refused
        _change_settings([one.id for one in moved], plans or {})
        if not is_held:
            _line_up(generations[0].owner_id, len(moved))
        if batch is not None and not _reopen_batch(batch, moved):
            raise _Refused
        retried = len(moved)
    return retried


def _keep_in_attempts(generation_ids: Sequence[uuid.UUID]) -> None:
    """Before settings change: have the attempts so far keep those that they were made with."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE batches_attempt attempt
            SET settings = generation.settings, input = generation.input
            FROM batches_generation generation
            WHERE generation.id = generation_id AND generation.id = ANY(%s)
              AND attempt.input IS NULL
            """,
            [list(generation_ids)],
        )


def _change_settings(
    generation_ids: Sequence[uuid.UUID], plans: Mapping[uuid.UUID, NewGeneration]
) -> None:
    planned = [one for one in generation_ids if one in plans]
    if not planned:
        return
    _keep_in_attempts(planned)
    fields = (
        "settings", "input", "model", "provider", "seed", "kind", "output_count", "fallbacks"
    )  # fmt: skip
    changed = [
        Generation(pk=one, **{name: getattr(plans[one], name) for name in fields})
        for one in planned
    ]
    Generation.objects.bulk_update(changed, fields)
    GenerationReference.objects.filter(generation__in=planned).delete()
    _keep_references((one, plans[one.pk]) for one in changed)


def _reopen_batch(batch: Batch, moved: Sequence[_Moved]) -> bool:
    """Take generations out of a batch's counters again. Not while it is being cancelled."""
    failed = sum(one.was == GenerationStatus.FAILED for one in moved)
    ended = Q(status__in=BATCH_TERMINAL)
    return bool(
        _change_batches(
            (ended | Q(cancel_requested_at=None)) & Q(deleted_at=None),
            ids=[batch.pk],
            status=Case(
                When(ended & Q(started_at=None), then=Value(BatchStatus.PENDING)),
                When(ended, then=Value(BatchStatus.PROCESSING)),
                default=F("status"),
            ),
            finished_at=None,
            cancel_requested_at=None,
            has_chord=False,
            failed_count=F("failed_count") - failed,
            cancelled_count=F("cancelled_count") - (len(moved) - failed),
            cost_usd=F("cost_usd") - sum((one.cost_usd for one in moved), Decimal(0)),
        )
    )


# --- Deletion -----------------------------------------------------------------------------------


def remove_deleted(*, limit: int) -> int:
    """Remove the rows of what was deleted and has ended since; how many batches and singles."""
    return _remove_deleted_batches(Q(), limit) + _remove_deleted_generations(Q(), limit)


def _remove_deleted_batches(batches: Q, limit: int = 1) -> int:
    ended = Batch.objects.filter(batches, NOTHING_OPEN, deleted_at__isnull=False)
    ids = list(ended.values_list("pk", flat=True)[:limit])
    with transaction.atomic():
        Generation.objects.filter(batch__in=ids).delete()
        Batch.objects.filter(pk__in=ids).delete()
    return len(ids)


def _remove_deleted_generations(generations: Q, limit: int = 1) -> int:
    ended = Generation.objects.filter(
        generations, deleted_at__isnull=False, batch=None, finished_at__isnull=False
    )
    ids = list(ended.values_list("pk", flat=True)[:limit])
    Generation.objects.filter(pk__in=ids).delete()
    return len(ids)


@dataclass(frozen=True, slots=True)
class DeletedImages:
    """Ids of images that are gone, and of those that stay since they are being published."""

    gone: Collection[uuid.UUID]
    being_published: Collection[uuid.UUID]


@transaction.atomic
def delete_images(*, images: QuerySet[Image]) -> DeletedImages:
    """Delete images: their rows now, their files once that is certain.

    The images as they are when they are locked: a second deletion finds none. In the same number
    of statements for any number of them.
    """
    generations = Generation.objects.filter(pk__in=images.values("generation"))
    list(generations.order_by("pk").select_for_update(no_key=True).values_list("pk"))
    ids = _lock_images(images)
    kept = set(_being_published(ids).values_list("image", flat=True))
    ids = [one for one in ids if one not in kept]
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            {_REMOVE_IMAGES}
            UPDATE batches_generation generation
            SET deleted_image_count = deleted_image_count + images, version = version + 1
            FROM (SELECT generation_id, count(*) AS images FROM gone GROUP BY generation_id) lost
            WHERE generation.id = generation_id
            RETURNING id, owner_id, batch_id
            """,
            [ids] * 3,
        )
        losers = [
            Generation(pk=pk, owner_id=owner_id, batch_id=batch_id)
            for pk, owner_id, batch_id in cursor.fetchall()
        ]
    if losers:
        cleanup.discard(*map(image_folder, losers))
    return DeletedImages(ids, kept)


# Given the ids thrice. What was published stays on record, without its image.
_REMOVE_IMAGES = """
    WITH published AS (
        UPDATE batches_publication SET image_id = NULL WHERE image_id = ANY(%s)
    ), reviewed AS (
        DELETE FROM batches_review WHERE image_id = ANY(%s)
    ), gone AS (
        DELETE FROM batches_image WHERE id = ANY(%s) RETURNING generation_id
    )
"""


def _lock_images(images: QuerySet[Image]) -> list[uuid.UUID]:
    """Lock images that are to be deleted, in the order in which all do who lock several."""
    locked = images.order_by("pk").select_for_update()
    return list(locked.values_list("pk", flat=True))


def _being_published(image_ids: Collection[uuid.UUID]) -> QuerySet[Publication]:
    """What is under way with images that are locked: nobody begins to publish these."""
    return Publication.objects.filter(image__in=image_ids, status=PublicationStatus.PUBLISHING)


def _remove_images(generations: QuerySet[Generation]) -> None:
    """Remove the images of generations that are locked. Raises `_Refused`."""
    ids = _lock_images(Image.objects.filter(generation__in=generations.values("pk")))
    if _being_published(ids).exists():
        raise _Refused
    with connection.cursor() as cursor:
        cursor.execute(f"{_REMOVE_IMAGES} SELECT count(*) FROM gone", [ids] * 3)
