"""The Celery tasks: what runs when, and what is tried again.

A task of the chord's header never raises for an expected failure: it records it and returns. It
raises `Ignore` for a delivery that is void because another one will come, and `Retry` to look
again later. Arguments are ids and the turn of the lease; everything else is read from the rows.

A delivery begins by taking its turn, and ends in one of three ways: the generation has moved on,
a later look is on its way, or somebody else was faster. One that dies does neither, and its lease
runs out.
"""

import logging
import random
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from typing import Any, BinaryIO, NoReturn, cast

from celery import Task, shared_task
from celery.exceptions import Ignore
from django.conf import settings
from django.core.files import File
from django.core.files.base import ContentFile
from django.db import IntegrityError

from batches import cleanup, lifecycle, pools, scheduling, wake
from batches.catalogue import get_model
from batches.database import DATABASE_AWAY
from batches.lifecycle import NOTHING_SPENT, Spent
from batches.models import (
    GENERATION_TERMINAL,
    Attempt,
    AtWork,
    Generation,
    GenerationKind,
    GenerationStatus,
    Image,
    Lease,
    Reference,
    image_folder,
)
from generation import images
from generation.catalogue import Model
from generation.images import VerifiedImage
from generation.provider import (
    ErrorClass,
    Failure,
    InputFile,
    Prediction,
    Provider,
    SubmitRequest,
)
from generation.renditions import Resize
from worker import canvas, heartbeat, looks, sweeper
from worker.providers import callback_url, can_make, get_provider
from worker.retries import DATABASE_RETRY_S, JITTER, WHILE_DATABASE_AWAY, backoff_s
from worker.stored import open_stored

logger = logging.getLogger(__name__)

# What a step tells the next: a status, and for a download whose turn it is.
Outcome = str | dict[str, Any]

# --- What is tried again ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryRule:
    """`limit`: attempts after the first, `None` for one per configured delay.

    `blocks_pool_s`: how long nothing is admitted to the provider when it names no wait itself.
    `stops_pool`: nothing is admitted to it until an operator says so. Either way the failure says
    nothing about the generation and is not counted against it.
    """

    limit: int | None = None
    blocks_pool_s: float | None = None
    stops_pool: bool = False


NEVER = RetryRule(limit=0)
RETRY_RULES: dict[ErrorClass, RetryRule] = {
    ErrorClass.RATE_LIMITED: RetryRule(blocks_pool_s=5),
    ErrorClass.AUTH: RetryRule(stops_pool=True),
    ErrorClass.INSUFFICIENT_CREDIT: RetryRule(stops_pool=True),
    # Of a submission while the circuit is open: not counted either, see `_retry`.
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
    # It may run and it may be charged: submitting again could pay twice. See `_find`.
    ErrorClass.TIMEOUT_UNKNOWN: NEVER,
}
# The shortest and the longest wait that a provider may impose on us in one answer.
MIN_BLOCK_S, MAX_BLOCK_S = 1.0, 300.0
# Outputs are gone within an hour, so the same one is fetched again quickly, and then no more.
FETCH_DELAYS_S = (0.5, 2.0, 5.0, 15.0)
# A file that is no image may have been cut off on its way: fetching again costs nothing.
FETCH_LIMITS = {ErrorClass.DOWNLOAD_FAILED: len(FETCH_DELAYS_S), ErrorClass.BAD_OUTPUT: 1}
# The longest between two looks, whatever a provider asks for.
MAX_PUT_OFF_S = 30.0
# How long after our deadline the provider may take to confirm that it has stopped.
CANCEL_GRACE_S = 60.0
# How long after a submission its prediction may still be unknown to those who are asked for it.
READABLE_WITHIN_S = 10.0
# While a provider is stopping, it is asked this often whether it has.
STOPPING_LOOK_S = 0.5
# Outputs up to this size never touch the disk before they are stored.
SPOOL_BYTES = 8 * 1024 * 1024
MIN_CANCEL_AFTER_S = 5
# What amounts of money are kept to.
SMALLEST_USD, MOST_USD = Decimal("0.000001"), Decimal(10_000)
SUBMISSION_UNKNOWN = "submission_unknown"


