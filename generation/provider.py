"""What every image provider takes, gives and may fail with.

An adapter (`generation.providers.*`) translates one provider's wire format into the types of
this module and back; nothing outside the adapter knows a provider's JSON. Expected failures are
values of type `Failure`, never exceptions:

    submit(request)                       ->  Prediction | Failure
    fetch(id)                             ->  Prediction | Failure
    cancel(id)                            ->  Prediction | Failure
    find(request, since, until)           ->  (Prediction, ...) | Failure
    download(output, sink)                ->  Downloaded | Failure
    read(body)                            ->  Prediction | None
    verify_webhook(headers, body, now_s)  ->  WebhookDelivery | WebhookRefusal | Failure
    check()                               ->  Failure | None
    live_schema(model, version)           ->  {parameter: schema} | Failure | None

An exception out of an adapter is a bug in the adapter.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, BinaryIO, Protocol


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

    @property
    def answer(self) -> dict[str, Any] | None:
        """What was answered, {body, fields}; `None`: nothing that would be worth keeping."""
        if not self.raw and not self.fields:
            return None
        return {"body": self.raw, "fields": dict(self.fields)}


RAW_LIMIT = 8_192
# Of one prediction. No model here makes more than fifteen.
OUTPUTS_LIMIT = 100
# What run times above are not believed: none lasts longer at any provider, and what is charged
# for one is stored in a column of limited width.
RUN_MAX_S = 7 * 86_400


class PredictionStatus(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One accepted piece of work at the provider.

    `outputs` names the files in image order, each for the provider's own `download`, and is empty
    unless `succeeded`; a name is short, or a `data:` URI where the provider answers with one.
    `failure` is set exactly when `failed` (a cancelled prediction is `failed` with
    `ErrorClass.CANCELED`). `progress` is 0 to 100, `None` when the provider tells nothing.
    `run_s` is the billed run time and `total_s` the time from creation to completion, seconds
    by the provider's clock, `None` when not known. `billed_images` is how many images it charges
    for, `None` when it does not say.
    """

    id: str
    status: PredictionStatus
    outputs: tuple[str, ...] = ()
    failure: Failure | None = None
    progress: int | None = None
    run_s: float | None = None
    total_s: float | None = None
    billed_images: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_terminal(self) -> bool:
        return self.status in (PredictionStatus.SUCCEEDED, PredictionStatus.FAILED)


# Of reference images that did not reach a provider in time: that is our line or our storage, and
# says nothing about whether the provider is there.
TOO_SLOW = "The reference images could not be handed over in time."


@dataclass(frozen=True, slots=True)
class InputFile:
    """A verified reference image that goes into a model's input.

    `filename` has the right extension and no folder. `open` gives the bytes from their start, to
    be closed by the caller, and raises OSError when they cannot be had.
    """

    filename: str
    content_type: str
    size_bytes: int
    sha256: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Workflow:
    """A ComfyUI workflow in its API format, and where the model's parameters go in it.

    `nodes` maps a node's id to `{"class_type", "inputs"}`. `bindings` maps a parameter to the
    (node id, input name) places that it sets, one or several; a file's places take its name at
    the server.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    bindings: Mapping[str, tuple[tuple[str, str], ...]]

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of `nodes` with `values` in their places. Raises KeyError for others."""
        nodes: dict[str, Any] = copy.deepcopy(dict(self.nodes))
        for name, value in values.items():
            for node_id, input_name in self.bindings[name]:
                nodes[node_id]["inputs"][input_name] = value
        return nodes


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """One submission. `input` is already in the model's own parameter names, without files.

    `files` are the files of the input by parameter, `file_lists` those parameters that take a list
    however many there are; `token` is a UUID that names the attempt, the
    same however often it is asked about. `version`, `deployment` and `endpoint` tell which
    program is to run where the provider needs to know, `workflow` is the program itself where it
    takes one. `claimed_id` is for looking it up: what an unsigned webhook says that its id is.
    `cancel_after_s` asks the provider to stop the work by itself that many seconds
    after accepting it. `webhook_url` is where it should report, `None` for polling only.
    `timeout_s` is how many seconds to wait for the answer at most, `None` for the adapter's own
    limit, which is never exceeded.
    """

    model: str
    input: Mapping[str, Any]
    token: str = ""
    files: Mapping[str, tuple[InputFile, ...]] = field(default_factory=dict)
    file_lists: frozenset[str] = frozenset()
    version: str | None = None
    deployment: str | None = None
    endpoint: str | None = None
    workflow: Workflow | None = None
    claimed_id: str = ""
    cancel_after_s: int | None = None
    webhook_url: str | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file written to the sink. `content_type` is what the server claims, "" for nothing."""

    size_bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One webhook, taken in.

    `id` is the provider's name for the event, 1 to 200 visible ASCII characters, and the same
    when it is sent again. With a `prediction`, the provider has sent this beyond doubt: `body` is
    the whole JSON object, safe to store (it may repeat the webhook's URL), and `prediction` what
    it says. Without one, the provider does not sign: somebody who knows the URL says that it is
    time to look, and no more than that; `body` is empty then.
    """

    id: str
    body: Mapping[str, Any]
    prediction: Prediction | None


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
    # Whether it reports to `SubmitRequest.webhook_url`, and whether it signs what it sends there.
    sends_webhooks: bool
    signs_webhooks: bool

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        """Ask for the work, once. Never retries: a lost answer is `TIMEOUT_UNKNOWN`.

        Files are handed over before; what fails there is a failure of which nothing came.
        """
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
        provider's clock; allowing for clocks that differ is up to the caller. Where the provider
        knows a submission by its `token`, only that one is found. Empty means that there is none:
        whatever leaves that open is a `Failure`, of class `UNKNOWN` when asking again would not
        help.
        """
        ...

    def download(
        self,
        output: str,
        sink: BinaryIO,
        *,
        prediction_id: str,
        max_bytes: int,
        deadline_s: float | None = None,
    ) -> Downloaded | Failure:
        """Write one of a prediction's `outputs` into `sink`; see `generation.http` for failures."""
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

    def check(self) -> Failure | None:
        """Ask whether it is there and takes our credentials; costs nothing."""
        ...

    def live_schema(
        self, model: str, *, version: str | None = None
    ) -> Mapping[str, Mapping[str, Any]] | Failure | None:
        """Return a model's parameters as the provider publishes them, `None` where it does not.

        By name, each with those of `type`, `required`, `default`, `min`, `max` and `choices` that
        it states, in the terms of `generation.catalogue`.
        """
        ...
