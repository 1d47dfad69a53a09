"""Spreading work over processes: results in order, a bounded queue, and one clear error when a process dies."""

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
"""So many tasks wait or run per process: no process idles, and the list of tasks is never held as a whole."""


def worker_count(threads: int | None) -> int:
    """Return the number of processes where params.yaml says `threads`: that many, or one a core that this process may
    use, by its affinity and by the CPU limit of its container.
    """
    if threads:
        return threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_limit(_CGROUP))))


def _cpu_limit(cgroup: Path) -> float:
    """Return the CPUs that a container may use (`docker run --cpus`); infinite without a limit.

    Control groups of version 2 have the limit in cpu.max, those of version 1 in two files.
    """
    files = ([cgroup / "cpu.max"], [cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"])
    for paths in files:
        with suppress(OSError, ValueError):
            quota, period = map(float, " ".join(path.read_text(encoding="ascii") for path in paths).split())
            return quota / period if quota > 0 and period > 0 else math.inf
    return math.inf


def in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Generator[Result]:
    """Yields `function(task)` of each task, in order, computed by `workers` processes (by this one if `workers` is 1).

    `function` is of a module's top level and imports little; tasks and results are small, since they are pickled.

    Raises:
        DiptychError: a process was killed.
        Exception: whatever `function` raises; tasks not yet begun are dropped.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # Forking takes milliseconds where starting Python and importing takes a second; the children only decode images.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    except OSError as error:
        # Semaphores lie in /dev/shm, which some containers do not have, or have read-only.
        _log.warning("no processes can work together here (%s), so one works alone: mount /dev/shm", error.strerror)
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
    """Leaves Ctrl-C to the parent, and ends this process when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
