"""Drive a simulator process over HTTP, and receive its webhooks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import requests

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "r8_test_token_abcd"
FLUX = "black-forest-labs/flux-schnell"
FLUX_DEV = "black-forest-labs/flux-dev"
SDXL = "stability-ai/sdxl"
SDXL_VERSION = "7762fd07cf82c948538e41f63f77d685e02b063e37e496e96eefd46c929f9bdc"
LIGHTNING_VERSION = "6f7a773af6fc3e8de9d5a3c00be77c17308914bf67772726aff83496ba1e3bbe"
TERMINAL = {"succeeded", "failed", "canceled", "aborted"}
PATIENCE_S = 20.0

T = TypeVar("T")


def eventually(probe: Callable[[], T | None], what: str) -> T:
    """Return the first truthy value of `probe`, asked again and again."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        if value := probe():
            return value
        time.sleep(0.005)
    raise AssertionError(f"never happened: {what}")


@dataclass
class Simulator:
    """A running simulator process."""

    process: subprocess.Popen[str]
    url: str
    http: requests.Session

    def request(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Send a request with the token of the tests; `path` may be a whole URL."""
        url = path if path.startswith("http") else self.url + path
        return self.http.request(method, url, timeout=PATIENCE_S, **kwargs)

    def create(self, headers: dict[str, str] | None = None, **body: Any) -> requests.Response:
        """Ask flux-schnell for a prediction; `input` defaults to a prompt."""
        body.setdefault("input", {"prompt": "a cat"})
        return self.request("POST", f"/v1/models/{FLUX}/predictions", json=body, headers=headers)

    def created(self, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """Create a prediction that must be accepted."""
        response = self.create(headers, **body)
        assert response.status_code in (201, 202), response.text
        return dict(response.json())

    def run(self, model: str = FLUX, **values: Any) -> dict[str, Any]:
        """Create a prediction of any model and return it ended."""
        values.setdefault("prompt", "a cat")
        version = f"{SDXL}:{SDXL_VERSION}" if model == SDXL else model
        body = {"version": version, "input": values}
        response = self.request("POST", "/v1/predictions", json=body)
        assert response.status_code == 201, response.text
        return self.ended(response.json()["id"])

    def get(self, prediction_id: str) -> dict[str, Any]:
        """Return a prediction as it is now."""
        response = self.request("GET", f"/v1/predictions/{prediction_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def reached(self, prediction_id: str, status: str) -> dict[str, Any]:
        """Wait until a prediction has `status`."""

        def probe() -> dict[str, Any] | None:
            prediction = self.get(prediction_id)
            return prediction if prediction["status"] == status else None

        return eventually(probe, f"{prediction_id} {status}")

    def ended(self, prediction_id: str) -> dict[str, Any]:
        """Wait until a prediction has ended."""

        def probe() -> dict[str, Any] | None:
            prediction = self.get(prediction_id)
            return prediction if prediction["status"] in TERMINAL else None

        return eventually(probe, f"{prediction_id} ended")

    def fault(self, kind: str, **rule: Any) -> dict[str, Any]:
        """Add a fault rule."""
        response = self.request("POST", "/_sim/faults", json={"kind": kind, **rule})
        assert response.status_code == 201, response.text
        return dict(response.json())

    def configure(self, **settings: Any) -> None:
        """Change settings."""
        response = self.request("POST", "/_sim/settings", json=settings)
        assert response.status_code == 200, response.text

    def ledger(self, **query: str) -> dict[str, Any]:
        """Return the ledger."""
        return dict(self.request("GET", "/_sim/ledger", params=query).json())

    def stats(self) -> dict[str, Any]:
        """Return the statistics."""
        return dict(self.request("GET", "/_sim/stats").json())


@contextmanager
def running_simulator(*options: str) -> Iterator[Simulator]:
    """Start a simulator on a free port, with quick settings, and end its process afterwards."""
    quick = ["--run-seconds", "0.05", "--queue-seconds", "0.01", "--cancel-after-min-seconds", "1"]
    quick += ["--webhook-retry-base-seconds", "0.02"]
    command = [sys.executable, "-m", "simulator", "--port", "0", *quick, *options]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        requests.Session() as http,
    ):
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        http.trust_env = False
        try:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            assert ready[:2] == ["simulator", "ready"]
            yield Simulator(process, ready[2], http)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@dataclass(frozen=True)
class Received:
    """One webhook request."""

    headers: dict[str, str]
    body: bytes
    path: str


class Receiver:
    """An HTTP server that keeps what it is sent.

    statuses: the answers to give, in order; 200 afterwards.
    """

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[Received] = []
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with receiver._changed:
                    receiver.received.append(Received(headers, body, self.path))
                    status = receiver.statuses.pop(0) if receiver.statuses else 200
                    receiver._changed.notify_all()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def wait_for(self, count: int) -> list[Received]:
        """Wait until `count` requests have come in, and return all."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.received) >= count, PATIENCE_S)
        assert came, f"{len(self.received)} webhooks instead of {count}"
        return list(self.received)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
