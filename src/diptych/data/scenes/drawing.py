"""The embedded dataset: generated scenes in COCO captions format, with the same bytes on every machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diptych.data.captions import CAPTIONS_FILE, Dataset, Record, read_dataset, write_dataset
from diptych.data.scenes.captions import captions
from diptych.data.scenes.graph import Scene, Split, make_scene
from diptych.data.scenes.pictures import draw
from diptych.data.shards import ShardWriter
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.progress import progress

GENERATOR = "scenes"
"""Value of `info.generator` in a captions file that describes nothing but scenes."""


def write_scenes(
    folder: Path,
    *,
    train: int = 3000,
    val: int = 500,
    test: int = 500,
    seed: int = 0,
    size: int = 96,
    replace: bool = False,
) -> Dataset:
    """Replace the content of `folder` by a dataset of scenes, and return it.

    `train`, `val` and `test` are the numbers of scenes; `size` is the width and height of the pictures in pixels.

    Raises:
        DiptychError: the folder holds a dataset that is not generated, and `replace` is false.
    """
    if (folder / CAPTIONS_FILE).exists() and not replace and not holds_scenes(read_dataset(folder)):
        raise DiptychError(
            f"{folder} holds another dataset, which the scenes would replace. Run with --replace if it may be deleted."
        )
    dataset = Dataset(info={"description": "diptych scenes", "generator": GENERATOR, "seed": seed, "version": "1"})
    counts: dict[Split, int] = {"train": train, "val": val, "test": test}
    scenes = ((split, make_scene(seed, split, index)) for split, count in counts.items() for index in range(count))
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        with ShardWriter(temporary) as shards:
            for split, scene in progress(scenes, "drawing scenes", unit="images", total=train + val + test):
                _add(dataset, shards, split, scene, size)
        write_dataset(temporary, dataset)
    return dataset


def holds_scenes(dataset: Dataset) -> bool:
    """Return whether the dataset is generated, so that deleting it loses nothing."""
    return dataset.info.get("generator") == GENERATOR


def _add(dataset: Dataset, shards: ShardWriter, split: Split, scene: Scene, size: int) -> None:
    image_id = len(dataset.images) + 1
    name = f"{image_id:012d}.jpg"
    content = draw(scene, size)
    shards.add(name, content)
    record: Record = {"id": image_id, "file_name": name, "split": split, "width": size, "height": size}
    record |= {"sha256": hashlib.sha256(content).hexdigest(), "source": f"{GENERATOR}/{split}/{scene.entropy[2]}"}
    dataset.images.append(record | {"scene": scene.to_json()})
    for caption in captions(scene):
        dataset.annotations.append({"id": len(dataset.annotations) + 1, "image_id": image_id, "caption": caption})
