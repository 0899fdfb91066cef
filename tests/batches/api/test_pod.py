"""The routes of print-on-demand clients."""

import uuid

import pytest

from batches import publications
from batches.models import Batch, Generation
from tests.batches.api.support import DEV, SCHNELL, SDXL, ids, invalid, problem
from tests.factories import make_batch, make_generation, make_image, make_user

pytestmark = pytest.mark.django_db

GENERATE = "/api/generate"
START = "/functions/v1/start-generation"
FIELDS = {
    "status", "batch_id", "batch_size", "success_count", "failed_count", "prompt", "images",
    "message", "mapped",
}  # fmt: skip
IMAGE_FIELDS = {
    "id", "url", "thumbnail_url", "prompt", "seed", "width", "height", "status", "created_at",
}  # fmt: skip


@pytest.fixture
def generate(post):
    def call(**body):
        answer = post(GENERATE, {"prompt": "a fox", **body})
        assert answer.status_code == 202, answer.content
        return answer.json()

    return call


def test_variations_are_submitted_and_told(post, queued):
    answer = post(GENERATE, {"prompt": "a fox", "batch_size": 3, "style": "retro"})
    assert answer.status_code == 202
    told = answer.json()
    assert told.keys() == FIELDS
    batch = Batch.objects.get()
    assert answer["Location"] == f"http://testserver/api/batch/{batch.pk}"
    assert told["batch_id"] == str(batch.pk)
    assert (told["status"], told["batch_size"], told["prompt"]) == ("processing", 3, "a fox")
    assert (told["success_count"], told["failed_count"], told["images"]) == (0, 0, [])
    assert told["message"] == "0 of 3 are made."
    assert batch.style == "retro"
    assert {one.final_prompt for one in batch.generations.all()} == {"a fox, retro style"}
    assert queued() == {"control": 1}


def test_the_size_and_the_steps_of_a_print_are_mapped_to_what_the_model_can_do(generate):
    told = generate(model_id=SDXL)
    generation = Generation.objects.get()
    assert generation.settings == {
        "model": SDXL, "width": 1720, "height": 2048, "steps": 30, "guidance_scale": 2.0,
    }  # fmt: skip
    assert told["mapped"] == {
        "width": {"asked": 4500, "used": 1720},
        "height": {"asked": 5400, "used": 2048},
    }
    assert "resize" not in generation.settings


def test_what_a_model_has_not_is_left_out_and_told(generate):
    told = generate(model_id=SCHNELL, width=1024, height=1024)
    assert told["mapped"] == {
        "steps": {"asked": 30, "used": 4},
        "cfg_scale": {"asked": 2.0, "used": None},
    }


def test_what_was_mapped_is_told_again_later(generate, api):
    told = generate(model_id=SDXL)
    assert api.get(f"/api/batch/{told['batch_id']}").json() == told


def test_nothing_is_told_to_be_mapped_that_was_not(generate):
    body = {"width": 1024, "height": 1024, "steps": 20, "cfg_scale": 5.0, "model_id": SDXL}
    assert generate(**body)["mapped"] == {}
    assert Generation.objects.get().metadata == {}


def test_the_first_variation_has_the_seed_and_the_others_random_ones(generate):
    generate(batch_size=25, seed=7)
    seeds = list(Generation.objects.order_by("index").values_list("seed", flat=True))
    assert seeds[0] == 7
    assert len(set(seeds)) == 25


@pytest.mark.parametrize("mode", ["upscale", "place"])
def test_images_are_stored_in_the_size_of_the_print_if_that_is_asked_for(mode, generate):
    generate(resize=mode)
    size = {"width": 4500, "height": 5400}
    assert Generation.objects.get().settings["resize"] == {"mode": mode, **size}


