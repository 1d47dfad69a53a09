"""The projection head: what the self-supervised loss compares."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize

from diptych.model.projection import ProjectionHead


def test_a_projection_is_the_two_layers_of_simclr_of_length_one() -> None:
    head, features = ProjectionHead(6, 4), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    first, _, last = head.layers
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    assert torch.allclose(head(features), normalize(hidden @ last.weight.T + last.bias, dim=1), atol=1e-6)


def test_a_projection_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        projected = ProjectionHead(6, 4)(torch.randn(3, 6))
    assert projected.dtype == torch.float32
    assert torch.allclose(projected.norm(dim=1), torch.ones(3))
