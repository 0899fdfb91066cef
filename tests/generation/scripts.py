"""Python that needs a process of its own, for what it measures or for what it does to itself."""

import subprocess
import sys


def run(script, *arguments):
    """Run a script; what it has printed."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()
