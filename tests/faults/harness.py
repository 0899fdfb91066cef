"""A stack whose processes may be killed, users of it, and the books of what a fault has cost.

A fault test reads like this:

    def test_a_worker_is_killed(faults):
        with faults.injecting("kill -9 of the generate worker") as fault:
            batch = faults.user().submit(["a fox", "a hare"])
            killed_at = faults.stack.kill("worker-generate")   # is started again at once
            fault.injected(2)
            fault.settle([batch])
            fault.recovered(...)

`settle` waits for the end of all batches, compares the database, the provider's books and the
storage with one another, enters what it finds in the table under the fault's name, and fails if
anything is wrong. `faults` and `faults.stack` live as long as the test session; the simulator and
the rules are reset before each test.

`PICTURE_FAULTS=full` makes every test inject as often as the table of faults asks for, see `FULL`.
Without it each is done a few times, and leases are shorter.

Moments are seconds of `time.monotonic()`, which all processes of a machine share.
"""

import contextlib
import itertools
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import psycopg2
import psycopg2.extras
import pytest
import requests

from picture.stack import Stack
from tests.acceptance.conftest import UNSET, Client, Simulator
from tests.faults import crash_app
from tests.faults.crash_app import Rule
from tests.waiting import wait_until

FULL = os.environ.get("PICTURE_FAULTS") == "full"
LEASE_S = 5 if FULL else 2
# From the fault until whatever it hit has moved on.
RECOVERY_S = LEASE_S + 5
RETRY_DELAYS_S = (0.2, 0.4, 0.8, 0.8, 0.8, 0.8)
WORKERS = ("worker-generate", "worker-download", "worker-control")
# Small pictures, so that the time goes into what is tested.
SETTINGS = {"model": "bytedance/sdxl-lightning-4step", "width": 256, "height": 256}
TERMINAL = ("completed", "failed", "cancelled")
SETTLE_S = 90.0
# Files that a late writer has left are deleted when its lease is certainly over.
CLEANED_WITHIN_S = LEASE_S + 20.0


def often(full, short):
    """How often to inject: as the table of faults asks for, or a few times."""
    return full if FULL else short


# For what takes long and is tested elsewhere in a shorter way.
full_only = pytest.mark.full_only


# --- the processes ------------------------------------------------------------------------------


