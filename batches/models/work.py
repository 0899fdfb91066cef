"""How work stands: batches, generations, attempts, images, lanes, pools, leases."""

import json
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple, Self

from django.conf import settings
from django.contrib.postgres.expressions import ArraySubquery
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.db import connection, models
from django.db.models import F, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, JSONObject, Now

from batches import database
from generation.provider import ErrorClass


class GenerationStatus(models.TextChoices):
    """Where a generation stands.

        pending ◄─► queued ──► processing ──► downloading ──► completed
                      ▲            │               │
                      └────────────┴───────────────┘   retry, with `not_before`
        any non-terminal ──► failed | cancelled ──► queued, when its owner asks for a retry

    `pending` is held back by its owner, `queued` waits for a slot, `processing` holds one,
    `downloading` has given it back.
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

        scheduled ──► pending | processing ──► completed | partial | failed | cancelled
                         ▲  paused  ▲             and from there ──► processing, when its owner
                         └────┴─────┘             asks for a retry

    `scheduled`: nothing of it is started before its `start_at`, nor while it is `paused`. It may
    be cancelled as well. `completed`: every generation completed; `partial`:
    some did; `failed`: none did; `cancelled`: stopped by its owner before all had ended.
    """

    SCHEDULED = "scheduled"
    PENDING = "pending"
    PROCESSING = "processing"
    PAUSED = "paused"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


_G = GenerationStatus
GENERATION_TERMINAL = (_G.COMPLETED, _G.FAILED, _G.CANCELLED)
GENERATION_OPEN = (_G.PENDING, _G.QUEUED, _G.PROCESSING, _G.DOWNLOADING)
# What its owner may have tried once more.
GENERATION_RETRYABLE = (_G.FAILED, _G.CANCELLED)
# TO -> the statuses it may be reached from by itself.
GENERATION_FROM: dict[GenerationStatus, tuple[GenerationStatus, ...]] = {
    _G.PENDING: (_G.QUEUED,),
    _G.QUEUED: (_G.PENDING, _G.PROCESSING, _G.DOWNLOADING),
    _G.PROCESSING: (_G.QUEUED,),
    _G.DOWNLOADING: (_G.PROCESSING,),
    _G.COMPLETED: (_G.DOWNLOADING,),
    _G.FAILED: GENERATION_OPEN,
    _G.CANCELLED: GENERATION_OPEN,
}

