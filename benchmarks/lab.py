"""The product under test: a whole stack on a fresh data folder, its simulator, its users."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connections
from knox.models import get_token_model

import picture.celery  # noqa: F401  (makes this process's Celery app the product's)
from picture.stack import Stack

# Small pictures, since what draws them shares the processors with what is measured.
MODEL = "bytedance/sdxl-lightning-4step"
SIZE_PX = 256
PATIENCE_S = 120.0
POLL_S = 0.25


class TakesTooLong(Exception):
    """Say what did not happen."""


def await_that(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition holds, and look seldom: looking takes processor time as well.

    Raises:
        TakesTooLong: it did not in time.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TakesTooLong(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(POLL_S)


@contextlib.contextmanager
def data_folder() -> Iterator[Path]:
    """Give the data folder away for a while, and set it aside then.

    It goes with all others when the benchmarks end: after it has deleted thousands of files, ext4
    takes minutes during which it is several times slower to make new ones.

    Raises:
        FileExistsError: there is a database in it, and so somebody's data.
    """
    if (settings.DATA_DIR / "postgres").exists():
        raise FileExistsError(settings.DATA_DIR)
    try:
        yield settings.DATA_DIR
    finally:
        connections.close_all()
        if settings.DATA_DIR.exists():
            settings.DATA_DIR.rename(tempfile.mkdtemp(prefix="used-", dir=settings.DATA_DIR.parent))


@contextlib.contextmanager
def running_stack(
    *, env: Mapping[str, str] | None = None, **simulator: float
) -> Iterator[tuple[Stack, "Simulator"]]:
    """Run the whole product, and the simulator with the given settings, on a data folder.

    Predictions start at once unless told otherwise: a queue at the provider is not ours.
    """
    wanted = {"queue_seconds": 0.0, **simulator}
    options = [
        part for name, value in wanted.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    with data_folder() as folder:
        stack = Stack(folder, env=env, simulator_options=[str(part) for part in options])
        stack.env["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
        try:
            with stack:
                assert stack.simulator_url is not None
                yield stack, Simulator(stack.simulator_url)
        except Exception as error:
            kept = tempfile.mkdtemp(prefix="picture-bench-logs-")
            shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)
            error.add_note(f"the logs of the stack are kept in {kept}")
            raise


class Simulator:
    """The simulator's own books."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy must not be asked about this machine

    def requests(self, text: str) -> list[dict[str, Any]]:
        """Return the create requests whose prompt contains `text`, in the order received."""
        answer = self._session.get(f"{self._url}/_sim/stats", timeout=PATIENCE_S)
        answer.raise_for_status()
        return [one for one in answer.json()["timeline"] if text in one["prompt"]]

    def await_ended(self, text: str, count: int) -> list[dict[str, Any]]:
        """Return those requests once `count` of their predictions have ended."""
        found: list[dict[str, Any]] = []

        def ended() -> bool:
            found[:] = self.requests(text)
            return sum(one.get("ended_at") is not None for one in found) >= count

        await_that(ended, f"{count} predictions of {text!r} ended")
        return found


@dataclass(frozen=True, slots=True)
class User:
    id: int
    token: str


def make_users(count: int) -> list[User]:
    """Return new users, each with a token."""
    model, tokens = get_user_model(), get_token_model().objects
    first = model.objects.count()
    made = [
        model.objects.create(username=f"user{number}") for number in range(first, first + count)
    ]
    return [User(user.pk, tokens.create(user)[1]) for user in made]


def batch_body(prompts: list[str]) -> dict[str, Any]:
    """Return the request for a batch of small pictures."""
    return {
        "prompts": [{"text": prompt} for prompt in prompts],
        "settings": {"model": MODEL, "width": SIZE_PX, "height": SIZE_PX},
    }


def cpu_s(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the processor seconds so far of processes with their children, and of this one."""

    def of(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)

    own = psutil.Process().cpu_times()
    used = {"benchmark": float(own.user + own.system)}
    for name, pid in pids.items():
        root = psutil.Process(pid)
        used[name] = 0.0
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used[name] += of(process)
    return used
