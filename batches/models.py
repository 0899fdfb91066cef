"""The rows that hold the truth: batches, generations, attempts, images, lanes, pools, leases.

Reads live here as QuerySet methods. Statuses are written by `batches.lifecycle` alone, leases
and lanes by `batches.scheduling` and `batches.lifecycle`.
"""

import json
import uuid
from dataclasses import dataclass
from typing import NamedTuple, Self

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.contrib.postgres.fields import ArrayField
from django.db import connection, models
from django.db.models import F, Q
from django.db.models.functions import Coalesce, JSONObject, Now

from generation.provider import ErrorClass


class GenerationStatus(models.TextChoices):
    """Where a generation stands.

        pending ──► queued ──► processing ──► downloading ──► completed
                      ▲            │               │
                      └────────────┴───────────────┘   retry, with `not_before`
        any non-terminal ──► failed | cancelled

    `queued` waits for a slot, `processing` holds one (a lease), `downloading` has given it back.
    """

    PENDING = "pending"
    QUEUED = "queued"
    PROCESSING = "processing"
    DOWNLOADING = "downloading"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class BatchStatus(models.TextChoices):
    """Where a batch stands.

        pending ──► processing ──► completed | partial | failed | cancelled

    `completed`: every generation completed; `partial`: some did; `failed`: none did;
    `cancelled`: stopped by its owner before all had ended.
    """

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


_G = GenerationStatus
GENERATION_TERMINAL = (_G.COMPLETED, _G.FAILED, _G.CANCELLED)
GENERATION_OPEN = (_G.PENDING, _G.QUEUED, _G.PROCESSING, _G.DOWNLOADING)
# TO -> the statuses it may be reached from.
GENERATION_FROM: dict[GenerationStatus, tuple[GenerationStatus, ...]] = {
    _G.QUEUED: (_G.PENDING, _G.PROCESSING, _G.DOWNLOADING),
    _G.PROCESSING: (_G.QUEUED,),
    _G.DOWNLOADING: (_G.PROCESSING,),
    _G.COMPLETED: (_G.DOWNLOADING,),
    _G.FAILED: GENERATION_OPEN,
    _G.CANCELLED: GENERATION_OPEN,
}

_B = BatchStatus
BATCH_TERMINAL = (_B.COMPLETED, _B.PARTIAL, _B.FAILED, _B.CANCELLED)
BATCH_OPEN = (_B.PENDING, _B.PROCESSING)
BATCH_FROM: dict[BatchStatus, tuple[BatchStatus, ...]] = {
    _B.PROCESSING: (_B.PENDING,),
    _B.COMPLETED: BATCH_OPEN,
    _B.PARTIAL: BATCH_OPEN,
    _B.FAILED: BATCH_OPEN,
    _B.CANCELLED: BATCH_OPEN,
}

PRIORITY_MIN, PRIORITY_MAX = 0, 9
PRIORITY_BATCH = 3
# Somebody is looking at the screen: a single image goes before the same user's batches.
PRIORITY_SINGLE = 6

ERROR_CODE_LENGTH = 40


# Of a batch: everything has ended.
NOTHING_OPEN = Q(total_count=F("completed_count") + F("failed_count") + F("cancelled_count"))


