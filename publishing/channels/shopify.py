"""Shopify: the Admin GraphQL API of one shop in, steps and failures out.

The picture is uploaded to a place that Shopify names and becomes part of the product in the same
step, so that no address of it is kept until it has expired. The product's handle is the item's
key, and it is set by that handle: setting it again changes it and makes no second one. It is then
published to the online store; it is done when Shopify has processed the picture.

Source: Shopify GraphQL Admin API reference (2025-04 and later), read 2026-11-20
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from generation.answers import cut, text_of
from generation.http import HttpClient, OutputHosts, Response, TransportError
from generation.provider import ErrorClass, Failure
from publishing.channel import CHANGED, Account, Done, Item, Limits, NotThere, Pending, Step
from publishing.channels.failures import Failures
from publishing.channels.items import (
    as_url,
    asked_price,
    check_token,
    description_html,
    file_name,
    refused,
)
from publishing.products import SHOP_PATTERN

PICTURE_MAX_BYTES = 20_000_000
PICTURE_MAX_PIXELS = 25_000_000
UPLOAD_DEADLINE_S = 120.0
SET_DEADLINE_S = 60.0
READ_DEADLINE_S = 20.0
CHECK_DEADLINE_S = 10.0  # somebody waits for it
MEDIA_WAIT_S = 2.0
# Of a request that is too dear at the moment and does not say by how much.
THROTTLED_WAIT_S = 2.0
THROTTLED_WAIT_MAX_S = 120.0
ONLINE_STORE = "Online Store"

# It is new variants that a shop may have so many of a day.
PRODUCT = Step("product", publishes=True, sends=True)
PUBLISH = Step("publish")
MEDIA = Step("media", creates=False)

# Where Shopify has files uploaded to.
_UPLOAD_HOSTS = (
    "storage.googleapis.com",
    ".storage.googleapis.com",
    ".shopify.com",
    ".shopifycloud.com",
    ".myshopify.com",
)
_GID = re.compile(r"gid://shopify/[A-Za-z]{1,50}/[A-Za-z0-9_-]{1,50}")
_BY_CODE = {
    "THROTTLED": ErrorClass.RATE_LIMITED,
    "ACCESS_DENIED": ErrorClass.AUTH,
    "UNAUTHORIZED": ErrorClass.AUTH,
    "FORBIDDEN": ErrorClass.AUTH,
    "SHOP_INACTIVE": ErrorClass.AUTH,
    "NOT_FOUND": ErrorClass.NOT_FOUND,
    "RESOURCE_NOT_FOUND": ErrorClass.NOT_FOUND,
    "MAX_COST_EXCEEDED": ErrorClass.INVALID_INPUT,
    "BAD_REQUEST": ErrorClass.INVALID_INPUT,
    "INVALID_VARIABLE": ErrorClass.INVALID_INPUT,
    "argumentLiteralsIncompatible": ErrorClass.INVALID_INPUT,
    "argumentNotAccepted": ErrorClass.INVALID_INPUT,
    "missingRequiredArguments": ErrorClass.INVALID_INPUT,
    "missingRequiredInputObjectAttribute": ErrorClass.INVALID_INPUT,
    "undefinedField": ErrorClass.INVALID_INPUT,
    "undefinedType": ErrorClass.INVALID_INPUT,
    "variableMismatch": ErrorClass.INVALID_INPUT,
    # INTERNAL_SERVER_ERROR and words from the future: see `_of_errors`.
}
_GONE = frozenset({"NOT_FOUND", "PRODUCT_DOES_NOT_EXIST"})

_NEEDED_SCOPES = ("write_products", "write_files", "write_publications")

_SCOPES = "query PictureScopes { currentAppInstallation { accessScopes { handle } } }"
_SHOP = "query PictureShop { shop { name myshopifyDomain } }"
_STAGE = """
mutation PictureStage($input: [StagedUploadInput!]!) {
  stagedUploadsCreate(input: $input) {
    stagedTargets { url resourceUrl parameters { name value } }
    userErrors { field message }
  }
}
"""
_SET = """
mutation PictureProduct($identifier: ProductSetIdentifiers, $input: ProductSetInput!) {
  productSet(synchronous: true, identifier: $identifier, input: $input) {
    product { id handle }
    userErrors { code field message }
  }
}
"""
_FIND = """
query PictureFind($identifier: ProductIdentifierInput!) {
  productByIdentifier(identifier: $identifier) { id handle }
}
"""
_PUBLICATIONS = "query PicturePublications { publications(first: 50) { nodes { id name } } }"
_PUBLISH = """
mutation PicturePublish($id: ID!, $input: [PublicationInput!]!) {
  publishablePublish(id: $id, input: $input) {
    userErrors { field message }
  }
}
"""
_PUBLISHED = """
query PicturePublished($id: ID!, $publicationId: ID!) {
  product(id: $id) { id publishedOnPublication(publicationId: $publicationId) }
}
"""
_MEDIA = """
query PictureMedia($id: ID!) {
  product(id: $id) {
    id
    onlineStoreUrl
    onlineStorePreviewUrl
    media(first: 10) { nodes { id status } }
  }
}
"""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a field of a query came to, and the answer it is of."""

    value: Any
    response: Response


