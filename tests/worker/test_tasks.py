"""The tasks one by one, with a provider that says what a test wants to hear."""

import base64
import contextlib
import hashlib
import io
import uuid
from datetime import timedelta

import pytest
from celery.exceptions import Ignore, Retry
from django.core.files.storage import FileSystemStorage
from django.db import OperationalError
from django.db.models.functions import Now
from django.utils import timezone
from PIL import Image as Pillow

from batches import estimates, invariants, lifecycle, pools
from batches.catalogue import get_model
from batches.models import Attempt, Batch, Generation, Image, Lane, Lease, Pool
from batches.scheduling import admit
from generation.http import OutputHosts
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import make_batch, make_generation, make_reference, make_user, new_generation
from worker import looks, providers, sweeper, tasks
from worker.providers import FACTORIES, get_provider, http_client
from worker.retries import DATABASE_RETRY_S, backoff_s

pytestmark = pytest.mark.django_db


def data_uri(size=(64, 48), colour="red"):
    buffer = io.BytesIO()
    Pillow.new("RGB", size, colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def running(prediction_id="p1", **fields):
    return Prediction(prediction_id, PredictionStatus.RUNNING, **fields)


def succeeded(*outputs, **fields):
    return Prediction("p1", PredictionStatus.SUCCEEDED, outputs=outputs or (data_uri(),), **fields)


def failed(error_class, **fields):
    failure = Failure(error_class, "it failed", **fields)
    return Prediction("p1", PredictionStatus.FAILED, failure=failure)


class ScriptedProvider:
    """Answers from a list; remembers what it was asked."""

    name = "scripted"
    sends_webhooks = True
    signs_webhooks = False

    def __init__(self):
        self.answers = []
        self.submitted = []
        self.searched = []
        self.fetched = []
        self.cancelled = []
        self.output_hosts = OutputHosts()

    def download(self, output, sink, *, prediction_id, **options):
        return http_client().download(output, sink, hosts=self.output_hosts, **options)

    def submit(self, request):
        # Committed before the request leaves: that is what makes a second one impossible.
        assert Attempt.objects.filter(outcome="open", provider_id=None).exists()
        self.submitted.append(request)
        return self.answers.pop(0)

    def find(self, request, *, since, until):
        self.searched.append((request, since, until))
        return self.answers.pop(0)

    def read(self, body):
        return body and succeeded(**body)

    def fetch(self, prediction_id):
        self.fetched.append(prediction_id)
        return self.answers.pop(0)

    def cancel(self, prediction_id):
        self.cancelled.append(prediction_id)
        return self.answers.pop(0)


@pytest.fixture
def provider(settings, monkeypatch):
    settings.PROVIDER_POOLS = {"scripted": {"capacity": 100}}
    scripted = ScriptedProvider()
    monkeypatch.setitem(FACTORIES, "scripted", lambda: scripted)
    get_provider.cache_clear()
    estimates._known.clear()
    yield scripted
    get_provider.cache_clear()


@pytest.fixture(autouse=True)
def retries(monkeypatch):
    """What the tasks put off, in seconds; the broker is not part of these tests."""
    countdowns = []

    def retry(args=None, countdown=None, **options):
        countdowns.append(countdown)
        return Retry(when=countdown)

    monkeypatch.setattr(tasks.generate, "retry", retry)
    monkeypatch.setattr(tasks.download, "retry", retry)
    return countdowns


@pytest.fixture(autouse=True)
def invariants_hold(db):
    yield
    assert [finding for finding in invariants.check() if finding.broken] == []


def start(**fields):
    generation = make_generation(provider="scripted", **fields)
    return generation, admit().admitted[0]


def run(member, turn=None):
    """Deliver the latest message of an admission, or the one of a given turn."""
    lease = Lease.objects.filter(pk=member.lease_id).first()
    turn = lease.turn if turn is None and lease else turn or member.turn
    outcome = tasks.generate.run(str(member.generation_id), str(member.lease_id), turn)
    return outcome["status"] if isinstance(outcome, dict) else outcome


def fetch(generation, tries=0):
    """Deliver the latest message of a download."""
    lease = Lease.objects.filter(generation=generation).first()
    outcome = {"status": "downloading", "turn": lease.turn if lease else 1}
    lease_id = str(lease.pk) if lease else str(uuid.uuid4())
    return tasks.download.run(outcome, str(generation.pk), lease_id, None, tries)


def test_a_prediction_that_is_done_at_once_becomes_a_stored_image(provider):
    generation, member = start()
    provider.answers = [succeeded()]
    assert run(member) == "downloading"
    assert fetch(generation) == "completed"
    image = Image.objects.get()
    assert (image.format, image.width, image.height) == ("png", 64, 48)
    assert image.file.name == f"{generation.owner_id}/single/{generation.pk}/0.png"
    with image.thumbnail.open() as file, Pillow.open(file) as thumbnail:
        assert thumbnail.format == "WEBP"
    assert Generation.objects.get().attempt_count == 1


def test_a_running_prediction_is_looked_at_again_and_not_submitted_again(provider, retries):
    _, member = start()
    provider.answers = [running(), running(progress=40), succeeded()]
    for _ in range(2):
        with pytest.raises(Retry):
            run(member)
    assert Generation.objects.get().progress == 40
    assert run(member) == "downloading"
    assert (len(provider.submitted), provider.fetched) == (1, ["p1", "p1"])
    assert all(looks.MIN_LOOK_S <= countdown <= looks.MAX_LOOK_S for countdown in retries)


def test_a_delivery_of_an_earlier_lease_does_nothing(provider):
    generation, member = start()
    provider.answers = [failed(ErrorClass.INTERRUPTED)]
    with pytest.raises(Ignore):
        run(member)
    Generation.objects.update(not_before=None)
    Lane.objects.update(queued=1)
    (again,) = admit().admitted
    with pytest.raises(Ignore):
        run(member)
    assert len(provider.submitted) == 1
    provider.answers = [running("p2")]
    with pytest.raises(Retry):
        run(again)
    assert generation.pk == again.generation_id


@pytest.mark.django_db(transaction=True)
def test_two_deliveries_of_one_lease_submit_once(provider, monkeypatch):
    _, member = start()
    provider.answers = [running()]
    original = tasks.lifecycle.begin_attempt

    def beaten(*, generation):
        # Another delivery is faster between the reading of the rows and the writing.
        monkeypatch.setattr(tasks.lifecycle, "begin_attempt", original)
        with pytest.raises(Retry):
            run(member)
        return original(generation=generation)

    monkeypatch.setattr(tasks.lifecycle, "begin_attempt", beaten)
    with pytest.raises(Retry):  # it looks what became of the other
        run(member)
    assert len(provider.submitted) == Attempt.objects.count() == 1


ALL_DELAYS = len([5, 15, 30])


@pytest.mark.parametrize(
    ("error_class", "submissions"),
    [
        (ErrorClass.PROVIDER_UNAVAILABLE, 1 + ALL_DELAYS),
        (ErrorClass.QUEUE_FULL, 1 + ALL_DELAYS),
        (ErrorClass.INTERRUPTED, 1 + ALL_DELAYS),
        (ErrorClass.TIMEOUT_RUN, 2),
        (ErrorClass.OUT_OF_MEMORY, 2),
        (ErrorClass.BAD_OUTPUT, 2),
        (ErrorClass.UNKNOWN, 2),
        (ErrorClass.CONTENT_POLICY, 1),
        (ErrorClass.INVALID_INPUT, 1),
        (ErrorClass.NOT_FOUND, 1),
        (ErrorClass.OUTPUT_EXPIRED, 1),
    ],
)
def test_each_class_of_failure_is_tried_as_often_as_its_rule_says(
    provider, error_class, submissions, monkeypatch
):
    monkeypatch.setattr(tasks.random, "random", lambda: 0.5)
    generation, member = start()
    for attempt in range(submissions):
        # Every prediction has an id of its own.
        prediction = failed(error_class)
        provider.answers = [
            Prediction(f"p{attempt}", prediction.status, failure=prediction.failure)
        ]
        if attempt == submissions - 1:
            assert run(member) == "failed"
            break
        with pytest.raises(Ignore):
            run(member)
        generation.refresh_from_db()
        wait_s = generation.not_before - generation.attempts.latest("number").finished_at
        assert wait_s.total_seconds() == pytest.approx([5, 15, 30][attempt] * 1.125, abs=0.5)
        Generation.objects.update(not_before=None)
        Lane.objects.update(queued=1)
        (member,) = admit().admitted
    generation.refresh_from_db()
    assert (generation.status, generation.error_code) == ("failed", error_class)
    assert len(provider.submitted) == generation.attempts.count() == submissions


def test_every_class_of_failure_has_a_rule():
    assert set(tasks.RETRY_RULES) == set(ErrorClass)


@pytest.mark.parametrize(
    ("retry_after_s", "expected_s"),
    [(None, 5), (0.0, tasks.MIN_BLOCK_S), (2.0, 2), (86_400.0, tasks.MAX_BLOCK_S)],
)
def test_a_rate_limit_stops_the_pool_and_is_not_counted(provider, retry_after_s, expected_s):
    generation, member = start()
    provider.answers = [Failure(ErrorClass.RATE_LIMITED, "slow down", retry_after_s=retry_after_s)]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.retry_count) == ("queued", 0)
    pool = Pool.objects.get(name="scripted")
    left_s = (pool.blocked_until - timezone.now()).total_seconds()
    assert left_s == pytest.approx(expected_s, abs=0.9)
    assert Lease.objects.count() == 0


