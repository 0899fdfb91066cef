"""When to look at a prediction again."""

import time
from statistics import median

from django.conf import settings

from batches.models import Attempt
from generation.catalogue import get_model

MIN_LOOK_S, MAX_LOOK_S = 0.05, 5.0
# Half of all predictions take longer than usual, most of those by next to nothing.
LOOK_MARGIN = 0.005
# When the provider is to report by itself, a look is for the report that got lost.
MIN_FALLBACK_S, MAX_FALLBACK_S = 1.0, 30.0
USUAL_TTL_S = 0.5
DEFAULT_USUAL_S = 5.0
_usual: dict[str, tuple[float, float]] = {}


def usual_s(model_id: str) -> float:
    """Seconds a prediction of this model usually takes: the median of the latest, or a prior."""
    known = _usual.get(model_id)
    if known is None or known[0] < time.monotonic():
        recent = Attempt.objects.recent_run_times(model_id)
        model = get_model(model_id)
        prior = model.est_seconds if model else DEFAULT_USUAL_S
        usual = max(median(recent) if recent else prior, MIN_LOOK_S)
        known = (time.monotonic() + USUAL_TTL_S, usual)
        _usual[model_id] = known
    return known[1]


def next_look_s(elapsed_s: float, usual: float, *, reports: bool) -> float:
    """Seconds until the next look at a prediction.

    The first is just after it usually is done; from there on each wait is a quarter of the
    overrun, so that a late one costs few requests and is seen with little further delay.
    `reports`: the provider was asked to tell by webhook, so a look may come later. No wait is
    longer than a third of a lease: the looks are what keeps that alive.
    """
    expected_s = usual * (1 + LOOK_MARGIN)
    if reports:
        expected_s += max(MIN_FALLBACK_S, usual / 2)
    wait_s = expected_s - elapsed_s if elapsed_s < expected_s else (elapsed_s - usual) / 4
    least_s, most_s = (MIN_FALLBACK_S, MAX_FALLBACK_S) if reports else (MIN_LOOK_S, MAX_LOOK_S)
    return bounded_s(min(max(wait_s, least_s), most_s))


def bounded_s(wait_s: float) -> float:
    """A wait that a lease outlasts."""
    return min(max(wait_s, MIN_LOOK_S), settings.LEASE_SECONDS / 3)
