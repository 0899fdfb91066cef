"""What an owner does with images: one by one, and many at once."""

import uuid

import pytest

from batches import curation
from batches.models import Image, Review
from tests.batches.api.support import IMAGES, client_of, ids, invalid, problem
from tests.factories import make_batch, make_generation, make_image, make_publication, make_user

pytestmark = pytest.mark.django_db

ACTIONS = f"{IMAGES}actions/"


@pytest.fixture
def images(owner):
    return [make_image(make_generation(owner)) for _ in range(3)]


@pytest.fixture
def image(images):
    return images[0]


def named(images):
    return [str(image.pk) for image in images]


def outcomes(response, action):
    """What became of each, in order; "done", "unchanged" or why it was refused."""
    assert response.status_code == 200, response.content
    body = response.json()
    assert body["action"] == action
    results = body["results"]
    for name in ("done", "unchanged", "refused"):
        assert body[name] == sum(one["outcome"] == name for one in results)
    return [one.get("code", one["outcome"]) for one in results]


# --- One image ----------------------------------------------------------------------------------


def test_an_image_is_saved_and_tagged(api, image):
    address = f"{IMAGES}{image.pk}/"
    body = api.patch(address, {"is_saved": True, "tags": [" a ", "it's"]}).json()
    assert (body["is_saved"], body["tags"]) == (True, ["a", "it's"])
    assert api.get(address).json()["tags"] == ["a", "it's"]
    assert api.patch(address, {"tags": []}).json()["is_saved"] is True
    assert ids(api.get(IMAGES, {"tag": "a"})) == []
    assert api.patch(address, {}).json()["id"] == str(image.pk)


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"is_saved": "true"}, "is_saved", "invalid"),
        ({"is_saved": None}, "is_saved", "null"),
        ({"is_saved": 1}, "is_saved", "invalid"),
        ({"tags": "a"}, "tags", "not_a_list"),
        ({"tags": None}, "tags", "null"),
        ({"tags": [""]}, "tags.0", "blank"),
        ({"tags": ["a", "  "]}, "tags.1", "blank"),
        ({"tags": ["x" * 51]}, "tags.0", "max_length"),
        ({"tags": [1]}, "tags.0", "invalid"),
        ({"tags": ["a\nb"]}, "tags.0", "control"),
        ({"tags": ["a\x7fb"]}, "tags.0", "control"),
        ({"tags": ["a\u2028b"]}, "tags.0", "control"),
        ({"tags": ["a", " a"]}, "tags", "duplicate"),
        ({"tags": [str(number) for number in range(21)]}, "tags", "max_length"),
        ({"saved": True}, "saved", "unknown_field"),
        ({"review_status": "approved"}, "review_status", "unknown_field"),
    ],
)
def test_a_change_that_cannot_be_is_refused(body, field, code, api, image):
    before = Image.objects.filter(pk=image.pk).values().get()
    errors = invalid(api.patch(f"{IMAGES}{image.pk}/", {"is_saved": True, **body}))
    assert {place: told[0] for place, told in errors.items()} == {field: code}
    assert Image.objects.filter(pk=image.pk).values().get() == before


def test_an_image_is_approved_and_rejected_and_the_log_tells(api, owner, image):
    address = f"{IMAGES}{image.pk}/"
    body = api.post(f"{address}approve/", {"reason": "The best."}).json()
    assert body["review_status"] == "approved"
    assert body["reviewed_at"].endswith("Z")
    assert api.post(f"{address}approve/").json() == {**body, **urls(api, image)}
    assert api.post(f"{address}reject/", {"reason": ""}).json()["review_status"] == "rejected"
    log = api.get(f"{address}reviews/").json()
    assert [(one["status"], one["reason"], one["reviewer"]) for one in log["results"]] == [
        ("rejected", "", owner.username),
        ("approved", "The best.", owner.username),
    ]
    assert log["results"][1]["created_at"] == body["reviewed_at"]


