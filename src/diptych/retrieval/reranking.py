"""Re-ranking: the fusion scores the top k candidates that the towers rank first for a query.

A candidate's score is logit_scale · similarity plus the weighted ITM logit and token-alignment score. The similarity is
what the towers rank by: the cosine, minus the biases of query-bank normalization where these are known. Items beyond
the top k follow in the towers' order. Each direction has weights of its own; `choices` chooses them on val.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import DiptychError
from diptych.model.device import BLOCK_SCORES, Precision
from diptych.model.dual_encoder import DualEncoder
from diptych.progress import progress
from diptych.retrieval.embedding import Embedded, TokenStates, inference
from diptych.retrieval.ranking import TIE, Outcomes, Ranks, products, ranks_from_embeddings

T = TypeVar("T", Tensor, NDArray[np.float32])

PAIRS = 512
"""Pairs that the fusion scores at once on a CPU; on a GPU at least."""
GPU_TOKENS = 200_000
"""Grid tokens of the pairs that the fusion computes at once on a GPU."""
IMAGES = 64
"""Images whose pairs are scored together, so that these pairs have few images."""


class Weights(NamedTuple):
    """Weights of the fusion's scores for queries of one direction; the scaled similarity has weight one."""

    itm: float = 0.0
    """Weight of the ITM logit."""
    alignment: float = 0.0
    """Weight of the token-alignment score."""

    def add(self, similarity: T, itm: T, alignment: T) -> T:
        """Return the scores of re-ranking, where `similarity` is already multiplied by the logit scale."""
        return similarity + self.itm * itm + self.alignment * alignment


class Directed(NamedTuple):
    """Weights for both directions."""

    i2t: Weights = Weights()
    t2i: Weights = Weights()

    @property
    def largest(self) -> Weights:
        """The larger of both directions' weights of each score; a score that has none is needed nowhere."""
        return Weights(*(max(both) for both in zip(*self, strict=True)))


@dataclass(frozen=True)
class Shortlist:
    """The K candidates of each of Q queries in one direction, in the towers' order.

    Attributes:
        index: int64 (Q, K), positions of the candidates in the gallery.
        similarity: float32 (Q, K), what the towers rank by.
        itm: float32 (Q, K), ITM logits.
        alignment: float32 (Q, K), token-alignment scores; zero where the fusion has none.
        relevant: bool (Q, K), True where candidate and query belong together.
        relevant_items: int64 (Q,), number of items of the gallery that belong to the query.
        image: int64 (Q,), the image of each query, which is itself or its own.
        before: outcomes of the queries before re-ranking.
        bound: largest possible size of a similarity, on which the resolution of float32 depends.
    """

    index: Tensor
    similarity: Tensor
    itm: Tensor
    alignment: Tensor
    relevant: Tensor
    relevant_items: NDArray[np.int64]
    image: NDArray[np.int64]
    before: Outcomes
    bound: float = 1.0

    def scores(self, logit_scale: float, weights: Weights) -> Tensor:
        """Return the scores of the candidates, float32 (Q, K)."""
        return weights.add(logit_scale * self.similarity, self.itm, self.alignment)

    def order(self, logit_scale: float, weights: Weights) -> Tensor:
        """Return the positions of the re-ranked candidates in the gallery, best first, int64 (Q, K)."""
        by_score = self.scores(logit_scale, weights).argsort(dim=1, descending=True, stable=True)
        return self.index.gather(1, by_score)

    def ranks(self, logit_scale: float, weights: Weights) -> NDArray[np.int64]:
        """Return pessimistic ranks (Q,) after re-ranking; other relevant candidates never count against the best one.

        A query whose rank was beyond K keeps it: a tie at most brings its relevant item among the candidates.
        """
        scores, tie = self.scores(logit_scale, weights), self._tie(logit_scale, weights)
        ahead = torch.count_nonzero(~self.relevant & (scores >= self._best(scores) - tie), dim=1).numpy()
        return np.where(self._beyond, self.before.rank, 1 + ahead)

    def reranked(self, logit_scale: float, weights: Weights) -> Outcomes:
        """Return the ranks after re-ranking; relevant items beyond the candidates are not among the first R."""
        scores, tie = self.scores(logit_scale, weights), self._tie(logit_scale, weights)
        above = torch.count_nonzero(~self.relevant & (scores > self._best(scores) + tie), dim=1).numpy()
        rank = self.ranks(logit_scale, weights)
        query, position = torch.nonzero(self.relevant & ~torch.from_numpy(self._beyond)[:, None], as_tuple=True)
        ahead = ~self.relevant[query] & (scores[query] >= scores[query, position][:, None] - tie)
        tied = np.where(self._beyond, self.before.tied, rank != 1 + above)
        return Outcomes.many_relevant(rank, tied, self.relevant_items, query.numpy(), ahead.sum(dim=1).numpy())

    def _tie(self, logit_scale: float, weights: Weights) -> Tensor:
        fused = abs(weights.itm) * self.itm.abs().max() + abs(weights.alignment) * self.alignment.abs().max()
        return TIE * (logit_scale * self.bound + fused)

    def _best(self, scores: Tensor) -> Tensor:
        """Return the best score of the relevant candidates, (Q, 1)."""
        return scores.masked_fill(~self.relevant, -torch.inf).amax(dim=1, keepdim=True)

    @property
    def _beyond(self) -> NDArray[np.bool_]:
        return self.before.rank > self.index.shape[1]


