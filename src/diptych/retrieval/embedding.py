"""Encoding a split with the towers: embeddings to rank by, and the tokens that the fusion re-ranks by."""

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
"""Number of images, and of captions, in a query bank: a few MB, and more change little."""


@dataclass(frozen=True)
class TokenStates:
    """The tokens of N images and M captions that the fusion reads, float32 on the CPU.

    Attributes:
        grid: (N, G, d), grid tokens of the image tower.
        tokens: (T, d), token states of the text tower, all captions one after the other, without padding.
        offsets: int64 (M + 1,); the tokens of caption j are offsets[j]:offsets[j + 1].
    """

    grid: Tensor
    tokens: Tensor
    offsets: Tensor

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each caption, int64 (M,)."""
        return self.offsets.diff()

    def padded_tokens(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """Return token states (B, T, d) of `captions` (B,) int64, zero beyond their ends, and the mask (B, T) bool."""
        lengths = self.lengths[captions]
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths[:, None]
        positions = (self.offsets[captions][:, None] + steps).clamp_(max=len(self.tokens) - 1)
        return self.tokens[positions].masked_fill_(~mask[:, :, None], 0.0), mask


@dataclass(frozen=True)
class Embedded(TokenStates):
    """N images and M captions as the towers encode them, float32 on the CPU.

    Attributes:
        image: (N, d), of length one.
        text: (M, d), of length one.
        image_of_caption: numpy int64 (M,), index of each caption's image.
        image_bias: (N,), query-bank bias that is subtracted from an image's cosines when it is ranked; None: nothing.
        text_bias: (M,), likewise of each caption.
    """

    image: Tensor
    text: Tensor
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

    def biased(self, query_bank: QueryBank, logit_scale: float) -> Embedded:
        """Return the same gallery with the biases of query-bank normalization."""
        return replace(
            self,
            image_bias=query_bank.image_bias(self.image, logit_scale),
            text_bias=query_bank.text_bias(self.text, logit_scale),
        )

    def part(self, images: slice, captions: np.ndarray, image_of_caption: np.ndarray) -> Embedded:
        """Return the gallery of some images and their captions.

        Args:
            images: the images.
            captions: (m,), indices of the captions.
            image_of_caption: (m,), index of each caption's image within `images`.
        """
        chosen = torch.from_numpy(captions)
        offsets = torch.cat([self.offsets.new_zeros(1), self.lengths[chosen].cumsum(0)])
        tokens = torch.cat([self.tokens[self.offsets[j] : self.offsets[j + 1]] for j in captions])
        return Embedded(
            grid=self.grid[images],
            tokens=tokens,
            offsets=offsets,
            image=self.image[images],
            text=self.text[chosen],
            image_of_caption=image_of_caption,
            image_bias=None if self.image_bias is None else self.image_bias[images],
            text_bias=None if self.text_bias is None else self.text_bias[chosen],
        )


class TextCollector:
    """Collects text features that are computed in the order of their lengths, so that little padding is computed.

    Attributes:
        order: int64 (M,), the texts in the order in which their features are to be added.
    """

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        """Prepare for M texts with `lengths` (M,) tokens each."""
        self.order: NDArray[np.int64] = np.argsort(lengths, kind="stable")
        self._lengths = torch.from_numpy(lengths)
        self._pooled: list[Tensor] = []
        self._states: list[Tensor] = []

    def add(self, features: TextFeatures) -> None:
        """Add the features of the next texts of `order`."""
        self._pooled.append(features.pooled.float().cpu())
        self._states.append(features.tokens[features.mask].float().cpu())

    def collect(self, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings (M, d), token states (T, d) and offsets (M + 1,), all in the order of the texts."""
        offsets = torch.cat([self._lengths.new_zeros(1), self._lengths.cumsum(0)])
        if not self._pooled:
            return torch.zeros(0, dim), torch.zeros(0, dim), offsets
        pooled, states = torch.cat(self._pooled), torch.cat(self._states)
        tokens = torch.empty_like(states)
        tokens[_positions(offsets[:-1][self.order], self._lengths[self.order])] = states
        text = torch.empty_like(pooled).index_copy_(0, torch.from_numpy(self.order), pooled)
        return text, tokens, offsets


