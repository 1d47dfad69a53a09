"""Growth of costs with the dataset: seconds, memory and bytes of each step on datasets of scenes, and their exponents.

    python benchmarks/scale.py FOLDER [--scenes 4000 40000 118000] [--json]

For each size FOLDER gets a clone of this repository, with the sources as they are here, and the steps run in it one
after the other, each in a process of its own: import from loose files, `dvc add` alone, validate, preprocess, the
features of a small frozen image tower, the index of all images, a run of the data stages that finds nothing to do, and
then import, validate and preprocess again with 1 % more images. The model, which only the index needs, is trained once
on the smallest dataset.

The exponent is that of the seconds between the two largest sizes: 1 is a cost for each image, 2 one for each pair of
images. Memory is that of the largest process. Results stay in FOLDER/results.json, and a size that is there is not
measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diptych.data.captions import Dataset, write_dataset
from diptych.data.scenes.drawing import write_scenes
from diptych.data.shards import list_members, read_member

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
SPLITS = (0.9, 0.05, 0.05)
"""Shares of train, val and test."""
GROWTH = 0.01
FEATURES = """
import torch
from pathlib import Path
from diptych.data.prepared import Prepared
from diptych.model.device import prepare
from diptych.project.params import read_params
from diptych.project.workspace import find_workspace
from diptych.retriever import Retriever
from diptych.training.features import FeatureCache
workspace = find_workspace()
params = read_params(workspace)
device = prepare("cpu", None)
tower = Retriever.load(Path("model")).model.image_tower
splits = [Prepared(workspace.prepared, params.data.splits).split(role) for role in ("train", "val", "test")]
FeatureCache(Path("features"), limit_gib=100, device=device, precision="no").images(tower, splits)
"""
"""Program that stores the features of all images in the folder `features`."""

Row = dict[str, float]


@dataclass(frozen=True)
class Project:
    """A clone of this repository in `folder`/project, and loose files of scenes to import."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "project"

    def make(self) -> None:
        """Make the clone; it has no data."""
        self.folder.mkdir(parents=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.root)], check=True)
        shutil.copytree(ROOT / "src", self.root / "src", dirs_exist_ok=True)
        shutil.copy(ROOT / "dvc.yaml", self.root)
        shutil.copy(self.root / "presets/tiny.yaml", self.root / "params.yaml")

    def draw(self, name: str, scenes: int, seed: int) -> list[str]:
        """Write scenes as loose files with a COCO captions file; return the options that import them."""
        files, captions = self.folder / name, self.folder / f"{name}-captions"
        # In a process of its own: the memory of this one would count as that of each command that it starts.
        drawing = get_context("spawn").Process(target=draw, args=(files, captions, scenes, seed))
        drawing.start()
        drawing.join()
        if drawing.exitcode:
            sys.exit("error: the scenes were not drawn.")
        return ["--coco", str(captions / "captions.json"), "--images", str(files)]

    def run(self, *command: str | Path) -> Row:
        """Run a command in the project; return its seconds, and the memory of its largest process in MiB."""
        log = self.folder / "log.txt"
        environment = os.environ | {"PYTHONPATH": str(self.root / "src"), "PATH": f"{BIN}:{os.environ['PATH']}"}
        started = time.perf_counter()
        with log.open("a") as output:
            process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=output, stderr=output)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"error: {' '.join(map(str, command))} failed; {log} says why.")
        return {"seconds": time.perf_counter() - started, "mib": usage.ru_maxrss / 1024}

    def add_anew(self) -> Row:
        """Have DVC add data/ as files that it has never seen."""
        data, copy = self.root / "data", self.root / "copy"
        shutil.copytree(data, copy)
        for folder in (data, self.root / ".dvc/cache"):
            shutil.rmtree(folder)
        copy.rename(data)
        return self.run(BIN / "dvc", "add", "data")

    def mib_of(self, name: str) -> float:
        """Return the size of a folder of the project in MiB."""
        return sum(path.stat().st_size for path in (self.root / name).rglob("*") if path.is_file()) / 2**20


