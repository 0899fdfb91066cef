"""Bodies: JSON of a bounded size that PostgreSQL can hold."""

import json
import re
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from django.conf import settings
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import JSONParser

# The escapes of what JSON may hold and PostgreSQL's text may not: NUL and lone surrogates.
_SUSPECT = re.compile(rb"\\u(0000|[dD][89a-fA-F])")


class BodyTooLarge(APIException):
    status_code = 413
    default_code = "body_too_large"

    def __init__(self) -> None:
        super().__init__(f"The body may be at most {settings.MAX_BODY_BYTES:,} bytes.")


class BoundedJSONParser(JSONParser):
    """Strict JSON of at most `MAX_BODY_BYTES`."""

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        body = stream.read(settings.MAX_BODY_BYTES + 1)
        if len(body) > settings.MAX_BODY_BYTES:
            raise BodyTooLarge
        try:
            data = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
            if _SUSPECT.search(body):
                _refuse_unstorable(data)
        except (ValueError, RecursionError) as error:
            raise ParseError(f"The body is not valid JSON: {error}") from None
        return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_unstorable(data: Any) -> None:
    text = json.dumps(data, ensure_ascii=False)
    text.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    if "\\u0000" in text:
        raise ValueError("it contains the NUL character")
