"""The same batch at every provider, and the ways between them."""

import io

import pytest
import requests
from PIL import Image

from tests.waiting import wait_until

SDXL = {"replicate": "stability-ai/sdxl", "runpod": "runpod/sdxl", "comfyui": "comfyui/sdxl"}
SIZE = {"width": 256, "height": 192}


def png(size=(64, 48), colour="teal"):
    stored = io.BytesIO()
    Image.new("RGB", size, colour).save(stored, "PNG")
    return stored.getvalue()


@pytest.mark.parametrize("provider", SDXL)
def test_the_same_batch_is_made_by_any_provider(client, simulator, provider):
    batch = client.submit(
        ["a red kite", "a blue kite", "a green kite"],
        settings={"model": SDXL[provider], **SIZE, "steps": 12},
    )
    batch = client.finished(batch)
    assert (batch["status"], batch["completed_count"]) == ("completed", 3)
    for item in batch["items"]:
        image = item["image"]
        assert (image["width"], image["height"], image["format"]) == (256, 192, "png")
        generation = client.call("GET", f"generations/{item['id']}/").json()
        assert generation["provider"] == provider
        assert generation["provider_id"]
    # One charge for each, in the simulator's books.
    assert len(simulator.charges(client.username)) == 3


@pytest.mark.parametrize("provider", SDXL)
def test_a_picture_is_made_from_another_by_any_provider(client, simulator, provider):
    uploaded = client.call(
        "POST", "references/", 201, files={"file": ("a.png", png(), "image/png")}
    ).json()
    batch = client.finished(
        client.submit(
            ["a kite"],
            settings={
                "model": SDXL[provider],
                "references": [{"id": uploaded["id"]}],
                "strength": 0.6,
            },
        )
    )
    (item,) = batch["items"]
    assert (item["status"], item["kind"]) == ("completed", "derive")
    # And from what was made.
    again = client.finished(
        client.submit(
            ["a kite again"],
            settings={
                "model": SDXL[provider],
                "references": [{"image_id": item["image"]["id"]}],
            },
        )
    )
    assert again["status"] == "completed"


@pytest.mark.parametrize("provider", SDXL)
def test_several_images_of_one_submission_are_all_stored(client, simulator, provider):
    batch = client.finished(
        client.submit(["kites"], settings={"model": SDXL[provider], **SIZE, "num_outputs": 3})
    )
    (item,) = batch["items"]
    assert len({image["sha256"] for image in item["images"]}) == 3
    assert item["image"] == item["images"][0]
    assert len(simulator.charges(client.username)) == 1


@pytest.mark.parametrize("provider", SDXL)
def test_a_cancelled_batch_is_stopped_at_its_provider(client, simulator, provider):
    simulator.settings(run_seconds=30)
    batch = client.submit(["a", "b"], settings={"model": SDXL[provider], **SIZE})
    wait_until(
        lambda: client.call("GET", f"batches/{batch['id']}/").json()["status"] == "processing"
    )
    client.call("POST", f"batches/{batch['id']}/cancel/")
    batch = client.finished(batch, timeout_s=30)
    assert (batch["status"], batch["cancelled_count"]) == ("cancelled", 2)


def test_a_vector_image_is_stored_sanitised_with_raster_renditions(client, simulator):
    batch = client.finished(
        client.submit(["a logo"], settings={"model": "recraft-ai/recraft-v3-svg"})
    )
    image = batch["items"][0]["image"]
    assert image["format"] == "svg"
    answer = requests.get(image["url"], timeout=10)
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["content-disposition"].startswith("attachment")
    for name, side in (("thumbnail_url", 256), ("preview_url", 1024)):
        with Image.open(io.BytesIO(requests.get(image[name], timeout=10).content)) as rendition:
            assert (rendition.format, max(rendition.size)) == ("WEBP", side)


def test_another_provider_stands_in_while_one_takes_nothing(client, simulator):
    simulator.fault("create_status", status=503, model=SDXL["replicate"], times=20)
    batch = client.finished(
        client.submit(["a kite"], settings={"model": SDXL["replicate"], **SIZE})
    )
    assert batch["status"] == "completed"
    generation = client.call("GET", f"generations/{batch['items'][0]['id']}/").json()
    assert (generation["provider"], generation["model"]) == ("runpod", SDXL["runpod"])
    assert generation["settings"]["model"] == SDXL["replicate"]  # as it was asked
    assert len(simulator.charges(client.username)) == 1
