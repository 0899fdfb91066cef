"""What a delivery of a publication does, by what the channel says."""

import hashlib
import io
import threading
from dataclasses import dataclass, field
from datetime import timedelta

import PIL.Image
import pytest
from celery.exceptions import Retry
from django.db import IntegrityError, OperationalError, connections
from django.db.models import F
from django.db.models.functions import Now
from kombu.exceptions import OperationalError as BrokerError

from batches import publications, wake
from batches.models import (
    Alert,
    ChannelAccount,
    Image,
    Publication,
    PublicationAttempt,
)
from batches.publications import PublishRequest
from generation.provider import ErrorClass, Failure
from picture.celery import app
from publishing.channel import Done, Limits, NotThere, Pending, Step
from tests.factories import make_image
from tests.waiting import wait_until
from worker import heartbeat, publisher, sweeper
from worker.retries import DATABASE_RETRY_S

pytestmark = pytest.mark.django_db

UPLOAD = Step("upload", sends=True)
PRODUCT = Step("product")
PUBLISH = Step("publish", publishes=True)
LISTING = Step("listing", creates=False)
STEPS = ((UPLOAD, "upload_id"), (PRODUCT, "product_id"), (PUBLISH, "sent"), (LISTING, "listed"))
LOST = Failure(ErrorClass.TIMEOUT_UNKNOWN, "No answer came.")
AWAY = Failure(ErrorClass.PROVIDER_UNAVAILABLE, "Nobody is there.")
REFUSED = Failure(ErrorClass.AUTH, "The credentials are refused.")


@dataclass
class ScriptedChannel:
    """A channel that does what it is told, and remembers what it was asked.

    `answers` of a step are given one after the other, then it succeeds; an exception is raised,
    and a step that answers `LOST` takes effect all the same. `during` a step something may be done,
    once. `finds` are the answers to looks; then what was made is found.
    """

    limits: Limits = field(default_factory=lambda: Limits(60_000, 20_000, 60))
    answers: dict = field(default_factory=dict)
    finds: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    items: list = field(default_factory=list)
    made: dict = field(default_factory=dict)
    during: dict = field(default_factory=dict)

    def check(self):
        raise AssertionError

    def next_step(self, item):
        return next((step for step, name in STEPS if not item.remote_ids.get(name)), None)

    def take(self, step, item):
        self.calls.append(step.name)
        self.items.append(item)
        if act := self.during.pop(step.name, None):
            act()
        script = self.answers.get(step.name, [])
        answer = script.pop(0) if script else None
        if isinstance(answer, Exception):
            raise answer
        if answer is not None and answer is not LOST:
            return answer
        name = dict((one.name, name) for one, name in STEPS)[step.name]
        number = 1 + sum(one == step.name for one, _ in self.made)
        self.made[step.name, number] = done = Done(
            {name: f"{step.name}-{number}"}, url="https://shop.example/1" if step is LISTING else ""
        )
        return LOST if answer is LOST else done

    def find(self, step, item):
        self.calls.append(f"find {step.name}")
        if self.finds:
            return self.finds.pop(0)
        found = [done for (name, _), done in self.made.items() if name == step.name]
        return found[0] if found else NotThere()


@pytest.fixture
def channel(monkeypatch):
    scripted = ScriptedChannel()
    monkeypatch.setattr(publications, "open_channel", lambda account, *, http: scripted)
    return scripted


@pytest.fixture(autouse=True)
def delays(settings):
    settings.RETRY_DELAYS = [5.0, 15.0]
    settings.LEASE_SECONDS, settings.CHANNEL_SETTLE_SECONDS = 60, 10


def approved(image_format="png"):
    image = make_image(image_format=image_format)
    Image.objects.filter(pk=image.pk).update(review_status="approved", reviewed_at=Now())
    image.refresh_from_db()
    return image


def publish(image=None):
    image = image or approved()
    if not ChannelAccount.objects.filter(owner=image.owner).exists():
        set_anew(image.owner, token="secret")
    product_type = next(iter(publications.products.product_types("printify", {})))
    asked = PublishRequest("printify", product_type=product_type, title="A fox")
    (taken,) = publications.publish_images(
        owner_id=image.owner_id, image_ids=[image.pk], asked=asked
    )
    return taken.publication


def set_anew(owner, token="another"):
    publications.set_account(
        owner_id=owner.pk, channel="printify", credentials={"token": token}, options={}
    )


def deliver(publication):
    """One delivery by the turn that stands, however far off it is; the row after it."""
    publication.refresh_from_db()
    publisher.deliver(str(publication.pk), publication.turn)
    publication.refresh_from_db()
    return publication


