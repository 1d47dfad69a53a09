"""Features of a frozen tower, computed once and stored across runs, in half precision.

A split is divided into blocks: the images of one data shard, or their captions. The name of a block's file is a hash of
all that its numbers depend on: the tower's weights and computation, and the images or token ids. A dataset that grows
adds blocks and leaves the others as they are.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.inputs import Half, Inputs, StoredImages, StoredTexts, TextInputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model import towers, upper
from diptych.model.device import Precision
from diptych.model.gathering import gather_rows, rank, wait_for_all, world_size
from diptych.model.towers import ImageTower, TextTower, Tower
from diptych.progress import progress
from diptych.retrieval.embedding import inference
from diptych.training.feature_files import FeatureFiles, file_size

Stored = TypeVar("Stored", StoredImages, StoredTexts)
Part = tuple[NDArray[np.int64], Tensor]
"""Positions in a block, and their features."""

GIB = 2**30
_IMAGES_AT_ONCE = {"cpu": 16}
_CAPTIONS_AT_ONCE = {"cpu": 128}
_ON_A_GPU = 256
"""Images or captions computed at once. The last bits of a block's numbers depend on it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """The features in one file: those of `items` (positions in the split)."""

    items: NDArray[np.int64]
    key: str
    shape: tuple[int, ...]


