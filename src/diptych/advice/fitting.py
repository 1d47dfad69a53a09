"""The time that a run may take decides how many epochs a recipe has."""

from __future__ import annotations

from diptych.advice.recipe import Choice, Proposal
from diptych.advice.timing import Speed
from diptych.errors import DiptychError

TRAINING_SHARE = 0.7
"""Share of a run's time that the training of the towers takes; baselines, evaluation and the rest take what is left."""


def fit(proposal: Proposal, speed: Speed, images: int, minutes: float) -> Proposal:
    """Return the proposal with as many epochs as a run of `minutes` has time for, and the preset's at most.

    Frozen epochs cost least, so those in which towers learn are given up first, but for one.

    Args:
        proposal: what `propose` returns.
        speed: speed of its training.
        images: number of images to train on.
        minutes: time that a run may take.

    Raises:
        DiptychError: not even one epoch fits.
    """
    params, reason = proposal.params, f"a run of {minutes:g} minutes has no time for more"
    shorter, needed = proposal, speed.minutes(params, images)
    for epochs in range(params.train.epochs - 1, 0, -1):
        if needed <= TRAINING_SHARE * minutes:
            break
        towers = {name: getattr(params.train, name).frozen_epochs for name in ("image_tower", "text_tower")}
        shorter = proposal.with_choices(
            Choice("train.epochs", epochs, reason),
            *(
                Choice(f"train.{name}.frozen_epochs", epochs - 1, reason)
                for name, frozen in towers.items()
                if frozen >= epochs
            ),
        )
        needed = speed.minutes(shorter.params, images)
    if needed > TRAINING_SHARE * minutes:
        raise DiptychError(
            f"The shortest training takes {needed:.0f} minutes on this machine, and a run of {minutes:g} minutes has "
            f"{TRAINING_SHARE * minutes:.0f} for it. Allow more with --minutes, or run where there is a GPU."
        )
    return shorter
