"""From the body of a request to stored work: the one way for all who ask for some.

    ask_batch       checks the form and plans every prompt; reads the catalogue, stores nothing
    batch_ready     takes in the pictures that it names; in no transaction
    ReadyBatch      stores the batch, in a transaction of the caller's or its own

Requests for more of what there is (`ask_similar`, `ask_again`) and those that stand in another
one (`ask_batch_within`) give the same.

Raises `Refused` or the forms' `ValidationError`; then nothing is stored. Generations alike.
"""

import contextlib
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db import connection
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.settings import api_settings

from batches import lifecycle
from batches.forms import (
    NewBatchSerializer,
    NewGenerationSerializer,
    StrictSerializer,
    check_batch_size,
)
from batches.intake import (
    NOT_SETTINGS,
    Plan,
    Problem,
    PromptAsked,
    Refused,
    plan_generations,
    sources_by_place,
    with_ids,
)
from batches.models import PRIORITY_BATCH, Batch, Generation, Image
from batches.planning import Planned, checked, planned
from batches.references import Wanted


def read_form(form_class: type[StrictSerializer], body: Any) -> Any:
    """A form that is valid. Raises ValidationError."""
    form = form_class(data=body)
    form.is_valid(raise_exception=True)
    return form


def database_now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        moment: datetime = cursor.fetchone()[0]
        return moment


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has its form. `fields` are the form's, `plan` may hold problems, `places`
    are the pictures by where they stand in the request."""

    fields: Mapping[str, Any]
    plan: Collection[Plan | Problem]
    places: Mapping[str, Wanted]

    @property
    def problems(self) -> list[Problem]:
        return [one for one in self.plan if isinstance(one, Problem)]


def ask_batch(body: Any) -> Asked:
    """Read and plan the request for a batch, as `POST batches/` takes it."""
    form = read_form(NewBatchSerializer, body)
    fields, prompts = form.validated_data, form.asked()
    at = "prompts.{}." if "prompts" in fields else ""
    woven = {"style": fields["style"], "genre": fields["genre"]}
    plan: Collection[Plan | Problem] = plan_generations(prompts, fields["settings"], **woven, at=at)
    return _in_time(Asked(fields, plan, sources_by_place(prompts, fields["settings"], at=at)))


def ask_batch_within(body: Any, place: Callable[[str], str]) -> Asked:
    """As `ask_batch`, of a body that is part of another request, or comes of it.

    `place` tells where a field of the body stands in that; the body itself is "". Raises
    `Refused`, for a form that is not valid too.
    """
    try:
        asked = ask_batch(body)
    except ValidationError as error:
        raise Refused(
            [replace(one, field=place(one.field)) for one in problems_of(error)]
        ) from error
    return replace(
        asked,
        plan=[
            replace(one, field=place(one.field))
            if isinstance(one, Problem)
            else replace(one, references_at=place(one.references_at))
            for one in asked.plan
        ],
        places={place(at): one for at, one in asked.places.items()},
    )


def problems_of(error: ValidationError) -> list[Problem]:
    """What is wrong with a form, by dotted path."""
    return list(_problems_in(error.detail, ""))


def _problems_in(detail: Any, at: str) -> Iterator[Problem]:
    if isinstance(detail, ErrorDetail):
        yield Problem(at, str(detail.code), str(detail))
        return
    if isinstance(detail, Mapping):
        items: Iterable[tuple[Any, Any]] = detail.items()
    else:
        # Either what is wrong with one field, or lists and mappings of what is with its items.
        items = ((None if isinstance(one, ErrorDetail) else n, one) for n, one in enumerate(detail))
    for name, one in items:
        is_own = name is None or name == api_settings.NON_FIELD_ERRORS_KEY
        yield from _problems_in(one, at if is_own else f"{at}.{name}".lstrip("."))


def check(owner_id: int, asked: Asked) -> list[Plan]:
    """The plans of a request, as far as can be told without fetching or storing anything.

    Raises `Refused`.
    """
    return checked(owner_id, asked.plan, asked.places)


def ask_similar(image: Image, changes: Mapping[str, Any]) -> Asked:
    """Plan images like one: its prompt and its settings, as they were asked, with new seeds.

    `changes` are of `SimilarImageSerializer`; the image knows its generation.
    """
    generation = image.generation
    asked = {name: one for name, one in generation.settings.items() if name != "num_outputs"}
    prompt = PromptAsked(
        text=changes.get("prompt", generation.prompt),
        negative_prompt=changes.get("negative_prompt", generation.negative_prompt),
    )
    prompts = [replace(prompt, seed=changes.get("seed"))] + [prompt] * (changes["count"] - 1)
    kept = {"style": generation.style, "genre": generation.genre}
    fields = {**NOTHING_GIVEN, **kept, **changes, "settings": changed(asked, changes["settings"])}
    return _ask_more(fields, prompts, [generation])


def ask_again(batch: Batch, changes: Mapping[str, Any]) -> Asked:
    """Plan the prompts of a batch anew, with new seeds.

    `changes` are of `SimilarBatchSerializer`.
    """
    generations = list(batch.generations.order_by("index"))
    check_batch_size("prompts", len(generations))
    shared, prompts = prompts_of(generations)
    overrides = changes["settings"]
    own = [
        replace(one, settings={k: v for k, v in one.settings.items() if k not in overrides})
        for one in prompts
    ]
    kept = {name: getattr(batch, name) for name in ("name", "style", "genre", "tags", "priority")}
    fields = {**NOTHING_GIVEN, **kept, **changes, "settings": changed(shared, overrides)}
    return _ask_more(fields, own, generations)


NOTHING_GIVEN: Mapping[str, Any] = {
    "name": "",
    "tags": [],
    "priority": PRIORITY_BATCH,
    "start_at": None,
}


def changed(asked: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others before them, key by key; `None` takes one back."""
    return {name: one for name, one in {**asked, **overrides}.items() if one is not None}


