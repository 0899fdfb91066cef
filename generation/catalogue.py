"""The image models on offer: their data, and what may stand in it.

`models.json` beside this file holds the facts, `generation.model` the rules by which a request
becomes a model's input. `parse_entry` makes a `Model` of one entry and refuses what could not
work, wherever the entry comes from.

Layout of one entry (optional keys in brackets; types and bounds in `entry_schema.json`):

    provider, display_name, family, status, [status_note], output_formats
    [version]             id that the provider wants with each submission
    [deployment]          "owner/name" of one's own deployment, at Replicate
    [endpoint]            id of the endpoint, at RunPod
    [workflow]            name of a file in `workflows/`, or the nodes themselves, in ComfyUI's
                          API format; [image_workflow] is used when there is a reference image
    [fallbacks]           ids of models that can stand in, the best first
    price_usd_per_image   decimal string, what a usual picture costs; [price_note]
    [price_usd_by]        parameter -> its values -> decimal string, what a picture costs then, the
                          highest of what fits; "megapixels" stands for width and height, in
                          1024 x 1024, rounded up
    [price_usd_per_second]  decimal string, where run time is charged
    est_seconds           usual run time; [confidence] tells how much the figures are worth, by
                          `parameters`, `output`, `price`, `seconds`: high, medium or low
    [safety]              level (strict, standard, relaxed) -> {parameter: value}
    [image]               {[size], [note]}: what a reference image does; for `size` see `Model`
    size                  how the size of the picture is chosen, any of
        [ratios]          aspect ratio -> its pixel size, or null where it is not known
        [megapixels]      the area, nearly, of those whose pixel size is not known, in 1024 x 1024
        [scales]          parameter -> its values -> factor on both sides of those sizes
        [exact]           parameter -> its values -> pixel size
        [free]            present when `width` and `height` are accepted; holds what has to be
                          sent along with them, e.g. {"aspect_ratio": "custom"}
    parameters            name -> {type, [role], [required], [default], [min], [max],
                          [max_with_reference], [multiple_of], [choices], [max_items],
                          [only_when], [fixed], [bindings]}

The default size is the one that the parameters' own defaults make, else the first.

A parameter's `role` is the common field that sets it, or one of `count` (`num_outputs` sets it),
`series` (how many pictures the model may make of its own accord), `image` (the reference images:
type `file` for one, `files` for a list of up to `max_items`), `image_strength` (`strength` sets
it), `mask`, `size`; a parameter without a role is set by its own name. `only_when` names what
other parameters must be for this one to do anything. A `fixed` one is the operator's: its default
is always sent. `bindings` are the (node id, input name) places that it has in the workflows.
Source: Replicate model schemas, ComfyUI node definitions, read 2026-11-20
"""

import json
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from generation.model import (
    COMMON_FIELDS,
    COMMON_RATIOS,
    MATCH_REFERENCE,
    MEGAPIXELS,
    SAFETY_LEVELS,
    Model,
    Resolved,
)
from generation.parameter import (
    MEGAPIXEL,
    PROMPT_MAX_LENGTH,
    Parameter,
    ParameterProblem,
    SizeOption,
)

__all__ = [
    "COMMON_FIELDS",
    "COMMON_RATIOS",
    "MATCH_REFERENCE",
    "PROMPT_MAX_LENGTH",
    "SAFETY_LEVELS",
    "Difference",
    "Model",
    "Parameter",
    "ParameterProblem",
    "Resolved",
    "SizeOption",
    "differences",
    "get_model",
    "load_entries",
    "load_models",
    "parse_entry",
    "parse_models",
]

Nodes = Mapping[str, Mapping[str, Any]]

