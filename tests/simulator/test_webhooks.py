"""Webhooks: events, signature, retries, and what can be made to go wrong with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from itertools import pairwise
from typing import Any

import pytest

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


def sent_once(sim: Simulator, receiver: Receiver) -> tuple[Received, str]:
    """Have one webhook sent and recorded; return it and its identifier."""
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    (webhook,) = receiver.wait_for(1)
    attempts_made(sim, 1)
    return webhook, webhook.headers["webhook-id"]


def replay(sim: Simulator, **body: Any) -> dict[str, Any]:
    """Have a webhook sent again and return what came of it."""
    response = sim.request("POST", "/_sim/webhooks/replay", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_delivery_tells_its_time_and_signature(sim: Simulator, receiver: Receiver) -> None:
    webhook, _ = sent_once(sim, receiver)
    (delivery,) = deliveries(sim)
    assert str(delivery["timestamp"]) == webhook.headers["webhook-timestamp"]
    assert delivery["signature"] == webhook.headers["webhook-signature"]
    assert "body" not in delivery


def test_a_webhook_can_be_replayed_to_the_letter(sim: Simulator, receiver: Receiver) -> None:
    original, webhook_id = sent_once(sim, receiver)
    receiver.statuses = [409]
    assert replay(sim, webhook_id=webhook_id) == {"status": 409, "error": None}
    (_, again) = receiver.wait_for(2)
    assert (again.body, again.path) == (original.body, original.path)
    signed = ("webhook-id", "webhook-timestamp", "webhook-signature")
    assert [again.headers[name] for name in signed] == [original.headers[name] for name in signed]
    assert len(deliveries(sim)) == 1


def test_a_retried_webhook_is_replayed_as_last_sent(sim: Simulator, receiver: Receiver) -> None:
    receiver.statuses = [500]
    sim.configure(webhook_retry_base_seconds=1.1)
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    first, last = receiver.wait_for(2)
    attempts_made(sim, 2)
    replay(sim, webhook_id=first.headers["webhook-id"])
    again = receiver.wait_for(3)[2]
    assert first.headers["webhook-timestamp"] != last.headers["webhook-timestamp"]
    assert again.headers["webhook-timestamp"] == last.headers["webhook-timestamp"]


def test_a_replay_can_be_signed_for_another_time(sim: Simulator, receiver: Receiver) -> None:
    original, webhook_id = sent_once(sim, receiver)
    replay(sim, webhook_id=webhook_id, timestamp=1_700_000_000)
    stale = receiver.wait_for(2)[1]
    assert stale.headers["webhook-timestamp"] == "1700000000"
    assert stale.body == original.body
    assert is_signed(stale, secret_of(sim))


def test_a_replay_can_be_forged_after_signing(sim: Simulator, receiver: Receiver) -> None:
    original, webhook_id = sent_once(sim, receiver)
    now_s = int(time.time())
    replay(sim, webhook_id=webhook_id, body_suffix=" é")
    replay(sim, webhook_id=webhook_id, body_suffix=" ", timestamp=now_s)
    kept, signed_anew = receiver.wait_for(3)[1:]
    assert kept.body == original.body + " é".encode()
    assert kept.headers["webhook-signature"] == original.headers["webhook-signature"]
    assert signed_anew.headers["webhook-timestamp"] == str(now_s)
    assert not is_signed(kept, secret_of(sim))
    assert not is_signed(signed_anew, secret_of(sim))


def test_a_replay_nobody_answers_tells_why(sim: Simulator) -> None:
    gone = Receiver()
    _, webhook_id = sent_once(sim, gone)
    gone.close()
    answer = replay(sim, webhook_id=webhook_id)
    assert answer["status"] is None
    assert "ConnectorError" in answer["error"]


def test_what_was_not_sent_cannot_be_replayed(sim: Simulator, receiver: Receiver) -> None:
    sim.fault("webhook_drop")
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    (dropped,) = attempts_made(sim, 1)
    for webhook_id in (dropped["webhook_id"], "msg_unknown"):
        response = sim.request("POST", "/_sim/webhooks/replay", json={"webhook_id": webhook_id})
        assert response.status_code == 404
    assert receiver.received == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"webhook_id": 5},
        {"webhook_id": "msg_x", "timestamp": "now"},
        {"webhook_id": "msg_x", "timestamp": True},
        {"webhook_id": "msg_x", "body_suffix": 5},
        {"webhook_id": "msg_x", "signature": "v1,x"},
    ],
)
def test_a_replay_that_makes_no_sense_is_refused(sim: Simulator, body: dict[str, Any]) -> None:
    assert sim.request("POST", "/_sim/webhooks/replay", json=body).status_code == 400


def test_the_secret_can_be_given_or_follows_from_the_seed(receiver: Receiver) -> None:
    with running_simulator("--webhook-secret", VECTOR_SECRET) as sim:
        assert secret_of(sim) == VECTOR_SECRET
        sim.created(webhook=receiver.url)
        assert is_signed(receiver.wait_for(1)[0], VECTOR_SECRET)
    with running_simulator("--seed", "1") as one, running_simulator("--seed", "2") as two:
        assert secret_of(one) != secret_of(two)
