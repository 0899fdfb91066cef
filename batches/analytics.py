"""What came of an owner's generations, in figures: one query, whatever is asked.

It begins with the owner's rows of the range, by index, and looks up what belongs to these. So what
others have does not matter to its time.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from django.db import connection

DAYS_MAX = 366
DAYS_DEFAULT = 30
# So many days that do not begin at midnight touch one more.
GROUPS_MAX = DAYS_MAX + 1


class GroupBy(StrEnum):
    NONE = "none"
    DAY = "day"
    WEEK = "week"
    MODEL = "model"
    STYLE = "style"


_KEYS = {
    GroupBy.NONE: "''",
    GroupBy.DAY: "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    GroupBy.WEEK: "to_char(date_trunc('week', created_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD')",
    GroupBy.MODEL: "model",
    GroupBy.STYLE: "style",
}
_ORDERS = dict.fromkeys((GroupBy.DAY, GroupBy.WEEK), "key") | dict.fromkeys(
    (GroupBy.MODEL, GroupBy.STYLE), "generations DESC, key"
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which generations are counted: made from `begin` on and before `end`; empty: any."""

    owner_id: int
    begin: datetime | None = None
    end: datetime | None = None
    batch_id: uuid.UUID | None = None
    model: str | None = None
    style: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Of some generations. Rates and run times are `None` where there is nothing to divide.

    `key` is the group's: the day, or a week's Monday, as `2026-11-20`, the model or the style.
    """

    key: str = ""
    generations: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    cost_usd: Decimal = Decimal(0)
    images: int = 0
    approved: int = 0
    rejected: int = 0
    published: int = 0
    median_run_s: float | None = None
    p90_run_s: float | None = None

    @property
    def success_rate(self) -> float | None:
        return _rate(self.completed, self.completed + self.failed + self.cancelled)

    @property
    def approval_rate(self) -> float | None:
        return _rate(self.approved, self.approved + self.rejected)

    @property
    def publish_rate(self) -> float | None:
        return _rate(self.published, self.approved)


class Report(NamedTuple):
    """Groups are days and weeks in order, or models and styles by how much they were used; the
    first `GROUPS_MAX`."""

    total: Figures
    groups: list[Figures]


def report(scope: Scope, group_by: GroupBy = GroupBy.NONE) -> Report:
    sql, params = _query(scope, group_by)
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        rows = cursor.fetchall()
    (_, _, *total), *groups = rows
    return Report(Figures("", *total), [Figures(*figures) for _, *figures in groups])


def _query(scope: Scope, group_by: GroupBy) -> tuple[str, dict[str, Any]]:
    asked = {
        "created_at >= %(begin)s": scope.begin,
        "created_at < %(end)s": scope.end,
        "batch_id = %(batch_id)s": scope.batch_id,
        "model = %(model)s": scope.model,
        "style = %(style)s": scope.style,
    }
    where = " AND ".join(
        ["owner_id = %(owner_id)s", "deleted_at IS NULL"]
        + [condition for condition, value in asked.items() if value is not None]
    )
    # Images and publications come after their generations: so this loses none of them, and an
    # owner's latest can be read by an index.
    since = "AND {}created_at >= %(begin)s" if scope.begin is not None else ""
    if group_by == GroupBy.NONE:
        grouped, by, order = "1 AS is_total, '' AS key", "()", "key"
    else:
        grouped, by = "GROUPING(key) AS is_total, key", "GROUPING SETS ((key), ())"
        order = _ORDERS[group_by]
    sql = f"""
        WITH chosen AS MATERIALIZED (
            SELECT id, {_KEYS[group_by]} AS key, status, cost_usd
            FROM batches_generation WHERE {where}
        ),
        published AS MATERIALIZED (
            SELECT DISTINCT image_id FROM batches_publication
            WHERE owner_id = %(owner_id)s AND status = 'published' AND image_id IS NOT NULL
                {since.format("")}
        ),
        work AS (
            SELECT {grouped}, count(*) AS generations,
                   count(*) FILTER (WHERE status = 'completed') AS completed,
                   count(*) FILTER (WHERE status = 'failed') AS failed,
                   count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
                   sum(cost_usd) AS cost_usd
            FROM chosen GROUP BY {by}
        ),
        made AS (
            SELECT {grouped}, count(*) AS images,
                   count(*) FILTER (WHERE review_status = 'approved') AS approved,
                   count(*) FILTER (WHERE review_status = 'rejected') AS rejected,
                   count(*) FILTER (
                       WHERE review_status = 'approved' AND published.image_id IS NOT NULL
                   ) AS published
            FROM chosen
            JOIN batches_image image ON image.generation_id = chosen.id
                AND image.owner_id = %(owner_id)s {since.format("image.")}
            LEFT JOIN published ON published.image_id = image.id
            GROUP BY {by}
        ),
        times AS (
            SELECT {grouped},
                   percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY total_s) AS run_s
            FROM chosen CROSS JOIN LATERAL (
                -- The offset has each looked up: attempts have no owner by whom to read them,
                -- and to read everybody's would be cheaper, as long as these are few.
                SELECT total_s FROM batches_attempt
                WHERE generation_id = chosen.id AND total_s IS NOT NULL OFFSET 0
            ) attempt
            GROUP BY {by}
        )
        SELECT work.is_total, work.key, generations, completed, failed, cancelled,
               COALESCE(cost_usd, 0), COALESCE(images, 0), COALESCE(approved, 0),
               COALESCE(rejected, 0), COALESCE(published, 0), run_s[1], run_s[2]
        FROM work
        LEFT JOIN made ON made.is_total = work.is_total
            AND made.key IS NOT DISTINCT FROM work.key
        LEFT JOIN times ON times.is_total = work.is_total
            AND times.key IS NOT DISTINCT FROM work.key
        ORDER BY work.is_total DESC, {order} LIMIT {GROUPS_MAX + 1}
    """
    params = {
        "owner_id": scope.owner_id,
        "begin": scope.begin,
        "end": scope.end,
        "batch_id": scope.batch_id,
        "model": scope.model,
        "style": scope.style,
    }
    return sql, params


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None
