"""Printify: its REST API in, steps and failures out.

The picture is uploaded, a product made of it and of the catalogue's variants, and the product
published to the shop's sales channel, which Printify does by itself afterwards. What a lost call
has made is found by names that nothing else at Printify has: an upload by its file name, which
holds the item's key, and a product by its variants' SKUs, which begin with a digest of it. (Equal
pictures are one upload there, so that what is printed on a product does not tell it from others.)

Source: Printify API reference, read 2026-11-20
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, ClassVar

from generation.answers import cut
from generation.http import HttpClient, Response, TransportError
from generation.provider import ErrorClass, Failure
from publishing.channel import Account, Done, Item, Limits, NotThere, Pending, Step
from publishing.channels.failures import Failures
from publishing.channels.items import (
    as_url,
    asked_price,
    check_token,
    description_html,
    file_name,
    refused,
)

# Larger pictures are fetched by Printify where it can.
INLINE_MAX_BYTES = 5_000_000
PICTURE_MAX_BYTES = 100_000_000
PICTURE_MAX_PIXELS = 23_000 * 23_000
VARIANTS_LIMIT = 100

UPLOAD_DEADLINE_S = 120.0
CREATE_DEADLINE_S = 60.0
READ_DEADLINE_S = 20.0
CHECK_DEADLINE_S = 10.0  # somebody waits for it
FIND_DEADLINE_S = 60.0  # for all pages
FIND_MAX_PAGES = 50
UPLOADS_PER_PAGE = 100
PRODUCTS_PER_PAGE = 20  # each comes with all of its variants and mock-ups
LIST_MAX_BYTES = 32 * 1024 * 1024
LISTING_WAIT_S = 3.0
UNLISTED_PATIENCE_S = 120
CATALOGUE_WAIT_S = 5.0
CATALOGUE_KEPT_S = 600.0
CATALOGUE_KEPT_LIMIT = 100

UPLOAD = Step("upload", sends=True)
PRODUCT = Step("product")
PUBLISH = Step("publish", publishes=True)
LISTING = Step("listing", creates=False)

_PUBLISHED_PARTS = (
    "title", "description", "images", "variants", "tags", "keyFeatures", "shipping_template",
)  # fmt: skip
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_POSITION = "front"
_SKU = re.compile(r"(P[0-9A-F]{20})-")


@dataclass(frozen=True, slots=True)
class _Variant:
    """A variant of the catalogue; `areas` maps a position to its width and height in pixels."""

    id: int
    areas: Mapping[str, tuple[float, float]]


# What was read of the catalogue, by address: when (monotonic seconds), and the variants. The same
# for every account; each operation on it is atomic.
_catalogue: dict[str, tuple[float, tuple[_Variant, ...]]] = {}


class Printify:
    """One account of Printify.

    `shop_id` is the shop to publish in, "" for the only one. Raises ValueError for a token that no
    header can carry and for a shop that is not a number.
    """

    name: ClassVar[str] = "printify"
    limits: ClassVar[Limits] = Limits(600, 200, 30 * 60)
    kept_ids: ClassVar[frozenset[str]] = frozenset({"shop_id", "product_id"})
    changes_product: ClassVar[bool] = False

    def __init__(self, token: str, *, http: HttpClient, base_url: str, shop_id: str = "") -> None:
        check_token(token)
        if shop_id and not _is_number(shop_id):
            raise ValueError("The shop is not a number.")
        self._token = token
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._shop_id = shop_id
        self._failures = Failures("Printify", token)

    def __repr__(self) -> str:
        return f"Printify({self._base_url!r}, {self._shop_id!r})"

    def check(self) -> Account | Failure:
        """List the shops; one that is configured must be among them."""
        shops = self._shops(CHECK_DEADLINE_S)
        if isinstance(shops, Failure):
            return shops
        chosen = [shop for shop in shops if shop["id"] == self._shop_id]
        if self._shop_id and not chosen:
            message = f"The account at Printify has no shop {self._shop_id}."
            return Failure(ErrorClass.NOT_FOUND, message, fields={"shop_id": message})
        named = chosen or (shops if len(shops) == 1 else ())
        return Account(named[0]["title"] if named else "Printify", tuple(shops))

    def next_step(self, item: Item) -> Step | None:
        """Upload, create, publish, wait for it to be listed."""
        made = item.remote_ids.get
        if not made("product_id"):
            return PRODUCT if made("upload_id") else UPLOAD
        if not made("published"):
            return PUBLISH
        return None if made("external_id") else LISTING

    def take(self, step: Step, item: Item) -> Done | Pending | Failure:
        """Take a step, once; see `Channel.take`."""
        shop_id = self._shop_of(item, step)
        if isinstance(shop_id, Failure):
            return shop_id
        match step.name:
            case UPLOAD.name:
                return self._upload(item, shop_id)
            case PRODUCT.name:
                return self._create(item, shop_id)
            case PUBLISH.name:
                return self._publish(item, shop_id)
        product = self._product(item, shop_id)
        return product if isinstance(product, Failure) else _listing(item, product)

    def find(self, step: Step, item: Item) -> Done | NotThere | Failure:
        """Look for what a lost call has made; see `Channel.find`."""
        shop_id = self._shop_of(item, step)
        if isinstance(shop_id, Failure):
            return shop_id
        match step.name:
            case UPLOAD.name:
                return self._find_upload(item, shop_id)
            case PRODUCT.name:
                return self._find_product(item, shop_id)
        product = self._product(item, shop_id)
        if isinstance(product, Failure):
            # A product that is gone is not being published; what to do then, `take` says.
            return NotThere() if product.error_class == ErrorClass.NOT_FOUND else product
        # Locked: the shop's channel is at it. With an external id: it was.
        begun = product.get("is_locked") is True or _external(product)
        return Done({"published": "1"}) if begun else NotThere()

    def _upload(self, item: Item, shop_id: str) -> Done | Failure:
        price = asked_price(item, max_bytes=PICTURE_MAX_BYTES, max_pixels=PICTURE_MAX_PIXELS)
        if isinstance(price, Failure):
            return price
        body = {"file_name": file_name(item)}
        if item.artwork.size_bytes > INLINE_MAX_BYTES and item.artwork_url:
            body["url"] = item.artwork_url
        else:
            try:
                with item.artwork.open() as source:
                    # One byte more would be a file that has grown.
                    content = source.read(item.artwork.size_bytes + 1)
                if len(content) != item.artwork.size_bytes:
                    raise OSError("The file is not as long as it was.")
            except OSError as error:
                return self._failures.of(ErrorClass.INTERRUPTED, raw=str(error))
            body["contents"] = base64.b64encode(content).decode()
        answer = self._post("/uploads/images.json", body, UPLOAD_DEADLINE_S)
        return self._made(answer, "upload_id", {"shop_id": shop_id})

    def _find_upload(self, item: Item, shop_id: str) -> Done | NotThere | Failure:
        name = file_name(item)
        found = self._search(
            f"/uploads.json?limit={UPLOADS_PER_PAGE}",
            lambda upload: upload.get("file_name") == name,
            newest_by="upload_time",
        )
        return self._found(found, "upload_id", {"shop_id": shop_id})

    def _create(self, item: Item, shop_id: str) -> Done | Failure:
        price = asked_price(item, max_bytes=PICTURE_MAX_BYTES, max_pixels=PICTURE_MAX_PIXELS)
        if isinstance(price, Failure):
            return price
        began_s = monotonic()
        known = self._variants(item)
        if isinstance(known, Failure):
            return known
        # The call is on record: it must not be made when its caller may have been given up. The
        # catalogue is known the next time.
        if monotonic() - began_s > CATALOGUE_WAIT_S:
            raw = "the catalogue took too long"
            return self._failures.of(ErrorClass.PROVIDER_UNAVAILABLE, raw=raw)
        areas = _print_areas(item, known)
        if not areas:
            return refused({"product_type": "Printify's catalogue has no variant of it to print."})
        body = {
            "title": item.title,
            "description": description_html(item),
            "tags": list(item.tags),
            "blueprint_id": item.product.get("blueprint_id"),
            "print_provider_id": item.product.get("print_provider_id"),
            "variants": [
                {
                    "id": variant_id,
                    "price": int(price * 100),
                    "is_enabled": True,
                    "sku": f"{_mark(item)}-{variant_id}",
                }
                for area in areas
                for variant_id in area["variant_ids"]
            ],
            "print_areas": areas,
        }
        answer = self._post(f"/shops/{shop_id}/products.json", body, CREATE_DEADLINE_S)
        return self._made(answer, "product_id", {"shop_id": shop_id})

    def _find_product(self, item: Item, shop_id: str) -> Done | NotThere | Failure:
        upload_id, name, mark = item.remote_ids.get("upload_id", ""), file_name(item), _mark(item)

        def is_it(product: Mapping[str, Any]) -> bool:
            marks = {found[1] for sku in _skus(product) if (found := _SKU.match(sku))}
            if marks:
                return mark in marks
            # Should Printify not have kept the SKUs, it is what is printed on it.
            return any(
                (upload_id and image.get("id") == upload_id) or image.get("name") == name
                for image in _images(product)
            )

        found = self._search(
            f"/shops/{shop_id}/products.json?limit={PRODUCTS_PER_PAGE}",
            is_it,
            newest_by="created_at",
        )
        return self._found(found, "product_id", {"shop_id": shop_id})

    def _publish(self, item: Item, shop_id: str) -> Done | Failure:
        path = self._product_path(item, shop_id, "/publish.json")
        if isinstance(path, Failure):
            return path
        answer = self._post(path, dict.fromkeys(_PUBLISHED_PARTS, True), CREATE_DEADLINE_S)
        if not isinstance(answer, Failure):
            return Done({"published": "1"}, raw=cut(answer.json()))
        if answer.error_class in (ErrorClass.INVALID_INPUT, ErrorClass.UNKNOWN):
            # A product that is being published refuses to be published.
            seen = self.find(PUBLISH, item)
            if isinstance(seen, Done):
                return seen
        return answer

    def _product(self, item: Item, shop_id: str) -> Mapping[str, Any] | Failure:
        path = self._product_path(item, shop_id, ".json")
        if isinstance(path, Failure):
            return path
        answer = self._get(path)
        if isinstance(answer, Failure):
            return answer
        product = answer.json()
        if isinstance(product, dict) and product.get("id") == item.remote_ids["product_id"]:
            return product
        return self._failures.of_unreadable(answer, creates=False)

    def _product_path(self, item: Item, shop_id: str, end: str) -> str | Failure:
        product_id = item.remote_ids.get("product_id", "")
        if not _ID.fullmatch(product_id):
            return self._failures.of(ErrorClass.NOT_FOUND)
        return f"/shops/{shop_id}/products/{product_id}{end}"

    def _shop_of(self, item: Item, step: Step) -> str | Failure:
        """Return the shop where the item is being published already, else the one to do it in."""
        begun = "" if step.name == UPLOAD.name else item.remote_ids.get("shop_id", "")
        if shop_id := begun if _is_number(begun) else self._shop_id:
            return shop_id
        shops = self._shops()
        if isinstance(shops, Failure):
            return shops
        if len(shops) == 1:
            return shops[0]["id"]
        return refused(
            {"shop_id": f"The account at Printify has {len(shops)} shops; name the one to use."}
        )

    def _shops(self, deadline_s: float = READ_DEADLINE_S) -> list[dict[str, str]] | Failure:
        answer = self._get("/shops.json", deadline_s=deadline_s)
        if isinstance(answer, Failure):
            return answer
        shops = answer.json()
        if not isinstance(shops, list):
            return self._failures.of_unreadable(answer, creates=False)
        return [
            {"id": str(shop["id"]), "title": _line(shop.get("title"))}
            for shop in shops
            if isinstance(shop, dict) and _is_number(str(shop.get("id")))
        ]

    def _variants(self, item: Item) -> tuple[_Variant, ...] | Failure:
        """Return the variants of the item's product that are in the catalogue."""
        blueprint, provider = (
            item.product.get(name) for name in ("blueprint_id", "print_provider_id")
        )
        if type(blueprint) is not int or type(provider) is not int:
            return refused({"product_type": "The product has no blueprint and print provider."})
        path = f"/catalog/blueprints/{blueprint}/print_providers/{provider}/variants.json"
        key = self._base_url + path
        read_at, variants = _catalogue.get(key, (0.0, ()))
        if variants and monotonic() - read_at < CATALOGUE_KEPT_S:
            return variants
        answer = self._get(path)
        if isinstance(answer, Failure):
            if answer.error_class == ErrorClass.NOT_FOUND:
                return refused({"product_type": "Printify's catalogue does not have it."})
            return answer
        body = answer.json()
        listed = body.get("variants") if isinstance(body, dict) else None
        if not isinstance(listed, list):
            return self._failures.of_unreadable(answer, creates=False)
        variants = tuple(filter(None, map(_read_variant, listed)))
        if len(_catalogue) >= CATALOGUE_KEPT_LIMIT:
            _catalogue.clear()
        _catalogue[key] = (monotonic(), variants)
        return variants

    def _search(
        self, path: str, matches: Callable[[Mapping[str, Any]], bool], *, newest_by: str
    ) -> Mapping[str, Any] | Failure | None:
        """Return the first entry of a list that matches, `None` when there is none.

        A list that is too long is read from its newest on, which is where a lost call's work is.
        When it turns out to be in another order, there is no telling.
        """
        times: list[str] = []
        ends_at = monotonic() + FIND_DEADLINE_S
        for page in range(1, FIND_MAX_PAGES + 1):
            left_s = ends_at - monotonic()
            if left_s <= 0:
                return self._failures.of(ErrorClass.PROVIDER_UNAVAILABLE, raw="the deadline passed")
            answer = self._get(f"{path}&page={page}", deadline_s=min(READ_DEADLINE_S, left_s))
            if isinstance(answer, Failure):
                return answer
            body = answer.json()
            entries = body.get("data") if isinstance(body, dict) else None
            if not isinstance(entries, list):
                return self._failures.of_unreadable(answer, creates=False)
            for entry in entries:
                if isinstance(entry, dict):
                    if matches(entry):
                        return entry
                    times.append(str(entry.get(newest_by)))
            last_page = body.get("last_page")
            follows = body.get("next_page_url") or (type(last_page) is int and page < last_page)
            if not entries or not follows:
                return None
        if times == sorted(times, reverse=True) and times[0] > times[-1]:
            return None
        message = "There is too much at Printify to search for what was made there."
        return Failure(ErrorClass.UNKNOWN, message)

    def _made(
        self, answer: Response | Failure, remote_id: str, others: Mapping[str, str]
    ) -> Done | Failure:
        if isinstance(answer, Failure):
            return answer
        body = answer.json()
        made = _id_of(body)
        if not made:  # but under an id that we cannot read
            return self._failures.of_unreadable(answer, creates=True)
        plain = {k: v for k, v in body.items() if not isinstance(v, (dict, list))}
        return Done({remote_id: made, **others}, raw=cut(plain))

    def _found(
        self,
        entry: Mapping[str, Any] | Failure | None,
        remote_id: str,
        others: Mapping[str, str],
    ) -> Done | NotThere | Failure:
        if entry is None:
            return NotThere()
        if isinstance(entry, Failure):
            return entry
        if not (found := _id_of(entry)):
            return self._failures.of(ErrorClass.PROVIDER_UNAVAILABLE, raw=str(cut(entry)))
        return Done({remote_id: found, **others}, raw={"found": found})

    def _get(self, path: str, *, deadline_s: float = READ_DEADLINE_S) -> Response | Failure:
        return self._call("GET", path, None, deadline_s, creates=False)

    def _post(self, path: str, body: Mapping[str, Any], deadline_s: float) -> Response | Failure:
        return self._call("POST", path, body, deadline_s, creates=True)

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        deadline_s: float,
        *,
        creates: bool,
    ) -> Response | Failure:
        """Make a call, once; only a 2xx is an answer. (A User-Agent is sent with every request.)"""
        answer = self._http.json(
            method,
            self._base_url + path,
            headers={"Authorization": f"Bearer {self._token}"},
            json=body,
            deadline_s=deadline_s,
            max_bytes=LIST_MAX_BYTES,
        )
        if isinstance(answer, TransportError):
            return self._failures.of_transport(answer, creates=creates)
        if 200 <= answer.status < 300:
            return answer
        code, detail, fields = _problem(answer.json())
        return self._failures.of_answer(
            answer, creates=creates, code=code, detail=detail, fields=fields
        )


