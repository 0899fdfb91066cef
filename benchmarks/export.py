"""What a large ZIP costs: the wait for its first byte, and the memory of the web while it is made.

Of a batch of 500 images of 1 MB each, from the whole stack. A ZIP of a single image goes before, so
that everything is loaded. The memory is what the web's process has for itself (USS), looked at all
the while that the ZIP is fetched; the baseline of the time is reading the same files here.
"""

import os
import tempfile
import threading
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import IO

import psutil
import requests
from django.conf import settings
from django.utils import timezone

from batches.models import Batch, BatchStatus, Generation, GenerationStatus, Image, image_key
from benchmarks.api import BATCHES
from benchmarks.harness import REPETITIONS, Row
from benchmarks.lab import MODEL, PATIENCE_S, User, make_users, running_stack

IMAGES = 500
IMAGE_BYTES = 1_000_000
PIECE_BYTES = 256 * 1024
LOOK_S = 0.02


def run(images: int = IMAGES) -> list[Row]:
    with running_stack() as (stack, _), tempfile.TemporaryFile() as kept:
        (user,) = make_users(1)
        web = psutil.Process(stack.pids["web"])
        warm, batch = _make_batch(user, 1), _make_batch(user, images)
        _fetch(stack.url, user, warm, kept)
        waits, grown, times, baselines = [], [], [], []
        for _ in range(REPETITIONS):
            with _peak_mb(web) as peak:
                first_s, all_s = _fetch(stack.url, user, batch, kept)
            waits.append(first_s * 1_000)
            grown.append(peak[-1] - peak[0])
            times.append(all_s)
            baselines.append(_read_here(batch))
        with zipfile.ZipFile(kept) as archive:
            assert len(archive.namelist()) == images + 1
            assert archive.testzip() is None
    what = f"a ZIP of {images} images of 1 MB"
    return [
        Row(
            "export-first-byte", f"until the first byte of {what}", median(waits), "ms", at_most=300
        ),
        Row(
            "export-memory", f"growth of the web at most, over {what}", max(grown), "MB", at_most=30
        ),
        Row(
            "export-time",
            f"{what}, to its end; baseline: reading the files and computing their checksums",
            median(times),
            "s",
            baseline=median(baselines),
        ),
    ]


def _make_batch(user: User, size: int) -> Batch:
    """Return a batch that has ended, with its images stored."""
    now = timezone.now()
    batch = Batch.objects.create(
        owner_id=user.id,
        name=f"{size} images",
        status=BatchStatus.COMPLETED,
        total_count=size,
        completed_count=size,
        started_at=now,
        finished_at=now,
    )
    generations = Generation.objects.bulk_create(
        Generation(
            owner_id=user.id,
            batch=batch,
            index=index,
            status=GenerationStatus.COMPLETED,
            prompt="a lighthouse",
            final_prompt="a lighthouse",
            model=MODEL,
            provider="replicate",
            seed=index,
            attempt_count=1,
            started_at=now,
            downloading_at=now,
            finished_at=now,
        )
        for index in range(size)
    )
    Image.objects.bulk_create(_stored(generation) for generation in generations)
    Image.objects.describe(size)
    return batch


def _stored(generation: Generation) -> Image:
    image = Image(
        id=uuid.uuid4(),
        generation=generation,
        owner_id=generation.owner_id,
        format="png",
        width=1024,
        height=1024,
        size_bytes=IMAGE_BYTES,
        sha256="0" * 64,
    )
    image.file.name = image_key(image, "0.png")
    path = settings.MEDIA_ROOT / image.file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(IMAGE_BYTES))
    return image


def _fetch(url: str, user: User, batch: Batch, kept: IO[bytes]) -> tuple[float, float]:
    """Keep the ZIP of a batch; return the seconds until its first byte, and until its end."""
    kept.seek(0)
    kept.truncate()
    headers = {"Authorization": f"Bearer {user.token}"}
    with requests.Session() as session:
        session.trust_env = False
        session.get(f"{url}/health/live", timeout=PATIENCE_S)
        began_s = time.monotonic()
        path = f"{url}{BATCHES}{batch.pk}/export/"
        with session.get(path, headers=headers, stream=True, timeout=PATIENCE_S) as answer:
            answer.raise_for_status()
            pieces = answer.iter_content(PIECE_BYTES)
            kept.write(next(pieces))
            first_s = time.monotonic() - began_s
            for piece in pieces:
                kept.write(piece)
    return first_s, time.monotonic() - began_s


@contextmanager
def _peak_mb(process: psutil.Process) -> Iterator[list[float]]:
    """Give a list that holds, after the block, its memory before and its greatest."""
    used = [_memory_mb(process)]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(LOOK_S):
            used.append(_memory_mb(process))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield used
    finally:
        is_over.set()
        looking.join()
        used[:] = [used[0], max(used)]


def _memory_mb(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss) / 2**20


def _read_here(batch: Batch) -> float:
    began_s = time.monotonic()
    for name in Image.objects.filter(generation__batch=batch).values_list("file", flat=True):
        zlib.crc32(Path(settings.MEDIA_ROOT / name).read_bytes())
    return time.monotonic() - began_s
