"""Users mark results where the server keeps marks, and nowhere else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from searching import Collection, photo, serve

from diptych.serving.feedback import Marks

DIGEST = hashlib.sha256(photo(2)).hexdigest()
BODY = {"query": "a cat", "hash": DIGEST, "right": True}


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks.jsonl")


def test_a_mark_names_what_found_the_result(indexed: Collection, marks: Marks) -> None:
    for client, _, _ in serve(indexed, marks=marks):
        assert client.post("/feedback", json={**BODY, "who": "ada"}).status_code == 204
        form = client.post("/marks", data={**BODY, "right": "false"}, follow_redirects=False)
        assert (form.status_code, form.headers["location"]) == (303, "/?q=a+cat")
    [first, second] = marks.read("photos")
    assert (first.query, first.hash, first.right, first.who) == ("a cat", DIGEST, True, "ada")
    assert (first.model, first.index_version) == ("tiny version 1", indexed.open().state.version)
    assert (second.right, second.who) == (False, "")


@pytest.mark.parametrize(
    ("changes", "headers", "status"),
    [
        ({"hash": "0" * 64}, {}, 404),
        ({"query": " "}, {}, 400),
        ({"query": "a" * 1001}, {}, 422),
        ({"right": "perhaps"}, {}, 422),
        ({"more": 1}, {}, 422),
        ({}, {"Sec-Fetch-Site": "cross-site"}, 400),
        ({}, {"Sec-Fetch-Site": "same-site"}, 400),
        ({}, {"Origin": "http://evil.example"}, 400),
    ],
)
def test_what_is_no_mark_is_not_kept(
    indexed: Collection, marks: Marks, changes: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    for client, _, _ in serve(indexed, marks=marks):
        assert client.post("/feedback", json={**BODY, **changes}, headers=headers).status_code == status
    assert not marks.path.exists()


def test_the_page_offers_marks_only_where_they_are_kept(indexed: Collection, marks: Marks) -> None:
    for kept in (marks, None):
        for client, _, _ in serve(indexed, marks=kept):
            assert ("Wrong</button>" in client.get("/", params={"q": "a cat"}).text) is (kept is not None)
            assert "Wrong</button>" not in client.get("/", params={"like": DIGEST}).text
            assert client.post("/feedback", json=BODY).status_code == (204 if kept else 404)
