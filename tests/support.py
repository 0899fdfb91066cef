"""Threads that work on the database, each on a connection of its own."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from django.db import connection, connections

LONGEST_WAIT_S = 30

Act = Callable[[], Any]


def at_once(*acts: Act, may_raise: tuple[type[Exception], ...] = ()) -> list[Any]:
    """Do all of these at the same moment; their answers in order.

    What is raised that may be is an answer too; the first error of any other kind is raised.
    """
    start = threading.Barrier(len(acts))

    def do(act: Act) -> Any:
        try:
            connection.ensure_connection()
            start.wait(LONGEST_WAIT_S)
            return act()
        except may_raise as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(acts)) as threads:
        answers = [threads.submit(do, act) for act in acts]
    return [answer.result() for answer in answers]


def in_background(act: Act) -> Future[Any]:
    """Do this while the test goes on; its answer, or what it raised, comes by `result`."""

    def do() -> Any:
        try:
            return act()
        finally:
            connections.close_all()

    threads = ThreadPoolExecutor(1)
    answer = threads.submit(do)
    threads.shutdown(wait=False)
    return answer


def wait_for_locks(count: int = 1) -> None:
    """Until so many connections to this test's database wait for a lock."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            # Test processes share the server. A row's lock names no database, but whoever waits
            # for one holds others that do.
            cursor.execute(
                """
                SELECT pg_sleep(0.01), count(DISTINCT waiting.pid)
                FROM pg_locks waiting JOIN pg_locks held USING (pid)
                WHERE NOT waiting.granted AND held.database =
                    (SELECT oid FROM pg_database WHERE datname = current_database())
                """
            )
            if cursor.fetchone()[1] >= count:
                return
    raise AssertionError(f"{count} were to wait for a lock, and do not")
