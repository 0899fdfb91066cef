"""The operators' pages, over HTTP."""

import itertools
import re
import uuid
from datetime import timedelta
from decimal import Decimal
from html import unescape

import pytest
from django.contrib.admin import site
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode

from batches import admin as pages
from batches import invariants, lifecycle, pools
from batches.models import (
    Alert,
    AlertCode,
    Attempt,
    Batch,
    Generation,
    Image,
    Lane,
    Lease,
    Pool,
)
from batches.scheduling import admit
from generation.catalogue import load_models
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import MODEL, make_batch, make_generation, make_user, new_generation

pytestmark = pytest.mark.django_db

MODELS = (Batch, Generation, Attempt, Image, Lane, Lease, Pool, Alert)
BIG = (Batch, Generation, Attempt, Image)
READ_ONLY = (*BIG, Lease, Alert)
AWAY = Failure(ErrorClass.PROVIDER_UNAVAILABLE, "away", raw="<b>503</b>")


@pytest.fixture(autouse=True)
def room_for_all(settings):
    settings.MAX_PARALLEL_GLOBAL = 1_000
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 1_000}}


@pytest.fixture
def operator(client):
    client.force_login(make_user("operator", is_staff=True, is_superuser=True))
    return client


# --- Rows, made the way the product makes them --------------------------------------------------


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
    generation.save(update_fields=["attempt_count"])
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


# --- Looking at pages ---------------------------------------------------------------------------


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
    client.get(url, parameters)  # fills the caches of the process
    with CaptureQueriesContext(
        connection,
    ) as captured:
        html_of(client.get(url, parameters))
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


# --- Tests --------------------------------------------------------------------------------------


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
    submit(once)
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
    monkeypatch.setattr(pages, "COUNT_MAX", 5)
    monkeypatch.setattr(pages.BatchAdmin, "list_per_page", 2)
    html = html_of(operator.get(list_url(Batch)))
    assert "5+ batches" in html
    assert "5+ results" in html_of(operator.get(list_url(Batch), {"status__exact": "pending"}))
    newest_first = [batch.pk for batch in reversed(batches)]
    shown = [listed(operator, Batch, p=number) for number in (1, 2, 3)]
    assert shown == [set(newest_first[:2]), set(newest_first[2:4]), set(newest_first[4:5])]


def test_a_large_count_is_written_in_full():
    assert str(pages.AtLeast(10_000)) == "10,000+"


def test_lists_begin_with_the_newest(operator):
    first, second = make_batch(), make_batch()
    rows = operator.get(list_url(Batch)).context["cl"].result_list
    assert [row.pk for row in rows] == [second.pk, first.pk]


# --- Searches -----------------------------------------------------------------------------------


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


# --- Filters and links --------------------------------------------------------------------------


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


# --- What is shown ------------------------------------------------------------------------------


def test_a_batch_shows_its_progress_cost_and_time(operator):
    batch = make_batch(size=4, name="Lighthouses")
    admit()
    first, second, *_ = batch.generations.order_by("index")
    complete(first)
    fail(second)
    Batch.objects.filter(pk=batch.pk).update(started_at=timezone.now() - timedelta(seconds=125))
    html = html_of(operator.get(list_url(Batch)))
    assert f"Lighthouses ({str(batch.pk)[:8]})" in html
    assert '<progress class="bar" value="2" max="4">' in html
    assert "1 of 4 completed, 1 failed" in html
    assert '<span class="badge badge-processing">Processing</span>' in html
    assert MODEL in html
    assert "$0.0030" in html
    assert "2 min 5 s" in html


def test_a_batch_shows_its_first_generations_as_pictures(operator):
    batch = make_batch(size=35)
    admit()
    image = complete(batch.generations.get(index=0))
    html = page(operator, batch)
    assert html.count('class="tile"') == 30
    assert f"/api/v1/images/{image.pk}/thumbnail/?signature=" in html


@pytest.mark.parametrize("model", [Generation, Image])
def test_previews_are_thumbnails_that_the_api_serves(operator, client, model, media):
    make_rows(1)
    image = Image.objects.get()
    thumbnail = media / image.thumbnail.name
    thumbnail.parent.mkdir(parents=True)
    thumbnail.write_bytes(b"thumbnail")
    html = html_of(operator.get(list_url(model)))
    (src,) = re.findall(r'<img class="thumbnail" src="([^"]+)"', html)
    client.logout()
    answer = client.get(unescape(src))
    assert b"".join(answer.streaming_content) == b"thumbnail"


def test_an_image_shows_its_size_and_never_the_address_of_its_storage(operator):
    make_rows(1)
    image = Image.objects.get()
    html = page(operator, image)
    for text in ("1344 x 768 px", "120.6\xa0KB", "webp", f"/images/{image.pk}/file/?signature="):
        assert text in html
    assert f'href="/{image.file.name}' not in html


def test_a_generation_shows_its_attempts_with_the_raw_answers(operator):
    make_rows(1)
    attempt = Attempt.objects.get()
    for html in (page(operator, attempt.generation), page(operator, attempt)):
        assert attempt.provider_id in html
        assert '<pre class="json">{\n  &quot;logs&quot;: ' in html
        assert "2.5 s" in html
        assert str(attempt.callback_token) not in html


