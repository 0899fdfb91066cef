"""Talking to image providers: plain Python, no Django, no Celery, no database."""