def waits_s(publication):
    due = Publication.objects.annotate(wait=F("due_at") - Now()).get(pk=publication.pk)
    return due.wait.total_seconds()


def age(publication, seconds):
    """Let time pass since its calls."""
    attempts = PublicationAttempt.objects.filter(publication=publication)
    passed = timedelta(seconds=seconds)
    attempts.update(created_at=F("created_at") - passed, finished_at=F("finished_at") - passed)


def outcomes(publication):
    return [(one.number, one.step, one.outcome) for one in publication.attempts.order_by("number")]


def test_one_delivery_takes_every_step_and_each_call_is_on_record(channel):
    publication = deliver(publish())
    assert channel.calls == ["upload", "product", "publish", "listing"]
    assert publication.status == "published"
    assert publication.remote_ids == {
        "upload_id": "upload-1",
        "product_id": "product-1",
        "sent": "publish-1",
        "listed": "listing-1",
    }
    assert publication.remote_url == "https://shop.example/1"
    assert publication.published_at == publication.finished_at is not None
    assert publication.held_until is None
    assert outcomes(publication) == [
        (1, "upload", "succeeded"),
        (2, "product", "succeeded"),
        (3, "publish", "succeeded"),
    ]


def test_a_call_is_committed_before_it_is_made(channel):
    publication = publish()
    seen = []
    channel.during["product"] = lambda: seen.extend(outcomes(publication))
    deliver(publication)
    assert seen == [(1, "upload", "succeeded"), (2, "product", "open")]


def test_a_copy_of_a_message_does_nothing(channel):
    publication = publish()
    turn = publication.turn
    publisher.deliver(str(publication.pk), turn)
    calls = list(channel.calls)
    publisher.deliver(str(publication.pk), turn)
    assert channel.calls == calls


def test_of_two_deliveries_at_a_time_the_second_steps_aside(channel):
    publication = publish()
    turn = publication.turn
    channel.during["upload"] = lambda: publisher.deliver(str(publication.pk), turn)
    assert deliver(publication).status == "published"
    assert channel.calls.count("upload") == 1


def test_the_pictures_bytes_go_out_as_they_are_stored(channel):
    image = approved()
    deliver(publish(image))
    item = channel.items[0]
    with item.artwork.open() as file:
        data = file.read()
    assert hashlib.sha256(data).hexdigest() == item.artwork.sha256 == image.sha256
    assert (item.artwork.content_type, item.artwork.size_bytes) == ("image/png", len(data))
    assert (item.width_px, item.height_px) == (8, 6)
    assert item.artwork_url == ""


@pytest.mark.parametrize("image_format", ["webp", "avif"])
def test_other_formats_are_sent_as_png(image_format, channel):
    image = approved(image_format)
    sent = []

    def read():
        with channel.items[-1].artwork.open() as file:
            sent.append(file.read())

    channel.during["upload"] = read
    deliver(publish(image))
    artwork = channel.items[0].artwork
    assert (artwork.content_type, artwork.filename) == ("image/png", f"{image.pk}.png")
    assert (artwork.size_bytes, artwork.sha256) == (
        len(sent[0]),
        hashlib.sha256(sent[0]).hexdigest(),
    )
    with PIL.Image.open(io.BytesIO(sent[0])) as shown:
        assert (shown.format, shown.size) == ("PNG", (8, 6))
    with pytest.raises(OSError, match="No such file"):
        artwork.open()  # gone with the delivery


def test_a_channel_that_can_reach_us_is_given_an_address(channel, settings):
    settings.PUBLIC_URL = "https://picture.example"
    image = approved()
    deliver(publish(image))
    url = channel.items[0].artwork_url
    assert url.startswith(f"https://picture.example/api/v1/images/{image.pk}/file/?signature=")


@pytest.fixture
def conversions(monkeypatch):
    """The pictures that are converted, one by one."""
    done, write = [], publisher.images.write_png

    def counted(file, image_format, path):
        done.append(image_format)
        return write(file, image_format, path)

    monkeypatch.setattr(publisher.images, "write_png", counted)
    return done


def test_a_picture_is_converted_for_the_step_that_sends_it_only(channel, conversions):
    channel.answers = {"product": [AWAY], "publish": [AWAY, LOST]}
    publication = deliver(publish(approved("webp")))
    assert conversions == ["webp"]
    for _ in range(4):
        deliver(publication)
        age(publication, 60)
    assert publication.status == "published"
    assert conversions == ["webp"]
    names = {(one.artwork.filename, one.artwork.content_type) for one in channel.items}
    assert names == {(f"{publication.image_id}.png", "image/png")}


