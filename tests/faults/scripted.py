"""A whole installation in one process: a provider, a broker and a clock that a test moves.

The rows and files are real. The provider keeps a ledger of what it was asked for and charges each
prediction once, when it accepts it. The broker holds messages until a test has them delivered, in
any order, any number of times, or never. Time passes by `World.advance`, which moves the rows.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, BinaryIO

import PIL.Image
import pytest
from celery.exceptions import Ignore, Retry
from django.core.files.storage import default_storage
from django.db import connection
from django.db.models import Q
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from batches import estimates, invariants, lifecycle, pools, wake
from batches.models import (
    GENERATION_OPEN,
    Alert,
    AlertCode,
    Attempt,
    AttemptOutcome,
    Batch,
    BatchStatus,
    Discarded,
    Generation,
    GenerationStatus,
    Image,
    Lane,
    Lease,
    Member,
    Pool,
)
from batches.models import work as models_of_work
from generation.http import HttpClient
from generation.provider import Downloaded, ErrorClass, Failure, Prediction, SubmitRequest
from generation.providers.replicate import ReplicateProvider
from simulator.webhooks import make_secret, secret_key, sign
from tests.faults.crashing import When, crash_at, effect, elsewhere, files_are_effects
from worker import canvas, heartbeat, hooks, sweeper, tasks
from worker.providers import FACTORIES, get_provider

PROVIDER = "scripted"
MODEL = "black-forest-labs/flux-schnell"
SECRET = make_secret(1)
CALLBACK_URL = "https://picture.test"
OUTPUT_URL = "https://outputs.test"
DELAYS_S = [5.0, 15.0]
UNKNOWN = AttemptOutcome.SUBMISSION_UNKNOWN

# --- The provider -------------------------------------------------------------------------------

# What Replicate says when it means this class.
_WORDS = {
    ErrorClass.INTERRUPTED: "prediction interrupted",
    ErrorClass.CONTENT_POLICY: "NSFW content detected",
    ErrorClass.OUT_OF_MEMORY: "CUDA out of memory",
    ErrorClass.TIMEOUT_RUN: "timed out",
    ErrorClass.INVALID_INPUT: "ValueError: no",
    ErrorClass.RATE_LIMITED: "throttled",
    ErrorClass.PROVIDER_UNAVAILABLE: "high demand",
    ErrorClass.INSUFFICIENT_CREDIT: "insufficient credit",
    ErrorClass.UNKNOWN: "it broke",
}
RUN_FAILURES = tuple(_WORDS)
# Answers to a submission that mean that nothing was accepted.
REFUSALS = (
    ErrorClass.RATE_LIMITED,
    ErrorClass.PROVIDER_UNAVAILABLE,
    ErrorClass.QUEUE_FULL,
    ErrorClass.AUTH,
    ErrorClass.INSUFFICIENT_CREDIT,
    ErrorClass.INVALID_INPUT,
    ErrorClass.UNKNOWN,
)


@dataclass
class Work:
    """One prediction at the provider, with the attempt that it was made for."""

    id: str
    token: uuid.UUID
    request: SubmitRequest
    created_at: datetime
    status: str = "processing"
    error: str | None = None
    is_stopping: bool = False
    was_looked_at: bool = False

    @property
    def is_running(self) -> bool:
        return self.status == "processing"

    @property
    def body(self) -> dict[str, Any]:
        """As Replicate shows it."""
        is_done = self.status == "succeeded"
        return {
            "id": self.id,
            "status": self.status,
            "model": self.request.model,
            "input": dict(self.request.input),
            "output": [f"{OUTPUT_URL}/{self.id}.png"] if is_done else None,
            "error": self.error,
            "created_at": "2026-11-20T10:00:00Z",
            "completed_at": None if self.is_running else "2026-11-20T10:00:01Z",
            "metrics": {"predict_time": 0.5} if is_done else {},
        }


@dataclass(frozen=True)
class Submission:
    """How the provider takes the next submission.

    `accepts`: there is a prediction, and a charge. `ends`: how that ends before the answer comes,
    "succeeded" or a class of failure; `reports`: and its webhook comes first. `answers` is what we
    hear instead of the prediction.
    """

    accepts: bool = True
    ends: str = ""
    reports: bool = False
    answers: ErrorClass | None = None


class ScriptedProvider:
    """Keeps its word: what it accepts is charged once, found, stopped and reported."""

    name = PROVIDER
    sends_webhooks = True
    signs_webhooks = True

    def __init__(self) -> None:
        self.works: dict[str, Work] = {}
        self.charges: Counter[uuid.UUID] = Counter()
        self.submissions: deque[Submission] = deque()
        self.looks: deque[ErrorClass] = deque()
        self.finds: deque[ErrorClass] = deque()
        self.downloads: deque[ErrorClass] = deque()
        self.stops_at_once = False
        self.calls = 0
        # Submissions of processes that were held up just before they sent them.
        self.may_be_late = False
        self.late: set[uuid.UUID] = set()
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        # How far its clock is ahead of that of whoever calls, by whose clock it answers.
        self.ahead: Callable[[], timedelta] = timedelta
        self.on_report: Callable[[Work], Any] = lambda work: None
        self._replicate = ReplicateProvider("r8_x", http=HttpClient(), webhook_secret=SECRET)

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        self.calls += 1
        return effect("submit", lambda: self._submit(request))

    def fetch(self, prediction_id: str) -> Prediction | Failure:
        self.calls += 1
        return effect("fetch", lambda: self._look(prediction_id))

    def cancel(self, prediction_id: str) -> Prediction | Failure:
        self.calls += 1
        return effect("cancel", lambda: self._cancel(prediction_id))

    def find(
        self, request: SubmitRequest, *, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        self.calls += 1
        return effect("find", lambda: self._find(request, since, until))

    def download(self, output: str, sink: BinaryIO, **options: Any) -> Downloaded | Failure:
        """Gives the pictures, after the failures in `downloads`."""
        assert output.startswith(OUTPUT_URL)
        if self.downloads:
            failed = self.downloads.popleft()
            if failed != ErrorClass.BAD_OUTPUT:
                return Failure(failed, "cannot fetch")
            sink.write(b"<html>no picture</html>")
        else:
            sink.write(picture(output.rpartition("/")[2].removesuffix(".png")))
        return Downloaded(sink.tell(), "", "image/png")

    def read(self, body: object) -> Prediction | None:
        return self._replicate.read(body)

    def check(self) -> None:
        return None

    def live_schema(self, model: str, *, version: str | None = None) -> None:
        return None

    def verify_webhook(self, headers: Any, body: bytes, *, now_s: float) -> Any:
        return self._replicate.verify_webhook(headers, body, now_s=now_s)

    def _submit(self, request: SubmitRequest) -> Prediction | Failure:
        assert request.webhook_url is not None
        token = uuid.UUID(request.webhook_url.rstrip("/").rsplit("/", 1)[1])
        # Committed before the request leaves: that is what makes a second one impossible. Who took
        # over from a process that was held up may have given up, or found one that is just alike.
        awaiting = Attempt.objects.filter(callback_token=token, outcome="open", provider_id=None)
        if not awaiting.exists():
            assert self.may_be_late, "a submission without an attempt"
            self.late.add(token)
        plan = self.submissions.popleft() if self.submissions else Submission()
        answer = Failure(plan.answers, "no") if plan.answers else None
        if not plan.accepts:
            assert answer is not None
            return answer
        number = len(self.works) + 1
        work = Work(f"p{number}", token, request, self.now())
        self.works[work.id] = work
        self.charges[token] += 1
        if plan.ends:
            self.end(work, plan.ends)
        if plan.reports:
            with elsewhere():
                self.on_report(work)
        return answer or self._told(work)

    def _look(self, prediction_id: str) -> Prediction | Failure:
        if self.looks:
            return Failure(self.looks.popleft(), "cannot look", retry_after_s=2.0)
        return self._told(self.works[prediction_id])

    def _cancel(self, prediction_id: str) -> Prediction | Failure:
        if self.looks:
            return Failure(self.looks.popleft(), "cannot cancel")
        work = self.works[prediction_id]
        work.is_stopping = True
        if self.stops_at_once:
            self.end(work, "canceled")
        return self._told(work)

    def _find(
        self, request: SubmitRequest, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        if self.finds:
            return Failure(self.finds.popleft(), "cannot search")
        return tuple(
            self._told(work)
            for work in reversed(self.works.values())
            if since <= work.created_at - self.ahead() < until
            and (work.request.model, work.request.input) == (request.model, request.input)
        )

    def _told(self, work: Work) -> Prediction:
        prediction = self.read(work.body)
        assert prediction is not None
        return prediction

    def end(self, work: Work, how: str) -> None:
        """Let a prediction end: "succeeded", "canceled" or a class of failure."""
        if not work.is_running:
            return
        if how in ("succeeded", "canceled"):
            work.status = how
        else:
            work.status, work.error = "failed", _WORDS[ErrorClass(how)]

    def end_all(self) -> int:
        """Let all that runs end as it would by itself; how many did."""
        running = [work for work in self.works.values() if work.is_running]
        for work in running:
            self.end(work, "canceled" if work.is_stopping else "succeeded")
        return len(running)


@cache
def picture(name: str) -> bytes:
    """The output of a prediction; no two are the same."""
    stored = io.BytesIO()
    number = int(name.removeprefix("p"))
    PIL.Image.new("RGB", (8, 6), (200, number % 256, number // 256)).save(stored, format="png")
    return stored.getvalue()


# --- The broker ---------------------------------------------------------------------------------


STEPS = ("work.generate", "work.download")


@dataclass(frozen=True)
class Message:
    """One message of a task. `chord`: the batch whose chord it counts for, and its place there."""

    task: str
    args: tuple[Any, ...]
    chord: tuple[uuid.UUID, int] | None = None


class _Redis:
    """The keys that `batches.wake` sets; they expire when time passes."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def set(self, key: str, value: Any, *, nx: bool, ex: int) -> bool:
        is_new = key not in self.keys
        self.keys.add(key)
        return is_new

    def delete(self, *keys: str) -> None:
        self.keys -= set(keys)

    def publish(self, channel: str, message: str) -> int:
        return 0  # nobody listens


