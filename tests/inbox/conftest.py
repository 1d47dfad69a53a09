"""A project with a dataset of its own, a validate stage that takes no time, and drops."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dropping import make_photo
from fake_project import IGNORED, PARAMS, commit, run
from forked import Forks
from sharing import made_once

from diptych.data.captions import Dataset, write_dataset
from diptych.data.shards import ShardWriter
from diptych.errors import DiptychError
from diptych.inbox import ingesting
from diptych.project import changing, dataset, dvc, growing
from diptych.project.provenance import folder_sha256
from diptych.project.workspace import Workspace

CHAIN = {
    "stages": {
        "validate": {
            "cmd": "exec python stage.py",
            "deps": ["data", "stage.py"],
            "outs": ["artifacts/manifest.txt", "reports/validation.json", "reports/quarantine.csv"],
        }
    }
}
STAGE = """
import csv, json, os, pathlib, sys, tarfile, time
if os.environ.get("SLEEP"):
    pathlib.Path("sleeping").touch()
    time.sleep(60)
if os.environ.get("BREAK"):
    sys.exit("unexpected error: MemoryError: it broke")
dataset = json.loads(pathlib.Path("data/captions.json").read_text())
sound = set()
for path in sorted(pathlib.Path("data").glob("*.tar")):
    with tarfile.open(path) as tar:
        sound |= {one.name for one in tar if tar.extractfile(one).read(4) == b"\\x89PNG"}
source = {one["id"]: one["source"] for one in dataset["images"]}
bad = [("image", one["id"], one["source"], "no image") for one in dataset["images"] if one["file_name"] not in sound]
gone = {row[1] for row in bad}
for one in dataset["annotations"]:
    reason = "" if (one["caption"] or "").strip() else "no text"
    reason = reason or ("its image is left out" if one["image_id"] in gone else "")
    if reason:
        bad.append(("caption", one["id"], source[one["image_id"]], reason))
pathlib.Path("reports").mkdir(exist_ok=True)
pathlib.Path("artifacts").mkdir(exist_ok=True)
with open("reports/quarantine.csv", "w", newline="") as file:
    csv.writer(file).writerows([("kind", "id", "file", "reason"), *bad])
failures = ["7 of 12 images are bad"] if len(gone) * 2 > len(source) else []
pathlib.Path("reports/validation.json").write_text(json.dumps({"success": not failures, "failures": failures}))
if failures:
    sys.exit("error: The dataset is refused.")
pathlib.Path("artifacts/manifest.txt").write_text(" ".join(map(str, sorted(source))))
"""


@pytest.fixture(scope="session")
def _stocked(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    def make(root: Path) -> None:
        (root / "dvc.yaml").write_text(yaml.safe_dump(CHAIN))
        (root / "stage.py").write_text(STAGE)
        (root / "params.yaml").write_text(PARAMS)
        (root / ".gitignore").write_text(IGNORED + "/inbox\n")
        dataset = Dataset()
        (root / "data").mkdir()
        with ShardWriter(root / "data") as shards:
            for number in range(1, 7):
                name = f"{number:012d}.png"
                shards.add(name, make_photo(number))
                split = ("train", "val", "test")[number % 3]
                record = {"id": number, "file_name": name, "split": split, "source": f"old/{number}.png"}
                dataset.images.append(record | {"sha256": hashlib.sha256(make_photo(number)).hexdigest()})
                dataset.annotations.append({"id": number, "image_id": number, "caption": f"old thing {number}"})
        write_dataset(root / "data", dataset)
        for command in (
            ("git", "init", "--quiet"),
            ("dvc", "init", "--quiet"),
            ("dvc", "config", "core.analytics", "false"),
            ("dvc", "config", "cache.type", "reflink,hardlink,symlink"),
            ("dvc", "add", "--quiet", "data"),
            ("dvc", "repro", "--quiet"),
        ):
            run(*command, cwd=root)
        commit(root)

    return made_once(tmp_path_factory, "stocked", make)


@pytest.fixture
def stocked(_stocked: Path, tmp_path: Path) -> Workspace:
    """A committed project with six images, validated; its inbox is empty."""
    workspace = Workspace(Path(shutil.copytree(_stocked, tmp_path / "project", symlinks=True)))
    (workspace.root / "inbox").mkdir()
    workspace.local.mkdir(exist_ok=True)
    return workspace


@pytest.fixture
def unchanged(stocked: Workspace, request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether the project is as it was: data/, data.dvc, dvc.lock, what validate made, and nothing for DVC to do."""

    if "instant" in request.fixturenames:
        request.getfixturevalue("instant")

    def state() -> dict[str, bytes]:
        files = [stocked.root / "data.dvc", stocked.root / "dvc.lock"]
        for folder in (stocked.data, stocked.artifacts, stocked.reports):
            files += [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(stocked.root)): path.read_bytes() for path in files if path.exists()}

    def is_left() -> bool:
        return state() == before and not dvc.status(stocked) and not (stocked.local / "taking.json").exists()

    before = state()
    return is_left


