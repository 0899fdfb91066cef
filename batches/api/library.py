"""The REST API of what batches are made from: templates, schedules, and earlier images."""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
    extend_schema_view,
)
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from batches.api.dry_run import with_dry_run
from batches.api.files import base_url
from batches.api.idempotency import HEADERS as IDEMPOTENCY_HEADERS
from batches.api.idempotency import idempotent
from batches.api.serializers import (
    BatchSerializer,
    ProblemFieldSerializer,
    ProblemSerializer,
    RowSerializer,
)
from batches.api.views import (
    CONFLICT,
    WORK_PARAMETERS,
    OwnedView,
    WorkView,
    data_of,
    work_responses,
)
from batches.forms import (
    JSON_OBJECT,
    ChangedScheduleSerializer,
    ChangedTemplateSerializer,
    NewScheduleSerializer,
    NewTemplateSerializer,
    SimilarBatchSerializer,
    SimilarImageSerializer,
    StartTemplateSerializer,
)
from batches.intake import Problem, Refused
from batches.models import Batch, Image, RunStatus, Schedule, ScheduleRun, Template
from batches.schedules import change_schedule, create_schedule, delete_schedule
from batches.submission import Asked, ReadyBatch, ask_again, ask_similar, batch_ready
from batches.templates import (
    ask_template,
    change_template,
    create_template,
    create_template_of,
    delete_template,
    submit_from,
)

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
BATCH_RESPONSES = work_responses("BatchOrOutline", BatchSerializer)
TOO_MANY_OR_KEY_IN_USE = OpenApiResponse(
    ProblemSerializer,
    description="`limit_reached`, or a request with the same `Idempotency-Key` is in progress.",
)


@extend_schema_field(JSON_OBJECT)
class BodyField(serializers.JSONField):
    """The body of a request for a batch."""


@extend_schema_field(TEXTS)
class TextsField(serializers.JSONField):
    """Texts by placeholder."""


# --- Templates ----------------------------------------------------------------------------------


class TemplateSerializer(RowSerializer):
    """A batch to be made again and again."""

    batch = BodyField(source="body", read_only=True)
    placeholders = serializers.ListField(
        child=serializers.CharField(), read_only=True, help_text="In order of use."
    )
    defaults = TextsField(read_only=True)

    class Meta:
        model = Template
        fields = (
            "id",
            "name",
            "description",
            "batch",
            "placeholders",
            "defaults",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


@extend_schema_view(
    list=extend_schema(summary="List your templates, newest first"),
    retrieve=extend_schema(summary="One template"),
)
class TemplateView(mixins.ListModelMixin, mixins.RetrieveModelMixin, WorkView, GenericViewSet):
    serializer_class = TemplateSerializer
    queryset = Template.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Template]:
        return Template.objects.owned_by(self.owner_id)

    def get_serializer_class(self) -> Any:
        return BatchSerializer if self.action == "start" else super().get_serializer_class()

    @contextmanager
    def _new(self, request: Request) -> Iterator[dict[str, Any]]:
        yield data_of(NewTemplateSerializer, request)

    @extend_schema(
        summary="Keep a batch as a template",
        request=NewTemplateSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={201: TemplateSerializer, CONFLICT: TOO_MANY_OR_KEY_IN_USE},
        examples=[
            OpenApiExample(
                "With placeholders",
                request_only=True,
                value={
                    "name": "Shirts",
                    "batch": {
                        "prompt": "A {animal} in the style of {style}, flat vector art",
                        "count": 25,
                    },
                    "defaults": {"style": "a linocut"},
                },
            ),
        ],
    )
    @idempotent(_new)
    def create(self, request: Request, data: dict[str, Any]) -> Response:
        kept = {name: data[name] for name in ("name", "description", "defaults") if name in data}
        if "batch_id" in data:
            batch = Batch.objects.owned_by(self.owner_id).filter(pk=data["batch_id"]).first()
            if batch is None:
                raise unknown_batch(data["batch_id"])
            template = create_template_of(batch, **kept)
        else:
            template = create_template(owner_id=self.owner_id, body=data["batch"], **kept)
        return created(self, "templates", template)

    @extend_schema(
        summary="Change a template",
        request=ChangedTemplateSerializer,
        responses={200: TemplateSerializer},
    )
    def partial_update(self, request: Request, pk: uuid.UUID) -> Response:
        self.get_object()
        changes = data_of(ChangedTemplateSerializer, request)
        if "batch" in changes:
            changes["body"] = changes.pop("batch")
        template = change_template(owner_id=self.owner_id, template_id=pk, changes=changes)
        if template is None:
            raise Http404
        return Response(self.get_serializer(template).data)

    @extend_schema(
        summary="Delete a template; what was made from it stays",
        responses={
            204: None,
            CONFLICT: OpenApiResponse(
                ProblemSerializer, description="`template_in_use`: by a schedule."
            ),
        },
    )
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        if not delete_template(owner_id=self.owner_id, template_id=pk):
            raise Http404
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _asked(self, request: Request, pk: uuid.UUID) -> Asked:
        template = self.get_object()
        data = data_of(StartTemplateSerializer, request)
        return ask_template(template, data["values"], data["overrides"])

    def _ready(self, request: Request, pk: uuid.UUID) -> AbstractContextManager[ReadyBatch]:
        return batch_ready(self.owner_id, self._asked(request, pk))

    @extend_schema(
        summary="Submit a batch of a template",
        request=StartTemplateSerializer,
        parameters=WORK_PARAMETERS,
        responses=BATCH_RESPONSES,
        examples=[
            OpenApiExample(
                "With another model",
                request_only=True,
                value={
                    "values": {"animal": "fox"},
                    "overrides": {"settings": {"model": "black-forest-labs/flux-dev"}},
                },
            ),
        ],
    )
    @action(detail=True, methods=["post"])
    @with_dry_run(_asked)
    @idempotent(_ready)
    def start(self, request: Request, ready: ReadyBatch, pk: uuid.UUID) -> Response:
        batch = submit_from(pk, ready)
        if batch is None:
            raise Http404
        return self.accepted("/api/v1/batches/{}/", batch)


