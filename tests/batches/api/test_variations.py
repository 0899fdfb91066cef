"""Several images of one prompt, each with a seed of its own."""

import pytest

from batches.catalogue import load_models
from batches.intake import unavailable_reason
from batches.models import Generation
from generation.catalogue import PROMPT_MAX_LENGTH
from tests.batches.api.support import BATCHES, SCHNELL, invalid

pytestmark = pytest.mark.django_db


def items(answer):
    assert answer.status_code == 202, answer.content
    return answer.json()["items"]


def test_of_25_variations_the_first_has_the_seed_and_all_are_different(post):
    body = {"prompt": "a fox", "count": 25, "seed": 4_294_967_295, "style": "retro", "genre": "pop"}
    made = items(post(BATCHES, body))
    seeds = [item["seed"] for item in made]
    assert seeds[0] == 4_294_967_295
    assert len(set(seeds)) == len(seeds) == 25
    assert {item["prompt"] for item in made} == {"a fox"}
    rows = Generation.objects.order_by("index")
    assert [row.seed for row in rows] == [row.input["seed"] for row in rows] == seeds
    assert {row.final_prompt for row in rows} == {"a fox, retro style, pop"}
    assert {(row.style, row.genre) for row in rows} == {("retro", "pop")}


def test_without_a_seed_the_first_gets_one_too(post):
    seeds = [item["seed"] for item in items(post(BATCHES, {"prompt": "a fox", "count": 25}))]
    assert None not in seeds
    assert len(set(seeds)) == 25


def test_no_random_seed_is_the_one_that_was_given(post, monkeypatch):
    drawn = iter([7, 7, 8, 8, 7, 9])
    monkeypatch.setattr("batches.intake.SystemRandom.randint", lambda self, low, high: next(drawn))
    made = items(post(BATCHES, {"prompt": "a fox", "count": 3, "seed": 7}))
    assert [item["seed"] for item in made] == [7, 8, 9]


def without_seed():
    return next(
        model.id
        for model in load_models().values()
        if not model.supports_seed and not unavailable_reason(model)
    )


def test_a_model_that_takes_no_seed_gets_none(post):
    model = without_seed()
    made = items(post(BATCHES, {"prompt": "a fox", "count": 3, "settings": {"model": model}}))
    assert [item["seed"] for item in made] == [None] * 3
    assert all("seed" not in row.input for row in Generation.objects.all())
    body = {"prompt": "a fox", "count": 3, "seed": 7, "settings": {"model": model}}
    assert invalid(post(BATCHES, body)).keys() == {"seed"}


def test_variations_of_several_images_each_have_seeds_of_their_own(post):
    """Three variations of six images are made four and two at a time."""
    settings = {"model": SCHNELL, "num_outputs": 6}
    made = items(post(BATCHES, {"prompt": "a fox", "count": 3, "seed": 7, "settings": settings}))
    assert [item["output_count"] for item in made] == [4, 2] * 3
    seeds = [item["seed"] for item in made]
    assert seeds[0] == 7
    assert len(set(seeds)) == 6


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"count": 26}, "count", "too_many"),
        ({"count": 0}, "count", "min_value"),
        ({"count": "3"}, "count", "invalid"),
        ({"count": 2.0}, "count", "invalid"),
        ({"seed": -1}, "seed", "min_value"),
        ({"seed": 2**32}, "seed", "max_value"),
        ({"seed": "7"}, "seed", "invalid"),
        ({"style": "x" * 101}, "style", "max_length"),
        ({"genre": 7}, "genre", "invalid"),
        ({"prompt": " "}, "prompt", "blank"),
        ({"prompt": "x" * (PROMPT_MAX_LENGTH + 1)}, "prompt", "max_length"),
        ({"count": 13, "settings": {"num_outputs": 5}}, "settings.num_outputs", "too_many"),
        ({"prompts": [{"text": "a fox"}]}, "prompt", "conflict"),
    ],
)
def test_what_cannot_be_varied_is_refused(change, field, code, post, nothing_happens):
    with nothing_happens():
        errors = invalid(post(BATCHES, {"prompt": "a fox", "count": 2, **change}))
    assert errors[field][0] == code
