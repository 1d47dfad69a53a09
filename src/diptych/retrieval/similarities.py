"""How alike images and captions are that belong together, and how alike the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.retrieval.metrics import BLOCK_SCORES, products

BINS = 100
"""From a cosine of -1 to one of 1."""


class Similarities(NamedTuple):
    """How many pairs have a cosine in each of `BINS` equal bins, int64 (BINS,)."""

    matching: NDArray[np.int64]
    other: NDArray[np.int64]

    @staticmethod
    def edges() -> NDArray[np.float64]:
        """Of the bins, (BINS + 1,)."""
        return np.linspace(-1, 1, BINS + 1)

    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The percent of matching pairs, and of the others, in each bin."""
        matching, other = (100.0 * counts / max(counts.sum(), 1) for counts in self)
        return matching, other


def similarities(image: Tensor, text: Tensor, image_of_caption: NDArray[np.int64]) -> Similarities:
    """Of all pairs of `image` (N, d) and `text` (M, d), both of length one, block by block."""
    own = torch.from_numpy(image_of_caption)
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    rows = max(1, BLOCK_SCORES // len(image))
    for start in range(0, len(text), rows):
        cosines = products(text[start : start + rows], image).clamp_(-1, 1)
        for side, some in enumerate((cosines.gather(1, own[start : start + rows, None]), cosines)):
            counts[side] += torch.histc(some, BINS, -1, 1).long()
    matching, every = counts.numpy()
    return Similarities(matching, every - matching)
