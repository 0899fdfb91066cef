"""The simulated Shopify."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.simulator.shop_support import (
    PUBLISH,
    STAGE,
    Shopify,
    books,
    configure_shops,
    image_bytes,
)
from tests.simulator.support import FLUX, Simulator, eventually


@pytest.fixture
def shopify(sim: Simulator) -> Shopify:
    configure_shops(sim, media_seconds=0.1)
    return Shopify(sim)


def error(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the one error at the top of an answer without data."""
    assert "data" not in answer
    (first,) = answer["errors"]
    return dict(first)


def test_a_token_is_needed_and_some_shops_do_not_answer(sim: Simulator) -> None:
    body = {"query": "{ shop { name } }"}
    for token in ("", "bad"):
        response = Shopify(sim, token).post(body)
        assert response.status_code == 401
        assert "Invalid API key or access token" in response.json()["errors"]
    shops = {"missing": 404, "frozen": 402, "locked": 423}
    for name, status in shops.items():
        assert Shopify(sim, shop=f"{name}-a.myshopify.com").post(body).status_code == status
    assert Shopify(sim, shop="foxes.example.net").post(body).status_code == 404
    assert Shopify(sim, version="2026-05").post(body).status_code == 404
    assert Shopify(sim, version="latest").post(body).status_code == 404


def test_the_shop_and_what_the_token_may_do(shopify: Shopify) -> None:
    found = shopify.data(
        "{ shop { name myshopifyDomain url } currentAppInstallation { accessScopes { handle } } }"
    )
    assert found["shop"]["name"] == "foxes"
    assert found["shop"]["url"] == "https://foxes.myshopify.com"
    handles = [scope["handle"] for scope in found["currentAppInstallation"]["accessScopes"]]
    assert {"write_products", "write_files", "write_publications"} <= set(handles)


def test_a_document_the_schema_does_not_know_is_refused_with_status_200(shopify: Shopify) -> None:
    unknown = error(shopify.ask("query { shop { nope } }"))
    assert unknown["message"] == "Field 'nope' doesn't exist on type 'Shop'"
    assert unknown["locations"] == [{"line": 1, "column": 16}]
    assert unknown["extensions"] == {
        "code": "undefinedField",
        "typeName": "Shop",
        "fieldName": "nope",
    }
    argument = error(shopify.ask("{ shop(id: 1) { name } }"))
    assert argument["extensions"]["code"] == "argumentNotAccepted"
    assert "Syntax Error" in error(shopify.ask("{ shop "))["message"]
    assert "query" in error(shopify.post({"variables": {}}).json())["message"]
    assert (
        "operation"
        in error(shopify.ask("query A { shop { id } } query B { shop { id } }"))["message"]
    )
    plain = shopify.sim.request(
        "POST",
        "/shopify/foxes.myshopify.com/admin/api/2026-04/graphql.json",
        headers={"X-Shopify-Access-Token": "a", "Content-Type": "text/plain"},
        data="{}",
    )
    assert plain.status_code == 415
    page = shopify.ask("{ publications { nodes { id } } }")
    assert page["data"] is None
    assert page["errors"][0]["message"] == "you must provide one of first or last"
    assert page["errors"][0]["path"] == ["publications"]


def test_variables_that_do_not_fit_are_refused_with_their_place(shopify: Shopify) -> None:
    staged: dict[str, Any] = {"filename": "a.png", "mimeType": "image/png", "resource": "IMAGE"}
    wrong = error(shopify.ask(STAGE, input=[staged | {"size": 1}]))
    assert wrong["message"] == (
        "Variable $input of type [StagedUploadInput!]! was provided invalid value for 0.size "
        "(Field is not defined on StagedUploadInput)"
    )
    assert wrong["extensions"]["code"] == "INVALID_VARIABLE"
    (problem,) = wrong["extensions"]["problems"]
    assert problem["path"] == [0, "size"]
    missing = error(shopify.ask(STAGE, input=[{"filename": "a.png", "mimeType": "image/png"}]))
    assert missing["extensions"]["problems"][0]["path"] == [0, "resource"]
    enum = error(shopify.ask(STAGE, input=[staged | {"resource": "PICTURE"}]))
    assert enum["extensions"]["problems"][0]["path"] == [0, "resource"]
    nothing = error(shopify.ask(STAGE))
    assert "was provided invalid value" in nothing["message"]
    assert books(shopify.sim, shopify.token)["calls"] == {"invalid": 4}


