"""What an item scores on queries in general, taken off its score, so that no item is found by everybody.

In a space of many dimensions some items, the hubs, are near to most queries. Contrastive training compares a query's
items, and items' queries, within a batch; in a gallery only the former comparison is left. The inverted softmax of
Smith et al. (ICLR 2017) brings the other one back: a score is compared with those of the same item on other queries.
With training queries in that place, as in querybank normalization (Bogolin et al., CVPR 2022), nothing need be known of
the queries to come.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_SCORES = 4_000_000
"""Scores held at once."""


class QueryBank(NamedTuple):
    """Embeddings of training images and training captions, each of length one."""

    image: Tensor
    """(n, d) floating, queries to captions."""
    text: Tensor
    """(m, d) floating, queries to images."""
    strength: float = 1.0
    """How much of a bias counts: 1 is the inverted softmax; where there are few queries to judge by, less is better."""

    def image_bias(self, image: Tensor, logit_scale: float) -> Tensor:
        """What `image` (N, d) scores on the bank's captions, (N,) float32, in units of cosine.

        Of the cosines c it is strength · log(mean(exp(logit_scale · c))) / logit_scale, a soft maximum.
        """
        return self.strength * _soft_maximum(image, self.text, logit_scale)

    def text_bias(self, text: Tensor, logit_scale: float) -> Tensor:
        """What `text` (M, d) scores on the bank's images, (M,) likewise."""
        return self.strength * _soft_maximum(text, self.image, logit_scale)


def _soft_maximum(items: Tensor, queries: Tensor, logit_scale: float) -> Tensor:
    queries, scale = queries.to(items.device, torch.float32), float(logit_scale)
    rows = max(1, BLOCK_SCORES // len(queries))
    parts = [
        (scale * items[start : start + rows].float() @ queries.T).logsumexp(dim=1)
        for start in range(0, len(items), rows)
    ]
    return (torch.cat(parts) - math.log(len(queries))) / scale
