"""Who may run now.

Waiting work is rows and nothing else. `admit` fills the free slots in one transaction: it locks
the pools, takes lanes off the ring in order of `vtime`, and gives each generation it picks a
lease. All admissions queue on the pool rows, so the caps are exact whoever calls. Lanes and
generations that somebody else holds are skipped: their holder wakes the next admission.

The ring is start-time fair queueing: the lane with the least `vtime` goes next and moves back by
1 / weight for each admission.
"""

import heapq
import math
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import Q

from batches import database, lifecycle
from batches.models import (
    Generation,
    GenerationStatus,
    Lane,
    Lease,
    Member,
    Pool,
)
from batches.pools import CIRCUIT_THRESHOLD, PROBE_S

# A round that leaves slots free has used up what some provider takes, and goes on without it.
MAX_ROUNDS = 5
RIPEN_LIMIT = 500
PUBLISHED_WITHIN_S = 5


@dataclass(frozen=True, slots=True)
class Admission:
    """Those that hold a slot from now on.

    `next_in_s`: when the clock alone may allow more; `None` if only an event can.
    """

    admitted: list[Member]
    next_in_s: float | None


@dataclass(frozen=True, slots=True)
class _Pick:
    generation_id: uuid.UUID
    owner_id: int
    provider: str
    batch_id: uuid.UUID | None
    index: int
    has_chord: bool
    pending_total: int | None  # the size of its batch, while nothing of that has started


def admit() -> Admission:
    """Give away every slot that is free and may be used now."""
    with transaction.atomic():
        pools, now = _lock_pools()
        running = _running()
        next_due = _ripen(now)
        picks: list[_Pick] = []
        after: tuple[float, int] = (-math.inf, 0)
        for _ in range(MAX_ROUNDS):
            allowances = _allowances(pools, running, now)
            # What the providers do not take is not handed out: the ring must stand still.
            free = min(pools[Pool.SYSTEM].capacity - running[Pool.SYSTEM], sum(allowances.values()))
            if free <= 0:
                break
            lanes = _lanes_after(
                after,
                limit=free,
                providers=list(allowances) if len(allowances) < len(pools) - 1 else None,
            )
            if not lanes:
                break
            after = (lanes[-1].vtime, lanes[-1].owner_id)
            shares, reached = share_slots(lanes, free)
            picked = _pick(shares, allowances, besides=picks)
            if picked:
                _charge_lanes(picked)
                _charge_pools(picked, pools, running, now, reached)
                picks += picked
            if len(lanes) < free:
                break
        admitted = _lease(picks, now) if picks else []
        return Admission(admitted, _opens_in_s(pools, now, next_due))


def share_slots(lanes: Sequence[Lane], free: int) -> tuple[dict[int, int], float]:
    """How many slots each owner gets, and the `vtime` that the ring has reached.

    Exact: the outcome is that of `free` single admissions one after the other.
    """
    ring = [(lane.vtime, lane.owner_id, position) for position, lane in enumerate(lanes)]
    heapq.heapify(ring)
    shares: Counter[int] = Counter()
    reached = 0.0
    while ring and free > 0:
        vtime, owner_id, position = heapq.heappop(ring)
        lane = lanes[position]
        shares[owner_id] += 1
        free -= 1
        reached = max(reached, vtime)
        if shares[owner_id] < min(lane.cap - lane.running, lane.queued):
            heapq.heappush(ring, (vtime + 1 / lane.weight, owner_id, position))
    return dict(shares), reached


def _lock_pools() -> tuple[dict[str, Pool], datetime]:
    """All pools by name, locked, and the time by the database's clock.

    Missing ones are made, and the capacity of the system follows its setting.
    """
    pools = {pool.name: pool for pool in Pool.objects.select_for_update().order_by("name")}
    wanted = {Pool.SYSTEM: {"capacity": settings.MAX_PARALLEL_GLOBAL}} | settings.PROVIDER_POOLS
    if missing := wanted.keys() - pools.keys():
        Pool.objects.bulk_create(
            [Pool(name=name, **wanted[name]) for name in sorted(missing)], ignore_conflicts=True
        )
        return _lock_pools()
    system = pools[Pool.SYSTEM]
    if system.capacity != settings.MAX_PARALLEL_GLOBAL:
        system.capacity = settings.MAX_PARALLEL_GLOBAL
        system.save(update_fields=["capacity"])
    with connection.cursor() as cursor:
        # Not now(): the transaction may have waited for the locks since it began.
        cursor.execute("SELECT clock_timestamp()")
        (now,) = cursor.fetchone()
    return pools, now


