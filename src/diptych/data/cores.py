"""The cores that this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


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
