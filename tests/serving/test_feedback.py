"""Marks are kept, and become pairs to learn from and judgements to measure by."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from searching import Collection, photo

from diptych.errors import DiptychError
from diptych.inbox.folder import FolderInbox
from diptych.serving.feedback import Mark, Marks, export_drop, export_qrels, judgements, measure
from diptych.serving.searcher import Searcher

HASHES = [hashlib.sha256(photo(seed)).hexdigest() for seed in range(7)]


def mark(query: str, image: int, right: bool, collection: str = "photos") -> Mark:
    when = "2026-11-30T10:00:00+00:00"
    fields = {"collection": collection, "model": "tiny version 1", "index_version": 3}
    return Mark(when=when, query=query, hash=HASHES[image], right=right, **fields)


MARKS = [
    *(mark("a cat", 0, True), mark("a cat", 0, True), mark("a cat", 0, False)),
    *(mark("a cat", 3, False), mark("a dog", 3, True), mark("a dog", 1, True), mark("a dog", 1, False)),
]


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "feedback" / "marks.jsonl")


def test_marks_come_back_in_their_order(marks: Marks) -> None:
    for one in [*MARKS, mark("a cat", 0, True, collection="other")]:
        marks.add(one)
    assert marks.read("photos") == MARKS
    assert len(marks.read("other")) == 1
    with pytest.raises(DiptychError, match="Nobody has marked a result of birds yet"):
        marks.read("birds")


def test_half_a_line_of_a_killed_process_is_left_out(marks: Marks) -> None:
    marks.add(MARKS[0])
    with marks.path.open("ab") as file:
        file.write(b'{"when": "2026-11-30T10')
    marks.add(MARKS[1])
    assert marks.read("photos") == MARKS[:2]


def test_a_damaged_line_is_named(marks: Marks) -> None:
    marks.add(MARKS[0])
    with marks.path.open("ab") as file:
        file.write(b'{"when": 3}\n')
    with pytest.raises(DiptychError, match=r"marks\.jsonl: line 2 is no mark"):
        marks.read("photos")


def test_the_majority_judges_and_ties_are_left_out() -> None:
    assert judgements(MARKS) == {
        ("a cat", HASHES[0]): True,
        ("a cat", HASHES[3]): False,
        ("a dog", HASHES[3]): True,
    }


def test_confirmed_pairs_become_a_drop_that_the_inbox_takes(indexed: Collection, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    gone = mark("a bird", 6, True).model_copy(update={"hash": "0" * 64})
    assert export_drop([*MARKS, gone], indexed.open(), inbox / "november") == 2

    with (inbox / "november" / "captions.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["file", "caption"], [f"{HASHES[0]}.png", "a cat"], [f"{HASHES[3]}.png", "a dog"]]
    assert (inbox / "november" / "images" / f"{HASHES[3]}.png").read_bytes() == photo(3)
    [drop] = FolderInbox(inbox).drops()
    assert (drop.name, drop.problem) == ("november", "")


def test_without_a_confirmed_pair_there_is_no_drop(indexed: Collection, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="No pair of a query and an image"):
        export_drop([mark("a cat", 0, False)], indexed.open(), tmp_path / "drop")
    assert not (tmp_path / "drop").exists()


def test_judgements_are_written_as_trec_has_them(tmp_path: Path) -> None:
    assert export_qrels(MARKS, tmp_path / "judged") == 3
    assert (tmp_path / "judged/qrels.txt").read_text().splitlines() == [
        f"q1 0 {HASHES[0]} 1",
        f"q1 0 {HASHES[3]} 0",
        f"q2 0 {HASHES[3]} 1",
    ]
    assert (tmp_path / "judged/queries.tsv").read_text() == "q1\ta cat\nq2\ta dog\n"


def test_a_version_is_measured_by_them(indexed: Collection, tmp_path: Path) -> None:
    judged = tmp_path / "judged"
    export_qrels(MARKS, judged)
    searcher = Searcher(indexed.retriever, indexed.open())
    metrics = measure(searcher, judged / "queries.tsv", judged / "qrels.txt")

    ranks, wrong = [], 0
    for text, right in (("a cat", 0), ("a dog", 3)):
        found = searcher.search(searcher.retriever.encode_texts([text], tokens=True), k=7).rows
        names = [searcher.index.records(np.array([row]))[0].hash for row in found]
        ranks.append(names.index(HASHES[right]) + 1)
        wrong += text == "a cat"
    assert metrics.queries == 2
    assert metrics.mrr == pytest.approx(np.mean(1 / np.array(ranks)))
    assert metrics.recall_at_10 == 100.0
    assert metrics.wrong_at_10 == wrong / 2


@pytest.mark.parametrize(
    ("qrels", "queries", "message"),
    [
        ("q1 0 abc\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        ("q1 0 abc good\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        ("q1 0 abc 1\n", "q1 a\n", r"queries\.tsv: line 1 is no query"),
        ("q1 0 abc 1\n", "q1\ta\n", "has no query with a right image that is in the collection"),
    ],
)
def test_files_that_cannot_be_measured_by_are_named(
    indexed: Collection, tmp_path: Path, qrels: str, queries: str, message: str
) -> None:
    (tmp_path / "qrels.txt").write_text(qrels)
    (tmp_path / "queries.tsv").write_text(queries)
    with pytest.raises(DiptychError, match=message):
        measure(Searcher(indexed.retriever, indexed.open()), tmp_path / "queries.tsv", tmp_path / "qrels.txt")
