"""The image models on offer, and one vocabulary for asking any of them for a picture.

`models.json` beside this file holds the facts, this module the rules. A request in the common
vocabulary (`COMMON_FIELDS`) becomes a model's own input by `Model.resolve`; nothing is sent that
the model does not list, and nothing that was asked for is dropped silently.

Layout of one entry of `models.json` (optional keys in brackets):

    provider, display_name, family, status, status_note, output_formats, est_seconds
    version               id that the provider wants with each submission, null for none
    price_usd_per_image   decimal string; `price_note` says what it rests on
    size                  how the size of the picture is chosen, any of
        [ratios]          aspect ratio -> its pixel size, or null where it is not known;
                          the first is the default
        [scales]          parameter -> its values -> factor on both sides of those pixel sizes
        [exact]           parameter -> its values -> pixel size; the first is the default
        [free]            present when `width` and `height` are accepted; holds what has to be
                          sent along with them, e.g. {"aspect_ratio": "custom"}
    parameters            name -> {type, [role], [required], [default], [min], [max],
                          [multiple_of], [choices], [max_items]}

A parameter's `role` is the common field that sets it, or one of `count`, `image`, `mask`,
`image_strength`; a parameter without a role is set by its own name.
Source: Replicate model schemas, read 2026-11-20
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

PROMPT_MAX_LENGTH = 4_000
ARRAY_MAX_ITEMS = 16

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
)
# Ratios offered for a model that takes any width and height.
COMMON_RATIOS = ("1:1", "16:9", "9:16", "21:9", "9:21", "3:2", "2:3", "4:3", "3:4", "5:4", "4:5")

_SIZE_FIELDS = ("width", "height", "aspect_ratio")
_PLAIN_FIELDS = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "output_quality")
_NEEDS_INPUT_IMAGE = ("image", "mask", "image_strength")
_FREE_DEFAULT_PX = 1024  # both sides, where the model names no default
_SIDE_MAX_PX = 16_384  # the bound of any request; each model has tighter ones
_RATIO = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")


@dataclass(frozen=True, slots=True)
class ParameterProblem:
    """One thing wrong with a request.

    `field` is a common field, or `parameters.<name>` for one of the model's own. `code` is one
    of `required`, `unsupported`, `invalid_type`, `out_of_range`, `not_a_multiple`,
    `not_allowed`, `too_long`, `conflict`. `allowed` is what would be accepted, ready for JSON:
    `{"min", "max", "multiple_of"}`, `{"max_length"}`, a list of values, or `None`.
    """

    field: str
    code: str
    message: str
    allowed: Any = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request in one model's own words.

    `width_px` and `height_px` are the size to expect, both `None` where it is not known.
    `output_format` is `webp`, `png` or `jpg`; `seed` is `None` when the provider chooses it.
    """

    input: dict[str, Any]
    width_px: int | None
    height_px: int | None
    output_format: str
    seed: int | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input parameter of one model; see the module's text for the meaning of `role`."""

    name: str
    type: str  # string, integer, number, boolean, enum, array or file
    role: str | None = None
    required: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    multiple_of: int | None = None
    choices: tuple[str, ...] = ()
    max_items: int = ARRAY_MAX_ITEMS

    def check(self, value: object, *, field: str, model_id: str) -> ParameterProblem | None:
        """Say what is wrong with `value`, `None` when nothing is."""

        def problem(code: str, rule: str, allowed: Any = None) -> ParameterProblem:
            return ParameterProblem(field, code, f"{field} of {model_id} must be {rule}.", allowed)

        if not _TYPE_CHECKS[self.type](value):
            return problem("invalid_type", _TYPE_NAMES[self.type])
        if self.type == "enum" and value not in self.choices:
            return problem("not_allowed", f"one of {_listing(self.choices)}", list(self.choices))
        if isinstance(value, str) and len(value) > PROMPT_MAX_LENGTH:
            return problem(
                "too_long",
                f"at most {PROMPT_MAX_LENGTH:,} characters long, not {len(value):,}",
                {"max_length": PROMPT_MAX_LENGTH},
            )
        if isinstance(value, list) and len(value) > self.max_items:
            return problem(
                "too_long", f"at most {self.max_items} items long", {"max_length": self.max_items}
            )
        if isinstance(value, (int, float)) and self.type != "boolean":
            if (self.min is not None and value < self.min) or (
                self.max is not None and value > self.max
            ):
                return problem("out_of_range", self._range(), self._limits())
            if self.multiple_of and value % self.multiple_of:
                return problem(
                    "not_a_multiple", f"a multiple of {self.multiple_of}", self._limits()
                )
        return None

    def describe(self) -> dict[str, Any]:
        """Return what a form needs to know, ready for JSON; keys without a value are left out."""
        described: dict[str, Any] = {
            "type": self.type,
            "required": self.required,
            "default": self.default,
            **self._limits(),
        }
        if self.choices:
            described["choices"] = list(self.choices)
        if self.type == "string":
            described["max_length"] = PROMPT_MAX_LENGTH
        if self.type == "array":
            described["max_items"] = self.max_items
        return described

    def _limits(self) -> dict[str, float]:
        limits = {"min": self.min, "max": self.max, "multiple_of": self.multiple_of}
        return {key: value for key, value in limits.items() if value is not None}

    def _range(self) -> str:
        if self.min is None:
            return f"at most {self.max}"
        if self.max is None:
            return f"at least {self.min}"
        return f"between {self.min} and {self.max}"


