"""The routes under /printify/v1: shops, catalogue, uploads, products, publishing.

Words in a token make a special account: `bad` at the start is refused, `two-shops` has two shops,
`disconnected` a shop without a sales channel, `custom` one whose owner must report what became of
publishing. Answers follow what the real service was seen to do: the whole matrix of variants comes
back, tags of the blueprint are added, equal bytes are one upload, an update must cover every
variant. Codes other than 8150, 8251 and 8254 are made up.

Source: developers.printify.com and public reports of measured answers, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web

from simulator.faults import SHOP_OUTCOME, Rule
from simulator.shops import (
    HALF_HOUR_S,
    REFUSED_TOKENS,
    SHOPS,
    Account,
    BadImage,
    ImageFile,
    Shops,
    Window,
    inspect_image,
    serve,
    whole_seconds,
)
from simulator.wire import json_response

BASE = "/printify/v1"
INVALID, MISMATCH, LOCKED, BELOW_COST, NOT_CONNECTED, NO_IMAGE = 8150, 8251, 8252, 8253, 8254, 10300
ACCEPTED_TYPES = ("image/png", "image/jpeg", "image/svg+xml")
LONGEST_BODY_TEXT = 100_000
MAX_PRODUCTS_A_PAGE = 50
UPLOADS_A_PAGE, MAX_UPLOADS_A_PAGE = 10, 100
SYNC_FLAGS = ("title", "description", "images", "variants", "tags")
PLACEMENT = ("x", "y", "scale")

Handler = Callable[["Call"], Awaitable[web.Response]]


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        reason: str,
        code: int = INVALID,
        status: int = 400,
        message: str = "Validation failed.",
    ) -> None:
        super().__init__(reason)
        self.response = _error(status, code, message, reason)


@dataclass(frozen=True, slots=True)
class Shop:
    """One shop of an account; a disconnected one sells nowhere."""

    id: int
    title: str
    sales_channel: str

    def as_json(self) -> dict[str, Any]:
        """Return the shop as it is listed."""
        return {"id": self.id, "title": self.title, "sales_channel": self.sales_channel}


@dataclass(slots=True)
class Upload:
    """An image in the library of an account."""

    id: str
    file_name: str
    file: ImageFile
    uploaded_wall_s: float
    is_archived: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the image as the API describes it."""
        return {
            "id": self.id,
            "file_name": self.file_name,
            "height": self.file.height,
            "width": self.file.width,
            "size": self.file.size_bytes,
            "mime_type": self.file.mime_type,
            "preview_url": f"https://pfy-prod-image-storage.s3.us-east-2.amazonaws.com/{self.id}",
            "upload_time": _time(self.uploaded_wall_s),
        }


@dataclass(slots=True, eq=False)
class Product:
    """A product, and where its publishing stands.

    ends_mono: when the publishing under way ends; None for one that has no end. outcome: the rule
    that decides how it ends, if any.
    """

    id: str
    shop: Shop
    blueprint: dict[str, Any]
    provider: dict[str, Any]
    body: dict[str, Any]
    variants: dict[int, dict[str, Any]]
    created_wall_s: float
    updated_wall_s: float
    publishes: int = 0
    is_publishing: bool = False
    ends_mono: float | None = None
    outcome: Rule | None = None
    external: dict[str, str] | None = None

    def settle(self) -> None:
        """Let publishing end whose time has come."""
        if not self.is_publishing or self.ends_mono is None or time.monotonic() < self.ends_mono:
            return
        self.is_publishing = False
        if self.outcome is None and self.external is None:
            number = str(int(self.id[:12], 16) % 10**13)
            handle = f"https://{self.shop.id}.shop.example/products/{number}"
            self.external = {"id": number, "handle": handle}

    def as_json(self) -> dict[str, Any]:
        """Return the product; `external` is absent until the sales channel has it."""
        self.settle()
        body: dict[str, Any] = {
            "id": self.id,
            "title": self.body["title"],
            "description": self.body["description"],
            "tags": [*self.body["tags"], *self.blueprint["tags"]],
            "options": _options(self.provider),
            "variants": list(self.variants.values()),
            "images": _mock_ups(self),
            "created_at": _offset_time(self.created_wall_s),
            "updated_at": _offset_time(self.updated_wall_s),
            "visible": self.body.get("visible", True),
            "is_locked": self.is_publishing,
            "is_deleted": False,
            "blueprint_id": self.blueprint["id"],
            "print_provider_id": self.provider["id"],
            "user_id": self.shop.id + 1,
            "shop_id": self.shop.id,
            "print_areas": self.body["print_areas"],
            "print_details": [],
            "sales_channel_properties": [],
        }
        if self.external is not None:
            body["external"] = dict(self.external)
        return body


