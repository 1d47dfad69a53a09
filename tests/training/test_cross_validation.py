"""Cross-validation: every image is ranked by a model that knows nothing of it, and frozen features are shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupting import forget_accelerator, measure_no_speed
from tiny import model_settings, open_prepared, train_settings, write_prepared

from diptych.config import Params
from diptych.data.folds import Fold
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.training.cross_validation import CrossValidation
from diptych.training.feature_recipes import Block, ImageRecipe, Part

pytestmark = pytest.mark.slow

STAGES = ["towers", "qb_norm", "reranked"]


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    measure_no_speed(monkeypatch)
    yield
    torch.set_num_threads(before)
    forget_accelerator()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p", train=20, val=8, test=8))


def params(**changes: object) -> Params:
    given = {"fusion_epochs": 1, "image_tower": {"lr_multiplier": 0.0}, **changes}
    settings = train_settings(**given)
    return Params.model_validate(
        {"data": {"splits": {"held_out": 0.2}}, "model": model_settings(), "train": settings, "evaluate": {"top_k": 4}}
    )


def validation(prepared: Prepared, folder: Path) -> CrossValidation:
    return CrossValidation(
        prepared, 3, roles=("train", "val", "test"), params=params(), cache=folder, device=torch.device("cpu")
    )


def test_the_test_part_is_ranked_by_every_stage_and_control(prepared: Prepared, tmp_path: Path) -> None:
    made = validation(prepared, tmp_path)
    ranks = made.ranks(params(), made.folds[1])
    assert list(ranks) == [*STAGES, "shuffled_images", "mlp_fusion"]
    test = made.folds[1].test
    for both in ranks.values():
        assert (len(both.i2t.rank), len(both.t2i.rank)) == (len(test), len(test.captions))


def test_a_fusion_that_does_not_learn_has_no_controls(prepared: Prepared, tmp_path: Path) -> None:
    made = validation(prepared, tmp_path)
    ranks = made.ranks(params(fusion_epochs=None, objectives={"itm": 0.0}), made.folds[0])
    assert list(ranks) == STAGES
    for direction in range(2):
        assert np.array_equal(ranks["reranked"][direction].rank, ranks["qb_norm"][direction].rank)


def test_what_a_fold_tests_has_no_part_in_its_training(prepared: Prepared, tmp_path: Path) -> None:
    """Fewer images in the test part leave the model as it is: they rank as before, but for the missing ones."""
    made = validation(prepared, tmp_path)
    train, val, test = made.folds[0]
    half = len(test) // 2
    few = prepared.part(test.image_ids[:half] - 100)
    of_all, of_few = (made.ranks(params(), Fold(train, val, tested))["towers"].t2i.rank for tested in (test, few))
    assert (of_few <= of_all[: len(few.captions)]).all()


def test_frozen_features_are_computed_once_for_all_folds_and_recipes(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    compute = ImageRecipe.compute

    def counting(self: ImageRecipe, split: PreparedSplit, block: Block) -> Iterator[Part]:
        computed.append(block.key)
        return compute(self, split, block)

    monkeypatch.setattr(ImageRecipe, "compute", counting)
    made = validation(prepared, tmp_path)
    made.ranks(params(), made.folds[0])
    made.ranks(params(learning_rate=1e-2), made.folds[2])
    assert len(computed) == 1
