"""A simulated Shopify shop: products, media, publications, staged uploads.

Methods named as fields of the schema answer them; they take the field's arguments and return plain
dictionaries, in which a function stands for a field with arguments.

Source: shopify.dev, Admin GraphQL 2025-10 to 2026-10, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from graphql import GraphQLError

from simulator.faults import SHOP_OUTCOME, Rule
from simulator.shops import Account, BadImage, ImageFile, Shops, inspect_image

STAGED = "/shopify-staged-uploads"
MAX_FIRST = 250
MAX_OPTIONS, MAX_VARIANTS, LONGEST_TITLE = 3, 2048, 255
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 20 * 1024 * 1024, 25_000_000
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
ONLINE_STORE = "Online Store"
SCOPES: tuple[str, ...] = ("read_products", "write_products", "write_files", "read_publications")
SCOPES += ("write_publications",)

Fields = dict[str, Any]


@dataclass(slots=True)
class Target:
    """Where a file may be put, and the file once it is there."""

    key: str
    resource_url: str
    method: str
    mime_type: str
    parameters: dict[str, str]
    file: ImageFile | None = None
    problem: str | None = None


@dataclass(slots=True, eq=False)
class MediaImage:
    """An image of a product, processed in the background.

    failure: code and text, known once the file was looked at; the status tells when its time has
    come.
    """

    id: str
    alt: str
    source: str
    created_mono: float
    created_wall_s: float
    file: ImageFile | None = None
    failure: tuple[str, str] | None = None
    is_examined: bool = False
    outcome: Rule | None = None

    def status(self, media_s: float) -> str:
        """Return UPLOADED, PROCESSING, READY or FAILED."""
        age_s = time.monotonic() - self.created_mono
        if age_s < media_s / 2:
            return "UPLOADED"
        hangs = self.outcome is not None and self.outcome.kind == "shop_hangs"
        if hangs or age_s < media_s or not self.is_examined:
            return "PROCESSING"
        return "READY" if self.error() is None else "FAILED"

    def error(self) -> tuple[str, str] | None:
        """Return what is wrong with the image, if anything."""
        if self.outcome is not None and self.outcome.kind == "shop_fails":
            return "IMAGE_PROCESSING_FAILURE", "The image could not be processed."
        return self.failure


@dataclass(slots=True, eq=False)
class Product:
    """A product as it was last set. `published` has the time by publication."""

    number: int
    handle: str
    body: Fields
    created_wall_s: float
    updated_wall_s: float
    options: list[Fields] = field(default_factory=list)
    variants: list[Fields] = field(default_factory=list)
    media: list[MediaImage] = field(default_factory=list)
    published: dict[str, float] = field(default_factory=dict)
    sets: int = 1

    @property
    def id(self) -> str:
        """Return the global identifier."""
        return f"gid://shopify/Product/{self.number}"


@dataclass(slots=True, eq=False)
class Operation:
    """A product set in the background. The effect is at once, being told takes its time."""

    id: str
    ready_mono: float
    product: Product | None
    errors: list[Fields]


class InvalidInput(Exception):
    """Input that is answered with user errors."""

    def __init__(self, path: list[str], message: str, code: str) -> None:
        super().__init__(message)
        self.error = {"field": path, "message": message, "code": code}


@dataclass(slots=True, eq=False)
class ShopifyAccount(Account):
    """What one token has put into one shop. Products by number, the oldest first."""

    products: dict[int, Product] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    created: int = 0
    publishes: list[Fields] = field(default_factory=list)
    level: float = -1.0
    filled_mono: float = 0.0
    last_number: int = 0

    def available(self, maximum: float) -> float:
        """Return what was in the bucket when it was last looked into."""
        return maximum if self.level < 0 else self.level

    def spend(self, cost: float, maximum: float, per_second: float) -> bool:
        """Take the cost of a query from the bucket; return False when there is not enough."""
        now_mono = time.monotonic()
        if self.level < 0:
            self.level = maximum
        else:
            gained = (now_mono - self.filled_mono) * per_second
            self.level = min(maximum, self.level + gained)
        self.filled_mono = now_mono
        if self.level < cost:
            return False
        self.level -= cost
        return True

    def new_number(self) -> int:
        """Return a number no other thing of the account has."""
        if not self.last_number:
            self.last_number = 7_000_000_000_000 + zlib.crc32(f"{self.shop}{self.token}".encode())
        self.last_number += 1
        return self.last_number

    def publications(self) -> list[Fields]:
        """Return the sales channels, the same ones for the same shop."""
        first = 100_000_000 + zlib.crc32((self.shop or "").encode()) % 100_000_000
        return [
            {
                "__typename": "Publication",
                "id": f"gid://shopify/Publication/{first + number}",
                "name": name,
                "catalog": {
                    "__typename": "AppCatalog",
                    "id": f"gid://shopify/AppCatalog/{first + number}",
                    "status": "ACTIVE",
                    "title": name,
                },
                "autoPublish": False,
                "supportsFuturePublishing": name == ONLINE_STORE,
            }
            for number, name in enumerate((ONLINE_STORE, "Point of Sale", "Shop"))
        ]

    def scopes(self) -> tuple[str, ...]:
        """Return what the token may do."""
        if "readonly" in self.token:
            return tuple(scope for scope in SCOPES if scope.startswith("read_"))
        if "nopublish" in self.token:
            return tuple(scope for scope in SCOPES if "publications" not in scope)
        return SCOPES

    def as_json(self) -> Fields:
        """Return the books of the account."""
        return {
            **Account.as_json(self),
            "products_created": self.created,
            "products": [
                {
                    "id": product.id,
                    "handle": product.handle,
                    "title": product.body["title"],
                    "status": product.body["status"],
                    "tags": product.body["tags"],
                    "vendor": product.body["vendor"],
                    "sets": product.sets,
                    "published": sorted(product.published),
                    "variants": [
                        {key: variant[key] for key in ("id", "title", "price", "sku")}
                        for variant in product.variants
                    ],
                    "media": [
                        {
                            "id": media.id,
                            "source": media.source,
                            "sha256": None if media.file is None else media.file.sha256,
                            "error": media.error(),
                        }
                        for media in product.media
                    ],
                }
                for product in self.products.values()
            ],
            "uploads": [
                {
                    "resource_url": target.resource_url,
                    "sha256": None if target.file is None else target.file.sha256,
                    "size_bytes": None if target.file is None else target.file.size_bytes,
                }
                for target in self.targets.values()
                if target.file is not None or target.problem is not None
            ],
            "publishes": list(self.publishes),
        }


class Store:
    """One request to a shop: the root of a query."""

    def __init__(
        self, part: Shops, account: ShopifyAccount, base_url: str, rules: dict[str, Rule]
    ) -> None:
        self._part = part
        self._account = account
        self._base_url = base_url
        self._outcome = rules.get(SHOP_OUTCOME)

    # Queries.

    def shop(self, _info: Any) -> Fields:
        """Answer the query `shop`."""
        domain = self._account.shop or ""
        return {
            "__typename": "Shop",
            "id": f"gid://shopify/Shop/{zlib.crc32(domain.encode())}",
            "name": domain.partition(".")[0],
            "myshopifyDomain": domain,
            "url": f"https://{domain}",
            "currencyCode": "USD",
        }

    def currentAppInstallation(self, _info: Any) -> Fields:
        """Answer the query `currentAppInstallation`."""
        scopes = [{"handle": scope, "description": scope} for scope in self._account.scopes()]
        return {"id": "gid://shopify/AppInstallation/1", "accessScopes": scopes}

    def node(self, _info: Any, id: str) -> Fields | None:
        """Answer the query `node`."""
        for product in self._account.products.values():
            for media in product.media:
                if media.id == id:
                    return self._media_fields(media)
        found: Fields | None = self.product(_info, id) or self.productOperation(_info, id)
        return found or next((p for p in self._account.publications() if p["id"] == id), None)

    def product(self, _info: Any, id: str) -> Fields | None:
        """Answer the query `product`."""
        product = self._by_id(id)
        return None if product is None else self._product_fields(product)

    def productByIdentifier(self, _info: Any, identifier: Fields) -> Fields | None:
        """Answer the query `productByIdentifier`."""
        if "id" in identifier:
            return self.product(_info, identifier["id"])
        product = self._by_handle(identifier["handle"])
        return None if product is None else self._product_fields(product)

    def productOperation(self, _info: Any, id: str) -> Fields | None:
        """Answer the query `productOperation`."""
        operation = self._account.operations.get(id)
        return None if operation is None else self._operation_fields(operation)

    def products(
        self, _info: Any, query: str | None = None, reverse: bool = False, **page: Any
    ) -> Fields:
        """Answer the query `products`; of search terms it knows `handle:` and `tag:`."""
        page.pop("sortKey", None)
        products = list(self._account.products.values())
        for term in (query or "").split():
            name, _, value = term.partition(":")
            value = value.strip("'\"")
            if name == "handle":
                products = [p for p in products if p.handle == value]
            elif name == "tag":
                products = [p for p in products if value in p.body["tags"]]
        if reverse:
            products.reverse()
        return connection([self._product_fields(p) for p in products], **page)

    def publications(self, _info: Any, **page: Any) -> Fields:
        """Answer the query `publications`."""
        self._need("read_publications", "publications")
        return connection(self._account.publications(), **page)

    # Mutations.

    def stagedUploadsCreate(self, _info: Any, input: list[Fields]) -> Fields:
        """Answer the mutation `stagedUploadsCreate`."""
        self._need("write_files", "stagedUploadsCreate")
        errors = [
            {"field": ["input", str(index), "mimeType"], "message": "Mime type is not an image"}
            for index, own in enumerate(input)
            if own["resource"].endswith("IMAGE") and not own["mimeType"].startswith("image/")
        ]
        if errors:
            return {"stagedTargets": None, "userErrors": errors}
        return {"stagedTargets": [self._target(own) for own in input], "userErrors": []}

    def productSet(
        self,
        _info: Any,
        input: Fields,
        identifier: Fields | None = None,
        synchronous: bool = True,
    ) -> Fields:
        """Answer the mutation `productSet`: create the product, or change what is named."""
        self._need("write_products", "productSet")
        product, errors = None, []
        try:
            product = self._set(input, identifier)
        except InvalidInput as invalid:
            errors = [invalid.error]
        if synchronous:
            fields = None if product is None else self._product_fields(product)
            return {"product": fields, "productSetOperation": None, "userErrors": errors}
        operation_id = f"gid://shopify/ProductSetOperation/{self._account.new_number()}"
        ready_mono = time.monotonic() + self._part.settings.media_seconds
        operation = Operation(operation_id, ready_mono, product, errors)
        self._account.operations[operation_id] = operation
        fields = self._operation_fields(operation)
        return {"product": None, "productSetOperation": fields, "userErrors": []}

    def productDelete(self, _info: Any, input: Fields, synchronous: bool = True) -> Fields:
        """Answer the mutation `productDelete`."""
        self._need("write_products", "productDelete")
        product, errors = self._by_id(input["id"]), []
        if product is None:
            errors = [{"field": ["id"], "message": "Product does not exist"}]
        else:
            del self._account.products[product.number]
        deleted = None if product is None else product.id
        return {"deletedProductId": deleted, "shop": self.shop(_info), "userErrors": errors}

    def publishablePublish(self, _info: Any, id: str, input: list[Fields]) -> Fields:
        """Answer the mutation `publishablePublish`."""
        return self._publish(_info, "publishablePublish", id, input, puts=True)

    def publishableUnpublish(self, _info: Any, id: str, input: list[Fields]) -> Fields:
        """Answer the mutation `publishableUnpublish`."""
        return self._publish(_info, "publishableUnpublish", id, input, puts=False)

    def _publish(self, info: Any, name: str, id: str, input: list[Fields], *, puts: bool) -> Fields:
        self._need("write_publications", name)
        product, errors = self._by_id(id), []
        known = [publication["id"] for publication in self._account.publications()]
        if product is None:
            errors.append({"field": ["id"], "message": "Publishable does not exist"})
        for index, own in enumerate(input):
            if own.get("publicationId") not in known:
                path = ["input", str(index), "publicationId"]
                text = "Publication does not exist or is not publishable"
                errors.append({"field": path, "message": text})
        if product is not None and not errors:
            for own in input:
                if puts:
                    product.published.setdefault(own["publicationId"], time.time())
                else:
                    product.published.pop(own["publicationId"], None)
            if puts:
                self._account.publishes.append({"product_id": product.id, "at": time.time()})
        fields = None if product is None or errors else self._product_fields(product)
        return {"publishable": fields, "shop": self.shop(info), "userErrors": errors}

    # How a product is set.

    def _set(self, body: Fields, identifier: Fields | None) -> Product:
        product = self._identified(body, identifier)
        creates = product is None
        title = body.get("title", None if product is None else product.body["title"])
        if not title or not title.strip():
            raise InvalidInput(["input", "title"], "Title can't be blank", "INVALID_INPUT")
        if len(title) > LONGEST_TITLE:
            text = f"Title is too long (maximum is {LONGEST_TITLE} characters)"
            raise InvalidInput(["input", "title"], text, "INVALID_INPUT")
        handle = body.get("handle")
        if handle is not None:
            other = self._by_handle(handle)
            if other is not None and other is not product:
                text = f"Handle '{handle}' already in use. Please provide a new handle."
                raise InvalidInput(["input", "handle"], text, "HANDLE_NOT_UNIQUE")
        options, variants = _options_and_variants(body)
        sources = self._sources(body, product)
        now_s = time.time()
        if product is None:
            product = Product(
                self._account.new_number(),
                self._free_handle(handle or slug(title)),
                {"descriptionHtml": "", "productType": "", "tags": [], "status": "ACTIVE"},
                now_s,
                now_s,
            )
            product.body["vendor"] = self.shop(None)["name"]
            self._account.products[product.number] = product
            self._account.created += 1
        else:
            product.sets += 1
            product.handle = handle or product.handle
        names = ("title", "descriptionHtml", "productType", "vendor", "status", "tags")
        product.body |= {name: body[name] for name in names if body.get(name) is not None}
        product.body["tags"] = sorted(set(product.body["tags"]), key=str.lower)
        product.updated_wall_s = now_s
        if creates and options is None:
            options = [{"name": "Title", "values": ["Default Title"]}]
            variants = [{"optionValues": {"Title": "Default Title"}, "price": "0.00"}]
        if options is not None:
            product.options = [self._option(own, at) for at, own in enumerate(options, 1)]
            kept = {variant["title"]: variant["id"] for variant in product.variants}
            product.variants = [
                self._variant(own, at, kept) for at, own in enumerate(variants or [], 1)
            ]
        if sources is not None:
            product.media = [self._medium(source) for source in sources]
        return product

    def _identified(self, body: Fields, identifier: Fields | None) -> Product | None:
        """Return the product that is meant; None for a new one."""
        at = ["input"]
        if not identifier:
            if body.get("id") is None:
                return None
            product = self._by_id(body["id"])
            if product is None:
                raise InvalidInput([*at, "id"], "Product does not exist", "PRODUCT_DOES_NOT_EXIST")
            return product
        if body.get("id") is not None:
            text = "The id field is not allowed if identifier is provided."
            raise InvalidInput([*at, "id"], text, "ID_NOT_ALLOWED")
        if identifier.get("id") is not None:
            product = self._by_id(identifier["id"])
            if product is None:
                text = "Resource matching the identifier was not found."
                raise InvalidInput(at, text, "NOT_FOUND")
            return product
        handle = identifier.get("handle")
        if body.get("handle") is None:
            text = "The input field corresponding to the identifier is required."
            raise InvalidInput(at, text, "MISSING_FIELD_REQUIRED")
        if body["handle"] != handle:
            text = (
                "The identifier value does not match the value of the corresponding field in the "
                "input."
            )
            raise InvalidInput(at, text, "INPUT_MISMATCH")
        return self._by_handle(handle)

    def _sources(self, body: Fields, product: Product | None) -> list[Fields | MediaImage] | None:
        """Return the media that the product is to have; None leaves them."""
        if body.get("files") is None:
            return None
        sources: list[Fields | MediaImage] = []
        for index, own in enumerate(body["files"]):
            path = ["input", "files", str(index)]
            if own.get("id") is not None:
                media = product.media if product is not None else []
                found = next((medium for medium in media if medium.id == own["id"]), None)
                if found is None:
                    raise InvalidInput([*path, "id"], "File does not exist", "INVALID_INPUT")
                sources.append(found)
            elif not str(own.get("originalSource")).startswith(("https://", "http://")):
                text = "Image URL is invalid"
                raise InvalidInput([*path, "originalSource"], text, "INVALID_INPUT")
            elif own.get("contentType") not in (None, "IMAGE"):
                text = "The simulated shop takes images only"
                raise InvalidInput([*path, "contentType"], text, "INVALID_INPUT")
            else:
                sources.append(own)
        return sources

    def _medium(self, source: Fields | MediaImage) -> MediaImage:
        if isinstance(source, MediaImage):
            return source
        media_id = f"gid://shopify/MediaImage/{self._account.new_number()}"
        url, alt = source["originalSource"], source.get("alt") or ""
        media = MediaImage(media_id, alt, url, time.monotonic(), time.time(), outcome=self._outcome)
        target = next((t for t in self._account.targets.values() if t.resource_url == url), None)
        if target is not None:
            media.file, media.is_examined = target.file, True
            if target.problem is not None:
                media.failure = ("INVALID_IMAGE_FILE_TYPE", target.problem)
            elif target.file is None:
                media.failure = ("INVALID_SIGNED_URL", "Nothing was uploaded to the target.")
            else:
                media.failure = _fault_of(target.file)
        else:
            self._part.background(self._download(media))
        return media

    async def _download(self, media: MediaImage) -> None:
        """Fetch an image from elsewhere."""
        loop = asyncio.get_running_loop()
        try:
            data = await self._part.fetch(media.source)
            media.file = await loop.run_in_executor(None, inspect_image, data)
            media.failure = _fault_of(media.file)
        except BadImage as error:
            media.failure = ("IMAGE_DOWNLOAD_FAILURE", str(error))
        media.is_examined = True

    def _target(self, own: Fields) -> Fields:
        key = f"tmp/{zlib.crc32((self._account.shop or '').encode())}/products/"
        key += f"{secrets.token_hex(16)}/{own['filename']}"
        url = f"{self._base_url}{STAGED}/"
        signed = {
            "x-goog-credential": "merchant-assets@shopify-tiers.iam.gserviceaccount.com",
            "x-goog-algorithm": "GOOG4-RSA-SHA256",
            "x-goog-signature": secrets.token_hex(32),
        }
        if own["httpMethod"] == "POST":
            parameters = {
                "Content-Type": own["mimeType"],
                "success_action_status": "201",
                "acl": "private",
                "key": key,
                "x-goog-date": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
                **signed,
                "policy": secrets.token_urlsafe(48),
            }
        else:
            parameters = {"content_type": own["mimeType"], "acl": "private"}
        resource_url = url + quote(key)
        target = Target(key, resource_url, own["httpMethod"], own["mimeType"], parameters)
        self._account.targets[key] = target
        if own["httpMethod"] == "PUT":
            url = f"{resource_url}?X-Goog-Signature={signed['x-goog-signature']}"
        return {
            "url": url,
            "resourceUrl": resource_url,
            "parameters": [{"name": n, "value": v} for n, v in parameters.items()],
        }

    def _option(self, own: Fields, position: int) -> Fields:
        values = [
            {"id": f"gid://shopify/ProductOptionValue/{self._account.new_number()}", "name": value}
            for value in own["values"]
        ]
        return {
            "id": f"gid://shopify/ProductOption/{self._account.new_number()}",
            "name": own["name"],
            "position": position,
            "optionValues": values,
            "values": own["values"],
        }

    def _variant(self, own: Fields, position: int, kept: dict[str, str]) -> Fields:
        title = " / ".join(own["optionValues"].values())
        fresh = f"gid://shopify/ProductVariant/{self._account.new_number()}"
        return {
            "__typename": "ProductVariant",
            "id": kept.get(title, fresh),
            "title": title,
            "price": own.get("price") or "0.00",
            "sku": own.get("sku"),
            "inventoryPolicy": own.get("inventoryPolicy") or "DENY",
            "position": position,
            "selectedOptions": [{"name": n, "value": v} for n, v in own["optionValues"].items()],
        }

    # What things look like.

    def _product_fields(self, product: Product) -> Fields:
        online = self._account.publications()[0]["id"]
        domain = self._account.shop
        is_seen = online in product.published and product.body["status"] == "ACTIVE"
        published = [
            {
                "publication": publication,
                "isPublished": True,
                "publishDate": iso(product.published[publication["id"]]),
            }
            for publication in self._account.publications()
            if publication["id"] in product.published
        ]
        media = [self._media_fields(medium) for medium in product.media]
        return {
            **product.body,
            "__typename": "Product",
            "id": product.id,
            "legacyResourceId": str(product.number),
            "handle": product.handle,
            "createdAt": iso(product.created_wall_s),
            "updatedAt": iso(product.updated_wall_s),
            "publishedAt": iso(product.published[online]) if online in product.published else None,
            "onlineStoreUrl": f"https://{domain}/products/{product.handle}" if is_seen else None,
            "onlineStorePreviewUrl": f"https://{domain}/products_preview?id={product.number}",
            "options": lambda _info, first=None: product.options[:first],
            "variants": lambda _info, **page: connection(product.variants, **page),
            "variantsCount": {"count": len(product.variants)},
            "media": lambda _info, **page: connection(media, **page),
            "featuredMedia": media[0] if media else None,
            "publishedOnPublication": lambda _info, publicationId: (
                publicationId in product.published
            ),
            "availablePublicationsCount": {"count": len(self._account.publications())},
            "resourcePublications": lambda _info, onlyPublished=True, **page: connection(
                published, **page
            ),
            "resourcePublicationsCount": {"count": len(published)},
        }

    def _media_fields(self, media: MediaImage) -> Fields:
        status, error = media.status(self._part.settings.media_seconds), media.error()
        image, errors = None, []
        if status == "READY" and media.file is not None:
            image = {
                "url": f"https://cdn.shopify.com/s/files/1/{media.id.rpartition('/')[2]}",
                "width": media.file.width,
                "height": media.file.height,
                "altText": media.alt,
            }
        if status == "FAILED" and error is not None:
            errors = [{"code": error[0], "details": error[1], "message": error[1]}]
        return {
            "__typename": "MediaImage",
            "id": media.id,
            "alt": media.alt,
            "createdAt": iso(media.created_wall_s),
            "mediaContentType": "IMAGE",
            "mediaErrors": errors,
            "mimeType": None if media.file is None else media.file.mime_type,
            "status": status,
            "fileStatus": status,
            "image": image,
        }

    def _operation_fields(self, operation: Operation) -> Fields:
        is_ready = time.monotonic() >= operation.ready_mono
        product = operation.product if is_ready else None
        return {
            "__typename": "ProductSetOperation",
            "id": operation.id,
            "status": "COMPLETE" if is_ready else "ACTIVE",
            "product": None if product is None else self._product_fields(product),
            "userErrors": operation.errors if is_ready else [],
        }

    def _by_id(self, id: str) -> Product | None:
        number = id.removeprefix("gid://shopify/Product/")
        return self._account.products.get(int(number)) if number.isdigit() else None

    def _by_handle(self, handle: str | None) -> Product | None:
        products = self._account.products.values()
        return next((product for product in products if product.handle == handle), None)

    def _free_handle(self, handle: str) -> str:
        taken = {product.handle for product in self._account.products.values()}
        numbered = (f"{handle}-{number}" for number in range(1, len(taken) + 2))
        return next(name for name in (handle, *numbered) if name not in taken)

    def _need(self, scope: str, field_name: str) -> None:
        """Refuse a field that the token may not use. Raises GraphQLError."""
        if scope not in self._account.scopes():
            raise GraphQLError(
                f"Access denied for {field_name} field. Required access: `{scope}` access scope.",
                extensions={
                    "code": "ACCESS_DENIED",
                    "documentation": "https://shopify.dev/api/usage/access-scopes",
                    "requiredAccess": f"`{scope}` access scope.",
                },
            )


def connection(
    entries: list[Any], first: int | None = None, last: int | None = None, after: str | None = None
) -> Fields:
    """Return a page of a connection. Cursors are positions.

    Raises:
        GraphQLError: when the size of the page is missing, or over 250.
    """
    size = first if first is not None else last
    if size is None:
        raise GraphQLError(
            "you must provide one of first or last", extensions={"code": "BAD_REQUEST"}
        )
    if not 0 <= size <= MAX_FIRST:
        raise GraphQLError(
            f"first cannot exceed {MAX_FIRST}.", extensions={"code": "MAX_PAGE_SIZE_EXCEEDED"}
        )
    start = int(after) + 1 if after is not None and after.isdigit() else 0
    if first is None:
        start = max(start, len(entries) - size)
    page = entries[start : start + size]
    cursors = [str(start + index) for index in range(len(page))]
    return {
        "nodes": page,
        "edges": [{"cursor": c, "node": n} for c, n in zip(cursors, page, strict=True)],
        "pageInfo": {
            "hasNextPage": start + size < len(entries),
            "hasPreviousPage": start > 0,
            "startCursor": cursors[0] if cursors else None,
            "endCursor": cursors[-1] if cursors else None,
        },
    }


def slug(title: str) -> str:
    """Return the handle that a title gives."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "product"


