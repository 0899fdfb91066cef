"""Images as one ZIP, made while it is sent: their files, and a manifest of what they are.

However many there are, it takes the same memory: rows are read by pages, files by pieces, and what
the end of the ZIP says of all of them waits on disk.
"""

import hashlib
import json
import logging
import re
import string
import tempfile
import unicodedata
import uuid
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, cast

from django.conf import settings
from django.core.files.storage import default_storage
from django.db.models import F, Q
from django.utils import timezone
from zipstream import ZipStream

from batches.gallery import ImageFilter, beyond_place, in_order, read_page
from batches.intake import Problem, Refused
from batches.models import Batch, Image

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DEFAULT_NAMES = "{batch}/{index:03}-{seed}.{format}"
NAMES_MAX_LENGTH = 200
FOLDERS_MAX = 8
PAGE_ROWS = 100
PIECE_BYTES = 128 * 1024
SPOOL_BYTES = 256 * 1024  # beyond it, what is kept for the end goes to disk
VALUE_MAX_LENGTH = 60
# File systems take 255; the rest is for what makes a name unique, and its ending.
SEGMENT_MAX_BYTES = 180
SINGLE = "single"
NO_SEED = "no-seed"

NUMBERS = ("number", "index", "output", "seed", "width", "height")
TEXTS = (
    *("batch", "batch_id", "generation_id", "id", "custom_id", "name", "prompt", "style", "genre"),
    *("model", "format", "date", "review_status"),
)
PLACEHOLDERS = (*NUMBERS, *TEXTS)

_PADDING = re.compile(r"0[1-9]")
# What Windows does not take in a name, and what separates folders anywhere.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


Row = dict[str, Any]
Page = list[Row]


class StorageBroken(Exception):
    """A file that should be there cannot be read: the storage is in trouble."""


# --- What the files are called --------------------------------------------------------------------


class _Part(NamedTuple):
    """A piece of a name: literal text, then the value of a placeholder, if one follows."""

    text: str
    placeholder: str | None
    padding: str


@dataclass(frozen=True, slots=True)
class Naming:
    """How files are called: folders and a name, each of parts."""

    segments: tuple[tuple[_Part, ...], ...]

    def path(self, values: Mapping[str, Any]) -> str:
        """The path of one file, whatever its values hold: relative, and safe to unpack anywhere."""
        *folders, name = (
            "".join(part.text + _value(values, part) for part in segment)
            for segment in self.segments
        )
        ending = f".{values['format']}"
        stem = name[: -len(ending)] if name.lower().endswith(ending) else name
        path = [*map(_safe, folders), _safe(stem) + ending]
        if len(path) > 1 and path[0].casefold() == MANIFEST:
            path[0] = f"_{path[0]}"
        return "/".join(path)


