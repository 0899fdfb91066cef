"""Webhooks of Replicate: which are taken, which refused, and where the secret comes from."""

import base64
import json
import threading
import time

import pytest
import responses
from hypothesis import given
from hypothesis import strategies as st
from replicate.webhook import (
    InvalidSignatureError,
    Webhooks,
    WebhookSigningSecret,
    WebhookValidationError,
)

from generation.http import HttpClient, parse_json
from generation.provider import (
    ErrorClass,
    Failure,
    Prediction,
    PredictionStatus,
    WebhookDelivery,
    WebhookRefusal,
)
from generation.providers.replicate import ReplicateProvider, read_prediction
from simulator.webhooks import sign
from tests.simulator.support import TOKEN as SIMULATOR_TOKEN

TOKEN = "r8_TestTokenThatMustNotLeak"
BASE = "https://api.replicate.test"
SECRET_URL = f"{BASE}/v1/webhooks/default/secret"

# The vector that the official client accepts.
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
KEY = base64.b64decode(SECRET.removeprefix("whsec_"))
ID = "msg_test_1"
TIME_S = 1700000000
BODY = b'{"id":"p1","status":"succeeded"}'
SIGNATURE = "v1,yVLdtJq3jIz36ov6oPRhF5qA+oPqErm0U8sBoVx3ZPk="
HEADERS = {
    "webhook-id": ID,
    "webhook-timestamp": str(TIME_S),
    "webhook-signature": SIGNATURE,
}

NEXT_KEY = b"the key after a rotation"
NEXT_SECRET = "whsec_" + base64.b64encode(NEXT_KEY).decode()

client = HttpClient()
configured = ReplicateProvider(TOKEN, http=client, base_url=BASE, webhook_secret=SECRET)


def signed(body=BODY, *, key=KEY, webhook_id=ID, time_s=TIME_S):
    """Return the headers of a genuine delivery."""
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(time_s),
        "webhook-signature": sign(key, webhook_id, time_s, body),
    }


def verify(headers=HEADERS, body=BODY, *, now_s=float(TIME_S), provider=configured):
    return provider.verify_webhook(headers, body, now_s=now_s)


class TestDelivery:
    def test_of_the_published_vector_is_taken(self):
        result = verify()
        assert isinstance(result, WebhookDelivery)
        assert result.id == ID
        assert result.body == {"id": "p1", "status": "succeeded"}
        assert result.prediction == read_prediction(json.loads(BODY))
        assert result.prediction.id == "p1"

    @pytest.mark.parametrize("change", [str.upper, str.title, str.lower])
    def test_may_write_its_headers_in_any_case(self, change):
        headers = {change(name): value for name, value in HEADERS.items()}
        assert isinstance(verify({"Host": "picture.test", **headers}), WebhookDelivery)

    @pytest.mark.parametrize(
        "signatures",
        [
            f"v1,AAAA {SIGNATURE}",
            f"{SIGNATURE} v1,AAAA",
            f"v2,x v1a,{SIGNATURE[3:]} nonsense , é {SIGNATURE}",
            f"  {SIGNATURE}  ",
        ],
    )
    def test_needs_one_signature_that_fits(self, signatures):
        assert isinstance(verify({**HEADERS, "webhook-signature": signatures}), WebhookDelivery)

    @pytest.mark.parametrize("now_s", [TIME_S - 300.0, TIME_S, TIME_S + 300.0])
    def test_may_be_five_minutes_off(self, now_s):
        assert isinstance(verify(now_s=now_s), WebhookDelivery)

    @pytest.mark.parametrize("webhook_id", ["x", "x" * 200, "msg.with.dots", "~!/+=_-"])
    def test_ids_are_up_to_200_visible_characters(self, webhook_id):
        result = verify(signed(webhook_id=webhook_id))
        assert isinstance(result, WebhookDelivery)
        assert result.id == webhook_id

    @pytest.mark.parametrize(
        ("log", "kept"),
        [
            (rb"a\u0000b", "ab"),
            (rb"\ud83d alone", "? alone"),
            (b"\xed\xa0\xbd alone", "? alone"),
            ("a \N{GRINNING FACE}".encode(), "a \N{GRINNING FACE}"),
            (rb"\ud83d\ude00", "\N{GRINNING FACE}"),
        ],
    )
    def test_holds_only_text_that_can_be_stored(self, log, kept):
        body = b'{"id":"p1","status":"failed","error":"%s","x":NaN,"y":1e999}' % log
        result = verify(signed(body), body)
        assert isinstance(result, WebhookDelivery)
        assert result.body["error"] == kept
        assert (result.body["x"], result.body["y"]) == (None, None)
        assert result.prediction.failure is not None
        assert result.prediction.failure.raw == kept


