"""The Celery tasks: what runs when, and what is tried again.

A task of the chord's header never raises for an expected failure: it records it and returns. It
raises `Ignore` for a delivery that is void because another one will come, and `Retry` to look
again later. Arguments are ids; everything else is read from the rows.
"""

import contextlib
import logging
import random
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from statistics import median
from typing import Any, BinaryIO, cast

from celery import Task, shared_task
from celery.exceptions import Ignore
from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import IntegrityError, InterfaceError, OperationalError

from batches import lifecycle, scheduling, wake
from batches.models import (
    GENERATION_TERMINAL,
    Attempt,
    Batch,
    Generation,
    GenerationStatus,
    Image,
    image_key,
)
from generation import images
from generation.catalogue import get_model
from generation.provider import (
    ErrorClass,
    Failure,
    Prediction,
    Provider,
    SubmitRequest,
)
from worker import canvas
from worker.providers import get_provider, http_client

logger = logging.getLogger(__name__)

# --- What is tried again ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryRule:
    """`limit`: attempts after the first, `None` for one per configured delay.

    `blocks_pool_s`: how long nothing is admitted to the provider when it names no wait itself;
    the failure then says nothing about the generation and is not counted against it.
    """

    limit: int | None = None
    blocks_pool_s: float | None = None


NEVER = RetryRule(limit=0)
RETRY_RULES: dict[ErrorClass, RetryRule] = {
    ErrorClass.RATE_LIMITED: RetryRule(blocks_pool_s=5),
    ErrorClass.AUTH: RetryRule(blocks_pool_s=60),
    ErrorClass.INSUFFICIENT_CREDIT: RetryRule(blocks_pool_s=60),
    ErrorClass.PROVIDER_UNAVAILABLE: RetryRule(),
    ErrorClass.QUEUE_FULL: RetryRule(),
    ErrorClass.INTERRUPTED: RetryRule(),
    ErrorClass.DOWNLOAD_FAILED: NEVER,  # the same output is fetched again, see `download`
    ErrorClass.TIMEOUT_RUN: RetryRule(limit=1),
    ErrorClass.OUT_OF_MEMORY: RetryRule(limit=1),
    ErrorClass.BAD_OUTPUT: RetryRule(limit=1),
    ErrorClass.UNKNOWN: RetryRule(limit=1),
    ErrorClass.CONTENT_POLICY: NEVER,
    ErrorClass.INVALID_INPUT: NEVER,
    ErrorClass.NOT_FOUND: NEVER,
    ErrorClass.CANCELED: NEVER,
    ErrorClass.OUTPUT_EXPIRED: NEVER,
    ErrorClass.PARTIAL_OUTPUT: NEVER,
    # It may run and it may be charged: submitting again could pay twice.
    ErrorClass.TIMEOUT_UNKNOWN: NEVER,
}
# The longest wait a provider may impose on us in one answer.
MAX_BLOCK_S = 300.0
JITTER = 0.25
# Outputs are gone within an hour, so the same one is fetched again quickly, and then no more.
FETCH_DELAYS_S = (0.5, 2.0, 5.0, 15.0)
# A file that is no image may have been cut off on its way: fetching again costs nothing.
FETCH_LIMITS = {ErrorClass.DOWNLOAD_FAILED: len(FETCH_DELAYS_S), ErrorClass.BAD_OUTPUT: 1}
# Longer than any submission takes with its deadline: past it nobody waits for the answer.
SUBMISSION_TAKES_S = 30.0
# The longest between two looks, whatever a provider asks for.
MAX_PUT_OFF_S = 30.0
# How long after our deadline the provider may take to confirm that it has stopped.
CANCEL_GRACE_S = 60.0
# Outputs up to this size never touch the disk before they are stored.
SPOOL_BYTES = 8 * 1024 * 1024
MIN_CANCEL_AFTER_S = 5
SUBMISSION_UNKNOWN = "submission_unknown"


def backoff_s(retry: int, *, delays: list[float], rand: Callable[[], float]) -> float:
    """Seconds before retry number `retry`, from 0: as configured, and up to a quarter more."""
    return delays[retry] * (1 + JITTER * rand())


