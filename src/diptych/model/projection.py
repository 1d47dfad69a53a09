"""Projection head between a tower's pooled vector and a self-supervised loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize


class ProjectionHead(nn.Module):
    """Projection head of SimCLR: one hidden layer as wide as its input, then the space of the loss.

    Chen et al. 2020, section 2.1. Without it the loss would remove from the features what the views do not share
    (section 4.2). Only training needs it: the saved model does not contain it.

    Args:
        dim: dimension of the features.
        projection_dim: dimension of the space in which views are compared; 128 in the paper.
    """

    def __init__(self, dim: int, projection_dim: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Project `features` (B, `dim`) to (B, `projection_dim`) float32, of unit length."""
        return normalize(self.layers(features).float(), dim=-1)
