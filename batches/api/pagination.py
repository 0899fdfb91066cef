"""Lists by cursor, newest first.

A cursor is a place in the order (created_at, id) and a direction. All rows of a batch are made
at one moment, so the id decides between them and no page loses or repeats any.
"""

import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db.models import Q, QuerySet
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from batches.api.files import base_url


class Place(NamedTuple):
    created_at: datetime
    id: uuid.UUID
    back: bool  # towards the newer rows


class RecentFirst(CursorPagination):
    """`?page_size=` up to 100; `next` and `previous` are complete addresses."""

    ordering = ("-created_at", "-id")
    page_size = 20
    page_size_query_param = "page_size"
    max_page_size = 100

    def paginate_queryset(
        self, queryset: QuerySet[Any] | Sequence[Any], request: Request, view: Any = None
    ) -> list[Any]:
        assert isinstance(queryset, QuerySet)
        self.address = base_url(request) + request.get_full_path()
        size = self.get_page_size(request)
        assert size is not None
        place = self._place(request)
        back = place is not None and place.back
        rows = queryset.order_by(*(("created_at", "id") if back else self.ordering))
        if place is not None:
            beyond = "gt" if back else "lt"
            rows = rows.filter(
                Q(**{f"created_at__{beyond}": place.created_at}) | Q(**{f"id__{beyond}": place.id}),
                # Says no more than the line above, in a form that an index serves.
                **{f"created_at__{beyond}e": place.created_at},
            )
        found = list(rows[: size + 1])
        self.rows, more = found[:size], len(found) > size
        if back:
            self.rows.reverse()
        self.has_next = back or more
        self.has_previous = more if back else place is not None
        return self.rows

    def get_next_link(self) -> str | None:
        return self._link(self.rows[-1], back=False) if self.rows and self.has_next else None

    def get_previous_link(self) -> str | None:
        return self._link(self.rows[0], back=True) if self.rows and self.has_previous else None

    def _link(self, row: Any, *, back: bool) -> str:
        text = f"{'<' if back else '>'} {row.created_at.isoformat()} {row.pk}"
        cursor = urlsafe_b64encode(text.encode()).decode()
        link: str = replace_query_param(self.address, self.cursor_query_param, cursor)
        return link

    def _place(self, request: Request) -> Place | None:
        cursor = request.query_params.get(self.cursor_query_param)
        if cursor is None:
            return None
        try:
            way, moment, pk = urlsafe_b64decode(cursor).decode("ascii").split(" ")
            created_at = datetime.fromisoformat(moment)
            if way not in ("<", ">") or created_at.tzinfo is None:
                raise ValueError
            return Place(created_at.astimezone(UTC), uuid.UUID(pk), way == "<")
        except (ValueError, OverflowError):
            raise NotFound("There is no such cursor.") from None
