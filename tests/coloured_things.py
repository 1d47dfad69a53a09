"""A world of coloured things: pooled features of images and captions, and an encoder of sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diptych.retrieval.pooled import Pooled

THINGS = ("dog", "cat", "horse", "car", "boat", "tree", "house", "ball", "child", "bird")
COLOURS = ("red", "green", "blue", "white")


def world(images: int, seed: int, noise: float = 0.3) -> Pooled:
    """Images of a coloured thing or two, each with one to three captions that tell of them, and features of both."""
    random = np.random.default_rng(seed)
    shown = [(random.choice(THINGS, 2, replace=False), random.choice(COLOURS, 2)) for _ in range(images)]
    own = np.repeat(np.arange(images), random.integers(1, 4, images))
    captions = [f"a {shown[i][1][0]} {shown[i][0][0]} and the {shown[i][1][1]} {shown[i][0][1]}" for i in own]
    return Pooled(
        _features([f"{a} {b} {c} {d}" for (a, b), (c, d) in shown], random, noise, side=0),
        _features(captions, random, noise, side=1),
        own,
        captions,
    )


def _features(texts: Sequence[str], random: np.random.Generator, noise: float, side: int) -> Tensor:
    """A random direction for each word, another on either side."""
    words = (*THINGS, *COLOURS, "a", "and", "the")
    basis = np.random.default_rng([7, side]).normal(size=(len(words), 24))
    rows = [sum(basis[words.index(word)] for word in text.split()) + 2.0 for text in texts]
    return torch.tensor(np.array(rows) + noise * random.normal(size=(len(texts), 24)), dtype=torch.float32)


def encode(sentences: Sequence[str]) -> Tensor:
    return _features(sentences, np.random.default_rng(0), 0.0, side=1)
