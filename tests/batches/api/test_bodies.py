"""Bodies that are refused before their fields are looked at."""

import io
import time

import pytest

from batches.models import Batch, Generation
from tests.batches.api.support import BATCHES, GENERATIONS, invalid, problem

pytestmark = pytest.mark.django_db

JSON = "application/json"
MAX_BYTES = 1_000_000


@pytest.fixture
def refused(api, nothing_happens):
    def call(body, status, code, content_type=JSON, **headers):
        with nothing_happens():
            response = api.post(BATCHES, body, content_type=content_type, **headers)
        return problem(response, status, code)

    return call


def padded(size_bytes):
    """A good body of that size."""
    body = b'{"prompt": "a fox"}'
    return body + b" " * (size_bytes - len(body))


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b"{'prompt': 'a fox'}",
        b'{"prompt": "a fox"} {}',
        b'{"prompt": "a fox",}',
        b'{"prompt": "a\nfox"}',
        b'{"prompt": "\xff\xfe"}',
        '{"prompt": "a fox"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "a fox"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\x00",
        b" ",
    ],
)
def test_a_body_that_is_not_json_is_refused(body, refused):
    assert "not valid JSON" in refused(body, 400, "invalid_json")["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_refused(number, refused):
    body = f'{{"prompt": "a fox", "seed": {number}}}'
    assert number in refused(body, 400, "invalid_json")["detail"]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [33, 500, 900, 950, 1_000, 100_000])
def test_deep_nesting_is_refused(opening, depth, refused):
    closing = "]" if opening == "[" else "}"
    refused(opening * depth + "1" + closing * depth, 400, "invalid_json")


@pytest.mark.parametrize("depth", range(30, 1_000, 97))
def test_deeply_nested_metadata_is_refused_at_any_depth(depth, refused):
    nested = "[" * depth + "]" * depth
    body = f'{{"prompts": [{{"text": "a fox", "metadata": {{"a": {nested}}}}}]}}'
    refused(body, 400, "invalid_json")


def test_brackets_in_a_text_are_no_nesting(api):
    answer = api.post(BATCHES, {"prompt": "[{" * 1_000})
    assert answer.status_code == 202


def test_metadata_may_be_nested_within_reason(api):
    metadata = {"a": {"b": [{"c": [[["deep"]]]}]}}
    answer = api.post(BATCHES, {"prompts": [{"text": "a fox", "metadata": metadata}]})
    assert answer.status_code == 202
    assert Generation.objects.get().metadata == metadata


def test_a_number_of_thousands_of_digits_is_refused(refused):
    refused(b'{"prompt": "a fox", "seed": ' + b"9" * 5_000 + b"}", 400, "invalid_json")


UNSTORABLE = [r"\u0000", r"\ud800", r"\uDFFF", r"\ud800x", r"\udc00\ud800", r"\\\u0000"]


@pytest.mark.parametrize("escape", UNSTORABLE)
@pytest.mark.parametrize(
    "body",
    [
        '{"prompt": "a fox%s"}',
        '{"prompts": [{"text": "a fox", "metadata": {"note": "%s"}}]}',
        '{"prompts": [{"text": "a fox", "metadata": {"%s": 1}}]}',
        '{"prompt": "a fox", "tags": ["%s"]}',
        '{"prompt": "a fox", "%s": 1}',
    ],
)
def test_text_that_cannot_be_stored_is_refused(body, escape, refused):
    refused(body % escape, 400, "invalid_json")


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\\u0000", r"\u0000"),
        (r"\\ud800", r"\ud800"),
        (r"\ud83e\udd8a", "\N{FOX FACE}"),
        (r"\u00e9\u200d", "\u00e9\u200d"),
        (r"\u0001", "\x01"),
    ],
)
def test_text_that_only_looks_unstorable_is_kept(escaped, text, api):
    answer = api.post(BATCHES, f'{{"prompt": "a {escaped} b"}}', content_type=JSON)
    assert answer.status_code == 202, answer.content
    assert Generation.objects.get().prompt == f"a {text} b"


def test_a_body_of_the_greatest_size_is_taken(api):
    assert api.post(BATCHES, padded(MAX_BYTES), content_type=JSON).status_code == 202


def test_a_larger_body_is_refused(refused):
    assert "1,000,000" in refused(padded(MAX_BYTES + 1), 413, "body_too_large")["detail"]


def test_a_larger_body_is_refused_whatever_length_it_claims(refused):
    body = padded(MAX_BYTES + 1)
    refused(body, 413, "body_too_large", CONTENT_LENGTH=str(10**12))


def test_a_body_cut_short_is_refused(refused):
    cut = io.BytesIO(b'{"prompt": "a f')
    refused(b"", 400, "invalid_json", CONTENT_LENGTH="500", **{"wsgi.input": cut})


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonx",
        "nonsense",
    ],
)
def test_another_content_type_is_refused(content_type, refused):
    body = refused(b'{"prompt": "a fox"}', 415, "unsupported_media_type", content_type)
    assert content_type.split(";")[0] in body["detail"]


def test_a_body_without_a_content_type_is_refused(api, nothing_happens):
    with nothing_happens():
        response = api.generic("POST", BATCHES, b'{"prompt": "a fox"}', content_type="")
    problem(response, 415, "unsupported_media_type")


def test_no_body_at_all_is_a_body_without_fields(api, nothing_happens):
    with nothing_happens():
        assert "prompts" in invalid(api.post(BATCHES))
        assert "prompt" in invalid(api.post(GENERATIONS))


def test_the_charset_is_always_utf_8(api):
    body = '{"prompt": "a füchsin"}'.encode()
    answer = api.post(BATCHES, body, content_type="application/json; charset=latin-1")
    assert answer.status_code == 202
    assert Generation.objects.get().prompt == "a füchsin"


UNKNOWN = ", ".join(f'"{number:x}": 0' for number in range(80_000))
NUMBERS = ", ".join(["0"] * 300_000)
LONG = {
    "unknown fields": f'{{"prompt": "a fox", {UNKNOWN}}}',
    "tags": f'{{"prompt": "a fox", "tags": [{NUMBERS}]}}',
    "prompts": f'{{"prompts": [{NUMBERS}]}}',
    "unknown fields of a prompt": f'{{"prompts": [{{"text": "a", {UNKNOWN}}}]}}',
    "settings": f'{{"prompt": "a fox", "settings": [{NUMBERS}]}}',
}


@pytest.mark.parametrize("name", LONG)
def test_a_body_full_of_mistakes_is_answered_briefly_and_soon(name, api, nothing_happens):
    body = LONG[name]
    assert len(body) <= MAX_BYTES
    started = time.monotonic()
    with nothing_happens():
        response = api.post(BATCHES, body, content_type=JSON)
    assert time.monotonic() - started < 2
    invalid(response)
    assert len(response.content) < 50_000


def test_the_last_of_two_equal_fields_counts(api):
    api.post(BATCHES, '{"prompt": "a fox", "prompt": "a cat"}', content_type=JSON)
    assert [row.prompt for row in Batch.objects.get().generations.all()] == ["a cat"]