def _mark(item: Item) -> str:
    """Return what the item's SKUs begin with. In some sales channels those are 32 letters long."""
    return "P" + hashlib.sha256(item.key.encode()).hexdigest()[:20].upper()


def _skus(product: Mapping[str, Any]) -> Iterator[str]:
    for variant in _list(product.get("variants")):
        sku = variant.get("sku") if isinstance(variant, dict) else None
        if isinstance(sku, str):
            yield sku


def _print_areas(item: Item, known: Iterable[_Variant]) -> list[dict[str, Any]]:
    """Return what is printed where: each variant in one area, with the picture in its middle."""
    wanted, named = item.product.get("variant_ids"), item.product.get("position")
    chosen = [v for v in known if v.areas and (not wanted or v.id in wanted)]
    positions = {position for variant in chosen for position in variant.areas}
    position = named or (_POSITION if _POSITION in positions or not positions else min(positions))
    by_scale: dict[float, list[int]] = {}
    for variant in [v for v in chosen if position in v.areas][:VARIANTS_LIMIT]:
        by_scale.setdefault(_scale(item, *variant.areas[position]), []).append(variant.id)
    return [
        {
            "variant_ids": variant_ids,
            "placeholders": [
                {
                    "position": position,
                    "images": [
                        {
                            "id": item.remote_ids.get("upload_id"),
                            "x": 0.5,
                            "y": 0.5,
                            "scale": scale,
                            "angle": 0,
                        }
                    ],
                }
            ],
        }
        for scale, variant_ids in by_scale.items()
    ]


