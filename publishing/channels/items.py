"""What both channels ask of an item, and how they write it."""

import html
import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from urllib.parse import urlsplit

from generation.provider import ErrorClass, Failure
from publishing.channel import Item

TITLE_LIMIT = 255
TAGS_LIMIT = 250
TAG_LIMIT = 255
PRICE_LIMIT_USD = Decimal("99999.99")
_URL_LIMIT = 500
_EXTENSIONS = {"image/png": ".png", "image/jpeg": ".jpg"}
_TOKEN = re.compile(r"[!-~]+")


def asked_price(item: Item, *, max_bytes: int, max_pixels: int) -> Decimal | Failure:
    """Return the price in USD of an item that is as it should be.

    Refuses what the channel would refuse: its error answers count against the account.
    """
    if not item.product:
        return refused(
            {"product_type": f"There is no product type {item.product_type!r} any more."}
        )
    fields: dict[str, str] = {}
    if not 0 < len(item.title.strip()) <= TITLE_LIMIT:
        fields["title"] = f"The title must have 1 to {TITLE_LIMIT} characters."
    if len(item.tags) > TAGS_LIMIT or not all(0 < len(tag) <= TAG_LIMIT for tag in item.tags):
        fields["tags"] = f"At most {TAGS_LIMIT} tags, each of 1 to {TAG_LIMIT} characters."
    price = _price_of(item)
    if price is None:
        fields["price_usd"] = f"The price must be from 0.01 to {PRICE_LIMIT_USD} USD."
    if item.artwork.content_type not in _EXTENSIONS:
        fields["image"] = "The picture must be PNG or JPEG."
    elif item.artwork.size_bytes > max_bytes:
        fields["image"] = f"The picture must have at most {max_bytes:,} bytes."
    elif item.width_px < 1 or item.height_px < 1 or item.width_px * item.height_px > max_pixels:
        fields["image"] = f"The picture must have at most {max_pixels:,} pixels."
    return refused(fields) if fields or price is None else price


def refused(fields: dict[str, str]) -> Failure:
    """Say what is wrong with an item, which nobody has been sent yet."""
    message = " ".join(fields.values())
    return Failure(ErrorClass.INVALID_INPUT, message[:300], provider_code="local", fields=fields)


def _price_of(item: Item) -> Decimal | None:
    """Return the price in USD, of whole cents; `None` if there is none that can be asked."""
    try:
        price = Decimal(
            item.product.get("price_usd", "") if item.price_usd is None else item.price_usd
        )
        price = price.quantize(Decimal("0.01"), ROUND_HALF_UP)
    except (InvalidOperation, TypeError, ValueError):
        return None
    return price if price.is_finite() and 0 < price <= PRICE_LIMIT_USD else None


def file_name(item: Item) -> str:
    """Return the artwork's name at the channel; nothing else there has it."""
    return item.key + _EXTENSIONS.get(item.artwork.content_type, "")


def description_html(item: Item) -> str:
    """Return the description, or the title where there is none, as paragraphs."""
    text = item.description.strip() or item.title
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n"))]
    return "".join(
        f"<p>{html.escape(part).replace(chr(10), '<br>')}</p>" for part in paragraphs if part
    )


def as_url(value: object) -> str:
    """Return an http(s) URL that can be shown and stored, "" for anything else."""
    if not isinstance(value, str) or len(value) > _URL_LIMIT or not _TOKEN.fullmatch(value):
        return ""
    try:
        parts = urlsplit(value)
    except ValueError:
        return ""
    return value if parts.scheme in ("http", "https") and parts.hostname else ""


def check_token(token: str) -> None:
    """Raises ValueError, which does not repeat it, for a token that no header can carry."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("The token is empty or has characters that no token has.")
