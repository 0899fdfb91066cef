"""The RunPod adapter: what it sends, and how it reads what comes back."""

import base64
import hashlib
import io
import json
import logging
import re
import time
import tracemalloc
from dataclasses import replace

import pytest
import responses

from generation.catalogue import Resolved, load_entries, load_models, parse_entry
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
    WebhookDelivery,
    WebhookRefusal,
    Workflow,
)
from generation.providers.runpod import (
    ID_MAX_LENGTH,
    REQUEST_MAX_BYTES,
    RESULT_MAX_BYTES,
    RunPodProvider,
)
from tests.simulator.runpod_support import (
    KEY,
    RunPodClient,
    image_workflow,
    noise_png,
    text_workflow,
)
from tests.simulator.support import eventually

SECRET = "rpa_TestKeyThatMustNotLeak"
BASE = "https://api.runpod.test/v2"
JOB = "6de99fd1-4474-4565-9243-694ffeb65218-u1"
ID = f"e1/{JOB}"
RUN = f"{BASE}/e1/run"
STATUS = f"{BASE}/e1/status/{JOB}"
CANCEL = f"{BASE}/e1/cancel/{JOB}"
HEALTH = f"{BASE}/e1/health"
BINDINGS = {"prompt": (("2", "text"),), "seed": (("5", "seed"),)}
WORKFLOW = Workflow(text_workflow(), BINDINGS)
REQUEST = SubmitRequest("runpod/sdxl", {"prompt": "a dog", "seed": 5}, workflow=WORKFLOW)
PNG = base64.b64encode(noise_png(16)).decode()
URL = "https://bucket.test/a.png?X-Amz-Signature=x"


def job(**fields):
    return {"id": JOB, "status": "IN_QUEUE", **fields}


def completed(output, **fields):
    return job(status="COMPLETED", delayTime=500, executionTime=4567, output=output, **fields)


def failed(error, **fields):
    return job(status="FAILED", delayTime=500, executionTime=1500, error=error, **fields)


def picture(content=b"image", filename="cat.png"):
    return InputFile(
        filename=filename,
        content_type="image/png",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        open=lambda: io.BytesIO(content),
    )


@pytest.fixture
def runpod(http):
    return RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=BASE)


