"""Features of a frozen tower, computed once and stored across runs, in half precision.

A split is divided into blocks: the images of one data shard, or their captions. The name of a block's file is a hash of
all that its numbers depend on: the tower's weights and computation, and the images or token ids. A dataset that grows
adds blocks and leaves the others as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.data.cluster import need_of
from diptych.data.inputs import Half, StoredImages, StoredTexts
from diptych.data.parallel import map_shards
from diptych.data.prepared import PreparedSplit, positions
from diptych.errors import DiptychError
from diptych.model.device import Precision, prepare
from diptych.model.gathering import gather_rows, rank, wait_for_all, world_size
from diptych.model.towers import ImageTower, TextTower
from diptych.progress import progress
from diptych.retrieval.embedding import inference
from diptych.training.feature_files import FeatureFiles, file_size
from diptych.training.feature_recipes import Block, Computing, ImageRecipe, Part, Recipe, Stored, TextRecipe

_Task = tuple[int, Block]
"""Number of a split among those of a recipe, and one of its blocks."""

GIB = 2**30
log = logging.getLogger(__name__)


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
        self.computing = Computing(device, precision)

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

        def recipe(lower: list[StoredImages] | None) -> ImageRecipe:
            return ImageRecipe(self.computing, tower, splits, whole=lower is not None, lower=lower, mirrored=mirrored)

        return self._store_whole(recipe) if whole else self._store(recipe(None))

    def texts(
        self, tower: TextTower, splits: Sequence[PreparedSplit], *, whole: bool = False
    ) -> list[StoredTexts] | None:
        """Return features of the captions of each split, like `images`."""

        def recipe(lower: list[StoredTexts] | None) -> TextRecipe:
            return TextRecipe(self.computing, tower, splits, whole=lower is not None, lower=lower)

        return self._store_whole(recipe) if whole else self._store(recipe(None))

    def _store_whole(self, recipe: Callable[[list[Stored] | None], Recipe[Stored]]) -> list[Stored] | None:
        """Store the features of a whole tower, computed from those of its lower part."""
        used = set(self.files.used)
        lower = self._store(recipe(None))
        if lower is None:
            return None
        only_for_this = set(self.files.used) - used
        stored = self._store(recipe(lower))
        self.files.release(only_for_this)
        return stored

    def _store(self, recipe: Recipe[Stored]) -> list[Stored] | None:
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
        fit = torch.tensor([self.files.fit(needed)], dtype=torch.uint8, device=self.computing.device)
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

    def _find(self, blocks: Sequence[Block]) -> dict[str, Half]:
        # Most of the time to open a file goes into its digest, which threads compute in parallel.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            arrays = threads.map(lambda block: self.files.find(block.key, block.shape), blocks)
            return {block.key: array for block, array in zip(blocks, arrays, strict=True) if array is not None}

    def _compute(self, recipe: Recipe[Any], missing: Sequence[tuple[PreparedSplit, Block]]) -> None:
        number = {id(split): number for number, split in enumerate(recipe.splits)}
        tasks = [(number[id(split)], block) for split, block in missing]
        items = sum(len(block.items) for _, block in missing)
        bar = progress(None, f"{recipe.name} features", unit="items", total=items, disable=not missing)
        with bar:
            for count in self._written(recipe, tasks):
                bar.update(count)

    def _written(self, recipe: Recipe[Any], tasks: Sequence[_Task]) -> Iterator[int]:
        """Write the features of blocks; yield the number of items of each."""
        write = partial(_write_block, recipe, self.files, torch.get_num_threads())
        # To compute from stored features takes less time than to send these to a cluster.
        if recipe.reads_features or not tasks:
            return map(write, tasks)
        need = need_of(self.computing.device.type, torch.get_num_threads())
        inputs = sorted({path for split in recipe.splits for path in split.tables})
        return map_shards(write, tasks, 1, name=_name, inputs=inputs, need=need)

    def _open(self, recipe: Recipe[Any], split: PreparedSplit, block: Block) -> Half:
        """Return a block that another process was to compute; compute it if that has removed or damaged it."""
        features = self.files.find(block.key, block.shape)
        if features is None:
            _write_block(recipe, self.files, torch.get_num_threads(), (recipe.splits.index(split), block))
            features = self.files.find(block.key, block.shape)
        if features is None:
            raise DiptychError(f"{self.files.path(block.key)} was written and cannot be read; run again.")
        return features


class SharedFeatures(FeatureCache):
    """Stored features of the parts of one dataset, which are computed once for all parts.

    Args:
        whole: holds the images and captions of all splits that features are asked for.
        folder, limit_gib, device, precision: as those of a `FeatureCache`.
    """

    def __init__(
        self, whole: PreparedSplit, folder: Path, *, limit_gib: float, device: torch.device, precision: Precision
    ) -> None:
        super().__init__(folder, limit_gib=limit_gib, device=device, precision=precision)
        self._whole = whole

    def images(
        self, tower: ImageTower, splits: Sequence[PreparedSplit], *, mirrored: bool = False, whole: bool = False
    ) -> list[StoredImages] | None:
        """Return features as `FeatureCache.images` does."""
        stored = super().images(tower, [self._whole], mirrored=mirrored, whole=whole)
        return stored and [stored[0].part(positions(split.image_ids, self._whole.image_ids)) for split in splits]

    def texts(
        self, tower: TextTower, splits: Sequence[PreparedSplit], *, whole: bool = False
    ) -> list[StoredTexts] | None:
        """Return features as `FeatureCache.texts` does."""
        stored = super().texts(tower, [self._whole], whole=whole)
        return stored and [stored[0].part(positions(split.caption_ids, self._whole.caption_ids)) for split in splits]


def _write_block(recipe: Recipe[Any], files: FeatureFiles, threads: int, task: _Task) -> int:
    """Compute and write the features of a block, here or on a node of a cluster; return its number of items."""
    number, block = task
    prepare(recipe.device.type, threads)
    # torch.compile's numbers depend on the sizes of earlier blocks.
    with inference(recipe.tower, recipe.device, recipe.precision), torch.compiler.set_stance("force_eager"):
        files.write(block.key, _collect(block.shape, recipe.compute(recipe.splits[number], block)))
    return len(block.items)


def _name(task: _Task) -> str:
    return f"the features {task[1].key[:12]}"


def _collect(shape: tuple[int, ...], parts: Iterator[Part]) -> Half:
    """Return the array of a block from its parts.

    Raises:
        DiptychError: a feature is too large for half precision, or NaN.
    """
    features = np.empty(shape, np.float16)
    for rows, values in parts:
        features[rows] = values.half().cpu().numpy()
    if not np.isfinite(features).all():
        raise DiptychError(
            "The features of a frozen tower are beyond half precision; set train.keep_features to never."
        )
    return features