def _running() -> Counter[str]:
    """Slots by pool, those of the system being all. Exact: only who holds the pools adds any."""
    holding = Lease.objects.filter(holds_slot=True).order_by().values_list("pool")
    running = Counter(dict(holding.annotate(count=models.Count("*"))))
    running[Pool.SYSTEM] = running.total()
    return running


def _ripen(now: datetime) -> datetime | None:
    """Put those whose waiting time is over back in line; when the next one is due."""
    waiting = Generation.objects.filter(
        status=GenerationStatus.QUEUED, not_before__isnull=False
    ).order_by("not_before")
    first = waiting.values_list("not_before", flat=True).first()
    if first is None or first > now:
        return first
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH due AS (
                SELECT id, owner_id FROM batches_generation
                WHERE status = 'queued' AND not_before <= %s
                ORDER BY not_before LIMIT %s FOR UPDATE SKIP LOCKED
            ), ripe AS (
                UPDATE batches_generation SET not_before = NULL
                FROM due WHERE batches_generation.id = due.id
                RETURNING batches_generation.owner_id
            )
            SELECT owner_id, count(*) FROM ripe GROUP BY owner_id ORDER BY owner_id
            """,
            [now, RIPEN_LIMIT],
        )
        for owner_id, count in cursor.fetchall():
            Lane.objects.enqueue(owner_id, count, default_cap=settings.MAX_PARALLEL_PER_USER)
    return waiting.values_list("not_before", flat=True).first()


def _tokens(pool: Pool, now: datetime) -> float:
    """What the bucket of a pool with a rate holds now."""
    assert pool.rate_per_s is not None
    elapsed_s = max(0.0, (now - pool.refilled_at).total_seconds())
    return min(float(pool.burst), pool.tokens + elapsed_s * pool.rate_per_s)


def _allowances(pools: dict[str, Pool], running: Counter[str], now: datetime) -> dict[str, int]:
    """How many more submissions each provider takes now; those that take none are left out."""
    allowances = {}
    for name, pool in pools.items():
        if name == Pool.SYSTEM or pool.stopped_by:
            continue
        if pool.blocked_until and pool.blocked_until > now:
            continue
        allowance = pool.capacity - running[name]
        if pool.failure_count >= CIRCUIT_THRESHOLD:
            allowance = min(allowance, 1)  # a probe
        if pool.rate_per_s is not None:
            allowance = min(allowance, int(_tokens(pool, now)))
        if allowance > 0:
            allowances[name] = allowance
    return allowances


def _lanes_after(
    after: tuple[float, int], *, limit: int, providers: list[str] | None
) -> list[Lane]:
    """The next lanes of the ring that can use a slot, locked.

    Only those with work for one of `providers`, if these are not all: however many lanes wait for
    one that takes nothing, they must not stand in the way of the others.
    """
    condition = ""
    if providers is not None:
        condition = """
              AND EXISTS (
                SELECT FROM batches_generation
                WHERE owner_id = lane.owner_id AND provider = ANY(%s)
                  AND status = 'queued' AND not_before IS NULL)"""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT owner_id, cap, weight, running, queued, vtime FROM batches_lane lane
            WHERE queued > 0 AND running < cap AND (vtime, owner_id) > (%s, %s){condition}
            ORDER BY vtime, owner_id LIMIT %s FOR UPDATE SKIP LOCKED
            """,
            [*after, *([] if providers is None else [providers]), limit],
        )
        return [
            Lane(
                owner_id=owner_id,
                cap=cap,
                weight=weight,
                running=running,
                queued=queued,
                vtime=vtime,
            )
            for owner_id, cap, weight, running, queued, vtime in cursor.fetchall()
        ]


def _pick(
    shares: dict[int, int], allowances: dict[str, int], *, besides: Sequence[_Pick]
) -> list[_Pick]:
    """The next generations of each lane, locked: by priority, then first in first out."""
    with connection.cursor() as cursor:
        # Planned each time: a plan for any number of lanes takes twice as long with a few.
        cursor.execute(
            """
            SELECT line.id, line.owner_id, line.provider, line.batch_id, line.index,
                   COALESCE(batch.has_chord, false),
                   CASE WHEN batch.status = 'pending' THEN batch.total_count END
            FROM unnest(%s::int[], %s::int[]) AS share(owner_id, slots)
            CROSS JOIN LATERAL (
                SELECT generation.* FROM (
                    SELECT next.* FROM unnest(%s::text[], %s::int[]) AS open(provider, slots)
                    CROSS JOIN LATERAL (
                        SELECT id, priority, created_at, index FROM batches_generation one
                        WHERE owner_id = share.owner_id AND one.provider = open.provider
                          AND status = 'queued' AND not_before IS NULL AND id <> ALL(%s)
                        ORDER BY priority DESC, created_at, index, id
                        LIMIT LEAST(share.slots, open.slots)
                    ) next
                    ORDER BY priority DESC, created_at, index, id LIMIT share.slots
                ) chosen
                JOIN batches_generation generation ON generation.id = chosen.id
                WHERE generation.status = 'queued' AND generation.not_before IS NULL
                ORDER BY chosen.priority DESC, chosen.created_at, chosen.index, chosen.id
                FOR UPDATE OF generation SKIP LOCKED
            ) line
            LEFT JOIN batches_batch batch ON batch.id = line.batch_id
            """,
            [
                list(shares),
                list(shares.values()),
                list(allowances),
                list(allowances.values()),
                [pick.generation_id for pick in besides],
            ],
        )
        left = dict(allowances)
        picks = []
        for row in cursor.fetchall():
            pick = _Pick(*row)
            if left[pick.provider] > 0:
                left[pick.provider] -= 1
                picks.append(pick)
    return picks


