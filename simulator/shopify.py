"""The routes under /shopify/<shop>: the Admin GraphQL API, and the target of staged uploads.

Words in a token or a shop make special ones: a token with `bad` at the start is refused,
`readonly` and `nopublish` lack scopes; a shop whose name begins with `missing`, `frozen` or
`locked` answers 404, 402 or 423. Errors have the shapes of the real service: top-level `errors`
with status 200 for a document that is not valid, user errors for input that is not.

Source: shopify.dev, Admin GraphQL and API limits, read 2026-11-20.
"""

from __future__ import annotations

import asyncio
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from aiohttp import BodyPartReader, web
from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
    build_schema,
    execute_sync,
    is_input_type,
    parse,
    print_ast,
    type_from_ast,
    validate,
)
from graphql.language import FragmentDefinitionNode, FragmentSpreadNode, InlineFragmentNode
from graphql.pyutils import Undefined
from graphql.utilities import validate_input_value

from simulator.faults import Rule
from simulator.shopify_store import MAX_IMAGE_BYTES, STAGED, ShopifyAccount, Store, Target
from simulator.shops import (
    REFUSED_TOKENS,
    SHOPS,
    BadImage,
    Shops,
    inspect_image,
    serve,
    whole_seconds,
)
from simulator.state import STATE
from simulator.wire import json_response

DOMAIN = re.compile(r"^[a-z0-9][a-z0-9-]*\.myshopify\.com$")
VERSION = re.compile(r"^(20\d\d-(01|04|07|10)|unstable)$")
# What a shop answers whose name begins like this, and how it says so.
SPECIAL_SHOPS = {
    "missing": (404, "Not Found"),
    "frozen": (402, "Unavailable Shop"),
    "locked": (423, "Locked"),
}
MAX_QUERY_COST = 1000.0
MUTATION_COST, OBJECT_COST, CONNECTION_COST = 10.0, 1.0, 2.0
LIMITS_PAGE = "https://shopify.dev/api/usage/rate-limits"

_UNKNOWN_FIELD = re.compile(r"^Cannot query field '(\w+)' on type '(\w+)'\.")
_UNKNOWN_ARGUMENT = re.compile(r"^Unknown argument '(\w+)' on field '(\w+)\.(\w+)'\.")
_UNKNOWN_INPUT = re.compile(r"^Expected value of type '(\w+)' not to include unknown field '(\w+)'")
_MISSING_INPUT = re.compile(r"^Expected value of type '\w+' to include required field '(\w+)'")


class Query(NamedTuple):
    """A valid request: the document, its one operation, the variables that it declares."""

    document: DocumentNode
    operation: OperationDefinitionNode
    variables: dict[str, Any]

    def root_fields(self) -> list[str]:
        """Return the names of what is asked of the root."""
        selections = self.operation.selection_set.selections
        return [s.name.value for s in selections if isinstance(s, FieldNode)]


