"""The prepared data as users of the peers would read it: a map-style dataset of (image, caption) pairs in a DataLoader.

Pixels are decoded and captions are tokenized in advance, so that neither is a disadvantage of a system.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.config import load_params
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.project.workspace import Workspace
from peers.task import Task
from peers.towers import IMAGE_TOWER

Pair = tuple[Tensor, Tensor]
"""Pixels (3, S, S) float32, normalized, and token ids (T,) int64."""


class Batch(NamedTuple):
    """A batch of P pairs."""

    pixels: Tensor
    """(P, 3, S, S) float32."""
    token_ids: Tensor
    """(P, T) int64."""
    mask: Tensor
    """(P, T) int64, 1 where there is a token."""


class Normalization:
    """Conversion of uint8 pixels to the normalized input of the image tower."""

    def __init__(self, folder: Path = IMAGE_TOWER) -> None:
        content = json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = (torch.tensor(content[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Convert `pixels` (…, S, S, 3) uint8 to (…, 3, S, S) float32."""
        return torch.from_numpy(pixels).movedim(-1, -3).float().mul_(self._scale).add_(self._shift).contiguous()


class CaptionPairs(Dataset[Pair]):
    """Captions of a split with their images: all, or the number `pairs`, drawn with `seed`."""

    def __init__(self, split: PreparedSplit, pairs: int, seed: int) -> None:
        self.split = split
        self.normalize = Normalization()
        every = np.random.default_rng(seed).permutation(len(split.captions))
        self.captions = every[: pairs or None]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Pair:
        caption = self.captions[index : index + 1]
        image = self.split.image_of_caption[caption]
        token_ids, _ = self.split.tokens(caption)
        return self.normalize(self.split.pixels(image)[0]), torch.from_numpy(token_ids[0])


def read_splits(params: str) -> tuple[PreparedSplit, PreparedSplit]:
    """Return the train and the val split of the workspace."""
    prepared = Prepared(Workspace().prepared, load_params(Path(params)).data.splits)
    return prepared.split("train"), prepared.split("val")


def collate(pairs: list[Pair], length: int | None) -> Batch:
    """Cut or pad captions to `length` with zeros, the padding token of a BERT; None: to the longest."""
    longest = length or max(len(ids) for _, ids in pairs)
    token_ids = torch.zeros(len(pairs), longest, dtype=torch.int64)
    for row, (_, ids) in zip(token_ids, pairs, strict=True):
        row[: len(ids)] = ids[:longest]
    return Batch(torch.stack([pixels for pixels, _ in pairs]), token_ids, (token_ids != 0).long())


def make_loader(split: PreparedSplit, task: Task, length: int | None) -> DataLoader[Pair]:
    """Return a loader of shuffled pairs, without the last incomplete batch."""
    return DataLoader(
        CaptionPairs(split, task.pairs, task.seed),
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=task.workers,
        persistent_workers=task.workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=partial(collate, length=length),
        generator=torch.Generator().manual_seed(task.seed),
    )
