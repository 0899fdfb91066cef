"""What can be published where, and what is said of an account that is wrong."""

import json
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.http import HttpClient
from publishing.channels import make_channel
from publishing.channels.printify import Printify
from publishing.channels.shopify import Shopify
from publishing.products import (
    CHANNELS,
    CREDENTIAL_FIELDS,
    PRODUCT_TYPES_LIMIT,
    check_account,
    product_types,
)

MUG = {"title": "Mug", "price_usd": "12.50", "blueprint_id": 68, "print_provider_id": 1}
GOOD = {
    "printify": ({"token": "eyJ.x"}, {"shop_id": "1337", "products": {"big-mug": MUG}}),
    "shopify": (
        {"access_token": "shpat_x"},
        {
            "shop": "cats.myshopify.com",
            "status": "DRAFT",
            "vendor": "Cats",
            "products": {"mug": {"title": "Mug", "price_usd": "9"}},
        },
    ),
}
SETTINGS = {
    "printify_base_url": "https://printify.test/v1",
    "shopify_base_url": "https://{shop}",
    "shopify_api_version": "2026-04",
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["shop", "shop_id", "products", "mug", "title", "price_usd"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
)


def problems(channel, credentials=None, options=None):
    good_credentials, good_options = GOOD[channel]
    found = check_account(
        channel,
        good_credentials if credentials is None else credentials,
        good_options if options is None else options,
    )
    return [(field, code) for field, code, _, _ in found]


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_built_in_type_is_one_that_an_account_could_define(channel):
    built_in = product_types(channel, {})
    assert {"t-shirt", "hoodie", "mug", "poster"} <= built_in.keys()
    assert problems(channel, options={**GOOD[channel][1], "products": built_in}) == []
    assert all(Decimal(product["price_usd"]) > 0 for product in built_in.values())


def test_an_accounts_own_types_add_to_the_built_in_ones_and_replace_them():
    types = product_types("printify", {"products": {"mug": MUG, "cap": MUG}})
    assert types["mug"] == types["cap"] == MUG
    assert "poster" in types


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_good_account_has_no_problem_and_makes_a_channel(channel):
    credentials, options = GOOD[channel]
    assert check_account(channel, credentials, options) == []
    with HttpClient() as http:
        made = make_channel(channel, credentials, options, http=http, **SETTINGS)
    assert isinstance(made, {"printify": Printify, "shopify": Shopify}[channel])


def test_there_is_no_other_channel():
    with HttpClient() as http, pytest.raises(ValueError, match="etsy"):
        make_channel("etsy", {}, {}, http=http, **SETTINGS)


@pytest.mark.parametrize("channel", CHANNELS)
def test_credentials_are_required_and_never_repeated(channel):
    name = CREDENTIAL_FIELDS[channel][0]
    assert problems(channel, credentials={}) == [(f"credentials.{name}", "required")]
    for value in ("", "two words", "secret\n", "sécret", 7, None, "x" * 4001):
        found = check_account(channel, {name: value}, GOOD[channel][1])
        assert [problem[:2] for problem in found] == [(f"credentials.{name}", "invalid")]
        assert "secret" not in str(found)
    extra = {name: "x", "password": "secret"}
    found = check_account(channel, extra, GOOD[channel][1])
    assert [problem[:2] for problem in found] == [("credentials.password", "unknown_field")]
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    "shop",
    ["cats", "cats.example.com", "evil.test/.myshopify.com", "cats.myshopify.com\n", "", None, 7],
    ids=repr,
)
def test_a_shop_is_a_domain_of_shopify(shop):
    assert problems("shopify", options={"shop": shop}) == [("options.shop", "invalid")]
    assert problems("shopify", options={}) == [("options.shop", "required")]


