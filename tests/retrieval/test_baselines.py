"""Baselines: each is what its name says, against slow twins, and learns nothing from what it is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from coloured_things import COLOURS, THINGS, encode, world
from torch.nn.functional import normalize

from diptych.retrieval import baselines
from diptych.retrieval.baselines import BASELINES, smoothed_baselines
from diptych.retrieval.metrics import mean_log_rank, metrics_from_ranks
from diptych.retrieval.pooled import Pooled
from diptych.retrieval.ranking import ranks_from_embeddings

Ranked = Callable[[Pooled], tuple[torch.Tensor, torch.Tensor]]


def rsum(ranked: Ranked, test: Pooled) -> float:
    vectors = ranked(test)
    value: float = metrics_from_ranks(*ranks_from_embeddings(*vectors, test.image_of_caption))["rsum"]
    return value


@pytest.fixture(scope="module")
def splits() -> tuple[Pooled, Pooled, Pooled]:
    return world(300, 0), world(60, 1), world(80, 2)


@pytest.fixture(scope="module")
def fitted(splits: tuple[Pooled, Pooled, Pooled]) -> Callable[[str], Ranked]:
    """Returns a baseline that has learned from train and val, once for all tests."""
    return cache(lambda name: BASELINES[name](*splits[:2], encode))


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "prior"])
def test_each_finds_much_more_than_the_prior(
    name: str, fitted: Callable[[str], Ranked], splits: tuple[Pooled, Pooled, Pooled]
) -> None:
    assert rsum(fitted(name), splits[2]) > rsum(fitted("prior"), splits[2]) + 150


def test_the_prior_ranks_alike_whatever_the_query(splits: tuple[Pooled, Pooled, Pooled]) -> None:
    image, text = BASELINES["prior"](*splits[:2], encode)(splits[2])
    scores = image @ text.T
    assert (scores.argsort(dim=1) == scores.argsort(dim=1)[0]).all()
    ranks = ranks_from_embeddings(image, text, splits[2].image_of_caption)
    assert metrics_from_ranks(*ranks)["rsum"] < 120


@pytest.mark.parametrize("name", BASELINES)
def test_the_test_split_teaches_nothing(
    name: str, fitted: Callable[[str], Ranked], splits: tuple[Pooled, Pooled, Pooled]
) -> None:
    """An image and a caption have the same vectors whatever else is in the split."""
    test = splits[2]
    few = Pooled(test.image[:5], test.text[:9], np.clip(test.image_of_caption[:9], 0, 4), test.captions[:9])
    for whole, part in zip(fitted(name)(test), fitted(name)(few), strict=True):
        torch.testing.assert_close(whole[: len(part)], part)


@pytest.mark.parametrize("name", ["cca", "linear_heads", "mlp_heads"])
def test_smoothing_changes_the_learned_heads_alone_and_none_of_it_nothing(
    name: str, fitted: Callable[[str], Ranked], splits: tuple[Pooled, Pooled, Pooled]
) -> None:
    train, val, test = splits
    plain = fitted(name)(test)
    without, smoothed = (smoothed_baselines(share)[name](train, val, encode)(test) for share in (0.0, 0.4))
    assert all(torch.equal(*both) for both in zip(without, plain, strict=True))
    assert all(torch.equal(*both) for both in zip(smoothed, plain, strict=True)) is (name == "cca")


@pytest.mark.parametrize("name", BASELINES)
def test_twice_gives_the_same_bits(
    name: str, fitted: Callable[[str], Ranked], splits: tuple[Pooled, Pooled, Pooled]
) -> None:
    once, again = fitted(name)(splits[2]), BASELINES[name](*splits[:2], encode)(splits[2])
    assert all(torch.equal(*both) for both in zip(once, again, strict=True))


def test_the_setting_that_is_best_on_val_is_taken(monkeypatch: pytest.MonkeyPatch, splits: Any) -> None:
    train, val, test = splits
    found = {}
    for count in baselines.NEIGHBOURS:
        monkeypatch.setattr(baselines, "NEIGHBOURS", (count,))
        vectors = BASELINES["image_only"](train, val, encode)
        ranks = ranks_from_embeddings(*vectors(val), val.image_of_caption).ranks
        found[count] = mean_log_rank(*ranks), vectors(test)[0]
    monkeypatch.undo()
    best = min(found.values(), key=lambda pair: pair[0])[1]
    assert torch.equal(BASELINES["image_only"](train, val, encode)(test)[0], best)


def test_the_nearest_images_lend_the_mean_of_their_captions(splits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "NEIGHBOURS", (2,))
    monkeypatch.setattr(baselines, "ROWS", 3)
    train, val, test = splits
    image, text = BASELINES["image_only"](train, val, encode)(test)
    means = train.image.mean(dim=0), train.text.mean(dim=0)
    for query in (0, 41):
        seen = normalize(test.image[query] - means[0], dim=0)
        cosines = [float(seen @ normalize(row - means[0], dim=0)) for row in train.image]
        lent = []
        for near in sorted(range(len(cosines)), key=lambda one: -cosines[one])[:2]:
            captions = train.text[torch.from_numpy(train.image_of_caption == near)]
            lent.append(normalize(captions.mean(dim=0) - means[1], dim=0))
        torch.testing.assert_close(image[query], normalize(torch.stack(lent).mean(dim=0), dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text[3], normalize(test.text[3] - means[1], dim=0))


def test_captions_are_weighed_by_bm25(splits: Any) -> None:
    train, val, test = splits
    _, weights = BASELINES["words_bm25"](train, val, encode)(test)
    vocabulary = sorted({*THINGS, *COLOURS})
    average = sum(sum(word in vocabulary for word in text.split()) for text in train.captions) / len(train.captions)
    for caption in (0, 7):
        words = test.captions[caption].split()
        length = sum(word in vocabulary for word in words)
        for place, word in enumerate(vocabulary):
            containing = sum(word in text.split() for text in train.captions)
            rarity = math.log(1 + (len(train.captions) - containing + 0.5) / (containing + 0.5))
            times = words.count(word)
            expected = rarity * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / average))
            assert float(weights[caption, place]) == pytest.approx(expected, rel=1e-5)


def test_ridge_regression_equals_its_normal_equations(splits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "RIDGES", (0.1,))
    train, val, test = splits
    image, _ = BASELINES["ridge"](train, val, encode)(test)
    x = (train.image - train.image.mean(dim=0)).numpy().astype(float)
    y = np.stack([train.text[torch.from_numpy(train.image_of_caption == one)].mean(dim=0) for one in range(len(x))])
    y = y - train.text.mean(dim=0).numpy()
    strength = 0.1 * np.trace(x.T @ x / len(x)) / x.shape[1] * len(x)
    weights = np.linalg.inv(x.T @ x + strength * np.eye(x.shape[1])) @ x.T @ y
    mapped = (test.image - train.image.mean(dim=0)).numpy() @ weights
    np.testing.assert_allclose(image, mapped / np.linalg.norm(mapped, axis=1, keepdims=True), rtol=1e-3, atol=1e-4)


def test_canonical_directions_are_uncorrelated_and_their_correlations_those_of_the_definition(
    splits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pairs written out, with next to no regularization, before the vectors are brought to length one."""
    monkeypatch.setattr(baselines, "RIDGES", (1e-9,))
    monkeypatch.setattr(baselines, "POWERS", (0.0,))
    monkeypatch.setattr(baselines, "normalize", lambda rows, dim: rows)
    train = splits[0]
    image, text = BASELINES["cca"](train, train, encode)(train)
    x = image[torch.from_numpy(train.image_of_caption)].double().numpy()
    y = text.double().numpy()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(24), atol=2e-3)
    np.testing.assert_allclose(y.T @ y / len(y), np.eye(24), atol=2e-3)
    correlations = x.T @ y / len(x)
    np.testing.assert_allclose(correlations, np.diag(np.diag(correlations)), atol=2e-3)
    raw = [side.double().numpy() for side in (train.image[torch.from_numpy(train.image_of_caption)], train.text)]
    orthonormal = [np.linalg.qr(side - side.mean(axis=0))[0] for side in raw]
    expected = np.linalg.svd(orthonormal[0].T @ orthonormal[1], compute_uv=False)
    np.testing.assert_allclose(np.diag(correlations), expected, atol=2e-3)
