"""Which of torch's kernels learn fastest, where torch's own choice is made for something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def can_ask(tensor: Tensor) -> bool:
    """Whether the host may ask for what `tensor` holds. A GPU works through a queue whose end it would wait for, and
    then stand idle until the next work comes: there, padding is computed rather than looked for.
    """
    return tensor.device.type == "cpu"


def choose_attention(device: torch.device) -> None:
    """Leaves cuDNN's attention out of the choice: it makes a plan for each new shape, in 6 ms of the host's time, and
    hardly two batches of captions have the same shape.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def learning_kernels(device: torch.device) -> Iterator[None]:
    """For the forward pass of a training step; nothing changes on other devices than the CPU.

    Attention is computed as matrix products and a softmax, in half precision where it is given that: over a few dozen
    tokens the gradient of the fused kernel takes five to ten times as long. Convolutions of several groups that learn
    are computed in float32 under autocast too: in bf16 their gradient takes two to eight times as long.
    docs/training.md has the measurements.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    # Named after CUDA, but the CPU's matrix products keep to it as well.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH), _GroupsInFloat32():
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


class _GroupsInFloat32(TorchFunctionMode):
    """Leaves autocast for convolutions of several groups whose weights learn.

    By the weights, since gradient caching runs the same step without gradients before it runs it with them.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and _several_groups_learn(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def _several_groups_learn(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Of the arguments of `torch.conv2d`."""
    return groups > 1 and weight.requires_grad
