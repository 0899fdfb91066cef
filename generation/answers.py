"""What adapters share in reading answers: their class by status, and what is kept and shown."""

from collections.abc import Mapping
from typing import Any

from generation.provider import RAW_LIMIT, ErrorClass

MESSAGE_LIMIT = 300
ITEMS_LIMIT = 50
DEPTH_LIMIT = 6
_STRING_LIMIT = 1_000

BY_STATUS = {
    400: ErrorClass.INVALID_INPUT,
    401: ErrorClass.AUTH,
    402: ErrorClass.INSUFFICIENT_CREDIT,
    403: ErrorClass.AUTH,
    404: ErrorClass.NOT_FOUND,
    413: ErrorClass.INVALID_INPUT,
    422: ErrorClass.INVALID_INPUT,
    429: ErrorClass.RATE_LIMITED,
    # 5xx: PROVIDER_UNAVAILABLE, see `class_of_status`.
}
# Of a submission to a queue: whoever answers so has passed the request on, and not heard what
# became of it. The other 5xx come from in front of the queue: nothing was accepted.
PERHAPS_ACCEPTED = frozenset({408, 504, 520, 524})


def class_of_status(status: int, by_status: Mapping[int, ErrorClass] = BY_STATUS) -> ErrorClass:
    """Return the class of an error status, of those below 500 by the table."""
    if status >= 500:
        return ErrorClass.PROVIDER_UNAVAILABLE
    return by_status.get(status, ErrorClass.UNKNOWN)


def explained(message: str, detail: str) -> str:
    """Return `message` with the other side's own words after it, in one line, cut."""
    detail = " ".join(detail.split())
    return f"{message.rstrip('.')}: {detail}"[:MESSAGE_LIMIT] if detail else message


def text_of(body: bytes) -> str:
    """Return the beginning of a body as text that can be stored."""
    return body[: RAW_LIMIT * 4].decode("utf-8", "replace").replace("\0", "")[:RAW_LIMIT]


def shortened(text: str) -> str:
    return text if len(text) <= _STRING_LIMIT else text[:_STRING_LIMIT] + "…"


def cut(value: Any, depth: int = 0) -> Any:
    """Copy a JSON value without the parts that are too large to keep (inline files, logs)."""
    if isinstance(value, str):
        return shortened(value)
    if not isinstance(value, (dict, list)):
        return value
    if depth >= DEPTH_LIMIT:
        return "…"
    if isinstance(value, list):
        return [cut(item, depth + 1) for item in value[:ITEMS_LIMIT]]
    items = list(value.items())[:ITEMS_LIMIT]
    return {cut(key): cut(item, depth + 1) for key, item in items}
