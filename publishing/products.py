"""What can be published where: the product types of each channel, and what an account may say.

A product type of `products.json` goes for every account; the `products` in an account's options
add to them and replace them. The facts of Printify's are from its catalogue, read 2026-11-20.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

CHANNELS = ("printify", "shopify")
CREDENTIAL_FIELDS = {"printify": ("token",), "shopify": ("access_token",)}
# No other host is reached by what a user writes.
SHOP_PATTERN = r"^[a-z0-9][a-z0-9-]{0,99}\.myshopify\.com\Z"
PRODUCT_TYPES_LIMIT = 200
VARIANT_IDS_LIMIT = 100
UNKNOWN_FIELDS_TOLD = 20

# Of a user's mistake in one place: where, a stable code, why, and what is allowed, if it is a list.
AccountProblem = tuple[str, str, str, list[str] | None]

# Each says what is wrong of a value that does not fit; the patterns are of JSON Schema, where a
# closing $ would let a line break through.
_TOKEN = {"type": "string", "pattern": r"^[!-~]{1,4000}\Z", "description": "a token of the channel"}
_TITLE = {"type": "string", "pattern": r"\S", "maxLength": 200, "description": "a title"}
_PRICE = {
    "type": "string",
    "pattern": r"^(?!0+(\.0+)?\Z)[0-9]{1,5}(\.[0-9]{1,2})?\Z",
    "description": "a price in USD such as 19.99",
}
_NUMBER = {
    "type": "integer",
    "minimum": 1,
    "maximum": 2**53,
    "description": "a number of Printify's catalogue",
}
_SHOP_ID = {
    "type": ["string", "integer"],
    "pattern": r"^[1-9][0-9]{0,18}\Z",
    "minimum": 1,
    "maximum": 10**19,
    "description": "the number of a shop",
}
_PRODUCTS: dict[str, dict[str, Any]] = {
    "printify": {
        "type": "object",
        "additionalProperties": False,
        "required": ["title", "price_usd", "blueprint_id", "print_provider_id"],
        "properties": {
            "title": _TITLE,
            "price_usd": _PRICE,
            "blueprint_id": _NUMBER,
            "print_provider_id": _NUMBER,
            "variant_ids": {
                "type": "array",
                "minItems": 1,
                "maxItems": VARIANT_IDS_LIMIT,
                # Its items are looked at only if there are not too many.
                "if": {"maxItems": VARIANT_IDS_LIMIT},
                "then": {"items": _NUMBER},
                "description": f"a list of 1 to {VARIANT_IDS_LIMIT} numbers of its catalogue",
            },
            "position": {
                "type": "string",
                "pattern": r"^[a-z0-9_]{1,50}\Z",
                "description": "a place on the product such as front",
            },
            "fit": {"enum": ["contain", "cover"]},
        },
    },
    "shopify": {
        "type": "object",
        "additionalProperties": False,
        "required": ["title", "price_usd"],
        "properties": {
            "title": _TITLE,
            "price_usd": _PRICE,
            "product_type": {**_TITLE, "description": "a type as the shop lists it"},
        },
    },
}


def _products(channel: str) -> dict[str, Any]:
    return {
        "type": "object",
        "maxProperties": PRODUCT_TYPES_LIMIT,
        "if": {"maxProperties": PRODUCT_TYPES_LIMIT},
        "then": {
            "propertyNames": {
                "pattern": r"^[a-z0-9][a-z0-9-]{0,49}\Z",
                "description": "named in up to 50 small letters, digits and hyphens",
            },
            "additionalProperties": _PRODUCTS[channel],
        },
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "printify": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"shop_id": _SHOP_ID, "products": _products("printify")},
    },
    "shopify": {
        "type": "object",
        "additionalProperties": False,
        "required": ["shop"],
        "properties": {
            "shop": {
                "type": "string",
                "pattern": SHOP_PATTERN,
                "description": "the shop's own domain such as example.myshopify.com",
            },
            "status": {"enum": ["ACTIVE", "DRAFT"]},
            "vendor": {**_TITLE, "maxLength": 255, "description": "a name"},
            "products": _products("shopify"),
        },
    },
}
_ACCOUNTS = {
    channel: Draft202012Validator(
        {
            "type": "object",
            "properties": {
                "credentials": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": list(CREDENTIAL_FIELDS[channel]),
                    "properties": dict.fromkeys(CREDENTIAL_FIELDS[channel], _TOKEN),
                },
                "options": _OPTIONS[channel],
            },
        }
    )
    for channel in CHANNELS
}
_BUILT_IN: dict[str, dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).with_name("products.json").read_text(encoding="utf-8")
)


def product_types(channel: str, options: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what an account with these options can publish as: product type -> product.

    Every product has a `title` for users and a `price_usd`; the rest is for the adapter. Raises
    KeyError for a channel that does not exist.
    """
    own = options.get("products")
    return {**_BUILT_IN[channel], **(own if isinstance(own, Mapping) else {})}


def check_account(
    channel: str, credentials: Mapping[str, Any], options: Mapping[str, Any]
) -> list[AccountProblem]:
    """Return what is wrong with an account as (field, code, detail, allowed), in order of field.

    Fields are paths such as `options.products.mug.price_usd`; no detail repeats a credential.
    Raises KeyError for a channel that does not exist.
    """
    account = {"credentials": credentials, "options": options}
    found = {
        problem[:2]: problem
        for error in _ACCOUNTS[channel].iter_errors(account)
        for problem in _problems(error)
    }
    return [found[key] for key in sorted(found)]


def _problems(error: ValidationError) -> Iterator[AccountProblem]:
    place = ".".join(str(part) for part in error.absolute_path)
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    value: Any = error.instance
    wanted: Any = error.validator_value
    match error.validator:
        case "required":
            for name in wanted:
                if name not in value:
                    yield f"{place}.{name}", "required", "This field is required.", None
        case "additionalProperties":
            known = sorted(schema["properties"])
            for name in sorted(value.keys() - set(known))[:UNKNOWN_FIELDS_TOLD]:
                yield f"{place}.{name}"[:300], "unknown_field", "There is no such field.", known
        case "enum":
            allowed = [str(value) for value in wanted]
            yield place, "invalid", f"Must be one of {', '.join(allowed)}.", allowed
        case "maxProperties":
            yield place, "invalid", f"At most {PRODUCT_TYPES_LIMIT} product types are taken.", None
        case _ if "propertyNames" in error.absolute_schema_path:
            name = str(value)[:60]
            yield place, "invalid", f"Product type {name!r} must be {schema['description']}.", None
        case _:
            described = schema.get("description") or f"of type {schema.get('type')}"
            yield place, "invalid", f"Must be {described}.", None