class BatchQuerySet(models.QuerySet["Batch"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)

    def ready_to_finalise(self) -> Self:
        """Batches with nothing open that nobody has finalised yet."""
        return self.filter(NOTHING_OPEN, finished_at=None)


class Batch(models.Model):
    """A list of generations that are submitted, followed and finished together."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        related_name="batches",
        db_index=False,  # `batch_owner_recent` serves
    )
    name = models.CharField(max_length=200, blank=True)
    status = models.CharField(max_length=12, choices=BatchStatus, default=BatchStatus.PENDING)
    priority = models.SmallIntegerField(default=PRIORITY_BATCH)
    settings = models.JSONField(default=dict, help_text="The shared settings as they were asked.")
    style = models.CharField(max_length=100, blank=True)
    genre = models.CharField(max_length=100, blank=True)
    tags = ArrayField(models.CharField(max_length=50), default=list, blank=True)
    total_count = models.PositiveIntegerField()
    completed_count = models.PositiveIntegerField(default=0)
    failed_count = models.PositiveIntegerField(default=0)
    cancelled_count = models.PositiveIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = BatchQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "batches"
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="batch_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="batch_recent"),
            models.Index(fields=["status", "-created_at", "-id"], name="batch_status_recent"),
            models.Index(
                fields=["id"],
                name="batch_to_finalise",
                condition=NOTHING_OPEN & Q(finished_at=None),
            ),
        )
        constraints = (
            models.CheckConstraint(
                name="batch_finished_iff_terminal",
                condition=Q(status__in=BATCH_TERMINAL, finished_at__isnull=False)
                | Q(status__in=BATCH_OPEN, finished_at=None),
            ),
            models.CheckConstraint(
                name="batch_counts_within_total",
                condition=Q(
                    total_count__gte=F("completed_count") + F("failed_count") + F("cancelled_count")
                ),
            ),
            models.CheckConstraint(name="batch_not_empty", condition=Q(total_count__gte=1)),
            models.CheckConstraint(
                name="batch_priority_in_range",
                condition=Q(priority__range=(PRIORITY_MIN, PRIORITY_MAX)),
            ),
        )

    def __str__(self) -> str:
        return self.name or str(self.id)

    @property
    def ended_count(self) -> int:
        return self.completed_count + self.failed_count + self.cancelled_count

    @property
    def progress(self) -> int:
        """Percent of generations that have ended, rounded down."""
        return 100 * self.ended_count // self.total_count


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a task knows of its generation.

    `generation` and `attempt` are partly loaded, see `at_work`; the attempt is that of the
    current admission, `None` before it is begun. Seconds are by the database's clock:
    `elapsed_s` since the generation first started, `attempted_s` since its attempt was begun,
    `submitted_s` since that was accepted.
    """

    generation: "Generation"
    attempt: "Attempt | None"
    lease_id: uuid.UUID | None
    elapsed_s: float
    submitted_s: float
    attempted_s: float


class GenerationQuerySet(models.QuerySet["Generation"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)

    def at_work(self, generation_id: str, status: GenerationStatus) -> AtWork | None:
        """A generation in that status with its attempt and lease.

        By hand, because every look at a provider begins with it: half of the work of the same
        query by the ORM would be building it.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT generation.id, owner_id, batch_id, model, provider, input::text, progress,
                       attempt_count, retry_count, generation.cost_usd, lease.id,
                       extract(epoch FROM now() - started_at),
                       attempt.id, attempt.provider_id, attempt.outputs::text,
                       COALESCE(extract(epoch FROM now() - submitted_at), 0),
                       COALESCE(extract(epoch FROM now() - attempt.created_at), 0)
                FROM batches_generation generation
                LEFT JOIN LATERAL (
                    SELECT id FROM batches_lease WHERE generation_id = generation.id
                ) lease ON true
                LEFT JOIN LATERAL (
                    SELECT id, provider_id, outputs, submitted_at, created_at
                    FROM batches_attempt
                    WHERE generation_id = generation.id AND number = attempt_count
                ) attempt ON true
                WHERE generation.id = %s AND status = %s
                """,
                [generation_id, status],
            )
            row = cursor.fetchone()
        if row is None:
            return None
        generation = Generation(
            id=row[0],
            owner_id=row[1],
            batch_id=row[2],
            model=row[3],
            provider=row[4],
            input=json.loads(row[5]),
            progress=row[6],
            attempt_count=row[7],
            retry_count=row[8],
            cost_usd=row[9],
            status=status,
        )
        attempt = row[12] and Attempt(
            id=row[12],
            generation=generation,
            provider_id=row[13],
            outputs=json.loads(row[14]),
        )
        return AtWork(
            generation=generation,
            attempt=attempt,
            lease_id=row[10],
            elapsed_s=float(row[11]),
            submitted_s=float(row[15]),
            attempted_s=float(row[16]),
        )

    def with_images(self) -> Self:
        """Adds `image_rows`, the images as dicts in order, in the same query."""
        return self.annotate(
            image_rows=ArraySubquery(
                Image.objects.filter(generation=models.OuterRef("pk"))
                .order_by("index")
                .values(
                    row=JSONObject(
                        **{
                            name: name
                            for name in (
                                "id",
                                "index",
                                "width",
                                "height",
                                "format",
                                "size_bytes",
                                "sha256",
                            )
                        }
                    )
                )
            )
        )


class Generation(models.Model):
    """One prompt that becomes one stored image, alone or within a batch."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        related_name="generations",
        db_index=False,  # `generation_owner_recent` serves
    )
    batch = models.ForeignKey(
        Batch,
        on_delete=models.CASCADE,
        related_name="generations",
        null=True,
        blank=True,
        db_index=False,  # `generation_place_in_batch` serves
    )
    index = models.PositiveIntegerField(default=0, help_text="Place within the batch, from 0.")
    status = models.CharField(
        max_length=12, choices=GenerationStatus, default=GenerationStatus.QUEUED
    )
    priority = models.SmallIntegerField(default=PRIORITY_SINGLE)

    name = models.CharField(max_length=200, blank=True)
    custom_id = models.CharField(max_length=200, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    prompt = models.TextField(help_text="As it was asked.")
    final_prompt = models.TextField(help_text="With style and genre, as it is sent.")
    negative_prompt = models.TextField(blank=True)
    seed = models.BigIntegerField(null=True, blank=True)
    model = models.CharField(max_length=200)
    settings = models.JSONField(default=dict, help_text="The settings as they were asked.")
    input = models.JSONField(default=dict, help_text="The model's own parameters, as sent.")
    provider = models.CharField(max_length=40, help_text="Also the name of its pool.")

    progress = models.PositiveSmallIntegerField(default=0)
    attempt_count = models.PositiveSmallIntegerField(
        default=0, help_text="Admissions; each may make one submission."
    )
    retry_count = models.PositiveSmallIntegerField(
        default=0, help_text="Attempts that failed and were followed by another."
    )
    deleted_image_count = models.PositiveSmallIntegerField(
        default=0, help_text="Images that its owner has deleted."
    )
    error_code = models.CharField(max_length=ERROR_CODE_LENGTH, blank=True)
    error_message = models.TextField(blank=True)
    cost_usd = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    version = models.PositiveIntegerField(default=1)

    created_at = models.DateTimeField(db_default=Now(), editable=False)
    not_before = models.DateTimeField(
        null=True, blank=True, help_text="Set while it may not be admitted before that time."
    )
    started_at = models.DateTimeField(null=True, blank=True)
    downloading_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = GenerationQuerySet.as_manager()

    class Meta:
        indexes = (
            # The line of one user: by priority, then first in first out.
            models.Index(
                fields=["owner", "-priority", "created_at", "index", "id"],
                name="generation_line",
                condition=Q(status="queued", not_before=None),
            ),
            models.Index(
                fields=["not_before"],
                name="generation_due",
                condition=Q(status="queued", not_before__isnull=False),
            ),
            models.Index(
                fields=["custom_id"], name="generation_custom_id", condition=Q(custom_id__gt="")
            ),
            models.Index(fields=["owner", "-created_at", "-id"], name="generation_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="generation_recent"),
            models.Index(fields=["status", "-created_at", "-id"], name="generation_status_recent"),
        )
        constraints = (
            models.UniqueConstraint(fields=["batch", "index"], name="generation_place_in_batch"),
            models.CheckConstraint(
                name="generation_finished_iff_terminal",
                condition=Q(status__in=GENERATION_TERMINAL, finished_at__isnull=False)
                | Q(status__in=GENERATION_OPEN, finished_at=None),
            ),
            models.CheckConstraint(
                name="generation_error_iff_failed",
                condition=Q(status="failed", error_code__gt="")
                | (~Q(status="failed") & Q(error_code="")),
            ),
            models.CheckConstraint(
                name="generation_waits_only_in_queue",
                condition=Q(not_before=None) | Q(status="queued"),
            ),
            models.CheckConstraint(
                name="generation_progress_is_percent", condition=Q(progress__lte=100)
            ),
            models.CheckConstraint(
                name="generation_priority_in_range",
                condition=Q(priority__range=(PRIORITY_MIN, PRIORITY_MAX)),
            ),
        )

    def __str__(self) -> str:
        return str(self.id)

    @property
    def is_terminal(self) -> bool:
        return self.status in GENERATION_TERMINAL


class AttemptOutcome(models.TextChoices):
    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    # The request may have reached the provider: it may run, and it may have been charged.
    SUBMISSION_UNKNOWN = "submission_unknown"


class AttemptQuerySet(models.QuerySet["Attempt"]):
    def recent_run_times(self, model: str, limit: int = 20) -> list[float]:
        """Seconds from acceptance to result of the model's latest successes, newest first."""
        return list(
            self.filter(model=model, total_s__isnull=False)
            .order_by("-finished_at")
            .values_list("total_s", flat=True)[:limit]
        )


class Attempt(models.Model):
    """One submission to a provider. The row is committed before the request is sent."""

    generation = models.ForeignKey(
        Generation,
        on_delete=models.CASCADE,
        related_name="attempts",
        db_index=False,  # `attempt_number` serves
    )
    number = models.PositiveSmallIntegerField(
        help_text="The `attempt_count` of the admission that it belongs to."
    )
    provider = models.CharField(max_length=40)
    model = models.CharField(max_length=200)
    provider_id = models.CharField(  # noqa: DJ001  (unique, so "none yet" must be null)
        max_length=100, null=True, blank=True, help_text="Empty until the provider has answered."
    )
    callback_token = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    outcome = models.CharField(max_length=20, choices=AttemptOutcome, default=AttemptOutcome.OPEN)
    outputs = models.JSONField(default=list, help_text="Output URLs in image order.")
    error_class = models.CharField(
        max_length=ERROR_CODE_LENGTH,
        blank=True,
        choices=[(error.value, error.value) for error in ErrorClass],
    )
    error_message = models.TextField(blank=True)
    provider_code = models.CharField(max_length=100, blank=True)
    raw = models.JSONField(null=True, blank=True, help_text="The provider's last answer.")
    run_s = models.FloatField(null=True, blank=True, help_text="Billed run time, seconds.")
    total_s = models.FloatField(
        null=True, blank=True, help_text="Seconds from acceptance to result, of successes."
    )
    cost_usd = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    submitted_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = AttemptQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(
                fields=["model", "-finished_at"],
                name="attempt_run_times",
                condition=Q(total_s__isnull=False),
            ),
        )
        constraints = (
            models.UniqueConstraint(fields=["generation", "number"], name="attempt_number"),
            models.UniqueConstraint(
                fields=["provider", "provider_id"],
                name="attempt_provider_id",
                condition=Q(provider_id__isnull=False),
            ),
            # At most one submission of a generation is under way.
            models.UniqueConstraint(
                fields=["generation"], name="attempt_one_open", condition=Q(outcome="open")
            ),
            models.CheckConstraint(
                name="attempt_finished_iff_ended",
                condition=Q(outcome="open", finished_at=None)
                | (~Q(outcome="open") & Q(finished_at__isnull=False)),
            ),
            models.CheckConstraint(
                name="attempt_submitted_iff_identified",
                condition=Q(provider_id=None, submitted_at=None)
                | Q(provider_id__isnull=False, submitted_at__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.generation_id} #{self.number}"


def image_key(image: "Image", filename: str) -> str:
    """owner/batch/generation/name: the same generation always writes the same keys."""
    generation = image.generation
    return f"{generation.owner_id}/{generation.batch_id or 'single'}/{generation.id}/{filename}"


class ImageQuerySet(models.QuerySet["Image"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)


class Image(models.Model):
    """One verified file in storage, with its thumbnail."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    generation = models.ForeignKey(
        Generation,
        on_delete=models.CASCADE,
        related_name="images",
        db_index=False,  # `image_place_in_generation` serves
    )
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        related_name="images",
        db_index=False,  # `image_owner_recent` serves
    )
    index = models.PositiveSmallIntegerField(default=0)
    file = models.FileField(upload_to=image_key, max_length=300)
    thumbnail = models.FileField(upload_to=image_key, max_length=300)
    format = models.CharField(max_length=10, help_text="As found in the bytes.")
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    size_bytes = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = ImageQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="image_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="image_recent"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["generation", "index"], name="image_place_in_generation"
            ),
            models.UniqueConstraint(fields=["file"], name="image_file"),
            models.CheckConstraint(
                name="image_has_size", condition=Q(width__gte=1, height__gte=1, size_bytes__gte=1)
            ),
        )

    def __str__(self) -> str:
        return f"{self.generation_id} {self.index}"


class PoolQuerySet(models.QuerySet["Pool"]):
    def with_running(self) -> Self:
        """Adds `running`: how many slots of each are taken."""
        leases = Lease.objects.order_by().annotate(all=models.Value(1)).values("all")
        total = leases.annotate(count=models.Count("*")).values("count")
        own = total.filter(pool=models.OuterRef("pk"))
        return self.annotate(
            running=Coalesce(
                models.Case(
                    models.When(name=Pool.SYSTEM, then=models.Subquery(total)),
                    default=models.Subquery(own),
                ),
                0,
            )
        )


class Pool(models.Model):
    """What is shared by all users: the system as a whole, and each provider.

    How many of its slots are taken is counted from the leases, under the lock that every
    admission takes on these rows: a counter here would be one row that all releases queue on.
    A provider's pool also has a token bucket for new submissions: `tokens` as of `refilled_at`,
    refilled by `rate_per_s` up to `burst`; no rate, no limit.
    """

    SYSTEM = "system"

    name = models.CharField(primary_key=True, max_length=40)
    capacity = models.PositiveIntegerField()
    rate_per_s = models.FloatField(null=True, blank=True)
    burst = models.PositiveIntegerField(default=1)
    tokens = models.FloatField(default=0)
    refilled_at = models.DateTimeField(db_default=Now())
    blocked_until = models.DateTimeField(null=True, blank=True)
    vtime = models.FloatField(default=0, help_text="Of the system: where the ring of lanes stands.")

    objects = PoolQuerySet.as_manager()

    class Meta:
        constraints = (
            models.CheckConstraint(
                name="pool_within_burst", condition=Q(tokens__gte=0, tokens__lte=F("burst"))
            ),
            models.CheckConstraint(
                name="pool_rate_positive", condition=Q(rate_per_s=None) | Q(rate_per_s__gt=0)
            ),
        )

    def __str__(self) -> str:
        return self.name


class LaneQuerySet(models.QuerySet["Lane"]):
    def enqueue(self, owner_id: int, count: int, *, default_cap: int) -> None:
        """Put `count` more generations of a user in line; the lane is made on first use.

        A lane that was idle joins where the ring stands now: idling earns no credit.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO batches_lane AS lane
                    (owner_id, cap, cap_is_own, weight, running, queued, vtime)
                VALUES (%(owner)s, %(cap)s, false, 1, 0, %(count)s, COALESCE(
                    (SELECT vtime FROM batches_pool WHERE name = %(system)s), 0))
                ON CONFLICT (owner_id) DO UPDATE SET
                    queued = lane.queued + EXCLUDED.queued,
                    vtime = CASE WHEN lane.queued = 0 AND lane.running = 0
                            THEN GREATEST(lane.vtime, EXCLUDED.vtime) ELSE lane.vtime END
                """,
                {"owner": owner_id, "cap": default_cap, "count": count, "system": Pool.SYSTEM},
            )

    def dequeue(self, owner_id: int, count: int) -> None:
        """Take generations out of line that will not be admitted."""
        self.filter(owner_id=owner_id).update(queued=F("queued") - count)


class Lane(models.Model):
    """One user's line and share of the slots.

    `queued` counts the owner's generations that may be admitted now, `running` the leases.
    `vtime` orders the lanes: each admission moves a lane back by 1 / `weight`.
    """

    owner = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="lane"
    )
    cap = models.PositiveIntegerField(help_text="Slots this user may hold at a time.")
    cap_is_own = models.BooleanField(
        default=False, help_text="Set: `cap` is this user's own and no longer follows the default."
    )
    weight = models.FloatField(default=1.0)
    running = models.PositiveIntegerField(default=0)
    queued = models.PositiveIntegerField(default=0)
    vtime = models.FloatField(default=0)

    objects = LaneQuerySet.as_manager()

    class Meta:
        indexes = (
            # To find the lanes whose cap does not follow the setting.
            models.Index(fields=["cap"], name="lane_default_cap", condition=Q(cap_is_own=False)),
            models.Index(
                fields=["vtime", "owner"],
                name="lane_ring",
                condition=Q(queued__gt=0, running__lt=F("cap")),
            ),
        )
        constraints = (
            models.CheckConstraint(name="lane_weight_positive", condition=Q(weight__gt=0)),
        )

    def __str__(self) -> str:
        return f"lane of {self.owner_id}"


class Release(NamedTuple):
    """`happened`: the slot was given back now. `is_wanted`: some lane could use it."""

    happened: bool
    is_wanted: bool


class LeaseQuerySet(models.QuerySet["Lease"]):
    def release(self, lease_id: uuid.UUID) -> Release:
        """Give a slot back; a second time changes nothing.

        One statement, so that the lease and the lane's counter cannot part.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH gone AS (
                    DELETE FROM batches_lease WHERE id = %s RETURNING owner_id
                ), lane AS (
                    UPDATE batches_lane SET running = running - 1
                    FROM gone WHERE batches_lane.owner_id = gone.owner_id
                    RETURNING queued
                )
                SELECT count(*) > 0, COALESCE(bool_or(queued > 0), false) OR EXISTS (
                    SELECT FROM batches_lane WHERE queued > 0 AND running < cap)
                FROM lane
                """,
                [lease_id],
            )
            return Release(*cursor.fetchone())


class Lease(models.Model):
    """The right of one generation to a slot. Deleting it is giving the slot back."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    generation = models.OneToOneField(Generation, on_delete=models.CASCADE, related_name="lease")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="leases")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField()

    objects = LeaseQuerySet.as_manager()

    class Meta:
        indexes = (models.Index(fields=["expires_at"], name="lease_expiry"),)

    def __str__(self) -> str:
        return str(self.id)
