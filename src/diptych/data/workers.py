"""Parallel work in processes: results in order, a bounded queue, and another try for what a killed process did."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Generic, TypeVar

from diptych.errors import DiptychError

Task = TypeVar("Task")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
TRIES = 3
"""Number of times that a task is begun whose worker dies."""
_QUEUED_PER_WORKER = 4
"""Number of tasks that wait or run per process. No process idles, and tasks are created only when they are needed."""


def in_processes(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int, *, name: Callable[[Task], str] = str
) -> Generator[Result]:
    """Yield `work(task)` for each task, in order, computed by `workers` processes.

    If `workers` is 1, this process computes them. `work` stands at the top level of a module that imports little.
    Tasks and results are pickled, so they should be small. Tasks whose process dies are begun again, `TRIES` times at
    most; `name` returns the name of a task for messages.

    Raises:
        DiptychError: a process was killed each time.
        Exception: any error that `work` raises; tasks that have not begun are dropped.
    """
    pool = _start(workers) if workers > 1 else None
    if pool is None:
        yield from map(work, tasks)
        return
    queue, submitted = iter(tasks), _Submitted(pool, work, workers, name)
    try:
        while submitted.fill(queue):
            yield submitted.first()
    finally:
        submitted.pool.shutdown(cancel_futures=True)


class _Submitted(Generic[Task, Result]):
    """Tasks that were submitted to a pool of processes, in order."""

    def __init__(
        self, pool: ProcessPoolExecutor, work: Callable[[Task], Result], workers: int, name: Callable[[Task], str]
    ) -> None:
        self.pool, self._work, self._workers, self._name = pool, work, workers, name
        self._pending = deque[tuple[Task, Future[Result]]]()

    def fill(self, queue: Iterator[Task]) -> bool:
        """Submit as many tasks as keep all processes busy; return whether there are any."""
        for task in islice(queue, self._workers * _QUEUED_PER_WORKER - len(self._pending)):
            self._pending.append((task, self._submit(task)))
        return bool(self._pending)

    def first(self) -> Result:
        """Wait for the result of the first task, which leaves; start other processes for those that are killed."""
        for tries in range(1, TRIES + 1):
            task, future = self._pending[0]
            try:
                result = future.result()
            except BrokenProcessPool:
                if tries < TRIES:
                    self._begin_again()
            else:
                self._pending.popleft()
                return result
        raise DiptychError(
            f"The worker process of {self._name(task)}, or of a task that ran at the same time, was killed {TRIES} "
            "times, most likely because memory ran out. Free memory or lower `threads` in params.yaml, then run again."
        )

    def _begin_again(self) -> None:
        """Submit what was lost to new processes."""
        _log.warning(
            "A worker process was killed. What it did, such as %s, is done again.", self._name(self._pending[0][0])
        )
        self.pool.shutdown()
        self.pool = _start(self._workers) or self.pool
        self._pending = deque(
            (task, self._submit(task) if isinstance(future.exception(), BrokenProcessPool) else future)
            for task, future in self._pending
        )

    def _submit(self, task: Task) -> Future[Result]:
        """Submit a task; to a pool whose process was killed, as a future with that error."""
        try:
            return self.pool.submit(self._work, task)
        except BrokenProcessPool as error:
            future: Future[Result] = Future()
            future.set_exception(error)
            return future


def _start(workers: int) -> ProcessPoolExecutor | None:
    """Return a pool of processes; None, with a warning, where there can be none."""
    # A fork takes milliseconds; starting Python and importing takes a second. The children only decode images.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        return ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    except OSError as error:
        # Semaphores are files in /dev/shm, which is missing or read-only in some containers.
        _log.warning(
            "worker processes cannot be started (%s), so one process does all work: mount /dev/shm", error.strerror
        )
        return None


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end this process when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
