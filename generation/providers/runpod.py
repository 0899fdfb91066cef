"""RunPod serverless: the HTTP API of its endpoints in, `Prediction` and `Failure` out.

An endpoint is somebody's own worker, here worker-comfyui: it takes a ComfyUI workflow with the
reference images in base64, and answers with images in base64 or with the URLs of a bucket. A
prediction is named "<endpoint id>/<job id>", a file in base64 by its number among the job's.

There is no list of jobs and webhooks are not signed: the truth is what `GET /status` says.

Source: RunPod serverless documentation and runpod-workers/worker-comfyui, read 2026-11-20
"""

import base64
import binascii
import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import PurePath
from time import monotonic
from typing import Any, BinaryIO

from generation.answers import (
    DEPTH_LIMIT,
    ITEMS_LIMIT,
    PERHAPS_ACCEPTED,
    class_of_status,
    explained,
    shortened,
    text_of,
)
from generation.http import (
    HttpClient,
    OutputHosts,
    Response,
    TransportError,
    parse_json,
    parse_retry_after,
)
from generation.provider import (
    OUTPUTS_LIMIT,
    RAW_LIMIT,
    RUN_MAX_S,
    TOO_SLOW,
    Downloaded,
    ErrorClass,
    Failure,
    InputFile,
    Prediction,
    PredictionStatus,
    SubmitRequest,
    WebhookDelivery,
    WebhookRefusal,
)

ID_MAX_LENGTH = 100
SUBMIT_DEADLINE_S = 15.0
FILES_DEADLINE_S = 60.0  # of a submission with files, reading them included
SUBMIT_LEAST_S = 1.0  # after reading them; with less left the answer would be lost
# A finished job comes with its images.
FETCH_DEADLINE_S = 30.0
DOWNLOAD_DEADLINE_S = 60.0
CHECK_DEADLINE_S = 10.0
REQUEST_MAX_BYTES = 10_000_000
RESULT_MAX_BYTES = 32 * 1024 * 1024
# What `policy` may hold, seconds. The shortest execution is more than five.
EXECUTION_MIN_S, TTL_MIN_S, POLICY_MAX_S = 6, 10, 7 * 86_400
# The time to live also ends the life of a result: what finished at the last moment is to be had
# for a while.
RESULT_GRACE_S = 300
# A job that this process has just submitted is not given up so soon after: not all of RunPod may
# know of it yet.
SETTLE_S = 10.0

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,60}")
# In the beginning of a long job object, before its output.
_JOB_ID_IN_HEAD = re.compile(
    rb'\s*\{(?:(?!"output")[^{]){0,500}?"id"\s*:\s*"([A-Za-z0-9_-]{1,60})"'
)
_HEAD_MIN_BYTES = 4_096
# As in `entry_schema.json`; with a job's id it fits into `ID_MAX_LENGTH`.
_ENDPOINT_ID = re.compile(r"[A-Za-z0-9-]{1,39}")
_INDEX = re.compile(r"[0-9]{1,4}")
_OUTPUT_DEPTH_LIMIT = 4
_URL_LIMIT = 4_000
_READ_BYTES = 1024 * 1024
_DECODE_BYTES = 256 * 1024  # of base64, a multiple of four

# Longer runs of base64 are taken out of an answer before it is parsed, see `_Body`; each is looked
# for from its beginning only, or a shorter one would be searched from each of its letters. The mark
# in their place cannot be guessed by whoever writes the answer. None begins within an escape, which
# the mark would spoil.
_RUN = re.compile(rb"(?<![A-Za-z0-9+/\\])[A-Za-z0-9+/]{4096,}+={0,2}")
_MARK = secrets.token_hex(8)
_MARKED = re.compile(rf"<{_MARK}:(\d+)>")
# In one line, or in several as MIME has it.
_BASE64 = re.compile(r"[A-Za-z0-9+/]{64,}+(?:\r?\n[A-Za-z0-9+/]++)*+={0,2}")
_SPACES = b" \t\r\n\f\v"
_DATA_PREFIX = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.I)
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):.*", re.S)

