"""One training step: encode the batch, compute the losses and their weighted sum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.config import Objectives
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.objectives import alignment_loss, contrastive_loss, draw_hard_negatives, itm_loss, nt_xent_loss
from diptych.model.projection import ProjectionHead
from diptych.training.batches import Batch
from diptych.training.draws import Purpose, generator

NT_XENT_TEMPERATURE = 0.1
"""Temperature of both NT-Xent losses; it is not learned."""


class Losses(NamedTuple):
    """Scalar losses under the names of the report; `total` is the weighted sum of the others."""

    total: Tensor
    contrastive: Tensor
    itm: Tensor
    """ITM loss."""
    alignment: Tensor
    """Token-alignment loss, which has the weight of ITM."""
    simclr_image: Tensor
    simclr_text: Tensor


class Encoded(NamedTuple):
    """Outputs of the towers for a batch."""

    images: ImageFeatures
    texts: TextFeatures
    image_view: Tensor | None
    """Pooled vectors of another view of each image, (B, d) float32, of length one."""
    text_view: Tensor | None
    """Pooled vectors of each caption under another dropout, (C, d) float32, of length one."""


class TrainingStep(nn.Module):
    """The model under its objectives, with the heads that only training needs.

    Args:
        model: the model to train.
        objectives: params.yaml's `train.objectives`.
        seed: seed of what the objectives draw; the draws depend on it, the epoch and the step alone.
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
        """True where the heads and towers learn, or some of them."""
        return self.model.image_head.weight.requires_grad

    @property
    def fusion_learns(self) -> bool:
        """True where the fusion learns."""
        return self.objectives.itm > 0 and self.model.fusion.score.weight.requires_grad

    @property
    def views_texts(self) -> bool:
        """True where captions are encoded under a second dropout."""
        return self.text_view_head is not None and self.encoders_learn

    def forward(self, batch: Batch) -> Losses:
        """Return the losses of this process's share of a step; their means over the processes are the whole step's."""
        return self.losses(self.encode(batch), batch)

    def encode(self, batch: Batch) -> Encoded:
        """Run both towers over the batch, and over the other views of it that the objectives need."""
        return Encoded(
            self.model.encode_images(batch.images),
            self.model.encode_texts(batch.texts, batch.mask, batch.groups),
            None if batch.views is None else self.model.encode_images(batch.views).pooled,
            self.model.encode_texts(batch.texts, batch.mask, batch.groups).pooled if self.views_texts else None,
        )

    def losses(self, encoded: Encoded, batch: Batch) -> Losses:
        """Compute the losses of the towers' outputs, and their weighted sum."""
        images, texts, image_view, text_view = encoded
        owner, shares, weights = batch.image_of_caption, batch.shares, self.objectives
        contrastive = contrastive_loss(
            images.pooled, texts.pooled, owner, self.model.logit_scale, shares, weights.label_smoothing
        )
        itm = alignment = simclr_image = simclr_text = contrastive.new_zeros(())
        total = weights.contrastive * contrastive
        if self.fusion_learns:
            pairs = draw_hard_negatives(self.model, images, texts, owner, self._uniforms(batch), shares)
            itm = itm_loss(self.model, pairs, weights.itm_share)
            alignment = alignment_loss(self.model, pairs)
            total = total + weights.itm * (itm + alignment)
        if self.image_view_head and image_view is not None:
            views = self.image_view_head(images.pooled), self.image_view_head(image_view)
            simclr_image = nt_xent_loss(*views, NT_XENT_TEMPERATURE, counts=shares.images)
            total = total + weights.simclr_image * simclr_image
        if self.text_view_head and text_view is not None:
            views = self.text_view_head(texts.pooled), self.text_view_head(text_view)
            simclr_text = nt_xent_loss(*views, NT_XENT_TEMPERATURE, owner, shares.captions)
            total = total + weights.simclr_text * simclr_text
        return Losses(total, contrastive, itm, alignment, simclr_image, simclr_text)

    def _uniforms(self, batch: Batch) -> Tensor:
        """Return the random numbers (3, images of all processes) float64 that pairs are drawn with, in any process."""
        drawn = generator(self.seed, Purpose.PAIRS, batch.epoch, batch.step).random((3, sum(batch.shares.images)))
        return torch.from_numpy(drawn).to(batch.images.device, non_blocking=True)
