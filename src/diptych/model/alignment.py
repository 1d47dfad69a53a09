"""Token-alignment scores of images and captions, cheap enough for all pairs of a batch.

This is stacked cross attention (Lee et al., ECCV 2018). Each token of one side, the query, attends to the tokens of the
other side by their cosines. Its score is the cosine between itself and the vector that it attended to. That vector is
never computed. With attention weights w, cosines c of the query with the other tokens, and these tokens' Gram matrix G,
the vector's inner product with the query is wᵀc and its length is √(wᵀGw). A pair thus costs one product of two
matrices instead of layers of attention.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from diptych.model.kernels import can_ask

BLOCK_COSINES = 64_000_000
"""Number of cosines held at once; about five times their memory comes on top. Larger batches compute them twice."""
_MIN_LENGTH = 1e-3
"""Lower bound on the length of an attended vector: opposite tokens with equal weights cancel out."""


class Tokens(NamedTuple):
    """One side's tokens, prepared for comparison."""

    directions: Tensor
    """(…, S, d), of unit length."""
    products: Tensor
    """(…, S, S), Gram matrix of each item's tokens."""

    def select(self, item: Tensor | None) -> Tokens:
        """Return the tokens of each of `item` (P,) int64; None selects all."""
        return self if item is None else Tokens(*(part.index_select(0, item) for part in self))


class Alignment(nn.Module):
    """Token-alignment score of an image and a caption, from the cosines of their tokens alone.

    At initialization the tokens are compared unchanged, so they should lie in one space.

    Args:
        dim: dimension d of the tokens.
        text_attends: each word attends to the grid.
        image_attends: each grid token attends to the words. With both, the score is the mean of the two directions.
    """

    def __init__(self, dim: int, *, text_attends: bool, image_attends: bool) -> None:
        super().__init__()
        self.text_attends = text_attends
        self.image_attends = image_attends
        self.place = _identity(dim)
        self.word = _identity(dim)
        self.log_sharpness = nn.Parameter(torch.tensor(2.0))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def of_pairs(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Return the scores (P,) float32 of pairs, given by position or by indices.

        Args:
            grid: (B, N, d).
            tokens: (C, T, d).
            mask: (C, T) bool, True where there is a word.
            image: (P,) int64, image of each pair; None: pair p has image p.
            text: (P,) int64, caption of each pair; None: pair p has caption p.
        """
        places, words = _tokens(self.place(grid)).select(image), _tokens(self.word(tokens)).select(text)
        mask = mask if text is None else mask[text]
        cosines = (places.directions @ words.directions.mT).float()
        scores = []
        if self.text_attends:
            attended = self._attended(cosines, places.products)
            scores.append((attended * mask).sum(dim=1) / mask.sum(dim=1))
        if self.image_attends:
            scores.append(self._attended(cosines.mT, words.products, mask).mean(dim=1))
        return self.log_scale.exp() * torch.stack(scores).mean(dim=0)

    def all_pairs(self, grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the scores (B, C) float32 of each of B images with each of C captions."""
        places, words = _tokens(self.place(grid)), _tokens(self.word(tokens))
        rows = max(1, BLOCK_COSINES // (mask.numel() * grid.shape[1]))
        if rows >= len(grid):
            return self._of_block(*places, *words, mask)
        return torch.cat(
            [
                checkpoint(self._of_block, *block, *words, mask, use_reentrant=False, preserve_rng_state=False)
                for block in zip(*(part.split(rows) for part in places), strict=True)
            ]
        )

    def _of_block(self, places: Tensor, grams: Tensor, words: Tensor, products: Tensor, mask: Tensor) -> Tensor:
        """Compute `all_pairs` in a few large matrix products, and on a CPU without the padding."""
        images, captions = len(places), len(words)
        present = mask.flatten() if can_ask(mask) else slice(None)
        cosines = (places.flatten(0, 1) @ words.flatten(0, 1)[present].T).float()
        scores = []
        if self.text_attends:
            attended = self._attended(cosines.view(images, -1, cosines.shape[1]), grams)
            # Half precision would round the means.
            with torch.autocast(attended.device.type, enabled=False):
                scores.append(attended @ _averages(mask)[present])
        if self.image_attends:
            padded = cosines.new_zeros(len(cosines), mask.numel())
            padded[:, present] = cosines
            attended = self._attended(padded.view(-1, *mask.shape).permute(1, 2, 0), products, mask)
            scores.append(attended.view(captions, images, -1).mean(dim=2).T)
        return self.log_scale.exp() * torch.stack(scores).mean(dim=0)

    def _attended(self, cosines: Tensor, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the cosine (…, L) of each of L queries with the vector that it attends to.

        Args:
            cosines: (…, K, L), of K other tokens with the queries.
            products: (…, K, K), Gram matrix of the other tokens.
            mask: (…, K) bool, True for the tokens that may be attended to; None: all.
        """
        logits = self.log_sharpness.exp() * cosines
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), float("-inf"))
        weights = logits.softmax(dim=-2)
        inner = (weights * cosines).sum(dim=-2)
        squared = (weights * (products @ weights).float()).sum(dim=-2)
        return inner * squared.clamp_min(_MIN_LENGTH**2).rsqrt()


def _averages(mask: Tensor) -> Tensor:
    """Return the matrix (C·T, C) float32 that maps the words of all captions, concatenated, to each caption's mean."""
    caption = torch.arange(len(mask), device=mask.device)
    belongs = caption.repeat_interleave(mask.shape[1], output_size=mask.numel())[:, None] == caption
    return (belongs & mask.flatten()[:, None]) / mask.sum(dim=1)


def _identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _tokens(projected: Tensor) -> Tokens:
    directions = normalize(projected.float(), dim=-1)
    return Tokens(directions, directions @ directions.mT)
