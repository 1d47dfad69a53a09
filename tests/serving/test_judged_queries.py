"""A version is measured on queries whose results users have judged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from searching import Collection, photo

from diptych.errors import DiptychError
from diptych.serving.judged_queries import JudgedQuery, measure, rank_judged, read_judged_queries
from diptych.serving.searcher import Hits, Searcher

HASHES = [hashlib.sha256(photo(seed)).hexdigest() for seed in range(7)]


def test_a_version_is_measured_by_them(indexed: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = Searcher(indexed.retriever, indexed.open())
    row = [searcher.index.row_of(digest) for digest in HASHES]
    # Many other images come first for the second query, of which the right one is beyond the first ten. The third one's
    # is not among the results, and the fourth one's has left the collection.
    others = [1000 + number for number in range(20)]
    ranked = {"a cat": [row[3], row[0], *others], "a dog": [*others, row[3]], "a hen": others}
    monkeypatch.setattr(searcher.retriever, "encode_texts", lambda texts, tokens: texts[0])
    monkeypatch.setattr(
        searcher, "search", lambda text, k: Hits(np.array(ranked[text]), np.zeros(0, np.float32), 22, 0, None)
    )
    (tmp_path / "qrels.txt").write_text(
        f"q1 0 {HASHES[0]} 1\nq1 0 {HASHES[3]} 0\nq2 0 {HASHES[3]} 1\nq3 0 {HASHES[1]} 1\nq4 0 {'0' * 64} 1\n"
    )
    (tmp_path / "queries.tsv").write_text("q1\ta cat\nq2\ta dog\nq3\ta hen\nq4\ta fox\n")

    judged = read_judged_queries(tmp_path)
    ranks = rank_judged(searcher, judged)
    assert ranks.rank.tolist() == pytest.approx([2, 21, np.inf, np.nan], nan_ok=True)
    assert ranks.wrong.tolist() == [1, 0, 0, 0]
    assert list(measure(searcher, judged)) == pytest.approx([3, (1 / 2 + 1 / 21) / 3, 100 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("qrels", "queries", "message"),
    [
        ("q1 0 abc\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        ("q1 0 abc good\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        ("q1 0 abc \u00b2\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        ("q1 0 abc --1\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        (f"q1 0 abc {'9' * 5000}\n", "q1\ta\n", r"qrels\.txt: line 1 is no judgement"),
        ("q1 0 abc 1\n", "q1 a\n", r"queries\.tsv: line 1 is no query"),
        ("q1 0 abc 1\n", " \ta\n", r"queries\.tsv: line 1 is no query"),
        ("q1 0 abc 1\n", "q1\ta\nq1 \tb\n", r"queries\.tsv: line 2 repeats the number q1"),
        ("q1 0 abc 1\n", None, r"queries\.tsv cannot be read"),
    ],
)
def test_files_that_cannot_be_measured_by_are_named(
    tmp_path: Path, qrels: str, queries: str | None, message: str
) -> None:
    (tmp_path / "qrels.txt").write_text(qrels, encoding="utf-8")
    if queries is not None:
        (tmp_path / "queries.tsv").write_text(queries)
    with pytest.raises(DiptychError, match=message):
        read_judged_queries(tmp_path)


def test_files_that_a_spreadsheet_has_written_are_read(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 abc 1\nq1 0 def -1\n", encoding="utf-8-sig")
    (tmp_path / "queries.tsv").write_text("q1 \ta cat\n", encoding="utf-8-sig")

    assert read_judged_queries(tmp_path) == [JudgedQuery("a cat", ["abc"], ["def"])]


def test_judgements_without_a_query_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 abc 1\nq2 0 abc 1\nq2 0 def 0\nq3 0 abc 0\n")
    (tmp_path / "queries.tsv").write_text("q1\ta cat\n")

    assert read_judged_queries(tmp_path) == [JudgedQuery("a cat", ["abc"], [])]
    assert f"{tmp_path / 'qrels.txt'}: 3 judgements do not count, for queries.tsv lacks their queries" in caplog.text


@pytest.mark.parametrize("judged", [[], [JudgedQuery("a cat", ["0" * 64], HASHES)]])
def test_without_a_right_image_in_the_collection_nothing_is_measured(
    indexed: Collection, judged: list[JudgedQuery]
) -> None:
    with pytest.raises(DiptychError, match="No query has a right image that is in the collection photos"):
        measure(Searcher(indexed.retriever, indexed.open()), judged)