def test_product_set_by_handle_creates_once_and_changes_after_that(shopify: Shopify) -> None:
    source = shopify.staged()
    files = [{"originalSource": source, "contentType": "IMAGE", "alt": "A fox"}]
    made = shopify.product(files=files, tags=["fox", "Art"])
    assert (made["handle"], made["status"], made["vendor"]) == ("a-fox", "ACTIVE", "foxes")
    assert made["tags"] == ["Art", "fox"]
    assert [v["title"] for v in made["variants"]["nodes"]] == ["S", "M"]
    assert [v["price"] for v in made["variants"]["nodes"]] == ["19.90", "19.90"]
    assert made["onlineStoreUrl"] is None
    again = shopify.product(title="A red fox", files=files)
    assert (again["id"], again["title"]) == (made["id"], "A red fox")
    assert [v["id"] for v in again["variants"]["nodes"]] == [
        v["id"] for v in made["variants"]["nodes"]
    ]
    assert len(again["media"]["nodes"]) == 1
    (product,) = books(shopify.sim, shopify.token)["products"]
    assert (product["sets"], product["media"][0]["source"]) == (2, source)
    assert books(shopify.sim, shopify.token)["products_created"] == 1


def test_a_product_without_handle_gets_a_free_one(shopify: Shopify) -> None:
    query = "mutation($i: ProductSetInput!) { productSet(input: $i) { product { handle } } }"
    handles = [
        shopify.data(query, i={"title": "A Fox!"})["productSet"]["product"]["handle"]
        for _ in range(3)
    ]
    assert handles == ["a-fox", "a-fox-1", "a-fox-2"]


def test_input_that_cannot_be_a_product_gives_user_errors(shopify: Shopify) -> None:
    variant = shopify.input()["variants"][0]
    options = shopify.input()["productOptions"]
    blue = [{"optionName": "Colour", "name": "Blue"}]
    large = [{"optionName": "Size", "name": "L"}]
    many = [{"name": f"O{n}", "values": [{"name": "a"}]} for n in range(4)]
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        ({"title": " "}, "INVALID_INPUT", ["input", "title"]),
        ({"title": "x" * 256}, "INVALID_INPUT", ["input", "title"]),
        ({"handle": "other"}, "INPUT_MISMATCH", ["input"]),
        ({"handle": None}, "MISSING_FIELD_REQUIRED", ["input"]),
        ({"id": "gid://shopify/Product/1"}, "ID_NOT_ALLOWED", ["input", "id"]),
        ({"variants": None}, "VARIANTS_INPUT_MISSING", ["input", "variants"]),
        ({"productOptions": None}, "PRODUCT_OPTIONS_INPUT_MISSING", ["input", "variants"]),
        ({"productOptions": many}, "OPTIONS_OVER_LIMIT", ["input", "productOptions"]),
        (
            {"productOptions": options * 2},
            "DUPLICATED_OPTION_NAME",
            ["input", "productOptions", "1"],
        ),
        ({"variants": [variant] * 2}, "INVALID_VARIANT", ["input", "variants", "1"]),
        (
            {"variants": [{"optionValues": blue}]},
            "OPTION_DOES_NOT_EXIST",
            ["input", "variants", "0", "optionValues", "0"],
        ),
        (
            {"variants": [{"optionValues": large}]},
            "OPTION_VALUE_DOES_NOT_EXIST",
            ["input", "variants", "0", "optionValues", "0"],
        ),
        (
            {"files": [{"originalSource": "fox.png"}]},
            "INVALID_INPUT",
            ["input", "files", "0", "originalSource"],
        ),
    ]
    for changes, code, path in cases:
        payload = shopify.set(**changes)
        assert payload["product"] is None
        (user_error,) = payload["userErrors"]
        assert (user_error["code"], user_error["field"]) == (code, path)
    money = shopify.ask(
        "mutation($i: ProductSetInput!) { productSet(input: $i) { product { id } } }",
        i=shopify.input(variants=[variant | {"price": "much"}]),
    )
    assert error(money)["extensions"]["code"] == "INVALID_VARIABLE"
    assert books(shopify.sim, shopify.token)["products_created"] == 0


