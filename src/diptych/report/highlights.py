"""Contributions of words and image regions to the fusion's score of a pair.

Each word is left out, and each grid position is covered by the mean of the grid, one at a time. The drop of the score
is its contribution (occlusion: Zeiler and Fergus, ECCV 2014, section 4.2). Attention weights would show what the fusion
attends to, but not whether that changed the score. The towers have mixed the context of words and positions into each
token before, so a contribution includes some of that context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.model.dual_encoder import DualEncoder
from diptych.model.lean_transformers import PreTrainedTokenizerBase
from diptych.retrieval.embedding import TokenStates, inference
from diptych.retrieval.reranking import Weights
from diptych.retriever import Retriever

NOISE = 1e-4
"""Share of a pair's score below which a drop is rounding of float32."""


class Effects(NamedTuple):
    """Drops of a pair's weighted scores without each of its parts."""

    tokens: Tensor
    """(T,) float32, drop without each text token."""
    grid: Tensor
    """(G,) float32, drop with each grid token covered."""


class Highlighted(NamedTuple):
    """Contributions of the parts of a pair to its score, from 0 (none) to 1 (the largest)."""

    words: list[tuple[str, float]]
    """Pieces of the caption with their contributions."""
    heat: NDArray[np.float64]
    """(H, W), contribution of each position of the image."""


Highlight = Callable[[int, int], Highlighted]
"""Function from the indices of an image and a caption to their highlights."""


def highlighter(retriever: Retriever, states: TokenStates, captions: list[str]) -> Highlight | None:
    """Return a function that highlights the pairs of `states`; None where the fusion has no weight in re-ranking.

    The scores count by the larger of both directions' weights.

    Args:
        retriever: the trained model.
        states: tokens of N images and M captions.
        captions: texts of the captions (M).
    """
    weights = retriever.weights.largest
    if not any(weights):
        return None
    settings, backbone = retriever.preprocessing, retriever.model.image_tower.backbone.config

    def highlight(image: int, caption: int) -> Highlighted:
        tokens, grid = effects(retriever.model, states, image, caption, weights, retriever.device)
        # Class and register tokens come before the grid, which is a square.
        side = settings.image_size // getattr(backbone, "patch_size", 1)
        if side * side > len(grid):  # a feature map, not patches
            side = math.isqrt(len(grid))
        heat = _strengths(grid.numpy()[len(grid) - side * side :]).reshape(side, side)
        return Highlighted(_words(captions[caption], tokens, retriever.tokenizer, settings.max_tokens), heat)

    return highlight


def effects(
    model: DualEncoder, states: TokenStates, image: int, caption: int, weights: Weights, device: torch.device
) -> Effects:
    """Return by how much the weighted scores of a pair drop without each token and with each grid position covered."""
    tokens, mask = (given.to(device) for given in states.padded_tokens(torch.tensor([caption])))
    grid = states.grid[image][None].to(device)
    left_out = mask & ~torch.eye(mask.shape[1], dtype=torch.bool, device=device)
    # A caption of a single token keeps it: nothing is left to score.
    left_out = torch.where(left_out.any(dim=1, keepdim=True), left_out, mask)
    covered = grid.repeat(grid.shape[1], 1, 1)
    positions = torch.arange(len(covered), device=device)
    covered[positions, positions] = grid.mean(dim=1)

    def score(grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        pairs = max(len(grid), len(tokens))
        one = [torch.zeros(pairs, dtype=torch.long, device=device) if len(side) == 1 else None for side in (grid, mask)]
        total = torch.zeros(pairs, device=device)
        if weights.itm:
            total += weights.itm * model.fusion(grid, tokens, mask, *one).itm.float()
        if weights.alignment and model.aligns:
            total += weights.alignment * model.aligned(grid, tokens, mask, *one)
        return total

    with inference(model, device, "no"):
        whole = score(grid, tokens, mask)
        without = score(grid, tokens.repeat(len(left_out), 1, 1), left_out), score(covered, tokens, mask)
    noise = NOISE * max(1.0, float(whole.abs()))
    return Effects(*((lost := (whole - less).cpu()).masked_fill(lost.abs() < noise, 0.0) for less in without))


def _words(
    caption: str, tokens: Tensor, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[tuple[str, float]]:
    """Return the caption in pieces: its words with their contributions, and what lies between them with zero."""
    encoded = tokenizer(caption, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    spans: list[tuple[int, int, float]] = []
    last = None
    for word, (start, end), effect in zip(encoded.word_ids(), encoded["offset_mapping"], tokens.tolist(), strict=False):
        if word is None:
            continue
        # Words that a tokenizer made of the same character belong together too.
        if spans and (word == last or start < spans[-1][1]):
            first, until, before = spans.pop()
            start, end, effect = min(first, start), max(until, end), before + effect
        spans.append((start, end, effect))
        last = word
    strengths = _strengths(np.array([effect for _, _, effect in spans]))
    pieces, done = [], 0
    for (start, end, _), strength in zip(spans, strengths.tolist(), strict=True):
        pieces += [(caption[done:start], 0.0), (caption[start:end], strength)]
        done = end
    return [(text, strength) for text, strength in [*pieces, (caption[done:], 0.0)] if text]


def _strengths(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `values` without negative ones, divided by the largest."""
    positive = np.maximum(values.astype(np.float64), 0.0)
    return positive / max(positive.max(initial=0.0), 1e-12)
