"""One stack that may be killed, for all fault tests, and the table of what it went through."""

import tempfile
from pathlib import Path

import pytest

from tests.faults.harness import FULL, Faults, FaultStack, table

ROWS = pytest.StashKey[dict]()
# Runs for minutes: only when asked for.
collect_ignore = [] if FULL else ["test_soak.py"]


def pytest_collection_modifyitems(config, items):
    if not FULL and (left_out := [one for one in items if one.get_closest_marker("full_only")]):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [one for one in items if one not in left_out]
    for item in items:
        if {"faults", "fault_stack"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("faults"))
            if FULL and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(300))


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash.get(ROWS, None):
        terminalreporter.section("faults")
        for line in table(rows):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def fault_stack():
    # Not below pytest's own folder, which it closes to the user that PostgreSQL runs as.
    with (
        tempfile.TemporaryDirectory(prefix="picture-faults-") as folder,
        FaultStack(Path(folder)) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def fault_rows(pytestconfig):
    """The rows of the table by fault."""
    return pytestconfig.stash.setdefault(ROWS, {})


@pytest.fixture(scope="session")
def fault_session(fault_stack, fault_rows):
    session = Faults(fault_stack, fault_rows)
    yield session
    broken = session.broken_invariants()
    assert not broken, "\n".join(broken)


@pytest.fixture
def faults(fault_session):
    """The stack with everything as at the start of a test; see `harness`."""
    fault_session.reset()
    fault_session.stack.await_ready()
    yield fault_session
    fault_session.reset()
