"""Due runs: made once, made up for, failed, put off. Due times are written and not waited for."""

from datetime import timedelta
from functools import partial

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import catalogue, schedules
from batches.models import Batch, CatalogueModel, Event, RunStatus, Schedule, ScheduleRun
from batches.references import Busy, StorageAway
from batches.schedules import change_schedule, create_schedule, delete_schedule, run_due
from batches.templates import TemplateInUse, change_template, create_template, delete_template
from tests.factories import MODEL, make_image, make_user
from tests.support import at_once
from worker import sweeper

pytestmark = pytest.mark.django_db

LIMIT = 100
RACES = 15


@pytest.fixture
def owner(db):
    return make_user()


@pytest.fixture
def daily(owner):
    """Makes schedules that are due every day, with one run due so long ago."""

    def make(ago=timedelta(seconds=1), owner=owner, **changes):
        fields = {"name": "Daily", "rule": "FREQ=DAILY", "body": {"prompt": "a fox", "count": 2}}
        schedule = create_schedule(owner_id=owner.pk, **{**fields, **changes})
        due_at = (timezone.now() - ago).replace(microsecond=0)
        Schedule.objects.filter(pk=schedule.pk).update(starts_at=due_at)
        schedule.runs.update(due_at=due_at)
        schedule.refresh_from_db()
        return schedule

    return make


@pytest.fixture
def template(owner):
    body = {"prompts": [{"text": "a {animal}"}], "settings": {"model": MODEL}}
    return create_template(owner_id=owner.pk, name="Animals", body=body)


def runs(schedule):
    return list(schedule.runs.order_by("due_at"))


# --- what is due --------------------------------------------------------------------------------


def test_a_due_run_makes_one_batch_and_the_next_run(daily):
    schedule = daily()
    assert run_due(limit=LIMIT) == 1
    batch = Batch.objects.get()
    assert (batch.owner_id, batch.status, batch.total_count) == (schedule.owner_id, "pending", 2)
    started, due = runs(schedule)
    assert (started.status, started.batch, started.missed_count) == ("started", batch, 0)
    assert started.finished_at is not None
    assert due.status == RunStatus.DUE
    assert due.due_at == started.due_at + timedelta(days=1)
    assert Event.objects.filter(batch_id=batch.pk, version=1).count() == 1
    assert run_due(limit=LIMIT) == 0
    assert Batch.objects.count() == 1


def test_without_a_start_the_first_is_due_at_once(owner):
    before = timezone.now()
    schedule = create_schedule(
        owner_id=owner.pk, name="x", rule="FREQ=DAILY;COUNT=2", body={"prompt": "a fox"}
    )
    (due,) = runs(schedule)
    assert due.due_at == schedule.starts_at
    assert before < due.due_at <= timezone.now() + timedelta(seconds=1)


def test_a_run_that_is_not_due_yet_waits(daily):
    schedule = daily(ago=timedelta(hours=-1))
    assert run_due(limit=LIMIT) == 0
    assert not Batch.objects.exists()
    assert [run.status for run in runs(schedule)] == ["due"]


def test_it_is_the_clock_of_the_database_that_decides(daily, monkeypatch):
    daily(ago=timedelta(hours=-1))
    ahead = timezone.now() + timedelta(days=2)
    monkeypatch.setattr(timezone, "now", lambda: ahead)
    assert run_due(limit=LIMIT) == 0


def test_a_template_is_filled_as_it_is_then(owner, template, daily):
    overrides = {"name": "Today", "settings": {"steps": 2}}
    schedule = daily(
        template_id=template.pk, body=None, values={"animal": "fox"}, overrides=overrides
    )
    change_template(
        owner_id=owner.pk, template_id=template.pk, changes={"body": {"prompt": "one {animal}"}}
    )
    assert run_due(limit=LIMIT) == 1
    batch = Batch.objects.get()
    assert (batch.template_id, batch.name) == (template.pk, "Today")
    generation = batch.generations.get()
    assert (generation.prompt, generation.settings["steps"]) == ("one fox", 2)
    assert [run.status for run in runs(schedule)] == ["started", "due"]


def test_what_was_missed_is_made_up_for_by_one_run(daily):
    schedule = daily(ago=timedelta(days=3, hours=5))
    assert run_due(limit=LIMIT) == 1
    started, due = runs(schedule)
    assert (started.status, started.missed_count) == ("started", 3)
    assert due.due_at == started.due_at + timedelta(days=4)
    assert due.due_at > timezone.now()
    assert Batch.objects.count() == 1


def test_a_rule_at_its_end_leaves_nothing_due(daily):
    schedule = daily(rule="FREQ=DAILY;COUNT=1")
    assert run_due(limit=LIMIT) == 1
    assert [run.status for run in runs(schedule)] == ["started"]
    schedule.refresh_from_db()
    assert not schedule.is_active


