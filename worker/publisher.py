"""The Celery tasks that publish images: what is called when, and what is tried again.

A delivery takes as many steps of one publication as it can, and ends in one of four ways: it is
published, it has failed, it is to go on at a later time (its row says when), or somebody else has
it. One that dies does none of these, and its hold on the row runs out.

A step that creates something at the channel is on record before it is taken. When it is not known
what came of it, the channel is asked, and only when it certainly has nothing is it taken again.
"""

import contextlib
import hashlib
import logging
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from celery import Task, shared_task
from django.conf import settings
from django.core.files.storage import default_storage
from django.db import transaction

from batches import publications, wake
from batches.database import DATABASE_AWAY
from batches.models import CallOutcome, Image, PublicationAttempt
from batches.pools import STOPPING
from batches.publications import Work
from batches.signing import URL_LIFETIME_S, signed_url
from generation import images
from generation.provider import ErrorClass, Failure, InputFile
from publishing import products
from publishing.channel import Channel, Done, Item, Pending, Step
from worker import heartbeat, sweeper
from worker.providers import http_client
from worker.retries import DATABASE_RETRY_S, JITTER, WHILE_DATABASE_AWAY, backoff_s
from worker.stored import open_stored

logger = logging.getLogger(__name__)

# Deliveries at a time in one process: the others of its threads are for what makes images.
ROOM = 8
# Steps of one delivery; no channel has nearly as many.
STEPS_MAX = 20
# While an account is stopped, what waits for it looks this often whether it goes on.
STOPPED_LOOK_S = 300.0
# The same will not be answered otherwise the next time.
PERMANENT = (
    ErrorClass.INVALID_INPUT,
    ErrorClass.NOT_FOUND,
    ErrorClass.BAD_OUTPUT,
)
# Of a step that creates something: it certainly has not.
WITHOUT_EFFECT = (
    *STOPPING,
    *PERMANENT,
    ErrorClass.RATE_LIMITED,
    ErrorClass.PROVIDER_UNAVAILABLE,
)
# The shortest and the longest wait that a channel may impose on us, and the one if it names none.
MIN_BLOCK_S, MAX_BLOCK_S, BLOCK_S = 1.0, 1_800.0, 10.0
MAX_SPREAD_S = 60.0
# Between two looks at what a channel is still at: a tenth of the time so far, within bounds.
MIN_LOOK_S, LOOK_S, MAX_LOOK_S = 0.5, 5.0, 600.0
# A wait up to this has a message of its own, beside the sweep's.
SOON_S = 30.0
# The most that a step takes, but for a search through a long list.
CALLS_PER_STEP = 3
OUTCOME_UNKNOWN = "outcome_unknown"

# Pictures above this are sent one at a time.
LARGE_BYTES = 8 * 1024 * 1024
# Formats that every channel takes.
AS_THEY_ARE = ("png", "jpeg")
# Of a picture that is sent as PNG: at most this for each pixel.
PNG_PIXEL_BYTES = 4

_room = threading.BoundedSemaphore(ROOM)
# Pictures are decoded one at a time: each may take the memory of all its pixels.
_converting = threading.Lock()
_sending_large = threading.Lock()


@shared_task(name="publish.dispatch", **WHILE_DATABASE_AWAY)
def dispatch() -> None:
    """Send messages for what is due."""
    sweeper.publish_due()


@shared_task(bind=True, name="publish.deliver", **WHILE_DATABASE_AWAY)
def deliver(self: Task, publication_id: str, turn: int) -> None:
    """Take a publication as far as it goes now."""
    if not _room.acquire(blocking=False):
        publications.put_back(publication_id=publication_id, turn=turn)
        return
    try:
        work = publications.take_turn(publication_id, turn)
        if work is None:
            return
        with heartbeat.holding(work.publication.pk, work.turn, publications.renew):
            try:
                _deliver(self, work)
            except DATABASE_AWAY as error:
                # By the turn that was taken: the one in the message is over.
                args = (publication_id, work.turn)
                raise self.retry(args=args, exc=error, countdown=DATABASE_RETRY_S) from error
    finally:
        _room.release()
    # Whatever there was no room for.
    try:
        sweeper.publish_due(limit=1)
    except wake.BROKER_AWAY as error:
        logger.warning("broker unavailable, the sweep will publish: %s", error)


