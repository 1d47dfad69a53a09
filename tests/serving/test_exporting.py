"""Exported embeddings are those of the index, and the cost of compression is measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from searching import MODEL, Collection

from diptych.serving import exporting
from diptych.serving.exporting import COMPRESSIONS, Compression, agree, export_embeddings
from diptych.serving.searcher import Searcher
from diptych.serving.table_source import TableSource


@pytest.fixture
def searcher(indexed: Collection) -> Searcher:
    return Searcher(indexed.retriever, indexed.open())


def test_rows_of_both_files_belong_together(
    searcher: Searcher, indexed: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS", 3)
    stamp = export_embeddings(searcher, "tiny version 1", "float32", tmp_path / "out")
    parts = [np.load(tmp_path / f"out/img_emb/img_emb_{number}.npy") for number in range(3)]
    metadata = pd.concat(pd.read_parquet(tmp_path / f"out/metadata/metadata_{number}.parquet") for number in range(3))

    assert [len(part) for part in parts] == [3, 3, 1]
    assert np.concatenate(parts) == pytest.approx(searcher.index.vectors)
    assert metadata["image_path"].tolist() == indexed.paths()
    assert metadata["folder"].tolist()[:3] == ["cats"] * 3
    assert (stamp["model"], stamp["model_sha256"], stamp["images"]) == ("tiny version 1", MODEL, 7)
    assert json.loads((tmp_path / "out/embeddings.json").read_text()) == stamp
    for name, digest in stamp["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_captions_come_along_and_are_the_queries(collection: Collection, tmp_path: Path) -> None:
    sheet = collection.photos / "files.csv"
    sheet.write_text("file,caption,caption 2\ncats/a.png,a cat,a tabby\ne.png,,\n")
    collection.update(TableSource(sheet))
    searcher = Searcher(collection.retriever, collection.open())
    stamp = export_embeddings(searcher, "tiny", "float16", tmp_path / "out")
    metadata = pd.read_parquet(tmp_path / "out/metadata/metadata_0.parquet")
    assert metadata["caption"].tolist() == ["a cat", ""]
    assert stamp["agreement"]["queries"] == 2


@pytest.mark.parametrize(("compression", "width"), [("float32", 65), ("float16", 65), ("int8", 65), ("binary", 8)])
def test_compression_keeps_what_it_says(compression: Compression, width: int) -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, 65)).astype(np.float32)
    vectors[:, -1] = 0
    compressed = COMPRESSIONS[compression](vectors)
    assert compressed.stored.shape == (500, width)
    tolerance = {"float32": 0, "float16": 3e-3, "int8": np.abs(vectors).max() / 127, "binary": np.inf}[compression]
    assert np.abs(compressed.restored - vectors).max() <= tolerance
    agreement = agree(vectors[:200], vectors, compressed.restored)
    lowest = {"float32": 100, "float16": 99, "int8": 90, "binary": 20}[compression]
    assert lowest <= agreement.recall_at_10 <= 100
    assert agreement.low <= agreement.recall_at_10 <= agreement.high


def test_agreement_is_what_one_counts() -> None:
    exact = np.eye(4, 5, dtype=np.float32)
    restored = exact[[1, 0, 2, 3]]
    queries = np.array([[4, 3, 2, 1, 1], [1, 2, 3, 4, 1]], np.float32)
    # Of the first one, the exact result for the first query is image 0, and the compressed one image 1.
    assert agree(queries, exact, restored, first=1).recall_at_10 == 50.0
    assert agree(queries, exact, restored, first=2).recall_at_10 == 100.0


def test_binary_signs_can_be_read_by_their_description() -> None:
    vectors = np.array([[1.0, -1.0, 2.0, -2.0, 0.5, 0.5, -0.5, 3.0, 9.0]], np.float32)
    compressed = COMPRESSIONS["binary"](vectors)
    bits = np.unpackbits(compressed.stored, axis=1)[:, :8]
    assert (np.where(bits, 1, -1) == np.sign(vectors[:, :-1])).all()
