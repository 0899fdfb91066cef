"""From the body of a request to stored work: the one way for all who ask for some.

    ask_batch       checks the form and plans every prompt; reads the catalogue, stores nothing
    batch_ready     takes in the pictures that it names; in no transaction
    ReadyBatch      stores the batch, in a transaction of the caller's or its own

Raises `Refused` or the forms' `ValidationError`; then nothing is stored. Generations alike.
"""

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db import connection

from batches import lifecycle
from batches.forms import NewBatchSerializer, NewGenerationSerializer, StrictSerializer
from batches.intake import (
    Plan,
    Problem,
    plan_generations,
    sources_by_place,
    with_ids,
)
from batches.models import Batch, Generation
from batches.planning import Planned, planned
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
    asked = Asked(fields, plan, sources_by_place(prompts, fields["settings"], at=at))
    if fields["start_at"] is not None and fields["start_at"] <= database_now():
        past = Problem("start_at", "in_the_past", "Must be a time to come.")
        asked = replace(asked, plan=[*asked.problems, past])
    return asked


def ask_generation(body: Any) -> Asked:
    """Read and plan the request for a single image, as `POST generations/` takes it."""
    form = read_form(NewGenerationSerializer, body)
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
