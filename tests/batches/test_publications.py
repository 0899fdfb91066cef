"""Publications as rows: asked for once, however many ask, and held by one."""

import time
import uuid
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from batches import invariants, publications
from batches.curation import Action, Selection, act_on_images
from batches.intake import Refused
from batches.models import (
    ChannelAccount,
    Image,
    Publication,
    PublicationAttempt,
)
from batches.publications import AccountInUse, Outcome, PublishRequest
from publishing.channel import Done, Limits, Step
from tests.factories import approve, make_generation, make_image, make_publication, make_user
from tests.support import at_once

WANTED = PublishRequest("printify", "mug", "A fox {index}")
LIMITS = Limits(calls_per_minute=120, publications=40, publications_window_s=600)


def approved(owner, count=1):
    return approve(*[make_image(make_generation(owner)) for _ in range(count)])


def make_account(owner):
    account, _ = publications.set_account(
        owner_id=owner.pk, channel="printify", credentials={"token": "t"}, options={}
    )
    return account


def publish(owner, images, asked=WANTED):
    return publications.publish_images(
        owner_id=owner.pk, image_ids=[image.pk for image in images], asked=asked
    )


@pytest.fixture
def owner(db):
    return make_user()


@pytest.fixture
def account(owner):
    return make_account(owner)


@pytest.fixture
def publication(owner, account):
    ((publication, _),) = publish(owner, approved(owner))
    return publication


def broken():
    return {
        f"{finding.rule}: {finding.examples}"
        for finding in invariants.check()
        if finding.broken and finding.code in ("I1", "I2")
    }


# --- asking -------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_of_many_who_publish_the_same_at_once_one_makes_a_row(owner, account):
    images = approved(owner, 3)
    backwards = images[::-1]
    answers = at_once(
        *(lambda order=order: publish(owner, order) for order in (images, backwards) * 3)
    )
    assert Publication.objects.count() == 3
    outcomes = [taken.outcome for answer in answers for taken in answer]
    assert outcomes.count(Outcome.ACCEPTED) == 3
    assert outcomes.count(Outcome.EXISTS) == 15
    assert all(
        taken.publication.image_id == image.pk
        for answer, order in zip(answers, (images, backwards) * 3, strict=True)
        for taken, image in zip(answer, order, strict=True)
    )


@pytest.mark.django_db(transaction=True)
def test_of_many_who_retry_at_once_one_does(owner, publication):
    fail(publication)
    answers = at_once(
        *[lambda: publications.retry_publication(publication=publication)] * 3,
        *[lambda: publish(owner, [publication.image])] * 3,
    )
    done = [one for one in answers if one is True]
    retried = [one for one in answers if isinstance(one, list) and one[0].outcome == "retried"]
    assert len(done) + len(retried) == 1
    publication.refresh_from_db()
    assert (publication.status, publication.turn) == ("publishing", 1)


def fail(publication, code="auth"):
    assert publications.fail_publication(
        publication_id=publication.pk, turn=publication.turn, code=code, message="No."
    )


@pytest.mark.django_db(transaction=True)
def test_an_account_is_never_deleted_under_what_is_being_published(owner):
    for _ in range(5):
        account = make_account(owner)
        (image,) = approved(owner)
        published, deleted = at_once(
            lambda image=image: publish(owner, [image]),
            lambda account=account: publications.delete_account(account=account),
            may_raise=(Refused, AccountInUse),
        )
        assert isinstance(published, Refused) != isinstance(deleted, AccountInUse)
        assert not broken()
        Publication.objects.update(status="published", published_at=Now(), finished_at=Now())


@pytest.mark.django_db(transaction=True)
def test_an_image_is_never_published_once_it_is_rejected(owner, account):
    for _ in range(5):
        (image,) = approved(owner)
        published, (reviewed,) = at_once(
            partial(publish, owner, [image]),
            partial(
                act_on_images,
                owner_id=owner.pk,
                selection=Selection(ids=[image.pk]),
                action=Action.REJECT,
            ),
            may_raise=(Refused,),
        )
        image.refresh_from_db()
        if isinstance(published, Refused):
            assert [problem.code for problem in published.problems] == ["not_approved"]
            assert (reviewed.outcome, image.review_status) == ("done", "rejected")
            assert not Publication.objects.filter(image=image).exists()
        else:
            assert [one.outcome for one in published] == [Outcome.ACCEPTED]
            assert (reviewed.outcome, reviewed.code) == ("refused", "being_published")
            assert image.review_status == "approved"


def test_the_database_itself_refuses_a_second_row(publication):
    with pytest.raises(IntegrityError), transaction.atomic():
        make_publication(publication.image)


def test_titles_are_numbered(owner, account):
    taken = publish(owner, approved(owner, 2))
    assert [one.publication.title for one in taken] == ["A fox 1", "A fox 2"]


