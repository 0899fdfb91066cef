"""Two things at the same moment, on two connections, over and over.

Both sides start together, each after a wait of its own of up to a few milliseconds, so that either
is first now and then. However it goes, one of them wins, the other notices, and the rows agree.
A deadlock is raised as an error by the database, so none passes unnoticed.
"""

import hashlib
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection

from batches import lifecycle, scheduling
from batches.models import (
    Attempt,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
    Image,
    Lane,
    Lease,
)
from generation.provider import ErrorClass, Failure
from tests.factories import make_user
from tests.faults.scripted import Submission, Work, World, request, worlds
from worker import tasks

FULL = os.environ.get("PICTURE_FAULTS") == "full"
TIMES = 1_000 if FULL else 10
WAIT_MAX_S = 0.004
# Each race begins with empty tables; what they hold afterwards is driven to its end this often.
SETTLED_EVERY = 5

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(900)]

LOST = Failure(ErrorClass.INTERRUPTED, "The submission did not reach the provider.")
NOBODY_KNOWS = Failure(ErrorClass.TIMEOUT_UNKNOWN, "nobody can tell")


class Side(threading.Thread):
    """One of the two; keeps its thread, and with it its connection, from race to race."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.acts: queue.SimpleQueue[tuple[Callable[[], Any], threading.Barrier, float] | None]
        self.acts = queue.SimpleQueue()
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while (order := self.acts.get()) is not None:
            act, start, wait_s = order
            try:
                connection.ensure_connection()
                start.wait()
                until_s = time.perf_counter() + wait_s
                while time.perf_counter() < until_s:
                    time.sleep(0)  # lets the other side go on
                self.results.put(act())
            except BaseException as error:
                self.results.put(error)
        connection.close()


class Sides:
    def __init__(self) -> None:
        self.pair = (Side(), Side())
        self.random = random.Random(7)

    def run(self, left: Callable[[], Any], right: Callable[[], Any]) -> tuple[Any, Any]:
        """Both at once; what they return, or the first error."""
        start = threading.Barrier(2)
        for side, act in zip(self.pair, (left, right), strict=True):
            side.acts.put((act, start, self.random.uniform(0, WAIT_MAX_S)))
        results = [side.results.get(timeout=60) for side in self.pair]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results[0], results[1]

    def close(self) -> None:
        for side in self.pair:
            side.acts.put(None)
            side.join(10)


@dataclass
class Scene:
    """One race: the world it takes place in, and whose it is."""

    world: World
    user_id: int

    def submit(self, size: int = 1, prompt: str = "picture") -> Batch:
        return lifecycle.submit_batch(
            owner_id=self.user_id,
            generations=[request(f"{prompt} {number}") for number in range(size)],
            settings_asked={},
        )

    def run(self, size: int = 1) -> Batch:
        """A batch that the provider is working on."""
        batch = self.submit(size)
        self.dispatch()
        for _ in range(size):
            self.world.deliver(self.take("work.generate"))
        return batch

    def output(self, size: int = 1) -> Batch:
        """A batch that is to be downloaded."""
        batch = self.run(size)
        for work in self.works:
            self.world.provider.end(work, "succeeded")
        for _ in range(size):
            self.world.deliver(self.take("work.generate"))
        return batch

    def lose(self) -> Attempt:
        """A submission that arrived, and whose answer did not."""
        self.world.provider.submissions.append(Submission(answers=ErrorClass.TIMEOUT_UNKNOWN))
        self.run()
        return Attempt.objects.select_related("generation").get()

    def dispatch(self) -> None:
        tasks.dispatch.run()
        self.world.messages = [one for one in self.world.messages if one.task != "work.dispatch"]

    def take(self, task: str) -> Any:
        messages = self.world.messages
        return messages.pop(next(at for at, one in enumerate(messages) if one.task == task))

    def count(self, task: str) -> int:
        return sum(one.task == task for one in self.world.messages)

    @property
    def works(self) -> list[Work]:
        return list(self.world.provider.works.values())

    @property
    def generation(self) -> Generation:
        return Generation.objects.get()

    @property
    def status(self) -> str:
        return self.generation.status


# A race sets its scene, then yields its two sides, and is sent what they returned; it yields the
# name of the winner.
Act = Callable[[], Any]
Race = Iterator[Any]


def forgive_storage(scene: Scene) -> None:
    """A folder that goes while it is written to is an error of the storage, and logged as one."""
    errors = scene.world.errors
    errors.found = [error for error in errors.found if not error.startswith("generation ")]


def cancel_against_completion(scene: Scene) -> Race:
    scene.output()
    generation = scene.generation
    image = Image(generation=generation, owner_id=scene.user_id, width=1, height=1, size_bytes=1)
    image.sha256 = hashlib.sha256(b"x").hexdigest()
    image.file.save("0.png", tasks.ContentFile(b"x"), save=False)
    image.thumbnail.save("0.thumbnail.webp", tasks.ContentFile(b"x"), save=False)
    cancelled, completed = yield (
        lambda: lifecycle.cancel_generation(generation=generation),
        lambda: lifecycle.complete_generation(generation=generation, images=[image]),
    )
    assert cancelled != completed
    assert scene.status == ("cancelled" if cancelled else "completed")
    assert Image.objects.count() == completed
    yield "cancel" if cancelled else "completion"


def cancel_against_download(scene: Scene) -> Race:
    scene.output()
    generation, message = scene.generation, scene.take("work.download")
    cancelled, outcome = yield (
        lambda: lifecycle.cancel_generation(generation=generation),
        lambda: scene.world.deliver(message),
    )
    assert outcome in ("cancelled" if cancelled else "completed", None)
    assert scene.status == ("cancelled" if cancelled else "completed")
    forgive_storage(scene)
    yield "cancel" if cancelled else "download"


def cancel_against_the_look_that_finds_it_done(scene: Scene) -> Race:
    scene.run()
    generation, message = scene.generation, scene.take("work.generate")
    scene.world.provider.end(scene.works[0], "succeeded")
    cancelled, outcome = yield (
        lambda: lifecycle.cancel_generation(generation=generation),
        lambda: scene.world.deliver(message),
    )
    assert cancelled
    assert Attempt.objects.get().outcome == "succeeded"  # and is on record as paid
    scene.world.settle()
    assert scene.status == "cancelled"
    yield "look" if isinstance(outcome, dict) else "cancel"


def cancel_against_the_start_of_a_download(scene: Scene) -> Race:
    scene.run()
    attempt = Attempt.objects.select_related("generation").get()
    generation, prediction = attempt.generation, scene.world.provider.fetch(scene.works[0].id)
    cancelled, begun = yield (
        lambda: lifecycle.cancel_generation(generation=generation),
        lambda: lifecycle.begin_download(
            generation=generation, attempt=attempt, prediction=prediction, cost_usd=tasks.Decimal(0)
        ),
    )
    assert cancelled
    assert scene.status == ("cancelled" if begun else "processing")
    assert (scene.generation.cancel_requested_at is not None) or begun
    yield "start" if begun else "cancel"


def pause_against_admission(scene: Scene) -> Race:
    batch = scene.submit(3)
    paused, admission = yield (
        lambda: lifecycle.pause_batch(batch=batch),
        scheduling.admit,
    )
    statuses = Counter(Generation.objects.values_list("status", flat=True))
    assert paused
    assert Batch.objects.get().status == BatchStatus.PAUSED
    assert len(admission.admitted) in (0, 3)
    assert statuses == {"processing": 3} if admission.admitted else {"pending": 3}
    yield "admission" if admission.admitted else "pause"


def pause_against_a_requeue(scene: Scene) -> Race:
    batch = scene.run()
    message = scene.take("work.generate")
    scene.world.provider.end(scene.works[0], ErrorClass.INTERRUPTED)
    paused, _ = yield (
        lambda: lifecycle.pause_batch(batch=batch),
        lambda: scene.world.deliver(message),
    )
    assert paused
    assert scene.status == "pending"
    assert Lane.objects.get().queued == 0
    yield "either"


def retry_against_a_webhook(scene: Scene) -> Race:
    attempt = scene.lose()
    generation = attempt.generation
    lifecycle.fail_generation(
        generation=generation, attempt=attempt, failure=NOBODY_KNOWS, code="submission_unknown"
    )
    work = scene.works[0]
    scene.world.provider.end(work, "succeeded")
    retried, answer = yield (
        lambda: lifecycle.retry_generations(batch=generation.batch, generations=[generation]),
        lambda: scene.world.report(work),
    )
    assert (retried, answer.status_code) == (1, 200)
    assert scene.status == "queued"
    attempt.refresh_from_db()
    assert (attempt.provider_id, attempt.outcome) == (work.id, "submission_unknown")
    yield "both"


def _unanswered_against_a_webhook(scene: Scene, act: Callable[..., bool], reached: str) -> Race:
    attempt = scene.lose()
    work = scene.works[0]
    scene.world.provider.end(work, "succeeded")
    scene.world.messages.clear()
    given_up, answer = yield (
        lambda: act(generation=attempt.generation, attempt=attempt, unanswered=True),
        lambda: scene.world.report(work),
    )
    assert answer.status_code == 200
    woken = scene.count("work.generate") == 1
    assert given_up != woken
    attempt.refresh_from_db()
    assert attempt.provider_id == work.id  # a charge is on record either way
    assert (attempt.outcome == "open") == woken
    assert scene.status == (reached if given_up else "processing")
    yield "giving up" if given_up else "webhook"


def requeue_against_a_webhook(scene: Scene) -> Race:
    def requeue(**options: Any) -> bool:
        return lifecycle.requeue_generation(
            failure=LOST, delay_s=0, counts_as_retry=True, **options
        )

    return _unanswered_against_a_webhook(scene, requeue, "queued")


def giving_up_against_a_webhook(scene: Scene) -> Race:
    def fail(**options: Any) -> bool:
        return lifecycle.fail_generation(failure=NOBODY_KNOWS, **options)

    return _unanswered_against_a_webhook(scene, fail, "failed")


def answer_against_a_webhook(scene: Scene) -> Race:
    attempt = scene.lose()
    work = scene.works[0]
    prediction = scene.world.provider.fetch(work.id)
    scene.world.provider.end(work, "succeeded")
    recorded, answer = yield (
        lambda: lifecycle.record_submission(attempt=attempt, prediction=prediction),
        lambda: scene.world.report(work),
    )
    assert answer.status_code == 200
    attempt.refresh_from_db()
    assert (attempt.provider_id, attempt.outcome) == (work.id, "open")
    assert attempt.report is not None
    yield "answer" if recorded else "webhook"


def one_webhook_twice(scene: Scene) -> Race:
    scene.run()
    work = scene.works[0]
    scene.world.provider.end(work, "succeeded")
    scene.world.messages.clear()
    answers = yield (lambda: scene.world.report(work), lambda: scene.world.report(work))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert scene.count("work.generate") == 1
    yield "one of them"


def two_webhooks_of_one_end(scene: Scene) -> Race:
    scene.run()
    work = scene.works[0]
    scene.world.provider.end(work, "succeeded")
    scene.world.messages.clear()
    answers = yield (lambda: scene.world.report(work), lambda: scene.world.report(work, "again"))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert scene.count("work.generate") == 1
    yield "one of them"


def two_sweeps(scene: Scene) -> Race:
    scene.run(3)
    scene.world.messages.clear()
    scene.world.advance(61)
    swept = yield tasks.sweep.run, tasks.sweep.run
    assert any(swept)
    assert scene.count("work.generate") == 3
    yield "one alone" if not all(swept) else "one after the other"


def sweep_against_a_late_delivery(scene: Scene) -> Race:
    scene.submit()
    scene.dispatch()
    message = scene.take("work.generate")
    scene.world.advance(6)
    _, _ = yield tasks.sweep.run, lambda: scene.world.deliver(message)
    taken_over = scene.count("work.generate") - 1  # besides the delivery's own next look
    assert len(scene.works) == 1
    yield "sweep" if taken_over else "delivery"


def two_deliveries_of_a_submission(scene: Scene) -> Race:
    scene.submit()
    scene.dispatch()
    message = scene.take("work.generate")
    yield lambda: scene.world.deliver(message), lambda: scene.world.deliver(message)
    assert len(scene.works) == Attempt.objects.count() == 1
    assert scene.count("work.generate") == 1  # one of them looks again, the other is void
    yield "one of them"


def two_deliveries_of_a_download(scene: Scene) -> Race:
    scene.output()
    message = scene.take("work.download")
    outcomes = yield lambda: scene.world.deliver(message), lambda: scene.world.deliver(message)
    assert "completed" in outcomes
    assert scene.status == "completed"
    assert Image.objects.count() == 1
    yield "one alone" if None in outcomes else "one after the other"


def two_dispatches(scene: Scene) -> Race:
    scene.submit(7)
    admitted = yield scheduling.admit, scheduling.admit
    sizes = sorted(len(one.admitted) for one in admitted)
    assert sizes == [0, 3]
    assert Lease.objects.count() == 3
    yield "left" if admitted[0].admitted else "right"


def delete_against_completion(scene: Scene) -> Race:
    lifecycle.submit_generation(owner_id=scene.user_id, generation=request())
    scene.dispatch()
    scene.world.provider.submissions.append(Submission(ends="succeeded"))
    scene.world.deliver(scene.take("work.generate"))
    generation, message = scene.generation, scene.take("work.download")
    deleted, outcome = yield (
        lambda: lifecycle.delete_generation(generation=generation),
        lambda: scene.world.deliver(message),
    )
    assert deleted
    assert not Generation.objects.exists()
    assert not Image.objects.exists()
    forgive_storage(scene)
    yield "completion" if outcome == "completed" else "delete"


def delete_of_a_batch_against_completion(scene: Scene) -> Race:
    batch = scene.output(2)
    messages = [scene.take("work.download"), scene.take("work.download")]
    deleted, outcomes = yield (
        lambda: lifecycle.delete_batch(batch=batch),
        lambda: [scene.world.deliver(message) for message in messages],
    )
    assert deleted
    assert not Batch.objects.exists()
    assert not Image.objects.exists()
    forgive_storage(scene)
    yield "completion" if "completed" in outcomes else "delete"


def delete_of_a_batch_against_a_confirmed_cancel(scene: Scene) -> Race:
    """One of it has stopped at the provider as its owner asked; others wait."""
    batch = scene.submit(5)
    scene.dispatch()
    scene.world.deliver(scene.take("work.generate"))
    work = scene.works[0]
    generation = Generation.objects.get(attempts__callback_token=work.token)
    lifecycle.cancel_generation(generation=generation)
    scene.world.provider.end(work, "canceled")
    looks = next(
        one
        for one in scene.world.messages
        if one.task == "work.generate" and one.args[0] == str(generation.pk)
    )
    scene.world.messages.remove(looks)
    deleted, outcome = yield (
        lambda: lifecycle.delete_batch(batch=batch),
        lambda: scene.world.deliver(looks),
    )
    assert deleted
    assert outcome in ("cancelled", None)
    yield "either"


def cancel_of_a_batch_against_its_ends(scene: Scene) -> Race:
    batch = scene.run(3)
    messages = [scene.take("work.generate") for _ in range(3)]
    for work, how in zip(scene.works, ("succeeded", "content_policy", "interrupted"), strict=True):
        scene.world.provider.end(work, how)
    cancelled, outcomes = yield (
        lambda: lifecycle.cancel_batch(batch=batch),
        lambda: [scene.world.deliver(message) for message in messages],
    )
    assert cancelled
    yield f"{sum(outcome == 'cancelled' for outcome in outcomes)} of 3 cancelled by their looks"


def retry_against_the_end_of_the_batch(scene: Scene) -> Race:
    batch = scene.run()
    scene.world.provider.end(scene.works[0], ErrorClass.CONTENT_POLICY)
    scene.world.deliver(scene.take("work.generate"))
    generation = scene.generation
    retried, finalised = yield (
        lambda: lifecycle.retry_generations(batch=batch, generations=[generation]),
        lambda: lifecycle.finalise_batch(batch_id=batch.pk),
    )
    assert retried == 1
    batch.refresh_from_db()
    assert (batch.status, batch.finished_at) == (BatchStatus.PROCESSING, None)
    yield "end" if finalised else "retry"


def resume_against_a_requeue(scene: Scene) -> Race:
    batch = scene.run()
    message = scene.take("work.generate")
    lifecycle.pause_batch(batch=batch)
    scene.world.provider.end(scene.works[0], ErrorClass.INTERRUPTED)
    resumed, _ = yield (
        lambda: lifecycle.resume_batch(batch=batch),
        lambda: scene.world.deliver(message),
    )
    assert resumed
    assert scene.status == GenerationStatus.QUEUED
    yield "either"


RACES = (
    cancel_against_completion,
    cancel_against_download,
    cancel_against_the_look_that_finds_it_done,
    cancel_against_the_start_of_a_download,
    pause_against_admission,
    pause_against_a_requeue,
    resume_against_a_requeue,
    retry_against_a_webhook,
    requeue_against_a_webhook,
    giving_up_against_a_webhook,
    answer_against_a_webhook,
    one_webhook_twice,
    two_webhooks_of_one_end,
    two_sweeps,
    sweep_against_a_late_delivery,
    two_deliveries_of_a_submission,
    two_deliveries_of_a_download,
    two_dispatches,
    delete_against_completion,
    delete_of_a_batch_against_completion,
    delete_of_a_batch_against_a_confirmed_cancel,
    cancel_of_a_batch_against_its_ends,
    retry_against_the_end_of_the_batch,
)


@pytest.fixture
def new_world(transactional_db):
    with worlds() as new:
        yield new


@pytest.fixture
def sides():
    pair = Sides()
    yield pair
    pair.close()


@pytest.mark.parametrize("race", RACES, ids=lambda race: race.__name__)
def test_of_two_at_the_same_moment_one_wins(race, new_world, sides, capsys):
    user_id = make_user().pk
    won: Counter[str] = Counter()
    started_at = time.monotonic()
    for number in range(TIMES):
        world = new_world()
        steps = race(Scene(world, user_id))
        won[steps.send(sides.run(*next(steps)))] += 1
        world.check(files=False)
        if number % SETTLED_EVERY == 0:
            world.settle()
            world.check_at_rest()
    if FULL:
        with capsys.disabled():
            took_s = time.monotonic() - started_at
            print(f"\n{race.__name__}: {dict(won)}, {took_s:.0f} s", file=sys.stderr)
    assert won.total() == TIMES
