"""Files that no image needs: noted in the transaction that makes them so, deleted after it.

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
from django.db.models import F
from django.db.models.functions import Now

from batches.models import Discarded, Generation, GenerationStatus, Image

logger = logging.getLogger(__name__)

# Beyond a lease: the longest that a delivery which has lost it goes on writing.
GRACE_S = 10


def discard(*folders: str) -> None:
    """Have the files of folders deleted that no image needs when the transaction is over."""
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
    transaction.on_commit(partial(clean, *folders))


def clean(*folders: str) -> bool:
    """Delete what is not needed; whether nothing had to be left for later.

    Nothing is locked meanwhile. The order makes it safe: a file that is listed belongs to an
    attempt of before; if that is not being downloaded afterwards, it has ended, and if it ended
    with images, they are seen after that. Later attempts have names of their own.
    """
    try:
        names = list(_names_below(folders))
        busy = _writing(names)
        needed = _needed(names)
        for name in names:
            if name not in needed and _generation_of(name) not in busy:
                default_storage.delete(name)
        return not busy
    # Whatever a storage raises: they have no exception in common.
    except Exception:
        logger.exception("cannot clean %s, it is tried again", ", ".join(folders))
        return False


def clean_due(limit: int) -> int:
    """Clean the folders that are due; how many were done with."""
    due = Discarded.objects.filter(due_at__lte=Now()).order_by("due_at")[:limit]
    done = 0
    for folder, due_at in list(due.values_list("folder", "due_at")):
        row = Discarded.objects.filter(folder=folder, due_at=due_at)
        if clean(folder):
            done += row.delete()[0]
        else:
            row.update(due_at=F("due_at") + timedelta(seconds=settings.LEASE_SECONDS))
    return done


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


def _generation_of(name: str) -> uuid.UUID | None:
    """The generation's id in a key, see `models.image_folder`."""
    with contextlib.suppress(IndexError, ValueError):
        return uuid.UUID(name.split("/")[2])
    return None


def _generations_of(names: list[str]) -> set[uuid.UUID]:
    return {found for name in names if (found := _generation_of(name))}


def _writing(names: list[str]) -> set[uuid.UUID]:
    """Ids of the generations that may be writing there now."""
    writing = Generation.objects.filter(
        pk__in=_generations_of(names), status=GenerationStatus.DOWNLOADING
    )
    return set(writing.values_list("pk", flat=True))


def _needed(names: list[str]) -> set[str]:
    images = Image.objects.filter(generation__in=_generations_of(names)).values_list(
        "file", "thumbnail"
    )
    return {name for pair in images for name in pair}
