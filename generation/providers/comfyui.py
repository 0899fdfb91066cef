"""ComfyUI, one's own server: its HTTP API in, `Prediction` and `Failure` out.

A server knows its prompts while it runs and no longer: what it has neither in its queue nor in its
history was lost with an earlier run of it, or was taken out of the queue by somebody. It has no
credentials and does not report; a listener on its WebSocket learns how far the samplers are, and
nothing depends on that.

Source: ComfyUI v0.3.64, its server and its answers, read 2026-11-20
"""

import json
import math
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic, time
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import websocket

from generation.answers import (
    ITEMS_LIMIT,
    MESSAGE_LIMIT,
    PERHAPS_ACCEPTED,
    class_of_status,
    cut,
    explained,
    text_of,
)
from generation.http import (
    JSON_MAX_BYTES,
    USER_AGENT,
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
    Workflow,
)

SUBMIT_DEADLINE_S = 15.0
UPLOAD_DEADLINE_S = 30.0  # for all files of a submission, before it
SUBMIT_LEAST_S = 1.0  # after the files; with less left the answer would be lost
FETCH_DEADLINE_S = 10.0
# A prompt that this process has just submitted is not given up so soon after: whatever is in
# front of the server may not show it yet.
SETTLE_S = 3.0

ID_MAX_LENGTH = 100  # a UUID has 36 characters
OUTPUT_MAX_LENGTH = 500
QUEUE_MAX_BYTES = 32 * 1024 * 1024  # it repeats the whole workflow of all that waits

LISTEN_TIMEOUT_S = 5.0  # between two messages, then the connection is tried
LISTEN_IDLE_S = 30.0  # without anything to listen for, then the listener ends
RECONNECT_MIN_S = 0.5
RECONNECT_MAX_S = 30.0
FOLLOWED_LIMIT = 5_000
FOLLOWED_S = 3_600.0

INPUT_FOLDER = "picture"
_NUMBER_LIMIT = 1e15

# Those that report their steps; others that do are counted when they first do.
_SAMPLERS = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"})
_MODEL_FILE = re.compile(r"\.(safetensors|sft|ckpt|pt|pt2|pth|bin|gguf|onnx)$", re.IGNORECASE)

# Whatever is in front of the server may answer for it.
_BY_STATUS = {
    400: ErrorClass.INVALID_INPUT,
    401: ErrorClass.AUTH,
    403: ErrorClass.AUTH,
    404: ErrorClass.NOT_FOUND,
    405: ErrorClass.NOT_FOUND,
    408: ErrorClass.PROVIDER_UNAVAILABLE,
    413: ErrorClass.INVALID_INPUT,
    422: ErrorClass.INVALID_INPUT,
    429: ErrorClass.RATE_LIMITED,
    # 5xx: PROVIDER_UNAVAILABLE, see `class_of_status`. A server that fails on a prompt has not
    # put it in line: that is the last thing that it does.
}
# What a node fails with, its exception's type and text in lower case; the first row that fits.
_BY_TEXT = (
    (r"outofmemory|out of memory|allocation on device|exceed allowed memory",
     ErrorClass.OUT_OF_MEMORY),
    (r"nsfw|flagged as sensitive|content policy|moderation", ErrorClass.CONTENT_POLICY),
    (r"unidentifiedimageerror|cannot identify image file|decompressionbomb",
     ErrorClass.INVALID_INPUT),
    (r"filenotfounderror|no such file", ErrorClass.NOT_FOUND),
    (r"shapes cannot be multiplied|size mismatch|must match the size|outside the output folder",
     ErrorClass.INVALID_INPUT),
    (r"timed out|timeout", ErrorClass.TIMEOUT_RUN),
)  # fmt: skip
_MESSAGES = {
    ErrorClass.RATE_LIMITED: "ComfyUI asks to slow down.",
    ErrorClass.PROVIDER_UNAVAILABLE: "ComfyUI is unavailable at the moment.",
    ErrorClass.TIMEOUT_UNKNOWN: "ComfyUI did not answer; the request may have been accepted.",
    ErrorClass.TIMEOUT_RUN: "The workflow did not finish in time.",
    ErrorClass.INTERRUPTED: "ComfyUI lost the work before it was done.",
    ErrorClass.OUT_OF_MEMORY: "The model ran out of memory; a smaller size may work.",
    ErrorClass.CONTENT_POLICY: "The safety check of the model refused this prompt or its picture.",
    ErrorClass.INVALID_INPUT: "ComfyUI refused the input.",
    ErrorClass.NOT_FOUND: "ComfyUI does not have what the workflow needs.",
    ErrorClass.AUTH: "Something in front of ComfyUI refused us.",
    ErrorClass.CANCELED: "The work was cancelled.",
    ErrorClass.UNKNOWN: "The workflow failed.",
}
# For these the server's own words help whoever reads them.
_QUOTED = frozenset({ErrorClass.INVALID_INPUT, ErrorClass.NOT_FOUND, ErrorClass.UNKNOWN})
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/]+[\\/])+")

