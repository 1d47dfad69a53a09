"""Speed of preprocess in decoding and resizing, compared with bare loops that do nothing else.

    python benchmarks/preparing.py DATA [--images 4000] [--size 224] [--processes 2] [--rounds 3]

DATA is a dataset folder (captions.json and shards). Both sides read the same images. The bare side is the given number
of processes, each with its share of the list: they call open_image and to_pixels, and discard the pixels. The other
side is `prepare_images` with an empty cache. Rounds alternate, and the best of each side counts. The exit code is 1
below 80 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from diptych.config import Preprocess
from diptych.data.captions import read_dataset
from diptych.data.images import ImageError, inspect_image, open_image, to_pixels
from diptych.data.preparing import prepare_images
from diptych.data.shards import Member, list_members, read_member

MAX_PIXELS = 100_000_000


def bare_loop(data: Path, members: list[Member], size: int) -> None:
    """Decode and resize images, and discard the pixels."""
    for member in members:
        to_pixels(open_image(read_member(data, member), MAX_PIXELS), size, "stretch")


def time_bare(data: Path, members: list[Member], size: int, processes: int) -> float:
    """Return the seconds that bare loops in `processes` take."""
    shares = [members[part::processes] for part in range(processes)]
    workers = [multiprocessing.Process(target=bare_loop, args=(data, share, size)) for share in shares]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begin


def time_preparing(data: Path, manifest: pd.DataFrame, size: int, processes: int, folder: Path) -> float:
    """Return the seconds that `prepare_images` takes; it writes into a temporary folder in `folder`."""
    settings = Preprocess(image_size=size)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        begin = time.perf_counter()
        prepare_images(
            data, manifest, Path(scratch, "out"), cache=Path(scratch, "cache"), settings=settings, workers=processes
        )
        return time.perf_counter() - begin


def make_manifest(data: Path, count: int) -> tuple[pd.DataFrame, list[Member]]:
    """Return the first `count` valid images, as validate would list them; `sha256` only has to differ."""
    split = {record["file_name"]: record.get("split", "") for record in read_dataset(data).images}
    rows: list[dict[str, Any]] = []
    members: list[Member] = []
    for member in list_members(data)[:count]:
        try:
            info, _ = inspect_image(read_member(data, member), MAX_PIXELS)
        except ImageError:
            continue
        members.append(member)
        rows.append(
            {
                "image_id": len(rows),
                "split": split[member.name],
                "file_name": member.name,
                "source": member.name,
                "shard": member.shard,
                "offset": member.offset,
                "bytes": member.size,
                "width": info.width,
                "height": info.height,
                "sha256": member.name,
            }
        )
    return pd.DataFrame(rows), members


def main() -> None:
    """Measure both sides and print their speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), help="folder that pixels are written to"
    )
    options = parser.parse_args()
    manifest, members = make_manifest(options.data, options.images)
    bare, prepared = [], []
    for _ in range(options.rounds):
        bare.append(time_bare(options.data, members, options.size, options.processes))
        prepared.append(time_preparing(options.data, manifest, options.size, options.processes, options.scratch))
    ratio = min(bare) / min(prepared)
    print(f"{len(members)} images at {options.size}×{options.size}, {options.processes} processes")
    print(f"bare loops      {len(members) / min(bare):8.0f} images/s  (rounds: {_seconds(bare)})")
    print(f"prepare_images  {len(members) / min(prepared):8.0f} images/s  (rounds: {_seconds(prepared)})")
    print(f"ratio           {ratio:8.1%}")
    raise SystemExit(ratio < 0.8)


def _seconds(times: list[float]) -> str:
    return ", ".join(f"{seconds:.2f} s" for seconds in times)


if __name__ == "__main__":
    main()
