"""Search: vector engines on the same embeddings, and `diptych serve` under load.

    python benchmarks/search.py engines [--images 100000] [--dim 512] [--own]
    python benchmarks/search.py serve ADDRESS QUERIES [--seconds 20] [--rerank]

`engines` draws clustered embeddings and prints for each engine the seconds to build, the bytes, the time of a query,
one after the other, and recall@10 against exact search. usearch and faiss are left out where they are not installed,
and all but diptych's own searches with --own.

`serve` sends the lines of the file QUERIES to the server at ADDRESS from 1, 8 and 32 clients, and prints p50 and p95
of the latency and requests a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diptych.serving.approximate import choose_probes
from diptych.serving.index import Index
from diptych.serving.partitions import create_partitions
from diptych.serving.store import MIN_RECALL, IndexState, Store, table_name

Vectors = NDArray[np.float32]
FIRST = 10
QUERIES = 200
BLOCK = 50_000
MODEL = "0" * 64


class Engine(NamedTuple):
    """An engine that was built."""

    name: str
    seconds: float
    size: int
    search: Callable[[Vectors], NDArray[np.int64]]
    """Function from a query (d,) to the positions of its first ten vectors."""


def draw(images: int, dim: int, seed: int = 0) -> tuple[Vectors, Vectors, Vectors]:
    """Return clustered unit vectors (N, d), and queries near some of them: to choose settings with, and to measure."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, images // 50), dim), dtype=np.float32)
    vectors = np.empty((images, dim), np.float32)
    for start in range(0, images, BLOCK):
        part = vectors[start : start + BLOCK]
        part[:] = random.standard_normal(part.shape, dtype=np.float32) * np.float32(0.8)
        part += centres[random.integers(len(centres), size=len(part))]
    near = vectors[random.integers(images, size=3 * QUERIES)]
    queries = near + np.float32(0.4) * random.standard_normal(near.shape, dtype=np.float32)
    for made in (vectors, queries):
        made /= np.linalg.norm(made, axis=1, keepdims=True)
    return vectors, queries[QUERIES:], queries[:QUERIES]


class Own:
    """diptych's index of vectors, whose biases are zero."""

    def __init__(self, vectors: Vectors, folder: Path) -> None:
        self.store = Store(str(folder / "store"), folder / "local", folder / "data")
        self.folder, self.images, self.dim = folder, len(vectors), vectors.shape[1]
        database: Any = self.store.database("vectors")
        parts = [rows(vectors[start : start + BLOCK], start) for start in range(0, len(vectors), BLOCK)]
        self.table = database.create_table(table_name(MODEL), parts)

    def open(self, build: str) -> Index:
        """Open the latest version of the table, under this name of its local copy."""
        state = IndexState(
            version=self.table.version,
            build=build,
            images=self.images,
            dim=self.dim,
            grid=None,
            fingerprint="",
            scanned=0.0,
            unreadable=0,
        )
        return Index(self.store, "vectors", MODEL, state, self.table)


