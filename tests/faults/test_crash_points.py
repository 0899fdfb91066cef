"""Every step of the work, with the process that takes it killed at each of its side effects.

A scenario is a state of affairs and one step from there. The step runs once to count its side
effects; then, for every one of them, it runs afresh and dies right before it, or after the last.
(Right after one is right before the next: nothing has changed between them.) What is left must
come to its end by itself: every generation ended, every charge on record, nothing held, nothing
left over.

In a whole run of the suite each step is held up while others do one of three things, in turn; with
`PICTURE_FAULTS=full` while they do each.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from django.test import Client

from batches import lifecycle, pools
from batches.models import Alert, Batch, Generation, Image, Lease
from generation.provider import ErrorClass
from tests.factories import make_user
from tests.faults.crashing import WHENS, count_effects, crash_at, stall_at
from tests.faults.scripted import PROVIDER, Message, Submission, World, request, worlds
from worker import sweeper, tasks

pytestmark = pytest.mark.django_db(transaction=True)

FULL = os.environ.get("PICTURE_FAULTS") == "full"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"


@dataclass
class Stage:
    """What a scenario has set up, and what its step is to work on."""

    world: World
    user: Any
    batch: Batch | None = None

    def submit(self, size: int = 1) -> Batch:
        self.batch = lifecycle.submit_batch(
            owner_id=self.user.pk,
            generations=[request(f"picture {size}.{number}") for number in range(size)],
            settings_asked={},
        )
        return self.batch

    def submit_single(self) -> Generation:
        return lifecycle.submit_generation(owner_id=self.user.pk, generation=request())

    def admit(self, size: int = 1) -> None:
        self.submit(size)
        self.dispatch()

    def dispatch(self) -> None:
        """Have everything that waits admitted; only its own messages are left."""
        tasks.dispatch.run()
        self.drop("work.dispatch")

    def run(self, size: int = 1) -> None:
        """Have it submitted: the provider runs it."""
        self.admit(size)
        self.step("work.generate", times=size)

    def finish(self, how: str = "succeeded") -> None:
        for work in self.world.provider.works.values():
            self.world.provider.end(work, how)

    def output(self, size: int = 1) -> None:
        """Have it done at the provider and ready to be downloaded."""
        self.run(size)
        self.finish()
        self.step("work.generate", times=size)

    def store(self, size: int = 1) -> None:
        self.output(size)
        self.step("work.download", times=size)

    def next(self, task: str) -> Message:
        """Take the next message of a task."""
        messages = self.world.messages
        return messages.pop(next(at for at, one in enumerate(messages) if one.task == task))

    def drop(self, task: str) -> None:
        self.world.messages = [one for one in self.world.messages if one.task != task]

    def step(self, task: str, times: int = 1) -> None:
        for _ in range(times):
            self.world.deliver(self.next(task))

    def expire(self) -> None:
        """Have every message lost, and every lease run out."""
        self.world.messages.clear()
        self.world.advance(61)

    @property
    def generation(self) -> Generation:
        return Generation.objects.earliest("created_at", "index")


@dataclass(frozen=True)
class Scenario:
    """`delivers`: the step is the delivery of the next message of that task, else `act`.

    `ends`: the statuses that its generations may end in, whenever the step dies. `submits_again`:
    whether a further submission is right.
    """

    name: str
    prepare: Callable[[Stage], Any]
    delivers: str = ""
    act: Callable[[Stage], Any] | None = None
    ends: frozenset[str] = frozenset({COMPLETED})
    submits_again: bool = False


def plans(*submissions: Submission) -> Callable[[Stage], None]:
    """Admitted, and the provider will answer so."""

    def prepare(stage: Stage) -> None:
        stage.world.provider.submissions.extend(submissions)
        stage.admit(len(submissions))

    return prepare


def then(*steps: Callable[[Stage], Any]) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        for step in steps:
            step(stage)

    return prepare


def fails_to_find(error_class: ErrorClass) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        lost(accepts=True)(stage)
        stage.world.provider.finds.append(error_class)

    return prepare


def lost(*, accepts: bool) -> Callable[[Stage], None]:
    """Submitted, and the answer got lost; long enough ago to look for it."""

    def prepare(stage: Stage) -> None:
        plans(Submission(accepts=accepts, answers=ErrorClass.TIMEOUT_UNKNOWN))(stage)
        stage.step("work.generate")
        stage.world.advance(20)

    return prepare


def ended(how: str) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        stage.run()
        stage.finish(how)

    return prepare


def failing_fetch(*failures: ErrorClass) -> Callable[[Stage], None]:
    def prepare(stage: Stage) -> None:
        stage.output()
        stage.world.provider.downloads.extend(failures)

    return prepare


def last_fetch(stage: Stage) -> None:
    stage.output()
    stage.world.provider.downloads.extend([ErrorClass.DOWNLOAD_FAILED] * 5)
    for _ in range(4):
        stage.step("work.download")


def on_batch(action: Callable[..., bool]) -> Callable[[Stage], None]:
    def act(stage: Stage) -> None:
        assert stage.batch is not None
        assert action(batch=Batch.objects.get(pk=stage.batch.pk))

    return act


def on_generation(action: Callable[..., bool]) -> Callable[[Stage], None]:
    def act(stage: Stage) -> None:
        assert action(generation=stage.generation)

    return act


def retry_all(stage: Stage) -> None:
    rows = list(Generation.objects.all())
    changed = {row.pk: request("another prompt") for row in rows}
    assert lifecycle.retry_generations(batch=stage.batch, generations=rows, plans=changed)


def report(stage: Stage) -> None:
    (work,) = stage.world.provider.works.values()
    assert stage.world.report(work).status_code == 200


def report_by_http(stage: Stage) -> None:
    """The same, through everything that Django has before the view."""
    (work,) = stage.world.provider.works.values()
    path, body, headers = stage.world.signed_report(work)
    answer = Client().post(path, body, content_type="application/json", headers=headers)
    assert answer.status_code == 200


def mixed(stage: Stage) -> None:
    """One each of what a batch may hold: stored, to download, at the provider, in line."""
    stage.store()
    Image.objects.get()
    stage.submit(4)
    stage.dispatch()
    stage.step("work.generate", times=2)
    work = stage.world.provider.works["p2"]
    stage.world.provider.end(work, "succeeded")
    (looks,) = [
        one
        for one in stage.world.messages
        if one.task == "work.generate" and one.args[0] == str(_generation_of(stage, work.token))
    ]
    stage.world.messages.remove(looks)
    stage.world.deliver(looks)


def _generation_of(stage: Stage, token: Any) -> Any:
    return Generation.objects.get(attempts__callback_token=token).pk


def cancelling(stage: Stage) -> None:
    stage.run()
    on_generation(lifecycle.cancel_generation)(stage)


def poisoned(stage: Stage) -> None:
    stage.run()
    stage.expire()
    Lease.objects.update(crash_count=sweeper.POISON_AFTER - 1, is_held=True)


def pause(stage: Stage) -> None:
    on_batch(lifecycle.pause_batch)(stage)


def overdue(stage: Stage) -> None:
    stage.run()
    stage.world.provider.stops_at_once = True
    Generation.objects.update(started_at=lifecycle.Now() - tasks.timedelta(seconds=605))


def stopped(stage: Stage) -> None:
    plans(Submission(accepts=False, answers=ErrorClass.AUTH))(stage)
    stage.step("work.generate")


def clear_alert(stage: Stage) -> None:
    assert pools.clear_alert(alert_id=Alert.objects.get().pk, user_id=None)


def nearly_open(stage: Stage) -> None:
    """One failure more, and the circuit is open."""
    plans(Submission(accepts=False, answers=ErrorClass.PROVIDER_UNAVAILABLE))(stage)
    for _ in range(pools.CIRCUIT_THRESHOLD - 1):
        pools.record_unavailable(name=PROVIDER, message="away")


def open_circuit(stage: Stage) -> None:
    stage.submit()
    tasks.dispatch.run()
    for _ in range(pools.CIRCUIT_THRESHOLD):
        pools.record_unavailable(name=PROVIDER, message="away")


def sweep(stage: Stage) -> None:
    assert tasks.sweep.run()
    assert stage.world.errors.found == []


def deleted(stage: Stage) -> None:
    """Deleted while it ran, and ended since."""
    stage.run()
    on_batch(lifecycle.delete_batch)(stage)
    stage.finish("canceled")
    stage.step("work.generate")


def delete_image(stage: Stage) -> None:
    lifecycle.delete_images(images=Image.objects.all())


GENERATE, DOWNLOAD = "work.generate", "work.download"
ENDS_BADLY = frozenset({FAILED})
STOPS = frozenset({COMPLETED, CANCELLED})
SUCCEEDS = Submission(ends="succeeded")

SCENARIOS = (
    # --- submission and admission
    Scenario("submit a batch", lambda stage: None, act=lambda stage: stage.submit(3)),
    Scenario("submit a single one", lambda stage: None, act=Stage.submit_single),
    Scenario("dispatch", lambda stage: stage.submit(4), "work.dispatch"),
    Scenario(
        "dispatch what waited for its time",
        then(
            ended(ErrorClass.INTERRUPTED),
            lambda stage: stage.step(GENERATE),
            lambda stage: stage.world.advance(10),
        ),
        "work.dispatch",
        submits_again=True,
    ),
    Scenario("follow", Stage.run, act=lambda stage: tasks.follow.run([str(stage.generation.pk)])),
    # --- the submission and its answers
    Scenario("submit, running", plans(Submission()), GENERATE),
    Scenario("submit, done at once", plans(SUCCEEDS), GENERATE),
    Scenario(
        "submit, failed at once", plans(Submission(ends="invalid_input")), GENERATE, ends=ENDS_BADLY
    ),
    Scenario(
        "submit, reported before the answer",
        plans(Submission(ends="succeeded", reports=True)),
        GENERATE,
    ),
    Scenario(
        "submit, reported and the answer lost",
        plans(Submission(ends="succeeded", reports=True, answers=ErrorClass.TIMEOUT_UNKNOWN)),
        GENERATE,
    ),
    Scenario(
        "submit, answer lost", plans(Submission(answers=ErrorClass.TIMEOUT_UNKNOWN)), GENERATE
    ),
    Scenario(
        "submit, request lost",
        plans(Submission(accepts=False, answers=ErrorClass.TIMEOUT_UNKNOWN)),
        GENERATE,
    ),
    Scenario(
        "submit, rate limited",
        plans(Submission(accepts=False, answers=ErrorClass.RATE_LIMITED)),
        GENERATE,
    ),
    Scenario(
        "submit, nobody there",
        plans(Submission(accepts=False, answers=ErrorClass.PROVIDER_UNAVAILABLE)),
        GENERATE,
    ),
    Scenario("submit, the circuit opens", nearly_open, GENERATE),
    Scenario("submit, the circuit closes", open_circuit, GENERATE),
    Scenario(
        "submit, credentials refused",
        plans(Submission(accepts=False, answers=ErrorClass.AUTH)),
        GENERATE,
    ),
    Scenario("clear the alert", stopped, act=clear_alert),
    Scenario("find it", lost(accepts=True), GENERATE),
    Scenario("find that there is none", lost(accepts=False), GENERATE),
    Scenario(
        "cannot find out",
        fails_to_find(ErrorClass.UNKNOWN),
        GENERATE,
        ends=frozenset({FAILED, COMPLETED}),
    ),
    # --- looking
    Scenario("look, running", Stage.run, GENERATE),
    Scenario("look, done", ended("succeeded"), GENERATE),
    Scenario(
        "look, to be tried again", ended(ErrorClass.INTERRUPTED), GENERATE, submits_again=True
    ),
    Scenario("look, failed for good", ended(ErrorClass.CONTENT_POLICY), GENERATE, ends=ENDS_BADLY),
    Scenario("look, stopped by others", ended("canceled"), GENERATE, submits_again=True),
    Scenario("look, past its deadline", overdue, GENERATE, ends=frozenset({FAILED, COMPLETED})),
    Scenario("webhook", ended("succeeded"), act=report),
    Scenario("webhook over HTTP", ended("succeeded"), act=report_by_http),
    Scenario("webhook of a failure", ended(ErrorClass.INTERRUPTED), act=report, submits_again=True),
    Scenario("look, reported", then(ended("succeeded"), report), GENERATE),
    # --- download and end
    Scenario("download", Stage.output, DOWNLOAD),
    Scenario("download, fetched again", failing_fetch(ErrorClass.DOWNLOAD_FAILED), DOWNLOAD),
    Scenario(
        "download, made again",
        then(
            failing_fetch(ErrorClass.BAD_OUTPUT, ErrorClass.BAD_OUTPUT),
            lambda stage: stage.step(DOWNLOAD),
        ),
        DOWNLOAD,
        submits_again=True,
    ),
    Scenario(
        "download, expired",
        failing_fetch(ErrorClass.OUTPUT_EXPIRED),
        DOWNLOAD,
        ends=frozenset({FAILED, COMPLETED}),
    ),
    Scenario("download, given up", last_fetch, DOWNLOAD, ends=frozenset({FAILED, COMPLETED})),
    Scenario("finalise", Stage.store, "work.finalise_batch"),
    Scenario("delete an image", Stage.store, act=delete_image),
    # --- the owner
    Scenario("pause", mixed, act=on_batch(lifecycle.pause_batch)),
    Scenario("resume", then(mixed, pause), act=on_batch(lifecycle.resume_batch)),
    Scenario("cancel", mixed, act=on_batch(lifecycle.cancel_batch), ends=STOPS),
    Scenario("delete", mixed, act=on_batch(lifecycle.delete_batch)),
    Scenario("delete what has ended", Stage.store, act=on_batch(lifecycle.delete_batch)),
    Scenario(
        "look, requeued while paused",
        then(ended(ErrorClass.INTERRUPTED), pause),
        GENERATE,
        submits_again=True,
    ),
    Scenario(
        "pause one",
        lambda stage: stage.submit_single(),
        act=on_generation(lifecycle.pause_generation),
    ),
    Scenario(
        "resume one",
        then(Stage.submit_single, on_generation(lifecycle.pause_generation)),
        act=on_generation(lifecycle.resume_generation),
    ),
    Scenario(
        "cancel one in line",
        Stage.submit,
        act=on_generation(lifecycle.cancel_generation),
        ends=STOPS,
    ),
    Scenario(
        "cancel one at the provider",
        Stage.run,
        act=on_generation(lifecycle.cancel_generation),
        ends=STOPS,
    ),
    Scenario(
        "cancel one being downloaded",
        Stage.output,
        act=on_generation(lifecycle.cancel_generation),
        ends=STOPS,
    ),
    Scenario(
        "look, cancelled before it was submitted",
        then(Stage.admit, on_generation(lifecycle.cancel_generation)),
        GENERATE,
        ends=frozenset({CANCELLED}),
    ),
    Scenario("look, asked to stop", cancelling, GENERATE, ends=frozenset({CANCELLED})),
    Scenario(
        "look, stopped as asked",
        then(
            cancelling, lambda stage: stage.step(GENERATE), lambda stage: stage.finish("canceled")
        ),
        GENERATE,
        ends=frozenset({CANCELLED}),
    ),
    Scenario("delete one", Stage.submit_single, act=on_generation(lifecycle.delete_generation)),
    Scenario(
        "retry with other settings",
        then(ended(ErrorClass.CONTENT_POLICY), lambda stage: stage.step(GENERATE)),
        act=retry_all,
        ends=frozenset({FAILED, COMPLETED}),
        submits_again=True,
    ),
    # --- the sweep
    Scenario("sweep, a lost message", then(Stage.admit, Stage.expire), act=sweep),
    Scenario("sweep, a lost download", then(Stage.output, Stage.expire), act=sweep),
    Scenario("sweep, one that kills its workers", poisoned, act=sweep, ends=ENDS_BADLY),
    Scenario("sweep, a lost chord", then(Stage.store, Stage.expire), act=sweep),
    Scenario(
        "sweep, a deleted batch", then(deleted, lambda stage: stage.world.advance(75)), act=sweep
    ),
)

_found: dict[str, int] = {}


@pytest.fixture
def new_world(transactional_db):
    with worlds() as new:
        yield new


@pytest.fixture(scope="module", autouse=True)
def injections():
    yield _found
    if FULL:
        print(f"\n{sum(_found.values())} processes killed or held up in {len(_found)} steps")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_whenever_a_process_dies_the_work_comes_to_its_end(new_world, scenario):
    user = make_user()
    effects = _take(_stage(new_world, user, scenario), scenario, count_effects())
    assert effects.happened, "nothing to die of"
    problems, kills = [], 0
    for n in range(1, len(effects.happened) + 1):
        for when in WHENS if n == len(effects.happened) else ("before",):
            # Its message comes again at once, or never.
            for is_redelivered in (True, False) if scenario.delivers else (True,):
                where = f"{when} {n}, {effects.happened[n - 1]}"
                where += "" if is_redelivered else ", never delivered again"
                stage = _stage(new_world, user, scenario)
                died = _take(stage, scenario, crash_at(n, when), is_redelivered=is_redelivered)
                assert died.is_dead, where
                assert died.happened == effects.happened[: n - (when == "before")], where
                try:
                    _recover(stage, scenario)
                except AssertionError as problem:
                    problems.append(f"killed {where}: {problem}")
                kills += 1
    _found[scenario.name] = kills
    assert not problems, _told(effects.happened, problems)


def _others_take_over(stage: Stage) -> None:
    """Others take it for dead, and take one step further."""
    stage.world.advance(61)
    tasks.sweep.run()
    tasks.dispatch.run()
    stage.world.deliver_all()


def _others_start_again(stage: Stage) -> None:
    """Others take it for dead, and where that is due its next attempt is submitted."""
    _others_take_over(stage)
    stage.world.advance(20)
    tasks.dispatch.run()
    stage.world.deliver_all()


def _others_finish(stage: Stage) -> None:
    """Others take it for dead, and bring all to its end."""
    stage.world.advance(61)
    stage.world.settle()


STEPS = [scenario for scenario in SCENARIOS if scenario.delivers in (GENERATE, DOWNLOAD)]
MEANWHILE = (_others_take_over, _others_start_again, _others_finish)
HELD_UP = [
    pytest.param(scenario, meanwhile, id=f"{scenario.name}-{meanwhile.__name__}")
    for number, scenario in enumerate(STEPS)
    for turn, meanwhile in enumerate(MEANWHILE)
    if FULL or turn == number % len(MEANWHILE)
]


@pytest.mark.parametrize(("scenario", "meanwhile"), HELD_UP)
def test_whenever_a_process_is_held_up_and_goes_on_it_harms_nothing(new_world, scenario, meanwhile):
    user = make_user()
    effects = _take(_stage(new_world, user, scenario), scenario, count_effects())
    problems, stalls = [], 0
    for n, name in enumerate(effects.happened, start=1):
        stage = _stage(new_world, user, scenario)
        stage.world.provider.may_be_late = True
        acts = partial(meanwhile, stage)
        try:
            watch = _take(stage, scenario, stall_at(n, "before", acts), is_redelivered=False)
            stalls += watch.has_stalled
            _recover(stage, scenario)
        except AssertionError as problem:
            problems.append(f"held up before {n}, {name}: {problem}")
    _found[f"{scenario.name}, {meanwhile.__name__}"] = stalls
    assert not problems, _told(effects.happened, problems)


def test_a_picture_that_is_stored_too_late_does_not_take_the_place_of_a_later_one(new_world):
    user, n, happened, made = make_user(), 0, 1, 0
    while n < happened:
        n += 1
        stage = Stage(new_world(), user)
        stage.output()

        def made_again(stage: Stage = stage) -> None:
            stage.world.provider.downloads.extend([ErrorClass.BAD_OUTPUT] * 2)
            _others_finish(stage)

        message = stage.next(DOWNLOAD)
        with stall_at(n, "before", made_again) as effects:
            stage.world.deliver(message)
        made += len(stage.world.provider.works) - 1
        happened = len(effects.happened)
        assert effects.has_stalled or effects.happened[n - 1] == "commit"
        stage.world.settle()
        stage.world.check_at_rest()
    assert made >= 2


def _told(happened: list[str], problems: list[str]) -> str:
    """The first in full, of the others where they were."""
    others = [problem.partition("\n")[0] for problem in problems[1:]]
    return "\n".join([f"the step: {happened}", problems[0], *others])


def _stage(new_world: Callable[[], World], user: Any, scenario: Scenario) -> Stage:
    stage = Stage(new_world(), user)
    scenario.prepare(stage)
    return stage


def _take(stage: Stage, scenario: Scenario, watch: Any, *, is_redelivered: bool = True) -> Any:
    """Take the scenario's step; a message that it dies of is there again, or is lost."""
    message = stage.next(scenario.delivers) if scenario.delivers else None
    with watch as effects:
        if message is not None:
            stage.world.deliver(message)
        else:
            assert scenario.act is not None
            scenario.act(stage)
    if message is not None and effects.is_dead and is_redelivered:
        stage.world.messages.append(message)
    return effects


def _recover(stage: Stage, scenario: Scenario) -> None:
    world = stage.world
    world.check(files=False)
    world.settle()
    world.check_at_rest()
    ends = set(Generation.objects.values_list("status", flat=True))
    assert ends <= scenario.ends | ({COMPLETED} if world.provider.late else set()), world.describe()
    if not scenario.submits_again and not world.provider.late:
        submitted = [work.request.input["prompt"] for work in world.provider.works.values()]
        # A submission of which it is known that it never arrived is repeated, and no other.
        assert max(map(submitted.count, submitted), default=0) <= 1, world.describe()
