"""Send webhooks: signed, filtered, the last one with retries.

Source: Replicate HTTP API, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from simulator.settings import Settings
from simulator.wire import new_id

if TYPE_CHECKING:
    from simulator.predictions import Prediction

EVENTS = ("start", "output", "logs", "completed")
DEFAULT_EVENTS = frozenset({"output", "completed"})
SECRET_PREFIX = "whsec_"
# With the default base the pauses are 1, 2, 4, ... 32 s: the last try is about a minute late.
ATTEMPTS = 7
KEPT_DELIVERIES = 20_000
WRONG_KEY = b"not the key of this account"

_REPLAY_TYPES: dict[str, type] = {"webhook_id": str, "timestamp": int, "body_suffix": str}


def make_secret(seed: int) -> str:
    """Return the signing secret that belongs to `seed`."""
    key = hashlib.sha256(f"webhook secret {seed}".encode()).digest()
    return SECRET_PREFIX + base64.b64encode(key).decode()


def secret_key(secret: str) -> bytes:
    """Return the key bytes of a secret.

    Raises:
        ValueError: when it is not `whsec_` followed by base64.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"a webhook secret starts with {SECRET_PREFIX}")
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)


def sign(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` header."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


@dataclass(frozen=True, slots=True)
class Message:
    """One event on its way; retries and duplicates keep `webhook_id`."""

    prediction_id: str
    url: str
    event: str
    webhook_id: str
    body: bytes
    wrong_key: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to deliver a message, or, with `attempt` 0, a message that was dropped.

    at: seconds since 1970 when it was over. signed_at: the `webhook-timestamp` sent, in whole
    seconds, and signature the header beside it; None when nothing was sent. status: what the
    receiver answered, or None and an `error`.
    """

    message: Message
    attempt: int
    at: float
    signed_at: int | None
    signature: str | None
    status: int | None
    error: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the entry of the list of deliveries; the body is left out for its size."""
        return {
            "prediction_id": self.message.prediction_id,
            "webhook_id": self.message.webhook_id,
            "event": self.message.event,
            "attempt": self.attempt,
            "url": self.message.url,
            "at": self.at,
            "timestamp": self.signed_at,
            "signature": self.signature,
            "status": self.status,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Replay:
    """A wish to send a webhook once more.

    timestamp: sign anew for this time, in seconds since 1970; None keeps the original time and
    signature. body_suffix: text put after the body once it is signed.
    """

    webhook_id: str
    timestamp: int | None = None
    body_suffix: str = ""


def parse_replay(spec: Mapping[str, Any]) -> Replay:
    """Read the JSON body of `POST /_sim/webhooks/replay`.

    Raises:
        ValueError: when a key is missing or unknown or a value has the wrong type.
    """
    for key, value in spec.items():
        if key not in _REPLAY_TYPES:
            raise ValueError(f"a replay takes no {key!r}")
        if type(value) is not _REPLAY_TYPES[key]:
            raise ValueError(f"{key} must be {_REPLAY_TYPES[key].__name__}")
    if "webhook_id" not in spec:
        raise ValueError("webhook_id is missing")
    return Replay(**spec)


class Webhooks:
    """Deliver the events of each prediction in order, those of different ones side by side."""

    def __init__(self, settings: Settings, secret: str) -> None:
        self._settings = settings
        self._key = secret_key(secret)
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._queues: dict[str, deque[Message]] = {}
        self._held_back: dict[str, list[Message]] = {}
        self._deliveries: deque[Delivery] = deque(maxlen=KEPT_DELIVERIES)

    def note(self, prediction: Prediction, event: str) -> None:
        """Send `event` if the prediction has a webhook that asks for it."""
        order = prediction.order
        # Nothing is sent for `aborted`: the API names only the other three ends.
        if order.webhook is None or event not in order.events or prediction.status == "aborted":
            return
        faults = order.faults
        wrong_key = faults.get("webhook_bad_signature")
        message = Message(
            prediction_id=prediction.id,
            url=order.webhook,
            event=event,
            webhook_id=f"msg_{new_id()}",
            body=json.dumps(prediction.as_json(order.base_url, time.monotonic())).encode(),
            wrong_key=wrong_key is not None and wrong_key.concerns(event),
        )
        drop = faults.get("webhook_drop")
        if drop is not None and drop.concerns(event):
            self._deliveries.append(Delivery(message, 0, time.time(), None, None, None, "dropped"))
            return
        messages = [message]
        duplicate = faults.get("webhook_duplicate")
        if duplicate is not None and duplicate.concerns(event):
            messages *= duplicate.options["copies"]
        delay = faults.get("webhook_delay")
        if delay is not None and delay.concerns(event):
            self._spawn(self._deliver_late(messages, delay.options["seconds"]))
            return
        if "webhook_reorder" in faults and "completed" in order.events:
            held_back = self._held_back.setdefault(prediction.id, [])
            if event != "completed":
                held_back.extend(messages)
                return
            messages += reversed(self._held_back.pop(prediction.id))
        self._enqueue(prediction.id, messages)

    def deliveries_json(self) -> list[dict[str, Any]]:
        """Return the last attempts, oldest first."""
        return [delivery.as_json() for delivery in self._deliveries]

    def last_sent(self, webhook_id: str) -> Delivery | None:
        """Return the last attempt at this message, or None when there was none."""
        for delivery in reversed(self._deliveries):
            if delivery.message.webhook_id == webhook_id and delivery.signature is not None:
                return delivery
        return None

    async def replay(self, delivery: Delivery, wish: Replay) -> tuple[int | None, str | None]:
        """Send a delivery again as `wish` says; return the answer's status, or None and an error.

        It is not the API that sends it, so it does not become a delivery itself.
        """
        message = delivery.message
        if wish.timestamp is None:
            signed_at, signature = delivery.signed_at, delivery.signature
        else:
            signed_at, signature = wish.timestamp, self._sign(message, wish.timestamp)
        body = message.body + wish.body_suffix.encode("utf-8", "replace")
        return await self._post(message, body, f"{signed_at}", f"{signature}")

    async def close(self) -> None:
        """Stop sending; what is not delivered is lost."""
        self._queues.clear()
        self._held_back.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _enqueue(self, prediction_id: str, messages: list[Message]) -> None:
        queue = self._queues.get(prediction_id)
        if queue is not None:
            queue.extend(messages)
            return
        self._queues[prediction_id] = deque(messages)
        self._spawn(self._deliver_queue(prediction_id))

    async def _deliver_queue(self, prediction_id: str) -> None:
        queue = self._queues[prediction_id]
        while queue:
            await self._deliver(queue.popleft())
        self._queues.pop(prediction_id, None)

    async def _deliver_late(self, messages: list[Message], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        for message in messages:
            await self._deliver(message)

    async def _deliver(self, message: Message) -> None:
        attempts = ATTEMPTS if message.event == "completed" else 1
        for attempt in range(1, attempts + 1):
            if await self._attempt(message, attempt):
                return
            if attempt < attempts:
                await asyncio.sleep(self._settings.webhook_retry_base_seconds * 2 ** (attempt - 1))

    async def _attempt(self, message: Message, attempt: int) -> bool:
        signed_at = int(time.time())
        signature = self._sign(message, signed_at)
        status, error = await self._post(message, message.body, f"{signed_at}", signature)
        self._deliveries.append(
            Delivery(message, attempt, time.time(), signed_at, signature, status, error)
        )
        # A redirect is not followed and is not a failure worth a retry either.
        return status is not None and status < 400

    def _sign(self, message: Message, timestamp: int) -> str:
        key = WRONG_KEY if message.wrong_key else self._key
        return sign(key, message.webhook_id, timestamp, message.body)

    async def _post(
        self, message: Message, body: bytes, timestamp: str, signature: str
    ) -> tuple[int | None, str | None]:
        """Return the status of the answer, or None and why there was none."""
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature,
        }
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        timeout = aiohttp.ClientTimeout(total=self._settings.webhook_timeout_seconds)
        try:
            async with self._session.post(
                message.url, data=body, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                return response.status, None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return None, f"{type(error).__name__}: {error}"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
