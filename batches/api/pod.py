"""Routes of print-on-demand clients: their names for what the API has, without trailing slashes.

They ask every model for the same, 4500 x 5400 pixels in 30 steps; `POST /api/generate` makes of
that what the chosen model can do, and says so in `mapped`. `POST /functions/v1/start-generation`
is as strict as `POST /api/v1/generations/`.
"""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from django.db.models import QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django_filters import rest_framework as filters
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
)
from rest_framework import serializers
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from batches.api.dry_run import with_dry_run
from batches.api.idempotency import HEADERS as IDEMPOTENCY_HEADERS
from batches.api.idempotency import idempotent
from batches.api.publishing import publish, status_of
from batches.api.serializers import ItemSerializer, RowSerializer
from batches.api.views import (
    CONFLICT,
    KEY_IN_USE,
    WORK_PARAMETERS,
    OwnedView,
    StrictQuery,
    WorkView,
    data_of,
    work_responses,
)
from batches.catalogue import get_model
from batches.curation import Action, Selection, act_on_images
from batches.forms import (
    GenerateSerializer,
    NothingSerializer,
    PublishSerializer,
    StartGenerationSerializer,
    WaitField,
)
from batches.intake import DEFAULT_MODEL, Problem
from batches.models import (
    BATCH_TERMINAL,
    GENERATION_TERMINAL,
    Batch,
    Generation,
    Image,
    PublicationStatus,
    ReviewStatus,
)
from batches.publications import PublishRequest
from batches.signing import signed_url
from batches.submission import (
    Asked,
    ReadyBatch,
    ReadyGeneration,
    ask_batch_within,
    ask_generation,
    batch_ready,
    generation_ready,
)
from generation.nearest import nearest

PROCESSING = "processing"
STATUSES = (PROCESSING, "completed", "partial", "failed", "cancelled")
STATUSES_OF_ONE = (PROCESSING, "completed", "failed", "cancelled")
# Where a problem stands in a body of these clients.
NAMES = {
    "model": "model_id",
    "guidance_scale": "cfg_scale",
    "text": "prompt",
    "prompts": "batch_size",
}


class PrintImageSerializer(RowSerializer):
    """URLs are signed and expire; ask again for fresh ones."""

    url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()
    prompt = serializers.CharField(source="generation.prompt", read_only=True)
    seed = serializers.IntegerField(source="generation.seed", allow_null=True, read_only=True)
    status = serializers.ChoiceField(
        ReviewStatus.choices, source="review_status", read_only=True, help_text="Of its review."
    )

    class Meta:
        model = Image
        fields = (
            "id",
            "url",
            "thumbnail_url",
            "prompt",
            "seed",
            "width",
            "height",
            "status",
            "created_at",
        )
        read_only_fields = fields

    def get_url(self, image: Image) -> str:
        return signed_url(self.context["base_url"], image.pk, "file")

    def get_thumbnail_url(self, image: Image) -> str:
        return signed_url(self.context["base_url"], image.pk, "thumbnail")


MAPPED = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"asked": {}, "used": {}},
        "required": ["asked", "used"],
    },
}


class PrintBatchSerializer(serializers.Serializer):
    """A batch as print-on-demand clients know it."""

    status = serializers.SerializerMethodField(
        help_text="`processing` also stands for what is pending, scheduled or paused."
    )
    batch_id = serializers.UUIDField(source="pk")
    batch_size = serializers.IntegerField(source="total_count")
    success_count = serializers.IntegerField(source="completed_count")
    failed_count = serializers.IntegerField()
    prompt = serializers.SerializerMethodField(help_text="Of the first image.")
    images = serializers.SerializerMethodField(help_text="What there is so far, in order.")
    message = serializers.SerializerMethodField()
    mapped = serializers.SerializerMethodField(
        help_text="What the model was asked for in place of what it cannot do, by field. `used` is "
        "null where it is left to the model, or not known before."
    )

    def to_representation(self, instance: Batch) -> dict[str, Any]:
        self._first = instance.generations.order_by("index").first()
        return super().to_representation(instance)

    @extend_schema_field(serializers.ChoiceField(STATUSES))
    def get_status(self, batch: Batch) -> str:
        return batch.status if batch.status in BATCH_TERMINAL else PROCESSING

    def get_prompt(self, batch: Batch) -> str:
        return self._first.prompt if self._first else ""

    @extend_schema_field(PrintImageSerializer(many=True))
    def get_images(self, batch: Batch) -> Any:
        images = Image.objects.filter(generation__batch=batch).select_related("generation")
        in_order = images.order_by("generation__index", "index")
        return PrintImageSerializer(in_order, many=True, context=self.context).data

    def get_message(self, batch: Batch) -> str:
        parts = [f"{batch.completed_count} of {batch.total_count} are made"]
        counts = {"failed": batch.failed_count, "cancelled": batch.cancelled_count}
        parts += [f"{count} {name}" for name, count in counts.items() if count]
        return ", ".join(parts) + "."

    @extend_schema_field(MAPPED)
    def get_mapped(self, batch: Batch) -> dict[str, Any]:
        mapped = self._first.metadata.get("mapped") if self._first else None
        # Any other client may have put something of its own there.
        if not isinstance(mapped, dict):
            return {}
        return {
            name: one
            for name, one in mapped.items()
            if isinstance(one, dict) and one.keys() == {"asked", "used"}
        }


