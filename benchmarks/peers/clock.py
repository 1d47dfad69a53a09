"""Clocks for the time of training, without evaluation."""

from __future__ import annotations

import time

import torch


def now() -> float:
    """Return the time in seconds, after the GPU has finished its work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepClock:
    """A clock that ticks at the beginning of the first step, and at the end of every step."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self) -> None:
        """Record the end of a step; the first tick is the beginning of the first step."""
        self.ticks.append(now())

    def pairs_per_second(self, pairs: int, warmup_steps: int) -> float:
        """Return the speed of steps with `pairs` each, without the first `warmup_steps`."""
        steps = len(self.ticks) - 1 - warmup_steps
        return pairs * steps / (self.ticks[-1] - self.ticks[warmup_steps])


class EpochClock:
    """A clock of val RSUM over the seconds of training; time between pause and resume does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.epochs: list[dict[str, float]] = []
        self._since = now()

    def pause(self) -> None:
        """Stop the clock."""
        self.seconds += now() - self._since

    def resume(self) -> None:
        """Continue the clock."""
        self._since = now()

    def record(self, rsum: float) -> None:
        """Record the end of an epoch with its RSUM on val."""
        self.epochs.append({"seconds": round(self.seconds, 1), "rsum": round(rsum, 2)})

    def is_over(self, budget: float) -> bool:
        """Return True if the training has used up `budget` seconds; 0 is no limit."""
        return 0 < budget <= self.seconds
