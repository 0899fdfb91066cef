"""What lists and pages show."""

import re
from datetime import timedelta
from html import unescape

import pytest
from django.utils import timezone

from batches import lifecycle, pools
from batches.admin import show
from batches.models import Attempt, Batch, Generation, Image, Lease, Pool
from batches.scheduling import admit
from tests.batches.admin.support import (
    BIG,
    complete,
    fail,
    failed_generation,
    html_of,
    list_url,
    make_rows,
    page,
    page_url,
    stop,
)
from tests.factories import MODEL, make_batch, make_user, new_generation

pytestmark = pytest.mark.django_db


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
    assert show.duration(seconds) == text


def test_moments_tell_their_zone_and_their_distance():
    past, future = timezone.now() - timedelta(minutes=3), timezone.now() + timedelta(days=2)
    assert f"{past:%Y-%m-%d %H:%M:%S} UTC" in show.moment(past)
    assert "3 min 0 s ago" in show.moment(past)
    assert "in 1 d 23 h" in show.moment(future) or "in 2 d 0 h" in show.moment(future)


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
