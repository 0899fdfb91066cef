"""Bodies: JSON of a bounded size that PostgreSQL can hold."""

import json
import re
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

MAX_DEPTH = 32

# The escapes of what JSON may hold and PostgreSQL's text may not: NUL and lone surrogates.
_SUSPECT = re.compile(rb"\\u(0000|[dD][89a-fA-F])")
_NUL = re.compile(r"(?<!\\)(\\\\)*\\u0000")


class TooLarge(Exception):
    """A body is larger than `MAX_BODY_BYTES`."""


class BoundedJSONParser(BaseParser):
    """Strict JSON of at most `MAX_BODY_BYTES`, nested at most `MAX_DEPTH` deep. Raises `TooLarge`.

    Not a `JSONParser`: to that one the framework hands the whole body, read beforehand.
    """

    media_type = "application/json"

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        body = stream.read(settings.MAX_BODY_BYTES + 1)
        if len(body) > settings.MAX_BODY_BYTES:
            raise TooLarge
        try:
            data = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
            if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
                _refuse_nesting(data)
            if _SUSPECT.search(body):
                _refuse_unstorable(data)
        except (ValueError, RecursionError) as error:
            raise ParseError(f"The body is not valid JSON: {error}") from None
        return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_nesting(data: Any) -> None:
    # What reads and writes the data later is recursive.
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _refuse_unstorable(data: Any) -> None:
    text = json.dumps(data, ensure_ascii=False)
    text.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    if _NUL.search(text):
        raise ValueError("it contains the NUL character")
