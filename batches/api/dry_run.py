"""`?dry_run=true`: what would be made, in place of making it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    PolymorphicProxySerializer,
    extend_schema_field,
)
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from batches.api.idempotency import parse_key
from batches.api.parameters import takes
from batches.api.serializers import ETA_REASONS
from batches.catalogue import get_model
from batches.outline import Outline, Outlined, outline
from batches.submission import Asked

DRY_RUN = OpenApiParameter(
    "dry_run",
    bool,
    OpenApiParameter.QUERY,
    description="With `true`, the answer tells what would be made; nothing is stored, nothing is "
    "fetched, and an `Idempotency-Key` is of no account.",
)


class OutlinedSizeSerializer(serializers.Serializer):
    width_px = serializers.IntegerField()
    height_px = serializers.IntegerField()


class OutlinedSerializer(serializers.Serializer):
    """One generation that would be made."""

    index = serializers.IntegerField()
    prompt = serializers.CharField(source="plan.prompt")
    final_prompt = serializers.CharField(source="plan.final_prompt")
    negative_prompt = serializers.CharField(source="plan.negative_prompt")
    model = serializers.CharField(source="plan.model")
    provider = serializers.CharField(source="plan.provider")
    seed = serializers.SerializerMethodField(help_text="Null: a random one, or none.")
    settings = serializers.JSONField(source="plan.settings")
    metadata = serializers.JSONField(source="plan.metadata")
    input = serializers.SerializerMethodField(
        help_text="For the model, in its own words; without a random seed."
    )
    size = serializers.SerializerMethodField(help_text="Of what is stored; null: not known before.")
    output_count = serializers.IntegerField(source="plan.output_count")
    cost_usd = serializers.DecimalField(max_digits=12, decimal_places=6)

    @extend_schema_field({"type": ["integer", "null"]})
    def get_seed(self, item: Outlined) -> int | None:
        return None if item.plan.is_seed_random else item.plan.seed

    @extend_schema_field({"type": "object", "additionalProperties": True})
    def get_input(self, item: Outlined) -> dict[str, Any]:
        model = get_model(item.plan.model)
        seed = model.by_role("seed") if model and item.plan.is_seed_random else None
        return {name: one for name, one in item.plan.input.items() if not seed or name != seed.name}

    @extend_schema_field(OutlinedSizeSerializer(allow_null=True))
    def get_size(self, item: Outlined) -> dict[str, int] | None:
        size_px = item.plan.size_px
        return size_px and {"width_px": size_px[0], "height_px": size_px[1]}


class LimitSerializer(serializers.Serializer):
    """Something that would have a part of it wait."""

    code = serializers.ChoiceField(
        (
            "user_cap",
            "ahead_in_line",
            "global_cap",
            "provider_stopped",
            "provider_away",
            "provider_rate_limited",
            "provider_capacity",
        )
    )
    provider = serializers.CharField(help_text="Empty where it is not about one.")
    limit = serializers.IntegerField(allow_null=True, help_text="Generations at a time.")
    used = serializers.IntegerField(allow_null=True, help_text="Of the limit, or ahead in line.")
    asked = serializers.IntegerField(allow_null=True)
    detail = serializers.CharField()


class OutlineSerializer(serializers.Serializer):
    """What a request would make."""

    dry_run = serializers.SerializerMethodField(help_text="Always true.")
    total_count = serializers.SerializerMethodField()
    items = OutlinedSerializer(many=True)
    cost_usd = serializers.DecimalField(max_digits=12, decimal_places=6)
    eta_seconds = serializers.IntegerField(
        source="eta.seconds",
        allow_null=True,
        help_text="Until the last item would have ended; null where `eta_reason` says why.",
    )
    eta_reason = serializers.SerializerMethodField()
    limits = LimitSerializer(many=True)

    def get_dry_run(self, outlined: Outline) -> bool:
        return True

    def get_total_count(self, outlined: Outline) -> int:
        return len(outlined.items)

    @extend_schema_field(ETA_REASONS)
    def get_eta_reason(self, outlined: Outline) -> str | None:
        return outlined.eta.reason


def ended_or_outlined(name: str, result: type[serializers.Serializer]) -> OpenApiResponse:
    """What 200 means of a creation: its result, or an outline. `name` is for the schema."""
    return OpenApiResponse(
        PolymorphicProxySerializer(
            component_name=name,
            serializers=[result, OutlineSerializer],
            resource_type_field_name=None,
        ),
        description="It has ended while you waited; or what a dry run tells.",
    )


def is_dry_run(request: Request) -> bool:
    """Raises ValidationError for what is neither true nor false."""
    asked = request.query_params.get("dry_run", "false")
    if asked not in ("true", "false"):
        raise ValidationError({"dry_run": [ErrorDetail("Must be true or false.", code="invalid")]})
    return asked == "true"


def with_dry_run(ask: Callable[..., Asked]) -> Callable[[Callable[..., Response]], Any]:
    """Wraps a view's method that makes work, outside of `idempotent`.

    `ask` reads the same request, with the method's arguments.
    """

    def wrap(act: Callable[..., Response]) -> Callable[..., Response]:
        @takes(DRY_RUN.name)
        @wraps(act)
        def told(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
            if not is_dry_run(request):
                return act(view, request, *args, **kwargs)
            if (key := request.headers.get("Idempotency-Key")) is not None:
                parse_key(key)
            asked = ask(view, request, *args, **kwargs)
            return Response(OutlineSerializer(outline(view.owner_id, asked)).data)

        return told

    return wrap
