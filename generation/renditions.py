"""Small upright copies of a picture, and the one place that uses libvips.

libvips decodes PNG, JPEG and WebP strip by strip while it shrinks them, so a picture of 8192 x
8192 pixels never is in memory whole. Other loaders of it are blocked.

It starts threads with the first picture, and a fork takes none of them along: a process may
use this module or fork processes that use it, not both in this order. A Celery worker's main
process does not decode, its children do.

Run as a program, this file draws the SVG on its standard input, in as many seconds of processor
time as its argument says. It then imports nothing of the project, has bounded memory, and may
write no file; see `generation.svg`.
"""

import contextlib
import functools
import os
import resource
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

THUMBNAIL_PX = 256
PREVIEW_PX = 1024
LOADERS = ("VipsForeignLoadPng", "VipsForeignLoadJpeg", "VipsForeignLoadWebp")
SVG_LOADER = "VipsForeignLoadSvg"
DRAWING_BYTES = 256 * 1024 * 1024
# What the program writes: the length of the thumbnail, the thumbnail, the preview.
DRAWN = struct.Struct(">I")

# A picture's file: all of it, or a descriptor of it whose offset is left as it was.
Encoded = bytes | int

_PROFILE = "icc-profile-data"
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its picture before any pixel is decoded.

    The size is the one as displayed, after EXIF rotation. `held_bytes` is the memory that a
    decoder needs for the whole picture at once: 0 for what comes strip by strip.
    """

    width_px: int
    height_px: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Renditions:
    """WebP files in sRGB, upright, with nothing in them but the picture.

    `thumbnail` fits into 256 x 256 pixels, `preview` into 1024 x 1024. A picture that fits by
    itself keeps its size. `preview` is empty where none was asked for.
    """

    thumbnail: bytes
    preview: bytes


def read_header(encoded: Encoded) -> Header | str:
    """Read a PNG, JPEG or WebP file's header; a text says why that is impossible."""
    vips = _vips()
    with _Offset(encoded):
        try:
            image = _opened(vips, encoded)
        except (vips.Error, UnicodeDecodeError) as error:
            return _brief(vips, error)
    turned = 5 <= _field(image, "orientation", 1) <= 8
    width_px, height_px = image.width, image.height
    samples = width_px * height_px * image.bands
    held_bytes = 0
    if _field(image, "jpeg-multiscan", 0):
        # Progressive: every coefficient, two bytes each, until the last scan. 4:2:0 has half as
        # many as there are samples.
        held_bytes = samples * (1 if _field(image, "jpeg-chroma-subsample", "") == "4:2:0" else 2)
    elif _field(image, "interlaced", 0):
        # PNG: the pixels of the last pass lie between those of all others.
        held_bytes = samples * (2 if image.format == "ushort" else 1)
    return Header(
        width_px=height_px if turned else width_px,
        height_px=width_px if turned else height_px,
        held_bytes=held_bytes,
    )


def make(encoded: Encoded, *, with_preview: bool = True) -> Renditions | str:
    """Decode a PNG, JPEG or WebP file completely; a text says what is wrong with it."""
    vips = _vips()
    side_px = PREVIEW_PX if with_preview else THUMBNAIL_PX
    with _Offset(encoded):
        try:
            image = _fitted(vips, lambda: _reduced(vips, encoded, side_px), side_px)
            return _encoded(image, with_preview)
        except (vips.Error, UnicodeDecodeError) as error:
            return _brief(vips, error)


def make_of_pixels(
    pixels: bytes, width_px: int, height_px: int, bands: int, profile: bytes
) -> Renditions | str:
    """Take upright pixels of 8 bits a band, row by row, and their ICC profile if they have one."""
    vips = _vips()
    try:
        image = vips.Image.new_from_memory(pixels, width_px, height_px, bands, "uchar")
        image = image.copy(interpretation="srgb")
        if profile:
            image.set_type(vips.GValue.blob_type, _PROFILE, profile)
        return _encoded(_fitted(vips, lambda: image, PREVIEW_PX), with_preview=True)
    except (vips.Error, UnicodeDecodeError) as error:
        return _brief(vips, error)


def _opened(vips: Any, encoded: Encoded, **options: Any) -> Any:
    """Read the header; the pixels come when they are asked for, once and from top to bottom."""
    if isinstance(encoded, bytes):
        source = vips.Source.new_from_memory(encoded)
    else:
        os.lseek(encoded, 0, os.SEEK_SET)
        source = vips.Source.new_from_descriptor(encoded)
    options = {"access": "sequential", "fail_on": "error", **options}
    return vips.Image.new_from_source(source, "", **options)