def urls(api, image):
    body = api.get(f"{IMAGES}{image.pk}/").json()
    return {name: body[name] for name in ("url", "preview_url", "thumbnail_url")}


def test_the_log_is_walked_page_by_page(api, image, django_assert_num_queries):
    address = f"{IMAGES}{image.pk}/"
    for number in range(5):
        act = "reject" if number % 2 else "approve"
        assert api.post(f"{address}{act}/", {"reason": str(number)}).status_code == 200
    walked, way = [], f"{address}reviews/?page_size=2"
    while way:
        with django_assert_num_queries(3):
            page = api.get(way).json()
        walked += [one["reason"] for one in page["results"]]
        way = page["next"]
    assert walked == ["4", "3", "2", "1", "0"]
    assert api.get(page["previous"]).json()["results"][0]["reason"] == "2"
    problem(api.get(f"{address}reviews/", {"cursor": "x"}), 404, "not_found")


def test_the_log_outlives_its_reviewer(api, owner, image):
    operator = make_user()
    curation.review_images(ids=[image.pk], status="approved", reviewer_id=operator.pk)
    operator.delete()
    [entry] = api.get(f"{IMAGES}{image.pk}/reviews/").json()["results"]
    assert (entry["status"], entry["reviewer"]) == ("approved", None)


@pytest.mark.parametrize("act", ["approve", "reject"])
@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"reason": "x" * 501}, "reason", "max_length"),
        ({"reason": None}, "reason", "null"),
        ({"reason": 1}, "reason", "invalid"),
        ({"why": "x"}, "why", "unknown_field"),
    ],
)
def test_a_reason_that_is_none_is_refused(act, body, field, code, api, image):
    errors = invalid(api.post(f"{IMAGES}{image.pk}/{act}/", body))
    assert {place: told[0] for place, told in errors.items()} == {field: code}
    assert not Review.objects.exists()


def test_what_is_being_published_is_not_rejected(api, image):
    api.post(f"{IMAGES}{image.pk}/approve/")
    make_publication(image)
    problem(api.post(f"{IMAGES}{image.pk}/reject/"), 409, "being_published")
    assert Image.objects.get(pk=image.pk).review_status == "approved"


def test_a_review_with_a_key_is_done_once(api, image):
    address, key = f"{IMAGES}{image.pk}/approve/", {"Idempotency-Key": "k1"}
    first = api.post(address, {"reason": "a"}, headers=key)
    api.post(f"{IMAGES}{image.pk}/reject/")
    again = api.post(address, {"reason": "a"}, headers=key)
    assert again["Idempotent-Replayed"] == "true"
    assert again.json() == first.json()
    assert Image.objects.get(pk=image.pk).review_status == "rejected"
    problem(api.post(address, {"reason": "b"}, headers=key), 422, "idempotency_key_reused")


@pytest.mark.parametrize("act", ["approve/", "reject/", "reviews/", ""])
def test_another_users_image_is_not_there(act, owner, image):
    stranger, address = client_of(make_user()), f"{IMAGES}{image.pk}/{act}"
    call = {"reviews/": stranger.get, "": stranger.patch}.get(act, stranger.post)
    problem(call(address), 404, "not_found")
    assert not Review.objects.exists()


# --- Many at once -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "more", "holds"),
    [
        ("save", {}, {"is_saved": True}),
        ("tag", {"tags": ["a", "b"]}, {"tags": ["a", "b"]}),
        ("approve", {"reason": "good"}, {"review_status": "approved"}),
        ("reject", {"reason": ""}, {"review_status": "rejected"}),
    ],
)
def test_a_selection_is_worked_on_in_one_request(action, more, holds, api, images):
    chosen = named(images)[:2]
    body = {"action": action, "ids": chosen, **more}
    response = api.post(ACTIONS, body)
    assert outcomes(response, action) == ["done", "done"]
    assert [one["id"] for one in response.json()["results"]] == chosen
    assert outcomes(api.post(ACTIONS, body), action) == ["unchanged", "unchanged"]
    shown = {one["id"]: one for one in api.get(IMAGES).json()["results"]}
    for pk, one in shown.items():
        assert (one.items() >= holds.items()) == (pk in chosen)


