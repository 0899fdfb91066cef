"""From what is asked to what will be generated, or to what is wrong with it.

Nothing is stored here. Each prompt with the settings that apply to it becomes a `NewGeneration`
in its model's own parameters; problems name the field as it stands in the request.
"""

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random, SystemRandom
from typing import Any, cast

from django.conf import settings

from batches.catalogue import get_model, load_models
from batches.lifecycle import NewGeneration
from batches.models import Generation, GenerationKind
from batches.references import Kind, Source
from generation.catalogue import Model, ParameterProblem, Resolved

DEFAULT_MODEL = "black-forest-labs/flux-schnell"
# Every model with a seed takes these; 0 means "choose one" to some.
SEED_MIN, SEED_MAX = 1, 2**31 - 1
# Settings that are no model's business: which it is, and what is done with what it makes.
NOT_THE_MODELS = ("model", "resize")
# What a model is asked beside the settings.
NOT_SETTINGS = ("prompt", "negative_prompt", "seed", "kind")
# Of the reference images of one submission together, where there is a limit. RunPod takes requests
# of 10 MB, with the images in base64. Source: RunPod, operation reference, read 2026-11-20
REFERENCES_MAX_BYTES = {"runpod": 7_000_000}


@dataclass(frozen=True, slots=True)
class Problem:
    """`field` is a dotted path in the request. `allowed` says what would be accepted."""

    field: str
    code: str
    detail: str
    allowed: Any = None


class Refused(Exception):
    """A request that was understood and cannot be done as it is. Nothing of it is stored."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{one.field}: {one.detail}" for one in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class PromptAsked:
    """One prompt of a request. `settings` override the shared ones, key by key."""

    text: str
    negative_prompt: str = ""
    seed: int | None = None
    name: str = ""
    custom_id: str = ""
    kind: str = ""  # as it follows from the references
    metadata: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan(NewGeneration):
    """`references_at` is where the references stand in the request, or would. `size_px` is the
    (width, height) to expect of what is stored, `None` where it is not known. `is_seed_random`:
    nobody asked for this seed."""

    references_at: str = ""
    size_px: tuple[int, int] | None = None
    is_seed_random: bool = False


def weave(prompt: str, *, style: str = "", genre: str = "") -> str:
    """The prompt with its descriptors, as it is sent."""
    parts = [prompt.strip(), f"{style} style" if style else "", genre]
    return ", ".join(part for part in parts if part)


def unavailable_reason(model: Model) -> str:
    """Why a model cannot be used on this installation; empty when it can."""
    if not model.is_active:
        return model.status_note or f"The model is {model.status}."
    return unconfigured_reason(model.provider, endpoint=model.endpoint)


def unconfigured_reason(provider: str, *, endpoint: str | None = None) -> str:
    """Why a provider cannot be used here; empty when it can. `endpoint` is the model's own."""
    if provider not in settings.PROVIDER_POOLS:
        return f"There is no provider {provider!r}."
    if provider == "replicate" and not settings.REPLICATE_API_TOKEN:
        return "No credentials for replicate are configured."
    if provider == "runpod" and not settings.RUNPOD_API_KEY:
        return "No credentials for runpod are configured."
    if provider == "runpod" and not (endpoint or settings.RUNPOD_ENDPOINT_ID):
        return "No endpoint of runpod is configured."
    if provider == "comfyui" and not settings.COMFYUI_URL:
        return "No server for comfyui is configured."
    return ""


def plan_generations(
    prompts: Sequence[PromptAsked],
    shared: Mapping[str, Any],
    *,
    style: str = "",
    genre: str = "",
    at: str = "prompts.{}.",
    flat: bool = False,
    splits: bool = True,
    taken: Collection[int] = (),
    rand: Random | None = None,
) -> list[Plan] | list[Problem]:
    """Plan every prompt, or list every problem.

    `at` is where prompt number n stands. `flat`: the settings stand beside the prompt, and the
    model is called `model_id` there. `splits`: what a model cannot make with one submission
    becomes several generations. `taken` are seeds that are not chosen.
    """
    rand = rand or SystemRandom()
    planned: list[Plan] = []
    problems: dict[tuple[str, str], Problem] = {}
    seeds = {prompt.seed for prompt in prompts}.union(taken)
    asked = [{**shared, **prompt.settings} for prompt in prompts]
    counts = [_submission_count(each) if splits else 1 for each in asked]
    total, limit = sum(counts), settings.MAX_BATCH_SIZE
    if total > limit and max(counts) > 1:
        index = next(index for index, count in enumerate(counts) if count > 1)
        field = _placer(prompts[index], at.format(index), flat)("num_outputs")
        detail = f"A batch may have at most {limit} submissions; these images take {total}."
        problems[field, "too_many"] = Problem(field, "too_many", detail)
    for index, prompt in enumerate(prompts):
        place = _placer(prompt, at.format(index), flat)
        final_prompt = weave(prompt.text, style=style, genre=genre)
        submissions = _submissions(asked[index]) if splits else [asked[index]]
        # Nothing is made of a request with problems, and the first shows what else is wrong.
        for number, each in enumerate(islice(submissions, 1 if problems else None)):
            # As with variations, a seed is that of the first.
            one = replace(prompt, seed=None) if number else prompt
            answer = _resolve(one, each, final_prompt, place, seeds, rand)
            if isinstance(answer, Plan):
                planned.append(replace(answer, style=style, genre=genre))
            else:
                # What is wrong with the shared settings is wrong for every prompt, and told once.
                problems |= {(problem.field, problem.code): problem for problem in answer}
    return list(problems.values()) or planned


