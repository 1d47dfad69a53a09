"""The time that a run may take: the largest tower that fits, and otherwise as many epochs as do."""

from __future__ import annotations

import pytest
from advised import FACTS, PRESETS, TOWERS

from diptych.advice.facts import FoundTower
from diptych.advice.fitting import TRAINING_SHARE, fit
from diptych.advice.recipe import Proposal, propose
from diptych.advice.timing import Speed
from diptych.config import Params
from diptych.errors import DiptychError

SIZES = [FoundTower(f"./weights/vision{size}", size, 8) for size in (224, 240, 260)]
TEXT = TOWERS[1:]


def speed_of(params: Params, tokens: int) -> Speed:
    """Seconds an image that grow with the size of the images; a caption of FACTS has eight tokens."""
    assert tokens == 10
    seconds = (params.preprocess.image_size / 224) ** 4
    return Speed(first=0.001 * seconds, last=0.02 * seconds, features=0.02 * seconds)


def fitted(minutes: float, towers: list[FoundTower]) -> tuple[Proposal, float]:
    return fit(propose(FACTS, towers + TEXT, PRESETS), FACTS, towers + TEXT, minutes, speed_of)


@pytest.mark.parametrize(("minutes", "size"), [(13, 224), (18, 240), (1000, 260)])
def test_the_largest_tower_is_taken_that_fits(minutes: float, size: int) -> None:
    proposal, needed = fitted(minutes, SIZES)
    assert proposal.params.preprocess.image_size == size
    assert proposal.params.model.image_tower.pretrained == f"./weights/vision{size}"
    assert proposal.params.train.epochs == 12
    assert needed <= TRAINING_SHARE * minutes


def test_a_tower_that_does_not_fit_ends_the_search() -> None:
    asked = []

    def counting(params: Params, tokens: int) -> Speed:
        asked.append(params.preprocess.image_size)
        return speed_of(params, tokens)

    fit(propose(FACTS, SIZES + TEXT, PRESETS), FACTS, SIZES + TEXT, 13, counting)
    assert asked == [224, 240]


def test_the_minutes_are_those_of_features_and_epochs() -> None:
    _, needed = fitted(1000, SIZES[:1])
    assert needed == pytest.approx(4000 * (2 * 0.02 + 8 * 0.001 + 4 * 0.02) / 60)


def test_with_less_time_there_are_fewer_epochs() -> None:
    proposal, needed = fitted(8, SIZES[:1])
    assert proposal.params.train.epochs == 9
    assert needed <= TRAINING_SHARE * 8
    assert "a run of 8 minutes" in proposal.to_yaml()


def test_frozen_epochs_leave_one_to_the_released_layers() -> None:
    proposal, _ = fitted(6.42, SIZES[:1])
    train = proposal.params.train
    assert train.epochs == 8
    assert train.image_tower.frozen_epochs == train.text_tower.frozen_epochs == train.epochs - 1


def test_no_time_for_one_epoch_is_said() -> None:
    with pytest.raises(DiptychError, match=r"One epoch takes \d+ minutes .*--minutes"):
        fitted(1, SIZES[:1])


def test_towers_from_scratch_have_no_choice_of_size() -> None:
    proposal, _ = fit(propose(FACTS, [], PRESETS), FACTS, [], 45, lambda *_: Speed(0.001, 0.001, 0.0))
    assert proposal.params.preprocess.image_size == 64