def iso(wall_s: float) -> str:
    """Return a time as the API writes it."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _fault_of(file: ImageFile) -> tuple[str, str] | None:
    if file.mime_type not in IMAGE_TYPES:
        return "INVALID_IMAGE_FILE_TYPE", f"The file type {file.mime_type} is not supported."
    if file.size_bytes > MAX_IMAGE_BYTES or file.width * file.height > MAX_IMAGE_PIXELS:
        return "INVALID_IMAGE_RESOLUTION", "The image exceeds 20 MB or 25 megapixels."
    return None


def _options_and_variants(body: Fields) -> tuple[list[Fields] | None, list[Fields] | None]:
    """Return options with the names of their values, and variants with a value of each option.

    Raises:
        InvalidInput: when one is there without the other, or they do not fit.
    """
    options, variants = body.get("productOptions"), body.get("variants")
    if options is None and variants is None:
        return None, None
    if variants is None:
        text = "Variants input is required when updating product options"
        raise InvalidInput(["input", "variants"], text, "VARIANTS_INPUT_MISSING")
    if options is None:
        text = "Product options input is required when updating variants"
        raise InvalidInput(["input", "variants"], text, "PRODUCT_OPTIONS_INPUT_MISSING")
    if len(options) > MAX_OPTIONS:
        text = f"Can only specify a maximum of {MAX_OPTIONS} options"
        raise InvalidInput(["input", "productOptions"], text, "OPTIONS_OVER_LIMIT")
    if len(variants) > MAX_VARIANTS:
        text = f"Can only specify a maximum of {MAX_VARIANTS} variants"
        raise InvalidInput(["input", "variants"], text, "VARIANTS_OVER_LIMIT")
    known = _known_options(options)
    seen: set[tuple[str, ...]] = set()
    complete = []
    for index, own in enumerate(variants):
        path = ["input", "variants", str(index)]
        chosen = _chosen(own, known, path)
        if tuple(chosen.values()) in seen:
            text = f"The variant '{' / '.join(chosen.values())}' already exists."
            raise InvalidInput(path, text, "INVALID_VARIANT")
        seen.add(tuple(chosen.values()))
        if own.get("price") is not None and float(own["price"]) < 0:
            text = "Price must be greater than or equal to 0"
            raise InvalidInput([*path, "price"], text, "INVALID_VARIANT")
        complete.append({**own, "optionValues": chosen})
    return [{"name": name, "values": values} for name, values in known.items()], complete


def _known_options(options: list[Fields]) -> dict[str, list[str]]:
    known: dict[str, list[str]] = {}
    for index, own in enumerate(options):
        path, name = ["input", "productOptions", str(index)], own.get("name")
        if not name:
            raise InvalidInput([*path, "name"], "Name can't be blank", "INVALID_INPUT")
        if name in known:
            text = f"Option '{name}' is duplicated"
            raise InvalidInput(path, text, "DUPLICATED_OPTION_NAME")
        values = [value.get("name") or "" for value in own.get("values") or []]
        if not values or "" in values:
            text = f"Option '{name}' has no values"
            raise InvalidInput([*path, "values"], text, "OPTION_VALUES_MISSING")
        if len(set(values)) < len(values):
            text = f"Option '{name}' has a value twice"
            raise InvalidInput([*path, "values"], text, "DUPLICATED_OPTION_VALUE")
        known[name] = values
    return known


def _chosen(own: Fields, known: dict[str, list[str]], path: list[str]) -> dict[str, str]:
    """Return the value of each option, in the order of the options."""
    named: dict[str, str] = {}
    for at, value in enumerate(own["optionValues"]):
        here, option = [*path, "optionValues", str(at)], value.get("optionName")
        if option not in known:
            text = f"Option '{option}' does not exist"
            raise InvalidInput(here, text, "OPTION_DOES_NOT_EXIST")
        if value.get("name") not in known[option]:
            text = f"Option value '{value.get('name')}' does not exist"
            raise InvalidInput(here, text, "OPTION_VALUE_DOES_NOT_EXIST")
        named[option] = value["name"]
    if len(named) < len(known):
        text = "Option values are missing"
        raise InvalidInput([*path, "optionValues"], text, "OPTION_VALUES_MISSING")
    return {name: named[name] for name in known}