@pytest.mark.parametrize("why", ["stopped", "blocked", "used up"])
def test_a_picture_is_not_converted_while_nothing_may_be_sent(why, channel, conversions):
    publication = publish(approved("webp"))
    account = ChannelAccount.objects.get()
    if why == "stopped":
        publications.stop_account(account=account, error_class="auth")
    elif why == "blocked":
        publications.block_account(account=account, seconds=60)
    else:
        channel.limits = Limits(calls_per_minute=12, publications=40, publications_window_s=60)
        publications.take_allowance(account=account, limits=channel.limits, calls=3)
    deliver(publication)
    assert (channel.calls, conversions) == ([], [])


def test_a_lost_upload_is_looked_for_by_its_final_name(channel, conversions):
    channel.answers["upload"] = [LOST]
    publication = deliver(publish(approved("webp")))
    found = []
    channel.find, find = lambda step, item: found.append(item) or find(step, item), channel.find
    deliver(publication)
    assert [one.artwork.filename for one in found] == [f"{publication.image_id}.png"]
    assert conversions == ["webp"]


def test_a_picture_that_cannot_be_read_is_tried_again(channel):
    image = approved("webp")
    publication = publish(image)
    image.file.storage.delete(image.file.name)
    deliver(publication)
    assert (publication.status, publication.retry_count, channel.calls) == ("publishing", 1, [])


# --- failures -----------------------------------------------------------------------------------


def test_a_failure_that_may_pass_is_tried_again_later_and_ever_later(channel):
    channel.answers["product"] = [AWAY, AWAY]
    publication = deliver(publish())
    assert (publication.status, publication.retry_count) == ("publishing", 1)
    assert 4.5 < waits_s(publication) <= 6.25
    deliver(publication)
    assert 14.5 < waits_s(publication) <= 18.75
    assert deliver(publication).status == "published"
    assert [step for step in channel.calls if step == "product"] == ["product"] * 3
    assert [outcome for _, step, outcome in outcomes(publication) if step == "product"] == [
        "failed",
        "failed",
        "succeeded",
    ]
    assert "find product" not in channel.calls


def test_after_the_last_delay_it_has_failed(channel):
    channel.answers["product"] = [AWAY] * 3
    publication = publish()
    for _ in range(3):
        deliver(publication)
    assert (publication.status, publication.error_code) == (
        "publish_failed",
        "provider_unavailable",
    )
    assert publication.error_message == "Nobody is there."
    assert publication.remote_ids == {"upload_id": "upload-1"}


def test_a_step_that_succeeds_gives_the_next_all_its_retries(channel):
    channel.answers = {"upload": [AWAY, AWAY], "product": [AWAY, AWAY]}
    publication = publish()
    for _ in range(4):
        deliver(publication)
    assert publication.status == "publishing"
    assert deliver(publication).status == "published"


@pytest.mark.parametrize("error_class", publisher.PERMANENT)
def test_what_will_not_be_otherwise_next_time_fails_at_once(error_class, channel):
    channel.answers["product"] = [Failure(error_class, "No.")]
    publication = deliver(publish())
    assert (publication.status, publication.error_code, publication.error_message) == (
        "publish_failed",
        error_class,
        "No.",
    )
    assert outcomes(publication)[-1] == (2, "product", "failed")


def test_too_many_requests_hold_up_the_account_and_are_not_counted(channel):
    limited = Failure(ErrorClass.RATE_LIMITED, "Slower.", retry_after_s=40)
    channel.answers["product"] = [limited] * 9
    publication = publish()
    other = publish(approved_of(publication.owner))
    deliver(publication)
    assert (publication.status, publication.retry_count) == ("publishing", 0)
    assert 35 < waits_s(publication) <= 40
    calls = len(channel.calls)
    deliver(other)
    assert len(channel.calls) == calls
    assert 35 < waits_s(other) <= 60


def test_the_longer_it_takes_the_less_often_a_busy_channel_is_asked(channel):
    channel.answers["product"] = [Failure(ErrorClass.RATE_LIMITED, "Slower.", retry_after_s=1)] * 2
    publication = deliver(publish())
    assert 0 < waits_s(publication) <= 1.1
    Publication.objects.update(started_at=F("started_at") - timedelta(hours=1))
    ChannelAccount.objects.update(blocked_until=None)
    deliver(publication)
    assert 340 < waits_s(publication) <= 362
    # The account's others are held up no longer than the channel asks for.
    until = ChannelAccount.objects.get().blocked_until
    assert until < Publication.objects.get().due_at - timedelta(seconds=300)


def approved_of(owner):
    image = approved()
    Image.objects.filter(pk=image.pk).update(owner=owner)
    image.refresh_from_db()
    return image


