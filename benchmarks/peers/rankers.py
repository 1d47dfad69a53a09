"""The same embeddings through other packages' retrieval metrics: each call is a process of its own.

    python -m peers.rankers NAME FOLDER

FOLDER holds image.npy, text.npy, own.npy (each caption's image), and the COCO ids of both, image_ids.npy and
caption_ids.npy. The last line of stdout is the result as JSON: seconds, peak memory above the loaded embeddings in MB,
and figures in percent by name. Each package ranks by the inner product of embeddings of length one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Figures = dict[str, float]

FIRST = 50
"""Ranked items of each query that ranx and torchmetrics are given, beside its right ones."""
KS = (1, 5, 10)


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    loaded = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    image, text = (torch.from_numpy(loaded[side]) for side in ("image", "text"))
    prepare, measure = RANKERS[name]
    tools = prepare()
    before, started = _memory("VmRSS"), time.perf_counter()
    # The peak of what was imported and loaded is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    figures = measure(tools, image, text, loaded)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "megabytes": _memory("VmHWM") - before, "figures": figures}))


def _memory(name: str) -> float:
    """Of this process in MB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def product(tools: object, image: torch.Tensor, text: torch.Tensor, loaded: dict[str, NDArray]) -> Figures:
    """The one matrix product that both directions need, as a floor."""
    image @ text.T
    return {}


def diptych(tools: object, image: torch.Tensor, text: torch.Tensor, loaded: dict[str, NDArray]) -> Figures:
    """All figures, and the five folds."""
    from diptych.retrieval.metrics import retrieval_metrics

    metrics = retrieval_metrics(image, text, loaded["own"])
    figures = {f"{way} {name}": metrics[way][name] for way in ("i2t", "t2i") for name in metrics[way]}
    folds = metrics.get("folds_1k", {})
    return figures | {
        f"{way} 1k {name}": folds[way][name]
        for way in ("i2t", "t2i")
        for name in folds.get(way, {})
        if "recall" in name
    }


def clip_benchmark(evaluate: Callable, image: torch.Tensor, text: torch.Tensor, loaded: dict[str, NDArray]) -> Figures:
    """Its own evaluation, with a model that hands on what it is given; batches of 64, its default."""

    class Given:
        encode_image = staticmethod(lambda rows: rows)
        encode_text = staticmethod(lambda rows: rows)

    own = loaded["own"]
    captions = [np.flatnonzero(own == one) for one in range(len(image))]
    batches = [
        (image[start : start + 64], [captions[one].tolist() for one in range(start, min(start + 64, len(image)))])
        for start in range(0, len(image), 64)
    ]
    found = evaluate(Given(), batches, lambda rows: text[rows], "cpu", amp=False, recall_k_list=list(KS))
    ways = {"i2t": "text_retrieval", "t2i": "image_retrieval"}
    return {f"{way} recall@{k}": 100 * found[f"{name}_recall@{k}"] for way, name in ways.items() for k in KS}


def eccv_caption(metric: object, image: torch.Tensor, text: torch.Tensor, loaded: dict[str, NDArray]) -> Figures:
    """Full rankings, as its 1K figures need them."""
    scores = image @ text.T
    image_ids, caption_ids = loaded["image_ids"], loaded["caption_ids"]
    i2t = {int(one): caption_ids[row].tolist() for one, row in zip(image_ids, _order(scores), strict=True)}
    t2i = {int(one): image_ids[row].tolist() for one, row in zip(caption_ids, _order(scores.T), strict=True)}
    found = metric.compute_all_metrics(i2t, t2i, target_metrics=("coco_1k_recalls", "coco_5k_recalls"), Ks=KS)  # type: ignore[attr-defined]
    named = {"coco_5k_r": "recall@", "coco_1k_r": "1k recall@"}
    return {
        f"{way} {label}{k}": 100 * found[f"{name}{k}"][way]
        for name, label in named.items()
        for way in ("i2t", "t2i")
        for k in KS
    }


def _order(scores: torch.Tensor) -> NDArray[np.int64]:
    return scores.argsort(dim=1, descending=True).numpy()


def ranx(tools: object, image: torch.Tensor, text: torch.Tensor, loaded: dict[str, NDArray]) -> Figures:
    """The first 50 and the right items of each query."""
    from ranx import Qrels, Run, evaluate

    figures = {}
    for way, scores, right in _both_ways(image, text, loaded["own"]):
        run, judged = {}, {}
        for query, (items, values) in enumerate(_candidates(scores, right)):
            run[str(query)] = dict(zip(map(str, items), values, strict=True))
            judged[str(query)] = dict.fromkeys(map(str, right[query].tolist()), 1)
        names = {f"hit_rate@{k}": f"recall@{k}" for k in KS} | {"r-precision": "r_precision"}
        found = evaluate(Qrels(judged), Run(run), list(names))
        figures |= {f"{way} {name}": 100 * float(found[theirs]) for theirs, name in names.items()}
    return figures


def torchmetrics(tools: object, image: torch.Tensor, text: torch.Tensor, loaded: dict[str, NDArray]) -> Figures:
    """The first 50 and the right items of each query."""
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalRPrecision

    figures = {}
    for way, scores, right in _both_ways(image, text, loaded["own"]):
        predictions, targets, queries = [], [], []
        for query, (items, values) in enumerate(_candidates(scores, right)):
            predictions.append(torch.tensor(values))
            targets.append(torch.from_numpy(np.isin(items, right[query])))
            queries.append(torch.full((len(items),), query))
        given = torch.cat(predictions), torch.cat(targets), torch.cat(queries)
        metrics = {f"recall@{k}": RetrievalHitRate(top_k=k) for k in KS} | {"r_precision": RetrievalRPrecision()}
        figures |= {
            f"{way} {name}": 100 * float(metric(given[0], given[1], indexes=given[2]))
            for name, metric in metrics.items()
        }
    return figures


def _both_ways(image: torch.Tensor, text: torch.Tensor, own: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    captions = [np.flatnonzero(own == one) for one in range(len(image))]
    scores = image @ text.T
    yield "i2t", scores, captions
    yield "t2i", scores.T, own[:, None]


def _candidates(scores: torch.Tensor, right):  # type: ignore[no-untyped-def]
    """Items and scores of each query: the first `FIRST`, and its right ones."""
    first = scores.topk(FIRST, dim=1).indices.numpy()
    for query, found in enumerate(first):
        items = np.union1d(found, right[query])
        yield items, scores[query, torch.from_numpy(items)].tolist()


def _nothing() -> None:
    """Imports what is no part of the measurement."""
    import diptych.retrieval.metrics  # noqa: F401


def _load_clip_benchmark() -> Callable:
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    return evaluate


def _load_eccv_caption() -> object:
    from eccv_caption import Metrics

    return Metrics()


def _load_ranx() -> None:
    """It compiles its metrics at their first use."""
    from ranx import Qrels, Run, evaluate

    tiny = {"a": {"x": 1}, "b": {"y": 1}}
    evaluate(Qrels(tiny), Run({"a": {"x": 0.5}, "b": {"y": 0.5}}), [*(f"hit_rate@{k}" for k in KS), "r-precision"])


def _load_torchmetrics() -> None:
    import torchmetrics.retrieval  # noqa: F401


RANKERS = {
    "product": (_nothing, product),
    "diptych": (_nothing, diptych),
    "clip-benchmark": (_load_clip_benchmark, clip_benchmark),
    "eccv-caption": (_load_eccv_caption, eccv_caption),
    "ranx": (_load_ranx, ranx),
    "torchmetrics": (_load_torchmetrics, torchmetrics),
}

if __name__ == "__main__":
    main()
