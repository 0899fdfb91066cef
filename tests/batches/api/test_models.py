import dataclasses
import json
from decimal import Decimal

import pytest

from batches.api import views
from generation.catalogue import get_model, load_models
from tests.batches.api.support import BATCHES, LIGHTNING, MODELS, SCHNELL, SDXL, problem

pytestmark = pytest.mark.django_db


def test_the_whole_catalogue_is_listed(api):
    body = api.get(MODELS).json()
    assert (body["next"], body["previous"]) == (None, None)
    assert [model["id"] for model in body["results"]] == list(load_models())
    for model in body["results"]:
        assert (model["available"], model["unavailable_reason"]) == (True, "")
        assert Decimal(model["price_usd_per_image"]) > 0


@pytest.mark.parametrize("model_id", load_models())
def test_a_model_is_shown_as_in_the_list(model_id, api):
    model = api.get(f"{MODELS}{model_id}/").json()
    assert model in api.get(MODELS).json()["results"]
    assert model["id"] == model_id


def test_a_model_tells_what_a_form_for_it_needs(api):
    model = api.get(f"{MODELS}{SDXL}/").json()
    assert model["settings"]["width"] == {
        "type": "integer",
        "required": False,
        "default": 1024,
        "min": 64,
        "max": 2048,
        "multiple_of": 8,
    }
    assert "scheduler" in model["parameters"]
    assert model["supports_negative_prompt"] is True


@pytest.mark.parametrize("model_id", load_models())
def test_what_a_model_says_it_takes_is_taken(model_id, api):
    model = api.get(f"{MODELS}{model_id}/").json()
    for name in ("steps", "guidance_scale", "output_quality"):
        if limits := model["settings"].get(name):
            for value in (limits["min"], limits["max"]):
                asked = {"model": model_id, name: value}
                answer = api.post(BATCHES, {"prompt": "a fox", "settings": asked})
                assert answer.status_code == 202, answer.content
    for size in model["aspect_ratios"]:
        for asked in (
            {"aspect_ratio": size["aspect_ratio"]},
            {"width": size["width_px"], "height": size["height_px"]},
        ):
            answer = api.post(
                BATCHES, {"prompt": "a fox", "settings": {"model": model_id, **asked}}
            )
            assert answer.status_code == 202, answer.content


def test_without_credentials_no_model_is_available(api, settings):
    settings.REPLICATE_API_TOKEN = ""
    for model in api.get(MODELS).json()["results"]:
        assert model["available"] is False
        assert model["unavailable_reason"] == "No credentials for replicate are configured."
    assert api.get(f"{MODELS}{SCHNELL}/").json()["available"] is False


@pytest.mark.parametrize(
    ("status", "note", "reason"),
    [
        ("retired", "Use another.", "Use another."),
        ("unavailable", "", "The model is unavailable."),
    ],
)
def test_a_model_that_is_not_active_says_why(status, note, reason, api, monkeypatch):
    model = dataclasses.replace(get_model(LIGHTNING), status=status, status_note=note)
    monkeypatch.setattr(views, "get_model", {LIGHTNING: model}.get)
    body = api.get(f"{MODELS}{LIGHTNING}/").json()
    assert (body["status"], body["available"]) == (status, False)
    assert body["unavailable_reason"] == reason


@pytest.mark.parametrize(
    "model_id", ["who/knows", "stability-ai/SDXL", "%00/%00", "../sdxl", "é/ü", "a" * 999 + "/b"]
)
def test_an_unknown_model_is_not_found(model_id, api):
    problem(api.get(f"{MODELS}{model_id}/"), 404, "not_found")


def test_the_catalogue_holds_no_secret(api, settings):
    settings.REPLICATE_API_TOKEN = "r8_very_secret"
    assert "r8_very_secret" not in json.dumps(api.get(MODELS).json())
