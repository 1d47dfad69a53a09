"""Waiting for what other processes do."""

import time
from collections.abc import Callable

from diptych.project.holders import is_alive


def comes_true(condition: Callable[[], bool], seconds: float = 120, pause: float = 0.02) -> bool:
    """Whether a condition holds within the time given to it; it is asked again after `pause` seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def dies(pid: int, seconds: float = 10) -> bool:
    """Whether a process has ended within the time given to it."""
    return comes_true(lambda: not is_alive(pid), seconds)
