"""A tower whose lower layers stay, in two parts: together they are the tower, and the upper one learns the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import CONVNEXT, DISTILBERT, ELECTRA, ROBERTA, SIZE, TIMM, VIT, make_model, pixels
from torch import Tensor, nn

from diptych.model.towers import Tower

IDS = torch.tensor([[2, 5, 3, 0], [2, 7, 8, 3], [4, 9, 6, 3]])
MASK = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
TIMM_VIT = {
    "model_type": "timm_wrapper",
    "architecture": "test_vit",
    "do_pooling": False,
    "model_args": {"img_size": SIZE},
}

TOWERS = pytest.mark.parametrize(
    ("side", "config"),
    [
        ("image", {}),
        ("image", CONVNEXT),
        ("image", VIT | {"num_hidden_layers": 2}),
        ("image", TIMM),
        ("text", {}),
        ("text", ROBERTA),
        ("text", DISTILBERT),
        ("text", ELECTRA),
    ],
    ids=["resnet", "convnext", "vit", "timm", "bert", "roberta", "distilbert", "electra"],
)


def tower_of(side: str, config: dict[str, Any], **settings: Any) -> Tower:
    """Learns with its last layer alone, and drops nothing out."""
    towers: dict[str, Any] = {f"{side}_tower": {"config": config, **settings}} if config else {}
    model = make_model(**towers)
    tower: Tower = model.image_tower if side == "image" else model.text_tower
    tower.drops_out = False
    tower.set_learning(True, top_layers=1, statistics_frozen=True)
    return tower.train()


def inputs_of(side: str) -> tuple[Tensor, ...]:
    return (pixels(3),) if side == "image" else (IDS, MASK)


def gradients(tower: Tower, tokens: Tensor) -> dict[str, Tensor]:
    tokens.square().sum().backward()
    return {name: parameter.grad for name, parameter in tower.named_parameters() if parameter.grad is not None}


@TOWERS
def test_both_parts_together_compute_and_learn_what_the_tower_does(side: str, config: dict[str, Any]) -> None:
    tower, inputs = tower_of(side, config), inputs_of(side)
    twin = copy.deepcopy(tower)
    assert tower.split(1)
    features = tower.features(*inputs)
    assert not features.requires_grad
    own = features.shape[1:] if side == "image" else features.shape[2:]
    assert tuple(own) == tower.feature_shape
    result, expected = tower(features, *inputs[1:]), twin(*inputs)
    assert torch.equal(result, expected)
    assert torch.equal(tower(*inputs), expected)
    found, wanted = gradients(tower, result), gradients(twin, expected)
    assert found.keys() == wanted.keys()
    assert any("backbone" in name for name in found)
    assert all(torch.equal(found[name], wanted[name]) for name in found)


@TOWERS
def test_a_tower_in_two_parts_has_the_same_weights_and_modes(side: str, config: dict[str, Any]) -> None:
    tower = tower_of(side, config)
    names, learning = list(tower.state_dict()), {n for n, p in tower.named_parameters() if p.requires_grad}
    assert tower.split(1)
    assert list(tower.state_dict()) == names
    assert {name for name, parameter in tower.named_parameters() if parameter.requires_grad} == learning
    assert tower.upper is not None
    whole = dict(tower.backbone.named_modules())
    shared = [name for name, module in tower.upper.model.named_modules() if list(module.parameters(recurse=False))]
    assert shared
    for mode in (True, False):
        tower.train(mode)
        for name, module in tower.upper.model.named_modules():
            if name in shared:
                assert module.training == whole[name].training
    own = {id(tensor) for tensor in (*tower.backbone.parameters(), *tower.backbone.buffers())}
    assert own >= {id(tensor) for tensor in (*tower.upper.model.parameters(), *tower.upper.model.buffers())}


def test_captions_in_groups_give_the_same_states() -> None:
    tower = tower_of("text", {}).eval()
    order = MASK.sum(dim=1).argsort(stable=True)
    ids, mask = IDS[order], MASK[order]
    groups = ((1, 3), (3, 4))
    expected = tower(ids, mask, groups)
    tower.split(1)
    features = tower.features(ids, mask, groups)
    assert torch.equal(tower(features.half().float(), mask), tower(features.half(), mask, None))
    assert torch.equal(tower(features, mask, groups), expected)


def test_layers_that_are_mixed_belong_to_the_upper_part() -> None:
    config = ROBERTA | {"num_hidden_layers": 4}
    tower = tower_of("text", config, layers=4).eval()
    expected = tower(IDS, MASK)
    assert tower.split(1)
    assert tower.upper is not None
    assert tower.upper.count == 3
    assert torch.equal(tower(tower.features(IDS, MASK), MASK), expected)


def test_what_does_not_come_apart_stays_whole() -> None:
    tower = tower_of("image", TIMM_VIT)
    assert isinstance(tower.backbone.get_submodule("timm_model").pos_embed, nn.Parameter)
    expected = tower(pixels(2))
    assert not tower.split(1)
    assert tower.upper is None
    assert torch.equal(tower(pixels(2)), expected)


@pytest.mark.parametrize("side", ["image", "text"])
def test_features_are_known_by_the_lower_weights_alone(side: str) -> None:
    tower = tower_of(side, {})
    whole = tower.features_sha256()
    tower.split(1)
    lower = tower.features_sha256()
    assert lower != whole
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert tower.features_sha256() == lower
    with torch.no_grad():
        next(tower.backbone.parameters()).add_(1.0)
    assert tower.features_sha256() != lower
