"""Query-bank normalization (qb_norm): subtract from each score what the item scores on queries in general.

In a space of many dimensions some items, the hubs, are near to most queries and would be retrieved for all of them.
Contrastive training compares the items for a query and the queries for an item, both within a batch. A ranking compares
only the items for a query. The inverted softmax (Smith et al., ICLR 2017) restores the other comparison: it compares a
score with the same item's scores on other queries. Querybank normalization (Bogolin et al., CVPR 2022) uses training
queries there, so nothing about future queries has to be known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.model.device import BLOCK_SCORES


class QueryBank(NamedTuple):
    """Embeddings of training images and training captions, each of unit length."""

    image: Tensor
    """(n, d) floating point, queries for captions."""
    text: Tensor
    """(m, d) floating point, queries for images."""
    strength: float = 1.0
    """Multiplier of the biases: 1 is the inverted softmax; with few queries in the bank, less is better."""

    def image_bias(self, image: Tensor, logit_scale: float) -> Tensor:
        """Return the biases (N,) float32 of `image` (N, d): their scores on the bank's captions, in units of cosine.

        With cosines c, a bias is strength · log(mean(exp(logit_scale · c))) / logit_scale, a soft maximum.
        """
        return self.strength * _soft_maximum(image, self.text, logit_scale)

    def text_bias(self, text: Tensor, logit_scale: float) -> Tensor:
        """Return the biases (M,) float32 of `text` (M, d): the same on the bank's images."""
        return self.strength * _soft_maximum(text, self.image, logit_scale)


def _soft_maximum(items: Tensor, queries: Tensor, logit_scale: float) -> Tensor:
    queries, scale = queries.to(items.device, torch.float32), float(logit_scale)
    rows = max(1, BLOCK_SCORES // len(queries))
    parts = [
        (scale * items[start : start + rows].float() @ queries.T).logsumexp(dim=1)
        for start in range(0, len(items), rows)
    ]
    return (torch.cat(parts) - math.log(len(queries))) / scale
