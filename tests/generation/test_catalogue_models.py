"""Every model of the catalogue: what it takes, what it refuses, and that what is sent is right.

What is right is judged by the simulators' own tables, which know nothing of the catalogue: an
input for Replicate by the model's schema there, a workflow by the node definitions, as if posted.
"""

import copy
import json
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from generation.catalogue import (
    COMMON_FIELDS,
    COMMON_RATIOS,
    MATCH_REFERENCE,
    Model,
    Resolved,
    get_model,
    load_models,
)
from simulator import comfyui_nodes
from simulator import models as simulated
from simulator.images import render

TABLE = {entry["id"]: entry for entry in json.loads(simulated.TABLE.read_text(encoding="utf-8"))}
SCHEMAS = simulated.load_models()
REFERENCE = render("a reference", 1, "", 640, 320, "png")
URI = "https://example.test/reference.png"

KREA, FLUX_PRO = "black-forest-labs/flux-krea-dev", "black-forest-labs/flux-1.1-pro"
SCHNELL, DEV = "black-forest-labs/flux-schnell", "black-forest-labs/flux-dev"
ULTRA, KONTEXT = "black-forest-labs/flux-1.1-pro-ultra", "black-forest-labs/flux-kontext-pro"
FLUX_2, NANO = "black-forest-labs/flux-2-pro", "google/nano-banana-2"
SDXL, LIGHTNING = "stability-ai/sdxl", "bytedance/sdxl-lightning-4step"
SD35 = "stability-ai/stable-diffusion-3.5-large"
SD35_TURBO, SD35_MEDIUM = f"{SD35}-turbo", "stability-ai/stable-diffusion-3.5-medium"
IDEOGRAM, QWEN = "ideogram-ai/ideogram-v3-turbo", "qwen/qwen-image"
IMAGEN, IMAGEN_FAST = "google/imagen-4", "google/imagen-4-fast"
SEEDREAM_3, SEEDREAM_4 = "bytedance/seedream-3", "bytedance/seedream-4"
SEEDREAM_45 = "bytedance/seedream-4.5"
RECRAFT, RECRAFT_SVG = "recraft-ai/recraft-v3", "recraft-ai/recraft-v3-svg"
RECRAFT_4 = "recraft-ai/recraft-v4"
OWN_SDXL, OWN_DEV = ("runpod/sdxl", "comfyui/sdxl"), ("runpod/flux-dev", "comfyui/flux-dev")
OWN_SCHNELL = ("runpod/flux-schnell", "comfyui/flux-schnell")
OWN = (*OWN_SDXL, *OWN_DEV, *OWN_SCHNELL)
ALL = (*TABLE, *OWN)

# Which of the fields that not every model has are had by which.
COMMON = {
    "negative_prompt": "blurry",
    "seed": 7,
    "steps": 2,
    "guidance_scale": 3,
    "output_quality": 50,
    "strength": 0.5,
    "safety": "standard",
    "references": ["one"],
    "num_outputs": 2,
}
_flux = {"seed", "steps", "output_quality", "safety", "num_outputs"}
_flux_dev = _flux | {"guidance_scale", "strength", "references"}
_sdxl = {"negative_prompt", "seed", "steps", "guidance_scale", "num_outputs"}
_sd35 = {"negative_prompt", "seed", "guidance_scale", "strength", "references"}
SUPPORTED = {
    SCHNELL: _flux,
    DEV: _flux_dev,
    KREA: _flux_dev,
    FLUX_PRO: {"seed", "output_quality", "safety", "references"},
    ULTRA: {"seed", "strength", "safety", "references"},
    KONTEXT: {"seed", "safety", "references"},
    SDXL: _sdxl | {"strength", "safety", "references"},
    LIGHTNING: _sdxl | {"safety"},
    **dict.fromkeys((SD35, SD35_TURBO, SD35_MEDIUM), _sd35),
    IDEOGRAM: {"seed", "references"},
    **{key: {"safety"} for key in (IMAGEN, IMAGEN_FAST)},
    SEEDREAM_3: {"seed", "guidance_scale"},
    SEEDREAM_4: {"references"},
    SEEDREAM_45: {"safety", "references"},
    **{key: set() for key in (RECRAFT, RECRAFT_SVG, RECRAFT_4)},
    QWEN: set(COMMON) - {"num_outputs"},
    FLUX_2: {"seed", "output_quality", "safety", "references"},
    NANO: {"references"},
    **dict.fromkeys(OWN_SDXL, _sdxl | {"strength", "references"}),
    **dict.fromkeys(OWN_DEV, _flux_dev - {"output_quality", "safety"}),
    **dict.fromkeys(OWN_SCHNELL, _flux - {"output_quality", "safety"}),
}
MAX_REFERENCES = {
    **{model_id: 1 for model_id, fields in SUPPORTED.items() if "references" in fields},
    IDEOGRAM: 5,
    SEEDREAM_4: 10,
    SEEDREAM_45: 14,
    FLUX_2: 8,
    NANO: 14,
}
KEPT = (DEV, KREA, SDXL, SD35, SD35_TURBO, SD35_MEDIUM, *OWN_SDXL, *OWN_DEV)
MATCHED = (KONTEXT, SEEDREAM_4, SEEDREAM_45, NANO)

