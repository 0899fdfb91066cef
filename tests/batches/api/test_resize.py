"""`settings.resize`: the size in which images are stored, as it is asked for."""

import pytest

from batches.models import Generation
from tests.batches.api.support import BATCHES, GENERATIONS, SCHNELL, failed_batch, invalid

pytestmark = pytest.mark.django_db

SVG = "recraft-ai/recraft-v3-svg"
PRINT = {"mode": "upscale", "width": 4500, "height": 5400}


@pytest.mark.parametrize("mode", ["upscale", "place"])
def test_it_is_kept_and_the_model_knows_nothing_of_it(mode, post):
    resize = {**PRINT, "mode": mode}
    answer = post(BATCHES, {"prompt": "a fox", "settings": {"resize": resize}})
    assert answer.json()["settings"] == {"resize": resize}
    generation = Generation.objects.get()
    assert generation.settings == {"model": SCHNELL, "resize": resize}
    assert "resize" not in generation.input


def test_a_prompt_may_have_its_own(post):
    other = {"mode": "place", "width": 100, "height": 200}
    prompts = [{"text": "a fox"}, {"text": "a cat", "settings": {"resize": other}}]
    post(BATCHES, {"prompts": prompts, "settings": {"resize": PRINT}})
    told = [one.settings["resize"] for one in Generation.objects.order_by("index")]
    assert told == [PRINT, other]


def test_a_single_image_takes_it_flat_too(post):
    assert post(GENERATIONS, {"prompt": "a fox", "resize": PRINT}).status_code == 202
    assert Generation.objects.get().settings["resize"] == PRINT


@pytest.mark.parametrize(
    ("resize", "field", "code"),
    [
        ({}, "mode", "required"),
        ({**PRINT, "mode": "crop"}, "mode", "invalid_choice"),
        ({**PRINT, "width": 15}, "width", "min_value"),
        ({**PRINT, "height": 8_193}, "height", "max_value"),
        ({**PRINT, "width": "100"}, "width", "invalid"),
        ({**PRINT, "width": 8_000, "height": 8_000}, "height", "too_large"),
        ({**PRINT, "kernel": "lanczos"}, "kernel", "unknown_field"),
    ],
)
def test_what_is_wrong_with_it_is_told(resize, field, code, post, nothing_happens):
    with nothing_happens():
        problems = invalid(post(BATCHES, {"prompt": "a fox", "settings": {"resize": resize}}))
    assert problems[f"settings.resize.{field}"][0] == code


@pytest.mark.parametrize("resize", [None, [], "upscale", 3])
def test_it_is_an_object(resize, post, nothing_happens):
    with nothing_happens():
        problems = invalid(post(BATCHES, {"prompt": "a fox", "settings": {"resize": resize}}))
    assert any(field.startswith("settings.resize") for field in problems)


def test_a_drawing_cannot_be_resized(post, nothing_happens):
    asked = {"model": SVG, "resize": PRINT}
    with nothing_happens():
        problems = invalid(post(BATCHES, {"prompt": "a fox", "settings": asked}))
        flat = invalid(post(GENERATIONS, {"prompt": "a fox", "model_id": SVG, "resize": PRINT}))
    assert problems["settings.resize"][0] == flat["resize"][0] == "unsupported"


def test_a_retry_keeps_it_unless_it_is_taken_back(post, owner):
    batch = failed_batch(owner, 1)
    settings = {"model": SCHNELL, "resize": PRINT}
    Generation.objects.update(settings=settings)
    path = f"{BATCHES}{batch.pk}/retry/"
    assert post(path, {"settings": {"steps": 2}}).status_code == 200
    assert Generation.objects.get().settings == {**settings, "steps": 2}


def test_a_retry_may_take_it_back(post, owner):
    batch = failed_batch(owner, 1)
    Generation.objects.update(settings={"model": SCHNELL, "resize": PRINT})
    assert post(f"{BATCHES}{batch.pk}/retry/", {"settings": {"resize": None}}).status_code == 200
    assert Generation.objects.get().settings == {"model": SCHNELL}
