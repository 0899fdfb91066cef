"""Errors as RFC 9457 problem details: the only place that knows HTTP status codes.

    {type, title, status, detail, code, errors: [{field, code, detail, allowed?}], request_id}

and `current_status` where it is an object's status that stands against what is asked.
Source: RFC 9457, read 2026-11-20
"""

import logging
import sys
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.log import log_response
from drf_standardized_errors.formatter import ExceptionFormatter
from drf_standardized_errors.handler import ExceptionHandler
from drf_standardized_errors.types import ErrorResponse
from rest_framework.exceptions import APIException, ErrorDetail, ParseError, ValidationError
from rest_framework.response import Response
from rest_framework.settings import api_settings

from batches import templates
from batches.api import parsers
from batches.database import DATABASE_AWAY, reason
from batches.exports import StorageBroken
from batches.intake import Problem, Refused
from batches.references import Busy, StorageAway

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"


class InvalidRequest(APIException):
    """What `Refused` is to HTTP."""

    status_code = HTTPStatus.UNPROCESSABLE_ENTITY
    default_code = "invalid"
    default_detail = "The request has fields that cannot be accepted."

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__()
        self.problems = problems


class InvalidTransition(APIException):
    """Something that cannot be done with an object as it stands.

    `current_status` is that of the object which `detail` is about.
    """

    status_code = HTTPStatus.CONFLICT
    default_code = "invalid_transition"

    def __init__(self, detail: str, *, current_status: str) -> None:
        super().__init__(detail)
        self.current_status = current_status