# The field that sets a parameter, where that is not `parameters.<its name>`.
FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "aspect_ratio": "aspect_ratio",
    "num_inference_steps": "steps",
    "guidance": "guidance_scale",
    "guidance_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "output_format": "output_format",
    "output_quality": "output_quality",
    "num_outputs": "num_outputs",
    "prompt_strength": "strength",
    "image_prompt_strength": "strength",
    "strength": "strength",
}
SEED_LIMITS = {LIGHTNING: (1, 2**32 - 1), IDEOGRAM: (0, 2**31 - 1)}
_own = {"strength": (0.05, 1), "num_outputs": (1, 4)}
OWN_LIMITS = {
    **{m: _own | {"steps": (1, 500), "guidance_scale": (1, 50)} for m in OWN_SDXL},
    **{m: _own | {"steps": (1, 50), "guidance_scale": (0, 10)} for m in OWN_DEV},
    **{m: {"steps": (1, 4), "num_outputs": (1, 4)} for m in OWN_SCHNELL},
}
# Lowest and highest side, and what it must be a multiple of.
SIDES = {
    SDXL: (64, 2048, 8),
    LIGHTNING: (256, 1280, 8),
    FLUX_PRO: (256, 1440, 32),
    FLUX_2: (256, 2048, 16),
    SEEDREAM_3: (512, 2048, 1),
    SEEDREAM_4: (1024, 4096, 1),
    SEEDREAM_45: (1024, 4096, 1),
    **dict.fromkeys(OWN_SDXL, (64, 2048, 8)),
    **dict.fromkeys((*OWN_DEV, *OWN_SCHNELL), (256, 2048, 16)),
}


def model(model_id: str) -> Model:
    found = get_model(model_id)
    assert found is not None
    return found


def accepted(model_id: str, **request) -> Resolved:
    """Resolve a request, and have the provider's own rules judge what would be sent."""
    result = model(model_id).resolve({"prompt": "a cat", **request})
    assert isinstance(result, Resolved), result
    judge(model(model_id), result, len(request.get("references") or ()))
    return result


def refused(model_id: str, field: str, code: str, **request):
    result = model(model_id).resolve({"prompt": "a cat", **request})
    assert isinstance(result, list), result
    (problem,) = result
    assert (problem.field, problem.code) == (field, code)
    assert model_id in problem.message
    assert field in problem.message
    json.dumps(problem.allowed)
    return problem


def judge(subject: Model, resolved: Resolved, reference_count: int) -> None:
    json.dumps(resolved.input, allow_nan=False)
    assert not resolved.input.keys() & {
        p.name for p in subject.parameters.values() if "file" in p.type
    }
    if subject.workflow is None:
        judge_input(subject, resolved, reference_count)
    else:
        judge_workflow(subject, resolved, reference_count)


def judge_input(subject: Model, resolved: Resolved, reference_count: int) -> None:
    schema = SCHEMAS.named(subject.id)
    assert schema is not None
    values = dict(resolved.input)
    if reference_count:
        image = subject.image_parameter
        assert image is not None
        files = [URI] * reference_count
        values[image.name] = files if image.name in subject.file_lists else files[0]
    assert schema.faults_of(values) == []
    assert schema.failure_of(values) is None
    # A series may have more, if the model sees fit.
    series = subject.by_role("series")
    longest = resolved.input.get(series.name, 1) if series else 1
    assert schema.images_asked(values) == max(resolved.output_count, longest)
    assert schema.image_format(values) == resolved.output_format
    if resolved.width_px is not None:
        assert schema.size_px(values) == (resolved.width_px, resolved.height_px)


def judge_workflow(subject: Model, resolved: Resolved, reference_count: int) -> None:
    workflow = subject.workflow_for(has_image=bool(reference_count))
    assert workflow is not None
    values = dict(resolved.input)
    if reference_count:
        assert subject.image_parameter is not None
        values[subject.image_parameter.name] = "reference.png"
    nodes = workflow.filled(values)
    folders = comfyui_nodes.Folders(input={"reference.png": REFERENCE})
    posted = copy.deepcopy(nodes)
    checked = comfyui_nodes.check(posted, folders)
    assert (checked.error, checked.node_errors) == (None, {})
    assert posted == nodes  # nothing had to be converted to the type of its place
    (output,) = checked.outputs
    files = comfyui_nodes.run_all(posted, [output], folders)[output]
    pictures = [folders.output[file["filename"]] for file in files]
    assert len(pictures) == resolved.output_count
    for picture in pictures:
        assert picture.prompt == resolved.input["prompt"]
        if resolved.width_px is not None:
            size_px = (picture.width_px, picture.height_px)
            assert size_px == (resolved.width_px, resolved.height_px)
    if resolved.seed is not None:
        assert pictures[0].seed == resolved.seed


def asking(model_id: str, name: str, value: object) -> tuple[str, dict]:
    """Return the field and the request that set one parameter of a model at Replicate."""
    field = FIELDS.get(name, f"parameters.{name}")
    request = {field: value} if name in FIELDS else {"parameters": {name: value}}
    if field == "strength":
        request["references"] = ["one"]
    if name == "max_images":  # of no effect but in a series
        request["parameters"]["sequential_image_generation"] = "auto"
    return field, request


class Bound(NamedTuple):
    """A limit of a field: `request` sets the field to `value`, `name` is what is sent."""

    id: str
    model_id: str
    field: str
    name: str
    value: float
    request: dict
    is_within: bool


