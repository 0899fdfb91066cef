"""What decoding takes, and where it may be done."""

import io
import struct
import tempfile
import zlib

import pytest
from PIL import Image

from generation import renditions
from generation.images import MAX_HELD_BYTES, VerifiedImage, verify
from generation.provider import Failure
from tests.generation.scripts import run

# A lossless WebP of 8192 x 8192 pixels, all of them red.
RED_LOSSLESS = bytes.fromhex(
    "524946461c000000574542505650384c0f0000002fffdfff070710fd8ffe0722a2ff0100"
)
# Prints a picture's verdict and the most memory that the process ever had, in bytes, before the
# decoding and after it. Not by getrusage, which begins with the memory of the starting process.
MEASURE = """
import sys
from generation import images, renditions

def peak_bytes():
    with open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) * 1024

before = peak_bytes()
result = images.verify(sys.argv[1], max_pixels=2**26)
print(getattr(result, "message", "verified"), before, peak_bytes(), sep="|")
"""
# Decodes a picture, or only imports, and then decodes it in a child.
FORK = """
import os, sys
from generation import images, renditions

def told():
    try:
        return type(images.verify(sys.argv[1])).__name__
    except RuntimeError as error:
        return str(error)

if sys.argv[2] == "decodes":
    print(told(), flush=True)
pid = os.fork()
if pid == 0:
    print(told(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(
    path, width_px, height_px, *, colour_type, bytes_per_pixel, interlaced=False, text=b""
):
    """Write a PNG of one pattern row by row, so that this process stays small."""
    packer = zlib.compressobj(1)
    row = b"\x00" + bytes(n * 37 % 256 for n in range(256)) * (width_px * bytes_per_pixel // 256)
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, colour_type, 0, 0, int(interlaced))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text)
        for _ in range(height_px):
            if packed := packer.compress(row):
                file.write(chunk(b"IDAT", packed))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))
    return path


def measured(path):
    verdict, before, after = run(MEASURE, path).split("|")
    return verdict, int(after) - int(before), int(after)


def test_the_largest_picture_never_is_in_memory_whole(tmp_path):
    path = write_png(tmp_path / "huge.png", 8192, 8192, colour_type=6, bytes_per_pixel=4)
    verdict, grown_bytes, peak_bytes = measured(path)
    assert verdict == "verified"
    assert grown_bytes < 130_000_000 < 8192 * 8192 * 4
    assert peak_bytes < 200_000_000


def test_a_picture_that_must_be_decoded_whole_and_is_too_large_for_it_is_refused(tmp_path):
    path = tmp_path / "red.webp"
    path.write_bytes(RED_LOSSLESS)
    verdict, grown_bytes, _ = measured(path)
    assert "8192x8192" in verdict
    assert f"memory to decode, more than {MAX_HELD_BYTES:,}" in verdict
    assert grown_bytes < 40_000_000


def test_the_widest_picture_stays_within_bounds(tmp_path):
    """What is held of a strip grows with its width."""
    options = {"colour_type": 6, "bytes_per_pixel": 4}
    verdict, grown_bytes, _ = measured(write_png(tmp_path / "a.png", 16_384, 300, **options))
    assert verdict == "verified"
    assert grown_bytes < 150_000_000
    verdict, grown_bytes, _ = measured(write_png(tmp_path / "b.png", 1_000_192, 4, **options))
    assert "1000192x4, more than 16,384 pixels a side" in verdict
    assert grown_bytes < 40_000_000


def test_an_interlaced_png_counts_as_decoded_whole(tmp_path):
    options = {"colour_type": 6, "bytes_per_pixel": 4}
    path = write_png(tmp_path / "passes.png", 7000, 6000, interlaced=True, **options)
    result = verify(path, max_pixels=2**26)
    assert isinstance(result, Failure)
    assert result.provider_code == "too_costly"
    assert "168,000,000 bytes of memory" in result.message


def test_a_progressive_jpeg_counts_as_decoded_whole():
    # The header alone is read: the picture itself need not be there.
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True, subsampling="4:4:4")
    data = bytearray(file.getvalue())
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 6000, 6000)
    result = verify(io.BytesIO(data), max_pixels=2**26)
    assert isinstance(result, Failure)
    assert result.provider_code == "too_costly"
    assert "216,000,000 bytes of memory" in result.message


def test_what_is_packed_into_a_comment_is_not_unpacked(tmp_path):
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
    text = chunk(b"zTXt", b"Comment\x00\x00" + packed) + chunk(b"iCCP", b"icc\x00\x00" + packed)
    path = write_png(tmp_path / "bomb.png", 256, 256, colour_type=2, bytes_per_pixel=3, text=text)
    assert path.stat().st_size < 1_000_000
    _, grown_bytes, _ = measured(path)
    assert grown_bytes < 40_000_000


@pytest.mark.parametrize("source", ["path", "file", "spooled", "memory"])
def test_a_large_file_can_be_read_again_after_it_was_verified(source, tmp_path):
    path = tmp_path / "stored.png"
    pixels = bytes(n % 251 for n in range(1700)) * 5100
    Image.frombytes("RGB", (1700, 1700), pixels).save(path, compress_level=0)
    data = path.read_bytes()
    assert len(data) > 8 * 1024 * 1024
    if source == "path":
        assert isinstance(verify(path), VerifiedImage)
        return
    with (
        path.open("rb") if source == "file"
        else tempfile.SpooledTemporaryFile(max_size=1024) if source == "spooled"
        else io.BytesIO()
    ) as file:  # fmt: skip
        if source != "file":
            file.write(data)
        file.seek(3)
        file.read(100)
        result = verify(file)
        assert isinstance(result, VerifiedImage)
        assert (result.width_px, result.size_bytes) == (1700, len(data))
        file.seek(0)
        assert file.read() == data


def test_a_child_may_decode_when_its_parent_did_not(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (300, 200), "red").save(path)
    assert run(FORK, path, "imports") == "VerifiedImage"


def test_a_child_of_a_process_that_decoded_fails_rather_than_hangs(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (300, 200), "red").save(path)
    first, second = run(FORK, path, "decodes").splitlines()
    assert first == "VerifiedImage"
    assert second.startswith("libvips was in use in process")


@pytest.mark.parametrize("pillow_format", ["GIF", "TIFF", "PPM", "AVIF", "SVG"])
def test_libvips_opens_nothing_but_png_jpeg_and_webp(pillow_format):
    file = io.BytesIO(b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    if pillow_format != "SVG":
        Image.new("RGB", (20, 20)).save(file, pillow_format)
    assert "not in a known format" in str(renditions.make(file.getvalue()))
