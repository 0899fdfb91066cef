"""Any JSON at all: taken or refused, never an error of ours, and refused means nothing kept."""

import copy
import json
import uuid

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batches import lifecycle
from batches.models import Batch, Generation, Lane
from batches.scheduling import admit
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    LIGHTNING,
    SCHNELL,
    SDXL,
    fail,
    problem,
    rows,
)
from tests.factories import make_batch

pytestmark = pytest.mark.django_db

WORDS = (
    *("name", "prompts", "prompt", "count", "seed", "style", "genre", "settings", "priority"),
    *("tags", "text", "negative_prompt", "custom_id", "metadata", "model", "width", "height"),
    *("aspect_ratio", "steps", "guidance_scale", "output_format", "output_quality", "parameters"),
    *("model_id", "non_field_errors", "", ".", "__proto__", "owner", "id", "num_outputs"),
    *("go_fast", "scheduler", "megapixels", "refine"),
)
# Time goes on between two answers.
PASSING = {"eta_seconds": None, "eta_reason": None}
NUMBERS = (0, 1, -1, 4, 26, 64, 1024, 2**31, 2**32 - 1, 2**63, 10**30, 0.5, -0.0, 1e308)
TEXTS = (
    *("", " ", "a fox", "16:9", "0:0", "png", SCHNELL, DEV, SDXL),
    *(LIGHTNING, "\x00", "\ud800", "\N{FOX FACE}", "{}", "{0}", "%s", "\\u0000", "1", "true"),
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from((float("inf"), float("nan"))),
    st.sampled_from((4_000, 4_001)).map("x".__mul__),
    st.just(400).map((10).__pow__),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
)
names = st.one_of(st.sampled_from(WORDS), st.text(max_size=5))
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=8,
)
models = st.sampled_from((SCHNELL, DEV, SDXL, LIGHTNING))
plausible_settings = st.fixed_dictionaries(
    {},
    optional={
        "model": models,
        "width": st.integers(1, 2_100),
        "height": st.integers(1, 2_100),
        "aspect_ratio": st.from_regex(r"\d{1,4}:\d{1,4}", fullmatch=True),
        "steps": st.integers(1, 60),
        "guidance_scale": st.floats(0, 12),
        "output_format": st.sampled_from(("png", "webp", "jpg", "JPEG", "gif")),
        "output_quality": st.integers(0, 100),
        "parameters": st.dictionaries(names, anything, max_size=3),
    },
)
details = {
    "name": st.text(max_size=10),
    "seed": st.integers(0, 2**32 - 1),
    "style": st.text(max_size=10),
    "genre": st.text(max_size=10),
    "priority": st.integers(0, 9),
    "settings": plausible_settings,
}
texts = st.text(min_size=1, max_size=30)
plausible_prompt = st.fixed_dictionaries(
    {"text": texts},
    optional={
        "seed": details["seed"],
        "settings": plausible_settings,
        "negative_prompt": texts,
        "custom_id": texts,
        "metadata": st.dictionaries(names, anything, max_size=3),
    },
)
common = {name: details[name] for name in ("name", "style", "genre", "priority", "settings")}
plausible = st.one_of(
    st.fixed_dictionaries(
        {"prompts": st.lists(plausible_prompt, min_size=1, max_size=4)},
        optional={**common, "tags": st.lists(texts, max_size=3)},
    ),
    st.fixed_dictionaries({"prompt": texts}, optional={**details, "count": st.integers(1, 26)}),
)


def places(node, way=()):
    """Every place in a JSON value, as the way to it."""
    yield way
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*way, key))


@st.composite
def spoilt(draw):
    """A plausible body with something else at a few of its places."""
    body = copy.deepcopy(draw(plausible))
    for _ in range(draw(st.integers(0, 2))):
        way = draw(st.sampled_from(list(places(body))))
        value = draw(anything)
        if not way:
            return value
        *before, last = way
        place = body
        for key in before:
            place = place[key]
        if isinstance(place, dict) and draw(st.booleans()):
            last = draw(names)
        place[last] = value
        body = json.loads(json.dumps(body))
    return body


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(path=st.sampled_from((BATCHES, GENERATIONS)), body=st.one_of(spoilt(), plausible, anything))
def test_any_body_is_taken_whole_or_refused_whole(path, body, api):
    raw = json.dumps(body).encode()
    api.raise_request_exception = False
    with transaction.atomic():
        before = Batch.objects.count(), Generation.objects.count(), Lane.objects.count()
        response = api.post(path, raw, content_type="application/json")
        after = Batch.objects.count(), Generation.objects.count(), Lane.objects.count()
        if response.status_code == 202:
            kept = response.json()
            assert api.get(response["Location"]).json() | PASSING == kept | PASSING
            if path == BATCHES:
                made = len(kept["items"])
                assert kept["total_count"] == made
                assert [item["index"] for item in kept["items"]] == list(range(made))
            else:
                made = 1
            assert after[1] == before[1] + made
        else:
            assert response.status_code in (400, 422), response.content
            code = {400: "invalid_json", 422: "invalid"}[response.status_code]
            body = problem(response, response.status_code, code)
            assert (response.status_code == 422) == bool(body["errors"])
            assert after == before
        transaction.set_rollback(True)


ids = st.one_of(
    st.lists(st.sampled_from(("failed", "cancelled", "processing", "unknown")), max_size=5),
    anything,
)
plausible_retry = st.fixed_dictionaries(
    {}, optional={"ids": ids, "settings": st.one_of(plausible_settings, anything)}
)


@pytest.fixture
def known(api, owner):
    """Paths of a batch and of one of its generations, and the ids of all by status."""
    batch = make_batch(owner, size=4)
    lifecycle.cancel_generation(generation=batch.generations.get(index=1))
    admit()
    fail(batch.generations.get(index=0))
    items = {item.status: str(item.pk) for item in Generation.objects.all()}
    return {
        "batch": f"{BATCHES}{batch.pk}/",
        "generation": f"{GENERATIONS}{items['failed']}/",
        **items,
        "unknown": str(uuid.uuid4()),
    }


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(("batch", "generation")),
    action=st.sampled_from(("retry", "retry", "retry", "pause", "resume", "cancel")),
    body=st.one_of(plausible_retry, anything),
)
def test_any_action_is_done_or_refused_and_refused_means_nothing_changed(
    kind, action, body, api, known
):
    if isinstance(body, dict) and isinstance(body.get("ids"), list):
        named = [known.get(one, one) if isinstance(one, str) else one for one in body["ids"]]
        body = {**body, "ids": named}
    api.raise_request_exception = False
    with transaction.atomic():
        before = rows()
        raw = json.dumps(body).encode()
        response = api.post(f"{known[kind]}{action}/", raw, content_type="application/json")
        if response.status_code == 200:
            assert api.get(known[kind]).json() | PASSING == response.json() | PASSING
        else:
            codes = {400: "invalid_json", 409: "invalid_transition", 422: "invalid"}
            assert response.status_code in codes, response.content
            assert response.json()["code"] == codes[response.status_code]
            assert rows() == before
        transaction.set_rollback(True)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(raw=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_any_bytes_are_refused_as_what_they_are(raw, api):
    api.raise_request_exception = False
    response = api.post(BATCHES, raw, content_type="application/json")
    assert response.status_code in (400, 422), response.content
    assert not Batch.objects.exists()