class InvalidQuery(Exception):
    """A request that is no valid query; `errors` says why."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(str(errors))
        self.errors = errors


def mount(app: web.Application) -> None:
    """Add Shopify to a simulator that has shops."""
    app.router.add_post("/shopify/{shop}/admin/api/{version}/graphql.json", _graphql)
    app.router.add_post(f"{STAGED}/", _post_file)
    app.router.add_put(f"{STAGED}/{{key:.+}}", _put_file)


@lru_cache(maxsize=1)
def schema() -> GraphQLSchema:
    """Return the schema."""
    built = build_schema(Path(__file__).with_name("shopify.graphql").read_text())
    money = built.type_map["Money"]
    money.coerce_input_value = _money  # type: ignore[attr-defined]
    return built


async def _graphql(request: web.Request) -> web.StreamResponse:
    """Answer `POST /shopify/<shop>/admin/api/<version>/graphql.json`."""
    part, shop = request.app[SHOPS], request.match_info["shop"]
    version = request.match_info["version"]
    for name, (status, text) in SPECIAL_SHOPS.items():
        if shop.startswith(name):
            return json_response({"errors": text}, status)
    if not DOMAIN.match(shop) or not VERSION.match(version):
        return json_response({"errors": "Not Found"}, 404)
    token = request.headers.get("X-Shopify-Access-Token", "")
    if not token or token.startswith(REFUSED_TOKENS):
        text = "[API] Invalid API key or access token (unrecognized login or wrong password)"
        return json_response({"errors": text}, 401)
    if request.content_type != "application/json":
        return json_response({"errors": "Unsupported Media Type"}, 415)
    account = part.account(ShopifyAccount, "shopify", shop, token)
    text = (await request.read()).decode("utf-8", "replace")
    errors: list[dict[str, Any]] = []
    query: Query | None = None
    try:
        query = _read(text)
    except InvalidQuery as invalid:
        errors = invalid.errors
    roots = query.root_fields() if query is not None else []
    for name in roots[1:]:
        account.calls[name] += 1

    async def answer(rules: dict[str, Rule]) -> web.Response:
        if query is None:
            response = json_response({"errors": errors})
        else:
            response = json_response(_execute(part, account, query, request, rules))
        response.headers["X-Shopify-API-Version"] = version
        return response

    def throttled(rule: Rule) -> web.Response:
        cost = 0.0 if query is None else _cost(query)
        response = json_response(_throttled(part, account, cost))
        if rule.options["retry_after"] is not None:
            response.headers["Retry-After"] = str(rule.options["retry_after"])
        return response

    operation = roots[0] if roots else "invalid"
    return await serve(request, account, operation, text, answer, throttled)


def _read(text: str) -> Query:
    """Return the query in a body.

    Raises:
        InvalidQuery: for a body that has none, and for one that the schema does not know.
    """
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("query"), str):
        raise InvalidQuery([{"message": "Required parameter missing or invalid: query"}])
    try:
        document = parse(body["query"])
    except GraphQLSyntaxError as error:
        raise InvalidQuery([_invalid_document(error)]) from error
    problems = validate(schema(), document)
    if problems:
        raise InvalidQuery([_invalid_document(problem) for problem in problems])
    wanted = body.get("operationName")
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    named = [o for o in operations if o.name is not None and o.name.value == wanted]
    if (wanted and not named) or (not wanted and len(operations) > 1):
        raise InvalidQuery([{"message": f"No operation named {json.dumps(wanted)}"}])
    operation = named[0] if named else operations[0]
    given = body.get("variables") or {}
    if not isinstance(given, dict):
        raise InvalidQuery([{"message": "Variables must be an object"}])
    return Query(document, operation, _variables(operation, given))


def _variables(operation: OperationDefinitionNode, given: dict[str, Any]) -> dict[str, Any]:
    """Return the variables that the operation declares. Raises InvalidQuery."""
    errors, variables = [], {}
    for definition in operation.variable_definitions or ():
        name = definition.variable.name.value
        kind = type_from_ast(schema(), definition.type)
        assert is_input_type(kind)
        if name not in given and definition.default_value is not None:
            continue
        value = given.get(name, Undefined)
        problems: list[dict[str, Any]] = []

        def note(
            error: GraphQLError, path: list[str | int], into: list[dict[str, Any]] = problems
        ) -> None:
            into.append(_problem(error.message, path))

        validate_input_value(value, kind, note, hide_suggestions=True)
        if name in given:
            variables[name] = value
        if problems:
            errors.append(_invalid_variable(definition, value, problems))
    if errors:
        raise InvalidQuery(errors)
    return variables


def _problem(message: str, path: list[str | int]) -> dict[str, Any]:
    unknown, missing = _UNKNOWN_INPUT.match(message), _MISSING_INPUT.match(message)
    if unknown is not None:
        explanation = f"Field is not defined on {unknown[1]}"
        return {"path": [*path, unknown[2]], "explanation": explanation}
    if missing is not None:
        return {"path": [*path, missing[1]], "explanation": "Expected value to not be null"}
    if "non-null type" in message:
        return {"path": list(path), "explanation": "Expected value to not be null"}
    return {"path": list(path), "explanation": message}


def _invalid_variable(
    definition: Any, value: Any, problems: list[dict[str, Any]]
) -> dict[str, Any]:
    name, kind = definition.variable.name.value, print_ast(definition.type)
    details = ", ".join(
        f"{'.'.join(str(step) for step in problem['path'])} ({problem['explanation']})"
        for problem in problems
        if problem["path"]
    )
    message = f"Variable ${name} of type {kind} was provided invalid value"
    extensions = {
        "code": "INVALID_VARIABLE",
        "value": None if value is Undefined else value,
        "problems": problems,
    }
    return {
        "message": f"{message} for {details}" if details else message,
        "locations": [_location(definition)],
        "extensions": extensions,
    }


def _invalid_document(error: GraphQLError) -> dict[str, Any]:
    """Return an error of a document as Shopify words it."""
    body: dict[str, Any] = {"message": error.message}
    body["locations"] = [{"line": at.line, "column": at.column} for at in error.locations or ()]
    unknown, argument = _UNKNOWN_FIELD.match(error.message), _UNKNOWN_ARGUMENT.match(error.message)
    if unknown is not None:
        body["message"] = f"Field '{unknown[1]}' doesn't exist on type '{unknown[2]}'"
        extensions = {"typeName": unknown[2], "fieldName": unknown[1]}
        body["extensions"] = {"code": "undefinedField", **extensions}
    elif argument is not None:
        body["message"] = f"Field '{argument[3]}' doesn't accept argument '{argument[1]}'"
        extensions = {"name": argument[3], "typeName": "Field", "argumentName": argument[1]}
        body["extensions"] = {"code": "argumentNotAccepted", **extensions}
    return body


def _location(node: Any) -> dict[str, int]:
    token = node.loc.start_token
    return {"line": token.line, "column": token.column}


def _execute(
    part: Shops,
    account: ShopifyAccount,
    query: Query,
    request: web.Request,
    rules: dict[str, Rule],
) -> dict[str, Any]:
    """Return the answer to a valid query that the account can pay."""
    cost, settings = _cost(query), part.settings
    if cost > MAX_QUERY_COST:
        text = f"Query cost is {cost:g}, which exceeds the single query max cost limit "
        extensions = {"code": "MAX_COST_EXCEEDED", "cost": cost, "maxCost": MAX_QUERY_COST}
        error = {"message": f"{text}({MAX_QUERY_COST:g}).", "extensions": extensions}
        return {"errors": [error]}
    if not account.spend(cost, settings.points, settings.points_per_second):
        return _throttled(part, account, cost)
    store = Store(part, account, request.app[STATE].base_url(request), rules)
    result = execute_sync(
        schema(),
        query.document,
        root_value=store,
        variable_values=query.variables,
        operation_name=None if query.operation.name is None else query.operation.name.value,
    )
    answer: dict[str, Any] = {"data": result.data}
    if result.errors:
        answer["errors"] = [error.formatted for error in result.errors]
    answer["extensions"] = _extensions(part, account, cost, cost)
    return answer


def _throttled(part: Shops, account: ShopifyAccount, cost: float) -> dict[str, Any]:
    extensions = {"code": "THROTTLED", "documentation": LIMITS_PAGE}
    return {
        "errors": [{"message": "Throttled", "extensions": extensions}],
        "extensions": _extensions(part, account, cost, None),
    }


def _extensions(
    part: Shops, account: ShopifyAccount, asked: float, spent: float | None
) -> dict[str, Any]:
    settings = part.settings
    status = {
        "maximumAvailable": settings.points,
        "currentlyAvailable": int(account.available(settings.points)),
        "restoreRate": settings.points_per_second,
    }
    cost = {"requestedQueryCost": asked, "actualQueryCost": spent, "throttleStatus": status}
    return {"cost": cost}


def _cost(query: Query) -> float:
    """Return what a query costs: 10 a mutation, 1 an object, a list by the entries asked for."""
    fragments = {
        d.name.value: d for d in query.document.definitions if isinstance(d, FragmentDefinitionNode)
    }
    if query.operation.operation.value == "mutation":
        return MUTATION_COST * len(query.root_fields())
    return _selection_cost(query.operation.selection_set, fragments, query.variables)


def _selection_cost(
    selected: SelectionSetNode,
    fragments: dict[str, FragmentDefinitionNode],
    variables: dict[str, Any],
) -> float:
    total = 0.0
    for node in selected.selections:
        if isinstance(node, FragmentSpreadNode):
            inner = fragments[node.name.value].selection_set
            total += _selection_cost(inner, fragments, variables)
        elif isinstance(node, InlineFragmentNode):
            total += _selection_cost(node.selection_set, fragments, variables)
        elif isinstance(node, FieldNode) and node.selection_set is not None:
            inside = _selection_cost(node.selection_set, fragments, variables)
            size = _page_size(node, variables)
            if node.name.value in ("nodes", "edges", "node", "pageInfo"):
                total += inside
            elif size is None:
                total += OBJECT_COST + inside
            else:
                total += CONNECTION_COST + size * (OBJECT_COST + inside)
    return total


def _page_size(node: FieldNode, variables: dict[str, Any]) -> int | None:
    for argument in node.arguments or ():
        if argument.name.value not in ("first", "last"):
            continue
        value = argument.value
        if isinstance(value, IntValueNode):
            return int(value.value)
        if isinstance(value, VariableNode):
            given = variables.get(value.name.value)
            return given if isinstance(given, int) else None
    return None


def _money(value: Any) -> str:
    """Return an amount with two decimals. Raises GraphQLError."""
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+(\.\d+)?", text):
        raise GraphQLError(f"Money cannot represent {json.dumps(value)}")
    return f"{float(text):.2f}"


async def _post_file(request: web.Request) -> web.StreamResponse:
    """Answer a multipart `POST` to the staged target: the parameters first, the file last."""
    if request.content_type != "multipart/form-data":
        return _refuse_file(412, "PreconditionFailed", "A multipart/form-data body is required.")
    fields: dict[str, str] = {}
    async for part in await request.multipart():
        if not isinstance(part, BodyPartReader):
            continue
        if part.name != "file":
            fields[part.name or ""] = await part.text()
            continue
        # What comes after the file is not read: parameters there are missing.
        target = _target(request.app[SHOPS], fields.get("key", ""))
        if "key" not in fields:
            text = "Bucket POST must contain a field named 'key'. If it is specified, please check "
            return _refuse_file(400, "InvalidArgument", text + "the order of the fields.")
        if target is None or target[1].method != "POST":
            return _refuse_file(403, "AccessDenied", "The policy does not allow this key.")
        for name, value in target[1].parameters.items():
            if fields.get(name) != value:
                return _refuse_file(403, "AccessDenied", f"Policy Condition failed: {name}")
        return await _keep(request, *target, bytes(await part.read()), status=201)
    return _refuse_file(400, "InvalidArgument", "POST requires exactly one file.")


async def _put_file(request: web.Request) -> web.StreamResponse:
    """Answer a `PUT` to the staged target; the signature is in the query."""
    target = _target(request.app[SHOPS], unquote(request.match_info["key"]))
    if target is None or target[1].method != "PUT" or "X-Goog-Signature" not in request.query:
        return _refuse_file(403, "SignatureDoesNotMatch", "The signature does not match.")
    if request.headers.get("Content-Type") != target[1].mime_type:
        return _refuse_file(403, "SignatureDoesNotMatch", "Content-Type is not as signed.")
    return await _keep(request, *target, await request.read(), status=200)


def _target(part: Shops, key: str) -> tuple[ShopifyAccount, Target] | None:
    for account in part.accounts(ShopifyAccount):
        if key in account.targets:
            return account, account.targets[key]
    return None


async def _keep(
    request: web.Request, account: ShopifyAccount, target: Target, data: bytes, status: int
) -> web.StreamResponse:
    """Take a file for a target that knows its sender."""

    async def answer(_rules: dict[str, Rule]) -> web.Response:
        if len(data) > MAX_IMAGE_BYTES:
            return _refuse_file(400, "EntityTooLarge", "The upload exceeds the maximum size.")
        try:
            loop = asyncio.get_running_loop()
            target.file = await loop.run_in_executor(None, inspect_image, data)
        except BadImage as error:
            target.problem = str(error)
        text = f"<PostResponse><Location>{target.resource_url}</Location><Key>{target.key}</Key>"
        body = f"{text}</PostResponse>" if status == 201 else ""
        return web.Response(text=body, status=status, content_type="application/xml")

    def throttled(rule: Rule) -> web.Response:
        response = _refuse_file(429, "TooManyRequests", "Too many requests.")
        response.headers["Retry-After"] = str(rule.options["retry_after"] or whole_seconds(1))
        return response

    return await serve(request, account, "staged_upload", target.key, answer, throttled)


def _refuse_file(status: int, code: str, message: str) -> web.Response:
    text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code>"
    text += f"<Message>{message}</Message></Error>"
    return web.Response(text=text, status=status, content_type="application/xml")
