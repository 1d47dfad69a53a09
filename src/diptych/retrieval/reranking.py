"""Re-ranking: the fusion looks more closely at the top k that the towers found for a query.

A candidate's score is logit_scale · similarity, where the similarity is what the towers rank by (the cosine, less the
items' biases where these are known), plus the weighted logits of the fusion's two parts. What is not among the top k
keeps the towers' order below them. The weights are chosen on val, and so is the biases' strength.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import DiptychError
from diptych.model.device import Precision
from diptych.model.dual_encoder import DualEncoder
from diptych.model.querybank import QueryBank
from diptych.progress import progress
from diptych.retrieval.embedding import Embedded, TokenStates, inference
from diptych.retrieval.metrics import mean_log_rank
from diptych.retrieval.ranking import BLOCK_SCORES, TIE, Outcomes, Ranks, products, ranks_from_embeddings

CHOICES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""For each of the weights."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = 512
"""Pairs that the fusion sees at once, and at least on a GPU."""
GPU_TOKENS = 200_000
"""Grid tokens of the pairs that the fusion computes at once on a GPU."""
IMAGES = 64
"""Images whose pairs are taken together, so that these pairs have few."""


class Weights(NamedTuple):
    """How much the fusion's parts count beside the towers."""

    match: float = 0.0
    alignment: float = 0.0


@dataclass(frozen=True)
class Shortlist:
    """The K candidates of each of Q queries of one direction, by the towers' order.

    Attributes:
        index: int64 (Q, K), candidates in the gallery.
        similarity: float32 (Q, K).
        match: float32 (Q, K), the fusion's match logit.
        alignment: float32 (Q, K), the logit of the tokens' alignment; zero where the fusion has none.
        right: bool (Q, K), whether candidate and query belong together.
        right_items: int64 (Q,), how many items of the gallery belong to the query.
        found: what the query found before re-ranking.
        bound: the largest size that a similarity can have; how finely float32 tells two of them apart depends on it.
    """

    index: Tensor
    similarity: Tensor
    match: Tensor
    alignment: Tensor
    right: Tensor
    right_items: NDArray[np.int64]
    found: Outcomes
    bound: float = 1.0

    def scores(self, logit_scale: float, weights: Weights) -> Tensor:
        """The candidates' scores, float32 (Q, K)."""
        return logit_scale * self.similarity + weights.match * self.match + weights.alignment * self.alignment

    def order(self, logit_scale: float, weights: Weights) -> Tensor:
        """The candidates re-ranked, best first: their places in the gallery, int64 (Q, K)."""
        by_score = self.scores(logit_scale, weights).argsort(dim=1, descending=True, stable=True)
        return self.index.gather(1, by_score)

    def ranks(self, logit_scale: float, weights: Weights) -> NDArray[np.int64]:
        """Pessimistic ranks (Q,) after re-ranking; other right candidates never count against the best one.

        A query whose rank was beyond K keeps it: its right item is among the candidates by luck at most, in a tie.
        """
        scores, tie = self.scores(logit_scale, weights), self._tie(logit_scale, weights)
        ahead = torch.count_nonzero(~self.right & (scores >= self._best(scores) - tie), dim=1).numpy()
        return np.where(self._beyond, self.found.rank, 1 + ahead)

    def reranked(self, logit_scale: float, weights: Weights) -> Outcomes:
        """What the queries found after re-ranking; right items beyond the candidates are not among the first R."""
        scores, tie = self.scores(logit_scale, weights), self._tie(logit_scale, weights)
        above = torch.count_nonzero(~self.right & (scores > self._best(scores) + tie), dim=1).numpy()
        rank = self.ranks(logit_scale, weights)
        query, place = torch.nonzero(self.right & ~torch.from_numpy(self._beyond)[:, None], as_tuple=True)
        wrong = ~self.right[query] & (scores[query] >= scores[query, place][:, None] - tie)
        tied = np.where(self._beyond, self.found.tied, rank != 1 + above)
        return Outcomes.many_right(rank, tied, self.right_items, query.numpy(), wrong.sum(dim=1).numpy())

    def _tie(self, logit_scale: float, weights: Weights) -> Tensor:
        looked = abs(weights.match) * self.match.abs().max() + abs(weights.alignment) * self.alignment.abs().max()
        return TIE * (logit_scale * self.bound + looked)

    def _best(self, scores: Tensor) -> Tensor:
        """Of the right candidates, (Q, 1)."""
        return scores.masked_fill(~self.right, -torch.inf).amax(dim=1, keepdim=True)

    @property
    def _beyond(self) -> NDArray[np.bool_]:
        return self.found.rank > self.index.shape[1]


class Candidates(NamedTuple):
    """Both directions: captions for images, images for captions."""

    i2t: Shortlist
    t2i: Shortlist


