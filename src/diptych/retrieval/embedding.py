"""A split as the towers see it: embeddings to rank by, and the tokens that the fusion re-ranks by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.model.device import Precision
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.pooling import masked_mean
from diptych.model.querybank import QueryBank
from diptych.progress import progress

AUTOCAST = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUERIES = 10_000
"""Of each kind in a querybank: a few MB, and more change little (docs/training.md)."""


@dataclass(frozen=True)
class Embedded:
    """N images and M captions, all float32 on the CPU.

    Attributes:
        image: (N, d), of length one.
        text: (M, d), of length one.
        grid: (N, G, d), the image tower's grid tokens.
        tokens: (T, d), the text tower's token states of all captions one after the other, without padding.
        offsets: int64 (M + 1,); the tokens of caption j are offsets[j]:offsets[j + 1].
        image_of_caption: numpy int64 (M,), index of each caption's image.
        image_bias: (N,), what is taken off an image's cosines when it is ranked; None: nothing.
        text_bias: (M,), off a caption's.
    """

    image: Tensor
    text: Tensor
    grid: Tensor
    tokens: Tensor
    offsets: Tensor
    image_of_caption: np.ndarray
    image_bias: Tensor | None = None
    text_bias: Tensor | None = None

    @property
    def ranking(self) -> tuple[Tensor, Tensor]:
        """Images (N, e) and captions (M, e) to rank by inner product, both ways: cosine − image's bias − caption's.

        The bias of the query is the same for all its items.
        """
        if self.image_bias is None or self.text_bias is None:
            return self.image, self.text
        image = torch.cat([self.image, -self.image_bias[:, None], torch.ones(len(self.image), 1)], dim=1)
        text = torch.cat([self.text, torch.ones(len(self.text), 1), -self.text_bias[:, None]], dim=1)
        return image, text

    def normalized(self, querybank: QueryBank, logit_scale: float) -> Embedded:
        """The same, ranked by what each item scores beyond its score on the bank's queries."""
        return replace(
            self,
            image_bias=querybank.image_bias(self.image, logit_scale),
            text_bias=querybank.text_bias(self.text, logit_scale),
        )

    @property
    def lengths(self) -> Tensor:
        """Tokens of each caption, int64 (M,)."""
        return self.offsets.diff()

    def padded_tokens(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Token states (B, T, d) of `captions` (B,) int64, zero beyond their ends, and mask (B, T), True within."""
        lengths = self.lengths[captions]
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        positions = (self.offsets[captions][:, None] + steps).clamp_(max=len(self.tokens) - 1)
        return self.tokens[positions].masked_fill_(~mask[:, :, None], 0.0), mask

    def part(self, images: slice, captions: np.ndarray, image_of_caption: np.ndarray) -> Embedded:
        """The gallery of some images and their `captions` (m,), whose images are `image_of_caption` (m,) within it."""
        chosen = torch.from_numpy(captions)
        offsets = torch.cat([self.offsets.new_zeros(1), self.lengths[chosen].cumsum(0)])
        tokens = torch.cat([self.tokens[self.offsets[j] : self.offsets[j + 1]] for j in captions])
        return replace(
            self,
            image=self.image[images],
            text=self.text[chosen],
            grid=self.grid[images],
            tokens=tokens,
            offsets=offsets,
            image_of_caption=image_of_caption,
            image_bias=None if self.image_bias is None else self.image_bias[images],
            text_bias=None if self.text_bias is None else self.text_bias[chosen],
        )


def embed_split(
    model: DualEncoder,
    split: PreparedSplit,
    *,
    inputs: Inputs | None = None,
    batch_size: int,
    device: torch.device,
    precision: Precision = "no",
    description: str = "Embedding",
) -> Embedded:
    """Runs both towers over a split, captions in the order of their lengths so that little padding is computed.

    `inputs`, if given, are the split's with features of frozen towers. The model is on `device`; it works in evaluation
    mode and is left in the mode in which it came.
    """
    inputs = inputs or Inputs(split)
    bar = progress(None, description, unit="item", total=len(split) + len(split.captions))
    with bar, inference(model, device, precision):
        image, grid = _embed_images(model, inputs, batch_size, device, bar)
        text, tokens, offsets = _embed_texts(model, inputs, batch_size, device, bar)
    return Embedded(image, text, grid, tokens, offsets, split.image_of_caption)


class Means(NamedTuple):
    """What the towers say of a split on average, float32: its N images and M captions."""

    image: Tensor
    """(N, d), of length one, as `Embedded`."""
    grid: Tensor
    """(N, d), the mean of the grid tokens."""
    text: Tensor
    """(M, d), of length one."""
    tokens: Tensor
    """(M, d), the mean of the token states."""


def embed_means(model: DualEncoder, inputs: Inputs, *, batch_size: int, device: torch.device) -> Means:
    """Runs both towers over a split, as `embed_split`, and keeps no more than means, on `device`."""
    split = inputs.split
    order = np.argsort(split.token_lengths, kind="stable")
    bar = progress(None, "embed means", unit="item", total=len(split) + len(order))
    with bar, inference(model, device, "no"):
        images = [
            torch.stack([made.pooled, made.grid.mean(dim=1)])
            for made in _images(model, inputs, np.arange(len(split)), batch_size, device, bar)
        ]
        texts = [
            torch.stack([made.pooled, masked_mean(made.tokens, made.mask)])
            for made in _texts(model, inputs, order, batch_size, device, bar)
        ]
    # Copies, which unlike what inference made can be learned from.
    image, text = (torch.cat(both, dim=1).clone() for both in (images, texts))
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
    return Means(*image, *text[:, back])


def embed_querybank(
    model: DualEncoder,
    inputs: Inputs,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    precision: Precision = "no",
    description: str = "Embedding",
) -> QueryBank:
    """`QUERIES` images and as many captions of a split, drawn with `seed`; all, where there are fewer. float16 (n, d).

    The model works as in `embed_split`.
    """
    draw = np.random.default_rng(seed)
    images, captions = (
        np.sort(draw.permutation(items)[:QUERIES]) for items in (len(inputs.split), len(inputs.split.captions))
    )
    with (
        progress(None, description, unit="item", total=len(images) + len(captions)) as bar,
        inference(model, device, precision),
    ):
        image = [made.pooled for made in _images(model, inputs, images, batch_size, device, bar)]
        order = captions[np.argsort(inputs.split.token_lengths[captions], kind="stable")]
        text = [made.pooled for made in _texts(model, inputs, order, batch_size, device, bar)]
    return QueryBank(torch.cat(image).to("cpu", torch.float16), torch.cat(text).to("cpu", torch.float16))


@contextmanager
def inference(model: torch.nn.Module, device: torch.device, precision: Precision) -> Iterator[None]:
    """Evaluation mode without gradients, in `precision` by autocast; restores the model's mode at the end."""
    training = model.training
    model.eval()
    dtype = AUTOCAST[precision]
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=precision != "no"):
            yield
    finally:
        model.train(training)