def test_refused_credentials_hold_everything_until_there_are_new_ones(channel):
    channel.answers["product"] = [REFUSED]
    publication = publish()
    other = publish(approved_of(publication.owner))
    deliver(publication)
    assert publication.status == "publishing"
    assert ChannelAccount.objects.get().stopped_by == "auth"
    calls = len(channel.calls)
    deliver(other)
    assert len(channel.calls) == calls
    assert waits_s(other) > 250
    set_anew(publication.owner)
    assert ChannelAccount.objects.get().stopped_by == ""
    assert waits_s(publication) <= 0
    assert waits_s(other) <= 0
    assert deliver(publication).status == deliver(other).status == "published"


def test_old_credentials_that_are_refused_do_not_stop_new_ones(channel):
    publication = publish()
    channel.answers["upload"] = [REFUSED]
    channel.during["upload"] = lambda: set_anew(publication.owner)
    deliver(publication)
    assert ChannelAccount.objects.get().stopped_by == ""


def test_credentials_that_cannot_be_opened_stop_the_account(settings):
    publication = publish()
    settings.SECRET_KEY = "another key altogether, as after a move"
    deliver(publication)
    assert publication.status == "publishing"
    assert ChannelAccount.objects.get().stopped_by == "auth"


def test_what_waits_for_credentials_fails_in_the_end_with_that(channel):
    channel.answers["upload"] = [REFUSED]
    publication = deliver(publish())
    late(publication)
    deliver(publication)
    assert (publication.status, publication.error_code) == ("publish_failed", "auth")


def late(publication):
    passed = publications.DEADLINE + timedelta(seconds=1)
    Publication.objects.filter(pk=publication.pk).update(started_at=F("started_at") - passed)


def test_a_channel_that_is_never_done_is_asked_ever_less_often_and_then_given_up(channel):
    channel.answers["listing"] = [Pending(2.0)] * 5
    publication = deliver(publish())
    assert 1 < waits_s(publication) <= 2
    hour = timedelta(hours=1)
    Publication.objects.update(started_at=F("started_at") - hour)
    deliver(publication)
    assert 340 < waits_s(publication) <= 362
    late(publication)
    deliver(publication)
    assert (publication.status, publication.error_code) == ("publish_failed", "timeout_run")
    assert publication.remote_ids["product_id"] == "product-1"


# --- answers that are lost ----------------------------------------------------------------------


def test_a_call_whose_answer_is_lost_is_found_and_not_made_again(channel):
    channel.answers["product"] = [LOST]
    publication = deliver(publish())
    assert outcomes(publication)[-1] == (2, "product", "unknown")
    assert 4.5 < waits_s(publication) <= 6.25
    deliver(publication)
    assert publication.status == "published"
    assert publication.remote_ids["product_id"] == "product-1"
    assert channel.calls.count("product") == 1
    assert (2, "product", "succeeded") in outcomes(publication)


def test_a_call_that_did_not_arrive_is_made_again_once_that_is_certain(channel):
    channel.answers["product"] = [LOST]
    channel.finds = [NotThere(), NotThere()]
    publication = deliver(publish())
    deliver(publication)  # it may still be on its way
    assert channel.calls.count("product") == 1
    assert 0 < waits_s(publication) <= 10
    age(publication, 60)
    deliver(publication)
    assert channel.calls.count("product") == 2
    assert outcomes(publication)[1:3] == [(2, "product", "failed"), (3, "product", "succeeded")]


def test_a_call_that_cannot_be_looked_up_is_never_made_again(channel):
    channel.answers["product"] = [LOST]
    channel.finds = [AWAY] * 9
    publication = publish()
    for _ in range(4):
        deliver(publication)
        age(publication, 600)
    assert (publication.status, publication.error_code) == ("publish_failed", "outcome_unknown")
    assert outcomes(publication)[-1] == (2, "product", "unknown")
    # Nor when its owner has it tried again.
    channel.finds = []
    assert publications.retry_publication(publication=publication)
    assert deliver(publication).status == "published"
    assert channel.calls.count("product") == 1


def test_what_is_gone_at_the_channel_is_made_anew_when_its_owner_asks(channel):
    channel.answers["publish"] = [LOST]
    channel.finds = [Failure(ErrorClass.NOT_FOUND, "No such product.")]
    publication = deliver(publish())
    deliver(publication)
    assert (publication.status, publication.error_code) == ("publish_failed", "not_found")
    assert publications.retry_publication(publication=publication)
    channel.made.clear()
    age(publication, 60)
    assert deliver(publication).status == "published"
    assert channel.calls.count("product") == 2