def test_several_are_made_the_longest_overdue_first_and_no_more_than_allowed(daily):
    made = [daily(ago=timedelta(minutes=number), name=str(number)) for number in range(1, 6)]
    assert run_due(limit=3) == 3
    due = ScheduleRun.objects.filter(status="due", due_at__lt=timezone.now())
    assert {run.schedule_id for run in due} == {made[0].pk, made[1].pk}
    assert run_due(limit=3) == 2


def test_a_schedule_of_a_user_who_may_not_sign_in_waits(owner, daily):
    schedule = daily()
    get_user_model().objects.update(is_active=False)
    assert run_due(limit=LIMIT) == 0
    get_user_model().objects.update(is_active=True)
    assert run_due(limit=LIMIT) == 1
    assert [run.status for run in runs(schedule)] == ["started", "due"]


def test_looking_for_what_is_due_takes_one_query(daily, django_assert_num_queries):
    for _ in range(3):
        daily(ago=timedelta(hours=-1))
    with django_assert_num_queries(1):
        run_due(limit=LIMIT)


def test_a_run_takes_the_same_queries_for_any_size(daily, warm_caches):
    def count(size):
        daily(body={"prompt": "a fox", "count": size})
        with CaptureQueriesContext(connection) as queries:
            assert run_due(limit=LIMIT) == 1
        return len(queries)

    count(1)
    assert count(1) == count(25)


# --- what cannot be made ------------------------------------------------------------------------


def test_a_batch_that_cannot_be_planned_is_told_and_the_next_run_is_stored(daily, fresh_catalogue):
    schedule = daily()
    CatalogueModel.objects.filter(pk=MODEL).update(enabled=False)
    catalogue.forget()
    assert run_due(limit=LIMIT) == 0
    failed, due = runs(schedule)
    assert (failed.status, failed.batch, due.status) == ("failed", None, "due")
    (error,) = failed.error["errors"]
    assert failed.error["code"] == "invalid"
    assert (error["field"], error["code"]) == ("batch.settings.model", "model_unavailable")
    assert failed.finished_at is not None
    assert not Batch.objects.exists()


def test_a_placeholder_that_has_come_since_is_told(owner, template, daily):
    schedule = daily(template_id=template.pk, body=None, values={"animal": "fox"})
    changes = {"body": {"prompt": "a {animal} at {place}"}}
    change_template(owner_id=owner.pk, template_id=template.pk, changes=changes)
    assert run_due(limit=LIMIT) == 0
    (error,) = runs(schedule)[0].error["errors"]
    assert (error["field"], error["code"]) == ("values.place", "required")


def test_a_picture_that_is_gone_is_told(owner, daily):
    image = make_image()
    image.owner_id = owner.pk
    image.save()
    settings = {"model": "black-forest-labs/flux-dev", "references": [{"image_id": str(image.pk)}]}
    schedule = daily(body={"prompt": "a fox", "settings": settings})
    image.delete()
    assert run_due(limit=LIMIT) == 0
    (error,) = runs(schedule)[0].error["errors"]
    assert (error["field"], error["code"]) == ("batch.settings.references.0", "unknown_image")


def test_a_time_zone_that_is_no_more_ends_the_schedule(daily):
    schedule = daily()
    Schedule.objects.update(time_zone="Mars/Olympus")
    assert run_due(limit=LIMIT) == 0
    (failed,) = runs(schedule)
    assert failed.error["errors"][0]["code"] == "unknown_time_zone"
    schedule.refresh_from_db()
    assert not schedule.is_active
    assert not Batch.objects.exists()


@pytest.mark.parametrize("error", [Busy(), StorageAway(), OperationalError("away"), KeyError("x")])
def test_what_cannot_be_done_just_now_stays_due_and_others_are_made(error, daily, monkeypatch):
    first, second = daily(ago=timedelta(minutes=2), name="first"), daily(name="second")
    plain = schedules.batch_ready
    broken = [error]

    def sometimes(*args):
        if broken:
            raise broken.pop()
        return plain(*args)

    monkeypatch.setattr(schedules, "batch_ready", sometimes)
    assert run_due(limit=LIMIT) == 1
    assert [run.status for run in runs(first)] == ["due"]
    assert [run.status for run in runs(second)] == ["started", "due"]
    assert run_due(limit=LIMIT) == 1
    assert [run.status for run in runs(first)] == ["started", "due"]
    assert Batch.objects.count() == 2


def test_nothing_is_half_done_when_the_database_goes_away(daily, monkeypatch):
    schedule = daily()

    def away(*args):
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr(schedules, "_set_due", away)
        assert run_due(limit=LIMIT) == 0
    assert not Batch.objects.exists()
    (run,) = runs(schedule)
    assert (run.status, run.finished_at, run.missed_count) == ("due", None, 0)
    assert run_due(limit=LIMIT) == 1


