"""RunPod jobs and their life on the clock.

    IN_QUEUE -+-> IN_PROGRESS -+-> COMPLETED | FAILED
              |                +-> TIMED_OUT  (executionTimeout)
              |                +-> CANCELLED
              +-> CANCELLED

At the end of its time to live a job is gone, wherever it was; so is a result that was kept long
enough. What waits can be set to end as TIMED_OUT instead: the documentation has both. Every step
is one timer of the event loop.

Source: RunPod serverless documentation, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulator import runpod_worker as worker
from simulator.faults import Rule
from simulator.ledger import Ledger
from simulator.settings import Adjustable, Settings

KEPT = 20_000
USUAL_RUN_S = 2.0
# What the books call a status.
_BOOKS = {
    "IN_QUEUE": "starting",
    "IN_PROGRESS": "processing",
    "COMPLETED": "succeeded",
    "FAILED": "failed",
    "TIMED_OUT": "failed",
    "CANCELLED": "canceled",
}


@dataclass(slots=True)
class RunPodSettings(Adjustable):
    """What can be set by `POST /_sim/runpod/settings`. Run and queue times are in `Settings`."""

    workers: int | None = None  # at work at a time, of each endpoint; None: as many as needed
    endpoints: str = ""  # the ids that exist, with commas between; "": all
    bucket: bool = False  # whether workers upload their images and answer with URLs
    output_form: str = "images"  # images, message, json or list; see `runpod_worker`
    progress: bool = False  # whether workers report how far they are
    usd_per_second: float = 0.00044
    result_seconds: float = 1800.0  # how long the result of `/run` is kept
    sync_result_seconds: float = 60.0  # of `/runsync`, without `wait`
    times_out_in_queue: bool = False  # whether that, and not vanishing, is the end of waiting
    policy_scale: float = 1.0  # the limits in `policy` are taken times this
    run_max_bytes: int = 10 * 1024 * 1024
    runsync_max_bytes: int = 20 * 1024 * 1024
    run_per_10s: int = 1000
    runsync_per_10s: int = 2000
    status_per_10s: int = 2000
    cancel_per_10s: int = 100
    purge_per_10s: int = 2
    webhook_pause_seconds: float = 10.0  # between two tries


@dataclass(frozen=True, slots=True)
class Order:
    """A valid request for a job. `kept_s` is how long its result is kept, the rest as sent."""

    endpoint: str
    input: dict[str, Any]
    owner: str
    token_suffix: str
    base_url: str
    kept_s: float
    webhook: str | None = None
    execution_timeout_s: float = 600.0
    ttl_s: float = 86_400.0
    faults: dict[str, Rule] = field(default_factory=dict)

    @property
    def model_id(self) -> str:
        """Return the name of what runs, for the books and for rules."""
        return f"runpod/{self.endpoint}"


@dataclass(slots=True, eq=False)
class Job:
    """One execution of a job; a retry is another one of the same id."""

    id: str
    order: Order
    prompt: str
    input_sha256: str
    images: list[dict[str, str]]  # name and SHA-256 of the files that came with it
    run_s: float
    usd_per_second: float
    created_mono: float
    created_wall_ns: int
    state: str = "IN_QUEUE"
    started_mono: float | None = None
    ended_mono: float | None = None
    # Whether RunPod still knows it.
    is_known: bool = True
    result: worker.Result | None = None
    error: str | None = None
    gets: int = 0
    cancels: int = 0
    served: int = 0  # answers with the output
    is_streamed: bool = False
    file_hits: Counter[int] = field(default_factory=Counter)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def provider(self) -> str:
        """Return the provider's name, as it is in the books."""
        return "runpod"

    @property
    def status(self) -> str:
        """Return the status in the words of the books."""
        if self.has_ended and self.state in ("IN_QUEUE", "IN_PROGRESS"):
            return "aborted" if self.started_mono is None else "canceled"
        return _BOOKS[self.state]

    @property
    def has_ended(self) -> bool:
        """Tell whether the job is over."""
        return self.ended_mono is not None

    @property
    def owner(self) -> str:
        """Return whose work it is."""
        return self.order.owner

    @property
    def model_id(self) -> str:
        """Return what runs."""
        return self.order.model_id

    @property
    def webhook(self) -> str | None:
        """Return where the client wants to be told."""
        return self.order.webhook

    @property
    def token_suffix(self) -> str:
        """Return the last characters of the client's key."""
        return self.order.token_suffix

    @property
    def charged_usd(self) -> float:
        """Return what the job cost so far: the seconds that it ran."""
        return self.usd_per_second * self.execution_s

    @property
    def execution_s(self) -> float:
        """Return how long it ran, once that is over."""
        if self.started_mono is None or self.ended_mono is None:
            return 0.0
        return self.ended_mono - self.started_mono

    def input_digest(self) -> str:
        """Return the SHA-256 of the input."""
        return self.input_sha256

    def wall_ns(self, mono: float) -> int:
        """Return the wall time of a monotonic time, free of steps of the clock."""
        return self.created_wall_ns + round((mono - self.created_mono) * 1e9)

    def as_json(self, form: worker.Form, *, tells_progress: bool) -> dict[str, Any]:
        """Return the job object. Draws the images of a completed one."""
        body: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.started_mono is None:
            return body
        body["delayTime"] = round((self.started_mono - self.created_mono) * 1000)
        body["workerId"] = "simulated"
        if not self.has_ended:
            if tells_progress and math.isfinite(self.run_s):
                body["output"] = self._progress(time.monotonic() - self.started_mono)
            return body
        body["executionTime"] = max(1, round(self.execution_s * 1000))
        if self.state == "COMPLETED" and self.result is not None:
            body["output"] = worker.write_output(self.result, form)
        if self.state == "FAILED":
            body["error"] = self.error
            if self.result is not None and self.result.notes:
                body["output"] = {"details": list(self.result.notes)}
        return body

    def _progress(self, elapsed_s: float) -> dict[str, Any]:
        share = min(1.0, elapsed_s / self.run_s) if self.run_s else 1.0
        value = int(share * 20)
        return {"type": "progress", "value": value, "max": 20, "percent": value * 5.0, "node": "3"}