class _Errors(logging.Handler):
    """What was logged as an unexpected error; the code under test goes on after those."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.name == "batches.reconcile":
            self.found.append(self.format(record))


class Stuck(AssertionError):
    """Something has not come to its end."""


@dataclass
class World:
    provider: ScriptedProvider = field(default_factory=ScriptedProvider)
    messages: list[Message] = field(default_factory=list)
    redis: _Redis = field(default_factory=_Redis)
    errors: _Errors = field(default_factory=_Errors)
    chord_sizes: dict[uuid.UUID, int] = field(default_factory=dict)
    chord_parts: dict[uuid.UUID, set[int]] = field(default_factory=dict)
    # The message that a thread is delivering: a retry of it counts for the same chord.
    at_hand: threading.local = field(default_factory=threading.local)
    delivered: int = 0
    passed_s: float = 0.0
    # Predictions of attempts that have gone with what their owner deleted.
    deleted_ids: set[str] = field(default_factory=set)

    # --- Sending ---

    def publish(self, member: Member) -> None:
        """In place of `canvas.publish`."""
        args = (str(member.generation_id), str(member.lease_id), member.turn)
        chord = None
        if member.has_chord:
            assert member.batch_id is not None
            chord = (member.batch_id, member.index)
            if member.chord_size is not None:
                self.chord_sizes[member.batch_id] = member.chord_size
        self._send(Message("work.generate", args, chord))

    def send_task(self, name: str, args: Any = (), **options: Any) -> None:
        """In place of `celery.current_app.send_task`."""
        self._send(Message(name, tuple(args)))

    def retry(self, name: str) -> Callable[..., Retry]:
        """In place of a task's `retry`."""

        def send(args: Any = None, countdown: float = 0, exc: Any = None, **options: Any) -> Retry:
            if exc is not None:  # not what these tests are about: the database is there
                raise AssertionError(f"{name} is put off by an error") from exc
            self._send(Message(name, tuple(args), self.at_hand.message.chord))
            return Retry(when=countdown)

        return send

    def _send(self, message: Message) -> None:
        effect("publish", lambda: self.messages.append(message))

    # --- Delivering ---

    def deliver(self, message: Message) -> Any:
        """Run one delivery to its end, as Celery would; the outcome, `None` when it is void."""
        self.delivered += 1
        interrupted = vars(self.at_hand).copy()
        self.at_hand.message, self.at_hand.passed_s = message, self.passed_s
        try:
            return self._run(message)
        except (Ignore, Retry):
            return None
        finally:
            vars(self.at_hand).update(interrupted)

    def _run(self, message: Message) -> Any:
        match message.task:
            case "work.generate":
                outcome = tasks.generate.run(*message.args)
                self._send(Message("work.download", (outcome, *message.args[:2]), message.chord))
            case "work.download":
                outcome = tasks.download.run(*message.args)
                self._count_part(message)
            case "work.dispatch":
                outcome = tasks.dispatch.run()
            case "work.follow":
                outcome = tasks.follow.run(*message.args)
            case "work.finalise_batch":
                outcome = tasks.finalise_batch.run(*message.args)
            case _:
                raise AssertionError(message)
        return outcome

    def _count_part(self, message: Message) -> None:
        if message.chord is None:
            return
        batch_id, index = message.chord
        parts = self.chord_parts.setdefault(batch_id, set())
        parts.add(index)
        if len(parts) == self.chord_sizes.get(batch_id):
            self._send(Message("work.finalise_batch", (str(batch_id),)))

    def deliver_crashing(self, message: Message, n: int, when: When) -> bool:
        """Have the process that works on a message die; whether it did."""
        with crash_at(n, when) as effects:
            self.deliver(message)
        return effects.is_dead

    def signed_report(self, work: Work, event: str = "end") -> tuple[str, bytes, dict[str, str]]:
        """Path, body and headers of the provider's webhook; the same `event` is the same one."""
        body = json.dumps(work.body).encode()
        delivery_id, now_s = f"{work.id}-{event}", int(time.time())
        headers = {
            "webhook-id": delivery_id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": sign(secret_key(SECRET), delivery_id, now_s, body),
        }
        return f"/hooks/{PROVIDER}/{work.token}/", body, headers

    def report(self, work: Work, event: str = "end") -> HttpResponse:
        """Have the provider's webhook delivered."""
        path, body, headers = self.signed_report(work, event)
        request = RequestFactory().post(
            path, body, content_type="application/json", headers=headers
        )
        return hooks.receive_webhook(request, PROVIDER, work.token)

    # --- Time ---

    def advance(self, seconds: float) -> None:
        """Let time pass: every time that is compared with now moves into the past."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH step AS (SELECT make_interval(secs => %s) AS s), lease AS (
                    UPDATE batches_lease
                    SET expires_at = expires_at - s, created_at = created_at - s FROM step
                ), generation AS (
                    UPDATE batches_generation
                    SET started_at = started_at - s, not_before = not_before - s FROM step
                    WHERE started_at IS NOT NULL OR not_before IS NOT NULL
                ), attempt AS (
                    UPDATE batches_attempt
                    SET created_at = created_at - s, submitted_at = submitted_at - s FROM step
                ), pool AS (
                    UPDATE batches_pool
                    SET blocked_until = blocked_until - s, refilled_at = refilled_at - s FROM step
                ), discarded AS (
                    UPDATE batches_discarded SET due_at = due_at - s FROM step
                ) SELECT
                """,
                [seconds],
            )
        self.redis.keys.clear()
        self.passed_s += seconds

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.passed_s)

    def ahead(self) -> timedelta:
        """How far the clock has been put forward, as the delivery at hand knows of."""
        return timedelta(seconds=self.at_hand.passed_s)

    def monotonic(self) -> float:
        """In place of `time.monotonic` where it is compared with what the rows say."""
        return time.monotonic() + self.passed_s

    # --- To the end ---

    def settle(self, *, rounds: int = 100) -> None:
        """Let everything come to its end, as it does when nothing fails any more.

        What was paused is resumed, alerts are cleared, every message comes twice.
        """
        # Not after their batches, which must leave none of them behind.
        for generation in Generation.objects.filter(status=GenerationStatus.PENDING):
            lifecycle.resume_generation(generation=generation)
        for batch in Batch.objects.filter(status=BatchStatus.PAUSED):
            lifecycle.resume_batch(batch=batch)
        for _ in range(rounds):
            for alert_id in Alert.objects.open().values_list("pk", flat=True):
                pools.clear_alert(alert_id=alert_id, user_id=None)
            self.deliver_all()
            self.provider.end_all()
            if not self.messages:
                if self.is_at_rest():
                    return
                self.advance(61)
                tasks.sweep.run()
                tasks.clean_files.run()
            self.advance(7)
            if not any(message.task == wake.DISPATCH for message in self.messages):
                tasks.dispatch.run()
        raise Stuck(self.describe())

    def deliver_all(self) -> None:
        """Deliver what is there now, each step of a generation twice."""
        messages, self.messages = self.messages, []
        for message in messages:
            self.deliver(message)
            if message.task in STEPS:
                calls = self.provider.calls
                self.deliver(message)
                assert self.provider.calls == calls, f"a copy was worked on: {message}"

    def is_at_rest(self) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT NOT EXISTS (SELECT FROM batches_generation WHERE finished_at IS NULL)
                   AND NOT EXISTS (SELECT FROM batches_batch WHERE finished_at IS NULL)
                   AND NOT EXISTS (SELECT FROM batches_lease)
                   AND NOT EXISTS (SELECT FROM batches_discarded)
                   AND NOT EXISTS (SELECT FROM batches_batch WHERE deleted_at IS NOT NULL)
                   AND NOT EXISTS (SELECT FROM batches_generation WHERE deleted_at IS NOT NULL)
                """
            )
            return bool(cursor.fetchone()[0])

    def describe(self) -> str:
        """What there is, for a message."""
        lines = [f"messages: {self.messages}"]
        for model in (Batch, Generation, Attempt, Lease, Lane, Pool, Alert, Discarded):
            for row in model.objects.order_by("pk").values():
                told = {name: value for name, value in row.items() if value not in (None, "", 0)}
                lines.append(f"{model.__name__}: {told}")
        lines += [
            f"{work.id}: {dataclasses.replace(work, request=None)}"  # type: ignore[arg-type]
            for work in self.provider.works.values()
        ]
        return "\n".join(lines)

    # --- What must hold ---

    def check(self, *, files: bool = True) -> None:
        """What must hold at any moment."""
        assert self.errors.found == []
        assert not Alert.objects.filter(code=AlertCode.COUNTER_DRIFT).exists()
        assert [one for one in findings(files=files) if one.broken] == [], self.describe()
        twice = [token for token, count in self.provider.charges.items() if count > 1]
        assert twice == [], "paid twice for one attempt"

    def check_at_rest(self) -> None:
        """What must hold when everything has come to its end."""
        self.check()
        assert self.is_at_rest(), self.describe()
        assert not Generation.objects.filter(status__in=GENERATION_OPEN).exists()
        assert not Lane.objects.exclude(Q(running=0) & Q(queued=0)).exists()
        assert not [work for work in self.provider.works.values() if work.is_running]
        self.check_accounts()
        for image in Image.objects.all():
            with image.file.open() as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            assert digest == image.sha256, f"another file than {image} was verified as"

    def check_accounts(self) -> None:
        """Every charge is some attempt's, or some attempt tells that nobody knows.

        Attempts that went with what their owner deleted are out of the count, and submissions
        that were sent when they had been given up. A prediction that such an attempt had found is
        accounted for, also if it was the one of another that cannot be told from it.
        """
        rows = Attempt.objects.values_list("callback_token", "provider_id", "outcome")
        tokens = {token for token, _, _ in rows}
        known = {prediction_id for _, prediction_id, _ in rows if prediction_id}
        known |= self.deleted_ids
        assert known <= set(self.provider.works), "attempts of predictions that do not exist"
        lost = [
            work.id
            for work in self.provider.works.values()
            if work.id not in known and work.token in tokens - self.provider.late
        ]
        unknown = [True for _, known_id, outcome in rows if not known_id and outcome == UNKNOWN]
        assert len(lost) <= len(unknown), f"unaccounted for: {lost}\n{self.describe()}"


_FILES = invariants._files


def findings(*, files: bool) -> Iterator[invariants.Finding]:
    """Those of `invariants.check`; looking through the storage takes its time."""
    if files:
        yield from invariants.check()
        return
    for code, rule, find in invariants.CHECKS:
        if find is not _FILES:
            broken = find()
            yield invariants.Finding(code, rule, len(broken), broken)


# --- The world ----------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "PROVIDER_POOLS": {PROVIDER: {"capacity": 4}},
    "MAX_PARALLEL_PER_USER": 3,
    "MAX_PARALLEL_GLOBAL": 5,
    "RETRY_DELAYS": DELAYS_S,
    "CALLBACK_URL": CALLBACK_URL,
    "LEASE_SECONDS": 60,
    "GENERATION_DEADLINE": 600,
}
# In an order that their foreign keys allow.
TABLES = (
    "image",
    "attempt",
    "lease",
    "generation",
    "batch",
    "lane",
    "pool",
    "alert",
    "discarded",
    "webhookreceipt",
)


@contextlib.contextmanager
def worlds() -> Iterator[Callable[[], World]]:
    """Makes worlds, each of which begins with empty tables and ends with the next."""
    current = World()
    errors = _Errors()
    patch = pytest.MonkeyPatch()

    def new() -> World:
        nonlocal current
        with connection.cursor() as cursor:
            cursor.execute(";".join(f"DELETE FROM batches_{table}" for table in TABLES))
        errors.found.clear()
        current = World(errors=errors)
        current.provider.on_report = current.report
        current.provider.now, current.provider.ahead = current.now, current.ahead
        estimates._known.clear()
        get_provider.cache_clear()
        sweeper._lanes_after = sweeper._batches_after = None
        remove_files()
        return current

    def retrying(name: str) -> Callable[..., Retry]:
        return lambda **options: current.retry(name)(**options)

    def noting(remove: Callable[..., int], **deleted: Any) -> Callable[..., int]:
        def noted(*args: Any) -> int:
            known = Attempt.objects.filter(provider_id__isnull=False, **deleted)
            current.deleted_ids |= set(known.values_list("provider_id", flat=True))
            return remove(*args)

        return noted

    class App:
        send_task = staticmethod(lambda *args, **options: current.send_task(*args, **options))

    class Clock:
        monotonic = staticmethod(lambda: current.monotonic())

    with override_settings(**SETTINGS), patch.context() as patch, files_are_effects():
        patch.setitem(FACTORIES, PROVIDER, lambda: current.provider)
        patch.setattr(canvas, "publish", lambda member: current.publish(member))
        patch.setattr(wake, "current_app", App)
        patch.setattr(wake, "_redis", lambda: current.redis)
        patch.setattr(tasks.generate, "retry", retrying("work.generate"))
        patch.setattr(tasks.download, "retry", retrying("work.download"))
        # A process that has died sends no signs of life.
        patch.setattr(heartbeat, "_start", lambda: None)
        for name, deleted in (
            ("_remove_deleted_batches", "generation__batch__deleted_at__isnull"),
            ("_remove_deleted_generations", "generation__deleted_at__isnull"),
        ):
            remove = noting(getattr(lifecycle, name), **{deleted: False})
            patch.setattr(lifecycle, name, remove)
        patch.setattr(sweeper, "RECONCILE_EVERY_S", 0.0)
        patch.setattr(models_of_work, "time", Clock)
        patch.setattr(tasks, "time", Clock)
        root = logging.getLogger()
        root.addHandler(errors)
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield new
        finally:
            logging.disable(previous)
            root.removeHandler(errors)
            get_provider.cache_clear()


def remove_files(folder: str = "") -> None:
    with contextlib.suppress(FileNotFoundError):
        folders, files = default_storage.listdir(folder)
        for name in files:
            default_storage.delete(f"{folder}/{name}".lstrip("/"))
        for name in folders:
            remove_files(f"{folder}/{name}".lstrip("/"))


def request(prompt: str = "a lighthouse", **changes: Any) -> lifecycle.NewGeneration:
    """What a user asks for."""
    new = lifecycle.NewGeneration(
        prompt=prompt,
        final_prompt=prompt,
        model=MODEL,
        provider=PROVIDER,
        settings={"model": MODEL},
        input={"prompt": prompt},
    )
    return dataclasses.replace(new, **changes)