@pytest.fixture
def api():
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def fetch(runpod, api):
    """Return what `fetch` makes of a job object."""

    def fetch(body) -> Prediction:
        api.get(STATUS, body=body if isinstance(body, str) else json.dumps(body))
        result = runpod.fetch(ID)
        assert isinstance(result, Prediction), result
        return result

    return fetch


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
    def test_queues_the_workflow_with_its_values_in_their_places(self, runpod, api):
        api.post(RUN, json=job())
        result = runpod.submit(REQUEST)
        assert result == Prediction(ID, PredictionStatus.STARTING, raw=job())
        sent = api.calls[0].request
        assert sent.headers["Authorization"] == f"Bearer {SECRET}"
        body = json.loads(sent.body)
        assert body.keys() == {"input"}
        assert body["input"].keys() == {"workflow"}
        nodes = body["input"]["workflow"]
        assert (nodes["2"]["inputs"]["text"], nodes["5"]["inputs"]["seed"]) == ("a dog", 5)
        assert nodes["3"] == text_workflow()["3"]
        assert WORKFLOW.nodes == text_workflow()

    @pytest.mark.parametrize(
        "base_url",
        ["https://api.runpod.test", "https://api.runpod.test/", BASE, BASE + "/"],
    )
    def test_goes_to_the_base_address_with_or_without_the_version(self, http, api, base_url):
        api.post(RUN, json=job())
        runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=base_url)
        assert isinstance(runpod.submit(REQUEST), Prediction)

    def test_goes_to_the_endpoint_of_the_request_and_is_named_after_it(self, runpod, api):
        api.post(f"{BASE}/own-one/run", json=job())
        result = runpod.submit(SubmitRequest("m", {}, workflow=WORKFLOW, endpoint="own-one"))
        assert isinstance(result, Prediction)
        assert result.id == f"own-one/{JOB}"

    def test_of_the_longest_names_is_followed(self, runpod, api):
        endpoint, job_id = "e" * 39, "j" * 60
        api.post(f"{BASE}/{endpoint}/run", json=job(id=job_id))
        result = runpod.submit(SubmitRequest("m", {}, workflow=WORKFLOW, endpoint=endpoint))
        assert isinstance(result, Prediction)
        assert result.id == f"{endpoint}/{job_id}"
        assert len(result.id) == ID_MAX_LENGTH

    @pytest.mark.parametrize(
        "endpoint",
        ["abc123", "own-one", "e" * 39, "e" * 40, "own_one", "own.one", "a b", "é", "a/b"],
    )
    def test_goes_to_just_the_endpoints_that_the_catalogue_takes(self, endpoint):
        entry = {**load_entries()["runpod/sdxl"], "endpoint": endpoint}
        try:
            is_taken = parse_entry("own/model", entry).endpoint == endpoint
        except ValueError:
            is_taken = False
        with FakeHttp(Response(200, {}, json.dumps(job()).encode())) as http:
            runpod = RunPodProvider(SECRET, http=http)
            result = runpod.submit(SubmitRequest("m", {}, workflow=WORKFLOW, endpoint=endpoint))
        assert isinstance(result, Prediction) is is_taken
        assert is_taken is (re.fullmatch("[a-z0-9-]{1,39}", endpoint) is not None)

    @pytest.mark.parametrize("endpoint", [None, "a/b", "..", "a b", "x" * 40])
    def test_without_a_sound_endpoint_sends_nothing(self, http, endpoint):
        runpod = RunPodProvider(SECRET, http=http, base_url=BASE)
        result = runpod.submit(SubmitRequest("m", {}, workflow=WORKFLOW, endpoint=endpoint))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.NOT_FOUND

    def test_with_a_webhook_names_it(self, runpod, api):
        api.post(RUN, json=job())
        runpod.submit(SubmitRequest("m", {}, workflow=WORKFLOW, webhook_url="https://p.test/h/"))
        assert json.loads(api.calls[0].request.body)["webhook"] == "https://p.test/h/"

    @pytest.mark.parametrize(
        ("asked_s", "execution_s", "ttl_s"),
        [
            (1, 6, 301),
            (5, 6, 305),
            (600, 600, 900),
            (604_799, 604_799, 604_800),
            (9_999_999, 604_800, 604_800),
        ],
    )
    def test_with_a_limit_has_the_provider_stop_by_itself_and_keep_the_result_for_a_while(
        self, runpod, api, asked_s, execution_s, ttl_s
    ):
        api.post(RUN, json=job())
        runpod.submit(SubmitRequest("m", {}, workflow=WORKFLOW, cancel_after_s=asked_s))
        policy = json.loads(api.calls[0].request.body)["policy"]
        assert policy == {"executionTimeout": execution_s * 1000, "ttl": ttl_s * 1000}

    def test_sends_files_in_base64_under_names_of_their_content(self, runpod, api):
        api.post(RUN, json=job())
        one, other = picture(b"one", "cat.png"), picture(b"other", "cat.jpg")
        nodes = {str(n): {"class_type": "LoadImage", "inputs": {"image": ""}} for n in range(5)}
        bindings = {
            "first": (("0", "image"), ("1", "image")),
            "more": (("2", "image"), ("3", "image"), ("4", "image")),
        }
        files = {"first": (one,), "more": (other, one)}
        runpod.submit(SubmitRequest("m", {}, workflow=Workflow(nodes, bindings), files=files))
        sent = json.loads(api.calls[0].request.body)["input"]
        names = [entry["name"] for entry in sent["images"]]
        assert len(set(names)) == 2
        assert [name.rpartition(".")[2] for name in names] == ["png", "jpg"]
        contents = [base64.b64decode(entry["image"]) for entry in sent["images"]]
        assert contents == [b"one", b"other"]
        bound = [sent["workflow"][str(n)]["inputs"]["image"] for n in range(5)]
        # The last of several goes into what places are left.
        assert bound == [names[0], names[0], names[1], names[0], names[0]]

    def test_of_more_files_than_places_is_refused_here(self, runpod):
        workflow = Workflow(image_workflow(""), {"image": (("1", "image"),)})
        files = {"image": (picture(b"a"), picture(b"b"))}
        result = runpod.submit(SubmitRequest("m", {}, workflow=workflow, files=files))
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.INVALID_INPUT
        assert "image" in result.fields

    @pytest.mark.parametrize("over", [0, 1])
    def test_is_at_most_ten_megabytes_all_told(self, http, serve, answer, over):
        server = serve(lambda sock, *_: sock.sendall(answer(json.dumps(job()).encode())) is None)
        workflow = Workflow(image_workflow(""), {"image": (("1", "image"),)})

        def request(size):
            content = bytes(size)
            # The hash does not matter here, and takes long.
            file = InputFile("a.png", "image/png", size, "0" * 64, lambda: io.BytesIO(content))
            return SubmitRequest("m", {}, workflow=workflow, files={"image": (file,)})

        runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=server.url(""))
        runpod.submit(request(3))
        room = REQUEST_MAX_BYTES - len(server.requests[0].body) + 4
        result = runpod.submit(request(room // 4 * 3 + over))
        if over:
            assert isinstance(result, Failure)
            assert result.error_class == ErrorClass.INVALID_INPUT
            assert "10.0 MB" in result.message
            assert "takes 10 MB" in result.message
            assert len(server.requests) == 1
        else:
            assert isinstance(result, Prediction)
            assert REQUEST_MAX_BYTES - 4 < len(server.requests[1].body) <= REQUEST_MAX_BYTES

    @pytest.mark.parametrize(
        ("timeout_s", "expected_s"), [(None, 15.0), (4.5, 4.5), (15.0, 15.0), (60.0, 15.0)]
    )
    def test_waits_as_long_as_asked_but_not_longer_than_usual(self, timeout_s, expected_s):
        with FakeHttp(Response(200, {}, json.dumps(job()).encode())) as http:
            request = SubmitRequest("m", {}, workflow=WORKFLOW, timeout_s=timeout_s)
            runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http)
            assert isinstance(runpod.submit(request), Prediction)
        assert http.deadlines_s == [expected_s]

    @pytest.mark.parametrize(
        ("timeout_s", "read_s", "expected_s"),
        [
            (None, 0.0, 60.0),
            (None, 20.0, 40.0),
            (30.0, 20.0, 10.0),
            (90.0, 20.0, 40.0),
            (30.0, 29.5, None),
            (30.0, 40.0, None),
        ],
    )
    def test_with_files_has_longer_less_what_reading_them_took(
        self, monkeypatch, timeout_s, read_s, expected_s
    ):
        clock = [1_000.0]
        monkeypatch.setattr("generation.providers.runpod.monotonic", lambda: clock[0])

        def read():
            clock[0] += read_s
            return io.BytesIO(b"image")

        workflow = Workflow(image_workflow(""), {"image": (("1", "image"),)})
        files = {"image": (replace(picture(), open=read),)}
        request = SubmitRequest("m", {}, workflow=workflow, files=files, timeout_s=timeout_s)
        with FakeHttp(Response(200, {}, json.dumps(job()).encode())) as http:
            result = RunPodProvider(SECRET, endpoint_id="e1", http=http).submit(request)
        if expected_s is None:
            assert isinstance(result, Failure)
            assert result.error_class == ErrorClass.INTERRUPTED
            assert http.deadlines_s == []
        else:
            assert isinstance(result, Prediction)
            assert http.deadlines_s == [expected_s]

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (TransportError("connect", "refused"), ErrorClass.PROVIDER_UNAVAILABLE),
            (TransportError("sent", "reset"), ErrorClass.TIMEOUT_UNKNOWN),
            (TransportError("read", "cut", 200), ErrorClass.TIMEOUT_UNKNOWN),
            (TransportError("read", "cut", 504), ErrorClass.TIMEOUT_UNKNOWN),
            (TransportError("read", "cut", 429), ErrorClass.RATE_LIMITED),
            (TransportError("read", "cut", 503), ErrorClass.PROVIDER_UNAVAILABLE),
            (TransportError("read", "cut", 400), ErrorClass.INVALID_INPUT),
        ],
    )
    def test_without_a_whole_answer_is_judged_by_how_far_it_came(self, error, expected):
        with FakeHttp(error) as http:
            result = RunPodProvider(SECRET, endpoint_id="e1", http=http).submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == expected

    @pytest.mark.parametrize(
        "body", ["<html>ok</html>", "[]", "{}", '{"id": "", "status": "x"}', '{"id": "../x"}']
    )
    def test_accepted_without_a_readable_id_has_an_unknown_outcome(self, runpod, api, body):
        api.post(RUN, body=body)
        result = runpod.submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.TIMEOUT_UNKNOWN
        assert result.raw == body

    def test_accepted_with_an_id_alone_is_followed(self, runpod, api):
        api.post(RUN, json={"id": JOB})
        result = runpod.submit(REQUEST)
        assert isinstance(result, Prediction)
        assert (result.id, result.status) == (ID, PredictionStatus.STARTING)