class StartedSerializer(ItemSerializer):
    """A single image on its way; `image` and `error` are null until then."""

    generation_id = serializers.UUIDField(source="pk", read_only=True)
    status = serializers.SerializerMethodField()  # type: ignore[assignment]

    class Meta(ItemSerializer.Meta):
        fields = ("generation_id", "status", "image", "error")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]

    @extend_schema_field(serializers.ChoiceField(STATUSES_OF_ONE))
    def get_status(self, generation: Generation) -> str:
        return generation.status if generation.status in GENERATION_TERMINAL else PROCESSING


class ApprovedSerializer(serializers.Serializer):
    status = serializers.ChoiceField(ReviewStatus.choices, source="review_status")
    image_id = serializers.UUIDField(source="pk")
    approved_at = serializers.DateTimeField(source="reviewed_at")


class PublishedSerializer(serializers.Serializer):
    status = serializers.ChoiceField(PublicationStatus.choices)
    publication_id = serializers.UUIDField(source="pk")
    image_id = serializers.UUIDField()
    channel = serializers.CharField()
    product_type = serializers.CharField()
    title = serializers.CharField()
    url = serializers.CharField(source="remote_url", help_text="At the channel; empty until then.")


def place(field: str) -> str:
    """Where a field of a batch's body stands in that of these clients."""
    parts = [part for part in field.split(".") if part != "settings"]
    own = parts[2:] if parts[0] == "prompts" and len(parts) > 2 else parts
    return ".".join([NAMES.get(own[0], own[0]), *own[1:]]) if own else field