def _retry(work: AtWork, failure: Failure, *, has_run: bool) -> tuple[bool, bool, float]:
    """Whether to try again, whether that is counted, and in how many seconds."""
    generation = work.generation
    rule = RETRY_RULES[failure.error_class]
    if has_run and (rule.stops_pool or rule.blocks_pool_s is not None):
        # What a model writes into its error is no word of the provider's about our account, and
        # the run was paid.
        rule = RetryRule()
    asked_s = min(failure.retry_after_s or 0.0, MAX_BLOCK_S)
    if rule.stops_pool:
        _stop_pool(generation.provider, failure)
        return True, False, 0.0
    if rule.blocks_pool_s is not None:
        is_told = failure.retry_after_s is not None
        wait_s = max(asked_s if is_told else rule.blocks_pool_s, MIN_BLOCK_S)
        pools.block_pool(name=generation.provider, seconds=wait_s)
        return True, False, wait_s
    delays = settings.RETRY_DELAYS[: rule.limit]
    if generation.retry_count >= len(delays):
        return False, False, 0.0
    own_s = backoff_s(generation.retry_count, delays=delays, rand=random.random)
    return True, True, max(asked_s, own_s)


def _stop_pool(provider: str, failure: Failure) -> None:
    logger.error("%s stopped until its alert is cleared: %s", provider, failure.message)
    pools.stop_pool(name=provider, error_class=failure.error_class, message=failure.message)


def _retry_or_fail(
    work: AtWork,
    attempt: Attempt,
    failure: Failure,
    *,
    circuit_open: bool = False,
    prediction: Prediction | None = None,
) -> Outcome:
    """Record a failed attempt. Returns when that was the last one, else raises `Ignore`.

    `circuit_open`: the provider is away for everybody, so it is not counted. `prediction`: it is
    that which failed, and not the submission.
    """
    generation = work.generation
    logger.info("generation %s: %s: %s", generation.pk, failure.error_class, failure.message)
    spent = _spent(generation, prediction)
    retry, counts, delay_s = True, False, 0.0
    if not circuit_open:
        retry, counts, delay_s = _retry(work, failure, has_run=prediction is not None)
    if retry:
        if lifecycle.requeue_generation(
            generation=generation,
            attempt=attempt,
            failure=failure,
            delay_s=delay_s,
            counts_as_retry=counts,
            spent=spent,
        ):
            raise Ignore
    elif lifecycle.fail_generation(
        generation=generation, attempt=attempt, failure=failure, spent=spent
    ):
        return GenerationStatus.FAILED
    return _overtaken(work, attempt, prediction or failure)


def _fail_unsent(work: AtWork, failure: Failure) -> Outcome:
    """Record that a generation cannot be submitted at all."""
    logger.info("generation %s: %s", work.generation.pk, failure.message)
    if lifecycle.fail_generation(generation=work.generation, attempt=None, failure=failure):
        return GenerationStatus.FAILED
    return _overtaken(work, None, failure)


# Of a submission: that a provider is not there, or takes nothing. An answer of 500 or 502 says
# so as well, but not as surely as to pay somebody else for the same.
NOT_TAKEN = frozenset({"", "503"})
REFUSED = (ErrorClass.NOT_FOUND, ErrorClass.INVALID_INPUT)


def _fall_back(work: AtWork, attempt: Attempt, failure: Failure) -> None:
    """Have another provider make it, if there is one, since this one has not been given it.

    Raises `Ignore` when that is so.
    """
    generation = work.generation
    is_refused = failure.error_class in REFUSED
    is_away = (
        failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        and failure.provider_code in NOT_TAKEN
    )
    if not generation.fallbacks or not (is_refused or is_away):
        return
    detour = lifecycle.find_detour(generation, can_make(pools.usable()), is_refused=is_refused)
    if detour is not None and lifecycle.requeue_generation(
        generation=generation,
        attempt=attempt,
        failure=failure,
        delay_s=0,
        counts_as_retry=False,
        detour=detour,
    ):
        logger.warning("generation %s: is now made by %s", generation.pk, detour.way["model"])
        raise Ignore


