"""Marks are kept, and become pairs to learn from and judgements to measure by."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
from searching import Collection, photo

from diptych.errors import DiptychError
from diptych.inbox.folder import FolderInbox
from diptych.serving.feedback import Mark, Marks, export_drop, export_qrels, judgements

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


def test_the_last_mark_of_a_user_counts() -> None:
    marks = [mark("a cat", 0, right).model_copy(update={"who": who}) for right, who in ((False, "ada"), (True, "ada"))]
    assert judgements(marks) == {("a cat", HASHES[0]): True}
    assert judgements([*marks, mark("a cat", 0, False).model_copy(update={"who": "bob"})]) == {}


def test_a_query_with_separators_of_lines_is_one_line(marks: Marks) -> None:
    odd = mark("a\u2028cat\u2029\x85", 0, True)
    marks.add(odd)
    marks.add(MARKS[0])
    assert marks.read("photos") == [odd, MARKS[0]]


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
