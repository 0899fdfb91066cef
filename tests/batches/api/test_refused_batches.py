"""What cannot be done is refused whole, with every field named, before anything is stored."""

import dataclasses

import pytest

from batches import intake
from generation.catalogue import get_model, load_models
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    LIGHTNING,
    SCHNELL,
    SDXL,
    invalid,
    problem,
)

pytestmark = pytest.mark.django_db

PROMPT_MAX = 4_000


def prompts(*, count=1, **fields):
    return {"prompts": [{"text": "a fox", **fields} for _ in range(count)]}


def shared(**settings):
    return {**prompts(), "settings": settings}


def top(**fields):
    return {**prompts(), **fields}


def of_sdxl(**settings):
    return shared(model=SDXL, **settings)


REFUSED = {
    # name: (body, field, code, what the detail must say)
    "empty prompt": (prompts(text=""), "prompts.0.text", "blank", "blank"),
    "prompt of white space": (prompts(text=" \n\t\u3000"), "prompts.0.text", "blank", "blank"),
    "prompt left out": ({"prompts": [{"name": "x"}]}, "prompts.0.text", "required", "required"),
    "over-long prompt": (
        prompts(text="x" * (PROMPT_MAX + 1)),
        "prompts.0.text",
        "max_length",
        "4000",
    ),
    "second prompt empty": (
        {"prompts": [{"text": "a fox"}, {"text": ""}]},
        "prompts.1.text",
        "blank",
        "blank",
    ),
    "empty single prompt": ({"prompt": ""}, "prompt", "blank", "blank"),
    "over-long single prompt": ({"prompt": "x" * 4_001}, "prompt", "max_length", "4000"),
    "no prompts": ({"prompts": []}, "prompts", "empty", "empty"),
    "26 prompts": (prompts(count=26), "prompts", "too_many", "at most 25"),
    "both forms": (top(prompt="a fox"), "prompt", "conflict", "`prompts`"),
    "neither form": ({"name": "x"}, "prompts", "required", "`prompt`"),
    "an empty object": ({}, "prompts", "required", "`prompt`"),
    "only a count": ({"count": 3}, "prompts", "required", "`prompt`"),
    "count 26": ({"prompt": "a fox", "count": 26}, "count", "too_many", "at most 25"),
    "count 0": ({"prompt": "a fox", "count": 0}, "count", "min_value", "1"),
    "negative count": ({"prompt": "a fox", "count": -1}, "count", "min_value", "1"),
    "count with prompts": (top(count=2), "count", "conflict", "`prompts`"),
    "seed with prompts": (top(seed=2), "seed", "conflict", "`prompts`"),
    "unknown model": (shared(model="who/knows"), "settings.model", "unknown_model", "who/knows"),
    "unknown model of one prompt": (
        prompts(settings={"model": "who/knows"}),
        "prompts.0.settings.model",
        "unknown_model",
        "who/knows",
    ),
    "empty model": (shared(model=""), "settings.model", "blank", "blank"),
    "steps above the model's": (
        shared(model=SCHNELL, steps=5),
        "settings.steps",
        "out_of_range",
        "between 1 and 4",
    ),
    "steps above another model's": (
        shared(model=DEV, steps=51),
        "settings.steps",
        "out_of_range",
        "between 1 and 50",
    ),
    "steps of one prompt": (
        prompts(settings={"steps": 5}),
        "prompts.0.settings.steps",
        "out_of_range",
        "between 1 and 4",
    ),
    "no steps at all": (shared(steps=0), "settings.steps", "out_of_range", "between 1 and"),
    "width no allowed multiple": (
        of_sdxl(width=1025, height=1024),
        "settings.width",
        "not_a_multiple",
        "multiple of 8",
    ),
    "width below the model's": (
        of_sdxl(width=56, height=64),
        "settings.width",
        "out_of_range",
        "between 64 and 2048",
    ),
    "height above the model's": (
        of_sdxl(width=1024, height=4096),
        "settings.height",
        "out_of_range",
        "between 64 and 2048",
    ),
    "width without height": (of_sdxl(width=1024), "settings.height", "required", "width"),
    "ratio too far from any on offer": (
        shared(width=1024, height=200),
        "settings.width",
        "not_allowed",
        "1344x768",
    ),
    "ratio that is not on offer": (
        shared(aspect_ratio="7:1"),
        "settings.aspect_ratio",
        "not_allowed",
        "16:9",
    ),
    "ratio that is none": (
        shared(aspect_ratio="wide"),
        "settings.aspect_ratio",
        "not_allowed",
        "16:9",
    ),
    "ratio and size at odds": (
        of_sdxl(width=1024, height=1024, aspect_ratio="16:9"),
        "settings.aspect_ratio",
        "conflict",
        "1024x1024",
    ),
    "width 0": (of_sdxl(width=0, height=64), "settings.width", "out_of_range", "between 1 and"),
    "width beyond any model's": (
        of_sdxl(width=16_385, height=64),
        "settings.width",
        "out_of_range",
        "16384",
    ),
    "unknown format": (
        shared(output_format="gif"),
        "settings.output_format",
        "not_allowed",
        "webp",
    ),
    "quality above 100": (
        shared(output_quality=101),
        "settings.output_quality",
        "out_of_range",
        "100",
    ),
    "guidance on a model without": (
        shared(model=SCHNELL, guidance_scale=3.5),
        "settings.guidance_scale",
        "unsupported",
        "not supported",
    ),
    "guidance above the model's": (
        shared(model=DEV, guidance_scale=10.5),
        "settings.guidance_scale",
        "out_of_range",
        "between 0 and 10",
    ),
    "infinite guidance": (
        b'{"prompt": "a fox", "settings": {"guidance_scale": 1e400}}',
        "settings.guidance_scale",
        "invalid",
        "number",
    ),
    "guidance of 400 digits": (
        b'{"prompt": "a fox", "settings": {"guidance_scale": ' + b"9" * 400 + b"}}",
        "settings.guidance_scale",
        "overflow",
        "large",
    ),
    "negative prompt on a model without": (
        prompts(negative_prompt="blurry"),
        "prompts.0.negative_prompt",
        "unsupported",
        "not supported",
    ),
    "over-long negative prompt": (
        {**prompts(negative_prompt="x" * 4_001), "settings": {"model": SDXL}},
        "prompts.0.negative_prompt",
        "max_length",
        "4000",
    ),
    "negative seed": (prompts(seed=-1), "prompts.0.seed", "min_value", "0"),
    "seed above 32 bits": (prompts(seed=2**32), "prompts.0.seed", "max_value", "4294967295"),
    "seed of a single prompt": ({"prompt": "x", "seed": -1}, "seed", "min_value", "0"),
    "seed that means random to the model": (
        {**prompts(seed=0), "settings": {"model": LIGHTNING}},
        "prompts.0.seed",
        "out_of_range",
        "between 1 and 4294967295",
    ),
    "huge seed": (prompts(seed=10**300), "prompts.0.seed", "max_value", "4294967295"),
    "priority below": (top(priority=-1), "priority", "min_value", "0"),
    "priority above": (top(priority=10), "priority", "max_value", "9"),
    "metadata too large": (
        prompts(metadata={"note": "x" * 4_090}),
        "prompts.0.metadata",
        "too_large",
        "4096",
    ),
    "metadata not finite": (
        b'{"prompts": [{"text": "a fox", "metadata": {"n": -1e400}}]}',
        "prompts.0.metadata",
        "not_finite",
        "finite",
    ),
    "too many tags": (top(tags=["t"] * 21), "tags", "max_length", "20"),
    "over-long name of spaces": (top(name="a" + " " * 200), "name", "max_length", "200"),
    "over-long tag": (top(tags=["t", "t" * 51]), "tags.1", "max_length", "50"),
    "empty tag": (top(tags=[""]), "tags.0", "blank", "blank"),
    "over-long name": (top(name="n" * 201), "name", "max_length", "200"),
    "over-long name of one": (prompts(name="n" * 201), "prompts.0.name", "max_length", "200"),
    "over-long custom id": (
        prompts(custom_id="n" * 201),
        "prompts.0.custom_id",
        "max_length",
        "200",
    ),
    "over-long style": (top(style="s" * 101), "style", "max_length", "100"),
    "over-long genre": (top(genre="s" * 101), "genre", "max_length", "100"),
    "style that makes the prompt too long": (
        {**prompts(text="x" * PROMPT_MAX), "style": "retro"},
        "prompts.0.text",
        "too_long",
        "4,000",
    ),
    "genre that makes the single prompt too long": (
        {"prompt": "x" * PROMPT_MAX, "genre": "portrait"},
        "prompt",
        "too_long",
        "4,000",
    ),
    "unknown field": (top(promts=[]), "promts", "unknown_field", "prompts"),
    "unknown field of a prompt": (prompts(txt="x"), "prompts.0.txt", "unknown_field", "text"),
    "unknown setting": (shared(stepz=3), "settings.stepz", "unknown_field", "steps"),
    "unknown setting of a prompt": (
        prompts(settings={"stepz": 3}),
        "prompts.0.settings.stepz",
        "unknown_field",
        "steps",
    ),
    "unknown parameter": (
        shared(parameters={"nope": 1}),
        "settings.parameters.nope",
        "unsupported",
        "go_fast",
    ),
    "parameter of the wrong type": (
        shared(parameters={"go_fast": "yes"}),
        "settings.parameters.go_fast",
        "invalid_type",
        "true or false",
    ),
    "number of pictures as a parameter": (
        shared(parameters={"num_outputs": 4}),
        "settings.parameters.num_outputs",
        "unsupported",
        "the field num_outputs",
    ),
    "parameters too large": (
        shared(parameters={"nope": "x" * 4_090}),
        "settings.parameters",
        "too_large",
        "4096",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_batch_that_cannot_be_made_is_refused_whole(name, post, nothing_happens):
    body, field, code, said = REFUSED[name]
    raw = {"data": body, "content_type": "application/json"} if isinstance(body, bytes) else None
    with nothing_happens():
        response = (
            post(BATCHES, raw["data"], content_type=raw["content_type"])
            if raw
            else post(BATCHES, body)
        )
    errors = invalid(response)
    assert list(errors) == [field]
    assert errors[field][0] == code
    assert said in errors[field][1]


TEXTS = ("name", "style", "genre")
WRONG = {
    "text": (7, 7.5, True, ["x"], {"x": 1}, None),
    "whole number": ("7", 7.5, 7.0, True, [7], {"x": 7}, None),
    "number": ("7.5", True, [7], {"x": 7}, None),
    "object": ("x", 7, True, [], [{}], None),
    "list": ("x", 7, True, {}, {"0": "x"}, None),
}
FIELDS = {
    "text": (
        *("name", "prompt", "style", "genre", "tags.0"),
        *(f"prompts.0.{name}" for name in ("text", "name", "negative_prompt", "custom_id")),
        *(f"settings.{name}" for name in ("model", "aspect_ratio", "output_format")),
        "prompts.0.settings.model",
    ),
    "whole number": (
        *("count", "seed", "priority", "prompts.0.seed"),
        *(f"settings.{name}" for name in ("width", "height", "steps", "output_quality")),
        "prompts.0.settings.steps",
    ),
    "number": ("settings.guidance_scale", "prompts.0.settings.guidance_scale"),
    "object": (
        *("settings", "settings.parameters", "prompts.0"),
        *("prompts.0.metadata", "prompts.0.settings"),
    ),
    "list": ("prompts", "tags"),
}


def with_value(field, value):
    """A good body, but for this value at that place."""
    body = {"prompts": [{"text": "a fox"}]}
    if field in ("prompt", "count", "seed"):
        body = {"prompt": "a fox"}
    *way, last = field.split(".")
    place = body
    for name in way:
        if isinstance(place, list):
            place = place[int(name)]
        else:
            place = place.setdefault(name, ["x"] if name == "tags" else {})
    place[int(last) if isinstance(place, list) else last] = value
    return body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for kind, fields in FIELDS.items()
        for field in fields
        for value in WRONG[kind]
    ],
)
def test_a_value_of_another_type_is_refused_and_never_converted(
    field, value, post, nothing_happens
):
    with nothing_happens():
        response = post(BATCHES, with_value(field, value))
    errors = invalid(response)
    assert list(errors) == [field]
    assert errors[field][0] in ("invalid", "null", "not_a_list", "not_an_object")