def _deliver(task: Task, work: Work) -> None:
    if work.left_s <= 0:
        _fail_late(work)
        return
    channel = publications.open_channel(work.account, http=http_client())
    if isinstance(channel, Failure):
        _later_or_never(task, work, channel)
        return
    with contextlib.ExitStack() as files:
        _take_steps(task, work, channel, _Artwork(work.image, files))


def _take_steps(task: Task, work: Work, channel: Channel, artwork: "_Artwork") -> None:
    publication, attempt = work.publication, work.attempt
    looked = ""
    for _ in range(STEPS_MAX):
        heartbeat.goes_on(publication.pk)
        item = _item(work, artwork)
        step = Step(attempt.step) if attempt is not None else channel.next_step(item)
        if step is None:
            if publications.complete_publication(work=work):
                logger.info("publication %s: published", publication.pk)
            return
        is_find = attempt is not None
        if step.name == looked:  # it has noted something, and is to be asked again
            _go_on_later(task, work, Pending(LOOK_S))
            return
        looked = "" if step.creates else step.name
        sends = step.sends and not is_find
        with _alone(sends and artwork.may_be_large) as is_free:
            if not is_free:
                _put_off(task, work, LOOK_S * (1 + JITTER * random.random()))
                return
            if not _is_allowed(task, work, channel, step, is_find=is_find):
                return
            if sends:
                if failure := artwork.make_ready():
                    _later_or_never(task, work, failure)
                    return
                item = replace(item, artwork=artwork.file, artwork_url=artwork.url)
            if attempt is not None:
                goes_on = _find(task, work, channel, step, item, attempt)
            elif step.creates:
                goes_on = _create(task, work, channel, step, item)
            else:
                goes_on = _look(task, work, channel, step, item)
        if not goes_on:
            return
        attempt = None
    _put_off(task, work, MIN_LOOK_S)


def _look(task: Task, work: Work, channel: Channel, step: Step, item: Item) -> bool:
    """Take a step that creates nothing. `False`: that is all for now."""
    answer = channel.take(step, item)
    if isinstance(answer, Done):
        return _keep(work, step, answer)
    _go_on_later(task, work, answer)
    return False


@contextlib.contextmanager
def _alone(is_large: bool) -> Iterator[bool]:
    """Of large pictures one is sent at a time: a channel may take it in base64, within a body."""
    is_free = not is_large or _sending_large.acquire(blocking=False)
    try:
        yield is_free
    finally:
        if is_large and is_free:
            _sending_large.release()


def _create(task: Task, work: Work, channel: Channel, step: Step, item: Item) -> bool:
    """Take a step that creates something, on record. `False`: that is all for now."""
    begun_at_s = time.monotonic()
    attempt = publications.begin_attempt(work=work, step=step)
    if attempt is None:
        return False
    # A process that was held up here must not send what others may have given up.
    if not publications.may_send(begun_at_s):
        failure = Failure(ErrorClass.INTERRUPTED, "The call was held up and not made.")
        publications.end_attempt(attempt=attempt, outcome=CallOutcome.FAILED, failure=failure)
        _put_off(task, work, MIN_LOOK_S)
        return False
    answer = channel.take(step, item)
    if isinstance(answer, Done):
        return _keep(work, step, answer, attempt)
    assert isinstance(answer, Failure)  # only what creates nothing is `Pending`
    is_certain = answer.error_class in WITHOUT_EFFECT
    outcome = CallOutcome.FAILED if is_certain else CallOutcome.UNKNOWN
    with transaction.atomic():
        publications.end_attempt(attempt=attempt, outcome=outcome, failure=answer)
        _later_or_never(task, work, answer)
    return False


