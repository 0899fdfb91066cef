"""Small upright copies of a picture, or one of a given size, and the one place that uses libvips.

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
# Coding a transparent WebP takes 27 bytes of memory a pixel, an opaque one 5, a PNG hardly any.
WEBP_ALPHA_PIXELS = 6_000_000
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


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: "png", "jpeg" or "webp"."""

    format: str


@dataclass(frozen=True, slots=True)
class Resize:
    """The size in which a picture is to be stored.

    `mode` is "upscale" (scaled until it covers the size, and cut at the edges evenly) or "place"
    (scaled down if it is larger, and put into the middle of an empty canvas: transparent, white
    in a JPEG).
    """

    mode: str
    width_px: int
    height_px: int


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


def write_png(encoded: Encoded, into: int) -> str | None:
    """Write a PNG, JPEG or WebP file's picture, upright, as PNG to a descriptor.

    A text says what is wrong with it. Raises OSError when it cannot be written.
    """
    vips = _vips()
    with _Offset(encoded):
        try:
            image = _opened(vips, encoded)
            if _field(image, "orientation", 1) > 1:
                # It is turned from the whole of it; the others go through in strips.
                image = image.copy_memory().autorot()
            with _Sink(vips, into) as target:
                image.pngsave_target(target, keep="icc")
        except (vips.Error, UnicodeDecodeError) as error:
            return _brief(vips, error)
    return None


def make_of_pixels(
    pixels: bytes, width_px: int, height_px: int, bands: int, profile: bytes
) -> Renditions | str:
    """Take upright pixels of 8 bits a band, row by row, and their ICC profile if they have one."""
    vips = _vips()
    try:
        image = _of_pixels(vips, pixels, width_px, height_px, bands, profile)
        return _encoded(_fitted(vips, lambda: image, PREVIEW_PX), with_preview=True)
    except (vips.Error, UnicodeDecodeError) as error:
        return _brief(vips, error)


def resize(encoded: Encoded, into: int, image_format: str, wanted: Resize) -> Written | str:
    """Write a PNG, JPEG or WebP file's picture in another size to a descriptor.

    Upright, in sRGB, without metadata, coded as `image_format`: "png", "jpeg" or "webp"; a large
    transparent one as PNG in any case. A text says what is wrong with it; then nothing that was
    written is of use. Raises OSError when it cannot be written.
    """
    vips = _vips()

    def opened() -> Any:
        image = _opened(vips, encoded)
        # To be turned it has to be there whole.
        return image.copy_memory() if _field(image, "orientation", 1) > 1 else image

    with _Offset(encoded):
        return _write_resized(vips, opened, into, image_format, wanted)


def resize_pixels(
    pixels: bytes,
    width_px: int,
    height_px: int,
    bands: int,
    profile: bytes,
    into: int,
    image_format: str,
    wanted: Resize,
) -> Written | str:
    """As `resize`, of pixels as `make_of_pixels` takes them."""
    vips = _vips()
    image = _of_pixels(vips, pixels, width_px, height_px, bands, profile)
    return _write_resized(vips, lambda: image, into, image_format, wanted)


def _write_resized(
    vips: Any, opened: Callable[[], Any], into: int, image_format: str, wanted: Resize
) -> Written | str:
    reason = ""
    # A profile that is damaged, or not one of such pixels, is passed over.
    for with_profile in (True, False):
        os.ftruncate(into, 0)
        os.lseek(into, 0, os.SEEK_SET)
        try:
            image = opened()
            if with_profile and not image.get_typeof(_PROFILE):
                continue
            image = image.autorot()
            image = (
                image.icc_transform("srgb", embedded=True)
                if with_profile
                else image.colourspace("srgb")
            )
            image = _resized(image, image_format, wanted)
            if image.hasalpha() and image.width * image.height > WEBP_ALPHA_PIXELS:
                image_format = "png"
            with _Sink(vips, into) as target:
                match image_format:
                    case "png":
                        image.pngsave_target(target, compression=4, filter="sub", keep="none")
                    case "jpeg":
                        image.jpegsave_target(target, Q=92, keep="none")
                    case _:
                        image.webpsave_target(target, Q=90, effort=2, keep="none")
            return Written(image_format)
        except (vips.Error, UnicodeDecodeError) as error:
            reason = _brief(vips, error)
    return reason


def _resized(image: Any, image_format: str, wanted: Resize) -> Any:
    """Reduced by Lanczos' filter, enlarged by a bicubic one, which is what libvips has for it.

    Step by step: vips_thumbnail() with a crop would hold all of it in memory.
    """
    width_px, height_px = wanted.width_px, wanted.height_px
    scales = width_px / image.width, height_px / image.height
    has_alpha = image.hasalpha()
    if has_alpha:
        image = image.premultiply()
    if wanted.mode == "upscale":
        image = image.resize(max(scales))
        left_px, top_px = (image.width - width_px) // 2, (image.height - height_px) // 2
        image = image.crop(left_px, top_px, width_px, height_px)
    elif min(scales) < 1:
        image = image.resize(min(scales))
    if has_alpha:
        image = image.unpremultiply().cast("uchar")
    if (image.width, image.height) == (width_px, height_px):
        return image
    around = [255, 255, 255]
    if image_format != "jpeg":
        image = image if has_alpha else image.addalpha()
        around = [0, 0, 0, 0]
    return image.gravity("centre", width_px, height_px, extend="background", background=around)


def _opened(vips: Any, encoded: Encoded, **options: Any) -> Any:
    """Read the header; the pixels come when they are asked for, once and from top to bottom."""
    if isinstance(encoded, bytes):
        source = vips.Source.new_from_memory(encoded)
    else:
        os.lseek(encoded, 0, os.SEEK_SET)
        source = vips.Source.new_from_descriptor(encoded)
    options = {"access": "sequential", "fail_on": "error", **options}
    return vips.Image.new_from_source(source, "", **options)


def _of_pixels(
    vips: Any, pixels: bytes, width_px: int, height_px: int, bands: int, profile: bytes
) -> Any:
    image = vips.Image.new_from_memory(pixels, width_px, height_px, bands, "uchar")
    image = image.copy(interpretation="srgb")
    if profile:
        image.set_type(vips.GValue.blob_type, _PROFILE, profile)
    return image


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


class _Sink:
    """A descriptor that libvips writes to. Raises OSError instead of libvips' error, which does
    not tell a disk that is full from a picture that is damaged."""

    def __init__(self, vips: Any, into: int) -> None:
        self._into = into
        self._error: OSError | None = None
        self._target = vips.TargetCustom()
        self._target.on_write(self._write)

    def __enter__(self) -> Any:
        return self._target

    def __exit__(self, *_: object) -> None:
        if self._error is not None:
            raise self._error

    def _write(self, data: Any) -> int:
        try:
            return os.write(self._into, data)
        except OSError as error:
            self._error = error
            return -1


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
