"""Talk to the RunPod part of a simulator as its documentation says."""

from __future__ import annotations

import base64
import io
import random
from dataclasses import dataclass
from typing import Any

import requests
from PIL import Image

from tests.simulator.support import Simulator, eventually

KEY = "rpa_test_key_abcd"
ENDPOINT = "e1"
FINAL = {"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"}


def text_workflow(prompt: str = "a cat", *, images: int = 1, **size: int) -> dict[str, Any]:
    """Return a workflow of a checkpoint; 64 x 64 pixels unless `size` says otherwise."""
    latent = {"width": 64, "height": 64, "batch_size": images, **size}
    return {
        "1": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"},
        },
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": latent},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 7,
                "steps": 20,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {
            "class_type": "SaveImage",
            "inputs": {"images": ["6", 0], "filename_prefix": "ComfyUI"},
        },
    }


def noise_png(side_px: int) -> bytes:
    """Return an image that no format makes smaller."""
    buffer = io.BytesIO()
    noise = random.Random(side_px).randbytes(3 * side_px * side_px)
    Image.frombytes("RGB", (side_px, side_px), noise).save(buffer, "PNG")
    return buffer.getvalue()


def image_workflow(name: str, width: int = 32, height: int = 16) -> dict[str, Any]:
    """Return a workflow that scales an image that came with the job."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {
            "class_type": "ImageScale",
            "inputs": {
                "image": ["1", 0],
                "upscale_method": "lanczos",
                "width": width,
                "height": height,
                "crop": "disabled",
            },
        },
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "s"}},
    }


@dataclass
class RunPodClient:
    """One endpoint of a simulator."""

    sim: Simulator
    endpoint: str = ENDPOINT
    key: str = KEY

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Send a request with the key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        url = f"/v2/{self.endpoint}/{path}"
        return self.sim.request(method, url, headers=headers, **kwargs)

    def run(self, workflow: dict[str, Any] | None = None, **body: Any) -> str:
        """Queue a job that must be accepted; return its id."""
        body.setdefault("input", {"workflow": text_workflow() if workflow is None else workflow})
        response = self.call("POST", "run", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["status"] == "IN_QUEUE"
        return str(response.json()["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now."""
        response = self.call("GET", f"status/{job_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def reached(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job has one of these states."""

        def probe() -> dict[str, Any] | None:
            job = self.status(job_id)
            return job if job["status"] in states else None

        return eventually(probe, f"{job_id} {states}")

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job is over."""
        return self.reached(job_id, *FINAL)

    def is_gone(self, job_id: str) -> bool:
        """Tell whether RunPod has forgotten a job."""
        return self.call("GET", f"status/{job_id}").status_code == 404

    def configure(self, **settings: Any) -> None:
        """Change RunPod's own settings."""
        response = self.sim.request("POST", "/_sim/runpod/settings", json=settings)
        assert response.status_code == 200, response.text

    def image(self, job: dict[str, Any], index: int = 0) -> bytes:
        """Return one image of a completed job."""
        return base64.b64decode(job["output"]["images"][index]["data"], validate=True)
