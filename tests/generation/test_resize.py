"""Pictures that are stored in another size than their model made them."""

import hashlib
import io
import tempfile

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import images, renditions
from generation.images import VerifiedImage
from generation.provider import Failure
from generation.renditions import Resize
from tests.generation.scripts import run

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)
# Prints how much memory it took to enlarge a picture for a print, and its size.
MEASURE = """
import sys, tempfile
from generation import images
from generation.renditions import Resize

def peak_bytes():
    with open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) * 1024

verified = images.verify(sys.argv[1])
before = peak_bytes()
with open(sys.argv[1], "rb") as file, tempfile.TemporaryFile() as into:
    stored = images.resize(file, verified, Resize(sys.argv[2], 4500, 5400), into)
print(stored.format, stored.width_px, stored.height_px, peak_bytes() - before, sep="|")
"""


def stripes(size=(90, 60), mode="RGB"):
    """Red, green and blue from left to right."""
    picture = PIL.Image.new(mode, size, RED)
    third = size[0] // 3
    picture.paste(GREEN, (third, 0, 2 * third, size[1]))
    picture.paste(BLUE, (2 * third, 0, *size))
    return picture


def encoded(picture, pillow_format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, pillow_format, **options)
    return file.getvalue()


def resized(data, mode, width_px, height_px):
    """What is told of the picture, and the picture."""
    source = io.BytesIO(data)
    verified = images.verify(source)
    assert isinstance(verified, VerifiedImage), verified
    with tempfile.TemporaryFile() as into:
        stored = images.resize(source, verified, Resize(mode, width_px, height_px), into)
        assert isinstance(stored, VerifiedImage), stored
        into.seek(0)
        written = into.read()
    assert (stored.size_bytes, stored.sha256) == (
        len(written),
        hashlib.sha256(written).hexdigest(),
    )
    # What is stored passes for what a provider gives.
    again = images.verify(io.BytesIO(written), max_bytes=2**30)
    assert isinstance(again, VerifiedImage), again
    assert (again.format, again.width_px, again.height_px) == (
        stored.format,
        stored.width_px,
        stored.height_px,
    )
    assert (stored.width_px, stored.height_px) == (width_px, height_px)
    return stored, PIL.Image.open(io.BytesIO(written))


def near(pixel, colour, tolerance=12):
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=False))


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(["upscale", "place"]),
    before=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    after=st.tuples(st.integers(16, 300), st.integers(16, 300)),
)
def test_the_size_is_exactly_what_was_asked_for(mode, before, after):
    resized(encoded(PIL.Image.new("RGB", before, RED)), mode, *after)


def test_upscale_covers_the_size_and_cuts_the_edges_evenly():
    _, picture = resized(encoded(stripes()), "upscale", 120, 240)
    assert picture.mode == "RGB"
    # Four times as high, and a third of the width is left: the middle one.
    assert near(picture.getpixel((60, 120)), GREEN)
    assert near(picture.getpixel((60, 2)), GREEN)
    assert near(picture.getpixel((3, 120)), GREEN, 40)
    assert near(picture.getpixel((116, 120)), GREEN, 40)


def test_upscale_makes_smaller_too():
    _, picture = resized(encoded(stripes()), "upscale", 45, 30)
    assert all(near(picture.getpixel((x, 15)), c) for x, c in ((7, RED), (22, GREEN), (37, BLUE)))


@pytest.mark.parametrize("pillow_format", ["PNG", "WEBP"])
def test_place_puts_a_picture_into_the_middle_of_a_transparent_canvas(pillow_format):
    _, picture = resized(encoded(stripes(), pillow_format), "place", 120, 100)
    picture = picture.convert("RGBA")
    assert picture.getpixel((5, 50))[3] == 0
    assert picture.getpixel((60, 10))[3] == 0
    assert near(picture.getpixel((60, 50)), (*GREEN, 255))
    assert near(picture.getpixel((20, 25)), (*RED, 255))
    assert near(picture.getpixel((100, 75)), (*BLUE, 255))


def test_place_on_a_canvas_is_white_in_a_jpeg():
    stored, picture = resized(encoded(stripes(), "JPEG", quality=95), "place", 120, 100)
    assert stored.format == "jpeg"
    assert near(picture.getpixel((5, 50)), (255, 255, 255))
    assert near(picture.getpixel((60, 50)), GREEN, 30)


def test_place_makes_smaller_what_does_not_fit():
    _, picture = resized(encoded(stripes()), "place", 30, 40)
    assert picture.getpixel((15, 5))[3] == 0
    assert near(picture.getpixel((15, 20)), (*GREEN, 255))
    assert near(picture.getpixel((4, 12)), (*RED, 255))


