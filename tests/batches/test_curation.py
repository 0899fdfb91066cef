import uuid
from decimal import Decimal
from functools import partial

import pytest
from django.core.files.base import ContentFile
from django.db import transaction
from django.db.models.functions import Now

from batches import cleanup, curation, lifecycle
from batches.curation import Action, Selection, act_on_images, change_image, review_images
from batches.gallery import ImageFilter, find_images
from batches.models import (
    Batch,
    Discarded,
    Generation,
    Image,
    Publication,
    Review,
    ReviewStatus,
)
from batches.scheduling import admit
from generation.provider import Prediction, PredictionStatus
from tests.factories import (
    make_batch,
    make_generation,
    make_image,
    make_publication,
    make_user,
    picture,
)
from tests.support import at_once, in_background, wait_for_locks

pytestmark = pytest.mark.django_db

ACTIONS = [
    (Action.SAVE, {}),
    (Action.TAG, {"tags": ["a", "b"]}),
    (Action.APPROVE, {"reason": "good"}),
    (Action.REJECT, {}),
    (Action.DELETE, {}),
]


@pytest.fixture
def owner():
    return make_user()


def make_images(owner, count):
    return [make_image(make_generation(owner)) for _ in range(count)]


def act(owner, action, images=(), *, batch=None, wanted=None, **what):
    """What became of each: "done", "unchanged", or why it was refused."""
    selection = Selection(
        ids=[one.pk for one in images], batch_id=batch and batch.pk, wanted=wanted
    )
    outcomes = act_on_images(owner_id=owner.pk, selection=selection, action=action, **what)
    if images:
        assert [one.id for one in outcomes] == [one.pk for one in images]
    return [one.code or str(one.outcome) for one in outcomes]


def downloading(generation):
    """The generation as it is when its provider is done with it."""
    while generation.status != "processing":
        assert admit().admitted
        generation.refresh_from_db()
    attempt = lifecycle.begin_attempt(generation=generation)
    done = Prediction(str(generation.pk), PredictionStatus.SUCCEEDED, outputs=("https://x/y",))
    lifecycle.record_submission(attempt=attempt, prediction=done)
    assert lifecycle.begin_download(
        generation=generation, attempt=attempt, prediction=done, cost_usd=Decimal(0)
    )
    generation.refresh_from_db()
    return generation


def tags(image):
    image.refresh_from_db()
    return image.tags


def found_by(owner, tag):
    return set(find_images(owner.pk, ImageFilter(tags=(tag,))).values_list("pk", flat=True))


# --- Saving and tagging -------------------------------------------------------------------------


def test_images_are_saved_and_unsaved_and_a_second_time_changes_nothing(owner):
    one, other = make_images(owner, 2)
    act(owner, Action.SAVE, [one])
    assert act(owner, Action.SAVE, [other, one]) == ["done", "unchanged"]
    assert Image.objects.filter(is_saved=True).count() == 2
    assert act(owner, Action.UNSAVE, [one]) == ["done"]
    assert act(owner, Action.UNSAVE, [one]) == ["unchanged"]
    assert Image.objects.get(is_saved=True) == other


def test_tags_are_added_in_their_order_and_once(owner):
    one, other = make_images(owner, 2)
    assert act(owner, Action.TAG, [one], tags=["b", "a"]) == ["done"]
    assert act(owner, Action.TAG, [one, other], tags=["c", "b"]) == ["done", "done"]
    assert (tags(one), tags(other)) == (["b", "a", "c"], ["c", "b"])
    assert act(owner, Action.TAG, [one, other], tags=["b", "c"]) == ["unchanged", "unchanged"]
    assert act(owner, Action.UNTAG, [one, other], tags=["a", "x"]) == ["done", "unchanged"]
    assert (tags(one), tags(other)) == (["b", "c"], ["c", "b"])


def test_the_search_follows_the_tags(owner):
    one, other = make_images(owner, 2)
    act(owner, Action.TAG, [one, other], tags=["a", "it's \\ 'odd'"])
    assert found_by(owner, "a") == found_by(owner, "it's \\ 'odd'") == {one.pk, other.pk}
    act(owner, Action.UNTAG, [one], tags=["it's \\ 'odd'"])
    assert found_by(owner, "it's \\ 'odd'") == {other.pk}
    change_image(owner_id=owner.pk, image_id=other.pk, tags=["b"])
    assert (found_by(owner, "a"), found_by(owner, "b")) == ({one.pk}, {other.pk})
    # And is what it would be if it were made anew.
    before = dict(Image.objects.values_list("pk", "search"))
    Image.objects.update(search=None)
    Image.objects.describe(10)
    assert dict(Image.objects.values_list("pk", "search")) == before