def body_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked, as the body of `POST /api/v1/batches/`, for what the model can do.

    What could not be kept of it stands in each prompt's metadata.
    """
    asked = {
        "width": fields["width"],
        "height": fields["height"],
        "steps": fields["steps"],
        "guidance_scale": fields["cfg_scale"],
        "seed": fields["seed"],
    }
    settings: dict[str, Any] = {"model": fields.get("model_id", DEFAULT_MODEL)}
    metadata: dict[str, Any] = {}
    if model := get_model(settings["model"]):
        asked, mapped = nearest(model, asked)
        if mapped:
            metadata["mapped"] = {
                place(name): {"asked": before, "used": used}
                for name, (before, used) in mapped.items()
            }
    seed = asked.pop("seed", None)
    settings |= asked
    if "resize" in fields:
        size = {"width": fields["width"], "height": fields["height"]}
        settings["resize"] = {"mode": fields["resize"], **size}
    prompts = [
        {"text": fields["prompt"], "metadata": metadata} for _ in range(fields["batch_size"])
    ]
    if seed is not None:
        prompts[0]["seed"] = seed
    names = ("style", "genre", "name", "tags")
    return {"prompts": prompts, "settings": settings, **{name: fields[name] for name in names}}


class GenerateView(WorkView):
    serializer_class = PrintBatchSerializer
    queryset = Batch.objects.none()

    def _asked(self, request: Request) -> Asked:
        asked = ask_batch_within(body_of(data_of(GenerateSerializer, request)), place)
        # What is wrong with each of the prompts is wrong with the one that was given.
        told = {(one.field, one.code): one for one in asked.problems}
        return replace(asked, plan=list(told.values())) if told else asked

    def _ready(self, request: Request) -> AbstractContextManager[ReadyBatch]:
        return batch_ready(self.owner_id, self._asked(request))

    @extend_schema(
        operation_id="generate",
        summary="Submit variations of one prompt for a print",
        request=GenerateSerializer,
        parameters=WORK_PARAMETERS,
        responses=work_responses("PrintBatchOrOutline", PrintBatchSerializer),
        examples=[
            OpenApiExample(
                "Variations",
                request_only=True,
                value={"prompt": "A fox, flat vector art", "batch_size": 4, "style": "retro"},
            ),
            OpenApiExample(
                "Stored in the size of the print",
                request_only=True,
                value={
                    "prompt": "A fox, flat vector art",
                    "width": 4500,
                    "height": 5400,
                    "seed": 7,
                    "resize": "upscale",
                },
            ),
        ],
    )
    @with_dry_run(_asked)
    @idempotent(_ready)
    def post(self, request: Request, ready: ReadyBatch) -> Response:
        return self.accepted("/api/batch/{}", ready.submit())

    def seconds_to_wait(self) -> int:
        data = self.request.data
        assert isinstance(data, dict)  # else it was refused
        asked_s = WaitField().to_internal_value(data.get("wait", False))
        return asked_s or super().seconds_to_wait()


class PrintBatchView(OwnedView):
    serializer_class = PrintBatchSerializer
    queryset = Batch.objects.none()

    @extend_schema(operation_id="batch_retrieve", summary="Follow a batch for a print")
    def get(self, request: Request, pk: uuid.UUID) -> Response:
        batch = get_object_or_404(Batch.objects.owned_by(self.owner_id), pk=pk)
        return Response(self.get_serializer(batch).data)


class PrintImageFilter(filters.FilterSet):
    class Meta:
        form = StrictQuery

    status = filters.ChoiceFilter(field_name="review_status", choices=ReviewStatus.choices)
    batch_id = filters.UUIDFilter(field_name="batch_id")


class PrintImagesView(OwnedView, ListAPIView):
    serializer_class = PrintImageSerializer
    filterset_class = PrintImageFilter
    queryset = Image.objects.none()

    def get_queryset(self) -> QuerySet[Image]:
        return Image.objects.owned_by(self.owner_id).select_related("generation")

    @extend_schema(operation_id="images_list", summary="List your images, newest first")
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.list(request, *args, **kwargs)


class OwnImageView(OwnedView):
    queryset = Image.objects.none()

    def own_image(self, pk: uuid.UUID) -> Image:
        return get_object_or_404(Image.objects.owned_by(self.owner_id), pk=pk)


class ApproveView(OwnImageView):
    serializer_class = ApprovedSerializer

    @contextmanager
    def _nothing_else(self, request: Request, pk: uuid.UUID) -> Iterator[None]:
        self.own_image(pk)
        data_of(NothingSerializer, request)
        yield

    @extend_schema(
        operation_id="approve",
        summary="Approve an image, so that it can be published",
        request=None,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={200: ApprovedSerializer, CONFLICT: KEY_IN_USE},
    )
    @idempotent(_nothing_else)
    def post(self, request: Request, _: None, pk: uuid.UUID) -> Response:
        try:
            act_on_images(
                owner_id=self.owner_id, selection=Selection(ids=[pk]), action=Action.APPROVE
            )
        except Image.DoesNotExist:
            raise Http404 from None
        return Response(self.get_serializer(self.own_image(pk)).data)


class PublishView(OwnImageView):
    serializer_class = PublishedSerializer

    @contextmanager
    def _request(self, request: Request, pk: uuid.UUID) -> Iterator[PublishRequest]:
        self.own_image(pk)
        yield PublishRequest(**data_of(PublishSerializer, request))

    @extend_schema(
        operation_id="publish",
        summary="Publish an approved image as a product",
        request=PublishSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={
            200: OpenApiResponse(PublishedSerializer, description="It is there, or on its way."),
            202: OpenApiResponse(PublishedSerializer, description="On its way."),
            CONFLICT: KEY_IN_USE,
        },
    )
    @idempotent(_request)
    def post(self, request: Request, asked: PublishRequest, pk: uuid.UUID) -> Response:
        (taken,) = publish(self.owner_id, [pk], asked, at="image_id")
        return Response(self.get_serializer(taken.publication).data, status=status_of([taken]))


class StartGenerationView(WorkView):
    serializer_class = StartedSerializer
    queryset = Generation.objects.none()

    def _asked(self, request: Request) -> Asked:
        asked = ask_generation(request.data, StartGenerationSerializer)
        if "cfg_scale" not in request.data:
            return asked
        plan = [
            replace(one, field="cfg_scale")
            if isinstance(one, Problem) and one.field == "guidance_scale"
            else one
            for one in asked.plan
        ]
        return replace(asked, plan=plan)

    def _ready(self, request: Request) -> AbstractContextManager[ReadyGeneration]:
        return generation_ready(self.owner_id, self._asked(request))

    @extend_schema(
        operation_id="start_generation",
        summary="Start a single image",
        request=StartGenerationSerializer,
        parameters=WORK_PARAMETERS,
        responses=work_responses("StartedOrOutline", StartedSerializer),
        examples=[
            OpenApiExample(
                "A picture",
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
    def post(self, request: Request, ready: ReadyGeneration) -> Response:
        return self.accepted("/functions/v1/generations/{}", ready.submit())


class StartedView(OwnedView):
    serializer_class = StartedSerializer
    queryset = Generation.objects.none()

    @extend_schema(operation_id="generation_retrieve", summary="Follow a single image")
    def get(self, request: Request, pk: uuid.UUID) -> Response:
        own = Generation.objects.owned_by(self.owner_id).with_images()
        return Response(self.get_serializer(get_object_or_404(own, pk=pk)).data)
