"""Processes that die: at every point of the work, and whole ones under load."""

import contextlib
import time

import pytest

from tests.faults.harness import WORKERS, Poster, full_only, often
from tests.waiting import wait_until

BEFORE_POST = "kill -9 before the POST"
AFTER_POST = "kill -9 after the POST, before the id is stored"
MID_WAIT = "kill -9 mid-wait"
MID_DOWNLOAD = "kill -9 mid-download"
BEFORE_COUNT = "kill -9 between result stored and chord part counted"
BEFORE_END = "kill -9 before the chord's body has run"

IN_GENERATE = {
    "before_attempt": BEFORE_POST,
    "before_post": BEFORE_POST,
    "after_post": AFTER_POST,
    "after_record": MID_WAIT,
    "mid_look": MID_WAIT,
    "after_put_off": MID_WAIT,
    "before_download": MID_WAIT,
    "after_generate": MID_WAIT,
}
IN_DOWNLOAD = {
    "download_begins": MID_DOWNLOAD,
    "mid_download": MID_DOWNLOAD,
    "half_stored": MID_DOWNLOAD,
    "stored": MID_DOWNLOAD,
}
THREADS = 20


def _hit_at(faults, points, texts, **rule):
    """Kill at each of these points once for each of `texts`; settle, and time the recovery."""
    rows = sorted(set(points.values()))
    with faults.injecting(*rows) as them:
        by_row = dict(zip(rows, them if isinstance(them, list) else [them], strict=True))
        # Half of them are found again without the provider's help.
        faults.simulator.fault("webhook_drop", prompt="unheard")
        batches = {fault: [] for fault in by_row.values()}
        for point, row in points.items():
            faults.crash(point, f"at {point} ", **rule)
            batch = faults.user().submit([f"at {point} {text}" for text in texts])
            batches[by_row[row]].append(batch)
        faults.settle(batches)
        for point, row in points.items():
            hit = faults.crashed(point)
            # With a report at hand there is no look; and what another kill has hit at the same
            # time may go on from further ahead.
            assert len(hit) >= len(texts) * (0.4 if point == "mid_look" else 0.8), point
            by_row[row].injected(len(hit))
            by_row[row].recovered(faults.worst_recovery(hit))
        for batch in (one for of_row in batches.values() for one in of_row):
            assert faults.status(batch) == "completed"


def test_a_generate_worker_that_dies_at_any_point_loses_and_repeats_nothing(faults):
    texts = [f"{kind} {number}" for kind in ("heard", "unheard") for number in range(often(10, 1))]
    # All threads die at their points at once.
    _hit_at(faults, IN_GENERATE, texts, gather=THREADS)


def test_a_download_child_that_dies_at_any_point_is_replaced_by_another(faults):
    _hit_at(faults, IN_DOWNLOAD, [f"number {number}" for number in range(often(20, 1))])


def test_a_batch_whose_last_part_is_never_counted_ends_within_a_sweep(faults):
    with faults.injecting(BEFORE_COUNT) as fault:
        faults.crash("chord_part", "last", each=2)
        user = faults.user()
        batches = [user.submit(["last"]) for _ in range(often(20, 2))]
        fault.settle(batches)
        hit = faults.crashed("chord_part")
        assert set(hit) == {batch["items"][0]["id"] for batch in batches}
        fault.injected(sum(map(len, hit.values())))
        for batch in batches:
            _ends_within_a_sweep(faults, fault, batch, max(hit[batch["items"][0]["id"]]))


def test_a_batch_whose_end_is_interrupted_ends_within_a_sweep(faults):
    with faults.injecting(BEFORE_END) as fault:
        faults.crash("finalise", "interrupted", gather=often(4, 1), within_s=0.3)
        user = faults.user()
        batches = [user.submit(["first"], name="interrupted") for _ in range(often(30, 2))]
        wait_until(lambda: faults.crashed("finalise"))
        fault.settle(batches)
        hit = faults.crashed("finalise")
        fault.injected(len(hit))
        for batch in batches:
            for killed_at in hit.get(batch["id"], []):
                _ends_within_a_sweep(faults, fault, batch, killed_at)


def _ends_within_a_sweep(faults, fault, batch, killed_at):
    """The first sweep that begins after the kill ends the batch, if nothing else does before."""
    ended_at = faults.ended_at(batch)
    fault.recovered(max(0.0, ended_at - killed_at))
    # One may have been under way when it was killed.
    sweeps = [at for at in faults.sweeps() if killed_at < at < ended_at]
    assert len(sweeps) <= 1


