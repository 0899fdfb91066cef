"""The simulated Printify."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.simulator.shop_support import (
    SYNC,
    Printify,
    books,
    configure_shops,
    image_bytes,
)
from tests.simulator.support import FLUX, Simulator


@pytest.fixture
def printify(sim: Simulator) -> Printify:
    configure_shops(sim, publish_seconds=0.15)
    return Printify(sim)


def reason(response: requests.Response, code: int, status: int = 400) -> str:
    """Return why a request was refused, as Printify words it."""
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, "error", code), body
    assert body["errors"]["code"] == code
    return str(body["errors"]["reason"])


def test_a_token_is_needed_and_a_bad_one_refused(sim: Simulator) -> None:
    for authorization in ("", "Bearer ", "Bearer bad-token", "Token a-token"):
        headers = {"Authorization": authorization}
        response = sim.request("GET", "/printify/v1/shops.json", headers=headers)
        assert (response.status_code, response.json()) == (401, {"error": "Unauthenticated."})


def test_a_request_without_user_agent_is_refused(sim: Simulator) -> None:
    nobody = Printify(sim, headers={"User-Agent": ""})
    assert "User-Agent" in reason(nobody.call("GET", "/shops.json"), 8150, 403)


def test_each_token_has_a_shop_of_its_own(sim: Simulator) -> None:
    first, second = Printify(sim, "one"), Printify(sim, "two")
    assert first.shop() == first.shop() != second.shop()
    assert len(Printify(sim, "two-shops").call("GET", "/shops.json").json()) == 2
    product = first.created()
    assert second.call("GET", first.path(product)).status_code == 404
    assert second.call("GET", f"/shops/{first.shop()}/products.json").status_code == 404


def test_the_catalogue_leads_to_variants_with_placeholders(printify: Printify) -> None:
    base = "/catalog/blueprints"
    blueprints = {b["id"]: b["title"] for b in printify.call("GET", f"{base}.json").json()}
    assert blueprints[6] == "Unisex Heavy Cotton Tee"
    assert printify.call("GET", f"{base}/6.json").json()["brand"] == "Gildan"
    providers = printify.call("GET", f"{base}/6/print_providers.json").json()
    assert {"id": 29, "title": "Monster Digital"} in providers
    answer = printify.call("GET", f"{base}/6/print_providers/29/variants.json").json()
    first = answer["variants"][0]
    assert (answer["id"], first["id"], first["title"]) == (29, 12100, "White / S")
    assert first["options"] == {"color": "White", "size": "S"}
    assert {"position": "front", "height": 5400, "width": 4500} in first["placeholders"]
    for path in (f"{base}/7.json", f"{base}/6/print_providers/98/variants.json"):
        assert printify.call("GET", path).status_code == 404


def test_equal_bytes_are_one_upload(printify: Printify) -> None:
    first = printify.uploaded(image_bytes(side_px=40))
    assert (first["width"], first["height"], first["mime_type"]) == (40, 40, "image/png")
    again = printify.uploaded(image_bytes(side_px=40), name="other.png")
    other = printify.uploaded(image_bytes("JPEG"))
    assert again == first != other
    assert printify.call("GET", f"/uploads/{first['id']}.json").json() == first
    listed = printify.call("GET", "/uploads.json", params={"limit": 1, "page": 2}).json()
    assert (listed["data"], listed["total"], listed["last_page"]) == ([first], 2, 2)
    printify.call("POST", f"/uploads/{first['id']}/archive.json")
    assert printify.call("GET", "/uploads.json").json()["data"] == [other]


def test_an_image_can_be_fetched_from_a_url(printify: Printify) -> None:
    prediction = printify.sim.run(FLUX, output_format="jpg")
    (url,) = prediction["output"]
    body = {"file_name": "fox.jpg", "url": url}
    upload = printify.call("POST", "/uploads/images.json", json=body).json()
    assert upload["mime_type"] == "image/jpeg"
    gone = printify.call("POST", "/uploads/images.json", json=body | {"url": url + "x"})
    assert "404" in reason(gone, 10300)


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({"contents": "AA=="}, 8150, "file_name"),
        ({"file_name": "a.png"}, 8150, "Exactly one"),
        ({"file_name": "a.png", "contents": "&&"}, 8150, "base64"),
        ({"file_name": "a.png", "url": "ftp://example.net/a"}, 8150, "url format"),
        ({"file_name": "a.png", "contents": "bm90IGFuIGltYWdl"}, 10300, "no image"),
        (
            {"file_name": "a", "contents": base64.b64encode(image_bytes("WEBP")).decode()},
            10300,
            "not supported",
        ),
    ],
)
def test_malformed_uploads_are_refused(
    printify: Printify, body: dict[str, Any], code: int, text: str
) -> None:
    assert text in reason(printify.call("POST", "/uploads/images.json", json=body), code)
    assert books(printify.sim, printify.token)["uploads"] == []


def test_a_created_product_has_every_variant_and_the_tags_of_its_blueprint(
    printify: Printify,
) -> None:
    product = printify.created()
    enabled = {v["id"]: v["price"] for v in product["variants"] if v["is_enabled"]}
    others = [v for v in product["variants"] if not v["is_enabled"]]
    assert enabled == {12100: 1999, 12101: 1999}
    assert len(others) == 8
    assert all(v["price"] == v["cost"] for v in others)
    assert product["tags"] == ["fox", "T-shirts", "Men's Clothing", "DTG"]
    assert "external" not in product
    assert not product["is_locked"]
    (area,) = product["print_areas"]
    assert len(area["variant_ids"]) == 10
    front, back = area["placeholders"]
    assert (front["images"][0]["scale"], front["images"][0]["width"]) == (1, 64)
    assert back["images"] == []
    assert printify.read(product) == product


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def test_malformed_products_are_refused(printify: Printify) -> None:
    shop, upload = printify.shop(), printify.uploaded()
    good = printify.body(upload["id"])
    area, variant = good["print_areas"][0], good["variants"][0]
    image = area["placeholders"][0]["images"][0]

    def placed(**changes: Any) -> dict[str, Any]:
        placeholders = [{"position": "front", "images": [image | changes]}]
        return good | {"print_areas": [area | {"placeholders": placeholders}]}

    cases: list[tuple[dict[str, Any], int, str]] = [
        *((without(good, n), 8150, f"{n}: ") for n in ("title", "description", "blueprint_id")),
        *((without(good, n), 8150, f"{n}: ") for n in ("variants", "print_areas")),
        (good | {"blueprint_id": "6"}, 8150, "integer"),
        (good | {"blueprint_id": 7}, 8251, "Print provider"),
        (good | {"print_provider_id": 1}, 8251, "Print provider"),
        (good | {"variants": [variant | {"price": 19.99}]}, 8150, "variants.0.price"),
        (good | {"variants": [variant | {"price": "1999"}]}, 8150, "variants.0.price"),
        (good | {"variants": [without(variant, "price")]}, 8150, "variants.0.price"),
        (good | {"variants": [variant, variant]}, 8251, "Variants do not match"),
        (good | {"variants": [variant | {"id": 17887}]}, 8251, "Variants do not match"),
        (good | {"variants": [variant | {"id": 12102}]}, 8251, "Variants do not match"),
        (good | {"print_areas": [area, area]}, 8251, "Variants do not match"),
        (
            good | {"print_areas": [area | {"placeholders": [{"position": "hat", "images": []}]}]},
            8251,
            "position",
        ),
        (placed(id="5d15ca551163cde90d7b2203"), 10300, "do not exist"),
        (placed(x="left"), 8150, "must be a number"),
        (placed(angle=1.5), 8150, "must be an integer"),
        (good | {"tags": "fox"}, 8150, "tags"),
    ]
    for body, code, text in cases:
        response = printify.call("POST", f"/shops/{shop}/products.json", json=body)
        assert text in reason(response, code)
    broken = printify.call("POST", f"/shops/{shop}/products.json", data=b"[")
    assert "JSON" in reason(broken, 8150)
    elsewhere = printify.call("POST", "/shops/1/products.json", json=good)
    assert elsewhere.status_code == 404
    account = books(printify.sim, printify.token)
    assert (account["products_created"], account["products"]) == (0, [])


def test_products_are_listed_in_pages_the_newest_first(printify: Printify) -> None:
    made = [printify.created(title=f"Fox {number}")["id"] for number in range(3)]
    path = f"/shops/{printify.shop()}/products.json"
    first = printify.call("GET", path, params={"limit": 2}).json()
    second = printify.call("GET", path, params={"limit": 2, "page": 2, "title": "Fox 2"}).json()
    assert [p["id"] for p in first["data"]] == [made[2], made[1]]
    assert [p["id"] for p in second["data"]] == [made[0]]
    assert (first["total"], first["last_page"], first["next_page_url"]) == (3, 2, "/?page=2")
    assert second["next_page_url"] is None
    assert "limit" in reason(printify.call("GET", path, params={"limit": 51}), 8150)


def test_an_update_changes_what_it_names_and_must_cover_every_variant(printify: Printify) -> None:
    product = printify.created()
    path, body = printify.path(product), printify.body(printify.uploaded()["id"])
    partial = printify.call("PUT", path, json={"title": "A vixen", "blueprint_id": 12}).json()
    assert (partial["title"], partial["blueprint_id"]) == ("A vixen", 6)
    assert partial["description"] == product["description"]
    refused = printify.call("PUT", path, json={"print_areas": body["print_areas"]})
    assert "all product variants" in reason(refused, 8251)
    whole = body["print_areas"][0] | {"variant_ids": [v["id"] for v in product["variants"]]}
    assert printify.call("PUT", path, json={"print_areas": [whole]}).status_code == 200
    off = {"variants": [{"id": 12101, "price": 1999, "is_enabled": False}]}
    changed = printify.call("PUT", path, json=off).json()
    assert [v["id"] for v in changed["variants"] if v["is_enabled"]] == [12100]


def test_a_published_product_is_locked_while_the_channel_has_it_not(printify: Printify) -> None:
    configure_shops(printify.sim, publish_seconds=60)
    product = printify.created()
    assert printify.publish(product).json() == {}
    assert printify.read(product)["is_locked"]
    for response in (
        printify.call("PUT", printify.path(product), json={"title": "x"}),
        printify.call("DELETE", printify.path(product)),
        printify.publish(product),
    ):
        assert "disabled for editing" in reason(response, 8252)
    assert "external" not in printify.read(product)
    account = books(printify.sim, printify.token)
    assert [p["product_id"] for p in account["publishes"]] == [product["id"]]


def test_a_published_product_is_unlocked_when_the_channel_has_it(printify: Printify) -> None:
    product = printify.created()
    assert printify.publish(product).json() == {}
    done = printify.unlocked(product)
    assert done["external"]["id"].isdigit()
    assert done["external"]["handle"].endswith(done["external"]["id"])
    account = books(printify.sim, printify.token)
    assert [p["product_id"] for p in account["publishes"]] == [product["id"]]
    assert account["products"][0]["publishes"] == 1
    assert printify.publish(product).status_code == 200
    assert printify.unlocked(product)["external"] == done["external"]
    assert printify.call("POST", printify.path(product, "/unpublish")).json() == {}
    assert "external" not in printify.read(product)
    assert printify.call("DELETE", printify.path(product)).json() == {}
    assert printify.call("GET", printify.path(product)).status_code == 404


def test_what_cannot_be_sold_is_not_published(printify: Printify) -> None:
    cheap = printify.created(variants=[{"id": 12100, "price": 1, "is_enabled": True}])
    assert "production cost" in reason(printify.publish(cheap), 8253)
    nowhere = Printify(printify.sim, "disconnected")
    lonely = nowhere.created()
    assert "not connected" in reason(nowhere.publish(lonely), 8254)
    for flags in ({}, SYNC | {"tags": "yes"}):
        response = printify.call("POST", printify.path(cheap, "/publish"), json=flags)
        reason(response, 8150)
    assert not printify.read(cheap)["is_locked"]


def test_the_owner_of_a_custom_shop_reports_what_became_of_publishing(printify: Printify) -> None:
    own = Printify(printify.sim, "custom")
    product = own.created()
    own.publish(product)
    told = own.call("POST", own.path(product, "/publishing_failed"), json={"reason": "no room"})
    assert told.json() == {"product_id": product["id"]}
    assert "external" not in own.unlocked(product)
    own.publish(product)
    external = {"id": "17", "handle": "https://shop.example/fox"}
    path = own.path(product, "/publishing_succeeded")
    assert own.call("POST", path, json={}).status_code == 400
    own.call("POST", path, json={"external": external})
    assert own.unlocked(product)["external"] == external


@pytest.mark.parametrize("kind", ["shop_fails", "shop_hangs"])
def test_publishing_can_come_to_nothing(printify: Printify, kind: str) -> None:
    configure_shops(printify.sim, publish_seconds=0)  # what does not hang is unlocked at once
    product = printify.created()
    printify.sim.fault(kind, channel="printify", operation="publish_product")
    printify.publish(product)
    if kind == "shop_fails":
        assert "external" not in printify.unlocked(product)
    else:
        assert printify.read(product)["is_locked"]


def test_too_many_calls_are_refused_with_the_time_to_wait(printify: Printify) -> None:
    configure_shops(printify.sim, catalogue_per_minute=2, publishes_per_half_hour=1)
    product = printify.created()
    calls = [printify.call("GET", "/catalog/blueprints.json") for _ in range(3)]
    assert [c.status_code for c in calls] == [200, 200, 429]
    assert calls[0].headers["X-RateLimit-Limit"] == "2"
    assert 1 <= int(calls[2].headers["Retry-After"]) <= 60
    assert printify.publish(product).status_code == 200
    late = printify.publish(product)
    assert (late.status_code, 1700 < int(late.headers["Retry-After"]) <= 1800) == (429, True)
    configure_shops(printify.sim, requests_per_minute=1)
    assert printify.call("GET", "/shops.json").status_code == 429
    assert Printify(printify.sim, "other").call("GET", "/shops.json").status_code == 200
    assert books(printify.sim, printify.token)["answers"]["429"] == 3


def test_refusals_have_no_effect(printify: Printify) -> None:
    faults = [
        {"kind": "shop_status", "status": 500, "body": "{}"},
        {"kind": "shop_throttled", "retry_after": 7},
        {"kind": "shop_drop_before"},
    ]
    for fault in faults:
        printify.sim.fault(**fault, channel="printify", operation="create_product", times=1)
    first, second = printify.create(), printify.create()
    assert (first.status_code, first.text) == (500, "{}")
    assert (second.status_code, second.headers["Retry-After"]) == (429, "7")
    with pytest.raises(requests.ConnectionError):
        printify.create()
    assert printify.create().status_code == 200
    account = books(printify.sim, printify.token)
    assert (account["calls"]["create_product"], account["products_created"]) == (4, 1)
    assert account["answers"]["dropped"] == 1


def test_an_answer_can_be_lost_after_the_effect(printify: Printify) -> None:
    where = {"channel": "printify", "operation": "create_product", "times": 1}
    printify.sim.fault("shop_drop_after", prompt="fox one", **where)
    with pytest.raises(requests.ConnectionError):
        printify.create(title="fox one")
    printify.sim.fault("shop_garbage", **where)
    garbage = printify.create(title="fox two")
    assert garbage.status_code == 200
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        garbage.json()
    printify.sim.fault("shop_status_after", **where)
    assert printify.create(title="fox three").status_code == 502
    printify.sim.fault("shop_slow", seconds=0.05, **where)
    assert printify.create(title="fox four").elapsed.total_seconds() >= 0.05
    titles = [p["title"] for p in books(printify.sim, printify.token)["products"]]
    assert titles == ["fox one", "fox two", "fox three", "fox four"]


def test_rules_of_shops_and_of_predictions_do_not_meet(printify: Printify) -> None:
    printify.sim.fault("create_status", status=500)
    assert printify.create().status_code == 200
    printify.sim.request("DELETE", "/_sim/faults")
    printify.sim.fault("shop_status", status=500)
    assert printify.sim.create().status_code == 201
    refused = printify.sim.request(
        "POST", "/_sim/faults", json={"kind": "shop_status", "model": FLUX}
    )
    assert refused.status_code == 400
    other = printify.sim.request("POST", "/_sim/faults", json={"kind": "fail", "channel": "x"})
    assert other.status_code == 400


def test_every_create_call_counts_even_at_once(printify: Printify) -> None:
    body, shop = printify.body(printify.uploaded()["id"]), printify.shop()

    def create(_number: int) -> int:
        path = f"{printify.sim.url}/printify/v1/shops/{shop}/products.json"
        headers = {"Authorization": f"Bearer {printify.token}"}
        return requests.post(path, json=body, headers=headers, timeout=20).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(create, range(16))) == {200}
    account = books(printify.sim, printify.token)
    assert account["calls"]["create_product"] == account["products_created"] == 16


def test_a_reset_forgets_accounts_and_settings(printify: Printify) -> None:
    printify.created()
    printify.sim.request("POST", "/_sim/reset")
    assert printify.sim.request("GET", "/_sim/shops").json() == {"accounts": []}
    settings = printify.sim.request("GET", "/_sim/shops/settings").json()
    assert settings["publish_seconds"] == 1.0
    for wrong in ({"publish_seconds": -1}, {"nonsense": 1}, ["x"]):
        answer = printify.sim.request("POST", "/_sim/shops/settings", json=wrong)
        assert answer.status_code == 400
