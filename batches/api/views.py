"""The REST API of batches, generations and models."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import OuterRef, Prefetch, QuerySet, Subquery
from django.http import Http404
from django.shortcuts import get_object_or_404
from django_filters import rest_framework as filters
from django_filters.fields import BaseCSVField, IsoDateTimeField
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_view,
)
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.viewsets import GenericViewSet

from batches import lifecycle
from batches.api import control, waiting
from batches.api.dry_run import DRY_RUN, ended_or_outlined, with_dry_run
from batches.api.errors import CONTENT_TYPE, BeingPublished, PartOfBatch
from batches.api.files import base_url
from batches.api.idempotency import HEADERS as IDEMPOTENCY_HEADERS
from batches.api.idempotency import idempotent
from batches.api.pagination import RecentFirst
from batches.api.parameters import StrictView
from batches.api.serializers import (
    BatchSerializer,
    GenerationSerializer,
    ModelListSerializer,
    ModelSerializer,
    ProblemSerializer,
    TransitionProblemSerializer,
)
from batches.catalogue import Offer, offers
from batches.forms import (
    NewBatchSerializer,
    NewGenerationSerializer,
    NothingSerializer,
    RetryBatchSerializer,
    RetryGenerationSerializer,
    StrictSerializer,
)
from batches.intake import unavailable_reason
from batches.models import (
    Attempt,
    Batch,
    BatchStatus,
    Generation,
    GenerationStatus,
)
from batches.submission import (
    Asked,
    ReadyBatch,
    ReadyGeneration,
    ask_batch,
    ask_generation,
    batch_ready,
    generation_ready,
    read_form,
)

SETTINGS_EXAMPLE = {"model": "black-forest-labs/flux-schnell", "aspect_ratio": "16:9"}

CONFLICT = (409, CONTENT_TYPE)
KEY_IN_USE = OpenApiResponse(
    ProblemSerializer, description="A request with the same `Idempotency-Key` is in progress."
)
# Of what takes in work.
WORK_PARAMETERS = [*IDEMPOTENCY_HEADERS, *waiting.HEADERS, DRY_RUN]


def work_responses(name: str, result: type[Serializer]) -> dict[Any, Any]:
    """What taking in work answers. `name` is for the schema: of the result, or an outline."""
    return {
        200: ended_or_outlined(name, result),
        202: OpenApiResponse(result, description="Stored and in line."),
        CONFLICT: KEY_IN_USE,
    }


REFUSED = OpenApiResponse(
    TransitionProblemSerializer, description="It cannot be done as things stand."
)
REFUSED_OR_KEY_IN_USE = OpenApiResponse(
    TransitionProblemSerializer,
    description="It cannot be done as things stand, or a request with the same `Idempotency-Key` "
    "is in progress.",
)


class StatusesField(BaseCSVField):
    def clean(self, value: Any) -> Any:
        if value and not all(value):
            raise ValidationError("No status may be empty.", code="invalid_choice")
        return super().clean(value)


class StatusesFilter(filters.BaseInFilter, filters.ChoiceFilter):
    """One status or several, separated by commas."""

    base_field_class = StatusesField


class MomentField(IsoDateTimeField):
    """A time in UTC: PostgreSQL does not take every offset that ISO 8601 allows."""

    def to_python(self, value: Any) -> datetime | None:
        moment: datetime | None = super().to_python(value)
        try:
            return moment and moment.astimezone(UTC)
        except OverflowError:
            raise ValidationError(self.error_messages["invalid"], code="invalid") from None


class MomentFilter(filters.IsoDateTimeFilter):
    field_class = MomentField


class StrictQuery(forms.Form):
    """Refuses what is given and blank: a variable that was never set must not list everything."""

    def clean(self) -> None:
        for name in self.fields:
            given = self.data.get(name)
            if given is not None and not given.strip():
                self.errors.pop(name, None)
                self.add_error(name, ValidationError("May not be empty.", code="blank"))


class CreatedFilter(filters.FilterSet):
    class Meta:
        form = StrictQuery

    created_after = MomentFilter(field_name="created_at", lookup_expr="gte")
    created_before = MomentFilter(field_name="created_at", lookup_expr="lt")


class BatchFilter(CreatedFilter):
    status = StatusesFilter(choices=BatchStatus.choices)


class GenerationFilter(CreatedFilter):
    status = StatusesFilter(choices=GenerationStatus.choices)
    batch = filters.UUIDFilter(field_name="batch_id")
    model = filters.CharFilter(field_name="model")


class OwnedView(StrictView, GenericAPIView):
    """Everything is scoped to its owner: what is not yours is not there."""

    pagination_class = RecentFirst

    def get_serializer_context(self) -> dict[str, Any]:
        return {**super().get_serializer_context(), "base_url": base_url(self.request)}

    @property
    def owner_id(self) -> int:
        assert self.request.user.pk is not None
        return self.request.user.pk

    def accepted(self, path: str, row: Any) -> Response:
        """`path` is where to follow it, with `{}` for its id."""
        return Response(
            self.get_serializer(row).data,
            status=status.HTTP_202_ACCEPTED,
            headers={"Location": base_url(self.request) + path.format(row.pk)},
        )

    def as_it_is(self, pk: uuid.UUID) -> Response:
        """An object as it stands after what was done with it."""
        row = get_object_or_404(self.get_queryset(), pk=pk)
        return Response(self.get_serializer(row).data)


class WorkView(OwnedView):
    """Takes in work, of which a client may wait for the end."""

    def seconds_to_wait(self) -> int:
        return waiting.preferred_wait_s(self.request.headers.get("Prefer"))

    def finalize_response(
        self, request: Request, response: Response, *args: Any, **kwargs: Any
    ) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        # Here, because an answer may be one that is given again.
        is_taken_in = response.status_code == status.HTTP_202_ACCEPTED and "Location" in response
        if is_taken_in and (wait_s := self.seconds_to_wait()):
            path = response["Location"].removeprefix(base_url(request))
            waiting.keep_back(response, wait_s=wait_s, path=path)
        return response


def data_of(form_class: type[StrictSerializer], request: Request) -> dict[str, Any]:
    data: dict[str, Any] = read_form(form_class, request.data).validated_data
    return data


@extend_schema_view(
    list=extend_schema(summary="List your batches, newest first"),
    retrieve=extend_schema(summary="Follow a batch with all its items"),
)
class BatchView(mixins.ListModelMixin, mixins.RetrieveModelMixin, WorkView, GenericViewSet):
    serializer_class = BatchSerializer
    filterset_class = BatchFilter
    queryset = Batch.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Batch]:
        items = Generation.objects.with_images().order_by("index")
        return (
            Batch.objects.owned_by(self.owner_id)
            .with_outlook()
            .prefetch_related(Prefetch("generations", queryset=items))
        )

    def _asked(self, request: Request) -> Asked:
        return ask_batch(request.data)

    def _ready(self, request: Request) -> AbstractContextManager[ReadyBatch]:
        return batch_ready(self.owner_id, self._asked(request))

    @extend_schema(
        summary="Submit a batch of prompts",
        request=NewBatchSerializer,
        parameters=WORK_PARAMETERS,
        responses=work_responses("BatchOrOutline", BatchSerializer),
        examples=[
            OpenApiExample(
                "Prompts",
                request_only=True,
                value={
                    "name": "Lighthouses",
                    "prompts": [
                        {"text": "A lighthouse at dawn", "seed": 7, "custom_id": "dawn"},
                        {"text": "A lighthouse in a storm", "settings": {"aspect_ratio": "1:1"}},
                    ],
                    "settings": SETTINGS_EXAMPLE,
                },
            ),
            OpenApiExample(
                "Variations",
                request_only=True,
                value={
                    "prompt": "A fox, flat vector art",
                    "count": 4,
                    "style": "retro",
                    "settings": SETTINGS_EXAMPLE,
                },
            ),
        ],
    )
    @with_dry_run(_asked)
    @idempotent(_ready)
    def create(self, request: Request, ready: ReadyBatch) -> Response:
        return self.accepted("/api/v1/batches/{}/", ready.submit())

    @extend_schema(
        summary="Start nothing more of a batch; what runs is finished",
        request=None,
        responses={200: BatchSerializer, CONFLICT: REFUSED},
    )
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: uuid.UUID) -> Response:
        return self._control(lifecycle.pause_batch, "paused")

    @extend_schema(
        summary="Go on with a paused batch",
        request=None,
        responses={200: BatchSerializer, CONFLICT: REFUSED},
    )
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: uuid.UUID) -> Response:
        return self._control(lifecycle.resume_batch, "resumed")

    @extend_schema(
        summary="Cancel a batch: what waits at once, what runs when its provider has stopped",
        request=None,
        responses={200: BatchSerializer, CONFLICT: REFUSED},
    )
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: uuid.UUID) -> Response:
        return self._control(lifecycle.cancel_batch, "cancelled")

    @contextmanager
    def _retrying(self, request: Request, pk: uuid.UUID) -> Iterator[Callable[[], None]]:
        batch = self._own(pk)
        data = data_of(RetryBatchSerializer, request)
        with control.retrying_batch(batch, data.get("ids"), data["settings"]) as retry:
            yield retry

    @extend_schema(
        summary="Try failed or cancelled generations of a batch once more",
        request=RetryBatchSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={200: BatchSerializer, CONFLICT: REFUSED_OR_KEY_IN_USE},
        examples=[
            OpenApiExample("All that failed", request_only=True, value={}),
            OpenApiExample(
                "With another model",
                request_only=True,
                value={"settings": {"model": "black-forest-labs/flux-dev"}},
            ),
        ],
    )
    @action(detail=True, methods=["post"])
    @idempotent(_retrying)
    def retry(self, request: Request, retry: Callable[[], None], pk: uuid.UUID) -> Response:
        retry()
        return self.as_it_is(pk)

    @extend_schema(
        summary="Delete a batch with its images; what runs is cancelled",
        responses={
            204: None,
            CONFLICT: OpenApiResponse(
                ProblemSerializer,
                description="One of its images is being published: `being_published`.",
            ),
        },
    )
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        if not lifecycle.delete_batch(batch=self._own(pk)):
            self._own(pk)
            raise BeingPublished("One of its images is being published.")
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _own(self, pk: uuid.UUID) -> Batch:
        return get_object_or_404(Batch.objects.owned_by(self.owner_id), pk=pk)

    def _control(self, act: Callable[..., bool], done: str) -> Response:
        pk = self.kwargs["pk"]
        batch = self._own(pk)
        data_of(NothingSerializer, self.request)
        if not act(batch=batch):
            raise control.batch_refusal(self._own(pk), done)
        return self.as_it_is(pk)


@extend_schema_view(
    list=extend_schema(summary="List your generations, newest first"),
    retrieve=extend_schema(summary="Follow one generation"),
)
class GenerationView(
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    WorkView,
    GenericViewSet,
):
    serializer_class = GenerationSerializer
    filterset_class = GenerationFilter
    queryset = Generation.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Generation]:
        latest = Attempt.objects.filter(generation=OuterRef("pk")).order_by("-number")
        return (
            Generation.objects.owned_by(self.owner_id)
            .with_images()
            .annotate(provider_id=Subquery(latest.values("provider_id")[:1]))
        )

    def _asked(self, request: Request) -> Asked:
        return ask_generation(request.data)

    def _ready(self, request: Request) -> AbstractContextManager[ReadyGeneration]:
        return generation_ready(self.owner_id, self._asked(request))

    @extend_schema(
        summary="Submit a single image",
        request=NewGenerationSerializer,
        parameters=WORK_PARAMETERS,
        responses=work_responses("GenerationOrOutline", GenerationSerializer),
        examples=[
            OpenApiExample(
                "Nested",
                request_only=True,
                value={"prompt": "A red bicycle", "seed": 7, "settings": SETTINGS_EXAMPLE},
            ),
            OpenApiExample(
                "Flat",
                request_only=True,
                value={
                    "prompt": "A red bicycle",
                    "model_id": "black-forest-labs/flux-schnell",
                    "width": 1024,
                    "height": 1024,
                },
            ),
        ],
    )
    @with_dry_run(_asked)
    @idempotent(_ready)
    def create(self, request: Request, ready: ReadyGeneration) -> Response:
        return self.accepted("/api/v1/generations/{}/", ready.submit())

    @extend_schema(
        summary="Hold back a generation that waits",
        request=None,
        responses={200: GenerationSerializer, CONFLICT: REFUSED},
    )
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: uuid.UUID) -> Response:
        return self._control(lifecycle.pause_generation, "paused")

    @extend_schema(
        summary="Put a generation that was held back in line again",
        request=None,
        responses={200: GenerationSerializer, CONFLICT: REFUSED},
    )
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: uuid.UUID) -> Response:
        return self._control(lifecycle.resume_generation, "resumed")

    @extend_schema(
        summary="Cancel a generation: at once, or when its provider has stopped",
        request=None,
        responses={200: GenerationSerializer, CONFLICT: REFUSED},
    )
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: uuid.UUID) -> Response:
        return self._control(lifecycle.cancel_generation, "cancelled")

    @contextmanager
    def _retrying(self, request: Request, pk: uuid.UUID) -> Iterator[Callable[[], None]]:
        generation = self._own(pk)
        data = data_of(RetryGenerationSerializer, request)
        with control.retrying_generation(generation, data["settings"]) as retry:
            yield retry

    @extend_schema(
        summary="Try a failed or cancelled generation once more",
        request=RetryGenerationSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={200: GenerationSerializer, CONFLICT: REFUSED_OR_KEY_IN_USE},
        examples=[
            OpenApiExample("As it was", request_only=True, value={}),
            OpenApiExample(
                "With another model",
                request_only=True,
                value={"settings": {"model": "black-forest-labs/flux-dev"}},
            ),
        ],
    )
    @action(detail=True, methods=["post"])
    @idempotent(_retrying)
    def retry(self, request: Request, retry: Callable[[], None], pk: uuid.UUID) -> Response:
        retry()
        return self.as_it_is(pk)

    @extend_schema(
        summary="Delete a single generation with its images; if it runs, it is cancelled",
        responses={
            204: None,
            CONFLICT: OpenApiResponse(
                ProblemSerializer,
                description="It is part of a batch: `part_of_batch`; or one of its images is "
                "being published: `being_published`.",
            ),
        },
    )
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        generation = self._own(pk)
        if generation.batch_id is not None:
            raise PartOfBatch
        if not lifecycle.delete_generation(generation=generation):
            self._own(pk)
            raise BeingPublished("One of its images is being published.")
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _own(self, pk: uuid.UUID) -> Generation:
        own = Generation.objects.owned_by(self.owner_id).select_related("batch")
        return get_object_or_404(own, pk=pk)

    def _control(self, act: Callable[..., bool], done: str) -> Response:
        pk = self.kwargs["pk"]
        generation = self._own(pk)
        data_of(NothingSerializer, self.request)
        if not act(generation=generation):
            raise control.generation_refusal(self._own(pk), done)
        return self.as_it_is(pk)


def describe(offer: Offer) -> dict[str, Any]:
    description = offer.model.describe()
    reason = unavailable_reason(offer.model)
    description["settings"] = description.pop("fields")
    return {
        **description,
        "available": not reason,
        "unavailable_reason": reason,
        "enabled": offer.is_enabled,
        "notes": offer.notes,
    }


class ModelListView(StrictView):
    @extend_schema(
        operation_id="v1_models_list",
        summary="The catalogue of models",
        responses=ModelListSerializer,
    )
    def get(self, request: Request) -> Response:
        models = [describe(offer) for offer in offers().values()]
        return Response({"next": None, "previous": None, "results": models})


class ModelView(StrictView):
    @extend_schema(
        summary="One model",
        responses=ModelSerializer,
        parameters=[
            OpenApiParameter("owner", str, OpenApiParameter.PATH),
            OpenApiParameter("name", str, OpenApiParameter.PATH),
        ],
    )
    def get(self, request: Request, owner: str, name: str) -> Response:
        offer = offers().get(f"{owner}/{name}")
        if offer is None:
            raise Http404
        return Response(describe(offer))
