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
    ],
)
def test_an_answer_holds_only_what_can_be_stored(body, data):
    assert Response(200, {}, body).json() == data


def test_an_id_that_is_too_long_to_be_kept_is_none():
    prediction = {"id": "x" * 101, "status": PredictionStatus.STARTING}
    assert read_prediction(prediction) is None
    assert read_prediction({**prediction, "id": "x" * 100}) is not None
