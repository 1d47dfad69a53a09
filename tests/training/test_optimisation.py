"""Optimisation: who is trained, with which learning rate and decay, on which schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import make_model, train_settings

from diptych.errors import DiptychError
from diptych.training.optimisation import make_optimizer, make_schedule, phases
from diptych.training.step import TrainingStep


def groups_of(**changes: object) -> dict[Any, Any]:
    model = make_model()
    settings = train_settings(**changes)
    optimizer = make_optimizer(TrainingStep(model, settings.objectives, seed=0), settings)
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]} | {
        "model": model
    }


def test_biases_and_norms_do_not_decay() -> None:
    groups = groups_of(weight_decay=0.1)
    for parameter in groups.pop("model").parameters():
        assert groups[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)


def test_a_tower_has_its_own_learning_rate() -> None:
    groups = groups_of(learning_rate=1e-3, image_tower={"lr_multiplier": 0.1})
    model = groups.pop("model")
    weight = next(model.image_tower.backbone.parameters())
    assert groups[id(weight)]["lr"] == pytest.approx(1e-4)
    assert groups[id(model.image_head.weight)]["lr"] == pytest.approx(1e-3)


def test_a_factor_of_zero_freezes_the_tower_but_not_its_projection() -> None:
    groups = groups_of(text_tower={"lr_multiplier": 0.0})
    model = groups.pop("model")
    assert all(id(parameter) not in groups for parameter in model.text_tower.backbone.parameters())
    assert id(model.text_tower.projection[0].weight) in groups


def test_a_fusion_without_objective_is_left_alone() -> None:
    groups = groups_of(objectives={"itm": 0.0})
    model = groups.pop("model")
    assert all(id(parameter) not in groups for parameter in model.fusion.parameters())


def test_below_its_top_layers_a_tower_stays() -> None:
    groups = groups_of(text_tower={"top_layers": 1}, image_tower={"top_layers": 1})
    model = groups.pop("model")
    for tower, top in ((model.text_tower, "encoder.layer.1."), (model.image_tower, "encoder.stages.1.")):
        for name, parameter in tower.backbone.named_parameters():
            assert (id(parameter) in groups) == (top in name)


def test_more_top_layers_than_a_tower_has_are_an_error() -> None:
    with pytest.raises(DiptychError, match="3 top layers are to learn, but BertModel has only 2"):
        groups_of(text_tower={"top_layers": 3})


def rates_of(steps: list[int], warmup: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, steps, warmup)
    rates: list[float] = []
    for _ in range(sum(steps) + 1):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def test_the_schedule_rises_then_falls_as_a_cosine_to_zero() -> None:
    rates = rates_of([100], warmup=0.1)
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10:] == pytest.approx([(1 + math.cos(math.pi * step / 90)) / 2 for step in range(91)])


def test_where_a_tower_is_released_the_schedule_begins_anew() -> None:
    assert phases(train_settings(epochs=5)) == [5]
    assert phases(train_settings(epochs=5, image_tower={"frozen_epochs": 2})) == [2, 3]
    assert phases(train_settings(epochs=5, image_tower={"frozen_epochs": 2}, text_tower={"frozen_epochs": 1})) == [
        1,
        1,
        3,
    ]
    assert phases(train_settings(epochs=5, image_tower={"frozen_epochs": 2}, text_tower={"frozen_epochs": 2})) == [2, 3]
    assert rates_of([20, 50], warmup=0.1) == rates_of([20], warmup=0.1)[:-1] + rates_of([50], warmup=0.1)