def test_an_image_has_at_most_twenty_tags(owner):
    full, other = make_images(owner, 2)
    twenty = [f"tag {number}" for number in range(20)]
    assert act(owner, Action.TAG, [full], tags=twenty) == ["done"]
    assert act(owner, Action.TAG, [full, other], tags=["one more"]) == ["too_many_tags", "done"]
    assert tags(full) == twenty
    assert found_by(owner, "one more") == {other.pk}
    assert act(owner, Action.TAG, [full], tags=twenty[:3]) == ["unchanged"]


def test_an_image_that_is_not_described_yet_is_tagged_and_found_later(owner):
    [image] = make_images(owner, 1)
    Image.objects.update(search=None)
    assert act(owner, Action.TAG, [image], tags=["a"]) == ["done"]
    Image.objects.describe(1)
    assert found_by(owner, "a") == {image.pk}


# --- Review -------------------------------------------------------------------------------------


def test_each_change_of_a_review_is_logged_and_nothing_else(owner):
    one, other = make_images(owner, 2)
    assert act(owner, Action.APPROVE, [one], reason="best") == ["done"]
    one.refresh_from_db()
    first = one.reviewed_at
    assert first == Review.objects.get().created_at
    assert act(owner, Action.APPROVE, [one, other], reason="again") == ["unchanged", "done"]
    one.refresh_from_db()
    assert one.reviewed_at == first
    assert act(owner, Action.REJECT, [one]) == ["done"]
    log = Review.objects.order_by("id").values_list("image", "status", "reason", "reviewer")
    assert list(log) == [
        (one.pk, "approved", "best", owner.pk),
        (other.pk, "approved", "again", owner.pk),
        (one.pk, "rejected", "", owner.pk),
    ]
    one.refresh_from_db()
    assert one.reviewed_at > first


def test_an_operator_reviews_images_of_anybody(owner):
    images = [*make_images(owner, 1), *make_images(make_user(), 1)]
    operator = make_user()
    outcomes = review_images(
        ids=[one.pk for one in images],
        status=ReviewStatus.APPROVED,
        reviewer_id=operator.pk,
        reason="fine",
    )
    assert [str(one.outcome) for one in outcomes] == ["done", "done"]
    assert set(Review.objects.values_list("reviewer", flat=True)) == {operator.pk}
    for status in (ReviewStatus.REJECTED, ReviewStatus.APPROVED):
        again = review_images(ids=[images[0].pk], status=status, reviewer_id=operator.pk)
        assert again == []  # what somebody has decided about stays


def test_what_is_being_published_is_neither_rejected_nor_deleted(owner):
    busy, free = make_images(owner, 2)
    act(owner, Action.APPROVE, [busy, free])
    make_publication(busy)
    for action in (Action.REJECT, Action.DELETE):
        assert act(owner, action, [busy, free]) == ["being_published", "done"]
        busy.refresh_from_db()
        assert busy.review_status == "approved"
        [free] = make_images(owner, 1)
        act(owner, Action.APPROVE, [free])
    assert act(owner, Action.APPROVE, [busy]) == ["unchanged"]
    assert act(owner, Action.SAVE, [busy]) == ["done"]
    assert Review.objects.filter(image=busy).count() == 1


@pytest.mark.parametrize("status", ["published", "publish_failed"])
def test_what_was_published_may_be_rejected_and_deleted_and_stays_on_record(owner, status):
    [image] = make_images(owner, 1)
    publication = make_publication(image, status, remote_ids={"product": "7"})
    assert act(owner, Action.APPROVE, [image]) == ["done"]
    assert act(owner, Action.REJECT, [image]) == ["done"]
    assert act(owner, Action.DELETE, [image]) == ["done"]
    publication.refresh_from_db()
    assert (publication.image_id, publication.remote_ids) == (None, {"product": "7"})


# --- Deletion -----------------------------------------------------------------------------------


def test_deleted_images_are_counted_and_their_files_go(
    owner, media, django_capture_on_commit_callbacks
):
    batch = make_batch(owner, size=2)
    images = [make_image(one) for one in batch.generations.all()]
    single, stays = make_images(owner, 2)
    act(owner, Action.REJECT, [single])
    with django_capture_on_commit_callbacks(execute=True):
        assert act(owner, Action.DELETE, [*images, single]) == ["done"] * 3
    assert Image.objects.get() == stays
    assert not Review.objects.exists()
    counted = Generation.objects.exclude(pk=stays.generation_id)
    assert set(counted.values_list("deleted_image_count", "version")) == {(1, 2)}
    assert {path.parent.name for path in media.rglob("*") if path.is_file()} == {
        str(stays.generation_id)
    }


