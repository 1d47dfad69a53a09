"""Cross-attention between the tokens of a caption and the grid of an image, to one joint vector and a match score."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.config import Fusion


class Fused(NamedTuple):
    """What the fusion says of P pairs."""

    joint: Tensor
    """(P, d): the pair as one vector."""
    score: Tensor
    """(P,): the logit that they belong together."""


class CrossAttention(nn.Module):
    """One direction: every token of one side looks at all tokens of the other, then thinks it over."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, tokens: Tensor, context: Tensor, context_mask: Tensor | None) -> Tensor:
        """`tokens` (P, S, d) attend to `context` (P, C, d) where `context_mask` (P, C) is True, to (P, S, d)."""
        context = self.norm_context(context)
        padding = None if context_mask is None else ~context_mask
        attended, _ = self.attention(self.norm(tokens), context, context, key_padding_mask=padding, need_weights=False)
        tokens = tokens + attended
        return tokens + self.feed_forward(tokens)


class FusionLayer(nn.Module):
    """One or both directions: a side that does not look stays as it is, and of two that do, neither sees what the other
    learned in the same layer.
    """

    def __init__(self, dim: int, config: Fusion) -> None:
        super().__init__()
        self.text_to_image, self.image_to_text = (
            CrossAttention(dim, config.heads, config.dropout) if config.direction in ("both", direction) else None
            for direction in ("text_to_image", "image_to_text")
        )

    def forward(self, tokens: Tensor, grid: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`tokens` (P, T, d) with `mask` (P, T), and `grid` (P, N, d), to the same shapes."""
        seeing_tokens = self.text_to_image(tokens, grid, None) if self.text_to_image else tokens
        seeing_grid = self.image_to_text(grid, tokens, mask) if self.image_to_text else grid
        return seeing_tokens, seeing_grid


class CrossAttentionFusion(nn.Module):
    """Layers of cross-attention, means over both sides, and an MLP.

    It is given tokens, never pooled vectors: over sequences of length one a query has no effect on what it attends to.
    """

    def __init__(self, dim: int, grid_size: int, config: Fusion) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(grid_size, dim) * 0.02)
        self.layers = nn.ModuleList(FusionLayer(dim, config) for _ in range(config.layers))
        self.joint = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.score = nn.Linear(dim, 1)

    def forward(self, grid: Tensor, tokens: Tensor, mask: Tensor) -> Fused:
        """`grid` (P, N, d), `tokens` (P, T, d), `mask` (P, T) bool, True where there is a token."""
        grid = grid + self.position
        for layer in self.layers:
            tokens, grid = layer(tokens, grid, mask)
        joint = self.joint(_means(grid, tokens, mask))
        return Fused(joint, self.score(joint).squeeze(-1).float())


class MeanFusion(nn.Module):
    """The control to attention: both sides' means, and an MLP of about `weights` weights."""

    def __init__(self, dim: int, weights: int, dropout: float) -> None:
        super().__init__()
        # 2·dim·h + h + h² + h + h·dim + dim + dim + 1 weights, solved for h.
        half = (3 * dim + 2) / 2
        hidden = round(math.sqrt(half**2 + weights - 2 * dim - 1) - half)
        self.joint = nn.Sequential(
            *(nn.Linear(2 * dim, hidden), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout)),
            nn.Linear(hidden, dim),
        )
        self.score = nn.Linear(dim, 1)

    def forward(self, grid: Tensor, tokens: Tensor, mask: Tensor) -> Fused:
        """As `CrossAttentionFusion`."""
        joint = self.joint(_means(grid, tokens, mask))
        return Fused(joint, self.score(joint).squeeze(-1).float())


def make_fusion(dim: int, grid_size: int, config: Fusion) -> CrossAttentionFusion | MeanFusion:
    """The fusion that params.yaml describes."""
    if config.attention:
        return CrossAttentionFusion(dim, grid_size, config)
    with torch.device("meta"):
        twin = CrossAttentionFusion(dim, grid_size, config)
    return MeanFusion(dim, sum(parameter.numel() for parameter in twin.parameters()), config.dropout)


def _means(grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Of the tokens that there are, and of the grid, side by side: (P, 2·d)."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return torch.cat([(tokens * weights).sum(dim=1) / weights.sum(dim=1), grid.mean(dim=1)], dim=1)
