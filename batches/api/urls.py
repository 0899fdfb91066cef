from typing import NoReturn

from django.http import Http404, HttpRequest
from django.urls import URLPattern, URLResolver, include, path
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.views import SpectacularAPIView, SpectacularRedocView, SpectacularSwaggerView
from rest_framework.routers import SimpleRouter

from batches.api import pod, views
from batches.api.analytics import AnalyticsView, BatchAnalyticsView
from batches.api.exports import BatchExportView, ImageExportView
from batches.api.files import ImageFileView, ReferenceFileView
from batches.api.images import ImageView
from batches.api.library import (
    ScheduleRunsView,
    ScheduleView,
    SimilarBatchView,
    SimilarImageView,
    TemplateView,
)
from batches.api.publishing import (
    ChannelCheckView,
    ChannelListView,
    ChannelView,
    ImagePublishView,
    PublicationView,
)
from batches.api.references import ReferenceView


@csrf_exempt
def nowhere(request: HttpRequest, unknown: str) -> NoReturn:
    raise Http404


router = SimpleRouter(use_regex_path=False)
router.register("batches", views.BatchView, basename="batch")
router.register("generations", views.GenerationView, basename="generation")
router.register("images", ImageView, basename="image")
router.register("references", ReferenceView, basename="reference")
router.register("publications", PublicationView, basename="publication")
router.register("templates", TemplateView, basename="template")
router.register("schedules", ScheduleView, basename="schedule")

v1: list[URLPattern | URLResolver] = [
    path("", include(router.urls)),
    path("analytics/", AnalyticsView.as_view(), name="analytics"),
    path("batches/<uuid:pk>/analytics/", BatchAnalyticsView.as_view(), name="batch-analytics"),
    path("batches/<uuid:pk>/export/", BatchExportView.as_view(), name="batch-export"),
    path("images/export/", ImageExportView.as_view(), name="image-export"),
    path("images/<uuid:pk>/publish/", ImagePublishView.as_view(), name="image-publish"),
    path("channels/", ChannelListView.as_view(), name="channel-list"),
    path("channels/<str:name>/", ChannelView.as_view(), name="channel-detail"),
    path("channels/<str:name>/check/", ChannelCheckView.as_view(), name="channel-check"),
    path("images/<uuid:pk>/file/", ImageFileView.as_view(part="file"), name="image-file"),
    path("images/<uuid:pk>/preview/", ImageFileView.as_view(part="preview"), name="image-preview"),
    path(
        "images/<uuid:pk>/thumbnail/",
        ImageFileView.as_view(part="thumbnail"),
        name="image-thumbnail",
    ),
    path(
        "references/<uuid:pk>/file/",
        ReferenceFileView.as_view(part="file"),
        name="reference-file",
    ),
    path(
        "references/<uuid:pk>/thumbnail/",
        ReferenceFileView.as_view(part="thumbnail"),
        name="reference-thumbnail",
    ),
    path("images/<uuid:pk>/similar/", SimilarImageView.as_view(), name="image-similar"),
    path("batches/<uuid:pk>/similar/", SimilarBatchView.as_view(), name="batch-similar"),
    path("schedules/<uuid:pk>/runs/", ScheduleRunsView.as_view(), name="schedule-runs"),
    path("models/", views.ModelListView.as_view(), name="model-list"),
    path("models/<str:owner>/<str:name>/", views.ModelView.as_view(), name="model-detail"),
    # Without it an address without its last slash is redirected, and a POST becomes a GET.
    path("<path:unknown>", nowhere, name="nowhere"),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/", include(v1)),
    path("generate", pod.GenerateView.as_view(), name="batch-generate"),
    path("batch/<uuid:pk>", pod.PrintBatchView.as_view(), name="batch-print"),
    path("images", pod.PrintImagesView.as_view(), name="image-prints"),
    path("approve/<uuid:pk>", pod.ApproveView.as_view(), name="image-print-approve"),
    path("publish/<uuid:pk>", pod.PublishView.as_view(), name="image-print-publish"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path(
        "redoc/",
        SpectacularRedocView.as_view(url_name="schema", template_name="batches/redoc.html"),
        name="redoc",
    ),
]
