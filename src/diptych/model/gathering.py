"""Rows of all processes as one tensor, with gradients that reach every process's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


class Shares(NamedTuple):
    """Sizes of every process's share of a batch, in the order of ranks."""

    images: list[int]
    captions: list[int]
    tokens: list[int]
    """Tokens of the longest caption, padding included."""


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process among those that train together."""
    return dist.get_rank() if world_size() > 1 else 0


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def exchange_shares(images: int, captions: int, tokens: int, device: torch.device) -> Shares:
    """Return the sizes of all processes' shares, given those of this one.

    Every process calls this at the same point of a batch; `device` is the one that they communicate with.
    """
    sizes = stack_processes(torch.tensor([images, captions, tokens], device=device))
    return Shares(*sizes.T.tolist())


def stack_processes(tensor: Tensor) -> Tensor:
    """Return `tensor` (...) of every process, stacked in the order of ranks (W, ...); its shape is the same in all."""
    if world_size() == 1:
        return tensor.unsqueeze(0)
    return torch.stack(all_gather(tensor))


def gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all processes, one process's below the other's, in the order of ranks.

    Args:
        rows: (n, ...); n may differ between processes.
        counts: the number of rows of each process. None: every process has as many as this one.
    """
    if world_size() == 1:
        return rows
    if counts is None:
        return stack_processes(rows).flatten(0, 1)
    padding = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])
    blocks = stack_processes(torch.cat([rows, padding]))
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])
