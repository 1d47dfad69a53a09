"""The worker answers everybody, batches those who wait, and refuses more than its limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from searching import Collection, FakeModels

from diptych import Retriever
from diptych.serving.filters import FilterError, parse_filter
from diptych.serving.following import Following
from diptych.serving.worker import BusyError, NotInIndexError, Query, Worker

TEXTS = ["a red square", "a blue circle", "two stars", "a dog", "snow"]


@pytest.fixture
def following(indexed: Collection) -> Following:
    following = Following(FakeModels(indexed.retriever), indexed.store, indexed.name)
    following.refresh()
    return following


class Gate:
    """Holds the worker in the encoding of texts until it is opened, and counts the batches."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []
        whole = Retriever.encode_texts

        def encode(retriever: Retriever, texts: list[str], **options: Any) -> Any:
            self.batches.append(list(texts))
            self.entered.set()
            assert self.opened.wait(30)
            return whole(retriever, texts, **options)

        patch.setattr(Retriever, "encode_texts", encode)


@pytest.fixture
def gate(following: Following, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def worker(following: Following) -> Iterator[Worker]:
    worker = Worker(following, limit=4)
    yield worker
    worker.close()


def test_texts_that_wait_are_encoded_together_and_answered_as_alone(
    worker: Worker, gate: Gate, following: Following
) -> None:
    first = worker.submit(Query(k=7, text=TEXTS[0]))
    assert gate.entered.wait(30)
    others = [worker.submit(Query(k=7, text=text)) for text in TEXTS[1:]]
    gate.opened.set()
    together = [future.result(30).hits for future in (first, *others)]

    assert gate.batches == [TEXTS[:1], TEXTS[1:]]
    for text, hits in zip(TEXTS, together, strict=True):
        alone = worker.submit(Query(k=7, text=text)).result(30).hits
        assert hits.rows.tolist() == alone.rows.tolist()
        assert hits.scores == pytest.approx(alone.scores, abs=1e-3)


def test_more_than_the_limit_are_refused_and_the_others_answered(worker: Worker, gate: Gate) -> None:
    first = worker.submit(Query(k=1, text="a"))
    assert gate.entered.wait(30)
    waiting = [worker.submit(Query(k=1, text="b")) for _ in range(4)]
    assert worker.waiting == 4
    with pytest.raises(BusyError, match="Too many requests wait"):
        worker.submit(Query(k=1, text="c"))
    waiting[0].cancel()
    gate.opened.set()
    assert all(len(future.result(30).hits.rows) == 1 for future in (first, *waiting[1:]))
    assert sum(map(len, gate.batches)) == 4


def test_an_error_is_that_of_its_query_alone(worker: Worker, gate: Gate) -> None:
    blocking = worker.submit(Query(k=1, text="a"))
    assert gate.entered.wait(30)
    wrong = worker.submit(Query(k=1, text="b", filters=[parse_filter("year=1")]))
    absent = worker.submit(Query(k=1, like="0" * 64))
    right = worker.submit(Query(k=1, text="c"))
    gate.opened.set()
    with pytest.raises(FilterError):
        wrong.result(30)
    with pytest.raises(NotInIndexError):
        absent.result(30)
    assert len(right.result(30).hits.rows) == len(blocking.result(30).hits.rows) == 1


def test_other_computations_wait_their_turn_and_have_errors_of_their_own(worker: Worker, gate: Gate) -> None:
    blocking = worker.submit(Query(k=1, text="a"))
    assert gate.entered.wait(30)
    size = worker.compute(lambda served: len(served.index))
    wrong = worker.compute(lambda served: served.index.records("no rows"))  # type: ignore[arg-type]
    right = worker.submit(Query(k=1, text="c"))
    gate.opened.set()
    assert size.result(30) == 7
    assert wrong.exception(30) is not None
    assert len(right.result(30).hits.rows) == len(blocking.result(30).hits.rows) == 1


def test_at_its_end_the_worker_answers_what_waits(following: Following) -> None:
    worker = Worker(following, limit=4)
    futures = [worker.submit(Query(k=1, text=text)) for text in TEXTS[:3]]
    worker.close()
    assert [len(future.result(0).hits.rows) for future in futures] == [1, 1, 1]
