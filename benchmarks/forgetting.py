"""A challenger that has forgotten one kind of scene, and the guard set that refuses it.

    python benchmarks/forgetting.py [--folder FOLDER]

In FOLDER (default: a temporary one) it makes a clone of the last commit of this repository, with small towers. The
guard set has scenes whose objects are all green, blue or purple. `diptych run --promotion auto` trains three models:

1. on scenes in all colours; it becomes champion;
2. on the same scenes with another seed; it has forgotten nothing;
3. on as many scenes without these three colours, in train, val and test, so that the test split does not show the loss.

It prints the gate's table for each of them. The exit code is 1 unless the guard set refuses the third model, and is the
only reason to refuse one. It takes ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from months.project import AUTHOR, PARAMS, ROOT, Project, say

from diptych.data.captions import Dataset, Record
from diptych.data.scenes.drawing import write_scenes
from diptych.data.shards import list_members, read_member

COLOURS = {"green", "blue", "purple"}
"""Colours of the scenes that are forgotten."""
COUNTS = {"train": 1500, "val": 100, "test": 300}
"""Number of scenes in each split of a dataset."""
GUARDED = 300
"""Number of scenes in the guard set."""
DRAWN = {"train": 5500, "val": 500, "test": 8000}
"""Number of scenes that these are chosen from: 3 in 10 have none of the colours, 1 in 20 has no other."""
MARGIN = 30.0
"""Largest loss of RSUM, on test too: on 300 scenes two seeds differ by 30."""


def colours(record: Record) -> set[str]:
    """Return the colours of the objects in a scene."""
    return {item["colour"] for item in record["scene"]["objects"]}


def draw(folder: Path) -> Dataset:
    """Draw scenes into `folder`, a file each, and return their records and captions."""
    shards = folder.with_name("drawn")
    train, val, test = DRAWN.values()
    dataset = write_scenes(shards, train=train, val=val, test=test, seed=1, size=48)
    folder.mkdir()
    for member in list_members(shards):
        (folder / member.name).write_bytes(read_member(shards, member))
    return dataset


def choose(dataset: Dataset, split: str, count: int, wanted: Callable[[Record], bool]) -> list[Record]:
    """Return the first `count` wanted records of a split."""
    return [record for record in dataset.images if record["split"] == split and wanted(record)][:count]


def put_into_data(project: Project, dataset: Dataset, images: Path, records: Sequence[Record]) -> None:
    """Make these scenes the dataset of the project."""
    ids = {record["id"] for record in records}
    captions = [annotation for annotation in dataset.annotations if annotation["image_id"] in ids]
    table = images.with_name("captions.json")
    table.write_text(json.dumps({"images": records, "annotations": captions}), encoding="utf-8")
    shutil.rmtree(project.root / "data", ignore_errors=True)
    project.diptych("data", "import", "--coco", str(table), "--images", str(images), "--replace")


def make_project(folder: Path) -> Project:
    """Clone the last commit of this repository, with the small towers of the year."""
    root = folder / "project"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
    shutil.copy(PARAMS, root / "params.yaml")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return Project(root, {**os.environ, "PATH": path, "PYTHONPATH": str(root / "src")})


def set_params(project: Project, **sections: Any) -> None:
    """Change sections of params.yaml."""
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | sections), encoding="utf-8")


def add_guard_set(project: Project) -> None:
    """Make what is in data/ the guard set `cold`, as docs/registry.md describes it."""
    shutil.copytree(project.root / "data", project.root / "guards" / "cold")
    project.run("dvc", "add", "--quiet", "guards/cold")
    recorded = yaml.safe_load((project.root / "guards" / "cold.dvc").read_text(encoding="utf-8"))
    cold = {"path": "guards/cold", "md5": recorded["outs"][0]["md5"], "margin": MARGIN}
    set_params(project, gate={"rsum_margin": MARGIN, "guard_sets": {"cold": cold}}, retrain={})
    project.run("git", "add", "guards")
    project.run("git", *AUTHOR, "commit", "--quiet", "--message", "Scenes that no model may forget")


def train(project: Project, name: str) -> list[str]:
    """Train a model, ask the gate about it, and return the checks that it fails."""
    say(f"training: {name}")
    outcome = json.loads(project.diptych("run", "--promotion", "auto", "--json"))
    number, model = outcome["version"]["version"], outcome["version"]["name"]
    (path,) = project.root.glob(f".diptych/mlartifacts/**/gate/{model}-version-{number}-against-*.json")
    decision = json.loads(path.read_text(encoding="utf-8"))
    print(f"\n{name}\n\n{path.with_suffix('.md').read_text(encoding='utf-8')}", flush=True)
    return [check["name"] for check in decision["checks"] if not check["passed"]]


def live(folder: Path) -> bool:
    """Train the three models; return whether the guard set refuses the third, and nothing else is refused."""
    project, images = make_project(folder), folder / "images"
    say("drawing scenes")
    scenes = draw(images)
    put_into_data(project, scenes, images, choose(scenes, "test", GUARDED, lambda record: colours(record) <= COLOURS))
    add_guard_set(project)

    def dataset(wanted: Callable[[Record], bool]) -> list[Record]:
        return [record for split, count in COUNTS.items() for record in choose(scenes, split, count, wanted)]

    put_into_data(project, scenes, images, dataset(lambda record: True))
    first = train(project, "1. scenes in all colours")
    set_params(project, seed=1)
    second = train(project, "2. the same scenes, another seed")
    put_into_data(project, scenes, images, dataset(lambda record: not colours(record) & COLOURS))
    third = train(project, "3. scenes without green, blue and purple")
    refusal = f"on guard set cold its RSUM is not more than {MARGIN:g} below the champion's"
    return (first, second, third) == ([], [], [refusal])


def main() -> None:
    """Run it in the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="new folder of all files, which is kept (default: a temporary one)")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="diptych-forgetting-") as temporary:
        if folder is not None:
            folder.mkdir(parents=True)
        holds = live((folder or Path(temporary)).resolve())
    print("the guard set refuses the third model, and only that one" if holds else "NOT SO")
    raise SystemExit(not holds)


if __name__ == "__main__":
    main()
