"""Two processes against one: the same losses and the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gloo import ALL_OWNERS, contrastive_of, gradient, itm_of, nt_xent_of, random

from diptych.model.gathering import exchange_shares, gather_rows, rank, stack_processes, wait_for_all, world_size

Pair = tuple[Path, Callable[[str], tuple[Any, Any]]]


def test_two_processes_have_the_loss_and_gradients_of_one(two_processes: Pair) -> None:
    parts = two_processes[1]("contrastive")
    image, text = random(5, 8).requires_grad_(), random(8, 8, seed=1).requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    loss = contrastive_of(image, text, ALL_OWNERS, scale)
    loss.backward()
    mean_loss, mean_scale = ((parts[0][i] + parts[1][i]) / 2 for i in (0, 3))
    assert torch.allclose(mean_loss, loss)
    assert torch.allclose(mean_scale, gradient(scale))
    # Data-parallel training averages over processes, hence the half.
    assert torch.allclose(torch.cat([part[1] for part in parts]) / 2, gradient(image), atol=1e-6)
    assert torch.allclose(torch.cat([part[2] for part in parts]) / 2, gradient(text), atol=1e-6)
    assert parts[0][4].tolist() == parts[1][4].tolist() == [[2, 3], [3, 5], [0, 1]]


def test_two_processes_have_the_nt_xent_loss_and_gradients_of_one(two_processes: Pair) -> None:
    both = two_processes[1]("nt_xent")
    for parts, owner in zip(zip(*both, strict=True), (ALL_OWNERS, None), strict=True):
        first, second = (random(8, 8, seed=seed).requires_grad_() for seed in (2, 3))
        loss = nt_xent_of(first, second, owner)
        loss.backward()
        assert torch.allclose((parts[0][0] + parts[1][0]) / 2, loss)
        assert torch.allclose(torch.cat([part[1] for part in parts]) / 2, gradient(first), atol=1e-6)
        assert torch.allclose(torch.cat([part[2] for part in parts]) / 2, gradient(second), atol=1e-6)


def test_two_processes_have_the_fusions_losses_and_gradients_of_one_whatever_the_order_of_its_captions(
    two_processes: Pair,
) -> None:
    """Alone, all captions are in the order of their lengths, and those of different images take turns."""
    first, second = two_processes[1]("itm")
    order = torch.tensor([3, 0, 7, 1, 2, 4, 5, 6])
    *losses, grid, tokens, score, word, scale = itm_of(slice(None), order, [ALL_OWNERS[i] for i in order], 6)
    for i, alone in enumerate(losses):
        assert torch.allclose((first[i] + second[i]) / 2, alone)
    assert torch.allclose(torch.cat([first[2], second[2]]) / 2, grid, atol=1e-6)
    padded = torch.nn.functional.pad(first[3], (0, 0, 0, 3))
    assert torch.allclose(torch.cat([padded, second[3]])[order] / 2, tokens, atol=1e-6)
    for i, alone in enumerate((score, word, scale), start=4):
        assert torch.allclose((first[i] + second[i]) / 2, alone, atol=1e-6)
    assert tokens.abs().max() > 1e-3


def test_alone_there_is_nothing_to_gather() -> None:
    rows = torch.randn(3, 2)
    assert world_size() == 1
    assert rank() == 0
    assert exchange_shares(3, 5, 7, rows.device) == ([3], [5], [7])
    assert torch.equal(stack_processes(rows), rows[None])
    assert gather_rows(rows) is rows
    wait_for_all()
