"""The log of what became of batches: one row for each transition, the source of all live news."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class EventKind(models.TextChoices):
    """`batch_progress`: a batch was made, moved or deleted. `batch_job_complete`: a generation
    has ended, and its batch has counted it."""

    BATCH_PROGRESS = "batch_progress"
    BATCH_JOB_COMPLETE = "batch_job_complete"


class Event(models.Model):
    """One transition, written in the transaction that makes it.

    `version` is the batch's, or that of a generation without one: of a batch, no two events have
    the same, and a later one has a higher. `status` is what the batch, or the generation that has
    ended, has come to. Ids are no foreign keys: the log outlives what it tells of.
    """

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="+",
        db_index=False,  # `event_of_owner` serves
    )
    batch_id = models.UUIDField(null=True, blank=True)
    generation_id = models.UUIDField(null=True, blank=True)
    kind = models.CharField(max_length=20, choices=EventKind)
    status = models.CharField(max_length=12)
    version = models.PositiveIntegerField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes = (
            models.Index(fields=["owner", "id"], name="event_of_owner"),
            models.Index(fields=["created_at"], name="event_age"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["batch_id", "version"],
                name="event_once",
                condition=Q(batch_id__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.batch_id or self.generation_id} {self.version}"
