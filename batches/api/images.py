"""The gallery: images found, saved, tagged, reviewed and deleted."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django import forms
from django.db.models import Q, QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django_filters import rest_framework as filters
from django_filters.utils import translate_validation
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

from batches import curation
from batches.api.errors import CONTENT_TYPE, BeingPublished
from batches.api.idempotency import HEADERS as IDEMPOTENCY_HEADERS
from batches.api.idempotency import idempotent
from batches.api.pagination import RecentFirst
from batches.api.parameters import PAGES, takes
from batches.api.serializers import ImageSerializer, ProblemSerializer, RowSerializer
from batches.api.views import (
    CONFLICT,
    KEY_IN_USE,
    CreatedFilter,
    OwnedView,
    StatusesFilter,
    data_of,
)
from batches.curation import Action, Outcome, Result, Selection
from batches.forms import (
    NO_WORDS,
    Q_HELP,
    Q_MAX_LENGTH,
    ChangeImageSerializer,
    ImageActionSerializer,
    ReasonSerializer,
    has_control_characters,
)
from batches.gallery import ImageFilter, has_words, read_page, shown
from batches.intake import Problem, Refused
from batches.models import (
    TAG_LENGTH,
    TAGS_MAX,
    Batch,
    Generation,
    Image,
    Review,
    ReviewStatus,
)
from generation.images import FORMATS

PUBLISHING = OpenApiResponse(
    ProblemSerializer, description="The image is being published: `being_published`."
)
PUBLISHING_OR_KEY_IN_USE = OpenApiResponse(
    ProblemSerializer,
    description="The image is being published: `being_published`; or a request with the same "
    "`Idempotency-Key` is in progress.",
)


# --- What is asked of images, in a query --------------------------------------------------------


ALIKE = ("batch", "generation", "model", "format", "created_after", "created_before", "q")


@extend_schema_field({"type": "boolean"})
class FlagFilter(filters.TypedChoiceFilter):
    def __init__(self, **options: Any) -> None:
        words = ("true", "false")
        super().__init__(
            choices=[(word, word) for word in words], coerce=lambda word: word == "true", **options
        )


class TagsField(forms.MultipleChoiceField):
    """A parameter given once for each tag."""

    widget = forms.MultipleHiddenInput

    def to_python(self, value: Any) -> list[str]:
        return list(dict.fromkeys(tag.strip() for tag in super().to_python(value)))

    def validate(self, value: Any) -> None:
        if len(value) > TAGS_MAX:
            raise forms.ValidationError(f"At most {TAGS_MAX} tags.", code="max_length")
        for tag in value:
            if not 1 <= len(tag) <= TAG_LENGTH or has_control_characters(tag):
                detail = (
                    f"A tag has 1 to {TAG_LENGTH} characters, none of them a control character."
                )
                raise forms.ValidationError(detail, code="invalid")


@extend_schema_field(
    {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": TAG_LENGTH}}
)
class TagsFilter(filters.MultipleChoiceFilter):
    field_class = TagsField


class WordsField(forms.CharField):
    """What is searched for; asks the database whether it holds any word."""

    def clean(self, value: Any) -> str:
        words: str = super().clean(value)
        if words and not has_words(words):
            raise forms.ValidationError(NO_WORDS, code="no_words")
        return words


class WordsFilter(filters.CharFilter):
    field_class = WordsField


class ImageFilterSet(CreatedFilter):
    """The fields of `ImageFilter` as parameters; `wanted` when they are valid."""

    review_status = StatusesFilter(choices=ReviewStatus.choices)
    saved = FlagFilter()
    tag = TagsFilter(help_text="Given several times: all of these.")
    batch = filters.UUIDFilter()
    generation = filters.UUIDFilter()
    model = filters.CharFilter(max_length=200)
    format = filters.ChoiceFilter(choices=[(name, name) for name in sorted(FORMATS)])
    q = WordsFilter(max_length=Q_MAX_LENGTH, help_text=Q_HELP)
    order = filters.ChoiceFilter(
        choices=[("newest", "newest"), ("oldest", "oldest")], help_text="What comes first."
    )

    @property
    def wanted(self) -> ImageFilter:
        given: dict[str, Any] = self.form.cleaned_data
        return ImageFilter(
            **{name: given[name] for name in ALIKE},
            review_status=tuple(dict.fromkeys(given["review_status"] or ())),
            saved=None if given["saved"] == "" else given["saved"],
            tags=tuple(given["tag"]),
        )

    @property
    def newest_first(self) -> bool:
        return bool(self.form.cleaned_data["order"] != "oldest")


def asked_images(request: Request) -> ImageFilterSet:
    """What a query asks of images, checked. Raises ValidationError."""
    asked = ImageFilterSet(request.query_params, Image.objects.none())
    if not asked.is_valid():
        raise translate_validation(asked.errors)
    return asked


class GalleryPages(RecentFirst):
    """Pages of what a filter means, newest or oldest first."""

    wanted: ImageFilter
    owner_id: int
    newest_at_the_top = True

    def is_newest_first(self, request: Request) -> bool:
        return self.newest_at_the_top

    def read(
        self, queryset: QuerySet[Any], beyond: Q, *, newest_first: bool, limit: int
    ) -> list[Any]:
        return read_page(
            queryset,
            self.owner_id,
            self.wanted,
            beyond=beyond,
            newest_first=newest_first,
            limit=limit,
        )


# --- What became of them ------------------------------------------------------------------------


class OutcomeSerializer(serializers.Serializer):
    id = serializers.UUIDField()
    outcome = serializers.ChoiceField([(str(one), str(one)) for one in Result])
    code = serializers.ChoiceField(
        [(one, one) for one in (curation.BEING_PUBLISHED, curation.TOO_MANY_TAGS)],
        required=False,
        help_text="Why it was refused.",
    )


class OutcomesSerializer(serializers.Serializer):
    """What became of each image; ids in their order, others newest first."""

    action = serializers.ChoiceField([(str(one), str(one)) for one in Action])
    done = serializers.IntegerField()
    unchanged = serializers.IntegerField(help_text="It was so already.")
    refused = serializers.IntegerField()
    results = OutcomeSerializer(many=True)


class ReviewSerializer(RowSerializer):
    """One change of an image's review status."""

    status = serializers.ChoiceField(ReviewStatus.choices, read_only=True)
    reviewer = serializers.CharField(
        source="reviewer.username", default=None, allow_null=True, read_only=True
    )

    class Meta:
        model = Review
        fields = ("status", "reason", "reviewer", "created_at")
        read_only_fields = fields