# Of a combo's type, the terms of the catalogue.
_TYPES = {"INT": "integer", "FLOAT": "number", "STRING": "string", "BOOLEAN": "boolean"}


class ComfyUIProvider:
    """The ComfyUI adapter. A prompt's id is the token of its attempt.

    `base_url` is the server's, to which "/prompt" is added. `workflow_of` gives the workflow of a
    model, for `live_schema`. Unless it `listens`, running prompts have no `progress`. `settle_s`
    is `SETTLE_S` unless given. Raises ValueError when `base_url` is no http(s) URL or has
    credentials in it.
    """

    name = "comfyui"
    sends_webhooks = False
    signs_webhooks = False

    def __init__(
        self,
        base_url: str,
        *,
        http: HttpClient,
        workflow_of: Callable[[str], Workflow | None] | None = None,
        listens: bool = True,
        settle_s: float = SETTLE_S,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError("ComfyUI's address is not an http(s) URL without credentials.")
        self._base_url = base_url.rstrip("/")
        self._http = http
        self._workflow_of = workflow_of
        self._listens = listens
        self._settle_s = settle_s
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        # With its port: a redirect must not lead to another server of that machine.
        self._hosts = OutputHosts(extra=(f"{parts.netloc.removesuffix(f':{parts.port}')}:{port}",))
        self._own = self._begin_session()

    def __repr__(self) -> str:
        return f"ComfyUIProvider({self._base_url!r})"

    def close(self) -> None:
        """Stop listening. The provider can be used again."""
        self._session().close()

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        """Upload the files, then put the workflow in line, once.

        `TIMEOUT_UNKNOWN` means that it may be in line, and then under the request's token. Every
        other failure means that it is not; files may have been uploaded. They stay at the server,
        one copy each, because nothing there removes them. `cancel_after_s` is not heeded: the
        server knows no deadlines.
        """
        ends_at = monotonic() + (math.inf if request.timeout_s is None else request.timeout_s)
        if request.workflow is None:
            return Failure(ErrorClass.INVALID_INPUT, "The model has no workflow.")
        misfits = sorted(set(request.input) - set(request.workflow.bindings))
        if misfits:
            text = "The workflow has no place for a parameter."
            return Failure(ErrorClass.INVALID_INPUT, text, fields=dict.fromkeys(misfits, text))
        places = self._upload(request, request.workflow, ends_at)
        if isinstance(places, Failure):
            return places
        token = request.token or str(uuid4())
        try:
            workflow = request.workflow.filled(request.input)
            for (node_id, input_name), name in places.items():
                workflow[node_id]["inputs"][input_name] = name
        except KeyError:
            text = "A parameter is bound to a place that the workflow does not have."
            return Failure(ErrorClass.INVALID_INPUT, text)
        _make_unique(workflow, token)
        return self._put_in_line(request, workflow, token, ends_at)

    def fetch(self, prediction_id: str) -> Prediction | Failure:
        """Look at a prompt, once.

        One that the server knows nothing of was `INTERRUPTED`: the server was started anew, or
        somebody removed it. Right after its submission by this process it is `STARTING` instead,
        for `settle_s`; when this process has cancelled it, it is `CANCELED`.
        """
        found = self._look(prediction_id)
        if found is not None:
            return found
        session = self._session()
        if session.is_canceled(prediction_id):
            return _ended(prediction_id, ErrorClass.CANCELED)
        if session.age_s(prediction_id) < self._settle_s:
            return Prediction(prediction_id, PredictionStatus.STARTING)
        session.forget(prediction_id)
        return _ended(prediction_id, ErrorClass.INTERRUPTED)

    def cancel(self, prediction_id: str) -> Prediction | Failure:
        """Take a prompt out of the queue, or interrupt it if it is the one that runs.

        A sampler stops at its next step, other nodes at their end, so that the answer may still
        be `RUNNING`. What the server knows nothing of is `CANCELED`: it will not run.
        """
        answer = self._answer("POST", "/queue", json={"delete": [prediction_id]})
        if isinstance(answer, Failure):
            return answer
        session = self._session()
        found = self._look(prediction_id)
        if isinstance(found, Prediction) and found.status == PredictionStatus.RUNNING:
            # Not before it is known to run: a server older than this call's id interrupts
            # whatever runs.
            answer = self._answer("POST", "/interrupt", json={"prompt_id": prediction_id})
            if isinstance(answer, Failure):
                return answer
            found = self._look(prediction_id)
        if found is None:
            session.cancel(prediction_id)
            return _ended(prediction_id, ErrorClass.CANCELED)
        return found

    def find(
        self, request: SubmitRequest, *, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        """Look for the prompt of the request's token, whenever it was submitted.

        Empty also when the server has been started anew since: then nothing comes of it either.
        """
        if not request.token:
            return Failure(ErrorClass.UNKNOWN, "A submission without a token cannot be found.")
        found = self._look(request.token)
        if isinstance(found, Failure):
            return found
        return () if found is None else (found,)

    def download(
        self,
        output: str,
        sink: BinaryIO,
        *,
        prediction_id: str,
        max_bytes: int,
        deadline_s: float | None = None,
    ) -> Downloaded | Failure:
        """Write one output, named as `subfolder/filename`, into `sink`."""
        subfolder, _, filename = output.rpartition("/")
        query = {"filename": filename, "subfolder": subfolder, "type": "output"}
        return self._http.download(
            f"{self._base_url}/view?{urlencode(query, errors='replace')}",
            sink,
            hosts=self._hosts,
            max_bytes=max_bytes,
            deadline_s=deadline_s,
        )

    def read(self, body: object) -> Prediction | None:
        """Return `None`: the server does not report."""
        return None

    def verify_webhook(
        self, headers: Mapping[str, str], body: bytes, *, now_s: float
    ) -> WebhookDelivery | WebhookRefusal | Failure:
        """Refuse: the server does not report, so nothing that comes is from it."""
        return WebhookRefusal.NOT_A_PREDICTION

    def check(self) -> Failure | None:
        """Ask for the server's version and memory."""
        answer = self._answer("GET", "/system_stats")
        if isinstance(answer, Failure):
            return answer
        body = answer.json()
        if isinstance(body, dict) and isinstance(body.get("system"), dict):
            return None
        return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))

    def live_schema(
        self, model: str, *, version: str | None = None
    ) -> Mapping[str, Mapping[str, Any]] | Failure | None:
        """Return what the installed nodes say of the inputs that the parameters are bound to.

        `None` without `workflow_of`, `NOT_FOUND` when that knows no workflow of the model or the
        server lacks one of its nodes. `required` and `default` are not stated: the workflow has a
        value in every place.
        """
        if self._workflow_of is None:
            return None
        workflow = self._workflow_of(model)
        if workflow is None:
            return Failure(ErrorClass.NOT_FOUND, "The model has no workflow.")
        infos: dict[str, Any] = {}
        schema: dict[str, Mapping[str, Any]] = {}
        for name, places in workflow.bindings.items():
            for node_id, input_name in places[:1]:
                class_type = str(workflow.nodes.get(node_id, {}).get("class_type"))
                if class_type not in infos:
                    answer = self._answer("GET", f"/object_info/{quote(class_type, safe='')}")
                    if isinstance(answer, Failure):
                        return answer
                    body = answer.json()
                    infos[class_type] = body.get(class_type) if isinstance(body, dict) else None
                if not isinstance(infos[class_type], dict):
                    text = f"ComfyUI has no node {class_type}."
                    return Failure(ErrorClass.NOT_FOUND, text)
                schema[name] = _input_schema(infos[class_type], input_name)
        return schema

    def _upload(
        self, request: SubmitRequest, workflow: Workflow, ends_at: float
    ) -> dict[tuple[str, str], str] | Failure:
        """Hand the files over; return what goes into the places bound to them.

        The first file goes into a parameter's first place and so on; the last one also into all
        places after it.
        """
        ends_at = min(ends_at, monotonic() + UPLOAD_DEADLINE_S)
        names: dict[tuple[str, str], str] = {}
        for parameter, files in request.files.items():
            places = workflow.bindings.get(parameter, ())
            if len(files) > len(places):
                text = f"The workflow has places for {len(places)} of {len(files)} files."
                return Failure(ErrorClass.INVALID_INPUT, text, fields={parameter: text})
            uploaded = []
            for file in files:
                name = self._upload_file(file, ends_at)
                if isinstance(name, Failure):
                    return name
                uploaded.append(name)
            if uploaded:
                for index, place in enumerate(places):
                    names[place] = uploaded[min(index, len(uploaded) - 1)]
        return names

    def _upload_file(self, file: InputFile, ends_at: float) -> str | Failure:
        left_s = ends_at - monotonic()
        if left_s <= 0:
            return Failure(ErrorClass.INTERRUPTED, TOO_SLOW)
        try:
            # Named by its content and never overwritten: a prompt may be reading it. The server
            # keeps one of two equal files, and gives another one a name of its own.
            answer = self._http.upload(
                f"{self._base_url}/upload/image",
                file,
                field="image",
                filename=f"{file.sha256[:32]}{os.path.splitext(file.filename)[1]}",
                fields={"type": "input", "subfolder": INPUT_FOLDER},
                deadline_s=left_s,
            )
        except OSError:
            text = "A reference image could not be read."
            return Failure(ErrorClass.INTERRUPTED, text)
        if isinstance(answer, TransportError):
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        if not 200 <= answer.status < 300:
            return _refused(answer)
        body = answer.json()
        name = body.get("name") if isinstance(body, dict) else None
        if not isinstance(name, str) or not name:
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
        subfolder = body.get("subfolder")
        return f"{subfolder}/{name}" if isinstance(subfolder, str) and subfolder else name

    def _put_in_line(
        self, request: SubmitRequest, workflow: dict[str, Any], token: str, ends_at: float
    ) -> Prediction | Failure:
        deadline_s = min(SUBMIT_DEADLINE_S, ends_at - monotonic())
        if request.files and deadline_s < SUBMIT_LEAST_S:
            return Failure(ErrorClass.INTERRUPTED, TOO_SLOW)
        session = self._session()
        samplers = sum(node.get("class_type") in _SAMPLERS for node in workflow.values())
        session.follow(token, samplers, listens=self._listens)
        body = {
            "prompt": workflow,
            "prompt_id": token,
            "client_id": session.client_id,
            # Kept with the prompt; `submitted_at` is our own clock's, milliseconds.
            "extra_data": {
                "token": token,
                "model": request.model,
                "submitted_at": round(time() * 1000),
            },
        }
        answer = self._http.json(
            "POST", f"{self._base_url}/prompt", json=body, deadline_s=deadline_s
        )
        result = _accepted(answer, request)
        if isinstance(result, Failure) and result.error_class != ErrorClass.TIMEOUT_UNKNOWN:
            session.forget(token)
        return result

    def _look(self, prompt_id: str) -> Prediction | Failure | None:
        """Look for a prompt in history, queue, and history again; `None`: it is in neither.

        What ends between the first two looks is in the history by the third; what runs never
        goes back into the queue.
        """
        ends_at = monotonic() + FETCH_DEADLINE_S
        found = self._look_in_history(prompt_id, ends_at)
        if found is None:
            found = self._look_in_queue(prompt_id, ends_at)
        if found is None:
            found = self._look_in_history(prompt_id, ends_at)
        if isinstance(found, Prediction) and found.is_terminal:
            self._session().forget(prompt_id)
        return found

    def _look_in_history(self, prompt_id: str, ends_at: float) -> Prediction | Failure | None:
        path = f"/history/{quote(prompt_id, safe='', errors='replace')}"
        answer = self._answer("GET", path, deadline_s=ends_at - monotonic())
        if isinstance(answer, Failure):
            return answer
        body = answer.json()
        if body == {}:
            return None
        entry = body.get(prompt_id) if isinstance(body, dict) else None
        if not isinstance(entry, dict):
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
        return read_entry(prompt_id, entry)

    def _look_in_queue(self, prompt_id: str, ends_at: float) -> Prediction | Failure | None:
        deadline_s = ends_at - monotonic()
        answer = self._answer("GET", "/queue", deadline_s=deadline_s, max_bytes=QUEUE_MAX_BYTES)
        if isinstance(answer, Failure):
            return answer
        body = answer.json()
        running = body.get("queue_running") if isinstance(body, dict) else None
        pending = body.get("queue_pending") if isinstance(body, dict) else None
        if not isinstance(running, list) or not isinstance(pending, list):
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
        if any(_is_item(item, prompt_id) for item in running):
            percent = self._session().percent(prompt_id)
            return Prediction(prompt_id, PredictionStatus.RUNNING, progress=percent)
        own = next((item for item in pending if _is_item(item, prompt_id)), None)
        if own is None:
            return None
        before = len(running) + sum(_number(item) < _number(own) for item in pending)
        return Prediction(prompt_id, PredictionStatus.STARTING, raw={"before_it": before})

    def _answer(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        deadline_s: float = FETCH_DEADLINE_S,
        max_bytes: int = JSON_MAX_BYTES,
    ) -> Response | Failure:
        """Make a call that may be repeated at will; only a 2xx is an answer."""
        if deadline_s <= 0:
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw="the deadline passed")
        answer = self._http.json(
            method, self._base_url + path, json=json, deadline_s=deadline_s, max_bytes=max_bytes
        )
        if isinstance(answer, TransportError):
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        if not 200 <= answer.status < 300:
            return _refused(answer)
        return answer

    def _session(self) -> "_Session":
        # After a fork, the child has neither the parent's thread nor its connection.
        if self._own.pid != os.getpid():
            self._own = self._begin_session()
        return self._own

    def _begin_session(self) -> "_Session":
        session = _Session(self._base_url)
        # The thread must not outlive whoever it listens for.
        weakref.finalize(self, session.stop)
        return session


