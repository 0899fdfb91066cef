"""A stack that keeps its files in S3: its owner gets at them, for five minutes at a time."""

import hashlib
import io
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.core import signing
from PIL import Image

from picture.stack import Stack
from tests.acceptance.conftest import UNSET, Client, Simulator
from tests.s3 import BUCKET, running
from tests.waiting import wait_until

PARTS = {"file": "url", "preview": "preview_url", "thumbnail": "thumbnail_url"}
SIZE_PX = {"file": 1024, "preview": 1024, "thumbnail": 256}
FORMATS = ("webp", "png", "jpg")


@pytest.fixture(scope="module")
def s3():
    with running() as bucket:
        yield bucket


@pytest.fixture(scope="module")
def stack(s3):
    env = dict.fromkeys(UNSET, "") | s3.env
    with (
        tempfile.TemporaryDirectory(prefix="picture-stack-") as folder,
        Stack(Path(folder), env=env, simulator_options=("--seed", "1"), durable=False) as started,
    ):
        Simulator(started.simulator_url).settings(run_seconds=0.3, queue_seconds=0.0)
        yield started


@pytest.fixture(scope="module")
def owner(stack):
    return Client(stack)


@pytest.fixture(scope="module")
def stored(owner):
    """A batch that has ended, of one image in each format."""
    prompts = [
        {"text": f"a lighthouse {image_format}", "settings": {"output_format": image_format}}
        for image_format in FORMATS
    ]
    asked = owner.call("POST", "batches/", 202, json={"prompts": prompts}).json()
    batch = owner.finished(asked)
    assert (batch["status"], batch["completed_count"]) == ("completed", len(FORMATS))
    return batch


@pytest.fixture(autouse=True)
def usual_time(s3):
    yield
    s3.set()


def shown(owner, batch):
    """The images of a batch with addresses that are fresh."""
    return [item["image"] for item in owner.call("GET", f"batches/{batch['id']}/").json()["items"]]


def sent_to(url):
    """Where an address leads whoever asks with nothing but it."""
    answer = requests.get(url, timeout=10, allow_redirects=False)
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"]


def keys_of(s3, batch):
    return [key for key in s3.stored() if key.split("/")[1] == batch["id"]]


def test_a_batch_is_kept_under_owner_batch_generation_and_index(s3, owner, stored):
    keys = keys_of(s3, stored)
    (owner_id,) = {key.split("/")[0] for key in keys}
    assert owner_id.isdecimal()
    assert keys == sorted(
        f"{owner_id}/{stored['id']}/{item['id']}/{name}"
        for item, extension in zip(stored["items"], FORMATS, strict=True)
        for name in (f"0.{extension}", "0.preview.webp", "0.thumbnail.webp")
    )
    assert not list((owner.stack.data_dir / "media").glob("*"))


def test_every_part_is_fetched_whole_by_its_address_alone(owner, stored):
    for image in shown(owner, stored):
        for part, name in PARTS.items():
            # As a browser does: to us, and on to S3.
            body = requests.get(image[name], timeout=10).content
            with Image.open(io.BytesIO(body)) as picture:
                picture.load()
                assert max(picture.size) == SIZE_PX[part]
            if part == "file":
                assert hashlib.sha256(body).hexdigest() == image["sha256"]
                assert len(body) == image["size_bytes"]


def test_a_file_is_opened_after_authorisation_only(s3, stack, owner, stored):
    stranger = Client(stack)
    for image in shown(owner, stored):
        for part, name in PARTS.items():
            path = f"images/{image['id']}/{part}/"
            bare = requests.get(f"{stack.url}/api/v1/{path}", timeout=10, allow_redirects=False)
            assert bare.status_code == 401
            stranger.call("GET", path, 404)
            owner.call("GET", path, 302, allow_redirects=False)
            made_up = requests.get(image[name][:-1] + "~", timeout=10, allow_redirects=False)
            assert made_up.status_code == 404
    for key in s3.stored():
        assert s3.get(f"{s3.url}/{BUCKET}/{key}").status_code == 403


def test_an_address_in_s3_works_for_five_minutes(s3, owner, stored):
    for image in shown(owner, stored):
        for name in PARTS.values():
            url = sent_to(image[name])
            assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["300"]
            assert s3.get(url).status_code == 200
            s3.set(ahead_s=240)
            assert s3.get(url).status_code == 200
            s3.set(ahead_s=302)
            assert s3.get(url).status_code == 403
            s3.set()


def test_an_address_that_was_given_five_minutes_ago_leads_nowhere(
    stack, owner, stored, monkeypatch
):
    class Clock:
        behind_s = 0
        real = signing.time

        def time(self):
            return self.real.time() - self.behind_s

    clock = Clock()
    monkeypatch.setattr(signing, "time", clock)
    signer = signing.TimestampSigner(key=stack.env["SECRET_KEY"], salt="picture.image-file")
    for image in shown(owner, stored):
        plain = urlsplit(image["url"])._replace(query="").geturl()
        for clock.behind_s, status in ((0, 302), (240, 302), (302, 404)):
            signature = signer.sign(f"images/{image['id']}/file").split(":", 1)[1]
            answer = requests.get(
                plain, {"signature": signature}, timeout=10, allow_redirects=False
            )
            assert answer.status_code == status


def test_a_storage_that_fails_for_a_while_delays_an_image_and_costs_nothing(s3, stack, owner):
    s3.set(fail=True)
    asked = owner.submit(["a lighthouse in a gale"])
    wait_until(lambda: any(method == "PUT" for method, _, _ in s3.seen()))
    s3.set()
    batch = owner.finished(asked)
    assert batch["status"] == "completed"
    assert len(keys_of(s3, batch)) == len(PARTS)
    charges = Simulator(stack.simulator_url).charges(f"[{owner.username}] a lighthouse in a gale")
    assert len(charges) == 1


def test_a_deleted_batch_leaves_no_object_and_nothing_is_out_of_order(s3, stack, owner, stored):
    batch = owner.finished(owner.submit(["a lighthouse that goes"]))
    assert len(keys_of(s3, batch)) == len(PARTS)
    (image,) = shown(owner, batch)
    url = sent_to(image["url"])
    owner.call("DELETE", f"batches/{batch['id']}/", 204)
    wait_until(lambda: not keys_of(s3, batch))
    assert s3.get(url).status_code == 404
    answer = stack.manage("check_invariants")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_stack_is_ready_with_s3(stack):
    answer = requests.get(f"{stack.url}/health/ready", timeout=30).json()
    assert answer["checks"]["storage"] == "ok"