def test_what_users_and_providers_write_is_escaped(operator):
    attack = "<script>alert(1)</script>"
    batch = make_batch(make_user("eve"), name=attack, style=attack)
    admit()
    complete(batch.generations.get(index=0))
    Generation.objects.update(prompt=attack, name=attack, metadata={"x": attack})
    Batch.objects.update(settings={"model": attack})
    urls = [list_url(model) for model in BIG]
    urls += [page_url(row) for model in BIG for row in model.objects.all()]
    urls.append(f"{list_url(Generation)}?batch={batch.pk}")
    for url in urls:
        assert "<script>alert" not in html_of(operator.get(url))
    assert "&lt;script&gt;alert(1)" in html_of(operator.get(list_url(Generation)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (2.46, "2.5 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (3_599, "59 min 59 s"),
        (3_600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_have_units(seconds, text):
    assert pages.duration(seconds) == text


def test_moments_tell_their_zone_and_their_distance():
    past, future = timezone.now() - timedelta(minutes=3), timezone.now() + timedelta(days=2)
    assert f"{past:%Y-%m-%d %H:%M:%S} UTC" in pages.moment(past)
    assert "3 min 0 s ago" in pages.moment(past)
    assert "in 1 d 23 h" in pages.moment(future) or "in 2 d 0 h" in pages.moment(future)


# --- What may be changed ------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_nothing_can_be_added_or_deleted(operator, model):
    make_rows(1)
    row = model.objects.first()
    name = f"admin:batches_{model._meta.model_name}"
    assert operator.get(reverse(f"{name}_add")).status_code == 403
    assert operator.post(reverse(f"{name}_add"), {}).status_code == 403
    for answer in (
        operator.get(reverse(f"{name}_delete", args=[row.pk])),
        operator.post(reverse(f"{name}_delete", args=[row.pk]), {"post": "yes"}),
    ):
        assert answer.status_code == 403
    answer = operator.post(
        list_url(model), {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    )
    assert answer.status_code in (200, 302)
    assert model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", READ_ONLY)
def test_rows_of_the_product_cannot_be_changed(operator, model):
    make_rows(1)
    row = model.objects.first()
    before = model.objects.filter(pk=row.pk).values().get()
    answer = operator.post(page_url(row), {"status": "completed", "name": "changed", "index": 9})
    assert answer.status_code == 403
    assert model.objects.filter(pk=row.pk).values().get() == before
    assert 'name="_save"' not in page(operator, row)


def save(client, row, **fields):
    """Submit a form as it is shown, with some fields changed."""
    form = client.get(page_url(row)).context["adminform"].form
    data = {}
    for name in form.fields:
        value = form.initial.get(name)
        if name == "blocked_until":
            data |= {"blocked_until_0": "", "blocked_until_1": ""}
        elif value not in (None, False):
            data[name] = value
    return client.post(page_url(row), {**data, **fields})


def own_lane():
    make_rows(1)
    return Lane.objects.get()


def test_a_changed_cap_becomes_the_lanes_own(operator):
    lane = own_lane()
    assert save(operator, lane, cap=7).status_code == 302
    lane.refresh_from_db()
    assert (lane.cap, lane.cap_is_own) == (7, True)
    assert LogEntry.objects.count() == 1


def test_a_changed_weight_leaves_the_cap_to_the_default(operator):
    lane = own_lane()
    assert save(operator, lane, weight=2.5).status_code == 302
    lane.refresh_from_db()
    assert (lane.weight, lane.cap_is_own) == (2.5, False)


def test_a_lane_can_be_given_back_to_the_default(operator):
    lane = own_lane()
    save(operator, lane, cap=7)
    data = {"cap": 7, "weight": 1}  # a box that is not ticked is not sent
    assert operator.post(page_url(lane), data).status_code == 302
    lane.refresh_from_db()
    assert not lane.cap_is_own


def test_saving_a_lane_or_a_pool_leaves_its_counters_alone(operator, monkeypatch):
    lane, pool = own_lane(), Pool.objects.get(pk="replicate")

    def admit_meanwhile(self, row, names):
        type(row).objects.filter(pk=row.pk).update(vtime=9)
        return original(self, row, names)

    original = pages.LimitsAdmin.save_changed
    monkeypatch.setattr(pages.LimitsAdmin, "save_changed", admit_meanwhile)
    for row, field in ((lane, "cap"), (pool, "capacity")):
        assert save(operator, row, **{field: 50}).status_code == 302
        row.refresh_from_db()
        assert (row.vtime, getattr(row, field)) == (9, 50)


def test_the_counters_of_a_lane_and_a_pool_cannot_be_sent(operator):
    lane, pool = own_lane(), Pool.objects.get(pk="replicate")
    for row in (lane, pool):
        before = (row.vtime, getattr(row, "queued", None), getattr(row, "tokens", None))
        assert save(operator, row, running=99, vtime=99, queued=99, tokens=99).status_code == 302
        row.refresh_from_db()
        assert (row.vtime, getattr(row, "queued", None), getattr(row, "tokens", None)) == before


@pytest.mark.parametrize(
    "fields", [{"weight": 0}, {"weight": "1e-320"}, {"weight": "nan"}, {"cap": -1}, {"cap": 10**10}]
)
def test_a_lane_refuses_what_would_stop_the_ring(operator, fields):
    lane = own_lane()
    assert "errornote" in html_of(save(operator, lane, **fields))
    before = (lane.cap, lane.weight)
    lane.refresh_from_db()
    assert (lane.cap, lane.weight) == before


def test_a_pool_takes_new_limits(operator):
    make_rows(1)
    pool = Pool.objects.get(pk="replicate")
    save(
        operator,
        pool,
        capacity=40,
        rate_per_s=2.5,
        burst=20,
        blocked_until_0="2040-01-01",
        blocked_until_1="12:00:00",
    )
    pool.refresh_from_db()
    assert (pool.capacity, pool.rate_per_s, pool.burst) == (40, 2.5, 20)
    assert pool.blocked_until.year == 2040
    assert "2040-01-01 12:00:00 UTC" in html_of(operator.get(list_url(Pool)))


def test_a_smaller_burst_takes_the_tokens_that_no_longer_fit(operator):
    make_rows(1)
    Pool.objects.filter(pk="replicate").update(burst=60, tokens=60, rate_per_s=10)
    pool = Pool.objects.get(pk="replicate")
    assert save(operator, pool, burst=5).status_code == 302
    pool.refresh_from_db()
    assert (pool.burst, pool.tokens) == (5, 5)


@pytest.mark.parametrize("fields", [{"rate_per_s": 0}, {"rate_per_s": "1e-300"}, {"burst": 0}])
def test_a_pool_refuses_what_would_stop_admission(operator, fields):
    make_rows(1)
    pool = Pool.objects.get(pk="replicate")
    assert "errornote" in html_of(save(operator, pool, **fields))


def test_the_pool_of_the_system_is_read_only(operator):
    make_rows(1)
    pool = Pool.objects.get(pk=Pool.SYSTEM)
    assert 'name="capacity"' not in page(operator, pool)
    assert operator.post(page_url(pool), {"capacity": 5, "burst": 1}).status_code == 403


def test_new_limits_wake_the_admission(operator, django_capture_on_commit_callbacks, monkeypatch):
    lane = own_lane()
    woken = []
    monkeypatch.setattr("batches.wake.dispatch_now", lambda: woken.append(True))
    with django_capture_on_commit_callbacks(execute=True):
        save(operator, lane, cap=7)
    assert woken


# --- What operators have done -------------------------------------------------------------------

UNKNOWN = Failure(ErrorClass.TIMEOUT_UNKNOWN, "Nobody can tell whether it arrived.")


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


def broken():
    """What is wrong with the rows; the files are not looked at."""
    checks = [one for one in invariants.CHECKS if one[2] is not invariants._files]
    return [(code, rule, rows) for code, rule, find in checks if (rows := find())]


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


def test_batches_are_paused_and_those_that_cannot_be_are_named_with_their_status(operator):
    ended, waiting, running = failed_batch(), make_batch(), make_batch(size=2, name="Ships")
    Lane.objects.filter(owner=waiting.owner).update(cap=0)
    admit()
    messages = command(operator, list_url(Batch), "pause", [waiting, running, ended])
    assert messages == [
        "2 batches paused. What runs is finished, nothing more is started.",
        f"Not paused: {label(ended)} (partial).",
    ]
    assert (status_of(waiting), status_of(running)) == ("paused", "paused")
    assert set(statuses(waiting)) == {"pending"}
    assert set(statuses(running)) == {"processing"}
    assert broken() == []


def test_paused_batches_are_resumed(operator):
    batch, other = make_batch(name="Ships"), make_batch()
    assert lifecycle.pause_batch(batch=batch)
    messages = command(operator, list_url(Batch), "resume", [batch, other])
    assert messages == ["1 batch resumed.", f"Not resumed: {label(other)} (pending)."]
    assert set(statuses(batch)) == {"queued"}
    assert broken() == []


def test_cancelling_batches_asks_first(operator):
    batch = make_batch(size=3)
    response = operator.post(
        list_url(Batch), {"action": "cancel", "_selected_action": [batch.pk], "index": 0}
    )
    html = html_of(response)
    assert "This cannot be undone." in html
    assert "<li>Generations: 3</li>" in html
    assert page_url(batch) in html
    assert set(statuses(batch)) == {"queued"}
    (message,) = confirm(operator, list_url(Batch), "cancel", [batch])
    assert message.startswith("1 batch cancelled.")
    assert status_of(batch) == "cancelled"
    assert broken() == []


def test_a_batch_that_is_being_cancelled_is_marked_and_cannot_be_cancelled_again(operator):
    batch = make_batch(size=1, name="<Ships>")
    admit()
    confirm(operator, list_url(Batch), "cancel", [batch])
    assert 'badge-cancelling">Cancelling' in html_of(operator.get(list_url(Batch)))
    assert 'badge-cancelling">Cancelling' in page(operator, batch.generations.get())
    messages = confirm(operator, list_url(Batch), "cancel", [batch])
    assert messages == [f"Not cancelled: <Ships> ({label(batch)}) (being cancelled)."]
    html = html_of(press(operator, batch, "pause"))
    assert "Not paused: &lt;Ships&gt;" in html


def test_what_failed_in_batches_is_retried(operator):
    batch, fine = failed_batch(size=3, failed=2), failed_batch(failed=0)
    messages = command(operator, list_url(Batch), "retry", [batch, fine])
    assert messages == [
        "1 batch retried. Whatever had failed is in line again.",
        f"Not retried: {label(fine)} (completed, nothing has failed).",
    ]
    assert statuses(batch) == ["queued", "queued", "completed"]
    assert status_of(batch) == "processing"
    assert broken() == []


def test_deleting_batches_asks_first_and_is_noted(operator):
    batch, other = failed_batch(), make_batch()
    response = operator.post(
        list_url(Batch), {"action": "delete", "_selected_action": [batch.pk], "index": 0}
    )
    assert "This cannot be undone." in html_of(response)
    assert Batch.objects.count() == 2
    assert confirm(operator, list_url(Batch), "delete", [batch]) == ["1 batch deleted."]
    assert set(Batch.objects.all()) == {other}
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (DELETION, str(batch.pk))
    assert broken() == []


def test_a_deleted_batch_that_still_runs_stays_visible_and_takes_no_more_commands(operator):
    batch = make_batch(size=2)
    admit()
    confirm(operator, list_url(Batch), "delete", [batch])
    for url in (list_url(Batch), page_url(batch), list_url(Generation)):
        assert 'badge-deleted">Deleted' in html_of(operator.get(url))
    assert offered(operator, batch) == []
    for name in ("pause", "retry", "cancel", "delete"):
        (message,) = confirm(operator, list_url(Batch), name, [batch])
        assert message.endswith(f"{label(batch)} (deleted).")


@pytest.mark.parametrize("name", ["pause", "resume", "cancel", "retry", "delete"])
def test_every_command_works_from_the_batchs_own_page(operator, name):
    batch = failed_batch() if name == "retry" else make_batch()
    if name == "resume":
        lifecycle.pause_batch(batch=batch)
    assert name in offered(operator, batch)
    response = press(operator, batch, name)
    if name in ("cancel", "delete"):
        assert "Are you sure?" in html_of(response)
        assert set(statuses(batch)) == {"queued"}
        response = press(operator, batch, name, post="yes")
    (message,) = said(response)
    assert message.startswith("1 batch ")
    assert LogEntry.objects.get().object_id == str(batch.pk)
    # Back to where the button was, if that is still there.
    there = page_url(batch) if name != "delete" else list_url(Batch)
    assert response.redirect_chain[-1][0] == there


def test_a_page_offers_what_may_be_done_as_things_stand(operator):
    waiting, paused = make_batch(), make_batch()
    lifecycle.pause_batch(batch=paused)
    ended, fine = failed_batch(), failed_batch(failed=0)
    assert offered(operator, waiting) == ["pause", "cancel", "delete"]
    assert offered(operator, paused) == ["resume", "cancel", "delete"]
    assert offered(operator, ended) == ["retry", "delete"]
    assert offered(operator, fine) == ["delete"]
    assert offered(operator, ended.generations.get(index=0)) == ["retry"]
    assert offered(operator, ended.generations.get(index=1)) == []
    assert offered(operator, make_generation()) == ["pause", "cancel", "delete"]


def test_an_address_of_a_button_without_a_command_leads_to_the_page(operator):
    batch = make_batch()
    url = reverse("admin:batches_batch_act", args=[batch.pk])
    assert operator.get(url).url == page_url(batch)
    assert operator.post(url, {"action": "delete_selected"}).url == page_url(batch)
    missing = reverse("admin:batches_batch_act", args=["garbage"])
    assert operator.post(missing, {"action": "pause"}).url == list_url(Batch)
    assert LogEntry.objects.count() == 0


def test_no_more_than_the_limit_is_taken_at_a_time(operator, monkeypatch):
    monkeypatch.setattr(pages.BatchAdmin, "selected_max", 2)
    batches = [make_batch(size=1) for _ in range(3)]
    refusal = ["At most 2 can be taken at a time. Nothing was done."]
    assert command(operator, list_url(Batch), "pause", batches) == refusal
    everything = {"select_across": 1}
    assert command(operator, list_url(Batch), "pause", batches[:1], **everything) == refusal
    assert set(Batch.objects.values_list("status", flat=True)) == {"pending"}
    assert len(command(operator, list_url(Batch), "pause", batches[:2])) == 1
    assert pages.OperatorAdmin.selected_max == 100


def test_a_selection_of_everything_is_that_of_the_filter(operator):
    low, high = make_batch(priority=1), make_batch(priority=8)
    url = f"{list_url(Batch)}?priority=8"
    command(operator, url, "pause", [high], select_across=1)
    assert (status_of(low), status_of(high)) == ("pending", "paused")


def test_a_selection_that_names_no_row_does_nothing(operator):
    batch = make_batch()
    data = {"action": "pause", "_selected_action": ["garbage", batch.pk], "index": 0}
    response = operator.post(list_url(Batch), data, follow=True)
    assert said(response) == ["There is no 'garbage'."]
    data = {"action": "pause", "_selected_action": [uuid.UUID(int=0)], "index": 0}
    assert said(operator.post(list_url(Batch), data, follow=True)) == []
    assert status_of(batch) == "pending"


def test_a_batch_that_is_gone_meanwhile_is_told(operator, monkeypatch):
    batch = make_batch()

    def delete_first(*, batch):
        Batch.objects.filter(pk=batch.pk).delete()
        return False

    monkeypatch.setattr(lifecycle, "pause_batch", delete_first)
    messages = command(operator, list_url(Batch), "pause", [batch])
    assert messages == [f"Not paused: {label(batch)} (gone)."]


def test_a_long_selection_names_no_more_rows_than_fit(operator, monkeypatch):
    monkeypatch.setattr(pages, "NAMED_MAX", 2)
    batches = [make_batch(size=1) for _ in range(5)]
    (message,) = command(operator, list_url(Batch), "resume", batches)
    assert message.count("(pending)") == 2
    assert message.endswith(" and 3 more.")
    data = {"action": "cancel", "_selected_action": [batch.pk for batch in batches], "index": 0}
    html = html_of(operator.post(list_url(Batch), data))
    assert "<li>and 3 more</li>" in html
    assert html.count('name="_selected_action"') == 5


def test_what_is_done_is_in_the_rows_history(operator):
    batch = make_batch()
    command(operator, list_url(Batch), "pause", [batch])
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.change_message) == (CHANGE, "Paused.")
    history = operator.get(reverse("admin:batches_batch_history", args=[batch.pk]))
    assert "Paused." in html_of(history)


def test_generations_are_paused_and_resumed(operator):
    waiting, running = make_generation(), make_generation()
    Lane.objects.filter(owner=waiting.owner).update(cap=0)
    admit()
    messages = command(operator, list_url(Generation), "pause", [waiting, running])
    assert messages == ["1 generation paused.", f"Not paused: {label(running)} (processing)."]
    assert status_of(waiting) == "pending"
    messages = command(operator, list_url(Generation), "resume", [waiting, running])
    assert messages == ["1 generation resumed.", f"Not resumed: {label(running)} (processing)."]
    assert status_of(waiting) == "queued"
    assert broken() == []


def test_a_generation_of_a_paused_batch_is_not_resumed(operator):
    batch = make_batch(size=1)
    lifecycle.pause_batch(batch=batch)
    generation = batch.generations.get()
    messages = command(operator, list_url(Generation), "resume", [generation])
    assert messages == [f"Not resumed: {label(generation)} (its batch is paused)."]
    assert status_of(generation) == "pending"


def test_generations_are_cancelled_after_a_question(operator):
    waiting, running = make_generation(), make_generation()
    Lane.objects.filter(owner=waiting.owner).update(cap=0)
    admit()
    ended = failed_generation()
    rows = [waiting, running, ended]
    assert command(operator, list_url(Generation), "cancel", rows) == []
    assert status_of(waiting) == "queued"
    done, refused = confirm(operator, list_url(Generation), "cancel", rows)
    assert done.startswith("2 generations cancelled. What is at its provider ends when")
    assert refused == f"Not cancelled: {label(ended)} (failed)."
    assert status_of(waiting) == "cancelled"
    running.refresh_from_db()
    assert running.cancel_requested_at is not None
    assert "cancelling" in html_of(operator.get(list_url(Generation)))
    assert broken() == []


def test_failed_and_cancelled_generations_are_retried(operator):
    owner = make_user()
    batch = failed_batch(size=3, failed=2, owner=owner)
    first, second, done = batch.generations.order_by("index")
    single, other = failed_generation(), make_generation()
    lifecycle.cancel_generation(generation=other)
    rows = [first, second, done, single, other]
    messages = command(operator, list_url(Generation), "retry", rows)
    assert messages == ["4 generations retried.", f"Not retried: {label(done)} (completed)."]
    assert {status_of(row) for row in (first, second, single, other)} == {"queued"}
    assert status_of(batch) == "processing"
    assert broken() == []


def test_a_generation_of_a_batch_that_is_being_cancelled_is_not_retried(operator):
    batch = make_batch(size=2)
    admit()
    broken_one = fail(batch.generations.get(index=0))
    lifecycle.cancel_batch(batch=batch)
    messages = command(operator, list_url(Generation), "retry", [broken_one])
    reason = "failed, but its batch is being cancelled"
    assert messages == [f"Not retried: {label(broken_one)} ({reason})."]
    assert status_of(broken_one) == "failed"


def test_what_may_have_been_charged_is_retried_after_a_question_only(operator):
    generation = failed_generation(UNKNOWN, "submission_unknown")
    for answer in (
        press(operator, generation, "retry"),
        operator.post(
            list_url(Generation),
            {"action": "retry", "_selected_action": [generation.pk], "index": 0},
        ),
    ):
        assert "may be charged twice" in html_of(answer)
        assert status_of(generation) == "failed"
    messages = confirm(operator, list_url(Generation), "retry", [generation])
    assert messages == ["1 generation retried."]
    assert status_of(generation) == "queued"


def test_single_generations_are_deleted_and_those_of_batches_are_not(operator):
    single, member = make_generation(), make_batch(size=1).generations.get()
    assert command(operator, list_url(Generation), "delete", [single, member]) == []
    messages = confirm(operator, list_url(Generation), "delete", [single, member])
    assert messages == ["1 generation deleted.", f"Not deleted: {label(member)} (of a batch)."]
    assert set(Generation.objects.all()) == {member}
    assert broken() == []


def test_a_deleted_generation_takes_no_more_commands(operator):
    generation = failed_generation()
    # As it is until the sweep removes it.
    Generation.objects.filter(pk=generation.pk).update(deleted_at=timezone.now())
    messages = command(operator, list_url(Generation), "retry", [generation])
    assert messages == [f"Not retried: {label(generation)} (deleted)."]
    assert status_of(generation) == "failed"
    assert offered(operator, generation) == []


# --- Who may ------------------------------------------------------------------------------------


def alert_row():
    Alert.objects.raise_(AlertCode.CIRCUIT_OPEN, "replicate", "503")
    return Alert.objects.open().get()


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (make_batch, "pause", "batch"),
        (make_batch, "delete", "batch"),
        (make_generation, "pause", "generation"),
        (make_generation, "delete", "generation"),
        (alert_row, "clear", "alert"),
    ],
)
def test_who_may_only_look_is_offered_nothing_and_has_no_effect(client, make, name, kind):
    row = make()
    before = type(row).objects.filter(pk=row.pk).values().get()
    others = {"batch", "generation", "alert"} - {kind}
    staff(client, f"view_{kind}", *(f"change_{other}" for other in others))
    html = html_of(client.get(list_url(type(row))))
    assert 'name="action"' not in html
    assert offered(client, row) == []
    data = {"action": name, "_selected_action": [row.pk], "post": "yes"}
    html_of(client.post(list_url(type(row)), data | {"index": 0}, follow=True))
    html_of(client.post(list_url(type(row)), data, follow=True))
    assert press(client, row, name, post="yes").status_code == 403
    assert type(row).objects.filter(pk=row.pk).values().get() == before
    assert LogEntry.objects.count() == 0


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (make_batch, "pause", "batch"),
        (make_generation, "pause", "generation"),
        (alert_row, "clear", "alert"),
    ],
)
def test_who_may_change_rows_of_a_kind_may_command_them(client, make, name, kind):
    row = make()
    staff(client, f"change_{kind}")
    assert name in offered(client, row)
    (message,) = command(client, list_url(type(row)), name, [row])
    assert message.startswith(f"1 {kind} ")
    assert client.post(page_url(row), {"status": "completed", "message": "x"}).status_code == 403


