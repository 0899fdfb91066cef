"""A provider that is slow, away, full of errors or silent, and an account that it refuses.

The workers reach the simulator by way of a proxy here. Whatever becomes of a request, no image is
paid twice, and what its provider may still be doing is found and followed.
"""

import contextlib
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests

from tests.faults.harness import LEASE_S, RECOVERY_S, RETRY_DELAYS_S, full_only, often
from tests.faults.proxy import TcpProxy
from tests.waiting import wait_until

# Its rules are tested in the process as well, and much faster.
pytestmark = full_only

WORKER = "worker-generate"
# The longest wait that one answer may impose, and that of an answer which names none.
MAX_BLOCK_S, DEFAULT_BLOCK_S = 300, 5
CIRCUIT_THRESHOLD, CIRCUIT_OPEN_S = 3, 10
# A proxy that passes so little ends no answer before any deadline.
DRIP_BYTES_PER_S = 20
# The circuit's pause, a probe, and what was put off meanwhile.
REOPENED_WITHIN_S = CIRCUIT_OPEN_S + RECOVERY_S + 20
HTML = "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"


@contextlib.contextmanager
def generating_with(stack, **env):
    """The worker that talks to the provider has these in its environment for the block."""
    before = stack._own_env.get(WORKER, {})
    stack._own_env[WORKER] = {**before, **env}
    stack.restart(WORKER)
    try:
        yield
    finally:
        stack._own_env[WORKER] = before
        stack.restart(WORKER)


@pytest.fixture(scope="module")
def way(fault_stack):
    """The proxy before the provider."""
    with (
        TcpProxy(("127.0.0.1", fault_stack.simulator_port)) as proxy,
        generating_with(fault_stack, REPLICATE_BASE_URL=f"http://127.0.0.1:{proxy.port}"),
    ):
        yield proxy


@pytest.fixture
def proxy(faults, way):
    """The proxy, and no pool in trouble before the test or after it."""
    calm(faults)
    yield way
    way.heal()
    calm(faults)


def calm(faults):
    with faults.stack.sql() as cursor:
        cursor.execute(
            "UPDATE batches_pool SET blocked_until = NULL, failure_count = 0, stopped_by = ''"
        )
        cursor.execute("UPDATE batches_alert SET cleared_at = now() WHERE cleared_at IS NULL")


# --- What can be seen ---------------------------------------------------------------------------


def generations(faults, batch):
    """The generations of a batch as they stand, in order."""
    return faults.stack.rows(
        """
        SELECT id::text, status, error_code, attempt_count, retry_count,
               extract(epoch FROM not_before)::float8 AS not_before,
               extract(epoch FROM started_at)::float8 AS started_at,
               extract(epoch FROM finished_at)::float8 AS finished_at
        FROM batches_generation WHERE batch_id = %s ORDER BY index
        """,
        batch["id"],
    )


def attempts(faults, batch):
    return faults.stack.rows(
        """
        SELECT generation_id::text AS generation, number, outcome, error_class, provider_id
        FROM batches_attempt attempt
        JOIN batches_generation generation ON generation.id = generation_id
        WHERE batch_id = %s ORDER BY generation.index, number
        """,
        batch["id"],
    )


def pool(faults):
    (row,) = faults.stack.rows(
        """
        SELECT failure_count, stopped_by,
               COALESCE(extract(epoch FROM blocked_until - clock_timestamp()), 0)::float8
               AS blocked_s
        FROM batches_pool WHERE name = 'replicate'
        """
    )
    return row


def alerts(faults, code):
    """Those of this test are open, or were cleared during it."""
    return faults.stack.rows(
        "SELECT id, count, cleared_at FROM batches_alert WHERE code = %s ORDER BY id DESC", code
    )


def applied(faults):
    return sum(rule["applied"] for rule in faults.simulator._call("GET", "faults")["faults"])


def creates(faults):
    """Every request for a prediction since the test began, refused ones as well."""
    return faults.simulator.stats()["timeline"]