def bounds() -> list[Bound]:
    found = []

    def add(model_id: str, name: str, low: float | None, high: float | None, is_whole: bool):
        step = 1 if is_whole else 0.01
        values = {"min": low, "max": high}
        values |= {"below": None if low is None else low - step}
        values |= {"above": None if high is None else high + step}
        for place, value in values.items():
            if value is not None:
                if model_id in TABLE:
                    field, request = asking(model_id, name, value)
                else:
                    field, request = name, {name: value}
                    if name == "strength":
                        request["references"] = ["one"]
                within = place in ("min", "max")
                identity = f"{model_id}-{name}-{place}"
                found.append(Bound(identity, model_id, field, name, value, request, within))

    for model_id, entry in TABLE.items():
        for name, spec in entry["parameters"].items():
            if name in ("width", "height", "seed") or "min" not in spec:
                continue
            add(model_id, name, spec["min"], spec["max"], spec["type"] == "integer")
    for model_id, limits in OWN_LIMITS.items():
        for name, (low, high) in limits.items():
            add(model_id, name, low, high, name in ("steps", "num_outputs"))
    for model_id in ALL:
        if "seed" in SUPPORTED[model_id]:
            low, high = SEED_LIMITS.get(model_id, (0, 2**32 - 1))
            add(model_id, "seed", low, high, True)
    return found


BOUNDS = bounds()
INSIDE = [bound for bound in BOUNDS if bound.is_within]
OUTSIDE = [bound for bound in BOUNDS if not bound.is_within]

CHOICES = [
    (model_id, name, value)
    for model_id, entry in TABLE.items()
    for name, spec in entry["parameters"].items()
    for value in spec.get("enum", ())
]
# Choices that are not asked for by their names, or not without a reference image.
UNSAID = ("custom", "Not set")
PLAIN_CHOICES = [c for c in CHOICES if c[2] not in (*UNSAID, MATCH_REFERENCE)]
RATIOS = [
    (model_id, ratio) for model_id in ALL for ratio in model(model_id).describe()["aspect_ratios"]
]


def name_of(case) -> str:
    return "-".join(str(part) for part in case)


class TestAllModels:
    def test_are_those_of_the_simulators_and_six_workflows(self):
        assert set(load_models()) == {*TABLE, *OWN}
        assert len(TABLE) == 23

    @pytest.mark.parametrize("model_id", ALL)
    def test_make_one_picture_by_default(self, model_id):
        result = accepted(model_id)
        assert result.output_count == 1
        assert result.input["prompt"] == "a cat"

    @pytest.mark.parametrize("model_id", TABLE)
    def test_take_every_parameter_that_the_provider_has_and_no_other(self, model_id):
        schema = SCHEMAS.named(model_id)
        assert set(model(model_id).parameters) == set(schema.parameters)
        for name, theirs in schema.parameters.items():
            ours = model(model_id).parameters[name]
            assert ours.required == theirs.required
            if ours.default is not None:
                assert ours.default == theirs.default

    @pytest.mark.parametrize(
        "model_id", [m for m in ALL if m not in (IMAGEN, IMAGEN_FAST, SEEDREAM_3)]
    )
    def test_are_active(self, model_id):
        assert model(model_id).is_active

    @pytest.mark.parametrize(
        ("model_id", "status", "instead"),
        [
            (IMAGEN, "retired", NANO),
            (IMAGEN_FAST, "retired", NANO),
            (SEEDREAM_3, "unavailable", SEEDREAM_4),
        ],
    )
    def test_that_are_gone_name_another(self, model_id, status, instead):
        assert model(model_id).status == status
        assert instead in model(model_id).status_note

    @pytest.mark.parametrize("model_id", TABLE)
    def test_cost_what_the_provider_charges(self, model_id):
        subject, entry = model(model_id), TABLE[model_id]
        price = float(subject.price_usd_per_image)
        if entry["billed_per"] == "second":
            assert float(subject.price_usd_per_second) == entry["price_usd"]
            assert price == pytest.approx(entry["price_usd"] * entry["run_seconds"], rel=0.5)
        else:
            assert subject.price_usd_per_second is None
            assert price == entry["price_usd"]
        assert subject.est_seconds == entry["run_seconds"]

    @pytest.mark.parametrize("model_id", ALL)
    def test_fall_back_on_models_that_take_the_same_plain_request(self, model_id):
        fields = SUPPORTED[model_id] - {"output_quality", "safety"}
        request = {name: COMMON[name] for name in sorted(fields)}
        for other in model(model_id).fallbacks:
            assert model(other).provider != model(model_id).provider
            accepted(other, aspect_ratio="16:9", **{**request, "references": [], "strength": None})
            if "references" in fields:
                accepted(other, **request)

    @pytest.mark.parametrize(
        ("model_id", "fallbacks"),
        [
            (SDXL, OWN_SDXL),
            (DEV, OWN_DEV),
            (SCHNELL, OWN_SCHNELL),
            ("runpod/sdxl", ("comfyui/sdxl",)),
            ("comfyui/sdxl", ()),
            (KONTEXT, ()),
        ],
    )
    def test_fall_back_in_this_order(self, model_id, fallbacks):
        assert model(model_id).fallbacks == fallbacks


