"""Parallel work in processes: results in order, a bounded queue, and one clear error when a process dies."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

from diptych.errors import DiptychError

Task = TypeVar("Task")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_CGROUP = Path("/sys/fs/cgroup")
_QUEUED_PER_WORKER = 4
"""Number of tasks that wait or run per process. No process idles, and tasks are created only when they are needed."""


def worker_count(threads: int | None) -> int:
    """Return the number of processes: `threads` of params.yaml if given, else one for each usable core.

    The usable cores are limited by the affinity of this process and by the CPU limit of its container.
    """
    if threads:
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_limit(_CGROUP))))


def _cpu_limit(cgroup: Path) -> float:
    """Return the number of CPUs that a container may use (`docker run --cpus`); infinite without a limit.

    Control groups of version 2 have the limit in cpu.max; those of version 1 have it in two files.
    """
    files = ([cgroup / "cpu.max"], [cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"])
    for paths in files:
        with suppress(OSError, ValueError):
            quota, period = map(float, " ".join(path.read_text(encoding="ascii") for path in paths).split())
            return quota / period if quota > 0 and period > 0 else math.inf
    return math.inf


def in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Generator[Result]:
    """Yield `function(task)` for each task, in order, computed by `workers` processes.

    If `workers` is 1, this process computes them. `function` stands at the top level of a module that imports little.
    Tasks and results are pickled, so they should be small.

    Raises:
        DiptychError: a process was killed.
        Exception: any error that `function` raises; tasks that have not begun are dropped.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # A fork takes milliseconds; starting Python and importing takes a second. The children only decode images.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    except OSError as error:
        # Semaphores are files in /dev/shm, which is missing or read-only in some containers.
        _log.warning(
            "worker processes cannot be started (%s), so one process does all work: mount /dev/shm", error.strerror
        )
        yield from map(function, tasks)
        return
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) == workers * _QUEUED_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DiptychError(
            "A worker process was killed, most likely because memory ran out. "
            "Lower `threads` in params.yaml or free memory, then run again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end this process when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