def _reduced(vips: Any, encoded: Encoded, side_px: int) -> Any:
    """Open a picture at a size that its decoder makes cheaply, at least twice what is wanted.

    vips_thumbnail() would do so too, but lets pass a PNG that ends early.
    """
    image = _opened(vips, encoded)
    loader = image.get("vips-loader")
    ratio = max(image.width, image.height) / (2 * side_px)
    if loader.startswith("jpegload"):
        # Only a warning says that the data end early, and grey is put for the rest.
        shrink = 1 if ratio < 2 else 2 if ratio < 4 else 4 if ratio < 8 else 8
        return _opened(vips, encoded, shrink=shrink, fail_on="warning")
    if loader.startswith("webpload") and ratio > 1:
        return _opened(vips, encoded, scale=1 / ratio)
    return image


def _fitted(vips: Any, opened: Callable[[], Any], side_px: int) -> Any:
    """Return a picture in memory that fits into a square, upright and in sRGB.

    A profile that is damaged, or not one of such pixels, is passed over.
    """
    image = opened()
    box = {"height": side_px, "size": "down"}
    if image.get_typeof(_PROFILE):
        with contextlib.suppress(vips.Error):
            return image.thumbnail_image(side_px, export_profile="srgb", **box).copy_memory()
        image = opened()
    return image.thumbnail_image(side_px, **box).colourspace("srgb").copy_memory()


def _encoded(image: Any, with_preview: bool) -> Renditions:
    if max(image.width, image.height) <= THUMBNAIL_PX:
        whole = _webp(image)
        return Renditions(thumbnail=whole, preview=whole if with_preview else b"")
    small = image.thumbnail_image(THUMBNAIL_PX, height=THUMBNAIL_PX, size="down", no_rotate=True)
    preview = _webp(image) if with_preview else b""
    return Renditions(thumbnail=_webp(small), preview=preview)


def _webp(image: Any) -> bytes:
    # The least effort: twice as fast as the usual one, for a file 5 % larger.
    return bytes(image.webpsave_buffer(Q=80, effort=0, keep="none"))


def _field(image: Any, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


class _Offset:
    """Puts a descriptor's offset back, since a Python file over it believes to know it."""

    def __init__(self, encoded: Encoded) -> None:
        self.descriptor = None if isinstance(encoded, bytes) else encoded

    def __enter__(self) -> None:
        if self.descriptor is not None:
            self.offset = os.lseek(self.descriptor, 0, os.SEEK_CUR)

    def __exit__(self, *_: object) -> None:
        if self.descriptor is not None:
            os.lseek(self.descriptor, self.offset, os.SEEK_SET)


def _vips() -> Any:
    """Return pyvips. Raises RuntimeError in the child of a process that has used it."""
    with _loading:  # no thread may decode while another opens the loaders
        module, pid = _load(LOADERS)
    if pid != os.getpid():
        raise RuntimeError(
            f"libvips was in use in process {pid} before this one was forked from it"
        )
    return module


@functools.cache
def _load(loaders: tuple[str, ...]) -> tuple[Any, int]:
    os.environ.setdefault("VIPS_WARNING", "0")  # any value has libvips keep its warnings
    import pyvips

    # pyvips logs each step that libvips takes, and trips over a warning that quotes the file.
    pyvips._remove_log_handler()
    # As many threads as there are processes is plenty, and operations are never repeated.
    pyvips.concurrency_set(1)
    pyvips.cache_set_max(0)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader in loaders:
        pyvips.operation_block_set(loader, False)
    return pyvips, os.getpid()


def _brief(vips: Any, error: Exception) -> str:
    """Return the last line of what libvips says: the first ones name its own operations."""
    if isinstance(error, UnicodeDecodeError):  # it quotes the file, and would be kept otherwise
        vips.vips_lib.vips_error_clear()
    lines = [line.strip() for line in getattr(error, "detail", "").splitlines() if line.strip()]
    return (lines[-1] if lines else "it cannot be decoded")[:120].rstrip(".")


def _draw(cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_DATA, (DRAWING_BYTES, DRAWING_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    vips, _ = _load((SVG_LOADER,))
    image = vips.Image.thumbnail_buffer(
        sys.stdin.buffer.read(), PREVIEW_PX, height=PREVIEW_PX, size="down"
    )
    renditions = _encoded(image.copy_memory(), with_preview=True)
    length = DRAWN.pack(len(renditions.thumbnail))
    sys.stdout.buffer.write(length + renditions.thumbnail + renditions.preview)


if __name__ == "__main__":
    _draw(int(sys.argv[1]))
