"""What belongs to another user is not there, by any route."""

import json
import re
import uuid

import pytest
from django.urls import URLPattern, get_resolver

from batches.models import Image, Reference
from batches.schedules import create_schedule
from batches.templates import create_template
from tests.batches.api.support import (
    BATCHES,
    GENERATIONS,
    IMAGES,
    SCHNELL,
    client_of,
    ids,
    invalid,
    problem,
    rows,
)
from tests.factories import (
    make_batch,
    make_generation,
    make_image,
    make_publication,
    make_reference,
    make_user,
)

pytestmark = pytest.mark.django_db

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# By view: whose id stands in the address.
OWNED = {
    "batch": "batches",
    "generation": "generations",
    "image": "images",
    "reference": "references",
    "template": "templates",
    "schedule": "schedules",
    "publication": "publications",
}
# The catalogue and the documents are everybody's.
PUBLIC = {"model-list", "model-detail", "schema", "docs", "redoc", "nowhere"}
# By the name of a channel, whoever asks is told of an account of their own.
PUBLIC |= {"channel-list", "channel-detail", "channel-check"}
# Figures of one's own rows, whoever asks.
PUBLIC |= {"analytics"}


def walk(patterns, way=""):
    for pattern in patterns:
        here = way + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield pattern.name, "/" + here
        else:
            yield from walk(pattern.url_patterns, here)


ROUTES = [
    (name, path) for name, path in walk(get_resolver().url_patterns) if path.startswith("/api/")
]


@pytest.fixture
def foreign(db):
    """One of everything, of somebody else."""
    image = make_image(make_batch(make_user(), size=1).generations.get())
    return {
        "batch": image.generation.batch_id,
        "generation": image.generation_id,
        "image": image.pk,
        "reference": make_reference(image.owner).pk,
        "template": create_template(
            owner_id=image.owner_id, name="Foxes", body={"prompt": "a fox"}
        ).pk,
        "schedule": create_schedule(
            owner_id=image.owner_id, name="Foxes", rule="FREQ=DAILY", body={"prompt": "a fox"}
        ).pk,
        "publication": make_publication(image).pk,
    }


def test_every_route_is_known_here():
    for name, path in ROUTES:
        assert name in PUBLIC or name.split("-")[0] in OWNED, path


def body_for(name, foreign):
    """A body with which the owner would be served."""
    asked = {}
    if name.endswith("-retry"):
        asked["settings"] = {"model": SCHNELL, "steps": 2}
    if name == "batch-retry":
        asked["ids"] = [str(foreign["generation"])]
    return json.dumps(asked)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "path"), [(n, p) for n, p in ROUTES if n not in PUBLIC and "<" in p]
)
def test_another_users_object_is_not_found(name, path, method, api, foreign):
    def ask(pk):
        address = re.sub(r"<[^>]*>", str(pk), path)
        return api.generic(method, address, body_for(name, foreign), "application/json")

    before = rows()
    response = ask(foreign[name.split("-")[0]])
    if response.status_code == 405:
        problem(response, 405, "method_not_allowed")
        return
    problem(response, 404, "not_found")
    # Not even that it exists can be told from the answer.
    told, untold = response.json(), ask(uuid.uuid4()).json()
    del told["request_id"], untold["request_id"]
    assert told == untold
    assert Image.objects.filter(pk=foreign["image"]).exists()
    assert Reference.objects.filter(pk=foreign["reference"]).exists()
    assert rows() == before


def test_the_walk_meets_the_reads_of_every_object(api, foreign):
    read = {
        name
        for name, path in ROUTES
        if name not in PUBLIC
        and "<" in path
        and api.get(re.sub(r"<[^>]*>", str(uuid.uuid4()), path)).status_code == 404
    }
    assert read >= {
        *("batch-detail", "generation-detail", "image-detail"),
        *("image-file", "image-preview", "image-thumbnail", "image-reviews"),
        *("batch-export", "batch-analytics"),
        "publication-detail",
        *("reference-detail", "reference-file", "reference-thumbnail"),
        *("template-detail", "schedule-detail", "schedule-runs"),
    }


def test_the_walk_meets_all_that_is_done_with_an_object(api, foreign):
    offered = {
        (name, method)
        for name, path in ROUTES
        if name not in PUBLIC and "<" in path
        for method in ("POST", "DELETE")
        if api.generic(method, re.sub(r"<[^>]*>", str(uuid.uuid4()), path)).status_code == 404
    }
    kinds = ("batch", "generation")
    assert offered == {
        *((f"{kind}-{act}", "POST") for kind in kinds for act in ("pause", "resume", "cancel")),
        *((f"{kind}-retry", "POST") for kind in (*kinds, "publication")),
        *((f"image-{act}", "POST") for act in ("publish", "approve", "reject")),
        *((f"{kind}-similar", "POST") for kind in ("batch", "image")),
        ("template-start", "POST"),
        *((f"{kind}-detail", "DELETE") for kind in ("template", "schedule")),
        *((f"image-print-{act}", "POST") for act in ("approve", "publish")),
        *((f"{kind}-detail", "DELETE") for kind in (*kinds, "image", "reference")),
    }


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS, IMAGES])
def test_lists_show_only_what_is_ones_own(path, api, owner, foreign):
    own = make_image(make_batch(owner, size=1).generations.get())
    expected = {
        BATCHES: own.generation.batch_id,
        GENERATIONS: own.generation_id,
        IMAGES: own.pk,
    }
    assert ids(api.get(path)) == [str(expected[path])]


@pytest.mark.parametrize(
    ("path", "name"),
    [(GENERATIONS, "batch"), (IMAGES, "batch"), (IMAGES, "generation")],
)
def test_a_filter_by_another_users_object_finds_nothing(path, name, api, foreign):
    assert ids(api.get(path, {name: foreign[name]})) == []


def test_staff_is_a_user_like_any_other_here(foreign):
    admin = client_of(make_user(is_staff=True, is_superuser=True))
    problem(admin.get(f"{BATCHES}{foreign['batch']}/"), 404, "not_found")
    assert ids(admin.get(BATCHES)) == []


def test_an_owner_is_never_taken_from_the_request(api, owner, post):
    other = make_user()
    for name in ("owner", "owner_id", "user"):
        assert post(BATCHES, {"prompt": "a fox", name: other.pk}).status_code == 422
    generation = make_generation(owner)
    assert invalid(api.get(GENERATIONS, {"owner": other.pk})).keys() == {"owner"}
    assert ids(api.get(GENERATIONS)) == [str(generation.pk)]
