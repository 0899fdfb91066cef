from typing import Any

from django.core.management.base import BaseCommand

from batches import catalogue


class Command(BaseCommand):
    help = (
        "Bring the models in the database up to the data file. What was set by hand stays. "
        "Each `migrate` does this too."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        loaded = catalogue.load()
        for what, model_ids in loaded._asdict().items():
            for model_id in model_ids:
                self.stdout.write(f"{what}  {model_id}")
        self.stdout.write(f"{len(catalogue.load_models())} models")
