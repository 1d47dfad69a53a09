"""Parallel work on the shards of a dataset, wherever it is done: one function for processes and for a cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from diptych.data.cluster import ONE_CORE, Need, in_cluster, is_in_use
from diptych.data.shards import MAX_MEMBERS
from diptych.data.workers import in_processes

Task = TypeVar("Task")
Result = TypeVar("Result")

_BATCH = 32
"""Number of images of a task of a process."""


def batch_size() -> int:
    """Return the number of images of a task.

    A cluster's task is a whole shard: two machines that write parts of one file on shared storage can destroy each
    other's. Within a machine small tasks keep all cores busy to the end.
    """
    return MAX_MEMBERS if is_in_use() else _BATCH


def map_shards(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    *,
    name: Callable[[Task], str],
    inputs: Sequence[Path] = (),
    need: Need = ONE_CORE,
) -> Generator[Result]:
    """Yield `work(task)` for each task, in order: by the cluster that RAY_ADDRESS names, else by `workers` processes.

    Tasks are shards, or batches of `batch_size` of their images.

    Args:
        work: stands at the top level of a module that imports little; paths in it are absolute.
        tasks: small, as they are pickled.
        workers: number of processes.
        name: returns the name of a task for messages.
        inputs: absolute paths of files by which each node of a cluster proves that it sees the same data.
        need: what a task occupies of a cluster's node.

    Raises:
        DiptychError: the worker of a task died each time, or the cluster cannot be used.
        Exception: any error that `work` raises; tasks that have not begun are dropped.
    """
    if is_in_use():
        return in_cluster(work, tasks, name=name, inputs=inputs, need=need)
    return in_processes(work, tasks, workers, name=name)
