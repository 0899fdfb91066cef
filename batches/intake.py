"""From what is asked to what will be generated, or to what is wrong with it.

Nothing is stored here. Each prompt with the settings that apply to it becomes a `NewGeneration`
in its model's own parameters; problems name the field as it stands in the request.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Any

from django.conf import settings

from batches.lifecycle import NewGeneration
from batches.models import Generation
from generation.catalogue import Model, ParameterProblem, get_model, load_models

DEFAULT_MODEL = "black-forest-labs/flux-schnell"
# Every model with a seed takes these; 0 means "choose one" to some.
SEED_MIN, SEED_MAX = 1, 2**31 - 1
# What a model is asked beside the settings.
NOT_SETTINGS = ("prompt", "negative_prompt", "seed")


@dataclass(frozen=True, slots=True)
class Problem:
    """`field` is a dotted path in the request. `allowed` says what would be accepted."""

    field: str
    code: str
    detail: str
    allowed: Any = None


@dataclass(frozen=True, slots=True)
class PromptAsked:
    """One prompt of a request. `settings` override the shared ones, key by key."""

    text: str
    negative_prompt: str = ""
    seed: int | None = None
    name: str = ""
    custom_id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def weave(prompt: str, *, style: str = "", genre: str = "") -> str:
    """The prompt with its descriptors, as it is sent."""
    parts = [prompt.strip(), f"{style} style" if style else "", genre]
    return ", ".join(part for part in parts if part)


def unavailable_reason(model: Model) -> str:
    """Why a model cannot be used on this installation; empty when it can."""
    if not model.is_active:
        return model.status_note or f"The model is {model.status}."
    if model.provider == "replicate" and not settings.REPLICATE_API_TOKEN:
        return "No credentials for replicate are configured."
    return ""


def plan_generations(
    prompts: Sequence[PromptAsked],
    shared: Mapping[str, Any],
    *,
    style: str = "",
    genre: str = "",
    at: str = "prompts.{}.",
    flat: bool = False,
    rand: Random | None = None,
) -> list[NewGeneration] | list[Problem]:
    """Plan every prompt, or list every problem.

    `at` is where prompt number n stands. `flat`: the settings stand beside the prompt, and the
    model is called `model_id` there.
    """
    rand = rand or SystemRandom()
    planned: list[NewGeneration] = []
    problems: dict[tuple[str, str], Problem] = {}
    seeds = {prompt.seed for prompt in prompts}
    for index, prompt in enumerate(prompts):
        answer = _plan(prompt, shared, style, genre, at.format(index), flat, seeds, rand)
        if isinstance(answer, NewGeneration):
            planned.append(answer)
        else:
            # What is wrong with the shared settings is wrong for every prompt, and told once.
            problems |= {(problem.field, problem.code): problem for problem in answer}
    return list(problems.values()) or planned


def replan(
    generations: Sequence[Generation], overrides: Mapping[str, Any], *, rand: Random | None = None
) -> dict[uuid.UUID, NewGeneration] | list[Problem]:
    """Plan generations anew with some of their settings changed, or list every problem.

    `overrides` go before a generation's own settings, key by key; `None` takes one back. Its
    prompts stay as they are, and its seed does if the model takes one. By generation's id; what is
    wrong is told once.
    """
    rand = rand or SystemRandom()
    planned: dict[uuid.UUID, NewGeneration] = {}
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
        if isinstance(answer, NewGeneration):
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
        return Problem(field, "model_unavailable", reason)
    return model


def _plan(
    prompt: PromptAsked,
    shared: Mapping[str, Any],
    style: str,
    genre: str,
    at: str,
    flat: bool,
    seeds: set[int | None],
    rand: Random,
) -> NewGeneration | list[Problem]:
    def place(name: str) -> str:
        if name in NOT_SETTINGS:
            own = {"prompt": "text"}.get(name, name) if at.startswith("prompts") else name
            return f"{at}{own}"
        if flat:
            return {"model": "model_id"}.get(name, name)
        top = name.split(".")[0]
        return f"{at}settings.{name}" if top in prompt.settings else f"settings.{name}"

    final_prompt = weave(prompt.text, style=style, genre=genre)
    return _resolve(prompt, {**shared, **prompt.settings}, final_prompt, place, seeds, rand)


def _resolve(
    prompt: PromptAsked,
    asked: Mapping[str, Any],
    final_prompt: str,
    place: Callable[[str], str],
    seeds: set[int | None],
    rand: Random,
) -> NewGeneration | list[Problem]:
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
    resolved = model.resolve(
        {
            **{name: value for name, value in asked.items() if name != "model"},
            "prompt": final_prompt,
            "negative_prompt": prompt.negative_prompt or None,
            "seed": seed,
        }
    )
    if isinstance(resolved, list):
        return [_problem(problem, place) for problem in resolved]
    return NewGeneration(
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
    )


def _problem(problem: ParameterProblem, place: Callable[[str], str]) -> Problem:
    return Problem(place(problem.field), problem.code, problem.message, problem.allowed)
