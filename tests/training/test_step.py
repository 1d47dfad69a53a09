"""A step on a GPU asks for nothing that the GPU holds, and computes padding instead; what comes of it is the same."""

from __future__ import annotations

import copy
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny import make_model, open_prepared, write_prepared
from torch import nn

from diptych.config import Objectives
from diptych.model import alignment, fusion, objectives, pooling
from diptych.training.batches import Batch, BatchPlan
from diptych.training.step import Losses, TrainingStep


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Captions of several lengths."""
    split = open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p")).split("train")
    made = next(BatchPlan(split, batch_size=7, captions_per_image=2, seed=0).epoch(0))
    assert not made.mask.all()
    return made


def make_step(direction: str, share: float) -> TrainingStep:
    """Without dropout, whose draws depend on how much is computed."""
    settings = {"layers": 2, "heads": 2, "dropout": 0.0, "direction": direction}
    model = make_model(200, fusion=settings)
    model.image_pooling, model.text_pooling = (pooling.GeneralizedPooling() for _ in range(2))
    step = TrainingStep(model, Objectives(itm=1.0, itm_share=share), seed=0).train()
    for module in step.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return step


def outcome(step: TrainingStep, batch: Batch) -> tuple[Losses, dict[str, Any]]:
    losses = step(batch)
    losses.total.backward()
    return losses, {name: weight.grad for name, weight in step.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("direction", ["both", "text_to_image", "image_to_text"])
def test_losses_and_gradients_are_the_same_whether_the_host_asks_or_not(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, direction: str, share: float
) -> None:
    step = make_step(direction, share)
    twin = copy.deepcopy(step)
    losses, gradients = outcome(step, batch)
    unable = {module: Mock(return_value=False) for module in (alignment, fusion, objectives, pooling)}
    for module, can_ask in unable.items():
        monkeypatch.setattr(module, "can_ask", can_ask)
    others, twins = outcome(twin, batch)
    # Images that look at captions have no padding of their own.
    assert sum(can_ask.called for can_ask in unable.values()) == (3 if direction == "image_to_text" else 4)
    for name, loss in losses._asdict().items():
        torch.testing.assert_close(getattr(others, name), loss, msg=f"{name} {{}}".format)
    assert gradients.keys() == twins.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(twins[name], gradient, rtol=1e-3, atol=1e-5, msg=f"{name} {{}}".format)


def test_the_settings_smooth_the_targets(batch: Batch) -> None:
    plain, smoothed = (
        TrainingStep(make_model(200), Objectives(itm=0.0, label_smoothing=share), seed=0).eval()(batch)
        for share in (0.0, 0.4)
    )
    assert smoothed.contrastive != plain.contrastive
    assert smoothed.total == smoothed.contrastive
