from base64 import b64encode
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest
from django.db.models.functions import Now

from batches.models import Batch, Generation, Image
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, MODELS, ids, invalid, problem
from tests.factories import make_batch, make_generation, make_image

pytestmark = pytest.mark.django_db

LISTS = (BATCHES, GENERATIONS, IMAGES)
MAKERS = {
    BATCHES: lambda owner: make_batch(owner, size=1),
    GENERATIONS: make_generation,
    IMAGES: lambda owner: make_image(make_generation(owner)),
}
ROWS = {BATCHES: Batch, GENERATIONS: Generation, IMAGES: Image}


def fill(path, owner, count, *, apart_s):
    """So many rows, the last of them the newest; their ids from the newest to the oldest."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [MAKERS[path](owner) for _ in range(count)]
    for number, row in enumerate(rows):
        ROWS[path].objects.filter(pk=row.pk).update(
            created_at=start + timedelta(seconds=number * apart_s)
        )
    order = ROWS[path].objects.order_by("-created_at", "-id")
    return [str(pk) for pk in order.values_list("pk", flat=True)]


def pages(api, url, way):
    """Each page's ids, following the links of that name."""
    while url:
        response = api.get(url)
        yield ids(response)
        url = response.json()[way]


@pytest.mark.parametrize("path", LISTS)
def test_a_list_is_empty_before_anything_is_made(path, api):
    assert api.get(path).json() == {"next": None, "previous": None, "results": []}


@pytest.mark.parametrize("apart_s", [1, 0], ids=["apart", "at the same time"])
@pytest.mark.parametrize("path", LISTS)
def test_a_list_is_walked_forward_and_back_without_loss_or_repetition(path, apart_s, api, owner):
    newest_first = fill(path, owner, 7, apart_s=apart_s)
    forward = list(pages(api, f"{path}?page_size=3", "next"))
    assert [len(page) for page in forward] == [3, 3, 1]
    assert list(chain.from_iterable(forward)) == newest_first
    url = f"{path}?page_size=3"
    while following := api.get(url).json()["next"]:
        url = following
    back = list(pages(api, url, "previous"))
    assert list(chain.from_iterable(reversed(back))) == newest_first
    assert api.get(f"{path}?page_size=3").json()["previous"] is None


def test_rows_of_the_same_moment_keep_their_order_with_others_around(api, owner):
    newest_first = fill(GENERATIONS, owner, 9, apart_s=0)
    older, newer = newest_first[-1], newest_first[0]
    for pk, days in ((older, -1), (newer, 1)):
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=days)
        Generation.objects.filter(pk=pk).update(created_at=moment)
    for page_size in range(1, 10):
        walked = pages(api, f"{GENERATIONS}?page_size={page_size}", "next")
        assert list(chain.from_iterable(walked)) == newest_first


def test_a_long_batch_of_one_moment_is_walked_to_its_end(api, owner):
    size = 1_203
    batch = make_batch(owner, size=1)
    first = batch.generations.get()
    Generation.objects.bulk_create(
        Generation(
            owner=owner,
            batch=batch,
            index=index,
            prompt="a fox",
            final_prompt="a fox",
            model=first.model,
            provider=first.provider,
            created_at=first.created_at,
        )
        for index in range(1, size)
    )
    walked = []
    for page in pages(api, f"{GENERATIONS}?page_size=100", "next"):
        walked += page
        assert len(walked) <= size
    assert len(set(walked)) == size


def test_rows_made_while_a_list_is_walked_do_not_shift_it(api, owner):
    newest_first = fill(GENERATIONS, owner, 4, apart_s=1)
    first = api.get(f"{GENERATIONS}?page_size=2").json()
    make_generation(owner)
    assert ids(api.get(first["next"])) == newest_first[2:]


@pytest.mark.parametrize(
    ("asked", "given"),
    [("1", 1), ("100", 100), ("101", 100), ("1000000000000000000000", 100)],
)
def test_the_size_of_a_page_is_bounded(asked, given, api, owner):
    make_generation(owner)
    Generation.objects.bulk_create(
        Generation(owner=owner, prompt="a", final_prompt="a", model="m", provider="replicate")
        for _ in range(104)
    )
    assert len(ids(api.get(GENERATIONS, {"page_size": asked}))) == given


@pytest.mark.parametrize("asked", ["", "0", "-1", "x", "1.5", "\x00", "\u0663", "9" * 5_000])
def test_a_size_that_is_none_is_refused(asked, api):
    assert invalid(api.get(GENERATIONS, {"page_size": asked})).keys() == {"page_size"}


def test_links_are_at_the_public_address(api, owner, settings):
    settings.PUBLIC_URL = "https://pictures.example"
    fill(GENERATIONS, owner, 2, apart_s=1)
    body = api.get(GENERATIONS, {"page_size": 1}).json()
    assert body["next"].startswith("https://pictures.example/api/v1/generations/?")


