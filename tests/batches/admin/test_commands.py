"""What operators may have done to batches and generations, and who may."""

import uuid

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from batches import lifecycle
from batches.admin import commands
from batches.admin.batches import BatchAdmin
from batches.admin.commands import CommandAdmin
from batches.models import Alert, AlertCode, Batch, Generation, Lane
from batches.scheduling import admit
from tests.batches.admin.support import (
    MODELS,
    UNKNOWN,
    broken,
    command,
    confirm,
    fail,
    failed_batch,
    failed_generation,
    html_of,
    label,
    letters_url,
    list_url,
    make_rows,
    offered,
    page,
    page_url,
    press,
    said,
    staff,
    status_of,
    statuses,
)
from tests.factories import make_batch, make_generation, make_image, make_publication, make_user

pytestmark = pytest.mark.django_db


def test_batches_are_paused_and_those_that_cannot_be_are_named_with_their_status(operator):
    ended, waiting, running = failed_batch(), make_batch(), make_batch(size=2, name="Ships")
    Lane.objects.filter(owner=waiting.owner).update(cap=0)
    admit()
    messages = command(operator, list_url(Batch), "pause", [waiting, running, ended])
    assert messages == [
        "2 batches paused. What runs is finished, nothing more is started.",
        f"Not paused: {label(ended)} (partial).",
    ]
    assert (status_of(waiting), status_of(running)) == ("paused", "paused")
    assert set(statuses(waiting)) == {"pending"}
    assert set(statuses(running)) == {"processing"}
    assert broken() == []


def test_paused_batches_are_resumed(operator):
    batch, other = make_batch(name="Ships"), make_batch()
    assert lifecycle.pause_batch(batch=batch)
    messages = command(operator, list_url(Batch), "resume", [batch, other])
    assert messages == ["1 batch resumed.", f"Not resumed: {label(other)} (pending)."]
    assert set(statuses(batch)) == {"queued"}
    assert broken() == []


def test_cancelling_batches_asks_first(operator):
    batch = make_batch(size=3)
    response = operator.post(
        list_url(Batch), {"action": "cancel", "_selected_action": [batch.pk], "index": 0}
    )
    html = html_of(response)
    assert "This cannot be undone." in html
    assert "<li>Generations: 3</li>" in html
    assert page_url(batch) in html
    assert set(statuses(batch)) == {"queued"}
    (message,) = confirm(operator, list_url(Batch), "cancel", [batch])
    assert message.startswith("1 batch cancelled.")
    assert status_of(batch) == "cancelled"
    assert broken() == []


def test_a_batch_that_is_being_cancelled_is_marked_and_cannot_be_cancelled_again(operator):
    batch = make_batch(size=1, name="<Ships>")
    admit()
    confirm(operator, list_url(Batch), "cancel", [batch])
    assert 'badge-cancelling">Cancelling' in html_of(operator.get(list_url(Batch)))
    assert 'badge-cancelling">Cancelling' in page(operator, batch.generations.get())
    messages = confirm(operator, list_url(Batch), "cancel", [batch])
    assert messages == [f"Not cancelled: <Ships> ({label(batch)}) (being cancelled)."]
    html = html_of(press(operator, batch, "pause"))
    assert "Not paused: &lt;Ships&gt;" in html


def test_what_failed_in_batches_is_retried(operator):
    batch, fine = failed_batch(size=3, failed=2), failed_batch(failed=0)
    messages = command(operator, list_url(Batch), "retry", [batch, fine])
    assert messages == [
        "1 batch retried. Whatever had failed is in line again.",
        f"Not retried: {label(fine)} (completed, nothing has failed).",
    ]
    assert statuses(batch) == ["queued", "queued", "completed"]
    assert status_of(batch) == "processing"
    assert broken() == []


def test_deleting_batches_asks_first_and_is_noted(operator):
    batch, other = failed_batch(), make_batch()
    response = operator.post(
        list_url(Batch), {"action": "delete", "_selected_action": [batch.pk], "index": 0}
    )
    assert "This cannot be undone." in html_of(response)
    assert Batch.objects.count() == 2
    assert confirm(operator, list_url(Batch), "delete", [batch]) == ["1 batch deleted."]
    assert set(Batch.objects.all()) == {other}
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (DELETION, str(batch.pk))
    assert broken() == []


