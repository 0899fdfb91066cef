"""The ComfyUI adapter: what it sends, how it reads what comes back, and how it listens.

What it has in common with the other adapters is in `conformance`.
"""

import gc
import io
import json
import os
import threading
import time
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
import responses

from generation.provider import (
    RAW_LIMIT,
    Downloaded,
    ErrorClass,
    Failure,
    Prediction,
    PredictionStatus,
    Provider,
    SubmitRequest,
    WebhookRefusal,
    Workflow,
)
from generation.providers import comfyui
from generation.providers.comfyui import ComfyUIProvider, read_entry
from tests.generation.conformance.comfyui import IMAGE_TO_IMAGE, MODEL, TEXT_TO_IMAGE
from tests.generation.conformance.harness import input_file, new_token
from tests.simulator.support import PATIENCE_S, eventually

BASE = "http://comfyui.test:8188"
ID = "0b0c1f4e-5c6e-4a1c-9a43-5f0c8f6f2c11"
AT = datetime(2026, 11, 20, tzinfo=UTC)
STARTING, RUNNING, SUCCEEDED = (
    PredictionStatus.STARTING,
    PredictionStatus.RUNNING,
    PredictionStatus.SUCCEEDED,
)


def request(prompt="a cat", **fields):
    values = {"prompt": prompt, **fields.pop("input", {})}
    defaults = {"token": new_token(), "workflow": TEXT_TO_IMAGE}
    return SubmitRequest(MODEL, values, **{**defaults, **fields})


def with_images(*contents, **fields):
    files = tuple(input_file(content) for content in contents)
    return request(workflow=IMAGE_TO_IMAGE, files={"images": files}, **fields)


def entry(*, outputs=None, status_str="success", messages=None, **extra_data):
    """An entry of the history, of a prompt that ran for 2.5 s."""
    if messages is None:
        messages = [["execution_start", at(1000)], ["execution_success", at(3500)]]
    nodes = {"9": {"class_type": "SaveImage"}, "12": {"class_type": "SaveImage"}}
    return {
        "prompt": [0, ID, nodes, extra_data, ["9", "12"]],
        "outputs": {"9": {"images": [image("a.png")]}} if outputs is None else outputs,
        "status": {
            "status_str": status_str,
            "completed": status_str == "success",
            "messages": messages,
        },
        "meta": {},
    }


def at(milliseconds, **data):
    return {"prompt_id": ID, "timestamp": milliseconds, **data}


def image(filename, subfolder="", type="output"):
    return {"filename": filename, "subfolder": subfolder, "type": type}


def failed(exception_type, message):
    error = at(3500, node_id="3", node_type="KSampler", traceback=["secret"], executed=[])
    error |= {"exception_type": exception_type, "exception_message": message}
    error |= {"current_inputs": {"text": ["secret"]}, "current_outputs": []}
    messages = [["execution_start", at(1000)], ["execution_error", error]]
    return read_entry(ID, entry(status_str="error", messages=messages, outputs={}))


def accepted(answer) -> Prediction:
    assert isinstance(answer, Prediction), answer
    return answer


def refused(answer) -> Failure:
    assert isinstance(answer, Failure), answer
    return answer


@pytest.fixture
def comfy(sim, http):
    provider = ComfyUIProvider(f"{sim.url}/comfyui", http=http, settle_s=0)
    yield provider
    provider.close()


@pytest.fixture
def deaf(http):
    """A provider that does not listen, of a server that is scripted."""
    return ComfyUIProvider(BASE, http=http, listens=False, settle_s=0)


@pytest.fixture
def api():
    with responses.RequestsMock() as mock:
        yield mock


def ended(provider, prediction_id) -> Prediction:
    def look():
        found = accepted(provider.fetch(prediction_id))
        return found if found.is_terminal else None

    return eventually(look, f"prompt {prediction_id} ended")


def nodes_of(sim, prediction_id):
    """The workflow that the server has of a prompt."""

    def look():
        history = sim.request("GET", f"/comfyui/history/{prediction_id}").json()
        return history[prediction_id]["prompt"] if history else None

    return eventually(look, "the prompt is in the history")


def listeners(before=frozenset()):
    """The threads that listen, except for those of other tests that are about to end."""
    return {one for one in threading.enumerate() if one.name == "comfyui-progress"} - before


class TestAddress:
    @pytest.mark.parametrize(
        "url", ["", "comfyui:8188", "ftp://comfyui", "http://me:secret@comfyui"]
    )
    def test_that_cannot_be_used_is_refused_at_once(self, http, url):
        with pytest.raises(ValueError, match="address") as caught:
            ComfyUIProvider(url, http=http)
        assert "secret" not in str(caught.value)

    def test_may_have_a_path_and_a_slash(self, sim, http):
        provider: Provider = ComfyUIProvider(f"{sim.url}/comfyui/api/", http=http, listens=False)
        assert provider.check() is None
        assert (provider.name, provider.sends_webhooks) == ("comfyui", False)


