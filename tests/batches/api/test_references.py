"""Reference images: uploaded, listed, deleted, and told what is wrong with them."""

import hashlib
import io
from functools import partial
from urllib.parse import urlsplit

import PIL.Image
import pytest
from django.core.files.storage import FileSystemStorage, default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from batches import references
from batches.models import Discarded, Image, Reference
from generation import images
from tests.batches.api.support import GENERATIONS, client_of, ids, invalid, problem
from tests.factories import make_generation, make_image, make_reference, make_user, picture
from tests.support import at_once, in_background

pytestmark = pytest.mark.django_db

REFERENCES = "/api/v1/references/"
FIELDS = {
    *("id", "url", "thumbnail_url", "width", "height", "format", "size_bytes", "sha256"),
    "created_at",
}


@pytest.fixture
def stored(media):
    """The files in storage."""
    return lambda: {path for path in media.rglob("*") if path.is_file()}


@pytest.fixture
def nothing_stored(stored):
    """What must hold at the end: no row, no file, no note of a file."""
    yield
    assert not Reference.objects.exists()
    assert stored() == set()


def upload(api, data, filename="picture.png", **headers):
    body = {"file": SimpleUploadedFile(filename, data)}
    return api.post(REFERENCES, body, format="multipart", **headers)


def content(response):
    assert response.status_code == 200, getattr(response, "content", b"")
    return b"".join(response.streaming_content)


# --- Upload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_a_picture_is_kept_as_it_is(image_format, api, stored):
    data = picture(image_format, size=(300, 200))
    answer = upload(api, data)
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert body.keys() == FIELDS
    assert (body["width"], body["height"], body["format"]) == (300, 200, image_format)
    assert body["size_bytes"] == len(data)
    assert body["sha256"] == hashlib.sha256(data).hexdigest()
    assert body["created_at"].endswith("Z")
    assert urlsplit(answer["Location"]).path == f"{REFERENCES}{body['id']}/"
    shown = api.get(answer["Location"]).json()
    signed = {"url", "thumbnail_url"}
    assert {k: shown[k] for k in FIELDS - signed} == {k: body[k] for k in FIELDS - signed}
    assert content(APIClient().get(body["url"])) == data
    thumbnail = PIL.Image.open(io.BytesIO(content(APIClient().get(body["thumbnail_url"]))))
    assert (thumbnail.format, max(thumbnail.size)) == ("WEBP", 256)
    assert len(stored()) == 2
    assert not Discarded.objects.exists()


def test_the_same_bytes_are_kept_once(api, stored):
    first = upload(api, picture())
    before = stored()
    again = upload(api, picture(), filename="other.jpg")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again["Location"] == first["Location"]
    assert again.json()["id"] == first.json()["id"]
    assert stored() == before


def test_each_user_has_their_own(api):
    other = client_of(make_user())
    assert upload(api, picture()).status_code == upload(other, picture()).status_code == 201
    assert Reference.objects.count() == 2


def test_the_name_and_type_that_the_client_gives_say_nothing(api):
    file = SimpleUploadedFile("../../etc/passwd.svg", picture("jpeg"), "image/svg+xml")
    answer = api.post(REFERENCES, {"file": file}, format="multipart")
    assert answer.json()["format"] == "jpeg"
    reference = Reference.objects.get()
    folder = f"{reference.owner_id}/references/{reference.pk}"
    assert reference.file.name == f"{folder}/picture.jpg"
    assert reference.thumbnail.name == f"{folder}/thumbnail.webp"


def test_a_large_picture_is_spooled_and_kept(api):
    noise = PIL.Image.effect_noise((1200, 1200), 90).convert("RGB")
    out = io.BytesIO()
    noise.save(out, "png")
    data = out.getvalue()
    assert len(data) > references.SPOOL_BYTES
    answer = upload(api, data)
    assert answer.status_code == 201
    assert content(APIClient().get(answer.json()["url"])) == data