def read_names(template: str) -> Naming:
    """A template such as `DEFAULT_NAMES`. Raises `Refused`."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _refused("invalid", f"Braces do not match: {error}.") from None
    literal = "".join(text for text, *_ in parsed)
    if _unprintable(literal) or "\\" in literal:
        raise _refused("invalid", "May have no control characters and no backslashes.")
    segments: list[list[_Part]] = [[]]
    for text, placeholder, padding, conversion in parsed:
        *folders, last = text.split("/")
        for folder in folders:
            segments[-1].append(_Part(folder, None, ""))
            segments.append([])
        if placeholder is not None:
            _check(placeholder, padding or "", conversion)
        segments[-1].append(_Part(last, placeholder, padding or ""))
    if len(segments) > FOLDERS_MAX:
        raise _refused("too_deep", f"May have at most {FOLDERS_MAX - 1} folders.")
    for segment in segments:
        if not any(part.placeholder or part.text.strip(" .") for part in segment):
            raise _refused("invalid", "Must be a relative path without empty, `.` and `..` parts.")
    return Naming(tuple(map(tuple, segments)))


def _check(placeholder: str, padding: str, conversion: str | None) -> None:
    if placeholder not in PLACEHOLDERS:
        raise _refused(
            "unknown_placeholder",
            f"There is no {{{placeholder}}}; known are {', '.join(PLACEHOLDERS)}.",
            list(PLACEHOLDERS),
        )
    is_padded = placeholder in NUMBERS and _PADDING.fullmatch(padding)
    if conversion or (padding and not is_padded):
        raise _refused("invalid", "Only numbers may have a format: leading zeros, such as :03.")


def _refused(code: str, detail: str, allowed: Any = None) -> Refused:
    return Refused([Problem("names", code, detail, allowed)])


def _value(values: Mapping[str, Any], part: _Part) -> str:
    if part.placeholder is None:
        return ""
    value = values[part.placeholder]
    text = format(value, part.padding) if isinstance(value, int) else value
    return _FORBIDDEN.sub("-", _printable(text))[:VALUE_MAX_LENGTH].strip()


def _unprintable(text: str) -> bool:
    return any(unicodedata.category(one)[0] == "C" for one in text)


def _printable(text: str) -> str:
    """In one line and one normal form, without what cannot be seen."""
    line = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(one for one in line if unicodedata.category(one)[0] != "C")


def _safe(segment: str) -> str:
    """A name that any file system takes, and none takes for anything else."""
    segment = _FORBIDDEN.sub("-", segment).encode()[:SEGMENT_MAX_BYTES].decode(errors="ignore")
    segment = segment.strip(" .") or "_"
    return f"_{segment}" if _RESERVED.fullmatch(segment) else segment


class _Taken:
    """Names that are given away, in constant memory (a Bloom filter).

    It may take a name that is free for a taken one, of a million perhaps a hundred, never the
    other way round. Names that differ in case only are one: on many file systems they are.
    """

    BITS = 2**25

    def __init__(self) -> None:
        self._bits = bytearray(self.BITS // 8)

    def take(self, path: str) -> bool:
        """Whether it was free, and is now taken."""
        digest = hashlib.blake2b(path.casefold().encode(), digest_size=16).digest()
        was_free = False
        for at in range(0, 16, 4):
            byte, bit = divmod(int.from_bytes(digest[at : at + 4]) % self.BITS, 8)
            was_free |= not self._bits[byte] >> bit & 1
            self._bits[byte] |= 1 << bit
        return was_free

    def one_like(self, path: str, image_id: uuid.UUID) -> str:
        """That path, or where it is taken the same with the image's id in it."""
        stem, dot, ending = path.rpartition(".")
        for mark in ("", f"-{str(image_id)[:8]}"):
            if self.take(one := f"{stem}{mark}{dot}{ending}"):
                return one
        return f"{stem}-{image_id}{dot}{ending}"


# --- Which images -------------------------------------------------------------------------------

_COLUMNS = {
    "custom_id": F("generation__custom_id"),
    "name": F("generation__name"),
    "prompt": F("generation__prompt"),
    "final_prompt": F("generation__final_prompt"),
    "negative_prompt": F("generation__negative_prompt"),
    "seed": F("generation__seed"),
    "made_by": F("generation__model"),
    "style": F("generation__style"),
    "genre": F("generation__genre"),
    "cost_usd": F("generation__cost_usd"),
    "place": F("generation__index"),
    "of_batch": F("generation__batch"),
    "batch_name": F("generation__batch__name"),
}
_OWN = (
    *("id", "generation_id", "index", "file", "format", "width", "height", "size_bytes", "sha256"),
    *("is_saved", "tags", "review_status", "created_at", "made_width", "made_height"),
)


def batch_images(batch: Batch) -> Iterator[Page]:
    """The images of a batch in its order, by pages."""
    rows = Image.objects.filter(generation__batch=batch).order_by("generation__index", "index")
    beyond = Q()
    while page := list(rows.filter(beyond).values(*_OWN, **_COLUMNS)[:PAGE_ROWS]):
        yield page
        place, index = page[-1]["place"], page[-1]["index"]
        beyond = Q(
            Q(generation__index__gt=place) | Q(index__gt=index), generation__index__gte=place
        )