@dataclass(slots=True, eq=False)
class PrintifyAccount(Account):
    """What one token has uploaded, made and published. Products by id, the oldest first."""

    uploads: dict[str, Upload] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    created: int = 0
    publishes: list[dict[str, Any]] = field(default_factory=list)
    windows: dict[str, Window] = field(default_factory=dict)

    def shops(self) -> list[Shop]:
        """Return the shops, the same ones for the same token."""
        first = 1_000_000 + zlib.crc32(self.token.encode()) % 20_000_000
        sells = "shopify"
        if "disconnected" in self.token:
            sells = "disconnected"
        elif "custom" in self.token:
            sells = "custom_integration"
        shops = [Shop(first, "My new store", sells)]
        if "two-shops" in self.token:
            shops.append(Shop(first + 1, "My second store", sells))
        return shops

    def as_json(self) -> dict[str, Any]:
        """Return the books of the account."""
        products = [product.as_json() for product in self.products.values()]
        return {
            **Account.as_json(self),
            "products_created": self.created,
            "products": [
                {
                    **{key: p[key] for key in ("id", "shop_id", "title", "tags", "is_locked")},
                    "external": p.get("external"),
                    "variants": [
                        {"id": v["id"], "price": v["price"]}
                        for v in p["variants"]
                        if v["is_enabled"]
                    ],
                    "image_ids": _image_ids(p["print_areas"]),
                    "publishes": self.products[p["id"]].publishes,
                }
                for p in products
            ],
            "uploads": [
                {**u.as_json(), "sha256": u.file.sha256, "is_archived": u.is_archived}
                for u in self.uploads.values()
            ],
            "publishes": list(self.publishes),
        }


@dataclass(frozen=True, slots=True)
class Call:
    """One request and what answers it."""

    part: Shops
    request: web.Request
    account: PrintifyAccount
    text: str
    rules: dict[str, Rule]

    def body(self) -> dict[str, Any]:
        """Return the body, an object. Raises Refusal."""
        try:
            body = json.loads(self.text)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Refusal("The request body must be a JSON object.")
        return body

    def shop(self) -> Shop:
        """Return the shop in the path. Raises Refusal."""
        for shop in self.account.shops():
            if str(shop.id) == self.request.match_info["shop"]:
                return shop
        raise _not_found()

    def product(self) -> Product:
        """Return the product in the path, which is in the shop in the path. Raises Refusal."""
        shop, product = self.shop(), self.account.products.get(self.request.match_info["id"])
        if product is None or product.shop != shop:
            raise _not_found()
        product.settle()
        return product

    def upload(self) -> Upload:
        """Return the image in the path. Raises Refusal."""
        upload = self.account.uploads.get(self.request.match_info["id"])
        if upload is None:
            raise _not_found()
        return upload

    def number(self, name: str, default: int, most: int) -> int:
        """Return a number of the query, at most `most`. Raises Refusal."""
        text = self.request.query.get(name)
        if text is None:
            return default
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise Refusal(f"{name}: The {name} must be between 1 and {most}.")
        return int(text)


def mount(app: web.Application) -> None:
    """Add Printify to a simulator that has shops."""
    for method, path, operation, handler in _ROUTES:
        app.router.add_route(method, BASE + path, _guarded(operation, handler))


