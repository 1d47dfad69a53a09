"""Gradients of batches larger than memory.

Gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. The
result is the gradient of the whole batch at the memory of a chunk, for one more forward pass:

1. The towers run over the chunks without keeping what a backward pass needs.
2. The losses of all the features give the gradients of the features.
3. Each chunk runs once more with the same random numbers, and passes its features' gradients on to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.towers import Groups
from diptych.training.batches import Batch
from diptych.training.random_state import random_state, replayed
from diptych.training.step import Encoded, Losses, TrainingStep

Autocast = Callable[[], AbstractContextManager[None]]
Call = Callable[[], tuple[Tensor, ...]]
"""A tower's run over one chunk."""
LastPass = Callable[[], AbstractContextManager[None]]
"""Context of a backward pass that is the last one of the step for the weights that it reaches."""


def backward_in_chunks(
    step: TrainingStep,
    batch: Batch,
    chunk_size: int,
    *,
    autocast: Autocast,
    backward: Callable[[Tensor], None],
    last_pass: LastPass = nullcontext,
) -> Losses:
    """Return the losses of `batch`, and add their gradients to those of the weights.

    Args:
        step: the model under its objectives.
        batch: this process's share of a step.
        chunk_size: images encoded at once at most, and as many captions as these have on average.
        autocast: the precision in which towers and losses compute.
        backward: the backward pass of the total loss.
        last_pass: makes the context of each backward pass that completes gradients.
    """
    device = batch.images.device
    lanes = [_Lane(tower, calls, autocast, device) for tower, calls in _tower_calls(step, batch, chunk_size)]
    with torch.no_grad(), _statistics_kept(step.model):
        for lane in lanes:
            lane.encode()
    with autocast():
        losses = step.losses(_encoded(step, batch, lanes), batch)
    with last_pass():
        backward(losses.total)
    if step.encoders_learn:
        last = {lane.tower: lane for lane in lanes}
        for lane in lanes:
            lane.backward(last_pass if lane is last[lane.tower] else nullcontext)
    return losses


class _Lane:
    """One tower's runs over the chunks of one view of a batch."""

    def __init__(self, tower: nn.Module, calls: list[Call], autocast: Autocast, device: torch.device) -> None:
        self.tower = tower
        self.calls = calls
        self.autocast = autocast
        self.device = device
        self.states: list[Tensor] = []
        """Random state before each chunk."""
        self.features: list[Tensor] = []
        """Outputs over all chunks: leaves, on which the losses leave their gradients."""

    def encode(self) -> None:
        chunks = []
        for call in self.calls:
            self.states.append(random_state(self.device))
            with self.autocast():
                chunks.append(call())
        self.features = [torch.cat(values).detach().requires_grad_() for values in zip(*chunks, strict=True)]

    def backward(self, last_pass: LastPass) -> None:
        """Give the weights their gradients; `last_pass` is the context of the last chunk."""
        first = 0
        for call, state in zip(self.calls, self.states, strict=True):
            with replayed(state, self.device), self.autocast():
                outputs = call()
            rows = slice(first, first + len(outputs[0]))
            known = [
                (output, leaf.grad[rows])
                for output, leaf in zip(outputs, self.features, strict=True)
                if leaf.grad is not None
            ]
            values, gradients = zip(*known, strict=True)
            with last_pass() if call is self.calls[-1] else nullcontext():
                torch.autograd.backward(values, gradients)
            first = rows.stop


def _tower_calls(step: TrainingStep, batch: Batch, size: int) -> list[tuple[nn.Module, list[Call]]]:
    """Return tower and calls for images, captions, and the other views of either, in the order of `Encoded`."""
    model = step.model
    images, texts = model.image_tower, model.text_tower
    calls: list[tuple[nn.Module, list[Call]]] = [
        (images, [partial(model.encode_images, chunk) for chunk in _chunks(batch, batch.images, size)]),
        (texts, _text_calls(model, batch, size)),
    ]
    if batch.views is not None:
        views = _chunks(batch, batch.views, size)
        calls.append((images, [partial(_pooled, partial(model.encode_images, chunk)) for chunk in views]))
    if step.views_texts:
        calls.append((texts, [partial(_pooled, call) for call in _text_calls(model, batch, size)]))
    return calls


def _chunks(batch: Batch, images: Tensor, size: int) -> tuple[Tensor, ...]:
    """Cut `images` into as many chunks as on every other process, none of them empty.

    The batch norms of the processes wait for each other in each chunk. So a process with an image more than another may
    encode one more than `size` at once.
    """
    counts = batch.shares.images
    return images.tensor_split(min(-(-max(counts) // size), min(counts)))


def _pooled(call: Call) -> tuple[Tensor, ...]:
    return call()[1:]


def _encoded(step: TrainingStep, batch: Batch, lanes: list[_Lane]) -> Encoded:
    (grid, image), (tokens, text), *views = (lane.features for lane in lanes)
    vectors = [vector for (vector,) in views]
    return Encoded(
        ImageFeatures(grid, image),
        TextFeatures(tokens, batch.mask, text),
        vectors.pop(0) if batch.views is not None else None,
        vectors.pop(0) if step.views_texts else None,
    )


def _text_calls(model: DualEncoder, batch: Batch, size: int) -> list[Call]:
    rows = -(-size * len(batch.texts) // len(batch.images))
    width = batch.mask.shape[1]

    def encode(first: int) -> tuple[Tensor, ...]:
        groups = _cut(batch.groups, first, min(first + rows, len(batch.texts)))
        longest = groups[-1][1]
        part = (slice(first, first + rows), slice(longest))
        texts = model.encode_texts(batch.texts[part], batch.mask[part], groups)
        return pad(texts.tokens, (0, 0, 0, width - longest)), texts.pooled

    return [partial(encode, first) for first in range(0, len(batch.texts), rows)]


def _cut(groups: Groups, first: int, end: int) -> Groups:
    """Return the groups of the rows from `first` to `end`, with rows counted from `first`."""
    return tuple(
        (min(last, end) - first, length)
        for begin, (last, length) in zip((0, *(last for last, _ in groups)), groups, strict=False)
        if begin < end and last > first
    )


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Make batch norms keep their statistics in the block, so that a forward pass that is made twice counts once."""
    kinds = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
    norms = [module for module in model.modules() if isinstance(module, kinds)]
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracks
