"""Embeddings of a collection as files that other search engines read, in the layout of clip-retrieval.

`img_emb/img_emb_0.npy` has a row for each image, and `metadata/metadata_0.parquet` its path, captions, hash and
attributes in the same order; further pairs of files follow. `embeddings.json` says what they were made of, how a query
is made, and what compression costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from diptych.files import atomic_path, file_sha256
from diptych.retrieval.uncertainty import interval_ends, resampled_sums
from diptych.serving.index import Index
from diptych.serving.searcher import Searcher

Compression = Literal["float32", "float16", "int8", "binary"]
ROWS = 100_000
"""Images of a file."""
QUERIES = 1_000
"""Captions, or images where there are no captions, on which the cost of compression is measured."""
FIRST = 10


class Compressed(NamedTuple):
    """Compressed vectors."""

    stored: NDArray[Any]
    """(N, bytes or dimensions), as they are written."""
    restored: NDArray[np.float32]
    """(N, d + 1), what they stand for in an inner product."""
    how: str
    """Description of how a row is read, for people."""


class Agreement(NamedTuple):
    """Share of the first ten results, in percent, that compressed vectors have in common with exact ones."""

    recall_at_10: float
    low: float
    high: float
    queries: int


def _float16(vectors: NDArray[np.float32]) -> Compressed:
    stored = vectors.astype(np.float16)
    return Compressed(stored, stored.astype(np.float32), "half precision")


def _int8(vectors: NDArray[np.float32]) -> Compressed:
    scale = float(np.abs(vectors).max()) / 127 or 1.0
    stored = np.rint(vectors / scale).astype(np.int8)
    return Compressed(stored, stored.astype(np.float32) * np.float32(scale), f"multiply by {scale!r}")


def _binary(vectors: NDArray[np.float32]) -> Compressed:
    positive = vectors[:, :-1] > 0
    signs = np.where(positive, np.float32(1), np.float32(-1))
    restored = np.concatenate([signs, np.zeros((len(signs), 1), np.float32)], axis=1)
    how = "bits of np.packbits, one for each dimension without the bias: 1 stands for 1, 0 for -1"
    return Compressed(np.packbits(positive, axis=1), restored, how)


COMPRESSIONS: dict[Compression, Callable[[NDArray[np.float32]], Compressed]] = {
    "float32": lambda vectors: Compressed(vectors, vectors, "as it is"),
    "float16": _float16,
    "int8": _int8,
    "binary": _binary,
}


def export_embeddings(searcher: Searcher, title: str, compression: Compression, folder: Path) -> dict[str, Any]:
    """Write the embeddings of a collection to a new folder, and return what embeddings.json says of them.

    Args:
        searcher: the model and the index that was made by it.
        title: name and version of the model.
        compression: how vectors are stored.
        folder: folder to write; its parent is made.
    """
    index = searcher.index
    vectors = np.array(index.vectors)
    compressed = COMPRESSIONS[compression](vectors)
    agreement = agree(_queries(searcher), vectors, compressed.restored)
    with atomic_path(folder) as temporary:
        files = _write(temporary, index, compressed.stored)
        stamp = {
            "model": title,
            "model_sha256": index.model,
            "collection": index.collection,
            "index_version": index.state.version,
            "images": len(index),
            "dimensions": index.state.dim,
            "compression": compression,
            "row": compressed.how,
            "query": "the text's embedding, and a 1 that adds the last dimension, the negative query-bank bias",
            "agreement": agreement._asdict(),
            "sha256": {str(path.relative_to(temporary)): file_sha256(path) for path in files},
        }
        (temporary / "embeddings.json").write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    return stamp


def agree(
    queries: NDArray[np.float32], exact: NDArray[np.float32], restored: NDArray[np.float32], first: int = FIRST
) -> Agreement:
    """Return how far the first results of compressed vectors are those of exact ones, with a 95 % interval.

    Args:
        queries: (Q, d + 1), embeddings with a 1 behind them.
        exact: (N, d + 1), vectors of the images.
        restored: (N, d + 1), what the compressed vectors stand for.
        first: number of results.
    """
    first = min(first, len(exact))
    common = []
    for query in queries:
        wanted, found = (np.argpartition(-(vectors @ query), first - 1)[:first] for vectors in (exact, restored))
        common.append(len(np.intersect1d(wanted, found)))
    counts = np.array(common, np.int64)
    samples = resampled_sums(counts[:, None])[:, 0] / (len(counts) * first)
    low, high = interval_ends(100 * samples)
    return Agreement(float(100 * counts.mean() / first), low, high, len(counts))


def _queries(searcher: Searcher) -> NDArray[np.float32]:
    """Return captions of the collection, or else its images, as queries: float32 (Q, d + 1)."""
    captions = [caption for captions in searcher.index.details["captions"].to_pylist() for caption in captions or []]
    random = np.random.default_rng(0)
    if captions:
        chosen = sorted(random.permutation(len(captions))[:QUERIES])
        embeddings = searcher.retriever.encode_texts([captions[row] for row in chosen]).embedding
    else:
        chosen = sorted(random.permutation(len(searcher.index))[:QUERIES])
        embeddings = searcher.index.vectors[chosen, :-1]
    return np.concatenate([embeddings, np.ones((len(embeddings), 1), np.float32)], axis=1)


def _write(folder: Path, index: Index, stored: NDArray[Any]) -> list[Path]:
    """Write the pairs of files, and return their paths."""
    details = index.details.select(["path", "hash", "captions", "width", "height"]).rename_columns(
        ["image_path", "hash", "captions", "width", "height"]
    )
    captions = pa.array([texts[0] if texts else "" for texts in details["captions"].to_pylist()], pa.string())
    details = details.append_column("caption", captions)
    for name in index.attributes.column_names:
        if name not in details.column_names:
            details = details.append_column(name, index.attributes[name])
    files = []
    for part in ("img_emb", "metadata"):
        (folder / part).mkdir(parents=True)
    for number, start in enumerate(range(0, len(stored), ROWS)):
        embeddings, metadata = folder / f"img_emb/img_emb_{number}.npy", folder / f"metadata/metadata_{number}.parquet"
        np.save(embeddings, stored[start : start + ROWS])
        parquet.write_table(details.slice(start, ROWS), metadata)
        files += [embeddings, metadata]
    return files
