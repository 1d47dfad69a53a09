"""Pooled features of frozen towers, and the linear algebra on them that several baselines share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 4096
"""Number of rows that are computed at once."""


class Pooled(NamedTuple):
    """Features of a split by frozen single-modality towers."""

    image: Tensor
    """(N, C) float32, the mean of an image's tokens, of unit length."""
    text: Tensor
    """(M, D) float32, the mean of a caption's tokens, of unit length."""
    image_of_caption: NDArray[np.int64]
    """(M,), each caption's image."""
    captions: Sequence[str]
    """(M,)."""


Baseline = Callable[[Pooled], tuple[Tensor, Tensor]]
"""Function from a split to vectors of its images (N, d) and captions (M, d), to be ranked by inner product."""
Encode = Callable[[Sequence[str]], Tensor]
"""Function from sentences (n) to the text tower's mean tokens (n, D), of unit length."""


def caption_means(split: Pooled, text: Tensor) -> Tensor:
    """Return the mean (N, D) of the text features (M, D) of each image's captions."""
    owner = torch.from_numpy(split.image_of_caption)
    sums = torch.zeros(len(split.image), text.shape[1]).index_add_(0, owner, text)
    return sums / torch.bincount(owner, minlength=len(sums))[:, None]


def centred_directions(features: Tensor, train: Tensor) -> Tensor:
    """Return `features` (n, D) minus the mean of `train` (m, D), of unit length."""
    return normalize(features - train.mean(dim=0), dim=1)


def ridge_maps(features: Tensor, target: Tensor, strengths: Sequence[float]) -> dict[float, Tensor]:
    """Return, by strength, the weights (C, D) float32 that map centred `features` (N, C) to `target` (N, D)."""
    centred = features - features.mean(dim=0)
    covariance, cross = gram(centred, centred) / len(centred), gram(centred, target) / len(centred)
    return {strength: torch.linalg.solve(regularized(covariance, strength), cross).float() for strength in strengths}


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Return leftᵀ·right (C, D) float64 of (n, C) and (n, D), without a float64 copy of all rows."""
    sums = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for left_rows, right_rows in zip(left.split(ROWS), right.split(ROWS), strict=True):
        sums += left_rows.double().T @ right_rows.double()
    return sums


def regularized(covariance: Tensor, strength: float) -> Tensor:
    """Return the `covariance` (C, C) with `strength` times the mean variance added to its diagonal."""
    size = len(covariance)
    variance = max(float(covariance.trace()) / size, 1e-12)
    return covariance + strength * variance * torch.eye(size, dtype=covariance.dtype)
