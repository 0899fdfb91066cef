"""Stored pictures over HTTP, by a signed address or to their owner.

Where they are in S3, whoever may have one is sent there, by an address that S3 checks itself.
"""

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.core.files.storage import default_storage
from django.db.models import QuerySet
from django.db.models.fields.files import FieldFile
from django.http import FileResponse, Http404, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import NotAuthenticated
from rest_framework.permissions import AllowAny
from rest_framework.request import Request

from batches.api.parameters import StrictView, takes
from batches.models import Image, Reference
from batches.signing import URL_LIFETIME_S, is_signed

CACHE_CONTROL = f"private, max-age={URL_LIFETIME_S}"
RENDITION_FORMAT = "webp"
_CONTENT_TYPES = {
    "webp": "image/webp",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "avif": "image/avif",
    "svg": "image/svg+xml",
}
# What a browser may show. Anything else is only to be kept: SVG can run scripts.
_SHOWN = frozenset({"webp", "png", "jpeg", "avif"})
# What a provider or a user made is never run, whatever is hidden in it.
_HARMLESS = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


def base_url(request: Request) -> str:
    return settings.PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")


class FileView(StrictView):
    """The bytes of a stored picture, or of a smaller rendition of it."""

    permission_classes = (AllowAny,)
    model: ClassVar[type[Image] | type[Reference]]
    collection: ClassVar[str]
    part = "file"

    @extend_schema(
        parameters=[
            OpenApiParameter("signature", str, description="As in the address that was given."),
        ],
        responses={
            (200, "image/*"): OpenApiTypes.BINARY,
            302: OpenApiResponse(
                description="It is in S3, at an address that works for five minutes."
            ),
        },
    )
    @takes("signature")
    def get(self, request: Request, pk: uuid.UUID) -> HttpResponseBase:
        row = self._visible(request, pk).filter(pk=pk).first()
        if row is None:
            raise Http404
        stored, stored_format = _stored(row, self.part)
        filename = f"{row.pk}.{stored_format}"
        if settings.STORAGE_BUCKET:
            return _at_s3(stored, stored_format, filename, request.method)
        return _streamed(stored, stored_format, filename)

    def _visible(self, request: Request, pk: uuid.UUID) -> QuerySet[Image] | QuerySet[Reference]:
        signature = request.query_params.get("signature")
        if signature is not None:
            if not is_signed(signature, pk, self.part, collection=self.collection):
                raise Http404
            return self.model.objects.all()
        if not request.user.is_authenticated:
            raise NotAuthenticated
        return self.model.objects.owned_by(request.user.pk)


class ImageFileView(FileView):
    model = Image
    collection = "images"


class ReferenceFileView(FileView):
    model = Reference
    collection = "references"


def _stored(row: Image | Reference, part: str) -> tuple[FieldFile, str]:
    """A part and its format. Images of before there were previews show themselves instead."""
    rendition: FieldFile = getattr(row, part)
    if part != "file" and rendition:
        return rendition, RENDITION_FORMAT
    return row.file, row.format


def _content_type(stored_format: str) -> str:
    return _CONTENT_TYPES.get(stored_format, "application/octet-stream")


def _streamed(stored: FieldFile, stored_format: str, filename: str) -> FileResponse:
    try:
        opened = stored.open("rb")
    except FileNotFoundError:
        raise Http404 from None
    return FileResponse(
        opened,
        as_attachment=stored_format not in _SHOWN,
        filename=filename,
        content_type=_content_type(stored_format),
        headers={"Cache-Control": CACHE_CONTROL, **_HARMLESS},
    )


def _at_s3(
    stored: FieldFile, stored_format: str, filename: str, method: str | None
) -> HttpResponseRedirect:
    s3: Any = default_storage
    url = s3.url(
        stored.name,
        parameters={
            "ResponseContentType": _content_type(stored_format),
            "ResponseContentDisposition": content_disposition_header(
                stored_format not in _SHOWN, filename
            ),
            "ResponseCacheControl": CACHE_CONTROL,
        },
        expire=URL_LIFETIME_S,
        http_method=method,
    )
    # Kept for a while itself, it would lead to an address that has expired.
    return HttpResponseRedirect(url, headers={"Cache-Control": "no-store", **_HARMLESS})