@pytest.mark.parametrize(
    ("title", "shown"),
    [("{index}/{index}", "1/1"), ("{{index}}", "{index}"), ("a {{{index}}} b", "a {1} b")],
)
def test_braces_of_a_title_are_doubled(title, shown, owner, account):
    ((publication, _),) = publish(owner, approved(owner), PublishRequest("printify", "mug", title))
    assert publication.title == shown


@pytest.mark.parametrize(
    "title", ["{prompt}", "{", "a } b", "{index", "{index!r}", "{index:}", "{}", "{0}", "{Index}"]
)
def test_a_title_has_no_other_placeholder(title, owner, account):
    with pytest.raises(Refused) as refused:
        publish(owner, approved(owner), PublishRequest("printify", "mug", title))
    (problem,) = refused.value.problems
    assert (problem.field, problem.code) == ("title", "unknown_placeholder")
    assert not Publication.objects.exists()


def test_nothing_is_stored_when_anything_is_refused(owner, account):
    good, foreign = approved(owner)[0], approved(make_user())[0]
    with pytest.raises(Image.DoesNotExist):
        publish(owner, [good, foreign])
    Image.objects.filter(pk=good.pk).update(review_status="pending")
    with pytest.raises(Refused) as refused:
        publish(owner, [good], PublishRequest("printify", "spaceship", "A fox"))
    assert {problem.code for problem in refused.value.problems} == {
        "unknown_product_type",
        "not_approved",
    }
    assert not Publication.objects.exists()


# --- asking again -------------------------------------------------------------------------------

OTHER = PublishRequest("printify", "mug", "Another fox", tags=["fox"])


def left(publication, code="auth", **ids):
    """One that failed, with what it has at the channel."""
    Publication.objects.filter(pk=publication.pk).update(remote_ids=ids)
    fail(publication, code)


def unsure(publication, step="product"):
    work = publications.take_turn(str(publication.pk), publication.turn)
    publications.begin_attempt(work=work, step=Step(step))
    publication.refresh_from_db()


def test_what_is_made_and_cannot_be_changed_is_retried_as_it_is_only(owner, account, publication):
    left(publication, product_id="p")
    with pytest.raises(Refused) as refused:
        publish(owner, [*approved(owner), publication.image], OTHER)
    (problem,) = refused.value.problems
    assert (problem.field, problem.code) == ("image_ids.1", "already_made")
    assert str(publication.pk) in problem.detail
    assert Publication.objects.count() == 1
    publication.refresh_from_db()
    assert (publication.status, publication.title) == ("publish_failed", "A fox 1")
    assert publish(owner, [publication.image])[0].outcome == "retried"


@pytest.mark.parametrize("change", ["product_type", "title", "description", "tags", "price_usd"])
def test_any_difference_counts(change, owner, account, publication):
    left(publication, product_id="p")
    other = {
        "product_type": "poster",
        "title": "B",
        "description": "B",
        "tags": ["b"],
        "price_usd": Decimal("3.50"),
    }
    with pytest.raises(Refused):
        publish(owner, [publication.image], replace(WANTED, **{change: other[change]}))


def test_what_may_have_been_made_cannot_be_changed_either(owner, account, publication):
    unsure(publication)
    fail(publication)
    with pytest.raises(Refused) as refused:
        publish(owner, [publication.image], OTHER)
    assert refused.value.problems[0].code == "already_made"


@pytest.mark.parametrize("step", ["upload", None])
def test_what_was_never_made_is_made_as_it_is_asked_for_now(step, owner, account, publication):
    if step:
        unsure(publication, step)
    left(publication, shop_id="7", upload_id="u")
    ((again, outcome),) = publish(owner, [publication.image], OTHER)
    assert (outcome, again.title, again.tags) == ("retried", "Another fox", ["fox"])
    assert again.remote_ids == {"shop_id": "7"}


def test_at_a_channel_that_changes_products_it_is_set_anew(owner):
    publications.set_account(
        owner_id=owner.pk, channel="shopify", credentials={"access_token": "t"}, options={}
    )
    wanted = replace(WANTED, channel="shopify")
    made, unknown, same = [
        publish(owner, [image], wanted)[0].publication for image in approved(owner, 3)
    ]
    left(made, product_id="p", published="1")
    unsure(unknown)
    fail(unknown)
    left(same, product_id="q", published="1")
    for one in (made, unknown):
        publish(owner, [one.image], replace(OTHER, channel="shopify"))
        one.refresh_from_db()
        assert (one.status, one.title, one.remote_ids) == (
            "publishing",
            "Another fox",
            {"changed": "1"},
        )
        assert publications.take_turn(str(one.pk), one.turn).attempt is None
    publish(owner, [same.image], wanted)
    same.refresh_from_db()
    assert same.remote_ids == {"product_id": "q"}
    assert not broken()