class FaultStack(Stack):
    """A stack whose workers die where they are told to, and are started again at once.

    What ends is started anew as an operator's supervisor would, except PostgreSQL, Redis, the
    simulator and what is in a `held` block. `kills` are the moments of all kills by name, of
    those that the workers did themselves as well.
    """

    def __init__(self, folder: Path, *, env=None, **options):
        self.crash_dir = folder / "crash"
        (self.crash_dir / "rules").mkdir(parents=True)
        fixed = {
            "LEASE_SECONDS": str(LEASE_S),
            # The simulated shops have done at once what they are asked for.
            "CHANNEL_SETTLE_SECONDS": "2" if FULL else "1",
            "RETRY_DELAYS": ",".join(map(str, RETRY_DELAYS_S)),
            "MAX_PARALLEL_PER_USER": "20",
            "MAX_PARALLEL_GLOBAL": "60",
            "MAX_BATCH_SIZE": "200",
            "PICTURE_CRASH_DIR": str(self.crash_dir),
        }
        super().__init__(
            folder,
            env=dict.fromkeys(UNSET, "") | fixed | (env or {}),
            simulator_options=("--seed", "1"),
            **options,
        )
        # Nobody stands in for a provider that is in trouble.
        self.env |= {"RUNPOD_API_KEY": "", "COMFYUI_URL": ""}
        for name in WORKERS:
            self._programs[name] = _dies_on_demand(self._programs[name])
        self.killed_at = []
        self._own_env = {}
        self._held = set()
        self._processes_lock = threading.RLock()
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._restart_what_ends, name="supervisor")

    def start(self):
        super().start()
        with self.sql() as cursor:
            # As fast as they come: a rate limit is another test's subject. The first sweep may
            # have made the pool already.
            cursor.execute(
                """
                INSERT INTO batches_pool (name, capacity, burst, tokens, refilled_at, vtime)
                VALUES ('replicate', 1000, 60, 60, now(), 0)
                ON CONFLICT (name) DO UPDATE
                SET capacity = 1000, rate_per_s = NULL, burst = 60, tokens = 60
                """
            )
        self._supervisor.start()

    def stop(self):
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        super().stop()

    def check(self):
        """Processes may end at any time here."""

    def kill(self, name, signum=9):
        """Signal a process, await its end if it is SIGKILL; the moment when it was sent."""
        with self._processes_lock:
            at = time.monotonic()
            super().kill(name, signum)
            self.killed_at.append(at)
            return at

    def restart(self, name):
        """Stop and start a process and await it; start a dead embedded server."""
        with self.held(name):
            super().restart(name)

    @contextlib.contextmanager
    def held(self, *names):
        """What of these ends in the block is started again only after it."""
        with self._processes_lock:
            self._held.update(names)
        try:
            yield
        finally:
            with self._processes_lock:
                self._held.difference_update(names)

    def begin(self, name):
        """Start a process that does not run, and do not wait for it."""
        with self._processes_lock:
            self._spawn(name)

    def await_ready(self, *names, timeout_s=60):
        """Wait until processes, all workers and the web if none are named, do their work."""
        for name in names or (*WORKERS, "web", "beat"):
            wait_until(lambda name=name: self._processes[name].ready(), timeout_s=timeout_s)

    def await_redis(self, timeout_s=60):
        def answers():
            with contextlib.suppress(Exception), self.redis() as client:
                return client.ping()

        wait_until(answers, timeout_s=timeout_s)

    @contextlib.contextmanager
    def another(self, name):
        """A second process like `name` beside it for the block; its name."""
        twin = f"{name}-twin"
        plain = self._programs[name]
        queue = name.removeprefix("worker-")
        changes = {f"{queue}@%h": f"{queue}2@%h"}
        changes[str(self.data_dir / "beat/schedule")] = str(self.data_dir / "beat/schedule2")
        with self._processes_lock:
            self._programs[twin] = replace(
                plain,
                name=twin,
                arguments=tuple(changes.get(one, one) for one in plain.arguments),
                ready_line=plain.ready_line.replace(rf"\b{queue}@", rf"\b{queue}2@"),
            )
            self._spawn(twin)
        try:
            self.await_ready(twin)
            yield twin
        finally:
            with self.held(twin):
                self.kill(twin)
                with self._processes_lock:
                    del self._processes[twin]

    @contextlib.contextmanager
    def clock_shifted(self, name, seconds):
        """A worker's wall clock is so many seconds wrong for the block."""
        self._own_env[name] = {"PICTURE_CLOCK_S": str(seconds)}
        self.kill(name)
        try:
            yield
        finally:
            del self._own_env[name]
            self.kill(name)

    def children(self, name):
        """The child processes of a process that runs now."""
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            return psutil.Process(self.pids[name]).children()
        return []

    def kill_child(self, name):
        """Kill one child of a prefork worker; the moment, `None` if there is none just now."""
        for child in self.children(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                at = time.monotonic()
                child.kill()
                self.killed_at.append(at)
                return at
        return None

    def empty_redis(self):
        """Make a Redis that has been killed start with nothing, as one without persistence."""
        for file in (self.data_dir / "redis").glob("appendonly*"):
            file.unlink()

    def redis(self):
        from redis import Redis

        return Redis.from_url(self.env["REDIS_URL"], socket_timeout=5)

    @contextlib.contextmanager
    def sql(self):
        """A cursor on the stack's database, in autocommit; rows come as dicts."""
        connection = psycopg2.connect(
            self.env["DATABASE_URL"], cursor_factory=psycopg2.extras.RealDictCursor
        )
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def rows(self, sql, *params, **named):
        """The rows of a query as dicts; `%s` stands for `params`, `%(name)s` for `named`."""
        with self.sql() as cursor:
            cursor.execute(sql, named or params or None)
            return [dict(row) for row in cursor.fetchall()]

    def value(self, sql, *params, **named):
        """The only value of the only row of a query."""
        (row,) = self.rows(sql, *params, **named)
        (value,) = row.values()
        return value

    def in_flight(self, status=("processing", "downloading")):
        """Ids of the generations that are in these statuses now."""
        rows = self.rows(
            "SELECT id::text FROM batches_generation WHERE status = ANY(%s)", list(status)
        )
        return {row["id"] for row in rows}

    def hit_by_killing(self, name):
        """Ids of the generations that lose a delivery, a message or a wake-up by a kill now.

        What waits for its next look is in the memory of the generate worker. Downloads that have
        not begun are in the broker; they wait for one another too, so they tell nothing about
        the recovery.
        """
        chosen = {
            "worker-generate": "status = 'processing'",
            "worker-control": "status = 'processing'",
            "worker-download": "status = 'downloading' AND is_held",
            "redis": "status = 'processing' OR is_held",
        }
        rows = self.rows(
            "SELECT generation.id::text FROM batches_generation generation "
            "JOIN batches_lease lease ON lease.generation_id = generation.id "
            f"WHERE {chosen[name]}"
        )
        return {row["id"] for row in rows}

    def _spawn(self, name):
        plain = self.env
        self.env = {**plain, **self._own_env.get(name, {})}
        try:
            super()._spawn(name)
        finally:
            self.env = plain

    def _restart_what_ends(self):
        while not self._stopping.wait(0.05):
            with self._processes_lock:
                for name, process in list(self._processes.items()):
                    if name != "simulator" and name not in self._held and process.ended():
                        self._spawn(name)


def _dies_on_demand(program):
    arguments = [
        "tests.faults.crash_app" if one in ("picture", "celery") else one
        for one in program.arguments
    ]
    return replace(program, arguments=tuple(arguments))


# --- users --------------------------------------------------------------------------------------


class User(Client):
    """A user of the API, made beforehand. `submit` uses small pictures unless it is told."""

    def __init__(self, stack, username, token):
        self.stack = stack
        self.username = username
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.headers["Authorization"] = f"Bearer {token}"

    def submit(self, texts, **body):
        return super().submit(texts, **{"settings": SETTINGS, **body})

    def post(self, texts, timeout_s=30, **body):
        """Post a batch and return the answer whatever it is; network errors are raised."""
        prompts = [{"text": f"[{self.username}] {text}"} for text in texts]
        return self.http.post(
            f"{self.stack.url}/api/v1/batches/",
            json={"settings": SETTINGS, "prompts": prompts, **body},
            timeout=timeout_s,
        )

    def look(self, batch):
        """The batch as it is now."""
        return self.call("GET", f"batches/{batch['id']}/").json()


class Poster:
    """Posts a small batch again and again, from a thread, for a `with` block.

    accepted: the batches that were answered 202, each with the moment of the answer at `at`.
    refused: answers other than 202. broken: how many POSTs got no answer at all.
    """

    def __init__(self, user, text, *, size=2, every_s=0.1):
        self.accepted, self.refused, self.broken = [], [], 0
        self._user, self._text, self._size, self._every_s = user, text, size, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._post, name="poster")

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stopping.set()
        self._thread.join()

    @property
    def answered(self):
        """How many POSTs got an answer, or the end of their connection."""
        return len(self.accepted) + len(self.refused) + self.broken

    def next_accepted(self, since, timeout_s=60):
        """Seconds from a moment until the first 202 after it."""
        times = wait_until(
            lambda: [one["at"] for one in self.accepted if one["at"] > since],
            timeout_s=timeout_s,
            every_s=0.01,
        )
        return times[0] - since

    def _post(self):
        for number in itertools.count():
            texts = [f"{self._text} {number}.{place}" for place in range(self._size)]
            try:
                answer = self._user.post(texts)
            except requests.RequestException:
                self.broken += 1
            else:
                if answer.status_code == 202:
                    self.accepted.append({**answer.json(), "at": time.monotonic()})
                else:
                    self.refused.append(answer)
            if self._stopping.wait(self._every_s):
                return


