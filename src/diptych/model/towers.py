"""The two towers: transformers backbones, projected to the shared dimension."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from diptych import config
from diptych.data.pretrained import locate
from diptych.errors import DiptychError

Groups = Sequence[tuple[int, int]]
"""Of captions in the order of their lengths: the row at which each group ends, and its longest caption's tokens."""


class Tower(nn.Module):
    """A backbone of transformers, which learns or stays as it came."""

    backbone: PreTrainedModel
    drops_out: bool
    """Whether the backbone drops anything out while it learns."""
    _idle: frozenset[str] = frozenset()
    """Names of the backbone's weights that have no part in its output."""
    _statistics_frozen = False

    def set_learning(self, learning: bool, *, top_layers: int | None = None, statistics_frozen: bool = False) -> None:
        """Which of the backbone's weights learn, and whether its batch norms keep the statistics that they came with.

        What does not learn also drops nothing out, so its features depend on its input alone.

        Args:
            learning: whether any of its weights learn.
            top_layers: how many of its last layers learn; None: all of it.
            statistics_frozen: of batch norms that learn; those that do not keep them anyway.

        Raises:
            DiptychError: it has fewer layers.
        """
        staying = self._idle if top_layers is None else self._idle | self._below(top_layers)
        for name, parameter in self.backbone.named_parameters():
            # Several processes would wait for the gradient of a weight that has none.
            parameter.requires_grad_(learning and name not in staying)
        self._statistics_frozen = statistics_frozen
        self.train(self.training)

    def _below(self, top_layers: int) -> set[str]:
        """Names of the weights below the last `top_layers` of the list of layers that holds most weights."""
        lists = [module for module in self.backbone.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
        layers = max(lists, key=_size, default=nn.ModuleList())
        if top_layers > len(layers):
            raise DiptychError(
                f"params.yaml: {top_layers} top layers are to learn, but {type(self.backbone).__name__} has only "
                f"{len(layers)}."
            )
        names = {id(parameter): name for name, parameter in self.backbone.named_parameters()}
        first = names[id(next(layers[-top_layers].parameters()))]
        return set(itertools.takewhile(lambda name: name != first, names.values()))

    def backbone_sha256(self) -> str:
        """Of the backbone's weights and configuration, and of whatever else its features depend on."""
        digest = hashlib.sha256(json.dumps(self.backbone.config.to_diff_dict(), sort_keys=True, default=str).encode())
        for name, tensor in [*self.backbone.state_dict().items(), *self.named_buffers(recurse=False)]:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Self:
        """As ever, but what is frozen stays in evaluation mode, and so does what drops out if nothing is to."""
        super().train(mode)
        if not mode:
            return self
        if not self.drops_out:
            self.backbone.eval()
        for module in self.backbone.modules():
            parameters = list(module.parameters())
            learns = any(parameter.requires_grad for parameter in parameters)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(learns and not self._statistics_frozen)
            elif parameters and not learns:
                module.eval()
        return self


class ChannelDropout(nn.Module):
    """Leaves out channels of a whole sequence: what is left out of single tokens, pooling puts together again."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens` (B, T, C), to the same shape."""
        if not (self.training and self.probability):
            return tokens
        return tokens * dropout(torch.ones_like(tokens[:, :1]), self.probability)


class ImageTower(Tower):
    """A vision backbone's feature map as a sequence of grid tokens.

    Args:
        backbone: a transformers model whose `last_hidden_state` is a feature map (B, C, H, W), or the tokens (B, N, C)
            of a square grid of patches with class and register tokens, if it has any, before them.
        dim: of the projection.
        image_size: pixels of both sides of its input.
        mean, std: of its input in RGB, with values from 0 to 1.
        channel_dropout: of the backbone's features where the projection learns from them.
        drops_out: whether the backbone drops anything out while it learns.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        dim: int,
        image_size: int,
        mean: list[float],
        std: list[float],
        channel_dropout: float = 0.0,
        drops_out: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.drops_out = drops_out
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        # Scaled to uint8, so that pixels are normalized by one multiplication and one addition.
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(3, 1, 1))
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1))
        features, self._idle = _features(backbone, image_size)
        self.grid_size = features.shape[1]
        self.has_class_token = math.isqrt(self.grid_size) ** 2 != self.grid_size
        self.feature_shape = tuple(features.shape[1:])
        self.dropout = ChannelDropout(channel_dropout)
        self.projection = nn.Sequential(nn.Linear(features.shape[2], dim), nn.LayerNorm(dim))

    def features(self, pixels: Tensor) -> Tensor:
        """`pixels` (B, S, S, 3) uint8 RGB to the backbone's tokens (B, N, C), a class token first if there is one."""
        normalized = pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift
        return _as_tokens(self.backbone(normalized.contiguous(memory_format=torch.channels_last)).last_hidden_state)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) uint8, or what `features` made of them, to grid tokens (B, N, d)."""
        features = images if images.is_floating_point() else self.features(images)
        return self.projection(self.dropout(features.float()))


class TextTower(Tower):
    """A BERT's token states, its last layers mixed by learned weights.

    The mix is that of Peters et al., "Deep contextualized word representations", NAACL 2018, equation 1.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        dim: int,
        layers: int,
        channel_dropout: float = 0.0,
        drops_out: bool = True,
    ) -> None:
        super().__init__()
        if layers > backbone.config.num_hidden_layers:
            raise DiptychError(
                f"params.yaml: model.text_tower.layers is {layers}, but the text tower has only "
                f"{backbone.config.num_hidden_layers}."
            )
        self.backbone = backbone
        self.drops_out = drops_out
        self.mix = nn.Parameter(torch.zeros(layers))
        self.feature_shape = (layers, backbone.config.hidden_size)
        self.dropout = ChannelDropout(channel_dropout)
        self.projection = nn.Sequential(nn.Linear(backbone.config.hidden_size, dim), nn.LayerNorm(dim))

    def features(self, token_ids: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """`token_ids` (B, T) int64 and `mask` (B, T) bool, True where there is a token, to the token states of the last
        layers (B, T, L, C).

        `groups` says how far down (rows) the captions have at most how many tokens: each group is computed by itself,
        without the padding that only longer captions need; beyond it states are zero.
        """
        states, first = [], 0
        for end, length in groups or ((len(token_ids), token_ids.shape[1]),):
            rows = (slice(first, end), slice(length))
            output = self.backbone(token_ids[rows], attention_mask=mask[rows].long(), output_hidden_states=True)
            group = torch.stack(output.hidden_states[-len(self.mix) :], dim=2)
            states.append(pad(group, (0, 0, 0, 0, 0, token_ids.shape[1] - length)))
            first = end
        return states[0] if len(states) == 1 else torch.cat(states)

    def forward(self, texts: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """Token ids (B, T) int64, or what `features` made of them, to token states (B, T, d)."""
        states = texts if texts.is_floating_point() else self.features(texts, mask, groups)
        mixed = torch.einsum("btlc,l->btc", states.float(), self.mix.softmax(dim=0))
        return self.projection(self.dropout(mixed))


def image_backbone(tower: config.ImageTower) -> tuple[PreTrainedModel, list[float], list[float]]:
    """The image backbone of params.yaml with the mean and std of its input."""
    if tower.pretrained is None:
        return _from_scratch("image_tower", tower, "resnet"), tower.mean, tower.std
    folder = locate(tower)
    return _load(folder), *_normalization(folder)


def text_backbone(tower: config.TextTower, vocabulary_size: int) -> PreTrainedModel:
    """The text backbone of params.yaml; from scratch it has the vocabulary learned from the train captions."""
    if tower.pretrained is None:
        return _from_scratch("text_tower", tower, "bert", vocab_size=vocabulary_size)
    return _load(locate(tower))


def restore_backbone(configuration: dict[str, Any]) -> PreTrainedModel:
    """A backbone with random weights from the transformers configuration of a saved model."""
    return _build(AutoConfig.for_model(**configuration))


def _build(configuration: PretrainedConfig) -> PreTrainedModel:
    return AutoModel.from_config(configuration, **_without_pooler(configuration))


def _without_pooler(configuration: PretrainedConfig) -> dict[str, bool]:
    """Leaves out a layer above the class token that some architectures add; pooling is the model's own."""
    model: Any = MODEL_MAPPING[type(configuration)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model).parameters else {}


def _from_scratch(key: str, tower: config.Tower, model_type: str, **fields: Any) -> PreTrainedModel:
    """Transformers takes any field without a word, so names are checked against the configuration's own."""
    default = AutoConfig.for_model(tower.config.get("model_type", model_type))
    for name in tower.config:
        if not hasattr(default, name):
            raise DiptychError(f"params.yaml: model.{key}.config.{name}: {type(default).__name__} has no such field.")
    try:
        return _build(AutoConfig.for_model(**{"model_type": model_type, **tower.config, **fields}))
    except Exception as error:  # each architecture checks its fields in a way of its own
        raise DiptychError(f"params.yaml: model.{key}.config makes no {type(default).__name__}: {error!r}") from None


def _load(folder: Path) -> PreTrainedModel:
    """Weights from safetensors alone: other formats may carry pickles."""
    # What it warns of is an error below, or to be expected.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        configuration = AutoConfig.from_pretrained(folder, local_files_only=True)
        model, info = AutoModel.from_pretrained(
            folder,
            config=configuration,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **_without_pooler(configuration),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise DiptychError(f"{folder} does not hold a transformers model with safetensors weights: {error}") from None
    if lacking := info["missing_keys"]:
        raise DiptychError(f"{folder}: model.safetensors lacks {_some(lacking)}")
    if foreign := _foreign(model, info["unexpected_keys"]):
        raise DiptychError(f"{folder}: config.json has no place for weights in model.safetensors: {_some(foreign)}")
    return model


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first


def _foreign(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Of the weights that the backbone has no place for, those that claim one beside its own.

    A head for another task, which many published models bring, is none of them.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name.split(".")[0] for name in model.state_dict()}
    own = [name for name in unexpected if name.removeprefix(prefix).split(".")[0] in parts]
    return [name for name in own if not name.removeprefix(prefix).startswith("pooler.")]


def _normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and std of the tower's input: transformers and timm keep them at different places."""
    path = folder / "preprocessor_config.json"
    try:
        if path.exists():
            content = json.loads(path.read_text())
            checked = config.ImageTower(mean=content["image_mean"], std=content["image_std"])
        else:
            content = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
            checked = config.ImageTower(mean=content["mean"], std=content["std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiptychError(f"{path} must give the image tower's image_mean and image_std: {error!r}") from None
    return checked.mean, checked.std


def _as_tokens(output: Tensor) -> Tensor:
    """A feature map (B, C, H, W) as tokens (B, H·W, C); tokens as they are."""
    return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output


def _features(backbone: PreTrainedModel, image_size: int) -> tuple[Tensor, frozenset[str]]:
    """Grid tokens (1, N, C) of a picture of this size, and the names of the weights that have no part in them."""
    training = backbone.training
    try:
        tokens = _as_tokens(backbone.eval()(torch.zeros(1, 3, image_size, image_size)).last_hidden_state)
        if tokens.ndim != 3:
            raise ValueError
    except (TypeError, ValueError, RuntimeError, AttributeError):
        raise DiptychError(
            f"{type(backbone).__name__} yields no feature map (B, C, H, W) and no tokens (B, N, C) of images of "
            f"{image_size}×{image_size} pixels and cannot be the image tower."
        ) from None
    finally:
        backbone.train(training)
    names, weights = zip(*backbone.named_parameters(), strict=True)
    gradients = torch.autograd.grad(tokens.sum(), weights, allow_unused=True)
    return tokens.detach(), frozenset(name for name, grad in zip(names, gradients, strict=True) if grad is None)