def _retry_or_fail(
    generation: Generation, lease_id: uuid.UUID | None, attempt: Attempt, failure: Failure
) -> str:
    """Record a failed attempt. Returns when that was the last one, else raises `Ignore`."""
    rule = RETRY_RULES[failure.error_class]
    if rule.blocks_pool_s is not None:
        wait_s = min(failure.retry_after_s or rule.blocks_pool_s, MAX_BLOCK_S)
        lifecycle.block_pool(name=generation.provider, seconds=wait_s)
        if failure.error_class != ErrorClass.RATE_LIMITED:
            logger.error("%s stopped for %.0f s: %s", generation.provider, wait_s, failure.message)
        retry, delay_s = True, wait_s
    else:
        delays = settings.RETRY_DELAYS[: rule.limit]
        retry = generation.retry_count < len(delays)
        delay_s = min(failure.retry_after_s or 0.0, MAX_BLOCK_S)
        if retry:
            own_s = backoff_s(generation.retry_count, delays=delays, rand=random.random)
            delay_s = max(delay_s, own_s)
    logger.info("generation %s: %s: %s", generation.pk, failure.error_class, failure.message)
    if retry:
        lifecycle.requeue_generation(
            generation=generation,
            lease_id=lease_id,
            attempt=attempt,
            failure=failure,
            delay_s=delay_s,
            counts_as_retry=rule.blocks_pool_s is None,
        )
        raise Ignore
    code = SUBMISSION_UNKNOWN if failure.error_class == ErrorClass.TIMEOUT_UNKNOWN else ""
    lifecycle.fail_generation(
        generation=generation, lease_id=lease_id, attempt=attempt, failure=failure, code=code
    )
    return GenerationStatus.FAILED


# --- When to look again -------------------------------------------------------------------------

MIN_LOOK_S, MAX_LOOK_S = 0.05, 5.0
# Half of all predictions take longer than usual, most of those by next to nothing.
LOOK_MARGIN = 0.005
USUAL_TTL_S = 0.5
DEFAULT_USUAL_S = 5.0
_usual: dict[str, tuple[float, float]] = {}


def usual_s(model_id: str) -> float:
    """Seconds a prediction of this model usually takes: the median of the latest, or a prior."""
    known = _usual.get(model_id)
    if known is None or known[0] < time.monotonic():
        recent = Attempt.objects.recent_run_times(model_id)
        model = get_model(model_id)
        prior = model.est_seconds if model else DEFAULT_USUAL_S
        usual = max(median(recent) if recent else prior, MIN_LOOK_S)
        known = (time.monotonic() + USUAL_TTL_S, usual)
        _usual[model_id] = known
    return known[1]


def next_look_s(elapsed_s: float, usual: float) -> float:
    """Seconds until the next look at a prediction.

    The first is just after it usually is done; from there on each wait is a quarter of the
    overrun, so that a late one costs few requests and is seen with little further delay.
    """
    expected_s = usual * (1 + LOOK_MARGIN)
    wait_s = expected_s - elapsed_s if elapsed_s < expected_s else (elapsed_s - usual) / 4
    return min(max(wait_s, MIN_LOOK_S), MAX_LOOK_S)


# --- A database that is away --------------------------------------------------------------------

# A restart of the database puts a task off; only the rows know how far it had come.
DATABASE_AWAY: dict[str, Any] = {
    "autoretry_for": (OperationalError, InterfaceError),
    "retry_backoff": True,
    "retry_backoff_max": 30,
    "max_retries": None,
}


# --- Admission ----------------------------------------------------------------------------------


@shared_task(name="work.dispatch", **DATABASE_AWAY)
def dispatch() -> int:
    """Admit what may run now and publish it; how many were admitted."""
    wake.dispatch_begins()
    admission = scheduling.admit()
    for member in admission.admitted:
        canvas.publish(member)
    if admission.next_in_s is not None and admission.next_in_s < 1:
        # Sooner than the beat's next turn.
        wake.dispatch_now(countdown_s=admission.next_in_s + 0.005)
    return len(admission.admitted)


# --- The two steps ------------------------------------------------------------------------------