@pytest.mark.parametrize("body", ["[]", '[{"prompt": "x"}]', '"x"', "7", "true", "null"])
def test_a_body_that_is_not_an_object_is_refused(body, post, nothing_happens):
    with nothing_happens():
        response = post(BATCHES, body, content_type="application/json")
    assert list(invalid(response)) == [None]


def test_all_that_is_wrong_is_told_at_once(post, nothing_happens):
    body = {
        "prompts": [{"text": "a", "seed": 3}, {"text": "b", "settings": {"steps": 9}}],
        "settings": {"model": SCHNELL, "guidance_scale": 3, "aspect_ratio": "7:1"},
    }
    with nothing_happens():
        errors = invalid(post(BATCHES, body))
    assert errors.keys() == {
        "prompts.1.settings.steps",
        "settings.guidance_scale",
        "settings.aspect_ratio",
    }


def test_what_would_be_accepted_is_told(post):
    errors = problem(post(BATCHES, shared(steps=5)), 422, "invalid")["errors"]
    assert [error["allowed"] for error in errors] == [{"min": 1, "max": 4}]
    errors = problem(post(BATCHES, shared(model="who/knows")), 422, "invalid")["errors"]
    assert errors[0]["allowed"] == sorted(load_models())


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_a_model_without_credentials_is_refused(path, post, settings, nothing_happens):
    settings.REPLICATE_API_TOKEN = ""
    with nothing_happens():
        errors = invalid(post(path, {"prompt": "a fox"}))
    assert errors == {
        "settings.model": (
            "model_unavailable",
            f"{SCHNELL} is not available: No credentials for replicate are configured.",
        )
    }


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_a_retired_model_is_refused(path, post, monkeypatch, nothing_happens):
    retired = dataclasses.replace(get_model(SDXL), status="retired", status_note="Retired in 2026.")
    monkeypatch.setattr(intake, "get_model", {SDXL: retired}.get)
    with nothing_happens():
        errors = invalid(post(path, {"prompt": "a fox", "settings": {"model": SDXL}}))
    reason = f"{SDXL} is not available: Retired in 2026."
    assert errors == {"settings.model": ("model_unavailable", reason)}


def test_a_batch_may_be_as_large_as_the_setting_says(post, settings, nothing_happens):
    settings.MAX_BATCH_SIZE = 2
    with nothing_happens():
        errors = invalid(post(BATCHES, prompts(count=3)))
    assert "at most 2 prompts" in errors["prompts"][1]
    assert post(BATCHES, prompts(count=2)).status_code == 202
