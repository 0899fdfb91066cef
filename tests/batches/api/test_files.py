"""Files of every kind over HTTP, where they are kept in a folder: what is shown, to whom."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.files.base import ContentFile
from rest_framework.test import APIClient

from batches.models import Image, Reference
from batches.signing import signed_url
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, client_of, problem
from tests.factories import make_batch, make_image, make_reference, make_user, picture

pytestmark = pytest.mark.django_db

REFERENCES = "/api/v1/references/"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="6"/>'
SANDBOX = "sandbox; default-src 'none'"


@pytest.fixture
def image(owner):
    """An image with a preview that is not its thumbnail."""
    image = make_image(make_batch(owner, size=1).generations.get())
    image.preview.save("0.preview.webp", ContentFile(picture("webp", (4, 3))), save=False)
    image.save()
    return image


def content(response):
    assert response.status_code == 200, getattr(response, "content", b"")
    return b"".join(response.streaming_content)


# --- Previews -----------------------------------------------------------------------------------


def test_a_preview_is_shown_wherever_its_image_is(api, image):
    generation = image.generation
    for body in (
        api.get(f"{BATCHES}{generation.batch_id}/").json()["items"][0]["image"],
        api.get(f"{GENERATIONS}{generation.pk}/").json()["image"],
        api.get(f"{IMAGES}{image.pk}/").json(),
        api.get(IMAGES).json()["results"][0],
    ):
        response = APIClient().get(body["preview_url"])
        assert content(response) == picture("webp", (4, 3))
        assert response["Content-Type"] == "image/webp"
        assert response["Content-Disposition"] == f'inline; filename="{image.pk}.webp"'


def test_a_preview_is_open_to_its_owner_and_to_nobody_else(api, image):
    path = f"{IMAGES}{image.pk}/preview/"
    assert content(api.get(path)) == picture("webp", (4, 3))
    problem(APIClient().get(path), 401, "not_authenticated")
    problem(client_of(make_user()).get(path), 404, "not_found")
    problem(APIClient().get(path, {"signature": "x:y"}), 404, "not_found")


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_an_image_of_before_there_were_previews_shows_itself(image_format, api, owner):
    image = make_image(make_batch(owner, size=1).generations.get(), image_format=image_format)
    response = APIClient().get(api.get(f"{IMAGES}{image.pk}/").json()["preview_url"])
    assert content(response) == picture(image_format)
    assert response["Content-Type"] == f"image/{image_format}"


# --- What a browser may show --------------------------------------------------------------------


def test_an_svg_is_handed_out_to_be_kept_and_its_renditions_are_shown(api, image):
    image.file.save("0.svg", ContentFile(SVG), save=False)
    image.format = "svg"
    image.save()
    response = api.get(f"{IMAGES}{image.pk}/file/")
    assert content(response) == SVG
    assert response["Content-Type"] == "image/svg+xml"
    assert response["Content-Disposition"] == f'attachment; filename="{image.pk}.svg"'
    assert response["Content-Security-Policy"] == SANDBOX
    assert response["X-Content-Type-Options"] == "nosniff"
    for part in ("preview", "thumbnail"):
        response = api.get(f"{IMAGES}{image.pk}/{part}/")
        assert content(response)
        assert response["Content-Type"] == "image/webp"
        assert response["Content-Disposition"].startswith("inline;")


@pytest.mark.parametrize(
    ("stored_format", "content_type", "disposition"),
    [
        ("webp", "image/webp", "inline"),
        ("avif", "image/avif", "inline"),
        ("html", "application/octet-stream", "attachment"),
        ("../svg", "application/octet-stream", "attachment"),
    ],
)
def test_only_pictures_are_shown_in_place(stored_format, content_type, disposition, api, image):
    Image.objects.update(format=stored_format)
    response = api.get(f"{IMAGES}{image.pk}/file/")
    content(response)
    assert response["Content-Type"] == content_type
    assert response["Content-Disposition"].startswith(f"{disposition};")
    assert response["Content-Security-Policy"] == SANDBOX


# --- References ---------------------------------------------------------------------------------


@pytest.fixture
def reference(owner):
    return make_reference(owner)


@pytest.mark.parametrize(("part", "part_format"), [("file", "png"), ("thumbnail", "webp")])
def test_a_reference_is_open_to_its_owner_and_by_a_signed_address(
    part, part_format, api, reference
):
    signed = signed_url("http://testserver", reference.pk, part, collection="references")
    for response in (
        api.get(f"{REFERENCES}{reference.pk}/{part}/"),
        APIClient().get(signed),
    ):
        assert content(response)[:4] == picture(part_format)[:4]
        assert response["Content-Type"] == f"image/{part_format}"
        assert response["Content-Security-Policy"] == SANDBOX


@pytest.mark.parametrize("part", ["file", "thumbnail"])
def test_a_reference_is_open_to_nobody_else(part, reference):
    path = f"{REFERENCES}{reference.pk}/{part}/"
    problem(APIClient().get(path), 401, "not_authenticated")
    problem(client_of(make_user()).get(path), 404, "not_found")
    problem(APIClient().get(path, {"signature": "x:y"}), 404, "not_found")


def test_a_signed_address_of_a_reference_ends_after_five_minutes(reference, clock):
    url = signed_url("http://testserver", reference.pk, "file", collection="references")
    clock.ahead_s = 295
    assert content(APIClient().get(url))
    clock.ahead_s = 302
    problem(APIClient().get(url), 404, "not_found")


def test_a_signature_is_for_images_or_for_references(image, reference):
    Reference.objects.filter(pk=reference.pk).update(id=image.pk)
    for collection, other in (("images", "references"), ("references", "images")):
        url = signed_url("http://testserver", image.pk, "file", collection=collection)
        assert content(APIClient().get(url))
        (signature,) = parse_qs(urlsplit(url).query)["signature"]
        path = re.sub(collection, other, urlsplit(url).path)
        problem(APIClient().get(path, {"signature": signature}), 404, "not_found")