_HERE = Path(__file__).parent
_NUMBERS = ("integer", "number")
_FILES = ("file", "files")
_TYPES_OF_ROLE = {
    "prompt": ("string",),
    "negative_prompt": ("string",),
    "aspect_ratio": ("enum",),
    "output_format": ("enum",),
    "guidance_scale": _NUMBERS,
    "image_strength": _NUMBERS,
    "image": _FILES,
    "mask": ("file",),
    "size": ("enum",),
}
_FOR_IMAGES = ("image", "image_strength")
_MESSAGE_MAX_LENGTH = 300
_NUMBER_MAX = 1e15  # exact in JSON as anybody reads it, and in a float
_COMPARED = ("type", "required", "default", "min", "max", "choices")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a model's parameter is not what its provider publishes.

    `attribute` is a key of a parameter's data, or "" when the parameter stands on one side only;
    the other side is `None` then.
    """

    parameter: str
    attribute: str
    stored: Any
    live: Any

    def __str__(self) -> str:
        if not self.attribute:
            where = "the provider does not have it" if self.live is None else "not in the catalogue"
            return f"{self.parameter}: {where}"
        return (
            f"{self.parameter}.{self.attribute}: {json.dumps(self.stored)} in the catalogue, "
            f"{json.dumps(self.live)} at the provider"
        )


def load_entries() -> dict[str, dict[str, Any]]:
    """Return the entries of `models.json` by id, in the file's order, as they stand there."""
    document = json.loads((_HERE / "models.json").read_text(encoding="utf-8"))
    entries: dict[str, dict[str, Any]] = document["models"]
    return entries


@cache
def load_models() -> Mapping[str, Model]:
    """Return every model of `models.json` by id, in the file's order. Read once per process."""
    return MappingProxyType(parse_models({"models": load_entries()}))


def get_model(model_id: str) -> Model | None:
    """Return one model of `models.json`, `None` if there is none of that id."""
    return load_models().get(model_id)


def parse_models(document: Mapping[str, Any]) -> dict[str, Model]:
    """Build models from a document in the layout of `models.json`. Raises ValueError."""
    return {
        model_id: parse_entry(model_id, entry) for model_id, entry in document["models"].items()
    }


def parse_entry(model_id: str, entry: Mapping[str, Any]) -> Model:
    """Build one model. Raises ValueError with one line that says where the entry is wrong."""
    try:
        return _parse(model_id, entry)
    except _Malformed as error:
        raise ValueError(f"{model_id}: {error}") from None


