"""Every kind of fault, and which requests a rule is for."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from tests.simulator.support import FLUX, FLUX_DEV, Simulator

IMAGE = {"prompt": "a cat", "output_format": "png"}


def outcome(sim: Simulator, **values: Any) -> dict[str, Any]:
    """Create a prediction and return it ended."""
    return sim.ended(sim.created(input={"prompt": "a cat", **values})["id"])


def file_of(sim: Simulator, **values: Any) -> requests.Response:
    """Create a prediction and return the answer for its first file."""
    return sim.request("GET", outcome(sim, **values)["output"][0])


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("fail", "ValueError: The prompt could not be encoded for this model."),
        ("interrupt", "Prediction interrupted; please retry (code: PA)"),
        ("nsfw", "NSFW content detected. Try running it again, or try a different prompt."),
        ("out_of_memory", "CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_run_can_fail_and_is_charged_all_the_same(sim: Simulator, kind: str, error: str) -> None:
    sim.fault(kind)
    ended = outcome(sim)
    assert (ended["status"], ended["error"], ended["output"]) == ("failed", error, None)
    assert sim.ledger()["by_status"]["failed"]["count"] == 1


def test_the_error_text_can_be_chosen(sim: Simulator) -> None:
    sim.fault("fail", error="E1000: unknown")
    assert outcome(sim)["error"] == "E1000: unknown"


def test_fail_twice_then_succeed(sim: Simulator) -> None:
    sim.fault("fail", prompt="fox", times=2)
    other = outcome(sim)["status"]
    foxes = [outcome(sim, prompt="a red fox")["status"] for _ in range(4)]
    assert (other, foxes) == ("succeeded", ["failed", "failed", "succeeded", "succeeded"])


def test_a_rule_can_be_for_the_nth_request(sim: Simulator) -> None:
    sim.fault("fail", nth=2)
    assert [outcome(sim)["status"] for _ in range(3)] == ["succeeded", "failed", "succeeded"]


def test_a_rule_can_be_for_one_model(sim: Simulator) -> None:
    sim.fault("fail", model=FLUX_DEV)
    assert [sim.run(model)["status"] for model in (FLUX, FLUX_DEV)] == ["succeeded", "failed"]


def test_a_rule_can_be_for_a_share_of_requests_the_same_each_time(sim: Simulator) -> None:
    def statuses() -> list[int]:
        sim.request("POST", "/_sim/reset")
        sim.fault("create_status", rate=0.3)
        return [sim.create().status_code for _ in range(60)]

    first = statuses()
    assert 5 <= first.count(500) <= 35
    assert statuses() == first


def test_rules_can_be_read_with_their_counts_and_removed(sim: Simulator) -> None:
    added = sim.fault("fail", prompt="cat", times=1)
    outcome(sim)
    outcome(sim)
    (rule,) = sim.request("GET", "/_sim/faults").json()["faults"]
    assert rule == {**added, "seen": 2, "applied": 1}
    assert sim.request("DELETE", "/_sim/faults").status_code == 204
    assert sim.request("GET", "/_sim/faults").json() == {"faults": []}


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "explode"},
        {},
        {"kind": "fail", "seconds": 3},
        {"kind": "slow", "seconds": "long"},
        {"kind": "fail", "times": True},
        {"kind": "webhook_drop", "event": "end"},
        {"kind": "list_status", "prompt": "cat"},
        {"kind": "cancel_ignored", "hits": 1},
        {"kind": "file_redirect", "location": 5},
    ],
)
def test_rules_that_make_no_sense_are_refused(sim: Simulator, rule: dict[str, Any]) -> None:
    assert sim.request("POST", "/_sim/faults", json=rule).status_code == 400
    assert sim.request("POST", "/_sim/faults", data="[").status_code == 400


def test_the_first_rule_of_a_group_wins_and_uses_up_no_other(sim: Simulator) -> None:
    sim.fault("nsfw", times=1)
    sim.fault("interrupt", times=1)
    errors = [outcome(sim)["error"] or "none" for _ in range(3)]
    assert [error.split()[0] for error in errors] == ["NSFW", "Prediction", "none"]


def test_a_refused_request_uses_up_no_rule_for_predictions(sim: Simulator) -> None:
    sim.fault("fail", times=1)
    sim.fault("create_status", status=503, times=1)
    assert sim.create().status_code == 503
    assert sim.create(input={}).status_code == 422
    assert outcome(sim)["status"] == "failed"


def test_a_hanging_prediction_ends_only_when_cancelled(sim: Simulator) -> None:
    sim.fault("hang")
    hanging = sim.created()
    sim.reached(hanging["id"], "processing")
    sim.request("DELETE", "/_sim/faults")
    outcome(sim)
    assert sim.get(hanging["id"])["status"] == "processing"
    sim.request("POST", hanging["urls"]["cancel"])
    assert sim.get(hanging["id"])["status"] == "canceled"


def test_a_slow_prediction_takes_that_much_longer(sim: Simulator) -> None:
    sim.fault("slow", seconds=0.4)
    assert 0.44 < outcome(sim)["metrics"]["predict_time"] < 5


def test_a_short_output_lacks_images(sim: Simulator) -> None:
    sim.fault("short_output", times=1)
    sim.fault("short_output", count=1)
    assert len(outcome(sim, num_outputs=4)["output"]) == 3
    ended = outcome(sim, num_outputs=4)
    assert (ended["status"], len(ended["output"])) == ("succeeded", 1)
    assert ended["metrics"]["image_count"] == 1


def test_an_empty_output_is_a_list_or_null(sim: Simulator) -> None:
    sim.fault("empty_output", times=1)
    sim.fault("empty_output", null=True)
    first, second = outcome(sim), outcome(sim)
    assert (first["status"], first["output"]) == ("succeeded", [])
    assert (second["status"], second["output"]) == ("succeeded", None)


def test_a_list_can_come_as_a_string(sim: Simulator) -> None:
    sim.fault("string_output")
    output = outcome(sim)["output"]
    assert isinstance(output, str)
    assert sim.request("GET", output).status_code == 200


def test_a_truncated_file_is_shorter_but_a_whole_answer(sim: Simulator) -> None:
    sim.fault("truncated_file", prompt="cut")
    whole = file_of(sim, seed=1, prompt="whole")
    cut = file_of(sim, seed=1, prompt="cut")
    assert cut.status_code == 200
    assert cut.content[:4] == whole.content[:4]
    assert len(cut.content) == int(cut.headers["Content-Length"])


def test_a_file_of_the_wrong_type_is_html_under_an_image_name(sim: Simulator) -> None:
    sim.fault("wrong_type")
    response = file_of(sim, **IMAGE)
    assert response.headers["Content-Type"] == "image/png"
    assert response.url.endswith(".png")
    assert response.content.startswith(b"<!DOCTYPE html>")


def test_an_empty_file_has_no_bytes(sim: Simulator) -> None:
    sim.fault("empty_file")
    response = file_of(sim)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("status", [403, 404, 410, 500, 503])
def test_a_file_can_answer_any_status(sim: Simulator, status: int) -> None:
    sim.fault("file_status", status=status)
    assert file_of(sim).status_code == status


def test_a_file_can_fail_the_first_times_only(sim: Simulator) -> None:
    sim.fault("file_status", status=503, hits=2)
    urls = outcome(sim, num_outputs=2)["output"]
    for url in urls:
        statuses = [sim.request("GET", url).status_code for _ in range(3)]
        assert statuses == [503, 503, 200]


def test_a_dropped_file_ends_in_the_middle(sim: Simulator) -> None:
    sim.fault("drop_file")
    (url,) = outcome(sim)["output"]
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        sim.request("GET", url)


def test_a_dripping_file_comes_byte_by_byte(sim: Simulator) -> None:
    sim.fault("drip", seconds=0.05)
    (url,) = outcome(sim)["output"]
    began = time.monotonic()
    with sim.request("GET", url, stream=True) as response:
        pieces = response.iter_content(chunk_size=1)
        received = [next(pieces) for _ in range(6)]
    assert b"".join(received)[:4] == b"RIFF"
    assert time.monotonic() - began > 0.2


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (401, "Unauthenticated"),
        (402, "Insufficient credit"),
        (403, "Permission denied"),
        (404, "Not found"),
        (422, "Input validation failed"),
        (429, "Too many requests"),
        (500, "Internal server error"),
    ],
)
def test_a_create_can_answer_any_status(sim: Simulator, status: int, title: str) -> None:
    sim.fault("create_status", status=status, times=1)
    response = sim.create()
    assert (response.status_code, response.json()["title"]) == (status, title)
    assert response.json()["status"] == status
    assert "Retry-After" not in response.headers
    assert sim.request("GET", "/v1/predictions").json()["results"] == []
    assert sim.create().status_code == 201


def test_a_refused_credit_says_so(sim: Simulator) -> None:
    sim.fault("create_status", status=402)
    assert "insufficient credit" in sim.create().json()["detail"]


def test_a_gateway_error_is_an_html_page(sim: Simulator) -> None:
    sim.fault("create_status", status=502)
    response = sim.create()
    assert response.headers["Content-Type"].startswith("text/html")
    assert response.text.startswith("<html>")


@pytest.mark.parametrize(
    ("retry_after", "header", "text"),
    [
        (7, "7", "~7s"),
        ("Fri, 20 Nov 2026 08:00:00 GMT", "Fri, 20 Nov 2026 08:00:00 GMT", "~30s"),
        ("soon", "soon", "~30s"),
        (86400, "86400", "~86400s"),
        (0, "0", "~0s"),
    ],
)
def test_retry_after_is_sent_as_given(
    sim: Simulator, retry_after: str | int, header: str, text: str
) -> None:
    sim.fault("create_status", status=429, retry_after=retry_after)
    response = sim.create()
    assert response.headers["Retry-After"] == header
    assert text in response.json()["detail"]


def test_the_body_of_a_refusal_can_be_given(sim: Simulator) -> None:
    sim.fault("create_status", status=429, body='{"retry_after":5}')
    sim.fault("create_status", status=500, body="", content_type="text/plain", prompt="empty")
    assert sim.create().json() == {"retry_after": 5}
    sim.request("DELETE", "/_sim/faults")
    sim.fault("create_status", status=500, body="", content_type="text/plain")
    assert sim.create().text == ""


def test_reading_a_prediction_can_fail(sim: Simulator) -> None:
    sim.fault("get_status", status=500, hits=2)
    created = sim.created()
    path = f"/v1/predictions/{created['id']}"
    assert [sim.request("GET", path).status_code for _ in range(3)] == [500, 500, 200]


def cancel(sim: Simulator, created: dict[str, Any]) -> requests.Response:
    """Ask for a prediction to be cancelled."""
    return sim.request("POST", created["urls"]["cancel"])


def test_a_cancel_can_be_refused_without_effect(sim: Simulator) -> None:
    sim.fault("hang")
    sim.fault("cancel_status", status=500, hits=2)
    one, other = sim.created(), sim.created()
    sim.reached(one["id"], "processing")
    assert [cancel(sim, one).status_code for _ in range(2)] == [500, 500]
    assert sim.get(one["id"])["status"] == "processing"
    assert cancel(sim, one).json()["status"] == "canceled"
    assert cancel(sim, other).status_code == 500


def test_a_cancel_can_be_refused_always(sim: Simulator) -> None:
    sim.configure(queue_seconds=60)
    sim.fault("cancel_status", prompt="stuck")
    stuck, other = sim.created(input={"prompt": "stuck"}), sim.created()
    assert [cancel(sim, stuck).status_code for _ in range(5)] == [503] * 5
    assert cancel(sim, other).json()["status"] == "canceled"


def test_a_cancel_can_lose_its_connection_without_effect(sim: Simulator) -> None:
    sim.configure(queue_seconds=60)
    sim.fault("drop_cancel", hits=1)
    created = sim.created()
    with pytest.raises(requests.ConnectionError):
        cancel(sim, created)
    assert sim.get(created["id"])["status"] == "starting"
    assert cancel(sim, created).json()["status"] == "canceled"


def test_a_cancel_can_be_accepted_and_ignored(sim: Simulator) -> None:
    sim.fault("cancel_ignored")
    sim.configure(run_seconds=0.2)
    created = sim.created()
    sim.reached(created["id"], "processing")
    response = cancel(sim, created)
    assert (response.status_code, response.json()["status"]) == (200, "processing")
    assert sim.ended(created["id"])["status"] == "succeeded"


def listing(sim: Simulator) -> requests.Response:
    """Ask for the first page of predictions."""
    return sim.request("GET", "/v1/predictions")


def test_a_prediction_can_be_missing_from_lists(sim: Simulator) -> None:
    sim.fault("list_hidden", prompt="lost")
    lost, found = sim.created(input={"prompt": "lost"}), sim.created()
    assert [listed["id"] for listed in listing(sim).json()["results"]] == [found["id"]]
    assert sim.ended(lost["id"])["status"] == "succeeded"
    assert sim.ledger(prompt="lost")["charges"][0]["prediction_id"] == lost["id"]


def test_the_first_lists_can_be_refused(sim: Simulator) -> None:
    rule = sim.fault("list_status", status=500, hits=2)
    sim.created()
    assert [listing(sim).status_code for _ in range(4)] == [500, 500, 200, 200]
    (now,) = sim.request("GET", "/_sim/faults").json()["faults"]
    assert now == {**rule, "seen": 4, "applied": 2}


def test_lists_can_be_refused_until_the_rules_are_removed(sim: Simulator) -> None:
    sim.fault("list_status")
    assert [listing(sim).status_code for _ in range(3)] == [503] * 3
    sim.request("DELETE", "/_sim/faults")
    assert listing(sim).status_code == 200


def test_the_nth_list_can_be_refused_and_no_rule_for_creates_is_used_up(sim: Simulator) -> None:
    sim.fault("list_status", status=429, nth=2)
    sim.fault("fail", nth=1)
    assert [listing(sim).status_code for _ in range(3)] == [200, 429, 200]
    assert outcome(sim)["status"] == "failed"


def test_a_connection_dropped_before_creates_nothing(sim: Simulator) -> None:
    sim.fault("drop_create_before", times=1)
    with pytest.raises(requests.ConnectionError):
        sim.create()
    (entry,) = sim.stats()["timeline"]
    assert (entry["answer"], entry["prediction_id"]) == ("dropped", None)
    assert sim.request("GET", "/v1/predictions").json()["results"] == []
    assert sim.create().status_code == 201


def test_a_connection_reset_after_leaves_a_prediction_that_is_charged(sim: Simulator) -> None:
    sim.fault("drop_create_after", times=1)
    with pytest.raises(requests.ConnectionError):
        sim.create()
    (entry,) = sim.stats()["timeline"]
    assert entry["answer"] == "dropped"
    assert sim.ended(entry["prediction_id"])["status"] == "succeeded"
    assert sim.ledger()["count"] == 1
    (listed,) = sim.request("GET", "/v1/predictions").json()["results"]
    assert listed["id"] == entry["prediction_id"]


def test_a_stalled_create_answers_late(sim: Simulator) -> None:
    sim.fault("stall_create", seconds=0.4)
    began = time.monotonic()
    created = sim.created()
    assert time.monotonic() - began > 0.35
    assert created["status"] == "succeeded"


def test_expired_data_is_gone_though_the_webhook_had_it(sim: Simulator) -> None:
    sim.fault("expired")
    created = sim.created({"Prefer": "wait"})
    ended = sim.get(created["id"])
    assert (ended["status"], ended["data_removed"], ended["output"]) == ("succeeded", True, None)
    url = f"{sim.url}/files/out/{created['id']}/0.webp"
    assert sim.request("GET", url).status_code == 404


def test_faults_of_different_groups_add_up(sim: Simulator) -> None:
    sim.fault("short_output")
    sim.fault("slow", seconds=0.2)
    sim.fault("file_status", status=403)
    ended = outcome(sim, num_outputs=3)
    assert (len(ended["output"]), ended["metrics"]["predict_time"] > 0.2) == (2, True)
    assert sim.request("GET", ended["output"][0]).status_code == 403
