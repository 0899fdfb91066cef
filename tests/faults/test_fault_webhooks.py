"""Webhooks that come twice, late, forged, from the past, too early, to nobody, or never.

Whatever they do, each generation ends once; a look at the provider makes up for those that do
not come.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import math
import statistics
import time
import uuid

import pytest
import requests

from tests.faults.harness import FULL, LEASE_S, RECOVERY_S, often
from tests.waiting import wait_until

# An age at which a webhook is refused, in seconds.
STALE_S = 400
# The longest between two looks, see `worker.looks`.
POLL_S = LEASE_S / 3
# What a measurement must keep to on a machine that has nothing else to do.
FOLLOWED_WITHIN_S = 0.1
ANSWERED_WITHIN_S = 0.05


def generations(faults, batch):
    """The generations of a batch as they stand, each with its attempt, in order."""
    return faults.stack.rows(
        """
        SELECT generation.id::text, status, version, attempt_count, attempt.provider_id,
               callback_token::text AS token, outcome,
               extract(epoch FROM downloading_at)::float8 AS downloading_at,
               extract(epoch FROM generation.finished_at)::float8 AS finished_at
        FROM batches_generation generation
        LEFT JOIN batches_attempt attempt
          ON attempt.generation_id = generation.id AND number = attempt_count
        WHERE batch_id = %s ORDER BY index
        """,
        batch["id"],
    )


def deliveries(faults):
    return faults.simulator._call("GET", "webhooks")["deliveries"]


def applied(faults):
    return sum(rule["applied"] for rule in faults.simulator._call("GET", "faults")["faults"])


def replay(faults, webhook_id, **changes):
    """Send a webhook once more, as somebody would who has recorded it; the answer's status."""
    return faults.simulator._call(
        "POST", "webhooks/replay", json={"webhook_id": webhook_id, **changes}
    )["status"]


def receipts(faults, webhook_ids):
    return faults.stack.value(
        "SELECT count(*) FROM batches_webhookreceipt WHERE webhook_id = ANY(%s)", webhook_ids
    )


def lateness(faults, rows, *, until="downloading_at"):
    """Seconds from when the provider was done with each generation until we went on with it."""
    ended = {one["prediction_id"]: one["ended_at"] for one in faults.simulator.charges()}
    return [row[until] - ended[row["provider_id"]] for row in rows]


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]


def completed_once(faults, batch, count):
    """All of it is completed, by one attempt each, and each was charged once; its rows."""
    rows = generations(faults, batch)
    assert {(row["status"], row["attempt_count"]) for row in rows} == {("completed", 1)}
    assert len(faults.simulator.charges()) == len(rows) == count
    return rows


class Provider:
    """Sends webhooks that are signed as they should be, whatever they say."""

    def __init__(self, faults):
        self._url = f"{faults.stack.url}/hooks/replicate/"
        answer = requests.get(
            f"{faults.simulator.url}/v1/webhooks/default/secret",
            headers={"Authorization": "Bearer r8_simulated"},
            timeout=10,
        )
        self._key = base64.b64decode(answer.json()["key"].removeprefix("whsec_"))
        self._http = requests.Session()
        self._http.trust_env = False

    def send(self, token, **body):
        """The answer's status."""
        data, at, webhook_id = json.dumps(body).encode(), int(time.time()), f"msg_{uuid.uuid4()}"
        digest = hmac.new(self._key, f"{webhook_id}.{at}.".encode() + data, hashlib.sha256)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(at),
            "webhook-signature": "v1," + base64.b64encode(digest.digest()).decode(),
        }
        url = f"{self._url}{token}/"
        return self._http.post(url, data=data, headers=headers, timeout=30).status_code


@pytest.fixture
def provider(faults):
    return Provider(faults)


def all_submitted(faults, batch):
    rows = generations(faults, batch)
    return rows if all(row["provider_id"] for row in rows) else None


# --- Twice, out of order, late --------------------------------------------------------------------


def test_webhooks_that_come_several_times_have_one_effect(faults):
    count, copies = often(20, 4), 4
    with faults.injecting("webhook duplicated") as fault:
        faults.simulator.fault("webhook_duplicate", copies=copies)
        batch = faults.user().submit([f"twin {number}" for number in range(count)])
        fault.settle([batch])
        rows = completed_once(faults, batch, count)
        wait_until(lambda: len(deliveries(faults)) == copies * count)
        sent = deliveries(faults)
        assert {one["status"] for one in sent} == {200}
        assert receipts(faults, [one["webhook_id"] for one in sent]) == count
        assert generations(faults, batch) == rows
        fault.injected((copies - 1) * count)
        fault.recovered(max(lateness(faults, rows, until="finished_at")), within_s=60)