_STATUSES = {
    "IN_QUEUE": PredictionStatus.STARTING,
    "COMPLETED": PredictionStatus.SUCCEEDED,
    "FAILED": PredictionStatus.FAILED,
    "CANCELLED": PredictionStatus.FAILED,
    "TIMED_OUT": PredictionStatus.FAILED,
    # IN_PROGRESS, RUNNING, or a word from the future: the caller's deadline bounds it
}
_FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
# What went wrong in a job, by its words in lower case; the first row that fits wins.
_BY_TEXT = (
    (r"nsfw|flagged as sensitive", ErrorClass.CONTENT_POLICY),
    (r"out ?of ?memory|allocation on device", ErrorClass.OUT_OF_MEMORY),
    (r"insufficient (credit|balance|funds)|spend limit", ErrorClass.INSUFFICIENT_CREDIT),
    (r"throttled|too many requests", ErrorClass.RATE_LIMITED),
    # A model's file or a custom node that is not installed; what else is not in a list, such as
    # a sampler, is a wrong value.
    (
        r"not[ _]in[ _]list.*(ckpt|checkpoint|unet|lora|vae|clip|control_?net|model)_?name"
        r"|not[ _]in[ _]list.*\.(safetensors|ckpt|gguf|sft|pth|pt)\b"
        r"|node .* (does not exist|not found)|missing_node_type|unknown class",
        ErrorClass.NOT_FOUND,
    ),
    (
        r"validation failed|not[ _]in[ _]list|invalid[ _]prompt|prompt has no outputs"
        r"|required_input_missing|missing 'workflow'|please provide input|invalid json"
        r"|must be (a|one of|less|greater)|decoding base64|unidentifiedimageerror"
        r"|cannot identify image",
        ErrorClass.INVALID_INPUT,
    ),
    (
        r"not reachable|unreachable|websocket|communication error|not found in history"
        r"|failed to upload one or more input images|worker (was )?(lost|exited|killed)"
        r"|timed out after \d+ retr|connection (closed|refused|reset)",
        ErrorClass.INTERRUPTED,
    ),
    (
        r"sensitive|safety|moderation|blocked|prohibited|content policy|violat",
        ErrorClass.CONTENT_POLICY,
    ),
    (r"timed out|timeout", ErrorClass.TIMEOUT_RUN),
)
_MESSAGES = {
    ErrorClass.RATE_LIMITED: "RunPod asks to slow down.",
    ErrorClass.PROVIDER_UNAVAILABLE: "RunPod is unavailable at the moment.",
    ErrorClass.TIMEOUT_UNKNOWN: "RunPod did not answer; the request may have been accepted.",
    ErrorClass.TIMEOUT_RUN: "The worker did not finish in time.",
    ErrorClass.INTERRUPTED: "RunPod lost the work before it was done.",
    ErrorClass.QUEUE_FULL: "No worker at RunPod was free in time.",
    ErrorClass.OUT_OF_MEMORY: "The worker ran out of memory; a smaller size may work.",
    ErrorClass.CONTENT_POLICY: "The safety check of the worker refused this prompt or its picture.",
    ErrorClass.INVALID_INPUT: "RunPod refused the input.",
    ErrorClass.NOT_FOUND: "RunPod has no such endpoint, or its worker no such model or node.",
    ErrorClass.AUTH: "RunPod refused our credentials.",
    ErrorClass.INSUFFICIENT_CREDIT: "The account at RunPod has no credit left.",
    ErrorClass.CANCELED: "The work was cancelled.",
    ErrorClass.OUTPUT_EXPIRED: "The picture was deleted at RunPod before it was downloaded.",
    ErrorClass.DOWNLOAD_FAILED: "The picture could not be fetched from RunPod.",
    ErrorClass.BAD_OUTPUT: "The worker finished without a picture.",
    ErrorClass.UNKNOWN: "The worker failed.",
}
# Where a failed job's output may say more.
_DETAILS = ("details", "errors", "error")
# For these the worker's own words help whoever reads them.
_QUOTED = frozenset({ErrorClass.INVALID_INPUT, ErrorClass.UNKNOWN})


