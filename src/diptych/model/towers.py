"""The two towers: transformers backbones with a projection to the shared dimension."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.errors import DiptychError
from diptych.model.upper import UpperLayers, weights_below

if TYPE_CHECKING:
    from diptych.model.lean_transformers import PreTrainedModel

Groups = Sequence[tuple[int, int]]
"""Groups of captions sorted by length: the row at which each ends, and the number of tokens of its longest caption."""


class Tower(nn.Module):
    """A transformers backbone with a projection; the backbone is trained, in part or whole, or frozen."""

    backbone: PreTrainedModel
    drops_out: bool
    """True if the backbone's dropout is active in training."""
    upper: UpperLayers | None = None
    """Layers that `forward` applies to the `features` of a split tower; None: the tower is not split."""
    features: Callable[..., Tensor]
    above: Callable[..., Tensor]
    """Function of a split tower: turns its `features` into those of the whole tower."""
    feature_shape: tuple[int, ...]
    """Shape of the features of an image or of a token."""
    whole_shape: tuple[int, ...]
    """The same for a tower that is not split."""
    _sample: Callable[[], tuple[Tensor, ...]]
    """Function that returns inputs to try the tower with."""
    _shape: Callable[[Tensor], tuple[int, ...]]
    """Function that returns the `feature_shape` of features."""
    unused_weights: frozenset[str] = frozenset()
    """Names of the backbone's weights that its output does not depend on."""
    _statistics_frozen = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy with the hooks, which can be copied and not pickled."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled for the nodes of a cluster."""
        for model in (self.backbone, *([self.upper.model] if self.upper else [])):
            # Hooks that transformers sets when it is asked for hidden states cannot be pickled; it sets them again.
            if vars(model).pop("_output_capturing_hooks_installed", False):
                for module in model.modules():
                    module._forward_hooks.clear()  # noqa: SLF001
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # transformers notes what a class returns when a model of it is made; without, there are no hidden states.
        with torch.device("meta"):
            type(self.backbone)(self.backbone.config)

    def set_learning(self, learning: bool, *, top_layers: int | None = None, statistics_frozen: bool = False) -> None:
        """Choose which of the backbone's weights are trained.

        Frozen parts have no active dropout, so their features depend on their input alone.

        Args:
            learning: True to train weights of the backbone, False to freeze it.
            top_layers: the number of last layers to train; None: all.
            statistics_frozen: keep the running statistics of trained batch norms; frozen ones keep theirs anyway.

        Raises:
            DiptychError: the backbone has fewer layers.
        """
        frozen = (
            self.unused_weights
            if top_layers is None
            else self.unused_weights | weights_below(self.backbone, top_layers)
        )
        for name, parameter in self.backbone.named_parameters():
            # An unused weight gets no gradient, and several processes would wait for it.
            parameter.requires_grad_(learning and name not in frozen)
        self._statistics_frozen = statistics_frozen
        self.train(self.training)

    def split(self, top_layers: int) -> bool:
        """Make `features` end below the last `top_layers` layers, and `forward` continue from there.

        Returns:
            False if the architecture cannot be split like this; the tower is then unchanged.
        """
        training, sample = self.training, self._sample()
        self.eval()
        with torch.no_grad():
            features = self._try_split(top_layers, sample)
        if features is None:
            self.upper = None
        else:
            self.feature_shape = self._shape(features)
        self.train(training)
        return features is not None

    def _try_split(self, top_layers: int, sample: tuple[Tensor, ...]) -> Tensor | None:
        """Set `upper` and return the new features of `sample`; None if they do not lead to the same output."""
        expected = self(*sample)
        try:
            self.upper = UpperLayers(self.backbone, top_layers)
            features: Tensor = self.features(*sample)
            same = torch.allclose(self(features, *sample[1:]), expected, rtol=1e-3, atol=1e-4)
        except Exception:  # architectures fail in many ways when they get states in place of their input
            return None
        return features if same else None

    def join(self) -> None:
        """Undo `split`: make `features` end with the backbone again."""
        self.upper = None
        self.feature_shape = self.whole_shape

    def features_sha256(self, *, whole: bool = False) -> str:
        """Return a SHA-256 of the weights and configuration behind `features`, or behind those of the whole tower."""
        digest = hashlib.sha256(json.dumps(self.backbone.config.to_diff_dict(), sort_keys=True, default=str).encode())
        digest.update(str(self.upper and self.upper.count).encode())
        parts = self.upper.below if self.upper and not whole else [self.backbone]
        tensors = itertools.chain(*(part.state_dict().items() for part in parts), self.named_buffers(recurse=False))
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep frozen modules in evaluation mode, and the whole backbone without `drops_out`."""
        super().train(mode)
        parts = [self.backbone] if self.upper is None else [self.backbone, self.upper.model.train(mode)]
        if not mode:
            return self
        if not self.drops_out:
            for part in parts:
                part.eval()
        for module in itertools.chain(*(part.modules() for part in parts)):
            parameters = list(module.parameters())
            trained = any(parameter.requires_grad for parameter in parameters)
            if isinstance(module, _BatchNorm):
                module.train(trained and not self._statistics_frozen)
            elif parameters and not trained:
                module.eval()
        return self


class ChannelDropout(nn.Module):
    """Dropout of channels over a whole sequence; what is dropped from single tokens only, pooling would restore."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens: Tensor) -> Tensor:
        """Drop channels of `tokens` (B, T, C); the shape stays."""
        if not (self.training and self.probability):
            return tokens
        return tokens * dropout(torch.ones_like(tokens[:, :1]), self.probability)


