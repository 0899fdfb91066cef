"""RunPod under the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from generation.http import HttpClient
from generation.provider import ErrorClass, InputFile, SubmitRequest, Workflow
from generation.providers.runpod import RunPodProvider
from tests.generation.conformance.harness import (
    ErrorCase,
    Harness,
    OutputCase,
    Place,
    new_token,
)
from tests.simulator.runpod_support import ENDPOINT, KEY, RunPodClient, text_workflow
from tests.simulator.support import Simulator

NEVER_S = 3600.0
BINDINGS = {
    "prompt": (("2", "text"),),
    "model": (("1", "ckpt_name"),),
    "images": (("4", "batch_size"),),
    "width": (("4", "width"),),
    "sampler": (("5", "sampler_name"),),
}


def fault(kind: str, **options: Any) -> Callable[[Any, str], object]:
    """Return what adds a rule for the prompt of a case."""
    return lambda harness, prompt: harness.sim.fault(kind, prompt=prompt, **options)


def setting(**settings: Any) -> Callable[[Any, str], object]:
    """Return what changes RunPod's settings."""
    return lambda harness, prompt: harness.pod.configure(**settings)


def with_input(**values: Any) -> Callable[[SubmitRequest], SubmitRequest]:
    return lambda request: replace(request, input={**request.input, **values})


def in_bucket(kind: str, **options: Any) -> Callable[[Any, str], object]:
    """Return what has workers upload their images, and adds a rule for them."""

    def arrange(harness: RunPodHarness, prompt: str) -> None:
        harness.pod.configure(bucket=True)
        harness.sim.fault(kind, prompt=prompt, **options)

    return arrange


def without_workers(harness: RunPodHarness, prompt: str) -> None:
    harness.pod.configure(workers=0)
    harness.pod.run(text_workflow(prompt))


def refused(
    id: str, expected: ErrorClass, status: int, body: str | None = None, **fields: Any
) -> ErrorCase:
    """Return the case of a submission answered with this status and body."""
    retry_after = fields.pop("header", None)
    arrange = fault("create_status", status=status, body=body, retry_after=retry_after)
    return ErrorCase(id, arrange, expected=expected, code=str(status), **fields)


def failed(id: str, expected: ErrorClass, error: str, code: str | None = None) -> ErrorCase:
    """Return the case of a run that ends with an exception of this text."""
    return ErrorCase(id, fault("fail", error=error), call="run", expected=expected, code=code)


