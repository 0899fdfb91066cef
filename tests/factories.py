"""Rows for tests, made the way the product makes them."""

import itertools
from typing import Any

from django.contrib.auth import get_user_model
from knox.models import get_token_model

from batches import lifecycle
from batches.lifecycle import NewGeneration
from batches.models import Batch, Generation

MODEL = "black-forest-labs/flux-schnell"
_numbers = itertools.count(1)


def make_user(username: str = "", **overrides: Any) -> Any:
    return get_user_model().objects.create_user(username or f"user{next(_numbers)}", **overrides)


def make_token(user: Any) -> str:
    return get_token_model().objects.create(user)[1]


def new_generation(**overrides: Any) -> NewGeneration:
    fields: dict[str, Any] = {
        "prompt": "a lighthouse",
        "final_prompt": "a lighthouse",
        "model": MODEL,
        "provider": "replicate",
        "settings": {"model": MODEL},
        "input": {"prompt": "a lighthouse"},
        "seed": 7,
    }
    return NewGeneration(**{**fields, **overrides})


def make_batch(owner: Any = None, size: int = 3, **overrides: Any) -> Batch:
    owner = owner or make_user()
    return lifecycle.submit_batch(
        owner_id=owner.pk,
        generations=[new_generation(prompt=f"picture {number}") for number in range(size)],
        settings_asked={"model": MODEL},
        **overrides,
    )


def make_generation(owner: Any = None, **overrides: Any) -> Generation:
    owner = owner or make_user()
    priority = overrides.pop("priority", 6)
    return lifecycle.submit_generation(
        owner_id=owner.pk, generation=new_generation(**overrides), priority=priority
    )
