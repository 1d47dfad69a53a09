"""Users' judgements of results: storage and export.

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

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from diptych.data.tables import USUAL_SUFFIXES
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.serving.index import Index


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
