import itertools
from datetime import timedelta

import pytest
from django.db.models import Q
from django.db.models.functions import Now

from batches import gallery
from batches.curation import change_image
from batches.gallery import ImageFilter, find_images, has_words, read_page, shown
from batches.models import Generation, Image
from tests.factories import make_batch, make_generation, make_image, make_user

pytestmark = pytest.mark.django_db

HOSTILE = [
    "it's",
    "''",
    "'",
    "\\",
    "\\'",
    "'\\",
    "a\\\\b",
    "a & b",
    "a | !b",
    "(a",
    "a:*",
    "a:b",
    "owner:1",
    "tag:a",
    "%s",
    "%",
    "{}",
    '"',
    '"a b"',
    "a b",
    "$1",
    "$$",
    ";--",
    "<->",
    "é",
    "\N{FOX FACE}",
    "日本",
    "NULL",
    ",",
    "{a,b}",
    "x" * 50,
    "\N{FOX FACE}" * 50,
]


@pytest.fixture
def owner():
    return make_user()


def described(owner, prompt="a lighthouse", tags=(), **fields):
    """An image of that prompt, tagged."""
    image = make_image(make_generation(owner, prompt=prompt))
    if tags:
        change_image(owner_id=owner.pk, image_id=image.pk, tags=tags)
    if fields:
        Image.objects.filter(pk=image.pk).update(**fields)
    return image


def found(owner, **wanted):
    """Ids by the filter alone, which a page must agree with however it is read."""
    asked = ImageFilter(**wanted)
    ids = set(find_images(owner.pk, asked).values_list("pk", flat=True))
    assert {one.pk for one in page(owner, asked)} == ids
    return ids


def page(owner, wanted, *, beyond=None, newest_first=True, limit=100):
    return read_page(
        shown(Image.objects.all()),
        owner.pk,
        wanted,
        beyond=beyond or Q(),
        newest_first=newest_first,
        limit=limit,
    )


# --- What is found ------------------------------------------------------------------------------


def test_words_of_a_prompt_are_found_in_any_form(owner):
    image = described(owner, "Two foxes running along the beach")
    described(owner, "a lighthouse")
    for q in ("fox", "FOXES", "run beach", '"foxes running"', "owl or fox", "fox -owl"):
        assert found(owner, q=q) == {image.pk}
    for q in ("owl", "fox owl", '"running foxes"', "fox -beach"):
        assert found(owner, q=q) == set()


@pytest.mark.parametrize("q", ["the", "!!!", "' ' \\", "-", '"', "''"])
def test_what_holds_no_word_finds_nothing(q, owner):
    described(owner, tags=["a"])
    assert not has_words(q)
    assert found(owner, q=q) == found(owner, q=q, tags=("a",)) == set()


@pytest.mark.parametrize("q", ["-fox", "the fox", "fox or the", '"a fox"', "\N{FOX FACE}x", "日本"])
def test_words_are_told_from_what_holds_none(q, owner, django_assert_num_queries):
    with django_assert_num_queries(1):
        assert has_words(q)


@pytest.mark.parametrize("q", ["owner:1", "tag:best", "'owner:1'", "fox | !fox", "a:*", "\\", "%s"])
def test_words_cannot_ask_for_anything_else(q, owner):
    described(owner, tags=["best"])
    described(make_user(), "owner:1 tag:best fox")
    assert found(owner, q=q) <= set(owner.images.values_list("pk", flat=True))
    assert found(owner, q=f"nonesuch {q}") == set()


@pytest.mark.parametrize("tag", HOSTILE)
def test_any_tag_is_found_and_finds_nothing_else(tag, owner):
    image = described(owner, tags=[tag])
    described(owner, tags=["a", "b", "best"])
    described(make_user(), tags=[tag])
    assert found(owner, tags=(tag,)) == {image.pk}
    assert found(owner, tags=(tag, "none")) == set()


def test_all_of_several_tags_are_asked_for(owner):
    both = described(owner, tags=["a", "b"])
    only = described(owner, tags=["a"])
    assert found(owner, tags=("a",)) == {both.pk, only.pk}
    assert found(owner, tags=("a", "b")) == {both.pk}


def test_tags_and_words_are_kept_apart(owner):
    tagged = described(owner, "a lighthouse", tags=["fox"])
    asked = described(owner, "a fox")
    assert found(owner, q="fox") == {asked.pk}
    assert found(owner, tags=("fox",)) == {tagged.pk}
    assert found(owner, q="lighthouse", tags=("fox",)) == {tagged.pk}


def test_each_condition_finds_what_is_so(owner):
    batch = make_batch(owner, size=1)
    one = make_image(batch.generations.get())
    other = make_image(make_generation(owner, model="some/model"), image_format="webp")
    Image.objects.filter(pk=one.pk).update(
        review_status="approved", reviewed_at=Now(), is_saved=True
    )
    for wanted in (
        {"review_status": ("approved",)},
        {"review_status": ("approved", "rejected")},
        {"saved": True},
        {"batch": batch.pk},
        {"generation": one.generation_id},
        {"format": "png"},
        {"model": one.generation.model},
        {"review_status": ("approved",), "saved": True, "batch": batch.pk, "q": "picture"},
    ):
        assert found(owner, **wanted) == {one.pk}
    for wanted in (
        {"review_status": ("pending",)},
        {"saved": False},
        {"format": "webp"},
        {"model": "some/model", "saved": False},
    ):
        assert found(owner, **wanted) == {other.pk}
    assert found(owner) == {one.pk, other.pk}
    assert found(owner, review_status=("approved",), saved=False) == set()


