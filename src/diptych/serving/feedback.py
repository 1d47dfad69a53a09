"""Users' judgements of results: storage, export and evaluation.

Marks are lines of JSON in one file that only grows. Confirmed pairs become a drop of new captions for the inbox, and
all judged pairs become relevance judgements in the form of TREC.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from diptych.data.tables import USUAL_SUFFIXES
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.serving.index import Index
from diptych.serving.searcher import Searcher

DEPTH = 1_000
"""Results among which a judged image is looked for."""


class Mark(BaseModel):
    """A user's judgement of one result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: str
    """Time in UTC, as ISO 8601."""
    query: str
    hash: str
    """SHA-256 of the image file."""
    right: bool
    collection: str
    model: str
    """The version that found it."""
    index_version: int
    who: str = ""
    """Name or random number of the user, whose last mark on a result counts; empty where each mark counts."""


class Marks:
    """The file of marks at `path`, which threads may add to at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()

    def add(self, mark: Mark) -> None:
        """Add a mark; it is on the disk when this returns."""
        line = mark.model_dump_json().encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.path.open("ab+") as file:
            # A killed process may have left half a line.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self, collection: str) -> list[Mark]:
        """Return the marks on a collection, in their order; a line that a kill cut off is left out.

        Raises:
            DiptychError: there are none, or another line is damaged; the message names it.
        """
        # JSON escapes line feeds, and no other separator of lines.
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        marks = []
        for number, line in enumerate(filter(None, lines), start=1):
            try:
                marks.append(Mark.model_validate_json(line))
            except ValidationError as error:
                if not line.endswith(b"}"):
                    continue
                reason = error.errors()[0]["msg"]
                raise DiptychError(f"{self.path}: line {number} is no mark: {reason}. Correct or remove it.") from None
        of_collection = [mark for mark in marks if mark.collection == collection]
        if not of_collection:
            raise DiptychError(
                f"Nobody has marked a result of {collection} yet; `diptych serve --feedback` lets users do so."
            )
        return of_collection


def judgements(marks: Sequence[Mark]) -> dict[tuple[str, str], bool]:
    """Return whether each pair of a query and the hash of an image is right, by the majority; ties are left out."""
    last = {(mark.query, mark.hash, mark.who or number): mark.right for number, mark in enumerate(marks)}
    votes: dict[tuple[str, str], int] = defaultdict(int)
    for (query, digest, _), right in last.items():
        votes[query, digest] += 1 if right else -1
    return {pair: vote > 0 for pair, vote in votes.items() if vote}


def export_drop(marks: Sequence[Mark], index: Index, folder: Path) -> int:
    """Write the confirmed pairs as the new folder of a drop, and return their number; queries become captions.

    Raises:
        DiptychError: no pair is confirmed, or an image is gone.
    """
    pairs = [pair for pair, right in judgements(marks).items() if right]
    rows = [(query, digest, index.row_of(digest)) for query, digest in pairs]
    here = [(query, digest, row) for query, digest, row in rows if row is not None]
    if not here:
        raise DiptychError("No pair of a query and an image that is in the collection is confirmed yet.")
    with atomic_path(folder) as temporary:
        (temporary / "images").mkdir(parents=True)
        with (temporary / "captions.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "caption"])
            for query, digest, row in here:
                record = index.records(np.array([row]))[0]
                suffix = PurePosixPath(record.path).suffix.lower()
                name = digest + (suffix if suffix in USUAL_SUFFIXES else ".jpg")
                (temporary / "images" / name).write_bytes(index.original(record))
                table.writerow([name, query])
    return len(here)


def export_qrels(marks: Sequence[Mark], folder: Path) -> int:
    """Write qrels.txt (query, 0, hash, 1 or 0) and queries.tsv to a new folder; return the number of judgements."""
    judged = judgements(marks)
    numbers = {query: f"q{number}" for number, query in enumerate(dict.fromkeys(query for query, _ in judged), start=1)}
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        lines = [f"{numbers[query]} 0 {digest} {int(right)}\n" for (query, digest), right in judged.items()]
        (temporary / "qrels.txt").write_text("".join(lines), encoding="utf-8")
        texts = [f"{number}\t{' '.join(query.split())}\n" for query, number in numbers.items()]
        (temporary / "queries.tsv").write_text("".join(texts), encoding="utf-8")
    return len(judged)


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
