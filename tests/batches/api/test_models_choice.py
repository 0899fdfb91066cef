"""Which model makes a picture: what is available here, how many at a time, and who stands in."""

import json
import tracemalloc

import pytest

from batches.catalogue import load_models
from batches.intake import PromptAsked, plan_generations
from batches.models import Batch, CatalogueModel, Generation
from batches.scheduling import admit
from generation import catalogue as data_file
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    LIGHTNING,
    MODELS,
    SCHNELL,
    SDXL,
    fail,
    invalid,
    problem,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("fresh_catalogue")]

OWN = "own/model"
COUNT = "num_outputs"  # the count parameter of the models used here


def make_model(model_id=OWN, *, like=SCHNELL, without=(), parameters=None, **changes):
    """A model of the operator's own, much like another."""
    entry = {**data_file.load_entries()[like], "fallbacks": [], **changes}
    own = {**entry["parameters"], **(parameters or {})}
    entry["parameters"] = {name: one for name, one in own.items() if name not in without}
    data_file.parse_entry(model_id, entry)
    return CatalogueModel.objects.create(
        id=model_id, provider=entry["provider"], definition=json.dumps(entry), is_custom=True
    )


def single(model_id, **fields):
    return {"prompt": "a fox", "model_id": model_id, **fields}


def batch_of(model_id, count=1, **settings):
    return {"prompt": "a fox", "count": count, "settings": {"model": model_id, **settings}}


def items():
    return list(Generation.objects.order_by("index"))


# --- Available here -------------------------------------------------------------------------------


def refused_reason(post, api, model_id):
    """Why a model is refused, which its entry in the list says too."""
    shown = api.get(f"{MODELS}{model_id}/").json()
    assert shown["available"] is False
    for path, body, field in (
        (BATCHES, batch_of(model_id), "settings.model"),
        (GENERATIONS, single(model_id), "model_id"),
    ):
        assert invalid(post(path, body)) == {
            field: (
                "model_unavailable",
                f"{model_id} is not available: {shown['unavailable_reason']}",
            )
        }
    assert not Generation.objects.exists()
    return shown["unavailable_reason"]


def accepted(post, api, model_id):
    shown = api.get(f"{MODELS}{model_id}/").json()
    assert (shown["available"], shown["unavailable_reason"]) == (True, "")
    assert post(GENERATIONS, single(model_id)).status_code == 202
    return Generation.objects.latest("created_at")


def test_a_model_that_is_switched_off_is_refused_with_the_reason(post, api):
    CatalogueModel.objects.filter(pk=SCHNELL).update(enabled=False, notes="Too dear.")
    reason = refused_reason(post, api, SCHNELL)
    assert reason == "It is switched off on this installation."
    shown = api.get(f"{MODELS}{SCHNELL}/").json()
    assert (shown["enabled"], shown["status"], shown["notes"]) == (False, "disabled", "Too dear.")
    accepted(post, api, DEV)


@pytest.mark.parametrize(
    ("status", "note", "reason"),
    [
        ("retired", "Use another.", "Use another."),
        ("unavailable", "", "The model is unavailable."),
    ],
)
def test_a_model_that_is_not_active_says_why(status, note, reason, post, api):
    make_model(status=status, status_note=note)
    assert refused_reason(post, api, OWN) == reason
    assert api.get(f"{MODELS}{OWN}/").json()["status"] == status


def test_a_malformed_entry_makes_one_model_unavailable(post, api):
    CatalogueModel.objects.filter(pk=SDXL).update(definition="{")
    assert refused_reason(post, api, SDXL) == "Its entry in the catalogue is malformed."
    listed = {model["id"]: model["available"] for model in api.get(MODELS).json()["results"]}
    assert not listed[SDXL]
    assert listed[SCHNELL]


def test_a_model_of_a_provider_that_is_not_known_is_refused(post, api):
    make_model(provider="nobody")
    assert refused_reason(post, api, OWN) == "There is no provider 'nobody'."


