"""A run that is under way: its processes, and the phase that it is in, by what it says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

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
"""In their order; all but the first and the last are the flow's tasks. The gate's ends with the promotion."""
_FINISHED = re.compile(r"(?:Task run '(\w+)' - |\d (\w+) +\| )Finished in state")
_LOOK = 0.05
"""Seconds between two looks at the run."""


@dataclass
class Run:
    """A run whose log is what `log` has from `offset` on, and whose process `find` finds."""

    log: Path
    offset: int
    find: Callable[[], psutil.Process | None]
    flow_run: str = ""
    """Prefect's id of it, where the deployment has started it."""
    _process: psutil.Process | None = field(default=None, repr=False)

    @property
    def process(self) -> psutil.Process | None:
        """The flow's; None where it has not started yet."""
        if self._process is None:
            self._process = self.find()
        return self._process

    @property
    def said(self) -> str:
        """All of it until now."""
        with self.log.open("rb") as file:
            file.seek(self.offset)
            return file.read().decode(errors="replace")

    def is_alive(self) -> bool:
        """Whether its process still runs."""
        if self.process is None:
            return False
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def phase(self) -> str:
        """What follows on the task that was finished last."""
        said = self.said
        finished = [found[1] or found[2] for found in _FINISHED.finditer(said)]
        known = [PHASES.index(name) for name in finished if name in PHASES]
        if not known:
            return "inbox" if "Beginning flow run" in said else "start"
        return PHASES[known[-1] + 1]

    def stage(self) -> psutil.Process | None:
        """The process of the stage that runs now."""
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
        """Whether it becomes true while the run lives, or has yet to start."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self.process is not None and not self.is_alive()
            if ended or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK)
        return True


def is_past(phase: str, other: str) -> bool:
    """Whether a run in `phase` has `other` behind it."""
    return PHASES.index(phase) > PHASES.index(other)


def engine_of(worker: psutil.Process) -> psutil.Process | None:
    """The flow's process among the worker's."""
    try:
        for child in worker.children(recursive=True):
            if "prefect.engine" in child.cmdline():
                return child
    except psutil.NoSuchProcess:
        return None
    return None


def kill_tree(process: psutil.Process) -> None:
    """At once, with all that descends from it, and waits for their end."""
    family = [process, *process.children(recursive=True)]
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