def test_commands_are_for_staff_only(client):
    batch = make_batch()
    client.force_login(make_user())
    for url in (list_url(Batch), reverse("admin:batches_batch_act", args=[batch.pk])):
        data = {"action": "pause", "_selected_action": [batch.pk], "index": 0}
        assert client.post(url, data).status_code == 302
    assert status_of(batch) == "pending"


def test_commands_from_another_site_are_refused():
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user(is_staff=True, is_superuser=True))
    generation, batch = failed_generation(), make_batch()
    data = {"action": "pause", "_selected_action": [batch.pk], "index": 0}
    letter = {"action": "retry", "_selected_action": [generation.pk], "retry_all": "yes"}
    assert client.post(list_url(Batch), data).status_code == 403
    assert press(client, batch, "pause").status_code == 403
    assert client.post(letters_url(), letter).status_code == 403
    assert (status_of(batch), status_of(generation)) == ("pending", "failed")


def test_no_list_offers_to_delete_rows_past_the_lifecycle(operator):
    make_rows(1)
    for model in MODELS:
        html = html_of(operator.get(list_url(model)))
        assert "delete_selected" not in html


# --- Dead letters -------------------------------------------------------------------------------


def letters_url(**parameters):
    return reverse("admin:batches_dead_letters") + (
        f"?{urlencode(parameters)}" if parameters else ""
    )


