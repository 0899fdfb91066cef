"""The catalogue: what each model accepts, and what it is sent."""

import json
import math
from dataclasses import FrozenInstanceError
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.catalogue import (
    COMMON_FIELDS,
    COMMON_RATIOS,
    PROMPT_MAX_LENGTH,
    Model,
    Resolved,
    get_model,
    load_models,
    parse_models,
)

SCHNELL = "black-forest-labs/flux-schnell"
DEV = "black-forest-labs/flux-dev"
SDXL = "stability-ai/sdxl"
LIGHTNING = "bytedance/sdxl-lightning-4step"
FLUX, FREE = (SCHNELL, DEV), (SDXL, LIGHTNING)
ALL = (*FLUX, *FREE)


def model(model_id: str) -> Model:
    found = get_model(model_id)
    assert found is not None
    return found


def accepted(subject, **request) -> Resolved:
    subject = model(subject) if isinstance(subject, str) else subject
    result = subject.resolve({"prompt": "a cat", **request})
    assert isinstance(result, Resolved), result
    return result


def refused(subject, **request):
    """Return the single problem that a request has."""
    subject = model(subject) if isinstance(subject, str) else subject
    result = subject.resolve({"prompt": "a cat", **request})
    assert isinstance(result, list), result
    (problem,) = result
    assert subject.id in problem.message
    assert problem.field.removeprefix("parameters.") in problem.message
    json.dumps(problem.allowed)
    return problem


class TestModels:
    def test_holds_the_four_models(self):
        assert set(ALL) <= set(load_models())

    def test_is_read_once_and_cannot_be_changed(self):
        assert load_models() is load_models()
        with pytest.raises(TypeError):
            load_models()["x"] = model(SDXL)
        with pytest.raises(FrozenInstanceError):
            model(SDXL).status = "retired"

    def test_unknown_model_is_none(self):
        assert get_model("nobody/nothing") is None

    @pytest.mark.parametrize(
        ("model_id", "price", "seconds", "has_version", "negative", "max_count"),
        [
            (SCHNELL, "0.003", 1.5, False, False, 4),
            (DEV, "0.025", 4, False, False, 4),
            (SDXL, "0.005", 5, True, True, 4),
            (LIGHTNING, "0.0014", 1.5, True, True, 4),
        ],
    )
    def test_knows_price_time_and_abilities(
        self, model_id, price, seconds, has_version, negative, max_count
    ):
        subject = model(model_id)
        assert subject.price_usd_per_image == Decimal(price)
        assert subject.est_seconds == seconds
        assert (subject.version is not None) is has_version
        assert subject.supports_negative_prompt is negative
        assert subject.supports_seed
        assert subject.max_count == max_count
        assert subject.is_active
        assert subject.provider == "replicate"

    @pytest.mark.parametrize("model_id", ALL)
    def test_entry_is_consistent(self, model_id):
        subject = model(model_id)
        for parameter in subject.parameters.values():
            assert (parameter.type == "enum") is bool(parameter.choices)
            if parameter.default is not None:
                field = parameter.name
                assert not parameter.check(parameter.default, field=field, model_id=model_id)
        for option in subject.size_options:
            for name, value in option.input.items():
                assert value in subject.parameters[name].choices
        parameter = subject.by_role("output_format")
        if parameter:
            assert parameter.choices == subject.output_formats


