"""While versions change under load, no request fails, and each answer is that of the version that it names."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from searching import MODEL, OTHER, Collection, FakeModels
from tiny_model import write_tiny_model

from diptych import Retriever
from diptych.serving.app import make_app
from diptych.serving.following import Following, ModelKey

CLIENTS, REQUESTS = 8, 400
TEXTS = [
    f"{size} {colour} {shape}" for size in ("a", "two") for colour in ("red", "blue") for shape in ("star", "circle")
]
VERSIONS = {"tiny version 1": MODEL, "tiny version 2": OTHER}
Rows = list[tuple[str, float]]


class TwoModels(FakeModels):
    """A registry with two versions."""

    def __init__(self, retrievers: dict[str, Retriever]) -> None:
        super().__init__(retrievers["tiny version 1"])
        self._retrievers = retrievers

    def queries(self, key: ModelKey) -> None:
        return None

    def load(self, key: ModelKey) -> Retriever:
        return self._retrievers[key.title]


@pytest.fixture
def retrievers(collection: Collection, tmp_path: Path) -> dict[str, Retriever]:
    """Both versions, with which the collection is indexed."""
    other = Retriever.load(write_tiny_model(tmp_path / "other", seed=1), "cpu", batch_size=4)
    both = {"tiny version 1": collection.retriever, "tiny version 2": other}
    for title, retriever in both.items():
        Collection(collection.photos, collection.store, retriever).update(model=VERSIONS[title])
    return both


def offline(collection: Collection, retriever: Retriever) -> dict[str, Rows]:
    """What the retriever ranks by itself, for each text."""
    paths = collection.paths()
    gallery = retriever.encode_images([collection.photos / path for path in paths], tokens=True)
    found = {}
    for text in TEXTS:
        ranking = retriever.rank([text], gallery, k=7)
        found[text] = list(zip([paths[row] for row in ranking.items[0]], ranking.score[0].tolist(), strict=True))
    return found


def test_versions_change_between_two_requests(collection: Collection, retrievers: dict[str, Retriever]) -> None:
    expected = {title: offline(collection, retriever) for title, retriever in retrievers.items()}
    models = TwoModels(retrievers)
    following = Following(models, collection.store, collection.name)
    following.refresh()
    seen: list[str] = []
    half, numbers = threading.Event(), itertools.count()

    def ask(client: TestClient) -> None:
        for number in iter(lambda: next(numbers), REQUESTS + CLIENTS):
            if number >= REQUESTS:
                return
            text = TEXTS[number % len(TEXTS)]
            answer = client.get("/search", params={"text": text, "k": 7})
            assert answer.status_code == 200
            body = answer.json()
            assert body["model_sha256"] == VERSIONS[body["model"]]
            found = [(result["path"], result["score"]) for result in body["results"]]
            assert [path for path, _ in found] == [path for path, _ in expected[body["model"]][text]]
            assert [score for _, score in found] == pytest.approx(
                [score for _, score in expected[body["model"]][text]], abs=0.05
            )
            seen.append(body["model"])
            if len(seen) > 20:
                half.set()

    with TestClient(make_app(following, refresh_every=None)) as client, ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, client) for _ in range(CLIENTS)]
        assert half.wait(60)
        # Three promotions and a rollback.
        for title in ("tiny version 2", "tiny version 1", "tiny version 2", "tiny version 1"):
            models.key = ModelKey(title, VERSIONS[title], title[-1])
            assert following.refresh()
            before = len(seen)
            while len(seen) < min(before + 20, REQUESTS - 10) and not any(one.done() for one in asking):
                wait(asking, timeout=0.01)
        for one in asking:
            one.result(60)
    assert len(seen) == REQUESTS
    assert set(seen) == set(VERSIONS)