@pytest.mark.parametrize("ask", ["retry", "again"])
def test_a_product_that_was_not_there_is_looked_for_before_another_is_made(
    ask, owner, account, publication
):
    work = publications.take_turn(str(publication.pk), 0)
    attempt = publications.begin_attempt(work=work, step=Step("product"))
    publications.record_step(work=work, done=Done({"product_id": "p"}), attempt=attempt)
    publications.begin_attempt(work=work, step=Step("publish"))
    fail(work.publication, "not_found")
    if ask == "retry":
        assert publications.retry_publication(publication=publication)
    else:
        publish(owner, [publication.image])
    publication.refresh_from_db()
    assert (publication.remote_ids, publication.attempt_count) == ({}, 3)
    work = publications.take_turn(str(publication.pk), publication.turn)
    assert (work.attempt.step, work.attempt.outcome, work.attempt.number) == (
        "product",
        "unknown",
        3,
    )
    assert not broken()
    # Which finds it.
    assert publications.record_step(work=work, done=Done({"product_id": "p"}), attempt=work.attempt)
    assert not broken()


# --- holding ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_of_many_copies_of_a_message_one_takes_the_turn(publication):
    works = at_once(*[lambda: publications.take_turn(str(publication.pk), 0)] * 6)
    (work,) = [one for one in works if one is not None]
    assert work.turn == 1
    assert publications.take_turn(str(publication.pk), 0) is None


@pytest.mark.django_db(transaction=True)
def test_of_many_sweeps_at_once_one_sends_for_it(publication):
    due = at_once(*[lambda: publications.take_due(10)] * 4)
    assert sum(map(len, due)) == 1


def test_one_that_was_overtaken_writes_nothing_more(publication):
    late = publications.take_turn(str(publication.pk), 0)
    publications.take_turn(str(publication.pk), 1)
    before = Publication.objects.values().get()
    assert not publications.put_off(work=late, seconds=5)
    assert not publications.complete_publication(work=late)
    assert publications.begin_attempt(work=late, step=Step("product")) is None
    assert not publications.record_step(work=late, done=Done({"product_id": "p"}))
    assert not publications.fail_publication(
        publication_id=publication.pk, turn=late.turn, code="auth", message="No."
    )
    publications.renew({publication.pk: late.turn})
    assert Publication.objects.values().get() == before


def test_one_whose_hold_was_taken_away_begins_no_call(publication):
    work = publications.take_turn(str(publication.pk), 0)
    Publication.objects.update(due_at=Now())
    publications.take_due(10)  # its message is not taken yet
    assert publications.begin_attempt(work=work, step=Step("product")) is None
    publications.renew({publication.pk: work.turn})
    publication.refresh_from_db()
    assert (publication.held_until, publication.crash_count) == (None, 1)


def test_the_answer_to_a_call_is_kept_once(publication):
    work = publications.take_turn(str(publication.pk), 0)
    attempt = publications.begin_attempt(work=work, step=Step("product"))
    with pytest.raises(IntegrityError), transaction.atomic():
        publications.begin_attempt(work=work, step=Step("product"))
    assert publications.record_step(work=work, done=Done({"product_id": "p"}), attempt=attempt)
    assert not publications.record_step(work=work, done=Done({"product_id": "q"}), attempt=attempt)
    publication.refresh_from_db()
    assert publication.remote_ids == {"product_id": "p"}
    assert not broken()


def test_what_ends_with_a_call_under_way_leaves_it_to_be_looked_up(publication):
    work = publications.take_turn(str(publication.pk), 0)
    publications.begin_attempt(work=work, step=Step("product"))
    fail(work.publication)
    assert PublicationAttempt.objects.get().outcome == "unknown"
    publications.retry_publication(publication=publication)
    again = publications.take_turn(str(publication.pk), 2)
    assert again.attempt == PublicationAttempt.objects.get()
    assert not broken()


def test_a_long_address_is_not_kept(publication):
    work = publications.take_turn(str(publication.pk), 0)
    assert publications.record_step(work=work, done=Done(url="https://a.example/" + "x" * 500))
    publication.refresh_from_db()
    assert publication.remote_url == ""


# --- limits -------------------------------------------------------------------------------------


def allowed(account, calls=1, **options):
    return publications.take_allowance(account=account, limits=LIMITS, calls=calls, **options)


@pytest.mark.django_db(transaction=True)
def test_no_more_is_taken_of_a_limit_than_there_is(account):
    begun_s = time.monotonic()
    given = at_once(*[lambda: allowed(account)] * 8, *[lambda: allowed(account, 5)] * 6)
    elapsed_s = time.monotonic() - begun_s
    taken = sum(one.is_given for one in given[:8]) + 5 * sum(one.is_given for one in given[8:])
    assert 26 <= taken <= 30 + 1.5 * elapsed_s  # a quarter of 120, and 90 a minute come back


