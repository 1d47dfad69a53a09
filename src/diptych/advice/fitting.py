"""The time that a recipe may take: it decides on the image tower, and how long its layers learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diptych.advice.facts import Facts, FoundTower, caption_lengths
from diptych.advice.recipe import Choice, Proposal, train_images
from diptych.advice.timing import Speed
from diptych.config import Params
from diptych.errors import DiptychError

TRAINING_SHARE = 0.7
"""Share of a run's time that the training of the towers takes; the fusion, baselines and reports take the rest."""

SpeedOf = Callable[[Params, int], Speed]
"""Function from settings and the number of tokens of a caption to the speed of a training by them."""


def fit(
    proposal: Proposal, facts: Facts, towers: Sequence[FoundTower], minutes: float, speed_of: SpeedOf
) -> tuple[Proposal, float]:
    """Return the proposal with the tower and epochs for which a run has time, and the minutes of its training.

    The preset's epochs are the most: longer trainings were not measured to be better. The largest image tower is taken
    with which all of them fit, or else the smallest one, with as many epochs as fit.

    Args:
        proposal: what `propose` returns.
        facts: facts of the dataset.
        towers: pretrained towers of the project.
        minutes: time that a run may take.
        speed_of: measures the speed of a training.

    Raises:
        DiptychError: not even one epoch fits.
    """
    tokens = int(np.median(caption_lengths(facts, proposal.params)))
    images = train_images(facts, proposal.params)
    fitting: tuple[Proposal, float] | None = None
    for candidate in _with_towers(proposal, towers):
        speed = speed_of(candidate.params, tokens)
        needed = speed.minutes(candidate.params, images)
        if needed > TRAINING_SHARE * minutes:
            return fitting or _shortened(candidate, speed, images, minutes)
        fitting = candidate, needed
    assert fitting is not None
    return fitting


def _with_towers(proposal: Proposal, towers: Sequence[FoundTower]) -> list[Proposal]:
    """Return the proposal with each image tower, by the size of its images; from scratch there is one alone."""
    if proposal.params.model.image_tower.pretrained is None:
        return [proposal]
    found = [tower for tower in towers if tower.image_size]
    return [
        proposal.with_choices(
            Choice("model.image_tower.pretrained", tower.path, f"the largest of {len(found)} that the time allows"),
            Choice("preprocess.image_size", tower.image_size, "what the image tower was made for"),
        )
        for tower in found
    ]


def _shortened(proposal: Proposal, speed: Speed, images: int, minutes: float) -> tuple[Proposal, float]:
    """Return the proposal with the most epochs that fit."""
    epochs = proposal.params.train.epochs
    for fewer in range(epochs - 1, 0, -1):
        shorter = proposal.with_choices(*_epochs(proposal.params, fewer, minutes))
        needed = speed.minutes(shorter.params, images)
        if needed <= TRAINING_SHARE * minutes:
            return shorter, needed
    raise DiptychError(
        f"One epoch takes {needed:.0f} minutes on this machine, more than a run of {minutes:g} minutes has for it. "
        "Allow more with --minutes, take fewer images, or run where there is a GPU."
    )


def _epochs(params: Params, epochs: int, minutes: float) -> list[Choice]:
    """Choose fewer epochs; frozen ones, which cost least, are given up last, but one is left for the release."""
    reason = f"what a run of {minutes:g} minutes has time for"
    choices = [Choice("train.epochs", epochs, reason)]
    for name in ("image_tower", "text_tower"):
        frozen = getattr(params.train, name).frozen_epochs
        if frozen >= epochs:
            choices.append(Choice(f"train.{name}.frozen_epochs", epochs - 1, reason))
    return choices