# --- Schedules ----------------------------------------------------------------------------------


class ScheduleSerializer(RowSerializer):
    """When which batch is made: one of a template, or of a body of its own."""

    template_id = serializers.UUIDField(allow_null=True, read_only=True)
    values = TextsField(read_only=True)
    overrides = BodyField(read_only=True)
    batch = BodyField(source="body", read_only=True, allow_null=True)
    next_due_at = serializers.DateTimeField(
        read_only=True, allow_null=True, help_text="Null: it is not active."
    )

    class Meta:
        model = Schedule
        fields = (
            "id",
            "name",
            "rule",
            "time_zone",
            "starts_at",
            "template_id",
            "values",
            "overrides",
            "batch",
            "is_active",
            "next_due_at",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class RunErrorSerializer(serializers.Serializer):
    code = serializers.CharField()
    detail = serializers.CharField()
    errors = ProblemFieldSerializer(many=True)  # type: ignore[assignment]


class ScheduleRunSerializer(RowSerializer):
    """A due time of a schedule, and what became of it."""

    status = serializers.ChoiceField(
        RunStatus.choices,
        read_only=True,
        help_text="`failed`: no batch could be made, see `error`. `skipped`: the schedule was "
        "changed before.",
    )
    batch_id = serializers.UUIDField(allow_null=True, read_only=True)
    error = RunErrorSerializer(allow_null=True, read_only=True)

    class Meta:
        model = ScheduleRun
        fields = ("id", "due_at", "status", "batch_id", "missed_count", "error", "finished_at")
        read_only_fields = fields


@extend_schema_view(
    list=extend_schema(summary="List your schedules, newest first"),
    retrieve=extend_schema(summary="One schedule, with its next due time"),
)
class ScheduleView(mixins.ListModelMixin, mixins.RetrieveModelMixin, OwnedView, GenericViewSet):
    serializer_class = ScheduleSerializer
    queryset = Schedule.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Schedule]:
        due = ScheduleRun.objects.filter(schedule=OuterRef("pk"), status=RunStatus.DUE)
        return Schedule.objects.owned_by(self.owner_id).annotate(
            next_due_at=Subquery(due.values("due_at")[:1])
        )

    @contextmanager
    def _new(self, request: Request) -> Iterator[dict[str, Any]]:
        yield data_of(NewScheduleSerializer, request)

    @extend_schema(
        summary="Have a batch made again and again",
        description="By the clock of its time zone: 9:00 stays 9:00 when clocks are changed. A "
        "time that does not exist then counts by the clock of before; one that comes twice, the "
        "first time. Times that pass while nothing runs are made up for by one batch.",
        request=NewScheduleSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={201: ScheduleSerializer, CONFLICT: TOO_MANY_OR_KEY_IN_USE},
        examples=[
            OpenApiExample(
                "Mondays at nine",
                request_only=True,
                value={
                    "name": "Weekly foxes",
                    "rule": "FREQ=WEEKLY;BYDAY=MO;BYHOUR=9;BYMINUTE=0;BYSECOND=0",
                    "time_zone": "Europe/Berlin",
                    "batch": {"prompt": "A fox", "count": 4},
                },
            ),
        ],
    )
    @idempotent(_new)
    def create(self, request: Request, data: dict[str, Any]) -> Response:
        schedule = create_schedule(owner_id=self.owner_id, **as_stored(data))
        return created(self, "schedules", self.get_queryset().get(pk=schedule.pk))

    @extend_schema(
        summary="Change a schedule, or switch it off or on",
        description="When it is due is found anew: the run that was due is `skipped`, unless its "
        "time stays.",
        request=ChangedScheduleSerializer,
        responses={200: ScheduleSerializer},
    )
    def partial_update(self, request: Request, pk: uuid.UUID) -> Response:
        self.get_object()
        changes = as_stored(data_of(ChangedScheduleSerializer, request))
        if change_schedule(owner_id=self.owner_id, schedule_id=pk, changes=changes) is None:
            raise Http404
        return self.as_it_is(pk)

    @extend_schema(
        summary="Delete a schedule with its runs; their batches stay", responses={204: None}
    )
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        if not delete_schedule(owner_id=self.owner_id, schedule_id=pk):
            raise Http404
        return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema_view(get=extend_schema(summary="List the runs of a schedule, newest first"))
