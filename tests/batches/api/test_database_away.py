"""A database that is away is told as such, briefly, and is no error of ours."""

import contextlib
import logging

import psycopg2
import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from rest_framework.test import APIClient

from batches import lifecycle
from batches.models import Batch, Generation, IdempotentRequest
from picture.urls import handler400, handler404, handler500, urlpatterns  # noqa: F401
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, client_of, problem
from tests.factories import make_batch, make_generation, make_image

pytestmark = pytest.mark.django_db(transaction=True)


def counted(request):
    return HttpResponse(User.objects.count())


def doubled(request):
    User.objects.create(username="twice")
    with transaction.atomic():
        User.objects.create(username="twice")


# Views of ours that are not the API's.
urlpatterns = [*urlpatterns, path("count", counted), path("double", doubled)]


@pytest.fixture
def nowhere(monkeypatch):
    """A block in which nobody listens at the database's address."""

    @contextlib.contextmanager
    def block():
        connection.close()
        with monkeypatch.context() as patched:
            patched.setitem(connection.settings_dict, "HOST", "/nowhere")
            yield
        connection.close()

    return block


def cut_off():
    """End the connection that Django has, from the other side."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    params = connection.get_connection_params()
    with contextlib.closing(psycopg2.connect(**params)) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert cursor.fetchone()[0]


def unavailable(response, caplog):
    body = problem(response, 503, "database_unavailable")
    assert response["Retry-After"] == "5"
    assert body["errors"] == []
    (record,) = caplog.records
    assert record.getMessage().startswith("database unavailable: ")
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
    caplog.clear()
    return body


def test_every_route_says_that_the_database_is_away(api, owner, nowhere, caplog):
    batch, image = make_batch(owner), make_image(make_generation(owner))
    calls = [
        *(("GET", path) for path in (BATCHES, GENERATIONS, IMAGES, "/api/v1/models/")),
        ("GET", f"{BATCHES}{batch.pk}/"),
        ("GET", f"{IMAGES}{image.pk}/file/"),
        *(("POST", path) for path in (BATCHES, GENERATIONS, f"{BATCHES}{batch.pk}/retry/")),
        ("POST", f"{BATCHES}{batch.pk}/pause/"),
        ("DELETE", f"{BATCHES}{batch.pk}/"),
    ]
    for method, route in calls:
        with nowhere():
            response = api.generic(method, route, b'{"prompt": "a fox"}', "application/json")
        assert "nowhere" not in response.text
        unavailable(response, caplog)
    assert Batch.objects.count() == 1
    assert api.get(BATCHES).status_code == 200


def test_so_does_a_login_by_session(owner, nowhere, caplog):
    client = APIClient()
    client.force_login(owner)
    with nowhere():
        unavailable(client.get(BATCHES), caplog)


def test_a_connection_that_is_cut_is_told_and_the_next_request_has_another(api, caplog):
    assert api.get(BATCHES).status_code == 200
    cut_off()
    unavailable(api.get(BATCHES), caplog)
    # As at the end of a request to a server.
    connection.close_if_unusable_or_obsolete()
    assert api.get(BATCHES).status_code == 200


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "one"}])
def test_a_connection_that_is_cut_half_way_leaves_nothing_behind(key, api, monkeypatch, caplog):
    submit = lifecycle.submit_batch

    def cut_after(**fields):
        batch = submit(**fields)
        if connection.in_atomic_block:
            cut_off()
        return batch

    def cut_before(**fields):
        cut_off()
        return submit(**fields)

    for half_way in (cut_before, *([cut_after] if key else [])):
        monkeypatch.setattr(lifecycle, "submit_batch", half_way)
        unavailable(api.post(BATCHES, {"prompt": "a fox"}, headers=key), caplog)
        connection.close()
        assert (Batch.objects.count(), Generation.objects.count()) == (0, 0)
        assert not IdempotentRequest.objects.exists()
    monkeypatch.undo()
    assert api.post(BATCHES, {"prompt": "a fox"}, headers=key).status_code == 202


@pytest.mark.parametrize("error", [OperationalError("gone\nfor good"), InterfaceError("closed")])
def test_whatever_the_driver_calls_it_is_the_same(error, api, monkeypatch, caplog):
    def fail(**_):
        raise error

    monkeypatch.setattr(lifecycle, "submit_batch", fail)
    unavailable(api.post(BATCHES, {"prompt": "a fox"}), caplog)


def test_a_row_that_breaks_a_rule_is_an_error_of_ours(owner, monkeypatch, caplog):
    def fail(**_):
        # A real one: a batch of nothing.
        Batch.objects.create(owner=owner, total_count=0)

    monkeypatch.setattr(lifecycle, "submit_batch", fail)
    client = client_of(owner)
    client.raise_request_exception = False
    with caplog.at_level(logging.ERROR, logger="django.request"):
        problem(client.post(BATCHES, {"prompt": "a fox"}), 500, "error")
    (record,) = caplog.records
    assert record.exc_info[0] is IntegrityError


@pytest.mark.urls(__name__)
def test_views_outside_of_the_api_say_the_same(nowhere, caplog):
    client = Client(raise_request_exception=False)
    with nowhere():
        unavailable(client.get("/count"), caplog)
    assert client.get("/count").content == b"0"
    cut_off()
    unavailable(client.get("/count"), caplog)
    connection.close()
    problem(client.get("/double"), 500, "error")


def test_the_admin_says_the_same(owner, nowhere, caplog):
    client = Client(raise_request_exception=False)
    client.force_login(owner)
    with nowhere():
        unavailable(client.get("/admin/"), caplog)