class TestSubmit:
    def test_names_the_prompt_by_the_token(self, comfy, sim):
        asked = request(input={"seed": 7})
        submitted = accepted(comfy.submit(asked))
        assert (submitted.id, submitted.status) == (asked.token, STARTING)
        _, prompt_id, nodes, extra_data, _ = nodes_of(sim, asked.token)
        assert prompt_id == asked.token
        assert extra_data["token"] == asked.token
        assert extra_data["model"] == MODEL
        assert abs(extra_data["submitted_at"] / 1000 - time.time()) < 60
        assert nodes["6"]["inputs"]["text"] == "a cat"
        assert nodes["3"]["inputs"]["seed"] == 7

    def test_leaves_the_workflow_of_the_model_as_it_was(self, comfy):
        before = json.dumps(TEXT_TO_IMAGE.nodes)
        accepted(comfy.submit(request()))
        assert json.dumps(TEXT_TO_IMAGE.nodes) == before

    def test_makes_a_picture_of_its_own_of_the_same_input(self, comfy, sim):
        pictures = [ended(comfy, accepted(comfy.submit(request())).id).outputs for _ in range(2)]
        assert pictures[0] != pictures[1]
        # It would be the same one: the server runs nothing again that it has just run.
        again = {"prompt": TEXT_TO_IMAGE.filled({"prompt": "a dog"})}
        for number in range(2):
            sim.request("POST", "/comfyui/prompt", json={**again, "prompt_id": f"dog {number}"})
        dogs = [ended(comfy, f"dog {number}").outputs for number in range(2)]
        assert dogs[0] == dogs[1]

    def test_names_every_saved_file_after_the_attempt(self, comfy, sim):
        nodes = {
            **TEXT_TO_IMAGE.nodes,
            "20": {
                "class_type": "SaveImage",
                "inputs": {"images": ["8", 0], "filename_prefix": "second"},
            },
        }
        asked = request(workflow=replace(TEXT_TO_IMAGE, nodes=nodes))
        found = ended(comfy, accepted(comfy.submit(asked)).id)
        assert found.outputs == (
            f"tests/picture-{asked.token}_00001_.png",
            f"second-{asked.token}_00001_.png",
        )

    def test_leaves_a_name_alone_that_comes_from_another_node(self, deaf, api):
        api.post(f"{BASE}/prompt", json={"prompt_id": ID, "number": 1, "node_errors": {}})
        inputs = {"images": ["8", 0], "filename_prefix": ["5", 0]}
        nodes = {"9": {"class_type": "SaveImage", "inputs": inputs}}
        deaf.submit(SubmitRequest(MODEL, {}, token=ID, workflow=Workflow(nodes, {})))
        assert json.loads(api.calls[0].request.body)["prompt"] == nodes

    def test_without_a_token_makes_an_id(self, comfy):
        first, second = (accepted(comfy.submit(request(token=""))).id for _ in range(2))
        assert first != second

    def test_tells_which_outputs_are_skipped(self, comfy):
        nodes = {**TEXT_TO_IMAGE.nodes, "20": {"class_type": "SaveImage", "inputs": {}}}
        answer = accepted(comfy.submit(request(workflow=replace(TEXT_TO_IMAGE, nodes=nodes))))
        assert list(answer.raw["node_errors"]) == ["20"]
        assert len(ended(comfy, answer.id).outputs) == 1

    def test_without_a_workflow_is_refused(self, deaf):
        failure = refused(deaf.submit(request(workflow=None)))
        assert failure.error_class == ErrorClass.INVALID_INPUT

    def test_of_a_parameter_without_a_place_names_it(self, deaf):
        failure = refused(deaf.submit(request(input={"nonsense": 1})))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == ["nonsense"]

    def test_of_a_place_that_is_not_in_the_workflow_is_refused(self, deaf):
        workflow = replace(TEXT_TO_IMAGE, bindings={"prompt": (("77", "text"),)})
        failure = refused(deaf.submit(request(workflow=workflow)))
        assert failure.error_class == ErrorClass.INVALID_INPUT

    def test_names_the_parameters_that_the_server_refuses(self, comfy):
        failure = refused(comfy.submit(request(input={"steps": 0, "sampler": "nonsense"})))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert failure.fields.keys() == {"steps", "sampler"}
        assert failure.fields["steps"] == "Value 0 smaller than min of 1"
        assert "nonsense" in failure.fields["sampler"]
        assert "steps: Value 0 smaller than min of 1" in failure.message

    def test_names_the_node_where_no_parameter_is_bound(self, comfy):
        nodes = {**TEXT_TO_IMAGE.nodes}
        nodes["3"] = {**nodes["3"], "inputs": {**nodes["3"]["inputs"], "cfg": -1}}
        failure = refused(comfy.submit(request(workflow=replace(TEXT_TO_IMAGE, nodes=nodes))))
        assert list(failure.fields) == ["KSampler.cfg"]

    def test_tells_a_model_file_that_is_not_installed_from_a_bad_value(self, comfy):
        values = {"checkpoint": "nowhere.safetensors", "steps": 0}
        failure = refused(comfy.submit(request(input=values)))
        assert failure.error_class == ErrorClass.NOT_FOUND
        assert failure.provider_code == "value_not_in_list"
        assert failure.fields.keys() == {"checkpoint", "steps"}

    def test_knows_the_newer_word_for_an_unknown_node(self, deaf, api):
        error = {"type": "missing_node_type", "message": "Node 'X' not found", "details": ""}
        api.post(f"{BASE}/prompt", json={"error": error, "node_errors": {}}, status=400)
        assert refused(deaf.submit(request())).error_class == ErrorClass.NOT_FOUND

    @pytest.mark.parametrize(
        "body",
        [
            {"error": {"type": 5, "message": None}, "node_errors": []},
            {"error": {}, "node_errors": {"3": 5, "4": {"errors": [5, {}]}}},
            {"error": {}, "node_errors": {"3": {"errors": [{"extra_info": 5, "type": {}}]}}},
            {"error": "no", "node_errors": None},
        ],
    )
    def test_takes_a_malformed_refusal_for_one(self, deaf, api, body):
        api.post(f"{BASE}/prompt", json=body, status=400)
        failure = refused(deaf.submit(request()))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert failure.message

    def test_shows_no_markup_and_no_folder_of_the_server(self, deaf, api):
        problem = {
            "type": "custom_validation_failed",
            "message": "Custom <b>validation</b>\nfailed",
            "details": "image - Invalid: '/home/me/ComfyUI/input/a.png' C:\\comfy\\b.png",
            "extra_info": {"input_name": "image"},
        }
        errors = {"1": {"errors": [problem], "dependent_outputs": [], "class_type": "LoadImage"}}
        body = {"error": {"type": "x", "message": "y"}, "node_errors": errors}
        api.post(f"{BASE}/prompt", json=body, status=400)
        failure = refused(deaf.submit(request()))
        for text in (failure.message, *failure.fields.values()):
            assert not set("<>\n") & set(text)
            assert "/home" not in text
            assert "comfy\\" not in text
        assert "'a.png' b.png" in failure.message

    def test_keeps_within_the_time_it_is_given(self, http, serve):
        server = serve(lambda sock, received, server: server.hang())
        provider = ComfyUIProvider(server.url("/comfyui"), http=http, listens=False)
        for asked, expected in (
            (request(timeout_s=0.2), ErrorClass.TIMEOUT_UNKNOWN),
            # Nothing came of the files, and the workflow was not sent.
            (with_images(b"1", timeout_s=0.2), ErrorClass.PROVIDER_UNAVAILABLE),
        ):
            started = time.monotonic()
            assert refused(provider.submit(asked)).error_class == expected
            assert time.monotonic() - started < 3
        assert [one.path for one in server.requests] == ["/comfyui/prompt", "/comfyui/upload/image"]

    def test_does_not_send_the_workflow_when_the_files_took_all_the_time(self, http, serve, answer):
        def script(sock, received, server):
            time.sleep(0.3)
            sock.sendall(answer(json.dumps({"name": "a.png", "subfolder": ""}).encode()))
            return True

        server = serve(script)
        provider = ComfyUIProvider(server.url(""), http=http, listens=False)
        asked = with_images(b"1", timeout_s=comfyui.SUBMIT_LEAST_S + 0.2)
        assert refused(provider.submit(asked)).error_class == ErrorClass.INTERRUPTED
        assert len(server.requests) == 1


