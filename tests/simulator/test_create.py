"""Creating predictions: the three paths, what is refused, waiting for the end."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests

from tests.simulator.support import FLUX, LIGHTNING_VERSION, SDXL, SDXL_VERSION, Simulator

INPUT = {"prompt": "a cat"}


def refused_field(response: requests.Response) -> dict[str, Any]:
    """Return the only entry of `invalid_fields`."""
    assert response.status_code == 422
    assert response.headers["Content-Type"].startswith("application/problem+json")
    body = response.json()
    assert (body["title"], body["status"]) == ("Input validation failed", 422)
    (field,) = body["invalid_fields"]
    assert field["description"] in body["detail"]
    return dict(field)


def test_an_official_model_is_run_by_its_name(sim: Simulator) -> None:
    response = sim.request("POST", f"/v1/models/{FLUX}/predictions", json={"input": INPUT})
    prediction = response.json()
    assert response.status_code == 201
    assert (prediction["model"], prediction["version"]) == (FLUX, "hidden")
    assert (prediction["status"], prediction["output"]) == ("starting", None)
    assert prediction["input"] == INPUT
    assert re.fullmatch(r"[a-z2-7]{26}", prediction["id"])
    assert prediction["urls"]["get"] == f"{sim.url}/v1/predictions/{prediction['id']}"
    assert prediction["urls"]["cancel"] == f"{prediction['urls']['get']}/cancel"


@pytest.mark.parametrize(
    ("version", "model", "reported"),
    [
        (FLUX, FLUX, "hidden"),
        (f"{SDXL}:{SDXL_VERSION}", SDXL, SDXL_VERSION),
        (LIGHTNING_VERSION, "bytedance/sdxl-lightning-4step", LIGHTNING_VERSION),
    ],
)
def test_version_takes_three_forms(sim: Simulator, version: str, model: str, reported: str) -> None:
    body = {"version": version, "input": INPUT}
    response = sim.request("POST", "/v1/predictions", json=body)
    assert response.status_code == 201
    assert (response.json()["model"], response.json()["version"]) == (model, reported)


def test_a_deployment_runs_its_model(sim: Simulator) -> None:
    path = "/v1/deployments/simulated/sdxl/predictions"
    response = sim.request("POST", path, json={"input": INPUT})
    assert response.status_code == 201
    assert response.json()["deployment"] == "simulated/sdxl"
    assert response.json()["model"] == SDXL


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/nobody/nothing/predictions",
        f"/v1/models/{SDXL}/predictions",
        "/v1/deployments/somebody/sdxl/predictions",
        "/v1/deployments/simulated/nothing/predictions",
    ],
)
def test_unknown_and_community_models_are_not_found_by_name(sim: Simulator, path: str) -> None:
    response = sim.request("POST", path, json={"input": INPUT})
    assert response.status_code == 404
    assert response.json()["status"] == 404


@pytest.mark.parametrize(
    "version", ["0" * 64, f"{SDXL}:{'0' * 64}", f"{FLUX}:{SDXL_VERSION}", SDXL, "nobody/nothing"]
)
def test_a_wrong_version_is_refused(sim: Simulator, version: str) -> None:
    response = sim.request("POST", "/v1/predictions", json={"version": version, "input": INPUT})
    assert response.status_code == 422
    assert response.json()["title"] == "Invalid version or not permitted"


@pytest.mark.parametrize("header", ["Bearer wrong", "Basic r8_x", "r8_x", ""])
def test_a_wrong_token_is_refused(sim: Simulator, header: str) -> None:
    response = sim.request("GET", "/v1/account", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.json() == {
        "title": "Unauthenticated",
        "detail": "You did not pass a valid authentication token",
        "status": 401,
    }


def test_both_forms_of_the_token_header_are_accepted(sim: Simulator) -> None:
    for scheme in ("Bearer", "Token"):
        response = sim.request("GET", "/v1/account", headers={"Authorization": f"{scheme} r8_x"})
        assert response.status_code == 200
        assert response.json()["username"]


@pytest.mark.parametrize(
    ("values", "kind", "field"),
    [
        ({}, "required", "input"),
        ({"prompt": "x", "guidance": 3}, "additional_property_not_allowed", "input"),
        ({"prompt": 3}, "invalid_type", "input.prompt"),
        ({"prompt": "x", "seed": "7"}, "invalid_type", "input.seed"),
        ({"prompt": "x", "seed": True}, "invalid_type", "input.seed"),
        ({"prompt": "x", "seed": None}, "invalid_type", "input.seed"),
        ({"prompt": "x", "num_outputs": 1.5}, "invalid_type", "input.num_outputs"),
        ({"prompt": "x", "go_fast": 1}, "invalid_type", "input.go_fast"),
        ({"prompt": "x", "num_inference_steps": 5}, "number_lte", "input.num_inference_steps"),
        ({"prompt": "x", "num_outputs": 0}, "number_gte", "input.num_outputs"),
        ({"prompt": "x", "aspect_ratio": "7:5"}, "enum", "input.aspect_ratio"),
    ],
)
def test_invalid_input_names_the_field(
    sim: Simulator, values: dict[str, Any], kind: str, field: str
) -> None:
    refused = refused_field(sim.create(input=values))
    assert (refused["type"], refused["field"]) == (kind, field)


def test_a_limit_is_named_in_the_words_of_the_api(sim: Simulator) -> None:
    response = sim.create(input={"prompt": "x", "num_inference_steps": 9})
    expected = "- input.num_inference_steps: Must be less than or equal to 4\n"
    assert response.json()["detail"] == expected


def test_an_image_input_must_be_a_url_or_data_uri(sim: Simulator) -> None:
    path = "/v1/models/black-forest-labs/flux-dev/predictions"
    for image in ("https://example.org/a.png", "data:image/png;base64,AAAA"):
        body = {"input": {"prompt": "x", "image": image}}
        assert sim.request("POST", path, json=body).status_code == 201
    body = {"input": {"prompt": "x", "image": "a.png"}}
    assert refused_field(sim.request("POST", path, json=body))["field"] == "input.image"


@pytest.mark.parametrize(
    ("extra", "kind", "field"),
    [
        ({"webhook_completed": "https://x"}, "additional_property_not_allowed", ""),
        ({"version": FLUX}, "additional_property_not_allowed", ""),
        ({"webhook": 3}, "invalid_type", "webhook"),
        ({"webhook": "example.org"}, "format", "webhook"),
        ({"webhook_events_filter": ["begin"]}, "enum", "webhook_events_filter"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"input": "a cat"}, "invalid_type", "input"),
    ],
)
def test_invalid_top_level_keys_are_refused(
    sim: Simulator, extra: dict[str, Any], kind: str, field: str
) -> None:
    refused = refused_field(sim.create(**extra))
    assert (refused["type"], refused["field"]) == (kind, field)


def test_version_and_input_are_required(sim: Simulator) -> None:
    response = sim.request("POST", "/v1/predictions", json={})
    described = [field["description"] for field in response.json()["invalid_fields"]]
    assert described == ["version is required", "input is required"]


@pytest.mark.parametrize("body", ["", "{", "[]", "3"])
def test_a_body_that_is_no_json_object_is_a_bad_request(sim: Simulator, body: str) -> None:
    response = sim.request("POST", "/v1/predictions", data=body)
    assert response.status_code == 400


def test_a_refused_request_is_never_charged(sim: Simulator) -> None:
    sim.create(input={})
    assert sim.stats()["creates_received"] == 1
    assert sim.ledger()["count"] == 0


def test_prefer_wait_answers_with_the_output(sim: Simulator) -> None:
    response = sim.create({"Prefer": "wait"})
    assert response.status_code == 201
    assert response.json()["status"] == "succeeded"
    assert len(response.json()["output"]) == 1


def test_prefer_wait_can_answer_processing_although_the_output_is_there(sim: Simulator) -> None:
    sim.configure(wait_says_processing=True)
    answer = sim.created({"Prefer": "wait"})
    assert (answer["status"], len(answer["output"])) == ("processing", 1)
    assert sim.get(answer["id"])["status"] == "succeeded"


def test_a_wait_that_runs_out_answers_starting_while_the_model_runs(sim: Simulator) -> None:
    sim.configure(run_seconds=60)
    response = sim.create({"Prefer": "wait=1"})
    assert response.status_code == 202
    assert (response.json()["status"], response.json()["output"]) == ("starting", None)
    assert sim.get(response.json()["id"])["status"] == "processing"


@pytest.mark.parametrize("value", ["wait=0", "wait=61", "wait=", "wait=x", "respond-async"])
def test_other_forms_of_prefer_are_refused(sim: Simulator, value: str) -> None:
    assert sim.create({"Prefer": value}).status_code == 422


def test_the_rate_limit_answers_429_with_retry_after(sim: Simulator) -> None:
    sim.configure(rate_per_minute=6, rate_burst=2)
    statuses = [sim.create().status_code for _ in range(3)]
    refused = sim.create()
    assert statuses == [201, 201, 429]
    assert 1 <= int(refused.headers["Retry-After"]) <= 10
    assert re.search(r"rate limit resets in ~\d+s", refused.json()["detail"])


@pytest.mark.parametrize("model", [FLUX, SDXL, "recraft-ai/recraft-v3-svg"])
def test_a_model_publishes_its_schema(sim: Simulator, model: str) -> None:
    body = sim.request("GET", f"/v1/models/{model}").json()
    schemas = body["latest_version"]["openapi_schema"]["components"]["schemas"]
    assert f"{body['owner']}/{body['name']}" == model
    assert body["is_official"] is (model != SDXL)
    assert schemas["Input"]["required"] == ["prompt"]
    assert schemas["Input"]["properties"]["prompt"]["type"] == "string"
    assert re.fullmatch(r"[0-9a-f]{64}", body["latest_version"]["id"])


def test_the_schema_carries_limits_choices_and_defaults(sim: Simulator) -> None:
    body = sim.request("GET", f"/v1/models/{FLUX}").json()
    schemas = body["latest_version"]["openapi_schema"]["components"]["schemas"]
    properties = schemas["Input"]["properties"]
    steps = properties["num_inference_steps"]
    assert (steps["minimum"], steps["maximum"], steps["default"]) == (1, 4, 4)
    assert properties["megapixels"]["allOf"] == [{"$ref": "#/components/schemas/megapixels"}]
    assert schemas["megapixels"]["enum"] == ["1", "0.25"]
    assert schemas["Output"]["type"] == "array"


def test_unknown_things_are_not_found(sim: Simulator) -> None:
    for method, path in (
        ("GET", "/v1/models/nobody/nothing"),
        ("GET", "/v1/models/nobody/nothing/versions"),
        ("GET", f"/v1/models/{SDXL}/versions/{'0' * 64}"),
        ("GET", "/v1/predictions/nothing"),
        ("POST", "/v1/predictions/nothing/cancel"),
        ("GET", "/v1/files/nothing"),
        ("DELETE", "/v1/files/nothing"),
        ("GET", "/files/out/nothing/0.png"),
        ("GET", "/v1/nothing"),
    ):
        assert sim.request(method, path).status_code == 404


def test_versions_of_a_community_model_are_listed(sim: Simulator) -> None:
    body = sim.request("GET", f"/v1/models/{SDXL}/versions").json()
    assert [version["id"] for version in body["results"]] == [SDXL_VERSION]
    assert sim.request("GET", f"/v1/models/{FLUX}/versions").json()["results"] == []
