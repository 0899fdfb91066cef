"""What the conformance suite has to know about a provider and its simulator.

Each provider has one subclass of `Harness` beside this module, named in `harnesses.py`. Its class
attributes say what the provider can do, before any test runs: they decide which tests there are.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from generation.http import HttpClient
from generation.provider import ErrorClass, InputFile, Prediction, Provider, SubmitRequest
from tests.simulator.support import Simulator, eventually

Place = Literal["queue", "run"]
Call = Literal["submit", "run", "fetch", "cancel", "find", "check", "download"]
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One thing that the simulator is made to do, and what has to come of it.

    `arrange` is called with the harness and the prompt before the submission; only what is
    submitted with that prompt may be affected, where the simulator can tell. `change` makes the
    request into the one to submit.
    """

    id: str
    arrange: Callable[[Any, str], object] | None = None
    change: Callable[[SubmitRequest], SubmitRequest] | None = None

    def apply(self, harness: Harness, request: SubmitRequest, prompt: str) -> SubmitRequest:
        if self.arrange is not None:
            self.arrange(harness, prompt)
        return request if self.change is None else self.change(request)


@dataclass(frozen=True)
class ErrorCase(Case):
    """A failure of class `expected`.

    `call` is which call gives it; "run" means that the submission is accepted and the prediction
    ends so, "download" that this is what comes instead of its first output. `retry_after_s` and
    `code` (the provider's own) are compared when they are given.
    """

    call: Call = "submit"
    expected: ErrorClass = ErrorClass.UNKNOWN
    retry_after_s: float | None = None
    code: str | None = None


@dataclass(frozen=True)
class OutputCase(Case):
    """A run that ends with so many files, each an image, or in a failure of a class."""

    expected: int | ErrorClass = 1


class Harness(ABC):
    """One provider and the part of the simulator that speaks its protocol.

    `sim` is the one process of the simulator, good as new; `http` is for the adapters.
    """

    name: ClassVar[str]

    # Whether webhooks are signed; `None`: it sends none.
    signs_webhooks: ClassVar[bool | None]
    # Whether `Prediction.progress` grows while it runs.
    tells_progress: ClassVar[bool]
    # Whether `run_s` is set on what ran, also when it failed or was cancelled.
    tells_run_s: ClassVar[bool]
    # Whether `billed_images` is set on what succeeded.
    tells_billed_images: ClassVar[bool]
    # Where the provider itself heeds `cancel_after_s`, with TIMEOUT_RUN as the end.
    stops: ClassVar[frozenset[Place]]
    # Whether `find` can give a prediction; else it is always a failure of class UNKNOWN.
    can_find: ClassVar[bool]
    takes_files: ClassVar[bool]
    # Whether files go before the submission, in requests of their own.
    hands_over_files: ClassVar[bool] = True
    has_credentials: ClassVar[bool]
    # A model whose schema is published, with one of its parameters.
    schema_of: ClassVar[tuple[str, str] | None] = None
    # What `fetch` and `cancel` of an id that never was give (a Failure, or a failed Prediction).
    unknown_id: ClassVar[frozenset[ErrorClass]] = frozenset({ErrorClass.NOT_FOUND})

    # At least one of each class that the provider can produce, of each call.
    errors: ClassVar[Sequence[ErrorCase]]
    # A string, a list, a short list, none, base64: those that there are.
    outputs: ClassVar[Sequence[OutputCase]]

    def __init__(self, sim: Simulator, http: HttpClient) -> None:
        self.sim = sim
        self.http = http

    # --- What each provider supplies ------------------------------------------------------------

    @abstractmethod
    def provider(self, *, url: str | None = None, wrong_credentials: bool = False) -> Provider:
        """Return the adapter; `url` is the root of another server instead of the simulator's."""

    @abstractmethod
    def request(self, prompt: str, *, images: int = 1, **fields: Any) -> SubmitRequest:
        """Return a request for so many images; `fields` are others of `SubmitRequest`.

        Cheap to draw, and with a token of its own.
        """

    @abstractmethod
    def hold(self, where: Place) -> None:
        """Make what is submitted from now on stay there until it is cancelled."""

    @abstractmethod
    def pace(self, run_s: float) -> None:
        """Make runs of what is submitted from now on take so long, seconds."""

    def hasten(self) -> None:
        """Make a `cancel_after_s` of 5 pass within half a second. Only where it `stops`."""
        raise NotImplementedError

    def charges(self, prompt: str) -> int:
        """Return how many runs with this prompt began."""
        return len(self.sim.ledger(prompt=prompt)["charges"])

    def creates(self, prompt: str) -> int:
        """Return how many submissions with this prompt arrived, whatever was answered."""
        return sum(prompt in entry["prompt"] for entry in self.sim.stats()["timeline"])

    def with_files(self, request: SubmitRequest, files: Sequence[InputFile]) -> SubmitRequest:
        """Return the request with these reference images. Only where `takes_files`."""
        raise NotImplementedError

    def files_received(self, prediction_id: str) -> list[str]:
        """Return the SHA-256 of each file that the prediction was given, in order, as hex."""
        raise NotImplementedError

    def refuse_files(self) -> None:
        """Make handing over a file fail with 503. Only where it `hands_over_files`."""
        raise NotImplementedError

    # --- What is the same for all ---------------------------------------------------------------

    def until(
        self, provider: Provider, prediction_id: str, probe: Callable[[Prediction], bool]
    ) -> Prediction:
        """Look until `probe` likes what there is."""

        def look() -> Prediction | None:
            answer = provider.fetch(prediction_id)
            assert isinstance(answer, Prediction), answer
            return answer if probe(answer) else None

        return eventually(look, f"prediction {prediction_id} as wanted")

    def ended(self, provider: Provider, prediction_id: str) -> Prediction:
        """Look until the prediction has ended."""
        return self.until(provider, prediction_id, lambda found: found.is_terminal)


def new_token() -> str:
    return str(uuid.uuid4())


def input_file(content: bytes, filename: str = "cat.png") -> InputFile:
    return InputFile(
        filename=filename,
        content_type="image/png",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        open=lambda: io.BytesIO(content),
    )
