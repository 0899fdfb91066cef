"""What there is to tell of batches and single generations, and in which words.

The rows are the truth, and `batches_event` tells what they went through: of a batch each version
has one event, and no version can be seen before those below it. Events of different batches may
be committed in another order than that of their ids, so who looks for all of an owner looks back
a little, and over what he has seen.

All of it is read in a thread that may use the database; nothing here is stored.
"""

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db import connection

# What a client that comes back may have missed and still gets as events.
MAX_MISSED = 1_000
# Of the batches that a client is first told of when it follows all that a user has.
MAX_OPEN_BATCHES = 100
# Older ones are told of when something happens to them.
_RECENT_BATCHES = 1_000
# Of one user, in the time that is looked back over. More than can be made in it.
_MAX_LOGGED = 20_000


class Message(NamedTuple):
    """What is sent, and which version of its batch it tells of."""

    version: int
    text: str


class First(NamedTuple):
    """What a client is told when it comes: how things stood at that version."""

    version: int
    messages: list[str]


@dataclass(frozen=True, slots=True)
class BatchNews:
    """What is new of one batch; the last message tells how it stands."""

    id: uuid.UUID
    owner_id: int | None  # of one whose row is gone nobody knows any more
    version: int
    messages: list[Message]
    has_ended: bool
    is_gone: bool


class Found(NamedTuple):
    """A batch of which the log tells, and from which version to which."""

    owner_id: int
    batch_id: uuid.UUID
    first_version: int
    last_version: int


class Single(NamedTuple):
    """The end of a generation without a batch. `event_id`: which it is in the log."""

    owner_id: int
    event_id: int
    message: Message


@dataclass(frozen=True, slots=True)
class News:
    """`later`: batches that have news but were not asked about. `ended`: of those waited for."""

    batches: list[BatchNews] = field(default_factory=list)
    singles: list[Single] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    later: list[uuid.UUID] = field(default_factory=list)
    ended: set[uuid.UUID] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Overview:
    """All that a user has under way, and what the log tells of the time just before."""

    message: str
    versions: dict[uuid.UUID, int]
    found: list[Found]
    singles: list[Single]


# --- Words ----------------------------------------------------------------------------------------


def _text(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), default=str)


def _progress(total: int, completed: int, failed: int, cancelled: int) -> dict[str, int]:
    return {
        "total_count": total,
        "completed_count": completed,
        "failed_count": failed,
        "cancelled_count": cancelled,
        "progress": 100 * (completed + failed + cancelled) // total,
    }


def _batch_progress(
    batch_id: uuid.UUID, status: str, counts: Sequence[int], version: int
) -> Message:
    told = {"type": "batch_progress", "batch_id": batch_id, "status": status}
    return Message(version, _text({**told, **_progress(*counts), "version": version}))


def _batch_deleted(batch_id: uuid.UUID, version: int) -> Message:
    told = {"type": "batch_deleted", "batch_id": batch_id, "version": version}
    return Message(version, _text(told))


def _job_complete(batch_id: uuid.UUID | None, row: Sequence[Any]) -> Message:
    """`row`: as `_ENDED` has it."""
    version, generation_id, index, status, image_id, error_code, error_message = row
    told = {
        "type": "batch_job_complete",
        "batch_id": batch_id,
        "generation_id": generation_id,
        "index": index,
        "status": status,
        "success": status == "completed",
        "image_id": image_id,
        "error": {"code": error_code, "message": error_message} if error_code else None,
        "version": version,
    }
    return Message(version, _text(told))


# --- Reading --------------------------------------------------------------------------------------

# Of `event`. Its generation may have gone on since, or be gone.
_ENDED = """
    event.version, event.generation_id, generation.index, event.status,
    CASE WHEN event.status = 'completed' THEN (
        SELECT id FROM batches_image image
        WHERE image.generation_id = event.generation_id ORDER BY image.index LIMIT 1) END,
    CASE WHEN event.status = generation.status THEN generation.error_code END,
    CASE WHEN event.status = generation.status THEN generation.error_message END"""

