"""Accounts at channels, and publications, over HTTP."""

import json
import logging
import uuid

import pytest
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from batches import publications
from batches.api.waiting import WAIT_HEADER
from batches.models import ChannelAccount, Image, Publication, PublicationAttempt
from generation.provider import ErrorClass, Failure
from publishing.channel import Account
from tests.batches.api.support import client_of, ids, invalid, problem, refused
from tests.factories import approve, make_batch, make_generation, make_image, make_user

pytestmark = pytest.mark.django_db

CHANNELS = "/api/v1/channels/"
PRINTIFY = f"{CHANNELS}printify/"
SHOPIFY = f"{CHANNELS}shopify/"
PUBLICATIONS = "/api/v1/publications/"
TOKEN = "printify-token-that-is-secret-1234"
PRINTIFY_ACCOUNT = {"credentials": {"token": TOKEN}, "options": {"shop_id": "77"}}
SHOPIFY_ACCOUNT = {
    "credentials": {"access_token": "shpat_secret_of_the_shop"},
    "options": {"shop": "foxes.myshopify.com"},
}
WANTED = {"channel": "printify", "product_type": "t-shirt", "title": "A fox"}


def approved(owner, count=1):
    return approve(*[make_image(make_generation(owner)) for _ in range(count)])


@pytest.fixture
def account(api):
    assert api.put(PRINTIFY, PRINTIFY_ACCOUNT).status_code == 201
    return ChannelAccount.objects.get(channel="printify")


@pytest.fixture
def image(owner):
    (image,) = approved(owner)
    return image


def publish_path(image):
    return f"/api/v1/images/{image.pk}/publish/"


def publish(api, image, **changes):
    answer = api.post(publish_path(image), {**WANTED, **changes})
    assert answer.status_code == 202, answer.content
    return Publication.objects.get(pk=answer.json()["id"])


def end(publication, **fields):
    ended = {"status": "published", "finished_at": Now(), "published_at": Now(), **fields}
    Publication.objects.filter(pk=publication.pk).update(**ended)


def fail(publication, **fields):
    end(publication, status="publish_failed", error_code="auth", published_at=None, **fields)


# --- channels and accounts ----------------------------------------------------------------------


def test_the_channels_are_listed_with_their_product_types_and_ones_own_accounts(api, account):
    body = api.get(CHANNELS).json()
    assert (body["next"], body["previous"]) == (None, None)
    printify, shopify = body["results"]
    assert (printify["name"], printify["title"]) == ("printify", "Printify")
    shirt = next(one for one in printify["product_types"] if one["name"] == "t-shirt")
    assert shirt.keys() == {"name", "title", "price_usd"}
    assert printify["account"]["options"] == {"shop_id": "77"}
    assert shopify["account"] is None


def test_an_account_has_product_types_of_its_own(api):
    own = {"title": "Tote bag", "price_usd": "12.00", "blueprint_id": 9, "print_provider_id": 1}
    api.put(PRINTIFY, {**PRINTIFY_ACCOUNT, "options": {"products": {"tote-bag": own}}})
    printify = api.get(CHANNELS).json()["results"][0]
    assert "tote-bag" in [one["name"] for one in printify["product_types"]]


def test_an_account_is_given_shown_replaced_and_forgotten(api):
    problem(api.get(PRINTIFY), 404, "not_found")
    given = api.put(PRINTIFY, PRINTIFY_ACCOUNT)
    assert given.status_code == 201
    assert given.json() == api.get(PRINTIFY).json()
    again = api.put(PRINTIFY, {"credentials": {"token": TOKEN}})
    assert (again.status_code, again.json()["options"]) == (200, {})
    assert api.delete(PRINTIFY).status_code == 204
    problem(api.get(PRINTIFY), 404, "not_found")
    problem(api.delete(PRINTIFY), 404, "not_found")


def test_of_credentials_no_more_than_an_end_is_shown_again(api, caplog, owner):
    caplog.set_level(logging.DEBUG)
    answers = [
        api.put(PRINTIFY, PRINTIFY_ACCOUNT),
        api.put(PRINTIFY, {**PRINTIFY_ACCOUNT, "options": {"shop_id": "no"}}),
        api.put(PRINTIFY, {"credentials": {"token": f"{TOKEN}\n"}, "options": {}}),
        api.put(PRINTIFY, {"credentials": {"token": TOKEN, "other": TOKEN}}),
        api.get(PRINTIFY),
        api.get(CHANNELS),
    ]
    for answer in answers:
        assert TOKEN not in answer.text
    assert TOKEN not in caplog.text
    account = ChannelAccount.objects.get()
    assert TOKEN not in account.sealed_credentials
    assert api.get(PRINTIFY).json()["credentials_hint"] == {"token": "1234"}


