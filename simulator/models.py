"""The models the simulator knows: parameters, sizes, prices, run times.

The table is `models.json` beside this file. One entry per model:

    version          64 hex of a community model; null for an official one
    run_seconds      usual run time
    billed_per       "image" or "second"; price_usd is the price of one
    output           "list" or "string": the form of a successful output
    format           image format unless the input has an output_format
    count_parameter  the parameter that asks for several images, or null
    megapixels       size of images whose size is given by ratio alone
    pixels           exact [width, height] by aspect ratio, where the model has such a table
    parameters       by name: type (string, integer, number, boolean, array, uri, uri[]) and,
                     where they apply, required, default, min, max, enum, multiple_of
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simulator.wire import InvalidField

TABLE = Path(__file__).with_name("models.json")
DEPLOYMENT_OWNER = "simulated"
SIDE_STEP_PX = 16

_SIZE = re.compile(r"^(\d+)x(\d+)$")
_RATIO = re.compile(r"^(\d+):(\d+)$")
# Squares of one, two and four thousand pixels, and sizes named by their area.
_MEGAPIXELS = {"1K": 1, "2K": 4, "4K": 16, "0.5 MP": 0.5, "1 MP": 1, "2 MP": 2, "4 MP": 4}
_JSON_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input parameter; None means: not limited, no default."""

    name: str
    type: str
    required: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    enum: tuple[Any, ...] | None = None
    multiple_of: int | None = None

    def fault_of(self, value: Any) -> InvalidField | None:
        """Return what is wrong with `value`, or None."""
        where = f"input.{self.name}"
        expected = {"uri": "string", "uri[]": "array"}.get(self.type, self.type)
        if not _has_json_type(value, expected):
            given = _JSON_TYPES[type(value)]
            text = f"Invalid type. Expected: {expected}, given: {given}"
            return InvalidField("invalid_type", where, text)
        if self.enum is not None and value not in self.enum:
            choices = ", ".join(json.dumps(choice) for choice in self.enum)
            text = f"{where} must be one of the following: {choices}"
            return InvalidField("enum", where, text)
        if self.min is not None and value < self.min:
            return InvalidField(
                "number_gte", where, f"Must be greater than or equal to {self.min:g}"
            )
        if self.max is not None and value > self.max:
            return InvalidField("number_lte", where, f"Must be less than or equal to {self.max:g}")
        if self.type.startswith("uri"):
            uris = value if self.type == "uri[]" else [value]
            if not all(isinstance(uri, str) and _is_uri(uri) for uri in uris):
                return InvalidField("format", where, "Does not match format 'uri'")
        return None

    def schema(self, order: int) -> dict[str, Any]:
        """Return the property of the published input schema."""
        schema: dict[str, Any] = {"title": self.name.replace("_", " ").title(), "x-order": order}
        if self.enum is not None:
            schema["allOf"] = [{"$ref": f"#/components/schemas/{self.name}"}]
        elif self.type == "uri":
            schema |= {"type": "string", "format": "uri"}
        elif self.type == "uri[]":
            schema |= {"type": "array", "items": {"type": "string", "format": "uri"}}
        elif self.type == "array":
            schema |= {"type": "array", "items": {}}
        else:
            schema["type"] = self.type
        if self.default is not None:
            schema["default"] = self.default
        if self.min is not None:
            schema["minimum"] = self.min
        if self.max is not None:
            schema["maximum"] = self.max
        return schema


