"""Bytes of unknown worth in, a verified image and two small copies of it out.

Nothing a provider says about a file is believed: the format comes from the bytes, the size is
checked before any pixel is decoded, and then every pixel is. The file itself is read in blocks,
so that a large picture takes little memory; `generation.renditions` decodes it.
"""

import contextlib
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from generation import renditions, svg
from generation.provider import ErrorClass, Failure
from generation.renditions import Encoded, Renditions, Resize

MAX_PIXELS = 32 * 1024 * 1024  # twice the largest picture that any model here makes
MAX_BYTES = 50 * 1024 * 1024
# What a decoder holds of a strip grows with its width. No model makes half as much.
MAX_SIDE_PX = 16_384
# Of a picture that has to be decoded whole. With Django, Celery and libvips it stays below 300 MB.
MAX_HELD_BYTES = 160_000_000
EXTENSIONS = {"webp": "webp", "png": "png", "jpeg": "jpg", "avif": "avif", "svg": "svg"}
FORMATS = frozenset(EXTENSIONS)

_BLOCK_BYTES = 1024 * 1024
# Up to here a file is read at once: quicker, and it spares a spooled file the disk.
_AT_ONCE_BYTES = 8 * 1024 * 1024
_MAX_PREVIEW_BYTES = 1024 * 1024
_MAX_PARTS = 100_000  # of a file; 64 MB of PNG in the usual blocks have 8,000
_NAMES = {"webp": "WebP", "png": "PNG", "jpeg": "JPEG", "avif": "AVIF", "svg": "SVG"}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8\xff"
_MARKUP_START = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?\s*<(?:(?P<svg>\?xml|!--|svg|!doctype\s+svg)|!doctype|html|head|body|script)",
    re.I,
)
# Long enough never to turn up by chance in compressed data, see `_read_through`.
_ACTIVE_CONTENT = re.compile(rb"<script|<!doctype|<iframe", re.I)
_OVERLAP_BYTES = 16
# What follows 0xFF where a JPEG's compressed data are over; see `_scan_end`.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_BAD_END = "The image is damaged or incomplete, or has other content after its end."


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """What is known of a file after every pixel of it was decoded, and what is made of it.

    `format` is one of `FORMATS`, `extension` the usual one without a dot. The size in pixels is
    the one as displayed, after any EXIF rotation. `content` is what is to be stored in the
    file's place, `None` to store it as it came; `size_bytes` and `sha256`, in lower-case hex,
    are those of what is stored.

    `thumbnail` fits into 256 x 256 pixels, `preview` into 1024 x 1024: upright WebP files in
    sRGB without metadata, never larger than the picture.
    """

    format: str
    width_px: int
    height_px: int
    size_bytes: int
    sha256: str
    extension: str
    content_type: str
    thumbnail: bytes
    preview: bytes
    content: bytes | None = None


def verify(
    source: Path | str | BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    formats: frozenset[str] = FORMATS,
) -> VerifiedImage | Failure:
    """Decode `source` completely; a `Failure` of class `BAD_OUTPUT` says what is wrong with it.

    Its `provider_code` is "unsupported_format", "too_large" (in pixels), "too_costly" (within
    those, but so coded that decoding it takes more than `MAX_HELD_BYTES`), or "".

    `source` is a path, or a binary file that is read from its start and left open, wherever it
    then stands. Of a file larger than `max_bytes` nothing is read, a picture of more than
    `max_pixels`, or `MAX_SIDE_PX` a side, is not decoded, and only `formats` are.
    Raises OSError when the path cannot be read: that is our fault, not the provider's.
    """
    with _opened(source) as file:
        size_bytes = file.seek(0, io.SEEK_END)
        if size_bytes == 0:
            return _bad("The file is empty.")
        if size_bytes > max_bytes:
            return _bad(f"The file is larger than {max_bytes:,} bytes.")
        image_format = _format(file)
        if image_format == "html":
            return _bad("The file is a web page, not an image.", "unsupported_format")
        if image_format not in formats:
            names = ", ".join(name for key, name in _NAMES.items() if key in formats)
            return _bad(f"The file is not an image of a kind taken: {names}.", "unsupported_format")
        if image_format == "svg":
            return _verify_svg(file, max_pixels)
        return _verify_raster(file, size_bytes, image_format, max_pixels)


