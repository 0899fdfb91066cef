"""Output files and URLs that mean harm."""

from __future__ import annotations

import io
import zlib

import pytest
import requests
from PIL import Image

from tests.simulator.support import Simulator


def file_of(sim: Simulator, **kwargs: object) -> requests.Response:
    """Run a prediction and return the answer for its file, redirects not followed."""
    (url,) = sim.run(prompt="a cat", output_format="webp")["output"]
    headers = {"Accept-Encoding": "identity"}
    return sim.request("GET", url, headers=headers, allow_redirects=False, **kwargs)


def test_a_gzip_bomb_is_small_on_the_wire_and_200_mb_unpacked(sim: Simulator) -> None:
    sim.fault("gzip_bomb")
    with file_of(sim, stream=True) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        packed = response.raw.read(decode_content=False)
    assert 100_000 < len(packed) < 250_000
    assert int(response.headers["Content-Length"]) == len(packed)
    unpacker, size_bytes, head = zlib.decompressobj(16 + zlib.MAX_WBITS), 0, b""
    while piece := unpacker.decompress(packed, 1 << 20):
        head = head or piece
        size_bytes += len(piece)
        packed = unpacker.unconsumed_tail
    assert (size_bytes, unpacker.eof) == (200_000_000, True)
    assert Image.open(io.BytesIO(head)).format == "PNG"


def test_a_huge_png_is_valid_and_has_64_million_pixels(sim: Simulator) -> None:
    sim.fault("huge_png")
    response = file_of(sim)
    assert response.headers["Content-Type"] == "image/png"
    assert len(response.content) < 10_000
    image = Image.open(io.BytesIO(response.content))
    image.load()
    assert (image.format, image.size) == ("PNG", (8000, 8000))
    assert len(image.getcolors() or []) == 1


def test_a_polyglot_opens_as_an_image_and_ends_as_a_page(sim: Simulator) -> None:
    sim.fault("polyglot")
    response = file_of(sim)
    assert response.headers["Content-Type"] == "image/jpeg"
    image = Image.open(io.BytesIO(response.content))
    image.load()
    assert (image.format, image.size) == ("JPEG", (1024, 1024))
    assert b"<script>" in response.content.rpartition(b"\xff\xd9")[2]


def test_an_svg_can_hold_a_script(sim: Simulator) -> None:
    sim.fault("svg_script")
    response = file_of(sim)
    assert response.headers["Content-Type"] == "image/svg+xml"
    assert response.text.startswith("<svg ")
    assert "<script>" in response.text
    assert "onload=" in response.text


def test_output_urls_can_name_another_host(sim: Simulator) -> None:
    sim.fault("foreign_host", times=1)
    sim.fault("foreign_host", base_url="http://10.0.0.1:8000")
    first, second = sim.run(), sim.run()
    assert first["output"] == [f"https://files.example.net/files/out/{first['id']}/0.webp"]
    assert second["output"] == [f"http://10.0.0.1:8000/files/out/{second['id']}/0.webp"]
    assert first["urls"]["get"].startswith(sim.url)


def test_a_file_can_redirect_to_a_private_address(sim: Simulator) -> None:
    sim.fault("file_redirect", times=1)
    sim.fault("file_redirect", location="http://127.0.0.1:22/")
    locations = [file_of(sim).headers["Location"] for _ in range(2)]
    assert locations == ["http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:22/"]


@pytest.mark.parametrize(
    "kind", ["gzip_bomb", "huge_png", "polyglot", "svg_script", "file_redirect"]
)
def test_the_second_download_can_be_harmless(sim: Simulator, kind: str) -> None:
    sim.fault(kind, hits=1)
    (url,) = sim.run(output_format="webp")["output"]
    spoiled, harmless = (
        sim.request("GET", url, allow_redirects=False, stream=True) for _ in range(2)
    )
    with spoiled, harmless:
        assert (spoiled.status_code == 302) is (kind == "file_redirect")
        assert harmless.headers["Content-Type"] == "image/webp"
        assert harmless.content[:4] == b"RIFF"
