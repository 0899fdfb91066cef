"""What happens to batches in these tests, by the functions that do it in the product."""

import asyncio
import hashlib
import threading

from django.core.files.base import ContentFile
from django.db import connections

from batches import lifecycle
from batches.live import hub as hub_module
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


async def close_hub(hub):
    """End all that a hub does, and the connections that its threads have to the database."""
    for task in hub._tasks:
        task.cancel()
    await asyncio.gather(*hub._tasks, return_exceptions=True)
    for executor, count in ((hub._looker, 1), (hub._readers, hub_module.READERS)):
        # Each thread closes its own, so none may take two of these calls.
        together = threading.Barrier(count)
        for _ in range(count):
            executor.submit(_close_connections, together)
        await asyncio.to_thread(executor.shutdown)


def _close_connections(together):
    together.wait(10)
    connections.close_all()
