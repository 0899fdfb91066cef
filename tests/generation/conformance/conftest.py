"""A provider at the simulator, and a prompt to tell what is this test's."""

from __future__ import annotations

import pytest

from generation.http import HttpClient
from tests.generation.conformance.harness import Harness
from tests.simulator.support import Simulator


@pytest.fixture
def harness(request: pytest.FixtureRequest, sim: Simulator, http: HttpClient) -> Harness:
    made: Harness = request.param(sim, http)
    return made


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> str:
    """A prompt of this test alone."""
    return f"a cat in {request.node.name}"
