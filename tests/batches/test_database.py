import contextlib
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.db import DataError, IntegrityError, ProgrammingError, connection, transaction
from django.db.models.functions import Now
from django.forms.models import model_to_dict

from batches import database
from batches.models import Batch, Event, EventKind, Generation
from tests.factories import make_batch, make_user

SAYINGS = 'sagt: "50 %s" \\ \n\t ü 東京 🦊 ;--'


def a_batch(owner, **overrides):
    fields = {
        "name": SAYINGS,
        "settings": {"a": None, "b": [1, 0.1, 2**60, True, SAYINGS], "%(c)s": {}},
        "tags": ["one", 'with "quotes", {braces} and a comma', "NULL"],
        "total_count": 2,
        "cost_usd": Decimal("123456.000001"),
        "start_at": datetime(2031, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
    }
    return Batch(owner=owner, **{**fields, **overrides})


@pytest.mark.django_db
def test_stores_what_the_orm_stores():
    owner = make_user()
    ours, plain = a_batch(owner), a_batch(owner)
    assert database.insert([ours]) == [ours]
    Batch.objects.bulk_create([plain])
    kept, expected = Batch.objects.get(pk=ours.pk), Batch.objects.get(pk=plain.pk)
    assert model_to_dict(kept) == model_to_dict(expected)
    assert model_to_dict(kept) == model_to_dict(ours)
    assert kept.created_at == ours.created_at


@pytest.mark.django_db
def test_sets_what_the_database_fills_in_on_each_row():
    owner, batch = make_user(), make_batch()
    rows = [
        Event(
            owner=owner,
            batch_id=batch.pk,
            kind=EventKind.BATCH_PROGRESS,
            status=str(version),
            version=version,
        )
        for version in (9, 7, 8)
    ]
    database.insert(rows)
    for row in rows:
        kept = Event.objects.get(pk=row.pk)
        assert (kept.version, kept.created_at) == (row.version, row.created_at)


@pytest.mark.django_db
def test_rows_may_be_changed_and_saved_afterwards():
    batch = a_batch(make_user())
    database.insert([batch])
    batch.name = "another"
    batch.save()
    assert Batch.objects.get().name == "another"


@pytest.mark.django_db
def test_takes_one_statement_for_any_number(django_assert_num_queries):
    batch = make_batch(size=1)
    with django_assert_num_queries(1):
        database.insert(
            [
                Generation(owner_id=batch.owner_id, batch=batch, index=index, provider="replicate")
                for index in range(1, 40)
            ]
        )
    with django_assert_num_queries(0):
        assert database.insert([]) == []
    assert list(batch.generations.order_by("index").values_list("index", flat=True)) == [*range(40)]


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"name": "x" * 201}, DataError),
        ({"total_count": None}, IntegrityError),
        ({"owner_id": 2**31 - 1}, IntegrityError),
        ({"settings": {"a": math.nan}}, DataError),
        ({"name": Now()}, TypeError),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_what_does_not_fit_is_an_error_and_nothing_is_stored(overrides, error):
    owner = make_user()
    with pytest.raises(error):
        database.insert([a_batch(owner), Batch(**{**vars_of(a_batch(owner)), **overrides})])
    assert not Batch.objects.exists()


def vars_of(row):
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}


@pytest.mark.django_db
def test_a_statement_is_planned_once_for_a_connection():
    sql = "SELECT id FROM batches_batch WHERE status = %s AND id = ANY(%s) AND priority + %s = 4"
    one, other = make_batch(), make_batch()

    def found(*batches, by=1):
        with connection.cursor() as cursor:
            database.execute(cursor, sql, ["pending", [batch.pk for batch in batches], by])
            return {pk for (pk,) in cursor.fetchall()}

    assert found(one, other) == {one.pk, other.pk}
    assert found(other) == {other.pk}
    assert found() == found(one, by=2) == set()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT generic_plans + custom_plans FROM pg_prepared_statements "
            "WHERE statement LIKE '%%priority + $3 = 4'"
        )
        assert cursor.fetchall() == [(4,)]


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_was_lost_is_told_anew():
    sql = "SELECT count(*) FROM batches_batch WHERE priority = %s"
    for _ in range(2):
        with connection.cursor() as cursor:
            database.execute(cursor, sql, [3])
            assert cursor.fetchone() == (0,)
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_undone_does_not_undo_the_plan():
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            with connection.cursor() as cursor:
                database.execute(cursor, "SELECT 3 + %s", [4])
                assert cursor.fetchone() == (7,)
            1 / 0  # noqa: B018  (any failure will do)


@pytest.mark.django_db
def test_a_plan_whose_answer_was_lost_does_not_stand_in_the_way():
    for _ in range(2):
        with connection.cursor() as cursor:
            database.execute(cursor, "SELECT 5 + %s", [6])
            assert cursor.fetchone() == (11,)
        # As if the connection had been interrupted between doing it and saying so.
        database._known.pop(connection.connection)


@pytest.mark.django_db
def test_it_counts_as_one_query_from_the_first_time_on(django_assert_num_queries):
    for _ in range(2):
        with django_assert_num_queries(1), connection.cursor() as cursor:
            database.execute(cursor, "SELECT 1 + %s", [2])
            assert cursor.fetchone() == (3,)


@pytest.mark.django_db(transaction=True)
def test_a_statement_that_cannot_be_planned_is_the_databases_error():
    with pytest.raises(ProgrammingError), connection.cursor() as cursor:
        database.execute(cursor, "SELECT nothing FROM nowhere WHERE one = %s", [1])
