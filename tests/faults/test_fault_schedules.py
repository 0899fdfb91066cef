"""Schedules whose time comes while those who look for it are too many, or die."""

import contextlib
import time

from tests.faults.harness import SETTINGS, often
from tests.waiting import wait_until

TWICE = "two beats, and beat and sweeper restarted, while schedules are due"


def _schedule(user, name):
    body = {
        "name": name,
        "rule": "FREQ=DAILY",
        "batch": {"name": name, "prompt": f"[{user.username}] {name}", "settings": SETTINGS},
    }
    # Far off: it is made due below.
    body["starts_at"] = "2030-01-01T00:00:00Z"
    return user.call("POST", "schedules/", 201, json=body).json()["id"]


def test_a_due_schedule_makes_one_batch_whoever_looks_and_dies(faults):
    with faults.injecting(TWICE) as fault, contextlib.ExitStack() as twins:
        twins.enter_context(faults.stack.another("beat"))
        twins.enter_context(faults.stack.another("worker-control"))
        # Each of them is killed once between the batch and its commit.
        faults.crash("schedule_run", "due")
        user = faults.user()
        ids = [_schedule(user, f"due {number}") for number in range(often(10, 3))]
        with faults.stack.sql() as cursor:
            cursor.execute(
                "UPDATE batches_schedulerun SET due_at = statement_timestamp() - interval '2 days' "
                "WHERE schedule_id = ANY(%s::uuid[])",
                [ids],
            )
            cursor.execute(
                "UPDATE batches_schedule SET starts_at = date_trunc('second', now()) "
                "- interval '2 days 1 hour' WHERE id = ANY(%s::uuid[])",
                [ids],
            )
        killed_at = [faults.stack.kill("beat"), faults.stack.kill("worker-control")]
        batches = wait_until(lambda: _all_made(faults, ids))
        hit = faults.crashed("schedule_run")
        assert len(hit) == len(ids)
        fault.injected(len(killed_at) + sum(map(len, hit.values())))
        fault.recovered(time.monotonic() - max(*killed_at, *map(max, hit.values())))
        # More ticks of both beats change nothing.
        faults.next_sweep(time.monotonic())
        faults.next_sweep(time.monotonic())
        fault.settle(batches)
        assert {faults.status(batch) for batch in batches} == {"completed"}
        runs = faults.stack.rows(
            "SELECT status, missed_count FROM batches_schedulerun "
            "WHERE schedule_id = ANY(%s::uuid[]) ORDER BY status",
            ids,
        )
        assert runs == [
            *[{"status": "due", "missed_count": 0}] * len(ids),
            *[{"status": "started", "missed_count": 2}] * len(ids),
        ]
        named = faults.stack.value(
            "SELECT count(*) FROM batches_batch WHERE owner_id IN "
            "(SELECT owner_id FROM batches_schedule WHERE id = ANY(%s::uuid[])) "
            "AND name LIKE 'due %%'",
            ids,
        )
        assert named == len(ids)
        user_schedules = user.call("GET", "schedules/").json()["results"]
        for schedule in user_schedules:
            user.call("DELETE", f"schedules/{schedule['id']}/", 204)


def _all_made(faults, ids):
    """The batches of these schedules, once there is one of each."""
    made = [
        {"id": row["id"]}
        for row in faults.stack.rows(
            "SELECT batch_id::text AS id FROM batches_schedulerun "
            "WHERE schedule_id = ANY(%s::uuid[]) AND batch_id IS NOT NULL",
            ids,
        )
    ]
    return made if len(made) == len(ids) else None