def _find(
    task: Task, work: Work, channel: Channel, step: Step, item: Item, attempt: PublicationAttempt
) -> bool:
    """Find out what became of a call whose answer was never heard. `False`: not now."""
    found = channel.find(step, item)
    if isinstance(found, Done):
        logger.warning("publication %s: %s was done", work.publication.pk, step.name)
        if _keep(work, step, found, attempt):
            return True
        _put_off(task, work, 0)  # its answer has come after all
        return False
    if isinstance(found, Failure):
        _later_or_never(task, work, found, is_find=True)
        return False
    if work.settled_s < 0:
        # It may still arrive there, or still be worked on.
        _put_off(task, work, -work.settled_s)
        return False
    failure = Failure(ErrorClass.INTERRUPTED, "The call did not reach the channel.")
    if publications.end_attempt(attempt=attempt, outcome=CallOutcome.FAILED, failure=failure):
        return True
    _put_off(task, work, 0)  # its answer has come after all
    return False


def _keep(work: Work, step: Step, done: Done, attempt: PublicationAttempt | None = None) -> bool:
    """Keep what a step has come to. `False`: somebody else has taken over."""
    if not publications.record_step(work=work, done=done, attempt=attempt):
        return False
    logger.info("publication %s: %s is done", work.publication.pk, step.name)
    publication = work.publication
    publication.remote_ids = {**publication.remote_ids, **done.remote_ids}
    publication.retry_count = 0
    return True


def _is_allowed(task: Task, work: Work, channel: Channel, step: Step, *, is_find: bool) -> bool:
    """Take what a step needs of the account's limits; else put the publication off."""
    allowance = publications.take_allowance(
        account=work.account,
        limits=channel.limits,
        calls=CALLS_PER_STEP,
        publications=1 if step.publishes and not is_find else 0,
    )
    if allowance.is_given:
        return True
    if allowance.stopped_by:
        wait_s, spread_s = STOPPED_LOOK_S, JITTER * MAX_SPREAD_S
    else:
        # Each that waits has its turn: all at once they would use the time up in asking.
        wait_s = allowance.wait_s + MIN_LOOK_S
        in_line_s = publications.waiting_count(work.account) * allowance.every_s
        spread_s = max(min(in_line_s, MAX_LOOK_S), JITTER * min(wait_s, MAX_SPREAD_S))
    _put_off(task, work, wait_s + spread_s * random.random())
    return False


# --- Later, or never ----------------------------------------------------------------------------


def _go_on_later(task: Task, work: Work, answer: Pending | Failure) -> None:
    if isinstance(answer, Failure):
        _later_or_never(task, work, answer)
    else:
        _put_off(task, work, _patience_s(work, answer.after_s))


def _patience_s(work: Work, asked_s: float) -> float:
    """How long to wait for a channel: the longer, the longer it has taken so far."""
    elapsed_s = publications.DEADLINE.total_seconds() - work.left_s
    return max(asked_s, min(elapsed_s / 10, MAX_LOOK_S), MIN_LOOK_S)


def _later_or_never(task: Task, work: Work, failure: Failure, *, is_find: bool = False) -> None:
    """Go on after a failure, by what it says about the account, the channel or the publication."""
    publication, error_class = work.publication, failure.error_class
    logger.warning("publication %s: %s: %s", publication.pk, error_class, failure.message)
    if error_class in STOPPING:
        publications.stop_account(account=work.account, error_class=error_class)
        _put_off(task, work, STOPPED_LOOK_S)
        return
    if error_class == ErrorClass.RATE_LIMITED:
        asked_s = BLOCK_S if failure.retry_after_s is None else failure.retry_after_s
        wait_s = min(max(asked_s, MIN_BLOCK_S), MAX_BLOCK_S)
        publications.block_account(account=work.account, seconds=wait_s)
        _put_off(task, work, _patience_s(work, wait_s))
        return
    if error_class == ErrorClass.NOT_FOUND or (error_class in PERMANENT and not is_find):
        _fail(work, error_class, failure.message)
        return
    delays = settings.RETRY_DELAYS
    if publication.retry_count >= len(delays):
        is_unknown = is_find or error_class == ErrorClass.TIMEOUT_UNKNOWN
        _fail(work, OUTCOME_UNKNOWN if is_unknown else error_class, failure.message)
        return
    own_s = backoff_s(publication.retry_count, delays=delays, rand=random.random)
    asked_s = min(failure.retry_after_s or 0.0, MAX_BLOCK_S)
    _put_off(task, work, max(own_s, asked_s), counts=True)