class Candidates(NamedTuple):
    """Candidates in both directions: captions for images, images for captions."""

    i2t: Shortlist
    t2i: Shortlist


def candidate_logits(
    model: DualEncoder,
    embedded: Embedded,
    top_k: int,
    *,
    device: torch.device,
    precision: Precision = "no",
    weights: Directed | None = None,
    description: str = "re-rank",
) -> Candidates:
    """Return the `top_k` candidates of each query (all, where the gallery is smaller) with the fusion's scores.

    With `weights`, a direction without weight is not scored, nor a part without weight in both; these scores are zero.
    The tokens are reused, and a pair that is a candidate in both directions is scored once. The model is on `device`;
    it works in evaluation mode and is left in the mode that it was in.
    """
    image, text = embedded.ranking
    found = shortlists(image, text, embedded.image_of_caption, top_k)
    queries = [torch.arange(len(unscored.index))[:, None] for unscored in found]
    # Image i and caption j are the pair i · captions + j.
    pairs = queries[0] * len(text) + found[0].index, found[1].index * len(text) + queries[1]
    used = [any(own) for own in weights] if weights else [True, True]
    chosen = [both[: len(both) if is_used else 0] for both, is_used in zip(pairs, used, strict=True)]
    scored = torch.cat([both.flatten() for both in chosen]).unique()
    parts = weights and weights.largest
    with inference(model, device, precision):
        logits = fuse_pairs(model, embedded, scored // len(text), scored % len(text), device, parts, description)

    def with_scores(unscored: Shortlist, both: Tensor) -> Shortlist:
        itm, alignment = logits[:, torch.searchsorted(scored, both)].unbind()
        return replace(unscored, itm=itm, alignment=alignment)

    i2t, t2i = (
        with_scores(unscored, both) if is_used else unscored
        for unscored, both, is_used in zip(found, pairs, used, strict=True)
    )
    return Candidates(i2t, t2i)


def shortlists(image: Tensor, text: Tensor, image_of_caption: NDArray[np.int64], top_k: int) -> Candidates:
    """Return the candidates of all images (N, d) and captions (M, d) of a gallery, without scores of a fusion.

    Args:
        image: ranked by the inner product with `text`.
        text: likewise.
        image_of_caption: (M,), index of each caption's image.
        top_k: the number of candidates.
    """
    images = np.arange(len(image))
    ranks = ranks_from_embeddings(image, text, image_of_caption)
    return Candidates(
        shortlist(image, text, top_k, images, image_of_caption, ranks.i2t),
        shortlist(text, image, top_k, image_of_caption, images, ranks.t2i),
    )


def shortlist(
    queries: Tensor,
    gallery: Tensor,
    top_k: int,
    image_of_query: NDArray[np.int64],
    image_of_item: NDArray[np.int64],
    before: Outcomes,
) -> Shortlist:
    """Return the `top_k` candidates of the queries of one direction, without scores of a fusion.

    Args:
        queries: (Q, d), ranked by inner product.
        gallery: (G, d).
        top_k: the number of candidates.
        image_of_query: (Q,), the image of each query.
        image_of_item: (G,), the image of each item; equal ones belong together.
        before: outcomes of the queries by the inner product.
    """
    index, similarity = top_candidates(queries, gallery, top_k)
    relevant = torch.from_numpy(image_of_item)[index] == torch.from_numpy(image_of_query)[:, None]
    return Shortlist(
        index=index,
        similarity=similarity,
        itm=torch.zeros_like(similarity),
        alignment=torch.zeros_like(similarity),
        relevant=relevant,
        relevant_items=np.bincount(image_of_item)[image_of_query],
        image=image_of_query,
        before=before,
        bound=float(queries.norm(dim=1).max() * gallery.norm(dim=1).max()),
    )


def reranked_ranks(candidates: Candidates, logit_scale: float, weights: Directed) -> Ranks:
    """Return the ranks of images and captions after re-ranking."""
    return Ranks(*(found.reranked(logit_scale, own) for found, own in zip(candidates, weights, strict=True)))


def top_candidates(queries: Tensor, gallery: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Find the best `top_k` of `gallery` (G, d) for `queries` (Q, d) by inner product; of equals the first ones.

    Returns:
        index int64 (Q, K) and inner product float32 (Q, K), with K = min(top_k, G), best first.
    """
    top_k = min(top_k, len(gallery))
    rows = max(1, BLOCK_SCORES // len(gallery))
    indices, similarities = [], []
    for start in range(0, len(queries), rows):
        scores = products(queries[start : start + rows], gallery)
        index = _sort_keys(scores).topk(top_k, dim=1).indices
        indices.append(index)
        similarities.append(scores.gather(1, index))
    return torch.cat(indices), torch.cat(similarities)


def _sort_keys(scores: Tensor) -> Tensor:
    """Return distinct int64 keys (Q, G) in the order of `scores` float32 (Q, G); of equal scores the first is highest.

    `topk` alone picks any of equal scores. The bits of floats, read as integers, have the order of their values, and
    the reverse order below zero.
    """
    bits = (scores + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) - torch.arange(scores.shape[1])


def fuse_pairs(
    model: DualEncoder,
    states: TokenStates,
    images: Tensor,
    captions: Tensor,
    device: torch.device,
    weights: Weights | None,
    description: str,
    **progress_options: Any,
) -> Tensor:
    """Return the ITM logits and token-alignment scores of P pairs, float32 (2, P), on the CPU.

    Args:
        model: the dual encoder, on `device`; call this within `inference`.
        states: tokens of the images and captions.
        images: int64 (P,), index of each pair's image.
        captions: int64 (P,), index of each pair's caption.
        device: device of the model.
        weights: a part without weight is not computed, and is zero; None: both are computed.
        description: label of the progress bar.
        progress_options: further options of `progress`.

    Raises:
        DiptychError: a logit is NaN or infinite.
    """
    itm, align = (True, True) if weights is None else (bool(weights.itm), bool(weights.alignment))
    logits = torch.zeros(2, len(images))
    if not itm and not align:
        return logits
    with progress(None, description, unit="pair", total=len(images), **progress_options) as bar:
        for batch in _pair_batches(states, images, captions, device):
            (image, image_of_pair), (caption, caption_of_pair) = (
                torch.unique(items[batch], return_inverse=True) for items in (images, captions)
            )
            inputs = states.grid[image], *states.padded_tokens(caption), image_of_pair, caption_of_pair
            given = [tensor.to(device) for tensor in inputs]
            if itm:
                logits[0, batch] = model.fusion(*given).itm.float().cpu()
            if align and model.aligns:
                logits[1, batch] = model.aligned(*given).float().cpu()
            bar.update(len(batch))
    if broken := int((~torch.isfinite(logits).all(dim=0)).sum()):
        # Nothing ranks ahead of NaN, so each of these would count as a hit.
        raise DiptychError(f"the fusion's logit is NaN or infinite for {broken} of {len(images)} pairs.")
    return logits


def _pair_batches(states: TokenStates, images: Tensor, captions: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Yield positions of pairs, few images and captions of like lengths at a time.

    An image's keys and values are then computed once, and little padding is.
    """
    by_length = states.lengths[captions].argsort(stable=True)
    order = by_length[(images[by_length] // IMAGES).argsort(stable=True)]
    at_once = PAIRS if device.type == "cpu" else max(PAIRS, GPU_TOKENS // states.grid.shape[1])
    for start in range(0, len(order), at_once):
        yield order[start : start + at_once]
