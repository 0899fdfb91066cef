"""One image model, and one vocabulary for asking any of them for a picture.

A request in the common vocabulary (`COMMON_FIELDS`) becomes a model's own input by
`Model.resolve`; nothing is sent that the model does not list, and nothing that was asked for is
dropped silently. Models come from `generation.catalogue`, whose text explains their data.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from types import MappingProxyType
from typing import Any

from generation.parameter import (
    MEGAPIXEL,
    TYPE_NAMES,
    Parameter,
    ParameterProblem,
    SizeOption,
    as_distance,
    distance,
    is_integer,
    listing,
    ratio_value,
)
from generation.provider import Workflow

SIZE_RATIO_TOLERANCE = 0.05  # how far a ratio may be from the one asked for, relative
SIZE_AREA_TOLERANCE = 1 / 3  # how far an area may be from the one asked for, relative

COMMON_FIELDS = (
    "prompt",
    "negative_prompt",
    "seed",
    "width",
    "height",
    "aspect_ratio",
    "steps",
    "guidance_scale",
    "output_format",
    "output_quality",
    "num_outputs",
    "strength",
    "safety",
    "references",
)
SAFETY_LEVELS = ("strict", "standard", "relaxed")
# Ratios offered for a model that takes any width and height.
COMMON_RATIOS = ("1:1", "16:9", "9:16", "21:9", "9:21", "3:2", "2:3", "4:3", "3:4", "5:4", "4:5")
# What several models call the shape, or the size, of the reference image.
MATCH_REFERENCE = "match_input_image"

# Stands in `price_usd_by` for what width and height come to, in 1024 x 1024, rounded up.
MEGAPIXELS = "megapixels"

_SIZE_FIELDS = ("width", "height", "aspect_ratio")
_PLAIN_FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "output_quality")
# Roles that a field of another name sets.
_FIELD_OF_ROLE = {"count": "num_outputs", "image_strength": "strength", "image": "references"}
# Roles of parameters that are set by their own names all the same.
_OWN_ROLES = (None, "series")
_FILES = ("file", "files")
_FREE_DEFAULT_PX = 1024  # both sides, where the model names no default
_SIDE_MAX_PX = 16_384  # the bound of any request; each model has tighter ones
_RATIO = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request in one model's own words.

    `input` holds no files: `Model.image_parameter` takes those. `width_px` and `height_px` are
    the size to expect, both `None` where it is not known. `output_format` is `webp`, `png`, `jpg`
    or `svg`; `seed` is `None` when the provider chooses it. `output_count` is how many pictures
    were asked for: fewer are less than that.
    """

    input: dict[str, Any]
    width_px: int | None
    height_px: int | None
    output_format: str
    seed: int | None
    output_count: int = 1