class PartOfBatch(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "part_of_batch"
    default_detail = "A generation of a batch is deleted with its batch only."


class ReferenceInUse(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "reference_in_use"
    default_detail = "A generation is made from this reference image."


class BeingPublished(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "being_published"
    default_detail = "The image is being published."


class AccountInUse(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "account_in_use"
    default_detail = "Something is being published with this account."


class CheckFailed(APIException):
    """A channel does not take an account, or cannot be asked; the code says why."""

    status_code = HTTPStatus.CONFLICT
    default_code = "check_failed"


class TemplateInUse(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "template_in_use"


class LimitReached(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "limit_reached"


class BodyTooLate(APIException):
    status_code = HTTPStatus.REQUEST_TIMEOUT
    default_code = "body_too_late"
    default_detail = "The body did not come in time."


class BodyTooLarge(APIException):
    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_code = "body_too_large"

    def __init__(self) -> None:
        super().__init__(f"The body may be at most {settings.MAX_BODY_BYTES:,} bytes.")


class InvalidIdempotencyKey(APIException):
    status_code = HTTPStatus.BAD_REQUEST
    default_code = "invalid_idempotency_key"
    default_detail = "An Idempotency-Key is 1 to 255 visible ASCII characters, quoted or not."


class IdempotencyKeyReused(APIException):
    status_code = HTTPStatus.UNPROCESSABLE_ENTITY
    default_code = "idempotency_key_reused"
    default_detail = "This Idempotency-Key was used for a request with another body."


class IdempotencyKeyInUse(APIException):
    status_code = HTTPStatus.CONFLICT
    default_code = "idempotency_key_in_use"
    default_detail = "A request with this Idempotency-Key is in progress."
    wait = 1  # seconds, as `Retry-After`


class DatabaseUnavailable(APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "database_unavailable"
    default_detail = "The database does not answer. Try again in a moment."
    wait = 5  # seconds, as `Retry-After`


class TooBusy(APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "busy"
    default_detail = "Too many reference images are being taken in. Try again in a moment."
    wait = 2  # seconds, as `Retry-After`


class ExportsBusy(TooBusy):
    default_detail = "Too many ZIPs are being fetched. Try again in a moment."
    wait = 15  # seconds, as `Retry-After`


class StorageUnavailable(APIException):
    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    default_code = "storage_unavailable"
    default_detail = "The file could not be stored. Try again in a moment."
    wait = 5  # seconds, as `Retry-After`


class FileUnreadable(StorageUnavailable):
    default_detail = "The files cannot be read. Try again in a moment."


def problem(
    *,
    status: int,
    code: str,
    detail: str,
    errors: Sequence[dict[str, Any]] = (),
    request_id: str,
    **extensions: Any,
) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        "code": code,
        "errors": list(errors),
        "request_id": request_id,
        **extensions,
    }


def _place(attr: str | None) -> str | None:
    """The dotted path of what is wrong; `None` is the body itself."""
    if attr == api_settings.NON_FIELD_ERRORS_KEY:
        return None
    return attr and attr.removesuffix(f".{api_settings.NON_FIELD_ERRORS_KEY}")


class _Formatter(ExceptionFormatter):
    def get_errors(self) -> list[Any]:
        return [] if isinstance(self.exc, InvalidRequest) else super().get_errors()

    def format_error_response(self, error_response: ErrorResponse) -> dict[str, Any]:
        exc = self.exc
        if isinstance(exc, InvalidRequest):
            errors = [
                {"field": p.field, "code": p.code, "detail": p.detail}
                | ({"allowed": p.allowed} if p.allowed is not None else {})
                for p in exc.problems
            ]
            code, detail = exc.default_code, str(exc.detail)
        elif isinstance(exc, ValidationError):
            errors = [
                {"field": _place(e.attr), "code": e.code, "detail": e.detail}
                for e in error_response.errors
            ]
            code, detail = InvalidRequest.default_code, InvalidRequest.default_detail
        else:
            errors = []
            code, detail = error_response.errors[0].code, error_response.errors[0].detail
        extensions = {}
        if isinstance(exc, InvalidTransition):
            extensions["current_status"] = exc.current_status
        return problem(
            status=exc.status_code,
            code=code,
            detail=detail,
            errors=errors,
            request_id=str(uuid.uuid4()),
            **extensions,
        )


class _Handler(ExceptionHandler):
    def convert_known_exceptions(self, exc: Exception) -> Exception:
        exc = super().convert_known_exceptions(exc)
        if isinstance(exc, ValidationError):
            exc.status_code = HTTPStatus.UNPROCESSABLE_ENTITY
        elif isinstance(exc, ParseError) and exc.get_codes() == ParseError.default_code:
            exc.detail = ErrorDetail(str(exc.detail), code="invalid_json")
        elif isinstance(exc, Refused):
            return InvalidRequest(exc.problems)
        elif isinstance(exc, templates.TemplateInUse):
            return TemplateInUse(str(exc))
        elif isinstance(exc, templates.LimitReached):
            return LimitReached(str(exc))
        elif isinstance(exc, parsers.TooLarge):
            return BodyTooLarge()
        elif isinstance(exc, DATABASE_AWAY):
            return DatabaseUnavailable()
        elif isinstance(exc, Busy):
            return TooBusy()
        elif isinstance(exc, StorageAway):
            return StorageUnavailable()
        elif isinstance(exc, StorageBroken):
            return FileUnreadable()
        return exc

    def format_exception(self, exc: APIException) -> dict[str, Any]:
        formatted: dict[str, Any] = _Formatter(exc, self.context, self.exc).run()
        return formatted

    def get_response(self, exc: APIException, data: dict[str, Any]) -> Response:
        response = super().get_response(exc, data)
        response.content_type = CONTENT_TYPE
        response["X-Request-ID"] = data["request_id"]
        return response

    def report_exception(self, exc: APIException, response: Response) -> None:
        request = self.context["request"]
        if isinstance(exc, DatabaseUnavailable) and request is not None:
            _log_away(request._request, response, self.exc)
        elif not isinstance(exc, TooBusy | StorageUnavailable):  # expected, or told already
            super().report_exception(exc, response)


def problem_response(exc: Exception, context: Any) -> Response | None:
    """The EXCEPTION_HANDLER of the API."""
    response: Response | None = _Handler(exc, context).run()
    return response


def _log_away(request: HttpRequest, response: HttpResponse, error: BaseException) -> None:
    """One line, and the one that Django has for every answer like it is not written."""
    log_response(
        "database unavailable: %s %s: %s",
        request.method,
        request.path,
        reason(error),
        response=response,
        request=request,
        logger=logger,
        level="warning",
    )


def _plain(
    status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    request_id = str(uuid.uuid4())
    body = problem(status=status, code=code, detail=detail, request_id=request_id)
    return JsonResponse(
        body,
        status=status,
        content_type=CONTENT_TYPE,
        headers={"X-Request-ID": request_id, **(headers or {})},
    )


def unread(exc: type[APIException]) -> HttpResponse:
    """The answer to a request that none of our views has taken."""
    wait = getattr(exc, "wait", None)
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return _plain(exc.status_code, exc.default_code, str(exc.default_detail), headers)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _plain(HTTPStatus.BAD_REQUEST, "bad_request", "The request is malformed.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _plain(HTTPStatus.NOT_FOUND, "not_found", "There is nothing at this address.")


def server_error(request: HttpRequest) -> HttpResponse:
    """Called while the exception is handled."""
    error = sys.exception()
    if isinstance(error, DATABASE_AWAY):
        response = unread(DatabaseUnavailable)
        _log_away(request, response, error)
        return response
    return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "error", "Something went wrong on our side.")
