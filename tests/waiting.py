"""Waiting for what happens elsewhere: in another thread or another process."""

import time


def wait_until(condition, *, timeout_s=60, every_s=0.05):
    """The first true answer of `condition`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s: {condition}"
        time.sleep(every_s)
    return answer
