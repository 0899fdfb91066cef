"""The operators' pages: what was asked, what became of it, and the few numbers they may set.

Everything is read-only except the limits and shares of lanes and pools: statuses, counters and
leases are the product's to write. Tables grow to millions of rows, so nothing here counts or
sorts a whole one, and every search is a lookup in an index.
"""

import json
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.utils import flatten
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import F, Model, Prefetch, Q, QuerySet
from django.db.models.functions import Least
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from batches import wake
from batches.api.files import signed_url
from batches.models import (
    PRIORITY_MAX,
    PRIORITY_MIN,
    Attempt,
    AttemptOutcome,
    Batch,
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
EMPTY = "-"
GALLERY_SIZE = 30
INLINE_ATTEMPTS = 20

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


def pretty(value: Any) -> SafeString:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return format_html('<pre class="json">{}</pre>', text)


def short(row_id: uuid.UUID) -> str:
    return str(row_id)[:8]


def shown(field: str, show: Callable[[Any], str], label: str = "") -> Column:
    """A column with a field's value in readable form."""

    @admin.display(description=label or field.removesuffix("_at").replace("_", " "))
    def column(_: Any, row: Any) -> str:
        value = getattr(row, field)
        return EMPTY if value is None or value == "" else show(value)

    return column


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
    values = (*ErrorClass, AttemptOutcome.SUBMISSION_UNKNOWN.value)

    def queryset(self, request: HttpRequest, queryset: QuerySet) -> QuerySet:
        # Only failed rows have one, and those have an index.
        failed = queryset.filter(status=GenerationStatus.FAILED) if self.value() else queryset
        return super().queryset(request, failed)


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
    actions = None
    ordering: ClassVar[tuple[str, ...]] = ("-created_at", "-id")
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


@admin.register(Batch)
class BatchAdmin(OperatorAdmin):
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
        ("Times", {"fields": ("created", "started", "finished", "took")}),
        ("Generations", {"fields": ("generations", "images", "gallery")}),
        (
            "As it was asked",
            {"fields": ("model_asked", "priority", "style", "genre", "tags", "settings_json")},
        ),
    )

    status_badge = shown("status", badge)
    cost = shown("cost_usd", dollars, "cost")
    started = shown("started_at", moment)
    finished = shown("finished_at", moment)
    took = took
    settings_json = shown("settings", pretty)
    generations = listed(Generation, "batch", "generations")
    images = listed(Image, "batch", "images")

    def matches(self, term: str) -> Q:
        found = Attempt.objects.filter(by_provider_id(term))
        batch_ids = found.values_list("generation__batch_id", flat=True)
        return by_uuid(term, "pk") | by_owner(term) | Q(pk__in=list(batch_ids))

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
    raw_json = shown("raw", pretty, "provider's answer")


ATTEMPT_FIELDS = (
    ("provider", "model", "provider_id"),
    "status_badge",
    ("error_class", "provider_code", "error_message"),
    ("ran", "total", "cost"),
    ("created", "submitted", "finished"),
    "outputs_json",
    "raw_json",
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
    list_display = (
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
    list_filter = (OwnerFilter, BatchFilter, "status", ModelFilter, ErrorFilter, "created_at")
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
    status_badge = shown("status", badge)
    prompt_start = shown("prompt", lambda text: Truncator(text).chars(80), "prompt")
    cost = shown("cost_usd", dollars, "cost")
    not_before_at = shown("not_before", moment)
    started = shown("started_at", moment)
    downloading = shown("downloading_at", moment)
    finished = shown("finished_at", moment)
    took = took
    settings_json = shown("settings", pretty)
    metadata_json = shown("metadata", pretty)
    input_json = shown("input", pretty)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        return with_images(super().get_queryset(request))

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
        return super().get_queryset(request).defer("raw", "outputs")  # large, and not in the list

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
    list_display = ("name", "capacity", "running", "rate", "burst", "blocked")
    list_select_related = False
    search_fields = ()
    fields = (
        "name",
        "capacity",
        "running",
        "rate_per_s",
        "burst",
        "tokens",
        "refilled",
        "blocked_until",
        "vtime",
    )
    readonly_fields = ("name", "running", "tokens", "refilled", "vtime")

    rate = shown("rate_per_s", lambda rate: f"{rate:g} per second")
    refilled = shown("refilled_at", moment)
    blocked = shown("blocked_until", moment)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Pool]:
        pools: QuerySet[Pool] = Pool.objects.with_running().order_by("name")
        return pools

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
    # There are never more leases than slots, so this order needs no index.
    ordering = ("created_at", "id")
    list_display = ("short_id", "generation_link", "owner_link", "pool", "age", "expires")
    list_filter = (OwnerFilter,)
    list_select_related = ("owner", "pool")
    search_help_text = "Lease id, generation id or owner's username"
    fields = ("id", "generation", "owner", "pool", "age", "created", "expires")

    generation_link = linked("generation_id", Generation)
    short_id = shown("id", short, "lease")
    expires = shown("expires_at", moment)

    def matches(self, term: str) -> Q:
        return by_uuid(term, "pk", "generation_id") | by_owner(term)

    @admin.display(description="age")
    def age(self, lease: Lease) -> str:
        return duration((timezone.now() - lease.created_at).total_seconds())
