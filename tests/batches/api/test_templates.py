"""Templates: kept, changed, and started from."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import catalogue, templates
from batches.models import Batch, CatalogueModel, Generation, Template
from batches.schedules import create_schedule
from generation.catalogue import PROMPT_MAX_LENGTH
from tests.batches.api.support import (
    BATCHES,
    DEV,
    SCHNELL,
    SDXL,
    client_of,
    ids,
    invalid,
    problem,
)
from tests.factories import make_reference, make_user

pytestmark = pytest.mark.django_db

TEMPLATES = "/api/v1/templates/"
BODY = {
    "name": "Animals",
    "prompts": [
        {"text": "A {animal} at {place}", "negative_prompt": "no {animal}s", "name": "First"},
        {"text": 'A {animal} saying {{"hi"}}', "seed": 7, "settings": {"steps": 30}},
    ],
    "settings": {"model": SDXL, "steps": 20},
    "style": "retro",
    "tags": ["red"],
    "priority": 7,
}
NEW = {"name": "Shop", "batch": BODY, "defaults": {"place": "the sea"}}


@pytest.fixture
def create(post):
    def call(**changes):
        return post(TEMPLATES, {**NEW, **changes})

    return call


@pytest.fixture
def template(create):
    answer = create()
    assert answer.status_code == 201, answer.content
    return Template.objects.get()


@pytest.fixture
def start(post, template):
    def call(body=None, pk=None, **headers):
        return post(f"{TEMPLATES}{pk or template.pk}/start/", body or {}, **headers)

    return call


@pytest.fixture
def nothing_is_kept(nothing_happens):
    """A block after which there are as many templates as before, and nothing else happened."""
    before = Template.objects.count()
    with nothing_happens():
        yield
    assert Template.objects.count() == before


def path_of(template):
    return f"{TEMPLATES}{template.pk}/"


def made(answer):
    assert answer.status_code == 202, answer.content
    batch = Batch.objects.get(pk=answer.json()["id"])
    return batch, list(batch.generations.order_by("index"))


# --- keeping ------------------------------------------------------------------------------------


def test_a_template_is_kept_as_it_was_given(create, api):
    answer = create(description="For the shop")
    assert answer.status_code == 201, answer.content
    told = answer.json()
    assert told["batch"] == BODY
    assert told["placeholders"] == ["animal", "place"]
    assert told["defaults"] == {"place": "the sea"}
    assert (told["name"], told["description"]) == ("Shop", "For the shop")
    assert answer["Location"].endswith(f"{TEMPLATES}{told['id']}/")
    assert api.get(f"{TEMPLATES}{told['id']}/").json() == told
    assert Batch.objects.count() == Generation.objects.count() == 0


def test_variations_may_be_a_template_too(create, start):
    create(name="Variations", batch={"prompt": "a {animal}", "count": 25}, defaults={})
    pk = Template.objects.get(name="Variations").pk
    _, rows = made(start({"values": {"animal": "fox"}, "overrides": {"count": 3, "seed": 5}}, pk))
    assert [row.prompt for row in rows] == ["a fox"] * 3
    assert rows[0].seed == 5


def test_an_earlier_batch_is_kept_with_its_braces_and_without_its_seeds(post, create, start):
    body = {**BODY, "prompts": [{"text": 'A {"fox"}', "seed": 7}, {"text": "a cat", "seed": 8}]}
    batch_id = post(BATCHES, body).json()["id"]
    answer = post(TEMPLATES, {"name": "Kept", "batch_id": batch_id})
    assert answer.status_code == 201, answer.content
    told = answer.json()
    assert told["placeholders"] == []
    assert told["batch"] == {
        **body,
        "prompts": [{"text": 'A {{"fox"}}'}, {"text": "a cat"}],
    }
    create()
    _, rows = made(post(f"{TEMPLATES}{told['id']}/start/", {}))
    assert [row.prompt for row in rows] == ['A {"fox"}', "a cat"]
    assert not {row.seed for row in rows} & {7, 8}


def with_text(text, **fields):
    return {"batch": {"prompts": [{"text": "a"}, {"text": text, **fields}]}, "defaults": {}}


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        (with_text("{"), "batch.prompts.1.text", "invalid_placeholder"),
        (with_text("{a.b}"), "batch.prompts.1.text", "invalid_placeholder"),
        (with_text("{a!r}"), "batch.prompts.1.text", "invalid_placeholder"),
        (with_text("{a:9}"), "batch.prompts.1.text", "invalid_placeholder"),
        (with_text("{A}"), "batch.prompts.1.text", "invalid_placeholder"),
        (with_text("{}"), "batch.prompts.1.text", "invalid_placeholder"),
        (
            with_text("a", negative_prompt="{a[0]}"),
            "batch.prompts.1.negative_prompt",
            "invalid_placeholder",
        ),
        ({"batch": {"prompt": "a}"}, "defaults": {}}, "batch.prompt", "invalid_placeholder"),
        ({"defaults": {"plaice": "x"}}, "defaults.plaice", "unknown_placeholder"),
        ({"defaults": {"place": 7}}, "defaults.place", "invalid"),
        ({"defaults": {"place": "x" * 2_001}}, "defaults.place", "max_length"),
        ({"defaults": {f"a{n}": "" for n in range(51)}}, "defaults", "too_many"),
        ({"defaults": []}, "defaults", "not_a_dict"),
        (
            with_text("".join(f"{{a{n}}}" for n in range(51))),
            "batch",
            "too_many",
        ),
        (with_text("x" * (PROMPT_MAX_LENGTH + 1)), "batch.prompts.1.text", "max_length"),
        (
            {
                "batch": {"prompt": "{a}" * 3},
                "defaults": {"a": "x" * 2_000},
            },
            "batch.prompt",
            "max_length",
        ),
        (with_text(" "), "batch.prompts.1.text", "blank"),
        (with_text(7), "batch.prompts.1.text", "invalid"),
        ({"batch": {}}, "batch.prompts", "required"),
        ({"batch": []}, "batch", "invalid"),
        ({"batch": None}, "batch", "null"),
        ({"batch": {"prompts": [{"text": "a"}] * 26}}, "batch.prompts", "too_many"),
        ({"batch": {"prompt": "a", "pompt": "b"}}, "batch.pompt", "unknown_field"),
        (
            {"batch": {"prompt": "a", "start_at": "2030-01-01T00:00:00Z"}},
            "batch.start_at",
            "unknown_field",
        ),
        (
            {"batch": {"prompt": "a", "settings": {"model": "no/such"}}, "defaults": {}},
            "batch.settings.model",
            "unknown_model",
        ),
        (
            {"batch": {"prompt": "a", "settings": {"steps": 10_000}}, "defaults": {}},
            "batch.settings.steps",
            "out_of_range",
        ),
        ({"name": ""}, "name", "blank"),
        ({"name": "x" * 201}, "name", "max_length"),
        ({"name": 7}, "name", "invalid"),
        ({"description": "x" * 1_001}, "description", "max_length"),
        ({"owner": 1}, "owner", "unknown_field"),
        ({"batch_id": "7" * 32}, "batch_id", "conflict"),
    ],
)
def test_what_could_not_be_used_is_not_kept(change, field, code, create, nothing_is_kept):
    errors = invalid(create(**change))
    assert errors[field][0] == code


def test_neither_a_batch_nor_its_id_is_refused(post, nothing_is_kept):
    assert invalid(post(TEMPLATES, {"name": "x"})).keys() == {"batch"}
    unknown = {"name": "x", "batch_id": "00000000-0000-4000-8000-000000000000"}
    assert invalid(post(TEMPLATES, unknown))["batch_id"][0] == "unknown_batch"


def test_the_batch_of_another_is_unknown(post, nothing_happens):
    client_of(make_user()).post(BATCHES, {"prompt": "a fox"})
    pk = str(Batch.objects.get().pk)
    with nothing_happens():
        assert invalid(post(TEMPLATES, {"name": "x", "batch_id": pk}))["batch_id"][0] == (
            "unknown_batch"
        )


def test_a_batch_that_could_not_be_made_again_is_refused(post, fresh_catalogue):
    pk = post(BATCHES, {"prompt": "a fox", "settings": {"model": SDXL}}).json()["id"]
    CatalogueModel.objects.filter(pk=SDXL).update(enabled=False)
    catalogue.forget()
    errors = invalid(post(TEMPLATES, {"name": "x", "batch_id": pk}))
    assert errors.keys() == {"batch_id"}
    assert errors["batch_id"][0] == "model_unavailable"


def test_reference_images_are_looked_up_and_not_fetched(create, owner):
    def ask(**reference):
        settings = {"model": DEV, "references": [reference]}
        return create(name=str(reference), batch={"prompt": "a", "settings": settings}, defaults={})

    assert ask(id=str(make_reference(owner).pk)).status_code == 201
    # Nothing answers there.
    assert ask(url="https://127.0.0.1:9/a.png").status_code == 201
    foreign = ask(id=str(make_reference(make_user()).pk))
    assert invalid(foreign)["batch.settings.references.0"][0] == "unknown_reference"


def test_a_name_is_free_once_for_each_owner(create, template):
    assert invalid(create())["name"][0] == "duplicate"
    other = client_of(make_user()).post(TEMPLATES, NEW)
    assert other.status_code == 201
    assert create(name="Another").status_code == 201


def test_no_more_than_a_number_are_kept(create, template, monkeypatch):
    monkeypatch.setattr(templates, "TEMPLATES_MAX", 1)
    problem(create(name="Another"), 409, "limit_reached")
    assert Template.objects.count() == 1


def test_it_is_kept_once_with_a_key(post):
    first = post(TEMPLATES, NEW, HTTP_IDEMPOTENCY_KEY="k")
    again = post(TEMPLATES, NEW, HTTP_IDEMPOTENCY_KEY="k")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()


# --- changing -----------------------------------------------------------------------------------


def test_a_template_is_changed_field_by_field(api, template):
    told = api.patch(path_of(template), {"name": "New", "description": "x"}).json()
    assert (told["name"], told["description"], told["batch"]) == ("New", "x", BODY)
    assert told["updated_at"] > told["created_at"]
    told = api.patch(path_of(template), {"batch": {"prompt": "{place}"}}).json()
    assert (told["batch"], told["placeholders"]) == ({"prompt": "{place}"}, ["place"])
    assert api.get(path_of(template)).json() == told


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        # The default that is there is for a placeholder that is gone.
        ({"batch": {"prompt": "a"}}, "defaults.place", "unknown_placeholder"),
        ({"defaults": {"x": "y"}}, "defaults.x", "unknown_placeholder"),
        ({"batch": {"prompt": "{"}}, "batch.prompt", "invalid_placeholder"),
        ({"batch_id": "7" * 32}, "batch_id", "unknown_field"),
        ({"name": None}, "name", "null"),
    ],
)
def test_a_change_that_could_not_be_used_is_refused(body, field, code, api, template):
    before = Template.objects.values().get()
    assert invalid(api.patch(path_of(template), body))[field][0] == code
    assert Template.objects.values().get() == before


def test_a_name_that_is_taken_is_refused_on_change_too(api, template, create):
    create(name="Another")
    assert invalid(api.patch(path_of(template), {"name": "Another"}))["name"][0] == "duplicate"
    assert api.patch(path_of(template), {"name": "Shop"}).status_code == 200


def test_a_deleted_template_leaves_its_batches(api, template, start):
    batch, _ = made(start({"values": {"animal": "fox"}}))
    assert batch.template_id == template.pk
    assert api.delete(path_of(template)).status_code == 204
    problem(api.get(path_of(template)), 404, "not_found")
    batch.refresh_from_db()
    assert batch.template_id is None


def test_a_template_that_a_schedule_uses_is_not_deleted(api, template, owner):
    create_schedule(
        owner_id=owner.pk,
        name="x",
        rule="FREQ=DAILY",
        template_id=template.pk,
        values={"animal": "fox"},
    )
    problem(api.delete(path_of(template)), 409, "template_in_use")
    assert Template.objects.exists()


# --- starting -----------------------------------------------------------------------------------


def test_a_batch_is_made_with_the_values(start, template):
    answer = start({"values": {"animal": " fox "}})
    batch, (first, second) = made(answer)
    assert answer.json()["template_id"] == str(template.pk)
    assert (first.prompt, first.negative_prompt) == ("A fox at the sea", "no foxs")
    assert first.final_prompt == "A fox at the sea, retro style"
    assert second.prompt == 'A fox saying {"hi"}'
    assert (second.seed, second.settings["steps"]) == (7, 30)
    assert (batch.name, batch.tags, batch.priority) == ("Animals", ["red"], 7)


def test_a_value_is_taken_as_it_is_and_may_be_empty(start):
    _, (first, _) = made(start({"values": {"animal": "{place} {{", "place": ""}}))
    assert first.prompt == "A {place} {{ at"


def test_overrides_go_before_all_that_the_template_says(start):
    start_at = timezone.now() + timedelta(hours=1)
    overrides = {
        "name": "Today",
        "settings": {"steps": None, "width": 768, "height": 768},
        "style": "",
        "genre": "pop",
        "tags": [],
        "priority": 1,
        "start_at": start_at.isoformat(),
    }
    batch, rows = made(start({"values": {"animal": "fox"}, "overrides": overrides}))
    assert (batch.name, batch.style, batch.genre, batch.tags) == ("Today", "", "pop", [])
    assert (batch.priority, batch.status, batch.start_at) == (1, "scheduled", start_at)
    assert [row.settings for row in rows] == [{"model": SDXL, "width": 768, "height": 768}] * 2
    _, rows = made(start({"values": {"animal": "fox"}, "overrides": {"settings": {"steps": 9}}}))
    assert [row.settings["steps"] for row in rows] == [9, 9]


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "values.animal", "required"),
        ({"values": {"animal": "fox", "plaice": "x"}}, "values.plaice", "unknown_placeholder"),
        ({"values": {"animal": 7}}, "values.animal", "invalid"),
        ({"values": {"animal": None}}, "values.animal", "null"),
        ({"values": {"animal": "x" * 2_001}}, "values.animal", "max_length"),
        ({"values": []}, "values", "not_a_dict"),
        ({"values": {f"a{n}": "" for n in range(51)}}, "values", "too_many"),
        ({"values": {"animal": "x"}, "batch": {}}, "batch", "unknown_field"),
        ({"overrides": {"prompt": "x"}}, "overrides.prompt", "unknown_field"),
        ({"overrides": {"settings": {"model": None}}}, "overrides.settings.model", "null"),
        ({"overrides": {"settings": {"stepz": 1}}}, "overrides.settings.stepz", "unknown_field"),
    ],
)
def test_a_start_that_is_not_as_it_must_be_is_refused(body, field, code, start, nothing_happens):
    with nothing_happens():
        assert invalid(start(body))[field][0] == code


@pytest.mark.parametrize(
    ("overrides", "field", "code"),
    [
        ({"settings": {"model": "no/such"}}, "overrides.settings.model", "unknown_model"),
        ({"settings": {"steps": 10_000}}, "overrides.settings.steps", "out_of_range"),
        ({"count": 3}, "overrides.count", "conflict"),
        ({"seed": 3}, "overrides.seed", "conflict"),
        ({"start_at": "2020-01-01T00:00:00Z"}, "overrides.start_at", "in_the_past"),
        ({"settings": {"model": SCHNELL}}, "batch.prompts.1.settings.steps", "out_of_range"),
        (
            {"settings": {"references": [{"id": "7" * 32}]}},
            "overrides.settings.references.0",
            "unknown_reference",
        ),
    ],
)
def test_overrides_that_cannot_be_made_are_named_as_they_stand(
    overrides, field, code, start, nothing_happens
):
    with nothing_happens():
        errors = invalid(start({"values": {"animal": "fox"}, "overrides": overrides}))
    assert errors[field][0] == code


def test_a_filled_text_that_is_too_long_is_named(create, post, nothing_happens):
    answer = create(name="Long", batch={"prompts": [{"text": "{a}{a}{a}"}]}, defaults={})
    start = f"{TEMPLATES}{answer.json()['id']}/start/"
    with nothing_happens():
        errors = invalid(post(start, {"values": {"a": "x" * 1_999}}))
        assert errors["batch.prompts.0.text"][0] == "max_length"
        errors = invalid(post(start, {"values": {"a": ""}}))
        assert errors["batch.prompts.0.text"][0] == "blank"


def test_a_model_that_is_off_by_now_is_named(start, nothing_happens, fresh_catalogue):
    CatalogueModel.objects.filter(pk=SDXL).update(enabled=False)
    catalogue.forget()
    with nothing_happens():
        errors = invalid(start({"values": {"animal": "fox"}}))
    assert errors["batch.settings.model"][0] == "model_unavailable"


def test_it_is_started_once_with_a_key(start):
    body = {"values": {"animal": "fox"}}
    first = start(body, HTTP_IDEMPOTENCY_KEY="k")
    again = start(body, HTTP_IDEMPOTENCY_KEY="k")
    assert first.json() == again.json()
    assert Batch.objects.count() == 1


def test_a_dry_run_tells_what_would_be_made(api, template, nothing_happens):
    with nothing_happens():
        answer = api.post(f"{path_of(template)}start/?dry_run=true", {"values": {"animal": "fox"}})
    assert answer.status_code == 200, answer.content
    prompts = [item["prompt"] for item in answer.json()["items"]]
    assert prompts == ["A fox at the sea", 'A fox saying {"hi"}']


def test_a_template_that_goes_while_it_is_started_is_not_there(start, template, monkeypatch):
    plain = templates.ask_template

    def deleted_meanwhile(*args):
        asked = plain(*args)
        Template.objects.all().delete()
        return asked

    monkeypatch.setattr("batches.api.library.ask_template", deleted_meanwhile)
    problem(start({"values": {"animal": "fox"}}), 404, "not_found")
    assert not Batch.objects.exists()


# --- owners and cost ----------------------------------------------------------------------------


def test_what_is_anothers_is_not_there(template, nothing_happens):
    other = client_of(make_user())
    before = Template.objects.values().get()
    with nothing_happens():
        assert ids(other.get(TEMPLATES)) == []
        problem(other.get(path_of(template)), 404, "not_found")
        problem(other.patch(path_of(template), {"name": "x"}), 404, "not_found")
        problem(other.delete(path_of(template)), 404, "not_found")
        problem(other.post(f"{path_of(template)}start/", {}), 404, "not_found")
    assert Template.objects.values().get() == before


def test_the_list_is_newest_first_and_takes_the_same_queries_for_any_number(create, api):
    def count():
        with CaptureQueriesContext(connection) as queries:
            listed = ids(api.get(TEMPLATES))
        return listed, len(queries)

    create(name="0")
    _, one = count()
    for number in range(1, 6):
        create(name=str(number))
    listed, six = count()
    assert one == six
    names = [Template.objects.get(pk=pk).name for pk in listed]
    assert names == ["5", "4", "3", "2", "1", "0"]


def test_starting_takes_the_same_queries_for_any_size(create, start, warm_caches):
    def count(size):
        prompts = [{"text": "a {animal}"}] * size
        pk = create(name=str(size), batch={"prompts": prompts}, defaults={}).json()["id"]
        with CaptureQueriesContext(connection) as queries:
            made(start({"values": {"animal": "fox"}}, pk))
        return len(queries)

    count(1)
    assert count(2) == count(25)