_B = BatchStatus
BATCH_TERMINAL = (_B.COMPLETED, _B.PARTIAL, _B.FAILED, _B.CANCELLED)
BATCH_OPEN = (_B.SCHEDULED, _B.PENDING, _B.PROCESSING, _B.PAUSED)
# Of which nothing may be started: what is open of it and not at work is `pending`.
BATCH_HELD = (_B.SCHEDULED, _B.PAUSED)
BATCH_FROM: dict[BatchStatus, tuple[BatchStatus, ...]] = {
    _B.PENDING: (_B.SCHEDULED, _B.PAUSED),
    _B.PROCESSING: (_B.PENDING, _B.PAUSED),
    _B.PAUSED: (_B.PENDING, _B.PROCESSING),
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


@dataclass(frozen=True, slots=True)
class PoolOutlook:
    """`blocked_s`: for how long nothing is admitted to it."""

    capacity: int
    is_stopped: bool
    failure_count: int
    blocked_s: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What decides, beside a batch's own rows, how soon it will have ended.

    `cap` and `running` are of its owner's lane; `ahead` are the owner's generations that go
    before those of the batch, at most `MAX_AHEAD`. `busy_lanes` are the users among whom the
    slots are shared.
    """

    MAX_AHEAD: ClassVar[int] = 1_000

    now: datetime
    cap: int
    running: int
    ahead: int
    busy_lanes: int
    pools: dict[str, PoolOutlook]

    @classmethod
    def of(cls, batch: "Batch") -> "Outlook | None":
        """The outlook of a batch that was read `with_outlook`."""
        row = getattr(batch, "outlook_row", None)
        return None if row is None else cls.read(row)

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Outlook":
        pools = {name: PoolOutlook(*pool) for name, pool in row["pools"].items()}
        return cls(**{**row, "now": datetime.fromisoformat(row["now"]), "pools": pools})


_OUTLOOK = """
    CASE WHEN batches_batch.finished_at IS NULL THEN (
        SELECT jsonb_build_object(
            'now', statement_timestamp(),
            'cap', COALESCE(lane.cap, %s),
            'running', COALESCE(lane.running, 0),
            'ahead', (
                SELECT count(*) FROM batches_pool pool CROSS JOIN LATERAL (
                    (SELECT FROM batches_generation
                     WHERE owner_id = batches_batch.owner_id AND provider = pool.name
                       AND status = 'queued' AND not_before IS NULL
                       AND priority > batches_batch.priority LIMIT %s)
                    UNION ALL
                    (SELECT FROM batches_generation
                     WHERE owner_id = batches_batch.owner_id AND provider = pool.name
                       AND status = 'queued' AND not_before IS NULL
                       AND priority = batches_batch.priority
                       AND created_at < batches_batch.created_at LIMIT %s)
                ) line),
            'busy_lanes', (
                SELECT count(DISTINCT owner_id) FROM (
                    SELECT owner_id FROM batches_lease WHERE holds_slot
                    UNION ALL
                    (SELECT owner_id FROM batches_lane
                     WHERE queued > 0 AND running < cap LIMIT 1000)
                ) busy),
            'pools', (
                SELECT COALESCE(jsonb_object_agg(name, jsonb_build_array(
                    capacity, stopped_by <> '', failure_count,
                    GREATEST(0, COALESCE(
                        extract(epoch FROM blocked_until - statement_timestamp()), 0)))), '{}')
                FROM batches_pool))
        FROM (SELECT) one
        LEFT JOIN batches_lane lane ON lane.owner_id = batches_batch.owner_id) END
"""


def _outlook_params() -> list[int]:
    return [settings.MAX_PARALLEL_PER_USER, Outlook.MAX_AHEAD, Outlook.MAX_AHEAD]


class BatchQuerySet(models.QuerySet["Batch"]):
    def owned_by(self, user_id: int) -> Self:
        """What a user has and has not deleted."""
        return self.filter(owner_id=user_id, deleted_at=None)

    def ready_to_finalise(self) -> Self:
        """Batches with nothing open that nobody has finalised yet."""
        return self.filter(NOTHING_OPEN, finished_at=None)

    def with_outlook(self) -> Self:
        """Adds `outlook_row`, see `Outlook.of`, in the same query."""
        row = RawSQL(_OUTLOOK, _outlook_params(), output_field=models.JSONField())
        return self.annotate(outlook_row=row)

    def outlook_for(self, owner_id: int, priority: int) -> Outlook:
        """What the outlook of a batch would be, were it submitted now."""
        unsaved = """
            (SELECT %s::bigint AS owner_id, %s::smallint AS priority,
                    statement_timestamp() AS created_at, NULL AS finished_at)
        """
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT ({_OUTLOOK})::text FROM {unsaved} batches_batch",
                [*_outlook_params(), owner_id, priority],
            )
            (row,) = cursor.fetchone()
        return Outlook.read(json.loads(row))


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
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(
        null=True, blank=True, help_text="Set: gone for its owner, and soon altogether."
    )
    start_at = models.DateTimeField(
        null=True, blank=True, help_text="Nothing of it is started before that time."
    )
    template = models.ForeignKey(
        "Template",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="batches",
        help_text="What it was made from.",
    )
    has_chord = models.BooleanField(
        default=True,
        db_default=True,
        help_text="Unset: some member ended, or was tried again, outside of its chain, so that "
        "the chord cannot end the batch; its last member does.",
    )

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
            models.Index(
                fields=["id"], name="batch_deleted", condition=Q(deleted_at__isnull=False)
            ),
            models.Index(fields=["id"], name="batch_open", condition=Q(finished_at=None)),
            models.Index(fields=["start_at"], name="batch_due", condition=Q(status="scheduled")),
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
            models.CheckConstraint(
                name="batch_scheduled_for_a_time",
                condition=~Q(status="scheduled") | Q(start_at__isnull=False),
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
class Member:
    """One admitted generation on its way through the canvas: what a message is made of.

    `turn` is the lease's fencing token, see `Lease`. `has_chord` tells whether its batch is ended
    by a chord; `chord_size` is set for the first of that chord: how many members it has.
    """

    generation_id: uuid.UUID
    lease_id: uuid.UUID
    turn: int
    batch_id: uuid.UUID | None
    index: int
    has_chord: bool
    chord_size: int | None = None


@dataclass(frozen=True, slots=True)
class AtWork:
    """What a delivery knows of its generation, once it has taken its turn.

    `generation` and `attempt` are partly loaded, see `take_turn`; the attempt is that of the
    current admission, `None` before it is begun. Seconds are by the database's clock:
    `elapsed_s` that the generation has been worked on, over all its admissions; `attempted_s`
    since its attempt was begun, `submitted_s` since that was accepted. `taken_at_s` is when the
    turn was taken, by `time.monotonic`. `provider_failures`: how often in a row its provider was
    not there.
    """

    generation: "Generation"
    attempt: "Attempt | None"
    lease_id: uuid.UUID
    turn: int
    elapsed_s: float
    submitted_s: float
    attempted_s: float
    taken_at_s: float
    provider_failures: int


class Standing(NamedTuple):
    """Where a generation stands, for a delivery whose turn it is not."""

    status: str
    lease_id: uuid.UUID | None
    turn: int | None


class GenerationQuerySet(models.QuerySet["Generation"]):
    def owned_by(self, user_id: int) -> Self:
        """What a user has and has not deleted."""
        return self.filter(owner_id=user_id, deleted_at=None)

    def take_turn(
        self, generation_id: str, lease_id: str, turn: int | None, *, holds_slot: bool
    ) -> AtWork | None:
        """Claim the lease for one delivery, and read what that has to work on.

        `None` when it is not, or no longer, this delivery's turn. `turn` is `None` in messages of
        before there were turns. By hand, because every look at a provider begins with it: half of
        the work of the same query by the ORM would be building it.
        """
        taken_at_s = time.monotonic()
        with connection.cursor() as cursor:
            database.execute(
                cursor,
                """
                WITH claimed AS (
                    UPDATE batches_lease
                    SET turn = turn + 1, is_held = true,
                        expires_at = statement_timestamp() + make_interval(secs => %s)
                    WHERE id = %s AND generation_id = %s AND turn = COALESCE(%s, turn)
                      AND holds_slot = %s
                    RETURNING id, generation_id, turn, created_at
                )
                SELECT generation.id, owner_id, batch_id, model, generation.provider, input::text,
                       progress, attempt_count, retry_count, generation.cost_usd,
                       generation.status, cancel_requested_at, generation.kind, output_count,
                       fallbacks::text,
                       active_s + extract(epoch FROM statement_timestamp() - claimed.created_at),
                       attempt.id, attempt.provider_id, attempt.outputs::text,
                       attempt.report::text, attempt.error_class, attempt.callback_token,
                       attempt.created_at,
                       COALESCE(extract(epoch FROM statement_timestamp() - submitted_at), 0),
                       COALESCE(extract(epoch FROM statement_timestamp() - attempt.created_at), 0),
                       claimed.id, claimed.turn, COALESCE(pool.failure_count, 0),
                       (generation.settings->'resize')::text
                FROM claimed
                JOIN batches_generation generation ON generation.id = claimed.generation_id
                LEFT JOIN batches_pool pool ON pool.name = generation.provider
                LEFT JOIN LATERAL (
                    SELECT id, provider_id, outputs, report, error_class, callback_token,
                           submitted_at, created_at
                    FROM batches_attempt
                    WHERE generation_id = generation.id AND number = attempt_count
                ) attempt ON true
                """,
                [settings.LEASE_SECONDS, lease_id, generation_id, turn, holds_slot],
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
            status=row[10],
            cancel_requested_at=row[11],
            kind=row[12],
            output_count=row[13],
            fallbacks=json.loads(row[14]),
            # All that a delivery needs of them; the rest is in `input`.
            settings={"resize": row[28] and json.loads(row[28])},
        )
        attempt = row[16] and Attempt(
            id=row[16],
            generation=generation,
            number=generation.attempt_count,
            provider=generation.provider,
            model=generation.model,
            provider_id=row[17],
            outputs=json.loads(row[18]),
            report=row[19] and json.loads(row[19]),
            error_class=row[20],
            callback_token=row[21],
            created_at=row[22],
        )
        return AtWork(
            generation=generation,
            attempt=attempt,
            elapsed_s=float(row[15]),
            submitted_s=float(row[23]),
            attempted_s=float(row[24]),
            lease_id=row[25],
            turn=row[26],
            taken_at_s=taken_at_s,
            provider_failures=row[27],
        )

    def standing(self, generation_id: str) -> Standing | None:
        row = (
            self.filter(pk=generation_id).values_list("status", "lease__pk", "lease__turn").first()
        )
        return row and Standing(*row)

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


class GenerationKind(models.TextChoices):
    """What a generation is made from."""

    GENERATE = "generate", "from text"
    DERIVE = "derive", "from one reference image"
    COMPOSE = "compose", "from several reference images"


class Generation(models.Model):
    """One submission's worth of work: a prompt that becomes one or several stored images."""

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

    kind = models.CharField(
        max_length=10,
        choices=GenerationKind,
        default=GenerationKind.GENERATE,
        db_default=GenerationKind.GENERATE,
    )
    name = models.CharField(max_length=200, blank=True)
    custom_id = models.CharField(max_length=200, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    prompt = models.TextField(help_text="As it was asked.")
    final_prompt = models.TextField(help_text="With style and genre, as it is sent.")
    negative_prompt = models.TextField(blank=True)
    style = models.CharField(max_length=100, blank=True, default="", db_default="")
    genre = models.CharField(max_length=100, blank=True, default="", db_default="")
    seed = models.BigIntegerField(null=True, blank=True)
    model = models.CharField(max_length=200)
    settings = models.JSONField(default=dict, help_text="The settings as they were asked.")
    input = models.JSONField(default=dict, help_text="The model's own parameters, as sent.")
    provider = models.CharField(max_length=40, help_text="Also the name of its pool.")
    fallbacks = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        blank=True,
        help_text="Other ways of making it, in order, for when nobody is there to submit it to: "
        "`{model, provider, input}`.",
    )
    output_count = models.PositiveSmallIntegerField(
        default=1, db_default=1, help_text="Images asked for."
    )

    progress = models.PositiveSmallIntegerField(default=0)
    attempt_count = models.PositiveIntegerField(
        default=0, help_text="Admissions; each may make one submission."
    )
    retry_count = models.PositiveSmallIntegerField(
        default=0, help_text="Attempts that failed and were followed by another."
    )
    deleted_image_count = models.PositiveSmallIntegerField(
        default=0, help_text="Images that its owner has deleted."
    )
    active_s = models.FloatField(
        default=0,
        db_default=0,
        help_text="Seconds that earlier admissions have worked on it; its deadline counts these.",
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
    cancel_requested_at = models.DateTimeField(
        null=True, blank=True, help_text="Set: whatever comes of it now, it ends cancelled."
    )
    deleted_at = models.DateTimeField(
        null=True, blank=True, help_text="Set: gone for its owner, and soon altogether."
    )

    objects = GenerationQuerySet.as_manager()

    class Meta:
        indexes = (
            # The lines of one user, one for each provider: by priority, then first in first out.
            models.Index(
                fields=["owner", "provider", "-priority", "created_at", "index", "id"],
                name="generation_lines",
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
            # The dead letters, by class.
            models.Index(
                fields=["error_code", "-finished_at", "-id"],
                name="generation_dead_letters",
                condition=Q(status="failed"),
            ),
            models.Index(
                fields=["id"], name="generation_deleted", condition=Q(deleted_at__isnull=False)
            ),
            # What need not wait for a provider that is away.
            models.Index(
                fields=["provider", "id"],
                name="generation_can_fall_back",
                condition=Q(status="queued") & ~Q(fallbacks=[]),
            ),
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
                condition=Q(not_before=None) | Q(status__in=("pending", "queued")),
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
    def known_ids(self, provider: str, ids: Collection[str]) -> list[str]:
        """Those of a provider's ids that are some attempt's."""
        known = self.filter(provider=provider, provider_id__in=ids)
        return [str(one) for one in known.values_list("provider_id", flat=True)]

    def has_rivals(
        self,
        attempt: "Attempt",
        sent: dict[str, Any],
        since: datetime,
        within_s: float,
        *,
        or_lost: bool,
    ) -> bool:
        """Whether the same input was submitted by others whose answer is still to come.

        `or_lost`: or will never come, be they given up or not.
        """
        outcomes = [AttemptOutcome.OPEN, AttemptOutcome.SUBMISSION_UNKNOWN]
        rivals = self.filter(
            outcome__in=outcomes if or_lost else outcomes[:1],
            provider=attempt.provider,
            model=attempt.model,
            provider_id=None,
            created_at__gte=since,
            generation__input=sent,
        )
        if not or_lost:
            begun = Now() - timedelta(seconds=within_s)
            rivals = rivals.filter(error_class="").filter(created_at__gte=begun)
        return rivals.exclude(pk=attempt.pk).exists()

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
    number = models.PositiveIntegerField(
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
    report = models.JSONField(
        null=True, blank=True, help_text="The end of the work, as the provider's webhook told it."
    )
    settings = models.JSONField(
        null=True,
        blank=True,
        help_text="As they were asked then, where the generation's have been changed since.",
    )
    input = models.JSONField(
        null=True,
        blank=True,
        help_text="As it was sent then, where the generation's has been changed since.",
    )
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


def image_folder(generation: Generation) -> str:
    return f"{generation.owner_id}/{generation.batch_id or 'single'}/{generation.id}"


def image_key(image: "Image", filename: str) -> str:
    """owner/batch/generation/name: the same attempt always writes the same keys."""
    return f"{image_folder(image.generation)}/{filename}"


class ReviewStatus(models.TextChoices):
    """What its owner thinks of an image. Each may become any other."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"


TAG_LENGTH, TAGS_MAX = 50, 20


def search_sql(*, prompt: str, owner_id: str, tags: str) -> str:
    """What `Image.search` holds: the words of its prompt, its owner and its tags, of expressions.

    So one index finds the images of one owner that have all of what is asked for.
    """
    return f"""
        to_tsvector('english', {prompt}) || array_to_tsvector(
            'owner:' || {owner_id} || ARRAY(SELECT 'tag:' || tag FROM unnest({tags}) AS tag))"""


class ImageQuerySet(models.QuerySet["Image"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)

    def describe(self, limit: int) -> int:
        """Fill in what images of before there was a gallery lack; how many."""
        search = search_sql(prompt="prompt", owner_id="image.owner_id", tags="tags")
        with connection.cursor() as cursor:
            cursor.execute(
                f"""
                UPDATE batches_image image
                SET batch_id = generation.batch_id, model = generation.model, search = {search}
                FROM batches_generation generation
                WHERE generation.id = generation_id AND image.id IN (
                    SELECT id FROM batches_image WHERE search IS NULL LIMIT %s
                    FOR UPDATE SKIP LOCKED)
                """,
                [limit],
            )
            return int(cursor.rowcount)


class Image(models.Model):
    """One verified file in storage, with its thumbnail and its preview.

    `batch`, `model` and `search` repeat what its generation says, for the gallery's indexes.
    """

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
    batch = models.ForeignKey(
        Batch,
        on_delete=models.CASCADE,
        related_name="images",
        null=True,
        blank=True,
        db_index=False,  # `image_batch_recent` serves
    )
    model = models.CharField(max_length=200, blank=True, default="", db_default="")
    search = SearchVectorField(null=True, blank=True, editable=False)
    index = models.PositiveSmallIntegerField(default=0)
    file = models.FileField(upload_to=image_key, max_length=300)
    thumbnail = models.FileField(upload_to=image_key, max_length=300)
    preview = models.FileField(
        upload_to=image_key,
        max_length=300,
        blank=True,
        db_default="",
        help_text="Empty for images of before there were previews.",
    )
    format = models.CharField(max_length=10, help_text="As found in the bytes.")
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    made_width = models.PositiveIntegerField(
        null=True, blank=True, help_text="As the model made it, where it was resized."
    )
    made_height = models.PositiveIntegerField(null=True, blank=True)
    size_bytes = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)
    is_saved = models.BooleanField(default=False, db_default=False)
    tags = ArrayField(
        models.CharField(max_length=TAG_LENGTH),
        default=list,
        db_default=models.Value([], ArrayField(models.CharField(max_length=TAG_LENGTH))),
        blank=True,
    )
    review_status = models.CharField(
        max_length=10,
        choices=ReviewStatus,
        default=ReviewStatus.PENDING,
        db_default=ReviewStatus.PENDING,
    )
    reviewed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = ImageQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="image_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="image_recent"),
            # The gallery's filters, each in the gallery's order.
            models.Index(fields=["batch", "-created_at", "-id"], name="image_batch_recent"),
            models.Index(
                fields=["owner", "review_status", "-created_at", "-id"], name="image_review"
            ),
            models.Index(fields=["owner", "is_saved", "-created_at", "-id"], name="image_saved"),
            models.Index(fields=["owner", "model", "-created_at", "-id"], name="image_model"),
            models.Index(fields=["owner", "format", "-created_at", "-id"], name="image_format"),
            GinIndex(fields=["search"], name="image_search", gin_pending_list_limit=512),
            models.Index(fields=["id"], name="image_undescribed", condition=Q(search=None)),
            # The operators' review queue.
            models.Index(
                fields=["review_status", "-created_at", "-id"], name="image_review_recent"
            ),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["generation", "index"], name="image_place_in_generation"
            ),
            models.UniqueConstraint(fields=["file"], name="image_file"),
            models.CheckConstraint(
                name="image_has_size", condition=Q(width__gte=1, height__gte=1, size_bytes__gte=1)
            ),
            models.CheckConstraint(
                name="image_reviewed_at_a_time",
                condition=Q(review_status="pending") | Q(reviewed_at__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.generation_id} {self.index}"


class Review(models.Model):
    """One decision about an image: who, when and why."""

    image = models.ForeignKey(
        Image,
        on_delete=models.CASCADE,
        related_name="reviews",
        db_index=False,  # `review_of_image` serves
    )
    reviewer = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        related_name="+",
        db_index=False,
    )
    status = models.CharField(max_length=10, choices=ReviewStatus)
    reason = models.CharField(max_length=500, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes = (models.Index(fields=["image", "-created_at", "-id"], name="review_of_image"),)

    def __str__(self) -> str:
        return f"{self.image_id} {self.status}"


def reference_folder(owner_id: int, reference_id: uuid.UUID) -> str:
    return f"{owner_id}/references/{reference_id}"


def reference_key(reference: "Reference", filename: str) -> str:
    return f"{reference_folder(reference.owner_id, reference.pk)}/{filename}"


class ReferenceQuerySet(models.QuerySet["Reference"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)


class Reference(models.Model):
    """A verified picture that others are to be made from."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.PROTECT,
        related_name="references",
        db_index=False,  # `reference_owner_recent` serves
    )
    file = models.FileField(upload_to=reference_key, max_length=300)
    thumbnail = models.FileField(upload_to=reference_key, max_length=300)
    format = models.CharField(max_length=10, help_text="As found in the bytes.")
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()
    size_bytes = models.PositiveBigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = ReferenceQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="reference_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="reference_recent"),
        )
        constraints = (
            # The same bytes are kept once.
            models.UniqueConstraint(fields=["owner", "sha256"], name="reference_content"),
            models.CheckConstraint(
                name="reference_has_size",
                condition=Q(width__gte=1, height__gte=1, size_bytes__gte=1),
            ),
        )

    def __str__(self) -> str:
        return str(self.id)


class GenerationReference(models.Model):
    """Which pictures a generation is made from, in order."""

    generation = models.ForeignKey(
        Generation,
        on_delete=models.CASCADE,
        related_name="references",
        db_index=False,  # `generation_reference_place` serves
    )
    reference = models.ForeignKey(
        Reference,
        on_delete=models.PROTECT,  # a generation may be tried again at any time
        related_name="generations",
    )
    position = models.PositiveSmallIntegerField()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["generation", "position"], name="generation_reference_place"
            ),
        )

    def __str__(self) -> str:
        return f"{self.generation_id} from {self.reference_id}"


class CatalogueModel(models.Model):
    """One model on offer: what the data file says of it, and what the operator says otherwise."""

    id = models.CharField(primary_key=True, max_length=200)
    provider = models.CharField(max_length=40)
    # Text: in the layout of the data file, order has a meaning, which jsonb does not keep.
    definition = models.TextField(
        help_text="JSON as in the data file; loaded anew with it, unless it is your own."
    )
    is_custom = models.BooleanField(
        default=False, help_text="Your own: no load of the data file changes or removes it."
    )
    enabled = models.BooleanField(default=True, help_text="Unset: nothing new can be asked of it.")
    price_usd_per_image = models.DecimalField(
        max_digits=12, decimal_places=6, null=True, blank=True, help_text="Empty: as defined."
    )
    price_usd_per_second = models.DecimalField(
        max_digits=12, decimal_places=8, null=True, blank=True, help_text="Empty: as defined."
    )
    est_seconds = models.FloatField(
        null=True,
        blank=True,
        help_text="Usual run time until there are runs to go by. Empty: as defined.",
    )
    notes = models.TextField(blank=True)
    loaded_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "model"
        ordering = ("id",)
        constraints = (
            models.CheckConstraint(
                name="catalogue_model_figures_not_negative",
                condition=(Q(price_usd_per_image=None) | Q(price_usd_per_image__gte=0))
                & (Q(price_usd_per_second=None) | Q(price_usd_per_second__gte=0))
                & (Q(est_seconds=None) | Q(est_seconds__gt=0)),
            ),
        )

    def __str__(self) -> str:
        return self.id


class PoolQuerySet(models.QuerySet["Pool"]):
    def hold_admissions(self) -> None:
        """Let nobody be admitted until the end of the transaction.

        So whoever takes work out of line, or puts it back, and the admission never see half of
        what the other does.
        """
        with connection.cursor() as cursor:
            for _ in range(2):
                cursor.execute("SELECT FROM batches_pool WHERE name = %s FOR UPDATE", [Pool.SYSTEM])
                if cursor.rowcount:
                    return
                # Before the first admission of all.
                Pool.objects.bulk_create(
                    [Pool(name=Pool.SYSTEM, capacity=settings.MAX_PARALLEL_GLOBAL)],
                    ignore_conflicts=True,
                )

    def with_running(self) -> Self:
        """Adds `running`: how many slots of each are taken."""
        leases = (
            Lease.objects.filter(holds_slot=True)
            .order_by()
            .annotate(all=models.Value(1))
            .values("all")
        )
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
    failure_count = models.PositiveIntegerField(
        default=0,
        db_default=0,
        help_text="Submissions in a row that the provider was not there for.",
    )
    stopped_by = models.CharField(
        max_length=ERROR_CODE_LENGTH,
        blank=True,
        default="",
        db_default="",
        help_text="Set: nothing is submitted until an operator clears the alert of that name.",
    )

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
    """`happened`: a slot was given back now. `is_wanted`: some lane could use it."""

    happened: bool
    is_wanted: bool


# Parts of a WITH that begins with `moved` (id), the generations whose leases are meant. `gone`
# are the owners of leases that let go, `lane` their lanes, with the slots given back: in one
# statement, so that the leases and the lanes' counters cannot part.
FREE_SLOT = """
    , gone AS (
        UPDATE batches_lease lease
        SET holds_slot = false, is_held = false,
            expires_at = statement_timestamp() + make_interval(secs => %s)
        FROM moved WHERE lease.generation_id = moved.id AND holds_slot
        RETURNING lease.owner_id, true AS held_slot
    )"""
END_LEASE = """
    , gone AS (
        DELETE FROM batches_lease lease USING moved WHERE lease.generation_id = moved.id
        RETURNING lease.owner_id, holds_slot AS held_slot
    )"""
SLOTS_OF_GONE = """
    , lane AS (
        UPDATE batches_lane SET running = running - 1
        FROM gone WHERE batches_lane.owner_id = gone.owner_id AND gone.held_slot
        RETURNING queued
    )"""
# Whether some lane could use what was given back.
IS_SLOT_WANTED = """
    (SELECT count(*) > 0 AND (COALESCE(bool_or(queued > 0), false) OR EXISTS (
        SELECT FROM batches_lane WHERE queued > 0 AND running < cap)) FROM lane)"""


class LeaseQuerySet(models.QuerySet["Lease"]):
    def members(self, generation_ids: Collection[uuid.UUID]) -> list[Member]:
        """What messages for these generations are made of now."""
        rows = self.filter(generation__in=generation_ids).values_list(
            "generation",
            "pk",
            "turn",
            "generation__batch",
            "generation__index",
            Coalesce("generation__batch__has_chord", models.Value(False)),
        )
        return [Member(*row) for row in rows]

    def end(self, generation_id: uuid.UUID) -> Release:
        """Delete the lease, and give the slot back if it still holds one.

        A second time changes nothing.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH moved AS (SELECT %s::uuid AS id) {END_LEASE} {SLOTS_OF_GONE}"
                f"SELECT (SELECT count(*) > 0 FROM lane), {IS_SLOT_WANTED}",
                [generation_id],
            )
            return Release(*cursor.fetchone())

    def renew(self, turns: dict[uuid.UUID, int]) -> None:
        """Prolong the leases of deliveries that are still at work; `turns` by lease."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                UPDATE batches_lease
                SET expires_at = statement_timestamp() + make_interval(secs => %s)
                FROM unnest(%s::uuid[], %s::int[]) AS held(id, turn)
                WHERE batches_lease.id = held.id AND batches_lease.turn = held.turn
                """,
                [settings.LEASE_SECONDS, list(turns), list(turns.values())],
            )

    def adopt(self, limit: int) -> int:
        """Give a lease to downloads that have none, so that the sweep takes them over.

        A worker of before there were turns gives the whole lease back with the slot.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO batches_lease
                    (id, generation_id, owner_id, pool_id, holds_slot, created_at, expires_at)
                SELECT gen_random_uuid(), id, owner_id, provider, false, statement_timestamp(),
                       statement_timestamp() + make_interval(secs => %s)
                FROM batches_generation generation
                WHERE status = 'downloading'
                  AND NOT EXISTS (SELECT FROM batches_lease WHERE generation_id = generation.id)
                LIMIT %s ON CONFLICT (generation_id) DO NOTHING
                """,
                [settings.LEASE_SECONDS, limit],
            )
            return int(cursor.rowcount)

    def take_over(self, limit: int) -> list["TakenOver"]:
        """Leases that have run out, each prolonged for the message that is now to be sent.

        One that was held by a delivery counts as a crash, and goes first. The others lost their
        message, or it waits in a long queue: then whichever comes first takes the turn. So that a
        long line of downloads does not grow by that, those are sent again ever more seldom.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH expired AS (
                    SELECT id, is_held FROM batches_lease
                    WHERE expires_at < statement_timestamp()
                    ORDER BY is_held DESC, holds_slot DESC, expires_at
                    LIMIT %s FOR UPDATE SKIP LOCKED
                ), taken AS (
                    UPDATE batches_lease lease
                    SET expires_at = statement_timestamp() + GREATEST(
                            make_interval(secs => %s),
                            CASE WHEN NOT expired.is_held AND NOT holds_slot THEN
                                LEAST(statement_timestamp() - created_at,
                                      make_interval(secs => 5 * %s)) END),
                        is_held = false, crash_count = crash_count + expired.is_held::int
                    FROM expired WHERE lease.id = expired.id
                    RETURNING lease.id, generation_id, turn, crash_count
                )
                SELECT generation_id, taken.id, turn, batch_id, index,
                       COALESCE(has_chord, false), crash_count, generation.status
                FROM taken
                JOIN batches_generation generation ON generation.id = generation_id
                LEFT JOIN batches_batch batch ON batch.id = batch_id
                """,
                [limit, settings.LEASE_SECONDS, settings.LEASE_SECONDS],
            )
            return [
                TakenOver(Member(*row[:6]), crash_count=row[6], status=row[7])
                for row in cursor.fetchall()
            ]


class TakenOver(NamedTuple):
    """A lease that had run out. `crash_count`: how many deliveries have died holding it."""

    member: Member
    crash_count: int
    status: str


class Lease(models.Model):
    """The right of one generation to be worked on, and to a slot until the provider is done.

    Deleting it gives back whatever it still holds. `turn` is a fencing token: a delivery begins
    by moving it on, and only the message that names the current one may; so of any number of
    copies of a message one is worked on, and none of an earlier lease. A delivery that dies, or a
    message that is lost, leaves a lease that runs out, and then a new message is sent.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    generation = models.OneToOneField(Generation, on_delete=models.CASCADE, related_name="lease")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="leases")
    holds_slot = models.BooleanField(default=True, db_default=True)
    turn = models.PositiveIntegerField(default=0, db_default=0)
    is_held = models.BooleanField(
        default=False, db_default=False, help_text="A delivery is at work on it."
    )
    crash_count = models.PositiveSmallIntegerField(
        default=0, db_default=0, help_text="Deliveries that ended without a word."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField()

    objects = LeaseQuerySet.as_manager()

    class Meta:
        indexes = (models.Index(fields=["expires_at"], name="lease_expiry"),)

    def __str__(self) -> str:
        return str(self.id)


class AlertCode(models.TextChoices):
    """What an operator is told of; what to do is in the README."""

    AUTH = ErrorClass.AUTH.value, "The provider refuses our credentials"
    INSUFFICIENT_CREDIT = ErrorClass.INSUFFICIENT_CREDIT.value, "The account has no credit left"
    CIRCUIT_OPEN = "circuit_open", "The provider is unavailable"
    POISON = "poison", "A generation keeps killing its worker"
    COUNTER_DRIFT = "counter_drift", "Counters did not equal their rows"


class AlertQuerySet(models.QuerySet["Alert"]):
    def open(self) -> Self:
        return self.filter(cleared_at=None)

    def raise_(self, code: AlertCode, subject: str, message: str) -> None:
        """Open an alert, or count it once more on the one that is open."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO batches_alert (code, subject, message, count, created_at, last_seen_at)
                VALUES (%s, %s, %s, 1, statement_timestamp(), statement_timestamp())
                ON CONFLICT (code, subject) WHERE cleared_at IS NULL DO UPDATE SET
                    count = batches_alert.count + 1, message = EXCLUDED.message,
                    last_seen_at = EXCLUDED.last_seen_at
                """,
                [code, subject, message],
            )


