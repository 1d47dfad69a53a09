"""A server measures itself in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from searching import Collection, serve

TEXT = "a red square left of a blue circle"


@pytest.fixture(scope="module")
def served(module_collection: Collection) -> Iterator[TestClient]:
    for client, _, _ in serve(module_collection):
        yield client


def test_the_service_says_what_it_serves(served: TestClient) -> None:
    served.get("/search", params={"text": TEXT})
    version = served.get("/version").json()
    assert (version["model"], version["images"]) == ("tiny version 1", 7)
    assert served.get("/healthz").json() == {"status": "ok"}
    assert served.get("/readyz").json() == {"ready": True, "problem": None}
    metrics = served.get("/metrics").text
    assert 'diptych_requests_total{path="/search",status="200"}' in metrics
    assert 'diptych_search_seconds_count{step="encoding"}' in metrics
    assert 'diptych_index{what="images"} 7.0' in metrics
    assert "diptych_up_to_date 1.0" in metrics
    assert {"/search", "/search/image", "/images/{digest}", "/version"} <= set(
        served.get("/openapi.json").json()["paths"]
    )
