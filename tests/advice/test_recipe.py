"""The proposal for a dataset: which preset it begins from, what is changed, and the file that comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from advised import FACTS, TOWERS, proposed

from diptych.advice.facts import TowerFolder
from diptych.advice.recipe import FROM_SCRATCH, PRETRAINED, Choice, Proposal, train_images
from diptych.config import Params, load_params
from diptych.errors import DiptychError


def values(proposal: Proposal) -> dict[str, object]:
    return {choice.key: choice.value for choice in proposal.choices}


def test_pretrained_towers_have_their_preset_and_their_size_of_images() -> None:
    proposal = proposed()
    assert proposal.preset == PRETRAINED
    assert proposal.params.model.image_tower.pretrained == "./weights/vision"
    assert proposal.params.model.text_tower.pretrained == "./weights/text"
    assert proposal.params.preprocess.image_size == 240


def test_where_there_are_several_towers_the_reason_names_all() -> None:
    images = [TowerFolder(f"./weights/efficientnet-lite{number}", size) for number, size in ((0, 224), (2, 260))]
    choices = {choice.key: choice for choice in proposed(towers=[*images, TOWERS[1]]).choices}
    chosen = choices["model.image_tower.pretrained"]
    assert chosen.value == "./weights/efficientnet-lite0"
    reason = "the first by size of images of 2 image towers in weights/, before ./weights/efficientnet-lite2"
    assert chosen.reason == reason
    assert choices["model.text_tower.pretrained"].reason == "the text tower in weights/"


@pytest.mark.parametrize("towers", [[], TOWERS[:1], TOWERS[1:]], ids=["none", "image alone", "text alone"])
def test_without_both_towers_they_begin_with_random_weights(towers: list[TowerFolder]) -> None:
    proposal = proposed(towers=towers)
    assert proposal.preset == FROM_SCRATCH
    kinds = {"image tower": towers != TOWERS[:1], "text tower": towers != TOWERS[1:]}
    assert f"no pretrained {' and '.join(kind for kind, lacks in kinds.items() if lacks)}," in proposal.notes[0]
    assert "diptych weights offline" in proposal.notes[0]


@pytest.mark.parametrize(
    ("images", "splits"),
    [
        ({"train": 900, "val": 100, "test": 200}, ("train", "val", "test")),
        ({"train": 900, "test": 200, "valid": 100}, ("train", "valid", "test")),
        ({"fit": 900, "dev": 100, "final": 200}, ("fit", "dev", "final")),
        ({"train": 900, "val": 100}, ("train", None, "val")),
        ({"train": 900, "test": 100}, ("train", None, "test")),
    ],
)
def test_splits_are_known_by_their_names(images: dict[str, int], splits: tuple[str | None, ...]) -> None:
    chosen = proposed(replace(FACTS, images=images)).params.data.splits
    assert (chosen.train, chosen.val, chosen.test) == splits


def test_splits_that_are_not_used_are_named() -> None:
    facts = replace(FACTS, images={"train": 900, "val": 500, "test": 200, "restval": 300})
    assert proposed(facts).notes == ("Images of the split(s) restval are not used.",)


def test_a_small_val_is_said_to_be_small() -> None:
    [note] = proposed(replace(FACTS, images={"train": 900, "val": 99, "test": 200})).notes
    assert "99 image(s) to choose on are few" in note


@pytest.mark.parametrize(("train", "share"), [(5000, 0.1), (50_000, 0.05), (1000, 0.2)])
def test_without_a_third_split_about_five_hundred_images_are_held_out(train: int, share: float) -> None:
    splits = proposed(replace(FACTS, images={"train": train, "val": 600})).params.data.splits
    assert (splits.val, splits.test, splits.held_out) == (None, "val", share)


def test_with_one_split_there_is_nothing_to_report_on() -> None:
    with pytest.raises(DiptychError, match=r"All images are in split 'train'.*--deal 80/10/10"):
        proposed(replace(FACTS, images={"train": 900}))


def test_captions_that_name_sides_forbid_mirror_images() -> None:
    proposal = proposed(replace(FACTS, side_share=0.03))
    assert proposal.params.train.augmentation is None
    assert "3.0% of the captions say left or right" in proposal.to_yaml()
    assert "train.augmentation" not in values(proposed())


def test_a_small_dataset_has_smaller_batches() -> None:
    facts = replace(FACTS, images={"train": 80, "val": 10, "test": 10})
    assert proposed(facts).params.train.batch_size == 10
    assert "train.batch_size" not in values(proposed())


@pytest.mark.parametrize(("each", "taken"), [(1, 1), (5, 5), (50, 5)])
def test_a_step_takes_as_many_captions_as_images_have_and_the_presets_at_most(each: int, taken: int) -> None:
    assert proposed(replace(FACTS, captions_per_image=each)).params.train.captions_per_image == taken


def test_captions_are_cut_where_the_text_tower_has_no_more_positions() -> None:
    facts = replace(FACTS, captions=["word " * 100] * 3 + FACTS.captions)
    towers = [TOWERS[0], TowerFolder("./weights/text", positions=64)]
    [choice] = [choice for choice in proposed(facts, towers).choices if choice.key == "preprocess.max_tokens"]
    assert choice.value == 64
    assert "0.3% of the captions are cut" in choice.reason


@pytest.mark.parametrize(("count", "tokens"), [(6, 8), (100, 64)])
def test_the_median_caption_counts_as_it_is_cut(count: int, tokens: int) -> None:
    facts = replace(FACTS, captions=["word " * count] * 9 + ["word"] * 2)
    assert proposed(facts, [TOWERS[0], TowerFolder("./weights/text", positions=64)]).caption_tokens == tokens


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DiptychError, match="15 captioned images are left to train on"):
        proposed(replace(FACTS, images={"train": 15, "val": 5, "test": 5}))


def test_held_out_images_are_not_trained_on() -> None:
    params = proposed(replace(FACTS, images={"train": 5000, "val": 600})).params
    assert train_images(FACTS, params) == 3600


def test_what_is_no_recipe_stays_as_the_project_has_it() -> None:
    content = {"seed": 7, "register": {"model_name": "mine"}, "gate": {"rsum_margin": 2.0}, "train": {"epochs": 99}}
    params = proposed(present=Params.model_validate(content)).params
    assert (params.seed, params.register_.model_name, params.gate.rsum_margin) == (7, "mine", 2.0)
    assert params.train.epochs != 99


def test_the_file_has_the_choices_with_their_reasons(tmp_path: Path) -> None:
    proposal = proposed().with_choices(Choice("train.weight_decay", 0.2, "a test wants it"))
    path = tmp_path / "params.yaml"
    path.write_text(proposal.to_yaml())
    assert load_params(path) == proposal.params
    assert "#   train.weight_decay: 0.2 - a test wants it" in path.read_text()


def test_a_later_choice_replaces_an_earlier_one() -> None:
    proposal = Proposal("p", {"seed": 0}).with_choices(Choice("seed", 1, "one")).with_choices(Choice("seed", 2, "two"))
    assert values(proposal) == {"seed": 2}
    assert proposal.params.seed == 2


def test_a_section_that_the_preset_lacks_is_added() -> None:
    proposal = Proposal("p", {}).with_choices(Choice("train.image_tower.frozen_epochs", 1, "why not"))
    assert proposal.params.train.image_tower.frozen_epochs == 1
    assert proposal.content == {}
