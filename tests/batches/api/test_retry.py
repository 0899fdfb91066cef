"""Trying failed and cancelled generations once more."""

import dataclasses
import uuid

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from batches import intake, invariants, lifecycle
from batches.models import Attempt, Batch, Generation, Lane
from batches.scheduling import admit
from generation.catalogue import get_model, load_models
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    LIGHTNING,
    SCHNELL,
    SDXL,
    fail,
    failed_batch,
    invalid,
    problem,
    refused,
    rows,
)
from tests.factories import make_batch, make_generation, new_generation

pytestmark = pytest.mark.django_db


@pytest.fixture
def retry(post):
    def call(row, body=None, **headers):
        path = BATCHES if isinstance(row, Batch) else GENERATIONS
        return post(f"{path}{row.pk}/retry/", {} if body is None else body, **headers)

    return call


@pytest.fixture
def retried(retry, api):
    """A retry that must be done; the answer is the object as it is afterwards."""

    def call(row, body=None):
        answer = retry(row, body)
        assert answer.status_code == 200, answer.content
        path = BATCHES if isinstance(row, Batch) else GENERATIONS
        assert answer.json() == api.get(f"{path}{row.pk}/").json()
        assert [one for one in invariants.check() if one.broken] == []
        return answer.json()

    return call


@pytest.fixture
def mixed(owner):
    """A batch of four: failed, cancelled, running, failed."""
    batch = make_batch(owner, size=4)
    assert lifecycle.cancel_generation(generation=batch.generations.get(index=1))
    admit()
    for index in (0, 3):
        fail(batch.generations.get(index=index))
    batch.refresh_from_db()
    return batch


def pks(batch, *indexes):
    return [str(batch.generations.get(index=index).pk) for index in indexes]


def statuses(body):
    return [item["status"] for item in body["items"]]


def submitted(post, owner, prompts, **shared):
    """A batch made through the API, of which everything has failed."""
    answer = post(BATCHES, {"prompts": prompts, **shared})
    assert answer.status_code == 202, answer.content
    batch = Batch.objects.get(pk=answer.json()["id"])
    while batch.generations.exclude(status="failed").exists():
        admit()
        for generation in batch.generations.filter(status="processing"):
            fail(generation)
    return batch


# --- Which --------------------------------------------------------------------------------------


def test_without_ids_all_that_failed_is_tried_again(retried, mixed):
    body = retried(mixed)
    assert statuses(body) == ["queued", "cancelled", "processing", "queued"]
    assert (body["failed_count"], body["cancelled_count"]) == (0, 1)
    assert [item["error"] for item in body["items"]] == [None] * 4
    assert Lane.objects.get().queued == 2


def test_a_batch_that_had_ended_goes_on(retried, owner):
    body = retried(failed_batch(owner, 5))
    assert (body["status"], body["finished_at"], body["progress"]) == ("processing", None, 0)
    assert statuses(body) == ["queued"] * 5
    assert [item["attempts"] for item in body["items"]] == [1] * 5


def test_with_ids_those_are_tried_again_and_no_others(retried, mixed):
    body = retried(mixed, {"ids": pks(mixed, 1, 3)})
    assert statuses(body) == ["failed", "queued", "processing", "queued"]


def test_a_cancelled_batch_goes_on_with_what_is_named(retried, owner):
    batch = make_batch(owner, size=2)
    assert lifecycle.cancel_batch(batch=batch)
    body = retried(batch, {"ids": pks(batch, 1)})
    assert (body["status"], statuses(body)) == ("pending", ["cancelled", "queued"])
    assert body["cancel_requested_at"] is None


def test_of_a_paused_batch_it_is_tried_when_that_is_resumed(retried, mixed):
    assert lifecycle.pause_batch(batch=mixed)
    body = retried(mixed)
    assert (body["status"], statuses(body)[0]) == ("paused", "pending")
    assert admit().admitted == []