class InstantDvc:
    """What ingesting asks of DVC, without DVC: versions are copies of data/ and of what the stage made of it."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.runs = 0

    def status(self, workspace: Workspace) -> dict[str, Any]:
        """Whether data/ is what data.dvc records."""
        return {} if self._version(workspace) == folder_sha256(workspace.data) else {"data.dvc": "modified"}

    def repair(self, workspace: Workspace) -> None:
        """Nothing is left behind."""

    def uses_dvc(self, workspace: Workspace) -> bool:
        """Always."""
        return True

    def keep_dataset(self, workspace: Workspace) -> None:
        """Every version is kept."""

    def fetch_dataset(self, workspace: Workspace) -> str:
        """From the copy."""
        if not workspace.data.exists():
            shutil.copytree(self._store / self._version(workspace) / "data", workspace.data)
        return "present"

    def record_dataset(self, workspace: Workspace) -> None:
        """A copy, and data.dvc."""
        version = folder_sha256(workspace.data)
        shutil.copytree(workspace.data, self._store / version / "data", dirs_exist_ok=True)
        (workspace.root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": version, "path": "data"}]}))

    def reproduce(self, workspace: Workspace, stage: str, *, force: bool, on_line: Callable[[str], None]) -> bool:
        """Every time."""
        done = subprocess.run([sys.executable, "stage.py"], cwd=workspace.root, capture_output=True, text=True)
        if done.returncode:
            raise DiptychError(f"stage {stage} failed: {done.stderr}")
        for name in ("artifacts", "reports"):
            target = self._store / self._version(workspace) / name
            shutil.copytree(workspace.root / name, target, dirs_exist_ok=True)
        self.runs += 1
        return True

    def go_back(self, workspace: Workspace, recorded: str, lock: str | None, *, present: bool) -> None:
        """To a copy."""
        (workspace.root / "data.dvc").write_text(recorded)
        for name in ("data", "artifacts", "reports"):
            shutil.rmtree(workspace.root / name)
            shutil.copytree(self._store / self._version(workspace) / name, workspace.root / name)

    def _version(self, workspace: Workspace) -> str:
        return str(yaml.safe_load((workspace.root / "data.dvc").read_text())["outs"][0]["md5"])


@pytest.fixture
def instant(stocked: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstantDvc:
    """Ingesting works with this in place of DVC, whose processes take half a second each."""
    store = InstantDvc(tmp_path / "versions")
    store.record_dataset(stocked)
    store.reproduce(stocked, "validate", force=False, on_line=print)
    store.runs = 0
    monkeypatch.setattr(ingesting, "dvc", store)
    monkeypatch.setattr(dvc, "status", store.status)
    used = {
        dataset: ("fetch_dataset",),
        growing: ("record_dataset",),
        changing: ("go_back", "keep_dataset", "repair", "uses_dvc"),
    }
    for module, names in used.items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(store, name))
    return store