class TestBounds:
    @pytest.mark.parametrize("bound", INSIDE, ids=lambda bound: bound.id)
    def test_are_taken(self, bound):
        result = accepted(bound.model_id, **bound.request)
        sent = {"steps", "guidance_scale"} & {bound.field}
        name = model(bound.model_id).by_role(bound.field).name if sent else None
        name = name or (bound.name if bound.name in result.input else "num_outputs")
        assert result.input[name] == bound.value

    @pytest.mark.parametrize("bound", OUTSIDE, ids=lambda bound: bound.id)
    def test_are_not_passed(self, bound):
        problem = refused(bound.model_id, bound.field, "out_of_range", **bound.request)
        assert set(problem.allowed) == {"min", "max"}
        assert not problem.allowed["min"] <= bound.value <= problem.allowed["max"]
        assert str(problem.allowed["max"]) in problem.message

    @pytest.mark.parametrize("model_id", SIDES)
    @pytest.mark.parametrize("place", ["min", "max", "below", "above", "between"])
    def test_of_the_sides_are_the_models(self, model_id, place):
        low, high, step = SIDES[model_id]
        side = {"min": low, "max": high, "below": low - step, "above": high + step}.get(place)
        if place == "between":
            if step > 1:
                problem = refused(model_id, "width", "not_a_multiple", width=low + 1, height=low)
                assert problem.allowed == {"min": low, "max": high, "multiple_of": step}
            else:
                accepted(model_id, width=low + 1, height=low)
        elif place in ("min", "max"):
            result = accepted(model_id, width=side, height=side)
            assert (result.width_px, result.height_px) == (side, side)
        else:
            problem = refused(model_id, "height", "out_of_range", width=low, height=side)
            assert (problem.allowed["min"], problem.allowed["max"]) == (low, high)

    @pytest.mark.parametrize("model_id", sorted(set(ALL) - SIDES.keys()))
    def test_of_the_sides_of_others_are_their_sizes(self, model_id):
        problem = refused(model_id, "width", "not_allowed", width=16_384, height=16)
        assert problem.allowed == [str(option) for option in model(model_id).size_options]


class TestChoices:
    @pytest.mark.parametrize("case", PLAIN_CHOICES, ids=name_of)
    def test_are_taken_and_sent(self, case):
        model_id, name, value = case
        _, request = asking(model_id, name, value)
        assert accepted(model_id, **request).input[name] == value

    @pytest.mark.parametrize("case", [c for c in CHOICES if c[2] in UNSAID], ids=name_of)
    def test_that_stand_for_a_way_of_choosing_cannot_be_made(self, case):
        model_id, name, value = case
        field, request = asking(model_id, name, value)
        refused(model_id, field, "not_allowed", **request)

    @pytest.mark.parametrize("case", [c for c in CHOICES if c[2] == MATCH_REFERENCE], ids=name_of)
    def test_that_follow_a_reference_need_one(self, case):
        model_id, name, value = case
        field, request = asking(model_id, name, value)
        problem = refused(model_id, field, "not_allowed", **request)
        assert problem.allowed
        assert MATCH_REFERENCE not in problem.allowed
        assert accepted(model_id, references=["one"], **request).input[name] == value

    @pytest.mark.parametrize("case", dict.fromkeys(c[:2] for c in CHOICES), ids=name_of)
    def test_that_are_no_choices_are_refused_with_the_list(self, case):
        model_id, name = case
        field, request = asking(model_id, name, "no such thing")
        problem = refused(model_id, field, "not_allowed", **request)
        known = {value for m, n, value in CHOICES if (m, n) == case}
        assert {*problem.allowed, *UNSAID, MATCH_REFERENCE} >= known >= set(problem.allowed)
        for value in problem.allowed:
            assert value in problem.message


class TestFields:
    @pytest.mark.parametrize("model_id", ALL)
    @pytest.mark.parametrize("field", COMMON)
    def test_are_taken_or_refused_as_the_model_has_them(self, model_id, field):
        request = {field: COMMON[field]}
        if field == "strength" and "references" in SUPPORTED[model_id]:
            request["references"] = ["one"]
        if field in SUPPORTED[model_id]:
            bare = accepted(model_id, references=request.get("references"))
            if field in ("references", "safety"):
                accepted(model_id, **request)
            else:
                assert accepted(model_id, **request).input != bare.input
        elif field == "num_outputs":
            problem = refused(model_id, field, "out_of_range", **request)
            assert problem.allowed == {"min": 1, "max": 1}
        else:
            refused(model_id, field, "unsupported", **request)

    @pytest.mark.parametrize("model_id", ALL)
    def test_of_a_wrong_type_are_refused(self, model_id):
        for field in (*COMMON, "parameters", "width", "aspect_ratio", "output_format"):
            result = model(model_id).resolve({"prompt": "a cat", field: object()})
            assert isinstance(result, list)
            codes = {problem.code for problem in result}
            assert codes <= {"invalid_type", "unsupported", "required"}
            assert field in {problem.field for problem in result}

    @pytest.mark.parametrize("model_id", ALL)
    def test_that_other_models_have_are_refused_as_parameters(self, model_id):
        names = {name for one in load_models().values() for name in one.parameters}
        for name in sorted(names - set(model(model_id).parameters)):
            problem = refused(model_id, f"parameters.{name}", "unsupported", parameters={name: "x"})
            assert problem.allowed == list(model(model_id).own_parameters)

    @pytest.mark.parametrize("model_id", ALL)
    def test_of_the_operator_and_of_the_vocabulary_are_no_parameters(self, model_id):
        for name in model(model_id).parameters.keys() - model(model_id).own_parameters.keys():
            refused(model_id, f"parameters.{name}", "unsupported", parameters={name: "x"})

    def test_of_the_operator_are_sent(self):
        sent = accepted("comfyui/flux-dev").input
        assert sent["unet"] == "flux1-dev.safetensors"
        assert accepted("comfyui/sdxl").input["checkpoint"] == "sd_xl_base_1.0.safetensors"


