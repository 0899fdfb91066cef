"""Large pictures, from the download to the file and its renditions in storage.

Each is served here and taken by the worker's own step, in a process of its own with all that a
worker has loaded. Its peak memory is the kernel's figure for the whole life of that process.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import BinaryIO

import django
from PIL import Image

from benchmarks.harness import REPETITIONS, Row, number
from generation.http import HttpClient, OutputHosts
from generation.provider import Downloaded, Failure

LARGE_PX = (4500, 5400)
HUGE_PX = (8192, 8192)  # more than is allowed unless MAX_OUTPUT_PIXELS says so
USUAL_PX = (1024, 1024)
MAX_MB = 300


def run() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder, _served(folder) as url:
        for px, mode, kind, at_most_s in (
            (USUAL_PX, "RGB", "webp", None),
            (LARGE_PX, "RGB", "png", 5.0),
            (LARGE_PX, "RGBA", "png", None),
            (HUGE_PX, "RGBA", "png", None),
        ):
            name = f"{px[0]}x{px[1]}-{mode.lower()}.{kind}"
            path = Path(folder, name)
            _picture(px, mode).save(path, quality=80, compress_level=3)
            size_mb = path.stat().st_size / 1e6
            seconds, peaks_mb = _measured(f"{url}/{name}")
            path.unlink()
            what = f"{px[0]} x {px[1]} {mode} {kind.upper()} of {number(size_mb)} MB"
            rows.append(
                Row(
                    f"{px[0]}x{px[1]} {mode} {kind}",
                    f"{what}, from download to stored with both renditions; median of "
                    f"{len(seconds)} processes, for each its first picture",
                    median(seconds),
                    "s",
                    at_most=at_most_s,
                )
            )
            rows.append(
                Row(
                    f"{px[0]}x{px[1]} {mode} memory",
                    f"{what}: peak memory of the process that does it, Django included",
                    max(peaks_mb),
                    "MB",
                    at_most=MAX_MB,
                )
            )
    return rows


def _measured(url: str) -> tuple[list[float], list[float]]:
    """Return the seconds and the peaks in MB of as many processes as there are repetitions."""
    seconds, peaks_mb = [], []
    for _ in range(REPETITIONS):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.images", url],
            stdout=subprocess.PIPE,
            check=True,
        )
        figures = json.loads(done.stdout)
        seconds.append(figures["seconds"])
        peaks_mb.append(figures["peak_mb"])
    return seconds, peaks_mb


def _picture(size_px: tuple[int, int], mode: str) -> Image.Image:
    """A picture with about as much going on in it as a photograph."""
    small_px = (size_px[0] // 8, size_px[1] // 8)
    noise = Image.effect_noise(small_px, 60).resize(size_px)
    ramp = Image.linear_gradient("L").resize(size_px)
    bands = (noise, ramp, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ramp)
    return Image.merge(mode, bands[: len(mode)])


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _served(folder: str) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Local:
    """As much of a provider as the step asks for."""

    def download(
        self, output: str, sink: BinaryIO, *, prediction_id: str, max_bytes: int
    ) -> Downloaded | Failure:
        hosts = OutputHosts(extra=("127.0.0.1",))
        return HttpClient().download(output, sink, hosts=hosts, max_bytes=max_bytes)


def _store(url: str) -> None:
    """What the process does that is measured."""
    django.setup()
    from django.conf import settings

    from batches.models import Attempt, Generation
    from worker import tasks

    settings.MAX_OUTPUT_PIXELS = HUGE_PX[0] * HUGE_PX[1]
    settings.MAX_OUTPUT_BYTES = 200_000_000
    generation = Generation(id=uuid.uuid4(), batch_id=uuid.uuid4(), owner_id=1)
    attempt = Attempt(generation=generation, number=1, provider_id="one")
    began_s = time.perf_counter()
    stored = tasks._fetch(_Local(), url, attempt, 0)  # type: ignore[arg-type]
    took_s = time.perf_counter() - began_s
    if isinstance(stored, Failure):
        sys.exit(f"{url}: {stored.message}")
    # Not getrusage's: that begins with the memory of the process which started this one.
    status = Path("/proc/self/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"seconds": took_s, "peak_mb": peak_kib * 1024 / 1e6}))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
    _store(sys.argv[1])
