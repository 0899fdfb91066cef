"""More images like one that there is, and batches like one that there is."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import catalogue
from batches.models import Batch, CatalogueModel, Generation
from tests.batches.api.support import (
    BATCHES,
    DEV,
    IMAGES,
    SCHNELL,
    SDXL,
    client_of,
    invalid,
    problem,
)
from tests.factories import make_image, make_reference, make_user

pytestmark = pytest.mark.django_db

ASKED = {
    "name": "Foxes",
    "prompts": [
        {
            "text": "a fox",
            "negative_prompt": "people",
            "seed": 7,
            "name": "Fox",
            "custom_id": "f",
            "metadata": {"a": 1},
        },
        {"text": "a cat", "seed": 8, "settings": {"steps": 30}},
    ],
    "settings": {"model": SDXL, "width": 768, "height": 768, "steps": 20},
    "style": "retro",
    "genre": "pop",
    "tags": ["red"],
    "priority": 7,
}


@pytest.fixture
def batch(post):
    assert post(BATCHES, ASKED).status_code == 202
    return Batch.objects.get()


@pytest.fixture
def image(batch):
    return make_image(batch.generations.get(index=0))


@pytest.fixture
def similar(post, image):
    return lambda body=None, **headers: post(f"{IMAGES}{image.pk}/similar/", body or {}, **headers)


@pytest.fixture
def again(post, batch):
    return lambda body=None, **headers: post(f"{BATCHES}{batch.pk}/similar/", body or {}, **headers)


def made(answer):
    """The batch that was made, and its generations in order."""
    assert answer.status_code == 202, answer.content
    batch = Batch.objects.get(pk=answer.json()["id"])
    assert answer["Location"].endswith(f"{BATCHES}{batch.pk}/")
    return batch, list(batch.generations.order_by("index"))


def test_four_are_made_with_its_prompt_its_settings_and_new_seeds(similar, image):
    batch, rows = made(similar())
    assert len(rows) == 4
    first = image.generation
    for row in rows:
        for name in ("prompt", "negative_prompt", "style", "genre", "final_prompt", "model"):
            assert getattr(row, name) == getattr(first, name)
        assert row.settings == first.settings
        assert {**row.input, "seed": 7} == first.input
        assert (row.name, row.custom_id, row.metadata) == ("", "", {})
    seeds = {row.seed for row in rows}
    assert len(seeds) == 4
    assert 7 not in seeds
    assert (batch.name, batch.tags, batch.priority) == ("", [], 3)
    assert batch.settings == first.settings
    assert batch.status == "pending"


def test_its_own_seed_is_never_drawn(similar, monkeypatch):
    drawn = iter([7, 1, 7, 2])
    monkeypatch.setattr("batches.intake.SystemRandom.randint", lambda self, low, high: next(drawn))
    assert [row.seed for row in made(similar({"count": 2}))[1]] == [1, 2]


def test_everything_may_be_different(similar):
    start_at = timezone.now() + timedelta(hours=1)
    body = {
        "count": 2,
        "prompt": "a wolf",
        "negative_prompt": "",
        "seed": 7,
        "style": "",
        "genre": "punk",
        "settings": {"steps": 25, "width": None, "height": None, "aspect_ratio": "16:9"},
        "name": "Wolves",
        "tags": ["grey"],
        "priority": 1,
        "start_at": start_at.isoformat(),
    }
    batch, (first, second) = made(similar(body))
    assert (batch.name, batch.tags, batch.priority) == ("Wolves", ["grey"], 1)
    assert (batch.status, batch.start_at) == ("scheduled", start_at)
    assert first.final_prompt == second.final_prompt == "a wolf, punk"
    assert first.negative_prompt == ""
    assert first.settings == {"model": SDXL, "steps": 25, "aspect_ratio": "16:9"}
    assert (first.seed, second.seed == 7) == (7, False)


def test_of_a_prompt_of_several_images_as_many_are_made_as_are_asked_for(similar, image):
    generation = image.generation
    generation.settings |= {"num_outputs": 3}
    generation.save()
    _, rows = made(similar({"count": 2}))
    assert [row.output_count for row in rows] == [1, 1]
    _, rows = made(similar({"count": 2, "settings": {"num_outputs": 2}}))
    assert [row.output_count for row in rows] == [2, 2]


def test_its_reference_images_are_kept_or_taken_back(post, api, owner):
    reference = make_reference(owner)
    settings = {"model": DEV, "references": [{"id": str(reference.pk)}]}
    post(BATCHES, {"prompt": "a fox", "settings": settings})
    image = make_image(Generation.objects.get())
    batch, rows = made(post(f"{IMAGES}{image.pk}/similar/", {"count": 2}))
    assert [row.references.get().reference_id for row in rows] == [reference.pk] * 2
    assert batch.settings["references"] == [{"id": str(reference.pk)}]
    _, (row,) = made(
        post(f"{IMAGES}{image.pk}/similar/", {"count": 1, "settings": {"references": None}})
    )
    assert row.kind == "generate"
    batch, (row,) = made(post(f"{BATCHES}{image.generation.batch_id}/similar/", {}))
    assert row.references.get().reference_id == reference.pk


def test_it_is_what_was_asked_that_is_asked_again_and_no_fallback(similar, image):
    generation = image.generation
    Generation.objects.filter(pk=generation.pk).update(
        model=SCHNELL, provider="runpod", input={"prompt": "another"}
    )
    _, rows = made(similar({"count": 1}))
    assert (rows[0].model, rows[0].provider) == (SDXL, "replicate")


def test_an_image_of_no_batch_has_similar_ones_too():
    image = make_image()
    answer = client_of(image.owner).post(f"{IMAGES}{image.pk}/similar/", {"count": 1})
    _, (row,) = made(answer)
    assert (row.prompt, row.owner_id) == ("a lighthouse", image.owner_id)


def test_a_model_that_is_off_by_now_is_named(
    similar, again, image, nothing_happens, fresh_catalogue
):
    CatalogueModel.objects.filter(pk=SDXL).update(enabled=False)
    catalogue.forget()
    with nothing_happens():
        for ask in (similar, again):
            errors = invalid(ask())
            assert errors.keys() == {"settings.model"}
            assert errors["settings.model"][0] == "model_unavailable"
    other = {"model": SCHNELL, "steps": 4, "width": None, "height": None}
    assert made(similar({"settings": other, "negative_prompt": ""}))


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"count": 26}, "count", "too_many"),
        ({"count": 0}, "count", "min_value"),
        ({"seed": "7"}, "seed", "invalid"),
        ({"prompt": ""}, "prompt", "blank"),
        ({"prompt": None}, "prompt", "null"),
        ({"model": SDXL}, "model", "unknown_field"),
        ({"settings": {"stepz": 2}}, "settings.stepz", "unknown_field"),
        ({"settings": {"steps": 10_000}}, "settings.steps", "out_of_range"),
        ({"settings": {"model": "no/such"}}, "settings.model", "unknown_model"),
        (
            {"settings": {"references": [{"id": "7" * 32}]}},
            "settings.references.0",
            "unknown_reference",
        ),
        ({"tags": ["a", "a"]}, "tags", "duplicate"),
        ({"start_at": "2020-01-01T00:00:00Z"}, "start_at", "in_the_past"),
        ({"start_at": "2030-01-01T00:00:00"}, "start_at", "no_offset"),
        # Kept, and not taken by the other model.
        ({"settings": {"model": SCHNELL, "steps": 4}}, "settings.model", "unsupported"),
        (
            {"negative_prompt": "dogs", "settings": {"model": SCHNELL, "steps": 4}},
            "negative_prompt",
            "unsupported",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(body, field, code, similar, image, nothing_happens):
    with nothing_happens():
        errors = invalid(similar(body))
    assert errors[field][0] == code


def test_a_batch_is_made_anew_with_new_seeds(again, batch):
    new, rows = made(again())
    assert new.pk != batch.pk
    for name in ("name", "style", "genre", "tags", "priority"):
        assert getattr(new, name) == getattr(batch, name)
    # Those that all of its images have in common.
    assert new.settings == {"model": SDXL, "width": 768, "height": 768}
    assert len({row.seed for row in rows} | {7, 8}) == 4
    for row, old in zip(rows, batch.generations.order_by("index"), strict=True):
        for name in ("prompt", "final_prompt", "negative_prompt", "name", "custom_id", "metadata"):
            assert getattr(row, name) == getattr(old, name)
        assert row.settings == old.settings


def test_a_batch_may_be_made_anew_differently(again):
    batch, rows = made(again({"name": "", "settings": {"steps": 40}, "style": "", "tags": []}))
    assert [row.settings["steps"] for row in rows] == [40, 40]
    assert rows[0].final_prompt == "a fox, pop"
    assert (batch.name, batch.tags, batch.settings["steps"]) == ("", [], 40)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"count": 2}, "count"),
        ({"prompt": "a wolf"}, "prompt"),
        ({"seed": 7}, "seed"),
        ({"settings": {"model": SCHNELL, "steps": 4}}, "settings.model"),
        ({"settings": {"steps": 10_000}}, "settings.steps"),
        ({"settings": {"num_outputs": 100}}, "settings.num_outputs"),
        ({"start_at": "2020-01-01T00:00:00Z"}, "start_at"),
    ],
)
def test_a_batch_that_cannot_be_made_anew_is_refused(body, field, again, batch, nothing_happens):
    with nothing_happens():
        assert field in invalid(again(body))


def test_a_batch_of_more_than_is_allowed_by_now_is_refused(again, batch, settings):
    settings.MAX_BATCH_SIZE = 1
    assert invalid(again())["prompts"][0] == "too_many"


def test_they_are_made_once_with_a_key(similar, again):
    for ask in (similar, again):
        first = ask({}, HTTP_IDEMPOTENCY_KEY="k")
        again_ = ask({}, HTTP_IDEMPOTENCY_KEY="k")
        assert first.json() == again_.json()
        assert again_["Idempotent-Replayed"] == "true"
        problem(ask({"name": "x"}, HTTP_IDEMPOTENCY_KEY="k"), 422, "idempotency_key_reused")
    assert Batch.objects.count() == 3


def test_a_dry_run_tells_what_would_be_made(api, image, batch, nothing_happens):
    with nothing_happens():
        for path, count in ((f"{IMAGES}{image.pk}", 4), (f"{BATCHES}{batch.pk}", 2)):
            answer = api.post(f"{path}/similar/?dry_run=true", {})
            assert answer.status_code == 200, answer.content
            assert answer.json()["total_count"] == count
            assert {item["seed"] for item in answer.json()["items"]} == {None}


def test_what_is_anothers_or_deleted_is_not_there(image, batch, nothing_happens):
    other = client_of(make_user())
    with nothing_happens():
        for path in (f"{IMAGES}{image.pk}", f"{BATCHES}{batch.pk}"):
            problem(other.post(f"{path}/similar/", {}), 404, "not_found")
    Batch.objects.update(deleted_at=timezone.now())
    problem(client_of(batch.owner).post(f"{BATCHES}{batch.pk}/similar/", {}), 404, "not_found")


def test_it_takes_a_constant_number_of_queries(api, image, warm_caches):
    def count(number):
        with CaptureQueriesContext(connection) as queries:
            assert api.post(f"{IMAGES}{image.pk}/similar/", {"count": number}).status_code == 202
        return len(queries)

    count(1)
    assert count(1) == count(25)