def found_images(owner_id: int, wanted: ImageFilter, *, newest_first: bool) -> Iterator[Page]:
    """The images of an owner that are as asked, in the gallery's order, by pages."""
    rows: Any = Image.objects.values(*_OWN, **_COLUMNS)
    beyond = Q()
    while page := read_page(
        rows, owner_id, wanted, beyond=beyond, newest_first=newest_first, limit=PAGE_ROWS
    ):
        last: Any = page[-1]
        yield cast(Page, page)
        beyond = beyond_place(last["created_at"], last["id"], newest_first=newest_first)


def chosen_images(owner_id: int, ids: Collection[uuid.UUID]) -> Iterator[Page] | None:
    """These images, newest first, as one page. `None` when not all of them are the owner's."""
    chosen = Image.objects.owned_by(owner_id).filter(pk__in=ids)
    newest_first = chosen.order_by(*in_order(newest_first=True))
    page = list(newest_first.values(*_OWN, **_COLUMNS))
    return iter([page]) if len(page) == len(set(ids)) else None


# --- The ZIP ------------------------------------------------------------------------------------


def begin_zip(pages: Iterator[Page], naming: Naming) -> Iterator[bytes]:
    """A ZIP of the images on these pages, in pieces, begun: its first file has been opened.

    A file that is missing, or has not the size that it should have, is left out, and the manifest
    says so. Raises `Refused` where there is no image, and `StorageBroken`, also between pieces:
    what was sent until then is no ZIP.
    """
    first_page = next(pages, None)
    if first_page is None:
        raise Refused([Problem("images", "no_images", "There are no images to export.")])
    pieces = _zip(_rows(first_page, pages), naming)
    first = next(pieces)

    def begun() -> Iterator[bytes]:
        try:
            yield first
            yield from pieces
        finally:
            pieces.close()

    return begun()


def _rows(first_page: Page, pages: Iterator[Page]) -> Iterator[Row]:
    yield from first_page
    for page in pages:
        yield from page


def _zip(rows: Iterable[Row], naming: Naming) -> Generator[bytes, None, None]:
    taken = _Taken()
    with _spool() as notes, _spool() as directory:
        archive = ZipStream()
        archive._filelist = _Directory(directory)
        notes.write(_opening())
        count = added = 0
        for count, row in enumerate(rows, 1):
            path, trouble = None, ""
            try:
                size_bytes, pieces = _opened(row["file"])
            except FileNotFoundError:
                trouble = "missing"
            else:
                with pieces:
                    if size_bytes == row["size_bytes"]:
                        added += 1
                        path = taken.one_like(naming.path(_values(row, added)), row["id"])
                        archive.add(pieces, path, size=size_bytes)
                        yield from archive.all_files()
                    else:
                        trouble = "damaged"
            notes.write((b",\n" if count > 1 else b"\n") + _note(row, path, trouble))
        notes.write(b'\n], "image_count": %d, "missing_count": %d}\n' % (count, count - added))
        size_bytes = notes.tell()
        notes.seek(0)
        archive.add(iter(lambda: notes.read(PIECE_BYTES), b""), MANIFEST, size=size_bytes)
        yield from archive.finalize()


def _spool() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)


class _Directory:
    """What the end of a ZIP says of each file, on disk; stands in for the stream's list."""

    class _Entry(NamedTuple):
        data: bytes

        def _central_directory_header_data(self) -> bytes:
            return self.data

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool, self._count = spool, 0

    def append(self, info: Any) -> None:
        self._spool.write(info._central_directory_header_data())
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Entry]:
        self._spool.seek(0)
        while data := self._spool.read(PIECE_BYTES):
            yield self._Entry(data)


