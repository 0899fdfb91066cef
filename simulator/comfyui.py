"""The routes of ComfyUI, under /comfyui and once more under /comfyui/api.

Nobody has to say who they are, as with the real server.

Source: ComfyUI v0.3.64, its server, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import io
import json
import mimetypes
import posixpath
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import BodyPartReader, web
from PIL import Image

from simulator import comfyui_nodes as nodes
from simulator.api import owner_of
from simulator.comfyui_engine import Client, Engine, Prompt, file_path
from simulator.faults import Rule
from simulator.outputs import cut_connection, in_drawing_thread, spoil
from simulator.state import STATE
from simulator.wire import html_page, json_response

VERSION = "0.3.64"
MEMORY_BYTES = 16 * 1024**3
PREFIXES = ("/comfyui", "/comfyui/api")
# What the folders used to be called.
OLD_FOLDERS = {"unet": "diffusion_models", "clip": "text_encoders"}

ENGINE = web.AppKey("comfyui", Engine)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def post_prompt(request: web.Request) -> web.StreamResponse:
    """Answer `POST /prompt`."""
    received_mono, state, engine = time.monotonic(), request.app[STATE], request.app[ENGINE]
    body = await _read(request)
    if not isinstance(body, dict):
        return _crash()
    workflow = body.get("prompt")
    if workflow is None:
        kind, text = "no_prompt", "No prompt provided"
        error = {"type": kind, "message": text, "details": text, "extra_info": {}}
        return json_response({"error": error, "node_errors": {}}, 400)
    if not isinstance(workflow, dict):
        return _crash()
    extra_data = {**(body.get("extra_data") or {})}
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    text = nodes.prompt_text(workflow)
    model_id = str(extra_data.get("model") or f"comfyui/{nodes.model_file(workflow)}")
    owner = owner_of(None, text, "") or str(extra_data.get("client_id") or "")
    entry = state.ledger.receive(owner, model_id, text, received_mono, "comfyui")

    refusal = state.faults.refusal(model_id, text)
    if refusal is not None and refusal.kind == "drop_create_before":
        entry.answer = "dropped"
        return cut_connection(request)
    if refusal is not None:
        entry.answer = refusal.options["status"]
        return _refusal(refusal)
    checked = nodes.check(workflow, engine.folders, body.get("partial_execution_targets"))
    if checked.error is not None:
        entry.answer = 400
        return json_response({"error": checked.error, "node_errors": checked.node_errors}, 400)
    faults = state.faults.for_prediction(model_id, text)
    pace = faults.get("pace")
    prompt = Prompt(
        number=float(body["number"])
        if "number" in body
        else engine.next_number(is_first=bool(body.get("front"))),
        id=str(body.get("prompt_id") or uuid.uuid4()),
        workflow=workflow,
        extra_data=extra_data,
        outputs=checked.outputs,
        owner=owner,
        model_id=model_id,
        prompt=text,
        run_s=engine.run_s(model_id) + (pace.options["seconds"] if pace else 0.0),
        faults=faults,
    )
    engine.put(prompt)
    entry.prediction, entry.answer = prompt, 200
    answer = faults.get("answer")
    if answer is not None and answer.kind == "drop_create_after":
        entry.answer = "dropped"
        return cut_connection(request, reset=True)
    if answer is not None:
        await asyncio.sleep(answer.options["seconds"])
    return json_response(
        {"prompt_id": prompt.id, "number": prompt.number, "node_errors": checked.node_errors}
    )


async def get_prompt(request: web.Request) -> web.StreamResponse:
    """Answer `GET /prompt`."""
    remaining = request.app[ENGINE].queue_remaining()
    return json_response({"exec_info": {"queue_remaining": remaining}})


async def get_history(request: web.Request) -> web.StreamResponse:
    """Answer `GET /history?max_items=&offset=`."""
    entries = list(request.app[ENGINE].history.items())
    count, offset = request.query.get("max_items"), int(request.query.get("offset", -1))
    if count is not None:
        # Without an offset, the newest.
        start = max(0, len(entries) - int(count)) if offset < 0 else offset
        entries = entries[start : start + int(count)]
    return json_response({prompt_id: prompt.entry() for prompt_id, prompt in entries})


async def get_history_of(request: web.Request) -> web.StreamResponse:
    """Answer `GET /history/{prompt_id}`: `{}` unless it has run."""
    engine, prompt_id = request.app[ENGINE], request.match_info["prompt_id"]
    done = engine.history.get(prompt_id)
    prompt = done or engine.under_way(prompt_id)
    if prompt is not None:
        prompt.gets += 1
        rule = prompt.faults.get("get")
        if rule is not None and rule.covers(prompt.gets):
            return _page(rule.options["status"])
    return json_response({prompt_id: done.entry()} if done else {})


async def change_history(request: web.Request) -> web.StreamResponse:
    """Answer `POST /history`."""
    body = await _read(request)
    if not isinstance(body, dict):
        return _crash()
    history = request.app[ENGINE].history
    if body.get("clear"):
        history.clear()
    for prompt_id in body.get("delete", ()):
        history.pop(prompt_id, None)
    return web.Response()


async def get_queue(request: web.Request) -> web.StreamResponse:
    """Answer `GET /queue`."""
    engine = request.app[ENGINE]
    refusal = request.app[STATE].faults.list_refusal()
    if refusal is not None:
        return _page(refusal.options["status"])
    running = [engine.running.item()] if engine.running else []
    pending = [prompt.item() for prompt in engine.pending()]
    return json_response({"queue_running": running, "queue_pending": pending})


async def change_queue(request: web.Request) -> web.StreamResponse:
    """Answer `POST /queue`; only what waits is deleted."""
    body = await _read(request)
    if not isinstance(body, dict):
        return _crash()
    engine = request.app[ENGINE]
    if body.get("clear"):
        engine.delete(None)
    wanted = {str(prompt_id) for prompt_id in body.get("delete", ())}
    for prompt_id in set(wanted):
        prompt = engine.under_way(prompt_id)
        if prompt is None or prompt is engine.running:
            continue
        response = _cancel_fault(request, prompt)
        if response is not None:
            return response
        if "cancel" in prompt.faults and prompt.faults["cancel"].kind == "cancel_ignored":
            wanted.discard(prompt_id)
    engine.delete(wanted)
    return web.Response()


async def interrupt(request: web.Request) -> web.StreamResponse:
    """Answer `POST /interrupt`: of one prompt, or of whichever runs."""
    engine, body = request.app[ENGINE], await _read(request)
    prompt_id = body.get("prompt_id") if isinstance(body, dict) else None
    running = engine.running
    if running is not None and prompt_id in (None, running.id):
        response = _cancel_fault(request, running)
        if response is not None:
            return response
        if "cancel" in running.faults and running.faults["cancel"].kind == "cancel_ignored":
            return web.Response()
    engine.interrupt(prompt_id)
    return web.Response()


async def view(request: web.Request) -> web.StreamResponse:
    """Answer `GET /view?filename=&subfolder=&type=&preview=&channel=`."""
    engine, query = request.app[ENGINE], request.query
    filename, kind = query.get("filename", ""), query.get("type", "output")
    if not filename:
        return web.Response(status=404)
    if filename.startswith("/") or ".." in filename or kind not in ("input", "output", "temp"):
        return web.Response(status=400)
    subfolder = query.get("subfolder", "")
    if posixpath.normpath(posixpath.join("/root", subfolder)).split("/")[1] != "root":
        return web.Response(status=403)
    path = file_path(subfolder, posixpath.basename(filename))
    if kind == "input":
        data = engine.folders.input.get(path)
        return web.Response(status=404) if data is None else _file(data, filename)
    picture = (engine.folders.output if kind == "output" else engine.folders.temp).get(path)
    prompt = engine.owners_of_files.get(path)
    if picture is None or (prompt is not None and _is_expired(prompt)):
        return web.Response(status=404)
    rule = prompt.faults.get("file") if prompt else None
    if rule is not None and prompt is not None:
        prompt.file_hits[path] += 1
        if rule.covers(prompt.file_hits[path]):

            async def draw(image_format: str) -> bytes:
                return await in_drawing_thread(_converted, picture.png, image_format)

            return await spoil(request, rule, draw, "png")
    if "preview" in query:
        image_format = query["preview"].partition(";")[0]
        image_format = image_format if image_format in ("webp", "jpeg") else "webp"
        data = await in_drawing_thread(_converted, picture.png, image_format)
        return _file(data, filename, f"image/{image_format}")
    if query.get("channel") == "rgb":
        return _file(await in_drawing_thread(_converted, picture.png, "png", "rgb"), filename)
    return _file(await in_drawing_thread(picture.png), filename)


async def upload_image(request: web.Request) -> web.StreamResponse:
    """Answer `POST /upload/image`."""
    if not request.content_type.startswith("multipart/"):
        return web.Response(status=400)
    rule = request.app[STATE].faults.upload_refusal()
    fields: dict[str, str] = {}
    data, filename = b"", ""
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue
        if part.name == "image" and part.filename:
            data, filename = bytes(await part.read()), part.filename
        elif part.name:
            fields[part.name] = await part.text()
    if rule is not None:
        return _page(rule.options["status"])
    folder, subfolder = fields.get("type", "input"), fields.get("subfolder", "")
    where = posixpath.normpath(posixpath.join("/root", subfolder, filename))
    if not filename or folder != "input" or not where.startswith("/root/"):
        return web.Response(status=400)
    files = request.app[ENGINE].folders.input
    directory, name = posixpath.split(where.removeprefix("/root/"))
    stem, extension = posixpath.splitext(name)
    number = 0
    # A file of that name with the same bytes is that file.
    while fields.get("overwrite") not in ("true", "1") and (
        files.get(file_path(directory, name), data) != data
    ):
        number += 1
        name = f"{stem} ({number}){extension}"
    files[file_path(directory, name)] = data
    return json_response({"name": name, "subfolder": subfolder, "type": folder})


async def get_object_info(request: web.Request) -> web.StreamResponse:
    """Answer `GET /object_info` and `GET /object_info/{class}`; `{}` for an unknown one."""
    folders, wanted = request.app[ENGINE].folders, request.match_info.get("class")
    return json_response(
        {
            name: node.info(name, folders)
            for name, node in nodes.NODES.items()
            if wanted in (None, name)
        }
    )


async def get_models(request: web.Request) -> web.StreamResponse:
    """Answer `GET /models` and `GET /models/{folder}`."""
    folder = request.match_info.get("folder")
    if folder is None:
        return json_response(list(nodes.MODEL_FILES))
    files = nodes.MODEL_FILES.get(OLD_FOLDERS.get(folder, folder))
    return web.Response(status=404) if files is None else json_response(files)


async def get_system_stats(request: web.Request) -> web.StreamResponse:
    """Answer `GET /system_stats`."""
    memory = {"vram_total": MEMORY_BYTES, "vram_free": MEMORY_BYTES}
    memory |= {"torch_vram_total": MEMORY_BYTES, "torch_vram_free": MEMORY_BYTES}
    system = {
        "os": "posix",
        "ram_total": MEMORY_BYTES,
        "ram_free": MEMORY_BYTES,
        "comfyui_version": VERSION,
        "required_frontend_version": "1.27.10",
        "python_version": sys.version,
        "pytorch_version": "2.8.0+cpu",
        "embedded_python": False,
        "argv": ["main.py", "--cpu"],
    }
    device = {"name": "cpu", "type": "cpu", "index": None, **memory}
    return json_response({"system": system, "devices": [device]})


async def free(request: web.Request) -> web.StreamResponse:
    """Answer `POST /free`."""
    body = await _read(request)
    if isinstance(body, dict) and body.get("free_memory"):
        request.app[ENGINE].free()
    return web.Response()


async def listen(request: web.Request) -> web.StreamResponse:
    """Answer `GET /ws?clientId=`."""
    engine, socket = request.app[ENGINE], web.WebSocketResponse()
    await socket.prepare(request)
    assert request.transport is not None
    client = Client(socket, request.transport)
    client_id = request.query.get("clientId") or uuid.uuid4().hex
    engine.greet(client_id, client)
    try:
        async for _ in socket:
            pass
    finally:
        if engine.clients.get(client_id) is client:
            del engine.clients[client_id]
    return socket


async def restart(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/comfyui/restart`: the server loses what it has in memory."""
    await request.app[ENGINE].restart()
    return web.Response(status=204)


