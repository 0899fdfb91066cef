"""What counts as an image, and what its thumbnail and its preview look like."""

import hashlib
import io
import struct
import threading
import zlib

import pytest
import pyvips
from PIL import Image, ImageCms

from generation.images import MAX_PIXELS, VerifiedImage, verify
from generation.provider import ErrorClass, Failure
from simulator import hostile

FORMATS = ("PNG", "WEBP", "JPEG", "AVIF")
EXIF_ORIENTATION = 0x0112


def picture(width_px=96, height_px=64, mode="RGB"):
    """A picture with enough going on in it that no codec makes it a few bytes."""
    noise = Image.effect_noise((width_px, height_px), 80)
    ramp = Image.linear_gradient("L").resize((width_px, height_px))
    return Image.merge("RGB", (noise, ramp, noise)).convert(mode)


def encode(image, image_format, **options):
    out = io.BytesIO()
    if image_format == "AVIF":
        options["speed"] = 10
    image.save(out, image_format, **options)
    return out.getvalue()


def check(data, **limits):
    return verify(io.BytesIO(data), **limits)


def renditions_of(data):
    result = check(data)
    assert isinstance(result, VerifiedImage)
    renditions = [Image.open(io.BytesIO(file)) for file in (result.thumbnail, result.preview)]
    assert [image.format for image in renditions] == ["WEBP", "WEBP"]
    return renditions


def thumbnail_of(data):
    return renditions_of(data)[0]


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
        ("AVIF", "avif", "avif", "image/avif"),
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
    assert result.content is None


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


PNG_START = b"\x89PNG\r\n\x1a\n"


