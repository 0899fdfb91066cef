"""The page of the generations that failed."""

import itertools
import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.admin import site
from django.contrib.admin.models import CHANGE, LogEntry
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from batches import lifecycle
from batches.admin import dead_letters, lists
from batches.admin.dead_letters import DeadLetterAdmin
from batches.models import Attempt, Generation
from generation.provider import ErrorClass
from tests.batches.admin.support import (
    UNKNOWN,
    broken,
    command,
    failed_batch,
    failed_generation,
    html_of,
    label,
    letters_url,
    list_url,
    page_url,
    queries_of,
    said,
    staff,
    status_of,
    unbounded_counts,
)
from tests.factories import MODEL, make_generation, make_user

pytestmark = pytest.mark.django_db


def letters(client, **parameters):
    """The ids of the dead letters that are shown, in order."""
    response = client.get(letters_url(), parameters)
    html_of(response)
    return [row.pk for row in response.context["cl"].result_list]


def counts_of(client, **parameters):
    html = html_of(client.get(letters_url(), parameters)).split("Failed in the last 24 hours:")[1]
    links = re.findall(r'<a class="badge" href="\?([^"]+)">(\S+) (\S+)</a>', html.split("</p>")[0])
    return {code: count for _, code, count in links}


def test_the_page_of_dead_letters_is_sound():
    assert DeadLetterAdmin(Generation, site).check() == []


def test_dead_letters_are_what_failed_with_the_newest_end_first(operator):
    older = failed_generation(ended_ago=timedelta(hours=2))
    newest = failed_generation(UNKNOWN, "submission_unknown", ended_ago=timedelta(hours=1))
    oldest = failed_generation(code="poison", ended_ago=timedelta(days=400))
    failed_batch(failed=0)
    make_generation()
    assert letters(operator) == [newest.pk, older.pk, oldest.pk]


def test_a_dead_letter_tells_what_an_operator_has_to_know(operator):
    batch = failed_batch(size=1)
    generation = batch.generations.get()
    html = html_of(operator.get(letters_url()))
    for text in (
        "provider_unavailable",
        "away",
        MODEL,
        batch.owner.username,
        page_url(batch),
        page_url(generation),
        f"{list_url(Attempt)}?generation={generation.pk}",
        "&lt;b&gt;503&lt;/b&gt;",
    ):
        assert text in html, text
    assert letters_url(owner=batch.owner_id) in html


def test_an_excerpt_is_short_and_holds_no_secret(operator):
    generation = failed_generation()
    attempt = generation.attempts.get()
    answer = f"https://ours.example/hooks/replicate/{attempt.callback_token}/ " + "x" * 5_000
    Attempt.objects.filter(pk=attempt.pk).update(raw={"body": answer})
    for url in (letters_url(), page_url(generation), page_url(attempt)):
        html = html_of(operator.get(url))
        assert "hooks/replicate/[token]/" in html
        assert str(attempt.callback_token) not in html
    assert "x" * 300 not in html_of(operator.get(letters_url()))
    Attempt.objects.filter(pk=attempt.pk).update(raw=["not", {"what": "is usual"}])
    assert "is usual" in html_of(operator.get(letters_url()))


def test_dead_letters_are_filtered_by_class_owner_model_and_age(operator):
    poison = failed_generation(code="poison", ended_ago=timedelta(minutes=5))
    unknown = failed_generation(UNKNOWN, "submission_unknown", ended_ago=timedelta(hours=5))
    away = failed_generation(model="someone/else", ended_ago=timedelta(days=3))
    ancient = failed_generation(ended_ago=timedelta(days=100))
    assert letters(operator, error_code="poison") == [poison.pk]
    assert letters(operator, error_code="submission_unknown") == [unknown.pk]
    assert letters(operator, error_code="provider_unavailable") == [away.pk, ancient.pk]
    assert letters(operator, owner=away.owner_id) == [away.pk]
    assert letters(operator, q=unknown.owner.username) == [unknown.pk]
    assert letters(operator, q=str(unknown.pk)) == [unknown.pk]
    assert letters(operator, model=MODEL) == [poison.pk, unknown.pk, ancient.pk]
    assert letters(operator, age="1h") == [poison.pk]
    assert letters(operator, age="24h") == [poison.pk, unknown.pk]
    assert letters(operator, age="7d") == letters(operator, age="30d")
    assert letters(operator, age="older") == [ancient.pk]
    assert letters(operator, age="older", error_code="poison") == []
    for parameters in (
        {"age": "x"},
        {"error_code": "x"},
        {"owner": "x"},
        {"model": "x"},
        {"q": "x"},
    ):
        assert letters(operator, **parameters) == []


