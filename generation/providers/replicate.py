"""Replicate: its HTTP API in, `Prediction` and `Failure` out.

Source: Replicate HTTP API, read 2026-11-20
"""

import base64
import hmac
import json
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any, BinaryIO
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from generation.answers import PERHAPS_ACCEPTED, class_of_status, cut, explained, text_of
from generation.http import (
    HttpClient,
    OutputHosts,
    Response,
    TransportError,
    parse_json,
    parse_retry_after,
)
from generation.provider import (
    OUTPUTS_LIMIT,
    RAW_LIMIT,
    RUN_MAX_S,
    TOO_SLOW,
    Downloaded,
    ErrorClass,
    Failure,
    InputFile,
    Prediction,
    PredictionStatus,
    SubmitRequest,
    WebhookDelivery,
    WebhookRefusal,
)

ID_MAX_LENGTH = 100  # theirs have 26 characters
SUBMIT_DEADLINE_S = 15.0
FETCH_DEADLINE_S = 10.0
FIND_DEADLINE_S = 20.0  # for all pages
FIND_MAX_PAGES = 50
CANCEL_AFTER_MIN_S = 5

# Files up to this size go along in the request, encoded and all together; others go before it.
INLINE_MAX_BYTES = 256_000
FILE_MAX_BYTES = 100_000_000
FILES_DEADLINE_S = 60.0  # for all that are handed over before a submission
SUBMIT_RESERVE_S = 5.0  # what they leave of its time for the submission itself

WEBHOOK_TOLERANCE_S = 300
SECRET_DEADLINE_S = 3.0  # a webhook is to be answered within a few seconds
SECRET_RETRY_S = 5.0  # between a failure to fetch the secret and the next try
SECRET_RENEW_S = 60.0  # between a fetch and the one that a wrong signature leads to

_OUTPUT_HOSTS = ("replicate.delivery", ".replicate.delivery")
_WEBHOOK_EVENTS = ("completed",)
_SIGNATURE_MAX_LENGTH = 2_000  # one entry has 47 characters
_COUNT_LIMIT = 10_000
_SCHEMA_DEPTH_LIMIT = 8
_SCHEMA_PARTS = ("allOf", "anyOf", "oneOf")

# A failure is classified by HTTP status, else by the platform's code, else by its text; the
# first row that fits wins. The texts are looked for in lower case.
_BY_CODE = {
    "PA": ErrorClass.INTERRUPTED,
    "E003": ErrorClass.PROVIDER_UNAVAILABLE,  # high demand
    "E004": ErrorClass.PROVIDER_UNAVAILABLE,  # temporarily unavailable
    "E005": ErrorClass.CONTENT_POLICY,
    "E1000": ErrorClass.INTERRUPTED,  # unknown to the platform, worth repeating
    "E1001": ErrorClass.OUT_OF_MEMORY,
    "E4875": ErrorClass.INVALID_INPUT,  # the webhook URL that we sent is empty
    "E6716": ErrorClass.TIMEOUT_RUN,  # did not start in time
    "E8367": ErrorClass.INTERRUPTED,
    "E8765": ErrorClass.INTERRUPTED,  # health check failed
    "E9243": ErrorClass.UNKNOWN,  # could not start: repeat once
    "E9825": ErrorClass.INTERRUPTED,  # upload failed
    "E9828": ErrorClass.INTERRUPTED,
}
_BY_TEXT = (
    (r"nsfw|flagged as sensitive", ErrorClass.CONTENT_POLICY),
    (r"out of memory", ErrorClass.OUT_OF_MEMORY),
    (r"insufficient credit|spend limit", ErrorClass.INSUFFICIENT_CREDIT),
    (r"throttled", ErrorClass.RATE_LIMITED),
    (r"prediction interrupted|unexpected error handling prediction", ErrorClass.INTERRUPTED),
    (r"high demand|temporarily unavailable|try again later", ErrorClass.PROVIDER_UNAVAILABLE),
    # Before the guesses at content policy: "disable_safety_checker must be one of ..." is none.
    (
        r"valueerror|typeerror|assertionerror|invalid input|must be (one of|less|greater)",
        ErrorClass.INVALID_INPUT,
    ),
    (
        r"sensitive|safety|moderation|blocked|prohibited|content policy|violat",
        ErrorClass.CONTENT_POLICY,
    ),
    (r"timed out|timeout", ErrorClass.TIMEOUT_RUN),
)
_MESSAGES = {
    ErrorClass.RATE_LIMITED: "Replicate asks to slow down.",
    ErrorClass.PROVIDER_UNAVAILABLE: "Replicate is unavailable at the moment.",
    ErrorClass.TIMEOUT_UNKNOWN: "Replicate did not answer; the request may have been accepted.",
    ErrorClass.TIMEOUT_RUN: "The model did not finish in time.",
    ErrorClass.INTERRUPTED: "Replicate lost the work before it was done.",
    ErrorClass.OUT_OF_MEMORY: "The model ran out of memory; a smaller size may work.",
    ErrorClass.CONTENT_POLICY: "The safety check of the model refused this prompt or its picture.",
    ErrorClass.INVALID_INPUT: "Replicate refused the input.",
    ErrorClass.NOT_FOUND: "Replicate does not know this model or prediction.",
    ErrorClass.AUTH: "Replicate refused our credentials.",
    ErrorClass.INSUFFICIENT_CREDIT: "The account at Replicate has no credit left.",
    ErrorClass.UNKNOWN: "The model failed.",
}
# For these the provider's own words help whoever reads them.
_QUOTED = frozenset({ErrorClass.INVALID_INPUT, ErrorClass.UNKNOWN})

