"""The API's shapes: what is given."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from batches.estimates import NoEta, batch_eta
from batches.intake import sources_of
from batches.models import (
    Batch,
    BatchStatus,
    ChannelName,
    Generation,
    GenerationStatus,
    Image,
    Outlook,
    PublicationStatus,
    ReviewStatus,
)
from batches.signing import signed_url

ETA_REASONS = {"type": ["string", "null"], "enum": [*(str(one) for one in NoEta), None]}


class RowSerializer(serializers.ModelSerializer):
    """Reads its fields off the model once, not again for each answer."""

    def get_fields(self) -> dict[str, serializers.Field]:
        return copy.deepcopy(_fields_of(type(self)))


@cache
def _fields_of(form_class: type[RowSerializer]) -> dict[str, serializers.Field]:
    return serializers.ModelSerializer.get_fields(form_class())


class ErrorSerializer(serializers.Serializer):
    code = serializers.CharField()
    message = serializers.CharField()


class ItemImageSerializer(serializers.Serializer):
    """URLs are signed and expire; ask again for fresh ones."""

    id = serializers.UUIDField()
    url = serializers.URLField()
    preview_url = serializers.URLField(help_text="WebP, at most 1024 pixels wide and high.")
    thumbnail_url = serializers.URLField(help_text="WebP, at most 256 pixels wide and high.")
    width = serializers.IntegerField(help_text="Pixels.")
    height = serializers.IntegerField(help_text="Pixels.")
    format = serializers.CharField(help_text="As found in the bytes.")
    size_bytes = serializers.IntegerField()
    sha256 = serializers.CharField()


class ItemReferenceSerializer(serializers.Serializer):
    """URLs are signed and expire; ask again for fresh ones."""

    id = serializers.UUIDField()
    url = serializers.URLField()
    thumbnail_url = serializers.URLField()


class ItemSerializer(RowSerializer):
    """One generation of a batch, in the batch's order."""

    status = serializers.ChoiceField(GenerationStatus.choices, read_only=True)
    error = serializers.SerializerMethodField()
    attempts = serializers.IntegerField(source="attempt_count", read_only=True)
    image = serializers.SerializerMethodField(help_text="The first of `images`.")
    images = serializers.SerializerMethodField()
    references = serializers.SerializerMethodField(help_text="What it is made from, in order.")

    class Meta:
        model = Generation
        fields = (
            "id",
            "index",
            "name",
            "custom_id",
            "status",
            "progress",
            "prompt",
            "negative_prompt",
            "style",
            "genre",
            "seed",
            "error",
            "attempts",
            "kind",
            "references",
            "output_count",
            "image",
            "images",
            "cancel_requested_at",
            "version",
        )
        read_only_fields = fields

    @extend_schema_field(ErrorSerializer(allow_null=True))
    def get_error(self, generation: Generation) -> dict[str, str] | None:
        if not generation.error_code:
            return None
        return {"code": generation.error_code, "message": generation.error_message}

    @extend_schema_field(ItemImageSerializer(allow_null=True))
    def get_image(self, generation: Generation) -> dict[str, Any] | None:
        rows = getattr(generation, "image_rows", ())
        return self._image(rows[0]) if rows else None

    @extend_schema_field(ItemImageSerializer(many=True))
    def get_images(self, generation: Generation) -> list[dict[str, Any]]:
        return [self._image(row) for row in getattr(generation, "image_rows", ())]

    @extend_schema_field(ItemReferenceSerializer(many=True))
    def get_references(self, generation: Generation) -> list[dict[str, str]]:
        # As they stand in the settings: so there is nothing to look up.
        return [
            {
                "id": one.value,
                **{
                    name: signed_url(
                        self.context["base_url"], one.value, part, collection="references"
                    )
                    for name, part in (("url", "file"), ("thumbnail_url", "thumbnail"))
                },
            }
            for one in sources_of(generation.settings)
        ]

    def _image(self, row: Mapping[str, Any]) -> dict[str, Any]:
        base_url = self.context["base_url"]
        return {
            "id": row["id"],
            "url": signed_url(base_url, row["id"], "file"),
            "preview_url": signed_url(base_url, row["id"], "preview"),
            "thumbnail_url": signed_url(base_url, row["id"], "thumbnail"),
            **{name: row[name] for name in ("width", "height", "format", "size_bytes", "sha256")},
        }


class GenerationSerializer(ItemSerializer):
    """One generation with all that is known of it."""

    batch_id = serializers.UUIDField(allow_null=True, read_only=True)
    provider_id = serializers.CharField(
        allow_null=True, read_only=True, help_text="The provider's id of the latest attempt."
    )
    seconds = serializers.SerializerMethodField(help_text="From the first start to the end.")

    class Meta(ItemSerializer.Meta):
        fields = (  # type: ignore[assignment]
            *ItemSerializer.Meta.fields,
            "batch_id",
            "final_prompt",
            "model",
            "settings",
            "input",
            "metadata",
            "priority",
            "provider",
            "provider_id",
            "cost_usd",
            "seconds",
            "created_at",
            "not_before",
            "started_at",
            "downloading_at",
            "finished_at",
        )
        read_only_fields = fields  # type: ignore[assignment]

    def get_seconds(self, generation: Generation) -> float | None:
        if generation.started_at is None or generation.finished_at is None:
            return None
        return round((generation.finished_at - generation.started_at).total_seconds(), 3)


