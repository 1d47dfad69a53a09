"""Linear algebra on pooled features, compared with numpy's on all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coloured_things import world

from diptych.retrieval import pooled
from diptych.retrieval.pooled import caption_means, centred_directions, gram, regularized, ridge_maps


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 2.0


def test_an_image_has_the_mean_of_its_captions() -> None:
    split = world(20, 0)
    means = caption_means(split, split.text)
    for image in range(20):
        expected = split.text[np.flatnonzero(split.image_of_caption == image)].mean(dim=0)
        torch.testing.assert_close(means[image], expected)


def test_directions_begin_at_the_mean_of_train_and_have_unit_length() -> None:
    features, train = rows(5, 4, 0), rows(9, 4, 1)
    directions = centred_directions(features, train)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(5))
    centred = features - train.mean(dim=0)
    torch.testing.assert_close(directions * centred.norm(dim=1, keepdim=True), centred)


def test_products_in_blocks_are_those_of_all_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "ROWS", 4)
    left, right = rows(11, 3, 0), rows(11, 5, 1)
    product = gram(left, right)
    assert product.dtype == torch.float64
    torch.testing.assert_close(product, left.double().T @ right.double())


def test_ridge_regression_solves_its_normal_equations() -> None:
    features, target = rows(30, 4, 0), rows(30, 2, 1)
    maps = ridge_maps(features, target, [0.01, 1.0])
    assert list(maps) == [0.01, 1.0]
    centred = (features - features.mean(dim=0)).double().numpy()
    covariance = centred.T @ centred / 30
    for strength, weights in maps.items():
        penalty = strength * np.trace(covariance) / 4 * np.eye(4)
        expected = np.linalg.solve(covariance + penalty, centred.T @ target.double().numpy() / 30)
        np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_features_that_do_not_vary_can_still_be_solved_for() -> None:
    assert torch.linalg.matrix_rank(regularized(torch.zeros(3, 3, dtype=torch.float64), 1.0)) == 3
