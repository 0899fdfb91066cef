"""The Celery task that publishes images."""
