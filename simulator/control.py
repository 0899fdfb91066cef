"""The routes under /_sim, by which tests and benchmarks steer the simulator and read its books.

They need no token and answer the machine the simulator runs on only.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from simulator.state import STATE
from simulator.webhooks import parse_replay
from simulator.wire import json_response, problem


async def add_fault(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/faults`."""
    try:
        rule = request.app[STATE].faults.add(await _read_object(request))
    except ValueError as error:
        return problem(400, str(error))
    return json_response(rule.as_json(), 201)


async def list_faults(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/faults`."""
    return json_response({"faults": request.app[STATE].faults.as_json()})


async def clear_faults(request: web.Request) -> web.StreamResponse:
    """Answer `DELETE /_sim/faults`."""
    request.app[STATE].faults.clear()
    return web.Response(status=204)


async def get_settings(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/settings`."""
    return json_response(request.app[STATE].settings.as_json())


async def change_settings(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/settings`; predictions under way keep their times."""
    settings = request.app[STATE].settings
    try:
        settings.update(await _read_object(request))
    except ValueError as error:
        return problem(400, str(error))
    return json_response(settings.as_json())


async def reset(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/reset`."""
    await request.app[STATE].reset()
    return web.Response(status=204)


async def get_ledger(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/ledger?prompt=<text the prompt contains>`."""
    body = request.app[STATE].ledger.charges_json(request.query.get("prompt", ""))
    return web.Response(body=body, content_type="application/json")


async def get_stats(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/stats?timeline=0`."""
    with_timeline = request.query.get("timeline", "1") != "0"
    return json_response(request.app[STATE].ledger.stats_json(with_timeline=with_timeline))


async def get_deliveries(request: web.Request) -> web.StreamResponse:
    """Answer `GET /_sim/webhooks`: every attempt to deliver a webhook."""
    return json_response({"deliveries": request.app[STATE].webhooks.deliveries_json()})


async def replay_webhook(request: web.Request) -> web.StreamResponse:
    """Answer `POST /_sim/webhooks/replay` with the status the receiver gave, or the error."""
    webhooks = request.app[STATE].webhooks
    try:
        replay = parse_replay(await _read_object(request))
    except ValueError as error:
        return problem(400, str(error))
    delivery = webhooks.last_sent(replay.webhook_id)
    if delivery is None:
        return problem(404, f"no webhook {replay.webhook_id!r} has been sent")
    status, error_text = await webhooks.replay(delivery, replay)
    return json_response({"status": status, "error": error_text})


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_post("/_sim/faults", add_fault)
    app.router.add_get("/_sim/faults", list_faults)
    app.router.add_delete("/_sim/faults", clear_faults)
    app.router.add_get("/_sim/settings", get_settings)
    app.router.add_post("/_sim/settings", change_settings)
    app.router.add_post("/_sim/reset", reset)
    app.router.add_get("/_sim/ledger", get_ledger)
    app.router.add_get("/_sim/stats", get_stats)
    app.router.add_get("/_sim/webhooks", get_deliveries)
    app.router.add_post("/_sim/webhooks/replay", replay_webhook)


async def _read_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    return body
