"""Deployments: processes asked to end, messages of an older version, any order of start."""

import contextlib
import time

from celery import Celery, chain

from picture.celery import celery_url
from tests.faults.harness import WORKERS, Poster, often
from tests.waiting import wait_until


def test_every_process_is_restarted_one_after_the_other_under_load(faults):
    with faults.injecting("SIGTERM of every process under load") as fault:
        hit = {}
        with Poster(faults.user(), "meanwhile", size=3, every_s=0.3) as poster:
            for _ in range(often(2, 1)):
                for name in (*WORKERS, "web", "beat"):
                    wait_until(faults.stack.in_flight, every_s=0.01)
                    in_flight = faults.stack.in_flight()
                    faults.stack.restart(name)
                    ready_at = time.monotonic()
                    for one in in_flight:
                        hit.setdefault(one, []).append(ready_at)
                    fault.injected(len(in_flight))
        assert not poster.refused
        fault.settle(poster.accepted)
        fault.recovered(faults.worst_recovery(hit))
        assert {faults.status(batch) for batch in poster.accepted} == {"completed"}


def test_messages_of_before_there_were_turns_are_worked_on(faults):
    with faults.injecting("messages of an older version") as fault:
        count = often(10, 2)
        # Nothing but the old messages may move them.
        faults.simulator.fault("webhook_drop")
        with contextlib.ExitStack() as down:
            down.enter_context(faults.stack.held(*WORKERS))
            for name in ("worker-generate", "worker-download"):
                faults.stack.kill(name)
            batch = faults.user().submit([f"old {number}" for number in range(count)])
            wait_until(lambda: len(faults.stack.in_flight(["processing"])) == count)
            faults.stack.kill("worker-control")
            _send_old(faults, "generate")
            faults.stack.begin("worker-generate")
            wait_until(lambda: len(faults.stack.in_flight(["downloading"])) == count)
            fault.injected(count)
            faults.stack.kill("worker-generate")
            _send_old(faults, "download")
            begun_at = time.monotonic()
            faults.stack.begin("worker-download")
            wait_until(lambda: not faults.stack.in_flight())
            fault.injected(count)
            fault.recovered(time.monotonic() - begun_at, within_s=None)
        fault.settle([batch])
        assert faults.status(batch) == "completed"
        assert len(faults.simulator.charges()) == count


def _send_old(faults, queue):
    """Replace the messages that wait in a queue by those of a version without turns."""
    rows = faults.stack.rows(
        """
        SELECT generation.id::text, lease.id::text AS lease, batch_id::text AS batch, index
        FROM batches_generation generation
        JOIN batches_lease lease ON lease.generation_id = generation.id
        """
    )
    with faults.stack.redis() as redis:
        redis.delete(queue)
    url = celery_url(faults.stack.env["REDIS_URL"])
    with Celery("older", broker=url, backend=url, set_as_current=False) as old:
        generate, download = (
            old.signature(f"work.{name}", queue=name) for name in ("generate", "download")
        )
        body = old.signature("work.finalise_batch", immutable=True, queue="control")
        for row in rows:
            if queue == "generate":
                steps = chain(
                    generate.clone(args=(row["id"], row["lease"]), immutable=True),
                    download.clone(args=(row["id"],)),
                )
            else:
                steps = download.clone(args=("downloading", row["id"]))
            steps.apply_async(
                task_id=row["id"],
                group_id=row["batch"],
                group_index=row["index"],
                chord=body.clone(args=(row["batch"],)),
            )


def test_processes_may_start_before_what_they_need(faults):
    names = (*WORKERS, "web", "beat")
    with faults.injecting("start before the database and the broker") as fault:
        batches = []
        for number in range(often(4, 1)):
            with faults.stack.held(*names):
                for name in (*names, "redis", "postgres"):
                    faults.stack.kill(name)
                offset = faults.stack.log("web").stat().st_size
                for name in names:
                    faults.stack.begin(name)
                wait_until(
                    lambda offset=offset: (
                        b"database" in faults.stack.log("web").read_bytes()[offset:]
                    )
                )
                begun_at = time.monotonic()
                faults.stack.restart("postgres")
            faults.stack.await_ready()
            batches.append(faults.user().submit([f"after start {number}"]))
            fault.injected(len(names))
            fault.recovered(time.monotonic() - begun_at, within_s=None)
        fault.settle(batches)
        assert {faults.status(batch) for batch in batches} == {"completed"}
