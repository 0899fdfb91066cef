from typing import NoReturn

from django.http import Http404, HttpRequest
from django.urls import URLPattern, URLResolver, include, path
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.views import SpectacularAPIView, SpectacularRedocView, SpectacularSwaggerView
from rest_framework.routers import SimpleRouter

from batches.api import views
from batches.api.files import ImageFileView, ReferenceFileView
from batches.api.references import ReferenceView


@csrf_exempt
def nowhere(request: HttpRequest, unknown: str) -> NoReturn:
    raise Http404


router = SimpleRouter(use_regex_path=False)
router.register("batches", views.BatchView, basename="batch")
router.register("generations", views.GenerationView, basename="generation")
router.register("images", views.ImageView, basename="image")
router.register("references", ReferenceView, basename="reference")

v1: list[URLPattern | URLResolver] = [
    path("", include(router.urls)),
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
    path("models/", views.ModelListView.as_view(), name="model-list"),
    path("models/<str:owner>/<str:name>/", views.ModelView.as_view(), name="model-detail"),
    # Without it an address without its last slash is redirected, and a POST becomes a GET.
    path("<path:unknown>", nowhere, name="nowhere"),
]

urlpatterns: list[URLPattern | URLResolver] = [
    path("v1/", include(v1)),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path(
        "redoc/",
        SpectacularRedocView.as_view(url_name="schema", template_name="batches/redoc.html"),
        name="redoc",
    ),
]
