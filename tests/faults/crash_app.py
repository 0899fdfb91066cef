"""The Celery app of the fault tests: the product's own, in processes that die where they are told.

    python -m tests.faults.crash_app --quiet -A tests.faults.crash_app worker -Q generate ...

The product knows nothing of this. When a worker starts, the functions named below are replaced by
ones that first (or afterwards) ask whether to die *at* that point, and then do, by SIGKILL. What a
test wants is in files of the folder `PICTURE_CRASH_DIR`, see `Rule`; what came of it is as well:

    rules/<point>.json     a rule
    claims/<point>/...     one file for each generation that was hit there
    kills                  a line for each process that ended itself: its id and the time
    trace                  a line for each delivery that began, and for each sweep

Moments `at` are `time.monotonic()`, which all processes of a machine share; `wall` is the clock of
the process, which `PICTURE_CLOCK_S` shifts by so many seconds.
"""

import contextlib
import datetime
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

POINTS = {
    "before_attempt": "before the attempt is on record",
    "before_post": "attempt on record, nothing sent",
    "after_post": "the provider has answered, its id is not stored",
    "after_record": "the id is stored, no look is planned",
    "mid_look": "a look is under way",
    "after_put_off": "the lease is let go, the next look is not sent",
    "before_download": "the provider is known to be done, nothing stored",
    "after_generate": "the outputs are stored, the next step is not sent",
    "download_begins": "the download's turn is taken",
    "mid_download": "a part of the file is here",
    "half_stored": "the file is in storage, its thumbnail is not",
    "stored": "the files are in storage, their row is not",
    "chord_part": "the image is on record, the chord part is not counted",
    "finalise": "the chord is done, its body has begun",
    "schedule_run": "the batch of a schedule is stored, and not committed",
    # Of publications.
    "publish_begins": "a publication's turn is taken",
    "publish_unrecorded": "the next call to the channel is not on record",
    "publish_unsent": "the call is on record, nothing sent",
    "publish_unheard": "the channel has answered, nothing of it is stored",
    "publish_heard": "the answer is stored, the next step is not begun",
    "publish_put_off": "it is let go, the next look is not sent",
    "publish_unended": "all is done at the channel, the publication has not ended",
    "publish_ended": "the publication has ended, its message is not acknowledged",
}


@dataclass(frozen=True)
class Rule:
    """Die at a point while working on a generation whose prompt contains `prompt`.

    At `finalise` it is a batch and its name instead, at `publish_...` a publication and its title,
    and at `schedule_run` the name of a batch alone.

    each: how often at most for the same generation. gather: so many deliveries of a process wait
    for one another at their points, and then die at once; no longer than `within_s`.
    """

    prompt: str
    each: int = 1
    gather: int = 1
    within_s: float = 1.0


def set_rule(folder: Path, point: str, rule: Rule | None) -> None:
    """Make a rule known to all processes, or `None`: take it back."""
    assert point in POINTS
    path = folder / "rules" / f"{point}.json"
    if rule is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(rule)))
    draft.rename(path)


# --- in the worker ------------------------------------------------------------------------------

_here = threading.local()  # the generation that a thread works on: id and prompt
_gathering = threading.Condition()
_gathered = 0


def _folder() -> Path:
    return Path(os.environ["PICTURE_CRASH_DIR"])


