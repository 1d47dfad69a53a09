"""Ranks of the relevant items in image-text retrieval, in both directions, with pessimistic ties.

COCO's protocol: for an image, any of its captions is relevant, and its other captions never count against that hit. An
irrelevant item that scores as high as a relevant one ranks before it. So a collapsed model, to which all is equally
similar, scores the worst and not by luck (docs/decisions/retrieval-metrics.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import DiptychError
from diptych.model.device import BLOCK_SCORES

TIE = 4 * torch.finfo(torch.float32).eps
"""Largest difference of two equal scores, as a share of the largest possible score.

One pair that is computed at two positions of a matrix product differs by up to half of that.
"""
DIRECTIONS = ("i2t", "t2i")
"""Directions of retrieval, in the order of `Ranks`: captions for images, and images for captions."""


class Outcomes(NamedTuple):
    """Outcomes of Q queries of one direction."""

    rank: NDArray[np.int64]
    """(Q,), from 1: the rank of the best relevant item. Other relevant items never count against it."""
    r_precision: NDArray[np.float64]
    """(Q,), the share of relevant items among the first R, where the query has R of them."""
    average_precision: NDArray[np.float64]
    """(Q,), of the first R: the sum of the precision at the position of each relevant item, divided by R."""
    tied: NDArray[np.bool_]
    """(Q,), whether an irrelevant item scores as high as the best relevant one: the rank is the worst of several."""

    @staticmethod
    def one_relevant(rank: NDArray[np.int64], tied: NDArray[np.bool_]) -> Outcomes:
        """Return the outcomes of queries with one relevant item each; `rank` and `tied` are (Q,)."""
        first = (rank == 1).astype(float)
        return Outcomes(rank, first, first, tied)

    @staticmethod
    def many_relevant(
        rank: NDArray[np.int64],
        tied: NDArray[np.bool_],
        relevant: NDArray[np.int64],
        query: NDArray[np.int64],
        irrelevant_before: NDArray[np.int64],
    ) -> Outcomes:
        """Return the outcomes of queries with several relevant items.

        The A entries of `query` and `irrelevant_before` are the relevant items that may be among the first R.

        Args:
            rank: (Q,), the rank of each query's best relevant item.
            tied: (Q,), whether an irrelevant item ties with that.
            relevant: (Q,), the number of relevant items of each query.
            query: (A,), the query that each relevant item belongs to.
            irrelevant_before: (A,), the number of irrelevant items that rank before each relevant item.
        """
        order = np.lexsort((irrelevant_before, query))
        query, irrelevant_before = query[order], irrelevant_before[order]
        listed = np.bincount(query, minlength=len(rank))
        rank_among_relevant = 1 + np.arange(len(query)) - (listed.cumsum() - listed)[query]
        position = rank_among_relevant + irrelevant_before
        is_within = position <= relevant[query]
        precision, average = (
            np.bincount(query, np.where(is_within, weights, 0.0), minlength=len(rank)) / relevant
            for weights in (1.0, rank_among_relevant / position)
        )
        return Outcomes(rank, precision, average, tied)


class Ranks(NamedTuple):
    """Outcomes of the N images (i2t) and of the M captions (t2i) of a gallery."""

    i2t: Outcomes
    t2i: Outcomes

    @property
    def ranks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ranks of the best relevant items, i2t (N,) and t2i (M,)."""
        return self.i2t.rank, self.t2i.rank


def ranks_from_embeddings(
    image: Tensor | NDArray[np.floating], text: Tensor | NDArray[np.floating], image_of_caption: NDArray[np.int64]
) -> Ranks:
    """Return the ranks of the relevant items, by one pass over the matrix product in blocks.

    Scores that float32 cannot tell apart are ties, because the last bits of a product depend on the position in the
    matrix. An irrelevant item ranks before a relevant one if it scores at least as high.

    Args:
        image: (N, d) floating.
        text: (M, d) floating.
        image_of_caption: (M,) int, index of each caption's image.

    Raises:
        DiptychError: embeddings are not finite or do not fit each other, or an image has no caption.
    """
    image, text = _as_float32(image, "image"), _as_float32(text, "text")
    owner = torch.as_tensor(image_of_caption, dtype=torch.int64, device=image.device)
    _check(image, text, owner)
    relevant_score = _relevant_scores(image, text, owner)
    captions_of = _captions_by_image(owner, relevant_score, len(image))
    tie = TIE * image.norm(dim=1).max() * text.norm(dim=1).max()
    irrelevant = _count_irrelevant(image, text, owner, captions_of, relevant_score - tie, relevant_score + tie)
    best_before = irrelevant.captions_before[captions_of[:, 0]]
    i2t = (
        1 + best_before,
        best_before != irrelevant.captions_above,
        torch.bincount(owner),
        owner,
        irrelevant.captions_before,
    )
    t2i = 1 + irrelevant.images_before, irrelevant.images_before != irrelevant.images_above
    return Ranks(
        Outcomes.many_relevant(*(values.cpu().numpy() for values in i2t)),
        Outcomes.one_relevant(*(values.cpu().numpy() for values in t2i)),
    )


