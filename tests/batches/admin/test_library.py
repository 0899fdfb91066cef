"""The pages of templates, schedules and their runs."""

import pytest

from batches.models import Schedule, ScheduleRun, Template
from batches.schedules import change_schedule, create_schedule
from batches.templates import create_template
from tests.batches.admin.support import (
    command,
    html_of,
    list_url,
    listed,
    offered,
    page,
    page_url,
    press,
    queries_of,
    staff,
    unbounded_counts,
)
from tests.factories import make_batch, make_user

pytestmark = pytest.mark.django_db

ATTACK = "<script>alert(1)</script>"
KEPT = (Template, Schedule, ScheduleRun)


def make_template(owner=None, name="Postcards", **fields):
    owner = owner or make_user()
    body = {"prompts": [{"text": "A {animal}, flat vector art"}]}
    return create_template(owner_id=owner.pk, name=name, body=body, **fields)


def make_schedule(owner=None, **fields):
    owner = owner or make_user()
    asked = {"name": "Mondays", "rule": "FREQ=WEEKLY;BYDAY=MO", "body": {"prompt": "a fox"}}
    return create_schedule(owner_id=owner.pk, **{**asked, **fields})


def make_rows(count):
    for number in range(count):
        owner = make_user()
        template = make_template(owner, f"Template {number} {Template.objects.count()}")
        make_schedule(owner, body=None, template_id=template.pk, values={"animal": "fox"})


@pytest.mark.parametrize("model", KEPT)
def test_every_list_and_every_page_answers_an_operator(operator, model):
    make_rows(2)
    html = html_of(operator.get(list_url(model)))
    for row in model.objects.all():
        assert page_url(row) in html
        page(operator, row)


@pytest.mark.parametrize("model", KEPT)
def test_lists_are_for_staff_only(client, model):
    client.force_login(make_user())
    assert client.get(list_url(model)).status_code == 302


@pytest.mark.parametrize("model", KEPT)
def test_a_longer_list_takes_as_many_queries_and_counts_no_table(operator, model):
    make_rows(2)
    few = queries_of(operator, list_url(model))
    make_rows(8)
    many = queries_of(operator, list_url(model))
    assert len(many) == len(few)
    assert not unbounded_counts(many)


def test_they_are_found_by_id_and_owner(operator):
    anna = make_user("anna")
    template = make_template(anna)
    schedule = make_schedule(anna)
    make_rows(1)
    for term in ("anna", str(template.pk)):
        assert listed(operator, Template, q=term) == {template.pk}
    for term in ("anna", str(schedule.pk)):
        assert listed(operator, Schedule, q=term) == {schedule.pk}
    run = schedule.runs.get()
    assert listed(operator, ScheduleRun, q=str(schedule.pk)) == {run.pk}
    assert listed(operator, ScheduleRun, schedule=schedule.pk) == {run.pk}
    assert listed(operator, Schedule, owner=anna.pk) == {schedule.pk}
    used = Template.objects.exclude(pk=template.pk).get()
    assert listed(operator, Schedule, template=used.pk) == {used.schedules.get().pk}
    for model in KEPT:
        assert listed(operator, model, q="nothing") == set()


def test_a_template_shows_what_it_makes(operator):
    template = make_template(defaults={"animal": ATTACK})
    html = page(operator, template)
    assert "A {animal}, flat vector art" in html
    assert '<div class="readonly">animal</div>' in html
    assert "&lt;script&gt;" in html
    assert ATTACK not in html


def test_a_schedule_shows_when_it_is_due_and_what_became_of_its_runs(operator):
    schedule = make_schedule()
    batch = make_batch(schedule.owner)
    run = schedule.runs.get()
    assert f'datetime="{run.due_at.isoformat()}"' in html_of(operator.get(list_url(Schedule)))
    ScheduleRun.objects.filter(pk=run.pk).update(
        status="failed", error={"code": "model_unavailable"}, finished_at=run.due_at
    )
    ScheduleRun.objects.create(
        schedule=schedule, due_at=schedule.starts_at, status="started", batch=batch
    )
    html = page(operator, schedule)
    assert "FREQ=WEEKLY;BYDAY=MO" in html
    assert "model_unavailable" in html
    assert page_url(batch) in html
    assert 'badge-active">Active' in html


def test_schedules_are_switched_off_and_on(operator):
    schedule = make_schedule()
    assert offered(operator, schedule) == ["deactivate"]
    press(operator, schedule, "deactivate")
    schedule.refresh_from_db()
    assert not schedule.is_active
    assert schedule.runs.get().status == "skipped"
    assert offered(operator, schedule) == ["activate"]
    (told,) = command(operator, list_url(Schedule), "activate", [schedule])
    assert told.startswith("1 schedule activated.")
    schedule.refresh_from_db()
    assert schedule.is_active
    assert schedule.runs.filter(status="due").count() == 1
    (told,) = command(operator, list_url(Schedule), "activate", [schedule])
    assert "activated already" in told


def test_a_schedule_whose_rule_is_over_is_not_switched_on(operator):
    schedule = make_schedule()
    change_schedule(
        owner_id=schedule.owner_id, schedule_id=schedule.pk, changes={"is_active": False}
    )
    Schedule.objects.filter(pk=schedule.pk).update(rule="FREQ=DAILY;UNTIL=20200101T000000Z")
    (told,) = command(operator, list_url(Schedule), "activate", [schedule])
    assert "its rule cannot be kept any more" in told
    schedule.refresh_from_db()
    assert not schedule.is_active


def test_who_may_only_look_is_offered_nothing(client):
    schedule = make_schedule()
    watcher = staff(client, "view_schedule")
    assert offered(watcher, schedule) == []
    assert press(watcher, schedule, "deactivate").status_code == 403
    schedule.refresh_from_db()
    assert schedule.is_active
