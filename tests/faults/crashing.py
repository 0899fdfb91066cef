"""Processes that die at a given side effect.

A side effect is what others can see of a process: a commit, a call of a provider, a message that
is sent, a file that is written or deleted. Between two of them a death makes no difference, so
dying right before and right after each one of a run covers all the moments of it.

A process that has died does nothing more: whatever its handlers still try raises `Crash` again,
its transaction is rolled back by the database, its connection is gone, and with it the locks.

One that is only held up, for so long that others take it for dead, goes on afterwards: `stall_at`.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from django.core.files.storage import FileSystemStorage
from django.db import connection

T = TypeVar("T")
When = Literal["before", "after"]
WHENS: tuple[When, ...] = ("before", "after")

_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")


class Crash(BaseException):
    """The process has died. No `Exception`: nothing that handles errors may handle it."""


class Effects:
    """The side effects of one run. `happened` are those that took place, by name and in order.

    At number `at`, counted from 1, the process dies, or stands still while `meanwhile` happens.
    """

    def __init__(
        self,
        at: int | None = None,
        when: When = "before",
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self.happened: list[str] = []
        self.is_dead = False
        self.has_stalled = False
        self._at, self._when, self._meanwhile = at, when, meanwhile
        self._begun = 0
        self._is_elsewhere = False

    def take(self, name: str, act: Callable[[], T]) -> T:
        """Have one side effect, unless the process is dead or dies of it."""
        if self.is_dead:
            raise Crash
        if self._is_elsewhere:
            return act()
        self._begun += 1
        is_it = self._begun == self._at
        if is_it and self._when == "before":
            self._stop()
        result = act()
        self.happened.append(name)
        if is_it and self._when == "after":
            self._stop()
        return result

    def _stop(self) -> None:
        if self._meanwhile is None:
            self.is_dead = True
            connection.close()
            raise Crash
        # The others need the connection: a transaction cannot be left open meanwhile.
        if connection.in_atomic_block or not connection.get_autocommit():
            return
        self.has_stalled = True
        with self.elsewhere():
            self._meanwhile()

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What happens meanwhile in another process."""
        self._is_elsewhere = True
        try:
            yield
        finally:
            self._is_elsewhere = False

    def on_statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        """A wrapper of the database's cursor: a write outside of a transaction is a commit."""
        if self.is_dead:
            raise Crash
        if connection.in_atomic_block or not _WRITES.search(sql):
            return execute(sql, params, many, context)
        return self.take(f"write {_table(sql)}", lambda: execute(sql, params, many, context))


def _table(sql: str) -> str:
    found = re.search(r'(?:INTO|UPDATE|FROM)\s+"?(batches_\w+)', sql)
    return found[1] if found else "?"


_current: Effects | None = None


def effect(name: str, act: Callable[[], T]) -> T:
    """Have a side effect that belongs to the run at hand, if there is one."""
    return act() if _current is None else _current.take(name, act)


def elsewhere() -> contextlib.AbstractContextManager[None]:
    """Of the block: it is not the process that is watched, and outlives it."""
    return contextlib.nullcontext() if _current is None else _current.elsewhere()


@contextlib.contextmanager
def _watching(effects: Effects) -> Iterator[Effects]:
    global _current
    assert _current is None
    commit = connection._commit
    # The wrapper itself, not its method: it outlives the connection that a crash closes.
    connection._commit = lambda: effects.take("commit", commit)
    _current = effects
    try:
        with connection.execute_wrapper(effects.on_statement):
            yield effects
    except Crash:
        pass
    finally:
        _current = None
        del connection._commit
        if effects.is_dead:
            connection.close()


def count_effects() -> contextlib.AbstractContextManager[Effects]:
    """Note the side effects of the block."""
    return _watching(Effects())


def crash_at(n: int, when: When) -> contextlib.AbstractContextManager[Effects]:
    """Have the block die at its side effect number `n`, from 1, before or after that took place.

    A block with fewer runs to its end; `is_dead` tells.
    """
    return _watching(Effects(n, when))


def stall_at(
    n: int, when: When, meanwhile: Callable[[], None]
) -> contextlib.AbstractContextManager[Effects]:
    """Have the block stand still at its side effect number `n`, and then go on as if nothing was.

    Not within a transaction; `has_stalled` tells.
    """
    return _watching(Effects(n, when, meanwhile))


@contextlib.contextmanager
def files_are_effects() -> Iterator[None]:
    """Have files that are written and deleted count as side effects."""
    save, delete = FileSystemStorage._save, FileSystemStorage.delete

    def saving(self: FileSystemStorage, name: str, content: Any) -> str:
        return effect("file written", lambda: save(self, name, content))

    def deleting(self: FileSystemStorage, name: str) -> None:
        effect("file deleted", lambda: delete(self, name))

    FileSystemStorage._save, FileSystemStorage.delete = saving, deleting
    try:
        yield
    finally:
        FileSystemStorage._save, FileSystemStorage.delete = save, delete
