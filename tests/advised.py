"""A dataset of photos and two pretrained towers, as advice knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.advice.facts import Facts, TowerFolder
from diptych.advice.recipe import FROM_SCRATCH, PRETRAINED, Proposal, propose
from diptych.config import Params, load_params

FOLDER = Path(__file__).parents[1] / "presets"
PRESETS = {name: load_params(FOLDER / f"{name}.yaml") for name in (PRETRAINED, FROM_SCRATCH)}
FACTS = Facts(
    images={"train": 4000, "val": 600, "test": 500},
    captions=["a dog runs over the grass"] * 1000,
    captions_per_image=5,
    side_share=0.0,
)
TOWERS = [TowerFolder("./weights/vision", image_size=240), TowerFolder("./weights/text")]


def word_lengths(facts: Facts, _: Params) -> NDArray[np.int64]:
    """Stands for the tokenizer of a tower that is not there."""
    return np.array([2 + len(caption.split()) for caption in facts.captions])


def proposed(facts: Facts = FACTS, towers: list[TowerFolder] = TOWERS, present: Params | None = None) -> Proposal:
    """The proposal for a dataset."""
    return propose(facts, towers, PRESETS, present or Params())
