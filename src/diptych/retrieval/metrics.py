"""Ranks, recall and precision of image-text retrieval, both ways, with pessimistic ties.

COCO's protocol: recall@k is the share of queries with at least one right item among the first k; for an image, any of
its captions is right, and its other captions never count against that hit. R-precision and mAP@R ask for all of a
query's R right items within the first R (Musgrave et al., ECCV 2020, section 3.2). An item that scores as high as a
right one ranks before it, so a collapsed model, which finds everything equally similar, scores the worst and not by
luck.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.errors import DiptychError

Metrics = dict[str, Any]
"""{"i2t": {each of `FIGURES`}, "t2i": {each of `FIGURES`}, "rsum"}; in percent, but for the ranks."""

KS = (1, 5, 10)
FIGURES = (*(f"recall@{k}" for k in KS), "r_precision", "map@r", "median_rank", "mean_rank", "tied")
FOLDED_IMAGES = 5_000
FOLDS = 5

BLOCK_SCORES = 4_000_000
TIE = 4 * torch.finfo(torch.float32).eps
"""Of the largest possible score: one pair computed at two places of a matrix product differs by up to half of that."""


class Found(NamedTuple):
    """What each of Q queries of one direction found."""

    rank: NDArray[np.int64]
    """(Q,), from 1, of the best right item; other right items never count against it."""
    r_precision: NDArray[np.float64]
    """(Q,), the share of right items among the first R, where the query has R of them."""
    average_precision: NDArray[np.float64]
    """(Q,), of the first R: the sum of the precision at each place that a right item has, divided by R."""
    tied: NDArray[np.bool_]
    """(Q,), whether a wrong item scores as high as the best right one: the rank is the worst of several."""

    @staticmethod
    def one_right(rank: NDArray[np.int64], tied: NDArray[np.bool_]) -> Found:
        """Of queries with one right item each; `rank` and `tied` are (Q,)."""
        first = (rank == 1).astype(float)
        return Found(rank, first, first, tied)

    @staticmethod
    def many_right(
        rank: NDArray[np.int64],
        tied: NDArray[np.bool_],
        right: NDArray[np.int64],
        query: NDArray[np.int64],
        ahead: NDArray[np.int64],
    ) -> Found:
        """Of queries with several right items.

        Args:
            rank, tied: (Q,).
            right: (Q,), how many right items each query has.
            query, ahead: (A,), of each right item that may be among the first R, in any order: which query it belongs
                to, and how many wrong items rank before it.
        """
        order = np.lexsort((ahead, query))
        ahead, query = ahead[order], query[order]
        known = np.bincount(query, minlength=len(rank))
        # Among right items the place is the own one, from 1 on.
        own = 1 + np.arange(len(query)) - (known.cumsum() - known)[query]
        place = own + ahead
        within = place <= right[query]
        precision, average = (
            np.bincount(query, np.where(within, weights, 0.0), minlength=len(rank)) / right
            for weights in (1.0, own / place)
        )
        return Found(rank, precision, average, tied)


class Ranks(NamedTuple):
    """What the N images and the M captions of a gallery found."""

    i2t: Found
    t2i: Found

    @property
    def ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the best right items, i2t (N,) and t2i (M,)."""
        return self.i2t.rank, self.t2i.rank


def retrieval_metrics(
    image: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray, image_of_caption: np.ndarray
) -> Metrics:
    """The metrics of a gallery by the inner products of its embeddings; "folds_1k" comes with 5,000 images.

    Args and raises as `ranks_from_embeddings`.
    """
    metrics = metrics_from_ranks(*ranks_from_embeddings(image, text, image_of_caption))
    return with_folds(metrics, image, text, image_of_caption)


def with_folds(
    metrics: Metrics, image: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray, image_of_caption: np.ndarray
) -> Metrics:
    """The `metrics` of a gallery, with "folds_1k" if it has 5,000 images."""
    parts = [
        metrics_from_ranks(*ranks_from_embeddings(image[images], text[captions], own))
        for images, captions, own in folds(image_of_caption, len(image))
    ]
    return {**metrics, "folds_1k": average_metrics(parts)} if parts else metrics