class TestDefaults:
    @pytest.mark.parametrize("model_id", FLUX)
    def test_of_a_ratio_model_name_the_size_and_the_count(self, model_id):
        result = accepted(model_id)
        assert result == Resolved(
            input={
                "prompt": "a cat",
                "aspect_ratio": "1:1",
                "megapixels": "1",
                "num_outputs": 1,
            },
            width_px=1024,
            height_px=1024,
            output_format="webp",
            seed=None,
        )

    @pytest.mark.parametrize("model_id", FREE)
    def test_of_a_free_size_model_name_the_size_and_the_count(self, model_id):
        result = accepted(model_id)
        assert result == Resolved(
            input={"prompt": "a cat", "width": 1024, "height": 1024, "num_outputs": 1},
            width_px=1024,
            height_px=1024,
            output_format="png",
            seed=None,
        )

    @pytest.mark.parametrize("model_id", ALL)
    def test_none_means_not_given(self, model_id):
        nothing = {name: None for name in (*COMMON_FIELDS, "parameters") if name != "prompt"}
        assert accepted(model_id, **nothing) == accepted(model_id)
        assert accepted(model_id, parameters={"disable_safety_checker": None}) == accepted(model_id)

    @pytest.mark.parametrize("model_id", ALL)
    def test_the_model_field_is_ignored(self, model_id):
        assert accepted(model_id, model="whatever") == accepted(model_id)


