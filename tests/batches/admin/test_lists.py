"""The lists: quick whatever their length, searched and filtered by indexes."""

import re
import uuid
from datetime import timedelta
from html import unescape

import pytest
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from batches import lifecycle
from batches.admin import lists
from batches.admin.batches import BatchAdmin
from batches.models import Attempt, Batch, Generation, Image, Lane, Lease, Pool
from batches.scheduling import admit
from generation.catalogue import load_models
from tests.batches.admin.support import (
    AWAY,
    BIG,
    MODELS,
    admit_again,
    fail,
    html_of,
    list_url,
    listed,
    make_rows,
    page,
    page_url,
    queries_of,
    submit,
    unbounded_counts,
)
from tests.factories import MODEL, make_batch, make_generation, make_user

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("model", MODELS)
def test_every_list_and_every_page_answers_an_operator(operator, model):
    make_rows(1)
    html = html_of(operator.get(list_url(model)))
    rows = list(model.objects.all())
    assert rows
    for row in rows:
        assert page_url(row) in html
        page(operator, row)


@pytest.mark.parametrize("model", MODELS)
def test_lists_are_for_staff_only(client, model):
    client.force_login(make_user())
    assert client.get(list_url(model)).status_code == 302


@pytest.mark.parametrize("model", MODELS)
def test_a_list_of_30_takes_as_many_queries_as_one_of_3(operator, model):
    make_rows(3)
    few = queries_of(operator, list_url(model))
    make_rows(27)
    assert len(queries_of(operator, list_url(model))) == len(few)


@pytest.mark.parametrize("model", MODELS)
def test_no_list_counts_a_whole_table(operator, model):
    batch = make_rows(1)[0]
    for parameters in (
        {},
        {"q": "x"},
        {"q": str(batch.pk)},
        {"all": ""},
        {"_facets": "True"},
        {"o": "1"},
    ):
        queries = queries_of(operator, list_url(model), **parameters)
        assert not unbounded_counts(queries)


def test_no_filter_counts_a_whole_table(operator):
    batch = make_rows(1)[0]
    for parameters in (
        {"status__exact": "completed"},
        {"model": MODEL},
        {"error_code": "unknown"},
        {"owner": batch.owner_id},
        {"batch": str(batch.pk)},
        {"created_at__gte": "2020-01-01 00:00:00+00:00"},
    ):
        assert not unbounded_counts(queries_of(operator, list_url(Generation), **parameters))


def test_a_page_of_a_large_batch_takes_as_many_queries_as_one_of_a_small_one(operator):
    small, large = make_batch(size=2), make_batch(size=40)
    assert len(queries_of(operator, page_url(small))) == len(queries_of(operator, page_url(large)))


def test_a_page_with_many_attempts_takes_as_many_queries_as_one_with_a_single_one(operator):
    once, often = make_generation(), make_generation()
    submit(admit_again(once))
    for _ in range(30):
        attempt, _ = submit(admit_again(often))
        lifecycle._end_attempt(attempt, AWAY, unanswered=False)
    assert len(queries_of(operator, page_url(once))) == len(queries_of(operator, page_url(often)))


def test_a_generation_shows_its_last_attempts(operator):
    generation = make_generation()
    for _ in range(25):
        attempt, _ = submit(admit_again(generation))
        lifecycle._end_attempt(attempt, AWAY, unanswered=False)
    html = page(operator, generation)
    numbers = [int(number) for number in re.findall(rf"{generation.pk} #(\d+)", html)]
    assert numbers == list(range(25, 5, -1))


def test_a_list_longer_than_what_is_counted_says_so_and_pages_through_that_much(
    operator, monkeypatch
):
    batches = [make_batch(size=1) for _ in range(8)]
    monkeypatch.setattr(lists, "COUNT_MAX", 5)
    monkeypatch.setattr(BatchAdmin, "list_per_page", 2)
    html = html_of(operator.get(list_url(Batch)))
    assert "5+ batches" in html
    assert "5+ results" in html_of(operator.get(list_url(Batch), {"status__exact": "pending"}))
    newest_first = [batch.pk for batch in reversed(batches)]
    shown = [listed(operator, Batch, p=number) for number in (1, 2, 3)]
    assert shown == [set(newest_first[:2]), set(newest_first[2:4]), set(newest_first[4:5])]


