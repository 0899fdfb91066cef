"""When to look at a prediction again."""

from django.conf import settings

from batches.estimates import run_times

MIN_LOOK_S, MAX_LOOK_S = 0.05, 5.0
# Half of all predictions take longer than usual, most of those by next to nothing.
LOOK_MARGIN = 0.005
# When the provider is to report by itself, a look is for the report that got lost.
MIN_FALLBACK_S, MAX_FALLBACK_S = 1.0, 30.0


def usual_s(model_id: str) -> float:
    """Seconds a prediction of this model usually takes."""
    return max(run_times(model_id).median_s, MIN_LOOK_S)


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
