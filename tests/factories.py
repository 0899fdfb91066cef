"""Rows for tests, made the way the product makes them."""

import hashlib
import io
import itertools
from typing import Any

import PIL.Image
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.db.models.functions import Now
from knox.models import get_token_model

from batches import lifecycle
from batches.lifecycle import NewGeneration
from batches.models import (
    Batch,
    Generation,
    GenerationStatus,
    Image,
    Lane,
    Publication,
    PublicationStatus,
    Reference,
    ReviewStatus,
)

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


def picture(image_format: str = "png", size: tuple[int, int] = (8, 6)) -> bytes:
    """The bytes of a real picture."""
    stored = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 40, 40)).save(stored, format=image_format)
    return stored.getvalue()


def make_image(generation: Generation | None = None, *, image_format: str = "png") -> Image:
    """A stored image of a generation that is completed by it."""
    generation = generation or make_generation()
    Generation.objects.filter(pk=generation.pk).update(
        status=GenerationStatus.COMPLETED,
        progress=100,
        attempt_count=1,
        started_at=Now(),
        downloading_at=Now(),
        finished_at=Now(),
    )
    Lane.objects.dequeue(generation.owner_id, 1)
    data = picture(image_format)
    image = Image(
        generation=generation,
        owner_id=generation.owner_id,
        batch_id=generation.batch_id,
        model=generation.model,
        format=image_format,
        width=8,
        height=6,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    image.file.save(f"0.{image_format}", ContentFile(data), save=False)
    image.thumbnail.save("0-thumbnail.webp", ContentFile(picture("webp")), save=False)
    image.save()
    Image.objects.describe(1)
    image.refresh_from_db(fields=["search"])
    return image


def approve(*images: Image) -> list[Image]:
    """Images as they are once their owner has approved them."""
    Image.objects.filter(pk__in=[image.pk for image in images]).update(
        review_status=ReviewStatus.APPROVED, reviewed_at=Now()
    )
    for image in images:
        image.refresh_from_db(fields=["review_status", "reviewed_at"])
    return list(images)


def make_publication(
    image: Image | None = None, status: str = PublicationStatus.PUBLISHING, **overrides: Any
) -> Publication:
    """A publication of an image which has come as far as `status`; it takes no account."""
    image = image or make_image()
    fields: dict[str, Any] = {
        "owner_id": image.owner_id,
        "image": image,
        "channel": "printify",
        "status": status,
        "product_type": "mug",
        "title": "A mug",
    }
    if status != PublicationStatus.PUBLISHING:
        fields["finished_at"] = Now()
    if status == PublicationStatus.PUBLISHED:
        fields["published_at"] = Now()
    if status == PublicationStatus.PUBLISH_FAILED:
        fields["error_code"] = "invalid"
    publication = Publication.objects.create(**{**fields, **overrides})
    publication.refresh_from_db(fields=["finished_at", "published_at"])
    return publication


def make_reference(owner: Any = None, colour: str = "red") -> Reference:
    """A stored reference image."""
    owner = owner or make_user()
    stored = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), colour).save(stored, format="png")
    data = stored.getvalue()
    reference = Reference(
        owner=owner,
        format="png",
        width=8,
        height=6,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    reference.file.save("original.png", ContentFile(data), save=False)
    reference.thumbnail.save("thumbnail.webp", ContentFile(picture("webp")), save=False)
    reference.save()
    return reference