def test_a_time_is_included_at_its_beginning_and_not_at_its_end(owner):
    image = described(owner)
    at = Image.objects.get().created_at
    assert found(owner, created_after=at) == {image.pk}
    assert found(owner, created_before=at) == set()
    assert found(owner, created_before=at + timedelta(microseconds=1), q="lighthouse") == {image.pk}


def test_images_of_others_are_never_found(owner):
    theirs = described(make_user(), "a fox", tags=["best"])
    for wanted in (
        {},
        {"q": "fox"},
        {"tags": ("best",)},
        {"generation": theirs.generation_id},
        {"q": "fox", "saved": False},
    ):
        assert found(owner, **wanted) == set()


def test_an_image_of_before_there_was_a_gallery_is_found_once_it_is_described(owner):
    image = described(owner, "a fox")
    Image.objects.update(search=None)
    assert found(owner, q="fox") == set()
    assert found(owner) == {image.pk}
    assert Image.objects.describe(10) == 1
    assert found(owner, q="fox") == {image.pk}


# --- Pages --------------------------------------------------------------------------------------


@pytest.fixture
def many(owner):
    """20 images of one prompt, oldest first; every fourth is saved, the oldest is tagged."""
    images = [described(owner, "a fox") for _ in range(20)]
    for number, image in enumerate(images):
        Image.objects.filter(pk=image.pk).update(
            created_at=Now() - timedelta(minutes=20 - number), is_saved=number % 4 == 0
        )
    change_image(owner_id=owner.pk, image_id=images[0].pk, tags=["first"])
    return [image.pk for image in images]


@pytest.mark.parametrize("newest_first", [True, False])
def test_a_page_is_the_same_however_far_the_window_reaches(newest_first, owner, many, monkeypatch):
    monkeypatch.setattr(gallery, "WINDOW_PER_IMAGE", 1)
    order = many[::-1] if newest_first else many
    saved = [one for one in order if one in many[::4]]
    for wanted, ids in [
        (ImageFilter(), order),
        (ImageFilter(saved=True), saved),
        (ImageFilter(saved=True, q="fox"), saved),
        (ImageFilter(q="fox"), order),
        (ImageFilter(q="fox", saved=False), [one for one in order if one not in saved]),
        (ImageFilter(tags=("first",)), many[:1]),
        (ImageFilter(tags=("first",), saved=True, review_status=("pending",)), many[:1]),
        (ImageFilter(q="owl"), []),
    ]:
        for window, limit in itertools.product((1, 3, 8, 20_000), (1, 4, 5, 6, 100)):
            monkeypatch.setattr(gallery, "WINDOW", window)
            rows = page(owner, wanted, newest_first=newest_first, limit=limit)
            assert [row.pk for row in rows] == ids[:limit]


def test_a_page_begins_beyond_a_place(owner, many, monkeypatch):
    middle = Image.objects.get(pk=many[10])
    older = Q(created_at__lt=middle.created_at)
    for window in (2, 20_000):
        monkeypatch.setattr(gallery, "WINDOW", window)
        monkeypatch.setattr(gallery, "WINDOW_PER_IMAGE", 1)
        rows = page(owner, ImageFilter(q="fox"), beyond=older, limit=3)
        assert [row.pk for row in rows] == many[9:6:-1]


@pytest.mark.parametrize(
    ("wanted", "queries"),
    [
        (ImageFilter(), 1),
        (ImageFilter(saved=True), 1),
        (ImageFilter(review_status=("pending",)), 1),
        (ImageFilter(q="fox"), 1),
        (ImageFilter(q="fox", saved=False), 1),
        (ImageFilter(tags=("first",)), 2),
        (ImageFilter(saved=True, format="webp"), 2),
    ],
)
def test_a_page_takes_one_query_or_two(wanted, queries, owner, many, django_assert_num_queries):
    for limit in (1, 4):
        with django_assert_num_queries(queries):
            rows = page(owner, wanted, limit=limit + (queries - 1))
        with django_assert_num_queries(0):
            for row in rows:
                assert (row.generation.style, row.publication_rows) == ("", [])


def test_all_of_a_filter_is_known_to_both_ways_of_reading(owner, many):
    generation = Generation.objects.get(images=many[3])
    everything = {
        "review_status": ("pending", "approved"),
        "saved": False,
        "generation": generation.pk,
        "model": generation.model,
        "format": "png",
        "created_after": Image.objects.get(pk=many[0]).created_at,
        "created_before": Image.objects.get(pk=many[19]).created_at,
        "q": "fox",
    }
    assert found(owner, **everything) == {many[3]}
    for name, value in (
        ("review_status", ("approved", "rejected")),
        ("saved", True),
        ("generation", Generation.objects.get(images=many[4]).pk),
        ("model", "some/model"),
        ("format", "webp"),
        ("created_after", Image.objects.get(pk=many[4]).created_at),
        ("created_before", Image.objects.get(pk=many[2]).created_at),
        ("q", "owl"),
        ("tags", ("none",)),
        ("batch", generation.pk),
    ):
        assert found(owner, **{**everything, name: value}) == set(), name
