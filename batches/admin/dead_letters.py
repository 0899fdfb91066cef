"""The dead letters: generations that failed, what their providers said last, and a bulk retry."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import Func, OuterRef, QuerySet, Subquery, TextField, Value
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Coalesce, Left
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode

from batches.admin import lists, show
from batches.admin.batches import GenerationAdmin
from batches.admin.commands import RETRY_GENERATIONS, charged_already
from batches.models import Attempt, Generation, GenerationStatus

RETRIED_MAX = 500
EXCERPT_LENGTH = 200


def excerpt_of_last_answer() -> Subquery:
    """The beginning of the last raw answer of a generation's provider."""
    answer = Coalesce(KT("raw__body"), Cast("raw", TextField()))
    token = Cast("callback_token", TextField())
    hidden = Func(answer, token, Value(show.HIDDEN), function="replace", output_field=TextField())
    attempts = Attempt.objects.filter(generation=OuterRef("pk"), raw__isnull=False)
    return Subquery(attempts.order_by("-number").values(start=Left(hidden, EXCERPT_LENGTH))[:1])


def failed_lately() -> dict[str, int]:
    """How many generations failed in the last 24 hours, by class; those that none did are left out.

    Of each class no more are counted than a list shows.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT code, counted.count
            FROM unnest(%s::text[]) WITH ORDINALITY AS known(code, place)
            CROSS JOIN LATERAL (
                SELECT count(*) FROM (
                    SELECT FROM batches_generation
                    WHERE status = 'failed' AND error_code = known.code
                      AND finished_at > statement_timestamp() - interval '24 hours'
                    LIMIT %s
                ) lately
            ) counted
            WHERE counted.count > 0 ORDER BY place
            """,
            [list(lists.ERROR_CODES), lists.COUNT_MAX + 1],
        )
        return {code: lists.bounded(count) for code, count in cursor.fetchall()}


class DeadLetterAdmin(GenerationAdmin):
    """A second list of generations, of those that failed: what to do about it is for somebody.

    It has no model of its own, so it is not registered: the site knows its address.
    """

    commands = (RETRY_GENERATIONS,)
    selected_max = RETRIED_MAX
    change_list_template = "admin/batches/dead_letters.html"
    ordering = ("-finished_at", "-id")
    list_display = (
        "finished",
        "code",
        "error_message",
        "model",
        "owner_link",
        "batch_link",
        "attempts_link",
        "answer_start",
    )
    list_filter = (lists.OwnerFilter, lists.ErrorFilter, lists.ModelFilter, lists.AgeFilter)

    @admin.display(description="class")
    def code(self, generation: Generation) -> str:
        deleted = show.badge("deleted") if generation.deleted_at else ""
        return format_html("{} {}", generation.error_code, deleted)

    @admin.display(description="provider's last answer")
    def answer_start(self, generation: Generation) -> str:
        return generation.answer_start or show.EMPTY  # type: ignore[attr-defined]

    def list_url(self, **filters: object) -> str:
        return reverse("admin:batches_dead_letters", query=filters)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Generation]:
        return Generation.objects.filter(status=GenerationStatus.FAILED).annotate(
            answer_start=excerpt_of_last_answer()
        )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        found, may_repeat = super().get_search_results(request, queryset, search_term)
        if lists.ErrorFilter.parameter_name not in request.GET and not found.query.is_empty():
            found = self.newest(found)
        return found, may_repeat

    def newest(self, queryset: QuerySet) -> QuerySet:
        """The first `lists.COUNT_MAX` by their end: the index has them in that order by class only.

        So they are merged until there are enough, which tells how far back to look.
        """
        ends = queryset.order_by("-finished_at", "-pk").values_list("finished_at", "pk")
        # Each in order and with a limit, or else they would be read to their ends and sorted.
        classes = [
            ends.filter(error_code=code)[: lists.COUNT_MAX + 1] for code in lists.ERROR_CODES
        ]
        merged = classes[0].union(*classes[1:], all=True).order_by("-finished_at", "-pk")
        queryset = queryset.filter(error_code__in=lists.ERROR_CODES)
        if last := merged[lists.COUNT_MAX : lists.COUNT_MAX + 1]:
            queryset = queryset.filter(finished_at__gte=last[0][0])
        return queryset

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "POST" and "retry_all" in request.POST:
            return self.retry_all(request)
        context = {
            "title": "Dead letters",
            "counts": self.counts,
            "may_retry": self.has_operate_permission(request),
            "retried_max": RETRIED_MAX,
        }
        return super().changelist_view(request, context | (extra_context or {}))

    def counts(self) -> list[tuple[str, int, str]]:
        return [
            (code, count, urlencode({"error_code": code, "age": "24h"}))
            for code, count in failed_lately().items()
        ]

    def retry_all(self, request: HttpRequest) -> HttpResponse:
        """Ask whether all that the filters show is to be retried."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        try:
            shown = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(request.path)
        rows = list(shown.get_queryset(request).filter(deleted_at=None)[:RETRIED_MAX])
        if not rows:
            self.message_user(request, "There is nothing to retry.", messages.WARNING)
            return HttpResponseRedirect(request.get_full_path())
        number = f"{len(rows)} generations are retried, the newest of {shown.result_count}."
        warnings = [number, *charged_already(rows)]
        return self.confirmation(request, RETRY_GENERATIONS, rows, warnings)
