"""What counts as an image, and what its thumbnail looks like."""

import hashlib
import io
import struct
import threading
import zlib

import pytest
from PIL import Image

from generation.images import MAX_PIXELS, VerifiedImage, verify
from generation.provider import ErrorClass, Failure

FORMATS = ("PNG", "WEBP", "JPEG")


def picture(width_px=96, height_px=64, mode="RGB"):
    """A picture with enough going on in it that no codec makes it a few bytes."""
    noise = Image.effect_noise((width_px, height_px), 80)
    ramp = Image.linear_gradient("L").resize((width_px, height_px))
    return Image.merge("RGB", (noise, ramp, noise)).convert(mode)


def encode(image, image_format, **options):
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def check(data, **limits):
    return verify(io.BytesIO(data), **limits)


def thumbnail_of(data):
    result = check(data)
    assert isinstance(result, VerifiedImage)
    thumbnail = Image.open(io.BytesIO(result.thumbnail))
    assert thumbnail.format == "WEBP"
    return thumbnail


def refusal(data, **limits):
    result = check(data, **limits)
    assert isinstance(result, Failure)
    assert result.error_class == ErrorClass.BAD_OUTPUT
    return result.message


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("pillow_format", "name", "extension", "content_type"),
    [
        ("PNG", "png", "png", "image/png"),
        ("WEBP", "webp", "webp", "image/webp"),
        ("JPEG", "jpeg", "jpg", "image/jpeg"),
    ],
)
def test_verify_tells_everything_about_a_good_image(pillow_format, name, extension, content_type):
    data = encode(picture(300, 200), pillow_format)
    result = check(data)
    assert isinstance(result, VerifiedImage)
    assert (result.format, result.extension) == (name, extension)
    assert result.content_type == content_type
    assert (result.width_px, result.height_px) == (300, 200)
    assert result.size_bytes == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()


def test_verify_takes_a_path_and_believes_the_bytes_rather_than_its_extension(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture(), "WEBP"))
    for source in (path, str(path)):
        result = verify(source)
        assert isinstance(result, VerifiedImage)
        assert result.format == "webp"


def test_verify_reads_a_file_from_its_start_and_leaves_it_open():
    file = io.BytesIO(encode(picture(), "PNG"))
    file.read(100)
    assert isinstance(verify(file), VerifiedImage)
    assert not file.closed


