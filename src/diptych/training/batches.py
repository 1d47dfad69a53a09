"""Batches of images and captions, drawn from seed, epoch and step alone, so that a run can resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.gathering import Shares, exchange_shares
from diptych.model.towers import Groups
from diptych.training.draws import Purpose, generator

CALL_TOKENS = 128
"""Estimated cost of one more call of the text tower, in tokens that could be computed instead."""
GPU_CALL_TOKENS = 4096
"""The same cost on a GPU, where the host launches hundreds of kernels in each call."""
STEPS_AHEAD = 4
"""Number of steps whose pixels are requested at once from a store."""


@dataclass(frozen=True)
class Batch:
    """A batch of B distinct images with C of their captions, which are in the order of their lengths."""

    epoch: int
    step: int
    """Epoch and step count from 0."""
    image_ids: list[int]
    """Ids of the B images in the dataset, for messages."""
    images: Tensor
    """Pixels (B, S, S, 3) uint8, or features of a frozen tower (B, N, C)."""
    texts: Tensor
    """Token ids (C, T) int64, or features of a frozen tower (C, T, L, C')."""
    mask: Tensor
    """(C, T) bool."""
    groups: Groups
    """Groups of captions that are computed together."""
    image_of_caption: Tensor
    """Index (C,) int64 of each caption's image in the batch."""
    views: Tensor | None = None
    """Other views of the images (B, S, S, 3) uint8, where the objectives need them."""

    @cached_property
    def shares(self) -> Shares:
        """Sizes of all processes' shares of the step; the processes exchange them where this is first read."""
        return exchange_shares(len(self.images), len(self.mask), self.mask.shape[1], self.mask.device)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies while the host goes on."""
        return self._moved(torch.Tensor.pin_memory)

    def first_images(self, count: int) -> Batch:
        """Return a batch of the first `count` images and their captions."""
        of_first = self.image_of_caption < count
        mask = self.mask[of_first]
        return replace(
            self,
            image_ids=self.image_ids[:count],
            images=self.images[:count],
            texts=self.texts[of_first],
            mask=mask,
            groups=groups_of_like_length(mask.sum(dim=1).cpu().numpy()),
            image_of_caption=self.image_of_caption[of_first],
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
    """Batches of every epoch: each image comes once an epoch, with some of its captions drawn anew.

    Args:
        split: the training images and captions.
        batch_size: the number of images in a step over all processes. A remainder with fewer than two images for each
            process is left out.
        captions_per_image: the number of captions of an image at most.
        seed: seed of all draws.
        rank: index of this process; each process takes an equal share of a step's images, or one image more.
        world_size: the number of processes.
        call_tokens: cost of a call when captions are grouped, `CALL_TOKENS` or `GPU_CALL_TOKENS`.

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
        """Number of steps in an epoch that have `batch_size` images; one with the remainder may follow."""
        self.steps = self.whole_steps + (remainder >= 2 * world_size)

    def epoch(self, epoch: int, first_step: int = 0, inputs: Inputs | None = None) -> Iterator[Batch]:
        """Yield this process's batches of an epoch from `first_step` on, whatever came before."""
        order = generator(self.seed, Purpose.ORDER, epoch).permutation(len(self.split))
        load = partial(self._load_step, epoch, order, inputs or Inputs(self.split))
        steps = range(first_step, self.steps)
        yield from _ahead(load, steps) if self.split.is_stored_elsewhere else map(load, steps)

    def _load_step(self, epoch: int, order: NDArray[np.int64], inputs: Inputs, step: int) -> Batch:
        images = order[step * self.batch_size : (step + 1) * self.batch_size]
        captions = self._draw_captions(images, generator(self.seed, Purpose.CAPTIONS, epoch, step))
        local = np.array_split(np.arange(len(images)), self.world_size)[self.rank]
        return self._load(epoch, step, images[local], [captions[i] for i in local], inputs)

    def _draw_captions(self, images: NDArray[np.int64], random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Draw the captions of the whole step, so that they are the same for any number of processes."""
        starts, ends = self.split.caption_ranges[images], self.split.caption_ranges[images + 1]
        return [
            start + np.sort(random.permutation(end - start)[: self.captions_per_image])
            for start, end in zip(starts, ends, strict=True)
        ]

    def _load(
        self, epoch: int, step: int, images: NDArray[np.int64], captions: list[NDArray[np.int64]], inputs: Inputs
    ) -> Batch:
        owner = np.repeat(np.arange(len(images)), [len(of_image) for of_image in captions])
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
    """Cut captions of ascending `lengths` (C,) into the groups that cost least in padded tokens and calls."""
    ends = [*np.flatnonzero(np.diff(lengths)) + 1, len(lengths)]
    best: list[tuple[int, int]] = [(0, 0)]
    """Least cost of the captions before the i-th end, and the index of the end where their last group begins."""
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


def _ahead(load: Callable[[int], Batch], steps: Iterable[int]) -> Iterator[Batch]:
    """Yield `load(step)` for each step, in order; several are loaded at once, since they wait for a network."""
    waiting = iter(steps)
    with ThreadPoolExecutor(STEPS_AHEAD, thread_name_prefix="steps") as pool:
        coming = deque(pool.submit(load, step) for step in islice(waiting, STEPS_AHEAD))
        while coming:
            batch = coming.popleft().result()
            coming.extend(pool.submit(load, step) for step in islice(waiting, 1))
            yield batch


def prefetched(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield `batches`, each read by a thread while the one before is computed; for a GPU in pinned memory."""
    stop = object()

    def load() -> Batch | object:
        batch = next(batches, stop)
        return batch.pinned() if device.type == "cuda" and isinstance(batch, Batch) else batch

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        coming = pool.submit(load)
        while isinstance(batch := coming.result(), Batch):
            coming = pool.submit(load)
            yield batch
