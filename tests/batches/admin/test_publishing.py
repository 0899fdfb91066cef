"""The pages of publications, channel accounts and reviews."""

import pytest
from django.db.models.functions import Now

from batches import publications
from batches.curation import review_images
from batches.models import (
    ChannelAccount,
    Image,
    Publication,
    PublicationAttempt,
    Review,
    ReviewStatus,
)
from tests.batches.admin.support import (
    command,
    confirm,
    html_of,
    list_url,
    listed,
    offered,
    page,
    page_url,
    press,
    queries_of,
    said,
    staff,
    unbounded_counts,
)
from tests.factories import make_batch, make_image, make_publication, make_user

pytestmark = pytest.mark.django_db

ATTACK = "<script>alert(1)</script>"
PUBLISHING = (Publication, ChannelAccount, Review)
SECRET = "the-token-of-the-shop"


def make_account(owner, channel="printify"):
    account, _ = publications.set_account(
        owner_id=owner.pk, channel=channel, credentials={"token": SECRET}, options={"shop_id": 7}
    )
    return account


def hostile_publication(owner=None, status="publish_failed", **fields):
    """A publication all of whose texts would run as scripts, were they not escaped."""
    image = make_image(make_batch(owner or make_user(), size=1).generations.get())
    review_images(ids=[image.pk], status=ReviewStatus.APPROVED, reviewer_id=image.owner_id)
    if status == "publish_failed":
        fields |= {"error_code": "auth", "error_message": ATTACK}
    return make_publication(image, status, title=ATTACK, **fields)


def make_rows(count):
    for _ in range(count):
        publication = hostile_publication(attempt_count=1)
        make_account(publication.owner)
        PublicationAttempt.objects.create(
            publication=publication,
            number=1,
            step="upload",
            outcome="failed",
            raw={"error": ATTACK},
            finished_at=Now(),
        )


@pytest.mark.parametrize("model", PUBLISHING)
def test_every_list_and_every_page_answers_an_operator(operator, model):
    make_rows(2)
    html = html_of(operator.get(list_url(model)))
    for row in model.objects.all():
        assert page_url(row) in html
        assert ATTACK not in page(operator, row)
    assert ATTACK not in html


@pytest.mark.parametrize("model", PUBLISHING)
def test_lists_are_for_staff_only(client, model):
    client.force_login(make_user())
    assert client.get(list_url(model)).status_code == 302


@pytest.mark.parametrize("model", PUBLISHING)
def test_a_longer_list_takes_as_many_queries_and_counts_no_table(operator, model):
    make_rows(2)
    few = queries_of(operator, list_url(model))
    make_rows(8)
    many = queries_of(operator, list_url(model))
    assert len(many) == len(few)
    assert not unbounded_counts(many)


def test_they_are_found_by_id_image_and_owner(operator):
    wanted = hostile_publication(make_user("anna"))
    account = make_account(wanted.owner)
    make_rows(1)
    for term in ("anna", str(wanted.pk), str(wanted.image_id)):
        assert listed(operator, Publication, q=term) == {wanted.pk}
    assert listed(operator, Publication, image=wanted.image_id) == {wanted.pk}
    assert listed(operator, Publication, status="published") == set()
    for term in ("anna", str(account.pk)):
        assert listed(operator, ChannelAccount, q=term) == {account.pk}
    review = wanted.image.reviews.get()
    assert listed(operator, Review, q=str(wanted.image_id)) == {review.pk}
    assert listed(operator, Review, image=wanted.image_id) == {review.pk}
    for model in PUBLISHING:
        assert listed(operator, model, q="nothing") == set()


def test_a_publication_shows_its_calls_with_the_raw_answers(operator):
    make_rows(1)
    html = page(operator, Publication.objects.get())
    assert "upload" in html
    assert "&quot;error&quot;: &quot;&lt;script&gt;" in html
    assert 'badge-publish_failed">Publish failed' in html


def test_the_publication_of_a_deleted_image_is_shown_without_it(operator):
    publication = hostile_publication(status="published")
    Publication.objects.update(image=None)
    page(operator, publication)
    html_of(operator.get(list_url(Publication)))


def test_an_image_shows_its_review_its_tags_and_where_it_is_published(operator):
    publication = hostile_publication(status="published")
    Image.objects.update(tags=["autumn"], is_saved=True)
    html = page(operator, publication.image)
    assert page_url(publication) in html
    assert 'badge-published">Published' in html
    assert 'badge-approved">Approved' in html
    assert "autumn" in html
    assert f"{list_url(Review)}?image={publication.image_id}" in html
    assert listed(operator, Image, review_status="approved") == {publication.image_id}
    assert listed(operator, Image, review_status="pending") == set()


def test_a_publication_that_failed_is_retried(operator):
    publication = hostile_publication()
    make_account(publication.owner)
    assert offered(operator, publication) == ["retry"]
    press(operator, publication, "retry")
    publication.refresh_from_db()
    assert publication.status == "publishing"
    assert offered(operator, publication) == []
    (told,) = command(operator, list_url(Publication), "retry", [publication])
    assert "Not retried" in told


def test_one_that_is_not_fit_any_more_is_not_retried(operator):
    publication = hostile_publication()
    (told,) = command(operator, list_url(Publication), "retry", [publication])
    assert "its image or its account is not fit for it any more" in told
    publication.refresh_from_db()
    assert publication.status == "publish_failed"


def test_credentials_are_shown_nowhere(operator):
    account = make_account(make_user())
    for html in (page(operator, account), html_of(operator.get(list_url(ChannelAccount)))):
        assert account.sealed_credentials not in html
        assert SECRET not in html
        assert "sealed" not in html
    answer = operator.post(page_url(account), {"sealed_credentials": "mine", "channel": "shopify"})
    assert answer.status_code == 403
    kept = ChannelAccount.objects.get()
    assert (kept.channel, kept.sealed_credentials) == ("printify", account.sealed_credentials)


def test_an_account_that_is_stopped_is_resumed(operator):
    account = make_account(make_user())
    assert offered(operator, account) == ["delete"]
    ChannelAccount.objects.update(stopped_by="auth")
    assert 'badge-stopped">Stopped' in page(operator, account)
    assert offered(operator, account) == ["resume", "delete"]
    press(operator, account, "resume")
    account.refresh_from_db()
    assert account.stopped_by == ""


def test_an_account_is_deleted_when_that_is_confirmed_and_nothing_is_under_way(operator):
    account = make_account(make_user())
    publication = hostile_publication(account.owner, status="publishing")
    (told,) = confirm(operator, list_url(ChannelAccount), "delete", [account])
    assert "publications are under way there" in told
    Publication.objects.update(status="published", finished_at=Now())
    assert "cannot be undone" in html_of(press(operator, account, "delete"))
    assert ChannelAccount.objects.exists()
    answer = press(operator, account, "delete", post="yes")
    assert any("deleted" in one for one in said(answer))
    assert not ChannelAccount.objects.exists()
    assert Publication.objects.filter(pk=publication.pk).exists()


def test_who_may_only_look_is_offered_nothing(client):
    publication = hostile_publication()
    make_account(publication.owner)
    watcher = staff(client, "view_publication")
    assert offered(watcher, publication) == []
    assert press(watcher, publication, "retry").status_code == 403
