"""One simulator for all providers, as good as new for each test, and a network before it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from generation.http import HttpClient
from tests.faults.proxy import TcpProxy
from tests.generation.conformance.harness import Harness
from tests.simulator.support import Receiver, Simulator, running_simulator


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[Simulator]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture
def sim(simulator_process: Simulator) -> Simulator:
    assert simulator_process.request("POST", "/_sim/reset").status_code == 204
    return simulator_process


@pytest.fixture
def harness(request: pytest.FixtureRequest, sim: Simulator, http: HttpClient) -> Harness:
    made: Harness = request.param(sim, http)
    return made


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> str:
    """A prompt of this test alone."""
    return f"a cat in {request.node.name}"


@pytest.fixture
def network(sim: Simulator) -> Iterator[TcpProxy]:
    """A way to the simulator that can be made to fail."""
    parts = urlsplit(sim.url)
    assert parts.hostname is not None
    assert parts.port is not None
    with TcpProxy((parts.hostname, parts.port)) as proxy:
        yield proxy


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()
