"""Random numbers that depend on the run's seed and on what they are for, never on what was drawn before.

So a training can resume anywhere, and several processes draw what one would.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is drawn; the numbers are part of every seed and never change."""

    ORDER = 0
    """Of the images in an epoch; key: epoch."""
    CAPTIONS = 1
    """Which ones an image brings; key: epoch, step."""
    PAIRS = 2
    """For the matching loss; key: epoch, step."""
    VIEW = 3
    """Of an image; key: epoch, view, image id."""


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """The generator of the run `seed` for this purpose and place."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *key)))
