"""A dataset of photos and two pretrained towers, as advice knows them."""

from __future__ import annotations

from pathlib import Path

from diptych.advice.facts import Facts, FoundTower

PRESETS = {path.stem: path.read_text() for path in (Path(__file__).parents[1] / "presets").glob("*.yaml")}
FACTS = Facts(
    images={"train": 4000, "val": 600, "test": 500},
    captions=["a dog runs over the grass"] * 1000,
    captions_per_image=5,
    names_sides=0.0,
)
TOWERS = [FoundTower("./weights/vision", 240, 8), FoundTower("./weights/text", None, 8)]
