"""Evaluation of a version on real queries, whose results users have judged."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import DiptychError
from diptych.serving.index import Index
from diptych.serving.searcher import Searcher

DEPTH = 1_000
"""Results among which a judged image is looked for."""
_RELEVANCE = re.compile("-?[0-9]{1,9}")

log = logging.getLogger(__name__)


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


class JudgedQuery(NamedTuple):
    """A query, and the images that users have judged for it."""

    text: str
    right: list[str]
    """SHA-256 of the right images."""
    wrong: list[str]


class JudgedRanks(NamedTuple):
    """Ranks of the judged images of Q queries."""

    rank: NDArray[np.float64]
    """(Q,), ranks of the first right images: infinite beyond `DEPTH`, NaN where no right image is in the collection."""
    wrong: NDArray[np.int64]
    """(Q,), numbers of wrong images among the first ten."""


def measure(searcher: Searcher, judged: Sequence[JudgedQuery]) -> QueryMetrics:
    """Return how a version ranks the judged images of real queries.

    Raises:
        DiptychError: no query has a right image in the collection.
    """
    ranks = rank_judged(searcher, judged)
    kept = ~np.isnan(ranks.rank)
    rank, wrong = ranks.rank[kept], ranks.wrong[kept]
    return QueryMetrics(len(rank), float((1 / rank).mean()), float(100 * (rank <= 10).mean()), float(wrong.mean()))


def rank_judged(searcher: Searcher, judged: Sequence[JudgedQuery]) -> JudgedRanks:
    """Return the ranks of the judged images, by a search for each query.

    Raises:
        DiptychError: no query has a right image in the collection.
    """
    count_answerable(searcher.index, judged)
    rank, wrong = np.full(len(judged), np.nan), np.zeros(len(judged), np.int64)
    for number, query in enumerate(judged):
        wanted, refused = _rows(searcher.index, query.right), _rows(searcher.index, query.wrong)
        if not wanted:
            continue
        encoded = searcher.retriever.encode_texts([query.text], tokens=searcher.reranks)
        found = searcher.search(encoded, k=DEPTH).rows
        hits = np.flatnonzero(np.isin(found, wanted))
        rank[number] = hits[0] + 1 if len(hits) else np.inf
        wrong[number] = np.isin(found[:10], refused).sum()
    return JudgedRanks(rank, wrong)


def count_answerable(index: Index, judged: Sequence[JudgedQuery]) -> int:
    """Return the number of queries with a right image in the index.

    Raises:
        DiptychError: it is 0.
    """
    count = sum(bool(_rows(index, query.right)) for query in judged)
    if not count:
        raise DiptychError(
            f"No query has a right image that is in the collection {index.collection}. Name the collection that users "
            "have searched, or export their judgements again: `diptych feedback export`."
        )
    return count


def read_judged_queries(folder: Path) -> list[JudgedQuery]:
    """Return the queries in qrels.txt and queries.tsv of a folder that `diptych feedback export` has written.

    Judgements without a query are left out with a warning.

    Raises:
        DiptychError: a file is missing or damaged.
    """
    right, wrong = _read_qrels(folder / "qrels.txt")
    queries = _read_queries(folder / "queries.tsv")
    lost = sum(len(hashes) for judged in (right, wrong) for number, hashes in judged.items() if number not in queries)
    if lost:
        log.warning("%s: %d judgements do not count, for queries.tsv lacks their queries", folder / "qrels.txt", lost)
    return [JudgedQuery(text, right[number], wrong[number]) for number, text in queries.items()]


def _rows(index: Index, hashes: Sequence[str]) -> list[int]:
    """Return the rows of those images that the collection has."""
    return [row for row in map(index.row_of, hashes) if row is not None]


def _read_qrels(path: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the hashes of right and of wrong images, by query."""
    right: dict[str, list[str]] = defaultdict(list)
    wrong: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(_lines(path), start=1):
        fields = line.split()
        if len(fields) != 4 or not _RELEVANCE.fullmatch(fields[3]):
            raise DiptychError(f"{path}: line {number} is no judgement; `query 0 hash relevance` is needed.")
        (right if int(fields[3]) > 0 else wrong)[fields[0]].append(fields[2])
    return right, wrong


def _read_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        name, tab, text = line.partition("\t")
        name = name.strip()
        if not tab or not name or not text.strip():
            raise DiptychError(f"{path}: line {number} is no query; its number, a tab and its text are needed.")
        if name in queries:
            raise DiptychError(f"{path}: line {number} repeats the number {name}; give each query another one.")
        queries[name] = text
    return queries


def _lines(path: Path) -> list[str]:
    try:
        # Editors and spreadsheets put a byte order mark before the first line.
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiptychError(f"{path} cannot be read: {error}.") from None
