"""Choice of torch's kernels for training, where torch's default is slower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def can_ask(tensor: Tensor) -> bool:
    """Return whether the host can read `tensor` without waiting: True on a CPU.

    Reading from a GPU waits for all queued work, after which the GPU idles until new work comes. So on a GPU padding is
    computed instead of being searched for and skipped.
    """
    return tensor.device.type == "cpu"


def choose_attention(device: torch.device) -> None:
    """Disable cuDNN's attention on a GPU.

    It plans each new shape for 6 ms on the host, and hardly two batches of captions have the same shape.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def learning_kernels(device: torch.device) -> Iterator[None]:
    """Use the fastest kernels for the forward pass of a training step; on other devices than a CPU, change nothing.

    It belongs within autocast, where there is any. Attention is computed as matrix products and a softmax, in half
    precision if its inputs are. The gradient of the fused kernel takes five to ten times as long over a few dozen
    tokens. Grouped convolutions that are trained are computed in float32 even under autocast: in bf16 their gradient
    takes two to eight times as long. docs/training.md has the measurements.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    # The name says CUDA, but the setting holds for the CPU's matrix products as well.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        # Seeing each operation costs time, which without autocast is for nothing.
        groups = _GroupsInFloat32() if torch.is_autocast_enabled("cpu") else nullcontext()
        with sdpa_kernel(SDPBackend.MATH), groups:
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


class _GroupsInFloat32(TorchFunctionMode):
    """Mode that disables autocast for grouped convolutions whose weights are trained.

    The weights decide, not the gradient mode: gradient caching first runs the same step without gradients.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and _is_trained_grouped(args, kwargs):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


def _is_trained_grouped(args: Any, kwargs: dict[str, Any]) -> bool:
    """Tell from the arguments of `torch.conv2d` whether it has several groups and trained weights."""
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    return bool(groups > 1 and weight.requires_grad)