STATUSES = [
    (400, ErrorClass.INVALID_INPUT),
    (401, ErrorClass.AUTH),
    (402, ErrorClass.INSUFFICIENT_CREDIT),
    (403, ErrorClass.AUTH),
    (413, ErrorClass.INVALID_INPUT),
    (422, ErrorClass.INVALID_INPUT),
    (429, ErrorClass.RATE_LIMITED),
    (500, ErrorClass.PROVIDER_UNAVAILABLE),
    (502, ErrorClass.PROVIDER_UNAVAILABLE),
    (302, ErrorClass.UNKNOWN),
    (418, ErrorClass.UNKNOWN),
]


class TestRefusal:
    @pytest.mark.parametrize(("status", "expected"), STATUSES)
    @pytest.mark.parametrize("operation", ["submit", "fetch", "cancel", "check"])
    def test_is_classified_by_status(self, runpod, api, operation, status, expected):
        text = json.dumps({"error": f"out of memory, {SECRET}"})
        calls = {
            "submit": ("POST", RUN, lambda: runpod.submit(REQUEST)),
            "fetch": ("GET", STATUS, lambda: runpod.fetch(ID)),
            "cancel": ("POST", CANCEL, lambda: runpod.cancel(ID)),
            "check": ("GET", HEALTH, runpod.check),
        }
        method, url, call = calls[operation]
        api.add(method, url, body=text, status=status, headers={"Retry-After": "7"})
        result = call()
        assert isinstance(result, Failure)
        assert (result.error_class, result.provider_code) == (expected, str(status))
        assert result.retry_after_s == 7.0
        assert SECRET not in repr(result)

    def test_of_an_endpoint_is_not_found(self, runpod, api):
        api.post(RUN, status=404)
        result = runpod.submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.NOT_FOUND

    @pytest.mark.parametrize("status", [408, 504, 520, 524])
    def test_of_a_gateway_that_gave_up_waiting_leaves_it_open(self, runpod, api, status):
        api.post(RUN, body="<html>timed out</html>", status=status)
        result = runpod.submit(REQUEST)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.TIMEOUT_UNKNOWN


class TestLook:
    @pytest.mark.parametrize(
        ("word", "status", "error_class"),
        [
            ("IN_QUEUE", PredictionStatus.STARTING, None),
            ("IN_PROGRESS", PredictionStatus.RUNNING, None),
            ("RUNNING", PredictionStatus.RUNNING, None),
            ("FROM_THE_FUTURE", PredictionStatus.RUNNING, None),
            ("CANCELED", PredictionStatus.RUNNING, None),
            ("FAILED", PredictionStatus.FAILED, ErrorClass.UNKNOWN),
            ("CANCELLED", PredictionStatus.FAILED, ErrorClass.CANCELED),
            ("TIMED_OUT", PredictionStatus.FAILED, ErrorClass.TIMEOUT_RUN),
        ],
    )
    def test_reads_every_status(self, fetch, word, status, error_class):
        result = fetch(job(status=word, delayTime=100, executionTime=5000))
        assert result.status == status
        assert result.is_terminal is (error_class is not None)
        if error_class:
            assert result.failure is not None
            assert result.failure.error_class == error_class
        assert (result.run_s, result.total_s) == ((5.0, 5.1) if error_class else (None, None))

    def test_of_what_timed_out_before_it_ran_says_that_no_worker_was_free(self, fetch):
        result = fetch(job(status="TIMED_OUT"))
        assert result.failure is not None
        assert result.failure.error_class == ErrorClass.QUEUE_FULL

    @pytest.mark.parametrize(
        ("output", "progress"),
        [
            ({"type": "progress", "value": 12, "max": 25, "percent": 48.0, "node": "3"}, 48),
            ({"percent": 250}, 100),
            ({"percent": -1}, 0),
            ({"percent": "48"}, None),
            ({"percent": True}, None),
            ("48 %", None),
            (None, None),
        ],
    )
    def test_reads_the_progress_that_a_worker_reports(self, fetch, output, progress):
        assert fetch(job(status="IN_PROGRESS", output=output)).progress == progress

    @pytest.mark.parametrize("value", ["4567", -1, True, None, 1e400, 10**400, {}, 604_800_001])
    def test_reads_times_that_are_numbers_only(self, fetch, value):
        body = completed([URL]) | {"executionTime": value}
        result = fetch(json.dumps(body))
        assert (result.run_s, result.total_s) == (None, None)

    def test_names_the_job_by_what_was_asked_for(self, runpod, api):
        api.get(STATUS, json={"status": "IN_QUEUE"})
        result = runpod.fetch(JOB)
        assert isinstance(result, Prediction)
        assert result.id == ID

    @pytest.mark.parametrize(
        "body", ["<html>", "[]", "{}", '{"status": 5}', '{"id": "another", "status": "IN_QUEUE"}']
    )
    def test_of_something_else_says_nothing(self, runpod, api, body):
        api.get(STATUS, body=body)
        result = runpod.fetch(ID)
        assert isinstance(result, Failure)
        assert result.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @pytest.mark.parametrize("operation", ["fetch", "cancel"])
    def test_of_a_job_that_is_gone_ends_it(self, runpod, api, operation):
        api.add(
            "GET" if operation == "fetch" else "POST",
            f"{BASE}/e1/{'status' if operation == 'fetch' else 'cancel'}/{JOB}",
            status=404,
        )
        result = getattr(runpod, operation)(ID)
        assert isinstance(result, Prediction)
        assert result.id == ID
        assert result.failure is not None
        assert (result.failure.error_class, result.failure.provider_code) == (
            ErrorClass.INTERRUPTED,
            "404",
        )

    @pytest.mark.parametrize("operation", ["fetch", "cancel"])
    def test_of_a_job_that_is_not_known_yet_goes_on(self, runpod, http, monkeypatch, operation):
        clock = [1_000.0]
        monkeypatch.setattr("generation.providers.runpod.monotonic", lambda: clock[0])
        other = RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=BASE)
        with responses.RequestsMock() as api:
            api.post(RUN, json=job())
            api.post(RUN, json=job(id="later"))
            method = {"fetch": "GET", "cancel": "POST"}[operation]
            api.add(method, STATUS if operation == "fetch" else CANCEL, status=404)
            runpod.submit(REQUEST)
            clock[0] += 9.5
            runpod.submit(REQUEST)
            assert getattr(runpod, operation)(ID) == Prediction(ID, PredictionStatus.STARTING)
            clock[0] += 1
            # Not what was submitted longer ago, nor by another process.
            for result in (getattr(runpod, operation)(ID), getattr(other, operation)(ID)):
                assert result.failure.error_class == ErrorClass.INTERRUPTED

    @pytest.mark.parametrize("name", ["", "e1/", "a/b/c", "e1/../x", "e1/x?y=1", "é/x", "x" * 61])
    def test_of_a_name_that_is_none_asks_nobody(self, runpod, name):
        for result in (runpod.fetch(name), runpod.cancel(name)):
            assert isinstance(result, Failure)
            assert result.error_class == ErrorClass.NOT_FOUND

    def test_of_a_result_that_is_too_large_ends_it_and_says_what_would_help(self):
        error = TransportError("read", "too large", 200, too_large=True)
        with FakeHttp(error) as http:
            result = RunPodProvider(SECRET, endpoint_id="e1", http=http).fetch(ID)
        assert isinstance(result, Prediction)
        assert result.failure is not None
        # To make it again would end the same.
        assert result.failure.error_class == ErrorClass.INVALID_INPUT
        assert "fewer or smaller images" in result.failure.message

    def test_at_a_result_that_is_too_large_really_ends_it(self, http, serve):
        def script(sock, request, server):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
            for _ in range(RESULT_MAX_BYTES // 1_000_000 + 2):
                sock.sendall(b"x" * 1_000_000)
            return False

        runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=serve(script).url(""))
        result = runpod.fetch(ID)
        assert isinstance(result, Prediction)
        assert result.failure is not None
        assert result.failure.error_class == ErrorClass.INVALID_INPUT


