"""Show the product at work: five prompts in, five stored and verified images out."""

import hashlib
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

import requests
from django.conf import settings
from django.core.management.base import BaseCommand
from PIL import Image as Pillow

from batches.models import BATCH_TERMINAL, Image
from picture.embedded import EmbeddedError, wait_until
from picture.management.demo_user import DemoUser
from picture.stack import (
    START_TIMEOUT_S,
    Stack,
    StackError,
    answers,
    chosen_port,
    interrupt_on_signals,
    running_url,
)

MODEL = "black-forest-labs/flux-schnell"
PROMPTS = (
    "A lighthouse on a cliff at dawn, fog below, oil painting",
    "A red fox asleep in fresh snow, close-up photograph",
    "A night market street after rain, neon reflections, film still",
    "An isometric cutaway of a small bookshop, soft pastel colours",
    "A hot air balloon over a patchwork of autumn fields, seen from above",
)
POLL_S = 0.25
REQUEST_TIMEOUT_S = 30


class DemoError(Exception):
    """Say in one line what is wrong with the answer or the image."""


class Command(BaseCommand):
    help = "Bring everything up, make five images through the API, verify them, and stop."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        interrupt_on_signals()
        self.completed = 0
        try:
            self.show()
        except KeyboardInterrupt:
            self.stderr.write("picture: interrupted")
        except (StackError, EmbeddedError, DemoError, requests.RequestException) as error:
            self.stderr.write(f"picture: {error}")
        self.say(f"demo: {self.completed}/{len(PROMPTS)} completed")
        if self.completed < len(PROMPTS):
            sys.exit(1)

    def show(self) -> None:
        began_s = time.monotonic()
        with running_stack() as (url, stack), requests.Session() as session:
            session.trust_env = False
            token = DemoUser(settings.DATA_DIR).token(session, url)
            session.headers["Authorization"] = f"Bearer {token}"
            batch = submit(session, url)
            self.say(f"submitted to {url} after {time.monotonic() - began_s:.1f} s")
            self.verify(session, url, self.follow(session, url, batch, stack))

    def follow(
        self, session: requests.Session, url: str, batch: dict[str, Any], stack: Stack | None
    ) -> dict[str, Any]:
        """Show the progress of a batch until it ends, and return it as it is then."""
        deadline = time.monotonic() + settings.GENERATION_DEADLINE + REQUEST_TIMEOUT_S
        shown = ""
        while True:
            line = progress(batch)
            if self.stdout.isatty():
                self.stdout.write(f"\r\x1b[K{line}", ending="")
            elif line != shown:
                self.stdout.write(line)
            self.stdout.flush()
            shown = line
            ended = batch["status"] in BATCH_TERMINAL
            if ended or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
            if stack:
                stack.check()
            batch = get_json(session, f"{url}/api/v1/batches/{batch['id']}/")
        if self.stdout.isatty():
            self.stdout.write("")
        if not ended:
            raise DemoError("the batch did not end in time")
        return batch

    def verify(self, session: requests.Session, url: str, batch: dict[str, Any]) -> None:
        """Print a line for each image that is stored, decodable and unlike the others."""
        digests: set[str] = set()
        for item in batch["items"]:
            try:
                self.say(verified(session, url, item, digests))
                self.completed += 1
            except DemoError as error:
                self.stderr.write(f"picture: item {item['index']}: {error}")

    def say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


@contextmanager
def running_stack() -> Iterator[tuple[str, Stack | None]]:
    """Bring a stack up, or use the one that runs on the data folder and leave it running."""
    if url := running_url(settings.DATA_DIR):
        if not wait_until(lambda: answers(f"{url}/health/live"), START_TIMEOUT_S):
            raise StackError(f"the stack at {url} does not answer")
        yield url, None
        return
    env = {"SECRET_KEY": settings.SECRET_KEY}
    with Stack(settings.DATA_DIR, port=chosen_port(os.environ), env=env) as stack:
        yield stack.url, stack


def submit(session: requests.Session, url: str) -> dict[str, Any]:
    body = {
        "name": "demo",
        "prompts": [{"text": prompt} for prompt in PROMPTS],
        "settings": {"model": MODEL},
    }
    answer = session.post(f"{url}/api/v1/batches/", json=body, timeout=REQUEST_TIMEOUT_S)
    if answer.status_code != 202:
        raise DemoError(f"the batch was refused: {answer.status_code} {answer.text[:300]}")
    batch: dict[str, Any] = answer.json()
    return batch


def get_json(session: requests.Session, url: str) -> dict[str, Any]:
    answer = session.get(url, timeout=REQUEST_TIMEOUT_S)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def progress(batch: dict[str, Any]) -> str:
    statuses = [item["status"] for item in batch["items"]]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    return f"{batch['status']} {batch['progress']:3.0f}%  {', '.join(counts)}"


def verified(session: requests.Session, url: str, item: dict[str, Any], digests: set[str]) -> str:
    """Return the line for an item's image after checking what is served and what is stored.

    Raises:
        DemoError: there is no image, or something about it does not add up.
    """
    found = item["image"]
    if item["status"] != "completed" or not found:
        raise DemoError(f"{item['status']} {(item['error'] or {}).get('message', '')}".strip())
    answer = session.get(urljoin(f"{url}/", found["url"]), timeout=REQUEST_TIMEOUT_S)
    answer.raise_for_status()
    image = Image.objects.select_related("generation").get(pk=found["id"])
    with image.file.open("rb") as stored:
        if stored.read() != answer.content:
            raise DemoError("the served bytes are not the stored ones")
    digest = hashlib.sha256(answer.content).hexdigest()
    if digest != found["sha256"]:
        raise DemoError("the digest does not match")
    if digest in digests:
        raise DemoError("the image is the same as another one")
    digests.add(digest)
    try:
        with Pillow.open(io.BytesIO(answer.content)) as decoded:
            decoded.load()
    except OSError as error:
        raise DemoError(f"the image does not decode: {error}") from error
    if decoded.size != (found["width"], found["height"]):
        raise DemoError(f"the image is {decoded.size}, not what the API says")
    path = image.file.name if settings.STORAGE_BUCKET else image.file.path
    started_at, finished_at = image.generation.started_at, image.generation.finished_at
    if not (started_at and finished_at):
        raise DemoError("the generation has no times")
    size = f"{found['width']}x{found['height']}"
    seconds = (finished_at - started_at).total_seconds()
    return f"image {path} {size} {found['format']} {seconds:.1f}s"
