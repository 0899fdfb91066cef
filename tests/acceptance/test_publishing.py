"""From prompts to products at both channels, through the API of a running stack."""

from tests.acceptance.shops import PRODUCTS, approve, books, give_accounts
from tests.waiting import wait_until

SETTINGS = {"model": "bytedance/sdxl-lightning-4step", "width": 256, "height": 256}


def image_ids(client, texts):
    """Ids of stored images of these prompts."""
    batch = client.finished(client.submit(texts, settings=SETTINGS))
    assert batch["status"] == "completed"
    return [item["image"]["id"] for item in batch["items"]]


def ended(client, ids, timeout_s=60):
    """Publications as they are when all have ended."""

    def look():
        rows = [client.call("GET", f"publications/{one}/").json() for one in ids]
        return rows if all(row["finished_at"] for row in rows) else None

    return wait_until(look, timeout_s=timeout_s, every_s=0.1)


def test_three_approved_images_become_three_products_at_each_channel(client, simulator):
    token = f"token-of-{client.username}"
    give_accounts(client, token)
    for channel in PRODUCTS:
        account = client.call("POST", f"channels/{channel}/check/").json()
        assert account["name"]
    ids = image_ids(client, ["a fox", "a hare", "an owl", "a toad"])
    approve(client, ids[:3])
    publications = []
    for channel, product_type in PRODUCTS.items():
        asked = {"channel": channel, "product_type": product_type, "title": "Animal {index}"}
        body = {**asked, "image_ids": ids}
        refused = client.call("POST", "publications/", 422, json=body).json()
        assert refused["errors"][0]["code"] == "not_approved"
        body["image_ids"] = ids[:3]
        taken = client.call("POST", "publications/", 202, json=body).json()["results"]
        assert {one["outcome"] for one in taken} == {"accepted"}
        again = client.call("POST", "publications/", json=body).json()["results"]
        assert {one["outcome"] for one in again} == {"exists"}
        publications += [one["publication"]["id"] for one in taken]
    rows = ended(client, publications)
    assert [row["error"] for row in rows] == [None] * 6
    assert {row["status"] for row in rows} == {"published"}
    shown = books(simulator, token)
    assert shown.keys() == PRODUCTS.keys()
    for channel, book in shown.items():
        assert book["products_created"] == 3, channel
        titles = [product["title"] for product in book["products"]]
        assert sorted(titles) == ["Animal 1", "Animal 2", "Animal 3"]
    for row in rows:
        assert row["remote_ids"]
        outcomes = [call["outcome"] for call in row["attempts"]]
        assert outcomes == ["succeeded"] * row["attempt_count"]
    listed = client.call("GET", "publications/", params={"channel": "shopify"}).json()
    assert len(listed["results"]) == 3


def test_refused_credentials_are_told_and_new_ones_go_on(client, simulator):
    give_accounts(client, f"bad-token-of-{client.username}")
    problem = client.call("POST", "channels/printify/check/", 409).json()
    assert problem["code"] == "auth"
    # It is taken for good until it is used.
    body = {"credentials": {"token": f"bad-{client.username}"}, "options": {}}
    client.call("PUT", "channels/printify/", json=body)
    (image,) = image_ids(client, ["a fox"])
    client.call("POST", f"images/{image}/approve/", json={})
    asked = {"channel": "printify", "product_type": "mug", "title": "A fox"}
    publication = client.call("POST", f"images/{image}/publish/", 202, json=asked).json()
    wait_until(lambda: client.call("GET", "channels/printify/").json()["stopped_by"] == "auth")
    client.call("DELETE", "channels/printify/", 409)
    client.call("POST", f"images/{image}/reject/", 409, json={})
    body["credentials"] = {"token": f"good-{client.username}"}
    client.call("PUT", "channels/printify/", json=body)
    (row,) = ended(client, [publication["id"]])
    assert row["status"] == "published"
    client.call("DELETE", "channels/printify/", 204)
