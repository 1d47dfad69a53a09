"""Which images and captions meet in which step: drawn from seed, epoch and step alone, so that a run can resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.prepared import PreparedSplit


@dataclass(frozen=True)
class Batch:
    """B distinct images with C captions of theirs."""

    image_ids: list[int]
    """As in the dataset, for messages (B)."""
    pixels: Tensor
    """(B, S, S, 3) uint8."""
    token_ids: Tensor
    """(C, T) int64."""
    mask: Tensor
    """(C, T) bool."""
    image_of_caption: Tensor
    """(C,) int64, indices into the batch's images."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        tensors = (self.pixels, self.token_ids, self.mask, self.image_of_caption)
        return Batch(self.image_ids, *(tensor.to(device, non_blocking=True) for tensor in tensors))


class BatchPlan:
    """The batches of every epoch: each image once an epoch, with captions of its own drawn anew.

    Args:
        split: what to train on.
        batch_size: images a step over all processes; a remainder too small to give every process two is left out.
        captions_per_image: how many captions an image brings at the most.
        seed: of everything drawn here.
        rank, world_size: which share of each step is this process's.
    """

    def __init__(
        self,
        split: PreparedSplit,
        *,
        batch_size: int,
        captions_per_image: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.captions_per_image = captions_per_image
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        remainder = len(split) % batch_size
        self.steps = len(split) // batch_size + (remainder >= 2 * world_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This process's batches of `epoch` (0, 1, …) from `first_step` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.split))
        for step in range(first_step, self.steps):
            images = order[step * self.batch_size : (step + 1) * self.batch_size]
            captions = self._draw_captions(images, np.random.default_rng([self.seed, epoch, step]))
            mine = slice(self.rank, None, self.world_size)
            yield self._load(images[mine], captions[mine])

    def _draw_captions(self, images: NDArray[np.int64], generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """The whole step's, whatever this process's share, so that the draw is the same for any number of processes."""
        starts, ends = self.split.caption_ranges[images], self.split.caption_ranges[images + 1]
        return [
            start + np.sort(generator.permutation(end - start)[: self.captions_per_image])
            for start, end in zip(starts, ends, strict=True)
        ]

    def _load(self, images: NDArray[np.int64], captions: list[NDArray[np.int64]]) -> Batch:
        token_ids, mask = self.split.tokens(np.concatenate(captions))
        return Batch(
            image_ids=self.split.image_ids[images].tolist(),
            pixels=torch.from_numpy(self.split.pixels(images)),
            token_ids=torch.from_numpy(token_ids),
            mask=torch.from_numpy(mask),
            image_of_caption=torch.from_numpy(np.repeat(np.arange(len(images)), [len(own) for own in captions])),
        )