class TestCommonFields:
    @pytest.mark.parametrize(
        ("model_id", "field", "value", "name"),
        [
            (SCHNELL, "steps", 1, "num_inference_steps"),
            (SCHNELL, "steps", 4, "num_inference_steps"),
            (DEV, "steps", 50, "num_inference_steps"),
            (SDXL, "steps", 500, "num_inference_steps"),
            (LIGHTNING, "steps", 10, "num_inference_steps"),
            (DEV, "guidance_scale", 0, "guidance"),
            (DEV, "guidance_scale", 10.0, "guidance"),
            (SDXL, "guidance_scale", 1, "guidance_scale"),
            (SDXL, "guidance_scale", 50, "guidance_scale"),
            (LIGHTNING, "guidance_scale", 0, "guidance_scale"),
            (SCHNELL, "seed", 0, "seed"),
            (SCHNELL, "seed", 2**32 - 1, "seed"),
            (LIGHTNING, "seed", 1, "seed"),
            (SCHNELL, "output_quality", 0, "output_quality"),
            (DEV, "output_quality", 100, "output_quality"),
            (SDXL, "negative_prompt", "blurry", "negative_prompt"),
            (LIGHTNING, "negative_prompt", "", "negative_prompt"),
            (SCHNELL, "output_format", "png", "output_format"),
            (SDXL, "prompt", "x" * PROMPT_MAX_LENGTH, "prompt"),
        ],
    )
    def test_are_sent_under_the_models_own_name(self, model_id, field, value, name):
        assert accepted(model_id, **{field: value}).input[name] == value

    @pytest.mark.parametrize(
        ("model_id", "field", "value", "code", "allowed"),
        [
            (SCHNELL, "steps", 0, "out_of_range", {"min": 1, "max": 4}),
            (SCHNELL, "steps", 5, "out_of_range", {"min": 1, "max": 4}),
            (DEV, "steps", 51, "out_of_range", {"min": 1, "max": 50}),
            (SDXL, "steps", 501, "out_of_range", {"min": 1, "max": 500}),
            (LIGHTNING, "steps", 11, "out_of_range", {"min": 1, "max": 10}),
            (DEV, "guidance_scale", 10.1, "out_of_range", {"min": 0, "max": 10}),
            (SDXL, "guidance_scale", 0.9, "out_of_range", {"min": 1, "max": 50}),
            (SCHNELL, "seed", -1, "out_of_range", {"min": 0, "max": 2**32 - 1}),
            (SCHNELL, "seed", 2**32, "out_of_range", {"min": 0, "max": 2**32 - 1}),
            (LIGHTNING, "seed", 0, "out_of_range", {"min": 1, "max": 2**32 - 1}),
            (DEV, "output_quality", 101, "out_of_range", {"min": 0, "max": 100}),
            (SCHNELL, "guidance_scale", 3, "unsupported", None),
            (SCHNELL, "negative_prompt", "blurry", "unsupported", None),
            (DEV, "negative_prompt", "blurry", "unsupported", None),
            (SDXL, "output_quality", 80, "unsupported", None),
            (SCHNELL, "steps", "4", "invalid_type", None),
            (SCHNELL, "steps", 4.0, "invalid_type", None),
            (SCHNELL, "steps", True, "invalid_type", None),
            (DEV, "guidance_scale", math.nan, "invalid_type", None),
            (DEV, "guidance_scale", math.inf, "invalid_type", None),
            (DEV, "guidance_scale", "3", "invalid_type", None),
            (SCHNELL, "seed", [1], "invalid_type", None),
            (SDXL, "negative_prompt", 5, "invalid_type", None),
            (SCHNELL, "prompt", "", "required", None),
            (SCHNELL, "prompt", "  \n", "required", None),
            (SCHNELL, "prompt", None, "required", None),
            (SCHNELL, "prompt", 5, "invalid_type", None),
            (
                SCHNELL,
                "prompt",
                "x" * (PROMPT_MAX_LENGTH + 1),
                "too_long",
                {"max_length": PROMPT_MAX_LENGTH},
            ),
            (
                SDXL,
                "negative_prompt",
                "x" * (PROMPT_MAX_LENGTH + 1),
                "too_long",
                {"max_length": PROMPT_MAX_LENGTH},
            ),
            (SCHNELL, "output_format", "gif", "not_allowed", ["webp", "jpg", "png"]),
            (SDXL, "output_format", "webp", "not_allowed", ["png"]),
            (SDXL, "output_format", 5, "invalid_type", ["png"]),
            (SDXL, "stepz", 5, "unsupported", list(COMMON_FIELDS)),
            (SDXL, "parameters", [1], "invalid_type", None),
        ],
    )
    def test_are_refused_beyond_the_models_limits(self, model_id, field, value, code, allowed):
        problem = refused(model_id, **{field: value})
        assert (problem.field, problem.code, problem.allowed) == (field, code, allowed)

    def test_message_names_the_limits(self):
        assert "between 1 and 4" in refused(SCHNELL, steps=9).message
        assert "webp, jpg, png" in refused(SCHNELL, output_format="gif").message

    def test_empty_negative_prompt_is_nothing_to_refuse(self):
        assert accepted(SCHNELL, negative_prompt="") == accepted(SCHNELL)

    @pytest.mark.parametrize("spelling", ["jpg", "jpeg", "JPEG"])
    def test_jpeg_is_another_word_for_jpg(self, spelling):
        result = accepted(SCHNELL, output_format=spelling)
        assert (result.output_format, result.input["output_format"]) == ("jpg", "jpg")

    def test_the_only_format_of_a_model_is_not_sent(self):
        result = accepted(SDXL, output_format="png")
        assert result.output_format == "png"
        assert "output_format" not in result.input

    def test_the_seed_is_told(self):
        assert accepted(SCHNELL, seed=7).seed == 7

    def test_all_problems_are_told_at_once_in_the_order_of_the_fields(self):
        result = model(SCHNELL).resolve(
            {"parameters": {"x": 1}, "steps": 9, "prompt": "", "width": 512, "zoom": 1, "seed": -1}
        )
        assert isinstance(result, list)
        fields = [problem.field for problem in result]
        assert fields == ["prompt", "seed", "height", "steps", "parameters.x", "zoom"]