def test_a_large_count_is_written_in_full():
    assert str(lists.AtLeast(10_000)) == "10,000+"


def test_lists_begin_with_the_newest(operator):
    first, second = make_batch(), make_batch()
    rows = operator.get(list_url(Batch)).context["cl"].result_list
    assert [row.pk for row in rows] == [second.pk, first.pk]


# --- Searches -------------------------------------------------------------------------------------


def test_a_batch_is_found_by_id_owner_and_provider_id(operator):
    wanted, other = make_rows(2)
    provider_id = Attempt.objects.get(generation__batch=wanted).provider_id
    for term in (str(wanted.pk), f" {wanted.pk.hex} ", wanted.owner.username, provider_id):
        assert listed(operator, Batch, q=term) == {wanted.pk}
    assert listed(operator, Batch) == {wanted.pk, other.pk}


def test_a_generation_is_found_by_id_batch_owner_and_provider_id(operator):
    wanted, _ = make_rows(2)
    done = wanted.generations.get(index=0)
    both = set(wanted.generations.values_list("pk", flat=True))
    assert listed(operator, Generation, q=str(done.pk)) == {done.pk}
    assert listed(operator, Generation, q=done.attempts.get().provider_id) == {done.pk}
    assert listed(operator, Generation, q=str(wanted.pk)) == both
    assert listed(operator, Generation, q=wanted.owner.username) == both


def test_an_attempt_is_found_by_provider_id_and_generation(operator):
    wanted = Attempt.objects.get(generation__batch=make_rows(2)[0])
    assert listed(operator, Attempt, q=wanted.provider_id) == {wanted.pk}
    assert listed(operator, Attempt, q=str(wanted.generation_id)) == {wanted.pk}


def test_images_lanes_and_leases_are_found_by_their_owner(operator):
    batch, _ = make_rows(2)
    for model in (Image, Lane, Lease):
        own = model.objects.get(owner=batch.owner)
        assert listed(operator, model, q=batch.owner.username) == {own.pk}
    image = Image.objects.get(owner=batch.owner)
    assert listed(operator, Image, q=str(image.pk)) == {image.pk}
    assert listed(operator, Image, q=str(image.generation_id)) == {image.pk}


@pytest.mark.parametrize("model", [Batch, Generation, Attempt, Image, Lane, Lease])
@pytest.mark.parametrize(
    "term",
    [
        "no-such-thing",
        "00000000-0000-0000-0000-00000000000",
        "00000000-0000-0000-0000-000000000000",
        "'; DROP TABLE batches_batch; --",
        "%",
        '"',
        "1" * 5_000,
        "\N{SNOWMAN}",
    ],
)
def test_a_search_for_what_is_not_there_finds_nothing(operator, model, term):
    make_rows(1)
    assert listed(operator, model, q=term) == set()


def test_a_search_with_a_null_byte_is_refused_politely(operator):
    html_of(operator.get(list_url(Batch), {"q": "a\0b"}))


def test_the_list_of_pools_has_no_search(operator):
    make_rows(1)
    assert 'id="searchbar"' not in html_of(operator.get(list_url(Pool), {"q": "x"}))


@pytest.mark.parametrize("model", BIG)
def test_every_search_reads_indexes_only(operator, model):
    batch = make_rows(3)[0]
    generation = batch.generations.get(index=0)
    provider_id = generation.attempts.get().provider_id
    # Without its order a search shows what finds the rows; with it, what sorts them.
    lookups = [
        sql
        for term in (str(generation.pk), batch.owner.username, provider_id)
        for sql in queries_of(operator, list_url(model), q=term)
        if "batches_" in sql and "WHERE" in sql and "ORDER BY" not in sql
    ]
    assert lookups
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        for sql in lookups:
            cursor.execute(f"EXPLAIN {sql}")
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert "Seq Scan" not in plan, plan
            assert plan.count("Index Cond") == len(re.findall("Index (?:Only )?Scan", plan)), plan


# --- Filters and links ----------------------------------------------------------------------------


