"""The page of the models: what an operator may say otherwise, and models of their own."""

import json
from decimal import Decimal

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.urls import reverse

from batches import catalogue
from batches.models import CatalogueModel
from generation import catalogue as data_file
from tests.batches.admin.support import html_of, list_url, listed, page, page_url, queries_of, staff
from tests.factories import MODEL, make_token, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("fresh_catalogue")]

ADD = "admin:batches_cataloguemodel_add"
FIGURES = ("price_usd_per_image", "price_usd_per_second", "est_seconds")


def row_of(model_id=MODEL):
    return CatalogueModel.objects.get(pk=model_id)


def entry_text(**changes):
    return json.dumps({**data_file.load_entries()[MODEL], "display_name": "Own", **changes})


def save(client, row, **fields):
    """Submit a row's form with these fields; the others are empty, and the model switched on."""
    data = {"enabled": "on", **dict.fromkeys((*FIGURES, "notes"), ""), **fields}
    return client.post(page_url(row), {name: v for name, v in data.items() if v is not None})


def add(client, **fields):
    data = {"id": "own/model", "definition": entry_text(), "enabled": "on", **fields}
    return client.post(reverse(ADD), data)


def errors_of(response):
    """What the form found wrong; nothing was saved then."""
    assert response.status_code == 200
    assert not LogEntry.objects.exists()
    return response.context["adminform"].form.errors


def test_every_model_is_listed_and_has_a_page(operator):
    html = html_of(operator.get(list_url(CatalogueModel)))
    for row in CatalogueModel.objects.all():
        url = reverse("admin:batches_cataloguemodel_change", args=[quote(row.pk)])
        assert url in html
        assert row.pk in html_of(operator.get(url))
    assert listed(operator, CatalogueModel) == set(data_file.load_models())


def test_the_list_takes_as_many_queries_for_many_models_as_for_one(operator):
    many = queries_of(operator, list_url(CatalogueModel))
    CatalogueModel.objects.exclude(pk=MODEL).delete()
    assert len(queries_of(operator, list_url(CatalogueModel))) == len(many)


def test_models_are_found_by_part_of_their_id_and_by_provider(operator):
    found = listed(operator, CatalogueModel, q="SDXL")
    assert found == {one for one in data_file.load_models() if "sdxl" in one}
    change = {"provider": "comfyui"}
    CatalogueModel.objects.filter(pk=MODEL).update(**change)
    assert MODEL not in listed(operator, CatalogueModel, provider="replicate")
    assert listed(operator, CatalogueModel, enabled__exact="0") == set()


def test_what_the_file_says_stands_beside_what_the_operator_says(operator):
    defined = data_file.get_model(MODEL)
    html = html_of(operator.get(list_url(CatalogueModel)))
    assert f"${defined.price_usd_per_image} per image" in html
    assert "defined:" not in html
    form = page(operator, row_of())
    assert f"Empty: as defined, {defined.price_usd_per_image}." in form
    assert f"Empty: as defined, {defined.est_seconds}." in form
    answer = save(operator, row_of(), price_usd_per_image="0.5", est_seconds="99", notes="Mine.")
    assert answer.status_code == 302
    html = html_of(operator.get(list_url(CatalogueModel)))
    assert f"$0.5 per image (defined: ${defined.price_usd_per_image} per image)" in html
    assert "1 min 39 s (defined: " in html
    assert f"Empty: as defined, {defined.price_usd_per_image}." in page(operator, row_of())


def test_what_is_set_is_in_force_at_once_and_survives_a_load(operator, api_of):
    answer = save(operator, row_of(), price_usd_per_image="0.5", est_seconds="99", notes="Mine.")
    assert answer.status_code == 302
    assert LogEntry.objects.count() == 1
    catalogue.load()
    shown = api_of(MODEL)
    assert (shown["price_usd_per_image"], shown["est_seconds"]) == ("0.5", 99)
    assert shown["notes"] == "Mine."
    save(operator, row_of())
    assert api_of(MODEL)["price_usd_per_image"] == str(
        data_file.get_model(MODEL).price_usd_per_image
    )


@pytest.fixture
def api_of(client):
    """A model as the API shows it."""
    header = {"HTTP_AUTHORIZATION": f"Bearer {make_token(make_user())}"}
    return lambda model_id: client.get(f"/api/v1/models/{model_id}/", **header).json()


def test_a_model_can_be_switched_off_and_says_why(operator, api_of):
    assert save(operator, row_of(), enabled=None).status_code == 302
    assert not row_of().enabled
    reason = api_of(MODEL)["unavailable_reason"]
    assert "switched off" in reason
    assert reason in html_of(operator.get(list_url(CatalogueModel)))
    assert reason in page(operator, row_of())
    assert listed(operator, CatalogueModel, enabled__exact="0") == {MODEL}
    save(operator, row_of())
    assert api_of(MODEL)["available"] is True


def test_a_model_without_credentials_says_so(operator, settings):
    settings.REPLICATE_API_TOKEN = ""
    assert "No credentials for replicate" in html_of(operator.get(list_url(CatalogueModel)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("price_usd_per_image", "-0.01"),
        ("price_usd_per_image", "free"),
        ("price_usd_per_image", "NaN"),
        ("price_usd_per_image", "0.0000001"),
        ("price_usd_per_second", "-1"),
        ("price_usd_per_second", "1e9"),
        ("est_seconds", "0"),
        ("est_seconds", "inf"),
        ("est_seconds", "100000"),
    ],
)
def test_figures_that_cannot_be_are_refused(name, value, operator):
    assert errors_of(save(operator, row_of(), **{name: value})).keys() == {name}
    assert getattr(row_of(), name) is None


