"""One training step: encode the batch, weigh the losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.config import Objectives
from diptych.model.dual_encoder import DualEncoder
from diptych.model.objectives import contrastive_loss, matching_loss
from diptych.training.batches import Batch


class Losses(NamedTuple):
    """Scalars; `total` is their weighted sum."""

    total: Tensor
    contrastive: Tensor
    matching: Tensor


class TrainingStep(nn.Module):
    """The model under its objectives, as one module whose forward pass several processes can synchronise."""

    def __init__(self, model: DualEncoder, objectives: Objectives) -> None:
        super().__init__()
        self.model = model
        self.objectives = objectives

    def forward(self, batch: Batch) -> Losses:
        """The losses of this process's share of a step."""
        images = self.model.encode_images(batch.pixels)
        texts = self.model.encode_texts(batch.token_ids, batch.mask)
        owner = batch.image_of_caption
        contrastive = contrastive_loss(images.pooled, texts.pooled, owner, self.model.logit_scale)
        # Of features that are not numbers no negatives can be drawn; the loop stops at this loss.
        if not self.objectives.matching or not torch.isfinite(contrastive):
            return Losses(self.objectives.contrastive * contrastive, contrastive, contrastive.new_zeros(()))
        matching = matching_loss(self.model, images, texts, owner)
        total = self.objectives.contrastive * contrastive + self.objectives.matching * matching
        return Losses(total, contrastive, matching)
