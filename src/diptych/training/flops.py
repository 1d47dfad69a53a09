"""Model FLOPs utilization: what a step computes, over what the device could compute in its time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.model.device import Precision
from diptych.retrieval.embedding import AUTOCAST
from diptych.training.batches import Batch
from diptych.training.random_state import random_state, replayed
from diptych.training.step import TrainingStep

_COUNTED_IMAGES = 8
_SIDE = {"cpu": 1024}
_SIDE_ON_A_GPU = 8192
_ROUNDS = 5


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in `work`, backward ones too.

    A multiplication with an addition counts as two. The counter takes operations apart, which changes last bits.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def flops_per_image(step: TrainingStep, batch: Batch, autocast: Callable[[], AbstractContextManager[None]]) -> float:
    """Floating-point operations of a training step, by the first few images of `batch`.

    They are counted on a copy of `step`; random numbers go on as if nothing had happened.
    """
    twin, few = copy.deepcopy(step), batch.first_images(_COUNTED_IMAGES)
    device = batch.images.device

    def work() -> None:
        with autocast():
            losses = twin(few)
        losses.total.backward()

    with replayed(random_state(device), device):
        return count_flops(work) / len(few.images)


def matrix_product_rate(device: torch.device, precision: Precision) -> float:
    """Operations a second of a square matrix product in this precision, measured here and now: the best of a few."""
    side = _SIDE.get(device.type, _SIDE_ON_A_GPU)
    one = torch.ones(side, side, device=device, dtype=AUTOCAST[precision])
    best = float("inf")
    for _ in range(_ROUNDS):
        _wait(device)
        started = time.perf_counter()
        one @ one
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
