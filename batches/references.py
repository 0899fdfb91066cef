"""Pictures that others are to be made from: found, taken in, and kept once.

A picture is named by its id, by that of an earlier image, or by a URL, or it is uploaded. Taking
new ones in has three steps, so that nothing is left of a request that is refused or dies:

    look_up    what is there already, and what of it cannot be used; reads rows only
    collect    fetches and checks the rest, then writes its files; in no transaction, since a note
               has to be on record before a file is
    added      adds the rows and withdraws the notes, in the transaction that needs them
"""

import contextlib
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, cast

from django.conf import settings
from django.core.files.base import ContentFile, File
from django.core.files.storage import default_storage
from django.db import DatabaseError, transaction
from django.db.models import QuerySet
from django.db.models.fields.files import FieldFile

from batches import cleanup
from batches.models import GenerationReference, Image, Reference, reference_folder
from generation import images
from generation.http import HttpClient, OutputHosts
from generation.images import VerifiedImage
from generation.provider import Failure

logger = logging.getLogger(__name__)

FORMATS = frozenset({"png", "jpeg", "webp"})  # few models take AVIF, and none SVG
# All URLs of a request share it.
FETCH_DEADLINE_S = 10.0
CONNECT_TIMEOUT_S = 3.0
# Of this process's threads, so many wait for other people's servers, or decode, at a time.
FETCHES_AT_A_TIME = 3
CHECKS_AT_A_TIME = 2
CHECK_WAIT_S = 10.0
# That one request may have taken in.
NEW_MAX = 10
SPOOL_BYTES = 1024 * 1024
THUMBNAIL = "thumbnail.webp"

_fetches = threading.BoundedSemaphore(FETCHES_AT_A_TIME)
_checks = threading.BoundedSemaphore(CHECKS_AT_A_TIME)
# Owners for whom something is being fetched.
_fetching: set[int] = set()
_lock = threading.Lock()


Kind = Literal["id", "image_id", "url"]


class Source(NamedTuple):
    """How a request names a picture. `value` is an id or a URL."""

    kind: Kind
    value: str


class Upload(File):
    """An uploaded file, spooled and hashed on its way in."""

    def __init__(self, file: BinaryIO, *, size_bytes: int, sha256: str) -> None:
        super().__init__(file, name="file")
        self.size_bytes = size_bytes
        self.sha256 = sha256


Row = TypeVar("Row", Reference, Image)
Wanted = Source | Upload


class Refusal(NamedTuple):
    """Why a picture cannot be used. `allowed` says what could."""

    code: str
    detail: str
    allowed: Any = None


Refusals = dict[Wanted, Refusal]


class Busy(Exception):
    """Not now: too many others are at it, or it went away meanwhile."""


class StorageAway(Exception):
    """The storage does not take files."""


class Added(NamedTuple):
    """A reference, and whether it is new."""

    reference: Reference
    is_new: bool


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What is there of the pictures that a request names, and what has to be taken in."""

    owner_id: int
    known: Mapping[Wanted, Reference]
    images: Mapping[Wanted, Image]
    fetched: tuple[Wanted, ...]
    refusals: Refusals


class _New(NamedTuple):
    """A picture that was found to be good, and its row.

    `write` writes its file and its thumbnail, and names them in the row.
    """

    row: Reference
    write: Callable[[], None]


# --- What is there ------------------------------------------------------------------------------


def look_up(owner_id: int, wanted: Iterable[Wanted]) -> LookedUp:
    """Find what a user has of these pictures: at most two queries, for any number of them."""
    asked = list(dict.fromkeys(wanted))
    known = _by_source("id", asked, owner_id, Reference.objects.owned_by)
    images = _by_source("image_id", asked, owner_id, Image.objects.owned_by)
    refusals: Refusals = {}
    for one in asked:
        if isinstance(one, Source) and one.kind == "id" and one not in known:
            detail = f"You have no reference image {one.value}."
            refusals[one] = Refusal("unknown_reference", detail)
        elif isinstance(one, Source) and one.kind == "image_id" and one not in images:
            refusals[one] = Refusal("unknown_image", f"You have no image {one.value}.")
        elif one in images and (refusal := _beyond_limits(images[one])):
            refusals[one] = refusal
    new = [one for one in asked if one not in known and one not in refusals]
    for one in new[NEW_MAX:]:
        detail = f"At most {NEW_MAX} new reference images may be named at once; upload them first."
        refusals[one] = Refusal("too_many", detail, {"max": NEW_MAX})
    fetched = tuple(one for one in new if one not in images)
    return LookedUp(owner_id, known, images, fetched, refusals)


def _by_source(
    kind: Kind, asked: Iterable[Wanted], owner_id: int, rows_of: Callable[[int], QuerySet[Row]]
) -> dict[Wanted, Row]:
    """Those of a user's rows that are asked for by their ids."""
    ids = {
        one: uuid.UUID(one.value) for one in asked if isinstance(one, Source) and one.kind == kind
    }
    if not ids:
        return {}
    found = rows_of(owner_id).in_bulk(set(ids.values()))
    return {one: found[pk] for one, pk in ids.items() if pk in found}


