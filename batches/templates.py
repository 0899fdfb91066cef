"""Batches with placeholders, kept to be made again.

`{name}` in a prompt or a negative prompt stands for a value that is given on use; `{{` and `}}`
stand for braces. Nothing else is done with braces: no attributes, no indexes, no formats.
"""

import contextlib
import copy
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError
from django.db.models.functions import Now

from batches.forms import PLACEHOLDERS_MAX
from batches.intake import Problem, PromptAsked, Refused
from batches.models import Batch, Template
from batches.submission import (
    Asked,
    ReadyBatch,
    ask_batch_within,
    changed,
    check,
    prompts_of,
)
from generation.catalogue import PROMPT_MAX_LENGTH

TEMPLATES_MAX = 500
_TOKEN = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]{0,49})\}|[{}]")
_INVALID = (
    "A placeholder is a name in braces, such as {animal}: small letters, digits and underscores, "
    "a letter first, at most 50. Braces of the text are {{ and }}."
)

Texts = Iterator[tuple[str, dict[str, Any], str]]


class LimitReached(Exception):
    """So many are kept already."""


class TemplateInUse(Exception):
    """A schedule is made from it."""


# --- Texts --------------------------------------------------------------------------------------


def placeholders_in(text: str) -> list[str] | None:
    """The names of its placeholders, in order; `None` if it has braces that are none."""
    names = []
    for token in _TOKEN.finditer(text):
        if token[1]:
            names.append(token[1])
        elif token[0] in "{}":
            return None
    return names


def fill(text: str, values: Mapping[str, str]) -> str | None:
    """A text with its values; `None`: it would be too long for a prompt by far."""
    parts, end = [], 0
    for token in _TOKEN.finditer(text):
        parts += [text[end : token.start()], values[token[1]] if token[1] else token[0][0]]
        end = token.end()
    parts.append(text[end:])
    # Values have no spaces around them: what is cut off later is of the text.
    if sum(map(len, parts)) > PROMPT_MAX_LENGTH + len(text):
        return None
    return "".join(parts)


def escape(text: str) -> str:
    """A text without placeholders, as a template has it."""
    return text.replace("{", "{{").replace("}", "}}")


def _texts(body: dict[str, Any]) -> Texts:
    """Where placeholders may stand: place, and the object and the key that hold the text."""
    if "prompt" in body:
        yield "prompt", body, "prompt"
    for index, prompt in enumerate(body.get("prompts", ())):
        for key in ("text", "negative_prompt"):
            if key in prompt:
                yield f"prompts.{index}.{key}", prompt, key


def _placeholders_of(body: dict[str, Any]) -> list[str]:
    """In order of use, each once. Raises `Refused`."""
    names: dict[str, None] = {}
    problems = []
    for place, holder, key in _texts(body):
        found = placeholders_in(holder[key])
        if found is None:
            problems.append(Problem(f"batch.{place}", "invalid_placeholder", _INVALID))
        else:
            names |= dict.fromkeys(found)
    if problems:
        raise Refused(problems)
    if len(names) > PLACEHOLDERS_MAX:
        detail = f"A template may have at most {PLACEHOLDERS_MAX} placeholders, not {len(names)}."
        raise Refused([Problem("batch", "too_many", detail)])
    return list(names)