def test_a_product_of_which_nobody_knows_is_looked_for_again_in_a_shop_that_was_not_there(channel):
    channel.answers["product"] = [LOST]
    channel.finds = [Failure(ErrorClass.NOT_FOUND, "No such shop.")]
    publication = deliver(publish())
    deliver(publication)
    assert publication.error_code == "not_found"
    assert publications.retry_publication(publication=publication)
    assert deliver(publication).status == "published"
    assert channel.calls.count("product") == 1


def test_an_error_that_nobody_understands_may_have_had_its_effect(channel):
    channel.answers["product"] = [Failure(ErrorClass.UNKNOWN, "500")]
    publication = deliver(publish())
    assert outcomes(publication)[-1] == (2, "product", "unknown")


def test_a_shop_that_was_away_for_a_while_gets_no_second_product(channel):
    channel.answers["listing"] = [Failure(ErrorClass.NOT_FOUND, "No such shop.")]
    publication = deliver(publish())
    assert (publication.status, publication.error_code) == ("publish_failed", "not_found")
    assert publications.retry_publication(publication=publication)
    assert deliver(publication).status == "published"
    assert channel.calls.count("product") == 1
    assert publication.remote_ids["product_id"] == "product-1"


# --- deliveries that die ------------------------------------------------------------------------


class Killed(BaseException):
    pass


def die():
    raise Killed


def expire(publication):
    Publication.objects.filter(pk=publication.pk).update(held_until=Now(), due_at=Now())


@pytest.fixture
def sent(monkeypatch):
    """The messages that are sent, as (name, args)."""
    messages = []
    monkeypatch.setattr(
        app, "send_task", lambda name, args=(), **_: messages.append((name, tuple(args)))
    )
    return messages


@pytest.mark.parametrize("step", ["upload", "product", "publish"])
def test_one_that_dies_before_its_call_makes_it_later_and_once(step, channel, sent):
    publication = publish()
    channel.during[step] = die
    with pytest.raises(Killed):
        deliver(publication)
    publication.refresh_from_db()
    assert outcomes(publication)[-1][1:] == (step, "open")
    expire(publication)
    sweeper.publish_due()
    assert sent[-1] == ("publish.deliver", (str(publication.pk), publication.turn))
    age(publication, 100)
    deliver(publication)
    assert publication.status == "published"
    assert all(number == 1 for _, number in channel.made)


@pytest.mark.parametrize("step", ["upload", "product", "publish"])
def test_one_that_dies_after_its_call_finds_what_it_made(step, channel, sent, monkeypatch):
    publication = publish()
    record, done = publications.record_step, []

    def dies(**kwargs):
        if not done and kwargs["attempt"].step == step:
            done.append(1)
            raise Killed
        return record(**kwargs)

    monkeypatch.setattr(publications, "record_step", dies)
    with pytest.raises(Killed):
        deliver(publication)
    expire(publication)
    sweeper.publish_due()
    deliver(publication)
    assert publication.status == "published"
    assert f"find {step}" in channel.calls
    assert all(number == 1 for _, number in channel.made)
    assert publication.crash_count == 0  # of a step that was taken nothing is held against it


def test_an_answer_that_comes_when_others_have_taken_over_is_kept(channel):
    publication = publish()

    def overtaken():
        Publication.objects.filter(pk=publication.pk).update(turn=F("turn") + 1)

    channel.during["product"] = overtaken
    deliver(publication)
    assert publication.status == "publishing"
    assert publication.remote_ids["product_id"] == "product-1"
    assert channel.calls == ["upload", "product"]


def test_a_look_that_comes_after_the_answer_lets_go(channel):
    channel.answers["product"] = [LOST]
    publication = deliver(publish())
    (attempt,) = publication.attempts.filter(step="product")

    def answered(step, item):
        done = Done({"product_id": "product-1"})
        work = publications.Work(publication, publication.image, None, attempt, 0, 60)
        assert publications.record_step(work=work, done=done, attempt=attempt)
        return done

    channel.find = answered
    deliver(publication)
    assert (publication.held_until, publication.crash_count) == (None, 0)
    assert deliver(publication).status == "published"


class Clock:
    """Stands still until it is moved; it has what is used here of `time`."""

    def __init__(self):
        self.now_s = 1_000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    """The one clock of deliveries and of what they are told about their calls."""
    stopped = Clock()
    monkeypatch.setattr(publications, "time", stopped)
    monkeypatch.setattr(publisher, "time", stopped)
    return stopped


@pytest.fixture
def held_up(clock, monkeypatch):
    """Has the next call wait for so many seconds between its record and the call itself."""
    begin, waits = publications.begin_attempt, []

    def begin_attempt(**kwargs):
        attempt = begin(**kwargs)
        clock.now_s += waits.pop() if waits else 0
        return attempt

    monkeypatch.setattr(publications, "begin_attempt", begin_attempt)
    return waits.append


