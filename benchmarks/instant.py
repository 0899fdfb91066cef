"""A provider inside the worker that is done at once, so that only our own work is measured."""

import base64
import io
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, BinaryIO

from PIL import Image

from generation.http import HttpClient, OutputHosts
from generation.provider import (
    Downloaded,
    Failure,
    Prediction,
    PredictionStatus,
    SubmitRequest,
    WebhookDelivery,
    WebhookRefusal,
)

SIZE_PX = 64


def data_uri() -> str:
    """Return a small PNG as a `data:` URI."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((SIZE_PX, SIZE_PX)).convert("RGB").save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class InstantProvider:
    """Every submission has succeeded when it is answered."""

    name = "instant"
    sends_webhooks = False
    signs_webhooks = False

    def __init__(self) -> None:
        self._http = HttpClient()
        self._output = data_uri()

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        return Prediction(
            id=uuid.uuid4().hex,
            status=PredictionStatus.SUCCEEDED,
            outputs=(self._output,),
            run_s=0.0,
            total_s=0.0,
            billed_images=1,
        )

    def fetch(self, prediction_id: str) -> Prediction | Failure:
        raise NotImplementedError("nothing is ever under way")

    def cancel(self, prediction_id: str) -> Prediction | Failure:
        raise NotImplementedError("nothing is ever under way")

    def find(
        self, request: SubmitRequest, *, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        return ()

    def download(
        self,
        output: str,
        sink: BinaryIO,
        *,
        prediction_id: str,
        max_bytes: int,
        deadline_s: float | None = None,
    ) -> Downloaded | Failure:
        # Decoded on the spot: no host is allowed.
        return self._http.download(output, sink, hosts=OutputHosts(), max_bytes=max_bytes)

    def read(self, body: object) -> Prediction | None:
        return None

    def verify_webhook(
        self, headers: Mapping[str, str], body: bytes, *, now_s: float
    ) -> WebhookDelivery | WebhookRefusal | Failure:
        raise NotImplementedError("nothing is reported")

    def check(self) -> Failure | None:
        return None

    def live_schema(
        self, model: str, *, version: str | None = None
    ) -> Mapping[str, Mapping[str, Any]] | Failure | None:
        return None
