"""Evaluation of a version on real queries, whose results users have judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diptych.errors import DiptychError
from diptych.serving.index import Index
from diptych.serving.searcher import Searcher

DEPTH = 1_000
"""Results among which a judged image is looked for."""


class QueryMetrics(NamedTuple):
    """Figures of a version's ranking of the images that users have judged."""

    queries: int
    """Queries with a right image that is in the collection."""
    mrr: float
    """Mean reciprocal rank of the first right image."""
    recall_at_10: float
    """Share of queries with a right image among the first ten, in percent."""
    wrong_at_10: float
    """Mean number of images that were judged wrong among the first ten."""


def measure(searcher: Searcher, queries: Path, qrels: Path) -> QueryMetrics:
    """Return how a version ranks the judged images of real queries.

    Raises:
        DiptychError: a file is damaged, or no query has a right image in the collection.
    """
    right, wrong = _read_qrels(qrels)
    index, ranks, wrongs = searcher.index, [], []
    for number, text in _read_queries(queries).items():
        wanted, refused = _rows(index, right[number]), _rows(index, wrong[number])
        if not wanted:
            continue
        encoded = searcher.retriever.encode_texts([text], tokens=searcher.reranks)
        found = searcher.search(encoded, k=DEPTH).rows
        hits = np.flatnonzero(np.isin(found, wanted))
        ranks.append(hits[0] + 1 if len(hits) else np.inf)
        wrongs.append(np.isin(found[:10], refused).sum())
    if not ranks:
        raise DiptychError(f"{qrels} has no query with a right image that is in the collection.")
    rank = np.array(ranks, np.float64)
    return QueryMetrics(len(rank), float((1 / rank).mean()), float(100 * (rank <= 10).mean()), float(np.mean(wrongs)))


def _rows(index: Index, hashes: Sequence[str]) -> list[int]:
    """Return the rows of those images that the collection has."""
    return [row for row in map(index.row_of, hashes) if row is not None]


def _read_qrels(path: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the hashes of right and of wrong images, by query."""
    right: dict[str, list[str]] = defaultdict(list)
    wrong: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if len(fields) != 4 or not fields[3].lstrip("-").isdigit():
            raise DiptychError(f"{path}: line {number} is no judgement; `query 0 hash relevance` is needed.")
        (right if int(fields[3]) > 0 else wrong)[fields[0]].append(fields[2])
    return right, wrong


def _read_queries(path: Path) -> dict[str, str]:
    queries = {}
    for number, line in enumerate(_lines(path), start=1):
        name, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise DiptychError(f"{path}: line {number} is no query; its number, a tab and its text are needed.")
        queries[name] = text
    return queries


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiptychError(f"{path} cannot be read: {error}.") from None
