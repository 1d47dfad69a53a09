"""The control to attention learns what means can tell, and touches nothing but itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import make_model, open_prepared, train_settings, write_prepared

from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.retrieval.embedding import Means
from diptych.training.controls import train_control


@pytest.fixture
def train(tmp_path: Path) -> PreparedSplit:
    return open_prepared(write_prepared(tmp_path / "prepared", train=24)).split("train")


def means(split: PreparedSplit) -> Means:
    """Of images that differ at random, and of captions that are like their images."""
    random = torch.Generator().manual_seed(0)
    grid = torch.randn(len(split), 16, generator=random)
    own = torch.from_numpy(split.image_of_caption)
    tokens = grid[own] + 0.1 * torch.randn(len(own), 16, generator=random)
    # Pooled vectors say nothing, so all negatives are drawn alike.
    alike = torch.zeros(len(split) + len(own), 16)
    alike[:, 0] = 1.0
    return Means(alike[: len(split)], grid, alike[len(split) :], tokens)


def control(train: PreparedSplit, given: Means, **changes: object) -> DualEncoder:
    model = make_model(fusion={"layers": 1, "heads": 2, "attention": False, "dropout": 0.0})
    train_control(model, train, given, train_settings(**changes), seed=0)
    return model


def test_it_separates_matching_means_from_others(train: PreparedSplit) -> None:
    given = means(train)
    model = control(train, given, epochs=60, learning_rate=3e-3)
    own = torch.from_numpy(train.image_of_caption)
    every = torch.arange(len(own))
    with torch.no_grad():
        mask = torch.ones(len(own), 1, dtype=torch.bool)
        right, wrong = (
            model.fusion(given.grid[:, None], given.tokens[:, None], mask, images, every).itm
            for images in (own, (own + 1) % len(train))
        )
    assert (right > wrong).float().mean() > 0.95


def test_a_loss_that_is_no_number_is_told(train: PreparedSplit) -> None:
    given = means(train)
    broken = given._replace(tokens=given.tokens * float("nan"))
    with pytest.raises(DiptychError, match=r"loss of the control mlp_fusion is nan in epoch 1: .*baselines.controls"):
        control(train, broken)


def test_nothing_but_the_fusion_learns_and_twice_the_same(train: PreparedSplit) -> None:
    given = means(train)
    before = make_model(fusion={"layers": 1, "heads": 2, "attention": False, "dropout": 0.0}).state_dict()
    once, again = (control(train, given).state_dict() for _ in range(2))
    for name, weights in before.items():
        assert torch.equal(once[name], again[name])
        assert torch.equal(once[name], weights) is not name.startswith("fusion."), name


def test_it_learns_for_as_many_epochs_as_the_fusion_did(train: PreparedSplit) -> None:
    given = means(train)
    alone = control(train, given, epochs=3, fusion_epochs=1).fusion.state_dict()
    beside = control(train, given, epochs=1).fusion.state_dict()
    longer = control(train, given, epochs=3).fusion.state_dict()
    moved = [
        sum(float((after[name] - weights).abs().sum()) for name, weights in initial().items())
        for after in (alone, beside, longer)
    ]
    assert moved[2] > 1.5 * max(moved[:2])


def initial() -> dict[str, torch.Tensor]:
    return make_model(fusion={"layers": 1, "heads": 2, "attention": False, "dropout": 0.0}).fusion.state_dict()
