"""Counters compared with the rows they count.

Whoever changes the rows changes the counter in the same transaction, so a difference is a bug:
it is put right, and reported as an alert. Each call compares some, from the id `after` on, and
returns where to go on, `None` at the end.
"""

import logging
import uuid
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import Count, Q, Sum
from django.db.models.functions import Coalesce

from batches.models import (
    GENERATION_TERMINAL,
    Alert,
    AlertCode,
    Batch,
    Generation,
    GenerationStatus,
    Lane,
    Lease,
)

logger = logging.getLogger(__name__)

PAGE = 20
# Counting the rows of a longer line, or a larger batch, would take too long.
ROWS_MAX = 10_000


def reconcile_lanes(after: int | None) -> int | None:
    lanes = Lane.objects.filter(owner__gt=after or 0, queued__lte=ROWS_MAX).order_by("owner")
    owner_ids = list(lanes.values_list("owner", flat=True)[:PAGE])
    for owner_id in owner_ids:
        with transaction.atomic():
            # Whoever moves rows takes the lane before the end of the transaction: while it is
            # locked, what is committed is in both or in neither.
            lane = Lane.objects.select_for_update().get(pk=owner_id)
            found = {
                "running": Lease.objects.filter(owner=owner_id, holds_slot=True).count(),
                "queued": Generation.objects.filter(
                    owner=owner_id, status=GenerationStatus.QUEUED, not_before=None
                ).count(),
            }
            _put_right(lane, f"lane {owner_id}", found)
    return owner_ids[-1] if len(owner_ids) == PAGE else None


def reconcile_batches(after: uuid.UUID | None) -> uuid.UUID | None:
    batches = Batch.objects.filter(finished_at=None, total_count__lte=ROWS_MAX)
    if after is not None:
        batches = batches.filter(pk__gt=after)
    ids = list(batches.order_by("pk").values_list("pk", flat=True)[:PAGE])
    for batch_id in ids:
        with transaction.atomic():
            batch = Batch.objects.select_for_update().filter(pk=batch_id).first()
            if batch is None:
                continue
            counts: dict[str, Any] = {
                f"{status}_count": Count("pk", filter=Q(status=status))
                for status in ("completed", "failed", "cancelled")
            }
            ended = Q(status__in=GENERATION_TERMINAL)
            counts["cost_usd"] = Coalesce(Sum("cost_usd", filter=ended), Decimal(0))
            _put_right(batch, f"batch {batch_id}", batch.generations.aggregate(**counts))
    return ids[-1] if len(ids) == PAGE else None


def _put_right(row: Lane | Batch, subject: str, found: dict[str, Any]) -> None:
    told = {name: getattr(row, name) for name in found}
    if told == found:
        return
    message = f"Counted {told}, by the rows {found}."
    logger.error("%s: %s", subject, message)
    Alert.objects.raise_(AlertCode.COUNTER_DRIFT, subject, message)
    for name, value in found.items():
        setattr(row, name, value)
    row.save(update_fields=list(found))
