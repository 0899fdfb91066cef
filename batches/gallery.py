"""Which images a filter means, one page of them, and what is shown of each.

However many images somebody has, and whatever is asked of them: one condition is served by an
index of its own, in the gallery's order. Several are first looked for among the nearest
`WINDOW` images in that order, which finds a page of whatever is common; what is too rare for
that is rare enough to be collected by bitmaps, and then sorted.
"""

import operator
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

from django.contrib.postgres.expressions import ArraySubquery
from django.db import connection
from django.db.models import BooleanField, ExpressionWrapper, F, OuterRef, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.db.models.functions import JSONObject
from django.db.models.lookups import PostgresOperatorLookup

from batches.models import Image, Publication

_SHOWN = (
    "id", "index", "format", "width", "height", "made_width", "made_height", "size_bytes",
    "sha256", "is_saved", "tags", "review_status", "reviewed_at", "created_at",
)  # fmt: skip
_SHOWN_OF_GENERATION = ("id", "batch_id", "prompt", "model", "style", "genre", "seed")
# Some milliseconds of looking through an index, row by row; more for a long page.
WINDOW = 20_000
WINDOW_PER_IMAGE = 300


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """What is asked of images; all of it must be so, and what is left out does not matter.

    `review_status`: any of these; `tags`: all of these; `created_after` is included,
    `created_before` is not; `q`: words of the prompt, as PostgreSQL's `websearch_to_tsquery`
    reads them. Words that no search finds, such as "the", do not matter beside others; where there
    are no others, nothing is found: see `has_words`.
    """

    review_status: tuple[str, ...] = ()
    saved: bool | None = None
    tags: tuple[str, ...] = ()
    batch: uuid.UUID | None = None
    generation: uuid.UUID | None = None
    model: str = ""
    format: str = ""
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str = ""


def has_words(q: str) -> bool:
    """Whether there is a word to search for, also one that is not to be there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT numnode(websearch_to_tsquery('english', %s)) > 0", [q])
        row: tuple[bool] = cursor.fetchone()
    return row[0]


def find_images(owner_id: int, wanted: ImageFilter) -> QuerySet[Image]:
    """The images of an owner that are as asked, in no order."""
    own = Image.objects.owned_by(owner_id)
    return own.filter(_period(wanted), *_in_order(wanted), *_in_no_order(owner_id, wanted))


def shown(images: QuerySet[Image]) -> QuerySet[Image]:
    """With all that is shown of images, read in the same query.

    Adds `publication_rows`, the publications as dicts by channel.
    """
    publications = Publication.objects.filter(image=OuterRef("pk")).order_by("channel")
    row = JSONObject(
        id="id", channel="channel", status="status", product_type="product_type", url="remote_url"
    )
    return (
        images.select_related("generation")
        .only(*_SHOWN, *(f"generation__{name}" for name in _SHOWN_OF_GENERATION))
        .annotate(publication_rows=ArraySubquery(publications.values(row=row)))
    )


def in_order(*, newest_first: bool) -> tuple[str, str]:
    """The order of lists. All rows of a batch are made at one moment; the id decides then."""
    return ("-created_at", "-id") if newest_first else ("created_at", "id")


def beyond_place(created_at: datetime, pk: Any, *, newest_first: bool) -> Q:
    """What comes after the row that is so, in that order."""
    way = "lt" if newest_first else "gt"
    return Q(
        Q(**{f"created_at__{way}": created_at}) | Q(**{f"id__{way}": pk}),
        # Says no more than the line above, in a form that an index serves.
        **{f"created_at__{way}e": created_at},
    )


def read_page(
    images: QuerySet[Image],
    owner_id: int,
    wanted: ImageFilter,
    *,
    beyond: Q,
    newest_first: bool,
    limit: int,
) -> list[Image]:
    """The first images that are as asked `beyond` a place in the order.

    One query for one condition, at most two for several. `images` says what is read of each.
    """
    order = in_order(newest_first=newest_first)
    lead, *others = _in_order(wanted) or [Q()]
    others += _in_no_order(owner_id, wanted)
    near = Image.objects.owned_by(owner_id).filter(_period(wanted), lead, beyond)
    images = images.order_by(*order)
    if not others:
        return list(images.filter(pk__in=near.order_by(*order).values("pk")[:limit]))
    found = list(images.filter(pk__in=_looked_through(near, others, order, limit)))
    if len(found) < limit:
        # No index has this order: so there is no walking along one to the far end.
        no_index = F("created_at") + timedelta(0)
        unserved = (no_index.desc(), "-id") if newest_first else (no_index.asc(), "id")
        collected = near.filter(*others).order_by(*unserved).values("pk")[:limit]
        found = list(images.filter(pk__in=collected))
    return found


def _looked_through(
    near: QuerySet[Image], conditions: list[Q], order: tuple[str, str], limit: int
) -> RawSQL:
    """Ids of the first of the nearest images for which the conditions hold."""
    hit = ExpressionWrapper(reduce(operator.and_, conditions), output_field=BooleanField())
    nearest = near.order_by(*order).annotate(hit=hit).values("id", "created_at", "hit")
    window = nearest[: max(WINDOW, WINDOW_PER_IMAGE * limit)]
    sql, params = window.query.sql_with_params()
    way = "DESC" if order[0].startswith("-") else "ASC"
    return RawSQL(
        f"SELECT id FROM ({sql}) near WHERE hit ORDER BY created_at {way}, id {way} LIMIT %s",
        (*params, limit),
    )


def _period(wanted: ImageFilter) -> Q:
    period = Q()
    if wanted.created_after is not None:
        period &= Q(created_at__gte=wanted.created_after)
    if wanted.created_before is not None:
        period &= Q(created_at__lt=wanted.created_before)
    return period


def _in_order(wanted: ImageFilter) -> list[Q]:
    """Conditions with an index each in the gallery's order, those that usually leave least first.

    A generation has few images, so that its order does not matter.
    """
    asked = {
        "generation": wanted.generation,
        "batch": wanted.batch,
        "is_saved": wanted.saved or None,
        "model": wanted.model or None,
        "review_status": wanted.review_status[0] if len(wanted.review_status) == 1 else None,
        "format": wanted.format or None,
    }
    conditions = [Q(**{name: value}) for name, value in asked.items() if value is not None]
    return conditions if wanted.saved is not False else [*conditions, Q(is_saved=False)]


def _in_no_order(owner_id: int, wanted: ImageFilter) -> list[Q]:
    conditions = []
    if len(wanted.review_status) > 1:
        conditions.append(Q(review_status__in=wanted.review_status))
    if wanted.q or wanted.tags:
        conditions.append(Q(_Matches(F("search"), _asked(owner_id, wanted))))
    return conditions


class _Matches(PostgresOperatorLookup):
    lookup_name = "matches"
    postgres_operator = "@@"


def _asked(owner_id: int, wanted: ImageFilter) -> RawSQL:
    """Words, tags and owner as one query, so that one index serves all of them."""
    lexemes = [f"owner:{owner_id}", *(f"tag:{tag}" for tag in wanted.tags)]
    known = " & ".join(map(_quoted, lexemes))
    if not wanted.q:
        return RawSQL("%s::tsquery", [known])
    # Of what holds no word, the rest would be asked for alone: whatever there is.
    return RawSQL(
        "%s::tsquery && nullif(websearch_to_tsquery('english', %s), ''::tsquery)",
        [known, wanted.q],
    )


def _quoted(lexeme: str) -> str:
    """A lexeme of a tsquery, whatever it is made of."""
    escaped = lexeme.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
