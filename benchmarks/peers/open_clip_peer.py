"""open_clip: its trainer's own loop (open_clip_train.train.train_one_epoch) on a CustomTextCLIP with the same towers.

Options that are not named here have open_clip's defaults. Augmentation is left out, as in diptych. A frozen image tower
is locked by open_clip's lock_image_tower, and kept in evaluation mode. open_clip's option for the latter,
--lock-image-freeze-bn-stats, removes the activations of a timm EfficientNet, since they are part of the batch norms
that it replaces; the features are worthless after that.

    cd WORKSPACE && PYTHONPATH=…/src:…/benchmarks …/.venv-benchmarks/bin/python -m peers.open_clip_peer --steps=10
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import CustomTextCLIP
from open_clip_train.data import DataInfo
from open_clip_train.main import random_seed
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from diptych.data.prepared import PreparedSplit
from peers.clock import EpochClock, StepClock
from peers.pairs import Pair, make_loader, read_splits
from peers.recall import val_rsum
from peers.task import Result, Task, answer
from peers.towers import IMAGE_TOWER, TEXT_TOWER, keep_in_evaluation

CONTEXT_LENGTH = 77
"""The default of open_clip's text towers."""
EMBED_DIM = 512
"""Width in open_clip's configurations with a text tower from transformers, such as roberta-ViT-B-32."""
LEARNING_RATE = 5e-4
WARMUP_SHARE = 0.1
"""Share of all steps. The 2,000 steps of open_clip's examples are a small share there, but more than all steps here."""


class Batches:
    """A loader for train_one_epoch that gives `steps` batches, with a clock that ticks between the steps."""

    def __init__(self, loader: DataLoader[Pair], steps: int, clock: StepClock) -> None:
        self.loader = loader
        self.num_batches = steps
        self.num_samples = steps * (loader.batch_size or 1)
        self._clock = clock

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._clock.tick()
        for batch in islice(self.loader, self.num_batches):
            yield batch.pixels, batch.token_ids
            self._clock.tick()


class WatchedLoss:
    """open_clip's loss, with a record of its values."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self.values: list[Tensor] = []

    def __call__(self, **outputs: Any) -> dict[str, Tensor]:
        """Return the losses, and record their sum."""
        losses: dict[str, Tensor] = self._loss(**outputs)
        self.values.append(torch.stack([*losses.values()]).sum().detach())
        return losses


class OpenClip:
    """Model, optimizer and data, built as in open_clip_train.main."""

    def __init__(self, task: Task, train: PreparedSplit) -> None:
        self.options = make_options(task)
        random_seed(task.seed)
        self.model = make_model(self.options)
        self.optimizer = make_optimizer(self.model, self.options)
        self.loss = WatchedLoss(open_clip.create_loss(self.options))
        self.clock = StepClock()
        length = CONTEXT_LENGTH if task.text_length == "recommended" else None
        loader = make_loader(train, task, length)
        steps = len(loader) if task.epochs else min(task.all_steps, len(loader))
        self.data = {"train": DataInfo(Batches(loader, steps, self.clock))}
        total = steps * max(1, task.epochs)
        self.schedule = cosine_lr(self.optimizer, self.options.lr, max(1, round(WARMUP_SHARE * total)), total)

    def train_epoch(self, epoch: int) -> None:
        """Train for one epoch (0, 1, …) by open_clip's loop."""
        train_one_epoch(
            self.model, self.data, self.loss, epoch, self.optimizer, None, self.schedule, None, self.options
        )


def make_options(task: Task) -> argparse.Namespace:
    """Return the options of open_clip's trainer, with those that its main adds."""
    options = parse_args(
        [
            "--model=timm-bert",
            f"--precision={'amp_bf16' if task.precision == 'bf16' else 'fp32'}",
            f"--batch-size={task.batch_size}",
            f"--workers={task.workers}",
            f"--lr={task.learning_rate or LEARNING_RATE}",
            f"--device={task.device}",
            f"--seed={task.seed}",
            *(["--lock-image"] if task.frozen != "none" else []),
            *(["--lock-text", "--lock-text-freeze-layer-norm"] if task.frozen == "both" else []),
        ]
    )
    options.distributed, options.rank, options.local_rank, options.world_size = False, 0, 0, 1
    options.distill, options.wandb, options.tensorboard = False, False, False
    return options


def make_model(options: argparse.Namespace) -> CustomTextCLIP:
    """Build the towers with the weights of the workspace and new projections."""
    model = CustomTextCLIP(
        EMBED_DIM,
        vision_cfg={"timm_model_name": "tf_efficientnet_lite0", "image_size": 224},
        text_cfg={
            "hf_model_name": str(TEXT_TOWER),
            "hf_tokenizer_name": str(TEXT_TOWER),
            "hf_pooler_type": "mean_pooler",
            "context_length": CONTEXT_LENGTH,
        },
        output_dict=True,
    )
    weights = load_file(IMAGE_TOWER / "model.safetensors")
    model.visual.trunk.load_state_dict({name.removeprefix("timm_model."): value for name, value in weights.items()})
    if options.lock_image:
        model.lock_image_tower()
        keep_in_evaluation(model.visual.trunk)
    if options.lock_text:
        model.lock_text_tower(freeze_layer_norm=options.lock_text_freeze_layer_norm)
    return model.to(options.device)


def make_optimizer(model: CustomTextCLIP, options: argparse.Namespace) -> torch.optim.AdamW:
    """Return the optimizer with the groups of open_clip_train.main: no weight decay on gains, biases and the scale."""
    learning = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    plain = [weight for name, weight in learning if _is_plain(name, weight)]
    rest = [weight for name, weight in learning if not _is_plain(name, weight)]
    return torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": options.wd}],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )


def _is_plain(name: str, weight: Tensor) -> bool:
    return weight.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def perform(task: Task) -> Result:
    """Measure the speed of training, or train and evaluate after each epoch."""
    train, val = read_splits(task.params)
    peer = OpenClip(task, train)
    settings = {"settings": describe(task, peer)}
    if task.epochs:
        return settings | {"epochs": train_and_evaluate(peer, task, val)}
    peer.train_epoch(0)
    return settings | {
        "pairs_per_second": peer.clock.pairs_per_second(task.batch_size, task.warmup_steps),
        "losses": np.round(torch.stack(peer.loss.values).tolist(), 4).tolist(),
    }


def train_and_evaluate(peer: OpenClip, task: Task, val: PreparedSplit) -> list[dict[str, float]]:
    """Train; return the seconds and val RSUM of each epoch that begins within the budget."""
    clock = EpochClock()
    for epoch in range(task.epochs):
        clock.resume()
        peer.train_epoch(epoch)
        clock.pause()
        clock.record(
            val_rsum(peer.model, peer.model.encode_image, lambda ids, _: peer.model.encode_text(ids), val, task)
        )
        if clock.is_over(task.budget):
            break
    return clock.epochs


def describe(task: Task, peer: OpenClip) -> str:
    """Describe the measurement for the reader of the figures."""
    length = f"{CONTEXT_LENGTH} tokens" if task.text_length == "recommended" else "padded to the longest"
    options = peer.options
    return (
        f"open_clip {open_clip.__version__}: train_one_epoch, batch {task.batch_size}, {length}, {options.precision}, "
        f"{options.workers} workers, no checkpointing, AdamW {options.lr:g}, weight decay {options.wd:g}, cosine with "
        f"{WARMUP_SHARE:.0%} warm-up"
    )


if __name__ == "__main__":
    answer(__doc__, perform)
