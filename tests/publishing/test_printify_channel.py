"""The Printify adapter: what it sends, and how it reads what comes back."""

import base64
import io
import json
from decimal import Decimal

import pytest

from generation.provider import ErrorClass, Failure
from publishing.channel import Account, Channel, Done, NotThere, Pending
from publishing.channels import printify
from publishing.channels.printify import (
    CATALOGUE_KEPT_S,
    FIND_MAX_PAGES,
    INLINE_MAX_BYTES,
    LISTING,
    PRODUCT,
    PUBLISH,
    UNLISTED_PATIENCE_S,
    UPLOAD,
    Printify,
)
from tests.publishing.items import artwork, make_item

TOKEN = "eyJ_TestTokenThatMustNotLeak"
BASE = "https://api.printify.test/v1"
SHOP = "1337"
UPLOAD_ID, PRODUCT_ID = "5e16d66791287a0006e522b2", "5d39b159e7c48c000728c89f"
UPLOADS = f"{BASE}/uploads/images.json"
UPLOAD_LIST = f"{BASE}/uploads.json"
PRODUCTS = f"{BASE}/shops/{SHOP}/products.json"
PRODUCT_URL = f"{BASE}/shops/{SHOP}/products/{PRODUCT_ID}.json"
PUBLISH_URL = f"{BASE}/shops/{SHOP}/products/{PRODUCT_ID}/publish.json"
VARIANTS = f"{BASE}/catalog/blueprints/6/print_providers/99/variants.json"
UPLOADED = {"upload_id": UPLOAD_ID, "shop_id": SHOP}
CREATED = {**UPLOADED, "product_id": PRODUCT_ID}
PUBLISHED = {**CREATED, "published": "1"}
NAME = "picture-0b1f.png"


def item(**overrides):
    return make_item("printify", **overrides)


def variant(number, width=4500, height=5400, position="front"):
    placeholder = {"position": position, "width": width, "height": height}
    return {"id": number, "title": "White / S", "options": {}, "placeholders": [placeholder]}


def product(**overrides):
    return {
        "id": PRODUCT_ID,
        "title": "A cat",
        "variants": [],
        "print_areas": [],
        "is_locked": False,
        "external": None,
        **overrides,
    }


def printed(image_id=UPLOAD_ID, name=NAME):
    placeholder = {"position": "front", "images": [{"id": image_id, "name": name}]}
    return [{"variant_ids": [1], "placeholders": [placeholder]}]


def page(*entries, number=1, last=1):
    return {"current_page": number, "data": list(entries), "last_page": last}


def sent(api, number=-1):
    return json.loads(api.calls[number].request.body)


@pytest.fixture(autouse=True)
def no_catalogue(monkeypatch):
    monkeypatch.setattr(printify, "_catalogue", {})


@pytest.fixture
def channel(http) -> Printify:
    return Printify(TOKEN, http=http, base_url=BASE, shop_id=SHOP)


def test_is_a_channel(channel):
    made: Channel = channel
    assert (made.name, made.limits.calls_per_minute) == ("printify", 600)
    assert (made.limits.publications, made.limits.publications_window_s) == (200, 1800)
    assert TOKEN not in repr(channel)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "ü"])
def test_refuses_a_token_that_no_header_can_carry(http, token):
    with pytest.raises(ValueError, match="token") as refusal:
        Printify(token, http=http, base_url=BASE)
    assert not token or token not in str(refusal.value)


def test_refuses_a_shop_that_is_not_a_number(http):
    with pytest.raises(ValueError, match="shop"):
        Printify(TOKEN, http=http, base_url=BASE, shop_id="1/../2")


class TestSteps:
    def test_come_one_after_the_other(self, channel):
        made = [channel.next_step(item(remote_ids=ids)) for ids in ({}, UPLOADED, CREATED)]
        assert made == [UPLOAD, PRODUCT, PUBLISH]
        assert channel.next_step(item(remote_ids=PUBLISHED)) == LISTING
        assert channel.next_step(item(remote_ids={**PUBLISHED, "external_id": "9"})) is None

    def test_that_only_look_are_taken_again_without_being_looked_for(self):
        assert [step.creates for step in (UPLOAD, PRODUCT, PUBLISH, LISTING)] == [True] * 3 + [
            False
        ]
        assert [step.publishes for step in (UPLOAD, PRODUCT, PUBLISH)] == [False, False, True]