# Of `known` (id, version): the ends of its generations after that version.
_ENDED_SINCE = f"""
    SELECT jsonb_agg(jsonb_build_array({_ENDED}) ORDER BY event.version) AS rows
    FROM batches_event event
    LEFT JOIN batches_generation generation ON generation.id = event.generation_id
    WHERE event.batch_id = known.id AND event.version > known.version
      AND event.kind = 'batch_job_complete'"""

_COUNTS = "total_count, completed_count, failed_count, cancelled_count"


def read_news(
    *,
    owner_ids: Collection[int],
    lookback_s: float,
    known: Mapping[uuid.UUID, int],
    untold: Collection[uuid.UUID],
    asked: Collection[uuid.UUID],
    awaited: Collection[uuid.UUID],
) -> News:
    """All that is new, in at most three queries.

    `known` are the versions of batches that have been told, of which those `asked` about are
    read; `owner_ids` are users of whom all is told, also of batches that are not known yet, or
    known but `untold`.
    """
    found, singles = _log_of(owner_ids, lookback_s) if owner_ids else ([], [])
    since = {one: known[one] for one in asked}
    later = []
    for one in found:
        if one.batch_id not in known or one.batch_id in untold:
            since[one.batch_id] = one.first_version - 1
        elif one.batch_id not in since and one.last_version > known[one.batch_id]:
            later.append(one.batch_id)
    return News(
        batches=_batches_since(since) if since else [],
        singles=singles,
        found=found,
        later=later,
        ended=_ended_of(awaited) if awaited else set(),
    )


def _log_of(owner_ids: Collection[int], lookback_s: float) -> tuple[list[Found], list[Single]]:
    """What the log tells of these users' batches and single generations of the last seconds."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH told AS (
                SELECT event.owner_id, batch_id, CASE WHEN batch_id IS NULL THEN id END AS single,
                       min(version) AS first, max(version) AS last
                FROM unnest(%s::int[]) AS follower (owner_id) CROSS JOIN LATERAL (
                    SELECT * FROM batches_event
                    WHERE owner_id = follower.owner_id AND id >= (
                        SELECT min(id) FROM batches_event
                        WHERE created_at > statement_timestamp() - make_interval(secs => %s))
                    ORDER BY id DESC LIMIT %s
                ) event
                GROUP BY 1, 2, 3
            )
            SELECT told.owner_id, told.batch_id, told.first, told.last, told.single, {_ENDED}
            FROM told
            LEFT JOIN batches_event event ON event.id = told.single
            LEFT JOIN batches_generation generation ON generation.id = event.generation_id
            ORDER BY told.single, told.batch_id
            """,
            [list(owner_ids), lookback_s, _MAX_LOGGED],
        )
        rows = cursor.fetchall()
    found = [Found(*row[:4]) for row in rows if row[1] is not None]
    singles = [
        Single(row[0], row[4], _job_complete(None, row[5:])) for row in rows if row[4] is not None
    ]
    return found, singles


def _batches_since(since: Mapping[uuid.UUID, int]) -> list[BatchNews]:
    """Those of the batches that have a later version, or are gone."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT known.id, owner_id, status, {_COUNTS},
                   COALESCE(batch.version, (
                       SELECT max(version) FROM batches_event WHERE batch_id = known.id
                   ), known.version + 1), deleted_at, finished_at, ended.rows
            FROM unnest(%s::uuid[], %s::int[]) AS known (id, version)
            LEFT JOIN batches_batch batch ON batch.id = known.id
            LEFT JOIN LATERAL ({_ENDED_SINCE}) ended ON batch.id IS NOT NULL
            WHERE batch.id IS NULL OR batch.version > known.version
            """,
            [list(since), list(since.values())],
        )
        rows = cursor.fetchall()
    news = []
    for pk, owner_id, status, *counts, version, deleted_at, finished_at, ended in rows:
        is_gone = owner_id is None or deleted_at is not None
        messages = [_job_complete(pk, one) for one in json.loads(ended or "[]")]
        if is_gone:
            messages.append(_batch_deleted(pk, version))
        else:
            messages.append(_batch_progress(pk, status, counts, version))
        has_ended = is_gone or finished_at is not None
        news.append(BatchNews(pk, owner_id, version, messages, has_ended, is_gone))
    return news