@dataclass(slots=True)
class _Followed:
    """A prompt that this process has submitted or cancelled."""

    since: float
    samplers: int = 0
    is_open: bool = True
    is_canceled: bool = False
    percent: int | None = None
    nodes: dict[str, float] = field(default_factory=dict)


class _Session:
    """What one process knows of its own prompts, and the thread that listens how far they are.

    The server tells only the client that a prompt names. The thread starts with the first prompt,
    connects again after a growing pause, and ends when there has been nothing to listen for.
    """

    def __init__(self, base_url: str) -> None:
        self.pid = os.getpid()
        self.client_id = f"picture-{uuid4().hex}"
        self._url = f"ws{base_url.removeprefix('http')}/ws?clientId={self.client_id}"
        self._prompts: OrderedDict[str, _Followed] = OrderedDict()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._socket: websocket.WebSocket | None = None
        self._busy_at = 0.0  # monotonic, when there last was something to listen for

    def follow(self, prompt_id: str, samplers: int, *, listens: bool) -> None:
        """Remember a prompt with so many samplers, and listen for it. Never blocks, never fails."""
        with self._lock:
            self._remember(prompt_id).samplers = samplers
            self._busy_at = monotonic()
            if listens and self._thread is None:
                self._stop = threading.Event()
                thread = threading.Thread(
                    target=self._run, args=(self._stop,), name="comfyui-progress", daemon=True
                )
                with suppress(RuntimeError):  # no more threads to be had
                    thread.start()
                    self._thread = thread

    def forget(self, prompt_id: str) -> None:
        """Listen no longer for a prompt, if it was listened for."""
        with self._lock:
            prompt = self._prompts.get(prompt_id)
            if prompt is not None and not prompt.is_canceled:
                del self._prompts[prompt_id]

    def cancel(self, prompt_id: str) -> None:
        """Remember that a prompt was cancelled."""
        with self._lock:
            prompt = self._remember(prompt_id)
            prompt.is_canceled, prompt.is_open = True, False

    def is_canceled(self, prompt_id: str) -> bool:
        with self._lock:
            prompt = self._prompts.get(prompt_id)
            return prompt is not None and prompt.is_canceled

    def age_s(self, prompt_id: str) -> float:
        """Return how long ago a prompt was submitted, infinity when it was not, or has ended."""
        with self._lock:
            prompt = self._prompts.get(prompt_id)
            return monotonic() - prompt.since if prompt else math.inf

    def percent(self, prompt_id: str) -> int | None:
        """Return how far a prompt is, 0 to 99, `None` when nothing was heard of it."""
        with self._lock:
            prompt = self._prompts.get(prompt_id)
            return prompt.percent if prompt else None

    def stop(self) -> threading.Thread | None:
        """Have the thread end soon; return it, if there was one. The next prompt starts another."""
        if self.pid != os.getpid():
            return None  # the parent's, and so is its lock
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.abort()  # type: ignore[no-untyped-call]
        return thread

    def close(self) -> None:
        """End the thread."""
        thread = self.stop()
        if thread is not None:
            thread.join(LISTEN_TIMEOUT_S)

    def hear(self, message: object) -> None:
        """Take in one message of the server, whatever it is."""
        data = message.get("data") if isinstance(message, dict) else None
        if not isinstance(message, dict) or not isinstance(data, dict):
            return
        with self._lock:
            prompt = self._prompts.get(str(data.get("prompt_id")))
            if prompt is None:
                return
            if message.get("type") == "execution_start":
                prompt.percent = prompt.percent or 0
            elif message.get("type") == "progress":
                value, most = _seconds(data.get("value")), _seconds(data.get("max"))
                if value is None or not most or len(prompt.nodes) > ITEMS_LIMIT:
                    return
                prompt.nodes[str(data.get("node"))] = min(value / most, 1.0)
                done = sum(prompt.nodes.values()) / max(prompt.samplers, len(prompt.nodes))
                # A node that begins late must not take back what was told.
                prompt.percent = max(prompt.percent or 0, min(int(100 * done), 99))

    def _remember(self, prompt_id: str) -> _Followed:
        prompt = self._prompts.setdefault(prompt_id, _Followed(monotonic()))
        while len(self._prompts) > FOLLOWED_LIMIT:
            self._prompts.popitem(last=False)
        return prompt

    def _run(self, stop: threading.Event) -> None:
        pause_s = RECONNECT_MIN_S
        while not self._is_over(stop):
            if self._listen(stop):
                pause_s = RECONNECT_MIN_S
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    def _is_over(self, stop: threading.Event) -> bool:
        """Tell whether the thread is to end; the next prompt starts another one then."""
        now = monotonic()
        with self._lock:
            if stop.is_set():
                return True
            if any(p.is_open and now - p.since < FOLLOWED_S for p in self._prompts.values()):
                self._busy_at = now
            if now - self._busy_at < LISTEN_IDLE_S:
                return False
            self._thread = None
            return True

    def _listen(self, stop: threading.Event) -> bool:
        """Listen while a connection lasts and the thread is wanted; tell whether there was one."""
        try:
            sock = websocket.create_connection(
                self._url,
                timeout=LISTEN_TIMEOUT_S,
                header={"User-Agent": USER_AGENT},
                suppress_origin=True,
                # No proxy, whatever the environment names: the exception is heeded only next to
                # the name of one.
                http_proxy_host="none.invalid",
                http_no_proxy=["*"],
            )
        except (websocket.WebSocketException, OSError, ValueError):
            return False
        with self._lock:
            self._socket = sock
        try:
            self._hear_all(sock, stop)
        except (websocket.WebSocketException, OSError):
            pass  # the next connection is as good
        finally:
            with self._lock:
                self._socket = None
            sock.shutdown()  # type: ignore[no-untyped-call]
        return True

    def _hear_all(self, sock: websocket.WebSocket, stop: threading.Event) -> None:
        is_asked, looked_at = False, monotonic()
        # A socket that was set after `close` looked for it is not shut down by anybody else.
        while not stop.is_set():
            try:
                kind, data = sock.recv_data(control_frame=True)
                is_asked = False
            except websocket.WebSocketTimeoutException:
                if is_asked:
                    return
                is_asked, kind, data = True, websocket.ABNF.OPCODE_PING, b""
                sock.ping()
            if kind == websocket.ABNF.OPCODE_CLOSE:
                return
            if kind == websocket.ABNF.OPCODE_TEXT:
                self.hear(parse_json(data))
            if monotonic() - looked_at > LISTEN_TIMEOUT_S:
                looked_at = monotonic()
                if self._is_over(stop):
                    return