def test_of_a_generation_with_several_images_the_others_stay(
    owner, django_capture_on_commit_callbacks
):
    image = make_image(make_generation(owner))
    first_file, second_file = image.file.name, image.file.name.replace("0.png", "1.png")
    image.file.storage.save(second_file, ContentFile(picture()))
    other = Image.objects.get(pk=image.pk)
    other.pk, other.index = uuid.uuid4(), 1
    other.file.name, other.thumbnail.name = second_file, second_file + ".webp"
    other.save(force_insert=True)
    Generation.objects.update(output_count=2)
    with django_capture_on_commit_callbacks(execute=True):
        assert act(owner, Action.DELETE, [image]) == ["done"]
    storage = image.file.storage
    assert not storage.exists(first_file)
    assert storage.exists(second_file)
    assert Generation.objects.get().deleted_image_count == 1


def test_the_files_of_many_folders_are_left_to_the_sweep(
    owner, media, monkeypatch, django_capture_on_commit_callbacks
):
    monkeypatch.setattr(cleanup, "AT_ONCE", 1)
    images = make_images(owner, 2)
    with django_capture_on_commit_callbacks(execute=True):
        act(owner, Action.DELETE, images)
    assert len([path for path in media.rglob("*") if path.is_file()]) == 4
    Discarded.objects.update(due_at="2026-01-01T00:00Z")
    assert cleanup.clean_due(10) == 2
    assert [path for path in media.rglob("*") if path.is_file()] == []


def test_deleting_a_batch_takes_what_was_published_along_and_nothing_under_way(owner):
    batch = make_batch(owner, size=1)
    image = make_image(batch.generations.get())
    act(owner, Action.APPROVE, [image])
    publication = make_publication(image)
    assert not lifecycle.delete_batch(batch=batch)
    assert Image.objects.get() == image
    Publication.objects.update(status="published", published_at=Now(), finished_at=Now())
    assert lifecycle.delete_batch(batch=batch)
    publication.refresh_from_db()
    assert publication.image_id is None
    assert not Image.objects.exists()


# --- What is meant ------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "what"), ACTIONS)
def test_an_image_of_somebody_else_keeps_all_from_being_done(action, what, owner):
    own = make_images(owner, 2)
    foreign = make_images(make_user(), 1)
    before = list(Image.objects.order_by("pk").values())
    with pytest.raises(Image.DoesNotExist):
        act(owner, action, [own[0], *foreign, own[1]], **what)
    assert list(Image.objects.order_by("pk").values()) == before
    assert not Review.objects.exists()


def test_a_batch_of_somebody_else_is_not_there(owner):
    batch = make_batch(make_user(), size=1)
    make_image(batch.generations.get())
    with pytest.raises(Batch.DoesNotExist):
        act(owner, Action.SAVE, batch=batch)


def test_all_of_a_batch_is_meant(owner):
    batch = make_batch(owner, size=3)
    assert act(owner, Action.SAVE, batch=batch) == []
    for generation in batch.generations.all():
        make_image(generation)
    [other] = make_images(owner, 1)
    for action, what in ACTIONS:
        assert act(owner, action, batch=batch, **what) == ["done"] * 3
    assert act(owner, Action.DELETE, batch=batch) == []
    assert Image.objects.get() == other


def test_what_a_filter_finds_is_meant_newest_first(owner):
    images = make_images(owner, 3)
    make_images(make_user(), 1)
    act(owner, Action.TAG, images[:2], tags=["a"])
    wanted = ImageFilter(tags=("a",), q="lighthouse")
    outcomes = act_on_images(
        owner_id=owner.pk, selection=Selection(wanted=wanted), action=Action.APPROVE
    )
    assert [one.id for one in outcomes] == [images[1].pk, images[0].pk]
    assert act(owner, Action.SAVE, wanted=ImageFilter(review_status=("approved",))) == ["done"] * 2


def test_more_images_than_one_action_takes_are_counted_and_left_alone(owner, monkeypatch):
    monkeypatch.setattr(curation, "SELECTION_MAX", 2)
    monkeypatch.setattr(curation, "COUNTED_MAX", 4)
    make_images(owner, 3)
    for more, count in ((0, 3), (1, 4), (1, 4)):
        make_images(owner, more)
        with pytest.raises(curation.TooMany) as caught:
            act(owner, Action.DELETE, wanted=ImageFilter(saved=False))
        assert caught.value.count == count
    assert Image.objects.count() == 5


@pytest.mark.parametrize(("action", "what"), ACTIONS)
def test_any_number_of_images_takes_the_same_number_of_statements(
    action, what, owner, django_assert_max_num_queries
):
    counts = []
    for size in (1, 12):
        images = make_images(owner, size)
        for image in images:
            make_publication(image, "published")
        with django_assert_max_num_queries(12) as queries:
            assert act(owner, action, images, **what) == ["done"] * size
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_one_thing_is_set_at_a_time_or_both(owner):
    [image] = make_images(owner, 1)
    change_image(owner_id=owner.pk, image_id=image.pk, is_saved=True)
    change_image(owner_id=owner.pk, image_id=image.pk, tags=["a"])
    image.refresh_from_db()
    assert (image.is_saved, image.tags) == (True, ["a"])
    change_image(owner_id=owner.pk, image_id=image.pk, is_saved=False, tags=[])
    image.refresh_from_db()
    assert (image.is_saved, image.tags) == (False, [])
    with pytest.raises(Image.DoesNotExist):
        change_image(owner_id=make_user().pk, image_id=image.pk, is_saved=True)


