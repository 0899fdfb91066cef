"""ComfyUI's protocol: what its server answers, and what becomes of a prompt."""

from __future__ import annotations

import io
import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket
from PIL import Image

from tests.simulator.support import PATIENCE_S, ROOT, Simulator, eventually

Nodes = dict[str, dict[str, Any]]

WORKFLOWS = sorted((ROOT / "generation" / "workflows").glob("*.json"))


def two_images(**save: Any) -> Nodes:
    """Return the smallest workflow: two red images, saved."""
    size = {"width": 64, "height": 48, "batch_size": 2, "color": 16711680}
    saved = {"images": ["1", 0], "filename_prefix": "test/demo", **save}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": saved},
    }


def sdxl(text: str = "a cat", *, seed: int = 1, steps: int = 20, **save: Any) -> Nodes:
    """Return a workflow with a sampler."""
    sampler = {
        **{"seed": seed, "steps": steps, "cfg": 7.0, "sampler_name": "euler", "denoise": 1.0},
        **{"scheduler": "normal", "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]},
        "latent_image": ["5", 0],
    }
    size = {"width": 128, "height": 96, "batch_size": 1}
    saved = {"images": ["8", 0], "filename_prefix": "ComfyUI", **save}
    checkpoint = {"ckpt_name": "sd_xl_base_1.0.safetensors"}
    return {
        "3": {"class_type": "KSampler", "inputs": sampler},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": checkpoint},
        "5": {"class_type": "EmptyLatentImage", "inputs": size},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": saved},
    }


def scaled(name: str, **save: Any) -> Nodes:
    """Return a workflow that reads an image and scales it."""
    scale = {"image": ["1", 0], "upscale_method": "lanczos", "width": 40, "height": 30}
    saved = {"images": ["2", 0], "filename_prefix": "scaled", **save}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageScale", "inputs": {**scale, "crop": "disabled"}},
        "3": {"class_type": "SaveImage", "inputs": saved},
    }


def changed(nodes: Nodes, node_id: str, **inputs: Any) -> Nodes:
    """Return a workflow with other inputs of a node."""
    node = nodes[node_id]
    return {**nodes, node_id: {**node, "inputs": {**node["inputs"], **inputs}}}


