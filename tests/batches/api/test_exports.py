"""Images as a ZIP over HTTP, from a folder and from S3."""

import hashlib
import io
import json
import tracemalloc
import uuid
import zipfile

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from rest_framework.test import APIClient

from batches import exports
from batches.exports import PLACEHOLDERS, StorageBroken
from batches.models import Image
from tests.batches.api.support import BATCHES, IMAGES, client_of, invalid, problem
from tests.factories import make_batch, make_generation, make_image, make_user

pytestmark = pytest.mark.django_db

EXPORT = f"{IMAGES}export/"


@pytest.fixture
def batch(owner):
    batch = make_batch(owner, size=3, name="Lighthouses")
    for generation in batch.generations.all():
        make_image(generation)
    return batch


def of(batch):
    return f"{BATCHES}{batch.pk}/export/"


def zip_of(answer):
    assert answer.status_code == 200, answer.content
    assert answer["Content-Type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content)))
    assert archive.testzip() is None
    return archive


def manifest_of(archive):
    told = json.loads(archive.read("manifest.json"))
    for entry in told["images"]:
        if entry["file"]:
            assert hashlib.sha256(archive.read(entry["file"])).hexdigest() == entry["sha256"]
    return told["images"]


def test_a_batch_is_a_zip_of_its_images_in_order(api, batch):
    answer = api.get(of(batch))
    assert answer["Content-Disposition"] == 'attachment; filename="Lighthouses.zip"'
    assert answer["Cache-Control"] == "no-store"
    assert answer["X-Content-Type-Options"] == "nosniff"
    archive = zip_of(answer)
    assert archive.namelist() == [
        *(f"Lighthouses/{place:03}-7.png" for place in range(3)),
        "manifest.json",
    ]
    assert [entry["index"] for entry in manifest_of(archive)] == [0, 1, 2]


def test_the_name_of_a_zip_may_be_in_any_script(api, owner):
    batch = make_batch(owner, size=1, name="F\u00fcchse/\u72d0")
    make_image(batch.generations.get())
    disposition = api.get(of(batch))["Content-Disposition"]
    assert disposition == "attachment; filename*=utf-8''F%C3%BCchse-%E7%8B%90.zip"


def test_files_are_called_as_is_asked_for(api, batch):
    archive = zip_of(api.get(of(batch), {"names": "{style}/{number:02} {custom_id}"}))
    assert archive.namelist()[:3] == ["_/01.png", "_/02.png", "_/03.png"]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("{nothing}", "unknown_placeholder"),
        ("../{index}", "invalid"),
        ("/{index}", "invalid"),
        ("{index", "invalid"),
        ("", "blank"),
        ("x" * 201, "max_length"),
    ],
)
@pytest.mark.parametrize("whose", ["batch", "images"])
def test_names_that_cannot_be_made_are_refused(whose, names, code, api, batch):
    answer = api.get({"batch": of(batch), "images": EXPORT}[whose], {"names": names})
    ((field, (told, _)),) = invalid(answer).items()
    assert (field, told) == ("names", code)
    if code == "unknown_placeholder":
        assert answer.json()["errors"][0]["allowed"] == list(PLACEHOLDERS)


@pytest.mark.parametrize("raw", ["%00", "%FF", "%ED%A0%80", "%7B%00%7D", "%E2%80%AE", "a%0Ab"])
@pytest.mark.parametrize("name", ["names", "ids", "model", "q", "tag"])
def test_bytes_that_are_no_text_are_no_error_of_ours(name, raw, api, batch):
    answer = api.get(f"{EXPORT}?{name}={raw}")
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        zip_of(answer)


@pytest.mark.parametrize("path", ["batch", "images"])
def test_a_parameter_that_nobody_knows_is_refused(path, api, batch):
    answer = api.get({"batch": of(batch), "images": EXPORT}[path], {"name": "{index}"})
    assert invalid(answer)["name"][0] == "unknown_parameter"
    if path == "images":
        known = {"ids", "names", "q", "tag", "review_status", "batch", "order"}
        assert set(answer.json()["errors"][0]["allowed"]) >= known


@pytest.mark.parametrize(
    ("asked", "field", "code"),
    [
        ({"q": "the"}, "q", "no_words"),
        ({"q": " "}, "q", "blank"),
        ({"batch": "\t"}, "batch", "blank"),
        ({"model": " "}, "model", "blank"),
        ({"names": " "}, "names", "blank"),
        ({"ids": " "}, "ids.0", "invalid"),
    ],
)
def test_what_asks_for_nothing_is_not_everything(asked, field, code, api, batch):
    assert invalid(api.get(EXPORT, asked))[field][0] == code


def test_without_images_there_is_no_zip(api, owner):
    for path in (of(make_batch(owner)), EXPORT):
        assert invalid(api.get(path))["images"][0] == "no_images"


def test_what_is_not_ones_own_is_not_there(batch):
    problem(APIClient().get(of(batch)), 401, "not_authenticated")
    problem(APIClient().get(EXPORT), 401, "not_authenticated")
    stranger = client_of(make_user())
    problem(stranger.get(of(batch)), 404, "not_found")
    assert invalid(stranger.get(EXPORT))["images"][0] == "no_images"


