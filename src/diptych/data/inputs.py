"""What the towers are given: pixels and token ids, or the features that a frozen tower once made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.prepared import PreparedSplit

Half = NDArray[np.float16]


class ImageInputs(Protocol):
    """Images by their places in a split."""

    def __call__(self, images: NDArray[np.int64]) -> Tensor:
        """Pixels (B, S, S, 3) uint8, or features (B, N, C) float16."""


class TextInputs(Protocol):
    """Captions by their places in a split."""

    def __call__(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Token ids (C, T) int64, or features (C, T, L, D) float16, padded to the longest; mask bool (C, T)."""


class Inputs:
    """What the towers are given for a split; without features of a tower, what that tower computes them from."""

    def __init__(
        self, split: PreparedSplit, images: ImageInputs | None = None, texts: TextInputs | None = None
    ) -> None:
        self.split = split
        self.images: ImageInputs = images or self._pixels
        self.texts: TextInputs = texts or self._tokens

    def _pixels(self, images: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.split.pixels(images))

    def _tokens(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        token_ids, mask = self.split.tokens(captions)
        return torch.from_numpy(token_ids), torch.from_numpy(mask)


class KeptImages:
    """Features of the images of a split, which lie in blocks.

    Args:
        blocks: float16 (n, N, C) each.
        block_of_image: int64 (images,), the block of each image; its images are in the split's order.
    """

    def __init__(self, blocks: Sequence[Half], block_of_image: NDArray[np.int64]) -> None:
        self._blocks = blocks
        self._block = block_of_image
        self._row = _places(block_of_image)

    def __call__(self, images: NDArray[np.int64]) -> Tensor:
        """As `ImageInputs` says."""
        chosen, rows = self._block[images], self._row[images]
        features = np.empty((len(images), *self._blocks[0].shape[1:]), np.float16)
        for block in np.unique(chosen):
            here = np.flatnonzero(chosen == block)
            features[here] = self._blocks[block][rows[here]]
        return torch.from_numpy(features)


class KeptTexts:
    """Features of the captions of a split, which lie in blocks, the tokens of one caption behind those of another.

    Args:
        blocks: float16 (tokens, L, D) each.
        block_of_caption: int64 (captions,), the block of each caption; its captions are in the split's order.
        lengths: int64 (captions,), tokens of each.
    """

    def __init__(self, blocks: Sequence[Half], block_of_caption: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self._blocks = blocks
        self._block = block_of_caption
        self._lengths = lengths
        self._start = np.empty_like(lengths)
        for block in range(len(blocks)):
            here = np.flatnonzero(block_of_caption == block)
            self._start[here] = lengths[here].cumsum() - lengths[here]

    def __call__(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """As `TextInputs` says; zero beyond a caption's end."""
        lengths = self._lengths[captions]
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        features = np.zeros((*mask.shape, *self._blocks[0].shape[1:]), np.float16)
        for block in np.unique(self._block[captions]):
            here = np.flatnonzero(self._block[captions] == block)
            positions = (self._start[captions[here]][:, None] + steps)[mask[here]]
            rows, places = np.nonzero(mask[here])
            features[here[rows], places] = self._blocks[block][positions]
        return torch.from_numpy(features), torch.from_numpy(mask)


def _places(block_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each item's place within its block."""
    places = np.empty_like(block_of)
    for block in np.unique(block_of):
        here = np.flatnonzero(block_of == block)
        places[here] = np.arange(len(here))
    return places
