"""The API answers searches, and bad requests with what is wrong."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from searching import MODEL, Collection, photo, serve

from diptych.model.package import Calibration

TEXT = "a red square left of a blue circle"


@pytest.fixture(scope="module")
def served(module_collection: Collection) -> Iterator[TestClient]:
    """A server that no test changes."""
    for client, _, _ in serve(module_collection):
        yield client


def found(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [result["path"] for result in answer.json()["results"]]


def test_a_text_finds_what_the_retriever_finds(served: TestClient, module_collection: Collection) -> None:
    paths = module_collection.paths()
    retriever = module_collection.retriever
    gallery = retriever.encode_images([module_collection.photos / path for path in paths], tokens=True)
    expected = retriever.rank([TEXT], gallery, k=5)
    answer = served.get("/search", params={"text": TEXT, "k": 5})

    assert found(answer) == [paths[row] for row in expected.items[0]]
    body = answer.json()
    assert [result["score"] for result in body["results"]] == pytest.approx(expected.score[0].tolist(), abs=0.02)
    assert (body["model"], body["model_sha256"], body["collection"]) == ("tiny version 1", MODEL, "photos")
    assert body["index_version"] == module_collection.open().state.version
    assert (body["total"], body["reranked"]) == (7, 4)
    assert set(body["milliseconds"]) == {"waiting", "encoding", "searching", "reading"}
    first = body["results"][0]
    assert first["hash"] == hashlib.sha256((module_collection.photos / first["path"]).read_bytes()).hexdigest()
    assert (first["rank"], first["width"], first["height"]) == (1, 40, 30)


def test_json_asks_for_the_same_as_an_address(served: TestClient) -> None:
    address: dict[str, Any] = {"text": TEXT, "k": 2, "offset": 1, "filter": "folder=cats", "rerank": False}
    filters = [{"attribute": "folder", "operator": "=", "value": "cats"}]
    body = {**address, "filters": filters}
    del body["filter"]

    assert found(served.post("/search", json=body)) == found(served.get("/search", params=address))
    assert served.post("/search", json=body).json()["total"] == 3


def test_an_image_finds_itself_uploaded_or_named(served: TestClient) -> None:
    digest = hashlib.sha256(photo(4)).hexdigest()
    uploaded = served.post("/search/image", files={"image": ("x.png", photo(4))}, data={"k": "7"})
    named = served.get("/search", params={"like": digest, "k": 7})

    assert found(uploaded)[0] == "dogs/b.png"
    assert found(uploaded) == found(named)
    assert uploaded.json()["reranked"] == 0


def test_images_are_jpegs_that_browsers_keep(served: TestClient) -> None:
    digest = hashlib.sha256(photo(5)).hexdigest()
    for size in ("thumbnail", "full"):
        answer = served.get(f"/images/{digest}", params={"size": size})
        assert answer.headers["content-type"] == "image/jpeg"
        assert "immutable" in answer.headers["cache-control"]
        assert Image.open(BytesIO(answer.content)).size == (40, 30)


TEXTS = ["шар и куб", "😀😀", "𝔞 𝔡𝔬𝔤", "a\x00dog\x1b[2J", "a" * 1000, "'; DROP TABLE photos; --"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_searched_for(served: TestClient, text: str) -> None:
    assert len(found(served.get("/search", params={"text": text, "k": 3}))) == 3


@pytest.mark.parametrize(
    ("path", "params", "status", "words"),
    [
        ("/search", {}, 400, "Give either `text` or `like`"),
        ("/search", {"text": "a", "like": "b"}, 400, "Give either `text` or `like`"),
        ("/search", {"text": ""}, 400, "The text is empty"),
        ("/search", {"text": " \x00\n"}, 400, "The text is empty"),
        ("/search", {"text": "a" * 1001}, 422, "at most 1000 characters"),
        ("/search", {"text": "a", "k": 0}, 422, "greater than or equal to 1"),
        ("/search", {"text": "a", "k": -1}, 422, "greater than or equal to 1"),
        ("/search", {"text": "a", "k": 10**9}, 422, "less than or equal to 1000"),
        ("/search", {"text": "a", "k": "many"}, 422, "valid integer"),
        ("/search", {"text": "a", "offset": -1}, 422, "greater than or equal to 0"),
        ("/search", {"text": "a", "filter": "year=3"}, 422, "no attribute 'year'; it has folder"),
        ("/search", {"text": "a", "filter": "'; DROP"}, 422, "is no comparison"),
        ("/search", {"like": "0" * 64}, 404, "The collection has no image"),
        ("/search", {"like": "../../etc/passwd"}, 404, "The collection has no image"),
        ("/images/" + "0" * 64, {}, 404, "The collection has no image"),
        ("/images/%2e%2e%2fsecret", {}, 404, ""),
        ("/images/" + "0" * 64, {"size": "huge"}, 422, "pattern"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    served: TestClient, path: str, params: dict[str, Any], status: int, words: str
) -> None:
    answer = served.get(path, params=params)
    assert answer.status_code == status
    assert words in answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"text": "\\ud800"}', 422),
        (b'{"like": "\\ud800"}', 404),
        (b'{"text": "a", "min_probability": NaN}', 422),
        (b'{"text": NaN}', 422),
        (b'{"\\ud800": 1}', 422),
        (b'{"text": "a", "filters": [{"attribute": "folder", "value": "\\ud800"}]}', 200),
        (b'{"text": "a", "filters": [{"attribute": "folder", "value": 1' + b"0" * 400 + b"}]}", 200),
    ],
)
def test_what_json_can_hold_and_answers_cannot_is_no_failure(served: TestClient, body: bytes, status: int) -> None:
    assert served.post("/search", content=body, headers={"Content-Type": "application/json"}).status_code == status


def test_a_refusal_does_not_repeat_what_was_sent(served: TestClient) -> None:
    assert len(served.post("/search", json={"text": "a" * 5_000_000}).text) < 1000


def test_an_index_that_was_removed_is_told(indexed: Collection) -> None:
    for client, following, _ in serve(indexed):
        indexed.store.remove("photos")
        assert client.get("/search", params={"text": TEXT}).status_code == 503
        assert client.get(f"/images/{hashlib.sha256(photo(1)).hexdigest()}").status_code == 503
        assert not following.refresh()
        assert "photos is not indexed" in client.get("/readyz").json()["problem"]


def test_unknown_fields_of_json_are_refused(served: TestClient) -> None:
    answer = served.post("/search", json={"text": "a", "top": 3})
    assert (answer.status_code, "top" in answer.text) == (422, True)


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 100,000 × 100,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    frames = [Image.open(BytesIO(photo(seed))) for seed in (4, 5)]
    content = BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "empty file"),
        (b"no image at all", 400, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "SVG, and not JPEG"),
        (photo(1)[:90], 400, "truncated or damaged PNG"),
        (bomb(), 400, "100000×100000 pixels, more than"),
        (bytes(13 * 2**20), 413, "The body is larger than 12,582,912 bytes"),
    ],
)
def test_an_upload_that_is_no_image_is_refused(served: TestClient, content: bytes, status: int, words: str) -> None:
    answer = served.post("/search/image", files={"image": ("x.png", content)})
    assert answer.status_code == status
    assert words in answer.text


def test_an_animation_is_searched_by_its_first_frame(served: TestClient) -> None:
    assert len(found(served.post("/search/image", files={"image": ("x.gif", animation())}))) == 7


def test_rows_of_results_are_those_of_the_index(served: TestClient, module_collection: Collection) -> None:
    index = module_collection.open()
    for result in served.get("/search", params={"text": TEXT, "k": 7}).json()["results"]:
        row = index.row_of(result["hash"])
        assert row is not None
        assert index.records(np.array([row]))[0].path == result["path"]


@pytest.mark.parametrize(("threshold", "good"), [(0.0, True), (1.0, False)])
def test_a_match_is_good_from_the_asked_probability_on(
    served: TestClient, module_collection: Collection, monkeypatch: pytest.MonkeyPatch, threshold: float, good: bool
) -> None:
    calibration = Calibration(intercept=-1.0, score=0.25, margin=2.0, images=7, reliability=[])
    monkeypatch.setattr(module_collection.retriever, "calibration", calibration)
    answer = served.get("/search", params={"text": TEXT, "min_probability": threshold}).json()
    assert 0 < answer["probability"] < 1
    assert answer["good_match"] is good
    assert served.get("/search", params={"like": answer["results"][0]["hash"]}).json()["good_match"] is None


def test_without_a_calibration_nothing_is_said_of_the_match(served: TestClient) -> None:
    answer = served.get("/search", params={"text": TEXT}).json()
    assert (answer["probability"], answer["good_match"]) == (None, None)
