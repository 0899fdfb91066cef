"""The life of a prediction on the clock, and how it is cut short."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.simulator.support import FLUX, FLUX_DEV, SDXL, Simulator, eventually


def test_a_prediction_starts_processes_and_succeeds(sim: Simulator) -> None:
    sim.configure(queue_seconds=0.3, run_seconds=0.3)
    prediction = sim.created()
    assert prediction["status"] == "starting"
    assert "started_at" not in prediction
    processing = sim.reached(prediction["id"], "processing")
    assert (processing["output"], "completed_at" in processing) == (None, False)
    ended = sim.ended(prediction["id"])
    assert (ended["status"], ended["error"], ended["data_removed"]) == ("succeeded", None, False)
    assert ended["metrics"]["image_count"] == 1


def test_times_and_metrics_agree(sim: Simulator) -> None:
    sim.configure(queue_seconds=0.1, run_seconds=0.2)
    ended = sim.ended(sim.created()["id"])
    created, started, completed = (
        datetime.fromisoformat(ended[key]) for key in ("created_at", "started_at", "completed_at")
    )
    a_little = timedelta(microseconds=5)
    predict_time = timedelta(seconds=ended["metrics"]["predict_time"])
    total_time = timedelta(seconds=ended["metrics"]["total_time"])
    assert abs(completed - started - predict_time) < a_little
    assert abs(completed - created - total_time) < a_little
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", ended["completed_at"])


def test_run_times_are_precise(sim: Simulator) -> None:
    sim.configure(run_seconds=0.25)
    ids = [sim.created()["id"] for _ in range(20)]
    times = [sim.ended(i)["metrics"]["predict_time"] for i in ids]
    assert min(times) >= 0.249
    assert sorted(times)[10] < 0.3


def test_jitter_varies_run_times_within_its_fraction(sim: Simulator) -> None:
    sim.configure(run_seconds=0.2, run_jitter=0.5)
    ids = [sim.created()["id"] for _ in range(12)]
    times = [sim.ended(i)["metrics"]["predict_time"] for i in ids]
    assert min(times) >= 0.1
    assert max(times) < 0.4
    assert max(times) - min(times) > 0.03


def test_a_model_can_have_times_of_its_own(sim: Simulator) -> None:
    sim.configure(run_seconds=60, models={FLUX_DEV: {"run_seconds": 0.01, "queue_seconds": 0}})
    assert sim.run(FLUX_DEV)["metrics"]["predict_time"] < 5


def test_the_usual_time_of_the_model_is_the_default(sim: Simulator) -> None:
    sim.configure(run_seconds=None)
    assert 1.5 <= sim.run(FLUX)["metrics"]["predict_time"] < 2.5


def test_logs_show_progress_while_processing(sim: Simulator) -> None:
    sim.configure(run_seconds=0.4)
    prediction_id = sim.created()["id"]
    assert "| 0/4 [" in sim.reached(prediction_id, "processing")["logs"]
    logs = sim.ended(prediction_id)["logs"]
    assert re.search(r"^Using seed: \d+$", logs, re.MULTILINE)
    assert re.search(r"^ 50%\|.+\| 2/4 \[.*it/s\]$", logs, re.MULTILINE)
    assert re.search(r"^100%\|.+\| 4/4 \[.*it/s\]$", logs, re.MULTILINE)


def test_cancel_stops_a_running_prediction(sim: Simulator) -> None:
    sim.configure(run_seconds=60)
    prediction_id = sim.created()["id"]
    sim.reached(prediction_id, "processing")
    response = sim.request("POST", f"/v1/predictions/{prediction_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "canceled")
    ended = sim.get(prediction_id)
    assert (ended["status"], ended["output"]) == ("canceled", None)
    assert ended["metrics"]["predict_time"] < 60


def test_cancel_before_the_run_costs_nothing(sim: Simulator) -> None:
    sim.configure(queue_seconds=60)
    prediction_id = sim.created()["id"]
    sim.request("POST", f"/v1/predictions/{prediction_id}/cancel")
    ended = sim.get(prediction_id)
    assert ended["status"] == "canceled"
    assert "started_at" not in ended
    assert sim.ledger()["count"] == 0


def test_cancel_leaves_a_finished_prediction_as_it_is(sim: Simulator) -> None:
    ended = sim.run()
    response = sim.request("POST", ended["urls"]["cancel"])
    assert response.json() == ended


def test_cancel_can_take_its_time(sim: Simulator) -> None:
    sim.configure(run_seconds=60, cancel_seconds=0.2)
    prediction_id = sim.created()["id"]
    sim.reached(prediction_id, "processing")
    response = sim.request("POST", f"/v1/predictions/{prediction_id}/cancel")
    assert response.json()["status"] == "processing"
    assert sim.ended(prediction_id)["status"] == "canceled"


def test_a_run_that_ends_first_wins_over_a_slow_cancel(sim: Simulator) -> None:
    sim.configure(run_seconds=0.1, cancel_seconds=60)
    prediction_id = sim.created()["id"]
    sim.request("POST", f"/v1/predictions/{prediction_id}/cancel")
    assert sim.ended(prediction_id)["status"] == "succeeded"


def test_cancel_after_aborts_a_prediction_that_never_started(sim: Simulator) -> None:
    sim.configure(queue_seconds=60)
    prediction = sim.created({"Cancel-After": "1s"})
    ended = sim.ended(prediction["id"])
    assert ended["status"] == "aborted"
    assert "started_at" not in ended
    assert "predict_time" not in ended["metrics"]
    assert sim.ledger()["count"] == 0


def test_cancel_after_cancels_a_prediction_that_runs(sim: Simulator) -> None:
    sim.configure(run_seconds=60)
    ended = sim.ended(sim.created({"Cancel-After": "1"})["id"])
    assert ended["status"] == "canceled"
    assert ended["metrics"]["total_time"] == pytest.approx(1, abs=0.2)
    assert sim.ledger()["by_status"]["canceled"]["count"] == 1


def test_cancel_after_does_not_touch_a_prediction_that_is_done(sim: Simulator) -> None:
    ended = sim.ended(sim.created({"Cancel-After": "1"})["id"])
    assert ended["status"] == "succeeded"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("30", 30), ("30s", 30), ("5m", 300), ("1h30m45s", 5445), ("2h", 7200), ("1m5", 65)],
)
def test_the_deadline_counts_from_creation(sim: Simulator, header: str, seconds: int) -> None:
    prediction = sim.created({"Cancel-After": header})
    created, deadline = (
        datetime.fromisoformat(prediction[key]) for key in ("created_at", "deadline")
    )
    assert abs(deadline - created - timedelta(seconds=seconds)) <= timedelta(microseconds=1)


@pytest.mark.parametrize("header", ["", "soon", "1.5", "-5", "5d", "0", "30 s"])
def test_other_forms_of_cancel_after_are_refused(sim: Simulator, header: str) -> None:
    assert sim.create({"Cancel-After": header}).status_code == 422


def test_cancel_after_has_a_shortest_value(sim: Simulator) -> None:
    sim.configure(cancel_after_min_seconds=5)
    assert sim.create({"Cancel-After": "4"}).status_code == 422
    assert sim.create({"Cancel-After": "5"}).status_code == 201


def test_a_run_over_the_limit_fails(sim: Simulator) -> None:
    sim.configure(run_seconds=60, run_limit_seconds=0.05)
    ended = sim.ended(sim.created()["id"])
    assert (ended["status"], ended["error"]) == ("failed", "Prediction timed out")


def test_data_is_removed_after_the_retention_time(sim: Simulator) -> None:
    sim.configure(retention_seconds=0.6)
    ended = sim.run()
    (url,) = ended["output"]
    assert sim.request("GET", url).status_code == 200
    eventually(lambda: sim.get(ended["id"])["data_removed"], "removal")
    removed = sim.get(ended["id"])
    assert (removed["status"], removed["output"]) == ("succeeded", None)
    assert (removed["input"], removed["logs"]) == ({}, "")
    assert sim.request("GET", url).status_code == 404


def test_sdxl_fails_on_sides_the_model_cannot_take(sim: Simulator) -> None:
    ended = sim.run(SDXL, width=1001)
    assert ended["status"] == "failed"
    assert "divisible by 8" in ended["error"]


def test_unknown_settings_are_refused_and_change_nothing(sim: Simulator) -> None:
    before = sim.request("GET", "/_sim/settings").json()
    senseless: tuple[dict[str, Any], ...] = (
        {"run_seconds": 9, "speed": 3},
        {"run_seconds": -1},
        {"run_seconds": "fast"},
        {"queue_seconds": None},
        {"wait_says_processing": 1},
        {"models": {"a/b": {"speed": 1}}},
        {"models": []},
    )
    for changes in senseless:
        response = sim.request("POST", "/_sim/settings", json=changes)
        assert response.status_code == 400, changes
    assert sim.request("POST", "/_sim/settings", data="{").status_code == 400
    assert sim.request("GET", "/_sim/settings").json() == before