BASE64_IMAGE = {"filename": "ComfyUI_00001_.png", "type": "base64", "data": PNG}
URL_IMAGE = {"filename": "ComfyUI_00001_.png", "type": "s3_url", "data": URL}
BAD = ErrorClass.BAD_OUTPUT
OUTPUTS = {
    "base64": ({"images": [BASE64_IMAGE]}, ("0",)),
    "several": ({"images": [BASE64_IMAGE] * 3}, ("0", "1", "2")),
    "url": ({"images": [URL_IMAGE]}, (URL,)),
    "mixed": ({"images": [BASE64_IMAGE, URL_IMAGE, BASE64_IMAGE]}, ("0", URL, "2")),
    "with errors": ({"images": [BASE64_IMAGE], "errors": ["one was lost"]}, ("0",)),
    "data URI": ({"images": [{"data": f"data:image/png;base64,{PNG}"}]}, ("0",)),
    "lines": ({"images": [base64.encodebytes(noise_png(16)).decode()]}, ("0",)),
    "words in lines": ({"message": "All done" + "\nand" * 99}, BAD),
    "strings": ({"images": [PNG, URL, f"data:image/png;base64,{PNG}"]}, ("0", URL, "2")),
    "message": ({"status": "success", "message": PNG}, ("0",)),
    "message with a url": ({"status": "success", "message": URL}, (URL,)),
    "message with data": ({"message": {"type": "base64", "data": PNG}}, ("0",)),
    "JSON as text": (json.dumps({"images": [BASE64_IMAGE, URL_IMAGE]}), ("0", URL)),
    "a string": (PNG, ("0",)),
    "a url": (URL, (URL,)),
    "a list of urls": ([URL, URL + "1"], (URL, URL + "1")),
    "a list of objects": ([{"image": URL, "seed": 46578}], (URL,)),
    "a list of outputs": ([{"images": [BASE64_IMAGE]}, {"images": [URL_IMAGE]}], ("0", URL)),
    "image_url": ({"image_url": URL, "seed": 1}, (URL,)),
    "success_no_images": ({"images": [], "status": "success_no_images"}, BAD),
    "success_no_output": ({"status": "success_no_output"}, BAD),
    "no output": (None, BAD),
    "no images": ({"images": []}, BAD),
    "empty data": ({"images": [{"type": "base64", "data": ""}]}, BAD),
    "words": ("All done!", BAD),
    "a number": (5, BAD),
    "numbers": ([1, 2], BAD),
    "a very long url": ([URL + "x" * 4_000], BAD),
    "a hundred at most": ([URL] * 101, (URL,) * 100),
    "nested too deep": ([[[[[[[URL]]]]]]], BAD),
    "errors alone": ({"images": [], "errors": ["CUDA out of memory"]}, ErrorClass.OUT_OF_MEMORY),
    "unknown errors alone": ({"errors": ["No outputs found in history"]}, BAD),
    "an old error": (
        {"status": "error", "message": "CUDA out of memory"},
        ErrorClass.OUT_OF_MEMORY,
    ),
    "another old error": ({"status": "error", "message": "Nobody knows"}, ErrorClass.UNKNOWN),
}


