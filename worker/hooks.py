"""What providers tell by webhook.

    POST /hooks/<provider>/<callback token>/

The token names the attempt, the signature proves the sender. Of a provider that does not sign, the
token is the secret, and what it tells is asked of it again. Whatever the order and the number of
deliveries, the end of an attempt is taken in once, and the generation that waits for it is looked
at there and then. What cannot be taken in now is refused, so that the provider sends it again;
and the looks go on in any case.
"""

import logging
import uuid
from http import HTTPStatus

from django.core.exceptions import RequestDataTooBig
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from batches import lifecycle
from batches.lifecycle import Report
from batches.models import Lease
from batches.wake import BROKER_AWAY
from generation.provider import Failure, WebhookDelivery, WebhookRefusal
from worker import canvas
from worker.providers import FACTORIES, Unconfigured, get_provider

logger = logging.getLogger(__name__)

# Of a webhook that is too large to be read.
HEAD_BYTES = 16 * 1024

STATUSES = {
    WebhookRefusal.MISSING_HEADER: HTTPStatus.BAD_REQUEST,
    WebhookRefusal.BAD_SIGNATURE: HTTPStatus.UNAUTHORIZED,
    WebhookRefusal.STALE: HTTPStatus.UNAUTHORIZED,
    WebhookRefusal.NOT_A_PREDICTION: HTTPStatus.UNPROCESSABLE_ENTITY,
}


@csrf_exempt
@require_POST
def receive_webhook(request: HttpRequest, provider: str, callback_token: uuid.UUID) -> HttpResponse:
    """200 when it is taken in, or was before; 4xx and 503 as in `STATUSES` and below."""
    if provider not in FACTORIES or isinstance(get_provider(provider), Unconfigured):
        return _refuse(HTTPStatus.NOT_FOUND, "unknown_provider")
    try:
        delivery = get_provider(provider).verify_webhook(
            request.headers, request.body, now_s=_database_time_s()
        )
    except RequestDataTooBig:
        if get_provider(provider).signs_webhooks:
            raise
        # It brings the pictures along. That there is something to look at is all that we need,
        # and the id where it stands at the beginning.
        head = request.read(HEAD_BYTES)
        delivery = get_provider(provider).verify_webhook(request.headers, head, now_s=0)
        if not isinstance(delivery, WebhookDelivery):
            delivery = WebhookDelivery(f"large {callback_token}", {}, None)
    if isinstance(delivery, Failure):
        logger.warning("webhook of %s cannot be checked: %s", provider, delivery.message)
        return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "not_checked")
    if isinstance(delivery, WebhookRefusal):
        logger.warning("webhook of %s refused: %s", provider, delivery)
        return _refuse(STATUSES[delivery], delivery)
    report = _record(provider, callback_token, delivery)
    if not report.is_known:
        return _refuse(HTTPStatus.NOT_FOUND, "unknown_attempt")
    if report.follow is not None:
        _wake(report.follow)
    return HttpResponse()


def _record(provider: str, callback_token: uuid.UUID, delivery: WebhookDelivery) -> Report:
    if delivery.prediction is None:
        return lifecycle.record_hint(
            provider=provider,
            callback_token=callback_token,
            delivery_id=delivery.id,
            body=delivery.body,
        )
    return lifecycle.record_report(
        provider=provider,
        callback_token=callback_token,
        delivery_id=delivery.id,
        prediction=delivery.prediction,
        body=delivery.body,
    )


def _database_time_s() -> float:
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        return float(cursor.fetchone()[0])


def _wake(generation_id: uuid.UUID) -> None:
    try:
        for member in Lease.objects.members([generation_id]):
            canvas.publish(member)
    except BROKER_AWAY as error:
        logger.warning("broker unavailable, %s is looked at when planned: %s", generation_id, error)


def _refuse(status: HTTPStatus, code: str) -> HttpResponse:
    return JsonResponse({"code": code}, status=status)
