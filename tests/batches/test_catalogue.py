"""The models in the database: what is read of them, and what a load leaves as it was."""

import json
import logging
import math
from decimal import Decimal

import pytest
from django.core.management import call_command
from django.core.management.sql import emit_post_migrate_signal
from django.db import connection
from django.db.migrations.state import StateApps
from django.test.utils import CaptureQueriesContext

from batches import apps, catalogue
from batches.models import CatalogueModel
from generation import catalogue as data_file
from tests.factories import MODEL
from tests.support import at_once

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("fresh_catalogue")]

SDXL = "stability-ai/sdxl"


@pytest.fixture
def kept(monkeypatch):
    """How long in seconds what was read is kept."""

    def keep(seconds):
        monkeypatch.setattr(catalogue, "KEPT_S", seconds)
        catalogue.forget()

    return keep


def row_of(model_id=MODEL):
    return CatalogueModel.objects.get(pk=model_id)


def entry_of(model_id=MODEL, **changes):
    return {**json.loads(json.dumps(data_file.load_entries()[model_id])), **changes}


def change(model_id=MODEL, **fields):
    """As another process would."""
    assert CatalogueModel.objects.filter(pk=model_id).update(**fields) == 1


def make_custom(model_id="own/model", **changes):
    entry = entry_of(display_name="Own", **changes)
    return CatalogueModel.objects.create(
        id=model_id, provider="replicate", definition=json.dumps(entry), is_custom=True
    )


@pytest.fixture
def in_file(monkeypatch):
    """Have the data file hold these entries."""

    def hold(entries):
        models = data_file.parse_models({"models": entries})
        monkeypatch.setattr(catalogue, "load_entries", lambda: entries)
        monkeypatch.setattr(catalogue, "file_models", lambda: models)

    return hold


# --- Reading --------------------------------------------------------------------------------------


def test_the_database_holds_every_model_of_the_file_in_its_order():
    models = catalogue.load_models()
    assert list(models) == list(data_file.load_models())
    assert models == data_file.load_models()
    for model_id, model in models.items():
        assert catalogue.get_model(model_id) is model


def test_an_entry_keeps_its_order_in_the_database():
    for model_id, entry in data_file.load_entries().items():
        assert json.dumps(json.loads(row_of(model_id).definition)) == json.dumps(entry)


def test_a_model_that_nobody_knows_is_none():
    assert catalogue.get_model("who/knows") is None


def test_readings_within_a_second_take_one_query(kept, django_assert_num_queries):
    kept(math.inf)
    with django_assert_num_queries(1):
        for _ in range(5):
            catalogue.load_models()
            catalogue.get_model(MODEL)
    kept(0)
    with django_assert_num_queries(3):
        for _ in range(3):
            catalogue.load_models()


def test_an_entry_is_parsed_again_only_when_it_has_changed(kept, monkeypatch):
    kept(0)
    catalogue.load_models()
    parsed = []
    original = catalogue.parse_entry

    def parse_entry(model_id, entry):
        parsed.append(model_id)
        return original(model_id, entry)

    monkeypatch.setattr(catalogue, "parse_entry", parse_entry)
    catalogue.load_models()
    change(SDXL, definition=json.dumps(entry_of(SDXL, display_name="Other")))
    change(MODEL, notes="Not the entry.")
    assert catalogue.get_model(SDXL).display_name == "Other"
    assert parsed == [SDXL]


def test_a_change_by_this_process_is_seen_at_once(kept):
    kept(math.inf)
    row = row_of()
    assert catalogue.get_model(MODEL).est_seconds != 77
    row.est_seconds = 77
    row.save()
    assert catalogue.get_model(MODEL).est_seconds == 77
    custom = make_custom()
    assert catalogue.get_model("own/model").display_name == "Own"
    custom.delete()
    assert catalogue.get_model("own/model") is None


def test_a_change_is_looked_for_again_when_it_is_committed(
    kept, django_capture_on_commit_callbacks
):
    kept(math.inf)
    with django_capture_on_commit_callbacks() as callbacks:
        row_of().save()
    catalogue.load_models()
    change(est_seconds=77)
    assert catalogue.get_model(MODEL).est_seconds != 77
    for callback in callbacks:
        callback()
    assert catalogue.get_model(MODEL).est_seconds == 77


def test_a_change_by_another_process_is_seen_when_the_time_is_over(kept, monkeypatch):
    kept(1.0)
    now_s = 1_000.0
    monkeypatch.setattr(catalogue.time, "monotonic", lambda: now_s)
    before = catalogue.get_model(MODEL).est_seconds
    change(est_seconds=77)
    now_s += 0.9
    assert catalogue.get_model(MODEL).est_seconds == before
    now_s += 0.2
    assert catalogue.get_model(MODEL).est_seconds == 77