class Alert(models.Model):
    """Something an operator should know of, open until it is cleared."""

    code = models.CharField(max_length=ERROR_CODE_LENGTH, choices=AlertCode)
    subject = models.CharField(max_length=100, help_text="A provider, a generation or a user.")
    message = models.TextField()
    count = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    last_seen_at = models.DateTimeField(db_default=Now(), editable=False)
    cleared_at = models.DateTimeField(null=True, blank=True)
    cleared_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="Empty: it was over by itself.",
    )

    objects = AlertQuerySet.as_manager()

    class Meta:
        indexes = (models.Index(fields=["-last_seen_at", "-id"], name="alert_recent"),)
        constraints = (
            models.UniqueConstraint(
                fields=["code", "subject"], name="alert_one_open", condition=Q(cleared_at=None)
            ),
        )

    def __str__(self) -> str:
        return f"{self.code}: {self.subject}"


class Discarded(models.Model):
    """A folder of storage with files that no image needs, or may soon have some.

    Written in the transaction that makes it so; the files go after it, and again when a delivery
    that is still writing has surely ended.
    """

    folder = models.CharField(primary_key=True, max_length=300)
    due_at = models.DateTimeField()

    class Meta:
        verbose_name_plural = "discarded"
        indexes = (models.Index(fields=["due_at"], name="discarded_due"),)

    def __str__(self) -> str:
        return self.folder


