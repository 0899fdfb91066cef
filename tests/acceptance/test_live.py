"""Live events and answers that wait, on real processes."""

import contextlib
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import websocket

from picture.asgi import WEB_THREADS
from tests.waiting import wait_until


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


@contextlib.contextmanager
def standstill(stack):
    """Nothing is made of what is accepted in the block; afterwards it goes on."""
    stack.kill("worker-generate", signal.SIGSTOP)
    try:
        yield
    finally:
        stack.kill("worker-generate", signal.SIGCONT)


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


def ends_in(messages):
    """Version, generation and image of each that tells that a generation has ended."""
    return [
        (one["version"], one["generation_id"], one["image_id"])
        for one in messages
        if one["type"] == "batch_job_complete"
    ]


def test_a_batch_is_followed_to_its_end_and_again_after_a_break(stack, client, simulator, follow):
    everything = follow(client, "/ws/me/")
    assert told(everything)["type"] == "snapshot"
    with standstill(stack):
        batch = client.submit(["first", "second", "third"])
        follower = follow(client, f"/ws/batches/{batch['id']}/")
        assert follower.getsubprotocol() == "bearer"
        snapshot = told(follower)
        assert [one["id"] for one in snapshot["items"]] == [one["id"] for one in batch["items"]]
        assert [one["image_id"] for one in snapshot["items"]] == [None] * 3
    messages = final(follower)
    done = client.finished(batch)
    images = {one["id"]: one["image"]["id"] for one in done["items"]}
    ends = ends_in(messages)
    assert len(ends) == 3
    assert {generation: image for _, generation, image in ends} == images
    assert messages[-1]["version"] == done["version"]
    again = final(follow(client, f"/ws/batches/{batch['id']}/?version=1"))
    assert len(again) == 4
    assert ends_in(again) == ends
    assert ends_in(final(everything)) == ends


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


def test_more_wait_than_there_are_threads_and_others_are_answered(stack, client, simulator):
    count = 3 * WEB_THREADS
    client.http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=count + 1))
    headers = {"Prefer": "wait=50"}

    def submit(number):
        body = {"prompts": [{"text": f"[{client.username}] waited for {number}"}]}
        return client.call("POST", "batches/", json=body, headers=headers, timeout_s=90)

    with ThreadPoolExecutor(count) as pool:
        with standstill(stack):
            waiting = [pool.submit(submit, number) for number in range(count)]
            wait_until(
                lambda: len(client.call("GET", "batches/?page_size=100").json()["results"]) == count
            )
            for _ in range(5):
                client.call("GET", "models/")
            assert sum(not one.done() for one in waiting) == count
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
    assert answer.elapsed.total_seconds() > 0.9
    location = answer.headers["Location"]
    wait_until(lambda: client.call("GET", location).json()["status"] == "completed")