def test_what_is_being_published_is_not_deleted_and_told(operator):
    batch, other, single = make_batch(size=1), make_batch(), make_generation()
    for generation in (batch.generations.get(), single):
        make_publication(make_image(generation))
    why = "one of its images is being published"
    messages = confirm(operator, list_url(Batch), "delete", [batch, other])
    assert messages == ["1 batch deleted.", f"Not deleted: {label(batch)} ({why})."]
    messages = confirm(operator, list_url(Generation), "delete", [single])
    assert messages == [f"Not deleted: {label(single)} ({why})."]


def test_a_deleted_batch_that_still_runs_stays_visible_and_takes_no_more_commands(operator):
    batch = make_batch(size=2)
    admit()
    confirm(operator, list_url(Batch), "delete", [batch])
    for url in (list_url(Batch), page_url(batch), list_url(Generation)):
        assert 'badge-deleted">Deleted' in html_of(operator.get(url))
    assert offered(operator, batch) == []
    for name in ("pause", "retry", "cancel", "delete"):
        (message,) = confirm(operator, list_url(Batch), name, [batch])
        assert message.endswith(f"{label(batch)} (deleted).")


@pytest.mark.parametrize("name", ["pause", "resume", "cancel", "retry", "delete"])
def test_every_command_works_from_the_batchs_own_page(operator, name):
    batch = failed_batch() if name == "retry" else make_batch()
    if name == "resume":
        lifecycle.pause_batch(batch=batch)
    assert name in offered(operator, batch)
    response = press(operator, batch, name)
    if name in ("cancel", "delete"):
        assert "Are you sure?" in html_of(response)
        assert set(statuses(batch)) == {"queued"}
        response = press(operator, batch, name, post="yes")
    (message,) = said(response)
    assert message.startswith("1 batch ")
    assert LogEntry.objects.get().object_id == str(batch.pk)
    # Back to where the button was, if that is still there.
    there = page_url(batch) if name != "delete" else list_url(Batch)
    assert response.redirect_chain[-1][0] == there


def test_a_page_offers_what_may_be_done_as_things_stand(operator):
    waiting, paused = make_batch(), make_batch()
    lifecycle.pause_batch(batch=paused)
    ended, fine = failed_batch(), failed_batch(failed=0)
    assert offered(operator, waiting) == ["pause", "cancel", "delete"]
    assert offered(operator, paused) == ["resume", "cancel", "delete"]
    assert offered(operator, ended) == ["retry", "delete"]
    assert offered(operator, fine) == ["delete"]
    assert offered(operator, ended.generations.get(index=0)) == ["retry"]
    assert offered(operator, ended.generations.get(index=1)) == []
    assert offered(operator, make_generation()) == ["pause", "cancel", "delete"]


def test_an_address_of_a_button_without_a_command_leads_to_the_page(operator):
    batch = make_batch()
    url = reverse("admin:batches_batch_act", args=[batch.pk])
    assert operator.get(url).url == page_url(batch)
    assert operator.post(url, {"action": "delete_selected"}).url == page_url(batch)
    missing = reverse("admin:batches_batch_act", args=["garbage"])
    assert operator.post(missing, {"action": "pause"}).url == list_url(Batch)
    assert LogEntry.objects.count() == 0


def test_no_more_than_the_limit_is_taken_at_a_time(operator, monkeypatch):
    monkeypatch.setattr(BatchAdmin, "selected_max", 2)
    batches = [make_batch(size=1) for _ in range(3)]
    refusal = ["At most 2 can be taken at a time. Nothing was done."]
    assert command(operator, list_url(Batch), "pause", batches) == refusal
    everything = {"select_across": 1}
    assert command(operator, list_url(Batch), "pause", batches[:1], **everything) == refusal
    assert set(Batch.objects.values_list("status", flat=True)) == {"pending"}
    assert len(command(operator, list_url(Batch), "pause", batches[:2])) == 1
    assert CommandAdmin.selected_max == 100


def test_a_selection_of_everything_is_that_of_the_filter(operator):
    low, high = make_batch(priority=1), make_batch(priority=8)
    url = f"{list_url(Batch)}?priority=8"
    command(operator, url, "pause", [high], select_across=1)
    assert (status_of(low), status_of(high)) == ("pending", "paused")


def test_a_selection_that_names_no_row_does_nothing(operator):
    batch = make_batch()
    data = {"action": "pause", "_selected_action": ["garbage", batch.pk], "index": 0}
    response = operator.post(list_url(Batch), data, follow=True)
    assert said(response) == ["There is no 'garbage'."]
    data = {"action": "pause", "_selected_action": [uuid.UUID(int=0)], "index": 0}
    assert said(operator.post(list_url(Batch), data, follow=True)) == []
    assert status_of(batch) == "pending"