def test_a_handle_belongs_to_one_product(shopify: Shopify) -> None:
    shopify.product()
    query = (
        "mutation($i: ProductSetInput!) { productSet(input: $i) "
        "{ product { id } userErrors { code field } } }"
    )
    payload = shopify.data(query, i={"title": "Other", "handle": "a-fox"})["productSet"]
    assert payload["userErrors"] == [{"code": "HANDLE_NOT_UNIQUE", "field": ["input", "handle"]}]


def test_media_are_uploaded_processed_and_ready(shopify: Shopify) -> None:
    configure_shops(shopify.sim, media_seconds=0.6)
    source = shopify.staged(image_bytes(side_px=80))
    product = shopify.product(files=[{"originalSource": source}])
    seen = [product["media"]["nodes"][0]["status"]]

    def probe() -> dict[str, Any] | None:
        (now,) = shopify.media(product)
        if now["status"] != seen[-1]:
            seen.append(now["status"])
        return now if now["status"] == "READY" else None

    ready = eventually(probe, "the media are ready")
    assert seen == ["UPLOADED", "PROCESSING", "READY"]
    assert ready["image"]["width"] == 80


def test_an_image_can_come_from_a_url(shopify: Shopify) -> None:
    (url,) = shopify.sim.run(FLUX, output_format="webp")["output"]
    product = shopify.product(files=[{"originalSource": url}, {"originalSource": url + "x"}])
    good, gone = shopify.settled(product)
    assert (good["status"], gone["status"]) == ("READY", "FAILED")
    assert gone["mediaErrors"][0]["code"] == "IMAGE_DOWNLOAD_FAILURE"


def test_a_target_takes_the_parameters_first_and_the_file_last(shopify: Shopify) -> None:
    target = shopify.target()
    assert shopify.upload(target, order=(1, 0)).status_code == 400
    forged = [{**p, "value": "x"} if p["name"] == "policy" else p for p in target["parameters"]]
    refused = shopify.upload(target | {"parameters": forged})
    assert (refused.status_code, "policy" in refused.text) == (403, True)
    assert shopify.upload(target, order=(0,)).status_code == 400
    # Until the file came, the resource is nothing that could be shown.
    product = shopify.product(files=[{"originalSource": target["resourceUrl"]}])
    (media,) = shopify.settled(product)
    assert media["mediaErrors"][0]["code"] == "INVALID_SIGNED_URL"
    taken = shopify.upload(target)
    assert (taken.status_code, target["resourceUrl"] in taken.text) == (201, True)
    product = shopify.product(files=[{"originalSource": target["resourceUrl"]}])
    assert shopify.settled(product)[0]["status"] == "READY"
    account = books(shopify.sim, shopify.token)
    assert (account["calls"]["staged_upload"], len(account["uploads"])) == (1, 1)


def test_a_target_can_be_put_to(shopify: Shopify) -> None:
    target = shopify.target(httpMethod="PUT")
    assert {p["name"] for p in target["parameters"]} == {"content_type", "acl"}
    headers = {"Content-Type": "image/png"}
    unsigned = target["url"].partition("?")[0]
    assert requests.put(unsigned, image_bytes(), headers=headers, timeout=9).status_code == 403
    wrong = requests.put(target["url"], image_bytes(), headers={}, timeout=9)
    assert wrong.status_code == 403
    assert requests.put(target["url"], image_bytes(), headers=headers, timeout=9).status_code == 200
    product = shopify.product(files=[{"originalSource": target["resourceUrl"]}])
    assert shopify.settled(product)[0]["status"] == "READY"


def test_files_that_are_no_images_fail_when_processed(shopify: Shopify) -> None:
    sources = [shopify.staged(b"a text"), shopify.staged(image_bytes(side_px=5100))]
    product = shopify.product(files=[{"originalSource": source} for source in sources])
    text, large = shopify.settled(product)
    assert (text["status"], text["mediaErrors"][0]["code"]) == (
        "FAILED",
        "INVALID_IMAGE_FILE_TYPE",
    )
    assert large["mediaErrors"][0]["code"] == "INVALID_IMAGE_RESOLUTION"
    staged = shopify.data(
        STAGE, input=[{"filename": "a", "mimeType": "text/html", "resource": "IMAGE"}]
    )
    assert staged["stagedUploadsCreate"]["userErrors"][0]["field"] == ["input", "0", "mimeType"]


