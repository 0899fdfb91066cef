"""What an admission costs, by the length and the shape of the queue.

`scheduling.admit` in this process fills 20 free slots from the embedded PostgreSQL; then, not on
the clock, what it admitted goes back to the end of its users' lines. Redis is there, since those
who follow a batch are told that it has begun. Three queues:

    1,000 in line of 10 users, which is the baseline
    1,000,000 of 10,000 users
    1,000,000 where nine users of ten, whose rows are the oldest and whose lanes come first, are
    at their caps: a scan from the oldest row on would read 900,000 in vain
"""

import time
import uuid
from statistics import median

from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test.utils import override_settings

from batches.scheduling import admit
from benchmarks import queue
from benchmarks.harness import REPETITIONS, Row
from benchmarks.lab import data_folder
from picture import embedded

SLOTS = 20
ADMISSIONS = 30
FEW_USERS, MANY_USERS = 10, 10_000
PER_USER = 100

_BACK_IN_LINE = """
WITH gone AS (
    DELETE FROM batches_lease WHERE id = ANY(%s) RETURNING generation_id, owner_id
), back AS (
    UPDATE batches_generation generation
    SET status = 'queued', started_at = NULL, created_at = clock_timestamp()
    FROM gone WHERE generation.id = gone.generation_id
)
UPDATE batches_lane lane SET running = running - slots, queued = queued + slots
FROM (SELECT owner_id, count(*) AS slots FROM gone GROUP BY owner_id) freed
WHERE lane.owner_id = freed.owner_id
"""

_FILL_CAPS = """
WITH lane AS (
    UPDATE batches_lane SET cap = 1, cap_is_own = true, running = 1, queued = queued - 1, vtime = 0
    WHERE owner_id IN (SELECT owner_id FROM batches_lane ORDER BY owner_id LIMIT %s)
    RETURNING owner_id
), first AS (
    SELECT DISTINCT ON (owner_id) id, owner_id FROM batches_generation JOIN lane USING (owner_id)
    ORDER BY owner_id, priority DESC, created_at, index, id
), started AS (
    UPDATE batches_generation generation SET status = 'processing', started_at = now()
    FROM first WHERE generation.id = first.id
)
INSERT INTO batches_lease (id, generation_id, owner_id, pool_id, created_at, expires_at)
SELECT gen_random_uuid(), id, owner_id, 'replicate', now(), now() + interval '1 day' FROM first
"""


def run() -> list[Row]:
    with data_folder() as folder, embedded.services(folder, durable=False):
        call_command("migrate", verbosity=0)
        return measure()


def measure(
    *,
    users: int = MANY_USERS,
    repetitions: int = REPETITIONS,
    admissions: int = ADMISSIONS,
) -> list[Row]:
    queue.fill(users=FEW_USERS, per_user=PER_USER, cap=settings.MAX_PARALLEL_PER_USER)
    short_ms = _cost_ms(repetitions, admissions)

    began_s = time.monotonic()
    queue.fill(users=users - FEW_USERS, per_user=PER_USER, cap=settings.MAX_PARALLEL_PER_USER)
    filled_s = time.monotonic() - began_s
    long_ms = _cost_ms(repetitions, admissions)

    at_cap = users * 9 // 10
    with connection.cursor() as cursor:
        cursor.execute(_FILL_CAPS, [at_cap])
    capped_ms = _cost_ms(repetitions, admissions, held=at_cap)

    queued = f"{users * PER_USER:,} in line of {users:,} users"
    how = f"median of {repetitions} x {admissions} times filling {SLOTS} slots"
    return [
        Row(
            "admission",
            f"per generation with {queued} (filled in {filled_s:.0f} s); baseline: "
            f"{FEW_USERS * PER_USER:,} of {FEW_USERS} users; {how}",
            long_ms,
            "ms",
            baseline=short_ms,
            at_most=1.5,
        ),
        Row(
            "admission, users at caps",
            f"the same where the {at_cap:,} users with the oldest rows are at their caps",
            capped_ms,
            "ms",
            baseline=short_ms,
            at_most=1.5,
        ),
    ]


def _cost_ms(repetitions: int, admissions: int, held: int = 0) -> float:
    """Return the time per admitted generation; `held` slots are taken for good."""
    queue.settle()
    with override_settings(MAX_PARALLEL_GLOBAL=held + SLOTS):
        _admit_s()  # the warm-up
        series = [
            [1_000 * _admit_s() / SLOTS for _ in range(admissions)] for _ in range(repetitions)
        ]
    return median(median(costs) for costs in series)


def _admit_s() -> float:
    """Fill the slots, empty them again, and return how long the filling took."""
    began_s = time.perf_counter()
    admission = admit()
    took_s = time.perf_counter() - began_s
    leases: list[uuid.UUID] = [member.lease_id for member in admission.admitted]
    assert len(leases) == SLOTS
    with connection.cursor() as cursor:
        cursor.execute(_BACK_IN_LINE, [leases])
    return took_s
