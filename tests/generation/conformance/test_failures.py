"""What fails, and what is known of it afterwards: alike for every provider."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest

from generation.http import HttpClient
from generation.provider import (
    Downloaded,
    ErrorClass,
    Failure,
    Prediction,
    PredictionStatus,
    Provider,
)
from tests.faults.proxy import TcpProxy
from tests.generation.conformance.checks import (
    OUTPUT_MAX_BYTES,
    accepted,
    ended_with,
    fetched,
    find,
    refused,
)
from tests.generation.conformance.harness import ErrorCase, Harness
from tests.generation.conformance.harnesses import errors_of, every, those
from tests.simulator.support import eventually


def as_expected(case: ErrorCase, failure: object) -> None:
    found = refused(failure, case.expected)
    if case.retry_after_s is not None:
        assert found.retry_after_s == case.retry_after_s
    if case.code is not None:
        assert found.provider_code == case.code


class TestErrors:
    @errors_of("submit")
    def test_of_a_submission_mean_that_nothing_runs(
        self, harness: Harness, case: ErrorCase, prompt: str
    ) -> None:
        request = case.apply(harness, harness.request(prompt), prompt)
        as_expected(case, harness.provider().submit(request))
        assert harness.charges(prompt) == 0

    @errors_of("run")
    def test_of_a_run_end_it(self, harness: Harness, case: ErrorCase, prompt: str) -> None:
        request = case.apply(harness, harness.request(prompt), prompt)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        ended = ended_with(harness.ended(provider, submitted.id), case.expected)
        as_expected(case, ended.failure)
        assert ended.run_s is not None or not harness.tells_run_s

    @errors_of("fetch")
    def test_of_a_look_say_nothing_of_the_work(
        self, harness: Harness, case: ErrorCase, prompt: str
    ) -> None:
        request = case.apply(harness, harness.request(prompt), prompt)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        as_expected(case, provider.fetch(submitted.id))

    @errors_of("cancel")
    def test_of_a_cancellation_leave_it_to_be_repeated(
        self, harness: Harness, case: ErrorCase, prompt: str
    ) -> None:
        harness.hold("run")
        request = case.apply(harness, harness.request(prompt), prompt)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        as_expected(case, provider.cancel(submitted.id))

    @errors_of("find")
    def test_of_a_search_leave_it_open(
        self, harness: Harness, case: ErrorCase, prompt: str
    ) -> None:
        request = case.apply(harness, harness.request(prompt), prompt)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        harness.ended(provider, submitted.id)
        as_expected(case, find(provider, request))

    @errors_of("check")
    def test_of_a_check_are_told(self, harness: Harness, case: ErrorCase, prompt: str) -> None:
        case.apply(harness, harness.request(prompt), prompt)
        as_expected(case, harness.provider().check())

    @errors_of("download")
    def test_of_a_download_leave_no_file(
        self, harness: Harness, case: ErrorCase, prompt: str
    ) -> None:
        request = case.apply(harness, harness.request(prompt), prompt)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        ended = harness.ended(provider, submitted.id)
        answer = provider.download(
            ended.outputs[0],
            io.BytesIO(),
            prediction_id=ended.id,
            max_bytes=OUTPUT_MAX_BYTES,
            deadline_s=10.0,
        )
        as_expected(case, answer)


class TestCredentials:
    @every
    def test_are_taken(self, harness: Harness) -> None:
        assert harness.provider().check() is None

    @those(lambda one: one.has_credentials)
    def test_that_are_wrong_are_refused_everywhere(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider(wrong_credentials=True)
        refused(provider.check(), ErrorClass.AUTH)
        refused(provider.submit(harness.request(prompt)), ErrorClass.AUTH)
        refused(provider.fetch("an-id"), ErrorClass.AUTH)
        assert harness.charges(prompt) == 0

    @those(lambda one: one.schema_of)
    def test_give_the_schemas_of_models(self, harness: Harness) -> None:
        assert harness.schema_of is not None
        model, parameter = harness.schema_of
        request = harness.request("a cat")
        for version in {None, request.version}:
            schema = harness.provider().live_schema(model, version=version)
            assert isinstance(schema, dict)
            assert schema[parameter]["type"] in ("integer", "number")
            json.dumps(schema)
        refused(harness.provider().live_schema("nobody/nothing"), ErrorClass.NOT_FOUND)

    @those(lambda one: not one.schema_of)
    def test_give_no_schema_where_none_is_published(self, harness: Harness) -> None:
        assert harness.provider().live_schema("nobody/nothing") is None


def through(network: TcpProxy, harness: Harness) -> Provider:
    return harness.provider(url=f"http://127.0.0.1:{network.port}")


class TestLostAnswers:
    """The one submission of a request is never made again by the adapter."""

    @every
    def test_leave_the_outcome_open(self, harness: Harness, prompt: str, network: TcpProxy) -> None:
        provider, request = through(network, harness), harness.request(prompt)
        network.reset_next_answer()
        refused(provider.submit(request), ErrorClass.TIMEOUT_UNKNOWN)
        network.heal()
        eventually(lambda: harness.charges(prompt), "a charge")
        assert (harness.creates(prompt), harness.charges(prompt)) == (1, 1)
        found = find(harness.provider(), request)
        if not harness.can_find:
            refused(found, ErrorClass.UNKNOWN)
            return
        assert isinstance(found, tuple)
        (prediction,) = found
        ended = harness.ended(harness.provider(), prediction.id)
        assert ended.status == PredictionStatus.SUCCEEDED
        assert (harness.creates(prompt), harness.charges(prompt)) == (1, 1)

    @every
    def test_are_not_waited_for_longer_than_allowed(
        self, harness: Harness, prompt: str, network: TcpProxy
    ) -> None:
        network.freeze()
        answers: list[object] = []
        request = harness.request(prompt, timeout_s=0.3)
        provider = through(network, harness)
        thread = threading.Thread(target=lambda: answers.append(provider.submit(request)))
        thread.start()
        thread.join(10)
        assert answers, "still waiting"
        refused(answers[0], ErrorClass.TIMEOUT_UNKNOWN)
        network.heal()

    @every
    def test_of_requests_that_did_not_arrive_left_nothing(
        self, harness: Harness, prompt: str, network: TcpProxy
    ) -> None:
        provider, request = through(network, harness), harness.request(prompt)
        network.reset_after(20, "up")
        refused(provider.submit(request), ErrorClass.TIMEOUT_UNKNOWN)
        network.heal()
        found = find(harness.provider(), request)
        if harness.can_find:
            assert found == ()
        else:
            refused(found, ErrorClass.UNKNOWN)
        assert (harness.creates(prompt), harness.charges(prompt)) == (0, 0)

    @every
    def test_of_looks_and_cancellations_are_mere_absence(
        self, harness: Harness, prompt: str, network: TcpProxy
    ) -> None:
        harness.hold("run")
        provider = through(network, harness)
        submitted = accepted(provider.submit(harness.request(prompt)))
        for call in (provider.fetch, provider.cancel):
            network.reset_next_answer()
            refused(call(submitted.id), ErrorClass.PROVIDER_UNAVAILABLE)
            network.heal()
        accepted(provider.cancel(submitted.id))
        ended_with(harness.ended(provider, submitted.id), ErrorClass.CANCELED)


class TestSearch:
    @those(lambda one: one.can_find)
    def test_finds_what_waits_runs_or_has_ended(self, harness: Harness, prompt: str) -> None:
        provider, request = harness.provider(), harness.request(prompt)
        submitted = accepted(provider.submit(request))
        accepted(provider.submit(harness.request(f"another {prompt[::-1]}")))
        for wait in (False, True):
            if wait:
                harness.ended(provider, submitted.id)
            found = find(provider, request)
            assert isinstance(found, tuple), found
            assert [accepted(one).id for one in found] == [submitted.id]

    @those(lambda one: one.can_find)
    def test_finds_nothing_where_nothing_was_submitted(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        accepted(provider.submit(harness.request(prompt)))
        assert find(provider, harness.request(f"another {prompt[::-1]}")) == ()

    @those(lambda one: one.can_find)
    def test_of_two_alike_gives_the_right_one_or_both(self, harness: Harness, prompt: str) -> None:
        provider, request = harness.provider(), harness.request(prompt)
        one = accepted(provider.submit(request))
        other = accepted(provider.submit(harness.request(prompt)))
        found = find(provider, request)
        assert isinstance(found, tuple), found
        ids = {prediction.id for prediction in found}
        assert one.id in ids
        assert ids <= {one.id, other.id}

    @those(lambda one: one.can_find)
    def test_fails_when_nobody_is_there(
        self, harness: Harness, prompt: str, refused_url: str
    ) -> None:
        provider = harness.provider(url=refused_url)
        refused(find(provider, harness.request(prompt)), ErrorClass.PROVIDER_UNAVAILABLE)

    @those(lambda one: not one.can_find)
    def test_that_is_impossible_says_that_asking_again_does_not_help(
        self, harness: Harness, prompt: str
    ) -> None:
        refused(find(harness.provider(), harness.request(prompt)), ErrorClass.UNKNOWN)


GARBAGE = {
    "nothing": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "page": b"<html><body>Maintenance</body></html>",
    "not text": b"\xff\xfe\x00{",
    "deep": b"[" * 20_000,
    "id only": b'{"id": "x", "prompt_id": "x"}',
    "wrong types": json.dumps(
        {
            "id": 5,
            "status": ["succeeded"],
            "output": {"images": 7},
            "results": {"a": 1},
            "next": 3,
            "prompt_id": {"a": []},
            "node_errors": 4,
            "error": {"type": 5, "message": None, "details": []},
            "queue_running": "x",
            "queue_pending": [[], None, "x", [1, 2]],
            "detail": {"a": 1},
            "title": [],
            "urls": [],
            "latest_version": {"openapi_schema": {"components": {"schemas": {"Input": 5}}}},
        }
    ).encode(),
    "empty success": json.dumps(
        {"id": "x", "status": "succeeded", "output": None, "metrics": {"predict_time": "long"}}
    ).encode(),
    "COMPLETED without output": json.dumps(
        {"id": "x", "status": "COMPLETED", "executionTime": "x", "delayTime": -1e400}
    ).encode(),
    "history of nonsense": json.dumps(
        {"x": {"status": {"status_str": 1, "messages": [[], [5, 6], "a"]}, "outputs": [1]}}
    ).encode(),
    "huge numbers": json.dumps(
        {"id": "x", "status": "succeeded", "output": "x", "metrics": {"predict_time": 10**400}}
    ).encode(),
    "huge times": json.dumps(
        {"id": "x", "status": "COMPLETED", "executionTime": 10**400, "delayTime": 1e300}
    ).encode(),
    "huge wait": json.dumps({"detail": f"resets in ~{10**400}s", "retry_after": 10**400}).encode(),
    "surrogates": b'{"id": "\\ud800", "status": "failed", "error": "\\u0000\\udfff"}',
}


class TestGarbage:
    @pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
    @every
    def test_never_raises(
        self, harness: Harness, prompt: str, body: bytes, serve: Any, answer: Any
    ) -> None:
        statuses = ["200 OK", "201 Created", "302 Found", "404 Not Found", "500 Oops"]

        def script(sock, request, server) -> bool:
            sock.sendall(answer(body, status=statuses[-1]))
            return True

        provider = harness.provider(url=serve(script).url(""))
        while statuses:
            request = harness.request(prompt)
            for result in (provider.submit(request), provider.fetch("x"), provider.cancel("x")):
                if isinstance(result, Prediction):
                    accepted(result)
                else:
                    refused(result, *ErrorClass)
            found = find(provider, request)
            assert isinstance(found, (tuple, Failure))
            checked = provider.check()
            assert checked is None or isinstance(checked, Failure)
            schema = provider.live_schema("a/b")
            assert schema is None or isinstance(schema, (dict, Failure))
            statuses.pop()

    @pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
    @every
    def test_is_no_prediction_or_a_sound_one(self, harness: Harness, body: bytes) -> None:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            data = body
        result = harness.provider().read(data)
        if result is not None:
            accepted(result)

    @every
    def test_as_the_name_of_an_output_is_a_failed_download(
        self, harness: Harness, prompt: str
    ) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        harness.ended(provider, submitted.id)
        for name in (
            "",
            "nonsense",
            "../../etc/passwd",
            "job/x",
            "job/99",
            "file:///etc/passwd",
            "data:,x",
            "http://[",
            "https://169.254.169.254/latest",
            "\0",
        ):
            sink = io.BytesIO()
            answer = provider.download(
                name, sink, prediction_id=submitted.id, max_bytes=1_000, deadline_s=5.0
            )
            assert isinstance(answer, Failure), (name, answer)
            refused(answer, *ErrorClass)
            assert sink.getvalue() == b""


class TestDownload:
    @every
    def test_ends_at_the_size_that_is_allowed(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        ended = harness.ended(provider, submitted.id)
        sink = io.BytesIO()
        answer = provider.download(
            ended.outputs[0], sink, prediction_id=ended.id, max_bytes=20, deadline_s=5.0
        )
        refused(answer, ErrorClass.BAD_OUTPUT)
        assert len(sink.getvalue()) <= 20

    @pytest.mark.parametrize("trouble", ["frozen", "reset"])
    @every
    def test_over_a_failing_network_is_worth_repeating(
        self, harness: Harness, prompt: str, network: TcpProxy, trouble: str
    ) -> None:
        provider = through(network, harness)
        submitted = accepted(provider.submit(harness.request(prompt)))
        ended = harness.ended(provider, submitted.id)
        if trouble == "frozen":
            network.freeze()
        else:
            network.reset_next_answer()
        answer = provider.download(
            ended.outputs[0],
            io.BytesIO(),
            prediction_id=ended.id,
            max_bytes=OUTPUT_MAX_BYTES,
            deadline_s=0.5 if trouble == "frozen" else 10.0,
        )
        refused(answer, ErrorClass.DOWNLOAD_FAILED)
        network.heal()
        fetched(provider, ended, ended.outputs[0])

    @every
    def test_can_be_repeated(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        ended = harness.ended(provider, submitted.id)
        answers = [
            provider.download(
                ended.outputs[0],
                io.BytesIO(),
                prediction_id=ended.id,
                max_bytes=OUTPUT_MAX_BYTES,
                deadline_s=5.0,
            )
            for _ in range(2)
        ]
        assert isinstance(answers[0], Downloaded)
        assert answers[0] == answers[1]


class TestSecrets:
    @those(lambda one: one.has_credentials)
    def test_are_never_told(
        self, harness: Harness, prompt: str, serve: Any, answer: Any, http: HttpClient
    ) -> None:
        """A server that repeats what it was sent does not get our key into a row or a log."""

        def script(sock, request, server) -> bool:
            echo = json.dumps({"detail": request.head, "error": request.head, "title": "x"})
            sock.sendall(answer(echo.encode(), status="422 No"))
            secrets.update(
                value.split()[-1]
                for name, value in request.headers.items()
                if name == "authorization"
            )
            return True

        secrets: set[str] = set()
        provider = harness.provider(url=serve(script).url(""))
        told = [
            provider.submit(harness.request(prompt)),
            provider.fetch("x"),
            provider.cancel("x"),
            provider.check(),
            provider,
        ]
        (secret,) = secrets
        assert secret not in repr(told)
