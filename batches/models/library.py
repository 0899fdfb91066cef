"""What users keep to make batches from: templates and schedules."""

import uuid
from typing import Self

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from batches.models.work import Batch


class TemplateQuerySet(models.QuerySet["Template"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)


class Template(models.Model):
    """A batch to be made again and again, with placeholders in its prompts.

    `body` is the request for a batch, as it is taken by `POST batches/`, without `start_at`.
    `{name}` in a prompt or a negative prompt stands for a value that is given on use; `{{` and
    `}}` stand for braces.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="templates",
        db_index=False,  # `template_owner_recent` serves
    )
    name = models.CharField(max_length=200)
    description = models.CharField(max_length=1_000, blank=True)
    body = models.JSONField()
    placeholders = ArrayField(
        models.CharField(max_length=50), default=list, blank=True, help_text="In order of use."
    )
    defaults = models.JSONField(
        default=dict, blank=True, help_text="Placeholder -> the value where none is given."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now())

    objects = TemplateQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="template_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="template_recent"),
        )
        constraints = (models.UniqueConstraint(fields=["owner", "name"], name="template_name"),)

    def __str__(self) -> str:
        return self.name


class ScheduleQuerySet(models.QuerySet["Schedule"]):
    def owned_by(self, user_id: int) -> Self:
        return self.filter(owner_id=user_id)


class Schedule(models.Model):
    """A recurrence: when which batch is to be made.

    `rule` is an RRULE (RFC 5545, section 3.3.10) without its name, `starts_at` its DTSTART in
    `time_zone`. What is made is the `template` with `values` and `overrides`, or else `body`, a
    request for a batch. While it is active one run of it is `due`, unless the rule is at its end.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="schedules",
        db_index=False,  # `schedule_owner_recent` serves
    )
    name = models.CharField(max_length=200)
    rule = models.CharField(max_length=500)
    time_zone = models.CharField(max_length=60, default="UTC")
    starts_at = models.DateTimeField()
    template = models.ForeignKey(
        Template, on_delete=models.PROTECT, null=True, blank=True, related_name="schedules"
    )
    values = models.JSONField(default=dict, blank=True)
    overrides = models.JSONField(default=dict, blank=True)
    body = models.JSONField(null=True, blank=True)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now())

    objects = ScheduleQuerySet.as_manager()

    class Meta:
        indexes = (
            models.Index(fields=["owner", "-created_at", "-id"], name="schedule_owner_recent"),
            models.Index(fields=["-created_at", "-id"], name="schedule_recent"),
        )
        constraints = (
            models.CheckConstraint(
                name="schedule_makes_one_thing",
                condition=Q(template__isnull=False, body=None)
                | Q(template=None, body__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return self.name


class RunStatus(models.TextChoices):
    """`due` until its time has come and a batch was made (`started`), or could not be (`failed`);
    `skipped` when its schedule was changed or switched off before."""

    DUE = "due"
    STARTED = "started"
    FAILED = "failed"
    SKIPPED = "skipped"


class ScheduleRun(models.Model):
    """One due time of a schedule, and what became of it."""

    schedule = models.ForeignKey(
        Schedule,
        on_delete=models.CASCADE,
        related_name="runs",
        db_index=False,  # `schedule_run_once` serves
    )
    due_at = models.DateTimeField()
    status = models.CharField(max_length=10, choices=RunStatus, default=RunStatus.DUE)
    batch = models.OneToOneField(
        Batch, on_delete=models.SET_NULL, null=True, blank=True, related_name="schedule_run"
    )
    missed_count = models.PositiveIntegerField(
        default=0, help_text="Later due times that had passed too, and are made up for by this run."
    )
    error = models.JSONField(
        null=True, blank=True, help_text="Why no batch could be made: `{code, detail, errors}`."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = (
            models.Index(fields=["due_at"], name="schedule_run_due", condition=Q(status="due")),
            models.Index(fields=["schedule", "-created_at", "-id"], name="schedule_run_recent"),
        )
        constraints = (
            models.UniqueConstraint(fields=["schedule", "due_at"], name="schedule_run_once"),
            models.UniqueConstraint(
                fields=["schedule"], name="schedule_one_due", condition=Q(status="due")
            ),
        )

    def __str__(self) -> str:
        return f"{self.schedule_id} {self.due_at}"
