import uuid
from datetime import UTC, datetime

import pytest

from batches.models import Batch, Generation, Lane
from tests.batches.api.support import (
    BATCHES,
    DEV,
    LIGHTNING,
    SCHNELL,
    SDXL,
    client_of,
    invalid,
)

pytestmark = pytest.mark.django_db

BATCH_FIELDS = {
    *("id", "name", "status", "total_count", "completed_count", "failed_count", "cancelled_count"),
    *("progress", "eta_seconds", "cost_usd", "created_at", "started_at", "finished_at"),
    *("version", "items"),
}
ITEM_FIELDS = {
    *("id", "index", "custom_id", "status", "progress", "prompt", "seed", "error", "attempts"),
    "image",
}
FULL = {
    "name": "Lighthouses",
    "prompts": [
        {
            "text": "  A lighthouse at dawn ",
            "name": "Dawn",
            "negative_prompt": "people",
            "seed": 7,
            "custom_id": "dawn-1",
            "metadata": {"shelf": [1, 2.5, None, True, {"deep": "\N{FOX FACE}"}]},
            "settings": {"steps": 30, "width": 768},
        },
        {"text": "A lighthouse in a storm", "settings": {"model": SCHNELL, "steps": 4}},
    ],
    "style": "retro",
    "genre": "landscape",
    "settings": {
        "model": SDXL,
        "width": 1024,
        "height": 768,
        "steps": 20,
        "parameters": {},
    },
    "priority": 9,
    "tags": ["sea", "light"],
}


def test_every_field_of_a_batch_is_kept(post, owner):
    answer = post(BATCHES, FULL)
    assert answer.status_code == 202, answer.content
    batch = Batch.objects.get()
    assert batch.owner == owner
    assert (batch.name, batch.style, batch.genre) == ("Lighthouses", "retro", "landscape")
    assert (batch.priority, batch.tags, batch.status) == (9, ["sea", "light"], "pending")
    assert batch.settings == FULL["settings"]
    assert (batch.total_count, batch.version) == (2, 1)

    first, second = batch.generations.order_by("index")
    assert first.prompt == "A lighthouse at dawn"
    assert first.final_prompt == "A lighthouse at dawn, retro style, landscape"
    assert (first.name, first.custom_id, first.seed) == ("Dawn", "dawn-1", 7)
    assert first.negative_prompt == "people"
    assert first.metadata == FULL["prompts"][0]["metadata"]
    assert (first.model, first.provider) == (SDXL, "replicate")
    assert first.settings == {**FULL["settings"], "steps": 30, "width": 768}
    assert first.input == {
        "prompt": "A lighthouse at dawn, retro style, landscape",
        "negative_prompt": "people",
        "seed": 7,
        "num_inference_steps": 30,
        "width": 768,
        "height": 768,
        "num_outputs": 1,
    }
    assert (second.index, second.custom_id, second.metadata) == (1, "", {})
    for row in (first, second):
        assert (row.owner, row.status, row.priority) == (owner, "queued", 9)
        assert (row.attempt_count, row.error_code, row.finished_at) == (0, "", None)


def test_one_prompt_may_ask_for_another_model(post):
    post(BATCHES, FULL)
    second = Generation.objects.get(index=1)
    assert second.model == second.settings["model"] == SCHNELL
    # Asked for 1024x768, which is 4:3, in a model of named ratios.
    assert second.input["aspect_ratio"] == "4:3"
    assert second.input["num_inference_steps"] == 4
    assert "width" not in second.input


def test_a_prompt_alone_gets_the_defaults(post):
    answer = post(BATCHES, {"prompt": "a fox"})
    assert answer.status_code == 202
    batch = Batch.objects.get()
    row = batch.generations.get()
    assert (batch.name, batch.style, batch.genre, batch.tags) == ("", "", "", [])
    assert (batch.priority, batch.settings, batch.total_count) == (3, {}, 1)
    assert row.model == row.settings["model"] == SCHNELL
    assert row.final_prompt == row.input["prompt"] == "a fox"
    assert row.input == {
        "prompt": "a fox",
        "seed": row.seed,
        "aspect_ratio": "1:1",
        "megapixels": "1",
        "num_outputs": 1,
    }


@pytest.mark.parametrize(
    ("woven", "final"),
    [
        ({}, "a fox"),
        ({"style": "", "genre": ""}, "a fox"),
        ({"style": "retro"}, "a fox, retro style"),
        ({"genre": "portrait"}, "a fox, portrait"),
        ({"style": "retro", "genre": "portrait"}, "a fox, retro style, portrait"),
    ],
)
@pytest.mark.parametrize("form", [{"prompt": "a fox"}, {"prompts": [{"text": "a fox"}]}])
def test_style_and_genre_are_woven_into_what_is_sent(form, woven, final, post):
    post(BATCHES, form | woven)
    row = Generation.objects.get()
    assert row.prompt == "a fox"
    assert row.final_prompt == row.input["prompt"] == final


