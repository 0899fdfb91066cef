"""How work runs: Celery tasks that are thin, and call down."""
