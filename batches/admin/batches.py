"""The pages about what users have asked for: batches, generations, attempts and images."""

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import flatten
from django.db.models import F, Prefetch, Q, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from batches.admin import lists, show
from batches.admin.commands import (
    BATCH_COMMANDS,
    GENERATION_COMMANDS,
    Command,
    CommandAdmin,
    Rows,
)
from batches.models import (
    GENERATION_RETRYABLE,
    Attempt,
    Batch,
    Generation,
    GenerationStatus,
    Image,
    Publication,
    Review,
)
from batches.signing import signed_url

GALLERY_SIZE = 30
INLINE_ATTEMPTS = 20


def with_images(generations: QuerySet[Generation]) -> QuerySet[Generation]:
    return generations.prefetch_related(
        Prefetch("images", queryset=Image.objects.order_by("index"))
    )


def linked_image(image: Image, css_class: str = "thumbnail") -> SafeString:
    return show.link(show.page_url(Image, image.pk), show.thumbnail(image, css_class))


def tile(generation: Generation) -> SafeString:
    """A generation of a gallery."""
    return format_html(
        '<a class="tile" href="{}">{}{} {}</a>',
        show.page_url(Generation, generation.pk),
        format_html_join("", "{}", ((show.thumbnail(image),) for image in generation.images.all())),
        generation.index,
        show.badge(generation.status),
    )


class LifecycleColumns:
    """What batches and generations have in common."""

    cost = show.column("cost_usd", show.dollars, "cost")
    started = show.column("started_at", show.moment)
    finished = show.column("finished_at", show.moment)
    cancel_requested = show.column("cancel_requested_at", show.moment)
    deleted = show.column("deleted_at", show.moment)
    settings_json = show.column("settings", show.pretty_json)

    @admin.display(description="status")
    def status_badge(self, row: Batch | Generation) -> str:
        """The status, and what is about to become of it."""
        badges = [row.status]
        if row.cancel_requested_at and row.finished_at is None:
            badges.append("cancelling")
        if row.deleted_at:
            badges.append("deleted")
        return format_html_join(" ", "{}", ((show.badge(one),) for one in badges))

    @admin.display(description="took")
    def took(self, row: Batch | Generation) -> str:
        """From the first start to the end, or until now."""
        if row.started_at is None:
            return show.EMPTY
        return show.duration(((row.finished_at or timezone.now()) - row.started_at).total_seconds())


class BatchAdmin(LifecycleColumns, CommandAdmin):
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
    list_filter = (lists.OwnerFilter, "status", lists.PriorityFilter, "created_at")
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

    generations = show.rows_link(Generation, "batch", "generations")
    images = show.rows_link(Image, "batch", "images")

    def matches(self, term: str) -> Q:
        found = Attempt.objects.filter(lists.by_provider_id(term))
        batch_ids = found.values_list("generation__batch_id", flat=True)
        return lists.by_uuid(term, "pk") | lists.by_owner(term) | Q(pk__in=list(batch_ids))

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
        return (
            f"{batch.name} ({show.short_id(batch.pk)})" if batch.name else show.short_id(batch.pk)
        )

    @admin.display(description="progress")
    def progress_bar(self, batch: Batch) -> str:
        text = f"{batch.completed_count} of {batch.total_count} completed"
        for count, what in ((batch.failed_count, "failed"), (batch.cancelled_count, "cancelled")):
            text += f", {count} {what}" if count else ""
        return show.bar(batch.ended_count, batch.total_count, text)

    @admin.display(description="model")
    def model_asked(self, batch: Batch) -> str:
        return batch.settings.get("model") or "default"

    @admin.display(description=f"first {GALLERY_SIZE}")
    def gallery(self, batch: Batch) -> str:
        first = with_images(batch.generations.order_by("index"))[:GALLERY_SIZE]
        tiles = format_html_join("", "{}", ((tile(generation),) for generation in first))
        return format_html('<div class="gallery">{}</div>', tiles)


class AttemptColumns:
    status_badge = show.column("outcome", show.badge)
    cost = show.column("cost_usd", show.dollars, "cost")
    ran = show.column("run_s", show.duration, "run time, as billed")
    total = show.column("total_s", show.duration, "total time")
    created = show.column("created_at", show.moment)
    submitted = show.column("submitted_at", show.moment)
    finished = show.column("finished_at", show.moment)
    outputs_json = show.column("outputs", show.pretty_json)
    settings_then = show.column("settings", show.pretty_json, "settings, changed since")
    input_then = show.column("input", show.pretty_json, "input, changed since")

    @admin.display(description="provider's answer")
    def raw_json(self, attempt: Attempt) -> str:
        if attempt.raw is None:
            return show.EMPTY
        # An answer may repeat the address that we gave for the report, and that is a secret.
        return show.pretty_json(attempt.raw, secret=attempt.callback_token)


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