@dataclass(frozen=True)
class Model:
    """One image model. Immutable and safe to share.

    `version`, `deployment` and `endpoint` say which program of the provider it is; where the
    program is a ComfyUI workflow, `workflow` holds its nodes, and `image_workflow` those for a
    request with a reference image. `price_usd_per_image` is the price of a usual picture, and
    what is charged unless `price_usd_by` (parameter -> its value -> price) knows better or
    `price_usd_per_second` says that run time is. `safety` maps a level to
    the parameters that set it. `reference_size` is what a reference image does to the size:
    `kept` (the picture has its shape, no size can be asked for), `matched` (it has its shape
    unless a size is asked for), or "" (nothing).
    """

    id: str
    provider: str
    display_name: str
    family: str
    version: str | None
    status: str  # "active", "retired", "unavailable"
    status_note: str
    price_usd_per_image: Decimal
    price_note: str
    est_seconds: float
    output_formats: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    size_options: tuple[SizeOption, ...] = ()
    free_size_input: Mapping[str, str] | None = None  # `None` when width and height are not taken
    price_usd_by: Mapping[str, Mapping[str, Decimal]] = field(default_factory=dict)
    price_usd_per_second: Decimal | None = None
    deployment: str | None = None
    endpoint: str | None = None
    workflow: Mapping[str, Mapping[str, Any]] | None = None
    image_workflow: Mapping[str, Mapping[str, Any]] | None = None
    fallbacks: tuple[str, ...] = ()
    safety: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference_size: str = ""
    image_note: str = ""
    confidence: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _by_role(self) -> Mapping[str, Parameter]:
        return MappingProxyType({p.role: p for p in self.parameters.values() if p.role})

    def by_role(self, role: str) -> Parameter | None:
        """Return the parameter that `role` (a common field, for most) sets, if there is one."""
        return self._by_role.get(role)

    @property
    def is_active(self) -> bool:
        return self.status == "active"

    def price_per_image(self, values: Mapping[str, Any]) -> Decimal:
        """Return what each picture of a resolved input costs, US dollars, where images are charged.

        Of what fits in `price_usd_by` the highest counts. Reference images are not counted.
        """
        width, height = (self.by_role(side) for side in ("width", "height"))
        known = dict(values)
        if width and height and MEGAPIXELS not in self.parameters:
            area_px = values.get(width.name, 0) * values.get(height.name, 0)
            known[MEGAPIXELS] = math.ceil(area_px / MEGAPIXEL)
        fitting = [prices.get(str(known.get(name))) for name, prices in self.price_usd_by.items()]
        return max((p for p in fitting if p is not None), default=self.price_usd_per_image)

    @property
    def supports_seed(self) -> bool:
        return self.by_role("seed") is not None

    @property
    def supports_negative_prompt(self) -> bool:
        return self.by_role("negative_prompt") is not None

    @property
    def supports_free_size(self) -> bool:
        """Whether any width and height within bounds can be had."""
        return self.free_size_input is not None

    @property
    def max_count(self) -> int:
        """How many pictures one submission can be asked for; they come from one generation."""
        count = self.by_role("count")
        return int(count.max) if count and count.max else 1

    @property
    def image_parameter(self) -> Parameter | None:
        """The parameter that takes the reference images, of type `file` or `files`."""
        return self.by_role("image")

    @property
    def max_references(self) -> int:
        """How many reference images one request may have, 0 for a model that takes none."""
        image = self.image_parameter
        if image is None:
            return 0
        return image.max_items if image.type == "files" else 1

    @property
    def file_lists(self) -> frozenset[str]:
        """The parameters that take a list of files, however many there are."""
        return frozenset(p.name for p in self.parameters.values() if p.type == "files")

    @property
    def own_parameters(self) -> Mapping[str, Parameter]:
        """What may stand in a request's `parameters`."""
        return {
            p.name: p
            for p in self.parameters.values()
            if p.role in _OWN_ROLES and p.type not in _FILES and not p.fixed
        }

    @property
    def aspect_ratios(self) -> Mapping[str, tuple[int, int] | None]:
        """The ratios on offer with the pixel size (width, height) each gives by default."""
        ratios: dict[str, tuple[int, int] | None] = {}
        # A stable sort: the size that the model makes by default comes before its others.
        for option in sorted(self.size_options, key=self._defaults_in, reverse=True):
            if option.ratio:
                ratios.setdefault(option.ratio, option.size_px)
        named = [option.ratio for option in self.size_options if option.ratio]
        if not named and self.supports_free_size:
            return {r: size for r in COMMON_RATIOS if (size := self.size_for_ratio(r))}
        return {ratio: ratios[ratio] for ratio in dict.fromkeys(named)}

    @cached_property
    def size_parameters(self) -> frozenset[str]:
        """The parameters by which a size can be chosen by name, beside the aspect ratio."""
        ratio = self.by_role("aspect_ratio")
        names = {name for option in self.size_options for name in option.input}
        return frozenset(names - {ratio.name if ratio else ""})

    def default_size_option(self, options: Sequence[SizeOption]) -> SizeOption | None:
        """Return the one that the model makes when it is told nothing, else the first."""
        return max(options, key=self._defaults_in, default=None)

    def _defaults_in(self, option: SizeOption) -> int:
        return sum(self.parameters[name].default == value for name, value in option.input.items())

    def default_free_size(self) -> tuple[int, int]:
        """Return the (width, height) in pixels that a model with free sizes gets by default."""
        width, height = (self._by_role[side].default for side in ("width", "height"))
        return width or _FREE_DEFAULT_PX, height or _FREE_DEFAULT_PX

    def size_for_ratio(self, ratio: str) -> tuple[int, int] | None:
        """Return (width, height) in pixels of about the default area in the shape `ratio`.

        For models with free sizes. `None` when the bounds do not allow that shape.
        """
        width, height = self._by_role["width"], self._by_role["height"]
        shape = ratio_value(ratio)
        area_px = math.prod(self.default_free_size())
        wide, high = math.sqrt(area_px * shape), math.sqrt(area_px / shape)
        shrink = min(1.0, (width.max or wide) / wide, (height.max or high) / high)
        size = (_rounded(wide * shrink, width), _rounded(high * shrink, height))
        for side_px, parameter in zip(size, (width, height), strict=True):
            if parameter.check(side_px, field="", model_id=""):
                return None
        too_far = distance(size[0] / size[1], shape) > as_distance(SIZE_RATIO_TOLERANCE)
        return None if too_far else size

    def safety_levels(self, *, has_image: bool) -> Mapping[str, Mapping[str, Any]]:
        """Return the levels that can be asked for, with the parameters that set each."""
        return {
            level: values
            for level, values in self.safety.items()
            if not has_image
            or not any(
                self.parameters[name].with_reference().check(value, field="", model_id="")
                for name, value in values.items()
            )
        }

    def workflow_for(self, *, has_image: bool) -> Workflow | None:
        """Return the workflow that a request with or without a reference image is put into."""
        nodes = (has_image and self.image_workflow) or self.workflow
        if nodes is None:
            return None
        bindings = {
            parameter.name: places
            for parameter in self.parameters.values()
            if (places := tuple(p for p in parameter.bindings if p[0] in nodes))
        }
        return Workflow(nodes, bindings)

    def resolve(self, request: Mapping[str, Any]) -> Resolved | list[ParameterProblem]:
        """Translate a request in the common vocabulary into this model's input.

        `request` holds `COMMON_FIELDS` and `parameters` (a mapping of the model's own parameters
        by their own names); a value of `None` means not given, and `model` is ignored. Of
        `references` only the number counts. All problems are returned at once, in the order of
        the fields. What is not given is left to the model, except the size and the number of
        pictures, which are always sent, and a workflow's parameters, which all are.
        """
        return _Resolution(self, request).run()

    def describe(self) -> dict[str, Any]:
        """Return what a form for this model needs, ready for JSON.

        `fields` has the common fields that it takes, `parameters` its own ones, both by name as
        `Parameter.describe` gives them. `sizes` lists the only sizes it makes, as
        `{width_px, height_px, aspect_ratio}`; it is empty when `fields` has width and height.
        `price_usd_by` is that of the model with decimal strings.
        `references` is `None` when it takes none, else `{max, required, strength, size,
        aspect_ratios, parameters, safety, note}`: `strength` as a field, `size` as
        `reference_size`, `aspect_ratios` and `parameters` (by name) the choices that there are
        beside those above when a reference image is given, `safety` the levels left then.
        """
        ratios = self.aspect_ratios
        sizes = () if self.supports_free_size else self.size_options
        return {
            "id": self.id,
            "provider": self.provider,
            "display_name": self.display_name,
            "family": self.family,
            "status": self.status,
            "status_note": self.status_note,
            "price_usd_per_image": str(self.price_usd_per_image),
            "price_usd_per_second": (
                None if self.price_usd_per_second is None else str(self.price_usd_per_second)
            ),
            "price_usd_by": {
                name: {value: str(price) for value, price in prices.items()}
                for name, prices in self.price_usd_by.items()
            },
            "price_note": self.price_note,
            "est_seconds": self.est_seconds,
            "confidence": dict(self.confidence),
            "fallbacks": list(self.fallbacks),
            "supports_seed": self.supports_seed,
            "supports_negative_prompt": self.supports_negative_prompt,
            "supports_free_size": self.supports_free_size,
            "output_formats": list(self.output_formats),
            "max_outputs": self.max_count,
            "fields": self._describe_fields(ratios),
            "parameters": {name: self._describe_own(p) for name, p in self.own_parameters.items()},
            "references": self._describe_references(),
            "aspect_ratios": [
                {
                    "aspect_ratio": ratio,
                    "width_px": size[0] if size else None,
                    "height_px": size[1] if size else None,
                }
                for ratio, size in ratios.items()
            ],
            "sizes": [
                {
                    "width_px": option.size_px[0],
                    "height_px": option.size_px[1],
                    "aspect_ratio": option.ratio or None,
                }
                for option in sizes
                if option.size_px
            ],
        }

    def _describe_fields(self, ratios: Mapping[str, object]) -> dict[str, Any]:
        fields = {
            name: parameter.describe()
            for name in COMMON_FIELDS
            if (parameter := self.by_role(name)) and name != "aspect_ratio"
        }
        if ratios:
            default = self.default_size_option(self.size_options)
            first = next(iter(ratios))
            fields["aspect_ratio"] = _enum((default.ratio or None) if default else first, ratios)
        default_format = self.by_role("output_format")
        fields["output_format"] = _enum(
            default_format.default if default_format else self.output_formats[0],
            self.output_formats,
        )
        fields["num_outputs"] = {
            "type": "integer",
            "required": False,
            "default": 1,
            "min": 1,
            "max": self.max_count,
        }
        if self.safety:
            fields["safety"] = _enum(None, self.safety)
        return fields

    def _describe_own(self, parameter: Parameter) -> dict[str, Any]:
        described = parameter.describe()
        if parameter.choices:
            # One choice is made by giving width and height, another needs a reference image.
            hidden = {MATCH_REFERENCE, (self.free_size_input or {}).get(parameter.name)}
            described["choices"] = [c for c in parameter.choices if c not in hidden]
        return described

    def _describe_references(self) -> dict[str, Any] | None:
        image, ratio = self.image_parameter, self.by_role("aspect_ratio")
        if image is None:
            return None
        strength = self.by_role("image_strength")
        matching = ratio is not None and MATCH_REFERENCE in ratio.choices
        return {
            "max": self.max_references,
            "required": image.required,
            "strength": strength.describe() if strength else None,
            "size": self.reference_size,
            "aspect_ratios": [MATCH_REFERENCE] if matching else [],
            "parameters": {
                name: [MATCH_REFERENCE]
                for name, parameter in self.own_parameters.items()
                if MATCH_REFERENCE in parameter.choices
            },
            "safety": list(self.safety_levels(has_image=True)),
            "note": self.image_note,
        }