def _charge_lanes(picks: Sequence[_Pick]) -> None:
    counts = Counter(pick.owner_id for pick in picks)
    with connection.cursor() as cursor:
        database.execute(
            cursor,
            """
            UPDATE batches_lane lane
            SET running = running + given.slots, queued = queued - given.slots,
                vtime = vtime + given.slots / weight
            FROM unnest(%s::int[], %s::int[]) AS given(owner_id, slots)
            WHERE lane.owner_id = given.owner_id
            """,
            [list(counts), list(counts.values())],
        )


def _charge_pools(
    picks: Sequence[_Pick],
    pools: dict[str, Pool],
    running: Counter[str],
    now: datetime,
    reached: float,
) -> None:
    for name, count in Counter(pick.provider for pick in picks).items():
        running[name] += count
        pool = pools[name]
        if pool.rate_per_s is not None:
            pool.tokens = _tokens(pool, now) - count
            pool.refilled_at = now
            pool.save(update_fields=["tokens", "refilled_at"])
        if pool.failure_count >= CIRCUIT_THRESHOLD:
            # No further probe until this one is answered, or can be answered no more.
            pool.blocked_until = now + timedelta(seconds=PROBE_S)
            pool.save(update_fields=["blocked_until"])
    running[Pool.SYSTEM] += len(picks)
    system = pools[Pool.SYSTEM]
    system.vtime = max(system.vtime, reached)
    system.save(update_fields=["vtime"])


def _lease(picks: Sequence[_Pick], now: datetime) -> list[Member]:
    # Short until its message has been taken up: a message that was never sent, because we died
    # or the broker did, is missed soon.
    expires_at = now + timedelta(seconds=min(settings.LEASE_SECONDS, PUBLISHED_WITHIN_S))
    leases = database.insert(
        [
            Lease(
                generation_id=pick.generation_id,
                owner_id=pick.owner_id,
                pool_id=pick.provider,
                expires_at=expires_at,
            )
            for pick in picks
        ]
    )
    lifecycle.start_generations(
        generation_ids=[pick.generation_id for pick in picks],
        batch_ids={pick.batch_id for pick in picks if pick.batch_id and pick.pending_total},
    )
    seen: set[uuid.UUID] = set()
    admitted = []
    for pick, lease in zip(picks, leases, strict=True):
        is_first = pick.batch_id is not None and pick.batch_id not in seen
        if pick.batch_id is not None:
            seen.add(pick.batch_id)
        admitted.append(
            Member(
                generation_id=pick.generation_id,
                lease_id=lease.pk,
                turn=lease.turn,
                batch_id=pick.batch_id,
                index=pick.index,
                has_chord=pick.has_chord,
                chord_size=pick.pending_total if is_first and pick.has_chord else None,
            )
        )
    return admitted


def _opens_in_s(pools: dict[str, Pool], now: datetime, next_due: datetime | None) -> float | None:
    """When the clock alone may allow more: a retry falls due, a block ends, a token drips in."""
    times = [next_due] if next_due else []
    for name, pool in pools.items():
        if name == Pool.SYSTEM:
            continue
        if pool.stopped_by:
            continue
        if pool.blocked_until and pool.blocked_until > now:
            times.append(pool.blocked_until)
        elif pool.rate_per_s is not None and (tokens := _tokens(pool, now)) < 1:
            times.append(now + timedelta(seconds=(1 - tokens) / pool.rate_per_s))
    return max(0.0, (min(times) - now).total_seconds()) if times else None


def follow_default_cap() -> int:
    """Give the lanes without a cap of their own the one of the settings; how many changed."""
    default = settings.MAX_PARALLEL_PER_USER
    return Lane.objects.filter(Q(cap__lt=default) | Q(cap__gt=default), cap_is_own=False).update(
        cap=default
    )
