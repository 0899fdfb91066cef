"""The operators' pages: what was asked, what became of it, and what they may do about it.

Rows are read-only except the limits and shares of lanes and pools: statuses, counters and leases
are the product's to write. What an operator has done to a row is a `Command`, which goes through
`batches.lifecycle` or `batches.pools` like everybody else's wish. Tables grow to millions of
rows, so nothing here counts or sorts a whole one, and every search is a lookup in an index.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import flatten, model_ngettext
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import (
    BooleanField,
    ExpressionWrapper,
    F,
    Func,
    Model,
    OuterRef,
    Prefetch,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
)
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce, Least, Left, Now
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from batches import lifecycle, pools, wake
from batches.api.files import signed_url
from batches.models import (
    BATCH_FROM,
    BATCH_OPEN,
    GENERATION_FROM,
    GENERATION_OPEN,
    GENERATION_RETRYABLE,
    PRIORITY_MAX,
    PRIORITY_MIN,
    Alert,
    AlertCode,
    Attempt,
    AttemptOutcome,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Image,
    Lane,
    Lease,
    Pool,
)
from generation.catalogue import load_models
from generation.provider import ErrorClass

COUNT_MAX = 10_000  # rows that a list counts; there may be more
SELECTED_MAX = 100
RETRIED_MAX = 500
NAMED_MAX = 100  # rows that a message or a confirmation names
BANNER_MAX = 4
EXCERPT_LENGTH = 200
EMPTY = "-"
HIDDEN = "[token]"
GALLERY_SIZE = 30
INLINE_ATTEMPTS = 20
# What a generation may have failed with.
ERROR_CODES = (*ErrorClass, AttemptOutcome.SUBMISSION_UNKNOWN.value, AlertCode.POISON.value)

Column = Callable[[Any, Any], Any]


# --- Values in readable form --------------------------------------------------------------------


def duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if not minutes:
        return f"{whole_seconds} s"
    if not hours:
        return f"{minutes} min {whole_seconds} s"
    if hours < 24:
        return f"{hours} h {minutes_left} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(at: datetime) -> SafeString:
    seconds = (timezone.now() - at).total_seconds()
    return format_html(
        '<time class="nowrap" datetime="{}">{} UTC</time> <span class="since nowrap">{}</span>',
        at.isoformat(),
        at.strftime("%Y-%m-%d %H:%M:%S"),
        f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}",
    )


def dollars(amount: Decimal) -> str:
    return f"${amount:.4f}"


def badge(status: str) -> SafeString:
    return format_html(
        '<span class="badge badge-{}">{}</span>', status, status.replace("_", " ").capitalize()
    )


def bar(value: int, maximum: int, text: str) -> SafeString:
    return format_html(
        '<span class="nowrap"><progress class="bar" value="{}" max="{}"></progress>{}</span>',
        value,
        maximum,
        text,
    )


def marked(row: Batch | Generation) -> SafeString:
    """The status, and what is about to become of it."""
    badges = [row.status]
    if row.cancel_requested_at and row.finished_at is None:
        badges.append("cancelling")
    if row.deleted_at:
        badges.append("deleted")
    return format_html_join(" ", "{}", ((badge(one),) for one in badges))


def pretty(value: Any) -> SafeString:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return format_html('<pre class="json">{}</pre>', text)


def short(row_id: uuid.UUID) -> str:
    return str(row_id)[:8]


def name_of(row: Any) -> str:
    """What a message calls a row."""
    if isinstance(row, Batch) and row.name:
        return f"{Truncator(row.name).chars(40)} ({short(row.pk)})"
    return short(row.pk) if isinstance(row.pk, uuid.UUID) else str(row)


def named(texts: Sequence[str]) -> str:
    left = len(texts) - NAMED_MAX
    return ", ".join(texts[:NAMED_MAX]) + (f" and {left} more" if left > 0 else "")


def shown(field: str, show: Callable[[Any], str], label: str = "") -> Column:
    """A column with a field's value in readable form."""

    @admin.display(description=label or field.removesuffix("_at").replace("_", " "))
    def column(_: Any, row: Any) -> str:
        value = getattr(row, field)
        return EMPTY if value is None or value == "" else show(value)

    return column


@admin.display(description="status")
def status_badge(_: Any, row: Batch | Generation) -> str:
    return marked(row)


@admin.display(description="took")
def took(_: Any, row: Batch | Generation) -> str:
    """From the first start to the end, or until now."""
    if row.started_at is None:
        return EMPTY
    return duration(((row.finished_at or timezone.now()) - row.started_at).total_seconds())


# --- Links --------------------------------------------------------------------------------------


def page_of(model: type[Model], pk: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[pk])


def list_of(model: type[Model], parameter: str, value: object) -> str:
    """The list of those rows that belong to one other row, by one of the filters below."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
    return f"{reverse(name)}?{urlencode({parameter: str(value)})}"


def link(url: str, text: object) -> SafeString:
    return format_html('<a href="{}">{}</a>', url, text)


def linked(field: str, model: type[Model]) -> Column:
    """A column that links to another row, which need not be loaded for it."""

    @admin.display(description=field.split("__")[-1].removesuffix("_id"))
    def column(_: Any, row: Any) -> str:
        for name in field.split("__"):
            row = getattr(row, name)
        return link(page_of(model, row), short(row)) if row else EMPTY

    return column


def listed(model: type[Model], parameter: str, label: str) -> Column:
    """A column that links to the rows of another list which belong to this one."""

    @admin.display(description=label)
    def column(_: Any, row: Any) -> str:
        return link(list_of(model, parameter, row.pk), f"All {label}")

    return column


def thumbnail(image: Image, css_class: str = "thumbnail") -> SafeString:
    return format_html(
        '<img class="{}" src="{}" alt="Image {}" loading="lazy">',
        css_class,
        signed_url("", image.pk, "thumbnail"),
        short(image.pk),
    )


def with_images(generations: QuerySet[Generation]) -> QuerySet[Generation]:
    return generations.prefetch_related(
        Prefetch("images", queryset=Image.objects.order_by("index"))
    )


# --- Lists that stay quick ----------------------------------------------------------------------


class AtLeast(int):
    """A count that was stopped: shown with a plus."""

    def __str__(self) -> str:
        return f"{int(self):,}+"


class BoundedPaginator(Paginator):
    """Counts, and pages through, the first `COUNT_MAX` rows at most."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        counted: int = rows.order_by().values("pk")[: COUNT_MAX + 1].count()
        return AtLeast(COUNT_MAX) if counted > COUNT_MAX else counted