@pytest.mark.parametrize("error_class", [ErrorClass.AUTH, ErrorClass.INSUFFICIENT_CREDIT])
def test_a_refusal_of_our_account_stops_the_pool_and_burns_nothing(provider, error_class):
    batch = make_batch(size=1)
    batch.generations.update(provider="scripted")
    (member,) = admit().admitted
    provider.answers = [Failure(error_class, "no")]
    with pytest.raises(Ignore):
        run(member)
    assert Generation.objects.get().status == "queued"
    assert admit().admitted == []


def test_not_being_able_to_look_is_no_failure_of_the_work(provider, retries):
    _, member = start()
    provider.answers = [running(), Failure(ErrorClass.PROVIDER_UNAVAILABLE, "502"), succeeded()]
    for _ in range(2):
        with pytest.raises(Retry):
            run(member)
    assert retries[-1] == looks.MAX_LOOK_S
    assert run(member) == "downloading"
    assert Attempt.objects.count() == 1


@pytest.mark.parametrize("asked_s", [86_400.0, 999_999_999_999.0])
def test_a_provider_cannot_put_off_the_next_look_for_long(provider, retries, asked_s, settings):
    _, member = start()
    provider.answers = [
        running(),
        Failure(ErrorClass.RATE_LIMITED, "slow down", retry_after_s=asked_s),
    ]
    for _ in range(2):
        with pytest.raises(Retry):
            run(member)
    assert retries[-1] == settings.LEASE_SECONDS / 3


def test_waiting_for_a_provider_that_accepts_nothing_does_not_use_up_the_deadline(provider):
    generation, member = start()
    provider.answers = [Failure(ErrorClass.AUTH, "no")]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert generation.active_s == 0


def test_an_outcome_that_comes_too_late_leaves_the_submission_on_record(provider, monkeypatch):
    generation, member = start()

    def overtaken(**kwargs):
        tasks.lifecycle.fail_generation(
            generation=kwargs["generation"],
            attempt=kwargs["attempt"],
            failure=Failure(ErrorClass.UNKNOWN, "overtaken"),
        )
        return original(**kwargs)

    original = tasks.lifecycle.begin_download
    monkeypatch.setattr(tasks.lifecycle, "begin_download", overtaken)
    provider.answers = [succeeded()]
    assert run(member) == "failed"
    assert generation.attempts.get().provider_id == "p1"


def test_a_usual_time_of_nothing_is_no_division_by_it(provider, monkeypatch):
    monkeypatch.setattr(tasks.Attempt.objects, "recent_run_times", lambda *args: [0.0])
    _, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)


def test_work_past_its_deadline_is_cancelled_and_then_failed(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    Lease.objects.update(created_at=Now() - timedelta(seconds=605))
    provider.answers = [running(), failed(ErrorClass.CANCELED)]
    with pytest.raises(Retry):
        run(member)
    assert Lease.objects.count() == 1  # the slot is held until the provider has stopped
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert (generation.error_code, provider.cancelled) == ("timeout_run", ["p1", "p1"])


def test_a_provider_that_never_confirms_the_cancel_is_waited_for_only_so_long(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    Lease.objects.update(created_at=Now() - timedelta(seconds=670))
    provider.answers = [running()]
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert generation.error_code == "timeout_run"


def test_work_that_is_looked_at_very_late_may_still_have_succeeded(provider):
    _, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    Lease.objects.update(created_at=Now() - timedelta(seconds=700))
    provider.answers = [succeeded()]
    assert run(member) == "downloading"


def test_a_provider_that_cannot_be_asked_is_waited_for_only_so_long(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    Lease.objects.update(created_at=Now() - timedelta(seconds=670))
    provider.answers = [Failure(ErrorClass.PROVIDER_UNAVAILABLE, "502")]
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert (generation.error_code, provider.cancelled) == ("timeout_run", ["p1"])


def test_the_provider_is_told_to_stop_by_itself(provider):
    _, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    assert 590 <= provider.submitted[0].cancel_after_s <= 600


def test_a_redelivery_after_the_output_was_recorded_lets_the_chain_go_on(provider):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)
    assert run(member) == "downloading"
    assert len(provider.submitted) == 1
    assert fetch(generation) == "completed"


def test_a_download_of_what_has_ended_steps_aside(provider):
    generation, member = start()
    provider.answers = [failed(ErrorClass.CONTENT_POLICY)]
    assert run(member) == "failed"
    assert tasks.download.run("failed", str(generation.pk)) == "failed"
    assert Image.objects.count() == 0


def test_a_second_delivery_of_a_download_changes_nothing(provider):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)
    fetch(generation)
    assert fetch(generation) == "completed"
    assert Image.objects.count() == 1


def test_an_output_that_is_no_image_is_generated_once_more(provider, media):
    generation, member = start()
    html = "data:image/png;base64," + base64.b64encode(b"<html>no</html>").decode()
    provider.answers = [succeeded(html)]
    run(member)
    with pytest.raises(Retry):  # fetched again first, which costs nothing
        fetch(generation)
    with pytest.raises(Ignore):
        fetch(generation, tries=1)
    generation.refresh_from_db()
    attempt = generation.attempts.get()
    assert (generation.status, attempt.outcome) == ("queued", "failed")
    assert attempt.error_class == ErrorClass.BAD_OUTPUT
    assert not list(media.rglob("*.*"))


def test_an_output_that_cannot_be_fetched_is_tried_again_and_then_given_up(provider, retries):
    generation, member = start()
    provider.output_hosts = OutputHosts(extra=("127.0.0.1",))
    provider.answers = [succeeded("http://127.0.0.1:9/away.png")]
    run(member)
    for tries in range(len(tasks.FETCH_DELAYS_S)):
        with pytest.raises(Retry):
            fetch(generation, tries)
    assert fetch(generation, len(tasks.FETCH_DELAYS_S)) == "failed"
    generation.refresh_from_db()
    assert generation.error_code == "download_failed"
    assert len(provider.submitted) == 1
    assert retries == sorted(retries)


class StorageError(Exception):
    """What a storage over a network raises need not be an OSError."""


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StorageError("503")])
@pytest.mark.parametrize("write", [1, 2, 3], ids=["image", "thumbnail", "preview"])
def test_a_storage_that_fails_is_tried_again_without_paying(
    provider, monkeypatch, media, error, write
):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)
    writes = []
    save = FileSystemStorage._save

    def failing(self, name, content):
        writes.append(name)
        if len(writes) == write:
            raise error
        return save(self, name, content)

    with monkeypatch.context() as disk:
        disk.setattr(FileSystemStorage, "_save", failing)
        with pytest.raises(Retry):
            fetch(generation)
    assert fetch(generation) == "completed"
    assert len(provider.submitted) == 1
    stored = sorted(path.name for path in media.rglob("*") if path.is_file())
    assert stored == ["0.png", "0.preview.webp", "0.thumbnail.webp"]


