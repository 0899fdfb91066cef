"""Replicate under the conformance suite."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from generation.provider import ErrorClass, InputFile, SubmitRequest
from generation.providers.replicate import ReplicateProvider
from tests.generation.conformance.harness import (
    ErrorCase,
    Harness,
    OutputCase,
    Place,
    new_token,
)
from tests.simulator.support import SDXL, SDXL_VERSION, TOKEN

UPLOAD = "/v1/files"
LIST_MODEL = "bytedance/seedream-4"
NEVER_S = 3600.0


def fault(kind: str, **options: Any) -> Callable[[Harness, str], object]:
    """Return what adds a rule for the prompt of a case."""
    return lambda harness, prompt: harness.sim.fault(kind, prompt=prompt, **options)


def everywhere(kind: str, **options: Any) -> Callable[[Harness, str], object]:
    """Return what adds a rule of a kind that names no prompt."""
    return lambda harness, prompt: harness.sim.fault(kind, **options)


def with_input(**values: Any) -> Callable[[SubmitRequest], SubmitRequest]:
    return lambda request: replace(request, input={**request.input, **values})


def refused(
    id: str, expected: ErrorClass, status: int, body: object = None, **fields: Any
) -> ErrorCase:
    """Return the case of a submission answered with this status and body."""
    text = None if body is None else body if isinstance(body, str) else json.dumps(body)
    retry_after = fields.pop("header", None)
    arrange = fault("create_status", status=status, body=text, retry_after=retry_after)
    return ErrorCase(id, arrange, expected=expected, code=str(status), **fields)


def failed(id: str, expected: ErrorClass, error: str, code: str | None = None) -> ErrorCase:
    """Return the case of a run that ends with this text."""
    return ErrorCase(id, fault("fail", error=error), call="run", expected=expected, code=code)


class ReplicateHarness(Harness):
    name = "replicate"
    signs_webhooks = True
    tells_progress = True
    tells_run_s = True
    tells_billed_images = True
    stops: frozenset[Place] = frozenset({"queue", "run"})
    can_find = True
    takes_files = True
    has_credentials = True
    schema_of = (SDXL, "num_inference_steps")

    # Source: Replicate HTTP API and error reports, read 2026-11-20
    errors: Sequence[ErrorCase] = (
        refused("400", ErrorClass.INVALID_INPUT, 400),
        refused("401", ErrorClass.AUTH, 401),
        refused("402", ErrorClass.INSUFFICIENT_CREDIT, 402),
        refused(
            "402 spend limit",
            ErrorClass.INSUFFICIENT_CREDIT,
            402,
            {"detail": "You have reached your monthly spend limit."},
        ),
        refused("403", ErrorClass.AUTH, 403),
        ErrorCase(
            "404 model",
            change=lambda request: replace(request, model="nobody/nothing", version=None),
            expected=ErrorClass.NOT_FOUND,
            code="404",
        ),
        ErrorCase(
            "404 community model by its name",
            change=lambda request: replace(request, version=None),
            expected=ErrorClass.NOT_FOUND,
            code="404",
        ),
        ErrorCase(
            "404 deployment",
            change=lambda request: replace(request, deployment="nobody/nothing"),
            expected=ErrorClass.NOT_FOUND,
            code="404",
        ),
        ErrorCase(
            "422 version",
            change=lambda request: replace(request, version="0" * 64),
            expected=ErrorClass.NOT_FOUND,
            code="422",
        ),
        ErrorCase(
            "422 range",
            change=with_input(num_inference_steps=9_999),
            expected=ErrorClass.INVALID_INPUT,
            code="422",
        ),
        ErrorCase(
            "422 unknown parameter",
            change=with_input(nonsense=1),
            expected=ErrorClass.INVALID_INPUT,
            code="422",
        ),
        refused("413", ErrorClass.INVALID_INPUT, 413, {"detail": "Too large"}),
        refused("429 header", ErrorClass.RATE_LIMITED, 429, header="3", retry_after_s=3.0),
        refused(
            "429 body",
            ErrorClass.RATE_LIMITED,
            429,
            {"detail": "Request was throttled.", "status": 429, "retry_after": 5},
            retry_after_s=5.0,
        ),
        refused(
            "429 text",
            ErrorClass.RATE_LIMITED,
            429,
            {"detail": "Request was throttled. Your rate limit resets in ~30s."},
            retry_after_s=30.0,
        ),
        refused("500", ErrorClass.PROVIDER_UNAVAILABLE, 500),
        refused("502 page", ErrorClass.PROVIDER_UNAVAILABLE, 502),
        refused("503 empty", ErrorClass.PROVIDER_UNAVAILABLE, 503, ""),
        # From a gateway that has passed the request on and gave up waiting.
        refused("504", ErrorClass.TIMEOUT_UNKNOWN, 504),
        refused("524", ErrorClass.TIMEOUT_UNKNOWN, 524),
        ErrorCase("nsfw", fault("nsfw"), call="run", expected=ErrorClass.CONTENT_POLICY),
        failed(
            "all nsfw", ErrorClass.CONTENT_POLICY, "All generated images contained NSFW content."
        ),
        failed(
            "E005",
            ErrorClass.CONTENT_POLICY,
            "The input or output was flagged as sensitive. Please try again. (E005)",
            "E005",
        ),
        failed("moderation", ErrorClass.CONTENT_POLICY, "Your prompt was blocked by moderation."),
        ErrorCase(
            "out of memory", fault("out_of_memory"), call="run", expected=ErrorClass.OUT_OF_MEMORY
        ),
        failed("E1001", ErrorClass.OUT_OF_MEMORY, "Out of resources (E1001)", "E1001"),
        failed("E1000", ErrorClass.INTERRUPTED, "E1000: unknown error", "E1000"),
        failed("E6716", ErrorClass.TIMEOUT_RUN, "Timed out starting (E6716)", "E6716"),
        failed("E8367", ErrorClass.INTERRUPTED, "Stopped in a non-terminal state (E8367)", "E8367"),
        failed("E8765", ErrorClass.INTERRUPTED, "Health check failed (E8765)", "E8765"),
        failed("E9243", ErrorClass.UNKNOWN, "Error starting prediction (E9243)", "E9243"),
        failed("E9825", ErrorClass.INTERRUPTED, "Failed to upload the output (E9825)", "E9825"),
        failed(
            "E9828",
            ErrorClass.INTERRUPTED,
            "Director: unexpected error handling prediction (E9828)",
            "E9828",
        ),
        failed("E4875", ErrorClass.INVALID_INPUT, "Webhook URL is empty (E4875)", "E4875"),
        ErrorCase("PA", fault("interrupt"), call="run", expected=ErrorClass.INTERRUPTED, code="PA"),
        failed(
            "E003",
            ErrorClass.PROVIDER_UNAVAILABLE,
            "Service is currently unavailable due to high demand (E003)",
            "E003",
        ),
        failed(
            "E004",
            ErrorClass.PROVIDER_UNAVAILABLE,
            "Service is temporarily unavailable (E004)",
            "E004",
        ),
        failed("try again", ErrorClass.PROVIDER_UNAVAILABLE, "Please try again later."),
        failed("timed out", ErrorClass.TIMEOUT_RUN, "Prediction timed out"),
        failed("throttled", ErrorClass.RATE_LIMITED, "Request was throttled."),
        failed("credit", ErrorClass.INSUFFICIENT_CREDIT, "Insufficient credit to run this model"),
        ErrorCase("value error", fault("fail"), call="run", expected=ErrorClass.INVALID_INPUT),
        failed("anything", ErrorClass.UNKNOWN, "Something nobody has seen before"),
        ErrorCase(
            "503",
            fault("get_status", status=503),
            call="fetch",
            expected=ErrorClass.PROVIDER_UNAVAILABLE,
        ),
        ErrorCase(
            "429",
            fault("get_status", status=429),
            call="fetch",
            expected=ErrorClass.RATE_LIMITED,
            retry_after_s=30.0,
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
            "503",
            everywhere("list_status", status=503),
            call="find",
            expected=ErrorClass.PROVIDER_UNAVAILABLE,
        ),
        ErrorCase(
            "429",
            everywhere("list_status", status=429),
            call="find",
            expected=ErrorClass.RATE_LIMITED,
        ),
        ErrorCase("deleted", fault("expired"), call="find", expected=ErrorClass.UNKNOWN),
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
                (410, ErrorClass.OUTPUT_EXPIRED),
                (429, ErrorClass.DOWNLOAD_FAILED),
                (503, ErrorClass.DOWNLOAD_FAILED),
                (400, ErrorClass.BAD_OUTPUT),
            )
        ),
        ErrorCase(
            "cut off", fault("drop_file"), call="download", expected=ErrorClass.DOWNLOAD_FAILED
        ),
        ErrorCase(
            "foreign host", fault("foreign_host"), call="download", expected=ErrorClass.BAD_OUTPUT
        ),
        ErrorCase(
            "redirect to metadata",
            fault("file_redirect"),
            call="download",
            expected=ErrorClass.BAD_OUTPUT,
        ),
        ErrorCase("gzip bomb", fault("gzip_bomb"), call="download", expected=ErrorClass.BAD_OUTPUT),
    )
    outputs = (
        OutputCase("list of one"),
        OutputCase("list", change=with_input(num_outputs=3), expected=3),
        OutputCase("string", fault("string_output")),
        OutputCase("short list", fault("short_output", count=2), with_input(num_outputs=3), 2),
        OutputCase("base64", fault("data_uri_output"), with_input(num_outputs=2), 2),
        OutputCase("empty list", fault("empty_output"), expected=ErrorClass.BAD_OUTPUT),
        OutputCase("null", fault("empty_output", null=True), expected=ErrorClass.BAD_OUTPUT),
        OutputCase("removed", fault("expired", seconds=0.0), expected=ErrorClass.OUTPUT_EXPIRED),
        OutputCase(
            "by deployment", change=lambda request: replace(request, deployment="simulated/sdxl")
        ),
    )

    def provider(
        self, *, url: str | None = None, wrong_credentials: bool = False
    ) -> ReplicateProvider:
        return ReplicateProvider(
            "wrong_token" if wrong_credentials else TOKEN,
            http=self.http,
            base_url=url or self.sim.url,
            extra_output_hosts=["127.0.0.1"],
        )

    def request(self, prompt: str, *, images: int = 1, **fields: Any) -> SubmitRequest:
        values = {"prompt": prompt, "width": 128, "height": 128, "num_outputs": images}
        defaults = {"token": new_token(), "version": f"{SDXL}:{SDXL_VERSION}"}
        return SubmitRequest(SDXL, values, **{**defaults, **fields})

    def hold(self, where: Place) -> None:
        self.sim.configure(
            **{"queue": {"queue_seconds": NEVER_S}, "run": {"run_seconds": NEVER_S}}[where]
        )

    def pace(self, run_s: float) -> None:
        self.sim.configure(run_seconds=run_s)

    def hasten(self) -> None:
        self.sim.configure(cancel_after_factor=0.05)

    def with_files(self, request: SubmitRequest, files: Sequence[InputFile]) -> SubmitRequest:
        if len(files) == 1:
            return replace(request, files={"image": tuple(files)})
        return replace(
            request,
            model=LIST_MODEL,
            version=None,
            input={"prompt": request.input["prompt"]},
            files={"image_input": tuple(files)},
            file_lists=frozenset({"image_input"}),
        )

    def files_received(self, prediction_id: str) -> list[str]:
        values = self.sim.get(prediction_id)["input"]
        passed = values.get("image_input") or [values["image"]]
        return [self._digest(value) for value in passed]

    def _digest(self, value: str) -> str:
        if value.startswith("data:"):
            return hashlib.sha256(base64.b64decode(value.partition(",")[2])).hexdigest()
        assert UPLOAD in value
        return str(self.sim.request("GET", value).json()["checksums"]["sha256"])

    def refuse_files(self) -> None:
        self.sim.fault("upload_status", status=503)
