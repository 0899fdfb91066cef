"""What a provider says is stored; what cannot be stored must not cost the image."""

import pytest

from generation.http import Response
from generation.provider import PredictionStatus
from generation.providers.replicate import read_prediction


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (rb'{"logs": "a\u0000b"}', {"logs": "ab"}),
        (rb'{"a\u0000": [{"b": "\u0000"}]}', {"a": [{"b": ""}]}),
        (rb'{"logs": "\ud83d alone"}', {"logs": "? alone"}),
        (rb'{"logs": "\ud83d\ude00"}', {"logs": "\N{GRINNING FACE}"}),
        (rb'{"logs": "a literal \\u0000"}', {"logs": r"a literal \u0000"}),
        (b'{"x": NaN, "y": -Infinity}', {"x": None, "y": None}),
        (b'{"x": 1e999}', {"x": None}),
        (b'{"x": 1e10}', {"x": 1e10}),
        (b'{"x": %s.0}' % (b"9" * 400), {"x": None}),
        (b'{"x": %s}' % (b"9" * 400), {"x": None}),
        (b'{"x": -%s}' % (b"9" * 5_000), {"x": None}),
        (b'{"x": %s}' % (b"9" * 30), {"x": int("9" * 30)}),
        ('{"x": "é"}'.encode("utf-8-sig"), {"x": "é"}),
        # In these, neither a NUL nor half a character shows as the bytes that it has in UTF-8.
        *(
            (text.encode(encoding, "surrogatepass"), None)
            for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
            for text in (r'{"x": "a\u0000"}', '{"x": "\ud83d"}')
        ),
    ],
)
def test_an_answer_holds_only_what_can_be_stored(body, data):
    assert Response(200, {}, body).json() == data


def test_an_id_that_is_too_long_to_be_kept_is_none():
    prediction = {"id": "x" * 101, "status": PredictionStatus.STARTING}
    assert read_prediction(prediction) is None
    assert read_prediction({**prediction, "id": "x" * 100}) is not None
