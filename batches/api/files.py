"""Image files over HTTP, by a signed address or to their owner."""

import uuid

from django.conf import settings
from django.core.signing import BadSignature, TimestampSigner
from django.db.models import QuerySet
from django.http import FileResponse, Http404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import NotAuthenticated
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.views import APIView

from batches.api.negotiation import JSONAlways
from batches.models import Image

URL_LIFETIME_S = 300
_CONTENT_TYPES = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
_signer = TimestampSigner(salt="picture.image-file")


def signed_url(base_url: str, image_id: uuid.UUID | str, part: str) -> str:
    """An address of `file` or `thumbnail` that works without a token for `URL_LIFETIME_S`."""
    signature = _signer.sign(f"{image_id}:{part}").split(":", 2)[2]
    return f"{base_url}/api/v1/images/{image_id}/{part}/?signature={signature}"


def base_url(request: Request) -> str:
    return settings.PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")


class ImageFileView(APIView):
    """The bytes of an image, or of its thumbnail."""

    permission_classes = (AllowAny,)
    content_negotiation_class = JSONAlways
    part = "file"

    @extend_schema(
        parameters=[
            OpenApiParameter("signature", str, description="As in the image's `url`."),
        ],
        responses={(200, "image/*"): OpenApiTypes.BINARY},
    )
    def get(self, request: Request, pk: uuid.UUID) -> FileResponse:
        image = self._visible(request, pk).filter(pk=pk).first()
        if image is None:
            raise Http404
        field = image.file if self.part == "file" else image.thumbnail
        image_format = image.format if self.part == "file" else "webp"
        try:
            stored = field.open("rb")
        except FileNotFoundError:
            raise Http404 from None
        return FileResponse(
            stored,
            content_type=_CONTENT_TYPES[image_format],
            filename=f"{image.pk}.{image_format}",
            headers={
                "Cache-Control": f"private, max-age={URL_LIFETIME_S}",
                # What a provider made is never run, whatever is hidden in it.
                "Content-Security-Policy": "sandbox; default-src 'none'",
                "X-Content-Type-Options": "nosniff",
            },
        )

    def _visible(self, request: Request, pk: uuid.UUID) -> QuerySet[Image]:
        signature = request.query_params.get("signature")
        if signature is not None:
            try:
                _signer.unsign(f"{pk}:{self.part}:{signature}", max_age=URL_LIFETIME_S)
            except BadSignature:
                raise Http404 from None
            return Image.objects.all()
        if not request.user.is_authenticated:
            raise NotAuthenticated
        return Image.objects.owned_by(request.user.pk)
