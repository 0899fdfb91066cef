"""Lists by cursor, newest first.

A cursor is a place in the order (created_at, id) and a direction, so that no page loses or repeats
a row.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError as UnknownValue
from django.db.models import Q, QuerySet
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.utils.urls import replace_query_param

from batches.api.files import base_url
from batches.gallery import beyond_place, in_order


class Place(NamedTuple):
    created_at: datetime
    id: Any
    back: bool  # towards the rows before


class RecentFirst(CursorPagination):
    """`?page_size=` up to 100; `next` and `previous` are complete addresses."""

    ordering = in_order(newest_first=True)
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
        place = self._place(request, queryset)
        back = place is not None and place.back
        newest_first = self.is_newest_first(request) != back
        beyond = Q()
        if place is not None:
            beyond = beyond_place(place.created_at, place.id, newest_first=newest_first)
        found = self.read(queryset, beyond, newest_first=newest_first, limit=size + 1)
        self.rows, more = found[:size], len(found) > size
        if back:
            self.rows.reverse()
        self.has_next = back or more
        self.has_previous = more if back else place is not None
        return self.rows

    def get_page_size(self, request: Request) -> int:
        """Raises ValidationError for what is no whole number from 1."""
        asked = request.query_params.get(self.page_size_query_param)
        if asked is None:
            return self.page_size
        # So many digits that int() would refuse them are no number either.
        size = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 100 else 0
        if size < 1:
            problem = ErrorDetail("Must be a whole number from 1.", code="invalid")
            raise ValidationError({self.page_size_query_param: [problem]})
        return min(size, self.max_page_size)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == self.page_size_query_param:
                parameter["schema"]["minimum"] = 1
        return parameters

    def is_newest_first(self, request: Request) -> bool:
        return True

    def read(
        self, queryset: QuerySet[Any], beyond: Q, *, newest_first: bool, limit: int
    ) -> list[Any]:
        """The first rows beyond a place, in that order."""
        order = in_order(newest_first=newest_first)
        return list(queryset.filter(beyond).order_by(*order)[:limit])

    def get_next_link(self) -> str | None:
        return self._link(self.rows[-1], back=False) if self.rows and self.has_next else None

    def get_previous_link(self) -> str | None:
        return self._link(self.rows[0], back=True) if self.rows and self.has_previous else None

    def _link(self, row: Any, *, back: bool) -> str:
        text = f"{'<' if back else '>'} {row.created_at.isoformat()} {row.pk}"
        cursor = urlsafe_b64encode(text.encode()).decode()
        link: str = replace_query_param(self.address, self.cursor_query_param, cursor)
        return link

    def _place(self, request: Request, queryset: QuerySet[Any]) -> Place | None:
        cursor = request.query_params.get(self.cursor_query_param)
        if cursor is None:
            return None
        try:
            way, moment, pk = urlsafe_b64decode(cursor).decode("ascii").split(" ")
            created_at = datetime.fromisoformat(moment)
            if way not in ("<", ">") or created_at.tzinfo is None:
                raise ValueError
            row_id = queryset.model._meta.pk.to_python(pk)
            return Place(created_at.astimezone(UTC), row_id, way == "<")
        except (ValueError, OverflowError, UnknownValue):
            raise NotFound("There is no such cursor.") from None