def test_the_classes_to_filter_by_are_the_closed_list(operator):
    sidebar = html_of(operator.get(letters_url())).split('id="changelist-filter"')[1]
    for code in (*ErrorClass, "submission_unknown", "poison"):
        assert f"error_code={code}" in sidebar


def test_the_failures_of_a_day_are_counted_by_class(operator):
    for ended_ago in (timedelta(0), timedelta(hours=23), timedelta(hours=25)):
        failed_generation(code="poison", ended_ago=ended_ago)
    failed_generation()
    expected = {"provider_unavailable": "1", "poison": "2"}
    assert counts_of(operator) == expected
    assert counts_of(operator, error_code="poison", age="1h") == expected
    html = html_of(operator.get(letters_url()))
    assert 'href="?error_code=poison&amp;age=24h"' in html
    assert len(letters(operator, error_code="poison", age="24h")) == 2


def test_a_day_without_failures_says_so(operator):
    text = html_of(operator.get(letters_url())).split("Failed in the last 24 hours:")[1]
    assert text.split("</p>")[0].strip() == "none"


def test_of_each_class_no_more_failures_are_counted_than_a_list_shows(operator, monkeypatch):
    monkeypatch.setattr(lists, "COUNT_MAX", 2)
    for _ in range(4):
        failed_generation(code="poison")
    failed_generation()
    assert counts_of(operator) == {"provider_unavailable": "1", "poison": "2+"}
    (sql,) = [sql for sql in queries_of(operator, letters_url()) if "known(code" in sql]
    assert "LIMIT 3" in sql


def test_the_count_of_failures_reads_its_index_only(operator):
    first = failed_generation()
    codes = itertools.cycle(lists.ERROR_CODES)
    copies = Generation.objects.filter(pk=first.pk).values().get()
    # So many that the plan is the one of a large table.
    Generation.objects.bulk_create(
        Generation(**copies | {"id": uuid.uuid4(), "error_code": next(codes)}) for _ in range(4_000)
    )
    (sql,) = [sql for sql in queries_of(operator, letters_url()) if "known(code" in sql]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    scan = plan.split("generation_dead_letters")[1]
    condition = re.search(r"Index Cond: (.*)", scan)[1]
    assert "error_code" in condition, plan
    assert "finished_at" in condition, plan
    assert "Filter" not in scan, plan


def test_the_newest_of_all_classes_are_merged_by_the_index(operator):
    for _ in range(3):
        failed_generation()
    (sql,) = [sql for sql in queries_of(operator, letters_url()) if "UNION ALL" in sql]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "Merge Append" in plan, plan
    assert plan.count("using generation_dead_letters") == len(lists.ERROR_CODES), plan
    assert "->  Sort" not in plan, plan


def test_no_more_dead_letters_are_paged_through_than_are_counted(operator, monkeypatch):
    monkeypatch.setattr(lists, "COUNT_MAX", 3)
    monkeypatch.setattr(DeadLetterAdmin, "list_per_page", 2)
    codes = ("poison", "unknown", "poison", "auth", "poison")
    rows = [
        failed_generation(code=code, ended_ago=timedelta(hours=hours))
        for hours, code in enumerate(codes)
    ]
    assert letters(operator) == [row.pk for row in rows[:2]]
    assert letters(operator, p=2) == [rows[2].pk]
    assert "3+ generations" in html_of(operator.get(letters_url()))
    assert letters(operator, error_code="poison") == [rows[0].pk, rows[2].pk]


def test_a_list_of_30_dead_letters_takes_as_many_queries_as_one_of_3(operator):
    for _ in range(3):
        failed_generation()
    few = queries_of(operator, letters_url())
    for _ in range(27):
        failed_generation()
    many = queries_of(operator, letters_url())
    assert len(many) == len(few)
    assert len([sql for sql in many if "batches_" in sql]) <= 5
    # That of the failures is limited within.
    assert not [sql for sql in unbounded_counts(many) if "known(code" not in sql]


def test_the_dead_letters_are_in_the_index_and_in_the_sidebar(client):
    staff(client, "view_generation")
    app_index = reverse("admin:app_list", args=["batches"])
    for url in (reverse("admin:index"), app_index, list_url(Generation), letters_url()):
        assert f'href="{letters_url()}"' in html_of(client.get(url))