async def get_input_files(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/comfyui/inputs`: the paths of the uploaded files."""
    return json_response({"files": sorted(request.app[ENGINE].folders.input)})


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/prompt", post_prompt),
    ("GET", "/prompt", get_prompt),
    ("GET", "/history", get_history),
    ("POST", "/history", change_history),
    ("GET", "/history/{prompt_id}", get_history_of),
    ("GET", "/queue", get_queue),
    ("POST", "/queue", change_queue),
    ("POST", "/interrupt", interrupt),
    ("GET", "/view", view),
    ("POST", "/upload/image", upload_image),
    ("GET", "/object_info", get_object_info),
    ("GET", "/object_info/{class}", get_object_info),
    ("GET", "/models", get_models),
    ("GET", "/models/{folder}", get_models),
    ("GET", "/system_stats", get_system_stats),
    ("POST", "/free", free),
    ("GET", "/ws", listen),
)


def mount(app: web.Application) -> None:
    """Add the server and its routes."""
    state = app[STATE]
    engine = Engine(state)
    app[ENGINE] = engine
    state.parts.append(engine)
    for prefix in PREFIXES:
        for method, path, handler in ROUTES:
            app.router.add_route(method, prefix + path, handler)
    app.router.add_post("/_sim/comfyui/restart", restart)
    app.router.add_get("/_sim/comfyui/inputs", get_input_files)


async def _read(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError:
        return None


def _crash() -> web.Response:
    """Answer as the server does when its own code fails, on a body that is no JSON for example."""
    text = "500 Internal Server Error\n\nServer got itself in trouble"
    return web.Response(status=500, text=text)


def _page(status: int) -> web.Response:
    # Errors of the server itself are plain text; these come from in front of it.
    return _crash() if status == 500 else html_page(status)


def _refusal(rule: Rule) -> web.Response:
    status, retry_after = rule.options["status"], rule.options["retry_after"]
    response = _page(status)
    if rule.options["body"] is not None:
        content_type = rule.options["content_type"] or "application/json"
        text = rule.options["body"]
        response = web.Response(text=text, status=status, content_type=content_type)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def _cancel_fault(request: web.Request, prompt: Prompt) -> web.StreamResponse | None:
    prompt.cancels += 1
    rule = prompt.faults.get("cancel")
    if rule is None or not rule.covers(prompt.cancels):
        return None
    if rule.kind == "cancel_status":
        return _page(rule.options["status"])
    if rule.kind == "drop_cancel":
        return cut_connection(request, reset=True)
    return None


def _is_expired(prompt: Prompt) -> bool:
    rule = prompt.faults.get("data")
    if rule is None or prompt.ended_mono is None:
        return False
    return time.monotonic() >= prompt.ended_mono + float(rule.options["seconds"])


def _file(data: bytes, filename: str, content_type: str = "") -> web.Response:
    guessed = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    headers = {"Content-Disposition": f'filename="{posixpath.basename(filename)}"'}
    return web.Response(body=data, content_type=content_type or guessed, headers=headers)


def _converted(png: Callable[[], bytes], image_format: str, channels: str = "rgba") -> bytes:
    if (image_format, channels) == ("png", "rgba"):
        return png()
    with Image.open(io.BytesIO(png())) as source:
        image = source.convert("RGB") if channels == "rgb" or image_format != "png" else source
        buffer = io.BytesIO()
        image.save(buffer, format={"jpg": "JPEG"}.get(image_format, image_format.upper()))
    return buffer.getvalue()