def test_a_product_is_published_to_a_sales_channel(shopify: Shopify) -> None:
    product, channels = shopify.product(), shopify.publications()
    assert list(channels) == ["Online Store", "Point of Sale", "Shop"]
    asked = [{"publicationId": channels["Online Store"]}]
    for _ in range(2):
        payload = shopify.data(PUBLISH, id=product["id"], input=asked)["publishablePublish"]
        assert payload["userErrors"] == []
        assert payload["publishable"]["resourcePublicationsCount"] == {"count": 1}
    assert payload["publishable"]["onlineStoreUrl"] == (
        "https://foxes.myshopify.com/products/a-fox"
    )
    (kept,) = books(shopify.sim, shopify.token)["products"]
    assert kept["published"] == [channels["Online Store"]]
    strange = shopify.data(PUBLISH, id=product["id"], input=[{"publicationId": "x"}])
    field = strange["publishablePublish"]["userErrors"][0]["field"]
    assert field == ["input", "0", "publicationId"]
    gone = shopify.data(PUBLISH, id="gid://shopify/Product/1", input=asked)
    assert gone["publishablePublish"]["userErrors"][0]["field"] == ["id"]


def test_a_set_in_the_background_is_an_operation_to_poll(shopify: Shopify) -> None:
    query = """query($id: ID!) { productOperation(id: $id) {
        status product { handle } ... on ProductSetOperation { userErrors { code } } } }"""
    for changes, handle, codes in (({}, "a-fox", []), ({"title": ""}, None, ["INVALID_INPUT"])):
        payload = shopify.data(
            """mutation($input: ProductSetInput!, $identifier: ProductSetIdentifiers) {
                productSet(input: $input, identifier: $identifier, synchronous: false) {
                    product { id } productSetOperation { id status } userErrors { code } } }""",
            input=shopify.input(**changes),
            identifier={"handle": "a-fox"},
        )["productSet"]
        assert (payload["product"], payload["userErrors"]) == (None, [])
        operation_id = payload["productSetOperation"]["id"]

        def probe(operation_id: str = operation_id) -> dict[str, Any] | None:
            now = shopify.data(query, id=operation_id)["productOperation"]
            return now if now["status"] == "COMPLETE" else None

        done = eventually(probe, "the operation is complete")
        assert [e["code"] for e in done["userErrors"]] == codes
        assert done["product"] == (None if handle is None else {"handle": handle})


def test_products_are_found_by_handle_and_by_tag(shopify: Shopify) -> None:
    made = shopify.product()
    by_handle = shopify.data(
        '{ productByIdentifier(identifier: {handle: "a-fox"}) { id } '
        'none: productByIdentifier(identifier: {handle: "b"}) { id } }'
    )
    assert by_handle == {"productByIdentifier": {"id": made["id"]}, "none": None}
    query = "query($q: String) { products(first: 5, query: $q) { nodes { id } } }"
    found = {
        q: len(shopify.data(query, q=q)["products"]["nodes"])
        for q in ("handle:a-fox", "tag:fox", "tag:bear", "handle:a-fox tag:bear", "")
    }
    assert found == {
        "handle:a-fox": 1,
        "tag:fox": 1,
        "tag:bear": 0,
        "handle:a-fox tag:bear": 0,
        "": 1,
    }
    deleted = shopify.data(
        "mutation($id: ID!) { productDelete(input: {id: $id}) "
        "{ deletedProductId userErrors { message } } }",
        id=made["id"],
    )
    assert deleted["productDelete"] == {"deletedProductId": made["id"], "userErrors": []}
    assert shopify.data("query($id: ID!) { product(id: $id) { id } }", id=made["id"]) == {
        "product": None
    }


def test_a_token_without_a_scope_is_told_which(sim: Simulator) -> None:
    reader, seller = Shopify(sim, "shpat_readonly"), Shopify(sim, "shpat_nopublish")
    answer = reader.ask(
        "mutation($i: ProductSetInput!) { productSet(input: $i) { product { id } } }",
        i={"title": "x"},
    )
    assert answer["data"] == {"productSet": None}
    assert answer["errors"][0]["extensions"]["code"] == "ACCESS_DENIED"
    assert "write_products" in answer["errors"][0]["message"]
    made = seller.product()
    denied = seller.ask(PUBLISH, id=made["id"], input=[{"publicationId": "x"}])
    assert denied["errors"][0]["path"] == ["publishablePublish"]
    assert seller.ask("{ publications(first: 1) { nodes { id } } }")["data"] is None


