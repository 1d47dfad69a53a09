"""An index of random vectors that tests take for a large one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from searching import MODEL

from diptych.serving.index import Index
from diptych.serving.store import IndexState, Store, table_name

IMAGES, DIM = 4_000, 16
Vectors = NDArray[np.float32]


def near(centres: Vectors, count: int, seed: int) -> Vectors:
    """Return vectors of length one near to the centres."""
    random = np.random.default_rng(seed)
    drawn = centres[random.integers(len(centres), size=count)] + random.normal(size=(count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def rows(vectors: Vectors) -> pa.Table:
    """Return rows of an index with these embeddings, and negative biases of zero."""
    hashes = [f"{row:064x}" for row in range(len(vectors))]
    embedding = np.concatenate([vectors, np.zeros((len(vectors), 1), np.float32)], axis=1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), DIM + 1)
    return pa.table({"path": hashes, "hash": hashes, "embedding": column})


class Large:
    """An index that counts as large, and texts to try it with."""

    def __init__(self, folder: Path, copies: int = 1) -> None:
        centres = np.random.default_rng(0).normal(size=(60, DIM)).astype(np.float32)
        self.store = Store(str(folder / "store"), folder / "local", folder / "data")
        self.vectors = near(centres, IMAGES // copies, 1).repeat(copies, axis=0)
        self.texts = near(centres, 400, 2)
        self.queries = np.concatenate([near(centres, 50, 3), np.ones((50, 1), np.float32)], axis=1)
        self.table = self.store.database("large").create_table(table_name(MODEL), rows(self.vectors[:3_000]))
        # Rows that went and came, so that Lance's ids are not the positions.
        self.table.delete("path < '" + f"{500:064x}" + "'")
        self.table.add(rows(self.vectors[3_000:]))

    def open(self, build: str) -> Index:
        state = IndexState(
            version=self.table.version,
            build=build,
            images=self.table.count_rows(),
            dim=DIM,
            grid=None,
            fingerprint="",
            scanned=0.0,
            unreadable=0,
        )
        return Index(self.store, "large", MODEL, state, self.table)
