import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.utils import timezone
from knox.models import get_token_model
from rest_framework.test import APIClient

from batches.models import Batch
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, MODELS, ids, problem
from tests.factories import make_batch, make_token, make_user

pytestmark = pytest.mark.django_db

BODY = {"prompt": "a fox"}


def unauthenticated(response, code):
    body = problem(response, 401, code)
    assert response["WWW-Authenticate"] == "Bearer"
    return body


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS, IMAGES, MODELS])
def test_nothing_is_read_without_a_token(path):
    unauthenticated(APIClient().get(path), "not_authenticated")


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_nothing_is_submitted_without_a_token(path, nothing_happens):
    with nothing_happens():
        unauthenticated(APIClient().post(path, BODY), "not_authenticated")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer pic_nothing",
        "Bearer two words",
        "Bearer pic_\xe9\xff",
        "Bearer \u2603".encode().decode("latin-1"),
        "bearer pic_nothing",
        "Bearer " + "x" * 5_000,
    ],
)
def test_a_token_that_is_none_is_refused(header, nothing_happens):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=header)
    with nothing_happens():
        unauthenticated(client.post(BATCHES, BODY), "authentication_failed")


@pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Token abc", "pic_abc"])
def test_another_scheme_is_no_authentication(header):
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=header)
    unauthenticated(client.get(BATCHES), "not_authenticated")


def test_a_token_is_good_in_full_only(owner):
    token = make_token(owner)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token[:-1]}")
    unauthenticated(client.get(BATCHES), "authentication_failed")
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    assert client.get(BATCHES).status_code == 200


def test_an_expired_token_is_refused(owner, api):
    get_token_model().objects.filter(user=owner).update(expiry=timezone.now())
    unauthenticated(api.get(BATCHES), "authentication_failed")


def test_the_token_of_an_inactive_user_is_refused(owner, api):
    get_user_model().objects.filter(pk=owner.pk).update(is_active=False)
    unauthenticated(api.get(BATCHES), "authentication_failed")


def test_a_bad_token_is_refused_even_with_a_good_session(owner):
    client = APIClient()
    client.force_login(owner)
    client.credentials(HTTP_AUTHORIZATION="Bearer pic_nothing")
    unauthenticated(client.get(BATCHES), "authentication_failed")


def test_a_session_reads(owner):
    batch = make_batch(owner)
    client = Client()
    client.force_login(owner)
    assert ids(client.get(BATCHES)) == [str(batch.pk)]


def test_a_session_submits_only_with_the_csrf_token(owner, nothing_happens):
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    with nothing_happens():
        body = problem(
            client.post(BATCHES, BODY, content_type="application/json"), 403, "permission_denied"
        )
    assert "CSRF" in body["detail"]
    client.cookies["csrftoken"] = "a" * 32
    answer = client.post(
        BATCHES, BODY, content_type="application/json", headers={"X-CSRFToken": "a" * 32}
    )
    assert answer.status_code == 202
    assert Batch.objects.get().owner == owner


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense"),
        ("multipart/form-data", b"no boundary"),
        ("application/x-www-form-urlencoded", b"a=" + b"x" * 1_100_000),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 2_000)),
    ],
)
def test_a_form_from_a_session_is_refused_and_never_an_error_of_ours(
    content_type, body, owner, nothing_happens
):
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    client.force_login(owner)
    client.cookies["csrftoken"] = "a" * 32
    with nothing_happens():
        answer = client.post(
            BATCHES, body, content_type=content_type, headers={"X-CSRFToken": "a" * 32}
        )
    assert 400 <= answer.status_code < 500
    problem(answer, answer.status_code, answer.json()["code"])


def test_a_token_needs_no_csrf_token(owner):
    client = APIClient(enforce_csrf_checks=True)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_token(owner)}")
    assert client.post(BATCHES, BODY).status_code == 202


@pytest.mark.usefixtures("warm_caches")
def test_a_token_costs_one_query(owner, django_assert_num_queries):
    for _ in range(3):
        make_token(owner)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_token(owner)}")
    with django_assert_num_queries(1):
        assert client.get(MODELS).status_code == 200


def test_tokens_are_stored_as_hashes_only():
    token = make_token(make_user())
    stored = get_token_model().objects.values().get()
    assert token not in str(stored)
    assert token.startswith("pic_")
