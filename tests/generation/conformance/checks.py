"""What holds for every answer of every provider."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import Image

from generation.provider import (
    RAW_LIMIT,
    Downloaded,
    ErrorClass,
    Failure,
    Prediction,
    PredictionStatus,
    Provider,
    SubmitRequest,
)

OUTPUT_MAX_BYTES = 30_000_000
RAW_MAX_BYTES = 64 * 1024


def presentable(failure: Failure) -> None:
    """Check that a failure can be shown and kept."""
    assert isinstance(failure, Failure)
    assert 0 < len(failure.message) <= 400
    assert not set("\n<>") & set(failure.message), failure.message
    assert len(failure.raw) <= RAW_LIMIT
    assert "Traceback" not in failure.message
    assert failure.retry_after_s is None or failure.retry_after_s >= 0


def refused(answer: object, *expected: ErrorClass) -> Failure:
    """Check that an answer is a failure of one of these classes."""
    assert isinstance(answer, Failure), answer
    presentable(answer)
    assert answer.error_class in expected, answer
    return answer


def accepted(answer: object) -> Prediction:
    """Check that an answer is a prediction that holds together."""
    assert isinstance(answer, Prediction), answer
    assert 0 < len(answer.id) <= 100
    assert bool(answer.outputs) == (answer.status == PredictionStatus.SUCCEEDED)
    assert (answer.failure is not None) == (answer.status == PredictionStatus.FAILED)
    if answer.failure is not None:
        presentable(answer.failure)
    assert answer.progress is None or 0 <= answer.progress <= 100
    assert answer.run_s is None or answer.run_s >= 0
    assert answer.total_s is None or answer.total_s >= 0
    assert len(json.dumps(answer.raw)) <= RAW_MAX_BYTES
    return answer


def ended_with(answer: object, *expected: ErrorClass) -> Prediction:
    """Check that a prediction has ended in a failure of one of these classes."""
    prediction = accepted(answer)
    assert prediction.failure is not None, prediction
    assert prediction.failure.error_class in expected, prediction.failure
    return prediction


def fetched(provider: Provider, prediction: Prediction, output: str, **options: Any) -> bytes:
    """Download an output that must be there."""
    sink = io.BytesIO()
    options = {"max_bytes": OUTPUT_MAX_BYTES, "deadline_s": 20.0, **options}
    answer = provider.download(output, sink, prediction_id=prediction.id, **options)
    assert isinstance(answer, Downloaded), answer
    assert answer.size_bytes == len(sink.getvalue())
    return sink.getvalue()


def is_image(content: bytes) -> None:
    """Check that these bytes are an image that can be decoded."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()


def find(provider: Provider, request: SubmitRequest) -> tuple[Prediction, ...] | Failure:
    """Look for what was submitted in the last minutes."""
    now = datetime.now(UTC)
    return provider.find(
        request, since=now - timedelta(minutes=2), until=now + timedelta(minutes=1)
    )