class FixedFilter(admin.SimpleListFilter):
    """Offers values that are known beforehand, so that none are looked for in the table."""

    values: tuple[str, ...]

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() is None:
            return queryset
        if self.value() not in self.values:
            return queryset.none()
        return queryset.filter(**{str(self.parameter_name): self.value()})


class PriorityFilter(FixedFilter):
    title = parameter_name = "priority"
    values = tuple(str(priority) for priority in range(PRIORITY_MIN, PRIORITY_MAX + 1))


class ModelFilter(FixedFilter):
    title = parameter_name = "model"
    values = tuple(load_models())


class ErrorFilter(FixedFilter):
    title = "error"
    parameter_name = "error_code"
    values = ERROR_CODES

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        # Only failed rows have one, and those have an index.
        failed = queryset.filter(status=GenerationStatus.FAILED) if self.value() else queryset
        return super().queryset(request, failed)


class AgeFilter(admin.SimpleListFilter):
    """By how long ago they ended."""

    title = "age"
    parameter_name = "age"
    ages: ClassVar = {
        "1h": ("Last hour", timedelta(hours=1)),
        "24h": ("Last 24 hours", timedelta(hours=24)),
        "7d": ("Last 7 days", timedelta(days=7)),
        "30d": ("Last 30 days", timedelta(days=30)),
    }
    older = "older"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*((value, label) for value, (label, _) in self.ages.items()), (self.older, "Older")]

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() is None:
            return queryset
        if self.value() == self.older:
            return queryset.filter(finished_at__lte=Now() - self.ages["30d"][1])
        if self.value() not in self.ages:
            return queryset.none()
        return queryset.filter(finished_at__gt=Now() - self.ages[str(self.value())][1])


class AlertCodeFilter(FixedFilter):
    title = parameter_name = "code"
    values = tuple(AlertCode)


class AlertStateFilter(FixedFilter):
    title = parameter_name = "state"
    values = ("open", "cleared")

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        if self.value() is None:
            return queryset
        if self.value() not in self.values:
            return queryset.none()
        return queryset.filter(cleared_at__isnull=self.value() == "open")


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


class ImageBatchFilter(BatchFilter):
    path = "generation__batch"


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


# --- What an operator may have done -------------------------------------------------------------

Rows = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Command:
    """Something to be done to rows of one kind.

    `done` is what they are afterwards. `run(rows, user_id)` does it and returns those that it
    could not be done to. `fits` tells whether it is worth offering on a row's own page. `asks`
    returns what has to be confirmed first, and nothing when it may be done at once. `tells`
    returns what else there is to say when it has been done.
    """

    name: str
    label: str
    done: str
    run: Callable[[Rows, int], Rows]
    fits: Callable[[Any], bool]
    asks: Callable[[Rows], list[str]] = lambda _: []
    tells: Callable[[Rows], list[str]] = lambda _: []


def one_by_one(act: Callable[[Any], object]) -> Callable[[Rows, int], Rows]:
    def run(rows: Rows, user_id: int) -> Rows:
        return [row for row in rows if not act(row)]

    return run


def is_stoppable(row: Batch | Generation) -> bool:
    open_statuses = BATCH_OPEN if isinstance(row, Batch) else GENERATION_OPEN
    return row.status in open_statuses and row.cancel_requested_at is None


def stopping(rows: Rows) -> list[str]:
    return ["What is at its provider ends when that has stopped; until then it holds its slot."]


def retry_failed(batch: Batch) -> int:
    failed = batch.generations.filter(status=GenerationStatus.FAILED)
    rows = list(failed.only("pk", "owner_id", "batch_id"))
    return lifecycle.retry_generations(batch=batch, generations=rows) if rows else 0


def retry_generations(rows: Rows, user_id: int) -> Rows:
    """Those of one batch together, the single ones each for itself."""
    refused = [row for row in rows if row.status not in GENERATION_RETRYABLE]
    groups: dict[uuid.UUID, list[Generation]] = {}
    for row in rows:
        if row.status in GENERATION_RETRYABLE:
            groups.setdefault(row.batch_id or row.pk, []).append(row)
    batches = Batch.objects.in_bulk([pk for pk, group in groups.items() if group[0].batch_id])
    for pk, group in groups.items():
        count = lifecycle.retry_generations(batch=batches.get(pk), generations=group)
        if count < len(group):
            refused += still_ended(group)
    return refused


def still_ended(generations: Sequence[Generation]) -> Rows:
    ids = [generation.pk for generation in generations]
    rows = Generation.objects.filter(pk__in=ids, status__in=GENERATION_OPEN)
    retried = set(rows.values_list("pk", flat=True))
    return [generation for generation in generations if generation.pk not in retried]


def charged_already(rows: Rows) -> list[str]:
    count = sum(row.error_code == AttemptOutcome.SUBMISSION_UNKNOWN for row in rows)
    if not count:
        return []
    return [
        f"{count} of these failed with {AttemptOutcome.SUBMISSION_UNKNOWN}: nobody can tell "
        "whether their submission arrived, so they may have been charged already. Retried, they "
        "may be charged twice."
    ]


