from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class BatchesConfig(AppConfig):
    name = "batches"


class PictureAdminConfig(AdminConfig):
    default_site = "batches.admin.site.PictureAdminSite"
