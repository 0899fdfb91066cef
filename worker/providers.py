"""The providers this installation is configured for, one instance of each per process."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import cache
from typing import Any, BinaryIO

from django.conf import settings

from batches.catalogue import get_model
from batches.intake import unavailable_reason
from batches.models import Attempt
from generation.http import HttpClient
from generation.provider import ErrorClass, Failure, Provider, SubmitRequest, Workflow
from generation.providers.comfyui import ComfyUIProvider
from generation.providers.replicate import ReplicateProvider
from generation.providers.runpod import RunPodProvider


class Unconfigured:
    """Stands where a provider's credentials are missing, for the work that is still there.

    What waits goes on waiting, since every answer is that of refused credentials; what runs ends at
    its deadline.
    """

    sends_webhooks = False
    signs_webhooks = False

    def __init__(self, name: str) -> None:
        self.name = name

    def submit(self, request: SubmitRequest) -> Failure:
        return self._refused()

    def fetch(self, prediction_id: str) -> Failure:
        return self._refused()

    def cancel(self, prediction_id: str) -> Failure:
        return self._refused()

    def find(self, request: SubmitRequest, *, since: datetime, until: datetime) -> Failure:
        return self._refused()

    def download(
        self,
        output: str,
        sink: BinaryIO,
        *,
        prediction_id: str,
        max_bytes: int,
        deadline_s: float | None = None,
    ) -> Failure:
        # The work is done and paid for: this must not lead to another attempt.
        return self._refused(ErrorClass.DOWNLOAD_FAILED)

    def read(self, body: object) -> None:
        return None

    def verify_webhook(self, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Failure:
        return self._refused()

    def check(self) -> Failure:
        return self._refused()

    def live_schema(self, model: str, *, version: str | None = None) -> Failure:
        return self._refused()

    def _refused(self, error_class: ErrorClass = ErrorClass.AUTH) -> Failure:
        return Failure(error_class, f"No credentials for {self.name} are configured.")


@cache
def http_client() -> HttpClient:
    return HttpClient()


def _replicate() -> Provider:
    if not settings.REPLICATE_API_TOKEN:
        return Unconfigured("replicate")
    return ReplicateProvider(
        token=settings.REPLICATE_API_TOKEN,
        base_url=settings.REPLICATE_BASE_URL,
        webhook_secret=settings.REPLICATE_WEBHOOK_SECRET,
        http=http_client(),
        extra_output_hosts=settings.PROVIDER_OUTPUT_HOSTS,
    )


def _runpod() -> Provider:
    if not settings.RUNPOD_API_KEY:
        return Unconfigured("runpod")
    return RunPodProvider(
        api_key=settings.RUNPOD_API_KEY,
        endpoint_id=settings.RUNPOD_ENDPOINT_ID,
        base_url=settings.RUNPOD_BASE_URL,
        http=http_client(),
        extra_output_hosts=settings.PROVIDER_OUTPUT_HOSTS,
    )


def _comfyui() -> Provider:
    if not settings.COMFYUI_URL:
        return Unconfigured("comfyui")
    return ComfyUIProvider(settings.COMFYUI_URL, http=http_client(), workflow_of=_workflow_of)


def _workflow_of(model_id: str) -> Workflow | None:
    """The workflow that has all of a model's parameters."""
    model = get_model(model_id)
    if model is None:
        return None
    return model.workflow_for(has_image=model.image_parameter is not None)


FACTORIES: dict[str, Callable[[], Provider]] = {
    "replicate": _replicate,
    "runpod": _runpod,
    "comfyui": _comfyui,
}


@cache
def get_provider(name: str) -> Provider:
    return FACTORIES[name]()


def can_make(usable: Collection[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Tell whether a way of making a generation can be gone now, given the usable providers."""

    def can_be_gone(way: Mapping[str, Any]) -> bool:
        model = get_model(way["model"])
        return way["provider"] in usable and model is not None and not unavailable_reason(model)

    return can_be_gone


def callback_url(attempt: Attempt) -> str | None:
    """Where a provider is to report on an attempt; `None` when it cannot or does not."""
    if not settings.CALLBACK_URL or not get_provider(attempt.provider).sends_webhooks:
        return None
    return f"{settings.CALLBACK_URL}/hooks/{attempt.provider}/{attempt.callback_token}/"
