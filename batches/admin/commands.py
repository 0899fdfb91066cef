"""What an operator may have done to rows: chosen on a list, or pressed on a row's own page."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import model_ngettext
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.text import Truncator

from batches import lifecycle, pools
from batches.admin import show
from batches.admin.lists import ReadOnlyAdmin
from batches.models import (
    BATCH_FROM,
    BATCH_OPEN,
    GENERATION_FROM,
    GENERATION_OPEN,
    GENERATION_RETRYABLE,
    AlertCode,
    AttemptOutcome,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Pool,
)

SELECTED_MAX = 100
NAMED_MAX = 100  # rows that a message or a confirmation names


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


# --- Obeying ------------------------------------------------------------------------------------


def name_of(row: Any) -> str:
    """What a message calls a row."""
    if isinstance(row, Batch) and row.name:
        return f"{Truncator(row.name).chars(40)} ({show.short_id(row.pk)})"
    return show.short_id(row.pk) if isinstance(row.pk, uuid.UUID) else str(row)


def listing(texts: Sequence[str]) -> str:
    left = len(texts) - NAMED_MAX
    return ", ".join(texts[:NAMED_MAX]) + (f" and {left} more" if left > 0 else "")


class CommandAdmin(ReadOnlyAdmin):
    """A list, and pages of its rows, that offer commands."""

    commands: ClassVar[tuple[Command, ...]]
    selected_max = SELECTED_MAX

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
                partial(type(self).list_action, command=command),
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

    def list_action(
        self, request: HttpRequest, queryset: QuerySet, *, command: Command
    ) -> HttpResponse | None:
        """Obey a command about rows of a list; `None` leads back to it."""
        rows = list(queryset.prefetch_related(None)[: self.selected_max + 1])
        if len(rows) > self.selected_max:
            text = f"At most {self.selected_max} can be taken at a time. Nothing was done."
            self.message_user(request, text, messages.ERROR)
            return None
        return self.ask_or_obey(request, command, rows)

    def act_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Obey a command about one row, given on its own page."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        row = self.get_object(request, object_id)
        if row is None:
            text = f"There is no {self.opts.verbose_name} {object_id[:40]!r}."
            self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(self.list_url())
        named = {command.name: command for command in self.commands}
        command = named.get(request.POST.get("action", ""))
        if command is not None and (question := self.ask_or_obey(request, command, [row])):
            return question
        is_there = self.model._default_manager.filter(pk=row.pk).exists()
        url = show.page_url(self.model, row.pk) if is_there else self.list_url()
        return HttpResponseRedirect(url)

    def ask_or_obey(
        self, request: HttpRequest, command: Command, rows: Rows
    ) -> HttpResponse | None:
        """The question to be confirmed; `None` when there is none, or it has been."""
        if (warnings := command.asks(rows)) and "post" not in request.POST:
            return self.confirmation(request, command, rows, warnings)
        self.obey(request, command, rows)
        return None

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
            "links": [
                show.link(show.page_url(self.model, row.pk), name_of(row))
                for row in rows[:NAMED_MAX]
            ],
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
        if done := [row for row in rows if row not in refused]:
            flag = DELETION if command.name == "delete" else CHANGE
            LogEntry.objects.log_actions(user_id, done, flag, f"{command.done.capitalize()}.")
            count = f"{len(done)} {model_ngettext(self.opts, len(done))}"
            text = " ".join([f"{count} {command.done}.", *command.tells(done)])
            self.message_user(request, text, messages.SUCCESS)
        if refused:
            now = self.model._default_manager.in_bulk([row.pk for row in refused])
            reasons = [
                f"{name_of(row)} ({self.why_not(command, now.get(row.pk))})" for row in refused
            ]
            text = f"Not {command.done}: {listing(reasons)}."
            self.message_user(request, text, messages.WARNING)

    def why_not(self, command: Command, row: Any) -> str:
        """Why a command could not be obeyed. `row` is as it is now, `None` when it is gone."""
        if row is None:
            return "gone"
        if row.deleted_at:
            return "deleted"
        if command.name == "delete":
            return "one of its images is being published"
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