class Shopify:
    """One shop at Shopify.

    `base_url` is where its API is; `{shop}` in it stands for the shop's domain. `status` is that
    of new products, ACTIVE or DRAFT. Raises ValueError for a token that no header can carry and
    for a shop that is not one of Shopify's.
    """

    name: ClassVar[str] = "shopify"
    # What a shop may ask for is counted by cost: this is what the calls here come to at the
    # lowest plan's rate. Above 50,000 variants no more than 1,000 are made a day.
    limits: ClassVar[Limits] = Limits(300, 1_000, 86_400)
    kept_ids: ClassVar[frozenset[str]] = frozenset({"product_id"})
    changes_product: ClassVar[bool] = True

    def __init__(
        self,
        access_token: str,
        shop: str,
        *,
        http: HttpClient,
        base_url: str = "https://{shop}",
        api_version: str = "2026-04",
        status: str = "ACTIVE",
        vendor: str = "",
    ) -> None:
        check_token(access_token)
        if not re.fullmatch(SHOP_PATTERN, shop):
            raise ValueError("The shop is not a domain at myshopify.com.")
        self._token = access_token
        self._shop = shop
        self._http = http
        base = base_url.replace("{shop}", shop).rstrip("/")
        self._url = f"{base}/admin/api/{api_version}/graphql.json"
        # Somebody else's host takes the files as well, if it is the operator's wish.
        host = urlsplit(base).netloc
        self._upload_hosts = OutputHosts(_UPLOAD_HOSTS, () if host == shop else (host,))
        self._status = status
        self._vendor = vendor
        self._failures = Failures("Shopify", access_token)

    def __repr__(self) -> str:
        return f"Shopify({self._url!r})"

    def check(self) -> Account | Failure:
        """Ask for the shop's name, and whether the token allows what is done here."""
        missing = self._missing_scopes()
        if isinstance(missing, Failure):
            return missing
        if missing:
            message = f"The access token has no scope {' and no scope '.join(missing)}."
            return Failure(ErrorClass.AUTH, message, fields={"access_token": message})
        answer = self._ask(_SHOP, {}, "shop", deadline_s=CHECK_DEADLINE_S / 2)
        if isinstance(answer, Failure):
            return answer
        if not isinstance(answer.value, dict):
            return self._failures.of_unreadable(answer.response, creates=False)
        name = answer.value.get("name")
        title = " ".join(name.split())[:200] if isinstance(name, str) else ""
        return Account(title or self._shop, ({"id": self._shop, "title": title or self._shop},))

    def _missing_scopes(self) -> list[str] | Failure:
        answer = self._ask(_SCOPES, {}, "currentAppInstallation", deadline_s=CHECK_DEADLINE_S / 2)
        if isinstance(answer, Failure):
            return answer
        listed = answer.value.get("accessScopes") if isinstance(answer.value, dict) else None
        if not isinstance(listed, list):
            return self._failures.of_unreadable(answer.response, creates=False)
        scopes = [scope.get("handle") for scope in listed if isinstance(scope, dict)]
        return [scope for scope in _NEEDED_SCOPES if scope not in scopes]

    def next_step(self, item: Item) -> Step | None:
        """Create, publish, wait for the picture."""
        for step, remote_id in ((PRODUCT, "product_id"), (PUBLISH, "published"), (MEDIA, "media")):
            if not item.remote_ids.get(remote_id):
                return step
        return None

    def take(self, step: Step, item: Item) -> Done | Pending | Failure:
        """Take a step, once; see `Channel.take`."""
        match step.name:
            case PRODUCT.name:
                return self._set(item)
            case PUBLISH.name:
                return self._publish(item)
        return self._look_at_media(item)

    def find(self, step: Step, item: Item) -> Done | NotThere | Failure:
        """Look for what a lost call has done; see `Channel.find`."""
        if step.name == PRODUCT.name:
            if item.remote_ids.get(CHANGED):
                # The product tells nothing; setting it again does no harm.
                return NotThere()
            answer = self._ask(_FIND, {"identifier": {"handle": item.key}}, "productByIdentifier")
            if isinstance(answer, Failure):
                return answer
            if answer.value is None:
                return NotThere()
            product_id = _gid_of(answer.value)
            if not product_id:
                return self._failures.of_unreadable(answer.response, creates=False)
            return Done({"product_id": product_id}, raw=cut(answer.value))
        publications = self._publications()
        if isinstance(publications, Failure):
            return publications
        for publication_id in publications:
            variables = {"id": self._product_id(item), "publicationId": publication_id}
            answer = self._ask(_PUBLISHED, variables, "product")
            if isinstance(answer, Failure):
                return answer
            # A product that is gone is not published either; what to do then, `take` says.
            product = answer.value if isinstance(answer.value, dict) else {}
            if product.get("publishedOnPublication") is not True:
                return NotThere()
        return Done({"published": "1"})

    def _set(self, item: Item) -> Done | Failure:
        price = asked_price(item, max_bytes=PICTURE_MAX_BYTES, max_pixels=PICTURE_MAX_PIXELS)
        if isinstance(price, Failure):
            return price
        source = self._upload(item)
        if isinstance(source, Failure):
            return source
        option, value = "Title", "Default Title"  # of a product without options
        product: dict[str, Any] = {
            "title": item.title,
            "handle": item.key,
            "descriptionHtml": description_html(item),
            "productType": str(item.product.get("product_type") or item.product_type),
            "tags": list(item.tags),
            "status": self._status,
            "productOptions": [{"name": option, "values": [{"name": value}]}],
            "variants": [
                {
                    "optionValues": [{"optionName": option, "name": value}],
                    "price": str(price),
                    # It is made when it is ordered.
                    "inventoryPolicy": "CONTINUE",
                }
            ],
            "files": [{"originalSource": source, "alt": item.title, "contentType": "IMAGE"}],
        }
        if self._vendor:
            product["vendor"] = self._vendor
        variables = {"identifier": {"handle": item.key}, "input": product}
        answer = self._change(_SET, variables, "productSet", SET_DEADLINE_S)
        if isinstance(answer, Failure):
            return answer
        product_id = _gid_of(answer.value.get("product"))
        if not product_id:  # set, but under an id that we cannot read
            return self._failures.of_unreadable(answer.response, creates=True)
        done = {CHANGED: ""} if item.remote_ids.get(CHANGED) else {}
        return Done({"product_id": product_id, **done}, raw=cut(answer.value))

    def _upload(self, item: Item) -> str | Failure:
        """Hand the picture over and return its address; repeating this is harmless."""
        file = item.artwork
        wanted = {
            "filename": file_name(item),
            "mimeType": file.content_type,
            "resource": "IMAGE",
            "httpMethod": "POST",
            "fileSize": str(file.size_bytes),
        }
        answer = self._change(
            _STAGE, {"input": [wanted]}, "stagedUploadsCreate", READ_DEADLINE_S, creates=False
        )
        if isinstance(answer, Failure):
            return answer
        target = _read_target(answer.value.get("stagedTargets"))
        if target is None or not self._upload_hosts.allows(target[0]):
            return self._failures.of_unreadable(answer.response, creates=False)
        url, source, parameters = target
        try:
            uploaded = self._http.upload(
                url,
                file,
                field="file",
                filename=file_name(item),
                fields=parameters,
                deadline_s=UPLOAD_DEADLINE_S,
            )
        except OSError as error:
            return self._failures.of(ErrorClass.INTERRUPTED, raw=str(error))
        if isinstance(uploaded, TransportError):
            return self._failures.of_transport(uploaded, creates=False)
        if not 200 <= uploaded.status < 300:
            # It is the storage that refused it, for which our credentials do not matter; another
            # target may do.
            code = str(uploaded.status)
            return self._failures.of(
                ErrorClass.PROVIDER_UNAVAILABLE, code=code, raw=text_of(uploaded.body)
            )
        return source

    def _publish(self, item: Item) -> Done | Failure:
        publications = self._publications()
        if isinstance(publications, Failure):
            return publications
        variables = {
            "id": self._product_id(item),
            "input": [{"publicationId": publication_id} for publication_id in publications],
        }
        answer = self._change(_PUBLISH, variables, "publishablePublish", SET_DEADLINE_S)
        if isinstance(answer, Failure):
            return answer
        return Done({"published": "1"}, raw=cut(answer.value))

    def _publications(self) -> list[str] | Failure:
        """Return the online store's publication, or all there are in a shop without one."""
        answer = self._ask(_PUBLICATIONS, {}, "publications")
        if isinstance(answer, Failure):
            return answer
        listed = answer.value.get("nodes") if isinstance(answer.value, dict) else None
        if not isinstance(listed, list):
            return self._failures.of_unreadable(answer.response, creates=False)
        named = {gid: node.get("name") for node in listed if (gid := _gid_of(node))}
        store = [gid for gid, name in named.items() if name == ONLINE_STORE]
        if not named:
            return refused({"shop": "The shop at Shopify has no sales channel to publish to."})
        return store or list(named)

    def _look_at_media(self, item: Item) -> Done | Pending | Failure:
        answer = self._ask(_MEDIA, {"id": self._product_id(item)}, "product")
        if isinstance(answer, Failure):
            return answer
        product, statuses = answer.value, _media_statuses(answer.value)
        if product is not None and statuses is None:
            return self._failures.of_unreadable(answer.response, creates=False)
        if product is None or "FAILED" in (statuses or ()):
            # Once more from the start, which changes the product or makes it anew. Then it is the
            # picture, or somebody who deletes the product.
            if not item.remote_ids.get("redone"):
                return Done({"product_id": "", "published": "", "redone": "1", CHANGED: "1"})
            gone = product is None
            return self._failures.of(
                ErrorClass.NOT_FOUND if gone else ErrorClass.BAD_OUTPUT,
                raw=text_of(answer.response.body),
            )
        if not statuses or any(status != "READY" for status in statuses):
            return Pending(MEDIA_WAIT_S)
        url = as_url(product.get("onlineStoreUrl")) or as_url(product.get("onlineStorePreviewUrl"))
        return Done({"media": "ready"}, url=url)

    def _product_id(self, item: Item) -> str:
        return item.remote_ids.get("product_id", "")

    def _change(
        self,
        document: str,
        variables: Mapping[str, Any],
        name: str,
        deadline_s: float,
        *,
        creates: bool = True,
    ) -> _Answer | Failure:
        """Make a mutation, once; its value is an object without user errors."""
        answer = self._ask(document, variables, name, deadline_s=deadline_s, creates=creates)
        if isinstance(answer, Failure):
            return answer
        errors = answer.value.get("userErrors") if isinstance(answer.value, dict) else None
        if not isinstance(errors, list):
            return self._failures.of_unreadable(answer.response, creates=creates)
        if errors:
            return self._of_user_errors(errors, answer.response)
        return answer

    def _ask(
        self,
        document: str,
        variables: Mapping[str, Any],
        name: str,
        *,
        deadline_s: float = READ_DEADLINE_S,
        creates: bool = False,
    ) -> _Answer | Failure:
        """Ask for one field, `name`, once."""
        answer = self._http.json(
            "POST",
            self._url,
            headers={"X-Shopify-Access-Token": self._token},
            json={"query": document, "variables": variables},
            deadline_s=deadline_s,
        )
        if isinstance(answer, TransportError):
            return self._failures.of_transport(answer, creates=creates)
        body = answer.json()
        if not 200 <= answer.status < 300:
            return self._failures.of_answer(answer, creates=creates, detail=_words(body))
        if not isinstance(body, dict):
            return self._failures.of_unreadable(answer, creates=creates)
        if body.get("errors"):
            return self._of_errors(body, answer, creates=creates)
        data = body.get("data")
        if not isinstance(data, dict) or name not in data:
            return self._failures.of_unreadable(answer, creates=creates)
        return _Answer(data[name], answer)

    def _of_errors(self, body: Mapping[str, Any], answer: Response, *, creates: bool) -> Failure:
        """Classify the errors of a request: by the first code that is known.

        Those that are not may have come while it was being carried out, except that a request
        which is not carried out at all has neither codes nor data.
        """
        errors = body["errors"] if isinstance(body["errors"], list) else []
        codes = [code for error in errors if (code := _code_of(error))]
        code = next((code for code in codes if code in _BY_CODE), codes[0] if codes else "")
        error_class = _BY_CODE.get(code)
        if error_class is None:
            if not code and errors and "data" not in body:
                throttled = any("throttled" in _words(error).lower() for error in errors)
                error_class = ErrorClass.RATE_LIMITED if throttled else ErrorClass.INVALID_INPUT
            elif creates:
                error_class = ErrorClass.TIMEOUT_UNKNOWN
            else:
                error_class = ErrorClass.PROVIDER_UNAVAILABLE
        is_limit = error_class == ErrorClass.RATE_LIMITED
        return self._failures.of(
            error_class,
            detail=_words(body),
            code=code or str(answer.status),
            retry_after_s=_throttled_for_s(body.get("extensions")) if is_limit else None,
            raw=text_of(answer.body),
        )

    def _of_user_errors(self, errors: Sequence[object], answer: Response) -> Failure:
        """Read why a mutation was refused: nothing of it was done."""
        fields: dict[str, str] = {}
        codes: list[str] = []
        for error in errors:
            if isinstance(error, dict):
                path = error.get("field")
                parts = [str(part) for part in path] if isinstance(path, list) else []
                name = ".".join(part for part in parts if part != "input") or "product"
                fields.setdefault(name, _words(error) or "invalid")
                codes += [error["code"]] if isinstance(error.get("code"), str) else []
        # Most mutations give no codes; an id that is sent is that of the product.
        is_gone = "id" in fields or any(code in _GONE for code in codes)
        return self._failures.of(
            ErrorClass.NOT_FOUND if is_gone else ErrorClass.INVALID_INPUT,
            detail="; ".join(f"{name}: {text}" for name, text in fields.items()),
            code=codes[0] if codes else "userErrors",
            raw=text_of(answer.body),
            fields=fields,
        )