# With a lease of a minute the margin is 10 seconds, with short ones less.
MARGINS = [(60, 10.0), (25, 10.0), (5, 2.0)]


@pytest.mark.parametrize(("lease_s", "margin_s"), MARGINS)
def test_one_that_was_held_up_before_its_call_does_not_make_it(
    lease_s, margin_s, channel, held_up, settings
):
    settings.LEASE_SECONDS = lease_s
    publication = publish()
    held_up(margin_s)
    deliver(publication)
    assert channel.calls == []
    assert outcomes(publication) == [(1, "upload", "failed")]
    assert (publication.status, publication.retry_count) == ("publishing", 0)
    assert waits_s(publication) <= publisher.MIN_LOOK_S
    assert deliver(publication).status == "published"
    assert channel.calls == ["upload", "product", "publish", "listing"]


@pytest.mark.parametrize(("lease_s", "margin_s"), MARGINS)
def test_one_that_was_held_up_for_a_moment_makes_its_call(
    lease_s, margin_s, channel, held_up, settings
):
    settings.LEASE_SECONDS = lease_s
    publication = publish()
    held_up(margin_s - 0.01)
    assert deliver(publication).status == "published"
    assert channel.calls.count("upload") == 1


@pytest.mark.parametrize(("lease_s", "margin_s"), MARGINS)
def test_a_call_may_be_sent_within_a_margin_of_its_record(lease_s, margin_s, clock, settings):
    settings.LEASE_SECONDS = lease_s
    begun_at_s = clock.now_s
    for passed_s, expected in ((0, True), (margin_s - 0.01, True), (margin_s, False)):
        clock.now_s = begun_at_s + passed_s
        assert publications.may_send(begun_at_s) is expected, passed_s


@pytest.fixture
def unsettled(channel):
    """Makes publications whose call came to nothing, as far as a look has shown.

    The call was given up, or its caller has died. Also tells in how many seconds to look again.
    """

    def make(how):
        publication = publish()
        if how == "given up":
            channel.answers["upload"] = [LOST]
            deliver(publication)
        else:
            channel.during["upload"] = die
            with pytest.raises(Killed):
                deliver(publication)
        channel.made.clear()
        deliver(publication)
        assert channel.calls == ["upload", "find upload"]
        return publication, waits_s(publication)

    return make


@pytest.mark.parametrize("how", ["given up", "died"])
def test_a_call_is_not_made_again_before_it_is_settled(how, channel, unsettled):
    publication, wait_s = unsettled(how)
    age(publication, wait_s - 5)
    deliver(publication)
    assert channel.calls == ["upload", "find upload", "find upload"]
    assert 0 < waits_s(publication) <= 5
    age(publication, 5)
    assert deliver(publication).status == "published"
    assert channel.calls.count("upload") == 2


def test_a_call_whose_caller_may_be_held_up_only_is_settled_a_lease_later(
    channel, unsettled, settings
):
    _, given_up_s = unsettled("given up")
    channel.calls.clear()
    Publication.objects.all().delete()
    _, died_s = unsettled("died")
    assert died_s - given_up_s == pytest.approx(settings.LEASE_SECONDS, abs=1)


def test_what_keeps_killing_its_worker_is_given_up(channel, sent):
    publication = publish()
    for crashes in range(1, sweeper.POISON_AFTER + 1):
        channel.during["upload"] = die
        with pytest.raises(Killed):
            deliver(publication)
        expire(publication)
        age(publication, 600)
        sweeper.publish_due()
        publication.refresh_from_db()
        assert publication.crash_count == crashes
    assert (publication.status, publication.error_code) == ("publish_failed", "poison")
    assert Alert.objects.get().code == "poison"
    assert outcomes(publication)[-1][2] == "unknown"


def test_a_lost_message_is_sent_again_and_is_no_crash(channel, sent):
    publication = publish()
    for _ in range(3):
        Publication.objects.update(due_at=Now())
        sweeper.publish_due()
    publication.refresh_from_db()
    assert publication.crash_count == 0
    assert sent.count(("publish.deliver", (str(publication.pk), publication.turn))) == 3
    sweeper.publish_due()  # not before that one is lost too
    assert len([name for name, _ in sent if name == "publish.deliver"]) == 3


def test_messages_do_not_pile_up_while_nobody_takes_them(
    channel, monkeypatch, django_capture_on_commit_callbacks
):
    kept = []

    def keep(*args, expires=None, **options):
        kept.append(expires)

    monkeypatch.setattr(app, "send_task", keep)
    monkeypatch.setattr(publisher.deliver, "apply_async", keep)
    channel.answers["product"] = [AWAY]
    publication = publish()
    sweeper.publish_due()
    with django_capture_on_commit_callbacks(execute=True):
        deliver(publication)
    assert publication.status == "publishing"
    assert kept == [900, 900]