REFUSED = [
    ({"batch_size": 26}, "batch_size", "too_many"),
    ({"batch_size": 0}, "batch_size", "min_value"),
    ({"batch_size": "3"}, "batch_size", "invalid"),
    ({"prompt": ""}, "prompt", "blank"),
    ({"prompt": " "}, "prompt", "blank"),
    ({"prompt": None}, "prompt", "null"),
    ({"prompt": "a" * 3_999, "style": "retro", "batch_size": 3}, "prompt", "too_long"),
    ({"width": 15}, "width", "min_value"),
    ({"height": 20_001}, "height", "max_value"),
    ({"steps": 0}, "steps", "min_value"),
    ({"cfg_scale": -1}, "cfg_scale", "min_value"),
    ({"cfg_scale": 1_001}, "cfg_scale", "max_value"),
    ({"seed": 2**32}, "seed", "max_value"),
    ({"model_id": "nobody/nothing"}, "model_id", "unknown_model"),
    ({"resize": "stretch"}, "resize", "invalid_choice"),
    ({"resize": "upscale", "width": 9_000}, "width", "max_value"),
    ({"resize": "place", "width": 8_000, "height": 8_000}, "height", "too_large"),
    ({"resize": "place", "model_id": "recraft-ai/recraft-v3-svg"}, "resize", "unsupported"),
    ({"wait": "yes"}, "wait", "invalid"),
    ({"wait": 61}, "wait", "out_of_range"),
    ({"wait": -1}, "wait", "out_of_range"),
    ({"tags": ["a", "a"]}, "tags", "duplicate"),
    ({"count": 3}, "count", "unknown_field"),
]


@pytest.mark.parametrize(("body", "field", "code"), REFUSED)
@pytest.mark.parametrize("query", ["", "?dry_run=true"])
def test_what_cannot_be_done_is_refused_by_the_names_of_these_clients(
    body, field, code, query, api, nothing_happens
):
    with nothing_happens():
        problems = invalid(api.post(GENERATE + query, {"prompt": "a fox", **body}))
    assert {name: told for name, (told, _) in problems.items()} == {field: code}


def test_a_smaller_limit_of_the_installation_counts(api, settings):
    settings.MAX_BATCH_SIZE = 3
    problems = invalid(api.post(GENERATE, {"prompt": "a fox", "batch_size": 4}))
    assert problems["batch_size"] == ("too_many", "At most 3 images may be asked for, not 4.")


