"""Optimisation: who is trained, with which learning rate and decay, on which schedule."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import make_model, train_settings

from diptych.training.optimisation import make_optimizer, make_schedule
from diptych.training.step import TrainingStep


def groups_of(**changes: object) -> dict[int, dict]:
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
    groups = groups_of(learning_rate=1e-3, image_tower_factor=0.1)
    model = groups.pop("model")
    weight = next(model.image_tower.backbone.parameters())
    assert groups[id(weight)]["lr"] == pytest.approx(1e-4)
    assert groups[id(model.image_head.weight)]["lr"] == pytest.approx(1e-3)


def test_a_factor_of_zero_freezes_the_tower_but_not_its_projection() -> None:
    groups = groups_of(text_tower_factor=0.0)
    model = groups.pop("model")
    assert all(id(parameter) not in groups for parameter in model.text_tower.backbone.parameters())
    assert id(model.text_tower.projection[0].weight) in groups


def test_a_fusion_without_objective_is_left_alone() -> None:
    groups = groups_of(objectives={"matching": 0.0})
    model = groups.pop("model")
    assert all(id(parameter) not in groups for parameter in model.fusion.parameters())


def test_the_schedule_rises_then_falls_as_a_cosine_to_zero() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, steps=100, warmup=0.1)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10:] == pytest.approx([(1 + math.cos(math.pi * step / 90)) / 2 for step in range(91)])
