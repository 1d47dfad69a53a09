"""A recipe for a dataset: a preset, and the keys that these data and these towers ask to be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from diptych.advice.facts import Facts, FoundTower, caption_lengths
from diptych.config import Params
from diptych.errors import DiptychError

PRETRAINED = "flickr8k-cpu"
"""Preset for pretrained towers."""
FROM_SCRATCH = "scenes"
"""Preset for towers from scratch."""
VAL_IMAGES = 500
"""Images of val below which a fusion that helps often goes unrecognized (docs/decisions/choosing-weights.md)."""
MAX_HELD_OUT = 0.2
"""Largest share of train that is proposed to be held out."""
NAMES_SIDES = 0.01
"""Share of captions that say left or right above which images are not mirrored."""
STEPS = 8
"""Fewest steps of an epoch; smaller datasets get smaller batches."""


@dataclass(frozen=True)
class Choice:
    """Value of a key of params.yaml, with the reason."""

    key: str
    value: Any
    reason: str

    @property
    def shown(self) -> str:
        """The value as YAML has it in a line."""
        if isinstance(self.value, dict):
            return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in self.value.items()) + "}"
        return _scalar(self.value)


@dataclass(frozen=True)
class Proposal:
    """A preset with changed keys.

    Attributes:
        preset: name of the preset.
        text: content of the preset's file.
        choices: the keys that were decided, whether or not the preset has the same value; each once.
        notes: what the user should know besides.
    """

    preset: str
    text: str
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()

    def with_choices(self, *choices: Choice) -> Proposal:
        """Return the proposal with further choices, which replace earlier ones of the same keys."""
        merged = {choice.key: choice for choice in (*self.choices, *choices)}
        return replace(self, choices=tuple(merged.values()))

    @property
    def params(self) -> Params:
        """The settings of the proposal."""
        return Params.model_validate(_plain(self._changed()))

    def to_yaml(self) -> str:
        """Return the preset's file with the choices, whose reasons stand at its head."""
        lines = [f"# Proposed by `diptych advise`: the preset {self.preset}, with these choices for this dataset.\n"]
        lines += [f"#   {choice.key}: {choice.shown} - {choice.reason}\n" for choice in self.choices]
        out = StringIO()
        _yaml().dump(self._changed(), out)
        return "".join(lines) + out.getvalue()

    def _changed(self) -> Any:
        content = _yaml().load(self.text)
        for choice in self.choices:
            *path, last = choice.key.split(".")
            section = content
            for part in path:
                section = section.setdefault(part, {})
            section[last] = choice.value
        return content


def propose(facts: Facts, towers: Sequence[FoundTower], presets: Mapping[str, str]) -> Proposal:
    """Return the proposal for a dataset, before anything is measured.

    Args:
        facts: facts of the dataset.
        towers: pretrained towers of the project.
        presets: content of the files in presets/ by name.

    Raises:
        DiptychError: the preset is missing, or train is too small for two batches.
    """
    image_towers = [tower for tower in towers if tower.image_size]
    text_towers = [tower for tower in towers if not tower.image_size]
    name = PRETRAINED if image_towers and text_towers else FROM_SCRATCH
    if name not in presets:
        raise DiptychError(f"presets/{name}.yaml is missing, from which advice begins; `git checkout presets` has it.")
    proposal = Proposal(name, presets[name]).with_choices(*_splits(facts))
    if name == PRETRAINED:
        proposal = proposal.with_choices(*_towers(image_towers, text_towers))
    else:
        note = (
            "No pretrained towers are in weights/, so both towers learn from nothing. For photos, run "
            "`diptych weights offline` and ask again: pretrained towers find several times as much."
        )
        proposal = replace(proposal, notes=(note,))
    return _fitted(proposal, facts)


def train_images(facts: Facts, params: Params) -> int:
    """Return the number of images to train on."""
    splits = params.data.splits
    images = facts.images.get(splits.train, 0)
    return images if splits.val else round(images * (1 - splits.held_out))


def _fitted(proposal: Proposal, facts: Facts) -> Proposal:
    """Add the choices that depend on sizes, lengths and words."""
    params = proposal.params
    images = train_images(facts, params)
    if images < 2 * STEPS:
        raise DiptychError(
            f"{images} captioned images are in train; a model needs hundreds at least, and advice {2 * STEPS}. "
            "Import more with `diptych data import`."
        )
    longest = int(np.quantile(caption_lengths(facts, params), 0.999, method="higher"))
    places = params.model.text_tower.config.get("max_position_embeddings", 512)
    choices = [
        Choice("preprocess.max_tokens", max(8, min(longest, places)), "999 of 1,000 captions fit whole"),
        Choice("train.captions_per_image", facts.captions_per_image, "what most images have; captions cost little"),
    ]
    if params.train.batch_size > images // STEPS:
        size = max(2, images // STEPS)
        choices.append(Choice("train.batch_size", size, f"{STEPS} steps an epoch with {images:,} images"))
    if params.train.augmentation and facts.names_sides > NAMES_SIDES:
        reason = f"{facts.names_sides:.1%} of the captions say left or right, and a mirror image makes them wrong"
        choices.append(Choice("train.augmentation.flip", 0.0, reason))
    return proposal.with_choices(*choices)


def _splits(facts: Facts) -> list[Choice]:
    """Choose splits by their usual names; what a dataset lacks is held out of train."""
    names = list(facts.images)
    train = "train" if "train" in facts.images else max(names, key=lambda name: facts.images[name])
    others = [name for name in names if name != train]
    test = next((name for name in ("test", "val", *others) if name in others), None)
    if test is None:
        raise DiptychError(
            f"All images are in split {train!r}, and none is left to report on. Import them again with "
            "`--replace --deal 80/10/10`, which deals them to train, val and test."
        )
    val = next((name for name in ("val", "dev", "validation") if name in others and name != test), None)
    splits: dict[str, Any] = {"train": train, "val": val, "test": test}
    if val is not None:
        return [Choice("data.splits", splits, f"{facts.images[val]:,} images to choose on, as imported")]
    wanted = VAL_IMAGES / facts.images[train]
    splits["held_out"] = round(min(MAX_HELD_OUT, max(0.05, wanted)), 3)
    reason = f"no third split: {splits['held_out']:.1%} of train is held out to choose on"
    return [Choice("data.splits", splits, reason)]


def _towers(image_towers: Sequence[FoundTower], text_towers: Sequence[FoundTower]) -> list[Choice]:
    image, text = image_towers[0], text_towers[0]
    return [
        Choice("model.image_tower.pretrained", image.path, f"of {len(image_towers)} in weights/"),
        Choice("model.text_tower.pretrained", text.path, f"of {len(text_towers)} in weights/"),
        Choice("preprocess.image_size", image.image_size, "what the image tower was made for"),
    ]


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    return yaml


def _plain(content: Any) -> Any:
    """Return the content of the YAML as plain values: pydantic is strict."""
    out = StringIO()
    _yaml().dump(content, out)
    return YAML(typ="safe", pure=True).load(out.getvalue())


def _scalar(value: Any) -> str:
    return "null" if value is None else str(value)