class TestOwnParameters:
    @pytest.mark.parametrize(
        ("model_id", "name", "value"),
        [
            (SCHNELL, "go_fast", False),
            (DEV, "disable_safety_checker", True),
            (SDXL, "scheduler", "DDIM"),
            (SDXL, "refine", "base_image_refiner"),
            (SDXL, "refine_steps", 10),
            (SDXL, "high_noise_frac", 0.5),
            (LIGHTNING, "scheduler", "DPM++2MSDE"),
        ],
    )
    def test_are_sent_as_they_are(self, model_id, name, value):
        assert accepted(model_id, parameters={name: value}).input[name] == value

    @pytest.mark.parametrize(
        ("model_id", "name", "value", "code"),
        [
            (SCHNELL, "scheduler", "DDIM", "unsupported"),
            (SCHNELL, "go_fast", "yes", "invalid_type"),
            (SCHNELL, "go_fast", 1, "invalid_type"),
            (SDXL, "scheduler", "DPM++2MSDE", "not_allowed"),
            (SDXL, "scheduler", 1, "invalid_type"),
            (SDXL, "scheduler", ["DDIM"], "invalid_type"),
            (SDXL, "high_noise_frac", 1.1, "out_of_range"),
            (SDXL, "refine_steps", 1.5, "invalid_type"),
            (SDXL, "num_outputs", 1, "unsupported"),
            (SCHNELL, "num_outputs", 4, "unsupported"),
            (SDXL, "image", "https://example.test/a.png", "unsupported"),
            (SDXL, "mask", "https://example.test/a.png", "unsupported"),
            (DEV, "prompt_strength", 0.5, "unsupported"),
            (SCHNELL, "num_inference_steps", 4, "unsupported"),
            (DEV, "guidance", 3, "unsupported"),
            (SDXL, "width", 512, "unsupported"),
            (SDXL, "prompt", "a dog", "unsupported"),
        ],
    )
    def test_are_checked_against_the_models_table(self, model_id, name, value, code):
        problem = refused(model_id, parameters={name: value})
        assert (problem.field, problem.code) == (f"parameters.{name}", code)

    def test_that_a_common_field_sets_are_refused_with_its_name(self):
        problem = refused(SCHNELL, parameters={"num_inference_steps": 4})
        assert "the field steps" in problem.message


