"""The work of the processes of a test of several.

One pair does everything, and a group of four trains, for all processes of the tests: `two_processes` and
`four_processes` in conftest.py. They are forks of a fork that has imported what they need and computed nothing:
PyTorch's threads do not survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from interrupting import measure_no_speed, stop
from timm.layers.norm_act import BatchNormAct2d
from tiny import make_model, open_prepared, train_settings, write_prepared
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.functional import normalize

from diptych.config import Objectives
from diptych.data.prepared import Prepared
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.gathering import exchange_shares
from diptych.model.normalization import synchronize_batch_norms
from diptych.model.objectives import alignment_loss, contrastive_loss, draw_hard_negatives, itm_loss, nt_xent_loss
from diptych.training import averaging
from diptych.training.averaging import GradientAverage
from diptych.training.batches import Batch, BatchPlan
from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.gradients import backward_in_chunks
from diptych.training.loop import Setup, Trainer
from diptych.training.step import TrainingStep

OWNERS = ([0, 0, 1], [0, 1, 1, 1, 2])
"""Of the captions of two processes with two and three images."""
ALL_OWNERS = [0, 0, 1, 2, 3, 3, 3, 4]
IMAGES = (slice(0, 2), slice(2, 5))
CAPTIONS = (slice(0, 3), slice(3, 8))
CPU = torch.device("cpu")


def run_together(folder: Path, processes: int) -> None:
    """Have so many processes write into `folder`."""
    write_prepared(folder / "p", train=39)
    start_processes(run_one, args=(processes, str(folder)), nprocs=processes, start_method="fork")


def run_one(index: int, processes: int, folder: str) -> None:
    """Run one of the processes, and save what each part returns as NAME-INDEX.pt."""
    torch.set_num_threads(1)
    measure_no_speed(pytest.MonkeyPatch())
    for variable, value in (("RANK", index), ("LOCAL_RANK", index), ("WORLD_SIZE", processes), ("MASTER_PORT", 0)):
        os.environ[variable] = str(value)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    meeting = f"file://{folder}/meeting"
    # Processes that wait for each other for ever are to fail and not to hang.
    dist.init_process_group(
        "gloo", init_method=meeting, rank=index, world_size=processes, timeout=timedelta(seconds=120)
    )
    of_two = (contrastive, nt_xent, itm, batch_norms, averages, overlapping, chunks, room)
    for part in (*of_two, training) if processes == 2 else (training,):
        torch.save(part(index, Path(folder)), f"{folder}/{part.__name__}-{index}.pt")
    dist.destroy_process_group()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def contrastive_of(image: Tensor, text: Tensor, owner: list[int], scale: Tensor) -> Tensor:
    return contrastive_loss(normalize(image, dim=1), normalize(text, dim=1), torch.tensor(owner), scale, smoothing=0.2)


def contrastive(index: int, folder: Path) -> list[Tensor]:
    image = random(5, 8)[IMAGES[index]].requires_grad_()
    text = random(8, 8, seed=1)[CAPTIONS[index]].requires_grad_()
    scale = torch.tensor(5.0, requires_grad=True)
    loss = contrastive_of(image, text, OWNERS[index], scale)
    loss.backward()
    shares = torch.tensor(exchange_shares(len(image), len(text), index, CPU))
    return [loss.detach(), gradient(image), gradient(text), gradient(scale), shares]


def nt_xent_of(first: Tensor, second: Tensor, owner: list[int] | None) -> Tensor:
    given = None if owner is None else torch.tensor(owner)
    return nt_xent_loss(normalize(first, dim=1), normalize(second, dim=1), 0.2, given)


def nt_xent(index: int, folder: Path) -> list[list[Tensor]]:
    """Three of the eight captions are the first process's, five the second's; once with siblings, once without."""
    results = []
    for owner in (OWNERS[index], None):
        first, second = (random(8, 8, seed=seed)[CAPTIONS[index]].requires_grad_() for seed in (2, 3))
        loss = nt_xent_of(first, second, owner)
        loss.backward()
        results.append([loss.detach(), gradient(first), gradient(second)])
    return results


def itm_of(images: slice, captions: Tensor, owner: list[int], width: int) -> list[Tensor]:
    """Both losses of the fusion, and the gradients of their sum, captions in this order, padded to `width`."""
    model = make_model(fusion={"layers": 1, "heads": 2, "dropout": 0.0})
    # A scale of one, at which no negative is far likelier than the others.
    nn.init.zeros_(model.log_scale)
    grid = random(5, model.image_tower.grid_size, 16)[images].requires_grad_()
    tokens = random(8, 6, 16, seed=1)[captions, :width].requires_grad_()
    mask = torch.arange(6) < torch.tensor([2, 3, 3, 1, 4, 5, 6, 2])[:, None]
    pooled_images, pooled_texts = (normalize(random(count, 16, seed=count), dim=1) for count in (5, 8))
    pairs = draw_hard_negatives(
        model,
        ImageFeatures(grid, pooled_images[images]),
        TextFeatures(tokens, mask[captions, :width], pooled_texts[captions]),
        torch.tensor(owner),
        torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),
    )
    alignment = model.fusion.alignment
    assert alignment is not None
    losses = itm_loss(model, pairs), alignment_loss(model, pairs)
    torch.stack(losses).sum().backward()
    weights = gradient(model.fusion.score.weight), gradient(alignment.word.weight), gradient(alignment.log_scale)
    return [*(loss.detach() for loss in losses), gradient(grid), gradient(tokens), *weights]


def itm(index: int, folder: Path) -> list[Tensor]:
    """The first process's captions are shorter than the second's."""
    return itm_of(IMAGES[index], torch.arange(8)[CAPTIONS[index]], OWNERS[index], (3, 6)[index])


NORMS: dict[str, Callable[[], nn.BatchNorm2d]] = {
    "torch": lambda: nn.BatchNorm2d(3),
    "timm": lambda: BatchNormAct2d(3),
}


def normalized(norm: nn.Module, images: slice) -> list[Tensor]:
    """Two batches learned from, with means far from zero; then one in evaluation mode and one in half precision."""
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, 1.0]))
    batches = [(random(5, 3, 4, 4, seed=seed) + 3 * seed)[images].requires_grad_() for seed in (1, 2)]
    weights = random(5, 3, 4, 4, seed=3)[images]
    outputs = [norm(values) for values in batches]
    sum((output * weights).sum() for output in outputs).backward()
    half = norm(batches[0].detach().bfloat16())
    norm.eval()
    rows = [*outputs, norm(batches[0]), half, *map(gradient, batches)]
    state = [norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [tensor.detach() for tensor in [*rows, *state] if tensor is not None]


def batch_norms(index: int, folder: Path) -> list[list[Tensor]]:
    made = nn.ModuleList([make() for make in NORMS.values()])
    synchronize_batch_norms(made)
    return [normalized(norm, IMAGES[index]) for norm in made]


def averages(index: int, folder: Path) -> list[Tensor | None]:
    """Weights of two types; the first process has no gradient of the second weight; the last one is frozen."""
    weights = [nn.Parameter(torch.zeros(2, 3, dtype=dtype)) for dtype in (torch.float32,) * 4 + (torch.float64,) * 2]
    weights[-1].requires_grad_(False)
    for position, weight in enumerate(weights[:-1]):
        if (index, position) != (0, 1):
            weight.grad = torch.full_like(weight, 10.0 * position + index)
    averaging.BUCKET_BYTES = 30
    GradientAverage(weights).finish()
    return [weight.grad for weight in weights]


def overlapping(index: int, folder: Path) -> list[tuple[int, list[Tensor | None]]]:
    """Buckets sent by the end of the last of two backward passes, and the means, in each of three steps.

    A bucket holds one weight. In the second step the first weight is frozen; in the third the second process's last
    weight has no gradient, and with its bucket all others have to wait.
    """
    weights = [nn.Parameter(torch.full((8,), float(value))) for value in (1, 2, 3)]
    average, steps = GradientAverage(weights), []
    with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as sent:
        for frozen, lacking in ((0, 3), (1, 3), (0, 2)):
            weights[0].requires_grad_(not frozen)
            used: list[Tensor] = [*weights[: lacking if index else 3]]
            sent.reset_mock()
            torch.stack(used).square().sum().backward()
            sent.assert_not_called()
            with average.last_pass():
                (torch.stack(used).sum() * (index + 1)).backward()
            in_time = sent.call_count
            average.finish()
            steps.append((in_time, [weight.grad for weight in weights]))
            for weight in weights:
                weight.grad = None
    return steps


def undropped(model: DualEncoder) -> DualEncoder:
    """Without dropout, which each process draws for itself."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def one_batch(prepared: Prepared, rank: int = 0, world_size: int = 1) -> Batch:
    plan = BatchPlan(
        prepared.split("train"), batch_size=5, captions_per_image=2, seed=0, rank=rank, world_size=world_size
    )
    return next(plan.epoch(0))


