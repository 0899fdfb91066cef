"""Draw the output images: cheap, plainly simulated, the same bytes for the same request."""

from __future__ import annotations

import hashlib
import io
import random
import textwrap
from functools import lru_cache
from html import escape
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MARK = "SIMULATED"
CONTENT_TYPES = {
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "png": "image/png",
    "svg": "image/svg+xml",
}

# Encoding dominates the cost. Drawing happens on a canvas this wide at most, enlarged by
# repeating pixels, which also compresses well.
CANVAS_PX = 256
LONGEST_TEXT = 160
SHAPES = 7
_ENCODERS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "method": 0, "quality": 40},
    "jpg": {"format": "JPEG", "quality": 70},
    "png": {"format": "PNG", "compress_level": 1},
}


@lru_cache(maxsize=64)
def render(
    prompt: str, seed: int, model_id: str, width_px: int, height_px: int, image_format: str
) -> bytes:
    """Return an encoded image of exactly the given size, marked as simulated."""
    key = f"{model_id}\n{seed}\n{prompt}".encode("utf-8", "replace")
    rng = random.Random(hashlib.sha256(key).digest())
    text = prompt.encode("utf-8", "replace").decode()[:LONGEST_TEXT]
    if image_format == "svg":
        return _draw_svg(rng, text, seed, width_px, height_px)
    image = _draw(rng, text, seed, width_px, height_px)
    buffer = io.BytesIO()
    image.save(buffer, **_ENCODERS[image_format])
    return buffer.getvalue()


def _draw(rng: random.Random, text: str, seed: int, width_px: int, height_px: int) -> Image.Image:
    shrink = max(1, max(width_px, height_px) // CANVAS_PX)
    width, height = max(1, width_px // shrink), max(1, height_px // shrink)
    canvas = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(canvas)
    for _ in range(SHAPES):
        x, y = rng.randrange(width), rng.randrange(height)
        radius = rng.randrange(4, max(5, width // 3))
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
    lines = textwrap.wrap(text, max(8, width // 7))[:5]
    draw.rectangle((0, 0, width, 34 + 13 * len(lines)), fill="black")
    draw.text((4, 1), MARK, font=_font(16), fill="yellow")
    draw.text((4, 18), "\n".join([f"seed {seed}", *lines]), font=_font(11), fill="white", spacing=1)
    return canvas.resize((width_px, height_px), Image.Resampling.NEAREST)


def _draw_svg(rng: random.Random, text: str, seed: int, width_px: int, height_px: int) -> bytes:
    shapes = "".join(
        f'<circle cx="{rng.randrange(width_px)}" cy="{rng.randrange(height_px)}" '
        f'r="{rng.randrange(20, 300)}" fill="rgb{_colour(rng)}"/>'
        for _ in range(SHAPES)
    )
    printable = escape("".join(c for c in text if c.isprintable()))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width_px}" height="{height_px}" '
        f'viewBox="0 0 {width_px} {height_px}">'
        f'<rect width="100%" height="100%" fill="rgb{_colour(rng)}"/>{shapes}'
        f'<text x="20" y="60" font-size="48">{MARK}</text>'
        f'<text x="20" y="100" font-size="24">seed {seed}: {printable}</text></svg>'
    )
    return svg.encode()


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


@lru_cache(maxsize=4)
def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)
