"""A search gives the results of `Retriever.rank`."""

from __future__ import annotations

import numpy as np
import pytest
from searching import Collection

from diptych import Encoded
from diptych.errors import DiptychError
from diptych.model.package import Calibration
from diptych.serving.filters import parse_filter
from diptych.serving.searcher import Searcher

TEXT = "a red square left of a blue circle"


@pytest.fixture
def searcher(indexed: Collection) -> Searcher:
    return Searcher(indexed.retriever, indexed.open())


@pytest.fixture
def query(searcher: Searcher) -> Encoded:
    return searcher.retriever.encode_texts([TEXT], tokens=True)


@pytest.mark.parametrize("rerank", [False, True])
def test_a_text_ranks_images_as_the_retriever_does(
    searcher: Searcher, indexed: Collection, query: Encoded, rerank: bool
) -> None:
    assert searcher.reranks
    gallery = searcher.retriever.encode_images([indexed.photos / path for path in indexed.paths()], tokens=True)
    expected = searcher.retriever.rank(query, gallery, k=7, rerank=rerank)
    hits = searcher.search(query, k=7, rerank=rerank)

    assert hits.rows.tolist() == expected.items[0].tolist()
    assert hits.scores == pytest.approx(expected.score[0], abs=0.02)
    assert hits.total == 7
    assert hits.reranked == (searcher.retriever.reranking.top_k if rerank else 0)


def test_pages_follow_each_other(searcher: Searcher, query: Encoded) -> None:
    whole = searcher.search(query, k=7).rows.tolist()
    pages = [searcher.search(query, k=3, offset=offset).rows.tolist() for offset in (0, 3, 6, 9)]
    assert [row for page in pages for row in page] == whole
    assert pages[2:] == [whole[6:], []]


def test_filters_leave_the_order_as_it_is(searcher: Searcher, indexed: Collection, query: Encoded) -> None:
    paths = indexed.paths()
    everything = [paths[row] for row in searcher.search(query, k=7, rerank=False).rows]
    hits = searcher.search(query, k=7, filters=[parse_filter("folder=cats")], rerank=False)
    assert [paths[row] for row in hits.rows] == [path for path in everything if path.startswith("cats/")]
    assert hits.total == 3
    assert searcher.search(query, k=7, filters=[parse_filter("folder=birds")]).rows.tolist() == []


def test_an_image_is_most_like_itself_and_ranks_by_the_cosine(searcher: Searcher, indexed: Collection) -> None:
    index = searcher.index
    digest = index.records(np.array([4]))[0].hash
    stored = searcher.stored(digest)
    assert stored is not None
    hits = searcher.search(stored, k=7)
    cosines = np.asarray(index.vectors[:, :-1] @ index.vectors[4, :-1])

    assert hits.rows[0] == 4
    assert hits.rows.tolist() == np.argsort(-cosines, kind="stable").tolist()
    assert hits.scores == pytest.approx(searcher.retriever.logit_scale * np.sort(cosines)[::-1], rel=1e-4)
    assert hits.reranked == 0
    assert searcher.stored("0" * 64) is None
    assert searcher.stored("../../etc/passwd") is None


@pytest.mark.parametrize(("k", "offset"), [(0, 0), (-1, 0), (1, -1)])
def test_impossible_pages_are_refused(searcher: Searcher, query: Encoded, k: int, offset: int) -> None:
    with pytest.raises(DiptychError, match="k is at least 1, and offset at least 0"):
        searcher.search(query, k=k, offset=offset)


def test_an_index_without_grid_tokens_is_searched_without_reranking(collection: Collection) -> None:
    collection.update(rerank=False)
    searcher = Searcher(collection.retriever, collection.open())
    assert not searcher.reranks
    assert searcher.search(searcher.retriever.encode_texts([TEXT]), k=3).reranked == 0


def test_the_probability_is_that_of_the_first_image_whatever_is_shown(
    searcher: Searcher, query: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searcher.search(query, k=1).probability is None
    calibration = Calibration(intercept=-1.0, score=0.25, margin=2.0, images=7, reliability=[])
    monkeypatch.setattr(searcher.retriever, "calibration", calibration)
    first, second = searcher.search(query, k=2).scores.tolist()
    expected = 1 / (1 + np.exp(1 - 0.25 * first - 2 * (first - second)))

    for k, offset in ((1, 0), (7, 0), (2, 3)):
        assert searcher.search(query, k=k, offset=offset).probability == pytest.approx(expected, rel=1e-4)
    # The calibration is of scores with the fusion's.
    assert searcher.search(query, k=3, rerank=False).probability is None
    stored = searcher.stored(searcher.index.records(np.array([0]))[0].hash)
    assert stored is not None
    assert searcher.search(stored, k=3).probability is None
