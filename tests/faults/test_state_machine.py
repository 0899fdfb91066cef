"""Everything that users, providers, brokers, workers and the clock may do, in any order.

Hypothesis makes up what happens, step by step; after each step all that must hold at any moment is
compared with the rows, and at the end everything must come to rest by itself.

    PICTURE_FAULTS=full   2,000 runs of 50 steps, in `PARTS` parts that may run side by side
    PICTURE_FAULTS_SEED   another number, other runs
"""

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from django.db import connection
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batches import lifecycle, pools
from batches.models import (
    BATCH_TERMINAL,
    GENERATION_TERMINAL,
    Alert,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Image,
)
from generation.provider import ErrorClass
from tests.factories import make_user
from tests.faults.crashing import WHENS, When, crash_at, stall_at
from tests.faults.scripted import (
    REFUSALS,
    RUN_FAILURES,
    SETTINGS,
    Submission,
    Work,
    World,
    findings,
    request,
    worlds,
)
from worker import tasks

FULL = os.environ.get("PICTURE_FAULTS") == "full"
PARTS = 4 if FULL else 2
EXAMPLES, STEPS = (500, 50) if FULL else (20, 30)
ROUND = 30
SEED = int(os.environ.get("PICTURE_FAULTS_SEED", "0"))
USERS = 3
# With more, the runs would differ in nothing but their length.
MANY = 8

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(1_800)]

# What the rows say, in one round trip.
SNAPSHOT = """
    SELECT json_build_object(
        'generations', (SELECT json_object_agg(id, row_to_json(g)) FROM (
            SELECT id, owner_id, batch_id, status, version, progress, attempt_count, error_code,
                   cost_usd::text, cancel_requested_at, deleted_at, not_before, finished_at
            FROM batches_generation ORDER BY created_at, index, id) g),
        'batches', (SELECT json_object_agg(id, row_to_json(b)) FROM (
            SELECT id, status, version, total_count, completed_count, failed_count,
                   cancelled_count, cost_usd::text, finished_at, deleted_at
            FROM batches_batch ORDER BY created_at, id) b),
        'attempts', (SELECT json_agg(a) FROM (
            SELECT generation_id, number, provider_id, callback_token, outcome, error_class,
                   cost_usd::text
            FROM batches_attempt) a),
        'leases', (SELECT json_agg(l) FROM (
            SELECT generation_id, owner_id, pool_id, holds_slot FROM batches_lease) l),
        'lanes', (SELECT json_agg(n) FROM (
            SELECT owner_id, cap, running, queued FROM batches_lane) n),
        'alerts', (SELECT json_agg(t.code) FROM batches_alert t WHERE cleared_at IS NULL)
    )
"""
# Ways of an attempt to end while the provider may still be running it.
LEFT_RUNNING = {ErrorClass.TIMEOUT_RUN, ErrorClass.TIMEOUT_UNKNOWN}

# What may happen while a delivery is held up.
MEANWHILE = (
    *("takeover", "takeover", "deliver", "dispatch", "end", "report"),
    *("pause", "cancel", "delete", "retry"),
)

# What an owner may do; "switch" is pause or resume.
ACTS = ("switch", "switch", "cancel", "cancel", "delete")

users = st.integers(0, USERS - 1)
picks = st.integers(0, 11)
deaths = st.one_of(
    st.none(), st.none(), st.none(), st.tuples(st.integers(1, 7), st.sampled_from(WHENS))
)
submissions = st.one_of(
    st.sampled_from(["succeeded", *RUN_FAILURES]).map(lambda how: Submission(ends=how)),
    st.sampled_from(REFUSALS).map(lambda error: Submission(accepts=False, answers=error)),
    st.builds(
        Submission,
        accepts=st.booleans(),
        ends=st.sampled_from(["", "succeeded", "content_policy"]),
        reports=st.booleans(),
        answers=st.just(ErrorClass.TIMEOUT_UNKNOWN),
    ),
    st.just(Submission(ends="succeeded", reports=True)),
)
failures = st.one_of(
    st.sampled_from(["provider_unavailable", "rate_limited", "auth"]).map(
        lambda error: ("look", [ErrorClass(error)])
    ),
    st.sampled_from(["provider_unavailable", "unknown"]).map(
        lambda error: ("find", [ErrorClass(error)])
    ),
    st.tuples(
        st.sampled_from(["download_failed", "bad_output", "output_expired"]),
        st.sampled_from([1, 2, 5]),
    ).map(lambda plan: ("fetch", [ErrorClass(plan[0])] * plan[1])),
    st.just(("stop", [])),
)


