"""`?dry_run=true`: what would be made, while nothing is."""

from decimal import Decimal

import pytest

from batches import pools, scheduling
from batches.models import Generation, Lane, Lease, Pool, Reference
from tests.batches.api.support import (
    BATCHES,
    DEV,
    GENERATIONS,
    SCHNELL,
    SDXL,
    invalid,
    problem,
    rows,
)
from tests.factories import make_batch, make_image, make_reference

pytestmark = pytest.mark.django_db

GENERATE = "/api/generate"
START = "/functions/v1/start-generation"
FIELDS = {"dry_run", "total_count", "items", "cost_usd", "eta_seconds", "eta_reason", "limits"}


@pytest.fixture
def outline(api, nothing_happens):
    """What a dry run tells, after which nothing may be there that was not before."""

    def call(path, body, **headers):
        before = rows()
        with nothing_happens():
            answer = api.post(f"{path}?dry_run=true", body, headers=headers)
        assert answer.status_code == 200, answer.content
        assert rows() == before
        assert "Location" not in answer
        told = answer.json()
        assert told.keys() == FIELDS
        assert told["dry_run"] is True
        assert told["total_count"] == len(told["items"])
        return told

    return call


def codes(told):
    return [(limit["code"], limit["provider"]) for limit in told["limits"]]


def test_what_a_batch_would_be_is_told(outline):
    told = outline(
        BATCHES,
        {
            "prompts": [
                {"text": "a fox", "seed": 7, "negative_prompt": ""},
                {"text": "a cat", "settings": {"model": SDXL, "aspect_ratio": "1:1"}},
            ],
            "style": "retro",
            "settings": {"model": SCHNELL, "aspect_ratio": "16:9", "num_outputs": 2},
        },
    )
    fox, cat = told["items"]
    assert (fox["index"], fox["prompt"], fox["final_prompt"]) == (0, "a fox", "a fox, retro style")
    assert (fox["model"], fox["provider"], fox["seed"]) == (SCHNELL, "replicate", 7)
    assert (fox["output_count"], fox["size"]) == (2, {"width_px": 1344, "height_px": 768})
    assert fox["input"]["seed"] == 7
    assert fox["settings"] == {"model": SCHNELL, "aspect_ratio": "16:9", "num_outputs": 2}
    assert (cat["index"], cat["seed"], cat["size"]) == (
        1,
        None,
        {"width_px": 1024, "height_px": 1024},
    )
    assert "seed" not in cat["input"]
    assert Decimal(fox["cost_usd"]) == 2 * Decimal("0.003")
    assert Decimal(told["cost_usd"]) == Decimal(fox["cost_usd"]) + Decimal(cat["cost_usd"])
    assert told["eta_seconds"] >= 1
    assert told["eta_reason"] is None


def test_what_a_dry_run_tells_is_what_is_made_then(outline, api):
    body = {"prompt": "a fox", "count": 3, "seed": 5, "settings": {"model": DEV, "steps": 9}}
    told = outline(BATCHES, body)
    made = api.post(BATCHES, body).json()
    assert len(told["items"]) == made["total_count"]
    for item, generation in zip(told["items"], Generation.objects.order_by("index"), strict=True):
        assert item["final_prompt"] == generation.final_prompt
        assert item["settings"] == generation.settings
        assert item["input"] | {"seed": generation.seed} == generation.input
        assert item["seed"] in (generation.seed, None)
    assert [item["seed"] for item in told["items"]] == [5, None, None]


@pytest.mark.parametrize("path", [GENERATIONS, START])
def test_a_single_image_is_outlined_too(path, outline):
    told = outline(path, {"prompt": "a fox", "model_id": SCHNELL, "seed": 3})
    assert (told["total_count"], told["items"][0]["seed"]) == (1, 3)
    assert told["cost_usd"] == "0.003000"
    assert told["limits"] == []


def test_a_print_is_outlined_in_its_size(outline):
    told = outline(GENERATE, {"prompt": "a fox", "batch_size": 2, "resize": "upscale"})
    assert [item["size"] for item in told["items"]] == [{"width_px": 4500, "height_px": 5400}] * 2


def test_a_size_that_is_not_known_before_is_null(outline):
    told = outline(BATCHES, {"prompt": "a fox", "settings": {"model": "qwen/qwen-image"}})
    assert told["items"][0]["size"] is None


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS, GENERATE, START])
def test_a_key_is_of_no_account(path, outline, api):
    for prompt in ("a fox", "a cat"):
        outline(path, {"prompt": prompt}, **{"Idempotency-Key": "k"})
    answer = api.post(path, {"prompt": "a fox"}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202
    assert "Idempotent-Replayed" not in answer


@pytest.mark.parametrize("path", [BATCHES, GENERATIONS, GENERATE, START])
def test_a_dry_run_is_not_waited_for(path, api):
    answer = api.post(f"{path}?dry_run=true", {"prompt": "a fox"}, headers={"Prefer": "wait=9"})
    assert answer.status_code == 200
    assert "X-Picture-Wait" not in answer


def test_a_key_must_be_one_all_the_same(api):
    headers = {"Idempotency-Key": "two words"}
    answer = api.post(f"{BATCHES}?dry_run=true", {"prompt": "a fox"}, headers=headers)
    problem(answer, 400, "invalid_idempotency_key")


@pytest.mark.parametrize("value", ["1", "True", "", "yes"])
def test_what_is_neither_true_nor_false_is_refused(value, api, nothing_happens):
    with nothing_happens():
        problems = invalid(api.post(f"{BATCHES}?dry_run={value}", {"prompt": "a fox"}))
    assert problems == {"dry_run": ("invalid", "Must be true or false.")}


def test_a_run_that_is_not_dry_is_as_always(api):
    assert api.post(f"{BATCHES}?dry_run=false", {"prompt": "a fox"}).status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a fox", "count": 26},
        {"prompt": "a fox", "settings": {"model": "nobody/nothing", "steps": 3}},
        {"prompt": "a fox", "settings": {"width": 31, "height": 31}},
        {"prompt": "a fox", "start_at": "2001-01-01T00:00:00Z"},
        {
            "prompt": "a fox",
            "settings": {
                "model": DEV,
                "references": [{"id": "00000000-0000-4000-8000-000000000000"}],
            },
        },
    ],
)
def test_what_would_be_refused_is_refused_alike(body, api):
    dry, real = (api.post(f"{BATCHES}{query}", body) for query in ("?dry_run=true", ""))
    assert dry.status_code == real.status_code == 422
    assert dry.json()["errors"] == real.json()["errors"]