def _outputs(asked: Mapping[str, Any]) -> tuple[int, int]:
    """How many images are asked for, and how many of them one submission can make."""
    count: int = asked.get("num_outputs", 1)
    model = get_model(asked.get("model") or DEFAULT_MODEL)
    return count, count if model is None else min(count, model.max_count)


def _submission_count(asked: Mapping[str, Any]) -> int:
    count, at_once = _outputs(asked)
    return -(-count // at_once)


def _submissions(asked: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of each submission that it takes."""
    count, at_once = _outputs(asked)
    if count == at_once:
        yield asked
        return
    for made in range(0, count, at_once):
        yield {**asked, "num_outputs": min(at_once, count - made)}


def replan(
    generations: Sequence[Generation], overrides: Mapping[str, Any], *, rand: Random | None = None
) -> dict[uuid.UUID, Plan] | list[Problem]:
    """Plan generations anew with some of their settings changed, or list every problem.

    `overrides` go before a generation's own settings, key by key; `None` takes one back. Its
    prompts stay as they are, and its seed does if the model takes one. By generation's id; what is
    wrong is told once.
    """
    rand = rand or SystemRandom()
    planned: dict[uuid.UUID, Plan] = {}
    problems: dict[tuple[str, str], Problem] = {}
    seeds = {generation.seed for generation in generations}
    for generation in generations:
        merged = {"model": generation.model, **generation.settings, **overrides}
        asked = {name: value for name, value in merged.items() if value is not None}
        model = get_model(asked["model"])
        prompt = PromptAsked(
            text=generation.prompt,
            negative_prompt=generation.negative_prompt,
            seed=generation.seed if model and model.supports_seed else None,
            name=generation.name,
            custom_id=generation.custom_id,
            metadata=generation.metadata,
        )
        answer = _resolve(prompt, asked, generation.final_prompt, _place_in_retry, seeds, rand)
        if isinstance(answer, Plan):
            planned[generation.pk] = answer
        else:
            problems |= {(problem.field, problem.code): problem for problem in answer}
    return list(problems.values()) or planned


def _place_in_retry(name: str) -> str:
    # Prompts and seed are not in the request: it is another model that does not take them.
    return f"settings.{'model' if name in NOT_SETTINGS else name}"


def check_models(generations: Sequence[Generation]) -> list[Problem]:
    """What keeps generations from being made again just as they are."""
    found = (
        _find_model(model_id, "settings.model")
        for model_id in sorted({generation.model for generation in generations})
    )
    return [answer for answer in found if isinstance(answer, Problem)]


def _find_model(model_id: str, field: str) -> Model | Problem:
    model = get_model(model_id)
    if model is None:
        known = sorted(load_models())
        return Problem(field, "unknown_model", f"There is no model {model_id!r}.", known)
    if reason := unavailable_reason(model):
        return Problem(field, "model_unavailable", f"{model_id} is not available: {reason}")
    return model


def _placer(prompt: PromptAsked, at: str, flat: bool) -> Callable[[str], str]:
    """Where the fields of a prompt stand in the request."""

    def place(name: str) -> str:
        if name in NOT_SETTINGS:
            own = {"prompt": "text"}.get(name, name) if at.startswith("prompts") else name
            return f"{at}{own}"
        if flat:
            return {"model": "model_id"}.get(name, name)
        top = name.split(".")[0]
        return f"{at}settings.{name}" if top in prompt.settings else f"settings.{name}"

    return place


def _resolve(
    prompt: PromptAsked,
    asked: Mapping[str, Any],
    final_prompt: str,
    place: Callable[[str], str],
    seeds: set[int | None],
    rand: Random,
) -> Plan | list[Problem]:
    """One prompt in its model's own parameters. `place` tells where a field stands."""
    model = _find_model(asked.get("model") or DEFAULT_MODEL, place("model"))
    if isinstance(model, Problem):
        return [model]
    seed = prompt.seed
    if seed is None and model.supports_seed:
        # Chosen here, so that it is on record and a retry asks for the same picture.
        while (seed := rand.randint(SEED_MIN, SEED_MAX)) in seeds:
            pass
        seeds.add(seed)
    asked = {name: value for name, value in asked.items() if (name, value) != ("references", [])}
    kind = kind_of(len(asked.get("references", ())))
    request = {
        **{name: value for name, value in asked.items() if name not in NOT_THE_MODELS},
        "prompt": final_prompt,
        "negative_prompt": prompt.negative_prompt or None,
        "seed": seed,
    }
    resolved = model.resolve(request)
    problems = [_problem(one, place) for one in resolved] if isinstance(resolved, list) else []
    if prompt.kind and prompt.kind != kind:
        detail = "'generate' takes no reference image, 'derive' takes one, 'compose' several."
        problems.append(Problem(place("kind"), "conflict", detail, [kind.value]))
    resize = asked.get("resize")
    if resize and isinstance(resolved, Resolved) and resolved.output_format == "svg":
        detail = f"{model.id} makes drawings (SVG), which have no size in pixels to change."
        problems.append(Problem(place("resize"), "unsupported", detail))
    if problems or isinstance(resolved, list):
        return problems
    size_px = (resize["width"], resize["height"]) if resize else _size_px(resolved)
    return Plan(
        prompt=prompt.text,
        final_prompt=final_prompt,
        negative_prompt=prompt.negative_prompt,
        seed=seed,
        name=prompt.name,
        custom_id=prompt.custom_id,
        metadata=dict(prompt.metadata),
        model=model.id,
        provider=model.provider,
        settings={**asked, "model": model.id},
        input=resolved.input,
        kind=kind,
        output_count=resolved.output_count,
        fallbacks=_fallbacks(model, request, is_resized=bool(resize)),
        references_at=place("references"),
        size_px=size_px,
        is_seed_random=seed != prompt.seed,
    )


def _size_px(resolved: Resolved) -> tuple[int, int] | None:
    width_px, height_px = resolved.width_px, resolved.height_px
    return None if width_px is None or height_px is None else (width_px, height_px)


def _fallbacks(
    model: Model, request: Mapping[str, Any], *, is_resized: bool
) -> list[dict[str, Any]]:
    """The other models that can do the same, in their order; those that cannot are left out."""
    ways = []
    for other in map(get_model, model.fallbacks):
        if other is None or unavailable_reason(other):
            continue
        resolved = other.resolve(request)
        if isinstance(resolved, Resolved) and not (is_resized and resolved.output_format == "svg"):
            ways.append({"model": other.id, "provider": other.provider, "input": resolved.input})
    return ways


def kind_of(reference_count: int) -> GenerationKind:
    if reference_count == 0:
        return GenerationKind.GENERATE
    return GenerationKind.DERIVE if reference_count == 1 else GenerationKind.COMPOSE


# --- Reference images ---------------------------------------------------------------------------
#
# `settings.references` is a list of {"id" | "image_id" | "url": str}. They are taken in when there
# is nothing else wrong with a request; from then on all of them are known by their ids.


def sources_of(asked: Mapping[str, Any]) -> list[Source]:
    """The pictures that settings name, in order."""
    return [
        Source(cast(Kind, kind), value)
        for one in asked.get("references") or ()
        for kind, value in one.items()
    ]


def sources_by_place(
    prompts: Sequence[PromptAsked], shared: Mapping[str, Any], *, at: str = "", flat: bool = False
) -> dict[str, Source]:
    """The pictures that a request names, by where they stand in it; `at` and `flat` as above."""
    asked = [("" if flat else "settings.", shared)]
    asked += [
        (f"{at.format(index)}settings.", prompt.settings) for index, prompt in enumerate(prompts)
    ]
    return {
        f"{place}references.{number}": one
        for place, each in asked
        for number, one in enumerate(sources_of(each))
    }


def with_ids(asked: Mapping[str, Any], ids: Mapping[Any, uuid.UUID]) -> dict[str, Any]:
    """Settings that name their pictures by id."""
    sources = sources_of(asked)
    named = [{"id": str(ids[one])} for one in sources]
    return {**asked, "references": named} if named else {**asked}


def fitting(plan: Plan, size_bytes: Mapping[Any, int]) -> Plan | Problem:
    """The plan without the fallbacks that cannot take its pictures, if its own provider can.

    `size_bytes` of each picture, by how the settings name it.
    """
    total = sum(size_bytes[one] for one in sources_of(plan.settings))
    limit = REFERENCES_MAX_BYTES.get(plan.provider, total)
    if total > limit:
        detail = (
            f"{plan.model} takes reference images of at most {limit:,} bytes together, "
            f"and these have {total:,}."
        )
        return Problem(plan.references_at, "too_large", detail, {"max_bytes": limit})
    able = [
        way for way in plan.fallbacks if total <= REFERENCES_MAX_BYTES.get(way["provider"], total)
    ]
    return replace(plan, fallbacks=able)


def with_references(new: NewGeneration, ids: Mapping[Any, uuid.UUID]) -> NewGeneration:
    """A plan with the ids of the pictures that its settings name."""
    own = tuple(ids[one] for one in sources_of(new.settings))
    return replace(new, settings=with_ids(new.settings, ids), references=own)


def _problem(problem: ParameterProblem, place: Callable[[str], str]) -> Problem:
    return Problem(place(problem.field), problem.code, problem.message, problem.allowed)