def test_a_batch_that_is_gone_meanwhile_is_told(operator, monkeypatch):
    batch = make_batch()

    def delete_first(*, batch):
        Batch.objects.filter(pk=batch.pk).delete()
        return False

    monkeypatch.setattr(lifecycle, "pause_batch", delete_first)
    messages = command(operator, list_url(Batch), "pause", [batch])
    assert messages == [f"Not paused: {label(batch)} (gone)."]


def test_a_long_selection_names_no_more_rows_than_fit(operator, monkeypatch):
    monkeypatch.setattr(commands, "NAMED_MAX", 2)
    batches = [make_batch(size=1) for _ in range(5)]
    (message,) = command(operator, list_url(Batch), "resume", batches)
    assert message.count("(pending)") == 2
    assert message.endswith(" and 3 more.")
    data = {"action": "cancel", "_selected_action": [batch.pk for batch in batches], "index": 0}
    html = html_of(operator.post(list_url(Batch), data))
    assert "<li>and 3 more</li>" in html
    assert html.count('name="_selected_action"') == 5


def test_what_is_done_is_in_the_rows_history(operator):
    batch = make_batch()
    command(operator, list_url(Batch), "pause", [batch])
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.change_message) == (CHANGE, "Paused.")
    history = operator.get(reverse("admin:batches_batch_history", args=[batch.pk]))
    assert "Paused." in html_of(history)


def test_generations_are_paused_and_resumed(operator):
    waiting, running = make_generation(), make_generation()
    Lane.objects.filter(owner=waiting.owner).update(cap=0)
    admit()
    messages = command(operator, list_url(Generation), "pause", [waiting, running])
    assert messages == ["1 generation paused.", f"Not paused: {label(running)} (processing)."]
    assert status_of(waiting) == "pending"
    messages = command(operator, list_url(Generation), "resume", [waiting, running])
    assert messages == ["1 generation resumed.", f"Not resumed: {label(running)} (processing)."]
    assert status_of(waiting) == "queued"
    assert broken() == []


def test_a_generation_of_a_paused_batch_is_not_resumed(operator):
    batch = make_batch(size=1)
    lifecycle.pause_batch(batch=batch)
    generation = batch.generations.get()
    messages = command(operator, list_url(Generation), "resume", [generation])
    assert messages == [f"Not resumed: {label(generation)} (its batch is paused)."]
    assert status_of(generation) == "pending"


def test_generations_are_cancelled_after_a_question(operator):
    waiting, running = make_generation(), make_generation()
    Lane.objects.filter(owner=waiting.owner).update(cap=0)
    admit()
    ended = failed_generation()
    rows = [waiting, running, ended]
    assert command(operator, list_url(Generation), "cancel", rows) == []
    assert status_of(waiting) == "queued"
    done, refused = confirm(operator, list_url(Generation), "cancel", rows)
    assert done.startswith("2 generations cancelled. What is at its provider ends when")
    assert refused == f"Not cancelled: {label(ended)} (failed)."
    assert status_of(waiting) == "cancelled"
    running.refresh_from_db()
    assert running.cancel_requested_at is not None
    assert "cancelling" in html_of(operator.get(list_url(Generation)))
    assert broken() == []


def test_failed_and_cancelled_generations_are_retried(operator):
    owner = make_user()
    batch = failed_batch(size=3, failed=2, owner=owner)
    first, second, done = batch.generations.order_by("index")
    single, other = failed_generation(), make_generation()
    lifecycle.cancel_generation(generation=other)
    rows = [first, second, done, single, other]
    messages = command(operator, list_url(Generation), "retry", rows)
    assert messages == ["4 generations retried.", f"Not retried: {label(done)} (completed)."]
    assert {status_of(row) for row in (first, second, single, other)} == {"queued"}
    assert status_of(batch) == "processing"
    assert broken() == []


def test_a_generation_of_a_batch_that_is_being_cancelled_is_not_retried(operator):
    batch = make_batch(size=2)
    admit()
    broken_one = fail(batch.generations.get(index=0))
    lifecycle.cancel_batch(batch=batch)
    messages = command(operator, list_url(Generation), "retry", [broken_one])
    reason = "failed, but its batch is being cancelled"
    assert messages == [f"Not retried: {label(broken_one)} ({reason})."]
    assert status_of(broken_one) == "failed"


