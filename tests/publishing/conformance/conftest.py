"""One simulator for all channels, as good as new for each test, and a network before it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from generation.http import HttpClient
from tests.faults.proxy import TcpProxy
from tests.publishing.conformance.harness import Facts, Harness
from tests.simulator.support import Simulator, running_simulator


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[Simulator]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def sim(simulator_process: Simulator) -> Simulator:
    assert simulator_process.request("POST", "/_sim/reset").status_code == 204
    quick = {"publish_seconds": 0.02, "media_seconds": 0.02}
    answer = simulator_process.request("POST", "/_sim/shops/settings", json=quick)
    assert answer.status_code == 200, answer.text
    return simulator_process


@pytest.fixture
def facts(request: pytest.FixtureRequest) -> Facts:
    given: Facts = request.param
    return given


@pytest.fixture
def harness(facts: Facts, sim: Simulator, http: HttpClient) -> Harness:
    return Harness(facts, sim, http)


@pytest.fixture
def network(sim: Simulator) -> Iterator[TcpProxy]:
    """A way to the simulator that can be made to fail."""
    parts = urlsplit(sim.url)
    assert parts.hostname is not None
    assert parts.port is not None
    with TcpProxy((parts.hostname, parts.port)) as proxy:
        yield proxy
