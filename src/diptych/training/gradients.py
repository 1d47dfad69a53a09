"""Gradients of batches larger than memory, and of several processes.

Gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. Towers
run over chunks without keeping what a backward pass needs; the losses of all the features give the gradients of these;
then each chunk runs once more, with the same random numbers, and passes its features' gradients on to the weights. The
result is the gradient of the whole batch at the memory of a chunk, for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.gathering import row_counts, world_size
from diptych.model.towers import Groups
from diptych.training.batches import Batch
from diptych.training.random_state import random_state, replayed
from diptych.training.step import Encoded, Losses, TrainingStep

BUCKET_BYTES = 2**26
"""Gradients travel in parcels of this size: large enough that the network's rate counts and not its delay."""


Call = Callable[[], tuple[Tensor, ...]]
"""A tower over one chunk."""


def backward_in_chunks(
    step: TrainingStep,
    batch: Batch,
    chunk_size: int,
    *,
    autocast: Callable[[], AbstractContextManager[None]],
    backward: Callable[[Tensor], None],
) -> Losses:
    """The losses of `batch`, and their gradients added to those of the weights.

    Args:
        chunk_size: images encoded at once at the most, and as many captions as these have on average.
        autocast: the precision in which towers and losses compute.
        backward: of the total loss.
    """
    device = batch.images.device
    lanes = _lanes(step, batch, chunk_size)
    states = [[] for _ in lanes]  # type: list[list[Tensor]]
    features = []
    with torch.no_grad(), _statistics_kept(step.model):
        for lane, before in zip(lanes, states, strict=True):
            chunks = []
            for call in lane:
                before.append(random_state(device))
                with autocast():
                    chunks.append(call())
            features.append([torch.cat(values).detach().requires_grad_() for values in zip(*chunks, strict=True)])
    with autocast():
        losses = step.losses(_encoded(step, batch, features), batch)
    backward(losses.total)
    if not step.encoders_learn:
        return losses
    for lane, before, leaves in zip(lanes, states, features, strict=True):
        first = 0
        for call, state in zip(lane, before, strict=True):
            with replayed(state, device), autocast():
                again = call()
            rows = slice(first, first + len(again[0]))
            known = [
                (value, leaf.grad[rows]) for value, leaf in zip(again, leaves, strict=True) if leaf.grad is not None
            ]
            values, gradients = zip(*known, strict=True)
            torch.autograd.backward(values, gradients)
            first = rows.stop
    return losses


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by its mean over the processes; a weight without one counts as zero."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    parcels = [torch.cat([gradient.flatten() for gradient in some]) for some in _buckets(gradients)]
    for work in [dist.all_reduce(parcel, async_op=True) for parcel in parcels]:
        work.wait()
    for some, parcel in zip(_buckets(gradients), parcels, strict=True):
        values = (parcel / world_size()).split([gradient.numel() for gradient in some])
        for gradient, value in zip(some, values, strict=True):
            gradient.copy_(value.view_as(gradient))


def _lanes(step: TrainingStep, batch: Batch, size: int) -> list[list[Call]]:
    """Images, captions, and the other views of either, in the order of `Encoded`; each as calls a chunk long."""
    model = step.model
    lanes: list[list[Call]] = [
        [partial(model.encode_images, chunk) for chunk in _chunks(batch.images, size)],
        _text_calls(model, batch, size),
    ]
    if batch.views is not None:
        lanes.append([partial(_pooled, partial(model.encode_images, chunk)) for chunk in _chunks(batch.views, size)])
    if step.views_texts:
        lanes.append([partial(_pooled, call) for call in _text_calls(model, batch, size)])
    return lanes


def _chunks(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """As many on every process, whose batch norms wait for each other in each, and none empty.

    So a process with an image more than another may have to take one more than `size` at once.
    """
    counts = row_counts(len(images), images.device)
    return images.tensor_split(min(-(-max(counts) // size), min(counts)))


def _pooled(call: Call) -> tuple[Tensor, ...]:
    return call()[1:]


def _encoded(step: TrainingStep, batch: Batch, features: list[list[Tensor]]) -> Encoded:
    (grid, image), (tokens, text), *views = features
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

    def make(first: int) -> Call:
        groups = _cut(batch.groups, first, min(first + rows, len(batch.texts)))
        part = (slice(first, first + rows), slice(groups[-1][1]))

        def call() -> tuple[Tensor, ...]:
            texts = model.encode_texts(batch.texts[part], batch.mask[part], groups)
            return pad(texts.tokens, (0, 0, 0, width - groups[-1][1])), texts.pooled

        return call

    return [make(first) for first in range(0, len(batch.texts), rows)]


def _cut(groups: Groups, first: int, end: int) -> Groups:
    """The groups of the rows from `first` to `end`, counted from there."""
    return tuple(
        (min(last, end) - first, length)
        for begin, (last, length) in zip((0, *(last for last, _ in groups)), groups, strict=False)
        if begin < end and last > first
    )


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms take up no statistics here, so that a forward pass that is made twice counts once."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracks


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """In order, each of one dtype and of about `BUCKET_BYTES`."""
    buckets: list[list[Tensor]] = []
    size = BUCKET_BYTES
    for gradient in gradients:
        if size >= BUCKET_BYTES or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(gradient)
        size += gradient.nbytes
    return buckets
