"""Two processes against one: the same loss and the same gradients."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.multiprocessing as mp
from gloo import contrastive_process, data, loss_of, nt_xent_of, nt_xent_process, views

from diptych.model.gathering import gather_rows, rank, world_size


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(contrastive_process, args=(str(tmp_path),), nprocs=2)
    image, text = (tensor.requires_grad_() for tensor in data())
    scale = torch.tensor(5.0, requires_grad=True)
    loss = loss_of(image, text, [0, 0, 1, 2, 3, 3, 3, 4], scale)
    loss.backward()
    parts = [torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(2)]
    mean_loss, mean_scale = ((parts[0][i] + parts[1][i]) / 2 for i in (0, 3))
    assert torch.allclose(mean_loss, loss)
    assert torch.allclose(mean_scale, scale.grad)
    # Data-parallel training averages over processes, hence the half.
    assert torch.allclose(torch.cat([part[1] for part in parts]) / 2, image.grad, atol=1e-6)
    assert torch.allclose(torch.cat([part[2] for part in parts]) / 2, text.grad, atol=1e-6)
    assert parts[0][4].tolist() == [2, 3]


def test_two_processes_have_the_nt_xent_loss_and_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(nt_xent_process, args=(str(tmp_path),), nprocs=2)
    for name, owner in (("siblings", [0, 0, 1, 2, 3, 3, 3, 4]), ("alone", None)):
        first, second = (view.requires_grad_() for view in views())
        loss = nt_xent_of(first, second, owner)
        loss.backward()
        parts = [torch.load(tmp_path / f"{name}-{index}.pt", weights_only=True) for index in range(2)]
        assert torch.allclose((parts[0][0] + parts[1][0]) / 2, loss)
        assert torch.allclose(torch.cat([part[1] for part in parts]) / 2, first.grad, atol=1e-6)
        assert torch.allclose(torch.cat([part[2] for part in parts]) / 2, second.grad, atol=1e-6)


def test_alone_there_is_nothing_to_gather() -> None:
    rows = torch.randn(3, 2)
    assert world_size() == 1
    assert rank() == 0
    assert gather_rows(rows) is rows
