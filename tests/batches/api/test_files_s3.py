"""Pictures that are kept in S3: who gets at them, how, and for how long."""

import hashlib
import io
import tempfile
import threading
import tracemalloc
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import botocore.exceptions
import PIL.Image
import pytest
from django.core.files.base import ContentFile, File
from django.core.files.storage import default_storage
from django.utils import timezone
from rest_framework.test import APIClient

import picture.storage
from batches import cleanup, invariants
from batches.models import Discarded, Image, image_folder
from batches.signing import signed_url
from picture import health
from picture.storage import PrivateS3Storage
from tests.batches.api.support import IMAGES, client_of, problem
from tests.factories import make_batch, make_image, make_reference, make_user
from tests.factories import picture as bytes_of_picture
from tests.s3 import BUCKET, PAGE

pytestmark = pytest.mark.django_db

PARTS = {"file": "url", "preview": "preview_url", "thumbnail": "thumbnail_url"}
REFERENCES = "/api/v1/references/"


@pytest.fixture
def image(s3, owner):
    """An image with three parts, of which no two are the same bytes."""
    image = make_image(make_batch(owner, size=1).generations.get())
    image.preview.save("0.preview.webp", ContentFile(bytes_of_picture("webp", (4, 3))), save=False)
    image.thumbnail.save(
        "0.thumbnail.webp", ContentFile(bytes_of_picture("webp", (2, 1))), save=False
    )
    image.save()
    default_storage.delete(f"{image_folder(image.generation)}/0-thumbnail.webp")
    return image


SIZES = {"file": (8, 6), "preview": (4, 3), "thumbnail": (2, 1)}


def address(answer):
    """Where an answer sends to."""
    assert answer.status_code == 302, answer.content
    return answer["Location"]


# --- Who is let in, and for how long ------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_signed_address_leads_to_the_bytes_without_a_token(part, s3, api, image):
    shown = api.get(f"{IMAGES}{image.pk}/").json()
    answer = s3.get(address(APIClient().get(shown[PARTS[part]])))
    assert answer.status_code == 200, answer.text
    assert PIL.Image.open(io.BytesIO(answer.content)).size == SIZES[part]
    if part == "file":
        assert hashlib.sha256(answer.content).hexdigest() == shown["sha256"]


@pytest.mark.parametrize("part", PARTS)
def test_the_owners_token_leads_to_the_bytes(part, s3, api, image):
    assert s3.get(address(api.get(f"{IMAGES}{image.pk}/{part}/"))).status_code == 200


@pytest.mark.parametrize("part", PARTS)
def test_nobody_else_is_sent_anywhere(part, image):
    path = f"{IMAGES}{image.pk}/{part}/"
    problem(APIClient().get(path), 401, "not_authenticated")
    problem(client_of(make_user()).get(path), 404, "not_found")
    problem(APIClient().get(path, {"signature": "x:y"}), 404, "not_found")


@pytest.mark.parametrize("part", PARTS)
def test_an_address_in_s3_ends_after_five_minutes(part, s3, api, image):
    url = address(api.get(f"{IMAGES}{image.pk}/{part}/"))
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["300"]
    s3.set(ahead_s=240)
    assert s3.get(url).status_code == 200
    s3.set(ahead_s=302)
    late = s3.get(url)
    assert (late.status_code, "Request has expired" in late.text) == (403, True)


def test_an_object_is_open_to_nobody_without_a_signature(s3, image):
    for key in s3.stored():
        assert s3.get(f"{s3.url}/{BUCKET}/{key}").status_code == 403
    assert s3.get(f"{s3.url}/{BUCKET}/").status_code == 403


