"""When rules fall due, and what finding out costs."""

import contextlib
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr

from batches import recurrence
from batches.recurrence import Unusable, first_due, read_rule

BERLIN = "Europe/Berlin"
# A Friday; clocks are put forward on the 29th at 2:00, and back on October 25th at 3:00.
START = datetime(2026, 3, 27, 8, 0, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 23, 8, 0, tzinfo=UTC)


def due(rule, count=4, *, zone=BERLIN, start=START, after=None):
    """Its first due times, in UTC."""
    read = read_rule(rule, time_zone=zone, starts_at=start)
    moment, found = after or start - timedelta(seconds=1), []
    while len(found) < count and (moment := read.first_after(moment)):
        found.append(moment)
    return found


def by_the_wall(moments, zone=BERLIN):
    return [f"{moment.astimezone(ZoneInfo(zone)):%d.%m. %H:%M}" for moment in moments]


def refusal(rule, *, zone=BERLIN, start=START, now=START - timedelta(seconds=1)):
    with pytest.raises(Unusable) as caught:
        first_due(read_rule(rule, time_zone=zone, starts_at=start), now)
    assert caught.value.detail
    return caught.value.field, caught.value.code


def test_nine_o_clock_stays_nine_o_clock_when_clocks_are_changed():
    found = due("FREQ=DAILY;BYHOUR=9;BYMINUTE=0")
    assert by_the_wall(found) == ["27.03. 09:00", "28.03. 09:00", "29.03. 09:00", "30.03. 09:00"]
    assert [moment.hour for moment in found] == [8, 8, 7, 7]


def test_a_time_that_does_not_exist_counts_by_the_clock_of_before():
    found = due("FREQ=DAILY;BYHOUR=2;BYMINUTE=30")
    assert by_the_wall(found) == ["28.03. 02:30", "29.03. 03:30", "30.03. 02:30", "31.03. 02:30"]


def test_two_times_that_a_change_of_clocks_makes_one_are_due_once():
    found = due("FREQ=DAILY;BYHOUR=2,3;BYMINUTE=30", 5)
    assert by_the_wall(found) == [
        *("28.03. 02:30", "28.03. 03:30", "29.03. 03:30", "30.03. 02:30", "30.03. 03:30")
    ]


def test_a_time_that_comes_twice_counts_the_first_time():
    found = due("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", 3, start=AUTUMN)
    assert [moment.isoformat()[:16] for moment in found] == [
        *("2026-10-24T00:30", "2026-10-25T00:30", "2026-10-26T01:30")
    ]
    # From within the hour that comes again, the next is a day away.
    again = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert due("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", 1, start=AUTUMN, after=again) == found[2:]


@pytest.mark.parametrize("start", [START, AUTUMN])
def test_half_hours_never_go_back_where_clocks_do(start):
    found = due("FREQ=MINUTELY;INTERVAL=30", 200, start=start)
    steps = {after - before for before, after in pairwise(found)}
    assert min(steps) == timedelta(minutes=30)
    assert max(steps) <= timedelta(minutes=90)


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=DAILY",
        "FREQ=DAILY;INTERVAL=3",
        "FREQ=DAILY;INTERVAL=10;BYMONTH=6,7",
        "FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,FR",
        "FREQ=WEEKLY;INTERVAL=2;WKST=SU;BYDAY=SU,TU",
        "FREQ=MONTHLY",
        "FREQ=MONTHLY;INTERVAL=5;BYMONTHDAY=31",
        "FREQ=MONTHLY;BYDAY=-1FR",
        "FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13",
        "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=1,-1",
        "FREQ=YEARLY",
        "FREQ=YEARLY;INTERVAL=2;BYMONTH=1;BYDAY=SU;BYHOUR=8,9;BYMINUTE=30",
        "FREQ=YEARLY;BYWEEKNO=20;BYDAY=MO",
        "FREQ=YEARLY;BYYEARDAY=1,100,-1",
        "FREQ=YEARLY;BYDAY=20MO",
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29",
        "FREQ=HOURLY;INTERVAL=7",
        "FREQ=HOURLY;BYMINUTE=15,45;BYHOUR=9,10;BYDAY=MO",
        "FREQ=MINUTELY;INTERVAL=45",
        "FREQ=MINUTELY;INTERVAL=1439",
        "FREQ=DAILY;COUNT=12",
        "FREQ=DAILY;UNTIL=20260405T120000Z",
        "FREQ=WEEKLY;UNTIL=20260601",
    ],
)
def test_a_rule_means_what_its_library_says(rule):
    plain = rrulestr(rule.replace("Z", ""), dtstart=START.replace(tzinfo=None))
    expected = [one.replace(tzinfo=UTC) for _, one in zip(range(40), plain, strict=False)]
    expected = [one for one in expected if one < START + timedelta(days=3_000)]
    assert due(rule, len(expected), zone="UTC") == expected
    if "COUNT" in rule or "UNTIL" in rule:
        assert due(rule, 100, zone="UTC") == expected


