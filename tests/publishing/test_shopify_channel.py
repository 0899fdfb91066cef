"""The Shopify adapter: what it sends, and how it reads what comes back."""

import json
from decimal import Decimal

import pytest

from generation.provider import ErrorClass, Failure
from publishing.channel import CHANGED, Account, Channel, Done, NotThere, Pending
from publishing.channels.shopify import (
    MEDIA,
    PRODUCT,
    PUBLISH,
    THROTTLED_WAIT_MAX_S,
    THROTTLED_WAIT_S,
    Shopify,
)
from tests.publishing.items import artwork, make_item

TOKEN = "shpat_TestTokenThatMustNotLeak"
SHOP = "cats.myshopify.com"
URL = f"https://{SHOP}/admin/api/2026-04/graphql.json"
STAGED_URL = "https://shopify-staged-uploads.storage.googleapis.com/"
SOURCE = f"{STAGED_URL}tmp/1/picture.png"
ID = "gid://shopify/Product/108828309"
STORE, POS = "gid://shopify/Publication/1", "gid://shopify/Publication/2"
CREATED = {"product_id": ID}
PUBLISHED = {**CREATED, "published": "1"}


def item(**overrides):
    return make_item("shopify", **overrides)


def data(name, value):
    return {"data": {name: value}, "extensions": {"cost": {"requestedQueryCost": 10}}}


def target(**overrides):
    parameters = [{"name": "key", "value": "tmp/1"}, {"name": "policy", "value": "e30="}]
    return {"url": STAGED_URL, "resourceUrl": SOURCE, "parameters": parameters, **overrides}


def staged(*targets):
    return data("stagedUploadsCreate", {"stagedTargets": list(targets), "userErrors": []})


def created(**overrides):
    return data("productSet", {"product": {"id": ID}, "userErrors": [], **overrides})


def publications(*nodes):
    return data("publications", {"nodes": list(nodes)})


def seen(*statuses, **overrides):
    media = {"nodes": [{"id": "gid://shopify/MediaImage/1", "status": one} for one in statuses]}
    urls = {"onlineStoreUrl": None, "onlineStorePreviewUrl": None}
    return data("product", {"id": ID, **urls, "media": media, **overrides})


def scopes(*handles):
    listed = [{"handle": handle} for handle in handles]
    return data("currentAppInstallation", {"accessScopes": listed})


def sent(call):
    return json.loads(call.request.body)


@pytest.fixture
def channel(http) -> Shopify:
    return Shopify(TOKEN, SHOP, http=http)


@pytest.fixture
def storage(api):
    """Shopify names a place for a file, which takes it."""
    api.post(URL, json=staged(target()))
    return api.post(STAGED_URL, status=201)


def test_is_a_channel(channel):
    made: Channel = channel
    assert made.name == "shopify"
    assert TOKEN not in repr(channel)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak"])
def test_refuses_a_token_that_no_header_can_carry(http, token):
    with pytest.raises(ValueError, match="token"):
        Shopify(token, SHOP, http=http)


@pytest.mark.parametrize(
    "shop",
    [
        "",
        "cats",
        "cats.example.com",
        "evil.test/.myshopify.com",
        "evil.test#.myshopify.com",
        "evil.test?.myshopify.com",
        "user@cats.myshopify.com",
        "cats.myshopify.com.evil.test",
        "cats.myshopify.com:8080",
        "cats.myshopify.com\n",
        "cats.evil.myshopify.com",
        ".myshopify.com",
        "-cats.myshopify.com",
        "CATS.myshopify.com",
        "127.0.0.1",
    ],
)
def test_reaches_no_host_but_shops_of_shopify(http, shop):
    with pytest.raises(ValueError, match="shop"):
        Shopify(TOKEN, shop, http=http)


def test_steps_come_one_after_the_other(channel):
    assert channel.next_step(item()) == PRODUCT
    assert channel.next_step(item(remote_ids=CREATED)) == PUBLISH
    assert channel.next_step(item(remote_ids=PUBLISHED)) == MEDIA
    assert channel.next_step(item(remote_ids={**PUBLISHED, "media": "ready"})) is None
    assert channel.next_step(item(remote_ids={**PUBLISHED, "product_id": ""})) == PRODUCT
    # New variants are what a shop may have so many of a day.
    assert [step for step in (PRODUCT, PUBLISH, MEDIA) if step.publishes] == [PRODUCT]
    assert [step.creates for step in (PRODUCT, PUBLISH, MEDIA)] == [True, True, False]


