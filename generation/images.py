"""Bytes of unknown worth in, a verified image and its thumbnail out.

Nothing a provider says about a file is believed: the format comes from the bytes, the whole
picture is decoded, and the size is checked before any pixel is.
"""

import hashlib
import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from generation.provider import ErrorClass, Failure

MAX_PIXELS = 32 * 1024 * 1024  # twice the largest picture that any model here makes
MAX_BYTES = 50 * 1024 * 1024
THUMBNAIL_PX = 256

_DECODERS = ("PNG", "WEBP", "JPEG")
# Pillow names a JPEG with several frames MPO.
_FORMATS = {"PNG": "png", "WEBP": "webp", "JPEG": "jpeg", "MPO": "jpeg"}
_EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
_MARKUP_START = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(\?xml|!doctype|html|svg|head|body)", re.I)
# Long enough never to turn up by chance in compressed data, see `_hidden_content`.
_ACTIVE_CONTENT = re.compile(rb"<script|<!doctype|<iframe", re.I)
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """What is known of a file after every pixel of it was decoded.

    `format` is `webp`, `png` or `jpeg`, `extension` the usual one without a dot. The size in
    pixels is the stored one, before any EXIF rotation. `sha256` is in lower-case hex.
    `thumbnail` is a WebP file of at most 256 x 256 pixels, upright.
    """

    format: str
    width_px: int
    height_px: int
    size_bytes: int
    sha256: str
    extension: str
    content_type: str
    thumbnail: bytes


def verify(
    source: Path | str | BinaryIO, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> VerifiedImage | Failure:
    """Decode `source` completely; a `Failure` of class `BAD_OUTPUT` says what is wrong with it.

    `source` is a path, or a binary file that is read from its start and left open. At most
    `max_bytes + 1` bytes are read, and a picture of more than `max_pixels` is not decoded.
    Raises OSError when the path cannot be read: that is our fault, not the provider's.
    """
    data = _read(source, max_bytes + 1)
    if not data:
        return _bad("The file is empty.")
    if len(data) > max_bytes:
        return _bad(f"The file is larger than {max_bytes:,} bytes.")
    if markup := _MARKUP_START.match(data):
        kind = "an SVG or XML document" if markup[1].lower() in (b"?xml", b"svg") else "a web page"
        return _bad(f"The file is {kind}, not a WebP, PNG or JPEG image.")
    try:
        return _decode(data, max_pixels)
    # A decoder fed with hostile bytes raises nearly anything: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, EOFError, MemoryError, DecompressionBombError.
    except Exception as error:
        return _bad(f"The image is damaged or incomplete: {_brief(error)}.")


def _read(source: Path | str | BinaryIO, limit_bytes: int) -> bytes:
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            return file.read(limit_bytes)
    source.seek(0)
    return source.read(limit_bytes)


def _decode(data: bytes, max_pixels: int) -> VerifiedImage | Failure:
    try:
        image = Image.open(io.BytesIO(data), formats=_DECODERS)
    except UnidentifiedImageError:
        return _bad("The file is not a WebP, PNG or JPEG image.")
    with image:
        width_px, height_px = image.size
        # `open` has read the header only. Checking here rather than by Image.MAX_IMAGE_PIXELS
        # leaves process-wide state alone, which other threads share.
        if width_px * height_px > max_pixels:
            return _bad(f"The image is {width_px}x{height_px}, more than {max_pixels:,} pixels.")
        image_format = _FORMATS[str(image.format)]
        if (frames := getattr(image, "n_frames", 1)) > 1:
            return _bad(f"The file is an animation of {frames} frames, not a still image.")
        if hidden := _hidden_content(data, image_format):
            return _bad(hidden)
        # For JPEG this has the decoder scale while it reads (the whole file is still read);
        # for the others it does nothing.
        image.draft(None, (THUMBNAIL_PX * 2, THUMBNAIL_PX * 2))
        image.load()
        thumbnail = _thumbnail(image)
    return VerifiedImage(
        format=image_format,
        width_px=width_px,
        height_px=height_px,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        extension=_EXTENSIONS[image_format],
        content_type=f"image/{image_format}",
        thumbnail=thumbnail,
    )


def _thumbnail(image: Image.Image) -> bytes:
    """Encode a small upright copy; `image` is used up."""
    if image.mode not in ("RGB", "RGBA"):
        has_alpha = image.mode in ("LA", "PA", "La") or "transparency" in image.info
        small = image.convert("RGBA" if has_alpha else "RGB")
    else:
        small = image
    # A gap of 2 lets a fast box filter do most of the shrinking.
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC, reducing_gap=2.0)
    ImageOps.exif_transpose(small, in_place=True)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=80, method=1, exif=b"", xmp=b"", icc_profile=b"")
    return out.getvalue()


def _hidden_content(data: bytes, image_format: str) -> str:
    """Say what a file carries besides its picture, "" for nothing.

    A valid image can be a web page or an archive as well. The bytes are stored and served as
    they came, so a file with anything after its picture, or with a script in it, is refused.
    """
    match image_format:
        case "png":
            ends = _png_end(data) == len(data)
        case "webp":
            riff_bytes = int.from_bytes(data[4:8], "little") + 8
            ends = len(data) - riff_bytes in (0, 1)
        case _:
            ends = data.rstrip(b"\x00").endswith(_JPEG_END)
    if not ends:
        return "The image is damaged or incomplete, or has other content after its end."
    if found := _ACTIVE_CONTENT.search(data):
        return f"The image contains {found[0].decode().lower()!r}: a web page is hidden in it."
    return ""


def _png_end(data: bytes) -> int:
    """Return where the PNG's last chunk ends, -1 when a chunk is cut off or its checksum wrong.

    Pillow does not check the sums of the chunks that hold the pixels.
    Source: PNG specification (third edition), section 5, read 2026-11-20
    """
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 12 + length
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return -1
        if data[at + 4 : at + 8] == b"IEND":
            return end
        at = end
    return -1


def _bad(message: str) -> Failure:
    return Failure(ErrorClass.BAD_OUTPUT, message)


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120].rstrip(".")