def test_a_short_credential_is_not_hinted_at(api):
    api.put(PRINTIFY, {"credentials": {"token": "tiny"}})
    assert api.get(PRINTIFY).json()["credentials_hint"] == {"token": ""}


@pytest.mark.parametrize(
    ("path", "body", "field", "code"),
    [
        (PRINTIFY, {}, "credentials", "required"),
        (PRINTIFY, {"credentials": {}}, "credentials.token", "required"),
        (PRINTIFY, {"credentials": {"token": 7}}, "credentials.token", "invalid"),
        (PRINTIFY, {**PRINTIFY_ACCOUNT, "other": 1}, "other", "unknown_field"),
        (PRINTIFY, {**PRINTIFY_ACCOUNT, "options": {"shop": 1}}, "options.shop", "unknown_field"),
        (SHOPIFY, {"credentials": {"access_token": "x"}}, "options.shop", "required"),
        (
            SHOPIFY,
            {"credentials": {"access_token": "x"}, "options": {"shop": "evil.example"}},
            "options.shop",
            "invalid",
        ),
    ],
)
def test_an_account_that_cannot_be_is_refused_and_not_stored(path, body, field, code, api):
    assert invalid(api.put(path, body))[field][0] == code
    assert not ChannelAccount.objects.exists()


def test_an_unknown_channel_is_not_found(api):
    path = f"{CHANNELS}etsy/"
    for answer in (
        api.get(path),
        api.put(path, PRINTIFY_ACCOUNT),
        api.delete(path),
        api.post(f"{path}check/"),
    ):
        problem(answer, 404, "not_found")


def test_accounts_are_ones_own(api, account):
    other = client_of(make_user())
    problem(other.get(PRINTIFY), 404, "not_found")
    problem(other.delete(PRINTIFY), 404, "not_found")
    problem(other.post(f"{PRINTIFY}check/"), 404, "not_found")
    assert other.get(CHANNELS).json()["results"][0]["account"] is None
    assert other.put(PRINTIFY, {"credentials": {"token": "mine"}}).status_code == 201
    assert api.get(PRINTIFY).json()["credentials_hint"] == {"token": "1234"}


def test_an_account_is_kept_while_something_is_published_with_it(api, account, image):
    publication = publish(api, image)
    problem(api.delete(PRINTIFY), 409, "account_in_use")
    end(publication)
    assert api.delete(PRINTIFY).status_code == 204


class Checked:
    def __init__(self, answer):
        self.answer = answer

    def check(self):
        return self.answer


@pytest.fixture
def channel_says(monkeypatch):
    def says(answer):
        monkeypatch.setattr(publications, "open_channel", lambda account, *, http: Checked(answer))

    return says


def test_a_check_tells_whose_account_it_is_and_lets_it_go_on(api, account, channel_says):
    ChannelAccount.objects.update(stopped_by="auth")
    channel_says(Account("Foxes Ltd", ({"id": "77", "title": "Foxes"},)))
    answer = api.post(f"{PRINTIFY}check/")
    assert (answer.status_code, answer.json()) == (
        200,
        {"name": "Foxes Ltd", "shops": [{"id": "77", "title": "Foxes"}]},
    )
    assert ChannelAccount.objects.get().stopped_by == ""


def test_a_check_that_fails_says_why(api, account, channel_says):
    channel_says(Failure(ErrorClass.AUTH, "Printify refused the credentials."))
    body = problem(api.post(f"{PRINTIFY}check/"), 409, "auth")
    assert body["detail"] == "Printify refused the credentials."
    assert api.get(PRINTIFY).json()["stopped_by"] == "auth"
    ChannelAccount.objects.update(stopped_by="")
    channel_says(Failure(ErrorClass.PROVIDER_UNAVAILABLE, "Printify is unavailable."))
    problem(api.post(f"{PRINTIFY}check/"), 409, "provider_unavailable")
    assert api.get(PRINTIFY).json()["stopped_by"] == ""


def test_checks_at_a_time_are_bounded(api, account, monkeypatch):
    import threading

    from batches.api import publishing

    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(publishing, "_checks", full)
    answer = api.post(f"{PRINTIFY}check/")
    problem(answer, 503, "busy")
    assert "Retry-After" in answer


