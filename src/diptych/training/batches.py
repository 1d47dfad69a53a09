"""Which images and captions meet in which step: drawn from seed, epoch and step alone, so that a run can resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.towers import Groups
from diptych.training.draws import Purpose, generator

CALL_TOKENS = 128
"""What one more call of the text tower is taken to cost, in tokens computed instead: an estimate."""
GPU_CALL_TOKENS = 4096
"""The same on a GPU, for which the host launches hundreds of kernels a call."""


@dataclass(frozen=True)
class Batch:
    """B distinct images with C captions of theirs, the captions in the order of their lengths."""

    epoch: int
    step: int
    """Both from 0 on."""
    image_ids: list[int]
    """As in the dataset, for messages (B)."""
    images: Tensor
    """Pixels (B, S, S, 3) uint8, or features of a frozen tower (B, N, C)."""
    texts: Tensor
    """Token ids (C, T) int64, or features of a frozen tower (C, T, L, C')."""
    mask: Tensor
    """(C, T) bool."""
    groups: Groups
    """Of captions to compute together."""
    image_of_caption: Tensor
    """(C,) int64, indices into the batch's images."""
    views: Tensor | None = None
    """Other views of the images, (B, S, S, 3) uint8, where the objectives ask for them."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU copies while both go on."""
        return self._moved(torch.Tensor.pin_memory)

    def first_images(self, count: int) -> Batch:
        """The batch of its first `count` images alone."""
        theirs = self.image_of_caption < count
        mask = self.mask[theirs]
        return replace(
            self,
            image_ids=self.image_ids[:count],
            images=self.images[:count],
            texts=self.texts[theirs],
            mask=mask,
            groups=groups_of_like_length(mask.sum(dim=1).cpu().numpy()),
            image_of_caption=self.image_of_caption[theirs],
            views=None if self.views is None else self.views[:count],
        )

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=move(self.images),
            texts=move(self.texts),
            mask=move(self.mask),
            image_of_caption=move(self.image_of_caption),
        )


class BatchPlan:
    """The batches of every epoch: each image once an epoch, with captions of its own drawn anew.

    Args:
        split: what to train on.
        batch_size: images a step over all processes; a remainder too small to give every process two is left out.
        captions_per_image: how many captions an image brings at the most.
        seed: of everything drawn here.
        rank, world_size: which share of each step is this process's: of its images in a row, as even as can be.
        call_tokens: by which captions are grouped, `CALL_TOKENS` or `GPU_CALL_TOKENS`.

    Raises:
        DiptychError: the split is too small for a batch, or a batch for the processes.
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
        call_tokens: int = CALL_TOKENS,
    ) -> None:
        self.split = split
        self.batch_size = batch_size
        self.captions_per_image = captions_per_image
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.call_tokens = call_tokens
        _check_sizes(len(split), batch_size, world_size)
        remainder = len(split) % batch_size
        self.whole_steps = len(split) // batch_size
        """The steps of an epoch that have `batch_size` images; one with the remainder may follow."""
        self.steps = self.whole_steps + (remainder >= 2 * world_size)

    def epoch(self, epoch: int, first_step: int = 0, inputs: Inputs | None = None) -> Iterator[Batch]:
        """This process's batches of an epoch from `first_step` on; the same whatever came before."""
        order = generator(self.seed, Purpose.ORDER, epoch).permutation(len(self.split))
        for step in range(first_step, self.steps):
            images = order[step * self.batch_size : (step + 1) * self.batch_size]
            captions = self._draw_captions(images, generator(self.seed, Purpose.CAPTIONS, epoch, step))
            mine = np.array_split(np.arange(len(images)), self.world_size)[self.rank]
            yield self._load(epoch, step, images[mine], [captions[i] for i in mine], inputs or Inputs(self.split))

    def _draw_captions(self, images: NDArray[np.int64], random: np.random.Generator) -> list[NDArray[np.int64]]:
        """The whole step's, whatever this process's share, so that the draw is the same for any number of processes."""
        starts, ends = self.split.caption_ranges[images], self.split.caption_ranges[images + 1]
        return [
            start + np.sort(random.permutation(end - start)[: self.captions_per_image])
            for start, end in zip(starts, ends, strict=True)
        ]

    def _load(
        self, epoch: int, step: int, images: NDArray[np.int64], captions: list[NDArray[np.int64]], inputs: Inputs
    ) -> Batch:
        owner = np.repeat(np.arange(len(images)), [len(own) for own in captions])
        flat = np.concatenate(captions)
        lengths = self.split.token_lengths[flat]
        order = np.argsort(lengths, kind="stable")
        texts, mask = inputs.texts(flat[order])
        return Batch(
            epoch=epoch,
            step=step,
            image_ids=self.split.image_ids[images].tolist(),
            images=inputs.images(images),
            texts=texts,
            mask=mask,
            groups=groups_of_like_length(lengths[order], self.call_tokens),
            image_of_caption=torch.from_numpy(owner[order]),
        )


def _check_sizes(images: int, batch_size: int, processes: int) -> None:
    if images < 2 * processes:
        raise DiptychError(
            f"the train split has {images} image(s), too few for {processes} process(es) of two images each; "
            "import more images, or name another split in data.splits.train."
        )
    if batch_size > images:
        raise DiptychError(
            f"train.batch_size is {batch_size}, but the train split has only {images} images; lower it, or import more."
        )
    if batch_size < 2 * processes:
        raise DiptychError(
            f"train.batch_size is {batch_size}, too few for {processes} processes of two images each; raise it."
        )


def groups_of_like_length(lengths: NDArray[np.int64], call_tokens: int = CALL_TOKENS) -> Groups:
    """Cuts captions of ascending `lengths` (C,) into the groups that cost least, in tokens with padding, and calls."""
    ends = [*np.flatnonzero(np.diff(lengths)) + 1, len(lengths)]
    best: list[tuple[int, int]] = [(0, 0)]
    """For the first i ends: the least cost, and the index before which their last group begins."""
    for i, end in enumerate(ends, start=1):
        starts = [0, *ends[: i - 1]]
        costs = [best[j][0] + call_tokens + int(end - start) * int(lengths[end - 1]) for j, start in enumerate(starts)]
        best.append(min((cost, j) for j, cost in enumerate(costs)))
    groups: list[tuple[int, int]] = []
    i = len(ends)
    while i:
        groups.insert(0, (int(ends[i - 1]), int(lengths[ends[i - 1] - 1])))
        i = best[i][1]
    return tuple(groups)


def prefetched(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, each read by a thread while the one before is computed; for a GPU from pinned memory."""
    stop = object()

    def load() -> Batch | object:
        batch = next(batches, stop)
        return batch.pinned() if device.type == "cuda" and isinstance(batch, Batch) else batch

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = pool.submit(load)
        while isinstance(batch := coming.result(), Batch):
            coming = pool.submit(load)
            yield batch
