import hashlib
import io
from urllib.parse import parse_qs, urlsplit

import PIL.Image
import pytest
from rest_framework.test import APIClient

from batches.models import Generation, Image, Publication
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, ids, invalid, problem
from tests.factories import (
    MODEL,
    make_batch,
    make_generation,
    make_image,
    make_publication,
    make_user,
    picture,
)

pytestmark = pytest.mark.django_db

PARTS = {"file": "url", "thumbnail": "thumbnail_url"}


@pytest.fixture
def image(owner):
    return make_image(make_generation(owner))


def content(response):
    assert response.status_code == 200, getattr(response, "content", b"")
    return b"".join(response.streaming_content)


def test_an_image_tells_all_about_itself(api, owner):
    batch = make_batch(owner, size=1)
    image = make_image(batch.generations.get())
    body = api.get(f"{IMAGES}{image.pk}/").json()
    assert body["id"] == str(image.pk)
    assert body["generation_id"] == str(image.generation_id)
    assert body["batch_id"] == str(batch.pk)
    assert (body["width"], body["height"], body["format"]) == (8, 6, "png")
    assert (body["size_bytes"], body["sha256"]) == (image.size_bytes, image.sha256)
    assert (body["prompt"], body["seed"]) == ("picture 0", 7)
    assert (body["style"], body["genre"], body["model"]) == ("", "", MODEL)
    assert (body["is_saved"], body["tags"]) == (False, [])
    assert (body["review_status"], body["reviewed_at"]) == ("pending", None)
    assert (body["made_width"], body["made_height"]) == (None, None)
    assert body["publications"] == []
    assert body["created_at"].endswith("Z")
    assert api.get(IMAGES).json()["results"][0].keys() == body.keys()


@pytest.mark.parametrize("part", PARTS)
def test_a_signed_address_works_without_a_token(part, api, image):
    url = api.get(f"{IMAGES}{image.pk}/").json()[PARTS[part]]
    data = content(APIClient().get(url))
    assert PIL.Image.open(io.BytesIO(data)).size == (8, 6)
    if part == "file":
        assert hashlib.sha256(data).hexdigest() == image.sha256


def test_every_place_that_shows_an_image_gives_addresses_that_work(api, owner):
    image = make_image(make_batch(owner, size=1).generations.get())
    shown = [
        api.get(f"{BATCHES}{image.generation.batch_id}/").json()["items"][0]["image"],
        api.get(BATCHES).json()["results"][0]["items"][0]["image"],
        api.get(f"{GENERATIONS}{image.generation_id}/").json()["image"],
        api.get(GENERATIONS).json()["results"][0]["image"],
        api.get(f"{IMAGES}{image.pk}/").json(),
        api.get(IMAGES).json()["results"][0],
    ]
    for body in shown:
        for name in PARTS.values():
            assert content(APIClient().get(body[name]))


def test_addresses_are_at_the_public_address(api, image, settings):
    settings.PUBLIC_URL = "https://pictures.example"
    body = api.get(f"{IMAGES}{image.pk}/").json()
    for part, name in PARTS.items():
        assert body[name].startswith(f"https://pictures.example{IMAGES}{image.pk}/{part}/?")


@pytest.mark.parametrize("part", PARTS)
def test_a_signed_address_ends_after_five_minutes(part, api, image, clock):
    url = api.get(f"{IMAGES}{image.pk}/").json()[PARTS[part]]
    clock.ahead_s = 295
    assert content(APIClient().get(url))
    clock.ahead_s = 302
    problem(APIClient().get(url), 404, "not_found")
    assert content(APIClient().get(api.get(f"{IMAGES}{image.pk}/").json()[PARTS[part]]))


@pytest.mark.parametrize("part", PARTS)
def test_a_signature_is_for_one_part_of_one_image(part, api, owner, image):
    other = make_image(make_generation(owner))
    url = api.get(f"{IMAGES}{image.pk}/").json()[PARTS[part]]
    (signature,) = parse_qs(urlsplit(url).query)["signature"]
    (other_part,) = PARTS.keys() - {part}
    for address in (
        f"{IMAGES}{image.pk}/{other_part}/",
        f"{IMAGES}{other.pk}/{part}/",
        f"{IMAGES}{other.pk}/{other_part}/",
    ):
        problem(APIClient().get(address, {"signature": signature}), 404, "not_found")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "signature", ["", "x", "a:b", ":", "::", "\N{FOX FACE}:x", "\x00", "x:" * 99]
)
def test_a_made_up_signature_opens_nothing(part, signature, api, image):
    address = f"{IMAGES}{image.pk}/{part}/"
    problem(APIClient().get(address, {"signature": signature}), 404, "not_found")
    problem(api.get(address, {"signature": signature}), 404, "not_found")


def test_a_changed_signature_opens_nothing(api, image):
    url = api.get(f"{IMAGES}{image.pk}/").json()["url"]
    changed = url[:-1] + ("A" if url[-1] != "A" else "B")
    problem(APIClient().get(changed), 404, "not_found")


@pytest.mark.parametrize("part", PARTS)
def test_the_owners_token_opens_an_image(part, api, image):
    assert content(api.get(f"{IMAGES}{image.pk}/{part}/"))


