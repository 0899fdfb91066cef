"""The REST API of publishing: channels and accounts at them, publications."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from django.db.models import QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django_filters import rest_framework as filters
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
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

from batches import publications, sealing
from batches.api.errors import (
    CONTENT_TYPE,
    AccountInUse,
    CheckFailed,
    InvalidTransition,
    TooBusy,
)
from batches.api.idempotency import HEADERS as IDEMPOTENCY_HEADERS
from batches.api.idempotency import idempotent
from batches.api.serializers import (
    ErrorSerializer,
    ProblemSerializer,
    RowSerializer,
    TransitionProblemSerializer,
)
from batches.api.views import (
    CONFLICT,
    KEY_IN_USE,
    CreatedFilter,
    OwnedView,
    StatusesFilter,
    data_of,
)
from batches.forms import (
    AccountSerializer,
    NothingSerializer,
    PublishManySerializer,
    PublishSerializer,
)
from batches.intake import Problem, Refused
from batches.models import (
    CallOutcome,
    ChannelAccount,
    ChannelName,
    Image,
    Publication,
    PublicationAttempt,
    PublicationStatus,
)
from batches.pools import STOPPING
from batches.publications import Outcome, PublishRequest, Taken
from batches.signing import signed_url
from generation.http import HttpClient
from generation.provider import Failure
from publishing import products

# Of a credential so much is shown, and only of one that is much longer.
HINT_LENGTH, HINTED_MIN_LENGTH = 4, 16
# Checks at a time in one process: each holds a thread of the web until the channel has answered.
CHECKS_MAX = 2
# Of a publication that has waited for long there are some hundred.
CALLS_SHOWN = 100
NOT_NOW = OpenApiResponse(ProblemSerializer, description="It is not possible as things stand.")
RETRY_REFUSED = OpenApiResponse(
    TransitionProblemSerializer,
    description="It has not failed, or a request with the same `Idempotency-Key` is in progress.",
)
NAME = OpenApiParameter("name", str, OpenApiParameter.PATH, enum=list(ChannelName.values))
EXAMPLE = {
    "channel": "printify",
    "product_type": "t-shirt",
    "title": "A fox",
    "description": "Drawn in flat colours.",
    "tags": ["fox"],
    "price_usd": "24.50",
}


# --- What is shown ------------------------------------------------------------------------------


class ProductTypeSerializer(serializers.Serializer):
    name = serializers.CharField()
    title = serializers.CharField()
    price_usd = serializers.CharField(help_text="Decimal; where a request names no price.")


class AccountShownSerializer(RowSerializer):
    """An account at a channel, without its credentials."""

    options = serializers.DictField(read_only=True)
    credentials_hint = serializers.SerializerMethodField(
        help_text="The last characters of each credential."
    )
    stopped_by = serializers.CharField(
        read_only=True,
        help_text="Not empty: the channel has refused it, and nothing is published until it is "
        "given anew.",
    )

    class Meta:
        model = ChannelAccount
        fields = (
            "channel",
            "options",
            "credentials_hint",
            "stopped_by",
            "blocked_until",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.DictField(child=serializers.CharField()))
    def get_credentials_hint(self, account: ChannelAccount) -> dict[str, str]:
        credentials = sealing.unseal(account.sealed_credentials) or {}
        return {
            name: value[-HINT_LENGTH:] if len(value) >= HINTED_MIN_LENGTH else ""
            for name, value in credentials.items()
        }


class ChannelSerializer(serializers.Serializer):
    """Where images can be published."""

    name = serializers.ChoiceField(ChannelName.choices)
    title = serializers.CharField()
    product_types = ProductTypeSerializer(many=True, help_text="With those of your own account.")
    account = AccountShownSerializer(allow_null=True, help_text="Yours; null: you have none.")


class ChannelListSerializer(serializers.Serializer):
    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = ChannelSerializer(many=True)


class ShopSerializer(serializers.Serializer):
    id = serializers.CharField()
    title = serializers.CharField()


class CheckSerializer(serializers.Serializer):
    """Whose account it is."""

    name = serializers.CharField()
    shops = ShopSerializer(many=True)


class PublicationSerializer(RowSerializer):
    """An image as a product of a channel. URLs of ours are signed and expire."""

    image_id = serializers.UUIDField(allow_null=True, read_only=True, help_text="Null: deleted.")
    thumbnail_url = serializers.SerializerMethodField()
    status = serializers.ChoiceField(PublicationStatus.choices, read_only=True)
    remote_ids = serializers.DictField(child=serializers.CharField(), read_only=True)
    remote_url = serializers.CharField(read_only=True, help_text="Empty until it is there.")
    error = serializers.SerializerMethodField()
    attempt_count = serializers.IntegerField(read_only=True, help_text="Calls that were begun.")
    next_try_at = serializers.SerializerMethodField(help_text="While it is `publishing`.")

    class Meta:
        model = Publication
        fields = (
            "id",
            "image_id",
            "thumbnail_url",
            "channel",
            "status",
            "product_type",
            "title",
            "description",
            "tags",
            "price_usd",
            "remote_ids",
            "remote_url",
            "error",
            "attempt_count",
            "next_try_at",
            "created_at",
            "started_at",
            "published_at",
            "finished_at",
            "version",
        )
        read_only_fields = fields

    @extend_schema_field(serializers.URLField(allow_null=True))
    def get_thumbnail_url(self, publication: Publication) -> str | None:
        if publication.image_id is None:
            return None
        return signed_url(self.context["base_url"], publication.image_id, "thumbnail")

    @extend_schema_field(ErrorSerializer(allow_null=True))
    def get_error(self, publication: Publication) -> dict[str, str] | None:
        if not publication.error_code:
            return None
        return {"code": publication.error_code, "message": publication.error_message}

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_next_try_at(self, publication: Publication) -> str | None:
        if publication.status != PublicationStatus.PUBLISHING:
            return None
        return serializers.DateTimeField().to_representation(publication.due_at)


class CallSerializer(RowSerializer):
    """One call that changes something at the channel."""

    outcome = serializers.ChoiceField(CallOutcome.choices, read_only=True)
    error = serializers.SerializerMethodField()

    class Meta:
        model = PublicationAttempt
        fields = ("number", "step", "outcome", "error", "created_at", "finished_at")
        read_only_fields = fields

    @extend_schema_field(ErrorSerializer(allow_null=True))
    def get_error(self, attempt: PublicationAttempt) -> dict[str, str] | None:
        if not attempt.error_class:
            return None
        return {"code": attempt.error_class, "message": attempt.error_message}


class PublicationDetailSerializer(PublicationSerializer):
    """A publication with the last calls that were made for it."""

    attempts = serializers.SerializerMethodField()

    class Meta(PublicationSerializer.Meta):
        fields = (*PublicationSerializer.Meta.fields, "attempts")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]

    @extend_schema_field(CallSerializer(many=True))
    def get_attempts(self, publication: Publication) -> Any:
        last = publication.attempts.order_by("-number")[:CALLS_SHOWN]
        return CallSerializer(reversed(last), many=True).data


class TakenSerializer(serializers.Serializer):
    """What became of one image of a request."""

    image_id = serializers.UUIDField(source="publication.image_id")
    outcome = serializers.ChoiceField(
        [(one.value, one.value) for one in Outcome],
        help_text="`retried`: it had failed before. `exists`: it is there or on its way, and "
        "stays as it is.",
    )
    publication = PublicationSerializer()


class TakenListSerializer(serializers.Serializer):
    results = TakenSerializer(many=True)


# --- Channels -----------------------------------------------------------------------------------


_checks = threading.BoundedSemaphore(CHECKS_MAX)


@cache
def _http() -> HttpClient:
    return HttpClient()


def known_channel(name: str) -> str:
    if name not in ChannelName.values:
        raise Http404
    return name


class ChannelListView(OwnedView):
    queryset = ChannelAccount.objects.none()
    pagination_class = None  # type: ignore[assignment]
    filter_backends = ()

    @extend_schema(
        operation_id="v1_channels_list",
        summary="Where images can be published, as what, and with which of your accounts",
        responses=ChannelListSerializer,
    )
    def get(self, request: Request) -> Response:
        own = {one.channel: one for one in ChannelAccount.objects.owned_by(self.owner_id)}
        channels = [_described(name, own.get(name)) for name in ChannelName.values]
        shown = ChannelSerializer(channels, many=True, context=self.get_serializer_context())
        return Response({"next": None, "previous": None, "results": shown.data})


def _described(name: str, account: ChannelAccount | None) -> dict[str, Any]:
    known = products.product_types(name, account.options if account else {})
    return {
        "name": name,
        "title": ChannelName(name).label,
        "product_types": [{"name": one, **product} for one, product in known.items()],
        "account": account,
    }


class ChannelView(OwnedView):
    serializer_class = AccountShownSerializer
    queryset = ChannelAccount.objects.none()

    def get_object(self) -> ChannelAccount:
        return self.own(self.kwargs["name"])

    def own(self, name: str) -> ChannelAccount:
        own = ChannelAccount.objects.owned_by(self.owner_id)
        return get_object_or_404(own, channel=known_channel(name))

    @extend_schema(
        summary="Your account at a channel", parameters=[NAME], responses=AccountShownSerializer
    )
    def get(self, request: Request, name: str) -> Response:
        return Response(self.get_serializer(self.own(name)).data)

    @extend_schema(
        summary="Give your account at a channel, or give it anew",
        description="It replaces the one that is there. What waits because that was refused goes "
        "on. The credentials are stored encrypted and never shown.",
        parameters=[NAME],
        request=AccountSerializer,
        responses={
            200: OpenApiResponse(AccountShownSerializer, description="Replaced."),
            201: OpenApiResponse(AccountShownSerializer, description="New."),
        },
        examples=[
            OpenApiExample(
                "Printify",
                request_only=True,
                value={"credentials": {"token": "eyJ0…"}, "options": {"shop_id": "1234567"}},
            ),
            OpenApiExample(
                "Shopify",
                request_only=True,
                value={
                    "credentials": {"access_token": "shpat_…"},
                    "options": {"shop": "example.myshopify.com", "status": "DRAFT"},
                },
            ),
        ],
    )
    def put(self, request: Request, name: str) -> Response:
        channel = known_channel(name)
        data = data_of(AccountSerializer, request)
        problems = products.check_account(channel, data["credentials"], data["options"])
        if problems:
            raise Refused([Problem(*problem) for problem in problems])
        account, is_new = publications.set_account(
            owner_id=self.owner_id,
            channel=channel,
            credentials=data["credentials"],
            options=data["options"],
        )
        return Response(
            self.get_serializer(account).data,
            status=status.HTTP_201_CREATED if is_new else status.HTTP_200_OK,
        )

    @extend_schema(
        summary="Forget your account at a channel",
        parameters=[NAME],
        responses={204: None, CONFLICT: NOT_NOW},
    )
    def delete(self, request: Request, name: str) -> Response:
        try:
            publications.delete_account(account=self.own(name))
        except publications.AccountInUse:
            raise AccountInUse from None
        return Response(status=status.HTTP_204_NO_CONTENT)


class ChannelCheckView(ChannelView):
    http_method_names = ("post", "options")

    @extend_schema(
        operation_id="v1_channels_check",
        summary="Ask a channel whether it takes your account",
        description="An account that was stopped goes on when the channel takes it. When it does "
        "not, the answer is 409 with the reason as its code: `auth` and `insufficient_credit`, "
        "which stop it, `not_found` (no such shop), `rate_limited`, `provider_unavailable`.",
        parameters=[NAME],
        request=None,
        responses={200: CheckSerializer, CONFLICT: NOT_NOW},
    )
    def post(self, request: Request, name: str) -> Response:
        account = self.own(name)
        data_of(NothingSerializer, request)
        if not _checks.acquire(blocking=False):
            raise TooBusy("Too many accounts are being checked. Try again in a moment.")
        try:
            answer = _checked(account)
        finally:
            _checks.release()
        if isinstance(answer, Failure):
            if answer.error_class in STOPPING:
                publications.stop_account(account=account, error_class=answer.error_class)
            raise CheckFailed(answer.message, answer.error_class.value)
        publications.resume_account(account=account)
        return Response(CheckSerializer(answer).data)


def _checked(account: ChannelAccount) -> Any:
    channel = publications.open_channel(account, http=_http())
    return channel if isinstance(channel, Failure) else channel.check()


# --- Publications -------------------------------------------------------------------------------


class PublicationFilter(CreatedFilter):
    status = StatusesFilter(choices=PublicationStatus.choices)
    channel = filters.ChoiceFilter(choices=ChannelName.choices)
    image = filters.UUIDFilter(field_name="image_id")


@extend_schema_view(
    list=extend_schema(summary="List what you publish, newest first"),
    retrieve=extend_schema(
        summary="Follow a publication with all its calls", responses=PublicationDetailSerializer
    ),
)
class PublicationView(mixins.ListModelMixin, mixins.RetrieveModelMixin, OwnedView, GenericViewSet):
    serializer_class = PublicationSerializer
    filterset_class = PublicationFilter
    queryset = Publication.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Publication]:
        return Publication.objects.owned_by(self.owner_id)

    def get_serializer_class(self) -> type[Any]:
        is_one = self.action in ("retrieve", "retry")
        return PublicationDetailSerializer if is_one else PublicationSerializer

    @contextmanager
    def _asked(self, request: Request) -> Iterator[tuple[list[uuid.UUID], PublishRequest]]:
        data = data_of(PublishManySerializer, request)
        image_ids = data.pop("image_ids")
        yield image_ids, PublishRequest(**data)

    @extend_schema(
        summary="Publish several images as products of one kind, all of them or none",
        request=PublishManySerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={
            200: OpenApiResponse(
                TakenListSerializer, description="All are there or on their way already."
            ),
            202: OpenApiResponse(TakenListSerializer, description="Stored; they are published."),
            (404, CONTENT_TYPE): OpenApiResponse(
                ProblemSerializer, description="One of them is not there, or not yours."
            ),
            CONFLICT: KEY_IN_USE,
        },
        examples=[
            OpenApiExample(
                "Two images",
                request_only=True,
                value={
                    **EXAMPLE,
                    "title": "A fox, number {index}",
                    "image_ids": [
                        "0b0e9a3e-6f43-4b5c-8d8f-0e7a1f4f2c11",
                        "5d1f0a4c-20f7-4e0e-9a3f-b7a5a4d1e7c2",
                    ],
                },
            )
        ],
    )
    @idempotent(_asked)
    def create(self, request: Request, asked: tuple[list[uuid.UUID], PublishRequest]) -> Response:
        image_ids, wanted = asked
        taken = publish(self.owner_id, image_ids, wanted)
        shown = TakenListSerializer({"results": taken}, context=self.get_serializer_context())
        return Response(shown.data, status=status_of(taken))

    @contextmanager
    def _retrying(self, request: Request, pk: uuid.UUID) -> Iterator[Callable[[], None]]:
        publication = get_object_or_404(self.get_queryset(), pk=pk)
        data_of(NothingSerializer, request)

        def retry() -> None:
            if not publications.retry_publication(publication=publication):
                now = get_object_or_404(self.get_queryset(), pk=pk)
                raise InvalidTransition(
                    f"A {now.status} publication cannot be retried.", current_status=now.status
                )

        yield retry

    @extend_schema(
        summary="Go on with a publication that failed, from where it was",
        request=None,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={200: PublicationDetailSerializer, CONFLICT: RETRY_REFUSED},
    )
    @action(detail=True, methods=["post"])
    @idempotent(_retrying)
    def retry(self, request: Request, retry: Callable[[], None], pk: uuid.UUID) -> Response:
        retry()
        return self.as_it_is(pk)


class ImagePublishView(OwnedView):
    serializer_class = PublicationSerializer
    queryset = Publication.objects.none()

    @contextmanager
    def _asked(self, request: Request, pk: uuid.UUID) -> Iterator[PublishRequest]:
        if not Image.objects.owned_by(self.owner_id).filter(pk=pk).exists():
            raise Http404
        yield PublishRequest(**data_of(PublishSerializer, request))

    @extend_schema(
        summary="Publish an approved image",
        description="Once for each channel: asked for again, it answers with what is there, and "
        "one that failed is tried again as it is asked for now. When its product may be at "
        "Printify already, it can only be retried as it is: `already_made`.",
        request=PublishSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={
            200: OpenApiResponse(
                PublicationSerializer, description="It is there or on its way already."
            ),
            202: OpenApiResponse(PublicationSerializer, description="Stored; it is published."),
            CONFLICT: KEY_IN_USE,
        },
        examples=[OpenApiExample("A T-shirt", request_only=True, value=EXAMPLE)],
    )
    @idempotent(_asked)
    def post(self, request: Request, asked: PublishRequest, pk: uuid.UUID) -> Response:
        (taken,) = publish(self.owner_id, [pk], asked, at="id")
        response = self.accepted("/api/v1/publications/{}/", taken.publication)
        response.status_code = status_of([taken])
        return response


def publish(
    owner_id: int, image_ids: list[uuid.UUID], asked: PublishRequest, *, at: str = "image_ids.{}"
) -> list[Taken]:
    """As `publications.publish_images`. Raises `Http404` for an image that is not the owner's."""
    try:
        return publications.publish_images(
            owner_id=owner_id, image_ids=image_ids, asked=asked, at=at
        )
    except Image.DoesNotExist:
        raise Http404 from None


def status_of(taken: list[Taken]) -> int:
    is_done = all(one.outcome == Outcome.EXISTS for one in taken)
    return status.HTTP_200_OK if is_done else status.HTTP_202_ACCEPTED