class TestUpload:
    def test_sends_the_picture_under_the_key(self, channel, api):
        api.post(UPLOADS, json={"id": UPLOAD_ID, "file_name": NAME})
        done = channel.take(UPLOAD, item())
        assert isinstance(done, Done)
        assert done.remote_ids == UPLOADED
        assert sent(api) == {
            "file_name": NAME,
            "contents": base64.b64encode(b"\x89PNG artwork").decode(),
        }
        headers = api.calls[0].request.headers
        assert headers["Authorization"] == f"Bearer {TOKEN}"
        assert headers["User-Agent"].startswith("picture/")

    def test_has_a_large_picture_fetched(self, channel, api):
        api.post(UPLOADS, json={"id": UPLOAD_ID})
        large = artwork(size_bytes=INLINE_MAX_BYTES + 1, content_type="image/jpeg")
        channel.take(UPLOAD, item(artwork=large, artwork_url="https://picture.test/a.jpg"))
        assert sent(api) == {"file_name": "picture-0b1f.jpg", "url": "https://picture.test/a.jpg"}

    def test_sends_a_large_picture_that_cannot_be_fetched(self, channel, api):
        api.post(UPLOADS, json={"id": UPLOAD_ID})
        channel.take(UPLOAD, item(artwork=artwork(b"x" * (INLINE_MAX_BYTES + 1))))
        assert len(sent(api)["contents"]) > INLINE_MAX_BYTES

    @pytest.mark.parametrize("content", [b"short", b"\x89PNG artwork that has grown"])
    def test_sends_no_picture_that_has_changed(self, channel, content):
        failure = channel.take(UPLOAD, item(artwork=artwork(open=lambda: io.BytesIO(content))))
        assert failure.error_class == ErrorClass.INTERRUPTED

    def test_says_when_the_picture_cannot_be_read(self, channel):
        def gone():
            raise FileNotFoundError(2, "No such file", "/data/private")

        failure = channel.take(UPLOAD, item(artwork=artwork(open=gone)))
        assert failure.error_class == ErrorClass.INTERRUPTED
        assert "private" not in failure.message

    @pytest.mark.parametrize(
        ("overrides", "field"),
        [
            ({"title": " "}, "title"),
            ({"title": "x" * 256}, "title"),
            ({"tags": ("",)}, "tags"),
            ({"tags": ("x",) * 251}, "tags"),
            ({"price_usd": Decimal(0)}, "price_usd"),
            ({"price_usd": Decimal("NaN")}, "price_usd"),
            ({"price_usd": Decimal(100_000)}, "price_usd"),
            ({"product": {}}, "product_type"),
            ({"product": {"blueprint_id": 6}}, "price_usd"),
            ({"product": {"price_usd": ["1"]}}, "price_usd"),
            ({"artwork": artwork(content_type="image/webp")}, "image"),
            ({"artwork": artwork(size_bytes=100_000_001)}, "image"),
            ({"width_px": 23_001, "height_px": 23_000}, "image"),
            ({"width_px": 0}, "image"),
        ],
    )
    def test_sends_nothing_that_would_be_refused(self, channel, overrides, field):
        failure = channel.take(UPLOAD, item(**overrides))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == [field]

    def test_is_found_by_its_name(self, channel, api):
        first = page({"id": "other", "file_name": "other.png"}, last=2)
        api.get(f"{UPLOAD_LIST}?limit=100&page=1", json=first)
        second = page({"id": UPLOAD_ID, "file_name": NAME}, number=2, last=2)
        api.get(f"{UPLOAD_LIST}?limit=100&page=2", json=second)
        found = channel.find(UPLOAD, item())
        assert isinstance(found, Done)
        assert found.remote_ids == UPLOADED

    def test_is_not_there_when_no_page_has_it(self, channel, api):
        api.get(UPLOAD_LIST, json=page({"id": "other", "file_name": "x"}, "no upload", 3))
        assert channel.find(UPLOAD, item()) == NotThere()

    def test_may_be_there_when_its_id_cannot_be_read(self, channel, api):
        api.get(UPLOAD_LIST, json=page({"id": "../up", "file_name": NAME}))
        assert channel.find(UPLOAD, item()).error_class == ErrorClass.PROVIDER_UNAVAILABLE


