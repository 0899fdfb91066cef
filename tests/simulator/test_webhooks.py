"""Webhooks: events, signature, retries, and what can be made to go wrong with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from itertools import pairwise
from typing import Any

from simulator.webhooks import secret_key, sign
from tests.simulator.support import Received, Receiver, Simulator, eventually, running_simulator

VECTOR_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
VECTOR_SIGNATURE = "v1,yVLdtJq3jIz36ov6oPRhF5qA+oPqErm0U8sBoVx3ZPk="


def is_signed(webhook: Received, secret: str) -> bool:
    """Check a signature, written out on its own from the description of the format."""
    headers = webhook.headers
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + webhook.body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{expected}"


def secret_of(sim: Simulator) -> str:
    """Return the signing secret the API tells."""
    return str(sim.request("GET", "/v1/webhooks/default/secret").json()["key"])


def bodies(received: list[Received]) -> list[dict[str, Any]]:
    """Return the decoded bodies."""
    return [json.loads(webhook.body) for webhook in received]


def deliveries(sim: Simulator) -> list[dict[str, Any]]:
    """Return the attempts the simulator recorded."""
    return list(sim.request("GET", "/_sim/webhooks").json()["deliveries"])


def attempts_made(sim: Simulator, count: int) -> list[dict[str, Any]]:
    """Wait for `count` attempts to be over, and return all."""
    eventually(lambda: len(deliveries(sim)) >= count, f"{count} attempts")
    return deliveries(sim)


def test_the_signature_matches_the_published_vector() -> None:
    body = b'{"id":"p1","status":"succeeded"}'
    assert sign(secret_key(VECTOR_SECRET), "msg_test_1", 1700000000, body) == VECTOR_SIGNATURE


def test_webhooks_are_signed_with_the_secret_the_api_tells(
    sim: Simulator, receiver: Receiver
) -> None:
    sim.created(webhook=receiver.url)
    for webhook in receiver.wait_for(2):
        assert is_signed(webhook, secret_of(sim))
        assert abs(int(webhook.headers["webhook-timestamp"]) - time.time()) < 60
        assert webhook.headers["content-type"] == "application/json"


def test_without_a_filter_output_and_completed_are_sent(sim: Simulator, receiver: Receiver) -> None:
    prediction = sim.created(webhook=receiver.url)
    output, completed = bodies(receiver.wait_for(2))
    assert output["id"] == completed["id"] == prediction["id"]
    assert (output["status"], len(output["output"])) == ("processing", 1)
    assert completed["status"] == "succeeded"
    assert [d["event"] for d in attempts_made(sim, 2)] == ["output", "completed"]


def test_the_last_webhook_holds_the_prediction_as_it_can_be_read(
    sim: Simulator, receiver: Receiver
) -> None:
    prediction = sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    (body,) = bodies(receiver.wait_for(1))
    assert body == sim.get(prediction["id"])


def test_the_filter_chooses_the_events(sim: Simulator, receiver: Receiver) -> None:
    sim.created(webhook=receiver.url, webhook_events_filter=["start", "completed"])
    statuses = [body["status"] for body in bodies(receiver.wait_for(2))]
    assert statuses == ["processing", "succeeded"]


def test_an_empty_filter_sends_nothing(sim: Simulator, receiver: Receiver) -> None:
    quiet = sim.created(webhook=receiver.url, webhook_events_filter=[])
    sim.ended(quiet["id"])
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    (body,) = bodies(receiver.wait_for(1))
    assert body["id"] != quiet["id"]


def test_logs_are_sent_at_most_every_500_ms(sim: Simulator, receiver: Receiver) -> None:
    sim.configure(run_seconds=1.2)
    sim.created(webhook=receiver.url, webhook_events_filter=["logs", "completed"])
    received = attempts_made(sim, 4)
    assert [d["event"] for d in received] == ["logs", "logs", "logs", "completed"]
    assert received[1]["at"] - received[0]["at"] > 0.45
    lengths = [len(body["logs"]) for body in bodies(receiver.wait_for(4))]
    assert lengths == sorted(lengths)


def test_the_query_of_the_webhook_url_is_kept(sim: Simulator, receiver: Receiver) -> None:
    sim.created(webhook=f"{receiver.url}?owner=alice&key=a%20b")
    assert receiver.wait_for(1)[0].path == "/hook?owner=alice&key=a%20b"


def test_failed_and_canceled_predictions_are_told(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("fail", prompt="bad")
    sim.created(input={"prompt": "bad"}, webhook=receiver.url)
    assert bodies(receiver.wait_for(1))[0]["status"] == "failed"
    sim.configure(queue_seconds=60)
    canceled = sim.created(webhook=receiver.url)
    sim.request("POST", canceled["urls"]["cancel"])
    assert bodies(receiver.wait_for(2))[1]["status"] == "canceled"


def test_an_aborted_prediction_is_not_told(sim: Simulator, receiver: Receiver) -> None:
    sim.configure(queue_seconds=60)
    aborted = sim.created({"Cancel-After": "1"}, webhook=receiver.url)
    sim.ended(aborted["id"])
    assert deliveries(sim) == []
    assert receiver.received == []


def test_the_last_webhook_is_retried_with_the_same_id(sim: Simulator, receiver: Receiver) -> None:
    receiver.statuses = [500, 404, 503]
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    received = receiver.wait_for(4)
    assert len({webhook.headers["webhook-id"] for webhook in received}) == 1
    assert all(is_signed(webhook, secret_of(sim)) for webhook in received)
    made = attempts_made(sim, 4)
    assert [d["status"] for d in made] == [500, 404, 503, 200]
    pauses = [later["at"] - earlier["at"] for earlier, later in pairwise(made)]
    assert pauses[2] > pauses[0]


def test_earlier_webhooks_are_not_retried(sim: Simulator, receiver: Receiver) -> None:
    receiver.statuses = [500]
    sim.created(webhook=receiver.url, webhook_events_filter=["start", "completed"])
    made = attempts_made(sim, 2)
    assert [(d["event"], d["status"]) for d in made] == [("start", 500), ("completed", 200)]


def test_retries_end_after_the_seventh_attempt(sim: Simulator, receiver: Receiver) -> None:
    sim.configure(webhook_retry_base_seconds=0.002)
    receiver.statuses = [500] * 50
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    attempts_made(sim, 7)
    sim.created(webhook=receiver.url, webhook_events_filter=["start"])
    made = attempts_made(sim, 8)
    assert [d["attempt"] for d in made] == [1, 2, 3, 4, 5, 6, 7, 1]


def test_a_receiver_that_is_down_is_tried_again(sim: Simulator) -> None:
    gone = Receiver()
    gone.close()
    sim.configure(webhook_retry_base_seconds=0.002)
    sim.created(webhook=gone.url, webhook_events_filter=["completed"])
    made = attempts_made(sim, 7)
    assert {d["status"] for d in made} == {None}
    assert "ConnectorError" in made[0]["error"]


def test_redirects_are_not_followed(sim: Simulator, receiver: Receiver) -> None:
    receiver.statuses = [302]
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    assert [d["status"] for d in attempts_made(sim, 1)] == [302]


def test_a_webhook_can_be_dropped(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("webhook_drop", event="output")
    sim.created(webhook=receiver.url)
    made = attempts_made(sim, 2)
    assert [(d["event"], d["error"]) for d in made] == [("output", "dropped"), ("completed", None)]
    assert len(receiver.wait_for(1)) == 1


def test_a_webhook_can_come_several_times(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("webhook_duplicate", event="completed", copies=3)
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    received = receiver.wait_for(3)
    assert len({webhook.headers["webhook-id"] for webhook in received}) == 1
    assert len({webhook.body for webhook in received}) == 1


def test_a_webhook_can_come_late(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("webhook_delay", event="output", seconds=0.3)
    sim.created(webhook=receiver.url)
    completed, output = bodies(receiver.wait_for(2))
    assert (completed["status"], output["status"]) == ("succeeded", "processing")


def test_webhooks_can_come_in_the_wrong_order(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("webhook_reorder")
    sim.created(webhook=receiver.url, webhook_events_filter=["start", "output", "completed"])
    receiver.wait_for(3)
    events = [d["event"] for d in attempts_made(sim, 3)]
    assert events == ["completed", "output", "start"]


def test_a_webhook_can_have_a_bad_signature(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("webhook_bad_signature", event="output")
    sim.created(webhook=receiver.url)
    forged, true = receiver.wait_for(2)
    assert not is_signed(forged, secret_of(sim))
    assert is_signed(true, secret_of(sim))


def test_the_secret_can_be_given_or_follows_from_the_seed(receiver: Receiver) -> None:
    with running_simulator("--webhook-secret", VECTOR_SECRET) as sim:
        assert secret_of(sim) == VECTOR_SECRET
        sim.created(webhook=receiver.url)
        assert is_signed(receiver.wait_for(1)[0], VECTOR_SECRET)
    with running_simulator("--seed", "1") as one, running_simulator("--seed", "2") as two:
        assert secret_of(one) != secret_of(two)