def test_seeds_that_are_not_asked_for_are_chosen_different_and_on_record(post):
    answer = post(BATCHES, {"prompts": [{"text": "a fox"}] * 24 + [{"text": "a fox", "seed": 5}]})
    rows = Generation.objects.order_by("index")
    seeds = [row.seed for row in rows]
    assert len(set(seeds)) == 25
    assert seeds[24] == 5
    assert all(1 <= seed < 2**31 for seed in seeds)
    assert [row.input["seed"] for row in rows] == seeds
    assert [item["seed"] for item in answer.json()["items"]] == seeds


def test_the_same_seed_may_be_asked_for_twice(post):
    answer = post(
        BATCHES, {"prompts": [{"text": "a fox", "seed": 5}, {"text": "a cat", "seed": 5}]}
    )
    assert [item["seed"] for item in answer.json()["items"]] == [5, 5]


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_seeds_at_both_ends_of_the_range_are_kept(seed, post):
    assert post(BATCHES, {"prompt": "a fox", "seed": seed}).status_code == 202
    assert Generation.objects.get().seed == seed


def test_variations_of_one_prompt_share_all_but_the_seed(post):
    answer = post(
        BATCHES,
        {"prompt": "a fox", "count": 25, "seed": 11, "settings": {"model": DEV, "steps": 9}},
    )
    assert answer.status_code == 202
    rows = list(Generation.objects.order_by("index"))
    assert [row.index for row in rows] == list(range(25))
    assert rows[0].seed == 11
    assert len({row.seed for row in rows}) == 25
    assert {row.prompt for row in rows} == {"a fox"}
    assert {row.input["num_inference_steps"] for row in rows} == {9}


def eta(answer):
    """The answer to a submission does not wait for an estimate."""
    return {name: answer.json()[name] for name in ("eta_seconds", "eta_reason")}


def test_the_answer_is_the_batch_as_it_is_read(post, api):
    answer = post(BATCHES, FULL)
    body = answer.json()
    assert answer["Location"] == f"http://testserver{BATCHES}{body['id']}/"
    read = api.get(answer["Location"])
    assert read.status_code == 200
    assert read.json() == {**body, **eta(read)}
    assert read.json()["eta_seconds"] > 0
    assert (body["eta_seconds"], body["eta_reason"]) == (None, "not_estimated")


def test_the_location_is_at_the_public_address(post, settings):
    settings.PUBLIC_URL = "https://pictures.example"
    answer = post(BATCHES, {"prompt": "a fox"})
    assert answer["Location"] == f"https://pictures.example{BATCHES}{answer.json()['id']}/"


def test_a_batch_has_every_field_of_the_contract(post):
    body = post(BATCHES, {"prompts": [{"text": "a fox", "custom_id": "fox"}]}).json()
    assert body.keys() >= BATCH_FIELDS
    assert body["status"] == "pending"
    assert (body["total_count"], body["completed_count"], body["failed_count"]) == (1, 0, 0)
    assert (body["cancelled_count"], body["progress"], body["eta_seconds"]) == (0, 0, None)
    assert body["cost_usd"] == "0.000000"
    assert body["created_at"].endswith("Z")
    assert (body["started_at"], body["finished_at"], body["version"]) == (None, None, 1)
    (item,) = body["items"]
    assert item.keys() >= ITEM_FIELDS
    assert str(uuid.UUID(item["id"])) == item["id"]
    assert (item["index"], item["custom_id"], item["status"]) == (0, "fox", "queued")
    assert (item["progress"], item["prompt"], item["attempts"]) == (0, "a fox", 0)
    assert (item["error"], item["image"]) == (None, None)


def test_the_batch_is_put_in_line_and_the_workers_are_woken_once(post, owner, queued):
    post(BATCHES, {"prompt": "a fox", "count": 25})
    assert Lane.objects.get(owner=owner).queued == 25
    assert queued() == {"control": 1}
    post(BATCHES, {"prompt": "a fox", "count": 5})
    assert Lane.objects.get(owner=owner).queued == 30
    assert queued() == {"control": 1}


def test_nothing_is_sent_before_the_rows_are_committed(api, queued, owner):
    # This test's transaction is never committed.
    assert api.post(BATCHES, {"prompt": "a fox"}).status_code == 202
    assert queued() == {}


def test_each_user_has_a_line_of_their_own(post, owner, django_user_model):
    post(BATCHES, {"prompt": "a fox"})
    other = django_user_model.objects.create_user("other")
    client_of(other).post(BATCHES, {"prompt": "a fox", "count": 2})
    assert Lane.objects.get(owner=owner).queued == 1
    assert Lane.objects.get(owner=other).queued == 2


