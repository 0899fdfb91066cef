"""Ask the providers whether they are there."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from batches.intake import unconfigured_reason
from worker.providers import FACTORIES, get_provider


class Command(BaseCommand):
    help = (
        "Ask each configured provider whether it is there and takes our credentials; costs "
        "nothing. Exit code 1 when one does not answer as it should."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        is_well = True
        for name in FACTORIES:
            if reason := unconfigured_reason(name):
                self.say(name, f"not configured: {reason}")
            elif failure := get_provider(name).check():
                is_well = False
                self.say(name, f"{failure.error_class}: {failure.message}")
            else:
                self.say(name, "ok")
        if not is_well:
            sys.exit(1)

    def say(self, name: str, text: str) -> None:
        self.stdout.write(f"{name:<10} {text}")