def test_queries_cost_points_and_an_empty_bucket_throttles(shopify: Shopify) -> None:
    configure_shops(shopify.sim, points=25, points_per_second=0.1)
    first = shopify.ask(STAGE, input=[])
    cost = first["extensions"]["cost"]
    assert (cost["requestedQueryCost"], cost["actualQueryCost"]) == (10, 10)
    status = cost["throttleStatus"]
    assert (status["maximumAvailable"], status["restoreRate"]) == (25, 0.1)
    assert status["currentlyAvailable"] == 15
    throttled = shopify.ask("{ products(first: 20) { nodes { id } } }")
    assert throttled["errors"][0]["extensions"]["code"] == "THROTTLED"
    assert throttled["errors"][0]["message"] == "Throttled"
    assert throttled["extensions"]["cost"]["actualQueryCost"] is None
    assert throttled["extensions"]["cost"]["throttleStatus"]["currentlyAvailable"] < 22
    configure_shops(shopify.sim, points_per_second=100)
    eventually(
        lambda: "data" in shopify.ask("{ products(first: 20) { nodes { id } } }") or None,
        "the bucket fills",
    )
    wide = "{ products(first: 250) { nodes { media(first: 50) { nodes { id } } } } }"
    assert error(shopify.ask(wide))["extensions"]["code"] == "MAX_COST_EXCEEDED"


def test_faults_refuse_without_effect_or_lose_the_answer_after_it(shopify: Shopify) -> None:
    where = {"channel": "shopify", "operation": "productSet", "times": 1}
    variables = {"identifier": {"handle": "a-fox"}, "input": shopify.input()}
    shopify.sim.fault("shop_throttled", **where)
    query = """mutation($identifier: ProductSetIdentifiers, $input: ProductSetInput!) {
        productSet(identifier: $identifier, input: $input) { product { id } } }"""
    assert shopify.ask(query, **variables)["errors"][0]["extensions"]["code"] == "THROTTLED"
    shopify.sim.fault("shop_status", status=503, **where)
    assert shopify.post({"query": query, "variables": variables}).status_code == 503
    account = books(shopify.sim, shopify.token)
    assert (account["calls"]["productSet"], account["products_created"]) == (2, 0)
    shopify.sim.fault("shop_drop_after", **where)
    with pytest.raises(requests.ConnectionError):
        shopify.ask(query, **variables)
    assert books(shopify.sim, shopify.token)["products_created"] == 1
    shopify.product()
    assert books(shopify.sim, shopify.token)["products_created"] == 1
    target = shopify.target()
    shopify.sim.fault("shop_throttled", channel="shopify", operation="staged_upload", retry_after=3)
    assert shopify.upload(target).headers["Retry-After"] == "3"


@pytest.mark.parametrize(("kind", "status"), [("shop_fails", "FAILED"), ("shop_hangs", None)])
def test_processing_can_come_to_nothing(shopify: Shopify, kind: str, status: str | None) -> None:
    shopify.sim.fault(kind, channel="shopify", operation="productSet")
    product = shopify.product(files=[{"originalSource": shopify.staged()}])
    if status is not None:
        assert shopify.settled(product)[0]["status"] == status
        return
    eventually(
        lambda: shopify.media(product)[0]["status"] == "PROCESSING" or None, "it is processed"
    )
    configure_shops(shopify.sim, media_seconds=0)
    assert shopify.media(product)[0]["status"] == "PROCESSING"


def test_two_tokens_and_two_shops_are_accounts_of_their_own(shopify: Shopify) -> None:
    made = shopify.product()
    others = (
        Shopify(shopify.sim, "shpat_b"),
        Shopify(shopify.sim, shop="bears.myshopify.com"),
    )
    for other in others:
        assert other.data("query($id: ID!) { product(id: $id) { id } }", id=made["id"]) == {
            "product": None
        }
    accounts = shopify.sim.request("GET", "/_sim/shops").json()["accounts"]
    assert [(a["shop"], a["products_created"]) for a in accounts] == [
        ("foxes.myshopify.com", 1),
        ("foxes.myshopify.com", 0),
        ("bears.myshopify.com", 0),
    ]
