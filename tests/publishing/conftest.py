"""An item to publish, and a network whose every answer is known."""

import hashlib
import io
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import responses

from generation.http import HttpClient
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


@pytest.fixture
def http() -> Iterator[HttpClient]:
    with HttpClient(timeout_s=5, connect_timeout_s=1) as client:
        yield client


@pytest.fixture
def api() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def refused_url() -> str:
    """A URL on a port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}"