# --- Admission ----------------------------------------------------------------------------------


@shared_task(name="work.dispatch", **WHILE_DATABASE_AWAY)
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


@shared_task(name="work.follow", **WHILE_DATABASE_AWAY)
def follow(generation_ids: list[str]) -> int:
    """Look at these now and not when planned; how many are at work."""
    members = Lease.objects.members([uuid.UUID(one) for one in generation_ids])
    for member in members:
        canvas.publish(member)
    return len(members)


# --- The first step -----------------------------------------------------------------------------


@shared_task(bind=True, name="work.generate", **WHILE_DATABASE_AWAY)
def generate(self: Task, generation_id: str, lease_id: str, turn: int | None = None) -> Outcome:
    """Submit if that is still to do, else look once."""
    work = Generation.objects.take_turn(generation_id, lease_id, turn, holds_slot=True)
    if work is None:
        return _step_aside(generation_id, lease_id, turn)
    with heartbeat.holding(work.lease_id, work.turn):
        try:
            return _generate(self, work)
        except DATABASE_AWAY as error:
            # By the turn that was taken: the one in the message is over.
            args = (generation_id, lease_id, work.turn)
            raise self.retry(args=args, exc=error, countdown=DATABASE_RETRY_S) from error


def _generate(task: Task, work: AtWork) -> Outcome:
    attempt = work.attempt
    provider = get_provider(work.generation.provider)
    left_s = settings.GENERATION_DEADLINE - work.elapsed_s
    if attempt is None:
        return _start(task, provider, work, left_s)
    if attempt.provider_id is None:
        return _find(task, provider, work, attempt, left_s)
    if attempt.report is not None and (report := provider.read(attempt.report)):
        return _proceed(task, work, attempt, report, left_s)
    is_to_stop = work.generation.cancel_requested_at is not None or left_s <= 0
    answer = (provider.cancel if is_to_stop else provider.fetch)(attempt.provider_id)
    if isinstance(answer, Prediction):
        return _proceed(task, work, attempt, answer, left_s)
    if answer.error_class == ErrorClass.NOT_FOUND and work.submitted_s > READABLE_WITHIN_S:
        return _retry_or_fail(work, attempt, answer)
    return _miss(task, work, attempt, answer, left_s)


def _start(task: Task, provider: Provider, work: AtWork, left_s: float) -> Outcome:
    """Make the one submission of this admission."""
    generation = work.generation
    if generation.cancel_requested_at is not None:
        return _overtaken(work, None, Failure(ErrorClass.CANCELED, "Nothing was submitted."))
    if left_s <= 0:
        return _fail_late(work, None)
    # Before the attempt is begun: whatever goes wrong between that and the submission leaves open
    # whether there was one.
    model = get_model(generation.model)
    files = _files(generation, model)
    if problem := _unsendable(generation, model, files):
        return _fail_unsent(work, problem)
    try:
        attempt = lifecycle.begin_attempt(generation=generation)
    except IntegrityError:  # a delivery that was woken for the same lease is doing it
        _look_again(task, work, STOPPING_LOOK_S)
    if attempt is None:
        return _overtaken(work, None, Failure(ErrorClass.CANCELED, "Nothing was submitted."))
    # A process that was stopped since it took its turn must not send what others may have given
    # up: the lease is the bound, here as for them.
    timeout_s = submit_timeout_s(generation) - (time.monotonic() - work.taken_at_s)
    if timeout_s <= 0:
        return _send_back(task, work, attempt, "The submission was held up and not sent.")
    request = _request(
        generation,
        attempt,
        model,
        files=files,
        cancel_after_s=max(MIN_CANCEL_AFTER_S, int(left_s)),
        timeout_s=timeout_s,
    )
    answer = provider.submit(request)
    if isinstance(answer, Prediction):
        logger.info("generation %s: submitted as %s", generation.pk, answer.id)
        if work.provider_failures:
            pools.record_available(name=generation.provider)
        if not answer.outputs:  # else it is recorded together with them
            lifecycle.record_submission(attempt=attempt, prediction=answer)
        return _proceed(task, work, attempt, answer, left_s)
    circuit_open = False
    if answer.error_class in AWAY:
        circuit_open = pools.record_unavailable(name=generation.provider, message=answer.message)
    elif work.provider_failures and answer.provider_code:
        # It was the provider who said so, and not this side of the line.
        pools.record_available(name=generation.provider)
    _fall_back(work, attempt, answer)
    if answer.error_class == ErrorClass.TIMEOUT_UNKNOWN:
        lifecycle.record_lost_answer(attempt=attempt, failure=answer)
        _look_again(task, work, FIND_EVERY_S)
    return _retry_or_fail(work, attempt, answer, circuit_open=circuit_open)


