"""ZIPs of a running stack: whole, and cut where a file cannot be read."""

import hashlib
import io
import json
import zipfile

import pytest
import requests

from tests.acceptance.conftest import Client

TEXTS = ("a lighthouse at dawn", "a lighthouse at noon", "a lighthouse at night")


@pytest.fixture
def owner(stack):
    return Client(stack)


@pytest.fixture
def stored(owner):
    asked = owner.submit(TEXTS, name="Lighthouses", settings={"output_format": "png"})
    batch = owner.finished(asked)
    assert batch["status"] == "completed"
    return batch


def test_the_zip_of_a_batch_holds_what_was_made(owner, stored):
    answer = owner.call("GET", f"batches/{stored['id']}/export/")
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="Lighthouses.zip"'
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    entries = json.loads(archive.read("manifest.json"))["images"]
    assert [entry["prompt"] for entry in entries] == [item["prompt"] for item in stored["items"]]
    for entry, item in zip(entries, stored["items"], strict=True):
        assert entry["sha256"] == item["image"]["sha256"]
        assert hashlib.sha256(archive.read(entry["file"])).hexdigest() == entry["sha256"]
    chosen = ",".join(item["image"]["id"] for item in stored["items"][:2])
    answer = owner.call("GET", "images/export/", params={"ids": chosen, "names": "{number}"})
    names = zipfile.ZipFile(io.BytesIO(answer.content)).namelist()
    assert names == ["1.png", "2.png", "manifest.json"]


def test_a_file_that_cannot_be_read_cuts_the_connection(owner, stored):
    item = stored["items"][1]
    folder = owner.stack.data_dir / "media"
    (path,) = folder.glob(f"*/{stored['id']}/{item['id']}/0.png")
    # No permission keeps root from reading a file, but nobody reads a folder.
    path.unlink()
    path.mkdir()
    url = f"{owner.stack.url}/api/v1/batches/{stored['id']}/export/"
    sent = io.BytesIO()
    try:
        with owner.http.get(url, stream=True, timeout=30) as answer:
            assert answer.status_code == 200
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                sent.writelines(answer.iter_content(None))
    finally:
        path.rmdir()
    assert sent.tell() > stored["items"][0]["image"]["size_bytes"]
    assert not zipfile.is_zipfile(sent)
    # What is missing altogether is left out.
    archive = zipfile.ZipFile(
        io.BytesIO(owner.call("GET", f"batches/{stored['id']}/export/").content)
    )
    entries = json.loads(archive.read("manifest.json"))["images"]
    assert [entry["problem"] for entry in entries] == [None, "missing", None]
    owner.call("DELETE", f"batches/{stored['id']}/", 204)
