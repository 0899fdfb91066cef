"""Predictions and their life on the clock.

    starting -+-> processing -+-> succeeded
              |               +-> failed
              |               +-> canceled  (asked for, or deadline while running)
              +-> canceled  (asked for)
              +-> aborted   (deadline before the run began)

Every step is one timer of the event loop. Nothing polls, and logs are worked out when read.

Source: Replicate HTTP API, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.faults import Rule
from simulator.images import CONTENT_TYPES, render
from simulator.models import Model
from simulator.settings import Settings
from simulator.wire import new_id, rfc3339

KEPT = 200_000
PAGE_SIZE = 100
TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
HIDDEN_VERSION = "hidden"
LOG_INTERVAL_S = 0.5
LOG_LINES_AT_MOST = 50
RUN_LIMIT_TEXT = "Prediction timed out"

Listener = Callable[["Prediction", str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """A valid create request."""

    model: Model
    input: dict[str, Any]
    owner: str
    token_suffix: str
    base_url: str
    webhook: str | None = None
    events: frozenset[str] = frozenset()
    deployment: str | None = None
    cancel_after_s: float | None = None
    faults: Mapping[str, Rule] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Prediction:
    """One prediction. Times ending in `_mono` are seconds of CLOCK_MONOTONIC."""

    number: int
    id: str
    order: Order
    seed: int
    run_s: float
    created_mono: float
    created_wall_ns: int
    status: str = "starting"
    started_mono: float | None = None
    ended_mono: float | None = None
    removed_mono: float = math.inf
    output: list[str] | str | None = None
    image_count: int = 0
    error: str | None = None
    # The files as data URIs, once they were asked for in this form.
    inline: list[str] = field(default_factory=list)
    gets: int = 0
    cancels: int = 0
    file_hits: Counter[int] = field(default_factory=Counter)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def provider(self) -> str:
        """Return the provider's name, as it is in the books."""
        return "replicate"

    @property
    def owner(self) -> str:
        """Return whose work it is."""
        return self.order.owner

    @property
    def model_id(self) -> str:
        """Return `owner/name` of the model."""
        return self.order.model.id

    @property
    def webhook(self) -> str | None:
        """Return where the client wants to be told."""
        return self.order.webhook

    @property
    def token_suffix(self) -> str:
        """Return the last characters of the client's API token."""
        return self.order.token_suffix

    @property
    def prompt(self) -> str:
        """Return the prompt; every model has one."""
        return str(self.order.input["prompt"])

    @property
    def has_ended(self) -> bool:
        """Tell whether the status is final."""
        return self.status in TERMINAL

    @property
    def charged_usd(self) -> float:
        """Return what the prediction cost so far.

        Nothing before the run began; then, by image: all images asked for, whatever comes of
        the run; by second: the run time, once it is known.
        """
        model = self.order.model
        if self.started_mono is None:
            return 0.0
        if model.billed_per == "image":
            return model.price_usd * model.images_asked(self.order.input)
        ended_mono = self.started_mono if self.ended_mono is None else self.ended_mono
        return model.price_usd * (ended_mono - self.started_mono)

    def is_removed(self, now_mono: float) -> bool:
        """Tell whether input, output and files are gone."""
        return now_mono > self.removed_mono

    def wall_ns(self, mono: float) -> int:
        """Return the wall time of a monotonic time, free of steps of the clock."""
        return self.created_wall_ns + round((mono - self.created_mono) * 1e9)

    def input_digest(self) -> str:
        """Return the SHA-256 of the input, independent of the order of its keys."""
        return hashlib.sha256(json.dumps(self.order.input, sort_keys=True).encode()).hexdigest()

    def image_names(self) -> list[str]:
        """Return the names of the output files."""
        image_format = self.order.model.image_format(self.order.input)
        return [f"{index}.{image_format}" for index in range(self.image_count)]

    def as_json(self, base_url: str, now_mono: float) -> dict[str, Any]:
        """Return the prediction object with URLs under `base_url`."""
        model, removed = self.order.model, self.is_removed(now_mono)
        api_url = f"{base_url}/v1/predictions/{self.id}"
        body: dict[str, Any] = {
            "id": self.id,
            "model": model.id,
            "version": HIDDEN_VERSION if model.is_official else model.version_id,
            "input": {} if removed else self.order.input,
            "logs": "" if removed else self.logs(now_mono),
            "output": None if removed else self._output_urls(base_url),
            "data_removed": removed,
            "error": self.error,
            "source": "api",
            "status": self.status,
            "created_at": rfc3339(self.created_wall_ns, 6),
            "urls": {
                "get": api_url,
                "cancel": f"{api_url}/cancel",
                "web": f"{base_url}/p/{self.id}",
            },
        }
        if self.order.deployment is not None:
            body["deployment"] = self.order.deployment
        if self.order.cancel_after_s is not None:
            deadline_mono = self.created_mono + self.order.cancel_after_s
            body["deadline"] = rfc3339(self.wall_ns(deadline_mono), 6)
        if self.started_mono is not None:
            body["started_at"] = rfc3339(self.wall_ns(self.started_mono), 9)
        if self.ended_mono is not None:
            body["completed_at"] = rfc3339(self.wall_ns(self.ended_mono), 9)
            body["metrics"] = self._metrics(self.ended_mono)
        return body

    def logs(self, now_mono: float) -> str:
        """Return what the run has printed by `now_mono`."""
        if self.started_mono is None:
            return ""
        until_mono = now_mono if self.ended_mono is None else self.ended_mono
        elapsed_s = until_mono - self.started_mono
        model = self.order.model
        steps = min(
            int(model.value(self.order.input, "num_inference_steps") or 1), LOG_LINES_AT_MOST
        )
        usual_s = self.run_s if math.isfinite(self.run_s) else model.run_seconds
        done = steps if usual_s == 0 else min(steps, int(steps * elapsed_s / usual_s))
        if self.status != "succeeded":
            done = min(done, steps - 1)
        lines = (_progress_line(step, steps, usual_s) for step in range(done + 1))
        return f"Using seed: {self.seed}\n" + "\n".join(lines)

    def _output_urls(self, base_url: str) -> list[str] | str | None:
        fault = self.order.faults.get("output")
        if fault is not None and fault.kind == "foreign_host":
            base_url = fault.options["base_url"]
        if fault is not None and fault.kind == "data_uri_output" and self.output:
            self._draw_inline()
            return self.inline if isinstance(self.output, list) else self.inline[0]
        prefix = f"{base_url}/files/out/{self.id}/"
        if isinstance(self.output, list):
            return [prefix + name for name in self.output]
        return None if self.output is None else prefix + self.output

    def _draw_inline(self) -> None:
        order = self.order
        image_format = order.model.image_format(order.input)
        width_px, height_px = order.model.size_px(order.input)
        for index in range(len(self.inline), self.image_count):
            body = render(
                self.prompt, self.seed + index, order.model.id, width_px, height_px, image_format
            )
            encoded = base64.b64encode(body).decode()
            self.inline.append(f"data:{CONTENT_TYPES[image_format]};base64,{encoded}")

    def _metrics(self, ended_mono: float) -> dict[str, Any]:
        metrics: dict[str, Any] = {"total_time": round(ended_mono - self.created_mono, 9)}
        if self.started_mono is not None:
            metrics["predict_time"] = round(ended_mono - self.started_mono, 9)
        if self.status == "succeeded":
            metrics["image_count"] = self.image_count
        return metrics