def ranks_from_embeddings(
    image: torch.Tensor | np.ndarray, text: torch.Tensor | np.ndarray, image_of_caption: np.ndarray
) -> Ranks:
    """Ranks of the right items by one pass of the matrix product in blocks.

    Scores closer than float32 can tell apart are ties: a product's last bits depend on the place in the matrix. A wrong
    item ranks before a right one if it scores at least as high.

    Args:
        image: (N, d) floating.
        text: (M, d) floating.
        image_of_caption: (M,) int, index of each caption's image.

    Raises:
        DiptychError: embeddings that are not finite or do not fit each other, or an image without captions.
    """
    image, text = _as_float32(image, "image"), _as_float32(text, "text")
    own = torch.as_tensor(image_of_caption, dtype=torch.int64, device=image.device)
    _check(image, text, own)
    tie = TIE * image.norm(dim=1).max() * text.norm(dim=1).max()
    own_score = _own_scores(image, text, own)
    captions_of = _by_image(own, own_score, len(image))
    best = own_score[captions_of[:, 0]]
    # Of a caption: those of other images before it, as its own image sees them; other images before that, as it does.
    captions_ahead, images_ahead = torch.zeros(2, len(text), dtype=torch.int64, device=image.device)
    # The same of the best one, without those that may be equal.
    captions_above = torch.zeros(len(image), dtype=torch.int64, device=image.device)
    images_above = torch.zeros_like(images_ahead)
    rows = max(1, BLOCK_SCORES // len(text))
    for start in range(0, len(image), rows):
        block = slice(start, start + rows)
        scores = products(image[block], text)
        mine = torch.nonzero((own >= start) & (own < start + rows)).squeeze(1)
        scores[own[mine] - start, mine] = -torch.inf
        for captions in captions_of[block].T:
            there = captions >= 0
            of_images, captions = scores if there.all() else scores[there], captions[there]
            captions_ahead[captions] = _count(of_images >= (own_score[captions] - tie)[:, None], dim=1)
        captions_above[block] = _count(scores > (best[block] + tie)[:, None], dim=1)
        images_ahead += _count(scores >= own_score - tie, dim=0)
        images_above += _count(scores > own_score + tie, dim=0)
    best_ahead = captions_ahead[captions_of[:, 0]]
    right = torch.bincount(own)
    i2t = (1 + best_ahead, best_ahead != captions_above, right, own, captions_ahead)
    t2i = (1 + images_ahead, images_ahead != images_above)
    return Ranks(Found.many_right(*map(_to_numpy, i2t)), Found.one_right(*map(_to_numpy, t2i)))


def products(queries: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Inner products (Q, G) of `queries` (Q, d) and `items` (G, d), in their own precision whatever autocast is on:
    in half of it, what is near would be tied.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ items.T


def metrics_from_ranks(i2t: Found, t2i: Found) -> Metrics:
    """The metrics of what images and captions found."""
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


def averages(found: Found) -> dict[str, NDArray[np.float64]]:
    """The figures that are means over the queries, by name: what each query brings, (Q,)."""
    return {
        "r_precision": 100.0 * found.r_precision,
        "map@r": 100.0 * found.average_precision,
        "mean_rank": found.rank.astype(float),
        "tied": 100.0 * found.tied,
    }


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
        right = counts if way == "i2t" else np.ones_like(counts)
        precision = np.average(right / items, weights=shares)
        average = np.average([_average_precision(items, of_query) for of_query in right.tolist()], weights=shares)
        metrics[way] |= {"r_precision": 100 * float(precision), "map@r": 100 * float(average)}
        metrics[way] |= {"median_rank": float(middle), "mean_rank": float(mean), "tied": 0.0}
    return {**metrics, "rsum": sum(metrics[way][f"recall@{k}"] for way in metrics for k in KS)}


def _all_missed(items: int, right: int, k: int) -> float:
    """Probability that none of the `right` ones is among the first k of `items` in random order."""
    return math.prod(max(0, items - k - place) / (items - place) for place in range(right))


def _average_precision(items: int, right: int) -> float:
    """Expected average precision of the first `right` places of `items` in random order, of which so many are right."""
    # Place k is right with a chance of R / n; of the k - 1 before it, (k - 1) (R - 1) / (n - 1) are right then.
    others = (right - 1) / max(1, items - 1)
    return sum((1 + (place - 1) * others) / place for place in range(1, right + 1)) / items


def _one_way(found: Found) -> dict[str, float]:
    recalls = {f"recall@{k}": recall_at_k(found.rank, k) for k in KS}
    figures = {name: float(np.mean(values)) for name, values in averages(found).items()}
    figures |= {**recalls, "median_rank": float(np.median(found.rank))}
    return {name: figures[name] for name in FIGURES}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _by_image(own: torch.Tensor, score: torch.Tensor, images: int) -> torch.Tensor:
    """The captions of each image, those with the highest `score` (M,) first, int64 (N, R); -1 where it has fewer."""
    order = score.argsort(descending=True, stable=True)
    order = order[own[order].argsort(stable=True)]
    counts = torch.bincount(own, minlength=images)
    table = torch.full((images, int(counts.max())), -1, dtype=torch.int64, device=own.device)
    table[torch.arange(table.shape[1], device=own.device) < counts[:, None]] = order
    return table


def _own_scores(image: torch.Tensor, text: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Score (M,) of each caption with its own image."""
    rows = max(1, BLOCK_SCORES // text.shape[1])
    blocks = [slice(start, start + rows) for start in range(0, len(text), rows)]
    return torch.cat([(image[own[block]] * text[block]).sum(dim=1) for block in blocks])


def _count(there: torch.Tensor, dim: int) -> torch.Tensor:
    """How many of `there`, bool, are true along `dim`, int64; `count_nonzero` takes two to three times as long."""
    return there.view(torch.uint8).sum(dim, dtype=torch.int32).long()


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


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