class AttemptInline(AttemptColumns, lists.ReadOnly, admin.StackedInline):
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


class GenerationAdmin(LifecycleColumns, CommandAdmin):
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
        lists.OwnerFilter,
        lists.BatchFilter,
        "status",
        lists.ModelFilter,
        lists.ErrorFilter,
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

    batch_link = show.row_link("batch_id", Batch)
    short_id = show.column("id", show.short_id, "generation")
    prompt_start = show.column("prompt", lambda text: Truncator(text).chars(80), "prompt")
    not_before_at = show.column("not_before", show.moment)
    downloading = show.column("downloading_at", show.moment)
    metadata_json = show.column("metadata", show.pretty_json)
    input_json = show.column("input", show.pretty_json)

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
        found = Attempt.objects.filter(lists.by_provider_id(term)).values_list(
            "generation_id", flat=True
        )
        own = Q(custom_id=term) | Q(pk__in=list(found))
        return lists.by_uuid(term, "pk", "batch_id") | lists.by_owner(term) | own

    @admin.display(description="image")
    def preview(self, generation: Generation) -> str:
        images = generation.images.all()
        return linked_image(images[0]) if images else show.EMPTY

    @admin.display(description="images")
    def previews(self, generation: Generation) -> str:
        images = ((linked_image(image, "preview"),) for image in generation.images.all())
        return format_html_join("", "{}", images) or show.EMPTY

    @admin.display(description="progress")
    def progress_bar(self, generation: Generation) -> str:
        return show.bar(generation.progress, 100, f"{generation.progress} %")

    @admin.display(description="attempts")
    def attempts_link(self, generation: Generation) -> str:
        return show.link(show.list_url(Attempt, generation=generation.pk), generation.attempt_count)


class AttemptAdmin(AttemptColumns, lists.ReadOnlyAdmin):
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
    list_filter = (lists.GenerationFilter,)
    list_select_related = False
    search_help_text = "Generation id or a provider's id"
    fields = ("generation", "number", *ATTEMPT_FIELDS)

    generation_link = show.row_link("generation_id", Generation)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Attempt]:
        # Large, and not in the list.
        return super().get_queryset(request).defer("raw", "outputs", "report", "settings", "input")

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "generation_id") | lists.by_provider_id(term)


class ImageAdmin(lists.ReadOnlyAdmin):
    list_display: tuple[str, ...] = (
        "small",
        "short_id",
        "owner_link",
        "batch_link",
        "generation_link",
        "dimensions",
        "format",
        "size",
        "review_badge",
        "is_saved",
        "tag_names",
        "created",
    )
    list_filter: ClassVar[tuple[Any, ...]] = (
        lists.OwnerFilter,
        lists.BatchFilter,
        lists.GenerationFilter,
        "review_status",
        "created_at",
    )
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
        "review_badge",
        "reviewed",
        "reviews",
        "is_saved",
        "tag_names",
        "published",
        "created",
    )

    batch_link = show.row_link("batch_id", Batch)
    review_badge = show.column("review_status", show.badge, "review")
    reviewed = show.column("reviewed_at", show.moment)
    reviews = show.rows_link(Review, "image", "reviews")
    generation_link = show.row_link("generation_id", Generation)
    short_id = show.column("id", show.short_id, "image")
    size = show.column("size_bytes", filesizeformat, "size")
    # By name: the storage's own addresses lead past the checks of the API.
    file_name = show.column("file", str)
    thumbnail_name = show.column("thumbnail", str)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Image]:
        images: QuerySet[Image] = super().get_queryset(request)
        return images.defer("search")

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk", "generation_id") | lists.by_owner(term)

    @admin.display(description="tags")
    def tag_names(self, image: Image) -> str:
        return ", ".join(image.tags) or show.EMPTY

    @admin.display(description="publications")
    def published(self, image: Image) -> str:
        links = (
            (show.link(show.page_url(Publication, one.pk), one.channel), show.badge(one.status))
            for one in image.publications.order_by("channel")
        )
        return format_html_join(" ", "{} {}", links) or show.EMPTY

    @admin.display(description="preview")
    def small(self, image: Image) -> str:
        return show.thumbnail(image)

    @admin.display(description="preview")
    def large(self, image: Image) -> str:
        return show.link(signed_url("", image.pk, "file"), show.thumbnail(image, "preview"))

    @admin.display(description="dimensions")
    def dimensions(self, image: Image) -> str:
        return f"{image.width} x {image.height} px"
