"""Query parameters that an operation does not have, or has once."""

import json
import re
import uuid

import pytest
from rest_framework.test import APIClient

from batches.models import Batch, Generation, Image, Publication, Schedule, Template
from tests.batches.api.support import BATCHES, GENERATIONS, IMAGES, ids, invalid, problem
from tests.factories import make_batch, make_generation, make_image

pytestmark = pytest.mark.django_db

METHODS = ("get", "post", "put", "patch", "delete")
# The documents are no part of what they are about.
DOCUMENTS = "/api/schema/"
NOBODYS = "0b0e4b9c-0000-4000-8000-000000000000"


@pytest.fixture
def operations():
    accept = {"Accept": "application/vnd.oai.openapi+json"}
    schema = json.loads(APIClient().get(DOCUMENTS, headers=accept).content)
    return {
        (method, path): operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if method in METHODS and path != DOCUMENTS
    }


@pytest.fixture
def shelf(owner):
    return [make_image(make_generation(owner)) for _ in range(3)]


def kept():
    models = (Batch, Generation, Image, Publication, Schedule, Template)
    return [list(model.objects.order_by("pk").values()) for model in models]


def test_every_operation_refuses_what_it_does_not_have_and_has_what_is_documented(operations, api):
    for (method, path), operation in operations.items():
        documented = {
            one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"
        }
        address = re.sub(r"{[^}]*}", str(uuid.uuid4()), path)
        answer = api.generic(method.upper(), f"{address}?no_such=1&dry_runs=true")
        refused = invalid(answer)
        assert refused.keys() == {"no_such", "dry_runs"}, (method, path)
        assert refused["no_such"][0] == "unknown_parameter"
        (known,) = {tuple(one["allowed"]) for one in answer.json()["errors"]}
        assert set(known) == documented, (method, path)
        assert (
            refused["no_such"][1] == f"Unknown parameter; known are {', '.join(known) or 'none'}."
        )
        assert "422" in operation["responses"], (method, path)


@pytest.mark.parametrize("name", ["dry_run", "DRY_RUN", "q", "\x00", "\N{FOX FACE}", ""])
def test_with_a_parameter_that_it_does_not_have_nothing_is_done(name, api, owner, shelf):
    image = shelf[0]
    batch = make_batch(owner, size=1)
    before = kept()
    body = {"action": "delete", "ids": [str(image.pk)]}
    for method, path, sent in (
        ("post", f"{IMAGES}actions/", body),
        ("post", f"{IMAGES}{image.pk}/approve/", {}),
        ("patch", f"{IMAGES}{image.pk}/", {"is_saved": True}),
        ("delete", f"{IMAGES}{image.pk}/", None),
        ("post", f"{BATCHES}{batch.pk}/cancel/", {}),
        ("post", "/api/v1/templates/", {"name": "Foxes", "batch": {"prompt": "a fox"}}),
        ("post", f"/api/approve/{image.pk}", {}),
    ):
        answer = getattr(api, method)(path, sent, query_params={name: "true"})
        assert invalid(answer)[name][0] == "unknown_parameter", path
    assert kept() == before


def test_a_misspelt_dry_run_is_not_the_real_thing(api, nothing_happens):
    for path in (BATCHES, GENERATIONS, "/api/generate", "/functions/v1/start-generation"):
        for name in ("DRY_RUN", "dryrun", "dry_run "):
            with nothing_happens():
                answer = api.post(path, {"prompt": "a fox"}, query_params={name: "true"})
            assert invalid(answer)[name][0] == "unknown_parameter"


def test_a_misspelt_filter_does_not_list_everything(api, shelf):
    for name in ("reviewstatus", "tags", "limit", "Q"):
        answer = api.get(IMAGES, {name: "approved"})
        assert invalid(answer)[name][0] == "unknown_parameter"


def test_no_more_than_twenty_unknown_parameters_are_told_of(api):
    answer = api.get(IMAGES, {f"x{number}": "1" for number in range(300)})
    assert len(invalid(answer)) == 20


@pytest.mark.parametrize(
    ("path", "name", "values"),
    [
        (IMAGES, "q", ["fox", "owl"]),
        (IMAGES, "review_status", ["approved", "rejected"]),
        (IMAGES, "page_size", ["1", "1"]),
        (IMAGES, "cursor", ["a", "b"]),
        (GENERATIONS, "status", ["failed", "failed"]),
        (f"{IMAGES}export/", "ids", [NOBODYS, NOBODYS]),
        ("/api/v1/analytics/", "group_by", ["day", "week"]),
        (f"{IMAGES}{NOBODYS}/file/", "signature", ["a", "b"]),
    ],
)
def test_a_parameter_that_is_given_twice_is_refused(path, name, values, api):
    assert invalid(api.get(path, {name: values})) == {name: ("repeated", "May be given once.")}


def test_a_dry_run_that_is_asked_for_twice_is_refused(api, nothing_happens):
    with nothing_happens():
        answer = api.post(f"{BATCHES}?dry_run=true&dry_run=false", {"prompt": "a fox"})
    assert invalid(answer)["dry_run"][0] == "repeated"


def test_a_tag_may_be_given_several_times(api, shelf):
    api.patch(f"{IMAGES}{shelf[0].pk}/", {"tags": ["a", "b"]})
    api.patch(f"{IMAGES}{shelf[1].pk}/", {"tags": ["a"]})
    assert ids(api.get(IMAGES, {"tag": ["a", "b"]})) == [str(shelf[0].pk)]
    assert api.get(f"{IMAGES}export/", {"tag": ["a", "b"]}).status_code == 200


def test_who_asks_and_how_is_looked_at_first(api):
    problem(APIClient().get(IMAGES, {"no_such": "1"}), 401, "not_authenticated")
    problem(api.put(f"{IMAGES}?no_such=1", {}), 405, "method_not_allowed")
    assert api.options(f"{IMAGES}?no_such=1").status_code == 200
    assert api.head(f"{IMAGES}?page_size=1").status_code == 200
    assert api.head(f"{IMAGES}?no_such=1").status_code == 422
