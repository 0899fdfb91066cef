"""Redis dies, with and without what it held, or stays away for a while."""

import time

from tests.faults.harness import Poster, often
from tests.waiting import wait_until


def test_redis_is_killed_under_load(faults):
    names = ("Redis kill -9 with AOF", "Redis kill -9 without persistence")
    with faults.injecting(*names) as (keeps, forgets):
        faults.simulator.settings(run_seconds=1.0)
        batches, hit = {keeps: [], forgets: []}, {keeps: {}, forgets: {}}
        for fault in (keeps, forgets) * often(2, 1):
            batches[fault] += [
                faults.user().submit([f"{fault.name} {number}" for number in range(often(20, 5))])
                for _ in range(2)
            ]
            enough = often(20, 5)
            affected = wait_until(
                lambda enough=enough: (
                    len(found := faults.stack.hit_by_killing("redis")) >= enough and found
                )
            )
            killed_at = faults.stack.kill("redis")
            if fault is forgets:
                faults.stack.empty_redis()
            faults.stack.restart("redis")
            for one in affected:
                hit[fault].setdefault(one, []).append(killed_at)
            fault.injected(len(affected))
            # The next one comes when everything goes on again.
            wait_until(lambda times=hit[fault]: len(faults.recovered(times)) == len(times))
        faults.settle(batches)
        for fault, times in hit.items():
            fault.recovered(faults.worst_recovery(times))
            assert {faults.status(batch) for batch in batches[fault]} == {"completed"}


def test_redis_is_away_for_a_while_and_every_post_is_answered(faults):
    away_s = often(30, 3)
    with faults.injecting("Redis down for a while under load") as fault:
        faults.simulator.settings(run_seconds=1.0)
        batch = faults.user().submit([f"before {number}" for number in range(often(40, 10))])
        wait_until(lambda: len(faults.stack.in_flight()) >= often(20, 5), every_s=0.01)
        with Poster(faults.user(), "meanwhile", every_s=0.4) as poster:
            in_flight = faults.stack.hit_by_killing("redis")
            killed_at = faults.stack.kill("redis")
            wait_until(lambda: time.monotonic() > killed_at + away_s and poster.answered >= 3)
            faults.stack.restart("redis")
            back_at = time.monotonic()
        posted = poster.answered
        fault.settle([batch, *poster.accepted])
        # All of them durable, none a half.
        assert poster.broken == 0
        for answer in poster.refused:
            assert answer.status_code == 503
            assert answer.headers["Content-Type"] == "application/problem+json"
        fault.injected(len(in_flight) + posted)
        # Those that were not admitted yet wait for others as well, so they tell nothing here.
        fault.recovered(faults.worst_recovery({one: [back_at] for one in in_flight}))
        statuses = {faults.status(one) for one in (batch, *poster.accepted)}
        assert statuses == {"completed"}
