"""Lists that stay quick: bounded counts, filters and searches that have an index."""

import uuid
from datetime import timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.functional import cached_property

from batches.admin import show
from batches.catalogue import load_models
from batches.models import (
    PRIORITY_MAX,
    PRIORITY_MIN,
    AlertCode,
    AttemptOutcome,
    Batch,
    Generation,
    GenerationStatus,
)
from generation.provider import ErrorClass

COUNT_MAX = 10_000  # rows that a list counts; there may be more
# What a generation may have failed with.
ERROR_CODES = (*ErrorClass, AttemptOutcome.SUBMISSION_UNKNOWN.value, AlertCode.POISON.value)


class AtLeast(int):
    """A count that was stopped: shown with a plus."""

    def __str__(self) -> str:
        return f"{int(self):,}+"


def bounded(count: int) -> int:
    """A count of `COUNT_MAX` + 1 rows at most, as it is to be shown."""
    return AtLeast(COUNT_MAX) if count > COUNT_MAX else count


class BoundedPaginator(Paginator):
    """Counts, and pages through, the first `COUNT_MAX` rows at most."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return bounded(rows.order_by().values("pk")[: COUNT_MAX + 1].count())


# --- Filters ------------------------------------------------------------------------------------


class FixedFilter(admin.SimpleListFilter):
    """Offers values that are known beforehand, so that none are looked for in the table."""

    values: tuple[str, ...]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        value = self.value()
        if value is None:
            return queryset
        return self.matching(queryset, value) if value in self.values else queryset.none()

    def matching(self, queryset: QuerySet, value: str) -> QuerySet:
        return queryset.filter(**{str(self.parameter_name): value})


class PriorityFilter(FixedFilter):
    title = parameter_name = "priority"
    values = tuple(str(priority) for priority in range(PRIORITY_MIN, PRIORITY_MAX + 1))


class ModelFilter(FixedFilter):
    title = parameter_name = "model"

    def __init__(self, *args: Any) -> None:
        self.values = tuple(load_models())
        super().__init__(*args)


class ErrorFilter(FixedFilter):
    title = "error"
    parameter_name = "error_code"
    values = ERROR_CODES

    def matching(self, queryset: QuerySet, value: str) -> QuerySet:
        # Only failed rows have one, and those have an index.
        return super().matching(queryset.filter(status=GenerationStatus.FAILED), value)


class AgeFilter(FixedFilter):
    """By how long ago they ended."""

    title = parameter_name = "age"
    labels: ClassVar = {
        "1h": "Last hour",
        "24h": "Last 24 hours",
        "7d": "Last 7 days",
        "30d": "Last 30 days",
        "older": "Older",
    }
    spans: ClassVar = {
        "1h": timedelta(hours=1),
        "24h": timedelta(hours=24),
        "7d": timedelta(days=7),
        "30d": timedelta(days=30),
    }
    values = tuple(labels)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(self.labels.items())

    def matching(self, queryset: QuerySet, value: str) -> QuerySet:
        if value == "older":
            return queryset.filter(finished_at__lte=Now() - self.spans["30d"])
        return queryset.filter(finished_at__gt=Now() - self.spans[value])


class AlertCodeFilter(FixedFilter):
    title = parameter_name = "code"
    values = tuple(AlertCode)


class AlertStateFilter(FixedFilter):
    title = parameter_name = "state"
    values = ("open", "cleared")

    def matching(self, queryset: QuerySet, value: str) -> QuerySet:
        return queryset.filter(cleared_at__isnull=value == "open")


class RowFilter(admin.SimpleListFilter):
    """The rows that belong to one other row. Shows only once a link has set it."""

    model: type[Model]
    path: str

    @cached_property
    def row(self) -> Model | None:
        try:
            return self.model._default_manager.filter(pk=self.value()).first()
        except (ValueError, ValidationError):
            return None

    def has_output(self) -> bool:
        return self.value() is not None

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        return [] if value is None else [(value, str(self.row or value))]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        return queryset.filter(**{self.path: self.row}) if self.row else queryset.none()


class OwnerFilter(RowFilter):
    title = parameter_name = path = "owner"
    model = get_user_model()


class BatchFilter(RowFilter):
    title = parameter_name = path = "batch"
    model = Batch


class GenerationFilter(RowFilter):
    title = parameter_name = path = "generation"
    model = Generation


# --- Searches -----------------------------------------------------------------------------------


def by_uuid(term: str, *fields: str) -> Q:
    try:
        wanted = uuid.UUID(term)
    except ValueError:
        return Q(pk__in=())
    return Q.create([(field, wanted) for field in fields], connector=Q.OR)


def by_owner(term: str) -> Q:
    # Looked up first: a subquery inside an OR would keep the other terms from their indexes.
    owners = get_user_model().objects.filter(username=term)
    return Q(owner_id__in=list(owners.values_list("pk", flat=True)))


def by_provider_id(term: str) -> Q:
    # The index begins with the provider, so all of them are named.
    return Q(provider__in=list(settings.PROVIDER_POOLS), provider_id=term)


# --- Pages --------------------------------------------------------------------------------------


class ReadOnly:
    """Permissions of a page, or a part of one, that only shows."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyAdmin(ReadOnly, admin.ModelAdmin):
    """A list, and a page for each of its rows, of a table of any size."""

    actions = None
    ordering: ClassVar[tuple[Any, ...]] = ("-created_at", "-id")
    sortable_by = ()  # any other order would sort the whole table
    list_per_page = 50
    list_select_related: ClassVar[tuple[str, ...] | bool] = ("owner",)
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they would count the whole table
    # Shows the box; what is searched is up to `matches`.
    search_fields: ClassVar[tuple[str, ...]] = ("pk",)

    class Media:
        css: ClassVar = {"all": ("batches/admin.css",)}

    created = show.column("created_at", show.moment)

    @admin.display(description="owner")
    def owner_link(self, row: Any) -> str:
        return show.link(self.list_url(owner=row.owner_id), row.owner.get_username())

    def list_url(self, **filters: object) -> str:
        return show.list_url(self.model, **filters)

    def matches(self, term: str) -> Q:
        """What to look for. Each condition has an index."""
        raise NotImplementedError

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        if self.search_fields and (term := search_term.strip()):
            queryset = queryset.filter(self.matches(term))
        return queryset, False

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may do what the page offers: that is the right to change its rows."""
        return admin.ModelAdmin.has_change_permission(self, request)
