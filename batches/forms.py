"""What is taken, strictly: the forms of requests, whoever makes them."""

import json
import re
import unicodedata
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from batches.curation import REVIEWS, Action
from batches.gallery import ImageFilter, has_words
from batches.intake import DEFAULT_MODEL, PromptAsked
from batches.models import (
    PRIORITY_BATCH,
    PRIORITY_MAX,
    PRIORITY_MIN,
    PRIORITY_SINGLE,
    TAG_LENGTH,
    TAGS_MAX,
    ChannelName,
    GenerationKind,
    ReviewStatus,
)
from generation.catalogue import PROMPT_MAX_LENGTH
from generation.images import FORMATS
from publishing.channels.items import PRICE_LIMIT_USD

METADATA_MAX_BYTES = 4_096
URL_MAX_LENGTH = 2_000
# Beyond what any model takes.
REFERENCES_MAX = 32
PLACEHOLDERS_MAX = 50
VALUE_MAX_LENGTH = 2_000
RESIZE_MODES = ("upscale", "place")
RESIZE_MIN_PX, RESIZE_MAX_PX = 16, 8_192
# Of the routes of print-on-demand clients.
PRINTS_MAX = 25
PRINT_SIDE_MAX_PX = 20_000
MAX_WAIT_S = 60
UNKNOWN_FIELDS_TOLD = 20
# Images of one request to publish them.
PUBLISHED_MAX = 100
# Images that one action names one by one.
ACTION_IDS_MAX = 500
REASON_MAX_LENGTH = 500
Q_MAX_LENGTH = 200
Q_HELP = (
    'Words of the prompt in any form; `"in this order"`, `or`, `-without`. '
    'Words that nobody searches for, such as "the", do not count; there must be another.'
)
NO_WORDS = "Holds no word that can be searched for."
JSON_OBJECT = {"type": "object", "additionalProperties": True}


class TextField(serializers.CharField):
    """A string, and nothing that could be made into one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        # As it is sent, before spaces at its ends are dropped: that is what the schema says.
        if self.max_length is not None and len(data) > self.max_length:
            self.fail("max_length", max_length=self.max_length)
        return super().to_internal_value(data)


class WholeNumberField(serializers.IntegerField):
    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int):
            self.fail("invalid")
        return super().to_internal_value(data)


class SeedField(WholeNumberField):
    """What a model draws its noise from."""

    def __init__(self, **options: Any) -> None:
        super().__init__(required=False, min_value=0, max_value=2**32 - 1, **options)


class StrictBooleanField(serializers.BooleanField):
    """True or false, and nothing that could be read as one."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


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


# A time of RFC 3339, and what is left of one without its end.
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"(?P<offset>Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?)?"
)


class MomentField(serializers.DateTimeField):
    """A time of RFC 3339, as a string; PostgreSQL does not take every one that there is."""

    default_error_messages = {  # noqa: RUF012  (the base class's form)
        "no_offset": "Must have an offset, such as Z or +02:00."
    }

    def to_internal_value(self, value: Any) -> datetime:
        # Its letters may be small.
        moment = _MOMENT.fullmatch(value.upper()) if isinstance(value, str) else None
        if moment is None:
            self.fail("invalid", format="RFC 3339")
        if moment["offset"] is None:
            self.fail("no_offset")
        try:
            return datetime.fromisoformat(moment[0]).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail("invalid", format="RFC 3339")


def has_control_characters(text: str) -> bool:
    return any(unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in text)


class TagField(TextField):
    """1 to `TAG_LENGTH` characters on one line; spaces around them do not count."""

    default_error_messages = {"control": "May hold no control characters."}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=TAG_LENGTH, **options)

    def to_internal_value(self, data: Any) -> str:
        tag = super().to_internal_value(data)
        if has_control_characters(tag):
            self.fail("control")
        return tag


class TagsField(ShortListField):
    """At most `TAGS_MAX` tags, each once."""

    default_error_messages = {"duplicate": "Each tag may be given once."}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(child=TagField(), max_length=TAGS_MAX, **options)

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


