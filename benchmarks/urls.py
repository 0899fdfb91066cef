"""The product's URLs and a view that does nothing but authenticate."""

from django.urls import path
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from picture.urls import handler400, handler404, handler500
from picture.urls import urlpatterns as product

__all__ = ["handler400", "handler404", "handler500", "urlpatterns"]


class NoOpView(APIView):
    def post(self, request: Request) -> Response:
        return Response(status=status.HTTP_204_NO_CONTENT)


urlpatterns = [*product, path("benchmarks/no-op/", NoOpView.as_view())]
