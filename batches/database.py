"""The database is away: what says so, and why, in a line."""

from django.db import InterfaceError, OperationalError

# What Django raises then, also when a connection that was in use is ended.
DATABASE_AWAY = (OperationalError, InterfaceError)


def reason(error: BaseException) -> str:
    """The first line of what an error says; what follows are hints for whoever set it up."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