def test_a_full_disk_while_fetching_is_tried_again(provider, monkeypatch):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(http_client(), "download", full)
        with pytest.raises(Retry):
            fetch(generation)
    assert fetch(generation) == "completed"


def test_a_database_that_is_away_puts_the_task_off(provider, monkeypatch, retries):
    _, member = start()

    def away(*args, **options):
        raise OperationalError("the database system is shutting down")

    with monkeypatch.context() as database:
        database.setattr(tasks.Generation.objects, "take_turn", away)
        with pytest.raises(Retry):
            run(member)
    assert len(retries) == 1
    provider.answers = [succeeded()]
    assert run(member) == "downloading"


def test_the_sweep_finalises_a_batch_whose_chord_was_lost(provider):
    batch = make_batch(size=1)
    batch.generations.update(provider="scripted")
    (member,) = admit().admitted
    provider.answers = [failed(ErrorClass.INVALID_INPUT)]
    run(member)
    assert Batch.objects.get().status == "processing"
    assert tasks.sweep.run()
    assert Batch.objects.get().status == "failed"
    version = Batch.objects.get().version
    assert tasks.sweep.run()
    assert Batch.objects.get().version == version


def test_backoff_is_never_shorter_than_configured_and_at_most_a_quarter_longer():
    delays = [5.0, 15.0, 30.0]
    for retry, base in enumerate(delays):
        assert backoff_s(retry, delays=delays, rand=lambda: 0.0) == base
        assert backoff_s(retry, delays=delays, rand=lambda: 1.0) == base * 1.25


def test_the_first_look_is_when_it_usually_is_done():
    assert looks.next_look_s(0.0, 2.0, reports=False) == pytest.approx(2.01)
    assert looks.next_look_s(1.5, 2.0, reports=False) == pytest.approx(0.51)


@pytest.mark.parametrize("usual_s", [0.5, 2.0, 9.0])
@pytest.mark.parametrize("actual_s", [0.1, 2.0, 3.0, 30.0, 300.0])
def test_a_result_is_seen_soon_and_with_few_looks(usual_s, actual_s):
    elapsed, count = 0.0, 0
    while elapsed < actual_s:
        elapsed += looks.next_look_s(elapsed, usual_s, reports=False)
        count += 1
    late_s = elapsed - actual_s
    assert late_s <= max(1.01 * usual_s, 0.25 * max(actual_s - usual_s, 0) + looks.MIN_LOOK_S)
    assert late_s <= looks.MAX_LOOK_S
    assert count <= 26 + actual_s / looks.MAX_LOOK_S


def test_the_usual_time_is_the_median_of_the_latest_and_the_catalogues_before_that(provider):
    assert looks.usual_s("black-forest-labs/flux-schnell") == 1.5
    estimates._known.clear()
    for number, seconds in enumerate([1.0, 2.0, 9.0]):
        generation = make_generation(provider="scripted")
        (member,) = admit().admitted
        provider.answers = [
            Prediction(
                f"p{number}", PredictionStatus.SUCCEEDED, outputs=(data_uri(),), total_s=seconds
            )
        ]
        run(member)
        fetch(generation)
    assert looks.usual_s("black-forest-labs/flux-schnell") == 2.0


# --- Turns --------------------------------------------------------------------------------------


def test_of_two_copies_of_a_message_one_is_worked_on(provider):
    _, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member, turn=0)
    with pytest.raises(Ignore):
        run(member, turn=0)
    assert len(provider.submitted) == 1
    assert provider.fetched == []


def test_a_message_of_before_there_were_turns_still_works(provider):
    generation, member = start()
    provider.answers = [running(), succeeded()]
    for _ in range(2):
        try:
            tasks.generate.run(str(member.generation_id), str(member.lease_id))
        except Retry:
            continue
    assert Generation.objects.get().status == "downloading"
    assert tasks.download.run("downloading", str(generation.pk)) == "completed"


def test_a_copy_of_a_download_message_is_not_worked_on(provider):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)
    lease = Lease.objects.get()
    outcome = {"status": "downloading", "turn": lease.turn}
    work = Generation.objects.take_turn(
        str(generation.pk), str(lease.pk), lease.turn, holds_slot=False
    )
    assert work is not None
    with pytest.raises(Ignore):
        tasks.download.run(outcome, str(generation.pk), str(lease.pk))
    assert Image.objects.count() == 0
    assert fetch(generation) == "completed"


def test_an_overtaken_download_keeps_its_hands_off_the_others_files(provider, monkeypatch):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)
    store = tasks._fetch

    def slow(*args):
        image = store(*args)
        if not Image.objects.exists():
            monkeypatch.setattr(tasks, "_fetch", store)
            # Its lease runs out, and another delivery does the work.
            assert fetch(generation) == "completed"
        return image

    monkeypatch.setattr(tasks, "_fetch", slow)
    assert fetch(generation) == "completed"
    image = Image.objects.get()
    assert image.file.storage.exists(image.file.name)


# --- A submission whose answer is missing -------------------------------------------------------


def lose_the_answer(provider, member):
    provider.answers = [Failure(ErrorClass.TIMEOUT_UNKNOWN, "no answer")]
    with pytest.raises(Retry):
        run(member)


def pass_time(seconds):
    Attempt.objects.update(created_at=Now() - timedelta(seconds=seconds))


LONG_ENOUGH_S = 26  # with the usual lease


def test_a_prediction_whose_id_was_not_heard_is_found_and_followed(provider):
    generation, member = start()
    lose_the_answer(provider, member)
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.error_class) == ("open", "timeout_unknown")
    provider.answers = [(running("found"),)]
    with pytest.raises(Retry):
        run(member)
    request, since, until = provider.searched[0]
    assert request.input == generation.input
    assert since < attempt.created_at < until
    provider.answers = [succeeded()]
    assert run(member) == "downloading"
    assert provider.fetched == ["found"]
    attempt.refresh_from_db()
    assert (attempt.provider_id, attempt.outcome, attempt.error_class) == ("p1", "succeeded", "")
    assert len(provider.submitted) == 1


