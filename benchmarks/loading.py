"""Speed of the loader in images per second when nothing is computed with them: the most that a GPU could get.

    python benchmarks/loading.py WORKSPACE [--preset presets/coco-resnet50-bert.yaml] [--epochs 3]

WORKSPACE is a project in which `preprocess` has run with the preset's image size. The batches are those of training,
pixels and token ids, from the same prefetching thread; each is copied once, as to a device. Compare with the speed of
training, at the end of each epoch's progress bar.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch

from diptych.config import load_params
from diptych.data.prepared import Prepared
from diptych.training.batches import BatchPlan, prefetched


def images_per_second(plan: BatchPlan, epoch: int) -> float:
    """Return the speed over one epoch."""
    images, started = 0, time.perf_counter()
    for batch in prefetched(plan.epoch(epoch), torch.device("cpu")):
        images += len(batch.images.clone())
    return images / (time.perf_counter() - started)


def main() -> None:
    """Measure and print the speed of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--preset", type=Path, default=Path("presets/coco-resnet50-bert.yaml"))
    parser.add_argument("--epochs", type=int, default=3, help="the first one reads from the disk (default: 3)")
    arguments = parser.parse_args()
    params = load_params(arguments.preset)
    os.chdir(arguments.workspace)
    plan = BatchPlan(
        Prepared(Path("artifacts/prepared"), params.data.splits).split("train"),
        batch_size=params.train.batch_size,
        captions_per_image=params.train.captions_per_image,
        seed=params.seed,
    )
    speeds = [images_per_second(plan, epoch) for epoch in range(arguments.epochs)]
    for epoch, speed in enumerate(speeds, start=1):
        print(f"epoch {epoch}: {speed:8.0f} images/s")
    size = params.train.batch_size
    print(f"median:  {statistics.median(speeds):8.0f} images/s, {plan.steps} batches of {size} images")


if __name__ == "__main__":
    main()
