"""How long training takes, evaluation left out."""

from __future__ import annotations

import time

import torch


def now() -> float:
    """Seconds, when all that was begun on a GPU is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class StepClock:
    """Told of every step's end, and of the first one's beginning."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self) -> None:
        """Another step has ended; the first tick: the first step begins."""
        self.ticks.append(now())

    def pairs_per_second(self, pairs: int, warmup_steps: int) -> float:
        """Of steps with so many `pairs` each, the first ones left out."""
        steps = len(self.ticks) - 1 - warmup_steps
        return pairs * steps / (self.ticks[-1] - self.ticks[warmup_steps])


class EpochClock:
    """Val RSUM over the seconds that training took; what is done between pause and resume does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.epochs: list[dict[str, float]] = []
        self._since = now()

    def pause(self) -> None:
        """Training rests."""
        self.seconds += now() - self._since

    def resume(self) -> None:
        """Training goes on."""
        self._since = now()

    def record(self, rsum: float) -> None:
        """An epoch has ended with this RSUM on val."""
        self.epochs.append({"seconds": round(self.seconds, 1), "rsum": round(rsum, 2)})

    def is_over(self, budget: float) -> bool:
        """Whether the training has used up `budget` seconds; 0 never ends."""
        return 0 < budget <= self.seconds
