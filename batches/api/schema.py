"""What every operation of the schema has in common."""

from typing import Any, Literal

from drf_spectacular.openapi import AutoSchema

from batches.api.errors import CONTENT_TYPE
from batches.forms import StrictSerializer

# What an object that is not there means for a list.
_NO_CURSOR = "There is no such cursor."

_DESCRIPTIONS = {
    "400": "The body is not valid JSON, or a query parameter or header is malformed.",
    "401": "No valid token.",
    "404": "There is no such object, or it is not yours.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "422": "Fields or parameters that cannot be accepted, each named in `errors`.",
    "503": "The database does not answer; `Retry-After` says when to try again.",
}


class ProblemAutoSchema(AutoSchema):
    """Adds the problem details that an operation may answer with, and what strict forms refuse."""

    def _map_basic_serializer(
        self, serializer: Any, direction: Literal["request", "response"]
    ) -> dict[str, Any]:
        schema: dict[str, Any] = super()._map_basic_serializer(  # type: ignore[no-untyped-call]
            serializer, direction
        )
        if direction == "request" and isinstance(serializer, StrictSerializer):
            schema["additionalProperties"] = False
        return schema

    def _map_serializer_field(
        self, field: Any, direction: Any, bypass_extensions: Any = False
    ) -> dict[str, Any]:
        schema: dict[str, Any] = super()._map_serializer_field(  # type: ignore[no-untyped-call]
            field, direction, bypass_extensions
        )
        if getattr(field, "allow_empty", True) is False and schema.get("type") == "array":
            schema["minItems"] = max(1, schema.get("minItems", 1))
        # Any value at all: null is one of them already.
        if schema.get("oneOf") == [{}, {"type": "null"}]:
            del schema["oneOf"]
        return schema

    def _get_response_bodies(
        self, direction: Literal["request", "response"] = "response"
    ) -> dict[str, Any]:
        # The decorators in that module look this class up.
        from batches.api.serializers import ProblemSerializer

        responses: dict[str, Any] = super()._get_response_bodies(direction)
        codes = ["401", "422", "503"]
        if "{" in self.path:
            codes.append("404")
        if self.method in ("POST", "PUT", "PATCH"):
            codes += ["400", "413", "415"]
        elif self._is_list_view():
            codes.append("404")
        problem = self.resolve_serializer(ProblemSerializer, "response").ref
        for code in sorted(codes):
            responses.setdefault(
                code,
                {
                    "content": {CONTENT_TYPE: {"schema": problem}},
                    "description": _DESCRIPTIONS[code]
                    if code != "404" or "{" in self.path
                    else _NO_CURSOR,
                },
            )
        responses["503"]["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
        }
        return responses
