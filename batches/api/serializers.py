"""The API's shapes: what is taken, strictly, and what is given."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from batches.api.files import signed_url
from batches.estimates import NoEta, batch_eta
from batches.intake import DEFAULT_MODEL, PromptAsked, sources_of
from batches.models import (
    PRIORITY_BATCH,
    PRIORITY_MAX,
    PRIORITY_MIN,
    PRIORITY_SINGLE,
    Batch,
    BatchStatus,
    Generation,
    GenerationKind,
    GenerationStatus,
    Image,
    Outlook,
)
from generation.catalogue import PROMPT_MAX_LENGTH

METADATA_MAX_BYTES = 4_096
URL_MAX_LENGTH = 2_000
# Beyond what any model takes.
REFERENCES_MAX = 32
UNKNOWN_FIELDS_TOLD = 20
JSON_OBJECT = {"type": "object", "additionalProperties": True}

# --- What is taken ------------------------------------------------------------------------------


class TextField(serializers.CharField):
    """A string, and nothing that could be made into one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class WholeNumberField(serializers.IntegerField):
    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return super().to_internal_value(data)


class NumberField(serializers.FloatField):
    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        return super().to_internal_value(data)


@extend_schema_field(JSON_OBJECT)
class ObjectField(serializers.JSONField):
    """A JSON object of at most `METADATA_MAX_BYTES`."""

    default_error_messages = {  # noqa: RUF012  (the base class's form)
        "not_an_object": "Must be an object.",
        "too_large": f"May be at most {METADATA_MAX_BYTES} bytes of JSON.",
        "not_finite": "Numbers must be finite.",
    }

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            self.fail("not_an_object")
        try:
            size_bytes = len(json.dumps(data, allow_nan=False).encode())
        except ValueError:
            self.fail("not_finite")
        if size_bytes > METADATA_MAX_BYTES:
            self.fail("too_large")
        return super().to_internal_value(data)


class ShortListField(serializers.ListField):
    """A list that is refused by its length before its items are looked at."""

    def to_internal_value(self, data: Any) -> list[Any]:
        assert self.max_length is not None
        if isinstance(data, list) and len(data) > self.max_length:
            self.fail("max_length", max_length=self.max_length)
        return super().to_internal_value(data)


class IdField(serializers.UUIDField):
    """An id as a string; the base class makes one of a number too."""

    def to_internal_value(self, data: Any) -> uuid.UUID:
        if not isinstance(data, str):
            self.fail("invalid", value=data)
        return super().to_internal_value(data)


