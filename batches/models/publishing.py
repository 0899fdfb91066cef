"""Where images are published, and what became of each."""

import uuid
from typing import Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from batches.models.work import ERROR_CODE_LENGTH, Image


class ChannelName(models.TextChoices):
    PRINTIFY = "printify", "Printify"
    SHOPIFY = "shopify", "Shopify"


class ChannelAccountQuerySet(models.QuerySet["ChannelAccount"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)


class ChannelAccount(models.Model):
    """A user's account at a channel: credentials, sealed, and how to publish there.

    The two token buckets hold what the channel's limits leave: calls of any kind, and
    publications.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="channel_accounts",
        db_index=False,  # `channel_account_once` serves
    )
    channel = models.CharField(max_length=20, choices=ChannelName)
    sealed_credentials = models.TextField(help_text="Encrypted, see `batches.sealing`.")
    options = models.JSONField(
        default=dict,
        blank=True,
        help_text="Shop and products, as the channel's adapter reads them.",
    )
    call_tokens = models.FloatField(default=0, db_default=0)
    publish_tokens = models.FloatField(default=0, db_default=0)
    refilled_at = models.DateTimeField(null=True, blank=True)
    blocked_until = models.DateTimeField(
        null=True, blank=True, help_text="Set while the channel takes nothing of this account."
    )
    stopped_by = models.CharField(
        max_length=ERROR_CODE_LENGTH,
        blank=True,
        default="",
        db_default="",
        help_text="Set: nothing is sent until the credentials are given anew.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now())

    objects = ChannelAccountQuerySet.as_manager()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["owner", "channel"], name="channel_account_once"),
        )

    def __str__(self) -> str:
        return f"{self.channel} of {self.owner_id}"


class PublicationStatus(models.TextChoices):
    """publishing ──► published | publish_failed ──► publishing, when its owner asks for it."""

    PUBLISHING = "publishing"
    PUBLISHED = "published"
    PUBLISH_FAILED = "publish_failed"


class PublicationQuerySet(models.QuerySet["Publication"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)


class Publication(models.Model):
    """One image as a product of one channel.

    While it is `publishing` it is worked on from `due_at` on by whoever holds the lease: a
    delivery begins by moving `turn` on where that is still the one its message names, and holds it
    until `held_until`.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        related_name="publications",
        db_index=False,  # `publication_owner_recent` serves
    )
    image = models.ForeignKey(
        Image,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="publications",
        db_index=False,  # `publication_once` serves
        help_text="Empty: deleted since.",
    )
    channel = models.CharField(max_length=20, choices=ChannelName)
    status = models.CharField(
        max_length=20, choices=PublicationStatus, default=PublicationStatus.PUBLISHING
    )
    product_type = models.CharField(max_length=50)
    title = models.CharField(max_length=200)
    description = models.TextField(blank=True)
    tags = ArrayField(models.CharField(max_length=50), default=list, blank=True)
    price_usd = models.DecimalField(
        max_digits=8, decimal_places=2, null=True, blank=True, help_text="Empty: the product's own."
    )
    remote_ids = models.JSONField(
        default=dict, blank=True, help_text="Name -> id at the channel, as far as it has come."
    )
    remote_url = models.URLField(max_length=500, blank=True)
    attempt_count = models.PositiveIntegerField(default=0, help_text="Calls that were begun.")
    retry_count = models.PositiveSmallIntegerField(
        default=0, help_text="Failures since the last step that succeeded."
    )
    error_code = models.CharField(max_length=ERROR_CODE_LENGTH, blank=True)
    error_message = models.TextField(blank=True)
    due_at = models.DateTimeField(
        db_default=Now(), help_text="When it is to be worked on next, while it is `publishing`."
    )
    turn = models.PositiveIntegerField(default=0)
    held_until = models.DateTimeField(null=True, blank=True)
    crash_count = models.PositiveSmallIntegerField(
        default=0, help_text="Deliveries that ended without a word."
    )
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    started_at = models.DateTimeField(
        db_default=Now(), help_text="When it was asked for last; its deadline counts from then."
    )
    published_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = PublicationQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="publication_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="publication_recent"),
            models.Index(fields=["status", "-created_at", "-id"], name="publication_status_recent"),
            models.Index(
                fields=["due_at"], name="publication_due", condition=Q(status="publishing")
            ),
        )
        constraints = (
            models.UniqueConstraint(fields=["image", "channel"], name="publication_once"),
            models.CheckConstraint(
                name="publication_finished_iff_ended",
                condition=Q(status="publishing", finished_at=None)
                | (~Q(status="publishing") & Q(finished_at__isnull=False)),
            ),
            models.CheckConstraint(
                name="publication_of_an_image",
                condition=~Q(status="publishing") | Q(image__isnull=False),
            ),
            models.CheckConstraint(
                name="publication_error_iff_failed",
                condition=Q(status="publish_failed", error_code__gt="")
                | (~Q(status="publish_failed") & Q(error_code="")),
            ),
        )

    def __str__(self) -> str:
        return f"{self.image_id} at {self.channel}"


class CallOutcome(models.TextChoices):
    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    # The call may have had its effect: it is looked up before it is made again.
    UNKNOWN = "unknown"


class PublicationAttempt(models.Model):
    """One call that changes something at a channel. Committed before the request is sent."""

    publication = models.ForeignKey(
        Publication,
        on_delete=models.CASCADE,
        related_name="attempts",
        db_index=False,  # `publication_attempt_number` serves
    )
    number = models.PositiveIntegerField()
    step = models.CharField(max_length=20)
    outcome = models.CharField(max_length=10, choices=CallOutcome, default=CallOutcome.OPEN)
    error_class = models.CharField(max_length=ERROR_CODE_LENGTH, blank=True)
    error_message = models.TextField(blank=True)
    provider_code = models.CharField(
        max_length=100,
        blank=True,
        default="",
        db_default="",
        help_text="The channel's own code of the error.",
    )
    raw = models.JSONField(null=True, blank=True, help_text="The channel's answer.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["publication", "number"], name="publication_attempt_number"
            ),
            models.UniqueConstraint(
                fields=["publication"], name="publication_one_open", condition=Q(outcome="open")
            ),
        )

    def __str__(self) -> str:
        return f"{self.publication_id} #{self.number}"
