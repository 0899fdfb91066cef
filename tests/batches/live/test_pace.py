"""How often something is told of, by a clock of the test's."""

import math
import uuid

from batches.live.pace import Pace

A, B = uuid.uuid4(), uuid.uuid4()


def test_the_first_is_due_at_once_and_the_next_when_it_has_rested():
    pace = Pace(0.2)
    pace.note(A, 10.0)
    assert pace.next_s == 10.0
    assert pace.take(10.0) == {A}
    pace.told(A, 10.0)
    pace.note(A, 10.05)
    pace.note(A, 10.15)
    assert pace.take(10.19) == set()
    assert pace.next_s == 10.2
    assert pace.take(10.2) == {A}
    assert pace.next_s == math.inf


def test_subjects_do_not_wait_for_one_another():
    pace = Pace(0.2)
    pace.told(A, 10.0)
    pace.note(A, 10.0)
    pace.note(B, 10.1)
    assert pace.take(10.1) == {B}
    assert pace.resting([A, B], 10.1) == {A}


def test_in_a_second_of_any_stream_no_more_than_five_are_told():
    pace = Pace(0.2)
    told = []
    for step in range(3_000):
        now_s = step / 1_000
        pace.note(A, now_s)
        if pace.take(now_s):
            pace.told(A, now_s)
            told.append(now_s)
    assert len(told) == 15
    assert all(sum(start <= one < start + 1 for one in told) <= 5 for start in told)


def test_what_has_rested_is_forgotten():
    pace = Pace(0.2)
    pace.told(A, 10.0)
    pace.told(B, 10.3)
    pace.forget(10.3)
    assert pace._told_s == {B: 10.3}