class RunPodProvider:
    """The RunPod adapter.

    `endpoint_id` is the endpoint of requests that name none. `base_url` is with or without `/v2`.
    `output_hosts` are the hosts of the bucket that workers upload to, by https, and
    `extra_output_hosts` further ones, see `OutputHosts`. `settle_s` is `SETTLE_S` unless given.
    Raises ValueError for a key that no
    header can carry and for an endpoint id that cannot be one.
    """

    name = "runpod"
    sends_webhooks = True
    signs_webhooks = False

    def __init__(
        self,
        api_key: str,
        *,
        http: HttpClient,
        endpoint_id: str = "",
        base_url: str = "https://api.runpod.ai/v2",
        output_hosts: Sequence[str] = (),
        extra_output_hosts: Sequence[str] = (),
        settle_s: float = SETTLE_S,
    ) -> None:
        if not re.fullmatch(r"[!-~]+", api_key):
            raise ValueError("The RunPod key is empty or has characters that no key has.")
        if endpoint_id and not _ENDPOINT_ID.fullmatch(endpoint_id):
            raise ValueError("The RunPod endpoint id has characters that no id has.")
        self._api_key = api_key
        self._http = http
        self._endpoint_id = endpoint_id
        self._base_url = base_url.rstrip("/").removesuffix("/v2") + "/v2"
        self._hosts = OutputHosts(tuple(output_hosts), tuple(extra_output_hosts))
        self._settle_s = settle_s
        # When this process submitted what may not be known yet, monotonic seconds by id. Each
        # operation on it is atomic: a lock could be held at the moment of a fork.
        self._submitted_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"RunPodProvider({self._base_url!r}, {self._endpoint_id!r})"

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        """Queue a job, once.

        `TIMEOUT_UNKNOWN` means that it may run, and may be charged for, without our knowing its
        id. Every other failure means that there is none.
        """
        began_s = monotonic()
        endpoint = request.endpoint or self._endpoint_id
        if not _ENDPOINT_ID.fullmatch(endpoint):
            return Failure(ErrorClass.NOT_FOUND, "No RunPod endpoint is set for this model.")
        body = _job_request(request)
        if isinstance(body, Failure):
            return body
        deadline_s = FILES_DEADLINE_S if request.files else SUBMIT_DEADLINE_S
        if request.timeout_s is not None:
            deadline_s = min(deadline_s, request.timeout_s)
        if request.files:
            deadline_s -= monotonic() - began_s
            if deadline_s < SUBMIT_LEAST_S:
                return Failure(ErrorClass.INTERRUPTED, TOO_SLOW)
        answer = self._call("POST", endpoint, "run", deadline_s, body)
        if isinstance(answer, TransportError):
            # An error status tells enough without its body.
            if answer.kind == "read" and (answer.status or 0) >= 400:
                return self._refused_submit(Response(answer.status or 0, {}, b""))
            never_sent = answer.kind == "connect"
            error_class = (
                ErrorClass.PROVIDER_UNAVAILABLE if never_sent else ErrorClass.TIMEOUT_UNKNOWN
            )
            return self._failure(error_class, raw=answer.message)
        if not 200 <= answer.status < 300:
            return self._refused_submit(answer)
        job = _Body(answer.body).data
        # What counts here is the id.
        job = {"status": "IN_QUEUE", **job} if isinstance(job, dict) else None
        prediction = _read(job, endpoint)
        if prediction is None:  # accepted, but under an id that we cannot read
            return self._failure(ErrorClass.TIMEOUT_UNKNOWN, raw=text_of(answer.body))
        self._note(prediction.id)
        return prediction

    def fetch(self, prediction_id: str) -> Prediction | Failure:
        """Read a job, once. Without an endpoint in its name, it is one of the usual endpoint's.

        What RunPod does not know (any more) is `FAILED` as `INTERRUPTED`: its time to live is
        over, or its result was kept long enough. Right after its submission by this process it is
        `STARTING` instead, for `settle_s`.
        """
        return self._look("GET", "status", prediction_id)

    def cancel(self, prediction_id: str) -> Prediction | Failure:
        """Ask for a job to be stopped; a finished one stays as it is."""
        answer = self._look("POST", "cancel", prediction_id)
        word = answer.raw.get("status") if isinstance(answer, Prediction) else None
        if word not in _FINAL:
            return answer
        # This call tells no more than the status: neither the images nor how long it ran.
        seen = self.fetch(prediction_id)
        is_known = isinstance(seen, Prediction) and seen.raw.get("status") in _FINAL
        return answer if word == "CANCELLED" and not is_known else seen

    def find(
        self, request: SubmitRequest, *, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        """Ask for the job that a webhook has named; without one, nobody can tell.

        That is a `Failure` of class `UNKNOWN`: there is no list to look through.
        """
        if request.claimed_id:
            endpoint = request.endpoint or self._endpoint_id
            seen = self.fetch(f"{endpoint}/{request.claimed_id}")
            if isinstance(seen, Failure):
                return seen
            if seen.raw:  # else there is no such job (any more)
                return (seen,)
        return Failure(ErrorClass.UNKNOWN, "RunPod has no list of jobs to look through.")

    def download(
        self,
        output: str,
        sink: BinaryIO,
        *,
        prediction_id: str,
        max_bytes: int,
        deadline_s: float | None = None,
    ) -> Downloaded | Failure:
        """Write a file into `sink`: from its URL, or out of the job's answer, asked for again.

        Classes of failure as those of `HttpClient.download`. Raises OSError when `sink` cannot be
        written.
        """
        deadline_s = DOWNLOAD_DEADLINE_S if deadline_s is None else deadline_s
        if _is_url(output):
            return self._http.download(
                output, sink, hosts=self._hosts, max_bytes=max_bytes, deadline_s=deadline_s
            )
        name = self._split(prediction_id)
        if name is None or not _INDEX.fullmatch(output):
            return Failure(ErrorClass.BAD_OUTPUT, "There is no such file at RunPod.")
        answer = self._call("GET", name[0], f"status/{name[1]}", deadline_s)
        if isinstance(answer, TransportError):
            if answer.too_large:
                return _too_large(answer)
            return self._failure(ErrorClass.DOWNLOAD_FAILED, raw=answer.message)
        if answer.status in (404, 410):
            return self._failure(ErrorClass.OUTPUT_EXPIRED, code=str(answer.status))
        if not 200 <= answer.status < 300:
            return self._failure(
                ErrorClass.DOWNLOAD_FAILED,
                code=str(answer.status),
                retry_after_s=parse_retry_after(answer.headers.get("retry-after")),
                raw=text_of(answer.body),
            )
        return _save(_Body(answer.body), int(output), sink, max_bytes)

    def read(self, body: object) -> Prediction | None:
        """Translate a job object of the usual endpoint; `None` if it is not one."""
        return _read(body, self._endpoint_id)

    def verify_webhook(
        self, headers: Mapping[str, str], body: bytes, *, now_s: float
    ) -> WebhookDelivery | WebhookRefusal | Failure:
        """Take a webhook as what it is: somebody's word that a job may be done.

        `body` of the delivery is {"id": the job's id}, without its endpoint. That it is a job of
        ours, and what became of it, is for `fetch` to say. `body` may be the beginning of a long
        one.
        """
        job = _Body(body).data
        if job is None and len(body) >= _HEAD_MIN_BYTES and (head := _JOB_ID_IN_HEAD.match(body)):
            return WebhookDelivery(hashlib.sha256(body).hexdigest(), {"id": head[1].decode()}, None)
        if not isinstance(job, dict) or not isinstance(job.get("status"), str):
            return WebhookRefusal.NOT_A_PREDICTION
        job_id = job.get("id")
        if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
            return WebhookRefusal.NOT_A_PREDICTION
        return WebhookDelivery(hashlib.sha256(body).hexdigest(), {"id": job_id}, None)

    def check(self) -> Failure | None:
        """Look at the usual endpoint: `QUEUE_FULL` when jobs wait there and no worker is up."""
        if not self._endpoint_id:
            return Failure(ErrorClass.NOT_FOUND, "No RunPod endpoint is set.")
        answer = self._call("GET", self._endpoint_id, "health", CHECK_DEADLINE_S)
        if isinstance(answer, TransportError):
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        if not 200 <= answer.status < 300:
            return self._refused(answer)
        health = answer.json()
        jobs, workers = (_counts(health, part) for part in ("jobs", "workers"))
        if jobs is None or workers is None:
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
        up = sum(workers.get(kind, 0) for kind in ("idle", "initializing", "ready", "running"))
        if jobs.get("inQueue", 0) > 0 and up == 0:
            return self._failure(ErrorClass.QUEUE_FULL, raw=text_of(answer.body))
        return None

    def live_schema(
        self, model: str, *, version: str | None = None
    ) -> Mapping[str, Mapping[str, Any]] | Failure | None:
        """A worker does not publish what its workflows need."""
        return None

    def _look(self, method: str, verb: str, prediction_id: str) -> Prediction | Failure:
        name = self._split(prediction_id)
        if name is None:
            return self._failure(ErrorClass.NOT_FOUND)
        endpoint, job_id = name
        answer = self._call(method, endpoint, f"{verb}/{job_id}", FETCH_DEADLINE_S)
        if isinstance(answer, TransportError):
            if answer.too_large:
                failure = _too_large(answer)
                return Prediction(f"{endpoint}/{job_id}", PredictionStatus.FAILED, failure=failure)
            # Repeating these calls is harmless, so a lost answer is not an unknown outcome.
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        if answer.status == 404:
            return self._missing(f"{endpoint}/{job_id}")
        if not 200 <= answer.status < 300:
            return self._refused(answer)
        job = _Body(answer.body).data
        if isinstance(job, dict) and job.get("id", job_id) == job_id:
            prediction = _read({**job, "id": job_id}, endpoint)
            if prediction is not None:
                return prediction
        return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))

    def _note(self, prediction_id: str) -> None:
        now = monotonic()
        for known, submitted_at in list(self._submitted_at.items()):
            if now - submitted_at >= self._settle_s:
                self._submitted_at.pop(known, None)
        self._submitted_at[prediction_id] = now

    def _missing(self, prediction_id: str) -> Prediction:
        if monotonic() - self._submitted_at.get(prediction_id, -math.inf) < self._settle_s:
            return Prediction(prediction_id, PredictionStatus.STARTING)
        return _gone(prediction_id)

    def _split(self, prediction_id: str) -> tuple[str, str] | None:
        """Return the endpoint and the job that a prediction's name means, `None` for none."""
        endpoint, _, job_id = prediction_id.rpartition("/")
        endpoint = endpoint or self._endpoint_id
        if _ENDPOINT_ID.fullmatch(endpoint) and _JOB_ID.fullmatch(job_id):
            return endpoint, job_id
        return None

    def _call(
        self,
        method: str,
        endpoint: str,
        path: str,
        deadline_s: float,
        body: Mapping[str, Any] | None = None,
    ) -> Response | TransportError:
        return self._http.json(
            method,
            f"{self._base_url}/{endpoint}/{path}",
            headers={"Authorization": f"Bearer {self._api_key}"},
            json=body,
            deadline_s=deadline_s,
            max_bytes=RESULT_MAX_BYTES,
        )

    def _refused_submit(self, answer: Response) -> Failure:
        if answer.status in PERHAPS_ACCEPTED:
            return self._failure(
                ErrorClass.TIMEOUT_UNKNOWN, code=str(answer.status), raw=text_of(answer.body)
            )
        return self._refused(answer)

    def _refused(self, answer: Response) -> Failure:
        problem = answer.json()
        problem = problem if isinstance(problem, dict) else {}
        words = (problem.get(key) for key in ("error", "message", "detail"))
        return self._failure(
            class_of_status(answer.status),
            detail=next((word for word in words if isinstance(word, str)), ""),
            code=str(answer.status),
            retry_after_s=parse_retry_after(answer.headers.get("retry-after")),
            raw=text_of(answer.body),
        )

    def _failure(
        self,
        error_class: ErrorClass,
        *,
        detail: str = "",
        code: str = "",
        retry_after_s: float | None = None,
        raw: str = "",
    ) -> Failure:
        # An error page may echo the request's headers.
        detail, raw = (text.replace(self._api_key, "[key]") for text in (detail, raw))
        return Failure(
            error_class,
            _message(error_class, detail),
            provider_code=code,
            retry_after_s=retry_after_s,
            raw=raw[:RAW_LIMIT],
        )


