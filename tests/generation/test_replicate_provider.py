"""The Replicate adapter: what it sends, and how it reads what comes back."""

import base64
import hashlib
import io
import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import parse_qs, urlsplit

import pytest
import responses

from generation.http import HttpClient, Response, TransportError
from generation.provider import (
    RAW_LIMIT,
    Downloaded,
    ErrorClass,
    Failure,
    InputFile,
    Prediction,
    PredictionStatus,
    Provider,
    SubmitRequest,
)
from generation.providers.replicate import (
    FILE_MAX_BYTES,
    FIND_MAX_PAGES,
    INLINE_MAX_BYTES,
    ReplicateProvider,
    read_prediction,
)
from tests.simulator import support

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
        self.deadlines_s = []

    def json(self, method, url, **kwargs):
        self.deadlines_s.append(kwargs["deadline_s"])
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

    def test_with_a_webhook_asks_for_the_end_only(self, replicate, api):
        api.post(OFFICIAL, json=prediction(), status=201)
        url = "https://picture.test/hooks/replicate/abc"
        replicate.submit(SubmitRequest(MODEL, {}, webhook_url=url))
        body = json.loads(api.calls[0].request.body)
        assert body["webhook"] == url
        assert body["webhook_events_filter"] == ["completed"]

    @pytest.mark.parametrize(("asked_s", "sent"), [(600, "600s"), (5, "5s"), (1, "5s")])
    def test_with_a_limit_has_the_provider_stop_by_itself(self, replicate, api, asked_s, sent):
        api.post(OFFICIAL, json=prediction(), status=201)
        replicate.submit(SubmitRequest(MODEL, {}, cancel_after_s=asked_s))
        assert api.calls[0].request.headers["Cancel-After"] == sent

    def test_of_a_deployment_goes_to_its_address_whatever_the_version(self, replicate, api):
        api.post(f"{BASE}/v1/deployments/us/cats/predictions", json=prediction(), status=201)
        request = SubmitRequest(MODEL, {"prompt": "x"}, version="a" * 64, deployment="us/cats")
        assert isinstance(replicate.submit(request), Prediction)
        assert json.loads(api.calls[0].request.body) == {"input": {"prompt": "x"}}

    def test_accepts_an_answer_that_is_done_already(self, replicate, api):
        body = prediction(status="succeeded", output="https://replicate.delivery/a.webp")
        api.post(OFFICIAL, json=body, status=201)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Prediction)
        assert result.is_terminal

    @pytest.mark.parametrize(
        ("timeout_s", "expected_s"), [(None, 15.0), (4.5, 4.5), (15.0, 15.0), (60.0, 15.0)]
    )
    def test_waits_as_long_as_asked_but_not_longer_than_usual(self, timeout_s, expected_s):
        with FakeHttp(Response(201, {}, json.dumps(prediction()).encode())) as http:
            request = SubmitRequest(MODEL, {"prompt": "a cat"}, timeout_s=timeout_s)
            assert isinstance(ReplicateProvider(TOKEN, http=http).submit(request), Prediction)
        assert http.deadlines_s == [expected_s]

    def test_that_is_not_answered_in_time_has_an_unknown_outcome(self, http, serve):
        server = serve(lambda sock, request, server: server.hang())
        replicate = ReplicateProvider(TOKEN, http=http, base_url=server.url(""))
        started = time.monotonic()
        result = replicate.submit(SubmitRequest(MODEL, {}, timeout_s=0.1))
        assert time.monotonic() - started < 2
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.TIMEOUT_UNKNOWN

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


def image(size_bytes=10, *, seed=0, **fields) -> InputFile:
    content = bytes([seed]) * size_bytes
    file = InputFile(
        filename=f"cat-{seed}.png",
        content_type="image/png",
        size_bytes=size_bytes,
        sha256=hashlib.sha256(content).hexdigest(),
        open=lambda: io.BytesIO(content),
    )
    return replace(file, **fields)


def data_uri(size_bytes=10, *, seed=0) -> str:
    return "data:image/png;base64," + base64.b64encode(bytes([seed]) * size_bytes).decode()


def never_opened():
    raise AssertionError("the file was opened")


FILES = f"{BASE}/v1/files"
# The longest file whose URI fits: 22 characters before 255,976 of base64.
INLINE_BYTES = 191_982


