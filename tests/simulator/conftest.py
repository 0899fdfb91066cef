"""One simulator process for all tests, as good as new for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()