# --- What is sent -------------------------------------------------------------------------------


def _job_request(request: SubmitRequest) -> dict[str, Any] | Failure:
    """Return the body of `POST /run`, at most `REQUEST_MAX_BYTES` as JSON."""
    if request.workflow is None:
        return Failure(ErrorClass.INVALID_INPUT, "The model has no workflow for RunPod.")
    try:
        nodes = request.workflow.filled(request.input)
    except KeyError as error:
        message = f"The workflow has no place for {error.args[0]}."
        return Failure(ErrorClass.INVALID_INPUT, message)
    files: dict[str, InputFile] = {}
    for parameter, given in request.files.items():
        places = request.workflow.bindings.get(parameter, ())
        if len(given) > len(places):
            message = f"The workflow has places for {len(places)} of {len(given)} files."
            return Failure(ErrorClass.INVALID_INPUT, message, fields={parameter: message})
        for index, (node_id, input_name) in enumerate(places if given else ()):
            # The first file goes into the first place and so on, the last one into all after it.
            file = given[min(index, len(given) - 1)]
            name = _file_name(file)
            files[name] = file
            nodes[node_id]["inputs"][input_name] = name
    body: dict[str, Any] = {"input": {"workflow": nodes}}
    if files:
        body["input"]["images"] = [{"name": name, "image": ""} for name in files]
    if request.webhook_url:
        body["webhook"] = request.webhook_url
    if request.cancel_after_s is not None:
        body["policy"] = _policy(request.cancel_after_s)
    size_bytes = len(json.dumps(body)) + sum(
        4 * -(-file.size_bytes // 3) for file in files.values()
    )
    if size_bytes > REQUEST_MAX_BYTES:
        message = (
            f"The request has {size_bytes / 1e6:.1f} MB with its reference images in base64; "
            f"RunPod takes {REQUEST_MAX_BYTES / 1e6:.0f} MB."
        )
        return Failure(ErrorClass.INVALID_INPUT, message)
    for entry, file in zip(body["input"].get("images", ()), files.values(), strict=True):
        content = _content(file)
        if content is None:
            return Failure(ErrorClass.INTERRUPTED, "A reference image could not be read.")
        entry["image"] = base64.b64encode(content).decode()
    return body


def _file_name(file: InputFile) -> str:
    # A worker keeps what earlier jobs gave it: only the same content may have the same name.
    return file.sha256[:32] + PurePath(file.filename).suffix


def _content(file: InputFile) -> bytearray | None:
    """Return the bytes of a file, `None` when they are not to be had, or not as many as said."""
    content = bytearray()
    try:
        with file.open() as stream:
            # A stream may give less than it has.
            while len(content) <= file.size_bytes and (part := stream.read(_READ_BYTES)):
                content += part
    except OSError:
        return None
    return content if len(content) == file.size_bytes else None


def _policy(cancel_after_s: int) -> dict[str, int]:
    """Return the limits of a job in milliseconds: of its run, and of its whole life."""
    execution_s = min(max(cancel_after_s, EXECUTION_MIN_S), POLICY_MAX_S)
    ttl_s = min(max(cancel_after_s + RESULT_GRACE_S, TTL_MIN_S), POLICY_MAX_S)
    return {"executionTimeout": execution_s * 1000, "ttl": ttl_s * 1000}


# --- What comes back ----------------------------------------------------------------------------


class _Body:
    """The JSON of an answer whose long runs of base64 stay where they arrived.

    `data` is what it says, with a mark in the place of each run, so that 30 MB of images are
    neither parsed nor copied to learn that a job is done.
    """

    def __init__(self, body: bytes) -> None:
        self._runs: list[memoryview] = []
        pieces: list[bytes | memoryview] = []
        view, end = memoryview(body), 0
        for found in _RUN.finditer(body):
            pieces += (view[end : found.start()], f"<{_MARK}:{len(self._runs)}>".encode())
            self._runs.append(view[found.start() : found.end()])
            end = found.end()
        self.data: Any = parse_json(b"".join((*pieces, view[end:])) if pieces else body)

    def bytes_of(self, text: str) -> bytes | memoryview:
        """Return the text of a string in `data` as it arrived, but for white space."""
        if found := _MARKED.fullmatch(text):
            return self._runs[int(found[1])]
        # Every second piece is the number of a mark.
        pieces = enumerate(_MARKED.split(text))
        return b"".join(
            self._runs[int(piece)] if number % 2 else piece.encode().translate(None, _SPACES)
            for number, piece in pieces
        )


@dataclass(frozen=True, slots=True)
class _File:
    """One file of an output: its URL, or its content in base64."""

    data: str
    is_url: bool


def _read(body: object, endpoint: str) -> Prediction | None:
    """Translate a job object of an endpoint; `None` if it is not one."""
    if not isinstance(body, dict) or not _ENDPOINT_ID.fullmatch(endpoint):
        return None
    job_id, word = body.get("id"), body.get("status")
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id) or not isinstance(word, str):
        return None
    prediction_id = f"{endpoint}/{job_id}"
    if len(prediction_id) > ID_MAX_LENGTH:
        return None
    status = _STATUSES.get(word, PredictionStatus.RUNNING)
    run_s, wait_s = _seconds(body.get("executionTime")), _seconds(body.get("delayTime"))
    outputs: tuple[str, ...] = ()
    failure, progress = None, None
    if word == "COMPLETED":
        files = _listed_files(body.get("output"))
        outputs = tuple(f.data if f.is_url else str(i) for i, f in enumerate(files))
        if outputs:
            progress = 100
        else:
            status, failure = PredictionStatus.FAILED, _failure_without_files(body.get("output"))
    elif word == "FAILED":
        failure = _failure_of(body, ErrorClass.UNKNOWN)
    elif word == "CANCELLED":
        failure = Failure(ErrorClass.CANCELED, _MESSAGES[ErrorClass.CANCELED])
    elif word == "TIMED_OUT":
        # It is said of what no worker picked up in time as well.
        error_class = ErrorClass.TIMEOUT_RUN if run_s else ErrorClass.QUEUE_FULL
        failure = Failure(error_class, _MESSAGES[error_class], provider_code=word)
    else:
        progress = _progress(body.get("output"))
    is_over = status in (PredictionStatus.SUCCEEDED, PredictionStatus.FAILED)
    return Prediction(
        id=prediction_id,
        status=status,
        outputs=outputs,
        failure=failure,
        progress=progress,
        run_s=run_s if is_over else None,
        total_s=run_s + wait_s if is_over and run_s is not None and wait_s is not None else None,
        raw=_raw(body),
    )


