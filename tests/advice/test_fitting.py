"""The time that a run may take: as many epochs as fit, and those in which towers learn are given up first."""

from __future__ import annotations

import pytest
from advised import proposed

from diptych.advice.fitting import TRAINING_SHARE, fit
from diptych.advice.recipe import Proposal
from diptych.advice.timing import Speed
from diptych.config import Params
from diptych.errors import DiptychError

SPEED = Speed(first=0.001, last=0.02, image_features=0.02, text_features=0.01)
IMAGES = 4000


def fitted(minutes: float) -> Params:
    return fit(proposed(), SPEED, IMAGES, minutes).params


def test_with_enough_time_nothing_changes() -> None:
    assert fit(proposed(), SPEED, IMAGES, 1000) == proposed()


@pytest.mark.parametrize("minutes", [7.5, 9.0, 12.0])
def test_with_less_time_there_are_as_many_epochs_as_fit(minutes: float) -> None:
    train = fitted(minutes).train
    frozen = train.image_tower.frozen_epochs
    needed = [
        IMAGES * (2 * 0.02 + 0.01 + frozen * 0.001 + (epochs - frozen) * 0.02) / 60
        for epochs in (train.epochs, train.epochs + 1)
    ]
    assert needed[0] <= TRAINING_SHARE * minutes < needed[1]
    assert frozen == proposed().params.train.image_tower.frozen_epochs


@pytest.mark.parametrize("minutes", [5.6, 6.0])
def test_without_time_for_an_epoch_in_which_towers_learn_they_stay_frozen(minutes: float) -> None:
    train, before = fitted(minutes).train, proposed().params.train
    towers = train.image_tower, train.text_tower
    assert [(tower.lr_multiplier, tower.frozen_epochs, tower.top_layers) for tower in towers] == [(0.0, 0, None)] * 2
    needed = [IMAGES * (2 * 0.02 + 0.01 + epochs * 0.001) / 60 for epochs in (train.epochs, train.epochs + 1)]
    assert needed[0] <= TRAINING_SHARE * minutes
    assert train.epochs == before.image_tower.frozen_epochs or needed[1] > TRAINING_SHARE * minutes


def test_the_reason_is_written() -> None:
    assert "a run of 9 minutes has no time for more" in fit(proposed(), SPEED, IMAGES, 9).to_yaml()


@pytest.mark.parametrize("epochs", [1, 12])
def test_no_time_for_one_epoch_is_said(epochs: int) -> None:
    content = {"train": {"epochs": epochs}}
    with pytest.raises(DiptychError, match=r"shortest training takes \d+ minutes .*--minutes"):
        fit(Proposal("p", content), SPEED, IMAGES, 1)
