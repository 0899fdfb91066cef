"""Outputs that are useless or hostile, and a storage that takes none."""

import contextlib
import socket
import threading
import time

import psutil
import pytest
import requests

from tests.faults.harness import full_only, often
from tests.waiting import wait_until

# Its rules are tested in the process as well, and much faster.
pytestmark = full_only

# How much a worker may grow while it is fed with files that swell.
GROWTH_MAX_BYTES = 300 * 1024 * 1024
# A download as a whole ends by then, however little comes of it.
DOWNLOAD_DEADLINE_S = 30


def generations(faults, batch):
    """The generations of a batch as they stand, in order."""
    return faults.stack.rows(
        """
        SELECT id::text, owner_id, status, error_code, attempt_count, retry_count,
               extract(epoch FROM finished_at)::float8 AS finished_at
        FROM batches_generation WHERE batch_id = %s ORDER BY index
        """,
        batch["id"],
    )


def applied(faults):
    """How often the simulator has done what it was asked to."""
    return sum(rule["applied"] for rule in faults.simulator._call("GET", "faults")["faults"])


def worst_since_done(faults, rows):
    """Seconds from when a provider was first done with a generation until that had ended."""
    done = {}
    for row in faults.stack.rows(
        "SELECT generation_id::text AS id, provider_id FROM batches_attempt "
        "WHERE generation_id = ANY(%s::uuid[]) AND provider_id IS NOT NULL",
        [row["id"] for row in rows],
    ):
        done[row["provider_id"]] = row["id"]
    first = {}
    for charge in faults.simulator.charges():
        if charge["prediction_id"] in done and charge["ended_at"]:
            one = done[charge["prediction_id"]]
            first[one] = min(charge["ended_at"], first.get(one, charge["ended_at"]))
    return max(row["finished_at"] - first[row["id"]] for row in rows)


def image_count(stack, batch):
    return stack.value("SELECT count(*) FROM batches_image WHERE batch_id = %s", batch["id"])


class Trap:
    """A server at an address that no output may come from. `visits` counts who came."""

    def __init__(self):
        self.visits = 0
        self._listener = socket.create_server(("127.0.0.2", 0))
        self.url = f"http://127.0.0.2:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._count, name="trap", daemon=True)
        self._thread.start()

    def _count(self):
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._listener.accept()
                self.visits += 1
                visitor.close()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def trap():
    trap = Trap()
    yield trap
    trap.close()


class Growth:
    """How much a worker and its children grow at most during a block, in bytes.

    They are compared process by process: what is started meanwhile counts as a whole.
    """

    def __init__(self, stack, name):
        self._stack, self._name = stack, name
        self.bytes = 0

    def __enter__(self):
        self._before = self._sizes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="growth")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _sizes(self):
        sizes = {}
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            main = psutil.Process(self._stack.pids[self._name])
            for process in (main, *main.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    sizes[process.pid] = process.memory_info().rss
        return sizes

    def _watch(self):
        while not self._over.wait(0.02):
            for pid, size in self._sizes().items():
                self.bytes = max(self.bytes, size - self._before.get(pid, 0))


# --- What is no image ---------------------------------------------------------------------------

# Fetched once more, because a file may be cut off on its way; then generated once more; then
# given up. So each is asked for at the provider twice.
USELESS = {
    "truncated_file": "output truncated",
    "wrong_type": "output is HTML named .png",
    "empty_file": "output of 0 bytes",
    "svg_script": "output is an SVG with a script",
    "polyglot": "output is a JPEG and a script",
}


@pytest.mark.parametrize("kind", USELESS)
def test_an_output_that_is_no_good_ends_in_a_typed_failure_and_leaves_nothing(faults, kind):
    count = often(20, 3)
    with faults.injecting(USELESS[kind]) as fault:
        faults.simulator.fault(kind, prompt=kind)
        batch = faults.user().submit([f"{kind} {number}" for number in range(count)])
        fault.settle([batch], paid_again=True)
        rows = generations(faults, batch)
        assert {(row["status"], row["error_code"]) for row in rows} == {("failed", "bad_output")}
        assert {row["attempt_count"] for row in rows} == {2}
        assert len(faults.simulator.charges(kind)) == 2 * count
        assert image_count(faults.stack, batch) == 0
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=60)


