"""Model FLOPs utilization: operations of a step over what the device could compute in its time."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any

import torch

from diptych.model.device import Precision
from diptych.model.gathering import world_size
from diptych.retrieval.embedding import AUTOCAST
from diptych.training.batches import Batch
from diptych.training.random_state import random_state, replayed
from diptych.training.step import TrainingStep

log = logging.getLogger(__name__)

_COUNTED_IMAGES = 8
_SIDE = {"cpu": 1024}
_SIDE_ON_A_GPU = 8192
_ROUNDS = 5


def count_flops(work: Callable[[], object]) -> int:
    """Return the floating-point operations of matrix products, convolutions and attention in `work`, with gradients.

    A multiplication with an addition counts as two. The counter decomposes operations, which changes last bits.
    """
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with _flop_counter().FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return counter.get_total_flops()


def flops_per_image(
    step: TrainingStep,
    batch: Batch,
    autocast: Callable[[], AbstractContextManager[None]],
    chunk_size: int | None = None,
) -> float:
    """Return the floating-point operations of a training step for one image; 0 where memory does not suffice.

    They are counted for a few images of `batch` on a copy of `step`. The state of random numbers is restored.
    """
    sample = batch.first_images(max(2, min(_COUNTED_IMAGES, chunk_size or _COUNTED_IMAGES)))
    device = batch.images.device

    def work(twin: TrainingStep) -> None:
        with autocast():
            losses = twin(sample)
        losses.total.backward()

    try:
        with replayed(random_state(device), device):
            return count_flops(partial(work, copy.deepcopy(step))) / len(sample.images)
    except torch.OutOfMemoryError:
        # Other processes may be waiting for this one already.
        if world_size() > 1:
            raise
        log.warning("Memory does not suffice to count floating-point operations: no utilization is reported.")
        return 0.0


def _flop_counter() -> ModuleType:
    """Return torch's counter, imported without a warning that Triton is missing: no model here has a kernel of it."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)
    from torch.utils import flop_counter

    return flop_counter


def _convolution_backward(*arguments: Any, **_: object) -> int:
    """Return the operations of the gradients of a convolution, from the shapes of aten.convolution_backward.

    The gradients of images and of weights, as far as they are needed, each cost as much as the convolution. The formula
    of torch ignores groups, and counts a depthwise gradient once for each channel.
    """
    gradient, images, weights, transposed, needed = (arguments[position] for position in (0, 1, 2, 7, 10))
    return sum(needed[:2]) * _flop_counter().conv_flop_count(images, weights, gradient, transposed)


def matrix_product_rate(device: torch.device, precision: Precision) -> float:
    """Return the operations a second of a square matrix product in this precision, the best of a few measurements.

    It is infinite where memory does not suffice.
    """
    side = _SIDE.get(device.type, _SIDE_ON_A_GPU)
    best = math.inf
    try:
        # A matrix of ones would be some ten percent faster. The training's random numbers are not used.
        drawn = torch.rand(side, side, device=device, generator=torch.Generator(device).manual_seed(0))
        matrix = drawn.to(AUTOCAST[precision])
        for _ in range(_ROUNDS):
            _wait(device)
            started = time.perf_counter()
            matrix @ matrix
            _wait(device)
            best = min(best, time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return math.inf
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