def own_workflow(provider, **changes):
    """A model of a provider that takes workflows, like one of the data file."""
    like = next(
        one for one, entry in data_file.load_entries().items() if entry["provider"] == provider
    )
    return make_model(like=like, provider=provider, status="active", **changes)


def test_a_model_at_runpod_needs_a_key_and_an_endpoint(post, api, settings):
    own_workflow("runpod")
    settings.RUNPOD_API_KEY = settings.RUNPOD_ENDPOINT_ID = ""
    assert refused_reason(post, api, OWN) == "No credentials for runpod are configured."
    settings.RUNPOD_ENDPOINT_ID = "abc"
    assert refused_reason(post, api, OWN) == "No credentials for runpod are configured."
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "key", ""
    assert refused_reason(post, api, OWN) == "No endpoint of runpod is configured."
    settings.RUNPOD_ENDPOINT_ID = "abc"
    assert accepted(post, api, OWN).provider == "runpod"


def test_a_model_at_runpod_may_have_an_endpoint_of_its_own(post, api, settings):
    own_workflow("runpod", endpoint="own123")
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "key", ""
    assert accepted(post, api, OWN).provider == "runpod"


def test_a_model_on_comfyui_needs_a_server(post, api, settings):
    own_workflow("comfyui")
    settings.COMFYUI_URL = ""
    assert refused_reason(post, api, OWN) == "No server for comfyui is configured."
    settings.COMFYUI_URL = "http://127.0.0.1:8188"
    assert accepted(post, api, OWN).provider == "comfyui"


def test_a_change_of_the_catalogue_is_in_force_for_the_next_request(post):
    assert post(BATCHES, batch_of(SCHNELL)).status_code == 202
    row = CatalogueModel.objects.get(pk=SCHNELL)
    row.enabled = False
    row.save()
    assert invalid(post(BATCHES, batch_of(SCHNELL)))["settings.model"][0] == "model_unavailable"


# --- How many at a time ---------------------------------------------------------------------------


def test_a_model_that_counts_makes_several_images_of_one_item(post):
    assert post(BATCHES, batch_of(SCHNELL, num_outputs=4)).status_code == 202
    (item,) = items()
    assert (item.output_count, item.input[COUNT]) == (4, 4)
    assert item.settings == {"model": SCHNELL, "num_outputs": 4}


def test_a_single_generation_makes_several_images_if_the_model_can(post, api):
    answer = post(GENERATIONS, single(SCHNELL, num_outputs=3))
    assert answer.status_code == 202
    (item,) = items()
    assert (item.output_count, item.input[COUNT]) == (3, 3)


def test_what_is_more_than_the_model_makes_at_a_time_becomes_several_items(post):
    body = {**batch_of(SCHNELL, num_outputs=10), "seed": 7}
    answer = post(BATCHES, body)
    assert answer.status_code == 202
    assert answer.json()["total_count"] == 3
    assert [item.output_count for item in items()] == [4, 4, 2]
    assert [item.input[COUNT] for item in items()] == [4, 4, 2]
    assert [item.settings["num_outputs"] for item in items()] == [4, 4, 2]
    seeds = [item.seed for item in items()]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert [item.input["seed"] for item in items()] == seeds
    assert Batch.objects.get().settings["num_outputs"] == 10


def test_a_model_that_cannot_count_makes_one_image_of_each_item(post):
    make_model(without=(COUNT,))
    prompts = [
        {"text": "a fox", "custom_id": "fox", "metadata": {"page": 1}, "name": "Fox"},
        {"text": "a hare", "settings": {"num_outputs": 1}},
        {"text": "an owl", "settings": {"model": SCHNELL}},
    ]
    body = {"prompts": prompts, "settings": {"model": OWN, "num_outputs": 3}}
    assert post(BATCHES, body).status_code == 202
    assert [(item.prompt, item.output_count) for item in items()] == [
        *[("a fox", 1)] * 3,
        ("a hare", 1),
        ("an owl", 3),
    ]
    for item in items()[:3]:
        assert (item.custom_id, item.metadata, item.name) == ("fox", {"page": 1}, "Fox")
        assert COUNT not in item.input


