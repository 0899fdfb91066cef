"""The models on offer: what the data file says of them, and what the operator says otherwise.

The rows are read at most once a second in each process, with one query, and an entry is parsed
again only when it has changed. A row with an entry that cannot be parsed is reported, and its
model is there but not available; it does not stand in the way of the others.
"""

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models.functions import Now

from batches.models import CatalogueModel
from generation.catalogue import Model, Parameter, load_entries, parse_entry
from generation.catalogue import load_models as file_models
from generation.http import parse_json

logger = logging.getLogger(__name__)

KEPT_S = 1.0  # for so long, changes made by other processes may go unseen
DISABLED = "disabled"  # the status of a model that the operator has switched off
# What the operator may say otherwise, by the same names in the row and in the model.
OVERRIDES = ("price_usd_per_image", "price_usd_per_second", "est_seconds")


class Offer(NamedTuple):
    """One model as it is offered here: its effective figures and status, the operator's notes."""

    model: Model
    is_enabled: bool
    notes: str


class Loaded(NamedTuple):
    """What a load has changed: ids of models that are new, that differ, that are in no file."""

    added: list[str]
    changed: list[str]
    retired: list[str]


# --- Reading ------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    offers: Mapping[str, Offer]
    until_s: float


_lock = threading.Lock()
_kept: _Kept | None = None
_state = object()  # another one after each change: what was read before is not kept
_parsed: dict[str, tuple[str, Model | str]] = {}  # by id: an entry, and what came of it


def load_models() -> Mapping[str, Model]:
    """Every model by id as it is offered here: those of the file in its order, then the others."""
    return {model_id: offer.model for model_id, offer in offers().items()}


def get_model(model_id: str) -> Model | None:
    offer = offers().get(model_id)
    return offer and offer.model


def offers() -> Mapping[str, Offer]:
    """As `load_models`, with what only the rows tell."""
    kept = _kept
    if kept and time.monotonic() < kept.until_s:
        return kept.offers
    # One thread reads; the others go on with what there is.
    if not _lock.acquire(blocking=kept is None):
        assert kept
        return kept.offers
    try:
        if _kept and time.monotonic() < _kept.until_s:
            return _kept.offers
        return _read()
    finally:
        _lock.release()


def _read() -> Mapping[str, Offer]:
    global _kept
    before = _state
    places = {model_id: place for place, model_id in enumerate(file_models())}
    rows = sorted(
        CatalogueModel.objects.all(), key=lambda row: (places.get(row.pk, len(places)), row.pk)
    )
    found = MappingProxyType({row.pk: offer(row) for row in rows})
    _kept = _Kept(found, time.monotonic() + KEPT_S)
    if _state is not before:  # looked at last: so either this is seen here, or `_kept` is emptied
        _kept = None
    return found


def forget(**signal: Any) -> None:
    """Have the rows read again."""
    global _kept, _state
    _state = object()
    _kept = None


def changed(**signal: Any) -> None:
    """Make a change known in this process, now and when it is committed."""
    forget()
    transaction.on_commit(forget)


def offer(row: CatalogueModel) -> Offer:
    """What a row says."""
    defined = definition(row)
    model = _malformed(row) if isinstance(defined, str) else defined
    changes: dict[str, Any] = {
        name: plain(value) for name in OVERRIDES if (value := getattr(row, name)) is not None
    }
    if "price_usd_per_image" in changes:
        # Prices by time or by size would go before it.
        changes.setdefault("price_usd_per_second", None)
        changes["price_usd_by"] = {}
    if not row.enabled:
        changes |= {"status": DISABLED, "status_note": "It is switched off on this installation."}
    return Offer(dataclasses.replace(model, **changes), row.enabled, row.notes)


def plain(figure: Decimal | float) -> Decimal | float:
    """A figure without the zeros that its column adds."""
    return Decimal(f"{figure.normalize():f}") if isinstance(figure, Decimal) else figure


def definition(row: CatalogueModel) -> Model | str:
    """The model as a row defines it, or what is wrong with its entry."""
    known = _parsed.get(row.pk)
    if known is None or known[0] != row.definition:
        known = (row.definition, parse(row.pk, row.definition))
        if isinstance(known[1], str):
            logger.error("the entry of the model %s is malformed: %s", row.pk, known[1])
        _parsed[row.pk] = known
    return known[1]


def parse(model_id: str, text: str) -> Model | str:
    """The model of an entry in JSON, or what is wrong with the entry."""
    try:
        # Through this as well: what it drops can neither be stored nor answered.
        entry = json.loads(text)
        if parse_json(text.encode("utf-8", "surrogatepass")) != entry:
            return "The entry holds characters or numbers that JSON has no place for."
        return parse_entry(model_id, entry)
    except (ValueError, RecursionError) as error:
        return str(error)


def _malformed(row: CatalogueModel) -> Model:
    """What stands for a model whose entry cannot be made out.

    An entry may be of a newer version than this process. What is already in line goes on as its
    own data file says.
    """
    model = file_models().get(row.pk) or Model(
        id=row.pk,
        provider=row.provider,
        display_name=row.pk,
        family="",
        version=None,
        status="",
        status_note="",
        price_usd_per_image=Decimal(0),
        price_note="",
        est_seconds=0,
        output_formats=("webp",),
        parameters={"prompt": Parameter("prompt", "string", role="prompt", required=True)},
    )
    note = "Its entry in the catalogue is malformed."
    return dataclasses.replace(model, status="unavailable", status_note=note)


# --- Loading ------------------------------------------------------------------------------------


def load(**signal: Any) -> Loaded:
    """Bring the rows up to the data file; what the operator has set, and their own, stay.

    A model that is in the file no more is kept for the generations that name it, as retired.
    """
    entries = {model_id: entry_text(entry) for model_id, entry in load_entries().items()}
    loaded = Loaded([], [], [])
    with _alone():
        rows = {row.pk: row for row in CatalogueModel.objects.all()}
        for model_id, text in entries.items():
            row = rows.get(model_id)
            if row is None:
                loaded.added.append(model_id)
                row = rows[model_id] = CatalogueModel(pk=model_id)
            elif not row.is_custom and row.definition != text:
                loaded.changed.append(model_id)
            else:
                continue
            row.definition = text
        for model_id in rows.keys() - entries.keys():
            if not rows[model_id].is_custom and _retire(rows[model_id]):
                loaded.retired.append(model_id)
        _write([rows[model_id] for ids in loaded for model_id in ids])
    return loaded


def entry_text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, indent=2, ensure_ascii=False)


def _retire(row: CatalogueModel) -> bool:
    """`False`: it was before, or nothing can be made of it."""
    try:
        entry = json.loads(row.definition)
    except ValueError:
        return False
    gone = {"status": "retired", "status_note": "It is in the catalogue no more."}
    if not isinstance(entry, dict) or entry.items() >= gone.items():
        return False
    row.definition = entry_text({**entry, **gone})
    return True


@contextmanager
def _alone() -> Iterator[None]:
    """Of several loads one is at work; nobody who only reads has to wait."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE batches_cataloguemodel IN SHARE ROW EXCLUSIVE MODE")
        yield


def _write(rows: list[CatalogueModel]) -> None:
    if not rows:
        return
    for row in rows:
        row.provider = json.loads(row.definition)["provider"]
        row.loaded_at = Now()
    CatalogueModel.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["provider", "definition", "loaded_at"],
    )
    changed()
