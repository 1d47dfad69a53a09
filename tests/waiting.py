"""Waiting for what other processes do."""

import time

from diptych.project.holders import is_alive


def dies(pid: int, seconds: float = 10) -> bool:
    """Whether a process has ended within the time given to it."""
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