def resize(
    source: BinaryIO, verified: VerifiedImage, wanted: Resize, into: BinaryIO
) -> VerifiedImage | Failure:
    """Write a verified picture in another size into a file of the system's, and describe that.

    In the format that it has; one in AVIF becomes a WebP file, and a large transparent one a PNG.
    Not for an SVG. A `Failure` is of class `BAD_OUTPUT`. Raises OSError when it cannot be written.
    """
    if verified.format == "avif":
        written = _resize_avif(source, into, wanted)
    else:
        encoded = _encoded(source, source.seek(0, io.SEEK_END))
        written = renditions.resize(encoded, into.fileno(), verified.format, wanted)
    made = written if isinstance(written, str) else renditions.make(into.fileno())
    if isinstance(written, str) or isinstance(made, str):
        return _bad(f"The image cannot be resized: {made}.")
    digest = hashlib.sha256()
    into.seek(0)
    while block := into.read(_BLOCK_BYTES):
        digest.update(block)
    return VerifiedImage(
        format=written.format,
        width_px=wanted.width_px,
        height_px=wanted.height_px,
        size_bytes=os.fstat(into.fileno()).st_size,
        sha256=digest.hexdigest(),
        extension=EXTENSIONS[written.format],
        content_type=f"image/{written.format}",
        thumbnail=made.thumbnail,
        preview=made.preview,
    )


def _resize_avif(file: BinaryIO, into: BinaryIO, wanted: Resize) -> renditions.Written | str:
    file.seek(0)
    with Image.open(file, formats=("AVIF",)) as image:
        profile = image.info.get("icc_profile") or b""
        ImageOps.exif_transpose(image, in_place=True)
        size, bands = image.size, len(image.getbands())
        pixels = image.tobytes()
    return renditions.resize_pixels(pixels, *size, bands, profile, into.fileno(), "webp", wanted)


def write_png(file: BinaryIO, image_format: str, into: BinaryIO) -> Failure | None:
    """Write a verified raster image as PNG, upright, for those who take nothing else.

    Raises OSError when it cannot be written.
    """
    if image_format == "avif":
        try:
            image = Image.open(file, formats=("AVIF",))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
        except Exception as error:  # as in `_decode_avif`
            return _damaged(_brief(error))
        image.save(into, format="PNG", icc_profile=image.info.get("icc_profile"), exif=b"")
        return None
    file.seek(0, io.SEEK_END)
    problem = renditions.write_png(_encoded(file, file.tell()), into.fileno())
    return _damaged(problem) if problem else None