def test_what_was_done_is_taken_back(api, images):
    chosen = named(images)
    for action, back, more in (("save", "unsave", {}), ("tag", "untag", {"tags": ["a"]})):
        outcomes(api.post(ACTIONS, {"action": action, "ids": chosen, **more}), action)
        answer = api.post(ACTIONS, {"action": back, "ids": chosen[:1], **more})
        assert outcomes(answer, back) == ["done"]
        answer = api.post(ACTIONS, {"action": back, "ids": chosen, **more})
        assert outcomes(answer, back) == ["unchanged", "done", "done"]


def test_a_selection_is_deleted_with_its_files(
    api, images, media, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        answer = api.post(ACTIONS, {"action": "delete", "ids": named(images)[:2]})
    assert outcomes(answer, "delete") == ["done", "done"]
    assert Image.objects.get() == images[2]
    assert len([path for path in media.rglob("*") if path.is_file()]) == 2
    problem(api.post(ACTIONS, {"action": "delete", "ids": named(images)}), 404, "not_found")
    assert Image.objects.get() == images[2]


def test_what_cannot_be_done_with_one_does_not_keep_it_from_the_others(api, images):
    outcomes(api.post(ACTIONS, {"action": "approve", "ids": named(images)}), "approve")
    make_publication(images[1])
    for action in ("reject", "delete"):
        answer = api.post(ACTIONS, {"action": action, "ids": named(images)})
        assert outcomes(answer, action) == ["done", "being_published", "done"]
        images = [make_image(make_generation(images[1].owner)), images[1]]
        images.append(make_image(make_generation(images[1].owner)))
    twenty = [str(number) for number in range(20)]
    api.patch(f"{IMAGES}{images[0].pk}/", {"tags": twenty})
    answer = api.post(ACTIONS, {"action": "tag", "ids": named(images), "tags": ["more"]})
    assert outcomes(answer, "tag") == ["too_many_tags", "done", "done"]


@pytest.mark.parametrize("action", ["save", "approve", "delete"])
def test_with_one_image_of_somebody_else_nothing_is_done(action, api, images):
    foreign = make_image(make_generation(make_user()))
    before = list(Image.objects.order_by("pk").values())
    for other in (foreign.pk, uuid.uuid4()):
        body = {"action": action, "ids": [*named(images), str(other)]}
        problem(api.post(ACTIONS, body), 404, "not_found")
    assert list(Image.objects.order_by("pk").values()) == before
    assert not Review.objects.exists()


def test_all_results_of_a_batch_are_worked_on(api, owner, images):
    batch = make_batch(owner, size=3)
    made = [make_image(one) for one in batch.generations.all()]
    for action, more in (("save", {}), ("tag", {"tags": ["a"]}), ("approve", {}), ("delete", {})):
        body = {"action": action, "batch_id": str(batch.pk), **more}
        assert outcomes(api.post(ACTIONS, body), action) == ["done"] * len(made)
    assert set(named(images)) == set(ids(api.get(IMAGES)))
    assert ids(api.get(IMAGES, {"saved": "true"})) == []


def test_a_batch_of_somebody_else_is_not_there(api, images):
    batch = make_batch(make_user(), size=1)
    make_image(batch.generations.get())
    for pk in (batch.pk, uuid.uuid4()):
        problem(api.post(ACTIONS, {"action": "save", "batch_id": str(pk)}), 404, "not_found")
    assert not Image.objects.filter(is_saved=True).exists()


def test_a_filter_by_what_is_somebody_elses_is_not_there(api, owner, images):
    foreign = make_image(make_batch(make_user(), size=1).generations.get())
    for name, pk in (
        ("batch", foreign.generation.batch_id),
        ("generation", foreign.generation_id),
        ("batch", uuid.uuid4()),
        ("generation", uuid.uuid4()),
    ):
        body = {"action": "delete", "filter": {name: str(pk)}}
        problem(api.post(ACTIONS, body), 404, "not_found")
        assert ids(api.get(IMAGES, {name: pk})) == []
    assert Image.objects.count() == 4
    empty = {"batch": str(make_batch(owner).pk)}
    assert outcomes(api.post(ACTIONS, {"action": "delete", "filter": empty}), "delete") == []


def test_what_the_gallery_finds_is_worked_on(api, owner, images):
    fox = make_image(make_generation(owner, prompt="a fox"), image_format="webp")
    make_image(make_generation(make_user(), prompt="a fox"))
    everything = {
        "q": "fox",
        "review_status": ["pending", "rejected"],
        "saved": False,
        "generation": str(fox.generation_id),
        "model": fox.generation.model,
        "format": "webp",
        "created_after": "2020-01-01T00:00:00Z",
        "created_before": "2100-01-01T02:00:00+02:00",
    }
    answer = api.post(ACTIONS, {"action": "tag", "filter": everything, "tags": ["a"]})
    assert outcomes(answer, "tag") == ["done"]
    answer = api.post(ACTIONS, {"action": "approve", "filter": {"tags": ["a"]}})
    assert [one["id"] for one in answer.json()["results"]] == [str(fox.pk)]
    answer = api.post(ACTIONS, {"action": "delete", "filter": {"review_status": ["rejected"]}})
    assert outcomes(answer, "delete") == []
    answer = api.post(ACTIONS, {"action": "delete", "filter": {"saved": False}})
    assert outcomes(answer, "delete") == ["done"] * 4


def test_a_filter_that_means_too_many_is_refused_with_their_number(api, images, monkeypatch):
    monkeypatch.setattr(curation, "SELECTION_MAX", 2)
    monkeypatch.setattr(curation, "COUNTED_MAX", 3)
    body = {"action": "delete", "filter": {"saved": False}}
    answer = api.post(ACTIONS, body)
    [error] = answer.json()["errors"]
    assert invalid(answer)["filter"] == (
        "too_many",
        "These are 3 images; one action takes at most 2.",
    )
    assert error["allowed"] == {"max": 2, "count": 3}
    make_image(make_generation(images[0].owner))
    assert "more than 3" in invalid(api.post(ACTIONS, body))["filter"][1]
    assert Image.objects.count() == 4
    batch = make_batch(images[0].owner, size=3)
    for generation in batch.generations.all():
        make_image(generation)
    answer = api.post(ACTIONS, {"action": "save", "batch_id": str(batch.pk)})
    assert invalid(answer).keys() == {"batch_id"}


ONE = str(uuid.uuid4())


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "action", "required"),
        ({"action": "save"}, "ids", "required"),
        ({"action": "keep", "ids": [ONE]}, "action", "invalid_choice"),
        ({"action": "save", "ids": []}, "ids", "empty"),
        ({"action": "save", "ids": "x"}, "ids", "not_a_list"),
        ({"action": "save", "ids": ["x"]}, "ids.0", "invalid"),
        ({"action": "save", "ids": [7]}, "ids.0", "invalid"),
        ({"action": "save", "ids": [ONE, ONE]}, "ids.1", "duplicate"),
        ({"action": "save", "ids": [ONE, ONE.upper()]}, "ids.1", "duplicate"),
        ({"action": "save", "ids": [ONE] * 501}, "ids", "max_length"),
        ({"action": "save", "ids": [ONE], "batch_id": ONE}, "batch_id", "conflict"),
        ({"action": "save", "ids": [ONE], "filter": {"saved": True}}, "filter", "conflict"),
        ({"action": "save", "batch_id": None}, "batch_id", "null"),
        ({"action": "save", "filter": {}}, "filter", "required"),
        ({"action": "save", "filter": []}, "filter", "invalid"),
        ({"action": "save", "filter": {"colour": "red"}}, "filter.colour", "unknown_field"),
        ({"action": "save", "filter": {"saved": "no"}}, "filter.saved", "invalid"),
        ({"action": "save", "filter": {"tags": ["a\tb"]}}, "filter.tags.0", "control"),
        ({"action": "save", "filter": {"q": ""}}, "filter.q", "blank"),
        ({"action": "delete", "filter": {"q": " "}}, "filter.q", "blank"),
        ({"action": "delete", "filter": {"q": "the"}}, "filter.q", "no_words"),
        ({"action": "delete", "filter": {"q": '"'}}, "filter.q", "no_words"),
        ({"action": "delete", "filter": {"q": "&|!()", "saved": False}}, "filter.q", "no_words"),
        ({"action": "save", "filter": {"review_status": []}}, "filter.review_status", "empty"),
        (
            {"action": "save", "filter": {"created_after": "2026-01-01"}},
            "filter.created_after",
            "no_offset",
        ),
        ({"action": "tag", "ids": [ONE]}, "tags", "required"),
        ({"action": "tag", "ids": [ONE], "tags": []}, "tags", "empty"),
        ({"action": "tag", "ids": [ONE], "tags": ["a", "a"]}, "tags", "duplicate"),
        ({"action": "save", "ids": [ONE], "tags": ["a"]}, "tags", "conflict"),
        ({"action": "tag", "ids": [ONE], "tags": ["a"], "reason": ""}, "reason", "conflict"),
        ({"action": "reject", "ids": [ONE], "reason": "x" * 501}, "reason", "max_length"),
        ({"action": "save", "ids": [ONE], "all": True}, "all", "unknown_field"),
    ],
)
def test_an_action_that_cannot_be_is_refused(body, field, code, api, images):
    before = list(Image.objects.order_by("pk").values())
    errors = invalid(api.post(ACTIONS, body))
    assert {place: told[0] for place, told in errors.items()} == {field: code}
    assert list(Image.objects.order_by("pk").values()) == before


