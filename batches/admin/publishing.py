"""The pages about publishing: publications with their calls, accounts, and the log of reviews."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import flatten
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest

from batches import publications
from batches.admin import lists, show
from batches.admin.commands import Command, CommandAdmin, one_by_one
from batches.intake import Refused
from batches.models import (
    ChannelAccount,
    Image,
    Publication,
    PublicationAttempt,
    PublicationStatus,
    Review,
)

INLINE_ATTEMPTS = 20


class ImageFilter(lists.RowFilter):
    title = parameter_name = path = "image"
    model = Image


def linked_image(image_id: Any) -> str:
    """The thumbnail of an image that is not loaded, or what stands for one that is deleted."""
    if image_id is None:
        return show.EMPTY
    return show.link(show.page_url(Image, image_id), show.thumbnail(Image(pk=image_id)))


# --- Publications -------------------------------------------------------------------------------


def retry(publication: Publication) -> bool:
    try:
        return publications.retry_publication(publication=publication)
    except Refused:
        return False


PUBLICATION_COMMANDS = (
    Command(
        name="retry",
        label="Retry",
        done="retried",
        run=one_by_one(retry),
        fits=lambda publication: publication.status == PublicationStatus.PUBLISH_FAILED,
        tells=lambda _: ["They go on from where they were."],
    ),
)

ATTEMPT_FIELDS = (
    ("step", "status_badge"),
    ("error_class", "provider_code", "error_message"),
    ("created", "finished"),
    "raw_json",
)


class PublicationAttemptInline(lists.ReadOnly, admin.StackedInline):
    model = PublicationAttempt
    verbose_name_plural = f"last {INLINE_ATTEMPTS} calls"
    extra = 0
    ordering = ("-number",)
    fields = ATTEMPT_FIELDS
    readonly_fields = tuple(flatten(ATTEMPT_FIELDS))

    status_badge = show.column("outcome", show.badge)
    created = show.column("created_at", show.moment)
    finished = show.column("finished_at", show.moment)
    raw_json = show.column("raw", show.pretty_json, "channel's answer")

    def get_queryset(self, request: HttpRequest) -> QuerySet[PublicationAttempt]:
        before_last = F("publication__attempt_count") - INLINE_ATTEMPTS
        return super().get_queryset(request).filter(number__gt=before_last)


class PublicationAdmin(CommandAdmin):
    commands = PUBLICATION_COMMANDS
    inlines = (PublicationAttemptInline,)
    list_display = (
        "short_id",
        "small",
        "owner_link",
        "channel",
        "status_badge",
        "product_type",
        "title",
        "attempt_count",
        "error_code",
        "created",
        "finished",
    )
    list_filter = (lists.OwnerFilter, ImageFilter, "status", "created_at")
    search_help_text = "Publication id, image id or owner's username"
    fieldsets = (
        (None, {"fields": ("id", "small", "owner", "channel", "status_badge")}),
        (
            "Product",
            {"fields": ("product_type", "title", "description", "tag_names", "price_usd")},
        ),
        ("At the channel", {"fields": ("remote_ids_json", "remote_url")}),
        ("Error", {"fields": ("error_code", "error_message", "retry_count", "crash_count")}),
        ("Times", {"fields": ("created", "due", "published", "finished")}),
    )

    short_id = show.column("id", show.short_id, "publication")
    status_badge = show.column("status", show.badge)
    remote_ids_json = show.column("remote_ids", show.pretty_json, "ids there")
    due = show.column("due_at", show.moment)
    published = show.column("published_at", show.moment)
    finished = show.column("finished_at", show.moment)

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk", "image_id") | lists.by_owner(term)

    def why_not(self, command: Command, row: Publication | None) -> str:
        if row is None:
            return "gone"
        if row.status != PublicationStatus.PUBLISH_FAILED:
            return str(row.get_status_display())
        return "its image or its account is not fit for it any more"

    @admin.display(description="image")
    def small(self, publication: Publication) -> str:
        return linked_image(publication.image_id)

    @admin.display(description="tags")
    def tag_names(self, publication: Publication) -> str:
        return ", ".join(publication.tags) or show.EMPTY


# --- Accounts -----------------------------------------------------------------------------------


def delete(account: ChannelAccount) -> bool:
    try:
        publications.delete_account(account=account)
    except publications.AccountInUse:
        return False
    return True


def resume(account: ChannelAccount) -> bool:
    if account.stopped_by:
        publications.resume_account(account=account)
    return bool(account.stopped_by)


ACCOUNT_COMMANDS = (
    Command(
        name="resume",
        label="Resume",
        done="resumed",
        run=one_by_one(resume),
        fits=lambda account: bool(account.stopped_by),
        tells=lambda _: ["What waited for them goes on."],
    ),
    Command(
        name="delete",
        label="Delete",
        done="deleted",
        run=one_by_one(delete),
        fits=lambda _: True,
        asks=lambda _: [
            "The credentials are gone then. Publications stay; none can be made or retried before "
            "the owner gives the credentials anew. This cannot be undone."
        ],
    ),
)


class ChannelAccountAdmin(CommandAdmin):
    """Accounts without their credentials, which nobody is shown."""

    commands = ACCOUNT_COMMANDS
    ordering = ("owner_id", "channel")  # an index
    list_display = ("short_id", "owner_link", "channel", "state", "blocked", "created", "updated")
    list_filter = (lists.OwnerFilter,)
    search_help_text = "Account id, or owner's username"
    fields = (
        "id",
        "owner",
        "channel",
        "state",
        "stopped_by",
        "blocked",
        "options_json",
        "created",
        "updated",
    )

    short_id = show.column("id", show.short_id, "account")
    blocked = show.column("blocked_until", show.moment)
    updated = show.column("updated_at", show.moment)
    options_json = show.column("options", show.pretty_json)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ChannelAccount]:
        return super().get_queryset(request).defer("sealed_credentials")

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk") | lists.by_owner(term)

    def why_not(self, command: Command, row: ChannelAccount | None) -> str:
        if row is None:
            return "gone"
        return "not stopped" if command.name == "resume" else "publications are under way there"

    @admin.display(description="state")
    def state(self, account: ChannelAccount) -> str:
        return show.badge("stopped" if account.stopped_by else "ok")


# --- Reviews ------------------------------------------------------------------------------------


class ReviewAdmin(lists.ReadOnlyAdmin):
    ordering = ("-id",)  # the order in which they were made, and an index
    list_display = ("id", "small", "status_badge", "reviewer", "reason", "created")
    list_filter = (ImageFilter,)
    list_select_related = ("reviewer",)
    search_help_text = "Image id"
    fields = ("small", "status_badge", "reviewer", "reason", "created")

    status_badge = show.column("status", show.badge)

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "image_id")

    @admin.display(description="image")
    def small(self, review: Review) -> str:
        return linked_image(review.image_id)
