"""The process: options, ready line, taken port, end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from simulator.app import is_loopback
from tests.simulator.support import PATIENCE_S, ROOT, Simulator, running_simulator


def run_to_its_end(*options: str) -> subprocess.CompletedProcess[str]:
    """Run a simulator that cannot start."""
    command = [sys.executable, "-m", "simulator", *options]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_a_taken_port_is_told_in_one_line(sim: Simulator) -> None:
    port = sim.url.rpartition(":")[2]
    ended = run_to_its_end("--port", port)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert port in ended.stderr


def test_terminate_ends_it_at_once_even_with_open_requests() -> None:
    with running_simulator("--run-seconds", "60") as sim:
        sim.fault("drip", seconds=5)
        sim.configure(run_seconds=0)
        ended = sim.ended(sim.created()["id"])
        with sim.request("GET", ended["output"][0], stream=True):
            began = time.monotonic()
            sim.process.terminate()
            assert sim.process.wait(PATIENCE_S) == 0
            assert time.monotonic() - began < 2


def test_tokens_can_be_limited() -> None:
    with running_simulator("--token", "r8_one", "--token", "two") as sim:
        statuses = [
            sim.request("GET", "/v1/account", headers={"Authorization": f"Bearer {t}"}).status_code
            for t in ("r8_one", "two", "r8_three")
        ]
        assert statuses == [200, 200, 401]


def test_urls_follow_the_public_url_else_the_host_header(sim: Simulator) -> None:
    created = sim.created({"Host": "pictures.test:81"})
    assert created["urls"]["get"].startswith("http://pictures.test:81/v1/predictions/")
    with running_simulator("--public-url", "https://files.test/") as public:
        output = public.run()["output"][0]
        assert output.startswith("https://files.test/files/out/")


def test_every_setting_is_an_option() -> None:
    options = ["--rate-per-minute", "7", "--rate-burst", "3", "--wait-says-processing"]
    with running_simulator(*options, "--owner-parameter", "who") as sim:
        settings = sim.request("GET", "/_sim/settings").json()
    assert (settings["rate_per_minute"], settings["rate_burst"]) == (7, 3)
    assert (settings["wait_says_processing"], settings["owner_parameter"]) == (True, "who")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("192.0.2.1", False), (None, False)],
)
def test_control_routes_are_for_the_same_machine(address: str | None, allowed: bool) -> None:
    assert is_loopback(address) is allowed


@pytest.mark.parametrize(
    "options", [("--run-seconds", "-1"), ("--webhook-secret", "secret"), ("--speed", "3")]
)
def test_options_that_make_no_sense_are_refused(options: tuple[str, str]) -> None:
    assert run_to_its_end("--port", "0", *options).returncode == 2
