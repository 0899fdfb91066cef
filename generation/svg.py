"""SVG of unknown worth in, a still drawing that refers to nothing outside itself out.

What comes out is written anew from the elements and attributes that are allowed here. What could
run, load, link or move makes the whole file refused; what merely draws nothing, such as an
editor's own elements, is left out.
"""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from generation import renditions
from generation.renditions import Renditions

MAX_BYTES = 8 * 1024 * 1024
MAX_ELEMENTS = 100_000  # a drawn one takes over 1 kB
MAX_DEPTH = 100
DRAWING_CPU_S = 10
DRAWING_S = 30.0

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_XHTML = "{http://www.w3.org/1999/xhtml}"
# Source: SVG 1.1 (second edition), element and attribute index, and SVG 2, read 2026-11-20
_ELEMENTS = """
    svg g defs symbol use title desc style path rect circle ellipse line polyline polygon text
    tspan textPath linearGradient radialGradient stop pattern clipPath mask marker filter feBlend
    feColorMatrix feComponentTransfer feComposite feConvolveMatrix feDiffuseLighting
    feDisplacementMap feDistantLight feDropShadow feFlood feFuncA feFuncB feFuncG feFuncR
    feGaussianBlur feMerge feMergeNode feMorphology feOffset fePointLight feSpecularLighting
    feSpotLight feTile feTurbulence
"""
_ATTRIBUTES = """
    x y width height viewBox preserveAspectRatio version d points pathLength cx cy r rx ry x1 y1
    x2 y2 fx fy fr dx dy rotate textLength lengthAdjust startOffset method spacing side transform
    gradientUnits gradientTransform spreadMethod offset patternUnits patternContentUnits
    patternTransform clipPathUnits maskUnits maskContentUnits markerUnits markerWidth
    markerHeight orient refX refY type media style

    filterUnits primitiveUnits in in2 result mode values operator k1 k2 k3 k4 order kernelMatrix
    divisor bias targetX targetY edgeMode kernelUnitLength preserveAlpha surfaceScale
    diffuseConstant specularConstant specularExponent scale xChannelSelector yChannelSelector
    azimuth elevation z pointsAtX pointsAtY pointsAtZ limitingConeAngle stdDeviation radius
    baseFrequency numOctaves seed stitchTiles tableValues slope intercept amplitude exponent

    alignment-baseline baseline-shift clip clip-path clip-rule color color-interpolation
    color-interpolation-filters color-rendering direction display dominant-baseline
    enable-background fill fill-opacity fill-rule filter flood-color flood-opacity font
    font-family font-size font-size-adjust font-stretch font-style font-variant font-weight
    image-rendering isolation kerning letter-spacing lighting-color marker marker-end marker-mid
    marker-start mask mask-type mix-blend-mode opacity overflow paint-order shape-rendering
    stop-color stop-opacity stroke stroke-dasharray stroke-dashoffset stroke-linecap
    stroke-linejoin stroke-miterlimit stroke-opacity stroke-width text-anchor text-decoration
    text-rendering transform-origin unicode-bidi vector-effect visibility word-spacing
    writing-mode
"""
# What may be called in an attribute or in CSS. Others load files: image-set(), src(), url().
_FUNCTIONS = """
    rgb rgba hsl hsla matrix translate translatex translatey scale scalex scaley rotate skew
    skewx skewy calc var
"""
_ALLOWED_ELEMENTS = frozenset(_ELEMENTS.split())
_ALLOWED_ATTRIBUTES = frozenset(_ATTRIBUTES.split())
_ALLOWED_FUNCTIONS = frozenset(_FUNCTIONS.split())
_INERT_ATTRIBUTES = frozenset(("id", "class"))
_FUNCTION = re.compile(r"([\w-]*)\s*\(")
_LOCAL = re.compile(r"#[^\s'\"()<>\\]+")
_LOCAL_URL = re.compile(rf"url\(\s*(['\"]?){_LOCAL.pattern}\1\s*\)", re.I)
_LENGTH = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*(\w*)\s*", re.I)
# Source: CSS Values and Units, level 4, section 6.2, read 2026-11-20
_UNITS_PX = {
    "": 1.0, "px": 1.0, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4, "q": 96 / 101.6,
    "pt": 96 / 72, "pc": 16.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """`content` is UTF-8 XML whose width and height are the ones told here, rounded to pixels."""

    content: bytes
    width_px: int
    height_px: int


class _Refused(Exception):
    pass


class _Builder(TreeBuilder):
    """Stops when a document has more in it than can be handled."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> Element:
        self.elements += 1
        self.depth += 1
        if self.elements > MAX_ELEMENTS:
            raise _Refused(f"has more than {MAX_ELEMENTS:,} elements")
        if self.depth > MAX_DEPTH:
            raise _Refused(f"has elements more than {MAX_DEPTH} deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def sanitise(data: bytes, *, max_pixels: int) -> Drawing | str:
    """Write the drawing anew; a text says why it cannot be taken, to follow "The SVG "."""
    if len(data) > MAX_BYTES:
        return f"is larger than {MAX_BYTES:,} bytes"
    try:
        return _sanitise(data, max_pixels)
    except _Refused as refused:
        return str(refused)
    except DefusedXmlException:
        return "declares a document type or entities"
    except (ParseError, ValueError, LookupError) as error:  # the latter two: of its encoding
        return f"is damaged or incomplete: {str(error)[:120]}"


def draw(content: bytes, *, cpu_s: int = DRAWING_CPU_S) -> Renditions | str:
    """Draw what `sanitise` returned, in a process of its own; a text as with `sanitise`.

    It is its own because the time and the memory of a drawing cannot be told beforehand, and
    ends after `cpu_s` seconds of work, or `DRAWING_S` of waiting for a processor.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", renditions.__file__, str(cpu_s)],
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=DRAWING_S,
            cwd="/",
            env={},
        )
    except subprocess.TimeoutExpired:
        return "takes too long to draw"
    if done.returncode != 0:
        return "cannot be drawn within bounds"
    (length,) = renditions.DRAWN.unpack_from(done.stdout)
    preview_at = renditions.DRAWN.size + length
    return Renditions(
        thumbnail=done.stdout[renditions.DRAWN.size : preview_at],
        preview=done.stdout[preview_at:],
    )


