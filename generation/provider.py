"""What every image provider takes, gives and may fail with.

An adapter (`generation.providers.*`) translates one provider's wire format into the types of
this module and back; nothing outside the adapter knows a provider's JSON. Expected failures are
values of type `Failure`, never exceptions:

    submit(request)                       ->  Prediction | Failure
    fetch(id)                             ->  Prediction | Failure
    cancel(id)                            ->  Prediction | Failure
    find(request, since, until)           ->  (Prediction, ...) | Failure
    read(body)                            ->  Prediction | None
    verify_webhook(headers, body, now_s)  ->  WebhookDelivery | WebhookRefusal | Failure

An exception out of an adapter is a bug in the adapter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol


class ErrorClass(StrEnum):
    """The closed list that every provider failure is mapped onto.

    What is retried, and how often, is decided by the caller; see `worker.tasks`.
    """

    RATE_LIMITED = "rate_limited"  # wait as told; says nothing about the request itself
    PROVIDER_UNAVAILABLE = "provider_unavailable"  # nothing was accepted: 5xx, connection refused
    TIMEOUT_UNKNOWN = "timeout_unknown"  # the request was sent, its outcome is not known
    TIMEOUT_RUN = "timeout_run"  # accepted, but not finished before a deadline
    INTERRUPTED = "interrupted"  # accepted, then lost by the provider
    QUEUE_FULL = "queue_full"
    OUT_OF_MEMORY = "out_of_memory"
    CONTENT_POLICY = "content_policy"
    PARTIAL_OUTPUT = "partial_output"
    INVALID_INPUT = "invalid_input"
    NOT_FOUND = "not_found"
    AUTH = "auth"
    INSUFFICIENT_CREDIT = "insufficient_credit"
    CANCELED = "canceled"
    OUTPUT_EXPIRED = "output_expired"
    BAD_OUTPUT = "bad_output"
    DOWNLOAD_FAILED = "download_failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call or a prediction failed.

    `message` is short and safe to show to the user. `raw` is the provider's own body, cut to
    `RAW_LIMIT` characters, for administrators. `retry_after_s` is the wait the provider asked
    for, `None` when it named none. `fields` maps an input parameter to what is wrong with it.
    """

    error_class: ErrorClass
    message: str
    provider_code: str = ""
    retry_after_s: float | None = None
    raw: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)


RAW_LIMIT = 8_192


class PredictionStatus(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One accepted piece of work at the provider.

    `outputs` holds URLs (https or `data:`) in image order and is empty unless `succeeded`;
    `failure` is set exactly when `failed` (a cancelled prediction is `failed` with
    `ErrorClass.CANCELED`). `progress` is 0 to 100, `None` when the provider tells nothing.
    `run_s` is the billed run time and `total_s` the time from creation to completion, seconds
    by the provider's clock, `None` when not known.
    """

    id: str
    status: PredictionStatus
    outputs: tuple[str, ...] = ()
    failure: Failure | None = None
    progress: int | None = None
    run_s: float | None = None
    total_s: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.status in (PredictionStatus.SUCCEEDED, PredictionStatus.FAILED)


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """One submission. `input` is already in the model's own parameter names.

    `version` is the model's version id where the provider needs one. `cancel_after_s` asks the
    provider to stop the work by itself that many seconds after accepting it. `webhook_url` is
    where it should report, `None` for polling only. `timeout_s` is how many seconds to wait for
    the answer at most, `None` for the adapter's own limit, which is never exceeded.
    """

    model: str
    input: Mapping[str, Any]
    version: str | None = None
    cancel_after_s: int | None = None
    webhook_url: str | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One webhook that the provider has sent, beyond doubt.

    `id` is the provider's name for the event, 1 to 200 visible ASCII characters, and the same
    when it is sent again. `body` is the whole JSON object, safe to store; it may repeat the
    webhook's URL. `prediction` is what the body says.
    """

    id: str
    body: Mapping[str, Any]
    prediction: Prediction


class WebhookRefusal(StrEnum):
    """Why a webhook is not taken. The first that applies, in this order."""

    MISSING_HEADER = "missing_header"  # or one that cannot be: too long, not a time
    BAD_SIGNATURE = "bad_signature"  # forged or damaged
    STALE = "stale"  # signed too long before or after now: perhaps a recording
    NOT_A_PREDICTION = "not_a_prediction"


class HostPolicy(Protocol):
    """Which URLs may be downloaded."""

    def allows(self, url: str) -> bool: ...


class Provider(Protocol):
    """One image provider. Implementations are safe to share between threads."""

    name: str

    @property
    def output_hosts(self) -> HostPolicy: ...

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        """Ask for the work, once. Never retries: a lost answer is `TIMEOUT_UNKNOWN`."""
        ...

    def fetch(self, prediction_id: str) -> Prediction | Failure:
        """Look at the work, once."""
        ...

    def cancel(self, prediction_id: str) -> Prediction | Failure:
        """Ask for the work to be stopped; the answer may still be non-terminal."""
        ...

    def find(
        self, request: SubmitRequest, *, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        """Look for the predictions that a submission like this made in that time, newest first.

        The time is from `since` (included) to `until` (excluded), both with an offset, by the
        provider's clock; allowing for clocks that differ is up to the caller. Empty means that
        there is none: whatever leaves that open is a `Failure`, of class `UNKNOWN` when asking
        again would not help.
        """
        ...

    def read(self, body: object) -> Prediction | None:
        """Translate a prediction as a webhook holds it; `None` if it is not one."""
        ...

    def verify_webhook(
        self, headers: Mapping[str, str], body: bytes, *, now_s: float
    ) -> WebhookDelivery | WebhookRefusal | Failure:
        """Check that the provider sent this, and recently.

        `headers` are in any case of letters, `body` is as it arrived, `now_s` is the Unix time in
        seconds. `Failure` means that it could not be checked for now; the provider should be told
        to send it again.
        """
        ...
