from collections import Counter
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from batches import invariants, lifecycle, pools
from batches.models import Batch, Generation, Lane, Lease, Pool
from batches.scheduling import admit, follow_default_cap, share_slots
from generation.provider import ErrorClass, Failure
from tests.factories import make_batch, make_generation, make_user
from tests.support import at_once, in_background

pytestmark = pytest.mark.django_db

UNAVAILABLE = Failure(ErrorClass.PROVIDER_UNAVAILABLE, "away")


@pytest.fixture(autouse=True)
def unlimited_rate(settings):
    """The rate limit has tests of its own."""
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 1_000}}


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


def admitted_ids():
    return [member.generation_id for member in admit().admitted]


def release(generation_id):
    """End a running generation the quick way."""
    generation = Generation.objects.get(pk=generation_id)
    assert lifecycle.fail_generation(generation=generation, attempt=None, failure=UNAVAILABLE)


def test_admits_up_to_the_cap_of_each_user():
    make_batch(size=5)
    make_batch(size=2)
    admission = admit()
    per_owner = Counter(
        Generation.objects.filter(status="processing").values_list("owner_id", flat=True)
    )
    assert sorted(per_owner.values()) == [2, 3]
    assert len(admission.admitted) == Lease.objects.count() == 5


def test_admits_no_more_than_the_system_holds(settings):
    settings.MAX_PARALLEL_GLOBAL = 4
    for _ in range(3):
        make_batch(size=3)
    assert len(admit().admitted) == 4
    assert admit().admitted == []


def test_the_capacity_of_the_system_follows_its_setting(settings):
    settings.MAX_PARALLEL_GLOBAL = 1
    make_batch(size=3)
    assert len(admit().admitted) == 1
    settings.MAX_PARALLEL_GLOBAL = 2
    assert len(admit().admitted) == 1
    assert Pool.objects.get(name="system").capacity == 2


def test_a_cap_of_ones_own_is_kept_when_the_default_changes(settings):
    own, default = make_batch(size=1).owner, make_batch(size=1).owner
    Lane.objects.filter(owner=own).update(cap=7, cap_is_own=True)
    settings.MAX_PARALLEL_PER_USER = 2
    assert follow_default_cap() == 1
    assert Lane.objects.get(owner=own).cap == 7
    assert Lane.objects.get(owner=default).cap == 2


def test_a_freed_slot_is_given_to_the_next_in_line():
    batch = make_batch(size=4)
    first = admitted_ids()
    release(first[0])
    assert admitted_ids() == [batch.generations.get(index=3).pk]


def test_within_a_user_priority_goes_first_then_first_in_first_out(settings):
    settings.MAX_PARALLEL_PER_USER = 1
    user = make_user()
    background = make_batch(user, size=2)
    urgent = make_generation(user)
    later = make_generation(user)
    order = []
    for _ in range(4):
        (generation_id,) = admitted_ids()
        order.append(generation_id)
        release(generation_id)
    items = list(background.generations.order_by("index").values_list("pk", flat=True))
    assert order == [urgent.pk, later.pk, *items]


def test_users_take_turns_whatever_the_length_of_their_lines(settings):
    settings.MAX_PARALLEL_GLOBAL = 2
    settings.MAX_PARALLEL_PER_USER = 2
    crowd = make_user()
    for _ in range(4):
        make_batch(crowd, size=5)
    for _ in range(3):
        for generation_id in admitted_ids():
            release(generation_id)
    newcomer = make_batch(size=3).owner
    order = []
    for _ in range(3):
        for generation_id in admitted_ids():
            order.append(Generation.objects.get(pk=generation_id).owner)
            release(generation_id)
    assert order.count(newcomer) == 3


def test_being_idle_earns_no_credit(settings):
    settings.MAX_PARALLEL_GLOBAL = settings.MAX_PARALLEL_PER_USER = 1
    idle = make_generation().owner
    (first,) = admitted_ids()
    release(first)
    busy = make_batch(size=14).owner
    for _ in range(6):
        (generation_id,) = admitted_ids()
        release(generation_id)
    make_batch(idle, size=8)
    owners = []
    for _ in range(8):
        (generation_id,) = admitted_ids()
        owners.append(Generation.objects.get(pk=generation_id).owner)
        release(generation_id)
    assert owners.count(busy) in (3, 4, 5)