def read_entry(prompt_id: str, entry: Mapping[str, Any]) -> Prediction:
    """Translate an entry of the history, which is there once a prompt has ended.

    `total_s` is from when the server took it in, where it says when, else from our own note of
    when it was sent, which is by our clock; it is never less than `run_s`.
    """
    status = entry.get("status")
    status = status if isinstance(status, dict) else {}
    messages = dict(_messages(status))
    ends = ("execution_success", "execution_error", "execution_interrupted")
    ended = next((messages[name] for name in ends if name in messages), {})
    begun_s = _timestamp_s(messages.get("execution_start", {}).get("timestamp"))
    ended_s = _timestamp_s(ended.get("timestamp"))
    item = entry.get("prompt")
    extra = item[3] if isinstance(item, list) and len(item) > 3 else None
    extra = extra if isinstance(extra, dict) else {}
    sent_s = _timestamp_s(extra.get("create_time")) or _timestamp_s(extra.get("submitted_at"))
    run_s = _difference(begun_s, ended_s)
    total_s = _difference(sent_s, ended_s)
    if run_s is not None:
        total_s = max(run_s, total_s or 0.0)

    failure: Failure | None = None
    outputs: tuple[str, ...] = ()
    if "execution_interrupted" in messages:
        failure = Failure(ErrorClass.CANCELED, _MESSAGES[ErrorClass.CANCELED])
    elif status.get("status_str") == "error" or "execution_error" in messages:
        failure = _failure_of_node(messages.get("execution_error", {}))
    else:
        found = _outputs(entry)
        outputs, failure = (found, None) if isinstance(found, tuple) else ((), found)
    return Prediction(
        id=prompt_id,
        status=PredictionStatus.FAILED if failure else PredictionStatus.SUCCEEDED,
        outputs=outputs,
        failure=failure,
        progress=None if failure else 100,
        run_s=run_s,
        total_s=total_s,
        raw=_raw(status, entry),
    )