def test_an_output_that_is_good_the_second_time_is_not_paid_again(faults):
    count = often(20, 3)
    with faults.injecting("output truncated, once") as fault:
        faults.simulator.fault("truncated_file", prompt="short", hits=1)
        batch = faults.user().submit([f"short {number}" for number in range(count)])
        fault.settle([batch])
        rows = generations(faults, batch)
        assert {row["status"] for row in rows} == {"completed"}
        assert len(faults.simulator.charges("short")) == count
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=60)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("output is a gzip bomb", "gzip_bomb"),
        ("output of 8 kB that holds 8000 x 8000 pixels", "huge_png"),
    ],
)
def test_a_file_that_swells_neither_fills_the_worker_nor_ends_it(faults, name, kind):
    count = often(20, 3)
    workers = {child.pid for child in faults.stack.children("worker-download")}
    with faults.injecting(name) as fault:
        faults.simulator.fault(kind, prompt="bomb")
        with Growth(faults.stack, "worker-download") as growth:
            batch = faults.user().submit([f"bomb {number}" for number in range(count)])
            fault.settle([batch], paid_again=True)
        rows = generations(faults, batch)
        assert {(row["status"], row["error_code"]) for row in rows} == {("failed", "bad_output")}
        assert image_count(faults.stack, batch) == 0
        print(f"\n{name}: the worker grew by {growth.bytes / 2**20:.0f} MB at most")
        assert growth.bytes < GROWTH_MAX_BYTES
        assert workers <= {child.pid for child in faults.stack.children("worker-download")}
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=240)


# --- What comes from elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "option", "path"),
    [
        ("output on a host that is not on the list", "foreign_host", "base_url", ""),
        ("output redirects to a private address", "file_redirect", "location", "/latest/"),
    ],
)
def test_nobody_is_visited_who_is_not_on_the_list(faults, trap, name, kind, option, path):
    count = often(20, 3)
    with faults.injecting(name) as fault:
        faults.simulator.fault(kind, prompt=kind, **{option: trap.url + path})
        batch = faults.user().submit([f"{kind} {number}" for number in range(count)])
        fault.settle([batch], paid_again=True)
        rows = generations(faults, batch)
        assert {(row["status"], row["error_code"]) for row in rows} == {("failed", "bad_output")}
        assert image_count(faults.stack, batch) == 0
        assert trap.visits == 0
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=60)


# --- What cannot be fetched ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("output file 404", "file_status", {"status": 404}),
        ("output file 403", "file_status", {"status": 403}),
        ("output deleted at the provider", "expired", {}),
    ],
)
def test_an_output_that_is_gone_is_not_asked_for_again(faults, name, kind, options):
    count = often(20, 3)
    with faults.injecting(name) as fault:
        faults.simulator.fault(kind, prompt="gone", **options)
        batch = faults.user().submit([f"gone {number}" for number in range(count)])
        fault.settle([batch])
        rows = generations(faults, batch)
        assert {(one["status"], one["error_code"]) for one in rows} == {
            ("failed", "output_expired")
        }
        assert len(faults.simulator.charges("gone")) == count
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=60)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("output file 503", "file_status", {"status": 503}),
        ("output connection cut", "drop_file", {}),
    ],
)
@pytest.mark.parametrize("hits", [2, None], ids=["twice", "always"])
def test_an_output_that_cannot_be_fetched_is_fetched_again_and_paid_once(
    faults, name, kind, options, hits
):
    count = often(20, 3)
    with faults.injecting(name) as fault:
        faults.simulator.fault(kind, prompt="far", hits=hits, **options)
        batch = faults.user().submit([f"far {number}" for number in range(count)])
        fault.settle([batch])
        rows = generations(faults, batch)
        expected = ("completed", "") if hits else ("failed", "download_failed")
        assert {(row["status"], row["error_code"]) for row in rows} == {expected}
        assert len(faults.simulator.charges("far")) == count
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=90)


@pytest.mark.timeout(900)
def test_a_file_that_drips_holds_a_download_no_longer_than_its_deadline(faults):
    # Each holds one of two processes until its deadline, so they are not many.
    count = often(20, 2)
    with faults.injecting("output drips a byte at a time") as fault:
        faults.simulator.fault("drip", prompt="drip", seconds=0.5, hits=1)
        batch = faults.user().submit([f"drip {number}" for number in range(count)])
        fault.settle([batch], timeout_s=count * DOWNLOAD_DEADLINE_S + 60)
        rows = generations(faults, batch)
        assert {row["status"] for row in rows} == {"completed"}
        assert len(faults.simulator.charges("drip")) == count
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=count * DOWNLOAD_DEADLINE_S)


