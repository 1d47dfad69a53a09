"""Parameter groups, optimizer and learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from diptych.config import Train
from diptych.model.dual_encoder import DualEncoder

FROZEN_STATISTICS_BELOW = 0.1
"""Factor of the learning rate below which a tower's batch norms keep their statistics: these would follow the small
batches of fine-tuning faster than the weights can.
"""


def freeze(model: DualEncoder, settings: Train, epoch: int) -> None:
    """Takes out of training what the settings leave alone in `epoch` (0, 1, …): towers with factor 0 or not released
    yet, and a fusion without an objective.
    """
    for tower, factor, frozen_epochs in (
        (model.image_tower, settings.image_tower_factor, settings.image_tower_frozen_epochs),
        (model.text_tower, settings.text_tower_factor, settings.text_tower_frozen_epochs),
    ):
        learning = factor > 0 and epoch >= frozen_epochs
        tower.set_learning(learning, statistics_frozen=factor < FROZEN_STATISTICS_BELOW)
    model.fusion.requires_grad_(settings.objectives.matching > 0)


def make_optimizer(model: DualEncoder, settings: Train) -> torch.optim.AdamW:
    """AdamW over the weights that learn in some epoch; no weight decay on biases, norms and scalars."""
    freeze(model, settings, epoch=settings.epochs)
    factors = {
        id(parameter): factor
        for backbone, factor in (
            (model.image_tower.backbone, settings.image_tower_factor),
            (model.text_tower.backbone, settings.text_tower_factor),
        )
        for parameter in backbone.parameters()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (factors.get(id(parameter), 1.0), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings.learning_rate * factor,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (factor, decays), parameters in groups.items()
        ],
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share `warmup` of all `steps`, then a cosine down to zero."""
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
