import pytest
from django.db.models.functions import Now

from batches.models import Attempt, Batch, Generation, Lane
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    SCHNELL,
    SDXL,
    ids,
    invalid,
    problem,
)
from tests.factories import make_batch, make_generation, make_image

pytestmark = pytest.mark.django_db


def test_a_single_generation_stands_on_its_own(post, api, owner, queued):
    answer = post(GENERATIONS, {"prompt": "a red bicycle"})
    assert answer.status_code == 202
    body = answer.json()
    row = Generation.objects.get()
    assert answer["Location"] == f"http://testserver{GENERATIONS}{row.pk}/"
    assert (row.owner, row.batch, row.index, row.status) == (owner, None, 0, "queued")
    assert row.priority == 6
    assert not Batch.objects.exists()
    assert Lane.objects.get(owner=owner).queued == 1
    assert queued() == {"control": 1}
    assert (body["batch_id"], body["provider_id"], body["image"], body["error"]) == (None,) * 4
    assert api.get(answer["Location"]).json() == body


NESTED = {
    "prompt": "a red bicycle",
    "negative_prompt": "people",
    "seed": 7,
    "name": "Bicycle",
    "custom_id": "b-1",
    "metadata": {"shelf": 3},
    "style": "retro",
    "genre": "still life",
    "priority": 8,
}


@pytest.mark.parametrize(
    "form",
    [
        {
            "settings": {
                "model": SDXL,
                "width": 768,
                "height": 1024,
                "steps": 9,
                "guidance_scale": 5,
                "output_format": "png",
            }
        },
        {
            "model_id": SDXL,
            "width": 768,
            "height": 1024,
            "steps": 9,
            "guidance_scale": 5,
            "output_format": "png",
        },
    ],
    ids=["nested", "flat"],
)
def test_both_forms_say_the_same(form, post, api):
    answer = post(GENERATIONS, NESTED | form)
    assert answer.status_code == 202, answer.content
    row = Generation.objects.get()
    assert row.settings == {
        "model": SDXL,
        "width": 768,
        "height": 1024,
        "steps": 9,
        "guidance_scale": 5,
        "output_format": "png",
    }
    assert row.input == {
        "prompt": "a red bicycle, retro style, still life",
        "negative_prompt": "people",
        "seed": 7,
        "width": 768,
        "height": 1024,
        "num_inference_steps": 9,
        "guidance_scale": 5,
        "num_outputs": 1,
    }
    assert (row.name, row.custom_id, row.metadata, row.priority) == (
        "Bicycle",
        "b-1",
        {"shelf": 3},
        8,
    )
    assert api.get(answer["Location"]).json() == answer.json()


def test_the_flat_form_takes_an_aspect_ratio(post):
    assert post(GENERATIONS, {"prompt": "a fox", "aspect_ratio": "16:9"}).status_code == 202
    row = Generation.objects.get()
    assert (row.model, row.input["aspect_ratio"]) == (SCHNELL, "16:9")


@pytest.mark.parametrize(
    ("flat", "field"),
    [
        ({"model_id": SCHNELL}, "model_id"),
        ({"width": 1024, "height": 1024}, "width"),
        ({"aspect_ratio": "1:1"}, "aspect_ratio"),
        ({"steps": 4}, "steps"),
        ({"guidance_scale": 4}, "guidance_scale"),
        ({"output_format": "png"}, "output_format"),
    ],
)
@pytest.mark.parametrize("nested", [{}, {"model": SCHNELL}])
def test_the_forms_cannot_be_mixed(flat, field, nested, post, nothing_happens):
    with nothing_happens():
        errors = invalid(post(GENERATIONS, {"prompt": "a fox", "settings": nested, **flat}))
    assert errors.keys() == {field}
    assert errors[field][0] == "conflict"
    assert "`settings`" in errors[field][1]


