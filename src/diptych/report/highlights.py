"""What the fusion looks at in a pair: the words and the places of the image without which it would score less.

Each word is left out, and each place of the grid covered by the mean of the grid, one at a time, and what the weighted
logits lose is what it brought (occlusion: Zeiler and Fergus, ECCV 2014, section 4.2). The attention weights would say
where the fusion looks, but not whether that moved the score. What one word says of another, the text tower has mixed
into both by then, and likewise of places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diptych.model.dual_encoder import DualEncoder
from diptych.model.package import Preprocessing
from diptych.retrieval.embedding import Embedded, inference
from diptych.retrieval.reranking import Weights

NOISE = 1e-4
"""Of a pair's logits: less is what float32 makes of nothing."""


class Effects(NamedTuple):
    """What the weighted logits of a pair lose without each part of it."""

    tokens: Tensor
    """(T,) float32."""
    places: Tensor
    """(G,) float32, of the grid tokens."""


class Highlighted(NamedTuple):
    """A pair as the fusion sees it; strengths lie between 0, for what brought nothing, and 1 for the most."""

    words: list[tuple[str, float]]
    """The caption in pieces, each with its strength."""
    heat: NDArray[np.float64]
    """(H, W), the strength of each place of the image."""


Highlight = Callable[[int, int], Highlighted]
"""Takes an image and a caption by their places in the split."""


def highlighter(
    model: DualEncoder,
    embedded: Embedded,
    weights: Weights,
    captions: list[str],
    tokenizer: PreTrainedTokenizerBase,
    preprocessing: Preprocessing,
    device: torch.device,
) -> Highlight | None:
    """For the pairs of `embedded`, whose texts are `captions` (M); None where the fusion has no weight."""
    if not any(weights):
        return None

    def highlight(image: int, caption: int) -> Highlighted:
        found = effects(model, embedded, image, caption, weights, device)
        places = found.places.numpy()
        # Class and register tokens come before the places, which are a square.
        side = preprocessing.image_size // getattr(model.image_tower.backbone.config, "patch_size", 1)
        if side * side > len(places):  # of a feature map
            side = math.isqrt(len(places))
        heat = _strengths(places[len(places) - side * side :]).reshape(side, side)
        return Highlighted(_words(captions[caption], found.tokens, tokenizer, preprocessing.max_tokens), heat)

    return highlight


def effects(
    model: DualEncoder, embedded: Embedded, image: int, caption: int, weights: Weights, device: torch.device
) -> Effects:
    """Of a pair, each part alone left out or covered."""
    tokens, mask = (given.to(device) for given in embedded.padded_tokens(torch.tensor([caption])))
    grid = embedded.grid[image][None].to(device)
    left_out = mask & ~torch.eye(mask.shape[1], dtype=torch.bool, device=device)
    # A caption of a single token keeps it: nothing is left to score.
    left_out = torch.where(left_out.any(dim=1, keepdim=True), left_out, mask)
    covered = grid.repeat(grid.shape[1], 1, 1)
    places = torch.arange(len(covered), device=device)
    covered[places, places] = grid.mean(dim=1)

    def score(grid: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        pairs = max(len(grid), len(tokens))
        one = [torch.zeros(pairs, dtype=torch.long, device=device) if len(side) == 1 else None for side in (grid, mask)]
        total = torch.zeros(pairs, device=device)
        if weights.match:
            total += weights.match * model.fusion(grid, tokens, mask, *one).score.float()
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
    """The caption cut at its words, what lies between them and beyond the last token with strength zero."""
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
    """What is positive, with the largest at one."""
    positive = np.maximum(values.astype(np.float64), 0.0)
    return positive / max(positive.max(initial=0.0), 1e-12)