class TestSizes:
    @pytest.mark.parametrize(
        ("model_id", "entry"), RATIOS, ids=[f"{m}-{e['aspect_ratio']}" for m, e in RATIOS]
    )
    def test_by_ratio_are_as_described(self, model_id, entry):
        result = accepted(model_id, aspect_ratio=entry["aspect_ratio"])
        assert (result.width_px, result.height_px) == (entry["width_px"], entry["height_px"])

    @pytest.mark.parametrize(
        ("model_id", "name"),
        [
            (RECRAFT, "size"),
            (RECRAFT_SVG, "size"),
            (RECRAFT_4, "size"),
            (IDEOGRAM, "resolution"),
        ],
    )
    def test_of_a_list_are_had_by_width_and_height(self, model_id, name):
        sizes = [s for s in TABLE[model_id]["parameters"][name]["enum"] if s != "None"]
        assert len(model(model_id).describe()["sizes"]) == len(sizes)
        for size in sizes:
            width, height = map(int, size.split("x"))
            result = accepted(model_id, width=width, height=height)
            assert result.input[name] == size
            assert (result.width_px, result.height_px) == (width, height)

    @pytest.mark.parametrize(
        ("model_id", "width", "height", "sent"),
        [
            (NANO, 1024, 1024, {"aspect_ratio": "1:1", "resolution": "1K"}),
            (NANO, 2730, 1536, {"aspect_ratio": "16:9", "resolution": "2K"}),
            (NANO, 4096, 4096, {"aspect_ratio": "1:1", "resolution": "4K"}),
            (ULTRA, 2752, 1536, {"aspect_ratio": "16:9"}),
            (SD35, 1152, 896, {"aspect_ratio": "5:4"}),
            (QWEN, 1664, 928, {"aspect_ratio": "16:9"}),
            (IMAGEN, 1408, 768, {"aspect_ratio": "16:9"}),
            (FLUX_PRO, 1440, 256, {"aspect_ratio": "custom", "width": 1440, "height": 256}),
            (SEEDREAM_4, 4096, 1024, {"size": "custom", "width": 4096, "height": 1024}),
            (SEEDREAM_3, 512, 2048, {"aspect_ratio": "custom", "width": 512, "height": 2048}),
        ],
    )
    def test_in_pixels_become_what_the_model_knows(self, model_id, width, height, sent):
        result = accepted(model_id, width=width, height=height)
        assert result.input == {"prompt": "a cat", **sent}

    @pytest.mark.parametrize(
        ("model_id", "width", "height"),
        [
            (SD35, 4096, 4096),
            (KONTEXT, 512, 512),
            (ULTRA, 1024, 1024),
            (NANO, 512, 512),
            (SD35, 1024, 768),
            (RECRAFT, 512, 512),
        ],
    )
    def test_far_from_what_it_makes_are_refused(self, model_id, width, height):
        problem = refused(model_id, "width", "not_allowed", width=width, height=height)
        assert problem.allowed == list(dict.fromkeys(map(str, model(model_id).size_options)))

    def test_of_known_area_only_are_named_with_it(self):
        problem = refused(NANO, "width", "not_allowed", width=512, height=512)
        assert "1:1 (about 1 megapixels)" in problem.allowed
        assert "16:9 (about 16 megapixels)" in problem.allowed

    @pytest.mark.parametrize(
        ("model_id", "name", "value", "other"),
        [
            (SEEDREAM_4, "size", "4K", {"width": 2048, "height": 1024}),
            (FLUX_2, "resolution", "2 MP", {"width": 1024, "height": 1024}),
            (FLUX_2, "resolution", "2 MP", {"aspect_ratio": "2:1"}),
            (RECRAFT, "size", "1365x1024", {"aspect_ratio": "4:3"}),
            (SEEDREAM_3, "size", "big", {"width": 2048, "height": 1024}),
        ],
    )
    def test_by_name_do_not_go_with_others(self, model_id, name, value, other):
        problem = refused(
            model_id, f"parameters.{name}", "conflict", parameters={name: value}, **other
        )
        assert repr(value) in problem.message

    @pytest.mark.parametrize(
        ("model_id", "sent"),
        [
            (KONTEXT, {"aspect_ratio": "1:1"}),
            (SEEDREAM_4, {"aspect_ratio": "1:1", "size": "2K"}),
            (SEEDREAM_45, {"aspect_ratio": "1:1", "size": "2K"}),
            (NANO, {"aspect_ratio": "1:1", "resolution": "1K"}),
            (FLUX_2, {"aspect_ratio": "1:1", "resolution": "1 MP"}),
            (QWEN, {"aspect_ratio": "16:9"}),
            (SEEDREAM_3, {"aspect_ratio": "16:9", "size": "regular"}),
            (IDEOGRAM, {"aspect_ratio": "1:1", "resolution": "None"}),
            (RECRAFT_4, {"size": "1024x1024"}),
        ],
    )
    def test_by_default_are_sent(self, model_id, sent):
        assert accepted(model_id).input == {"prompt": "a cat", **sent}