def _listed_files(output: object) -> list[_File]:
    return list(islice(_files(output), OUTPUTS_LIMIT))


def _files(output: object, depth: int = 0) -> Iterator[_File]:
    """Yield the files in an output of whatever form.

    An object has them in `images`, in workers before version 5 in `message`, each an object with
    `data` or a string: a URL, base64, or a data URI. A list has several, and a text may be JSON.
    """
    if depth > _OUTPUT_DEPTH_LIMIT:
        return
    if isinstance(output, str):
        text = output.strip()
        if text[:1] in ("{", "["):
            yield from _files(parse_json(text.encode()), depth + 1)
        elif _is_url(text):
            yield _File(text, is_url=True)
        elif _is_base64(text):
            yield _File(text, is_url=False)
    elif isinstance(output, list):
        for item in output:
            yield from _files(item, depth + 1)
    elif isinstance(output, dict):
        data = output.get("data")
        if isinstance(data, str) and data:
            is_url = _is_url(data)
            yield _File(data if is_url else data.strip(), is_url=is_url)
            return
        keys = ("images", "message", "image", "image_url")
        key = next((key for key in keys if output.get(key)), None)
        if key is not None and output.get("status") != "error":
            yield from _files(output[key], depth + 1)


def _is_url(text: str) -> bool:
    return len(text) <= _URL_LIMIT and text[:8].lower().startswith(("http://", "https://"))


