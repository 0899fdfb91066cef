"""What is taken, strictly: the forms of requests, whoever makes them."""

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from batches.intake import DEFAULT_MODEL, PromptAsked
from batches.models import (
    PRIORITY_BATCH,
    PRIORITY_MAX,
    PRIORITY_MIN,
    PRIORITY_SINGLE,
    TAG_LENGTH,
    TAGS_MAX,
    GenerationKind,
)
from generation.catalogue import PROMPT_MAX_LENGTH

METADATA_MAX_BYTES = 4_096
URL_MAX_LENGTH = 2_000
# Beyond what any model takes.
REFERENCES_MAX = 32
UNKNOWN_FIELDS_TOLD = 20
JSON_OBJECT = {"type": "object", "additionalProperties": True}


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


class MomentField(serializers.DateTimeField):
    """A time with its offset, as a string; PostgreSQL does not take every one that RFC 3339 has."""

    default_error_messages = {  # noqa: RUF012  (the base class's form)
        "no_offset": "Must have an offset, such as Z or +02:00."
    }

    def to_internal_value(self, value: Any) -> datetime:
        if not isinstance(value, str):
            self.fail("invalid", format="RFC 3339")
        try:
            if datetime.fromisoformat(value).tzinfo is None:
                self.fail("no_offset")
            return super().to_internal_value(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail("invalid", format="RFC 3339")


class TagsField(ShortListField):
    """At most `TAGS_MAX` tags, each once."""

    default_error_messages = {"duplicate": "Each tag may be given once."}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(child=TextField(max_length=TAG_LENGTH), max_length=TAGS_MAX, **options)

    def to_internal_value(self, data: Any) -> list[Any]:
        tags = super().to_internal_value(data)
        if len(set(tags)) < len(tags):
            self.fail("duplicate")
        return tags


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
    tags = TagsField(required=False, default=list)
    start_at = MomentField(
        required=False,
        default=None,
        help_text="Nothing of it is started before that time; until then it is `scheduled`.",
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
                    refuse(name, "conflict", f"`{name}` cannot be combined with `prompts`.")
        elif "prompt" not in attrs:
            refuse("prompts", "required", "One of `prompts` and `prompt` is required.")
        else:
            self._limit("count", attrs.get("count", 1))
        return attrs

    def _limit(self, name: str, size: int) -> None:
        limit = settings.MAX_BATCH_SIZE
        if size > limit:
            refuse(name, "too_many", f"A batch may have at most {limit} prompts, not {size}.")

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
        flat = {name: attrs.pop(name) for name in field_names(CommonSettings) if name in attrs}
        if "model_id" in attrs:
            flat["model"] = attrs.pop("model_id")
        if flat and "settings" in attrs:
            given = "model_id" if "model" in flat else next(iter(flat))
            refuse(given, "conflict", f"`{given}` cannot be combined with `settings`.")
        self.is_flat = bool(flat)
        attrs.setdefault("settings", flat)
        return attrs

    def asked(self) -> PromptAsked:
        data = self.validated_data
        return PromptAsked(
            text=data["prompt"], **{name: data[name] for name in field_names(PromptFields)}
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
            refuse("ids", "too_many", f"At most {limit} ids may be given, not {len(ids)}.")
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


def field_names(serializer: type[StrictSerializer]) -> list[str]:
    return [str(name) for name in serializer._declared_fields]


def refuse(name: str, code: str, detail: str) -> None:
    raise serializers.ValidationError({name: [ErrorDetail(detail, code=code)]})
