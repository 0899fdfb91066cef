"""The routes under /v1.

Source: Replicate HTTP API, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from aiohttp import web

from simulator.faults import Rule
from simulator.ledger import CreateRequest
from simulator.models import Model
from simulator.outputs import cut_connection
from simulator.predictions import PAGE_SIZE, Order, Prediction
from simulator.state import STATE, State
from simulator.uploads import UploadError
from simulator.webhooks import DEFAULT_EVENTS, EVENTS
from simulator.wire import (
    InvalidField,
    html_page,
    invalid_input,
    json_response,
    parse_cancel_after,
    parse_prefer,
    parse_rfc3339,
    problem,
    throttled,
)

DEFAULT_RETRY_TEXT_S = 30.0
SCHEMA_DATE = "2026-11-20T00:00:00.000000Z"
COG_VERSION = "0.16.0"

_CREATE_KEYS: dict[str, tuple[type, str]] = {
    "input": (dict, "object"),
    "webhook": (str, "string"),
    "webhook_events_filter": (list, "array"),
    "stream": (bool, "boolean"),
}


def token_of(request: web.Request) -> str:
    """Return the API token of a request, or an empty string."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme in ("Bearer", "Token") else ""


async def create_by_model(request: web.Request) -> web.StreamResponse:
    """Answer `POST /v1/models/{owner}/{name}/predictions`, for official models."""
    model = request.app[STATE].models.named(_model_id(request))
    return await _create(request, model if model and model.is_official else None)


async def create_by_deployment(request: web.Request) -> web.StreamResponse:
    """Answer `POST /v1/deployments/{owner}/{name}/predictions`."""
    info = request.match_info
    model = request.app[STATE].models.deployed(info["owner"], info["name"])
    return await _create(request, model, deployment=_model_id(request))


async def create_by_version(request: web.Request) -> web.StreamResponse:
    """Answer `POST /v1/predictions`, where the body names the version."""
    return await _create(request, None, by_version=True)


