"""A channel at the simulator."""

from __future__ import annotations

import pytest

from generation.http import HttpClient
from tests.publishing.conformance.harness import Facts, Harness
from tests.simulator.shop_support import configure_shops
from tests.simulator.support import Simulator


@pytest.fixture
def sim(sim: Simulator) -> Simulator:
    """The simulator, with shops that are done with what they do by themselves almost at once."""
    configure_shops(sim, publish_seconds=0.02, media_seconds=0.02)
    return sim


@pytest.fixture
def facts(request: pytest.FixtureRequest) -> Facts:
    given: Facts = request.param
    return given


@pytest.fixture
def harness(facts: Facts, sim: Simulator, http: HttpClient) -> Harness:
    return Harness(facts, sim, http)
