from django.apps import AppConfig


class PictureConfig(AppConfig):
    name = "picture"

    def ready(self) -> None:
        # Every Django process must publish through our Celery app, not Celery's default one.
        from picture import celery  # noqa: F401