def test_a_generation_is_tried_again(retried, owner):
    generation = make_generation(owner)
    admit()
    fail(generation)
    body = retried(generation)
    assert (body["status"], body["error"], body["attempts"]) == ("queued", None, 1)
    assert (body["started_at"], body["finished_at"]) == (None, None)


def test_an_item_is_tried_again_by_itself(retried, api, mixed):
    assert retried(mixed.generations.get(index=1))["status"] == "queued"
    body = api.get(f"{BATCHES}{mixed.pk}/").json()
    assert statuses(body) == ["failed", "queued", "processing", "failed"]
    assert (body["failed_count"], body["cancelled_count"]) == (2, 0)


def test_the_workers_are_woken(retry, mixed, queued):
    retry(mixed)
    assert queued() == {"control": 1}


# --- Which cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "processing", "completed", "cancelled", "paused"])
def test_a_batch_without_failures_has_nothing_to_retry(status, retry, owner):
    batch = make_batch(owner)
    ended = Now() if status in ("completed", "cancelled") else None
    Batch.objects.filter(pk=batch.pk).update(status=status, finished_at=ended)
    before = rows()
    refused(retry(batch), status, f"A {status} batch has no failed generations to retry.")
    assert rows() == before


def test_one_that_is_neither_failed_nor_cancelled_is_named_and_none_is_tried(retry, mixed):
    wrong, good = pks(mixed, 2, 0)
    before = rows()
    detail = f"Generation {wrong} is processing; only failed and cancelled ones can be retried."
    refused(retry(mixed, {"ids": [good, wrong]}), "processing", detail)
    assert rows() == before


def test_a_batch_that_is_being_cancelled_is_not_turned_back(retry, mixed):
    assert lifecycle.cancel_batch(batch=mixed)
    before = rows()
    detail = "A batch that is being cancelled cannot be retried."
    refused(retry(mixed), "processing", detail)
    refused(retry(mixed, {"ids": pks(mixed, 0)}), "processing", detail)
    detail = "A generation of a batch that is being cancelled cannot be retried."
    refused(retry(mixed.generations.get(index=0)), "failed", detail)
    assert rows() == before


def test_ids_that_are_not_of_the_batch_are_told_all_at_once(retry, mixed, owner):
    alone, elsewhere = make_generation(owner), make_batch(owner).generations.get(index=0)
    foreign, unknown = make_generation(), uuid.uuid4()
    asked = [str(one) for one in (alone.pk, pks(mixed, 0)[0], elsewhere.pk, foreign.pk, unknown)]
    before = rows()
    errors = invalid(retry(mixed, {"ids": asked}))
    assert errors == {
        f"ids.{n}": ("unknown_id", f"This batch has no generation {asked[n]}.")
        for n in (0, 2, 3, 4)
    }
    assert rows() == before


@pytest.mark.parametrize(
    ("ids", "field", "code"),
    [
        ([], "ids", "empty"),
        (None, "ids", "null"),
        ("all", "ids", "not_a_list"),
        ({}, "ids", "not_a_list"),
        ([7], "ids.0", "invalid"),
        ([True], "ids.0", "invalid"),
        ([None], "ids.0", "null"),
        (["x"], "ids.0", "invalid"),
        ([["x"]], "ids.0", "invalid"),
        (["x" * 5_000], "ids.0", "invalid"),
        ([str(uuid.uuid4())] * 26, "ids", "too_many"),
        ([7] * 1_000, "ids", "too_many"),
    ],
)
def test_ids_that_are_none_are_refused(ids, field, code, retry, mixed):
    before = rows()
    errors = invalid(retry(mixed, {"ids": ids}))
    assert {place: told for place, (told, _) in errors.items()} == {field: code}
    assert rows() == before


def test_an_id_that_is_given_twice_is_refused(retry, mixed):
    first, last = pks(mixed, 0, 3)
    before = rows()
    errors = invalid(retry(mixed, {"ids": [first, last, first.upper(), first.replace("-", "")]}))
    assert errors.keys() == {"ids.2", "ids.3"}
    assert {code for code, _ in errors.values()} == {"duplicate"}
    assert rows() == before


