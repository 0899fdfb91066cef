"""Images to take away, as a ZIP that is made while it is sent."""

import uuid
from collections.abc import Iterator
from typing import Any

from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.utils import timezone
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request

from batches.api.errors import CONTENT_TYPE
from batches.api.images import ImageFilterSet, asked_images
from batches.api.parameters import takes
from batches.api.serializers import ProblemSerializer
from batches.api.views import OwnedView
from batches.exports import (
    DEFAULT_NAMES,
    NAMES_MAX_LENGTH,
    PLACEHOLDERS,
    Page,
    batch_images,
    begin_zip,
    chosen_images,
    found_images,
    read_names,
    zip_name,
)
from batches.forms import IdField, ShortListField, StrictSerializer, TextField
from batches.intake import Problem, Refused
from batches.models import Batch, Image
from batches.submission import read_form

ZIP = "application/zip"
# Some servers take no longer addresses.
IDS_MAX = 200
ABOUT = (
    "The ZIP is made while it is sent: there is no length in advance, and where the connection is "
    "cut before its end, it is no ZIP. `manifest.json`, its last file, tells of each image what it "
    "is and where it came from; `file` is null where its file could not be had, and `problem` says "
    "why: `missing` or `damaged`. `made_width` and `made_height` are the model's, where the image "
    "was resized. `cost_usd` is that of the generation, all its images together."
)
NAMES_HELP = (
    "How files are called, in folders if you like. Placeholders: "
    + ", ".join(f"`{{{one}}}`" for one in PLACEHOLDERS)
    + ". `number` counts the files of the ZIP from 1; `index` is the place in the batch, `output` "
    "that among the images of one generation, both from 0. Numbers may have leading zeros "
    "(`{index:03}`). Values lose what file systems do not take, the ending is always the format's, "
    "and of equal names all but one get the image's id."
)


class IdsField(ShortListField):
    """Ids that are separated by commas, as they stand in an address."""

    def to_internal_value(self, data: Any) -> list[uuid.UUID]:
        return super().to_internal_value(data.split(",") if data else [])


class ExportSerializer(StrictSerializer):
    names = TextField(
        required=False, default=DEFAULT_NAMES, max_length=NAMES_MAX_LENGTH, help_text=NAMES_HELP
    )


class ImageExportSerializer(ExportSerializer):
    ids = IdsField(
        child=IdField(),
        required=False,
        allow_empty=False,
        max_length=IDS_MAX,
        help_text=f"Of these images only, at most {IDS_MAX}, all of them yours.",
    )


ANSWERS = {
    (200, ZIP): OpenApiTypes.BINARY,
    (422, CONTENT_TYPE): OpenApiResponse(
        ProblemSerializer, description="There are no images (`no_images`), or a bad parameter."
    ),
    (503, CONTENT_TYPE): OpenApiResponse(
        ProblemSerializer,
        description="Too many ZIPs are being fetched, or the files or the database are away.",
    ),
}


def zip_response(
    request: Request, pages: Iterator[Page], names: str, stem: str
) -> HttpResponseBase:
    pieces = begin_zip(pages, read_names(names))
    headers = {
        "Content-Disposition": content_disposition_header(True, zip_name(stem)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    if request.method == "HEAD":
        return HttpResponse(content_type=ZIP, headers=headers)
    return StreamingHttpResponse(pieces, content_type=ZIP, headers=headers)


class ImageExportView(OwnedView):
    filterset_class = ImageFilterSet
    queryset = Image.objects.none()

    @extend_schema(
        operation_id="v1_images_export",
        summary="Your images, or some of them, as a ZIP",
        description=ABOUT,
        parameters=[ImageExportSerializer],
        filters=True,
        responses={
            **ANSWERS,
            (404, CONTENT_TYPE): OpenApiResponse(
                ProblemSerializer, description="Some of `ids` are not there, or not yours."
            ),
        },
    )
    @takes(ImageExportSerializer, ImageFilterSet)
    def get(self, request: Request) -> HttpResponseBase:
        asked = request.query_params.dict()
        filters = [name for name in asked if name in ImageFilterSet.base_filters]
        others = {name: asked[name] for name in asked if name not in filters}
        form = read_form(ImageExportSerializer, others).validated_data
        pages: Iterator[Page] | None
        if "ids" in form:
            if filters:
                detail = f"`{filters[0]}` cannot be combined with `ids`."
                raise Refused([Problem(filters[0], "conflict", detail)])
            pages = chosen_images(self.owner_id, form["ids"])
            if pages is None:
                raise Http404
        else:
            gallery = asked_images(request)
            pages = found_images(self.owner_id, gallery.wanted, newest_first=gallery.newest_first)
        return zip_response(request, pages, form["names"], f"images-{timezone.now():%Y-%m-%d}")


class BatchExportView(OwnedView):
    @extend_schema(
        operation_id="v1_batches_export",
        summary="All images of a batch as a ZIP",
        description=ABOUT,
        parameters=[ExportSerializer],
        responses=ANSWERS,
    )
    @takes(ExportSerializer)
    def get(self, request: Request, pk: uuid.UUID) -> HttpResponseBase:
        batch = get_object_or_404(Batch.objects.owned_by(self.owner_id), pk=pk)
        form = read_form(ExportSerializer, request.query_params.dict())
        names = form.validated_data["names"]
        return zip_response(request, batch_images(batch), names, batch.name or str(batch.pk))