# --- What is refused ----------------------------------------------------------------------------

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'
GIF = picture("gif")
HOSTILE = {
    "text": (b"hello", "unsupported_format"),
    "a web page": (b"<!doctype html><script>alert(1)</script>", "unsupported_format"),
    "an SVG": (SVG, "unsupported_format"),
    "a GIF": (GIF, "unsupported_format"),
    "an AVIF, which few models take": (picture("avif"), "unsupported_format"),
    "a truncated picture": (picture(size=(300, 300))[:-40], "undecodable"),
    "a picture with a page behind it": (picture() + b"<script>alert(1)</script>", "undecodable"),
    "nothing but a signature": (b"\x89PNG\r\n\x1a\n", "undecodable"),
}


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused(name, api):
    data, code = HOSTILE[name]
    told = invalid(upload(api, data))
    assert told.keys() == {"file"}
    assert told["file"][0] == code


@pytest.mark.usefixtures("nothing_stored")
def test_an_empty_file_is_refused(api):
    assert invalid(upload(api, b""))["file"][0] in ("undecodable", "unsupported_format")


@pytest.mark.usefixtures("nothing_stored")
def test_a_file_that_is_too_large_is_refused_with_its_limit(api, settings):
    settings.MAX_REFERENCE_BYTES = 1_000
    answer = upload(api, b"x" * 1_001)
    assert invalid(answer)["file"][0] == "too_large"
    assert answer.json()["errors"][0]["allowed"] == {"max_bytes": 1_000}


@pytest.mark.usefixtures("nothing_stored")
def test_no_more_of_a_file_is_read_than_shows_that_it_is_too_large(api, settings):
    settings.MAX_REFERENCE_BYTES = 100_000

    class Endless(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def read(self, size=-1):
            first = self.given == 0
            head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            self.given += size
            return (head if first else b"").ljust(size, b"x")

    body = Endless()
    answer = api.generic(
        "POST",
        REFERENCES,
        content_type="multipart/form-data; boundary=x",
        CONTENT_LENGTH=str(10**9),
        **{"wsgi.input": body},
    )
    assert invalid(answer)["file"][0] == "too_large"
    assert body.given < 100_000 + 5 * 65_536


@pytest.mark.usefixtures("nothing_stored")
def test_a_picture_with_too_many_pixels_is_refused_with_the_limit(api, settings):
    settings.MAX_REFERENCE_PIXELS = 47
    answer = upload(api, picture(size=(8, 6)))
    assert invalid(answer)["file"][0] == "too_large"
    most = {"max_pixels": 47, "max_side_px": images.MAX_SIDE_PX}
    assert answer.json()["errors"][0]["allowed"] == most


@pytest.mark.usefixtures("nothing_stored")
def test_a_picture_with_too_long_a_side_is_refused_with_the_limit(api):
    answer = upload(api, picture(size=(images.MAX_SIDE_PX + 1, 1)))
    assert invalid(answer)["file"][0] == "too_large"
    assert answer.json()["errors"][0]["allowed"]["max_side_px"] == images.MAX_SIDE_PX


@pytest.mark.usefixtures("nothing_stored")
def test_a_picture_that_takes_too_much_to_decode_is_refused_without_a_limit_in_pixels(
    api, monkeypatch
):
    monkeypatch.setattr(images, "MAX_HELD_BYTES", 1_000)
    out = io.BytesIO()
    PIL.Image.new("RGB", (100, 100)).save(out, "webp", lossless=True)
    answer = upload(api, out.getvalue())
    code, detail = invalid(answer)["file"]
    assert code == "too_large"
    assert "memory to decode" in detail
    assert "allowed" not in answer.json()["errors"][0]


def form(*parts, end=b"--x--\r\n"):
    body = b""
    for headers, data in parts:
        body += b"--x\r\nContent-Disposition: form-data; " + headers + b"\r\n\r\n" + data + b"\r\n"
    return body + end


FILE = b'name="file"; filename="a.png"'
FORMS = {
    "no file": (form(), "file", "required"),
    "another field": (form((FILE, picture()), (b'name="url"', b"x")), "url", "unknown_field"),
    "another file": (form((b'name="x"; filename="a"', b"1")), "x", "unknown_field"),
    "two files": (form((FILE, picture()), (FILE, picture())), "file", "too_many"),
    "a plain field": (form((b'name="file"', b"abc")), "file", "invalid"),
    "both": (form((FILE, picture()), (b'name="file"', b"abc")), "file", "invalid"),
    "no name for the file": (form((b'name="file"; filename=""', b"abc")), "file", "invalid"),
}


def send_form(api, body, content_type="multipart/form-data; boundary=x"):
    return api.generic("POST", REFERENCES, body, content_type=content_type)


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_one_file_and_nothing_else(name, api):
    body, field, code = FORMS[name]
    told = invalid(send_form(api, body))
    assert told[field][0] == code


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form((FILE, picture()), end=b""), "multipart/form-data; boundary=x"),
        (form((FILE, picture())), "multipart/form-data"),
        (form((FILE, picture())), "multipart/form-data; boundary="),
        (form((FILE + b"\r\nContent-Transfer-Encoding: base64", b"a")), None),
        (form((b'name="file"', b"x" * 2_000_000)), None),
        (form(*[(b'name="f"', b"")] * 1_500), None),
        (form((FILE + b"; x=" + b"y" * 5_000, b"")), None),
    ],
)
def test_what_is_no_form_is_refused(body, content_type, api):
    answer = send_form(api, body, content_type or "multipart/form-data; boundary=x")
    assert answer.status_code in (400, 422), answer.content
    if answer.status_code == 400:
        problem(answer, 400, "invalid_form")


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, None, "required"),
        ({"url": "https://a.example/", "image_id": "0" * 32}, None, "conflict"),
        ({"url": 7}, "url", "invalid"),
        ({"url": "https://a.example/" + "x" * 2_000}, "url", "max_length"),
        ({"image_id": "x"}, "image_id", "invalid"),
        ({"image_id": 7}, "image_id", "invalid"),
        ({"id": "00000000-0000-0000-0000-000000000000"}, "id", "unknown_field"),
        ({"file": "abc"}, "file", "unknown_field"),
    ],
)
def test_json_names_one_picture(body, field, code, api):
    told = invalid(api.post(REFERENCES, body))
    assert told[field][0] == code