def test_webhooks_that_come_in_the_wrong_order_change_nothing(faults, provider):
    count = often(20, 4)
    with faults.injecting("webhooks reordered") as fault:
        faults.simulator.settings(run_seconds=1.0)
        batch = faults.user().submit([f"order {number}" for number in range(count)])
        running = wait_until(lambda: all_submitted(faults, batch))
        for row in running:
            # Beginnings are no end, neither before nor after it.
            for status in ("processing", "starting"):
                body = {"id": row["provider_id"], "status": status, "output": None}
                assert provider.send(row["token"], **body) == 200
        fault.settle([batch])
        rows = completed_once(faults, batch, count)
        for row in rows:
            for status in ("processing", "starting"):
                body = {"id": row["provider_id"], "status": status, "output": None}
                assert provider.send(row["token"], **body) == 200
            # Nor is another end one, once there is an end.
            body = {"id": row["provider_id"], "status": "failed", "error": "out of memory"}
            assert provider.send(row["token"], **body) == 200
        assert generations(faults, batch) == rows
        fault.injected(5 * count)
        fault.recovered(max(lateness(faults, rows, until="finished_at")), within_s=60)


def test_a_webhook_that_is_later_than_a_look_changes_nothing(faults):
    count = often(20, 4)
    with faults.injecting("webhook late") as fault:
        faults.simulator.fault("webhook_delay", seconds=POLL_S + 3)
        batch = faults.user().submit([f"late {number}" for number in range(count)])
        fault.settle([batch])
        rows = completed_once(faults, batch, count)
        wait_until(lambda: len(deliveries(faults)) == count)
        assert {one["status"] for one in deliveries(faults)} == {200}
        assert generations(faults, batch) == rows
        fault.injected(count)
        fault.recovered(max(lateness(faults, rows)))


# --- Forged, from the past ------------------------------------------------------------------------


def test_forged_webhooks_are_refused_and_looks_do_without_them(faults):
    count = often(20, 4)
    with faults.injecting("webhook forged") as fault:
        faults.simulator.fault("webhook_bad_signature")
        batch = faults.user().submit([f"forged {number}" for number in range(count)])
        fault.settle([batch])
        rows = completed_once(faults, batch, count)
        sent = deliveries(faults)
        assert {one["status"] for one in sent} == {401}
        assert receipts(faults, [one["webhook_id"] for one in sent]) == 0
        fault.injected(len(sent))
        fault.recovered(max(lateness(faults, rows)))


def test_recorded_webhooks_are_refused_or_have_no_second_effect(faults):
    count = often(20, 4)
    names = ("webhook stale", "webhook of the future", "webhook replayed", "webhook altered")
    with faults.injecting(*names) as (stale, future, again, altered):
        user = faults.user()
        # Each row of the table has its own work.
        batches = [user.submit([f"tape {n} {number}" for number in range(count)]) for n in names]
        by_fault = zip((stale, future, again, altered), ([one] for one in batches), strict=True)
        faults.settle(dict(by_fault))
        rows = [row for batch in batches for row in generations(faults, batch)]
        ids = list(dict.fromkeys(one["webhook_id"] for one in deliveries(faults)))
        assert len(ids) == len(rows) == 4 * count
        for place in range(count):
            now_s = int(time.time())
            assert replay(faults, ids[place], timestamp=now_s - STALE_S) == 401
            stale.injected()
            assert replay(faults, ids[count + place], timestamp=now_s + STALE_S) == 401
            future.injected()
            assert replay(faults, ids[2 * count + place]) == 200
            again.injected()
            assert replay(faults, ids[3 * count + place], body_suffix=" ") == 401
            altered.injected()
        assert [row for batch in batches for row in generations(faults, batch)] == rows
        assert {row["status"] for row in rows} == {"completed"}


# --- To nobody, too early, never ------------------------------------------------------------------


