"""Batches through the public API, real workers and the provider's real protocol."""

import hashlib
import io
import time

import pytest
import requests
from PIL import Image

from tests.acceptance.conftest import RETRY_DELAYS_S
from tests.waiting import wait_until


def test_a_batch_becomes_verified_files_that_its_owner_can_fetch(client, simulator):
    batch = client.finished(client.submit(["a red fox", "a blue fox", "a green fox"]))
    assert (batch["status"], batch["completed_count"], batch["progress"]) == ("completed", 3, 100)
    assert [item["index"] for item in batch["items"]] == [0, 1, 2]
    digests = set()
    for item in batch["items"]:
        image = item["image"]
        # Signed: no token is needed.
        body = requests.get(image["url"], timeout=10).content
        assert hashlib.sha256(body).hexdigest() == image["sha256"]
        assert len(body) == image["size_bytes"]
        with Image.open(io.BytesIO(body)) as picture:
            picture.load()
            assert picture.size == (image["width"], image["height"]) == (1024, 1024)
            assert picture.format.lower() == image["format"] == "webp"
        thumbnail = requests.get(image["thumbnail_url"], timeout=10)
        with Image.open(io.BytesIO(thumbnail.content)) as picture:
            assert max(picture.size) == 256
        digests.add(image["sha256"])
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("model_settings", "size", "image_format"),
    [
        ({"model": "black-forest-labs/flux-dev", "aspect_ratio": "16:9"}, (1344, 768), "webp"),
        ({"model": "black-forest-labs/flux-schnell", "output_format": "jpg"}, (1024, 1024), "jpeg"),
        (
            {"model": "stability-ai/sdxl", "width": 640, "height": 384, "steps": 20},
            (640, 384),
            "png",
        ),
        (
            {"model": "bytedance/sdxl-lightning-4step", "width": 256, "height": 512},
            (256, 512),
            "png",
        ),
    ],
)
def test_every_model_is_asked_in_its_own_words(
    client, simulator, model_settings, size, image_format
):
    batch = client.finished(client.submit(["a kite"], settings=model_settings))
    image = batch["items"][0]["image"]
    assert (image["width"], image["height"]) == size
    assert image["format"] == image_format


def test_a_single_generation_needs_no_batch(client, simulator):
    body = {"prompt": f"[{client.username}] one", "model_id": "black-forest-labs/flux-schnell"}
    generation = client.call("POST", "generations/", 202, json=body).json()

    def done():
        now = client.call("GET", f"generations/{generation['id']}/").json()
        return now if now["finished_at"] else None

    generation = wait_until(done)
    assert (generation["status"], generation["batch_id"]) == ("completed", None)
    assert generation["provider_id"] == simulator.charges(client.username)[0]["prediction_id"]


def test_sixty_images_of_three_users_stay_within_the_caps(new_client, simulator):
    simulator.settings(run_seconds=2.0)
    clients = [new_client() for _ in range(3)]
    batches = [
        (one, one.submit([f"picture {number} of {batch}" for number in range(10)]))
        for batch in range(2)
        for one in clients
    ]
    done = [one.finished(batch, timeout_s=90) for one, batch in batches]
    assert {batch["status"] for batch in done} == {"completed"}
    stats = simulator.stats()
    assert stats["max_in_flight"] <= 20
    for one in clients:
        owner = stats["owners"][one.username]
        assert owner["max_in_flight"] <= 3
        assert owner["charges"] == 20
    assert stats["charges"] == 60


def test_the_system_as_a_whole_stays_within_its_cap(new_client, simulator):
    simulator.settings(run_seconds=1.0)
    clients = [new_client() for _ in range(9)]
    batches = [(one, one.submit([f"picture {n}" for n in range(4)])) for one in clients]
    for one, batch in batches:
        assert one.finished(batch)["status"] == "completed"
    assert simulator.stats()["max_in_flight"] == 20