def _outputs(entry: Mapping[str, Any]) -> tuple[str, ...] | Failure:
    """Return the saved images as `subfolder/filename`, by the order of nodes in the workflow."""
    by_node = entry.get("outputs")
    if not isinstance(by_node, dict):
        by_node = {}
    item = entry.get("prompt")
    workflow = item[2] if isinstance(item, list) and len(item) > 2 else None
    order = [*workflow, *by_node] if isinstance(workflow, dict) else list(by_node)
    names: list[str] = []
    for node_id in dict.fromkeys(order):
        output = by_node.get(node_id)
        images = output.get("images") if isinstance(output, dict) else None
        for image in images if isinstance(images, list) else ():
            # The others are previews, which the server removes, or its input.
            if not isinstance(image, dict) or image.get("type") != "output":
                continue
            filename, subfolder = image.get("filename"), image.get("subfolder") or ""
            if not isinstance(filename, str) or not isinstance(subfolder, str) or not filename:
                return _bad_output("The workflow's output is not a list of files.", by_node)
            name = f"{subfolder}/{filename}" if subfolder else filename
            if "/" in filename or len(name) > OUTPUT_MAX_LENGTH:
                return _bad_output("The workflow's output has a name that no file has.", by_node)
            names.append(name)
    if len(names) > OUTPUTS_LIMIT:
        message = f"The workflow made {len(names):,} files; at most {OUTPUTS_LIMIT} are taken."
        return Failure(ErrorClass.BAD_OUTPUT, message)
    return tuple(names) or _bad_output("The workflow finished without a picture.", by_node)