# That nobody is there, or nobody answers.
AWAY = (ErrorClass.PROVIDER_UNAVAILABLE, ErrorClass.TIMEOUT_UNKNOWN)


def _miss(task: Task, work: AtWork, attempt: Attempt, failure: Failure, left_s: float) -> Outcome:
    """Go on from a look that failed, which says nothing about the work."""
    logger.warning("generation %s: cannot look: %s", work.generation.pk, failure.message)
    if failure.error_class in pools.STOPPING:
        _stop_pool(work.generation.provider, failure)
    if left_s < -CANCEL_GRACE_S:
        return _fail_late(work, attempt)
    _look_again(task, work, min(failure.retry_after_s or looks.MAX_LOOK_S, MAX_PUT_OFF_S))


def _proceed(
    task: Task, work: AtWork, attempt: Attempt, prediction: Prediction, left_s: float
) -> Outcome:
    """Go on from what the provider says: wait, hand over to the download, or record a failure."""
    generation = work.generation
    is_cancelled = generation.cancel_requested_at is not None
    if not prediction.is_terminal:
        if left_s < -CANCEL_GRACE_S:
            return _fail_late(work, attempt)
        if is_cancelled or left_s <= 0:
            _look_again(task, work, STOPPING_LOOK_S)
        usual = looks.usual_s(generation.model)
        progress = prediction.progress
        if progress is None:
            progress = min(int(100 * work.submitted_s / usual), 95)
        reports = callback_url(attempt) is not None
        wait_s = looks.next_look_s(work.submitted_s, usual, reports=reports)
        _look_again(task, work, min(wait_s, max(left_s, STOPPING_LOOK_S)), progress)
    if prediction.failure is not None:
        if is_cancelled:
            return _overtaken(work, attempt, prediction)
        if left_s <= 0:
            return _fail_late(work, attempt, prediction)
        failure = prediction.failure
        if failure.error_class == ErrorClass.CANCELED:
            # By somebody at the provider, not by us.
            failure = replace(failure, error_class=ErrorClass.INTERRUPTED)
        return _retry_or_fail(work, attempt, failure, prediction=prediction)
    logger.info("generation %s: %s is done", generation.pk, prediction.id)
    if not lifecycle.begin_download(
        generation=generation,
        attempt=attempt,
        prediction=prediction,
        cost_usd=_cost_usd(generation, prediction),
    ):
        return _overtaken(work, attempt, prediction)
    return {"status": GenerationStatus.DOWNLOADING, "turn": work.turn}


def _look_again(
    task: Task, work: AtWork, countdown_s: float, progress: int | None = None
) -> NoReturn:
    generation = work.generation
    lifecycle.put_off(work=work, progress=generation.progress if progress is None else progress)
    raise task.retry(
        args=(str(generation.pk), str(work.lease_id), work.turn),
        countdown=looks.bounded_s(countdown_s),
    )


def _overtaken(work: AtWork, attempt: Attempt | None, result: Prediction | Failure) -> Outcome:
    """End what its owner has cancelled meanwhile; step aside for whoever else was faster."""
    generation = work.generation
    cost_usd = _cost_usd(generation, result) if isinstance(result, Prediction) else Decimal(0)
    if lifecycle.confirm_cancel(
        generation=generation, attempt=attempt, result=result, cost_usd=cost_usd
    ):
        return GenerationStatus.CANCELLED
    if attempt is not None and isinstance(result, Prediction):
        # Whatever became of it meanwhile: that it was accepted, and may cost, stays on record.
        lifecycle.record_submission(attempt=attempt, prediction=result)
    return _step_aside(str(generation.pk), str(work.lease_id), work.turn)