def test_what_may_have_been_charged_is_retried_after_a_question_only(operator):
    generation = failed_generation(UNKNOWN, "submission_unknown")
    for answer in (
        press(operator, generation, "retry"),
        operator.post(
            list_url(Generation),
            {"action": "retry", "_selected_action": [generation.pk], "index": 0},
        ),
    ):
        assert "may be charged twice" in html_of(answer)
        assert status_of(generation) == "failed"
    messages = confirm(operator, list_url(Generation), "retry", [generation])
    assert messages == ["1 generation retried."]
    assert status_of(generation) == "queued"


def test_single_generations_are_deleted_and_those_of_batches_are_not(operator):
    single, member = make_generation(), make_batch(size=1).generations.get()
    assert command(operator, list_url(Generation), "delete", [single, member]) == []
    messages = confirm(operator, list_url(Generation), "delete", [single, member])
    assert messages == ["1 generation deleted.", f"Not deleted: {label(member)} (of a batch)."]
    assert set(Generation.objects.all()) == {member}
    assert broken() == []


def test_a_deleted_generation_takes_no_more_commands(operator):
    generation = failed_generation()
    # As it is until the sweep removes it.
    Generation.objects.filter(pk=generation.pk).update(deleted_at=timezone.now())
    messages = command(operator, list_url(Generation), "retry", [generation])
    assert messages == [f"Not retried: {label(generation)} (deleted)."]
    assert status_of(generation) == "failed"
    assert offered(operator, generation) == []


# --- Who may --------------------------------------------------------------------------------------


def alert_row():
    Alert.objects.raise_(AlertCode.CIRCUIT_OPEN, "replicate", "503")
    return Alert.objects.open().get()


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (make_batch, "pause", "batch"),
        (make_batch, "delete", "batch"),
        (make_generation, "pause", "generation"),
        (make_generation, "delete", "generation"),
        (alert_row, "clear", "alert"),
    ],
)
def test_who_may_only_look_is_offered_nothing_and_has_no_effect(client, make, name, kind):
    row = make()
    before = type(row).objects.filter(pk=row.pk).values().get()
    others = {"batch", "generation", "alert"} - {kind}
    staff(client, f"view_{kind}", *(f"change_{other}" for other in others))
    html = html_of(client.get(list_url(type(row))))
    assert 'name="action"' not in html
    assert offered(client, row) == []
    data = {"action": name, "_selected_action": [row.pk], "post": "yes"}
    html_of(client.post(list_url(type(row)), data | {"index": 0}, follow=True))
    html_of(client.post(list_url(type(row)), data, follow=True))
    assert press(client, row, name, post="yes").status_code == 403
    assert type(row).objects.filter(pk=row.pk).values().get() == before
    assert LogEntry.objects.count() == 0


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (make_batch, "pause", "batch"),
        (make_generation, "pause", "generation"),
        (alert_row, "clear", "alert"),
    ],
)
def test_who_may_change_rows_of_a_kind_may_command_them(client, make, name, kind):
    row = make()
    staff(client, f"change_{kind}")
    assert name in offered(client, row)
    (message,) = command(client, list_url(type(row)), name, [row])
    assert message.startswith(f"1 {kind} ")
    assert client.post(page_url(row), {"status": "completed", "message": "x"}).status_code == 403


def test_commands_are_for_staff_only(client):
    batch = make_batch()
    client.force_login(make_user())
    for url in (list_url(Batch), reverse("admin:batches_batch_act", args=[batch.pk])):
        data = {"action": "pause", "_selected_action": [batch.pk], "index": 0}
        assert client.post(url, data).status_code == 302
    assert status_of(batch) == "pending"


def test_commands_from_another_site_are_refused():
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user(is_staff=True, is_superuser=True))
    generation, batch = failed_generation(), make_batch()
    data = {"action": "pause", "_selected_action": [batch.pk], "index": 0}
    letter = {"action": "retry", "_selected_action": [generation.pk], "retry_all": "yes"}
    assert client.post(list_url(Batch), data).status_code == 403
    assert press(client, batch, "pause").status_code == 403
    assert client.post(letters_url(), letter).status_code == 403
    assert (status_of(batch), status_of(generation)) == ("pending", "failed")


def test_no_list_offers_to_delete_rows_past_the_lifecycle(operator):
    make_rows(1)
    for model in MODELS:
        html = html_of(operator.get(list_url(model)))
        assert "delete_selected" not in html
