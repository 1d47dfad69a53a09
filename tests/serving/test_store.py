"""A store keeps collections apart, on a disk or in S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer
from searching import MODEL, Collection

from diptych.errors import DiptychError
from diptych.serving.sources import FilesSource
from diptych.serving.store import CollectionState, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "local", tmp_path / "data")


STATE = CollectionState(source={"kind": "files", "address": "/photos"}, fingerprint="12", scanned=3.0)


def test_collections_are_listed_read_and_removed(store: Store) -> None:
    assert store.collections() == []
    assert store.collection("birds") is None
    for name in ("birds", "cats"):
        store.write_collection(name, STATE)
    assert store.collections() == ["birds", "cats"]
    assert store.collection("birds") == STATE
    store.remove("birds")
    assert store.collections() == ["cats"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a" * 65, "\x00"])
def test_a_name_is_never_a_path(store: Store, name: str) -> None:
    with pytest.raises(DiptychError, match="cannot name a collection"):
        store.collection(name)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"source": {}}', '{"source": {}, "fingerprint": "1", "scanned": 3.0, "more": 2}']
)
def test_a_damaged_state_is_an_error_that_names_the_file(store: Store, tmp_path: Path, content: str) -> None:
    store.write_collection("birds", STATE)
    (tmp_path / "store/birds/collection.json").write_text(content)
    with pytest.raises(DiptychError, match=r"birds/collection\.json is damaged .*`diptych index --collection birds`"):
        store.collection("birds")


def test_what_is_damaged_is_there_to_be_removed(store: Store, tmp_path: Path) -> None:
    assert not store.has("birds")
    (tmp_path / "store/birds").mkdir(parents=True)
    (tmp_path / "store/birds/collection.json").write_text("{")
    assert store.has("birds")
    store.remove("birds")
    assert not store.has("birds")


def test_a_name_that_is_a_path_leaves_no_lock(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="cannot name a collection"), store.held("../evil"):
        pass
    assert list(tmp_path.rglob("*.lock")) == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket, found by the environment."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    variables = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}
    for name, value in {**variables, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.resource("s3").Bucket("searches").create()
    yield "searches"
    moto.stop()


@pytest.mark.slow
def test_in_s3_an_index_is_the_same_as_on_a_disk(collection: Collection, bucket: str, tmp_path: Path) -> None:
    files = FilesSource(str(collection.photos))
    collection.update()
    expected = collection.open()
    s3fs.S3FileSystem().put(str(collection.photos), f"{bucket}/photos", recursive=True)
    remote = Collection(
        collection.photos, Store(f"s3://{bucket}/store", tmp_path / "other", tmp_path / "data"), collection.retriever
    )
    summary = remote.update(FilesSource(f"s3://{bucket}/photos"))
    index = remote.open()

    assert (summary.embedded, remote.store.collections()) == (7, ["photos"])
    assert index.vectors == pytest.approx(expected.vectors, abs=1e-6)
    assert index.details.equals(expected.details)
    record = index.records(np.array([2]))[0]
    assert index.original(record) == files.read(record.path)
    assert remote.update(FilesSource(f"s3://{bucket}/photos")).embedded == 0
    remote.store.remove("photos")
    assert remote.store.state("photos", MODEL) is None
