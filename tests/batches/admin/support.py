"""Rows made the way the product makes them, and what the pages say of them."""

import math
import re
from decimal import Decimal

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from batches import catalogue, invariants, lifecycle, pools
from batches.models import Alert, AlertCode, Attempt, Batch, Generation, Image, Lane, Lease, Pool
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import make_batch, make_generation, make_user

MODELS = (Batch, Generation, Attempt, Image, Lane, Lease, Pool, Alert)
BIG = (Batch, Generation, Attempt, Image)
READ_ONLY = (*BIG, Lease, Alert)
AWAY = Failure(ErrorClass.PROVIDER_UNAVAILABLE, "away", raw="<b>503</b>")
UNKNOWN = Failure(ErrorClass.TIMEOUT_UNKNOWN, "Nobody can tell whether it arrived.")


# --- Rows -----------------------------------------------------------------------------------------


def submit(generation, provider_id=""):
    attempt = lifecycle.begin_attempt(generation=generation)
    prediction = Prediction(
        id=provider_id or f"prediction-{attempt.pk}",
        status=PredictionStatus.SUCCEEDED,
        outputs=("https://provider.example/picture.webp",),
        raw={"logs": "<script>alert(1)</script>", "seed": 7},
        run_s=2.5,
        total_s=4.0,
    )
    lifecycle.record_submission(attempt=attempt, prediction=prediction)
    return attempt, prediction


def admit_again(generation):
    """The next attempt is that of another admission."""
    generation.attempt_count += 1
    generation.status = "processing"
    generation.save(update_fields=["attempt_count", "status"])
    return generation


def complete(generation, provider_id=""):
    generation.refresh_from_db()
    attempt, prediction = submit(generation, provider_id)
    assert lifecycle.begin_download(
        generation=generation,
        attempt=attempt,
        prediction=prediction,
        cost_usd=Decimal("0.003"),
    )
    image = Image(
        generation=generation,
        owner_id=generation.owner_id,
        file=f"{generation.pk}/0.webp",
        thumbnail=f"{generation.pk}/0.thumbnail.webp",
        format="webp",
        width=1344,
        height=768,
        size_bytes=123_456,
        sha256="0" * 64,
    )
    generation.refresh_from_db()
    assert lifecycle.complete_generation(generation=generation, images=[image])
    return image


def fail(generation, failure=AWAY, code=""):
    generation.refresh_from_db()
    attempt, _ = submit(generation)
    assert lifecycle.fail_generation(
        generation=generation, attempt=attempt, failure=failure, code=code
    )
    generation.refresh_from_db()
    return generation


def make_rows(count):
    """As many of everything: of each batch one picture is done, the other holds a slot."""
    batches = [make_batch(size=2) for _ in range(count)]
    admit()
    for batch in batches:
        complete(batch.generations.get(index=0))
        Alert.objects.raise_(AlertCode.POISON, f"generation {batch.pk}", "It kills its workers.")
    return batches


def failed_batch(size=2, failed=1, owner=None):
    """A batch of which everything has ended, some of it failed."""
    batch = make_batch(owner, size=size)
    admit()
    for generation in batch.generations.order_by("index"):
        if generation.index < failed:
            fail(generation)
        else:
            complete(generation)
    lifecycle.finalise_batch(batch_id=batch.pk)
    batch.refresh_from_db()
    return batch


def failed_generation(failure=AWAY, code="", ended_ago=None, **overrides):
    generation = make_generation(**overrides)
    admit()
    fail(generation, failure, code)
    if ended_ago is not None:
        Generation.objects.filter(pk=generation.pk).update(finished_at=timezone.now() - ended_ago)
    generation.refresh_from_db()
    return generation


def stop(error_class=ErrorClass.AUTH):
    admit()  # makes the pools
    pools.stop_pool(name="replicate", error_class=error_class, message="<b>401</b>")
    return Alert.objects.open().get(code=error_class)


def broken():
    """What is wrong with the rows; the files are not looked at."""
    checks = [one for one in invariants.CHECKS if one[2] is not invariants._files]
    return [(code, rule, rows) for code, rule, find in checks if (rows := find())]


# --- Pages ----------------------------------------------------------------------------------------


def list_url(model):
    return reverse(f"admin:batches_{model._meta.model_name}_changelist")


def page_url(row):
    return reverse(f"admin:batches_{row._meta.model_name}_change", args=[row.pk])


def html_of(response):
    assert response.status_code == 200, response
    return response.content.decode()


def page(client, row):
    return html_of(client.get(page_url(row)))


def queries_of(client, url, **parameters):
    catalogue.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "KEPT_S", math.inf)
        client.get(url, parameters)  # fills the caches of the process
        with CaptureQueriesContext(connection) as captured:
            html_of(client.get(url, parameters))
    catalogue.forget()
    return [query["sql"] for query in captured]


def listed(client, model, /, **parameters):
    """The ids of the rows that a list shows."""
    response = client.get(list_url(model), parameters)
    html_of(response)
    return {row.pk for row in response.context["cl"].result_list}


def unbounded_counts(queries):
    # There are never more leases than slots: the pools' are counted.
    return [
        sql
        for sql in queries
        if "COUNT(" in sql.upper() and "LIMIT 10001" not in sql and "batches_pool" not in sql
    ]


def letters_url(**parameters):
    return reverse("admin:batches_dead_letters", query=parameters)


# --- Commands -------------------------------------------------------------------------------------


def staff(client, *permissions):
    """The client as a member of staff with these permissions and no others."""
    user = make_user(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return client


def said(response):
    return [str(message) for message in response.context["messages"]]


def command(client, url, name, rows, **fields):
    """What is said when an action was chosen for some rows of a list."""
    ids = [row.pk for row in rows]
    data = {"action": name, "_selected_action": ids, "index": 0, **fields}
    response = client.post(url, data, follow=True)
    html_of(response)
    return said(response)


def confirm(client, url, name, rows):
    """What is said when the question that an action asks first is answered with yes."""
    ids = [row.pk for row in rows]
    data = {"action": name, "_selected_action": ids, "post": "yes"}
    response = client.post(url, data, follow=True)
    html_of(response)
    return said(response)


def press(client, row, name, **fields):
    """The answer to a button on a row's own page."""
    url = reverse(f"admin:batches_{row._meta.model_name}_act", args=[row.pk])
    return client.post(url, {"action": name, **fields}, follow=True)


def offered(client, row):
    return re.findall(r'<button name="action" value="(\w+)"', page(client, row))


def status_of(row):
    return type(row).objects.values_list("status", flat=True).get(pk=row.pk)


def statuses(batch):
    return list(batch.generations.order_by("index").values_list("status", flat=True))


def label(row):
    return str(row.pk)[:8]
