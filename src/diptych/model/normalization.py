"""Batch normalization over the batches of all processes, so that several processes learn what one would."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.model.gathering import stack_processes, world_size


def synchronize_batch_norms(model: nn.Module) -> None:
    """Make the batch norms of `model` take mean and variance over all processes' batches while they learn."""
    if world_size() > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm
            elif isinstance(module, nn.BatchNorm2d) and hasattr(module, "act") and hasattr(module, "drop"):
                module.__class__ = GlobalBatchNormAct


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalization over all processes on any device; torch's SyncBatchNorm raises an error on CPU tensors."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalize `values` (B, C, H, W); B may differ between processes."""
        if not self.training:
            return super().forward(values)
        # In half precision the difference of a value and the mean would be lost.
        wide = values.float()
        mean, variance, count = _moments(wide)
        if self.track_running_stats:
            self._update_statistics(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (wide * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(values.dtype)

    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)
        self.num_batches_tracked.add_(1)


class GlobalBatchNormAct(GlobalBatchNorm):
    """Batch normalization over all processes in place of timm's, which has dropout and an activation behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, values: Tensor) -> Tensor:
        """Normalize and activate `values` (B, C, H, W)."""
        return self.act(self.drop(super().forward(values)))


def _moments(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance (C,) of `values` (B, C, H, W) float32 over all processes, and the count.

    The variance of the whole is the mean variance of the parts plus the variance of their means. So it is never the
    difference of two large numbers.
    """
    variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
    local = torch.stack([torch.full_like(mean, values.numel() / len(mean)), mean, variance])
    counts, means, variances = stack_processes(local).unbind(dim=1)
    weights = counts / counts.sum(dim=0)
    mean = (weights * means).sum(dim=0)
    variance = (weights * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance, int(counts[:, 0].sum())