def letters(client, **parameters):
    """The ids of the dead letters that are shown, in order."""
    response = client.get(letters_url(), parameters)
    html_of(response)
    return [row.pk for row in response.context["cl"].result_list]


def counts_of(client, **parameters):
    html = html_of(client.get(letters_url(), parameters)).split("Failed in the last 24 hours:")[1]
    links = re.findall(r'<a class="badge" href="\?([^"]+)">(\S+) (\S+)</a>', html.split("</p>")[0])
    return {code: count for _, code, count in links}


def test_the_page_of_dead_letters_is_sound():
    assert pages.DeadLetterAdmin(Generation, site).check() == []


def test_dead_letters_are_what_failed_with_the_newest_end_first(operator):
    older = failed_generation(ended_ago=timedelta(hours=2))
    newest = failed_generation(UNKNOWN, "submission_unknown", ended_ago=timedelta(hours=1))
    oldest = failed_generation(code="poison", ended_ago=timedelta(days=400))
    failed_batch(failed=0)
    make_generation()
    assert letters(operator) == [newest.pk, older.pk, oldest.pk]


def test_a_dead_letter_tells_what_an_operator_has_to_know(operator):
    batch = failed_batch(size=1)
    generation = batch.generations.get()
    html = html_of(operator.get(letters_url()))
    for text in (
        "provider_unavailable",
        "away",
        MODEL,
        batch.owner.username,
        page_url(batch),
        page_url(generation),
        f"{list_url(Attempt)}?generation={generation.pk}",
        "&lt;b&gt;503&lt;/b&gt;",
    ):
        assert text in html, text
    assert letters_url(owner=batch.owner_id) in html


