"""The routes under /v2/{endpoint}: the RunPod serverless API, and worker-comfyui behind it.

Any endpoint id is known unless the settings name those that are. Limits of rate are those of an
endpoint without workers to spare. Under /_sim/runpod are the settings, the webhooks sent, and what
a job was given.

Source: RunPod serverless documentation, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from simulator import hostile
from simulator import runpod_worker as worker
from simulator.api import owner_of
from simulator.faults import Rule
from simulator.ledger import CreateRequest
from simulator.outputs import cut_connection
from simulator.runpod_jobs import Job, Jobs, Order, RunPodSettings
from simulator.settings import SettingsError
from simulator.state import STATE, State
from simulator.wire import html_page, json_response

KEY_PREFIX = "rpa_"
WINDOW_S = 10.0
WEBHOOK_TRIES = 3
KEPT_DELIVERIES = 5_000
CHUNK_CHARS = 1_000_000
# Limits of `policy` and of `wait`, milliseconds.
EXECUTION_MS = (5_000, 7 * 86_400_000)
TTL_MS = (10_000, 7 * 86_400_000)
WAIT_MS = (1_000, 300_000)
DEFAULT_WAIT_MS = 90_000

T = TypeVar("T")
Handler = Callable[["RunPod", web.Request, str], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = _error(status, text)


class RunPod:
    """RunPod's part of a simulator."""

    def __init__(self, state: State) -> None:
        self.state = state
        # Two threads, as for the other images: see `simulator.outputs`.
        self._drawing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="draw-runpod")
        self._session: aiohttp.ClientSession | None = None

    def build(self) -> None:
        """Make everything anew."""
        self.settings = RunPodSettings()
        self.jobs = Jobs(self.state.settings, self.settings, self.state.ledger, self._tell)
        self.deliveries: deque[dict[str, Any]] = deque(maxlen=KEPT_DELIVERIES)
        self._calls: dict[tuple[str, str], deque[float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop all timers and deliveries."""
        self.jobs.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def accepts_key(self, key: str) -> bool:
        """Tell whether an API key is valid."""
        tokens = self.state.tokens
        return key in tokens if tokens else key.startswith(KEY_PREFIX)

    def knows(self, endpoint: str) -> bool:
        """Tell whether there is such an endpoint."""
        names = self.settings.endpoints
        return not names or endpoint in names.split(",")

    def throttle(self, endpoint: str, operation: str) -> float:
        """Count a call; return 0, or the seconds to wait when there were too many."""
        limit = getattr(self.settings, f"{operation}_per_10s")
        calls = self._calls.setdefault((endpoint, operation), deque())
        now_mono = time.monotonic()
        while calls and now_mono - calls[0] >= WINDOW_S:
            calls.popleft()
        if len(calls) >= limit:
            return WINDOW_S - (now_mono - calls[0]) if calls else WINDOW_S
        calls.append(now_mono)
        return 0.0

    async def describe(self, job: Job) -> dict[str, Any]:
        """Return the job object."""
        if job.state != "COMPLETED":
            return job.as_json(worker.Form(), tells_progress=self.settings.progress)
        bucket_url = f"{job.order.base_url}/files/runpod/{job.order.endpoint}/{job.id}"
        form = worker.Form(
            self.settings.output_form,
            bucket_url if self.settings.bucket else "",
            _faults_now(job),
        )
        job.served += 1
        return await self.draw(lambda: job.as_json(form, tells_progress=False))

    async def draw(self, work: Callable[[], T]) -> T:
        """Do what draws images beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._drawing, work)

    def _tell(self, job: Job) -> None:
        url, faults = job.order.webhook, job.order.faults
        if url is None:
            return
        if "webhook_drop" in faults:
            self._note(job, url, 0, None, "dropped")
            return
        delay = faults.get("webhook_delay")
        duplicate = faults.get("webhook_duplicate")
        copies = duplicate.options["copies"] if duplicate is not None else 1
        delay_s = delay.options["seconds"] if delay is not None else 0.0
        task = asyncio.get_running_loop().create_task(self._deliver(job, url, copies, delay_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, job: Job, url: str, copies: int, delay_s: float) -> None:
        body = json.dumps(await self.describe(job)).encode()
        await asyncio.sleep(delay_s)
        for _ in range(copies):
            for attempt in range(1, WEBHOOK_TRIES + 1):
                status, error = await self._post(url, body)
                self._note(job, url, attempt, status, error)
                if status == 200:
                    break
                if attempt < WEBHOOK_TRIES:
                    await asyncio.sleep(self.settings.webhook_pause_seconds)

    async def _post(self, url: str, body: bytes) -> tuple[int | None, str | None]:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        timeout = aiohttp.ClientTimeout(total=self.state.settings.webhook_timeout_seconds)
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                return response.status, None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return None, f"{type(error).__name__}: {error}"

    def _note(
        self, job: Job, url: str, attempt: int, status: int | None, error: str | None
    ) -> None:
        entry = {"job_id": job.id, "url": url, "attempt": attempt, "at": time.time()}
        self.deliveries.append({**entry, "status": status, "error": error})


RUNPOD = web.AppKey("runpod", RunPod)


def mount(app: web.Application) -> None:
    """Add RunPod to a simulator."""
    part = RunPod(app[STATE])
    part.build()
    app[RUNPOD] = part
    app[STATE].parts.append(part)
    router = app.router
    for method, path, operation, handler in _ROUTES:
        router.add_route(method, f"/v2/{{endpoint}}/{path}", _guarded(operation, handler))
    router.add_get("/files/runpod/{endpoint}/{id}/{name}", _get_file)
    router.add_get("/_sim/runpod/settings", _get_settings)
    router.add_post("/_sim/runpod/settings", _change_settings)
    router.add_get("/_sim/runpod/webhooks", _get_deliveries)
    router.add_get("/_sim/runpod/jobs/{endpoint}/{id}", _get_job)


def _guarded(operation: str, handler: Handler) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Let through who has a key, knows an endpoint, and has not called too often."""

    async def handle(request: web.Request) -> web.StreamResponse:
        part, endpoint = request.app[RUNPOD], request.match_info["endpoint"]
        if not part.accepts_key(_key_of(request)):
            return _error(401, "Unauthorized")
        if not part.knows(endpoint):
            return _error(404, "endpoint not found")
        # What is created is counted in the books first.
        if operation not in ("run", "runsync", ""):
            wait_s = part.throttle(endpoint, operation)
            if wait_s > 0:
                return _throttled(wait_s)
        try:
            return await handler(part, request, endpoint)
        except Refusal as refusal:
            return refusal.response

    return handle


async def _run(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `POST /run`."""
    answer = await _create(part, request, endpoint, wait_s=None)
    if isinstance(answer, Job):
        return json_response({"id": answer.id, "status": "IN_QUEUE"})
    return answer


async def _runsync(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `POST /runsync?wait=<ms>`."""
    wait_ms = _number(request.query.get("wait"), "wait", WAIT_MS)
    asked_s = DEFAULT_WAIT_MS / 1000 if wait_ms is None else wait_ms / 1000
    answer = await _create(part, request, endpoint, wait_s=asked_s, keeps=wait_ms is not None)
    if not isinstance(answer, Job):
        return answer
    await part.jobs.wait(answer, asked_s)
    if answer.has_ended:
        return json_response(await part.describe(answer))
    return json_response({"id": answer.id, "status": answer.state})


async def _status(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `GET /status/{id}?ttl=<ms>`."""
    job = _job_of(part, request, endpoint)
    ttl_ms = _number(request.query.get("ttl"), "ttl", (1, TTL_MS[1]))
    if ttl_ms is not None:
        part.jobs.live_for(job, ttl_ms / 1000)
    job.gets += 1
    rule = job.order.faults.get("get")
    if rule is not None and rule.covers(job.gets):
        return _plain(rule.options["status"])
    return json_response(await part.describe(job))


async def _stream(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `GET /stream/{id}`: each piece of the output once, texts of 1 MB if it is larger.

    Source: the client in PyPI runpod 1.12.0, run 2026-11-20.
    """
    job = _job_of(part, request, endpoint)
    output = (await part.describe(job)).get("output")
    pieces: list[Any] = []
    if job.state == "COMPLETED" and output is not None and not job.is_streamed:
        job.is_streamed = True
        text = json.dumps(output)
        starts = range(0, len(text), CHUNK_CHARS)
        pieces = [output] if len(starts) == 1 else [text[at : at + CHUNK_CHARS] for at in starts]
    stream = [{"output": piece} for piece in pieces]
    return json_response({"status": job.state, "stream": stream})


async def _cancel(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `POST /cancel/{id}`; what has ended stays as it is."""
    job = _job_of(part, request, endpoint)
    job.cancels += 1
    rule = job.order.faults.get("cancel")
    if rule is None or not rule.covers(job.cancels):
        part.jobs.cancel(job)
    elif rule.kind == "cancel_status":
        return _plain(rule.options["status"])
    elif rule.kind == "drop_cancel":
        return cut_connection(request, reset=True)
    return json_response({"id": job.id, "status": job.state})


async def _retry(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `POST /retry/{id}`."""
    job = _job_of(part, request, endpoint)
    if not part.jobs.retry(job):
        return _error(400, "only FAILED or TIMED_OUT jobs can be retried")
    return json_response({"id": job.id, "status": "IN_QUEUE"})


async def _purge(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `POST /purge-queue`."""
    return json_response({"removed": part.jobs.purge(endpoint), "status": "completed"})


async def _health(part: RunPod, request: web.Request, endpoint: str) -> web.StreamResponse:
    """Answer `GET /health`."""
    return json_response(part.jobs.health(endpoint))


_ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("POST", "run", "run", _run),
    ("POST", "runsync", "runsync", _runsync),
    ("GET", "status/{id}", "status", _status),
    ("GET", "stream/{id}", "", _stream),
    ("POST", "cancel/{id}", "cancel", _cancel),
    ("POST", "retry/{id}", "", _retry),
    ("POST", "purge-queue", "purge", _purge),
    ("GET", "health", "", _health),
)


async def _create(
    part: RunPod, request: web.Request, endpoint: str, *, wait_s: float | None, keeps: bool = False
) -> Job | web.StreamResponse:
    """Enter a request in the books and accept it; a response is a refusal."""
    received_mono, state = time.monotonic(), part.state
    raw = await request.read()
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    webhook, prompt = body.get("webhook"), worker.prompt_of(body.get("input"))
    entry = state.ledger.receive(
        owner_of(webhook, prompt, state.settings.owner_parameter),
        f"runpod/{endpoint}",
        prompt,
        received_mono,
        provider="runpod",
    )
    try:
        answer = await _accept(part, request, endpoint, entry, body, len(raw), wait_s, keeps)
    except Refusal as refusal:
        answer = refusal.response
    if entry.answer is None:
        entry.answer = 200 if isinstance(answer, Job) else answer.status
    return answer


async def _accept(
    part: RunPod,
    request: web.Request,
    endpoint: str,
    entry: CreateRequest,
    body: dict[str, Any],
    size_bytes: int,
    wait_s: float | None,
    keeps: bool,
) -> Job | web.StreamResponse:
    state, own, is_sync = part.state, part.settings, wait_s is not None
    pause_s = part.throttle(endpoint, "runsync" if is_sync else "run")
    if pause_s > 0:
        return _throttled(pause_s)
    refusal = state.faults.refusal(entry.model_id, entry.prompt)
    if refusal is not None:
        if refusal.kind == "drop_create_before":
            entry.answer = "dropped"
            return cut_connection(request)
        return _refused(refusal)
    limit_bytes = own.runsync_max_bytes if is_sync else own.run_max_bytes
    if size_bytes > limit_bytes:
        raise Refusal(400, f"exceeded max body size of {limit_bytes / 1024 / 1024:g}MiB")
    if not isinstance(body.get("input"), dict):
        raise Refusal(400, "input must be a JSON object")
    webhook = body.get("webhook")
    if webhook is not None and not str(webhook).startswith(("https://", "http://")):
        raise Refusal(400, "webhook must be a URL")
    policy = {} if body.get("policy") is None else body["policy"]
    if not isinstance(policy, dict) or not isinstance(policy.get("lowPriority", False), bool):
        raise Refusal(400, "policy is not valid")
    execution_ms = _number(policy.get("executionTimeout"), "executionTimeout", EXECUTION_MS)
    ttl_ms = _number(policy.get("ttl"), "ttl", TTL_MS)
    kept_s = own.result_seconds
    if wait_s is not None:
        kept_s = max(own.sync_result_seconds, wait_s) if keeps else own.sync_result_seconds
    order = Order(
        endpoint=endpoint,
        input=body["input"],
        owner=entry.owner,
        token_suffix=_key_of(request)[-4:],
        base_url=state.base_url(request),
        kept_s=kept_s,
        webhook=webhook,
        execution_timeout_s=600.0 if execution_ms is None else execution_ms / 1000,
        ttl_s=86_400.0 if ttl_ms is None else ttl_ms / 1000,
        faults=state.faults.for_prediction(entry.model_id, entry.prompt),
    )
    job = part.jobs.create(order, is_sync=is_sync)
    entry.prediction = job
    rule = order.faults.get("answer")
    if rule is not None and rule.kind == "drop_create_after":
        entry.answer = "dropped"
        return cut_connection(request, reset=True)
    if rule is not None:
        await asyncio.sleep(rule.options["seconds"])
    return job


async def _get_file(request: web.Request) -> web.StreamResponse:
    """Answer for the bucket that workers upload to: `GET /files/runpod/{endpoint}/{id}/{n}.png`.

    As with a real one, the files outlive the job; they need no key.
    """
    part, info = request.app[RUNPOD], request.match_info
    job = part.jobs.get(info["endpoint"], info["id"], even_gone=True)
    number, _, kind = info["name"].partition(".")
    files = job.result.files if job is not None and job.result is not None else ()
    if job is None or kind != "png" or not number.isdigit() or int(number) >= len(files):
        return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>")
    index = int(number)
    job.file_hits[index] += 1
    rule = job.order.faults.get("file")
    if rule is None or not rule.covers(job.file_hits[index]):
        rule = None
    data = await part.draw(lambda: worker.content(files[index][1], rule))
    if rule is not None and rule.kind == "file_status":
        return _plain(rule.options["status"])
    if rule is not None and rule.kind == "file_redirect":
        return web.Response(status=302, headers={"Location": rule.options["location"]})
    if rule is not None and rule.kind == "gzip_bomb":
        bomb = await part.draw(hostile.gzip_bomb)
        headers = {"Content-Encoding": "gzip"}
        return web.Response(body=bomb, headers=headers, content_type="image/png")
    if rule is not None and rule.kind in ("drop_file", "drip"):
        headers = {"Content-Type": "image/png", "Content-Length": str(len(data))}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if rule.kind == "drop_file":
            await response.write(data[: len(data) // 2])
            return cut_connection(request)
        for offset in range(len(data)):
            await response.write(data[offset : offset + 1])
            await asyncio.sleep(rule.options["seconds"])
        return response
    return web.Response(body=data, content_type="image/png")


async def _get_settings(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/runpod/settings`."""
    return json_response(request.app[RUNPOD].settings.as_json())


async def _change_settings(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/runpod/settings`."""
    settings = request.app[RUNPOD].settings
    try:
        changes = json.loads(await request.read())
        if not isinstance(changes, dict):
            raise SettingsError("the body must be a JSON object")
        settings.update(changes)
    except ValueError as error:
        return _error(400, str(error))
    return json_response(settings.as_json())


async def _get_deliveries(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/runpod/webhooks`: every try to deliver one."""
    return json_response({"deliveries": list(request.app[RUNPOD].deliveries)})


async def _get_job(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/runpod/jobs/{endpoint}/{id}`: what the job was given."""
    info = request.match_info
    job = request.app[RUNPOD].jobs.get(info["endpoint"], info["id"])
    if job is None:
        return _error(404, "job not found")
    return json_response(
        {
            "workflow": job.order.input.get("workflow"),
            "images": job.images,
            "webhook": job.order.webhook,
            "execution_timeout_s": job.order.execution_timeout_s,
            "ttl_s": job.order.ttl_s,
        }
    )


def _job_of(part: RunPod, request: web.Request, endpoint: str) -> Job:
    job = part.jobs.get(endpoint, request.match_info["id"])
    if job is None:
        raise Refusal(404, "job not found")
    return job


def _faults_now(job: Job) -> dict[str, Rule]:
    """Return the rules for a job's output, without one for files that has hit often enough."""
    rule = job.order.faults.get("file")
    if rule is None or rule.covers(job.served + 1):
        return job.order.faults
    return {group: other for group, other in job.order.faults.items() if group != "file"}


def _number(value: Any, name: str, bounds: tuple[int, int]) -> float | None:
    """Return a number within its bounds, None for none. Raises Refusal."""
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not bounds[0] <= number <= bounds[1]:
        raise Refusal(400, f"{name} must be from {bounds[0]} to {bounds[1]}")
    return number


def _key_of(request: web.Request) -> str:
    """Return the API key, which may stand alone."""
    return request.headers.get("Authorization", "").removeprefix("Bearer ").strip()


def _refused(rule: Rule) -> web.Response:
    status, retry_after = rule.options["status"], rule.options["retry_after"]
    if rule.options["body"] is None:
        response = _plain(status)
    else:
        content_type = rule.options["content_type"] or "application/json"
        response = web.Response(text=rule.options["body"], status=status, content_type=content_type)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def _plain(status: int) -> web.Response:
    """Answer with the body that is usual for `status`."""
    return html_page(status) if status > 500 else _error(status, f"error {status}")


def _throttled(wait_s: float) -> web.Response:
    response = _error(429, "too many requests")
    response.headers["Retry-After"] = str(math.ceil(wait_s))
    return response


def _error(status: int, text: str) -> web.Response:
    return json_response({"error": text}, status)