def _guarded(operation: str, handler: Handler) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Let through who has a token, names its agent, and has not called too often."""

    async def handle(request: web.Request) -> web.StreamResponse:
        part = request.app[SHOPS]
        token = request.headers.get("Authorization", "")
        if not token.startswith("Bearer ") or token[7:].startswith(REFUSED_TOKENS) or not token[7:]:
            return json_response({"error": "Unauthenticated."}, 401)
        account = part.account(PrintifyAccount, "printify", None, token[7:])
        text = (await request.read()).decode("utf-8", "replace")

        async def answer(rules: dict[str, Rule]) -> web.Response:
            limits = _take(part, account, operation)
            if limits.wait_s > 0:
                return _throttled(whole_seconds(limits.wait_s), limits)
            if not request.headers.get("User-Agent"):
                return _error(403, INVALID, "Forbidden.", "The User-Agent header is required.")
            try:
                response = await handler(Call(part, request, account, text, rules))
            except Refusal as refusal:
                response = refusal.response
            response.headers.update(limits.headers())
            return response

        def throttled(rule: Rule) -> web.Response:
            retry_after = rule.options["retry_after"]
            return _throttled(None if retry_after is None else str(retry_after))

        return await serve(request, account, operation, text[:LONGEST_BODY_TEXT], answer, throttled)

    return handle


@dataclass(frozen=True, slots=True)
class Limits:
    """How an account stands with the limit that a call falls under."""

    limit: int
    left: int
    wait_s: float = 0.0

    def headers(self) -> dict[str, str]:
        """Return the headers that tell."""
        return {"X-RateLimit-Limit": str(self.limit), "X-RateLimit-Remaining": str(self.left)}


def _take(part: Shops, account: PrintifyAccount, operation: str) -> Limits:
    """Count a call against the limit of all calls and that of its sort."""
    settings = part.settings
    limits = [("all", settings.requests_per_minute, 60.0)]
    if operation.startswith("catalogue_"):
        limits.append(("catalogue", settings.catalogue_per_minute, 60.0))
    if operation == "publish_product":
        limits.append(("publish", settings.publishes_per_half_hour, HALF_HOUR_S))
    for name, limit, seconds in limits:
        window = account.windows.setdefault(name, Window(seconds))
        wait_s = window.take(limit)
        if wait_s > 0:
            return Limits(limit, 0, wait_s)
    return Limits(limit, window.left(limit))


async def _list_shops(call: Call) -> web.Response:
    return json_response([shop.as_json() for shop in call.account.shops()])


async def _list_blueprints(call: Call) -> web.Response:
    return json_response([_blueprint_json(blueprint) for blueprint in catalogue().values()])


async def _get_blueprint(call: Call) -> web.Response:
    return json_response(_blueprint_json(_blueprint_of(call)))


async def _list_providers(call: Call) -> web.Response:
    providers = _blueprint_of(call)["providers"]
    return json_response([{"id": p["id"], "title": p["title"]} for p in providers.values()])


async def _list_variants(call: Call) -> web.Response:
    provider = _blueprint_of(call)["providers"].get(_digits(call.request.match_info["provider"]))
    if provider is None:
        raise _not_found()
    variants = [
        {
            **{key: variant[key] for key in ("id", "title", "options")},
            "placeholders": provider["placeholders"],
        }
        for variant in provider["variants"].values()
    ]
    body = {"id": provider["id"], "title": provider["title"], "variants": variants}
    return json_response(body)


async def _list_uploads(call: Call) -> web.Response:
    uploads = [u.as_json() for u in reversed(call.account.uploads.values()) if not u.is_archived]
    return _page(call, uploads, UPLOADS_A_PAGE, MAX_UPLOADS_A_PAGE)


async def _get_upload(call: Call) -> web.Response:
    return json_response(call.upload().as_json())


async def _create_upload(call: Call) -> web.Response:
    """Take an image in the body or from a URL; the same bytes are the same image."""
    body = call.body()
    name = _text(body, "file_name")
    if ("url" in body) == ("contents" in body):
        raise Refusal("url: Exactly one of url and contents is required.")
    loop = asyncio.get_running_loop()
    try:
        if "url" in body:
            url = _text(body, "url")
            if not url.startswith(("https://", "http://")):
                raise Refusal("url: The url format is invalid.")
            data = await call.part.fetch(url)
        else:
            contents = _text(body, "contents")
            data = await loop.run_in_executor(None, base64.b64decode, contents, None, True)
        file = await loop.run_in_executor(None, inspect_image, data)
    except binascii.Error as error:
        raise Refusal("contents: The contents must be valid base64.") from error
    except BadImage as error:
        raise Refusal(str(error), NO_IMAGE, message="Operation failed.") from error
    if file.mime_type not in ACCEPTED_TYPES:
        raise Refusal(f"The image type {file.mime_type} is not supported.", NO_IMAGE)
    upload_id = file.sha256[:24]
    upload = call.account.uploads.get(upload_id)
    if upload is None:
        upload = call.account.uploads[upload_id] = Upload(upload_id, name, file, time.time())
    upload.is_archived = False
    return json_response(upload.as_json())


async def _archive_upload(call: Call) -> web.Response:
    call.upload().is_archived = True
    return json_response({})


async def _list_products(call: Call) -> web.Response:
    shop = call.shop()
    products = [p for p in reversed(call.account.products.values()) if p.shop == shop]
    return _page(call, products, MAX_PRODUCTS_A_PAGE, MAX_PRODUCTS_A_PAGE)


async def _create_product(call: Call) -> web.Response:
    shop, body = call.shop(), call.body()
    for name in ("title", "description"):
        _text(body, name)
    blueprint = catalogue().get(_whole(body, "blueprint_id"))
    provider = blueprint["providers"].get(_whole(body, "print_provider_id")) if blueprint else None
    if blueprint is None or provider is None:
        raise Refusal("Print provider does not print selected blueprint.", MISMATCH)
    asked = _variants(body, provider)
    covered = _covered(call.account, body, provider)
    missing = [variant_id for variant_id in asked if variant_id not in covered]
    if missing:
        raise Refusal(_NOT_COVERED, MISMATCH)
    variants = {
        variant_id: {
            "id": variant_id,
            "sku": str(uuid.uuid4().int % 10**20),
            "cost": variant["cost"],
            "price": variant["cost"],
            "title": variant["title"],
            "grams": 180,
            "is_enabled": False,
            "is_default": False,
            "is_available": True,
            "options": variant["option_ids"],
            "quantity": 1,
            **asked.get(variant_id, {}),
        }
        for variant_id, variant in provider["variants"].items()
    }
    now_s = time.time()
    kept = {"title": body["title"], "description": body["description"], "tags": _tags(body)}
    kept |= {"print_areas": _placed(call.account, body, provider, every_variant=True)}
    kept |= {"visible": body.get("visible", True)}
    product = Product(
        uuid.uuid4().hex[:24], shop, blueprint, provider, kept, variants, now_s, now_s
    )
    call.account.products[product.id] = product
    call.account.created += 1
    return json_response(product.as_json())


async def _get_product(call: Call) -> web.Response:
    return json_response(call.product().as_json())


async def _update_product(call: Call) -> web.Response:
    """Change what the body names; blueprint and print provider stay, without a word."""
    product, body = call.product(), call.body()
    _refuse_locked(product)
    changes: dict[str, Any] = {}
    for name in ("title", "description"):
        if name in body:
            changes[name] = _text(body, name)
    if "tags" in body:
        changes["tags"] = _tags(body)
    if "visible" in body:
        changes["visible"] = bool(body["visible"])
    variants = _variants(body, product.provider) if "variants" in body else {}
    if "print_areas" in body:
        if set(_covered(call.account, body, product.provider)) != set(product.variants):
            raise Refusal(_NOT_COVERED, MISMATCH)
        changes["print_areas"] = _placed(call.account, body, product.provider, every_variant=False)
    product.body |= changes
    for variant_id, change in variants.items():
        product.variants[variant_id] |= change
    product.updated_wall_s = time.time()
    return json_response(product.as_json())


async def _delete_product(call: Call) -> web.Response:
    product = call.product()
    _refuse_locked(product)
    del call.account.products[product.id]
    return json_response({})


async def _publish_product(call: Call) -> web.Response:
    """Lock the product until the sales channel has it."""
    product, body = call.product(), call.body()
    for name in SYNC_FLAGS:
        if not isinstance(body.get(name), bool):
            raise Refusal(f"{name}: The {name} field must be true or false.")
    _refuse_locked(product)
    if product.shop.sales_channel == "disconnected":
        reason = (
            f'Shop #{product.shop.id} of product "{product.body["title"]}" is not connected to '
            "sales channel"
        )
        raise Refusal(reason, NOT_CONNECTED)
    if any(v["is_enabled"] and v["price"] < v["cost"] for v in product.variants.values()):
        raise Refusal("The retail price is below the production cost.", BELOW_COST)
    product.publishes += 1
    product.is_publishing = True
    product.outcome = call.rules.get(SHOP_OUTCOME)
    hangs = product.outcome is not None and product.outcome.kind == "shop_hangs"
    is_reported = product.shop.sales_channel == "custom_integration"
    seconds = call.part.settings.publish_seconds
    product.ends_mono = None if hangs or is_reported else time.monotonic() + seconds
    call.account.publishes.append({"product_id": product.id, "at": time.time()})
    return json_response({})


async def _publishing_succeeded(call: Call) -> web.Response:
    product, external = call.product(), call.body().get("external")
    if not isinstance(external, dict):
        raise Refusal("external: The external field is required.")
    names = ("id", "handle")
    product.external = {name: _text(external, name, f"external.{name}") for name in names}
    product.is_publishing = False
    return json_response({"product_id": product.id})


async def _publishing_failed(call: Call) -> web.Response:
    product = call.product()
    _text(call.body(), "reason")
    product.is_publishing = False
    return json_response({"product_id": product.id})


async def _unpublish_product(call: Call) -> web.Response:
    call.product().external = None
    return json_response({})


_ROUTES: tuple[tuple[str, str, str, Handler], ...] = (
    ("GET", "/shops.json", "list_shops", _list_shops),
    ("GET", "/catalog/blueprints.json", "catalogue_blueprints", _list_blueprints),
    ("GET", "/catalog/blueprints/{blueprint}.json", "catalogue_blueprint", _get_blueprint),
    (
        "GET",
        "/catalog/blueprints/{blueprint}/print_providers.json",
        "catalogue_print_providers",
        _list_providers,
    ),
    (
        "GET",
        "/catalog/blueprints/{blueprint}/print_providers/{provider}/variants.json",
        "catalogue_variants",
        _list_variants,
    ),
    ("GET", "/uploads.json", "list_uploads", _list_uploads),
    ("POST", "/uploads/images.json", "create_upload", _create_upload),
    ("GET", "/uploads/{id}.json", "get_upload", _get_upload),
    ("POST", "/uploads/{id}/archive.json", "archive_upload", _archive_upload),
    ("GET", "/shops/{shop}/products.json", "list_products", _list_products),
    ("POST", "/shops/{shop}/products.json", "create_product", _create_product),
    ("GET", "/shops/{shop}/products/{id}.json", "get_product", _get_product),
    ("PUT", "/shops/{shop}/products/{id}.json", "update_product", _update_product),
    ("DELETE", "/shops/{shop}/products/{id}.json", "delete_product", _delete_product),
    ("POST", "/shops/{shop}/products/{id}/publish.json", "publish_product", _publish_product),
    (
        "POST",
        "/shops/{shop}/products/{id}/publishing_succeeded.json",
        "publishing_succeeded",
        _publishing_succeeded,
    ),
    (
        "POST",
        "/shops/{shop}/products/{id}/publishing_failed.json",
        "publishing_failed",
        _publishing_failed,
    ),
    (
        "POST",
        "/shops/{shop}/products/{id}/unpublish.json",
        "unpublish_product",
        _unpublish_product,
    ),
)

_NOT_COVERED = (
    "Variants do not match selected blueprint and print provider. Please make sure that all "
    "product variants are present in the `print_areas.*.variant_ids` field"
)


@lru_cache(maxsize=1)
def catalogue() -> dict[int, dict[str, Any]]:
    """Return the blueprints by id, in each its print providers and in those the variants by id.

    Identifiers and sizes are like the real ones, a small part of them.
    """
    blueprints: dict[int, dict[str, Any]] = {}
    for spec in json.loads(Path(__file__).with_name("printify_catalogue.json").read_text()):
        providers = {}
        for own in spec["providers"]:
            values = _option_values(own["variants"])
            providers[own["id"]] = {
                "id": own["id"],
                "title": own["title"],
                "placeholders": [
                    {"position": position, "height": height, "width": width}
                    for position, width, height in own["placeholders"]
                ],
                "values": values,
                "variants": {
                    variant_id: {
                        "id": variant_id,
                        "title": title,
                        "options": options,
                        "option_ids": [values[pair] for pair in options.items()],
                        "cost": cost,
                    }
                    for variant_id, title, options, cost in own["variants"]
                },
            }
        blueprints[spec["id"]] = {**spec, "providers": providers}
    return blueprints


def _option_values(variants: list[list[Any]]) -> dict[tuple[str, str], int]:
    """Return a number for each value of each option."""
    pairs = dict.fromkeys(pair for variant in variants for pair in variant[2].items())
    return {pair: zlib.crc32("/".join(pair).encode()) % 10_000 for pair in pairs}


def _options(provider: dict[str, Any]) -> list[dict[str, Any]]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for (name, title), number in provider["values"].items():
        by_name.setdefault(name, []).append({"id": number, "title": title})
    return [
        {"name": name.capitalize(), "type": name, "values": values}
        for name, values in by_name.items()
    ]


def _mock_ups(product: Product) -> list[dict[str, Any]]:
    enabled = [v["id"] for v in product.variants.values() if v["is_enabled"]]
    source = f"https://images.printify.com/mockup/{product.id}/front.jpg"
    mock_up = {"src": source, "variant_ids": enabled, "position": "front", "is_default": True}
    return [mock_up]


def _blueprint_json(blueprint: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "title", "brand", "model")
    return {**{n: blueprint[n] for n in names}, "description": "", "images": []}


def _blueprint_of(call: Call) -> dict[str, Any]:
    blueprint = catalogue().get(_digits(call.request.match_info["blueprint"]))
    if blueprint is None:
        raise _not_found()
    return blueprint


def _variants(body: dict[str, Any], provider: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return what the body says of variants, by id. Raises Refusal."""
    variants = _list(body, "variants")
    known: dict[int, dict[str, Any]] = {}
    for index, variant in enumerate(variants):
        at = f"variants.{index}"
        if not isinstance(variant, dict):
            raise Refusal(f"{at}: The {at} must be an object.")
        variant_id = _whole(variant, "id", f"{at}.id")
        price = _whole(variant, "price", f"{at}.price")
        if price < 0:
            raise Refusal(f"{at}.price: The {at}.price must be at least 0.")
        if variant_id not in provider["variants"] or variant_id in known:
            raise Refusal(_NOT_COVERED, MISMATCH)
        known[variant_id] = {"price": price, "is_enabled": bool(variant.get("is_enabled", True))}
        if "sku" in variant:
            known[variant_id]["sku"] = _text(variant, "sku", f"{at}.sku")
    return known


