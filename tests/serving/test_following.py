"""A model and its index are served together, and the ones before go on until the new ones are whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from searching import OTHER, Collection, FakeModels, serve

from diptych.errors import DiptychError
from diptych.serving.following import Following, ModelKey

TEXT = "a red square left of a blue circle"


@pytest.fixture
def own(indexed: Collection) -> Iterator[tuple[TestClient, Following, FakeModels]]:
    """A server of the test's own."""
    yield from serve(indexed)


def test_before_the_first_model_the_server_says_why(collection: Collection) -> None:
    for client, following, _ in serve(collection):
        answer = client.get("/search", params={"text": TEXT})
        assert answer.status_code == 503
        assert "The collection photos is not indexed" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        collection.update()
        assert following.refresh()
        assert client.get("/search", params={"text": TEXT}).status_code == 200


def test_a_new_champion_takes_over_with_its_index_and_never_without(
    own: tuple[TestClient, Following, FakeModels], indexed: Collection
) -> None:
    client, following, models = own
    models.key = ModelKey("tiny version 2", OTHER, "2")
    assert not following.refresh()
    assert "not indexed with the model cdcd" in client.get("/readyz").json()["problem"]
    assert client.get("/version").json()["model"] == "tiny version 1"
    assert "diptych_up_to_date 0.0" in client.get("/metrics").text

    indexed.update(model=OTHER)
    assert following.refresh()
    assert client.get("/version").json()["model_sha256"] == OTHER
    assert client.get("/readyz").json() == {"ready": True, "problem": None}


def test_an_unreachable_registry_changes_nothing_but_is_told(own: tuple[TestClient, Following, FakeModels]) -> None:
    client, following, models = own
    models.problem = DiptychError("MLflow at http://away does not answer.")
    assert not following.refresh()
    assert client.get("/readyz").json() == {"ready": True, "problem": "MLflow at http://away does not answer."}
    assert client.get("/search", params={"text": TEXT}).status_code == 200


def test_a_newer_index_takes_over(own: tuple[TestClient, Following, FakeModels], indexed: Collection) -> None:
    client, following, _ = own
    before = client.get("/version").json()
    (indexed.photos / "e.png").unlink()
    indexed.update()
    assert client.get("/version").json() == before
    assert following.refresh()
    after = client.get("/version").json()
    assert after["images"] == 6
    assert after["index_version"] > before["index_version"]