def match_logits(
    model: DualEncoder,
    embedded: Embedded,
    top_k: int,
    *,
    device: torch.device,
    precision: Precision = "no",
    weights: Weights | None = None,
    description: str = "Re-ranking",
) -> Candidates:
    """Finds the `top_k` candidates of each query (all, where the gallery is smaller) and has the fusion judge them.

    With `weights`, a part of the fusion that has none is left out: its logits are zero.

    The towers' features are reused, and a pair that is a candidate both ways is judged once. The model is on `device`;
    it works in evaluation mode and is left in the mode in which it came.
    """
    image, text = embedded.ranking
    i2t, i2t_similarity = top_candidates(image, text, top_k)
    t2i, t2i_similarity = top_candidates(text, image, top_k)
    captions = len(text)
    i2t_pairs = torch.arange(len(i2t))[:, None] * captions + i2t
    t2i_pairs = t2i * captions + torch.arange(captions)[:, None]
    pairs, place = torch.unique(torch.cat([i2t_pairs.flatten(), t2i_pairs.flatten()]), return_inverse=True)
    with inference(model, device, precision):
        logits = fuse_pairs(model, embedded, pairs // captions, pairs % captions, device, weights, description)
    i2t_match, i2t_alignment = [part[place[: i2t.numel()]].view_as(i2t) for part in logits]
    t2i_match, t2i_alignment = [part[place[i2t.numel() :]].view_as(t2i) for part in logits]
    own = torch.from_numpy(embedded.image_of_caption)
    ranks = ranks_from_embeddings(image, text, embedded.image_of_caption)
    i2t_right, t2i_right = own[i2t] == torch.arange(len(i2t))[:, None], t2i == own[:, None]
    counts = np.bincount(embedded.image_of_caption), np.ones(captions, np.int64)
    bound = float(image.norm(dim=1).max() * text.norm(dim=1).max())
    return Candidates(
        Shortlist(i2t, i2t_similarity, i2t_match, i2t_alignment, i2t_right, counts[0], ranks.i2t, bound),
        Shortlist(t2i, t2i_similarity, t2i_match, t2i_alignment, t2i_right, counts[1], ranks.t2i, bound),
    )


def reranked_ranks(candidates: Candidates, logit_scale: float, weights: Weights) -> Ranks:
    """What images and captions found after re-ranking."""
    return Ranks(*(shortlist.reranked(logit_scale, weights) for shortlist in candidates))


def choose_strength(embedded: Embedded, querybank: QueryBank, logit_scale: float) -> float:
    """The best strength of the biases, of `STRENGTHS`, by `mean_log_rank`; of equally good ones the smallest."""
    whole = querybank._replace(strength=1.0)
    image_bias = whole.image_bias(embedded.image, logit_scale)
    text_bias = whole.text_bias(embedded.text, logit_scale)
    scores = []
    for strength in STRENGTHS:
        biased = replace(embedded, image_bias=strength * image_bias, text_bias=strength * text_bias)
        image, text = biased.ranking
        scores.append(mean_log_rank(*ranks_from_embeddings(image, text, embedded.image_of_caption).ranks))
    return STRENGTHS[int(np.argmin(scores))]


def choose_weights(candidates: Candidates, logit_scale: float) -> Weights:
    """The best weights by `mean_log_rank`; of equally good ones those with the smallest sum."""
    every = sorted((Weights(*both) for both in product(CHOICES, repeat=2)), key=sum)
    scores = [mean_log_rank(*(both.ranks(logit_scale, weights) for both in candidates)) for weights in every]
    return every[int(np.argmin(scores))]


def top_candidates(queries: Tensor, gallery: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The best `top_k` of `gallery` (G, d) for each of `queries` (Q, d) by inner product; of equals the first ones.

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
    """Distinct int64 (Q, G) in the order of `scores` float32 (Q, G), of equal ones the first one highest.

    `topk` alone picks among equals as it likes. A float's bits, read as an integer, are in the order of its value, and
    below zero in the reverse order.
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
    itm, align = (True, True) if weights is None else (bool(weights.match), bool(weights.alignment))
    logits = torch.zeros(2, len(images))
    with progress(None, description, unit="pair", total=len(images), **progress_options) as bar:
        for batch in _pair_batches(states, images, captions, device) if itm or align else ():
            (image, image_of_pair), (caption, caption_of_pair) = (
                torch.unique(items[batch], return_inverse=True) for items in (images, captions)
            )
            inputs = states.grid[image], *states.padded_tokens(caption), image_of_pair, caption_of_pair
            given = [tensor.to(device) for tensor in inputs]
            if itm:
                logits[0, batch] = model.fusion(*given).score.float().cpu()
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