class Picture(RuleBasedStateMachine):
    """`told`: what each run came to, for all of them."""

    new_world: ClassVar[Callable[[], World]]
    users: ClassVar[list[int]]
    told: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.world = self.new_world()
        self.now: dict[str, Any] = self.look()
        self.before = self.now
        self.held_back: set[str] = set()
        self.retried: set[str] = set()
        self.ever_retried: set[str] = set()
        self.has_failed = False
        self.told["runs"] += 1

    # --- means ---

    def look(self) -> dict[str, Any]:
        with connection.cursor() as cursor:
            cursor.execute(SNAPSHOT)
            found: dict[str, Any] = cursor.fetchone()[0]
        lists = ("attempts", "leases", "lanes", "alerts")
        return {name: found[name] or ([] if name in lists else {}) for name in found}

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """After a failure there is nothing more to look at."""
        try:
            yield
        except BaseException as error:
            self.has_failed = True
            # Not where Hypothesis itself ends a run.
            self.told["broken"] += isinstance(error, Exception)
            raise

    def take(self, death: tuple[int, Any] | None, act: Callable[[], Any]) -> bool:
        """Take one step, in a process that may die of it; whether it lived."""
        with self.noticing():
            if death is None:
                act()
                return True
            with crash_at(*death) as effects:
                act()
        self.told["deaths"] += effects.is_dead
        return not effects.is_dead

    def work(self, pick: int) -> Work:
        works = list(self.world.provider.works.values())
        return works[-1 - pick % len(works)]

    def batch(self, pick: int) -> Batch | None:
        ids = list(self.now["batches"])
        return Batch.objects.filter(pk=ids[pick % len(ids)]).first() if ids else None

    def generation(self, pick: int) -> Generation | None:
        ids = list(self.now["generations"])
        return Generation.objects.filter(pk=ids[pick % len(ids)]).first() if ids else None

    # --- users ---

    @initialize(
        asked=st.lists(
            st.tuples(st.integers(0, USERS - 1), st.text("ab", min_size=1, max_size=3)),
            min_size=1,
            max_size=2,
        ),
        plans=st.lists(submissions, max_size=3),
        is_sent=st.booleans(),
    )
    def begin(self, asked: list[tuple[int, str]], plans: list[Submission], is_sent: bool) -> None:
        """Some work for the provider, so that there is something to go wrong."""
        self.world.provider.submissions.extend(plans)
        for user, prompts in asked:
            self.submit_batch(user, prompts, None)
        self.take(None, tasks.dispatch.run)
        if is_sent:
            self.deliver_in_order(len(self.world.messages))

    @precondition(lambda self: len(self.now["generations"]) < MANY)
    @rule(user=users, prompts=st.text("ab", min_size=1, max_size=4), death=deaths)
    def submit_batch(self, user: int, prompts: str, death: Any) -> None:
        new = [request(prompt) for prompt in prompts]
        self.take(
            death,
            lambda: lifecycle.submit_batch(
                owner_id=self.users[user], generations=new, settings_asked={}
            ),
        )

    @precondition(lambda self: len(self.now["generations"]) < MANY)
    @rule(user=users, prompt=st.sampled_from("ab"))
    def submit_single(self, user: int, prompt: str) -> None:
        new = request(prompt)
        self.take(
            None,
            lambda: lifecycle.submit_generation(owner_id=self.users[user], generation=new),
        )

    @precondition(lambda self: self.now["batches"])
    @rule(pick=picks, act=st.sampled_from(ACTS), death=deaths)
    def on_batch(self, pick: int, act: str, death: Any) -> None:
        if batch := self.batch(pick):
            if act == "switch":
                act = "resume" if batch.status == BatchStatus.PAUSED else "pause"
            action = getattr(lifecycle, f"{act}_batch")
            self.take(death, lambda: action(batch=batch))

    @precondition(lambda self: self.now["generations"])
    @rule(pick=picks, act=st.sampled_from(ACTS), death=deaths)
    def on_generation(self, pick: int, act: str, death: Any) -> None:
        if generation := self.generation(pick):
            if act == "switch":
                is_held = generation.status == GenerationStatus.PENDING
                act = "resume" if is_held else "pause"
            if act == "pause":
                self.held_back.add(str(generation.pk))
            action = getattr(lifecycle, f"{act}_generation")
            self.take(death, lambda: action(generation=generation))

    @precondition(lambda self: self.now["generations"])
    @rule(pick=picks, whole_batch=st.booleans(), changes=st.booleans(), death=deaths)
    def retry(self, pick: int, whole_batch: bool, changes: bool, death: Any) -> None:
        if (generation := self.generation(pick)) is None:
            return
        rows, batch = [generation], generation.batch
        if batch and whole_batch:
            rows = list(batch.generations.all())
        plans = {row.pk: request("b") for row in rows} if changes else None
        self.retried = {str(row.pk) for row in rows} | ({str(batch.pk)} if batch else set())
        self.take(
            death,
            lambda: lifecycle.retry_generations(batch=batch, generations=rows, plans=plans),
        )

    @precondition(
        lambda self: any(one["status"] == "completed" for one in self.now["generations"].values())
    )
    @rule(pick=picks)
    def delete_image(self, pick: int) -> None:
        images = list(Image.objects.order_by("created_at"))
        if images:
            image = images[pick % len(images)]
            chosen = Image.objects.filter(pk=image.pk)
            self.take(None, lambda: lifecycle.delete_images(images=chosen))

    # --- workers and the broker ---

    @rule(death=deaths)
    def dispatch(self, death: Any) -> None:
        self.take(death, tasks.dispatch.run)

    @rule(death=deaths)
    def sweep(self, death: Any) -> None:
        self.take(death, tasks.sweep.run)

    @precondition(lambda self: self.world.messages)
    @rule(pick=picks, fate=st.sampled_from(["once", "once", "copied", "lost"]), death=deaths)
    def deliver(self, pick: int, fate: str, death: Any) -> None:
        messages = self.world.messages
        message = messages[pick % len(messages)]
        if fate != "copied":
            messages.remove(message)
        if fate == "lost":
            return
        if not self.take(death, lambda: self.world.deliver(message)) and fate == "once":
            messages.append(message)  # it was not acknowledged

    @precondition(lambda self: self.world.messages)
    @rule(
        pick=picks,
        n=st.integers(1, 7),
        when=st.sampled_from(WHENS),
        meanwhile=st.lists(st.tuples(st.sampled_from(MEANWHILE), picks), min_size=1, max_size=3),
    )
    def hold_up(self, pick: int, n: int, when: When, meanwhile: list[tuple[str, int]]) -> None:
        """A delivery stands still while other things happen, and then goes on."""
        message = self.world.messages.pop(pick % len(self.world.messages))

        def happen() -> None:
            for name, other in meanwhile:
                getattr(self, f"meanwhile_{name}")(other)

        self.world.provider.may_be_late = True
        with self.noticing(), stall_at(n, when, happen) as effects:
            self.world.deliver(message)
        self.world.provider.may_be_late = False
        self.told["held up"] += effects.has_stalled

    def meanwhile_takeover(self, pick: int) -> None:
        self.world.advance(61)
        tasks.sweep.run()
        self.meanwhile_deliver(pick)

    def meanwhile_deliver(self, pick: int) -> None:
        messages, self.world.messages = self.world.messages, []
        for message in messages:
            self.world.deliver(message)

    def meanwhile_dispatch(self, pick: int) -> None:
        tasks.dispatch.run()
        self.meanwhile_deliver(pick)

    def meanwhile_end(self, pick: int) -> None:
        self.world.provider.end_all()

    def meanwhile_report(self, pick: int) -> None:
        if self.world.provider.works:
            work = self.work(pick)
            self.world.report(work, "start" if work.is_running else "end")

    def meanwhile_pause(self, pick: int) -> None:
        if batch := self.batch(pick):
            lifecycle.pause_batch(batch=batch)

    def meanwhile_cancel(self, pick: int) -> None:
        if generation := self.generation(pick):
            lifecycle.cancel_generation(generation=generation)

    def meanwhile_delete(self, pick: int) -> None:
        if batch := self.batch(pick):
            lifecycle.delete_batch(batch=batch)

    def meanwhile_retry(self, pick: int) -> None:
        if generation := self.generation(pick):
            ids = (generation.pk, generation.batch_id)
            self.retried |= {str(one) for one in ids if one}
            lifecycle.retry_generations(batch=generation.batch, generations=[generation])

    @precondition(lambda self: self.world.messages)
    @rule(count=st.integers(1, 6))
    def deliver_in_order(self, count: int) -> None:
        for message in self.world.messages[:count]:
            self.world.messages.remove(message)
            self.take(None, lambda message=message: self.world.deliver(message))

    @rule()
    def work_on(self) -> None:
        """A while in which nothing fails."""
        self.take(None, tasks.dispatch.run)
        self.deliver_in_order(len(self.world.messages))

    @precondition(lambda self: self.world.provider.works)
    @rule()
    def finish(self) -> None:
        """The same, until what runs has ended."""
        self.world.provider.end_all()
        self.deliver_in_order(len(self.world.messages))

    # --- the provider ---

    @rule(plan=submissions)
    def plan_submission(self, plan: Submission) -> None:
        if len(self.world.provider.submissions) < 3:
            self.world.provider.submissions.append(plan)

    @rule(plan=failures)
    def plan_failure(self, plan: tuple[str, list[ErrorClass]]) -> None:
        provider, (call, errors) = self.world.provider, plan
        calls = {"look": provider.looks, "find": provider.finds, "fetch": provider.downloads}
        if call == "stop":
            provider.stops_at_once = not provider.stops_at_once
        elif not calls[call]:
            calls[call].extend(errors)

    @precondition(lambda self: self.world.provider.works)
    @rule(
        pick=picks,
        how=st.sampled_from(["succeeded", "succeeded", *RUN_FAILURES]),
        reports=st.booleans(),
    )
    def end(self, pick: int, how: str, reports: bool) -> None:
        work = self.work(pick)
        self.world.provider.end(work, "canceled" if work.is_stopping else how)
        if reports:
            self.report(pick, "end", None)

    @precondition(lambda self: self.world.provider.works)
    @rule(pick=picks, event=st.sampled_from(["end", "again"]), death=deaths)
    def report(self, pick: int, event: str, death: Any) -> None:
        work = self.work(pick)
        if work.is_running:
            event = "start"

        def send() -> None:
            assert self.world.report(work, event).status_code in (200, 404)

        self.take(death, send)

    # --- the clock, and an operator ---

    @rule(seconds=st.sampled_from([1, 6, 20, 61, 100]))
    def time_passes(self, seconds: int) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: self.now["generations"])
    @rule(pick=picks, seconds=st.sampled_from([605, 665]))
    def becomes_overdue(self, pick: int, seconds: int) -> None:
        if generation := self.generation(pick):
            Generation.objects.filter(pk=generation.pk, started_at__isnull=False).update(
                started_at=lifecycle.Now() - tasks.timedelta(seconds=seconds)
            )

    @precondition(lambda self: self.now["alerts"])
    @rule()
    def clear_alerts(self) -> None:
        for alert_id in Alert.objects.open().values_list("pk", flat=True):
            pools.clear_alert(alert_id=alert_id, user_id=None)

    # --- what must hold at any moment ---

    @invariant()
    def holds(self) -> None:
        self.told["steps"] += 1
        self.ever_retried |= self.retried
        self.before, self.now = self.now, self.look()
        with self.noticing():
            self.check_rows()
            self.check_changes()
            self.check_provider()
            broken = [one for one in findings(files=False) if one.broken and one.code != "I1"]
            assert broken == []
            assert self.world.errors.found == []
        self.retried = set()

    def check_rows(self) -> None:
        """Counters, leases, caps and money, as of now."""
        generations, leases = self.now["generations"], self.now["leases"]
        slots = [one for one in leases if one["holds_slot"]]
        assert len(slots) <= SETTINGS["MAX_PARALLEL_GLOBAL"]
        for pool, options in SETTINGS["PROVIDER_POOLS"].items():
            assert sum(one["pool_id"] == pool for one in slots) <= options["capacity"]
        for lane in self.now["lanes"]:
            own = sum(one["owner_id"] == lane["owner_id"] for one in slots)
            assert own == lane["running"] <= lane["cap"], lane
            in_line = sum(
                one["owner_id"] == lane["owner_id"]
                and one["status"] == "queued"
                and one["not_before"] is None
                for one in generations.values()
            )
            assert in_line == lane["queued"], lane
        at_work = {one["generation_id"]: one["holds_slot"] for one in leases}
        spent: Counter[str] = Counter()
        for attempt in self.now["attempts"]:
            spent[attempt["generation_id"]] += Decimal(attempt["cost_usd"])
            if attempt["outcome"] == "submission_unknown":
                self.check_given_up(attempt)
            if attempt["outcome"] == "open":
                assert generations[attempt["generation_id"]]["status"] == "processing", attempt
        for key, one in generations.items():
            wanted = {"processing": True, "downloading": False}.get(one["status"])
            assert at_work.get(key) == wanted, f"lease of {one}"
            assert Decimal(one["cost_usd"]) == spent[key], f"cost of {one}"
            if one["cancel_requested_at"] is not None:
                assert one["status"] in ("processing", "cancelled"), one
        for key, batch in self.now["batches"].items():
            rows = [one for one in generations.values() if one["batch_id"] == key]
            counts = Counter(one["status"] for one in rows)
            assert batch["total_count"] == len(rows)
            for status in GENERATION_TERMINAL:
                assert batch[f"{status}_count"] == counts[status], batch
            cost = sum((Decimal(one["cost_usd"]) for one in rows if one["finished_at"]), Decimal(0))
            assert Decimal(batch["cost_usd"]) == cost, batch
            if batch["status"] == "paused":
                assert counts["queued"] == 0, batch
            elif batch["status"] not in BATCH_TERMINAL:
                pending = {str(one["id"]) for one in rows if one["status"] == "pending"}
                assert pending <= self.held_back, f"left behind: {pending}"

    def check_given_up(self, attempt: Any) -> None:
        """Nobody knows whether it was accepted: only its owner may have another made."""
        key = attempt["generation_id"]
        is_last = attempt["number"] == self.now["generations"][key]["attempt_count"]
        is_late = attempt["callback_token"] in map(str, self.world.provider.late)
        assert is_last or is_late or key in self.ever_retried, attempt

    def check_changes(self) -> None:
        """What may become of a row from one step to the next."""
        shown = ("status", "progress", "error_code", "cost_usd", "finished_at")
        for key, old in self.before["generations"].items():
            new = self.now["generations"].get(key)
            if new is None:
                self.check_removed(key, old)
                continue
            self.check_version(old, new, shown)
            if new["status"] != old["status"]:
                self.told[f"{old['status']}->{new['status']}"] += 1
            if old["status"] in GENERATION_TERMINAL and new["status"] != old["status"]:
                assert key in self.retried, (old, new)
            assert old["attempt_count"] <= new["attempt_count"] <= old["attempt_count"] + 9
            same_attempt = old["attempt_count"] == new["attempt_count"]
            if same_attempt and new["status"] == old["status"] == "processing":
                assert new["progress"] >= old["progress"], (old, new)
        shown = (
            *("status", "completed_count", "failed_count", "cancelled_count"),
            *("cost_usd", "finished_at"),
        )
        for key, old in self.before["batches"].items():
            new = self.now["batches"].get(key)
            if new is None:
                assert sum(old[f"{status}_count"] for status in GENERATION_TERMINAL) or True
                continue
            self.check_version(old, new, shown)
            if old["status"] in BATCH_TERMINAL and new["status"] != old["status"]:
                assert key in self.retried, (old, new)
            if old["status"] == new["status"] == "paused":
                self.check_still(key)

    def check_version(self, old: Any, new: Any, shown: tuple[str, ...]) -> None:
        assert new["version"] >= old["version"], (old, new)
        if [old[name] for name in shown] != [new[name] for name in shown]:
            assert new["version"] > old["version"], (old, new)

    def check_still(self, batch_id: str) -> None:
        """Nothing more of a paused batch is started."""
        for key, new in self.now["generations"].items():
            old = self.before["generations"].get(key)
            if old and new["batch_id"] == batch_id:
                assert new["attempt_count"] == old["attempt_count"], (old, new)

    def check_removed(self, key: str, old: Any) -> None:
        """What is gone was deleted by its owner, and the provider is done with it."""
        tokens = {
            one["callback_token"] for one in self.before["attempts"] if one["generation_id"] == key
        }
        left = [
            work.id
            for work in self.world.provider.works.values()
            if str(work.token) in tokens
            and work.is_running
            and work.token not in self.world.provider.late
        ]
        abandoned = any(
            one["error_class"] in LEFT_RUNNING
            for one in self.before["attempts"]
            if one["generation_id"] == key
        )
        assert abandoned or not left, (old, left)

    def check_provider(self) -> None:
        """Paid once per attempt, and what runs there holds a slot here."""
        world = self.world
        assert max(world.provider.charges.values(), default=0) <= 1, "paid twice for one attempt"
        by_id = {one["provider_id"]: one for one in self.now["attempts"] if one["provider_id"]}
        by_token = {one["callback_token"]: one for one in self.now["attempts"]}
        for work in world.provider.works.values():
            attempt = by_id.get(work.id) or by_token.get(str(work.token))
            if work.token in world.provider.late:
                continue
            if work.is_running and attempt and attempt["outcome"] != "open":
                assert attempt["error_class"] in LEFT_RUNNING, (work, attempt)

    def teardown(self) -> None:
        if self.has_failed:
            return
        world = self.world
        world.provider.submissions.clear()
        world.provider.looks.clear()
        world.provider.finds.clear()
        world.provider.downloads.clear()
        with self.noticing():
            world.settle()
            world.check_at_rest()
        self.told["deliveries"] += world.delivered
        self.told["predictions"] += len(world.provider.works)


