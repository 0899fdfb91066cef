"""Alerts, and the banner that tells of them."""

import re

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import connection
from django.urls import reverse
from django.utils import timezone
from knox.models import get_token_model

from batches import pools
from batches.admin import lists
from batches.admin.site import BANNER_MAX
from batches.models import Alert, AlertCode, Batch
from batches.scheduling import admit
from generation.provider import ErrorClass
from tests.batches.admin.support import (
    MODELS,
    command,
    html_of,
    letters_url,
    list_url,
    listed,
    offered,
    page,
    page_url,
    press,
    queries_of,
    said,
    staff,
    stop,
)
from tests.factories import make_batch, make_generation

pytestmark = pytest.mark.django_db


def test_open_alerts_come_first_and_the_newest_of_them_before(operator):
    for subject in ("one", "two", "three", "four"):
        Alert.objects.raise_(AlertCode.POISON, subject, "again and again")
    one, two, three, four = Alert.objects.order_by("pk")
    pools.clear_alert(alert_id=four.pk, user_id=None)
    pools.clear_alert(alert_id=two.pk, user_id=None)
    Alert.objects.raise_(AlertCode.POISON, "one", "again and again")
    shown = operator.get(list_url(Alert)).context["cl"].result_list
    assert [row.pk for row in shown] == [one.pk, three.pk, two.pk, four.pk]
    assert listed(operator, Alert, state="open") == {one.pk, three.pk}
    assert listed(operator, Alert, state="cleared") == {two.pk, four.pk}
    assert listed(operator, Alert, state="nonsense") == set()
    assert listed(operator, Alert, code="poison") == {one.pk, two.pk, three.pk, four.pk}
    assert listed(operator, Alert, code="auth") == set()


def test_old_alerts_that_are_still_open_are_shown_whatever_came_after(operator, monkeypatch):
    monkeypatch.setattr(lists, "COUNT_MAX", 2)
    for subject in ("old", "cleared", "newer", "newest"):
        Alert.objects.raise_(AlertCode.POISON, subject, "again and again")
        if subject != "old":
            Alert.objects.filter(subject=subject).update(cleared_at=timezone.now())
    shown = operator.get(list_url(Alert)).context["cl"].queryset
    assert {row.subject for row in shown} == {"old", "newer", "newest"}


def test_an_alert_tells_everything_and_can_only_be_cleared(operator):
    alert = stop()
    for html in (html_of(operator.get(list_url(Alert))), page(operator, alert)):
        assert 'badge-auth">Auth' in html
        assert "replicate" in html
        assert "&lt;b&gt;401&lt;/b&gt;" in html
    assert offered(operator, alert) == ["clear"]


@pytest.mark.parametrize("error_class", [ErrorClass.AUTH, ErrorClass.INSUFFICIENT_CREDIT])
def test_clearing_an_alert_lets_what_it_stopped_go_on(operator, error_class):
    alert = stop(error_class)
    generation = make_generation()
    assert admit().admitted == []
    messages = command(operator, list_url(Alert), "clear", [alert])
    assert messages == ["1 alert cleared. Submissions to replicate go on."]
    assert [one.generation_id for one in admit().admitted] == [generation.pk]
    alert.refresh_from_db()
    assert alert.cleared_by.username == "operator"
    assert "operator" in html_of(operator.get(list_url(Alert)))
    assert offered(operator, alert) == []


def test_an_alert_is_cleared_from_its_own_page(operator):
    alert = stop()
    response = press(operator, alert, "clear")
    assert said(response) == ["1 alert cleared. Submissions to replicate go on."]
    assert said(press(operator, alert, "clear")) == [
        f"Not cleared: {alert} (cleared already).",
    ]


def test_clearing_one_of_two_reasons_tells_that_the_other_still_holds(operator):
    stop(ErrorClass.AUTH)
    stop(ErrorClass.INSUFFICIENT_CREDIT)
    alert = Alert.objects.get(code="auth")
    messages = command(operator, list_url(Alert), "clear", [alert])
    assert messages == ["1 alert cleared. replicate is still stopped: insufficient_credit."]
    assert admit().admitted == []