def _beyond_limits(image: Image) -> Refusal | None:
    if image.format not in FORMATS:
        detail = f"An image in {image.format.upper()} cannot be a reference image."
        return Refusal("unsupported_format", detail, sorted(FORMATS))
    if image.size_bytes > settings.MAX_REFERENCE_BYTES:
        return too_large()
    if image.width * image.height > settings.MAX_REFERENCE_PIXELS:
        detail = f"The image is {image.width}x{image.height}."
        return Refusal("too_large", detail, _most_pixels())
    return None


def _most_pixels() -> dict[str, int]:
    return {"max_pixels": settings.MAX_REFERENCE_PIXELS, "max_side_px": images.MAX_SIDE_PX}


def too_large() -> Refusal:
    limit = settings.MAX_REFERENCE_BYTES
    detail = f"A reference image may be at most {limit:,} bytes."
    return Refusal("too_large", detail, {"max_bytes": limit})


def spool() -> BinaryIO:
    """A new file in memory, on disk if it gets large; gone when it is closed."""
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES))


# --- Taking in ----------------------------------------------------------------------------------


class Collected:
    """Pictures that are in storage, their rows yet to be added."""

    def __init__(
        self,
        owner_id: int,
        contents: Mapping[Wanted, str],
        size_bytes: Mapping[Wanted, int],
        rows: Collection[Reference],
    ) -> None:
        self._owner_id = owner_id
        self._contents = contents  # the SHA-256 of each
        self.size_bytes = size_bytes
        self._rows = rows
        self.is_added = False

    @contextlib.contextmanager
    def added(self) -> Iterator[dict[Wanted, Added]]:
        """A transaction, if it takes one, with the rows added and locked against deletion.

        Raises `Busy` if one has gone away before.
        """
        if not self._contents:
            yield {}
            return
        with transaction.atomic():
            yield self._add()

    def _add(self) -> dict[Wanted, Added]:
        if self._rows:
            if not cleanup.settle(*(_folder(row) for row in self._rows)):
                raise Busy
            # In one order, so that of two with the same pictures none waits for the other.
            rows = sorted(self._rows, key=lambda row: row.sha256)
            Reference.objects.bulk_create(rows, ignore_conflicts=True)
        found = _locked(self._owner_id, set(self._contents.values()))
        if not found.keys() >= set(self._contents.values()):
            raise Busy
        # Somebody else was faster with the same bytes.
        if lost := [row for row in self._rows if found[row.sha256].pk != row.pk]:
            cleanup.discard(*(_folder(row) for row in lost))
        self.is_added = True
        new = {row.pk for row in self._rows}
        return {
            one: Added(found[sha256], found[sha256].pk in new)
            for one, sha256 in self._contents.items()
        }


def _locked(owner_id: int, contents: Collection[str]) -> dict[str, Reference]:
    """A user's references by their content, locked against deletion."""
    query = """
        SELECT * FROM batches_reference WHERE owner_id = %s AND sha256 = ANY(%s)
        ORDER BY id FOR KEY SHARE
    """
    return {row.sha256: row for row in Reference.objects.raw(query, [owner_id, list(contents)])}


