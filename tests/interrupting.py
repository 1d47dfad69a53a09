"""Trainings that end in the middle, and the next one in the same process."""

from __future__ import annotations

from accelerate.state import AcceleratorState

from diptych.training.backward import Backward
from diptych.training.batches import Batch
from diptych.training.loop import Trainer
from diptych.training.step import Losses


def stop(made: Trainer, after: int) -> None:
    """Have the training end after a number of steps, counted over the epochs, as if a user had interrupted it."""
    made.backward = StoppingBackward(made, after)


class StoppingBackward(Backward):
    """The backward pass of a training that is interrupted at the beginning of a step."""

    def __init__(self, made: Trainer, after: int) -> None:
        super().__init__(made.step, made.accelerator, made.backward.chunk_size)
        self.left = after

    def __call__(self, batch: Batch) -> Losses:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(batch)


def forget_accelerator() -> None:
    """Have the next training of this process choose precision and device anew, which accelerate remembers."""
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 accelerate's own tests do so; no public name