def test_a_heavier_lane_gets_more(settings):
    lanes = [
        Lane(owner_id=1, cap=100, running=0, queued=100, vtime=0.0, weight=1.0),
        Lane(owner_id=2, cap=100, running=0, queued=100, vtime=0.0, weight=3.0),
    ]
    shares, _ = share_slots(lanes, 40)
    assert shares == {1: 10, 2: 30}


def test_sharing_many_slots_at_once_equals_sharing_them_one_by_one():
    def lanes():
        return [
            Lane(
                owner_id=number,
                cap=3 + number % 4,
                running=number % 3,
                queued=1 + number % 5,
                vtime=float(number % 7) * 0.7,
                weight=1.0 + number % 2,
            )
            for number in range(1, 20)
        ]

    at_once, _ = share_slots(lanes(), 25)
    singly: Counter[int] = Counter()
    ring = lanes()
    for _ in range(25):
        open_lanes = [lane for lane in ring if lane.running < lane.cap and lane.queued]
        lane = min(open_lanes, key=lambda one: (one.vtime, one.owner_id))
        singly[lane.owner_id] += 1
        lane.running, lane.queued = lane.running + 1, lane.queued - 1
        lane.vtime += 1 / lane.weight
    assert at_once == dict(singly)


def test_a_generation_in_backoff_is_admitted_when_its_time_has_come():
    generation = make_generation()
    admit()
    generation.refresh_from_db()
    attempt = lifecycle.begin_attempt(generation=generation)
    lifecycle.requeue_generation(
        generation=generation,
        attempt=attempt,
        failure=UNAVAILABLE,
        delay_s=60,
        counts_as_retry=True,
    )
    admission = admit()
    assert admission.admitted == []
    assert admission.next_in_s == pytest.approx(60, abs=1)
    Generation.objects.update(not_before=Now() - timedelta(seconds=1))
    assert admitted_ids() == [generation.pk]


def test_a_blocked_provider_is_given_nothing_until_the_block_ends():
    make_generation()
    admit()
    make_generation()
    pools.block_pool(name="replicate", seconds=30)
    admission = admit()
    assert admission.admitted == []
    assert admission.next_in_s == pytest.approx(30, abs=1)
    Pool.objects.filter(name="replicate").update(blocked_until=Now() - timedelta(seconds=1))
    assert len(admit().admitted) == 1


def test_a_block_is_never_shortened():
    admit()
    pools.block_pool(name="replicate", seconds=60)
    until = Pool.objects.get(name="replicate").blocked_until
    pools.block_pool(name="replicate", seconds=5)
    assert Pool.objects.get(name="replicate").blocked_until == until


def test_the_rate_of_a_provider_is_a_token_bucket(settings):
    settings.PROVIDER_POOLS = {
        "replicate": {"capacity": 100, "rate_per_s": 0.5, "burst": 2, "tokens": 2}
    }
    make_batch(size=3)
    admission = admit()
    assert len(admission.admitted) == 2
    # Two tokens are spent; the third is half a rate away.
    assert admission.next_in_s == pytest.approx(2, abs=0.1)
    Pool.objects.filter(name="replicate").update(refilled_at=Now() - timedelta(seconds=2))
    assert len(admit().admitted) == 1


def test_a_full_bucket_does_not_overflow(settings):
    settings.PROVIDER_POOLS = {
        "replicate": {"capacity": 100, "rate_per_s": 10.0, "burst": 2, "tokens": 0}
    }
    admit()
    Pool.objects.filter(name="replicate").update(refilled_at=Now() - timedelta(hours=1))
    make_batch(size=3)
    assert len(admit().admitted) == 2


def test_work_for_a_closed_provider_does_not_hold_up_others(settings):
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 0}, "other": {"capacity": 10}}
    settings.MAX_PARALLEL_GLOBAL = 2
    for _ in range(4):
        make_batch(size=1)
    open_work = make_generation(provider="other")
    assert admitted_ids() == [open_work.pk]