@contextlib.contextmanager
def collect(looked_up: LookedUp) -> Iterator[Collected | Refusals]:
    """Take in what has to be, or tell what cannot be. Not to be called in a transaction.

    What is not added in the block is gone after it. Raises `Busy` and `StorageAway`.
    """
    if looked_up.refusals:
        yield looked_up.refusals
        return
    with contextlib.ExitStack() as open_files:
        with _only_one_of(looked_up):
            received = _receive(looked_up.fetched, open_files)
        if refusals := _refusals(received):
            yield refusals
            return
        found: dict[Wanted, Reference | Image | Upload] = {
            **looked_up.known,
            **looked_up.images,
            **{one: upload for one, upload in received.items() if isinstance(upload, Upload)},
        }
        written = _keep(looked_up.owner_id, found)
        if isinstance(written, dict):
            yield written
            return
        contents = {one: each.sha256 for one, each in found.items()}
        size_bytes = {one: each.size_bytes for one, each in found.items()}
        collected = Collected(looked_up.owner_id, contents, size_bytes, written)
        is_done = False
        try:
            yield collected
            is_done = collected.is_added
        finally:
            if not is_done:
                _give_up(written)


@contextlib.contextmanager
def _only_one_of(looked_up: LookedUp) -> Iterator[None]:
    """Fetch for one request of a user at a time: the few places are for all. Raises `Busy`."""
    if not any(isinstance(one, Source) for one in looked_up.fetched):
        yield
        return
    with _lock:
        if looked_up.owner_id in _fetching:
            raise Busy
        _fetching.add(looked_up.owner_id)
    try:
        yield
    finally:
        with _lock:
            _fetching.discard(looked_up.owner_id)


def _refusals(answers: Mapping[Wanted, object]) -> Refusals:
    return {one: answer for one, answer in answers.items() if isinstance(answer, Refusal)}


def _receive(
    wanted: Collection[Wanted], open_files: contextlib.ExitStack
) -> dict[Wanted, Upload | Refusal]:
    """The bytes of pictures; after one that cannot be had the others are not tried."""
    answers: dict[Wanted, Upload | Refusal] = {}
    ends_at = time.monotonic() + FETCH_DEADLINE_S
    for one in wanted:
        if isinstance(one, Upload):
            answers[one] = one
            continue
        answers[one] = answer = _fetch(one.value, open_files.enter_context(spool()), ends_at)
        if isinstance(answer, Refusal):
            break
    return answers


@cache
def _http() -> HttpClient:
    return HttpClient(timeout_s=FETCH_DEADLINE_S, connect_timeout_s=CONNECT_TIMEOUT_S, pool_size=1)


def _fetch(url: str, sink: BinaryIO, ends_at: float) -> Upload | Refusal:
    """What a URL names. Raises `Busy` rather than wait for others."""
    left_s = ends_at - time.monotonic()
    if left_s <= 0:
        return Refusal("not_reachable", f"Not fetched within {FETCH_DEADLINE_S:.0f} seconds.")
    if not _fetches.acquire(blocking=False):
        raise Busy
    try:
        fetched = _http().fetch_public(
            url,
            sink,
            max_bytes=settings.MAX_REFERENCE_BYTES,
            deadline_s=left_s,
            exempt=OutputHosts(extra=tuple(settings.REFERENCE_HOSTS)),
        )
    finally:
        _fetches.release()
    if not isinstance(fetched, Failure):
        return Upload(sink, size_bytes=fetched.size_bytes, sha256=fetched.sha256)
    match fetched.provider_code:
        case "too_large":
            return too_large()
        case "private_address" | "invalid_url" as code:
            return Refusal(code, fetched.message)
        case _:
            return Refusal("not_reachable", fetched.message)


