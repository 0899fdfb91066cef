"""What the simulated shops share: accounts and their books, limits, faults, images to fetch.

Every access token is an account of its own; one that starts with `bad` is refused. Books of every
call and of all that was made are at `GET /_sim/shops`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from PIL import Image

from simulator.faults import SHOP_ANSWER, Rule
from simulator.outputs import cut_connection
from simulator.settings import Adjustable, SettingsError
from simulator.state import STATE, State
from simulator.wire import html_page, json_response

REFUSED_TOKENS = "bad"
FETCH_S = 20.0
LARGEST_FETCH_BYTES = 64 * 1024 * 1024
HALF_HOUR_S = 1800.0
# Pillow's names of formats.
MIME_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(slots=True)
class ShopSettings(Adjustable):
    """What can be set by `POST /_sim/shops/settings`."""

    publish_seconds: float = 1.0  # from Printify's publish call to the end of the lock
    media_seconds: float = 0.5  # from UPLOADED to READY at Shopify, half of it as PROCESSING
    requests_per_minute: int = 600  # Printify's limits, each of an account
    catalogue_per_minute: int = 100
    publishes_per_half_hour: int = 200
    points: float = 2000.0  # Shopify's bucket of query costs, and how fast it fills
    points_per_second: float = 100.0


class Window:
    """The calls of the last so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls: deque[float] = deque()

    def take(self, limit: int) -> float:
        """Count a call; return 0, or the seconds to wait when there were `limit` already."""
        now_mono = time.monotonic()
        while self._calls and now_mono - self._calls[0] >= self._seconds:
            self._calls.popleft()
        if len(self._calls) >= limit:
            first_mono = self._calls[0] if self._calls else now_mono
            return self._seconds - (now_mono - first_mono)
        self._calls.append(now_mono)
        return 0.0

    def left(self, limit: int) -> int:
        """Return how many more calls are allowed now."""
        return max(0, limit - len(self._calls))


@dataclass(slots=True, eq=False)
class Account:
    """What one token has done. Each channel adds what it keeps.

    calls: by operation, refused ones included. answers: by HTTP status, `dropped` when there was
    none.
    """

    channel: str
    shop: str | None
    token: str
    calls: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the books of the account."""
        return {
            "channel": self.channel,
            "shop": self.shop,
            "token_suffix": self.token[-4:],
            "calls": dict(self.calls),
            "answers": dict(self.answers),
        }


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What is known of an image file."""

    width: int
    height: int
    mime_type: str
    size_bytes: int
    sha256: str


class BadImage(Exception):
    """Bytes that are no image, or a URL that gave none."""


A = TypeVar("A", bound=Account)


class Shops:
    """The part of a simulator that all shops share."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._session: aiohttp.ClientSession | None = None

    def build(self) -> None:
        """Forget all accounts, and return to the first settings."""
        self.settings = ShopSettings()
        self._accounts: dict[tuple[str, str | None, str], Account] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop what is done in the background, and close what was opened to fetch images."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def account(self, kind: type[A], channel: str, shop: str | None, token: str) -> A:
        """Return the account of a token, new when it was never seen."""
        key = (channel, shop, token)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = kind(channel, shop, token)
        assert isinstance(account, kind)
        return account

    def accounts(self, kind: type[A]) -> list[A]:
        """Return the accounts of one channel."""
        return [account for account in self._accounts.values() if isinstance(account, kind)]

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something while requests are answered."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def books(self, token: str | None) -> list[dict[str, Any]]:
        """Return the books of all accounts, or of those with `token`."""
        accounts = self._accounts.values()
        return [a.as_json() for a in accounts if token is None or a.token == token]

    async def fetch(self, url: str) -> bytes:
        """Return what is at `url`.

        Raises:
            BadImage: when there is no answer, another status than 200, or too much.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        timeout = aiohttp.ClientTimeout(total=FETCH_S)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                if response.status != 200:
                    raise BadImage(f"{url} answered {response.status}")
                data = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    data += chunk
                    if len(data) > LARGEST_FETCH_BYTES:
                        raise BadImage(f"{url} is too large")
                return bytes(data)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise BadImage(f"{url}: {type(error).__name__}") from error


