"""Batches and generations that are made from reference images."""

import threading
import uuid
from urllib.parse import urlsplit

import pytest
from django.core.files.storage import default_storage
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from batches import lifecycle, references
from batches.intake import Plan, fitting
from batches.models import Batch, Discarded, Generation, GenerationReference, Image, Reference
from batches.references import Source
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    SCHNELL,
    client_of,
    failed_batch,
    invalid,
    problem,
)
from tests.factories import make_generation, make_image, make_reference, make_user

pytestmark = pytest.mark.django_db

REFERENCES = "/api/v1/references/"
SEEDREAM = "bytedance/seedream-4"  # takes up to ten
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def pictures(owner):
    return [make_reference(owner, colour) for colour in ("red", "green", "blue")]


def named(*rows):
    return [{"id": str(row.pk)} for row in rows]


def used(generation):
    """The ids of the references of a generation, in order."""
    rows = GenerationReference.objects.filter(generation=generation["id"]).order_by("position")
    return [str(row.reference_id) for row in rows]


def accepted(answer):
    assert answer.status_code == 202, answer.content
    return answer.json()


# --- What it becomes ----------------------------------------------------------------------------


def test_one_reference_makes_a_derivation(api, pictures):
    body = {"prompt": "a fox", "settings": {"model": DEV, "references": named(pictures[0])}}
    generation = accepted(api.post(GENERATIONS, body))
    assert generation["kind"] == "derive"
    assert generation["output_count"] == 1
    assert used(generation) == [str(pictures[0].pk)]
    assert generation["settings"]["references"] == named(pictures[0])
    assert "image" not in generation["input"]  # no file is ever in the input
    (shown,) = generation["references"]
    assert shown["id"] == str(pictures[0].pk)
    for name in ("url", "thumbnail_url"):
        assert b"".join(APIClient().get(shown[name]).streaming_content)
    followed = api.get(f"{GENERATIONS}{generation['id']}/").json()
    assert [one["id"] for one in followed["references"]] == [shown["id"]]


def test_several_make_a_composition_in_their_order(api, pictures):
    order = [pictures[2], pictures[0], pictures[2]]
    body = {"prompt": "a fox", "settings": {"model": SEEDREAM, "references": named(*order)}}
    generation = accepted(api.post(GENERATIONS, body))
    assert generation["kind"] == "compose"
    assert used(generation) == [str(row.pk) for row in order]
    assert [one["id"] for one in generation["references"]] == used(generation)


