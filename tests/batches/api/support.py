"""What the tests of the API have in common: paths, clients, and the shape of a problem."""

from http import HTTPStatus
from typing import Any

from rest_framework.test import APIClient

from tests.factories import make_token

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


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """The body of an answer that must be a problem of that status and code."""
    assert response.status_code == status, response.content[:500]
    assert response["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() == PROBLEM_FIELDS
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


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.content
    return [row["id"] for row in response.json()["results"]]
