"""Items to publish, and their pictures."""

import hashlib
import io
from dataclasses import replace
from typing import Any

from generation.provider import InputFile
from publishing.channel import Item
from publishing.products import product_types


def artwork(content: bytes = b"\x89PNG artwork", **overrides: Any) -> InputFile:
    file = InputFile(
        filename="picture.png",
        content_type="image/png",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        open=lambda: io.BytesIO(content),
    )
    return replace(file, **overrides)


def make_item(channel: str, product_type: str = "t-shirt", **overrides: Any) -> Item:
    item = Item(
        key="picture-0b1f",
        title="A cat",
        product_type=product_type,
        product=product_types(channel, {})[product_type],
        artwork=artwork(),
        width_px=4500,
        height_px=5400,
        description="Asleep.",
        tags=("cat", "sleep"),
    )
    return replace(item, **overrides)