def test_none_makes_a_picture_from_text(api):
    for settings in ({}, {"references": []}):
        generation = accepted(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
        assert (generation["kind"], generation["references"]) == ("generate", [])
        assert "references" not in generation["settings"]


def test_they_may_stand_beside_the_prompt(api, pictures):
    body = {"prompt": "a fox", "model_id": DEV, "references": named(pictures[0]), "strength": 0.4}
    generation = accepted(api.post(GENERATIONS, body))
    assert used(generation) == [str(pictures[0].pk)]
    assert generation["input"]["prompt_strength"] == 0.4


def test_a_prompts_references_go_before_the_shared_ones(api, pictures):
    red, green, _ = pictures
    body = {
        "prompts": [
            {"text": "a fox"},
            {"text": "a cat", "settings": {"references": named(green)}},
            {"text": "a cow", "settings": {"references": []}},
        ],
        "settings": {"model": DEV, "references": named(red)},
    }
    batch = accepted(api.post(BATCHES, body))
    assert [item["kind"] for item in batch["items"]] == ["derive", "derive", "generate"]
    assert [used(item) for item in batch["items"]] == [[str(red.pk)], [str(green.pk)], []]
    assert batch["settings"]["references"] == named(red)
    assert api.get(f"{BATCHES}{batch['id']}/").json()["items"][1]["references"][0]["id"] == str(
        green.pk
    )


def test_variations_share_their_references(api, pictures):
    body = {
        "prompt": "a fox",
        "count": 3,
        "settings": {"model": DEV, "references": named(pictures[0])},
    }
    batch = accepted(api.post(BATCHES, body))
    assert [used(item) for item in batch["items"]] == [[str(pictures[0].pk)]] * 3


def test_several_submissions_of_one_prompt_have_the_same_references(api, pictures):
    settings = {"model": "qwen/qwen-image", "references": named(pictures[0]), "num_outputs": 3}
    batch = accepted(api.post(BATCHES, {"prompts": [{"text": "a fox", "settings": settings}]}))
    assert len(batch["items"]) == 3
    assert [used(item) for item in batch["items"]] == [[str(pictures[0].pk)]] * 3


def test_an_earlier_image_is_taken_in_on_the_way(api, owner):
    image = make_image(make_generation(owner))
    body = {
        "prompt": "a fox",
        "settings": {"model": DEV, "references": [{"image_id": str(image.pk)}]},
    }
    generation = accepted(api.post(GENERATIONS, body))
    reference = Reference.objects.get()
    assert reference.sha256 == image.sha256
    assert used(generation) == [str(reference.pk)]
    assert generation["settings"]["references"] == named(reference)
    assert default_storage.exists(reference.file.name)
    assert not Discarded.objects.exists()
    # It is there the next time.
    again = accepted(api.post(GENERATIONS, body))
    assert used(again) == [str(reference.pk)]
    assert Reference.objects.count() == 1


def test_all_images_of_a_completed_item_are_shown(api, owner):
    image = make_image(make_generation(owner))
    Image.objects.create(
        generation=image.generation,
        owner=owner,
        index=1,
        file="a/1.png",
        thumbnail="a/1.webp",
        format="png",
        width=4,
        height=5,
        size_bytes=6,
        sha256="0" * 64,
    )
    shown = api.get(f"{GENERATIONS}{image.generation_id}/").json()
    assert [one["width"] for one in shown["images"]] == [8, 4]
    assert shown["image"] == shown["images"][0]
    assert accepted(api.post(GENERATIONS, {"prompt": "a fox"}))["images"] == []


# --- The kind -----------------------------------------------------------------------------------

KINDS = {0: "generate", 1: "derive", 2: "compose"}


@pytest.mark.parametrize("count", KINDS)
@pytest.mark.parametrize("kind", KINDS.values())
def test_a_kind_that_is_given_must_be_right(kind, count, api, pictures):
    settings = {"model": SEEDREAM, "references": named(*pictures[:count])}
    single = api.post(GENERATIONS, {"prompt": "a fox", "kind": kind, "settings": settings})
    prompts = [{"text": "a cat"}, {"text": "a fox", "kind": kind, "settings": settings}]
    batch = api.post(BATCHES, {"prompts": prompts})
    if kind == KINDS[count]:
        assert accepted(single)["kind"] == accepted(batch)["items"][1]["kind"] == kind
        return
    assert invalid(single)["kind"][0] == "conflict"
    assert single.json()["errors"][0]["allowed"] == [KINDS[count]]
    assert invalid(batch)["prompts.1.kind"][0] == "conflict"


def test_there_are_no_other_kinds(api):
    told = invalid(api.post(GENERATIONS, {"prompt": "a fox", "kind": "paint"}))
    assert told["kind"][0] == "invalid_choice"


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "field", "code"),
    [
        ({}, "", "required"),
        ({"id": NOBODY, "url": "https://a.example/"}, "", "conflict"),
        ({"id": "x"}, ".id", "invalid"),
        ({"image_id": 7}, ".image_id", "invalid"),
        ({"url": 7}, ".url", "invalid"),
        ({"file": "x"}, ".file", "unknown_field"),
        ("x", "", "invalid"),
        (None, "", "null"),
        ({"id": NOBODY}, "", "unknown_reference"),
        ({"image_id": NOBODY}, "", "unknown_image"),
    ],
)
def test_each_names_one_picture_that_is_there(one, field, code, api, nothing_happens):
    settings = {"model": DEV, "references": [one]}
    with nothing_happens():
        told = invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
        assert told[f"settings.references.0{field}"][0] == code
        told = invalid(
            api.post(BATCHES, {"prompts": [{"text": "a"}, {"text": "b", "settings": settings}]})
        )
        assert told[f"prompts.1.settings.references.0{field}"][0] == code
        flat = {"prompt": "a fox", "model_id": DEV, "references": [one]}
        assert invalid(api.post(GENERATIONS, flat))[f"references.0{field}"][0] == code


