"""A server measures the drift of its queries, and keeps their profile where it may."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from searching import MODEL, OTHER, Collection, FakeModels, photo, profile_of, serve

from diptych import Retriever
from diptych.drift.profile import Profile
from diptych.drift.queries import QueryDrift, compare_queries
from diptych.serving.following import Following, ModelKey
from diptych.serving.queries import ServedQueries, queries_path, read_queries

COLOURS = ("red", "green", "blue", "yellow", "grey", "black", "white", "purple")
SHAPES = ("square", "circle", "triangle", "star", "cross", "ring")
EMBEDDING = np.zeros(16, np.float32)


def captions(seed: int, count: int) -> list[str]:
    random = np.random.default_rng(seed)
    words = ((random.choice(COLOURS), random.choice(SHAPES)) for _ in range(2 * count))
    things = [f"a {colour} {shape}" for colour, shape in words]
    return [f"{left} left of {right}" for left, right in zip(things[::2], things[1::2], strict=True)]


@pytest.fixture(scope="module")
def reference(tiny_retriever: Retriever) -> Profile:
    return profile_of(captions(0, 400), tiny_retriever)


@pytest.fixture
def own(indexed: Collection, reference: Profile, tmp_path: Path) -> Iterator[tuple[TestClient, Following, FakeModels]]:
    """A server of the test's own, which keeps the profile of its queries."""
    yield from serve(indexed, reference, tmp_path / "queries")