_CODE = re.compile(r"\b(E\d{3,4})\b|\(code: (\w+)\)")
_RESETS_IN = re.compile(r"(?:resets in|available in) ~?(\d{1,9}(?:\.\d{1,9})?) ?s", re.IGNORECASE)
_PERCENT = re.compile(r"(\d{1,3})%\|")
_WEBHOOK_ID = re.compile(r"[!-~]{1,200}")
_UNIX_TIME = re.compile(r"[0-9]{1,12}")


class ReplicateProvider:
    """The Replicate adapter. `output_hosts` tells where its files may be downloaded from.

    A model runs by its name, by its version, or by way of a deployment of ours. An output is a
    URL, or a `data:` URI.

    `base_url` is without `/v1`. `extra_output_hosts` are further hosts for files, see
    `OutputHosts.extra`. `webhook_secret` is what webhooks are signed with, "whsec_" and a key in
    base64; without it, it is asked for when the first webhook comes. Raises ValueError for a
    token that no header can carry and for a malformed secret.
    """

    name = "replicate"
    sends_webhooks = True
    signs_webhooks = True

    def __init__(
        self,
        token: str,
        *,
        http: HttpClient,
        base_url: str = "https://api.replicate.com",
        extra_output_hosts: Sequence[str] = (),
        webhook_secret: str = "",
    ) -> None:
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError("The Replicate token is empty or has characters that no token has.")
        self.output_hosts = OutputHosts(_OUTPUT_HOSTS, tuple(extra_output_hosts))
        self._token = token
        self._http = http
        self._base_url = base_url.rstrip("/")
        configured_key = _key_of(webhook_secret) if webhook_secret else None
        self._webhook_key = _WebhookKey(configured_key, self._fetch_webhook_key)

    def __repr__(self) -> str:
        return f"ReplicateProvider({self._base_url!r})"

    def submit(self, request: SubmitRequest) -> Prediction | Failure:
        """Hand over the files, then create a prediction, once.

        `TIMEOUT_UNKNOWN` means that it may exist, and may be charged for, without our knowing
        its id. Every other failure means that there is none.
        """
        began_s = monotonic()
        limit_s = math.inf if request.timeout_s is None else request.timeout_s
        files = self._hand_over(request, limit_s)
        if isinstance(files, Failure):
            return files
        if request.files:
            limit_s -= monotonic() - began_s
            if limit_s <= 0:
                return Failure(ErrorClass.INTERRUPTED, TOO_SLOW)
        deadline_s = min(SUBMIT_DEADLINE_S, limit_s)

        body: dict[str, Any] = {"input": {**request.input, **files}}
        if request.deployment:
            path = f"/v1/deployments/{quote(request.deployment)}/predictions"
        elif request.version:
            path = "/v1/predictions"
            body["version"] = request.version
        else:
            path = f"/v1/models/{quote(request.model)}/predictions"
        if request.webhook_url:
            body["webhook"] = request.webhook_url
            body["webhook_events_filter"] = list(_WEBHOOK_EVENTS)
        headers = {}
        if request.cancel_after_s is not None:
            headers["Cancel-After"] = f"{max(request.cancel_after_s, CANCEL_AFTER_MIN_S)}s"

        answer = self._call("POST", path, deadline_s, headers, body)
        if isinstance(answer, TransportError):
            # An error status tells enough without its body.
            if answer.kind == "read" and (answer.status or 0) >= 400:
                status = answer.status or 0
                error_class = class_of_status(status)
                if status in PERHAPS_ACCEPTED:
                    error_class = ErrorClass.TIMEOUT_UNKNOWN
                return self._failure(error_class, code=str(status))
            never_sent = answer.kind == "connect"
            error_class = (
                ErrorClass.PROVIDER_UNAVAILABLE if never_sent else ErrorClass.TIMEOUT_UNKNOWN
            )
            return self._failure(error_class, raw=answer.message)
        if not 200 <= answer.status < 300:
            if answer.status in PERHAPS_ACCEPTED:
                return self._failure(
                    ErrorClass.TIMEOUT_UNKNOWN, code=str(answer.status), raw=text_of(answer.body)
                )
            return self._refused(answer)
        prediction = read_prediction(answer.json())
        # Accepted, but under an id that we cannot read.
        return prediction or self._failure(ErrorClass.TIMEOUT_UNKNOWN, raw=text_of(answer.body))

    def fetch(self, prediction_id: str) -> Prediction | Failure:
        """Read a prediction, once."""
        return self._look("GET", f"/v1/predictions/{quote(prediction_id, safe='')}")

    def cancel(self, prediction_id: str) -> Prediction | Failure:
        """Ask for a prediction to be stopped; a finished one stays as it is."""
        return self._look("POST", f"/v1/predictions/{quote(prediction_id, safe='')}/cancel")

    def find(
        self, request: SubmitRequest, *, since: datetime, until: datetime
    ) -> tuple[Prediction, ...] | Failure:
        """Look for the predictions that a submission like this made, newest first.

        One is like another when the model is the same (with a version or a deployment: that or
        the model; an official model's name may stand for a version) and each parameter sent is
        there with the same value; Replicate may add others. Files are not compared: theirs are
        addresses, of the day. Reads all of the list in that time or fails. Raises ValueError for
        a time without an offset.
        """
        window = {"created_after": _rfc3339(since), "created_before": _rfc3339(until)}
        path = f"/v1/predictions?{urlencode(window)}"
        # What comes back has been through this as well.
        sent = parse_json(json.dumps(dict(request.input)).encode())
        found: dict[str, Prediction] = {}
        ends_at = monotonic() + FIND_DEADLINE_S
        for _ in range(FIND_MAX_PAGES):
            left_s = ends_at - monotonic()
            if left_s <= 0:
                return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw="the deadline passed")
            answer = self._answer("GET", path, min(FETCH_DEADLINE_S, left_s))
            if isinstance(answer, Failure):
                return answer
            page = answer.json()
            if not _is_page(page):
                return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
            for entry in page["results"]:
                match = _match(entry, request, sent, since, until)
                if isinstance(match, Failure):
                    return match
                if match:
                    found[match.id] = match
            if page["next"] is None:
                return tuple(found.values())
            following = _path_below(self._base_url, page["next"])
            if following is None:
                return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=str(page["next"]))
            path = following
        message = "Too many predictions were made at Replicate in that time to search them all."
        return Failure(ErrorClass.UNKNOWN, message)

    def download(
        self,
        output: str,
        sink: BinaryIO,
        *,
        prediction_id: str,
        max_bytes: int,
        deadline_s: float | None = None,
    ) -> Downloaded | Failure:
        """Write the file of a URL or `data:` URI into `sink`. Output files need no credentials."""
        return self._http.download(
            output, sink, hosts=self.output_hosts, max_bytes=max_bytes, deadline_s=deadline_s
        )

    def check(self) -> Failure | None:
        """Ask for the account, which takes a valid token."""
        answer = self._answer("GET", "/v1/account", FETCH_DEADLINE_S)
        return answer if isinstance(answer, Failure) else None

    def live_schema(
        self, model: str, *, version: str | None = None
    ) -> Mapping[str, Mapping[str, Any]] | Failure | None:
        """Return the parameters of a version of a model, the latest unless named."""
        # A version may name its model, which is another where ours is offered under our own name.
        named, _, version_id = (version or "").rpartition(":")
        if official := _official_name(version):
            named, version_id = official, ""
        path = f"/v1/models/{quote(named or model)}"
        if version_id:
            path += f"/versions/{quote(version_id, safe='')}"
        answer = self._answer("GET", path, FETCH_DEADLINE_S)
        if isinstance(answer, Failure):
            return answer
        body = answer.json()
        if not isinstance(body, dict):
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
        published = body if version_id else body.get("latest_version")
        return read_schema(published.get("openapi_schema")) if isinstance(published, dict) else None

    def read(self, body: object) -> Prediction | None:
        """Translate a prediction object; `None` if it is not one."""
        return read_prediction(body)

    def verify_webhook(
        self, headers: Mapping[str, str], body: bytes, *, now_s: float
    ) -> WebhookDelivery | WebhookRefusal | Failure:
        """Check a webhook's signature, then its age, then that it is a prediction.

        May fetch the secret, which takes `SECRET_DEADLINE_S` at most.
        """
        values = {name.lower(): value for name, value in headers.items()}
        delivery_id = values.get("webhook-id", "")
        timestamp = values.get("webhook-timestamp", "")
        signatures = values.get("webhook-signature", "")
        if (
            not _WEBHOOK_ID.fullmatch(delivery_id)
            or not _UNIX_TIME.fullmatch(timestamp)
            or not 0 < len(signatures) <= _SIGNATURE_MAX_LENGTH
        ):
            return WebhookRefusal.MISSING_HEADER
        signed = f"{delivery_id}.{timestamp}.".encode() + body
        key = self._webhook_key.current()
        if isinstance(key, Failure):
            return key
        if not _is_signed(signatures, signed, key):
            newer_key = self._webhook_key.newer_than(key)
            if newer_key is None or not _is_signed(signatures, signed, newer_key):
                return WebhookRefusal.BAD_SIGNATURE
        if abs(now_s - int(timestamp)) > WEBHOOK_TOLERANCE_S:
            return WebhookRefusal.STALE
        data = parse_json(body)
        prediction = read_prediction(data)
        if prediction is None:
            return WebhookRefusal.NOT_A_PREDICTION
        return WebhookDelivery(delivery_id, data, prediction)

    def _hand_over(self, request: SubmitRequest, limit_s: float) -> dict[str, Any] | Failure:
        """Return what stands for the files in the input, by parameter.

        Takes `limit_s` less something for the submission at most.
        """
        every = [file for files in request.files.values() for file in files]
        inline = sum(map(_inline_bytes, every)) <= INLINE_MAX_BYTES
        ends_at = monotonic() + min(FILES_DEADLINE_S, max(limit_s - SUBMIT_RESERVE_S, limit_s / 2))
        values: dict[str, Any] = {}
        try:
            for name, files in request.files.items():
                passed: list[str] = []
                for file in files:
                    value = _data_uri(file) if inline else self._upload(file, ends_at)
                    if isinstance(value, Failure):
                        return value
                    passed.append(value)
                if passed:
                    is_list = name in request.file_lists or len(passed) > 1
                    values[name] = passed if is_list else passed[0]
        except OSError as error:
            message = "A reference image could not be read."
            return Failure(ErrorClass.INTERRUPTED, message, raw=str(error)[:RAW_LIMIT])
        return values

    def _upload(self, file: InputFile, ends_at: float) -> str | Failure:
        """Return the address by which a model gets the file.

        It is kept there for about an hour. Repeating this is harmless, whatever became of it.
        Raises OSError when the file cannot be read.
        Source: Replicate HTTP API, read 2026-11-20
        """
        if file.size_bytes > FILE_MAX_BYTES:
            message = f"Replicate takes no reference image of more than {FILE_MAX_BYTES:,} bytes."
            return Failure(ErrorClass.INVALID_INPUT, message)
        left_s = ends_at - monotonic()
        if left_s <= 0:
            return Failure(ErrorClass.INTERRUPTED, TOO_SLOW)
        answer = self._http.upload(
            f"{self._base_url}/v1/files",
            file,
            field="content",
            fields={"type": file.content_type},
            headers={"Authorization": f"Bearer {self._token}"},
            deadline_s=left_s,
        )
        if isinstance(answer, TransportError):
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        if not 200 <= answer.status < 300:
            return self._refused(answer)
        body = answer.json()
        urls = body.get("urls") if isinstance(body, dict) else None
        url = urls.get("get") if isinstance(urls, dict) else None
        if not isinstance(url, str) or not url:
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body))
        return url

    def _fetch_webhook_key(self) -> bytes | Failure:
        answer = self._answer("GET", "/v1/webhooks/default/secret", SECRET_DEADLINE_S)
        if isinstance(answer, Failure):
            return answer
        body = answer.json()
        secret = body.get("key") if isinstance(body, dict) else None
        try:
            return _key_of(secret if isinstance(secret, str) else "")
        except ValueError:
            # Without the body: however it is written, it may hold the secret.
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE)

    def _look(self, method: str, path: str) -> Prediction | Failure:
        answer = self._answer(method, path, FETCH_DEADLINE_S)
        if isinstance(answer, Failure):
            return answer
        prediction = read_prediction(answer.json())
        return prediction or self._failure(
            ErrorClass.PROVIDER_UNAVAILABLE, raw=text_of(answer.body)
        )

    def _answer(self, method: str, path: str, deadline_s: float) -> Response | Failure:
        """Make a call that may be repeated at will; only a 2xx is an answer."""
        answer = self._call(method, path, deadline_s)
        if isinstance(answer, TransportError):
            # Repeating these calls is harmless, so a lost answer is not an unknown outcome.
            return self._failure(ErrorClass.PROVIDER_UNAVAILABLE, raw=answer.message)
        if not 200 <= answer.status < 300:
            return self._refused(answer)
        return answer

    def _call(
        self,
        method: str,
        path: str,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Response | TransportError:
        return self._http.json(
            method,
            self._base_url + path,
            headers={"Authorization": f"Bearer {self._token}", **(headers or {})},
            json=body,
            deadline_s=deadline_s,
        )

    def _refused(self, answer: Response) -> Failure:
        problem = answer.json()
        problem = problem if isinstance(problem, dict) else {}
        detail = problem.get("detail")
        error_class = class_of_status(answer.status)
        if answer.status == 422 and "invalid version" in str(problem.get("title")).lower():
            error_class = ErrorClass.NOT_FOUND
        return self._failure(
            error_class,
            detail=detail if isinstance(detail, str) else "",
            code=str(answer.status),
            retry_after_s=_retry_after_s(answer, problem),
            raw=text_of(answer.body),
            fields=_invalid_fields(problem),
        )

    def _failure(
        self,
        error_class: ErrorClass,
        *,
        detail: str = "",
        code: str = "",
        retry_after_s: float | None = None,
        raw: str = "",
        fields: Mapping[str, str] | None = None,
    ) -> Failure:
        # An error page may echo the request's headers.
        detail, raw = (text.replace(self._token, "[token]") for text in (detail, raw))
        return Failure(
            error_class,
            _message(error_class, detail),
            provider_code=code,
            retry_after_s=retry_after_s,
            raw=raw[:RAW_LIMIT],
            fields=fields or {},
        )


class _WebhookKey:
    """The key that webhooks are signed with: a configured one for good, or a fetched one.

    A forged webhook costs its sender nothing, so how often `fetch` is called does not depend on
    how many come. Calls wait for one another's fetch rather than refuse what is genuine.
    """

    def __init__(self, configured: bytes | None, fetch: Callable[[], bytes | Failure]) -> None:
        self._key = configured
        self._is_configured = configured is not None
        self._fetch = fetch
        self._failure: Failure | None = None
        self._fetched_at = -math.inf  # monotonic, when the last fetch ended, well or not
        self._lock = threading.Lock()

    def current(self) -> bytes | Failure:
        """Return the key known, fetched if there is none yet."""
        if self._key is not None:
            return self._key
        with self._lock:
            if self._key is not None:
                return self._key
            if self._failure is not None and monotonic() - self._fetched_at < SECRET_RETRY_S:
                return self._failure
            return self._ask()

    def newer_than(self, key: bytes) -> bytes | None:
        """Return the key that `key` was replaced by, `None` when none is known of."""
        if self._is_configured:
            return None
        with self._lock:
            if monotonic() - self._fetched_at >= SECRET_RENEW_S:
                self._ask()
            return None if self._key == key else self._key

    def _ask(self) -> bytes | Failure:
        answer = self._fetch()
        self._fetched_at = monotonic()
        if isinstance(answer, Failure):
            self._failure = answer
        else:
            self._key = answer
        return answer


def _key_of(secret: str) -> bytes:
    """Return the key of a webhook secret. Raises ValueError, which does not repeat it."""
    prefix, _, encoded = secret.partition("_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    # Anyone can sign with an empty key.
    if prefix != "whsec" or not key:
        raise ValueError('The webhook secret is not "whsec_" followed by base64.')
    return key


def _is_signed(signatures: str, signed: bytes, key: bytes) -> bool:
    """Tell whether one entry of the header fits; entries of unknown versions fit nothing.

    Source: Replicate HTTP API, read 2026-11-20
    """
    wanted = b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256"))
    entries = [entry.encode("utf-8", "replace") for entry in signatures.split()]
    return any([hmac.compare_digest(entry, wanted) for entry in entries])


def read_prediction(body: object) -> Prediction | None:
    """Translate a prediction object, as answers and webhooks hold it; `None` if it is not one."""
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    prediction_id = body.get("id")
    if not isinstance(prediction_id, str) or not 0 < len(prediction_id) <= ID_MAX_LENGTH:
        return None
    status, outputs, failure = _outcome(body)
    logs = body.get("logs")
    metrics = body.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    return Prediction(
        id=prediction_id,
        status=status,
        outputs=outputs,
        failure=failure,
        progress=100 if status == PredictionStatus.SUCCEEDED else _progress(logs),
        run_s=_seconds(metrics.get("predict_time")),
        total_s=_seconds_between(body.get("created_at"), body.get("completed_at")),
        billed_images=_count(metrics.get("image_count")),
        raw=_raw(body),
    )


def read_schema(openapi: object) -> dict[str, dict[str, Any]] | None:
    """Translate a model's schema; `None` if it is not one. See `Provider.live_schema`."""
    components = openapi.get("components") if isinstance(openapi, dict) else None
    schemas = components.get("schemas") if isinstance(components, dict) else None
    if not isinstance(schemas, dict):
        return None
    whole = _flat(schemas.get("Input"), schemas)
    properties, required = whole.get("properties"), whole.get("required")
    if not isinstance(properties, dict):
        return None
    required = required if isinstance(required, list) else []
    return {
        name: {**_parameter(_flat(schema, schemas), schemas), "required": name in required}
        for name, schema in properties.items()
    }


def _parameter(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a flat schema states of a parameter."""
    stated = {
        "default": schema.get("default"),
        "min": schema.get("minimum"),
        "max": schema.get("maximum"),
    }
    parameter = {key: value for key, value in stated.items() if value is not None}
    match schema:
        case {"enum": list(choices)}:
            plain = [choice for choice in choices if isinstance(choice, (str, int, float))]
            parameter |= {"type": "enum", "choices": plain}
        case {"type": "string", "format": "uri"}:
            parameter["type"] = "file"
        case {"type": "array"}:
            items = _flat(schema.get("items"), schemas)
            parameter["type"] = "files" if items.get("format") == "uri" else "array"
        case {"type": "string" | "integer" | "number" | "boolean" as kind}:
            parameter["type"] = kind
    return parameter


def _flat(schema: object, schemas: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return a schema with all that it refers to; what it says itself goes before.

    Of alternatives those other than null are taken together: there is but one in practice.
    """
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH_LIMIT:
        return {}
    flat: dict[str, Any] = {}
    reference = schema.get("$ref")
    if isinstance(reference, str):
        flat |= _flat(schemas.get(reference.rpartition("/")[2]), schemas, depth + 1)
    for key in _SCHEMA_PARTS:
        parts = schema.get(key)
        for part in parts if isinstance(parts, list) else ():
            found = _flat(part, schemas, depth + 1)
            if found.get("type") != "null":
                flat |= found
    return flat | {key: schema[key] for key in schema.keys() - {"$ref", *_SCHEMA_PARTS}}


def _inline_bytes(file: InputFile) -> int:
    """Return the length of the file's `data:` URI."""
    return len(_data_uri_head(file)) + (file.size_bytes + 2) // 3 * 4


def _data_uri(file: InputFile) -> str:
    """Raises OSError when the file cannot be read or is not as long as it says."""
    with file.open() as source:
        # One byte more would be a file that has grown.
        content = source.read(file.size_bytes + 1)
    if len(content) != file.size_bytes:
        raise OSError("The file is not as long as it was.")
    return _data_uri_head(file) + base64.b64encode(content).decode()


def _data_uri_head(file: InputFile) -> str:
    return f"data:{file.content_type};base64,"


def _is_page(body: object) -> bool:
    """Tell whether it is a page of a list. Without `next` it may or may not be the last."""
    return isinstance(body, dict) and isinstance(body.get("results"), list) and "next" in body


def _match(
    entry: object, request: SubmitRequest, sent: object, since: datetime, until: datetime
) -> Prediction | Failure | None:
    """Return the prediction of a list's entry if `request` may have made it, with input `sent`.

    An entry that cannot be compared is a `Failure`.
    """
    prediction = read_prediction(entry)
    if not isinstance(entry, dict) or prediction is None:
        return _unreadable(entry)
    created_at, model = _time(entry.get("created_at")), entry.get("model")
    if created_at is None or not isinstance(model, str):
        return _unreadable(entry)
    # Asked for in the query as well.
    if not since <= created_at < until:
        return None
    version = (request.version or "").rpartition(":")[2]
    if (
        model not in (request.model, _official_name(request.version))
        and not (version and version == entry.get("version"))
        and not (request.deployment and request.deployment == entry.get("deployment"))
    ):
        return None
    if entry.get("data_removed") is True:
        message = "Replicate has deleted what predictions of that time were asked for."
        return Failure(ErrorClass.UNKNOWN, message)
    found = entry.get("input")
    if not isinstance(found, dict):
        return _unreadable(entry)
    if not isinstance(sent, dict) or not _holds(found, sent):
        return None
    return prediction


def _official_name(version: str | None) -> str | None:
    """Return the "owner/name" that stands for a version, whose predictions tell only that."""
    return version if version and "/" in version and ":" not in version else None


def _unreadable(entry: object) -> Failure:
    return Failure(
        ErrorClass.PROVIDER_UNAVAILABLE,
        _MESSAGES[ErrorClass.PROVIDER_UNAVAILABLE],
        raw=json.dumps(_raw(entry) if isinstance(entry, dict) else cut(entry))[:RAW_LIMIT],
    )


def _holds(found: Mapping[str, Any], sent: Mapping[str, Any]) -> bool:
    return all(name in found and _same(found[name], value) for name, value in sent.items())


def _same(one: Any, other: Any) -> bool:
    """Compare two JSON values. In JSON, 1 and 1.0 are the same number, and `true` is none."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and _holds(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _path_below(base_url: str, link: object) -> str | None:
    """Return the path and query of `link` as seen from `base_url`, `None` if it leads elsewhere.

    Only these are used, so that the token cannot follow a link to another host, however a host
    may be read from it.
    """
    if not isinstance(link, str):
        return None
    base = urlsplit(base_url)
    try:
        there = urlsplit(link)
        if _origin(there) != _origin(base) or not there.path.startswith(f"{base.path}/"):
            return None
    except ValueError:
        return None
    return f"{there.path.removeprefix(base.path)}?{there.query}"


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _rfc3339(time: datetime) -> str:
    """Write a time in UTC. Raises ValueError when it has no offset."""
    if time.tzinfo is None:
        raise ValueError("The time has no offset.")
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _outcome(
    body: Mapping[str, Any],
) -> tuple[PredictionStatus, tuple[str, ...], Failure | None]:
    failure: Failure | None
    match body["status"]:
        case "starting":
            return PredictionStatus.STARTING, (), None
        case "succeeded":
            outputs = _outputs(body)
            if not isinstance(outputs, Failure):
                return PredictionStatus.SUCCEEDED, outputs, None
            failure = outputs
        case "failed":
            failure = _failure_of_text(body.get("error"))
        case "canceled":
            deadline, completed_at = _time(body.get("deadline")), _time(body.get("completed_at"))
            if deadline and completed_at and completed_at >= deadline:
                failure = Failure(ErrorClass.TIMEOUT_RUN, _MESSAGES[ErrorClass.TIMEOUT_RUN])
            else:
                failure = Failure(ErrorClass.CANCELED, "The work was cancelled.")
        case "aborted":  # its deadline passed before it began to run
            failure = Failure(ErrorClass.TIMEOUT_RUN, _MESSAGES[ErrorClass.TIMEOUT_RUN])
        case _:  # "processing", or a word from the future: the caller's deadline bounds it
            return PredictionStatus.RUNNING, (), None
    return PredictionStatus.FAILED, (), failure


def _outputs(body: Mapping[str, Any]) -> tuple[str, ...] | Failure:
    output = body.get("output")
    if not output:
        if body.get("data_removed") is True:
            message = "The picture was deleted at Replicate before it was downloaded."
            return Failure(ErrorClass.OUTPUT_EXPIRED, message)
        return Failure(ErrorClass.BAD_OUTPUT, "The model finished without a picture.")
    urls = [output] if isinstance(output, str) else output
    if isinstance(urls, list) and len(urls) > OUTPUTS_LIMIT:
        message = f"The model made {len(urls):,} files; at most {OUTPUTS_LIMIT} are taken."
        return Failure(ErrorClass.BAD_OUTPUT, message)
    if isinstance(urls, list) and all(isinstance(url, str) and url for url in urls):
        return tuple(urls)
    message = "The model's output is not a file or a list of files."
    return Failure(ErrorClass.BAD_OUTPUT, message, raw=json.dumps(cut(output))[:RAW_LIMIT])


def _failure_of_text(error: object) -> Failure:
    """Classify the `error` of a failed prediction: by its code, else by its words."""
    text = error if isinstance(error, str) else ""
    codes = [first or second for first, second in _CODE.findall(text)]
    code = next((code for code in codes if code in _BY_CODE), codes[0] if codes else "")
    error_class = _BY_CODE.get(code)
    if error_class is None:
        words = text.lower()
        error_class = next(
            (found for pattern, found in _BY_TEXT if re.search(pattern, words)), ErrorClass.UNKNOWN
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return Failure(
        error_class,
        # Of a traceback, the last line says what happened.
        _message(error_class, lines[-1] if lines else ""),
        provider_code=code,
        retry_after_s=_wait_in_text(text) if error_class == ErrorClass.RATE_LIMITED else None,
        raw=text[:RAW_LIMIT],
    )


def _message(error_class: ErrorClass, detail: str) -> str:
    return explained(_MESSAGES[error_class], detail if error_class in _QUOTED else "")


def _retry_after_s(answer: Response, problem: Mapping[str, Any]) -> float | None:
    """Return the wait that the answer names, by its header, its body or its words, in that order.

    0 is a wait as well, so each is asked for `None`.
    """
    if (wait_s := parse_retry_after(answer.headers.get("retry-after"))) is not None:
        return wait_s
    if (wait_s := _seconds(problem.get("retry_after"))) is not None:
        return wait_s
    detail = problem.get("detail")
    return _wait_in_text(detail) if isinstance(detail, str) else None


def _wait_in_text(text: str) -> float | None:
    found = _RESETS_IN.search(text)
    return float(found[1]) if found else None


def _invalid_fields(problem: Mapping[str, Any]) -> dict[str, str]:
    """Map our parameter names to what Replicate says of them; "input" for the input as a whole."""
    fields: dict[str, str] = {}
    entries = problem.get("invalid_fields")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            name = str(entry.get("field") or "input").removeprefix("input.")
            fields[name] = str(entry.get("description") or entry.get("type") or "invalid")
    return fields


def _progress(logs: object) -> int | None:
    """Return the last percentage of a progress bar in the logs."""
    found = _PERCENT.findall(logs[-4096:]) if isinstance(logs, str) else []
    return min(int(found[-1]), 100) if found else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= RUN_MAX_S else None


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < _COUNT_LIMIT else None


def _time(value: object) -> datetime | None:
    """Read an RFC 3339 time; digits beyond microseconds are dropped."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else None


def _seconds_between(start: object, end: object) -> float | None:
    start_time, end_time = _time(start), _time(end)
    if start_time is None or end_time is None:
        return None
    return _seconds((end_time - start_time).total_seconds())


def _raw(body: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a prediction object to keep it for administrators."""
    # An old form of the object repeats the webhook's URL, which holds a secret.
    return {key: cut(value) for key, value in body.items() if not key.startswith("webhook")}