def rows(vectors: Vectors, start: int) -> pa.RecordBatch:
    """Return rows of an index."""
    embedding = np.concatenate([vectors, np.zeros((len(vectors), 1), np.float32)], axis=1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
    names = [f"{start + row:064x}" for row in range(len(vectors))]
    return pa.record_batch({"path": names, "hash": names, "embedding": column})


def own(vectors: Vectors, texts: Vectors, folder: Path) -> Iterator[Engine]:
    """Yield diptych's searches: exact, and approximate as in large collections."""
    started = time.perf_counter()
    made = Own(vectors, folder)
    index = made.open("exact")
    seconds = time.perf_counter() - started

    def search(index: Index, probes: int | None, query: Vectors) -> NDArray[np.int64]:
        return index.nearest(np.append(query, np.float32(1)), FIRST, probes=probes)[0]

    yield Engine("diptych, exact", seconds, size_of(folder), partial(search, index, None))
    size, started = size_of(folder), time.perf_counter()
    partitions = create_partitions(made.table, None)
    index = made.open("approximate")
    probes = choose_probes(index, texts, partitions, MIN_RECALL).probes
    seconds = time.perf_counter() - started
    name = f"diptych, {probes} of {partitions} partitions"
    yield Engine(name, seconds, size_of(folder) - size, partial(search, index, probes))
    del index
    before, started = memory(), time.perf_counter()
    index = made.open("approximate")
    print(f"opened in {time.perf_counter() - started:.2f} s", file=sys.stderr)
    search(index, probes, texts[0])
    print(f"{memory() - before:.0f} MB more after the first search", file=sys.stderr)


def memory() -> float:
    """Return the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def lance(vectors: Vectors, folder: Path) -> Iterator[Engine]:
    """Yield LanceDB's flat scan, and its indexes."""
    import lancedb
    from lancedb.index import HnswSq, IvfPq

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    database = lancedb.connect(folder)
    table: Any = database.create_table("vectors", pa.table({"row": np.arange(len(vectors)), "vector": column}))

    def search(query: Vectors) -> NDArray[np.int64]:
        found = table.search(query).distance_type("dot").limit(FIRST)
        return np.array(found.select(["row"]).to_arrow()["row"].to_numpy())

    def refined(query: Vectors) -> NDArray[np.int64]:
        found = table.search(query).distance_type("dot").nprobes(20).refine_factor(5).limit(FIRST)
        return np.array(found.select(["row"]).to_arrow()["row"].to_numpy())

    yield Engine("LanceDB, flat scan", 0.0, size_of(folder), search)
    for name, config in (
        ("LanceDB, HNSW-SQ, refined", HnswSq(distance_type="dot", num_partitions=1)),
        ("LanceDB, IVF-PQ, refined", IvfPq(distance_type="dot")),
    ):
        started = time.perf_counter()
        table.create_index("vector", config=config, replace=True)
        yield Engine(name, time.perf_counter() - started, size_of(folder), refined)


def usearch(vectors: Vectors) -> Engine:
    """Return usearch's HNSW."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
    started = time.perf_counter()
    index.add(np.arange(len(vectors)), vectors)
    seconds = time.perf_counter() - started

    def search(query: Vectors) -> NDArray[np.int64]:
        return np.asarray(index.search(query, FIRST).keys, np.int64)

    return Engine("usearch, HNSW", seconds, index.memory_usage, search)


def faiss(vectors: Vectors) -> Iterator[Engine]:
    """Yield faiss' HNSW and IVF-PQ."""
    import faiss as library

    dim = vectors.shape[1]
    lists = int(4 * np.sqrt(len(vectors)))
    for name, description in (("faiss, HNSW", "HNSW32"), ("faiss, IVF-PQ", f"IVF{lists},PQ64")):
        index = library.index_factory(dim, description, library.METRIC_INNER_PRODUCT)
        started = time.perf_counter()
        index.train(vectors)
        index.add(vectors)
        seconds = time.perf_counter() - started
        if "IVF" in description:
            index.nprobe = 20
        size = len(library.serialize_index(index))
        yield Engine(name, seconds, size, partial(_faiss_search, index))


def _faiss_search(index: Any, query: Vectors) -> NDArray[np.int64]:
    return np.asarray(index.search(query[None], FIRST)[1][0], np.int64)


def engines(vectors: Vectors, texts: Vectors, folder: Path, *, others: bool) -> Iterator[Engine]:
    """Yield the engines that are installed, each built when it is its turn."""
    yield from own(vectors, texts, folder / "own")
    if not others:
        return
    yield from lance(vectors, folder / "lance")
    if importlib.util.find_spec("usearch"):
        yield usearch(vectors)
    if importlib.util.find_spec("faiss"):
        yield from faiss(vectors)


def compare_engines(images: int, dim: int, *, others: bool) -> None:
    """Print a row for each engine."""
    vectors, texts, queries = draw(images, dim)
    wanted = [np.argsort(-(vectors @ query), kind="stable")[:FIRST] for query in queries]
    print("| engine | build, s | MB | p50, ms | p95, ms | recall@10 |\n|---|---|---|---|---|---|")
    folder = Path(tempfile.mkdtemp())
    try:
        for engine in engines(vectors, texts, folder, others=others):
            times, common = [], 0
            for query, right in zip(queries, wanted, strict=True):
                started = time.perf_counter()
                found = engine.search(query)
                times.append(1000 * (time.perf_counter() - started))
                common += len(np.intersect1d(found, right))
            p95 = statistics.quantiles(times, n=20)[-1]
            cells = f"{engine.seconds:.1f} | {engine.size / 1e6:.0f} | {statistics.median(times):.2f} | {p95:.2f}"
            print(f"| {engine.name} | {cells} | {common / FIRST / len(queries):.3f} |", flush=True)
    finally:
        shutil.rmtree(folder)


def load(address: str, queries: list[str], clients: int, seconds: float, *, rerank: bool) -> list[float]:
    """Return the latency in milliseconds of each request that `clients` sent one after the other."""
    until = time.perf_counter() + seconds
    latencies: list[float] = []

    def ask(first: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            for number in range(first, 10**9, clients):
                if time.perf_counter() > until:
                    return
                params: dict[str, Any] = {"text": queries[number % len(queries)], "rerank": rerank}
                started = time.perf_counter()
                client.get("/search", params=params).raise_for_status()
                latencies.append(1000 * (time.perf_counter() - started))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


def measure_server(address: str, queries: list[str], seconds: float, *, rerank: bool) -> None:
    """Print a row for each number of clients."""
    load(address, queries, 1, 2.0, rerank=rerank)
    print("| clients | p50, ms | p95, ms | requests a second |\n|---|---|---|---|")
    for clients in (1, 8, 32):
        latencies = load(address, queries, clients, seconds, rerank=rerank)
        p95 = statistics.quantiles(latencies, n=20)[-1]
        rate = len(latencies) / seconds
        print(f"| {clients} | {statistics.median(latencies):.1f} | {p95:.1f} | {rate:.0f} |", flush=True)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    vectors = commands.add_parser("engines")
    vectors.add_argument("--images", type=int, default=100_000)
    vectors.add_argument("--dim", type=int, default=512)
    vectors.add_argument("--own", action="store_true", help="leave out other engines")
    server = commands.add_parser("serve")
    server.add_argument("address")
    server.add_argument("queries", type=Path)
    server.add_argument("--seconds", type=float, default=20)
    server.add_argument("--rerank", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "engines":
        compare_engines(arguments.images, arguments.dim, others=not arguments.own)
    else:
        queries = [line for line in arguments.queries.read_text(encoding="utf-8").splitlines() if line.strip()]
        measure_server(arguments.address, queries, arguments.seconds, rerank=arguments.rerank)


if __name__ == "__main__":
    main()