class TestReferences:
    @pytest.mark.parametrize("model_id", MAX_REFERENCES)
    def test_are_taken_up_to_the_models_number(self, model_id):
        limit = MAX_REFERENCES[model_id]
        assert model(model_id).max_references == limit
        for count in (1, limit):
            accepted(model_id, references=["one"] * count)
        problem = refused(model_id, "references", "too_many", references=["one"] * (limit + 1))
        assert problem.allowed == {"max": limit}

    @pytest.mark.parametrize("model_id", sorted(set(ALL) - MAX_REFERENCES.keys()))
    def test_are_refused_by_models_for_text(self, model_id):
        refused(model_id, "references", "unsupported", references=["one"])
        assert model(model_id).max_references == 0
        assert model(model_id).describe()["references"] is None

    @pytest.mark.parametrize("model_id", ALL)
    def test_may_be_an_empty_list(self, model_id):
        assert accepted(model_id, references=[]) == accepted(model_id)

    @pytest.mark.parametrize("model_id", KEPT)
    def test_give_the_shape_where_the_model_has_it_so(self, model_id):
        result = accepted(model_id, references=["one"])
        assert (result.width_px, result.height_px) == (None, None)
        sizes = {"width", "height", "aspect_ratio", "megapixels"}
        assert not sizes & result.input.keys()
        for asked in ({"aspect_ratio": "16:9"}, {"width": 1024, "height": 1024}):
            problems = model(model_id).resolve({"prompt": "a", "references": ["one"], **asked})
            assert [(p.field, p.code) for p in problems] == [(name, "conflict") for name in asked]

    @pytest.mark.parametrize("model_id", MATCHED)
    def test_give_the_shape_where_no_other_is_asked_for(self, model_id):
        result = accepted(model_id, references=["one"])
        assert result.input == {"prompt": "a cat"}
        assert (result.width_px, result.height_px) == (None, None)
        assert accepted(model_id, references=["one"], aspect_ratio="16:9").input[
            "aspect_ratio"
        ] == ("16:9")

    @pytest.mark.parametrize("model_id", [FLUX_PRO, ULTRA, IDEOGRAM, QWEN, FLUX_2])
    def test_do_not_change_the_size_elsewhere(self, model_id):
        assert accepted(model_id, references=["one"]) == accepted(model_id)

    @pytest.mark.parametrize("model_id", [KONTEXT, FLUX_2])
    def test_cannot_give_the_shape_beside_a_size(self, model_id):
        result = model(model_id).resolve(
            {
                "prompt": "a cat",
                "references": ["one"],
                "aspect_ratio": MATCH_REFERENCE,
                "width": 1024,
                "height": 1024,
            }
        )
        assert [(p.field, p.code) for p in result] == [("aspect_ratio", "conflict")]

    @pytest.mark.parametrize("model_id", [m for m in ALL if "strength" in SUPPORTED[m]])
    def test_are_required_with_strength(self, model_id):
        refused(model_id, "references", "required", strength=0.5)

    def test_that_a_model_cannot_do_without_are_required(self):
        subject = model(KONTEXT)
        image = replace(subject.image_parameter, required=True)
        subject = replace(subject, parameters={**subject.parameters, image.name: image})
        (problem,) = subject.resolve({"prompt": "a cat"})
        assert (problem.field, problem.code) == ("references", "required")
        assert problem.allowed == {"min": 1, "max": 1}
        assert subject.describe()["references"]["required"] is True
        assert isinstance(subject.resolve({"prompt": "a cat", "references": ["one"]}), Resolved)


class TestSafety:
    @pytest.mark.parametrize(
        ("model_id", "level", "sent"),
        [
            (SCHNELL, "standard", {"disable_safety_checker": False}),
            (SCHNELL, "relaxed", {"disable_safety_checker": True}),
            (FLUX_PRO, "strict", {"safety_tolerance": 1}),
            (FLUX_PRO, "relaxed", {"safety_tolerance": 5}),
            (FLUX_2, "standard", {"safety_tolerance": 2}),
            (KONTEXT, "strict", {"safety_tolerance": 0}),
            (KONTEXT, "relaxed", {"safety_tolerance": 6}),
            (IMAGEN, "strict", {"safety_filter_level": "block_low_and_above"}),
            (IMAGEN_FAST, "relaxed", {"safety_filter_level": "block_only_high"}),
        ],
    )
    def test_is_set_by_the_models_own_parameter(self, model_id, level, sent):
        result = accepted(model_id, safety=level)
        assert result.input == {**accepted(model_id).input, **sent}

    @pytest.mark.parametrize("model_id", [m for m in ALL if "safety" in SUPPORTED[m]])
    def test_has_the_levels_that_are_described(self, model_id):
        levels = model(model_id).describe()["fields"]["safety"]["choices"]
        for level in levels:
            accepted(model_id, safety=level)
        problem = refused(model_id, "safety", "not_allowed", safety="lax")
        assert problem.allowed == levels

    def test_that_a_model_cannot_be_told_is_refused(self):
        assert refused(SCHNELL, "safety", "not_allowed", safety="strict").allowed == [
            "standard",
            "relaxed",
        ]

    def test_is_limited_with_a_reference_image(self):
        accepted(KONTEXT, parameters={"safety_tolerance": 6})
        accepted(KONTEXT, references=["one"], parameters={"safety_tolerance": 2})
        problem = refused(
            KONTEXT,
            "parameters.safety_tolerance",
            "out_of_range",
            references=["one"],
            parameters={"safety_tolerance": 3},
        )
        assert problem.allowed == {"min": 0, "max": 2}
        problem = refused(KONTEXT, "safety", "not_allowed", references=["one"], safety="relaxed")
        assert problem.allowed == ["strict", "standard"]
        assert model(KONTEXT).describe()["references"]["safety"] == ["strict", "standard"]

    def test_does_not_go_with_a_parameter_that_says_otherwise(self):
        accepted(FLUX_PRO, safety="strict", parameters={"safety_tolerance": 1})
        problem = refused(
            FLUX_PRO,
            "parameters.safety_tolerance",
            "conflict",
            safety="strict",
            parameters={"safety_tolerance": 6},
        )
        assert problem.allowed == [1]


