"""A run in progress: its processes, and its phase, which its output shows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

PHASES = (
    "start",
    "inbox",
    "data",
    "validate",
    "reasons",
    "preprocess",
    "baselines",
    "train",
    "controls",
    "evaluate",
    "publish",
    "register",
    "share",
    "gate",
    "summary",
    "end",
)
"""Phases in order; all but the first and the last are tasks of the flow. The gate's task ends with the promotion."""
_FINISHED = re.compile(r"(?:Task run '(\w+)' - |\d (\w+) +\| )Finished in state")
_LOOK = 0.05
"""Seconds between two checks of the run."""


@dataclass
class Run:
    """A run whose output is in `log` from `offset` on, and whose process `find` returns."""

    log: Path
    offset: int
    find: Callable[[], psutil.Process | None]
    flow_run: str = ""
    """Prefect's id of the run, where the deployment has started it."""
    _process: psutil.Process | None = field(default=None, repr=False)

    @property
    def process(self) -> psutil.Process | None:
        """The process of the flow; None where it has not started yet."""
        if self._process is None:
            self._process = self.find()
        return self._process

    @property
    def output(self) -> str:
        """The run's output until now."""
        with self.log.open("rb") as file:
            file.seek(self.offset)
            return file.read().decode(errors="replace")

    def is_alive(self) -> bool:
        """Return True if the flow's process still runs."""
        if self.process is None:
            return False
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def phase(self) -> str:
        """Return the phase after the task that was finished last."""
        output = self.output
        finished = [match[1] or match[2] for match in _FINISHED.finditer(output)]
        known = [PHASES.index(name) for name in finished if name in PHASES]
        if not known:
            return "inbox" if "Beginning flow run" in output else "start"
        return PHASES[known[-1] + 1]

    def stage(self) -> psutil.Process | None:
        """Return the process of the stage that runs now; None where no stage runs."""
        if not self.is_alive():
            return None
        assert self.process is not None
        try:
            for child in self.process.children(recursive=True):
                words = child.cmdline()
                if "stage" in words and any(Path(word).name == "diptych" for word in words):
                    return child
        except psutil.NoSuchProcess:
            return None
        return None

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for `condition` until the run has ended; return whether the condition became true."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self.process is not None and not self.is_alive()
            if ended or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK)
        return True


def is_past(phase: str, other: str) -> bool:
    """Return True if a run in `phase` has finished the phase `other`."""
    return PHASES.index(phase) > PHASES.index(other)


def engine_of(worker: psutil.Process) -> psutil.Process | None:
    """Return the process of the flow among those of the worker."""
    try:
        for child in worker.children(recursive=True):
            if "prefect.engine" in child.cmdline():
                return child
    except psutil.NoSuchProcess:
        return None
    return None


def kill_tree(process: psutil.Process) -> None:
    """Kill a process and all its descendants at once, and wait for their end."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
