"""State of the random generators of the CPU and of the GPU that trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device) -> Tensor:
    """Return the CPU generator's state with the GPU's behind it, uint8 (bytes,)."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set the generators to `state`, which `random_state` returned."""
    cpu_bytes = len(torch.get_rng_state())
    # Clones, because torch reads the state as if it were aligned, and crashes where a row is not.
    torch.set_rng_state(state[:cpu_bytes].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[cpu_bytes:].clone(), device)


@contextmanager
def replayed(state: Tensor, device: torch.device) -> Iterator[None]:
    """Give the block the random numbers that came after `state`; afterwards, go on as if the block had drawn none."""
    now = random_state(device)
    set_random_state(state, device)
    try:
        yield
    finally:
        set_random_state(now, device)