def test_a_mixed_batch_ends_partial_with_exact_counts_and_charges(client, simulator):
    for name in ("bad one", "bad two"):
        simulator.fault("fail", prompt=name)
    simulator.fault("nsfw", prompt="nude")
    for name in ("flaky one", "flaky two"):
        simulator.fault("interrupt", prompt=name, times=2)
    good = [f"good {number}" for number in range(5)]
    batch = client.finished(
        client.submit(["bad one", "bad two", "nude", "flaky one", "flaky two", *good])
    )
    assert batch["status"] == "partial"
    assert (batch["completed_count"], batch["failed_count"]) == (7, 3)
    codes = {text: client.item(batch, text)["error"]["code"] for text in ("bad one", "bad two")}
    assert set(codes.values()) == {"invalid_input"}
    assert client.item(batch, "nude")["error"]["code"] == "content_policy"
    assert all(client.item(batch, text)["attempts"] == 1 for text in (*good, "nude", "bad one"))
    for text in ("flaky one", "flaky two"):
        assert client.item(batch, text)["attempts"] == 3
        charges = simulator.charges(text)
        assert len(charges) == 3
        for retry, delay_s in enumerate(RETRY_DELAYS_S[:2]):
            pause_s = charges[retry + 1]["created_at"] - charges[retry]["ended_at"]
            # Never sooner; how much later at most is exact in the unit tests.
            assert pause_s >= delay_s
    assert len(simulator.charges(client.username)) == 14


def test_a_rate_limit_delays_and_burns_nothing(client, simulator):
    simulator.fault("create_status", status=429, retry_after="1", prompt="limited", times=1)
    batch = client.finished(client.submit(["limited"]))
    assert batch["status"] == "completed"
    item = batch["items"][0]
    detail = client.call("GET", f"generations/{item['id']}/").json()
    assert detail["attempts"] == 2
    timeline = [one for one in simulator.stats()["timeline"] if one["owner"] == client.username]
    assert timeline[1]["received_at"] - timeline[0]["received_at"] >= 1
    assert len(simulator.charges(client.username)) == 1


@pytest.mark.parametrize("kind", ["drop_create_before", "drop_create_after"])
def test_a_submission_whose_answer_is_lost_is_looked_up_and_charged_once(client, simulator, kind):
    simulator.fault(kind, prompt="lost", times=1)
    batch = client.finished(client.submit(["lost"]))
    assert batch["status"] == "completed"
    assert len(simulator.charges(client.username)) == 1


def test_an_output_that_breaks_off_is_fetched_again_without_paying_again(client, simulator):
    simulator.fault("drop_file", hits=1, prompt="torn")
    simulator.fault("truncated_file", hits=1, prompt="short")
    batch = client.finished(client.submit(["torn", "short"]))
    assert batch["status"] == "completed"
    assert len(simulator.charges(client.username)) == 2


def test_an_output_of_the_wrong_type_is_generated_once_more_and_then_given_up(client, simulator):
    simulator.fault("wrong_type", prompt="page")
    batch = client.finished(client.submit(["page"]))
    assert batch["status"] == "failed"
    assert batch["items"][0]["error"]["code"] == "bad_output"
    assert len(simulator.charges(client.username)) == 2


def test_work_starts_at_once_when_a_slot_is_free(client, simulator):
    client.finished(client.submit(["warm up"]))
    before = time.time()
    client.submit(["now"])
    timeline = wait_until(
        lambda: [one for one in simulator.stats()["timeline"] if one["prompt"].endswith("now")]
    )
    # A loose bound: the benchmark has the exact one.
    assert timeline[0]["received_at"] - before < 1


def test_a_body_in_chunks_is_as_good_as_one_in_a_piece(client, simulator):
    def chunks(size_bytes):
        yield b'{"prompt": "a fox", "metadata": {"note": "'
        for _ in range(size_bytes // 1_000):
            yield b"x" * 1_000
        yield b'"}}'

    headers = {"Content-Type": "application/json"}
    generation = client.call("POST", "generations/", 202, data=chunks(0), headers=headers).json()
    wait_until(lambda: client.call("GET", f"generations/{generation['id']}/").json()["image"])
    answer = client.call("POST", "generations/", 413, data=chunks(2_000_000), headers=headers)
    assert answer.json()["code"] == "body_too_large"
