"""Training of the control to attention: an MLP with as many weights as the fusion, on the means of tower outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.config import Train
from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.objectives import draw_hard_negatives, itm_loss
from diptych.progress import progress
from diptych.retrieval.embedding import Means
from diptych.training.batches import Batch, BatchPlan
from diptych.training.draws import Purpose, generator
from diptych.training.optimisation import make_schedule


def train_control(model: DualEncoder, train: PreparedSplit, means: Means, settings: Train, seed: int) -> None:
    """Train the model's fusion, a `MeanFusion`, in place; the rest of the model stays as it is.

    It trains for the number of epochs that the fusion had at most. All images of a batch bring pairs, which cost little
    here.

    Args:
        model: the model whose fusion is the control.
        train: the training split.
        means: means of the tower outputs for `train`, on the model's device.
        settings: the settings that the towers were trained with.
        seed: seed of batches and pairs.

    Raises:
        DiptychError: the loss is NaN or infinite.
    """
    plan = BatchPlan(train, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image, seed=seed)
    epochs = settings.fusion_epochs or settings.epochs
    weights = list(model.fusion.parameters())
    optimizer = _make_optimizer(weights, settings)
    schedule = make_schedule(optimizer, [plan.steps * epochs], settings.warmup)
    model.fusion.train()
    with progress(None, "train the control", unit="steps", total=plan.steps * epochs) as bar:
        for epoch in range(settings.all_epochs - epochs, settings.all_epochs):
            for batch in plan.epoch(epoch, 0, _indices(train)):
                loss = _loss(model, means, batch.to(means.image.device), seed)
                loss.backward()
                nn.utils.clip_grad_norm_(weights, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                bar.update()
            if not torch.isfinite(loss):
                raise DiptychError(
                    f"the loss of the control mlp_fusion is {loss.item()} in epoch {epoch + 1}: lower "
                    "train.learning_rate, or leave it out of baselines.controls."
                )
    model.fusion.eval()


def _make_optimizer(weights: list[nn.Parameter], settings: Train) -> torch.optim.AdamW:
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, settings.learning_rate, fused=True)


def _indices(split: PreparedSplit) -> Inputs:
    """Return inputs that are the indices of images and captions, by which their means are looked up."""
    return Inputs(
        split,
        lambda images: torch.from_numpy(images),
        lambda captions: (torch.from_numpy(captions)[:, None], torch.ones(len(captions), 1, dtype=torch.bool)),
    )


def _loss(model: DualEncoder, means: Means, batch: Batch, seed: int) -> Tensor:
    images, captions = batch.images, batch.texts[:, 0]
    uniforms = generator(seed, Purpose.PAIRS, batch.epoch, batch.step).random((3, len(images)))
    pairs = draw_hard_negatives(
        model,
        ImageFeatures(means.grid[images, None], means.image[images]),
        TextFeatures(means.tokens[captions, None], batch.mask, means.text[captions]),
        batch.image_of_caption,
        torch.from_numpy(uniforms),
    )
    return itm_loss(model, pairs)