@pytest.mark.parametrize("content_type", ["image/png", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(content_type, api):
    answer = api.generic("POST", REFERENCES, picture(), content_type=content_type)
    problem(answer, 415, "unsupported_media_type")


def test_other_routes_take_no_forms(api):
    answer = api.post(GENERATIONS, {"prompt": "a fox"}, format="multipart")
    problem(answer, 415, "unsupported_media_type")


# --- From an earlier image ----------------------------------------------------------------------


@pytest.fixture
def image(owner):
    return make_image(make_generation(owner))


def test_an_earlier_image_becomes_a_reference(api, image):
    answer = api.post(REFERENCES, {"image_id": str(image.pk)})
    assert answer.status_code == 201, answer.content
    assert answer.json()["sha256"] == image.sha256
    assert content(APIClient().get(answer.json()["url"])) == picture()
    # A copy: the image may go.
    Image.objects.all().delete()
    default_storage.delete(image.file.name)
    assert content(APIClient().get(answer.json()["thumbnail_url"])) == picture("webp")
    assert content(APIClient().get(answer.json()["url"])) == picture()


def test_an_image_whose_bytes_were_uploaded_before_is_that_reference(api, image):
    first = upload(api, picture())
    again = api.post(REFERENCES, {"image_id": str(image.pk)})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_an_image_that_is_not_there_is_refused(api):
    foreign = make_image(make_generation(make_user()))
    for pk in (foreign.pk, "00000000-0000-0000-0000-000000000000"):
        told = invalid(api.post(REFERENCES, {"image_id": str(pk)}))
        assert told["image_id"][0] == "unknown_image"
    assert not Reference.objects.exists()


def test_an_image_without_its_file_is_refused(api, image, django_capture_on_commit_callbacks):
    image.thumbnail.delete(save=False)
    with django_capture_on_commit_callbacks(execute=True):
        told = invalid(api.post(REFERENCES, {"image_id": str(image.pk)}))
    assert told["image_id"][0] == "unknown_image"
    assert not Reference.objects.exists()
    assert not default_storage.exists(f"{image.owner_id}/references") or not any(
        default_storage.listdir(f"{image.owner_id}/references/{name}")[1]
        for name in default_storage.listdir(f"{image.owner_id}/references")[0]
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": "svg"}, "unsupported_format"),
        ({"format": "avif"}, "unsupported_format"),
        ({"size_bytes": 20 * 1024 * 1024 + 1}, "too_large"),
        ({"width": 10_000, "height": 10_000}, "too_large"),
    ],
)
def test_an_image_beyond_the_limits_is_refused(change, code, api, image):
    Image.objects.update(**change)
    answer = api.post(REFERENCES, {"image_id": str(image.pk)})
    assert invalid(answer)["image_id"][0] == code
    assert answer.json()["errors"][0]["allowed"]
    assert not Reference.objects.exists()


# --- Lists, files, deletion ---------------------------------------------------------------------


def test_the_list_is_newest_first_by_cursor(api, owner):
    colours = ["red", "green", "blue"]
    made = [str(make_reference(owner, colour).pk) for colour in colours]
    made.sort(key=lambda pk: Reference.objects.get(pk=pk).created_at, reverse=True)
    page = api.get(REFERENCES, {"page_size": 2})
    assert page.json()["results"][0].keys() == FIELDS
    seen = ids(page) + ids(api.get(page.json()["next"]))
    assert sorted(seen) == sorted(made)
    moments = [str(Reference.objects.get(pk=pk).created_at) for pk in seen]
    assert moments == sorted(moments, reverse=True)


def test_a_list_takes_as_many_queries_whatever_its_length(api, owner, django_assert_num_queries):
    make_reference(owner, "red")
    with django_assert_num_queries(2):
        assert len(ids(api.get(REFERENCES))) == 1
    for colour in ("green", "blue", "black"):
        make_reference(owner, colour)
    with django_assert_num_queries(2):
        assert len(ids(api.get(REFERENCES))) == 4


def test_another_users_reference_is_not_there(api):
    foreign = make_reference()
    for path in ("", "file/", "thumbnail/"):
        problem(api.get(f"{REFERENCES}{foreign.pk}/{path}"), 404, "not_found")
    problem(api.delete(f"{REFERENCES}{foreign.pk}/"), 404, "not_found")
    assert ids(api.get(REFERENCES)) == []
    assert Reference.objects.filter(pk=foreign.pk).exists()


def test_a_reference_goes_with_its_files(api, stored, django_capture_on_commit_callbacks):
    location = upload(api, picture())["Location"]
    with django_capture_on_commit_callbacks(execute=True):
        answer = api.delete(location)
    assert (answer.status_code, answer.content) == (204, b"")
    assert not Reference.objects.exists()
    assert stored() == set()
    problem(api.delete(location), 404, "not_found")


def test_a_reference_in_use_stays(api, owner, stored):
    reference = make_reference(owner)
    make_generation(owner, references=(reference.pk,), kind="derive")
    before = stored()
    answer = api.delete(f"{REFERENCES}{reference.pk}/")
    assert problem(answer, 409, "reference_in_use")["errors"] == []
    assert Reference.objects.get() == reference
    assert stored() == before


def test_a_session_is_not_enough(client, owner):
    client.force_login(owner)
    assert client.get(REFERENCES).status_code == 401
    assert client.post(REFERENCES, {"file": SimpleUploadedFile("a", picture())}).status_code == 401


# --- Sent twice ---------------------------------------------------------------------------------

KEY = {"Idempotency-Key": "one"}


def test_an_upload_sent_twice_with_one_key_is_answered_again(api):
    first = upload(api, picture(), headers=KEY)
    assert first.status_code == 201
    # Another boundary and another name: the content is the same.
    again = upload(api, picture(), filename="x", headers=KEY)
    assert again.status_code == 201
    assert again["Idempotent-Replayed"] == "true"
    assert again["Location"] == first["Location"]
    assert again.json() == first.json()


def test_a_key_does_not_do_for_another_file(api):
    upload(api, picture(), headers=KEY)
    answer = upload(api, picture(size=(9, 9)), headers=KEY)
    problem(answer, 422, "idempotency_key_reused")
    assert Reference.objects.count() == 1


def test_a_refused_upload_leaves_its_key_free(api):
    invalid(upload(api, b"hello", headers=KEY))
    assert upload(api, picture(), headers=KEY).status_code == 201


def test_a_key_does_for_a_url_that_is_gone_by_then(api, image):
    body = {"image_id": str(image.pk)}
    first = api.post(REFERENCES, body, headers=KEY)
    Image.objects.all().delete()
    again = api.post(REFERENCES, body, headers=KEY)
    assert again["Idempotent-Replayed"] == "true"
    assert again.json() == first.json()


@pytest.mark.django_db(transaction=True)
def test_identical_uploads_at_once_make_one(owner, stored):
    clients = [client_of(owner) for _ in range(8)]
    answers = at_once(*(partial(upload, client, picture()) for client in clients))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    reference = Reference.objects.get()
    assert {path.parent.name for path in stored()} == {str(reference.pk)}


# --- When it goes wrong -------------------------------------------------------------------------


def test_a_storage_that_fails_is_told_and_leaves_nothing(
    api, monkeypatch, stored, caplog, django_capture_on_commit_callbacks
):
    save = FileSystemStorage.save

    def full(storage, name, file, **options):
        if name.endswith("thumbnail.webp"):
            raise OSError(28, "No space left on device")
        return save(storage, name, file, **options)

    monkeypatch.setattr(FileSystemStorage, "save", full)
    with django_capture_on_commit_callbacks(execute=True):
        answer = upload(api, picture())
    problem(answer, 503, "storage_unavailable")
    assert answer["Retry-After"] == "5"
    assert not Reference.objects.exists()
    assert stored() == set()


def test_too_many_at_a_time_are_told_to_come_again(api, monkeypatch):
    monkeypatch.setattr(references, "CHECK_WAIT_S", 0.01)
    for _ in range(references.CHECKS_AT_A_TIME):
        references._checks.acquire()
    try:
        answer = upload(api, picture())
    finally:
        references._checks.release(references.CHECKS_AT_A_TIME)
    problem(answer, 503, "busy")
    assert answer["Retry-After"] == "2"
    assert upload(api, picture()).status_code == 201


@pytest.mark.django_db(transaction=True)
def test_a_file_is_noted_before_it_is_written_and_until_its_row_is_there(owner, monkeypatch):
    save, seen = FileSystemStorage.save, []

    def watched(storage, name, file, **options):
        # As somebody else sees it: what is committed.
        noted = in_background(lambda: list(Discarded.objects.values_list("folder", flat=True)))
        seen.append((name.rsplit("/", 1)[0], noted.result(30)))
        return save(storage, name, file, **options)

    monkeypatch.setattr(FileSystemStorage, "save", watched)
    assert upload(client_of(owner), picture(), headers=KEY).status_code == 201
    assert len(seen) == 2
    for folder, noted in seen:
        assert noted == [folder]
    assert not Discarded.objects.exists()


def test_an_upload_takes_a_constant_number_of_queries(api, django_assert_num_queries):
    # Authentication; what is known; the note; a savepoint, the note's end, the row, a look,
    # its release.
    with django_assert_num_queries(8):
        assert upload(api, picture()).status_code == 201
    # Authentication, what is known, a savepoint, a look, its release.
    with django_assert_num_queries(5):
        assert upload(api, picture()).status_code == 200