def test_variations_and_images_of_each_multiply(post):
    make_model(without=(COUNT,))
    assert post(BATCHES, batch_of(OWN, count=3, num_outputs=2)).status_code == 202
    assert len({item.seed for item in items()}) == 6


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (batch_of(OWN, num_outputs=5), "settings.num_outputs"),
        (batch_of(OWN, count=3, num_outputs=2), "settings.num_outputs"),
        (
            {"prompts": [{"text": "a"}, {"text": "b", "settings": {"model": OWN, COUNT: 9}}]},
            "prompts.1.settings.num_outputs",
        ),
        (
            {"prompts": [{"text": "a"}] * 2, "settings": {"model": OWN, COUNT: 3}},
            "settings.num_outputs",
        ),
    ],
)
def test_the_items_that_images_become_count_for_the_limit(
    body, field, post, settings, nothing_happens
):
    make_model(without=(COUNT,))
    settings.MAX_BATCH_SIZE = 4
    with nothing_happens():
        errors = invalid(post(BATCHES, body))
    assert errors.keys() == {field}
    assert errors[field][0] == "too_many"
    assert "at most 4" in errors[field][1]


def test_too_many_items_are_told_with_what_else_is_wrong(post, settings):
    make_model(without=(COUNT,))
    settings.MAX_BATCH_SIZE = 4
    errors = invalid(post(BATCHES, batch_of(OWN, num_outputs=5, steps=99)))
    assert errors.keys() == {"settings.num_outputs", "settings.steps"}


def test_what_is_too_much_is_counted_before_it_is_made(settings):
    make_model(without=(COUNT,))
    load_models()
    settings.MAX_BATCH_SIZE = 200
    prompts = [PromptAsked("a fox")] * 200
    tracemalloc.start()
    try:
        (problem,) = plan_generations(prompts, {"model": OWN, COUNT: 100})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert problem.code == "too_many"
    assert "20000" in problem.detail
    # The settings of 20,000 submissions would take 4 MB.
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(("model_id", "at_most"), [(SCHNELL, 4), (OWN, 1)])
def test_a_single_generation_is_refused_more_than_the_model_makes(
    model_id, at_most, post, nothing_happens
):
    make_model(without=(COUNT,))
    for body in (
        single(model_id, num_outputs=at_most + 1),
        {"prompt": "a fox", "settings": {"model": model_id, "num_outputs": at_most + 1}},
    ):
        with nothing_happens():
            (error,) = problem(post(GENERATIONS, body), 422, "invalid")["errors"]
        assert error["field"].split(".")[-1] == "num_outputs"
        assert (error["code"], error["allowed"]["max"]) == ("out_of_range", at_most)
    assert post(GENERATIONS, single(model_id, num_outputs=at_most)).status_code == 202


@pytest.mark.parametrize("count", [0, -1, 101, 1.5, "2", True])
def test_a_number_of_images_that_cannot_be_is_refused(count, post, nothing_happens):
    with nothing_happens():
        assert invalid(post(BATCHES, batch_of(SCHNELL, num_outputs=count))).keys() == {
            "settings.num_outputs"
        }


# --- Who stands in --------------------------------------------------------------------------------


def ways():
    return [way["model"] for way in Generation.objects.get().fallbacks]


def test_models_that_can_do_the_same_stand_in_in_their_order(post):
    make_model(fallbacks=[LIGHTNING, DEV])
    body = single(OWN, seed=7, aspect_ratio="1:1", output_format="png")
    assert post(GENERATIONS, body).status_code == 202
    item = Generation.objects.get()
    assert (item.model, [way["model"] for way in item.fallbacks]) == (OWN, [LIGHTNING, DEV])
    for way in item.fallbacks:
        model = data_file.get_model(way["model"])
        alone = model.resolve(
            {"prompt": "a fox", "seed": 7, "aspect_ratio": "1:1", "output_format": "png"}
        )
        assert way == {"model": model.id, "provider": "replicate", "input": alone.input}
        assert way["input"]["seed"] == 7