class FeatureCache:
    """Stored features of frozen towers.

    Args:
        folder: folder of the features of all runs; it may be deleted at any time.
        limit_gib: largest size of the folder. Features that do not fit are not stored. The least recently used files
            are removed first.
        device: device to compute with.
        precision: precision to compute with.
    """

    def __init__(self, folder: Path, *, limit_gib: float, device: torch.device, precision: Precision) -> None:
        self.files = FeatureFiles(folder, int(limit_gib * GIB))
        self.device = device
        self.precision: Precision = precision

    def release(self) -> None:
        """Let all features that were returned so far be removed when others need room."""
        self.files.release(set(self.files.used))

    def images(
        self, tower: ImageTower, splits: Sequence[PreparedSplit], *, mirrored: bool = False, whole: bool = False
    ) -> list[StoredImages] | None:
        """Return features of the images of each split, or of their mirror images; None if they do not fit.

        The features of a split tower are those of its lower part. With `whole` they are those of all of it, computed
        from the features of the lower part, which are stored as well.

        Raises:
            DiptychError: the disk is full, or the features are beyond half precision.
        """

        def recipe(lower: list[StoredImages] | None) -> _ImageRecipe:
            return _ImageRecipe(self, tower, splits, whole=lower is not None, lower=lower, mirrored=mirrored)

        return self._store_whole(recipe) if whole else self._store(recipe(None))

    def texts(
        self, tower: TextTower, splits: Sequence[PreparedSplit], *, whole: bool = False
    ) -> list[StoredTexts] | None:
        """Return features of the captions of each split, like `images`."""

        def recipe(lower: list[StoredTexts] | None) -> _TextRecipe:
            return _TextRecipe(self, tower, splits, whole=lower is not None, lower=lower)

        return self._store_whole(recipe) if whole else self._store(recipe(None))

    def fingerprint(self, tower: Tower, whole: bool) -> list[str]:
        """Return all that features depend on besides the content: weights, code, precision, versions and threads."""
        versions = [torch.__version__, transformers.__version__]
        computing = [self.device.type, self.precision, torch.get_num_threads(), *versions]
        code = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in (towers, upper)]
        return [tower.features_sha256(whole=whole), *code, *map(str, computing)]

    def _store_whole(self, recipe: Callable[[list[Stored] | None], _Recipe[Stored]]) -> list[Stored] | None:
        """Store the features of a whole tower, computed from those of its lower part."""
        used = set(self.files.used)
        lower = self._store(recipe(None))
        if lower is None:
            return None
        only_for_this = set(self.files.used) - used
        stored = self._store(recipe(lower))
        self.files.release(only_for_this)
        return stored

    def _store(self, recipe: _Recipe[Stored]) -> list[Stored] | None:
        """Find or compute all blocks of a recipe; None if they do not fit."""
        started = time.perf_counter()
        plan = [(split, recipe.blocks(split)) for split in recipe.splits]
        every = [(split, block) for split, blocks in plan for block in blocks]
        needed = {self.files.path(block.key): file_size(block.shape) for _, block in every}
        self.files.sweep()
        if not self._fit(recipe.name, needed):
            return None
        self.files.used |= needed
        # The processes share the work. Each of them maps what any has computed.
        share = every[rank() :: world_size()]
        found = self._find([block for _, block in share])
        missing = [(split, block) for split, block in share if block.key not in found]
        self._compute(recipe, missing)
        wait_for_all()
        stored = []
        for split, blocks in plan:
            arrays = [found[b.key] if b.key in found else self._open(recipe, split, b) for b in blocks]
            stored.append(recipe.view(split, blocks, arrays))
        self.files.touch(needed)
        self.files.make_room()
        log.info(
            "%s features of the frozen %s: %.2f GiB in %s; %d of %d blocks computed, in %.1f s.",
            recipe.name.capitalize(),
            "layers" if recipe.tower.upper and not recipe.whole else "tower",
            sum(needed.values()) / GIB,
            self.files.folder,
            len(missing),
            len(needed),
            time.perf_counter() - started,
        )
        return stored

    def _fit(self, name: str, needed: dict[Path, int]) -> bool:
        """Return the same answer in every process, whatever another one has written by now."""
        fit = torch.tensor([self.files.fit(needed)], dtype=torch.uint8, device=self.device)
        if gather_rows(fit).all():
            return True
        log.warning(
            "The %s features are not kept: %.1f GiB, but train.features_gib allows %.1f and the disk has "
            "%.1f free. They are computed anew in every epoch.",
            name,
            self.files.total(needed) / GIB,
            self.files.limit / GIB,
            self.files.free() / GIB,
        )
        return False

    def _find(self, blocks: Sequence[_Block]) -> dict[str, Half]:
        # Most of the time to open a file goes into its digest, which threads compute in parallel.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            arrays = threads.map(lambda block: self.files.find(block.key, block.shape), blocks)
            return {block.key: array for block, array in zip(blocks, arrays, strict=True) if array is not None}

    def _compute(self, recipe: _Recipe[Any], missing: Sequence[tuple[PreparedSplit, _Block]]) -> None:
        items = sum(len(block.items) for _, block in missing)
        bar = progress(None, f"{recipe.name} features", unit="items", total=items, disable=not missing)
        with bar, self._computing(recipe.tower):
            for split, block in missing:
                self.files.write(block.key, _collect(block.shape, recipe.compute(split, block)))
                bar.update(len(block.items))

    def _open(self, recipe: _Recipe[Any], split: PreparedSplit, block: _Block) -> Half:
        """Return a block that another process was to compute; compute it if that has removed or damaged it."""
        features = self.files.find(block.key, block.shape)
        if features is None:
            with self._computing(recipe.tower):
                self.files.write(block.key, _collect(block.shape, recipe.compute(split, block)))
            features = self.files.find(block.key, block.shape)
        assert features is not None
        return features

    @contextmanager
    def _computing(self, tower: Tower) -> Iterator[None]:
        """Compute without torch.compile, whose numbers depend on the sizes of earlier blocks."""
        with inference(tower, self.device, self.precision), torch.compiler.set_stance("force_eager"):
            yield


class _Recipe(ABC, Generic[Stored]):
    """The computation of the features of splits, block by block.

    Args:
        cache: the cache that computes them.
        tower: the tower, which is frozen at least below.
        splits: the splits.
        whole: compute features of the whole tower, not of its lower part.
        lower: for `whole`, the features of the lower part of each split.
    """

    name: str

    def __init__(
        self,
        cache: FeatureCache,
        tower: Tower,
        splits: Sequence[PreparedSplit],
        *,
        whole: bool,
        lower: Sequence[Stored] | None,
    ) -> None:
        self.tower, self.splits, self.whole = tower, splits, whole
        self._lower: Sequence[Stored] = lower or ()
        self.device = cache.device
        self.fingerprint = cache.fingerprint(tower, whole)
        self.feature_shape = tower.whole_shape if whole else tower.feature_shape

    @abstractmethod
    def blocks(self, split: PreparedSplit) -> list[_Block]:
        """Return the blocks of a split."""

    @abstractmethod
    def compute(self, split: PreparedSplit, block: _Block) -> Iterator[Part]:
        """Yield the features of a block in parts."""

    @abstractmethod
    def view(self, split: PreparedSplit, blocks: Sequence[_Block], arrays: Sequence[Half]) -> Stored:
        """Return the features of a split from the arrays of its blocks."""

    def block(self, items: NDArray[np.int64], rows: int, content: object) -> _Block:
        """Return the block of `items`, whose array has `rows` rows and depends on `content`."""
        shape = (rows, *self.feature_shape)
        return _Block(items, _sha256(self.fingerprint, shape, content), shape)

    def lower_of(self, split: PreparedSplit) -> Stored | None:
        """Return the features of the lower part for a split."""
        pairs = zip(self.splits, self._lower, strict=False)
        return next((lower for other, lower in pairs if other is split), None)