class ResizeSerializer(StrictSerializer):
    """The size in which images are stored, whatever size the model makes."""

    mode = serializers.ChoiceField(
        RESIZE_MODES,
        help_text="`upscale`: scaled until it covers the size, and cut at the edges. `place`: "
        "scaled down if it is larger, and put into the middle of an empty canvas.",
    )
    width = WholeNumberField(min_value=RESIZE_MIN_PX, max_value=RESIZE_MAX_PX, help_text="Pixels.")
    height = WholeNumberField(min_value=RESIZE_MIN_PX, max_value=RESIZE_MAX_PX, help_text="Pixels.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        limit = settings.MAX_OUTPUT_PIXELS
        if attrs["width"] * attrs["height"] > limit:
            refuse("height", "too_large", f"With the width, at most {limit:,} pixels in all.")
        return dict(attrs)


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
    resize = ResizeSerializer(required=False, help_text="Not for models that make drawings (SVG).")
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
    seed = SeedField(default=None)
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
    seed = SeedField(help_text="With `prompt`: of the first variation; the others get random ones.")
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
            check_batch_size("prompts", len(prompts))
        return super().to_internal_value(data)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "prompts" in attrs:
            for name in ("prompt", "count", "seed"):
                if name in attrs:
                    refuse(name, "conflict", f"`{name}` cannot be combined with `prompts`.")
        elif "prompt" not in attrs:
            refuse("prompts", "required", "One of `prompts` and `prompt` is required.")
        else:
            check_batch_size("count", attrs.get("count", 1))
        return attrs

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


class StartGenerationSerializer(NewGenerationSerializer):
    """As for a single image, where `cfg_scale` may stand for `guidance_scale`."""

    cfg_scale = NumberField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "cfg_scale" in attrs:
            if "guidance_scale" in attrs:
                detail = "`cfg_scale` cannot be combined with `guidance_scale`."
                refuse("cfg_scale", "conflict", detail)
            attrs["guidance_scale"] = attrs.pop("cfg_scale")
        return super().validate(attrs)


@extend_schema_field(
    {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S}]}
)
class WaitField(serializers.Field):
    """How long to wait, in seconds; `true` is as long as may be."""

    default_error_messages = {  # noqa: RUF012  (the base class's form)
        "invalid": "Must be true, false, or a whole number of seconds.",
        "out_of_range": f"Must be between 0 and {MAX_WAIT_S} seconds.",
    }

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool):
            return MAX_WAIT_S if data else 0
        if not isinstance(data, int):
            self.fail("invalid")
        if not 0 <= data <= MAX_WAIT_S:
            self.fail("out_of_range")
        return data

    def to_representation(self, value: int) -> int:
        return value


class GenerateSerializer(StrictSerializer):
    """Variations of one prompt, for a print of a given size."""

    prompt = TextField(max_length=PROMPT_MAX_LENGTH)
    batch_size = WholeNumberField(required=False, default=1, min_value=1)
    style = TextField(  # type: ignore[assignment]
        required=False, default="", allow_blank=True, max_length=100
    )
    genre = TextField(required=False, default="", allow_blank=True, max_length=100)
    width = WholeNumberField(
        required=False,
        default=4_500,
        min_value=RESIZE_MIN_PX,
        max_value=PRINT_SIDE_MAX_PX,
        help_text="Pixels.",
    )
    height = WholeNumberField(
        required=False,
        default=5_400,
        min_value=RESIZE_MIN_PX,
        max_value=PRINT_SIDE_MAX_PX,
        help_text="Pixels.",
    )
    steps = WholeNumberField(required=False, default=30, min_value=1, max_value=10_000)
    cfg_scale = NumberField(required=False, default=2.0, min_value=0, max_value=1_000)
    seed = SeedField(default=None, help_text="Of the first image; the others get random ones.")
    model_id = TextField(required=False, max_length=200, help_text=f"Default `{DEFAULT_MODEL}`.")
    resize = serializers.ChoiceField(
        RESIZE_MODES,
        required=False,
        help_text="Store each image at exactly the width and height, see `settings.resize` of a "
        "batch. By default images are stored as the model makes them.",
    )
    wait = WaitField(
        required=False,
        default=False,
        help_text="Keep the answer back until all have ended, for so many seconds at most; "
        f"`true` is {MAX_WAIT_S}. As `Prefer: wait=N` does.",
    )
    name = TextField(required=False, default="", allow_blank=True, max_length=200)
    tags = TagsField(required=False, default=list)

    def validate_batch_size(self, size: int) -> int:
        if size > (limit := min(PRINTS_MAX, settings.MAX_BATCH_SIZE)):
            detail = f"At most {limit} images may be asked for, not {size}."
            raise serializers.ValidationError(detail, code="too_many")
        return size

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "resize" in attrs:
            size = {"width": attrs["width"], "height": attrs["height"]}
            # Its fields are called as they are here.
            ResizeSerializer(data={"mode": attrs["resize"], **size}).is_valid(raise_exception=True)
        return attrs


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
        return each_once(ids)


