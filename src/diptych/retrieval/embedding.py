"""A split as the towers see it: embeddings to rank by, and the tokens that the fusion re-ranks by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.model.device import Precision
from diptych.model.dual_encoder import DualEncoder
from diptych.progress import progress

AUTOCAST = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """

    image: Tensor
    text: Tensor
    grid: Tensor
    tokens: Tensor
    offsets: Tensor
    image_of_caption: np.ndarray

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
    for start in range(0, len(inputs.split), batch_size):
        indices = np.arange(start, min(start + batch_size, len(inputs.split)))
        features = model.encode_images(inputs.images(indices).to(device))
        pooled.append(features.pooled.float().cpu())
        grids.append(features.grid.float().cpu())
        bar.update(len(indices))
    return torch.cat(pooled), torch.cat(grids)


def _embed_texts(
    model: DualEncoder, inputs: Inputs, batch_size: int, device: torch.device, bar: Any
) -> tuple[Tensor, Tensor, Tensor]:
    split = inputs.split
    lengths = torch.from_numpy(split.token_lengths)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    order = np.argsort(split.token_lengths, kind="stable")
    pooled, states = [], []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        texts, mask = (tensor.to(device) for tensor in inputs.texts(indices))
        features = model.encode_texts(texts, mask)
        pooled.append(features.pooled.float().cpu())
        states.append(features.tokens[mask].float().cpu())
        bar.update(len(indices))
    text, by_length = torch.cat(pooled), torch.cat(states)
    tokens = torch.empty_like(by_length)
    tokens[_positions(offsets[:-1][order], lengths[order])] = by_length
    return torch.empty_like(text).index_copy_(0, torch.from_numpy(order), text), tokens, offsets


def _positions(starts: Tensor, lengths: Tensor) -> Tensor:
    """All positions of the ranges of `lengths` (M,) from `starts` (M,), one range after the other."""
    first = lengths.cumsum(0) - lengths
    return (starts - first).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
