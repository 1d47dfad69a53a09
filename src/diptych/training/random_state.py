"""The random numbers to come, on the CPU and on the GPU that trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> Tensor:
    """The CPU generator's state with the GPU's behind it, uint8 (bytes,)."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Goes back to where `random_state` was called."""
    own = len(torch.get_rng_state())
    # A clone of its own: torch reads the state as if it were aligned, and crashes where a row is not.
    torch.set_rng_state(state[:own].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[own:].clone(), device)


@contextmanager
def replayed(state: Tensor, device: torch.device) -> Iterator[None]:
    """The block meets the random numbers that came after `state`; for what follows it is as if it had not been."""
    now = random_state(device)
    set_random_state(state, device)
    try:
        yield
    finally:
        set_random_state(now, device)
