"""Features of a frozen tower, computed once and kept across runs, in half precision.

A split lies in blocks: the images of one data shard, or their captions. A block's file is named after all that its
numbers depend on: the tower's weights and how it computes, and the content of the images or the token ids. Data that
was added makes new blocks and leaves the old ones alone. A file is an .npy file with its SHA-256 behind it; it appears
under its name when it is whole, so processes may read and write the folder at once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.inputs import Half, Inputs, KeptImages, KeptTexts
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.files import DIGEST_BYTES, atomic_path, digested, is_whole
from diptych.model import towers, upper
from diptych.model.device import Precision
from diptych.model.gathering import gather_rows, rank, wait_for_all, world_size
from diptych.model.towers import ImageTower, TextTower, Tower
from diptych.progress import progress
from diptych.retrieval.embedding import inference

Kept = TypeVar("Kept", KeptImages, KeptTexts)

GIB = 2**30
_IMAGES_AT_ONCE = {"cpu": 16}
_CAPTIONS_AT_ONCE = {"cpu": 128}
_ON_A_GPU = 256
"""Images or captions computed at once; a block's numbers depend on it in their last bits."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """One file's worth of features: of `items` (places in the split), with this key and shape."""

    items: NDArray[np.int64]
    key: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 2 * int(np.prod(self.shape, dtype=np.int64)) + DIGEST_BYTES


class FeatureCache:
    """The folder of kept features.

    Args:
        folder: of all runs; may be deleted at any time.
        limit_gib: how much it may hold. What does not fit is not kept, and what was used longest ago goes first.
        device, precision: to compute with.
    """

    def __init__(self, folder: Path, *, limit_gib: float, device: torch.device, precision: Precision) -> None:
        self.folder = folder
        self.limit = int(limit_gib * GIB)
        self.device = device
        self.precision: Precision = precision
        self._used: dict[Path, int] = {}

    def release(self) -> None:
        """What was handed out so far is not used any more, and may make room."""
        self._release(set(self._used))

    def _release(self, paths: set[Path]) -> None:
        self._used = {path: size for path, size in self._used.items() if path not in paths}

    def images(
        self, tower: ImageTower, splits: Sequence[PreparedSplit], *, mirrored: bool = False, whole: bool = False
    ) -> list[KeptImages] | None:
        """Features of the images of each split, or of their mirror images; None if they are more than may be held.

        Of a tower that was split they end where it was; with `whole` they are those of all of it, made from these,
        which are found or kept as well.

        Raises:
            DiptychError: the disk is full, or the features are beyond half precision.
        """
        used = set(self._used)
        below = self.images(tower, splits, mirrored=mirrored) if whole else None
        if whole and below is None:
            return None
        needed_below = set(self._used) - used if whole else set()
        how, feature_shape = self._how(tower, whole), tower.whole_shape if whole else tower.feature_shape

        def blocks(split: PreparedSplit) -> list[_Block]:
            made = []
            for items in _by_shard(split.shard_of_image):
                shape = (len(items), *feature_shape)
                content = [split.decoding, [split.image_hashes[i] for i in items], *(["mirrored"] if mirrored else [])]
                made.append(_Block(items, _sha256(how, shape, content), shape))
            return made

        def compute(split: PreparedSplit, block: _Block) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
            inputs = _of(split, splits, below) if below else Inputs(split).images
            for some in _parts(np.arange(len(block.items)), _IMAGES_AT_ONCE.get(self.device.type, _ON_A_GPU)):
                images = inputs(block.items[some]).to(self.device)
                if below:
                    yield some, tower.above(images)
                else:
                    yield some, tower.features(images.flip(2) if mirrored else images)

        kept = self._keep("mirrored image" if mirrored else "image", tower, splits, blocks, compute, whole)
        self._release(needed_below)
        if kept is None:
            return None
        return [KeptImages(maps, _block_of(made, len(split))) for split, made, maps in kept]

    def texts(
        self, tower: TextTower, splits: Sequence[PreparedSplit], *, whole: bool = False
    ) -> list[KeptTexts] | None:
        """Features of the captions of each split, as `images`."""
        used = set(self._used)
        below = self.texts(tower, splits) if whole else None
        if whole and below is None:
            return None
        needed_below = set(self._used) - used if whole else set()
        how, feature_shape = self._how(tower, whole), tower.whole_shape if whole else tower.feature_shape

        def blocks(split: PreparedSplit) -> list[_Block]:
            made = []
            for items in _by_shard(split.shard_of_image[split.image_of_caption]):
                shape = (int(split.token_lengths[items].sum()), *feature_shape)
                token_ids, lengths = split.tokens(items)[0].tolist(), split.token_lengths[items].tolist()
                content = [ids[:length] for ids, length in zip(token_ids, lengths, strict=True)]
                made.append(_Block(items, _sha256(how, shape, content), shape))
            return made

        def compute(split: PreparedSplit, block: _Block) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
            inputs = _of(split, splits, below) if below else Inputs(split).texts
            lengths = split.token_lengths[block.items]
            starts = lengths.cumsum() - lengths
            by_length = np.argsort(lengths, kind="stable")
            for some in _parts(by_length, _CAPTIONS_AT_ONCE.get(self.device.type, _ON_A_GPU)):
                texts, mask = (tensor.to(self.device) for tensor in inputs(block.items[some]))
                places = (torch.from_numpy(starts[some])[:, None] + torch.arange(mask.shape[1]))[mask.cpu()]
                yield places.numpy(), (tower.above if below else tower.features)(texts, mask)[mask]

        kept = self._keep("text", tower, splits, blocks, compute, whole)
        self._release(needed_below)
        if kept is None:
            return None
        return [
            KeptTexts(maps, _block_of(made, len(split.captions)), split.token_lengths) for split, made, maps in kept
        ]

    def _keep(
        self,
        name: str,
        tower: Tower,
        splits: Sequence[PreparedSplit],
        blocks_of: Callable[[PreparedSplit], list[_Block]],
        compute: Callable[[PreparedSplit, _Block], Iterator[tuple[NDArray[np.int64], Tensor]]],
        whole: bool,
    ) -> list[tuple[PreparedSplit, list[_Block], list[Half]]] | None:
        plan = [(split, blocks_of(split)) for split in splits]
        needed = {self._path(block): block.bytes for _, blocks in plan for block in blocks}
        started = time.perf_counter()
        _sweep(self.folder)
        if not self._has_room(name, needed):
            return None
        self._used |= needed
        everything = [(split, block) for split, blocks in plan for block in blocks]
        # The processes share the work; what one of them has made, all of them map.
        share = everything[rank() :: world_size()]
        # Most of the time to open a file goes into its digest, for which threads do not wait for each other.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            opened = threads.map(lambda block: _map(self._path(block), block.shape), [block for _, block in share])
            found = {block.key: features for (_, block), features in zip(share, opened, strict=True)}
        missing = [(split, block) for split, block in share if found[block.key] is None]
        items = sum(len(block.items) for _, block in missing)
        with (
            progress(None, f"{name} features", unit="items", total=items, disable=not missing) as bar,
            self._computing(tower),
        ):
            for split, block in missing:
                self._write(block, compute(split, block))
                bar.update(len(block.items))
        wait_for_all()
        kept = []
        for split, blocks in plan:
            maps = []
            for block in blocks:
                features = found.get(block.key)
                maps.append(self._open(split, block, compute, tower) if features is None else features)
            kept.append((split, blocks, maps))
        for path in needed:
            # Another run may have removed the name meanwhile, or own it; what is mapped stays.
            with suppress(OSError):
                os.utime(path)
        self._make_room()
        _log.info(
            "%s features of the frozen %s: %.2f GiB in %s; %d of %d blocks computed, in %.1f s.",
            name.capitalize(),
            "layers" if tower.upper and not whole else "tower",
            sum(needed.values()) / GIB,
            self.folder,
            len(missing),
            len(needed),
            time.perf_counter() - started,
        )
        return kept

    def _how(self, tower: Tower, whole: bool) -> list[str]:
        """What features depend on beside the content: weights, code, precision, and what settles the last bits."""
        versions = [torch.__version__, transformers.__version__]
        computing = [self.device.type, self.precision, torch.get_num_threads(), *versions]
        code = [hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in (towers, upper)]
        return [tower.features_sha256(whole=whole), *code, *map(str, computing)]

    def _path(self, block: _Block) -> Path:
        return self.folder / f"{block.key}.npy"

    def _has_room(self, name: str, needed: dict[Path, int]) -> bool:
        """The same answer in every process, whatever another one has written meanwhile."""
        size = sum((self._used | needed).values())
        missing = sum(size for path, size in needed.items() if not path.exists())
        free = shutil.disk_usage(_existing(self.folder)).free
        fits = torch.tensor([size <= self.limit and missing < free], dtype=torch.uint8, device=self.device)
        if gather_rows(fits).all():
            return True
        _log.warning(
            "The %s features are not kept: %.1f GiB, but train.features_gib allows %.1f and the disk has "
            "%.1f free. They are computed anew in every epoch.",
            name,
            size / GIB,
            self.limit / GIB,
            free / GIB,
        )
        return False

    def _open(
        self,
        split: PreparedSplit,
        block: _Block,
        compute: Callable[[PreparedSplit, _Block], Iterator[tuple[NDArray[np.int64], Tensor]]],
        tower: Tower,
    ) -> Half:
        """The block's file, made anew if another process has removed or damaged it meanwhile."""
        features = _map(self._path(block), block.shape)
        if features is None:
            with self._computing(tower):
                self._write(block, compute(split, block))
            features = _map(self._path(block), block.shape)
        assert features is not None
        return features

    @contextmanager
    def _computing(self, tower: Tower) -> Iterator[None]:
        """Without torch.compile, whose numbers depend on the sizes of the blocks that came before."""
        with inference(tower, self.device, self.precision), torch.compiler.set_stance("force_eager"):
            yield

    def _write(self, block: _Block, parts: Iterator[tuple[NDArray[np.int64], Tensor]]) -> None:
        features = np.empty(block.shape, np.float16)
        for places, values in parts:
            features[places] = values.half().cpu().numpy()
        if not np.isfinite(features).all():
            raise DiptychError(
                "The features of a frozen tower are beyond half precision; set train.keep_features to never."
            )
        try:
            with atomic_path(self._path(block), shared=True) as temporary, digested(temporary) as file:
                np.save(file, features)
        except OSError as error:
            raise DiptychError(
                f"{self.folder} cannot be written: {error.strerror}. Where the disk is full, free space or lower "
                "train.features_gib; train.keep_features: never does without."
            ) from None

    def _make_room(self) -> None:
        """Removes what was used longest ago until the rest is within the limit; never what this run uses."""
        files = []
        for path in self.folder.glob("*.npy"):
            # Another process may be making room as well.
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        surplus = sum(size for _, size, _ in files) - self.limit
        for _, size, path in sorted(files):
            if surplus > 0 and path not in self._used:
                path.unlink(missing_ok=True)
                surplus -= size


def _of(split: PreparedSplit, splits: Sequence[PreparedSplit], kept: Sequence[Kept]) -> Kept:
    """What is `kept` of `split`, one of `splits`."""
    return next(of_one for one, of_one in zip(splits, kept, strict=True) if one is split)


def _map(path: Path, shape: tuple[int, ...]) -> Half | None:
    """The whole and sound file in memory; None if there is none, with a warning if it is damaged."""
    try:
        content = np.memmap(path, np.uint8, mode="r")
        # Only bytes that are known to be right are parsed: numpy fails in many ways on others.
        if is_whole(content.data):
            features: Half = np.load(path, mmap_mode="r", allow_pickle=False)
            if features.dtype == np.float16 and features.shape == shape:
                return features
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # it cannot be read, or is empty
        pass
    _log.warning("%s is damaged and is computed anew.", path)
    return None


def _sweep(folder: Path) -> None:
    """Removes what killed processes left: temporary files are named after their process."""
    for path in folder.glob(".*.npy.*.tmp"):
        try:
            os.kill(int(path.name.split(".")[-2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError, OverflowError):  # it lives, and is another user's; or nobody's
            pass


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


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