def test_as_many_ids_are_taken_as_a_batch_may_have(retry, mixed, settings):
    settings.MAX_BATCH_SIZE = 2
    assert "At most 2 ids" in invalid(retry(mixed, {"ids": pks(mixed, 0, 1, 3)}))["ids"][1]
    assert retry(mixed, {"ids": pks(mixed, 0, 3)}).status_code == 200


@pytest.mark.parametrize("body", [{"x": 1}, {"prompt": "a fox"}, {"settings": {"x": 1}}])
def test_unknown_fields_are_refused(body, retry, mixed):
    ((code, _),) = invalid(retry(mixed, body)).values()
    assert code == "unknown_field"


def test_a_single_generation_takes_no_ids(retry, mixed):
    generation = mixed.generations.get(index=0)
    assert invalid(retry(generation, {"ids": [str(generation.pk)]}))["ids"][0] == "unknown_field"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"settings": {}}'])
@pytest.mark.parametrize("kind", ["batch", "generation"])
def test_a_body_that_asks_for_nothing_changes_no_setting(kind, body, api, mixed):
    generation = mixed.generations.get(index=0)
    path = f"{BATCHES}{mixed.pk}/" if kind == "batch" else f"{GENERATIONS}{generation.pk}/"
    # Such as no model would be asked for now.
    Generation.objects.update(settings={"model": SCHNELL, "steps": 99}, input={"odd": True})
    answer = api.post(f"{path}retry/", body, content_type="application/json")
    assert answer.status_code == 200, answer.content
    generation.refresh_from_db()
    assert (generation.settings["steps"], generation.input) == (99, {"odd": True})


# --- With other settings ------------------------------------------------------------------------


def test_settings_go_before_those_of_each_generation_key_by_key(retried, post, owner):
    batch = submitted(
        post,
        owner,
        [
            {"text": "a fox", "seed": 5, "settings": {"steps": 2}},
            {"text": "a cat", "settings": {"aspect_ratio": "1:1"}},
        ],
        style="retro",
        settings={"model": SCHNELL, "aspect_ratio": "16:9", "output_format": "png"},
    )
    seeds = [one.seed for one in batch.generations.order_by("index")]
    retried(batch, {"settings": {"steps": 4, "parameters": {"go_fast": False}}})
    fox, cat = batch.generations.order_by("index")
    common = {
        "model": SCHNELL,
        "output_format": "png",
        "steps": 4,
        "parameters": {"go_fast": False},
    }
    assert fox.settings == {**common, "aspect_ratio": "16:9"}
    assert cat.settings == {**common, "aspect_ratio": "1:1"}
    assert fox.input == {
        "prompt": "a fox, retro style",
        "seed": 5,
        "aspect_ratio": "16:9",
        "num_inference_steps": 4,
        "output_format": "png",
        "go_fast": False,
        "num_outputs": 1,
        "megapixels": fox.input["megapixels"],
    }
    assert [fox.seed, cat.seed] == seeds
    assert (fox.prompt, fox.final_prompt) == ("a fox", "a fox, retro style")


def test_another_model_may_be_asked(retried, post, owner):
    batch = submitted(post, owner, [{"text": "a fox", "seed": 5}, {"text": "a cat"}], style="retro")
    seeds = [one.seed for one in batch.generations.order_by("index")]
    body = retried(batch, {"settings": {"model": DEV, "guidance_scale": 3}})
    for row, seed in zip(batch.generations.order_by("index"), seeds, strict=True):
        assert (row.model, row.provider, row.seed) == (DEV, "replicate", seed)
        assert row.input["guidance"] == 3
        assert row.input["prompt"] == row.final_prompt
        assert row.input["seed"] == seed
    # What was asked for the batch as a whole stays on record.
    assert body["settings"] == {}


def test_a_negative_prompt_is_kept(retried, post, owner):
    prompt = {"text": "a fox", "negative_prompt": "people", "settings": {"model": SDXL}}
    batch = submitted(post, owner, [prompt])
    retried(batch, {"settings": {"steps": 9}})
    row = batch.generations.get()
    assert (row.negative_prompt, row.input["negative_prompt"]) == ("people", "people")
    assert row.input["num_inference_steps"] == 9