@dataclass(frozen=True, slots=True)
class SizeOption:
    """One size that a model offers by name. `ratio` is empty for an exact size."""

    input: Mapping[str, str]
    ratio: str
    size_px: tuple[int, int] | None  # width, height; `None` when not known

    def ratio_error(self, ratio: float) -> float:
        """Return the distance between this size's shape and `ratio` (width / height).

        The nominal ratio counts as well as the real one: "16:9" is 1344x768 on some models,
        and whoever asks for 1920x1080 means the former, for 1344x768 the latter.
        """
        shapes = [_ratio_value(self.ratio)] if self.ratio else []
        if self.size_px:
            shapes.append(self.size_px[0] / self.size_px[1])
        return min(_distance(ratio, shape) for shape in shapes)

    def area_error(self, area_px: float) -> float:
        """Return the distance between this size's area and `area_px`, 0 if it is not known."""
        return _distance(area_px, self.size_px[0] * self.size_px[1]) if self.size_px else 0.0

    def __str__(self) -> str:
        if not self.size_px:
            return self.ratio
        size = "{}x{}".format(*self.size_px)
        return f"{size} ({self.ratio})" if self.ratio else size


@dataclass(frozen=True, slots=True)
class Model:
    """One image model. Immutable and safe to share."""

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
    size_options: tuple[SizeOption, ...] = ()  # the first is the default
    free_size_input: Mapping[str, str] | None = None  # `None` when width and height are not taken
    _by_role: Mapping[str, Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        roles = {p.role: p for p in self.parameters.values() if p.role}
        object.__setattr__(self, "_by_role", MappingProxyType(roles))

    def by_role(self, role: str) -> Parameter | None:
        """Return the parameter that `role` (a common field, for most) sets, if there is one."""
        return self._by_role.get(role)

    @property
    def is_active(self) -> bool:
        return self.status == "active"

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
        """How many pictures one submission could give; one is what `resolve` asks for."""
        count = self.by_role("count")
        return int(count.max) if count and count.max else 1

    @property
    def own_parameters(self) -> Mapping[str, Parameter]:
        """What may stand in a request's `parameters`."""
        return {p.name: p for p in self.parameters.values() if p.role is None}

    @property
    def aspect_ratios(self) -> Mapping[str, tuple[int, int] | None]:
        """The ratios on offer with the pixel size (width, height) each gives by default."""
        ratios: dict[str, tuple[int, int] | None] = {}
        for option in self.size_options:
            if option.ratio:
                ratios.setdefault(option.ratio, option.size_px)
        if not ratios and self.supports_free_size:
            for ratio in COMMON_RATIOS:
                if size := self.size_for_ratio(ratio):
                    ratios[ratio] = size
        return ratios

    def default_free_size(self) -> tuple[int, int]:
        """Return the (width, height) in pixels that a model with free sizes gets by default."""
        width, height = (self._by_role[side].default for side in ("width", "height"))
        return width or _FREE_DEFAULT_PX, height or _FREE_DEFAULT_PX

    def size_for_ratio(self, ratio: str) -> tuple[int, int] | None:
        """Return (width, height) in pixels of about the default area in the shape `ratio`.

        For models with free sizes. `None` when the bounds do not allow that shape.
        """
        width, height = self._by_role["width"], self._by_role["height"]
        shape = _ratio_value(ratio)
        area_px = math.prod(self.default_free_size())
        wide, high = math.sqrt(area_px * shape), math.sqrt(area_px / shape)
        shrink = min(1.0, (width.max or wide) / wide, (height.max or high) / high)
        size = (_rounded(wide * shrink, width), _rounded(high * shrink, height))
        for side_px, parameter in zip(size, (width, height), strict=True):
            if parameter.check(side_px, field="", model_id=""):
                return None
        too_far = _distance(size[0] / size[1], shape) > _as_distance(SIZE_RATIO_TOLERANCE)
        return None if too_far else size

    def resolve(self, request: Mapping[str, Any]) -> Resolved | list[ParameterProblem]:
        """Translate a request in the common vocabulary into this model's input.

        `request` holds `COMMON_FIELDS` and `parameters` (a mapping of the model's own parameters
        by their own names); a value of `None` means not given, and `model` is ignored. All
        problems are returned at once, in the order of the fields. What is not given is left to
        the model, except the size and the number of pictures (one), which are always sent.
        """
        return _Resolution(self, request).run()

    def describe(self) -> dict[str, Any]:
        """Return what a form for this model needs, ready for JSON.

        `fields` has the common fields that it takes, `parameters` its own ones, both by name as
        `Parameter.describe` gives them. `sizes` lists the only sizes it makes, as
        `{width_px, height_px, aspect_ratio}`; it is empty when `fields` has width and height.
        """
        fields = {
            name: parameter.describe()
            for name in COMMON_FIELDS
            if (parameter := self.by_role(name)) and name != "aspect_ratio"
        }
        ratios = self.aspect_ratios
        if ratios:
            fields["aspect_ratio"] = {
                "type": "enum",
                "required": False,
                "default": next(iter(ratios)),
                "choices": list(ratios),
            }
        fields["output_format"] = {
            "type": "enum",
            "required": False,
            "default": self._default_format(),
            "choices": list(self.output_formats),
        }
        sizes = () if self.supports_free_size else self.size_options
        return {
            "id": self.id,
            "provider": self.provider,
            "display_name": self.display_name,
            "family": self.family,
            "status": self.status,
            "status_note": self.status_note,
            "price_usd_per_image": str(self.price_usd_per_image),
            "price_note": self.price_note,
            "est_seconds": self.est_seconds,
            "supports_seed": self.supports_seed,
            "supports_negative_prompt": self.supports_negative_prompt,
            "supports_free_size": self.supports_free_size,
            "fields": fields,
            "parameters": {name: p.describe() for name, p in self.own_parameters.items()},
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

    def _default_format(self) -> str:
        parameter = self.by_role("output_format")
        return str(parameter.default) if parameter else self.output_formats[0]


@cache
def load_models() -> Mapping[str, Model]:
    """Return every model of `models.json` by id, in the file's order. Read once per process."""
    path = Path(__file__).with_name("models.json")
    return MappingProxyType(parse_models(json.loads(path.read_text(encoding="utf-8"))))


def get_model(model_id: str) -> Model | None:
    """Return one model, `None` if there is none of that id."""
    return load_models().get(model_id)


def parse_models(document: Mapping[str, Any]) -> dict[str, Model]:
    """Build models from a document in the layout described above."""
    return {
        model_id: _parse_model(model_id, entry) for model_id, entry in document["models"].items()
    }


def _parse_model(model_id: str, entry: Mapping[str, Any]) -> Model:
    parameters = {
        name: Parameter(name=name, **{**spec, "choices": tuple(spec.get("choices", ()))})
        for name, spec in entry["parameters"].items()
    }
    size = entry["size"]
    free = size.get("free")
    return Model(
        id=model_id,
        provider=entry["provider"],
        display_name=entry["display_name"],
        family=entry["family"],
        version=entry["version"],
        status=entry["status"],
        status_note=entry["status_note"],
        price_usd_per_image=Decimal(entry["price_usd_per_image"]),
        price_note=entry["price_note"],
        est_seconds=entry["est_seconds"],
        output_formats=tuple(entry["output_formats"]),
        parameters=MappingProxyType(parameters),
        size_options=tuple(_parse_size_options(size, parameters)),
        free_size_input=None if free is None else MappingProxyType(dict(free)),
    )


def _parse_size_options(
    size: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> list[SizeOption]:
    options = []
    for name, sizes in size.get("exact", {}).items():
        options += [SizeOption({name: value}, "", tuple(pixels)) for value, pixels in sizes.items()]
    ratios = size.get("ratios", {})
    ratio_name = next((p.name for p in parameters.values() if p.role == "aspect_ratio"), "")
    # Without a scale parameter there is one scale, which nothing needs to be sent for.
    scales: list[tuple[dict[str, str], float]] = [
        ({name: value}, factor)
        for name, factors in size.get("scales", {}).items()
        for value, factor in factors.items()
    ] or [({}, 1.0)]
    for scale_input, factor in scales:
        for ratio, pixels in ratios.items():
            size_px = (round(pixels[0] * factor), round(pixels[1] * factor)) if pixels else None
            options.append(SizeOption({ratio_name: ratio, **scale_input}, ratio, size_px))
    return options


class _Resolution:
    """One run of `Model.resolve`: collects the input and the problems."""

    def __init__(self, model: Model, request: Mapping[str, Any]) -> None:
        self.model = model
        self.given = {key: value for key, value in request.items() if value is not None}
        self.input: dict[str, Any] = {}
        self.problems: list[ParameterProblem] = []
        self.size_px: tuple[int, int] | None = None

    def run(self) -> Resolved | list[ParameterProblem]:
        for name in self.given.keys() - {*COMMON_FIELDS, "parameters", "model"}:
            self._refuse(name, "unsupported", "is not a known field", list(COMMON_FIELDS))
        for name in _PLAIN_FIELDS:
            self._plain(name)
        self._own_parameters()
        self._size()
        output_format = self._output_format()
        if count := self.model.by_role("count"):
            self.input[count.name] = 1
        if self.problems:
            order = (*COMMON_FIELDS, "parameters")
            return sorted(
                self.problems,
                key=lambda p: (order.index(p.field) if p.field in order else len(order), p.field),
            )
        width_px, height_px = self.size_px or (None, None)
        return Resolved(self.input, width_px, height_px, output_format, self.given.get("seed"))

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
        if parameter is None:
            rule = f"is not supported; its own parameters are {_listing(allowed) or 'none'}"
            self._refuse(field, "unsupported", rule, allowed)
        elif parameter.role in COMMON_FIELDS:
            self._refuse(field, "unsupported", f"is set by the field {parameter.role}", allowed)
        elif parameter.role == "count":
            rule = "cannot be set: every generation makes one picture"
            self._refuse(field, "unsupported", rule, allowed)
        elif parameter.type == "file" or parameter.role in _NEEDS_INPUT_IMAGE:
            rule = "is not supported: pictures are made from text only"
            self._refuse(field, "unsupported", rule, allowed)
        elif value == (self.model.free_size_input or {}).get(name):
            self._refuse(field, "not_allowed", "is set by giving width and height")
        else:
            self._take(parameter, value, field)

    def _size(self) -> None:
        given = {name: self.given[name] for name in _SIZE_FIELDS if name in self.given}
        problems_before = len(self.problems)
        for name in given.keys() & {"width", "height"}:
            if not _is_integer(given[name]):
                self._refuse(name, "invalid_type", f"must be {_TYPE_NAMES['integer']}")
            elif not 1 <= given[name] <= _SIDE_MAX_PX:
                rule = f"must be between 1 and {_SIDE_MAX_PX}"
                self._refuse(name, "out_of_range", rule, {"min": 1, "max": _SIDE_MAX_PX})
        if ("width" in given) != ("height" in given):
            missing, other = ("height", "width") if "width" in given else ("width", "height")
            self._refuse(missing, "required", f"must be given together with {other}")
        ratio = given.get("aspect_ratio")
        if ratio is not None and not isinstance(ratio, str):
            self._refuse("aspect_ratio", "invalid_type", 'must be a string such as "16:9"')
        elif ratio is not None and not _RATIO.fullmatch(ratio):
            self._refuse_ratio(ratio)
        if len(self.problems) > problems_before:
            return
        if "width" in given:
            self._size_by_pixels(given["width"], given["height"], ratio)
        elif ratio is not None:
            self._size_by_ratio(ratio)
        elif default := self._matching(self.model.size_options):
            self._choose(default[0])
        elif self.model.supports_free_size:
            self._size_by_pixels(*self.model.default_free_size(), None)

    def _size_by_ratio(self, ratio: str) -> None:
        options = [option for option in self.model.size_options if option.ratio == ratio]
        if matching := self._matching(options):
            self._choose(matching[0])
        elif self.model.supports_free_size and (size := self.model.size_for_ratio(ratio)):
            self._size_by_pixels(*size, None)
        else:
            self._refuse_ratio(ratio)

    def _size_by_pixels(self, width_px: int, height_px: int, ratio: str | None) -> None:
        shape = width_px / height_px
        if ratio and _distance(shape, _ratio_value(ratio)) > _as_distance(SIZE_RATIO_TOLERANCE):
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
        for name, setting in (self.model.free_size_input or {}).items():
            if name in self.input:
                rule = f"is {self.input[name]!r}, which does not go with width and height"
                self._refuse(f"parameters.{name}", "conflict", rule)
            self.input[name] = setting
        self.size_px = (width_px, height_px)

    def _nearest_size(self, width_px: int, height_px: int, ratio: str | None) -> None:
        shape, area_px = width_px / height_px, width_px * height_px
        options = [o for o in self.model.size_options if ratio is None or o.ratio == ratio]
        known = [option for option in options if option.size_px] or options
        near = [
            (option.ratio_error(shape), option.area_error(area_px), number, option)
            for number, option in enumerate(self._matching(known))
            if option.ratio_error(shape) <= _as_distance(SIZE_RATIO_TOLERANCE)
            and option.area_error(area_px) <= _as_distance(SIZE_AREA_TOLERANCE)
        ]
        if near:
            self._choose(min(near)[-1])
            return
        sizes = [str(option) for option in self.model.size_options]
        rule = f"cannot be {width_px} with height {height_px}; it makes {_listing(sizes)}"
        self._refuse("width", "not_allowed", rule, sizes)

    def _matching(self, options: Sequence[SizeOption]) -> list[SizeOption]:
        """Leave out the options that contradict what `parameters` already set."""
        return [
            option
            for option in options
            if all(self.input.get(name, value) == value for name, value in option.input.items())
        ]

    def _choose(self, option: SizeOption) -> None:
        self.input.update(option.input)
        self.size_px = option.size_px

    def _output_format(self) -> str:
        formats = self.model.output_formats
        value = self.given.get("output_format")
        if value is None:
            return self.model._default_format()
        if not isinstance(value, str):
            self._refuse("output_format", "invalid_type", "must be a string", list(formats))
            return ""
        wanted = "jpg" if value.lower() == "jpeg" else value.lower()
        if wanted not in formats:
            rule = f"must be one of {_listing(formats)}"
            self._refuse("output_format", "not_allowed", rule, list(formats))
        elif parameter := self.model.by_role("output_format"):
            self._take(parameter, wanted, "output_format")
        return wanted

    def _take(self, parameter: Parameter, value: object, field: str) -> None:
        problem = parameter.check(value, field=field, model_id=self.model.id)
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
        rule = f"cannot be {ratio!r}; it makes {_listing(sizes) or 'no named ratios'}"
        self._refuse("aspect_ratio", "not_allowed", rule, list(ratios))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_array(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) or _is_number(v) for v in value)


_TYPE_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "enum": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": _is_array,
}
_TYPE_NAMES = {
    "string": "a string",
    "enum": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list of strings or numbers",
}


def _ratio_value(ratio: str) -> float:
    width, height = ratio.split(":")
    return int(width) / int(height)


def _distance(a: float, b: float) -> float:
    """Return how far apart two positive numbers are by proportion, the same both ways round."""
    return abs(math.log(a / b))


def _as_distance(tolerance: float) -> float:
    """Return a relative tolerance as a `_distance`, with room for rounding."""
    return math.log1p(tolerance) + 1e-9


def _rounded(side_px: float, parameter: Parameter) -> int:
    step = parameter.multiple_of or 1
    return round(side_px / step) * step


def _listing(values: Sequence[str]) -> str:
    return ", ".join(values)
