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
"""The `lr_multiplier` below which a tower's batch norms keep their statistics, which would follow the small batches of
fine-tuning faster than the weights can.
"""


class Frozen(NamedTuple):
    """Parts of the model that do not learn in an epoch."""

    image: bool
    """The image tower."""
    text: bool
    """The text tower."""
    encoders: bool
    """Both towers with their heads: all but the fusion."""


def frozen_in(settings: Train, epoch: int) -> Frozen:
    """Return what is frozen in `epoch` (0, 1, …).

    Towers with lr_multiplier 0 are frozen always, others until they are released; at the end, all but the fusion is.
    """
    encoders = epoch >= settings.epochs
    return Frozen(
        encoders or not settings.image_tower.lr_multiplier or epoch < settings.image_tower.frozen_epochs,
        encoders or not settings.text_tower.lr_multiplier or epoch < settings.text_tower.frozen_epochs,
        encoders,
    )


def freeze(step: TrainingStep, settings: Train, epoch: int) -> None:
    """Freeze what does not learn in `epoch` by the settings: towers; the fusion, or all but the fusion."""
    model, frozen = step.model, frozen_in(settings, epoch)
    step.requires_grad_(not frozen.encoders)
    for tower, is_frozen, of_tower in (
        (model.image_tower, frozen.image, settings.image_tower),
        (model.text_tower, frozen.text, settings.text_tower),
    ):
        # The layers above learned from the statistics of those that stay.
        statistics_frozen = of_tower.lr_multiplier < FROZEN_STATISTICS_BELOW or of_tower.top_layers is not None
        tower.set_learning(not is_frozen, top_layers=of_tower.top_layers, statistics_frozen=statistics_frozen)
    with_others = settings.objectives.itm > 0 and settings.fusion_epochs is None
    model.fusion.requires_grad_(frozen.encoders or with_others)


def make_optimizer(step: TrainingStep, settings: Train) -> torch.optim.AdamW:
    """Return AdamW over the weights that learn in some epoch; biases, norms and scalars have no weight decay."""
    learning = set()
    for epoch in {settings.epochs - 1, settings.all_epochs - 1}:
        freeze(step, settings, epoch)
        learning |= {parameter for parameter in step.parameters() if parameter.requires_grad}
    lr_multipliers = {
        id(parameter): lr_multiplier
        for backbone, lr_multiplier in (
            (step.model.image_tower.backbone, settings.image_tower.lr_multiplier),
            (step.model.text_tower.backbone, settings.text_tower.lr_multiplier),
        )
        for parameter in backbone.parameters()
    }
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in step.parameters():
        if parameter in learning:
            key = (lr_multipliers.get(id(parameter), 1.0), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings.learning_rate * lr_multiplier,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (lr_multiplier, decays), parameters in groups.items()
        ],
        fused=True,
    )


def phases(settings: Train) -> list[int]:
    """Return the number of epochs of each phase: one begins where a tower is released, and with the fusion's epochs."""
    released = {settings.image_tower.frozen_epochs, settings.text_tower.frozen_epochs}
    ends = sorted({*released, settings.epochs, settings.all_epochs} - {0})
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: Sequence[int], warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule with a linear warm-up and a cosine down to zero in each phase.

    So heads settle before a tower is released, and a released tower has a full course.

    Args:
        optimizer: the optimizer whose learning rates are scheduled.
        steps: the number of steps of each phase.
        warmup: the share of each phase in which the rate rises.
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