def _step_aside(generation_id: str, lease_id: str, turn: int | None) -> Outcome:
    """For a delivery that has nothing to do: let the chain go on, or say that another will come."""
    standing = Generation.objects.standing(generation_id)
    if standing is None:
        raise Ignore
    if standing.status in GENERATION_TERMINAL:
        return standing.status
    is_ours = str(standing.lease_id) == lease_id and turn in (None, standing.turn)
    if standing.status == GenerationStatus.DOWNLOADING and is_ours:
        return {"status": standing.status, "turn": standing.turn}
    raise Ignore


def _fail_late(
    work: AtWork, attempt: Attempt | None, prediction: Prediction | None = None
) -> Outcome:
    failure = Failure(
        ErrorClass.TIMEOUT_RUN, f"Not finished within {settings.GENERATION_DEADLINE} seconds."
    )
    if lifecycle.fail_generation(
        generation=work.generation,
        attempt=attempt,
        failure=failure,
        spent=_spent(work.generation, prediction),
    ):
        return GenerationStatus.FAILED
    return _overtaken(work, attempt, prediction or failure)


# --- Submitting, and a submission whose answer is missing ---------------------------------------

MAX_SUBMIT_S = 15.0
# With reference images to hand over before.
MAX_SUBMIT_WITH_FILES_S = 60.0
# Between two looks for a prediction whose id we have not heard.
FIND_EVERY_S = 1.0
# How far the provider's clock may be from ours.
CLOCKS_DIFFER = timedelta(minutes=5)


def submit_timeout_s(generation: Generation) -> float:
    """How long a submission waits for its answer.

    No longer than a lease: whoever takes that over knows that nobody is submitting any more.
    """
    has_files = generation.kind != GenerationKind.GENERATE
    longest_s = MAX_SUBMIT_WITH_FILES_S if has_files else MAX_SUBMIT_S
    return float(min(longest_s, settings.LEASE_SECONDS))


def listed_within_s(generation: Generation) -> float:
    """How long after a submission its prediction is listed at the latest, if there is one.

    A good deal longer than the answer is waited for: a provider may be slower than we are patient.
    """
    return submit_timeout_s(generation) + min(10.0, 0.4 * settings.LEASE_SECONDS)


def _request(
    generation: Generation, attempt: Attempt, model: Model | None, **options: Any
) -> SubmitRequest:
    request = SubmitRequest(
        model=generation.model,
        input=generation.input,
        token=str(attempt.callback_token),
        webhook_url=callback_url(attempt),
        **options,
    )
    if model is None:  # gone since it was submitted; it can still be looked for
        return request
    has_image = generation.kind != GenerationKind.GENERATE
    return replace(
        request,
        version=model.version,
        deployment=model.deployment,
        endpoint=model.endpoint,
        workflow=model.workflow_for(has_image=has_image),
        file_lists=model.file_lists,
    )


def _files(generation: Generation, model: Model | None) -> dict[str, tuple[InputFile, ...]]:
    """The pictures that a generation is made from, under the parameter that takes them."""
    parameter = model.image_parameter if model else None
    if generation.kind == GenerationKind.GENERATE or parameter is None:
        return {}
    references = Reference.objects.filter(generations__generation=generation.pk)
    return {
        parameter.name: tuple(
            InputFile(
                filename=f"{reference.pk}.{images.EXTENSIONS[reference.format]}",
                content_type=f"image/{reference.format}",
                size_bytes=reference.size_bytes,
                sha256=reference.sha256,
                open=partial(open_stored, reference.file),
            )
            for reference in references.order_by("generations__position")
        )
    }


