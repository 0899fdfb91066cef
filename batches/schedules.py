"""Recurring batches: when they are due, and their runs.

A due time is a row before it comes: while a schedule is active one run of it is `due`. Whoever
makes its batch locks the schedule, sets the run by a compare-and-set and stores the next one, in
one transaction with the batch: so each run is made once, by however many that try. What was missed
while nobody looked is made up for by one run, which counts the others; the next is the first due
time after now. A schedule whose rule is at its end is no longer active.
"""

import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Case, Value, When
from django.db.models.functions import Now

from batches.intake import Problem, Refused
from batches.models import Batch, RunStatus, Schedule, ScheduleRun, Template
from batches.recurrence import Recurrence, Unusable, first_due, read_rule
from batches.submission import (
    Asked,
    ReadyBatch,
    ask_batch_within,
    batch_ready,
    check,
    database_now,
)
from batches.templates import LimitReached, ask_template, in_batch

logger = logging.getLogger(__name__)

SCHEDULES_MAX = 100
# Of one owner at a time, in seconds: pictures may have to be fetched from where they stand.
OWNER_BUDGET_S = 2.0
# Of all of them in one pass: those that become due meanwhile may be quick.
PASS_BUDGET_S = 20.0
# Of a run: whether its request may name pictures by their addresses.
_FETCHES = Case(
    *[
        When(**{f"schedule__{field}__icontains": '"url"'}, then=Value(1))
        for field in ("body", "template__body", "overrides")
    ],
    default=Value(0),
)
_WHEN = frozenset({"rule", "time_zone", "starts_at", "is_active"})
_WHAT = frozenset({"template_id", "values", "overrides", "body"})


# --- What is to be made -------------------------------------------------------------------------


def ask_schedule(schedule: Schedule) -> Asked:
    """Plan the batch of a schedule as it would be made now. Raises `Refused`."""
    if schedule.template is not None:
        return ask_template(schedule.template, schedule.values, schedule.overrides)
    return ask_batch_within(schedule.body, in_batch)


def _recurrence(schedule: Schedule) -> Recurrence:
    """Raises `Unusable`."""
    return read_rule(schedule.rule, time_zone=schedule.time_zone, starts_at=schedule.starts_at)


# --- Writes -------------------------------------------------------------------------------------


@transaction.atomic
def create_schedule(
    *,
    owner_id: int,
    name: str,
    rule: str,
    time_zone: str = "UTC",
    starts_at: datetime | None = None,
    template_id: uuid.UUID | None = None,
    values: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | None = None,
    is_active: bool = True,
) -> Schedule:
    """Store a schedule of a template or of a batch's body, with its first run.

    It starts at once unless told. Raises `Refused` and `LimitReached`.
    """
    if Schedule.objects.owned_by(owner_id).count() >= SCHEDULES_MAX:
        raise LimitReached(f"You have {SCHEDULES_MAX} schedules already; no more are kept.")
    now = database_now()
    schedule = Schedule(
        owner_id=owner_id,
        name=name,
        rule=rule,
        time_zone=time_zone,
        starts_at=_start(starts_at, now),
        template=_template(owner_id, template_id),
        values=values or {},
        overrides=overrides or {},
        body=body,
        is_active=is_active,
    )
    due_at = _first_due(schedule, now)
    check(owner_id, ask_schedule(schedule))
    schedule.save(force_insert=True)
    if is_active:
        ScheduleRun.objects.create(schedule=schedule, due_at=due_at)
    return schedule


@transaction.atomic
def change_schedule(
    *, owner_id: int, schedule_id: uuid.UUID, changes: Mapping[str, Any]
) -> Schedule | None:
    """Change some of the fields that `create_schedule` takes. `None`: it is not there.

    A change of when it is due makes its due run `skipped` and stores another, unless that is due
    at the same time. Raises `Refused`.
    """
    schedule = _locked(schedule_id, owner_id)
    if schedule is None:
        return None
    now = database_now()
    changed = dict(changes)
    if "starts_at" in changed:
        changed["starts_at"] = _start(changed["starts_at"], now)
    if "template_id" in changed:
        changed["template"] = _template(owner_id, changed.pop("template_id"))
        changed["body"] = None
    elif changed.get("body") is not None:
        changed |= {"template": None, "values": {}, "overrides": {}}
    elif schedule.template_id is None and (lost := {"values", "overrides"} & changed.keys()):
        detail = "It goes with a template, and this schedule has none."
        raise Refused([Problem(name, "conflict", detail) for name in sorted(lost)])
    is_due_anew = any(getattr(schedule, name) != changed[name] for name in _WHEN & changed.keys())
    for name, value in changed.items():
        setattr(schedule, name, value)
    if _WHAT & changes.keys():
        check(owner_id, ask_schedule(schedule))
    if is_due_anew:
        is_told = schedule.is_active or {"rule", "time_zone", "starts_at"} & changes.keys()
        due_at = _first_due(schedule, now) if is_told else None
        _set_due(schedule, due_at if schedule.is_active else None)
    schedule.updated_at = Now()
    schedule.save()
    schedule.refresh_from_db(fields=["updated_at"])
    return schedule


@transaction.atomic
def delete_schedule(*, owner_id: int, schedule_id: uuid.UUID) -> bool:
    """Delete a schedule with its runs; their batches stay. `False`: it is not there."""
    schedule = _locked(schedule_id, owner_id)
    if schedule is None:
        return False
    schedule.delete()
    return True


