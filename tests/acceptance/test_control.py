"""Pause, resume, cancel, retry and delete, on real processes and a provider that counts."""

import pytest
import requests

from tests.waiting import wait_until


def status_of(client, batch):
    return client.call("GET", f"batches/{batch['id']}/").json()


def act(client, batch, action, status=200, **body):
    return client.call("POST", f"batches/{batch['id']}/{action}/", status, json=body).json()


def started(simulator, client, count):
    owners = simulator.stats()["owners"]
    return owners.get(client.username, {}).get("charges", 0) >= count


@pytest.fixture
def slow(simulator):
    simulator.settings(run_seconds=1.0)
    return simulator


def test_a_paused_batch_finishes_what_runs_and_starts_nothing_more(client, slow):
    batch = client.submit([f"picture {n}" for n in range(8)])
    wait_until(lambda: started(slow, client, 3))
    assert act(client, batch, "pause")["status"] == "paused"
    done = wait_until(lambda: (now := status_of(client, batch))["completed_count"] >= 3 and now)
    charges = len(slow.charges(client.username))
    assert {item["status"] for item in done["items"]} == {"completed", "pending"}
    assert charges == done["completed_count"]
    assert act(client, batch, "pause", 409)["code"] == "invalid_transition"
    act(client, batch, "resume")
    assert client.finished(batch)["status"] == "completed"
    assert len(slow.charges(client.username)) == 8


def test_cancelling_stops_the_provider_and_frees_the_slots(client, simulator):
    simulator.settings(run_seconds=30.0, cancel_seconds=0.3)
    batch = client.submit([f"picture {n}" for n in range(6)])
    wait_until(lambda: started(simulator, client, 3))
    answer = act(client, batch, "cancel")
    assert answer["cancelled_count"] == 3
    done = client.finished(batch)
    assert (done["status"], done["cancelled_count"]) == ("cancelled", 6)
    assert {charge["status"] for charge in simulator.charges(client.username)} == {"canceled"}
    assert simulator.stats()["owners"][client.username]["in_flight"] == 0
    simulator.settings(run_seconds=0.3)
    again = client.finished(client.submit(["another"]))
    assert again["status"] == "completed"
    problem = act(client, batch, "cancel", 409)
    assert (problem["code"], problem["current_status"]) == ("invalid_transition", "cancelled")


def test_failed_items_are_tried_again_with_other_settings(client, simulator):
    simulator.fault("fail", prompt="bad", times=2)
    batch = client.finished(client.submit(["good", "bad one", "bad two"]))
    assert (batch["status"], batch["failed_count"]) == ("partial", 2)
    answer = act(client, batch, "retry", settings={"output_format": "png"})
    assert (answer["status"], answer["failed_count"]) == ("processing", 0)
    done = client.finished(batch)
    assert (done["status"], done["completed_count"]) == ("completed", 3)
    formats = {item["prompt"].split()[-1]: item["image"]["format"] for item in done["items"]}
    assert formats == {"good": "webp", "one": "png", "two": "png"}
    assert len(simulator.charges(client.username)) == 5


def test_a_deleted_batch_is_gone_with_its_images(client, slow):
    batch = client.finished(client.submit(["gone"]))
    image = batch["items"][0]["image"]
    client.call("DELETE", f"batches/{batch['id']}/", 204)
    client.call("GET", f"batches/{batch['id']}/", 404)
    client.call("GET", f"images/{image['id']}/", 404)
    assert requests.get(image["url"], timeout=10).status_code == 404


def test_what_runs_of_a_deleted_batch_is_stopped(client, simulator):
    simulator.settings(run_seconds=30.0)
    batch = client.submit([f"picture {n}" for n in range(4)])
    wait_until(lambda: started(simulator, client, 3))
    client.call("DELETE", f"batches/{batch['id']}/", 204)
    client.call("GET", f"batches/{batch['id']}/", 404)
    wait_until(lambda: simulator.stats()["owners"][client.username]["in_flight"] == 0)
    assert len(simulator.charges(client.username)) == 3


def test_a_single_generation_is_cancelled_and_tried_again(client, simulator):
    simulator.settings(run_seconds=30.0)
    body = {"prompt": f"[{client.username}] one"}
    generation = client.call("POST", "generations/", 202, json=body).json()
    path = f"generations/{generation['id']}/"
    wait_until(lambda: started(simulator, client, 1))
    client.call("POST", f"{path}cancel/")
    wait_until(lambda: client.call("GET", path).json()["status"] == "cancelled")
    simulator.settings(run_seconds=0.3)
    client.call("POST", f"{path}retry/")
    wait_until(lambda: client.call("GET", path).json()["status"] == "completed")
    assert client.call("GET", path).json()["attempts"] == 2


def test_a_request_that_is_sent_twice_makes_one_batch(client, simulator):
    body = {"prompts": [{"text": f"[{client.username}] once"}]}
    headers = {"Idempotency-Key": "once"}
    first = client.call("POST", "batches/", 202, json=body, headers=headers)
    second = client.call("POST", "batches/", 202, json=body, headers=headers)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
    client.finished(first.json())
    assert len(simulator.charges(client.username)) == 1


def test_the_result_comes_by_webhook_and_not_by_looking(client, simulator):
    simulator.settings(run_seconds=1.0)
    batch = client.finished(client.submit(["told"]))
    assert batch["status"] == "completed"
    (charge,) = simulator.charges(client.username)
    deliveries = simulator.deliveries()
    told = [one for one in deliveries if one["prediction_id"] == charge["prediction_id"]]
    assert [(one["event"], one["status"]) for one in told] == [("completed", 200)]