def without_seed(model):
    parameters = {name: p for name, p in model.parameters.items() if p.role != "seed"}
    return dataclasses.replace(model, parameters=parameters)


def test_a_seed_goes_with_a_model_that_takes_none_and_comes_with_one_that_does(
    retried, owner, monkeypatch
):
    models = {**load_models(), DEV: without_seed(get_model(DEV))}
    monkeypatch.setattr(intake, "get_model", models.get)
    generation = make_generation(owner)
    admit()
    fail(generation)
    body = retried(generation, {"settings": {"model": DEV}})
    assert body["seed"] is None
    assert "seed" not in body["input"]
    admit()
    fail(generation)
    body = retried(generation, {"settings": {"model": SCHNELL}})
    assert body["seed"] >= 1
    assert body["input"]["seed"] == body["seed"]


def test_what_was_asked_before_stays_with_its_attempt(retried, owner):
    generation = make_generation(owner)
    admit()
    generation.refresh_from_db()
    attempt = lifecycle.begin_attempt(generation=generation)
    fail(generation)
    Attempt.objects.update(outcome="failed", finished_at=Now())
    retried(generation, {"settings": {"steps": 3}})
    attempt.refresh_from_db()
    assert (attempt.settings, attempt.input) == ({"model": SCHNELL}, {"prompt": "a lighthouse"})


def test_null_takes_a_setting_back(retry, owner):
    asked = {"model": SDXL, "width": 640, "height": 384, "steps": 20}
    batch = failed_batch(owner, 1)
    batch.generations.update(model=SDXL, settings=asked)
    body = {"settings": {"width": None, "height": None, "steps": None}}
    assert retry(batch, body).status_code == 200
    again = batch.generations.get()
    assert again.settings == {"model": SDXL}
    assert again.input["width"] == again.input["height"] == 1024
    problem(retry(batch, {"settings": {"model": None}}), 422, "invalid")


def test_a_single_generation_takes_other_settings_too(retried, owner):
    generation = make_generation(owner)
    admit()
    fail(generation)
    body = retried(generation, {"settings": {"steps": 3, "aspect_ratio": "1:1"}})
    assert body["settings"] == {"model": SCHNELL, "steps": 3, "aspect_ratio": "1:1"}
    assert (body["input"]["num_inference_steps"], body["seed"]) == (3, generation.seed)


@pytest.mark.parametrize(
    ("asked", "field", "code"),
    [
        ({"steps": 5}, "settings.steps", "out_of_range"),
        ({"steps": "5"}, "settings.steps", "invalid"),
        ({"guidance_scale": 2}, "settings.guidance_scale", "unsupported"),
        ({"parameters": {"x": 1}}, "settings.parameters.x", "unsupported"),
        ({"width": 512}, "settings.height", "required"),
        ({"model": "who/knows"}, "settings.model", "unknown_model"),
    ],
)
def test_settings_that_cannot_be_are_told_once_and_nothing_is_tried(
    asked, field, code, retry, mixed
):
    before = rows()
    for row in (mixed, mixed.generations.get(index=0)):
        response = retry(row, {"settings": asked})
        errors = problem(response, 422, "invalid")["errors"]
        assert [(error["field"], error["code"]) for error in errors] == [(field, code)]
    assert rows() == before


def test_what_a_generation_has_of_its_own_may_stand_against_another_model(retry, post, owner):
    prompt = {
        "text": "a fox",
        "negative_prompt": "people",
        "settings": {"model": SDXL, "steps": 30},
    }
    batch = submitted(post, owner, [prompt, {**prompt, "seed": 7}])
    before = rows()
    errors = invalid(retry(batch, {"settings": {"model": SCHNELL}}))
    assert {field: code for field, (code, _) in errors.items()} == {
        # There is no field for it in a retry: the model is what can be changed.
        "settings.model": "unsupported",
        "settings.steps": "out_of_range",
    }
    assert "negative_prompt" in errors["settings.model"][1]
    assert rows() == before


