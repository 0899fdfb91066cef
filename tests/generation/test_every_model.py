"""Every model of the catalogue, by its real adapter, at the simulator of its provider.

The simulator checks an input as the provider would, by a table of its own, so what it takes shows
that a request in the common vocabulary came out as the model's own input.
"""

import io
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import PIL.Image
import pytest

from generation import images
from generation.catalogue import Model, load_models
from generation.http import HttpClient
from generation.model import MATCH_REFERENCE
from generation.provider import (
    Downloaded,
    InputFile,
    Prediction,
    PredictionStatus,
    Provider,
    SubmitRequest,
)
from generation.providers.comfyui import ComfyUIProvider
from generation.providers.replicate import ReplicateProvider
from generation.providers.runpod import RunPodProvider
from tests.simulator.support import running_simulator

MAX_LOOKS = 2_000
Case = tuple[str, dict[str, Any]]


def cases_of(model: Model) -> Iterator[Case]:
    """The request with nothing but a prompt, and one for each bound and each choice."""
    yield "defaults", {}
    described = model.describe()
    for name, field in described["fields"].items():
        for value in values_of(field):
            yield f"{name}={value}", {name: value}
    for name, field in described["parameters"].items():
        needed = model.parameters[name].only_when
        for value in values_of(field):
            request: dict[str, Any] = {"parameters": {**needed, name: value}}
            if value == MATCH_REFERENCE:
                request["references"] = [{"id": "0"}]
            yield f"parameters.{name}={value}", request
    if model.supports_free_size:
        sides = {side: model.by_role(side) for side in ("width", "height")}
        for bound in ("min", "max"):
            size = {side: getattr(one, bound) for side, one in sides.items() if one}
            if None not in size.values():
                yield f"{bound} size", {side: int(value) for side, value in size.items()}
    for count in sorted({1, model.max_references} - {0} if model.max_references else set()):
        yield f"{count} references", {"references": [{"id": str(n)} for n in range(count)]}


def values_of(field: dict[str, Any]) -> list[Any]:
    if field.get("role") == "prompt":
        return []
    if "choices" in field:
        return list(field["choices"])
    if field["type"] == "boolean":
        return [True, False]
    bounds = [field[bound] for bound in ("min", "max") if field.get(bound) is not None]
    whole = field["type"] == "integer"
    return list(dict.fromkeys(int(one) if whole else float(one) for one in bounds))


# A size is a pair, and a strength is of a reference.
NOT_ALONE = {"prompt", "width", "height", "strength", "references"}
CASES = [
    pytest.param(model, request, id=f"{model.id}-{name}")
    for model in load_models().values()
    for name, request in cases_of(model)
    if not NOT_ALONE & request.keys() or len(request) > 1 or "references" in request
]


@pytest.fixture(scope="module")
def simulator():
    with running_simulator("--run-seconds", "0", "--queue-seconds", "0") as running:
        yield running


@pytest.fixture(scope="module")
def providers(simulator) -> dict[str, Provider]:
    http = HttpClient()
    hosts = ["127.0.0.1"]
    return {
        "replicate": ReplicateProvider(
            "r8_test", http=http, base_url=simulator.url, extra_output_hosts=hosts
        ),
        "runpod": RunPodProvider(
            api_key="rpa_test",
            endpoint_id="simulated",
            base_url=f"{simulator.url}/v2",
            http=http,
            extra_output_hosts=hosts,
        ),
        "comfyui": ComfyUIProvider(base_url=f"{simulator.url}/comfyui", http=http),
    }


def reference_file(number: int) -> InputFile:
    stored = io.BytesIO()
    PIL.Image.new("RGB", (64, 48), (number, 0, 0)).save(stored, "PNG")
    data = stored.getvalue()
    return InputFile(
        filename=f"{number}.png",
        content_type="image/png",
        size_bytes=len(data),
        sha256="",
        open=lambda: io.BytesIO(data),
    )


def submitted(model: Model, request: dict[str, Any], provider: Provider) -> Prediction:
    asked = {"prompt": "a cat", **request}
    if model.supports_seed:
        asked.setdefault("seed", 7)
    resolved = model.resolve(asked)
    assert not isinstance(resolved, list), resolved
    count = len(request.get("references", ()))
    parameter = model.image_parameter
    files = {}
    if count:
        assert parameter is not None
        files = {parameter.name: tuple(reference_file(number) for number in range(count))}
    answer = provider.submit(
        SubmitRequest(
            model=model.id,
            input=resolved.input,
            token=str(uuid.uuid4()),
            files=files,
            file_lists=model.file_lists,
            version=model.version,
            deployment=model.deployment,
            endpoint=model.endpoint,
            workflow=model.workflow_for(has_image=count > 0),
        )
    )
    assert isinstance(answer, Prediction), answer
    return ended(provider, answer)


def ended(provider: Provider, prediction: Prediction) -> Prediction:
    wait = threading.Event()
    for _ in range(MAX_LOOKS):
        if prediction.is_terminal:
            return prediction
        wait.wait(0.002)
        answer = provider.fetch(prediction.id)
        assert isinstance(answer, Prediction), answer
        prediction = answer
    raise AssertionError(f"{prediction.id} does not end")


@pytest.mark.parametrize(("model", "request_"), CASES)
def test_what_the_catalogue_accepts_the_provider_makes(model, request_, providers):
    prediction = submitted(model, request_, providers[model.provider])
    assert prediction.status == PredictionStatus.SUCCEEDED, prediction.failure
    assert len(prediction.outputs) >= request_.get("num_outputs", 1)


def with_reference() -> list[Any]:
    able = [model for model in load_models().values() if model.max_references]
    return [pytest.param(model, id=model.id) for model in able]


@pytest.mark.parametrize("model", with_reference())
@pytest.mark.parametrize("bound", ["min", "max"])
def test_a_strength_goes_with_a_reference(model, bound, providers):
    parameter = model.by_role("image_strength")
    strength = {} if parameter is None else {"strength": float(getattr(parameter, bound))}
    request = {"references": [{"id": "0"}], **strength}
    prediction = submitted(model, request, providers[model.provider])
    assert prediction.status == PredictionStatus.SUCCEEDED, prediction.failure


@pytest.mark.parametrize("model_id", load_models())
def test_the_pictures_of_every_model_are_what_they_are_said_to_be(model_id, providers):
    model = load_models()[model_id]
    provider = providers[model.provider]
    resolved = model.resolve({"prompt": "a cat", "seed": 7 if model.supports_seed else None})
    assert not isinstance(resolved, list)
    prediction = submitted(model, {}, provider)
    sink = io.BytesIO()
    answer = provider.download(
        prediction.outputs[0], sink, prediction_id=prediction.id, max_bytes=64 * 1024 * 1024
    )
    assert isinstance(answer, Downloaded), answer
    verified = images.verify(sink, max_pixels=40_000_000)
    assert isinstance(verified, images.VerifiedImage), verified
    assert verified.format == {"jpg": "jpeg"}.get(resolved.output_format, resolved.output_format)
    if resolved.width_px and verified.format != "svg":
        assert (verified.width_px, verified.height_px) == (resolved.width_px, resolved.height_px)


def test_every_model_is_among_the_cases():
    assert {case.values[0].id for case in CASES} == set(load_models())
    assert len(load_models()) == 29
