"""How far the estimate of a batch's end is off, half way through.

Batches of 20 one after the other, each run of a length of its own; at the moment when half of a
batch has ended, its `eta_seconds` is compared with what it then took.
"""

import time
from statistics import median

import requests

from benchmarks.api import BATCHES
from benchmarks.harness import Row
from benchmarks.lab import User, batch_body, make_users, running_stack
from picture.stack import Stack

IMAGES = 20
BATCH_COUNT = 9
RUN_S = 2.0
# Up to that fraction shorter or longer.
JITTER = 0.6
POLL_S = 0.05


def run(images: int = IMAGES, batches: int = BATCH_COUNT) -> list[Row]:
    with running_stack(run_seconds=RUN_S, run_jitter=JITTER) as (stack, _):
        [owner] = make_users(1)
        # The first batch only teaches how long runs take.
        errors = [_error(stack, owner, images, f"batch {n}") for n in range(batches + 1)][1:]
    return [
        Row(
            "eta error",
            f"{batches} batches of {images} images of {RUN_S * (1 - JITTER):.1f} to "
            f"{RUN_S * (1 + JITTER):.1f} s, estimated when half had ended: median of the absolute "
            f"errors, worst {max(errors):.0f} %",
            median(errors),
            "%",
            at_most=20,
        )
    ]


def _error(stack: Stack, owner: User, images: int, name: str) -> float:
    """Submit a batch, read its estimate half way; percent by which that was off."""
    with requests.Session() as http:
        http.trust_env = False  # a proxy must not be asked about this machine
        http.headers["Authorization"] = f"Bearer {owner.token}"
        body = batch_body([f"{name}, picture {number}" for number in range(images)])
        answer = http.post(stack.url + BATCHES, json=body, timeout=10)
        answer.raise_for_status()
        address = f"{stack.url}{BATCHES}{answer.json()['id']}/"
        estimate_s, estimated_s = 0, 0.0
        while True:
            batch = http.get(address, timeout=10).json()
            if not estimate_s and batch["completed_count"] >= images / 2:
                estimate_s, estimated_s = batch["eta_seconds"], time.monotonic()
            if batch["finished_at"]:
                break
            time.sleep(POLL_S)
    left_s = time.monotonic() - estimated_s
    return 100 * abs(estimate_s - left_s) / left_s
