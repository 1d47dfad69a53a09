"""Work for the nodes of a cluster, which import this module."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from diptych.errors import DiptychError


def square(number: int) -> int:
    return number**2


def refuse(number: int) -> int:
    raise DiptychError(f"no {number}")


def die_once(folder: Path, number: int) -> int:
    if number % 5 == 3 and not (folder / str(number)).exists():
        (folder / str(number)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def variable(name: str) -> str | None:
    return os.environ.get(name)


def wait_for(folder: Path, number: int) -> int:
    """Wait until the folder has the file `go`, except for the first number."""
    (folder / str(number)).touch()
    while number and not (folder / "go").exists():
        time.sleep(0.02)
    return number