# --- A list of outputs that is not what was asked for ---------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("prediction without output", "empty_output", {}),
        ("prediction with null as output", "empty_output", {"null": True}),
        ("prediction with a shorter list than asked for", "short_output", {"count": 0}),
    ],
)
def test_a_prediction_that_holds_no_picture_is_made_once_more(faults, name, kind, options):
    count = often(20, 3)
    with faults.injecting(name) as fault:
        faults.simulator.fault(kind, prompt="hollow", times=count, **options)
        user = faults.user()
        batch = user.submit([f"hollow {number}" for number in range(count)])
        fault.settle([batch], paid_again=True)
        rows = generations(faults, batch)
        assert {row["status"] for row in rows} == {"completed"}
        assert len(faults.simulator.charges("hollow")) == 2 * count
        assert image_count(faults.stack, batch) == count
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=60)


def test_a_single_url_is_as_good_as_a_list_of_one(faults):
    count = often(20, 3)
    with faults.injecting("prediction with one URL instead of a list") as fault:
        faults.simulator.fault("string_output", prompt="single")
        batch = faults.user().submit([f"single {number}" for number in range(count)])
        fault.settle([batch])
        rows = generations(faults, batch)
        assert {row["status"] for row in rows} == {"completed"}
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, rows), within_s=60)


# --- A storage that takes nothing -----------------------------------------------------------------


@contextlib.contextmanager
def obstructed(faults, batch):
    """No file of a batch can be stored in the block: a file is where its folder has to be.

    Permissions would not do: whoever runs the tests may be root.
    """
    owner_id = generations(faults, batch)[0]["owner_id"]
    obstacle = faults.stack.data_dir / "media" / str(owner_id) / batch["id"]
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.touch()
    try:
        yield
    finally:
        obstacle.unlink()


def refusals(faults, batch):
    """How many tries to store something of a batch have failed."""
    ids = {row["id"] for row in generations(faults, batch)}
    lines = faults.stack.log("worker-download").read_text(errors="replace").splitlines()
    return sum("cannot store" in line and any(one in line for one in ids) for line in lines)


def test_a_storage_that_comes_back_has_every_image_and_none_is_paid_twice(faults):
    count = often(20, 3)
    with faults.injecting("storage denied, then back") as fault:
        faults.simulator.settings(run_seconds=1.5)
        batch = faults.user().submit([f"shelf {number}" for number in range(count)])
        with obstructed(faults, batch):
            wait_until(lambda: refusals(faults, batch) >= count)
            fault.injected(refusals(faults, batch))
        healed_at = time.time()
        fault.settle([batch])
        rows = generations(faults, batch)
        assert {row["status"] for row in rows} == {"completed"}
        assert len(faults.simulator.charges("shelf")) == count
        # They are put off for some seconds after each try.
        fault.recovered(max(row["finished_at"] for row in rows) - healed_at, within_s=60)


def test_a_storage_that_stays_away_is_told_by_name_and_paid_once(faults):
    count = often(20, 3)
    with faults.injecting("storage denied for good") as fault:
        faults.simulator.settings(run_seconds=1.5)
        user = faults.user()
        batch = user.submit([f"shelf {number}" for number in range(count)])
        with obstructed(faults, batch):
            ended = user.finished(batch, timeout_s=90)
        assert ended["status"] == "failed"
        assert {item["error"]["code"] for item in ended["items"]} == {"download_failed"}
        assert {item["error"]["message"] for item in ended["items"]} == {
            "The image could not be stored."
        }
        assert len(faults.simulator.charges("shelf")) == count
        fault.settle([batch])
        rows = generations(faults, batch)
        fault.injected(refusals(faults, batch))
        fault.recovered(worst_since_done(faults, rows), within_s=90)


# --- What was stored is served safely -------------------------------------------------------------


def test_what_is_served_names_its_type_and_is_not_guessed_at(faults):
    with faults.injecting("images among hostile outputs") as fault:
        for kind in USELESS:
            faults.simulator.fault(kind, prompt=kind)
        user = faults.user()
        batch = user.submit([*USELESS, *(f"good {number}" for number in range(often(20, 3)))])
        fault.settle([batch], paid_again=True)
        ended = user.finished(batch)
        assert (ended["status"], ended["failed_count"]) == ("partial", len(USELESS))
        for item in ended["items"]:
            if item["image"] is None:
                assert item["error"]["code"] == "bad_output"
                continue
            for url in (item["image"]["url"], item["image"]["thumbnail_url"]):
                answer = requests.get(url, timeout=10)
                assert answer.headers["Content-Type"] in ("image/png", "image/webp")
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
        fault.injected(applied(faults))
        fault.recovered(worst_since_done(faults, generations(faults, batch)), within_s=60)