def test_another_users_pictures_are_not_there(api, nothing_happens):
    other = make_user()
    foreign = make_reference(other)
    image = make_image(make_generation(other))
    for one, code in (
        ({"id": str(foreign.pk)}, "unknown_reference"),
        ({"image_id": str(image.pk)}, "unknown_image"),
    ):
        body = {"prompt": "a fox", "settings": {"model": DEV, "references": [one]}}
        with nothing_happens():
            assert invalid(api.post(GENERATIONS, body))["settings.references.0"][0] == code


def test_all_that_is_wrong_is_told_at_once(api, pictures, nothing_happens):
    body = {
        "prompts": [
            {"text": "a", "settings": {"references": [*named(pictures[0]), {"id": NOBODY}]}},
            {"text": "b", "settings": {"references": [{"image_id": NOBODY}], "steps": 1_000}},
        ],
        "settings": {"model": DEV, "references": [{"id": NOBODY}]},
    }
    with nothing_happens():
        told = invalid(api.post(BATCHES, body))
    assert {field: code for field, (code, _) in told.items()} == {
        "settings.references.0": "unknown_reference",
        "prompts.0.settings.references": "too_many",
        "prompts.0.settings.references.1": "unknown_reference",
        "prompts.1.settings.references.0": "unknown_image",
        "prompts.1.settings.steps": "out_of_range",
    }


@pytest.mark.parametrize(
    ("model", "count", "code"), [(SCHNELL, 1, "unsupported"), (DEV, 2, "too_many")]
)
def test_a_model_takes_only_so_many(model, count, code, api, pictures, nothing_happens):
    settings = {"model": model, "references": named(*pictures[:count])}
    with nothing_happens():
        told = invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
    assert told["settings.references"][0] == code
    assert model in told["settings.references"][1]


def test_a_strength_needs_a_reference(api):
    body = {"prompt": "a fox", "settings": {"model": DEV, "strength": 0.5}}
    assert invalid(api.post(GENERATIONS, body))["settings.references"][0] == "required"


RUNPOD_DEV = "runpod/flux-dev"
RUNPOD_MAX_BYTES = 7_000_000


@pytest.fixture
def with_runpod(settings):
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "rpa_tests", "endpoint1"


@pytest.mark.usefixtures("with_runpod")
def test_pictures_too_large_for_a_provider_are_refused_with_its_limit(
    api, owner, pictures, nothing_happens
):
    Reference.objects.update(size_bytes=RUNPOD_MAX_BYTES + 1)
    own = {"model": RUNPOD_DEV, "references": named(pictures[0])}
    bodies = {
        "settings.references": (GENERATIONS, {"prompt": "a fox", "settings": own}),
        "references": (
            GENERATIONS,
            {"prompt": "a fox", "model_id": RUNPOD_DEV, "references": named(pictures[0])},
        ),
        # Of two with the same picture, the one whose model cannot take it.
        "prompts.1.settings.references": (
            BATCHES,
            {
                "prompts": [
                    {"text": "a fox", "settings": {**own, "model": DEV}},
                    {"text": "a cat", "settings": own},
                ]
            },
        ),
    }
    for field, (path, body) in bodies.items():
        with nothing_happens():
            answer = api.post(path, body)
        told = invalid(answer)
        assert told.keys() == {field}
        code, detail = told[field]
        assert code == "too_large"
        assert RUNPOD_DEV in detail
        assert answer.json()["errors"][0]["allowed"] == {"max_bytes": RUNPOD_MAX_BYTES}
    # Told once, however many prompts share it.
    answer = api.post(BATCHES, {"prompt": "a fox", "count": 3, "settings": own})
    assert len(answer.json()["errors"]) == 1


