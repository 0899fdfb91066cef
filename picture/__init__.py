"""The composition root: settings, the Celery app, URLs, and the processes of a stack."""