_MAKE_USERS = """
from django.contrib.auth import get_user_model
from knox.models import get_token_model
for name in {names!r}:
    user, _ = get_user_model().objects.get_or_create(username=name)
    print("token", name, get_token_model().objects.create(user)[1])
"""


def make_users(stack, names):
    """Users of these names, by one process for all."""
    done = stack.manage("shell", "-c", _MAKE_USERS.format(names=list(names)))
    tokens = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("token ")]
    assert len(tokens) == len(names), done.stdout + done.stderr
    return [User(stack, name, token) for name, token in tokens]


# --- the table ----------------------------------------------------------------------------------

COLUMNS = (
    "fault",
    "times injected",
    "lost",
    "double-charged",
    "leaked slots",
    "orphan files",
    "seconds to recover (worst)",
)


@dataclass
class Row:
    injected: int = 0
    lost: int = 0
    double_charged: int = 0
    leaked: int = 0
    orphans: int = 0
    worst_s: float | None = None

    def cells(self):
        worst = "-" if self.worst_s is None else f"{self.worst_s:.1f}"
        counts = (self.injected, self.lost, self.double_charged, self.leaked, self.orphans)
        return (*map(str, counts), worst)


def table(rows):
    """The lines of the table for rows by fault."""
    lines = [COLUMNS, *((name, *row.cells()) for name, row in rows.items())]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    return [
        " | ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


class Fault:
    """One fault while it is being injected. What it notes goes into the row of its name."""

    def __init__(self, faults, name):
        self.name = name
        self.row = faults.rows.setdefault(name, Row())
        self.settled = False
        self._faults = faults

    def injected(self, times=1):
        """Count how often something was really hit."""
        self.row.injected += times

    def recovered(self, seconds, *, within_s=RECOVERY_S):
        """Enter how long it took until what was hit had moved on; fail when that is too long."""
        self.row.worst_s = max(self.row.worst_s or 0.0, seconds)
        assert within_s is None or seconds <= within_s, f"{self.name}: {seconds:.1f} s"

    def settle(self, batches=(), **options):
        """See `Faults.settle`."""
        self._faults.settle({self: batches}, **options)


# --- the test's view of it all ------------------------------------------------------------------


class Faults:
    """The stack under test, its provider, and the table. `rows` are those of the table by name."""

    def __init__(self, stack, rows):
        self.stack = stack
        self.rows = rows
        self.simulator = Simulator(stack.simulator_url)
        self.users = []
        self._next_user = itertools.count()
        self._next_name = itertools.count(1)

    def reset(self):
        """Forget what the last test has asked of the simulator and of the workers."""
        for point in crash_app.POINTS:
            crash_app.set_rule(self.stack.crash_dir, point, None)
        for file in self.stack.crash_dir.glob("claims/*/*"):
            file.unlink()
        for name in ("kills", "trace"):
            (self.stack.crash_dir / name).write_text("")
        self.stack.killed_at.clear()
        self.simulator.reset()
        self.simulator.settings(run_seconds=0.3, queue_seconds=0.0, rate_per_minute=None)

    def user(self):
        """A user without anything under way; the same ones come again after a while."""
        if not self.users:
            names = [f"faulty{next(self._next_name)}" for _ in range(12)]
            self.users = make_users(self.stack, names)
        return self.users[next(self._next_user) % len(self.users)]

    @contextlib.contextmanager
    def injecting(self, *names) -> Iterator[Fault | list[Fault]]:
        """The fault of a name, or those of several; each must be settled in the block."""
        them = [Fault(self, name) for name in names]
        yield them if len(them) > 1 else them[0]
        assert all(fault.settled for fault in them), f"never settled: {names}"

    def status(self, batch):
        return self.stack.value("SELECT status FROM batches_batch WHERE id = %s", batch["id"])

    def ended_at(self, batch):
        """The moment when a batch was finished."""
        finished_s = self.stack.value(
            "SELECT extract(epoch FROM finished_at)::float8 FROM batches_batch WHERE id = %s",
            batch["id"],
        )
        return finished_s - time.time() + time.monotonic()

    # --- crashes at a point ---------------------------------------------------------------------

    def crash(self, point, prompt, *, each=1, gather=1, within_s=1.0):
        """Workers die at a point of `crash_app.POINTS`, see `crash_app.Rule`."""
        crash_app.set_rule(self.stack.crash_dir, point, Rule(prompt, each, gather, within_s))

    def crashed(self, point):
        """The generations that were hit at a point, and when: moments by id."""
        kills = {line["pid"]: line["at"] for line in self._lines("kills")}
        hit = defaultdict(list)
        for claim in (self.stack.crash_dir / "claims" / point).glob("*"):
            # Several of a process wait for one another; none is counted before it has died.
            if (pid := claim.read_text()) and int(pid) in kills:
                hit[claim.name.rpartition(".")[0]].append(kills[int(pid)])
        return dict(hit)

    def trace(self):
        """Moments at which deliveries began, in order, by generation."""
        turns = defaultdict(list)
        for line in self._lines("trace"):
            if "generation" in line:
                turns[line["generation"]].append(line["at"])
        return turns

    def sweeps(self):
        """Moments at which sweeps ended, in order."""
        return [line["at"] for line in self._lines("trace") if "sweep" in line]

    def next_sweep(self, since, timeout_s=60):
        """Seconds from a moment until the end of the first sweep that ends after it."""
        times = wait_until(
            lambda: [at for at in self.sweeps() if at > since], timeout_s=timeout_s, every_s=0.02
        )
        return times[0] - since

    def clock_shifts(self):
        """By how many seconds the clocks of those who worked since the reset are wrong."""
        offset_s = time.time() - time.monotonic()
        return {round(line["wall"] - line["at"] - offset_s) for line in self._lines("trace")}

    def _lines(self, name):
        text = (self.stack.crash_dir / name).read_text()
        return [json.loads(line) for line in text.splitlines()]

    # --- how long it took -----------------------------------------------------------------------

    def moves(self, generation_ids):
        """Moments at which generations moved on: a delivery began, or it ended. In order, by id."""
        turns = self.trace()
        wall_s = time.time() - time.monotonic()
        ended = {
            row["id"]: row["at"] - wall_s
            for row in self.stack.rows(
                "SELECT id::text, extract(epoch FROM finished_at)::float8 AS at "
                "FROM batches_generation WHERE id = ANY(%s::uuid[]) AND finished_at IS NOT NULL",
                list(generation_ids),
            )
        }
        return {
            one: sorted([*turns.get(one, ()), *([ended[one]] if one in ended else [])])
            for one in generation_ids
        }

    def recovered(self, hit):
        """Those of `hit` that have moved on since they were hit; see `worst_recovery`."""
        moves = self.moves(hit)
        moved = {one for one, times in hit.items() if any(at > times[-1] for at in moves[one])}
        # One that ended in the moment it was hit moves no more.
        ended = self.stack.rows(
            "SELECT id::text FROM batches_generation WHERE id::text = ANY(%s) AND status = ANY(%s)",
            list(hit),
            list(TERMINAL),
        )
        return moved | {row["id"] for row in ended}

    def worst_recovery(self, hit):
        """The longest from a kill until what it hit moved on; `hit`: moments of kills by id.

        What takes longer than `RECOVERY_S` is counted from the last kill that came in between.
        """
        kills = sorted([*self.stack.killed_at, *(line["at"] for line in self._lines("kills"))])
        worst_s = 0.0
        for generation_id, moves in self.moves(hit).items():
            for killed_at in hit[generation_id]:
                moved_at = next((at for at in moves if at > killed_at), None)
                if moved_at is None:  # another delivery had ended it by then
                    continue
                seconds = moved_at - killed_at
                if seconds > RECOVERY_S:
                    seconds = moved_at - max(at for at in (killed_at, *kills) if at < moved_at)
                worst_s = max(worst_s, seconds)
        return worst_s

    # --- the books ------------------------------------------------------------------------------

    def settle(self, batches_by_fault, *, timeout_s=SETTLE_S, paid_again=False):
        """Wait until all has ended, compare all books, enter the result, and fail if it is wrong.

        `batches_by_fault`: the batches, or their ids, by `Fault`; their ids may be those of
        single generations too. `paid_again`: outputs were useless, so that a generation may have
        more than one charge for work that succeeded.

        lost            generations that have not ended, batches that are not finished or whose
                        counters differ from the rows
        double-charged  charges that belong to no attempt, or to one that has another; attempts
                        whose submission is not in the provider's books
        leaked slots    leases, and slots counted in lanes
        orphan files    files that no image has, images that have no file
        """
        wanted = {
            fault: [one if isinstance(one, str) else one["id"] for one in batches]
            for fault, batches in batches_by_fault.items()
        }
        everything = [one for ids in wanted.values() for one in ids]
        with contextlib.suppress(AssertionError):  # what is missing is counted below
            wait_until(lambda: self._has_ended(everything), timeout_s=timeout_s, every_s=0.1)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._slots(), timeout_s=10)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self._orphans(), timeout_s=CLEANED_WITHIN_S, every_s=0.2)
        complaints = []
        slots, orphans = self._slots(), self._orphans()
        for fault, ids in wanted.items():
            lost, charged = self._lost(ids), self._wrongly_charged(ids, paid_again)
            fault.row.lost += len(lost)
            fault.row.double_charged += len(charged)
            fault.row.leaked += len(slots)
            fault.row.orphans += len(orphans)
            fault.settled = True
            complaints += lost + charged
        complaints += slots + orphans + self._strangers()
        if FULL:
            complaints += self.broken_invariants()
        assert not complaints, "\n".join(complaints)

    def broken_invariants(self):
        """What `manage.py check_invariants` complains of. A second: else it is asked in the end."""
        checked = self.stack.manage("check_invariants")
        return [checked.stdout + checked.stderr] if checked.returncode else []

    def _has_ended(self, ids):
        return not self.stack.rows(
            """
            SELECT FROM batches_generation
            WHERE (batch_id = ANY(%(ids)s::uuid[]) OR id = ANY(%(ids)s::uuid[]))
              AND finished_at IS NULL
            UNION ALL
            SELECT FROM batches_batch WHERE id = ANY(%(ids)s::uuid[]) AND finished_at IS NULL
            LIMIT 1
            """,
            ids=ids,
        )

    def _lost(self, ids):
        known = self.stack.rows(
            """
            SELECT id::text, 0 AS expected, status FROM batches_generation
            WHERE id = ANY(%(ids)s::uuid[])
            UNION ALL
            SELECT id::text, total_count, status FROM batches_batch WHERE id = ANY(%(ids)s::uuid[])
            """,
            ids=ids,
        )
        missing = [f"lost: {one} does not exist" for one in set(ids) - {row["id"] for row in known}]
        open_ones = self.stack.rows(
            """
            SELECT id::text, status FROM batches_generation
            WHERE (batch_id = ANY(%(ids)s::uuid[]) OR id = ANY(%(ids)s::uuid[]))
              AND status <> ALL(%(terminal)s)
            """,
            ids=ids,
            terminal=list(TERMINAL),
        )
        wrong = self.stack.rows(
            """
            SELECT batch.id::text, batch.status, total_count, completed_count, failed_count,
                   cancelled_count, rows.*
            FROM batches_batch batch JOIN LATERAL (
                SELECT count(*) AS total,
                       count(*) FILTER (WHERE status = 'completed') AS completed,
                       count(*) FILTER (WHERE status = 'failed') AS failed,
                       count(*) FILTER (WHERE status = 'cancelled') AS cancelled
                FROM batches_generation WHERE batch_id = batch.id
            ) rows ON true
            WHERE batch.id = ANY(%(ids)s::uuid[]) AND (finished_at IS NULL
               OR (total_count, completed_count, failed_count, cancelled_count)
                  <> (rows.total, rows.completed, rows.failed, rows.cancelled))
            """,
            ids=ids,
        )
        return (
            missing
            + [f"lost: generation {row['id']} is {row['status']}" for row in open_ones]
            + [f"lost: batch {row}" for row in wrong]
        )

    def _attempts(self, ids=None):
        chosen = (
            ""
            if ids is None
            else "WHERE batch_id = ANY(%(ids)s::uuid[]) OR generation.id = ANY(%(ids)s::uuid[])"
        )
        return self.stack.rows(
            f"""
            SELECT attempt.id, generation_id::text, number, provider_id, outcome,
                   callback_token::text AS token
            FROM batches_attempt attempt
            JOIN batches_generation generation ON generation.id = generation_id {chosen}
            """,
            ids=ids,
        )

    def _wrongly_charged(self, ids, paid_again):
        """Compare attempts with the provider's books, both ways."""
        attempts = self._attempts(ids)
        charges = self.simulator.charges()
        by_token = defaultdict(list)
        for charge in charges:
            by_token[_token(charge)].append(charge)
        charged = {charge["prediction_id"] for charge in charges}
        created = {
            one["prediction_id"]: one
            for one in self.simulator.stats()["timeline"]
            if one["prediction_id"]
        }
        wrong = []
        successes = Counter()
        for attempt in attempts:
            own = by_token[attempt["token"]]
            name = f"generation {attempt['generation_id']} attempt {attempt['number']}"
            successes[attempt["generation_id"]] += any(
                charge["status"] == "succeeded" for charge in own
            )
            if len(own) > 1:
                wrong.append(f"double-charged: {name}: {len(own)} charges")
            if attempt["provider_id"] is None:
                if own and attempt["outcome"] != "submission_unknown":
                    wrong.append(f"double-charged: {name}: charged, and not on record")
                continue
            prediction = created.get(attempt["provider_id"])
            if prediction is None:
                wrong.append(f"double-charged: {name}: not in the provider's books")
            # Of two submissions of the same input one may be taken for the other.
            elif prediction["started_at"] is not None and attempt["provider_id"] not in charged:
                wrong.append(f"double-charged: {name}: its charge is missing")
        if not paid_again:
            wrong += [
                f"double-charged: generation {one}: {count} submissions succeeded"
                for one, count in successes.items()
                if count > 1
            ]
        return wrong

    def _strangers(self):
        """Charges since the last reset that belong to no attempt, by token and by id."""
        attempts = self._attempts()
        tokens = {one["token"]: one for one in attempts}
        ids = {one["provider_id"] for one in attempts}
        return [
            f"double-charged: {charge['prediction_id']} ({charge['prompt']}) is no attempt's"
            for charge in self.simulator.charges()
            if _token(charge) not in tokens
            or (
                charge["prediction_id"] not in ids
                and tokens[_token(charge)]["outcome"] != "submission_unknown"
            )
        ]

    def _slots(self):
        rows = self.stack.rows(
            """
            SELECT 'lease of ' || generation_id::text AS what FROM batches_lease
            UNION ALL
            SELECT 'lane ' || owner_id || ': ' || running || ' running, ' || queued || ' queued'
            FROM batches_lane WHERE running <> 0 OR queued <> 0
            """
        )
        return [f"leaked: {row['what']}" for row in rows]

    def _orphans(self):
        media = self.stack.data_dir / "media"
        stored = {
            str(path.relative_to(media))
            for path in media.rglob("*")
            if path.is_file() and path.relative_to(media).parts[0] != "health"
        }
        rows = self.stack.rows("SELECT file, thumbnail, preview FROM batches_image")
        needed = {name for row in rows for name in row.values()}
        return [f"orphan: {name}" for name in stored - needed] + [
            f"missing: {name}" for name in needed - stored
        ]


def _token(charge):
    """The callback token in the webhook's URL of a charge."""
    return (charge["webhook"] or "").rstrip("/").rpartition("/")[2]
