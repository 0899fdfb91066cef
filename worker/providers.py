"""The providers this installation is configured for, one instance of each per process."""

from collections.abc import Callable
from functools import cache

from django.conf import settings

from batches.models import Attempt
from generation.http import HttpClient
from generation.provider import Provider
from generation.providers.replicate import ReplicateProvider


@cache
def http_client() -> HttpClient:
    return HttpClient()


def _replicate() -> Provider:
    return ReplicateProvider(
        token=settings.REPLICATE_API_TOKEN,
        base_url=settings.REPLICATE_BASE_URL,
        webhook_secret=settings.REPLICATE_WEBHOOK_SECRET,
        http=http_client(),
        extra_output_hosts=settings.PROVIDER_OUTPUT_HOSTS,
    )


FACTORIES: dict[str, Callable[[], Provider]] = {"replicate": _replicate}


@cache
def get_provider(name: str) -> Provider:
    return FACTORIES[name]()


def callback_url(attempt: Attempt) -> str | None:
    """Where a provider is to report on an attempt; `None` when it cannot reach us."""
    if not settings.CALLBACK_URL:
        return None
    return f"{settings.CALLBACK_URL}/hooks/{attempt.provider}/{attempt.callback_token}/"