def _filled(body: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """The body of a request for a batch. Raises `Refused`."""
    made = copy.deepcopy(dict(body))
    problems = []
    for place, holder, key in _texts(made):
        text = fill(holder[key], values)
        if text is None:
            detail = f"With its values it has more than {PROMPT_MAX_LENGTH:,} characters."
            problems.append(Problem(f"batch.{place}", "max_length", detail))
        holder[key] = text
    if problems:
        raise Refused(problems)
    return made


# --- Use ----------------------------------------------------------------------------------------


def ask_template(
    template: Template, values: Mapping[str, str], overrides: Mapping[str, Any]
) -> Asked:
    """Plan the batch of a template, as `POST batches/` would. Raises `Refused`.

    `overrides` are of `StartOverridesSerializer`. What is wrong is named as it stands in the
    request, or where it does not stand there, as it stands in the template: `batch.…`.
    """
    names = template.placeholders
    given = {**template.defaults, **values}
    missing = [
        Problem(f"values.{name}", "required", "A value for this placeholder is required.")
        for name in names
        if name not in given
    ]
    if problems := [*_unknown(values, "values", names), *missing]:
        raise Refused(problems)
    body = _overridden(_filled(template.body, given), overrides)

    def place(at: str) -> str:
        name, _, rest = at.partition(".")
        within = overrides.get("settings", {}) if name == "settings" else overrides
        is_overridden = (rest.partition(".")[0] if name == "settings" else name) in within
        return f"overrides.{at}" if is_overridden else in_batch(at)

    return ask_batch_within(body, place)


def _unknown(values: Iterable[str], at: str, names: Sequence[str]) -> list[Problem]:
    detail = "The template has no such placeholder."
    return [
        Problem(f"{at}.{name}", "unknown_placeholder", detail, list(names))
        for name in values
        if name not in names
    ]


def _overridden(body: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A body with what goes before all that it says: also before what single prompts say."""
    over = overrides.get("settings", {})
    body = {**body, **overrides, "settings": changed(body.get("settings", {}), over)}
    if "start_at" in overrides:
        body["start_at"] = overrides["start_at"].isoformat()
    if over:
        for prompt in body.get("prompts", ()):
            own = prompt.get("settings", {})
            prompt["settings"] = {name: one for name, one in own.items() if name not in over}
    return body


def in_batch(at: str) -> str:
    """Where a field of a batch's body stands in what has it as `batch`."""
    return f"batch.{at}" if at else "batch"


@transaction.atomic
def submit_from(template_id: uuid.UUID, ready: ReadyBatch) -> Batch | None:
    """Store what was planned by `ask_template`. `None`: the template is gone."""
    # Kept until the batch names it.
    if not Template.objects.select_for_update(no_key=True).filter(pk=template_id).exists():
        return None
    return ready.submit(template_id=template_id)


# --- Writes -------------------------------------------------------------------------------------


def create_template(
    *,
    owner_id: int,
    name: str,
    description: str = "",
    body: dict[str, Any],
    defaults: Mapping[str, str] | None = None,
) -> Template:
    """Keep a template that could be used as it is. Raises `Refused` and `LimitReached`."""
    if Template.objects.owned_by(owner_id).count() >= TEMPLATES_MAX:
        raise LimitReached(f"You have {TEMPLATES_MAX} templates already; no more are kept.")
    template = Template(owner_id=owner_id, name=name, description=description, body=body)
    template.defaults = dict(defaults or {})
    _check(template)
    with _unique_name():
        template.save(force_insert=True)
    return template


def create_template_of(
    batch: Batch, *, name: str, description: str = "", defaults: Mapping[str, str] | None = None
) -> Template:
    """Keep the prompts and settings of an earlier batch as a template."""
    try:
        return create_template(
            owner_id=batch.owner_id,
            name=name,
            description=description,
            body=body_of(batch),
            defaults=defaults,
        )
    except Refused as refusal:
        told = [
            Problem("batch_id", one.code, f"{one.field}: {one.detail}", one.allowed)
            if one.field.startswith("batch.")
            else one
            for one in refusal.problems
        ]
        raise Refused(told) from refusal


@transaction.atomic
def change_template(
    *, owner_id: int, template_id: uuid.UUID, changes: Mapping[str, Any]
) -> Template | None:
    """Change some of `name`, `description`, `body` and `defaults`. `None`: it is not there."""
    rows = Template.objects.owned_by(owner_id).select_for_update(no_key=True)
    template = rows.filter(pk=template_id).first()
    if template is None:
        return None
    for name, value in changes.items():
        setattr(template, name, value)
    if {"body", "defaults"} & changes.keys():
        _check(template)
    with _unique_name():
        template.updated_at = Now()
        template.save()
    template.refresh_from_db(fields=["updated_at"])
    return template


@transaction.atomic
def delete_template(*, owner_id: int, template_id: uuid.UUID) -> bool:
    """`False`: it is not there. Raises `TemplateInUse`."""
    # Whoever is about to use it is either seen below, or finds it gone.
    rows = Template.objects.owned_by(owner_id).select_for_update()
    template = rows.filter(pk=template_id).first()
    if template is None:
        return False
    try:
        template.delete()
    except ProtectedError as error:
        raise TemplateInUse("A schedule is made from this template.") from error
    return True


@contextlib.contextmanager
def _unique_name() -> Iterator[None]:
    """Raises `Refused` where the database finds the name taken."""
    try:
        with transaction.atomic():
            yield
    except IntegrityError as error:
        if "template_name" not in str(error):
            raise
        raise Refused(
            [Problem("name", "duplicate", "You have a template of this name.")]
        ) from error


def _check(template: Template) -> None:
    """Find its placeholders, and all that would be wrong on use. Fetches and stores nothing."""
    template.placeholders = _placeholders_of(template.body)
    if unknown := _unknown(template.defaults, "defaults", template.placeholders):
        raise Refused(unknown)
    # Where there is no default, a placeholder stands for itself.
    values = {name: f"{{{name}}}" for name in template.placeholders} | template.defaults
    asked = ask_batch_within(_filled(template.body, values), in_batch)
    check(template.owner_id, asked)


def body_of(batch: Batch) -> dict[str, Any]:
    """The request for a batch like one that there is, without its seeds."""
    settings, prompts = prompts_of(list(batch.generations.order_by("index")))
    body = {
        "name": batch.name,
        "prompts": [_prompt(one) for one in prompts],
        "style": batch.style,
        "genre": batch.genre,
        "settings": settings,
        "priority": batch.priority,
        "tags": batch.tags,
    }
    return {name: one for name, one in body.items() if one not in ("", [], {})}


def _prompt(one: PromptAsked) -> dict[str, Any]:
    fields = {
        "text": escape(one.text),
        "negative_prompt": escape(one.negative_prompt),
        "name": one.name,
        "custom_id": one.custom_id,
        "metadata": dict(one.metadata),
        "settings": dict(one.settings),
    }
    return {name: value for name, value in fields.items() if value not in ("", {})}
