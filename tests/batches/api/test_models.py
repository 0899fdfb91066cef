import json
from decimal import Decimal

import pytest

from batches.api.serializers import (
    ModelSerializer,
    ParameterSerializer,
    TakenReferencesSerializer,
)
from batches.models import CatalogueModel, Generation
from generation.catalogue import load_models
from tests.batches.api.support import BATCHES, DEV, MODELS, SCHNELL, SDXL, problem

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("fresh_catalogue")]

ACTIVE = [model.id for model in load_models().values() if model.is_active]


@pytest.fixture
def everywhere(settings):
    """Every provider is configured."""
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "key", "endpoint"
    settings.COMFYUI_URL = "http://127.0.0.1:9"


def listed(api):
    return {model["id"]: model for model in api.get(MODELS).json()["results"]}


def test_the_whole_catalogue_is_listed(api, everywhere):
    body = api.get(MODELS).json()
    assert (body["next"], body["previous"]) == (None, None)
    assert [model["id"] for model in body["results"]] == list(load_models())
    for model in body["results"]:
        assert model["available"] is (model["status"] == "active")
        assert bool(model["unavailable_reason"]) is not model["available"]
        assert (model["enabled"], model["notes"]) == (True, "")


def test_the_list_names_models_of_every_provider(api):
    assert {model["provider"] for model in listed(api).values()} == {
        "replicate",
        "runpod",
        "comfyui",
    }


@pytest.mark.parametrize("model_id", load_models())
def test_a_model_is_shown_as_in_the_list(model_id, api):
    model = api.get(f"{MODELS}{model_id}/").json()
    assert model == listed(api)[model_id]
    assert model["id"] == model_id


def test_what_is_shown_is_what_the_schema_says(api):
    for model in listed(api).values():
        assert model.keys() == ModelSerializer().fields.keys()
        known = ParameterSerializer().fields
        needed = {name for name, field in known.items() if field.required}
        for described in (*model["settings"].values(), *model["parameters"].values()):
            assert needed <= described.keys() <= known.keys()
        if references := model["references"]:
            assert references.keys() == TakenReferencesSerializer().fields.keys()


def test_a_model_tells_what_a_form_for_it_needs(api):
    model = api.get(f"{MODELS}{SDXL}/").json()
    width = model["settings"]["width"]
    assert (width["type"], width["required"]) == ("integer", False)
    assert width["min"] < width["default"] < width["max"]
    assert width["multiple_of"] == 8
    assert "scheduler" in model["parameters"]
    assert model["supports_negative_prompt"] is True
    assert model["settings"]["num_outputs"]["max"] == model["max_outputs"] > 1
    assert model["references"]["max"] == 1
    assert model["references"]["strength"]["max"] == 1
    assert listed(api)[SCHNELL]["references"] is None


def test_the_figures_are_those_in_force_here(api):
    CatalogueModel.objects.filter(pk=SCHNELL).update(
        price_usd_per_image=Decimal("0.0070"), est_seconds=2.5, notes="By contract."
    )
    models = listed(api)
    assert models[SCHNELL]["price_usd_per_image"] == "0.007"
    assert (models[SCHNELL]["est_seconds"], models[SCHNELL]["notes"]) == (2.5, "By contract.")
    assert models[DEV]["price_usd_per_image"] == str(load_models()[DEV].price_usd_per_image)


def offered(model):
    """Settings that a form made of this could send, one or several at a time."""
    yield {}
    for name, field in model["settings"].items():
        if name in (
            "width",
            "height",
            "prompt",
            "negative_prompt",
            "seed",
            "references",
            "strength",
        ):
            continue
        for value in values(field):
            yield {name: value}
    for name, field in model["parameters"].items():
        needed = {one: wanted for one, wanted in field.get("only_when", {}).items()}
        if needed.keys() <= model["parameters"].keys():
            for value in values(field):
                yield {"parameters": {**needed, name: value}}
    for size in (*model["aspect_ratios"], *model["sizes"]):
        if size["width_px"]:
            yield {"width": size["width_px"], "height": size["height_px"]}


def values(field):
    return [*field.get("choices", ()), *(field[name] for name in ("min", "max") if name in field)]


@pytest.mark.parametrize("model_id", ACTIVE)
def test_what_a_model_says_it_takes_is_taken(model_id, api, everywhere, settings):
    settings.MAX_BATCH_SIZE = 1_000
    prompts = [
        {"text": "a fox", "settings": asked}
        for asked in offered(api.get(f"{MODELS}{model_id}/").json())
    ]
    assert len(prompts) > 2
    answer = api.post(BATCHES, {"prompts": prompts, "settings": {"model": model_id}})
    assert answer.status_code == 202, answer.content
    assert Generation.objects.count() == len(prompts)


def test_without_credentials_no_model_is_available(api, settings):
    settings.REPLICATE_API_TOKEN = settings.RUNPOD_API_KEY = settings.COMFYUI_URL = ""
    for model in listed(api).values():
        assert model["available"] is False
        if model["status"] == "active":
            assert model["unavailable_reason"].endswith(
                f"for {model['provider']} is configured."
            ) or (
                model["unavailable_reason"]
                == f"No credentials for {model['provider']} are configured."
            )


@pytest.mark.parametrize(
    "model_id", ["who/knows", "stability-ai/SDXL", "%00/%00", "../sdxl", "é/ü", "a" * 999 + "/b"]
)
def test_an_unknown_model_is_not_found(model_id, api):
    problem(api.get(f"{MODELS}{model_id}/"), 404, "not_found")


def test_the_catalogue_holds_no_secret(api, settings):
    settings.REPLICATE_API_TOKEN = "r8_very_secret"
    settings.RUNPOD_API_KEY = "rpa_very_secret"
    assert "very_secret" not in json.dumps(api.get(MODELS).json())
