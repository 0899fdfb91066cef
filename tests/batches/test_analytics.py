"""Figures of generations: what is counted, and by which indexes."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.db.models.functions import Now

from batches import analytics
from batches.analytics import Figures, GroupBy, Scope, report
from batches.models import Attempt, Generation, Image, Publication
from tests.factories import MODEL, make_batch, make_generation, make_image, make_user

pytestmark = pytest.mark.django_db

DAY = datetime(2026, 11, 18, 12, tzinfo=UTC)  # a Wednesday


@pytest.fixture
def owner():
    return make_user()


def made(owner, status="completed", *, at=DAY, run_s=None, cost="0", **fields):
    """A generation that has ended so, with its image if it is completed."""
    generation = make_generation(owner)
    if status == "completed":
        make_image(generation)
    elif status in ("failed", "cancelled"):
        error_code = "unknown" if status == "failed" else ""
        fields |= {"status": status, "finished_at": Now(), "error_code": error_code}
    Generation.objects.filter(pk=generation.pk).update(created_at=at, cost_usd=cost, **fields)
    Image.objects.filter(generation=generation).update(created_at=at)
    if run_s is not None:
        Attempt.objects.create(
            generation=generation,
            number=1,
            provider="replicate",
            model=MODEL,
            outcome="succeeded",
            finished_at=at,
            total_s=run_s,
        )
    return generation


def reviewed(generation, status):
    Image.objects.filter(generation=generation).update(review_status=status, reviewed_at=Now())


def published(generation, channel="printify", status="published"):
    ended = {"publishing": {}, "published": {"finished_at": Now()}}
    failed = {"finished_at": Now(), "error_code": "unknown"}
    Publication.objects.create(
        owner_id=generation.owner_id,
        image=generation.images.get(),
        channel=channel,
        status=status,
        product_type="mug",
        title="A mug",
        **ended.get(status, failed),
    )


def total(owner, **scope):
    return report(Scope(owner.pk, **scope)).total


def test_of_nothing_there_is_nothing_to_divide(owner):
    figures = total(owner)
    assert figures == Figures()
    assert (figures.success_rate, figures.approval_rate, figures.publish_rate) == (None,) * 3
    assert (figures.median_run_s, figures.p90_run_s) == (None, None)


def test_generations_are_counted_by_how_they_ended(owner):
    for status in ("completed", "completed", "failed", "cancelled", "queued"):
        made(owner, status, cost="0.003")
    figures = total(owner)
    assert (figures.generations, figures.completed, figures.failed, figures.cancelled) == (
        *(5, 2, 1),
        1,
    )
    assert figures.success_rate == 2 / 4
    assert figures.cost_usd == Decimal("0.015")
    assert figures.images == 2


def test_images_count_by_their_review_and_publications_by_image(owner):
    generations = [made(owner) for _ in range(5)]
    for generation in generations[:3]:
        reviewed(generation, "approved")
    reviewed(generations[3], "rejected")
    for channel in ("printify", "shopify"):
        published(generations[0], channel)
    published(generations[1], status="publishing")
    published(generations[2], status="publish_failed")
    figures = total(owner)
    assert (figures.approved, figures.rejected, figures.published) == (3, 1, 1)
    assert (figures.approval_rate, figures.publish_rate) == (3 / 4, 1 / 3)


def test_what_was_rejected_after_it_was_published_counts_as_rejected(owner):
    generation = made(owner)
    published(generation)
    reviewed(generation, "rejected")
    figures = total(owner)
    assert (figures.rejected, figures.published, figures.publish_rate) == (1, 0, None)


def test_run_times_are_those_of_the_attempts_that_succeeded(owner):
    for run_s in (1.0, 2.0, 3.0, 4.0, 10.0):
        made(owner, run_s=run_s)
    failed = made(owner, "failed")
    Attempt.objects.create(
        generation=failed, number=1, model=MODEL, outcome="failed", finished_at=DAY
    )
    figures = total(owner)
    assert (figures.median_run_s, figures.p90_run_s) == (3.0, pytest.approx(7.6))


def test_the_range_begins_with_its_first_moment_and_ends_before_its_last(owner):
    for at in (DAY - timedelta(microseconds=1), DAY, DAY + timedelta(hours=1)):
        made(owner, at=at)
    assert total(owner, begin=DAY, end=DAY + timedelta(hours=1)).generations == 1
    assert total(owner, begin=DAY, end=DAY + timedelta(hours=2)).images == 2


def test_what_came_of_it_counts_however_late_it_came(owner):
    generation = made(owner, "completed")
    late = DAY + timedelta(days=2)
    Image.objects.update(created_at=late)
    reviewed(generation, "approved")
    published(generation)
    Publication.objects.update(created_at=late)
    figures = total(owner, begin=DAY, end=DAY + timedelta(hours=1))
    assert (figures.images, figures.published) == (1, 1)


def test_what_is_deleted_or_of_others_does_not_count(owner):
    made(make_user())
    made(owner, deleted_at=DAY)
    assert total(owner) == Figures()


def test_a_model_a_style_or_a_batch_can_be_asked_for(owner):
    made(owner, model="own/one", style="retro")
    made(owner, model="own/two")
    batch = make_batch(owner, size=3)
    assert total(owner).generations == 5
    assert total(owner, model="own/one").generations == 1
    assert total(owner, style="retro").generations == 1
    assert total(owner, style="").generations == 4
    assert total(owner, batch_id=batch.pk).generations == 3
    assert total(owner, batch_id=make_batch().pk) == Figures()


@pytest.mark.parametrize(
    ("group_by", "keys"),
    [
        (GroupBy.NONE, []),
        (GroupBy.DAY, ["2026-11-15", "2026-11-16", "2026-11-18"]),
        (GroupBy.WEEK, ["2026-11-09", "2026-11-16"]),
        (GroupBy.MODEL, ["own/two", "own/one"]),
        (GroupBy.STYLE, ["", "retro"]),
    ],
)
def test_figures_are_grouped(group_by, keys, owner):
    made(owner, at=DAY, model="own/one", style="retro", run_s=1.0)
    made(owner, at=datetime(2026, 11, 16, 0, 30, tzinfo=UTC), model="own/two", run_s=3.0)
    made(owner, at=datetime(2026, 11, 15, 23, 30, tzinfo=UTC), model="own/two", run_s=8.0)
    told = report(Scope(owner.pk), group_by)
    assert [one.key for one in told.groups] == keys
    if keys:
        assert sum(one.generations for one in told.groups) == 3
        assert sum(one.images for one in told.groups) == 3
        assert {one.median_run_s for one in told.groups} <= {1.0, 2.0, 3.0, 5.5, 8.0}
    # Not what the groups' medians would give.
    assert (told.total.median_run_s, told.total.generations) == (3.0, 3)


def test_there_are_so_many_groups_at_most(owner, monkeypatch):
    monkeypatch.setattr(analytics, "GROUPS_MAX", 2)
    for style in ("a", "b", "b", "c", "c", "c"):
        made(owner, "queued", style=style)
    told = report(Scope(owner.pk), GroupBy.STYLE)
    assert [(one.key, one.generations) for one in told.groups] == [("c", 3), ("b", 2)]
    assert told.total.generations == 6


def test_no_day_of_the_longest_range_is_left_out(owner):
    """Which touches a day more if it does not begin at midnight."""
    end = DAY + timedelta(days=analytics.DAYS_MAX)
    generations = list(make_batch(owner, size=analytics.DAYS_MAX + 1).generations.all())
    for number, generation in enumerate(generations):
        generation.created_at = min(DAY + timedelta(days=number), end - timedelta(seconds=1))
    Generation.objects.bulk_update(generations, ["created_at"])
    told = report(Scope(owner.pk, DAY, end), GroupBy.DAY)
    assert len(told.groups) == analytics.DAYS_MAX + 1
    assert (told.groups[0].key, told.groups[-1].key) == (f"{DAY:%Y-%m-%d}", f"{end:%Y-%m-%d}")


@pytest.mark.parametrize("group_by", GroupBy)
def test_it_is_one_query(group_by, owner, django_assert_num_queries):
    made(owner)
    with django_assert_num_queries(1):
        report(Scope(owner.pk, DAY, DAY + timedelta(days=1)), group_by)


def test_the_rows_of_others_are_not_looked_at(owner):
    mine = made(owner, run_s=1.0)
    reviewed(mine, "approved")
    published(mine)
    other = make_user().pk
    with connection.cursor() as cursor:
        for table in ("batches_generation", "batches_attempt", "batches_image"):
            _multiply(cursor, table, mine, other)
        sql, params = analytics._query(Scope(owner.pk, DAY, DAY + timedelta(days=1)), GroupBy.DAY)
        cursor.execute(f"EXPLAIN {sql}", params)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    for table in ("batches_generation", "batches_attempt", "batches_image"):
        assert f"Seq Scan on {table}" not in plan, plan
    assert "generation_owner_recent" in plan


def _multiply(cursor, table, generation, owner_id, times=5_000):
    """Rows like those of a generation, each of another of somebody else's."""
    own = {
        "id": "gen_random_uuid()",
        "generation_id": "md5(n::text)::uuid",
        "owner_id": str(owner_id),
        "file": "n::text || '/' || file",
        "callback_token": "gen_random_uuid()",
    }
    if table == "batches_generation":
        own["id"] = own["generation_id"]
    if table == "batches_attempt":
        own["id"] = "nextval(pg_get_serial_sequence('batches_attempt', 'id'))"
    cursor.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = %s", [table]
    )
    columns = [f'"{name}"' for (name,) in cursor.fetchall()]
    values = [own.get(column.strip('"'), column) for column in columns]
    key = "id" if table == "batches_generation" else "generation_id"
    cursor.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "
        f"FROM {table}, generate_series(1, {times}) n WHERE {table}.{key} = %s",
        [generation.pk],
    )