def _covered(
    account: PrintifyAccount, body: dict[str, Any], provider: dict[str, Any]
) -> dict[int, int]:
    """Return the print area of each variant. Raises Refusal, also for two of one variant."""
    covered: dict[int, int] = {}
    for index, area in enumerate(_list(body, "print_areas")):
        at = f"print_areas.{index}"
        if not isinstance(area, dict):
            raise Refusal(f"{at}: The {at} must be an object.")
        for variant_id in _list(area, "variant_ids", f"{at}.variant_ids"):
            if variant_id not in provider["variants"] or variant_id in covered:
                raise Refusal(_NOT_COVERED, MISMATCH)
            covered[variant_id] = index
        _check_placeholders(account, area, at, provider)
    return covered


def _check_placeholders(
    account: PrintifyAccount, area: dict[str, Any], at: str, provider: dict[str, Any]
) -> None:
    positions = [placeholder["position"] for placeholder in provider["placeholders"]]
    for number, placeholder in enumerate(_list(area, "placeholders", f"{at}.placeholders")):
        here = f"{at}.placeholders.{number}"
        if not isinstance(placeholder, dict) or placeholder.get("position") not in positions:
            raise Refusal(f"{here}.position: The selected {here}.position is invalid.", MISMATCH)
        images = placeholder.get("images")
        if not isinstance(images, list):
            raise Refusal(f"{here}.images: The {here}.images must be an array.")
        for place, image in enumerate(images):
            there = f"{here}.images.{place}"
            if not isinstance(image, dict):
                raise Refusal(f"{there}: The {there} must be an object.")
            for name in PLACEMENT:
                value = image.get(name)
                if not isinstance(value, int | float) or isinstance(value, bool):
                    raise Refusal(f"{there}.{name}: The {there}.{name} must be a number.")
            _whole(image, "angle", f"{there}.angle")
            if _text(image, "id", f"{there}.id") not in account.uploads:
                raise Refusal("Provided images do not exist", NO_IMAGE, message="Operation failed.")