# --- publishing one -----------------------------------------------------------------------------


def test_an_approved_image_is_published(post, api, account, image, queued):
    wanted = {**WANTED, "description": "d", "tags": ["fox", "red"], "price_usd": "24.50"}
    answer = post(publish_path(image), wanted)
    assert answer.status_code == 202
    body = answer.json()
    assert answer["Location"].endswith(f"{PUBLICATIONS}{body['id']}/")
    assert body | wanted == body
    assert (body["image_id"], body["status"], body["error"]) == (str(image.pk), "publishing", None)
    assert (body["remote_ids"], body["remote_url"], body["attempt_count"]) == ({}, "", 0)
    assert queued() == {"generate": 1}
    assert api.get(answer["Location"]).json()["attempts"] == []


@pytest.mark.parametrize("path", ["/api/v1/images/{}/publish/", "/api/publish/{}"])
def test_nobody_waits_for_a_shop(path, api, account, image):
    # What is waited for is the end of batches and generations.
    answer = api.post(path.format(image.pk), WANTED, headers={"Prefer": "wait=9"})
    assert answer.status_code == 202
    assert WAIT_HEADER not in answer


def test_a_second_time_it_answers_with_what_is_there(api, account, image):
    publication = publish(api, image)
    again = api.post(publish_path(image), {**WANTED, "title": "Another"})
    assert (again.status_code, again.json()["id"], again.json()["title"]) == (
        200,
        str(publication.pk),
        "A fox",
    )
    end(publication)
    assert api.post(publish_path(image), WANTED).json()["status"] == "published"
    assert Publication.objects.count() == 1


def test_one_that_failed_is_tried_again_as_it_is_asked_for_now(api, account, image):
    publication = publish(api, image)
    fail(publication, error_message="No.", remote_ids={"shop_id": "7"}, retry_count=3)
    again = api.post(publish_path(image), {**WANTED, "title": "Another"})
    assert again.status_code == 202
    body = again.json()
    assert (body["id"], body["status"], body["title"], body["error"]) == (
        str(publication.pk),
        "publishing",
        "Another",
        None,
    )
    assert (body["remote_ids"], body["version"]) == ({"shop_id": "7"}, publication.version + 1)


@pytest.mark.parametrize(
    ("path", "field"),
    [("/api/v1/images/{}/publish/", "id"), ("/api/publish/{}", "image_id"), (PUBLICATIONS, None)],
)
def test_a_product_that_cannot_be_changed_is_retried_as_it_is_only(
    path, field, api, account, image, nothing_happens
):
    publication = publish(api, image)
    fail(publication, remote_ids={"product_id": "p"})
    ids = {} if field else {"image_ids": [str(image.pk)]}
    with nothing_happens():
        answer = api.post(path.format(image.pk), {**WANTED, **ids, "title": "Another"})
    assert invalid(answer)[field or "image_ids.0"][0] == "already_made"
    assert api.post(path.format(image.pk), {**WANTED, **ids}).status_code == 202


@pytest.mark.parametrize("path", ["/api/v1/images/{}/publish/", "/api/publish/{}", PUBLICATIONS])
def test_a_title_holds_no_placeholder_but_the_number(path, api, account, image):
    ids = {"image_ids": [str(image.pk)]} if path == PUBLICATIONS else {}
    answer = api.post(path.format(image.pk), {**WANTED, **ids, "title": "A {animal} {index}"})
    assert invalid(answer)["title"][0] == "unknown_placeholder"
    answer = api.post(path.format(image.pk), {**WANTED, **ids, "title": "{{A}} fox {index}"})
    assert answer.status_code == 202
    assert Publication.objects.get().title == "{A} fox 1"


@pytest.mark.parametrize("price", [-1, "-1", "1e3", 12.5, True, "", "1234567"], ids=repr)
def test_a_price_that_is_none_is_told_the_bounds(price, api, account, image):
    (error,) = api.post(publish_path(image), {**WANTED, "price_usd": price}).json()["errors"]
    assert (error["field"], error["code"]) == ("price_usd", "invalid")
    assert '"0.01"' in error["detail"]
    assert '"99999.99"' in error["detail"]


