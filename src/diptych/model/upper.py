"""Upper layers of a backbone, which are trained, separated from its lower layers, which stay frozen.

The output of the lower layers never changes, so it is computed once for each image and caption.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diptych.errors import DiptychError

if TYPE_CHECKING:
    from diptych.model.lean_transformers import PreTrainedModel


class UpperLayers:
    """The last layers of a backbone, and everything that it computes after them.

    `model` is a copy of the backbone that shares its weights. In it, each part below the upper layers is replaced by
    one that passes its input on. Given the output states of the lower layers, `model` returns what the backbone would.

    Args:
        backbone: on its final device.
        count: the number of layers; for a CNN, of stages.

    Raises:
        DiptychError: the backbone has fewer layers.
    """

    def __init__(self, backbone: PreTrainedModel, count: int) -> None:
        self.count = count
        self._first = _layers(backbone, count)[-count]
        frozen = {id(backbone.get_parameter(name)) for name in weights_below(backbone, count)}
        self.below = _largest_parts(backbone, frozen)
        self.model = _copy_without(backbone, self.below)

    def lower(self, backbone: PreTrainedModel, *args: Any, **kwargs: Any) -> Tensor:
        """Return the input of the first upper layer when `backbone` is called with these arguments."""

        def stop(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _ReachedError(args[0] if args else kwargs["hidden_states"])

        with self._first.register_forward_pre_hook(stop, with_kwargs=True):
            try:
                backbone(*args, **kwargs)
            except _ReachedError as reached:
                return reached.states
        raise AssertionError("the backbone never calls its own layers")


class _PassThrough(nn.Module):
    """Stand-in for a lower part: returns the states that it is given.

    Any other attribute that a backbone may read, such as the dtype of the weights, is that of the part.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        # A submodule would add the part's weights to those of the upper layers.
        self.__dict__["part"] = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "part" not in self.__dict__:
                raise
            return getattr(self.__dict__["part"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first floating-point tensor; text embeddings are called with token ids, or None, before it."""
        values = (*args, *kwargs.values())
        return next(value for value in values if torch.is_tensor(value) and torch.is_floating_point(value))


class _ReachedError(Exception):
    """Signal that ends a forward pass at the first upper layer."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def weights_below(backbone: nn.Module, count: int) -> set[str]:
    """Return the names of the weights that come before the last `count` layers.

    Raises:
        DiptychError: the backbone has fewer layers.
    """
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    first = names[id(next(_layers(backbone, count)[-count].parameters()))]
    return set(itertools.takewhile(lambda name: name != first, names.values()))


def _layers(backbone: nn.Module, count: int) -> nn.ModuleList | nn.Sequential:
    """Return the list with the most weights: where lists are nested, the outermost, whose items are the layers."""
    lists = [module for module in backbone.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    layers = max(lists, key=_size, default=nn.ModuleList())
    if count > len(layers):
        raise DiptychError(
            f"params.yaml: {count} top layers are to learn, but {type(backbone).__name__} has only {len(layers)}."
        )
    return layers


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _largest_parts(module: nn.Module, weights: set[int]) -> list[nn.Module]:
    """Return the largest modules within `module` that have weights, all of them among `weights` (by id)."""
    parts = []
    for child in module.children():
        held = {id(parameter) for parameter in child.parameters()}
        if held and held <= weights:
            parts.append(child)
        else:
            parts.extend(_largest_parts(child, weights))
    return parts


def _copy_without(backbone: PreTrainedModel, parts: list[nn.Module]) -> PreTrainedModel:
    """Copy `backbone` with `parts` passing their input on; weights and buffers are shared, not copied."""
    shared = itertools.chain(backbone.parameters(), backbone.buffers())
    # deepcopy takes what the memo holds under an object's id instead of copying the object.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    memo |= {id(part): _PassThrough(part) for part in parts}
    return copy.deepcopy(backbone, memo)
