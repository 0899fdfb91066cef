"""What the tests of the API have in common: paths, clients, and the shape of a problem."""

from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from rest_framework.test import APIClient

from batches import lifecycle
from batches.models import Attempt, Batch, Generation, Lane, Lease
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure
from tests.factories import make_batch, make_token

BATCHES = "/api/v1/batches/"
GENERATIONS = "/api/v1/generations/"
IMAGES = "/api/v1/images/"
MODELS = "/api/v1/models/"

SCHNELL = "black-forest-labs/flux-schnell"
DEV = "black-forest-labs/flux-dev"
SDXL = "stability-ai/sdxl"
LIGHTNING = "bytedance/sdxl-lightning-4step"

PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "errors", "request_id"}


def client_of(user: Any) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_token(user)}")
    return client


def problem(
    response: Any, status: int, code: str, *, extensions: Collection[str] = ()
) -> dict[str, Any]:
    """The body of an answer that must be a problem of that status and code."""
    assert response.status_code == status, response.content[:500]
    assert response["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() == PROBLEM_FIELDS | {*extensions}
    assert body["status"] == status
    assert body["code"] == code
    assert body["title"] == HTTPStatus(status).phrase
    assert body["type"] == "about:blank"
    assert body["detail"]
    assert body["request_id"] == response["X-Request-ID"]
    assert "Traceback" not in response.text
    return body


def invalid(response: Any) -> dict[str, tuple[str, str]]:
    """The code and detail of each field of a 422, by the field's place."""
    errors = problem(response, 422, "invalid")["errors"]
    assert errors
    for error in errors:
        assert error.keys() - {"allowed"} == {"field", "code", "detail"}
        assert error["detail"]
    return {error["field"]: (error["code"], error["detail"]) for error in errors}


def refused(response: Any, current_status: str, detail: str) -> None:
    """The answer must say that this cannot be done with an object of that status, and why."""
    body = problem(response, 409, "invalid_transition", extensions=["current_status"])
    assert (body["current_status"], body["detail"], body["errors"]) == (current_status, detail, [])


def rows() -> list[Any]:
    """All that an owner's action may change."""
    models = (Batch, Generation, Attempt, Lane, Lease)
    return [list(model.objects.order_by("pk").values()) for model in models]


def fail(generation: Generation, message: str = "No.") -> None:
    """End a generation that has been admitted."""
    generation.refresh_from_db()
    failure = Failure(ErrorClass.CONTENT_POLICY, message)
    attempt = generation.attempts.filter(number=generation.attempt_count).first()
    assert lifecycle.fail_generation(
        generation=generation, attempt=attempt, failure=failure, outside_chain=True
    )


def failed_batch(owner: Any, size: int, **overrides: Any) -> Batch:
    """A batch of which every generation has been admitted and failed."""
    batch = make_batch(owner, size, **overrides)
    while batch.generations.exclude(status="failed").exists():
        assert admit().admitted
        for generation in batch.generations.filter(status="processing"):
            fail(generation)
    batch.refresh_from_db()
    assert batch.status == "failed"
    return batch


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.content
    return [row["id"] for row in response.json()["results"]]
