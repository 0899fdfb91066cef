"""The web application: routes, who may use them, and error bodies."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from aiohttp import web

from simulator import api, comfyui, control, printify, runpod, shopify, shops
from simulator.outputs import get_output
from simulator.state import STATE, State
from simulator.wire import problem

LARGEST_BODY_BYTES = 32 * 1024 * 1024

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(state: State) -> web.Application:
    """Return the application around `state`."""
    app = web.Application(middlewares=[_guard], client_max_size=LARGEST_BODY_BYTES)
    app[STATE] = state
    api.add_routes(app)
    control.add_routes(app)
    comfyui.mount(app)
    runpod.mount(app)
    shops.mount(app)
    printify.mount(app)
    shopify.mount(app)
    app.router.add_get("/files/out/{id}/{name}", get_output)
    app.on_shutdown.append(_close)
    return app


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path.startswith("/v1/") and not request.app[STATE].accepts_token(
        api.token_of(request)
    ):
        return problem(401)
    if request.path.startswith("/_sim/") and not is_loopback(request.remote):
        return problem(403)
    try:
        return await handler(request)
    except web.HTTPException as error:
        return problem(error.status)


async def _close(app: web.Application) -> None:
    await app[STATE].close()


def is_loopback(address: str | None) -> bool:
    """Tell whether a peer is on this machine; an unknown one is not."""
    return address is not None and ipaddress.ip_address(address).is_loopback