def test_a_chosen_seed_is_kept_by_those_who_stand_in(post):
    make_model(fallbacks=[DEV])
    assert post(BATCHES, batch_of(OWN, count=3)).status_code == 202
    for item in items():
        assert item.fallbacks[0]["input"]["seed"] == item.seed


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ({}, [SCHNELL, DEV]),
        ({"steps": 9}, [DEV]),
        ({"guidance_scale": 3}, [DEV]),
        ({"num_outputs": 2}, [SCHNELL, DEV]),
    ],
)
def test_a_model_that_cannot_do_what_is_asked_does_not_stand_in(asked, left, post):
    make_model(like=DEV, fallbacks=[SCHNELL, "who/knows", DEV])
    assert post(GENERATIONS, single(OWN, **asked)).status_code == 202
    assert ways() == left


def test_a_model_that_is_not_available_does_not_stand_in(post, settings):
    settings.COMFYUI_URL = ""
    own_workflow_id = "own/flow"
    like = next(
        one for one, entry in data_file.load_entries().items() if entry["provider"] == "comfyui"
    )
    make_model(own_workflow_id, like=like, provider="comfyui", status="active")
    CatalogueModel.objects.filter(pk=SCHNELL).update(enabled=False)
    make_model(fallbacks=[own_workflow_id, SCHNELL, DEV])
    assert post(GENERATIONS, single(OWN)).status_code == 202
    assert ways() == [DEV]
    settings.COMFYUI_URL = "http://127.0.0.1:8188"
    Generation.objects.all().delete()
    assert post(GENERATIONS, single(OWN)).status_code == 202
    assert ways() == [own_workflow_id, DEV]


def test_a_model_without_others_has_nobody_to_stand_in(post):
    make_model()
    assert post(GENERATIONS, single(OWN)).status_code == 202
    assert ways() == []


# --- Tried once more ------------------------------------------------------------------------------


@pytest.fixture
def retried(post):
    """What a failed generation is asked anew with these settings, or the refusal."""

    def retry(generation, **settings):
        fail(generation)
        answer = post(f"{GENERATIONS}{generation.pk}/retry/", {"settings": settings})
        if answer.status_code == 422:
            return invalid(answer)
        assert answer.status_code == 200, answer.content
        generation.refresh_from_db()
        return generation

    return retry


def test_an_item_that_was_one_of_several_stays_one_when_it_is_tried_again(post, retried):
    make_model(fallbacks=[DEV])
    post(BATCHES, batch_of(OWN, num_outputs=6))
    admit()
    again = retried(items()[1], steps=3)
    assert (again.output_count, again.input[COUNT]) == (2, 2)
    assert again.settings == {"model": OWN, "num_outputs": 2, "steps": 3}
    assert [way["input"]["num_inference_steps"] for way in again.fallbacks] == [3]


def test_another_model_is_refused_when_it_makes_fewer_images_at_a_time(post, retried):
    make_model(without=(COUNT,))
    post(BATCHES, batch_of(SCHNELL, num_outputs=4))
    admit()
    (item,) = items()
    assert retried(item, model=OWN)["settings.num_outputs"][0] == "out_of_range"


def test_another_model_has_its_own_to_stand_in(post, retried):
    make_model(fallbacks=[LIGHTNING])
    make_model("own/other", fallbacks=[DEV])
    post(GENERATIONS, single(OWN))
    admit()
    assert ways() == [LIGHTNING]
    again = retried(Generation.objects.get(), model="own/other", num_outputs=2)
    assert (again.model, again.output_count, ways()) == ("own/other", 2, [DEV])
