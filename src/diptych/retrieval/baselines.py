"""Baselines: retrieval by images alone, by words alone, and by frozen towers joined in closed form or by learned heads.

No tower learns. Each baseline is fitted to the train split, and its settings are chosen on val by the mean log rank.
The inner products of its vectors rank captions for images and images for captions, as those of the model do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.retrieval.learned_heads import learned_heads, linear_layers, mlp_layers
from diptych.retrieval.metrics import mean_log_rank
from diptych.retrieval.pooled import (
    ROWS,
    Baseline,
    Encode,
    Pooled,
    caption_means,
    centred_directions,
    gram,
    regularized,
    ridge_maps,
)
from diptych.retrieval.predicted_words import WordPredictor
from diptych.retrieval.ranking import ranks_from_embeddings

NEIGHBOURS = (1, 3, 10, 30, 100)
"""Numbers of nearest training images to choose from."""
RIDGES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Strengths of regularization to choose from, as multiples of the mean variance of a feature."""
WORDS = (5, 10, 20, 40)
"""Numbers of predicted words to choose from."""
POWERS = (0.0, 1.0, 2.0, 4.0)
"""Powers of the correlations to choose from, as weights of the canonical directions.

Gong et al., IJCV 2014, section 3.1.
"""
BM25_K1, BM25_B = 1.2, 0.75


def prior(train: Pooled, _val: Pooled, _encode: Encode) -> Baseline:
    """Rank by similarity to the training mean, whatever the query: the floor that is not chance."""
    image, text = (normalize(side.mean(dim=0), dim=0) for side in (train.image, train.text))

    def vectors(split: Pooled) -> tuple[Tensor, Tensor]:
        typical_image, typical_text = normalize(split.image, dim=1) @ image, normalize(split.text, dim=1) @ text
        ones = torch.ones(len(typical_image)), torch.ones(len(typical_text))
        return torch.stack([typical_image, ones[0]], dim=1), torch.stack([ones[1], typical_text], dim=1)

    return vectors


def image_only(train: Pooled, val: Pooled, _encode: Encode) -> Baseline:
    """Give an image the captions of the nearest training images, and compare these with captions as texts."""
    train_captions = centred_directions(caption_means(train, train.text), train.text)
    train_images = centred_directions(train.image, train.image)

    def with_neighbours(count: int) -> Baseline:
        def vectors(split: Pooled) -> tuple[Tensor, Tensor]:
            blocks = []
            for images in centred_directions(split.image, train.image).split(ROWS):
                nearest = (images @ train_images.T).topk(min(count, len(train_images)), dim=1).indices
                blocks.append(train_captions[nearest].mean(dim=1))
            return normalize(torch.cat(blocks), dim=1), centred_directions(split.text, train.text)

        return vectors

    return _best((with_neighbours(count) for count in NEIGHBOURS), val)


def words_bm25(train: Pooled, val: Pooled, _encode: Encode) -> Baseline:
    """Predict words for an image, and rank captions by BM25 (Robertson and Zaragoza 2009, section 3.2)."""
    words = WordPredictor(train, RIDGES)
    captions = len(train.captions)
    rarity = torch.log1p((captions - words.containing + 0.5) / (words.containing + 0.5))

    def with_words(strength: float, count: int) -> Baseline:
        def vectors(split: Pooled) -> tuple[Tensor, Tensor]:
            counts = words.counts(split.captions)
            saturation = BM25_K1 * (1 - BM25_B + BM25_B * counts.sum(dim=1, keepdim=True) / words.mean_length)
            weights = rarity * counts * (BM25_K1 + 1) / (counts + saturation)
            return words.predicted(split.image, strength, count), weights

        return vectors

    return _best((with_words(*setting) for setting in product(RIDGES, WORDS)), val)