def _bad_output(message: str, outputs: object) -> Failure:
    raw = json.dumps(cut(outputs))[:RAW_LIMIT]
    return Failure(ErrorClass.BAD_OUTPUT, message, raw=raw)


def _failure_of_node(error: Mapping[str, Any]) -> Failure:
    """Classify what a node failed with, by its exception's type and text."""
    kind, text = error.get("exception_type"), error.get("exception_message")
    kind = kind if isinstance(kind, str) else ""
    text = text if isinstance(text, str) else ""
    words = f"{kind}: {text}".lower()
    error_class = next(
        (found for pattern, found in _BY_TEXT if re.search(pattern, words)), ErrorClass.UNKNOWN
    )
    node = f"{error.get('node_type')} ({error.get('node_id')})"
    return Failure(
        error_class,
        _message(error_class, next(iter(text.strip().splitlines()), kind)),
        provider_code=kind.rpartition(".")[2][:100],
        raw=f"{node}: {kind}: {text}"[:RAW_LIMIT],
    )


def _accepted(answer: Response | TransportError, request: SubmitRequest) -> Prediction | Failure:
    """Read the answer to a workflow that was sent."""
    if isinstance(answer, TransportError):
        # An error status tells enough without its body.
        if answer.kind == "read" and (answer.status or 0) >= 400:
            error_class = _class_of_submission(answer.status or 0)
            return _failure(error_class, code=str(answer.status))
        if answer.kind == "connect":
            return _failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        return _failure(ErrorClass.TIMEOUT_UNKNOWN, raw=answer.message)
    if answer.status in PERHAPS_ACCEPTED:
        return _failure(
            ErrorClass.TIMEOUT_UNKNOWN, code=str(answer.status), raw=text_of(answer.body)
        )
    body = answer.json()
    if not 200 <= answer.status < 300:
        invalid = _failure_of_workflow(answer, body, request)
        return _refused(answer) if invalid is None else invalid
    prompt_id = body.get("prompt_id") if isinstance(body, dict) else None
    if not isinstance(prompt_id, str) or not 0 < len(prompt_id) <= ID_MAX_LENGTH:
        # In line, but under an id that we cannot read.
        return _failure(ErrorClass.TIMEOUT_UNKNOWN, raw=text_of(answer.body))
    # Outputs that the server skips, when others are good.
    skipped = cut(body.get("node_errors") or {})
    raw = {"number": cut(body.get("number")), "node_errors": skipped}
    return Prediction(prompt_id, PredictionStatus.STARTING, raw=raw)