def test_clearing_an_open_circuit_closes_it(operator):
    make_generation()
    admit()
    generation = make_generation()
    for _ in range(pools.CIRCUIT_THRESHOLD):
        pools.record_unavailable(name="replicate", message="503")
    assert admit().admitted == []
    messages = command(operator, list_url(Alert), "clear", [Alert.objects.get()])
    assert messages == ["1 alert cleared. Submissions to replicate go on."]
    assert [one.generation_id for one in admit().admitted] == [generation.pk]


def test_clearing_an_alert_that_stopped_nothing_promises_nothing(operator):
    Alert.objects.raise_(AlertCode.POISON, "generation 1", "again and again")
    messages = command(operator, list_url(Alert), "clear", [Alert.objects.get()])
    assert messages == ["1 alert cleared."]


# --- The banner -----------------------------------------------------------------------------------


def banners(html):
    return re.findall(r'<a href="/admin/batches/alert/\?state=open">', html)


def every_kind_of_page(row):
    """Those of users, groups and tokens as well."""
    name = f"batches_{row._meta.model_name}"
    return [
        reverse("admin:index"),
        reverse("admin:app_list", args=["batches"]),
        reverse("admin:app_list", args=["auth"]),
        reverse("admin:password_change"),
        reverse(f"admin:{name}_history", args=[row.pk]),
        reverse("admin:auth_user_change", args=[row.owner_id]),
        reverse("admin:auth_user_delete", args=[row.owner_id]),
        reverse("admin:auth_group_add"),
        page_url(row),
        letters_url(),
        *(
            reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
            for model in (*MODELS, get_user_model(), Group, get_token_model())
        ),
    ]


def test_open_alerts_are_on_every_page(operator):
    batch = make_batch()
    alert = stop()
    for url in every_kind_of_page(batch):
        html = html_of(operator.get(url))
        assert len(banners(html)) == 1, url
        assert "The provider refuses our credentials (replicate)" in html
    question = operator.post(
        list_url(Batch), {"action": "cancel", "_selected_action": [batch.pk], "index": 0}
    )
    assert banners(html_of(question))
    pools.clear_alert(alert_id=alert.pk, user_id=None)
    for url in every_kind_of_page(batch):
        assert not banners(html_of(operator.get(url)))


def test_alerts_and_messages_stand_side_by_side(operator):
    stop()
    batch = make_batch()
    html = html_of(press(operator, batch, "pause"))
    assert banners(html)
    assert "1 batch paused." in html


def test_the_banner_takes_one_query_that_reads_an_index(operator):
    for number in range(10):
        Alert.objects.raise_(AlertCode.POISON, f"generation {number}", "again")
    queries = queries_of(operator, list_url(Batch))
    (sql,) = [sql for sql in queries if "batches_alert" in sql]
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "alert_one_open" in plan, plan
    assert "Sort" not in plan, plan


def test_the_banner_names_a_few_and_says_when_there_are_more(operator):
    for number in range(BANNER_MAX):
        Alert.objects.raise_(AlertCode.POISON, f"<i>{number}</i>", "again")
    html = html_of(operator.get(reverse("admin:index")))
    assert html.count("(&lt;i&gt;") == BANNER_MAX
    assert "and more" not in html
    Alert.objects.raise_(AlertCode.POISON, "one more", "again")
    html = html_of(operator.get(reverse("admin:index")))
    assert "and more" in html


def test_the_banner_is_for_who_may_see_alerts(client):
    stop()
    assert not banners(html_of(client.get(reverse("admin:login"))))
    staff(client, "view_batch")
    assert not banners(html_of(client.get(reverse("admin:index"))))
    staff(client, "view_alert")
    assert banners(html_of(client.get(reverse("admin:index"))))


def test_whoever_has_logged_out_leaves_no_alerts_on_the_screen(operator):
    stop()
    assert not banners(html_of(operator.post(reverse("admin:logout"))))
