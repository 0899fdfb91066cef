from django.apps import AppConfig


class BenchmarksConfig(AppConfig):
    """Gives every process the instant provider and the empty tasks."""

    name = "benchmarks"

    def ready(self) -> None:
        from benchmarks import tasks  # noqa: F401
        from benchmarks.instant import InstantProvider
        from worker.providers import FACTORIES

        FACTORIES[InstantProvider.name] = InstantProvider