def test_an_action_with_a_key_is_done_once(api, images):
    body = {"action": "delete", "ids": named(images)[:1]}
    key = {"Idempotency-Key": "k1"}
    first = api.post(ACTIONS, body, headers=key)
    again = api.post(ACTIONS, body, headers=key)
    assert outcomes(first, "delete") == outcomes(again, "delete") == ["done"]
    assert again["Idempotent-Replayed"] == "true"
    other = {**body, "ids": named(images)[1:2]}
    problem(api.post(ACTIONS, other, headers=key), 422, "idempotency_key_reused")
    assert Image.objects.count() == 2


def test_only_a_post_does_something(api, images):
    for method in ("get", "put", "patch", "delete"):
        problem(getattr(api, method)(ACTIONS), 405, "method_not_allowed")


def test_five_hundred_images_take_as_many_queries_as_one(
    api, owner, images, django_assert_num_queries
):
    row = Image.objects.filter(pk=images[0].pk).values().get()
    others = [
        Image(**{**row, "id": uuid.uuid4(), "index": number, "file": f"x/{number}"})
        for number in range(1, 500)
    ]
    Image.objects.bulk_create(others)
    for chosen in (named(images)[1:2], [str(images[0].pk), *named(others)]):
        with django_assert_num_queries(6):
            answer = api.post(ACTIONS, {"action": "approve", "ids": chosen})
        assert outcomes(answer, "approve") == ["done"] * len(chosen)


def test_a_search_takes_as_many_queries_for_any_number_of_images(
    api, owner, django_assert_num_queries
):
    for count in (1, 9):
        for _ in range(count):
            make_image(make_generation(owner, prompt="a fox"))
        # One of them asks whether there is a word in it.
        with django_assert_num_queries(8):
            answer = api.post(ACTIONS, {"action": "approve", "filter": {"q": "fox"}})
        assert outcomes(answer, "approve").count("done") == count