class RunPodHarness(Harness):
    name = "runpod"
    signs_webhooks = False
    tells_progress = True
    tells_run_s = True
    tells_billed_images = False
    # A job that waits for too long vanishes.
    stops: frozenset[Place] = frozenset({"run"})
    can_find = False
    takes_files = True
    hands_over_files = False
    has_credentials = True
    unknown_id = frozenset({ErrorClass.INTERRUPTED, ErrorClass.NOT_FOUND})

    # Source: RunPod documentation, worker-comfyui's handler, error reports; read 2026-11-20
    errors: Sequence[ErrorCase] = (
        refused("400", ErrorClass.INVALID_INPUT, 400),
        ErrorCase(
            "400 too large there",
            setting(run_max_bytes=100),
            expected=ErrorClass.INVALID_INPUT,
            code="400",
        ),
        refused("401", ErrorClass.AUTH, 401),
        refused("402", ErrorClass.INSUFFICIENT_CREDIT, 402),
        refused("403", ErrorClass.AUTH, 403),
        ErrorCase(
            "404 endpoint",
            setting(endpoints="another"),
            expected=ErrorClass.NOT_FOUND,
            code="404",
        ),
        ErrorCase(
            "no endpoint",
            change=lambda request: replace(request, endpoint="no/endpoint"),
            expected=ErrorClass.NOT_FOUND,
        ),
        ErrorCase(
            "no workflow",
            change=lambda request: replace(request, workflow=None),
            expected=ErrorClass.INVALID_INPUT,
        ),
        ErrorCase(
            "no place for a parameter",
            change=with_input(nonsense=1),
            expected=ErrorClass.INVALID_INPUT,
        ),
        refused("429", ErrorClass.RATE_LIMITED, 429),
        refused("429 header", ErrorClass.RATE_LIMITED, 429, header="3", retry_after_s=3.0),
        ErrorCase(
            "429 limit", setting(run_per_10s=0), expected=ErrorClass.RATE_LIMITED, code="429"
        ),
        refused("500", ErrorClass.PROVIDER_UNAVAILABLE, 500),
        refused("502 page", ErrorClass.PROVIDER_UNAVAILABLE, 502),
        refused("503 empty", ErrorClass.PROVIDER_UNAVAILABLE, 503, ""),
        refused("504", ErrorClass.TIMEOUT_UNKNOWN, 504),
        refused("524", ErrorClass.TIMEOUT_UNKNOWN, 524),
        ErrorCase("nsfw", fault("nsfw"), call="run", expected=ErrorClass.CONTENT_POLICY),
        ErrorCase(
            "out of memory",
            fault("out_of_memory"),
            call="run",
            expected=ErrorClass.OUT_OF_MEMORY,
            code="RuntimeError",
        ),
        failed("allocation", ErrorClass.OUT_OF_MEMORY, "Allocation on device 0 would exceed."),
        ErrorCase("not reachable", fault("interrupt"), call="run", expected=ErrorClass.INTERRUPTED),
        failed("websocket", ErrorClass.INTERRUPTED, "WebSocket communication error: closed"),
        failed("worker lost", ErrorClass.INTERRUPTED, "job timed out after 1 retries"),
        failed("moderation", ErrorClass.CONTENT_POLICY, "Blocked by our content policy."),
        failed("throttled", ErrorClass.RATE_LIMITED, "Request was throttled."),
        failed("credit", ErrorClass.INSUFFICIENT_CREDIT, "Insufficient credit."),
        failed("timed out", ErrorClass.TIMEOUT_RUN, "Sampling timed out."),
        failed("anything", ErrorClass.UNKNOWN, "Something nobody has seen before"),
        ErrorCase(
            "model not installed",
            change=with_input(model="nobody_has_it.safetensors"),
            call="run",
            expected=ErrorClass.NOT_FOUND,
        ),
        ErrorCase(
            "value not in a list",
            change=with_input(sampler="nonsense"),
            call="run",
            expected=ErrorClass.INVALID_INPUT,
        ),
        ErrorCase(
            "too small",
            change=with_input(width=1),
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
        ErrorCase("no worker", without_workers, call="check", expected=ErrorClass.QUEUE_FULL),
        ErrorCase("404", setting(endpoints="another"), call="check", expected=ErrorClass.NOT_FOUND),
        *(
            ErrorCase(
                str(status),
                in_bucket("file_status", status=status),
                call="download",
                expected=expected,
                code=str(status),
            )
            for status, expected in (
                (403, ErrorClass.OUTPUT_EXPIRED),
                (404, ErrorClass.OUTPUT_EXPIRED),
                (410, ErrorClass.OUTPUT_EXPIRED),
                (429, ErrorClass.DOWNLOAD_FAILED),
                (503, ErrorClass.DOWNLOAD_FAILED),
                (400, ErrorClass.BAD_OUTPUT),
            )
        ),
        ErrorCase(
            "cut off", in_bucket("drop_file"), call="download", expected=ErrorClass.DOWNLOAD_FAILED
        ),
        ErrorCase(
            "foreign host", fault("foreign_host"), call="download", expected=ErrorClass.BAD_OUTPUT
        ),
        ErrorCase(
            "redirect to metadata",
            in_bucket("file_redirect"),
            call="download",
            expected=ErrorClass.BAD_OUTPUT,
        ),
        ErrorCase(
            "gzip bomb", in_bucket("gzip_bomb"), call="download", expected=ErrorClass.BAD_OUTPUT
        ),
    )
    outputs = (
        OutputCase("base64"),
        OutputCase("several in base64", change=with_input(images=3), expected=3),
        OutputCase("partial with errors", fault("short_output"), with_input(images=3), 2),
        OutputCase("in a bucket", setting(bucket=True), with_input(images=2), 2),
        OutputCase("message", setting(output_form="message")),
        OutputCase("message with a URL", setting(output_form="message", bucket=True)),
        OutputCase("JSON as text", setting(output_form="json"), with_input(images=2), 2),
        OutputCase("list of data URIs", setting(output_form="list"), with_input(images=2), 2),
        OutputCase("list of URLs", setting(output_form="list", bucket=True)),
        OutputCase("success_no_images", fault("empty_output"), expected=ErrorClass.BAD_OUTPUT),
        OutputCase("null", fault("empty_output", null=True), expected=ErrorClass.BAD_OUTPUT),
        OutputCase("gone", fault("expired"), expected=ErrorClass.INTERRUPTED),
        OutputCase(
            "at another endpoint", change=lambda request: replace(request, endpoint="another")
        ),
    )

    def __init__(self, sim: Simulator, http: HttpClient) -> None:
        super().__init__(sim, http)
        self.pod = RunPodClient(sim)
        self.pod.configure(progress=True, webhook_pause_seconds=0.05)

    def provider(
        self, *, url: str | None = None, wrong_credentials: bool = False
    ) -> RunPodProvider:
        return RunPodProvider(
            "wrong_key" if wrong_credentials else KEY,
            endpoint_id=ENDPOINT,
            http=self.http,
            base_url=url or self.sim.url,
            extra_output_hosts=["127.0.0.1"],
            settle_s=0,  # the case of a job that is gone would wait for it
        )

    def request(self, prompt: str, *, images: int = 1, **fields: Any) -> SubmitRequest:
        defaults = {"token": new_token(), "workflow": Workflow(text_workflow(), BINDINGS)}
        values = {"prompt": prompt, "images": images}
        return SubmitRequest("runpod/test", values, **{**defaults, **fields})

    def hold(self, where: Place) -> None:
        self.sim.configure(
            **{"queue": {"queue_seconds": NEVER_S}, "run": {"run_seconds": NEVER_S}}[where]
        )

    def pace(self, run_s: float) -> None:
        self.sim.configure(run_seconds=run_s)

    def hasten(self) -> None:
        self.pod.configure(policy_scale=0.05)

    def with_files(self, request: SubmitRequest, files: Sequence[InputFile]) -> SubmitRequest:
        assert request.workflow is not None
        nodes = dict(request.workflow.nodes)
        for number in range(len(files)):
            nodes[f"load {number}"] = {"class_type": "LoadImage", "inputs": {"image": ""}}
            nodes[f"save {number}"] = {
                "class_type": "SaveImage",
                "inputs": {"images": [f"load {number}", 0], "filename_prefix": "copy"},
            }
        places = tuple((f"load {number}", "image") for number in range(len(files)))
        workflow = Workflow(nodes, {**request.workflow.bindings, "pictures": places})
        return replace(request, workflow=workflow, files={"pictures": tuple(files)})

    def files_received(self, prediction_id: str) -> list[str]:
        given = self.sim.request("GET", f"/_sim/runpod/jobs/{prediction_id}").json()
        return [image["sha256"] for image in given["images"]]

    def refuse_files(self) -> None:
        """They come with the submission, so that is what is refused."""
        self.sim.fault("create_status", status=503)
