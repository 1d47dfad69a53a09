"""What takes long to make is made once for all the processes that share the tests among them."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import shell
from filelock import FileLock

from diptych.project.holders import is_alive

OWNER = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
"""The process that has started the tests; asked at once, since a process whose parent is killed gets another one."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this run of the tests, filled by the first process that asks; the others wait for it."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, made = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


def start_server(*command: str, **settings: str) -> None:
    """Start a program that prints "ready" and serves all processes of the tests; `settings` are in its environment.

    Its last argument is the process that has started the tests; the program has to end soon after that process.

    Raises:
        RuntimeError: it has not started; the message is what it has said.
    """
    # A session of its own: what interrupts the tests must not take it from those that are still ending.
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, str(OWNER)],
            cwd=Path(__file__).parent,
            env=shell.environment(**settings),
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        assert server.stdout is not None
        with server.stdout:
            if server.stdout.readline() != b"ready\n":
                server.kill()
                server.wait()
                log.seek(0)
                raise RuntimeError(f"{shlex.join(command)}:\n{log.read().decode(errors='replace')}")


def wait_for_end(owner: int) -> None:
    """Return soon after the process `owner` has ended."""
    while is_alive(owner):
        time.sleep(1)
