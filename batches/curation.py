"""What an owner does with images: save, tag, review, delete; one of them or a thousand.

Each is one transaction and the same number of statements for any number of images. First the
rows are locked, in the order of their ids; what is then to be done is seen by later statements,
so that a publication that was begun meanwhile is known. Done twice, the second time changes
nothing.
"""

import enum
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet

from batches import lifecycle
from batches.gallery import ImageFilter, find_images, in_order
from batches.models import TAGS_MAX, Batch, Generation, Image, ReviewStatus

# Images of one action.
SELECTION_MAX = 1_000
# So many are counted of a selection that is too large.
COUNTED_MAX = 10_000


class Action(enum.StrEnum):
    SAVE = "save"
    UNSAVE = "unsave"
    TAG = "tag"
    UNTAG = "untag"
    APPROVE = "approve"
    REJECT = "reject"
    DELETE = "delete"


REVIEWS = {Action.APPROVE: ReviewStatus.APPROVED, Action.REJECT: ReviewStatus.REJECTED}


class Result(enum.StrEnum):
    DONE = "done"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


BEING_PUBLISHED, TOO_MANY_TAGS = "being_published", "too_many_tags"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image; `code` says why it was refused."""

    id: uuid.UUID
    outcome: Result
    code: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Images by exactly one of these: their ids, their batch, or what the gallery would show."""

    ids: Sequence[uuid.UUID] = ()
    batch_id: uuid.UUID | None = None
    wanted: ImageFilter | None = None


class TooMany(Exception):
    """More images are meant than one action takes. `count` goes up to `COUNTED_MAX`, and says
    whether there `are_more`."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count, self.are_more = min(count, COUNTED_MAX), count > COUNTED_MAX


@transaction.atomic
def act_on_images(
    *,
    owner_id: int,
    selection: Selection,
    action: Action,
    tags: Sequence[str] = (),
    reason: str = "",
) -> list[Outcome]:
    """Do one thing with all images that are meant; in their order, or newest first.

    `tags` are for `tag` and `untag`, `reason` is for `approve` and `reject`. Raises
    `Image.DoesNotExist` where one is not the owner's, `Batch.DoesNotExist` and
    `Generation.DoesNotExist` likewise, also where a filter names them, `TooMany`.
    """
    images = _meant(owner_id, selection)
    newest_first = images.order_by(*in_order(newest_first=True)).values_list("pk", flat=True)
    order = selection.ids or list(newest_first)
    if action is Action.DELETE:
        outcomes = _delete(images)
    else:
        locked = _locked(images)
        match action:
            case Action.SAVE | Action.UNSAVE:
                outcomes = _save(locked, action is Action.SAVE)
            case Action.TAG | Action.UNTAG:
                outcomes = _tag(locked, _ADDED if action is Action.TAG else _TAKEN_AWAY, tags)
            case Action.APPROVE | Action.REJECT:
                outcomes = _review(locked, REVIEWS[action], owner_id, reason)
    if selection.ids and len(outcomes) < len(selection.ids):
        raise Image.DoesNotExist
    return [outcomes[one] for one in order if one in outcomes]


@transaction.atomic
def review_images(
    *,
    ids: Collection[uuid.UUID],
    status: ReviewStatus,
    reviewer_id: int,
    reason: str = "",
) -> list[Outcome]:
    """Review what nobody has reviewed of these images, whoever they belong to."""
    locked = _locked(Image.objects.filter(pk__in=ids, review_status=ReviewStatus.PENDING))
    return list(_review(locked, status, reviewer_id, reason).values())


@transaction.atomic
def change_image(
    *,
    owner_id: int,
    image_id: uuid.UUID,
    is_saved: bool | None = None,
    tags: Sequence[str] | None = None,
) -> None:
    """Set what is given of one image. Raises `Image.DoesNotExist`."""
    locked = _locked(Image.objects.owned_by(owner_id).filter(pk=image_id))
    if not locked:
        raise Image.DoesNotExist
    if is_saved is not None:
        _save(locked, is_saved)
    if tags is not None:
        _tag(locked, _REPLACED, tags)


def _meant(owner_id: int, selection: Selection) -> QuerySet[Image]:
    """The images that are meant, at most `SELECTION_MAX`; nothing is locked yet.

    They are asked for what was asked of them once more when they are locked.
    """
    if selection.ids:
        images = Image.objects.owned_by(owner_id).filter(pk__in=selection.ids)
        if images.count() < len(selection.ids):
            raise Image.DoesNotExist
        return images
    wanted = selection.wanted
    if selection.batch_id is not None:
        wanted = ImageFilter(batch=selection.batch_id)
    assert wanted is not None
    if wanted.batch is not None:
        Batch.objects.owned_by(owner_id).only("pk").get(pk=wanted.batch)
    if wanted.generation is not None:
        Generation.objects.owned_by(owner_id).only("pk").get(pk=wanted.generation)
    found = find_images(owner_id, wanted)
    ids = list(found.values_list("pk", flat=True)[: COUNTED_MAX + 1])
    if len(ids) > SELECTION_MAX:
        raise TooMany(len(ids))
    return found.filter(pk__in=ids)


def _locked(images: QuerySet[Image]) -> list[uuid.UUID]:
    locked = images.order_by("pk").select_for_update(no_key=True)
    return list(locked.values_list("pk", flat=True))


def _outcomes(sql: str, values: Sequence[Any]) -> dict[uuid.UUID, Outcome]:
    """Of rows (id, whether it was changed, why it was refused or NULL)."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return {
            pk: Outcome(pk, Result.REFUSED, code)
            if code
            else Outcome(pk, Result.DONE if changed else Result.UNCHANGED)
            for pk, changed, code in cursor.fetchall()
        }


