"""Model FLOPs utilization: what a step computes, over what the device could compute in its time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.model.device import Precision
from diptych.retrieval.embedding import AUTOCAST

_SIDE = {"cpu": 1024}
_SIDE_ON_A_GPU = 8192
_ROUNDS = 5


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in `step`, forward and backward.

    A multiplication with an addition counts as two. Counting takes operations apart, which changes last bits: not for a
    step that the training keeps.
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


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