class TestRefusal:
    @pytest.mark.parametrize("missing", HEADERS)
    def test_without_a_header(self, missing):
        headers = {name: value for name, value in HEADERS.items() if name != missing}
        assert verify(headers) is WebhookRefusal.MISSING_HEADER
        assert verify({**headers, missing: ""}) is WebhookRefusal.MISSING_HEADER

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("webhook-id", "x" * 201),
            ("webhook-id", "msg test"),
            ("webhook-id", "msg\n"),
            ("webhook-id", "msg\0"),
            ("webhook-id", "é"),
            ("webhook-id", "\ud83d"),
            ("webhook-timestamp", "soon"),
            ("webhook-timestamp", "1700000000.5"),
            ("webhook-timestamp", "-1700000000"),
            ("webhook-timestamp", "1_700_000_000"),
            ("webhook-timestamp", " 1700000000"),
            ("webhook-timestamp", "1700000000\n"),
            ("webhook-timestamp", "170000000\N{ARABIC-INDIC DIGIT ZERO}"),
            ("webhook-timestamp", "1" * 5_000),
            ("webhook-signature", f"{SIGNATURE} " * 100),
        ],
    )
    def test_of_a_header_that_cannot_be(self, name, value):
        assert verify({**HEADERS, name: value}) is WebhookRefusal.MISSING_HEADER

    @pytest.mark.parametrize(
        "signatures",
        [
            SIGNATURE[3:],
            "v1," + SIGNATURE[3:-1],
            "v2," + SIGNATURE[3:],
            "v1a," + SIGNATURE[3:],
            "v1, " + SIGNATURE[3:],
            SIGNATURE.lower(),
            "v1,",
            " ",
            "v1,é",
            "\ud83d",
            sign(b"", ID, TIME_S, BODY),
            sign(b"another key", ID, TIME_S, BODY),
        ],
    )
    def test_of_a_wrong_signature(self, signatures):
        headers = {**HEADERS, "webhook-signature": signatures}
        assert verify(headers) is WebhookRefusal.BAD_SIGNATURE

    @pytest.mark.parametrize("now_s", [TIME_S - 300.5, TIME_S + 300.5, 0.0, 4e9])
    def test_of_an_old_or_early_delivery(self, now_s):
        assert verify(now_s=now_s) is WebhookRefusal.STALE

    def test_of_a_forged_one_says_so_even_if_it_is_stale_and_nonsense(self):
        assert verify(body=b"nonsense", now_s=0.0) is WebhookRefusal.BAD_SIGNATURE

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"nonsense",
            b"\xff",
            b"[]",
            b"null",
            b"{}",
            b'{"id": "p1"}',
            b'{"id": 5, "status": "failed"}',
            b'{"id": "\\u0000", "status": "failed"}',
            b'{"x":' * 600 + b'"\\u0000"' + b"}" * 600,
            b"[" * 100_000,
        ],
    )
    def test_of_what_is_no_prediction(self, body):
        assert verify(signed(body), body) is WebhookRefusal.NOT_A_PREDICTION
        assert verify(signed(body), body, now_s=0.0) is WebhookRefusal.STALE

    def test_reasons_are_these(self):
        reasons = {"missing_header", "bad_signature", "stale", "not_a_prediction"}
        assert {str(reason) for reason in WebhookRefusal} == reasons


IDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
KEYS = st.binary(min_size=1, max_size=64)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.fixed_dictionaries({"id": IDS, "status": st.text()}).map(lambda b: json.dumps(b).encode()),
)
TIMES_S = st.integers(0, 10**12 - 1)


def flipped(data, text: bytes) -> bytes:
    """Return `text` with some bits of one byte flipped."""
    at = data.draw(st.integers(0, len(text) - 1))
    bits = data.draw(st.integers(1, 255))
    return text[:at] + bytes([text[at] ^ bits]) + text[at + 1 :]


def with_key(key: bytes) -> ReplicateProvider:
    secret = "whsec_" + base64.b64encode(key).decode()
    return ReplicateProvider(TOKEN, http=client, base_url=BASE, webhook_secret=secret)


class TestAnyDelivery:
    @given(KEYS, IDS, TIMES_S, BODIES)
    def test_that_is_genuine_passes_the_signature(self, key, webhook_id, time_s, body):
        headers = signed(body, key=key, webhook_id=webhook_id, time_s=time_s)
        result = verify(headers, body, now_s=float(time_s), provider=with_key(key))
        if read_prediction(parse_json(body)) is None:
            assert result is WebhookRefusal.NOT_A_PREDICTION
        else:
            assert isinstance(result, WebhookDelivery)

    @given(st.data(), IDS, BODIES.filter(len))
    def test_with_a_flipped_byte_in_its_body_is_refused(self, data, webhook_id, body):
        headers = signed(body, webhook_id=webhook_id)
        assert verify(headers, flipped(data, body)) is WebhookRefusal.BAD_SIGNATURE

    @given(
        st.data(),
        IDS,
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]),
    )
    def test_with_a_flipped_byte_in_a_header_is_refused(self, data, webhook_id, name):
        headers = signed(webhook_id=webhook_id)
        # As a web server decodes headers.
        headers[name] = flipped(data, headers[name].encode()).decode("latin-1")
        refusals = (WebhookRefusal.BAD_SIGNATURE, WebhookRefusal.MISSING_HEADER)
        assert verify(headers) in refusals

    @given(KEYS, KEYS, IDS)
    def test_signed_with_another_key_is_refused(self, key, other, webhook_id):
        # A key of HMAC is filled up with zeros.
        if key.rstrip(b"\0") != other.rstrip(b"\0"):
            headers = signed(key=other, webhook_id=webhook_id)
            assert verify(headers, provider=with_key(key)) is WebhookRefusal.BAD_SIGNATURE

    @given(st.dictionaries(st.sampled_from([*HEADERS, "host"]), st.text()), st.binary())
    def test_of_nonsense_is_refused(self, headers, body):
        assert isinstance(verify(headers, body), WebhookRefusal)

    @given(st.data(), IDS, st.text(min_size=1), st.booleans())
    def test_is_judged_as_by_the_official_client(self, data, webhook_id, text, is_damaged):
        body = text.encode("utf-8", "replace")
        headers = signed(body, webhook_id=webhook_id)
        if is_damaged:
            mac = base64.b64decode(headers["webhook-signature"][3:])
            headers["webhook-signature"] = "v1," + base64.b64encode(flipped(data, mac)).decode()
        theirs = True
        try:
            Webhooks.validate(
                headers=headers, body=body.decode(), secret=WebhookSigningSecret(key=SECRET)
            )
        except InvalidSignatureError:
            theirs = False
        ours = verify(headers, body) is not WebhookRefusal.BAD_SIGNATURE
        assert ours is theirs is not is_damaged


class TestOfficialClient:
    def test_takes_the_vector_and_refuses_what_we_refuse(self):
        secret = WebhookSigningSecret(key=SECRET)
        Webhooks.validate(headers=HEADERS, body=BODY.decode(), secret=secret)
        for name in HEADERS:
            headers = {key: value for key, value in HEADERS.items() if key != name}
            with pytest.raises(WebhookValidationError):
                Webhooks.validate(headers=headers, body=BODY.decode(), secret=secret)
            assert verify(headers) is WebhookRefusal.MISSING_HEADER
        with pytest.raises(WebhookValidationError):
            Webhooks.validate(headers=HEADERS, body=BODY.decode(), secret=secret, tolerance=300)
        assert verify(now_s=time.time()) is WebhookRefusal.STALE


