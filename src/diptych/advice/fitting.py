"""The time that a run may take decides how many epochs a recipe has."""

from __future__ import annotations

from collections.abc import Iterator

from diptych.advice.recipe import Choice, Proposal, frozen_epochs, frozen_towers
from diptych.advice.timing import Speed
from diptych.errors import DiptychError

TRAINING_SHARE = 0.7
"""Share of a run's time that the training of the towers takes; baselines, evaluation and the rest take what is left."""


def fit(proposal: Proposal, speed: Speed, images: int, minutes: float) -> Proposal:
    """Return the proposal with as many epochs as a run of `minutes` has time for, and the preset's at most.

    Frozen epochs cost least, so those in which towers learn are given up first. Where there is no time for one of them
    after the frozen ones, towers stay frozen.

    Args:
        proposal: what `propose` returns.
        speed: speed of its training.
        images: number of images to train on.
        minutes: time that a run may take.

    Raises:
        DiptychError: not even one epoch fits.
    """
    needed = 0.0
    for shorter in _shorter(proposal, f"a run of {minutes:g} minutes has no time for more"):
        needed = speed.minutes(shorter.params, images)
        if needed <= TRAINING_SHARE * minutes:
            return shorter
    raise DiptychError(
        f"The shortest training takes {needed:.0f} minutes on this machine, and a run of {minutes:g} minutes has "
        f"{TRAINING_SHARE * minutes:.0f} for it. Allow more with --minutes, or run where there is a GPU."
    )


def _shorter(proposal: Proposal, reason: str) -> Iterator[Proposal]:
    """Yield the proposal, and then shorter and shorter ones."""
    yield proposal
    params = proposal.params
    changes = frozen_towers(params)
    frozen = frozen_epochs(params) if changes else 0
    for epochs in range(params.train.epochs - 1, 0, -1):
        shorter = proposal.with_choices(Choice("train.epochs", epochs, reason))
        if epochs > frozen:
            yield shorter
        else:
            yield shorter.with_choices(*(Choice(key, value, reason) for key, value in changes.items()))