def _failure_of_workflow(answer: Response, body: object, request: SubmitRequest) -> Failure | None:
    """Read why a workflow was refused, `None` when the answer does not say it as ComfyUI does."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(error, dict) or answer.status != 400:
        return None
    error_class = ErrorClass.INVALID_INPUT
    code, message = str(error.get("type") or "400")[:100], str(error.get("message") or "")
    # An unknown class of node: a custom node that is not installed.
    if code == "missing_node_type" or (code == "invalid_prompt" and "does not exist" in message):
        error_class = ErrorClass.NOT_FOUND
    parameters = {
        place: name
        for name, places in (request.workflow.bindings if request.workflow else {}).items()
        for place in places
    }
    fields: dict[str, str] = {}
    for node_id, class_type, problem in _node_problems(body.get("node_errors")):
        extra = problem.get("extra_info")
        extra = extra if isinstance(extra, dict) else {}
        input_name = str(extra.get("input_name") or "")
        text = _problem_text(problem, input_name)
        name = parameters.get((node_id, input_name), f"{class_type}.{input_name}".rstrip("."))
        fields.setdefault(name, text)
        kind, received = str(problem.get("type"))[:100], str(extra.get("received_value") or "")
        if kind == "value_not_in_list" and _MODEL_FILE.search(received):
            error_class, code = ErrorClass.NOT_FOUND, kind
        elif error_class != ErrorClass.NOT_FOUND:
            code = kind
    if fields:
        message = "; ".join(f"{name}: {text}" for name, text in fields.items())
    return Failure(
        error_class,
        _message(error_class, message),
        provider_code=code,
        raw=text_of(answer.body),
        fields=fields,
    )


def _node_problems(node_errors: object) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield node, class and problem of everything that is wrong with a workflow."""
    for node_id, entry in node_errors.items() if isinstance(node_errors, dict) else ():
        problems = entry.get("errors") if isinstance(entry, dict) else None
        for problem in problems if isinstance(problems, list) else ():
            if isinstance(problem, dict):
                yield str(node_id), str(entry.get("class_type")), problem