def test_verify_raises_when_the_path_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "missing.png")


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_refuses_a_truncated_image_wherever_it_is_cut(pillow_format):
    data = encode(picture(), pillow_format)
    for length in {1, 8, 40, len(data) // 4, len(data) // 2, len(data) - 13, len(data) - 1}:
        refusal(data[:length])


def test_refuses_a_png_with_a_flipped_bit_anywhere():
    good = encode(picture(), "PNG")
    for at in range(8, len(good), 101):
        data = bytearray(good)
        data[at] ^= 1
        refusal(bytes(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n  <html></html>", "web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><svg></svg>', "SVG or XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG or XML"),
        (b"\x00" * 100, "not a WebP, PNG or JPEG"),
        (b'{"detail": "expired"}', "not a WebP, PNG or JPEG"),
    ],
)
def test_refuses_what_is_no_image_and_says_what_it_is(data, words):
    assert words in refusal(data)


@pytest.mark.parametrize("pillow_format", ["GIF", "BMP", "TIFF"])
def test_refuses_formats_that_no_model_makes(pillow_format):
    assert "not a WebP, PNG or JPEG" in refusal(encode(picture(), pillow_format))


@pytest.mark.parametrize("pillow_format", ["PNG", "WEBP"])
def test_refuses_an_animation(pillow_format):
    frames = [picture(), picture().rotate(90)]
    data = encode(frames[0], pillow_format, save_all=True, append_images=frames[1:])
    assert "2 frames" in refusal(data)


def test_refuses_too_many_pixels_before_it_decodes_them():
    bomb = encode(Image.new("L", (8000, 8000)), "PNG", compress_level=9)
    assert len(bomb) < 100_000
    assert "8000x8000" in refusal(bomb)


def test_refuses_a_header_that_claims_a_size_beyond_what_pillow_would_open():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    refusal(data)


def test_pixel_limit_is_inclusive():
    data = encode(picture(100, 100), "PNG")
    assert isinstance(check(data, max_pixels=10_000), VerifiedImage)
    assert "9,999 pixels" in refusal(data, max_pixels=9_999)


def test_byte_limit_is_inclusive():
    data = encode(picture(), "PNG")
    assert isinstance(check(data, max_bytes=len(data)), VerifiedImage)
    assert "larger than" in refusal(data, max_bytes=len(data) - 1)


def test_leaves_the_process_wide_pixel_limit_alone():
    before = Image.MAX_IMAGE_PIXELS
    check(encode(picture(), "PNG"), max_pixels=10)
    assert before == Image.MAX_IMAGE_PIXELS
    assert before > MAX_PIXELS


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_refuses_anything_after_the_image(pillow_format):
    data = encode(picture(), pillow_format)
    assert "after its end" in refusal(data + b"<script>alert(1)</script>")
    assert "after its end" in refusal(data + b"PK\x03\x04 an archive")


def test_refuses_a_jpeg_with_a_script_in_a_comment():
    data = encode(picture(), "JPEG", comment=b"<SCRIPT>alert(1)</SCRIPT>")
    assert "web page" in refusal(data)


@pytest.mark.parametrize("pillow_format", FORMATS)
@pytest.mark.parametrize(
    ("size_px", "expected_px"),
    [((1024, 1024), (256, 256)), ((1024, 512), (256, 128)), ((64, 48), (64, 48))],
)
def test_thumbnail_fits_and_is_never_enlarged(pillow_format, size_px, expected_px):
    assert thumbnail_of(encode(picture(*size_px), pillow_format)).size == expected_px


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_thumbnail_shows_the_same_picture(pillow_format):
    image = Image.new("RGB", (800, 400), "red")
    image.paste("blue", (400, 0, 800, 400))
    thumbnail = thumbnail_of(encode(image, pillow_format)).convert("RGB")
    left, right = thumbnail.getpixel((40, 60)), thumbnail.getpixel((215, 60))
    assert left[0] > 200 > 60 > left[2]
    assert right[2] > 200 > 60 > right[0]


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_thumbnail_is_upright_while_the_size_told_is_the_stored_one(pillow_format):
    image = Image.new("RGB", (400, 200), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encode(image, pillow_format, exif=exif)
    result = check(data)
    assert isinstance(result, VerifiedImage)
    assert (result.width_px, result.height_px) == (400, 200)
    thumbnail = thumbnail_of(data)
    assert thumbnail.size == (128, 256)
    assert not thumbnail.getexif()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_takes_every_colour_mode_of_png(mode):
    image = Image.new(mode, (40, 30)) if mode == "I;16" else picture(40, 30, mode)
    assert thumbnail_of(encode(image, "PNG")).size == (40, 30)


def test_takes_a_cmyk_jpeg():
    assert thumbnail_of(encode(picture(40, 30, "CMYK"), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_thumbnail_keeps_transparency(mode):
    image = Image.new(mode, (40, 30), 0)
    options = {"transparency": 0} if mode == "P" else {}
    thumbnail = thumbnail_of(encode(image, "PNG", **options))
    assert thumbnail.mode == "RGBA"
    assert thumbnail.getpixel((5, 5))[3] == 0


def test_threads_do_not_disturb_each_other():
    good, large = encode(picture(), "PNG"), encode(picture(200, 200), "PNG")
    results = []
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for _ in range(10):
            results.append((number % 2, check((good, large)[number % 2], max_pixels=10_000)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(
        isinstance(result, Failure if is_large else VerifiedImage) for is_large, result in results
    )
