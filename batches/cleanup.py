"""Files that no row needs: noted in the transaction that makes them so, deleted after it.

The note is what makes it certain. The files are deleted once the transaction is committed, and
again by the sweep when whoever may still have been writing has surely ended.
"""

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from batches.models import Discarded, Generation, GenerationStatus, Image, Reference

logger = logging.getLogger(__name__)

# Beyond a lease: the longest that a delivery which has lost it goes on writing.
GRACE_S = 10
# For so long files may be written without the rows that need them; far beyond what it takes.
UNSETTLED_S = 900
# Of more folders at once the files are left to the sweep: somebody waits for an answer.
AT_ONCE = 25
# And before so long is left, they are given up: whoever cleans them must not have begun.
SETTLE_MARGIN_S = 60


def discard(*folders: str) -> None:
    """Have the files of folders deleted that no row needs when the transaction is over."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO batches_discarded (folder, due_at)
            SELECT folder, statement_timestamp() + make_interval(secs => %s)
            FROM unnest(%s::text[]) AS folder
            ON CONFLICT (folder) DO UPDATE SET due_at = EXCLUDED.due_at
            """,
            [settings.LEASE_SECONDS + GRACE_S, list(folders)],
        )
    if len(folders) <= AT_ONCE:
        transaction.on_commit(partial(clean, *folders))


def announce(*folders: str) -> None:
    """Note folders that are about to be written to, by whoever adds the rows afterwards.

    Not to be called in a transaction: the note must be on record before the first file. Of what
    is not settled, the files are deleted as if it had been discarded.
    """
    due_at = Now() + timedelta(seconds=UNSETTLED_S)
    Discarded.objects.bulk_create(Discarded(folder=one, due_at=due_at) for one in folders)


def settle(*folders: str) -> bool:
    """Withdraw the notes of folders, in the transaction that adds the rows. `False`: too late."""
    is_young = Q(due_at__gt=Now() + timedelta(seconds=SETTLE_MARGIN_S))
    count, _ = Discarded.objects.filter(is_young, folder__in=folders).delete()
    return count == len(folders)


def clean(*folders: str) -> bool:
    """Delete what is not needed; whether nothing had to be left for later."""
    # Whatever a storage raises: they have no exception in common.
    try:
        return _clean(*folders)
    except Exception:
        logger.exception("cannot clean %s, it is tried again", ", ".join(folders))
        return False


def _clean(*folders: str) -> bool:
    """As `clean`; raises what the storage does.

    Nothing is locked meanwhile. The order makes it safe: a file that is listed belongs to an
    attempt of before; if that is not being downloaded afterwards, it has ended, and if it ended
    with images, they are seen after that. Later attempts have names of their own.
    """
    names = list(_names_below(folders))
    busy = _writing(names)
    needed = _needed(names)
    for name in names:
        if name not in needed and _row_of(name) not in busy:
            default_storage.delete(name)
    return not busy


def clean_due(limit: int) -> int:
    """Clean the folders that are due; how many were done with.

    A storage in trouble may take long to say so, and is asked once: then all are put off.
    """
    due = Discarded.objects.filter(due_at__lte=Now())
    done = 0
    for folder, due_at in list(due.order_by("due_at").values_list("folder", "due_at")[:limit]):
        row = Discarded.objects.filter(folder=folder, due_at=due_at)
        try:
            is_clean = _clean(folder)
        except Exception:
            logger.exception("cannot clean %s, it is tried again", folder)
            # The one to the back of the line: it may be the only one in trouble.
            _put_off(row, leases=2)
            _put_off(due)
            break
        if is_clean:
            done += row.delete()[0]
        else:
            _put_off(row)
    return done


def _put_off(rows: QuerySet[Discarded], *, leases: int = 1) -> None:
    rows.update(due_at=Now() + timedelta(seconds=leases * settings.LEASE_SECONDS))


def _names_below(folders: Sequence[str]) -> Iterator[str]:
    to_list = list(folders)
    while to_list:
        parent = to_list.pop()
        try:
            subfolders, files = default_storage.listdir(parent)
        except FileNotFoundError:
            continue
        to_list += [f"{parent}/{name}" for name in subfolders]
        yield from (f"{parent}/{name}" for name in files)


def _row_of(name: str) -> uuid.UUID | None:
    """The id in a key: a generation's or a reference's, see `models.image_folder`."""
    with contextlib.suppress(IndexError, ValueError):
        return uuid.UUID(name.split("/")[2])
    return None


def _rows_of(names: list[str]) -> set[uuid.UUID]:
    return {found for name in names if (found := _row_of(name))}


def _writing(names: list[str]) -> set[uuid.UUID]:
    """Ids of the generations that may be writing there now."""
    writing = Generation.objects.filter(pk__in=_rows_of(names), status=GenerationStatus.DOWNLOADING)
    return set(writing.values_list("pk", flat=True))


def _needed(names: list[str]) -> set[str]:
    ids = _rows_of(names)
    images = Image.objects.filter(generation__in=ids)
    references = Reference.objects.filter(pk__in=ids)
    return {
        name
        for files in (
            *images.values_list("file", "thumbnail", "preview"),
            *references.values_list("file", "thumbnail"),
        )
        for name in files
    }
