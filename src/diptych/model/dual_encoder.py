"""The model: an image tower, a text tower and a cross-attention fusion of their tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from diptych import config
from diptych.errors import DiptychError
from diptych.model.backbones import image_backbone, text_backbone
from diptych.model.fusion import Fused, make_fusion
from diptych.model.pooling import POOLINGS
from diptych.model.towers import Groups, ImageTower, TextTower

MAX_LOGIT_SCALE = 100.0
"""Bound of CLIP: Radford et al. 2021, section 2.5."""


class ImageFeatures(NamedTuple):
    """Image-tower outputs for B images."""

    grid: Tensor
    """(B, N, d)."""
    pooled: Tensor
    """(B, d) float32, of unit length."""


class TextFeatures(NamedTuple):
    """Text-tower outputs for B captions."""

    tokens: Tensor
    """(B, T, d)."""
    mask: Tensor
    """(B, T) bool, True where there is a token."""
    pooled: Tensor
    """(B, d) float32, of unit length."""


class DualEncoder(nn.Module):
    """Two towers that embed into one space, and a fusion that scores single pairs."""

    def __init__(
        self, image_tower: ImageTower, text_tower: TextTower, model: config.Model, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_pooling = POOLINGS[model.image_tower.pooling]()
        self.text_pooling = POOLINGS[model.text_tower.pooling]()
        self.image_head = nn.Linear(model.dim, model.dim)
        self.text_head = nn.Linear(model.dim, model.dim)
        self.fusion = make_fusion(model.dim, image_tower.grid_size, model.fusion)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def logit_scale(self) -> Tensor:
        """Multiplier of the cosines (1 / temperature), a scalar."""
        return self.log_scale.exp()

    @torch.no_grad()
    def bound_temperature(self) -> None:
        """Clamp the parameter so that the scale is at most 100; call this after each step.

        Clamping in the forward pass instead would leave no gradient once the bound is reached.
        """
        self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Encode `images`: (B, S, S, 3) uint8 RGB, or the backbone's features of them (B, N, C)."""
        grid = self.image_tower(images)
        everywhere = torch.ones(grid.shape[:2], dtype=torch.bool, device=grid.device)
        pooled = self.image_head(self.image_pooling(grid, everywhere))
        return ImageFeatures(grid, normalize(pooled.float(), dim=-1))

    def encode_texts(self, texts: Tensor, mask: Tensor, groups: Groups | None = None) -> TextFeatures:
        """Encode `texts`: (B, T) int64 token ids, or the backbone's features of them (B, T, L, C).

        `mask` (B, T) bool is True where there is a token. `groups` save padding, see `TextTower.features`.
        """
        tokens = self.text_tower(texts, mask, groups)
        pooled = self.text_head(self.text_pooling(tokens, mask))
        return TextFeatures(tokens, mask, normalize(pooled.float(), dim=-1))

    def fuse(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Fused:
        """Fuse P pairs: compute their joint vectors, ITM logits and token-alignment scores.

        Pairs are given by position, as `grid` (P, N, d), `tokens` (P, T, d) and `mask` (P, T) bool; or by indices
        `image` (P,) and `text` (P,) int64 into fewer images and captions.
        """
        fused: Fused = self.fusion(grid, tokens, mask, image, text)
        return fused._replace(alignment=self.aligned(grid, tokens, mask, image, text)) if self.aligns else fused

    def aligned(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Return the token-alignment scores (P,) alone, of pairs given as in `fuse`."""
        assert self.fusion.alignment is not None
        scores: Tensor = self.fusion.alignment.of_pairs(
            self.image_head(grid), self.text_head(tokens), mask, image, text
        )
        return scores

    @property
    def aligns(self) -> bool:
        """True if the fusion has token alignment; the control for attention has none."""
        return self.fusion.alignment is not None

    def align(self, grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the token-alignment scores (B, C) of all pairs of `grid` (B, N, d) and `tokens` (C, T, d).

        They give the towers no gradient: training the towers through them lost more recall than it gained
        (docs/training.md).
        """
        assert self.fusion.alignment is not None
        return self.fusion.alignment.all_pairs(self.image_head(grid).detach(), self.text_head(tokens).detach(), mask)


def build_model(model: config.Model, image_size: int, vocabulary_size: int, temperature: float) -> DualEncoder:
    """Build the model that params.yaml describes, with pretrained towers where it names them.

    Raises:
        DiptychError: a tower's weights are not on this machine, or its configuration is impossible.
    """
    image, text = model.image_tower, model.text_tower
    backbone, mean, std = image_backbone(image)
    image_tower = ImageTower(backbone, model.dim, image_size, mean, std, image.channel_dropout, image.dropout)
    if image.pooling == "cls" and not image_tower.has_class_token:
        raise DiptychError(
            f"params.yaml: model.image_tower.pooling is cls, but {type(backbone).__name__} has no class token."
        )
    backbone = text_backbone(text, vocabulary_size)
    text_tower = TextTower(backbone, model.dim, text.layers, text.channel_dropout, text.dropout)
    return DualEncoder(image_tower, text_tower, model, temperature)
