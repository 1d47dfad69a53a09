"""What the towers get in each epoch: pixels and token ids, or stored features where layers are frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model, open_prepared, train_settings, write_prepared

from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder
from diptych.training.features import FeatureCache
from diptych.training.inputs import TrainingInputs

ITEMS = np.array([2, 0])


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedSplit, PreparedSplit]:
    prepared = open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p", train=6, val=3))
    return prepared.split("train"), prepared.split("val")


def entered(
    splits: tuple[PreparedSplit, PreparedSplit], folder: Path, model: DualEncoder, epoch: int, **changes: Any
) -> TrainingInputs:
    cache = FeatureCache(folder, limit_gib=1.0, device=torch.device("cpu"), precision="no")
    inputs = TrainingInputs(*splits, train_settings(**changes), 0, cache)
    inputs.enter(model, epoch)
    return inputs


def stored(inputs: Inputs) -> tuple[bool, bool]:
    """Return whether images and texts are stored features."""
    return inputs.images(ITEMS).is_floating_point(), inputs.texts(ITEMS)[0].is_floating_point()


@pytest.mark.parametrize(
    ("changes", "epoch", "expected"),
    [
        ({}, 0, (False, False)),
        ({"image_tower": {"lr_multiplier": 0.0}}, 1, (True, False)),
        ({"text_tower": {"frozen_epochs": 1}}, 0, (False, True)),
        ({"text_tower": {"frozen_epochs": 1}}, 1, (False, False)),
        ({"image_tower": {"top_layers": 1}, "text_tower": {"top_layers": 1}}, 0, (True, True)),
        ({"image_tower": {"lr_multiplier": 0.0}, "keep_features": "never"}, 0, (False, False)),
        ({"image_tower": {"lr_multiplier": 0.0}, "augmentation": {"crop_scale": 0.5}}, 0, (False, False)),
    ],
    ids=["learning", "frozen", "frozen at first", "released", "below the top", "never", "images that vary"],
)
def test_features_are_stored_of_what_is_frozen_in_the_epoch(
    splits: tuple[PreparedSplit, PreparedSplit],
    tmp_path: Path,
    changes: dict[str, Any],
    epoch: int,
    expected: tuple[bool, bool],
) -> None:
    inputs = entered(splits, tmp_path / "features", make_model(200), epoch, **changes)
    assert stored(inputs.train(epoch)) == stored(inputs.plain()) == stored(inputs.val()) == expected
    assert (tmp_path / "features").exists() is any(expected)


def test_stored_features_are_those_that_the_tower_computes(
    splits: tuple[PreparedSplit, PreparedSplit], tmp_path: Path
) -> None:
    model = make_model(200)
    inputs = entered(splits, tmp_path, model, 0, image_tower={"lr_multiplier": 0.0})
    for part, split in ((inputs.train(0), splits[0]), (inputs.val(), splits[1])):
        with torch.no_grad():
            expected = model.image_tower.features(torch.from_numpy(split.pixels(ITEMS)))
        torch.testing.assert_close(part.images(ITEMS).float(), expected, rtol=2e-3, atol=2e-3)


def test_an_image_has_the_features_of_itself_or_of_its_mirror_image_by_epoch(
    splits: tuple[PreparedSplit, PreparedSplit], tmp_path: Path
) -> None:
    model, split = make_model(200), splits[0]
    mirrors = {"crop_scale": 1.0, "flip": 0.5, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    inputs = entered(splits, tmp_path, model, 0, image_tower={"lr_multiplier": 0.0}, augmentation=mirrors)
    every = np.arange(len(split))
    plain = inputs.plain().images(every)
    with torch.no_grad():
        mirrored = model.image_tower.features(torch.from_numpy(split.pixels(every)[:, :, ::-1].copy()))
    sides = []
    for epoch in range(4):
        features = inputs.train(epoch).images(every)
        is_plain = [torch.equal(one, other) for one, other in zip(features, plain, strict=True)]
        expected = torch.where(torch.tensor(is_plain)[:, None, None], plain.float(), mirrored)
        torch.testing.assert_close(features.float(), expected, rtol=2e-3, atol=2e-3)
        sides.append(is_plain)
    assert {side for row in sides for side in row} == {True, False}
    assert len(set(map(tuple, sides))) > 1