class ImageTower(Tower):
    """Image tower: a vision backbone's feature map as a sequence of grid tokens.

    Args:
        backbone: a transformers model. Its `last_hidden_state` is a feature map (B, C, H, W), or tokens (B, N, C): any
            class and register tokens, then a square grid of patches.
        dim: dimension of the projection.
        image_size: side of the square input in pixels.
        mean: mean of the input's RGB channels, with values from 0 to 1.
        std: standard deviation of the same.
        channel_dropout: probability with which a channel of the backbone's features is dropped in training.
        drops_out: True to use the backbone's own dropout in training.
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
        self.backbone.to(memory_format=torch.channels_last)
        # Scaled for uint8 values, so that one multiplication and one addition normalize pixels.
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)).view(3, 1, 1))
        self.register_buffer("shift", -(torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1))
        features, self.unused_weights = _features(backbone, image_size)
        self.image_size = image_size
        self.grid_size = features.shape[1]
        self.has_class_token = math.isqrt(self.grid_size) ** 2 != self.grid_size
        self.feature_shape = self.whole_shape = tuple(features.shape[1:])
        self.dropout = ChannelDropout(channel_dropout)
        self.projection = nn.Sequential(nn.Linear(features.shape[2], dim), nn.LayerNorm(dim))

    def features(self, pixels: Tensor) -> Tensor:
        """Return the backbone's tokens (B, N, C) of `pixels` (B, S, S, 3) uint8 RGB, a class token first if it has one.

        A split tower returns the input states (B, ...) of its upper layers.
        """
        normalized = _channels_last(pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        if self.upper:
            return self.upper.lower(self.backbone, normalized)
        return _as_tokens(self.backbone(normalized).last_hidden_state)

    def above(self, features: Tensor) -> Tensor:
        """Turn a split tower's `features` (B, ...) into the backbone's tokens (B, N, C)."""
        assert self.upper is not None
        return _as_tokens(self.upper.model(_channels_last(features.float())).last_hidden_state)

    def forward(self, images: Tensor) -> Tensor:
        """Return the grid tokens (B, N, d) of pixels (B, S, S, 3) uint8, or of their `features`."""
        features = images if images.is_floating_point() else self.features(images)
        if self.upper:
            features = self.above(features)
        return self.projection(self.dropout(features.float()))

    def _sample(self) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(0)
        shape = (1, self.image_size, self.image_size, 3)
        return (torch.randint(256, shape, dtype=torch.uint8, generator=random).to(self.scale.device),)

    def _shape(self, features: Tensor) -> tuple[int, ...]:
        return tuple(features.shape[1:])


class TextTower(Tower):
    """Text tower: token states of a BERT, with learned weights to mix its last layers.

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
        self.feature_shape = self.whole_shape = (layers, backbone.config.hidden_size)
        self.dropout = ChannelDropout(channel_dropout)
        self.projection = nn.Sequential(nn.Linear(backbone.config.hidden_size, dim), nn.LayerNorm(dim))

    def features(self, token_ids: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """Return the token states of the last layers (B, T, L, C).

        A split tower returns the input states (B, T, C) of its upper layers.

        Args:
            token_ids: (B, T) int64.
            mask: (B, T) bool, True where there is a token.
            groups: rows of captions that are computed separately, each group padded to its own longest caption only.
                Beyond that length states are zero.
        """
        return _by_group(self._below if self.upper else self._through, token_ids, mask, groups)

    def above(self, states: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """Turn a split tower's `features` (B, T, C) into the token states of the last layers (B, T, L, C)."""
        return _by_group(self._above, states.float(), mask, groups)

    def forward(self, texts: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """Return the token states (B, T, d) of token ids (B, T) int64, or of their `features`."""
        states = texts if texts.is_floating_point() else self.features(texts, mask, groups)
        if self.upper:
            states = self.above(states, mask, groups)
        mixed = torch.einsum("btlc,l->btc", states.float(), self.mix.softmax(dim=0))
        return self.projection(self.dropout(mixed))

    def split(self, top_layers: int) -> bool:
        """Split as `Tower.split` does, but below all layers whose states are mixed."""
        return super().split(max(top_layers, len(self.mix) - 1))

    def _through(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        return self._last(self.backbone(token_ids, attention_mask=mask, output_hidden_states=True).hidden_states)

    def _below(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        assert self.upper is not None
        return self.upper.lower(self.backbone, token_ids, attention_mask=mask)

    def _above(self, states: Tensor, mask: Tensor) -> Tensor:
        assert self.upper is not None
        upper = self.upper.model(inputs_embeds=states, attention_mask=mask, output_hidden_states=True)
        return self._last(upper.hidden_states)

    def _last(self, states: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(states[-len(self.mix) :]), dim=2)

    def _sample(self) -> tuple[Tensor, ...]:
        token_ids = torch.arange(1, 9, device=self.mix.device).view(2, 4) % self.backbone.config.vocab_size
        mask = torch.ones_like(token_ids, dtype=torch.bool)
        mask[1, 2:] = False
        return token_ids, mask

    def _shape(self, features: Tensor) -> tuple[int, ...]:
        return tuple(features.shape[2:])


def _by_group(
    compute: Callable[[Tensor, Tensor], Tensor], texts: Tensor, mask: Tensor, groups: Groups | None
) -> Tensor:
    """Apply `compute` to each group of `texts` (B, T, ...) and its mask, without the padding that it does not need."""
    states, first = [], 0
    for end, length in groups or ((len(texts), texts.shape[1]),):
        rows = (slice(first, end), slice(length))
        group = compute(texts[rows], mask[rows].long())
        states.append(pad(group, (0, 0) * (group.ndim - 2) + (0, texts.shape[1] - length)))
        first = end
    return states[0] if len(states) == 1 else torch.cat(states)


def _channels_last(images: Tensor) -> Tensor:
    """Put feature maps (B, C, H, W) into the channels-last layout; return tokens (B, N, C) unchanged."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _as_tokens(output: Tensor) -> Tensor:
    """Reshape a feature map (B, C, H, W) to tokens (B, H·W, C); return tokens unchanged."""
    return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output


def _features(backbone: PreTrainedModel, image_size: int) -> tuple[Tensor, frozenset[str]]:
    """Return the tokens (1, N, C) of a blank image, and the names of the weights that they do not depend on."""
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