@full_only
def test_a_prompt_that_kills_its_child_each_time_is_given_up_and_others_go_on(faults):
    with faults.injecting("poison task") as fault:
        faults.crash("mid_download", "poison", each=100)
        user = faults.user()
        count = 20
        poisoned = user.submit([f"poison {number}" for number in range(count)])
        others = [user.submit([f"good {number}" for number in range(5)]) for _ in range(3)]
        fault.settle([poisoned, *others])
        hit = faults.crashed("mid_download")
        assert {len(kills) for kills in hit.values()} == {5}
        fault.injected(sum(map(len, hit.values())))
        fault.recovered(faults.worst_recovery(hit))
        assert faults.status(poisoned) == "failed"
        codes = {item["error"]["code"] for item in user.look(poisoned)["items"]}
        assert codes == {"poison"}
        assert {faults.status(batch) for batch in others} == {"completed"}


# --- whole processes ----------------------------------------------------------------------------


def test_whole_workers_are_killed_under_load(faults):
    names = {name: f"kill -9 of the whole {name.replace('worker-', '')} worker" for name in WORKERS}
    with faults.injecting(*names.values()) as them:
        batches, hit = {}, {name: {} for name in WORKERS}
        for fault, (name, times) in zip(them, hit.items(), strict=True):
            batches[fault] = [
                faults.user().submit([f"{fault.name} {number}" for number in range(often(40, 6))])
                for _ in range(often(3, 1))
            ]
            while sum(map(len, times.values())) < often(20, 1):
                affected = wait_until(lambda name=name: faults.stack.hit_by_killing(name))
                killed_at = faults.stack.kill(name)
                for one in affected:
                    times.setdefault(one, []).append(killed_at)
                faults.stack.await_ready(name)
            fault.injected(sum(map(len, times.values())))
        faults.settle(batches)
        for fault, times in zip(them, hit.values(), strict=True):
            fault.recovered(faults.worst_recovery(times))
            assert {faults.status(batch) for batch in batches[fault]} == {"completed"}


def test_beat_and_web_are_killed_over_and_over(faults):
    with faults.injecting("kill -9 of beat", "kill -9 of web") as (beat, web):
        with Poster(faults.user(), "posted") as poster:
            for _ in range(often(20, 1)):
                poster.next_accepted(time.monotonic())
                killed_at = faults.stack.kill("web")
                beat_killed_at = faults.stack.kill("beat")
                web.injected()
                beat.injected()
                web.recovered(poster.next_accepted(killed_at))
                beat.recovered(faults.next_sweep(beat_killed_at))
        assert not poster.refused
        faults.settle({beat: poster.accepted[::2], web: poster.accepted[1::2]})


# --- more of them than there should be ----------------------------------------------------------


@full_only
def test_two_beats_and_two_sweepers_have_each_effect_once(faults):
    with faults.injecting("two beats and two sweepers") as fault, contextlib.ExitStack() as twins:
        twins.enter_context(faults.stack.another("beat"))
        twins.enter_context(faults.stack.another("worker-control"))
        # Work for the sweeps too: lost chords and lost messages.
        faults.crash("after_put_off", "lost", gather=THREADS)
        faults.crash("chord_part", "lost")
        faults.simulator.fault("webhook_drop", prompt="lost")
        user = faults.user()
        batches = [
            user.submit([f"lost {number}.{place}" for place in range(often(10, 2))])
            for number in range(2)
        ]
        fault.settle(batches)
        hit = faults.crashed("after_put_off")
        fault.injected(len(hit))
        fault.recovered(faults.worst_recovery(hit))
        assert {faults.status(batch) for batch in batches} == {"completed"}
        crashes = faults.stack.rows("SELECT message FROM batches_alert WHERE code = 'poison'")
        assert not [row for row in crashes if "lost" in row["message"]]


@full_only
@pytest.mark.parametrize("shift_s", [600, -600])
def test_workers_whose_clocks_are_wrong_work_like_others(faults, shift_s):
    shifts_s = dict(zip(WORKERS, (shift_s, -shift_s, shift_s), strict=True))
    with faults.injecting("clocks of the workers 10 min ahead and behind") as fault:
        with contextlib.ExitStack() as shifted:
            for name, seconds in shifts_s.items():
                shifted.enter_context(faults.stack.clock_shifted(name, seconds))
            faults.crash("after_put_off", "lost", gather=4)
            faults.simulator.fault("webhook_drop", prompt="lost")
            user = faults.user()
            count = often(5, 2)
            batches = [
                user.submit([f"{kind} {number}" for number in range(count)])
                for kind in ("lost", "told")
            ]
            fault.settle(batches)
            assert {600, -600} <= faults.clock_shifts()
        fault.injected(2 * count)
        fault.recovered(faults.worst_recovery(faults.crashed("after_put_off")))
        assert {faults.status(batch) for batch in batches} == {"completed"}
        assert len(faults.simulator.charges()) == 2 * count