@pytest.mark.parametrize("part", PARTS)
def test_an_image_is_not_open_without_either(part, image):
    response = APIClient().get(f"{IMAGES}{image.pk}/{part}/")
    problem(response, 401, "not_authenticated")
    assert response["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_a_file_is_served_as_what_it_is_and_never_run(image_format, api, owner):
    image = make_image(make_generation(owner), image_format=image_format)
    for part, part_format in (("file", image_format), ("thumbnail", "webp")):
        response = api.get(f"{IMAGES}{image.pk}/{part}/")
        data = content(response)
        assert data == picture(part_format)
        assert response["Content-Type"] == f"image/{part_format}"
        assert response["Content-Length"] == str(len(data))
        assert response["X-Content-Type-Options"] == "nosniff"
        assert response["Content-Security-Policy"] == "sandbox; default-src 'none'"
        assert response["Cache-Control"] == "private, max-age=300"
        assert f'filename="{image.pk}.{part_format}"' in response["Content-Disposition"]


@pytest.mark.parametrize("accepted", ["image/*", "image/png", "text/html", "*/*", "nonsense"])
def test_a_file_is_served_whatever_the_client_would_accept(accepted, api, image):
    assert content(api.get(f"{IMAGES}{image.pk}/file/", headers={"Accept": accepted}))


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_storage_has_lost_is_not_found(part, api, image):
    getattr(image, part).delete(save=False)
    problem(api.get(f"{IMAGES}{image.pk}/{part}/"), 404, "not_found")
    url = api.get(f"{IMAGES}{image.pk}/").json()[PARTS[part]]
    problem(APIClient().get(url), 404, "not_found")


def test_a_deleted_image_is_gone_with_its_files(
    api, image, media, django_capture_on_commit_callbacks
):
    url = api.get(f"{IMAGES}{image.pk}/").json()["url"]
    stored = {path for path in media.rglob("*") if path.is_file()}
    assert len(stored) == 2
    with django_capture_on_commit_callbacks() as callbacks:
        response = api.delete(f"{IMAGES}{image.pk}/")
    assert (response.status_code, response.content) == (204, b"")
    assert not Image.objects.exists()
    # Should the commit fail, the row must still have its files.
    assert {path for path in media.rglob("*") if path.is_file()} == stored
    for callback in callbacks:
        callback()
    assert [path for path in media.rglob("*") if path.is_file()] == []

    generation = Generation.objects.get()
    assert generation.deleted_image_count == 1
    assert generation.status == "completed"
    assert generation.version == 2
    assert api.get(f"{GENERATIONS}{generation.pk}/").json()["image"] is None
    for response in (
        api.get(f"{IMAGES}{image.pk}/"),
        api.delete(f"{IMAGES}{image.pk}/"),
        api.get(f"{IMAGES}{image.pk}/file/"),
        APIClient().get(url),
    ):
        problem(response, 404, "not_found")
    assert Generation.objects.get().deleted_image_count == 1


def test_an_image_whose_files_are_gone_can_be_deleted(
    api, image, django_capture_on_commit_callbacks
):
    image.file.delete(save=False)
    image.thumbnail.delete(save=False)
    with django_capture_on_commit_callbacks(execute=True):
        assert api.delete(f"{IMAGES}{image.pk}/").status_code == 204


def test_deleting_one_image_leaves_the_others(api, owner, image, media):
    other = make_image(make_generation(owner))
    api.delete(f"{IMAGES}{image.pk}/")
    assert content(api.get(f"{IMAGES}{other.pk}/file/"))


# --- The gallery --------------------------------------------------------------------------------


def test_an_image_tells_where_it_is_published(api, owner, image, django_assert_num_queries):
    address = "https://shop.example/mug"
    done = make_publication(image, "published", channel="shopify", remote_url=address)
    make_publication(image)
    make_publication(make_image(make_generation(make_user())))
    with django_assert_num_queries(2):
        body = api.get(f"{IMAGES}{image.pk}/").json()
    assert [one["channel"] for one in body["publications"]] == ["printify", "shopify"]
    assert body["publications"][1] == {
        "id": str(done.pk),
        "channel": "shopify",
        "status": "published",
        "product_type": "mug",
        "url": address,
    }
    assert api.get(IMAGES).json()["results"][0]["publications"] == body["publications"]


def test_an_image_that_is_being_published_is_not_deleted(api, image):
    publication = make_publication(image)
    problem(api.delete(f"{IMAGES}{image.pk}/"), 409, "being_published")
    publication.status, publication.finished_at = "published", image.created_at
    publication.save()
    assert api.delete(f"{IMAGES}{image.pk}/").status_code == 204
    assert Publication.objects.get().image_id is None


@pytest.fixture
def shelf(api, owner):
    """An approved fox, a saved owl that is tagged, and a rejected fox in another format."""
    fox = make_image(make_generation(owner, prompt="a red fox"))
    owl = make_image(make_generation(owner, prompt="an owl", model="some/model"))
    old = make_image(make_generation(owner, prompt="foxes"), image_format="webp")
    assert api.post(f"{IMAGES}{fox.pk}/approve/").status_code == 200
    assert api.post(f"{IMAGES}{old.pk}/reject/").status_code == 200
    change = {"is_saved": True, "tags": ["it's, odd", "b"]}
    assert api.patch(f"{IMAGES}{owl.pk}/", change).status_code == 200
    make_image(make_generation(make_user(), prompt="a red fox"))
    return {"fox": str(fox.pk), "owl": str(owl.pk), "old": str(old.pk)}


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({}, ["old", "owl", "fox"]),
        ({"order": "newest"}, ["old", "owl", "fox"]),
        ({"order": "oldest"}, ["fox", "owl", "old"]),
        ({"q": "fox"}, ["old", "fox"]),
        ({"q": "fox", "order": "oldest"}, ["fox", "old"]),
        ({"q": "fox -red"}, ["old"]),
        ({"q": "nonesuch"}, []),
        ({"review_status": "approved"}, ["fox"]),
        ({"review_status": "approved,rejected"}, ["old", "fox"]),
        ({"review_status": "pending"}, ["owl"]),
        ({"saved": "true"}, ["owl"]),
        ({"saved": "false"}, ["old", "fox"]),
        ({"tag": "it's, odd"}, ["owl"]),
        ({"tag": ["b", "it's, odd"]}, ["owl"]),
        ({"tag": ["b", "c"]}, []),
        ({"tag": "odd"}, []),
        ({"model": "some/model", "saved": "true", "q": "owl", "tag": "b"}, ["owl"]),
        ({"format": "webp", "review_status": "rejected"}, ["old"]),
        ({"format": "webp", "review_status": "approved"}, []),
    ],
)
def test_the_gallery_finds_what_is_asked_for(asked, names, api, shelf):
    assert ids(api.get(IMAGES, asked)) == [shelf[name] for name in names]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("review_status", "good"),
        ("review_status", "approved,good"),
        ("review_status", ","),
        ("review_status", "approved,"),
        ("saved", "yes"),
        ("saved", "True "),
        ("tag", "x" * 51),
        ("tag", " "),
        ("tag", "a\nb"),
        ("tag", "\x00"),
        ("tag", [str(number) for number in range(21)]),
        ("batch", "x"),
        ("format", "gif"),
        ("q", "x" * 201),
        ("q", "\x00"),
        ("order", "best"),
        ("model", "x" * 201),
    ],
)
def test_what_the_gallery_does_not_understand_is_refused(name, value, api):
    assert invalid(api.get(IMAGES, {name: value})).keys() == {name}