class WebhookReceiptQuerySet(models.QuerySet["WebhookReceipt"]):
    def note(self, provider: str, webhook_id: str) -> bool:
        """Note a delivery; whether it is the first of that id."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO batches_webhookreceipt (provider, webhook_id, received_at)
                VALUES (%s, %s, statement_timestamp()) ON CONFLICT DO NOTHING
                """,
                [provider, webhook_id],
            )
            return bool(cursor.rowcount)


class WebhookReceipt(models.Model):
    """A provider's webhook that has had its effect: a replay has none."""

    provider = models.CharField(max_length=40)
    webhook_id = models.CharField(max_length=200)
    received_at = models.DateTimeField(db_default=Now(), editable=False)

    objects = WebhookReceiptQuerySet.as_manager()

    class Meta:
        indexes = (models.Index(fields=["received_at"], name="webhook_receipt_age"),)
        constraints = (
            models.UniqueConstraint(fields=["provider", "webhook_id"], name="webhook_receipt_once"),
        )

    def __str__(self) -> str:
        return self.webhook_id


class IdempotentRequest(models.Model):
    """The answer to a request that carried an `Idempotency-Key`, kept to be given again."""

    KEPT = timedelta(hours=24)

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, db_index=False)
    method = models.CharField(max_length=10)
    path = models.CharField(max_length=300)
    key = models.CharField(max_length=255)
    payload_sha256 = models.CharField(max_length=64)
    status = models.PositiveSmallIntegerField()
    location = models.CharField(max_length=500, blank=True)
    body = models.JSONField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes = (models.Index(fields=["created_at"], name="idempotent_request_age"),)
        constraints = (
            models.UniqueConstraint(
                fields=["owner", "method", "path", "key"], name="idempotent_request_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.key}"
