"""Cross-attention between the tokens of a caption and the grid of an image, to one joint vector and a match score."""

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
    """What the fusion says of P pairs."""

    joint: Tensor
    """(P, d): the pair as one vector."""
    score: Tensor
    """(P,): the logit that they belong together."""
    alignment: Tensor | None = None
    """(P,): the same by the alignment of their tokens alone; None: there is none."""


class Side(NamedTuple):
    """One side of P pairs: sequences of its own for each pair, or of fewer items, of which several pairs share one."""

    values: Tensor
    """(P, S, d), or (n, S, d)."""
    item: Tensor | None = None
    """(P,) int64, which of the n items stands in each pair; None: each pair has its own."""

    def in_pairs(self, computed: Tensor) -> Tensor:
        """What was `computed` of each item (n, ...), for each pair (P, ...)."""
        return computed if self.item is None else computed.index_select(0, self.item)


class Looked(NamedTuple):
    """What one side of P pairs knows after it has looked at the other."""

    tokens: Tensor
    """(P, S, d); or their mean, (P, d)."""
    agreement: Tensor
    """(P, d): the mean of each token times what it found."""


class CrossAttention(nn.Module):
    """One direction: every token of one side looks at all tokens of the other, compares itself with what it found, and
    thinks it over.

    It compares by a product: the sum in a residual connection does not say whether two vectors agree. Queries, keys and
    values are computed once an item, however many pairs it stands in. Dropout is in what is added to the tokens and not
    in the attention weights, so that torch's fused kernels can take these.
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
    ) -> Looked:
        """`tokens` (P, S, d) attend to `context` (P, C, d) where `context_mask` (P, C) is True; beyond their own `mask`
        (P, S) they mean nothing. With `mean`, what comes of them is their mean.
        """
        query = self._by_head(tokens.in_pairs(self.query(self.norm(tokens.values))))
        key_value = context.in_pairs(self.key_value(self.norm_context(context.values)))
        key, value = (self._by_head(part) for part in key_value.chunk(2, dim=-1))
        attend = None if context_mask is None else context_mask[:, None, None, :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=attend).transpose(1, 2).flatten(2)
        found = self.output(attended)
        agreement = tokens.in_pairs(_standardized(self.compared(tokens.values))) * _standardized(found)
        seeing = tokens.in_pairs(tokens.values) + found
        return Looked(self._thought_over(seeing, mask, mean), _mean(agreement, mask))

    def _thought_over(self, seeing: Tensor, mask: Tensor | None, mean: bool) -> Tensor:
        """Of `seeing` (P, S, d), or the mean of it; no thoughts are spent on padding, which is most of a batch."""
        if not mean:
            return seeing + _of_tokens(self.feed_forward, seeing, mask)
        # What is linear gives the same after the mean, for a token's work and not a sequence's.
        thoughts = _mean(_of_tokens(self.feed_forward[:3], seeing, mask), mask)
        return _mean(seeing, mask) + self.feed_forward[3:](thoughts)

    def _by_head(self, values: Tensor) -> Tensor:
        """(P, S, d) to (P, heads, S, d / heads)."""
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)


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

    def forward(self, tokens: Side, grid: Side, mask: Tensor) -> tuple[Side, Side, Tensor]:
        """`tokens` (P, T, d) with `mask` (P, T), and `grid` (P, N, d), to the same shapes, and the mean agreement of
        each side that looks, beside each other: (P, d) or (P, 2·d).
        """
        text, image = self._look(tokens, grid, mask, mean=False)
        return Side(text.tokens) if text else tokens, Side(image.tokens) if image else grid, _agreements(text, image)

    def means(self, tokens: Side, grid: Side, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, but of both sides the means, (P, d): all that is asked of the last layer."""
        text, image = self._look(tokens, grid, mask, mean=True)
        return (
            text.tokens if text else masked_mean(tokens.in_pairs(tokens.values), mask),
            image.tokens if image else _grid_mean(grid),
            _agreements(text, image),
        )

    def _look(self, tokens: Side, grid: Side, mask: Tensor, *, mean: bool) -> tuple[Looked | None, Looked | None]:
        text = self.text_to_image(tokens, mask, grid, None, mean=mean) if self.text_to_image else None
        image = self.image_to_text(grid, None, tokens, mask, mean=mean) if self.image_to_text else None
        return text, image


class CrossAttentionFusion(nn.Module):
    """Layers of cross-attention, means over both sides and over their agreement, and an MLP.

    It is given tokens, never pooled vectors: over sequences of length one a query has no effect on what it attends to.
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
        looks = config.direction
        self.alignment = Alignment(dim, text_looks=looks != "image_to_text", image_looks=looks != "text_to_image")
        """For the model, which gives it the tokens in the space of its embeddings."""

    def forward(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Fused:
        """P pairs, by position or by indices into the images and captions.

        Args:
            grid: (B, N, d).
            tokens: (C, T, d).
            mask: (C, T) bool, True where there is a token.
            image: (P,) int64, the image of each pair; None: the pairs have an image each, in order.
            text: (P,) int64, the caption of each pair, likewise.
        """
        images, texts = Side(grid + self.position, image), Side(tokens, text)
        mask = texts.in_pairs(mask)
        agreements = []
        *layers, last = cast(Iterable[FusionLayer], self.layers)
        for layer in layers:
            texts, images, agreement = layer(texts, images, mask)
            agreements.append(agreement)
        text, grid_mean, agreement = last.means(texts, images, mask)
        joint = self.joint(torch.cat([text, grid_mean, *agreements, agreement], dim=1))
        return Fused(joint, self.score(joint).squeeze(-1).float())


class MeanFusion(nn.Module):
    """The control to attention: both sides' means, and an MLP of about `weights` weights."""

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
        """As `CrossAttentionFusion`."""
        images, texts = Side(grid, image), Side(tokens, text)
        joint = self.joint(torch.cat([texts.in_pairs(masked_mean(tokens, mask)), _grid_mean(images)], dim=1))
        return Fused(joint, self.score(joint).squeeze(-1).float())


def make_fusion(dim: int, grid_size: int, config: Fusion) -> CrossAttentionFusion | MeanFusion:
    """The fusion that params.yaml describes."""
    if config.attention:
        return CrossAttentionFusion(dim, grid_size, config)
    with torch.device("meta"):
        twin = CrossAttentionFusion(dim, grid_size, config)
    return MeanFusion(dim, sum(parameter.numel() for parameter in twin.parameters()), config.dropout)


def _agreements(*sides: Looked | None) -> Tensor:
    return torch.cat([side.agreement for side in sides if side], dim=1)


def _of_tokens(compute: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """`compute` of each of `tokens` (P, S, d) where `mask` (P, S) is True; elsewhere what means nothing."""
    if mask is None or not can_ask(mask) or mask.all():
        return compute(tokens)
    computed = compute(tokens[mask])
    return computed.new_zeros(*mask.shape, computed.shape[1]).masked_scatter(mask.unsqueeze(2), computed)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens.mean(dim=1) if mask is None else masked_mean(tokens, mask)


def _standardized(values: Tensor) -> Tensor:
    """(…, d) with mean zero and variance one over d."""
    return layer_norm(values, values.shape[-1:])


def _grid_mean(images: Side) -> Tensor:
    """Over the grid of each pair, (P, d)."""
    return images.in_pairs(images.values.mean(dim=1))
