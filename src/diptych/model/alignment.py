"""How well the words of a caption and the places of an image agree: cheap enough for all pairs of a batch.

Stacked cross attention (Lee et al., ECCV 2018): each token of the side that looks attends to the other side's tokens by
their cosines, and what it says of the pair is the cosine between itself and what it found. That vector is never made:
with weights w, cosines c to the tokens it is made of, and these tokens' products G with each other, its inner product
with the token is wᵀc and its length √(wᵀGw). So a pair costs a product of two matrices, and not layers of attention.
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
"""Cosines held at once, with some five times their memory beside them; of larger batches they are computed twice."""
_SHORTEST = 1e-3
"""Of what a token found: opposite places, looked at alike, cancel out."""


class Tokens(NamedTuple):
    """One side's tokens as they are compared."""

    directions: Tensor
    """(…, S, d), of length one."""
    products: Tensor
    """(…, S, S), of the tokens of an item with each other."""

    def chosen(self, item: Tensor | None) -> Tokens:
        """Those of each `item` (P,) int64; None: all."""
        return self if item is None else Tokens(*(part.index_select(0, item) for part in self))


class Alignment(nn.Module):
    """A logit that an image and a caption belong together, by their tokens' cosines alone.

    It begins with the tokens as they are given, which should lie in one space.

    Args:
        text_looks: each word looks at the grid.
        image_looks: each place of the grid looks at the words. With both, the logit is the mean.
    """

    def __init__(self, dim: int, *, text_looks: bool, image_looks: bool) -> None:
        super().__init__()
        self.text_looks = text_looks
        self.image_looks = image_looks
        self.place = _identity(dim)
        self.word = _identity(dim)
        self.log_sharpness = nn.Parameter(torch.tensor(2.0))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def of_pairs(
        self, grid: Tensor, tokens: Tensor, mask: Tensor, image: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Logits (P,) float32 of pairs by position, or by indices `image` (P,) and `text` (P,) int64.

        Args:
            grid: (B, N, d).
            tokens: (C, T, d).
            mask: (C, T) bool, True where there is a word.
        """
        places, words = _tokens(self.place(grid)).chosen(image), _tokens(self.word(tokens)).chosen(text)
        mask = mask if text is None else mask[text]
        cosines = (places.directions @ words.directions.mT).float()
        logits = []
        if self.text_looks:
            found = self._found(cosines, places.products)
            logits.append((found * mask).sum(dim=1) / mask.sum(dim=1))
        if self.image_looks:
            logits.append(self._found(cosines.mT, words.products, mask).mean(dim=1))
        return self.log_scale.exp() * torch.stack(logits).mean(dim=0)

    def all_pairs(self, grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, C) float32 of each of B images with each of C captions."""
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
        """As `all_pairs`, in products of few large matrices, and without the padding, where that can be asked for."""
        images, captions = len(places), len(words)
        taken = mask.flatten() if can_ask(mask) else slice(None)
        cosines = (places.flatten(0, 1) @ words.flatten(0, 1)[taken].T).float()
        logits = []
        if self.text_looks:
            found = self._found(cosines.view(images, -1, cosines.shape[1]), grams)
            # Half precision would round the means.
            with torch.autocast(found.device.type, enabled=False):
                logits.append(found @ _averages(mask)[taken])
        if self.image_looks:
            padded = cosines.new_zeros(len(cosines), mask.numel())
            padded[:, taken] = cosines
            found = self._found(padded.view(-1, *mask.shape).permute(1, 2, 0), products, mask)
            logits.append(found.view(captions, images, -1).mean(dim=2).T)
        return self.log_scale.exp() * torch.stack(logits).mean(dim=0)

    def _found(self, cosines: Tensor, products: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cosines (…, L) of each of L tokens with what it found among K others, by their `cosines` (…, K, L) and
        `products` (…, K, K), where `mask` (…, K) is True.
        """
        logits = self.log_sharpness.exp() * cosines
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), float("-inf"))
        weights = logits.softmax(dim=-2)
        inner = (weights * cosines).sum(dim=-2)
        squared = (weights * (products @ weights).float()).sum(dim=-2)
        return inner * squared.clamp_min(_SHORTEST**2).rsqrt()


def _averages(mask: Tensor) -> Tensor:
    """What takes the words of all captions, one after the other, to the mean of each caption by `mask` (C, T), (C·T, C)
    float32.
    """
    caption = torch.arange(len(mask), device=mask.device)
    own = caption.repeat_interleave(mask.shape[1], output_size=mask.numel())[:, None] == caption
    return (own & mask.flatten()[:, None]) / mask.sum(dim=1)


def _identity(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _tokens(projected: Tensor) -> Tokens:
    directions = normalize(projected.float(), dim=-1)
    return Tokens(directions, directions @ directions.mT)
