"""Comparison of retrieval metrics: time, memory and figures of diptych and of other packages on the same embeddings.

    make benchmarks
    .venv/bin/python benchmarks/evaluation.py [--images 5000] [--dim 512] [--rounds 3]

The embeddings are random; those of captions are near to those of their images. The image and caption ids are those of
COCO's 5K test, which the package eccv-caption includes. Every package runs in a separate process. Time and memory are
those of the metrics, without imports and loading. Each package gives the figures that it has:

* product: the one matrix product that both directions need, the floor of time.
* clip-benchmark: recalls of both directions. eccv-caption: recalls on 5K and on the five folds, from full rankings.
* ranx and torchmetrics: hit rates and R-precision from the first 50 items of each query and its relevant items.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from peers.processes import PEERS_PYTHON, ROOT, say

NAMES = ("product", "diptych", "clip-benchmark", "eccv-caption", "ranx", "torchmetrics")
IDS = """
import json, numpy, pathlib, eccv_caption
folder = pathlib.Path(eccv_caption.__file__).parent / "data"
image_of = json.loads((folder / "original_caption_to_image.json").read_text())
captions = numpy.load(folder / "coco_test_ids.npy").tolist()
print(json.dumps([[caption, image_of[str(caption)][0]] for caption in captions]))
"""
"""Program that prints the ids of COCO's test captions, each with the id of its image."""


def make(folder: Path, images: int, dim: int, noise: float) -> None:
    """Write embeddings of the first `images` of COCO's test, in its order."""
    pairs = np.array(json.loads(subprocess.check_output([PEERS_PYTHON, "-c", IDS])))
    ids = list(dict.fromkeys(pairs[:, 1].tolist()))[:images]
    index = {image_id: position for position, image_id in enumerate(ids)}
    pairs = pairs[np.isin(pairs[:, 1], ids)]
    image_of_caption = np.array([index[image_id] for image_id in pairs[:, 1]])
    random = np.random.default_rng(0)
    image = random.normal(size=(len(ids), dim))
    text = image[image_of_caption] + noise * random.normal(size=(len(pairs), dim))
    for name, rows in (("image", image), ("text", text)):
        np.save(folder / f"{name}.npy", (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    np.save(folder / "image_of_caption.npy", image_of_caption)
    np.save(folder / "image_ids.npy", np.array(ids))
    np.save(folder / "caption_ids.npy", pairs[:, 0])


def perform(name: str, folder: Path) -> dict[str, Any]:
    """Measure one package in a separate process."""
    python = sys.executable if name in ("product", "diptych") else PEERS_PYTHON
    done = subprocess.run(
        [python, "-m", "peers.rankers", name, str(folder)],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"{name}: {result['seconds']:.1f} s")
    return result


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--noise", type=float, default=7.0, help="scale of the noise in captions' embeddings (7)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each package (default: 3)")
    parser.add_argument("--packages", nargs="+", choices=NAMES, default=list(NAMES))
    return parser.parse_args()


def main() -> None:
    """Measure each package and print the table."""
    options = parse_options()
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is missing: run `make benchmarks`.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, options.images, options.dim, options.noise)
        rounds = [{name: perform(name, folder) for name in options.packages} for _ in range(options.rounds)]
    results = {name: [of_round[name] for of_round in rounds] for name in options.packages}
    seconds = {name: statistics.median(result["seconds"] for result in of_name) for name, of_name in results.items()}
    memory = {name: statistics.median(result["megabytes"] for result in of_name) for name, of_name in results.items()}
    print(f"{'':22}" + "".join(f"{name:>16}" for name in results))
    print(f"{'seconds':22}" + "".join(f"{seconds[name]:16.2f}" for name in results))
    print(f"{'MB above embeddings':22}" + "".join(f"{memory[name]:16.0f}" for name in results))
    if "diptych" in results:
        for name, values in (("time", seconds), ("memory", memory)):
            ratios = "".join(f"{values[other] / max(values['diptych'], 1e-3):16.2f}" for other in results)
            print(f"{f'times diptych, {name}':22}{ratios}")
    figures = {name: of_name[0]["figures"] for name, of_name in results.items()}
    for figure in dict.fromkeys(figure for of_name in figures.values() for figure in of_name):
        row = (f"{of_name[figure]:16.4f}" if figure in of_name else f"{'':16}" for of_name in figures.values())
        print(f"{figure:22}" + "".join(row))


if __name__ == "__main__":
    main()
