"""Parameter groups, optimizer and learning-rate schedule."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from diptych.config import Train
from diptych.training.step import TrainingStep

FROZEN_STATISTICS_BELOW = 0.1
"""Factor of the learning rate below which a tower's batch norms keep their statistics: these would follow the small
batches of fine-tuning faster than the weights can.
"""


class Frozen(NamedTuple):
    """What stays as it is."""

    image: bool
    """The image tower."""
    text: bool
    """The text tower."""
    encoders: bool
    """Both towers with their heads: all but the fusion."""


def frozen_in(settings: Train, epoch: int) -> Frozen:
    """In `epoch` (0, 1, …): towers with factor 0, or not released yet; at the end all but the fusion."""
    encoders = epoch >= settings.epochs
    return Frozen(
        encoders or not settings.image_tower.lr_multiplier or epoch < settings.image_tower.frozen_epochs,
        encoders or not settings.text_tower.lr_multiplier or epoch < settings.text_tower.frozen_epochs,
        encoders,
    )


def freeze(step: TrainingStep, settings: Train, epoch: int) -> None:
    """Takes out of training what the settings leave alone in `epoch`: towers; the fusion, or all but the fusion."""
    model, frozen = step.model, frozen_in(settings, epoch)
    step.requires_grad_(not frozen.encoders)
    for tower, stays, factor, top_layers in (
        (model.image_tower, frozen.image, settings.image_tower.lr_multiplier, settings.image_tower.top_layers),
        (model.text_tower, frozen.text, settings.text_tower.lr_multiplier, settings.text_tower.top_layers),
    ):
        # The layers above learned from the statistics of those that stay.
        statistics_frozen = factor < FROZEN_STATISTICS_BELOW or top_layers is not None
        tower.set_learning(not stays, top_layers=top_layers, statistics_frozen=statistics_frozen)
    with_others = settings.objectives.itm > 0 and settings.fusion_epochs is None
    model.fusion.requires_grad_(frozen.encoders or with_others)


def make_optimizer(step: TrainingStep, settings: Train) -> torch.optim.AdamW:
    """AdamW over the weights that learn in some epoch; no weight decay on biases, norms and scalars."""
    learning = set()
    for epoch in {settings.epochs - 1, settings.all_epochs - 1}:
        freeze(step, settings, epoch)
        learning |= {parameter for parameter in step.parameters() if parameter.requires_grad}
    factors = {
        id(parameter): factor
        for backbone, factor in (
            (step.model.image_tower.backbone, settings.image_tower.lr_multiplier),
            (step.model.text_tower.backbone, settings.text_tower.lr_multiplier),
        )
        for parameter in backbone.parameters()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in step.parameters():
        if parameter in learning:
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


def phases(settings: Train) -> list[int]:
    """The epochs of each phase of the training: a new one begins where a tower is released, and with the fusion's."""
    released = {settings.image_tower.frozen_epochs, settings.text_tower.frozen_epochs}
    ends = sorted({*released, settings.epochs, settings.all_epochs} - {0})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: Sequence[int], warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """In each phase of so many `steps` a linear warm-up over a share `warmup` of it, then a cosine down to zero.

    So heads settle before a tower is released, and what is released then has a full course of its own.
    """
    starts = [0, *itertools.accumulate(steps)]

    def factor(step: int) -> float:
        phase = min(bisect.bisect_right(starts, step), len(steps)) - 1
        step -= starts[phase]
        rising = round(warmup * steps[phase])
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps[phase] - rising)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