@pytest.mark.parametrize(
    "shop_id", ["", "0", "-1", "1.5", "1/2", "x", "1\n", 0, 1.5, True, None], ids=repr
)
def test_a_shop_of_printify_is_a_number(shop_id):
    assert problems("printify", options={"shop_id": shop_id}) == [("options.shop_id", "invalid")]
    assert problems("printify", options={"shop_id": 1337}) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"title": " "}, ("options.products.mug.title", "invalid")),
        ({"price_usd": "0.00"}, ("options.products.mug.price_usd", "invalid")),
        ({"price_usd": 12}, ("options.products.mug.price_usd", "invalid")),
        ({"price_usd": "1.999"}, ("options.products.mug.price_usd", "invalid")),
        ({"price_usd": "1e3"}, ("options.products.mug.price_usd", "invalid")),
        ({"blueprint_id": "68"}, ("options.products.mug.blueprint_id", "invalid")),
        ({"blueprint_id": True}, ("options.products.mug.blueprint_id", "invalid")),
        ({"print_provider_id": 0}, ("options.products.mug.print_provider_id", "invalid")),
        ({"variant_ids": []}, ("options.products.mug.variant_ids", "invalid")),
        ({"variant_ids": list(range(1, 102))}, ("options.products.mug.variant_ids", "invalid")),
        ({"variant_ids": ["1"]}, ("options.products.mug.variant_ids.0", "invalid")),
        ({"position": "../front"}, ("options.products.mug.position", "invalid")),
        ({"fit": "stretch"}, ("options.products.mug.fit", "invalid")),
        ({"colour": "red"}, ("options.products.mug.colour", "unknown_field")),
    ],
)
def test_a_product_is_told_where_it_is_wrong(change, problem):
    assert problems("printify", options={"products": {"mug": {**MUG, **change}}}) == [problem]


MANY = {f"a{number}": 0 for number in range(100_000)}
MIXED = [one for number in range(25_000) for one in (number, str(number), [number], {"a": 1})]


@pytest.mark.parametrize(
    ("products", "count", "where"),
    [
        ({"mug": {**MUG, "variant_ids": MIXED}}, 1, "options.products.mug.variant_ids"),
        (MANY, 1, "options.products"),
        ({"mug": {**MUG, **MANY}}, 20, "options.products.mug.a0"),
    ],
    ids=["variants", "product types", "fields"],
)
def test_what_is_far_too_long_is_refused_at_once_and_in_few_words(products, count, where):
    began_s = time.process_time()
    found = problems("printify", options={"products": products})
    assert time.process_time() - began_s < 2
    assert (len(found), found[0][0]) == (count, where)


def test_a_choice_is_told_with_what_is_allowed():
    found = check_account("shopify", GOOD["shopify"][0], {**GOOD["shopify"][1], "status": "OPEN"})
    assert found == [
        ("options.status", "invalid", "Must be one of ACTIVE, DRAFT.", ["ACTIVE", "DRAFT"])
    ]


@pytest.mark.parametrize(
    "name", ["", "Mug", "a mug", "-mug", "x" * 51, "mug\n", "../mug"], ids=repr
)
def test_a_product_type_has_a_name_that_fits_into_addresses(name):
    assert problems("printify", options={"products": {name: MUG}}) == [
        ("options.products", "invalid")
    ]


def test_there_are_only_so_many_product_types():
    many = {f"mug-{number}": MUG for number in range(PRODUCT_TYPES_LIMIT + 1)}
    assert problems("printify", options={"products": many}) == [("options.products", "invalid")]


@pytest.mark.parametrize("channel", CHANNELS)
@given(credentials=VALUES, options=VALUES)
def test_any_account_is_told_what_is_wrong_or_makes_a_channel(channel, credentials, options):
    found = check_account(channel, credentials, options)
    for field, code, detail, allowed in found:
        assert isinstance(field, str)
        assert code in ("required", "invalid", "unknown_field")
        assert detail
        json.dumps(allowed)
    if not found:
        with HttpClient() as http:
            make_channel(channel, credentials, options, http=http, **SETTINGS)