def test_a_submission_that_certainly_never_arrived_is_made_again(provider):
    generation, member = start()
    lose_the_answer(provider, member)
    provider.answers = [()]
    with pytest.raises(Retry):  # it may still be listed
        run(member)
    pass_time(LONG_ENOUGH_S)
    provider.answers = [()]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.retry_count) == ("queued", 1)
    Generation.objects.update(not_before=Now() - timedelta(seconds=1))
    (again,) = admit().admitted
    provider.answers = [running("p2")]
    with pytest.raises(Retry):
        run(again)
    assert len(provider.submitted) == Attempt.objects.count() == 2
    assert Attempt.objects.filter(provider_id__isnull=False).count() == 1


def test_a_submission_that_never_arrives_is_given_up_in_the_end(provider):
    generation, member = start()
    lose_the_answer(provider, member)
    pass_time(LONG_ENOUGH_S)
    Generation.objects.update(retry_count=ALL_DELAYS)
    provider.answers = [()]
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert generation.error_code == "interrupted"


@pytest.mark.parametrize("error_class", [ErrorClass.PROVIDER_UNAVAILABLE, ErrorClass.UNKNOWN])
def test_what_nobody_can_tell_stays_unknown_and_holds_its_slot_until_the_deadline(
    provider, error_class
):
    generation, member = start()
    lose_the_answer(provider, member)
    pass_time(LONG_ENOUGH_S)
    provider.answers = [Failure(error_class, "no list")] * 2
    with pytest.raises(Retry):
        run(member)
    assert Lease.objects.get().holds_slot
    Lease.objects.update(created_at=Now() - timedelta(seconds=601))
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert generation.error_code == "submission_unknown"
    assert generation.attempts.get().outcome == "submission_unknown"
    assert len(provider.submitted) == 1


def test_nobody_looks_for_a_submission_whose_answer_may_still_come(provider):
    _, member = start()
    tasks.lifecycle.begin_attempt(generation=Generation.objects.get())
    with pytest.raises(Retry):
        run(member)
    assert provider.searched == provider.submitted == []
    pass_time(LONG_ENOUGH_S)
    provider.answers = [(running("found"),)]
    with pytest.raises(Retry):
        run(member)
    assert Attempt.objects.get().provider_id == "found"


def test_of_two_lost_submissions_of_the_same_input_each_finds_one(provider):
    members = [start()[1] for _ in range(2)]
    for member in members:
        lose_the_answer(provider, member)
    pass_time(LONG_ENOUGH_S)
    for member in members:
        provider.answers = [(running("second"), running("first"))]
        with pytest.raises(Retry):
            run(member)
    assert set(Attempt.objects.values_list("provider_id", flat=True)) == {"first", "second"}


def test_the_prediction_of_a_submission_under_way_is_not_taken_from_it(provider):
    _, lost = start()
    lose_the_answer(provider, lost)
    pass_time(LONG_ENOUGH_S)
    other, _ = start()
    tasks.lifecycle.begin_attempt(generation=Generation.objects.get(pk=other.pk))
    provider.answers = [(running("of the other"),)]
    with pytest.raises(Retry):
        run(lost)
    assert not Attempt.objects.filter(provider_id__isnull=False).exists()


def test_a_submission_that_was_given_up_and_is_answered_in_that_moment_is_followed(
    provider, monkeypatch
):
    _, member = start()
    lose_the_answer(provider, member)
    pass_time(LONG_ENOUGH_S)

    def meanwhile(request, *, since, until):
        tasks.lifecycle.record_submission(attempt=Attempt.objects.get(), prediction=running("late"))
        return ()

    monkeypatch.setattr(provider, "find", meanwhile)
    with pytest.raises(Retry):
        run(member)
    assert Generation.objects.get().status == "processing"
    assert Attempt.objects.get().outcome == "open"


def test_a_process_that_was_held_up_for_a_lease_does_not_submit_any_more(provider, monkeypatch):
    _, member = start()
    begin = tasks.lifecycle.begin_attempt
    clock = tasks.time.monotonic

    def stopped(**kwargs):
        monkeypatch.setattr(tasks.time, "monotonic", lambda: clock() + 100)
        return begin(**kwargs)

    monkeypatch.setattr(tasks.lifecycle, "begin_attempt", stopped)
    with pytest.raises(Ignore):  # back in line: it is certain that nothing was sent
        run(member)
    assert provider.submitted == []
    assert Attempt.objects.get().error_class == "interrupted"
    assert Generation.objects.get().status == "queued"


def test_what_was_held_up_is_not_sent_back_when_its_prediction_was_found_meanwhile(
    provider, monkeypatch
):
    _, member = start()
    begin = tasks.lifecycle.begin_attempt
    clock = tasks.time.monotonic

    def overtaken(**kwargs):
        attempt = begin(**kwargs)
        # Whoever took over has found one of the same input for it.
        tasks.lifecycle.record_submission(attempt=attempt, prediction=running("found"))
        monkeypatch.setattr(tasks.time, "monotonic", lambda: clock() + 100)
        return attempt

    monkeypatch.setattr(tasks.lifecycle, "begin_attempt", overtaken)
    with pytest.raises(Retry):
        run(member)
    assert Generation.objects.get().status == "processing"
    assert Attempt.objects.get().outcome == "open"


# --- Webhooks and cancels -----------------------------------------------------------------------


def test_a_report_is_as_good_as_a_look(provider):
    _, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    Attempt.objects.update(report={"total_s": 1.5})
    assert run(member) == "downloading"
    assert provider.fetched == []
    attempt = Attempt.objects.get()
    assert (attempt.total_s, attempt.report) == (1.5, None)


def test_the_provider_is_told_where_to_report(provider, settings):
    settings.CALLBACK_URL = "https://picture.example"
    _, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    token = Attempt.objects.get().callback_token
    assert provider.submitted[0].webhook_url == (f"https://picture.example/hooks/scripted/{token}/")


def test_a_look_is_later_when_the_provider_reports_by_itself(settings, provider, retries):
    waits = []
    for url in ("", "https://picture.example"):
        settings.CALLBACK_URL = url
        _, member = start()
        provider.answers = [running(f"p{url}")]
        with pytest.raises(Retry):
            run(member)
        waits.append(retries[-1])
    assert waits[1] >= waits[0] + looks.MIN_FALLBACK_S * 0.9
    assert waits[1] <= settings.LEASE_SECONDS / 3


