from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from batches.api.pod import StartedView, StartGenerationView
from picture import health
from worker.hooks import receive_webhook

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="docs")),
    path("admin/", admin.site.urls),
    path("api/", include("batches.api.urls")),
    path("functions/v1/start-generation", StartGenerationView.as_view(), name="generation-start"),
    path("functions/v1/generations/<uuid:pk>", StartedView.as_view(), name="generation-started"),
    path("hooks/<str:provider>/<uuid:callback_token>/", receive_webhook, name="webhook"),
    path("health/live", health.live),
    path("health/ready", health.ready),
]

handler400 = "batches.api.errors.bad_request"
handler404 = "batches.api.errors.not_found"
handler500 = "batches.api.errors.server_error"