@pytest.mark.usefixtures("with_runpod")
def test_pictures_just_small_enough_for_a_provider_are_taken(api, pictures):
    Reference.objects.update(size_bytes=RUNPOD_MAX_BYTES)
    settings = {"model": RUNPOD_DEV, "references": named(pictures[0])}
    assert accepted(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))


@pytest.mark.usefixtures("with_runpod")
def test_of_a_picture_too_large_for_its_provider_nothing_is_taken_in(
    api, owner, media, nothing_happens, django_capture_on_commit_callbacks
):
    image = make_image(make_generation(owner))
    Image.objects.update(size_bytes=RUNPOD_MAX_BYTES + 1)
    files = {path for path in media.rglob("*") if path.is_file()}
    settings = {"model": RUNPOD_DEV, "references": [{"image_id": str(image.pk)}]}
    with nothing_happens(), django_capture_on_commit_callbacks(execute=True):
        told = invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
    assert told["settings.references"][0] == "too_large"
    assert not Reference.objects.exists()
    assert {path for path in media.rglob("*") if path.is_file()} == files


@pytest.mark.usefixtures("with_runpod")
@pytest.mark.parametrize("more", [0, 1])
def test_a_stand_in_that_cannot_take_the_pictures_is_left_out(more, api, pictures, settings):
    settings.COMFYUI_URL = "http://127.0.0.1:9"
    Reference.objects.update(size_bytes=RUNPOD_MAX_BYTES + more)
    body = {"prompt": "a fox", "settings": {"model": DEV, "references": named(pictures[0])}}
    generation = accepted(api.post(GENERATIONS, body))
    ways = [way["model"] for way in Generation.objects.get(pk=generation["id"]).fallbacks]
    assert ways == ["comfyui/flux-dev"] if more else [RUNPOD_DEV, "comfyui/flux-dev"]


@pytest.mark.usefixtures("with_runpod")
def test_a_retry_with_a_picture_too_large_for_its_provider_changes_nothing(api, failed):
    Reference.objects.update(size_bytes=RUNPOD_MAX_BYTES + 1)
    answer = api.post(f"{BATCHES}{failed.pk}/retry/", {"settings": {"model": RUNPOD_DEV}})
    assert invalid(answer)["settings.references"][0] == "too_large"
    assert set(Generation.objects.values_list("status", flat=True)) == {"failed"}


def test_pictures_count_together_and_as_often_as_they_are_named():
    plan = Plan(
        prompt="a fox",
        final_prompt="a fox",
        model=RUNPOD_DEV,
        provider="runpod",
        settings={"references": [{"id": "one"}, {"id": "other"}, {"id": "one"}]},
        input={},
        fallbacks=[],
        references_at="here",
    )
    sizes = {Source("id", "one"): 2_000_000, Source("id", "other"): 3_000_000}
    assert fitting(plan, sizes) == plan
    problem = fitting(plan, {**sizes, Source("id", "one"): 2_000_001})
    assert (problem.field, problem.code) == ("here", "too_large")


def test_a_long_list_is_refused_by_its_length(api):
    body = {"prompt": "a fox", "settings": {"references": [7] * 33}}
    assert invalid(api.post(GENERATIONS, body))["settings.references"][0] == "max_length"


def test_only_so_many_are_taken_in_at_once(api, owner, nothing_happens):
    images = [make_image(make_generation(owner)) for _ in range(references.NEW_MAX + 1)]
    prompts = [
        {"text": "a", "settings": {"references": [{"image_id": str(image.pk)}]}} for image in images
    ]
    with nothing_happens():
        told = invalid(api.post(BATCHES, {"prompts": prompts, "settings": {"model": DEV}}))
    assert {field: code for field, (code, _) in told.items()} == {
        f"prompts.{references.NEW_MAX}.settings.references.0": "too_many"
    }
    assert not Reference.objects.exists()


