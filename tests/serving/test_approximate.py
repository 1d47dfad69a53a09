"""Approximate search names candidates; what it finds is measured, and scored exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from large_index import Large
from numpy.typing import NDArray
from searching import Collection

from diptych.serving import approximate, index, indexing
from diptych.serving.approximate import choose_probes
from diptych.serving.index import Index
from diptych.serving.partitions import create_partitions

Vectors = NDArray[np.float32]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Large:
    monkeypatch.setattr(index, "APPROXIMATE_FROM", 1_000)
    monkeypatch.setattr(approximate, "_TEXTS", 100)
    return Large(tmp_path)


def recall(opened: Index, queries: Vectors, probes: int) -> float:
    """Return the share of the first ten of a slow, exact search that is found."""
    shares = []
    for query in queries:
        exact = np.argsort(-(opened.vectors @ query), kind="stable")[:10]
        shares.append(len(np.intersect1d(opened.nearest(query, 10, probes=probes)[0], exact)) / 10)
    return float(np.mean(shares))


def test_the_measured_recall_is_that_of_other_texts(large: Large) -> None:
    partitions = create_partitions(large.table, None)
    opened = large.open("first")
    chosen = choose_probes(opened, large.texts, partitions, 0.9)

    assert partitions == round(3_500**0.5)
    assert chosen.probes is not None
    assert 1 <= chosen.probes <= partitions / 2
    assert chosen.recall >= 0.9
    assert recall(opened, large.queries, chosen.probes) == pytest.approx(chosen.recall, abs=0.05)
    # Fewer partitions would find less than the choice aims at.
    assert chosen.probes == 1 or recall(opened, large.queries, chosen.probes // 2) < chosen.recall


def test_what_is_found_has_exact_scores_in_exact_order(large: Large) -> None:
    opened = large.open("first") if create_partitions(large.table, None) else None
    assert opened is not None
    for query in large.queries[:5]:
        found, products = opened.nearest(query, 10, probes=4)
        assert products == pytest.approx(opened.vectors[found] @ query, abs=1e-6)
        assert (np.diff(products) <= 0).all()


def test_filters_choose_among_candidates_or_all_that_pass(large: Large) -> None:
    create_partitions(large.table, None)
    opened, query = large.open("first"), large.queries[0]
    half = np.arange(0, len(opened), 2)
    found, _ = opened.nearest(query, 10, among=half, probes=8)
    assert set(found) <= set(half.tolist())

    # Few rows, and rows far from the query, are searched exactly.
    few = np.arange(5, 500)
    far = np.sort(np.argsort(opened.vectors @ query)[:2_000])
    for among in (few, far):
        exact = opened.nearest(query, 10, among=among)[0]
        assert opened.nearest(query, 10, among=among, probes=1)[0].tolist() == exact.tolist()


def test_many_results_are_searched_exactly(large: Large) -> None:
    create_partitions(large.table, None)
    opened, query = large.open("first"), large.queries[0]
    assert opened.nearest(query, 300, probes=1)[0].tolist() == opened.nearest(query, 300)[0].tolist()


def test_where_too_little_is_found_search_is_exact(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    partitions = create_partitions(large.table, None)
    monkeypatch.setattr(index, "nearest_ids", lambda table, query, probes, limit: np.arange(500, 540, dtype=np.uint64))
    chosen = choose_probes(large.open("first"), large.texts, partitions, 0.98)
    assert chosen.probes is None
    assert chosen.recall < 0.5


def test_equal_images_are_as_good_as_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "APPROXIMATE_FROM", 1_000)
    monkeypatch.setattr(approximate, "_TEXTS", 100)
    large = Large(tmp_path, copies=20)
    partitions = create_partitions(large.table, None)
    chosen = choose_probes(large.open("first"), large.texts, partitions, 0.98)
    assert chosen.probes is not None
    assert chosen.recall >= 0.98


def test_partitions_that_cannot_be_read_leave_exact_search(large: Large, caplog: pytest.LogCaptureFixture) -> None:
    create_partitions(large.table, None)
    opened, query = large.open("first"), large.queries[0]
    exact = opened.nearest(query, 10)[0].tolist()
    large.store.remove("large")
    assert opened.nearest(query, 10, probes=4)[0].tolist() == exact
    assert "The partitions of large cannot be read" in caplog.text


def test_a_large_collection_is_searched_approximately_until_told_otherwise(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (index, indexing):
        monkeypatch.setattr(module, "APPROXIMATE_FROM", 5)
    monkeypatch.setattr(approximate, "FIRST", 2)
    monkeypatch.setattr(indexing, "LEAST_TEXTS", 2)
    summary = collection.update(min_recall=0.1)
    assert summary.state.approximate is not None
    assert "partitions and finds" in summary.describe()
    assert collection.update().state == summary.state.model_copy(update={"scanned": collection.open().state.scanned})

    # Asked for less, it is chosen anew.
    other = collection.update(min_recall=0.2).state
    assert other.approximate is not None
    assert other.approximate.min_recall == 0.2

    exact = collection.update(min_recall=1)
    assert exact.state.approximate is None
    assert exact.state.build != summary.state.build
    # It is remembered, until asked otherwise.
    assert collection.update().state.approximate is None
    assert collection.update(min_recall=0.1).state.approximate is not None