def _unsendable(
    generation: Generation, model: Model | None, files: Mapping[str, tuple[InputFile, ...]]
) -> Failure | None:
    """Why a generation cannot be submitted as it is: the catalogue has changed since."""
    if model is None:
        message = f"The catalogue has no model {generation.model!r} any more."
        return Failure(ErrorClass.NOT_FOUND, message)
    has_image = generation.kind != GenerationKind.GENERATE
    if has_image and not any(files.values()):
        message = f"{generation.model} takes no reference images any more."
        return Failure(ErrorClass.INVALID_INPUT, message)
    workflow = model.workflow_for(has_image=has_image)
    if workflow and (lost := {*generation.input, *files} - {*workflow.bindings}):
        message = f"The workflow of {generation.model} has no place for {', '.join(sorted(lost))}."
        return Failure(ErrorClass.INVALID_INPUT, message)
    return None


def _find(task: Task, provider: Provider, work: AtWork, attempt: Attempt, left_s: float) -> Outcome:
    """Find out what became of a submission whose answer was never heard.

    Either its prediction is found and followed, or it is certain that there is none and the
    generation goes back in line, or at the deadline nobody can tell. It is never sent again
    blindly.
    """
    generation = work.generation
    timeout_s = submit_timeout_s(generation)
    is_over = work.attempted_s > timeout_s + FIND_EVERY_S
    if not attempt.error_class and not is_over:
        _look_again(task, work, FIND_EVERY_S)  # somebody may still be waiting for the answer
    since = attempt.created_at - CLOCKS_DIFFER
    until = attempt.created_at + timedelta(seconds=timeout_s) + CLOCKS_DIFFER
    claimed_id = (attempt.report or {}).get("id", "")
    model = get_model(generation.model)
    request = _request(generation, attempt, model, claimed_id=claimed_id)
    found = provider.find(request, since=since, until=until)
    if isinstance(found, Failure):
        logger.warning("generation %s: cannot look it up: %s", generation.pk, found.message)
        # The provider may be working on it until then, and may still report.
        if left_s > 0:
            _look_again(task, work, max(FIND_EVERY_S, work.attempted_s / 10))
        return _give_up(task, work, attempt)
    known = set(Attempt.objects.known_ids(attempt.provider, [one.id for one in found]))
    unclaimed = [one for one in found if one.id not in known]
    if unclaimed:
        # Submissions of the same input cannot be told apart, and need not be; but one whose
        # answer is still to come must not lose its prediction to us. The newest first: older ones
        # may be of rows that are no more. Those made from pictures differ in what no list tells:
        # of several whose answers were lost, only a webhook says which is whose. None of this
        # matters where the provider was asked for this very submission.
        is_exact = bool(claimed_id) or unclaimed[0].id == request.token
        has_files = generation.kind != GenerationKind.GENERATE
        is_contested = not is_exact and Attempt.objects.has_rivals(
            attempt, generation.input, since, timeout_s, or_lost=has_files
        )
        if is_contested and left_s > 0:
            _look_again(task, work, FIND_EVERY_S)
        if is_contested and has_files:
            return _give_up(task, work, attempt)
        lifecycle.record_submission(attempt=attempt, prediction=unclaimed[0])
        _look_again(task, work, looks.MIN_LOOK_S)
    if work.attempted_s < listed_within_s(generation):
        _look_again(task, work, FIND_EVERY_S)
    return _send_back(task, work, attempt, "The submission did not reach the provider.")


def _send_back(task: Task, work: AtWork, attempt: Attempt, message: str) -> Outcome:
    """Have another attempt made at once, since it is certain that this one submitted nothing.

    Unless somebody knows better: an attempt that has a prediction by now is followed.
    """
    generation = work.generation
    failure = Failure(ErrorClass.INTERRUPTED, message)
    logger.info("generation %s: %s", generation.pk, failure.message)
    if generation.retry_count >= len(settings.RETRY_DELAYS):
        moved = lifecycle.fail_generation(
            generation=generation, attempt=attempt, failure=failure, unanswered=True
        )
    else:
        moved = lifecycle.requeue_generation(
            generation=generation,
            attempt=attempt,
            failure=failure,
            delay_s=0,
            counts_as_retry=True,
            unanswered=True,
        )
    return _given_up(task, work, attempt, failure, moved)


