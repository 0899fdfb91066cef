"""The books: charges, create requests, how many ran at once."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import pytest

from simulator.ledger import Ledger
from simulator.models import load_models
from simulator.predictions import Order, Prediction
from tests.simulator.support import FLUX, SDXL, TOKEN, Simulator


def most_at_once(timeline: list[dict[str, Any]], since: str, until: str) -> int:
    """Return the maximum number of entries whose spans overlap."""
    steps = [(entry[since], 1) for entry in timeline] + [(entry[until], -1) for entry in timeline]
    return max(accumulate(step for _, step in sorted(steps)))


def test_a_charge_says_what_was_run_for_whom(sim: Simulator) -> None:
    before_wall, before_mono = time.time(), time.monotonic()
    created = sim.created(
        input={"prompt": "a cat", "num_outputs": 2}, webhook="http://127.0.0.1:9/?owner=alice"
    )
    sim.ended(created["id"])
    (charge,) = sim.ledger()["charges"]
    assert charge["prediction_id"] == created["id"]
    assert (charge["model"], charge["prompt"], charge["owner"]) == (FLUX, "a cat", "alice")
    assert charge["webhook"] == "http://127.0.0.1:9/?owner=alice"
    assert charge["token_suffix"] == TOKEN[-4:]
    assert charge["status"] == "succeeded"
    assert len(charge["input_sha256"]) == 64
    assert before_wall <= charge["created_at"] <= charge["started_at"] <= charge["ended_at"]
    monotonic = [charge[f"{name}_monotonic"] for name in ("created", "started", "ended")]
    moments = [before_mono, *monotonic, time.monotonic()]
    assert moments == sorted(moments)


def test_official_models_charge_by_image_and_others_by_second(sim: Simulator) -> None:
    sim.run(FLUX, num_outputs=3)
    sim.run(SDXL, num_outputs=3)
    flux, sdxl = sim.ledger()["charges"]
    assert flux["charged_usd"] == pytest.approx(0.009)
    ran_s = sdxl["ended_monotonic"] - sdxl["started_monotonic"]
    assert sdxl["charged_usd"] == pytest.approx(0.000975 * ran_s, rel=1e-3)


def test_the_same_input_has_the_same_digest_whatever_its_order(sim: Simulator) -> None:
    sim.run(FLUX, prompt="a", seed=1)
    sim.run(FLUX, seed=1, prompt="a")
    sim.run(FLUX, seed=2, prompt="a")
    one, two, three = (charge["input_sha256"] for charge in sim.ledger()["charges"])
    assert one == two != three


def test_totals_are_kept_by_status(sim: Simulator) -> None:
    sim.fault("fail", prompt="bad")
    sim.fault("hang", prompt="long")
    sim.run(prompt="good")
    sim.run(prompt="bad")
    sim.reached(sim.created(input={"prompt": "long"})["id"], "processing")
    ledger = sim.ledger()
    counts = {status: total["count"] for status, total in ledger["by_status"].items()}
    assert counts == {"succeeded": 1, "failed": 1, "processing": 1}
    assert ledger["count"] == 3
    assert ledger["charged_usd"] == pytest.approx(0.006)


def test_charges_can_be_looked_up_by_prompt(sim: Simulator) -> None:
    sim.run(prompt="a cat")
    sim.run(prompt="a dog")
    ledger = sim.ledger(prompt="dog")
    assert [charge["prompt"] for charge in ledger["charges"]] == ["a dog"]
    assert ledger["count"] == 2


def test_thousands_of_charges_can_be_read_again_and_again() -> None:
    model = load_models().named(FLUX)
    assert model is not None
    ledger, count = Ledger(), 5000
    for number in range(count):
        prediction = Prediction(
            number=number,
            id=f"p{number}",
            order=Order(model, {"prompt": f"cat {number}."}, "alice", "abcd", "http://sim"),
            seed=1,
            run_s=1.0,
            created_mono=0.0,
            created_wall_ns=0,
            started_mono=1.0,
        )
        for event in ("accepted", "start", "completed"):
            prediction.status = "succeeded" if event == "completed" else "processing"
            ledger.note(prediction, event)
    whole = ledger.charges_json("")
    began_s = time.process_time()
    assert ledger.charges_json("") == whole
    (found,) = json.loads(ledger.charges_json("cat 4321."))["charges"]
    spent_s = time.process_time() - began_s
    assert (len(json.loads(whole)["charges"]), found["prediction_id"]) == (count, "p4321")
    # Some 4 ms; encoding them all anew takes ten times as long.
    assert spent_s < 0.03


def test_a_charge_under_way_is_told_as_it_is_now(sim: Simulator) -> None:
    sim.fault("hang")
    created = sim.created()
    sim.reached(created["id"], "processing")
    statuses = [sim.ledger()["charges"][0]["status"]]
    sim.request("POST", created["urls"]["cancel"])
    statuses += [sim.ledger()["charges"][0]["status"] for _ in range(2)]
    assert statuses == ["processing", "canceled", "canceled"]


def test_a_charge_begins_with_the_run(sim: Simulator) -> None:
    sim.configure(queue_seconds=0.3, run_seconds=60)
    created = sim.created()
    assert sim.ledger()["count"] == 0
    sim.reached(created["id"], "processing")
    assert sim.ledger()["count"] == 1


def test_the_owner_comes_from_the_webhook_else_from_the_prompt(sim: Simulator) -> None:
    sim.created(input={"prompt": "[bob] a cat"}, webhook="http://127.0.0.1:9/?owner=alice")
    sim.created(input={"prompt": "[bob] a cat"}, webhook="http://127.0.0.1:9/?id=3")
    sim.created(input={"prompt": "a cat [carol]"})
    assert [entry["owner"] for entry in sim.stats()["timeline"]] == ["alice", "bob", ""]


def test_the_query_parameter_of_the_owner_can_be_chosen(sim: Simulator) -> None:
    sim.configure(owner_parameter="who")
    sim.created(webhook="http://127.0.0.1:9/?owner=alice&who=dora")
    assert [*sim.stats()["owners"]] == ["dora"]


def test_maxima_are_counted_overall_and_by_owner(sim: Simulator) -> None:
    sim.configure(run_seconds=1, queue_seconds=0.05)
    prompts = ["[alice] x", "[alice] x", "[alice] x", "[bob] x", "[bob] x"]
    with ThreadPoolExecutor(5) as pool:
        created = list(pool.map(lambda p: sim.created(input={"prompt": p}), prompts))
    during = sim.stats()
    for prediction in created:
        sim.ended(prediction["id"])
    sim.run(prompt="[alice] x")
    stats = sim.stats()
    assert (during["in_flight"], stats["in_flight"], stats["running"]) == (5, 0, 0)
    assert (stats["max_running"], stats["max_in_flight"]) == (5, 5)
    assert (stats["creates_received"], stats["charges"]) == (6, 6)
    alice, bob = stats["owners"]["alice"], stats["owners"]["bob"]
    assert (alice["max_running"], alice["creates_received"], alice["charges"]) == (3, 4, 4)
    assert (bob["max_running"], bob["max_in_flight"]) == (2, 2)
    timeline = stats["timeline"]
    assert most_at_once(timeline, "started_monotonic", "ended_monotonic") == 5
    assert most_at_once(timeline, "received_monotonic", "ended_monotonic") == 5


def test_the_timeline_holds_every_create_request_with_its_answer(sim: Simulator) -> None:
    sim.fault("create_status", status=500, prompt="refused")
    sent_wall, sent_mono = time.time(), time.monotonic()
    sim.create(input={"prompt": "refused"})
    sim.create(input={"prompt": "accepted"})
    refused, accepted = sim.stats()["timeline"]
    assert (refused["answer"], refused["prediction_id"]) == (500, None)
    assert accepted["answer"] == 201
    assert sent_mono <= refused["received_monotonic"] <= accepted["received_monotonic"]
    assert abs(refused["received_at"] - sent_wall) < 1


def test_the_timeline_can_be_left_out(sim: Simulator) -> None:
    assert "timeline" not in sim.request("GET", "/_sim/stats?timeline=0").json()


def test_reset_forgets_everything(sim: Simulator) -> None:
    sim.configure(run_seconds=60)
    sim.fault("fail")
    created = sim.created()
    sim.request("POST", "/v1/files", files={"content": b"x"})
    sim.request("POST", "/_sim/reset")
    assert sim.stats()["creates_received"] == sim.ledger()["count"] == 0
    assert sim.request("GET", f"/v1/predictions/{created['id']}").status_code == 404
    assert sim.request("GET", "/v1/files").json()["results"] == []
    assert sim.request("GET", "/_sim/faults").json()["faults"] == []
    assert sim.request("GET", "/_sim/settings").json()["run_seconds"] == 0.05
