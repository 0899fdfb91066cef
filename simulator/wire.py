"""Small pieces of the wire format: times, identifiers, request headers, error bodies.

Source: Replicate HTTP API, read 2026-11-20.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aiohttp import web

PREFER_WAIT = re.compile(r"^wait(=([1-9]|[1-5][0-9]|60))?$")
LONGEST_WAIT_S = 60
DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?$")

_TITLES = {
    400: "Bad request",
    401: "Unauthenticated",
    402: "Insufficient credit",
    403: "Permission denied",
    404: "Not found",
    405: "Method not allowed",
    413: "Payload too large",
    422: "Unprocessable entity",
    429: "Too many requests",
    500: "Internal server error",
}
_DETAILS = {
    401: "You did not pass a valid authentication token",
    402: "You have insufficient credit to run this model. Add credit to the account and try again.",
    403: "You do not have permission to perform this action.",
    404: "The requested resource could not be found.",
    422: "The request was understood but refused.",
    500: "An unexpected error occurred.",
}


class InvalidField(NamedTuple):
    """One entry of `invalid_fields`; `field` is `input`, `input.<name>` or empty."""

    type: str
    field: str
    description: str


def new_id() -> str:
    """Return 26 lowercase base32 characters, never the same twice, whatever the seed."""
    return base64.b32encode(uuid.uuid4().bytes).decode().rstrip("=").lower()


def rfc3339(wall_ns: int, fraction_digits: int) -> str:
    """Format nanoseconds since 1970 as a UTC time with a fraction of up to 9 digits."""
    seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{rest_ns:09d}"[: len(whole) + 1 + fraction_digits] + "Z"


def parse_rfc3339(text: str) -> int:
    """Return nanoseconds since 1970, exact to the microsecond.

    Raises:
        ValueError: when `text` is no date and time with an offset.
    """
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("time without an offset")
    whole = int(when.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + when.microsecond * 1000


def parse_prefer(header: str | None) -> float | None:
    """Return how many seconds to keep the request open; None means: answer at once.

    Raises:
        ValueError: when the header is neither `wait` nor `wait=1` to `wait=60`.
    """
    if header is None:
        return None
    match = PREFER_WAIT.match(header.strip())
    if match is None:
        raise ValueError("Prefer must be wait or wait=N with N from 1 to 60")
    return float(match[2] or LONGEST_WAIT_S)


def parse_cancel_after(header: str | None, least_s: float) -> float | None:
    """Return the seconds in `30`, `30s`, `5m` or `1h30m45s`; None without a header.

    Raises:
        ValueError: when the header has another form or is below `least_s`.
    """
    if header is None:
        return None
    match = DURATION.match(header.strip())
    if match is None or not header.strip():
        raise ValueError("Cancel-After must be a duration such as 30, 30s, 5m or 1h30m45s")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total_s = hours * 3600 + minutes * 60 + seconds
    if total_s < least_s:
        raise ValueError(f"Cancel-After must be at least {least_s:g} seconds")
    return float(total_s)


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Answer with `body` as JSON."""
    return web.Response(
        body=json.dumps(body).encode(),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def problem(
    status: int,
    detail: str | None = None,
    *,
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
    **extra: Any,
) -> web.Response:
    """Answer with a problem-details body; `detail` and `title` default by status."""
    body = {
        "title": title or _TITLES.get(status, "Error"),
        "detail": detail or _DETAILS.get(status, "The request could not be completed."),
        "status": status,
        **extra,
    }
    return web.Response(
        body=json.dumps(body).encode(),
        status=status,
        headers=headers,
        content_type="application/problem+json",
    )


def invalid_input(invalid: Iterable[InvalidField]) -> web.Response:
    """Answer 422 naming every field at fault."""
    fields = list(invalid)
    lines = [
        f"- {f.field}: {f.description}\n" if f.field else f"- {f.description}\n" for f in fields
    ]
    return problem(
        422,
        "".join(lines),
        title="Input validation failed",
        invalid_fields=[f._asdict() for f in fields],
    )


def throttled(wait_s: float, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer 429; the text names the wait in whole seconds."""
    detail = f"Request was throttled. Your rate limit resets in ~{wait_s:.0f}s."
    return problem(429, detail, headers=headers)


def html_page(status: int) -> web.Response:
    """Answer as a gateway in front of the API would, with a page instead of JSON."""
    text = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
    return web.Response(text=text, status=status, content_type="text/html")