def test_who_may_not_see_generations_sees_no_dead_letters(client):
    staff(client, "view_batch")
    assert letters_url() not in html_of(client.get(reverse("admin:index")))
    assert client.get(letters_url()).status_code == 403


def test_dead_letters_are_for_staff_only(client):
    client.force_login(make_user())
    assert client.get(letters_url()).status_code == 302


def test_dead_letters_are_retried(operator):
    batch, single = failed_batch(size=3, failed=2), failed_generation()
    first, second = batch.generations.filter(status="failed").order_by("index")
    messages = command(operator, letters_url(), "retry", [first, second, single])
    assert messages == ["3 generations retried."]
    assert letters(operator) == []
    assert status_of(batch) == "processing"
    assert LogEntry.objects.filter(action_flag=CHANGE, change_message="Retried.").count() == 3
    assert broken() == []


def test_retrying_a_batchs_dead_letters_is_one_step(operator, monkeypatch):
    batch = failed_batch(size=3, failed=3)
    calls = []
    original = lifecycle.retry_generations

    def count(*, batch, generations):
        calls.append((batch, len(generations)))
        return original(batch=batch, generations=generations)

    monkeypatch.setattr(lifecycle, "retry_generations", count)
    command(operator, letters_url(), "retry", list(batch.generations.all()))
    assert calls == [(batch, 3)]


def ask_for_all(client, **parameters):
    return client.post(letters_url(**parameters), {"retry_all": "yes"}, follow=True)


def asked_about(response):
    return re.findall(r'name="_selected_action" value="([^"]+)"', html_of(response))


def test_all_of_a_filter_is_retried_after_a_question_with_the_number(operator):
    poison = [failed_generation(code="poison") for _ in range(3)]
    other = failed_generation()
    response = ask_for_all(operator, error_code="poison")
    html = html_of(response)
    assert "3 generations are retried, the newest of 3." in html
    assert "charged" not in html
    assert {status_of(row) for row in poison} == {"failed"}
    assert set(asked_about(response)) == {str(row.pk) for row in poison}
    too_late = failed_generation(code="poison")
    url = letters_url(error_code="poison")
    data = {"action": "retry", "_selected_action": asked_about(response), "post": "yes"}
    answer = operator.post(url, data, follow=True)
    assert said(answer) == ["3 generations retried."]
    assert answer.redirect_chain[-1][0] == url
    assert {status_of(row) for row in poison} == {"queued"}
    assert (status_of(other), status_of(too_late)) == ("failed", "failed")
    assert broken() == []


def test_the_question_warns_of_what_may_have_been_charged(operator):
    failed_generation(UNKNOWN, "submission_unknown")
    failed_generation(UNKNOWN, "submission_unknown")
    failed_generation()
    html = html_of(ask_for_all(operator))
    assert "3 generations are retried" in html
    assert "2 of these failed with submission_unknown" in html
    assert "may be charged twice" in html


def test_all_of_a_filter_is_the_newest_500_at_most(operator, monkeypatch):
    monkeypatch.setattr(dead_letters, "RETRIED_MAX", 2)
    rows = [failed_generation(ended_ago=timedelta(hours=hours)) for hours in (3, 1, 2)]
    response = ask_for_all(operator)
    assert "2 generations are retried, the newest of 3." in html_of(response)
    assert asked_about(response) == [str(rows[1].pk), str(rows[2].pk)]
    assert DeadLetterAdmin.selected_max == 500


def test_deleted_dead_letters_are_shown_as_such_and_left_out_of_all(operator):
    generation = failed_generation()
    Generation.objects.filter(pk=generation.pk).update(deleted_at=timezone.now())
    assert 'badge-deleted">Deleted' in html_of(operator.get(letters_url()))
    assert said(ask_for_all(operator)) == ["There is nothing to retry."]
    (message,) = command(operator, letters_url(), "retry", [generation])
    assert message == f"Not retried: {label(generation)} (deleted)."


def test_who_may_only_look_retries_no_dead_letters(client):
    generation = failed_generation()
    staff(client, "view_generation")
    html = html_of(client.get(letters_url()))
    assert "retry_all" not in html
    assert 'name="action"' not in html
    assert client.post(letters_url(), {"retry_all": "yes"}).status_code == 403
    data = {"action": "retry", "_selected_action": [generation.pk], "post": "yes"}
    html_of(client.post(letters_url(), data))
    assert status_of(generation) == "failed"
