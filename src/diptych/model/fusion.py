"""Cross-attention between a caption's tokens and an image's grid tokens, to one joint vector and an ITM logit.

ITM is image-text matching: does the caption belong to the image?
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from diptych.config import Fusion
from diptych.model.alignment import Alignment
from diptych.model.kernels import can_ask
from diptych.model.pooling import masked_mean


class Fused(NamedTuple):
    """Fusion outputs for P pairs."""

    joint: Tensor
    """(P, d), one vector for each pair."""
    itm: Tensor
    """(P,) float32, ITM logits."""
    alignment: Tensor | None = None
    """(P,) float32, token-alignment scores; None: the fusion has none."""


class Side(NamedTuple):
    """One side of P pairs: one sequence for each pair, or n sequences that the pairs share."""

    values: Tensor
    """(P, S, d), or (n, S, d) with `item`."""
    item: Tensor | None = None
    """(P,) int64, the sequence of each pair; None: pair p has sequence p."""

    def in_pairs(self, computed: Tensor) -> Tensor:
        """Expand `computed` (n, ...), a value of each sequence, to one of each pair (P, ...)."""
        return computed if self.item is None else computed.index_select(0, self.item)


class Attended(NamedTuple):
    """One side of P pairs after it has attended to the other."""

    tokens: Tensor
    """(P, S, d); or their mean, (P, d)."""
    agreement: Tensor
    """(P, d), the mean over tokens of the product of each token with its attended values."""


class CrossAttention(nn.Module):
    """Cross-attention in one direction: each token attends to the other side, is compared, and passes a feed-forward.

    The comparison is a product, since the sum in a residual connection hides how far two vectors agree.
    Queries, keys and values are computed once for each sequence, however many pairs share it. Dropout acts on what is
    added to the tokens and not on attention weights, so that torch's fused kernels can be used.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.compared = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim), nn.Dropout(dropout)
        )

    def forward(
        self, tokens: Side, mask: Tensor | None, context: Side, context_mask: Tensor | None, *, mean: bool = False
    ) -> Attended:
        """Attend from `tokens` (P, S, d) to `context` (P, C, d).

        Args:
            tokens: the side that attends.
            mask: (P, S) bool, True where there is a token; elsewhere the result is arbitrary. None: everywhere.
            context: the side that is attended to.
            context_mask: (P, C) bool, True where there is a token. None: everywhere.
            mean: return the mean of the tokens (P, d) instead of the tokens.
        """
        attended = self.output(self._attend(tokens, context, context_mask))
        agreement = tokens.in_pairs(_standardized(self.compared(tokens.values))) * _standardized(attended)
        residual = tokens.in_pairs(tokens.values) + attended
        return Attended(self._feed_forward(residual, mask, mean), _mean(agreement, mask))

    def _attend(self, tokens: Side, context: Side, context_mask: Tensor | None) -> Tensor:
        """Return the attended values (P, S, d), the heads concatenated."""
        query = self._by_head(tokens.in_pairs(self.query(self.norm(tokens.values))))
        key_value = context.in_pairs(self.key_value(self.norm_context(context.values)))
        key, value = (self._by_head(part) for part in key_value.chunk(2, dim=-1))
        allowed = None if context_mask is None else context_mask[:, None, None, :]
        return scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2).flatten(2)

    def _feed_forward(self, tokens: Tensor, mask: Tensor | None, mean: bool) -> Tensor:
        """Add the feed-forward output to `tokens` (P, S, d), skipping the padding, which is most of a batch."""
        if not mean:
            return tokens + _of_tokens(self.feed_forward, tokens, mask)
        # A linear layer commutes with the mean, and after it costs one token's work in place of a sequence's.
        hidden = _mean(_of_tokens(self.feed_forward[:3], tokens, mask), mask)
        return _mean(tokens, mask) + self.feed_forward[3:](hidden)

    def _by_head(self, values: Tensor) -> Tensor:
        """Split (P, S, d) into (P, heads, S, d / heads)."""
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FusionLayer(nn.Module):
    """Cross-attention in one or both directions.

    A side that does not attend is unchanged. With both directions, each attends to the other's input of this layer.
    """

    def __init__(self, dim: int, config: Fusion) -> None:
        super().__init__()
        self.text_to_image, self.image_to_text = (
            CrossAttention(dim, config.heads, config.dropout) if config.direction in ("both", direction) else None
            for direction in ("text_to_image", "image_to_text")
        )

    def forward(self, tokens: Side, grid: Side, mask: Tensor) -> tuple[Side, Side, Tensor]:
        """Return `tokens` (P, T, d) and `grid` (P, N, d) after attention, and the agreements of the attending sides.

        `mask` (P, T) bool is True where there is a token. Agreements are concatenated: (P, d) or (P, 2·d).
        """
        text, image = self._attend(tokens, grid, mask, mean=False)
        return Side(text.tokens) if text else tokens, Side(image.tokens) if image else grid, _agreements(text, image)

    def means(self, tokens: Side, grid: Side, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the results of `forward` with both sides' means (P, d): all that the last layer needs."""
        text, image = self._attend(tokens, grid, mask, mean=True)
        return (
            text.tokens if text else masked_mean(tokens.in_pairs(tokens.values), mask),
            image.tokens if image else _grid_mean(grid),
            _agreements(text, image),
        )

    def _attend(self, tokens: Side, grid: Side, mask: Tensor, *, mean: bool) -> tuple[Attended | None, Attended | None]:
        text = self.text_to_image(tokens, mask, grid, None, mean=mean) if self.text_to_image else None
        image = self.image_to_text(grid, None, tokens, mask, mean=mean) if self.image_to_text else None
        return text, image


class CrossAttentionFusion(nn.Module):
    """Layers of cross-attention, then an MLP over the means of both sides and of their agreements.

    Its inputs are tokens, never pooled vectors: with sequences of length one a query has no effect on its result.
    """

    def __init__(self, dim: int, grid_size: int, config: Fusion) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(grid_size, dim) * 0.02)
        self.layers = nn.ModuleList(FusionLayer(dim, config) for _ in range(config.layers))
        parts = 2 + config.layers * (2 if config.direction == "both" else 1)
        self.joint = nn.Sequential(
            nn.LayerNorm(parts * dim),
            *(nn.Linear(parts * dim, 2 * dim), nn.GELU(), nn.Dropout(config.dropout)),
            nn.Linear(2 * dim, dim),
        )
        self.score = nn.Linear(dim, 1)
        self.alignment = Alignment(
            dim, text_attends=config.direction != "image_to_text", image_attends=config.direction != "text_to_image"
        )
        """Token alignment, called by the model with tokens in the space of its embeddings."""

    def forward(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Fused:
        """Fuse P pairs, given by position or by indices into the images and captions.

        Args:
            grid: (B, N, d).
            tokens: (C, T, d).
            mask: (C, T) bool, True where there is a token.
            image: (P,) int64, image of each pair; None: pair p has image p.
            text: (P,) int64, caption of each pair; None: pair p has caption p.
        """
        images, texts = Side(grid + self.position, image), Side(tokens, text)
        mask = texts.in_pairs(mask)
        agreements = []
        *layers, last = cast(Iterable[FusionLayer], self.layers)
        for layer in layers:
            texts, images, agreement = layer(texts, images, mask)
            agreements.append(agreement)
        text_mean, grid_mean, agreement = last.means(texts, images, mask)
        joint = self.joint(torch.cat([text_mean, grid_mean, *agreements, agreement], dim=1))
        return Fused(joint, self.score(joint).squeeze(-1).float())


class MeanFusion(nn.Module):
    """Control for attention: an MLP of about `weights` weights over the means of both sides."""

    alignment = None

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

    def forward(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Fused:
        """Fuse P pairs, with the arguments of `CrossAttentionFusion.forward`."""
        images, texts = Side(grid, image), Side(tokens, text)
        joint = self.joint(torch.cat([texts.in_pairs(masked_mean(tokens, mask)), _grid_mean(images)], dim=1))
        return Fused(joint, self.score(joint).squeeze(-1).float())


def make_fusion(dim: int, grid_size: int, config: Fusion) -> CrossAttentionFusion | MeanFusion:
    """Build the fusion that params.yaml describes."""
    if config.attention:
        return CrossAttentionFusion(dim, grid_size, config)
    with torch.device("meta"):
        twin = CrossAttentionFusion(dim, grid_size, config)
    return MeanFusion(dim, sum(parameter.numel() for parameter in twin.parameters()), config.dropout)


def _agreements(*sides: Attended | None) -> Tensor:
    return torch.cat([side.agreement for side in sides if side], dim=1)


def _of_tokens(compute: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Apply `compute` to `tokens` (P, S, d) where `mask` (P, S) is True; elsewhere the result is arbitrary."""
    if mask is None or not can_ask(mask) or mask.all():
        return compute(tokens)
    computed = compute(tokens[mask])
    return computed.new_zeros(*mask.shape, computed.shape[1]).masked_scatter(mask.unsqueeze(2), computed)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.mean(dim=1) if mask is None else masked_mean(tokens, mask)


def _standardized(values: Tensor) -> Tensor:
    """Shift and scale (…, d) to mean zero and variance one over d."""
    return layer_norm(values, values.shape[-1:])


def _grid_mean(images: Side) -> Tensor:
    """Return the mean over the grid of each pair, (P, d)."""
    return images.in_pairs(images.values.mean(dim=1))