def _is_base64(text: str) -> bool:
    """Tell base64 from words; with a mark, some of it was long enough to be nothing else."""
    prefix = _DATA_PREFIX.match(text)
    text = text[prefix.end() :].lstrip() if prefix else text
    return bool(_MARKED.search(text) or _BASE64.fullmatch(text))


def _save(body: _Body, index: int, sink: BinaryIO, max_bytes: int) -> Downloaded | Failure:
    job = body.data
    if not isinstance(job, dict) or not isinstance(job.get("status"), str):
        return Failure(ErrorClass.DOWNLOAD_FAILED, "RunPod did not answer with the job.")
    files = _listed_files(job.get("output")) if job["status"] == "COMPLETED" else []
    if index >= len(files) or files[index].is_url:
        return Failure(ErrorClass.BAD_OUTPUT, "The job at RunPod does not have the file any more.")
    text = files[index].data
    prefix = _DATA_PREFIX.match(text)
    content = memoryview(body.bytes_of(text[prefix.end() :] if prefix else text))
    # With padding it can be two bytes less.
    if len(content) * 3 // 4 > max_bytes + 2:
        return _over(max_bytes)
    digest, size_bytes = hashlib.sha256(), 0
    for start in range(0, len(content), _DECODE_BYTES):
        try:
            part = binascii.a2b_base64(content[start : start + _DECODE_BYTES], strict_mode=True)
        except ValueError:
            return Failure(ErrorClass.BAD_OUTPUT, "The picture is not valid base64.")
        size_bytes += len(part)
        if size_bytes > max_bytes:
            return _over(max_bytes)
        digest.update(part)
        sink.write(part)
    content_type = prefix[1] if prefix else None
    return Downloaded(size_bytes, digest.hexdigest(), content_type or "")