def test_an_excerpt_is_short_and_holds_no_secret(operator):
    generation = failed_generation()
    attempt = generation.attempts.get()
    answer = f"https://ours.example/hooks/replicate/{attempt.callback_token}/ " + "x" * 5_000
    Attempt.objects.filter(pk=attempt.pk).update(raw={"body": answer})
    for url in (letters_url(), page_url(generation), page_url(attempt)):
        html = html_of(operator.get(url))
        assert "hooks/replicate/[token]/" in html
        assert str(attempt.callback_token) not in html
    assert "x" * 300 not in html_of(operator.get(letters_url()))
    Attempt.objects.filter(pk=attempt.pk).update(raw=["not", {"what": "is usual"}])
    assert "is usual" in html_of(operator.get(letters_url()))


def test_dead_letters_are_filtered_by_class_owner_model_and_age(operator):
    poison = failed_generation(code="poison", ended_ago=timedelta(minutes=5))
    unknown = failed_generation(UNKNOWN, "submission_unknown", ended_ago=timedelta(hours=5))
    away = failed_generation(model="someone/else", ended_ago=timedelta(days=3))
    ancient = failed_generation(ended_ago=timedelta(days=100))
    assert letters(operator, error_code="poison") == [poison.pk]
    assert letters(operator, error_code="submission_unknown") == [unknown.pk]
    assert letters(operator, error_code="provider_unavailable") == [away.pk, ancient.pk]
    assert letters(operator, owner=away.owner_id) == [away.pk]
    assert letters(operator, q=unknown.owner.username) == [unknown.pk]
    assert letters(operator, q=str(unknown.pk)) == [unknown.pk]
    assert letters(operator, model=MODEL) == [poison.pk, unknown.pk, ancient.pk]
    assert letters(operator, age="1h") == [poison.pk]
    assert letters(operator, age="24h") == [poison.pk, unknown.pk]
    assert letters(operator, age="7d") == letters(operator, age="30d")
    assert letters(operator, age="older") == [ancient.pk]
    assert letters(operator, age="older", error_code="poison") == []
    for parameters in (
        {"age": "x"},
        {"error_code": "x"},
        {"owner": "x"},
        {"model": "x"},
        {"q": "x"},
    ):
        assert letters(operator, **parameters) == []