def figures(client: TestClient) -> dict[str, float]:
    """The measures of queries."""
    lines = re.findall(r"^diptych_(quer\S+?\{.*\}) (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


def searches(client: TestClient) -> float:
    return figures(client)['queries{what="searches"}']


def add(queries: ServedQueries, retriever: Retriever, texts: list[str]) -> ServedQueries:
    for text, embedding in zip(texts, retriever.encode_texts(texts).embedding, strict=True):
        queries.add(text, embedding)
    return queries


def test_metrics_have_the_distances_of_the_queries(
    own: tuple[TestClient, Following, FakeModels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.serving.queries._MEASURE_EVERY", 0)
    client, _, _ = own
    assert figures(client) == {'queries{what="searches"}': 0, 'queries{what="compared"}': 0}
    for text in ("a red square", "a red zebra", "a red zebra"):
        client.get("/search", params={"text": text})

    found = figures(client)

    assert (found['queries{what="searches"}'], found['queries{what="compared"}']) == (3, 2)
    assert found['query_words{of="queries"}'] == 3
    assert found['query_words{of="captions"}'] == 8
    assert found['query_unknown_words{of="queries"}'] == pytest.approx(1 / 6)
    assert found['query_unknown_words{of="captions"}'] == 0
    assert found['query_distance{statistic="unknown words"}'] == pytest.approx(1 / 6)
    assert found['query_distance_by_chance{statistic="embeddings"}'] > 0.9
    assert found['query_drifted{statistic="embeddings"}'] == 0


def test_only_whole_texts_count_and_once(own: tuple[TestClient, Following, FakeModels]) -> None:
    client, _, _ = own
    client.get("/", params={"q": "a re", "fragment": True, "interim": True})
    client.get("/", params={"q": "a red square", "fragment": True})
    client.get("/", params={"q": "a red square", "offset": 3})
    client.get("/search", params={"text": "a red square", "offset": 3})
    client.get("/search", params={"text": "a red square", "filter": "year=1"})
    client.post("/search/image", files={"image": photo(0)})
    client.get("/search", params={"like": "0" * 64})
    assert searches(client) == 1


def test_queries_like_the_captions_do_not_drift_and_foreign_ones_do(
    reference: Profile, tiny_retriever: Retriever
) -> None:
    like = add(ServedQueries(MODEL, reference, 0.2), tiny_retriever, captions(1, 300))
    foreign = [f"snow {number} mountains at dusk" for number in range(300)]
    other = add(ServedQueries(MODEL, reference, 0.2), tiny_retriever, foreign)

    assert like.drift().reasons == []
    assert [distance.name for distance in other.drift().distances if distance.drifted] == [
        "unknown words",
        "embeddings",
    ]


def test_distances_are_computed_where_the_sample_has_changed_alone(
    reference: Profile, tiny_retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = add(ServedQueries(MODEL, reference, 0.2), tiny_retriever, ["a red star", "a blue star"])
    before = queries.drift()
    monkeypatch.setattr("diptych.serving.queries._MEASURE_EVERY", 0)
    monkeypatch.setattr("diptych.serving.queries.compare_queries", None)

    queries.add("a red star", EMBEDDING)

    assert queries.drift().distances is before.distances
    assert (before.texts, queries.drift().texts) == (2, 3)


def test_many_who_ask_at_once_and_again_get_one_measurement(
    reference: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, measured = ServedQueries(MODEL, reference, 0.2), []

    def measure(*arguments: Any) -> QueryDrift:
        measured.append(arguments)
        time.sleep(0.05)
        return compare_queries(*arguments)

    monkeypatch.setattr("diptych.serving.queries.compare_queries", measure)
    queries.add("a red star", EMBEDDING)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: queries.drift(), range(8)))
    queries.add("a blue star", EMBEDDING)
    again = queries.drift()
    assert len(measured) == 1
    assert {one.texts for one in found} == {1}
    assert (again.texts, again.compared) == (2, 1)

    monkeypatch.setattr("diptych.serving.queries._MEASURE_EVERY", 0)
    assert queries.drift().compared == 2


def test_a_model_without_known_captions_has_no_measures(indexed: Collection) -> None:
    for client, _, _ in serve(indexed):
        assert client.get("/search", params={"text": "a red square"}).status_code == 200
        assert figures(client) == {}


def test_another_model_begins_anew_and_a_newer_index_goes_on(
    own: tuple[TestClient, Following, FakeModels], indexed: Collection, tmp_path: Path
) -> None:
    client, following, models = own
    client.get("/search", params={"text": "a red square"})
    (indexed.photos / "e.png").unlink()
    indexed.update()
    assert following.refresh()
    assert searches(client) == 1

    models.key = ModelKey("tiny version 2", OTHER, "2")
    indexed.update(model=OTHER)
    assert following.refresh()
    assert searches(client) == 0
    assert read_queries(tmp_path / "queries", MODEL).texts == 1


def test_the_profile_outlives_the_server(indexed: Collection, reference: Profile, tmp_path: Path) -> None:
    for times in (1, 2):
        for client, _, _ in serve(indexed, reference, tmp_path / "queries"):
            client.get("/search", params={"text": "a red square"})
            client.get("/search", params={"text": f"a blue star {times}"})
            assert searches(client) == 2 * times
    assert len(read_queries(tmp_path / "queries", MODEL).sample) == 3


def test_without_a_folder_nothing_is_written(
    indexed: Collection, reference: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.serving.queries.write_json", None)
    for client, _, _ in serve(indexed, reference):
        client.get("/search", params={"text": "a red square"})
        assert searches(client) == 1


def test_it_is_written_no_more_often_than_it_may(reference: Profile, tmp_path: Path) -> None:
    queries = ServedQueries(MODEL, reference, 0.2, tmp_path)
    queries.save()
    queries.add("a dog", EMBEDDING)
    queries.save(every=60)
    assert list(tmp_path.iterdir()) == []
    queries.save(every=0)
    assert read_queries(tmp_path, MODEL).texts == 1


def test_two_servers_add_to_one_profile(reference: Profile, tmp_path: Path) -> None:
    first, second = (ServedQueries(MODEL, reference, 0.2, tmp_path) for _ in range(2))
    for queries, text in ((first, "a dog"), (second, "a cat"), (first, "a bird")):
        queries.add(text, EMBEDDING)
        queries.save()

    kept = read_queries(tmp_path, MODEL)

    assert (kept.texts, len(kept.sample)) == (3, 3)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"format": 9}', b"[" * 100_000])
def test_a_damaged_file_is_named_and_replaced(
    indexed: Collection, reference: Profile, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = queries_path(tmp_path, MODEL)
    path.write_bytes(content)
    for client, _, _ in serve(indexed, reference, tmp_path):
        client.get("/search", params={"text": "a red square"})
        assert searches(client) == 1
    assert f"{path} cannot be read, so the queries that it keeps do not count" in caplog.text
    assert read_queries(tmp_path, MODEL).texts == 1


@pytest.mark.parametrize("embedded", [True, False])
def test_a_file_of_other_dimensions_is_named_and_replaced(
    reference: Profile, tmp_path: Path, caplog: pytest.LogCaptureFixture, embedded: bool
) -> None:
    known = reference if embedded else replace(reference, embedded=None)
    other = ServedQueries(MODEL, replace(reference, embedded=None), 0.2, tmp_path)
    other.add("a dog", EMBEDDING[:-1])
    other.save()

    queries = ServedQueries(MODEL, known, 0.2, tmp_path)
    queries.drift()
    queries.add("a cat", EMBEDDING)
    queries.save()

    assert "its embeddings have 15 dimensions, those of the model 16" in caplog.text
    kept = read_queries(tmp_path, MODEL)
    assert (kept.texts, kept.dimensions) == (1, 16)


def test_the_file_of_another_model_does_not_count(
    reference: Profile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queries = ServedQueries(MODEL, reference, 0.2, tmp_path)
    queries.add("a dog", EMBEDDING)
    queries.save()
    queries_path(tmp_path, MODEL).rename(queries_path(tmp_path, OTHER))

    assert read_queries(tmp_path, OTHER).texts == 0
    assert f"it is of the model {MODEL[:16]}" in caplog.text


def test_a_failure_to_keep_the_queries_does_not_hold_up_a_newer_model(
    own: tuple[TestClient, Following, FakeModels],
    indexed: Collection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, following, models = own
    client.get("/search", params={"text": "a red square"})
    monkeypatch.setattr("diptych.serving.queries.write_json", None)
    models.key = ModelKey("tiny version 2", OTHER, "2")
    indexed.update(model=OTHER)

    following.save_queries()
    assert following.refresh()

    assert following.served is not None
    assert following.served.model.sha256 == OTHER
    assert "The profile of the queries could not be kept" in caplog.text


def test_where_nothing_can_be_written_the_server_goes_on(
    reference: Profile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    queries = ServedQueries(MODEL, reference, 0.2, tmp_path / "file" / "queries")
    queries.add("a dog", EMBEDDING)
    queries.save()

    assert "The queries cannot be kept in" in caplog.text
    assert queries.drift().texts == 1
