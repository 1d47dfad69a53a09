"""Ranks and recall of image-text retrieval, both ways, with pessimistic ties.

COCO's protocol: recall@k is the share of queries with at least one right item among the first k; for an image, any of
its captions is right, and its other captions never count against that hit. An item that scores as high as the right one
ranks before it, so a collapsed model, which finds everything equally similar, scores the worst and not by luck.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from diptych.errors import DiptychError

Metrics = dict[str, Any]
"""{"i2t": {"recall@1", "recall@5", "recall@10", "median_rank", "mean_rank"}, "t2i": {the same}, "rsum"}; recalls in
percent.
"""

Ranks = tuple[np.ndarray, np.ndarray]
"""i2t int64 (N,) and t2i int64 (M,), from 1."""

KS = (1, 5, 10)
FOLDED_IMAGES = 5_000
FOLDS = 5

BLOCK_SCORES = 4_000_000
TIE = 4 * torch.finfo(torch.float32).eps
"""Of the largest possible score: one pair computed at two places of a matrix product differs by up to half of that."""


def retrieval_metrics(
    image: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray, image_of_caption: np.ndarray
) -> Metrics:
    """The metrics of a gallery by the inner products of its embeddings; "folds_1k" comes with 5,000 images.

    Args and raises as `ranks_from_embeddings`.
    """
    metrics = metrics_from_ranks(*ranks_from_embeddings(image, text, image_of_caption))
    parts = [
        metrics_from_ranks(*ranks_from_embeddings(image[images], text[captions], own))
        for images, captions, own in folds(image_of_caption, len(image))
    ]
    return {**metrics, "folds_1k": average_metrics(parts)} if parts else metrics


def ranks_from_embeddings(
    image: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray, image_of_caption: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the right items, from 1, by one pass of the matrix product in blocks.

    Scores closer than float32 can tell apart are ties: a product's last bits depend on the place in the matrix.

    Args:
        image: (N, d) floating.
        text: (M, d) floating.
        image_of_caption: (M,) int, index of each caption's image.

    Returns:
        i2t (N,) int64, 1 + the captions of other images that score at least as high as the image's best own caption;
        t2i (M,) int64, 1 + the other images that score at least as high as the caption's own image.

    Raises:
        DiptychError: embeddings that are not finite or do not fit each other, or an image without captions.
    """
    image, text = _as_float32(image, "image"), _as_float32(text, "text")
    own = torch.as_tensor(image_of_caption, dtype=torch.int64, device=image.device)
    _check(image, text, own)
    tie = TIE * image.norm(dim=1).max() * text.norm(dim=1).max()
    own_score = _own_scores(image, text, own)
    best_own = torch.full((len(image),), -torch.inf, device=image.device).scatter_reduce_(0, own, own_score, "amax")
    i2t = torch.ones(len(image), dtype=torch.int64, device=image.device)
    t2i = torch.ones(len(text), dtype=torch.int64, device=image.device)
    rows = max(1, BLOCK_SCORES // len(text))
    for start in range(0, len(image), rows):
        scores = image[start : start + rows] @ text.T
        captions = torch.nonzero((own >= start) & (own < start + rows)).squeeze(1)
        scores[own[captions] - start, captions] = -torch.inf
        i2t[start : start + rows] += torch.count_nonzero(
            scores >= (best_own[start : start + rows] - tie)[:, None], dim=1
        )
        t2i += torch.count_nonzero(scores >= own_score - tie, dim=0)
    return i2t.cpu().numpy(), t2i.cpu().numpy()


def metrics_from_ranks(i2t: np.ndarray, t2i: np.ndarray) -> Metrics:
    """The metrics of ranks from 1: `i2t` (N,) of images, `t2i` (M,) of captions, both int64."""
    metrics: Metrics = {"i2t": _one_way(i2t), "t2i": _one_way(t2i)}
    return {**metrics, "rsum": sum(metrics[way][f"recall@{k}"] for way in ("i2t", "t2i") for k in KS)}


def mean_log_rank(i2t: np.ndarray, t2i: np.ndarray) -> float:
    """The mean over both ways of the mean logarithm of the ranks, (Q,) int64: the lowest is chosen on val.

    Every query has its part in it. A recall sees but those that cross its threshold, and of a few hundred images that
    says little.
    """
    return float(np.log(i2t).mean() + np.log(t2i).mean()) / 2


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Percent of `ranks` (Q,) int64 that are at most k."""
    return 100.0 * float(np.count_nonzero(ranks <= k)) / len(ranks)


def average_metrics(parts: Sequence[Metrics]) -> Metrics:
    """The mean of each figure over `parts` of equal form."""
    ways = {
        way: {figure: _mean([part[way][figure] for part in parts]) for figure in parts[0][way]}
        for way in ("i2t", "t2i")
    }
    return {**ways, "rsum": _mean([part["rsum"] for part in parts])}


def folds(image_of_caption: np.ndarray, images: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """COCO's 1K protocol: five consecutive galleries of 1,000 of 5,000 images; nothing for any other number.

    Yields:
        the images, the captions (m,) int64 of these, and the index (m,) of each such caption's image within the fold.
    """
    size = FOLDED_IMAGES // FOLDS
    for start in range(0, FOLDED_IMAGES, size) if images == FOLDED_IMAGES else ():
        captions = np.flatnonzero((image_of_caption >= start) & (image_of_caption < start + size))
        yield slice(start, start + size), captions, np.asarray(image_of_caption)[captions] - start


def chance_metrics(image_of_caption: np.ndarray, images: int) -> Metrics:
    """What random orders of a gallery score: the recalls on average, and the median of all ranks that they give."""
    captions = len(image_of_caption)
    counts, shares = np.unique(np.bincount(image_of_caption, minlength=images), return_counts=True)

    def of_images(k: int) -> float:
        missed = [_all_missed(captions, own, k) for own in counts.tolist()]
        return 1 - float(np.average(missed, weights=shares))

    def of_captions(k: int) -> float:
        return min(k / images, 1.0)

    metrics: Metrics = {}
    for way, items, found in (("i2t", captions, of_images), ("t2i", images, of_captions)):
        middle = 1 + bisect.bisect_left(range(1, items + 1), 0.5, key=found)
        # The first of r right items in a random order of n is on average at place (n + 1) / (r + 1).
        mean = np.average((items + 1) / (counts + 1), weights=shares) if way == "i2t" else (items + 1) / 2
        metrics[way] = {f"recall@{k}": 100 * found(k) for k in KS}
        metrics[way] |= {"median_rank": float(middle), "mean_rank": float(mean)}
    return {**metrics, "rsum": sum(metrics[way][f"recall@{k}"] for way in metrics for k in KS)}


def _all_missed(items: int, right: int, k: int) -> float:
    """Probability that none of the `right` ones is among the first k of `items` in random order."""
    return math.prod(max(0, items - k - place) / (items - place) for place in range(right))


def _one_way(ranks: np.ndarray) -> dict[str, float]:
    recalls = {f"recall@{k}": recall_at_k(ranks, k) for k in KS}
    return recalls | {"median_rank": float(np.median(ranks)), "mean_rank": float(np.mean(ranks))}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _own_scores(image: torch.Tensor, text: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Score (M,) of each caption with its own image."""
    rows = max(1, BLOCK_SCORES // text.shape[1])
    blocks = [slice(start, start + rows) for start in range(0, len(text), rows)]
    return torch.cat([(image[own[block]] * text[block]).sum(dim=1) for block in blocks])


def _as_float32(embedding: torch.Tensor | np.ndarray, name: str) -> torch.Tensor:
    tensor = torch.as_tensor(embedding).detach()
    if tensor.ndim != 2 or not len(tensor):
        raise DiptychError(f"{name} embeddings must be rows of one matrix, not of shape {tuple(tensor.shape)}.")
    tensor = tensor.to(torch.float32)
    finite = torch.isfinite(tensor).all(dim=1)
    if not finite.all():
        row = int(torch.nonzero(~finite)[0])
        raise DiptychError(f"{name} embedding {row} holds NaN or infinity (of {int((~finite).sum())} such rows).")
    return tensor


def _check(image: torch.Tensor, text: torch.Tensor, own: torch.Tensor) -> None:
    if image.shape[1] != text.shape[1]:
        raise DiptychError(f"image embeddings have {image.shape[1]} dimensions and text embeddings {text.shape[1]}.")
    if own.shape != (len(text),):
        raise DiptychError(f"there are {len(text)} text embeddings, but images of {own.numel()} captions.")
    if own.min() < 0 or own.max() >= len(image):
        raise DiptychError(f"a caption's image is index {int(own.min())} to {int(own.max())} of {len(image)} images.")
    captions = torch.bincount(own, minlength=len(image))
    if not captions.all():
        first = int(torch.nonzero(captions == 0)[0])
        raise DiptychError(f"image {first} has no caption, so nothing can be right for it; leave such images out.")