def _give_up(task: Task, work: AtWork, attempt: Attempt) -> Outcome:
    failure = Failure(
        ErrorClass.TIMEOUT_UNKNOWN,
        "Nobody can tell whether the submission arrived; it may have been charged.",
    )
    moved = lifecycle.fail_generation(
        generation=work.generation,
        attempt=attempt,
        failure=failure,
        code=SUBMISSION_UNKNOWN,
        unanswered=True,
    )
    return _given_up(task, work, attempt, failure, moved)


def _given_up(task: Task, work: AtWork, attempt: Attempt, failure: Failure, moved: bool) -> Outcome:
    if moved or work.generation.cancel_requested_at is not None:
        return _overtaken(work, attempt, failure)
    _look_again(task, work, looks.MIN_LOOK_S)  # it was answered after all


def _spent(generation: Generation, prediction: Prediction | None) -> Spent:
    if prediction is None:
        return NOTHING_SPENT
    return Spent(_cost_usd(generation, prediction), prediction.run_s)


def _cost_usd(generation: Generation, prediction: Prediction) -> Decimal:
    """What a prediction that has ended is charged, by the catalogue's prices.

    By the second also for work that failed or was stopped; by the image only for images.
    """
    model = get_model(generation.model)
    if model is None:
        return Decimal(0)
    if model.price_usd_per_second is not None and prediction.run_s is not None:
        cost = model.price_usd_per_second * Decimal(str(prediction.run_s))
    else:
        count = prediction.billed_images
        price = model.price_per_image(generation.input)
        cost = price * (len(prediction.outputs) if count is None else count)
    # A nonsensical figure of the provider's must not keep the work from ending.
    return min(cost, MOST_USD).quantize(SMALLEST_USD, rounding=ROUND_HALF_UP)


# --- The second step ----------------------------------------------------------------------------


@shared_task(bind=True, name="work.download", **WHILE_DATABASE_AWAY)
def download(
    self: Task,
    outcome: Outcome,
    generation_id: str,
    lease_id: str | None = None,
    turn: int | None = None,
    tries: int = 0,
) -> Outcome:
    """Fetch, verify and store the output. Steps aside when that is not what is to be done."""
    if turn is None and isinstance(outcome, dict):
        turn = outcome["turn"]
    if lease_id is None:  # a message of before there were turns
        standing = Generation.objects.standing(generation_id)
        lease_id = str(standing.lease_id) if standing and standing.lease_id else None
    work = lease_id and Generation.objects.take_turn(
        generation_id, lease_id, turn, holds_slot=False
    )
    if not work:
        status = Generation.objects.filter(pk=generation_id).values_list("status", flat=True)
        if (reached := status.first()) in GENERATION_TERMINAL:
            return str(reached)
        raise Ignore
    with heartbeat.holding(work.lease_id, work.turn):
        try:
            return _download(self, work, tries)
        except DATABASE_AWAY as error:
            args = (outcome, generation_id, lease_id, work.turn, tries)
            raise self.retry(args=args, exc=error, countdown=DATABASE_RETRY_S) from error


def _download(task: Task, work: AtWork, tries: int) -> Outcome:
    generation, attempt = work.generation, work.attempt
    assert attempt is not None  # what put it into this status
    provider = get_provider(generation.provider)
    stored: list[Image] = []
    missing: Failure | None = None
    for index, output in enumerate(attempt.outputs):
        heartbeat.goes_on(work.lease_id)
        image = _fetch(provider, output, attempt, index)
        if isinstance(image, Failure):
            is_late = work.elapsed_s > settings.GENERATION_DEADLINE + CANCEL_GRACE_S
            if tries < FETCH_LIMITS.get(image.error_class, 0) and not is_late:
                wait_s = FETCH_DELAYS_S[tries] * (1 + JITTER * random.random())
                asked_s = min(image.retry_after_s or 0, looks.MAX_LOOK_S)
                lifecycle.put_off(work=work, progress=generation.progress)
                outcome = {"status": generation.status, "turn": work.turn}
                raise task.retry(
                    args=(outcome, str(generation.pk), str(work.lease_id), work.turn, tries + 1),
                    countdown=looks.bounded_s(max(wait_s, asked_s)),
                )
            missing = missing or image
        else:
            stored.append(image)
    if missing is not None and not stored:
        return _retry_or_fail(work, attempt, missing)
    # Of several images, those that are good have been paid for like the others.
    if not lifecycle.complete_generation(
        generation=generation, images=stored, attempt=attempt, missing=missing
    ):
        cleanup.clean(image_folder(generation))  # of what was written too late
        return _step_aside(str(generation.pk), str(work.lease_id), work.turn)
    logger.info("generation %s: completed", generation.pk)
    return GenerationStatus.COMPLETED