def test_webhooks_for_nobody_are_not_found(faults, provider):
    count = often(20, 4)
    with faults.injecting("webhook for an unknown id") as fault:
        faults.simulator.settings(run_seconds=1.5)
        batch = faults.user().submit([f"nobody {number}" for number in range(count)])
        for row in wait_until(lambda: all_submitted(faults, batch)):
            body = {"status": "failed", "error": "out of memory"}
            # Its prediction, and an address of nobody; another prediction, and its address.
            assert provider.send(uuid.uuid4(), id=row["provider_id"], **body) == 404
            assert provider.send(row["token"], id=f"{uuid.uuid4()}", **body) == 404
            fault.injected(2)
        fault.settle([batch])
        rows = completed_once(faults, batch, count)
        fault.recovered(max(lateness(faults, rows, until="finished_at")), within_s=60)


@pytest.mark.parametrize(
    ("name", "stall_s"),
    [
        ("webhook before our submission is answered", LEASE_S / 2),
        ("webhook, and our submission is never answered", 60.0),
    ],
)
def test_a_webhook_that_overtakes_the_answer_is_not_lost(faults, name, stall_s):
    count = often(20, 4)
    with faults.injecting(name) as fault:
        user = faults.user()
        fault.settle([user.submit(["warm up"])])
        faults.simulator.reset()
        faults.simulator.settings(run_seconds=0.1, queue_seconds=0.0)
        faults.simulator.fault("stall_create", seconds=stall_s)
        # Fewer than the worker has threads, all of which would wait for an answer.
        with few_at_a_time(faults, 5):
            batch = user.submit([f"early {number}" for number in range(count)])
            fault.settle([batch])
        rows = completed_once(faults, batch, count)
        created = {one["prediction_id"]: one["created_at"] for one in faults.simulator.charges()}
        ahead = [row["downloading_at"] < created[row["provider_id"]] + stall_s for row in rows]
        # Each thread of the worker waits for its own answer: nothing else may take so long.
        assert sum(ahead) > count / 2
        assert {one["status"] for one in deliveries(faults)} == {200}
        fault.injected(applied(faults))
        fault.recovered(max(lateness(faults, rows)))


def test_webhooks_that_never_come_are_made_up_for_by_looks(faults):
    count = often(100, 8)
    with faults.injecting("webhook never") as fault:
        faults.simulator.fault("webhook_drop")
        batch = faults.user().submit([f"silent {number}" for number in range(count)])
        fault.settle([batch])
        rows = completed_once(faults, batch, count)
        late = lateness(faults, rows)
        print(
            f"\nwithout webhooks, provider done to download begun, of {count}:"
            f" p50 {statistics.median(late):.3f} s, p95 {percentile(late, 95):.3f} s,"
            f" one look {POLL_S:.2f} s"
        )
        # Not longer than one interval, and what a busy machine adds.
        assert statistics.median(late) <= POLL_S + 0.5
        fault.injected(applied(faults))
        fault.recovered(max(late), within_s=POLL_S + RECOVERY_S)


# --- How long they take ---------------------------------------------------------------------------


@contextlib.contextmanager
def few_at_a_time(faults, slots):
    """All users have so many slots in the block: enough to see times, too few to queue."""
    with faults.stack.sql() as cursor:
        cursor.execute("UPDATE batches_lane SET cap = %s, cap_is_own = true", [slots])
    try:
        yield
    finally:
        with faults.stack.sql() as cursor:
            cursor.execute("UPDATE batches_lane SET cap_is_own = false")


def test_a_webhook_is_followed_at_once(faults):
    count = often(120, 12)
    with faults.injecting("webhooks as they should be (none injected)") as fault:
        user = faults.user()
        fault.settle([user.submit(["warm up"])])
        faults.simulator.reset()
        faults.simulator.settings(run_seconds=1.0, run_jitter=0.5, queue_seconds=0.0)
        with few_at_a_time(faults, 4):
            batch = user.submit([f"prompt {number}" for number in range(count)])
            fault.settle([batch], timeout_s=300)
        rows = completed_once(faults, batch, count)
        late = lateness(faults, rows)
        ended = {one["prediction_id"]: one["ended_at"] for one in faults.simulator.charges()}
        answered = [one["at"] - ended[one["prediction_id"]] for one in deliveries(faults)]
        assert {one["status"] for one in deliveries(faults)} == {200}
        for what, times in (("download begun", late), ("webhook answered", answered)):
            print(
                f"\nprovider done to {what}, of {len(times)}:"
                f" p50 {1000 * statistics.median(times):.0f} ms,"
                f" p95 {1000 * percentile(times, 95):.0f} ms"
            )
        if FULL:
            assert percentile(late, 95) < FOLLOWED_WITHIN_S
            assert percentile(answered, 95) < ANSWERED_WITHIN_S
        fault.recovered(max(late), within_s=60)
