"""PostgreSQL, beyond what Django does: how it says that it is away, and storing many rows."""

import itertools
import json
import re
import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from django.db import InterfaceError, OperationalError, connection, models
from django.db.backends.utils import CursorWrapper
from django.db.models import NOT_PROVIDED, AutoField

# What Django raises when the database is away, also when a connection that was in use is ended.
DATABASE_AWAY = (OperationalError, InterfaceError)

Row = TypeVar("Row", bound=models.Model)


def reason(error: BaseException) -> str:
    """The first line of what an error says; what follows are hints for whoever set it up."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def insert(rows: Sequence[Row]) -> Sequence[Row]:
    """Store new rows of one model in one statement, and set on them what the database fills in.

    As `bulk_create`, for half its time: the values go as one document, of which PostgreSQL makes
    rows, and the statement is the same for any number of them. The database fills in the columns
    for which it has a default and Python has none, whatever the rows say. `None` is NULL, in a
    JSON column too. Fields that compute their value on saving have none computed.
    """
    if rows:
        sql, given, filled = _insertion(type(rows[0]))
        document = [
            {column: value for column in given if (value := getattr(row, column)) is not None}
            for row in rows
        ]
        with connection.cursor() as cursor:
            execute(cursor, sql, [json.dumps(document, default=_as_text)])
            for row, values in zip(rows, cursor.fetchall(), strict=True):
                row.__dict__.update(zip(filled, values, strict=True))
                row._state.adding, row._state.db = False, connection.alias
    return rows


def _as_text(value: Any) -> str:
    """What JSON has no form for, as PostgreSQL reads it. An expression is not a value."""
    if isinstance(value, uuid.UUID | Decimal | datetime):
        return str(value)
    raise TypeError(f"{value!r} is not a value")


def execute(cursor: CursorWrapper, sql: str, values: Sequence[Any]) -> None:
    """As `cursor.execute`, of a statement that the connection plans once and not each time.

    For the few that all work takes: they are long, and planning one costs more than what it does.
    Each is kept, so the text may not vary with what is asked. What type a value has must follow
    from where it stands.
    """
    name = _prepared(sql)
    cursor.execute(f"EXECUTE {name}({', '.join(['%s'] * len(values))})", values)


def _prepared(sql: str) -> str:
    """The name of a statement that the connection knows from now on."""
    # Not undone with the transaction. By the driver: it is no query of whoever comes first.
    known = _known.setdefault(connection.connection, {})
    if sql not in known:
        name = f"picture_{next(_numbers)}"
        with connection.wrap_database_errors, connection.connection.cursor() as cursor:
            cursor.execute(f"PREPARE {name} AS {_numbered(sql)}")
        known[sql] = name
    return known[sql]


_known: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
_numbers = itertools.count(1)  # never twice, also if it cannot be told whether one was taken


@cache
def _numbered(sql: str) -> str:
    """With `$1` for the first `%s`, and so on."""
    numbers = itertools.count(1)
    return re.sub("%s", lambda _: f"${next(numbers)}", sql)


@cache
def _insertion(model: type[models.Model]) -> tuple[str, Collection[str], Collection[str]]:
    """A statement that takes a list of objects as JSON, the names in them, and what it returns."""
    given: dict[str, Any] = {}
    filled = []
    for field in model._meta.local_concrete_fields:
        assert field.attname == field.column
        is_default = field.db_default is not NOT_PROVIDED and not field.has_default()
        if is_default or isinstance(field, AutoField):
            filled.append(field.column)
        else:
            given[field.column] = field.db_type(connection)
    columns = ", ".join(f'"{column}"' for column in given)
    types = ", ".join(f'"{column}" {db_type}' for column, db_type in given.items())
    returned = ", ".join(f'"{column}"' for column in filled) or "1"
    return (
        f'INSERT INTO "{model._meta.db_table}" ({columns}) SELECT {columns} '
        f"FROM jsonb_to_recordset(%s) AS given({types}) RETURNING {returned}",
        tuple(given),
        tuple(filled),
    )