def wide_profile():
    """Return an ICC profile of a colour space wider than sRGB: its primaries, turned about."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {}
    for number in range(int.from_bytes(profile[128:132], "big")):
        entry = profile[132 + 12 * number : 144 + 12 * number]
        tags[bytes(entry[:4])] = int.from_bytes(entry[4:8], "big")
    red, green = tags[b"rXYZ"] + 8, tags[b"gXYZ"] + 8
    profile[red : red + 12], profile[green : green + 12] = (
        profile[green : green + 12],
        profile[red : red + 12],
    )
    return bytes(profile)


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


@pytest.mark.parametrize("size_px", [(96, 64), (1500, 1000)])
def test_refuses_a_jpeg_that_ends_well_before_its_last_row(size_px):
    data = encode(picture(*size_px), "JPEG")
    assert "end of data" in refusal(data[: len(data) * 3 // 4] + b"\xff\xd9")


@pytest.mark.parametrize("lossless", [True, False])
def test_refuses_a_webp_that_ends_well_before_its_last_row(lossless):
    data = bytearray(encode(picture(300, 200), "WEBP", lossless=lossless))
    del data[len(data) * 3 // 8 * 2 :]
    data[4:8], data[16:20] = struct.pack("<I", len(data) - 8), struct.pack("<I", len(data) - 20)
    refusal(bytes(data))


@pytest.mark.parametrize("rows", [0, 1, 32, 63])
def test_refuses_a_png_that_ends_well_before_its_last_row(rows):
    packed = zlib.compress((b"\x00" + bytes(range(192))) * rows)
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    refusal(PNG_START + b"".join(chunk(*parts) for parts in chunks))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n  <html></html>", "web page"),
        (b"<script>alert(1)</script>", "web page"),
        (
            b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"/>',
            "another kind of XML",
        ),
        (b"\x00" * 100, "not an image of a kind taken: WebP, PNG, JPEG, AVIF, SVG"),
        (b'{"detail": "expired"}', "not an image of a kind taken"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1", "not an image of a kind taken"),
    ],
)
def test_refuses_what_is_no_image_and_says_what_it_is(data, words):
    assert words in refusal(data)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (hostile.huge_png, "8000x8000, more than 40,000,000 pixels"),
        (lambda: hostile.polyglot(encode(picture(), "JPEG")), "after its end"),
        (lambda: hostile.SVG_SCRIPT, "event handler, onload"),
        (lambda: hostile.SCRIPT_PAGE, "web page"),
    ],
)
def test_refuses_each_hostile_file_of_the_simulator(make, words):
    assert words in refusal(make(), max_pixels=40_000_000)


@pytest.mark.parametrize("pillow_format", ["GIF", "BMP", "TIFF"])
def test_refuses_formats_that_no_model_makes(pillow_format):
    assert "not an image of a kind taken" in refusal(encode(picture(), pillow_format))


def test_takes_only_the_formats_that_are_asked_for():
    data = encode(picture(), "WEBP")
    assert isinstance(check(data, formats=frozenset({"webp"})), VerifiedImage)
    result = check(data, formats=frozenset({"png", "jpeg"}))
    assert isinstance(result, Failure)
    assert result.provider_code == "unsupported_format"
    assert "PNG, JPEG." in result.message


@pytest.mark.parametrize("pillow_format", ["PNG", "WEBP", "AVIF"])
def test_refuses_an_animation(pillow_format):
    frames = [picture(), picture().rotate(90)]
    data = encode(frames[0], pillow_format, save_all=True, append_images=frames[1:])
    assert "2 frames" in refusal(data)


def test_refuses_too_many_pixels_before_it_decodes_them():
    bomb = encode(Image.new("1", (8000, 8000)), "PNG", compress_level=9)
    assert len(bomb) < 10_000
    assert "8000x8000" in refusal(bomb)


def test_refuses_a_header_that_claims_a_size_beyond_what_pillow_would_open():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = PNG_START + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    refusal(data)


def test_pixel_limit_is_inclusive():
    data = encode(picture(100, 100), "PNG")
    assert isinstance(check(data, max_pixels=10_000), VerifiedImage)
    assert "9,999 pixels" in refusal(data, max_pixels=9_999)
    assert check(data, max_pixels=9_999).provider_code == "too_large"


def test_byte_limit_is_inclusive():
    data = encode(picture(), "PNG")
    assert isinstance(check(data, max_bytes=len(data)), VerifiedImage)
    assert "larger than" in refusal(data, max_bytes=len(data) - 1)


def test_refuses_an_avif_that_would_take_too_much_memory_before_it_is_decoded():
    data = bytearray(encode(picture(), "AVIF"))
    extent = data.index(b"ispe") + 8
    data[extent : extent + 8] = struct.pack(">II", 5000, 4000)
    assert "memory to decode" in refusal(bytes(data))
    data[extent : extent + 8] = struct.pack(">II", 9000, 4000)
    assert "9000x4000, more than 33,554,432 pixels" in refusal(bytes(data))


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


def test_refuses_a_second_jpeg_after_the_first():
    data = encode(picture(), "JPEG")
    assert "after its end" in refusal(data + data)
    assert "after its end" in refusal(data + b"PK\x03\x04 an archive\xff\xd9")


def test_takes_zeros_after_a_jpeg_and_markers_within_it():
    data = encode(picture(300, 200), "JPEG", progressive=True, restart_marker_blocks=3)
    assert b"\xff\xd0" in data
    assert isinstance(check(data + bytes(100)), VerifiedImage)


def test_refuses_a_script_wherever_it_is_in_a_large_file():
    """It is read in blocks of a MiB."""
    block_bytes = 1024 * 1024
    good = encode(picture(), "PNG")
    head, tail = good[:33], good[33:]
    for script_at in (block_bytes - 3, block_bytes, 3 * block_bytes - 1):
        text = b"Comment\x00" + b"x" * (script_at - 33 - 16)
        data = head + chunk(b"tEXt", text + b"<script src=x>" + b"y" * block_bytes) + tail
        assert data.index(b"<script") == script_at
        assert "web page" in refusal(data)


@pytest.mark.parametrize("pillow_format", FORMATS)
@pytest.mark.parametrize(
    ("size_px", "thumbnail_px", "preview_px"),
    [
        ((1100, 550), (256, 128), (1024, 512)),
        ((512, 512), (256, 256), (512, 512)),
        ((64, 48), (64, 48), (64, 48)),
        ((1500, 4), (256, 1), (1024, 3)),
    ],
)
def test_renditions_fit_and_are_never_enlarged(pillow_format, size_px, thumbnail_px, preview_px):
    thumbnail, preview = renditions_of(encode(picture(*size_px), pillow_format))
    assert (thumbnail.size, preview.size) == (thumbnail_px, preview_px)


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_renditions_show_the_same_picture(pillow_format):
    image = Image.new("RGB", (1200, 600), "red")
    image.paste("blue", (600, 0, 1200, 600))
    for rendition in renditions_of(encode(image, pillow_format)):
        width_px, height_px = rendition.size
        left = rendition.convert("RGB").getpixel((width_px // 6, height_px // 2))
        right = rendition.convert("RGB").getpixel((width_px * 5 // 6, height_px // 2))
        assert left[0] > 200 > 60 > left[2]
        assert right[2] > 200 > 60 > right[0]


@pytest.mark.parametrize("pillow_format", FORMATS)
@pytest.mark.parametrize(
    ("orientation", "red_at"),
    # Red is above in the picture as stored, 40 x 80 pixels.
    [
        (1, "top"), (2, "top"), (3, "bottom"), (4, "bottom"),
        (5, "left"), (6, "right"), (7, "right"), (8, "left"),
    ],
)  # fmt: skip
def test_renditions_are_upright_and_so_is_the_size_told(pillow_format, orientation, red_at):
    image = Image.new("RGB", (40, 80), "blue")
    image.paste("red", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encode(image, pillow_format, exif=exif)
    result = check(data)
    size_px = (40, 80) if orientation < 5 else (80, 40)
    middle = (size_px[0] // 2, size_px[1] // 2)
    x, y = {
        "top": (middle[0], 5),
        "bottom": (middle[0], size_px[1] - 5),
        "left": (5, middle[1]),
        "right": (size_px[0] - 5, middle[1]),
    }[red_at]
    assert isinstance(result, VerifiedImage)
    assert (result.width_px, result.height_px) == size_px
    for rendition in renditions_of(data):
        assert rendition.size == size_px
        red, _, blue = rendition.convert("RGB").getpixel((x, y))
        assert red > 200 > 60 > blue


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_renditions_tell_nothing_of_the_file_but_its_picture(pillow_format):
    exif = Image.Exif()
    exif[0x010E] = "a prompt that is secret"
    options = {} if pillow_format == "PNG" else {"xmp": b"<x>secret</x>"}
    data = encode(picture(1100, 600), pillow_format, exif=exif, **options)
    assert b"secret" in data
    result = check(data)
    assert isinstance(result, VerifiedImage)
    for file in (result.thumbnail, result.preview):
        assert b"secret" not in file
        # RIFF, size, WEBP and one chunk: of the picture itself
        assert file[12:16] == b"VP8 "
        assert int.from_bytes(file[16:20], "little") + 20 == len(file)


def test_preview_of_a_plain_small_webp_is_the_file_itself():
    data = encode(picture(200, 100), "WEBP")
    assert check(data).preview == data
    assert check(encode(picture(200, 100), "WEBP", lossless=True)).preview != data
    large = encode(picture(1025, 100), "WEBP")
    assert check(large).preview != large


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_takes_every_colour_mode_of_png(mode):
    image = Image.new(mode, (40, 30)) if mode == "I;16" else picture(40, 30, mode)
    assert thumbnail_of(encode(image, "PNG")).size == (40, 30)


def test_takes_16_bits_a_channel():
    rows = b"".join(b"\x00" + b"\xff\x00\x80\x00\x00\x01" * 20 for _ in range(10))
    header = struct.pack(">IIBBBBB", 20, 10, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = PNG_START + b"".join(chunk(*parts) for parts in chunks)
    red, green, blue = thumbnail_of(data).convert("RGB").getpixel((10, 5))
    assert (red > 245, 118 < green < 138, blue < 10) == (True, True, True)


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_colours_of_a_wide_gamut_come_out_in_srgb(pillow_format):
    # The green of Adobe RGB is beyond sRGB; a middle one is not, and needs other numbers there.
    profile = wide_profile()
    image = Image.new("RGB", (64, 64), (60, 180, 60))
    expected = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    ).getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(expected, (60, 180, 60), strict=True)) > 20
    for rendition in renditions_of(encode(image, pillow_format, icc_profile=profile)):
        shown = rendition.convert("RGB").getpixel((30, 30))
        assert max(abs(a - b) for a, b in zip(expected, shown, strict=True)) < 8
        assert "icc_profile" not in rendition.info


@pytest.mark.parametrize("pillow_format", FORMATS)
def test_a_colour_profile_that_is_none_is_passed_over(pillow_format):
    image = Image.new("RGB", (64, 64), (60, 180, 60))
    data = encode(image, pillow_format, icc_profile=b"no profile at all" * 20)
    red, green, blue = thumbnail_of(data).convert("RGB").getpixel((30, 30))
    assert max(abs(red - 60), abs(green - 180), abs(blue - 60)) < 8


def test_takes_a_cmyk_jpeg():
    image = Image.new("CMYK", (40, 30), (0, 255, 255, 0))
    thumbnail, preview = renditions_of(encode(image, "JPEG"))
    assert (thumbnail.mode, preview.mode) == ("RGB", "RGB")
    red, green, blue = preview.getpixel((20, 15))
    assert red > 180 > 90 > max(green, blue)


def test_inks_are_shown_as_their_profile_says():
    grey = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = bytes(grey.icc_transform("cmyk").get("icc-profile-data"))
    image = Image.new("CMYK", (40, 30), (200, 40, 10, 30))
    expected = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    ).getpixel((0, 0))
    plain = image.convert("RGB").getpixel((0, 0))
    assert max(abs(a - b) for a, b in zip(expected, plain, strict=True)) > 20
    for rendition in renditions_of(encode(image, "JPEG", icc_profile=profile, quality=95)):
        shown = rendition.convert("RGB").getpixel((20, 15))
        assert max(abs(a - b) for a, b in zip(expected, shown, strict=True)) < 12


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