def test_what_was_read_before_a_change_is_not_kept_after_it(kept, monkeypatch):
    kept(math.inf)
    original = catalogue.offer

    def offer(row):
        # Another thread has saved between the query and now.
        monkeypatch.undo()
        monkeypatch.setattr(catalogue, "KEPT_S", math.inf)
        change(est_seconds=77)
        catalogue.forget()
        return original(row)

    monkeypatch.setattr(catalogue, "offer", offer)
    catalogue.load_models()
    assert catalogue.get_model(MODEL).est_seconds == 77


def test_while_one_thread_reads_the_others_go_on_with_what_there_is(kept):
    kept(0)
    before = catalogue.offers()
    change(est_seconds=77)
    with catalogue._lock:
        assert catalogue.offers() is before
    assert catalogue.get_model(MODEL).est_seconds == 77


def test_figures_that_the_operator_set_go_before_the_defined_ones():
    change(price_usd_per_image=Decimal("0.0420"), est_seconds=12.5, notes="Cheaper here.")
    offer = catalogue.offers()[MODEL]
    assert str(offer.model.price_usd_per_image) == "0.042"
    assert offer.model.est_seconds == 12.5
    assert offer.notes == "Cheaper here."
    assert offer.model.parameters == data_file.get_model(MODEL).parameters
    assert catalogue.get_model(SDXL) == data_file.get_model(SDXL)


def test_no_price_at_all_is_a_price():
    change(price_usd_per_image=0)
    assert catalogue.get_model(MODEL).price_usd_per_image == 0


def test_a_price_per_image_takes_the_place_of_one_by_time():
    timed = make_custom(price_usd_per_second="0.0005")
    assert catalogue.get_model(timed.pk).price_usd_per_second == Decimal("0.0005")
    change(timed.pk, price_usd_per_image=Decimal("0.01"))
    catalogue.forget()
    model = catalogue.get_model(timed.pk)
    assert (model.price_usd_per_second, model.price_usd_per_image) == (None, Decimal("0.01"))
    change(timed.pk, price_usd_per_second=Decimal("0.002"))
    catalogue.forget()
    assert catalogue.get_model(timed.pk).price_usd_per_second == Decimal("0.002")


def test_a_model_that_is_switched_off_is_not_active_and_says_so():
    change(enabled=False)
    offer = catalogue.offers()[MODEL]
    assert (offer.is_enabled, offer.model.is_active) == (False, False)
    assert offer.model.status == "disabled"
    assert "switched off" in offer.model.status_note


MALFORMED = {
    "not JSON": "{",
    "not an object": "[]",
    "nothing in it": "{}",
    "a price that is none": json.dumps(entry_of(price_usd_per_image="cheap")),
    "a parameter that is none": json.dumps(entry_of(parameters={"prompt": 3})),
    "a type that is none": json.dumps(entry_of(parameters={"prompt": {"type": "soup"}})),
    "an unknown key": json.dumps(entry_of(colour="blue")),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("is_custom", [False, True])
def test_a_malformed_entry_is_reported_and_breaks_no_other_model(text, is_custom, caplog, kept):
    kept(0)
    model_id = make_custom().pk if is_custom else MODEL
    change(model_id, definition=text)
    with caplog.at_level(logging.ERROR, logger="batches.catalogue"):
        models = catalogue.load_models()
        catalogue.load_models()
    (record,) = caplog.records
    assert model_id in record.getMessage()
    assert (models[model_id].status, models[model_id].is_active) == ("unavailable", False)
    assert models[model_id].describe()["status_note"] == "Its entry in the catalogue is malformed."
    others = {one: model for one, model in models.items() if one != model_id}
    expected = {one: m for one, m in data_file.load_models().items() if one != model_id}
    assert others == expected


def test_what_is_in_line_goes_on_by_the_file_when_an_entry_is_malformed():
    change(SDXL, definition="{}")
    assert catalogue.get_model(SDXL).version == data_file.get_model(SDXL).version
    assert catalogue.get_model(SDXL).parameters == data_file.get_model(SDXL).parameters


# --- Loading --------------------------------------------------------------------------------------


def test_a_second_load_changes_nothing():
    before = list(CatalogueModel.objects.values())
    assert catalogue.load() == ([], [], [])
    assert list(CatalogueModel.objects.values()) == before


def test_a_load_refreshes_entries_and_leaves_what_the_operator_set(in_file):
    change(enabled=False, price_usd_per_image=1, price_usd_per_second=2, est_seconds=3, notes="N")
    before = row_of()
    entries = {**data_file.load_entries(), MODEL: entry_of(display_name="Schnell II")}
    in_file(entries)
    assert catalogue.load() == ([], [MODEL], [])
    after = row_of()
    assert json.loads(after.definition) == entries[MODEL]
    assert after.loaded_at > before.loaded_at
    for name in ("enabled", *catalogue.OVERRIDES, "notes", "is_custom", "updated_at"):
        assert getattr(after, name) == getattr(before, name)
    assert catalogue.get_model(MODEL).display_name == "Schnell II"


def test_a_load_leaves_the_operators_own_models_alone(in_file):
    own = make_custom()
    in_file({**data_file.load_entries(), own.pk: entry_of(display_name="From the file")})
    assert catalogue.load() == ([], [], [])
    assert catalogue.get_model(own.pk).display_name == "Own"


def test_a_model_that_is_new_in_the_file_is_there_after_a_load(in_file):
    in_file({"new/model": entry_of(display_name="New"), **data_file.load_entries()})
    assert catalogue.load() == (["new/model"], [], [])
    assert next(iter(catalogue.load_models())) == "new/model"
    row = row_of("new/model")
    assert (row.provider, row.is_custom, row.enabled) == ("replicate", False, True)


def test_a_model_that_is_gone_from_the_file_is_kept_as_retired_until_it_is_back(in_file):
    change(notes="Mine.")
    entries = dict(data_file.load_entries())
    del entries[MODEL]
    in_file(entries)
    assert catalogue.load() == ([], [], [MODEL])
    assert catalogue.load() == ([], [], [])
    model = catalogue.get_model(MODEL)
    assert (model.status, model.is_active) == ("retired", False)
    assert model.parameters == data_file.get_model(MODEL).parameters
    in_file(data_file.load_entries())
    assert catalogue.load() == ([], [MODEL], [])
    assert catalogue.get_model(MODEL) == data_file.get_model(MODEL)
    assert row_of().notes == "Mine."


def test_a_load_puts_a_malformed_entry_of_the_file_right():
    change(definition="{")
    assert catalogue.load() == ([], [MODEL], [])
    assert catalogue.get_model(MODEL) == data_file.get_model(MODEL)


def test_a_malformed_entry_that_is_in_no_file_does_not_stop_a_load():
    for number, text in enumerate(("{", "[]")):
        CatalogueModel.objects.create(id=f"gone/{number}", provider="replicate", definition=text)
    assert catalogue.load() == ([], [], [])


def test_a_load_takes_as_many_queries_for_many_models_as_for_one(in_file):
    entries = data_file.load_entries()
    counts = []
    for count in (1, len(entries)):
        CatalogueModel.objects.all().delete()
        in_file(dict(list(entries.items())[:count]))
        with CaptureQueriesContext(connection) as queries:
            catalogue.load()
        assert CatalogueModel.objects.count() == count
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_the_catalogue_is_loaded_after_a_migration():
    CatalogueModel.objects.all().delete()
    emit_post_migrate_signal(verbosity=0, interactive=False, db="default")
    assert catalogue.load_models() == data_file.load_models()


def test_nothing_is_loaded_after_going_back_to_before_there_was_a_table():
    CatalogueModel.objects.all().delete()
    apps.load_catalogue(apps=StateApps([], {}))
    assert not CatalogueModel.objects.exists()


def test_the_command_tells_what_it_has_changed(capsys):
    CatalogueModel.objects.filter(pk=SDXL).delete()
    change(definition="{}")
    CatalogueModel.objects.create(
        id="gone/model", provider="replicate", definition=json.dumps(entry_of())
    )
    call_command("load_catalogue")
    *lines, total = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["added", SDXL],
        ["changed", MODEL],
        ["retired", "gone/model"],
    ]
    assert total == f"{len(data_file.load_entries()) + 1} models"


@pytest.mark.django_db(transaction=True)
def test_loads_at_the_same_time_do_not_disturb_one_another():
    CatalogueModel.objects.all().delete()
    loaded = at_once(*[catalogue.load] * 3)
    assert sorted(len(one.added) for one in loaded) == [0, 0, len(data_file.load_entries())]
    assert catalogue.load_models() == data_file.load_models()


@pytest.mark.parametrize("name", ["\\ud800", "a\\u0000b"])
def test_an_entry_with_text_that_cannot_be_stored_is_refused(name):
    entry = dict(data_file.load_entries()[MODEL])
    text = json.dumps({**entry, "display_name": "X"}).replace('"X"', f'"{name}"')
    assert "characters" in catalogue.parse("own/x", text)


def test_a_price_of_the_operators_goes_before_prices_by_size():
    row = CatalogueModel.objects.get(pk="black-forest-labs/flux-2-pro")
    assert catalogue.offer(row).model.price_usd_by
    row.price_usd_per_image = Decimal("0.5")
    model = catalogue.offer(row).model
    assert model.price_per_image({"resolution": "4 MP"}) == Decimal("0.5")