def test_no_round_picks_what_an_earlier_one_has_picked(settings):
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 10}, "other": {"capacity": 0}}
    settings.MAX_PARALLEL_GLOBAL = 2
    user = make_user()
    make_batch(user, size=1)
    closed = make_user()
    make_generation(closed, provider="other")
    Lane.objects.filter(owner=closed).update(vtime=0.5)
    make_generation(user, provider="other")
    admitted = admitted_ids()
    assert len(admitted) == len(set(admitted)) == 1


def test_turns_are_taken_also_when_the_provider_is_the_limit(settings):
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 2}}
    settings.MAX_PARALLEL_PER_USER = 20
    crowd = make_user()
    for _ in range(2):
        make_batch(crowd, size=20)
    first = admitted_ids()
    assert Pool.objects.get(name="system").vtime <= 2
    newcomer = make_batch(size=3).owner
    order = []
    for generation_id in first:
        release(generation_id)
    for _ in range(4):
        for generation_id in admitted_ids():
            order.append(Generation.objects.get(pk=generation_id).owner)
            release(generation_id)
    assert order[:6].count(newcomer) == 3


def test_only_the_first_member_of_a_batch_carries_its_size():
    batch = make_batch(size=3)
    assert sorted((member.index, member.chord_size) for member in admit().admitted) == [
        (0, 3),
        (1, None),
        (2, None),
    ]
    batch.refresh_from_db()
    assert batch.status == "processing"
    assert batch.started_at is not None


def test_admission_takes_the_same_number_of_queries_for_one_and_for_twenty():
    admit()
    counts = []
    for users in (1, 10):
        for _ in range(users):
            make_batch(size=2)
        with CaptureQueriesContext(connection) as queries:
            assert len(admit().admitted) == users * 2
        counts.append(len(queries))
        for generation_id in Lease.objects.values_list("generation_id", flat=True):
            release(generation_id)
    assert counts[0] == counts[1] <= 16


@pytest.mark.django_db(transaction=True)
def test_admission_never_exceeds_the_cap_under_contention():
    user = make_user()
    for _ in range(4):
        make_batch(user, size=25)
    running: list[int] = []

    def work():
        for _ in range(6):
            for member in admit().admitted:
                running.append(Lease.objects.filter(owner=user).count())
                release(member.generation_id)

    at_once(*[work] * 16)
    assert len(running) > 16
    assert max(running) <= 3
    assert Lease.objects.count() == 0
    assert Batch.objects.filter(failed_count__gt=0).exists()


@pytest.mark.django_db(transaction=True)
def test_a_lane_that_somebody_holds_is_skipped_and_not_waited_for():
    first, second = make_batch(size=1), make_batch(size=1)
    with transaction.atomic():
        Lane.objects.select_for_update().get(owner=first.owner)
        assert in_background(admitted_ids).result(10) == [second.generations.get().pk]
    assert admitted_ids() == [first.generations.get().pk]


def test_any_number_of_lanes_that_wait_for_a_full_provider_do_not_hold_up_others(settings):
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 100}, "small": {"capacity": 1}}
    settings.MAX_PARALLEL_GLOBAL = 3
    for _ in range(40):
        make_generation(provider="small")
    behind = [make_generation() for _ in range(2)]
    admitted = {member.generation_id for member in admit().admitted}
    assert {generation.pk for generation in behind} < admitted
    assert len(admitted) == 3  # and one for the small one


def test_a_long_line_for_a_full_provider_does_not_hold_up_its_owners_other_work(settings):
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 100}, "small": {"capacity": 1}}
    owner = make_user()
    for _ in range(20):
        make_generation(owner, provider="small")
    behind = make_generation(owner)
    admitted = {member.generation_id for member in admit().admitted}
    assert behind.pk in admitted
    assert len(admitted) == 2


def test_within_one_priority_the_oldest_goes_first_whatever_its_provider(settings):
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 100}, "other": {"capacity": 100}}
    settings.MAX_PARALLEL_PER_USER = 3
    owner = make_user()
    made = [make_generation(owner, provider=name) for name in ("other", "replicate") * 3]
    assert {member.generation_id for member in admit().admitted} == {one.pk for one in made[:3]}