def test_a_deleted_batch_is_not_there(api, batch):
    assert api.delete(f"{BATCHES}{batch.pk}/").status_code == 204
    problem(api.get(of(batch)), 404, "not_found")


def test_who_asks_for_the_headers_gets_these_alone(api, batch):
    answer = api.head(of(batch))
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/zip")
    assert answer["Content-Disposition"] == 'attachment; filename="Lighthouses.zip"'
    assert b"".join(answer) == b""


def test_a_storage_in_trouble_is_told_before_anything_is_sent(api, batch, monkeypatch):
    def broken(name):
        raise StorageBroken(name)

    monkeypatch.setattr(exports, "_opened", broken)
    answer = api.get(of(batch))
    problem(answer, 503, "storage_unavailable")
    assert answer["Retry-After"] == "5"


def test_the_queries_do_not_grow_with_the_images(api, owner, django_assert_num_queries):
    counted = []
    for size in (1, 5):
        batch = make_batch(owner, size=size)
        for generation in batch.generations.all():
            make_image(generation)
        with django_assert_num_queries(4 if not counted else counted[0]) as queries:
            zip_of(api.get(of(batch)))
        counted.append(len(queries))


# --- A selection ----------------------------------------------------------------------------------


def test_images_are_exported_newest_first_by_the_gallerys_filters(api, owner, batch):
    single = make_image(make_generation(owner))
    Image.objects.filter(batch=batch, generation__index=1).update(is_saved=True)
    answer = api.get(EXPORT)
    assert answer["Content-Disposition"].startswith('attachment; filename="images-20')
    entries = manifest_of(zip_of(answer))
    assert len(entries) == 4
    assert entries[0]["id"] == str(single.pk)
    for asked, expected in (
        ({"saved": "true"}, [1]),
        ({"batch": batch.pk, "saved": "false"}, [0, 2]),
        ({"review_status": "pending", "batch": batch.pk}, [0, 1, 2]),
    ):
        entries = manifest_of(zip_of(api.get(EXPORT, asked)))
        assert sorted(entry["index"] for entry in entries) == expected, asked
    assert invalid(api.get(EXPORT, {"review_status": "approved"}))["images"][0] == "no_images"


def test_chosen_images_are_exported(api, owner, batch):
    images = list(Image.objects.filter(batch=batch)[:2])
    ids = [str(image.pk) for image in images]
    entries = manifest_of(zip_of(api.get(EXPORT, {"ids": ",".join(ids)})))
    assert sorted(entry["id"] for entry in entries) == sorted(ids)


@pytest.mark.parametrize(
    ("ids", "code"),
    [("nonsense", "invalid"), ("", "empty"), (",".join([str(uuid.uuid4())] * 201), "max_length")],
)
def test_a_choice_that_is_none_is_refused(ids, code, api, batch):
    assert code in {told for told, _ in invalid(api.get(EXPORT, {"ids": ids})).values()}


def test_a_choice_with_somebody_elses_image_is_not_there(api, batch):
    own = Image.objects.filter(batch=batch).first()
    for other in (make_image().pk, uuid.uuid4()):
        problem(api.get(EXPORT, {"ids": f"{own.pk},{other}"}), 404, "not_found")


# --- From S3 --------------------------------------------------------------------------------------


def test_files_in_s3_are_sent_as_they_come_by_one_request_each(s3, api, batch):
    s3.set()
    entries = manifest_of(zip_of(api.get(of(batch))))
    assert [entry["problem"] for entry in entries] == [None] * 3
    assert [method for method, _, _ in s3.seen()] == ["GET"] * 3


def test_a_large_file_in_s3_is_not_held_in_memory(s3, api, batch):
    size_bytes = 24 * 1024 * 1024
    image = Image.objects.filter(batch=batch).order_by("generation__index").last()
    default_storage.save(image.file.name, ContentFile(b"p" * size_bytes))
    Image.objects.filter(pk=image.pk).update(size_bytes=size_bytes)
    pieces = iter(api.get(of(batch)).streaming_content)
    next(pieces)
    tracemalloc.start()
    try:
        sent_bytes = sum(map(len, pieces))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent_bytes > size_bytes
    assert peak_bytes < size_bytes / 6


def test_a_file_that_s3_has_lost_or_only_half_of_is_left_out(s3, api, batch):
    lost, half, _ = Image.objects.filter(batch=batch).order_by("generation__index")
    default_storage.delete(lost.file.name)
    default_storage.save(half.file.name, ContentFile(b"half of it"))
    archive = zip_of(api.get(of(batch)))
    assert [entry["problem"] for entry in manifest_of(archive)] == ["missing", "damaged", None]
    assert len(archive.namelist()) == 2


def test_an_s3_in_trouble_is_told_before_anything_is_sent(s3, api, batch):
    s3.set(fail=True)
    problem(api.get(of(batch)), 503, "storage_unavailable")


def test_an_s3_that_fails_midway_ends_the_stream_before_it_is_a_zip(s3, api, batch):
    pieces = iter(api.get(of(batch)).streaming_content)
    sent = io.BytesIO(next(pieces))
    s3.set(fail=True)
    with pytest.raises(StorageBroken):
        sent.writelines(pieces)
    assert not zipfile.is_zipfile(sent)
