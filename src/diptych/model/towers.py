"""The two towers: transformers backbones, projected to the shared dimension."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from diptych import config
from diptych.data.pretrained import locate
from diptych.errors import DiptychError


class ImageTower(nn.Module):
    """A vision backbone's feature map as a sequence of grid tokens.

    Args:
        backbone: a transformers model whose `last_hidden_state` is a feature map (B, C, H, W).
        dim: of the projection.
        image_size: pixels of both sides of its input.
        mean, std: of its input in RGB, with values from 0 to 1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, backbone: PreTrainedModel, dim: int, image_size: int, mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        # Scaled to uint8, so that pixels are normalized by one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(3, 1, 1))
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1))
        channels, self.grid_size = _feature_map(backbone, image_size)
        self.projection = nn.Sequential(nn.Linear(channels, dim), nn.LayerNorm(dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixels` (B, S, S, 3) uint8 RGB to grid tokens (B, N, d)."""
        normalized = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
        feature_map = self.backbone(normalized.contiguous(memory_format=torch.channels_last)).last_hidden_state
        return self.projection(feature_map.flatten(2).transpose(1, 2))


class TextTower(nn.Module):
    """A BERT's token states, its last layers mixed by learned weights.

    The mix is that of Peters et al., "Deep contextualized word representations", NAACL 2018, equation 1.
    """

    def __init__(self, backbone: PreTrainedModel, dim: int, layers: int) -> None:
        super().__init__()
        if layers > backbone.config.num_hidden_layers:
            raise DiptychError(
                f"params.yaml: model.text_tower.layers is {layers}, but the text tower has only "
                f"{backbone.config.num_hidden_layers}."
            )
        self.backbone = backbone
        self.mix = nn.Parameter(torch.zeros(layers))
        self.projection = nn.Sequential(nn.Linear(backbone.config.hidden_size, dim), nn.LayerNorm(dim))

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """`token_ids` (B, T) int64 and `mask` (B, T) bool, True where there is a token, to token states (B, T, d)."""
        output = self.backbone(token_ids, attention_mask=mask.long(), output_hidden_states=True)
        states = torch.stack(output.hidden_states[-len(self.mix) :])
        mixed = (self.mix.softmax(dim=0).view(-1, 1, 1, 1) * states).sum(dim=0)
        return self.projection(mixed)


def image_backbone(tower: config.ImageTower) -> tuple[PreTrainedModel, list[float], list[float]]:
    """The image backbone of params.yaml with the mean and std of its input."""
    if tower.pretrained is None:
        return AutoModel.from_config(_from_scratch("image_tower", tower, "resnet")), tower.mean, tower.std
    folder = locate(tower)
    return _load(folder), *_normalization(folder)


def text_backbone(tower: config.TextTower, vocabulary_size: int) -> PreTrainedModel:
    """The text backbone of params.yaml; from scratch it has the vocabulary learned from the train captions."""
    if tower.pretrained is None:
        configuration = _from_scratch("text_tower", tower, "bert", vocab_size=vocabulary_size)
        return AutoModel.from_config(configuration, add_pooling_layer=False)
    return _load(locate(tower), add_pooling_layer=False)


def restore_backbone(configuration: dict[str, Any], **options: Any) -> PreTrainedModel:
    """A backbone with random weights from the transformers configuration of a saved model."""
    return AutoModel.from_config(AutoConfig.for_model(**configuration), **options)


def _from_scratch(key: str, tower: config.Tower, model_type: str, **fields: Any) -> PretrainedConfig:
    """Transformers takes any field without a word, so names are checked against the configuration's own."""
    default = AutoConfig.for_model(tower.config.get("model_type", model_type))
    for name in tower.config:
        if not hasattr(default, name):
            raise DiptychError(f"params.yaml: model.{key}.config.{name}: {type(default).__name__} has no such field.")
    try:
        return AutoConfig.for_model(**{"model_type": model_type, **tower.config, **fields})
    except Exception as error:  # each configuration class checks its fields in a way of its own
        raise DiptychError(f"params.yaml: model.{key}.config is not a {type(default).__name__}: {error}") from None


def _load(folder: Path, **options: Any) -> PreTrainedModel:
    """Weights from safetensors alone: other formats may carry pickles."""
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise DiptychError(f"{folder} does not hold a transformers model with safetensors weights: {error}") from None
    if info["missing_keys"]:
        raise DiptychError(f"{folder}: model.safetensors lacks {', '.join(sorted(info['missing_keys'])[:3])}, …")
    return model


def _normalization(folder: Path) -> tuple[list[float], list[float]]:
    path = folder / "preprocessor_config.json"
    try:
        content = json.loads(path.read_text())
        return content["image_mean"], content["image_std"]
    except (OSError, ValueError, KeyError) as error:
        raise DiptychError(f"{path} must give the image tower's image_mean and image_std: {error!r}") from None


def _feature_map(backbone: PreTrainedModel, image_size: int) -> tuple[int, int]:
    """Channels, and number of places, of the feature map for pictures of this size."""
    training = backbone.training
    try:
        with torch.no_grad():
            output = backbone.eval()(torch.zeros(1, 3, image_size, image_size)).last_hidden_state
        _, channels, height, width = output.shape
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise DiptychError(
            f"{type(backbone).__name__} yields no feature map (B, C, H, W) of images of {image_size}×{image_size} "
            "pixels and cannot be the image tower."
        ) from None
    finally:
        backbone.train(training)
    return channels, height * width
