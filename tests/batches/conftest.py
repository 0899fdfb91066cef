import math

import pytest

from batches import catalogue, estimates
from tests.factories import MODEL


@pytest.fixture
def fresh_catalogue(db):
    """The models as this test's rows have them, and for the next test as they were."""
    catalogue.forget()
    yield
    catalogue.forget()


@pytest.fixture
def warm_caches(db, monkeypatch):
    """What processes keep for a second is kept for the whole test, which counts queries."""
    catalogue.forget()
    monkeypatch.setattr(catalogue, "KEPT_S", math.inf)
    monkeypatch.setattr(estimates, "RUN_TIMES_TTL_S", math.inf)
    monkeypatch.setattr(estimates, "_known", {})
    catalogue.load_models()
    estimates.run_times(MODEL)
    yield
    catalogue.forget()