def _sanitise(data: bytes, max_pixels: int) -> Drawing:
    parser = DefusedXMLParser(target=_Builder(), forbid_dtd=True)
    parser.feed(data)
    source = parser.close()
    if _name(source) != "svg":
        raise _Refused(f"is another kind of XML document, <{_shown(source)}>")
    width, height = _size(source)
    if width * height > max_pixels:
        raise _Refused(f"is {width:,.0f}x{height:,.0f}, more than {max_pixels:,} pixels")
    root = _clean(source)
    root.attrib = {
        "xmlns": _SVG[1:-1],
        **root.attrib,
        "width": f"{width:.10g}",
        "height": f"{height:.10g}",
    }
    return Drawing(tostring(root, "utf-8"), max(1, round(width)), max(1, round(height)))


def _clean(source: Element) -> Element:
    """Copy what may stay of an allowed element."""
    copy = Element(_name(source), dict(_attributes(source)))
    copy.text, copy.tail = source.text, source.tail
    if copy.tag == "style":
        if len(source):
            raise _Refused("has elements within a style sheet")
        _check_css(source.text or "")
    for child in source:
        name = _name(child)
        if name in _ALLOWED_ELEMENTS:
            copy.append(_clean(child))
        elif name != "metadata" and (name or child.tag.startswith(_XHTML)):
            raise _Refused(f"has a <{_shown(child)}> element")
    return copy


def _attributes(element: Element) -> Iterator[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name.lower().startswith("on"):
            raise _Refused(f"has an event handler, {name[:30]}")
        if name in ("href", _XLINK_HREF):
            if not _LOCAL.fullmatch(value.strip()):
                raise _Refused(f"refers to something outside itself: {value[:60]!r}")
            yield "href", value.strip()
        elif name in _INERT_ATTRIBUTES:
            yield name, value
        elif name in _ALLOWED_ATTRIBUTES:
            _check_css(value)
            yield name, value


def _check_css(text: str) -> None:
    """Raise unless a style sheet, a declaration or a value of one loads nothing."""
    if "\\" in text or "@" in text:
        raise _Refused("has an escape or an at-rule in its CSS")
    for name in _FUNCTION.findall(_LOCAL_URL.sub(" ", text)):
        if name and name.lower() not in _ALLOWED_FUNCTIONS:
            raise _Refused(f"calls {name[:30]}() in its CSS")


def _size(root: Element) -> tuple[float, float]:
    """Return the width and height of the drawing in CSS pixels, both above 0 and finite."""
    width, height = _length_px(root.get("width")), _length_px(root.get("height"))
    box = [
        float(number) for number in re.split(r"[\s,]+", root.get("viewBox", "").strip()) if number
    ]
    if len(box) == 4 and box[2] > 0 and box[3] > 0:
        if width is None and height is None:
            width, height = box[2], box[3]
        elif width is None and height is not None:
            width = height * box[2] / box[3]
        elif height is None and width is not None:
            height = width * box[3] / box[2]
    if not width or not height or not math.isfinite(width * height):
        raise _Refused("has no size")
    return width, height


def _length_px(text: str | None) -> float | None:
    """Return an absolute length; `None` for one that depends on where the drawing is shown."""
    match = _LENGTH.fullmatch(text or "")
    unit = _UNITS_PX.get(match[2].lower()) if match else None
    return float(match[1]) * unit if match and unit else None


def _name(element: Element) -> str:
    """Return an SVG element's name, "" for one of another kind. Many leave out the namespace."""
    return element.tag.removeprefix(_SVG) if element.tag[:1] != "{" or _SVG in element.tag else ""


def _shown(element: Element) -> str:
    return element.tag.rpartition("}")[2][:30]
