"""Baselines: each is what its name says, against slow twins, and learns nothing from what it is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.errors import DiptychError
from diptych.retrieval import baselines
from diptych.retrieval.baselines import BASELINES, Pooled, load_ranks, save_ranks
from diptych.retrieval.metrics import metrics_from_ranks, ranks_from_embeddings

THINGS = ("dog", "cat", "horse", "car", "boat", "tree", "house", "ball", "child", "bird")
COLOURS = ("red", "green", "blue", "white")


def world(images: int, seed: int, noise: float = 0.3) -> Pooled:
    """Images of a coloured thing or two, each with one to three captions that tell of them, and features of both."""
    random = np.random.default_rng(seed)
    shown = [(random.choice(THINGS, 2, replace=False), random.choice(COLOURS, 2)) for _ in range(images)]
    own = np.repeat(np.arange(images), random.integers(1, 4, images))
    captions = [f"a {shown[i][1][0]} {shown[i][0][0]} and the {shown[i][1][1]} {shown[i][0][1]}" for i in own]
    return Pooled(
        _features([f"{a} {b} {c} {d}" for (a, b), (c, d) in shown], random, noise, side=0),
        _features(captions, random, noise, side=1),
        own,
        captions,
    )


def _features(texts: Sequence[str], random: np.random.Generator, noise: float, side: int) -> Tensor:
    """A random direction for each word, another on either side."""
    words = (*THINGS, *COLOURS, "a", "and", "the")
    basis = np.random.default_rng([7, side]).normal(size=(len(words), 24))
    rows = [sum(basis[words.index(word)] for word in text.split()) + 2.0 for text in texts]
    return torch.tensor(np.array(rows) + noise * random.normal(size=(len(texts), 24)), dtype=torch.float32)


def encode(sentences: Sequence[str]) -> Tensor:
    return _features(sentences, np.random.default_rng(0), 0.0, side=1)


def rsum(name: str, train: Pooled, val: Pooled, test: Pooled) -> float:
    vectors = BASELINES[name](train, val, encode)(test)
    value: float = metrics_from_ranks(*ranks_from_embeddings(*vectors, test.image_of_caption))["rsum"]
    return value


@pytest.fixture(scope="module")
def splits() -> tuple[Pooled, Pooled, Pooled]:
    return world(300, 0), world(60, 1), world(80, 2)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "prior"])
def test_each_finds_much_more_than_the_prior(name: str, splits: tuple[Pooled, Pooled, Pooled]) -> None:
    assert rsum(name, *splits) > rsum("prior", *splits) + 150


def test_the_prior_ranks_alike_whatever_the_query(splits: tuple[Pooled, Pooled, Pooled]) -> None:
    image, text = BASELINES["prior"](*splits[:2], encode)(splits[2])
    scores = image @ text.T
    assert (scores.argsort(dim=1) == scores.argsort(dim=1)[0]).all()
    ranks = ranks_from_embeddings(image, text, splits[2].image_of_caption)
    assert metrics_from_ranks(*ranks)["rsum"] < 120


@pytest.mark.parametrize("name", BASELINES)
def test_the_test_split_teaches_nothing(name: str, splits: tuple[Pooled, Pooled, Pooled]) -> None:
    """An image and a caption have the same vectors whatever else is in the split."""
    fitted = BASELINES[name](*splits[:2], encode)
    test = splits[2]
    few = Pooled(test.image[:5], test.text[:9], np.clip(test.image_of_caption[:9], 0, 4), test.captions[:9])
    for whole, part in zip(fitted(test), fitted(few), strict=True):
        torch.testing.assert_close(whole[: len(part)], part)


@pytest.mark.parametrize("name", BASELINES)
def test_twice_gives_the_same_bits(name: str, splits: tuple[Pooled, Pooled, Pooled]) -> None:
    once, again = (BASELINES[name](*splits[:2], encode)(splits[2]) for _ in range(2))
    assert all(torch.equal(*both) for both in zip(once, again, strict=True))


def test_the_setting_that_is_best_on_val_is_taken(monkeypatch: pytest.MonkeyPatch, splits: Any) -> None:
    train, val, test = splits
    found = {}
    for count in baselines.NEIGHBOURS:
        monkeypatch.setattr(baselines, "NEIGHBOURS", (count,))
        vectors = BASELINES["image_only"](train, val, encode)
        ranks = ranks_from_embeddings(*vectors(val), val.image_of_caption).ranks
        found[count] = baselines.mean_log_rank(*ranks), vectors(test)[0]
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


def test_words_that_are_predicted_are_those_of_the_captions(splits: Any) -> None:
    train, _, test = splits
    words = baselines._Words(train)
    sentences = words.sentences(words.predicted(test.image, 0.01, 4))
    right = total = 0
    for image, sentence in enumerate(sentences):
        caption = test.captions[int(np.argmax(test.image_of_caption == image))]
        right += len(set(sentence.split()) & set(caption.split()))
        total += len(sentence.split())
    assert right / total > 0.8


def test_captions_without_any_words_are_no_obstacle() -> None:
    signs = world(20, 0)._replace(captions=["!?", "…"] * 30)
    signs = signs._replace(captions=signs.captions[: len(signs.text)])
    vectors = BASELINES["words_bm25"](signs, signs, encode)(signs)
    assert all(torch.isfinite(side).all() for side in vectors)


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


def test_what_was_found_is_read_as_it_was_written(tmp_path: Path, splits: Any) -> None:
    test = splits[2]
    ranks = {"ridge": ranks_from_embeddings(*BASELINES["ridge"](*splits[:2], encode)(test), test.image_of_caption)}
    save_ranks(tmp_path / "a.npz", ranks)
    save_ranks(tmp_path / "b.npz", ranks)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = load_ranks(tmp_path / "a.npz", len(test.image), len(test.text))
    assert list(read) == ["ridge"]
    for both, expected in zip(read["ridge"], ranks["ridge"], strict=True):
        assert all(np.array_equal(*values) for values in zip(both, expected, strict=True))
    save_ranks(tmp_path / "none.npz", {})
    assert load_ranks(tmp_path / "none.npz", 1, 1) == {}
    with pytest.raises(DiptychError, match="holds ridge of another test split"):
        load_ranks(tmp_path / "a.npz", len(test.image), len(test.text) - 1)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_missing_or_damaged_says_what_to_run(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "baselines.npz").write_bytes(content)
    with pytest.raises(DiptychError, match=r"baselines.npz is missing or damaged .*dvc repro baselines"):
        load_ranks(tmp_path / "baselines.npz", 1, 1)
