"""Reference images where files are kept in S3."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from batches.models import Discarded, Reference
from tests.batches.api.support import DEV, GENERATIONS, invalid, problem
from tests.factories import make_generation, make_image, picture

pytestmark = pytest.mark.django_db

REFERENCES = "/api/v1/references/"


def upload(api):
    file = SimpleUploadedFile("a.png", picture())
    return api.post(REFERENCES, {"file": file}, format="multipart")


def test_an_upload_is_kept_there_and_goes_from_there(s3, api, django_capture_on_commit_callbacks):
    answer = upload(api)
    assert answer.status_code == 201, answer.content
    assert len(s3.stored()) == 2
    signed = APIClient().get(answer.json()["url"])
    assert signed.status_code == 302
    assert s3.get(signed["Location"]).content == picture()
    with django_capture_on_commit_callbacks(execute=True):
        assert api.delete(answer["Location"]).status_code == 204
    assert not s3.stored()


def test_an_earlier_image_is_copied_within_it(s3, api, owner):
    image = make_image(make_generation(owner))
    body = {"prompt": "a", "model_id": DEV, "references": [{"image_id": str(image.pk)}]}
    assert api.post(GENERATIONS, body).status_code == 202
    reference = Reference.objects.get()
    with reference.file.open() as copied:
        assert copied.read() == picture()
    assert len(s3.stored()) == 4
    assert not Discarded.objects.exists()


def test_an_image_whose_file_is_lost_is_refused(s3, api, owner, django_capture_on_commit_callbacks):
    image = make_image(make_generation(owner))
    image.thumbnail.delete(save=False)
    with django_capture_on_commit_callbacks(execute=True):
        told = invalid(api.post(REFERENCES, {"image_id": str(image.pk)}))
    assert told["image_id"][0] == "unknown_image"
    assert len(s3.stored()) == 1


def test_a_bucket_that_refuses_is_told(s3, api, settings):
    options = {**s3.options, "bucket_name": "nowhere"}
    default = {"BACKEND": "tests.s3.storage", "OPTIONS": options}
    settings.STORAGES = {**settings.STORAGES, "default": default}
    problem(upload(api), 503, "storage_unavailable")
    assert not Reference.objects.exists()
