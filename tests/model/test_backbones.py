"""Pretrained backbones: from a local folder, with their normalization, from safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SIZE, model_settings
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from diptych.config import ImageTower, TextTower
from diptych.errors import DiptychError
from diptych.model.backbones import image_backbone, restore_backbone, text_backbone
from diptych.model.dual_encoder import build_model


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    folder = tmp_path / "resnet"
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]})
    )
    return folder


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_towers_from_folders_bring_weights_and_normalization(resnet: Path, bert: Path) -> None:
    settings = model_settings(image_tower={"pretrained": str(resnet)}, text_tower={"pretrained": str(bert)})
    model = build_model(settings, SIZE, 50, 0.07)
    weights = ResNetModel.from_pretrained(resnet).state_dict()
    built = model.image_tower.backbone.state_dict()
    assert all(torch.equal(tensor, built[name]) for name, tensor in weights.items())
    assert image_backbone(settings.image_tower)[1:] == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_a_missing_normalization_is_an_error_that_names_the_file(resnet: Path) -> None:
    (resnet / "preprocessor_config.json").unlink()
    with pytest.raises(DiptychError, match="must give the image tower"):
        image_backbone(ImageTower(pretrained=str(resnet)))


def test_a_pickle_is_never_read(bert: Path) -> None:
    torch.save(BertModel.from_pretrained(bert).state_dict(), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    with pytest.raises(DiptychError, match="safetensors"):
        text_backbone(TextTower(pretrained=str(bert)), 50)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 3, r"lacks encoder\.layer\.2"),
        ("num_hidden_layers", 1, r"has no place for .*: encoder\.layer\.1.* and 11 more"),
        ("num_hidden_layers", "many", r"does not hold a transformers model .*'num_hidden_layers'"),
        ("vocab_size", 60, r"word_embeddings\.weight of shape \(50, 16\), but .* \(60, 16\)"),
    ],
    ids=["missing", "foreign", "of another type", "of another shape"],
)
def test_weights_that_the_configuration_does_not_fit_are_an_error_that_names_them(
    bert: Path, field: str, value: object, message: str
) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(DiptychError, match=message):
        text_backbone(TextTower(pretrained=str(bert)), 50)


def test_weights_that_are_not_numbers_are_an_error_that_names_them(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] = torch.nan
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DiptychError, match=r"NaN or infinity in encoder\.layer\.1\.output\.dense\.bias"):
        text_backbone(TextTower(pretrained=str(bert)), 50)


def test_captions_prepared_for_a_larger_vocabulary_are_an_error(bert: Path) -> None:
    with pytest.raises(DiptychError, match="knows 50 tokens, but the prepared captions have 51"):
        text_backbone(TextTower(pretrained=str(bert)), 51)


def test_the_head_of_another_task_is_left_out(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    classifier = ResNetForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    backbone = image_backbone(ImageTower(pretrained=str(tmp_path)))[0]
    weights = classifier.resnet.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


def test_the_normalization_of_timm_stands_in_its_configuration(tmp_path: Path) -> None:
    config = AutoConfig.for_model("timm_wrapper", architecture="test_efficientnet", do_pooling=False)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["pretrained_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert image_backbone(ImageTower(pretrained=str(tmp_path)))[1:] == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.parametrize("std", [[0.2, 0.2], [0.2, 0.2, 0.0], "0.2", None])
def test_an_impossible_normalization_is_an_error(resnet: Path, std: object) -> None:
    (resnet / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": std}))
    with pytest.raises(DiptychError, match="must give the image tower"):
        image_backbone(ImageTower(pretrained=str(resnet)))


def test_a_damaged_file_is_an_error_that_names_the_folder(bert: Path) -> None:
    (bert / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(DiptychError, match="bert"):
        text_backbone(TextTower(pretrained=str(bert)), 50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_that_were_published_in_half_precision_learn_in_full(
    resnet: Path, bert: Path, dtype: torch.dtype
) -> None:
    """Small steps would be lost on them; and what is saved of the configuration restores full precision too."""
    for folder in (resnet, bert):
        AutoModel.from_pretrained(folder).to(dtype).save_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    settings = model_settings(image_tower={"pretrained": str(resnet)}, text_tower={"pretrained": str(bert)})
    model = build_model(settings, SIZE, 50, 0.07)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for tower in (model.image_tower, model.text_tower):
        restored = restore_backbone(tower.backbone.config.to_diff_dict())
        assert {parameter.dtype for parameter in restored.parameters()} == {torch.float32}