def _locked(schedule_id: uuid.UUID, owner_id: int) -> Schedule | None:
    """For whoever is about to change a schedule or one of its runs."""
    rows = Schedule.objects.owned_by(owner_id).select_related("template")
    return rows.select_for_update(of=("self",)).filter(pk=schedule_id).first()


def _template(owner_id: int, template_id: uuid.UUID | None) -> Template | None:
    """A template that stays until the schedule that names it is stored. Raises `Refused`."""
    if template_id is None:
        return None
    rows = Template.objects.owned_by(owner_id).select_for_update(no_key=True)
    if template := rows.filter(pk=template_id).first():
        return template
    detail = f"You have no template {template_id}."
    raise Refused([Problem("template_id", "unknown_template", detail)])


def _start(starts_at: datetime | None, now: datetime) -> datetime:
    """In whole seconds, as rules have it; the next one unless told. Raises `Refused`."""
    if starts_at is not None and starts_at <= now:
        raise Refused([Problem("starts_at", "in_the_past", "Must be a time to come.")])
    next_second = now.replace(microsecond=0) + timedelta(seconds=1)
    return max((starts_at or next_second).replace(microsecond=0), next_second)


def _first_due(schedule: Schedule, now: datetime) -> datetime:
    """The first due time after now; the rule is stored as it was read. Raises `Refused`."""
    try:
        recurrence = _recurrence(schedule)
        schedule.rule = recurrence.rule
        return first_due(recurrence, now)
    except Unusable as error:
        raise Refused([Problem(error.field, error.code, error.detail)]) from error


def _set_due(schedule: Schedule, due_at: datetime | None) -> None:
    """Have the one run that is due be due then, or none. The schedule is locked."""
    runs = ScheduleRun.objects.filter(schedule=schedule)
    others = runs.filter(status=RunStatus.DUE)
    if due_at is not None:
        others = others.exclude(due_at=due_at)
    others.update(status=RunStatus.SKIPPED, finished_at=Now())
    if due_at is None or runs.filter(status=RunStatus.DUE).exists():
        return
    # Another change may have made it skipped.
    again = runs.filter(due_at=due_at, status=RunStatus.SKIPPED)
    if not again.update(status=RunStatus.DUE, finished_at=None):
        ScheduleRun.objects.create(schedule=schedule, due_at=due_at)


# --- Runs ---------------------------------------------------------------------------------------


def run_due(*, limit: int) -> int:
    """Make the batches whose time has come, the longest overdue first; how many were made.

    What cannot be done just now stays due. Those with pictures to be fetched come last, an owner
    whose pictures take long is left for the next time, and so is everybody after a while: others
    must not wait for them.
    """
    due = ScheduleRun.objects.filter(
        status=RunStatus.DUE, due_at__lte=Now(), schedule__owner__is_active=True
    )
    rows = due.annotate(fetches=_FETCHES).order_by("fetches", "due_at")
    taken_s: defaultdict[int, float] = defaultdict(float)
    made, begun_s = 0, time.monotonic()
    for run_id, owner_id in list(rows.values_list("pk", "schedule__owner_id")[:limit]):
        if time.monotonic() - begun_s >= PASS_BUDGET_S:
            break
        if taken_s[owner_id] >= OWNER_BUDGET_S:
            continue
        began_s = time.monotonic()
        try:
            made += run_schedule(run_id) is not None
        except Exception:  # of whatever is away; one must not keep the others from their turn
            logger.exception("schedule run %s stays due", run_id)
        taken_s[owner_id] += time.monotonic() - began_s
    return made


def run_schedule(run_id: int) -> Batch | None:
    """Make the batch of a due run. `None`: it could not be planned, or somebody else was faster.

    Not to be called in a transaction. Raises what keeps it from being done just now.
    """
    runs = ScheduleRun.objects.select_related("schedule__template")
    run = runs.filter(pk=run_id, status=RunStatus.DUE).first()
    if run is None:
        return None
    try:
        asked = ask_schedule(run.schedule)
        with batch_ready(run.schedule.owner_id, asked) as ready:
            return _end(run, ready=ready)
    except Refused as refusal:
        _end(run, problems=refusal.problems)
        return None


@transaction.atomic
def _end(
    run: ScheduleRun, *, ready: ReadyBatch | None = None, problems: Sequence[Problem] = ()
) -> Batch | None:
    """End a run and store the next, if it is still due and its schedule is as it was read."""
    schedule = _locked(run.schedule_id, run.schedule.owner_id)
    if schedule is None or schedule.updated_at != run.schedule.updated_at:
        return None
    now = database_now()
    try:
        recurrence = _recurrence(schedule)
        next_at, missed = recurrence.first_after(now), recurrence.count_between(run.due_at, now)
    except Unusable as error:
        # Such as a time zone that is no more.
        ready, problems = None, [Problem(error.field, error.code, error.detail)]
        next_at, missed = None, 0
    still_due = ScheduleRun.objects.filter(pk=run.pk, status=RunStatus.DUE)
    if not still_due.update(
        status=RunStatus.FAILED if ready is None else RunStatus.STARTED,
        missed_count=missed,
        error=None if ready is not None else _error(problems),
        finished_at=Now(),
    ):
        return None
    batch = None
    if ready is not None:
        batch = ready.submit(template_id=schedule.template_id)
        ScheduleRun.objects.filter(pk=run.pk).update(batch=batch)
    _set_due(schedule, next_at)
    if next_at is None:
        Schedule.objects.filter(pk=schedule.pk).update(is_active=False, updated_at=Now())
    return batch


def _error(problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "code": "invalid",
        "detail": "The batch could not be made.",
        "errors": [
            {"field": one.field, "code": one.code, "detail": one.detail} for one in problems
        ],
    }