class TestOutput:
    @pytest.mark.parametrize(("output", "expected"), OUTPUTS.values(), ids=OUTPUTS)
    def test_is_read_in_every_form(self, fetch, output, expected):
        result = fetch(completed(output))
        assert (result.run_s, result.total_s) == (4.567, 5.067)
        if isinstance(expected, tuple):
            assert result.status == PredictionStatus.SUCCEEDED
            assert (result.outputs, result.progress) == (expected, 100)
        else:
            assert result.status == PredictionStatus.FAILED
            assert result.outputs == ()
            assert result.failure is not None
            assert result.failure.error_class == expected
        assert PNG not in repr(result)

    def test_that_is_partial_keeps_the_reasons_for_administrators(self, fetch):
        result = fetch(completed({"images": [BASE64_IMAGE], "errors": ["one was lost"]}))
        assert result.raw["output"]["errors"] == ["one was lost"]
        assert result.raw["output"]["images"] == [{**BASE64_IMAGE, "data": "…"}]

    @pytest.mark.parametrize("side_px", [4, 64, 300])
    @pytest.mark.parametrize("form", ["images", "message", "text", "escaped"])
    def test_in_base64_is_decoded_out_of_every_form(self, runpod, api, side_px, form):
        content = noise_png(side_px)
        data = base64.b64encode(content).decode()
        output = {"images": [{"data": data}]}
        if form == "message":
            output = {"message": f"data:image/png;base64,{data}"}
        text = json.dumps(completed(json.dumps(output) if form == "text" else output))
        if form == "escaped":
            text = text.replace("/", "\\/")
        api.get(STATUS, body=text)
        sink = io.BytesIO()
        result = runpod.download("0", sink, prediction_id=ID, max_bytes=len(content))
        assert isinstance(result, Downloaded)
        assert sink.getvalue() == content
        assert (result.size_bytes, result.sha256) == (
            len(content),
            hashlib.sha256(content).hexdigest(),
        )

    @pytest.mark.parametrize(
        "form",
        [
            r"%s",
            r"\n%s",
            r"%s\n",
            r"\u000a%s",
            r"data:image/png;base64,%s",
            r"data:image/png;base64,\n%s",
        ],
    )
    @pytest.mark.parametrize("side", ["slash", "letter"])
    @pytest.mark.parametrize("width", [None, 76, 5_000])
    def test_in_base64_may_follow_an_escape_and_be_broken_into_lines(
        self, runpod, api, form, side, width
    ):
        # Long enough to be taken out, with nothing in between that would end it.
        content = {"slash": b"\xfc", "letter": b"\x04"}[side] + bytes(12_000)
        data = base64.b64encode(content).decode()
        if width:
            data = r"\r\n".join(data[at : at + width] for at in range(0, len(data), width))
        data = form % data.replace("/", r"\/")
        text = json.dumps(completed({"images": [{"data": "HERE"}, "HERE"]})).replace("HERE", data)
        api.get(STATUS, body=text)
        assert runpod.fetch(ID).outputs == ("0", "1")
        sink = io.BytesIO()
        result = runpod.download("0", sink, prediction_id=ID, max_bytes=len(content))
        assert isinstance(result, Downloaded), result
        assert sink.getvalue() == content

    @pytest.mark.parametrize(
        ("data", "index", "expected"),
        [
            (PNG[:-1], "0", BAD),
            (PNG[:100] + "!" + PNG[101:], "0", BAD),
            (PNG[:400] + "====" + PNG[400:], "0", BAD),
            (PNG, "1", BAD),
            (PNG, "-1", BAD),
            (PNG, "00000", BAD),
            (PNG, "²", BAD),
            (URL, "0", BAD),
        ],
    )
    def test_that_is_not_there_or_no_base64_is_bad(self, runpod, data, index, expected):
        body = json.dumps(completed({"images": [{"data": data}]})).encode()
        with FakeHttp(Response(200, {}, body)) as http:
            runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http)
            result = runpod.download(index, io.BytesIO(), prediction_id=ID, max_bytes=10**6)
        assert isinstance(result, Failure)
        assert result.error_class == expected

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (Response(404, {}, b""), ErrorClass.OUTPUT_EXPIRED),
            (Response(410, {}, b""), ErrorClass.OUTPUT_EXPIRED),
            (Response(401, {}, b""), ErrorClass.DOWNLOAD_FAILED),
            (Response(500, {}, b""), ErrorClass.DOWNLOAD_FAILED),
            (Response(429, {"retry-after": "4"}, b""), ErrorClass.DOWNLOAD_FAILED),
            (Response(200, {}, b"<html>"), ErrorClass.DOWNLOAD_FAILED),
            (Response(200, {}, json.dumps(job(status="FAILED")).encode()), BAD),
            (TransportError("connect", "refused"), ErrorClass.DOWNLOAD_FAILED),
            (TransportError("sent", "reset"), ErrorClass.DOWNLOAD_FAILED),
            (TransportError("read", "cut off", 200), ErrorClass.DOWNLOAD_FAILED),
            (
                TransportError("read", "too large", 200, too_large=True),
                ErrorClass.INVALID_INPUT,
            ),
        ],
    )
    def test_that_cannot_be_asked_for_again_says_why(self, answer, expected):
        with FakeHttp(answer) as http:
            runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http)
            result = runpod.download(
                "0", io.BytesIO(), prediction_id=ID, max_bytes=10, deadline_s=3.5
            )
        assert isinstance(result, Failure)
        assert result.error_class == expected
        assert http.deadlines_s == [3.5]
        if isinstance(answer, Response) and answer.headers:
            assert result.retry_after_s == 4.0

    @pytest.mark.parametrize("less", [0, 1, 3000])
    def test_in_base64_ends_at_the_size_that_is_allowed(self, runpod, api, less):
        content = noise_png(64)
        data = base64.b64encode(content).decode()
        api.get(STATUS, json=completed({"images": [{"data": data}]}))
        sink = io.BytesIO()
        limit = len(content) - less
        result = runpod.download("0", sink, prediction_id=ID, max_bytes=limit)
        assert isinstance(result, Failure) is bool(less)
        if isinstance(result, Failure):
            assert result.error_class == BAD
        assert len(sink.getvalue()) <= limit

    @pytest.mark.parametrize(
        "url",
        ["https://elsewhere.test/a.png", "http://bucket.test/a.png", "https://169.254.169.254/x"],
    )
    def test_by_url_comes_from_the_hosts_of_the_bucket_only(self, http, url):
        hosts = {"output_hosts": ["bucket.test"], "extra_output_hosts": ["own.test:81"]}
        runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=BASE, **hosts)
        result = runpod.download(url, io.BytesIO(), prediction_id=ID, max_bytes=10)
        assert isinstance(result, Failure)
        assert result.error_class == BAD

    def test_by_url_is_asked_for_without_the_key(self, http, api):
        runpod = RunPodProvider(
            SECRET, endpoint_id="e1", http=http, base_url=BASE, output_hosts=["bucket.test"]
        )
        api.get(URL, body=b"image")
        sink = io.BytesIO()
        result = runpod.download(URL, sink, prediction_id=ID, max_bytes=10)
        assert isinstance(result, Downloaded)
        assert sink.getvalue() == b"image"
        assert "Authorization" not in api.calls[0].request.headers

    def test_of_twenty_megabytes_is_not_copied_again_and_again(self, http, serve, answer):
        content = bytes(range(256)) * (20_000_000 // 256)
        data = base64.b64encode(content).decode()
        body = json.dumps(completed({"images": [{"data": data}]})).encode()
        del data
        sent = answer(body)
        server = serve(lambda sock, *_: sock.sendall(sent) is None)
        runpod = RunPodProvider(SECRET, endpoint_id="e1", http=http, base_url=server.url(""))

        class Counter(io.RawIOBase):
            written = 0

            def write(self, part):
                self.written += len(part)
                return len(part)

        peaks = {}
        sink = Counter()
        for name, call in {
            "fetch": lambda: runpod.fetch(ID),
            "download": lambda: runpod.download(
                "0", sink, prediction_id=ID, max_bytes=len(content), deadline_s=20
            ),
        }.items():
            tracemalloc.start()
            result = call()
            peaks[name] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert isinstance(result, (Prediction, Downloaded)), result
        assert sink.written == len(content)
        # What comes in, and the copy that the client hands over.
        assert max(peaks.values()) < 2.5 * len(body), peaks


TRACEBACK = """Traceback (most recent call last):
  File "/handler.py", line 5, in handler
    secret_path()
RuntimeError: the last line"""


def exception(message, kind="<class 'RuntimeError'>", **more):
    """Return an `error` as the runpod package writes it when a handler raises."""
    return json.dumps(
        {
            "error_type": kind,
            "error_message": message,
            "error_traceback": TRACEBACK,
            "hostname": "host-1",
            "worker_id": "w1",
            "runpod_version": "1.12.0",
            **more,
        }
    )


NOT_INSTALLED = (
    "Workflow validation failed:\n• Node 1 (errors): [{'type': 'value_not_in_list', 'message': "
    "'Value not in list', 'details': \"ckpt_name: 'x.safetensors' not in ['y.safetensors']\"}]"
)
BAD_SAMPLER = (
    "Workflow validation failed:\n• Node 5 (errors): [{'type': 'value_not_in_list', 'message': "
    "'Value not in list', 'details': \"sampler_name: 'x' not in ['euler']\"}]"
)
ERRORS = [
    ("Workflow validation failed: Node 3", ErrorClass.INVALID_INPUT),
    (NOT_INSTALLED, ErrorClass.NOT_FOUND),
    (BAD_SAMPLER, ErrorClass.INVALID_INPUT),
    (
        "Cannot execute because node Flux2Scheduler does not exist.. Raw response: {}",
        ErrorClass.NOT_FOUND,
    ),
    ("Prompt has no outputs. Raw response: {}", ErrorClass.INVALID_INPUT),
    ("Missing 'workflow' parameter", ErrorClass.INVALID_INPUT),
    ("Invalid JSON format in input", ErrorClass.INVALID_INPUT),
    ("Please provide input", ErrorClass.INVALID_INPUT),
    (
        "'images' must be a list of objects with 'name' and 'image' keys",
        ErrorClass.INVALID_INPUT,
    ),
    (
        "ComfyUI server (127.0.0.1:8188) not reachable after multiple retries.",
        ErrorClass.INTERRUPTED,
    ),
    ("WebSocket communication error: Connection closed", ErrorClass.INTERRUPTED),
    ("HTTP communication error with ComfyUI: 500", ErrorClass.INTERRUPTED),
    ("Prompt ID 5 not found in history after execution.", ErrorClass.INTERRUPTED),
    ("Failed to upload one or more input images", ErrorClass.INTERRUPTED),
    ("job timed out after 1 retries", ErrorClass.INTERRUPTED),
    ("Job processing failed", ErrorClass.UNKNOWN),
    ("An unexpected error occurred: 'prompt_id'", ErrorClass.UNKNOWN),
    ("", ErrorClass.UNKNOWN),
    (None, ErrorClass.UNKNOWN),
    ({"error_message": "CUDA out of memory"}, ErrorClass.OUT_OF_MEMORY),
    ([], ErrorClass.UNKNOWN),
    (exception("CUDA out of memory. Tried to allocate 2 GiB"), ErrorClass.OUT_OF_MEMORY),
    (exception("Allocation on device 0", "torch.OutOfMemoryError"), ErrorClass.OUT_OF_MEMORY),
    (exception("Something else"), ErrorClass.UNKNOWN),
    (exception("NSFW content detected"), ErrorClass.CONTENT_POLICY),
    (exception("Prompt was blocked"), ErrorClass.CONTENT_POLICY),
    (exception("Timed out waiting for the sampler"), ErrorClass.TIMEOUT_RUN),
    (exception("Insufficient balance"), ErrorClass.INSUFFICIENT_CREDIT),
    (exception("Too many requests"), ErrorClass.RATE_LIMITED),
    (exception("cannot identify image file"), ErrorClass.INVALID_INPUT),
    (TRACEBACK, ErrorClass.UNKNOWN),
    ("{not json", ErrorClass.UNKNOWN),
]


class TestFailedJob:
    @pytest.mark.parametrize(("error", "expected"), ERRORS)
    def test_is_classified_by_its_words(self, fetch, error, expected):
        result = fetch(failed(error))
        assert result.failure is not None
        assert result.failure.error_class == expected
        assert (result.run_s, result.total_s) == (1.5, 2.0)

    @pytest.mark.parametrize(
        ("detail", "expected"),
        [
            ("Workflow execution error: Message: CUDA out of memory", ErrorClass.OUT_OF_MEMORY),
            ("Error decoding base64 for a.png: Incorrect padding", ErrorClass.INVALID_INPUT),
            ("Something else", ErrorClass.UNKNOWN),
        ],
    )
    @pytest.mark.parametrize("key", ["details", "errors"])
    def test_is_classified_by_the_details_of_its_output(self, fetch, key, detail, expected):
        result = fetch(failed("Job processing failed", output={key: [detail, 5]}))
        assert result.failure is not None
        assert result.failure.error_class == expected
        assert detail in result.failure.raw

    @pytest.mark.parametrize(
        "error",
        [exception("Something odd happened"), f"Something odd happened\n{TRACEBACK}", TRACEBACK],
    )
    def test_never_shows_a_traceback(self, fetch, error):
        result = fetch(failed(error, output={"details": [TRACEBACK], "error_traceback": "x"}))
        assert result.failure is not None
        assert "the last line" in result.failure.message or "odd" in result.failure.message
        told = repr(result)
        for part in ("Traceback", "secret_path", "handler.py", "host-1"):
            assert part not in told

    def test_names_the_exception_and_says_it_in_one_line(self, fetch):
        result = fetch(failed(exception("<b>line one\nline two</b>", "builtins.KeyError")))
        assert result.failure is not None
        assert result.failure.provider_code == "KeyError"
        assert result.failure.message == "The worker failed: b line one line two /b"

    def test_is_kept_for_administrators_in_bounds(self, fetch):
        words = "words " * 20_000
        result = fetch(failed(words, output={"details": [words] * 50, "data": "x"}))
        assert result.failure is not None
        assert len(result.failure.message) <= 300
        assert 0 < len(result.failure.raw) <= RAW_LIMIT
        assert len(json.dumps(result.raw)) < 64_000

    @pytest.mark.parametrize("words", ["not in list node Traceback ", "x" * 4_000 + " "])
    def test_of_many_words_is_read_in_no_time(self, words):
        body = json.dumps(failed(words * (8_000_000 // len(words)))).encode()
        with FakeHttp(Response(200, {}, body)) as http:
            began = time.process_time()
            result = RunPodProvider(SECRET, endpoint_id="e1", http=http).fetch(ID)
            assert time.process_time() - began < 5
        assert isinstance(result, Prediction)
        assert result.failure is not None

    def test_is_kept_without_what_we_sent(self, fetch):
        result = fetch(failed("x", input={"images": [PNG]}, webhook="https://p.test/token/"))
        assert result.raw.keys() == {"id", "status", "delayTime", "executionTime", "error"}

    def test_may_hold_characters_that_no_database_takes(self, fetch):
        result = fetch(json.dumps(failed("\0x\ud800")))
        json.dumps(result.raw).encode()
        assert result.failure is not None
        assert "\0" not in result.failure.raw


class TestCancel:
    def test_of_running_work_tells_how_long_it_ran(self, runpod, api):
        api.post(CANCEL, json=job(status="CANCELLED"))
        api.get(STATUS, json=job(status="CANCELLED", delayTime=1000, executionTime=2000))
        result = runpod.cancel(ID)
        assert isinstance(result, Prediction)
        assert result.failure is not None
        assert (result.failure.error_class, result.run_s) == (ErrorClass.CANCELED, 2.0)

    @pytest.mark.parametrize("status", [404, 500])
    def test_is_confirmed_although_the_job_cannot_be_read(self, runpod, api, status):
        api.post(CANCEL, json=job(status="CANCELLED"))
        api.get(STATUS, status=status)
        result = runpod.cancel(ID)
        assert isinstance(result, Prediction)
        assert result.failure is not None
        assert result.failure.error_class == ErrorClass.CANCELED

    def test_of_finished_work_gives_what_it_made(self, runpod, api):
        api.post(CANCEL, json=job(status="COMPLETED"))
        api.get(STATUS, json=completed([URL]))
        result = runpod.cancel(ID)
        assert isinstance(result, Prediction)
        assert result.outputs == (URL,)

    def test_that_is_not_done_yet_is_not_the_end(self, runpod, api):
        api.post(CANCEL, json=job(status="IN_PROGRESS"))
        result = runpod.cancel(ID)
        assert isinstance(result, Prediction)
        assert not result.is_terminal


class TestWebhook:
    def test_is_a_hint_that_names_the_job(self, runpod):
        body = json.dumps(completed({"images": [BASE64_IMAGE]})).encode()
        delivery = runpod.verify_webhook({}, body, now_s=0)
        assert delivery == WebhookDelivery(hashlib.sha256(body).hexdigest(), {"id": JOB}, None)
        assert runpod.verify_webhook({}, body, now_s=9e9) == delivery
        other = runpod.verify_webhook({}, body + b" ", now_s=0)
        assert isinstance(other, WebhookDelivery)
        assert other.id != delivery.id

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"null",
            b"{}",
            b"[" * 50_000,
            b'{"id": 5, "status": "COMPLETED"}',
            b'{"id": "x"}',
            b'{"id": "../x", "status": "COMPLETED"}',
            b'{"id": "", "status": "COMPLETED"}',
            b'{"id": "x", "status": 1}',
        ],
    )
    def test_that_is_no_job_is_refused(self, runpod, body):
        answer = runpod.verify_webhook({}, body, now_s=0)
        assert answer == WebhookRefusal.NOT_A_PREDICTION

    def test_can_be_read_where_it_comes_from_the_usual_endpoint(self, runpod, http):
        prediction = runpod.read(completed([URL]))
        assert prediction is not None
        assert (prediction.id, prediction.outputs) == (ID, (URL,))
        for body in (None, [], {}, {"id": JOB}, {"id": "a b", "status": "FAILED"}):
            assert runpod.read(body) is None
        assert RunPodProvider(SECRET, http=http).read(completed([URL])) is None


class TestCheck:
    @pytest.mark.parametrize(
        ("jobs", "workers", "expected"),
        [
            ({"inQueue": 0}, {"idle": 0, "running": 0}, None),
            ({"inQueue": 5}, {"idle": 0, "running": 1}, None),
            ({"inQueue": 5}, {"idle": 1, "running": 0}, None),
            ({"inQueue": 5}, {"idle": 0, "running": 0, "initializing": 1}, None),
            ({"inQueue": 5}, {"idle": 0, "running": 0}, ErrorClass.QUEUE_FULL),
            ({"inQueue": 5}, {"running": 0, "throttled": 3}, ErrorClass.QUEUE_FULL),
            ({"inQueue": "5"}, {}, None),
            ([], {}, ErrorClass.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_reads_the_health_of_the_endpoint(self, runpod, api, jobs, workers, expected):
        api.get(HEALTH, json={"jobs": jobs, "workers": workers})
        result = runpod.check()
        assert (result and result.error_class) == expected

    def test_without_an_endpoint_says_so(self, http):
        result = RunPodProvider(SECRET, http=http).check()
        assert result is not None
        assert result.error_class == ErrorClass.NOT_FOUND


class TestProvider:
    def test_is_one(self, runpod):
        provider: Provider = runpod
        assert (provider.name, provider.sends_webhooks) == ("runpod", True)

    @pytest.mark.parametrize("key", ["", "a b", "é", "a\n"])
    def test_refuses_a_key_that_no_header_can_carry(self, http, key):
        with pytest.raises(ValueError, match="key"):
            RunPodProvider(key, http=http)

    @pytest.mark.parametrize("endpoint_id", ["a/b", "..", "ä", "a_b", "x" * 40])
    def test_refuses_an_endpoint_that_cannot_be(self, http, endpoint_id):
        with pytest.raises(ValueError, match="endpoint"):
            RunPodProvider(SECRET, http=http, endpoint_id=endpoint_id)

    def test_tells_its_key_nobody(self, runpod, api, caplog):
        caplog.set_level(logging.DEBUG)
        api.post(RUN, json=job())
        told = [runpod, runpod.submit(REQUEST)]
        assert SECRET not in repr(told) + caplog.text


@pytest.fixture
def pod(sim):
    return RunPodClient(sim)


@pytest.fixture
def simulated(pod, http):
    return RunPodProvider(
        KEY,
        endpoint_id="e1",
        http=http,
        base_url=pod.sim.url,
        extra_output_hosts=["127.0.0.1"],
        settle_s=0,  # what is gone is gone at once, for those that wait for it
    )


def ended(provider, prediction_id) -> Prediction:
    def look():
        found = provider.fetch(prediction_id)
        assert isinstance(found, Prediction), found
        return found if found.is_terminal else None

    return eventually(look, "the end")


class TestAgainstTheSimulator:
    """What a mock cannot say: that both sides mean the same."""

    def test_a_reference_image_becomes_another_image(self, simulated):
        content = noise_png(64)
        workflow = Workflow(image_workflow("unset"), {"image": (("1", "image"),)})
        request = SubmitRequest("m", {}, workflow=workflow, files={"image": (picture(content),)})
        done = ended(simulated, simulated.submit(request).id)
        sink = io.BytesIO()
        answer = simulated.download(done.outputs[0], sink, prediction_id=done.id, max_bytes=10**6)
        assert isinstance(answer, Downloaded)
        assert sink.getvalue().startswith(b"\x89PNG")

    @pytest.mark.parametrize("reference_count", [0, 1])
    @pytest.mark.parametrize("model_id", ["runpod/sdxl", "runpod/flux-dev", "runpod/flux-schnell"])
    def test_the_workflows_of_the_catalogue_run(self, simulated, model_id, reference_count):
        model = load_models()[model_id]
        parameter = model.image_parameter
        if parameter is None and reference_count:
            assert model.max_references == 0
            return
        references = {"references": ["x"]} if reference_count else {}
        # The size of a picture made of another is that one's.
        size = {} if references else {"width": 256, "height": 512}
        resolved = model.resolve({"prompt": "a cat", **size, **references})
        assert isinstance(resolved, Resolved), resolved
        files = {parameter.name: (picture(noise_png(64)),)} if references else {}
        request = SubmitRequest(
            model_id,
            resolved.input,
            files=files,
            workflow=model.workflow_for(has_image=bool(references)),
        )
        done = ended(simulated, simulated.submit(request).id)
        assert done.failure is None
        assert len(done.outputs) == resolved.output_count

    def test_a_result_that_was_not_fetched_in_time_is_expired(self, pod, simulated):
        done = ended(simulated, simulated.submit(REQUEST).id)
        assert done.status == PredictionStatus.SUCCEEDED
        job_id = done.id.partition("/")[2]
        pod.call("GET", f"status/{job_id}?ttl=1")
        eventually(lambda: pod.is_gone(job_id), "gone")
        answer = simulated.download("0", io.BytesIO(), prediction_id=done.id, max_bytes=10**6)
        assert isinstance(answer, Failure)
        assert answer.error_class == ErrorClass.OUTPUT_EXPIRED

    def test_work_that_outlives_its_time_in_the_queue_is_lost(self, pod, simulated):
        pod.configure(workers=0, policy_scale=0.0005)
        request = SubmitRequest("m", {}, workflow=WORKFLOW, cancel_after_s=10)
        lost = ended(simulated, simulated.submit(request).id)
        assert lost.failure is not None
        assert lost.failure.error_class == ErrorClass.INTERRUPTED
        assert pod.sim.ledger()["count"] == 0

    def test_work_that_times_out_in_the_queue_found_no_worker(self, pod, simulated):
        pod.configure(workers=0, policy_scale=0.0005, times_out_in_queue=True)
        request = SubmitRequest("m", {}, workflow=WORKFLOW, cancel_after_s=10)
        late = ended(simulated, simulated.submit(request).id)
        assert late.failure is not None
        assert late.failure.error_class == ErrorClass.QUEUE_FULL
        assert late.run_s is None

    def test_a_webhook_leads_to_the_job_whose_id_was_never_heard(self, pod, simulated, receiver):
        pod.sim.fault("drop_create_after")
        request = SubmitRequest("m", {}, workflow=WORKFLOW, webhook_url=receiver.url)
        lost = simulated.submit(request)
        assert isinstance(lost, Failure)
        assert lost.error_class == ErrorClass.TIMEOUT_UNKNOWN
        (webhook,) = receiver.wait_for(1)
        delivery = simulated.verify_webhook(webhook.headers, webhook.body, now_s=0)
        assert isinstance(delivery, WebhookDelivery)
        found = simulated.fetch(delivery.body["id"])
        assert isinstance(found, Prediction)
        assert found.status == PredictionStatus.SUCCEEDED
        (charge,) = pod.sim.ledger()["charges"]
        assert found.id == f"e1/{charge['prediction_id']}"

    def test_run_times_are_those_of_the_books(self, pod, simulated):
        pod.sim.configure(run_seconds=0.2)
        done = ended(simulated, simulated.submit(REQUEST).id)
        (charge,) = pod.sim.ledger()["charges"]
        assert done.run_s == pytest.approx(
            charge["ended_monotonic"] - charge["started_monotonic"], abs=0.002
        )

    def test_a_model_that_is_not_installed_is_told_as_such(self, simulated):
        workflow = Workflow(text_workflow(), {"model": (("1", "ckpt_name"),)})
        request = SubmitRequest("m", {"model": "none.safetensors"}, workflow=workflow)
        refused = ended(simulated, simulated.submit(request).id)
        assert refused.failure is not None
        assert refused.failure.error_class == ErrorClass.NOT_FOUND