def test_without_a_broker_nothing_is_moved(channel, monkeypatch):
    publication = publish()

    def fail(*args, **kwargs):
        raise BrokerError

    monkeypatch.setattr(app, "send_task", fail)
    with pytest.raises(BrokerError):
        sweeper.publish_due()
    assert waits_s(publication) <= 0


@pytest.mark.django_db(transaction=True)
def test_a_delivery_is_prolonged_while_it_lasts(channel, settings, monkeypatch):
    monkeypatch.setattr(heartbeat, "interval_s", lambda: 0.02)
    monkeypatch.setattr(heartbeat, "_pid", 0)
    publication = publish()

    def is_held():
        return Publication.objects.filter(held_until__gt=Now(), due_at__gt=Now()).exists()

    def long_call():
        for _ in range(3):
            expire(publication)
            wait_until(is_held, timeout_s=10)

    channel.during["product"] = long_call
    assert deliver(publication).status == "published"
    publications.renew({publication.pk: publication.turn})
    publication.refresh_from_db()
    assert publication.held_until is None
    monkeypatch.setattr(heartbeat, "interval_s", lambda: 3_600)
    connections.close_all()


def test_a_database_that_goes_away_meanwhile_puts_it_off(channel, monkeypatch):
    publication = publish()
    turn, asked = publication.turn, []

    def retry(args=None, countdown=None, **options):
        asked.append((args, countdown))
        return Retry(when=countdown)

    def gone():
        raise OperationalError("terminating connection")

    monkeypatch.setattr(publisher.deliver, "retry", retry)
    channel.during["upload"] = gone
    with pytest.raises(Retry):
        deliver(publication)
    publication.refresh_from_db()
    # The turn in the message is over: one that came with it again would do nothing.
    assert publication.turn == turn + 1
    assert asked == [((str(publication.pk), publication.turn), DATABASE_RETRY_S)]
    assert outcomes(publication) == [(1, "upload", "open")]
    age(publication, 600)
    assert deliver(publication).status == "published"
    assert all(number == 1 for _, number in channel.made)


# --- what is gone meanwhile ---------------------------------------------------------------------


def test_no_image_goes_while_it_is_published():
    image = approved()
    publish(image)
    with pytest.raises(IntegrityError, match="publication_of_an_image"):
        Image.objects.filter(pk=image.pk).delete()


def test_without_its_product_type_nothing_is_made(channel):
    publication = publish()
    Publication.objects.update(product_type="gone")
    deliver(publication)
    assert channel.items[0].product == {}
    assert channel.items[0].product_type == "gone"


def test_what_is_made_is_published_without_its_product_type(channel):
    channel.answers["publish"] = [AWAY]
    publication = deliver(publish())
    Publication.objects.update(product_type="gone")
    assert deliver(publication).status == "published"
    assert channel.calls.count("product") == 1


# --- limits -------------------------------------------------------------------------------------


def test_an_account_is_never_used_beyond_its_limits(channel):
    channel.limits = Limits(calls_per_minute=60_000, publications=8, publications_window_s=600)
    first = publish()
    rest = [publish(approved_of(first.owner)) for _ in range(4)]
    for publication in (first, *rest):
        deliver(publication)
    assert channel.calls.count("publish") == 2  # a quarter at once
    waiting = [one for one in rest if one.status == "publishing"]
    assert len(waiting) == 3
    assert all(one.remote_ids["product_id"] and one.retry_count == 0 for one in waiting)
    # 100 seconds for each that waits, spread over the turns of all of them.
    assert all(90 < waits_s(one) < 510 for one in waiting)
    passed = timedelta(seconds=101)
    ChannelAccount.objects.update(refilled_at=F("refilled_at") - passed)
    for publication in waiting:
        deliver(publication)
    assert channel.calls.count("publish") == 3


def test_what_waits_for_one_account_does_not_come_back_all_at_once(channel):
    channel.limits = Limits(calls_per_minute=60_000, publications=8, publications_window_s=600)
    publication = publish()
    others = [publish(approved_of(publication.owner)) for _ in range(20)]
    ChannelAccount.objects.update(publish_tokens=0, call_tokens=9_000, refilled_at=Now())
    for one in (publication, *others):
        deliver(one)
    waits = sorted(waits_s(one) for one in (publication, *others))
    # 100 seconds for each of 21, within 600 seconds at most.
    assert waits[0] > 60
    assert 300 < waits[-1] < 701
    assert all(sum(start <= one < start + 20 for one in waits) < 10 for start in waits)


