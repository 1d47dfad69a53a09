"""Retrieval metrics of diptych and other packages on the same embeddings: each call is a separate process.

    python -m peers.rankers NAME FOLDER

FOLDER has image.npy, text.npy, image_of_caption.npy, and the COCO ids of both, image_ids.npy and caption_ids.npy. The
last line of stdout is the result as JSON: seconds, peak memory above the loaded embeddings in MB, and figures by name,
in percent. Each package ranks by the inner product of embeddings of unit length.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Figures = dict[str, float]
Arrays = dict[str, NDArray[Any]]
Indices = NDArray[np.int64]
Ranker = Callable[[Any, torch.Tensor, torch.Tensor, Arrays], Figures]

FIRST = 50
"""Number of ranked items of each query that ranx and torchmetrics get, in addition to its relevant items."""
KS = (1, 5, 10)
DIRECTIONS = ("i2t", "t2i")


def main() -> None:
    """Measure one package, and print its result as JSON."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    loaded = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    image, text = (torch.from_numpy(loaded[side]) for side in ("image", "text"))
    prepare, measure = RANKERS[name]
    tools = prepare()
    before, started = _memory("VmRSS"), time.perf_counter()
    # Reset the peak, so that it does not include imports and loading.
    Path("/proc/self/clear_refs").write_text("5")
    figures = measure(tools, image, text, loaded)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "megabytes": _memory("VmHWM") - before, "figures": figures}))


def _memory(name: str) -> float:
    """Return the memory of this process in MB, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def product(_tools: object, image: torch.Tensor, text: torch.Tensor, _loaded: Arrays) -> Figures:
    """Compute the one matrix product that both directions need, as a floor."""
    image @ text.T
    return {}


def diptych(_tools: object, image: torch.Tensor, text: torch.Tensor, loaded: Arrays) -> Figures:
    """Return all figures, and those of the five folds."""
    from diptych.retrieval.metrics import retrieval_metrics

    metrics = retrieval_metrics(image, text, loaded["image_of_caption"])
    figures = {
        f"{direction} {name}": metrics[direction][name] for direction in DIRECTIONS for name in metrics[direction]
    }
    folds = metrics.get("folds_1k", {})
    return figures | {
        f"{direction} 1k {name}": folds[direction][name]
        for direction in DIRECTIONS
        for name in folds.get(direction, {})
        if "recall" in name
    }


def clip_benchmark(evaluate: Any, image: torch.Tensor, text: torch.Tensor, loaded: Arrays) -> Figures:
    """Run clip-benchmark's evaluation, with a model that returns its input; batches of 64, its default."""

    class Identity:
        encode_image = staticmethod(lambda rows: rows)
        encode_text = staticmethod(lambda rows: rows)

    captions = _captions_of_images(loaded["image_of_caption"], len(image))
    batches = [
        (image[start : start + 64], [rows.tolist() for rows in captions[start : start + 64]])
        for start in range(0, len(image), 64)
    ]
    recalls = evaluate(Identity(), batches, lambda rows: text[rows], "cpu", amp=False, recall_k_list=list(KS))
    names = {"i2t": "text_retrieval", "t2i": "image_retrieval"}
    return {
        f"{direction} recall@{k}": 100 * recalls[f"{name}_recall@{k}"] for direction, name in names.items() for k in KS
    }


def eccv_caption(metric: Any, image: torch.Tensor, text: torch.Tensor, loaded: Arrays) -> Figures:
    """Return figures from full rankings, which the 1K figures need."""
    scores = image @ text.T
    image_ids, caption_ids = loaded["image_ids"], loaded["caption_ids"]
    i2t = {int(id_): caption_ids[row].tolist() for id_, row in zip(image_ids, _order(scores), strict=True)}
    t2i = {int(id_): image_ids[row].tolist() for id_, row in zip(caption_ids, _order(scores.T), strict=True)}
    recalls = metric.compute_all_metrics(i2t, t2i, target_metrics=("coco_1k_recalls", "coco_5k_recalls"), Ks=KS)
    names = {"coco_5k_r": "recall@", "coco_1k_r": "1k recall@"}
    return {
        f"{direction} {label}{k}": 100 * recalls[f"{name}{k}"][direction]
        for name, label in names.items()
        for direction in DIRECTIONS
        for k in KS
    }