# --- At the same moment -------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
class TestAtOnce:
    def test_of_two_who_tag_in_opposite_order_both_succeed(self, owner):
        images = make_images(owner, 8)
        for number in range(10):
            given = at_once(
                lambda n=number: act(owner, Action.TAG, images, tags=[f"a{n}"]),
                lambda n=number: act(owner, Action.TAG, images[::-1], tags=[f"b{n}"]),
            )
            assert given == [["done"] * 8] * 2
        assert {len(one) for one in Image.objects.values_list("tags", flat=True)} == {20}
        assert all(found_by(owner, f"a{n}") == found_by(owner, "b0") for n in range(10))

    def test_of_two_who_approve_one_does_and_one_finds_it_done(self, owner):
        images = make_images(owner, 5)
        given = at_once(
            *[lambda: act(owner, Action.APPROVE, images, reason="race") for _ in range(3)]
        )
        assert sorted(given) == [["done"] * 5, ["unchanged"] * 5, ["unchanged"] * 5]
        assert Review.objects.count() == 5

    def test_of_two_who_delete_each_image_is_counted_once(self, owner):
        batch = make_batch(owner, size=6)
        images = [make_image(one) for one in batch.generations.all()]
        wanted = ImageFilter(batch=batch.pk)
        at_once(
            lambda: act(owner, Action.DELETE, wanted=wanted),
            lambda: lifecycle.delete_images(images=Image.objects.filter(pk=images[0].pk)),
            lambda: act(owner, Action.SAVE, wanted=wanted),
        )
        assert not Image.objects.exists()
        assert set(Generation.objects.values_list("deleted_image_count", flat=True)) == {1}

    def test_an_image_that_comes_meanwhile_is_deleted_or_stays_whole(self, owner):
        for _ in range(5):
            batch = make_batch(owner, size=2)
            first, second = batch.generations.order_by("index")
            make_image(first)
            generation = downloading(second)
            image = Image(
                generation=generation,
                owner_id=owner.pk,
                file=f"{generation.pk}.png",
                thumbnail=f"{generation.pk}.webp",
                format="png",
                width=8,
                height=8,
                size_bytes=80,
                sha256="0" * 64,
            )
            deleted, completed = at_once(
                lambda one=batch: act(owner, Action.DELETE, batch=one),
                partial(lifecycle.complete_generation, generation=generation, images=[image]),
            )
            assert completed is True
            generation.refresh_from_db()
            assert deleted == ["done"] * (1 + generation.deleted_image_count)
            assert batch.images.count() == 1 - generation.deleted_image_count

    def test_a_batch_is_deleted_while_its_images_are_worked_on(self, owner):
        for _ in range(5):
            batch = make_batch(owner, size=4)
            images = [make_image(one) for one in batch.generations.all()]
            Batch.objects.filter(pk=batch.pk).update(
                completed_count=4, status="completed", finished_at=batch.created_at
            )
            act(owner, Action.APPROVE, images)
            at_once(
                lambda one=batch: lifecycle.delete_batch(batch=one),
                lambda all=images: act(owner, Action.TAG, all[::-1], tags=["x"]),
                lambda all=images: act(owner, Action.DELETE, all),
                # Of what the others have taken away by then.
                may_raise=(Image.DoesNotExist,),
            )
            assert not Image.objects.exists()

    def test_a_rejection_waits_for_a_publication_that_is_being_begun(self, owner):
        [image] = make_images(owner, 1)
        act(owner, Action.APPROVE, [image])
        with transaction.atomic():
            list(Image.objects.filter(pk=image.pk).select_for_update(no_key=True))
            rejection = in_background(lambda: act(owner, Action.REJECT, [image]))
            wait_for_locks()
            make_publication(image)
        assert rejection.result(30) == ["being_published"]

    def test_what_no_longer_is_as_asked_when_its_turn_comes_is_left_alone(self, owner):
        one, _ = make_images(owner, 2)
        pending = ImageFilter(review_status=("pending",))
        with transaction.atomic():
            act(owner, Action.APPROVE, [one])
            deletion = in_background(lambda: act(owner, Action.DELETE, wanted=pending))
            wait_for_locks()
        assert deletion.result(30) == ["done"]
        assert Image.objects.get() == one
