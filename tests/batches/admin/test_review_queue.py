"""The review queue: a grid of what nobody has reviewed, and decisions about it."""

import re
import uuid

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.urls import reverse

from batches.curation import review_images
from batches.models import Generation, Image, Review, ReviewStatus
from tests.batches.admin.support import (
    html_of,
    page_url,
    queries_of,
    said,
    staff,
    unbounded_counts,
)
from tests.factories import MODEL, make_batch, make_image, make_user

pytestmark = pytest.mark.django_db

ATTACK = "<script>alert(1)</script>"


def url(**parameters):
    return reverse("admin:batches_review_queue", query=parameters)


def make_images(count, owner=None):
    batch = make_batch(owner, size=count)
    return [make_image(generation) for generation in batch.generations.all()]


def shown(client, **parameters):
    """The ids that can be selected, in order."""
    html = html_of(client.get(url(**parameters)))
    return re.findall(r'type="checkbox" name="_selected_action" value="([^"]+)"', html)


def decide(client, review, images, reason="", **parameters):
    """What is said when a button was pressed with these images selected."""
    ids = [str(getattr(image, "pk", image)) for image in images]
    data = {"review": review, "_selected_action": ids, "reason": reason}
    response = client.post(url(**parameters), data, follow=True)
    html_of(response)
    return said(response)


def statuses(images):
    found = dict(Image.objects.values_list("pk", "review_status"))
    return [found[image.pk] for image in images]


def test_the_queue_is_a_grid_of_what_is_pending_newest_first(operator):
    images = make_images(3)
    review_images(ids=[images[0].pk], status=ReviewStatus.REJECTED, reviewer_id=images[0].owner_id)
    Generation.objects.update(prompt=ATTACK)
    html = html_of(operator.get(url()))
    newest = Image.objects.filter(review_status="pending").order_by("-created_at", "-id")
    assert shown(operator) == [str(image.pk) for image in newest]
    assert "&lt;script&gt;alert(1)" in html
    assert ATTACK not in html
    for image in images[1:]:
        assert page_url(image) in html
        assert f"/api/v1/images/{image.pk}/thumbnail/?signature=" in html
    assert "batches/review_queue.js" in html


def test_an_empty_queue_says_so(operator):
    assert "There is nothing to review." in html_of(operator.get(url()))


def test_the_queue_is_on_the_index(operator):
    assert url() in html_of(operator.get(reverse("admin:index")))


@pytest.mark.parametrize(("button", "status"), [("approve", "approved"), ("reject", "rejected")])
def test_what_is_selected_is_reviewed_by_the_operator(button, status, operator):
    images = make_images(3)
    assert decide(operator, button, images[:2], reason=" Six fingers. ") == [f"2 images {status}."]
    assert statuses(images) == [status, status, "pending"]
    me = get_user_model().objects.get(username="operator")
    logged = set(Review.objects.values_list("image_id", "reviewer_id", "status", "reason"))
    assert logged == {(image.pk, me.pk, status, "Six fingers.") for image in images[:2]}
    assert LogEntry.objects.filter(user=me).count() == 2
    assert shown(operator) == [str(images[2].pk)]


def test_what_somebody_else_has_decided_about_stays(operator):
    images = make_images(2)
    review_images(ids=[images[0].pk], status=ReviewStatus.APPROVED, reviewer_id=images[0].owner_id)
    told = decide(operator, "reject", [*images, uuid.uuid4()])
    assert told[0] == "1 image rejected."
    assert told[1].startswith("2 of those that were selected")
    assert statuses(images) == ["approved", "rejected"]


@pytest.mark.parametrize(
    ("review", "ids", "reason", "said_then"),
    [
        ("approve", ["nonsense"], "", "That cannot be done. Nothing was."),
        (
            "approve",
            [str(uuid.uuid4()) for _ in range(61)],
            "",
            "That cannot be done. Nothing was.",
        ),
        ("approve", None, "x" * 501, "That cannot be done. Nothing was."),
        ("reject", None, "a\0b", "That cannot be done. Nothing was."),
        ("something", None, "", "That cannot be done. Nothing was."),
        ("", None, "", "That cannot be done. Nothing was."),
        ("approve", [], "", "Select the images first."),
    ],
)
def test_what_the_form_cannot_send_does_nothing(review, ids, reason, said_then, operator):
    images = make_images(1)
    assert decide(operator, review, images if ids is None else ids, reason) == [said_then]
    assert statuses(images) == ["pending"]


def test_the_queue_is_narrowed_by_owner_batch_and_model_and_stays_so(operator):
    mine, others = make_images(2, make_user("anna")), make_images(1)
    Image.objects.filter(pk=others[0].pk).update(model="stability-ai/sdxl")
    Image.objects.filter(pk__in=[image.pk for image in mine]).update(model=MODEL)
    expected = {str(image.pk) for image in mine}
    for parameters in (
        {"owner": mine[0].owner_id},
        {"batch": mine[0].generation.batch_id},
        {"model": MODEL},
        {"q": "anna"},
    ):
        assert set(shown(operator, **parameters)) == expected, parameters
    data = {"review": "approve", "_selected_action": [str(mine[0].pk)]}
    answer = operator.post(url(model=MODEL), data)
    assert answer["Location"] == url(model=MODEL)


def test_the_queue_is_paged(operator):
    images = make_images(61)
    first, second = shown(operator), shown(operator, p=2)
    assert (len(first), len(second)) == (60, 1)
    assert {*first, *second} == {str(image.pk) for image in images}


def test_a_longer_queue_takes_as_many_queries_and_counts_no_table(operator):
    make_images(2)
    few = queries_of(operator, url())
    make_images(20)
    many = queries_of(operator, url())
    assert len(many) == len(few)
    assert not unbounded_counts(many)


def test_a_decision_takes_as_many_queries_for_many(operator, django_assert_max_num_queries):
    images = make_images(30)
    with django_assert_max_num_queries(25):
        operator.post(url(), {"review": "approve", "_selected_action": [i.pk for i in images]})
    assert set(statuses(images)) == {"approved"}


def test_who_may_only_look_cannot_decide(client):
    images = make_images(1)
    watcher = staff(client, "view_image")
    html = html_of(watcher.get(url()))
    assert "_selected_action" not in html
    assert 'name="review"' not in html
    answer = watcher.post(url(), {"review": "approve", "_selected_action": [str(images[0].pk)]})
    assert answer.status_code == 403
    assert statuses(images) == ["pending"]


def test_the_queue_is_for_staff_only(client):
    client.force_login(make_user())
    assert client.get(url()).status_code == 302