class TestFiles:
    """Small files go along in the request, larger ones before it."""

    def submit(self, replicate, api, files, **fields):
        api.post(OFFICIAL, json=prediction(), status=201)
        request = SubmitRequest(MODEL, {"prompt": "a cat"}, files=files, **fields)
        assert isinstance(replicate.submit(request), Prediction)
        return json.loads(api.calls[-1].request.body)["input"]

    def test_go_along_by_their_parameters(self, replicate, api):
        files = {"image": (image(seed=1),), "mask": (image(seed=2),)}
        assert self.submit(replicate, api, files) == {
            "prompt": "a cat",
            "image": data_uri(seed=1),
            "mask": data_uri(seed=2),
        }

    @pytest.mark.parametrize(
        ("count", "lists", "expected"),
        [
            (0, (), None),
            (0, ("image",), None),
            (1, (), data_uri(seed=0)),
            (1, ("other",), data_uri(seed=0)),
            (1, ("image",), [data_uri(seed=0)]),
            (2, ("image",), [data_uri(seed=0), data_uri(seed=1)]),
            (2, (), [data_uri(seed=0), data_uri(seed=1)]),
        ],
    )
    def test_are_a_list_where_the_parameter_takes_one(self, replicate, api, count, lists, expected):
        files = {"image": tuple(image(seed=number) for number in range(count))}
        sent = self.submit(replicate, api, files, file_lists=frozenset(lists))
        assert sent.get("image") == expected

    def test_that_just_fit_go_along(self, replicate, api):
        sent = self.submit(replicate, api, {"image": (image(INLINE_BYTES),)})
        assert len(sent["image"]) == 22 + 255_976 <= INLINE_MAX_BYTES

    @pytest.mark.parametrize(
        "sizes_bytes", [(INLINE_BYTES + 3,), (INLINE_BYTES, 1)], ids=["one", "two"]
    )
    def test_that_do_not_fit_together_go_before(self, replicate, api, sizes_bytes):
        for number in range(len(sizes_bytes)):
            api.post(FILES, json={"id": "f", "urls": {"get": f"{FILES}/{number}"}}, status=201)
        files = tuple(image(size, seed=number) for number, size in enumerate(sizes_bytes))
        sent = self.submit(replicate, api, {"image": files}, file_lists=frozenset({"image"}))
        assert sent["image"] == [f"{FILES}/{number}" for number in range(len(sizes_bytes))]
        assert api.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"

    def test_go_before_as_a_form(self, http, serve, answer):
        def script(sock, request, server):
            body = {"urls": {"get": "https://x/f"}} if "files" in request.path else prediction()
            sock.sendall(answer(json.dumps(body).encode(), status="201 Created"))
            return True

        server = serve(script)
        replicate = ReplicateProvider(TOKEN, http=http, base_url=server.url(""))
        request = SubmitRequest(MODEL, {}, files={"image": (image(200_000, seed=65),)})
        assert isinstance(replicate.submit(request), Prediction)
        upload, create = server.requests
        assert upload.path == "/v1/files"
        assert b'name="type"\r\n\r\nimage/png\r\n' in upload.body
        assert b'name="content"; filename="cat-65.png"\r\nContent-Type: image/png' in upload.body
        assert b"A" * 200_000 in upload.body
        assert json.loads(create.body) == {"input": {"image": "https://x/f"}}

    def test_that_are_larger_than_it_takes_are_refused(self, replicate, api):
        file = replace(image(), size_bytes=FILE_MAX_BYTES + 1, open=never_opened)
        result = replicate.submit(SubmitRequest(MODEL, {}, files={"image": (file,)}))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.INVALID_INPUT
        assert "100,000,000" in result.message

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (401, {}, ErrorClass.AUTH),
            (402, {}, ErrorClass.INSUFFICIENT_CREDIT),
            (
                413,
                {"detail": "Files must be less than 100MB in size"},
                ErrorClass.INVALID_INPUT,
            ),
            (429, {"detail": "Request was throttled."}, ErrorClass.RATE_LIMITED),
            (500, {}, ErrorClass.PROVIDER_UNAVAILABLE),
            # Nothing that costs anything was asked for: an open outcome is none.
            (504, {}, ErrorClass.PROVIDER_UNAVAILABLE),
            (201, {}, ErrorClass.PROVIDER_UNAVAILABLE),
            (201, [], ErrorClass.PROVIDER_UNAVAILABLE),
            (201, {"urls": []}, ErrorClass.PROVIDER_UNAVAILABLE),
            (201, {"urls": {"get": None}}, ErrorClass.PROVIDER_UNAVAILABLE),
            (201, {"urls": {"get": ""}}, ErrorClass.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_that_are_refused_leave_nothing_submitted(self, replicate, api, status, body, expected):
        api.post(FILES, json=body, status=status)
        files = {"image": (image(500_000),)}
        result = replicate.submit(SubmitRequest(MODEL, {}, files=files))
        assert isinstance(result, Failure)
        assert result.error_class == expected
        assert len(api.calls) == 1

    def test_whose_answer_is_lost_leave_nothing_submitted(self, http, serve):
        server = serve(lambda sock, request, server: False)
        replicate = ReplicateProvider(TOKEN, http=http, base_url=server.url(""))
        files = {"image": (image(500_000),)}
        result = replicate.submit(SubmitRequest(MODEL, {}, files=files))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert [request.path for request in server.requests] == ["/v1/files"]

    @pytest.mark.parametrize(
        ("timeout_s", "limits_s"),
        [
            (None, [60.0, 40.0, 15.0]),
            (100.0, [60.0, 40.0, 15.0]),
            (47.0, [42.0, 22.0, 7.0]),
            (30.0, [25.0, 5.0]),
            (8.0, [4.0]),
        ],
    )
    def test_leave_some_of_the_time_for_the_submission(self, monkeypatch, timeout_s, limits_s):
        clock = [1_000.0]
        monkeypatch.setattr("generation.providers.replicate.monotonic", lambda: clock[0])
        given_s = []

        class SlowHttp(HttpClient):
            def upload(self, url, file, *, deadline_s, **kwargs):
                given_s.append(deadline_s)
                clock[0] += 20.0
                return Response(201, {}, b'{"urls": {"get": "https://x/f"}}')

            def json(self, method, url, *, deadline_s, **kwargs):
                given_s.append(deadline_s)
                return Response(201, {}, json.dumps(prediction()).encode())

        files = {"image": (image(200_000), image(200_000))}
        request = SubmitRequest(MODEL, {}, files=files, timeout_s=timeout_s)
        with SlowHttp() as http:
            result = ReplicateProvider(TOKEN, http=http).submit(request)
        assert given_s == limits_s
        if len(limits_s) < 3:
            assert isinstance(result, Failure)
            assert result.error_class == ErrorClass.INTERRUPTED
        else:
            assert isinstance(result, Prediction)

    def test_that_cannot_be_read_say_so_to_administrators(self, replicate, api):
        def gone():
            raise FileNotFoundError(2, "No such file", "/data/private/name")

        files = {"image": (image(open=gone),)}
        result = replicate.submit(SubmitRequest(MODEL, {}, files=files))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.INTERRUPTED
        assert "private" not in result.message
        assert "No such file" in result.raw

    def test_are_not_compared_when_it_is_looked_for(self, replicate, api):
        found = {"prompt": "a cat", "image": "https://x/expired"}
        api.get(LIST, json=page(prediction(input=found)))
        request = SubmitRequest(MODEL, {"prompt": "a cat"}, files={"image": (image(),)})
        result = find(replicate, request)
        assert isinstance(result, tuple)
        assert [one.id for one in result] == [ID]


ACCOUNT = f"{BASE}/v1/account"


class TestCheck:
    def test_asks_for_the_account(self, replicate, api):
        api.get(ACCOUNT, json={"type": "user", "username": "us"})
        assert replicate.check() is None
        assert api.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"

    @pytest.mark.parametrize(
        ("status", "expected"),
        [(401, ErrorClass.AUTH), (503, ErrorClass.PROVIDER_UNAVAILABLE)],
    )
    def test_tells_what_is_wrong(self, replicate, api, status, expected):
        api.get(ACCOUNT, status=status)
        result = replicate.check()
        assert isinstance(result, Failure)
        assert result.error_class == expected


def schema(properties, required=(), **others):
    return {
        "components": {
            "schemas": {
                "Input": {"type": "object", "properties": properties, "required": list(required)},
                **others,
            }
        }
    }


RATIO = {"type": "string", "enum": ["1:1", "16:9"], "title": "aspect_ratio"}
URI = {"type": "string", "format": "uri"}
REF = "#/components/schemas/aspect_ratio"


class TestLiveSchema:
    MODEL_URL = f"{BASE}/v1/models/{MODEL}"

    @pytest.mark.parametrize(
        ("stated", "expected"),
        [
            ({"type": "string", "title": "Prompt"}, {"type": "string"}),
            (
                {"type": "integer", "default": 28, "minimum": 1, "maximum": 50},
                {"type": "integer", "default": 28, "min": 1, "max": 50},
            ),
            (
                {"type": "number", "minimum": 0, "default": 0},
                {"type": "number", "default": 0, "min": 0},
            ),
            ({"type": "boolean", "default": False}, {"type": "boolean", "default": False}),
            (URI, {"type": "file"}),
            ({"type": "array", "items": URI}, {"type": "files"}),
            ({"type": "array", "items": {"type": "integer"}}, {"type": "array"}),
            ({"type": "array"}, {"type": "array"}),
            (
                {"allOf": [{"$ref": REF}], "default": "1:1", "description": "x", "x-order": 1},
                {"type": "enum", "choices": ["1:1", "16:9"], "default": "1:1"},
            ),
            ({"$ref": REF}, {"type": "enum", "choices": ["1:1", "16:9"]}),
            (
                {"type": "integer", "enum": [256, 512], "default": None},
                {"type": "enum", "choices": [256, 512]},
            ),
            (
                {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "null"}]},
                {"type": "integer", "min": 5},
            ),
            ({"anyOf": [{"type": "null"}, URI], "nullable": True}, {"type": "file"}),
            ({"type": "array", "items": {"anyOf": [URI]}}, {"type": "files"}),
            ({"enum": ["a", {}, None, 2]}, {"type": "enum", "choices": ["a", 2]}),
            ({"type": "object"}, {}),
            ({"type": ["string", "null"]}, {}),
            ({"$ref": "#/nowhere"}, {}),
            ({"$ref": "#/components/schemas/loop"}, {}),
            ({"allOf": "x", "anyOf": [5]}, {}),
            (None, {}),
        ],
    )
    def test_translates_what_is_stated(self, replicate, api, stated, expected):
        loop = {"allOf": [{"$ref": "#/components/schemas/loop"}]}
        published = schema({"p": stated}, aspect_ratio=RATIO, loop=loop)
        api.get(self.MODEL_URL, json={"latest_version": {"openapi_schema": published}})
        assert replicate.live_schema(MODEL) == {"p": {**expected, "required": False}}

    def test_tells_what_is_required(self, replicate, api):
        published = schema({"a": URI, "b": URI}, ["a", "c"])
        api.get(self.MODEL_URL, json={"latest_version": {"openapi_schema": published}})
        assert replicate.live_schema(MODEL) == {
            "a": {"type": "file", "required": True},
            "b": {"type": "file", "required": False},
        }

    @pytest.mark.parametrize("version", ["b" * 64, f"{MODEL}:{'b' * 64}"])
    def test_of_a_version_is_read_there(self, replicate, api, version):
        published = {"id": "b" * 64, "openapi_schema": schema({"a": URI})}
        api.get(f"{self.MODEL_URL}/versions/{'b' * 64}", json=published)
        result = replicate.live_schema(MODEL, version=version)
        assert result == {"a": {"type": "file", "required": False}}

    @pytest.mark.parametrize(
        ("version", "path"),
        [
            ("someone/else", "someone/else"),
            (f"someone/else:{'b' * 64}", f"someone/else/versions/{'b' * 64}"),
        ],
    )
    def test_of_another_model_that_the_version_names_is_read_there(
        self, replicate, api, version, path
    ):
        published = {"openapi_schema": schema({"a": URI})}
        latest = {"latest_version": published} if path == version else published
        api.get(f"{BASE}/v1/models/{path}", json=latest)
        result = replicate.live_schema("own/name", version=version)
        assert result == {"a": {"type": "file", "required": False}}

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"latest_version": None},
            {"latest_version": {}},
            {"latest_version": {"openapi_schema": None}},
            {"latest_version": {"openapi_schema": {"components": []}}},
            {"latest_version": {"openapi_schema": {"components": {"schemas": {}}}}},
            {"latest_version": {"openapi_schema": {"components": {"schemas": {"Input": {}}}}}},
        ],
    )
    def test_that_is_not_published_is_none(self, replicate, api, body):
        api.get(self.MODEL_URL, json=body)
        assert replicate.live_schema(MODEL) is None

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (404, {"detail": "Not found"}, ErrorClass.NOT_FOUND),
            (503, {}, ErrorClass.PROVIDER_UNAVAILABLE),
            (200, [], ErrorClass.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_that_cannot_be_read_is_a_failure(self, replicate, api, status, body, expected):
        api.get(self.MODEL_URL, json=body, status=status)
        result = replicate.live_schema(MODEL)
        assert isinstance(result, Failure)
        assert result.error_class == expected


class TestDownload:
    @pytest.fixture
    def local(self, http):
        return ReplicateProvider(TOKEN, http=http, base_url=BASE, extra_output_hosts=["127.0.0.1"])

    def download(self, provider, output, max_bytes=1_000):
        sink = io.BytesIO()
        result = provider.download(output, sink, prediction_id=ID, max_bytes=max_bytes)
        return result, sink.getvalue()

    def test_of_a_url_tells_nobody_our_token(self, local, serve, answer):
        def script(sock, request, server):
            sock.sendall(answer(b"picture", headers={"Content-Type": "image/png"}))
            return True

        server = serve(script)
        result, content = self.download(local, server.url("/0.png"))
        assert isinstance(result, Downloaded)
        assert (content, result.content_type) == (b"picture", "image/png")
        assert "authorization" not in server.requests[0].headers

    def test_of_a_data_uri_asks_nobody(self, replicate):
        result, content = self.download(replicate, data_uri(10))
        assert isinstance(result, Downloaded)
        assert (content, result.content_type) == (bytes(10), "image/png")

    @pytest.mark.parametrize("output", [data_uri(1_001), "https://evil.test/a.png", "x", ""])
    def test_of_anything_else_is_bad_output(self, replicate, output):
        result, content = self.download(replicate, output)
        assert isinstance(result, Failure)
        assert (result.error_class, content) == (ErrorClass.BAD_OUTPUT, b"")


STATUS_CASES = [
    (400, {"detail": "bad"}, ErrorClass.INVALID_INPUT),
    (401, {"title": "Unauthenticated", "status": 401}, ErrorClass.AUTH),
    (402, {"title": "Insufficient credit"}, ErrorClass.INSUFFICIENT_CREDIT),
    (402, {"detail": "You have reached your monthly spend limit"}, ErrorClass.INSUFFICIENT_CREDIT),
    (403, {}, ErrorClass.AUTH),
    (404, {"detail": "not found"}, ErrorClass.NOT_FOUND),
    (413, {"detail": "too big"}, ErrorClass.INVALID_INPUT),
    (422, {"title": "Invalid version or not permitted"}, ErrorClass.NOT_FOUND),
    (422, {"title": ["Input validation failed"]}, ErrorClass.INVALID_INPUT),
    (429, {"detail": "Request was throttled."}, ErrorClass.RATE_LIMITED),
    (500, "Internal Server Error", ErrorClass.PROVIDER_UNAVAILABLE),
    (502, "<html>Bad gateway</html>", ErrorClass.PROVIDER_UNAVAILABLE),
    (503, "", ErrorClass.PROVIDER_UNAVAILABLE),
    (522, "", ErrorClass.PROVIDER_UNAVAILABLE),
    (302, "", ErrorClass.UNKNOWN),
    (418, {"detail": "NSFW CUDA out of memory"}, ErrorClass.UNKNOWN),
]


class TestRefusal:
    @pytest.mark.parametrize("status", [408, 504, 520, 524])
    def test_of_a_gateway_that_gave_up_waiting_leaves_it_open(self, replicate, api, status):
        api.post(OFFICIAL, body="<html>timed out</html>", status=status)
        result = replicate.submit(REQUEST)
        assert isinstance(result, Failure)
        assert (result.error_class, result.provider_code) == (
            ErrorClass.TIMEOUT_UNKNOWN,
            str(status),
        )

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
            ({}, {"detail": f"Your rate limit resets in ~{'9' * 400}s."}, None),
            ({}, {"retry_after": 10**400}, None),
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

    @pytest.mark.parametrize("status", ["failed", "canceled", "aborted"])
    def test_cancel_of_finished_work_tells_how_it_ended(self, replicate, api, status):
        api.post(FETCH + "/cancel", json=prediction(status=status))
        result = replicate.cancel(ID)
        assert isinstance(result, Prediction)
        assert result.is_terminal

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


LIST = f"{BASE}/v1/predictions"
SINCE = datetime(2026, 11, 20, 10, 0, 0, tzinfo=UTC)
UNTIL = datetime(2026, 11, 20, 10, 0, 30, tzinfo=UTC)


def page(*entries, next=None):
    return {"next": next, "previous": None, "results": list(entries)}


def find(provider, request=REQUEST, since=SINCE, until=UNTIL):
    return provider.find(request, since=since, until=until)


class TestFind:
    def ids(self, result) -> list[str]:
        assert isinstance(result, tuple), result
        return [found.id for found in result]

    def test_asks_for_the_time_in_utc(self, replicate, api):
        api.get(LIST, json=page())
        east = timezone(timedelta(hours=2))
        since = datetime(2026, 11, 20, 12, 0, 0, 5, tzinfo=east)
        assert find(replicate, since=since) == ()
        sent = api.calls[0].request
        assert parse_qs(urlsplit(sent.url).query) == {
            "created_after": ["2026-11-20T10:00:00.000005Z"],
            "created_before": ["2026-11-20T10:00:30.000000Z"],
        }
        assert sent.headers["Authorization"] == f"Bearer {TOKEN}"

    def test_reads_what_it_finds_newest_first(self, replicate, api):
        newer = prediction(id="newer", status="succeeded", output="https://x/a.png")
        api.get(LIST, json=page(newer, prediction(id="older")))
        result = find(replicate)
        assert self.ids(result) == ["newer", "older"]
        assert result[0] == read_prediction(newer)

    @pytest.mark.parametrize(
        ("created_at", "is_found"),
        [
            ("2026-11-20T09:59:59.999999999Z", False),
            ("2026-11-20T10:00:00Z", True),
            ("2026-11-20T12:00:00+02:00", True),
            ("2026-11-20T10:00:29.999999999Z", True),
            ("2026-11-20T10:00:30Z", False),
        ],
    )
    def test_keeps_to_the_time_whatever_the_list_does(self, replicate, api, created_at, is_found):
        api.get(LIST, json=page(prediction(created_at=created_at)))
        assert self.ids(find(replicate)) == [ID] * is_found

    @pytest.mark.parametrize(
        ("version", "entry", "is_found"),
        [
            (None, {"model": MODEL}, True),
            (None, {"model": "someone/else"}, False),
            (None, {"model": "someone/else", "version": "b" * 64}, False),
            ("b" * 64, {"model": "someone/else", "version": "b" * 64}, True),
            (f"someone/sdxl:{'b' * 64}", {"model": "someone/else", "version": "b" * 64}, True),
            ("b" * 64, {"model": MODEL, "version": "hidden"}, True),
            ("b" * 64, {"model": "someone/else", "version": "c" * 64}, False),
            ("b" * 64, {"model": "someone/else", "version": None}, False),
            (None, {"model": "", "version": ""}, False),
            # An official model that is offered under a name of ours.
            ("someone/else", {"model": "someone/else", "version": "hidden"}, True),
            ("someone/else", {"model": "nobody/else", "version": "hidden"}, False),
            (f"someone/else:{'b' * 64}", {"model": "someone/else", "version": "hidden"}, False),
        ],
    )
    def test_wants_the_same_model_or_version(self, replicate, api, version, entry, is_found):
        api.get(LIST, json=page(prediction(**entry)))
        request = SubmitRequest(MODEL, {"prompt": "a cat"}, version=version)
        assert self.ids(find(replicate, request)) == [ID] * is_found

    @pytest.mark.parametrize(
        ("deployment", "entry", "is_found"),
        [
            ("us/cats", {"model": "someone/else", "deployment": "us/cats"}, True),
            ("us/cats", {"model": MODEL}, True),
            ("us/cats", {"model": "someone/else", "deployment": "us/dogs"}, False),
            ("us/cats", {"model": "someone/else"}, False),
            (None, {"model": "someone/else", "deployment": None}, False),
        ],
    )
    def test_knows_a_deployment_by_its_name(self, replicate, api, deployment, entry, is_found):
        api.get(LIST, json=page(prediction(**entry)))
        request = SubmitRequest(MODEL, {"prompt": "a cat"}, deployment=deployment)
        assert self.ids(find(replicate, request)) == [ID] * is_found

    @pytest.mark.parametrize(
        ("sent", "found", "is_same"),
        [
            ({}, {"prompt": "anything"}, True),
            ({"prompt": "a"}, {"prompt": "a", "seed": 5, "go_fast": True}, True),
            ({"prompt": "a", "seed": 5}, {"prompt": "a"}, False),
            ({"prompt": "a"}, {}, False),
            ({"prompt": "a"}, {"prompt": "b"}, False),
            ({"prompt": "a"}, {"prompt": "a "}, False),
            ({"prompt": "\u00e9"}, {"prompt": "e\u0301"}, False),
            ({"x": 1}, {"x": 1.0}, True),
            ({"x": 3.5}, {"x": 3.5}, True),
            ({"x": 1}, {"x": True}, False),
            ({"x": False}, {"x": 0}, False),
            ({"x": False}, {"x": False}, True),
            ({"x": 1}, {"x": "1"}, False),
            ({"x": None}, {"x": None}, True),
            ({"x": None}, {"x": False}, False),
            ({"x": None}, {}, False),
            ({"x": (1, 2)}, {"x": [1, 2.0]}, True),
            ({"x": [1, 2]}, {"x": [2, 1]}, False),
            ({"x": [1]}, {"x": [1, 2]}, False),
            ({"x": [1]}, {"x": [True]}, False),
            ({"x": []}, {"x": {}}, False),
            ({"x": {"y": 1, "z": [0]}}, {"x": {"z": [0], "y": 1}}, True),
            ({"x": {"y": 1}}, {"x": {"y": 1, "z": 2}}, False),
            ({"x": {"y": 1}}, {"x": {"y": True}}, False),
            ({"x": "a\0b \ud83d"}, {"x": "a\0b \ud83d"}, True),
        ],
    )
    def test_wants_every_parameter_that_was_sent(self, replicate, api, sent, found, is_same):
        api.get(LIST, json=page(prediction(input=found)))
        assert self.ids(find(replicate, SubmitRequest(MODEL, sent))) == [ID] * is_same

    def test_reads_all_pages(self, replicate, api):
        second, third = f"{LIST}?cursor=b%3D&x=1", f"{LIST}?cursor=c"
        api.get(LIST, json=page(prediction(id="a"), next=second))
        api.get(second, json=page(prediction(id="b"), prediction(id="a"), next=third))
        api.get(third, json=page(prediction(id="other", input={}), prediction(id="c")))
        assert self.ids(find(replicate)) == ["a", "b", "c"]
        assert [call.request.url for call in api.calls][1:] == [second, third]
        assert all(c.request.headers["Authorization"] == f"Bearer {TOKEN}" for c in api.calls)

    @pytest.mark.parametrize(
        ("base_url", "link"),
        [
            (BASE, f"{BASE}:443/v1/predictions?cursor=b"),
            (BASE, "HTTPS://API.Replicate.Test/v1/predictions?cursor=b#top"),
            (BASE, "https://user:word@api.replicate.test/v1/predictions?cursor=b"),
            (f"{BASE}/", f"{BASE}/v1/predictions?cursor=b"),
        ],
    )
    def test_follows_a_link_of_the_same_origin(self, http, api, base_url, link):
        api.get(LIST, json=page(next=link))
        api.get(f"{LIST}?cursor=b", json=page(prediction()))
        replicate = ReplicateProvider(TOKEN, http=http, base_url=base_url)
        assert self.ids(find(replicate)) == [ID]
        assert api.calls[1].request.url == f"{LIST}?cursor=b"

    def test_follows_a_link_below_a_base_with_a_path(self, http, api):
        base = "https://proxy.test/replicate"
        api.get(f"{base}/v1/predictions", json=page(next=f"{base}/v1/predictions?cursor=b"))
        api.get(f"{base}/v1/predictions?cursor=b", json=page(prediction()))
        replicate = ReplicateProvider(TOKEN, http=http, base_url=base)
        assert self.ids(find(replicate)) == [ID]

    @pytest.mark.parametrize(
        "link",
        [
            "https://evil.test/v1/predictions?cursor=b",
            "http://api.replicate.test/v1/predictions?cursor=b",
            "https://api.replicate.test:8443/v1/predictions?cursor=b",
            "https://api.replicate.test.evil.test/v1/predictions",
            "https://api.replicate.test@evil.test/v1/predictions",
            "https://api.replicate.test\\@evil.test/v1/predictions",
            "https://api.replicate.test:x/v1/predictions",
            "https://[::1/v1/predictions",
            "https://api.replicate.test",
            "//evil.test/v1/predictions",
            "/v1/predictions?cursor=b",
            "?cursor=b",
            "",
            5,
            True,
            ["x"],
        ],
    )
    def test_fails_rather_than_follow_another_link(self, replicate, api, link):
        api.get(LIST, json=page(prediction(), next=link))
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert len(api.calls) == 1

    def test_cannot_be_led_to_another_host_by_a_path(self, replicate, api):
        api.get(LIST, json=page(next=f"{BASE}//evil.test/v1/predictions"))
        api.get(f"{BASE}//evil.test/v1/predictions", json=page())
        assert find(replicate) == ()
        assert urlsplit(api.calls[1].request.url).hostname == "api.replicate.test"

    def test_fails_when_the_list_has_no_end(self, replicate, api):
        api.get(LIST, json=page(prediction(), next=f"{LIST}?cursor=b"))
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.UNKNOWN
        assert len(api.calls) == FIND_MAX_PAGES == 50

    def test_reads_a_list_of_as_many_pages_as_allowed(self, replicate, api):
        for number in range(FIND_MAX_PAGES - 1):
            api.get(LIST, json=page(next=f"{LIST}?cursor={number}"))
        api.get(LIST, json=page(prediction()))
        assert self.ids(find(replicate)) == [ID]

    def test_has_one_deadline_for_all_pages(self, http, serve, answer, monkeypatch):
        monkeypatch.setattr("generation.providers.replicate.FIND_DEADLINE_S", 0.3)

        def script(sock, request, server):
            time.sleep(0.05)
            body = page(prediction(), next=server.url("/v1/predictions?cursor=b"))
            sock.sendall(answer(json.dumps(body).encode()))
            return True

        server = serve(script)
        started = time.monotonic()
        result = find(ReplicateProvider(TOKEN, http=http, base_url=server.url("")))
        assert time.monotonic() - started < 2
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert 1 < len(server.requests) < 10

    def test_bounds_each_page_by_what_is_left(self, monkeypatch):
        now = iter([100.0, 100.0, 113.0, 119.5, 120.0])
        monkeypatch.setattr("generation.providers.replicate.monotonic", lambda: next(now))
        body = page(next="https://api.replicate.com/v1/predictions?cursor=b")
        with FakeHttp(Response(200, {}, json.dumps(body).encode())) as http:
            result = find(ReplicateProvider(TOKEN, http=http))
        assert isinstance(result, Failure)
        assert http.deadlines_s == [10.0, 7.0, 0.5]

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (401, ErrorClass.AUTH),
            (404, ErrorClass.NOT_FOUND),
            (429, ErrorClass.RATE_LIMITED),
            (503, ErrorClass.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_fails_when_any_page_is_refused(self, replicate, api, status, expected):
        api.get(LIST, json=page(prediction(), next=f"{LIST}?cursor=b"))
        api.get(LIST, status=status, headers={"Retry-After": "3"})
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == expected
        assert result.retry_after_s == 3.0

    @pytest.mark.parametrize("kind", ["connect", "sent", "read"])
    def test_fails_when_a_page_is_lost(self, kind):
        with FakeHttp(TransportError(kind, "lost")) as http:
            result = find(ReplicateProvider(TOKEN, http=http))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @pytest.mark.parametrize(
        "body",
        [
            "<html>maintenance</html>",
            "null",
            "[]",
            "{}",
            '{"results": []}',
            '{"next": null}',
            '{"next": null, "results": {}}',
            '{"next": null, "results": null}',
        ],
    )
    def test_fails_when_a_page_is_none(self, replicate, api, body):
        api.get(LIST, body=body)
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @pytest.mark.parametrize(
        "entry",
        [
            None,
            "x",
            [],
            {},
            prediction(id=None),
            prediction(id="x" * 101),
            prediction(status=None),
            prediction(model=None),
            prediction(created_at=None),
            prediction(created_at="yesterday"),
            prediction(created_at="2026-11-20T10:00:00"),
            prediction(input=None),
            prediction(input=[]),
        ],
    )
    def test_fails_when_an_entry_cannot_be_read(self, replicate, api, entry):
        api.get(LIST, json=page(prediction(), entry))
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    def test_does_not_tell_the_webhook_of_an_entry_it_cannot_read(self, replicate, api):
        api.get(LIST, json=page(prediction(created_at=None, webhook="https://picture.test/s3cr3t")))
        result = find(replicate)
        assert isinstance(result, Failure)
        assert ID in result.raw
        assert "s3cr3t" not in repr(result)

    @pytest.mark.parametrize("removed_input", [{}, None, {"prompt": "a cat"}])
    def test_fails_when_the_input_of_such_a_prediction_was_deleted(
        self, replicate, api, removed_input
    ):
        removed = prediction(id="old", data_removed=True, input=removed_input)
        api.get(LIST, json=page(prediction(), removed))
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.UNKNOWN

    @pytest.mark.parametrize(
        "fields", [{"model": "someone/else"}, {"created_at": "2026-11-20T09:00:00Z"}]
    )
    def test_minds_no_other_prediction_that_was_deleted(self, replicate, api, fields):
        removed = prediction(id="old", data_removed=True, input={}, **fields)
        api.get(LIST, json=page(prediction(), removed))
        assert self.ids(find(replicate)) == [ID]

    @pytest.mark.parametrize("name", ["since", "until"])
    def test_refuses_a_time_without_an_offset(self, replicate, name):
        with pytest.raises(ValueError, match="offset"):
            find(replicate, **{name: datetime(2026, 11, 20)})


class TestWithTheSimulator:
    @pytest.fixture
    def replicate(self, http, sim):
        return ReplicateProvider(support.TOKEN, http=http, base_url=sim.url)

    def submit(self, replicate, prompt, model=support.FLUX, version=None, **values) -> Prediction:
        request = SubmitRequest(model, {"prompt": prompt, **values}, version=version)
        result = replicate.submit(request)
        assert isinstance(result, Prediction), result
        return result

    def created_at(self, sim, prediction_id) -> datetime:
        return datetime.fromisoformat(sim.get(prediction_id)["created_at"])

    def test_find_gives_what_was_submitted_and_no_other(self, replicate, sim):
        since = datetime.now(UTC) - timedelta(seconds=5)
        until = since + timedelta(minutes=1)
        first = self.submit(replicate, "a cat")
        self.submit(replicate, "a dog")
        self.submit(replicate, "a cat", num_outputs=2)
        self.submit(replicate, "a cat", model=support.FLUX_DEV)
        second = self.submit(replicate, "a cat", num_outputs=1.0)
        for prediction_id in (first.id, second.id):
            sim.ended(prediction_id)

        def found(**values):
            request = SubmitRequest(support.FLUX, {"prompt": "a cat", **values})
            result = replicate.find(request, since=since, until=until)
            assert isinstance(result, tuple), result
            return result

        assert second.id in [prediction.id for prediction in found()]
        assert found(num_outputs=1) == (replicate.fetch(second.id),)
        assert found(num_outputs=3) == ()

    def test_find_takes_the_time_as_the_list_does(self, replicate, sim):
        ids = [self.submit(replicate, "a cat").id for _ in range(3)]
        first, second, third = (self.created_at(sim, one) for one in ids)
        request = SubmitRequest(support.FLUX, {"prompt": "a cat"})

        def found(since, until):
            result = replicate.find(request, since=since, until=until)
            assert isinstance(result, tuple), result
            return [prediction.id for prediction in result]

        tick = timedelta(microseconds=1)
        assert found(first, third + tick) == ids[::-1]
        assert found(first, third) == [ids[1], ids[0]]
        assert found(first + tick, third + tick) == [ids[2], ids[1]]
        assert found(second, second + tick) == [ids[1]]
        assert found(second, second) == []

    def test_find_knows_a_version_by_its_id(self, replicate, sim):
        since = datetime.now(UTC) - timedelta(seconds=5)
        version = f"{support.SDXL}:{support.SDXL_VERSION}"
        made = self.submit(replicate, "a cat", model=support.SDXL, version=version)
        request = SubmitRequest(support.SDXL, {"prompt": "a cat"}, version=version)
        result = replicate.find(request, since=since, until=since + timedelta(minutes=1))
        assert isinstance(result, tuple)
        assert [found.id for found in result] == [made.id]

    def test_find_goes_through_all_pages(self, replicate, sim):
        since = datetime.now(UTC) - timedelta(seconds=5)
        wanted = self.submit(replicate, "the first of many")
        for _ in range(205):
            sim.created()
        request = SubmitRequest(support.FLUX, {"prompt": "the first of many"})
        result = replicate.find(request, since=since, until=since + timedelta(minutes=5))
        assert isinstance(result, tuple)
        assert [found.id for found in result] == [wanted.id]

    def test_find_cannot_tell_after_the_data_was_deleted(self, replicate, sim):
        since = datetime.now(UTC) - timedelta(seconds=5)
        sim.fault("expired")
        made = self.submit(replicate, "a cat")
        sim.ended(made.id)
        support.eventually(lambda: sim.get(made.id)["data_removed"], "removed")
        for model, expected in [(support.FLUX, Failure), (support.FLUX_DEV, tuple)]:
            request = SubmitRequest(model, {"prompt": "a cat"})
            result = replicate.find(request, since=since, until=since + timedelta(minutes=1))
            assert isinstance(result, expected)

    def test_find_with_a_wrong_token_is_a_failure(self, http, sim):
        replicate = ReplicateProvider("wrong", http=http, base_url=sim.url)
        result = find(replicate)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.AUTH

    def test_cancel_of_finished_work_changes_nothing(self, replicate, sim):
        made = self.submit(replicate, "a cat")
        sim.ended(made.id)
        result = replicate.cancel(made.id)
        assert isinstance(result, Prediction)
        assert result.status == PredictionStatus.SUCCEEDED
        assert result == replicate.fetch(made.id)

    def test_cancel_of_unknown_work_is_not_found(self, replicate):
        result = replicate.cancel("nothing")
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.NOT_FOUND


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
            (["https://x/0.png"] * 100, ("https://x/0.png",) * 100),
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
            ({"output": ["https://x/a.png"] * 101}, ErrorClass.BAD_OUTPUT),
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
            ({"predict_time": 10**400}, None),
            ({"predict_time": 1e300}, None),
            ({"predict_time": True}, None),
            ({}, None),
            (None, None),
            ([], None),
        ],
    )
    def test_run_time_is_the_billed_one(self, metrics, expected_s):
        assert read(metrics=metrics).run_s == expected_s

    @pytest.mark.parametrize("status", ["succeeded", "failed", "canceled", "aborted"])
    def test_run_time_is_told_whatever_came_of_it(self, status):
        result = read(
            status=status,
            output="https://x/a.png",
            metrics={"predict_time": 2.5},
            completed_at="2026-11-20T10:00:03.123456Z",
        )
        assert (result.run_s, result.total_s) == (2.5, 3.0)

    @pytest.mark.parametrize(
        ("metrics", "expected"),
        [
            ({"image_count": 2}, 2),
            ({"image_count": 0}, 0),
            ({"image_count": -1}, None),
            ({"image_count": 10**9}, None),
            ({"image_count": True}, None),
            ({"image_count": "2"}, None),
            ({"image_count": 1.5}, None),
            ({}, None),
            (None, None),
        ],
    )
    def test_billed_images_are_those_counted(self, metrics, expected):
        assert read(metrics=metrics).billed_images == expected

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
            ("2026-11-20T10:00:00Z", "2026-11-27T10:00:00Z", 604_800.0),
            ("2026-11-20T10:00:00Z", "2026-11-27T10:00:01Z", None),
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
        assert provider.sends_webhooks

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
            ReplicateProvider(TOKEN, http=http, base_url=refused_url),
            replicate,
            caplog.text,
        ]
        assert TOKEN not in repr(told)
        assert "[token]" in repr(told)
