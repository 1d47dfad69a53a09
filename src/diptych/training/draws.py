"""Random numbers that depend on the run's seed and on their purpose, never on what was drawn before.

So a training can resume anywhere, and several processes draw what one would.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purposes of draws; their numbers are part of every seed and never change."""

    ORDER = 0
    """Order of the images in an epoch; key: epoch."""
    CAPTIONS = 1
    """Captions that an image brings; key: epoch, step."""
    PAIRS = 2
    """Positive pairs and hard negatives of the losses that need pairs; key: epoch, step."""
    VIEW = 3
    """View of an image; key: epoch, view, image id."""


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return the generator of the run `seed` for this purpose and key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *key)))
