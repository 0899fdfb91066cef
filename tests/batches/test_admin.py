"""The operators' pages, over HTTP."""

import re
import uuid
from datetime import timedelta
from decimal import Decimal
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from batches import admin as pages
from batches import lifecycle
from batches.models import Attempt, Batch, Generation, Image, Lane, Lease, Pool
from batches.scheduling import admit
from generation.catalogue import load_models
from generation.provider import ErrorClass, Failure, Prediction, PredictionStatus
from tests.factories import MODEL, make_batch, make_generation, make_user

pytestmark = pytest.mark.django_db

MODELS = (Batch, Generation, Attempt, Image, Lane, Lease, Pool)
BIG = (Batch, Generation, Attempt, Image)
READ_ONLY = (*BIG, Lease)
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
        lease_id=generation.lease.pk,
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


def fail(generation):
    generation.refresh_from_db()
    attempt, _ = submit(generation)
    assert lifecycle.fail_generation(
        generation=generation, lease_id=generation.lease.pk, attempt=attempt, failure=AWAY
    )


def make_rows(count):
    """As many of everything: of each batch one picture is done, the other holds a slot."""
    batches = [make_batch(size=2) for _ in range(count)]
    admit()
    for batch in batches:
        complete(batch.generations.get(index=0))
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
        lifecycle._fail_attempt(attempt, AWAY)
    assert len(queries_of(operator, page_url(once))) == len(queries_of(operator, page_url(often)))


def test_a_generation_shows_its_last_attempts(operator):
    generation = make_generation()
    for _ in range(25):
        attempt, _ = submit(admit_again(generation))
        lifecycle._fail_attempt(attempt, AWAY)
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
