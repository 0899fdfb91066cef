"""Count every create request and every charge, and how many predictions ran at once."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from simulator.predictions import KEPT


class Work(Protocol):
    """What the books need to know of a prediction, of whatever provider.

    status is `starting`, `processing`, `succeeded`, `failed`, `canceled` or `aborted`, whatever
    the provider's own word is. Times ending in `_mono` are seconds of CLOCK_MONOTONIC, `wall_ns`
    turns one into nanoseconds since 1970.
    """

    @property
    def provider(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def model_id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def webhook(self) -> str | None: ...
    @property
    def token_suffix(self) -> str: ...
    @property
    def created_mono(self) -> float: ...
    @property
    def started_mono(self) -> float | None: ...
    @property
    def ended_mono(self) -> float | None: ...
    @property
    def has_ended(self) -> bool: ...
    @property
    def charged_usd(self) -> float: ...
    def input_digest(self) -> str: ...
    def wall_ns(self, mono: float) -> int: ...


@dataclass(slots=True)
class Gauge:
    """A number going up and down, and its maximum."""

    now: int = 0
    max: int = 0

    def up(self) -> None:
        """Add one."""
        self.now += 1
        self.max = max(self.max, self.now)

    def down(self) -> None:
        """Take one away."""
        self.now -= 1


@dataclass(slots=True)
class Tally:
    """Counts of one owner or of all.

    in_flight: accepted and not ended, the time in the queue included. running: the run began
    and has not ended.
    """

    creates: int = 0
    charges: int = 0
    in_flight: Gauge = field(default_factory=Gauge)
    running: Gauge = field(default_factory=Gauge)

    def as_json(self) -> dict[str, int]:
        """Return the counts under their JSON keys."""
        return {
            "creates_received": self.creates,
            "charges": self.charges,
            "in_flight": self.in_flight.now,
            "max_in_flight": self.in_flight.max,
            "running": self.running.now,
            "max_running": self.running.max,
        }


@dataclass(slots=True)
class CreateRequest:
    """A create request as it came in, whatever was answered.

    answer: the HTTP status, `dropped` when the connection was closed instead, or None while
    there is no answer yet.
    """

    owner: str
    model_id: str
    prompt: str
    received_mono: float
    received_wall_s: float
    answer: int | str | None = None
    provider: str = "replicate"
    prediction: Work | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the entry of the timeline."""
        entry: dict[str, Any] = {
            "provider": self.provider,
            "owner": self.owner,
            "model": self.model_id,
            "prompt": self.prompt,
            "received_at": self.received_wall_s,
            "received_monotonic": self.received_mono,
            "answer": self.answer,
            "prediction_id": None,
        }
        if self.prediction is not None:
            entry |= {"prediction_id": self.prediction.id, "status": self.prediction.status}
            entry |= _times(self.prediction)
        return entry


@dataclass(slots=True)
class Charge:
    """A prediction whose run began.

    encoded: its JSON once it has ended and changes no more, so that asking for thousands of
    charges again and again holds up nothing.
    """

    prediction: Work
    encoded: bytes | None = None

    def as_json(self) -> bytes:
        """Return the entry of the ledger."""
        if self.encoded is not None:
            return self.encoded
        body = json.dumps(_charge_json(self.prediction)).encode()
        if self.prediction.has_ended:
            self.encoded = body
        return body


class Ledger:
    """The books. Details are kept for the last create requests only, counts for all."""

    def __init__(self) -> None:
        self._requests: deque[CreateRequest] = deque(maxlen=KEPT)
        self._charged: deque[Charge] = deque(maxlen=KEPT)
        self._total = Tally()
        self._by_owner: defaultdict[str, Tally] = defaultdict(Tally)
        self._charges_by_status: Counter[str] = Counter()
        self._usd_by_status: defaultdict[str, float] = defaultdict(float)

    def receive(
        self,
        owner: str,
        model_id: str,
        prompt: str,
        received_mono: float,
        provider: str = "replicate",
    ) -> CreateRequest:
        """Enter a create request."""
        # The body was read after the request came in; the wall time goes back to that moment.
        wall_s = time.time() - (time.monotonic() - received_mono)
        request = CreateRequest(owner, model_id, prompt, received_mono, wall_s, provider=provider)
        self._requests.append(request)
        self._total.creates += 1
        self._by_owner[owner].creates += 1
        return request

    def note(self, prediction: Work, event: str) -> None:
        """Follow a prediction; a charge is entered when its run begins."""
        tallies = (self._total, self._by_owner[prediction.owner])
        began = prediction.started_mono is not None
        if event == "accepted":
            for tally in tallies:
                tally.in_flight.up()
        elif event == "start":
            self._charged.append(Charge(prediction))
            for tally in tallies:
                tally.charges += 1
                tally.running.up()
        elif event == "completed":
            for tally in tallies:
                tally.in_flight.down()
                if began:
                    tally.running.down()
            if began:
                self._charges_by_status[prediction.status] += 1
                self._usd_by_status[prediction.status] += prediction.charged_usd

    def charges_json(self, prompt: str) -> bytes:
        """Return totals of all charges, and each charge whose prompt contains `prompt`."""
        by_status = {
            status: {"count": count, "charged_usd": round(self._usd_by_status[status], 9)}
            for status, count in self._charges_by_status.items()
        }
        if self._total.running.now:
            by_status["processing"] = {"count": self._total.running.now, "charged_usd": 0.0}
        totals = {
            "count": self._total.charges,
            "charged_usd": round(sum(self._usd_by_status.values()), 9),
            "by_status": by_status,
        }
        charges = (c.as_json() for c in self._charged if prompt in c.prediction.prompt)
        # The object of the totals is left open, and closed after the charges.
        return b"".join(
            (json.dumps(totals).encode()[:-1], b', "charges": [', b", ".join(charges), b"]}")
        )

    def stats_json(self, *, with_timeline: bool) -> dict[str, Any]:
        """Return counts overall and by owner, and every create request if asked for."""
        stats: dict[str, Any] = {
            **self._total.as_json(),
            "owners": {owner: tally.as_json() for owner, tally in self._by_owner.items()},
        }
        if with_timeline:
            stats["timeline"] = [request.as_json() for request in self._requests]
        return stats


def _charge_json(prediction: Work) -> dict[str, Any]:
    return {
        "provider": prediction.provider,
        "prediction_id": prediction.id,
        "model": prediction.model_id,
        "owner": prediction.owner,
        "prompt": prediction.prompt,
        "input_sha256": prediction.input_digest(),
        "webhook": prediction.webhook,
        "token_suffix": prediction.token_suffix,
        "status": prediction.status,
        "charged_usd": round(prediction.charged_usd, 9),
        **_times(prediction),
    }


def _times(prediction: Work) -> dict[str, float | None]:
    times: dict[str, float | None] = {}
    for name, mono in (
        ("created", prediction.created_mono),
        ("started", prediction.started_mono),
        ("ended", prediction.ended_mono),
    ):
        times[f"{name}_monotonic"] = mono
        times[f"{name}_at"] = None if mono is None else prediction.wall_ns(mono) / 1e9
    return times