def test_the_classes_to_filter_by_are_the_closed_list(operator):
    sidebar = html_of(operator.get(letters_url())).split('id="changelist-filter"')[1]
    for code in (*ErrorClass, "submission_unknown", "poison"):
        assert f"error_code={code}" in sidebar


def test_the_failures_of_a_day_are_counted_by_class(operator):
    for ended_ago in (timedelta(0), timedelta(hours=23), timedelta(hours=25)):
        failed_generation(code="poison", ended_ago=ended_ago)
    failed_generation()
    expected = {"provider_unavailable": "1", "poison": "2"}
    assert counts_of(operator) == expected
    assert counts_of(operator, error_code="poison", age="1h") == expected
    html = html_of(operator.get(letters_url()))
    assert 'href="?error_code=poison&amp;age=24h"' in html
    assert len(letters(operator, error_code="poison", age="24h")) == 2


def test_a_day_without_failures_says_so(operator):
    text = html_of(operator.get(letters_url())).split("Failed in the last 24 hours:")[1]
    assert text.split("</p>")[0].strip() == "none"


def test_of_each_class_no_more_failures_are_counted_than_a_list_shows(operator, monkeypatch):
    monkeypatch.setattr(pages, "COUNT_MAX", 2)
    for _ in range(4):
        failed_generation(code="poison")
    failed_generation()
    assert counts_of(operator) == {"provider_unavailable": "1", "poison": "2+"}
    (sql,) = [sql for sql in queries_of(operator, letters_url()) if "known(code" in sql]
    assert "LIMIT 3" in sql


def test_the_count_of_failures_reads_its_index_only(operator):
    first = failed_generation()
    codes = itertools.cycle(pages.ERROR_CODES)
    copies = Generation.objects.filter(pk=first.pk).values().get()
    # So many that the plan is the one of a large table.
    Generation.objects.bulk_create(
        Generation(**copies | {"id": uuid.uuid4(), "error_code": next(codes)}) for _ in range(4_000)
    )
    (sql,) = [sql for sql in queries_of(operator, letters_url()) if "known(code" in sql]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    scan = plan.split("generation_dead_letters")[1]
    condition = re.search(r"Index Cond: (.*)", scan)[1]
    assert "error_code" in condition, plan
    assert "finished_at" in condition, plan
    assert "Filter" not in scan, plan


def test_the_newest_of_all_classes_are_merged_by_the_index(operator):
    for _ in range(3):
        failed_generation()
    (sql,) = [sql for sql in queries_of(operator, letters_url()) if "UNION ALL" in sql]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Merge Append" in plan, plan
    assert plan.count("using generation_dead_letters") == len(pages.ERROR_CODES), plan
    assert "->  Sort" not in plan, plan


def test_no_more_dead_letters_are_paged_through_than_are_counted(operator, monkeypatch):
    monkeypatch.setattr(pages, "COUNT_MAX", 3)
    monkeypatch.setattr(pages.DeadLetterAdmin, "list_per_page", 2)
    codes = ("poison", "unknown", "poison", "auth", "poison")
    rows = [
        failed_generation(code=code, ended_ago=timedelta(hours=hours))
        for hours, code in enumerate(codes)
    ]
    assert letters(operator) == [row.pk for row in rows[:2]]
    assert letters(operator, p=2) == [rows[2].pk]
    assert "3+ generations" in html_of(operator.get(letters_url()))
    assert letters(operator, error_code="poison") == [rows[0].pk, rows[2].pk]


def test_a_list_of_30_dead_letters_takes_as_many_queries_as_one_of_3(operator):
    for _ in range(3):
        failed_generation()
    few = queries_of(operator, letters_url())
    for _ in range(27):
        failed_generation()
    many = queries_of(operator, letters_url())
    assert len(many) == len(few)
    assert len([sql for sql in many if "batches_" in sql]) <= 5
    # That of the failures is limited within.
    assert not [sql for sql in unbounded_counts(many) if "known(code" not in sql]


def test_the_dead_letters_are_in_the_index_and_in_the_sidebar(client):
    staff(client, "view_generation")
    app_index = reverse("admin:app_list", args=["batches"])
    for url in (reverse("admin:index"), app_index, list_url(Generation), letters_url()):
        assert f'href="{letters_url()}"' in html_of(client.get(url))


def test_who_may_not_see_generations_sees_no_dead_letters(client):
    staff(client, "view_batch")
    assert letters_url() not in html_of(client.get(reverse("admin:index")))
    assert client.get(letters_url()).status_code == 403


def test_dead_letters_are_for_staff_only(client):
    client.force_login(make_user())
    assert client.get(letters_url()).status_code == 302


def test_dead_letters_are_retried(operator):
    batch, single = failed_batch(size=3, failed=2), failed_generation()
    first, second = batch.generations.filter(status="failed").order_by("index")
    messages = command(operator, letters_url(), "retry", [first, second, single])
    assert messages == ["3 generations retried."]
    assert letters(operator) == []
    assert status_of(batch) == "processing"
    assert LogEntry.objects.filter(action_flag=CHANGE, change_message="Retried.").count() == 3
    assert broken() == []


