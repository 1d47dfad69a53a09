"""Pooling: masked positions never count, and each kind is what its name says."""

from __future__ import annotations

import pytest
import torch

from diptych.config import Pooling
from diptych.model.pooling import POOLINGS, GeneralizedPooling


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))


MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("kind", POOLINGS)
def test_masked_positions_never_count(kind: Pooling, tokens: torch.Tensor) -> None:
    pooling = POOLINGS[kind]()
    noisy = tokens.masked_fill(~MASK.unsqueeze(-1), 1e4)
    assert torch.allclose(pooling(tokens, MASK), pooling(noisy, MASK))


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_further_changes_nothing(kind: Pooling, tokens: torch.Tensor) -> None:
    pooling = POOLINGS[kind]()
    longer = torch.nn.functional.pad(tokens, (0, 0, 0, 5), value=9.0)
    longer_mask = torch.nn.functional.pad(MASK, (0, 5))
    assert torch.allclose(pooling(tokens, MASK), pooling(longer, longer_mask), atol=1e-6)


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_row_does_not_depend_on_the_other_rows(kind: Pooling, tokens: torch.Tensor) -> None:
    pooling = POOLINGS[kind]()
    assert torch.allclose(pooling(tokens, MASK)[1:2], pooling(tokens[1:2], MASK[1:2]), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cls", lambda own: own[0]),
        ("mean", lambda own: own.mean(dim=0)),
        ("max", lambda own: own.max(dim=0).values),
    ],
)
def test_pooling_equals_the_slow_formula_row_by_row(kind, expected, tokens: torch.Tensor) -> None:
    pooled = POOLINGS[kind]()(tokens, MASK)
    for row, own, mask in zip(pooled, tokens, MASK, strict=True):
        assert torch.allclose(row, expected(own[mask]))


def test_generalized_pooling_sums_sorted_values_by_weights_that_sum_to_one(tokens: torch.Tensor) -> None:
    pooling = GeneralizedPooling()
    weights = pooling.weights(MASK.sum(dim=1), 6)
    assert torch.allclose(weights.sum(dim=1), torch.ones(3))
    for row, own, mask, weight in zip(pooling(tokens, MASK), tokens, MASK, weights, strict=True):
        ranked = own[mask].sort(dim=0, descending=True).values
        assert torch.allclose(row, (weight[: mask.sum()].unsqueeze(1) * ranked).sum(dim=0), atol=1e-6)


def test_generalized_pooling_learns(tokens: torch.Tensor) -> None:
    pooling = GeneralizedPooling()
    pooling(tokens, MASK).sum().backward()
    assert all(parameter.grad is not None for parameter in pooling.parameters())
