"""The two towers: backbones of transformers, projected to the shared dimension."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad
from transformers import PreTrainedModel

from diptych.errors import DiptychError
from diptych.model.upper import UpperLayers, weights_below

Groups = Sequence[tuple[int, int]]
"""Of captions in the order of their lengths: the row at which each group ends, and its longest caption's tokens."""


class Tower(nn.Module):
    """A backbone of transformers, which learns or stays as it came."""

    backbone: PreTrainedModel
    drops_out: bool
    """Whether the backbone drops anything out while it learns."""
    upper: UpperLayers | None = None
    """Where `features` end and `forward` goes on, if not at the end of the backbone."""
    features: Callable[..., Tensor]
    above: Callable[..., Tensor]
    """Of a tower that was split: from its `features` to those that it has when it is whole."""
    feature_shape: tuple[int, ...]
    """Of the features of an image or of a token."""
    whole_shape: tuple[int, ...]
    """The same of a tower that is not split."""
    _sample: Callable[[], tuple[Tensor, ...]]
    """Makes something to call the tower with."""
    _shape: Callable[[Tensor], tuple[int, ...]]
    """Takes the `feature_shape` from features."""
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
        staying = self._idle if top_layers is None else self._idle | weights_below(self.backbone, top_layers)
        for name, parameter in self.backbone.named_parameters():
            # Several processes would wait for the gradient of a weight that has none.
            parameter.requires_grad_(learning and name not in staying)
        self._statistics_frozen = statistics_frozen
        self.train(self.training)

    def split(self, top_layers: int) -> bool:
        """Has `features` end below the last `top_layers` layers, and `forward` go on from there.

        False where the architecture does not come apart like this; then all stays as it was.
        """
        training, sample = self.training, self._sample()
        self.eval()
        with torch.no_grad():
            whole = self(*sample)
            try:
                self.upper = UpperLayers(self.backbone, top_layers)
                features = self.features(*sample)
                same = torch.allclose(self(features, *sample[1:]), whole, rtol=1e-3, atol=1e-4)
            except Exception:  # whatever an architecture says of states in the place of its input
                same = False
        if same:
            self.feature_shape = self._shape(features)
        else:
            self.upper = None
        self.train(training)
        return same

    def join(self) -> None:
        """Has `features` end with the backbone again, if it was split."""
        self.upper = None
        self.feature_shape = self.whole_shape

    def features_sha256(self, *, whole: bool = False) -> str:
        """Of the weights and configuration that `features` depend on; or, with `whole`, what `above` makes of them."""
        digest = hashlib.sha256(json.dumps(self.backbone.config.to_diff_dict(), sort_keys=True, default=str).encode())
        digest.update(str(self.upper and self.upper.count).encode())
        parts = self.upper.below if self.upper and not whole else [self.backbone]
        tensors = itertools.chain(*(part.state_dict().items() for part in parts), self.named_buffers(recurse=False))
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Self:
        """As ever, but what is frozen stays in evaluation mode, and so does what drops out if nothing is to."""
        super().train(mode)
        parts = [self.backbone] if self.upper is None else [self.backbone, self.upper.model.train(mode)]
        if not mode:
            return self
        if not self.drops_out:
            for part in parts:
                part.eval()
        for module in itertools.chain(*(part.modules() for part in parts)):
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
        self.image_size = image_size
        self.grid_size = features.shape[1]
        self.has_class_token = math.isqrt(self.grid_size) ** 2 != self.grid_size
        self.feature_shape = self.whole_shape = tuple(features.shape[1:])
        self.dropout = ChannelDropout(channel_dropout)
        self.projection = nn.Sequential(nn.Linear(features.shape[2], dim), nn.LayerNorm(dim))

    def features(self, pixels: Tensor) -> Tensor:
        """`pixels` (B, S, S, 3) uint8 RGB to the backbone's tokens (B, N, C), a class token first if there is one.

        Of a tower that was split, to the states (B, ...) that its upper layers are given.
        """
        normalized = _channels_last(pixels.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        if self.upper:
            return self.upper.lower(self.backbone, normalized)
        return _as_tokens(self.backbone(normalized).last_hidden_state)

    def above(self, features: Tensor) -> Tensor:
        """Of a tower that was split: the states (B, ...) below its upper layers to its tokens (B, N, C)."""
        assert self.upper is not None
        return _as_tokens(self.upper.model(_channels_last(features.float())).last_hidden_state)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) uint8, or what `features` made of them, to grid tokens (B, N, d)."""
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
        self.feature_shape = self.whole_shape = (layers, backbone.config.hidden_size)
        self.dropout = ChannelDropout(channel_dropout)
        self.projection = nn.Sequential(nn.Linear(backbone.config.hidden_size, dim), nn.LayerNorm(dim))

    def features(self, token_ids: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """`token_ids` (B, T) int64 and `mask` (B, T) bool, True where there is a token, to the token states of the last
        layers (B, T, L, C); of a tower that was split, to the states (B, T, C) that its upper layers are given.

        `groups` says how far down (rows) the captions have at most how many tokens: each group is computed by itself,
        without the padding that only longer captions need; beyond it states are zero.
        """
        return _by_group(self._below if self.upper else self._through, token_ids, mask, groups)

    def above(self, states: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """Of a tower that was split: the states (B, T, C) below its upper layers to those of its last (B, T, L, C)."""
        return _by_group(self._above, states.float(), mask, groups)

    def forward(self, texts: Tensor, mask: Tensor, groups: Groups | None = None) -> Tensor:
        """Token ids (B, T) int64, or what `features` made of them, to token states (B, T, d)."""
        states = texts if texts.is_floating_point() else self.features(texts, mask, groups)
        if self.upper:
            states = self.above(states, mask, groups)
        mixed = torch.einsum("btlc,l->btc", states.float(), self.mix.softmax(dim=0))
        return self.projection(self.dropout(mixed))

    def split(self, top_layers: int) -> bool:
        """As ever, but no lower than the layers that are mixed."""
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
    """`compute` of each group of `texts` (B, T, ...) with its mask, without the padding that it does not need."""
    states, first = [], 0
    for end, length in groups or ((len(texts), texts.shape[1]),):
        rows = (slice(first, end), slice(length))
        group = compute(texts[rows], mask[rows].long())
        states.append(pad(group, (0, 0) * (group.ndim - 2) + (0, texts.shape[1] - length)))
        first = end
    return states[0] if len(states) == 1 else torch.cat(states)


def _channels_last(images: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) as convolutions want them; tokens (B, N, C) as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


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