def test_an_address_is_for_one_object_and_one_way_to_show_it(s3, api, image):
    url = address(api.get(f"{IMAGES}{image.pk}/file/"))
    name = image.file.name
    for changed in (
        url.replace(name, image.thumbnail.name),
        url.replace("image%2Fpng", "text%2Fhtml"),
        url.replace("X-Amz-Expires=300", "X-Amz-Expires=3000"),
        url.replace("inline", "attachment"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
    ):
        assert changed != url
        assert s3.get(changed).status_code == 403
    assert s3.http.put(url, data=b"mine", timeout=10).status_code == 403
    assert s3.http.delete(url, timeout=10).status_code == 403
    assert s3.get(url).status_code == 200


def test_who_asks_for_the_headers_is_sent_to_an_address_for_these(s3, api, image):
    url = address(api.head(f"{IMAGES}{image.pk}/file/"))
    answer = s3.http.head(url, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    assert s3.get(url).status_code == 403


def test_an_answer_that_leads_to_s3_is_not_kept(api, image):
    answer = api.get(f"{IMAGES}{image.pk}/file/")
    assert answer["Cache-Control"] == "no-store"
    assert answer["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert not answer.content


def test_no_request_is_made_to_say_where_a_picture_is(s3, api, image):
    s3.set(fail=True)
    address(api.get(f"{IMAGES}{image.pk}/file/"))
    assert s3.seen() == []


@pytest.mark.parametrize("part", ["file", "thumbnail"])
def test_a_reference_is_in_s3_too_and_opened_in_the_same_ways(part, s3, api, owner):
    reference = make_reference(owner)
    signed = signed_url("http://testserver", reference.pk, part, collection="references")
    path = f"{REFERENCES}{reference.pk}/{part}/"
    for answer in (api.get(path), APIClient().get(signed)):
        assert s3.get(address(answer)).status_code == 200
    problem(APIClient().get(path), 401, "not_authenticated")
    problem(client_of(make_user()).get(path), 404, "not_found")
    assert s3.stored() == [
        f"{owner.pk}/references/{reference.pk}/{name}"
        for name in ("original.png", "thumbnail.webp")
    ]


# --- What S3 answers with -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored_format", "content_type", "disposition"),
    [
        ("png", "image/png", "inline"),
        ("jpeg", "image/jpeg", "inline"),
        ("webp", "image/webp", "inline"),
        ("avif", "image/avif", "inline"),
        ("svg", "image/svg+xml", "attachment"),
        ("strange", "application/octet-stream", "attachment"),
    ],
)
def test_s3_shows_pictures_and_only_hands_out_the_rest(
    stored_format, content_type, disposition, s3, api, image
):
    Image.objects.update(format=stored_format)
    answer = s3.get(address(api.get(f"{IMAGES}{image.pk}/file/")))
    assert answer.headers["Content-Type"] == content_type
    filename = f'{disposition}; filename="{image.pk}.{stored_format}"'
    assert answer.headers["Content-Disposition"] == filename
    assert answer.headers["Cache-Control"] == "private, max-age=300"
    for part in ("preview", "thumbnail"):
        answer = s3.get(address(api.get(f"{IMAGES}{image.pk}/{part}/")))
        assert answer.headers["Content-Type"] == "image/webp"
        assert answer.headers["Content-Disposition"].startswith("inline;")


def test_an_image_of_before_there_were_previews_shows_itself(s3, api, image):
    Image.objects.update(preview="")
    url = address(APIClient().get(api.get(f"{IMAGES}{image.pk}/").json()["preview_url"]))
    assert f"/{image.file.name}?" in url
    assert s3.get(url).headers["Content-Type"] == "image/png"


def test_a_file_that_s3_has_lost_is_not_found_there(s3, api, image):
    default_storage.delete(image.file.name)
    assert s3.get(address(api.get(f"{IMAGES}{image.pk}/file/"))).status_code == 404


# --- What is stored, and where ------------------------------------------------------------------


def test_keys_name_owner_batch_generation_and_place(s3, image):
    generation = image.generation
    folder = f"{generation.owner_id}/{generation.batch_id}/{generation.pk}"
    assert s3.stored() == [
        f"{folder}/{name}" for name in ("0.png", "0.preview.webp", "0.thumbnail.webp")
    ]


@pytest.mark.parametrize("spool_bytes", [1024, 64 * 1024 * 1024], ids=["on disk", "in memory"])
def test_a_large_file_is_sent_in_one_request_from_where_it_lies(spool_bytes, s3):
    size_bytes = 24 * 1024 * 1024
    with tempfile.SpooledTemporaryFile(max_size=spool_bytes) as spool:
        for _ in range(24):
            spool.write(b"p" * 1024 * 1024)
        default_storage.save("warm", ContentFile(b"x"))
        s3.set()
        spool.seek(0)
        tracemalloc.start()
        try:
            default_storage.save("large", File(spool))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < size_bytes / 6
    assert [request[:2] for request in s3.seen()] == [["PUT", f"{BUCKET}/large"]]
    head = s3.client.head_object(Bucket=BUCKET, Key="large")
    assert head["ContentLength"] == size_bytes


def test_a_key_that_is_written_again_is_written_over(s3):
    for content in (b"one", b"two"):
        assert default_storage.save("1/single/2/0.png", ContentFile(content)) == "1/single/2/0.png"
    assert s3.stored() == ["1/single/2/0.png"]
    with default_storage.open("1/single/2/0.png") as stored:
        assert stored.read() == b"two"


def test_what_is_not_there_is_told_as_a_missing_file(s3):
    with pytest.raises(FileNotFoundError):
        default_storage.open("missing")
    assert not default_storage.exists("missing")
    default_storage.delete("missing")
    assert default_storage.listdir("missing") == ([], [])


def test_threads_share_one_connection_to_s3(s3):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(default_storage.connection.meta.client))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


# --- A storage in trouble -----------------------------------------------------------------------


def test_a_storage_that_hangs_is_given_up_after_two_tries(s3, monkeypatch):
    monkeypatch.setattr(picture.storage, "READ_TIMEOUT_S", 0.2)
    impatient = PrivateS3Storage(**s3.options)
    s3.set(hang=True)
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        impatient.save("0.png", ContentFile(b"x"))
    assert len(s3.seen()) == 2
    impatient.connection.meta.client.close()


def test_waiting_for_a_storage_ends_before_a_lease_does(settings):
    waits_s = picture.storage.CONNECT_TIMEOUT_S + picture.storage.READ_TIMEOUT_S
    assert waits_s * picture.storage.ATTEMPTS < 60 == settings.LEASE_SECONDS
    config = PrivateS3Storage(bucket_name=BUCKET, addressing_style="path").client_config
    assert (config.connect_timeout, config.read_timeout) == (
        picture.storage.CONNECT_TIMEOUT_S,
        picture.storage.READ_TIMEOUT_S,
    )


def test_the_health_of_the_system_depends_on_s3(s3, client, monkeypatch):
    monkeypatch.setattr(health, "CHECKS", {"storage": health.CHECKS["storage"]})
    assert client.get("/health/ready").json()["checks"]["storage"] == "ok"
    assert s3.stored() == []
    s3.set(fail=True)
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["storage"] == "ClientError"


# --- Nothing is left behind ---------------------------------------------------------------------


def test_orphans_go_however_many_pages_of_them_there_are(s3, image):
    folder = image_folder(image.generation)
    orphans = [f"{folder}/{number}-2.png" for number in range(3 * PAGE)]
    deep = f"{folder}/more/1.png"
    elsewhere = f"{image.owner_id}/single/of-others/0.png"
    s3.put(*orphans, deep, elsewhere)
    assert cleanup.clean(folder)
    kept = {image.file.name, image.preview.name, image.thumbnail.name, elsewhere}
    assert set(s3.stored()) == kept


def test_cleaning_where_nothing_ever_was_is_done_at_once(s3):
    assert cleanup.clean("1/single/nowhere")


def test_what_a_failing_storage_keeps_is_left_for_later(s3, image):
    folder = image_folder(image.generation)
    s3.put(f"{folder}/0-2.png")
    s3.set(fail=True)
    assert not cleanup.clean(folder)
    s3.set()
    assert cleanup.clean(folder)
    assert len(s3.stored()) == len(PARTS)


def test_a_storage_in_trouble_is_asked_once_for_all_that_is_due(s3):
    folders = [f"1/single/{number}" for number in range(3)]
    past = timezone.now() - timedelta(seconds=1)
    Discarded.objects.bulk_create(Discarded(folder=one, due_at=past) for one in folders)
    s3.set(fail=True)
    assert cleanup.clean_due(len(folders)) == 0
    assert len({query["prefix"] for _, _, query in s3.seen()}) == 1
    s3.set()
    Discarded.objects.update(due_at=past)
    assert cleanup.clean_due(len(folders)) == len(folders)


def test_a_deleted_image_leaves_no_object(s3, api, image, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        assert api.delete(f"{IMAGES}{image.pk}/").status_code == 204
    assert s3.stored() == []


def file_findings():
    return [
        example
        for finding in invariants.check()
        if "files" in finding.rule
        for example in finding.examples
    ]


def test_the_invariants_find_orphans_and_missing_files_in_s3(s3, image):
    assert file_findings() == []
    stray = [f"{image.owner_id}/single/{number}/0.png" for number in range(PAGE + 1)]
    s3.put(*stray)
    assert sorted(file_findings()) == [f"orphan {name}" for name in stray]
    for name in stray:
        default_storage.delete(name)
    default_storage.delete(image.preview.name)
    assert file_findings() == [f"missing {image.preview.name}"]


def test_the_invariants_know_the_files_of_references(s3, owner):
    reference = make_reference(owner)
    assert file_findings() == []
    default_storage.delete(reference.thumbnail.name)
    assert file_findings() == [f"missing {reference.thumbnail.name}"]
    s3.put(reference.thumbnail.name)
    reference.delete()
    assert sorted(file_findings()) == [f"orphan {name}" for name in s3.stored()]
    assert len(s3.stored()) == 2
