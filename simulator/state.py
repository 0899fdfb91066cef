"""Everything one simulator holds, put together."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from simulator.faults import RuleBook
from simulator.ledger import Ledger
from simulator.models import ModelTable, load_models
from simulator.predictions import Predictions
from simulator.settings import Settings
from simulator.uploads import Uploads
from simulator.webhooks import Webhooks, make_secret


@dataclass(slots=True)
class Bucket:
    """A token bucket for the create requests of one API token."""

    level: float
    filled_mono: float

    def take(self, per_minute: float, burst: int) -> float:
        """Take one; return 0, or the seconds until there is one again."""
        now_mono = time.monotonic()
        gained = (now_mono - self.filled_mono) * per_minute / 60
        self.level, self.filled_mono = min(float(burst), self.level + gained), now_mono
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) * 60 / per_minute if per_minute else math.inf


class Part(Protocol):
    """What one more provider adds: made anew by `build`, its timers stopped by `close`."""

    def build(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class State:
    """The parts of a running simulator. Made anew by `reset`, the first settings included."""

    first_settings: Settings
    seed: int = 0
    public_url: str | None = None
    tokens: frozenset[str] = frozenset()
    webhook_secret: str = ""
    models: ModelTable = field(default_factory=load_models)
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.webhook_secret = self.webhook_secret or make_secret(self.seed)
        self._build()

    async def reset(self) -> None:
        """Forget predictions, rules, books and files, and return to the first settings."""
        await self.close()
        self._build()

    async def close(self) -> None:
        """Stop all timers and deliveries."""
        self.predictions.clear()
        await self.webhooks.close()
        for part in self.parts:
            await part.close()

    def accepts_token(self, token: str) -> bool:
        """Tell whether an API token is valid."""
        return token in self.tokens if self.tokens else token.startswith("r8_")

    def base_url(self, request: web.Request) -> str:
        """Return the address this simulator is reached at, without a slash at the end."""
        return self.public_url or f"{request.scheme}://{request.host}"

    def throttle(self, token: str) -> float:
        """Count a create request; return 0, or the seconds to wait when there were too many."""
        per_minute, burst = self.settings.rate_per_minute, self.settings.rate_burst
        if per_minute is None:
            return 0.0
        bucket = self.buckets.setdefault(token, Bucket(float(burst), time.monotonic()))
        return bucket.take(per_minute, burst)

    def _build(self) -> None:
        self.settings = copy.deepcopy(self.first_settings)
        self.faults = RuleBook(self.seed)
        self.ledger = Ledger()
        self.uploads = Uploads()
        self.webhooks = Webhooks(self.settings, self.webhook_secret)
        self.buckets: dict[str, Bucket] = {}
        # The books come first, so that whoever is told by webhook finds them written.
        listeners = (self.ledger.note, self.webhooks.note)
        self.predictions = Predictions(self.settings, self.seed, listeners)
        for part in self.parts:
            part.build()


STATE = web.AppKey("state", State)