def play(machine: type, number: int) -> None:
    """A round of runs with a seed of its own.

    Leases and pauses end by the database's clock, so once in a few hundred runs one takes another
    turn when Hypothesis plays its beginning again, and it gives the round up. What was played until
    then is as good as any other; where something was broken, that is what is told.
    """
    try:
        run_state_machine_as_test(
            seed(number)(machine),
            settings=settings(
                max_examples=ROUND,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except FlakyStrategyDefinition:
        if machine.told["broken"]:
            raise


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_all_that_must_hold_holds(part, capsys):
    users = [make_user(f"user {number}").pk for number in range(USERS)]
    with worlds() as new:
        told: Counter[str] = Counter()
        machine = type(
            "Machine", (Picture,), {"new_world": staticmethod(new), "users": users, "told": told}
        )
        started_at = time.monotonic()
        try:
            while told["runs"] < EXAMPLES:
                play(machine, SEED * 100_000 + part * 1_000 + told["rounds"])
                told["rounds"] += 1
        finally:
            took_s = time.monotonic() - started_at
            if FULL:
                with capsys.disabled():
                    what = ", ".join(f"{count} {name}" for name, count in told.items())
                    print(
                        f"\nstate machine, part {part}, seed {SEED}: {what}, {took_s:.0f} s",
                        file=sys.stderr,
                    )
    assert told["runs"] >= EXAMPLES