def test_retrying_a_batchs_dead_letters_is_one_step(operator, monkeypatch):
    batch = failed_batch(size=3, failed=3)
    calls = []
    original = lifecycle.retry_generations

    def count(*, batch, generations):
        calls.append((batch, len(generations)))
        return original(batch=batch, generations=generations)

    monkeypatch.setattr(lifecycle, "retry_generations", count)
    command(operator, letters_url(), "retry", list(batch.generations.all()))
    assert calls == [(batch, 3)]


def ask_for_all(client, **parameters):
    return client.post(letters_url(**parameters), {"retry_all": "yes"}, follow=True)


def asked_about(response):
    return re.findall(r'name="_selected_action" value="([^"]+)"', html_of(response))


def test_all_of_a_filter_is_retried_after_a_question_with_the_number(operator):
    poison = [failed_generation(code="poison") for _ in range(3)]
    other = failed_generation()
    response = ask_for_all(operator, error_code="poison")
    html = html_of(response)
    assert "3 generations are retried, the newest of 3." in html
    assert "charged" not in html
    assert {status_of(row) for row in poison} == {"failed"}
    assert set(asked_about(response)) == {str(row.pk) for row in poison}
    too_late = failed_generation(code="poison")
    url = letters_url(error_code="poison")
    data = {"action": "retry", "_selected_action": asked_about(response), "post": "yes"}
    answer = operator.post(url, data, follow=True)
    assert said(answer) == ["3 generations retried."]
    assert answer.redirect_chain[-1][0] == url
    assert {status_of(row) for row in poison} == {"queued"}
    assert (status_of(other), status_of(too_late)) == ("failed", "failed")
    assert broken() == []


def test_the_question_warns_of_what_may_have_been_charged(operator):
    failed_generation(UNKNOWN, "submission_unknown")
    failed_generation(UNKNOWN, "submission_unknown")
    failed_generation()
    html = html_of(ask_for_all(operator))
    assert "3 generations are retried" in html
    assert "2 of these failed with submission_unknown" in html
    assert "may be charged twice" in html


def test_all_of_a_filter_is_the_newest_500_at_most(operator, monkeypatch):
    monkeypatch.setattr(pages, "RETRIED_MAX", 2)
    rows = [failed_generation(ended_ago=timedelta(hours=hours)) for hours in (3, 1, 2)]
    response = ask_for_all(operator)
    assert "2 generations are retried, the newest of 3." in html_of(response)
    assert asked_about(response) == [str(rows[1].pk), str(rows[2].pk)]
    assert pages.DeadLetterAdmin.selected_max == 500


def test_deleted_dead_letters_are_shown_as_such_and_left_out_of_all(operator):
    generation = failed_generation()
    Generation.objects.filter(pk=generation.pk).update(deleted_at=timezone.now())
    assert 'badge-deleted">Deleted' in html_of(operator.get(letters_url()))
    assert said(ask_for_all(operator)) == ["There is nothing to retry."]
    (message,) = command(operator, letters_url(), "retry", [generation])
    assert message == f"Not retried: {label(generation)} (deleted)."


def test_who_may_only_look_retries_no_dead_letters(client):
    generation = failed_generation()
    staff(client, "view_generation")
    html = html_of(client.get(letters_url()))
    assert "retry_all" not in html
    assert 'name="action"' not in html
    assert client.post(letters_url(), {"retry_all": "yes"}).status_code == 403
    data = {"action": "retry", "_selected_action": [generation.pk], "post": "yes"}
    html_of(client.post(letters_url(), data))
    assert status_of(generation) == "failed"


# --- Alerts -------------------------------------------------------------------------------------


def stop(error_class=ErrorClass.AUTH):
    admit()  # makes the pools
    pools.stop_pool(name="replicate", error_class=error_class, message="<b>401</b>")
    return Alert.objects.open().get(code=error_class)


def test_open_alerts_come_first_and_the_newest_of_them_before(operator):
    for subject in ("one", "two", "three", "four"):
        Alert.objects.raise_(AlertCode.POISON, subject, "again and again")
    one, two, three, four = Alert.objects.order_by("pk")
    pools.clear_alert(alert_id=four.pk, user_id=None)
    pools.clear_alert(alert_id=two.pk, user_id=None)
    Alert.objects.raise_(AlertCode.POISON, "one", "again and again")
    shown = operator.get(list_url(Alert)).context["cl"].result_list
    assert [row.pk for row in shown] == [one.pk, three.pk, two.pk, four.pk]
    assert listed(operator, Alert, state="open") == {one.pk, three.pk}
    assert listed(operator, Alert, state="cleared") == {two.pk, four.pk}
    assert listed(operator, Alert, state="nonsense") == set()
    assert listed(operator, Alert, code="poison") == {one.pk, two.pk, three.pk, four.pk}
    assert listed(operator, Alert, code="auth") == set()


def test_old_alerts_that_are_still_open_are_shown_whatever_came_after(operator, monkeypatch):
    monkeypatch.setattr(pages, "COUNT_MAX", 2)
    for subject in ("old", "cleared", "newer", "newest"):
        Alert.objects.raise_(AlertCode.POISON, subject, "again and again")
        if subject != "old":
            Alert.objects.filter(subject=subject).update(cleared_at=timezone.now())
    shown = operator.get(list_url(Alert)).context["cl"].queryset
    assert {row.subject for row in shown} == {"old", "newer", "newest"}


def test_an_alert_tells_everything_and_can_only_be_cleared(operator):
    alert = stop()
    for html in (html_of(operator.get(list_url(Alert))), page(operator, alert)):
        assert 'badge-auth">Auth' in html
        assert "replicate" in html
        assert "&lt;b&gt;401&lt;/b&gt;" in html
    assert offered(operator, alert) == ["clear"]


@pytest.mark.parametrize("error_class", [ErrorClass.AUTH, ErrorClass.INSUFFICIENT_CREDIT])
def test_clearing_an_alert_lets_what_it_stopped_go_on(operator, error_class):
    alert = stop(error_class)
    generation = make_generation()
    assert admit().admitted == []
    messages = command(operator, list_url(Alert), "clear", [alert])
    assert messages == ["1 alert cleared. Submissions to replicate go on."]
    assert [one.generation_id for one in admit().admitted] == [generation.pk]
    alert.refresh_from_db()
    assert alert.cleared_by.username == "operator"
    assert "operator" in html_of(operator.get(list_url(Alert)))
    assert offered(operator, alert) == []


