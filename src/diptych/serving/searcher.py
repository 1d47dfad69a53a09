"""Search: the images of an index that fit a text or another image best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.retriever import Encoded, Ranking
from diptych.serving.filters import Filter, matching
from diptych.serving.index import Index

if TYPE_CHECKING:
    from diptych.retriever import Retriever


class Hits(NamedTuple):
    """The results of one query, best first."""

    rows: NDArray[np.int64]
    """(k,), rows in the index."""
    scores: NDArray[np.float32]
    """(k,). As `Retriever.rank` gives them."""
    total: int
    """Number of images that pass the filters."""
    reranked: int
    """Number of first images that the fusion has re-ranked."""
    probability: float | None
    """Probability that the first image is right for a text. None for an image, without a calibration, and without the
    re-ranking that the calibration was fitted with."""


class Searcher:
    """Search of an index by the model that it was made with: exact, or approximate in a large collection.

    A text ranks images as `Retriever.rank` does. An image ranks others by the cosine, without biases: a bias says how
    well an image scores for texts in general.
    """

    def __init__(self, retriever: Retriever, index: Index) -> None:
        self.retriever, self.index = retriever, index

    @property
    def reranks(self) -> bool:
        """True if texts can be re-ranked: the fusion has a weight, and the index has the grid tokens that it reads."""
        return any(self.retriever.weights.t2i) and self.index.state.grid is not None

    def search(
        self, query: Encoded, *, k: int, offset: int = 0, filters: Sequence[Filter] = (), rerank: bool = True
    ) -> Hits:
        """Return the results `offset` to `offset + k` of one encoded query.

        Args:
            query: a text, encoded with tokens if it is re-ranked, or an image.
            k: number of results, at least one.
            offset: number of better results that are left out.
            filters: comparisons that images have to pass.
            rerank: whether the fusion re-ranks a text's first results.

        Raises:
            DiptychError: k or the offset is out of range, or a filter does not fit the collection.
        """
        if k < 1 or offset < 0:
            raise DiptychError(f"k is {k} and offset {offset}: k is at least 1, and offset at least 0.")
        is_text = query.offsets is not None
        rows = self.allowed(filters) if filters else None
        total = len(self.index) if rows is None else len(rows)
        rerank = rerank and is_text and self.reranks
        # The probability is that of the first two, whatever is shown.
        depth = min(total, max(2, offset + k, self.retriever.reranking.top_k if rerank else 0))
        if total <= offset:
            return Hits(np.zeros(0, np.int64), np.zeros(0, np.float32), total, 0, None)
        found, scores = self._first(query, rows, depth, biased=is_text)
        head = min(depth, self.retriever.reranking.top_k) if rerank else 0
        if head:
            found, scores = self._reranked(query, found, scores, head)
        page = slice(offset, offset + k)
        # The calibration was fitted on scores with the fusion's, where it has a weight.
        is_calibrated = is_text and (head > 0 or not any(self.retriever.weights.t2i))
        calibrated = self.retriever.probabilities(Ranking(found[None], scores[None])) if is_calibrated else None
        probability = None if calibrated is None else float(calibrated[0])
        return Hits(found[page], scores[page], total, head, probability)

    def stored(self, digest: str) -> Encoded | None:
        """Return the image whose file has this SHA-256, as a query; None where the index has none."""
        row = self.index.row_of(digest)
        if row is None:
            return None
        vector = self.index.vectors[[row]]
        return Encoded(vector[:, :-1], -vector[:, -1])

    def warm(self) -> None:
        """Read what a search reads, so that the first one is as fast as others."""
        self.search(self.retriever.encode_texts(["a photo"], tokens=self.reranks), k=1)
        self.index.row_of("")

    def allowed(self, filters: Sequence[Filter]) -> NDArray[np.int64]:
        """Return the rows of the images that pass all filters, ascending.

        Raises:
            FilterError: a filter does not fit the collection.
        """
        mask = matching(filters, self.index.attributes)
        return np.arange(len(self.index)) if mask is None else np.flatnonzero(mask)

    def _first(
        self, query: Encoded, rows: NDArray[np.int64] | None, depth: int, *, biased: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the first rows by the embeddings, and their scores."""
        approximate = self.index.state.approximate
        probes = None if approximate is None else approximate.probes
        asking = np.append(query.embedding[0], np.float32(biased))
        found, similarity = self.index.nearest(asking, depth, among=rows, probes=probes)
        bias = query.bias[0] if biased else np.float32(0)
        return found, np.float32(self.retriever.logit_scale) * (similarity - bias)

    def _reranked(
        self, query: Encoded, found: NDArray[np.int64], scores: NDArray[np.float32], head: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the results with the first `head` of them in the order of the fusion."""
        import torch

        # Equal candidates keep the order of the index, as in a ranking of all images.
        candidates = np.sort(found[:head])
        vectors = self.index.vectors[candidates]
        grids = torch.from_numpy(self.index.grids(candidates).astype(np.float32))
        ranking = self.retriever.rank(query, Encoded(vectors[:, :-1], -vectors[:, -1], grids), k=head)
        first = candidates[ranking.items[0]]
        return np.concatenate([first, found[head:]]), np.concatenate([ranking.score[0], scores[head:]])
