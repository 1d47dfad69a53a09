"""One training step: encode the batch, weigh the losses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.config import Objectives
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.gathering import row_counts
from diptych.model.objectives import alignment_loss, contrastive_loss, draw_pairs, matching_loss, nt_xent_loss
from diptych.model.projection import ProjectionHead
from diptych.training.batches import Batch
from diptych.training.draws import Purpose, generator


class Losses(NamedTuple):
    """Scalars; `total` is the weighted sum of the others, with matching's weight for the alignment."""

    total: Tensor
    contrastive: Tensor
    matching: Tensor
    alignment: Tensor
    simclr_image: Tensor
    simclr_text: Tensor


class Encoded(NamedTuple):
    """What the towers say of a batch."""

    images: ImageFeatures
    texts: TextFeatures
    image_view: Tensor | None
    """(B, d) float32, of length one: pooled vectors of another view of each image."""
    text_view: Tensor | None
    """(C, d) float32, of length one: pooled vectors of each caption under another dropout."""


class TrainingStep(nn.Module):
    """The model under its objectives, with the heads that only training needs.

    Args:
        seed: of what the objectives draw, which depends on it and on the batch's place in the training alone.
    """

    def __init__(self, model: DualEncoder, objectives: Objectives, seed: int) -> None:
        super().__init__()
        self.model = model
        self.objectives = objectives
        dim = model.image_head.out_features
        self.image_view_head = ProjectionHead(dim) if objectives.simclr_image else None
        self.text_view_head = ProjectionHead(dim) if objectives.simclr_text else None
        self.seed = seed

    @property
    def encoders_learn(self) -> bool:
        """Whether anything beside the fusion does."""
        return self.model.image_head.weight.requires_grad

    @property
    def fusion_learns(self) -> bool:
        """Whether the fusion does."""
        return self.objectives.itm > 0 and self.model.fusion.score.weight.requires_grad

    @property
    def views_texts(self) -> bool:
        """Whether captions are encoded under a second dropout."""
        return self.text_view_head is not None and self.encoders_learn

    def forward(self, batch: Batch) -> Losses:
        """The losses of this process's share of a step; their means over the processes are those of the whole step."""
        return self.losses(self.encode(batch), batch)

    def encode(self, batch: Batch) -> Encoded:
        """Both towers over the batch, and over the views of it that the objectives ask for."""
        return Encoded(
            self.model.encode_images(batch.images),
            self.model.encode_texts(batch.texts, batch.mask, batch.groups),
            None if batch.views is None else self.model.encode_images(batch.views).pooled,
            self.model.encode_texts(batch.texts, batch.mask, batch.groups).pooled if self.views_texts else None,
        )

    def losses(self, encoded: Encoded, batch: Batch) -> Losses:
        """The objectives of what the towers said."""
        images, texts, image_view, text_view = encoded
        owner, weights = batch.image_of_caption, self.objectives
        contrastive = contrastive_loss(images.pooled, texts.pooled, owner, self.model.logit_scale)
        matching = alignment = simclr_image = simclr_text = contrastive.new_zeros(())
        total = weights.contrastive * contrastive
        if self.fusion_learns:
            pairs = draw_pairs(self.model, images, texts, owner, self._uniforms(batch))
            matching = matching_loss(self.model, pairs, weights.itm_share)
            alignment = alignment_loss(self.model, pairs)
            total = total + weights.itm * (matching + alignment)
        if self.image_view_head and image_view is not None:
            views = self.image_view_head(images.pooled), self.image_view_head(image_view)
            simclr_image = nt_xent_loss(*views, weights.simclr_temperature)
            total = total + weights.simclr_image * simclr_image
        if self.text_view_head and text_view is not None:
            views = self.text_view_head(texts.pooled), self.text_view_head(text_view)
            simclr_text = nt_xent_loss(*views, weights.simclr_temperature, owner)
            total = total + weights.simclr_text * simclr_text
        return Losses(total, contrastive, matching, alignment, simclr_image, simclr_text)

    def _uniforms(self, batch: Batch) -> Tensor:
        """What the matching loss draws by, the same on every process; (3, images of all processes) float64."""
        device = batch.images.device
        images = sum(row_counts(len(batch.images), device))
        uniforms = generator(self.seed, Purpose.PAIRS, batch.epoch, batch.step).random((3, images))
        return torch.from_numpy(uniforms).to(device, non_blocking=True)