def test_one_image_may_be_at_every_channel(api, account, image):
    api.put(SHOPIFY, SHOPIFY_ACCOUNT)
    publish(api, image)
    publish(api, image, channel="shopify")
    assert Publication.objects.count() == 2


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"channel": "etsy"}, "channel", "unknown_channel"),
        ({"channel": "shopify"}, "channel", "no_account"),
        ({"product_type": "spaceship"}, "product_type", "unknown_product_type"),
        ({"title": ""}, "title", "blank"),
        ({"title": "x" * 201}, "title", "max_length"),
        ({"price_usd": 12.5}, "price_usd", "invalid"),
        ({"price_usd": "0.00"}, "price_usd", "min_value"),
        ({"price_usd": "100000"}, "price_usd", "max_value"),
        ({"price_usd": "1e3"}, "price_usd", "invalid"),
        ({"price_usd": "NaN"}, "price_usd", "invalid"),
        ({"tags": ["a", "a"]}, "tags", "duplicate"),
        ({"colour": "red"}, "colour", "unknown_field"),
    ],
)
def test_what_cannot_be_published_is_refused_by_its_field(
    changes, field, code, api, account, image, nothing_happens
):
    with nothing_happens():
        answer = api.post(publish_path(image), {**WANTED, **changes})
    assert invalid(answer)[field][0] == code
    assert not Publication.objects.exists()


def test_a_refusal_lists_what_there_is(api, account, image):
    answer = api.post(publish_path(image), {**WANTED, "product_type": "spaceship"})
    (error,) = answer.json()["errors"]
    assert "t-shirt" in error["allowed"]
    (error,) = api.post(publish_path(image), {**WANTED, "channel": "etsy"}).json()["errors"]
    assert error["allowed"] == ["printify", "shopify"]


@pytest.mark.parametrize("review_status", ["pending", "rejected"])
def test_only_approved_images_are_published(review_status, api, account, image):
    Image.objects.update(review_status=review_status)
    assert invalid(api.post(publish_path(image), WANTED))["id"][0] == "not_approved"
    assert not Publication.objects.exists()


def test_a_drawing_is_not_published(api, account, image):
    Image.objects.update(format="svg")
    assert invalid(api.post(publish_path(image), WANTED))["id"][0] == "unsupported_format"


def test_nothing_is_published_with_an_account_that_is_stopped(api, account, image):
    ChannelAccount.objects.update(stopped_by="auth")
    assert invalid(api.post(publish_path(image), WANTED))["channel"][0] == "account_stopped"


def test_another_users_image_is_not_there(api, account):
    (foreign,) = approved(make_user())
    problem(api.post(publish_path(foreign), WANTED), 404, "not_found")
    problem(api.post(f"/api/v1/images/{uuid.uuid4()}/publish/", {}), 404, "not_found")
    assert not Publication.objects.exists()


def test_the_same_request_with_the_same_key_is_done_once(api, account, image):
    def ask():
        return api.post(publish_path(image), WANTED, HTTP_IDEMPOTENCY_KEY="once")

    first, second = ask(), ask()
    assert first.status_code == second.status_code == 202
    assert second["Idempotent-Replayed"] == "true"
    assert first.json()["id"] == second.json()["id"]


# --- publishing several -------------------------------------------------------------------------


def test_several_are_published_in_one_request(api, account, owner, queued, post):
    images = approved(owner, 3)
    answer = post(
        PUBLICATIONS,
        {**WANTED, "title": "Fox {index}", "image_ids": [str(one.pk) for one in images]},
    )
    assert answer.status_code == 202
    results = answer.json()["results"]
    assert [one["image_id"] for one in results] == [str(one.pk) for one in images]
    assert [one["outcome"] for one in results] == ["accepted"] * 3
    assert [one["publication"]["title"] for one in results] == ["Fox 1", "Fox 2", "Fox 3"]
    assert queued() == {"generate": 1}


def test_of_several_each_has_its_own_outcome(api, account, owner):
    there, failed, _ = images = approved(owner, 3)
    publish(api, there)
    fail(publish(api, failed))
    asked = {**WANTED, "image_ids": [str(one.pk) for one in images]}
    answer = api.post(PUBLICATIONS, asked)
    assert answer.status_code == 202
    assert [one["outcome"] for one in answer.json()["results"]] == ["exists", "retried", "accepted"]
    again = api.post(PUBLICATIONS, asked)
    assert again.status_code == 200
    assert {one["outcome"] for one in again.json()["results"]} == {"exists"}
    assert Publication.objects.count() == 3


