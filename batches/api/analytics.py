"""What came of generations, in figures: of a batch, and over time."""

import uuid
from datetime import timedelta
from typing import Any

from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from batches.analytics import DAYS_DEFAULT, DAYS_MAX, GROUPS_MAX, Figures, GroupBy, Scope, report
from batches.api.errors import CONTENT_TYPE
from batches.api.parameters import takes
from batches.api.serializers import ProblemSerializer
from batches.api.views import OwnedView
from batches.forms import IdField, MomentField, StrictSerializer, TextField
from batches.intake import Problem, Refused
from batches.models import Batch
from batches.submission import database_now, read_form

GROUP_HELP = (
    "`day` and `week` (from Monday) in UTC by when generations were made, those without any left "
    f"out; models and styles with the most generations first, at most {GROUPS_MAX}."
)
INVALID = {
    (422, CONTENT_TYPE): OpenApiResponse(
        ProblemSerializer, description="Parameters that cannot be accepted, each named in `errors`."
    )
}


class BatchAnalyticsSerializer(StrictSerializer):
    group_by = serializers.ChoiceField(
        [(str(one), str(one)) for one in GroupBy],
        required=False,
        default=str(GroupBy.NONE),
        help_text=GROUP_HELP,
    )
    model = TextField(required=False, max_length=200)
    style = TextField(  # type: ignore[assignment]
        required=False, allow_blank=True, max_length=100, help_text="Empty: those without one."
    )


class AnalyticsSerializer(BatchAnalyticsSerializer):
    batch = IdField(required=False)

    def get_fields(self) -> Any:
        begin = MomentField(
            required=False,
            help_text=f"Made at that time or later. By default {DAYS_DEFAULT} days before `to`.",
        )
        end = MomentField(
            required=False,
            help_text=f"Made before that time, at most {DAYS_MAX} days later. By default now.",
        )
        return {"from": begin, "to": end, **super().get_fields()}


class RoundedField(serializers.FloatField):
    def __init__(self, *, digits: int, **options: Any) -> None:
        self.digits = digits
        super().__init__(**options)

    def to_representation(self, value: Any) -> Any:
        return round(value, self.digits)


class FiguresSerializer(serializers.Serializer):
    """Of generations that were made in the range and are not deleted, as they stand now."""

    generations = serializers.IntegerField(help_text="All; those that have not ended are open.")
    completed = serializers.IntegerField()
    failed = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    open = serializers.SerializerMethodField()
    images = serializers.IntegerField(help_text="Of these generations, without deleted ones.")
    approved = serializers.IntegerField(help_text="Images.")
    rejected = serializers.IntegerField(help_text="Images.")
    published = serializers.IntegerField(
        help_text="Approved images that are published at one channel or more."
    )
    success_rate = RoundedField(
        digits=4,
        allow_null=True,
        help_text="`completed` of all that have ended: 0 to 1, null of none.",
    )
    approval_rate = RoundedField(
        digits=4,
        allow_null=True,
        help_text="`approved` of all reviewed images: 0 to 1, null of none.",
    )
    publish_rate = RoundedField(
        digits=4, allow_null=True, help_text="`published` of `approved`: 0 to 1, null of none."
    )
    cost_usd = serializers.DecimalField(
        max_digits=14, decimal_places=6, help_text="Of all attempts, those that failed included."
    )
    median_run_seconds = RoundedField(
        digits=3,
        source="median_run_s",
        allow_null=True,
        help_text="Of the attempts that succeeded, from acceptance by the provider to its result.",
    )
    p90_run_seconds = RoundedField(
        digits=3,
        source="p90_run_s",
        allow_null=True,
        help_text="What nine of ten of them did not exceed.",
    )

    def get_open(self, figures: Figures) -> int:
        return figures.generations - figures.completed - figures.failed - figures.cancelled


class GroupSerializer(FiguresSerializer):
    key = serializers.CharField(help_text="The day or the Monday, the model's id, or the style.")


class BatchReportSerializer(serializers.Serializer):
    group_by = serializers.ChoiceField([(str(one), str(one)) for one in GroupBy])
    total = FiguresSerializer()
    groups = GroupSerializer(many=True)


class ReportSerializer(BatchReportSerializer):
    def get_fields(self) -> Any:
        moments = {name: serializers.DateTimeField() for name in ("from", "to")}
        return {**moments, **super().get_fields()}


def _told(scope: Scope, group_by: str) -> dict[str, Any]:
    made = report(scope, GroupBy(group_by))
    return {
        "group_by": group_by,
        "total": made.total,
        "groups": made.groups,
    }


class AnalyticsView(OwnedView):
    @extend_schema(
        operation_id="v1_analytics",
        summary="What came of your generations: success, approval, cost and run times",
        parameters=[AnalyticsSerializer],
        responses={200: ReportSerializer, **INVALID},
    )
    @takes(AnalyticsSerializer)
    def get(self, request: Request) -> Response:
        asked = read_form(AnalyticsSerializer, request.query_params.dict()).validated_data
        end = asked["to"] if "to" in asked else database_now()
        try:
            begin = asked["from"] if "from" in asked else end - timedelta(days=DAYS_DEFAULT)
        except OverflowError:
            raise Refused([Problem("to", "out_of_range", "There is no time before.")]) from None
        if begin >= end:
            raise Refused([Problem("from", "not_before_to", "Must be before `to`.")])
        if end - begin > timedelta(days=DAYS_MAX):
            detail = f"Must be at most {DAYS_MAX} days before `to`."
            raise Refused([Problem("from", "range_too_long", detail, {"max_days": DAYS_MAX})])
        scope = Scope(
            self.owner_id,
            begin,
            end,
            batch_id=asked.get("batch"),
            model=asked.get("model"),
            style=asked.get("style"),
        )
        shown = {"from": begin, "to": end, **_told(scope, asked["group_by"])}
        return Response(ReportSerializer(shown).data)


class BatchAnalyticsView(OwnedView):
    @extend_schema(
        operation_id="v1_batches_analytics",
        summary="What came of a batch: success, approval, cost and run times",
        parameters=[BatchAnalyticsSerializer],
        responses={200: BatchReportSerializer, **INVALID},
    )
    @takes(BatchAnalyticsSerializer)
    def get(self, request: Request, pk: uuid.UUID) -> Response:
        get_object_or_404(Batch.objects.owned_by(self.owner_id), pk=pk)
        asked = read_form(BatchAnalyticsSerializer, request.query_params.dict()).validated_data
        scope = Scope(
            self.owner_id, batch_id=pk, model=asked.get("model"), style=asked.get("style")
        )
        return Response(BatchReportSerializer(_told(scope, asked["group_by"])).data)