class Clock:
    def __init__(self):
        self.now_s = 1_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("generation.providers.replicate.monotonic", clock)
    return clock


@pytest.fixture
def api():
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def replicate(http):
    return ReplicateProvider(TOKEN, http=http, base_url=BASE)


class TestFetchedSecret:
    def test_is_asked_for_once(self, replicate, api):
        api.get(SECRET_URL, json={"key": SECRET})
        for _ in range(3):
            assert isinstance(verify(provider=replicate), WebhookDelivery)
        assert len(api.calls) == 1
        assert api.calls[0].request.headers["Authorization"] == f"Bearer {TOKEN}"

    def test_is_not_asked_for_before_the_headers_are_right(self, replicate):
        assert verify({}, provider=replicate) is WebhookRefusal.MISSING_HEADER

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (503, "", ErrorClass.PROVIDER_UNAVAILABLE),
            (401, "{}", ErrorClass.AUTH),
            (429, "{}", ErrorClass.RATE_LIMITED),
            (302, "", ErrorClass.UNKNOWN),
            (200, "<html>", ErrorClass.PROVIDER_UNAVAILABLE),
            (200, "[]", ErrorClass.PROVIDER_UNAVAILABLE),
            (200, "{}", ErrorClass.PROVIDER_UNAVAILABLE),
            (200, '{"key": 5}', ErrorClass.PROVIDER_UNAVAILABLE),
            (200, '{"key": "whsec_"}', ErrorClass.PROVIDER_UNAVAILABLE),
            (200, '{"key": "MDEyMzQ1Njc4OWFiY2RlZg=="}', ErrorClass.PROVIDER_UNAVAILABLE),
        ],
    )
    def test_that_cannot_be_had_is_a_failure(self, replicate, api, status, body, expected):
        api.get(SECRET_URL, body=body, status=status)
        result = verify(provider=replicate)
        assert isinstance(result, Failure)
        assert result.error_class == expected
        assert "MDEy" not in repr(result)

    def test_that_cannot_be_had_is_asked_for_again_after_a_pause(self, replicate, api, clock):
        api.get(SECRET_URL, status=503)
        assert isinstance(verify(provider=replicate), Failure)
        clock.now_s += 4.9
        assert isinstance(verify(provider=replicate), Failure)
        assert len(api.calls) == 1
        api.replace(responses.GET, SECRET_URL, json={"key": SECRET})
        clock.now_s += 0.1
        assert isinstance(verify(provider=replicate), WebhookDelivery)
        assert len(api.calls) == 2

    def test_is_asked_for_again_when_it_may_have_been_rotated(self, replicate, api, clock):
        api.get(SECRET_URL, json={"key": SECRET})
        assert isinstance(verify(provider=replicate), WebhookDelivery)
        rotated = signed(key=NEXT_KEY)
        api.replace(responses.GET, SECRET_URL, json={"key": NEXT_SECRET})
        clock.now_s += 59.9
        assert verify(rotated, provider=replicate) is WebhookRefusal.BAD_SIGNATURE
        assert len(api.calls) == 1
        clock.now_s += 0.1
        assert isinstance(verify(rotated, provider=replicate), WebhookDelivery)
        assert isinstance(verify(rotated, provider=replicate), WebhookDelivery)
        assert verify(provider=replicate) is WebhookRefusal.BAD_SIGNATURE
        assert len(api.calls) == 2

    def test_is_asked_for_once_a_minute_however_many_are_forged(self, replicate, api, clock):
        api.get(SECRET_URL, json={"key": SECRET})
        forged = signed(key=b"guessed")
        for _ in range(600):
            assert verify(forged, provider=replicate) is WebhookRefusal.BAD_SIGNATURE
            clock.now_s += 0.5
        assert len(api.calls) == 5
        assert isinstance(verify(provider=replicate), WebhookDelivery)

    def test_stays_when_it_cannot_be_asked_for_again(self, replicate, api, clock):
        api.get(SECRET_URL, json={"key": SECRET})
        assert isinstance(verify(provider=replicate), WebhookDelivery)
        api.replace(responses.GET, SECRET_URL, status=503)
        clock.now_s += 60
        forged = signed(key=b"guessed")
        for _ in range(2):
            assert verify(forged, provider=replicate) is WebhookRefusal.BAD_SIGNATURE
        assert len(api.calls) == 2
        assert isinstance(verify(provider=replicate), WebhookDelivery)

    @pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
    def test_is_asked_for_once_by_many_threads(self, http, serve, answer, status):
        def script(sock, request, server):
            time.sleep(0.1)  # for the others to come
            sock.sendall(answer(json.dumps({"key": SECRET}).encode(), status=status))
            return True

        server = serve(script)
        provider = ReplicateProvider(TOKEN, http=http, base_url=server.url(""))
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(verify(provider=provider)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = WebhookDelivery if status.startswith("200") else Failure
        assert [type(result) for result in results] == [expected] * 8
        assert len(server.requests) == 1

    def test_is_not_waited_for_beyond_its_deadline(self, http, serve, monkeypatch):
        monkeypatch.setattr("generation.providers.replicate.SECRET_DEADLINE_S", 0.1)
        server = serve(lambda sock, request, server: server.hang())
        provider = ReplicateProvider(TOKEN, http=http, base_url=server.url(""))
        started = time.monotonic()
        assert isinstance(verify(provider=provider), Failure)
        assert time.monotonic() - started < 2


class TestConfiguredSecret:
    def test_is_never_asked_for(self, api, http, clock):
        provider = ReplicateProvider(TOKEN, http=http, base_url=BASE, webhook_secret=SECRET)
        assert isinstance(verify(provider=provider), WebhookDelivery)
        clock.now_s += 3_600
        rotated = signed(key=NEXT_KEY)
        assert verify(rotated, provider=provider) is WebhookRefusal.BAD_SIGNATURE
        assert len(api.calls) == 0

    @pytest.mark.parametrize(
        "secret",
        [
            "whsec_",
            "whsec",
            "MDEyMzQ1Njc4OWFiY2RlZg==",
            "WHSEC_MDEyMzQ1Njc4OWFiY2RlZg==",
            "whsec_MDEyMzQ1Njc4OWFiY2RlZg",
            "whsec_MDEyMzQ1Njc4OWFiY2RlZg==\n",
            "whsec_MDEy_zQ1Njc4OWFiY2RlZg==",
            "whsec_é",
            " ",
        ],
    )
    def test_that_is_malformed_is_refused_without_repeating_it(self, http, secret):
        with pytest.raises(ValueError, match="webhook secret") as error:
            ReplicateProvider(TOKEN, http=http, webhook_secret=secret)
        assert "MDEy" not in repr(error.value)
        assert "é" not in repr(error.value)

    def test_is_never_told(self):
        assert SECRET.removeprefix("whsec_") not in repr([configured, verify(), verify({})])


def test_read_translates_what_a_webhook_holds():
    body = {"id": "p1", "status": "processing"}
    result = configured.read(body)
    assert isinstance(result, Prediction)
    assert result.status == PredictionStatus.RUNNING
    assert configured.read({"id": "p1"}) is None


def test_the_simulators_webhooks_are_taken_and_with_a_wrong_key_refused(sim, receiver, http):
    provider = ReplicateProvider(SIMULATOR_TOKEN, http=http, base_url=sim.url)
    created = sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    (genuine,) = receiver.wait_for(1)
    result = verify(genuine.headers, genuine.body, now_s=time.time(), provider=provider)
    assert isinstance(result, WebhookDelivery)
    assert result.prediction == provider.fetch(created["id"])
    assert result.body["status"] == "succeeded"

    sim.fault("webhook_bad_signature")
    sim.created(webhook=receiver.url, webhook_events_filter=["completed"])
    forged = receiver.wait_for(2)[1]
    result = verify(forged.headers, forged.body, now_s=time.time(), provider=provider)
    assert result is WebhookRefusal.BAD_SIGNATURE
