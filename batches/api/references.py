"""The REST API of reference images: upload, list, delete."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
    extend_schema_view,
)
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from batches import references
from batches.api.authentication import BearerAuthentication
from batches.api.errors import CONTENT_TYPE, ReferenceInUse
from batches.api.files import base_url
from batches.api.idempotency import HEADERS as IDEMPOTENCY_HEADERS
from batches.api.idempotency import idempotent
from batches.api.parsers import BoundedJSONParser
from batches.api.serializers import ProblemSerializer, RowSerializer
from batches.api.uploads import UploadParser
from batches.api.views import CONFLICT, KEY_IN_USE, CreatedFilter, OwnedView, data_of
from batches.forms import ReferenceNameSerializer, StrictSerializer
from batches.intake import sources_of
from batches.models import Reference
from batches.planning import collected
from batches.references import Collected, Upload, Wanted
from batches.signing import signed_url


class ReferenceSerializer(RowSerializer):
    """A picture that others can be made from. URLs are signed and expire."""

    url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField(
        help_text="WebP, at most 256 pixels wide and high."
    )

    class Meta:
        model = Reference
        fields = (
            "id",
            "url",
            "thumbnail_url",
            "width",
            "height",
            "format",
            "size_bytes",
            "sha256",
            "created_at",
        )
        read_only_fields = fields

    def get_url(self, reference: Reference) -> str:
        return self._signed(reference, "file")

    def get_thumbnail_url(self, reference: Reference) -> str:
        return self._signed(reference, "thumbnail")

    def _signed(self, reference: Reference, part: str) -> str:
        return signed_url(self.context["base_url"], reference.pk, part, collection="references")


@extend_schema_field(OpenApiTypes.BINARY)
class UploadField(serializers.Field):
    """A file of a form, see `UploadParser`."""

    default_error_messages = {"invalid": "Must be a file of a form."}  # noqa: RUF012

    def to_internal_value(self, data: Any) -> Upload:
        if not isinstance(data, Upload):
            self.fail("invalid")
        return data


class NewUploadSerializer(StrictSerializer):
    file = UploadField()


class NewReferenceSerializer(ReferenceNameSerializer):
    """An image that was made here, by its id, or the URL of a picture, which we fetch."""

    id = None  # type: ignore[assignment]


@extend_schema_view(
    list=extend_schema(summary="List your reference images, newest first"),
    retrieve=extend_schema(summary="One reference image"),
)
class ReferenceView(mixins.ListModelMixin, mixins.RetrieveModelMixin, OwnedView, GenericViewSet):
    # Without a session's: its check against forgery would read the form before our parser.
    authentication_classes = (BearerAuthentication,)
    parser_classes = (BoundedJSONParser, UploadParser)
    serializer_class = ReferenceSerializer
    filterset_class = CreatedFilter
    queryset = Reference.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Reference]:
        return Reference.objects.owned_by(self.owner_id)

    @contextmanager
    def _collected(self, request: Request) -> Iterator[tuple[Wanted, Collected]]:
        is_form = request.content_type.startswith(UploadParser.media_type)
        form = data_of(NewUploadSerializer if is_form else NewReferenceSerializer, request)
        ((place, value),) = form.items()
        wanted: Wanted
        wanted = value if isinstance(value, Upload) else sources_of({"references": [form]})[0]
        looked_up = references.look_up(self.owner_id, [wanted])
        with collected(looked_up, {place: wanted}) as pictures:
            yield wanted, pictures

    @extend_schema(
        summary="Upload a reference image, or have it fetched",
        description="A picture whose very bytes are there already is not stored again: 200.",
        request={
            "application/json": NewReferenceSerializer,
            "multipart/form-data": NewUploadSerializer,
        },
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={
            200: OpenApiResponse(ReferenceSerializer, description="It was there already."),
            201: OpenApiResponse(ReferenceSerializer, description="Stored."),
            CONFLICT: KEY_IN_USE,
            (415, CONTENT_TYPE): OpenApiResponse(
                ProblemSerializer, description="The body is neither JSON nor a form."
            ),
            (503, CONTENT_TYPE): OpenApiResponse(
                ProblemSerializer,
                description="`busy`: too many are being taken in. `storage_unavailable`, "
                "`database_unavailable`. `Retry-After` says when to try again.",
            ),
        },
        examples=[
            OpenApiExample(
                "From the web",
                request_only=True,
                media_type="application/json",
                value={"url": "https://images.example/fox.png"},
            ),
        ],
    )
    @idempotent(_collected)
    def create(self, request: Request, ready: tuple[Wanted, Collected]) -> Response:
        wanted, pictures = ready
        with pictures.added() as added:
            reference, is_new = added[wanted]
        return Response(
            self.get_serializer(reference).data,
            status=status.HTTP_201_CREATED if is_new else status.HTTP_200_OK,
            headers={"Location": f"{base_url(request)}/api/v1/references/{reference.pk}/"},
        )

    @extend_schema(
        summary="Delete a reference image that nothing is made from",
        responses={
            204: None,
            CONFLICT: OpenApiResponse(
                ProblemSerializer, description="A generation is made from it."
            ),
        },
    )
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        if not references.delete(self.get_object()):
            raise ReferenceInUse
        return Response(status=status.HTTP_204_NO_CONTENT)
