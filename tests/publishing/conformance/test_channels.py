"""What holds for every channel: an item becomes one product, whatever happens on the way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal

import pytest

from generation.http import HttpClient
from generation.provider import ErrorClass, Failure
from publishing.channel import CHANGED, Account, Done, NotThere
from publishing.channels import CHANGES_PRODUCT, printify
from publishing.products import product_types
from tests.faults.proxy import TcpProxy
from tests.publishing.conformance.harness import (
    CREATING,
    FACTS,
    Harness,
    ended,
    failure,
    publish,
    with_ids,
)

every = pytest.mark.parametrize("facts", FACTS, indirect=True, ids=lambda facts: facts.name)
every_changing = pytest.mark.parametrize(
    "facts",
    [facts for facts in FACTS if facts.name in CHANGES_PRODUCT],
    indirect=True,
    ids=lambda facts: facts.name,
)
every_creating_step = pytest.mark.parametrize(
    ("facts", "step_name"),
    CREATING,
    indirect=["facts"],
    ids=[f"{facts.name}-{step}" for facts, step in CREATING],
)


class TestPublishing:
    @every
    def test_makes_one_product(self, harness: Harness) -> None:
        item = harness.item(price_usd=Decimal("21.50"))
        done = publish(harness, item)
        assert done.url.startswith("https://")
        [product] = harness.products()
        assert product["title"] == item.title
        assert set(item.tags) <= set(product["tags"])

    @every
    def test_makes_a_product_of_every_built_in_type(self, harness: Harness) -> None:
        types = product_types(harness.facts.name, {})
        for name, product in types.items():
            publish(harness, harness.item(product_type=name, product=product))
        assert len(harness.products()) == len(types)

    @every
    def test_of_equal_pictures_makes_a_product_each(self, harness: Harness) -> None:
        first = harness.item()
        second = harness.item(artwork=first.artwork, title=first.title)
        for item in (first, second):
            publish(harness, item, lambda step: "lost" if step.creates else "")
        assert len(harness.products()) == 2

    @every
    def test_of_a_title_with_every_kind_of_letter(self, harness: Harness) -> None:
        item = harness.item(title="Кот & <b>猫</b> 🐈 \"'", description="<script>\n\nä")
        publish(harness, item)
        [product] = harness.products()
        assert product["title"] == item.title

    @every
    def test_makes_one_product_however_often_it_is_killed(self, harness: Harness) -> None:
        steps = list(harness.facts.operations)
        for hows in itertools.product(("", "before", "after", "lost"), repeat=len(steps)):
            disturbed = dict(zip(steps, hows, strict=True))
            one = Harness(harness.facts, harness.sim, harness.http)
            publish(one, one.item(), lambda step, how=disturbed: how.get(step.name, ""))
            assert len(one.products()) == 1, disturbed


class TestLostAnswers:
    @every_creating_step
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("shop_drop_after", {}),
            ("shop_status_after", {"status": 500}),
            ("shop_status_after", {"status": 502}),
            ("shop_status_after", {"status": 503}),
            ("shop_status_after", {"status": 504}),
            ("shop_garbage", {"body": '{"id": '}),
            ("shop_garbage", {"body": "<html>"}),
        ],
        ids=["drop", "500", "502", "503", "504", "half", "html"],
    )
    def test_leave_open_what_was_done_and_it_is_found(
        self, harness: Harness, step_name: str, kind: str, options: dict[str, object]
    ) -> None:
        step, item = harness.before(step_name, harness.item())
        harness.fault(kind, harness.facts.operations[step_name], times=1, **options)
        channel = harness.channel()
        result = channel.take(step, item)
        # Of an answer that says nothing anyway, nothing is missed.
        if not (kind == "shop_garbage" and isinstance(result, Done)):
            assert failure(result).error_class == ErrorClass.TIMEOUT_UNKNOWN
        found = channel.find(step, item)
        assert isinstance(found, Done)
        assert channel.next_step(with_ids(item, found)) != step
        publish(harness, with_ids(item, found))
        assert len(harness.products()) == 1

    @every_creating_step
    @pytest.mark.parametrize("kind", ["shop_drop_before", "shop_status"])
    def test_of_what_was_not_done_are_told_apart(
        self, harness: Harness, step_name: str, kind: str
    ) -> None:
        step, item = harness.before(step_name, harness.item())
        harness.fault(kind, harness.facts.operations[step_name], times=1)
        channel = harness.channel()
        assert failure(channel.take(step, item)).error_class == ErrorClass.TIMEOUT_UNKNOWN
        assert channel.find(step, item) == NotThere()
        publish(harness, item)
        assert len(harness.products()) == 1

    @every_creating_step
    def test_because_they_come_too_late_are_unknown(self, harness: Harness, step_name: str) -> None:
        step, item = harness.before(step_name, harness.item())
        harness.fault("shop_slow", harness.facts.operations[step_name], times=1, seconds=30)
        with Impatient(harness.facts.requests[step_name]) as http:
            result = harness.channel(http=http).take(step, item)
        assert failure(result).error_class == ErrorClass.TIMEOUT_UNKNOWN
        found = harness.channel().find(step, item)
        assert isinstance(found, Done)
        publish(harness, with_ids(item, found))
        assert len(harness.products()) == 1

    @every_creating_step
    def test_of_a_look_are_not_taken_for_an_absence(self, harness: Harness, step_name: str) -> None:
        step, item = harness.before(step_name, harness.item())
        channel = harness.channel()
        for kind, options in (
            ("shop_drop_before", {}),
            ("shop_status", {"status": 500}),
            ("shop_garbage", {"body": "{}"}),
            ("shop_garbage", {"body": '{"data": {}}'}),
        ):
            harness.fault(kind, harness.facts.looks[step_name], times=1, **options)
            found = failure(channel.find(step, item))
            assert found.error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @every
    def test_of_a_look_change_nothing(self, harness: Harness) -> None:
        last = list(harness.facts.operations)[-1]
        step, item = harness.before(last, harness.item())
        channel = harness.channel()
        done = channel.take(step, item)
        assert isinstance(done, Done)
        item = with_ids(item, done)
        waiting = channel.next_step(item)
        assert waiting is not None
        assert not waiting.creates
        harness.fault("shop_drop_after", harness.facts.last_look, times=1)
        lost = failure(channel.take(waiting, item))
        assert lost.error_class == ErrorClass.PROVIDER_UNAVAILABLE
        assert publish(harness, item).url


class TestRefusals:
    @every_creating_step
    def test_of_too_many_calls_say_when_to_come_back(
        self, harness: Harness, step_name: str
    ) -> None:
        step, item = harness.before(step_name, harness.item())
        operation = harness.facts.operations[step_name]
        harness.fault("shop_throttled", operation, times=1, retry_after=7)
        channel = harness.channel()
        refused = failure(channel.take(step, item))
        assert refused.error_class == ErrorClass.RATE_LIMITED
        assert refused.retry_after_s is not None
        assert 0 <= refused.retry_after_s <= 30
        assert channel.find(step, item) == NotThere()
        publish(harness, item)
        assert len(harness.products()) == 1

    @every
    def test_of_the_credentials_are_told(self, harness: Harness) -> None:
        channel = harness.channel(token="bad_token_of_nobody")
        assert failure(channel.check()).error_class == ErrorClass.AUTH
        item = harness.item()
        step = channel.next_step(item)
        assert step is not None
        refused = failure(channel.take(step, item))
        assert refused.error_class == ErrorClass.AUTH
        assert "bad_token_of_nobody" not in repr(refused)
        assert failure(channel.find(step, item)).error_class == ErrorClass.AUTH

    @every_creating_step
    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (400, ErrorClass.INVALID_INPUT),
            (402, ErrorClass.INSUFFICIENT_CREDIT),
            (403, ErrorClass.AUTH),
            (404, ErrorClass.NOT_FOUND),
            (422, ErrorClass.INVALID_INPUT),
        ],
    )
    def test_are_of_a_class_and_had_no_effect(
        self, harness: Harness, step_name: str, status: int, expected: ErrorClass
    ) -> None:
        step, item = harness.before(step_name, harness.item())
        operation = harness.facts.operations[step_name]
        harness.fault("shop_status", operation, times=1, status=status)
        channel = harness.channel()
        assert failure(channel.take(step, item)).error_class == expected
        assert channel.find(step, item) == NotThere()

    @every
    def test_of_what_is_known_to_be_refused_are_not_asked_for(self, harness: Harness) -> None:
        channel = harness.channel()
        account = channel.check()
        assert isinstance(account, Account)
        calls = harness.books()["calls"]
        bad = harness.item(title=" ", tags=("",), price_usd=Decimal(0))
        step = channel.next_step(bad)
        assert step is not None
        refused = failure(channel.take(step, bad))
        assert refused.error_class == ErrorClass.INVALID_INPUT
        assert refused.fields.keys() == {"title", "tags", "price_usd"}
        created = harness.facts.operations[step.name]
        assert created not in harness.books()["calls"]
        assert set(harness.books()["calls"]) == set(calls)


class TestTheChannelItself:
    @every
    def test_that_takes_no_more_calls_says_when_it_will(self, harness: Harness) -> None:
        channel, item = harness.channel(), harness.item()
        harness.sim.request("POST", "/_sim/shops/settings", json=dict(harness.facts.tight))
        step = channel.next_step(item)
        assert step is not None
        for result in (channel.check(), channel.take(step, item), channel.find(step, item)):
            refused = failure(result)
            assert refused.error_class == ErrorClass.RATE_LIMITED
            assert refused.retry_after_s is not None
            assert 0 < refused.retry_after_s <= 60

    @every
    def test_that_has_lost_the_product_makes_another(self, harness: Harness) -> None:
        step, item = harness.before("publish", harness.item())
        harness.delete_product(item)
        channel = harness.channel()
        assert channel.find(step, item) == NotThere()
        assert failure(channel.take(step, item)).error_class == ErrorClass.NOT_FOUND
        publish(harness, replace(item, remote_ids={}))
        assert len([one for one in harness.products() if not one.get("deleted")]) == 1

    @every
    def test_that_fails_in_the_background_is_asked_once_more(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(printify, "UNLISTED_PATIENCE_S", 0)
        harness.fault("shop_fails", harness.facts.background, times=1)
        channel, item = harness.channel(), harness.item()

        def till_the_end() -> Failure | None:
            nonlocal item
            while (step := channel.next_step(item)) is not None:
                result = ended(channel, step, item)
                if isinstance(result, Failure):
                    return result
                item = with_ids(item, result)
            return None

        refused = till_the_end()
        if harness.facts.tells_failure:
            assert failure(refused).error_class == ErrorClass.INTERRUPTED
            # Its owner asks again.
            kept = {k: v for k, v in item.remote_ids.items() if k in channel.kept_ids}
            item = replace(item, remote_ids=kept)
            refused = till_the_end()
        assert refused is None
        (product,) = harness.products()
        assert product[harness.facts.counted] == 2


class TestAProductThatIsAskedForOtherwise:
    @every_changing
    def test_is_changed_where_the_channel_says_so(self, harness: Harness) -> None:
        item = harness.item()
        first = publish(harness, item)
        second = publish(harness, replace(item, title="Another cat", price_usd=Decimal("3.50")))
        (product,) = harness.products()
        assert product["title"] == "Another cat"
        assert second.url == first.url

    @every_changing
    @pytest.mark.parametrize("kind", ["shop_drop_before", "shop_drop_after"])
    def test_is_changed_though_the_answer_is_lost(self, harness: Harness, kind: str) -> None:
        item = harness.item()
        publish(harness, item)
        wanted = replace(item, title="Another cat", remote_ids={CHANGED: "1"})
        channel = harness.channel()
        step = channel.next_step(wanted)
        assert step is not None
        harness.fault(kind, harness.facts.operations[step.name], times=1)
        lost = failure(channel.take(step, wanted))
        assert lost.error_class == ErrorClass.TIMEOUT_UNKNOWN
        # The product is there in either case, and may be as it was.
        assert channel.find(step, wanted) == NotThere()
        publish(harness, wanted)
        (product,) = harness.products()
        assert product["title"] == "Another cat"


class TestNetwork:
    @every
    def test_that_is_gone_means_that_nothing_was_done(
        self, harness: Harness, refused_url: str
    ) -> None:
        harness.url = refused_url
        channel, item = harness.channel(), harness.item()
        step = channel.next_step(item)
        assert step is not None
        for result in (channel.check(), channel.take(step, item), channel.find(step, item)):
            assert failure(result).error_class == ErrorClass.PROVIDER_UNAVAILABLE

    @every
    def test_that_answers_slowly_is_waited_for(self, harness: Harness, network: TcpProxy) -> None:
        harness.url = f"http://127.0.0.1:{network.port}"
        network.drip(2_000)
        assert isinstance(harness.channel().check(), Account)


class Impatient(HttpClient):
    """Waits a second for the answer to one call, told by its URL or body, and gives up on it."""

    def __init__(self, request: str) -> None:
        super().__init__()
        self._request = request

    def json(self, method, url, *, json=None, deadline_s=None, **kwargs):
        if method == "POST" and self._request in f"{url} {json}":
            deadline_s = 1.0
        return super().json(method, url, json=json, deadline_s=deadline_s, **kwargs)