def png(colour: str = "green", size: tuple[int, int] = (20, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


class Comfy:
    """The ComfyUI of a simulator."""

    def __init__(self, sim: Simulator, prefix: str = "/comfyui") -> None:
        self.sim = sim
        self.prefix = prefix

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return self.sim.request(method, self.prefix + path, **kwargs)

    def json(self, path: str) -> Any:
        response = self.call("GET", path)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, nodes: object, **fields: Any) -> requests.Response:
        return self.call("POST", "/prompt", json={"prompt": nodes, **fields})

    def queue(self, nodes: Nodes, **fields: Any) -> str:
        """Queue a prompt that must be accepted; return its id."""
        response = self.post(nodes, **fields)
        assert response.status_code == 200, response.text
        return str(response.json()["prompt_id"])

    def entry(self, prompt_id: str) -> dict[str, Any] | None:
        """Return the entry of the history, if there is one."""
        return self.json(f"/history/{prompt_id}").get(prompt_id)

    def ended(self, prompt_id: str) -> dict[str, Any]:
        return eventually(lambda: self.entry(prompt_id), f"prompt {prompt_id} ended")

    def run(self, nodes: Nodes, **fields: Any) -> dict[str, Any]:
        return self.ended(self.queue(nodes, **fields))

    def ids(self, key: str) -> list[str]:
        return [item[1] for item in self.json("/queue")[key]]

    def running(self, prompt_id: str) -> str:
        eventually(lambda: self.ids("queue_running") == [prompt_id], f"prompt {prompt_id} runs")
        return prompt_id

    def hang(self, text: str = "a long one") -> str:
        """Queue a prompt that never ends by itself, and wait until it runs."""
        self.sim.fault("hang", prompt=text)
        return self.running(self.queue(sdxl(text)))

    def upload(self, data: bytes, name: str = "cat.png", **fields: str) -> dict[str, Any]:
        files = {"image": (name, data, "image/png")}
        response = self.call("POST", "/upload/image", files=files, data=fields)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def listen(self, client_id: str) -> websocket.WebSocket:
        url = f"ws{self.sim.url.removeprefix('http')}{self.prefix}/ws?clientId={client_id}"
        past_any_proxy: dict[str, Any] = {"http_proxy_host": "none.invalid", "http_no_proxy": ["*"]}
        return websocket.create_connection(url, timeout=PATIENCE_S, **past_any_proxy)


@pytest.fixture
def comfy(sim: Simulator) -> Comfy:
    return Comfy(sim)


def files_of(entry: dict[str, Any], node_id: str) -> list[dict[str, str]]:
    return list(entry["outputs"][node_id]["images"])


def last_message(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    name, data = entry["status"]["messages"][-1]
    return name, data


class TestPrompts:
    def test_need_no_credentials(self, sim: Simulator) -> None:
        answer = requests.get(f"{sim.url}/comfyui/prompt", timeout=PATIENCE_S)
        assert answer.json() == {"exec_info": {"queue_remaining": 0}}

    @pytest.mark.parametrize("prefix", ["/comfyui", "/comfyui/api"])
    def test_are_taken_below_the_root_and_below_api(self, sim: Simulator, prefix: str) -> None:
        comfy = Comfy(sim, prefix)
        answer = comfy.post(two_images())
        assert answer.status_code == 200
        body = answer.json()
        assert body.keys() == {"prompt_id", "number", "node_errors"}
        assert body["node_errors"] == {}
        uuid.UUID(body["prompt_id"])
        comfy.ended(body["prompt_id"])

    def test_keep_the_id_and_the_data_that_they_came_with(self, comfy: Comfy) -> None:
        own_id = str(uuid.uuid4())
        entry = comfy.run(
            two_images(), prompt_id=own_id, client_id="me", extra_data={"token": "abc"}
        )
        number, prompt_id, nodes, extra_data, outputs = entry["prompt"]
        assert (number, prompt_id, nodes) == (0, own_id, two_images())
        assert extra_data == {"token": "abc", "client_id": "me"}
        assert outputs == ["2"]

    def test_are_numbered_and_run_one_at_a_time_in_that_order(self, comfy: Comfy) -> None:
        first = comfy.hang()
        later = [comfy.queue(sdxl(str(n), seed=n)) for n in range(3)]
        assert comfy.ids("queue_running") == [first]
        assert comfy.ids("queue_pending") == later
        assert comfy.json("/prompt") == {"exec_info": {"queue_remaining": 4}}
        comfy.call("POST", "/interrupt", json={"prompt_id": first})
        ends = [last_message(comfy.ended(one))[1]["timestamp"] for one in (first, *later)]
        assert ends == sorted(ends)

    def test_can_jump_the_queue(self, comfy: Comfy) -> None:
        comfy.hang()
        usual = comfy.queue(sdxl("usual"))
        hurried = comfy.queue(sdxl("hurried"), front=True)
        numbered = comfy.queue(sdxl("numbered"), number=-100)
        assert comfy.ids("queue_pending") == [numbered, hurried, usual]

    def test_are_in_the_queue_as_the_history_has_them(self, comfy: Comfy) -> None:
        prompt_id = comfy.hang()
        (item,) = comfy.json("/queue")["queue_running"]
        comfy.call("POST", "/interrupt")
        assert comfy.ended(prompt_id)["prompt"] == item

    def test_are_in_no_history_before_they_end(self, comfy: Comfy) -> None:
        running = comfy.hang()
        waiting = comfy.queue(two_images())
        for prompt_id in (running, waiting, "nobody"):
            assert comfy.json(f"/history/{prompt_id}") == {}
        assert comfy.json("/history") == {}

    def test_that_succeed_say_so(self, comfy: Comfy) -> None:
        entry = comfy.run(sdxl(steps=3))
        assert entry.keys() == {"prompt", "outputs", "status", "meta"}
        status = entry["status"]
        assert (status["status_str"], status["completed"]) == ("success", True)
        names = [name for name, _ in status["messages"]]
        assert names == ["execution_start", "execution_cached", "execution_success"]
        times = [data["timestamp"] for _, data in status["messages"]]
        assert times == sorted(times)
        assert abs(times[0] / 1000 - time.time()) < 60

    def test_that_were_deleted_never_enter_the_history(self, comfy: Comfy) -> None:
        running = comfy.hang()
        waiting = comfy.queue(two_images())
        answer = comfy.call("POST", "/queue", json={"delete": [waiting, running]})
        assert (answer.status_code, answer.content) == (200, b"")
        assert comfy.ids("queue_pending") == []
        # Only what waits can be deleted.
        assert comfy.ids("queue_running") == [running]
        assert comfy.entry(waiting) is None

    def test_that_wait_can_all_be_deleted(self, comfy: Comfy) -> None:
        running = comfy.hang()
        comfy.queue(two_images())
        comfy.queue(two_images())
        assert comfy.call("POST", "/queue", json={"clear": True}).status_code == 200
        assert (comfy.ids("queue_running"), comfy.ids("queue_pending")) == ([running], [])

    def test_are_not_deleted_by_the_verb(self, comfy: Comfy) -> None:
        assert comfy.call("DELETE", "/queue").status_code == 405

    def test_are_forgotten_by_a_restart_but_their_files_stay(self, comfy: Comfy) -> None:
        done = comfy.queue(two_images())
        (file, _) = files_of(comfy.ended(done), "2")
        running = comfy.hang()
        waiting = comfy.queue(two_images())
        assert comfy.sim.request("POST", "/_sim/comfyui/restart").status_code == 204
        assert comfy.json("/queue") == {"queue_running": [], "queue_pending": []}
        assert all(comfy.entry(one) is None for one in (done, running, waiting))
        assert comfy.call("GET", "/view", params=file).status_code == 200
        again = comfy.run(two_images())
        # Neither the number nor the cache was kept, and the files are not overwritten.
        assert again["prompt"][0] == 0
        assert [one["filename"] for one in files_of(again, "2")] == [
            "demo_00003_.png",
            "demo_00004_.png",
        ]


class TestHistory:
    def test_can_be_read_in_parts(self, comfy: Comfy) -> None:
        ids = [comfy.queue(two_images(filename_prefix=f"p{n}")) for n in range(4)]
        comfy.ended(ids[-1])
        assert list(comfy.json("/history")) == ids
        assert list(comfy.json("/history?max_items=2")) == ids[2:]
        assert list(comfy.json("/history?max_items=2&offset=1")) == ids[1:3]

    def test_can_be_deleted(self, comfy: Comfy) -> None:
        one, two, three = (comfy.queue(two_images(filename_prefix=f"p{n}")) for n in range(3))
        comfy.ended(three)
        answer = comfy.call("POST", "/history", json={"delete": [one]})
        assert (answer.status_code, answer.content) == (200, b"")
        assert list(comfy.json("/history")) == [two, three]
        comfy.call("POST", "/history", json={"clear": True})
        assert comfy.json("/history") == {}


class TestInterrupt:
    def test_of_a_prompt_ends_it_as_an_error_with_its_own_message(self, comfy: Comfy) -> None:
        prompt_id = comfy.hang()
        answer = comfy.call("POST", "/interrupt", json={"prompt_id": prompt_id})
        assert (answer.status_code, answer.content) == (200, b"")
        entry = comfy.ended(prompt_id)
        status = entry["status"]
        assert (status["status_str"], status["completed"]) == ("error", False)
        name, data = last_message(entry)
        assert name == "execution_interrupted"
        assert data["prompt_id"] == prompt_id
        assert (data["node_id"], data["node_type"]) == ("3", "KSampler")
        assert entry["outputs"] == {}

    def test_of_another_prompt_does_nothing(self, comfy: Comfy) -> None:
        running = comfy.hang()
        waiting = comfy.queue(two_images())
        for prompt_id in (waiting, "nobody"):
            assert comfy.call("POST", "/interrupt", json={"prompt_id": prompt_id}).ok
        assert comfy.ids("queue_running") == [running]
        assert comfy.ids("queue_pending") == [waiting]

    def test_without_an_id_ends_whatever_runs(self, comfy: Comfy) -> None:
        running = comfy.hang()
        comfy.call("POST", "/interrupt")
        assert last_message(comfy.ended(running))[0] == "execution_interrupted"

    def test_waits_for_the_next_step(self, comfy: Comfy) -> None:
        comfy.sim.configure(run_seconds=4)
        prompt_id = comfy.running(comfy.queue(sdxl(steps=10)))
        comfy.call("POST", "/interrupt", json={"prompt_id": prompt_id})
        messages = dict(comfy.ended(prompt_id)["status"]["messages"])
        ended, began = (messages[f"execution_{word}"] for word in ("interrupted", "start"))
        assert ended["timestamp"] - began["timestamp"] >= 390

    def test_stops_slow_work_on_pixels_between_two_nodes(self, comfy: Comfy) -> None:
        scale = {"upscale_method": "lanczos", "width": 2048, "height": 2048, "crop": "disabled"}
        nodes = {
            "1": {
                "class_type": "EmptyImage",
                "inputs": {"width": 2048, "height": 2048, "batch_size": 6, "color": 0},
            },
            "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], **scale}},
            "3": {"class_type": "ImageScale", "inputs": {"image": ["2", 0], **scale}},
            "4": {
                "class_type": "SaveImage",
                "inputs": {"images": ["3", 0], "filename_prefix": "slow"},
            },
        }
        prompt_id = comfy.running(comfy.queue(nodes))
        comfy.call("POST", "/interrupt", json={"prompt_id": prompt_id})
        name, data = last_message(comfy.ended(prompt_id))
        assert name == "execution_interrupted"
        assert data["node_id"] in ("2", "3", "4")


class TestFiles:
    def test_are_numbered_in_their_subfolder(self, comfy: Comfy) -> None:
        entry = comfy.run(two_images())
        assert files_of(entry, "2") == [
            {"filename": f"demo_0000{n}_.png", "subfolder": "test", "type": "output"}
            for n in (1, 2)
        ]
        assert entry["meta"]["2"]["node_id"] == "2"

    def test_are_images_of_the_size_asked_for(self, comfy: Comfy) -> None:
        (file,) = files_of(comfy.run(sdxl()), "9")
        answer = comfy.call("GET", "/view", params=file)
        assert answer.headers["Content-Type"] == "image/png"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert (image.format, image.size) == ("PNG", (128, 96))

    def test_can_be_had_as_previews(self, comfy: Comfy) -> None:
        file = files_of(comfy.run(two_images()), "2")[0]
        for query, kind in (
            ({"preview": "webp;80"}, "WEBP"),
            ({"preview": "jpeg"}, "JPEG"),
            ({"channel": "rgb"}, "PNG"),
        ):
            answer = comfy.call("GET", "/view", params={**file, **query})
            with Image.open(io.BytesIO(answer.content)) as image:
                assert (image.format, image.size) == (kind, (64, 48))

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ({"filename": "demo_00009_.png"}, 404),
            ({"filename": "demo_00001_.png", "subfolder": "other"}, 404),
            ({"filename": "demo_00001_.png", "subfolder": "test", "type": "temp"}, 404),
            ({}, 404),
            ({"filename": "/etc/passwd"}, 400),
            ({"filename": "../secret.png"}, 400),
            ({"filename": "a.png", "type": "nonsense"}, 400),
            ({"filename": "a.png", "subfolder": "../.."}, 403),
        ],
    )
    def test_that_are_not_there_are_not_shown(
        self, comfy: Comfy, query: dict[str, str], status: int
    ) -> None:
        comfy.run(two_images())
        assert comfy.call("GET", "/view", params=query).status_code == status

    def test_of_previews_are_temporary(self, comfy: Comfy) -> None:
        nodes = two_images()
        nodes["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        first, _ = files_of(comfy.run(nodes), "2")
        assert first["type"] == "temp"
        assert comfy.call("GET", "/view", params=first).status_code == 200

    def test_outside_of_the_output_folder_are_not_written(self, comfy: Comfy) -> None:
        name, data = last_message(comfy.run(two_images(filename_prefix="../../demo")))
        assert name == "execution_error"
        assert "outside the output folder" in data["exception_message"]


class TestCache:
    def test_gives_the_same_files_for_the_same_workflow(self, comfy: Comfy) -> None:
        first, second = comfy.run(sdxl()), comfy.run(sdxl())
        assert files_of(first, "9") == files_of(second, "9")
        assert second["status"]["status_str"] == "success"
        cached = dict(second["status"]["messages"])["execution_cached"]["nodes"]
        assert set(cached) == set(sdxl())

    @pytest.mark.parametrize("change", [{"seed": 2}, {"filename_prefix": "other"}])
    def test_makes_a_new_file_when_anything_differs(
        self, comfy: Comfy, change: dict[str, Any]
    ) -> None:
        first, second = comfy.run(sdxl()), comfy.run(sdxl(**change))
        assert files_of(first, "9") != files_of(second, "9")

    def test_runs_only_what_differs(self, comfy: Comfy) -> None:
        comfy.run(sdxl())
        entry = comfy.run(sdxl(filename_prefix="other"))
        cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
        assert set(cached) == set(sdxl()) - {"9"}

    def test_is_that_of_the_previous_prompt_only(self, comfy: Comfy) -> None:
        comfy.run(sdxl())
        comfy.run(two_images())
        assert files_of(comfy.run(sdxl()), "9")[0]["filename"] == "ComfyUI_00002_.png"

    def test_sees_that_an_input_file_has_changed(self, comfy: Comfy) -> None:
        comfy.upload(png("red"))
        comfy.run(scaled("cat.png"))
        comfy.upload(png("blue"), overwrite="true")
        assert files_of(comfy.run(scaled("cat.png")), "3")[0]["filename"] == "scaled_00002_.png"

    def test_is_emptied_on_request(self, comfy: Comfy) -> None:
        comfy.run(sdxl())
        body = {"unload_models": True, "free_memory": True}
        assert comfy.call("POST", "/free", json=body).status_code == 200
        assert files_of(comfy.run(sdxl()), "9")[0]["filename"] == "ComfyUI_00002_.png"


class TestUploads:
    def test_are_named_in_the_answer_and_can_be_loaded(self, comfy: Comfy) -> None:
        answer = comfy.upload(png(), type="input", subfolder="mine")
        assert answer == {"name": "cat.png", "subfolder": "mine", "type": "input"}
        (file,) = files_of(comfy.run(scaled("mine/cat.png")), "3")
        shown = comfy.call("GET", "/view", params=file)
        with Image.open(io.BytesIO(shown.content)) as image:
            assert image.size == (40, 30)
            assert image.getpixel((5, 5)) == (0, 128, 0)

    def test_get_another_name_where_one_is_taken(self, comfy: Comfy) -> None:
        names = [comfy.upload(png(c))["name"] for c in ("red", "green", "blue")]
        assert names == ["cat.png", "cat (1).png", "cat (2).png"]

    def test_of_the_same_bytes_are_kept_once(self, comfy: Comfy) -> None:
        assert {comfy.upload(png("red"))["name"] for _ in range(3)} == {"cat.png"}

    def test_overwrite_when_they_are_told_to(self, comfy: Comfy) -> None:
        for colour in ("red", "blue"):
            assert comfy.upload(png(colour), overwrite="true")["name"] == "cat.png"
        query = {"filename": "cat.png", "type": "input"}
        assert comfy.call("GET", "/view", params=query).content == png("blue")

    def test_outside_of_the_input_folder_are_refused(self, comfy: Comfy) -> None:
        files = {"image": ("cat.png", png(), "image/png")}
        form = {"subfolder": "../../etc"}
        answer = comfy.call("POST", "/upload/image", files=files, data=form)
        assert answer.status_code == 400

    def test_that_are_no_image_fail_when_they_are_loaded(self, comfy: Comfy) -> None:
        comfy.upload(b"this is no image")
        entry = comfy.run(scaled("cat.png"))
        assert entry["status"]["status_str"] == "error"
        assert not entry["status"]["completed"]
        name, data = last_message(entry)
        assert name == "execution_error"
        assert (data["node_id"], data["node_type"]) == ("1", "LoadImage")
        assert data["exception_type"] == "PIL.UnidentifiedImageError"
        assert "cannot identify image file" in data["exception_message"]
        assert data["current_inputs"] == {"image": ["cat.png"]}
        assert data["traceback"]


class TestErrors:
    """Of `POST /prompt`, each with its shape."""

    def refused(self, comfy: Comfy, body: object) -> tuple[dict[str, Any], dict[str, Any]]:
        answer = comfy.call("POST", "/prompt", json=body)
        assert answer.status_code == 400
        assert answer.json().keys() == {"error", "node_errors"}
        error = answer.json()["error"]
        assert error.keys() == {"type", "message", "details", "extra_info"}
        return error, answer.json()["node_errors"]

    def test_without_a_prompt(self, comfy: Comfy) -> None:
        assert self.refused(comfy, {"client_id": "me"})[0]["type"] == "no_prompt"

    def test_of_a_node_without_class(self, comfy: Comfy) -> None:
        error, _ = self.refused(comfy, {"prompt": {"1": {"inputs": {}}}})
        assert error["type"] == "invalid_prompt"
        assert "class_type" in error["message"]

    def test_of_an_unknown_class(self, comfy: Comfy) -> None:
        nodes = {**two_images(), "7": {"class_type": "SomebodysNode", "inputs": {}}}
        error, node_errors = self.refused(comfy, {"prompt": nodes})
        assert (error["type"], node_errors) == ("invalid_prompt", {})
        assert "SomebodysNode does not exist" in error["message"]
        assert "#7" in error["details"]

    def test_without_an_output(self, comfy: Comfy) -> None:
        nodes = {"1": two_images()["1"]}
        assert self.refused(comfy, {"prompt": nodes})[0]["type"] == "prompt_no_outputs"

    @pytest.mark.parametrize(
        ("node_id", "inputs", "kind", "input_name"),
        [
            ("3", {"steps": 0}, "value_smaller_than_min", "steps"),
            ("3", {"steps": 10_001}, "value_bigger_than_max", "steps"),
            ("3", {"seed": 2**64}, "value_bigger_than_max", "seed"),
            ("3", {"steps": "many"}, "invalid_input_type", "steps"),
            ("3", {"sampler_name": "nonsense"}, "value_not_in_list", "sampler_name"),
            ("4", {"ckpt_name": "nowhere.safetensors"}, "value_not_in_list", "ckpt_name"),
            ("8", {"samples": ["3"]}, "bad_linked_input", "samples"),
            ("8", {"samples": ["4", 0]}, "return_type_mismatch", "samples"),
            ("8", {"samples": ["77", 0]}, "exception_during_inner_validation", "samples"),
        ],
    )
    def test_of_a_node_name_it_its_input_and_its_outputs(
        self, comfy: Comfy, node_id: str, inputs: dict[str, Any], kind: str, input_name: str
    ) -> None:
        nodes = changed(sdxl(), node_id, **inputs)
        error, node_errors = self.refused(comfy, {"prompt": nodes})
        assert error["type"] == "prompt_outputs_failed_validation"
        assert list(node_errors) == [node_id]
        entry = node_errors[node_id]
        assert entry["dependent_outputs"] == ["9"]
        assert entry["class_type"] == nodes[node_id]["class_type"]
        (problem,) = entry["errors"]
        assert problem.keys() == {"type", "message", "details", "extra_info"}
        assert problem["type"] == kind
        assert problem["extra_info"]["input_name"] == input_name
        assert "input_config" in problem["extra_info"]
        if kind.startswith("value_"):
            assert problem["extra_info"]["received_value"] == inputs[input_name]

    def test_of_a_missing_input(self, comfy: Comfy) -> None:
        nodes = sdxl()
        del nodes["8"]["inputs"]["vae"]
        _, node_errors = self.refused(comfy, {"prompt": nodes})
        (problem,) = node_errors["8"]["errors"]
        assert (problem["type"], problem["details"]) == ("required_input_missing", "vae")

    def test_of_an_image_that_is_not_there(self, comfy: Comfy) -> None:
        _, node_errors = self.refused(comfy, {"prompt": scaled("nowhere.png")})
        (problem,) = node_errors["1"]["errors"]
        assert problem["type"] == "custom_validation_failed"
        assert problem["details"] == "image - Invalid image file: nowhere.png"

    def test_queue_nothing(self, comfy: Comfy) -> None:
        self.refused(comfy, {"prompt": changed(sdxl(), "3", steps=0)})
        assert comfy.json("/prompt") == {"exec_info": {"queue_remaining": 0}}
        assert comfy.json("/history") == {}

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"prompt": []}'])
    def test_of_the_body_are_a_crash_in_plain_text(self, comfy: Comfy, body: bytes) -> None:
        answer = comfy.call("POST", "/prompt", data=body)
        assert answer.status_code == 500
        assert answer.headers["Content-Type"].startswith("text/plain")

    def test_of_one_output_leave_the_others_to_run(self, comfy: Comfy) -> None:
        nodes = two_images()
        nodes["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
        answer = comfy.post(nodes)
        assert answer.status_code == 200
        assert list(answer.json()["node_errors"]) == ["3"]
        assert list(comfy.ended(answer.json()["prompt_id"])["outputs"]) == ["2"]

    def test_do_not_come_of_numbers_written_as_text(self, comfy: Comfy) -> None:
        entry = comfy.run(changed(sdxl(), "3", steps="3", cfg="7"))
        assert entry["status"]["status_str"] == "success"
        assert entry["prompt"][2]["3"]["inputs"]["steps"] == 3

    def test_do_not_come_of_outputs_that_are_not_asked_for(self, comfy: Comfy) -> None:
        nodes = two_images()
        nodes["3"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
        answer = comfy.post(nodes, partial_execution_targets=["2"])
        assert answer.json()["node_errors"] == {}


class TestWebSocket:
    def heard(
        self, comfy: Comfy, socket: websocket.WebSocket, prompt_id: str
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[bytes]]:
        """Return messages and binary frames until the prompt is over."""
        messages: list[tuple[str, dict[str, Any]]] = []
        frames: list[bytes] = []
        while True:
            kind, data = socket.recv_data()
            if kind == websocket.ABNF.OPCODE_BINARY:
                frames.append(data)
                continue
            message = json.loads(data)
            messages.append((message["type"], message["data"]))
            if message["type"] == "executing" and message["data"]["node"] is None:
                assert message["data"]["prompt_id"] == prompt_id
                return messages, frames

    def test_tells_who_connects_how_long_the_queue_is(self, comfy: Comfy) -> None:
        socket = comfy.listen("me")
        message = json.loads(socket.recv())
        assert message["type"] == "status"
        assert message["data"] == {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"}
        socket.close()

    def test_tells_the_course_of_a_prompt(self, comfy: Comfy) -> None:
        socket = comfy.listen("me")
        nodes = sdxl(steps=4)
        prompt_id = comfy.queue(nodes, client_id="me")
        messages, frames = self.heard(comfy, socket, prompt_id)
        socket.close()
        told = [kind for kind, _ in messages if kind.startswith(("execut",))]
        assert told[:2] == ["execution_start", "execution_cached"]
        assert told[-3:] == ["executed", "execution_success", "executing"]
        ran = [data["node"] for kind, data in messages if kind == "executing"]
        assert set(ran) == {*nodes, None}
        assert ran[-2:] == ["9", None]
        steps = [(d["value"], d["max"], d["node"]) for k, d in messages if k == "progress"]
        assert steps == [(n, 4, "3") for n in (1, 2, 3, 4)]
        states = [
            d["nodes"]["3"] for k, d in messages if k == "progress_state" and "3" in d["nodes"]
        ]
        assert {state["state"] for state in states} == {"running", "finished"}
        (executed,) = (data for kind, data in messages if kind == "executed")
        assert executed["output"] == comfy.ended(prompt_id)["outputs"]["9"]
        assert {d["prompt_id"] for k, d in messages if k != "status"} == {prompt_id}
        remaining = [
            d["status"]["exec_info"]["queue_remaining"] for k, d in messages if k == "status"
        ]
        assert remaining[0] == remaining[-1] == 0
        assert max(remaining) == 1
        # A preview: the kind of event, the kind of image, the image.
        assert [frame[:8] for frame in frames] == [b"\0\0\0\1\0\0\0\1"]

    def test_tells_only_the_client_of_the_prompt(self, comfy: Comfy) -> None:
        mine, other = comfy.listen("me"), comfy.listen("other")
        prompt_id = comfy.queue(sdxl(), client_id="me")
        self.heard(comfy, mine, prompt_id)
        other_id = comfy.queue(sdxl("a dog"), client_id="other")
        messages, _ = self.heard(comfy, other, other_id)
        assert prompt_id not in {data.get("prompt_id") for _, data in messages}
        mine.close()
        other.close()

    @pytest.mark.parametrize("kind", ["interrupted", "error"])
    def test_tells_how_else_a_prompt_may_end(self, comfy: Comfy, kind: str) -> None:
        if kind == "error":
            comfy.sim.fault("fail", prompt="a cat")
        else:
            comfy.sim.fault("hang", prompt="a cat")
        socket = comfy.listen("me")
        prompt_id = comfy.queue(sdxl(), client_id="me")
        if kind == "interrupted":
            comfy.running(prompt_id)
            comfy.call("POST", "/interrupt")
        messages, _ = self.heard(comfy, socket, prompt_id)
        socket.close()
        entry = comfy.ended(prompt_id)
        ((_, told),) = [m for m in messages if m[0] == f"execution_{kind}"]
        assert last_message(entry) == (f"execution_{kind}", told)

    def test_is_cut_by_a_restart(self, comfy: Comfy) -> None:
        socket = comfy.listen("me")
        socket.recv()
        comfy.sim.request("POST", "/_sim/comfyui/restart")
        with pytest.raises((websocket.WebSocketConnectionClosedException, ConnectionError)):
            socket.recv()
        socket.shutdown()

    def test_of_the_same_client_replaces_the_one_before(self, comfy: Comfy) -> None:
        old = comfy.listen("me")
        new = comfy.listen("me")
        prompt_id = comfy.queue(sdxl(), client_id="me")
        messages, _ = self.heard(comfy, new, prompt_id)
        assert "progress" in {kind for kind, _ in messages}
        old.close()
        new.close()


class TestServer:
    def test_lists_its_nodes(self, comfy: Comfy) -> None:
        everything = comfy.json("/object_info")
        assert {"KSampler", "SaveImage", "SamplerCustomAdvanced"} <= everything.keys()
        (sampler,) = comfy.json("/object_info/KSampler").values()
        assert sampler == everything["KSampler"]
        kind, options = sampler["input"]["required"]["steps"]
        assert (kind, options["min"], options["max"]) == ("INT", 1, 10_000)
        assert "euler" in sampler["input"]["required"]["sampler_name"][0]
        assert sampler["output"] == ["LATENT"]
        assert not sampler["output_node"]
        assert everything["SaveImage"]["output_node"]
        assert comfy.json("/object_info/Nonsense") == {}

    def test_lists_its_model_files(self, comfy: Comfy) -> None:
        (loader,) = comfy.json("/object_info/CheckpointLoaderSimple").values()
        files = comfy.json("/models/checkpoints")
        assert loader["input"]["required"]["ckpt_name"][0] == files
        assert "flux1-dev.safetensors" in comfy.json("/models/diffusion_models")
        assert comfy.json("/models/unet") == comfy.json("/models/diffusion_models")
        assert "loras" in comfy.json("/models")
        assert comfy.call("GET", "/models/nonsense").status_code == 404

    def test_tells_its_version_and_devices(self, comfy: Comfy) -> None:
        stats = comfy.json("/system_stats")
        assert stats["system"]["comfyui_version"] == "0.3.64"
        assert stats["devices"][0]["type"] == "cpu"

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_runs_the_usual_workflows(self, comfy: Comfy, path: Path) -> None:
        comfy.upload(png(), "reference.png")
        nodes = json.loads(path.read_text())
        entry = comfy.run(nodes)
        assert entry["status"]["status_str"] == "success"
        (images,) = [output["images"] for output in entry["outputs"].values()]
        with Image.open(io.BytesIO(comfy.call("GET", "/view", params=images[0]).content)) as image:
            assert image.width * image.height == pytest.approx(1024 * 1024, rel=0.02)


class TestBooks:
    def test_charge_what_ran_for_whom(self, comfy: Comfy) -> None:
        prompt_id = comfy.queue(sdxl("[alice] a cat"), extra_data={"model": "comfyui/sdxl"})
        comfy.ended(prompt_id)
        (charge,) = comfy.sim.ledger(prompt="a cat")["charges"]
        assert (charge["provider"], charge["prediction_id"]) == ("comfyui", prompt_id)
        assert (charge["model"], charge["owner"]) == ("comfyui/sdxl", "alice")
        assert (charge["prompt"], charge["status"]) == ("[alice] a cat", "succeeded")
        assert charge["created_at"] <= charge["started_at"] <= charge["ended_at"]
        (entry,) = comfy.sim.stats()["timeline"]
        assert (entry["provider"], entry["answer"]) == ("comfyui", 200)

    def test_stand_beside_those_of_other_providers(self, comfy: Comfy) -> None:
        comfy.run(sdxl("one"))
        comfy.sim.run(prompt="two")
        providers = [charge["provider"] for charge in comfy.sim.ledger()["charges"]]
        assert providers == ["comfyui", "replicate"]

    def test_name_the_client_where_no_owner_is_named(self, comfy: Comfy) -> None:
        comfy.run(sdxl(), client_id="me")
        comfy.run(two_images())
        charges = comfy.sim.ledger()["charges"]
        assert [charge["owner"] for charge in charges] == ["me", ""]
        assert [charge["model"] for charge in charges] == [
            "comfyui/sd_xl_base_1.0.safetensors",
            "comfyui/",
        ]

    def test_do_not_charge_what_was_deleted_refused_or_lost_in_the_queue(
        self, comfy: Comfy
    ) -> None:
        comfy.hang("a long one")
        waiting = comfy.queue(sdxl("deleted"))
        comfy.call("POST", "/queue", json={"delete": [waiting]})
        comfy.queue(sdxl("lost"))
        comfy.post(changed(sdxl("refused"), "3", steps=0))
        comfy.sim.request("POST", "/_sim/comfyui/restart")
        ledger = comfy.sim.ledger()
        assert [(c["prompt"], c["status"]) for c in ledger["charges"]] == [("a long one", "failed")]
        stats = comfy.sim.stats()
        assert (stats["creates_received"], stats["in_flight"], stats["running"]) == (4, 0, 0)

    def test_are_closed_by_a_reset(self, comfy: Comfy) -> None:
        comfy.upload(png())
        (file, _) = files_of(comfy.run(two_images()), "2")
        comfy.hang()
        assert comfy.sim.request("POST", "/_sim/reset").status_code == 204
        assert comfy.json("/queue") == {"queue_running": [], "queue_pending": []}
        assert comfy.json("/history") == {}
        assert comfy.call("GET", "/view", params=file).status_code == 404
        assert comfy.sim.ledger()["count"] == 0
        assert comfy.run(two_images())["prompt"][0] == 0


class TestFaults:
    def test_refuse_a_prompt(self, comfy: Comfy) -> None:
        comfy.sim.fault("create_status", prompt="bad", status=503, retry_after=7)
        answer = comfy.post(sdxl("a bad cat"))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
        assert comfy.post(sdxl("a good cat")).status_code == 200
        assert [entry["answer"] for entry in comfy.sim.stats()["timeline"]] == [503, 200]

    def test_drop_a_prompt_before_it_is_queued_or_after(self, comfy: Comfy) -> None:
        comfy.sim.fault("drop_create_before", prompt="before")
        comfy.sim.fault("drop_create_after", prompt="after")
        ids = {text: str(uuid.uuid4()) for text in ("before", "after")}
        for text, prompt_id in ids.items():
            with pytest.raises(requests.ConnectionError):
                comfy.post(sdxl(text), prompt_id=prompt_id)
        comfy.ended(ids["after"])
        assert comfy.entry(ids["before"]) is None
        assert [entry["answer"] for entry in comfy.sim.stats()["timeline"]] == ["dropped"] * 2

    @pytest.mark.parametrize(
        ("kind", "options", "exception"),
        [
            ("out_of_memory", {}, "torch.OutOfMemoryError"),
            ("fail", {"error": "ValueError: no"}, "ValueError"),
            ("fail", {"error": "no"}, "RuntimeError"),
        ],
    )
    def test_fail_a_sampler(
        self, comfy: Comfy, kind: str, options: dict[str, Any], exception: str
    ) -> None:
        comfy.sim.fault(kind, prompt="a cat", **options)
        name, data = last_message(comfy.run(sdxl()))
        assert (name, data["exception_type"]) == ("execution_error", exception)
        assert (data["node_id"], data["node_type"]) == ("3", "KSampler")

    def test_lose_a_prompt_while_it_runs(self, comfy: Comfy) -> None:
        comfy.sim.fault("interrupt", prompt="a cat")
        prompt_id = comfy.queue(sdxl())
        eventually(lambda: not comfy.json("/queue")["queue_running"], "it has run")
        assert comfy.entry(prompt_id) is None
        assert comfy.sim.ledger()["charges"][0]["status"] == "failed"

    def test_slow_a_prompt_down(self, comfy: Comfy) -> None:
        comfy.sim.fault("slow", prompt="a cat", seconds=0.3)
        messages = dict(comfy.run(sdxl())["status"]["messages"])
        ended, began = (messages[f"execution_{word}"] for word in ("success", "start"))
        assert ended["timestamp"] - began["timestamp"] >= 300

    @pytest.mark.parametrize(("kind", "counts"), [("short_output", [1]), ("empty_output", [])])
    def test_take_files_away(self, comfy: Comfy, kind: str, counts: list[int]) -> None:
        comfy.sim.fault(kind)
        entry = comfy.run(two_images())
        assert entry["status"]["status_str"] == "success"
        assert [len(output["images"]) for output in entry["outputs"].values()] == counts

    def test_spoil_a_file(self, comfy: Comfy) -> None:
        comfy.sim.fault("truncated_file", prompt="a cat", hits=1)
        (file,) = files_of(comfy.run(sdxl()), "9")
        short, whole = (comfy.call("GET", "/view", params=file).content for _ in range(2))
        assert whole.startswith(short)
        assert len(short) < len(whole)

    def test_expire_a_file(self, comfy: Comfy) -> None:
        comfy.sim.fault("expired", prompt="a cat", seconds=0)
        (file,) = files_of(comfy.run(sdxl()), "9")
        assert comfy.call("GET", "/view", params=file).status_code == 404

    def test_keep_the_state_of_a_prompt_back(self, comfy: Comfy) -> None:
        comfy.sim.fault("get_status", prompt="a cat", status=503, hits=2)
        prompt_id = comfy.queue(sdxl())
        statuses = [comfy.call("GET", f"/history/{prompt_id}").status_code for _ in range(3)]
        assert statuses == [503, 503, 200]

    def test_keep_the_queue_back(self, comfy: Comfy) -> None:
        comfy.sim.fault("list_status", status=500, hits=1)
        assert [comfy.call("GET", "/queue").status_code for _ in range(2)] == [500, 200]

    @pytest.mark.parametrize("is_running", [True, False])
    def test_hold_up_a_cancellation(self, comfy: Comfy, is_running: bool) -> None:
        if not is_running:
            comfy.hang("another")
        comfy.sim.fault("hang", prompt="a cat")
        comfy.sim.fault("cancel_status", prompt="a cat", status=503, hits=1)
        prompt_id = comfy.queue(sdxl())

        def cancel() -> int:
            if is_running:
                return comfy.call("POST", "/interrupt", json={"prompt_id": prompt_id}).status_code
            return comfy.call("POST", "/queue", json={"delete": [prompt_id]}).status_code

        if is_running:
            comfy.running(prompt_id)
        key = "queue_running" if is_running else "queue_pending"
        assert cancel() == 503
        assert comfy.ids(key) == [prompt_id]
        assert cancel() == 200
        eventually(lambda: comfy.ids(key) == [], "it is gone")

    @pytest.mark.parametrize("is_running", [True, False])
    def test_ignore_a_cancellation(self, comfy: Comfy, is_running: bool) -> None:
        if not is_running:
            comfy.hang("another")
        comfy.sim.fault("hang", prompt="a cat")
        comfy.sim.fault("cancel_ignored", prompt="a cat")
        prompt_id = comfy.queue(sdxl())
        if is_running:
            comfy.running(prompt_id)
        comfy.call("POST", "/queue", json={"delete": [prompt_id]})
        comfy.call("POST", "/interrupt", json={"prompt_id": prompt_id})
        key = "queue_running" if is_running else "queue_pending"
        assert comfy.ids(key) == [prompt_id]

    def test_refuse_an_upload(self, comfy: Comfy) -> None:
        comfy.sim.fault("upload_status", status=503, hits=1)
        statuses = []
        for _ in range(2):
            files = {"image": ("cat.png", png(), "image/png")}
            statuses.append(comfy.call("POST", "/upload/image", files=files).status_code)
        assert statuses == [503, 200]