class _ImageRecipe(_Recipe[StoredImages]):
    """Features of images, or of their mirror images."""

    tower: ImageTower

    def __init__(self, *arguments: Any, mirrored: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mirrored = mirrored
        self.name = "mirrored image" if mirrored else "image"

    def blocks(self, split: PreparedSplit) -> list[_Block]:
        side = ["mirrored"] if self.mirrored else []
        return [
            self.block(items, len(items), [split.decoding, [split.image_hashes[i] for i in items], *side])
            for items in _by_shard(split.shard_of_image)
        ]

    def compute(self, split: PreparedSplit, block: _Block) -> Iterator[Part]:
        lower: StoredImages | None = self.lower_of(split)
        inputs = lower if lower is not None else Inputs(split).images
        for part in _parts(np.arange(len(block.items)), _IMAGES_AT_ONCE.get(self.device.type, _ON_A_GPU)):
            images = inputs(block.items[part]).to(self.device)
            if lower:
                yield part, self.tower.above(images)
            else:
                yield part, self.tower.features(images.flip(2) if self.mirrored else images)

    def view(self, split: PreparedSplit, blocks: Sequence[_Block], arrays: Sequence[Half]) -> StoredImages:
        return StoredImages(arrays, _block_of(blocks, len(split)))


class _TextRecipe(_Recipe[StoredTexts]):
    """Features of captions, the tokens of one caption after those of another."""

    name = "text"
    tower: TextTower

    def blocks(self, split: PreparedSplit) -> list[_Block]:
        blocks = []
        for items in _by_shard(split.shard_of_image[split.image_of_caption]):
            token_ids, lengths = split.tokens(items)[0].tolist(), split.token_lengths[items].tolist()
            content = [ids[:length] for ids, length in zip(token_ids, lengths, strict=True)]
            blocks.append(self.block(items, int(split.token_lengths[items].sum()), content))
        return blocks

    def compute(self, split: PreparedSplit, block: _Block) -> Iterator[Part]:
        lower: StoredTexts | None = self.lower_of(split)
        inputs: TextInputs = lower or Inputs(split).texts
        encode = self.tower.above if lower else self.tower.features
        lengths = split.token_lengths[block.items]
        starts = lengths.cumsum() - lengths
        by_length = np.argsort(lengths, kind="stable")
        for part in _parts(by_length, _CAPTIONS_AT_ONCE.get(self.device.type, _ON_A_GPU)):
            texts, mask = (tensor.to(self.device) for tensor in inputs(block.items[part]))
            positions = (torch.from_numpy(starts[part])[:, None] + torch.arange(mask.shape[1]))[mask.cpu()]
            yield positions.numpy(), encode(texts, mask)[mask]

    def view(self, split: PreparedSplit, blocks: Sequence[_Block], arrays: Sequence[Half]) -> StoredTexts:
        return StoredTexts(arrays, _block_of(blocks, len(split.captions)), split.token_lengths)


def _collect(shape: tuple[int, ...], parts: Iterator[Part]) -> Half:
    """Return the array of a block from its parts.

    Raises:
        DiptychError: a feature is too large for half precision, or NaN.
    """
    features = np.empty(shape, np.float16)
    for positions, values in parts:
        features[positions] = values.half().cpu().numpy()
    if not np.isfinite(features).all():
        raise DiptychError(
            "The features of a frozen tower are beyond half precision; set train.keep_features to never."
        )
    return features


def _sha256(*content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _by_shard(shards: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(shards == shard) for shard in np.unique(shards)]


def _parts(items: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _block_of(blocks: Sequence[_Block], count: int) -> NDArray[np.int64]:
    block_of = np.empty(count, np.int64)
    for number, block in enumerate(blocks):
        block_of[block.items] = number
    return block_of
