"""The worker behind a RunPod endpoint: worker-comfyui, from a job's input to its output.

Source: runpod-workers/worker-comfyui 5.x, its handler, read 2026-11-20.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from simulator import comfyui_nodes as nodes
from simulator import hostile
from simulator.faults import INTERRUPTED_TEXT, Rule

VERSION = "1.12.0"
NOT_REACHABLE = "ComfyUI server (127.0.0.1:8188) not reachable after multiple retries."
HTML_PAGE = b"<!DOCTYPE html><html><body><p>This is no image.</p></body></html>"
# A wrong file by the kind of fault, made from the right one.
_SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "truncated_file": lambda data: data[: len(data) // 2],
    "wrong_type": lambda data: HTML_PAGE,
    "empty_file": lambda data: b"",
    "huge_png": lambda data: hostile.huge_png(),
    "polyglot": hostile.polyglot,
    "svg_script": lambda data: hostile.SVG_SCRIPT,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run: files by name, or an `error`; `notes` are its details or warnings."""

    files: tuple[tuple[str, nodes.Picture], ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """How an output is written: as `images`, `message`, `json` or `list`; see `write_output`."""

    name: str = "images"
    # Base of the bucket's addresses; "" for base64.
    bucket_url: str = ""
    faults: dict[str, Rule] = field(default_factory=dict)


def prompt_of(job_input: Any) -> str:
    """Return the text of the workflow in an input, else the name of its files, else ""."""
    workflow = job_input.get("workflow") if isinstance(job_input, dict) else None
    if not isinstance(workflow, dict):
        return ""
    text = nodes.prompt_text(workflow)
    for node in workflow.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not text and isinstance(inputs, dict):
            text = str(inputs.get("filename_prefix", ""))
    return text


def received_images(job_input: dict[str, Any]) -> list[dict[str, str]]:
    """Return name and SHA-256 of each file that came with a job, of those that can be read."""
    images: Any = job_input.get("images")
    if not _are_images(images):
        return []
    found = []
    for entry in images:
        with suppress(binascii.Error):
            digest = hashlib.sha256(_decoded(entry)).hexdigest()
            found.append({"name": entry["name"], "sha256": digest})
    return found


def run(job_input: dict[str, Any]) -> Result:
    """Do a job as the handler does, at once."""
    workflow, images = job_input.get("workflow"), job_input.get("images")
    if workflow is None:
        return Result(error="Missing 'workflow' parameter")
    if images is not None and not _are_images(images):
        text = "'images' must be a list of objects with 'name' and 'image' keys"
        return Result(error=text)
    if not isinstance(workflow, dict):
        return Result(error="ComfyUI validation failed (could not parse error response): ")
    folders, problems = nodes.Folders(), []
    for entry in images or ():
        try:
            folders.input[entry["name"]] = _decoded(entry)
        except binascii.Error as error:
            problems.append(f"Error decoding base64 for {entry['name']}: {error}")
    if problems:
        text = "Failed to upload one or more input images"
        return Result(error=text, notes=tuple(problems))
    # The check may change numbers in place, and a job can be run again.
    return _run_workflow(copy.deepcopy(workflow), folders)


def _run_workflow(workflow: dict[str, Any], folders: nodes.Folders) -> Result:
    checked = nodes.check(workflow, folders)
    if checked.error is not None:
        return Result(error=_refusal(checked))
    try:
        made = nodes.run_all(workflow, checked.outputs, folders)
    except nodes.NodeFailure as failure:
        note = f"Workflow execution error: Message: {failure.kind}: {failure.message}"
        return Result(error="Job processing failed", notes=(note,))
    files = []
    for images in made.values():
        for image in images:
            if image["type"] == "output":
                path = f"{image['subfolder']}/{image['filename']}".lstrip("/")
                files.append((image["filename"], folders.output[path]))
    return Result(tuple(files))


def _refusal(checked: nodes.Checked) -> str:
    """Return the text of the exception that the handler raises for a 400 of ComfyUI."""
    assert checked.error is not None
    message = checked.error["message"]
    if checked.error["type"] == "prompt_outputs_failed_validation":
        message = "Workflow validation failed"
    lines = [
        f"• Node {node_id} ({key}): {value}"
        for node_id, entry in checked.node_errors.items()
        for key, value in entry.items()
    ]
    if lines:
        return "\n".join((f"{message}:", *lines))
    return f"{message}. Raw response: {json.dumps({'error': checked.error, 'node_errors': {}})}"


def exception_text(message: str) -> str:
    """Return what a job's `error` holds when the handler raised.

    Source: PyPI runpod 1.12.0, run 2026-11-20.
    """
    return json.dumps(
        {
            "error_type": "<class 'RuntimeError'>",
            "error_message": message,
            "error_traceback": "Traceback (most recent call last):\n"
            '  File "/handler.py", line 1, in handler\n    secret_of_the_worker()\n'
            f"RuntimeError: {message}\n",
            "hostname": "simulated-64410c52",
            "worker_id": "simulated",
            "runpod_version": VERSION,
        }
    )


def fault_text(rule: Rule) -> str:
    """Return the `error` that a rule of the group `run` asks for."""
    text = str(rule.options["error"])
    if text == INTERRUPTED_TEXT:
        return NOT_REACHABLE  # the worker's own words, which are no exception
    return text if text.startswith("{") else exception_text(text)


def write_output(result: Result, form: Form) -> Any:
    """Write the output of a job without an error.

    images   {"images": [{"filename", "type", "data"}], "errors": [...]}
    message  {"status": "success", "message": data}, as workers before version 5
    json     the first as text
    list     its images alone, as data URIs or URLs
    """
    names, notes = list(result.files), list(result.notes)
    fault = form.faults.get("output")
    if fault is not None and fault.kind == "empty_output":
        if fault.options["null"]:
            return None
        names = []
    elif fault is not None and fault.kind == "short_output":
        count = fault.options["count"]
        kept = max(1, len(names) - 1) if count is None else count
        notes += [
            f"Failed to fetch image data for {name} from /view endpoint."
            for name, _ in names[kept:]
        ]
        names = names[:kept]
    images = [_image(index, name, picture, form) for index, (name, picture) in enumerate(names)]
    if form.name == "message" or (fault is not None and fault.kind == "string_output"):
        return {"status": "success", "message": images[0]["data"] if images else ""}
    if form.name == "list":
        return [
            i["data"] if i["type"] == "s3_url" else f"data:image/png;base64,{i['data']}"
            for i in images
        ]
    output: dict[str, Any] = {"images": images}
    if notes:
        output["errors"] = notes
    if not images and not notes:
        output["status"] = "success_no_images"
    return json.dumps(output) if form.name == "json" else output


def _image(index: int, name: str, picture: nodes.Picture, form: Form) -> dict[str, str]:
    fault = form.faults.get("output")
    bucket_url = form.bucket_url
    if fault is not None and fault.kind == "foreign_host":
        bucket_url = fault.options["base_url"]
    if bucket_url:
        return {"filename": name, "type": "s3_url", "data": f"{bucket_url}/{index}.png"}
    data = base64.b64encode(content(picture, form.faults.get("file"))).decode()
    return {"filename": name, "type": "base64", "data": data}


def content(picture: nodes.Picture, rule: Rule | None) -> bytes:
    """Return the bytes of a file, spoilt as a rule of the group `file` says."""
    data = picture.png()
    spoil = _SPOILT.get(rule.kind) if rule is not None else None
    return spoil(data) if spoil else data


def _decoded(entry: dict[str, str]) -> bytes:
    """Return the bytes of a file in an input, which may be a data URI."""
    return base64.b64decode(entry["image"].partition(",")[2] or entry["image"])


def _are_images(images: Any) -> bool:
    return isinstance(images, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("image"), str)
        for entry in images
    )