class BatchSerializer(RowSerializer):
    """A batch with its generations, in order."""

    status = serializers.ChoiceField(BatchStatus.choices, read_only=True)
    progress = serializers.IntegerField(read_only=True, help_text="Percent that has ended.")
    eta_seconds = serializers.SerializerMethodField(
        help_text="Until the last item has ended, estimated; null where `eta_reason` says why."
    )
    eta_reason = serializers.SerializerMethodField(help_text="Null when `eta_seconds` is not.")
    template_id = serializers.UUIDField(
        allow_null=True, read_only=True, help_text="What it was made from."
    )
    items = ItemSerializer(source="generations", many=True, read_only=True)

    class Meta:
        model = Batch
        fields = (
            "id",
            "name",
            "status",
            "total_count",
            "completed_count",
            "failed_count",
            "cancelled_count",
            "progress",
            "eta_seconds",
            "eta_reason",
            "cost_usd",
            "settings",
            "style",
            "genre",
            "tags",
            "priority",
            "created_at",
            "start_at",
            "started_at",
            "finished_at",
            "cancel_requested_at",
            "version",
            "template_id",
            "items",
        )
        read_only_fields = fields

    def to_representation(self, instance: Batch) -> dict[str, Any]:
        self._eta = batch_eta(instance, list(instance.generations.all()), Outlook.of(instance))
        return super().to_representation(instance)

    def get_eta_seconds(self, batch: Batch) -> int | None:
        return self._eta.seconds

    @extend_schema_field(ETA_REASONS)
    def get_eta_reason(self, batch: Batch) -> str | None:
        return self._eta.reason


class ImagePublicationSerializer(serializers.Serializer):
    id = serializers.UUIDField()
    channel = serializers.ChoiceField(ChannelName.choices)
    status = serializers.ChoiceField(PublicationStatus.choices)
    product_type = serializers.CharField()
    url = serializers.CharField(help_text="The product's; empty until there is one.")


class ImageSerializer(RowSerializer):
    """An image with how it was made, what its owner thinks of it, and where it is published."""

    url = serializers.SerializerMethodField()
    preview_url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()
    generation_id = serializers.UUIDField(read_only=True)
    batch_id = serializers.UUIDField(source="generation.batch_id", allow_null=True, read_only=True)
    prompt = serializers.CharField(source="generation.prompt", read_only=True)
    model = serializers.CharField(source="generation.model", read_only=True)
    style = serializers.CharField(  # type: ignore[assignment]
        source="generation.style", read_only=True
    )
    genre = serializers.CharField(source="generation.genre", read_only=True)
    seed = serializers.IntegerField(source="generation.seed", allow_null=True, read_only=True)
    review_status = serializers.ChoiceField(ReviewStatus.choices, read_only=True)
    publications = serializers.SerializerMethodField(help_text="One for each channel.")

    class Meta:
        model = Image
        fields = (
            "id",
            "generation_id",
            "batch_id",
            "index",
            "url",
            "preview_url",
            "thumbnail_url",
            "width",
            "height",
            "made_width",
            "made_height",
            "format",
            "size_bytes",
            "sha256",
            "prompt",
            "model",
            "style",
            "genre",
            "seed",
            "is_saved",
            "tags",
            "review_status",
            "reviewed_at",
            "publications",
            "created_at",
        )
        read_only_fields = fields

    @extend_schema_field(ImagePublicationSerializer(many=True))
    def get_publications(self, image: Image) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = image.publication_rows  # type: ignore[attr-defined]
        return rows

    def get_url(self, image: Image) -> str:
        return signed_url(self.context["base_url"], image.pk, "file")

    def get_preview_url(self, image: Image) -> str:
        return signed_url(self.context["base_url"], image.pk, "preview")

    def get_thumbnail_url(self, image: Image) -> str:
        return signed_url(self.context["base_url"], image.pk, "thumbnail")


class ParameterSerializer(serializers.Serializer):
    """What a parameter takes. Keys that say nothing of this one are left out."""

    type = serializers.ChoiceField(
        ("string", "integer", "number", "boolean", "enum", "array", "file", "files")
    )
    required = serializers.BooleanField()  # type: ignore[assignment]
    default = serializers.JSONField(
        allow_null=True, help_text="What the model does when nothing is given; null: not known."
    )
    min = serializers.FloatField(required=False)
    max = serializers.FloatField(required=False)
    max_with_reference = serializers.FloatField(
        required=False, help_text="Instead of `max` when a reference image is given."
    )
    multiple_of = serializers.IntegerField(required=False)
    choices = serializers.ListField(child=serializers.CharField(), required=False)
    max_length = serializers.IntegerField(required=False, help_text="Characters.")
    max_items = serializers.IntegerField(required=False)
    only_when = serializers.DictField(
        required=False, help_text="What other parameters must be for this one to count."
    )