class TestProduct:
    def test_is_set_by_its_handle_with_the_uploaded_picture(self, channel, api):
        forms = []

        def keep(request):
            forms.append(b"".join(request.body))
            return 201, {}, ""

        api.post(URL, json=staged(target()))
        api.add_callback("POST", STAGED_URL, keep)
        api.post(URL, json=created())
        done = channel.take(PRODUCT, item(price_usd=Decimal("24.9")))
        assert isinstance(done, Done)
        assert done.remote_ids == CREATED
        stage, _, product = api.calls
        assert sent(stage)["variables"]["input"] == [
            {
                "filename": "picture-0b1f.png",
                "mimeType": "image/png",
                "resource": "IMAGE",
                "httpMethod": "POST",
                "fileSize": str(len(b"\x89PNG artwork")),
            }
        ]
        [form] = forms
        assert form.index(b'name="key"') < form.index(b'name="policy"') < form.index(b'"file"')
        assert form.rindex(b"\x89PNG artwork") > form.index(b'"file"')
        assert "synchronous: true" in sent(product)["query"]
        variables = sent(product)["variables"]
        assert variables["identifier"] == {"handle": "picture-0b1f"}
        assert variables["input"] == {
            "title": "A cat",
            "handle": "picture-0b1f",
            "descriptionHtml": "<p>Asleep.</p>",
            "productType": "T-Shirts",
            "tags": ["cat", "sleep"],
            "status": "ACTIVE",
            "productOptions": [{"name": "Title", "values": [{"name": "Default Title"}]}],
            "variants": [
                {
                    "optionValues": [{"optionName": "Title", "name": "Default Title"}],
                    "price": "24.90",
                    "inventoryPolicy": "CONTINUE",
                }
            ],
            "files": [{"originalSource": SOURCE, "alt": "A cat", "contentType": "IMAGE"}],
        }

    def test_shows_the_token_to_shopify_only(self, channel, api, storage):
        api.post(URL, json=created())
        channel.take(PRODUCT, item())
        stage, upload, product = (call.request.headers for call in api.calls)
        assert stage["X-Shopify-Access-Token"] == product["X-Shopify-Access-Token"] == TOKEN
        assert TOKEN not in str(upload)

    def test_has_the_status_and_vendor_of_the_account(self, http, api, storage):
        api.post(URL, json=created())
        channel = Shopify(TOKEN, SHOP, http=http, status="DRAFT", vendor="Cats & Co")
        channel.take(PRODUCT, item())
        product = sent(api.calls[2])["variables"]["input"]
        assert (product["status"], product["vendor"]) == ("DRAFT", "Cats & Co")

    @pytest.mark.parametrize(
        ("overrides", "field"),
        [
            ({"title": ""}, "title"),
            ({"tags": ("x" * 256,)}, "tags"),
            ({"price_usd": Decimal(-1)}, "price_usd"),
            ({"artwork": artwork(size_bytes=20_000_001)}, "image"),
            ({"width_px": 5000, "height_px": 5001}, "image"),
        ],
    )
    def test_sends_nothing_that_would_be_refused(self, channel, overrides, field):
        failure = channel.take(PRODUCT, item(**overrides))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == [field]

    @pytest.mark.parametrize(
        "url",
        [
            "http://shopify-staged-uploads.storage.googleapis.com/",
            "https://evil.test/",
            "https://storage.googleapis.com.evil.test/",
            "https://storage.googleapis.com@evil.test/",
            "https://storage.googleapis.com:8443/",
            "https://127.0.0.1/",
            "file:///etc/passwd",
            "",
        ],
    )
    def test_uploads_to_no_host_but_those_of_shopify(self, channel, api, url):
        api.post(URL, json=staged(target(url=url)))
        failure = channel.take(PRODUCT, item())
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert len(api.calls) == 1

    def test_uploads_to_the_operators_host_where_that_stands_for_shopify(self, http, api):
        base = "http://127.0.0.1:8321/shopify/{shop}"
        url = f"http://127.0.0.1:8321/shopify/{SHOP}/admin/api/2026-04/graphql.json"
        api.post(url, json=staged(target(url="http://127.0.0.1:8321/staged/1")))
        api.post("http://127.0.0.1:8321/staged/1", status=201)
        api.post(url, json=created())
        assert isinstance(
            Shopify(TOKEN, SHOP, http=http, base_url=base).take(PRODUCT, item()), Done
        )

    def test_uploads_to_no_other_port_of_the_operators_host(self, http, api):
        base = "http://127.0.0.1:8321/shopify/{shop}"
        url = f"http://127.0.0.1:8321/shopify/{SHOP}/admin/api/2026-04/graphql.json"
        api.post(url, json=staged(target(url="http://127.0.0.1:6379/")))
        failure = Shopify(TOKEN, SHOP, http=http, base_url=base).take(PRODUCT, item())
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @pytest.mark.parametrize("status", [400, 403, 408, 500, 503])
    def test_whose_picture_the_storage_refuses_was_not_made(self, channel, api, status):
        api.post(URL, json=staged(target()))
        api.post(STAGED_URL, status=status, body="<Error/>")
        failure = channel.take(PRODUCT, item())
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert len(api.calls) == 2

    def test_says_when_the_picture_cannot_be_read(self, channel, api):
        def gone():
            raise FileNotFoundError(2, "No such file", "/data/private")

        api.post(URL, json=staged(target()))
        failure = channel.take(PRODUCT, item(artwork=artwork(open=gone)))
        assert failure.error_class == ErrorClass.INTERRUPTED
        assert "private" not in failure.message

    def test_that_is_refused_names_the_fields(self, channel, api, storage):
        errors = [
            {"field": ["input", "title"], "message": "is <b>too</b> long", "code": "INVALID_INPUT"},
            {"field": None, "message": "is odd", "code": None},
            "no error",
        ]
        api.post(URL, json=created(product=None, userErrors=errors))
        failure = channel.take(PRODUCT, item())
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert failure.fields == {"title": "is b too /b long", "product": "is odd"}
        assert failure.provider_code == "INVALID_INPUT"
        assert "title" in failure.message

    @pytest.mark.parametrize("product", [None, {}, {"id": 7}, {"id": "108828309"}, "x"])
    def test_under_an_id_that_cannot_be_read_may_be_there(self, channel, api, storage, product):
        api.post(URL, json=created(product=product))
        assert channel.take(PRODUCT, item()).error_class == ErrorClass.TIMEOUT_UNKNOWN

    def test_is_found_by_its_handle(self, channel, api):
        api.post(URL, json=data("productByIdentifier", {"id": ID, "handle": "picture-0b1f"}))
        found = channel.find(PRODUCT, item())
        assert isinstance(found, Done)
        assert found.remote_ids == CREATED
        assert sent(api.calls[0])["variables"] == {"identifier": {"handle": "picture-0b1f"}}

    def test_that_is_to_be_changed_is_not_taken_for_what_it_was(self, channel, api, storage):
        # No call: the product would be there, as it was.
        wanted = item(remote_ids={CHANGED: "1"})
        assert channel.find(PRODUCT, wanted) == NotThere()
        assert not api.calls
        api.post(URL, json=created())
        done = channel.take(PRODUCT, wanted)
        assert done.remote_ids == {**CREATED, CHANGED: ""}

    def test_is_not_there_when_no_product_has_its_handle(self, channel, api):
        api.post(URL, json=data("productByIdentifier", None))
        assert channel.find(PRODUCT, item()) == NotThere()

    @pytest.mark.parametrize("value", [{}, {"id": 7}, [], "x", 0, False])
    def test_is_not_told_missing_by_an_answer_that_cannot_be_read(self, channel, api, value):
        api.post(URL, json=data("productByIdentifier", value))
        failure = channel.find(PRODUCT, item())
        assert isinstance(failure, Failure)
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE


