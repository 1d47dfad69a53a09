"""The proposal for a dataset: which preset it begins from, what is changed, and the file that comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from advised import FACTS, PRESETS, TOWERS

from diptych.advice.facts import FoundTower
from diptych.advice.recipe import FROM_SCRATCH, PRETRAINED, Choice, Proposal, propose, train_images
from diptych.config import load_params
from diptych.errors import DiptychError


def values(proposal: Proposal) -> dict[str, object]:
    return {choice.key: choice.value for choice in proposal.choices}


def test_pretrained_towers_have_their_preset_and_their_size_of_images() -> None:
    proposal = propose(FACTS, TOWERS, PRESETS)
    assert proposal.preset == PRETRAINED
    assert proposal.params.model.image_tower.pretrained == "./weights/vision"
    assert proposal.params.model.text_tower.pretrained == "./weights/text"
    assert proposal.params.preprocess.image_size == 240


@pytest.mark.parametrize("towers", [[], TOWERS[:1], TOWERS[1:]], ids=["none", "image alone", "text alone"])
def test_without_both_towers_they_learn_from_nothing(towers: list[FoundTower]) -> None:
    proposal = propose(FACTS, towers, PRESETS)
    assert proposal.preset == FROM_SCRATCH
    assert "diptych weights offline" in proposal.notes[0]


def test_three_splits_are_used_as_they_are() -> None:
    splits = propose(FACTS, TOWERS, PRESETS).params.data.splits
    assert (splits.train, splits.val, splits.test) == ("train", "val", "test")


@pytest.mark.parametrize(("train", "share"), [(5000, 0.1), (50_000, 0.05), (1000, 0.2)])
def test_without_a_third_split_about_five_hundred_images_are_held_out(train: int, share: float) -> None:
    facts = replace(FACTS, images={"train": train, "val": 600})
    splits = propose(facts, TOWERS, PRESETS).params.data.splits
    assert (splits.val, splits.test, splits.held_out) == (None, "val", share)


def test_a_split_of_another_name_is_found() -> None:
    facts = replace(FACTS, images={"fit": 900, "dev": 100, "final": 200})
    splits = propose(facts, TOWERS, PRESETS).params.data.splits
    assert (splits.train, splits.val, splits.test) == ("fit", None, "dev")


def test_with_one_split_there_is_nothing_to_report_on() -> None:
    with pytest.raises(DiptychError, match=r"All images are in split 'train'.*--deal 80/10/10"):
        propose(replace(FACTS, images={"train": 900}), TOWERS, PRESETS)


def test_captions_that_name_sides_forbid_mirror_images() -> None:
    proposal = propose(replace(FACTS, names_sides=0.03), TOWERS, PRESETS)
    assert proposal.params.train.augmentation is not None
    assert proposal.params.train.augmentation.flip == 0.0
    assert "3.0% of the captions say left or right" in proposal.to_yaml()
    assert "train.augmentation.flip" not in values(propose(FACTS, TOWERS, PRESETS))


def test_a_small_dataset_has_smaller_batches() -> None:
    facts = replace(FACTS, images={"train": 80, "val": 10, "test": 10})
    assert propose(facts, TOWERS, PRESETS).params.train.batch_size == 10
    assert "train.batch_size" not in values(propose(FACTS, TOWERS, PRESETS))


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DiptychError, match="15 captioned images are in train"):
        propose(replace(FACTS, images={"train": 15, "val": 5, "test": 5}), TOWERS, PRESETS)


def test_a_missing_preset_is_named() -> None:
    with pytest.raises(DiptychError, match=r"presets/flickr8k-cpu\.yaml is missing"):
        propose(FACTS, TOWERS, {})


def test_held_out_images_are_not_trained_on() -> None:
    params = propose(replace(FACTS, images={"train": 5000, "val": 600}), TOWERS, PRESETS).params
    assert train_images(FACTS, params) == 3600


def test_the_file_is_the_preset_with_the_choices_and_their_reasons(tmp_path: Path) -> None:
    proposal = propose(FACTS, TOWERS, PRESETS).with_choices(Choice("train.epochs", 3, "a test has no time"))
    proposal = proposal.with_choices(
        *(Choice(f"train.{name}.frozen_epochs", 1, "few") for name in ("image_tower", "text_tower"))
    )
    path = tmp_path / "params.yaml"
    path.write_text(proposal.to_yaml())
    assert load_params(path) == proposal.params
    assert "#   train.epochs: 3 - a test has no time" in path.read_text()
    assert "without it the heads memorize" in path.read_text()


def test_a_later_choice_replaces_an_earlier_one() -> None:
    proposal = Proposal("p", "seed: 0\n").with_choices(Choice("seed", 1, "one")).with_choices(Choice("seed", 2, "two"))
    assert values(proposal) == {"seed": 2}
    assert proposal.params.seed == 2


def test_a_section_that_the_preset_lacks_is_added() -> None:
    proposal = Proposal("p", "seed: 0\n").with_choices(Choice("train.image_tower.frozen_epochs", 1, "why not"))
    assert proposal.params.train.image_tower.frozen_epochs == 1