def test_links_keep_the_filters(api, owner):
    fill(GENERATIONS, owner, 3, apart_s=1)
    body = api.get(GENERATIONS, {"page_size": 1, "status": "queued"}).json()
    assert "status=queued" in body["next"]
    assert body["next"].startswith("http://testserver/api/v1/generations/?")


ID = b"00000000-0000-0000-0000-000000000000"
CURSORS = {
    "empty": "",
    "no base64": "x",
    "not ascii": "\N{FOX FACE}",
    "nul": "\x00",
    "bytes": b"\xff\xfe",
    "nothing": b"  ",
    "another form": b"o=1&p=2026-01-01",
    "no date": b"> nonsense " + ID,
    "impossible date": b"> 2026-02-31T00:00:00+00:00 " + ID,
    "naive date": b"> 2026-02-01T00:00:00 " + ID,
    "far date": b"> 9999-12-31T23:59:59.999999-23:59 " + ID,
    "early date": b"< 0001-01-01T00:00:00+23:59 " + ID,
    "no direction": b"= 2026-02-01T00:00:00+00:00 " + ID,
    "no id": b"> 2026-02-01T00:00:00+00:00 x",
    "long": b"> 2026-02-01T00:00:00+00:00 " + b"9" * 3_000,
}


@pytest.mark.parametrize("name", CURSORS)
@pytest.mark.parametrize("path", LISTS)
def test_a_cursor_that_is_none_is_not_found(path, name, api):
    cursor = CURSORS[name]
    if isinstance(cursor, bytes):
        cursor = b64encode(cursor).decode()
    problem(api.get(path, {"cursor": cursor}), 404, "not_found")


@pytest.mark.parametrize("path", LISTS)
def test_a_cursor_from_another_time_finds_what_is_beyond(path, api, owner):
    newest_first = fill(path, owner, 2, apart_s=1)
    for cursor, found in [
        (b"> 9999-12-31T00:00:00+15:00 " + ID, newest_first),
        (b"< 0001-01-02T00:00:00+15:00 " + ID, newest_first),
        (b"> 0001-01-01T00:00:00+00:00 " + ID, []),
        (b"< 9999-12-31T00:00:00+00:00 " + ID, []),
    ]:
        assert ids(api.get(path, {"cursor": b64encode(cursor).decode()})) == found


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("pk", ["x", "7", "..", "00000000", "%00", "a" * 300, "é"])
def test_an_id_that_is_none_is_not_found(path, pk, api):
    problem(api.get(f"{path}{pk}/"), 404, "not_found")


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_lists_are_filtered_by_one_status_or_several(path, api, owner):
    made = [MAKERS[path](owner) for _ in range(3)]
    for row, status in zip(made[1:], ("failed", "cancelled"), strict=True):
        ROWS[path].objects.filter(pk=row.pk).update(
            status=status,
            finished_at=Now(),
            **({"error_code": "x"} if (path, status) == (GENERATIONS, "failed") else {}),
        )
    waiting, failed, cancelled = (str(row.pk) for row in made)
    start = "pending" if path == BATCHES else "queued"
    for asked, found in {
        start: {waiting},
        "failed": {failed},
        "failed,cancelled": {failed, cancelled},
        f"{start},failed,cancelled,completed": {waiting, failed, cancelled},
        "completed": set(),
    }.items():
        assert set(ids(api.get(path, {"status": asked}))) == found


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
@pytest.mark.parametrize(
    "status",
    ["nonsense", "failed,nonsense", "FAILED", "\x00", "failed;x", ",", "failed,", ",,failed", ", "],
)
def test_an_unknown_status_is_refused(path, status, api):
    assert invalid(api.get(path, {"status": status})).keys() == {"status"}


BLANK = ("", " ", "\t", " \n ", "\u3000")


@pytest.mark.parametrize("name", ["status", "batch", "model", "created_after"])
def test_a_filter_without_a_value_is_refused_and_does_not_list_everything(name, api, owner):
    make_generation(owner)
    for value in BLANK:
        refused = invalid(api.get(GENERATIONS, {name: value}))
        assert refused == {name: ("blank", "May not be empty.")}


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize(
    ("path", "name"),
    [
        (BATCHES, "created_before"),
        *((IMAGES, name) for name in ("q", "batch", "generation", "model", "format", "saved")),
        *((IMAGES, name) for name in ("tag", "order", "review_status", "created_after")),
        *(("/api/v1/publications/", name) for name in ("status", "channel", "image")),
        ("/api/v1/references/", "created_after"),
        *(("/api/images", name) for name in ("status", "batch_id")),
    ],
)
def test_no_filter_of_spaces_is_as_good_as_none(path, name, blank, api):
    assert invalid(api.get(path, {name: blank})) == {name: ("blank", "May not be empty.")}