class Predictions:
    """Create, run, find, cancel. Tells `listeners` of every event of every prediction.

    Events are `accepted`, `start`, `logs`, `output` and `completed`.
    """

    def __init__(self, settings: Settings, seed: int, listeners: tuple[Listener, ...]) -> None:
        self._settings = settings
        self._rng = random.Random(seed)
        self._listeners = listeners
        self._by_id: dict[str, Prediction] = {}
        self._by_number: dict[int, Prediction] = {}
        self._next_number = 1

    def create(self, order: Order) -> Prediction:
        """Accept a prediction and set its timers."""
        settings, model = self._settings, order.model
        jitter = self._rng.uniform(-settings.run_jitter, settings.run_jitter)
        run_s = max(0.0, settings.run_s(model.id, model.run_seconds) * (1 + jitter))
        if "pace" in order.faults:
            run_s += order.faults["pace"].options["seconds"]
        if "run" in order.faults and order.faults["run"].kind == "hang":
            run_s = math.inf
        prediction = Prediction(
            number=self._next_number,
            id=new_id(),
            order=order,
            # A seed of 0 means the same as none: the model picks one.
            seed=order.input.get("seed") or self._rng.randrange(1, 2**31),
            run_s=run_s,
            created_mono=time.monotonic(),
            created_wall_ns=time.time_ns(),
        )
        self._next_number += 1
        self._by_id[prediction.id] = self._by_number[prediction.number] = prediction
        if len(self._by_id) > KEPT:
            oldest = self._by_number.pop(next(iter(self._by_number)))
            del self._by_id[oldest.id]
        self._tell(prediction, "accepted")
        self._after(prediction, settings.queue_s(model.id), self._begin, prediction)
        if order.cancel_after_s is not None:
            self._after(prediction, order.cancel_after_s, self._reach_deadline, prediction)
        return prediction

    def get(self, prediction_id: str) -> Prediction | None:
        """Return the prediction, or None."""
        return self._by_id.get(prediction_id)

    def cancel(self, prediction: Prediction) -> None:
        """Cancel now, or after the cancel delay; without effect once it has ended."""
        if prediction.has_ended:
            return
        if self._settings.cancel_seconds == 0:
            self._end(prediction, "canceled")
        else:
            delay_s = self._settings.cancel_seconds
            self._after(prediction, delay_s, self._end, prediction, "canceled")

    async def wait(self, prediction: Prediction, seconds: float) -> bool:
        """Wait for the end of the prediction; return whether it came in time."""
        if prediction.has_ended:
            return True
        future = asyncio.get_running_loop().create_future()
        prediction.waiting.append(future)
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            return False
        return True

    def older_than(self, number: int | None) -> Iterator[Prediction]:
        """Yield predictions newest first, from below `number` or from the newest."""
        start = self._next_number if number is None else min(number, self._next_number)
        for candidate in range(start - 1, 0, -1):
            prediction = self._by_number.get(candidate)
            if prediction is None:
                return
            yield prediction

    def newer_than(self, number: int) -> Iterator[Prediction]:
        """Yield predictions oldest first, from above `number`."""
        for candidate in range(max(number, 0) + 1, self._next_number):
            prediction = self._by_number.get(candidate)
            if prediction is not None:
                yield prediction

    def clear(self) -> None:
        """Forget everything; open waits end."""
        for prediction in self._by_id.values():
            self._drop_timers(prediction)
        self._by_id.clear()
        self._by_number.clear()

    def _begin(self, prediction: Prediction) -> None:
        prediction.status = "processing"
        prediction.started_mono = time.monotonic()
        self._tell(prediction, "start")
        if "logs" in prediction.order.events:
            self._log(prediction)
        limit_s = self._settings.run_limit_seconds
        if prediction.run_s <= limit_s:
            self._after(prediction, prediction.run_s, self._finish, prediction)
        else:
            self._after(prediction, limit_s, self._end, prediction, "failed", RUN_LIMIT_TEXT)

    def _log(self, prediction: Prediction) -> None:
        self._tell(prediction, "logs")
        self._after(prediction, LOG_INTERVAL_S, self._log, prediction)

    def _finish(self, prediction: Prediction) -> None:
        order = prediction.order
        error = order.model.failure_of(order.input)
        if "run" in order.faults:
            error = order.faults["run"].options["error"]
        if error is not None:
            self._end(prediction, "failed", error)
            return
        prediction.image_count = order.model.images_asked(order.input)
        prediction.output = self._output(prediction)
        self._tell(prediction, "output")
        self._end(prediction, "succeeded")

    def _output(self, prediction: Prediction) -> list[str] | str | None:
        order, names = prediction.order, prediction.image_names()
        fault = order.faults.get("output")
        if fault is not None and fault.kind == "short_output":
            count = fault.options["count"]
            names = names[: max(1, len(names) - 1) if count is None else count]
            prediction.image_count = len(names)
        elif fault is not None and fault.kind == "empty_output":
            prediction.image_count = 0
            return None if fault.options["null"] or order.model.output == "string" else []
        if order.model.output == "string" or (fault and fault.kind == "string_output"):
            return names[0] if names else None
        return names

    def _reach_deadline(self, prediction: Prediction) -> None:
        self._end(prediction, "aborted" if prediction.started_mono is None else "canceled")

    def _end(self, prediction: Prediction, status: str, error: str | None = None) -> None:
        self._drop_timers(prediction)
        prediction.status = status
        prediction.error = error
        prediction.ended_mono = time.monotonic()
        expired = prediction.order.faults.get("data")
        kept_s = self._settings.retention_seconds if not expired else expired.options["seconds"]
        prediction.removed_mono = prediction.ended_mono + kept_s
        self._tell(prediction, "completed")

    def _after(
        self, prediction: Prediction, delay_s: float, step: Callable[..., None], *args: object
    ) -> None:
        prediction.timers.append(asyncio.get_running_loop().call_later(delay_s, step, *args))

    def _drop_timers(self, prediction: Prediction) -> None:
        for timer in prediction.timers:
            timer.cancel()
        prediction.timers.clear()
        for future in prediction.waiting:
            if not future.done():
                future.set_result(None)
        prediction.waiting.clear()

    def _tell(self, prediction: Prediction, event: str) -> None:
        for listener in self._listeners:
            listener(prediction, event)


def _progress_line(step: int, steps: int, run_s: float) -> str:
    """Return one line as the progress bars of Python print it."""
    bar = ("█" * (10 * step // steps)).ljust(10)
    if step == 0:
        return f"  0%|{bar}| 0/{steps} [00:00<?, ?it/s]"
    spent_s = run_s * step / steps
    rate = step / spent_s if spent_s else 999.0
    times = f"{_minutes(spent_s)}<{_minutes(run_s - spent_s)}"
    return f"{100 * step // steps:3d}%|{bar}| {step}/{steps} [{times}, {rate:.2f}it/s]"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