def test_a_refused_request_takes_nothing_in(api, owner, media, nothing_happens):
    image = make_image(make_generation(owner))
    files = {path for path in media.rglob("*") if path.is_file()}
    settings = {"model": DEV, "steps": 1_000, "references": [{"image_id": str(image.pk)}]}
    with nothing_happens():
        invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
    assert not Reference.objects.exists()
    assert not Discarded.objects.exists()
    assert {path for path in media.rglob("*") if path.is_file()} == files


def test_what_was_taken_in_for_a_submission_that_fails_is_gone(
    api, owner, media, monkeypatch, django_capture_on_commit_callbacks
):
    image = make_image(make_generation(owner))
    files = {path for path in media.rglob("*") if path.is_file()}

    def fails(**fields):
        raise ZeroDivisionError

    monkeypatch.setattr(lifecycle, "submit_generation", fails)
    body = {"prompt": "a fox", "model_id": DEV, "references": [{"image_id": str(image.pk)}]}
    for headers in ({}, {"Idempotency-Key": "one"}):
        with (
            pytest.raises(ZeroDivisionError),
            django_capture_on_commit_callbacks(execute=True),
        ):
            api.post(GENERATIONS, body, headers=headers)
        assert not Reference.objects.exists()
        assert {path for path in media.rglob("*") if path.is_file()} == files


# --- Trying again -------------------------------------------------------------------------------


@pytest.fixture
def failed(owner, pictures, api):
    """A batch of two that were derived from the red picture and failed."""
    batch = failed_batch(owner, 2)
    settings = {"model": DEV, "references": named(pictures[0])}
    Generation.objects.update(settings=settings, model=DEV, kind="derive", seed=7)
    GenerationReference.objects.bulk_create(
        GenerationReference(generation=one, reference=pictures[0], position=0)
        for one in batch.generations.all()
    )
    return batch


def retry(api, batch, body):
    answer = api.post(f"{BATCHES}{batch.pk}/retry/", body)
    assert answer.status_code == 200, answer.content
    return answer.json()["items"]


def test_a_retry_keeps_the_references(api, failed, pictures):
    for item in retry(api, failed, {}):
        assert (item["kind"], used(item)) == ("derive", [str(pictures[0].pk)])


def test_a_retry_with_other_settings_keeps_the_references(api, failed, pictures):
    for item in retry(api, failed, {"settings": {"steps": 20, "strength": 0.5}}):
        assert (item["kind"], used(item)) == ("derive", [str(pictures[0].pk)])
        assert item["references"][0]["id"] == str(pictures[0].pk)


def test_a_retry_may_have_other_references(api, failed, pictures):
    settings = {"model": SEEDREAM, "references": named(*pictures[1:])}
    for item in retry(api, failed, {"settings": settings}):
        assert item["kind"] == "compose"
        assert used(item) == [str(row.pk) for row in pictures[1:]]
    assert api.delete(f"{REFERENCES}{pictures[0].pk}/").status_code == 204


def test_a_retry_may_take_the_references_back(api, failed):
    for item in retry(api, failed, {"settings": {"references": None}}):
        assert (item["kind"], used(item), item["references"]) == ("generate", [], [])


def test_a_retry_may_take_an_earlier_image_in(api, failed, owner):
    image = make_image(make_generation(owner))
    settings = {"references": [{"image_id": str(image.pk)}]}
    items = retry(api, failed, {"settings": settings})
    reference = Reference.objects.get(sha256=image.sha256)
    assert [used(item) for item in items] == [[str(reference.pk)]] * 2


def test_a_retry_with_an_unknown_reference_changes_nothing(api, failed, pictures):
    settings = {"references": [{"id": NOBODY}]}
    answer = api.post(f"{BATCHES}{failed.pk}/retry/", {"settings": settings})
    assert invalid(answer)["settings.references.0"][0] == "unknown_reference"
    assert set(Generation.objects.values_list("status", flat=True)) == {"failed"}
    assert GenerationReference.objects.filter(reference=pictures[0]).count() == 2