def test_an_alert_is_cleared_from_its_own_page(operator):
    alert = stop()
    response = press(operator, alert, "clear")
    assert said(response) == ["1 alert cleared. Submissions to replicate go on."]
    assert said(press(operator, alert, "clear")) == [
        f"Not cleared: {alert} (cleared already).",
    ]


def test_clearing_one_of_two_reasons_tells_that_the_other_still_holds(operator):
    stop(ErrorClass.AUTH)
    stop(ErrorClass.INSUFFICIENT_CREDIT)
    alert = Alert.objects.get(code="auth")
    messages = command(operator, list_url(Alert), "clear", [alert])
    assert messages == ["1 alert cleared. replicate is still stopped: insufficient_credit."]
    assert admit().admitted == []


def test_clearing_an_open_circuit_closes_it(operator):
    make_generation()
    admit()
    generation = make_generation()
    for _ in range(pools.CIRCUIT_THRESHOLD):
        pools.record_unavailable(name="replicate", message="503")
    assert admit().admitted == []
    messages = command(operator, list_url(Alert), "clear", [Alert.objects.get()])
    assert messages == ["1 alert cleared. Submissions to replicate go on."]
    assert [one.generation_id for one in admit().admitted] == [generation.pk]


def test_clearing_an_alert_that_stopped_nothing_promises_nothing(operator):
    Alert.objects.raise_(AlertCode.POISON, "generation 1", "again and again")
    messages = command(operator, list_url(Alert), "clear", [Alert.objects.get()])
    assert messages == ["1 alert cleared."]


# --- The banner ---------------------------------------------------------------------------------


def banners(html):
    return re.findall(r'<a href="/admin/batches/alert/\?state=open">', html)


def pages_of_the_product(row):
    history = reverse("admin:batches_batch_history", args=[row.pk])
    app_index = reverse("admin:app_list", args=["batches"])
    lists = [list_url(model) for model in MODELS]
    return [reverse("admin:index"), app_index, history, letters_url(), page_url(row), *lists]


def test_open_alerts_are_on_every_page(operator):
    batch = make_batch()
    alert = stop()
    for url in pages_of_the_product(batch):
        html = html_of(operator.get(url))
        assert len(banners(html)) == 1, url
        assert "The provider refuses our credentials (replicate)" in html
    question = operator.post(
        list_url(Batch), {"action": "cancel", "_selected_action": [batch.pk], "index": 0}
    )
    assert banners(html_of(question))
    pools.clear_alert(alert_id=alert.pk, user_id=None)
    for url in pages_of_the_product(batch):
        assert not banners(html_of(operator.get(url)))


def test_the_banner_takes_one_query_that_reads_an_index(operator):
    for number in range(10):
        Alert.objects.raise_(AlertCode.POISON, f"generation {number}", "again")
    queries = queries_of(operator, list_url(Batch))
    (sql,) = [sql for sql in queries if "batches_alert" in sql]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "alert_one_open" in plan, plan
    assert "Sort" not in plan, plan


def test_the_banner_names_a_few_and_says_when_there_are_more(operator):
    for number in range(pages.BANNER_MAX):
        Alert.objects.raise_(AlertCode.POISON, f"<i>{number}</i>", "again")
    html = html_of(operator.get(reverse("admin:index")))
    assert html.count("(&lt;i&gt;") == pages.BANNER_MAX
    assert "and more" not in html
    Alert.objects.raise_(AlertCode.POISON, "one more", "again")
    html = html_of(operator.get(reverse("admin:index")))
    assert "and more" in html


def test_the_banner_is_for_who_may_see_alerts(client):
    stop()
    assert not banners(html_of(client.get(reverse("admin:login"))))
    staff(client, "view_batch")
    assert not banners(html_of(client.get(reverse("admin:index"))))
    staff(client, "view_alert")
    assert banners(html_of(client.get(reverse("admin:index"))))


# --- Pools, leases and attempts -----------------------------------------------------------------


def test_a_pool_shows_its_state(operator):
    admit()
    assert 'badge-ok">Ok' in html_of(operator.get(list_url(Pool)))
    pool = Pool.objects.get(pk="replicate")
    pools.block_pool(name="replicate", seconds=60)
    assert 'badge-rate_limited">Rate limited' in page(operator, pool)
    for _ in range(pools.CIRCUIT_THRESHOLD):
        pools.record_unavailable(name="replicate", message="503")
    html = html_of(operator.get(list_url(Pool)))
    assert 'badge-circuit_open">Circuit open' in html
    assert f'<td class="field-failure_count">{pools.CIRCUIT_THRESHOLD}</td>' in html
    stop()
    html = html_of(operator.get(list_url(Pool)))
    assert 'badge-stopped">Stopped' in html
    assert '<td class="field-stopped">auth</td>' in html
    assert html.count('class="badge') == 1  # the system as a whole has no state


def test_the_state_of_a_pool_cannot_be_sent(operator):
    stop()
    pool = Pool.objects.get(pk="replicate")
    assert save(operator, pool, capacity=5, stopped_by="", failure_count=0).status_code == 302
    pool.refresh_from_db()
    assert (pool.capacity, pool.stopped_by) == (5, "auth")


def test_a_lease_shows_how_its_deliveries_fare(operator):
    make_rows(1)
    lease = Lease.objects.get()
    Lease.objects.filter(pk=lease.pk).update(turn=17, crash_count=3, is_held=True)
    for html in (html_of(operator.get(list_url(Lease))), page(operator, lease)):
        for name in ("holds_slot", "is_held"):
            assert f"field-{name}" in html
        assert "17" in html
        assert "3" in html


def test_an_attempt_shows_the_settings_that_have_been_changed_since(operator):
    generation = failed_generation()
    new = new_generation(settings={"steps": 4}, input={"prompt": "a lighthouse", "steps": 4})
    assert lifecycle.retry_generations(
        batch=None, generations=[generation], plans={generation.pk: new}
    )
    attempt = generation.attempts.get()
    for html in (page(operator, generation), page(operator, attempt)):
        assert "settings, changed since" in html.lower()
        assert f"&quot;model&quot;: &quot;{MODEL}&quot;" in html


def test_the_times_of_cancellation_and_deletion_are_shown(operator):
    batch = make_batch(size=1)
    admit()
    lifecycle.delete_batch(batch=batch)
    for row in (batch, batch.generations.get()):
        html = page(operator, row)
        for name in ("cancel_requested", "deleted"):
            field = html.split(f'field-{name}"')[1].split("</div>")[0]
            assert "<time" in field, (row, name)
