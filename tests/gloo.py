"""What a process of a two-process test does: in a module of its own, so that a spawned process can import it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import make_model, open_prepared, train_settings
from torch.nn.functional import normalize

from diptych.model.gathering import row_counts
from diptych.model.objectives import contrastive_loss, nt_xent_loss
from diptych.training.checkpoints import Checkpoints
from diptych.training.loop import Trainer

OWNERS = ([0, 0, 1], [0, 1, 1, 1, 2])
"""Of the captions of two processes with two and three images."""


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 8, generator=generator), torch.randn(8, 8, generator=generator)


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 8, generator=generator), torch.randn(8, 8, generator=generator)


def loss_of(image: torch.Tensor, text: torch.Tensor, owner: list[int], scale: torch.Tensor) -> torch.Tensor:
    return contrastive_loss(normalize(image, dim=1), normalize(text, dim=1), torch.tensor(owner), scale)


def contrastive_process(index: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=index, world_size=2)
    images, texts = data()
    image = (images[:2], images[2:])[index].clone().requires_grad_()
    text = (texts[:3], texts[3:])[index].clone().requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    loss = loss_of(image, text, OWNERS[index], scale)
    loss.backward()
    counts = row_counts(len(image), image.device)
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    torch.save([loss.detach(), image.grad, text.grad, scale.grad, torch.tensor(counts)], f"{folder}/{index}.pt")
    dist.destroy_process_group()


def nt_xent_of(first: torch.Tensor, second: torch.Tensor, owner: list[int] | None) -> torch.Tensor:
    given = None if owner is None else torch.tensor(owner)
    return nt_xent_loss(normalize(first, dim=1), normalize(second, dim=1), 0.2, given)


def nt_xent_process(index: int, folder: str) -> None:
    """Three of the eight captions are the first process's, five the second's; once with siblings, once without."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=index, world_size=2)
    mine = (slice(0, 3), slice(3, 8))[index]
    for name, owner in (("siblings", OWNERS[index]), ("alone", None)):
        first, second = (view[mine].clone().requires_grad_() for view in views())
        loss = nt_xent_of(first, second, owner)
        loss.backward()
        assert first.grad is not None
        assert second.grad is not None
        torch.save([loss.detach(), first.grad, second.grad], f"{folder}/{name}-{index}.pt")
    dist.destroy_process_group()


def training_process(index: int, folder: str, processes: int) -> None:
    """Trains a tiny model as one of several processes, interrupted once, and saves its weights."""
    torch.set_num_threads(1)
    meeting = Path(folder) / f"meeting-{processes}"
    for variable, value in (("RANK", index), ("LOCAL_RANK", index), ("WORLD_SIZE", processes), ("MASTER_PORT", 0)):
        os.environ[variable] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=index, world_size=processes)
    trainer = make_trainer(folder, processes)
    trainer._train_epoch = interrupted(trainer._train_epoch)  # type: ignore[method-assign]
    try:
        trainer.run()
    except KeyboardInterrupt:
        trainer = make_trainer(folder, processes)
        trainer.run()
    torch.save(trainer.model.state_dict(), f"{folder}/{processes}-{index}.pt")
    dist.destroy_process_group()


def make_trainer(folder: str, processes: int) -> Trainer:
    """The same whatever the number of processes: no dropout, no negatives drawn by each process for itself."""
    prepared = open_prepared(Path(folder) / "p")
    model = make_model(prepared.settings["vocabulary_size"], fusion={"layers": 1, "heads": 2, "dropout": 0.0})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Each process would take the mean over its own images.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
            module.forward = functools.partial(normalize_by_running, module)  # type: ignore[method-assign]
    return Trainer(
        model,
        prepared.split("train"),
        prepared.split("val"),
        train_settings(objectives={"matching": 0.0}, epochs=2, image_tower_frozen_epochs=1),
        seed=0,
        evaluation_batch=8,
        checkpoints=Checkpoints(Path(folder) / f"checkpoints-{processes}", {}),
        report=lambda values, step: None,
        device=torch.device("cpu"),
    )


def normalize_by_running(norm: torch.nn.BatchNorm2d, values: torch.Tensor) -> torch.Tensor:
    """Batch normalization by the running statistics alone."""
    return torch.nn.functional.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def interrupted(train_epoch: Callable[[Any], None]) -> Callable[[Any], None]:
    """The first epoch runs, the second does not begin."""
    epochs = 0

    def once(bar: Any) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            raise KeyboardInterrupt
        train_epoch(bar)

    return once