@contextlib.contextmanager
def _opened(source: Path | str | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            yield file
    else:
        yield source


def _format(file: BinaryIO) -> str:
    """Return one of `FORMATS`, "html", or "" for what is nothing known."""
    file.seek(0)
    start = file.read(1024)
    if start.startswith(_PNG_START):
        return "png"
    if start.startswith(_JPEG_START):
        return "jpeg"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    # Source: AVIF specification 1.1, section 6, read 2026-11-20
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "avif"
    if markup := _MARKUP_START.match(start):
        return "svg" if markup["svg"] else "html"
    return ""


def _verify_svg(file: BinaryIO, max_pixels: int) -> VerifiedImage | Failure:
    file.seek(0)
    drawing = svg.sanitise(file.read(svg.MAX_BYTES + 1), max_pixels=max_pixels)
    if isinstance(drawing, str):
        return _bad(f"The SVG {drawing}.")
    drawn = svg.draw(drawing.content)
    if isinstance(drawn, str):
        return _bad(f"The SVG {drawn}.")
    return VerifiedImage(
        format="svg",
        width_px=drawing.width_px,
        height_px=drawing.height_px,
        size_bytes=len(drawing.content),
        sha256=hashlib.sha256(drawing.content).hexdigest(),
        extension=EXTENSIONS["svg"],
        content_type="image/svg+xml",
        thumbnail=drawn.thumbnail,
        preview=drawn.preview,
        content=drawing.content,
    )


@dataclass(frozen=True, slots=True)
class _Decoded:
    width_px: int
    height_px: int
    renditions: Renditions


def _verify_raster(
    file: BinaryIO, size_bytes: int, image_format: str, max_pixels: int
) -> VerifiedImage | Failure:
    encoded = _encoded(file, size_bytes)
    if isinstance(encoded, bytes):
        file = io.BytesIO(encoded)
    if image_format == "avif":
        decoded = _decode_avif(file, size_bytes, max_pixels)
    else:
        decoded = _decode(file, size_bytes, encoded, image_format, max_pixels)
    if isinstance(decoded, Failure):
        return decoded
    sha256 = _read_through(file)
    if isinstance(sha256, Failure):
        return sha256
    return VerifiedImage(
        format=image_format,
        width_px=decoded.width_px,
        height_px=decoded.height_px,
        size_bytes=size_bytes,
        sha256=sha256,
        extension=EXTENSIONS[image_format],
        content_type=f"image/{image_format}",
        thumbnail=decoded.renditions.thumbnail,
        preview=decoded.renditions.preview,
    )


def _encoded(file: BinaryIO, size_bytes: int) -> Encoded:
    if size_bytes > _AT_ONCE_BYTES:
        with contextlib.suppress(OSError):  # no file of the system's: it is in memory already
            return file.fileno()
    file.seek(0)
    return file.read()


def _decode(
    file: BinaryIO, size_bytes: int, encoded: Encoded, image_format: str, max_pixels: int
) -> _Decoded | Failure:
    header = renditions.read_header(encoded)
    if isinstance(header, str):
        return _damaged(header)
    width_px, height_px, held_bytes = header.width_px, header.height_px, header.held_bytes
    if too_large := _too_large(width_px, height_px, max_pixels):
        return too_large
    match image_format:
        case "png":
            chunks = _png_chunks(file, size_bytes)
        case "webp":
            chunks = _webp_chunks(file, size_bytes)
        case _:
            chunks = [] if _jpeg_ends(file, size_bytes) else None
    if chunks is None:
        return _bad(_BAD_END)
    if (frames := _frames(file, chunks)) > 1:
        return _animation(frames)
    kinds = [chunk.kind for chunk in chunks]
    if image_format == "webp":
        # libvips maps the file into memory. A lossy picture comes strip by strip, its
        # transparency and a lossless one do not.
        held_bytes = size_bytes
        held_bytes += width_px * height_px * (4 if b"VP8L" in kinds else 2 * (b"ALPH" in kinds))
    if held_bytes > MAX_HELD_BYTES:
        return _too_costly(width_px, height_px, held_bytes)
    # Such a file is what a preview would be, but for being encoded once more.
    fits = size_bytes <= _MAX_PREVIEW_BYTES and max(width_px, height_px) <= renditions.PREVIEW_PX
    preview = encoded if fits and kinds == [b"VP8 "] and isinstance(encoded, bytes) else b""
    made = renditions.make(encoded, with_preview=not preview)
    if isinstance(made, str):
        return _damaged(made)
    made = Renditions(made.thumbnail, preview or made.preview)
    return _Decoded(width_px, height_px, made)


def _decode_avif(file: BinaryIO, size_bytes: int, max_pixels: int) -> _Decoded | Failure:
    """Pillow needs half the memory for it that libvips does, whose loader is little used."""
    if _avif_boxes(file, size_bytes) is None:
        return _bad(_BAD_END)
    try:
        with Image.open(file, formats=("AVIF",)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            width_px, height_px = image.size if orientation < 5 else image.size[::-1]
            if too_large := _too_large(width_px, height_px, max_pixels):
                return too_large
            if (frames := getattr(image, "n_frames", 1)) > 1:
                return _animation(frames)
            # The planes, those of the decoder's next frame, and the pixels.
            held_bytes = size_bytes + width_px * height_px * (15 if image.mode == "RGBA" else 11)
            if held_bytes > MAX_HELD_BYTES:
                return _too_costly(width_px, height_px, held_bytes)
            profile = image.info.get("icc_profile") or b""
            image.thumbnail((renditions.PREVIEW_PX,) * 2, reducing_gap=2.0)
            ImageOps.exif_transpose(image, in_place=True)
            made = renditions.make_of_pixels(
                image.tobytes(), *image.size, len(image.getbands()), profile
            )
    except UnidentifiedImageError:
        return _damaged("no AVIF image")
    # A decoder fed with hostile bytes raises nearly anything: OSError, SyntaxError, ValueError,
    # struct.error, EOFError, MemoryError.
    except Exception as error:
        return _damaged(_brief(error))
    return _damaged(made) if isinstance(made, str) else _Decoded(width_px, height_px, made)


# --- Content besides the picture ----------------------------------------------------------------
# A valid image can be a web page or an archive as well. Its bytes are stored and served as they
# came, so a file with anything after its picture, or with a script in it, is refused.


def _read_through(file: BinaryIO) -> str | Failure:
    """Return the file's SHA-256 in hex, unless a web page is hidden in it."""
    digest, last = hashlib.sha256(), b""
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
        if found := _ACTIVE_CONTENT.search(last + block):
            name = found[0].decode().lower()
            return _bad(f"The image contains {name!r}: a web page is hidden in it.")
        last = block[-_OVERLAP_BYTES:]
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a file: where its header starts, and its length with header and all."""

    kind: bytes
    at: int
    length: int


def _chunks(
    file: BinaryIO, at: int, end: int, read: Callable[[bytes], tuple[bytes, int]]
) -> list[_Chunk] | None:
    """List the chunks that fill a file from `at` to `end`; `None` when they do not.

    `read` makes of a chunk's first 16 bytes, or what there is of them, its kind and its length.
    """
    chunks: list[_Chunk] = []
    while at < end:
        file.seek(at)
        header = file.read(16)
        if len(header) < 8 or len(chunks) == _MAX_PARTS:
            return None
        kind, length = read(header)
        if length < 8 or at + length > end:
            return None
        chunks.append(_Chunk(kind, at, length))
        at += length
    return chunks


def _png_chunks(file: BinaryIO, size_bytes: int) -> list[_Chunk] | None:
    """Check every checksum too.

    Source: PNG specification (third edition), section 5, read 2026-11-20
    """

    def read(header: bytes) -> tuple[bytes, int]:
        return header[4:8], 12 + int.from_bytes(header[:4], "big")

    chunks = _chunks(file, len(_PNG_START), size_bytes, read)
    if not chunks or chunks[-1].kind != b"IEND" or not all(_is_sound(file, one) for one in chunks):
        return None
    return chunks if sum(chunk.kind == b"IEND" for chunk in chunks) == 1 else None


def _is_sound(file: BinaryIO, chunk: _Chunk) -> bool:
    file.seek(chunk.at + 4)
    left, checksum = chunk.length - 8, 0
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    return file.read(4) == struct.pack(">I", checksum)


def _webp_chunks(file: BinaryIO, size_bytes: int) -> list[_Chunk] | None:
    """Source: WebP container specification, "RIFF file format", read 2026-11-20"""

    def read(header: bytes) -> tuple[bytes, int]:
        length = int.from_bytes(header[4:8], "little")
        return header[:4], 8 + length + length % 2

    file.seek(4)
    end = 8 + int.from_bytes(file.read(4), "little")
    return _chunks(file, 12, end, read) if size_bytes - end in (0, 1) else None


def _avif_boxes(file: BinaryIO, size_bytes: int) -> list[_Chunk] | None:
    """Source: ISO/IEC 14496-12, section 4.2, read 2026-11-20"""

    def read(header: bytes) -> tuple[bytes, int]:
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        return header[4:8], length

    return _chunks(file, 0, size_bytes, read)


def _frames(file: BinaryIO, chunks: list[_Chunk]) -> int:
    """Source: PNG specification, section 11.3.6.1; WebP container, read 2026-11-20"""
    frames = 0
    for chunk in chunks:
        if chunk.kind == b"acTL":
            file.seek(chunk.at + 8)
            frames = int.from_bytes(file.read(4), "big")
        frames += chunk.kind == b"ANMF"
    return frames


def _jpeg_ends(file: BinaryIO, size_bytes: int) -> bool:
    """Whether a JPEG's end marker is the last of the file, but for zeros.

    Source: ITU-T T.81, section B.1.1, read 2026-11-20
    """
    at = len(_JPEG_START) - 1
    for _ in range(_MAX_PARTS):
        file.seek(at)
        header = file.read(4)
        if len(header) < 2 or header[0] != 0xFF:
            return False
        match header[1]:
            case 0xFF:
                at += 1
            case 0xD9:
                file.seek(at + 2)
                return size_bytes - at < _BLOCK_BYTES and not file.read().strip(b"\x00")
            case 0x01 | 0xD0 | 0xD1 | 0xD2 | 0xD3 | 0xD4 | 0xD5 | 0xD6 | 0xD7:
                at += 2
            case marker:
                at += 2 + int.from_bytes(header[2:], "big")
                if marker == 0xDA:
                    at = _scan_end(file, at)
    return False


def _scan_end(file: BinaryIO, at: int) -> int:
    """Return where the first marker is after compressed data, the file's end for none."""
    file.seek(at)
    last = b""
    while block := file.read(_BLOCK_BYTES):
        if found := _JPEG_MARKER.search(last + block):
            return at - len(last) + found.start()
        at += len(block)
        last = block[-1:]
    return at


def _too_large(width_px: int, height_px: int, max_pixels: int) -> Failure | None:
    if width_px * height_px > max_pixels:
        limit = f"{max_pixels:,} pixels"
    elif max(width_px, height_px) > MAX_SIDE_PX:
        limit = f"{MAX_SIDE_PX:,} pixels a side"
    else:
        return None
    return _bad(f"The image is {width_px}x{height_px}, more than {limit}.", "too_large")


def _too_costly(width_px: int, height_px: int, held_bytes: int) -> Failure:
    return _bad(
        f"The image is {width_px}x{height_px} and coded so that it takes {held_bytes:,} bytes of "
        f"memory to decode, more than {MAX_HELD_BYTES:,}.",
        "too_costly",
    )


def _animation(frames: int) -> Failure:
    return _bad(f"The file is an animation of {frames} frames, not a still image.")


def _damaged(reason: str) -> Failure:
    return _bad(f"The image is damaged or incomplete: {reason}.")


def _bad(message: str, code: str = "") -> Failure:
    return Failure(ErrorClass.BAD_OUTPUT, message, provider_code=code)


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120].rstrip(".")
