"""The head between a tower's pooled vector and a self-supervised loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize


class ProjectionHead(nn.Module):
    """SimCLR's projection: one hidden layer as wide as its input, then the loss's space.

    Chen et al. 2020, section 2.1; without it the loss would take from the features what the views do not share
    (section 4.2). Training alone needs it: it is no part of the model that retrieves.

    Args:
        dim: of the features.
        projection_dim: of the space in which views are compared; 128 in the paper.
    """

    def __init__(self, dim: int, projection_dim: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection_dim))

    def forward(self, features: Tensor) -> Tensor:
        """`features` (B, `dim`) to (B, `projection_dim`) float32, of length one."""
        return normalize(self.layers(features).float(), dim=-1)
