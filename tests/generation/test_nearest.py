"""What a model is asked for in place of what it cannot do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.catalogue import load_models
from generation.model import Resolved
from generation.nearest import nearest
from generation.parameter import distance, ratio_value

MODELS = load_models()
SIDES = st.integers(1, 20_000)
PRINT_SHAPE = 5 / 6
PRINT = {"width": 4500, "height": 5400, "steps": 30, "guidance_scale": 2.0}


def resolved(model, request):
    answer = model.resolve({"prompt": "a fox", **nearest(model, request).request})
    assert isinstance(answer, Resolved), answer
    return answer


@given(
    model=st.sampled_from(list(MODELS.values())),
    width=SIDES,
    height=SIDES,
    steps=st.none() | st.integers(-10, 10_000),
    guidance_scale=st.none() | st.floats(-100, 1_000),
    seed=st.none() | st.integers(0, 2**40),
)
def test_every_model_can_do_what_is_nearest_to_anything(
    model, width, height, steps, guidance_scale, seed
):
    asked = {
        "width": width,
        "height": height,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
    }
    made = resolved(model, asked)
    mapped = nearest(model, asked).mapped
    if made.width_px:
        assert mapped.get("width", (0, width))[1] == made.width_px
        assert mapped.get("height", (0, height))[1] == made.height_px
    assert made.seed == mapped.get("seed", (0, seed))[1]


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_what_every_model_makes_of_a_print_has_nearly_its_shape(model):
    size = nearest(model, PRINT).request
    shape = size["width"] / size["height"] if "width" in size else ratio_value(size["aspect_ratio"])
    off = distance(shape, PRINT_SHAPE)
    # Nothing is further off than 3:4, by a ninth; the area may decide within a hundredth.
    assert off <= min(least_off(model) + math.log(1.01), math.log(10 / 9) + 1e-9)


def least_off(model):
    """How far off the best that a model offers is from a print; what has a size goes first."""
    if model.supports_free_size:
        return 0.0
    sizes = [option.size_px for option in model.size_options if option.size_px]
    shapes = [width / height for width, height in sizes] or [
        ratio_value(option.ratio) for option in model.size_options
    ]
    return min(distance(shape, PRINT_SHAPE) for shape in shapes)


@pytest.mark.parametrize(
    ("model_id", "asked", "used"),
    [
        # The shape first, then the larger of the two sizes that have it.
        ("black-forest-labs/flux-schnell", (4500, 5400), (896, 1088)),
        ("black-forest-labs/flux-schnell", (64, 64), (512, 512)),
        ("stability-ai/sdxl", (4500, 5400), (1720, 2048)),
        ("stability-ai/sdxl", (1024, 1024), (1024, 1024)),
        ("stability-ai/sdxl", (1001, 1000), (1000, 1000)),
        ("stability-ai/sdxl", (20_000, 1), (2032, 64)),
        ("bytedance/seedream-4", (512, 512), (1024, 1024)),
        ("recraft-ai/recraft-v3", (4500, 5400), (1024, 1280)),
    ],
)
def test_the_shape_goes_before_the_area(model_id, asked, used):
    answer = resolved(MODELS[model_id], dict(zip(("width", "height"), asked, strict=True)))
    assert (answer.width_px, answer.height_px) == used


def test_steps_and_guidance_are_kept_within_bounds():
    answer = nearest(MODELS["stability-ai/sdxl"], {"steps": 900, "guidance_scale": 0.2})
    assert answer.request == {"steps": 500, "guidance_scale": 1}
    assert answer.mapped == {"steps": (900, 500), "guidance_scale": (0.2, 1)}


def test_what_a_model_has_not_is_left_out_and_told():
    answer = nearest(MODELS["google/imagen-4"], {**PRINT, "seed": 7})
    assert answer.request.keys() <= {"width", "height", "aspect_ratio"}
    assert answer.mapped == {
        "width": (4500, None),
        "height": (5400, None),
        "aspect_ratio": (None, "3:4"),
        "steps": (30, None),
        "guidance_scale": (2.0, None),
        "seed": (7, None),
    }


def test_of_several_sizes_of_one_shape_the_nearest_in_area_is_asked_for():
    model = MODELS["google/nano-banana-2"]
    large = model.resolve({"prompt": "a fox", **nearest(model, PRINT).request})
    small = model.resolve(
        {"prompt": "a fox", **nearest(model, {"width": 90, "height": 90}).request}
    )
    assert (large.input["resolution"], small.input["resolution"]) == ("4K", "1K")


def test_what_a_model_can_do_stays_as_it_is():
    asked = {"width": 1024, "height": 768, "steps": 20, "guidance_scale": 7.0, "seed": 5}
    answer = nearest(MODELS["stability-ai/sdxl"], {**asked, "output_format": None})
    assert (answer.request, answer.mapped) == (asked, {})