def _ended_of(ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Which of these, batches or generations, are open no more."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT id FROM batches_batch
            WHERE id = ANY(%s) AND finished_at IS NULL AND deleted_at IS NULL
            UNION ALL
            SELECT id FROM batches_generation
            WHERE id = ANY(%s) AND finished_at IS NULL AND deleted_at IS NULL
            """,
            [list(ids), list(ids)],
        )
        return set(ids) - {one for (one,) in cursor.fetchall()}


def read_first(*, owner_id: int, batch_id: uuid.UUID, since: int | None) -> First | None:
    """What who begins to follow a batch is told; `None`: the user has no such batch.

    That is how it stands with all its items; or, `since` a version, what has happened after that,
    if the log still tells all of it.
    """
    if since is not None and (missed := _missed(owner_id, batch_id, since)):
        return missed
    return _snapshot(owner_id, batch_id)


def _missed(owner_id: int, batch_id: uuid.UUID, since: int) -> First | None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT status, {_COUNTS}, batch.version, ended.rows
            FROM (SELECT %s::uuid AS id, %s::bigint AS version) known
            JOIN batches_batch batch ON batch.id = known.id
            CROSS JOIN LATERAL ({_ENDED_SINCE}) ended
            WHERE owner_id = %s AND deleted_at IS NULL
              AND batch.version - known.version BETWEEN 0 AND %s
              AND batch.version - known.version = (
                SELECT count(*) FROM batches_event
                WHERE batch_id = known.id AND batches_event.version > known.version)
            """,
            [batch_id, since, owner_id, MAX_MISSED],
        )
        row = cursor.fetchone()
    if row is None:
        return None
    status, *counts, version, ended = row
    messages = [_job_complete(batch_id, one) for one in json.loads(ended or "[]")]
    messages.append(_batch_progress(batch_id, status, counts, version))
    return First(version, [one.text for one in messages])


def _snapshot(owner_id: int, batch_id: uuid.UUID) -> First | None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT name, status, {_COUNTS}, version, (
                SELECT jsonb_agg(jsonb_build_array(
                    id, index, status, progress, error_code, error_message, (
                        SELECT id FROM batches_image image
                        WHERE image.generation_id = generation.id
                        ORDER BY image.index LIMIT 1), version) ORDER BY index)
                FROM batches_generation generation WHERE batch_id = batch.id)
            FROM batches_batch batch
            WHERE id = %s AND owner_id = %s AND deleted_at IS NULL
            """,
            [batch_id, owner_id],
        )
        row = cursor.fetchone()
    if row is None:
        return None
    name, status, *counts, version, items = row
    told = {
        "type": "snapshot",
        "batch_id": batch_id,
        "name": name,
        "status": status,
        **_progress(*counts),
        "version": version,
        "items": [_item(*one) for one in json.loads(items or "[]")],
    }
    return First(version, [_text(told)])


def _item(
    pk: str,
    index: int,
    status: str,
    progress: int,
    error_code: str,
    error_message: str,
    image_id: str | None,
    version: int,
) -> dict[str, Any]:
    return {
        "id": pk,
        "index": index,
        "status": status,
        "progress": progress,
        "image_id": image_id,
        "error": {"code": error_code, "message": error_message} if error_code else None,
        "version": version,
    }


def read_overview(*, owner_id: int, lookback_s: float) -> Overview:
    """What who begins to follow all that a user has is told: what is open, newest first."""
    # In this order: what happens in between is in the second, and known to be told.
    found, singles = _log_of([owner_id], lookback_s)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT id, name, status, {_COUNTS}, version FROM (
                SELECT * FROM batches_batch WHERE owner_id = %s
                ORDER BY created_at DESC, id DESC LIMIT %s) recent
            WHERE finished_at IS NULL AND deleted_at IS NULL
            ORDER BY created_at DESC, id DESC LIMIT %s
            """,
            [owner_id, _RECENT_BATCHES, MAX_OPEN_BATCHES],
        )
        rows = cursor.fetchall()
    batches = [
        {
            "batch_id": pk,
            "name": name,
            "status": status,
            **_progress(*counts),
            "version": version,
        }
        for pk, name, status, *counts, version in rows
    ]
    return Overview(
        message=_text({"type": "snapshot", "batches": batches}),
        versions={row[0]: row[-1] for row in rows},
        found=found,
        singles=singles,
    )