def clear_alerts(rows: Rows, user_id: int) -> Rows:
    return [row for row in rows if not pools.clear_alert(alert_id=row.pk, user_id=user_id)]


def resuming(rows: Rows) -> list[str]:
    """What goes on now that these alerts are cleared."""
    stopping_codes = {*pools.STOPPING.values(), AlertCode.CIRCUIT_OPEN}
    names = sorted({row.subject for row in rows if row.code in stopping_codes})
    found = Pool.objects.in_bulk(names)
    return [
        f"{name} is still stopped: {found[name].stopped_by}."
        if found[name].stopped_by
        else f"Submissions to {name} go on."
        for name in names
        if name in found
    ]


BATCH_COMMANDS = (
    Command(
        name="pause",
        label="Pause",
        done="paused",
        run=one_by_one(lambda batch: lifecycle.pause_batch(batch=batch)),
        fits=lambda batch: is_stoppable(batch) and batch.status in BATCH_FROM[BatchStatus.PAUSED],
        tells=lambda _: ["What runs is finished, nothing more is started."],
    ),
    Command(
        name="resume",
        label="Resume",
        done="resumed",
        run=one_by_one(lambda batch: lifecycle.resume_batch(batch=batch)),
        fits=lambda batch: is_stoppable(batch) and batch.status == BatchStatus.PAUSED,
    ),
    Command(
        name="cancel",
        label="Cancel",
        done="cancelled",
        run=one_by_one(lambda batch: lifecycle.cancel_batch(batch=batch)),
        fits=is_stoppable,
        asks=lambda _: [
            "Everything that has not ended is cancelled. What its provider is at work on is "
            "stopped there, and may be charged all the same. This cannot be undone."
        ],
        tells=stopping,
    ),
    Command(
        name="retry",
        label="Retry failed",
        done="retried",
        run=one_by_one(retry_failed),
        fits=lambda batch: (
            batch.failed_count > 0 and (is_stoppable(batch) or batch.finished_at is not None)
        ),
        tells=lambda _: ["Whatever had failed is in line again."],
    ),
    Command(
        name="delete",
        label="Delete",
        done="deleted",
        run=one_by_one(lambda batch: lifecycle.delete_batch(batch=batch)),
        fits=lambda _: True,
        asks=lambda _: [
            "The batches go with all their generations, images and files. What has not ended is "
            "cancelled first. This cannot be undone."
        ],
    ),
)

RETRY_GENERATIONS = Command(
    name="retry",
    label="Retry",
    done="retried",
    run=retry_generations,
    fits=lambda generation: generation.status in GENERATION_RETRYABLE,
    asks=charged_already,
)

GENERATION_COMMANDS = (
    Command(
        name="pause",
        label="Pause",
        done="paused",
        run=one_by_one(lambda generation: lifecycle.pause_generation(generation=generation)),
        fits=lambda generation: generation.status in GENERATION_FROM[GenerationStatus.PENDING],
    ),
    Command(
        name="resume",
        label="Resume",
        done="resumed",
        run=one_by_one(lambda generation: lifecycle.resume_generation(generation=generation)),
        fits=lambda generation: generation.status == GenerationStatus.PENDING,
    ),
    Command(
        name="cancel",
        label="Cancel",
        done="cancelled",
        run=one_by_one(lambda generation: lifecycle.cancel_generation(generation=generation)),
        fits=is_stoppable,
        asks=lambda _: [
            "What its provider is at work on is stopped there, and may be charged all the same. "
            "This cannot be undone."
        ],
        tells=stopping,
    ),
    RETRY_GENERATIONS,
    Command(
        name="delete",
        label="Delete",
        done="deleted",
        run=one_by_one(lambda generation: lifecycle.delete_generation(generation=generation)),
        fits=lambda generation: generation.batch_id is None,
        asks=lambda _: [
            "The generations go with their images and files. What has not ended is cancelled "
            "first. One of a batch goes with its batch only. This cannot be undone."
        ],
    ),
)

ALERT_COMMANDS = (
    Command(
        name="clear",
        label="Clear",
        done="cleared",
        run=clear_alerts,
        fits=lambda alert: alert.cleared_at is None,
        tells=resuming,
    ),
)


# --- The pages ----------------------------------------------------------------------------------