def test_nobody_waits_longer_for_others_than_a_look(channel, monkeypatch):
    channel.limits = Limits(calls_per_minute=60_000, publications=1, publications_window_s=60)
    monkeypatch.setattr(publications, "waiting_count", lambda account: 1_000)
    monkeypatch.setattr(publisher.random, "random", lambda: 1.0)
    publication = publish()
    ChannelAccount.objects.update(publish_tokens=0, call_tokens=9_000, refilled_at=Now())
    deliver(publication)
    assert 600 < waits_s(publication) < 700


def test_calls_are_counted_as_well(channel):
    channel.limits = Limits(calls_per_minute=24, publications=1_000, publications_window_s=60)
    publication = deliver(publish())  # a quarter: six calls, two steps
    assert channel.calls == ["upload", "product"]
    assert 0 < waits_s(publication) < 20


# --- room ---------------------------------------------------------------------------------------


def test_what_there_is_no_room_for_waits_and_holds_nothing(channel, monkeypatch, sent):
    publication = publish()
    monkeypatch.setattr(publisher, "_room", threading.BoundedSemaphore(1))
    publisher._room.acquire()
    sweeper.publish_due()
    deliver(publication)
    assert (channel.calls, publication.turn, publication.held_until) == ([], 0, None)
    assert waits_s(publication) <= 0
    publisher._room.release()
    other = publish(approved_of(publication.owner))
    sent.clear()
    assert deliver(other).status == "published"
    # Whoever has made room sends for the next.
    assert ("publish.deliver", (str(publication.pk), 0)) in sent


def test_every_name_that_is_sent_is_registered():
    app.loader.import_default_modules()
    assert {wake.PUBLISH, "publish.deliver"} <= app.tasks.keys()
    route = app.amqp.router.route({}, "publish.deliver")
    assert route["queue"].name == "generate"


def test_a_look_that_only_notes_something_is_followed_by_another_later(channel):
    channel.answers["listing"] = [Done({"unlisted_since": "1"})]
    publication = deliver(publish())
    assert (publication.status, channel.calls.count("listing")) == ("publishing", 1)
    assert 4 < waits_s(publication) <= 5
    assert deliver(publication).status == "published"


def test_of_large_pictures_one_is_sent_at_a_time(channel, monkeypatch):
    monkeypatch.setattr(publisher, "LARGE_BYTES", 10)
    first = publish()
    second = publish(approved_of(first.owner))
    seen = []
    channel.during["upload"] = lambda: seen.append(deliver(second).status)
    deliver(first)
    assert (first.status, seen) == ("published", ["publishing"])
    assert second.attempts.count() == 0
    assert deliver(second).status == "published"


def test_a_large_picture_that_waits_takes_nothing_of_the_limits(channel, monkeypatch):
    monkeypatch.setattr(publisher, "LARGE_BYTES", 10)
    first = publish()
    second = publish(approved_of(first.owner))
    seen = []

    def meanwhile():
        before = ChannelAccount.objects.values().get()
        deliver(second)
        seen.append(ChannelAccount.objects.values().get() == before)

    channel.during["upload"] = meanwhile
    deliver(first)
    assert seen == [True]


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_only_what_sends_a_large_picture_waits_for_others(image_format, channel, monkeypatch):
    monkeypatch.setattr(publisher, "LARGE_BYTES", 10)
    channel.answers["product"] = [AWAY]
    uploaded = deliver(publish(approved(image_format)))
    seen = []
    channel.during["upload"] = lambda: seen.append(deliver(uploaded).status)
    deliver(publish(approved_of(uploaded.owner)))
    assert seen == ["published"]


def test_what_may_become_large_by_being_converted_is_sent_alone(channel, monkeypatch):
    image = approved("webp")
    Image.objects.filter(pk=image.pk).update(width=2_000, height=2_000)
    first = publish(image)
    second = publish(approved_of(first.owner))
    Image.objects.filter(pk=second.image_id).update(size_bytes=publisher.LARGE_BYTES + 1)
    channel.during["upload"] = lambda: deliver(second)
    deliver(first)
    assert (first.status, second.attempts.count()) == ("published", 0)


def test_with_s3_a_channel_is_given_an_address_of_the_bucket(channel, settings, monkeypatch):
    asked = []

    class Bucket:
        def url(self, name, *, expire):
            asked.append((name, expire))
            return f"https://bucket.example/{name}?signed"

    settings.STORAGE_BUCKET = "pictures"
    monkeypatch.setattr(publisher, "default_storage", Bucket())
    image = approved()
    deliver(publish(image))
    assert channel.items[0].artwork_url == f"https://bucket.example/{image.file.name}?signed"
    assert asked == [(image.file.name, 300)]