def test_a_rule_may_be_looked_at_from_any_time():
    found = due("FREQ=WEEKLY;INTERVAL=3;BYDAY=TU,SA", 60)
    for moment in found[::7]:
        assert due("FREQ=WEEKLY;INTERVAL=3;BYDAY=TU,SA", 1, after=moment - timedelta(1)) == [moment]


def test_what_was_missed_is_counted():
    read = read_rule("FREQ=DAILY;BYHOUR=9", time_zone=BERLIN, starts_at=START)
    assert read.count_between(START, START) == 0
    assert read.count_between(START, START + timedelta(days=2, hours=23)) == 3
    read = read_rule("FREQ=MINUTELY;INTERVAL=5", time_zone=BERLIN, starts_at=START)
    assert read.count_between(START, START + timedelta(days=900)) == recurrence.MISSED_MAX


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("", "invalid_rule"),
        ("nonsense", "invalid_rule"),
        ("BYHOUR=9", "invalid_rule"),
        ("FREQ=SOMETIMES", "invalid_rule"),
        ("RRULE:FREQ=DAILY", "invalid_rule"),
        ("FREQ=DAILY\nEXRULE:FREQ=WEEKLY", "invalid_rule"),
        ("FREQ=DAILY\nRDATE:20260401", "invalid_rule"),
        ("DTSTART:20260101T000000\nRRULE:FREQ=DAILY", "invalid_rule"),
        ("EXRULE:FREQ=DAILY", "invalid_rule"),
        ("FREQ=DAILY;;BYHOUR=9", "invalid_rule"),
        ("FREQ=DAILY;FREQ=WEEKLY", "invalid_rule"),
        ("FREQ=DAILY;BYEASTER=0", "invalid_rule"),
        ("FREQ=DAILY;BYHOUR=24", "invalid_rule"),
        ("FREQ=DAILY;BYHOUR=9,", "invalid_rule"),
        ("FREQ=DAILY;BYHOUR=\N{ARABIC-INDIC DIGIT NINE}", "invalid_rule"),
        ("FREQ=DAILY;BYMINUTE=60", "invalid_rule"),
        ("FREQ=DAILY;INTERVAL=0", "invalid_rule"),
        ("FREQ=DAILY;INTERVAL=-1", "invalid_rule"),
        ("FREQ=DAILY;INTERVAL=99999999999999999999", "invalid_rule"),
        ("FREQ=MINUTELY;INTERVAL=1441", "invalid_rule"),
        ("FREQ=DAILY;COUNT=0", "invalid_rule"),
        ("FREQ=DAILY;COUNT=1001", "invalid_rule"),
        ("FREQ=DAILY;COUNT=2;UNTIL=20300101", "invalid_rule"),
        ("FREQ=DAILY;UNTIL=20260231", "invalid_rule"),
        ("FREQ=DAILY;UNTIL=00000000", "invalid_rule"),
        ("FREQ=DAILY;UNTIL=00010101", "in_the_past"),
        ("FREQ=DAILY;UNTIL=00010101T000000Z", "in_the_past"),
        ("FREQ=DAILY;BYDAY=1MO", "invalid_rule"),
        ("FREQ=MONTHLY;BYDAY=0MO", "invalid_rule"),
        ("FREQ=MONTHLY;BYMONTHDAY=0", "invalid_rule"),
        ("FREQ=MONTHLY;BYSETPOS=1", "invalid_rule"),
        ("FREQ=WEEKLY;BYDAY=MO,TU;BYSETPOS=1", "invalid_rule"),
        ("FREQ=WEEKLY;BYMONTHDAY=1", "invalid_rule"),
        ("FREQ=MONTHLY;BYWEEKNO=1", "invalid_rule"),
        ("FREQ=YEARLY;BYWEEKNO=1;BYDAY=1MO", "invalid_rule"),
        ("FREQ=MONTHLY;BYYEARDAY=1", "invalid_rule"),
        ("FREQ=YEARLY;BYYEARDAY=367", "invalid_rule"),
        ("FREQ=SECONDLY", "too_often"),
        ("FREQ=SECONDLY;INTERVAL=999", "too_often"),
        ("FREQ=MINUTELY", "too_often"),
        ("FREQ=MINUTELY;INTERVAL=4", "too_often"),
        ("FREQ=MINUTELY;INTERVAL=5;BYSECOND=0,30", "too_often"),
        ("FREQ=HOURLY;BYMINUTE=0,4", "too_often"),
        ("FREQ=HOURLY;BYMINUTE=1,58", "too_often"),
        ("FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0,1", "too_often"),
        ("FREQ=DAILY;BYHOUR=0,23;BYMINUTE=0,59", "too_often"),
        ("FREQ=YEARLY;BYMINUTE=0,1", "too_often"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never_fires"),
        ("FREQ=MONTHLY;INTERVAL=12;BYMONTHDAY=31;BYMONTH=4", "never_fires"),
        ("FREQ=DAILY;INTERVAL=7;BYDAY=TU", "never_fires"),
        ("FREQ=YEARLY;INTERVAL=4;BYMONTH=2;BYMONTHDAY=29", "never_fires"),
        ("FREQ=MINUTELY;INTERVAL=1440;BYHOUR=3", "never_fires"),
        ("FREQ=DAILY;UNTIL=20260327T075959Z", "in_the_past"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_with_its_reason(rule, code):
    now = START if code == "in_the_past" else START - timedelta(seconds=1)
    assert refusal(rule, now=now) == ("rule", code)


def test_a_rule_that_has_counted_to_its_end_is_in_the_past():
    later = START + timedelta(days=5)
    assert refusal("FREQ=DAILY;COUNT=3", now=later) == ("rule", "in_the_past")
    assert due("FREQ=DAILY;COUNT=3", 10)[-1] == START + timedelta(days=2) - timedelta(hours=1)


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../../etc/passwd", "+02:00", "localtime"])
def test_an_unknown_time_zone_is_refused(zone):
    assert refusal("FREQ=DAILY", zone=zone) == ("time_zone", "unknown_time_zone")


def test_a_start_beyond_all_years_is_none():
    start = datetime(9999, 12, 31, 23, 0, tzinfo=UTC)
    assert refusal("FREQ=DAILY", start=start, now=START) == ("starts_at", "never_fires")
    start = datetime(9998, 12, 31, 23, 0, tzinfo=UTC)
    assert refusal("FREQ=DAILY", start=start, now=START) == ("rule", "never_fires")


HOSTILE = [
    "FREQ=MINUTELY;INTERVAL=5;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=MINUTELY;INTERVAL=997;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=MINUTELY;INTERVAL=1439;BYHOUR=3;BYMINUTE=59;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=HOURLY;INTERVAL=9999;BYMONTH=2;BYMONTHDAY=29;BYHOUR=3",
    "FREQ=DAILY;INTERVAL=7;BYDAY=TU",
    "FREQ=YEARLY;BYWEEKNO=1;BYYEARDAY=200",
    "FREQ=YEARLY;BYYEARDAY=" + ",".join(["12"] * 155) + ",x",
    "FREQ=MONTHLY;BYSETPOS=366;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR=" + ",".join(map(str, range(24))),
    "FREQ=YEARLY;BYHOUR=" + ",".join(map(str, range(24))) + ";BYMINUTE=0,5,10,15,20,25,30,35,40,"
    "45,50,55;BYMONTH=2;BYMONTHDAY=30",
    "FREQ=DAILY;BYHOUR=0,1,2,3,4,5,6,7,8,9,10,11,12;BYMINUTE=" + ",".join(map(str, range(60))),
]


@pytest.mark.parametrize("rule", HOSTILE, ids=range(len(HOSTILE)))
def test_no_rule_costs_much(rule):
    began_s = time.process_time()
    with contextlib.suppress(Unusable):
        first_due(read_rule(rule, time_zone=BERLIN, starts_at=START), START)
    assert time.process_time() - began_s < 1


def test_the_age_of_a_rule_costs_nothing_and_counting_is_bounded():
    def cost_s(rule, age):
        read = read_rule(rule, time_zone=BERLIN, starts_at=START)
        began_s = time.process_time()
        read.first_after(START + age)
        return time.process_time() - began_s

    assert cost_s("FREQ=MINUTELY;INTERVAL=5", timedelta(days=30_000)) < 0.3
    assert cost_s("FREQ=MINUTELY;INTERVAL=1439;COUNT=1000", timedelta(days=30_000)) < 5
