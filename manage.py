#!/usr/bin/env python
"""Run a management command, with PostgreSQL and Redis at hand.

Where `DATABASE_URL` or `REDIS_URL` is not set, the embedded servers are up for as long as the
command runs; see `picture.embedded`.
"""

import os
import sys
from contextlib import ExitStack

# Commands that bring the servers up themselves, or need none.
WITHOUT_SERVICES = {"run", "demo", "help", "version", "spectacular"}


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "picture.settings")
    from django.core.management import execute_from_command_line

    from picture import settings
    from picture.embedded import EmbeddedError, services

    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    with ExitStack() as stack:
        if command not in WITHOUT_SERVICES:
            try:
                stack.enter_context(
                    services(
                        settings.DATA_DIR,
                        postgres=settings.EMBEDDED_POSTGRES,
                        redis=settings.EMBEDDED_REDIS,
                    )
                )
            except EmbeddedError as error:
                sys.exit(f"picture: {error}")
        execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
