from typing import Any

from django.core.management.base import BaseCommand, CommandError

from batches import invariants


class Command(BaseCommand):
    help = "Check what must always hold, print each rule with how often it is broken."

    def handle(self, *args: Any, **options: Any) -> None:
        broken = 0
        for finding in invariants.check():
            broken += finding.broken
            self.stdout.write(f"{finding.code}  {finding.broken:>6}  {finding.rule}")
            for example in finding.examples:
                self.stdout.write(f"            {example}")
        if broken:
            raise CommandError(f"{broken} broken")