def _fetch(provider: Provider, output: str, attempt: Attempt, index: int) -> Image | Failure:
    """One output in storage, its row not saved yet.

    A file that a failure leaves behind is written over by the next try, or discarded with the
    attempt; others may need it by now.
    """
    generation = attempt.generation
    # Within an attempt the bytes are the same, whoever writes them. One that was held up must not
    # write those of its attempt over those of a later one.
    stem = str(index) if attempt.number == 1 else f"{index}-{attempt.number}"
    image = Image(generation=generation, owner_id=generation.owner_id, index=index)
    try:
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            file = cast(BinaryIO, spool)
            fetched = provider.download(
                output,
                file,
                prediction_id=attempt.provider_id or "",
                max_bytes=settings.MAX_OUTPUT_BYTES,
            )
            if isinstance(fetched, Failure):
                return fetched
            verified = images.verify(
                file, max_pixels=settings.MAX_OUTPUT_PIXELS, max_bytes=settings.MAX_OUTPUT_BYTES
            )
            if isinstance(verified, Failure):
                return verified
            wanted = generation.settings.get("resize")
            made_px = verified.width_px, verified.height_px
            size = wanted and Resize(wanted["mode"], wanted["width"], wanted["height"])
            # A drawing has any size that one likes.
            if not size or verified.format == "svg" or made_px == (size.width_px, size.height_px):
                _store(image, stem, verified, file)
                return image
            with tempfile.TemporaryFile() as resized:
                stored = images.resize(file, verified, size, resized)
                if isinstance(stored, Failure):
                    return stored
                image.made_width, image.made_height = made_px
                _store(image, stem, stored, resized)
    # A full disk, or whatever a storage raises: they have no exception in common.
    except Exception:
        logger.exception("generation %s: cannot store", generation.pk)
        return Failure(ErrorClass.DOWNLOAD_FAILED, "The image could not be stored.")
    return image


def _store(image: Image, stem: str, stored: VerifiedImage, file: BinaryIO) -> None:
    """Write a picture and its small copies, and describe them in its row."""
    image.format = stored.format
    image.width, image.height = stored.width_px, stored.height_px
    image.size_bytes, image.sha256 = stored.size_bytes, stored.sha256
    file.seek(0)
    content = File(file) if stored.content is None else ContentFile(stored.content)
    image.file.save(f"{stem}.{stored.extension}", content, save=False)
    for field, data in ((image.thumbnail, stored.thumbnail), (image.preview, stored.preview)):
        field.save(f"{stem}.{field.field.name}.webp", ContentFile(data), save=False)


# --- The end of a batch -------------------------------------------------------------------------


@shared_task(name="work.finalise_batch", **WHILE_DATABASE_AWAY)
def finalise_batch(batch_id: str) -> bool:
    """The chord's body."""
    return lifecycle.finalise_batch(batch_id=uuid.UUID(batch_id))


@shared_task(name="work.sweep")
def sweep() -> bool:
    """Do what a lost message left undone. `False`: another sweep is at it."""
    return sweeper.sweep()


@shared_task(name="work.clean_files")
def clean_files() -> bool:
    """Delete the files that no picture needs. `False`: somebody is at it."""
    return sweeper.clean_files()


@shared_task(name="work.run_schedules")
def run_schedules() -> bool:
    """Make the batches of schedules whose time has come. `False`: somebody is at it."""
    return sweeper.run_schedules()
