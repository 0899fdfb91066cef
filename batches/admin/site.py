"""The admin site: which pages there are, and what all of them show.

Django makes it when something first asks for `admin.site`, before it has looked for what the
apps register there. So it registers our own pages itself.
"""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import URLPattern, URLResolver, path, reverse

from batches.admin.batches import AttemptAdmin, BatchAdmin, GenerationAdmin, ImageAdmin
from batches.admin.catalogue import CatalogueModelAdmin
from batches.admin.dead_letters import DeadLetterAdmin
from batches.admin.operations import AlertAdmin, LaneAdmin, LeaseAdmin, PoolAdmin
from batches.admin.references import ReferenceAdmin
from batches.models import (
    Alert,
    Attempt,
    Batch,
    CatalogueModel,
    Generation,
    Image,
    Lane,
    Lease,
    Pool,
    Reference,
)

BANNER_MAX = 4


class PictureAdminSite(admin.AdminSite):
    site_header = site_title = "Picture"
    index_title = "Batches, images and the queue"

    def __init__(self, name: str = "admin") -> None:
        super().__init__(name)
        self.register(Alert, AlertAdmin)
        self.register(Attempt, AttemptAdmin)
        self.register(Batch, BatchAdmin)
        self.register(CatalogueModel, CatalogueModelAdmin)
        self.register(Generation, GenerationAdmin)
        self.register(Image, ImageAdmin)
        self.register(Lane, LaneAdmin)
        self.register(Lease, LeaseAdmin)
        self.register(Pool, PoolAdmin)
        self.register(Reference, ReferenceAdmin)

    def get_urls(self) -> list[URLResolver | URLPattern]:
        dead_letters = path(
            "batches/generation/dead-letters/",
            self.admin_view(DeadLetterAdmin(Generation, self).changelist_view),
            name="batches_dead_letters",
        )
        return [dead_letters, *super().get_urls()]

    def get_app_list(self, request: Any, app_label: str | None = None) -> list[Any]:
        """All pages with a list, the dead letters among them."""
        apps = super().get_app_list(request, app_label)
        for app in apps:
            names = [model["object_name"] for model in app["models"]]
            if app["app_label"] == "batches" and "Generation" in names:
                url = reverse("admin:batches_dead_letters")
                page = {"name": "Dead letters", "object_name": "DeadLetter", "admin_url": url}
                app["models"].append({**page, "view_only": True, "perms": {}, "add_url": None})
                app["models"].sort(key=lambda model: model["name"])
        return apps

    def each_context(self, request: Any) -> dict[str, Any]:
        alerts = self.open_alerts(request)
        return {
            **super().each_context(request),
            "open_alerts": alerts[:BANNER_MAX],
            "has_more_alerts": len(alerts) > BANNER_MAX,
        }

    def open_alerts(self, request: HttpRequest) -> list[Alert]:
        """Some of the open alerts, for whoever may see them: one more than are shown, if any."""
        if not self.get_model_admin(Alert).has_view_permission(request):
            return []
        return list(Alert.objects.open().order_by("code", "subject")[: BANNER_MAX + 1])
