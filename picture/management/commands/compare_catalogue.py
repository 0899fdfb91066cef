"""Compare the models' parameters with those that their providers publish."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from batches.catalogue import load_models
from batches.intake import unconfigured_reason
from generation.catalogue import Model, differences
from generation.provider import Failure
from worker.providers import get_provider

SAME, DIFFERENT, NOT_ASKED = 0, 1, 2
NOT_ON_OFFER = ("retired", "unavailable")


class Command(BaseCommand):
    help = (
        "Compare the parameters of models with those that their providers publish now, and print "
        "the differences. Exit code 1 when there are any, 2 when some could not be asked for."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "models",
            nargs="*",
            metavar="MODEL",
            help="such as stability-ai/sdxl; by default all that are on offer from configured "
            "providers",
        )

    def handle(self, *args: Any, models: Sequence[str], **options: Any) -> None:
        if code := max(self.compare(model) for model in chosen(models)):
            sys.exit(code)

    def compare(self, model: Model) -> int:
        """Print one model's lines, and return what they come to."""
        if reason := unconfigured_reason(model.provider, endpoint=model.endpoint):
            return self.say(model, f"cannot be compared: {reason}", NOT_ASKED)
        live = get_provider(model.provider).live_schema(model.id, version=model.version)
        if isinstance(live, Failure):
            text = f"cannot be compared: {live.error_class}: {live.message}"
            return self.say(model, text, NOT_ASKED)
        if live is None:
            return self.say(model, f"{model.provider} publishes no parameters", SAME)
        found = differences(model, live)
        for difference in found:
            self.say(model, str(difference), DIFFERENT)
        return DIFFERENT if found else self.say(model, "as published", SAME)

    def say(self, model: Model, text: str, code: int) -> int:
        self.stdout.write(f"{model.id}: {text}")
        return code


def chosen(model_ids: Sequence[str]) -> list[Model]:
    """The models of these ids, or those that can be compared. Raises CommandError."""
    models = load_models()
    if unknown := [one for one in model_ids if one not in models]:
        raise CommandError(f"there is no model {', '.join(unknown)}", returncode=NOT_ASKED)
    if model_ids:
        return [models[one] for one in model_ids]
    found = [
        model
        for model in models.values()
        if model.status not in NOT_ON_OFFER
        and not unconfigured_reason(model.provider, endpoint=model.endpoint)
    ]
    if not found:
        raise CommandError("no provider is configured", returncode=NOT_ASKED)
    return found
