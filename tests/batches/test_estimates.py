"""How long runs take, and when a batch will have ended."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db.models.functions import Now

from batches import estimates, lifecycle
from batches.estimates import NoEta, RunTimes, batch_eta
from batches.models import (
    Attempt,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Lane,
    Outlook,
    Pool,
    PoolOutlook,
)
from batches.scheduling import admit
from tests.factories import MODEL, make_batch, make_generation, make_user, new_generation

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(estimates, "_known", {})


def outlook(**changes):
    system = PoolOutlook(capacity=20, is_stopped=False, failure_count=0, blocked_s=0.0)
    fields = {
        "now": NOW,
        "cap": 2,
        "running": 0,
        "ahead": 0,
        "busy_lanes": 1,
        "pools": {Pool.SYSTEM: system, "replicate": system},
    }
    return Outlook(**{**fields, **changes})


def pool(**changes):
    fields = {"capacity": 20, "is_stopped": False, "failure_count": 0, "blocked_s": 0.0}
    return PoolOutlook(**{**fields, **changes})


def with_pool(**changes):
    return outlook(pools={Pool.SYSTEM: pool(), "replicate": pool(**changes)})


def item(status=GenerationStatus.QUEUED, *, elapsed_s=0.0, **fields):
    started_at = None if status == GenerationStatus.QUEUED else NOW - timedelta(seconds=elapsed_s)
    fixed = {"model": MODEL, "provider": "replicate", "attempt_count": 1}
    return Generation(status=status, started_at=started_at, **{**fixed, **fields})


def eta_s(items, seen=None, **batch):
    return batch_eta(Batch(**{"status": BatchStatus.PROCESSING, **batch}), items, seen or outlook())


def runs_take(*seconds):
    estimates._known[MODEL] = (float("inf"), RunTimes(tuple(sorted(seconds))))


# --- run times ----------------------------------------------------------------------------------


def test_a_quantile_lies_between_the_samples():
    times = RunTimes((1.0, 3.0))
    assert [times.at(q) for q in (0.01, 0.25, 0.5, 0.75, 0.99)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_what_is_left_of_a_run_is_reckoned_from_those_that_took_longer():
    times = RunTimes((2.0, 4.0, 6.0))
    assert times.left_s(0) == 4.0
    assert times.left_s(3) == 2.0
    assert times.left_s(10) == 1.0  # late already


@pytest.mark.django_db
def test_without_runs_the_catalogue_says_how_long_they_take():
    times = estimates.run_times(MODEL)
    assert times.median_s == 1.5
    assert times.at(0.95) == 1.5 * estimates.PRIOR_P90  # now and then one takes longer


@pytest.mark.django_db
def test_the_latest_runs_count_and_are_read_once_in_a_while(django_assert_num_queries):
    generation = make_generation()
    for number, total_s in enumerate([100.0, *[4.0] * 19, 5.0], start=1):
        Attempt.objects.create(
            generation=generation,
            number=number,
            provider="replicate",
            model=MODEL,
            outcome="succeeded",
            total_s=total_s,
            finished_at=Now() - timedelta(minutes=60 - number),
        )
    with django_assert_num_queries(1):
        times = [estimates.run_times(MODEL) for _ in range(3)]
    assert times[0].samples == (*[4.0] * 19, 5.0)


# --- the end of a batch -------------------------------------------------------------------------


def test_a_queue_is_laid_out_on_its_owners_slots():
    runs_take(3.0)
    step_s = 3.0 + estimates.OVERHEAD_S
    eta = eta_s([item() for _ in range(10)])
    assert eta.seconds == round(5 * step_s + estimates.OVERHEAD_S)
    assert eta.reason is None


def test_what_runs_is_reckoned_with_by_what_is_left_of_it():
    runs_take(10.0)
    busy = outlook(running=2)
    running = [item(GenerationStatus.PROCESSING, elapsed_s=8.0) for _ in range(2)]
    assert eta_s(running, busy).seconds == 2
    assert eta_s([*running, item()], busy).seconds == pytest.approx(12, abs=1)


def test_what_its_owner_has_ahead_in_line_goes_first():
    runs_take(10.0)
    alone, behind = (eta_s([item()], outlook(cap=1, ahead=n)).seconds for n in (0, 3))
    assert (alone, behind) == (10, 41)


def test_slots_that_others_share_are_not_counted_on():
    runs_take(10.0)
    shared = outlook(cap=20, busy_lanes=10)
    assert eta_s([item() for _ in range(4)], shared).seconds == pytest.approx(20, abs=1)
    assert eta_s([item() for _ in range(4)], outlook(cap=20)).seconds == pytest.approx(10, abs=1)


def test_a_provider_that_takes_few_at_a_time_is_what_decides():
    runs_take(10.0)
    eta = eta_s([item() for _ in range(4)], outlook(cap=20, pools=with_pool(capacity=1).pools))
    assert eta.seconds == pytest.approx(41, abs=1)


def test_a_block_and_a_backoff_are_waited_for():
    runs_take(10.0)
    assert eta_s([item()], with_pool(blocked_s=60.0)).seconds == pytest.approx(70, abs=1)
    waiting = item(not_before=NOW + timedelta(seconds=30))
    assert eta_s([waiting]).seconds == pytest.approx(40, abs=1)


def test_a_long_run_now_and_then_is_reckoned_with():
    runs_take(*[1.0] * 9, 20.0)
    assert eta_s([item() for _ in range(20)]).seconds > 20 * 2.9 / 2


@pytest.mark.parametrize(
    ("items", "seen", "batch", "reason"),
    [
        ([item()], outlook(), {"status": BatchStatus.COMPLETED}, NoEta.ENDED),
        ([item()], outlook(), {"status": BatchStatus.PAUSED}, NoEta.PAUSED),
        ([item(GenerationStatus.PENDING)], outlook(), {}, NoEta.PAUSED),
        ([item()], outlook(), {"cancel_requested_at": NOW}, NoEta.CANCELLING),
        ([item()], with_pool(is_stopped=True), {}, NoEta.PROVIDER_STOPPED),
        ([item()], with_pool(failure_count=3), {}, NoEta.PROVIDER_AWAY),
        ([item()], outlook(cap=0), {}, NoEta.NO_SLOTS),
        ([item()], outlook(ahead=Outlook.MAX_AHEAD), {}, NoEta.FAR_BACK),
    ],
)
def test_where_nobody_can_tell_the_reason_is_given(items, seen, batch, reason):
    runs_take(1.0)
    assert eta_s(items, seen, **batch) == estimates.Eta(None, reason)


def test_a_batch_that_was_only_just_taken_is_not_estimated():
    assert batch_eta(Batch(), [item()], None).reason == NoEta.NOT_ESTIMATED


# --- what it rests on ---------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_outlook_tells_lane_pools_and_what_is_ahead():
    owner = make_user()
    make_batch(owner, size=3)
    batch = make_batch(owner, size=2)
    make_generation(owner)  # goes before all batches
    make_generation(make_user())
    admit()
    Pool.objects.filter(name="replicate").update(
        blocked_until=Now() + timedelta(seconds=50), failure_count=2, stopped_by="auth"
    )
    seen = Outlook.of(Batch.objects.with_outlook().get(pk=batch.pk))
    lane = Lane.objects.get(owner=owner)
    assert (seen.cap, seen.running) == (lane.cap, 3)
    assert seen.ahead == 1  # the single image and two of the other batch run
    assert seen.busy_lanes == 2
    replicate = seen.pools["replicate"]
    assert (replicate.is_stopped, replicate.failure_count) == (True, 2)
    assert replicate.blocked_s == pytest.approx(50, abs=5)


@pytest.mark.django_db
def test_a_finished_batch_has_no_outlook():
    batch = make_batch(size=1)
    lifecycle.cancel_batch(batch=batch)
    assert Outlook.of(Batch.objects.with_outlook().get(pk=batch.pk)) is None


@pytest.mark.django_db
def test_a_batch_and_its_outlook_are_one_query(django_assert_num_queries):
    batch = make_batch(size=3)
    with django_assert_num_queries(1):
        Outlook.of(Batch.objects.with_outlook().get(pk=batch.pk))


@pytest.mark.django_db
def test_generations_of_two_models_are_each_laid_out_by_their_own_run_times():
    owner = make_user()
    other = "stability-ai/sdxl"
    batch = lifecycle.submit_batch(
        owner_id=owner.pk,
        generations=[new_generation(), new_generation(model=other)],
        settings_asked={},
    )
    runs_take(1.0)
    estimates._known[other] = (float("inf"), RunTimes((60.0,)))
    read = Batch.objects.with_outlook().get(pk=batch.pk)
    eta = batch_eta(read, list(read.generations.all()), Outlook.of(read))
    assert eta.seconds == pytest.approx(60, abs=1)
