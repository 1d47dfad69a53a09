"""Requests are limited: by the size of their body, and by a token where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from searching import Collection, serve


@pytest.fixture(scope="module")
def served(module_collection: Collection) -> Iterator[TestClient]:
    for client, _, _ in serve(module_collection):
        yield client


def test_a_body_without_a_length_is_limited_as_well(served: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(20):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = served.post("/search/image", content=endless(), headers=headers)
    assert answer.status_code == 413


def test_a_form_that_is_cut_off_is_refused(served: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nhalf'
    assert served.post("/search/image", content=body, headers=headers).status_code in (400, 422)


def test_every_answer_forbids_other_hosts(served: TestClient) -> None:
    for path in ("/", "/version", "/static/page.js"):
        policy = served.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic %%%"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "Basic YW55Ym9keTpzZWNyZXQ="}, 200),
    ],
)
def test_a_token_is_asked_of_all_but_probes(indexed: Collection, headers: dict[str, str], status: int) -> None:
    for client, _, _ in serve(indexed, token="secret"):
        assert client.get("/version", headers=headers).status_code == status
        assert client.get("/", headers=headers).status_code == status
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
