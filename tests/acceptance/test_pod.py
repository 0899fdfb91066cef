"""The way of a print-on-demand client: variations, approval, a stored print."""

import io

import PIL.Image
import requests

from tests.waiting import wait_until

LIGHTNING = "bytedance/sdxl-lightning-4step"


def call(client, method, path, status=200, **options):
    return client.call(method, f"{client.stack.url}/{path}", status, **options)


def test_variations_become_prints_of_exactly_the_size(client, simulator):
    body = {
        "prompt": f"[{client.username}] a fox, flat vector art",
        "batch_size": 3,
        "style": "retro",
        "width": 900,
        "height": 1080,
        "seed": 7,
        "model_id": LIGHTNING,
        "resize": "upscale",
    }
    outline = call(client, "POST", "api/generate?dry_run=true", json=body).json()
    assert (outline["total_count"], outline["items"][0]["seed"]) == (3, 7)
    assert simulator.charges(client.username) == []

    answer = call(client, "POST", "api/generate", 202, json=body)
    started = answer.json()
    assert started["status"] == "processing"
    assert started["mapped"]["steps"] == {"asked": 30, "used": 10}

    def look():
        told = requests.get(answer.headers["Location"], headers=client.http.headers, timeout=10)
        now = told.json()
        return now if now["status"] != "processing" else None

    done = wait_until(look)
    assert (done["status"], done["success_count"]) == ("completed", 3)
    seeds = [image["seed"] for image in done["images"]]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    for image in done["images"]:
        assert (image["width"], image["height"], image["status"]) == (900, 1080, "pending")
        stored = requests.get(image["url"], timeout=10).content
        assert PIL.Image.open(io.BytesIO(stored)).size == (900, 1080)
    charges = simulator.charges(client.username)
    assert len(charges) == 3

    image = done["images"][0]
    refused = {"channel": "printify", "product_type": "mug", "title": "Fox"}
    answer = call(client, "POST", f"api/publish/{image['id']}", 422, json=refused).json()
    assert "not_approved" in {error["code"] for error in answer["errors"]}
    approved = call(client, "POST", f"api/approve/{image['id']}").json()
    assert (approved["status"], approved["image_id"]) == ("approved", image["id"])
    listed = call(client, "GET", "api/images?status=approved").json()["results"]
    assert [one["id"] for one in listed] == [image["id"]]


def test_an_answer_that_is_waited_for_has_the_images(client, simulator):
    body = {"prompt": f"[{client.username}] an owl", "batch_size": 2, "wait": True}
    done = call(client, "POST", "api/generate", json=body).json()
    assert (done["status"], done["batch_size"], len(done["images"])) == ("completed", 2, 2)
    assert done["mapped"]["width"]["asked"] == 4500


def test_a_single_image_is_started_and_followed(client, simulator):
    body = {
        "prompt": f"[{client.username}] a hare",
        "model_id": LIGHTNING,
        "width": 512,
        "height": 512,
    }
    started = call(client, "POST", "functions/v1/start-generation", 202, json=body).json()
    path = f"functions/v1/generations/{started['generation_id']}"
    done = wait_until(lambda: (now := call(client, "GET", path).json())["image"] and now)
    assert (done["status"], done["image"]["width"]) == ("completed", 512)


def test_a_single_image_that_is_waited_for_is_told_in_the_same_words(client, simulator):
    body = {"prompt": f"[{client.username}] a marten"}
    headers = {"Prefer": "wait=50"}
    path = "functions/v1/start-generation"
    done = call(client, "POST", path, json=body, headers=headers).json()
    assert set(done) == {"generation_id", "status", "image", "error"}
    assert (done["status"], done["error"]) == ("completed", None)
