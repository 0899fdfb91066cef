import json
import re

import pytest
from drf_spectacular.validation import validate_schema
from rest_framework.test import APIClient

from tests.batches.api.support import BATCHES, GENERATIONS, PROBLEM_FIELDS
from tests.factories import make_reference

pytestmark = pytest.mark.django_db

REFERENCES = "/api/v1/references/"
PUBLICATIONS = "/api/v1/publications/"
TEMPLATES = "/api/v1/templates/"
SCHEDULES = "/api/v1/schedules/"
# Of print-on-demand clients.
PRINT_ROUTES = {
    ("POST", "/api/generate"),
    ("POST", "/api/approve/{id}"),
    ("POST", "/api/publish/{id}"),
    ("POST", "/functions/v1/start-generation"),
}
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def schema():
    response = APIClient().get(
        "/api/schema/", headers={"Accept": "application/vnd.oai.openapi+json"}
    )
    assert response.status_code == 200
    return json.loads(response.content)


@pytest.fixture
def operations(schema):
    return {
        (method.upper(), path): operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    }


def resolved(schema, node):
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rsplit("/", 1)[1]]
    return node


def test_the_schema_is_valid_openapi_3_1(schema):
    assert schema["openapi"].startswith("3.1")
    validate_schema(schema)


def test_every_route_is_documented(operations):
    detail = "/api/v1/{}/{{id}}/"
    assert operations.keys() >= {
        ("GET", BATCHES),
        ("POST", BATCHES),
        ("GET", detail.format("batches")),
        ("GET", GENERATIONS),
        ("POST", GENERATIONS),
        ("GET", detail.format("generations")),
        *(
            ("POST", f"{detail.format(name)}{action}/")
            for name in ("batches", "generations")
            for action in ("pause", "resume", "cancel", "retry")
        ),
        ("DELETE", detail.format("batches")),
        ("DELETE", detail.format("generations")),
        ("GET", "/api/v1/images/"),
        ("GET", detail.format("images")),
        ("DELETE", detail.format("images")),
        ("PATCH", detail.format("images")),
        *(("POST", f"{detail.format('images')}{act}/") for act in ("approve", "reject")),
        ("GET", f"{detail.format('images')}reviews/"),
        ("POST", "/api/v1/images/actions/"),
        ("GET", "/api/v1/images/{id}/file/"),
        ("GET", "/api/v1/images/{id}/preview/"),
        ("GET", "/api/v1/images/{id}/thumbnail/"),
        ("GET", REFERENCES),
        ("POST", REFERENCES),
        ("GET", detail.format("references")),
        ("DELETE", detail.format("references")),
        ("GET", "/api/v1/references/{id}/file/"),
        ("GET", "/api/v1/references/{id}/thumbnail/"),
        ("GET", "/api/v1/images/export/"),
        ("GET", f"{detail.format('batches')}export/"),
        ("GET", f"{detail.format('batches')}analytics/"),
        ("GET", "/api/v1/analytics/"),
        ("GET", PUBLICATIONS),
        ("POST", PUBLICATIONS),
        ("GET", detail.format("publications")),
        ("POST", f"{detail.format('publications')}retry/"),
        ("POST", "/api/v1/images/{id}/publish/"),
        ("GET", "/api/v1/channels/"),
        *((method, "/api/v1/channels/{name}/") for method in ("GET", "PUT", "DELETE")),
        ("POST", "/api/v1/channels/{name}/check/"),
        ("GET", "/api/v1/models/"),
        ("GET", "/api/v1/models/{owner}/{name}/"),
        *(
            (method, path)
            for list_path in (TEMPLATES, SCHEDULES)
            for path, methods in {
                list_path: ("GET", "POST"),
                f"{list_path}{{id}}/": ("GET", "PATCH", "DELETE"),
            }.items()
            for method in methods
        ),
        ("POST", f"{TEMPLATES}{{id}}/start/"),
        ("GET", f"{SCHEDULES}{{id}}/runs/"),
        *(("POST", f"{detail.format(name)}similar/") for name in ("images", "batches")),
        *PRINT_ROUTES,
        ("GET", "/api/batch/{id}"),
        ("GET", "/api/images"),
    }
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)


def test_every_operation_tells_its_problems(schema, operations):
    for (method, path), operation in operations.items():
        problems = {
            status: answer for status, answer in operation["responses"].items() if status >= "4"
        }
        expected = {"401", "503"}
        if "{" in path:
            expected.add("404")
        if method == "POST":
            expected |= {"400", "409", "413", "415", "422"}
        assert problems.keys() >= expected, (method, path)
        for answer in problems.values():
            (content,) = answer["content"].items()
            assert content[0] == "application/problem+json"
            told = resolved(schema, content[1]["schema"])["properties"].keys()
            assert told - {"current_status"} == PROBLEM_FIELDS
            assert answer["description"]