def embed_split(
    model: DualEncoder,
    split: PreparedSplit,
    *,
    inputs: Inputs | None = None,
    batch_size: int,
    device: torch.device,
    precision: Precision = "no",
    description: str = "embed",
) -> Embedded:
    """Encode a split with both towers, without biases.

    The model is on `device`; it works in evaluation mode and is left in the mode that it was in.

    Args:
        model: the dual encoder.
        split: N images and M captions.
        inputs: the split's inputs with features of frozen towers, if there are any.
        batch_size: images or captions encoded at once.
        device: device of the model.
        precision: precision of matrix products and convolutions.
        description: label of the progress bar.
    """
    inputs = inputs or Inputs(split)
    bar = progress(None, description, unit="item", total=len(split) + len(split.captions))
    images, texts = [], TextCollector(split.token_lengths)
    with bar, inference(model, device, precision):
        for features in _images(model, inputs, np.arange(len(split)), batch_size, device, bar):
            images.append((features.pooled.float().cpu(), features.grid.float().cpu()))
        for text_features in _texts(model, inputs, texts.order, batch_size, device, bar):
            texts.add(text_features)
    image, grid = (torch.cat(side) for side in zip(*images, strict=True))
    text, tokens, offsets = texts.collect(image.shape[1])
    return Embedded(grid, tokens, offsets, image, text, split.image_of_caption)


class Means(NamedTuple):
    """Embeddings and mean tokens of the N images and M captions of a split, float32."""

    image: Tensor
    """(N, d), of length one."""
    grid: Tensor
    """(N, d), means of the grid tokens."""
    text: Tensor
    """(M, d), of length one."""
    tokens: Tensor
    """(M, d), means of the token states."""


def embed_means(model: DualEncoder, inputs: Inputs, *, batch_size: int, device: torch.device) -> Means:
    """Encode a split like `embed_split`, and keep embeddings and mean tokens alone, on `device`."""
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
    # Inference tensors cannot take part in training; their copies can.
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
    description: str = "query bank",
) -> QueryBank:
    """Return a query bank of `QUERIES` images and as many captions of a split, drawn with `seed`, float16 (n, d).

    A smaller split is used as a whole. The model works as in `embed_split`.
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
    """Set evaluation mode without gradients, in `precision` by autocast; restore the model's mode at the end."""
    training = model.training
    # Setting the mode of hundreds of modules twice would be a sixth of the time to encode one text.
    was_evaluated = not any(module.training for module in model.modules())
    if not was_evaluated:
        model.eval()
    dtype = AUTOCAST[precision]
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=precision != "no"):
            yield
    finally:
        if not was_evaluated:
            model.train(training)


def _images(
    model: DualEncoder, inputs: Inputs, images: NDArray[np.int64], batch_size: int, device: torch.device, bar: Any
) -> Iterator[ImageFeatures]:
    """Yield the features of `images` batch by batch."""
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield model.encode_images(inputs.images(batch).to(device))
        bar.update(len(batch))


def _texts(
    model: DualEncoder, inputs: Inputs, captions: NDArray[np.int64], batch_size: int, device: torch.device, bar: Any
) -> Iterator[TextFeatures]:
    """Yield the features of `captions` batch by batch."""
    for start in range(0, len(captions), batch_size):
        batch = captions[start : start + batch_size]
        texts, mask = (tensor.to(device) for tensor in inputs.texts(batch))
        yield model.encode_texts(texts, mask)
        bar.update(len(batch))


def _positions(starts: Tensor, lengths: Tensor) -> Tensor:
    """Return all positions in the ranges of `lengths` (M,) that begin at `starts` (M,), one range after the other."""
    first = lengths.cumsum(0) - lengths
    return (starts - first).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