def _keep(
    owner_id: int, found: Mapping[Wanted, Reference | Image | Upload]
) -> list[Reference] | Refusals:
    """Check and write what the user has not yet, each content once; rows to be added."""
    fresh = {each.sha256: one for one, each in found.items() if not isinstance(each, Reference)}
    if fresh:
        own = Reference.objects.owned_by(owner_id).filter(sha256__in=fresh)
        for sha256 in own.values_list("sha256", flat=True):
            del fresh[sha256]
    answers: dict[Wanted, _New | Refusal] = {}
    for one in fresh.values():
        each = found[one]
        if isinstance(each, Upload):
            answers[one] = _from_upload(owner_id, each)
        elif isinstance(each, Image):
            answers[one] = _from_image(owner_id, each)
    if refusals := _refusals(answers):
        return refusals
    new = {one: answer for one, answer in answers.items() if isinstance(answer, _New)}
    rows = [each.row for each in new.values()]
    if rows:
        cleanup.announce(*(_folder(row) for row in rows))
    for one, picture in new.items():
        try:
            picture.write()
        except _Gone:
            _give_up(rows)
            return {one: Refusal("unknown_image", "The image's file is gone.")}
        # Whatever a storage raises: they have no exception in common.
        except Exception as error:
            logger.exception("reference %s: cannot store", picture.row.pk)
            _give_up(rows)
            raise StorageAway from error
    return rows


def _from_upload(owner_id: int, upload: Upload) -> _New | Refusal:
    verified = _check(upload)
    if isinstance(verified, Refusal):
        return verified
    row = Reference(
        owner_id=owner_id,
        format=verified.format,
        width=verified.width_px,
        height=verified.height_px,
        size_bytes=upload.size_bytes,
        sha256=upload.sha256,
    )

    def write() -> None:
        upload.seek(0)
        row.file.save(_filename(row), upload, save=False)
        row.thumbnail.save(THUMBNAIL, ContentFile(verified.thumbnail), save=False)

    return _New(row, write)


def _from_image(owner_id: int, image: Image) -> _New:
    """One that was checked when it was made: its files are copied piece by piece."""
    row = Reference(
        owner_id=owner_id,
        format=image.format,
        width=image.width,
        height=image.height,
        size_bytes=image.size_bytes,
        sha256=image.sha256,
    )

    def write() -> None:
        with _stored(image.file) as file:
            row.file.save(_filename(row), file, save=False)
        with _stored(image.thumbnail) as file:
            row.thumbnail.save(THUMBNAIL, file, save=False)

    return _New(row, write)


def _check(upload: Upload) -> VerifiedImage | Refusal:
    """A picture's particulars, if it is one and within the limits. Raises `Busy`."""
    if upload.size_bytes > settings.MAX_REFERENCE_BYTES:
        return too_large()
    if not _checks.acquire(timeout=CHECK_WAIT_S):
        raise Busy
    try:
        verified = images.verify(
            cast(BinaryIO, upload.file),
            max_pixels=settings.MAX_REFERENCE_PIXELS,
            max_bytes=settings.MAX_REFERENCE_BYTES,
            formats=FORMATS,
        )
    finally:
        _checks.release()
    if not isinstance(verified, Failure):
        return verified
    match verified.provider_code:
        case "too_large" as code:
            return Refusal(code, verified.message, _most_pixels())
        case "too_costly":
            # To decode: that takes more than its pixels alone would tell.
            return Refusal("too_large", verified.message)
        case "unsupported_format" as code:
            return Refusal(code, verified.message, sorted(FORMATS))
        case _:
            return Refusal("undecodable", verified.message)


class _Gone(Exception):
    """The file of an earlier image is not there any more."""


def _stored(field: FieldFile) -> File:
    try:
        return default_storage.open(str(field))
    except FileNotFoundError:
        raise _Gone from None


def _filename(row: Reference) -> str:
    return f"picture.{images.EXTENSIONS[row.format]}"


def _folder(row: Reference) -> str:
    return reference_folder(row.owner_id, row.pk)


def _give_up(rows: Collection[Reference]) -> None:
    # Without it, the notes that were made beforehand have the files deleted later.
    if rows:
        with contextlib.suppress(DatabaseError):
            cleanup.discard(*(_folder(row) for row in rows))


# --- Deletion -----------------------------------------------------------------------------------


@transaction.atomic
def delete(reference: Reference) -> bool:
    """Delete a reference and its files. `False`: a generation is made from it."""
    # Locked first: whoever is about to use it is either seen below, or finds it gone.
    row = Reference.objects.select_for_update().filter(pk=reference.pk)
    if not row.exists():
        return True
    if GenerationReference.objects.filter(reference=reference.pk).exists():
        return False
    row.delete()
    cleanup.discard(_folder(reference))
    return True