def gradients_of(prepared: Prepared, batch: Batch, chunk_size: int, *, statistics_frozen: bool) -> dict[str, Tensor]:
    """Return the gradients of a step in chunks, averaged over the processes, and the batch norms' statistics."""
    model = undropped(make_model(prepared.settings["vocabulary_size"], fusion={"heads": 2, "dropout": 0.0}))
    synchronize_batch_norms(model)
    step = TrainingStep(model, Objectives(itm=0.7), seed=0).train()
    model.image_tower.set_learning(True, statistics_frozen=statistics_frozen)
    average = GradientAverage(step.parameters())
    backward_in_chunks(
        step, batch, chunk_size, autocast=torch.enable_grad, backward=Tensor.backward, last_pass=average.last_pass
    )
    average.finish()
    results = {name: weight.grad for name, weight in step.named_parameters() if weight.grad is not None}
    return results | {name: value for name, value in step.named_buffers() if "running" in name}


def chunks(index: int, folder: Path) -> list[dict[str, Tensor]]:
    """Three images and two: in chunks of two these are two chunks and one, in chunks of one three and two."""
    prepared = open_prepared(folder / "p")
    batch = one_batch(prepared, index, 2)
    frozen = gradients_of(prepared, batch, 2, statistics_frozen=True)
    return [frozen, *(gradients_of(prepared, batch, size, statistics_frozen=False) for size in (1, 2))]


