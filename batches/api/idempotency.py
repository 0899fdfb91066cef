"""`Idempotency-Key`: a request that is sent again is answered again, and done once.

A key belongs to a user, a method and a path. The answer is stored in the transaction that does
the work, so there are both or neither; only an answer of success is, so a refused request leaves
its key free. While a request is worked on, an advisory lock stands for the key: one of the
connection, since the transaction is only the last part of the work.

Source: draft-ietf-httpapi-idempotency-key-header-07, read 2026-11-20
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from django.db import connection, transaction
from django.db.models.functions import Now
from drf_spectacular.utils import OpenApiParameter
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from batches.api.errors import IdempotencyKeyInUse, IdempotencyKeyReused, InvalidIdempotencyKey
from batches.database import DATABASE_AWAY
from batches.models import IdempotentRequest

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
# Both at once, as the schema tells it.
_EITHER = r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$'

HEADERS = (
    OpenApiParameter(
        "Idempotency-Key",
        {"type": "string", "pattern": _EITHER},
        OpenApiParameter.HEADER,
        description="Of your choice, 1 to 255 visible ASCII characters. The same request with the "
        "same key is done once: for 24 hours its answer is given again.",
    ),
    OpenApiParameter(
        "Idempotent-Replayed",
        {"type": "string", "enum": ["true"]},
        OpenApiParameter.HEADER,
        response=[200, 201, 202],
        description="Present when the answer is that of an earlier request with the same key.",
    ),
)


Act = Callable[..., Response]
Prepare = Callable[..., AbstractContextManager[Any]]


def idempotent(prepare: Prepare) -> Callable[[Act], Act]:
    """Wraps a view's method that creates work.

    `prepare` is another method of the view. It is entered first, in no transaction: here belongs
    what takes long. What it gives is the method's argument beside those of the request. Raises
    `InvalidIdempotencyKey`, `IdempotencyKeyReused` or `IdempotencyKeyInUse`.
    """

    def wrap(act: Act) -> Act:
        @wraps(act)
        def once(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
            header = request.headers.get("Idempotency-Key")
            if header is None:
                with prepare(view, request, *args, **kwargs) as prepared:
                    return act(view, request, prepared, *args, **kwargs)
            scope = {
                "owner_id": request.user.pk,
                "method": request.method,
                "path": request.path,
                "key": parse_key(header),
            }
            payload = digest(request.data)
            # In this order: what was stored before the lock could be had is seen.
            with _claim(scope) as is_ours:
                if stored := _stored(scope):
                    if stored.payload_sha256 != payload:
                        raise IdempotencyKeyReused
                    return _replay(stored)
                if not is_ours:
                    raise IdempotencyKeyInUse
                with (
                    prepare(view, request, *args, **kwargs) as prepared,
                    transaction.atomic(),
                ):
                    response = act(view, request, prepared, *args, **kwargs)
                    _store(scope, payload, response)
            return response

        return once

    return wrap


def parse_key(header: str) -> str:
    """The key in a header, as a structured field's string or bare."""
    key = header
    if header.startswith('"'):
        quoted = _QUOTED.fullmatch(header)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not _KEY.fullmatch(key):
        raise InvalidIdempotencyKey
    return key


def digest(payload: Any) -> str:
    """Equal for equal bodies, whatever the order of their fields and the space between.

    Of an uploaded file its content counts.
    """
    canonical = json.dumps(
        payload, sort_keys=True, separators=(",", ":"), default=lambda upload: upload.sha256
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


@contextlib.contextmanager
def _claim(scope: dict[str, Any]) -> Iterator[bool]:
    """Claim a key; `False`: somebody else has."""
    digest = hashlib.sha256(json.dumps(list(scope.values())).encode()).digest()
    name = int.from_bytes(digest[:8], "big", signed=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [name])
        (is_ours,) = cursor.fetchone()
    try:
        yield is_ours
    finally:
        if is_ours:
            _release(name)


def _release(name: int) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [name])
    except DATABASE_AWAY:
        connection.close()  # and with it the lock


def _stored(scope: dict[str, Any]) -> IdempotentRequest | None:
    return IdempotentRequest.objects.filter(
        **scope, created_at__gt=Now() - IdempotentRequest.KEPT
    ).first()


def _store(scope: dict[str, Any], payload: str, response: Response) -> None:
    row = IdempotentRequest(
        **scope,
        payload_sha256=payload,
        status=response.status_code,
        location=response.get("Location", ""),
        body=json.loads(JSONRenderer().render(response.data)),
    )
    # In place of one that has expired and is still there.
    IdempotentRequest.objects.bulk_create(
        [row],
        update_conflicts=True,
        unique_fields=["owner", "method", "path", "key"],
        update_fields=["payload_sha256", "status", "location", "body", "created_at"],
    )


def _replay(stored: IdempotentRequest) -> Response:
    headers = {"Idempotent-Replayed": "true"}
    if stored.location:
        headers["Location"] = stored.location
    return Response(stored.body, status=stored.status, headers=headers)
