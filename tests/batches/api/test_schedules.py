"""Schedules: kept, changed, switched off and on."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import schedules
from batches.models import Batch, Schedule, ScheduleRun, Template
from batches.templates import create_template
from tests.batches.api.support import SDXL, client_of, ids, invalid, problem
from tests.factories import make_batch, make_reference, make_user

pytestmark = pytest.mark.django_db

SCHEDULES = "/api/v1/schedules/"
BODY = {"prompt": "a {fox}", "count": 3, "seed": 7, "settings": {"model": SDXL}}
NEW = {
    "name": "Mondays",
    "rule": "FREQ=WEEKLY;BYDAY=MO;BYHOUR=9;BYMINUTE=0;BYSECOND=0",
    "time_zone": "Europe/Berlin",
    "batch": BODY,
}


@pytest.fixture
def create(post):
    def call(*without, **changes):
        body = {name: one for name, one in (NEW | changes).items() if name not in without}
        return post(SCHEDULES, body)

    return call


@pytest.fixture
def schedule(create):
    answer = create()
    assert answer.status_code == 201, answer.content
    return Schedule.objects.get()


@pytest.fixture
def template(owner):
    body = {"prompts": [{"text": "a {animal}"}], "settings": {"model": SDXL}}
    return create_template(owner_id=owner.pk, name="Animals", body=body)


@pytest.fixture
def of_template(create, template):
    values = {"animal": "fox"}
    answer = create("batch", template_id=str(template.pk), values=values)
    assert answer.status_code == 201, answer.content
    return Schedule.objects.get()


@pytest.fixture
def patch(api):
    return lambda schedule, body: api.patch(path_of(schedule), body)


def path_of(schedule):
    return f"{SCHEDULES}{schedule.pk}/"


def runs(schedule):
    return list(schedule.runs.order_by("due_at").values_list("status", flat=True))


def due_at(schedule):
    return schedule.runs.get(status="due").due_at


# --- keeping ------------------------------------------------------------------------------------


def test_a_schedule_tells_when_it_is_due_next(create, api):
    answer = create()
    assert answer.status_code == 201, answer.content
    told = answer.json()
    assert answer["Location"].endswith(f"{SCHEDULES}{told['id']}/")
    assert {name: told[name] for name in NEW} == NEW
    assert (told["template_id"], told["values"], told["overrides"]) == (None, {}, {})
    assert told["is_active"] is True
    next_due_at = datetime.fromisoformat(told["next_due_at"]).astimezone(ZoneInfo("Europe/Berlin"))
    assert (next_due_at.weekday(), f"{next_due_at:%X}") == (0, "09:00:00")
    assert timedelta(0) < next_due_at - timezone.now() < timedelta(days=7, hours=1)
    assert api.get(f"{SCHEDULES}{told['id']}/").json() == told
    assert not Batch.objects.exists()


def test_a_start_in_the_future_comes_first(create):
    starts_at = (timezone.now() + timedelta(days=40)).replace(microsecond=0)
    told = create(rule="freq=daily", starts_at=starts_at.isoformat()).json()
    assert told["rule"] == "FREQ=DAILY"
    assert datetime.fromisoformat(told["starts_at"]) == starts_at
    assert datetime.fromisoformat(told["next_due_at"]) == starts_at


def test_a_schedule_of_a_template_keeps_its_values_and_overrides(create, template):
    overrides = {"name": "Today", "settings": {"steps": 9, "width": None}, "tags": ["red"]}
    answer = create(
        "batch",
        template_id=str(template.pk),
        values={"animal": "fox"},
        overrides=overrides,
        is_active=False,
    )
    told = answer.json()
    assert (told["template_id"], told["batch"]) == (str(template.pk), None)
    assert (told["values"], told["overrides"]) == ({"animal": "fox"}, overrides)
    assert (told["is_active"], told["next_due_at"]) == (False, None)


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"rule": "nonsense"}, "rule", "invalid_rule"),
        ({"rule": "FREQ=DAILY\nEXRULE:FREQ=WEEKLY"}, "rule", "invalid_rule"),
        ({"rule": "FREQ=SECONDLY"}, "rule", "too_often"),
        ({"rule": "FREQ=MINUTELY;INTERVAL=4"}, "rule", "too_often"),
        ({"rule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "rule", "never_fires"),
        ({"rule": "FREQ=DAILY;UNTIL=20200101"}, "rule", "in_the_past"),
        ({"rule": "FREQ=DAILY;BYHOUR=" + ",".join(["9"] * 250)}, "rule", "max_length"),
        ({"rule": ""}, "rule", "blank"),
        ({"rule": 7}, "rule", "invalid"),
        ({"time_zone": "Mars/Olympus"}, "time_zone", "unknown_time_zone"),
        ({"time_zone": "x" * 61}, "time_zone", "max_length"),
        ({"starts_at": "2030-01-01T09:00:00"}, "starts_at", "no_offset"),
        ({"starts_at": "2020-01-01T09:00:00Z"}, "starts_at", "in_the_past"),
        ({"starts_at": "9999-12-31T09:00:00Z"}, "starts_at", "never_fires"),
        ({"starts_at": "2999-12-31T09:00:00Z"}, "rule", "never_fires"),
        ({"is_active": "yes"}, "is_active", "invalid"),
        ({"is_active": 1}, "is_active", "invalid"),
        ({"name": ""}, "name", "blank"),
        (
            {"batch": {"prompt": "a", "settings": {"steps": 9_999}}},
            "batch.settings.steps",
            "out_of_range",
        ),
        ({"batch": {"prompt": "a", "pompt": "b"}}, "batch.pompt", "unknown_field"),
        (
            {"batch": {"prompt": "a", "start_at": "2030-01-01T09:00:00Z"}},
            "batch.start_at",
            "unknown_field",
        ),
        ({"batch": {"prompt": "a", "count": 26}}, "batch.count", "too_many"),
        ({"batch": 7}, "batch", "invalid"),
        ({"values": {}}, "values", "conflict"),
        ({"overrides": {}}, "overrides", "conflict"),
        ({"template_id": "0" * 32}, "template_id", "conflict"),
        ({"owner": 1}, "owner", "unknown_field"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(change, field, code, create, nothing_happens):
    with nothing_happens():
        errors = invalid(create(**change))
    assert errors[field][0] == code
    assert not Schedule.objects.exists()


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({}, "values.animal", "required"),
        ({"values": {"animal": "a", "x": "y"}}, "values.x", "unknown_placeholder"),
        (
            {"values": {"animal": "a"}, "overrides": {"start_at": "2030-01-01T09:00:00Z"}},
            "overrides.start_at",
            "unknown_field",
        ),
        (
            {"values": {"animal": "a"}, "overrides": {"settings": {"model": "no/such"}}},
            "overrides.settings.model",
            "unknown_model",
        ),
        (
            {"template_id": "00000000-0000-4000-8000-000000000000"},
            "template_id",
            "unknown_template",
        ),
    ],
)
def test_what_cannot_be_made_of_a_template_is_refused(change, field, code, create, template):
    errors = invalid(create("batch", **{"template_id": str(template.pk), **change}))
    assert errors[field][0] == code
    assert not Schedule.objects.exists()


def test_one_of_a_template_and_a_batch_is_required(create):
    assert invalid(create("batch")).keys() == {"template_id"}


def test_the_template_of_another_is_unknown(create):
    other = make_user()
    template = create_template(owner_id=other.pk, name="x", body={"prompt": "a"})
    errors = invalid(create("batch", template_id=str(template.pk)))
    assert errors["template_id"][0] == "unknown_template"


def test_the_reference_images_of_another_are_unknown(create):
    settings = {"references": [{"id": str(make_reference().pk)}]}
    errors = invalid(create(batch={"prompt": "a", "settings": settings}))
    assert errors["batch.settings.references.0"][0] == "unknown_reference"


def test_no_more_than_a_number_are_kept(create, schedule, monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES_MAX", 1)
    problem(create(), 409, "limit_reached")


def test_it_is_kept_once_with_a_key(post):
    first = post(SCHEDULES, NEW, HTTP_IDEMPOTENCY_KEY="k")
    again = post(SCHEDULES, NEW, HTTP_IDEMPOTENCY_KEY="k")
    assert first.json() == again.json()
    assert ScheduleRun.objects.count() == Schedule.objects.count() == 1


# --- changing -----------------------------------------------------------------------------------


def test_another_rule_skips_the_run_that_was_due(patch, schedule):
    before = due_at(schedule)
    told = patch(schedule, {"rule": "FREQ=DAILY;BYHOUR=12", "name": "Noon"}).json()
    assert (told["name"], told["rule"]) == ("Noon", "FREQ=DAILY;BYHOUR=12")
    assert sorted(runs(schedule)) == ["due", "skipped"]
    skipped = schedule.runs.get(status="skipped")
    assert (skipped.due_at, skipped.finished_at is not None) == (before, True)
    assert datetime.fromisoformat(told["next_due_at"]) == due_at(schedule)


def test_what_does_not_change_when_it_is_due_skips_nothing(patch, schedule):
    before = schedule.runs.values().get()
    for body in (
        *({}, {"name": "x"}, {"batch": {"prompt": "a cat"}}, {"is_active": True}),
        *({"rule": NEW["rule"]}, {"rule": NEW["rule"] + ";WKST=MO"}),
    ):
        assert patch(schedule, body).status_code == 200
        assert schedule.runs.values().get() == before


def test_a_schedule_is_switched_off_and_on(patch, schedule):
    before = due_at(schedule)
    told = patch(schedule, {"is_active": False}).json()
    assert (told["is_active"], told["next_due_at"]) == (False, None)
    assert runs(schedule) == ["skipped"]
    assert patch(schedule, {"is_active": False}).status_code == 200
    told = patch(schedule, {"is_active": True}).json()
    assert datetime.fromisoformat(told["next_due_at"]) == before
    run = schedule.runs.get()
    assert (run.status, run.finished_at) == ("due", None)


def test_what_passed_while_it_was_off_is_not_made_up_for(patch, schedule):
    patch(schedule, {"is_active": False})
    passed = timezone.now() - timedelta(days=30)
    schedule.runs.update(due_at=passed)
    patch(schedule, {"is_active": True})
    assert runs(schedule) == ["skipped", "due"]
    assert due_at(schedule) > timezone.now()


def test_a_schedule_is_moved_between_a_batch_and_a_template(patch, of_template, template):
    told = patch(of_template, {"batch": BODY}).json()
    assert (told["template_id"], told["batch"], told["values"]) == (None, BODY, {})
    errors = invalid(patch(of_template, {"values": {"animal": "x"}}))
    assert errors["values"][0] == "conflict"
    errors = invalid(patch(of_template, {"template_id": str(template.pk)}))
    assert errors["values.animal"][0] == "required"
    back = {"template_id": str(template.pk), "values": {"animal": "cat"}}
    told = patch(of_template, back).json()
    assert (told["batch"], told["values"]) == (None, {"animal": "cat"})
    assert runs(of_template) == ["due"]


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"rule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "rule", "never_fires"),
        ({"time_zone": "Mars/Olympus"}, "time_zone", "unknown_time_zone"),
        ({"starts_at": "2020-01-01T09:00:00Z"}, "starts_at", "in_the_past"),
        ({"rule": None}, "rule", "null"),
        ({"batch": {"prompt": ""}}, "batch.prompt", "blank"),
        ({"id": "x"}, "id", "unknown_field"),
        ({"batch": BODY, "values": {}}, "values", "conflict"),
        ({"is_active": False, "rule": "FREQ=SECONDLY"}, "rule", "too_often"),
    ],
)
def test_a_change_that_cannot_be_is_refused(body, field, code, patch, schedule):
    before = Schedule.objects.values().get(), ScheduleRun.objects.values().get()
    assert invalid(patch(schedule, body))[field][0] == code
    assert (Schedule.objects.values().get(), ScheduleRun.objects.values().get()) == before


def test_a_schedule_at_its_end_is_not_switched_on_again(patch, schedule):
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    Schedule.objects.update(is_active=False, rule="FREQ=DAILY;COUNT=2", starts_at=long_ago)
    schedule.runs.all().delete()
    assert invalid(patch(schedule, {"is_active": True}))["rule"][0] == "in_the_past"
    assert patch(schedule, {"is_active": True, "rule": "FREQ=DAILY"}).json()["next_due_at"]


def test_a_deleted_schedule_leaves_its_batches(api, schedule, owner):
    batch = make_batch(owner, size=1)
    schedule.runs.update(status="started", batch=batch)
    assert api.delete(path_of(schedule)).status_code == 204
    problem(api.get(path_of(schedule)), 404, "not_found")
    assert not ScheduleRun.objects.exists()
    assert Batch.objects.get() == batch


# --- runs ---------------------------------------------------------------------------------------


def test_the_runs_tell_what_became_of_them(api, schedule, owner):
    batch = make_batch(owner, size=1)
    error = {
        "code": "invalid",
        "detail": "No.",
        "errors": [{"field": "batch.prompt", "code": "blank", "detail": "No."}],
    }
    passed = timezone.now() - timedelta(days=1)
    for number, fields in enumerate(
        [
            {"status": "started", "batch": batch, "missed_count": 2},
            {"status": "failed", "error": error},
        ]
    ):
        ScheduleRun.objects.create(
            schedule=schedule, due_at=passed + timedelta(hours=number), **fields
        )
    told = api.get(f"{path_of(schedule)}runs/").json()["results"]
    assert [one["status"] for one in told] == ["failed", "started", "due"]
    assert [one["batch_id"] for one in told] == [None, str(batch.pk), None]
    assert [one["missed_count"] for one in told] == [0, 2, 0]
    assert [one["error"] for one in told] == [error, None, None]


def test_the_runs_are_a_list_by_cursor(api, schedule):
    passed = timezone.now() - timedelta(days=1)
    for number in range(5):
        ScheduleRun.objects.create(
            schedule=schedule, due_at=passed + timedelta(hours=number), status="skipped"
        )
    page, seen = api.get(f"{path_of(schedule)}runs/", {"page_size": 2}), []
    while True:
        seen += ids(page)
        if (following := page.json()["next"]) is None:
            break
        page = api.get(following)
    assert len(seen) == len(set(seen)) == 6
    problem(api.get(f"{path_of(schedule)}runs/", {"cursor": "x"}), 404, "not_found")


# --- owners and cost ----------------------------------------------------------------------------


def test_what_is_anothers_is_not_there(schedule, nothing_happens):
    other = client_of(make_user())
    before = Schedule.objects.values().get()
    with nothing_happens():
        assert ids(other.get(SCHEDULES)) == []
        problem(other.get(path_of(schedule)), 404, "not_found")
        problem(other.get(f"{path_of(schedule)}runs/"), 404, "not_found")
        problem(other.patch(path_of(schedule), {"is_active": False}), 404, "not_found")
        problem(other.delete(path_of(schedule)), 404, "not_found")
    assert Schedule.objects.values().get() == before
    assert runs(schedule) == ["due"]


def test_the_list_takes_the_same_queries_for_any_number(create, api, of_template):
    def count():
        with CaptureQueriesContext(connection) as queries:
            assert all(row["next_due_at"] for row in api.get(SCHEDULES).json()["results"])
        return len(queries)

    one = count()
    for number in range(5):
        create(name=str(number))
    assert count() == one
    names = [row["name"] for row in api.get(SCHEDULES).json()["results"]]
    assert names == ["4", "3", "2", "1", "0", "Mondays"]
    assert Template.objects.count() == 1
