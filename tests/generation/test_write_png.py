"""Pictures as PNG, for shops that take nothing else."""

import errno
import io
import tempfile

import PIL.Image
import pytest

from generation import images, renditions
from generation.provider import ErrorClass, Failure
from generation.renditions import Resize

RED, BLUE = (220, 20, 20), (20, 20, 220)


def picture(pillow_format, **options):
    made = PIL.Image.new("RGB", (60, 40), RED)
    made.paste(BLUE, (30, 0, 60, 40))
    file = io.BytesIO()
    made.save(file, pillow_format, **options)
    return file


def turned():
    """Told to be shown upright by a quarter turn."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture
def full_disk(monkeypatch):
    def write(into, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(renditions.os, "write", write)


@pytest.mark.parametrize("image_format", ["webp", "avif"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_is_the_same_picture_upright(image_format, is_turned):
    options = {"exif": turned()} if is_turned else {}
    source = picture(image_format.upper(), quality=95, **options)
    with tempfile.TemporaryFile() as into:
        assert images.write_png(source, image_format, into) is None
        into.seek(0)
        with PIL.Image.open(into) as made:
            made.load()
    assert (made.format, made.size) == ("PNG", (40, 60) if is_turned else (60, 40))
    ends = ((20, 5), (20, 55)) if is_turned else ((5, 20), (55, 20))
    for at, wanted in zip(ends, (RED, BLUE), strict=True):
        assert all(abs(a - b) < 25 for a, b in zip(made.getpixel(at), wanted, strict=True))
    assert not made.getexif()


@pytest.mark.parametrize("image_format", ["webp", "avif"])
def test_of_a_damaged_picture_is_a_failure(image_format):
    whole = picture(image_format.upper()).getvalue()
    with tempfile.TemporaryFile() as into:
        failure = images.write_png(io.BytesIO(whole[: len(whole) // 2]), image_format, into)
    assert isinstance(failure, Failure)
    assert failure.error_class == ErrorClass.BAD_OUTPUT


@pytest.mark.parametrize("image_format", ["webp", "avif"])
def test_a_full_disk_is_not_taken_for_a_damaged_picture(image_format, full_disk):
    with open("/dev/full", "wb", buffering=0) as into, pytest.raises(OSError, match="No space"):
        images.write_png(picture(image_format.upper()), image_format, into)


def test_a_full_disk_is_not_taken_for_a_damaged_picture_when_one_is_resized(full_disk):
    source = picture("PNG")
    verified = images.verify(source)
    with tempfile.TemporaryFile() as into, pytest.raises(OSError, match="No space"):
        images.resize(source, verified, Resize("upscale", 120, 80), into)
