"""Heads that map the features of frozen towers into one space, learned by the contrastive loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from diptych.model.objectives import contrastive_loss
from diptych.retrieval.pooled import ROWS, Baseline, Pooled

DIM = 512
"""Width of the space of images and captions."""
HIDDEN = 1024
"""Width of the MLP's hidden layer."""
DROPOUT = 0.2
"""Dropout of the features and of the MLP's hidden layer."""
EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 12, 1e-3, 0.1
BATCH = 256
"""Number of images of a batch, which holds all of their captions."""
INITIAL_SCALE = 14.3
"""Factor of the cosines before training, 1 / 0.07."""

Layers = Callable[[int], list[nn.Module]]
"""Function from the width of the features to the layers of a head."""


def linear_layers(channels: int) -> list[nn.Module]:
    """Return a linear map of features (B, `channels`) to (B, `DIM`)."""
    return [nn.Linear(channels, DIM)]


def mlp_layers(channels: int) -> list[nn.Module]:
    """Return an MLP of features (B, `channels`) to (B, `DIM`) with one hidden layer."""
    return [nn.Linear(channels, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, DIM)]


def learned_heads(train: Pooled, layers: Layers, smoothing: float = 0.0) -> Iterator[Baseline]:
    """Train a head of these `layers` for either side, and yield both as they are after each epoch.

    `smoothing` is that of `contrastive_loss`.
    """
    owner = torch.from_numpy(train.image_of_caption)
    index_in_batch = torch.full((len(train.image),), -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = _Heads(train, layers)
        optimizer = torch.optim.AdamW(heads.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        steps = EPOCHS * -(-len(train.image) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(EPOCHS):
            for images in torch.randperm(len(train.image)).split(BATCH):
                index_in_batch.fill_(-1)[images] = torch.arange(len(images))
                captions = torch.nonzero(index_in_batch[owner] >= 0).flatten()
                image, text = heads.train()(train.image[images], train.text[captions])
                image_of_caption, scale = index_in_batch[owner[captions]], heads.log_scale.exp()
                contrastive_loss(image, text, image_of_caption, scale, smoothing=smoothing).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            yield copy.deepcopy(heads).eval().vectors


class _Heads(nn.Module):
    """A head for each side, and the scale of the cosines between their outputs."""

    def __init__(self, train: Pooled, layers: Layers) -> None:
        super().__init__()
        self._means = [side.mean(dim=0) for side in (train.image, train.text)]
        # The usual initial weights expect features of unit variance.
        self._deviations = [
            (side - mean).square().mean().sqrt().clamp(min=1e-12)
            for side, mean in zip((train.image, train.text), self._means, strict=True)
        ]
        self.sides = nn.ModuleList(
            nn.Sequential(nn.Dropout(DROPOUT), *layers(side.shape[1])) for side in (train.image, train.text)
        )
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_SCALE).log())

    def forward(self, image: Tensor, text: Tensor) -> list[Tensor]:
        """Map features (B, C) and (M, D) to vectors (B, `DIM`) and (M, `DIM`) float32, of unit length."""
        sides = zip(self.sides, (image, text), self._means, self._deviations, strict=True)
        return [normalize(head((features - mean) / deviation), dim=1) for head, features, mean, deviation in sides]

    @torch.no_grad()
    def vectors(self, split: Pooled) -> tuple[Tensor, Tensor]:
        """Return the vectors of a split, as a `Baseline` does."""
        rows = max(len(split.image), len(split.text))
        blocks = [
            self(split.image[start : start + ROWS], split.text[start : start + ROWS]) for start in range(0, rows, ROWS)
        ]
        image, text = (torch.cat(side) for side in zip(*blocks, strict=True))
        return image, text