@pytest.mark.parametrize("body", [{}, {"settings": {"steps": 3}}])
def test_a_model_without_credentials_is_refused(body, retry, mixed, settings):
    settings.REPLICATE_API_TOKEN = ""
    before = rows()
    for row in (mixed, mixed.generations.get(index=0)):
        assert invalid(retry(row, body)) == {
            "settings.model": (
                "model_unavailable",
                f"{SCHNELL} is not available: No credentials for replicate are configured.",
            )
        }
    assert rows() == before


@pytest.mark.parametrize("body", [{}, {"settings": {"steps": 3}}])
def test_a_model_that_is_no_longer_there_is_refused_unless_another_is_named(
    body, retry, retried, mixed, monkeypatch
):
    retired = dataclasses.replace(get_model(SCHNELL), status="retired", status_note="Gone.")
    models = {DEV: get_model(DEV), SCHNELL: retired}
    monkeypatch.setattr(intake, "get_model", models.get)
    reason = f"{SCHNELL} is not available: Gone."
    assert invalid(retry(mixed, body)) == {"settings.model": ("model_unavailable", reason)}
    del models[SCHNELL]
    assert invalid(retry(mixed, body))["settings.model"][0] == "unknown_model"
    retried(mixed, {"settings": {"model": DEV}})


def test_each_model_that_is_not_there_is_told(retry, owner, monkeypatch):
    generations = [new_generation(model=model) for model in (SDXL, LIGHTNING, SDXL)]
    batch = lifecycle.submit_batch(owner_id=owner.pk, generations=generations, settings_asked={})
    admit()
    for generation in batch.generations.all():
        fail(generation)
    monkeypatch.setattr(intake, "get_model", {}.get)
    errors = problem(retry(batch), 422, "invalid")["errors"]
    assert [error["detail"] for error in errors] == [
        f"There is no model {model!r}." for model in (LIGHTNING, SDXL)
    ]


# --- Together with others -----------------------------------------------------------------------


def test_of_two_retries_one_is_done(retry, mixed, monkeypatch):
    """The other one comes between this one's look and its deed."""
    plans = intake.check_models

    def meanwhile(generations):
        monkeypatch.undo()
        Generation.objects.filter(pk__in=other).update(
            error_code="", finished_at=None, status="queued"
        )
        return plans(generations)

    ids = pks(mixed, 0, 3)
    other = ids[1:]
    monkeypatch.setattr("batches.api.control.check_models", meanwhile)
    detail = f"Generation {ids[1]} is queued; only failed and cancelled ones can be retried."
    refused(retry(mixed, {"ids": ids}), "queued", detail)
    # All of them, or none.
    assert mixed.generations.get(index=0).status == "failed"


def test_a_batch_that_is_deleted_meanwhile_is_not_found(retry, mixed, monkeypatch):
    def meanwhile(generations):
        monkeypatch.undo()
        lifecycle.delete_batch(batch=mixed)
        return []

    monkeypatch.setattr("batches.api.control.check_models", meanwhile)
    problem(retry(mixed), 404, "not_found")


@pytest.mark.usefixtures("warm_caches")
@pytest.mark.parametrize("overrides", [{}, {"output_format": "png"}])
@pytest.mark.parametrize("with_ids", [False, True])
def test_a_retry_takes_the_same_number_of_queries_for_any_size(with_ids, overrides, post, owner):
    def queries(batch):
        indexes = range(batch.total_count)
        body = {"ids": pks(batch, *indexes)} if with_ids else {}
        body["settings"] = overrides
        with CaptureQueriesContext(connection) as captured:
            assert post(f"{BATCHES}{batch.pk}/retry/", body).status_code == 200
        return [query["sql"] for query in captured]

    few, many = map(queries, [failed_batch(owner, 5), failed_batch(owner, 25)])
    assert len(few) == len(many), "\n".join(many)