def _over(max_bytes: int) -> Failure:
    return Failure(ErrorClass.BAD_OUTPUT, f"The file is larger than {max_bytes:,} bytes.")


def _too_large(error: TransportError) -> Failure:
    # Not a bad output: to make it again would cost as much and end like this.
    message = "The result is too large to be fetched; ask for fewer or smaller images."
    raw = f"{error.message}; a worker that uploads to a bucket has no such limit"
    return Failure(ErrorClass.INVALID_INPUT, message, provider_code="too_large", raw=raw)


def _gone(prediction_id: str) -> Prediction:
    failure = Failure(
        ErrorClass.INTERRUPTED,
        "RunPod does not have this job any more.",
        provider_code="404",
    )
    return Prediction(prediction_id, PredictionStatus.FAILED, failure=failure)


def _failure_without_files(output: object) -> Failure:
    """Say why a completed job has no files: by the worker's words, if it left any."""
    if isinstance(output, str) and output[:1] == "{":
        output = parse_json(output.encode())
    if isinstance(output, dict):
        if output.get("status") == "error":  # workers before version 5
            return _failure_of({"error": output.get("message")}, ErrorClass.UNKNOWN)
        if output.get("error") or output.get("errors"):
            return _failure_of({"error": output.get("error"), "output": output}, None)
    return _of_class(ErrorClass.BAD_OUTPUT, "", json.dumps(_cut(output)))