def _placed(
    account: PrintifyAccount,
    body: dict[str, Any],
    provider: dict[str, Any],
    *,
    every_variant: bool,
) -> list[dict[str, Any]]:
    """Return the print areas as they are kept: more fields of images, unused places empty.

    every_variant: variants that no area names are put into the first one.
    """
    areas = []
    named = {v for area in body["print_areas"] for v in area["variant_ids"]}
    for index, area in enumerate(body["print_areas"]):
        images = {p["position"]: p["images"] for p in area["placeholders"]}
        others = [v for v in provider["variants"] if v not in named]
        adds = others if every_variant and index == 0 else []
        areas.append(
            {
                "variant_ids": [*area["variant_ids"], *adds],
                "placeholders": [
                    {
                        "position": place["position"],
                        "images": [
                            _layer(account.uploads[image["id"]], image)
                            for image in images.get(place["position"], [])
                        ],
                    }
                    for place in provider["placeholders"]
                ],
                "background": area.get("background", ""),
            }
        )
    return areas


def _layer(upload: Upload, image: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: image[name] for name in ("id", *PLACEMENT, "angle")},
        "name": upload.file_name,
        "type": upload.file.mime_type,
        "width": upload.file.width,
        "height": upload.file.height,
        "flipX": False,
        "flipY": False,
        "src": upload.as_json()["preview_url"],
    }