class TestSizeOfARatioModel:
    @pytest.mark.parametrize("model_id", FLUX)
    @pytest.mark.parametrize(
        ("ratio", "width_px", "height_px"),
        [
            ("1:1", 1024, 1024),
            ("16:9", 1344, 768),
            ("21:9", 1536, 640),
            ("3:2", 1216, 832),
            ("2:3", 832, 1216),
            ("4:5", 896, 1088),
            ("5:4", 1088, 896),
            ("3:4", 896, 1152),
            ("4:3", 1152, 896),
            ("9:16", 768, 1344),
            ("9:21", 640, 1536),
        ],
    )
    def test_follows_the_ratio(self, model_id, ratio, width_px, height_px):
        by_ratio = accepted(model_id, aspect_ratio=ratio)
        assert (by_ratio.width_px, by_ratio.height_px) == (width_px, height_px)
        assert by_ratio.input["aspect_ratio"] == ratio
        assert by_ratio == accepted(model_id, width=width_px, height=height_px)
        small = accepted(model_id, width=width_px // 2, height=height_px // 2)
        assert (small.width_px, small.height_px) == (width_px // 2, height_px // 2)
        assert (small.input["aspect_ratio"], small.input["megapixels"]) == (ratio, "0.25")
        assert small == accepted(model_id, aspect_ratio=ratio, parameters={"megapixels": "0.25"})

    @pytest.mark.parametrize(
        ("width", "height", "ratio", "megapixels"),
        [
            (1280, 720, "16:9", "1"),
            (1365, 768, "16:9", "1"),
            (1000, 1000, "1:1", "1"),
            (1030, 1000, "1:1", "1"),
            (512, 512, "1:1", "0.25"),
            (640, 384, "16:9", "0.25"),
            (1024, 768, "4:3", "1"),
            (896, 896, "1:1", "1"),
        ],
    )
    def test_near_to_one_on_offer_becomes_that_one(self, width, height, ratio, megapixels):
        result = accepted(SCHNELL, width=width, height=height)
        assert (result.input["aspect_ratio"], result.input["megapixels"]) == (ratio, megapixels)
        assert "width" not in result.input

    @pytest.mark.parametrize(
        ("width", "height"), [(1920, 1080), (768, 768), (64, 64), (2048, 256), (540, 500)]
    )
    def test_far_from_all_on_offer_is_refused_with_the_offer(self, width, height):
        problem = refused(SCHNELL, width=width, height=height)
        assert (problem.field, problem.code) == ("width", "not_allowed")
        assert f"{width} with height {height}" in problem.message
        assert "1344x768 (16:9)" in problem.message
        assert "512x512 (1:1)" in problem.allowed
        assert len(problem.allowed) == 22

    @pytest.mark.parametrize(
        "ratio", ["2:1", "16:10", "custom", "0:1", "1:0", "16x9", "", "1:99999"]
    )
    def test_by_a_ratio_not_on_offer_is_refused_with_the_offer(self, ratio):
        problem = refused(SCHNELL, aspect_ratio=ratio)
        assert (problem.field, problem.code) == ("aspect_ratio", "not_allowed")
        assert problem.allowed == list(model(SCHNELL).aspect_ratios)
        assert "16:9 (1344x768)" in problem.message

    def test_contradicting_the_megapixels_is_refused(self):
        problem = refused(SCHNELL, width=1024, height=1024, parameters={"megapixels": "0.25"})
        assert problem.code == "not_allowed"


class TestSizeOfAFreeSizeModel:
    @pytest.mark.parametrize(
        ("model_id", "low", "high"), [(SDXL, 64, 2048), (LIGHTNING, 256, 1280)]
    )
    def test_is_bounded(self, model_id, low, high):
        for side in (low, high):
            result = accepted(model_id, width=side, height=side)
            assert (result.width_px, result.height_px) == (side, side)
            assert (result.input["width"], result.input["height"]) == (side, side)
        allowed = {"min": low, "max": high, "multiple_of": 8}
        for side in (low - 8, high + 8):
            problem = refused(model_id, width=side, height=1024)
            assert (problem.field, problem.code, problem.allowed) == (
                "width",
                "out_of_range",
                allowed,
            )
        problem = refused(model_id, width=1024, height=1020)
        assert (problem.field, problem.code, problem.allowed) == (
            "height",
            "not_a_multiple",
            allowed,
        )

    @pytest.mark.parametrize("model_id", FREE)
    @pytest.mark.parametrize("ratio", [*COMMON_RATIOS, "2:1", "5:7"])
    def test_by_ratio_is_about_a_megapixel_within_bounds(self, model_id, ratio):
        result = accepted(model_id, aspect_ratio=ratio)
        assert (result.input["width"], result.input["height"]) == (
            result.width_px,
            result.height_px,
        )
        assert "aspect_ratio" not in result.input
        width, height = (int(part) for part in ratio.split(":"))
        assert result.width_px / result.height_px == pytest.approx(width / height, rel=0.05)
        area = result.width_px * result.height_px
        touches_bound = 1280 in (result.width_px, result.height_px) and model_id == LIGHTNING
        assert touches_bound or area == pytest.approx(1024 * 1024, rel=0.02)
        assert area < 1024 * 1024 * 1.02

    @pytest.mark.parametrize(
        ("model_id", "ratio"), [(LIGHTNING, "6:1"), (SDXL, "100:1"), (SDXL, "1:9999")]
    )
    def test_by_a_ratio_that_the_bounds_forbid_is_refused(self, model_id, ratio):
        problem = refused(model_id, aspect_ratio=ratio)
        assert (problem.field, problem.code) == ("aspect_ratio", "not_allowed")
        assert "1:1" in problem.allowed


class TestSizeOfAnyModel:
    @pytest.mark.parametrize("model_id", ALL)
    @pytest.mark.parametrize(("given", "missing"), [("width", "height"), ("height", "width")])
    def test_needs_both_sides(self, model_id, given, missing):
        problem = refused(model_id, **{given: 1024})
        assert (problem.field, problem.code) == (missing, "required")

    @pytest.mark.parametrize("model_id", ALL)
    def test_by_ratio_and_sides_must_agree(self, model_id):
        agreeing = accepted(model_id, aspect_ratio="16:9", width=1280, height=720)
        assert agreeing == accepted(model_id, width=1280, height=720)
        problem = refused(model_id, aspect_ratio="16:9", width=1024, height=1024)
        assert (problem.field, problem.code) == ("aspect_ratio", "conflict")

    @pytest.mark.parametrize("model_id", ALL)
    @pytest.mark.parametrize(
        ("value", "code"),
        [
            ("1024", "invalid_type"),
            (1024.0, "invalid_type"),
            (True, "invalid_type"),
            (0, "out_of_range"),
            (-8, "out_of_range"),
            (10**400, "out_of_range"),
        ],
    )
    def test_takes_positive_whole_numbers_only(self, model_id, value, code):
        problem = refused(model_id, width=value, height=1024)
        assert (problem.field, problem.code) == ("width", code)

    @pytest.mark.parametrize("model_id", ALL)
    def test_ratio_must_be_text(self, model_id):
        assert refused(model_id, aspect_ratio=1.5).code == "invalid_type"


def parameters(**more):
    return {"prompt": {"type": "string", "role": "prompt", "required": True}, **more}


def side(role, **limits):
    return {"type": "integer", "role": role, **limits}


def ratio_parameter(*choices):
    return {"type": "enum", "role": "aspect_ratio", "choices": list(choices)}


def parse(size, table, formats=("png",)):
    entry = {
        "provider": "replicate",
        "display_name": "Other",
        "family": "other",
        "version": None,
        "status": "active",
        "status_note": "",
        "price_usd_per_image": "0.04",
        "price_note": "",
        "est_seconds": 9,
        "output_formats": list(formats),
        "size": size,
        "parameters": table,
    }
    return parse_models({"models": {"some/model": entry}})["some/model"]


class TestLayoutForOtherModels:
    """The remaining ways to choose a size, for models that are to be added as data."""

    def test_ratios_with_custom_sides(self):
        limits = {"min": 256, "max": 1440, "multiple_of": 32}
        subject = parse(
            {"ratios": {"1:1": None, "16:9": None}, "free": {"aspect_ratio": "custom"}},
            parameters(
                aspect_ratio=ratio_parameter("custom", "1:1", "16:9"),
                width=side("width", **limits),
                height=side("height", **limits),
            ),
        )
        assert accepted(subject).input == {"prompt": "a cat", "aspect_ratio": "1:1"}
        assert accepted(subject).width_px is None
        assert accepted(subject, aspect_ratio="16:9").input["aspect_ratio"] == "16:9"
        free = accepted(subject, width=1440, height=256)
        assert free.input == {
            "prompt": "a cat",
            "aspect_ratio": "custom",
            "width": 1440,
            "height": 256,
        }
        assert accepted(subject, aspect_ratio="2:1").input["width"] == 1440
        assert refused(subject, aspect_ratio="custom").code == "not_allowed"
        assert refused(subject, width=1440, height=250).code == "out_of_range"

    def test_size_presets_with_custom_sides(self):
        subject = parse(
            {"ratios": {"1:1": None, "16:9": None}, "free": {"size": "custom"}},
            parameters(
                size={"type": "enum", "default": "2K", "choices": ["1K", "2K", "4K", "custom"]},
                aspect_ratio=ratio_parameter("match_input_image", "1:1", "16:9"),
                width=side("width", min=1024, max=4096),
                height=side("height", min=1024, max=4096),
                image_input={"type": "files", "role": "image", "max_items": 10},
                max_images={"type": "integer", "role": "count", "min": 1, "max": 15},
            ),
        )
        chosen = accepted(subject, aspect_ratio="16:9", parameters={"size": "4K"})
        assert chosen.input == {
            "prompt": "a cat",
            "aspect_ratio": "16:9",
            "size": "4K",
            "max_images": 1,
        }
        free = accepted(subject, width=2000, height=1500)
        assert free.input["size"] == "custom"
        assert (free.width_px, free.height_px) == (2000, 1500)
        assert refused(subject, parameters={"size": "custom"}).code == "not_allowed"
        problem = refused(subject, width=2000, height=1500, parameters={"size": "4K"})
        assert (problem.field, problem.code) == ("parameters.size", "conflict")
        assert subject.max_count == 15

    def test_sizes_by_name_and_ratios(self):
        sizes = {"1024x1024": [1024, 1024], "1820x1024": [1820, 1024]}
        subject = parse(
            {"exact": {"size": sizes}, "ratios": {"1:1": None, "16:9": None}},
            parameters(
                size={"type": "enum", "role": "size", "choices": list(sizes)},
                aspect_ratio=ratio_parameter("Not set", "1:1", "16:9"),
                style={"type": "enum", "default": "any", "choices": ["any", "linocut"]},
            ),
        )
        assert accepted(subject).input == {"prompt": "a cat", "size": "1024x1024"}
        assert accepted(subject, width=1820, height=1024).input["size"] == "1820x1024"
        assert accepted(subject, width=1792, height=1008).width_px == 1820
        by_ratio = accepted(subject, aspect_ratio="16:9")
        assert by_ratio.input == {"prompt": "a cat", "aspect_ratio": "16:9"}
        assert refused(subject, width=512, height=512).code == "not_allowed"
        assert accepted(subject, parameters={"style": "linocut"}).input["style"] == "linocut"
        assert subject.describe()["sizes"][1] == {
            "width_px": 1820,
            "height_px": 1024,
            "aspect_ratio": None,
        }

    def test_ratios_without_known_pixels(self):
        subject = parse(
            {"ratios": {"1:1": None, "3:2": None}},
            parameters(aspect_ratio=ratio_parameter("1:1", "3:2")),
        )
        result = accepted(subject, width=900, height=600)
        assert result.input["aspect_ratio"] == "3:2"
        assert (result.width_px, result.height_px) == (None, None)
        assert refused(subject, width=900, height=300).allowed == ["1:1", "3:2"]
        assert subject.aspect_ratios == {"1:1": None, "3:2": None}

    def test_no_seed_and_no_choice_of_size(self):
        subject = parse({}, parameters(), formats=("webp",))
        result = accepted(subject)
        assert result == Resolved({"prompt": "a cat"}, None, None, "webp", None)
        assert not subject.supports_seed
        assert refused(subject, seed=1).code == "unsupported"
        assert refused(subject, aspect_ratio="1:1").code == "not_allowed"
        assert refused(subject, width=512, height=512).code == "not_allowed"
        assert subject.max_count == 1

    def test_lists_of_values(self):
        subject = parse({}, parameters(weights={"type": "array", "max_items": 2}))
        for value in ([], ["a", 1.5]):
            assert accepted(subject, parameters={"weights": value}).input["weights"] == value
        for value, code in [
            ("a", "invalid_type"),
            ([{}], "invalid_type"),
            ([1, 2, 3], "too_long"),
        ]:
            assert refused(subject, parameters={"weights": value}).code == code

    def test_one_sided_bounds(self):
        subject = parse(
            {},
            parameters(low={"type": "number", "min": 0}, high={"type": "number", "max": 9}),
        )
        assert "at least 0" in refused(subject, parameters={"low": -1}).message
        assert "at most 9" in refused(subject, parameters={"high": 10}).message


class TestDescription:
    @pytest.mark.parametrize("model_id", ALL)
    def test_is_json_and_names_no_parameter_that_would_be_refused(self, model_id):
        subject = model(model_id)
        described = json.loads(json.dumps(subject.describe()))
        assert described["id"] == model_id
        assert Decimal(described["price_usd_per_image"]) == subject.price_usd_per_image
        for name, field in described["fields"].items():
            assert name in COMMON_FIELDS
            if field.get("default") is not None and name not in ("width", "height"):
                accepted(model_id, **{name: field["default"]})
        for name, field in described["parameters"].items():
            if field["default"] is not None:
                accepted(model_id, parameters={name: field["default"]})
        for entry in described["aspect_ratios"]:
            result = accepted(model_id, aspect_ratio=entry["aspect_ratio"])
            assert (result.width_px, result.height_px) == (entry["width_px"], entry["height_px"])
        for entry in described["sizes"]:
            result = accepted(model_id, width=entry["width_px"], height=entry["height_px"])
            assert (result.width_px, result.height_px) == (entry["width_px"], entry["height_px"])

    def test_of_a_ratio_model(self):
        described = model(SCHNELL).describe()
        assert "guidance_scale" not in described["fields"]
        assert "negative_prompt" not in described["fields"]
        assert "width" not in described["fields"]
        assert described["fields"]["steps"] == {
            "type": "integer",
            "required": False,
            "default": 4,
            "min": 1,
            "max": 4,
        }
        assert described["fields"]["prompt"]["max_length"] == PROMPT_MAX_LENGTH
        assert described["fields"]["output_format"]["choices"] == ["webp", "jpg", "png"]
        assert list(described["parameters"]) == ["megapixels", "go_fast", "disable_safety_checker"]
        assert len(described["sizes"]) == 22
        assert described["supports_free_size"] is False

    def test_of_a_free_size_model(self):
        described = model(SDXL).describe()
        assert described["fields"]["width"]["multiple_of"] == 8
        assert described["fields"]["aspect_ratio"]["choices"] == list(COMMON_RATIOS)
        assert described["fields"]["output_format"]["choices"] == ["png"]
        assert described["sizes"] == []
        assert "num_outputs" not in described["parameters"]
        assert "image" not in described["parameters"]

    def test_of_a_list_names_its_length(self):
        subject = parse({}, parameters(weights={"type": "array", "max_items": 2}))
        assert subject.describe()["parameters"]["weights"]["max_items"] == 2


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-8, 4096),
    st.integers(1, 40).map(lambda n: n * 64),
    st.floats(),
    st.floats(0, 60),
    st.text(max_size=20),
    st.sampled_from(["1:1", "16:9", "2:1", "png", "webp", "jpeg", "DDIM", "0.25", "no_refiner"]),
    st.lists(st.integers(), max_size=3),
)
parameter_names = sorted({name for m in load_models().values() for name in m.parameters})
requests = st.fixed_dictionaries(
    {},
    optional={
        **{name: anything for name in COMMON_FIELDS if name != "prompt"},
        "prompt": st.one_of(anything, st.just("a cat")),
        "parameters": st.dictionaries(st.sampled_from(parameter_names), anything, max_size=3),
    },
)