def room(index: int, folder: Path) -> bool:
    """Return True if features are stored where the second process alone has room for them."""
    cache = FeatureCache(folder / "room", limit_gib=(1e-9, 1.0)[index], device=CPU, precision="no")
    prepared = open_prepared(folder / "p")
    return cache.images(make_model().image_tower, [prepared.split("val")]) is not None


def training(index: int, folder: Path) -> dict[str, Tensor]:
    return trained(folder, "together", dist.get_world_size())


def trained(folder: Path, name: str, processes: int) -> dict[str, Tensor]:
    """The weights after a training that was interrupted in its second epoch and resumed, and its mean losses.

    Its batches are such as `processes` can share.
    """
    trainer = make_trainer(folder, name, processes)
    stop(trainer, after=7)
    try:
        trainer.run()
        raise AssertionError("it was not interrupted")
    except KeyboardInterrupt:
        trainer = make_trainer(folder, name, processes)
    history = trainer.run().history
    losses = {name: [row[name] for row in history] for name in ("loss", "contrastive", "itm", "val_rsum")}
    return trainer.model.state_dict() | {f"mean {name}": torch.tensor(values) for name, values in losses.items()}


def make_trainer(folder: Path, name: str, processes: int) -> Trainer:
    """Five steps an epoch, the last of seven images; for four processes four, the last of nine.

    The image tower's features are stored until it is released, those of the text tower's lower layer all the time.
    """
    prepared = open_prepared(folder / "p")
    model = make_model(prepared.settings["vocabulary_size"], fusion={"layers": 1, "heads": 2, "dropout": 0.0})
    return Trainer(
        undropped(model),
        prepared.split("train"),
        prepared.split("val"),
        train_settings(
            batch_size=8 if processes == 2 else 10,
            epochs=2,
            image_tower={"frozen_epochs": 1},
            text_tower={"top_layers": 1},
        ),
        Setup(
            seed=0,
            evaluation_batch=8,
            checkpoints=Checkpoints(folder / f"checkpoints-{name}", {}),
            report=lambda values, step: None,
            device=CPU,
            features=FeatureCache(folder / f"features-{name}", limit_gib=1.0, device=CPU, precision="no"),
        ),
    )
