"""What happens to batches in these tests, by the functions that do it in the product."""

import hashlib

from django.core.files.base import ContentFile

from batches import lifecycle
from batches.models import Generation, Image
from batches.scheduling import admit
from generation.provider import ErrorClass, Failure
from tests.factories import picture


def start(batch):
    """Admit a batch's generations; they must fit under the caps."""
    admit()
    generations = list(batch.generations.order_by("index"))
    assert all(one.status == "processing" for one in generations)
    return generations


def complete(generation):
    """The image that a running generation is completed by."""
    Generation.objects.filter(pk=generation.pk).update(status="downloading")
    generation.refresh_from_db()
    data = picture()
    image = Image(
        generation=generation,
        owner_id=generation.owner_id,
        format="png",
        width=8,
        height=6,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    image.file.save("0.png", ContentFile(data), save=False)
    image.thumbnail.save("0-thumbnail.webp", ContentFile(picture("webp")), save=False)
    assert lifecycle.complete_generation(generation=generation, images=[image])
    return image


def fail(generation, message="No."):
    generation.refresh_from_db()
    assert lifecycle.fail_generation(
        generation=generation,
        attempt=None,
        failure=Failure(ErrorClass.CONTENT_POLICY, message),
        outside_chain=True,
    )


def kinds(messages):
    return [one["type"] for one in messages]


def has_ended(message):
    return message.get("status") in ("completed", "partial", "failed", "cancelled") and (
        message["type"] == "batch_progress"
    )
