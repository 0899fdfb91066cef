import logging

import pytest
from django.db import IntegrityError
from rest_framework.test import APIClient

from batches import lifecycle
from batches.models import Batch, Generation
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, MODELS, SDXL, client_of, problem
from tests.factories import make_batch, make_generation, make_image

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    "path",
    [
        "/api/",
        "/api/v1/",
        "/api/v2/batches/",
        "/api/v1/nothing/",
        "/api/v1/batches/1/",
        "/api/v1/batches//",
        "/nothing",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_address_is_not_found(path, method, api):
    problem(api.generic(method, path), 404, "not_found")
    problem(APIClient().generic(method, path), 404, "not_found")


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_a_post_without_the_last_slash_is_not_turned_into_a_get(path, owner, nothing_happens):
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(owner)
    with nothing_happens():
        problem(client.post(path[:-1], {"prompt": "a fox"}), 404, "not_found")


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD"])
def test_every_route_answers_what_clients_ask_ahead(method, api, owner):
    batch = make_batch(owner, size=1)
    image = make_image(make_generation(owner))
    for path in (
        *(BATCHES, GENERATIONS, IMAGES, MODELS, "/api/schema/"),
        f"{BATCHES}{batch.pk}/",
        f"{GENERATIONS}{image.generation_id}/",
        f"{IMAGES}{image.pk}/",
        f"{MODELS}{SDXL}/",
    ):
        response = api.generic(method, path)
        assert response.status_code == 200, (path, response.content)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, BATCHES) for method in ("PUT", "PATCH", "DELETE")),
        *((method, GENERATIONS) for method in ("PUT", "PATCH", "DELETE")),
        *((method, IMAGES) for method in ("POST", "PUT", "PATCH", "DELETE")),
        *((method, MODELS) for method in ("POST", "PUT", "PATCH", "DELETE")),
    ],
)
def test_a_method_that_is_not_offered_is_refused(method, path, api):
    response = api.generic(method, path, b"{}", content_type="application/json")
    body = problem(response, 405, "method_not_allowed")
    assert method in body["detail"]
    assert "GET" in response["Allow"]


def test_put_and_patch_are_not_offered_on_a_batch(api, owner):
    batch = make_batch(owner)
    for method in ("PUT", "PATCH"):
        response = api.generic(method, f"{BATCHES}{batch.pk}/", b"{}", "application/json")
        problem(response, 405, "method_not_allowed")


@pytest.fixture
def fragile(owner):
    client = client_of(owner)
    client.raise_request_exception = False
    return client


@pytest.mark.parametrize(
    "error",
    [RuntimeError("secret r8_token"), IntegrityError("secret password"), KeyError("secret")],
)
def test_an_error_of_ours_is_logged_and_tells_nothing(
    error, fragile, monkeypatch, caplog, nothing_happens
):
    def fail(**_):
        raise error

    monkeypatch.setattr(lifecycle, "submit_batch", fail)
    with nothing_happens(), caplog.at_level(logging.ERROR, logger="django.request"):
        response = fragile.post(BATCHES, {"prompt": "a fox"})
    problem(response, 500, "error")
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.name == "django.request"]
    assert record.exc_info[1] is error


def test_an_error_half_way_leaves_nothing_behind(fragile, monkeypatch, nothing_happens):
    def fail(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(lifecycle.Lane.objects, "enqueue", fail)
    with nothing_happens():
        problem(fragile.post(BATCHES, {"prompt": "a fox", "count": 3}), 500, "error")
    assert (Batch.objects.count(), Generation.objects.count()) == (0, 0)


def test_an_error_outside_the_api_tells_nothing_either(monkeypatch):
    from picture import health

    monkeypatch.setitem(health.CHECKS, "database", None)
    monkeypatch.setattr(health, "CHECKS", None)
    client = APIClient(raise_request_exception=False)
    problem(client.get("/health/ready"), 500, "error")


def test_every_problem_has_an_id_of_its_own(api):
    answers = [api.get(f"{MODELS}who/knows/") for _ in range(2)]
    first, second = (problem(answer, 404, "not_found")["request_id"] for answer in answers)
    assert first != second


def test_a_host_that_is_not_ours_is_refused():
    problem(
        APIClient().get("/api/v1/models/", headers={"Host": "evil.example"}), 400, "bad_request"
    )


@pytest.mark.parametrize(
    "accepted", ["application/problem+json", "text/html", "image/*", "nonsense"]
)
def test_the_answer_is_json_whatever_the_client_would_accept(accepted, api):
    response = api.get(BATCHES, headers={"Accept": accepted})
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    problem(api.get(f"{MODELS}who/knows/", headers={"Accept": accepted}), 404, "not_found")