def _save(ids: list[uuid.UUID], is_saved: bool) -> dict[uuid.UUID, Outcome]:
    return _outcomes(
        """
        WITH changed AS (
            UPDATE batches_image SET is_saved = %s
            WHERE id = ANY(%s) AND is_saved <> %s RETURNING id
        )
        SELECT id, id IN (SELECT id FROM changed), NULL FROM unnest(%s::uuid[]) AS id
        """,
        [is_saved, ids, is_saved, ids],
    )


# What becomes of `tags`, given others.
_ADDED = """tags || ARRAY(SELECT tag FROM unnest(%s::text[]) WITH ORDINALITY AS given (tag, place)
                          WHERE tag <> ALL(tags) ORDER BY place)::varchar[]"""
_TAKEN_AWAY = """ARRAY(SELECT tag FROM unnest(tags) WITH ORDINALITY AS had (tag, place)
                       WHERE tag <> ALL(%s::text[]) ORDER BY place)"""
_REPLACED = "%s::varchar[]"


def _tag(ids: list[uuid.UUID], becoming: str, tags: Sequence[str]) -> dict[uuid.UUID, Outcome]:
    """Set tags, and what a search finds by them."""
    return _outcomes(
        f"""
        WITH meant AS (
            SELECT id, tags, {becoming} AS becoming FROM batches_image WHERE id = ANY(%s)
        ), changed AS (
            UPDATE batches_image image
            SET tags = becoming,
                search = ts_delete(search, {_lexemes("image.tags")})
                         || array_to_tsvector({_lexemes("becoming")})
            FROM meant
            WHERE image.id = meant.id AND becoming <> meant.tags AND cardinality(becoming) <= %s
            RETURNING image.id
        )
        SELECT id, id IN (SELECT id FROM changed),
               CASE WHEN becoming <> tags AND cardinality(becoming) > %s THEN %s END
        FROM meant
        """,
        [list(tags), ids, TAGS_MAX, TAGS_MAX, TOO_MANY_TAGS],
    )


def _lexemes(tags: str) -> str:
    return f"ARRAY(SELECT 'tag:' || tag FROM unnest({tags}) AS tag)"


def _review(
    ids: list[uuid.UUID], status: ReviewStatus, reviewer_id: int, reason: str
) -> dict[uuid.UUID, Outcome]:
    """Set the review status, and log each change; what is being published stays approved."""
    return _outcomes(
        """
        WITH meant AS (
            SELECT id, review_status <> %s AS changes, %s <> 'approved' AND EXISTS (
                SELECT FROM batches_publication WHERE image_id = image.id AND status = 'publishing'
            ) AS at_work
            FROM batches_image image WHERE id = ANY(%s)
        ), changed AS (
            UPDATE batches_image image
            SET review_status = %s, reviewed_at = statement_timestamp()
            FROM meant WHERE image.id = meant.id AND changes AND NOT at_work
            RETURNING image.id
        ), logged AS (
            INSERT INTO batches_review (image_id, reviewer_id, status, reason, created_at)
            SELECT id, %s, %s, %s, statement_timestamp() FROM changed
        )
        SELECT id, id IN (SELECT id FROM changed), CASE WHEN changes AND at_work THEN %s END
        FROM meant
        """,
        [status, status, ids, status, reviewer_id, status, reason, BEING_PUBLISHED],
    )


def _delete(images: QuerySet[Image]) -> dict[uuid.UUID, Outcome]:
    deleted = lifecycle.delete_images(images=images)
    return {one: Outcome(one, Result.DONE) for one in deleted.gone} | {
        one: Outcome(one, Result.REFUSED, BEING_PUBLISHED) for one in deleted.being_published
    }
