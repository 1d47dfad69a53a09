"""Inputs of the towers: pixels and token ids, or stored features that a frozen tower computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.prepared import PreparedSplit

Half = NDArray[np.float16]
ImageInputs = Callable[[NDArray[np.int64]], Tensor]
"""Function from indices of images (B,) to pixels (B, S, S, 3) uint8, or to features (B, N, C) float16."""
TextInputs = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]
"""Function from indices of captions (C,) to token ids (C, T) int64, or to features (C, T, L, D) float16, and to the
mask bool (C, T). Both are padded to the longest caption.
"""


class Inputs:
    """Inputs of both towers for a split; a tower without stored features gets pixels or token ids."""

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


class StoredImages:
    """Stored features of the images of a split, in blocks.

    Args:
        blocks: float16 (n, N, C) each.
        block_of_image: int64 (images,), the block of each image.
        row_of_image: int64 (images,), its row there; None: the images of a block are in the order of the split.
    """

    def __init__(
        self,
        blocks: Sequence[Half],
        block_of_image: NDArray[np.int64],
        row_of_image: NDArray[np.int64] | None = None,
    ) -> None:
        self._blocks = blocks
        self._block = block_of_image
        self._row = _rows_in_blocks(block_of_image) if row_of_image is None else row_of_image

    def __call__(self, images: NDArray[np.int64]) -> Tensor:
        """Return the features of `images` (B,) as float16 (B, N, C)."""
        blocks, rows = self._block[images], self._row[images]
        features = np.empty((len(images), *self._blocks[0].shape[1:]), np.float16)
        for block in np.unique(blocks):
            members = np.flatnonzero(blocks == block)
            features[members] = self._blocks[block][rows[members]]
        return torch.from_numpy(features)

    def part(self, images: NDArray[np.int64]) -> StoredImages:
        """Return the features of some of the images, in this order, without a copy."""
        return StoredImages(self._blocks, self._block[images], self._row[images])


class StoredTexts:
    """Stored features of the captions of a split, in blocks that concatenate the tokens of their captions.

    Args:
        blocks: float16 (tokens, L, D) each.
        block_of_caption: int64 (captions,), the block of each caption.
        lengths: int64 (captions,), the number of tokens of each caption.
        start: int64 (captions,), the row of its first token there; None: the captions of a block are in the order of
            the split.
    """

    def __init__(
        self,
        blocks: Sequence[Half],
        block_of_caption: NDArray[np.int64],
        lengths: NDArray[np.int64],
        start: NDArray[np.int64] | None = None,
    ) -> None:
        self._blocks = blocks
        self._block = block_of_caption
        self._lengths = lengths
        self._start = _starts_in_blocks(block_of_caption, lengths) if start is None else start

    def __call__(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the features of `captions` (C,) as float16 (C, T, L, D), with zeros as padding; mask bool (C, T)."""
        lengths = self._lengths[captions]
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        features = np.zeros((*mask.shape, *self._blocks[0].shape[1:]), np.float16)
        for block in np.unique(self._block[captions]):
            members = np.flatnonzero(self._block[captions] == block)
            sources = (self._start[captions[members]][:, None] + steps)[mask[members]]
            rows, positions = np.nonzero(mask[members])
            features[members[rows], positions] = self._blocks[block][sources]
        return torch.from_numpy(features), torch.from_numpy(mask)

    def part(self, captions: NDArray[np.int64]) -> StoredTexts:
        """Return the features of some of the captions, in this order, without a copy."""
        return StoredTexts(self._blocks, self._block[captions], self._lengths[captions], self._start[captions])


def _rows_in_blocks(block_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of each item within its block."""
    rows = np.empty_like(block_of)
    for block in np.unique(block_of):
        members = np.flatnonzero(block_of == block)
        rows[members] = np.arange(len(members))
    return rows


def _starts_in_blocks(block_of: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of the `lengths` before each item within its block."""
    starts = np.empty_like(lengths)
    for block in np.unique(block_of):
        members = np.flatnonzero(block_of == block)
        starts[members] = lengths[members].cumsum() - lengths[members]
    return starts
