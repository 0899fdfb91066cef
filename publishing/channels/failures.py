"""Failures of calls to a channel, in the terms of `generation.provider`.

A create call here goes to the application that does the work, not into a queue before it. So few
statuses prove that it had no effect: a 5xx may well come from a server that failed after it had
stored the product, or from one in front that lost the answer. Whatever leaves that open is
TIMEOUT_UNKNOWN; to look for the product costs one call, a second product is there to stay.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from generation.answers import BY_STATUS, MESSAGE_LIMIT, explained, text_of
from generation.http import Response, TransportError, parse_retry_after
from generation.provider import RAW_LIMIT, ErrorClass, Failure

_BY_STATUS = {**BY_STATUS, 423: ErrorClass.AUTH}
# The server in front did not reach the one behind. (522 may also be an answer that was lost.)
# Source: Cloudflare 5xx errors, read 2026-11-20
_NEVER_ARRIVED = frozenset({521, 523, 525, 526, 530})
_MESSAGES = {
    ErrorClass.RATE_LIMITED: "{} asks to slow down.",
    ErrorClass.PROVIDER_UNAVAILABLE: "{} is unavailable at the moment.",
    ErrorClass.TIMEOUT_UNKNOWN: "{} did not answer; it may have done what it was asked for.",
    ErrorClass.INTERRUPTED: "The picture could not be read.",
    ErrorClass.INVALID_INPUT: "{} refused what it was sent.",
    ErrorClass.NOT_FOUND: "{} does not know the shop or the product.",
    ErrorClass.AUTH: "{} refused the credentials, or they do not allow this.",
    ErrorClass.INSUFFICIENT_CREDIT: "The account at {} has a bill to be paid.",
    ErrorClass.BAD_OUTPUT: "{} could not process the picture.",
    ErrorClass.UNKNOWN: "{} failed.",
}
# For these the channel's own words help whoever reads them.
_QUOTED = frozenset({ErrorClass.INVALID_INPUT, ErrorClass.UNKNOWN})
_MARKUP = re.compile(r"[<>\0]")
_FIELDS_LIMIT = 20


@dataclass(frozen=True, slots=True)
class Failures:
    """Tells why a call to `channel` failed, without `secret` in any word of it."""

    channel: str
    secret: str = field(repr=False)

    def of(
        self,
        error_class: ErrorClass,
        *,
        detail: str = "",
        code: str = "",
        retry_after_s: float | None = None,
        raw: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> Failure:
        detail = self._safe(detail) if error_class in _QUOTED else ""
        return Failure(
            error_class,
            explained(_MESSAGES[error_class].format(self.channel), detail),
            provider_code=self._safe(code)[:100],
            retry_after_s=retry_after_s,
            raw=raw.replace(self.secret, "[token]").replace("\0", "")[:RAW_LIMIT],
            fields={
                self._safe(name)[:100]: self._safe(text)[:MESSAGE_LIMIT]
                for name, text in list((fields or {}).items())[:_FIELDS_LIMIT]
            },
        )

    def of_transport(self, error: TransportError, *, creates: bool) -> Failure:
        """Say what it means that no complete answer came."""
        # An error status tells enough without its body.
        if error.kind == "read" and (error.status or 0) >= 400:
            return self.of_answer(Response(error.status or 0, {}, b""), creates=creates)
        is_open = creates and error.kind != "connect"
        error_class = ErrorClass.TIMEOUT_UNKNOWN if is_open else ErrorClass.PROVIDER_UNAVAILABLE
        return self.of(error_class, raw=error.message)

    def of_answer(
        self,
        answer: Response,
        *,
        creates: bool,
        detail: str = "",
        code: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> Failure:
        """Say what a status outside of 2xx means; `code` and `detail` are what the body says."""
        retry_after_s = parse_retry_after(answer.headers.get("retry-after"))
        return self.of(
            _class_of(answer.status, creates=creates, asks_to_wait=retry_after_s is not None),
            detail=detail,
            code=code or str(answer.status),
            retry_after_s=retry_after_s,
            raw=text_of(answer.body),
            fields=fields,
        )

    def of_unreadable(self, answer: Response, *, creates: bool) -> Failure:
        """Say what it means that a 2xx does not hold what it should."""
        error_class = ErrorClass.TIMEOUT_UNKNOWN if creates else ErrorClass.PROVIDER_UNAVAILABLE
        return self.of(error_class, raw=text_of(answer.body))

    def _safe(self, text: str) -> str:
        return " ".join(_MARKUP.sub(" ", text.replace(self.secret, "[token]")).split())


def _class_of(status: int, *, creates: bool, asks_to_wait: bool) -> ErrorClass:
    if status >= 500 or status == 408:
        # Who says when to come back has chosen not to do it now.
        refused = status in _NEVER_ARRIVED or (status == 503 and asks_to_wait)
        is_open = creates and not refused
        return ErrorClass.TIMEOUT_UNKNOWN if is_open else ErrorClass.PROVIDER_UNAVAILABLE
    return _BY_STATUS.get(status, ErrorClass.UNKNOWN)
