"""The Replicate adapter: what it sends, and how it reads what comes back."""

import json
import logging

import pytest
import responses

from generation.http import HttpClient, Response, TransportError
from generation.provider import (
    RAW_LIMIT,
    ErrorClass,
    Failure,
    Prediction,
    PredictionStatus,
    Provider,
    SubmitRequest,
)
from generation.providers.replicate import ReplicateProvider, read_prediction

TOKEN = "r8_TestTokenThatMustNotLeak"
BASE = "https://api.replicate.test"
MODEL = "black-forest-labs/flux-schnell"
OFFICIAL = f"{BASE}/v1/models/{MODEL}/predictions"
ID = "gm3qorzdhgbfurvjtvhg6dckhu"
FETCH = f"{BASE}/v1/predictions/{ID}"
REQUEST = SubmitRequest(model=MODEL, input={"prompt": "a cat"})


def prediction(**overrides):
    return {
        "id": ID,
        "model": MODEL,
        "version": "hidden",
        "input": {"prompt": "a cat"},
        "output": None,
        "logs": "",
        "error": None,
        "status": "starting",
        "data_removed": False,
        "created_at": "2026-11-20T10:00:00.123456789Z",
        "urls": {"get": FETCH, "cancel": FETCH + "/cancel"},
        **overrides,
    }


def read(**overrides) -> Prediction:
    result = read_prediction(prediction(**overrides))
    assert result is not None
    return result


@pytest.fixture
def replicate(http):
    return ReplicateProvider(TOKEN, http=http, base_url=BASE)


@pytest.fixture
def api():
    with responses.RequestsMock() as mock:
        yield mock