@shared_task(bind=True, name="work.generate", **DATABASE_AWAY)
def generate(self: Task, generation_id: str, lease_id: str) -> str:
    """Submit if that is still to do, then look once. Returns the status that was reached."""
    work = Generation.objects.at_work(generation_id, GenerationStatus.PROCESSING)
    if work is None:
        return _status_or_ignore(generation_id)
    if work.lease_id is None or str(work.lease_id) != lease_id:
        raise Ignore
    generation, attempt = work.generation, work.attempt
    left_s = settings.GENERATION_DEADLINE - work.elapsed_s
    provider = get_provider(generation.provider)

    if attempt is None:
        if left_s <= 0:
            return _fail_late(generation, work.lease_id, None)
        try:
            attempt = lifecycle.begin_attempt(generation=generation)
        except IntegrityError:
            raise Ignore from None  # another delivery of this lease was faster
        answer = _submit(provider, generation, left_s)
    elif attempt.provider_id is None:
        if work.attempted_s < SUBMISSION_TAKES_S:
            # Another delivery may be waiting for the answer: a broker that comes back sends
            # again what is still being worked on.
            raise self.retry(countdown=MAX_LOOK_S)
        # An earlier delivery died between asking and hearing the answer.
        answer = Failure(
            ErrorClass.TIMEOUT_UNKNOWN, "The submission was interrupted; it may have been charged."
        )
    else:
        answer = (provider.fetch if left_s > 0 else provider.cancel)(attempt.provider_id)
        if isinstance(answer, Failure):
            if left_s < -CANCEL_GRACE_S:
                return _fail_late(generation, work.lease_id, attempt)
            if answer.error_class != ErrorClass.NOT_FOUND:
                # Not being able to look says nothing about the work.
                logger.warning("generation %s: cannot look: %s", generation_id, answer.message)
                wait_s = answer.retry_after_s or MAX_LOOK_S
                raise self.retry(countdown=min(max(wait_s, MIN_LOOK_S), MAX_PUT_OFF_S))

    if isinstance(answer, Failure):
        return _retry_or_fail(generation, work.lease_id, attempt, answer)
    if attempt.provider_id is None:
        logger.info("generation %s: submitted as %s", generation_id, answer.id)
        if not answer.outputs:  # else it is recorded together with them
            lifecycle.record_submission(attempt=attempt, prediction=answer)
    if not answer.is_terminal:
        if left_s < -CANCEL_GRACE_S:
            return _fail_late(generation, work.lease_id, attempt)
        usual = usual_s(generation.model)
        progress = answer.progress
        if progress is None:
            progress = min(int(100 * work.submitted_s / usual), 95)
        if progress > generation.progress:
            lifecycle.record_progress(generation=generation, progress=progress)
        raise self.retry(countdown=next_look_s(work.submitted_s, usual))
    if answer.failure is not None:
        if left_s <= 0:
            return _fail_late(generation, work.lease_id, attempt)
        return _retry_or_fail(generation, work.lease_id, attempt, answer.failure)
    logger.info("generation %s: %s is done", generation_id, answer.id)
    if not lifecycle.begin_download(
        generation=generation,
        lease_id=work.lease_id,
        attempt=attempt,
        prediction=answer,
        cost_usd=_cost_usd(generation, answer),
    ):
        # Whatever became of it meanwhile: that it was accepted, and may cost, stays on record.
        lifecycle.record_submission(attempt=attempt, prediction=answer)
        return _status_or_ignore(generation_id)
    return GenerationStatus.DOWNLOADING


def _status_or_ignore(generation_id: str) -> str:
    """For a delivery that has nothing to do: let the chain go on, or say that another will come."""
    status = Generation.objects.filter(pk=generation_id).values_list("status", flat=True).first()
    if status == GenerationStatus.DOWNLOADING or status in GENERATION_TERMINAL:
        return status
    raise Ignore


def _submit(provider: Provider, generation: Generation, left_s: float) -> Prediction | Failure:
    model = get_model(generation.model)
    return provider.submit(
        SubmitRequest(
            model=generation.model,
            input=generation.input,
            version=model.version if model else None,
            cancel_after_s=max(MIN_CANCEL_AFTER_S, int(left_s)),
        )
    )


