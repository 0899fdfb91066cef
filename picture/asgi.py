"""The ASGI application.

Django's synchronous stack runs on a bounded set of long-lived threads. Under Django's own ASGI
handler every request gets a thread of its own, and with it a new database connection.
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "picture.settings")

from a2wsgi import WSGIMiddleware
from django.core.wsgi import get_wsgi_application

WEB_THREADS = 8

application = WSGIMiddleware(get_wsgi_application(), workers=WEB_THREADS)  # type: ignore[arg-type]