@pytest.mark.parametrize("q", ["the", "-", '"', "&|!()", "the of", "-the", "a or the", "!!!"])
def test_a_search_for_no_word_does_not_find_everything(q, api, shelf):
    assert invalid(api.get(IMAGES, {"q": q})) == {
        "q": ("no_words", "Holds no word that can be searched for.")
    }
    assert invalid(api.get(IMAGES, {"q": q, "saved": "true"})).keys() == {"q"}


def test_a_search_may_be_for_what_is_not_there(api, shelf):
    assert ids(api.get(IMAGES, {"q": "-fox"})) == [shelf["owl"]]
    assert ids(api.get(IMAGES, {"q": "the -fox"})) == [shelf["owl"]]
    assert ids(api.get(IMAGES, {"q": "the owl"})) == [shelf["owl"]]


@pytest.mark.parametrize("order", ["newest", "oldest"])
@pytest.mark.parametrize("asked", [{}, {"q": "fox"}, {"tag": "a"}, {"saved": "false", "q": "fox"}])
def test_the_gallery_is_walked_forward_and_back(order, asked, api, owner):
    images = [make_image(make_generation(owner, prompt="a fox")) for _ in range(7)]
    for image in images:
        api.patch(f"{IMAGES}{image.pk}/", {"tags": ["a"]})
    expected = [str(image.pk) for image in (images if order == "oldest" else images[::-1])]
    walked, page = [], api.get(IMAGES, {**asked, "order": order, "page_size": 3}).json()
    while True:
        walked += [row["id"] for row in page["results"]]
        if page["next"] is None:
            break
        page = api.get(page["next"]).json()
    assert walked == expected
    back = []
    while page["previous"] is not None:
        page = api.get(page["previous"]).json()
        back = [row["id"] for row in page["results"]] + back
    assert back == expected[:6]


@pytest.mark.usefixtures("warm_caches")
@pytest.mark.parametrize(
    ("asked", "queries"),
    [
        ({}, 2),
        ({"saved": "false"}, 2),
        # One of them asks whether there is a word in it.
        ({"q": "lighthouse", "page_size": 3}, 3),
        ({"q": "lighthouse", "page_size": 100}, 4),
        ({"tag": "none"}, 3),
    ],
)
def test_a_page_of_the_gallery_takes_as_many_queries_for_any_number_of_images(
    asked, queries, api, owner, django_assert_num_queries
):
    for count in (4, 20):
        for _ in range(count):
            make_publication(make_image(make_generation(owner)), "published")
        with django_assert_num_queries(queries):
            assert api.get(IMAGES, asked).status_code == 200