class _Resolution:
    """One run of `Model.resolve`: collects the input and the problems."""

    def __init__(self, model: Model, request: Mapping[str, Any]) -> None:
        self.model = model
        self.given = {key: value for key, value in request.items() if value is not None}
        self.input: dict[str, Any] = {}
        self.problems: list[ParameterProblem] = []
        self.size_px: tuple[int, int] | None = None
        references = self.given.get("references")
        self.references: Sequence[Any] = references if isinstance(references, list) else ()

    def run(self) -> Resolved | list[ParameterProblem]:
        for name in self.given.keys() - {*COMMON_FIELDS, "parameters", "model"}:
            self._refuse(name, "unsupported", "is not a known field", list(COMMON_FIELDS))
        for name in _PLAIN_FIELDS:
            self._plain(name)
        self._own_parameters()
        self._check_references()
        self._strength()
        self._safety()
        self._size()
        output_format = self._output_format()
        count = self._count()
        self._unasked()
        self._conditions()
        if self.problems:
            order = (*COMMON_FIELDS, "parameters")
            return sorted(
                self.problems,
                key=lambda p: (order.index(p.field) if p.field in order else len(order), p.field),
            )
        width_px, height_px = self.size_px or (None, None)
        return Resolved(
            self.input,
            width_px,
            height_px,
            output_format,
            self.given.get("seed"),
            output_count=count,
        )

    def _plain(self, name: str) -> None:
        parameter = self.model.by_role(name)
        value = self.given.get(name)
        if name == "prompt" and (value is None or (isinstance(value, str) and not value.strip())):
            self._refuse(name, "required", "must not be empty")
        elif value is None or (value == "" and parameter is None):
            return
        elif parameter is None:
            self._refuse(name, "unsupported", "is not supported")
        else:
            self._take(parameter, value, name)

    def _own_parameters(self) -> None:
        own = self.given.get("parameters", {})
        if not isinstance(own, Mapping):
            self._refuse("parameters", "invalid_type", "must be an object")
            return
        for name, value in own.items():
            if value is not None:
                self._own_parameter(str(name), value)

    def _own_parameter(self, name: str, value: object) -> None:
        field = f"parameters.{name}"
        parameter = self.model.parameters.get(name)
        allowed = list(self.model.own_parameters)
        role = parameter.role if parameter else None
        by_field = _FIELD_OF_ROLE.get(role, role) if role else None
        if parameter is None:
            rule = f"is not supported; its own parameters are {listing(allowed) or 'none'}"
            self._refuse(field, "unsupported", rule, allowed)
        elif by_field in COMMON_FIELDS:
            self._refuse(field, "unsupported", f"is set by the field {by_field}", allowed)
        elif parameter.type in _FILES:
            self._refuse(field, "unsupported", "is not supported: it takes a file", allowed)
        elif parameter.fixed:
            self._refuse(field, "unsupported", "is set by the operator", allowed)
        elif value == (self.model.free_size_input or {}).get(name):
            self._refuse(field, "not_allowed", "is set by giving width and height")
        elif value == MATCH_REFERENCE in parameter.choices and not self.references:
            self._refuse_match(field, [c for c in parameter.choices if c != MATCH_REFERENCE])
        else:
            self._take(parameter, value, field)

    def _check_references(self) -> None:
        given, image = self.given.get("references"), self.model.image_parameter
        limit = self.model.max_references
        if given is not None and not isinstance(given, list):
            self._refuse("references", "invalid_type", "must be a list")
        elif self.references and image is None:
            rule = "are not supported: it makes pictures from text only"
            self._refuse("references", "unsupported", rule)
        elif len(self.references) > limit:
            rule = f"are too many with {len(self.references)}: it takes at most {limit}"
            self._refuse("references", "too_many", rule, {"max": limit})
        elif image is not None and image.required and not self.references:
            rule = f"are required: it needs one, and takes at most {limit}"
            self._refuse("references", "required", rule, {"min": 1, "max": limit})

    def _strength(self) -> None:
        value, parameter = self.given.get("strength"), self.model.by_role("image_strength")
        if value is None:
            return
        if parameter is None:
            self._refuse("strength", "unsupported", "is not supported")
            return
        self._take(parameter, value, "strength")
        if not self.references and isinstance(self.given.get("references", []), list):
            rule = "are required with strength, which says how far to go from them"
            self._refuse("references", "required", rule)

    def _safety(self) -> None:
        level = self.given.get("safety")
        if level is None:
            return
        levels = self.model.safety_levels(has_image=bool(self.references))
        if not self.model.safety:
            self._refuse("safety", "unsupported", "is not supported")
        elif not isinstance(level, str):
            self._refuse("safety", "invalid_type", "must be a string", list(levels))
        elif level not in levels:
            where = " with a reference image" if level in self.model.safety else ""
            rule = f"must be one of {listing(list(levels))}{where}"
            self._refuse("safety", "not_allowed", rule, list(levels))
        else:
            for name, value in levels[level].items():
                if self.input.setdefault(name, value) != value:
                    rule = f"is {self.input[name]!r}, which is not what safety {level!r} means"
                    self._refuse(f"parameters.{name}", "conflict", rule, [value])

    def _size(self) -> None:
        given = {name: self.given[name] for name in _SIZE_FIELDS if name in self.given}
        problems_before = len(self.problems)
        for name in given.keys() & {"width", "height"}:
            if not is_integer(given[name]):
                self._refuse(name, "invalid_type", f"must be {TYPE_NAMES['integer']}")
            elif not 1 <= given[name] <= _SIDE_MAX_PX:
                rule = f"must be between 1 and {_SIDE_MAX_PX}"
                self._refuse(name, "out_of_range", rule, {"min": 1, "max": _SIDE_MAX_PX})
        if ("width" in given) != ("height" in given):
            missing, other = ("height", "width") if "width" in given else ("width", "height")
            self._refuse(missing, "required", f"must be given together with {other}")
        ratio = given.get("aspect_ratio")
        if ratio is not None and not isinstance(ratio, str):
            self._refuse("aspect_ratio", "invalid_type", 'must be a string such as "16:9"')
        elif ratio is not None and ratio != MATCH_REFERENCE and not _RATIO.fullmatch(ratio):
            self._refuse_ratio(ratio)
        if len(self.problems) > problems_before:
            return
        if self.references and self.model.reference_size == "kept":
            for name in given:
                rule = "cannot be chosen here: the picture has the shape of its reference image"
                self._refuse(name, "conflict", rule)
        elif ratio == MATCH_REFERENCE:
            self._size_by_reference(given)
        elif "width" in given:
            self._size_by_pixels(given["width"], given["height"], ratio)
        elif ratio is not None:
            self._size_by_ratio(ratio)
        elif not (self.references and self.model.reference_size == "matched"):
            self._default_size()

    def _default_size(self) -> None:
        if option := self.model.default_size_option(self._matching(self.model.size_options)):
            self._choose(option)
        elif self.model.supports_free_size:
            self._size_by_pixels(*self.model.default_free_size(), None)

    def _size_by_reference(self, given: Mapping[str, object]) -> None:
        parameter = self.model.by_role("aspect_ratio")
        if parameter is None or MATCH_REFERENCE not in parameter.choices:
            self._refuse_ratio(MATCH_REFERENCE)
        elif not self.references:
            self._refuse_match("aspect_ratio", list(self.model.aspect_ratios))
        elif "width" in given:
            rule = f"is {MATCH_REFERENCE}, which does not go with width and height"
            self._refuse("aspect_ratio", "conflict", rule)
        else:
            self.input[parameter.name] = MATCH_REFERENCE

    def _size_by_ratio(self, ratio: str) -> None:
        options = [option for option in self.model.size_options if option.ratio == ratio]
        if matching := self.model.default_size_option(self._matching(options)):
            self._choose(matching)
        elif self.model.supports_free_size and (size := self.model.size_for_ratio(ratio)):
            self._size_by_pixels(*size, None)
        else:
            self._refuse_ratio(ratio)

    def _size_by_pixels(self, width_px: int, height_px: int, ratio: str | None) -> None:
        shape = width_px / height_px
        if ratio and distance(shape, ratio_value(ratio)) > as_distance(SIZE_RATIO_TOLERANCE):
            rule = f"is {ratio}, which {width_px}x{height_px} is not; give one of them"
            self._refuse("aspect_ratio", "conflict", rule)
        elif self.model.supports_free_size:
            self._free_size(width_px, height_px)
        else:
            self._nearest_size(width_px, height_px, ratio)

    def _free_size(self, width_px: int, height_px: int) -> None:
        for name, value in {"width": width_px, "height": height_px}.items():
            if parameter := self.model.by_role(name):
                self._take(parameter, value, name)
        extra = self.model.free_size_input or {}
        self._refuse_sizes(self.model.size_parameters | extra.keys(), "width and height")
        self.input.update(extra)
        self.size_px = (width_px, height_px)

    def _nearest_size(self, width_px: int, height_px: int, ratio: str | None) -> None:
        shape, area_px = width_px / height_px, width_px * height_px
        options = [o for o in self.model.size_options if ratio is None or o.ratio == ratio]
        known = [option for option in options if option.size_px] or options
        near = [
            (option.ratio_error(shape), option.area_error(area_px), number, option)
            for number, option in enumerate(self._matching(known))
            if option.ratio_error(shape) <= as_distance(SIZE_RATIO_TOLERANCE)
            and option.area_error(area_px) <= as_distance(SIZE_AREA_TOLERANCE)
        ]
        if near:
            self._choose(min(near)[-1])
            return
        sizes = list(dict.fromkeys(str(option) for option in self.model.size_options))
        rule = f"cannot be {width_px} with height {height_px}; it makes {listing(sizes)}"
        self._refuse("width", "not_allowed", rule, sizes)

    def _matching(self, options: Sequence[SizeOption]) -> list[SizeOption]:
        """Leave out the options that contradict what `parameters` already set."""
        return [
            option
            for option in options
            if all(
                self.input.get(name, value) in (value, MATCH_REFERENCE)
                for name, value in option.input.items()
            )
        ]

    def _choose(self, option: SizeOption) -> None:
        self._refuse_sizes(self.model.size_parameters - option.input.keys(), "aspect_ratio")
        for name, value in option.input.items():
            self.input.setdefault(name, value)
        follows = any(self.input[name] == MATCH_REFERENCE for name in option.input)
        self.size_px = None if follows else option.size_px

    def _refuse_sizes(self, names: frozenset[str], other: str) -> None:
        for name in sorted(names & self.input.keys()):
            rule = f"is {self.input[name]!r}, which does not go with {other}"
            self._refuse(f"parameters.{name}", "conflict", rule)

    def _output_format(self) -> str:
        formats = self.model.output_formats
        value = self.given.get("output_format")
        parameter = self.model.by_role("output_format")
        if value is None:
            return str(parameter.default) if parameter else formats[0]
        if not isinstance(value, str):
            self._refuse("output_format", "invalid_type", "must be a string", list(formats))
            return ""
        wanted = "jpg" if value.lower() == "jpeg" else value.lower()
        if wanted not in formats:
            rule = f"must be one of {listing(formats)}"
            self._refuse("output_format", "not_allowed", rule, list(formats))
        elif parameter:
            self._take(parameter, wanted, "output_format")
        return wanted

    def _count(self) -> int:
        count, limit = self.given.get("num_outputs", 1), self.model.max_count
        if not is_integer(count):
            self._refuse("num_outputs", "invalid_type", f"must be {TYPE_NAMES['integer']}")
            return 1
        if not 1 <= count <= limit:
            rule = f"must be between 1 and {limit}" if limit > 1 else "must be 1"
            self._refuse("num_outputs", "out_of_range", rule, {"min": 1, "max": limit})
        if parameter := self.model.by_role("count"):
            self.input[parameter.name] = count
        return int(count)

    def _unasked(self) -> None:
        """Send what the operator has set, and all of a workflow, which has no defaults."""
        void: tuple[str, ...] = ("image_strength",)
        if self.references:
            void = ("width", "height") if self.model.reference_size == "kept" else ()
        for parameter in self.model.parameters.values():
            wanted = parameter.fixed or (self.model.workflow and parameter.role not in void)
            if wanted and parameter.default is not None:
                self.input.setdefault(parameter.name, parameter.default)

    def _conditions(self) -> None:
        for name in self.input:
            for other, wanted in self.model.parameters[name].only_when.items():
                if self.input.get(other, self.model.parameters[other].default) != wanted:
                    rule = f"does something only when {other} is {wanted!r}"
                    self._refuse(f"parameters.{name}", "conflict", rule)

    def _take(self, parameter: Parameter, value: object, field: str) -> None:
        limited = parameter.with_reference() if self.references else parameter
        problem = limited.check(value, field=field, model_id=self.model.id)
        if problem:
            self.problems.append(problem)
        else:
            self.input[parameter.name] = value

    def _refuse(self, field: str, code: str, rule: str, allowed: Any = None) -> None:
        message = f"{field} of {self.model.id} {rule}."
        self.problems.append(ParameterProblem(field, code, message, allowed))

    def _refuse_ratio(self, ratio: str) -> None:
        ratios = self.model.aspect_ratios
        sizes = [f"{name} ({size[0]}x{size[1]})" if size else name for name, size in ratios.items()]
        rule = f"cannot be {ratio!r}; it makes {listing(sizes) or 'no named ratios'}"
        self._refuse("aspect_ratio", "not_allowed", rule, list(ratios))

    def _refuse_match(self, field: str, allowed: Sequence[str]) -> None:
        rule = f"cannot be {MATCH_REFERENCE!r} without a reference image"
        self._refuse(field, "not_allowed", rule, list(allowed))


def _enum(default: str | None, choices: Mapping[str, object] | Sequence[str]) -> dict[str, Any]:
    return {"type": "enum", "required": False, "default": default, "choices": list(choices)}


def _rounded(side_px: float, parameter: Parameter) -> int:
    step = parameter.multiple_of or 1
    return round(side_px / step) * step