def words_text_tower(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """Predict words for an image, and encode them by the text tower as if they were a caption."""
    words = WordPredictor(train, RIDGES)

    def with_words(strength: float, count: int) -> Baseline:
        def vectors(split: Pooled) -> tuple[Tensor, Tensor]:
            sentences = words.sentences(words.predicted(split.image, strength, count))
            return centred_directions(encode(sentences), train.text), centred_directions(split.text, train.text)

        return vectors

    return _best((with_words(*setting) for setting in product(RIDGES, WORDS[:3])), val)


def ridge(train: Pooled, val: Pooled, _encode: Encode) -> Baseline:
    """Fit a ridge regression from the images' features to those of their captions."""
    target = caption_means(train, train.text)
    maps = ridge_maps(train.image, target - train.text.mean(dim=0), RIDGES)

    def with_map(weights: Tensor) -> Baseline:
        return lambda split: (
            normalize((split.image - train.image.mean(dim=0)) @ weights, dim=1),
            centred_directions(split.text, train.text),
        )

    return _best((with_map(weights) for weights in maps.values()), val)


def cca(train: Pooled, val: Pooled, _encode: Encode) -> Baseline:
    """Fit a regularized canonical correlation analysis of images and captions (Hotelling 1936)."""
    captions = torch.from_numpy(np.bincount(train.image_of_caption, minlength=len(train.image)))[:, None]
    total = len(train.text)
    image_mean, text_mean = (train.image * captions).sum(dim=0) / total, train.text.mean(dim=0)
    image, text = train.image - image_mean, train.text - text_mean
    covariances = gram(image, image * captions) / total, gram(text, text) / total
    shared = gram(image, caption_means(train, text) * captions) / total

    def with_setting(directions: list[Tensor], correlations: Tensor, power: float) -> Baseline:
        of_image, of_text = ((side * correlations**power).float() for side in directions)
        return lambda split: (
            normalize((split.image - image_mean) @ of_image, dim=1),
            normalize((split.text - text_mean) @ of_text, dim=1),
        )

    return _best(
        (
            with_setting(*canonical, power)
            for canonical in (_canonical_directions(covariances, shared, strength) for strength in RIDGES)
            for power in POWERS
        ),
        val,
    )


def linear_heads(train: Pooled, val: Pooled, _encode: Encode, smoothing: float = 0.0) -> Baseline:
    """Learn a linear map of each side into one space by the contrastive loss with this smoothing."""
    return _best(learned_heads(train, linear_layers, smoothing), val)


def mlp_heads(train: Pooled, val: Pooled, _encode: Encode, smoothing: float = 0.0) -> Baseline:
    """Learn an MLP of each side into one space by the contrastive loss with this smoothing."""
    return _best(learned_heads(train, mlp_layers, smoothing), val)


Fit = Callable[[Pooled, Pooled, Encode], Baseline]
"""Function from a train split, a val split and the text tower's encoding of sentences to a fitted baseline."""
BASELINES: dict[str, Fit] = {
    fit.__name__: fit for fit in (prior, image_only, words_bm25, words_text_tower, ridge, cca, linear_heads, mlp_heads)
}
"""Baselines by name."""


def smoothed_baselines(smoothing: float) -> dict[str, Fit]:
    """Return the baselines by name, with the learned heads trained on targets smoothed like the model's.

    Otherwise a gain of the smoothing would count as one of the towers that learn.
    """
    return BASELINES | {fit.__name__: partial(fit, smoothing=smoothing) for fit in (linear_heads, mlp_heads)}


def _best(candidates: Iterable[Baseline], val: Pooled) -> Baseline:
    """Return the candidate with the lowest mean log rank on val, of equal ones the first."""

    def on_val(candidate: Baseline) -> float:
        return mean_log_rank(*ranks_from_embeddings(*candidate(val), val.image_of_caption).ranks)

    return min(candidates, key=on_val)


def _canonical_directions(
    covariances: tuple[Tensor, Tensor], shared: Tensor, strength: float
) -> tuple[list[Tensor], Tensor]:
    """Return the canonical directions of both sides, (C, K) and (D, K), and their correlations (K,), float64.

    Args:
        covariances: of the images' features (C, C) and of the captions' (D, D).
        shared: the covariance (C, D) between both.
        strength: the strength of regularization.
    """
    roots = [torch.linalg.cholesky(regularized(covariance, strength)) for covariance in covariances]
    cross = torch.linalg.solve_triangular(roots[0], shared, upper=False)
    cross = torch.linalg.solve_triangular(roots[1], cross.T, upper=False).T
    left, correlations, right = torch.linalg.svd(cross, full_matrices=False)
    directions = [
        torch.linalg.solve_triangular(root.T, side, upper=True)
        for root, side in zip(roots, (left, right.T), strict=True)
    ]
    return directions, correlations