def test_all_are_published_or_none(api, account, owner):
    good, unreviewed = approved(owner, 2)
    Image.objects.filter(pk=unreviewed.pk).update(review_status="pending")
    asked = {**WANTED, "image_ids": [str(good.pk), str(unreviewed.pk)]}
    assert invalid(api.post(PUBLICATIONS, asked))["image_ids.1"][0] == "not_approved"
    (foreign,) = approved(make_user())
    asked["image_ids"][1] = str(foreign.pk)
    problem(api.post(PUBLICATIONS, asked), 404, "not_found")
    assert not Publication.objects.exists()


@pytest.mark.parametrize(
    ("image_ids", "field", "code"),
    [
        ([], "image_ids", "empty"),
        ([str(uuid.uuid4())] * 2, "image_ids.1", "duplicate"),
        ([str(uuid.uuid4()) for _ in range(101)], "image_ids", "max_length"),
        ([7], "image_ids.0", "invalid"),
    ],
)
def test_a_list_of_images_that_cannot_be_is_refused(image_ids, field, code, api, account):
    assert invalid(api.post(PUBLICATIONS, {**WANTED, "image_ids": image_ids}))[field][0] == code


def test_publishing_many_takes_as_many_queries_as_publishing_two(
    api, account, owner, django_assert_max_num_queries
):
    def ask(images):
        body = {**WANTED, "image_ids": [str(one.pk) for one in images]}
        with django_assert_max_num_queries(16) as queries:
            assert api.post(PUBLICATIONS, body).status_code == 202
        return len(queries)

    few, many = approved(owner, 2), approved(owner, 30)
    assert ask(few) == ask(many)
    Publication.objects.update(
        status="publish_failed", error_code="not_found", finished_at=Now(), remote_ids={"a": "b"}
    )
    assert ask(few) == ask(many)


# --- following ----------------------------------------------------------------------------------


def test_publications_are_listed_newest_first_and_filtered(api, account, owner):
    first, second = approved(owner, 2)
    api.put(SHOPIFY, SHOPIFY_ACCOUNT)
    one, two = publish(api, first), publish(api, second, channel="shopify")
    end(one)
    assert ids(api.get(PUBLICATIONS)) == [str(two.pk), str(one.pk)]
    assert ids(api.get(PUBLICATIONS, {"status": "published"})) == [str(one.pk)]
    assert len(ids(api.get(PUBLICATIONS, {"status": "published,publishing"}))) == 2
    assert ids(api.get(PUBLICATIONS, {"channel": "shopify"})) == [str(two.pk)]
    assert ids(api.get(PUBLICATIONS, {"image": first.pk})) == [str(one.pk)]
    assert ids(api.get(PUBLICATIONS, {"created_after": "2999-01-01T00:00:00Z"})) == []
    problem(api.get(PUBLICATIONS, {"status": "lost"}), 422, "invalid")
    assert ids(client_of(make_user()).get(PUBLICATIONS)) == []
    shown = api.get(PUBLICATIONS).json()["results"][1]
    assert shown["thumbnail_url"].startswith("http")
    assert b"".join(client_of(owner).get(shown["thumbnail_url"]).streaming_content)


def test_a_list_of_any_length_takes_the_same_queries(api, account, owner):
    from django.db import connection

    def count():
        with CaptureQueriesContext(
            connection,
        ) as queries:
            api.get(PUBLICATIONS)
        return len(queries)

    publish(api, approved(owner)[0])
    few = count()
    for image in approved(owner, 5):
        publish(api, image)
    assert count() == few <= 4


def test_a_publication_shows_its_calls_and_its_error(api, account, image):
    publication = publish(api, image)
    PublicationAttempt.objects.create(
        publication=publication,
        number=1,
        step="upload",
        outcome="failed",
        error_class="auth",
        error_message="No.",
        raw="secret words of the channel",
        finished_at=Now(),
    )
    fail(publication, error_message="No.", attempt_count=1)
    answer = api.get(f"{PUBLICATIONS}{publication.pk}/")
    body = answer.json()
    assert body["error"] == {"code": "auth", "message": "No."}
    assert body["next_try_at"] is None
    (call,) = body["attempts"]
    assert call["error"] == {"code": "auth", "message": "No."}
    assert (call["step"], call["outcome"]) == ("upload", "failed")
    assert "secret words" not in answer.text


def test_of_very_many_calls_the_last_are_shown(api, account, image):
    publication = publish(api, image)
    PublicationAttempt.objects.bulk_create(
        PublicationAttempt(publication=publication, number=number, step="upload", outcome="failed")
        for number in range(1, 203)
    )
    shown = api.get(f"{PUBLICATIONS}{publication.pk}/").json()["attempts"]
    assert [one["number"] for one in shown] == list(range(103, 203))