def test_an_owner_whose_pictures_take_long_is_left_for_the_next_time(daily, monkeypatch):
    slow, other = make_user(), make_user()
    for number in range(3):
        daily(ago=timedelta(minutes=10 + number), owner=slow)
    daily(owner=other)
    monkeypatch.setattr(schedules, "OWNER_BUDGET_S", 1e-9)
    assert run_due(limit=LIMIT) == 2
    assert {batch.owner_id for batch in Batch.objects.all()} == {slow.pk, other.pk}
    assert run_due(limit=LIMIT) == 1


def test_what_needs_no_pictures_goes_before_what_may_have_to_fetch_some(daily, monkeypatch):
    body = {"prompt": "a fox", "settings": {"references": [{"url": "https://example.com/a.png"}]}}
    fetching = [daily(ago=timedelta(minutes=20 + number)) for number in range(3)]
    Schedule.objects.filter(pk__in=[one.pk for one in fetching]).update(body=body)
    quick = daily()
    made = []
    monkeypatch.setattr(schedules, "run_schedule", made.append)
    run_due(limit=2)
    assert made[0] == ScheduleRun.objects.get(schedule=quick).pk
    assert len(made) == 2


def test_one_pass_ends_after_a_while(daily, monkeypatch):
    for _ in range(3):
        daily(owner=make_user())
    monkeypatch.setattr(schedules, "PASS_BUDGET_S", 0.0)
    assert run_due(limit=LIMIT) == 0
    assert ScheduleRun.objects.filter(status="due").count() == 3


# --- never twice --------------------------------------------------------------------------------


def change_meanwhile(monkeypatch, change):
    """Have something happen while a run's pictures are taken in."""
    plain = schedules.batch_ready

    def slow(*args):
        change()
        return plain(*args)

    monkeypatch.setattr(schedules, "batch_ready", slow)


def test_a_schedule_that_is_changed_meanwhile_makes_what_it_is_now(owner, daily, monkeypatch):
    schedule = daily()
    with monkeypatch.context() as patched:
        change_meanwhile(
            patched,
            lambda: Schedule.objects.update(
                body={"prompt": "a cat"}, updated_at=timezone.now() + timedelta(seconds=1)
            ),
        )
        assert run_due(limit=LIMIT) == 0
    assert not Batch.objects.exists()
    assert run_due(limit=LIMIT) == 1
    assert Batch.objects.get().generations.get().prompt == "a cat"
    assert [run.status for run in runs(schedule)] == ["started", "due"]


def test_a_schedule_that_is_deleted_meanwhile_makes_nothing(owner, daily, monkeypatch):
    schedule = daily()
    change_meanwhile(
        monkeypatch, lambda: delete_schedule(owner_id=owner.pk, schedule_id=schedule.pk)
    )
    assert run_due(limit=LIMIT) == 0
    assert not Batch.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_several_that_run_it_at_once_one_makes_the_batch(daily):
    for number in range(RACES):
        schedule = daily(name=str(number))
        at_once(*[lambda: run_due(limit=LIMIT)] * 4)
        assert [run.status for run in runs(schedule)] == ["started", "due"]
        assert Batch.objects.count() == number + 1


@pytest.mark.django_db(transaction=True)
def test_of_two_sweepers_one_is_at_it(daily):
    for number in range(RACES):
        daily(name=str(number))
        at_once(sweeper.run_schedules, sweeper.run_schedules)
        assert Batch.objects.count() == number + 1


@pytest.mark.django_db(transaction=True)
def test_a_change_and_a_run_at_once_leave_one_run_due(owner, daily):
    for number in range(RACES):
        schedule = daily(name=str(number))

        def change(schedule=schedule):
            changes = {"rule": "FREQ=DAILY;BYHOUR=9"}
            change_schedule(owner_id=owner.pk, schedule_id=schedule.pk, changes=changes)

        before = Batch.objects.count()
        at_once(lambda: run_due(limit=LIMIT), change)
        first = runs(schedule)[0]
        assert first.status in ("started", "skipped")
        assert Batch.objects.count() - before == (first.status == "started")
        due = schedule.runs.get(status="due")
        assert due.due_at > timezone.now()
        assert due.due_at.hour == 9


@pytest.mark.django_db(transaction=True)
def test_a_template_is_not_deleted_under_a_schedule_that_is_being_made(owner):
    for number in range(RACES):
        template = create_template(owner_id=owner.pk, name=str(number), body={"prompt": "a"})
        made, deleted = at_once(
            partial(
                create_schedule,
                owner_id=owner.pk,
                name="x",
                rule="FREQ=DAILY",
                template_id=template.pk,
            ),
            partial(delete_template, owner_id=owner.pk, template_id=template.pk),
            may_raise=(schedules.Refused, TemplateInUse),
        )
        if isinstance(made, Schedule):
            assert isinstance(deleted, TemplateInUse)
        else:
            assert [problem.code for problem in made.problems] == ["unknown_template"]
            assert deleted is True