def _gid_of(value: object) -> str:
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and _GID.fullmatch(found) else ""


def _read_target(targets: object) -> tuple[str, str, dict[str, str]] | None:
    """Return where to upload, the address of what was uploaded, and the form's other fields."""
    target = targets[0] if isinstance(targets, list) and targets else None
    if not isinstance(target, dict):
        return None
    url, source, listed = (target.get(name) for name in ("url", "resourceUrl", "parameters"))
    if not isinstance(url, str) or not isinstance(source, str) or not isinstance(listed, list):
        return None
    parameters: dict[str, str] = {}
    for parameter in listed:
        match parameter:
            case {"name": str(name), "value": str(value)}:
                parameters[name] = value
            case _:
                return None
    return url, source, parameters


def _media_statuses(product: object) -> list[str] | None:
    """Return how far a product's pictures are, `None` when it does not say."""
    media = product.get("media") if isinstance(product, dict) else None
    nodes = media.get("nodes") if isinstance(media, dict) else None
    if not isinstance(nodes, list):
        return None
    return [str(node.get("status")) if isinstance(node, dict) else "" for node in nodes]


def _code_of(error: object) -> str:
    extensions = error.get("extensions") if isinstance(error, dict) else None
    code = extensions.get("code") if isinstance(extensions, dict) else None
    return code if isinstance(code, str) else ""


def _words(value: object) -> str:
    """Return what an error says: its message, or the `errors` of an answer, however written."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return ""
    message = value.get("message")
    if isinstance(message, str):
        return message
    errors = value.get("errors")
    listed = errors if isinstance(errors, list) else [errors]
    return "; ".join(filter(None, map(_words, listed[:5])))


def _throttled_for_s(extensions: object) -> float:
    """Return how long it takes until the request's cost can be paid again."""
    cost = extensions.get("cost") if isinstance(extensions, dict) else None
    status = cost.get("throttleStatus") if isinstance(cost, dict) else None
    if not isinstance(cost, dict) or not isinstance(status, dict):
        return THROTTLED_WAIT_S
    wanted, left, rate = map(
        _number,
        (
            cost.get("requestedQueryCost"),
            status.get("currentlyAvailable"),
            status.get("restoreRate"),
        ),
    )
    if wanted is None or left is None or not rate or rate < 0:
        return THROTTLED_WAIT_S
    return min(max((wanted - left) / rate, 0.0), THROTTLED_WAIT_MAX_S)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e15 else None