def test_pictures_are_looked_up_and_not_taken_in(outline, owner):
    reference = make_reference(owner)
    image = make_image(make_batch(owner, 1).generations.get())
    for named in (
        {"id": str(reference.pk)},
        {"image_id": str(image.pk)},
        {"url": "https://nobody.invalid/a.png"},
    ):
        told = outline(
            BATCHES, {"prompt": "a fox", "settings": {"model": DEV, "references": [named]}}
        )
        assert told["items"][0]["settings"]["references"] == [named]
    assert Reference.objects.count() == 1


def test_pictures_that_are_too_large_together_are_refused(api, owner, settings):
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "key", "endpoint"
    reference = make_reference(owner)
    Reference.objects.filter(pk=reference.pk).update(size_bytes=8_000_000)
    body = {
        "prompt": "a fox",
        "settings": {"model": "runpod/sdxl", "references": [{"id": str(reference.pk)}]},
    }
    dry, real = (api.post(f"{BATCHES}{query}", body) for query in ("?dry_run=true", ""))
    assert invalid(dry) == invalid(real)


def test_an_owner_who_never_submitted_is_told_by_the_default_cap(outline, settings):
    assert not Lane.objects.exists()
    told = outline(BATCHES, {"prompt": "a fox", "count": 4})
    (limit,) = told["limits"]
    assert limit["code"] == "user_cap"
    assert (limit["limit"], limit["used"], limit["asked"]) == (settings.MAX_PARALLEL_PER_USER, 0, 4)
    assert told["eta_seconds"] >= 1


def test_what_runs_and_what_waits_of_ones_own_is_told(outline, owner):
    make_batch(owner, 5)
    scheduling.admit()
    assert Lease.objects.count() == 3
    told = outline(BATCHES, {"prompt": "a fox"})
    limits = {limit["code"]: limit for limit in told["limits"]}
    assert (limits["user_cap"]["used"], limits["ahead_in_line"]["used"]) == (3, 2)
    # A single image goes before a batch.
    assert "ahead_in_line" not in dict(codes(outline(GENERATIONS, {"prompt": "a fox"})))


def test_the_caps_of_all_and_of_a_provider_are_told(outline, owner):
    make_batch(owner, 1)
    scheduling.admit()
    Pool.objects.filter(name=Pool.SYSTEM).update(capacity=2)
    Pool.objects.filter(name="replicate").update(capacity=1)
    Lane.objects.update(cap=50)
    told = outline(BATCHES, {"prompt": "a fox", "count": 3})
    assert codes(told) == [("global_cap", ""), ("provider_capacity", "replicate")]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"stopped_by": "auth"}, "provider_stopped"),
        ({"failure_count": pools.CIRCUIT_THRESHOLD}, "provider_away"),
    ],
)
def test_a_provider_that_takes_nothing_is_told(state, code, outline, owner):
    make_batch(owner, 1)
    scheduling.admit()
    assert Pool.objects.filter(name="replicate").update(**state) == 1
    told = outline(BATCHES, {"prompt": "a fox"})
    assert (code, "replicate") in codes(told)
    assert (told["eta_seconds"], told["eta_reason"]) == (None, code)


def test_a_provider_that_asked_for_a_pause_is_told(outline, owner):
    make_batch(owner, 1)
    scheduling.admit()
    pools.block_pool(name="replicate", seconds=30)
    assert ("provider_rate_limited", "replicate") in codes(outline(BATCHES, {"prompt": "a fox"}))


def test_what_is_to_start_later_has_no_estimate(outline):
    told = outline(BATCHES, {"prompt": "a fox", "start_at": "2999-01-01T00:00:00Z"})
    assert (told["eta_seconds"], told["eta_reason"]) == (None, "scheduled")


@pytest.mark.usefixtures("warm_caches")
def test_run_time_is_reckoned_as_usual_where_it_is_charged(outline, settings):
    settings.RUNPOD_API_KEY, settings.RUNPOD_ENDPOINT_ID = "key", "endpoint"
    told = outline(BATCHES, {"prompt": "a fox", "settings": {"model": "runpod/sdxl"}})
    # Until it has run here, eight of ten runs take 8 s and two take 12; a second is 0.00031.
    assert told["cost_usd"] == "0.002728"


@pytest.mark.usefixtures("warm_caches")
def test_a_dry_run_takes_the_same_few_queries_for_any_number(api, django_assert_num_queries):
    for count in (1, 25):
        with django_assert_num_queries(2):  # who asks, the outlook
            answer = api.post(f"{BATCHES}?dry_run=true", {"prompt": "a fox", "count": count})
        assert answer.status_code == 200, answer.content
        assert answer.json()["total_count"] == count
