"""The channels, and how one is made for an account."""

from collections.abc import Mapping
from typing import Any

from generation.http import HttpClient
from publishing.channel import Channel
from publishing.channels.printify import Printify
from publishing.channels.shopify import Shopify

KEPT_IDS: Mapping[str, frozenset[str]] = {one.name: one.kept_ids for one in (Printify, Shopify)}
CHANGES_PRODUCT = frozenset(one.name for one in (Printify, Shopify) if one.changes_product)


def make_channel(
    name: str,
    credentials: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    http: HttpClient,
    printify_base_url: str,
    shopify_base_url: str,
    shopify_api_version: str,
) -> Channel:
    """Return the channel for an account that `publishing.products.check_account` finds good.

    Raises ValueError for another one, and for a channel that does not exist.
    """
    match name:
        case Printify.name:
            return Printify(
                str(credentials.get("token", "")),
                http=http,
                base_url=printify_base_url,
                shop_id=str(options.get("shop_id") or ""),
            )
        case Shopify.name:
            return Shopify(
                str(credentials.get("access_token", "")),
                str(options.get("shop", "")),
                http=http,
                base_url=shopify_base_url,
                api_version=shopify_api_version,
                status=str(options.get("status") or "ACTIVE"),
                vendor=str(options.get("vendor") or ""),
            )
    raise ValueError(f"There is no channel {name!r}.")
