"""The review queue: images that nobody has reviewed, to be approved or rejected by the mouse alone.

A grid of previews: a click on one selects it, a button decides about all that are selected. A plain
form; the script only selects and unselects all of a page.
"""

import uuid
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from batches import curation
from batches.admin import lists, show
from batches.admin.batches import ImageAdmin
from batches.curation import Result
from batches.forms import REASON_MAX_LENGTH
from batches.models import Image, ReviewStatus

PAGE_SIZE = 60
DECISIONS = {"approve": ReviewStatus.APPROVED, "reject": ReviewStatus.REJECTED}


def pending() -> QuerySet[Image]:
    return Image.objects.filter(review_status=ReviewStatus.PENDING)


class PendingModelFilter(lists.ModelFilter):
    """Among the newest that are pending: no index has them by model."""

    def matching(self, queryset: QuerySet, value: str) -> QuerySet:
        newest = pending().order_by("-created_at", "-id").values("pk")[: lists.COUNT_MAX]
        return queryset.filter(pk__in=newest, model=value)


class ReviewQueueAdmin(ImageAdmin):
    """A second list of images. As with the dead letters, the site knows its address."""

    change_list_template = "admin/batches/review_queue.html"
    list_per_page = PAGE_SIZE
    list_display = ("small",)
    list_filter = (lists.OwnerFilter, lists.BatchFilter, PendingModelFilter)

    class Media:
        css: ClassVar = {"all": ("batches/admin.css",)}
        js = ("batches/review_queue.js",)

    def list_url(self, **filters: object) -> str:
        return reverse("admin:batches_review_queue", query=filters)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Image]:
        return super().get_queryset(request).filter(review_status=ReviewStatus.PENDING)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "POST":
            return self.review(request)
        context = {
            "title": "Review queue",
            "may_review": self.has_operate_permission(request),
            "reason_max": REASON_MAX_LENGTH,
            "checkbox_name": ACTION_CHECKBOX_NAME,
        }
        response = super().changelist_view(request, context | (extra_context or {}))
        if (data := getattr(response, "context_data", None)) and "cl" in data:
            data["tiles"] = [self.tile(image) for image in data["cl"].result_list]
        return response

    def tile(self, image: Image) -> dict[str, Any]:
        """What the grid shows of an image."""
        return {
            "id": image.pk,
            "thumbnail": show.thumbnail(image),
            "url": show.page_url(Image, image.pk),
            "prompt": image.generation.prompt,
            "model": image.model,
            "owner": self.owner_link(image),
        }

    def review(self, request: HttpRequest) -> HttpResponse:
        """Decide about what is selected; what somebody else has decided about stays as it is."""
        if not self.has_operate_permission(request):
            raise PermissionDenied
        status = DECISIONS.get(request.POST.get("review", ""))
        reason = request.POST.get("reason", "").strip()
        ids = self._selected(request)
        is_bad_reason = len(reason) > REASON_MAX_LENGTH or "\0" in reason
        if status is None or ids is None or is_bad_reason:
            self.message_user(request, "That cannot be done. Nothing was.", messages.ERROR)
        elif not ids:
            self.message_user(request, "Select the images first.", messages.WARNING)
        else:
            self._decide(request, ids, status, reason)
        return HttpResponseRedirect(request.get_full_path())

    def _selected(self, request: HttpRequest) -> list[uuid.UUID] | None:
        """The ids that were selected; `None` when they cannot be of one page."""
        values = request.POST.getlist(ACTION_CHECKBOX_NAME)
        try:
            ids = [uuid.UUID(value) for value in values]
        except ValueError:
            return None
        return ids if len(ids) <= PAGE_SIZE else None

    def _decide(
        self, request: HttpRequest, ids: list[uuid.UUID], status: ReviewStatus, reason: str
    ) -> None:
        user_id = request.user.pk
        assert user_id is not None  # nobody else comes here
        outcomes = curation.review_images(
            ids=ids, status=status, reviewer_id=user_id, reason=reason
        )
        done = [one.id for one in outcomes if one.outcome == Result.DONE]
        if done:
            text = f"{status.label}. {reason}".strip()
            images = Image.objects.filter(pk__in=done)
            LogEntry.objects.log_actions(user_id, images, CHANGE, text)
            count = f"{len(done)} image" + ("s" if len(done) > 1 else "")
            self.message_user(request, f"{count} {status}.", messages.SUCCESS)
        if left := len(ids) - len(done):
            text = f"{left} of those that were selected have been reviewed or deleted meanwhile."
            self.message_user(request, text, messages.WARNING)