async def get_prediction(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/predictions/{id}`."""
    state = request.app[STATE]
    prediction = state.predictions.get(request.match_info["id"])
    if prediction is None:
        return problem(404)
    prediction.gets += 1
    rule = prediction.order.faults.get("get")
    if rule is not None and rule.covers(prediction.gets):
        return _refuse(rule.options["status"])
    return json_response(prediction.as_json(state.base_url(request), time.monotonic()))


async def cancel_prediction(request: web.Request) -> web.StreamResponse:
    """Answer `POST /v1/predictions/{id}/cancel`."""
    state = request.app[STATE]
    prediction = state.predictions.get(request.match_info["id"])
    if prediction is None:
        return problem(404)
    prediction.cancels += 1
    rule = prediction.order.faults.get("cancel")
    if rule is None or not rule.covers(prediction.cancels):
        state.predictions.cancel(prediction)
    elif rule.kind == "cancel_status":
        return _refuse(rule.options["status"])
    elif rule.kind == "drop_cancel":
        return cut_connection(request, reset=True)
    return json_response(prediction.as_json(state.base_url(request), time.monotonic()))


async def list_predictions(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/predictions`, newest first, in pages linked by cursors."""
    state, query = request.app[STATE], request.query
    refusal = state.faults.list_refusal()
    if refusal is not None:
        return _refuse(refusal.options["status"])
    try:
        after_ns = parse_rfc3339(query["created_after"]) if "created_after" in query else 0
        before_ns = parse_rfc3339(query["created_before"]) if "created_before" in query else None
        direction, number = _parse_cursor(query.get("cursor"))
    except ValueError as error:
        return problem(422, f"- {error}\n")

    def listed(prediction: Prediction) -> bool:
        if "list" in prediction.order.faults:
            return False
        created_ns = prediction.created_wall_ns
        return after_ns <= created_ns and (before_ns is None or created_ns < before_ns)

    # Everything the simulator runs came through the API.
    if query.get("source", "api") != "api":
        page, has_older, has_newer = [], False, False
    elif direction == "newer" and number is not None:
        found = list(islice(filter(listed, state.predictions.newer_than(number)), PAGE_SIZE + 1))
        page, has_older, has_newer = found[:PAGE_SIZE][::-1], True, len(found) > PAGE_SIZE
    else:
        found = list(islice(filter(listed, state.predictions.older_than(number)), PAGE_SIZE + 1))
        page, has_older, has_newer = found[:PAGE_SIZE], len(found) > PAGE_SIZE, number is not None

    base_url, now_mono = state.base_url(request), time.monotonic()

    def link(direction: str, number: int) -> str:
        cursor = base64.urlsafe_b64encode(f"{direction}:{number}".encode()).decode()
        return f"{base_url}/v1/predictions?{urlencode({**query, 'cursor': cursor})}"

    return json_response(
        {
            "next": link("older", page[-1].number) if page and has_older else None,
            "previous": link("newer", page[0].number) if page and has_newer else None,
            "results": [prediction.as_json(base_url, now_mono) for prediction in page],
        }
    )


async def get_webhook_secret(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/webhooks/default/secret`."""
    return json_response({"key": request.app[STATE].webhook_secret})


async def get_account(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/account`."""
    return json_response(
        {
            "type": "organization",
            "username": "simulated",
            "name": "Simulated account",
            "github_url": None,
            "avatar_url": None,
        }
    )


async def get_model(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/models/{owner}/{name}`."""
    state = request.app[STATE]
    model = state.models.named(_model_id(request))
    if model is None:
        return problem(404)
    owner, name = model.id.split("/")
    return json_response(
        {
            "url": f"{state.base_url(request)}/{model.id}",
            "owner": owner,
            "name": name,
            "description": "Simulated",
            "visibility": "public",
            "is_official": model.is_official,
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": 0,
            "cover_image_url": None,
            "default_example": None,
            "latest_version": _version_json(model),
        }
    )


async def list_versions(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/models/{owner}/{name}/versions`."""
    model = request.app[STATE].models.named(_model_id(request))
    if model is None:
        return problem(404)
    results = [] if model.is_official else [_version_json(model)]
    return json_response({"next": None, "previous": None, "results": results})


async def get_version(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/models/{owner}/{name}/versions/{version}`."""
    model = request.app[STATE].models.named(_model_id(request))
    if model is None or model.version_id != request.match_info["version"]:
        return problem(404)
    return json_response(_version_json(model))


async def create_file(request: web.Request) -> web.StreamResponse:
    """Answer `POST /v1/files`."""
    state = request.app[STATE]
    refusal = state.faults.upload_refusal()
    if refusal is not None:
        return _refuse(refusal.options["status"])
    try:
        upload = await state.uploads.receive(request)
    except UploadError as error:
        return error.response
    return json_response(upload.as_json(state.base_url(request)), 201)


async def list_files(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/files`."""
    state = request.app[STATE]
    base_url = state.base_url(request)
    results = [upload.as_json(base_url) for upload in state.uploads.newest_first()]
    return json_response({"next": None, "previous": None, "results": results})


async def get_file(request: web.Request) -> web.StreamResponse:
    """Answer `GET /v1/files/{id}`."""
    state = request.app[STATE]
    upload = state.uploads.get(request.match_info["id"])
    return (
        problem(404) if upload is None else json_response(upload.as_json(state.base_url(request)))
    )


async def delete_file(request: web.Request) -> web.StreamResponse:
    """Answer `DELETE /v1/files/{id}`."""
    deleted = request.app[STATE].uploads.delete(request.match_info["id"])
    return web.Response(status=204) if deleted else problem(404)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_post("/v1/predictions", create_by_version)
    app.router.add_get("/v1/predictions", list_predictions)
    app.router.add_get("/v1/predictions/{id}", get_prediction)
    app.router.add_post("/v1/predictions/{id}/cancel", cancel_prediction)
    app.router.add_post("/v1/models/{owner}/{name}/predictions", create_by_model)
    app.router.add_post("/v1/deployments/{owner}/{name}/predictions", create_by_deployment)
    app.router.add_get("/v1/models/{owner}/{name}", get_model)
    app.router.add_get("/v1/models/{owner}/{name}/versions", list_versions)
    app.router.add_get("/v1/models/{owner}/{name}/versions/{version}", get_version)
    app.router.add_get("/v1/webhooks/default/secret", get_webhook_secret)
    app.router.add_get("/v1/account", get_account)
    app.router.add_post("/v1/files", create_file)
    app.router.add_get("/v1/files", list_files)
    app.router.add_get("/v1/files/{id}", get_file)
    app.router.add_delete("/v1/files/{id}", delete_file)


async def _create(
    request: web.Request,
    model: Model | None,
    *,
    by_version: bool = False,
    deployment: str | None = None,
) -> web.StreamResponse:
    received_mono, state = time.monotonic(), request.app[STATE]
    try:
        body = json.loads(await request.read())
    except ValueError:
        return problem(400, "The request body is not valid JSON.")
    if not isinstance(body, dict):
        return problem(400, "The request body must be a JSON object.")
    if by_version and isinstance(body.get("version"), str):
        model = state.models.versioned(body["version"])
    prompt = _prompt_of(body)
    entry = state.ledger.receive(
        owner=owner_of(body.get("webhook"), prompt, state.settings.owner_parameter),
        model_id=model.id if model else "",
        prompt=prompt,
        received_mono=received_mono,
    )
    response = await _answer_create(request, entry, body, model, by_version, deployment)
    if entry.answer is None:
        entry.answer = response.status
    return response


async def _answer_create(
    request: web.Request,
    entry: CreateRequest,
    body: dict[str, Any],
    model: Model | None,
    by_version: bool,
    deployment: str | None,
) -> web.StreamResponse:
    state = request.app[STATE]
    pause_s = state.throttle(token_of(request))
    if pause_s > 0:
        whole_s = math.ceil(min(pause_s, 3600))
        return throttled(whole_s, {"Retry-After": str(whole_s)})
    refusal = state.faults.refusal(entry.model_id, entry.prompt)
    if refusal is not None:
        if refusal.kind == "drop_create_before":
            entry.answer = "dropped"
            return cut_connection(request)
        return _refuse_create(refusal)

    if model is None and not by_version:
        return problem(404)
    invalid = _faults_of_body(body, by_version=by_version)
    if invalid:
        return invalid_input(invalid)
    if model is None:
        text = (
            "The specified version does not exist (or perhaps you don't have permission to use it?)"
        )
        return problem(422, text, title="Invalid version or not permitted")
    invalid = model.faults_of(body["input"])
    if invalid:
        return invalid_input(invalid)
    try:
        wait_s = parse_prefer(request.headers.get("Prefer"))
        cancel_after_s = parse_cancel_after(
            request.headers.get("Cancel-After"), state.settings.cancel_after_min_seconds
        )
    except ValueError as error:
        return problem(422, f"- {error}\n")

    events = body.get("webhook_events_filter")
    order = Order(
        model=model,
        input=body["input"],
        owner=entry.owner,
        token_suffix=token_of(request)[-4:],
        base_url=state.base_url(request),
        webhook=body.get("webhook"),
        events=DEFAULT_EVENTS if events is None else frozenset(events),
        deployment=deployment,
        cancel_after_s=None
        if cancel_after_s is None
        else cancel_after_s * state.settings.cancel_after_factor,
        faults=state.faults.for_prediction(model.id, entry.prompt),
    )
    prediction = state.predictions.create(order)
    entry.prediction = prediction
    answer = order.faults.get("answer")
    if answer is not None and answer.kind == "drop_create_after":
        entry.answer = "dropped"
        return cut_connection(request, reset=True)
    if answer is not None:
        await asyncio.sleep(answer.options["seconds"])
    return await _answer_created(state, prediction, wait_s)


async def _answer_created(
    state: State, prediction: Prediction, wait_s: float | None
) -> web.StreamResponse:
    in_time = wait_s is None or await state.predictions.wait(prediction, wait_s)
    body = prediction.as_json(prediction.order.base_url, time.monotonic())
    if not in_time:
        # What the waiting request knows is as old as the prediction.
        body["status"] = "starting"
        return json_response(body, 202)
    if wait_s and prediction.status == "succeeded" and state.settings.wait_says_processing:
        body["status"] = "processing"
    return json_response(body, 201)


def _model_id(request: web.Request) -> str:
    return f"{request.match_info['owner']}/{request.match_info['name']}"


def _prompt_of(body: dict[str, Any]) -> str:
    values = body.get("input")
    prompt = values.get("prompt") if isinstance(values, dict) else None
    return prompt if isinstance(prompt, str) else ""


def owner_of(webhook: Any, prompt: str, parameter: str) -> str:
    """Return whose work it is: from the webhook URL, else from a prompt like `[alice] a cat`."""
    if isinstance(webhook, str):
        owners = parse_qs(urlsplit(webhook).query).get(parameter)
        if owners:
            return owners[0]
    if prompt.startswith("[") and "]" in prompt:
        return prompt[1 : prompt.index("]")]
    return ""


def _faults_of_body(body: dict[str, Any], *, by_version: bool) -> list[InvalidField]:
    kinds = {"version": (str, "string"), **_CREATE_KEYS} if by_version else _CREATE_KEYS
    required = [name for name in ("version", "input") if name in kinds and name not in body]
    invalid = [InvalidField("required", "", f"{name} is required") for name in required]
    for name, value in body.items():
        if name not in kinds:
            text = f"Additional property {name} is not allowed"
            invalid.append(InvalidField("additional_property_not_allowed", "", text))
        elif not isinstance(value, kinds[name][0]):
            text = f"Invalid type. Expected: {kinds[name][1]}"
            invalid.append(InvalidField("invalid_type", name, text))
    webhook, events = body.get("webhook"), body.get("webhook_events_filter")
    if isinstance(webhook, str) and not webhook.startswith(("https://", "http://")):
        invalid.append(InvalidField("format", "webhook", "Does not match format 'uri'"))
    if isinstance(events, list) and any(event not in EVENTS for event in events):
        text = f"Items must be one of the following: {', '.join(EVENTS)}"
        invalid.append(InvalidField("enum", "webhook_events_filter", text))
    return invalid


def _refuse_create(rule: Rule) -> web.StreamResponse:
    status, retry_after = rule.options["status"], rule.options["retry_after"]
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if rule.options["body"] is not None:
        content_type = rule.options["content_type"] or "application/json"
        text = rule.options["body"]
        return web.Response(text=text, status=status, headers=headers, content_type=content_type)
    response = _refuse(status, retry_after)
    response.headers.update(headers)
    return response


def _refuse(status: int, retry_after: str | float | None = None) -> web.Response:
    """Answer with the body that is usual for `status`."""
    if status == 429:
        try:
            pause_s = DEFAULT_RETRY_TEXT_S if retry_after is None else float(retry_after)
        except ValueError:
            pause_s = DEFAULT_RETRY_TEXT_S
        return throttled(pause_s)
    if status == 422:
        return invalid_input([InvalidField("required", "input", "prompt is required")])
    return html_page(status) if status > 500 else problem(status)


def _parse_cursor(cursor: str | None) -> tuple[str, int | None]:
    if cursor is None:
        return "older", None
    direction, _, number = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
    if direction not in ("older", "newer"):
        raise ValueError("cursor is not valid")
    return direction, int(number)


def _version_json(model: Model) -> dict[str, Any]:
    return {
        "id": model.version_id,
        "created_at": SCHEMA_DATE,
        "cog_version": COG_VERSION,
        "openapi_schema": model.openapi_schema(),
    }
