"""Losses of a batch and their gradients, at once or in as large chunks as memory allows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from diptych.errors import DiptychError
from diptych.model.gathering import world_size
from diptych.model.kernels import learning_kernels
from diptych.training.averaging import GradientAverage
from diptych.training.batches import Batch
from diptych.training.gradients import backward_in_chunks
from diptych.training.random_state import random_state, set_random_state
from diptych.training.step import Losses, TrainingStep

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class Backward:
    """The backward pass: it gives every weight of `step` its gradient.

    Args:
        step: the model under its objectives.
        accelerator: gives the precision, and the scaling of losses that fp16 needs.
        chunk_size: the number of images encoded at once; None: all, or what fits into a GPU's memory.
    """

    def __init__(self, step: TrainingStep, accelerator: Accelerator, chunk_size: int | None) -> None:
        self.step = step
        self.accelerator = accelerator
        self.chunk_size = chunk_size
        self._average = GradientAverage(step.parameters())

    def __call__(self, batch: Batch) -> Losses:
        """Return the losses of this process's share of a step; gradients are the means over all processes.

        Where memory does not suffice, the step is repeated in chunks half as large.

        Raises:
            DiptychError: a GPU's memory does not suffice for one image, or for one of several processes.
        """
        before = random_state(self.accelerator.device)
        learning = [module for module in self.step.modules() if module.training]
        buffers = [buffer for module in learning for buffer in module.buffers(recurse=False)]
        values = [buffer.clone() for buffer in buffers]
        while (result := self._attempt(batch)) is None:
            self.step.zero_grad()
            set_random_state(before, self.accelerator.device)
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
        self._average.finish()
        return result

    def _attempt(self, batch: Batch) -> Losses | None:
        """Return the losses, or None where memory did not suffice and the chunks are smaller now."""
        try:
            return self._backward(batch)
        except torch.OutOfMemoryError as error:
            # The error's traceback holds on to all that the attempt had in memory, so only its text is kept.
            reason = str(error)
        self._shrink_chunks(len(batch.images), reason)
        return None

    def _backward(self, batch: Batch) -> Losses:
        backward, size, last_pass = self.accelerator.backward, self.chunk_size, self._average.last_pass
        if size is not None and size < max(batch.shares.images):
            return backward_in_chunks(
                self.step, batch, size, autocast=self._computing, backward=backward, last_pass=last_pass
            )
        with self._computing():
            losses: Losses = self.step(batch)
        with last_pass():
            backward(losses.total)
        return losses

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self.accelerator.autocast(), learning_kernels(self.accelerator.device):
            yield

    def _shrink_chunks(self, images: int, reason: str) -> None:
        size = min(self.chunk_size or images, images)
        # Other processes may be waiting for this one already.
        if size == 1 or world_size() > 1:
            raise DiptychError(
                f"the GPU's memory does not suffice for {size} image(s) at once ({reason}). "
                "Set train.chunk_size to less, or lower train.batch_size."
            )
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        self.chunk_size = -(-size // 2)
        log.warning("Memory does not suffice for %d images at once: going on with %d.", size, self.chunk_size)
