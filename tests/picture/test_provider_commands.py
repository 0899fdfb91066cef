"""The commands that ask providers, against a simulator in its own process."""

import json

import pytest
from django.core.management import CommandError, call_command

from batches import catalogue
from batches.models import CatalogueModel
from generation.catalogue import load_entries
from worker.providers import get_provider

pytestmark = pytest.mark.django_db

SDXL = "stability-ai/sdxl"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def providers(settings, sim):
    """All at the simulator; made anew for each test, since each sets where they are."""
    get_provider.cache_clear()
    catalogue.forget()
    settings.REPLICATE_BASE_URL = sim.url
    settings.RUNPOD_BASE_URL, settings.COMFYUI_URL = (
        f"{sim.url}/v2",
        f"{sim.url}/comfyui",
    )
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "rpa_tests", "endpoint"
    yield
    get_provider.cache_clear()
    catalogue.forget()


@pytest.fixture
def run(capsys):
    """What a command prints, line by line, and its exit code."""

    def call(*words):
        code = 0
        try:
            call_command(*words)
        except SystemExit as left:
            code = left.code
        except CommandError as error:
            return [str(error)], error.returncode
        return capsys.readouterr().out.splitlines(), code

    return call


def define(model_id, **parameters):
    """Have the catalogue say otherwise of some parameters; `None` takes one out."""
    entry = load_entries()[model_id]
    changed = {**entry["parameters"], **parameters}
    entry["parameters"] = {name: one for name, one in changed.items() if one is not None}
    CatalogueModel.objects.filter(pk=model_id).update(definition=json.dumps(entry))
    catalogue.forget()


# --- compare_catalogue ----------------------------------------------------------------------------


def test_a_model_that_is_as_published_has_no_differences(run):
    assert run("compare_catalogue", SDXL) == ([f"{SDXL}: as published"], 0)


def test_each_difference_from_what_the_provider_publishes_is_printed(run):
    steps = {**load_entries()[SDXL]["parameters"]["num_inference_steps"], "max": 77}
    define(SDXL, num_inference_steps=steps, refine_steps=None, own={"type": "boolean"})
    lines, code = run("compare_catalogue", SDXL)
    assert code == 1
    assert len(lines) == 3
    assert all(line.startswith(f"{SDXL}: ") for line in lines)
    text = "\n".join(lines)
    assert "num_inference_steps.max: 77 in the catalogue, 500 at the provider" in text
    assert "own: the provider does not have it" in text
    assert "refine_steps: not in the catalogue" in text


def test_by_default_every_model_on_offer_is_compared(run):
    lines, _ = run("compare_catalogue")
    compared = {line.split(":")[0] for line in lines}
    assert compared == {
        model.id for model in catalogue.load_models().values() if model.status == "active"
    }


def test_a_model_that_is_switched_off_is_compared_too(run):
    CatalogueModel.objects.filter(pk=SDXL).update(enabled=False)
    catalogue.forget()
    assert f"{SDXL}: as published" in run("compare_catalogue")[0]


def test_a_provider_that_publishes_nothing_makes_no_difference(run):
    assert run("compare_catalogue", "runpod/sdxl") == (
        ["runpod/sdxl: runpod publishes no parameters"],
        0,
    )


def test_a_provider_that_is_away_is_told_and_the_others_are_asked(run, settings):
    settings.REPLICATE_BASE_URL = NOBODY
    lines, code = run("compare_catalogue", SDXL, "runpod/sdxl")
    assert code == 2
    assert lines[0].startswith(f"{SDXL}: cannot be compared: provider_unavailable: ")
    assert lines[1] == "runpod/sdxl: runpod publishes no parameters"


def test_a_provider_that_is_not_configured_is_left_out_unless_its_model_is_named(run, settings):
    settings.COMFYUI_URL = settings.RUNPOD_API_KEY = ""
    lines, _ = run("compare_catalogue")
    assert lines
    assert not [line for line in lines if line.startswith(("runpod/", "comfyui/"))]
    lines, code = run("compare_catalogue", "comfyui/sdxl")
    assert code == 2
    assert lines == ["comfyui/sdxl: cannot be compared: No server for comfyui is configured."]
    settings.REPLICATE_API_TOKEN = ""
    assert run("compare_catalogue") == (["no provider is configured"], 2)


def test_an_unknown_model_is_an_error(run):
    assert run("compare_catalogue", SDXL, "who/knows") == (["there is no model who/knows"], 2)


# --- check_providers ------------------------------------------------------------------------------


def test_providers_that_answer_are_well(run):
    lines, code = run("check_providers")
    assert [line.split() for line in lines] == [
        ["replicate", "ok"],
        ["runpod", "ok"],
        ["comfyui", "ok"],
    ]
    assert code == 0


def test_a_provider_that_is_not_configured_is_no_failure(run, settings):
    settings.RUNPOD_ENDPOINT_ID = settings.COMFYUI_URL = ""
    lines, code = run("check_providers")
    assert lines[1:] == [
        "runpod     not configured: No endpoint of runpod is configured.",
        "comfyui    not configured: No server for comfyui is configured.",
    ]
    assert code == 0


def test_a_provider_that_is_away_fails_the_check(run, settings):
    settings.COMFYUI_URL = NOBODY
    lines, code = run("check_providers")
    assert lines[0].split() == ["replicate", "ok"]
    assert lines[2].startswith("comfyui    provider_unavailable: ")
    assert code == 1
