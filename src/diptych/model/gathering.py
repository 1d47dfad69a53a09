"""Rows of all processes as one tensor, with gradients that reach every process's own rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this process is."""
    return dist.get_rank() if world_size() > 1 else 0


def wait_for_all() -> None:
    """Returns when every process is here."""
    if world_size() > 1:
        dist.barrier()


def gather_rows(rows: Tensor) -> Tensor:
    """`rows` (n, ...) of every process one below the other, in the order of ranks; n may differ between processes."""
    if world_size() == 1:
        return rows
    counts = row_counts(len(rows), rows.device)
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
    blocks = _AllGather.apply(padded)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def row_counts(count: int, device: torch.device) -> list[int]:
    """Every process's `count`, in the order of ranks."""
    if world_size() == 1:
        return [count]
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return [int(value) for value in counts]


class _AllGather(torch.autograd.Function):
    """All-gather; its backward pass sums what every process says about a row and hands that to the row's owner."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> tuple[Tensor, ...]:
        blocks = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(blocks, rows.contiguous())
        return tuple(blocks)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = torch.stack(gradients)
        dist.all_reduce(total)
        return total[rank()]
