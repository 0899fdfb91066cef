"""What the conformance suite has to know about a channel, and how it publishes."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from generation.http import HttpClient
from publishing.channel import Channel, Done, Failure, Item, NotThere, Pending, Step
from publishing.channels import make_channel
from tests.publishing.items import artwork, make_item
from tests.simulator.support import PATIENCE_S, Simulator

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Facts:
    """A channel: its steps in order, and what the simulator calls the request of each."""

    name: str
    options: Mapping[str, Any]
    operations: Mapping[str, str]  # of the steps that create something
    requests: Mapping[str, str]  # what is in the URL or the body of the POST of each of these
    looks: Mapping[str, str]  # what is asked to find what such a step has made
    last_look: str  # of the step that waits for the end
    tight: Mapping[str, float]  # settings of the simulator that leave no room for another call
    background: str  # the request that starts what the channel does by itself
    tells_failure: bool  # of that, instead of asking for it once more unseen
    counted: str  # in the books of a product: how often that was asked for


FACTS = (
    Facts(
        "printify",
        {},
        {"upload": "create_upload", "product": "create_product", "publish": "publish_product"},
        {"upload": "/uploads/", "product": "/products.json", "publish": "/publish.json"},
        {"upload": "list_uploads", "product": "list_products", "publish": "get_product"},
        "get_product",
        {"requests_per_minute": 0},
        "publish_product",
        True,
        "publishes",
    ),
    Facts(
        "shopify",
        {"shop": "cats.myshopify.com"},
        {"product": "productSet", "publish": "publishablePublish"},
        {"product": "productSet(", "publish": "publishablePublish("},
        {"product": "productByIdentifier", "publish": "product"},
        "product",
        {"points": 0.5, "points_per_second": 10.0},
        "productSet",
        False,
        "sets",
    ),
)
CREATING = [(facts, step) for facts in FACTS for step in facts.operations]


def picture(number: int) -> bytes:
    """Return a PNG that no other number has."""
    file = io.BytesIO()
    Image.new("RGB", (45, 54), (number % 256, number // 256 % 256, 99)).save(file, "PNG")
    return file.getvalue()


@dataclass
class Harness:
    """A channel at the simulator, with an account of its own.

    `url` is where the simulator is reached: itself, or by way of a network that can be disturbed.
    """

    facts: Facts
    sim: Simulator
    http: HttpClient
    url: str = ""
    token: str = field(default_factory=lambda: f"token_{next(_numbers)}_{time.time_ns()}")

    def channel(self, token: str = "", http: HttpClient | None = None) -> Channel:
        url = self.url or self.sim.url
        return make_channel(
            self.facts.name,
            dict.fromkeys(("token", "access_token"), token or self.token),
            self.facts.options,
            http=http or self.http,
            printify_base_url=f"{url}/printify/v1",
            shopify_base_url=f"{url}/shopify/{{shop}}",
            shopify_api_version="2026-04",
        )

    def item(self, **overrides: Any) -> Item:
        number = next(_numbers)
        made = make_item(
            self.facts.name,
            key=f"picture-{number}-{time.time_ns()}",
            title=f"A cat, number {number}",
            artwork=artwork(picture(number)),
            width_px=45,
            height_px=54,
        )
        return replace(made, **overrides)

    def before(self, step_name: str, item: Item) -> tuple[Step, Item]:
        """Publish an item up to a step, and return that and the item."""
        channel = self.channel()
        while (step := channel.next_step(item)) is not None:
            if step.name == step_name:
                return step, item
            done = settled(channel, step, item)
            item = with_ids(item, done)
        raise AssertionError(f"{self.facts.name} has no step {step_name}")

    def fault(self, kind: str, operation: str, **rule: Any) -> None:
        self.sim.fault(kind, channel=self.facts.name, operation=operation, **rule)

    def delete_product(self, item: Item) -> None:
        """Delete the product as its owner would, at the channel."""
        product_id = item.remote_ids["product_id"]
        if self.facts.name == "printify":
            path = f"/printify/v1/shops/{item.remote_ids['shop_id']}/products/{product_id}.json"
            headers = {"Authorization": f"Bearer {self.token}", "User-Agent": "test"}
            answer = self.sim.request("DELETE", path, headers=headers)
        else:
            mutation = (
                "mutation ($id: ID!) { productDelete(input: {id: $id}) { deletedProductId } }"
            )
            answer = self.sim.request(
                "POST",
                f"/shopify/{self.facts.options['shop']}/admin/api/2026-04/graphql.json",
                headers={"X-Shopify-Access-Token": self.token},
                json={"query": mutation, "variables": {"id": product_id}},
            )
        assert answer.status_code == 200, answer.text

    def books(self) -> dict[str, Any]:
        """Return what the simulator has of this account."""
        answer = self.sim.request("GET", "/_sim/shops", params={"token": self.token}).json()
        return dict(answer["accounts"][0]) if answer["accounts"] else {"products": []}

    def products(self) -> list[dict[str, Any]]:
        return list(self.books()["products"])


def with_ids(item: Item, done: Done) -> Item:
    return replace(item, remote_ids={**item.remote_ids, **done.remote_ids})


def ended(channel: Channel, step: Step, item: Item) -> Done | Failure:
    """Take a step, again and again as long as it is pending."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        result = channel.take(step, item)
        if not isinstance(result, Pending):
            return result
        time.sleep(0.01)
    raise AssertionError(f"never ended: {step.name}")


def settled(channel: Channel, step: Step, item: Item) -> Done:
    """Take a step that must succeed."""
    result = ended(channel, step, item)
    assert isinstance(result, Done), result
    return result


def publish(
    harness: Harness,
    item: Item,
    disturb: Callable[[Step], str] = lambda step: "",
) -> Done:
    """Publish an item as a caller does that records a step before it takes it.

    `disturb` says what happens the first time that a step is taken: the caller is killed
    "before" or "after" the call, or the answer is "lost" on its way. What it has not recorded by
    then, it does not know afterwards.
    """
    disturbed: set[str] = set()
    channel = harness.channel()
    while True:
        step = channel.next_step(item)
        assert step is not None
        how = disturb(step) if step.name not in disturbed else ""
        disturbed.add(step.name)
        if how == "lost":
            harness.fault("shop_drop_after", harness.facts.operations[step.name], times=1)
        if how in ("after", "lost"):
            channel.take(step, item)
        if how:
            channel = harness.channel()
            found = channel.find(step, item)
            assert isinstance(found, (Done, NotThere)), found
            done = found if isinstance(found, Done) else settled(channel, step, item)
        else:
            done = settled(channel, step, item)
        item = with_ids(item, done)
        if channel.next_step(item) is None:
            return done


def failure(result: object) -> Failure:
    assert isinstance(result, Failure), result
    return result