def _embed_images(
    model: DualEncoder, inputs: Inputs, batch_size: int, device: torch.device, bar: Any
) -> tuple[Tensor, Tensor]:
    pooled, grids = [], []
    for features in _images(model, inputs, np.arange(len(inputs.split)), batch_size, device, bar):
        pooled.append(features.pooled.float().cpu())
        grids.append(features.grid.float().cpu())
    return torch.cat(pooled), torch.cat(grids)


def _embed_texts(
    model: DualEncoder, inputs: Inputs, batch_size: int, device: torch.device, bar: Any
) -> tuple[Tensor, Tensor, Tensor]:
    split = inputs.split
    lengths = torch.from_numpy(split.token_lengths)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    order = np.argsort(split.token_lengths, kind="stable")
    pooled, states = [], []
    for features in _texts(model, inputs, order, batch_size, device, bar):
        pooled.append(features.pooled.float().cpu())
        states.append(features.tokens[features.mask].float().cpu())
    text, by_length = torch.cat(pooled), torch.cat(states)
    tokens = torch.empty_like(by_length)
    tokens[_positions(offsets[:-1][order], lengths[order])] = by_length
    return torch.empty_like(text).index_copy_(0, torch.from_numpy(order), text), tokens, offsets


def _images(
    model: DualEncoder, inputs: Inputs, images: NDArray[np.int64], batch_size: int, device: torch.device, bar: Any
) -> Iterator[ImageFeatures]:
    """Of `images`, batch by batch."""
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield model.encode_images(inputs.images(batch).to(device))
        bar.update(len(batch))


def _texts(
    model: DualEncoder, inputs: Inputs, captions: NDArray[np.int64], batch_size: int, device: torch.device, bar: Any
) -> Iterator[TextFeatures]:
    """Of `captions`, batch by batch."""
    for start in range(0, len(captions), batch_size):
        batch = captions[start : start + batch_size]
        texts, mask = (tensor.to(device) for tensor in inputs.texts(batch))
        yield model.encode_texts(texts, mask)
        bar.update(len(batch))


def _positions(starts: Tensor, lengths: Tensor) -> Tensor:
    """All positions of the ranges of `lengths` (M,) from `starts` (M,), one range after the other."""
    first = lengths.cumsum(0) - lengths
    return (starts - first).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