def test_the_entry_of_the_file_cannot_be_changed(operator):
    before = row_of()
    assert 'name="definition"' not in page(operator, before)
    answer = save(operator, before, definition="{}", id="other/id", provider="x", is_custom="on")
    assert answer.status_code == 302
    after = row_of()
    for name in ("definition", "provider", "is_custom", "loaded_at"):
        assert getattr(after, name) == getattr(before, name)
    assert not CatalogueModel.objects.filter(pk="other/id").exists()


def test_a_load_meanwhile_is_not_undone_by_saving_a_form(operator, monkeypatch):
    new = entry_text(display_name="Schnell II")
    original = CatalogueModel.save

    def save_after_load(self, **kwargs):
        CatalogueModel.objects.filter(pk=self.pk).update(definition=new)
        original(self, **kwargs)

    monkeypatch.setattr(CatalogueModel, "save", save_after_load)
    save(operator, row_of(), notes="Mine.")
    assert (row_of().definition, row_of().notes) == (new, "Mine.")


# --- Models of one's own --------------------------------------------------------------------------


def test_a_model_of_ones_own_can_be_added_and_used(operator, client, api_of):
    assert html_of(operator.get(reverse(ADD)))
    assert add(operator, price_usd_per_image="0.25").status_code == 302
    row = row_of("own/model")
    assert (row.is_custom, row.provider, row.enabled) == (True, "replicate", True)
    shown = api_of("own/model")
    assert (shown["available"], shown["display_name"]) == (True, "Own")
    assert shown["price_usd_per_image"] == "0.25"
    assert listed(operator, CatalogueModel, is_custom__exact="1") == {"own/model"}
    body = {"prompt": "a fox", "model_id": "own/model"}
    header = {"HTTP_AUTHORIZATION": f"Bearer {make_token(make_user())}"}
    answer = client.post("/api/v1/generations/", body, content_type="application/json", **header)
    assert (answer.status_code, answer.json()["model"]) == (202, "own/model")


def test_a_model_of_ones_own_can_be_defined_anew(operator, api_of):
    add(operator)
    row = row_of("own/model")
    assert save(operator, row, definition=entry_text(display_name="Newer")).status_code == 302
    assert api_of("own/model")["display_name"] == "Newer"
    assert catalogue.load() == ([], [], [])
    assert row_of("own/model").is_custom


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting property name"),
        ("[]", ""),
        (entry_text(parameters={"prompt": {"type": "soup"}}), "soup"),
        (entry_text(provider="nobody"), "nobody"),
        (entry_text(price_usd_per_image="cheap"), ""),
    ],
)
def test_an_entry_that_cannot_be_made_out_is_refused_with_the_reason(text, told, operator):
    errors = errors_of(add(operator, definition=text))
    assert errors.keys() == {"definition"}
    assert told in errors["definition"][0]
    assert not CatalogueModel.objects.filter(is_custom=True).exists()


def test_a_changed_entry_is_checked_too(operator):
    add(operator)
    LogEntry.objects.all().delete()
    before = row_of("own/model")
    assert "definition" in errors_of(save(operator, before, definition="{"))
    assert row_of("own/model").definition == before.definition


@pytest.mark.parametrize(
    "model_id",
    ["", "model", "own/", "/model", "own/model/more", "own/mo del", "../x", "é/ü", MODEL],
)
def test_an_id_that_cannot_be_is_refused(model_id, operator):
    before = row_of()
    assert errors_of(add(operator, id=model_id)).keys() == {"id"}
    assert row_of().definition == before.definition


def test_a_malformed_entry_shows_what_is_wrong_with_it(operator):
    CatalogueModel.objects.filter(pk=MODEL).update(definition='{"provider": 3}')
    for html in (html_of(operator.get(list_url(CatalogueModel))), page(operator, row_of())):
        assert "Its definition is malformed" in html
    # It can still be switched off, and has no figures to compare with.
    assert save(operator, row_of(), enabled=None, price_usd_per_image="1").status_code == 302
    assert row_of().price_usd_per_image == Decimal(1)


# --- Who may --------------------------------------------------------------------------------------


def test_no_model_can_be_deleted(operator):
    add(operator)
    row = row_of("own/model")
    url = reverse("admin:batches_cataloguemodel_delete", args=[row.pk])
    assert operator.post(url, {"post": "yes"}).status_code == 403
    assert row_of("own/model") == row


def test_who_may_look_may_not_change_or_add(operator, client):
    add(operator)
    viewer = staff(client, "view_cataloguemodel")
    html_of(viewer.get(list_url(CatalogueModel)))
    for row in (row_of(), row_of("own/model")):
        assert 'name="_save"' not in page(viewer, row)
        assert "Own" in page(viewer, row_of("own/model"))
        assert save(viewer, row, notes="Mine.").status_code == 403
    assert viewer.get(reverse(ADD)).status_code == 403
    assert add(viewer, id="own/other").status_code == 403
    assert not CatalogueModel.objects.filter(notes="Mine.").exists()


def test_who_may_change_may_not_add(operator, client):
    changer = staff(client, "view_cataloguemodel", "change_cataloguemodel")
    assert save(changer, row_of(), notes="Mine.").status_code == 302
    assert add(changer).status_code == 403


def test_the_list_is_for_staff_only(client):
    client.force_login(make_user())
    assert client.get(list_url(CatalogueModel)).status_code == 302
