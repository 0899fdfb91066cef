"""Serve the output files of predictions, with the faults asked for."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp import web

from simulator import hostile
from simulator.faults import Rule
from simulator.images import CONTENT_TYPES, render
from simulator.predictions import Prediction
from simulator.state import STATE
from simulator.wire import html_page, problem

# Files with PNG bytes, and the headers that go with them. The gzip comes unasked.
_HOSTILE_PNGS: dict[str, tuple[Callable[[], bytes], dict[str, str]]] = {
    "gzip_bomb": (hostile.gzip_bomb, {"Content-Encoding": "gzip"}),
    "huge_png": (hostile.huge_png, {}),
}

# Drawing takes some milliseconds of processor time; two threads leave the event loop free
# without taking all processors from whatever is measured beside the simulator.
_DRAWING = ThreadPoolExecutor(max_workers=2, thread_name_prefix="draw")


def cut_connection(request: web.Request, *, reset: bool = False) -> web.Response:
    """Close the connection at once; return a response that goes nowhere.

    reset: the peer gets a TCP reset, and what was not delivered yet is lost.
    """
    if request.transport is not None:
        if reset:
            linger_none = struct.pack("ii", 1, 0)
            sock = request.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        request.transport.abort()
    return web.Response()


async def get_output(request: web.Request) -> web.StreamResponse:
    """Answer `GET /files/out/{prediction id}/{n}.{ext}`."""
    prediction = request.app[STATE].predictions.get(request.match_info["id"])
    name = request.match_info["name"]
    if prediction is None or prediction.is_removed(time.monotonic()):
        return problem(404)
    names = prediction.image_names()
    if name not in names:
        return problem(404)
    index, image_format = names.index(name), name.rpartition(".")[2]
    rule = prediction.order.faults.get("file")
    if rule is not None:
        prediction.file_hits[index] += 1
        if rule.covers(prediction.file_hits[index]):
            return await spoil(request, rule, partial(_draw, prediction, index), image_format)
    body = await _draw(prediction, index, image_format)
    return web.Response(body=body, content_type=CONTENT_TYPES[image_format])


async def _draw(prediction: Prediction, index: int, image_format: str) -> bytes:
    model = prediction.order.model
    width_px, height_px = model.size_px(prediction.order.input)
    return await in_drawing_thread(
        render,
        prediction.prompt,
        prediction.seed + index,
        model.id,
        width_px,
        height_px,
        image_format,
    )


async def in_drawing_thread(make: Callable[..., bytes], *args: object) -> bytes:
    """Return what `make` makes, without holding up the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_DRAWING, make, *args)


async def spoil(
    request: web.Request,
    rule: Rule,
    draw: Callable[[str], Awaitable[bytes]],
    image_format: str,
) -> web.StreamResponse:
    """Answer with an output file as `rule` has it; `draw` gives the image in a format."""
    if rule.kind == "file_status":
        status = rule.options["status"]
        return html_page(status) if status >= 500 else problem(status)
    if rule.kind == "file_redirect":
        return web.Response(status=302, headers={"Location": rule.options["location"]})
    if rule.kind == "svg_script":
        return web.Response(body=hostile.SVG_SCRIPT, content_type=CONTENT_TYPES["svg"])
    if rule.kind == "polyglot":
        body = hostile.polyglot(await draw("jpg"))
        return web.Response(body=body, content_type=CONTENT_TYPES["jpg"])
    if rule.kind in _HOSTILE_PNGS:
        make, headers = _HOSTILE_PNGS[rule.kind]
        # Making one takes up to a second, the first time.
        body = await in_drawing_thread(make)
        return web.Response(body=body, headers=headers, content_type=CONTENT_TYPES["png"])

    body, content_type = await draw(image_format), CONTENT_TYPES[image_format]
    half = body[: len(body) // 2]
    if rule.kind == "truncated_file":
        return web.Response(body=half, content_type=content_type)
    if rule.kind == "wrong_type":
        page = b"<!DOCTYPE html><html><body><p>This is no image.</p></body></html>"
        return web.Response(body=page, content_type=content_type)
    if rule.kind == "empty_file":
        return web.Response(body=b"", content_type=content_type)
    headers = {"Content-Type": content_type, "Content-Length": str(len(body))}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if rule.kind == "drop_file":
        await response.write(half)
        return cut_connection(request)
    for offset in range(len(body)):
        await response.write(body[offset : offset + 1])
        await asyncio.sleep(rule.options["seconds"])
    return response
