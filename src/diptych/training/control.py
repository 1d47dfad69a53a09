"""The control to attention: an MLP of as many weights as the fusion, trained on what the towers say on average."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.config import Train
from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.objectives import draw_pairs, matching_loss
from diptych.progress import progress
from diptych.retrieval.embedding import Means
from diptych.training.batches import BatchPlan
from diptych.training.draws import Purpose, generator
from diptych.training.optimisation import make_schedule


def train_control(model: DualEncoder, train: PreparedSplit, means: Means, settings: Train, seed: int) -> None:
    """Trains the model's fusion, a `MeanFusion`, in place, for the epochs that the fusion had at most; the rest of the
    model stays as it is. All images of a batch bring pairs, which here cost little.

    Args:
        means: what the model's towers say of `train`, on the model's device.
        settings: of the training that made the towers.

    Raises:
        DiptychError: the loss is NaN or infinite.
    """
    plan = BatchPlan(train, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image, seed=seed)
    epochs = settings.fusion_epochs or settings.epochs
    # For the means take the place of kept features.
    inputs = Inputs(
        train,
        lambda images: torch.from_numpy(images),
        lambda captions: (torch.from_numpy(captions)[:, None], torch.ones(len(captions), 1, dtype=torch.bool)),
    )
    weights = list(model.fusion.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, settings.learning_rate, fused=True)
    schedule = make_schedule(optimizer, [plan.steps * epochs], settings.warmup)
    device = means.image.device
    model.fusion.train()
    with progress(None, "train the control", unit="steps", total=plan.steps * epochs) as bar:
        for epoch in range(settings.all_epochs - epochs, settings.all_epochs):
            for batch in plan.epoch(epoch, 0, inputs):
                batch = batch.to(device)
                images, captions = batch.images, batch.texts[:, 0]
                pairs = draw_pairs(
                    model,
                    ImageFeatures(means.grid[images, None], means.image[images]),
                    TextFeatures(means.tokens[captions, None], batch.mask, means.text[captions]),
                    batch.image_of_caption,
                    _uniforms(seed, epoch, batch.step, len(images)),
                )
                loss = matching_loss(model, pairs)
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


def _uniforms(seed: int, epoch: int, step: int, images: int) -> Tensor:
    return torch.from_numpy(generator(seed, Purpose.PAIRS, epoch, step).random((3, images)))