@given(model_id=st.sampled_from(ALL), request=requests)
def test_whatever_is_accepted_satisfies_the_models_table(model_id, request):
    subject = model(model_id)
    result = subject.resolve(request)
    if isinstance(result, list):
        assert result
        return
    for name, value in result.input.items():
        parameter = subject.parameters[name]
        assert parameter.type != "file"
        assert parameter.check(value, field=name, model_id=model_id) is None
    required = {p.name for p in subject.parameters.values() if p.required}
    assert required <= result.input.keys()
    assert result.input["num_outputs"] == result.output_count
    assert result.output_format in subject.output_formats
    json.dumps(result.input, allow_nan=False)


@given(
    model_id=st.sampled_from(ALL),
    width=st.integers(8, 272).map(lambda n: n * 8),
    height=st.integers(8, 272).map(lambda n: n * 8),
)
def test_an_accepted_size_is_near_to_the_one_asked_for(model_id, width, height):
    result = model(model_id).resolve({"prompt": "a cat", "width": width, "height": height})
    if isinstance(result, Resolved):
        assert result.width_px is not None
        assert result.height_px is not None
        shape, expected_shape = width / height, result.width_px / result.height_px
        assert abs(math.log(shape / expected_shape)) < 0.09
        assert 0.74 < width * height / (result.width_px * result.height_px) < 1.34