@pytest.mark.parametrize("path", LISTS)
def test_lists_are_filtered_by_the_time_of_making(path, api, owner):
    third, second, first = fill(path, owner, 3, apart_s=3_600)
    for asked, found in [
        ({"created_after": "2026-01-01T01:00:00Z"}, [third, second]),
        ({"created_before": "2026-01-01T01:00:00Z"}, [first]),
        ({"created_after": "2026-01-01T03:00:00+02:00"}, [third, second]),
        ({"created_after": "2026-01-01T01:00:00.000001Z"}, [third]),
        ({"created_after": "2026-01-01T00:30", "created_before": "2026-01-01T01:30"}, [second]),
        ({"created_after": "2027-01-01T00:00:00Z"}, []),
        ({"created_before": "9999-12-30T00:00:00-23:59"}, [third, second, first]),
        ({"created_after": "0001-01-03T00:00:00+23:59"}, [third, second, first]),
    ]:
        assert ids(api.get(path, asked)) == found


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize(
    "moment",
    [
        "yesterday",
        "2026-13-01T00:00:00Z",
        "2026-01-01T25:00Z",
        "1767225600",
        "\x00",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
    ],
)
def test_a_moment_that_is_none_is_refused(path, name, moment, api):
    assert invalid(api.get(path, {name: moment})).keys() == {name}


def test_images_are_filtered_by_batch_generation_model_and_format(api, owner):
    in_batch = make_image(make_batch(owner, size=1).generations.get())
    single = make_image(make_generation(owner, model="some/model"), image_format="webp")
    for asked, found in [
        ({"batch": in_batch.generation.batch_id}, in_batch),
        ({"generation": single.generation_id}, single),
        ({"model": "some/model"}, single),
        ({"format": "webp"}, single),
        ({"format": "png"}, in_batch),
    ]:
        assert ids(api.get(IMAGES, asked)) == [str(found.pk)]
    for image_format in ("svg", "avif", "jpeg"):
        Image.objects.update(format=image_format)
        assert len(ids(api.get(IMAGES, {"format": image_format}))) == 2
        assert ids(api.get(IMAGES, {"format": "png"})) == []
    assert invalid(api.get(IMAGES, {"format": "gif"})).keys() == {"format"}
    assert invalid(api.get(IMAGES, {"generation": "x"})).keys() == {"generation"}


@pytest.mark.usefixtures("warm_caches")
@pytest.mark.parametrize(("path", "queries"), [(BATCHES, 3), (GENERATIONS, 2), (IMAGES, 2)])
def test_a_list_takes_the_same_number_of_queries_for_any_number_of_rows(
    path, queries, api, owner, django_assert_num_queries
):
    for more in (1, 9):
        for _ in range(more):
            MAKERS[path](owner)
        with django_assert_num_queries(queries):
            api.get(path)


@pytest.mark.usefixtures("warm_caches")
def test_a_batch_of_25_with_their_images_is_read_in_two_queries(
    api, owner, django_assert_num_queries
):
    batch = make_batch(owner, size=25)
    for generation in batch.generations.all():
        make_image(generation)
    # One more is the authentication.
    with django_assert_num_queries(3):
        body = api.get(f"{BATCHES}{batch.pk}/").json()
    assert [item["index"] for item in body["items"]] == list(range(25))
    assert len({item["image"]["id"] for item in body["items"]}) == 25


@pytest.mark.usefixtures("warm_caches")
@pytest.mark.parametrize("path", [GENERATIONS, IMAGES])
def test_one_row_is_read_in_one_query(path, api, owner, django_assert_num_queries):
    row = MAKERS[path](owner)
    with django_assert_num_queries(2):
        assert api.get(f"{path}{row.pk}/").status_code == 200


@pytest.mark.usefixtures("warm_caches")
def test_the_catalogue_is_read_without_a_query_of_its_own(api, django_assert_num_queries):
    with django_assert_num_queries(1):
        api.get(MODELS)


def test_items_of_a_batch_keep_the_order_they_were_asked_in(api, owner):
    batch = make_batch(owner, size=12)
    # An updated row moves to the end of the table.
    Generation.objects.filter(batch=batch, index__lt=6).update(custom_id="moved")
    items = api.get(f"{BATCHES}{batch.pk}/").json()["items"]
    assert [item["prompt"] for item in items] == [f"picture {number}" for number in range(12)]


def test_a_batch_tells_how_far_it_is(api, owner):
    batch = make_batch(owner, size=4)
    Batch.objects.filter(pk=batch.pk).update(
        status="processing",
        started_at=Now() - timedelta(seconds=30),
        completed_count=2,
        failed_count=1,
    )
    body = api.get(f"{BATCHES}{batch.pk}/").json()
    assert body["progress"] == 75
    assert body["eta_seconds"] > 0
    assert body["eta_reason"] is None
