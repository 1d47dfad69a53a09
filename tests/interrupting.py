"""Trainings that end in the middle, and the next one in the same process."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from diptych.training import loop
from diptych.training.backward import Backward
from diptych.training.batches import Batch
from diptych.training.loop import Trainer
from diptych.training.step import Losses


def stop(made: Trainer, after: int) -> None:
    """Have the training end as if a user had interrupted it, after a number of steps counted from its beginning."""
    made.backward = StoppingBackward(made, after)


class StoppingBackward(Backward):
    """The backward pass of a training that is interrupted at the beginning of a step."""

    def __init__(self, made: Trainer, after: int) -> None:
        super().__init__(made.step, made.accelerator, made.backward.chunk_size)
        self.epoch_steps, self.after = made.plan.steps, after

    def __call__(self, batch: Batch) -> Losses:
        if batch.epoch * self.epoch_steps + batch.step >= self.after:
            raise KeyboardInterrupt
        return super().__call__(batch)


def forget_accelerator() -> None:
    """Have the next training of this process choose precision and device anew, which accelerate remembers."""
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 accelerate's own tests do so; no public name


def measure_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no training count its operations and multiply matrices, which takes longer than an epoch of a tiny model."""
    monkeypatch.setattr(loop, "flops_per_image", lambda *arguments: 1.0)
    monkeypatch.setattr(loop, "matrix_product_rate", lambda *device_and_precision: 1e9)