class TestPublish:
    def test_goes_to_the_online_store(self, channel, api):
        store, pos = {"id": STORE, "name": "Online Store"}, {"id": POS, "name": "Point of Sale"}
        api.post(URL, json=publications(pos, store))
        api.post(URL, json=data("publishablePublish", {"userErrors": []}))
        done = channel.take(PUBLISH, item(remote_ids=CREATED))
        assert isinstance(done, Done)
        assert done.remote_ids == {"published": "1"}
        variables = sent(api.calls[1])["variables"]
        assert variables == {"id": ID, "input": [{"publicationId": STORE}]}

    def test_goes_to_all_there_are_in_a_shop_without_an_online_store(self, channel, api):
        api.post(URL, json=publications({"id": STORE, "name": None}, {"id": POS}))
        api.post(URL, json=data("publishablePublish", {"userErrors": []}))
        channel.take(PUBLISH, item(remote_ids=CREATED))
        listed = sent(api.calls[1])["variables"]["input"]
        assert [one["publicationId"] for one in listed] == [STORE, POS]

    def test_needs_a_sales_channel(self, channel, api):
        api.post(URL, json=publications())
        failure = channel.take(PUBLISH, item(remote_ids=CREATED))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == ["shop"]

    @pytest.mark.parametrize(("is_published", "found"), [(True, Done), (False, NotThere)])
    def test_is_found_at_the_product(self, channel, api, is_published, found):
        api.post(URL, json=publications({"id": STORE, "name": "Online Store"}))
        api.post(URL, json=data("product", {"id": ID, "publishedOnPublication": is_published}))
        assert isinstance(channel.find(PUBLISH, item(remote_ids=CREATED)), found)

    def test_of_a_product_that_is_gone_is_not_there(self, channel, api):
        api.post(URL, json=publications({"id": STORE, "name": "Online Store"}))
        api.post(URL, json=data("product", None))
        assert channel.find(PUBLISH, item(remote_ids=CREATED)) == NotThere()

    def test_of_a_product_that_is_gone_fails_for_that(self, channel, api):
        api.post(URL, json=publications({"id": STORE, "name": "Online Store"}))
        errors = [{"field": ["id"], "message": "Resource does not exist"}]
        api.post(URL, json=data("publishablePublish", {"userErrors": errors}))
        failure = channel.take(PUBLISH, item(remote_ids=CREATED))
        assert failure.error_class == ErrorClass.NOT_FOUND


