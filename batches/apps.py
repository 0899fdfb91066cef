from typing import Any

from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig
from django.db.models.signals import post_delete, post_migrate, post_save


class BatchesConfig(AppConfig):
    name = "batches"

    def ready(self) -> None:
        from batches import catalogue
        from batches.models import CatalogueModel

        post_migrate.connect(load_catalogue, sender=self)
        for signal in (post_save, post_delete):
            signal.connect(catalogue.changed, sender=CatalogueModel)


def load_catalogue(**signal: Any) -> None:
    """After each migration, unless it went back to before there was a table for it."""
    from batches import catalogue

    if "cataloguemodel" in signal.get("apps", apps).all_models["batches"]:
        catalogue.load()


class PictureAdminConfig(AdminConfig):
    default_site = "batches.admin.site.PictureAdminSite"