def products(queries: Tensor, items: Tensor) -> Tensor:
    """Return the inner products (Q, G) of `queries` (Q, d) and `items` (G, d), in their precision under any autocast.

    In half of that precision, similar items would be tied.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ items.T


class _IrrelevantCounts(NamedTuple):
    """Numbers of irrelevant items that rank before a relevant one, int64; "above" leaves out those that tie with it."""

    captions_before: Tensor
    """(M,), before each caption, as its own image ranks the captions."""
    captions_above: Tensor
    """(N,), above the best caption of each image."""
    images_before: Tensor
    """(M,), before the image of each caption."""
    images_above: Tensor
    """(M,), above the image of each caption."""


def _count_irrelevant(
    image: Tensor, text: Tensor, owner: Tensor, captions_of: Tensor, lowest: Tensor, highest: Tensor
) -> _IrrelevantCounts:
    """Count irrelevant items block by block; scores from `lowest` to `highest` (M,) tie with a caption's own image.

    `captions_of` is the result of `_captions_by_image`.
    """
    captions_before, images_before, images_above = torch.zeros(3, len(text), dtype=torch.int64, device=image.device)
    captions_above = torch.zeros(len(image), dtype=torch.int64, device=image.device)
    for block, scores in _irrelevant_scores(image, text, owner):
        # The best caption of each image of the block, then the second best, and so on.
        for captions in captions_of[block].T:
            exists = captions >= 0
            rows, captions = scores if exists.all() else scores[exists], captions[exists]
            captions_before[captions] = _count(rows >= lowest[captions, None], dim=1)
        captions_above[block] = _count(scores > highest[captions_of[block, 0], None], dim=1)
        images_before += _count(scores >= lowest, dim=0)
        images_above += _count(scores > highest, dim=0)
    return _IrrelevantCounts(captions_before, captions_above, images_before, images_above)


def _irrelevant_scores(image: Tensor, text: Tensor, owner: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of images with their scores (rows, M) with all captions; -inf with their own."""
    rows = max(1, BLOCK_SCORES // len(text))
    for start in range(0, len(image), rows):
        scores = products(image[start : start + rows], text)
        captions = torch.nonzero((owner >= start) & (owner < start + rows)).squeeze(1)
        scores[owner[captions] - start, captions] = -torch.inf
        yield slice(start, start + rows), scores


def _relevant_scores(image: Tensor, text: Tensor, owner: Tensor) -> Tensor:
    """Return the score (M,) of each caption with its own image."""
    rows = max(1, BLOCK_SCORES // text.shape[1])
    blocks = [slice(start, start + rows) for start in range(0, len(text), rows)]
    return torch.cat([(image[owner[block]] * text[block]).sum(dim=1) for block in blocks])


def _captions_by_image(owner: Tensor, score: Tensor, images: int) -> Tensor:
    """Return the captions int64 (N, R) of each image, by descending `score` (M,); -1 where it has fewer than R."""
    order = score.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    counts = torch.bincount(owner, minlength=images)
    table = torch.full((images, int(counts.max())), -1, dtype=torch.int64, device=owner.device)
    table[torch.arange(table.shape[1], device=owner.device) < counts[:, None]] = order
    return table


def _count(mask: Tensor, dim: int) -> Tensor:
    """Return the number of true values along `dim`, int64; `count_nonzero` takes two to three times as long."""
    return mask.view(torch.uint8).sum(dim, dtype=torch.int32).long()


def _as_float32(embedding: Tensor | NDArray[np.floating], name: str) -> Tensor:
    tensor = torch.as_tensor(embedding).detach()
    if tensor.ndim != 2 or not len(tensor):
        raise DiptychError(f"{name} embeddings must be rows of one matrix, not of shape {tuple(tensor.shape)}.")
    tensor = tensor.to(torch.float32)
    finite = torch.isfinite(tensor).all(dim=1)
    if not finite.all():
        row = int(torch.nonzero(~finite)[0])
        raise DiptychError(f"{name} embedding {row} holds NaN or infinity (of {int((~finite).sum())} such rows).")
    return tensor


def _check(image: Tensor, text: Tensor, owner: Tensor) -> None:
    if image.shape[1] != text.shape[1]:
        raise DiptychError(f"image embeddings have {image.shape[1]} dimensions and text embeddings {text.shape[1]}.")
    if owner.shape != (len(text),):
        raise DiptychError(f"there are {len(text)} text embeddings, but images of {owner.numel()} captions.")
    if owner.min() < 0 or owner.max() >= len(image):
        raise DiptychError(
            f"a caption's image is index {int(owner.min())} to {int(owner.max())} of {len(image)} images."
        )
    captions = torch.bincount(owner, minlength=len(image))
    if not captions.all():
        first = int(torch.nonzero(captions == 0)[0])
        raise DiptychError(f"image {first} has no caption, so nothing can be relevant for it; leave such images out.")
