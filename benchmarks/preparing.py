"""How fast preprocess decodes and resizes, beside bare loops that do nothing else.

    python benchmarks/preparing.py DATA [--images 4000] [--size 224] [--processes 2] [--rounds 3]

DATA is a dataset folder (captions.json and shards). Both sides read the same images: the bare side as so many
processes, each with its share of the list, that call open_image and to_pixels and throw the pixels away; the other
is `prepare_images` with an empty cache. Rounds alternate, the best of each counts. Ends with 1 below 80 %.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import pandas as pd

from diptych.config import Preprocess
from diptych.data.captions import read_dataset
from diptych.data.images import ImageError, inspect_image, open_image, to_pixels
from diptych.data.preparing import prepare_images
from diptych.data.shards import Member, list_members, read_member

MAX_PIXELS = 100_000_000


def bare_loop(data: Path, members: list[Member], size: int) -> None:
    for member in members:
        to_pixels(open_image(read_member(data, member), MAX_PIXELS), size, "stretch")


def time_bare(data: Path, members: list[Member], size: int, processes: int) -> float:
    shares = [members[part::processes] for part in range(processes)]
    workers = [multiprocessing.Process(target=bare_loop, args=(data, share, size)) for share in shares]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begin


def time_preparing(data: Path, manifest: pd.DataFrame, size: int, processes: int, folder: Path) -> float:
    settings = Preprocess(image_size=size)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        begin = time.perf_counter()
        prepare_images(
            data, manifest, Path(scratch, "out"), cache=Path(scratch, "cache"), settings=settings, workers=processes
        )
        return time.perf_counter() - begin


def make_manifest(data: Path, count: int) -> tuple[pd.DataFrame, list[Member]]:
    """The first `count` sound images, as validate would list them; `sha256` only has to tell them apart."""
    split = {record["file_name"]: record.get("split", "") for record in read_dataset(data).images}
    rows, members = [], []
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="where pixels are written")
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
