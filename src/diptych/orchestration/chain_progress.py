"""Progress of the stages: the share of their work that is done and the time left, from what they took before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from diptych.files import write_json

SHARES = {"validate": 5.0, "preprocess": 3.0, "baselines": 12.0, "train": 50.0, "controls": 15.0, "evaluate": 15.0}
"""Relative durations of the stages for a chain that has not run here before, those of the preset `first`."""

_LONGEST = 1e7
"""Seconds that no stage takes: four months."""


class ChainProgress:
    """Progress of a run of `stages`, in their order.

    A stage's duration is the one of its last run here for the same model, which `path` holds. Until each stage has run
    once, durations come from `SHARES`, in the proportion of what this run has taken so far.

    Args:
        path: JSON file with the seconds of each stage's last run by model; it is written after each stage that ran.
        model: name of the registered model that the run is for: what a stage takes depends on the preset.
        stages: names of the stages.
        changed: names of the stages that have to run, as far as is known; those before the first are reused.
        log: receives a line before each stage.
        clock: returns seconds.
    """

    def __init__(
        self,
        path: Path,
        model: str,
        stages: Sequence[str],
        changed: Collection[str],
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._model, self._stages, self._log, self._clock = path, model, stages, log, clock
        self._recorded = _read(path)
        recorded = self._recorded.setdefault(model, {})
        self._are_seconds = all(name in recorded for name in stages)
        durations = recorded if self._are_seconds else SHARES
        first = next((index for index, name in enumerate(stages) if name in changed), 0)
        self._expected = {name: durations[name] * (index >= first) for index, name in enumerate(stages)}
        self._measured: dict[str, float] = {}
        """Seconds of the stages that this run has run."""

    def run(self, name: str, work: Callable[[], str]) -> str:
        """Run the stage by `work`, which returns "ran" or "reused", and return that."""
        self._log(self._line(name))
        started = self._clock()
        outcome = work()
        if outcome == "ran":
            self._measured[name] = self._clock() - started
            self._recorded[self._model][name] = round(self._measured[name], 1)
            write_json(self._path, self._recorded)
        return outcome

    def _line(self, name: str) -> str:
        position = self._stages.index(name)
        done = sum(self._expected[stage] for stage in self._measured)
        left = sum(self._expected[stage] for stage in self._stages[position:])
        line = f"{name} ({position + 1} of {len(self._stages)}): {done / (done + left):.0%} of the stages' work is done"
        seconds = self._seconds_left(done, left)
        return line if seconds is None else f"{line}, about {_duration(seconds)} left"

    def _seconds_left(self, done: float, left: float) -> float | None:
        """Return the seconds left, or None where no run has measured a stage yet."""
        pace = sum(self._measured.values()) / done if done else None
        if self._are_seconds:
            # A stage that found half its work done before says nothing about the others.
            return left * max(1.0, pace or 1.0)
        return None if pace is None else left * pace


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Return the recorded seconds by model and stage; none where the file is damaged: they are a help only."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {model: _durations(stages) for model, stages in content.items()} if isinstance(content, dict) else {}


def _durations(content: object) -> dict[str, float]:
    stages = content if isinstance(content, dict) else {}
    return {name: float(seconds) for name, seconds in stages.items() if _is_duration(seconds)}


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.1 <= value < _LONGEST


def _duration(seconds: float) -> str:
    """Return a duration in words, in steps of ten seconds, as exact as an estimate is."""
    tens = max(1, round(seconds / 10)) * 10
    minutes, rest = divmod(tens, 60)
    return " ".join([f"{minutes} min"] * (minutes > 0) + [f"{rest} s"] * (rest > 0))