def ready(faults):
    """What the product says of itself: its status, and that of the provider."""
    answer = requests.get(f"{faults.stack.url}/health/ready", timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["status"], answer.json()["providers"]["replicate"]


def said(faults, batch, words):
    """How often the worker has logged these words about a generation of the batch."""
    ids = {row["id"] for row in generations(faults, batch)}
    lines = faults.stack.log(WORKER).read_text(errors="replace").splitlines()
    return sum(words in line and any(one in line for one in ids) for line in lines)


def all_have(faults, batch, status):
    rows = generations(faults, batch)
    return rows if all(row["status"] == status for row in rows) else None


def all_submitted(faults, batch, count):
    rows = [row for row in attempts(faults, batch) if row["provider_id"]]
    return rows if len(rows) >= count else None


def all_unanswered(faults, batch, count):
    """All have been submitted, and no answer will come."""
    rows = [row for row in attempts(faults, batch) if row["error_class"] == "timeout_unknown"]
    return rows if len(rows) >= count else None


def texts(what, count):
    return [f"{what} {number}" for number in range(count)]


def completed(faults, batch, count, *, charges=None):
    """All of it is completed, and the provider was paid once for each; its rows."""
    rows = generations(faults, batch)
    assert [row["status"] for row in rows] == ["completed"] * count
    assert len(faults.simulator.charges()) == (count if charges is None else charges)
    return rows


def since(rows, moment):
    """Seconds from a moment until the last of these had ended."""
    return max(row["finished_at"] for row in rows) - moment


# --- A provider that asks for patience ------------------------------------------------------------


def in_http_date(seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


# Each with the wait that is expected of us, in seconds, and another body than usual. The words of
# the usual one ask for some 30 s.
RATE_LIMITS = (
    ("429, Retry-After 0", lambda: "0", 0, 2, None),
    ("429, Retry-After 86400", lambda: "86400", MAX_BLOCK_S - 60, MAX_BLOCK_S, None),
    ("429, Retry-After garbage", lambda: "in a while", 20, 30, None),
    ("429, no wait named at all", lambda: None, 0, DEFAULT_BLOCK_S, "Slow down."),
    (
        "429, Retry-After an HTTP date",
        lambda: in_http_date(86_400),
        MAX_BLOCK_S - 60,
        MAX_BLOCK_S,
        None,
    ),
    ("429, Retry-After an HTTP date of the past", lambda: in_http_date(-60), 0, 2, None),
    ("429, Retry-After 1", lambda: "1", 0, 2, None),
)


@pytest.mark.parametrize(
    ("name", "retry_after", "least_s", "most_s", "body"),
    often(RATE_LIMITS, RATE_LIMITS[:3]),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rate_limit_is_kept_to_and_burns_no_attempt(
    faults, proxy, name, retry_after, least_s, most_s, body
):
    count = often(20, 3)
    with faults.injecting(name) as fault:
        user, other = faults.user(), faults.user()
        faults.simulator.fault("slow", prompt="before", seconds=2.5)
        before = other.submit(["before"])
        wait_until(lambda: all_submitted(faults, before, 1))
        answer = {"status": 429, "retry_after": retry_after(), "body": body}
        faults.simulator.fault("create_status", prompt="limited", times=count, **answer)
        batch = user.submit(texts("limited", count))
        wait_until(lambda: applied(faults) == count + 1)
        if least_s:
            refused = wait_until(lambda: all_have(faults, batch, "queued"))
            assert least_s < pool(faults)["blocked_s"] <= most_s
            assert all(row["not_before"] - time.time() <= most_s for row in refused)
            assert ready(faults) == ("degraded", "rate_limited")
            # Nobody is asleep meanwhile: what was submitted before is fetched and stored.
            assert other.finished(before)["status"] == "completed"
            assert len(creates(faults)) == count + 1
            as_if_waited(faults)
        released_at = time.time()
        fault.settle([before, batch])
        rows = generations(faults, batch)
        assert {(row["status"], row["retry_count"]) for row in rows} == {("completed", 0)}
        ends = [(one["outcome"], one["error_class"]) for one in attempts(faults, batch)]
        assert ends.count(("failed", "rate_limited")) == count
        assert len(faults.simulator.charges("limited")) == count
        fault.injected(count)
        waited_s = 0 if least_s else most_s
        fault.recovered(since(rows, released_at), within_s=RECOVERY_S + waited_s + 10)


def as_if_waited(faults):
    """Whatever waits for a time is due, and nothing is blocked."""
    with faults.stack.sql() as cursor:
        cursor.execute("UPDATE batches_pool SET blocked_until = NULL")
        cursor.execute(
            "UPDATE batches_generation SET not_before = now() "
            "WHERE status = 'queued' AND not_before IS NOT NULL"
        )


# --- A provider that is away ----------------------------------------------------------------------


ERRORS = (
    ("502 with a page", {"status": 502, "body": HTML, "content_type": "text/html"}),
    ("500", {"status": 500}),
    ("503", {"status": 503}),
)


@pytest.mark.parametrize(("name", "options"), often(ERRORS, ERRORS[:1]))
def test_errors_of_the_provider_open_the_circuit_and_a_probe_closes_it(
    faults, proxy, name, options
):
    count = often(20, 3)
    with faults.injecting(name) as fault:
        faults.simulator.fault("create_status", prompt="shaky", times=count, **options)
        batch = faults.user().submit(texts("shaky", count))
        wait_until(lambda: applied(faults) == count)
        wait_until(lambda: all_have(faults, batch, "queued"))
        assert pool(faults)["failure_count"] >= CIRCUIT_THRESHOLD
        assert 0 < pool(faults)["blocked_s"] <= CIRCUIT_OPEN_S
        assert ready(faults) == ("degraded", "circuit_open")
        (alert, *_) = alerts(faults, "circuit_open")
        assert alert["cleared_at"] is None
        as_if_waited(faults)
        back_at = time.time()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert {one["outcome"] for one in attempts(faults, batch)} == {"failed", "succeeded"}
        assert ready(faults) == ("ok", "ok")
        (alert, *_) = alerts(faults, "circuit_open")
        assert alert["cleared_at"] is not None
        fault.injected(count)
        fault.recovered(since(rows, back_at), within_s=REOPENED_WITHIN_S)


def test_an_outage_that_is_longer_than_all_retries_fails_nobody(faults, proxy):
    count = often(20, 4)
    with faults.injecting("provider away for longer than all retries") as fault:
        dark_at = time.time()
        proxy.blackout()
        batch = faults.user().submit(texts("outage", count))
        wait_until(lambda: pool(faults)["failure_count"] >= CIRCUIT_THRESHOLD)
        assert ready(faults) == ("degraded", "circuit_open")
        opens_at = time.time() + pool(faults)["blocked_s"]
        # A probe has found nobody either, and the circuit is open once more.
        wait_until(lambda: time.time() + pool(faults)["blocked_s"] > opens_at + CIRCUIT_OPEN_S / 2)
        assert time.time() - dark_at > sum(RETRY_DELAYS_S)
        rows = generations(faults, batch)
        assert not [row for row in rows if row["finished_at"]]
        fault.injected(proxy.resets)
        back_at = time.time()
        proxy.heal()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert ready(faults) == ("ok", "ok")
        assert alerts(faults, "circuit_open")[0]["cleared_at"] is not None
        fault.recovered(since(rows, back_at), within_s=REOPENED_WITHIN_S)


def test_one_probe_at_a_time_goes_to_a_provider_that_may_be_back(faults, proxy):
    count = often(20, 4)
    with faults.injecting("half-open circuit") as fault:
        faults.simulator.fault("create_status", status=503, prompt="probe")
        batch = faults.user().submit(texts("probe", count))
        wait_until(lambda: len(creates(faults)) == count)
        wait_until(lambda: all_have(faults, batch, "queued"))
        for _ in range(often(20, 3)):
            before = len(creates(faults))
            as_if_waited(faults)
            wait_until(lambda before=before: len(creates(faults)) > before)
            wait_until(lambda: pool(faults)["blocked_s"] > 0 and all_have(faults, batch, "queued"))
            assert len(creates(faults)) == before + 1
            fault.injected()
        faults.simulator._call("DELETE", "faults")
        as_if_waited(faults)
        back_at = time.time()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        fault.recovered(since(rows, back_at), within_s=REOPENED_WITHIN_S)


class BlackHole:
    """A server that nobody can connect to: its queue is full, and it never looks at it."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._waiting = []
        address = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{address[1]}"
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            self._waiting.append(filler)
        return self

    def __exit__(self, *_):
        for one in (*self._waiting, self._listener):
            one.close()


@contextlib.contextmanager
def nobody_there():
    yield "http://127.0.0.1:9"


@contextlib.contextmanager
def nobody_answering():
    with BlackHole() as hole:
        yield hole.url


AWAY = (("connect timeout", nobody_answering), ("connection refused", nobody_there))


@pytest.mark.parametrize(("name", "away"), often(AWAY, AWAY[:1]))
def test_a_provider_that_cannot_be_connected_to_has_everything_in_the_end(
    faults, proxy, name, away
):
    count = often(20, 4)
    with faults.injecting(name) as fault:
        with away() as url, generating_with(faults.stack, REPLICATE_BASE_URL=url):
            batch = faults.user().submit(texts("door", count))
            wait_until(lambda: len(attempts(faults, batch)) >= count)
            wait_until(lambda: pool(faults)["failure_count"] >= count)
            ends = [(one["outcome"], one["error_class"]) for one in attempts(faults, batch)]
            # Nothing was sent, and that is certain: nobody has to look for it.
            assert set(ends) <= {("failed", "provider_unavailable"), ("open", "")}
            fault.injected(pool(faults)["failure_count"])
        back_at = time.time()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        fault.recovered(since(rows, back_at), within_s=REOPENED_WITHIN_S)


# --- Answers that never come ----------------------------------------------------------------------


def test_a_request_that_is_lost_on_its_way_is_made_again(faults, proxy):
    count = often(20, 4)
    with faults.injecting("connection reset before the request") as fault:
        proxy.reset_after(0, "up")
        batch = faults.user().submit(texts("never sent", count))
        wait_until(lambda: len(attempts(faults, batch)) >= count)
        wait_until(lambda: pool(faults)["failure_count"] >= count)
        assert creates(faults) == []
        back_at = time.time()
        proxy.heal()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == count
        fault.injected(sum(not one["provider_id"] for one in attempts(faults, batch)))
        fault.recovered(since(rows, back_at), within_s=REOPENED_WITHIN_S)


@pytest.mark.parametrize("webhooks", [True, False], ids=["with webhooks", "without webhooks"])
def test_a_prediction_whose_id_was_lost_on_the_wire_is_found_and_paid_once(faults, proxy, webhooks):
    count = often(20, 4)
    name = "connection reset after the request" + ("" if webhooks else ", no webhook")
    with faults.injecting(name) as fault:
        lost = proxy.answers_lost
        faults.simulator.settings(run_seconds=1.0)
        if not webhooks:
            faults.simulator.fault("webhook_drop")
        for _ in range(count):
            proxy.reset_next_answer()
        reset_at = time.time()
        batch = faults.user().submit(texts("answer lost", count))
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == count
        assert len(attempts(faults, batch)) == count
        assert proxy.answers_lost - lost == count
        fault.injected(count)
        fault.recovered(since(rows, reset_at), within_s=60)


@pytest.mark.parametrize("webhooks", [True, False], ids=["with webhooks", "without webhooks"])
def test_a_prediction_that_its_provider_did_not_name_is_found_and_paid_once(
    faults, proxy, webhooks
):
    count = often(20, 4)
    name = "answer lost after creation" + ("" if webhooks else ", no webhook")
    with faults.injecting(name) as fault:
        if not webhooks:
            faults.simulator.fault("webhook_drop")
        faults.simulator.fault("drop_create_after")
        lost_at = time.time()
        batch = faults.user().submit(texts("nameless", count))
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == len(attempts(faults, batch)) == count
        fault.injected(count)
        fault.recovered(since(rows, lost_at), within_s=60)


def test_submissions_that_are_alike_find_one_prediction_each(faults, proxy):
    count = often(20, 4)
    with faults.injecting("answers lost of submissions that are alike") as fault:
        faults.simulator.settings(run_seconds=1.0)
        faults.simulator.fault("drop_create_after")
        lost_at = time.time()
        user = faults.user()
        settings = {"model": "bytedance/sdxl-lightning-4step", "width": 256, "height": 256}
        body = {"prompt": f"[{user.username}] the same", "count": count, "settings": settings}
        batch = user.call("POST", "batches/", 202, json=body).json()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len({one["provider_id"] for one in attempts(faults, batch)}) == count
        fault.injected(count)
        fault.recovered(since(rows, lost_at), within_s=60)


def test_a_submission_that_was_cut_off_before_there_was_anything_is_paid_once(faults, proxy):
    count = often(20, 4)
    with faults.injecting("answer lost before creation") as fault:
        faults.simulator.fault("drop_create_before", times=count)
        lost_at = time.time()
        batch = faults.user().submit(texts("nothing", count))
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == len(attempts(faults, batch)) == 2 * count
        fault.injected(count)
        fault.recovered(since(rows, lost_at), within_s=60)


def test_a_provider_that_hangs_has_no_request_twice(faults, proxy):
    count = often(20, 4)
    with faults.injecting("hang on create") as fault:
        proxy.freeze()
        frozen_at = time.time()
        batch = faults.user().submit(texts("frozen", count))
        wait_until(lambda: all_unanswered(faults, batch, count), timeout_s=LEASE_S + 60)
        assert creates(faults) == []
        fault.injected(count)
        # What has waited on the wire is gone with its connections.
        proxy.blackout()
        back_at = time.time()
        assert back_at - frozen_at >= LEASE_S
        proxy.heal()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == count
        fault.recovered(since(rows, back_at), within_s=REOPENED_WITHIN_S)


def test_an_answer_that_drips_is_not_waited_for_and_nothing_is_paid_twice(faults, proxy):
    count = often(20, 4)
    with faults.injecting("byte drip on create") as fault:
        faults.simulator.fault("webhook_drop")
        proxy.drip(DRIP_BYTES_PER_S)
        batch = faults.user().submit(texts("drip", count))
        wait_until(lambda: all_unanswered(faults, batch, count), timeout_s=LEASE_S + 60)
        assert len(creates(faults)) == count
        fault.injected(count)
        back_at = time.time()
        proxy.heal()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == len(attempts(faults, batch)) == count
        fault.recovered(since(rows, back_at), within_s=60)


WAYS_TO_BREAK = (
    ("byte drip", lambda proxy: proxy.drip(DRIP_BYTES_PER_S)),
    ("hang", lambda proxy: proxy.freeze()),
    ("connection reset", lambda proxy: proxy.blackout()),
)


@pytest.mark.parametrize(("name", "break_"), often(WAYS_TO_BREAK, WAYS_TO_BREAK[:1]))
def test_a_provider_that_cannot_be_looked_at_goes_on_all_the_same(faults, proxy, name, break_):
    count = often(20, 4)
    with faults.injecting(f"{name} on get") as fault:
        faults.simulator.settings(run_seconds=1.0)
        faults.simulator.fault("webhook_drop")
        batch = faults.user().submit(texts("look", count))
        wait_until(lambda: all_submitted(faults, batch, count))
        break_(proxy)
        wait_until(lambda: said(faults, batch, "cannot look") >= count, timeout_s=90)
        assert not [row for row in generations(faults, batch) if row["finished_at"]]
        back_at = time.time()
        proxy.heal()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(attempts(faults, batch)) == count
        fault.injected(said(faults, batch, "cannot look"))
        fault.recovered(since(rows, back_at), within_s=60)


@pytest.mark.parametrize("status", often([502, 429, 500], [502]))
def test_looks_that_are_refused_say_nothing_about_the_work(faults, proxy, status):
    count = often(20, 4)
    with faults.injecting(f"{status} on get") as fault:
        faults.simulator.fault("webhook_drop")
        faults.simulator.fault("get_status", status=status, hits=2)
        began_at = time.time()
        batch = faults.user().submit(texts("refused look", count))
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(attempts(faults, batch)) == count
        fault.injected(said(faults, batch, "cannot look"))
        fault.recovered(since(rows, began_at), within_s=60)


# --- Nobody can tell ------------------------------------------------------------------------------


def test_a_webhook_tells_what_the_list_cannot(faults, proxy):
    count = often(20, 4)
    with faults.injecting("answer lost, list refused, webhook comes") as fault:
        faults.simulator.settings(run_seconds=1.5)
        faults.simulator.fault("drop_create_after")
        faults.simulator.fault("list_status", status=503)
        began_at = time.time()
        batch = faults.user().submit(texts("told", count))
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == count
        fault.injected(count)
        fault.recovered(since(rows, began_at), within_s=60)


def test_a_list_that_answers_in_the_end_is_asked_until_then(faults, proxy):
    count = often(20, 4)
    with faults.injecting("answer lost, list refused for a while") as fault:
        faults.simulator.fault("webhook_drop")
        faults.simulator.fault("drop_create_after")
        faults.simulator.fault("list_status", status=500, hits=2 * count)
        began_at = time.time()
        batch = faults.user().submit(texts("listed", count))
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert len(creates(faults)) == count
        fault.injected(count)
        fault.recovered(since(rows, began_at), within_s=60)


# --- An account that is refused -------------------------------------------------------------------


ACCOUNTS = ((401, "auth"), (402, "insufficient_credit"), (403, "auth"))


@pytest.mark.parametrize(("status", "code"), often(ACCOUNTS, ACCOUNTS[:2]))
def test_a_refused_account_stops_the_pool_until_an_operator_says_so(faults, proxy, status, code):
    count = often(20, 4)
    with faults.injecting(f"{status} on create") as fault:
        faults.simulator.fault("create_status", status=status)
        user = faults.user()
        batch = user.submit(texts("account", count))
        wait_until(lambda: pool(faults)["stopped_by"] == code)
        wait_until(lambda: all_have(faults, batch, "queued"))
        asked = len(creates(faults))
        later = user.submit(texts("meanwhile", 2))
        assert ready(faults) == ("degraded", "stopped")
        (alert, *_) = alerts(faults, code)
        assert alert["cleared_at"] is None
        # That the account is in order again is nothing we could know.
        faults.simulator._call("DELETE", "faults")
        sweeps = len(faults.sweeps())
        wait_until(lambda: len(faults.sweeps()) >= sweeps + 2)
        assert len(creates(faults)) == asked
        assert {row["status"] for row in generations(faults, later)} == {"queued"}
        cleared_at = time.time()
        cleared = faults.stack.manage(
            "shell",
            "-c",
            "from batches import pools; "
            f"assert pools.clear_alert(alert_id={alert['id']}, user_id=None)",
        )
        assert cleared.returncode == 0, cleared.stderr
        fault.settle([batch, later])
        rows = [*generations(faults, batch), *generations(faults, later)]
        assert {(row["status"], row["retry_count"]) for row in rows} == {("completed", 0)}
        assert len(faults.simulator.charges()) == count + 2
        assert ready(faults) == ("ok", "ok")
        fault.injected(asked)
        fault.recovered(since(rows, cleared_at), within_s=60)


def test_an_account_that_is_refused_meanwhile_does_not_lose_what_runs(faults, proxy):
    count = often(20, 4)
    with faults.injecting("401 on get") as fault:
        faults.simulator.fault("webhook_drop")
        faults.simulator.fault("get_status", status=401, hits=1)
        batch = faults.user().submit(texts("running", count))
        wait_until(lambda: pool(faults)["stopped_by"] == "auth")
        refused_at = time.time()
        fault.settle([batch])
        rows = completed(faults, batch, count)
        assert pool(faults)["stopped_by"] == "auth"
        fault.injected(said(faults, batch, "cannot look"))
        fault.recovered(since(rows, refused_at), within_s=60)


# --- Cancelling -----------------------------------------------------------------------------------


def cancel(user, generation_id):
    """The answer's status: 200, or 409 when there was nothing to cancel."""
    answer = user.http.post(
        f"{user.stack.url}/api/v1/generations/{generation_id}/cancel/", timeout=30
    )
    assert answer.status_code in (200, 409), answer.text
    return answer.status_code


def cancel_all(user, rows):
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda row: cancel(user, row["id"]), rows))


def cancelled(faults, batch, count):
    rows = generations(faults, batch)
    assert [row["status"] for row in rows] == ["cancelled"] * count
    return rows


def ended_at_provider(faults):
    """How each prediction has ended."""
    return {one["status"] for one in faults.simulator.charges()}


@pytest.mark.parametrize(("name", "break_"), often(WAYS_TO_BREAK, WAYS_TO_BREAK[1:2]))
def test_a_provider_that_cannot_be_reached_to_cancel_is_asked_again(faults, proxy, name, break_):
    count = often(20, 4)
    with faults.injecting(f"{name} on cancel") as fault:
        faults.simulator.fault("hang")
        faults.simulator.fault("webhook_drop")
        user = faults.user()
        batch = user.submit(texts("stop", count))
        wait_until(lambda: all_submitted(faults, batch, count))
        break_(proxy)
        assert set(cancel_all(user, generations(faults, batch))) == {200}
        wait_until(lambda: said(faults, batch, "cannot look") >= count, timeout_s=90)
        # Nobody else may have the slots while the provider may be working in them.
        assert not [row for row in generations(faults, batch) if row["finished_at"]]
        assert faults.stack.value("SELECT count(*) FROM batches_lease WHERE holds_slot") == count
        back_at = time.time()
        proxy.heal()
        fault.settle([batch])
        rows = cancelled(faults, batch, count)
        assert ended_at_provider(faults) == {"canceled"}
        fault.injected(said(faults, batch, "cannot look"))
        fault.recovered(since(rows, back_at), within_s=60)


CANCEL_FAULTS = (
    ("503 on cancel", "cancel_status", {"status": 503}),
    ("connection dropped on cancel", "drop_cancel", {}),
)


@pytest.mark.parametrize(("name", "kind", "options"), often(CANCEL_FAULTS, CANCEL_FAULTS[:1]))
def test_a_cancel_that_is_refused_is_asked_for_again(faults, proxy, name, kind, options):
    count = often(20, 4)
    with faults.injecting(name) as fault:
        faults.simulator.fault("hang")
        faults.simulator.fault(kind, hits=2, **options)
        user = faults.user()
        batch = user.submit(texts("stop", count))
        wait_until(lambda: all_submitted(faults, batch, count))
        asked_at = time.time()
        assert set(cancel_all(user, generations(faults, batch))) == {200}
        fault.settle([batch])
        rows = cancelled(faults, batch, count)
        assert ended_at_provider(faults) == {"canceled"}
        fault.injected(said(faults, batch, "cannot look"))
        fault.recovered(since(rows, asked_at), within_s=60)


def test_a_provider_that_ignores_a_cancel_keeps_the_slot_until_it_is_done(faults, proxy):
    count = often(20, 4)
    with faults.injecting("cancel ignored by the provider") as fault:
        faults.simulator.fault("slow", seconds=4)
        faults.simulator.fault("cancel_ignored")
        user = faults.user()
        batch = user.submit(texts("deaf", count))
        running = wait_until(lambda: all_submitted(faults, batch, count))
        asked_at = time.time()
        assert set(cancel_all(user, generations(faults, batch))) == {200}
        fault.settle([batch])
        rows = cancelled(faults, batch, count)
        charges = {one["prediction_id"]: one for one in faults.simulator.charges()}
        by_generation = {row["id"]: row for row in rows}
        for attempt in running:
            charge = charges[attempt["provider_id"]]
            assert charge["status"] == "succeeded"
            ended_at = by_generation[attempt["generation"]]["finished_at"]
            assert ended_at >= charge["ended_at"] - 0.05
        # What it cost is on record although nobody wanted it any more.
        assert {one["outcome"] for one in attempts(faults, batch)} == {"succeeded"}
        fault.injected(applied(faults) // 2)
        fault.recovered(since(rows, asked_at), within_s=60)


# --- The deadline ---------------------------------------------------------------------------------

DEADLINE_S = 10
# Of what needs two attempts: the second begins before the deadline and ends after it.
FIRST_S, SECOND_S = DEADLINE_S - 3.0, 4.5


def test_what_reaches_its_deadline_ends_there(faults, proxy):
    """One test for all three: each would start the worker anew to have a deadline that is short."""
    count = often(20, 4)
    names = (
        "prediction never ends",
        "prediction ends after our deadline",
        "nobody can tell whether it was submitted",
    )
    user = faults.user()
    simulator = faults.simulator
    with (
        faults.injecting(*names) as (endless, late, unknown),
        generating_with(faults.stack, GENERATION_DEADLINE=str(DEADLINE_S)),
    ):
        simulator.fault("hang", prompt="endless")
        simulator.fault("slow", prompt="late", seconds=FIRST_S, times=count)
        simulator.fault("interrupt", prompt="late", times=count)
        simulator.fault("slow", prompt="late", seconds=SECOND_S)
        simulator.fault("cancel_ignored", prompt="late")
        simulator.fault("webhook_drop", prompt="untold")
        simulator.fault("drop_create_after", prompt="untold, made")
        simulator.fault("drop_create_before", prompt="untold, lost")
        simulator.fault("list_status", status=503)
        began_at = time.time()
        batches = {
            endless: user.submit(texts("endless", count)),
            late: faults.user().submit(texts("late", count)),
            unknown: faults.user().submit(
                [*texts("untold, made", count // 2), *texts("untold, lost", count // 2)]
            ),
        }
        faults.settle({fault: [batch] for fault, batch in batches.items()})
        for fault, batch in batches.items():
            fault.injected(count)
            fault.recovered(since(generations(faults, batch), began_at), within_s=60)
        # Nothing goes on at the provider that we have given up.
        assert ends(faults, batches[endless]) == {("failed", "timeout_run")}
        assert {one["status"] for one in simulator.charges("endless")} == {"canceled"}
        # What is there, and paid, is not thrown away.
        assert ends(faults, batches[late]) == {("completed", "")}
        assert len(simulator.charges("late")) == 2 * count
        # It is not asked for again, whatever became of it.
        assert ends(faults, batches[unknown]) == {("failed", "submission_unknown")}
        assert [
            (one["outcome"], one["provider_id"]) for one in attempts(faults, batches[unknown])
        ] == [("submission_unknown", None)] * count
        assert sum("untold" in one["prompt"] for one in creates(faults)) == count
        assert len(simulator.charges("untold")) == count // 2


def ends(faults, batch):
    return {(row["status"], row["error_code"]) for row in generations(faults, batch)}


# --- Races ----------------------------------------------------------------------------------------


def test_a_cancel_that_races_a_completion_has_one_winner(faults, proxy):
    count = often(100, 12)
    with faults.injecting("cancel against completion") as fault:
        faults.simulator.settings(run_seconds=0.6, run_jitter=0.8)
        user = faults.user()
        batch = user.submit(texts("race", count))
        moments = random.Random(5)

        def started(generation_id):
            return faults.stack.value(
                "SELECT started_at IS NOT NULL FROM batches_generation WHERE id = %s", generation_id
            )

        def cancel_some_time(row):
            wait_until(lambda: started(row["id"]), every_s=0.02)
            # At the provider, being fetched, or done: wherever it is by then.
            time.sleep(moments.uniform(0, 1.2))
            return row["id"], cancel(user, row["id"])

        with ThreadPoolExecutor(8) as threads:
            answers = dict(threads.map(cancel_some_time, generations(faults, batch)))
        asked_at = time.time()
        fault.settle([batch])
        rows = generations(faults, batch)
        # Who was told that it is cancelled has it cancelled; who was not has the image.
        assert {row["id"]: row["status"] for row in rows} == {
            one: "cancelled" if status == 200 else "completed" for one, status in answers.items()
        }
        assert {row["status"] for row in rows} == {"cancelled", "completed"}
        identified = [one for one in attempts(faults, batch) if one["provider_id"]]
        assert len(identified) == len(creates(faults))
        assert len(faults.simulator.charges()) == len(creates(faults))
        fault.injected(count)
        fault.recovered(since(rows, asked_at), within_s=60)
