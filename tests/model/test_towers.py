"""Backbones of every kind as towers: their features, what of them learns, and the way to disk and back."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    CONVNEXT,
    DISTILBERT,
    ELECTRA,
    PREPROCESSING,
    RERANKING,
    ROBERTA,
    TIMM,
    VIT,
    make_model,
    make_querybank,
    model_settings,
    pixels,
    write_prepared,
)
from torch import nn

from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.model.package import load_model, save_model

IMAGE_TOWERS = pytest.mark.parametrize(
    ("config", "grid_size"), [(CONVNEXT, 16), (VIT, 17), (TIMM, 1)], ids=["convnext", "vit", "timm"]
)
TEXT_TOWERS = pytest.mark.parametrize(
    "config", [DISTILBERT, ROBERTA, ELECTRA], ids=["distilbert", "roberta", "electra"]
)


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]


def means(module: nn.Module) -> list[torch.Tensor]:
    return [norm.running_mean for norm in batch_norms(module) if norm.running_mean is not None]


def there_and_back(model: DualEncoder, folder: Path, **towers: Any) -> DualEncoder:
    tokenizer = write_prepared(folder / "prepared", train=4, val=2, test=2) / "tokenizer"
    save_model(folder / "model", model, model_settings(**towers), tokenizer, PREPROCESSING, RERANKING, make_querybank())
    return load_model(folder / "model").model


@IMAGE_TOWERS
def test_all_that_learns_in_an_image_tower_has_a_gradient(config: dict[str, Any], grid_size: int) -> None:
    model = make_model(image_tower={"config": config})
    model.image_tower.set_learning(True)
    features = model.encode_images(pixels(2))
    assert features.grid.shape == (2, grid_size, 16)
    features.pooled.sum().backward()
    for parameter in model.image_tower.backbone.parameters():
        assert parameter.requires_grad == (parameter.grad is not None)


@IMAGE_TOWERS
def test_an_image_tower_comes_back_from_disk(config: dict[str, Any], grid_size: int, tmp_path: Path) -> None:
    model = make_model(image_tower={"config": config})
    back = there_and_back(model, tmp_path, image_tower={"config": config})
    assert torch.equal(back.encode_images(pixels(2)).pooled, model.encode_images(pixels(2)).pooled)


@TEXT_TOWERS
def test_a_text_tower_of_the_family_comes_back_from_disk(config: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(text_tower={"config": config, "layers": 2})
    back = there_and_back(model, tmp_path, text_tower={"config": config, "layers": 2})
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(back.encode_texts(ids, mask).pooled, model.encode_texts(ids, mask).pooled)


@IMAGE_TOWERS
def test_a_pickled_image_tower_computes_the_same(config: dict[str, Any], grid_size: int) -> None:
    tower = make_model(image_tower={"config": config}).image_tower
    assert torch.equal(pickle.loads(pickle.dumps(tower))(pixels(2)), tower(pixels(2)))


@TEXT_TOWERS
@pytest.mark.parametrize("is_split", [False, True])
def test_a_text_tower_is_pickled_after_it_was_used(config: dict[str, Any], is_split: bool) -> None:
    tower = make_model(text_tower={"config": config, "layers": 2}).text_tower
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.bool)
    assert not is_split or tower.split(1)
    expected = tower(ids, mask)
    assert torch.equal(pickle.loads(pickle.dumps(tower))(ids, mask), expected)
    assert torch.equal(tower(ids, mask), expected)


def test_a_class_token_can_stand_for_the_image() -> None:
    model = make_model(image_tower={"config": VIT, "pooling": "cls"})
    features = model.encode_images(pixels(2))
    expected = nn.functional.normalize(model.image_head(features.grid[:, 0]), dim=1)
    assert torch.allclose(features.pooled, expected)


def test_a_feature_map_has_no_class_token() -> None:
    with pytest.raises(DiptychError, match=r"image_tower\.pooling is cls, but ConvNextModel"):
        make_model(image_tower={"config": CONVNEXT, "pooling": "cls"})


def test_a_frozen_backbone_drops_nothing_out_and_keeps_its_statistics() -> None:
    tower = make_model(text_tower={"config": ROBERTA}).train().text_tower
    tower.set_learning(False)
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(tower.train()(ids, mask), tower(ids, mask))
    assert not any(parameter.requires_grad for parameter in tower.backbone.parameters())
    assert tower.projection[0].weight.requires_grad


def test_an_unknown_word_has_a_place_like_any_other() -> None:
    tower = make_model(text_tower={"config": ROBERTA}).eval().text_tower
    unknown, mask = 1, torch.ones(1, 4, dtype=torch.bool)
    features = tower(torch.tensor([[2, unknown, unknown, 3]]), mask)
    assert not torch.allclose(features[0, 1], features[0, 2], atol=1e-5)


def test_frozen_statistics_stay_while_the_weights_learn() -> None:
    tower = make_model().image_tower
    tower.set_learning(True, statistics_frozen=True)
    before = [mean.clone() for mean in means(tower)]
    tower.train()(pixels(4))
    assert before
    assert all(torch.equal(*both) for both in zip(before, means(tower), strict=True))
    assert all(parameter.requires_grad for parameter in tower.backbone.parameters())
    tower.set_learning(True)
    tower(pixels(4))
    assert not all(torch.equal(*both) for both in zip(before, means(tower), strict=True))


def test_a_learning_backbone_can_drop_nothing_out_while_its_statistics_follow() -> None:
    tower = make_model(text_tower={"config": ROBERTA, "dropout": False}).train().text_tower
    tower.set_learning(True)
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(tower(ids, mask), tower(ids, mask))
    assert all(parameter.requires_grad for parameter in tower.backbone.parameters())
    image = make_model(image_tower={"config": {"hidden_sizes": [8, 16], "depths": [1, 1]}, "dropout": False})
    image.image_tower.set_learning(True)
    assert all(norm.training for norm in batch_norms(image.train()))


@pytest.mark.parametrize(
    ("side", "config", "top"),
    [
        ("image", {}, "encoder.stages.1."),
        ("image", CONVNEXT, "encoder.stages.1."),
        ("image", VIT | {"num_hidden_layers": 2}, "layers.1."),
        ("image", TIMM, "timm_model.blocks.4."),
        ("text", ROBERTA, "encoder.layer.1."),
        ("text", DISTILBERT, "transformer.layer.1."),
    ],
    ids=["resnet", "convnext", "vit", "timm", "roberta", "distilbert"],
)
def test_the_top_layer_and_what_comes_after_it_learn(side: str, config: dict[str, Any], top: str) -> None:
    towers: dict[str, Any] = {f"{side}_tower": {"config": config}} if config else {}
    model = make_model(**towers).train()
    tower = model.image_tower if side == "image" else model.text_tower
    tower.set_learning(True, top_layers=1, statistics_frozen=True)
    names = [name for name, _ in tower.backbone.named_parameters()]
    start = next(i for i, name in enumerate(names) if name.startswith(top))
    assert start > 0
    learning = {name for name, parameter in tower.backbone.named_parameters() if parameter.requires_grad}
    assert set(names[start:]) - tower.unused_weights == learning
    for name, module in tower.backbone.named_modules():
        if list(module.parameters(recurse=False)) and not isinstance(module, nn.BatchNorm2d):
            own = [f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)]
            assert module.training == bool(learning & set(own))
    assert not any(norm.training for norm in batch_norms(tower))
