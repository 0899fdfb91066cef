"""The Celery app: broker, queues, routes and the beat."""

import os
import sys
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.signals import task_prerun, worker_init, worker_process_init
from kombu import Connection, Queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "picture.settings")

from django.conf import settings
from django.db import close_old_connections, connections

from batches.wake import EXPIRES_S


def celery_url(redis_url: str) -> str:
    """Celery's spelling of a Redis URL: it calls a Unix socket `redis+socket`."""
    if redis_url.startswith("unix://"):
        return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=")
    return redis_url


QUEUES = ("generate", "download", "control", "webhooks")
BROKER_URL = celery_url(settings.REDIS_URL)
BEAT_OPTIONS = {"expires": EXPIRES_S}


class Broker(Connection):
    """Looks every two seconds whether a broker that is away is back.

    kombu's own pauses grow to half a minute, and there is no setting for them.
    """

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        return super().ensure_connection(*args, **{"interval_max": 2, **options})


class Amqp(AMQP):
    Connection = Broker


app = Celery("picture", include=["worker.tasks", "worker.publisher"], amqp=Amqp)
app.conf.update(
    broker_url=BROKER_URL,
    result_backend=BROKER_URL,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_connection_timeout=1,
    broker_transport_options={
        # Must outlast the longest task and every countdown, or a second copy starts.
        "visibility_timeout": 300,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # Of a publisher: it gives up within half a second. A worker goes on trying for ever.
        "max_retries": 2,
        "interval_start": 0.1,
        "interval_step": 0.2,
        "socket_connect_timeout": 1,
        # Longer than the broker's blocking read, which redis-py's own 5 s would cut short.
        "socket_timeout": 30,
        "socket_keepalive": True,
    },
    redis_socket_connect_timeout=2,
    redis_socket_timeout=30,
    redis_retry_on_timeout=True,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    timezone="UTC",
    # Only chord parts are kept, and only until their chord is done.
    task_ignore_result=True,
    result_expires=86_400,
    result_chord_expires=7 * 86_400,
    # A task whose worker dies runs again; the rows decide whether there is still something to do.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_soft_shutdown_timeout=10,
    worker_hijack_root_logger=False,
    task_queues=[Queue(name) for name in QUEUES],
    task_create_missing_queues=False,
    task_default_queue="control",
    task_routes={
        "work.generate": {"queue": "generate"},
        # Waits for other people's servers as well.
        "publish.*": {"queue": "generate"},
        "work.download": {"queue": "download"},
        "work.*": {"queue": "control"},
    },
    # None does anything that a later one would not do as well.
    beat_schedule={
        "dispatch": {"task": "work.dispatch", "schedule": 1.0, "options": BEAT_OPTIONS},
        "sweep": {"task": "work.sweep", "schedule": 2.0, "options": BEAT_OPTIONS},
        "files": {"task": "work.clean_files", "schedule": 2.0, "options": BEAT_OPTIONS},
        "schedules": {"task": "work.run_schedules", "schedule": 2.0, "options": BEAT_OPTIONS},
    },
    # Connections are kept between tasks and checked before each one, see below.
    CELERY_DB_REUSE_MAX=sys.maxsize,
)


@worker_process_init.connect
def let_others_go_first(**_: Any) -> None:
    """Worker processes (not threads) decode images; admissions and submissions are urgent."""
    os.nice(10)


@worker_init.connect
def trust_connections(**_: Any) -> None:
    """Skip the look at the connection that web requests take: a task whose connection turns out
    to be gone is put off, see `worker.retries.WHILE_DATABASE_AWAY`."""
    connections.settings["default"]["CONN_HEALTH_CHECKS"] = False


@task_prerun.connect
def drop_unusable_connections(**_: Any) -> None:
    close_old_connections()
