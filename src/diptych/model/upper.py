"""The upper layers of a backbone, which learn, apart from the lower ones, which stay: what these say of an image or a
caption never changes, so it is computed once.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from diptych.errors import DiptychError


class UpperLayers:
    """The last layers of a backbone, and all that it computes after them.

    `model` is the backbone with every part below replaced by one that hands on what it is given: fed with the states
    that come out of the lower layers, it computes what the backbone would. Its weights are the backbone's own.

    Args:
        backbone: on its device already.
        count: how many layers; of a CNN, stages.

    Raises:
        DiptychError: the backbone has fewer.
    """

    def __init__(self, backbone: PreTrainedModel, count: int) -> None:
        self.count = count
        self._first = _layers(backbone, count)[-count]
        weights = {id(backbone.get_parameter(name)) for name in weights_below(backbone, count)}
        self.below = _whole_parts(backbone, weights)
        shared = itertools.chain(backbone.parameters(), backbone.buffers())
        memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
        memo |= {id(part): _HandingOn(part) for part in self.below}
        self.model: PreTrainedModel = copy.deepcopy(backbone, memo)

    def lower(self, backbone: PreTrainedModel, *args: Any, **kwargs: Any) -> Tensor:
        """What the first of the upper layers is given when the backbone is called like this."""

        def stop(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _ReachedError(given[0] if given else named["hidden_states"])

        with self._first.register_forward_pre_hook(stop, with_kwargs=True):
            try:
                backbone(*args, **kwargs)
            except _ReachedError as reached:
                return reached.states
        raise AssertionError("the backbone never calls its own layers")


class _HandingOn(nn.Module):
    """In the place of a part below: gives the states that it is given.

    All else that a backbone may ask of the part, such as the dtype of its weights, is the part's own.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        # Not as a submodule: its weights are none of the upper layers'.
        self.__dict__["part"] = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "part" not in self.__dict__:
                raise
            return getattr(self.__dict__["part"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The first of what is given that can be states; before them embeddings of text have token ids, or None."""
        return next(
            value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and torch.is_floating_point(value)
        )


class _ReachedError(Exception):
    """Ends a forward pass where the upper layers begin."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def weights_below(backbone: nn.Module, count: int) -> set[str]:
    """Names of the weights that come before the last `count` layers.

    Raises:
        DiptychError: it has fewer layers.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    first = names[id(next(_layers(backbone, count)[-count].parameters()))]
    return set(itertools.takewhile(lambda name: name != first, names.values()))


def _layers(backbone: nn.Module, count: int) -> nn.ModuleList | nn.Sequential:
    """The list of layers that holds most weights: it holds the others, if there are any within it."""
    lists = [module for module in backbone.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    layers = max(lists, key=_size, default=nn.ModuleList())
    if count > len(layers):
        raise DiptychError(
            f"params.yaml: {count} top layers are to learn, but {type(backbone).__name__} has only {len(layers)}."
        )
    return layers


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _whole_parts(module: nn.Module, weights: set[int]) -> list[nn.Module]:
    """The largest modules within `module` that have weights, and none but these."""
    parts = []
    for child in module.children():
        own = {id(parameter) for parameter in child.parameters()}
        if own and own <= weights:
            parts.append(child)
        else:
            parts.extend(_whole_parts(child, weights))
    return parts