class TestFiles:
    def test_are_loaded_from_where_the_server_put_them(self, comfy, sim):
        content = b"not really an image"
        name = f"{input_file(content).sha256[:32]}.png"
        # Somebody else's file is in the way.
        form = {"type": "input", "subfolder": "picture"}
        taken = {"image": (name, b"somebody's", "image/png")}
        sim.request("POST", "/comfyui/upload/image", files=taken, data=form)
        submitted = accepted(comfy.submit(with_images(content)))
        nodes = nodes_of(sim, submitted.id)[2]
        found = nodes["1"]["inputs"]["image"]
        assert found == f"picture/{name.removesuffix('.png')} (1).png"
        query = {"filename": found.rpartition("/")[2], "subfolder": "picture", "type": "input"}
        assert sim.request("GET", "/comfyui/view", params=query).content == content

    def test_go_to_their_places_in_order_and_the_last_to_the_rest(self, comfy, sim):
        for contents, expected in (([b"1"], [b"1", b"1"]), ([b"1", b"2"], [b"1", b"2"])):
            submitted = accepted(comfy.submit(with_images(*contents)))
            nodes = nodes_of(sim, submitted.id)[2]
            names = [nodes[node_id]["inputs"]["image"] for node_id in ("1", "2")]
            assert names == [f"picture/{input_file(one).sha256[:32]}.png" for one in expected]

    def test_are_kept_once_however_often_they_are_used(self, comfy, sim):
        for _ in range(3):
            accepted(comfy.submit(with_images(b"1", b"2")))
        assert len(sim.request("GET", "/_sim/comfyui/inputs").json()["files"]) == 2

    def test_for_which_there_is_no_place_are_refused_before_they_are_sent(self, comfy, sim):
        failure = refused(comfy.submit(with_images(b"1", b"2", b"3")))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == ["images"]
        assert sim.request("GET", "/_sim/comfyui/inputs").json()["files"] == []

    def test_that_are_no_image_fail_the_run(self, comfy):
        found = ended(comfy, accepted(comfy.submit(with_images(b"no image"))).id)
        assert found.failure is not None
        assert found.failure.error_class == ErrorClass.INVALID_INPUT
        assert found.failure.provider_code == "UnidentifiedImageError"
        assert "/simulated" not in found.failure.message

    @pytest.mark.parametrize("body", ["<html></html>", "[]", '{"name": ""}', '{"name": 5}'])
    def test_whose_place_is_not_told_are_not_used(self, deaf, api, body):
        api.post(f"{BASE}/upload/image", body=body)
        failure = refused(deaf.submit(with_images(b"1")))
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (400, ErrorClass.INVALID_INPUT),
            (413, ErrorClass.INVALID_INPUT),
            (500, ErrorClass.PROVIDER_UNAVAILABLE),
            (504, ErrorClass.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_that_are_refused_fail_the_submission(self, deaf, api, status, expected):
        api.post(f"{BASE}/upload/image", status=status)
        assert refused(deaf.submit(with_images(b"1"))).error_class == expected


class TestFetch:
    def test_tells_what_waits_from_what_runs(self, comfy, sim):
        sim.fault("hang")
        first, second, third = (accepted(comfy.submit(request())).id for _ in range(3))
        eventually(lambda: accepted(comfy.fetch(first)).status == RUNNING, "the first one runs")
        for waiting, before in ((second, 1), (third, 2)):
            found = accepted(comfy.fetch(waiting))
            assert (found.status, found.raw) == (STARTING, {"before_it": before})

    def test_of_one_that_a_restart_has_lost_says_so(self, comfy, sim):
        sim.fault("hang")
        running, waiting = (accepted(comfy.submit(request())).id for _ in range(2))
        eventually(lambda: accepted(comfy.fetch(running)).status == RUNNING, "it runs")
        sim.request("POST", "/_sim/comfyui/restart")
        for lost in (running, waiting, "nobody"):
            found = accepted(comfy.fetch(lost))
            assert found.status == PredictionStatus.FAILED
            assert found.failure is not None
            assert found.failure.error_class == ErrorClass.INTERRUPTED

    def test_does_not_give_up_what_was_submitted_a_moment_ago(self, sim, http):
        provider = ComfyUIProvider(
            f"{sim.url}/comfyui", http=http, listens=False, settle_s=PATIENCE_S
        )
        submitted = accepted(provider.submit(request()))
        sim.request("POST", "/_sim/comfyui/restart")
        assert accepted(provider.fetch(submitted.id)).status == STARTING
        # Of what somebody else has submitted nothing is known.
        assert accepted(provider.fetch("nobody")).failure is not None

    def test_gives_it_up_when_the_moment_is_over(self, sim, http):
        provider = ComfyUIProvider(f"{sim.url}/comfyui", http=http, listens=False, settle_s=0.2)
        submitted = accepted(provider.submit(request()))
        sim.request("POST", "/_sim/comfyui/restart")
        found = ended(provider, submitted.id)
        assert found.failure is not None
        assert found.failure.error_class == ErrorClass.INTERRUPTED

    def test_looks_again_for_what_ended_between_two_looks(self, deaf, api):
        api.get(f"{BASE}/history/{ID}", json={})
        api.get(f"{BASE}/queue", json={"queue_running": [], "queue_pending": []})
        api.get(f"{BASE}/history/{ID}", json={ID: entry()})
        assert accepted(deaf.fetch(ID)).status == SUCCEEDED

    def test_asks_for_no_queue_when_the_history_knows(self, deaf, api):
        api.get(f"{BASE}/history/{ID}", json={ID: entry()})
        assert accepted(deaf.fetch(ID)).outputs == ("a.png",)

    @pytest.mark.parametrize("body", ["<html></html>", "[]", '{"other": {}}', f'{{"{ID}": 5}}'])
    def test_of_an_answer_that_makes_no_sense_is_a_failure(self, deaf, api, body):
        api.get(f"{BASE}/history/{ID}", body=body)
        assert refused(deaf.fetch(ID)).error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @pytest.mark.parametrize("body", ["<html></html>", "{}", '{"queue_running": [], "x": 1}'])
    def test_of_a_queue_that_makes_no_sense_is_a_failure(self, deaf, api, body):
        api.get(f"{BASE}/history/{ID}", json={})
        api.get(f"{BASE}/queue", body=body)
        assert refused(deaf.fetch(ID)).error_class == ErrorClass.PROVIDER_UNAVAILABLE

    def test_passes_over_entries_of_the_queue_that_make_no_sense(self, deaf, api):
        api.get(f"{BASE}/history/{ID}", json={})
        pending = [5, [], [1], ["x", "other"], [10**400, "other"], [7, ID]]
        api.get(f"{BASE}/queue", json={"queue_running": [[None]], "queue_pending": pending})
        assert accepted(deaf.fetch(ID)).raw == {"before_it": 2}

    def test_takes_a_queue_as_large_as_it_gets(self, deaf, api):
        api.get(f"{BASE}/history/{ID}", json={})
        pending = [[n, f"other {n}", {"1": "x" * 50_000}] for n in range(120)]
        api.get(f"{BASE}/queue", json={"queue_running": [], "queue_pending": [*pending, [200, ID]]})
        assert accepted(deaf.fetch(ID)).raw == {"before_it": 120}


class TestCancel:
    def test_takes_what_waits_out_of_the_queue_and_touches_no_other(self, comfy, sim):
        sim.fault("hang")
        running, waiting, other = (accepted(comfy.submit(request())).id for _ in range(3))
        eventually(lambda: accepted(comfy.fetch(running)).status == RUNNING, "it runs")
        for _ in range(2):
            found = accepted(comfy.cancel(waiting))
            assert found.failure is not None
            assert found.failure.error_class == ErrorClass.CANCELED
        assert accepted(comfy.fetch(running)).status == RUNNING
        assert accepted(comfy.fetch(other)).status == STARTING
        # It is in neither queue nor history, like what a restart has lost.
        found = accepted(comfy.fetch(waiting))
        assert found.failure is not None
        assert found.failure.error_class == ErrorClass.CANCELED

    def test_interrupts_what_runs(self, comfy, sim):
        sim.fault("hang")
        submitted = accepted(comfy.submit(request()))
        eventually(lambda: accepted(comfy.fetch(submitted.id)).status == RUNNING, "it runs")
        accepted(comfy.cancel(submitted.id))
        found = ended(comfy, submitted.id)
        assert found.failure is not None
        assert found.failure.error_class == ErrorClass.CANCELED
        assert found.run_s is not None

    def test_of_what_has_ended_changes_nothing(self, comfy):
        done = ended(comfy, accepted(comfy.submit(request())).id)
        assert accepted(comfy.cancel(done.id)).outputs == done.outputs

    def test_interrupts_nothing_by_a_server_that_does_not_know_which(self, deaf, api):
        """Servers older than the id of this call interrupt whatever runs."""
        api.post(f"{BASE}/queue")
        api.get(f"{BASE}/history/{ID}", json={})
        queue = {"queue_running": [[1, "somebody's"]], "queue_pending": []}
        api.get(f"{BASE}/queue", json=queue)
        assert accepted(deaf.cancel(ID)).is_terminal
        assert not any("/interrupt" in call.request.url for call in api.calls)

    def test_sends_no_interrupt_for_what_waits(self, deaf, api):
        api.post(f"{BASE}/queue")
        api.get(f"{BASE}/history/{ID}", json={})
        queue = {"queue_running": [[1, "somebody's"]], "queue_pending": [[2, ID]]}
        api.get(f"{BASE}/queue", json=queue)
        assert accepted(deaf.cancel(ID)).status == STARTING
        assert not any("/interrupt" in call.request.url for call in api.calls)


class TestFind:
    def find(self, provider, asked):
        return provider.find(asked, since=AT, until=AT)

    def test_knows_a_submission_by_its_token_alone(self, comfy, sim):
        sim.fault("hang")
        mine, other = request(), request()
        accepted(comfy.submit(mine))
        accepted(comfy.submit(other))
        for asked in (mine, other):
            (found,) = self.find(comfy, asked)
            assert found.id == asked.token
        assert self.find(comfy, request()) == ()

    def test_of_one_that_the_server_has_forgotten_gives_nothing(self, comfy, sim):
        asked = request()
        ended(comfy, accepted(comfy.submit(asked)).id)
        sim.request("POST", "/_sim/comfyui/restart")
        assert self.find(comfy, asked) == ()

    def test_that_cannot_be_answered_leaves_it_open(self, comfy, sim):
        sim.fault("hang")
        sim.fault("list_status", status=503)
        asked = request()
        accepted(comfy.submit(asked))
        failure = refused(self.find(comfy, asked))
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE


class TestEntry:
    """What becomes of an entry of the history."""

    def test_of_a_success_has_files_and_times(self):
        found = read_entry(ID, entry(submitted_at=500))
        assert (found.id, found.status, found.progress) == (ID, SUCCEEDED, 100)
        assert found.outputs == ("a.png",)
        assert (found.run_s, found.total_s) == (2.5, 3.0)
        assert found.billed_images is None

    @pytest.mark.parametrize(
        ("extra_data", "total_s"),
        [
            ({"create_time": 900, "submitted_at": 500}, 2.6),
            ({}, 2.5),
            # By a clock that is ahead of the server's.
            ({"submitted_at": 3_000}, 2.5),
            ({"submitted_at": 9_000}, 2.5),
            ({"submitted_at": "soon"}, 2.5),
        ],
    )
    def test_is_as_old_as_the_server_says_or_else_we_do(self, extra_data, total_s):
        assert read_entry(ID, entry(**extra_data)).total_s == pytest.approx(total_s)

    @pytest.mark.parametrize(
        "messages",
        [
            None,
            5,
            [],
            [5, ["execution_start"], ["execution_start", 5]],
            [["execution_start", {}], ["execution_success", {}]],
            [["execution_start", at(3500)], ["execution_success", at(1000)]],
            [["execution_start", at("x")], ["execution_success", at(True)]],
            [["execution_start", at(10**400)], ["execution_success", at(10**400)]],
            [["execution_start", at(0)], ["execution_success", at(604_800_001)]],
        ],
    )
    def test_without_good_times_has_none(self, messages):
        made = entry()
        made["status"]["messages"] = messages
        found = read_entry(ID, made)
        assert (found.status, found.run_s, found.total_s) == (SUCCEEDED, None, None)

    def test_lists_files_by_the_order_of_nodes_and_images(self):
        outputs = {
            "12": {"images": [image("c.png")]},
            "9": {"images": [image("a.png", "sub/folder"), image("b.png")]},
            "77": {"images": [image("d.png")]},
        }
        found = read_entry(ID, entry(outputs=outputs))
        assert found.outputs == ("sub/folder/a.png", "b.png", "c.png", "d.png")

    def test_leaves_out_previews_and_what_is_no_image(self):
        outputs = {
            "9": {"images": [image("p.png", type="temp"), image("i.png", type="input"), 5]},
            "10": {"text": ["hello"]},
            "11": 5,
            "12": {"images": [image("a.png")]},
        }
        assert read_entry(ID, entry(outputs=outputs)).outputs == ("a.png",)

    @pytest.mark.parametrize(
        "outputs",
        [
            {},
            5,
            {"9": {"images": []}},
            {"9": {"images": [image("p.png", type="temp")]}},
            {"9": {"images": [image(5)]}},
            {"9": {"images": [image("")]}},
            {"9": {"images": [image("a.png", subfolder=5)]}},
            {"9": {"images": [image("../a.png")]}},
            {"9": {"images": [image("a" * 600)]}},
            {"9": {"images": [image("a.png")] * 60}, "10": {"images": [image("b.png")] * 41}},
        ],
    )
    def test_without_a_good_file_is_a_failure(self, outputs):
        found = read_entry(ID, entry(outputs=outputs))
        assert found.failure is not None
        assert found.failure.error_class == ErrorClass.BAD_OUTPUT
        assert found.outputs == ()

    def test_that_was_interrupted_is_cancelled(self):
        interrupted = at(3500, node_id="3", node_type="KSampler", executed=[])
        messages = [["execution_start", at(1000)], ["execution_interrupted", interrupted]]
        found = read_entry(ID, entry(status_str="error", messages=messages))
        assert found.failure is not None
        assert found.failure.error_class == ErrorClass.CANCELED
        assert (found.run_s, found.outputs) == (2.5, ())

    @pytest.mark.parametrize(
        ("exception_type", "message", "expected"),
        [
            ("torch.OutOfMemoryError", "Allocation on device", ErrorClass.OUT_OF_MEMORY),
            ("torch.cuda.OutOfMemoryError", "", ErrorClass.OUT_OF_MEMORY),
            ("RuntimeError", "CUDA error: out of memory", ErrorClass.OUT_OF_MEMORY),
            ("RuntimeError", "HIP out of memory. Tried", ErrorClass.OUT_OF_MEMORY),
            ("PIL.UnidentifiedImageError", "cannot identify", ErrorClass.INVALID_INPUT),
            ("FileNotFoundError", "[Errno 2] No such file", ErrorClass.NOT_FOUND),
            ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied", ErrorClass.INVALID_INPUT),
            ("TimeoutError", "", ErrorClass.TIMEOUT_RUN),
            ("Exception", "Content policy violation", ErrorClass.CONTENT_POLICY),
            ("ValueError", "anything", ErrorClass.UNKNOWN),
            ("RuntimeError", "CUDA error: device-side assert triggered", ErrorClass.UNKNOWN),
            (None, None, ErrorClass.UNKNOWN),
        ],
    )
    def test_that_failed_is_of_a_class_by_its_text(self, exception_type, message, expected):
        found = failed(exception_type, message)
        assert found.failure is not None
        assert found.failure.error_class == expected
        assert found.run_s == 2.5
        assert found.progress is None

    def test_that_failed_is_quoted_without_what_is_nobodys_business(self):
        found = failed("odd.ValueError", "No <b> in '/home/me/ComfyUI/models/a.pt'\nmore\n")
        assert found.failure is not None
        assert found.failure.message == "The workflow failed: No b in 'a.pt'"
        assert found.failure.provider_code == "ValueError"
        assert "KSampler (3)" in found.failure.raw
        assert "secret" not in json.dumps(found.raw) + found.failure.raw

    def test_that_failed_is_cut_to_size(self):
        found = failed("ValueError", "x" * 100_000)
        assert found.failure is not None
        assert len(found.failure.message) <= 300
        assert len(found.failure.raw) <= RAW_LIMIT
        assert len(json.dumps(found.raw)) < 20_000

    @pytest.mark.parametrize("changes", [{"status": None}, {"status": 5}, {"prompt": None}])
    def test_of_an_old_server_is_read_as_far_as_it_goes(self, changes):
        assert read_entry(ID, {**entry(), **changes}).outputs == ("a.png",)


class TestDownload:
    def test_asks_for_the_file_by_name_folder_and_kind(self, deaf, api):
        api.get(f"{BASE}/view", body=b"bytes", content_type="image/png")
        sink = io.BytesIO()
        answer = deaf.download("sub/folder/a b.png", sink, prediction_id=ID, max_bytes=100)
        assert isinstance(answer, Downloaded)
        assert sink.getvalue() == b"bytes"
        query = parse_qs(urlsplit(api.calls[0].request.url).query)
        assert query == {"filename": ["a b.png"], "subfolder": ["sub/folder"], "type": ["output"]}

    def test_keeps_the_folders_of_a_server_on_windows(self, deaf, api):
        api.get(f"{BASE}/view", body=b"bytes")
        deaf.download("sub\\folder/a.png", io.BytesIO(), prediction_id=ID, max_bytes=100)
        query = parse_qs(urlsplit(api.calls[0].request.url).query)
        assert query["subfolder"] == ["sub\\folder"]

    @pytest.mark.parametrize(
        "output", ["", "/", "../../etc/passwd", "data:image/png;base64,AAAA", "http://10.0.0.1/x"]
    )
    def test_goes_nowhere_else_whatever_the_name(self, deaf, api, output):
        api.get(f"{BASE}/view", status=404)
        failure = refused(deaf.download(output, io.BytesIO(), prediction_id=ID, max_bytes=100))
        assert failure.error_class == ErrorClass.OUTPUT_EXPIRED
        assert len(api.calls) == 1

    @pytest.mark.parametrize("base", ["http://comfyui.test", "http://[::1]:8188"])
    def test_follows_a_redirect_to_the_same_server(self, http, api, base):
        api.get(f"{base}/view", status=302, headers={"Location": f"{base}/elsewhere.png"})
        api.get(f"{base}/elsewhere.png", body=b"bytes")
        provider = ComfyUIProvider(base, http=http, listens=False)
        answer = provider.download("a.png", io.BytesIO(), prediction_id=ID, max_bytes=100)
        assert isinstance(answer, Downloaded)

    @pytest.mark.parametrize("location", ["http://comfyui.test:6379/", "http://10.0.0.1/"])
    def test_follows_no_redirect_to_another_server(self, http, api, location):
        api.get("http://comfyui.test/view", status=302, headers={"Location": location})
        provider = ComfyUIProvider("http://comfyui.test", http=http, listens=False)
        answer = provider.download("a.png", io.BytesIO(), prediction_id=ID, max_bytes=100)
        assert refused(answer).error_class == ErrorClass.BAD_OUTPUT


class TestWebhooks:
    def test_are_never_from_this_provider(self, deaf):
        assert deaf.read({"id": ID, "status": "succeeded"}) is None
        refusal = deaf.verify_webhook({}, b"{}", now_s=0)
        assert refusal == WebhookRefusal.NOT_A_PREDICTION


class TestCheck:
    def test_of_something_that_is_not_comfyui_fails(self, deaf, api):
        for body in ("<html></html>", "[]", '{"status": "ok"}'):
            api.get(f"{BASE}/system_stats", body=body)
            failure = deaf.check()
            assert failure is not None
            assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE


class TestSchema:
    def schema(self, sim, http, workflow):
        url = f"{sim.url}/comfyui"
        provider = ComfyUIProvider(url, http=http, listens=False, workflow_of=lambda _: workflow)
        return provider.live_schema(MODEL)

    def test_is_what_the_installed_nodes_take(self, sim, http):
        schema = self.schema(sim, http, IMAGE_TO_IMAGE)
        assert schema["prompt"] == {"type": "string"}
        assert schema["seed"] == {"type": "integer", "min": 0, "max": 2**64 - 1}
        assert schema["steps"] == {"type": "integer", "min": 1, "max": 10_000}
        assert schema["sampler"]["type"] == "enum"
        assert "euler" in schema["sampler"]["choices"]
        assert "sd_xl_base_1.0.safetensors" in schema["checkpoint"]["choices"]
        assert schema["images"] == {"type": "file"}
        assert schema.keys() == IMAGE_TO_IMAGE.bindings.keys()

    def test_of_a_number_with_a_fraction_says_so(self, sim, http):
        workflow = replace(TEXT_TO_IMAGE, bindings={"cfg": (("3", "cfg"), ("77", "nowhere"))})
        schema = self.schema(sim, http, workflow)
        assert schema == {"cfg": {"type": "number", "min": 0.0, "max": 100.0}}

    def test_names_a_node_that_is_not_installed(self, sim, http):
        nodes = {"1": {"class_type": "SomebodysNode", "inputs": {}}}
        failure = refused(self.schema(sim, http, Workflow(nodes, {"x": (("1", "y"),)})))
        assert failure.error_class == ErrorClass.NOT_FOUND
        assert "SomebodysNode" in failure.message

    def test_is_nothing_for_an_input_that_the_node_does_not_have(self, sim, http):
        workflow = replace(TEXT_TO_IMAGE, bindings={"odd": (("3", "odd"),)})
        assert self.schema(sim, http, workflow) == {"odd": {}}

    def test_takes_choices_in_the_newer_form(self, http, api):
        spec = ["COMBO", {"options": ["a", "b"]}]
        body = {"X": {"input": {"required": {}, "optional": {"y": spec}}}}
        api.get(f"{BASE}/object_info/X", json=body)
        nodes = {"1": {"class_type": "X", "inputs": {}}}
        workflow = Workflow(nodes, {"x": (("1", "y"),)})
        provider = ComfyUIProvider(BASE, http=http, workflow_of=lambda _: workflow)
        assert provider.live_schema(MODEL) == {"x": {"type": "enum", "choices": ["a", "b"]}}

    def test_is_not_published_where_no_workflow_is_known(self, deaf):
        assert deaf.live_schema(MODEL) is None


class TestProgress:
    def session(self):
        session = comfyui._Session(BASE)
        session.follow(ID, 2, listens=False)
        return session

    def step(self, value, most, node="3", **data):
        message = {"value": value, "max": most, "node": node, "prompt_id": ID, **data}
        return {"type": "progress", "data": message}

    def test_grows_with_the_steps_until_it_is_done(self, comfy, sim):
        sim.configure(run_seconds=1)
        submitted = accepted(comfy.submit(request()))
        seen = []

        def look():
            found = accepted(comfy.fetch(submitted.id))
            seen.append(found.progress)
            return found.is_terminal

        eventually(look, "it ended")
        told = [one for one in seen if one is not None]
        assert told == sorted(told)
        assert told[-1] == 100
        assert len(set(told)) > 2

    def test_of_several_samplers_is_that_of_all(self):
        session = self.session()
        seen = []
        for message in (
            {"type": "execution_start", "data": {"prompt_id": ID}},
            self.step(10, 20),
            self.step(20, 20),
            self.step(1, 4, node="5"),
            self.step(4, 4, node="5"),
        ):
            session.hear(message)
            seen.append(session.percent(ID))
        # A hundred is for what the server says is done.
        assert seen == [0, 25, 50, 62, 99]

    def test_never_goes_back(self):
        session = self.session()
        for message in (
            self.step(20, 20),
            self.step(20, 20, node="5"),
            self.step(1, 9, node="of its own"),
            self.step(1, 20),
        ):
            session.hear(message)
        assert session.percent(ID) == 99

    @pytest.mark.parametrize(
        "message",
        [
            None,
            [],
            {},
            {"type": "progress"},
            {"type": "progress", "data": {"prompt_id": ID}},
            {"type": "progress", "data": {"prompt_id": ID, "value": "x", "max": 2}},
            {"type": "progress", "data": {"prompt_id": ID, "value": 1, "max": 0}},
            {"type": "progress", "data": {"prompt_id": "somebody's", "value": 1, "max": 2}},
            {"type": "progress", "data": {"prompt_id": [], "value": 1, "max": 2}},
            {"type": 5, "data": {"prompt_id": ID}},
            {"type": "progress", "data": {"prompt_id": ID, "value": 10**400, "max": 10**400}},
        ],
    )
    def test_heeds_no_message_that_makes_no_sense(self, message):
        session = self.session()
        session.hear(message)
        assert (session.percent(ID), session.percent("somebody's")) == (None, None)

    def test_is_kept_of_so_many_prompts_only(self, monkeypatch):
        monkeypatch.setattr(comfyui, "FOLLOWED_LIMIT", 3)
        session = comfyui._Session(BASE)
        for number in range(5):
            session.follow(str(number), 1, listens=False)
            session.hear(self.step(1, 2, prompt_id=str(number)))
        assert [session.percent(str(number)) for number in range(5)] == [None, None, 50, 50, 50]

    def test_comes_again_after_the_connection_was_lost(self, comfy, sim):
        sim.fault("hang", prompt="first")
        first = accepted(comfy.submit(request("first")))
        eventually(lambda: accepted(comfy.fetch(first.id)).progress is not None, "it is heard of")
        sim.request("POST", "/_sim/comfyui/restart")

        def heard_again():
            sim.fault("hang", prompt="another")
            submitted = accepted(comfy.submit(request("another")))
            eventually(lambda: accepted(comfy.fetch(submitted.id)).status == RUNNING, "it runs")
            is_heard = accepted(comfy.fetch(submitted.id)).progress is not None
            comfy.cancel(submitted.id)
            return is_heard

        eventually(heard_again, "it is heard of again")

    def test_is_asked_for_past_any_proxy(self, comfy, sim, monkeypatch, refused_url):
        monkeypatch.setenv("http_proxy", refused_url)
        monkeypatch.setenv("no_proxy", "example.test")
        sim.fault("hang")
        submitted = accepted(comfy.submit(request()))
        eventually(
            lambda: accepted(comfy.fetch(submitted.id)).progress is not None, "it is heard of"
        )

    def test_is_never_waited_for(self, http, serve, answer):
        """The server takes prompts, but leaves whoever wants to listen without an answer."""

        def script(sock, received, server):
            if received.path.startswith("/ws"):
                server.hang()
                return False
            sock.sendall(answer(json.dumps({"prompt_id": ID}).encode()))
            return True

        server = serve(script)
        provider = ComfyUIProvider(server.url(""), http=http)
        started = time.monotonic()
        assert accepted(provider.submit(request(token=ID))).id == ID
        assert time.monotonic() - started < 3
        eventually(lambda: any("/ws" in one.path for one in server.requests), "it tries to listen")

    def test_is_listened_for_by_one_thread_without_credentials_or_origin(self, http, serve, answer):
        def script(sock, received, server):
            if received.path.startswith("/ws"):
                sock.sendall(answer(b"", status="503 Service Unavailable"))
                return False
            sock.sendall(answer(json.dumps({"prompt_id": ID}).encode()))
            return True

        server = serve(script)
        before = listeners()
        provider = ComfyUIProvider(server.url("/api"), http=http)
        for _ in range(3):
            accepted(provider.submit(request()))
        assert len(listeners(before)) == 1
        asked = eventually(
            lambda: next((one for one in server.requests if "/ws" in one.path), None), "it listens"
        )
        assert asked.path.startswith("/api/ws?clientId=picture-")
        assert "origin" not in asked.headers
        client_ids = {json.loads(one.body)["client_id"] for one in server.requests if one.body}
        assert client_ids == {asked.path.partition("=")[2]}
        provider.close()
        assert not listeners(before)

    def test_is_not_listened_for_when_there_is_nothing_to_hear(self, comfy, sim, monkeypatch):
        monkeypatch.setattr(comfyui, "LISTEN_IDLE_S", 0.1)
        monkeypatch.setattr(comfyui, "LISTEN_TIMEOUT_S", 0.05)
        before = listeners()
        ended(comfy, accepted(comfy.submit(request())).id)
        eventually(lambda: not listeners(before), "the listener has ended")
        sim.fault("hang")
        accepted(comfy.submit(request("another")))
        assert len(listeners(before)) == 1

    def test_is_not_listened_for_when_the_provider_is_gone(self, sim, http):
        before = listeners()
        provider = ComfyUIProvider(f"{sim.url}/comfyui", http=http)
        sim.fault("hang")
        accepted(provider.submit(request()))
        assert len(listeners(before)) == 1
        gone = weakref.ref(provider)
        del provider
        gc.collect()
        assert gone() is None
        eventually(lambda: not listeners(before), "the listener has ended")

    def test_is_heard_by_a_child_of_the_process_as_well(self, comfy, sim):
        sim.fault("hang")
        parents = accepted(comfy.submit(request()))
        eventually(lambda: accepted(comfy.fetch(parents.id)).progress is not None, "it is heard of")
        comfy.cancel(parents.id)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                submitted = accepted(comfy.submit(request("of the child")))
                eventually(
                    lambda: accepted(comfy.fetch(submitted.id)).progress is not None, "heard of"
                )
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        clients = {charge["owner"] for charge in sim.ledger()["charges"]}
        assert len(clients) == 2