def _put_off(task: Task, work: Work, seconds: float, *, counts: bool = False) -> None:
    seconds = min(seconds, max(work.left_s, 0.0))
    if not publications.put_off(work=work, seconds=seconds, counts=counts) or seconds > SOON_S:
        return
    args = (str(work.publication.pk), work.turn)
    transaction.on_commit(partial(_send, task, args, seconds))


def _send(task: Task, args: tuple[str, int], countdown_s: float) -> None:
    try:
        task.apply_async(args=args, countdown=countdown_s, expires=wake.EXPIRES_S, retry=False)
    except wake.BROKER_AWAY as error:
        logger.warning("broker unavailable, the sweep will go on with it: %s", error)


def _fail_late(work: Work) -> None:
    hours = publications.DEADLINE.total_seconds() / 3600
    code = work.account.stopped_by or ErrorClass.TIMEOUT_RUN
    _fail(work, code, f"Not published within {hours:.0f} hours.")


def _fail(work: Work, code: str, message: str) -> None:
    if publications.fail_publication(
        publication_id=work.publication.pk, turn=work.turn, code=code, message=message
    ):
        logger.warning("publication %s: failed: %s: %s", work.publication.pk, code, message)


# --- What is sent -------------------------------------------------------------------------------


class _Artwork:
    """An image's file as channels take it; it is made ready once, and only for what sends it.

    `file` has what is stored until then, under the name and type that it will have. `url` is where
    the channel may fetch the same bytes from, empty when it cannot. What is written for it is gone
    when `files` are closed.
    """

    def __init__(self, image: Image, files: contextlib.ExitStack) -> None:
        self.image, self.url = image, ""
        self._files, self._is_ready = files, False
        sent_as = image.format if image.format in AS_THEY_ARE else "png"
        self.file = InputFile(
            filename=f"{image.pk}.{images.EXTENSIONS[sent_as]}",
            content_type=f"image/{sent_as}",
            size_bytes=image.size_bytes,
            sha256=image.sha256,
            open=partial(open_stored, image.file),
        )

    @property
    def may_be_large(self) -> bool:
        size_bytes = self.file.size_bytes
        if self.image.format not in AS_THEY_ARE:
            size_bytes = max(size_bytes, self.image.width * self.image.height * PNG_PIXEL_BYTES)
        return size_bytes > LARGE_BYTES

    def make_ready(self) -> Failure | None:
        if self._is_ready:
            return None
        if self.image.format in AS_THEY_ARE:
            self.url = _public_url(self.image)
        elif failure := self._convert(self.image):
            return failure
        self._is_ready = True
        return None

    def _convert(self, image: Image) -> Failure | None:
        try:
            folder = self._files.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "artwork.png"
            with _converting, self.file.open() as stored, path.open("wb") as png:
                if failure := images.write_png(stored, image.format, png):
                    return failure
            with path.open("rb") as written:
                sha256 = hashlib.file_digest(written, "sha256").hexdigest()
            self.file = replace(
                self.file,
                size_bytes=path.stat().st_size,
                sha256=sha256,
                open=lambda: cast(BinaryIO, path.open("rb")),
            )
        except OSError:  # a full disk, or a storage that is away
            logger.exception("image %s cannot be converted", image.pk)
            return Failure(ErrorClass.DOWNLOAD_FAILED, "The image cannot be read or converted.")
        return None


def _public_url(image: Image) -> str:
    """Where a channel may fetch an image from without a token; empty where it cannot reach us."""
    if settings.STORAGE_BUCKET:
        s3: Any = default_storage
        url = str(s3.url(image.file.name, expire=URL_LIFETIME_S))
    else:
        url = signed_url(settings.PUBLIC_URL, image.pk, "file")
    return url if url.startswith("https://") else ""


def _item(work: Work, artwork: _Artwork) -> Item:
    """What is to be published, as far as it has come."""
    publication = work.publication
    known = products.product_types(publication.channel, work.account.options)
    return Item(
        key=str(publication.pk),
        title=publication.title,
        product_type=publication.product_type,
        # None any more: what is made already is published all the same.
        product=known.get(publication.product_type, {}),
        artwork=artwork.file,
        width_px=artwork.image.width,
        height_px=artwork.image.height,
        description=publication.description,
        tags=tuple(publication.tags),
        price_usd=publication.price_usd,
        remote_ids=publication.remote_ids,
    )
