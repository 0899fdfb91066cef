"""RunPod's API as it is documented: routes, statuses, limits, what is forgotten, webhooks."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
from PIL import Image

from tests.simulator.runpod_support import (
    KEY,
    RunPodClient,
    image_workflow,
    noise_png,
    text_workflow,
)
from tests.simulator.support import Receiver, Simulator, eventually

HELD = 3600


@pytest.fixture
def pod(sim: Simulator) -> RunPodClient:
    return RunPodClient(sim)


class TestJobs:
    def test_a_job_waits_runs_and_completes_with_its_times(self, pod: RunPodClient) -> None:
        pod.sim.configure(queue_seconds=HELD)
        job_id = pod.run()
        assert re.fullmatch(r"[0-9a-f-]{36}-u1", job_id)
        assert pod.status(job_id) == {"id": job_id, "status": "IN_QUEUE"}
        pod.sim.configure(queue_seconds=0.1, run_seconds=HELD)
        running = pod.reached(pod.run(), "IN_PROGRESS")
        assert running.keys() == {"id", "status", "delayTime", "workerId"}
        assert running["delayTime"] >= 90
        pod.sim.configure(queue_seconds=0, run_seconds=0.3)
        done = pod.ended(pod.run())
        assert done.keys() == {*running, "executionTime", "output"}
        assert done["status"] == "COMPLETED"
        assert done["executionTime"] >= 290

    def test_the_output_has_as_many_images_as_the_batch_of_the_size_asked_for(
        self, pod: RunPodClient
    ) -> None:
        done = pod.ended(pod.run(text_workflow(images=3, width=96, height=48)))
        images = done["output"]["images"]
        assert [image["type"] for image in images] == ["base64"] * 3
        assert [image["filename"] for image in images] == [
            f"ComfyUI_{number:05}_.png" for number in (1, 2, 3)
        ]
        assert "errors" not in done["output"]
        for index in range(3):
            with Image.open(io.BytesIO(pod.image(done, index))) as image:
                assert (image.format, image.size) == ("PNG", (96, 48))
        assert pod.image(done, 0) != pod.image(done, 1)
        assert pod.ended(done["id"]) == done

    def test_files_that_come_with_a_job_are_used_by_its_workflow(self, pod: RunPodClient) -> None:
        red = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(red, "PNG")
        text = base64.b64encode(red.getvalue()).decode()
        for sent in (text, f"data:image/png;base64,{text}"):
            job_input = {
                "workflow": image_workflow("in.png"),
                "images": [{"name": "in.png", "image": sent}],
            }
            done = pod.ended(pod.run(input=job_input))
            with Image.open(io.BytesIO(pod.image(done))) as image:
                assert image.size == (32, 16)
                assert image.getpixel((0, 0)) == (255, 0, 0)

    def test_jobs_wait_for_a_worker_to_be_free(self, pod: RunPodClient) -> None:
        pod.configure(workers=1)
        pod.sim.configure(run_seconds=HELD)
        first = pod.run()
        pod.reached(first, "IN_PROGRESS")
        second = pod.run()
        health = pod.call("GET", "health").json()
        assert (health["jobs"]["inQueue"], health["workers"]["idle"]) == (1, 0)
        pod.call("POST", f"cancel/{first}")
        pod.reached(second, "IN_PROGRESS")
        assert pod.sim.stats()["max_running"] == 1

    def test_an_endpoint_without_workers_leaves_its_jobs_in_line(self, pod: RunPodClient) -> None:
        pod.configure(workers=0)
        pod.run()
        health = pod.call("GET", "health").json()
        assert health["jobs"]["inQueue"] == 1
        assert not any(health["workers"].values())

    def test_health_counts_jobs_and_workers(self, pod: RunPodClient) -> None:
        assert pod.call("GET", "health").json() == {
            "jobs": {"completed": 0, "failed": 0, "retried": 0, "inProgress": 0, "inQueue": 0},
            "workers": {
                "idle": 1,
                "running": 0,
                "initializing": 0,
                "ready": 0,
                "throttled": 0,
                "unhealthy": 0,
            },
        }
        pod.ended(pod.run())
        pod.ended(pod.run({}))
        pod.sim.configure(run_seconds=HELD)
        pod.reached(pod.run(), "IN_PROGRESS")
        health = pod.call("GET", "health").json()
        assert (health["jobs"]["completed"], health["jobs"]["failed"]) == (1, 1)
        assert (health["jobs"]["inProgress"], health["workers"]["running"]) == (1, 1)

    def test_progress_is_reported_when_the_worker_does(self, pod: RunPodClient) -> None:
        pod.configure(progress=True)
        pod.sim.configure(run_seconds=20)
        job_id = pod.run()
        output = pod.reached(job_id, "IN_PROGRESS")["output"]
        assert output.keys() == {"type", "value", "max", "percent", "node"}
        assert output["type"] == "progress"
        eventually(lambda: pod.status(job_id)["output"]["percent"] >= 5, "progress")

    def test_endpoints_have_jobs_and_counts_of_their_own(self, pod: RunPodClient) -> None:
        job_id = pod.run()
        other = RunPodClient(pod.sim, endpoint="e2")
        assert other.is_gone(job_id)
        assert other.call("GET", "health").json()["jobs"]["completed"] == 0


class TestEnds:
    @pytest.mark.parametrize("state", ["IN_QUEUE", "IN_PROGRESS"])
    def test_a_job_can_be_cancelled(self, pod: RunPodClient, state: str) -> None:
        held = "queue_seconds" if state == "IN_QUEUE" else "run_seconds"
        pod.sim.configure(**{held: HELD})
        job_id = pod.run()
        pod.reached(job_id, state)
        answer = pod.call("POST", f"cancel/{job_id}").json()
        assert answer == {"id": job_id, "status": "CANCELLED"}
        assert pod.status(job_id)["status"] == "CANCELLED"
        assert pod.sim.ledger()["count"] == (state == "IN_PROGRESS")

    def test_cancelling_what_has_ended_changes_nothing(self, pod: RunPodClient) -> None:
        done = pod.ended(pod.run())
        assert pod.call("POST", f"cancel/{done['id']}").json()["status"] == "COMPLETED"
        assert pod.status(done["id"]) == done

    def test_an_execution_that_takes_too_long_times_out(self, pod: RunPodClient) -> None:
        pod.configure(policy_scale=0.01)
        pod.sim.configure(run_seconds=HELD)
        done = pod.ended(pod.run(policy={"executionTimeout": 6000}))
        assert done["status"] == "TIMED_OUT"
        assert done["executionTime"] >= 60
        assert "output" not in done

    @pytest.mark.parametrize("held", ["queue_seconds", "run_seconds"])
    def test_a_job_vanishes_at_the_end_of_its_time_to_live(
        self, pod: RunPodClient, held: str
    ) -> None:
        pod.configure(policy_scale=0.01)
        pod.sim.configure(**{held: HELD})
        job_id = pod.run(policy={"ttl": 10_000, "executionTimeout": 60_000})
        eventually(lambda: pod.is_gone(job_id), "gone")
        assert pod.sim.stats()["in_flight"] == 0

    def test_the_time_to_live_can_be_set_by_a_look(self, pod: RunPodClient) -> None:
        pod.sim.configure(queue_seconds=HELD)
        job_id = pod.run()
        assert pod.call("GET", f"status/{job_id}?ttl=50").json()["status"] == "IN_QUEUE"
        eventually(lambda: pod.is_gone(job_id), "gone")

    def test_results_are_kept_for_a_while_only(self, pod: RunPodClient) -> None:
        assert pod.sim.request("GET", "/_sim/runpod/settings").json()["result_seconds"] == 1800
        pod.configure(result_seconds=0.2)
        job_id = pod.run()
        eventually(lambda: pod.is_gone(job_id), "gone")
        assert pod.sim.ledger()["charges"][0]["status"] == "succeeded"

    def test_what_failed_or_timed_out_can_be_run_again_under_its_id(
        self, pod: RunPodClient
    ) -> None:
        pod.configure(policy_scale=0.01)
        pod.sim.configure(run_seconds=HELD)
        job_id = pod.run(policy={"executionTimeout": 6000})
        assert pod.ended(job_id)["status"] == "TIMED_OUT"
        pod.sim.configure(run_seconds=0)
        answer = pod.call("POST", f"retry/{job_id}")
        assert answer.json() == {"id": job_id, "status": "IN_QUEUE"}
        assert pod.ended(job_id)["status"] == "COMPLETED"
        assert pod.call("GET", "health").json()["jobs"]["retried"] == 1
        assert pod.sim.ledger()["count"] == 2
        assert pod.call("POST", f"retry/{job_id}").status_code == 400

    def test_the_queue_can_be_purged_of_what_waits(self, pod: RunPodClient) -> None:
        pod.configure(workers=1)
        pod.sim.configure(run_seconds=HELD)
        running = pod.run()
        pod.reached(running, "IN_PROGRESS")
        waiting = [pod.run(), pod.run()]
        answer = pod.call("POST", "purge-queue").json()
        assert answer == {"removed": 2, "status": "completed"}
        assert all(pod.is_gone(job_id) for job_id in waiting)
        assert pod.status(running)["status"] == "IN_PROGRESS"


class TestRunsync:
    def test_answers_with_the_finished_job(self, pod: RunPodClient) -> None:
        done = pod.call("POST", "runsync", json={"input": {"workflow": text_workflow()}}).json()
        assert done["status"] == "COMPLETED"
        assert done["id"].startswith("sync-")
        assert len(done["output"]["images"]) == 1

    def test_answers_with_the_status_when_the_wait_is_over(self, pod: RunPodClient) -> None:
        pod.sim.configure(run_seconds=HELD)
        body = {"input": {"workflow": text_workflow()}}
        answer = pod.call("POST", "runsync?wait=1000", json=body).json()
        assert answer.keys() == {"id", "status"}
        assert answer["status"] == "IN_PROGRESS"

    def test_its_result_is_kept_for_a_minute(self, pod: RunPodClient) -> None:
        settings = pod.sim.request("GET", "/_sim/runpod/settings").json()
        assert settings["sync_result_seconds"] == 60
        pod.configure(sync_result_seconds=0.1)
        body = {"input": {"workflow": text_workflow()}}
        job_id = pod.call("POST", "runsync", json=body).json()["id"]
        eventually(lambda: pod.is_gone(job_id), "gone")

    @pytest.mark.parametrize("wait", ["999", "300001", "soon"])
    def test_the_wait_has_bounds(self, pod: RunPodClient, wait: str) -> None:
        body = {"input": {"workflow": text_workflow()}}
        assert pod.call("POST", f"runsync?wait={wait}", json=body).status_code == 400
        assert pod.sim.stats()["in_flight"] == 0


class TestRefusals:
    @pytest.mark.parametrize("key", ["", "Bearer ", "Bearer r8_other", "nonsense"])
    def test_without_a_key_nothing_is_told(self, sim: Simulator, key: str) -> None:
        response = sim.request("GET", "/v2/e1/health", headers={"Authorization": key})
        assert response.status_code == 401

    def test_the_bare_key_is_enough(self, sim: Simulator) -> None:
        response = sim.request("GET", "/v2/e1/health", headers={"Authorization": KEY})
        assert response.status_code == 200

    def test_an_unknown_endpoint_is_not_found(self, pod: RunPodClient) -> None:
        pod.configure(endpoints="e2,e3")
        assert pod.call("POST", "run", json={"input": {}}).status_code == 404
        assert RunPodClient(pod.sim, endpoint="e3").call("GET", "health").status_code == 200

    @pytest.mark.parametrize("path", ["status/x", "stream/x"])
    def test_an_unknown_job_is_not_found(self, pod: RunPodClient, path: str) -> None:
        assert pod.call("GET", path).status_code == 404
        assert pod.call("POST", f"cancel/{path}").status_code == 404

    def test_status_is_asked_by_get_only(self, pod: RunPodClient) -> None:
        assert pod.call("POST", f"status/{pod.run()}").status_code == 405

    @pytest.mark.parametrize(
        "body",
        [
            "nonsense",
            "[]",
            "{}",
            '{"input": []}',
            '{"input": {}, "webhook": "ftp://x"}',
            '{"input": {}, "policy": []}',
            '{"input": {}, "policy": {"executionTimeout": 4999}}',
            '{"input": {}, "policy": {"executionTimeout": 604800001}}',
            '{"input": {}, "policy": {"ttl": 9999}}',
            '{"input": {}, "policy": {"ttl": 604800001}}',
            '{"input": {}, "policy": {"ttl": "long"}}',
            '{"input": {}, "policy": {"lowPriority": 1}}',
        ],
    )
    def test_a_bad_body_is_refused(self, pod: RunPodClient, body: str) -> None:
        assert pod.call("POST", "run", data=body).status_code == 400
        assert pod.sim.stats()["timeline"][0]["answer"] == 400
        assert pod.sim.ledger()["count"] == 0

    @pytest.mark.parametrize("route", ["run", "runsync"])
    def test_a_body_that_is_too_large_is_refused(self, pod: RunPodClient, route: str) -> None:
        settings = pod.sim.request("GET", "/_sim/runpod/settings").json()
        assert settings["run_max_bytes"] == 10 * 1024 * 1024
        assert settings["runsync_max_bytes"] == 20 * 1024 * 1024
        body = json.dumps({"input": {"workflow": text_workflow()}, "x": ""})
        pod.configure(**{f"{route}_max_bytes": len(body)})
        assert pod.call("POST", route, data=body).status_code == 200
        refused = pod.call("POST", route, data=body + " ")
        assert refused.status_code == 400
        assert "max body size" in refused.json()["error"]

    @pytest.mark.parametrize(
        ("operation", "method", "path", "documented"),
        [
            ("run", "POST", "run", 1000),
            ("runsync", "POST", "runsync", 2000),
            ("status", "GET", "status/x", 2000),
            ("cancel", "POST", "cancel/x", 100),
            ("purge", "POST", "purge-queue", 2),
        ],
    )
    def test_too_many_calls_of_one_sort_are_refused(
        self, pod: RunPodClient, operation: str, method: str, path: str, documented: int
    ) -> None:
        settings = pod.sim.request("GET", "/_sim/runpod/settings").json()
        assert settings[f"{operation}_per_10s"] == documented
        pod.configure(**{f"{operation}_per_10s": 1})
        body = {"json": {"input": {"workflow": text_workflow()}}} if method == "POST" else {}
        assert pod.call(method, path, **body).status_code != 429
        refused = pod.call(method, path, **body)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 10
        other = RunPodClient(pod.sim, endpoint="e2")
        assert other.call(method, path, **body).status_code != 429

    @pytest.mark.parametrize("status", [400, 401, 402, 404, 429, 500, 503])
    def test_a_rule_refuses_chosen_jobs(self, pod: RunPodClient, status: int) -> None:
        pod.sim.fault("create_status", prompt="cat", status=status, retry_after="3")
        body = {"input": {"workflow": text_workflow("a cat")}}
        refused = pod.call("POST", "run", json=body)
        assert (refused.status_code, refused.headers["Retry-After"]) == (status, "3")
        pod.run(text_workflow("a dog"))


class TestWorker:
    """What worker-comfyui answers; the texts are its own."""

    def test_warnings_come_beside_the_images(self, pod: RunPodClient) -> None:
        pod.sim.fault("short_output")
        done = pod.ended(pod.run(text_workflow(images=3)))
        assert done["status"] == "COMPLETED"
        assert len(done["output"]["images"]) == 2
        assert done["output"]["errors"] == [
            "Failed to fetch image data for ComfyUI_00003_.png from /view endpoint."
        ]

    def test_a_run_without_images_says_so_and_is_completed(self, pod: RunPodClient) -> None:
        pod.sim.fault("empty_output")
        done = pod.ended(pod.run())
        assert done["status"] == "COMPLETED"
        assert done["output"] == {"images": [], "status": "success_no_images"}

    def test_workers_before_version_5_answer_with_a_message(self, pod: RunPodClient) -> None:
        pod.configure(output_form="message")
        output = pod.ended(pod.run())["output"]
        assert output["status"] == "success"
        assert base64.b64decode(output["message"]).startswith(b"\x89PNG")

    def test_outputs_can_be_json_as_text_and_lists(self, pod: RunPodClient) -> None:
        pod.configure(output_form="json")
        assert len(json.loads(pod.ended(pod.run())["output"])["images"]) == 1
        pod.configure(output_form="list")
        (uri,) = pod.ended(pod.run())["output"]
        assert uri.startswith("data:image/png;base64,")

    def test_with_a_bucket_the_images_are_urls_of_files(self, pod: RunPodClient) -> None:
        pod.configure(bucket=True)
        done = pod.ended(pod.run(text_workflow(images=2)))
        for image in done["output"]["images"]:
            assert image["type"] == "s3_url"
            content = pod.sim.request("GET", image["data"], headers={"Authorization": None})
            assert content.content.startswith(b"\x89PNG")
        pod.call("GET", f"status/{done['id']}?ttl=1")
        eventually(lambda: pod.is_gone(done["id"]), "gone")
        assert pod.sim.request("GET", image["data"]).status_code == 200
        missing = image["data"].replace("1.png", "2.png")
        assert pod.sim.request("GET", missing).status_code == 404

    @pytest.mark.parametrize(
        ("job_input", "error"),
        [
            ({"prompt": "a cat"}, "Missing 'workflow' parameter"),
            (
                {"workflow": {}, "images": [{"name": "x"}]},
                "'images' must be a list of objects with 'name' and 'image' keys",
            ),
            ({"workflow": {}}, "Prompt has no outputs. Raw response: "),
            (
                {"workflow": {"1": {"class_type": "Unheard", "inputs": {}}}},
                "Cannot execute because node Unheard does not exist.. Raw response: ",
            ),
        ],
    )
    def test_an_input_it_cannot_use_fails_the_job(
        self, pod: RunPodClient, job_input: dict[str, object], error: str
    ) -> None:
        done = pod.ended(pod.run(input=job_input))
        assert done["status"] == "FAILED"
        assert done["error"].startswith(error)

    def test_a_model_that_is_not_installed_fails_the_validation(self, pod: RunPodClient) -> None:
        workflow = text_workflow()
        workflow["1"]["inputs"]["ckpt_name"] = "other.safetensors"
        done = pod.ended(pod.run(workflow))
        assert done["error"].startswith("Workflow validation failed:\n• Node 1 (errors): ")
        assert "value_not_in_list" in done["error"]

    def test_a_file_that_is_no_base64_fails_the_upload(self, pod: RunPodClient) -> None:
        images = [{"name": "a.png", "image": "abc"}]
        done = pod.ended(pod.run(input={"workflow": image_workflow("a.png"), "images": images}))
        assert done["error"] == "Failed to upload one or more input images"
        assert done["output"]["details"][0].startswith("Error decoding base64 for a.png")

    def test_a_node_that_fails_is_in_the_details(self, pod: RunPodClient) -> None:
        text = base64.b64encode(b"no image").decode()
        images = [{"name": "a.png", "image": text}]
        done = pod.ended(pod.run(input={"workflow": image_workflow("a.png"), "images": images}))
        assert done["error"] == "Job processing failed"
        assert "Workflow execution error" in done["output"]["details"][0]

    def test_an_exception_in_the_worker_is_json_as_text(self, pod: RunPodClient) -> None:
        pod.sim.fault("out_of_memory")
        error = json.loads(pod.ended(pod.run())["error"])
        assert error.keys() == {
            "error_type",
            "error_message",
            "error_traceback",
            "hostname",
            "worker_id",
            "runpod_version",
        }
        assert "CUDA out of memory" in error["error_message"]
        assert error["error_traceback"].startswith("Traceback (most recent call last):")

    def test_the_stream_has_the_output_in_pieces_of_a_megabyte(self, pod: RunPodClient) -> None:
        pod.sim.configure(queue_seconds=HELD)
        waiting = pod.call("GET", f"stream/{pod.run()}").json()
        assert waiting == {"status": "IN_QUEUE", "stream": []}
        pod.sim.configure(queue_seconds=0)
        done = pod.ended(pod.run())
        answers = [pod.call("GET", f"stream/{done['id']}").json() for _ in range(2)]
        assert answers == [
            {"status": "COMPLETED", "stream": [{"output": done["output"]}]},
            {"status": "COMPLETED", "stream": []},
        ]
        images = [{"name": "a.png", "image": base64.b64encode(noise_png(300)).decode()}]
        workflow = image_workflow("a.png", 700, 700)
        job_id = pod.run(input={"workflow": workflow, "images": images})
        output = pod.ended(job_id)["output"]
        pieces = [piece["output"] for piece in pod.call("GET", f"stream/{job_id}").json()["stream"]]
        assert len(pieces) > 1
        assert max(map(len, pieces)) == 1_000_000
        assert json.loads("".join(pieces)) == output


class TestWebhooks:
    def test_the_end_is_told_with_the_job_object(
        self, pod: RunPodClient, receiver: Receiver
    ) -> None:
        job_id = pod.run(webhook=receiver.url + "?token=x")
        (received,) = receiver.wait_for(1)
        assert json.loads(received.body) == pod.status(job_id)
        assert received.path == "/hook?token=x"
        assert not [name for name in received.headers if "signature" in name]

    @pytest.mark.parametrize("end", ["FAILED", "CANCELLED", "TIMED_OUT"])
    def test_other_ends_are_told_as_well(
        self, pod: RunPodClient, receiver: Receiver, end: str
    ) -> None:
        pod.configure(policy_scale=0.01)
        if end == "FAILED":
            pod.sim.fault("fail")
        else:
            pod.sim.configure(run_seconds=HELD)
        timeout_ms = 6000 if end == "TIMED_OUT" else 600_000
        job_id = pod.run(webhook=receiver.url, policy={"executionTimeout": timeout_ms})
        if end == "CANCELLED":
            pod.call("POST", f"cancel/{job_id}")
        assert json.loads(receiver.wait_for(1)[0].body)["status"] == end

    def test_anything_but_200_is_tried_twice_more(
        self, pod: RunPodClient, receiver: Receiver
    ) -> None:
        settings = pod.sim.request("GET", "/_sim/runpod/settings").json()
        assert settings["webhook_pause_seconds"] == 10
        pod.configure(webhook_pause_seconds=0.01)
        receiver.statuses = [204, 500, 404, 200]
        job_id = pod.run(webhook=receiver.url)
        bodies = {received.body for received in receiver.wait_for(3)}
        assert len(bodies) == 1

        def tries() -> list[int]:
            listed = pod.sim.request("GET", "/_sim/runpod/webhooks").json()["deliveries"]
            return [one["status"] for one in listed if one["job_id"] == job_id]

        eventually(lambda: tries() == [204, 500, 404], "three tries")

    def test_rules_drop_repeat_and_delay_them(self, pod: RunPodClient, receiver: Receiver) -> None:
        pod.sim.fault("webhook_drop", prompt="dropped")
        pod.sim.fault("webhook_duplicate", prompt="twice")
        pod.sim.fault("webhook_delay", prompt="late", seconds=0.1)
        pod.ended(pod.run(text_workflow("dropped"), webhook=receiver.url))
        pod.ended(pod.run(text_workflow("twice"), webhook=receiver.url))
        assert len({received.body for received in receiver.wait_for(2)}) == 1
        late = pod.run(text_workflow("late"), webhook=receiver.url)
        assert json.loads(receiver.wait_for(3)[2].body)["id"] == late


class TestBooks:
    def test_every_request_and_every_run_is_in_the_shared_books(self, pod: RunPodClient) -> None:
        job_id = pod.run(text_workflow("[alice] a cat"))
        done = pod.ended(job_id)
        (charge,) = pod.sim.ledger(prompt="a cat")["charges"]
        assert charge["provider"] == "runpod"
        assert (charge["prediction_id"], charge["model"]) == (job_id, "runpod/e1")
        assert (charge["owner"], charge["token_suffix"]) == ("alice", "abcd")
        assert charge["status"] == "succeeded"
        price = pod.sim.request("GET", "/_sim/runpod/settings").json()["usd_per_second"]
        assert charge["charged_usd"] == pytest.approx(
            price * done["executionTime"] / 1000, abs=1e-6
        )
        (entry,) = pod.sim.stats()["timeline"]
        assert (entry["provider"], entry["answer"], entry["prediction_id"]) == (
            "runpod",
            200,
            job_id,
        )

    def test_what_never_ran_is_not_charged(self, pod: RunPodClient) -> None:
        pod.sim.configure(queue_seconds=HELD)
        pod.call("POST", f"cancel/{pod.run()}")
        assert pod.sim.ledger()["count"] == 0
        assert pod.sim.stats()["creates_received"] == 1

    def test_an_answer_can_be_lost_before_or_after_the_job_is_accepted(
        self, pod: RunPodClient
    ) -> None:
        pod.sim.fault("drop_create_before", prompt="before")
        pod.sim.fault("drop_create_after", prompt="after")
        for prompt in ("before", "after"):
            body = {"input": {"workflow": text_workflow(prompt)}}
            with pytest.raises(OSError, match=r"Connection (aborted|reset)"):
                pod.call("POST", "run", json=body)
        eventually(lambda: pod.sim.ledger(prompt="after")["charges"], "the charge")
        assert not pod.sim.ledger(prompt="before")["charges"]
        assert [e["answer"] for e in pod.sim.stats()["timeline"]] == ["dropped", "dropped"]

    def test_reset_forgets_jobs_and_settings(self, pod: RunPodClient) -> None:
        pod.configure(bucket=True)
        job_id = pod.run()
        assert pod.sim.request("POST", "/_sim/reset").status_code == 204
        assert pod.is_gone(job_id)
        assert pod.sim.request("GET", "/_sim/runpod/settings").json()["bucket"] is False

    @pytest.mark.parametrize("changes", [{"nothing": 1}, {"bucket": 1}, {"run_per_10s": -1}, []])
    def test_settings_that_cannot_be_are_refused(self, sim: Simulator, changes: object) -> None:
        response = sim.request("POST", "/_sim/runpod/settings", json=changes)
        assert response.status_code == 400

    def test_what_a_job_was_given_can_be_seen(self, pod: RunPodClient) -> None:
        text = base64.b64encode(b"x").decode()
        images = [{"name": "a.png", "image": text}]
        job_id = pod.run(
            input={"workflow": text_workflow(), "images": images},
            policy={"ttl": 20_000, "executionTimeout": 7_000},
        )
        given = pod.sim.request("GET", f"/_sim/runpod/jobs/e1/{job_id}").json()
        assert (given["execution_timeout_s"], given["ttl_s"]) == (7, 20)
        assert given["images"][0]["name"] == "a.png"
        assert len(given["images"][0]["sha256"]) == 64


class TestFaults:
    def test_a_look_or_a_cancel_can_be_refused(self, pod: RunPodClient) -> None:
        pod.sim.fault("get_status", status=502, hits=1)
        pod.sim.fault("cancel_status", status=500, hits=1)
        pod.sim.configure(run_seconds=HELD)
        job_id = pod.run()
        assert pod.call("GET", f"status/{job_id}").status_code == 502
        assert pod.call("GET", f"status/{job_id}").status_code == 200
        assert pod.call("POST", f"cancel/{job_id}").status_code == 500
        assert pod.call("POST", f"cancel/{job_id}").json()["status"] == "CANCELLED"

    def test_a_cancel_can_be_ignored(self, pod: RunPodClient) -> None:
        pod.sim.fault("cancel_ignored")
        pod.sim.configure(run_seconds=HELD)
        job_id = pod.run()
        pod.reached(job_id, "IN_PROGRESS")
        assert pod.call("POST", f"cancel/{job_id}").json()["status"] == "IN_PROGRESS"
        assert pod.status(job_id)["status"] == "IN_PROGRESS"

    def test_a_result_can_expire_at_once(self, pod: RunPodClient) -> None:
        pod.sim.fault("expired")
        job_id = pod.run()
        eventually(lambda: pod.is_gone(job_id), "gone")

    @pytest.mark.parametrize(
        ("kind", "start"),
        [
            ("truncated_file", b"\x89PNG"),
            ("wrong_type", b"<!DOCTYPE html>"),
            ("empty_file", b""),
            ("huge_png", b"\x89PNG"),
            ("svg_script", b"<svg"),
        ],
    )
    def test_the_images_can_be_wrong(self, pod: RunPodClient, kind: str, start: bytes) -> None:
        right = pod.image(pod.ended(pod.run()))
        pod.sim.fault(kind, hits=1)
        job_id = pod.run()
        wrong = pod.image(pod.ended(job_id))
        assert wrong.startswith(start)
        assert wrong != right
        assert pod.image(pod.status(job_id)) == right
