"""What must hold at any moment, as queries that find what breaks it.

Each takes one snapshot and may run on a live system. Files are looked up in storage, in pages.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import connection

from batches import publications
from batches.models import Image, Reference

# Beyond its deadline a generation has this long to be stopped and ended.
DEADLINE_GRACE = timedelta(seconds=120)
MAX_EXAMPLES = 5
PAGE = 1_000
UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


@dataclass(frozen=True, slots=True)
class Finding:
    """`broken` is how often the invariant does not hold, `examples` are some of the places."""

    code: str
    rule: str
    broken: int
    examples: list[str]


def _rows(sql: str, params: dict[str, Any] | None = None) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params or {})
        return [" ".join(str(value) for value in row) for row in cursor.fetchall()]


def _overdue() -> list[str]:
    return _rows(
        """
        SELECT generation.id, status FROM batches_generation generation
        JOIN batches_lease lease ON lease.generation_id = generation.id
        WHERE active_s + extract(epoch FROM now() - lease.created_at) > %(seconds)s
        """,
        {"seconds": settings.GENERATION_DEADLINE + DEADLINE_GRACE.total_seconds()},
    )


def _submissions() -> list[str]:
    return _rows(
        """
        SELECT generation_id, number FROM batches_attempt
        WHERE (provider_id IS NULL) <> (submitted_at IS NULL)
        UNION ALL
        SELECT attempt.generation_id, attempt.number FROM batches_attempt attempt
        JOIN batches_generation generation ON generation.id = attempt.generation_id
        WHERE attempt.number NOT BETWEEN 1 AND generation.attempt_count
        UNION ALL
        SELECT attempt.generation_id, attempt.number FROM batches_attempt attempt
        JOIN batches_generation generation ON generation.id = attempt.generation_id
        WHERE outcome = 'open' AND status <> 'processing'
        """
    )


def _batch_counters() -> list[str]:
    return _rows(
        """
        SELECT batch.id FROM batches_batch batch
        JOIN LATERAL (
            SELECT count(*) AS total,
                   count(*) FILTER (WHERE status = 'completed') AS completed,
                   count(*) FILTER (WHERE status = 'failed') AS failed,
                   count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
                   COALESCE(sum(cost_usd) FILTER (
                       WHERE status IN ('completed', 'failed', 'cancelled')), 0) AS cost_usd
            FROM batches_generation WHERE batch_id = batch.id
        ) rows ON true
        WHERE (total_count, completed_count, failed_count, cancelled_count, batch.cost_usd)
           <> (rows.total, rows.completed, rows.failed, rows.cancelled, rows.cost_usd)
        """
    )


def _slots() -> list[str]:
    return _rows(
        """
        SELECT 'lane running', owner_id FROM batches_lane lane
        WHERE running <> (
            SELECT count(*) FROM batches_lease WHERE owner_id = lane.owner_id AND holds_slot)
        UNION ALL
        SELECT 'lane queued', owner_id FROM batches_lane lane
        WHERE queued <> (
            SELECT count(*) FROM batches_generation
            WHERE owner_id = lane.owner_id AND status = 'queued' AND not_before IS NULL)
        UNION ALL
        SELECT 'no lane', owner_id FROM batches_generation
        WHERE status = 'queued' AND owner_id NOT IN (SELECT owner_id FROM batches_lane)
        """
    ) + _rows(
        """
        SELECT 'lease without work', generation_id::text FROM batches_lease
        JOIN batches_generation generation ON generation.id = generation_id
        WHERE generation.status <> CASE WHEN holds_slot THEN 'processing' ELSE 'downloading' END
        UNION ALL
        SELECT 'work without lease', id::text FROM batches_generation generation
        WHERE status IN ('processing', 'downloading')
          AND NOT EXISTS (SELECT FROM batches_lease WHERE generation_id = generation.id)
        UNION ALL
        SELECT 'in line though held back', generation.id::text FROM batches_generation generation
        JOIN batches_batch batch ON batch.id = batch_id
        WHERE generation.status = 'queued' AND batch.status IN ('paused', 'scheduled')
        """
    )


def _assets() -> list[str]:
    return _rows(
        """
        SELECT id, status FROM batches_generation generation
        WHERE deleted_at IS NULL
          AND (status = 'completed') <> (deleted_image_count > 0 OR EXISTS (
            SELECT FROM batches_image WHERE generation_id = generation.id))
        """
    )


def _stored_names() -> Iterator[str]:
    """Every file in storage."""
    folders = [""]
    while folders:
        folder = folders.pop()
        subfolders, files = default_storage.listdir(folder)
        folders += [f"{folder}/{name}".lstrip("/") for name in subfolders]
        yield from (f"{folder}/{name}".lstrip("/") for name in files)


def _files() -> list[str]:
    """Files without a row, unless they are about to be deleted or their generation may still be
    writing; rows without a file."""
    broken = []
    page: list[str] = []

    def unknown(names: list[str]) -> list[str]:
        return _rows(
            """
            WITH listed AS (
                SELECT name, CASE WHEN split_part(name, '/', 3) ~ %(uuid)s
                             THEN split_part(name, '/', 3)::uuid END AS id
                FROM unnest(%(names)s::text[]) AS name
            )
            SELECT 'orphan', name FROM listed
            WHERE name NOT LIKE 'health/%%'
              AND NOT EXISTS (
                SELECT FROM batches_image
                WHERE generation_id = listed.id AND name IN (file, thumbnail, preview))
              AND NOT EXISTS (
                SELECT FROM batches_reference
                WHERE id = listed.id AND name IN (file, thumbnail))
              AND NOT EXISTS (
                SELECT FROM batches_discarded WHERE starts_with(name, folder || '/'))
              AND NOT EXISTS (
                SELECT FROM batches_generation
                WHERE id = listed.id AND status = 'downloading')
            """,
            {"names": names, "uuid": UUID},
        )

    try:
        for name in _stored_names():
            page.append(name)
            if len(page) == PAGE:
                broken += unknown(page)
                page = []
    except FileNotFoundError:
        pass  # nothing was ever stored
    broken += unknown(page)
    broken += [
        f"missing {name}"
        for name in _needed_names()
        if not name or not default_storage.exists(name)
    ]
    return broken


def _needed_names() -> Iterator[str]:
    """Every file that a row names. Images of before there were previews have none."""
    images = Image.objects.values_list("file", "thumbnail", "preview")
    for file, thumbnail, preview in images.iterator(chunk_size=PAGE):
        yield from (file, thumbnail, preview) if preview else (file, thumbnail)
    references = Reference.objects.values_list("file", "thumbnail")
    for names in references.iterator(chunk_size=PAGE):
        yield from names


def _terminal() -> list[str]:
    return _rows(
        """
        SELECT id, status FROM batches_batch
        WHERE (status IN ('completed', 'partial', 'failed', 'cancelled'))
           <> (finished_at IS NOT NULL)
        UNION ALL
        SELECT batch.id, batch.status FROM batches_batch batch
        WHERE finished_at IS NOT NULL AND EXISTS (
            SELECT FROM batches_generation
            WHERE batch_id = batch.id
              AND status IN ('pending', 'queued', 'processing', 'downloading'))
        """
    )


def _events() -> list[str]:
    """Of batches whose first event is still kept; older ones had none, or are forgotten in part."""
    return _rows(
        """
        SELECT batch.id, version, told FROM batches_batch batch
        JOIN LATERAL (
            SELECT count(*) AS told, min(version) AS first, max(version) AS last
            FROM batches_event WHERE batch_id = batch.id
        ) log ON true
        WHERE log.first = 1 AND (log.told <> batch.version OR log.last <> batch.version)
        """
    )


def _publications() -> list[str]:
    return _rows(
        """
        SELECT 'overdue', id::text FROM batches_publication
        WHERE status = 'publishing'
          AND started_at < now() - make_interval(secs => %(seconds)s)
        UNION ALL
        SELECT 'held though ended', id::text FROM batches_publication
        WHERE status <> 'publishing' AND held_until IS NOT NULL
        UNION ALL
        SELECT 'published at no time', id::text FROM batches_publication
        WHERE status = 'published' AND published_at IS NULL
        UNION ALL
        SELECT 'without an account', publication.id::text FROM batches_publication publication
        WHERE status = 'publishing' AND NOT EXISTS (
            SELECT FROM batches_channelaccount account
            WHERE account.owner_id = publication.owner_id
              AND account.channel = publication.channel)
        """,
        {"seconds": (publications.DEADLINE + DEADLINE_GRACE).total_seconds()},
    )


def _calls() -> list[str]:
    return _rows(
        """
        SELECT 'number', publication_id::text, attempt.number
        FROM batches_publicationattempt attempt
        JOIN batches_publication publication ON publication.id = publication_id
        WHERE attempt.number NOT BETWEEN 1 AND attempt_count
        UNION ALL
        SELECT 'open though ended', publication_id::text, attempt.number
        FROM batches_publicationattempt attempt
        JOIN batches_publication publication ON publication.id = publication_id
        WHERE outcome = 'open' AND (status <> 'publishing' OR attempt.number < attempt_count)
        UNION ALL
        SELECT 'begun before it was known of the last', publication_id::text, attempt.number
        FROM batches_publicationattempt attempt
        JOIN batches_publication publication ON publication.id = publication_id
        WHERE outcome = 'unknown' AND attempt.number < attempt_count
        UNION ALL
        SELECT 'created twice', publication_id::text, count(*)  -- but for what was done once more
        FROM batches_publicationattempt
        JOIN batches_publication publication ON publication.id = publication_id
        WHERE outcome = 'succeeded' AND batches_publicationattempt.created_at >= started_at
        GROUP BY publication_id, remote_ids, step
        HAVING count(*) > 1 + (remote_ids ? 'redone')::int
        """
    )


def _schedules() -> list[str]:
    return _rows(
        """
        SELECT 'no run is due', id FROM batches_schedule schedule
        WHERE is_active AND NOT EXISTS (
            SELECT FROM batches_schedulerun WHERE schedule_id = schedule.id AND status = 'due')
        UNION ALL
        SELECT 'runs though switched off', id FROM batches_schedule schedule
        WHERE NOT is_active AND EXISTS (
            SELECT FROM batches_schedulerun WHERE schedule_id = schedule.id AND status = 'due')
        """
    )


CHECKS: tuple[tuple[str, str, Callable[[], list[str]]], ...] = (
    ("I1", "every started generation ends before its deadline", _overdue),
    ("I1", "every publication ends before its deadline", _publications),
    ("I1", "every active schedule has its next run", _schedules),
    ("I2", "at most one submission per attempt, each on record", _submissions),
    ("I2", "one call at a time for a publication, each on record", _calls),
    ("I3", "a batch's counters equal its rows", _batch_counters),
    ("I4", "slots and lines equal leases and rows", _slots),
    ("I5", "every completed generation has its image", _assets),
    ("I5", "every picture has its files, and every file its picture", _files),
    ("I6", "every transition of a batch is logged once, in order", _events),
    ("I8", "what has ended stays ended", _terminal),
)


def check() -> Iterator[Finding]:
    for code, rule, find in CHECKS:
        broken = find()
        yield Finding(code, rule, len(broken), broken[:MAX_EXAMPLES])