class TestCount:
    @pytest.mark.parametrize("model_id", [m for m in ALL if "num_outputs" in SUPPORTED[m]])
    def test_is_sent_under_the_models_name(self, model_id):
        result = accepted(model_id, num_outputs=4)
        assert result.input["num_outputs"] == 4
        assert result.output_count == 4
        assert model(model_id).max_count == 4

    @pytest.mark.parametrize("model_id", [m for m in ALL if "num_outputs" not in SUPPORTED[m]])
    def test_of_one_is_no_news_to_other_models(self, model_id):
        assert accepted(model_id, num_outputs=1) == accepted(model_id)
        assert model(model_id).max_count == 1

    @pytest.mark.parametrize("model_id", [SEEDREAM_4, SEEDREAM_45])
    def test_of_a_series_is_the_models_decision(self, model_id):
        series = {"sequential_image_generation": "auto", "max_images": 4}
        result = accepted(model_id, parameters=series)
        assert (result.output_count, result.input["max_images"]) == (1, 4)
        problem = refused(
            model_id, "parameters.max_images", "conflict", parameters={"max_images": 4}
        )
        assert "sequential_image_generation" in problem.message


class TestPrice:
    @pytest.mark.parametrize(
        ("model_id", "request_", "price"),
        [
            (FLUX_2, {}, "0.03"),
            (FLUX_2, {"width": 1024, "height": 1024}, "0.03"),
            (FLUX_2, {"width": 1024, "height": 1040}, "0.045"),
            (FLUX_2, {"width": 2048, "height": 1536}, "0.06"),
            (FLUX_2, {"width": 2048, "height": 2048}, "0.075"),
            (FLUX_2, {"width": 256, "height": 256}, "0.03"),
            (FLUX_2, {"parameters": {"resolution": "0.5 MP"}}, "0.03"),
            (FLUX_2, {"parameters": {"resolution": "4 MP"}}, "0.075"),
            (
                FLUX_2,
                {"parameters": {"resolution": "match_input_image"}, "references": ["x"]},
                "0.03",
            ),
            (NANO, {}, "0.067"),
            (NANO, {"references": ["x"]}, "0.067"),
            (NANO, {"parameters": {"resolution": "2K"}}, "0.101"),
            (NANO, {"width": 4096, "height": 4096}, "0.151"),
        ],
    )
    def test_is_by_what_is_sent_where_that_matters(self, model_id, request_, price):
        result = accepted(model_id, **request_)
        assert model(model_id).price_per_image(result.input) == Decimal(price)

    @pytest.mark.parametrize("model_id", sorted({*ALL} - {FLUX_2, NANO}))
    def test_is_one_for_all_pictures_of_other_models(self, model_id):
        subject = model(model_id)
        result = accepted(model_id)
        assert subject.price_per_image(result.input) == subject.price_usd_per_image
        assert subject.describe()["price_usd_by"] == {}

    @pytest.mark.parametrize("model_id", [FLUX_2, NANO])
    def test_of_the_default_is_that_of_a_usual_picture(self, model_id):
        subject = model(model_id)
        usual = subject.price_per_image(accepted(model_id).input)
        assert usual == subject.price_usd_per_image

    def test_is_told_with_its_conditions(self):
        described = json.loads(json.dumps(model(NANO).describe()))
        assert described["price_usd_by"] == {
            "resolution": {"1K": "0.067", "2K": "0.101", "4K": "0.151"}
        }