def draw(files: Path, captions: Path, scenes: int, seed: int) -> None:
    """Write scenes as loose files, and a COCO captions file of them."""
    source = files.with_name(f"{files.name}-drawn")
    train, val, test = (max(1, round(share * scenes)) for share in SPLITS)
    dataset = write_scenes(source, train=train, val=val, test=test, seed=seed)
    for folder in (files, captions):
        folder.mkdir()
    for member in tqdm(list_members(source), "writing files", unit="images"):
        (files / member.name).write_bytes(read_member(source, member))
    write_dataset(captions, Dataset(images=dataset.images, annotations=dataset.annotations))
    shutil.rmtree(source)


def measure(project: Project, scenes: int, model: Path) -> dict[str, Row]:
    """Return what each step costs with this number of scenes; train the model if there is none yet."""
    project.make()
    first, more = project.draw("first", scenes, 0), project.draw("more", round(GROWTH * scenes), 1)
    diptych = BIN / "diptych"
    rows = {
        "import": project.run(diptych, "data", "import", *first, "--replace") | {"written": project.mib_of("data")},
        "dvc add": project.add_anew(),
        "validate": project.run(diptych, "stage", "validate"),
        "preprocess": project.run(diptych, "stage", "preprocess") | {"written": project.mib_of("artifacts/prepared")},
    }
    if not model.exists():
        project.run(diptych, "stage", "train")
        shutil.copytree(project.root / "artifacts/model", model)
    shutil.copytree(model, project.root / "model")
    rows["features"] = project.run(sys.executable, "-c", FEATURES) | {"written": project.mib_of("features")}
    rows["index"] = project.run(diptych, "index", "model") | {"written": project.mib_of(".diptych/search")}
    # DVC takes the outputs of the stages as they are; then there is nothing to do.
    project.run(BIN / "dvc", "commit", "--force", "validate", "preprocess")
    rows["nothing to do"] = project.run(BIN / "dvc", "repro", "validate", "preprocess")
    rows["import of 1 % more"] = project.run(diptych, "data", "import", *more)
    rows["validate again"] = project.run(diptych, "stage", "validate")
    rows["preprocess again"] = project.run(diptych, "stage", "preprocess")
    return rows


def exponent(smaller: tuple[int, float], larger: tuple[int, float]) -> float:
    """Return the power of the number of scenes with which a cost grows, given two (scenes, cost)."""
    return math.log(larger[1] / smaller[1]) / math.log(larger[0] / smaller[0])


def table(results: dict[int, dict[str, Row]]) -> list[str]:
    """Return the lines of a table for people: a row for each step, seconds and memory for each size."""
    sizes = sorted(results)
    heads = ["step", *(f"{size:,}: s" for size in sizes), "exponent", *(f"{size:,}: MiB" for size in sizes), "written"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for step in results[sizes[0]]:
        rows = [results[size][step] for size in sizes]
        costs = [(size, row["seconds"]) for size, row in zip(sizes, rows, strict=True)]
        growth = f"{exponent(*costs[-2:]):.2f}" if len(costs) > 1 else "–"
        written = f"{rows[-1]['written']:,.0f} MiB" if "written" in rows[-1] else ""
        seconds, memory = ([f"{row[key]:,.{digits}f}" for row in rows] for key, digits in (("seconds", 1), ("mib", 0)))
        lines.append(f"| {' | '.join([step, *seconds, growth, *memory, written])} |")
    return lines


def main() -> None:
    """Measure all sizes, and print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, nargs="+", default=[4_000, 40_000, 118_000])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for size in sorted(options.scenes):
        if str(size) in results:
            continue
        project = Project(folder / str(size))
        shutil.rmtree(project.folder, ignore_errors=True)
        results[str(size)] = measure(project, size, folder / "model")
        kept.write_text(json.dumps(results, indent=2))
        shutil.rmtree(project.folder)
    print(json.dumps(results, indent=2) if options.json else "\n".join(table({int(k): v for k, v in results.items()})))


if __name__ == "__main__":
    main()