def test_place_of_what_fits_exactly_stays_as_it_is():
    _, picture = resized(encoded(stripes()), "place", 90, 60)
    assert picture.mode == "RGB"
    assert list(picture.convert("RGB").get_flattened_data()) == list(stripes().get_flattened_data())


@pytest.mark.parametrize("mode", ["upscale", "place"])
def test_transparency_is_kept_and_its_colour_does_not_bleed(mode):
    clear = PIL.Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    clear.paste((*RED, 255), (20, 20, 40, 40))
    _, picture = resized(encoded(clear), mode, 120, 120)
    assert picture.mode == "RGBA"
    assert picture.getpixel((2, 2))[3] == 0
    assert near(picture.getpixel((60, 60)), (*RED, 255))
    assert all(near(p, RED, 20) for p in picture.get_flattened_data() if p[3] > 128)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "I;16"])
def test_pictures_of_any_kind_come_out_in_srgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    picture = PIL.Image.new(mode, (40, 30)) if mode == "I;16" else stripes((40, 30)).convert(mode)
    _, made = resized(encoded(picture, kind), "upscale", 64, 64)
    assert made.mode in ("RGB", "RGBA")


def test_a_picture_is_turned_as_it_says():
    picture = stripes()
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    _, made = resized(encoded(picture, "JPEG", exif=exif, quality=95), "upscale", 60, 90)
    assert not made.getexif()
    assert all(near(made.getpixel((30, y)), c, 30) for y, c in ((15, RED), (45, GREEN), (75, BLUE)))


def test_a_damaged_profile_is_passed_over():
    data = encoded(stripes(), "JPEG", icc_profile=b"no profile at all" * 20)
    _, made = resized(data, "upscale", 180, 120)
    assert near(made.getpixel((90, 60)), GREEN, 30)
    assert "icc_profile" not in made.info


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_avif_becomes_webp(mode):
    stored, made = resized(encoded(stripes(mode=mode), "AVIF"), "upscale", 180, 120)
    assert (stored.format, stored.extension, made.format) == ("webp", "webp", "WEBP")
    assert near(made.convert("RGB").getpixel((90, 60)), GREEN, 30)


def test_a_large_transparent_webp_becomes_png(monkeypatch):
    monkeypatch.setattr(renditions, "WEBP_ALPHA_PIXELS", 10_000)
    data = encoded(stripes(), "WEBP")
    assert resized(data, "place", 99, 100)[0].format == "webp"
    assert resized(data, "place", 101, 100)[0].format == "png"
    assert resized(data, "upscale", 101, 100)[0].format == "webp"


def test_the_small_copies_are_of_what_is_stored():
    stored, _ = resized(encoded(stripes()), "upscale", 400, 1200)
    thumbnail = PIL.Image.open(io.BytesIO(stored.thumbnail))
    preview = PIL.Image.open(io.BytesIO(stored.preview))
    assert (thumbnail.size, preview.size) == ((85, 256), (341, 1024))


def test_the_same_picture_gives_the_same_bytes():
    data = encoded(stripes(), "WEBP")
    assert (
        resized(data, "upscale", 200, 300)[0].sha256 == resized(data, "upscale", 200, 300)[0].sha256
    )


def test_a_file_that_turns_out_to_be_damaged_is_a_failure():
    verified = images.verify(io.BytesIO(encoded(stripes())))
    assert isinstance(verified, VerifiedImage)
    cut = io.BytesIO(encoded(stripes())[:-60])
    with tempfile.TemporaryFile() as into:
        failure = images.resize(cut, verified, Resize("upscale", 100, 100), into)
    assert isinstance(failure, Failure)
    assert failure.error_class == "bad_output"
    assert "cannot be resized" in failure.message


@pytest.mark.parametrize(
    ("pillow_format", "mode", "result", "most_bytes"),
    [
        ("PNG", "upscale", "png", 80_000_000),
        ("JPEG", "upscale", "jpeg", 60_000_000),
        ("WEBP", "upscale", "webp", 190_000_000),
        ("WEBP", "place", "png", 80_000_000),
    ],
)
def test_a_print_takes_little_memory(pillow_format, mode, result, most_bytes, tmp_path):
    path = tmp_path / "made"
    path.write_bytes(
        encoded(PIL.Image.effect_noise((1024, 1024), 80).convert("RGB"), pillow_format)
    )
    told, width, height, grown = run(MEASURE, path, mode).split("|")
    assert (told, width, height) == (result, "4500", "5400")
    assert int(grown) < most_bytes