@pytest.mark.parametrize(
    ("body", "field", "code", "said"),
    [
        ({}, "prompt", "required", "required"),
        ({"prompt": ""}, "prompt", "blank", "blank"),
        ({"prompt": "\n"}, "prompt", "blank", "blank"),
        ({"prompt": 7}, "prompt", "invalid", "string"),
        ({"prompt": "x" * 4_001}, "prompt", "max_length", "4000"),
        ({"prompt": "x" * 4_000, "style": "retro"}, "prompt", "too_long", "4,000"),
        ({"prompt": "a", "negative_prompt": "b"}, "negative_prompt", "unsupported", "supported"),
        ({"prompt": "a", "seed": 2**32}, "seed", "max_value", "4294967295"),
        ({"prompt": "a", "seed": None}, "seed", "null", "null"),
        ({"prompt": "a", "prompts": []}, "prompts", "unknown_field", "prompt"),
        ({"prompt": "a", "count": 2}, "count", "unknown_field", "prompt"),
        ({"prompt": "a", "model": SDXL}, "model", "unknown_field", "model_id"),
        ({"prompt": "a", "priority": 10}, "priority", "max_value", "9"),
        ({"prompt": "a", "metadata": []}, "metadata", "not_an_object", "object"),
        ({"prompt": "a", "settings": []}, "settings", "invalid", "dictionary"),
        ({"prompt": "a", "settings": {"x": 1}}, "settings.x", "unknown_field", "steps"),
        ({"prompt": "a", "settings": {"steps": 5}}, "settings.steps", "out_of_range", "1 and 4"),
        ({"prompt": "a", "settings": {"model": "x"}}, "settings.model", "unknown_model", "x"),
        # In the flat form the fields are named as they stand there.
        ({"prompt": "a", "steps": 5}, "steps", "out_of_range", "1 and 4"),
        ({"prompt": "a", "model_id": "who/knows"}, "model_id", "unknown_model", "who/knows"),
        ({"prompt": "a", "width": 512}, "height", "required", "width"),
        ({"prompt": "a", "guidance_scale": 2}, "guidance_scale", "unsupported", "supported"),
        ({"prompt": "a", "guidance_scale": "2"}, "guidance_scale", "invalid", "number"),
        ({"prompt": "a", "width": "512"}, "width", "invalid", "integer"),
    ],
)
def test_a_generation_that_cannot_be_made_is_refused(
    body, field, code, said, post, nothing_happens
):
    with nothing_happens():
        errors = invalid(post(GENERATIONS, body))
    assert list(errors) == [field]
    assert errors[field][0] == code
    assert said in errors[field][1]


def test_a_generation_of_a_batch_is_a_generation_like_any_other(api, owner):
    batch = make_batch(owner, size=2)
    row = batch.generations.get(index=1)
    body = api.get(f"{GENERATIONS}{row.pk}/").json()
    assert (body["batch_id"], body["index"]) == (str(batch.pk), 1)
    item = api.get(f"{BATCHES}{batch.pk}/").json()["items"][1]
    assert item.items() <= body.items()


def test_the_providers_id_is_that_of_the_latest_attempt(api, owner):
    generation = make_generation(owner)
    for number in (1, 2):
        Attempt.objects.create(
            generation=generation,
            number=number,
            provider="replicate",
            model=SCHNELL,
            provider_id=f"prediction{number}",
            submitted_at=Now(),
            outcome="failed",
            finished_at=Now(),
        )
    assert api.get(f"{GENERATIONS}{generation.pk}/").json()["provider_id"] == "prediction2"
    assert api.get(GENERATIONS).json()["results"][0]["provider_id"] == "prediction2"


def test_a_completed_generation_shows_its_image(api, owner):
    image = make_image(make_generation(owner))
    body = api.get(f"{GENERATIONS}{image.generation_id}/").json()
    assert body["status"] == "completed"
    shown = body["image"]
    assert shown["id"] == str(image.pk)
    assert (shown["width"], shown["height"], shown["format"]) == (8, 6, "png")
    assert (shown["size_bytes"], shown["sha256"]) == (image.size_bytes, image.sha256)
    assert f"/images/{image.pk}/file/" in shown["url"]
    assert f"/images/{image.pk}/thumbnail/" in shown["thumbnail_url"]
    assert body["seconds"] == 0


def test_a_failed_generation_says_why(api, owner):
    generation = make_generation(owner)
    Generation.objects.filter(pk=generation.pk).update(
        status="failed", finished_at=Now(), error_code="content_refused", error_message="No."
    )
    body = api.get(f"{GENERATIONS}{generation.pk}/").json()
    assert body["error"] == {"code": "content_refused", "message": "No."}


def test_generations_are_found_by_batch_and_model(api, owner):
    batch = make_batch(owner, size=2)
    single = make_generation(owner, model=DEV)
    in_batch = {str(pk) for pk in batch.generations.values_list("pk", flat=True)}
    assert set(ids(api.get(GENERATIONS))) == in_batch | {str(single.pk)}
    assert set(ids(api.get(GENERATIONS, {"batch": batch.pk}))) == in_batch
    assert ids(api.get(GENERATIONS, {"model": DEV})) == [str(single.pk)]
    assert ids(api.get(GENERATIONS, {"model": DEV, "batch": batch.pk})) == []


@pytest.mark.parametrize("value", ["x", "7", "\x00", "00000000"])
def test_a_batch_filter_that_is_no_id_is_refused(value, api):
    assert invalid(api.get(GENERATIONS, {"batch": value})).keys() == {"batch"}


def test_a_model_filter_with_a_nul_is_refused(api):
    assert invalid(api.get(GENERATIONS, {"model": "\x00"})).keys() == {"model"}


def test_an_unknown_generation_is_not_found(api):
    problem(api.get(f"{GENERATIONS}00000000-0000-0000-0000-000000000000/"), 404, "not_found")


@pytest.mark.usefixtures("warm_caches")
def test_submitting_one_takes_a_constant_number_of_queries(api, django_assert_num_queries):
    # Authentication; a savepoint, two writes, its release.
    with django_assert_num_queries(5):
        assert api.post(GENERATIONS, {"prompt": "a fox"}).status_code == 202