@pytest.mark.parametrize("model", [SCHNELL, DEV, SDXL, LIGHTNING])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"aspect_ratio": "16:9"},
        {"width": 1024, "height": 1024},
        {"output_format": "png"},
        {"steps": 2},
    ],
)
def test_every_model_of_the_catalogue_takes_the_common_settings(model, asked, post):
    answer = post(BATCHES, {"prompt": "a fox", "settings": {"model": model, **asked}})
    assert answer.status_code == 202, answer.content
    assert Generation.objects.get().settings == {"model": model, **asked}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 4_000},
        {"prompts": [{"text": "\N{FOX FACE}" * 4_000}]},
        {"prompt": "a fox", "tags": [f"{n:050}" for n in range(20)], "name": "n" * 200},
        {"prompt": "a fox", "priority": 0},
        {"prompts": [{"text": "a fox", "custom_id": "c" * 200, "name": "n" * 200}]},
        {"prompts": [{"text": "a fox", "metadata": {"note": "x" * 4_080}}]},
        {"prompts": [{"text": "a fox", "metadata": {}}], "settings": {}},
        {"prompt": "a fox", "settings": {"model": DEV, "guidance_scale": 3}},
        {"prompt": "a fox", "settings": {"parameters": {"go_fast": False}}},
    ],
)
def test_what_is_just_within_the_limits_is_taken(body, post, api):
    answer = post(BATCHES, body)
    assert answer.status_code == 202, answer.content
    read = api.get(answer["Location"])
    assert read.json() == {**answer.json(), **eta(read)}


@pytest.mark.usefixtures("warm_caches")
def test_submitting_takes_as_many_queries_for_25_prompts_as_for_one(api, django_assert_num_queries):
    # Authentication; a savepoint, four writes, and its release.
    for count in (1, 25):
        with django_assert_num_queries(7):
            assert api.post(BATCHES, {"prompt": "a fox", "count": count}).status_code == 202


@pytest.mark.parametrize(
    ("start_at", "moment"),
    [
        ("2999-01-01T09:30:00Z", datetime(2999, 1, 1, 9, 30, tzinfo=UTC)),
        ("2999-01-01t09:30:00z", datetime(2999, 1, 1, 9, 30, tzinfo=UTC)),
        ("2999-01-01T09:30:00+02:30", datetime(2999, 1, 1, 7, tzinfo=UTC)),
        ("2999-01-01T09:30:00-00:00", datetime(2999, 1, 1, 9, 30, tzinfo=UTC)),
        ("2999-01-01T09:30:00.5Z", datetime(2999, 1, 1, 9, 30, 0, 500_000, tzinfo=UTC)),
        ("2999-01-01T09:30:00.123456789Z", datetime(2999, 1, 1, 9, 30, 0, 123_456, tzinfo=UTC)),
    ],
)
def test_a_time_to_start_is_one_of_rfc_3339(start_at, moment, api):
    answer = api.post(BATCHES, {"prompt": "a fox", "start_at": start_at})
    assert answer.status_code == 202, answer.content
    assert Batch.objects.get().start_at == moment


@pytest.mark.parametrize(
    ("start_at", "code"),
    [
        ("2999-W01-1T09:30:00Z", "invalid"),
        ("29990101T093000Z", "invalid"),
        ("2999-01-01T093000Z", "invalid"),
        ("2999-01-01T09:30Z", "invalid"),
        ("2999-01-01T09:30:00+0200", "invalid"),
        ("2999-01-01T09:30:00+02", "invalid"),
        ("2999-01-01T09:30:00+02:00:01", "invalid"),
        ("2999-01-01T09:30:00,5Z", "invalid"),
        ("2999-01-01T09:30:00.Z", "invalid"),
        ("2999-01-01T24:00:00Z", "invalid"),
        ("2999-01-01T09:30:00+24:00", "invalid"),
        ("2999-02-29T09:30:00Z", "invalid"),
        ("2999-13-01T09:30:00Z", "invalid"),
        ("2999-1-1T09:30:00Z", "invalid"),
        (" 2999-01-01T09:30:00Z", "invalid"),
        ("2999-01-01T09:30:00Z\n", "invalid"),
        ("2999-01-01x09:30:00Z", "invalid"),
        ("\N{FULLWIDTH DIGIT TWO}999-01-01T09:30:00Z", "invalid"),
        ("9999-12-31T23:59:59-23:59", "invalid"),
        ("9" * 5_000, "invalid"),
        (32_472_144_000, "invalid"),
        ("2999-01-01T09:30:00", "no_offset"),
        ("2999-01-01", "no_offset"),
    ],
)
def test_a_time_to_start_that_is_none_of_rfc_3339_is_refused(start_at, code, api):
    answer = api.post(BATCHES, {"prompt": "a fox", "start_at": start_at})
    ((place, (told, _)),) = invalid(answer).items()
    assert (place, told) == ("start_at", code)
    assert not Batch.objects.exists()


def test_a_batch_that_starts_later_is_not_waited_for(api):
    body, headers = {"prompt": "a fox"}, {"Prefer": "wait=60"}
    assert "X-Picture-Wait" in api.post(BATCHES, body, headers=headers)
    later = {**body, "start_at": "2999-01-01T00:00:00Z"}
    answer = api.post(BATCHES, later, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (202, "scheduled")
    assert "X-Picture-Wait" not in answer