def differences(model: Model, live: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Compare a model's parameters with `live`, as `Provider.live_schema` gives it.

    What `live` does not state is not compared. In the order of the catalogue, then of `live`. Of a
    workflow only what the catalogue offers and the server does not take is told: bounds are tighter
    on purpose there, and a place may be in another of its workflows.
    """
    if model.workflow is not None:
        return [
            difference
            for name, parameter in model.parameters.items()
            if name in live
            for difference in _not_taken(parameter, live[name])
        ]
    found = []
    for name, parameter in model.parameters.items():
        if name not in live:
            found.append(Difference(name, "", parameter.type, None))
            continue
        for attribute in _COMPARED:
            # No file is given by default, and a default seed stands for a random one.
            if attribute == "default" and (parameter.type in _FILES or parameter.role == "seed"):
                continue
            stored, published = getattr(parameter, attribute), live[name].get(attribute)
            if attribute == "choices":
                stored = list(stored)
                same = published is None or set(stored) == set(published)
            else:
                same = published is None or stored == published
            if not same:
                found.append(Difference(name, attribute, stored, published))
    new = [name for name in live if name not in model.parameters]
    return found + [Difference(name, "", None, dict(live[name])) for name in new]


def _not_taken(parameter: Parameter, live: Mapping[str, Any]) -> Iterator[Difference]:
    name, choices = parameter.name, live.get("choices")
    if choices is not None:
        if parameter.choices and not {*parameter.choices} <= {*choices}:
            yield Difference(name, "choices", list(parameter.choices), choices)
        # A file that is not installed, most often.
        if isinstance(parameter.default, str) and parameter.default not in choices:
            yield Difference(name, "default", parameter.default, choices)
    for bound, is_beyond in (("min", operator.lt), ("max", operator.gt)):
        own, theirs = getattr(parameter, bound), live.get(bound)
        if own is not None and theirs is not None and is_beyond(own, theirs):
            yield Difference(name, bound, own, theirs)


class _Malformed(Exception):
    """What is wrong with an entry, and where."""


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE_MAX_LENGTH else f"{text[:_MESSAGE_MAX_LENGTH]}..."


def _require(condition: object, where: str, text: str) -> None:
    if not condition:
        raise _Malformed(f"{where}: {text}")


@cache
def _validator() -> Draft202012Validator:
    schema = json.loads((_HERE / "entry_schema.json").read_text(encoding="utf-8"))
    return Draft202012Validator(schema)


def _check_numbers(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, where)
    elif isinstance(value, int | float):
        within = -_NUMBER_MAX <= value <= _NUMBER_MAX
        _require(
            within, where, f"a number must be between {-_NUMBER_MAX:.0e} and {_NUMBER_MAX:.0e}"
        )


def _parse(model_id: str, entry: Mapping[str, Any]) -> Model:
    if error := best_match(_validator().iter_errors(entry)):
        where = ".".join(str(part) for part in error.absolute_path) or "the entry"
        raise _Malformed(f"{where}: {_cut(error.message)}")
    # The values in workflows are the server's own.
    own = {key: value for key, value in entry.items() if key not in ("workflow", "image_workflow")}
    _check_numbers(own, "")
    owner, _, name = model_id.partition("/")
    _require(owner and name and "/" not in name, "id", 'must be "owner/name"')
    parameters = {
        name: _parse_parameter(name, specification)
        for name, specification in entry["parameters"].items()
    }
    _check_roles(parameters)
    _check_conditions(parameters)
    size, image = entry["size"], entry.get("image", {})
    _check_size(size, parameters)
    _check_safety(entry.get("safety", {}), parameters)
    prices_by = entry.get("price_usd_by", {})
    _check_prices(prices_by, parameters)
    formats = tuple(entry["output_formats"])
    format_parameter = _role(parameters, "output_format")
    if format_parameter is None:
        _require(len(formats) == 1, "output_formats", "there is no parameter to choose one by")
    else:
        _require(
            set(format_parameter.choices) == set(formats) and format_parameter.default in formats,
            f"parameters.{format_parameter.name}",
            "its choices must be the output_formats, and its default one of them",
        )
    _require(not image or _role(parameters, "image"), "image", "there is no parameter of that role")
    _require(model_id not in entry.get("fallbacks", ()), "fallbacks", "names the model itself")
    workflow, image_workflow = (_nodes(entry, key) for key in ("workflow", "image_workflow"))
    without_place = ("width", "height") if image.get("size") == "kept" else ()
    _check_bindings(parameters, workflow, image_workflow, without_place)
    per_second = entry.get("price_usd_per_second")
    return Model(
        id=model_id,
        provider=entry["provider"],
        display_name=entry["display_name"],
        family=entry["family"],
        version=entry.get("version"),
        status=entry["status"],
        status_note=entry.get("status_note", ""),
        price_usd_per_image=Decimal(entry["price_usd_per_image"]),
        price_note=entry.get("price_note", ""),
        est_seconds=entry["est_seconds"],
        output_formats=formats,
        parameters=MappingProxyType(parameters),
        size_options=tuple(_parse_size_options(size, parameters)),
        free_size_input=MappingProxyType(dict(size["free"])) if "free" in size else None,
        price_usd_by=MappingProxyType(
            {
                name: MappingProxyType({value: Decimal(price) for value, price in prices.items()})
                for name, prices in prices_by.items()
            }
        ),
        price_usd_per_second=None if per_second is None else Decimal(per_second),
        deployment=entry.get("deployment"),
        endpoint=entry.get("endpoint"),
        workflow=workflow,
        image_workflow=image_workflow,
        fallbacks=tuple(entry.get("fallbacks", ())),
        safety=MappingProxyType(entry.get("safety", {})),
        reference_size=image.get("size", ""),
        image_note=image.get("note", ""),
        confidence=MappingProxyType(entry.get("confidence", {})),
    )


def _parse_parameter(name: str, specification: Mapping[str, Any]) -> Parameter:
    where = f"parameters.{name}"
    bindings = tuple((node, key) for node, key in specification.get("bindings", ()))
    choices = tuple(specification.get("choices", ()))
    parameter = Parameter(name=name, **{**specification, "choices": choices, "bindings": bindings})
    bounds = (parameter.min, parameter.max, parameter.max_with_reference, parameter.multiple_of)
    if parameter.type not in _NUMBERS:
        _require(bounds == (None,) * 4, where, "bounds are for numbers")
    if parameter.min is not None and parameter.max is not None:
        _require(parameter.min <= parameter.max, where, "min is above max")
    _require((parameter.type == "enum") is bool(choices), where, "choices go with the type enum")
    _require(
        parameter.role is None
        or parameter.type in _TYPES_OF_ROLE.get(parameter.role, ("integer",)),
        where,
        f"the role {parameter.role} cannot have the type {parameter.type}",
    )
    if parameter.fixed:
        _require(parameter.role is None, where, "a fixed parameter can have no role")
        _require(parameter.default is not None, where, "a fixed parameter needs a default")
    if parameter.type in _FILES:
        _require(parameter.default is None, where, "a file can have no default")
    elif parameter.default is not None:
        _check_value(parameter, parameter.default, f"{where}.default")
    return parameter


def _check_value(parameter: Parameter, value: object, where: str) -> None:
    _require(parameter.type not in _FILES, where, "a file cannot be set here")
    problem = parameter.check(value, field=parameter.name, model_id="the model")
    _require(problem is None, where, _cut(f"{value!r}: {problem.message if problem else ''}"))


def _role(parameters: Mapping[str, Parameter], role: str) -> Parameter | None:
    return next((p for p in parameters.values() if p.role == role), None)


def _check_roles(parameters: Mapping[str, Parameter]) -> None:
    roles = [parameter.role for parameter in parameters.values() if parameter.role]
    for role in roles:
        _require(roles.count(role) == 1, "parameters", f"several have the role {role}")
    prompt = _role(parameters, "prompt")
    _require(prompt and prompt.required, "parameters", "none has the role prompt and is required")
    count = _role(parameters, "count")
    _require(
        count is None or (count.min == 1 and count.max),
        "parameters",
        "the one with the role count needs the min 1 and a max",
    )
    _require(
        "image_strength" not in roles or "image" in roles,
        "parameters",
        "the role image_strength goes with the role image",
    )


def _check_conditions(parameters: Mapping[str, Parameter]) -> None:
    for parameter in parameters.values():
        for name, value in parameter.only_when.items():
            where = f"parameters.{parameter.name}.only_when.{name}"
            _require(name in parameters, where, "there is no such parameter")
            _check_value(parameters[name], value, where)


def _check_size(size: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> None:
    ratio = _role(parameters, "aspect_ratio")
    _require(
        bool(ratio) is bool(size.get("ratios")),
        "size.ratios",
        "go with a parameter of the role aspect_ratio",
    )
    _require(ratio or "scales" not in size, "size.scales", "go with ratios")
    sides = [_role(parameters, side) for side in ("width", "height")]
    _require(
        [side is not None for side in sides] == ["free" in size] * 2,
        "size.free",
        "goes with parameters for width and height",
    )
    for side in sides:
        if side is not None:
            bounded = side.min is not None and side.min >= 1 and side.max is not None
            _require(bounded, f"parameters.{side.name}", "needs a min of at least 1 and a max")
    named = {
        **size.get("scales", {}),
        **size.get("exact", {}),
        **{name: [value] for name, value in size.get("free", {}).items()},
        **({ratio.name: [*size["ratios"], *_values(size, ratio.name)]} if ratio else {}),
    }
    for name, values in named.items():
        _require(name in parameters, f"size: {name}", "there is no such parameter")
        for value in values:
            _require(
                value in parameters[name].choices, f"size: {name}", f"{value!r} is not a choice"
            )


def _values(size: Mapping[str, Any], name: str) -> list[str]:
    return [size["free"][name]] if name in size.get("free", {}) else []


def _parse_size_options(
    size: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> list[SizeOption]:
    options = []
    for name, sizes in size.get("exact", {}).items():
        options += [
            SizeOption({name: value}, "", (width_px, height_px))
            for value, (width_px, height_px) in sizes.items()
        ]
    ratio = _role(parameters, "aspect_ratio")
    if ratio is None:
        return options
    # Without a scale parameter there is one scale, which nothing needs to be sent for.
    scales: list[tuple[dict[str, str], float]] = [
        ({name: value}, factor)
        for name, factors in size.get("scales", {}).items()
        for value, factor in factors.items()
    ] or [({}, 1.0)]
    megapixels = size.get("megapixels")
    for scale_input, factor in scales:
        area_px = megapixels * MEGAPIXEL * factor**2 if megapixels else None
        for name, pixels in size["ratios"].items():
            size_px = (_scaled(pixels[0], factor), _scaled(pixels[1], factor)) if pixels else None
            chosen = {ratio.name: name, **scale_input}
            options.append(SizeOption(chosen, name, size_px, None if size_px else area_px))
    return options


def _scaled(side_px: int, factor: float) -> int:
    return max(1, round(side_px * factor))


def _check_safety(
    safety: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Parameter]
) -> None:
    for level, values in safety.items():
        for name, value in values.items():
            where = f"safety.{level}.{name}"
            _require(
                name in parameters and parameters[name].role is None,
                where,
                "there is no such parameter without a role",
            )
            _check_value(parameters[name], value, where)


def _check_prices(
    prices_by: Mapping[str, Mapping[str, str]], parameters: Mapping[str, Parameter]
) -> None:
    for name, prices in prices_by.items():
        where = f"price_usd_by.{name}"
        if name == MEGAPIXELS and name not in parameters:
            _require(_role(parameters, "width"), where, "goes with parameters for width and height")
            for value in prices:
                _require(re.fullmatch(r"[1-9]\d{0,3}", value), where, f"{value!r} is no number")
            continue
        _require(name in parameters, where, "there is no such parameter")
        for value in prices:
            _require(value in parameters[name].choices, where, f"{value!r} is not a choice")


def _nodes(entry: Mapping[str, Any], key: str) -> Nodes | None:
    """Return the nodes of a workflow, read from its file where the entry names one."""
    found = entry.get(key)
    if isinstance(found, str):
        path = _HERE / "workflows" / f"{found}.json"
        _require(path.is_file(), key, f"there is no workflow {found!r}")
        found = json.loads(path.read_text(encoding="utf-8"))
    if found is None:
        return None
    nodes: Nodes = found
    for node_id, node in nodes.items():
        for name, value in node["inputs"].items():
            is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
            _require(
                not is_link or value[0] in nodes,
                f"{key}.{node_id}.{name}",
                "links to a node that is not there",
            )
    return MappingProxyType(nodes)


def _check_bindings(
    parameters: Mapping[str, Parameter],
    workflow: Nodes | None,
    image_workflow: Nodes | None,
    not_with_image: tuple[str, ...],
) -> None:
    """Every parameter has its places, in each workflow where it may be given."""
    image = _role(parameters, "image")
    if workflow is None:
        _require(image_workflow is None, "image_workflow", "goes with a workflow")
    else:
        _require(
            bool(image) is bool(image_workflow),
            "image_workflow",
            "goes with a parameter of the role image",
        )
    _require(
        workflow is None or not (image and image.type == "files"),
        "parameters",
        "a workflow takes one reference image: use the type file",
    )
    for parameter in parameters.values():
        where = f"parameters.{parameter.name}.bindings"
        _require(workflow is not None or not parameter.bindings, where, "go with a workflow")
        for node_id, name in parameter.bindings:
            holders = [w[node_id] for w in (workflow, image_workflow) if w and node_id in w]
            _require(
                holders and all(name in node["inputs"] for node in holders),
                where,
                f"no workflow has an input {name!r} at a node {node_id!r}",
            )
        nodes = {node_id for node_id, _ in parameter.bindings}
        for key, used, unused_roles in (
            ("workflow", workflow, _FOR_IMAGES),
            ("image_workflow", image_workflow, not_with_image),
        ):
            needed = used is not None and parameter.role not in unused_roles
            _require(not needed or nodes & (used or {}).keys(), where, f"lack a place in {key}")
