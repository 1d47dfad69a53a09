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
"""Images that there are before the first drop."""
COLOURS = ("red", "green", "blue", "yellow", "white", "orange", "purple", "grey")
IMAGES = 4
"""Of a drop."""
CHEAP: dict[str, dict[str, Any]] = {
    "baselines": {"methods": [], "controls": []},
    "train": {"epochs": 1},
    # What was trained for a second is neither good nor better than what was there before; it is to be promoted.
    "gate": {
        "better_than_chance": False,
        "rsum_margin": 600.0,
        "slice_margin": 100.0,
        "guarded": [],
        "latency_ms": 60000.0,
    },
}
"""What of presets/tiny.yaml is as cheap as can be."""


class Project:
    """A fresh clone of this repository in `folder`/project, and what lies around it.

    `drops` are those that were made, by name: the digests of their images, which the dataset has to hold afterwards, or
    an empty set for what has to be refused.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.inbox = folder / "inbox"
        self.workspace = Workspace(self.root)
        self.drops: dict[str, set[str]] = {}
        self._remote = folder / "dvc-remote"
        self._runs = folder / "runs.git"

    def make(self, environment: Mapping[str, str]) -> None:
        """The clone has its data, and params.yaml; nothing has run yet."""
        self.inbox.mkdir(parents=True, exist_ok=True)
        for command in (
            ("git", "clone", "--quiet", str(ROOT), str(self.root)),
            ("git", "init", "--quiet", "--bare", str(self._runs)),
        ):
            subprocess.run(command, check=True)
        for command in (
            # Not in the configuration that git tracks.
            ("dvc", "remote", "add", "--quiet", "--local", "--default", "store", str(self._remote)),
            ("diptych", "data", "scenes", "--train", "60", "--val", "20", "--test", str(SCENES - 80)),
        ):
            subprocess.run(command, cwd=self.root, env=environment, check=True, capture_output=True)
        params = yaml.safe_load((self.workspace.presets / "tiny.yaml").read_text())
        for section, values in CHEAP.items():
            params[section] = {**params[section], **values}
        params["retrain"] = {"inbox": str(self.inbox), "git_remote": str(self._runs)}
        self._write_params(params)

    def change(self, number: int, stage: str) -> None:
        """Another seed, so that there is a new model; and what has `stage` run anew, if that alone does not."""
        params = yaml.safe_load(self.workspace.params.read_text())
        params["seed"] = number
        if stage == "validate":
            params["validate"]["max_aspect_ratio"] = 5.0 + number / 100
        if stage == "preprocess":
            params["preprocess"]["vocabulary_size"] = 300 + number
        self._write_params(params)

    def drop(self, kind: str, draw: random.Random) -> None:
        """New pairs: `good` ones, the `same` as in an earlier drop, or `bad` ones, which have to be refused."""
        name = f"{len(self.drops):03d}-{kind}"
        earlier = [one for one, digests in self.drops.items() if digests]
        if kind == "same" and earlier:
            source = draw.choice(earlier)
            shutil.copytree(self.inbox / source, self.inbox / f"_{name}")
            self.drops[name] = self.drops[source]
        else:
            contents = [_picture(draw) for _ in range(IMAGES)]
            if kind == "bad":
                contents[1:] = [b"no image" + draw.randbytes(8) for _ in contents[1:]]
            _write_drop(self.inbox / f"_{name}", name, contents, draw)
            self.drops[name] = {hashlib.sha256(one).hexdigest() for one in contents} if kind != "bad" else set()
        # A name that begins so is not looked at: the drop is there at once, and whole.
        (self.inbox / f"_{name}").rename(self.inbox / name)

    def ask(self, *command: str) -> str:
        """What git answers in the project."""
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout

    def runs_are_shared(self) -> bool:
        """Whether the git remote has the branch of the runs as it is here."""
        here, there = (
            subprocess.run(
                ["git", "rev-parse", "diptych/runs"], cwd=where, capture_output=True, text=True, check=False
            ).stdout
            for where in (self.root, self._runs)
        )
        return bool(here) and here == there

    def _write_params(self, params: dict[str, Any]) -> None:
        self.workspace.params.write_text(yaml.safe_dump(params, sort_keys=False))


def _picture(draw: random.Random) -> bytes:
    """A few coloured rectangles, no two pictures alike."""
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
    images, annotations = [], []
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
