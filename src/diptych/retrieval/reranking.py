"""Re-ranking: the fusion scores the top k candidates that the towers rank first for a query.

A candidate's score is logit_scale · similarity plus the weighted ITM logit and token-alignment score. The similarity is
what the towers rank by: the cosine, minus the biases of query-bank normalization where these are known. Items beyond
the top k follow in the towers' order. The weights and the strength of the biases are chosen on val.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import DiptychError
from diptych.model.device import BLOCK_SCORES, Precision
from diptych.model.dual_encoder import DualEncoder
from diptych.model.querybank import QueryBank
from diptych.progress import progress
from diptych.retrieval.embedding import Embedded, TokenStates, inference
from diptych.retrieval.metrics import mean_log_rank
from diptych.retrieval.ranking import TIE, Outcomes, Ranks, products, ranks_from_embeddings

T = TypeVar("T", Tensor, NDArray[np.float32])

CHOICES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Values to choose each weight from."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values to choose the strength of the biases from."""
PAIRS = 512
"""Pairs that the fusion scores at once on a CPU; on a GPU at least."""
GPU_TOKENS = 200_000
"""Grid tokens of the pairs that the fusion computes at once on a GPU."""
IMAGES = 64
"""Images whose pairs are scored together, so that these pairs have few images."""


class Weights(NamedTuple):
    """Weights of the fusion's scores; the scaled similarity has weight one."""

    itm: float = 0.0
    """Weight of the ITM logit."""
    alignment: float = 0.0
    """Weight of the token-alignment score."""

    def add(self, similarity: T, itm: T, alignment: T) -> T:
        """Return the scores of re-ranking, where `similarity` is already multiplied by the logit scale."""
        return similarity + self.itm * itm + self.alignment * alignment


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
        before: outcomes of the queries before re-ranking.
        bound: largest possible size of a similarity, on which the resolution of float32 depends.
    """

    index: Tensor
    similarity: Tensor
    itm: Tensor
    alignment: Tensor
    relevant: Tensor
    relevant_items: NDArray[np.int64]
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
    weights: Weights | None = None,
    description: str = "re-rank",
) -> Candidates:
    """Return the `top_k` candidates of each query (all, where the gallery is smaller) with the fusion's scores.

    With `weights`, a score without weight is not computed, and is zero. The tokens are reused, and a pair that is a
    candidate in both directions is scored once. The model is on `device`; it works in evaluation mode and is left in
    the mode that it was in.
    """
    image, text = embedded.ranking
    i2t, i2t_similarity = top_candidates(image, text, top_k)
    t2i, t2i_similarity = top_candidates(text, image, top_k)
    captions = len(text)
    i2t_pairs = torch.arange(len(i2t))[:, None] * captions + i2t
    t2i_pairs = t2i * captions + torch.arange(captions)[:, None]
    pairs, position = torch.unique(torch.cat([i2t_pairs.flatten(), t2i_pairs.flatten()]), return_inverse=True)
    with inference(model, device, precision):
        logits = fuse_pairs(model, embedded, pairs // captions, pairs % captions, device, weights, description)
    i2t_itm, i2t_alignment = [part[position[: i2t.numel()]].view_as(i2t) for part in logits]
    t2i_itm, t2i_alignment = [part[position[i2t.numel() :]].view_as(t2i) for part in logits]
    image_of_caption = torch.from_numpy(embedded.image_of_caption)
    ranks = ranks_from_embeddings(image, text, embedded.image_of_caption)
    i2t_relevant = image_of_caption[i2t] == torch.arange(len(i2t))[:, None]
    t2i_relevant = t2i == image_of_caption[:, None]
    counts = np.bincount(embedded.image_of_caption), np.ones(captions, np.int64)
    bound = float(image.norm(dim=1).max() * text.norm(dim=1).max())
    return Candidates(
        Shortlist(i2t, i2t_similarity, i2t_itm, i2t_alignment, i2t_relevant, counts[0], ranks.i2t, bound),
        Shortlist(t2i, t2i_similarity, t2i_itm, t2i_alignment, t2i_relevant, counts[1], ranks.t2i, bound),
    )


def reranked_ranks(candidates: Candidates, logit_scale: float, weights: Weights) -> Ranks:
    """Return the ranks of images and captions after re-ranking."""
    return Ranks(*(shortlist.reranked(logit_scale, weights) for shortlist in candidates))


def choose_strength(embedded: Embedded, querybank: QueryBank, logit_scale: float) -> float:
    """Return the best of `STRENGTHS` for the biases by `mean_log_rank`; of equally good ones the smallest."""
    full = querybank._replace(strength=1.0)
    image_bias = full.image_bias(embedded.image, logit_scale)
    text_bias = full.text_bias(embedded.text, logit_scale)
    scores = []
    for strength in STRENGTHS:
        biased = replace(embedded, image_bias=strength * image_bias, text_bias=strength * text_bias)
        image, text = biased.ranking
        scores.append(mean_log_rank(*ranks_from_embeddings(image, text, embedded.image_of_caption).ranks))
    return STRENGTHS[int(np.argmin(scores))]


def choose_weights(candidates: Candidates, logit_scale: float) -> Weights:
    """Return the best weights by `mean_log_rank`; of equally good ones those with the smallest sum."""
    every = sorted((Weights(*values) for values in product(CHOICES, repeat=2)), key=sum)
    scores = [mean_log_rank(*(shortlist.ranks(logit_scale, weights) for shortlist in candidates)) for weights in every]
    return every[int(np.argmin(scores))]


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
    with progress(None, description, unit="pair", total=len(images), **progress_options) as bar:
        for batch in _pair_batches(states, images, captions, device) if itm or align else ():
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