class TestDescription:
    @pytest.mark.parametrize("model_id", ALL)
    def test_says_nothing_that_would_be_refused(self, model_id):
        described = json.loads(json.dumps(model(model_id).describe()))
        for name, field in {**described["fields"], **described["parameters"]}.items():
            is_own = name in described["parameters"]
            values = [*field.get("choices", ()), field.get("default")]
            values += [field[limit] for limit in ("min", "max") if limit in field]
            for value in values:
                if value is None or name in ("width", "height"):
                    continue
                request = {"parameters": {name: value}} if is_own else {name: value}
                for other, needed in field.get("only_when", {}).items():
                    request["parameters"][other] = needed
                accepted(model_id, **request)
        for entry in described["sizes"]:
            accepted(model_id, width=entry["width_px"], height=entry["height_px"])
        assert described["max_outputs"] == described["fields"]["num_outputs"]["max"]
        assert described["est_seconds"] > 0
        assert float(described["price_usd_per_image"]) >= 0

    @pytest.mark.parametrize("model_id", MAX_REFERENCES)
    def test_of_references_tells_all_that_a_form_needs(self, model_id):
        told = model(model_id).describe()["references"]
        assert told["max"] == MAX_REFERENCES[model_id]
        assert told["required"] is False
        if told["strength"]:
            for value in (told["strength"]["min"], told["strength"]["max"]):
                accepted(model_id, references=["one"], strength=value)
            assert told["strength"]["default"] is not None
        else:
            assert "strength" not in SUPPORTED[model_id]
        assert told["size"] == (
            "kept" if model_id in KEPT else "matched" if model_id in MATCHED else ""
        )
        for ratio in told["aspect_ratios"]:
            accepted(model_id, references=["one"], aspect_ratio=ratio)
        for name, choices in told["parameters"].items():
            for value in choices:
                accepted(model_id, references=["one"], parameters={name: value})

    @pytest.mark.parametrize("model_id", [FLUX_PRO, SEEDREAM_3, SEEDREAM_4, FLUX_2])
    def test_hides_the_choice_that_width_and_height_make(self, model_id):
        assert "custom" not in json.dumps(model(model_id).describe())

    @pytest.mark.parametrize("model_id", MAX_REFERENCES)
    def test_offers_what_follows_a_reference_image_only_with_one(self, model_id):
        described = model(model_id).describe()
        told = described.pop("references")
        assert MATCH_REFERENCE not in json.dumps([described["fields"], described["parameters"]])
        offered = [name for m, name, value in CHOICES if (m, value) == (model_id, MATCH_REFERENCE)]
        own = [name for name in offered if name != "aspect_ratio"]
        assert bool(told["aspect_ratios"]) is ("aspect_ratio" in offered)
        assert list(told["parameters"]) == own

    def test_shows_no_names_of_the_operators_files(self):
        assert "safetensors" not in json.dumps(model("comfyui/flux-dev").describe())

    def test_of_a_free_size_names_the_usual_ratios_with_their_pixels(self):
        ratios = {
            entry["aspect_ratio"]: (entry["width_px"], entry["height_px"])
            for entry in model("comfyui/flux-dev").describe()["aspect_ratios"]
        }
        assert list(ratios) == list(COMMON_RATIOS)
        assert ratios["16:9"] == (1360, 768)
        assert all(side % 16 == 0 for size in ratios.values() for side in size)


plausible = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.integers(1, 300).map(lambda n: n * 16),
    st.floats(0, 12),
    st.floats(),
    st.sampled_from(
        ["1:1", "16:9", "2:1", MATCH_REFERENCE, "custom", "png", "jpeg", "svg", "auto", "1K", "4K"]
    ),
    st.sampled_from(
        ["strict", "standard", "relaxed", "", "None", "2 MP", "euler", "any", "blurry"]
    ),
    st.lists(st.sampled_from(["one", 2]), max_size=12),
)


@st.composite
def requests(draw):
    model_id = draw(st.sampled_from(ALL))
    names = sorted(model(model_id).parameters)
    return model_id, draw(
        st.fixed_dictionaries(
            {},
            optional={
                **{name: plausible for name in COMMON_FIELDS if name != "prompt"},
                "parameters": st.dictionaries(st.sampled_from(names), plausible, max_size=3),
            },
        )
    )


@given(requests())
def test_whatever_is_accepted_is_right_for_the_provider(case):
    model_id, request = case
    result = model(model_id).resolve({"prompt": "a cat", **request})
    if isinstance(result, Resolved):
        judge(model(model_id), result, len(request.get("references") or ()))
    else:
        assert result
        assert all(model_id in problem.message for problem in result)
        json.dumps([problem.allowed for problem in result])


@st.composite
def sensible_requests(draw):
    """Draw from what the description of a model offers; most of it is accepted."""
    model_id = draw(st.sampled_from(ALL))
    described = model(model_id).describe()

    def value_of(field):
        if "choices" in field:
            return st.sampled_from(field["choices"])
        if field["type"] == "boolean":
            return st.booleans()
        if field["type"] == "array":
            return st.lists(st.floats(0, 1), max_size=3)
        if field["type"] == "string":
            return st.text(min_size=1, max_size=20).filter(str.strip)
        step = field.get("multiple_of", 1)
        low, high = field.get("min", 0), field.get("max", 10)
        if field["type"] == "integer":
            return st.integers(-(-low // step), high // step).map(lambda n: n * step)
        return st.floats(low, high)

    fields = {name: value_of(field) for name, field in described["fields"].items()}
    prompt = fields.pop("prompt")
    sides = {name: fields.pop(name) for name in ("width", "height") if name in fields}
    own = {name: value_of(field) for name, field in described["parameters"].items()}
    request = draw(st.fixed_dictionaries({"prompt": prompt}, optional=fields))
    if sides and draw(st.booleans()):
        request |= draw(st.fixed_dictionaries(sides))
    request["parameters"] = draw(st.fixed_dictionaries({}, optional=own))
    if described["references"] and draw(st.booleans()):
        request["references"] = draw(
            st.lists(st.just("one"), min_size=1, max_size=described["references"]["max"])
        )
    return model_id, request


@example(("bytedance/seedream-4.5", {"prompt": "a cat", "parameters": {"max_images": 1}}))
@given(sensible_requests())
def test_what_is_described_is_accepted_or_contradicts_itself(case):
    model_id, request = case
    result = model(model_id).resolve(request)
    if isinstance(result, Resolved):
        judge(model(model_id), result, len(request.get("references") or ()))
    else:
        assert {problem.code for problem in result} <= {"conflict", "not_allowed", "out_of_range"}
        # Each value is one that is offered: only together can they be wrong, or without the one
        # that it counts with.
        described = model(model_id).describe()
        offered = {**described["fields"], **described["parameters"]}
        given = [name for name in (*request, *request["parameters"]) if name in offered]
        is_conditional = any("only_when" in offered[name] for name in given)
        assert len(request) - 2 + len(request["parameters"]) >= 2 or is_conditional