def test_what_is_used_up_comes_back_over_its_window(account):
    assert allowed(account, 30).is_given
    refused = allowed(account, 3)
    assert not refused.is_given
    assert 1.5 < refused.wait_s <= 2  # 90 a minute
    ChannelAccount.objects.update(refilled_at=F("refilled_at") - timedelta(seconds=2))
    assert allowed(account, 3).is_given


def test_within_a_window_no_more_is_taken_than_the_limit(account):
    taken, begun_s = 0, time.monotonic()
    for _ in range(60):  # seconds
        while allowed(account).is_given:
            taken += 1
        second = timedelta(seconds=1)
        ChannelAccount.objects.update(refilled_at=F("refilled_at") - second)
    elapsed_s = time.monotonic() - begun_s
    # What the test itself takes is beside those seconds, and brings 90 a minute.
    assert 110 <= taken <= 120 + 1.5 * elapsed_s


def test_publications_are_counted_beside_calls(account):
    for _ in range(10):
        assert allowed(account, publications=1).is_given
    refused = allowed(account, publications=1)
    assert not refused.is_given
    assert 15 < refused.wait_s <= 20
    assert allowed(account).is_given


def test_a_block_only_grows(account):
    publications.block_account(account=account, seconds=60)
    publications.block_account(account=account, seconds=5)
    assert 50 < allowed(account).wait_s <= 60
    publications.set_account(
        owner_id=account.owner_id, channel="printify", credentials={"token": "u"}, options={}
    )
    assert allowed(account).is_given


def test_a_stopped_account_allows_nothing(account):
    publications.stop_account(account=account, error_class="auth")
    refused = allowed(account)
    assert (refused.is_given, refused.stopped_by) == (False, "auth")


def test_how_many_of_an_account_wait_is_told_by_one_bounded_query(owner, account, publication):
    other = make_user()
    make_account(other)
    publish(other, approved(other, 2))
    publish(owner, approved(owner, 3))
    Publication.objects.filter(pk=publication.pk).update(
        status="published", published_at=Now(), finished_at=Now()
    )
    with CaptureQueriesContext(connection) as queries:
        assert publications.waiting_count(account) == 3
    assert len(queries) == 1
    for term in ("ORDER BY due_at LIMIT 1000", "status = 'publishing'"):
        assert term in queries[0]["sql"]


# --- what must hold -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"started_at": F("started_at") - timedelta(days=2)}, "overdue"),
        ({"channel": "shopify"}, "without an account"),
        (
            {"status": "published", "finished_at": Now(), "held_until": Now()},
            "published at no time",
        ),
    ],
)
def test_what_must_not_be_is_found(change, told, publication):
    assert not broken()
    Publication.objects.update(**change)
    assert any(told in one for one in broken())


@pytest.mark.parametrize(
    ("attempts", "told"),
    [
        ([(2, "product", "open")], "number"),
        ([(1, "product", "unknown"), (2, "product", "open")], "begun before"),
        ([(1, "product", "succeeded"), (2, "product", "succeeded")], "created twice"),
    ],
)
def test_calls_that_must_not_be_are_found(attempts, told, publication):
    Publication.objects.update(attempt_count=len(attempts))
    PublicationAttempt.objects.bulk_create(
        PublicationAttempt(publication=publication, number=number, step=step, outcome=outcome)
        for number, step, outcome in attempts
    )
    assert any(told in one for one in broken())


def test_what_a_channel_has_done_once_more_is_no_second_product(publication):
    # The picture of a product could not be processed, and it is set again.
    steps = ["product", "publish", "product", "publish"]
    Publication.objects.update(attempt_count=len(steps), remote_ids={"redone": "1"})
    PublicationAttempt.objects.bulk_create(
        PublicationAttempt(publication=publication, number=number, step=step, outcome="succeeded")
        for number, step in enumerate(steps, 1)
    )
    assert not broken()
    PublicationAttempt.objects.filter(number=2).update(step="product")
    assert any("created twice" in one for one in broken())


def test_what_is_due_is_found_by_its_index(owner, account, publication):
    row = Publication.objects.values().get()
    Publication.objects.bulk_create(
        Publication(
            **{
                **row,
                "id": uuid.uuid4(),
                "image_id": None,
                "status": "published",
                "published_at": row["created_at"],
                "finished_at": row["created_at"],
            }
        )
        for _ in range(500)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE batches_publication")
        with CaptureQueriesContext(connection) as queries:
            assert len(publications.take_due(50)) == 1
        (statement,) = queries
        cursor.execute(f"EXPLAIN {statement['sql']}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Index Scan using publication_due" in plan
