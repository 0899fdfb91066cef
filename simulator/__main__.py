"""Run the simulator: `python -m simulator --port 8188`."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import signal
import sys
from dataclasses import Field, fields
from typing import Any

from aiohttp import web

from simulator.app import make_app
from simulator.settings import Settings, SettingsError
from simulator.state import State
from simulator.webhooks import secret_key

DEFAULT_PORT = 8188

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    parser = _parser()
    options = parser.parse_args()
    settings = Settings()
    names = [field.name for field in _option_fields()]
    try:
        settings.update({n: v for n in names if (v := getattr(options, n)) is not None})
        if options.webhook_secret:
            secret_key(options.webhook_secret)
    except (SettingsError, ValueError) as error:
        parser.error(str(error))
    public_url = options.public_url.rstrip("/") if options.public_url else None
    state = State(
        first_settings=settings,
        seed=options.seed,
        public_url=public_url,
        tokens=frozenset(options.token),
        webhook_secret=options.webhook_secret,
    )
    _keep_freed_memory()
    return asyncio.run(_serve(state, options.host, options.port))


async def _serve(state: State, host: str, port: int) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Hardly any grace for open requests: some of them are made to hang. 0 would mean no limit.
    runner = web.AppRunner(make_app(state), access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        print(f"simulator cannot listen on {host}:{port}: {error.strerror}", file=sys.stderr)
        await runner.cleanup()
        return 1
    bound_port = runner.addresses[0][1]
    print(f"simulator ready http://{host}:{bound_port}", flush=True)
    await stop.wait()
    await runner.cleanup()
    return 0


def _keep_freed_memory() -> None:
    """Let the C library keep what the image encoders free, where it can be told to.

    Handing 10 MB back to the system and fetching them again takes a third of the time of a WebP.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m simulator", description="Simulate Replicate.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 picks a free one")
    parser.add_argument("--public-url", help="base of URLs in answers (default: the Host header)")
    parser.add_argument(
        "--token",
        action="append",
        default=[],
        help="accept this token only; repeatable (default: any that starts with r8_)",
    )
    parser.add_argument("--seed", type=int, default=0, help="for jitter, fault rates, secret")
    parser.add_argument("--webhook-secret", default="", help="whsec_... (default: from the seed)")
    for field in _option_fields():
        name, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if field.type == "bool":
            parser.add_argument(name, action="store_true", default=None, help=text)
        else:
            kind = {"str": str, "int": int}.get(str(field.type), float)
            parser.add_argument(name, type=kind, metavar=kind.__name__.upper(), help=text)
    return parser


def _option_fields() -> list[Field[Any]]:
    return [field for field in fields(Settings) if "help" in field.metadata]


if __name__ == "__main__":
    sys.exit(main())
