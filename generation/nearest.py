"""What a model can do that comes nearest to what is asked.

For clients that ask for the same of every model, such as a print's 4500 x 5400 pixels. The API's
own routes refuse what a model cannot do, and say why.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from generation.model import Model
from generation.parameter import Parameter, SizeOption, distance, ratio_value

# Shapes that differ by less look alike, and the area decides.
ALIKE = math.log(1.01)
SIDE_MAX_PX = 16_384  # where a model names no bound


class Nearest(NamedTuple):
    """`request` is what to ask instead; `mapped` has the fields that differ, as (asked, used)."""

    request: dict[str, Any]
    mapped: dict[str, tuple[Any, Any]]


def nearest(model: Model, request: Mapping[str, Any]) -> Nearest:
    """Change a request in the common vocabulary so that a model can do it.

    Of `request`, which has no reference images, `width` with `height`, `steps`, `guidance_scale`
    and `seed` are changed, or left out where the model has nothing of the kind. What is used is
    `None` where it is left to the model, or not known before.
    """
    changed = {name: value for name, value in request.items() if value is not None}
    for name in ("steps", "guidance_scale", "seed"):
        if name in changed:
            asked, parameter = changed.pop(name), model.by_role(name)
            if parameter and parameter.type in ("integer", "number"):
                changed[name] = _within(parameter, asked)
    used = dict(changed)
    if "width" in changed:
        size = _size(model, changed.pop("width"), changed.pop("height"))
        changed |= size.request
        used |= {"width": None, "height": None}
        if size.size_px:
            used |= dict(zip(("width", "height"), size.size_px, strict=True))
    mapped = {
        name: (value, used.get(name))
        for name, value in request.items()
        if value is not None and value != used.get(name)
    }
    if "width" in used and used["width"] is None and size.ratio:
        mapped["aspect_ratio"] = (None, size.ratio)
    return Nearest(changed, mapped)


def _within(parameter: Parameter, value: float) -> float:
    """The value that a parameter takes nearest to another."""
    step = parameter.multiple_of or (1 if parameter.type == "integer" else None)
    low = -math.inf if parameter.min is None else parameter.min
    high = math.inf if parameter.max is None else parameter.max
    value = min(max(value, low), high)
    if step is None:
        return value
    value = round(value / step) * step
    if value < low:
        value = math.ceil(low / step) * step
    elif value > high:
        value = math.floor(high / step) * step
    return int(value)


class _Size(NamedTuple):
    """What to ask for, nothing where there is no choice, and what is known of what comes."""

    request: dict[str, Any]
    size_px: tuple[int, int] | None = None
    ratio: str = ""


def _size(model: Model, width_px: int, height_px: int) -> _Size:
    if model.supports_free_size:
        width, height = model.by_role("width"), model.by_role("height")
        assert width
        assert height
        best = _nearest_free(width, height, width_px, height_px)
        return _Size({"width": best[0], "height": best[1]}, best)
    known = [option for option in model.size_options if option.size_px] or model.size_options
    if not known:
        return _Size({})
    shape, area_px = width_px / height_px, width_px * height_px
    errors = {number: option.ratio_error(shape) for number, option in enumerate(known)}
    alike = min(errors.values()) + ALIKE
    number = min(
        (number for number, error in errors.items() if error <= alike),
        key=lambda number: (known[number].area_error(area_px), errors[number]),
    )
    return _asking_for(known[number])


def _asking_for(option: SizeOption) -> _Size:
    if option.size_px:
        width_px, height_px = option.size_px
        return _Size({"width": width_px, "height": height_px}, option.size_px, option.ratio)
    if not option.area_px:
        return _Size({"aspect_ratio": option.ratio}, None, option.ratio)
    # Of several sizes of one shape only a width and a height tell which.
    shape = ratio_value(option.ratio)
    width, height = math.sqrt(option.area_px * shape), math.sqrt(option.area_px / shape)
    return _Size({"width": round(width), "height": round(height)}, None, option.ratio)


def _nearest_free(
    width: Parameter, height: Parameter, width_px: int, height_px: int
) -> tuple[int, int]:
    shape, area_px = width_px / height_px, width_px * height_px
    sizes = {size: distance(size[0] / size[1], shape) for size in _free_sizes(width, height, shape)}
    alike = min(sizes.values()) + ALIKE
    return min(
        (size for size, error in sizes.items() if error <= alike),
        key=lambda size: (distance(size[0] * size[1], area_px), sizes[size]),
    )


def _free_sizes(width: Parameter, height: Parameter, shape: float) -> Iterator[tuple[int, int]]:
    """For each side that there is, the size of about that shape."""
    for wide in _sides(width):
        yield wide, int(_within(height, wide / shape))
    for high in _sides(height):
        yield int(_within(width, high * shape)), high


def _sides(parameter: Parameter) -> range:
    step = parameter.multiple_of or 1
    low, high = parameter.min or step, parameter.max or SIDE_MAX_PX
    return range(math.ceil(low / step) * step, int(high) + 1, step)