def told(action: Action, outcomes: list[Outcome]) -> dict[str, Any]:
    results = [
        {"id": str(one.id), "outcome": str(one.outcome)} | ({"code": one.code} if one.code else {})
        for one in outcomes
    ]
    counts = {str(result): sum(one.outcome == result for one in outcomes) for result in Result}
    return {"action": str(action), **counts, "results": results}


# --- The views ----------------------------------------------------------------------------------


@extend_schema_view(
    retrieve=extend_schema(summary="One image"),
)
class ImageView(mixins.ListModelMixin, mixins.RetrieveModelMixin, OwnedView, GenericViewSet):
    serializer_class = ImageSerializer
    filterset_class = ImageFilterSet
    pagination_class = GalleryPages
    queryset = Image.objects.none()
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Image]:
        return shown(Image.objects.owned_by(self.owner_id))

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Have the pages made of what is asked for; one image is had by its id alone."""
        if self.action == "list":
            asked = asked_images(self.request)
            pages = self.paginator
            assert isinstance(pages, GalleryPages)
            pages.owner_id, pages.wanted = self.owner_id, asked.wanted
            pages.newest_at_the_top = asked.newest_first
        return queryset

    @extend_schema(
        summary="Find your images",
        description="Images for which all holds that is asked for, newest first.",
    )
    def list(self, request: Request) -> Response:
        return super().list(request)

    @extend_schema(
        summary="Save and tag an image",
        request=ChangeImageSerializer,
        responses={200: ImageSerializer},
        examples=[
            OpenApiExample(
                "Saved, with a tag", request_only=True, value={"is_saved": True, "tags": ["autumn"]}
            )
        ],
    )
    def partial_update(self, request: Request, pk: uuid.UUID) -> Response:
        self._own(pk)
        with _not_there():
            curation.change_image(
                owner_id=self.owner_id, image_id=pk, **data_of(ChangeImageSerializer, request)
            )
        return self.as_it_is(pk)

    @extend_schema(
        summary="Delete an image and its files", responses={204: None, CONFLICT: PUBLISHING}
    )
    def destroy(self, request: Request, pk: uuid.UUID) -> Response:
        self._act(pk, Action.DELETE)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @contextmanager
    def _reviewing(self, request: Request, pk: uuid.UUID) -> Iterator[str]:
        self._own(pk)
        yield data_of(ReasonSerializer, request)["reason"]

    @extend_schema(
        summary="Approve an image",
        request=ReasonSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={200: ImageSerializer, CONFLICT: KEY_IN_USE},
        examples=[OpenApiExample("Why", request_only=True, value={"reason": "The best of them."})],
    )
    @action(detail=True, methods=["post"])
    @idempotent(_reviewing)
    def approve(self, request: Request, reason: str, pk: uuid.UUID) -> Response:
        self._act(pk, Action.APPROVE, reason=reason)
        return self.as_it_is(pk)

    @extend_schema(
        summary="Reject an image",
        request=ReasonSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={200: ImageSerializer, CONFLICT: PUBLISHING_OR_KEY_IN_USE},
        examples=[OpenApiExample("Why", request_only=True, value={"reason": "Six fingers."})],
    )
    @action(detail=True, methods=["post"])
    @idempotent(_reviewing)
    def reject(self, request: Request, reason: str, pk: uuid.UUID) -> Response:
        self._act(pk, Action.REJECT, reason=reason)
        return self.as_it_is(pk)

    @extend_schema(
        summary="Who reviewed an image, when and why, latest first",
        responses=ReviewSerializer(many=True),
        filters=False,
    )
    @action(
        detail=True,
        serializer_class=ReviewSerializer,
        pagination_class=RecentFirst,
        filterset_class=None,
    )
    @takes(*PAGES)
    def reviews(self, request: Request, pk: uuid.UUID) -> Response:
        self._own(pk)
        log = Review.objects.filter(image=pk).select_related("reviewer")
        page = self.paginate_queryset(log)
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    @contextmanager
    def _asked(self, request: Request) -> Iterator[dict[str, Any]]:
        yield data_of(ImageActionSerializer, request)

    @extend_schema(
        summary="Save, tag, review or delete many images at once",
        description="All in one transaction. What cannot be done with one image is told of that "
        "one and does not keep it from the others; if one of `ids` is not there, nothing is done.",
        request=ImageActionSerializer,
        parameters=[*IDEMPOTENCY_HEADERS],
        responses={
            200: OutcomesSerializer,
            (404, CONTENT_TYPE): OpenApiResponse(
                ProblemSerializer,
                description="An image of `ids`, the batch or the generation is not there.",
            ),
            CONFLICT: KEY_IN_USE,
        },
        examples=[
            OpenApiExample(
                "Approve two",
                request_only=True,
                value={
                    "action": "approve",
                    "ids": [
                        "3fa85f64-5717-4562-b3fc-2c963f66afa6",
                        "7d1f2d0c-1c6e-4d0e-9d7b-0a4d6f1b2c3d",
                    ],
                    "reason": "The best of them.",
                },
            ),
            OpenApiExample(
                "Delete what was rejected",
                request_only=True,
                value={
                    "action": "delete",
                    "filter": {"review_status": ["rejected"], "saved": False},
                },
            ),
        ],
    )
    @action(detail=False, methods=["post"], filterset_class=None, pagination_class=None)
    @idempotent(_asked)
    def actions(self, request: Request, asked: dict[str, Any]) -> Response:
        selection = Selection(
            ids=asked.get("ids", ()), batch_id=asked.get("batch_id"), wanted=asked.get("filter")
        )
        what = {name: asked[name] for name in ("tags", "reason") if name in asked}
        place = "batch_id" if selection.batch_id else "filter"
        with _not_there(), _limited(place):
            outcomes = curation.act_on_images(
                owner_id=self.owner_id, selection=selection, action=asked["action"], **what
            )
        return Response(told(asked["action"], outcomes))

    def _own(self, pk: uuid.UUID) -> None:
        get_object_or_404(Image.objects.owned_by(self.owner_id).only("pk"), pk=pk)

    def _act(self, pk: uuid.UUID, action: Action, **what: Any) -> None:
        """Do something with one image. Raises `Http404`, `BeingPublished`."""
        with _not_there():
            [outcome] = curation.act_on_images(
                owner_id=self.owner_id, selection=Selection(ids=[pk]), action=action, **what
            )
        if outcome.code == curation.BEING_PUBLISHED:
            raise BeingPublished


@contextmanager
def _not_there() -> Iterator[None]:
    try:
        yield
    except (Image.DoesNotExist, Batch.DoesNotExist, Generation.DoesNotExist):
        raise Http404 from None


@contextmanager
def _limited(place: str) -> Iterator[None]:
    try:
        yield
    except curation.TooMany as error:
        more = "more than " if error.are_more else ""
        detail = (
            f"These are {more}{error.count:,} images; "
            f"one action takes at most {curation.SELECTION_MAX:,}."
        )
        allowed = {"max": curation.SELECTION_MAX, "count": error.count}
        raise Refused([Problem(place, "too_many", detail, allowed)]) from None
