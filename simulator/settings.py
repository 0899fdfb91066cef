"""What can be set on the command line, and again while the simulator runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


class SettingsError(ValueError):
    """A setting that does not exist or has a value of the wrong kind."""


class Adjustable:
    """Settings of one part: a dataclass of plain values that a control route changes."""

    __slots__ = ()

    def update(self, changes: Mapping[str, Any]) -> None:
        """Take over `changes`, all of them or none.

        Raises:
            SettingsError: for an unknown key or a value of the wrong kind.
        """
        checked = {key: _checked(type(self), key, value) for key, value in changes.items()}
        for key, value in checked.items():
            setattr(self, key, value)

    def as_json(self) -> dict[str, Any]:
        """Return all settings under their JSON keys."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]


@dataclass(slots=True)
class ModelSettings:
    """Times of one model; None means: as for all models."""

    run_seconds: float | None = None
    queue_seconds: float | None = None


def _setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(slots=True)
class Settings:
    """Every setting with its default.

    The fields are the JSON keys of `POST /_sim/settings`, and with dashes the options of the
    command line (except `models`, which only the route takes).
    """

    run_seconds: float | None = _setting(None, "run time of a prediction (default: the model's)")
    run_jitter: float = _setting(0.0, "vary run times by up to this fraction, both ways")
    queue_seconds: float = _setting(0.05, "time a prediction stays `starting`")
    cancel_seconds: float = _setting(0.0, "time from a cancel request to `canceled`")
    cancel_after_min_seconds: float = _setting(5.0, "shortest Cancel-After accepted")
    cancel_after_factor: float = _setting(1.0, "how long a second of Cancel-After lasts, seconds")
    run_limit_seconds: float = _setting(1800.0, "run time after which a prediction fails")
    retention_seconds: float = _setting(3600.0, "time from completion to removal of the data")
    rate_per_minute: float | None = _setting(None, "create requests per minute (default: no limit)")
    rate_burst: int = _setting(10, "create requests accepted at once within the rate")
    webhook_retry_base_seconds: float = _setting(1.0, "first pause before a webhook is retried")
    webhook_timeout_seconds: float = _setting(5.0, "time a webhook receiver has to answer")
    wait_says_processing: bool = _setting(
        False, "answer `Prefer: wait` with status `processing` although the output is there"
    )
    owner_parameter: str = _setting("owner", "query parameter of the webhook URL naming the owner")
    models: dict[str, ModelSettings] = field(default_factory=dict)

    def update(self, changes: Mapping[str, Any]) -> None:
        """Take over `changes`, all of them or none.

        Raises:
            SettingsError: for an unknown key or a value of the wrong kind.
        """
        checked = {key: _checked(Settings, key, value) for key, value in changes.items()}
        for key, value in checked.items():
            if key == "models":
                self.models.update(value)
            else:
                setattr(self, key, value)

    def as_json(self) -> dict[str, Any]:
        """Return all settings under their JSON keys."""
        return asdict(self)

    def run_s(self, model_id: str, usual_s: float) -> float:
        """Return the run time of `model_id` before jitter; `usual_s` when nothing is set."""
        own = self.models.get(model_id)
        if own is not None and own.run_seconds is not None:
            return own.run_seconds
        return usual_s if self.run_seconds is None else self.run_seconds

    def queue_s(self, model_id: str) -> float:
        """Return the time a prediction of `model_id` waits before it runs."""
        own = self.models.get(model_id)
        if own is not None and own.queue_seconds is not None:
            return own.queue_seconds
        return self.queue_seconds


def _checked(owner: type, key: str, value: Any) -> Any:
    kinds = {f.name: str(f.type) for f in fields(owner)}
    if key not in kinds:
        raise SettingsError(f"unknown setting {key!r}; known: {', '.join(kinds)}")
    kind = kinds[key]
    if key == "models":
        return _checked_models(value)
    if value is None and "None" in kind:
        return None
    if kind in ("bool", "str"):
        if type(value).__name__ != kind:
            raise SettingsError(f"{key} must be a {kind}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise SettingsError(f"{key} must be a number of at least 0")
    if kind == "int":
        return int(value)
    return float(value)


def _checked_models(value: Any) -> dict[str, ModelSettings]:
    if not isinstance(value, dict) or not all(isinstance(own, dict) for own in value.values()):
        raise SettingsError("models must map owner/name to an object")
    return {
        model_id: ModelSettings(**{k: _checked(ModelSettings, k, v) for k, v in own.items()})
        for model_id, own in value.items()
    }