def test_batches_are_filtered_by_status_priority_date_and_owner(operator):
    low, high = make_batch(priority=1), make_batch(priority=8)
    Batch.objects.filter(pk=low.pk).update(created_at=timezone.now() - timedelta(days=30))
    Batch.objects.filter(pk=high.pk).update(status="processing")
    assert listed(operator, Batch, priority="8") == {high.pk}
    assert listed(operator, Batch, owner=low.owner_id) == {low.pk}
    assert listed(operator, Batch, status__exact="processing") == {high.pk}
    week = str(timezone.now() - timedelta(days=7))
    assert listed(operator, Batch, created_at__gte=week) == {high.pk}


def test_generations_are_filtered_by_status_model_error_and_batch(operator):
    done, running = make_rows(1)[0].generations.order_by("index")
    other = make_generation(model="someone/else")
    broken = make_generation()
    admit()
    fail(broken)
    everything = {done.pk, running.pk, other.pk, broken.pk}
    assert listed(operator, Generation) == everything
    assert listed(operator, Generation, status__exact="completed") == {done.pk}
    assert listed(operator, Generation, model=MODEL) == everything - {other.pk}
    assert listed(operator, Generation, error_code="provider_unavailable") == {broken.pk}
    assert listed(operator, Generation, batch=str(done.batch_id)) == {done.pk, running.pk}


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (Batch, {"priority": "high"}),
        (Batch, {"owner": "nobody"}),
        (Batch, {"owner": "9" * 30}),
        (Generation, {"model": "no/such"}),
        (Generation, {"error_code": "no_such"}),
        (Generation, {"batch": "garbage"}),
        (Generation, {"batch": str(uuid.UUID(int=0))}),
        (Image, {"batch": "garbage"}),
        (Attempt, {"generation": "garbage"}),
    ],
)
def test_a_filter_with_a_value_that_is_not_there_shows_nothing(operator, model, parameters):
    make_rows(1)
    assert listed(operator, model, **parameters) == set()


def test_the_filters_offer_the_catalogue_without_asking_the_table(operator):
    make_generation(model="gone/from-the-catalogue")
    html = html_of(operator.get(list_url(Generation)))
    sidebar = html.split('id="changelist-filter"')[1]
    assert all(model_id in unescape(sidebar) for model_id in load_models())
    assert "gone/from-the-catalogue" not in sidebar
    assert not [sql for sql in queries_of(operator, list_url(Generation)) if "DISTINCT" in sql]


def test_the_owner_filter_lists_no_users(operator):
    batch = make_batch()
    bystander = make_user("bystander")
    assert "bystander" not in html_of(operator.get(list_url(Batch)))
    html = html_of(operator.get(list_url(Batch), {"owner": batch.owner_id}))
    assert batch.owner.username in html.split('id="changelist-filter"')[1]
    assert bystander.username not in html


def test_every_link_of_every_list_and_page_leads_somewhere(operator):
    make_rows(1)
    seen = set()
    for model in MODELS:
        for url in (list_url(model), *(page_url(row) for row in model.objects.all())):
            main = html_of(operator.get(url)).split('id="content-main"')[1]
            seen |= {unescape(href) for href in re.findall(r'href="(/admin/batches/[^"]+)"', main)}
    assert len(seen) > 20
    for href in seen:
        html_of(operator.get(href))


def test_links_lead_from_a_batch_to_its_generations_attempts_and_images(operator):
    batch, _ = make_rows(2)
    done = batch.generations.get(index=0)
    both = set(batch.generations.values_list("pk", flat=True))
    attempt, image = done.attempts.get(), done.images.get()
    assert f"{list_url(Generation)}?batch={batch.pk}" in html_of(operator.get(list_url(Batch)))
    assert listed(operator, Generation, batch=str(batch.pk)) == both
    assert f"{list_url(Attempt)}?generation={done.pk}" in page(operator, done)
    assert listed(operator, Attempt, generation=str(done.pk)) == {attempt.pk}
    assert f"{list_url(Image)}?batch={batch.pk}" in page(operator, batch)
    assert listed(operator, Image, batch=str(batch.pk)) == {image.pk}
    assert listed(operator, Image, generation=str(done.pk)) == {image.pk}


def test_an_address_that_names_no_row_leads_back(operator):
    for pk in ("garbage", uuid.UUID(int=0)):
        url = reverse("admin:batches_batch_change", args=[pk])
        assert operator.get(url).status_code == 302
