"""Clients of the simulated shops, and the images that they send."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import requests
from PIL import Image

from tests.simulator.support import PATIENCE_S, Simulator, eventually

SYNC = dict.fromkeys(("title", "description", "images", "variants", "tags"), True)

PRODUCT_SET = """
mutation Set($identifier: ProductSetIdentifiers, $input: ProductSetInput!, $synchronous: Boolean) {
  productSet(identifier: $identifier, input: $input, synchronous: $synchronous) {
    product {
      id handle status title vendor tags onlineStoreUrl
      variants(first: 20) { nodes { id title price sku } }
      media(first: 5) { nodes { id status } }
    }
    productSetOperation { id status userErrors { code } }
    userErrors { field message code }
  }
}
"""
STAGE = """
mutation Stage($input: [StagedUploadInput!]!) {
  stagedUploadsCreate(input: $input) {
    stagedTargets { url resourceUrl parameters { name value } }
    userErrors { field message }
  }
}
"""
PUBLISH = """
mutation Publish($id: ID!, $input: [PublicationInput!]!) {
  publishablePublish(id: $id, input: $input) {
    publishable { ... on Product { onlineStoreUrl resourcePublicationsCount { count } } }
    userErrors { field message }
  }
}
"""
MEDIA = """
query Media($id: ID!) {
  product(id: $id) {
    media(first: 5) {
      nodes { id status mediaErrors { code message } ... on MediaImage { image { url width } } }
    }
  }
}
"""


def image_bytes(kind: str = "PNG", side_px: int = 64, colour: str = "teal") -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px), colour).save(buffer, kind)
    return buffer.getvalue()


def books(sim: Simulator, token: str) -> dict[str, Any]:
    """Return the books of the one account of a token."""
    (account,) = sim.request("GET", "/_sim/shops", params={"token": token}).json()["accounts"]
    return dict(account)


def configure_shops(sim: Simulator, **settings: Any) -> None:
    """Change the settings that the shops have in common."""
    response = sim.request("POST", "/_sim/shops/settings", json=settings)
    assert response.status_code == 200, response.text


@dataclass
class Printify:
    """An account at the simulated Printify."""

    sim: Simulator
    token: str = "a-token"
    headers: dict[str, str | None] = field(default_factory=dict)

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Send a request with the token."""
        headers: Any = {"Authorization": f"Bearer {self.token}", **self.headers}
        return self.sim.request(method, f"/printify/v1{path}", headers=headers, **kwargs)

    def shop(self) -> int:
        """Return the first shop's id."""
        return int(self.call("GET", "/shops.json").json()[0]["id"])

    def uploaded(self, data: bytes | None = None, name: str = "fox.png") -> dict[str, Any]:
        """Upload an image that must be taken."""
        contents = base64.b64encode(image_bytes() if data is None else data).decode()
        body = {"file_name": name, "contents": contents}
        response = self.call("POST", "/uploads/images.json", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def body(self, upload_id: str, **changes: Any) -> dict[str, Any]:
        """Return a body that makes a shirt of two sizes."""
        image = {"id": upload_id, "x": 0.5, "y": 0.5, "scale": 1, "angle": 0}
        placeholders = [{"position": "front", "images": [image]}]
        body = {
            "title": "A fox",
            "description": "A fox in the snow",
            "tags": ["fox"],
            "blueprint_id": 6,
            "print_provider_id": 29,
            "variants": [{"id": i, "price": 1999, "is_enabled": True} for i in (12100, 12101)],
            "print_areas": [{"variant_ids": [12100, 12101], "placeholders": placeholders}],
        }
        return body | changes

    def create(self, **changes: Any) -> requests.Response:
        """Upload an image and ask for a product."""
        body = self.body(self.uploaded()["id"], **changes)
        return self.call("POST", f"/shops/{self.shop()}/products.json", json=body)

    def created(self, **changes: Any) -> dict[str, Any]:
        """Make a product that must be accepted."""
        response = self.create(**changes)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def path(self, product: dict[str, Any], action: str = "") -> str:
        """Return the path of a product."""
        return f"/shops/{product['shop_id']}/products/{product['id']}{action}.json"

    def publish(self, product: dict[str, Any]) -> requests.Response:
        """Ask to publish everything of a product."""
        return self.call("POST", self.path(product, "/publish"), json=SYNC)

    def read(self, product: dict[str, Any]) -> dict[str, Any]:
        """Return a product as it is now."""
        return dict(self.call("GET", self.path(product)).json())

    def unlocked(self, product: dict[str, Any]) -> dict[str, Any]:
        """Wait until publishing has ended."""

        def probe() -> dict[str, Any] | None:
            now = self.read(product)
            return None if now["is_locked"] else now

        return eventually(probe, "the product is unlocked")


@dataclass
class Shopify:
    """An account at a shop of the simulated Shopify."""

    sim: Simulator
    token: str = "shpat_a"
    shop: str = "foxes.myshopify.com"
    version: str = "2026-04"

    def post(self, body: Any, **kwargs: Any) -> requests.Response:
        """Send a body to the GraphQL route."""
        headers = {"X-Shopify-Access-Token": self.token}
        path = f"/shopify/{self.shop}/admin/api/{self.version}/graphql.json"
        return self.sim.request("POST", path, headers=headers, json=body, **kwargs)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the answer to a query, errors included."""
        response = self.post({"query": query, "variables": variables})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def data(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return the data of a query that must succeed."""
        answer = self.ask(query, **variables)
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def target(self, **changes: Any) -> dict[str, Any]:
        """Return a staged target for one image."""
        own = {"filename": "fox.png", "mimeType": "image/png", "resource": "IMAGE"}
        staged = self.data(STAGE, input=[own | {"httpMethod": "POST"} | changes])
        (target,) = staged["stagedUploadsCreate"]["stagedTargets"]
        return dict(target)

    def upload(
        self, target: dict[str, Any], data: bytes | None = None, *, order: Iterable[int] = (0, 1)
    ) -> requests.Response:
        """Send a file; order (1, 0) sends it before the parameters."""
        parameters = [(p["name"], (None, p["value"])) for p in target["parameters"]]
        file = [("file", ("fox.png", image_bytes() if data is None else data, "image/png"))]
        groups: list[list[Any]] = [parameters, file]
        parts = [part for index in order for part in groups[index]]
        return requests.post(target["url"], files=parts, timeout=PATIENCE_S)

    def staged(self, data: bytes | None = None) -> str:
        """Stage an image; return its URL for a product."""
        target = self.target()
        assert self.upload(target, data).status_code == 201
        return str(target["resourceUrl"])

    def input(self, **changes: Any) -> dict[str, Any]:
        """Return the input of a shirt in two sizes."""
        sizes = ("S", "M")
        return {
            "title": "A fox",
            "handle": "a-fox",
            "status": "ACTIVE",
            "tags": ["fox"],
            "productOptions": [{"name": "Size", "values": [{"name": size} for size in sizes]}],
            "variants": [
                {"optionValues": [{"optionName": "Size", "name": size}], "price": "19.9"}
                for size in sizes
            ],
        } | changes

    def set(self, **changes: Any) -> dict[str, Any]:
        """Create or change the product `a-fox`; return the payload."""
        variables = {"identifier": {"handle": "a-fox"}, "input": self.input(**changes)}
        return dict(self.data(PRODUCT_SET, **variables)["productSet"])

    def product(self, **changes: Any) -> dict[str, Any]:
        """Create or change the product `a-fox`, which must be accepted."""
        payload = self.set(**changes)
        assert payload["userErrors"] == []
        return dict(payload["product"])

    def media(self, product: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the media of a product as they are now."""
        return list(self.data(MEDIA, id=product["id"])["product"]["media"]["nodes"])

    def settled(self, product: dict[str, Any]) -> list[dict[str, Any]]:
        """Wait until all media of a product are READY or FAILED."""

        def probe() -> list[dict[str, Any]] | None:
            media = self.media(product)
            return media if all(m["status"] in ("READY", "FAILED") for m in media) else None

        return eventually(probe, "the media are processed")

    def publications(self) -> dict[str, str]:
        """Return the ids of the sales channels by name."""
        found = self.data("{ publications(first: 20) { nodes { id name catalog { title } } } }")
        return {p["name"]: p["id"] for p in found["publications"]["nodes"]}
