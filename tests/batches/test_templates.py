"""The texts of templates."""

import pytest

from batches.templates import escape, fill, placeholders_in
from generation.catalogue import PROMPT_MAX_LENGTH


@pytest.mark.parametrize(
    ("text", "names", "filled"),
    [
        ("a fox", [], "a fox"),
        ("{a}", ["a"], "A"),
        ("{a}{b1}, {a}", ["a", "b1", "a"], "AB, A"),
        ("{{a}}", [], "{a}"),
        ("{{{a}}}", ["a"], "{A}"),
        ("{{{{a}}}}", [], "{{a}}"),
        ('{{"style": "{a}"}}', ["a"], '{"style": "A"}'),
        ("}}{{", [], "}{"),
        ("{" + "a" * 50 + "}", ["a" * 50], "long"),
    ],
)
def test_placeholders_are_found_and_filled(text, names, filled):
    assert placeholders_in(text) == names
    assert fill(text, {"a": "A", "b1": "B", "a" * 50: "long"}) == filled


@pytest.mark.parametrize(
    "text",
    [
        *("{", "}", "{}", "{0}", "{ a }", "{a b}", "{A}", "{_a}", "{ä}", "{" + "a" * 51 + "}"),
        *("{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{a:{b}}", "{a", "a}", "{{a}", "{a}}", "{{{a}}"),
        *("{a.__class__}", "{a\n}", "{a}{"),
    ],
)
def test_braces_that_are_no_placeholder_are_found(text):
    assert placeholders_in(text) is None


def test_values_are_taken_as_they_are():
    assert fill("{a} {b}", {"a": "{b} {{", "b": "}"}) == "{b} {{ }"


@pytest.mark.parametrize("text", ["a fox", "{a}", "{{a}}", "}{", '{"a": ["b"]}'])
def test_an_escaped_text_stays_what_it_was(text):
    assert placeholders_in(escape(text)) == []
    assert fill(escape(text), {}) == text


def test_a_text_that_grows_beyond_all_bounds_is_not_made():
    assert fill("{a}" * 1_300, {"a": "x" * 2_000}) is None
    assert fill("{a}", {"a": "x" * PROMPT_MAX_LENGTH}) == "x" * PROMPT_MAX_LENGTH