def _failure_of(body: Mapping[str, Any], otherwise: ErrorClass | None) -> Failure:
    """Classify a job's `error` and the details of its `output`; `None` is `BAD_OUTPUT`."""
    kind, message = _error(body.get("error"))
    output = body.get("output")
    values = [output.get(key) for key in _DETAILS] if isinstance(output, dict) else []
    details = [_without_traceback(text) for value in values for text in _listed(value)]
    text = "\n".join(filter(None, (message, *details)))
    if len(text) > RAW_LIMIT:  # whoever wrote it, searching it must not take long
        text = f"{text[: RAW_LIMIT // 2]}\n…\n{text[-RAW_LIMIT // 4 :]}"
    words = f"{kind} {text}".lower()
    found = next(
        (row for pattern, row in _BY_TEXT if re.search(pattern, words, re.S)),
        otherwise or ErrorClass.BAD_OUTPUT,
    )
    return _of_class(found, text, text, code=kind)


def _of_class(error_class: ErrorClass, detail: str, raw: str, *, code: str = "") -> Failure:
    message = _message(error_class, detail)
    return Failure(error_class, message, provider_code=code[:100], raw=raw[:RAW_LIMIT])


def _error(error: object) -> tuple[str, str]:
    """Return the kind and the message of an `error`: words, or a worker's exception as JSON."""
    if isinstance(error, str) and error.lstrip()[:1] == "{":
        error = parse_json(error.encode()) or error
    kind: object = ""
    if isinstance(error, dict):
        kind = error.get("error_type")
        error = next(
            (error[key] for key in ("error_message", "message", "error") if error.get(key)), ""
        )
    text = error if isinstance(error, str) else ""
    # "<class 'ValueError'>" and "builtins.ValueError" are both ValueError.
    name = re.findall(r"\w+", kind)[-1:] if isinstance(kind, str) else []
    return (name[0] if name else ""), _without_traceback(text)


def _without_traceback(text: str) -> str:
    """Keep what was said before a traceback, and its last line, which says what happened."""
    text = _MARKED.sub("…", text)
    if len(text) > 2 * RAW_LIMIT:
        text = f"{text[:RAW_LIMIT]}\n…\n{text[-RAW_LIMIT:]}"
    found = _TRACEBACK.search(text)
    if not found:
        return text.strip()
    lines = [line.strip() for line in found[0].splitlines() if line.strip()]
    return "\n".join(filter(None, (text[: found.start()].strip(), *lines[1:][-1:])))


def _listed(value: object) -> list[str]:
    """Return the texts in a value that is one or a list of them."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items[:ITEMS_LIMIT] if isinstance(item, str)]


def _message(error_class: ErrorClass, detail: str) -> str:
    detail = re.sub(r"[<>\0]", " ", detail) if error_class in _QUOTED else ""
    return explained(_MESSAGES[error_class], detail)


def _progress(output: object) -> int | None:
    """Return what a running worker reports: {"type": "progress", "percent": 48.0, ...}."""
    percent = output.get("percent") if isinstance(output, dict) else None
    if isinstance(percent, bool) or not isinstance(percent, (int, float)):
        return None
    return int(min(max(percent, 0), 100))


def _seconds(milliseconds: object) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, (int, float)):
        return None
    return milliseconds / 1000 if 0 <= milliseconds <= RUN_MAX_S * 1000 else None


def _counts(health: object, part: str) -> dict[str, int] | None:
    counts = health.get(part) if isinstance(health, dict) else None
    if not isinstance(counts, dict):
        return None
    return {key: value for key, value in counts.items() if type(value) is int}


def _raw(body: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a job object to keep it for administrators.

    Without `input` and `webhook`, which some answers repeat: the images we sent, and a secret.
    """
    keys = ("id", "status", "delayTime", "executionTime", "workerId")
    raw = {key: _cut(body[key]) for key in keys if key in body}
    if body.get("error"):
        kind, message = _error(body["error"])
        raw["error"] = _cut(f"{kind}: {message}" if kind else message)
    if "output" in body:
        output = _cut(body["output"])
        raw["output"] = output if len(json.dumps(output)) <= RAW_LIMIT else "…"
    return raw


def _cut(value: Any, depth: int = 0) -> Any:
    """Copy a JSON value without images, tracebacks, and whatever else is too large to keep."""
    if isinstance(value, str):
        if value.lstrip()[:1] in ("{", "[") or _is_base64(value.strip()):
            return "…"
        return shortened(_without_traceback(value))
    if not isinstance(value, (dict, list)):
        return value
    if depth >= DEPTH_LIMIT:
        return "…"
    if isinstance(value, list):
        return [_cut(item, depth + 1) for item in value[:ITEMS_LIMIT]]
    items = [(key, item) for key, item in value.items() if "traceback" not in key.lower()]
    return {
        _cut(key): (
            "…"
            if key == "data" and isinstance(item, str) and not _is_url(item)
            else _cut(item, depth + 1)
        )
        for key, item in items[:ITEMS_LIMIT]
    }
