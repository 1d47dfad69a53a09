"""Trainings that end in the middle."""

from __future__ import annotations

from typing import Any

from diptych.training.batches import Batch
from diptych.training.loop import Trainer


def stop(made: Trainer, after: int) -> None:
    """Has the training end after so many steps, as if a user had interrupted it."""
    train_step, steps = made._train_step, 0

    def stopping(batch: Batch) -> Any:
        nonlocal steps
        steps += 1
        if steps > after:
            raise KeyboardInterrupt
        return train_step(batch)

    made._train_step = stopping  # type: ignore[method-assign]