@dataclass(frozen=True)
class Model:
    """One model of the table."""

    id: str
    version: str | None
    run_seconds: float
    billed_per: str
    price_usd: float
    output: str
    format: str
    count_parameter: str | None
    megapixels: float
    pixels: Mapping[str, tuple[int, int]]
    parameters: Mapping[str, Parameter]

    @property
    def is_official(self) -> bool:
        """Tell whether the model is run by name, its versions hidden."""
        return self.version is None

    @cached_property
    def version_id(self) -> str:
        """Return 64 hex; of an official model they only name its published schema."""
        return self.version or hashlib.sha256(self.id.encode()).hexdigest()

    def faults_of(self, values: Mapping[str, Any]) -> list[InvalidField]:
        """Return everything wrong with the `input` of a create request."""
        faults = [
            InvalidField("required", "input", f"{name} is required")
            for name, parameter in self.parameters.items()
            if parameter.required and name not in values
        ]
        for name, value in values.items():
            parameter = self.parameters.get(name)
            if parameter is None:
                text = f"Additional property {name} is not allowed"
                faults.append(InvalidField("additional_property_not_allowed", "input", text))
            elif (fault := parameter.fault_of(value)) is not None:
                faults.append(fault)
        return faults

    def value(self, values: Mapping[str, Any], name: str) -> Any:
        """Return the value given for `name`, else its default, else None."""
        parameter = self.parameters.get(name)
        return values.get(name, parameter.default if parameter else None)

    def images_asked(self, values: Mapping[str, Any]) -> int:
        """Return how many images the input asks for."""
        if self.count_parameter is None:
            return 1
        # Models that can make a series make one image unless the series is asked for.
        if self.value(values, "sequential_image_generation") == "disabled":
            return 1
        return int(self.value(values, self.count_parameter))

    def image_format(self, values: Mapping[str, Any]) -> str:
        """Return `webp`, `jpg`, `png` or `svg`."""
        return str(self.value(values, "output_format") or self.format)

    def failure_of(self, values: Mapping[str, Any]) -> str | None:
        """Return the error a run ends with on an input the schema lets through, or None."""
        sides = self._sides(values)
        if self.is_official or sides is None:
            return None
        width_px, height_px = sides
        step_px = self.parameters["width"].multiple_of or 1
        if width_px % step_px == 0 and height_px % step_px == 0:
            return None
        return (
            f"`height` and `width` have to be divisible by {step_px} "
            f"but are {height_px} and {width_px}."
        )

    def size_px(self, values: Mapping[str, Any]) -> tuple[int, int]:
        """Return width and height of the images in pixels."""
        sides = self._sides(values)
        if sides is not None:
            return sides
        ratio = str(self.value(values, "aspect_ratio"))
        if ratio in self.pixels:
            width_px, height_px = self.pixels[ratio]
            # A quarter of the area is half of each side.
            quarter = self.value(values, "megapixels") == "0.25"
            return (width_px // 2, height_px // 2) if quarter else (width_px, height_px)
        size, resolution = (str(self.value(values, name)) for name in ("size", "resolution"))
        ratio_match = _RATIO.match(ratio)
        # A ratio wins over `size`, a `resolution` in pixels wins over the ratio.
        exact = _SIZE.match(resolution) or (None if ratio_match else _SIZE.match(size))
        if exact is not None:
            return int(exact[1]), int(exact[2])
        across, down = map(int, ratio_match.groups()) if ratio_match else (1, 1)
        megapixels = _MEGAPIXELS.get(size) or _MEGAPIXELS.get(resolution) or self.megapixels
        return _sides_of_area(across, down, megapixels)

    def openapi_schema(self) -> dict[str, Any]:
        """Return the published schema of input and output."""
        uri = {"type": "string", "format": "uri"}
        choices = {
            name: {"title": name, "type": parameter.type, "enum": list(parameter.enum)}
            for name, parameter in self.parameters.items()
            if parameter.enum is not None
        }
        return {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "components": {
                "schemas": {
                    "Input": {
                        "type": "object",
                        "title": "Input",
                        "required": [p.name for p in self.parameters.values() if p.required],
                        "properties": {
                            name: parameter.schema(order)
                            for order, (name, parameter) in enumerate(self.parameters.items())
                        },
                    },
                    "Output": {"type": "array", "items": uri, "title": "Output"}
                    if self.output == "list"
                    else {**uri, "title": "Output"},
                    **choices,
                }
            },
        }

    def _sides(self, values: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return width and height where the input decides them directly, else None."""
        if "width" not in self.parameters:
            return None
        selectors = [n for n in ("aspect_ratio", "size") if n in self.parameters]
        if selectors and all(self.value(values, name) != "custom" for name in selectors):
            return None
        width_px, height_px = (
            int(self.value(values, name) or 1024) for name in ("width", "height")
        )
        if self.is_official:
            step_px = self.parameters["width"].multiple_of or 1
            width_px, height_px = (round(px / step_px) * step_px for px in (width_px, height_px))
        return width_px, height_px


class ModelTable:
    """All models, by name, by version and by deployment."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._by_id = dict(models)
        self._by_version = {model.version_id: model for model in models.values()}

    def named(self, model_id: str) -> Model | None:
        """Return the model `owner/name`, or None."""
        return self._by_id.get(model_id)

    def deployed(self, owner: str, name: str) -> Model | None:
        """Return the model behind a deployment, or None.

        Every model is deployed once, as `simulated/<model name>`.
        """
        if owner != DEPLOYMENT_OWNER:
            return None
        return next((m for m in self._by_id.values() if m.id.split("/")[1] == name), None)

    def versioned(self, reference: str) -> Model | None:
        """Return the model for `owner/name`, `owner/name:<64 hex>` or `<64 hex>`, or None.

        The first form is for official models only.
        """
        model_id, _, version = reference.rpartition(":")
        if model_id:
            model = self._by_version.get(version)
            return model if model is not None and model.id == model_id else None
        if "/" in reference:
            model = self._by_id.get(reference)
            return model if model is not None and model.is_official else None
        return self._by_version.get(reference)


def load_models() -> ModelTable:
    """Read the table."""
    models = {}
    for entry in json.loads(TABLE.read_text()):
        parameters = {
            name: Parameter(
                name, **{**spec, "enum": tuple(spec["enum"]) if "enum" in spec else None}
            )
            for name, spec in entry["parameters"].items()
        }
        pixels = {ratio: (width, height) for ratio, (width, height) in entry["pixels"].items()}
        models[entry["id"]] = Model(**{**entry, "parameters": parameters, "pixels": pixels})
    return ModelTable(models)


def _has_json_type(value: Any, expected: str) -> bool:
    given = _JSON_TYPES[type(value)]
    if given == expected or (expected, given) == ("number", "integer"):
        return True
    return expected == "integer" and isinstance(value, float) and value.is_integer()


def _is_uri(text: str) -> bool:
    return text.startswith(("https://", "http://", "data:"))


def _sides_of_area(across: int, down: int, megapixels: float) -> tuple[int, int]:
    area_px = megapixels * 1024 * 1024
    width = math.sqrt(area_px * across / down)
    height = math.sqrt(area_px * down / across)
    return (
        max(SIDE_STEP_PX, round(width / SIDE_STEP_PX) * SIDE_STEP_PX),
        max(SIDE_STEP_PX, round(height / SIDE_STEP_PX) * SIDE_STEP_PX),
    )
