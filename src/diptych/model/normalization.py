"""Batch normalization over the batches of all processes, so that several processes learn what one would."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.model.gathering import gather_rows, world_size


def synchronize_batch_norms(model: nn.Module) -> None:
    """Has the batch norms of `model` take mean and variance over all processes' batches while they learn."""
    if world_size() > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm
            elif isinstance(module, nn.BatchNorm2d) and hasattr(module, "act") and hasattr(module, "drop"):
                module.__class__ = GlobalBatchNormAct


class GlobalBatchNorm(nn.BatchNorm2d):
    """Torch's SyncBatchNorm does the same, but on GPUs alone."""

    def forward(self, values: Tensor) -> Tensor:
        """`values` (B, C, H, W); B may differ between processes."""
        if not self.training:
            return super().forward(values)
        # In half precision the difference of a value and the mean would be lost.
        wide = values.float()
        mean, variance, count = _moments(wide)
        if self.track_running_stats:
            self._take_up(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (wide * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(values.dtype)

    def _take_up(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        self.num_batches_tracked.add_(1)


class GlobalBatchNormAct(GlobalBatchNorm):
    """In the place of timm's batch norm with the activation behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, values: Tensor) -> Tensor:
        """`values` (B, C, H, W)."""
        return self.act(self.drop(super().forward(values)))


def _moments(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance (C,) of `values` (B, C, H, W) float32 over all processes, and the count behind each.

    The variance of the whole is the mean variance of the parts plus the variance of their means: never the difference
    of two large numbers.
    """
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    own = torch.stack([torch.full_like(mean, values.numel() / len(mean)), mean, variance])
    counts, means, variances = gather_rows(own.unsqueeze(0)).unbind(dim=1)
    weights = counts / counts.sum(dim=0)
    mean = (weights * means).sum(dim=0)
    variance = (weights * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance, int(counts[:, 0].sum())
