"""PostgreSQL restarts, or drops connections. What was acknowledged stays."""

import random
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psutil

from picture.embedded import has_ended
from tests.faults.harness import Poster, often
from tests.waiting import wait_until


def _is_clean(answer):
    return (
        answer.status_code == 503
        and answer.headers["Content-Type"] == "application/problem+json"
        and answer.json()["status"] == 503
    )


def test_postgresql_is_restarted_under_load(faults):
    signals = {"PostgreSQL restart": signal.SIGINT, "PostgreSQL kill -9": signal.SIGKILL}
    with faults.injecting(*signals) as them:
        batches, hit = {fault: [] for fault in them}, {fault: {} for fault in them}
        with Poster(faults.user(), "meanwhile", every_s=0.2) as poster:
            for fault in them * often(2, 1):
                batches[fault].append(
                    faults.user().submit([f"{fault.name} {n}" for n in range(often(30, 6))])
                )
                wait_until(lambda: len(faults.stack.in_flight()) >= often(10, 5), every_s=0.01)
                in_flight = faults.stack.in_flight()
                server = psutil.Process(faults.stack.pids["postgres"])
                faults.stack.kill("postgres", signals[fault.name])
                wait_until(lambda server=server: has_ended(server))
                faults.stack.restart("postgres")
                back_at = time.monotonic()
                for one in in_flight:
                    hit[fault].setdefault(one, []).append(back_at)
                fault.injected(len(in_flight))
                poster.next_accepted(back_at)
        batches[them[0]] += poster.accepted
        faults.settle(batches)
        for fault in them:
            fault.recovered(faults.worst_recovery(hit[fault]))
            assert {faults.status(one) for one in batches[fault]} == {"completed"}
        assert poster.broken == 0
        for answer in poster.refused:
            assert _is_clean(answer), answer.text


def test_connections_to_postgresql_are_cut_under_load(faults):
    with faults.injecting("PostgreSQL connections cut") as fault:
        batches = [
            faults.user().submit([f"cut {number}" for number in range(often(40, 10))])
            for _ in range(3)
        ]
        dice = random.Random(1)
        with Poster(faults.user(), "meanwhile", every_s=0.1) as poster:
            for _ in range(often(30, 5)):
                cut_at = time.monotonic()
                backends = faults.stack.rows(
                    "SELECT pid FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                victims = dice.sample(backends, min(3, len(backends)))
                for one in victims:
                    faults.stack.rows("SELECT pg_terminate_backend(%s)", one["pid"])
                fault.injected(len(victims))
                fault.recovered(poster.next_accepted(cut_at))
        fault.settle([*batches, *poster.accepted])
        assert {faults.status(one) for one in (*batches, *poster.accepted)} == {"completed"}
        for answer in poster.refused:
            assert _is_clean(answer), answer.text
        assert poster.broken == 0


def test_fifty_identical_posts_with_one_key_make_one_batch(faults):
    with faults.injecting("50 concurrent POSTs with one Idempotency-Key") as fault:
        user = faults.user()
        made = []
        for _ in range(often(3, 1)):
            before = faults.stack.value("SELECT count(*) FROM batches_batch")
            user.http.headers["Idempotency-Key"] = str(uuid.uuid4())
            with ThreadPoolExecutor(50) as pool:
                answers = list(pool.map(lambda _: user.post(["once"]), range(50)))
            del user.http.headers["Idempotency-Key"]
            fault.injected(len(answers))
            # Those that come while the first is still at it may be told so.
            assert {answer.status_code for answer in answers} <= {202, 409}
            ids = {answer.json()["id"] for answer in answers if answer.status_code == 202}
            assert len(ids) == 1
            assert faults.stack.value("SELECT count(*) FROM batches_batch") == before + 1
            made += ids
        fault.settle(made)
        assert len(faults.simulator.charges()) == len(made)
