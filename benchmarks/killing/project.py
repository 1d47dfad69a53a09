"""The project that is killed: a clone with a few dozen scenes, remotes, an inbox, and something new in each round."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from diptych.project.workspace import Workspace

from . import ROOT

SCENES = 100
"""Images of the dataset before the first drop."""
COLOURS = ("red", "green", "blue", "yellow", "white", "orange", "purple", "grey")
IMAGES = 4
"""Images of a drop."""
CHEAP: dict[str, dict[str, Any]] = {
    "baselines": {"methods": [], "controls": []},
    "train": {"epochs": 1},
    # A model that was trained for a second is neither good nor better than the champion; the gate promotes it here.
    "gate": {
        "better_than_chance": False,
        "rsum_margin": 600.0,
        "slice_margin": 100.0,
        "guarded": [],
        "latency_ms": 60000.0,
    },
}
"""Changes of presets/tiny.yaml that make a run as cheap as possible."""


class Project:
    """A fresh clone of this repository in `folder`/project, with its remotes and its inbox.

    `drops` has the digests of the images of each drop by its name: the dataset has to contain them afterwards. The set
    of a drop that has to be refused is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.inbox = folder / "inbox"
        self.workspace = Workspace(self.root)
        self.drops: dict[str, set[str]] = {}
        self._remote = folder / "dvc-remote"
        self._runs = folder / "runs.git"

    def make(self, environment: Mapping[str, str]) -> None:
        """Make the clone with its data and params.yaml; no stage runs yet."""
        self.inbox.mkdir(parents=True, exist_ok=True)
        for command in (
            ("git", "clone", "--quiet", str(ROOT), str(self.root)),
            ("git", "init", "--quiet", "--bare", str(self._runs)),
        ):
            subprocess.run(command, check=True)
        for setup in (
            # --local: the configuration that git tracks does not change.
            ("dvc", "remote", "add", "--quiet", "--local", "--default", "store", str(self._remote)),
            ("diptych", "data", "scenes", "--train", "60", "--val", "20", "--test", str(SCENES - 80)),
        ):
            subprocess.run(setup, cwd=self.root, env=environment, check=True, capture_output=True)
        params = yaml.safe_load((self.workspace.presets / "tiny.yaml").read_text())
        for section, values in CHEAP.items():
            params[section] = {**params[section], **values}
        params["retrain"] = {"inbox": str(self.inbox), "git_remote": str(self._runs)}
        self._write_params(params)

    def change(self, number: int, stage: str) -> None:
        """Change the seed, so that there is a new model, and a setting of `stage`, so that this stage runs too."""
        params = yaml.safe_load(self.workspace.params.read_text())
        params["seed"] = number
        if stage == "validate":
            params["validate"]["max_aspect_ratio"] = 5.0 + number / 100
        if stage == "preprocess":
            params["preprocess"]["vocabulary_size"] = 300 + number
        self._write_params(params)

    def drop(self, kind: str, draw: random.Random) -> None:
        """Drop new pairs: `good`, the `same` as in an earlier drop, or `bad`, which have to be refused."""
        name = f"{len(self.drops):03d}-{kind}"
        earlier = [other for other, digests in self.drops.items() if digests]
        if kind == "same" and earlier:
            source = draw.choice(earlier)
            shutil.copytree(self.inbox / source, self.inbox / f"_{name}")
            self.drops[name] = self.drops[source]
        else:
            contents = [_picture(draw) for _ in range(IMAGES)]
            if kind == "bad":
                contents[1:] = [b"no image" + draw.randbytes(8) for _ in contents[1:]]
            _write_drop(self.inbox / f"_{name}", name, contents, draw)
            self.drops[name] = {hashlib.sha256(content).hexdigest() for content in contents} if kind != "bad" else set()
        # The inbox ignores names that begin with "_": the drop appears at once, and complete.
        (self.inbox / f"_{name}").rename(self.inbox / name)

    def ask(self, *command: str) -> str:
        """Return the output of a command in the project."""
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout

    def runs_are_shared(self) -> bool:
        """Return True if the git remote has the same branch of runs as the project."""
        local, remote = (
            subprocess.run(
                ["git", "rev-parse", "diptych/runs"], cwd=folder, capture_output=True, text=True, check=False
            ).stdout
            for folder in (self.root, self._runs)
        )
        return bool(local) and local == remote

    def _write_params(self, params: dict[str, Any]) -> None:
        self.workspace.params.write_text(yaml.safe_dump(params, sort_keys=False))


def _picture(draw: random.Random) -> bytes:
    """Draw a few coloured rectangles, different in each picture."""
    image = Image.new("RGB", (64, 64), draw.choice(COLOURS))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = draw.randrange(48), draw.randrange(48)
        colour = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
        pen.rectangle((left, top, left + draw.randrange(4, 16), top + draw.randrange(4, 16)), fill=colour)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write_drop(folder: Path, name: str, contents: Sequence[bytes], draw: random.Random) -> None:
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, content in enumerate(contents, start=1):
        file = f"{name}-{number}.png"
        (folder / "images" / file).write_bytes(content)
        images.append({"id": number, "file_name": file})
        for text in (
            f"a {draw.choice(COLOURS)} square near a {draw.choice(COLOURS)} one",
            f"{draw.choice(COLOURS)} rectangles",
        ):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": text})
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