class TestMedia:
    @pytest.mark.parametrize("statuses", [(), ("UPLOADED",), ("READY", "PROCESSING"), ("NEW",)])
    def test_are_waited_for(self, channel, api, statuses):
        api.post(URL, json=seen(*statuses))
        assert isinstance(channel.take(MEDIA, item(remote_ids=PUBLISHED)), Pending)

    @pytest.mark.parametrize(
        ("store", "preview", "url"),
        [
            ("https://cats.test/products/a", "https://cats.test/p", "https://cats.test/products/a"),
            (None, "https://cats.test/p", "https://cats.test/p"),
            ("javascript:alert(1)", None, ""),
        ],
    )
    def test_that_are_ready_end_it(self, channel, api, store, preview, url):
        urls = {"onlineStoreUrl": store, "onlineStorePreviewUrl": preview}
        api.post(URL, json=seen("READY", **urls))
        done = channel.take(MEDIA, item(remote_ids=PUBLISHED))
        assert isinstance(done, Done)
        assert done.url == url
        assert channel.next_step(item(remote_ids={**PUBLISHED, **done.remote_ids})) is None

    @pytest.mark.parametrize("answer", [seen("FAILED"), data("product", None)], ids=["bad", "gone"])
    def test_that_failed_are_sent_once_more_with_the_product(self, channel, api, answer):
        api.post(URL, json=answer)
        done = channel.take(MEDIA, item(remote_ids=PUBLISHED))
        assert isinstance(done, Done)
        ids = {**PUBLISHED, **done.remote_ids}
        assert channel.next_step(item(remote_ids=ids)) == PRODUCT
        again = channel.take(MEDIA, item(remote_ids={**ids, **PUBLISHED}))
        assert isinstance(again, Failure)
        assert again.error_class in (ErrorClass.BAD_OUTPUT, ErrorClass.NOT_FOUND)


