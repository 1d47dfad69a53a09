"""A recipe for a dataset: a preset, and the keys that these data and these towers ask to be changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from diptych.advice.facts import Facts, TowerFolder, caption_lengths
from diptych.config import Params
from diptych.errors import DiptychError, some
from diptych.project.params import sealed

PRETRAINED = "flickr8k-cpu"
"""Preset for pretrained towers."""
FROM_SCRATCH = "scenes"
"""Preset for towers from scratch."""
KEPT = ("seed", "threads", "device", "validate", "register", "gate", "retrain")
"""Sections that say nothing about the recipe: those of the project's own params.yaml are kept."""
VAL_IMAGES = 500
"""Images of val below which a fusion that helps often goes unrecognized (docs/decisions/choosing-weights.md)."""
MAX_HELD_OUT = 0.2
"""Largest share of train that is proposed to be held out."""
SIDE_SHARE = 0.01
"""Share of captions that say left or right above which images are not mirrored."""
STEPS = 8
"""Fewest steps of an epoch; smaller datasets get smaller batches."""
_VAL_NAMES = ("val", "valid", "validation", "dev", "eval")


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
        content: content of the preset's file.
        choices: the keys that were decided, whether or not the preset has the same value; each once.
        notes: what the user should know besides.
        caption_tokens: the number of tokens of the median caption, as it is cut.
    """

    preset: str
    content: Mapping[str, Any]
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()
    caption_tokens: int = 0

    def with_choices(self, *choices: Choice) -> Proposal:
        """Return the proposal with further choices, which replace earlier ones of the same keys."""
        merged = {choice.key: choice for choice in (*self.choices, *choices)}
        return replace(self, choices=tuple(merged.values()))

    @property
    def reason(self) -> str:
        """The reason for the preset."""
        is_pretrained = self.preset == PRETRAINED
        return "which trains pretrained towers further" if is_pretrained else "which trains both towers from scratch"

    @property
    def params(self) -> Params:
        """The settings of the proposal."""
        return Params.model_validate(self._changed())

    def to_yaml(self) -> str:
        """Return a sealed params.yaml; the reasons of the choices stand at its head."""
        lines = [f"# The preset {self.preset}, {self.reason}, with these choices for this dataset:\n"]
        lines += [f"#   {choice.key}: {choice.shown} - {choice.reason}\n" for choice in self.choices]
        out = StringIO()
        yaml: Any = YAML(typ="safe", pure=True)
        yaml.width, yaml.sort_base_mapping_type_on_output = 120, False
        yaml.dump(self._changed(), out)
        return sealed("".join(lines) + out.getvalue())

    def _changed(self) -> dict[str, Any]:
        content = _copied(self.content)
        for choice in self.choices:
            *path, last = choice.key.split(".")
            section = content
            for part in path:
                section = section.setdefault(part, {})
            section[last] = choice.value
        return content


def propose(facts: Facts, towers: Sequence[TowerFolder], presets: Mapping[str, Params], present: Params) -> Proposal:
    """Return the proposal for a dataset, before anything is measured.

    Args:
        facts: facts of the dataset.
        towers: pretrained towers of the project, in the order of `find_towers`; the first of each kind is taken.
        presets: the presets `PRETRAINED` and `FROM_SCRATCH`.
        present: the project's settings, of which the proposal keeps the sections `KEPT`.

    Raises:
        DiptychError: train is too small, or there is no split to report on.
    """
    image_towers = [tower for tower in towers if tower.image_size]
    text_towers = [tower for tower in towers if not tower.image_size]
    name = PRETRAINED if image_towers and text_towers else FROM_SCRATCH
    content = presets[name].model_dump(by_alias=True, exclude_unset=True)
    kept = present.model_dump(by_alias=True, exclude_unset=True)
    content |= {section: kept[section] for section in KEPT if section in kept}
    choices, notes = _splits(facts)
    proposal = Proposal(name, content, tuple(choices), tuple(notes))
    if name == FROM_SCRATCH:
        missing = " and ".join(
            kind for kind, towers in (("image tower", image_towers), ("text tower", text_towers)) if not towers
        )
        note = (
            f"weights/ holds no pretrained {missing}, so both towers begin with random weights. For photos, run "
            "`diptych weights offline` and ask again."
        )
        return _sized(replace(proposal, notes=(*notes, note)), facts, places=_places(proposal.params))
    image, text = image_towers[0], text_towers[0]
    proposal = proposal.with_choices(
        Choice("model.image_tower.pretrained", image.path, _one_of(image_towers, "image tower", "size of images")),
        Choice("model.text_tower.pretrained", text.path, _one_of(text_towers, "text tower", "name")),
        Choice("preprocess.image_size", image.image_size, "the size that the image tower was made for"),
    )
    return _sized(proposal, facts, places=text.positions)


def train_images(facts: Facts, params: Params) -> int:
    """Return the number of images to train on."""
    splits = params.data.splits
    images = facts.images.get(splits.train, 0)
    return images if splits.val else round(images * (1 - splits.held_out))


def _sized(proposal: Proposal, facts: Facts, places: int) -> Proposal:
    """Add the choices that depend on sizes, lengths and words; the text tower has `places` positions."""
    params = proposal.params
    images = train_images(facts, params)
    if images < 2 * STEPS:
        raise DiptychError(
            f"{images} captioned images are left to train on; a model needs hundreds at least, and advice {2 * STEPS}. "
            "Import more with `diptych data import`."
        )
    lengths = caption_lengths(facts, params)
    longest = max(8, int(np.quantile(lengths, 0.999, method="higher")))
    reason = "999 of 1,000 captions have no more tokens"
    if longest > places:
        reason = f"the positions of the text tower; {np.mean(lengths > places):.1%} of the captions are cut"
    max_tokens = min(longest, places)
    choices = [Choice("preprocess.max_tokens", max_tokens, reason)]
    if params.train.captions_per_image > facts.captions_per_image:
        captions = facts.captions_per_image
        choices.append(Choice("train.captions_per_image", captions, "the number that images have most often"))
    if params.train.batch_size > images // STEPS:
        reason = f"{STEPS} steps an epoch with {images:,} images"
        choices.append(Choice("train.batch_size", max(2, images // STEPS), reason))
    augmentation = params.train.augmentation
    if augmentation and augmentation.flip and facts.side_share > SIDE_SHARE:
        # Mirror images of which none is used would be computed all the same.
        reason = f"{facts.side_share:.1%} of the captions say left or right, and are wrong of a mirror image"
        mirrored_alone = augmentation.only_mirrors
        key = "train.augmentation" if mirrored_alone else "train.augmentation.flip"
        choices.append(Choice(key, None if mirrored_alone else 0.0, reason))
    typical = min(max_tokens, int(np.quantile(lengths, 0.5, method="higher")))
    return replace(proposal, caption_tokens=typical).with_choices(*choices)


def _splits(facts: Facts) -> tuple[list[Choice], list[str]]:
    """Choose splits by their usual names, and return notes on what is not used; val is held out of train if need be."""
    names = list(facts.images)
    train = "train" if "train" in facts.images else max(names, key=lambda name: facts.images[name])
    others = [name for name in names if name != train]
    if not others:
        raise DiptychError(
            f"All images are in split {train!r}, and none is left to report on. Remove data/ and import them "
            "again with `--replace --deal 80/10/10`, which deals them to train, val and test."
        )
    val = next((name for name in _VAL_NAMES if name in others), None) if len(others) > 1 else None
    rest = [name for name in others if name != val]
    test = "test" if "test" in rest else max(rest, key=lambda name: facts.images[name])
    unused = [name for name in rest if name != test]
    notes = [f"Images of the split(s) {', '.join(unused)} are not used."] if unused else []
    splits: dict[str, Any] = {"train": train, "val": val, "test": test}
    reason = f"{facts.images[test]:,} image(s) to report on"
    if val is not None:
        if facts.images[val] < VAL_IMAGES:
            notes.append(f"{facts.images[val]} image(s) to choose on are few: what is best on them is often luck.")
        return [Choice("data.splits", splits, f"{reason}, {facts.images[val]:,} to choose on, as imported")], notes
    wanted = VAL_IMAGES / facts.images[train]
    splits["held_out"] = round(min(MAX_HELD_OUT, max(0.05, wanted)), 3)
    reason += f"; no split for choices is named, so {splits['held_out']:.1%} of train is held out for them"
    return [Choice("data.splits", splits, reason)], notes


def _one_of(towers: Sequence[TowerFolder], kind: str, order: str) -> str:
    """Return the reason for the first of `towers`, which are all of a kind and in an order."""
    if len(towers) == 1:
        return f"the {kind} in weights/"
    return f"the first by {order} of {len(towers)} {kind}s in weights/, before {some([one.path for one in towers[1:]])}"


def _places(params: Params) -> int:
    """Return the positions of a text tower from scratch."""
    return int(params.model.text_tower.config.get("max_position_embeddings", 512))


def _copied(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in content.items()}


def _scalar(value: Any) -> str:
    return "null" if value is None else str(value)


def frozen_epochs(params: Params) -> int:
    """Return the number of epochs before both towers learn."""
    return max(params.train.image_tower.frozen_epochs, params.train.text_tower.frozen_epochs)


def frozen_towers(params: Params) -> dict[str, Any]:
    """Return the changes by key with which heads on frozen towers learn alone; none where towers learn at once."""
    towers = {name: getattr(params.train, name) for name in ("image_tower", "text_tower")}
    if not all(tower.frozen_epochs and tower.lr_multiplier for tower in towers.values()):
        return {}
    frozen = {"lr_multiplier": 0.0, "frozen_epochs": 0, "top_layers": None}
    return {f"train.{name}.{key}": value for name in towers for key, value in frozen.items()}