def _fail_late(generation: Generation, lease_id: uuid.UUID, attempt: Attempt | None) -> str:
    lifecycle.fail_generation(
        generation=generation,
        lease_id=lease_id,
        attempt=attempt,
        failure=Failure(
            ErrorClass.TIMEOUT_RUN, f"Not finished within {settings.GENERATION_DEADLINE} seconds."
        ),
    )
    return GenerationStatus.FAILED


def _cost_usd(generation: Generation, prediction: Prediction) -> Decimal:
    model = get_model(generation.model)
    price = model.price_usd_per_image if model else None
    return (price or Decimal(0)) * len(prediction.outputs)


@shared_task(bind=True, name="work.download", **DATABASE_AWAY)
def download(self: Task, outcome: str, generation_id: str) -> str:
    """Fetch, verify and store the output. Steps aside when that is not what is to be done."""
    work = Generation.objects.at_work(generation_id, GenerationStatus.DOWNLOADING)
    if work is None:
        return _status_or_ignore(generation_id)
    generation, attempt = work.generation, work.attempt
    assert attempt is not None  # what put it into this status
    provider = get_provider(generation.provider)
    stored: list[Image] = []
    for index, url in enumerate(attempt.outputs):
        image = _fetch(provider, url, generation, index)
        if isinstance(image, Failure):
            tries = self.request.retries
            if tries < FETCH_LIMITS.get(image.error_class, 0):
                wait_s = FETCH_DELAYS_S[tries] * (1 + JITTER * random.random())
                raise self.retry(countdown=max(wait_s, min(image.retry_after_s or 0, MAX_LOOK_S)))
            lifecycle.discard_files(stored)
            return _retry_or_fail(generation, None, attempt, image)
        stored.append(image)
    lifecycle.complete_generation(generation=generation, images=stored)
    logger.info("generation %s: completed", generation_id)
    return GenerationStatus.COMPLETED


def _fetch(provider: Provider, url: str, generation: Generation, index: int) -> Image | Failure:
    """One output in storage, its row not saved yet. A failure leaves no file behind."""
    image = Image(generation=generation, owner_id=generation.owner_id, index=index)
    names: list[str] = []
    try:
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            file = cast(BinaryIO, spool)
            fetched = http_client().download(
                url, file, hosts=provider.output_hosts, max_bytes=settings.MAX_OUTPUT_BYTES
            )
            if isinstance(fetched, Failure):
                return fetched
            verified = images.verify(
                file, max_pixels=settings.MAX_OUTPUT_PIXELS, max_bytes=settings.MAX_OUTPUT_BYTES
            )
            if isinstance(verified, Failure):
                return verified
            image.format = verified.format
            image.width, image.height = verified.width_px, verified.height_px
            image.size_bytes, image.sha256 = verified.size_bytes, verified.sha256
            names = [f"{index}.{verified.extension}", f"{index}.thumbnail.webp"]
            file.seek(0)
            image.file.save(names[0], File(file), save=False)
            image.thumbnail.save(names[1], ContentFile(verified.thumbnail), save=False)
    # A full disk, or whatever a storage raises: they have no exception in common.
    except Exception:
        logger.exception("generation %s: cannot store", generation.pk)
        with contextlib.suppress(Exception):
            for name in names:
                default_storage.delete(image_key(image, name))
        return Failure(ErrorClass.DOWNLOAD_FAILED, "The image could not be stored.")
    return image


# --- The end of a batch -------------------------------------------------------------------------


@shared_task(name="work.finalise_batch", **DATABASE_AWAY)
def finalise_batch(batch_id: str) -> bool:
    """The chord's body."""
    return lifecycle.finalise_batch(batch_id=uuid.UUID(batch_id))


SWEEP_LIMIT = 200


@shared_task(name="work.sweep")
def sweep() -> int:
    """Do what a lost message left undone; how many batches were finalised."""
    scheduling.follow_default_cap()
    wake.dispatch_now()
    stragglers = Batch.objects.ready_to_finalise().values_list("pk", flat=True)[:SWEEP_LIMIT]
    return sum(lifecycle.finalise_batch(batch_id=batch_id) for batch_id in stragglers)