class TestProduct:
    @pytest.fixture
    def catalogue(self, api):
        api.get(VARIANTS, json={"variants": [variant(17887), variant(17888)]})

    def test_covers_every_variant_with_the_picture(self, channel, api, catalogue):
        api.post(PRODUCTS, json=product())
        done = channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert isinstance(done, Done)
        assert done.remote_ids == {"product_id": PRODUCT_ID, "shop_id": SHOP}
        body = sent(api)
        assert body["title"] == "A cat"
        assert body["description"] == "<p>Asleep.</p>"
        assert body["tags"] == ["cat", "sleep"]
        assert (body["blueprint_id"], body["print_provider_id"]) == (6, 99)
        assert [(one["id"], one["price"], one["is_enabled"]) for one in body["variants"]] == [
            (17887, 1999, True),
            (17888, 1999, True),
        ]
        assert body["print_areas"] == [
            {
                "variant_ids": [17887, 17888],
                "placeholders": [
                    {
                        "position": "front",
                        "images": [{"id": UPLOAD_ID, "x": 0.5, "y": 0.5, "scale": 1.0, "angle": 0}],
                    }
                ],
            }
        ]

    def test_has_skus_of_its_own_that_every_sales_channel_takes(self, channel, api, catalogue):
        api.post(PRODUCTS, json=product())
        skus = []
        for key in ("picture-1", "picture-2"):
            channel.take(PRODUCT, item(key=key, remote_ids=UPLOADED))
            skus += [one["sku"] for one in sent(api)["variants"]]
        assert len(set(skus)) == 4
        assert all(len(sku) <= 32 for sku in skus)

    def test_has_the_price_that_is_asked_for(self, channel, api, catalogue):
        api.post(PRODUCTS, json=product())
        channel.take(PRODUCT, item(remote_ids=UPLOADED, price_usd=Decimal("24.995")))
        assert {one["price"] for one in sent(api)["variants"]} == {2500}

    def test_has_its_title_for_a_description_and_no_markup_of_users(self, channel, api, catalogue):
        api.post(PRODUCTS, json=product())
        for description in ("", "A <b>cat</b>\r\nasleep\n\n\n& more"):
            channel.take(PRODUCT, item(remote_ids=UPLOADED, description=description))
        assert sent(api, -2)["description"] == "<p>A cat</p>"
        expected = "<p>A &lt;b&gt;cat&lt;/b&gt;<br>asleep</p><p>&amp; more</p>"
        assert sent(api)["description"] == expected

    @pytest.mark.parametrize(
        ("fit", "size", "area", "scale"),
        [
            ("contain", (1000, 1000), (4000, 5000), 1.0),  # as wide as the area, less high
            ("cover", (1000, 1000), (4000, 5000), 1.25),
            ("contain", (1000, 1000), (5000, 4000), 0.8),  # as high as the area, less wide
            ("cover", (1000, 1000), (5000, 4000), 1.0),
            ("cover", (4500, 5400), (4500, 5400), 1.0),
        ],
    )
    def test_shows_all_of_the_picture_or_covers_all_of_the_area(
        self, channel, api, fit, size, area, scale
    ):
        api.get(VARIANTS, json={"variants": [variant(1, *area)]})
        api.post(PRODUCTS, json=product())
        what = {**item().product, "fit": fit}
        channel.take(
            PRODUCT, item(remote_ids=UPLOADED, product=what, width_px=size[0], height_px=size[1])
        )
        placeholder = sent(api)["print_areas"][0]["placeholders"][0]
        assert placeholder["images"][0]["scale"] == scale

    def test_has_an_area_for_each_scale(self, channel, api):
        variants = [variant(1, 4000, 5000), variant(2, 4500, 5400), variant(3, 8000, 10_000)]
        api.get(VARIANTS, json={"variants": variants})
        api.post(PRODUCTS, json=product())
        what = {**item().product, "fit": "cover"}
        channel.take(PRODUCT, item(remote_ids=UPLOADED, product=what))
        assert [area["variant_ids"] for area in sent(api)["print_areas"]] == [[1, 3], [2]]

    def test_has_no_more_variants_than_printify_takes(self, channel, api):
        api.get(VARIANTS, json={"variants": [variant(n) for n in range(1, 151)]})
        api.post(PRODUCTS, json=product())
        channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert [one["id"] for one in sent(api)["variants"]] == list(range(1, 101))

    def test_has_the_variants_that_the_account_names(self, channel, api):
        api.get(VARIANTS, json={"variants": [variant(n) for n in range(1, 151)]})
        api.post(PRODUCTS, json=product())
        what = {**item().product, "variant_ids": [149, 7, 1000]}
        channel.take(PRODUCT, item(remote_ids=UPLOADED, product=what))
        assert [one["id"] for one in sent(api)["variants"]] == [7, 149]

    @pytest.mark.parametrize(
        ("named", "there", "used"),
        [("", ["back", "front"], "front"), ("", ["side"], "side"), ("back", ["back"], "back")],
    )
    def test_is_printed_where_it_can_be(self, channel, api, named, there, used):
        placeholders = [{"position": one, "width": 10, "height": 10} for one in there]
        api.get(VARIANTS, json={"variants": [{"id": 1, "placeholders": placeholders}]})
        api.post(PRODUCTS, json=product())
        what = {**item().product, **({"position": named} if named else {})}
        channel.take(PRODUCT, item(remote_ids=UPLOADED, product=what))
        assert sent(api)["print_areas"][0]["placeholders"][0]["position"] == used

    @pytest.mark.parametrize(
        "variants",
        [[], [{"id": "1"}], [{"id": 1, "placeholders": [{"position": "front", "width": 0}]}]],
    )
    def test_of_which_nothing_can_be_printed_is_refused_before_it_is_sent(
        self, channel, api, variants
    ):
        api.get(VARIANTS, json={"variants": variants})
        failure = channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == ["product_type"]

    def test_that_the_catalogue_does_not_have_is_an_invalid_type(self, channel, api):
        api.get(VARIANTS, status=404, json={"error": "Not found."})
        failure = channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == ["product_type"]

    def test_without_a_blueprint_is_refused_before_it_is_sent(self, channel):
        failure = channel.take(PRODUCT, item(remote_ids=UPLOADED, product={"price_usd": "1"}))
        assert list(failure.fields) == ["product_type"]

    def test_reads_the_catalogue_once_in_a_while(self, channel, api, monkeypatch):
        now = [1_000.0]
        monkeypatch.setattr(printify, "monotonic", lambda: now[0])
        catalogue = api.get(VARIANTS, json={"variants": [variant(1)]})
        api.post(PRODUCTS, json=product())
        for _ in range(3):
            channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert catalogue.call_count == 1
        now[0] += CATALOGUE_KEPT_S
        channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert catalogue.call_count == 2

    def test_is_not_sent_long_after_it_was_put_on_record(self, channel, api, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(printify, "monotonic", lambda: now[0])

        def slow(request):
            now[0] += 6
            return 200, {}, json.dumps({"variants": [variant(1)]})

        api.add_callback("GET", VARIANTS, slow)
        failure = channel.take(PRODUCT, item(remote_ids=UPLOADED))
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        api.post(PRODUCTS, json=product())
        assert isinstance(channel.take(PRODUCT, item(remote_ids=UPLOADED)), Done)

    def test_under_an_id_that_cannot_be_read_may_be_there(self, channel, api, catalogue):
        for body in ({"id": 7}, {"id": "../../shops"}, [], {}):
            api.post(PRODUCTS, json=body)
            failure = channel.take(PRODUCT, item(remote_ids=UPLOADED))
            assert failure.error_class == ErrorClass.TIMEOUT_UNKNOWN

    def test_is_found_by_its_skus(self, channel, api, catalogue):
        api.post(PRODUCTS, json=product())
        channel.take(PRODUCT, item(remote_ids=UPLOADED))
        ours = [{"id": 17887, "sku": one["sku"]} for one in sent(api)["variants"]]
        channel.take(PRODUCT, item(key="another", remote_ids=UPLOADED))
        others = [{"id": 17887, "sku": one["sku"]} for one in sent(api)["variants"]]
        # Equal pictures are one upload: this one shows ours, and is another item's.
        twin = product(id="twin", variants=others, print_areas=printed())
        api.get(PRODUCTS, json=page(twin, product(variants=ours)))
        found = channel.find(PRODUCT, item(remote_ids=UPLOADED))
        assert isinstance(found, Done)
        assert found.remote_ids == {"product_id": PRODUCT_ID, "shop_id": SHOP}

    @pytest.mark.parametrize("areas", [printed(name="x"), printed(image_id="copy")])
    def test_without_our_skus_is_found_by_what_is_printed_on_it(self, channel, api, areas):
        other = product(id="other", print_areas=printed("x", "x.png"))
        variants = [{"id": 1, "sku": "34466904991495969556"}]
        api.get(PRODUCTS, json=page(other, product(print_areas=areas, variants=variants)))
        found = channel.find(PRODUCT, item(remote_ids=UPLOADED))
        assert isinstance(found, Done)
        assert found.remote_ids == {"product_id": PRODUCT_ID, "shop_id": SHOP}

    def test_is_not_there_when_no_page_has_it(self, channel, api):
        api.get(PRODUCTS, json=page(product(print_areas=printed("x", "x.png"))))
        assert channel.find(PRODUCT, item(remote_ids=UPLOADED)) == NotThere()

    def test_is_searched_for_among_the_newest_of_a_long_list(self, channel, api):
        times = [f"2026-11-20 10:00:{99 - n:02}+00:00" for n in range(FIND_MAX_PAGES)]
        for number, time in enumerate(times, 1):
            body = page(product(id="x", created_at=time), number=number, last=9_999)
            api.get(f"{PRODUCTS}?limit=20&page={number}", json=body)
        assert channel.find(PRODUCT, item(remote_ids=UPLOADED)) == NotThere()

    def test_cannot_be_told_missing_of_a_long_list_in_another_order(self, channel, api):
        for number in range(1, FIND_MAX_PAGES + 1):
            body = page(product(id="x", created_at=f"{number:03}"), number=number, last=9_999)
            api.get(f"{PRODUCTS}?limit=20&page={number}", json=body)
        failure = channel.find(PRODUCT, item(remote_ids=UPLOADED))
        assert isinstance(failure, Failure)
        assert failure.error_class == ErrorClass.UNKNOWN

    def test_is_not_told_missing_when_a_page_cannot_be_read(self, channel, api):
        api.get(PRODUCTS, json={"data": "none"})
        failure = channel.find(PRODUCT, item(remote_ids=UPLOADED))
        assert isinstance(failure, Failure)
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    def test_has_one_deadline_for_all_pages(self, channel, api, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(printify, "monotonic", lambda: now[0])

        def slow(request):
            now[0] += 25
            return 200, {}, json.dumps(page({}, last=99))

        api.add_callback("GET", PRODUCTS, slow)
        failure = channel.find(PRODUCT, item(remote_ids=UPLOADED))
        assert isinstance(failure, Failure)
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert len(api.calls) == 3


class TestPublish:
    def test_asks_for_all_of_it(self, channel, api):
        api.post(PUBLISH_URL, json={})
        done = channel.take(PUBLISH, item(remote_ids=CREATED))
        assert isinstance(done, Done)
        assert done.remote_ids == {"published": "1"}
        assert set(sent(api).values()) == {True}
        assert set(sent(api)) >= {"title", "description", "images", "variants", "tags"}

    @pytest.mark.parametrize("now", [{"is_locked": True}, {"external": {"id": "9"}}])
    def test_that_was_begun_before_is_found(self, channel, api, now):
        api.get(PRODUCT_URL, json=product(**now))
        found = channel.find(PUBLISH, item(remote_ids=CREATED))
        assert isinstance(found, Done)
        assert found.remote_ids == {"published": "1"}

    def test_that_was_not_begun_is_not_there(self, channel, api):
        api.get(PRODUCT_URL, json=product())
        assert channel.find(PUBLISH, item(remote_ids=CREATED)) == NotThere()

    def test_of_a_product_that_is_gone_is_not_there(self, channel, api):
        api.get(PRODUCT_URL, status=404, json={})
        assert channel.find(PUBLISH, item(remote_ids=CREATED)) == NotThere()

    def test_that_is_refused_because_it_was_begun_is_done(self, channel, api):
        error = {"status": "error", "code": 8252, "errors": {"reason": "Product is locked."}}
        api.post(PUBLISH_URL, status=400, json=error)
        api.get(PRODUCT_URL, json=product(is_locked=True))
        assert isinstance(channel.take(PUBLISH, item(remote_ids=CREATED)), Done)

    def test_that_is_refused_for_another_reason_says_it(self, channel, api):
        error = {"status": "error", "code": 8254, "errors": {"reason": "No sales channel."}}
        api.post(PUBLISH_URL, status=400, json=error)
        api.get(PRODUCT_URL, json=product())
        failure = channel.take(PUBLISH, item(remote_ids=CREATED))
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert failure.provider_code == "8254"
        assert "No sales channel." in failure.message

    def test_of_a_product_that_is_gone_is_not_found(self, channel, api):
        api.post(PUBLISH_URL, status=404, json={})
        failure = channel.take(PUBLISH, item(remote_ids=CREATED))
        assert failure.error_class == ErrorClass.NOT_FOUND

    def test_sends_no_id_that_leads_elsewhere(self, channel):
        failure = channel.take(PUBLISH, item(remote_ids={**CREATED, "product_id": "../x"}))
        assert failure.error_class == ErrorClass.NOT_FOUND


class TestListing:
    @pytest.mark.parametrize("now", [{}, {"external": {"id": "9"}}])
    def test_is_waited_for_while_the_product_is_locked(self, channel, api, now):
        api.get(PRODUCT_URL, json=product(is_locked=True, **now))
        assert isinstance(channel.take(LISTING, item(remote_ids=PUBLISHED)), Pending)

    def test_that_does_not_come_though_the_product_is_unlocked_ends_in_a_failure(
        self, channel, api, monkeypatch
    ):
        now = [1_800_000_000.0]
        monkeypatch.setattr(printify, "time", lambda: now[0])
        api.get(PRODUCT_URL, json=product(external={}))
        noted = channel.take(LISTING, item(remote_ids=PUBLISHED))
        assert isinstance(noted, Done)
        waiting = item(remote_ids={**PUBLISHED, **noted.remote_ids})
        assert channel.next_step(waiting) == LISTING
        now[0] += UNLISTED_PATIENCE_S - 1
        assert isinstance(channel.take(LISTING, waiting), Pending)
        now[0] += 1
        failure = channel.take(LISTING, waiting)
        assert failure.error_class == ErrorClass.INTERRUPTED
        kept = {name: PUBLISHED[name] for name in channel.kept_ids}
        assert channel.next_step(item(remote_ids=kept)) == PUBLISH

    def test_that_was_never_reached_lets_the_shop_be_corrected(self, http, api):
        api.post(UPLOADS, json={"id": UPLOAD_ID})
        kept = {name: UPLOADED[name] for name in Printify.kept_ids & UPLOADED.keys()}
        channel = Printify(TOKEN, http=http, base_url=BASE, shop_id="2")
        again = item(remote_ids=kept)
        # Where a product may have been made before is where it is looked for.
        api.get(PRODUCTS, json=page())
        assert channel.find(PRODUCT, again) == NotThere()
        assert channel.next_step(again) == UPLOAD
        done = channel.take(UPLOAD, again)
        assert isinstance(done, Done)
        assert done.remote_ids["shop_id"] == "2"

    @pytest.mark.parametrize("is_list", [False, True])
    def test_tells_where_the_product_is_seen(self, channel, api, is_list):
        external = {"id": "8411387199588", "handle": "https://x.myshopify.com/products/a-cat"}
        api.get(PRODUCT_URL, json=product(external=[external] if is_list else external))
        done = channel.take(LISTING, item(remote_ids=PUBLISHED))
        assert isinstance(done, Done)
        assert done.remote_ids == {"external_id": "8411387199588"}
        assert done.url == "https://x.myshopify.com/products/a-cat"

    @pytest.mark.parametrize("handle", ["javascript:alert(1)", "/a-cat", 7, None, "https://[", " "])
    def test_has_no_address_that_is_none(self, channel, api, handle):
        api.get(PRODUCT_URL, json=product(external={"id": "9", "handle": handle}))
        done = channel.take(LISTING, item(remote_ids=PUBLISHED))
        assert isinstance(done, Done)
        assert done.url == ""


class TestShops:
    def test_are_listed_for_who_checks_the_account(self, channel, api):
        shops = [{"id": 1337, "title": "My shop"}, {"id": 2, "title": "Other"}, {"id": "x"}, 1]
        api.get(f"{BASE}/shops.json", json=shops)
        account = channel.check()
        assert account == Account(
            "My shop", ({"id": "1337", "title": "My shop"}, {"id": "2", "title": "Other"})
        )

    def test_must_have_the_one_that_is_configured(self, channel, api):
        api.get(f"{BASE}/shops.json", json=[{"id": 2, "title": "Other"}])
        failure = channel.check()
        assert failure.error_class == ErrorClass.NOT_FOUND
        assert list(failure.fields) == ["shop_id"]

    def test_of_which_there_is_one_need_not_be_named(self, http, api):
        api.get(f"{BASE}/shops.json", json=[{"id": 1337, "title": "My shop"}])
        api.post(UPLOADS, json={"id": UPLOAD_ID})
        channel = Printify(TOKEN, http=http, base_url=BASE)
        done = channel.take(UPLOAD, item())
        assert isinstance(done, Done)
        assert done.remote_ids == UPLOADED

    @pytest.mark.parametrize("shops", [[], [{"id": 1}, {"id": 2}]])
    def test_of_which_there_is_not_one_are_asked_for(self, http, api, shops):
        api.get(f"{BASE}/shops.json", json=shops)
        failure = Printify(TOKEN, http=http, base_url=BASE).take(UPLOAD, item())
        assert failure.error_class == ErrorClass.INVALID_INPUT
        assert list(failure.fields) == ["shop_id"]

    def test_do_not_change_for_what_was_begun_in_one(self, http, api):
        api.get(PRODUCT_URL, json=product(is_locked=True))
        channel = Printify(TOKEN, http=http, base_url=BASE, shop_id="2")
        assert isinstance(channel.take(LISTING, item(remote_ids=PUBLISHED)), Pending)


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "headers", "creating", "looking"),
        [
            (400, {}, "invalid_input", "invalid_input"),
            (401, {}, "auth", "auth"),
            (402, {}, "insufficient_credit", "insufficient_credit"),
            (403, {}, "auth", "auth"),
            (404, {}, "not_found", "not_found"),
            (413, {}, "invalid_input", "invalid_input"),
            (422, {}, "invalid_input", "invalid_input"),
            (429, {"Retry-After": "7"}, "rate_limited", "rate_limited"),
            (302, {}, "unknown", "unknown"),
            (418, {}, "unknown", "unknown"),
            # What a server may answer after the product was stored.
            (408, {}, "timeout_unknown", "provider_unavailable"),
            (500, {}, "timeout_unknown", "provider_unavailable"),
            (502, {}, "timeout_unknown", "provider_unavailable"),
            (503, {}, "timeout_unknown", "provider_unavailable"),
            (504, {}, "timeout_unknown", "provider_unavailable"),
            (520, {}, "timeout_unknown", "provider_unavailable"),
            (522, {}, "timeout_unknown", "provider_unavailable"),
            (524, {}, "timeout_unknown", "provider_unavailable"),
            # What proves that it was not.
            (503, {"Retry-After": "30"}, "provider_unavailable", "provider_unavailable"),
            (521, {}, "provider_unavailable", "provider_unavailable"),
            (525, {}, "provider_unavailable", "provider_unavailable"),
            (530, {}, "provider_unavailable", "provider_unavailable"),
        ],
    )
    def test_are_of_a_class_by_their_status(self, channel, api, status, headers, creating, looking):
        api.post(UPLOADS, status=status, headers=headers, body=f"<html>{TOKEN}</html>")
        api.get(UPLOAD_LIST, status=status, headers=headers, body=f"<html>{TOKEN}</html>")
        for failure, expected in (
            (channel.take(UPLOAD, item()), creating),
            (channel.find(UPLOAD, item()), looking),
        ):
            assert failure.error_class == expected
            assert TOKEN not in repr(failure)
            wait = headers.get("Retry-After")
            assert failure.retry_after_s == (float(wait) if wait else None)

    def test_quote_what_is_wrong_with_the_input(self, channel, api):
        body = {
            "status": "error",
            "code": 8150,
            "message": "Validation failed.",
            "errors": {"reason": f"title: <b>too long</b> {TOKEN}", "code": 8150, "title": ["no"]},
        }
        api.post(UPLOADS, status=400, json=body)
        failure = channel.take(UPLOAD, item())
        assert failure.provider_code == "8150"
        assert "title: b too long /b [token]" in failure.message
        assert failure.fields == {"title": "no"}

    def test_before_anything_was_sent_mean_that_nothing_was_done(self, http, refused_url):
        channel = Printify(TOKEN, http=http, base_url=refused_url, shop_id=SHOP)
        failure = channel.take(UPLOAD, item())
        assert failure.error_class == ErrorClass.PROVIDER_UNAVAILABLE