SHOPS = web.AppKey("shops", Shops)


def mount(app: web.Application) -> None:
    """Add to a simulator what the shops share."""
    part = Shops(app[STATE])
    part.build()
    app[SHOPS] = part
    app[STATE].parts.append(part)
    app.router.add_get("/_sim/shops", _get_books)
    app.router.add_get("/_sim/shops/settings", _get_settings)
    app.router.add_post("/_sim/shops/settings", _change_settings)


async def serve(
    request: web.Request,
    account: Account,
    operation: str,
    body: str,
    handle: Callable[[dict[str, Rule]], Awaitable[web.Response]],
    throttled: Callable[[Rule], web.Response],
) -> web.StreamResponse:
    """Enter a call in the books, and answer it by `handle` unless a rule says otherwise.

    body: what the `prompt` of a rule must be part of. throttled: the channel's answer to too many
    calls.
    """
    account.calls[operation] += 1
    book = request.app[STATE].faults
    refusal = book.shop_refusal(account.channel, operation, body)
    if refusal is not None:
        if refusal.kind == "shop_drop_before":
            account.answers["dropped"] += 1
            return cut_connection(request)
        response = throttled(refusal) if refusal.kind == "shop_throttled" else _refused(refusal)
        account.answers[str(response.status)] += 1
        return response
    rules = book.for_shop(account.channel, operation, body)
    response = await handle(rules)
    rule = rules.get(SHOP_ANSWER)
    if rule is not None and rule.kind == "shop_drop_after":
        account.answers["dropped"] += 1
        return cut_connection(request, reset=True)
    if rule is not None and rule.kind == "shop_status_after":
        response = html_page(rule.options["status"])
    elif rule is not None and rule.kind == "shop_garbage":
        response = web.Response(text=rule.options["body"], content_type="application/json")
    elif rule is not None:
        await asyncio.sleep(rule.options["seconds"])
    account.answers[str(response.status)] += 1
    return response


def inspect_image(data: bytes) -> ImageFile:
    """Return what an image file is.

    Raises:
        BadImage: when it cannot be opened as an image.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if data.lstrip()[:5] in (b"<svg ", b"<?xml"):
        return ImageFile(0, 0, "image/svg+xml", len(data), sha256)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
            mime_type = MIME_TYPES.get(image.format or "", "application/octet-stream")
            return ImageFile(image.width, image.height, mime_type, len(data), sha256)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage("the file is no image") from error


def whole_seconds(wait_s: float) -> str:
    """Return a `Retry-After` of at least one second."""
    return str(max(1, math.ceil(wait_s)))


def _refused(rule: Rule) -> web.Response:
    status, text = rule.options["status"], rule.options["body"]
    if text is None:
        response = html_page(status)
    else:
        content_type = rule.options["content_type"] or "application/json"
        response = web.Response(text=text, status=status, content_type=content_type)
    if rule.options["retry_after"] is not None:
        response.headers["Retry-After"] = str(rule.options["retry_after"])
    return response


async def _get_books(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/shops?token=<whole token>`."""
    accounts = request.app[SHOPS].books(request.query.get("token"))
    return json_response({"accounts": accounts})


async def _get_settings(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/shops/settings`."""
    return json_response(request.app[SHOPS].settings.as_json())


async def _change_settings(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/shops/settings`."""
    settings = request.app[SHOPS].settings
    try:
        changes = json.loads(await request.read())
        if not isinstance(changes, dict):
            raise SettingsError("the body must be a JSON object")
        settings.update(changes)
    except ValueError as error:
        return json_response({"error": str(error)}, 400)
    return json_response(settings.as_json())