def test_a_running_generation_is_cancelled_at_the_provider_first(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    assert tasks.lifecycle.cancel_generation(generation=generation)
    provider.answers = [running(), failed(ErrorClass.CANCELED)]
    with pytest.raises(Retry):
        run(member)
    assert Lease.objects.get().holds_slot
    assert run(member) == "cancelled"
    generation.refresh_from_db()
    assert (generation.status, generation.error_code) == ("cancelled", "")
    assert provider.cancelled == ["p1", "p1"]
    assert not Lease.objects.exists()


def test_a_cancel_before_the_submission_makes_none(provider):
    generation, member = start()
    tasks.lifecycle.cancel_generation(generation=generation)
    assert run(member) == "cancelled"
    assert provider.submitted == []
    assert not Attempt.objects.exists()


@pytest.mark.parametrize(
    "answer", [succeeded(), failed(ErrorClass.INTERRUPTED), failed(ErrorClass.CONTENT_POLICY)]
)
def test_whatever_comes_of_cancelled_work_it_ends_cancelled(provider, answer):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    tasks.lifecycle.cancel_generation(generation=generation)
    provider.answers = [answer]
    assert run(member) == "cancelled"
    assert Image.objects.count() == 0


def test_a_cancel_while_the_submission_is_under_way_is_kept(provider, monkeypatch):
    generation, member = start()
    submit = provider.submit

    def meanwhile(request):
        tasks.lifecycle.cancel_generation(generation=generation)
        return submit(request)

    monkeypatch.setattr(provider, "submit", meanwhile)
    provider.answers = [Failure(ErrorClass.PROVIDER_UNAVAILABLE, "502")]
    assert run(member) == "cancelled"
    generation.refresh_from_db()
    assert generation.status == "cancelled"


def test_work_that_the_provider_has_never_heard_of_is_cancelled_at_once(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    tasks.lifecycle.cancel_generation(generation=generation)
    provider.answers = [Failure(ErrorClass.NOT_FOUND, "no such prediction")] * 2
    with pytest.raises(Retry):  # it may not be known everywhere yet
        run(member)
    Attempt.objects.update(submitted_at=Now() - timedelta(seconds=11))
    assert run(member) == "cancelled"


# --- A provider that is away --------------------------------------------------------------------


def test_an_outage_opens_the_circuit_and_then_burns_nothing(provider):
    for _ in range(4):
        make_generation(provider="scripted")
    away = Failure(ErrorClass.PROVIDER_UNAVAILABLE, "connection refused")
    for _ in range(3):
        Generation.objects.filter(not_before__isnull=False).update(not_before=Now())
        for member in admit().admitted:
            provider.answers = [away]
            with pytest.raises(Ignore):
                run(member)
    pool = Pool.objects.get(name="scripted")
    assert pool.failure_count >= pools.CIRCUIT_THRESHOLD
    assert admit().admitted == []
    spent = sum(Generation.objects.values_list("retry_count", flat=True))
    for _ in range(10):  # probes, one by one, for longer than all retries
        Pool.objects.update(blocked_until=Now())
        Generation.objects.filter(not_before__isnull=False).update(not_before=Now())
        (probe,) = admit().admitted
        provider.answers = [away]
        with pytest.raises(Ignore):
            run(probe)
    assert sum(Generation.objects.values_list("retry_count", flat=True)) == spent
    assert set(Generation.objects.values_list("status", flat=True)) == {"queued"}
    Pool.objects.update(blocked_until=Now())
    Generation.objects.filter(not_before__isnull=False).update(not_before=Now())
    (probe,) = admit().admitted
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(probe)
    assert Pool.objects.get(name="scripted").failure_count == 0
    assert len(admit().admitted) == 3


def test_not_being_allowed_to_look_stops_the_pool_as_well(provider):
    _, member = start()
    provider.answers = [running(), Failure(ErrorClass.AUTH, "token revoked")]
    for _ in range(2):
        with pytest.raises(Retry):
            run(member)
    assert Pool.objects.get(name="scripted").stopped_by == "auth"
    assert Generation.objects.get().status == "processing"


def test_only_work_counts_towards_the_deadline(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    Lease.objects.update(created_at=Now() - timedelta(seconds=400))
    provider.answers = [failed(ErrorClass.INTERRUPTED)]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert generation.active_s == pytest.approx(400, abs=5)
    # A night in line changes nothing, for whatever reason.
    Generation.objects.update(
        started_at=Now() - timedelta(hours=9), not_before=Now() - timedelta(hours=1)
    )
    (member,) = admit().admitted
    provider.answers = [running("p2")]
    with pytest.raises(Retry):
        run(member)
    assert 190 <= provider.submitted[-1].cancel_after_s <= 200
    Lease.objects.update(created_at=Now() - timedelta(seconds=300))
    provider.answers = [
        Prediction("p2", PredictionStatus.FAILED, failure=failed(ErrorClass.CANCELED).failure)
    ]
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert generation.error_code == "timeout_run"


def test_an_answer_that_is_lost_after_it_was_given_up_stays_on_record(provider, monkeypatch):
    _, member = start()
    lose_the_answer(provider, member)
    pass_time(LONG_ENOUGH_S)
    provider.answers = [()]
    with pytest.raises(Ignore):
        run(member)
    attempt = Attempt.objects.get()
    assert attempt.outcome == "failed"
    lost = Failure(ErrorClass.TIMEOUT_UNKNOWN, "it was sent after all")
    tasks.lifecycle.record_lost_answer(attempt=attempt, failure=lost)
    attempt.refresh_from_db()
    assert (attempt.outcome, attempt.error_class) == ("submission_unknown", "timeout_unknown")


def test_every_attempt_has_files_of_its_own(provider, media):
    generation, member = start()
    for attempt in (1, 2):
        provider.answers = [
            Prediction(f"p{attempt}", PredictionStatus.SUCCEEDED, outputs=(data_uri(),))
        ]
        assert run(member) == "downloading"
        if attempt == 1:
            work = Generation.objects.select_related("lease").get()
            tasks._fetch(provider, data_uri(), work.attempts.get(), 0)
            tasks.lifecycle.fail_generation(
                generation=work,
                attempt=work.attempts.get(),
                failure=Failure(ErrorClass.OUTPUT_EXPIRED, "gone"),
            )
            generation.refresh_from_db()
            tasks.lifecycle.retry_generations(batch=None, generations=[generation])
            (member,) = admit().admitted
    assert fetch(generation) == "completed"
    names = sorted(path.name for path in media.rglob("*") if path.is_file())
    latest = ["0-2.png", "0-2.preview.webp", "0-2.thumbnail.webp"]
    assert names == [*latest, "0.png", "0.preview.webp", "0.thumbnail.webp"]
    tasks.cleanup.clean(tasks.image_folder(generation))
    names = sorted(path.name for path in media.rglob("*") if path.is_file())
    assert names == latest


def resized(mode, width, height):
    return {"settings": {"resize": {"mode": mode, "width": width, "height": height}}}


def test_an_image_is_stored_in_the_size_that_was_asked_for(provider, media):
    generation, member = start(**resized("upscale", 200, 300))
    provider.answers = [succeeded()]
    run(member)
    assert fetch(generation) == "completed"
    image = Image.objects.get()
    stored = image.file.read()
    image.file.close()
    assert Pillow.open(io.BytesIO(stored)).size == (200, 300)
    assert (image.width, image.height, image.format) == (200, 300, "png")
    assert (image.made_width, image.made_height) == (64, 48)
    assert (image.size_bytes, image.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert len(list(media.rglob("*.png"))) == 1


def test_an_image_of_that_very_size_is_stored_as_it_came(provider):
    generation, member = start(**resized("place", 64, 48))
    provider.answers = [succeeded()]
    run(member)
    assert fetch(generation) == "completed"
    image = Image.objects.get()
    assert (image.width, image.height, image.made_width, image.made_height) == (64, 48, None, None)
    original = base64.b64decode(data_uri().partition(",")[2])
    assert image.sha256 == hashlib.sha256(original).hexdigest()


def test_a_drawing_that_was_not_expected_is_stored_as_it_came(provider):
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60"><rect width="9" height="6"/></svg>'  # noqa: E501
    generation, member = start(**resized("upscale", 200, 300))
    provider.answers = [
        succeeded("data:image/svg+xml;base64," + base64.b64encode(drawing).decode())
    ]
    run(member)
    assert fetch(generation) == "completed"
    image = Image.objects.get()
    assert (image.format, image.width, image.height, image.made_width) == ("svg", 90, 60, None)


def test_a_resize_that_is_done_twice_writes_the_same_file(provider, media):
    generation, member = start(**resized("place", 100, 100))
    provider.answers = [succeeded()]
    run(member)
    lease = Lease.objects.get()
    work = Generation.objects.take_turn(
        str(generation.pk), str(lease.pk), lease.turn, holds_slot=False
    )
    once, again = (tasks._fetch(provider, data_uri(), work.attempt, 0) for _ in range(2))
    assert (once.file.name, once.sha256) == (again.file.name, again.sha256)
    assert (once.made_width, once.width) == (64, 100)
    Lease.objects.update(turn=lease.turn)
    assert fetch(generation) == "completed"
    assert [path.name for path in media.rglob("0.png")] == ["0.png"]


def test_an_image_that_cannot_be_resized_is_a_bad_output(provider, monkeypatch):
    bad = Failure(ErrorClass.BAD_OUTPUT, "The image cannot be resized: it is damaged.")
    monkeypatch.setattr(tasks.images, "resize", lambda *_: bad)
    generation, member = start(**resized("upscale", 200, 300))
    provider.answers = [succeeded()]
    run(member)
    with pytest.raises(Retry):
        fetch(generation)
    assert not Image.objects.exists()


def test_a_late_download_that_cannot_store_leaves_what_others_have_stored(provider, monkeypatch):
    generation, member = start()
    provider.answers = [succeeded()]
    run(member)
    attempt = Attempt.objects.get()
    assert fetch(generation) == "completed"

    def full(self, name, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSystemStorage, "_save", full)
    late = tasks._fetch(provider, attempt.outputs[0], attempt, 0)
    assert isinstance(late, Failure)
    image = Image.objects.get()
    assert image.file.storage.exists(image.file.name)
    assert image.thumbnail.storage.exists(image.thumbnail.name)


@pytest.mark.parametrize(
    "error_class", [ErrorClass.RATE_LIMITED, ErrorClass.INSUFFICIENT_CREDIT, ErrorClass.AUTH]
)
def test_a_run_that_fails_with_words_about_the_account_is_a_failed_run(provider, error_class):
    generation, member = start()
    provider.answers = [failed(error_class)]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert generation.retry_count == 1
    assert pools.states() == {"scripted": "ok"}


def test_a_database_that_goes_away_midway_puts_the_next_turn_off(provider, monkeypatch, retries):
    generation, member = start()
    asked = []

    def retry(args=None, countdown=None, **options):
        asked.append((args, countdown))
        return Retry(when=countdown)

    def away(**kwargs):
        raise OperationalError("terminating connection")

    monkeypatch.setattr(tasks.generate, "retry", retry)
    with monkeypatch.context() as database:
        database.setattr(tasks.lifecycle, "begin_download", away)
        provider.answers = [succeeded()]
        with pytest.raises(Retry):
            run(member)
    ((args, countdown),) = asked
    assert args == (str(generation.pk), str(member.lease_id), Lease.objects.get().turn)
    assert countdown == DATABASE_RETRY_S


# --- Another provider ---------------------------------------------------------------------------


@pytest.fixture
def many(settings, monkeypatch):
    """Three providers, whose models are all on offer but those of `taken_off`."""
    settings.PROVIDER_POOLS = {name: {"capacity": 9} for name in ("scripted", "second", "third")}
    taken_off = set()
    monkeypatch.setattr(providers, "get_model", lambda name: name)
    monkeypatch.setattr(
        providers, "unavailable_reason", lambda name: "off" if name in taken_off else ""
    )
    return taken_off


def ways(*providers):
    return tuple(
        {"model": f"{name}/sdxl", "provider": name, "input": {"prompt": f"for {name}"}}
        for name in providers
    )


def test_what_nobody_was_there_to_take_is_made_by_the_next_provider(provider, many):
    generation, member = start(fallbacks=ways("second", "third"))
    asked = generation.model
    provider.answers = [Failure(ErrorClass.PROVIDER_UNAVAILABLE, "nobody there")]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.retry_count) == ("queued", 0)
    assert (generation.provider, generation.model) == ("second", "second/sdxl")
    assert generation.input == {"prompt": "for second"}
    # What was asked for stays the last way out.
    assert [way["model"] for way in generation.fallbacks] == ["third/sdxl", asked]
    assert generation.fallbacks[-1]["is_original"]
    attempt = generation.attempts.get()
    assert (attempt.provider, attempt.outcome) == ("scripted", "failed")
    assert attempt.input == {"prompt": "a lighthouse"}  # what it was sent
    Generation.objects.filter(pk=generation.pk).update(not_before=None)
    Lane.objects.enqueue(generation.owner_id, 1, default_cap=3)
    assert [admitted.generation_id for admitted in admit().admitted] == [generation.pk]
    lease = Lease.objects.get(generation=generation)
    assert lease.pool_id == "second"


@pytest.mark.parametrize("trouble", ["stopped", "circuit open", "model taken off"])
def test_a_way_that_cannot_be_gone_now_is_passed_over(provider, many, trouble):
    generation, member = start(fallbacks=ways("second", "third"))
    second = Pool.objects.filter(name="second")
    if trouble == "stopped":
        second.update(stopped_by="auth")
    elif trouble == "circuit open":
        second.update(failure_count=pools.CIRCUIT_THRESHOLD)
    else:
        many.add("second/sdxl")
    provider.answers = [Failure(ErrorClass.PROVIDER_UNAVAILABLE, "nobody there")]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert generation.provider == "third"
    assert [way["provider"] for way in generation.fallbacks] == ["second", "scripted"]


def on_a_detour(left=("third", "original")):
    """A generation that is made by the scripted provider in the place of another."""
    *others, _ = left
    original = {"model": "a/b", "provider": "second", "input": {"prompt": "original"}}
    return start(fallbacks=(*ways(*others), {**original, "is_original": True}))


@pytest.mark.parametrize("refusal", [ErrorClass.NOT_FOUND, ErrorClass.INVALID_INPUT])
def test_a_stand_in_that_refuses_is_left_for_the_next(provider, many, refusal):
    generation, member = on_a_detour()
    provider.answers = [Failure(refusal, "no such file", provider_code="404")]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.provider) == ("queued", "third")
    assert [way["provider"] for way in generation.fallbacks] == ["second"]


def test_a_stand_in_that_refuses_leads_back_to_what_was_asked_for_at_the_latest(provider, many):
    generation, member = on_a_detour(left=("original",))
    Pool.objects.filter(name="second").update(failure_count=pools.CIRCUIT_THRESHOLD)
    provider.answers = [Failure(ErrorClass.NOT_FOUND, "no such file", provider_code="404")]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.provider) == ("queued", "second")
    assert (generation.input, generation.fallbacks) == ({"prompt": "original"}, [])


def test_what_was_asked_for_itself_is_refused_for_good(provider, many):
    _, member = start(fallbacks=ways("second"))
    provider.answers = [Failure(ErrorClass.INVALID_INPUT, "no", provider_code="422")]
    assert run(member) == "failed"


@pytest.mark.parametrize(
    ("error_class", "code"),
    [
        (ErrorClass.TIMEOUT_UNKNOWN, ""),
        (ErrorClass.RATE_LIMITED, "429"),
        (ErrorClass.INVALID_INPUT, "422"),
        (ErrorClass.QUEUE_FULL, ""),
        # Perhaps taken after all: not surely enough to pay somebody else for the same.
        (ErrorClass.PROVIDER_UNAVAILABLE, "500"),
        (ErrorClass.PROVIDER_UNAVAILABLE, "502"),
    ],
)
def test_no_other_failure_leads_to_another_provider(provider, many, error_class, code):
    generation, member = start(fallbacks=ways("second"))
    provider.answers = [Failure(error_class, "no", provider_code=code)]
    with contextlib.suppress(Ignore, Retry):
        run(member)
    generation.refresh_from_db()
    assert (generation.provider, len(generation.fallbacks)) == ("scripted", 1)


def test_work_that_was_accepted_stays_with_its_provider(provider, many):
    generation, member = start(fallbacks=ways("second"))
    provider.answers = [running(), failed(ErrorClass.PROVIDER_UNAVAILABLE)]
    with pytest.raises(Retry):
        run(member)
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert generation.provider == "scripted"


def test_what_waits_for_a_provider_that_is_away_need_not(provider, many, monkeypatch):
    admit()  # makes the pools
    batch = lifecycle.submit_batch(
        owner_id=make_user().pk,
        generations=[
            new_generation(provider="scripted", fallbacks=ways(*names))
            for names in ([], ["nowhere"], ["second"], ["nowhere"])
        ],
        settings_asked={},
    )
    for _ in range(pools.CIRCUIT_THRESHOLD):
        pools.record_unavailable(name="scripted", message="nobody there")
    # Those that cannot go another way do not stand in the way of those that can.
    monkeypatch.setattr(sweeper, "LIMIT", 1)
    sweeper.fall_back()
    made_by = batch.generations.order_by("index").values_list("provider", flat=True)
    assert list(made_by) == ["scripted", "scripted", "second", "scripted"]
    sweeper.fall_back()  # nothing is left to do
    assert len(admit().admitted) == 1


def test_a_refusal_of_our_own_does_not_close_the_circuit(provider, many):
    _, member = start()
    Pool.objects.filter(name="scripted").update(failure_count=pools.CIRCUIT_THRESHOLD)
    provider.answers = [Failure(ErrorClass.INVALID_INPUT, "too large to send")]
    assert run(member) == "failed"
    assert Pool.objects.get(name="scripted").failure_count == pools.CIRCUIT_THRESHOLD


# --- What it costs ------------------------------------------------------------------------------


BY_SECOND = "stability-ai/sdxl"


def price_per_second():
    return get_model(BY_SECOND).price_usd_per_second


def test_a_model_that_is_billed_by_the_second_costs_what_it_ran(provider):
    generation, member = start(model=BY_SECOND)
    provider.answers = [succeeded(run_s=4.0)]
    run(member)
    generation.refresh_from_db()
    assert generation.cost_usd == 4 * price_per_second() > 0
    assert generation.attempts.get().cost_usd == generation.cost_usd


def test_work_that_failed_is_paid_for_by_the_second_and_added_up(provider):
    generation, member = start(model=BY_SECOND)
    provider.answers = [
        Prediction(
            "p1",
            PredictionStatus.FAILED,
            failure=Failure(ErrorClass.INTERRUPTED, "lost"),
            run_s=2.0,
        )
    ]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    attempt = generation.attempts.get()
    assert generation.cost_usd == attempt.cost_usd == 2 * price_per_second()
    assert attempt.run_s == 2.0


def test_work_that_failed_costs_nothing_by_the_image(provider):
    generation, member = start()
    provider.answers = [failed(ErrorClass.CONTENT_POLICY)]
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert generation.cost_usd == 0


def test_images_are_paid_for_as_the_provider_counts_them(provider):
    generation, member = start(output_count=2)
    provider.answers = [succeeded(data_uri(), billed_images=2)]
    run(member)
    generation.refresh_from_db()
    assert generation.cost_usd == 2 * get_model(generation.model).price_usd_per_image


# --- Several images, and images of images -------------------------------------------------------


def test_all_outputs_of_one_submission_are_stored_in_order(provider):
    generation, member = start(output_count=2)
    provider.answers = [succeeded(data_uri((10, 10)), data_uri((20, 20)))]
    run(member)
    assert fetch(generation) == "completed"
    images = generation.images.order_by("index")
    assert [(image.index, image.width) for image in images] == [(0, 10), (1, 20)]
    assert all(image.preview.storage.exists(image.preview.name) for image in images)


def test_fewer_images_than_asked_for_are_kept_and_said_to_be_fewer(provider):
    generation, member = start(output_count=4)
    provider.answers = [succeeded(data_uri(), data_uri())]
    run(member)
    assert fetch(generation) == "completed"
    attempt = generation.attempts.get()
    assert (attempt.outcome, attempt.error_class) == ("succeeded", ErrorClass.PARTIAL_OUTPUT)
    assert attempt.error_message == "2 of 4 images came."
    assert generation.images.count() == 2


def test_references_are_handed_over_in_order_with_the_submission(provider):
    owner = make_user()
    pictures = [make_reference(owner, colour) for colour in ("red", "blue")]
    _, member = start(
        owner=owner,
        model="bytedance/seedream-4",
        kind="compose",
        references=tuple(one.pk for one in pictures),
    )
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    (request,) = provider.submitted
    files = request.files["image_input"]
    assert request.file_lists == {"image_input"}
    assert [file.sha256 for file in files] == [one.sha256 for one in pictures]
    for file, picture_of in zip(files, pictures, strict=True):
        with file.open() as opened:
            assert hashlib.sha256(opened.read()).hexdigest() == picture_of.sha256
        assert (file.content_type, file.size_bytes) == ("image/png", picture_of.size_bytes)


def test_a_reference_that_cannot_be_read_is_an_os_error(provider, monkeypatch):
    owner = make_user()
    _, member = start(
        owner=owner,
        model="black-forest-labs/flux-dev",
        kind="derive",
        references=(make_reference(owner, "red").pk,),
    )
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    (file,) = provider.submitted[0].files["image"]

    def away(*args):
        raise StorageError("503")

    with monkeypatch.context() as storage:
        storage.setattr(FileSystemStorage, "_open", away)
        with pytest.raises(OSError, match="503"):
            file.open()


def test_a_submission_names_its_attempt_so_that_it_can_be_looked_up(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    (request,) = provider.submitted
    assert request.token == str(generation.attempts.get().callback_token)


def test_a_model_that_has_left_the_catalogue_is_not_submitted(provider):
    generation, member = start(model="gone/model")
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert (generation.error_code, provider.submitted) == ("not_found", [])


# --- What an unsigned webhook claims ------------------------------------------------------------


def claim(generation, claimed):
    attempt = generation.attempts.get()
    return lifecycle.record_hint(
        provider="scripted",
        callback_token=attempt.callback_token,
        delivery_id=f"hint {claimed}",
        body={"id": claimed},
    )


def lost_answer(provider):
    generation, member = start()
    provider.answers = [Failure(ErrorClass.TIMEOUT_UNKNOWN, "no answer")]
    with pytest.raises(Retry):
        run(member)
    provider.read = lambda body: None  # it signs nothing, so it is not believed
    return generation, member


def test_the_id_that_an_unsigned_webhook_claims_is_asked_for_and_followed(provider):
    generation, member = lost_answer(provider)
    assert claim(generation, "p1").follow == generation.pk
    provider.answers = [(running(),)]
    with pytest.raises(Retry):
        run(member)
    ((request, _, _),) = provider.searched
    assert request.claimed_id == "p1"
    assert generation.attempts.get().provider_id == "p1"


def test_a_claimed_id_that_the_provider_does_not_know_changes_nothing(provider):
    generation, member = lost_answer(provider)
    claim(generation, "forged")
    provider.answers = [Failure(ErrorClass.UNKNOWN, "no such list")]
    with pytest.raises(Retry):
        run(member)
    assert generation.attempts.get().provider_id is None


def test_a_claimed_id_of_another_attempt_is_not_taken(provider):
    _, other_member = start()
    provider.answers = [running("p7")]
    with pytest.raises(Retry):
        run(other_member)
    generation, member = lost_answer(provider)
    claim(generation, "p7")
    provider.answers = [(running("p7"),)]
    with pytest.raises(Retry):
        run(member)
    assert generation.attempts.get().provider_id is None


def test_a_hint_is_taken_once_and_only_while_it_matters(provider):
    generation, member = start()
    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    assert claim(generation, "p1").follow == generation.pk
    assert claim(generation, "p1").follow is None
    provider.read = lambda body: None
    provider.answers = [succeeded()]
    assert run(member) == "downloading"
    assert claim(generation, "p2").follow is None


def test_a_workflow_that_has_lost_a_place_for_the_input_is_not_submitted(provider):
    generation, member = start(model="comfyui/sdxl", input={"prompt": "a", "gone": 1})
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert (generation.error_code, provider.submitted) == ("invalid_input", [])
    assert "gone" in generation.error_message


def test_of_lost_submissions_with_different_references_none_is_taken_for_the_other(
    provider, settings
):
    owner = make_user()
    made = []
    for colour in ("red", "blue"):
        reference = make_reference(owner, colour)
        made.append(
            start(
                owner=owner,
                model="bytedance/seedream-4",
                kind="derive",
                references=(reference.pk,),
            )
        )
        provider.answers = [Failure(ErrorClass.TIMEOUT_UNKNOWN, "no answer")]
        with pytest.raises(Retry):
            run(made[-1][1])
    (generation, member), _ = made
    provider.answers = [(running("p1"), running("p2"))]
    with pytest.raises(Retry):  # a webhook will tell which is whose
        run(member)
    assert generation.attempts.get().provider_id is None
    Lease.objects.filter(pk=member.lease_id).update(
        created_at=Now() - timedelta(seconds=settings.GENERATION_DEADLINE + 1)
    )
    provider.answers = [(running("p1"), running("p2"))]
    assert run(member) == "failed"
    generation.refresh_from_db()
    assert generation.error_code == "submission_unknown"


def test_what_was_found_by_its_own_name_is_not_contested(provider):
    owner = make_user()
    made = []
    for colour in ("red", "blue"):
        reference = make_reference(owner, colour)
        fields = {"kind": "derive", "references": (reference.pk,)}
        made.append(start(owner=owner, model="bytedance/seedream-4", **fields))
        provider.answers = [Failure(ErrorClass.TIMEOUT_UNKNOWN, "no answer")]
        with pytest.raises(Retry):
            run(made[-1][1])
    (generation, member), _ = made
    token = str(generation.attempts.get().callback_token)
    provider.answers = [(running(token),)]
    with pytest.raises(Retry):
        run(member)
    assert generation.attempts.get().provider_id == token


def test_one_that_was_given_up_still_contests_what_may_be_its_prediction(provider, settings):
    owner = make_user()
    made = []
    for colour in ("red", "blue"):
        reference = make_reference(owner, colour)
        fields = {"kind": "derive", "references": (reference.pk,)}
        made.append(start(owner=owner, model="bytedance/seedream-4", **fields))
        provider.answers = [Failure(ErrorClass.TIMEOUT_UNKNOWN, "no answer")]
        with pytest.raises(Retry):
            run(made[-1][1])
    (first, member), (second, other_member) = made
    Lease.objects.filter(pk=member.lease_id).update(
        created_at=Now() - timedelta(seconds=settings.GENERATION_DEADLINE + 1)
    )
    provider.answers = [(running("p1"),)]
    assert run(member) == "failed"
    first.refresh_from_db()
    assert first.error_code == "submission_unknown"
    provider.answers = [(running("p1"),)]
    with pytest.raises(Retry):
        run(other_member)
    assert second.attempts.get().provider_id is None


def test_a_database_that_goes_away_before_the_attempt_leaves_no_doubt(provider, monkeypatch):
    generation, member = start()

    def gone(*args):
        raise OperationalError("gone")

    with monkeypatch.context() as database:
        database.setattr(tasks, "_files", gone)
        with pytest.raises(Retry):
            run(member)
    assert not generation.attempts.exists()


def test_work_of_a_provider_that_has_lost_its_credentials_waits_and_ends(settings):
    settings.COMFYUI_URL = ""
    settings.PROVIDER_POOLS = {"comfyui": {"capacity": 9}}
    get_provider.cache_clear()
    generation = make_generation(provider="comfyui", model="comfyui/sdxl", input={"prompt": "a"})
    (member,) = admit().admitted
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.retry_count) == ("queued", 0)
    assert Pool.objects.get(name="comfyui").stopped_by == ErrorClass.AUTH
    get_provider.cache_clear()


# --- More that reviews have found ---------------------------------------------------------------


def test_of_several_outputs_the_good_ones_are_kept(provider, media):
    generation, member = start(output_count=3)
    page = "data:text/html;base64," + base64.b64encode(b"<html>no</html>").decode()
    provider.answers = [succeeded(data_uri((10, 10)), page, data_uri((20, 20)))]
    run(member)
    with pytest.raises(Retry):  # fetched once more first
        fetch(generation)
    assert fetch(generation, tries=1) == "completed"
    stored = generation.images.order_by("index")
    assert [(image.index, image.width) for image in stored] == [(0, 10), (2, 20)]
    attempt = generation.attempts.get()
    assert attempt.error_class == ErrorClass.PARTIAL_OUTPUT
    assert attempt.error_message.startswith("Only 2 of 3 images are good")


def test_work_that_somebody_else_has_cancelled_is_made_again(provider):
    generation, member = start()
    provider.answers = [failed(ErrorClass.CANCELED)]
    with pytest.raises(Ignore):
        run(member)
    generation.refresh_from_db()
    assert (generation.status, generation.retry_count) == ("queued", 1)
    assert generation.attempts.get().error_class == ErrorClass.INTERRUPTED


def test_pictures_that_no_parameter_takes_any_more_are_not_left_out(provider):
    owner = make_user()
    generation, member = start(owner=owner, kind="derive", references=(make_reference(owner).pk,))
    assert run(member) == "failed"  # flux-schnell takes none
    generation.refresh_from_db()
    assert (generation.error_code, provider.submitted) == ("invalid_input", [])


def test_what_a_run_has_cost_is_kept_also_when_its_owner_cancels_at_that_moment(provider):
    generation, member = start(model=BY_SECOND)
    lost = Failure(ErrorClass.INTERRUPTED, "lost")

    def cancelled_meanwhile(prediction_id):
        lifecycle.cancel_generation(generation=generation)
        return Prediction("p1", PredictionStatus.FAILED, failure=lost, run_s=2.0)

    provider.answers = [running()]
    with pytest.raises(Retry):
        run(member)
    provider.fetch = cancelled_meanwhile
    assert run(member) == "cancelled"
    generation.refresh_from_db()
    assert generation.cost_usd == 2 * price_per_second()


def test_a_nonsensical_run_time_does_not_keep_the_work_from_ending(provider):
    generation, member = start(model=BY_SECOND)
    provider.answers = [succeeded(run_s=1e9)]
    assert run(member) == "downloading"
    generation.refresh_from_db()
    assert generation.cost_usd == tasks.MOST_USD