def test_a_retry_of_one_generation_may_have_other_references(api, owner, failed, pictures):
    one = failed.generations.first()
    body = {"settings": {"references": named(pictures[1])}}
    answer = api.post(f"{GENERATIONS}{one.pk}/retry/", body)
    assert answer.status_code == 200, answer.content
    assert used(answer.json()) == [str(pictures[1].pk)]


def test_a_model_without_references_cannot_take_a_retry_over(api, failed):
    answer = api.post(f"{BATCHES}{failed.pk}/retry/", {"settings": {"model": SCHNELL}})
    assert invalid(answer)["settings.references"][0] == "unsupported"


# --- Sent twice; deleted meanwhile --------------------------------------------------------------


def test_a_key_works_with_pictures_that_are_taken_in(api, owner):
    image = make_image(make_generation(owner))
    body = {"prompt": "a", "model_id": DEV, "references": [{"image_id": str(image.pk)}]}
    first = api.post(GENERATIONS, body, headers={"Idempotency-Key": "one"})
    Image.objects.all().delete()
    again = api.post(GENERATIONS, body, headers={"Idempotency-Key": "one"})
    assert accepted(again) == accepted(first)
    assert again["Idempotent-Replayed"] == "true"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "one"}])
def test_a_reference_deleted_on_the_way_is_told(headers, owner, monkeypatch):
    client, reference = client_of(owner), make_reference(owner)
    body = {"prompt": "a fox", "model_id": DEV, "references": named(reference)}
    locked, deleted = references._locked, []

    def delete():
        deleted.append(references.delete(reference))
        connection.close()

    def too_late(*args):
        thread = threading.Thread(target=delete)
        thread.start()
        thread.join(30)
        return locked(*args)

    with monkeypatch.context() as patch:
        patch.setattr(references, "_locked", too_late)
        answer = client.post(GENERATIONS, body, headers=headers)
    assert deleted == [True]
    problem(answer, 503, "busy")
    assert not Generation.objects.exists()
    told = invalid(client.post(GENERATIONS, body, headers=headers))
    assert told["references.0"][0] == "unknown_reference"


# --- How much work it is ------------------------------------------------------------------------


@pytest.mark.usefixtures("warm_caches")
def test_references_cost_a_few_queries_however_many_there_are(api, pictures):
    def queries(prompts, *chosen):
        body = {
            "prompts": [{"text": "a", "settings": {"references": named(*chosen)}}] * prompts,
            "settings": {"model": SEEDREAM},
        }
        with CaptureQueriesContext(connection) as captured:
            accepted(api.post(BATCHES, body))
        return len(captured)

    without = queries(2)
    # A look before; a savepoint, a lock, its release; and the rows.
    assert queries(2, pictures[0]) - without == 5
    assert queries(20, *pictures) - without == 5


@pytest.mark.usefixtures("warm_caches")
def test_lists_with_references_take_no_more_queries(api, pictures, django_assert_num_queries):
    body = {"prompt": "a", "settings": {"model": SEEDREAM, "references": named(*pictures)}}
    for _ in range(3):
        accepted(api.post(GENERATIONS, body))
    # The token, and the rows with their images.
    with django_assert_num_queries(2):
        rows = api.get(GENERATIONS).json()["results"]
    assert [len(row["references"]) for row in rows] == [3, 3, 3]


def test_addresses_are_at_the_public_address(api, pictures, settings):
    settings.PUBLIC_URL = "https://pictures.example"
    body = {"prompt": "a", "model_id": DEV, "references": named(pictures[0])}
    (shown,) = accepted(api.post(GENERATIONS, body))["references"]
    assert urlsplit(shown["url"]).netloc == "pictures.example"
    assert uuid.UUID(urlsplit(shown["url"]).path.split("/")[4]) == pictures[0].pk
    assert Batch.objects.count() == 0
