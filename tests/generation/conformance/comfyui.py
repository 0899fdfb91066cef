"""ComfyUI under the conformance suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from generation.provider import ErrorClass, InputFile, SubmitRequest, Workflow
from generation.providers.comfyui import ComfyUIProvider
from tests.generation.conformance.harness import (
    ErrorCase,
    Harness,
    OutputCase,
    Place,
    new_token,
)
from tests.simulator.support import eventually

MODEL = "comfyui/sdxl"
BLOCKER = "what keeps the server busy"

TEXT_TO_IMAGE = Workflow(
    nodes={
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 1,
                "steps": 20,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"},
        },
        "5": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {
            "class_type": "SaveImage",
            "inputs": {"images": ["8", 0], "filename_prefix": "tests/picture"},
        },
    },
    bindings={
        "prompt": (("6", "text"),),
        "negative_prompt": (("7", "text"),),
        "seed": (("3", "seed"),),
        "steps": (("3", "steps"),),
        "sampler": (("3", "sampler_name"),),
        "count": (("5", "batch_size"),),
        "checkpoint": (("4", "ckpt_name"),),
        "prefix": (("9", "filename_prefix"),),
    },
)
IMAGE_TO_IMAGE = Workflow(
    nodes={
        **TEXT_TO_IMAGE.nodes,
        "1": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
        "10": {
            "class_type": "ImageStitch",
            "inputs": {
                "image1": ["1", 0],
                "image2": ["2", 0],
                "direction": "right",
                "match_image_size": True,
                "spacing_width": 0,
                "spacing_color": "white",
            },
        },
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}},
    },
    bindings={
        **{name: at for name, at in TEXT_TO_IMAGE.bindings.items() if name != "count"},
        "images": (("1", "image"), ("2", "image")),
    },
)


def fault(kind: str, **options: Any) -> Callable[[Harness, str], object]:
    """Return what adds a rule for the prompt of a case."""
    return lambda harness, prompt: harness.sim.fault(kind, prompt=prompt, **options)


def with_input(**values: Any) -> Callable[[SubmitRequest], SubmitRequest]:
    return lambda request: replace(request, input={**request.input, **values})


def with_node(node_id: str, **changes: Any) -> Callable[[SubmitRequest], SubmitRequest]:
    """Return what changes one node of the workflow."""

    def change(request: SubmitRequest) -> SubmitRequest:
        assert request.workflow is not None
        nodes = {**request.workflow.nodes}
        nodes[node_id] = {**nodes[node_id], **changes}
        return replace(request, workflow=replace(request.workflow, nodes=nodes))

    return change


def refused(id: str, expected: ErrorClass, status: int, **fields: Any) -> ErrorCase:
    """Return the case of a submission answered with this status, by something in front."""
    retry_after = fields.pop("header", None)
    arrange = fault("create_status", status=status, retry_after=retry_after)
    return ErrorCase(id, arrange, expected=expected, code=str(status), **fields)


def failed(id: str, expected: ErrorClass, error: str, code: str | None = None) -> ErrorCase:
    """Return the case of a sampler that fails with this text."""
    return ErrorCase(id, fault("fail", error=error), call="run", expected=expected, code=code)


def _image_that_is_none(request: SubmitRequest) -> SubmitRequest:
    nodes = {**IMAGE_TO_IMAGE.nodes}
    nodes["1"] = nodes["2"] = {"class_type": "LoadImage", "inputs": {"image": "nowhere.png"}}
    return replace(request, workflow=replace(IMAGE_TO_IMAGE, nodes=nodes), input={})


class ComfyUIHarness(Harness):
    name = "comfyui"
    signs_webhooks = None
    tells_progress = True
    tells_run_s = True
    tells_billed_images = False
    stops: frozenset[Place] = frozenset()
    can_find = True
    takes_files = True
    has_credentials = False
    schema_of = (MODEL, "steps")
    # A prompt that the server does not know was there and is lost, or was to go and is gone.
    unknown_id = frozenset({ErrorClass.INTERRUPTED, ErrorClass.CANCELED})

    # Source: ComfyUI v0.3.64, its answers, read 2026-11-20
    errors: Sequence[ErrorCase] = (
        ErrorCase(
            "value too small",
            change=with_input(steps=0),
            expected=ErrorClass.INVALID_INPUT,
            code="value_smaller_than_min",
        ),
        ErrorCase(
            "value too big",
            change=with_input(steps=10_001),
            expected=ErrorClass.INVALID_INPUT,
            code="value_bigger_than_max",
        ),
        ErrorCase(
            "value of another type",
            change=with_input(steps="many"),
            expected=ErrorClass.INVALID_INPUT,
            code="invalid_input_type",
        ),
        ErrorCase(
            "unknown choice",
            change=with_input(sampler="nonsense"),
            expected=ErrorClass.INVALID_INPUT,
            code="value_not_in_list",
        ),
        ErrorCase(
            "model file that is not installed",
            change=with_input(checkpoint="nowhere.safetensors"),
            expected=ErrorClass.NOT_FOUND,
            code="value_not_in_list",
        ),
        ErrorCase(
            "node that is not installed",
            change=with_node("3", class_type="SomebodysSampler"),
            expected=ErrorClass.NOT_FOUND,
            code="invalid_prompt",
        ),
        ErrorCase(
            "missing input",
            change=with_node("7", inputs={"text": ""}),
            expected=ErrorClass.INVALID_INPUT,
            code="required_input_missing",
        ),
        ErrorCase(
            "input of another kind",
            change=with_node("7", inputs={"text": "", "clip": ["4", 0]}),
            expected=ErrorClass.INVALID_INPUT,
            code="return_type_mismatch",
        ),
        ErrorCase(
            "no output",
            change=with_node("9", class_type="VAEDecode", inputs={}),
            expected=ErrorClass.INVALID_INPUT,
            code="prompt_no_outputs",
        ),
        ErrorCase(
            "image that is not there",
            change=_image_that_is_none,
            expected=ErrorClass.INVALID_INPUT,
            code="custom_validation_failed",
        ),
        ErrorCase(
            "unbound parameter",
            change=with_input(nonsense=1),
            expected=ErrorClass.INVALID_INPUT,
        ),
        refused("400", ErrorClass.INVALID_INPUT, 400),
        refused("401", ErrorClass.AUTH, 401),
        refused("403", ErrorClass.AUTH, 403),
        refused("404", ErrorClass.NOT_FOUND, 404),
        refused("413", ErrorClass.INVALID_INPUT, 413),
        refused("429", ErrorClass.RATE_LIMITED, 429, header="3", retry_after_s=3.0),
        refused("500", ErrorClass.PROVIDER_UNAVAILABLE, 500),
        refused("502", ErrorClass.PROVIDER_UNAVAILABLE, 502),
        refused("503", ErrorClass.PROVIDER_UNAVAILABLE, 503, header="2", retry_after_s=2.0),
        refused("408", ErrorClass.TIMEOUT_UNKNOWN, 408),
        refused("504", ErrorClass.TIMEOUT_UNKNOWN, 504),
        refused("524", ErrorClass.TIMEOUT_UNKNOWN, 524),
        ErrorCase(
            "out of memory",
            fault("out_of_memory"),
            call="run",
            expected=ErrorClass.OUT_OF_MEMORY,
            code="OutOfMemoryError",
        ),
        failed("allocation", ErrorClass.OUT_OF_MEMORY, "Allocation on device 0 would exceed it"),
        failed("nsfw", ErrorClass.CONTENT_POLICY, "NSFW content detected."),
        failed(
            "no image",
            ErrorClass.INVALID_INPUT,
            "PIL.UnidentifiedImageError: cannot identify image file '/srv/input/a.png'",
            "UnidentifiedImageError",
        ),
        failed(
            "file gone",
            ErrorClass.NOT_FOUND,
            "FileNotFoundError: [Errno 2] No such file or directory: '/srv/models/a.safetensors'",
            "FileNotFoundError",
        ),
        failed(
            "models that do not fit",
            ErrorClass.INVALID_INPUT,
            "mat1 and mat2 shapes cannot be multiplied (77x2048 and 768x320)",
            "RuntimeError",
        ),
        failed("timed out", ErrorClass.TIMEOUT_RUN, "The read operation timed out"),
        failed("anything", ErrorClass.UNKNOWN, "ValueError: <class 'int'> is odd", "ValueError"),
        ErrorCase(
            "outside of the folder",
            change=with_input(prefix="../../etc/picture"),
            call="run",
            expected=ErrorClass.INVALID_INPUT,
        ),
        ErrorCase(
            "503",
            fault("get_status", status=503),
            call="fetch",
            expected=ErrorClass.PROVIDER_UNAVAILABLE,
        ),
        ErrorCase(
            "429", fault("get_status", status=429), call="fetch", expected=ErrorClass.RATE_LIMITED
        ),
        ErrorCase("401", fault("get_status", status=401), call="fetch", expected=ErrorClass.AUTH),
        ErrorCase(
            "503",
            fault("cancel_status", status=503),
            call="cancel",
            expected=ErrorClass.PROVIDER_UNAVAILABLE,
        ),
        ErrorCase(
            "reset", fault("drop_cancel"), call="cancel", expected=ErrorClass.PROVIDER_UNAVAILABLE
        ),
        ErrorCase(
            "without a token",
            change=lambda request: replace(request, token=""),
            call="find",
            expected=ErrorClass.UNKNOWN,
        ),
        *(
            ErrorCase(
                str(status),
                fault("file_status", status=status),
                call="download",
                expected=expected,
                code=str(status),
            )
            for status, expected in (
                (403, ErrorClass.OUTPUT_EXPIRED),
                (404, ErrorClass.OUTPUT_EXPIRED),
                (429, ErrorClass.DOWNLOAD_FAILED),
                (503, ErrorClass.DOWNLOAD_FAILED),
                (400, ErrorClass.BAD_OUTPUT),
            )
        ),
        ErrorCase(
            "cut off", fault("drop_file"), call="download", expected=ErrorClass.DOWNLOAD_FAILED
        ),
        ErrorCase(
            "redirect to metadata",
            fault("file_redirect"),
            call="download",
            expected=ErrorClass.BAD_OUTPUT,
        ),
        ErrorCase("gzip bomb", fault("gzip_bomb"), call="download", expected=ErrorClass.BAD_OUTPUT),
        ErrorCase("removed", fault("expired"), call="download", expected=ErrorClass.OUTPUT_EXPIRED),
    )
    outputs = (
        OutputCase("one"),
        OutputCase("batch", change=with_input(count=3), expected=3),
        OutputCase("short batch", fault("short_output", count=2), with_input(count=3), 2),
        OutputCase("none", fault("empty_output"), expected=ErrorClass.BAD_OUTPUT),
        OutputCase(
            "previews only",
            change=with_node("9", class_type="PreviewImage", inputs={"images": ["8", 0]}),
            expected=ErrorClass.BAD_OUTPUT,
        ),
    )

    def provider(
        self, *, url: str | None = None, wrong_credentials: bool = False
    ) -> ComfyUIProvider:
        return ComfyUIProvider(
            f"{url or self.sim.url}/comfyui",
            http=self.http,
            workflow_of={MODEL: TEXT_TO_IMAGE}.get,
            # Another server is a network that loses the next answer; it is not to be the one to
            # the listener.
            listens=url is None,
            settle_s=0.0,
        )

    def request(self, prompt: str, *, images: int = 1, **fields: Any) -> SubmitRequest:
        values = {"prompt": prompt, "count": images}
        defaults = {"token": new_token(), "workflow": TEXT_TO_IMAGE}
        return SubmitRequest(MODEL, values, **{**defaults, **fields})

    def hold(self, where: Place) -> None:
        if where == "run":
            self.sim.fault("hang")
            return
        # It runs one at a time, so that whatever comes after this one waits.
        self.sim.fault("hang", prompt=BLOCKER)
        body = {"prompt": TEXT_TO_IMAGE.filled({"prompt": BLOCKER})}
        assert self.sim.request("POST", "/comfyui/prompt", json=body).status_code == 200
        eventually(lambda: self.charges(BLOCKER) == 1, "the server is busy")

    def pace(self, run_s: float) -> None:
        self.sim.configure(run_seconds=run_s)

    def with_files(self, request: SubmitRequest, files: Sequence[InputFile]) -> SubmitRequest:
        values = {name: value for name, value in request.input.items() if name != "count"}
        files_of = {"images": tuple(files)}
        return replace(request, workflow=IMAGE_TO_IMAGE, input=values, files=files_of)

    def files_received(self, prediction_id: str) -> list[str]:
        def workflow() -> dict[str, Any] | None:
            queue = self.sim.request("GET", "/comfyui/queue").json()
            history = self.sim.request("GET", f"/comfyui/history/{prediction_id}").json()
            items = [*queue["queue_running"], *queue["queue_pending"]]
            items += [entry["prompt"] for entry in history.values()]
            return next((item[2] for item in items if item[1] == prediction_id), None)

        nodes = eventually(workflow, "the prompt is there")
        names = [nodes[node_id]["inputs"]["image"] for node_id in ("1", "2")]
        return [self._digest(name) for name in dict.fromkeys(names)]

    def _digest(self, name: str) -> str:
        subfolder, _, filename = name.rpartition("/")
        query = {"filename": filename, "subfolder": subfolder, "type": "input"}
        answer = self.sim.request("GET", "/comfyui/view", params=query)
        assert answer.status_code == 200, json.dumps(query)
        return hashlib.sha256(answer.content).hexdigest()

    def refuse_files(self) -> None:
        self.sim.fault("upload_status", status=503)
