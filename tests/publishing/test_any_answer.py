"""Whatever a channel answers, an adapter returns a value, and nothing of it is unsafe to keep."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.http import HttpClient, Response, TransportError
from generation.provider import RAW_LIMIT, Failure
from publishing.channel import Channel, Done, NotThere, Pending
from publishing.channels import make_channel
from tests.publishing.items import make_item

TOKEN = "shpat_TestTokenThatMustNotLeak"
IDS = {
    "upload_id": "5e16d667",
    "shop_id": "1",
    "product_id": "5d39b159",
    "published": "1",
}
# Words that the adapters know, so that what is made of them comes near to real answers.
WORDS = """
id data errors error code message reason title file_name variants placeholders position width height
images name sku print_areas external handle is_locked last_page next_page_url extensions cost
throttleStatus currentlyAvailable restoreRate requestedQueryCost product media nodes status
userErrors field stagedTargets url resourceUrl parameters value productSet stagedUploadsCreate
publications publishablePublish productByIdentifier shop publishedOnPublication onlineStoreUrl
created_at
"""
KEYS = st.sampled_from(WORDS.split())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from([TOKEN, "FAILED", "READY", "THROTTLED", "gid://shopify/Product/1", "front"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)
# Good answers, of which a part is changed.
GOOD: list[object] = [
    [{"id": 1, "title": "Shop"}],
    {"id": "5d39b159", "is_locked": False, "external": {"id": "9", "handle": "https://x.test/p"}},
    {"variants": [{"id": 1, "placeholders": [{"position": "front", "width": 9, "height": 9}]}]},
    {
        "current_page": 1,
        "last_page": 2,
        "data": [
            {
                "id": "5d39b159",
                "file_name": "picture-0b1f.png",
                "created_at": "2026",
                "variants": [{"id": 1, "sku": "P00000000000000000000-1"}],
                "print_areas": [
                    {"placeholders": [{"images": [{"id": "5e16d667", "name": "x.png"}]}]}
                ],
            }
        ],
    },
    {"status": "error", "code": 8150, "message": "no", "errors": {"reason": "x", "title": ["y"]}},
    {
        "data": {
            "shop": {"name": "Cats"},
            "currentAppInstallation": {
                "accessScopes": [
                    {"handle": "write_products"},
                    {"handle": "write_files"},
                    {"handle": "write_publications"},
                ]
            },
            "stagedUploadsCreate": {
                "stagedTargets": [
                    {
                        "url": "https://storage.googleapis.com/",
                        "resourceUrl": "https://storage.googleapis.com/x",
                        "parameters": [{"name": "key", "value": "x"}],
                    }
                ],
                "userErrors": [],
            },
            "productSet": {"product": {"id": "gid://shopify/Product/1"}, "userErrors": []},
            "productByIdentifier": {"id": "gid://shopify/Product/1"},
            "publications": {"nodes": [{"id": "gid://shopify/Publication/1", "name": "x"}]},
            "publishablePublish": {"userErrors": []},
            "product": {
                "id": "gid://shopify/Product/1",
                "publishedOnPublication": True,
                "onlineStoreUrl": "https://x.test/p",
                "media": {"nodes": [{"id": "gid://shopify/MediaImage/1", "status": "READY"}]},
            },
        }
    },
    {"data": {"productSet": {"userErrors": [{"field": ["input", "title"], "message": "no"}]}}},
    {
        "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
        "extensions": {
            "cost": {
                "requestedQueryCost": 10,
                "throttleStatus": {"currentlyAvailable": 0, "restoreRate": 100},
            }
        },
    },
]


@st.composite
def changed(draw: st.DrawFn) -> object:
    """A good answer with another value in a place of it, or in none."""

    def walk(value: object, may_change: bool) -> object:
        if may_change and draw(st.integers(0, 9)) == 0:
            return draw(VALUES)
        if isinstance(value, dict):
            return {key: walk(one, True) for key, one in value.items()}
        return [walk(one, True) for one in value] if isinstance(value, list) else value

    return walk(draw(st.sampled_from(GOOD)), False)


BODIES = (VALUES | changed()).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50)
ANSWERS = st.builds(
    Response,
    st.sampled_from([200, 200, 200, 201, 302, 400, 401, 404, 408, 422, 429, 500, 503, 521]),
    st.dictionaries(st.just("retry-after"), st.text(max_size=10), max_size=1),
    BODIES,
) | st.builds(
    TransportError,
    st.sampled_from(["connect", "sent", "read"]),
    st.just("host: reset"),
    st.none() | st.sampled_from([200, 404, 500]),
)


class AnyHttp(HttpClient):
    """Gives one answer after the other, the last one again and again."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def json(self, *args, **kwargs):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def upload(self, *args, **kwargs):
        return self.json()


def channel_of(name: str, http: HttpClient) -> Channel:
    return make_channel(
        name,
        {"token": TOKEN, "access_token": TOKEN},
        {"shop": "cats.myshopify.com"},
        http=http,
        printify_base_url="https://printify.test/v1",
        shopify_base_url="https://{shop}",
        shopify_api_version="2026-04",
    )


def steps_of(channel: Channel):
    """Yield each step and the item before it."""
    ids = {}
    for name in ("", *IDS):
        ids |= {name: IDS[name]} if name else {}
        here = make_item(channel.name, remote_ids=dict(ids))
        if step := channel.next_step(here):
            yield step, here


@pytest.mark.parametrize("name", ["printify", "shopify"])
@given(answers=st.lists(ANSWERS, min_size=1, max_size=4))
def test_any_answer_becomes_a_value(name, answers):
    channel = channel_of(name, AnyHttp([*answers]))
    results = [channel.check()]
    for step, item in steps_of(channel):
        channel = channel_of(name, AnyHttp([*answers]))
        result = channel.take(step, item)
        assert isinstance(result, (Done, Pending, Failure))
        results.append(result)
        if step.creates:
            found = channel.find(step, item)
            assert isinstance(found, (Done, NotThere, Failure))
            results.append(found)
        else:
            assert not isinstance(result, Failure) or result.error_class != "timeout_unknown"
    for result in results:
        if isinstance(result, Failure):
            assert TOKEN not in repr(result)
            assert len(result.raw) <= RAW_LIMIT
            assert 0 < len(result.message) <= 300
            assert "<" not in result.message
        if isinstance(result, Done):
            assert all(isinstance(one, str) for one in result.remote_ids.values())
            assert len(json.dumps(result.raw)) < 1_000_000
