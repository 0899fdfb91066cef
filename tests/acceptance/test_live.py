"""Live events and answers that wait, on real processes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import websocket

from tests.acceptance.conftest import wait_until


@pytest.fixture
def follow(stack):
    """Opens WebSockets; they are closed when the test is over."""
    opened = []

    def connect(client, path, **options):
        token = client.http.headers["Authorization"].partition(" ")[2]
        url = f"{stack.url.replace('http', 'ws', 1)}{path}"
        follower = websocket.create_connection(
            url, subprotocols=["bearer", token], timeout=60, **options
        )
        opened.append(follower)
        return follower

    yield connect
    for one in opened:
        one.close()
        one.shutdown()  # which it leaves to others when the server has closed first


def told(follower):
    return json.loads(follower.recv())


def closed_with(follower):
    opcode, data = follower.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    return int.from_bytes(data[:2], "big")


def final(follower):
    """Messages up to the one that tells how the batch has ended."""
    messages = []
    while not messages or not (
        messages[-1]["type"] == "batch_progress"
        and messages[-1]["status"] in ("completed", "partial", "failed", "cancelled")
    ):
        messages.append(told(follower))
    return messages


def test_a_batch_is_followed_to_its_end_and_again_after_a_break(stack, client, simulator, follow):
    everything = follow(client, "/ws/me/")
    assert told(everything)["type"] == "snapshot"
    batch = client.submit(["first", "second", "third"])
    follower = follow(client, f"/ws/batches/{batch['id']}/")
    assert follower.getsubprotocol() == "bearer"
    snapshot = told(follower)
    assert [one["id"] for one in snapshot["items"]] == [one["id"] for one in batch["items"]]
    messages = final(follower)
    done = client.finished(batch)
    ends = [one for one in messages if one["type"] == "batch_job_complete"]
    images = {one["id"]: one["image"]["id"] for one in done["items"]}
    seen = {one["id"]: one["image_id"] for one in snapshot["items"] if one["image_id"]}
    seen |= {one["generation_id"]: one["image_id"] for one in ends}
    assert seen == images
    assert messages[-1]["version"] == done["version"]
    missed = follow(client, f"/ws/batches/{batch['id']}/?version=1")
    again = final(missed)
    assert [one["image_id"] for one in again if one["type"] == "batch_job_complete"]
    assert len(again) == 4
    of_all = [one for one in final(everything) if one["type"] == "batch_job_complete"]
    assert [one["version"] for one in of_all] == [one["version"] for one in again[:-1]]


def test_others_and_strangers_are_told_nothing(stack, new_client, simulator, follow):
    client, other = new_client(), new_client()
    batch = client.submit(["mine"])
    path = f"/ws/batches/{batch['id']}/"
    assert closed_with(follow(other, path)) == 4404
    url = f"{stack.url.replace('http', 'ws', 1)}{path}"
    stranger = websocket.create_connection(url, timeout=30)
    assert closed_with(stranger) == 4401
    stranger.shutdown()
    with pytest.raises(websocket.WebSocketBadStatusException):
        websocket.create_connection(f"{stack.url.replace('http', 'ws', 1)}/ws/", timeout=30)
    client.finished(batch)


def test_a_message_that_is_too_large_ends_the_connection(client, follow):
    follower = follow(client, "/ws/me/")
    told(follower)
    follower.send("x" * 2_000)
    assert closed_with(follower) == 1009


def test_events_go_on_while_the_broker_is_away_and_after(stack, client, simulator, follow):
    # Nothing of it runs, so its end does not wait for workers.
    batch = client.submit(["one", "two"], start_at="2099-01-01T00:00:00Z")
    follower = follow(client, f"/ws/batches/{batch['id']}/")
    told(follower)
    stack.kill("redis")
    try:
        client.call("POST", f"batches/{batch['id']}/cancel/")
        assert final(follower)[-1]["status"] == "cancelled"
    finally:
        stack.restart("redis")
    other = client.submit(["three"])
    follower = follow(client, f"/ws/batches/{other['id']}/?version=0")
    assert final(follower)[-1]["status"] == "completed"


def test_more_wait_than_there_are_threads_and_others_are_answered(client, simulator):
    simulator.settings(run_seconds=0.5)
    client.http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=25))
    headers = {"Prefer": "wait=50"}

    def submit(number):
        body = {"prompts": [{"text": f"[{client.username}] waited for {number}"}]}
        return client.call("POST", "batches/", json=body, headers=headers)

    with ThreadPoolExecutor(24) as pool:
        waiting = [pool.submit(submit, number) for number in range(24)]
        wait_until(
            lambda: len(client.call("GET", "batches/?page_size=100").json()["results"]) == 24
        )
        began = time.monotonic()
        for _ in range(5):
            client.call("GET", "models/")
        assert time.monotonic() - began < 5
        answers = [one.result() for one in waiting]
    for answer in answers:
        assert answer.headers["Preference-Applied"] == "wait=50"
        assert answer.json()["status"] == "completed"
        assert answer.json()["items"][0]["image"]["url"]


def test_a_wait_that_is_too_short_is_answered_with_what_was_accepted(client, simulator):
    simulator.settings(run_seconds=3.0)
    answer = client.call(
        "POST",
        "generations/",
        202,
        json={"prompt": f"[{client.username}] slow"},
        headers={"Prefer": "wait=1"},
    )
    assert 0.9 < answer.elapsed.total_seconds() < 3
    location = answer.headers["Location"]
    wait_until(lambda: client.call("GET", location).json()["status"] == "completed")
