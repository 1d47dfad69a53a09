"""Distribution of the cosines of matching image-caption pairs, and of all other pairs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.model.device import BLOCK_SCORES
from diptych.retrieval.ranking import products

BINS = 100
"""Number of bins from a cosine of -1 to one of 1."""


class Similarities(NamedTuple):
    """Number of pairs with a cosine in each of `BINS` equal bins, int64 (BINS,)."""

    matching: NDArray[np.int64]
    other: NDArray[np.int64]

    @staticmethod
    def edges() -> NDArray[np.float64]:
        """Return the edges of the bins, (BINS + 1,)."""
        return np.linspace(-1, 1, BINS + 1)

    def shares(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the percentage of the matching pairs in each bin, and that of the others."""
        matching, other = (100.0 * counts / max(counts.sum(), 1) for counts in self)
        return matching, other


def similarities(image: Tensor, text: Tensor, image_of_caption: NDArray[np.int64]) -> Similarities:
    """Count the cosines of all pairs of `image` (N, d) and `text` (M, d), both of unit length, block by block."""
    owner = torch.from_numpy(image_of_caption)
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    rows = max(1, BLOCK_SCORES // len(image))
    for start in range(0, len(text), rows):
        cosines = products(text[start : start + rows], image).clamp_(-1, 1)
        matching = cosines.gather(1, owner[start : start + rows, None])
        for index, values in enumerate((matching, cosines)):
            counts[index] += torch.histc(values, BINS, -1, 1).long()
    matching_counts, all_counts = counts.numpy()
    return Similarities(matching_counts, all_counts - matching_counts)
