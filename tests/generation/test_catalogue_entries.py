"""Entries of the catalogue: what may stand in one, and what a malformed one is told."""

import copy
import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import generation.catalogue
from generation.catalogue import (
    Difference,
    Model,
    Resolved,
    differences,
    get_model,
    load_entries,
    load_models,
    parse_entry,
)
from simulator import models as simulated

DEV, SDXL, OWN = "black-forest-labs/flux-dev", "stability-ai/sdxl", "comfyui/sdxl"
FLUX_2 = "black-forest-labs/flux-2-pro"
KONTEXT, SEEDREAM = "black-forest-labs/flux-kontext-pro", "bytedance/seedream-4"
NODES = {
    "1": {"class_type": "Draw", "inputs": {"text": "", "seed": 1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


def entry_of(model_id: str) -> dict:
    return load_entries()[model_id]


def changed(model_id: str, *path: str, to: object) -> dict:
    """Return an entry with the value at `path` set, or removed when `to` is `...`."""
    entry = entry_of(model_id)
    *parents, last = path
    place = entry
    for name in parents:
        place = place.setdefault(name, {})
    if to is ...:
        del place[last]
    else:
        place[last] = to
    return entry


def drawn(**more) -> dict:
    """Return an entry of a model with a workflow of its own."""
    return {
        "provider": "comfyui",
        "display_name": "Drawn",
        "family": "",
        "status": "active",
        "price_usd_per_image": "0",
        "est_seconds": 1,
        "output_formats": ["png"],
        "size": {},
        "workflow": copy.deepcopy(NODES),
        "parameters": {
            "prompt": {
                "type": "string",
                "role": "prompt",
                "required": True,
                "bindings": [["1", "text"]],
            },
            "seed": {"type": "integer", "role": "seed", "bindings": [["1", "seed"]]},
        },
        **more,
    }


class TestEntries:
    def test_are_given_as_they_stand_in_the_file(self):
        path = Path(generation.catalogue.__file__).with_name("models.json")
        assert load_entries() == json.loads(path.read_text(encoding="utf-8"))["models"]
        assert list(load_entries()) == list(load_models())

    def test_can_be_changed_by_whoever_asked_for_them(self):
        load_entries()[SDXL]["status"] = "retired"
        assert load_entries()[SDXL]["status"] == "active"
        assert load_models()[SDXL].is_active

    @pytest.mark.parametrize("model_id", load_models())
    def test_make_the_models_of_the_file(self, model_id):
        assert parse_entry(model_id, entry_of(model_id)) == get_model(model_id)

    @pytest.mark.parametrize("model_id", load_models())
    def test_mean_the_same_in_any_order_of_keys(self, model_id):
        # As a database may give them back: the shorter keys first.
        def sort(value):
            if not isinstance(value, dict):
                return value
            return {key: sort(value[key]) for key in sorted(value, key=lambda k: (len(k), k))}

        subject, original = parse_entry(model_id, sort(entry_of(model_id))), get_model(model_id)
        for request in ({}, {"aspect_ratio": "1:1"}, {"width": 1024, "height": 1024}):
            asked = {"prompt": "a cat", **request}
            if isinstance(result := original.resolve(asked), Resolved):
                assert subject.resolve(asked) == result

    def test_may_leave_out_what_is_optional(self):
        subject = parse_entry("some/model", drawn())
        assert (subject.version, subject.deployment, subject.endpoint) == (None, None, None)
        assert (subject.status_note, subject.price_note, subject.fallbacks) == ("", "", ())
        assert subject.price_usd_per_second is None
        assert subject.confidence == {}

    def test_name_the_program_and_what_it_costs(self):
        entry = drawn(
            deployment="me/mine",
            endpoint="abc123",
            version="v1",
            fallbacks=["other/model"],
            price_usd_per_second="0.00031",
        )
        subject = parse_entry("some/model", entry)
        assert (subject.deployment, subject.endpoint, subject.version) == (
            "me/mine",
            "abc123",
            "v1",
        )
        assert subject.fallbacks == ("other/model",)
        assert subject.price_usd_per_second == Decimal("0.00031")
        assert subject.describe()["price_usd_per_second"] == "0.00031"

    def test_price_by_several_parameters_is_the_highest_that_fits(self):
        prices = {
            "resolution": {"1 MP": "0.01", "4 MP": "0.2"},
            "megapixels": {"1": "0.1", "4": "0.3"},
        }
        subject = parse_entry("some/model", {**entry_of(FLUX_2), "price_usd_by": prices})
        square = {"width": 1024, "height": 1024}
        for values, price in (
            ({}, "0.03"),
            ({"resolution": "2 MP"}, "0.03"),
            ({"resolution": "1 MP"}, "0.01"),
            ({**square, "resolution": "1 MP"}, "0.1"),
            ({**square, "resolution": "4 MP"}, "0.2"),
            ({"width": 2048, "height": 2048}, "0.3"),
            ({"width": 2048, "height": 1024}, "0.03"),  # two are not in the list
        ):
            assert subject.price_per_image(values) == Decimal(price)

    def test_price_by_a_parameter_that_is_called_megapixels_like_any_other(self):
        entry = {**entry_of(FLUX_2), "price_usd_by": {"megapixels": {"9": "0.01"}}}
        entry["parameters"]["megapixels"] = {"type": "enum", "choices": ["1", "9"]}
        subject = parse_entry("some/model", entry)
        square = {"width": 1024, "height": 1024}
        assert subject.price_per_image({**square, "megapixels": "9"}) == Decimal("0.01")
        assert subject.price_per_image({**square, "megapixels": "1"}) == Decimal("0.03")


class TestMalformedEntries:
    @pytest.mark.parametrize(
        ("entry", "told"),
        [
            ([], "the entry: [] is not of type 'object'"),
            ({}, "'provider' is a required property"),
            (changed(DEV, "parameters", to=...), "'parameters' is a required property"),
            (changed(DEV, "colour", to="red"), "'colour' was unexpected"),
            (changed(DEV, "status", to="sleeping"), "status: 'sleeping' is not one of"),
            (changed(DEV, "provider", to=""), "provider: ''"),
            (changed(DEV, "price_usd_per_image", to=0.5), "price_usd_per_image: 0.5"),
            (changed(DEV, "price_usd_per_image", to="-1"), "price_usd_per_image: '-1'"),
            (changed(DEV, "price_usd_per_second", to="cheap"), "price_usd_per_second: 'cheap'"),
            (changed(DEV, "price_usd_by", to={"go": {"1": "1"}}), "price_usd_by.go: there is no"),
            (
                changed(DEV, "price_usd_by", "megapixels", to={"9": "1"}),
                "price_usd_by.megapixels: '9' is not a choice",
            ),
            (
                changed(DEV, "price_usd_by", "megapixels", to={"1": 1}),
                "price_usd_by.megapixels.1: 1 is not of type 'string'",
            ),
            (
                changed("google/imagen-4", "price_usd_by", "megapixels", to={"1": "1"}),
                "price_usd_by.megapixels: goes with parameters for width and height",
            ),
            (
                changed(
                    "black-forest-labs/flux-2-pro", "price_usd_by", "megapixels", "0.5", to="1"
                ),
                "price_usd_by.megapixels: '0.5' is no number",
            ),
            (changed(DEV, "est_seconds", to=0), "est_seconds: 0"),
            (changed(DEV, "output_formats", to=[]), "output_formats: []"),
            (changed(DEV, "output_formats", to=["gif"]), "'gif' is not one of"),
            (changed(DEV, "output_formats", to=["png"]), "output_format: its choices must be"),
            (changed(OWN, "output_formats", to=["png", "jpg"]), "no parameter to choose one by"),
            (changed(DEV, "fallbacks", to=["some/model"]), "fallbacks: names the model itself"),
            (changed(DEV, "fallbacks", to="x/y"), "fallbacks: 'x/y' is not of type 'array'"),
            (changed(DEV, "deployment", to="mine"), "deployment: 'mine'"),
            (changed(DEV, "endpoint", to="a/b"), "endpoint: 'a/b'"),
            (changed(DEV, "confidence", "price", to="sure"), "confidence.price: 'sure'"),
            (changed(DEV, "image", "size", to="cut"), "image.size: 'cut'"),
            (changed("google/imagen-4", "image", "note", to="x"), "image: there is no parameter"),
            (changed(DEV, "safety", "mild", to={}), "safety: 'mild'"),
            (changed(DEV, "safety", "strict", to={"nothing": 1}), "safety.strict.nothing"),
            (
                changed(DEV, "safety", "strict", to={"disable_safety_checker": 1}),
                "safety.strict.disable_safety_checker: 1",
            ),
            (changed(DEV, "safety", "strict", to={"guidance": 1}), "safety.strict.guidance"),
            (
                changed(SDXL, "parameters", "lora_scale", to={"type": "number", "fixed": True}),
                "parameters.lora_scale: a fixed parameter needs a default",
            ),
        ],
    )
    def test_are_told_what_is_wrong(self, entry, told):
        self.refused(entry, told)

    @pytest.mark.parametrize(
        ("name", "key", "value", "told"),
        [
            ("go_fast", "type", "colour", "go_fast.type: 'colour'"),
            ("go_fast", "type", ..., "go_fast: 'type' is a required property"),
            ("go_fast", "speed", 1, "'speed' was unexpected"),
            ("go_fast", "min", 1, "go_fast: bounds are for numbers"),
            ("go_fast", "default", "yes", "go_fast.default: 'yes'"),
            ("go_fast", "role", "prompt", "cannot have the type boolean"),
            ("go_fast", "role", "spell", "go_fast.role: 'spell'"),
            ("go_fast", "choices", ["a"], "choices go with the type enum"),
            ("megapixels", "choices", ..., "choices go with the type enum"),
            ("megapixels", "choices", ["1"], "size: megapixels: '0.25' is not a choice"),
            ("megapixels", "default", "2", "megapixels.default: '2'"),
            ("megapixels", "fixed", True, "is_fine"),
            ("guidance", "min", 11, "guidance: min is above max"),
            ("guidance", "default", 11, "guidance.default: 11"),
            ("guidance", "fixed", True, "a fixed parameter can have no role"),
            ("seed", "role", "steps", "parameters: several have the role steps"),
            ("seed", "bindings", [["1", "seed"]], "seed.bindings: go with a workflow"),
            ("prompt", "required", False, "none has the role prompt and is required"),
            ("prompt", "role", ..., "none has the role prompt and is required"),
            ("num_outputs", "max", ..., "needs the min 1 and a max"),
            ("num_outputs", "min", 0, "needs the min 1 and a max"),
            ("image", "default", "x", "image: a file can have no default"),
            ("image", "role", ..., "image_strength goes with the role image"),
            ("aspect_ratio", "choices", ["1:1"], "size: aspect_ratio: '16:9' is not a choice"),
            ("aspect_ratio", "role", ..., "size.ratios: go with a parameter of the role"),
            ("go_fast", "only_when", {"speed": 1}, "only_when.speed: there is no such"),
            ("go_fast", "only_when", {"megapixels": "9"}, "only_when.megapixels: '9'"),
            ("go_fast", "only_when", {"image": "x"}, "only_when.image: a file cannot be set"),
        ],
    )
    def test_of_a_parameter_are_told_which(self, name, key, value, told):
        entry = changed(DEV, "parameters", name, key, to=value)
        if told == "is_fine":
            assert parse_entry("some/model", entry).parameters[name].fixed
        else:
            self.refused(entry, told)

    @pytest.mark.parametrize(
        ("model_id", "size", "told"),
        [
            (DEV, {}, "size.ratios: go with a parameter of the role aspect_ratio"),
            (DEV, {"ratios": {"wide": None}}, "size.ratios: 'wide'"),
            (DEV, {"ratios": {"7:1": None}}, "size: aspect_ratio: '7:1' is not a choice"),
            (DEV, {"ratios": {"1:1": [0, 9]}}, "size.ratios.1:1"),
            (DEV, {"ratios": {"1:1": None}, "free": {}}, "size.free: goes with parameters"),
            (DEV, {"ratios": {"1:1": None}, "scales": {"big": {"1": 2}}}, "size: big: there is no"),
            (
                DEV,
                {"ratios": {"1:1": None}, "exact": {"megapixels": {"9": [64, 64]}}},
                "'9' is not",
            ),
            (DEV, {"ratios": {"1:1": None}, "shape": 1}, "'shape' was unexpected"),
            (SDXL, {}, "size.free: goes with parameters for width and height"),
            (SDXL, {"free": {}, "scales": {"scheduler": {"DDIM": 2}}}, "size.scales: go with"),
            (SDXL, {"free": {"scheduler": "fast"}}, "size: scheduler: 'fast' is not a choice"),
            (SDXL, {"free": {}, "ratios": {"1:1": None}}, "size.ratios: go with a parameter"),
        ],
    )
    def test_of_sizes_are_told_where(self, model_id, size, told):
        self.refused(changed(model_id, "size", to=size), told)

    @pytest.mark.parametrize(("key", "value"), [("min", ...), ("min", 0), ("max", ...)])
    def test_of_sides_without_bounds_are_refused(self, key, value):
        entry = changed(SDXL, "parameters", "width", key, to=value)
        self.refused(entry, "parameters.width: needs a min of at least 1 and a max")

    @pytest.mark.parametrize(
        ("entry", "told"),
        [
            (changed(OWN, "workflow", to="no_such"), "workflow: there is no workflow 'no_such'"),
            (changed(OWN, "workflow", to="../models"), "workflow: '../models'"),
            (changed(OWN, "workflow", to={}), "workflow: {}"),
            (changed(OWN, "workflow", to={"1": {"inputs": {}}}), "'class_type' is a required"),
            (changed(OWN, "workflow", to=...), "image_workflow: goes with a workflow"),
            (changed(OWN, "image_workflow", to=...), "goes with a parameter of the role image"),
            (changed(OWN, "parameters", "image", "type", to="files"), "use the type file"),
            (changed(OWN, "parameters", "seed", "bindings", to=...), "lack a place in workflow"),
            (
                changed(OWN, "parameters", "seed", "bindings", to=[["3", "sead"]]),
                "seed.bindings: no workflow has an input 'sead' at a node '3'",
            ),
            (
                changed(OWN, "parameters", "seed", "bindings", to=[["99", "seed"]]),
                "no workflow has an input 'seed' at a node '99'",
            ),
            (
                changed(OWN, "parameters", "num_outputs", "bindings", to=[["5", "batch_size"]]),
                "num_outputs.bindings: lack a place in image_workflow",
            ),
            (
                changed(OWN, "parameters", "strength", "bindings", to=...),
                "strength.bindings: lack a place in image_workflow",
            ),
            (
                drawn(workflow={**NODES, "3": {"class_type": "X", "inputs": {"a": ["9", 0]}}}),
                "workflow.3.a: links to a node that is not there",
            ),
        ],
    )
    def test_of_workflows_are_told_where(self, entry, told):
        self.refused(entry, told)

    @pytest.mark.parametrize(
        "number", [10**400, -(10**16), math.inf, math.nan], ids=["huge", "below", "inf", "nan"]
    )
    @pytest.mark.parametrize(
        ("keys", "where"),
        [
            (("guidance_scale", "max"), "parameters.guidance_scale.max"),
            (("guidance_scale", "default"), "parameters.guidance_scale.default"),
            (("own",), "parameters.own.default"),
        ],
    )
    def test_numbers_beyond_what_is_exact_everywhere_are_refused(self, keys, where, number):
        to = {"type": "array", "default": [number]} if keys == ("own",) else number
        told = f"{where}: a number must be between -1e+15 and 1e+15"
        self.refused(changed(SDXL, "parameters", *keys, to=to), told)

    def test_numbers_in_workflows_are_the_servers_own(self):
        node = {"class_type": "KSampler", "inputs": {"seed": 2**64 - 1}}
        assert parse_entry("some/model", drawn(workflow={**NODES, "9": node})).workflow["9"] == node

    @pytest.mark.parametrize("model_id", ["model", "a/b/c", "/b", "a/", ""])
    def test_ids_are_told(self, model_id):
        with pytest.raises(ValueError, match='id: must be "owner/name"'):
            parse_entry(model_id, drawn())

    def refused(self, entry, told):
        with pytest.raises(ValueError, match=r"^some/model: ") as raised:
            parse_entry("some/model", entry)
        assert told in str(raised.value)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 500


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["enum", "file", "files", "image", "width", "count", "1:1", "1", "sdxl"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(model_id=st.sampled_from(list(load_models())), data=st.data())
def test_a_damaged_entry_is_refused_or_makes_a_model_that_works(model_id, data):
    entry = entry_of(model_id)
    for _ in range(data.draw(st.integers(1, 3))):
        place = entry
        while True:
            key = data.draw(st.sampled_from(sorted(place)))
            if isinstance(place[key], dict) and place[key] and data.draw(st.integers(0, 4)):
                place = place[key]
            else:
                break
        if data.draw(st.booleans()):
            place[key] = data.draw(anything)
        else:
            del place[key]
        if not place:
            break
    try:
        subject = parse_entry("some/model", entry)
    except ValueError:
        return
    subject.describe()
    for request in ({}, {"aspect_ratio": "16:9"}, {"width": 512, "height": 512, "seed": 1}):
        result = subject.resolve({"prompt": "a cat", **request})
        assert isinstance(result, Resolved) or result
        if isinstance(result, Resolved) and (workflow := subject.workflow_for(has_image=False)):
            workflow.filled(result.input)


class TestWorkflows:
    def test_in_files_are_all_used(self):
        folder = Path(generation.catalogue.__file__).with_name("workflows")
        entries = load_entries().values()
        named = {e.get(key) for e in entries for key in ("workflow", "image_workflow")} - {None}
        assert {path.stem for path in folder.iterdir()} == named

    @pytest.mark.parametrize("model_id", [m for m, e in load_entries().items() if "workflow" in e])
    def test_save_one_result(self, model_id):
        for has_image in (False, True):
            nodes = get_model(model_id).workflow_for(has_image=has_image).nodes
            assert [n["class_type"] for n in nodes.values()].count("SaveImage") == 1

    def test_are_none_for_a_model_without(self):
        assert get_model(DEV).workflow_for(has_image=False) is None
        assert get_model(DEV).workflow_for(has_image=True) is None

    def test_may_stand_in_the_entry(self):
        subject = parse_entry("some/model", drawn())
        workflow = subject.workflow_for(has_image=False)
        assert workflow.bindings == {"prompt": (("1", "text"),), "seed": (("1", "seed"),)}
        filled = workflow.filled({"prompt": "a cat", "seed": 9})
        assert filled["1"]["inputs"] == {"text": "a cat", "seed": 9}
        assert workflow.nodes == NODES

    def test_with_a_reference_image_are_others(self):
        subject = get_model(OWN)
        plain, derived = (subject.workflow_for(has_image=h) for h in (False, True))
        assert plain.bindings["num_outputs"] == (("5", "batch_size"),)
        assert derived.bindings["num_outputs"] == (("13", "amount"),)
        assert "image" not in plain.bindings
        assert derived.bindings["image"] == (("10", "image"),)

    def test_for_text_only_serve_models_without_another(self):
        subject = get_model("comfyui/flux-schnell")
        assert subject.workflow_for(has_image=True) == subject.workflow_for(has_image=False)

    def test_get_every_default_that_the_operator_sets(self):
        entry = changed(OWN, "parameters", "checkpoint", "default", to="mine.safetensors")
        entry["parameters"]["steps"]["default"] = 12
        sent = parse_entry(OWN, entry).resolve({"prompt": "a cat"}).input
        assert (sent["checkpoint"], sent["steps"]) == ("mine.safetensors", 12)

    def test_leave_the_strength_out_without_a_reference_image(self):
        assert "strength" not in get_model(OWN).resolve({"prompt": "a cat"}).input
        derived = get_model(OWN).resolve({"prompt": "a cat", "references": ["one"]})
        assert derived.input["strength"] == 0.8

    def test_that_are_not_one_fix_only_what_the_operator_fixes(self):
        entry = changed(
            SDXL, "parameters", "apply_watermark", to={"type": "boolean", "fixed": True}
        )
        entry["parameters"]["apply_watermark"]["default"] = False
        subject = parse_entry(SDXL, entry)
        assert subject.resolve({"prompt": "a cat"}).input["apply_watermark"] is False
        (problem,) = subject.resolve({"prompt": "a", "parameters": {"apply_watermark": True}})
        assert problem.code == "unsupported"


def published(model_id: str) -> dict:
    """Return what the simulated provider publishes, in the terms of the catalogue."""
    live = {}
    for name, parameter in simulated.load_models().named(model_id).parameters.items():
        kind = {"uri": "file", "uri[]": "files"}.get(parameter.type, parameter.type)
        live[name] = {"type": "enum" if parameter.enum else kind, "required": parameter.required}
        if parameter.default is not None:
            live[name]["default"] = parameter.default
        if parameter.min is not None:
            live[name] |= {"min": parameter.min, "max": parameter.max}
        if parameter.enum:
            live[name]["choices"] = list(parameter.enum)
    return live


class TestDifferences:
    @pytest.mark.parametrize("model_id", [m for m, v in load_models().items() if not v.workflow])
    def test_there_are_none_to_the_simulated_provider(self, model_id):
        assert differences(get_model(model_id), published(model_id)) == []

    @pytest.mark.parametrize(
        ("name", "attribute", "live", "line"),
        [
            ("guidance", "max", 12, "guidance.max: 10 in the catalogue, 12 at the provider"),
            ("guidance", "min", 1.5, "guidance.min: 0 in the catalogue, 1.5 at the provider"),
            ("go_fast", "default", False, "go_fast.default: true in the catalogue, false at"),
            ("image", "required", True, "image.required: false in the catalogue, true at"),
            ("guidance", "type", "integer", 'guidance.type: "number" in the catalogue, "integer"'),
            ("megapixels", "choices", ["1"], 'megapixels.choices: ["1", "0.25"] in the catalogue'),
        ],
    )
    def test_name_parameter_and_both_values(self, name, attribute, live, line):
        schema = published(DEV)
        schema[name] = {**schema[name], attribute: live}
        (found,) = differences(get_model(DEV), schema)
        assert (found.parameter, found.attribute, found.live) == (name, attribute, live)
        assert line in str(found)

    def test_tell_what_is_on_one_side_only(self):
        schema = published(DEV)
        del schema["go_fast"]
        schema["mood"] = {"type": "string"}
        found = differences(get_model(DEV), schema)
        assert found == [
            Difference("go_fast", "", "boolean", None),
            Difference("mood", "", None, {"type": "string"}),
        ]
        assert [str(one) for one in found] == [
            "go_fast: the provider does not have it",
            "mood: not in the catalogue",
        ]

    def test_the_order_of_choices_and_the_form_of_numbers_are_none(self):
        schema = published(DEV)
        schema["megapixels"]["choices"].reverse()
        schema["guidance"] |= {"min": 0.0, "max": 10.0}
        assert differences(get_model(DEV), schema) == []

    def test_what_the_provider_does_not_state_is_none(self):
        assert differences(get_model(DEV), {name: {} for name in published(DEV)}) == []


def test_an_override_by_the_operator_keeps_the_rest():
    subject = get_model(SDXL)
    cheaper = replace(subject, price_usd_per_image=Decimal("0.001"), est_seconds=2)
    assert isinstance(cheaper, Model)
    assert cheaper.resolve({"prompt": "a cat"}) == subject.resolve({"prompt": "a cat"})
    assert cheaper.describe()["price_usd_per_image"] == "0.001"


class TestDifferencesOfAWorkflow:
    """A server is asked about what is offered of it, and no more."""

    MODEL = load_models()["comfyui/sdxl"]

    def live(self, **changes):
        sampler = self.MODEL.parameters["sampler"]
        schema = {
            "width": {"type": "integer", "min": 16, "max": 16384},
            "steps": {"type": "integer", "min": 1, "max": 10_000},
            "sampler": {"type": "enum", "choices": [*sampler.choices, "another"]},
            "checkpoint": {
                "type": "enum",
                "choices": [self.MODEL.parameters["checkpoint"].default],
            },
            "unheard_of": {"type": "integer"},
        }
        return {**schema, **changes}

    def told(self, **changes):
        found = differences(self.MODEL, self.live(**changes))
        return [(one.parameter, one.attribute) for one in found]

    def test_wider_bounds_and_more_choices_are_none(self):
        assert self.told() == []

    def test_a_bound_that_the_server_does_not_take_is_told(self):
        assert self.told(width={"min": 16, "max": 512}) == [("width", "max")]
        assert self.told(steps={"min": 2, "max": 10_000}) == [("steps", "min")]

    def test_a_choice_that_the_server_does_not_have_is_told(self):
        assert ("sampler", "choices") in self.told(sampler={"choices": ["euler"]})

    def test_a_file_that_is_not_installed_is_told(self):
        assert self.told(checkpoint={"choices": ["other.safetensors"]}) == [
            ("checkpoint", "default")
        ]