ACTIONS = ("pause", "resume", "cancel", "retry")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_an_action_documents_its_answer_and_its_refusal(path, action, schema, operations):
    operation = operations["POST", f"{path}{{id}}/{action}/"]
    assert operation["summary"]
    assert ("requestBody" in operation) == (action == "retry")
    answer = resolved(
        schema, operation["responses"]["200"]["content"]["application/json"]["schema"]
    )
    assert "cancel_requested_at" in answer["properties"]
    (refusal,) = operation["responses"]["409"]["content"].values()
    assert "current_status" in resolved(schema, refusal["schema"])["properties"]


def test_a_retry_needs_no_body(operations):
    for path in (BATCHES, GENERATIONS):
        body = operations["POST", f"{path}{{id}}/retry/"]["requestBody"]
        assert not body.get("required")
        assert body["content"].keys() == {"application/json"}
        assert {} in [
            one["value"] for one in body["content"]["application/json"]["examples"].values()
        ]


def test_what_makes_work_takes_an_idempotency_key(operations):
    taken = {
        (method, path)
        for (method, path), operation in operations.items()
        if any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ()))
    }
    assert taken == {
        *(("POST", path) for path in (BATCHES, GENERATIONS, REFERENCES)),
        *(("POST", f"{path}{{id}}/retry/") for path in (BATCHES, GENERATIONS, PUBLICATIONS)),
        ("POST", PUBLICATIONS),
        *(("POST", f"/api/v1/images/{{id}}/{act}/") for act in ("publish", "approve", "reject")),
        ("POST", "/api/v1/images/actions/"),
        *(("POST", path) for path in (TEMPLATES, SCHEDULES, f"{TEMPLATES}{{id}}/start/")),
        *(("POST", f"/api/v1/{name}/{{id}}/similar/") for name in ("images", "batches")),
        *PRINT_ROUTES,
    }
    for place in taken:
        operation = operations[place]
        headers = [one for one in operation["parameters"] if one["in"] == "header"]
        assert not any(header.get("required") for header in headers)
        answers = [one for status, one in operation["responses"].items() if status < "300"]
        assert all("Idempotent-Replayed" in answer["headers"] for answer in answers)


def test_a_database_that_is_away_is_documented_with_its_wait(operations):
    for operation in operations.values():
        assert "Retry-After" in operation["responses"]["503"]["headers"]


def test_every_operation_needs_a_token_but_those_for_signed_files(operations):
    for (_, path), operation in operations.items():
        open_too = path.endswith(("/file/", "/preview/", "/thumbnail/"))
        assert ({} in operation["security"]) == open_too, path
        assert {"bearer": []} in operation["security"]


def test_a_submission_is_documented_as_accepted(schema, operations):
    for path in (BATCHES, GENERATIONS):
        operation = operations["POST", path]
        assert "202" in operation["responses"]
        assert operation["requestBody"]["content"].keys() == {"application/json"}
        assert operation["requestBody"]["content"]["application/json"]["examples"]


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_the_examples_of_the_schema_are_accepted(path, operations, api):
    examples = operations["POST", path]["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        answer = api.post(path, example["value"])
        assert answer.status_code == 202, answer.content


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS])
def test_what_is_answered_is_what_is_documented(path, schema, operations, api):
    answer = api.post(path, {"prompt": "a fox"}).json()
    documented = resolved(
        schema,
        operations["POST", path]["responses"]["202"]["content"]["application/json"]["schema"],
    )
    assert answer.keys() == documented["properties"].keys()


def test_a_reference_is_documented_as_a_form_or_json(schema, operations):
    operation = operations["POST", REFERENCES]
    content = operation["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    form = resolved(schema, content["multipart/form-data"]["schema"])
    assert form["properties"]["file"]["format"] == "binary"
    assert form["required"] == ["file"]
    body = resolved(schema, content["application/json"]["schema"])
    assert body["properties"].keys() == {"url", "image_id"}
    assert {"200", "201"} <= operation["responses"].keys()


def test_the_answer_about_a_reference_is_what_is_documented(schema, operations, api, owner):
    make_reference(owner)
    (shown,) = api.get(REFERENCES).json()["results"]
    answer = operations["POST", REFERENCES]["responses"]["201"]
    documented = resolved(schema, answer["content"]["application/json"]["schema"])
    assert shown.keys() == documented["properties"].keys()


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS, REFERENCES, "/api/v1/images/"])
def test_lists_document_their_cursor_and_their_filters(path, operations):
    names = {parameter["name"] for parameter in operations["GET", path]["parameters"]}
    assert names >= {"cursor", "page_size", "created_after", "created_before"}


def test_the_schema_is_open_to_everyone_as_yaml_too():
    response = APIClient().get("/api/schema/")
    assert response.status_code == 200
    assert response.content.startswith(b"openapi: 3.1")


def test_the_docs_take_nothing_from_other_hosts():
    response = APIClient().get("/api/docs/")
    assert response.status_code == 200
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", response.text)
    assert not re.search(r"""https?://(?!www\.w3\.org)""", response.text)
    assets = re.findall(r"""(?:src|href)="([^"]+)\"""", response.text)
    assert len(assets) >= 3
    for asset in assets:
        served = APIClient().get(asset)
        assert served.status_code == 200, asset
        assert len(b"".join(served.streaming_content)) > 100


def test_the_root_leads_to_the_docs():
    assert APIClient().get("/")["Location"] == "/api/docs/"