class RatioSerializer(serializers.Serializer):
    """The size is null where it is not known before."""

    aspect_ratio = serializers.CharField()
    width_px = serializers.IntegerField(allow_null=True)
    height_px = serializers.IntegerField(allow_null=True)


class SizeSerializer(serializers.Serializer):
    width_px = serializers.IntegerField()
    height_px = serializers.IntegerField()
    aspect_ratio = serializers.CharField(allow_null=True)


class TakenReferencesSerializer(serializers.Serializer):
    """What a model does with reference images."""

    max = serializers.IntegerField(help_text="How many one request may have.")
    required = serializers.BooleanField()  # type: ignore[assignment]
    strength = ParameterSerializer(allow_null=True)
    size = serializers.ChoiceField(
        ("kept", "matched", "cropped", ""),
        help_text="`kept`: the image has the shape of the reference, no size can be asked for. "
        "`matched`: it has it unless a size is asked for. `cropped`: the reference is cut to the "
        "size. Empty: the reference does not matter to the size.",
    )
    aspect_ratios = serializers.ListField(
        child=serializers.CharField(), help_text="May be asked for beside the model's others."
    )
    parameters = serializers.DictField(
        child=serializers.ListField(child=serializers.CharField()),
        help_text="Further choices of the model's own parameters, by name.",
    )
    safety = serializers.ListField(
        child=serializers.CharField(), help_text="The levels that are left."
    )
    note = serializers.CharField()


class ModelSerializer(serializers.Serializer):
    """One model of the catalogue, with all that a form for it needs."""

    id = serializers.CharField()
    provider = serializers.CharField()
    display_name = serializers.CharField()
    family = serializers.CharField()
    available = serializers.BooleanField(help_text="Whether it can be used here now.")
    unavailable_reason = serializers.CharField(help_text="Empty when available.")
    status = serializers.ChoiceField(("active", "retired", "unavailable", "disabled"))
    status_note = serializers.CharField()
    enabled = serializers.BooleanField(help_text="False: the operator has switched it off.")
    notes = serializers.CharField(help_text="The operator's.")
    price_usd_per_image = serializers.CharField(help_text="Of a usual image; decimal.")
    price_usd_per_second = serializers.CharField(
        allow_null=True, help_text="Where run time is charged and not the image; decimal."
    )
    price_usd_by = serializers.DictField(
        child=serializers.DictField(child=serializers.CharField()),
        help_text="Parameter -> its value -> price of an image, decimal, where that depends on it; "
        "of several that fit, the highest. `megapixels`: the image's area, rounded up.",
    )
    price_note = serializers.CharField()
    est_seconds = serializers.FloatField(help_text="Usual run time, seconds.")
    confidence = serializers.DictField(
        child=serializers.CharField(), help_text="How well what is said here is known."
    )
    fallbacks = serializers.ListField(
        child=serializers.CharField(),
        help_text="Models that stand in, in this order, while its provider is away.",
    )
    supports_seed = serializers.BooleanField()
    supports_negative_prompt = serializers.BooleanField()
    supports_free_size = serializers.BooleanField(
        help_text="Any width and height within their bounds."
    )
    output_formats = serializers.ListField(child=serializers.CharField())
    max_outputs = serializers.IntegerField(help_text="Images of one submission.")
    settings = serializers.DictField(
        child=ParameterSerializer(), help_text="The common settings that it takes, by name."
    )
    parameters = serializers.DictField(
        child=ParameterSerializer(), help_text="Its further parameters by their own names."
    )
    references = TakenReferencesSerializer(
        allow_null=True, help_text="Null: it takes no reference images."
    )
    aspect_ratios = serializers.ListField(child=RatioSerializer())
    sizes = serializers.ListField(
        child=SizeSerializer(), help_text="The only sizes it makes, unless it takes free ones."
    )


class ModelListSerializer(serializers.Serializer):
    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = ModelSerializer(many=True)


class ProblemFieldSerializer(serializers.Serializer):
    field = serializers.CharField(allow_null=True, help_text="Dotted path in the request.")
    code = serializers.CharField()
    detail = serializers.CharField()
    allowed = serializers.JSONField(required=False, help_text="What would be accepted.")


class ProblemSerializer(serializers.Serializer):
    """Problem details, RFC 9457."""

    type = serializers.CharField()
    title = serializers.CharField()
    status = serializers.IntegerField()
    detail = serializers.CharField()
    code = serializers.CharField()
    errors = ProblemFieldSerializer(many=True)  # type: ignore[assignment]
    request_id = serializers.CharField()


class TransitionProblemSerializer(ProblemSerializer):
    """Problem details with the status that stands against what is asked."""

    current_status = serializers.CharField(
        required=False,
        help_text="Of the object that `detail` is about; with the code `invalid_transition`.",
    )