class _Pieces:
    """A file by pieces. Whatever its storage raises becomes `StorageBroken`."""

    def __init__(self, name: str, size_bytes: int, opened: Any) -> None:
        self._name, self._left, self._opened = name, size_bytes, opened

    def __enter__(self) -> "_Pieces":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __iter__(self) -> Iterator[bytes]:
        while self._left:
            try:
                piece = self._opened.read(min(self._left, PIECE_BYTES))
            except Exception as error:
                raise _broken(self._name, error) from error
            if not piece:
                raise _broken(self._name, EOFError("it ends before it should"))
            self._left -= len(piece)
            yield piece


def _opened(name: str) -> tuple[int, _Pieces]:
    """A stored file's size in bytes, and its pieces.

    Raises FileNotFoundError, and `StorageBroken` for all else that a storage may raise.
    """
    try:
        if settings.STORAGE_BUCKET:
            size_bytes, opened = _opened_at_s3(name)
        else:
            opened = default_storage.open(name)
            size_bytes = opened.size
    except FileNotFoundError:
        raise
    # Whatever a storage raises: they have no exception in common.
    except Exception as error:
        raise _broken(name, error) from error
    return size_bytes, _Pieces(name, size_bytes, opened)


def _opened_at_s3(name: str) -> tuple[int, Any]:
    """By one request, and read as it comes; the storage's own files are copied to disk first."""
    s3: Any = default_storage
    client = s3.connection.meta.client
    try:
        answer = client.get_object(Bucket=s3.bucket_name, Key=name)
    except client.exceptions.NoSuchKey:
        raise FileNotFoundError(name) from None
    return answer["ContentLength"], answer["Body"]


def _broken(name: str, error: Exception) -> StorageBroken:
    logger.warning("export: cannot read %s: %s", name, str(error) or type(error).__name__)
    return StorageBroken(name)


def _values(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    batch_id = row["of_batch"]
    return {
        "number": number,
        "index": row["place"],
        "output": row["index"],
        "seed": NO_SEED if row["seed"] is None else row["seed"],
        "batch": row["batch_name"] or str(batch_id or SINGLE),
        "batch_id": str(batch_id or SINGLE),
        "generation_id": str(row["generation_id"]),
        "id": str(row["id"]),
        "model": row["made_by"],
        "date": f"{row['created_at']:%Y-%m-%d}",
        **{name: row[name] for name in ("width", "height", "format", "review_status")},
        **{name: row[name] for name in ("custom_id", "name", "prompt", "style", "genre")},
    }


def _opening() -> bytes:
    moment = json.dumps(f"{timezone.now():%Y-%m-%dT%H:%M:%SZ}")
    return b'{"exported_at": %s, "images": [' % moment.encode()


def _note(row: Mapping[str, Any], path: str | None, trouble: str) -> bytes:
    """What the manifest says of one image; `file` is null where `problem` says why."""
    note = {
        "file": path,
        "problem": trouble or None,
        "id": row["id"],
        "generation_id": row["generation_id"],
        "batch_id": row["of_batch"],
        "batch_name": row["batch_name"],
        "index": row["place"],
        "output": row["index"],
        "model": row["made_by"],
        "created_at": f"{row['created_at']:%Y-%m-%dT%H:%M:%S.%fZ}",
        **{name: row[name] for name in ("name", "custom_id", "prompt", "final_prompt")},
        **{name: row[name] for name in ("negative_prompt", "seed", "style", "genre", "cost_usd")},
        **{name: row[name] for name in ("width", "height", "made_width", "made_height")},
        **{name: row[name] for name in ("format", "size_bytes", "sha256")},
        **{name: row[name] for name in ("review_status", "is_saved", "tags")},
    }
    return json.dumps(note, default=str, ensure_ascii=False).encode()


def zip_name(stem: str) -> str:
    """The name of a ZIP that is about something called so."""
    return f"{_safe(_printable(stem)[:VALUE_MAX_LENGTH])}.zip"