class Jobs:
    """Queue, run, find, cancel. `on_end` is told of each job that is over and still known."""

    def __init__(
        self,
        settings: Settings,
        own: RunPodSettings,
        ledger: Ledger,
        on_end: Callable[[Job], None],
    ) -> None:
        self._settings = settings
        self._own = own
        self._ledger = ledger
        self._on_end = on_end
        self._by_id: dict[tuple[str, str], Job] = {}
        self._due: dict[str, deque[Job]] = {}
        self._running: Counter[str] = Counter()
        self._counts: dict[str, Counter[str]] = {}

    def create(self, order: Order, *, is_sync: bool = False) -> Job:
        """Accept a job and put it in line."""
        job_id = f"sync-{uuid.uuid4()}-u1" if is_sync else f"{uuid.uuid4()}-u1"
        return self._start(job_id, order)

    def get(self, endpoint: str, job_id: str, *, even_gone: bool = False) -> Job | None:
        """Return a job that is still known, or None."""
        job = self._by_id.get((endpoint, job_id))
        return job if job is not None and (job.is_known or even_gone) else None

    def cancel(self, job: Job) -> None:
        """Stop a job now, or after the cancel delay; without effect once it has ended."""
        if job.has_ended:
            return
        if self._settings.cancel_seconds == 0:
            self._end(job, "CANCELLED")
        else:
            self._after(job, "cancel", self._settings.cancel_seconds, self._end, job, "CANCELLED")

    def retry(self, job: Job) -> bool:
        """Run a job again under its id; return whether it may be."""
        if job.state not in ("FAILED", "TIMED_OUT"):
            return False
        _drop_timers(job)
        self._start(job.id, job.order)
        self._counts[job.order.endpoint]["retried"] += 1
        return True

    def purge(self, endpoint: str) -> int:
        """Remove what waits; return how many that were."""
        found = [
            job
            for (where, _), job in self._by_id.items()
            if where == endpoint and job.state == "IN_QUEUE" and not job.has_ended
        ]
        for job in found:
            self._vanish(job)
        return len(found)

    def live_for(self, job: Job, ttl_s: float) -> None:
        """Set what is left of a job's time to live."""
        self._after(job, "ttl", ttl_s * self._own.policy_scale, self._expire, job)

    async def wait(self, job: Job, seconds: float) -> None:
        """Wait for the end of a job, so long at most."""
        if job.has_ended:
            return
        future = asyncio.get_running_loop().create_future()
        job.waiting.append(future)
        await asyncio.wait([future], timeout=seconds)

    def health(self, endpoint: str) -> dict[str, dict[str, int]]:
        """Return the counts of an endpoint."""
        counts = self._counts.get(endpoint, Counter())
        alive = [
            job
            for (where, _), job in self._by_id.items()
            if where == endpoint and not job.has_ended
        ]
        running = sum(job.state == "IN_PROGRESS" for job in alive)
        idle = 1 if self._own.workers is None else max(0, self._own.workers - running)
        jobs = {name: counts[name] for name in ("completed", "failed", "retried")}
        waits = {"inProgress": running, "inQueue": len(alive) - running}
        quiet = dict.fromkeys(("initializing", "ready", "throttled", "unhealthy"), 0)
        return {"jobs": {**jobs, **waits}, "workers": {"idle": idle, "running": running, **quiet}}

    def clear(self) -> None:
        """Forget everything; open waits end."""
        for job in self._by_id.values():
            _drop_timers(job)
            _wake(job)
        self._by_id.clear()
        self._due.clear()

    def _start(self, job_id: str, order: Order) -> Job:
        run_s = self._settings.run_s(order.model_id, USUAL_RUN_S)
        if "pace" in order.faults:
            run_s += order.faults["pace"].options["seconds"]
        if "run" in order.faults and order.faults["run"].kind == "hang":
            run_s = math.inf
        job = Job(
            id=job_id,
            order=order,
            prompt=worker.prompt_of(order.input),
            input_sha256=_digest(order.input),
            images=worker.received_images(order.input),
            run_s=run_s,
            usd_per_second=self._own.usd_per_second,
            created_mono=time.monotonic(),
            created_wall_ns=time.time_ns(),
        )
        self._by_id[order.endpoint, job_id] = job
        if len(self._by_id) > KEPT:
            del self._by_id[next(iter(self._by_id))]
        self._counts.setdefault(order.endpoint, Counter())
        self._ledger.note(job, "accepted")
        self.live_for(job, order.ttl_s)
        self._after(job, "step", self._settings.queue_s(order.model_id), self._line_up, job)
        return job

    def _line_up(self, job: Job) -> None:
        self._due.setdefault(job.order.endpoint, deque()).append(job)
        self._begin_next(job.order.endpoint)

    def _begin_next(self, endpoint: str) -> None:
        due, limit = self._due.get(endpoint, deque()), self._own.workers
        while due and (limit is None or self._running[endpoint] < limit):
            job = due.popleft()
            if not job.has_ended:
                self._begin(job)

    def _begin(self, job: Job) -> None:
        job.state, job.started_mono = "IN_PROGRESS", time.monotonic()
        self._running[job.order.endpoint] += 1
        self._ledger.note(job, "start")
        job.result = worker.run(job.order.input)
        # What is refused takes no time.
        run_s = 0.0 if job.result.error is not None else job.run_s
        limit_s = job.order.execution_timeout_s * self._own.policy_scale
        if run_s <= limit_s:
            self._after(job, "step", run_s, self._finish, job)
        else:
            self._after(job, "step", limit_s, self._end, job, "TIMED_OUT")

    def _finish(self, job: Job) -> None:
        assert job.result is not None
        job.error = job.result.error
        if job.error is None and "run" in job.order.faults:
            job.error = worker.fault_text(job.order.faults["run"])
        self._end(job, "COMPLETED" if job.error is None else "FAILED")

    def _end(self, job: Job, state: str) -> None:
        self._close(job)
        job.state = state
        name = {"COMPLETED": "completed", "FAILED": "failed"}.get(state)
        if name is not None:
            self._counts[job.order.endpoint][name] += 1
        expired = job.order.faults.get("data")
        kept_s = job.order.kept_s if expired is None else expired.options["seconds"]
        self._after(job, "kept", kept_s, self._vanish, job)
        if state in ("COMPLETED", "CANCELLED"):
            # It cannot be run again, and the books keep jobs for long.
            job.order.input.pop("images", None)
        self._ledger.note(job, "completed")
        self._on_end(job)
        self._free(job)

    def _expire(self, job: Job) -> None:
        if self._own.times_out_in_queue and job.state == "IN_QUEUE" and not job.has_ended:
            self._end(job, "TIMED_OUT")
        else:
            self._vanish(job)

    def _vanish(self, job: Job) -> None:
        job.is_known = False
        if job.has_ended:
            _drop_timers(job)
            return
        self._close(job)
        _drop_timers(job)
        self._ledger.note(job, "completed")
        self._free(job)

    def _close(self, job: Job) -> None:
        for name in ("step", "cancel"):
            if (timer := job.timers.pop(name, None)) is not None:
                timer.cancel()
        job.ended_mono = time.monotonic()
        _wake(job)

    def _free(self, job: Job) -> None:
        if job.started_mono is not None:
            self._running[job.order.endpoint] -= 1
            self._begin_next(job.order.endpoint)

    def _after(
        self, job: Job, name: str, delay_s: float, step: Callable[..., None], *args: object
    ) -> None:
        if (before := job.timers.pop(name, None)) is not None:
            before.cancel()
        loop = asyncio.get_running_loop()
        job.timers[name] = loop.call_later(delay_s, step, *args)


def _digest(job_input: dict[str, Any]) -> str:
    """Return the SHA-256 of an input, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(job_input, sort_keys=True).encode()).hexdigest()


def _drop_timers(job: Job) -> None:
    for timer in job.timers.values():
        timer.cancel()
    job.timers.clear()


def _wake(job: Job) -> None:
    for future in job.waiting:
        if not future.done():
            future.set_result(None)
    job.waiting.clear()