class ReadOnly:
    """Permissions of a page, or a part of one, that only shows."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class OperatorAdmin(ReadOnly, admin.ModelAdmin):
    commands: ClassVar[tuple[Command, ...]] = ()
    selected_max = SELECTED_MAX
    actions = None  # see `get_actions`
    ordering: ClassVar[tuple[Any, ...]] = ("-created_at", "-id")
    sortable_by = ()  # any other order would sort the whole table
    list_per_page = 50
    list_select_related: ClassVar[tuple[str, ...] | bool] = ("owner",)
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # they would count the whole table
    search_fields: ClassVar[tuple[str, ...]] = (
        "pk",
    )  # shows the box; what is searched is up to `matches`

    class Media:
        css: ClassVar = {"all": ("batches/admin.css",)}

    created = shown("created_at", moment)

    @admin.display(description="owner")
    def owner_link(self, row: Any) -> str:
        return link(list_of(self.model, "owner", row.owner_id), row.owner.get_username())

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
        return admin.ModelAdmin.has_change_permission(self, request)

    def get_urls(self) -> list[URLPattern]:
        act = path(
            "<path:object_id>/act/",
            self.admin_site.admin_view(self.act_view),
            name=f"{self.opts.app_label}_{self.opts.model_name}_act",
        )
        return [act, *super().get_urls()]

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """The commands as Django's actions on a list, without its own that deletes rows."""
        if not self.has_operate_permission(request):
            return {}
        return {
            command.name: (
                partial(self.__class__.answer, command=command),
                command.name,
                f"{command.label} selected {self.opts.verbose_name_plural}",
            )
            for command in self.commands
        }

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        for value in request.POST.getlist(ACTION_CHECKBOX_NAME):
            try:
                self.opts.pk.to_python(value)
            except ValidationError:
                self.message_user(request, f"There is no {value[:40]!r}.", messages.ERROR)
                return HttpResponseRedirect(request.get_full_path())
        return super().changelist_view(request, extra_context)

    def answer(
        self, request: HttpRequest, queryset: QuerySet, *, command: Command
    ) -> HttpResponseBase | None:
        """Obey a command about rows of a list; `None` leads back to it."""
        rows = list(queryset.prefetch_related(None)[: self.selected_max + 1])
        if len(rows) > self.selected_max:
            text = f"At most {self.selected_max} can be taken at a time. Nothing was done."
            self.message_user(request, text, messages.ERROR)
            return None
        if (warnings := command.asks(rows)) and "post" not in request.POST:
            return self.confirmation(request, command, rows, warnings)
        self.obey(request, command, rows)
        return None

    def act_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Obey a command about one row, given on its own page."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        row = self.get_object(request, object_id)
        if row is None:
            text = f"There is no {self.opts.verbose_name} {object_id[:40]!r}."
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_url())
        names = {command.name: command for command in self.commands}
        command = names.get(request.POST.get("action", ""))
        if command is not None:
            if (warnings := command.asks([row])) and "post" not in request.POST:
                return self.confirmation(request, command, [row], warnings)
            self.obey(request, command, [row])
        is_there = self.model._default_manager.filter(pk=row.pk).exists()
        return HttpResponseRedirect(page_of(self.model, row.pk) if is_there else self.list_url())

    def list_url(self) -> str:
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def confirmation(
        self, request: HttpRequest, command: Command, rows: Rows, warnings: Sequence[str]
    ) -> HttpResponse:
        """The page that asks first. Its answer names exactly the rows that it shows."""
        context = {
            **self.admin_site.each_context(request),
            "title": f"{command.label}: {len(rows)} {model_ngettext(self.opts, len(rows))}?",
            "opts": self.opts,
            "media": self.media,
            "command": command,
            "warnings": warnings,
            "summary": self.summary(rows),
            "links": [link(page_of(self.model, row.pk), name_of(row)) for row in rows[:NAMED_MAX]],
            "more": max(0, len(rows) - NAMED_MAX),
            "ids": [row.pk for row in rows],
            "action_checkbox_name": ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/batches/confirmation.html", context)

    def summary(self, rows: Rows) -> list[tuple[str, int]]:
        """How many of what a command is about."""
        return [(model_ngettext(self.opts, len(rows)), len(rows))]

    def obey(self, request: HttpRequest, command: Command, rows: Rows) -> None:
        """Do it, note it in the rows' history, and say what came of it."""
        # An owner's deletion is final, although the rows may be there for a while.
        refused = [row for row in rows if getattr(row, "deleted_at", None)]
        user_id = request.user.pk
        assert user_id is not None  # nobody else comes here
        if present := [row for row in rows if row not in refused]:
            refused += command.run(present, user_id)
        done = [row for row in rows if row not in refused]
        if done:
            LogEntry.objects.log_actions(
                user_id,
                done,
                DELETION if command.name == "delete" else CHANGE,
                f"{command.done.capitalize()}.",
            )
            count = f"{len(done)} {model_ngettext(self.opts, len(done))}"
            text = " ".join([f"{count} {command.done}.", *command.tells(done)])
            self.message_user(request, text, messages.SUCCESS)
        if refused:
            now = self.model._default_manager.in_bulk([row.pk for row in refused])
            reasons = [
                f"{name_of(row)} ({self.why_not(command, now.get(row.pk))})" for row in refused
            ]
            text = f"Not {command.done}: {named(reasons)}."
            self.message_user(request, text, messages.WARNING)

    def why_not(self, command: Command, row: Any) -> str:
        """Why a command could not be obeyed. `row` is as it is now, `None` when it is gone."""
        if row is None:
            return "gone"
        if row.deleted_at:
            return "deleted"
        if row.cancel_requested_at and row.finished_at is None:
            return "being cancelled"
        return str(row.status)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        row = context["original"]
        if row is not None and self.has_operate_permission(request):
            is_gone = getattr(row, "deleted_at", None)
            context["commands"] = [
                command for command in self.commands if not is_gone and command.fits(row)
            ]
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(Batch)
class BatchAdmin(OperatorAdmin):
    commands = BATCH_COMMANDS
    list_display = (
        "label",
        "owner_link",
        "status_badge",
        "progress_bar",
        "model_asked",
        "cost",
        "created",
        "took",
        "generations",
    )
    list_filter = (OwnerFilter, "status", PriorityFilter, "created_at")
    search_help_text = "Batch id, owner's username, or a provider's id of any attempt"
    fieldsets = (
        (None, {"fields": ("id", "name", "owner", "status_badge", "progress_bar", "cost")}),
        (
            "Times",
            {"fields": ("created", "started", "finished", "took", "cancel_requested", "deleted")},
        ),
        ("Generations", {"fields": ("generations", "images", "gallery")}),
        (
            "As it was asked",
            {"fields": ("model_asked", "priority", "style", "genre", "tags", "settings_json")},
        ),
    )

    status_badge = status_badge
    cost = shown("cost_usd", dollars, "cost")
    started = shown("started_at", moment)
    finished = shown("finished_at", moment)
    cancel_requested = shown("cancel_requested_at", moment)
    deleted = shown("deleted_at", moment)
    took = took
    settings_json = shown("settings", pretty)
    generations = listed(Generation, "batch", "generations")
    images = listed(Image, "batch", "images")

    def matches(self, term: str) -> Q:
        found = Attempt.objects.filter(by_provider_id(term))
        batch_ids = found.values_list("generation__batch_id", flat=True)
        return by_uuid(term, "pk") | by_owner(term) | Q(pk__in=list(batch_ids))

    def why_not(self, command: Command, row: Batch | None) -> str:
        reason = super().why_not(command, row)
        if command.name == "retry" and row and reason == row.status and not row.failed_count:
            return f"{reason}, nothing has failed"
        return reason

    def summary(self, rows: Rows) -> list[tuple[str, int]]:
        total = sum(batch.total_count for batch in rows)
        ended = sum(batch.ended_count for batch in rows)
        return [
            *super().summary(rows),
            ("generations", total),
            ("generations that have not ended", total - ended),
        ]

    @admin.display(description="batch")
    def label(self, batch: Batch) -> str:
        return f"{batch.name} ({short(batch.pk)})" if batch.name else short(batch.pk)

    @admin.display(description="progress")
    def progress_bar(self, batch: Batch) -> str:
        text = f"{batch.completed_count} of {batch.total_count} completed"
        for count, what in ((batch.failed_count, "failed"), (batch.cancelled_count, "cancelled")):
            text += f", {count} {what}" if count else ""
        return bar(batch.ended_count, batch.total_count, text)

    @admin.display(description="model")
    def model_asked(self, batch: Batch) -> str:
        return batch.settings.get("model") or "default"

    @admin.display(description=f"first {GALLERY_SIZE}")
    def gallery(self, batch: Batch) -> str:
        first = with_images(batch.generations.order_by("index"))[:GALLERY_SIZE]
        tiles = (
            (
                page_of(Generation, generation.pk),
                format_html_join("", "{}", ((thumbnail(row),) for row in generation.images.all())),
                generation.index,
                badge(generation.status),
            )
            for generation in first
        )
        return format_html(
            '<div class="gallery">{}</div>',
            format_html_join("", '<a class="tile" href="{}">{}{} {}</a>', tiles),
        )


class AttemptColumns:
    status_badge = shown("outcome", badge)
    cost = shown("cost_usd", dollars, "cost")
    ran = shown("run_s", duration, "run time, as billed")
    total = shown("total_s", duration, "total time")
    created = shown("created_at", moment)
    submitted = shown("submitted_at", moment)
    finished = shown("finished_at", moment)
    outputs_json = shown("outputs", pretty)
    settings_then = shown("settings", pretty, "settings, changed since")
    input_then = shown("input", pretty, "input, changed since")

    @admin.display(description="provider's answer")
    def raw_json(self, attempt: Attempt) -> str:
        if attempt.raw is None:
            return EMPTY
        # An answer may repeat the address that we gave for the report, and that is a secret.
        text = json.dumps(attempt.raw).replace(str(attempt.callback_token), HIDDEN)
        return pretty(json.loads(text))


ATTEMPT_FIELDS = (
    ("provider", "model", "provider_id"),
    "status_badge",
    ("error_class", "provider_code", "error_message"),
    ("ran", "total", "cost"),
    ("created", "submitted", "finished"),
    "outputs_json",
    "raw_json",
    ("settings_then", "input_then"),
)


class AttemptInline(AttemptColumns, ReadOnly, admin.StackedInline):
    model = Attempt
    verbose_name_plural = f"last {INLINE_ATTEMPTS} attempts"
    extra = 0
    ordering = ("-number",)
    show_change_link = True
    fields = ATTEMPT_FIELDS
    readonly_fields = tuple(flatten(ATTEMPT_FIELDS))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        # Waiting for a provider that refuses everything can make a great many.
        before_last = F("generation__attempt_count") - INLINE_ATTEMPTS
        return super().get_queryset(request).filter(number__gt=before_last)


@admin.register(Generation)
class GenerationAdmin(OperatorAdmin):
    commands: ClassVar[tuple[Command, ...]] = GENERATION_COMMANDS
    list_display: tuple[str, ...] = (
        "short_id",
        "preview",
        "batch_link",
        "index",
        "owner_link",
        "prompt_start",
        "model",
        "status_badge",
        "progress_bar",
        "attempts_link",
        "error_code",
        "created",
        "took",
    )
    list_filter: ClassVar[tuple[Any, ...]] = (
        OwnerFilter,
        BatchFilter,
        "status",
        ModelFilter,
        ErrorFilter,
        "created_at",
    )
    search_help_text = (
        "Generation id, custom id, batch id, owner's username, or a provider's id of an attempt"
    )
    inlines = (AttemptInline,)
    fieldsets = (
        (
            None,
            {"fields": ("id", "batch", "index", "owner", "status_badge", "progress_bar", "cost")},
        ),
        ("Images", {"fields": ("previews", "deleted_image_count")}),
        ("Error", {"fields": ("error_code", "error_message", "retry_count", "attempts_link")}),
        (
            "Times",
            {
                "fields": (
                    "created",
                    "not_before_at",
                    "started",
                    "downloading",
                    "finished",
                    "took",
                    "cancel_requested",
                    "deleted",
                )
            },
        ),
        (
            "As it was asked",
            {
                "fields": (
                    "name",
                    "custom_id",
                    "prompt",
                    "negative_prompt",
                    "seed",
                    "priority",
                    "settings_json",
                    "metadata_json",
                )
            },
        ),
        ("As it is sent", {"fields": ("provider", "model", "final_prompt", "input_json")}),
    )

    batch_link = linked("batch_id", Batch)
    short_id = shown("id", short, "generation")
    status_badge = status_badge
    prompt_start = shown("prompt", lambda text: Truncator(text).chars(80), "prompt")
    cost = shown("cost_usd", dollars, "cost")
    not_before_at = shown("not_before", moment)
    started = shown("started_at", moment)
    downloading = shown("downloading_at", moment)
    finished = shown("finished_at", moment)
    cancel_requested = shown("cancel_requested_at", moment)
    deleted = shown("deleted_at", moment)
    took = took
    settings_json = shown("settings", pretty)
    metadata_json = shown("metadata", pretty)
    input_json = shown("input", pretty)

    def get_urls(self) -> list[URLPattern]:
        dead_letters = DeadLetterAdmin(Generation, self.admin_site)
        view = self.admin_site.admin_view(dead_letters.changelist_view)
        return [path("dead-letters/", view, name="batches_dead_letters"), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        return with_images(super().get_queryset(request))

    def why_not(self, command: Command, row: Generation | None) -> str:
        reason = super().why_not(command, row)
        if row is None or row.deleted_at:
            return reason
        if command.name == "delete" and row.batch_id:
            return "of a batch"
        if command.name == "resume" and row.status == GenerationStatus.PENDING:
            return "its batch is paused"
        if command.name == "retry" and row.status in GENERATION_RETRYABLE:
            return f"{reason}, but its batch is being cancelled"
        return reason

    def matches(self, term: str) -> Q:
        found = Attempt.objects.filter(by_provider_id(term)).values_list("generation_id", flat=True)
        own = Q(custom_id=term) | Q(pk__in=list(found))
        return by_uuid(term, "pk", "batch_id") | by_owner(term) | own

    @admin.display(description="image")
    def preview(self, generation: Generation) -> str:
        images = generation.images.all()
        return link(page_of(Image, images[0].pk), thumbnail(images[0])) if images else EMPTY

    @admin.display(description="images")
    def previews(self, generation: Generation) -> str:
        pages = (
            (page_of(Image, image.pk), thumbnail(image, "preview"))
            for image in generation.images.all()
        )
        return format_html_join("", '<a href="{}">{}</a>', pages) or EMPTY

    @admin.display(description="progress")
    def progress_bar(self, generation: Generation) -> str:
        return bar(generation.progress, 100, f"{generation.progress} %")

    @admin.display(description="attempts")
    def attempts_link(self, generation: Generation) -> str:
        return link(list_of(Attempt, "generation", generation.pk), generation.attempt_count)


def excerpt_of_last_answer() -> Subquery:
    """The beginning of the last raw answer of a generation's provider."""
    answer = Coalesce(KT("raw__body"), Cast("raw", TextField()))
    token = Cast("callback_token", TextField())
    hidden = Func(answer, token, Value(HIDDEN), function="replace", output_field=TextField())
    attempts = Attempt.objects.filter(generation=OuterRef("pk"), raw__isnull=False)
    return Subquery(attempts.order_by("-number").values(start=Left(hidden, EXCERPT_LENGTH))[:1])


def failed_lately() -> dict[str, int]:
    """How many generations failed in the last 24 hours, by class; those that none did are left out.

    Of each class no more are counted than a list shows.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT code, counted.count
            FROM unnest(%s::text[]) WITH ORDINALITY AS known(code, place)
            CROSS JOIN LATERAL (
                SELECT count(*) FROM (
                    SELECT FROM batches_generation
                    WHERE status = 'failed' AND error_code = known.code
                      AND finished_at > statement_timestamp() - interval '24 hours'
                    LIMIT %s
                ) lately
            ) counted
            WHERE counted.count > 0 ORDER BY place
            """,
            [list(ERROR_CODES), COUNT_MAX + 1],
        )
        counts = dict(cursor.fetchall())
    return {
        code: AtLeast(COUNT_MAX) if count > COUNT_MAX else count for code, count in counts.items()
    }


class DeadLetterAdmin(GenerationAdmin):
    """A second list of generations, of those that failed: what to do about it is for somebody.

    Not registered, since it has no model of its own: it is one of the pages of `GenerationAdmin`.
    """

    commands = (RETRY_GENERATIONS,)
    selected_max = RETRIED_MAX
    change_list_template = "admin/batches/dead_letters.html"
    ordering = ("-finished_at", "-id")
    list_display = (
        "finished",
        "code",
        "error_message",
        "model",
        "owner_link",
        "batch_link",
        "attempts_link",
        "answer_start",
    )
    list_filter = (OwnerFilter, ErrorFilter, ModelFilter, AgeFilter)

    @admin.display(description="class")
    def code(self, generation: Generation) -> str:
        deleted = badge("deleted") if generation.deleted_at else ""
        return format_html("{} {}", generation.error_code, deleted)

    @admin.display(description="provider's last answer")
    def answer_start(self, generation: Generation) -> str:
        return generation.answer_start or EMPTY  # type: ignore[attr-defined]

    @admin.display(description="owner")
    def owner_link(self, row: Generation) -> str:
        query = urlencode({"owner": row.owner_id})
        return link(f"{reverse('admin:batches_dead_letters')}?{query}", row.owner.get_username())

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        return Generation.objects.filter(status=GenerationStatus.FAILED).annotate(
            answer_start=excerpt_of_last_answer()
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        found, may_repeat = super().get_search_results(request, queryset, search_term)
        if ErrorFilter.parameter_name not in request.GET and not found.query.is_empty():
            found = self.newest(found)
        return found, may_repeat

    def newest(self, queryset: QuerySet) -> QuerySet:
        """The first `COUNT_MAX` by their end: the index has them in that order by class only.

        So they are merged until there are enough, which tells how far back to look.
        """
        ends = queryset.order_by("-finished_at", "-pk").values_list("finished_at", "pk")
        # Each in order and with a limit, or else they would be read to their ends and sorted.
        classes = [ends.filter(error_code=code)[: COUNT_MAX + 1] for code in ERROR_CODES]
        merged = classes[0].union(*classes[1:], all=True).order_by("-finished_at", "-pk")
        queryset = queryset.filter(error_code__in=ERROR_CODES)
        if last := merged[COUNT_MAX : COUNT_MAX + 1]:
            queryset = queryset.filter(finished_at__gte=last[0][0])
        return queryset

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "POST" and "retry_all" in request.POST:
            return self.retry_all(request)
        context = {
            "title": "Dead letters",
            "counts": self.counts,
            "may_retry": self.has_operate_permission(request),
            "retried_max": RETRIED_MAX,
        }
        return super().changelist_view(request, context | (extra_context or {}))

    def counts(self) -> list[tuple[str, int, str]]:
        return [
            (code, count, urlencode({"error_code": code, "age": "24h"}))
            for code, count in failed_lately().items()
        ]

    def retry_all(self, request: HttpRequest) -> HttpResponse:
        """Ask whether all that the filters show is to be retried."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        try:
            shown = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(request.path)
        rows = list(shown.get_queryset(request).filter(deleted_at=None)[:RETRIED_MAX])
        if not rows:
            self.message_user(request, "There is nothing to retry.", messages.WARNING)
            return HttpResponseRedirect(request.get_full_path())
        number = f"{len(rows)} generations are retried, the newest of {shown.result_count}."
        warnings = [number, *charged_already(rows)]
        return self.confirmation(request, RETRY_GENERATIONS, rows, warnings)


@admin.register(Attempt)
class AttemptAdmin(AttemptColumns, OperatorAdmin):
    ordering = ("-id",)  # the order in which they were made, and an index
    list_display = (
        "id",
        "generation_link",
        "number",
        "provider",
        "provider_id",
        "status_badge",
        "error_class",
        "ran",
        "total",
        "cost",
        "created",
    )
    list_filter = (GenerationFilter,)
    list_select_related = False
    search_help_text = "Generation id or a provider's id"
    fields = ("generation", "number", *ATTEMPT_FIELDS)

    generation_link = linked("generation_id", Generation)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        # Large, and not in the list.
        return super().get_queryset(request).defer("raw", "outputs", "report", "settings", "input")

    def matches(self, term: str) -> Q:
        return by_uuid(term, "generation_id") | by_provider_id(term)


@admin.register(Image)
class ImageAdmin(OperatorAdmin):
    list_display = (
        "small",
        "short_id",
        "owner_link",
        "batch_link",
        "generation_link",
        "dimensions",
        "format",
        "size",
        "created",
    )
    list_filter = (OwnerFilter, ImageBatchFilter, GenerationFilter, "created_at")
    list_select_related = ("owner", "generation")
    search_help_text = "Image id, generation id or owner's username"
    fields = (
        "large",
        "id",
        "owner",
        "batch_link",
        "generation",
        "index",
        "dimensions",
        "format",
        "size",
        "sha256",
        "file_name",
        "thumbnail_name",
        "created",
    )

    batch_link = linked("generation__batch_id", Batch)
    generation_link = linked("generation_id", Generation)
    short_id = shown("id", short, "image")
    size = shown("size_bytes", filesizeformat, "size")
    # By name: the storage's own addresses lead past the checks of the API.
    file_name = shown("file", str)
    thumbnail_name = shown("thumbnail", str)

    def matches(self, term: str) -> Q:
        return by_uuid(term, "pk", "generation_id") | by_owner(term)

    @admin.display(description="preview")
    def small(self, image: Image) -> str:
        return thumbnail(image)

    @admin.display(description="preview")
    def large(self, image: Image) -> str:
        return link(signed_url("", image.pk, "file"), thumbnail(image, "preview"))

    @admin.display(description="dimensions")
    def dimensions(self, image: Image) -> str:
        return f"{image.width} x {image.height} px"


class LimitsAdmin(OperatorAdmin):
    """Rows of which an operator may set a few fields."""

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return admin.ModelAdmin.has_change_permission(self, request, obj)

    def save_changed(self, row: Lane | Pool, names: Iterable[str]) -> None:
        """Save these fields and no others: the counters have moved on since the row was read."""
        row.save(update_fields=names)
        wake.dispatch()  # there may be more room now


class LaneForm(forms.ModelForm):
    weight = forms.FloatField(
        min_value=0.01, max_value=100, help_text="Share of the slots, against 1 of the others."
    )


@admin.register(Lane)
class LaneAdmin(LimitsAdmin):
    form = LaneForm
    ordering = ("owner_id",)
    list_display = ("owner", "cap", "cap_is_own", "weight", "running", "queued", "generations")
    search_help_text = "Owner's username"
    fields = ("owner", "cap", "cap_is_own", "weight", "running", "queued", "vtime", "generations")
    readonly_fields = ("owner", "running", "queued", "vtime", "generations")

    generations = listed(Generation, "owner", "generations")

    def matches(self, term: str) -> Q:
        return by_owner(term)

    def save_model(
        self, request: HttpRequest, obj: Lane, form: forms.ModelForm, change: bool
    ) -> None:
        names = set(form.changed_data)
        if "cap" in names:
            obj.cap_is_own = True
            names.add("cap_is_own")
        self.save_changed(obj, names)


class PoolForm(forms.ModelForm):
    rate_per_s = forms.FloatField(
        min_value=0.001,
        max_value=10_000,
        required=False,
        label="Rate",
        help_text="New submissions per second. Empty: no limit.",
    )
    burst = forms.IntegerField(
        min_value=1, max_value=10_000, help_text="Submissions that may be made at once."
    )


@admin.register(Pool)
class PoolAdmin(LimitsAdmin):
    form = PoolForm
    ordering = ("name",)
    list_display = (
        "name",
        "state",
        "capacity",
        "running",
        "rate",
        "burst",
        "blocked",
        "failure_count",
        "stopped",
    )
    list_select_related = False
    search_fields = ()
    fields = (
        "name",
        "state",
        "stopped",
        "failure_count",
        "capacity",
        "running",
        "rate_per_s",
        "burst",
        "tokens",
        "refilled",
        "blocked_until",
        "vtime",
    )
    readonly_fields = (
        "name",
        "state",
        "stopped",
        "failure_count",
        "running",
        "tokens",
        "refilled",
        "vtime",
    )

    stopped = shown("stopped_by", str, "stopped by")
    rate = shown("rate_per_s", lambda rate: f"{rate:g} per second")
    refilled = shown("refilled_at", moment)
    blocked = shown("blocked_until", moment)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Pool]:
        is_blocked = ExpressionWrapper(Q(blocked_until__gt=Now()), output_field=BooleanField())
        rows: QuerySet[Pool] = Pool.objects.with_running().order_by("name")
        return rows.annotate(is_blocked=Coalesce(is_blocked, False))

    @admin.display(description="state")
    def state(self, pool: Pool) -> str:
        if pool.name == Pool.SYSTEM:
            return EMPTY
        is_blocked: bool = pool.is_blocked  # type: ignore[attr-defined]
        return badge(pools.state_of(pool, is_blocked=is_blocked))

    @admin.display(description="running")
    def running(self, pool: Pool) -> int:
        return pool.running  # type: ignore[attr-defined, no-any-return]

    def has_change_permission(self, request: HttpRequest, obj: Pool | None = None) -> bool:
        """That of the system follows its setting."""
        if obj is not None and obj.name == Pool.SYSTEM:
            return False
        return super().has_change_permission(request, obj)

    def save_model(
        self, request: HttpRequest, obj: Pool, form: forms.ModelForm, change: bool
    ) -> None:
        names = set(form.changed_data)
        if "burst" in names:
            obj.tokens = Least(F("tokens"), obj.burst)  # a bucket holds no more than fits
            names.add("tokens")
        self.save_changed(obj, names)


@admin.register(Lease)
class LeaseAdmin(OperatorAdmin):
    # There are no more leases than slots and downloads, so this order needs no index.
    ordering = ("created_at", "id")
    list_display = (
        "short_id",
        "generation_link",
        "owner_link",
        "pool",
        "holds_slot",
        "turn",
        "is_held",
        "crash_count",
        "age",
        "expires",
    )
    list_filter = (OwnerFilter,)
    list_select_related = ("owner", "pool")
    search_help_text = "Lease id, generation id or owner's username"
    fields = (
        "id",
        "generation",
        "owner",
        "pool",
        "holds_slot",
        "turn",
        "is_held",
        "crash_count",
        "age",
        "created",
        "expires",
    )

    generation_link = linked("generation_id", Generation)
    short_id = shown("id", short, "lease")
    expires = shown("expires_at", moment)

    def matches(self, term: str) -> Q:
        return by_uuid(term, "pk", "generation_id") | by_owner(term)

    @admin.display(description="age")
    def age(self, lease: Lease) -> str:
        return duration((timezone.now() - lease.created_at).total_seconds())


@admin.register(Alert)
class AlertAdmin(OperatorAdmin):
    commands = ALERT_COMMANDS
    # Open ones first; sorted are those alone that `get_search_results` leaves.
    ordering = (F("cleared_at").desc(nulls_first=True), "-last_seen_at", "-id")
    list_display = (
        "code_badge",
        "subject",
        "message",
        "count",
        "first_seen",
        "last_seen",
        "cleared",
        "cleared_by",
    )
    list_filter = (AlertStateFilter, AlertCodeFilter)
    list_select_related = ("cleared_by",)
    search_fields = ()
    fields = (
        "code_badge",
        "subject",
        "message",
        "count",
        "first_seen",
        "last_seen",
        "cleared",
        "cleared_by",
    )

    code_badge = shown("code", badge, "code")
    first_seen = shown("created_at", moment, "first seen")
    last_seen = shown("last_seen_at", moment, "last seen")
    cleared = shown("cleared_at", moment)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        """All that are open and the newest of all: as many as a list shows, by their indexes."""
        still_open = Alert.objects.open().order_by().values("pk")
        newest = Alert.objects.order_by("-last_seen_at", "-id").values("pk")[:COUNT_MAX]
        return queryset.filter(pk__in=still_open.union(newest)), False

    def why_not(self, command: Command, row: Alert | None) -> str:
        return "gone" if row is None else "cleared already"


# --- Every page ---------------------------------------------------------------------------------
#
# The site itself is Django's: a class of ours would have to be named in the settings.

_each_context, _get_app_list = admin.site.each_context, admin.site.get_app_list


def open_alerts(request: HttpRequest) -> list[Alert]:
    """Some of the open alerts, for whoever may see them; one more than are shown, if there are."""
    if not admin.site.get_model_admin(Alert).has_view_permission(request):
        return []
    return list(Alert.objects.open().order_by("code", "subject")[: BANNER_MAX + 1])


def each_context(request: Any) -> dict[str, Any]:
    # Looked up by the pages that show them, and by no other.
    alerts = partial(open_alerts, request)
    return {**_each_context(request), "open_alerts": alerts, "banner_max": BANNER_MAX}


def get_app_list(request: Any, app_label: str | None = None) -> list[Any]:
    """All pages with a list, the dead letters among them."""
    apps: list[Any] = _get_app_list(request, app_label)
    for app in apps:
        names = [model["object_name"] for model in app["models"]]
        if app["app_label"] == "batches" and "Generation" in names:
            url = reverse("admin:batches_dead_letters")
            page = {"name": "Dead letters", "object_name": "DeadLetter", "admin_url": url}
            app["models"].append({**page, "view_only": True, "perms": {}, "add_url": None})
            app["models"].sort(key=lambda model: model["name"])
    return apps


admin.site.each_context = each_context  # type: ignore[method-assign]
admin.site.get_app_list = get_app_list  # type: ignore[method-assign]
admin.site.index_template = "admin/batches/index.html"
