"""Computation of the features of frozen towers: the blocks of a split, the names of their files, and their numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.inputs import Half, Inputs, StoredImages, StoredTexts, TextInputs
from diptych.data.prepared import PreparedSplit
from diptych.model import towers, upper
from diptych.model.device import Precision
from diptych.model.towers import ImageTower, TextTower, Tower

Stored = TypeVar("Stored", StoredImages, StoredTexts)
Part = tuple[NDArray[np.int64], Tensor]
"""Positions in a block, and their features."""

_IMAGES_AT_ONCE = {"cpu": 16}
_CAPTIONS_AT_ONCE = {"cpu": 128}
_ON_A_GPU = 256
"""Images or captions computed at once. The last bits of a block's numbers depend on it."""


class Computing(NamedTuple):
    """Device and precision that features are computed with."""

    device: torch.device
    precision: Precision


@dataclass(frozen=True)
class Block:
    """The features in one file: those of `items` (positions in the split)."""

    items: NDArray[np.int64]
    key: str
    shape: tuple[int, ...]


class Recipe(ABC, Generic[Stored]):
    """The computation of the features of splits, block by block.

    Args:
        computing: device and precision.
        tower: the tower, which is frozen at least below.
        splits: the splits.
        whole: compute features of the whole tower, not of its lower part.
        lower: for `whole`, the features of the lower part of each split.
    """

    name: str

    def __init__(
        self,
        computing: Computing,
        tower: Tower,
        splits: Sequence[PreparedSplit],
        *,
        whole: bool,
        lower: Sequence[Stored] | None,
    ) -> None:
        self.tower, self.splits, self.whole = tower, splits, whole
        self._lower: Sequence[Stored] = lower or ()
        self.device, self.precision = computing
        self.fingerprint = _fingerprint(computing, tower, whole)
        self.feature_shape = tower.whole_shape if whole else tower.feature_shape

    @property
    def reads_features(self) -> bool:
        """Whether it computes from the features of the lower part, not from pixels or token ids."""
        return bool(self._lower)

    @abstractmethod
    def blocks(self, split: PreparedSplit) -> list[Block]:
        """Return the blocks of a split."""

    @abstractmethod
    def compute(self, split: PreparedSplit, block: Block) -> Iterator[Part]:
        """Yield the features of a block in parts."""

    @abstractmethod
    def view(self, split: PreparedSplit, blocks: Sequence[Block], arrays: Sequence[Half]) -> Stored:
        """Return the features of a split from the arrays of its blocks."""

    def block(self, items: NDArray[np.int64], rows: int, content: object) -> Block:
        """Return the block of `items`, whose array has `rows` rows and depends on `content`."""
        shape = (rows, *self.feature_shape)
        return Block(items, _sha256(self.fingerprint, shape, content), shape)

    def lower_of(self, split: PreparedSplit) -> Stored | None:
        """Return the features of the lower part for a split."""
        pairs = zip(self.splits, self._lower, strict=False)
        return next((lower for other, lower in pairs if other is split), None)


class ImageRecipe(Recipe[StoredImages]):
    """Features of images, or of their mirror images."""

    tower: ImageTower

    def __init__(self, *arguments: Any, mirrored: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mirrored = mirrored
        self.name = "mirrored image" if mirrored else "image"

    def blocks(self, split: PreparedSplit) -> list[Block]:
        """Return a block for the images of each data shard."""
        side = ["mirrored"] if self.mirrored else []
        return [
            self.block(items, len(items), [split.decoding, [split.image_hashes[i] for i in items], *side])
            for items in _by_shard(split.shard_of_image)
        ]

    def compute(self, split: PreparedSplit, block: Block) -> Iterator[Part]:
        """Yield the features of a block, a few images at a time."""
        lower: StoredImages | None = self.lower_of(split)
        inputs = lower if lower is not None else Inputs(split).images
        for part in _parts(np.arange(len(block.items)), _IMAGES_AT_ONCE.get(self.device.type, _ON_A_GPU)):
            images = inputs(block.items[part]).to(self.device)
            if lower is not None:
                yield part, self.tower.above(images)
            else:
                yield part, self.tower.features(images.flip(2) if self.mirrored else images)

    def view(self, split: PreparedSplit, blocks: Sequence[Block], arrays: Sequence[Half]) -> StoredImages:
        """Return the images of a split, which look up their features in `arrays`."""
        return StoredImages(arrays, _block_of(blocks, len(split)))


class TextRecipe(Recipe[StoredTexts]):
    """Features of captions, the tokens of one caption after those of another."""

    name = "text"
    tower: TextTower

    def blocks(self, split: PreparedSplit) -> list[Block]:
        """Return a block for the captions of each data shard."""
        blocks = []
        for items in _by_shard(split.shard_of_image[split.image_of_caption]):
            token_ids, lengths = split.tokens(items)[0].tolist(), split.token_lengths[items].tolist()
            content = [ids[:length] for ids, length in zip(token_ids, lengths, strict=True)]
            blocks.append(self.block(items, int(split.token_lengths[items].sum()), content))
        return blocks

    def compute(self, split: PreparedSplit, block: Block) -> Iterator[Part]:
        """Yield the features of a block, captions of like lengths together."""
        lower: StoredTexts | None = self.lower_of(split)
        inputs: TextInputs = lower if lower is not None else Inputs(split).texts
        encode = self.tower.features if lower is None else self.tower.above
        lengths = split.token_lengths[block.items]
        starts = lengths.cumsum() - lengths
        by_length = np.argsort(lengths, kind="stable")
        for part in _parts(by_length, _CAPTIONS_AT_ONCE.get(self.device.type, _ON_A_GPU)):
            texts, mask = (tensor.to(self.device) for tensor in inputs(block.items[part]))
            positions = (torch.from_numpy(starts[part])[:, None] + torch.arange(mask.shape[1]))[mask.cpu()]
            yield positions.numpy(), encode(texts, mask)[mask]

    def view(self, split: PreparedSplit, blocks: Sequence[Block], arrays: Sequence[Half]) -> StoredTexts:
        """Return the captions of a split, which look up their features in `arrays`."""
        return StoredTexts(arrays, _block_of(blocks, len(split.captions)), split.token_lengths)


def _fingerprint(computing: Computing, tower: Tower, whole: bool) -> list[str]:
    """Return all that features depend on besides the content: weights, code, precision, versions and threads."""
    device, precision = computing
    depends_on = [device.type, precision, torch.get_num_threads(), torch.__version__, version("transformers")]
    code = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in (towers, upper)]
    return [tower.features_sha256(whole=whole), *code, *map(str, depends_on)]


def _sha256(*content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _by_shard(shards: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(shards == shard) for shard in np.unique(shards)]


def _parts(items: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _block_of(blocks: Sequence[Block], count: int) -> NDArray[np.int64]:
    block_of = np.empty(count, np.int64)
    for number, block in enumerate(blocks):
        block_of[block.items] = number
    return block_of
