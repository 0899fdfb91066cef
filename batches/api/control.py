"""What an owner may do with a batch or a generation, and in words why it cannot be done."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.db import transaction
from django.shortcuts import get_object_or_404

from batches import lifecycle
from batches.api.errors import InvalidTransition
from batches.intake import Problem, Refused, check_models, replan, sources_of
from batches.models import (
    BATCH_HELD,
    BATCH_OPEN,
    GENERATION_OPEN,
    GENERATION_RETRYABLE,
    Batch,
    Generation,
    GenerationStatus,
)
from batches.planning import planned


def batch_refusal(batch: Batch, done: str) -> InvalidTransition:
    """`done` is what cannot be done, such as "paused"."""
    subject = f"A {batch.status} batch"
    if batch.status in BATCH_OPEN:
        if batch.cancel_requested_at is not None:
            subject = "A batch that is being cancelled"
        elif batch.ended_count == batch.total_count:
            subject = "A batch of which everything has ended"
    return InvalidTransition(f"{subject} cannot be {done}.", current_status=batch.status)


def generation_refusal(generation: Generation, done: str) -> InvalidTransition:
    """As `batch_refusal`; the generation knows its batch."""
    batch, subject = generation.batch, f"A {generation.status} generation"
    if generation.status in GENERATION_OPEN and generation.cancel_requested_at is not None:
        subject = "A generation that is being cancelled"
    elif generation.status == GenerationStatus.PENDING and (
        batch is not None and batch.status in BATCH_HELD
    ):
        subject = f"A generation of a {batch.status} batch"
    elif generation.status in GENERATION_RETRYABLE and (
        batch is not None and batch.status in BATCH_OPEN and batch.cancel_requested_at is not None
    ):
        subject = "A generation of a batch that is being cancelled"
    return InvalidTransition(f"{subject} cannot be {done}.", current_status=generation.status)


@contextlib.contextmanager
def retrying_batch(
    batch: Batch, ids: Sequence[uuid.UUID] | None, overrides: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    """Get ready to try the failed generations of a batch once more, or those of these ids.

    What it gives does it: all, or none. Both raise `Refused` or `InvalidTransition`.
    """
    chosen = _chosen(batch, ids)
    with _retrying(batch.owner_id, batch, chosen, overrides) as retry:

        def retry_all() -> None:
            if retry(len(chosen) if ids else 1):
                return
            # Somebody else was faster, or the batch is being cancelled.
            now = get_object_or_404(Batch.objects.owned_by(batch.owner_id), pk=batch.pk)
            if now.cancel_requested_at is None:
                _chosen(now, ids)
            raise batch_refusal(now, "retried")

        yield retry_all


@contextlib.contextmanager
def retrying_generation(
    generation: Generation, overrides: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    """As `retrying_batch`, for one generation."""
    if generation.status not in GENERATION_RETRYABLE:
        raise generation_refusal(generation, "retried")
    owner_id = generation.owner_id
    with _retrying(owner_id, generation.batch, [generation], overrides) as retry:

        def retry_it() -> None:
            if not retry(1):
                own = Generation.objects.owned_by(owner_id).select_related("batch")
                raise generation_refusal(get_object_or_404(own, pk=generation.pk), "retried")

        yield retry_it


def _chosen(batch: Batch, ids: Sequence[uuid.UUID] | None) -> list[Generation]:
    return _of_ids(batch, ids) if ids else _failed(batch)


def _failed(batch: Batch) -> list[Generation]:
    failed = batch.generations.filter(status=GenerationStatus.FAILED).order_by("index")
    if not failed:
        raise InvalidTransition(
            f"A {batch.status} batch has no failed generations to retry.",
            current_status=batch.status,
        )
    return list(failed)


def _of_ids(batch: Batch, ids: Sequence[uuid.UUID]) -> list[Generation]:
    """The generations of these ids, which must be the batch's and may be retried."""
    found = {generation.pk: generation for generation in batch.generations.filter(pk__in=ids)}
    unknown = [
        Problem(f"ids.{index}", "unknown_id", f"This batch has no generation {one}.")
        for index, one in enumerate(ids)
        if one not in found
    ]
    if unknown:
        raise Refused(unknown)
    chosen = [found[one] for one in ids]
    for generation in chosen:
        if generation.status not in GENERATION_RETRYABLE:
            raise InvalidTransition(
                f"Generation {generation.pk} is {generation.status}; "
                "only failed and cancelled ones can be retried.",
                current_status=generation.status,
            )
    return chosen


@contextlib.contextmanager
def _retrying(
    owner_id: int,
    batch: Batch | None,
    generations: Sequence[Generation],
    overrides: Mapping[str, Any],
) -> Iterator[Callable[[int], bool]]:
    """What it gives is told how many are needed: if fewer can be retried, nothing is changed."""
    plans = replan(generations, overrides) if overrides else check_models(generations)
    ids = list(plans) if isinstance(plans, dict) else []
    plan = list(plans.values()) if isinstance(plans, dict) else plans
    places = {
        f"settings.references.{number}": one for number, one in enumerate(sources_of(overrides))
    }
    with planned(owner_id, plan, places) as ready:

        def retry(needed: int) -> bool:
            with transaction.atomic(), ready.settled() as (settled, _):
                retried = lifecycle.retry_generations(
                    batch=batch,
                    generations=generations,
                    plans=dict(zip(ids, settled, strict=True)),
                )
                is_done = retried >= needed
                if not is_done:
                    transaction.set_rollback(True)
            return is_done

        yield retry