class FakeHttp(HttpClient):
    """Answers every call with one result, for the failures that need no socket."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def json(self, method, url, **kwargs):
        return self.result


class TestSubmit:
    def test_of_an_official_model_goes_to_the_models_own_address(self, replicate, api):
        api.post(OFFICIAL, json=prediction(), status=201)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Prediction)
        assert (result.id, result.status) == (ID, PredictionStatus.STARTING)
        assert not result.is_terminal
        sent = api.calls[0].request
        assert json.loads(sent.body) == {"input": {"prompt": "a cat"}}
        assert sent.headers["Authorization"] == f"Bearer {TOKEN}"
        assert sent.headers["Content-Type"] == "application/json"
        assert "Cancel-After" not in sent.headers
        assert "Prefer" not in sent.headers

    @pytest.mark.parametrize("version", ["a" * 64, f"stability-ai/sdxl:{'b' * 64}"])
    def test_of_a_versioned_model_names_the_version(self, replicate, api, version):
        api.post(f"{BASE}/v1/predictions", json=prediction(), status=201)
        request = SubmitRequest("stability-ai/sdxl", {"prompt": "x"}, version=version)
        assert isinstance(replicate.submit(request), Prediction)
        assert json.loads(api.calls[0].request.body) == {
            "input": {"prompt": "x"},
            "version": version,
        }

    def test_with_a_webhook_asks_for_start_and_end(self, replicate, api):
        api.post(OFFICIAL, json=prediction(), status=201)
        url = "https://picture.test/hooks/replicate/abc"
        replicate.submit(SubmitRequest(MODEL, {}, webhook_url=url))
        body = json.loads(api.calls[0].request.body)
        assert body["webhook"] == url
        assert body["webhook_events_filter"] == ["start", "completed"]

    @pytest.mark.parametrize(("asked_s", "sent"), [(600, "600s"), (5, "5s"), (1, "5s")])
    def test_with_a_limit_has_the_provider_stop_by_itself(self, replicate, api, asked_s, sent):
        api.post(OFFICIAL, json=prediction(), status=201)
        replicate.submit(SubmitRequest(MODEL, {}, cancel_after_s=asked_s))
        assert api.calls[0].request.headers["Cancel-After"] == sent

    def test_accepts_an_answer_that_is_done_already(self, replicate, api):
        body = prediction(status="succeeded", output="https://replicate.delivery/a.webp")
        api.post(OFFICIAL, json=body, status=201)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Prediction)
        assert result.is_terminal

    def test_that_cannot_connect_was_not_accepted(self, http, refused_url):
        result = ReplicateProvider(TOKEN, http=http, base_url=refused_url).submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    def test_whose_answer_is_lost_has_an_unknown_outcome(self, http, serve):
        server = serve(lambda sock, request, server: False)
        result = ReplicateProvider(TOKEN, http=http, base_url=server.url("")).submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.TIMEOUT_UNKNOWN
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (TransportError("read", "cut", 201), ErrorClass.TIMEOUT_UNKNOWN),
            (TransportError("read", "cut", 429), ErrorClass.RATE_LIMITED),
            (TransportError("read", "cut", 503), ErrorClass.PROVIDER_UNAVAILABLE),
            (TransportError("read", "cut", 422), ErrorClass.INVALID_INPUT),
        ],
    )
    def test_whose_answer_is_cut_off_is_judged_by_its_status(self, error, expected):
        with FakeHttp(error) as http:
            result = ReplicateProvider(TOKEN, http=http).submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == expected

    @pytest.mark.parametrize("body", ["<html>ok</html>", "[]", "{}", '{"id": "", "status": "x"}'])
    def test_accepted_without_a_readable_id_has_an_unknown_outcome(self, replicate, api, body):
        api.post(OFFICIAL, body=body, status=201)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.TIMEOUT_UNKNOWN
        assert result.raw == body


STATUS_CASES = [
    (400, {"detail": "bad"}, ErrorClass.INVALID_INPUT),
    (401, {"title": "Unauthenticated", "status": 401}, ErrorClass.AUTH),
    (402, {"title": "Insufficient credit"}, ErrorClass.INSUFFICIENT_CREDIT),
    (402, {"detail": "You have reached your monthly spend limit"}, ErrorClass.INSUFFICIENT_CREDIT),
    (403, {}, ErrorClass.AUTH),
    (404, {"detail": "not found"}, ErrorClass.NOT_FOUND),
    (413, {"detail": "too big"}, ErrorClass.INVALID_INPUT),
    (422, {"title": "Invalid version or not permitted"}, ErrorClass.INVALID_INPUT),
    (429, {"detail": "Request was throttled."}, ErrorClass.RATE_LIMITED),
    (500, "Internal Server Error", ErrorClass.PROVIDER_UNAVAILABLE),
    (502, "<html>Bad gateway</html>", ErrorClass.PROVIDER_UNAVAILABLE),
    (503, "", ErrorClass.PROVIDER_UNAVAILABLE),
    (504, {}, ErrorClass.PROVIDER_UNAVAILABLE),
    (522, "", ErrorClass.PROVIDER_UNAVAILABLE),
    (302, "", ErrorClass.UNKNOWN),
    (418, {"detail": "NSFW CUDA out of memory"}, ErrorClass.UNKNOWN),
]


class TestRefusal:
    @pytest.mark.parametrize(("status", "body", "expected"), STATUS_CASES)
    @pytest.mark.parametrize("operation", ["submit", "fetch", "cancel"])
    def test_is_classified_by_status(self, replicate, api, operation, status, body, expected):
        text = body if isinstance(body, str) else json.dumps(body)
        if operation == "submit":
            api.post(OFFICIAL, body=text, status=status)
            result = replicate.submit(REQUEST)
        elif operation == "fetch":
            api.get(FETCH, body=text, status=status)
            result = replicate.fetch(ID)
        else:
            api.post(FETCH + "/cancel", body=text, status=status)
            result = replicate.cancel(ID)
        assert isinstance(result, Failure)
        assert result.error_class == expected
        assert result.provider_code == str(status)
        assert result.raw == text
        assert result.message
        assert "<" not in result.message

    def test_of_input_names_the_fields(self, replicate, api):
        problem = {
            "title": "Input validation failed",
            "status": 422,
            "detail": "- input.num_inference_steps: Must be less than or equal to 4\n",
            "invalid_fields": [
                {
                    "type": "number_lte",
                    "field": "input.num_inference_steps",
                    "description": "Must be less than or equal to 4",
                },
                {"type": "required", "field": "input"},
                {"type": "additional_property_not_allowed", "field": ""},
                "nonsense",
            ],
        }
        api.post(OFFICIAL, json=problem, status=422)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.fields == {
            "num_inference_steps": "Must be less than or equal to 4",
            "input": "additional_property_not_allowed",
        }
        assert "Must be less than or equal to 4" in result.message
        assert "\n" not in result.message

    @pytest.mark.parametrize(
        ("headers", "body", "expected_s"),
        [
            ({"Retry-After": "3"}, {"retry_after": 5, "detail": "resets in ~30s."}, 3.0),
            ({"Retry-After": "0"}, {"retry_after": 5}, 0.0),
            ({"Retry-After": "soon"}, {"retry_after": 5}, 5.0),
            ({"Retry-After": "Fri, 20 Nov 2020 00:00:00 GMT"}, {}, 0.0),
            ({}, {"retry_after": 5, "detail": "Your rate limit resets in ~30s."}, 5.0),
            ({}, {"retry_after": 0}, 0.0),
            ({}, {"retry_after": True, "detail": "Your rate limit resets in ~30s."}, 30.0),
            ({}, {"retry_after": -5, "detail": "x"}, None),
            ({}, {"detail": "Request was throttled. Your rate limit resets in ~30s."}, 30.0),
            ({}, {"detail": "Request was throttled. Expected available in 1 second."}, 1.0),
            ({}, {"detail": "Request was throttled."}, None),
            ({}, {"detail": ["x"]}, None),
            ({}, [], None),
            ({"Retry-After": "86400"}, {}, 86400.0),
        ],
    )
    def test_of_too_many_requests_tells_the_wait(self, replicate, api, headers, body, expected_s):
        api.post(OFFICIAL, json=body, status=429, headers=headers)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.RATE_LIMITED
        assert result.retry_after_s == expected_s

    def test_of_an_unavailable_provider_tells_the_wait_too(self, replicate, api):
        api.get(FETCH, body="", status=503, headers={"Retry-After": "12"})
        result = replicate.fetch(ID)
        assert isinstance(result, Failure)
        assert result.retry_after_s == 12.0

    def test_keeps_a_long_body_only_in_part(self, replicate, api):
        api.get(FETCH, body="é" * 50_000, status=500)
        result = replicate.fetch(ID)
        assert isinstance(result, Failure)
        assert result.raw == "é" * RAW_LIMIT


class TestFetchAndCancel:
    def test_fetch_reads_the_prediction(self, replicate, api):
        api.get(FETCH, json=prediction(status="processing"))
        result = replicate.fetch(ID)
        assert isinstance(result, Prediction)
        assert result.status == PredictionStatus.RUNNING

    def test_cancel_may_answer_with_work_still_running(self, replicate, api):
        api.post(FETCH + "/cancel", json=prediction(status="processing"))
        result = replicate.cancel(ID)
        assert isinstance(result, Prediction)
        assert not result.is_terminal

    def test_ids_cannot_lead_elsewhere(self, replicate, api):
        api.get(f"{BASE}/v1/predictions/..%2Faccount%3Fx", json=prediction())
        assert isinstance(replicate.fetch("../account?x"), Prediction)

    @pytest.mark.parametrize("operation", ["fetch", "cancel"])
    @pytest.mark.parametrize("kind", ["connect", "sent", "read"])
    def test_a_lost_answer_is_only_unavailability(self, operation, kind):
        with FakeHttp(TransportError(kind, "lost")) as http:
            result = getattr(ReplicateProvider(TOKEN, http=http), operation)(ID)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    def test_an_answer_that_is_no_prediction_is_unavailability(self):
        with FakeHttp(Response(200, {}, b"<html>maintenance</html>")) as http:
            result = ReplicateProvider(TOKEN, http=http).fetch(ID)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE


class TestStatus:
    @pytest.mark.parametrize(
        ("word", "status"),
        [
            ("starting", PredictionStatus.STARTING),
            ("processing", PredictionStatus.RUNNING),
            ("queued-somewhere-new", PredictionStatus.RUNNING),
            ("failed", PredictionStatus.FAILED),
            ("canceled", PredictionStatus.FAILED),
            ("aborted", PredictionStatus.FAILED),
        ],
    )
    def test_words_are_translated(self, word, status):
        result = read(status=word)
        assert result.status == status
        assert (result.failure is not None) is (status == PredictionStatus.FAILED)
        assert result.outputs == ()

    @pytest.mark.parametrize(
        ("output", "urls"),
        [
            ("https://replicate.delivery/a.webp", ("https://replicate.delivery/a.webp",)),
            (["https://x/0.png", "https://x/1.png"], ("https://x/0.png", "https://x/1.png")),
            (["data:image/png;base64,AAAA"], ("data:image/png;base64,AAAA",)),
        ],
    )
    def test_succeeded_gives_the_files_in_order(self, output, urls):
        result = read(status="succeeded", output=output)
        assert result.status == PredictionStatus.SUCCEEDED
        assert result.outputs == urls
        assert result.failure is None
        assert result.progress == 100

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"output": None}, ErrorClass.BAD_OUTPUT),
            ({"output": []}, ErrorClass.BAD_OUTPUT),
            ({"output": ""}, ErrorClass.BAD_OUTPUT),
            ({"output": {"url": "https://x/a.png"}}, ErrorClass.BAD_OUTPUT),
            ({"output": 5}, ErrorClass.BAD_OUTPUT),
            ({"output": [{"url": "https://x/a.png"}]}, ErrorClass.BAD_OUTPUT),
            ({"output": ["https://x/a.png", None]}, ErrorClass.BAD_OUTPUT),
            ({"output": None, "data_removed": True}, ErrorClass.OUTPUT_EXPIRED),
        ],
    )
    def test_succeeded_without_usable_output_is_a_failure(self, fields, expected):
        result = read(status="succeeded", **fields)
        assert result.status == PredictionStatus.FAILED
        assert result.outputs == ()
        assert result.failure is not None
        assert result.failure.error_class == expected

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"status": "canceled"}, ErrorClass.CANCELED),
            (
                {
                    "status": "canceled",
                    "deadline": "2026-11-20T10:05:00Z",
                    "completed_at": "2026-11-20T10:05:00.000000001Z",
                },
                ErrorClass.TIMEOUT_RUN,
            ),
            (
                {
                    "status": "canceled",
                    "deadline": "2026-11-20T10:05:00Z",
                    "completed_at": "2026-11-20T12:04:59+02:00",
                },
                ErrorClass.CANCELED,
            ),
            ({"status": "canceled", "deadline": "2026-11-20T10:05:00Z"}, ErrorClass.CANCELED),
            ({"status": "canceled", "deadline": "x", "completed_at": 5}, ErrorClass.CANCELED),
            ({"status": "aborted"}, ErrorClass.TIMEOUT_RUN),
        ],
    )
    def test_stopped_work_tells_whether_a_deadline_stopped_it(self, fields, expected):
        failure = read(**fields).failure
        assert failure is not None
        assert failure.error_class == expected

    @pytest.mark.parametrize(
        "body", [None, [], "x", {}, {"id": ID}, {"id": 5, "status": "failed"}, {"status": "failed"}]
    )
    def test_what_is_no_prediction_is_none(self, body):
        assert read_prediction(body) is None


TEXT_CASES = [
    ("NSFW content detected. Try running it again, or try a different prompt.", "content_policy"),
    ("All generated images contained NSFW content.", "content_policy"),
    ("The input or output was flagged as sensitive. (E005)", "content_policy"),
    ("Request blocked by our moderation system", "content_policy"),
    ("This prompt violates our policy", "content_policy"),
    ("Prohibited", "content_policy"),
    ("CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
    ("The model ran OUT OF MEMORY", "out_of_memory"),
    ("E1001: the container was killed", "out_of_memory"),
    ("E1000: unknown error", "interrupted"),
    ("Prediction failed to start (E6716)", "timeout_run"),
    ("E8367 prediction stopped", "interrupted"),
    ("E8765", "interrupted"),
    ("E9243 error starting", "unknown"),
    ("E9825 upload failed", "interrupted"),
    ("Director: unexpected error handling prediction (E9828)", "interrupted"),
    ("Director: unexpected error handling prediction", "interrupted"),
    ("E4875: webhook URL is empty", "invalid_input"),
    ("Prediction interrupted; please retry (code: PA)", "interrupted"),
    ("Prediction interrupted; please retry", "interrupted"),
    ("Service is experiencing high demand (E003)", "provider_unavailable"),
    ("Model is temporarily unavailable", "provider_unavailable"),
    ("Please try again later. (E004)", "provider_unavailable"),
    ("Please try again later.", "provider_unavailable"),
    ("You have insufficient credit to run this model", "insufficient_credit"),
    ("Request was throttled. Expected available in 4 seconds.", "rate_limited"),
    ("ValueError: height must be divisible by 8", "invalid_input"),
    ("TypeError: expected str", "invalid_input"),
    ("AssertionError", "invalid_input"),
    ("Invalid input: safety_tolerance must be less than 3", "invalid_input"),
    ("disable_safety_checker must be one of true, false", "invalid_input"),
    ("Prediction timed out", "timeout_run"),
    ("Timeout waiting for GPU", "timeout_run"),
    ("Something else entirely", "unknown"),
    ("", "unknown"),
    (None, "unknown"),
    ({"odd": 1}, "unknown"),
]


class TestFailedPrediction:
    @pytest.mark.parametrize(("error", "expected"), TEXT_CASES)
    def test_is_classified_by_code_then_by_words(self, error, expected):
        failure = read(status="failed", error=error).failure
        assert failure is not None
        assert failure.error_class == expected
        assert failure.message
        assert failure.raw == (error if isinstance(error, str) else "")

    def test_tells_the_providers_code(self):
        for error, code in [
            ("flagged as sensitive (E005)", "E005"),
            ("please retry (code: PA)", "PA"),
            ("E7777: not in any list", "E7777"),
            ("E7777 wraps (E003)", "E003"),
            ("no code", ""),
        ]:
            failure = read(status="failed", error=error).failure
            assert failure is not None
            assert failure.provider_code == code

    def test_of_throttling_tells_the_wait(self):
        error = "Request was throttled. Expected available in 4 seconds."
        failure = read(status="failed", error=error).failure
        assert failure is not None
        assert failure.retry_after_s == 4.0

    def test_with_a_traceback_shows_its_last_line_only(self):
        error = "Traceback (most recent call last):\n  File \"/src/predict.py\"\nKeyError: 'x'\n"
        failure = read(status="failed", error=error).failure
        assert failure is not None
        assert "KeyError" in failure.message
        assert "/src" not in failure.message
        assert failure.raw == error

    def test_with_endless_text_is_cut(self):
        failure = read(status="failed", error="x" * 100_000).failure
        assert failure is not None
        assert len(failure.message) <= 300
        assert len(failure.raw) == RAW_LIMIT


class TestDetails:
    @pytest.mark.parametrize(
        ("logs", "expected"),
        [
            ("", None),
            (None, None),
            ("Using seed: 5\n", None),
            ("  0%|          | 0/4 [00:00<?, ?it/s]", 0),
            ("  0%|   | 0/28\n 50%|#####     | 14/28 [00:01<00:01]\n", 50),
            ("100%|##########| 4/4 [00:00<00:00, 7.6it/s]", 100),
            ("999%|x", 100),
            ("x" * 100_000 + " 25%|##", 25),
        ],
    )
    def test_progress_is_the_last_bar_of_the_logs(self, logs, expected):
        assert read(status="processing", logs=logs).progress == expected

    @pytest.mark.parametrize(
        ("metrics", "expected_s"),
        [
            ({"predict_time": 1.25, "total_time": 2}, 1.25),
            ({"predict_time": 3}, 3.0),
            ({"predict_time": "1.5"}, None),
            ({"predict_time": -1}, None),
            ({"predict_time": True}, None),
            ({}, None),
            (None, None),
            ([], None),
        ],
    )
    def test_run_time_is_the_billed_one(self, metrics, expected_s):
        assert read(metrics=metrics).run_s == expected_s

    @pytest.mark.parametrize(
        ("created_at", "completed_at", "expected_s"),
        [
            ("2026-11-20T10:00:00Z", "2026-11-20T10:00:02.5Z", 2.5),
            ("2026-11-20T10:00:00.000000001Z", "2026-11-20T10:00:01.123456789Z", 1.123456),
            ("2026-11-20T10:00:00Z", "2026-11-20T12:00:01+02:00", 1.0),
            ("2026-11-20T10:00:00Z", None, None),
            ("2026-11-20T10:00:00Z", "yesterday", None),
            ("2026-11-20T10:00:00Z", "2026-11-20T10:00:01", None),
            ("2026-11-20T10:00:05Z", "2026-11-20T10:00:00Z", None),
        ],
    )
    def test_total_time_is_from_creation_to_completion(self, created_at, completed_at, expected_s):
        assert read(created_at=created_at, completed_at=completed_at).total_s == expected_s

    def test_raw_keeps_the_object_without_bulk_and_without_the_webhook(self):
        result = read(
            status="succeeded",
            output=["data:image/png;base64," + "A" * 5_000_000],
            logs="line\n" * 100_000,
            webhook="https://picture.test/hooks/replicate/secret",
            input={"prompt": "a cat", "deep": [[[[[[[["x"]]]]]]]]},
            metrics={str(number): number for number in range(1_000)},
        )
        text = json.dumps(result.raw)
        assert len(text) < 10_000
        assert "secret" not in text
        assert result.raw["id"] == ID
        assert result.raw["input"]["prompt"] == "a cat"
        assert len(result.outputs[0]) > 5_000_000


class TestProvider:
    def test_fits_the_protocol(self, replicate):
        provider: Provider = replicate
        assert provider.name == "replicate"

    @pytest.mark.parametrize(
        ("url", "allowed"),
        [
            ("https://replicate.delivery/a.webp", True),
            ("https://pbxt.replicate.delivery/a.webp", True),
            ("http://127.0.0.1:9000/files/a.webp", True),
            ("http://replicate.delivery/a.webp", False),
            ("https://example.test/a.webp", False),
        ],
    )
    def test_knows_where_its_files_come_from(self, http, url, allowed):
        provider = ReplicateProvider(TOKEN, http=http, extra_output_hosts=["127.0.0.1"])
        assert provider.output_hosts.allows(url) is allowed

    @pytest.mark.parametrize("token", ["", "r8 x", "r8_x\n", "r8_é"])
    def test_refuses_a_token_that_no_header_can_carry_without_repeating_it(self, http, token):
        with pytest.raises(ValueError, match="token") as error:
            ReplicateProvider(token, http=http)
        assert not token.strip() or token.strip() not in str(error.value)

    def test_never_tells_the_token(self, replicate, api, caplog, refused_url, http):
        caplog.set_level(logging.DEBUG)
        echo = json.dumps({"detail": f"bad token Bearer {TOKEN}", "title": TOKEN})
        api.post(OFFICIAL, body=echo, status=422)
        api.get(FETCH, body=echo, status=401)
        told = [
            replicate.submit(REQUEST),
            replicate.fetch(ID),
            ReplicateProvider(TOKEN, http=http, base_url=refused_url.rstrip("/")),
            replicate,
            caplog.text,
        ]
        assert TOKEN not in repr(told)
        assert "[token]" in repr(told)