class ScheduleRunsView(mixins.ListModelMixin, OwnedView):
    serializer_class = ScheduleRunSerializer
    queryset = ScheduleRun.objects.none()

    def get_queryset(self) -> QuerySet[ScheduleRun]:
        schedules = Schedule.objects.owned_by(self.owner_id)
        return get_object_or_404(schedules, pk=self.kwargs["pk"]).runs.all()

    def get(self, request: Request, pk: uuid.UUID) -> Response:
        return self.list(request)


# --- More of what there is ----------------------------------------------------------------------


class SimilarImageView(WorkView):
    """Images like one that there is."""

    serializer_class = BatchSerializer
    queryset = Image.objects.none()

    def _asked(self, request: Request, pk: uuid.UUID) -> Asked:
        own = Image.objects.owned_by(self.owner_id).select_related("generation")
        image = get_object_or_404(own, pk=pk)
        return ask_similar(image, data_of(SimilarImageSerializer, request))

    def _ready(self, request: Request, pk: uuid.UUID) -> AbstractContextManager[ReadyBatch]:
        return batch_ready(self.owner_id, self._asked(request, pk))

    @extend_schema(
        summary="Generate images like this one",
        description="Its prompt, its settings and its reference images as they were asked, with "
        "new seeds.",
        request=SimilarImageSerializer,
        parameters=WORK_PARAMETERS,
        responses=BATCH_RESPONSES,
        examples=[
            OpenApiExample(
                "Eight more", request_only=True, value={"count": 8, "settings": {"steps": 2}}
            ),
        ],
    )
    @with_dry_run(_asked)
    @idempotent(_ready)
    def post(self, request: Request, ready: ReadyBatch, pk: uuid.UUID) -> Response:
        return self.accepted("/api/v1/batches/{}/", ready.submit())


class SimilarBatchView(WorkView):
    """A batch like one that there is."""

    serializer_class = BatchSerializer
    queryset = Batch.objects.none()

    def _asked(self, request: Request, pk: uuid.UUID) -> Asked:
        batch = get_object_or_404(Batch.objects.owned_by(self.owner_id), pk=pk)
        return ask_again(batch, data_of(SimilarBatchSerializer, request))

    def _ready(self, request: Request, pk: uuid.UUID) -> AbstractContextManager[ReadyBatch]:
        return batch_ready(self.owner_id, self._asked(request, pk))

    @extend_schema(
        summary="Generate the prompts of this batch anew, with new seeds",
        request=SimilarBatchSerializer,
        parameters=WORK_PARAMETERS,
        responses=BATCH_RESPONSES,
        examples=[OpenApiExample("As it was", request_only=True, value={})],
    )
    @with_dry_run(_asked)
    @idempotent(_ready)
    def post(self, request: Request, ready: ReadyBatch, pk: uuid.UUID) -> Response:
        return self.accepted("/api/v1/batches/{}/", ready.submit())


def created(view: OwnedView, location: str, row: Any) -> Response:
    return Response(
        view.get_serializer(row).data,
        status=status.HTTP_201_CREATED,
        headers={"Location": f"{base_url(view.request)}/api/v1/{location}/{row.pk}/"},
    )


def as_stored(data: dict[str, Any]) -> dict[str, Any]:
    """What a request calls `batch` is the body of one."""
    return {"body" if name == "batch" else name: one for name, one in data.items()}


def unknown_batch(pk: uuid.UUID) -> Refused:
    return Refused([Problem("batch_id", "unknown_batch", f"You have no batch {pk}.")])