def _order(scores: torch.Tensor) -> NDArray[np.int64]:
    order: NDArray[np.int64] = scores.argsort(dim=1, descending=True).numpy()
    return order


def ranx(_tools: object, image: torch.Tensor, text: torch.Tensor, loaded: Arrays) -> Figures:
    """Return figures from the first 50 items and the relevant items of each query."""
    from ranx import Qrels, Run, evaluate

    figures: Figures = {}
    for direction, scores, relevant in _directions(image, text, loaded["image_of_caption"]):
        run, judged = {}, {}
        for query, (items, values) in enumerate(_candidates(scores, relevant)):
            run[str(query)] = dict(zip(map(str, items), values, strict=True))
            judged[str(query)] = dict.fromkeys(map(str, relevant[query].tolist()), 1)
        names = {f"hit_rate@{k}": f"recall@{k}" for k in KS} | {"r-precision": "r_precision"}
        metrics = evaluate(Qrels(judged), Run(run), list(names))
        figures |= {f"{direction} {name}": 100 * float(metrics[ranx_name]) for ranx_name, name in names.items()}
    return figures


def torchmetrics(_tools: object, image: torch.Tensor, text: torch.Tensor, loaded: Arrays) -> Figures:
    """Return figures from the first 50 items and the relevant items of each query."""
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalRPrecision

    figures: Figures = {}
    for direction, scores, relevant in _directions(image, text, loaded["image_of_caption"]):
        predictions, targets, queries = [], [], []
        for query, (items, values) in enumerate(_candidates(scores, relevant)):
            predictions.append(torch.tensor(values))
            targets.append(torch.from_numpy(np.isin(items, relevant[query])))
            queries.append(torch.full((len(items),), query))
        similarities, hits, indexes = torch.cat(predictions), torch.cat(targets), torch.cat(queries)
        metrics = {f"recall@{k}": RetrievalHitRate(top_k=k) for k in KS} | {"r_precision": RetrievalRPrecision()}
        figures |= {
            f"{direction} {name}": 100 * float(metric(similarities, hits, indexes=indexes))
            for name, metric in metrics.items()
        }
    return figures


def _captions_of_images(image_of_caption: Indices, images: int) -> list[Indices]:
    return [np.flatnonzero(image_of_caption == image) for image in range(images)]


def _directions(
    image: torch.Tensor, text: torch.Tensor, image_of_caption: Indices
) -> Iterator[tuple[str, torch.Tensor, Sequence[Indices]]]:
    """Yield each direction with its scores and the relevant items of each query."""
    scores = image @ text.T
    yield "i2t", scores, _captions_of_images(image_of_caption, len(image))
    yield "t2i", scores.T, [*image_of_caption[:, None]]


def _candidates(scores: torch.Tensor, relevant: Sequence[Indices]) -> Iterator[tuple[Indices, list[float]]]:
    """Yield items and scores of each query: the first `FIRST`, and its relevant items."""
    first = scores.topk(FIRST, dim=1).indices.numpy()
    for query, top in enumerate(first):
        items = np.union1d(top, relevant[query])
        yield items, scores[query, torch.from_numpy(items)].tolist()


def _nothing() -> None:
    """Import diptych before the measurement."""
    import diptych.retrieval.metrics  # noqa: F401


def _load_clip_benchmark() -> Any:
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    return evaluate


def _load_eccv_caption() -> Any:
    from eccv_caption import Metrics

    return Metrics()


def _load_ranx() -> None:
    """Use ranx once: it compiles its metrics at their first use."""
    from ranx import Qrels, Run, evaluate

    tiny = {"a": {"x": 1}, "b": {"y": 1}}
    evaluate(Qrels(tiny), Run({"a": {"x": 0.5}, "b": {"y": 0.5}}), [*(f"hit_rate@{k}" for k in KS), "r-precision"])


def _load_torchmetrics() -> None:
    import torchmetrics.retrieval  # noqa: F401


RANKERS: dict[str, tuple[Callable[[], Any], Ranker]] = {
    "product": (_nothing, product),
    "diptych": (_nothing, diptych),
    "clip-benchmark": (_load_clip_benchmark, clip_benchmark),
    "eccv-caption": (_load_eccv_caption, eccv_caption),
    "ranx": (_load_ranx, ranx),
    "torchmetrics": (_load_torchmetrics, torchmetrics),
}

if __name__ == "__main__":
    main()
