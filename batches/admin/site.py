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
from batches.admin.library import ScheduleAdmin, ScheduleRunAdmin, TemplateAdmin
from batches.admin.operations import AlertAdmin, LaneAdmin, LeaseAdmin, PoolAdmin
from batches.admin.publishing import ChannelAccountAdmin, PublicationAdmin, ReviewAdmin
from batches.admin.references import ReferenceAdmin
from batches.admin.review_queue import ReviewQueueAdmin
from batches.models import (
    Alert,
    Attempt,
    Batch,
    CatalogueModel,
    ChannelAccount,
    Generation,
    Image,
    Lane,
    Lease,
    Pool,
    Publication,
    Reference,
    Review,
    Schedule,
    ScheduleRun,
    Template,
)

BANNER_MAX = 4
# Shown to whoever sees the list of that model.
EXTRA_PAGES = (
    ("Generation", "Dead letters", "DeadLetter", "admin:batches_dead_letters"),
    ("Image", "Review queue", "ReviewQueue", "admin:batches_review_queue"),
)


class PictureAdminSite(admin.AdminSite):
    site_header = site_title = "Picture"
    index_title = "Batches, images and the queue"

    def __init__(self, name: str = "admin") -> None:
        super().__init__(name)
        self.register(Alert, AlertAdmin)
        self.register(Attempt, AttemptAdmin)
        self.register(Batch, BatchAdmin)
        self.register(CatalogueModel, CatalogueModelAdmin)
        self.register(ChannelAccount, ChannelAccountAdmin)
        self.register(Generation, GenerationAdmin)
        self.register(Image, ImageAdmin)
        self.register(Lane, LaneAdmin)
        self.register(Lease, LeaseAdmin)
        self.register(Pool, PoolAdmin)
        self.register(Publication, PublicationAdmin)
        self.register(Reference, ReferenceAdmin)
        self.register(Review, ReviewAdmin)
        self.register(Schedule, ScheduleAdmin)
        self.register(ScheduleRun, ScheduleRunAdmin)
        self.register(Template, TemplateAdmin)

    def get_urls(self) -> list[URLResolver | URLPattern]:
        dead_letters = path(
            "batches/generation/dead-letters/",
            self.admin_view(DeadLetterAdmin(Generation, self).changelist_view),
            name="batches_dead_letters",
        )
        review_queue = path(
            "batches/image/review-queue/",
            self.admin_view(ReviewQueueAdmin(Image, self).changelist_view),
            name="batches_review_queue",
        )
        return [dead_letters, review_queue, *super().get_urls()]

    def get_app_list(self, request: Any, app_label: str | None = None) -> list[Any]:
        """All pages with a list, those without a model of their own among them."""
        apps = super().get_app_list(request, app_label)
        for app in apps:
            names = [model["object_name"] for model in app["models"]]
            for of, name, object_name, view in EXTRA_PAGES:
                if app["app_label"] == "batches" and of in names:
                    page = {"name": name, "object_name": object_name, "admin_url": reverse(view)}
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