def test_a_request_that_is_sent_again_is_done_once(api):
    first, second = (
        api.post(GENERATE, {"prompt": "a fox"}, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert first.json() == second.json()
    assert second["Idempotent-Replayed"] == "true"
    assert second["Location"] == first["Location"]
    assert Batch.objects.count() == 1


@pytest.mark.parametrize(("wait", "kept_s"), [(True, 60), (12, 12), (False, None), (0, None)])
def test_a_wait_in_the_body_has_the_answer_kept_back(wait, kept_s, api):
    for _ in range(2):  # also when the answer is given again
        answer = api.post(
            GENERATE, {"prompt": "a fox", "wait": wait}, headers={"Idempotency-Key": "k"}
        )
        kept = answer.headers.get("X-Picture-Wait")
        path = f"/api/batch/{answer.json()['batch_id']}"
        assert kept == (None if kept_s is None else f"{kept_s} {path}")


def test_a_preferred_wait_leads_to_the_same_shape(api):
    answer = api.post(GENERATE, {"prompt": "a fox"}, headers={"Prefer": "wait=5"})
    assert answer["X-Picture-Wait"] == f"5 /api/batch/{answer.json()['batch_id']}"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("scheduled", "processing"),
        ("pending", "processing"),
        ("processing", "processing"),
        ("paused", "processing"),
        ("completed", "completed"),
        ("partial", "partial"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ],
)
def test_statuses_are_the_ones_that_these_clients_know(ours, theirs):
    from batches.api.pod import PrintBatchSerializer

    assert PrintBatchSerializer().get_status(Batch(status=ours)) == theirs


def test_a_batch_tells_its_images(api, owner, django_assert_num_queries):
    batch = make_batch(owner, 3)
    for generation in batch.generations.order_by("index")[:2]:
        make_image(generation)
    Batch.objects.filter(pk=batch.pk).update(completed_count=2)
    api.get(f"/api/batch/{batch.pk}")
    with django_assert_num_queries(4):  # one of them to know who asks
        told = api.get(f"/api/batch/{batch.pk}").json()
    assert [one["prompt"] for one in told["images"]] == ["picture 0", "picture 1"]
    assert (told["success_count"], told["message"]) == (2, "2 of 3 are made.")
    (first, _) = told["images"]
    assert first.keys() == IMAGE_FIELDS
    assert (first["width"], first["height"], first["status"], first["seed"]) == (8, 6, "pending", 7)
    file = api.get(first["url"])
    assert file.getvalue().startswith(b"\x89PNG")
    file.close()


def test_metadata_of_other_clients_is_not_taken_for_what_was_mapped(api, owner):
    for metadata in ({"mapped": "all"}, {"mapped": {"width": 1, "height": {"asked": 1}}}):
        batch = make_batch(owner, 1)
        Generation.objects.filter(batch=batch).update(metadata=metadata)
        assert api.get(f"/api/batch/{batch.pk}").json()["mapped"] == {}


def test_images_are_listed_newest_first_by_cursor(api, owner, django_assert_num_queries):
    made = [make_image(make_generation(owner)) for _ in range(3)]
    make_image()  # somebody else's
    page = api.get("/api/images", {"page_size": 2})
    assert ids(page) == [str(one.pk) for one in reversed(made[1:])]
    assert page.json()["results"][0].keys() == IMAGE_FIELDS
    assert page.json()["next"].startswith("http://testserver/api/images?")
    with django_assert_num_queries(2):
        assert ids(api.get(page.json()["next"])) == [str(made[0].pk)]


def test_images_are_filtered_by_review_and_batch(api, owner):
    image = make_image(make_batch(owner, 1).generations.get())
    other = make_image(make_generation(owner))
    api.post(f"/api/approve/{other.pk}")
    assert ids(api.get("/api/images", {"status": "approved"})) == [str(other.pk)]
    assert ids(api.get("/api/images", {"batch_id": image.generation.batch_id})) == [str(image.pk)]
    assert invalid(api.get("/api/images", {"status": "fine"})).keys() == {"status"}


def test_an_image_is_approved_once_and_for_all(api, owner):
    image = make_image(make_generation(owner))
    told = api.post(f"/api/approve/{image.pk}").json()
    assert told.keys() == {"status", "image_id", "approved_at"}
    assert (told["status"], told["image_id"]) == ("approved", str(image.pk))
    assert told["approved_at"]
    assert api.post(f"/api/approve/{image.pk}", {}).json() == told
    image.refresh_from_db()
    assert image.review_status == "approved"
    problems = invalid(api.post(f"/api/approve/{image.pk}", {"status": "rejected"}))
    assert problems.keys() == {"status"}


PRODUCT = {"channel": "printify", "product_type": "mug", "title": "Fox"}


def test_an_approved_image_is_published_once(api, owner):
    publications.set_account(
        owner_id=owner.pk, channel="printify", credentials={"token": "t"}, options={}
    )
    image = make_image(make_generation(owner))
    api.post(f"/api/approve/{image.pk}")
    first = api.post(f"/api/publish/{image.pk}", PRODUCT)
    assert first.status_code == 202, first.content
    told = first.json()
    assert told == {
        "status": "publishing",
        "publication_id": told["publication_id"],
        "image_id": str(image.pk),
        **PRODUCT,
        "url": "",
    }
    again = api.post(f"/api/publish/{image.pk}", PRODUCT)
    assert (again.status_code, again.json()) == (200, told)


@pytest.mark.parametrize(
    ("name", "code"), [("channel", "unknown_channel"), ("product_type", "unknown_product_type")]
)
def test_an_unknown_channel_or_product_is_refused(name, code, api, owner):
    publications.set_account(
        owner_id=owner.pk, channel="printify", credentials={"token": "t"}, options={}
    )
    image = make_image(make_generation(owner))
    api.post(f"/api/approve/{image.pk}")
    problems = invalid(api.post(f"/api/publish/{image.pk}", {**PRODUCT, name: "moon"}))
    assert problems[name][0] == code


def test_an_image_that_is_not_approved_is_not_published(api, owner):
    image = make_image(make_generation(owner))
    problems = invalid(api.post(f"/api/publish/{image.pk}", PRODUCT))
    assert problems["image_id"][0] == "not_approved"


@pytest.mark.parametrize("name", ["channel", "product_type", "title"])
def test_what_is_missing_of_a_publication_is_told(name, api, owner):
    image = make_image(make_generation(owner))
    body = {key: value for key, value in PRODUCT.items() if key != name}
    assert invalid(api.post(f"/api/publish/{image.pk}", body))[name][0] == "required"


@pytest.mark.parametrize("act", ["approve", "publish"])
def test_another_users_image_is_not_there(act, api):
    image = make_image(make_generation(make_user()))
    for pk in (image.pk, uuid.uuid4()):
        problem(api.post(f"/api/{act}/{pk}", PRODUCT), 404, "not_found")


def test_a_single_image_is_started(post, api):
    answer = post(
        START, {"prompt": "a fox", "model_id": SDXL, "width": 1024, "height": 1024, "cfg_scale": 4}
    )
    assert answer.status_code == 202
    generation = Generation.objects.get()
    started = {
        "generation_id": str(generation.pk), "status": "processing", "image": None, "error": None
    }  # fmt: skip
    assert answer.json() == started
    assert answer["Location"] == f"http://testserver/functions/v1/generations/{generation.pk}"
    assert api.get(answer["Location"]).json() == started
    image = make_image(generation)
    ended = api.get(answer["Location"]).json()
    assert (ended["status"], ended["image"]["id"]) == ("completed", str(image.pk))
    assert generation.settings["guidance_scale"] == 4
    assert generation.batch_id is None


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        # Nothing is mapped here.
        ({"model_id": SDXL, "width": 4500, "height": 5400}, "width", "out_of_range"),
        ({"model_id": DEV, "cfg_scale": 11}, "cfg_scale", "out_of_range"),
        ({"model_id": DEV, "guidance_scale": 11}, "guidance_scale", "out_of_range"),
        ({"model_id": SCHNELL, "cfg_scale": 2}, "cfg_scale", "unsupported"),
        ({"cfg_scale": 2, "guidance_scale": 2}, "cfg_scale", "conflict"),
        ({"model_id": "nobody/nothing"}, "model_id", "unknown_model"),
        ({"modelId": SDXL}, "modelId", "unknown_field"),
        ({"prompt": ""}, "prompt", "blank"),
    ],
)
def test_a_start_is_as_strict_as_the_apis_own(body, field, code, api, nothing_happens):
    with nothing_happens():
        problems = invalid(api.post(START, {"prompt": "a fox", **body}))
    assert problems[field][0] == code


@pytest.mark.parametrize("body", ["[]", '"a"', "null", "1"])
@pytest.mark.parametrize("path", [GENERATE, START])
def test_a_body_that_is_no_object_is_refused(path, body, api, nothing_happens):
    with nothing_happens():
        invalid(api.post(path, body, content_type="application/json"))


def test_a_start_is_done_once_with_one_key(api):
    for _ in range(2):
        api.post(START, {"prompt": "a fox"}, headers={"Idempotency-Key": "k"})
    assert Generation.objects.count() == 1


@pytest.mark.parametrize("path", [GENERATE, START])
def test_nobody_gets_in_without_a_token(path, client, db):
    problem(client.post(path, "{}", content_type="application/json"), 401, "not_authenticated")