def prompts_of(generations: Sequence[Generation]) -> tuple[dict[str, Any], list[PromptAsked]]:
    """Generations as they were asked, without their seeds; the settings common to all first."""
    every = [generation.settings for generation in generations]
    shared = {
        name: one
        for name, one in every[0].items()
        if all(name in other and other[name] == one for other in every)
    }
    return shared, [
        PromptAsked(
            text=generation.prompt,
            negative_prompt=generation.negative_prompt,
            name=generation.name,
            custom_id=generation.custom_id,
            metadata=generation.metadata,
            settings={k: v for k, v in generation.settings.items() if k not in shared},
        )
        for generation in generations
    ]


def _ask_more(
    fields: Mapping[str, Any], prompts: Sequence[PromptAsked], like: Iterable[Generation]
) -> Asked:
    """Plan prompts that do not stand in the request."""
    shared = fields["settings"]
    woven = {"style": fields["style"], "genre": fields["genre"]}
    taken = {one.seed for one in like if one.seed is not None}
    plan: Collection[Plan | Problem] = plan_generations(
        prompts, shared, **woven, at="", taken=taken
    )

    def placed(one: Problem) -> Problem:
        # It is another model that does not take what is kept.
        is_kept = one.field in NOT_SETTINGS and one.field not in fields
        return replace(one, field="settings.model") if is_kept else one

    told = [placed(one) if isinstance(one, Problem) else one for one in plan]
    return _in_time(Asked(fields, told, sources_by_place(prompts, shared)))


def _in_time(asked: Asked) -> Asked:
    start_at = asked.fields["start_at"]
    if start_at is None or start_at > database_now():
        return asked
    past = Problem("start_at", "in_the_past", "Must be a time to come.")
    return replace(asked, plan=[*asked.problems, past])


def ask_generation(
    body: Any, form_class: type[NewGenerationSerializer] = NewGenerationSerializer
) -> Asked:
    """Read and plan the request for a single image, as `POST generations/` takes it."""
    form = read_form(form_class, body)
    fields, prompts, flat = form.validated_data, [form.asked()], form.is_flat
    woven = {"style": fields["style"], "genre": fields["genre"]}
    plan: Collection[Plan | Problem] = plan_generations(
        prompts, fields["settings"], **woven, at="", flat=flat, splits=False
    )
    return Asked(fields, plan, sources_by_place(prompts, fields["settings"], flat=flat))


class ReadyBatch:
    """A batch that can be stored, pictures and all."""

    def __init__(self, owner_id: int, asked: Asked, plan: Planned) -> None:
        self._owner_id, self._fields, self._plan = owner_id, asked.fields, plan

    def submit(self, *, template_id: uuid.UUID | None = None) -> Batch:
        """Store it, in line or for later; `template_id` is what it was made from."""
        fields = self._fields
        names = ("name", "style", "genre", "tags", "priority", "start_at")
        with self._plan.settled() as (generations, ids):
            return lifecycle.submit_batch(
                owner_id=self._owner_id,
                generations=generations,
                settings_asked=with_ids(fields["settings"], ids),
                template_id=template_id,
                **{name: fields[name] for name in names},
            )


class ReadyGeneration:
    """A single generation that can be stored, pictures and all."""

    def __init__(self, owner_id: int, asked: Asked, plan: Planned) -> None:
        self._owner_id, self._fields, self._plan = owner_id, asked.fields, plan

    def submit(self) -> Generation:
        with self._plan.settled() as ((generation,), _):
            return lifecycle.submit_generation(
                owner_id=self._owner_id,
                generation=generation,
                priority=self._fields["priority"],
            )


@contextlib.contextmanager
def batch_ready(owner_id: int, asked: Asked) -> Iterator[ReadyBatch]:
    """Take in the pictures of a batch. Not to be called in a transaction. Raises `Refused`."""
    with planned(owner_id, asked.plan, asked.places) as plan:
        yield ReadyBatch(owner_id, asked, plan)


@contextlib.contextmanager
def generation_ready(owner_id: int, asked: Asked) -> Iterator[ReadyGeneration]:
    """As `batch_ready`, for a single generation."""
    with planned(owner_id, asked.plan, asked.places) as plan:
        yield ReadyGeneration(owner_id, asked, plan)
