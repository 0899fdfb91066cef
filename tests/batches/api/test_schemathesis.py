"""Every operation of the schema, asked what the schema allows and what it does not.

    make test              a few generated requests for each operation, all checks
    PICTURE_FAULTS=full    many more

Requests go through the WSGI application in this process, to rows that exist: identifiers that the
schema allows are replaced by those of the owner's own objects, four times out of five. Each request
is undone after it.
"""

import contextlib
import os
import sys
import uuid

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.parameters import ParameterLocation

from tests.factories import make_batch, make_image, make_reference, make_token

FULL = os.environ.get("PICTURE_FAULTS") == "full"
# Beside the requests that follow from the schema without any chance, which are most of them.
EXAMPLES = 300 if FULL else 4
# Tests that share the operations, and may run side by side.
PARTS = 4
pytestmark = [pytest.mark.django_db, pytest.mark.timeout(3_000 if FULL else 300)]

# 422 is what the API answers to all that a schema cannot say: what does not go together, or with
# the model, or is not there.
ACCEPTED = ["2xx", "401", "404", "409", "422"]


@pytest.fixture
def world(owner, api, settings):
    """The ids of what the owner has, by the word that stands in paths."""
    # Nothing answers there.
    settings.PRINTIFY_BASE_URL = settings.SHOPIFY_BASE_URL = "http://127.0.0.1:9"
    batch = make_batch(owner, size=3)
    image = make_image(batch.generations.get(index=0))
    account = {"credentials": {"token": "a-token"}, "options": {"shop_id": 1234567}}
    assert api.put("/api/v1/channels/printify/", account).status_code == 201
    assert api.post(f"/api/v1/images/{image.pk}/approve/", {}).status_code == 200
    template = {"name": "Foxes", "batch": {"prompt": "a fox", "count": 2}}
    rule = {"rule": "FREQ=DAILY;BYHOUR=9;BYMINUTE=0;BYSECOND=0", "time_zone": "Europe/Berlin"}
    posted = {
        "templates": api.post("/api/v1/templates/", template),
        "schedules": api.post("/api/v1/schedules/", {**template, **rule}),
        "publications": api.post(
            f"/api/v1/images/{image.pk}/publish/",
            {"channel": "printify", "product_type": "t-shirt", "title": "A fox"},
        ),
    }
    assert all(answer.status_code in (201, 202) for answer in posted.values()), posted
    return {
        "batches": batch.pk,
        "batch": batch.pk,
        "generations": batch.generations.get(index=1).pk,
        "images": image.pk,
        "approve": image.pk,
        "publish": image.pk,
        "references": make_reference(owner).pk,
        **{name: answer.json()["id"] for name, answer in posted.items()},
    }


@pytest.fixture
def same_connection(world):
    """Requests share the connection of the test, and with it the transaction.

    Django's own test client, by which the rows are made, ends with these signals connected.
    """
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


def read_and_closed(application):
    """A server closes what it has sent; the client that is used here does not."""

    def serve(environ, start_response):
        with contextlib.closing(application(environ, start_response)) as answer:
            return [b"".join(answer)]

    return serve


@pytest.fixture
def schema(same_connection):
    """The schema as the API serves it, and the application behind it."""
    accept = {"Accept": "application/vnd.oai.openapi+json"}
    config = schemathesis.Config.from_dict(
        {
            "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
            # PostgreSQL has no NUL in texts, and a schema no word for that.
            "generation": {"allow-x00": False},
        }
    )
    return schemathesis.openapi.from_wsgi(
        "/api/schema/", read_and_closed(get_wsgi_application()), config=config, headers=accept
    )


def settle(case, world):
    """Name the owner's own object where the schema allows any, four times out of five."""
    if case.meta is None or case.meta.is_negative_at(ParameterLocation.PATH):
        return
    kind = case.operation.path.removeprefix("/api/").removeprefix("v1/").partition("/")[0]
    wanted = (case.path_parameters or {}).get("id")
    with contextlib.suppress(ValueError):
        if kind in world and wanted and uuid.UUID(str(wanted)).int % 5:
            case.path_parameters = {**case.path_parameters, "id": str(world[kind])}


def ask(operation, world, headers, broken):
    """Send what can be generated for an operation; return how many requests.

    broken: takes what is wrong with the answers, the first request for each sort of it.
    """
    sent = 0

    def send(case):
        nonlocal sent
        sent += 1
        settle(case, world)
        with transaction.atomic():
            response = case.call(headers=headers)
            try:
                case.validate_response(response, headers=headers)
            except FailureGroup as group:
                for failure in group.exceptions:
                    sort = f"{operation.label}: {failure.title}, {response.status_code}"
                    curl = case.as_curl_command(headers={"Authorization": "..."})
                    body = response.content[:600].decode(errors="replace")
                    broken.setdefault(sort, f"{failure.message}\n{curl}\n{body}")
            transaction.set_rollback(True)

    modes = list(GenerationMode)
    config = operation.schema.config.generation
    for case in operation.schema.iter_coverage_cases(
        operation, generation_modes=modes, generation_config=config
    ):
        send(case)
    generated = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))
    for strategy, count in (
        *((one, 1) for one in operation.get_strategies_from_examples()),
        (generated, EXAMPLES),
    ):
        settings(
            max_examples=count,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(given(case=strategy)(send))()
    return sent


@pytest.mark.parametrize("part", range(PARTS))
def test_every_answer_keeps_to_the_schema(part, schema, world, owner, capsys):
    operations = [result.ok() for result in schema.get_all_operations()][part::PARTS]
    broken: dict[str, str] = {}
    headers = {"Authorization": f"Bearer {make_token(owner)}"}
    sent = sum(ask(operation, world, headers, broken) for operation in operations)
    with capsys.disabled():
        print(f"\nschema, part {part}: {len(operations)} operations, {sent} cases", file=sys.stderr)
    assert not broken, "\n\n".join(f"{sort}\n{told}" for sort, told in broken.items())
