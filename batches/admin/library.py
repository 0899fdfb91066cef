"""The pages about what users keep to make batches from: templates, schedules and their runs."""

from django.contrib import admin
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join

from batches import schedules
from batches.admin import lists, show
from batches.admin.commands import Command, CommandAdmin, one_by_one
from batches.intake import Refused
from batches.models import Batch, RunStatus, Schedule, ScheduleRun, Template

RUNS_SHOWN = 20


class TemplateFilter(lists.RowFilter):
    title = parameter_name = path = "template"
    model = Template


class ScheduleFilter(lists.RowFilter):
    title = parameter_name = path = "schedule"
    model = Schedule


class TemplateAdmin(lists.ReadOnlyAdmin):
    list_display = ("name", "short_id", "owner_link", "placeholder_names", "schedules", "created")
    list_filter = (lists.OwnerFilter, "created_at")
    search_help_text = "Template id, or owner's username"
    fields = (
        "id",
        "name",
        "owner",
        "description",
        "placeholder_names",
        "defaults_json",
        "body_json",
        "schedules",
        "created",
        "updated",
    )

    short_id = show.column("id", show.short_id, "template")
    updated = show.column("updated_at", show.moment)
    schedules = show.rows_link(Schedule, "template", "schedules")
    defaults_json = show.column("defaults", show.pretty_json)
    body_json = show.column("body", show.pretty_json, "batch")

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk") | lists.by_owner(term)

    @admin.display(description="placeholders")
    def placeholder_names(self, template: Template) -> str:
        return ", ".join(template.placeholders) or show.EMPTY


def set_active(schedule: Schedule, is_active: bool) -> bool:
    """Whether it was otherwise, and is so now."""
    if schedule.is_active == is_active:
        return False
    try:
        changed = schedules.change_schedule(
            owner_id=schedule.owner_id,
            schedule_id=schedule.pk,
            changes={"is_active": is_active},
        )
    except Refused:
        return False
    return changed is not None


SCHEDULE_COMMANDS = (
    Command(
        name="activate",
        label="Activate",
        done="activated",
        run=one_by_one(lambda schedule: set_active(schedule, True)),
        fits=lambda schedule: not schedule.is_active,
    ),
    Command(
        name="deactivate",
        label="Deactivate",
        done="deactivated",
        run=one_by_one(lambda schedule: set_active(schedule, False)),
        fits=lambda schedule: schedule.is_active,
        tells=lambda _: ["What was due is skipped. Batches that were made go on."],
    ),
)


def due_run() -> Subquery:
    runs = ScheduleRun.objects.filter(schedule=OuterRef("pk"), status=RunStatus.DUE)
    return Subquery(runs.values("due_at")[:1])


class ScheduleAdmin(CommandAdmin):
    commands = SCHEDULE_COMMANDS
    list_display = (
        "name",
        "short_id",
        "owner_link",
        "state",
        "rule",
        "time_zone",
        "due",
        "template_link",
        "all_runs",
        "created",
    )
    list_filter = (lists.OwnerFilter, TemplateFilter, "created_at")
    search_help_text = "Schedule id, or owner's username"
    fields = (
        "id",
        "name",
        "owner",
        "state",
        "rule",
        "time_zone",
        "starts",
        "due",
        "template_link",
        "values_json",
        "overrides_json",
        "body_json",
        "last_runs",
        "all_runs",
        "created",
        "updated",
    )

    short_id = show.column("id", show.short_id, "schedule")
    starts = show.column("starts_at", show.moment)
    updated = show.column("updated_at", show.moment)
    due = show.column("due_run_at", show.moment, "next due")
    template_link = show.row_link("template_id", Template)
    all_runs = show.rows_link(ScheduleRun, "schedule", "runs")
    values_json = show.column("values", show.pretty_json)
    overrides_json = show.column("overrides", show.pretty_json)
    body_json = show.column("body", show.pretty_json, "batch")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Schedule]:
        rows: QuerySet[Schedule] = super().get_queryset(request)
        return rows.annotate(due_run_at=due_run())

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk") | lists.by_owner(term)

    def why_not(self, command: Command, row: Schedule | None) -> str:
        if row is None:
            return "gone"
        if row.is_active == (command.name == "activate"):
            return f"{command.done} already"
        return "its rule cannot be kept any more"

    @admin.display(description="state")
    def state(self, schedule: Schedule) -> str:
        return show.badge("active" if schedule.is_active else "inactive")

    @admin.display(description=f"last {RUNS_SHOWN} runs")
    def last_runs(self, schedule: Schedule) -> str:
        runs = schedule.runs.order_by("-created_at", "-id")[:RUNS_SHOWN]
        rows = (
            (show.moment(run.due_at), show.badge(run.status), batch_link(run), code_of(run))
            for run in runs
        )
        return format_html_join("", "<div>{} {} {} {}</div>", rows) or show.EMPTY


def batch_link(run: ScheduleRun) -> str:
    if run.batch_id is None:
        return ""
    return show.link(show.page_url(Batch, run.batch_id), show.short_id(run.batch_id))


def code_of(run: ScheduleRun) -> str:
    return str((run.error or {}).get("code", ""))


class ScheduleRunAdmin(lists.ReadOnlyAdmin):
    ordering = ("-id",)  # the order in which they were made, and an index
    list_display = (
        "id",
        "schedule_link",
        "due",
        "status_badge",
        "made",
        "missed_count",
        "finished",
    )
    list_filter = (ScheduleFilter,)
    list_select_related = False
    search_help_text = "Schedule id, or batch id"
    fields = (
        "schedule",
        "due",
        "status_badge",
        "made",
        "missed_count",
        "error_json",
        "created",
        "finished",
    )

    schedule_link = show.row_link("schedule_id", Schedule)
    due = show.column("due_at", show.moment)
    finished = show.column("finished_at", show.moment)
    status_badge = show.column("status", show.badge)
    error_json = show.column("error", show.pretty_json)

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "schedule_id", "batch_id")

    @admin.display(description="batch")
    def made(self, run: ScheduleRun) -> str:
        return format_html("{}", batch_link(run) or show.EMPTY)