def _image_ids(areas: list[dict[str, Any]]) -> list[str]:
    places = [place for area in areas for place in area["placeholders"]]
    return [image["id"] for place in places for image in place["images"]]


def _tags(body: dict[str, Any]) -> list[str]:
    tags = body.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise Refusal("tags: The tags must be an array of strings.")
    return tags


def _refuse_locked(product: Product) -> None:
    if product.is_publishing:
        reason = f"Product {product.id} is disabled for editing"
        raise Refusal(reason, LOCKED, message="Operation failed.")


def _page(call: Call, entries: list[Any], usual: int, most: int) -> web.Response:
    """Answer with one page of a list, as Laravel pages."""
    size, page = call.number("limit", usual, most), call.number("page", 1, 10**9)
    pages, first = max(1, -(-len(entries) // size)), (page - 1) * size
    here = [e if isinstance(e, dict) else e.as_json() for e in entries[first : first + size]]

    def link(number: int) -> str:
        return f"/?page={number}"

    return json_response(
        {
            "current_page": page,
            "data": here,
            "first_page_url": link(1),
            "from": first + 1 if here else None,
            "last_page": pages,
            "last_page_url": link(pages),
            "next_page_url": link(page + 1) if page < pages else None,
            "path": "/",
            "per_page": size,
            "prev_page_url": link(page - 1) if page > 1 else None,
            "to": first + len(here) if here else None,
            "total": len(entries),
        }
    )


def _text(body: dict[str, Any], name: str, at: str | None = None) -> str:
    value, at = body.get(name), at or name
    if value is None or value == "":
        raise Refusal(f"{at}: The {at.replace('_', ' ')} field is required.")
    if not isinstance(value, str):
        raise Refusal(f"{at}: The {at.replace('_', ' ')} must be a string.")
    return value


def _whole(body: dict[str, Any], name: str, at: str | None = None) -> int:
    value, at = body.get(name), at or name
    if value is None:
        raise Refusal(f"{at}: The {at.replace('_', ' ')} field is required.")
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refusal(f"{at}: The {at.replace('_', ' ')} must be an integer.")
    return value


def _list(body: dict[str, Any], name: str, at: str | None = None) -> list[Any]:
    value, at = body.get(name), at or name
    if not value:
        raise Refusal(f"{at}: The {at.replace('_', ' ')} field is required.")
    if not isinstance(value, list):
        raise Refusal(f"{at}: The {at.replace('_', ' ')} must be an array.")
    return value


def _digits(text: str) -> int:
    return int(text) if text.isdigit() else -1


def _not_found() -> Refusal:
    refusal = Refusal("Not found", status=404)
    refusal.response = json_response({"error": "Not found", "request_id": uuid.uuid4().hex}, 404)
    return refusal


def _throttled(retry_after: str | None, limits: Limits | None = None) -> web.Response:
    response = json_response({"message": "Too Many Attempts."}, 429)
    if limits is not None:
        response.headers.update(limits.headers())
    if retry_after is not None:
        response.headers["Retry-After"] = retry_after
    return response


def _error(status: int, code: int, message: str, reason: str) -> web.Response:
    errors = {"reason": reason, "code": code}
    body = {"status": "error", "code": code, "message": message, "errors": errors}
    return json_response(body, status)


def _time(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _offset_time(wall_s: float) -> str:
    return _time(wall_s) + "+00:00"