def _problem_text(problem: Mapping[str, Any], input_name: str) -> str:
    """Say in one line what is wrong: the details where they say more than the input's name."""
    details = str(problem.get("details") or "")
    text = str(problem.get("message") or problem.get("type") or "invalid")
    more = details.removeprefix(input_name).lstrip(" -:,")
    return _line(f"{text}: {more}" if more else text)


def _make_unique(workflow: Mapping[str, Any], token: str) -> None:
    """Give what is saved a name that no other attempt has.

    A workflow like the previous one is not run again: it would name the files of that one.
    """
    for node in workflow.values():
        inputs = node.get("inputs")
        prefix = inputs.get("filename_prefix") if isinstance(inputs, dict) else None
        if isinstance(prefix, str):
            inputs["filename_prefix"] = f"{prefix}-{token}"


def _is_item(item: object, prompt_id: str) -> bool:
    return isinstance(item, list) and len(item) > 1 and item[1] == prompt_id


def _number(item: object) -> float:
    """Return the place of an entry of the queue, infinity when it has none."""
    value = item[0] if isinstance(item, list) and item else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.inf
    return float(value) if -_NUMBER_LIMIT < value < _NUMBER_LIMIT else math.inf


def _messages(status: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    messages = status.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, list) and len(message) == 2 and isinstance(message[1], dict):
            yield str(message[0]), message[1]


def _raw(status: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Copy what to keep of an entry for administrators: no workflow, no traceback."""
    hidden = ("traceback", "current_inputs", "current_outputs")
    messages = [
        [name, {key: value for key, value in data.items() if key not in hidden}]
        for name, data in _messages(status)
    ]
    kept = {"status_str": status.get("status_str"), "messages": messages}
    return {"status": cut(kept), "outputs": cut(entry.get("outputs"))}


def _input_schema(info: Mapping[str, Any], input_name: str) -> dict[str, Any]:
    """Translate what `/object_info` says of one input of a node."""
    sections = info.get("input")
    for section in ("required", "optional"):
        inputs = sections.get(section) if isinstance(sections, dict) else None
        spec = inputs.get(input_name) if isinstance(inputs, dict) else None
        if not isinstance(spec, list) or not spec:
            continue
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        options = options if isinstance(options, dict) else {}
        if options.get("image_upload"):
            return {"type": "file"}
        choices = options.get("options") if kind == "COMBO" else kind
        if isinstance(choices, list):
            return {"type": "enum", "choices": choices}
        schema = {"type": _TYPES[kind]} if kind in _TYPES else {}
        return schema | {name: options[name] for name in ("min", "max") if name in options}
    return {}


def _class_of_status(status: int) -> ErrorClass:
    return class_of_status(status, _BY_STATUS)


def _class_of_submission(status: int) -> ErrorClass:
    is_open = status in PERHAPS_ACCEPTED
    return ErrorClass.TIMEOUT_UNKNOWN if is_open else _class_of_status(status)


def _refused(answer: Response) -> Failure:
    return Failure(
        _class_of_status(answer.status),
        _MESSAGES[_class_of_status(answer.status)],
        provider_code=str(answer.status),
        retry_after_s=parse_retry_after(answer.headers.get("retry-after")),
        raw=text_of(answer.body),
    )


def _failure(error_class: ErrorClass, *, code: str = "", raw: str = "") -> Failure:
    return Failure(error_class, _MESSAGES[error_class], provider_code=code, raw=raw[:RAW_LIMIT])


def _ended(prompt_id: str, error_class: ErrorClass) -> Prediction:
    failure = Failure(error_class, _MESSAGES[error_class])
    return Prediction(prompt_id, PredictionStatus.FAILED, failure=failure)


def _message(error_class: ErrorClass, detail: str) -> str:
    return explained(_MESSAGES[error_class], _line(detail) if error_class in _QUOTED else "")


def _line(text: str) -> str:
    """Make a text of the server fit to be shown: one line, no markup, no folders of its disk."""
    return _FOLDERS.sub("", " ".join(re.sub(r"[<>\0]", "", text).split()))[:MESSAGE_LIMIT]


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # A whole number of JSON may be larger than any float.
    return float(value) if 0 <= value < _NUMBER_LIMIT else None


def _timestamp_s(value: object) -> float | None:
    milliseconds = _seconds(value)
    return None if milliseconds is None else milliseconds / 1000


def _difference(begun_s: float | None, ended_s: float | None) -> float | None:
    if begun_s is None or ended_s is None or not 0 <= ended_s - begun_s <= RUN_MAX_S:
        return None
    return ended_s - begun_s
