"""What providers report by themselves, and what somebody else says in their name."""

from __future__ import annotations

import time

import pytest

from generation.provider import (
    ErrorClass,
    Failure,
    PredictionStatus,
    WebhookDelivery,
    WebhookRefusal,
)
from tests.faults.proxy import TcpProxy
from tests.generation.conformance.checks import accepted, find, refused
from tests.generation.conformance.harness import Harness
from tests.generation.conformance.harnesses import every, those
from tests.simulator.support import Received, Receiver

sends = those(lambda one: one.signs_webhooks is not None)
signs = those(lambda one: one.signs_webhooks)


def taken(harness: Harness, webhook: Received, *, now_s: float | None = None) -> WebhookDelivery:
    """Check that a webhook is taken, and what it may say."""
    now_s = time.time() if now_s is None else now_s
    delivery = harness.provider().verify_webhook(webhook.headers, webhook.body, now_s=now_s)
    assert isinstance(delivery, WebhookDelivery), delivery
    assert 1 <= len(delivery.id) <= 200
    assert delivery.id.isascii()
    assert delivery.id.isprintable()
    if harness.signs_webhooks:
        assert delivery.prediction is not None
        accepted(delivery.prediction)
        assert harness.provider().read(delivery.body) == delivery.prediction
    else:
        # Whoever knows the URL may have sent it: at most a name to look up.
        assert delivery.prediction is None
        assert set(delivery.body) <= {"id"}
    return delivery


class TestReports:
    @sends
    def test_come_at_the_end(self, harness: Harness, prompt: str, receiver: Receiver) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, webhook_url=receiver.url)))
        harness.ended(provider, submitted.id)
        delivery = taken(harness, receiver.wait_for(1)[-1])
        if delivery.prediction is not None:
            assert delivery.prediction.id == submitted.id
            assert delivery.prediction.status == PredictionStatus.SUCCEEDED

    @sends
    def test_may_be_all_there_is_of_a_submission(
        self, harness: Harness, prompt: str, receiver: Receiver, network: TcpProxy
    ) -> None:
        """Its answer is lost, and the report comes all the same: earlier than any id is known."""
        provider = harness.provider(url=f"http://127.0.0.1:{network.port}")
        request = harness.request(prompt, webhook_url=receiver.url)
        network.reset_next_answer()
        refused(provider.submit(request), ErrorClass.TIMEOUT_UNKNOWN)
        delivery = taken(harness, receiver.wait_for(1)[-1])
        if delivery.prediction is not None:
            found = find(harness.provider(), request)
            assert isinstance(found, tuple)
            assert [one.id for one in found] == [delivery.prediction.id]
        assert (harness.creates(prompt), harness.charges(prompt)) == (1, 1)

    @sends
    def test_that_come_twice_have_one_id(
        self, harness: Harness, prompt: str, receiver: Receiver
    ) -> None:
        receiver.statuses = [500]
        accepted(harness.provider().submit(harness.request(prompt, webhook_url=receiver.url)))
        first, second = (taken(harness, webhook) for webhook in receiver.wait_for(2)[:2])
        assert first.id == second.id

    @sends
    def test_that_come_late_are_taken(
        self, harness: Harness, prompt: str, receiver: Receiver
    ) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, webhook_url=receiver.url)))
        webhook = receiver.wait_for(1)[-1]
        harness.ended(provider, submitted.id)
        # A signature is worth nothing any more some minutes later; a mere hint always is.
        late_s = 240 if harness.signs_webhooks else 86_400
        taken(harness, webhook, now_s=time.time() + late_s)

    @every
    def test_are_not_needed(self, harness: Harness, prompt: str, refused_url: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, webhook_url=refused_url)))
        assert harness.ended(provider, submitted.id).status == PredictionStatus.SUCCEEDED


class TestForgeries:
    @signs
    def test_are_refused(self, harness: Harness, prompt: str, receiver: Receiver) -> None:
        provider = harness.provider()
        accepted(provider.submit(harness.request(prompt, webhook_url=receiver.url)))
        webhook = receiver.wait_for(1)[-1]
        now_s = time.time()

        def verify(headers=webhook.headers, body=webhook.body, now_s=now_s):
            return provider.verify_webhook(headers, body, now_s=now_s)

        assert verify(body=webhook.body + b" ") == WebhookRefusal.BAD_SIGNATURE
        assert verify(headers={}) == WebhookRefusal.MISSING_HEADER
        assert verify(now_s=now_s + 3600) == WebhookRefusal.STALE
        assert verify(now_s=now_s - 3600) == WebhookRefusal.STALE
        assert isinstance(verify(), WebhookDelivery)

    @pytest.mark.parametrize(
        "body",
        [b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"id": 5}', b"[" * 50_000, b'{"a": "\\ud800"}'],
        ids=["empty", "null", "list", "cut", "not text", "wrong type", "deep", "surrogate"],
    )
    @every
    def test_of_any_form_never_raise(self, harness: Harness, body: bytes) -> None:
        provider = harness.provider()
        for headers in (
            {},
            {"webhook-id": "ä\n", "webhook-timestamp": "x", "webhook-signature": "v1,"},
            {"WEBHOOK-ID": "a", "Webhook-Timestamp": "1700000000", "webhook-signature": "v1,eA=="},
            {"content-type": "application/json", "user-agent": "x" * 10_000},
        ):
            answer = provider.verify_webhook(headers, body, now_s=1_700_000_000.0)
            assert isinstance(answer, (WebhookDelivery, WebhookRefusal, Failure))
            if isinstance(answer, WebhookDelivery):
                assert answer.prediction is None
                assert set(answer.body) <= {"id"}

    @those(lambda one: one.signs_webhooks is None)
    def test_in_the_name_of_who_sends_none_are_refused(self, harness: Harness) -> None:
        answer = harness.provider().verify_webhook({}, b"{}", now_s=1_700_000_000.0)
        assert isinstance(answer, WebhookRefusal)