def _scale(item: Item, width: float, height: float) -> float:
    """Return the picture's width as a share of the area's.

    At 1 it is as wide; to be as high it takes the ratio of the two aspect ratios. The smaller of
    them shows the whole picture, the larger leaves nothing of the area empty.
    """
    as_high = (item.width_px / item.height_px) / (width / height)
    cover = item.product.get("fit") == "cover"
    return round(max(1.0, as_high) if cover else min(1.0, as_high), 4)


def _read_variant(value: object) -> _Variant | None:
    if not isinstance(value, dict) or type(value.get("id")) is not int:
        return None
    areas: dict[str, tuple[float, float]] = {}
    for placeholder in _list(value.get("placeholders")):
        if isinstance(placeholder, dict) and isinstance(placeholder.get("position"), str):
            width, height = map(_length, (placeholder.get("width"), placeholder.get("height")))
            if width and height:
                areas[placeholder["position"]] = (width, height)
    return _Variant(value["id"], areas)


def _length(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    return float(value) if 0 < value <= 1_000_000 else 0.0


def _listing(item: Item, product: Mapping[str, Any]) -> Done | Pending | Failure:
    """Tell whether the sales channel has taken the product over.

    While it is at it, the product is locked. When it failed, nothing says so but that the product
    is unlocked and still nowhere: since when that is seen is noted.
    """
    external = _external(product)
    if product.get("is_locked") is True:
        return Pending(LISTING_WAIT_S)
    if external:
        url = as_url(external.get("handle"))
        return Done({"external_id": str(external["id"])[:100]}, url=url)
    since = item.remote_ids.get("unlisted_since", "")
    if not _is_number(since):
        return Done({"unlisted_since": str(int(time()))})
    if time() - int(since) < UNLISTED_PATIENCE_S:
        return Pending(LISTING_WAIT_S)
    message = "The shop's sales channel did not take the product over from Printify."
    return Failure(ErrorClass.INTERRUPTED, message, provider_code="unlisted")


def _external(product: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what the product is at the shop's channel: an object, or the only one of a list."""
    external = product.get("external")
    entries = external if isinstance(external, list) else [external]
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("id"), (str, int)) and entry["id"]:
            return entry
    return None


def _images(product: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the pictures printed on a product."""
    for area in _list(product.get("print_areas")):
        for placeholder in _list(area.get("placeholders")) if isinstance(area, dict) else ():
            images = placeholder.get("images") if isinstance(placeholder, dict) else None
            yield from (image for image in _list(images) if isinstance(image, dict))


def _problem(body: object) -> tuple[str, str, dict[str, str]]:
    """Return the code, the words and the fields of an error: {code, message, errors: {...}}."""
    if not isinstance(body, dict):
        return "", "", {}
    code, message, errors = body.get("code"), body.get("message"), body.get("errors")
    code = str(code)[:100] if isinstance(code, (str, int)) else ""
    reasons = errors if isinstance(errors, dict) else {}
    reason = reasons.get("reason")
    detail = reason if isinstance(reason, str) and reason else message
    fields = {
        name: text
        for name, value in reasons.items()
        if name not in ("reason", "code")
        and isinstance(text := value[0] if isinstance(value, list) and value else value, str)
    }
    return code, detail if isinstance(detail, str) else "", fields


def _id_of(body: object) -> str:
    found = body.get("id") if isinstance(body, dict) else None
    return found if isinstance(found, str) and _ID.fullmatch(found) else ""


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[1-9][0-9]{0,18}", text))


def _line(value: object) -> str:
    return " ".join(value.split())[:200] if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
