"""The providers that the conformance suite runs for, and what makes its tests of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.generation.conformance.comfyui import ComfyUIHarness
from tests.generation.conformance.harness import Call, Harness
from tests.generation.conformance.replicate import ReplicateHarness
from tests.generation.conformance.runpod import RunPodHarness

HARNESSES: tuple[type[Harness], ...] = (ReplicateHarness, ComfyUIHarness, RunPodHarness)


def those(is_meant: Callable[[type[Harness]], object]) -> Any:
    """Run a test for each provider that it applies to."""
    params = [pytest.param(one, id=one.name) for one in HARNESSES if is_meant(one)]
    return pytest.mark.parametrize("harness", params, indirect=True)


every = those(lambda one: True)


def errors_of(call: Call) -> Any:
    """Run a test for each provider and each of its errors of this call."""
    return _cases(lambda one: [case for case in one.errors if case.call == call])


def _cases(cases_of: Callable[[type[Harness]], Any]) -> Any:
    params = [
        pytest.param(one, case, id=f"{one.name}-{case.id}")
        for one in HARNESSES
        for case in cases_of(one)
    ]
    return pytest.mark.parametrize(("harness", "case"), params, indirect=["harness"])


every_output = _cases(lambda one: one.outputs)