class StrictSerializer(serializers.Serializer):
    """Refuses fields that it does not know: a misspelt option must not be dropped silently."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := set(data) - set(self.fields)):
            known = ", ".join(self.fields) or "none"
            raise serializers.ValidationError(
                {
                    name: [ErrorDetail(f"Unknown field; known are {known}.", code="unknown_field")]
                    for name in sorted(unknown)[:UNKNOWN_FIELDS_TOLD]
                }
            )
        return super().to_internal_value(data)


class ReferenceNameSerializer(StrictSerializer):
    """A reference image by its id, an earlier image by its, or a URL that we fetch."""

    id = IdField(required=False)
    image_id = IdField(required=False)
    url = TextField(required=False, max_length=URL_MAX_LENGTH)

    def validate(self, attrs: dict[str, Any]) -> dict[str, str]:
        if len(attrs) != 1:
            code = "conflict" if attrs else "required"
            known = ", ".join(self.fields)
            raise serializers.ValidationError(f"Exactly one is required of {known}.", code=code)
        return {name: str(value) for name, value in attrs.items()}


class CommonSettings(StrictSerializer):
    """One vocabulary for all models; see `GET models/` for what each takes.

    The bounds are each model's own, so that a refusal can name it and them.
    """

    width = WholeNumberField(required=False, help_text="Pixels.")
    height = WholeNumberField(required=False, help_text="Pixels.")
    aspect_ratio = TextField(required=False, max_length=20, help_text="Such as `16:9`.")
    steps = WholeNumberField(required=False)
    guidance_scale = NumberField(required=False)
    output_format = TextField(required=False, max_length=10, help_text="`webp`, `png` or `jpg`.")
    output_quality = WholeNumberField(required=False)
    references = ShortListField(
        child=ReferenceNameSerializer(),
        required=False,
        max_length=REFERENCES_MAX,
        help_text="Images to start from, in order; `GET models/` says how many a model takes.",
    )
    num_outputs = WholeNumberField(
        required=False,
        min_value=1,
        max_value=100,
        help_text="Images of one prompt. In a batch, more than a model makes at a time become "
        "several items; a single generation takes no more than that.",
    )
    strength = NumberField(
        required=False,
        help_text="How far to go from the reference image: 0 keeps it, 1 ignores it.",
    )
    safety = serializers.ChoiceField(
        ("strict", "standard", "relaxed"),
        required=False,
        help_text="How much the model is to refuse, where that can be chosen.",
    )
    parameters = ObjectField(
        required=False, help_text="The model's further parameters by their own names."
    )


class SettingsSerializer(CommonSettings):
    """How to make a picture, in one vocabulary for all models; see `GET models/` for each."""

    model = TextField(required=False, max_length=200, help_text=f"Default `{DEFAULT_MODEL}`.")


class PromptFields(StrictSerializer):
    """What belongs to one prompt, whatever it is for."""

    name = TextField(required=False, default="", allow_blank=True, max_length=200)
    negative_prompt = TextField(
        required=False, default="", allow_blank=True, max_length=PROMPT_MAX_LENGTH
    )
    seed = WholeNumberField(required=False, default=None, min_value=0, max_value=2**32 - 1)
    custom_id = TextField(required=False, default="", allow_blank=True, max_length=200)
    kind = serializers.ChoiceField(
        GenerationKind.choices,
        required=False,
        default="",
        help_text="Follows from the number of references, none, one or several; a check.",
    )
    metadata = ObjectField(required=False, default=dict)


class PromptSerializer(PromptFields):
    text = TextField(max_length=PROMPT_MAX_LENGTH)
    settings = SettingsSerializer(required=False, default=dict)


class NewBatchSerializer(StrictSerializer):
    """Either `prompts`, or `prompt` with `count` for variations of one."""

    name = TextField(required=False, default="", allow_blank=True, max_length=200)
    prompts = serializers.ListField(child=PromptSerializer(), required=False, allow_empty=False)
    prompt = TextField(required=False, max_length=PROMPT_MAX_LENGTH)
    count = WholeNumberField(required=False, min_value=1)
    seed = WholeNumberField(
        required=False,
        min_value=0,
        max_value=2**32 - 1,
        help_text="With `prompt`: of the first variation; the others get random ones.",
    )
    style = TextField(  # type: ignore[assignment]
        required=False, default="", allow_blank=True, max_length=100
    )
    genre = TextField(required=False, default="", allow_blank=True, max_length=100)
    settings = SettingsSerializer(required=False, default=dict)
    priority = WholeNumberField(
        required=False, default=PRIORITY_BATCH, min_value=PRIORITY_MIN, max_value=PRIORITY_MAX
    )
    tags = ShortListField(
        child=TextField(max_length=50), required=False, default=list, max_length=20
    )

    def to_internal_value(self, data: Any) -> Any:
        # Told before the items are looked at: a list of thousands is refused by its length.
        prompts = data.get("prompts") if isinstance(data, Mapping) else None
        if isinstance(prompts, list):
            self._limit("prompts", len(prompts))
        return super().to_internal_value(data)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "prompts" in attrs:
            for name in ("prompt", "count", "seed"):
                if name in attrs:
                    _refuse(name, "conflict", f"`{name}` cannot be combined with `prompts`.")
        elif "prompt" not in attrs:
            _refuse("prompts", "required", "One of `prompts` and `prompt` is required.")
        else:
            self._limit("count", attrs.get("count", 1))
        return attrs

    def _limit(self, name: str, size: int) -> None:
        limit = settings.MAX_BATCH_SIZE
        if size > limit:
            _refuse(name, "too_many", f"A batch may have at most {limit} prompts, not {size}.")

    def asked(self) -> list[PromptAsked]:
        data = self.validated_data
        if "prompts" in data:
            return [PromptAsked(**prompt) for prompt in data["prompts"]]
        first = PromptAsked(text=data["prompt"], seed=data.get("seed"))
        others = PromptAsked(text=data["prompt"])
        return [first] + [others] * (data.get("count", 1) - 1)


class NewGenerationSerializer(PromptFields, CommonSettings):
    """`settings` as in a batch, or the same fields flat, with `model_id` for the model."""

    prompt = TextField(max_length=PROMPT_MAX_LENGTH)
    model_id = TextField(required=False, max_length=200)
    settings = SettingsSerializer(required=False)
    style = TextField(  # type: ignore[assignment]
        required=False, default="", allow_blank=True, max_length=100
    )
    genre = TextField(required=False, default="", allow_blank=True, max_length=100)
    priority = WholeNumberField(
        required=False, default=PRIORITY_SINGLE, min_value=PRIORITY_MIN, max_value=PRIORITY_MAX
    )

    is_flat = False

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        flat = {name: attrs.pop(name) for name in _names(CommonSettings) if name in attrs}
        if "model_id" in attrs:
            flat["model"] = attrs.pop("model_id")
        if flat and "settings" in attrs:
            given = "model_id" if "model" in flat else next(iter(flat))
            _refuse(given, "conflict", f"`{given}` cannot be combined with `settings`.")
        self.is_flat = bool(flat)
        attrs.setdefault("settings", flat)
        return attrs

    def asked(self) -> PromptAsked:
        data = self.validated_data
        return PromptAsked(
            text=data["prompt"], **{name: data[name] for name in _names(PromptFields)}
        )


class NothingSerializer(StrictSerializer):
    """No body, or an empty object."""


class ChangedSettingsSerializer(SettingsSerializer):
    """Settings that replace those of before, key by key; null takes one back."""

    def get_fields(self) -> Any:
        fields = super().get_fields()
        for name, field in fields.items():
            field.allow_null = name != "model"
        return fields


class RetryGenerationSerializer(StrictSerializer):
    """No body, or what is to be different this time."""

    settings = ChangedSettingsSerializer(
        required=False,
        default=dict,
        help_text="Go before the settings so far, key by key; another model may be named.",
    )


class RetryBatchSerializer(RetryGenerationSerializer):
    ids = serializers.ListField(
        child=IdField(),
        required=False,
        allow_empty=False,
        help_text="Failed or cancelled generations of the batch; by default all failed ones.",
    )

    def to_internal_value(self, data: Any) -> Any:
        # As with the prompts of a batch.
        ids = data.get("ids") if isinstance(data, Mapping) else None
        if isinstance(ids, list) and len(ids) > (limit := settings.MAX_BATCH_SIZE):
            _refuse("ids", "too_many", f"At most {limit} ids may be given, not {len(ids)}.")
        return super().to_internal_value(data)

    def validate_ids(self, ids: list[uuid.UUID]) -> list[uuid.UUID]:
        repeated = {
            str(index): [ErrorDetail("This id is given twice.", code="duplicate")]
            for index, one in enumerate(ids)
            if one in ids[:index]
        }
        if repeated:
            raise serializers.ValidationError(repeated)
        return ids


def _names(serializer: type[StrictSerializer]) -> list[str]:
    return [str(name) for name in serializer._declared_fields]


def _refuse(name: str, code: str, detail: str) -> None:
    raise serializers.ValidationError({name: [ErrorDetail(detail, code=code)]})


# --- What is given ------------------------------------------------------------------------------


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


class ItemSerializer(serializers.ModelSerializer):
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


class BatchSerializer(serializers.ModelSerializer):
    """A batch with its generations, in order."""

    status = serializers.ChoiceField(BatchStatus.choices, read_only=True)
    progress = serializers.IntegerField(read_only=True, help_text="Percent that has ended.")
    eta_seconds = serializers.SerializerMethodField(
        help_text="Until the last item has ended, estimated; null where `eta_reason` says why."
    )
    eta_reason = serializers.SerializerMethodField(help_text="Null when `eta_seconds` is not.")
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
            "started_at",
            "finished_at",
            "cancel_requested_at",
            "version",
            "items",
        )
        read_only_fields = fields

    def to_representation(self, instance: Batch) -> dict[str, Any]:
        self._eta = batch_eta(instance, list(instance.generations.all()), Outlook.of(instance))
        return super().to_representation(instance)

    def get_eta_seconds(self, batch: Batch) -> int | None:
        return self._eta.seconds

    @extend_schema_field({"type": ["string", "null"], "enum": [*(str(one) for one in NoEta), None]})
    def get_eta_reason(self, batch: Batch) -> str | None:
        return self._eta.reason


class ImageSerializer(serializers.ModelSerializer):
    url = serializers.SerializerMethodField()
    preview_url = serializers.SerializerMethodField()
    thumbnail_url = serializers.SerializerMethodField()
    generation_id = serializers.UUIDField(read_only=True)
    batch_id = serializers.UUIDField(source="generation.batch_id", allow_null=True, read_only=True)
    prompt = serializers.CharField(source="generation.prompt", read_only=True)
    model = serializers.CharField(source="generation.model", read_only=True)
    seed = serializers.IntegerField(source="generation.seed", allow_null=True, read_only=True)

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
            "format",
            "size_bytes",
            "sha256",
            "prompt",
            "model",
            "seed",
            "created_at",
        )
        read_only_fields = fields

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