RULE_HELP = (
    "RRULE of RFC 5545 without its name, such as `FREQ=WEEKLY;BYDAY=MO;BYHOUR=9`, by the clock "
    "of the time zone. Due every 5 minutes at the most."
)


class LikeSerializer(StrictSerializer):
    """What is to be different in more of what there is."""

    settings = ChangedSettingsSerializer(
        required=False,
        default=dict,
        help_text="Go before the settings so far, key by key; null takes one back.",
    )
    style = TextField(  # type: ignore[assignment]
        required=False, allow_blank=True, max_length=100
    )
    genre = TextField(required=False, allow_blank=True, max_length=100)
    name = TextField(required=False, allow_blank=True, max_length=200)
    tags = TagsField(required=False)
    priority = WholeNumberField(required=False, min_value=PRIORITY_MIN, max_value=PRIORITY_MAX)


class SimilarBatchSerializer(LikeSerializer):
    """What is not given stays as it was in the batch."""

    start_at = MomentField(required=False)


class SimilarImageSerializer(SimilarBatchSerializer):
    """What is not given of the prompt and the settings stays as it was for the image."""

    count = WholeNumberField(required=False, default=4, min_value=1)
    prompt = TextField(required=False, max_length=PROMPT_MAX_LENGTH)
    negative_prompt = TextField(required=False, allow_blank=True, max_length=PROMPT_MAX_LENGTH)
    seed = SeedField(help_text="Of the first; the others get random ones.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        check_batch_size("count", attrs["count"])
        return attrs


class ValuesField(serializers.DictField):
    """Texts by the placeholders that they stand for."""

    default_error_messages = {  # noqa: RUF012  (the base class's form)
        "too_many": f"May have at most {PLACEHOLDERS_MAX} values."
    }

    def __init__(self, **options: Any) -> None:
        text = TextField(allow_blank=True, max_length=VALUE_MAX_LENGTH)
        super().__init__(child=text, required=False, **options)

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > PLACEHOLDERS_MAX:
            self.fail("too_many")
        return super().to_internal_value(data)


class KeptBatchSerializer(NewBatchSerializer):
    """The body of a request for a batch, kept as it is asked."""

    start_at = None  # type: ignore[assignment]

    def run_validation(self, data: Any = serializers.empty) -> Any:
        super().run_validation(data)
        return data


class ChangedTemplateSerializer(StrictSerializer):
    """What is not given stays as it is."""

    name = TextField(required=False, max_length=200)
    description = TextField(required=False, allow_blank=True, max_length=1_000)
    batch = KeptBatchSerializer(
        required=False,
        help_text="`{name}` in its prompts and negative prompts stands for a value that is given "
        "on use: small letters, digits and underscores. `{{` and `}}` stand for braces.",
    )
    defaults = ValuesField(help_text="For the placeholders of which no value is given on use.")


class NewTemplateSerializer(ChangedTemplateSerializer):
    """A template of `batch`, or of an earlier batch by its id."""

    name = TextField(max_length=200)
    batch_id = IdField(
        required=False, help_text="Its prompts and settings are kept, its seeds are not."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "batch" in attrs and "batch_id" in attrs:
            refuse("batch_id", "conflict", "`batch_id` cannot be combined with `batch`.")
        if "batch" not in attrs and "batch_id" not in attrs:
            refuse("batch", "required", "One of `batch` and `batch_id` is required.")
        return attrs


class OverridesSerializer(LikeSerializer):
    """What goes before the template's batch."""

    seed = SeedField()
    count = WholeNumberField(required=False, min_value=1)


class StartOverridesSerializer(OverridesSerializer):
    start_at = MomentField(required=False)


class StartTemplateSerializer(StrictSerializer):
    values = ValuesField(default=dict, help_text="By placeholder.")
    overrides = StartOverridesSerializer(required=False, default=dict)


class ChangedScheduleSerializer(StrictSerializer):
    """What is not given stays as it is. A `batch` takes a template's place, and the reverse."""

    name = TextField(required=False, max_length=200)
    rule = TextField(
        required=False,
        max_length=500,
        help_text=RULE_HELP,
    )
    time_zone = TextField(required=False, max_length=60, help_text="Such as `Europe/Berlin`.")
    starts_at = MomentField(
        required=False,
        help_text="The DTSTART of the rule, which takes from it what it leaves open, such as the "
        "time of day. At once, unless it is given.",
    )
    template_id = IdField(required=False)
    values = ValuesField(help_text="By placeholder of the template.")
    overrides = OverridesSerializer(required=False)
    batch = KeptBatchSerializer(required=False, help_text="In place of a template.")
    is_active = StrictBooleanField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for name in ("template_id", "values", "overrides"):
            if "batch" in attrs and name in attrs:
                refuse(name, "conflict", f"`{name}` cannot be combined with `batch`.")
        return attrs


class NewScheduleSerializer(ChangedScheduleSerializer):
    """When, and what: a template, or a batch."""

    name = TextField(max_length=200)
    rule = TextField(max_length=500, help_text=RULE_HELP)
    time_zone = TextField(
        required=False, default="UTC", max_length=60, help_text="Such as `Europe/Berlin`."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "batch" not in attrs and "template_id" not in attrs:
            refuse("template_id", "required", "One of `template_id` and `batch` is required.")
        return super().validate(attrs)


class ImageFilterSerializer(StrictSerializer):
    """Images as the gallery would find them; all that is given must be so."""

    review_status = ShortListField(
        child=serializers.ChoiceField(ReviewStatus.choices),
        required=False,
        allow_empty=False,
        max_length=len(ReviewStatus),
        help_text="One of these.",
    )
    saved = StrictBooleanField(required=False)
    tags = TagsField(required=False, allow_empty=False, help_text="All of these.")
    batch = IdField(required=False)
    generation = IdField(required=False)
    model = TextField(required=False, max_length=200)
    format = serializers.ChoiceField([(name, name) for name in sorted(FORMATS)], required=False)
    created_after = MomentField(required=False, help_text="Or at that time.")
    created_before = MomentField(required=False)
    q = TextField(required=False, max_length=Q_MAX_LENGTH, help_text=Q_HELP)

    def validate_q(self, q: str) -> str:
        if not has_words(q):
            raise serializers.ValidationError(NO_WORDS, code="no_words")
        return q

    def to_internal_value(self, data: Any) -> ImageFilter:
        given: dict[str, Any] = super().to_internal_value(data)
        statuses, tags = (tuple(given.pop(name, ())) for name in ("review_status", "tags"))
        return ImageFilter(review_status=tuple(dict.fromkeys(statuses)), tags=tags, **given)


class ImageActionSerializer(StrictSerializer):
    """One thing to do with images: those of `ids`, of a batch, or of a filter."""

    action = serializers.ChoiceField([(str(one), str(one)) for one in Action])
    ids = ShortListField(
        child=IdField(), required=False, allow_empty=False, max_length=ACTION_IDS_MAX
    )
    batch_id = IdField(required=False)
    filter = ImageFilterSerializer(required=False)
    tags = TagsField(
        required=False, allow_empty=False, help_text="With `tag` and `untag`, and only there."
    )
    reason = TextField(
        required=False,
        allow_blank=True,
        max_length=REASON_MAX_LENGTH,
        help_text="With `approve` and `reject` only.",
    )

    def validate_ids(self, ids: list[uuid.UUID]) -> list[uuid.UUID]:
        return each_once(ids)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        given = [name for name in ("ids", "batch_id", "filter") if name in attrs]
        if not given:
            refuse("ids", "required", "One of `ids`, `batch_id` and `filter` is required.")
        if len(given) > 1:
            refuse(given[1], "conflict", f"`{given[1]}` cannot be combined with `{given[0]}`.")
        if attrs.get("filter") == ImageFilter():
            refuse("filter", "required", "Must ask for something.")
        action = attrs["action"] = Action(attrs["action"])
        takes_tags, is_review = action in (Action.TAG, Action.UNTAG), action in REVIEWS
        if takes_tags and "tags" not in attrs:
            refuse("tags", "required", f"`{action}` needs tags.")
        for name, is_taken in (("tags", takes_tags), ("reason", is_review)):
            if name in attrs and not is_taken:
                refuse(name, "conflict", f"`{action}` takes no {name}.")
        return attrs


class ReasonSerializer(StrictSerializer):
    """No body, or why."""

    reason = TextField(required=False, default="", allow_blank=True, max_length=REASON_MAX_LENGTH)


class ChangeImageSerializer(StrictSerializer):
    """What is given is set."""

    is_saved = StrictBooleanField(required=False)
    tags = TagsField(required=False, help_text="In place of those so far.")


def each_once(ids: list[uuid.UUID]) -> list[uuid.UUID]:
    """Ids that are all different. Raises ValidationError."""
    seen: set[uuid.UUID] = set()
    repeated = {}
    for index, one in enumerate(ids):
        if one in seen:
            repeated[str(index)] = [ErrorDetail("This id is given twice.", code="duplicate")]
        seen.add(one)
    if repeated:
        raise serializers.ValidationError(repeated)
    return ids


class PriceField(serializers.DecimalField):
    """An amount of USD as a string: a number of JSON's may not be what it says."""

    default_error_messages = {  # noqa: RUF012  (the base class's form)
        "invalid": 'Must be an amount of USD in a string, from "0.01" to '
        f'"{PRICE_LIMIT_USD}", such as "24.50".',
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(
            max_digits=8,
            decimal_places=2,
            min_value=Decimal("0.01"),
            max_value=PRICE_LIMIT_USD,
            **options,
        )

    def to_internal_value(self, data: Any) -> Decimal:
        if not isinstance(data, str) or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,2})?", data):
            self.fail("invalid")
        return super().to_internal_value(data)


@extend_schema_field(serializers.ChoiceField(ChannelName.choices))
class ChannelField(TextField):
    """The name of a channel, which is looked up where the others are known that there are."""


class PublishSerializer(StrictSerializer):
    """What an image is to become, and where."""

    channel = ChannelField(max_length=20, help_text="One of `GET channels/`.")
    product_type = TextField(max_length=50, help_text="One of the channel's `product_types`.")
    title = TextField(
        max_length=200,
        help_text="`{index}` in it stands for the image's number, from 1; `{{` and `}}` stand for "
        "braces.",
    )
    description = TextField(required=False, default="", allow_blank=True, max_length=10_000)
    tags = TagsField(required=False, default=list)
    price_usd = PriceField(
        required=False, default=None, help_text="Decimal; without it the product type's own."
    )


class PublishManySerializer(PublishSerializer):
    """Several images as products of one kind, all of them or none."""

    image_ids = ShortListField(child=IdField(), allow_empty=False, max_length=PUBLISHED_MAX)

    def validate_image_ids(self, ids: list[uuid.UUID]) -> list[uuid.UUID]:
        return each_once(ids)


class AccountSerializer(StrictSerializer):
    """An account at a channel. Each channel has credentials and options of its own."""

    credentials = serializers.DictField(
        write_only=True, help_text='Printify: `{"token"}`. Shopify: `{"access_token"}`.'
    )
    options = serializers.DictField(
        required=False,
        default=dict,
        help_text="Printify: `shop_id`, `products`. Shopify: `shop` (its myshopify.com domain), "
        "`status` (`ACTIVE`, `DRAFT`), `vendor`, `products`. `products` adds product types.",
    )


def field_names(serializer: type[StrictSerializer]) -> list[str]:
    return [str(name) for name in serializer._declared_fields]


def check_batch_size(name: str, size: int) -> None:
    """Raises ValidationError if a batch may not have so many prompts."""
    if size > (limit := settings.MAX_BATCH_SIZE):
        refuse(name, "too_many", f"A batch may have at most {limit} prompts, not {size}.")


def refuse(name: str, code: str, detail: str) -> None:
    """Raises ValidationError."""
    raise serializers.ValidationError({name: [ErrorDetail(detail, code=code)]})