class TestCheck:
    def test_names_the_shop(self, channel, api):
        api.post(
            URL, json=scopes("write_products", "write_files", "read_themes", "write_publications")
        )
        api.post(URL, json=data("shop", {"name": "Cats", "myshopifyDomain": SHOP}))
        assert channel.check() == Account("Cats", ({"id": SHOP, "title": "Cats"},))

    def test_says_when_the_credentials_are_wrong(self, channel, api):
        api.post(URL, status=401, json={"errors": f"[API] Invalid API key {TOKEN}"})
        failure = channel.check()
        assert failure.error_class == ErrorClass.AUTH
        assert TOKEN not in repr(failure)

    def test_says_which_scopes_are_missing(self, channel, api):
        api.post(URL, json=scopes("write_products", "write_files", "read_publications"))
        failure = channel.check()
        assert failure.error_class == ErrorClass.AUTH
        assert "write_publications" in failure.message
        assert "write_products" not in failure.message
        assert list(failure.fields) == ["access_token"]


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "creating", "looking"),
        [
            (400, "invalid_input", "invalid_input"),
            (401, "auth", "auth"),
            (402, "insufficient_credit", "insufficient_credit"),
            (403, "auth", "auth"),
            (404, "not_found", "not_found"),
            (423, "auth", "auth"),
            (429, "rate_limited", "rate_limited"),
            (301, "unknown", "unknown"),
            (500, "timeout_unknown", "provider_unavailable"),
            (502, "timeout_unknown", "provider_unavailable"),
            (503, "timeout_unknown", "provider_unavailable"),
            (504, "timeout_unknown", "provider_unavailable"),
            (521, "provider_unavailable", "provider_unavailable"),
        ],
    )
    def test_are_of_a_class_by_their_status(self, channel, api, storage, status, creating, looking):
        api.post(URL, status=status, json={"errors": "no"})
        assert channel.take(PRODUCT, item()).error_class == creating
        failure = channel.find(PRODUCT, item())
        assert isinstance(failure, Failure)
        assert failure.error_class == looking

    @pytest.mark.parametrize(
        ("code", "creating", "looking"),
        [
            ("THROTTLED", "rate_limited", "rate_limited"),
            ("ACCESS_DENIED", "auth", "auth"),
            ("SHOP_INACTIVE", "auth", "auth"),
            ("MAX_COST_EXCEEDED", "invalid_input", "invalid_input"),
            ("INVALID_VARIABLE", "invalid_input", "invalid_input"),
            ("undefinedField", "invalid_input", "invalid_input"),
            ("INTERNAL_SERVER_ERROR", "timeout_unknown", "provider_unavailable"),
            ("A_WORD_FROM_THE_FUTURE", "timeout_unknown", "provider_unavailable"),
        ],
    )
    def test_in_an_answer_are_of_a_class_by_their_code(
        self, channel, api, storage, code, creating, looking
    ):
        api.post(URL, json={"errors": [{"message": "x", "extensions": {"code": code}}]})
        failure = channel.take(PRODUCT, item())
        assert (failure.error_class, failure.provider_code) == (creating, code)
        failure = channel.find(PRODUCT, item())
        assert isinstance(failure, Failure)
        assert failure.error_class == looking

    def test_without_code_and_data_mean_that_nothing_was_done(self, channel, api, storage):
        api.post(URL, json={"errors": [{"message": "syntax error", "locations": []}]})
        assert channel.take(PRODUCT, item()).error_class == ErrorClass.INVALID_INPUT

    def test_beside_data_leave_open_what_was_done(self, channel, api, storage):
        api.post(URL, json={"data": {"productSet": None}, "errors": [{"message": "oops"}]})
        assert channel.take(PRODUCT, item()).error_class == ErrorClass.TIMEOUT_UNKNOWN

    @pytest.mark.parametrize(
        ("cost", "wait_s"),
        [
            ({"requestedQueryCost": 60, "available": 10, "rate": 100.0}, 0.5),
            ({"requestedQueryCost": 60, "available": 100, "rate": 100.0}, 0.0),
            ({"requestedQueryCost": 10**9, "available": 0, "rate": 1}, THROTTLED_WAIT_MAX_S),
            ({"requestedQueryCost": 60, "available": 10, "rate": 0}, THROTTLED_WAIT_S),
            ({"requestedQueryCost": True, "available": 10, "rate": 1}, THROTTLED_WAIT_S),
            ({"requestedQueryCost": "60", "available": 10, "rate": 1}, THROTTLED_WAIT_S),
        ],
    )
    def test_of_throttling_say_when_the_cost_can_be_paid(self, channel, api, cost, wait_s):
        status = {"currentlyAvailable": cost["available"], "restoreRate": cost["rate"]}
        body = {
            "errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
            "extensions": {
                "cost": {
                    "requestedQueryCost": cost["requestedQueryCost"],
                    "throttleStatus": status,
                }
            },
        }
        api.post(URL, json=body)
        failure = channel.check()
        assert failure.error_class == ErrorClass.RATE_LIMITED
        assert failure.retry_after_s == wait_s

    def test_before_anything_was_sent_mean_that_nothing_was_done(self, http, refused_url):
        failure = Shopify(TOKEN, SHOP, http=http, base_url=refused_url).take(PRODUCT, item())
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