def test_a_publication_outlives_its_image(api, account, image):
    publication = publish(api, image)
    end(publication)
    assert api.delete(f"/api/v1/images/{image.pk}/").status_code == 204
    body = api.get(f"{PUBLICATIONS}{publication.pk}/").json()
    assert (body["image_id"], body["thumbnail_url"], body["status"]) == (None, None, "published")


def test_a_deleted_batch_leaves_its_publications(api, account, owner):
    image = make_image(make_batch(owner, size=1).generations.get())
    approve(image)
    publication = publish(api, image)
    batch = f"/api/v1/batches/{image.generation.batch_id}/"
    problem(api.delete(batch), 409, "being_published")
    assert api.get(batch).status_code == 200
    end(publication)
    assert api.delete(batch).status_code == 204
    publication.refresh_from_db()
    assert publication.image_id is None


def test_a_single_generation_is_kept_while_its_image_is_being_published(api, account, image):
    publication = publish(api, image)
    path = f"/api/v1/generations/{image.generation_id}/"
    problem(api.delete(path), 409, "being_published")
    end(publication)
    assert api.delete(path).status_code == 204
    problem(api.delete(path), 404, "not_found")


# --- trying again -------------------------------------------------------------------------------


def retry_path(publication):
    return f"{PUBLICATIONS}{publication.pk}/retry/"


def test_a_failed_publication_is_retried_from_where_it_was(post, account, image, api, queued):
    publication = publish(api, image)
    fail(publication, remote_ids={"product_id": "p", "published": "1"}, crash_count=5)
    answer = post(retry_path(publication), None)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["remote_ids"], body["error"]) == (
        "publishing",
        {"product_id": "p"},
        None,
    )
    assert body["finished_at"] is None
    assert queued() == {"generate": 1}
    publication.refresh_from_db()
    assert (publication.retry_count, publication.crash_count) == (0, 0)


def test_one_that_was_deleted_at_the_channel_begins_anew(api, account, image):
    publication = publish(api, image)
    fail(publication, remote_ids={"product_id": "p"}, remote_url="https://shop.example/p")
    Publication.objects.update(error_code="not_found")
    body = api.post(retry_path(publication)).json()
    assert (body["remote_ids"], body["remote_url"]) == ({}, "")


def test_only_what_has_failed_is_retried(api, account, image):
    publication = publish(api, image)
    refused(
        api.post(retry_path(publication)),
        "publishing",
        "A publishing publication cannot be retried.",
    )
    end(publication)
    refused(
        api.post(retry_path(publication)),
        "published",
        "A published publication cannot be retried.",
    )


def test_what_cannot_be_published_any_more_is_not_retried(api, account, image):
    publication = publish(api, image)
    fail(publication)
    Image.objects.update(review_status="rejected")
    assert invalid(api.post(retry_path(publication)))["image"][0] == "not_approved"
    Image.objects.all().delete()
    assert invalid(api.post(retry_path(publication)))["image"][0] == "image_deleted"
    api.delete(PRINTIFY)
    assert invalid(api.post(retry_path(publication)))["channel"][0] == "no_account"
    problem(client_of(make_user()).post(retry_path(publication)), 404, "not_found")


def test_a_retry_is_done_once_for_a_key(api, account, image):
    publication = publish(api, image)
    fail(publication)
    first = api.post(retry_path(publication), HTTP_IDEMPOTENCY_KEY="once")
    fail(publication)
    second = api.post(retry_path(publication), HTTP_IDEMPOTENCY_KEY="once")
    assert json.loads(first.content)["version"] == json.loads(second.content)["version"]
    publication.refresh_from_db()
    assert publication.status == "publish_failed"


@pytest.mark.parametrize("path", [CHANNELS, PRINTIFY, f"{PRINTIFY}check/", PUBLICATIONS])
def test_every_address_says_what_can_be_done_there(path, api, account):
    assert api.options(path).status_code == 200


def test_a_broker_that_is_away_does_not_keep_anything_from_being_published(
    post, account, image, monkeypatch
):
    from kombu.exceptions import OperationalError

    from batches import wake

    def away(*args, **kwargs):
        raise OperationalError

    monkeypatch.setattr(wake.current_app, "send_task", away)
    assert post(publish_path(image), WANTED).status_code == 202
    assert Publication.objects.get().status == "publishing"