def _append(name: str, **fields: object) -> None:
    moment = {"at": time.monotonic(), "wall": time.time(), "pid": os.getpid()}
    line = json.dumps({**moment, **fields}) + "\n"
    file = os.open(_folder() / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _die() -> None:
    _append("kills")
    os.kill(os.getpid(), signal.SIGKILL)
    while True:  # the signal is for the process: this thread may go on for a moment
        time.sleep(1)


def at(point: str) -> None:
    """Die here if there is a rule that says so."""
    global _gathered
    generation_id, prompt = getattr(_here, "work", (None, ""))
    if generation_id is None:
        return
    try:
        rule = Rule(**json.loads((_folder() / "rules" / f"{point}.json").read_text()))
    except FileNotFoundError:
        return
    if rule.prompt not in prompt or not _claim(point, generation_id, rule.each):
        return
    with _gathering:
        _gathered += 1
        _gathering.notify_all()
        _gathering.wait_for(lambda: _gathered >= rule.gather, timeout=rule.within_s)
        _die()


def _claim(point: str, generation_id: str, each: int) -> bool:
    folder = _folder() / "claims" / point
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(each):
        with (
            contextlib.suppress(FileExistsError),
            (folder / f"{generation_id}.{number}").open("x") as claim,
        ):
            claim.write(str(os.getpid()))
            return True
    return False


class _Sink:
    """A file that is being downloaded."""

    def __init__(self, file):
        self._file = file

    def write(self, data):
        half = len(data) // 2
        self._file.write(data[:half])
        at("mid_download")
        return half + self._file.write(data[half:])

    def __getattr__(self, name):
        return getattr(self._file, name)


def _before(owner, name, point):
    plain = getattr(owner, name)

    def changed(*args, **kwargs):
        at(point)
        return plain(*args, **kwargs)

    setattr(owner, name, changed)


def _after(owner, name, point):
    plain = getattr(owner, name)

    def changed(*args, **kwargs):
        answer = plain(*args, **kwargs)
        at(point)
        return answer

    setattr(owner, name, changed)


def _install(**_):
    """Put the points in place, once everything is imported and nothing runs yet."""
    from celery.backends.redis import RedisBackend
    from django.core.files.storage import FileSystemStorage

    from batches import lifecycle
    from batches.models import Batch, GenerationQuerySet
    from batches.submission import ReadyBatch
    from generation.http import HttpClient
    from generation.providers.replicate import ReplicateProvider
    from worker import sweeper, tasks

    take_turn = GenerationQuerySet.take_turn

    def take_turn_traced(self, generation_id, lease_id, turn, *, holds_slot):
        work = take_turn(self, generation_id, lease_id, turn, holds_slot=holds_slot)
        if work is not None:
            _append("trace", generation=str(generation_id), submits=work.attempt is None)
            _here.work = (str(generation_id), str(work.generation.input.get("prompt", "")))
        return work

    GenerationQuerySet.take_turn = take_turn_traced

    sweep = sweeper.sweep

    def sweep_traced():
        done = sweep()
        if done:
            _append("trace", sweep=True)
        return done

    sweeper.sweep = sweep_traced

    _before(lifecycle, "begin_attempt", "before_attempt")
    _before(ReplicateProvider, "submit", "before_post")
    _after(ReplicateProvider, "submit", "after_post")
    _after(lifecycle, "record_submission", "after_record")
    _before(ReplicateProvider, "fetch", "mid_look")
    _after(lifecycle, "put_off", "after_put_off")
    _before(lifecycle, "begin_download", "before_download")
    _after(tasks, "_generate", "after_generate")
    _before(tasks, "_download", "download_begins")
    _before(lifecycle, "complete_generation", "stored")

    download = HttpClient.download

    def download_in_pieces(self, url, sink, **options):
        return download(self, url, _Sink(sink), **options)

    HttpClient.download = download_in_pieces

    save = FileSystemStorage._save

    def save_watched(self, name, content):
        name = save(self, name, content)
        if "thumbnail" not in name:
            at("half_stored")
        return name

    FileSystemStorage._save = save_watched

    part_return = RedisBackend.on_chord_part_return

    def part_return_watched(self, request, state, result, *args, **kwargs):
        if request.task == "work.download":
            at("chord_part")
        return part_return(self, request, state, result, *args, **kwargs)

    RedisBackend.on_chord_part_return = part_return_watched

    _install_in_publishing()

    finalise = tasks.finalise_batch.run

    def finalise_watched(batch_id):
        name = Batch.objects.filter(pk=batch_id).values_list("name", flat=True).first()
        _here.work = (batch_id, name or "")
        at("finalise")
        return finalise(batch_id)

    tasks.finalise_batch.run = finalise_watched

    submit = ReadyBatch.submit

    def submit_watched(self, **options):
        batch = submit(self, **options)
        _here.work = (batch.name, batch.name)
        at("schedule_run")
        return batch

    ReadyBatch.submit = submit_watched


def _install_in_publishing():
    from batches import publications

    take_turn = publications.take_turn

    def take_turn_traced(publication_id, turn):
        work = take_turn(publication_id, turn)
        if work is not None:
            _append("trace", publication=publication_id)
            _here.work = (publication_id, work.publication.title)
        return work

    def at_step(name, before, after):
        """A publication's claims count for each of its steps."""
        plain = getattr(publications, name)

        def changed(*, work, **kwargs):
            plain_work = _here.work
            step = kwargs.get("step") or kwargs["attempt"]
            name_of_step = getattr(step, "step", None) or getattr(step, "name", "look")
            _here.work = (f"{work.publication.pk}.{name_of_step}", work.publication.title)
            at(before)
            answer = plain(work=work, **kwargs)
            at(after)
            _here.work = plain_work
            return answer

        setattr(publications, name, changed)

    publications.take_turn = take_turn_traced
    _before(publications, "open_channel", "publish_begins")
    at_step("begin_attempt", "publish_unrecorded", "publish_unsent")
    at_step("record_step", "publish_unheard", "publish_heard")
    _after(publications, "put_off", "publish_put_off")
    _before(publications, "complete_publication", "publish_unended")
    _after(publications, "complete_publication", "publish_ended")


def _shift_clock(seconds: float) -> None:
    """Before anything reads the clock. What C code reads by itself stays as it is."""
    plain_time, plain = time.time, datetime.datetime

    class Kind(type):
        def __instancecheck__(cls, other):
            return isinstance(other, plain)

        def __subclasscheck__(cls, other):
            return issubclass(other, plain)

    class Shifted(plain, metaclass=Kind):
        @classmethod
        def now(cls, tz=None):
            return plain.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls):
            return plain.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(
                seconds=seconds
            )

    time.time = lambda: plain_time() + seconds
    datetime.datetime = Shifted


if __name__ == "__main__":
    if shift_s := float(os.environ.get("PICTURE_CLOCK_S", "0")):
        _shift_clock(shift_s)
    # Celery imports this module once more, by its name.
    sys.argv[0] = "celery"
    from celery.__main__ import main

    sys.exit(main())
else:
    from celery.signals import worker_init

    from picture.celery import app  # noqa: F401  (it is what `-A` looks for)

    # The tests import this module as well, and have workers of their own.
    if "PICTURE_CRASH_DIR" in os.environ:
        worker_init.connect(_install, weak=False)
