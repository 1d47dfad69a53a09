"""`diptych index`: what is indexed from where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import diptych
from searching import write_photos
from tiny_model import write_tiny_model

from diptych.project.workspace import Workspace

PHOTOS = ["a.png", "sub/b.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("index") / "model")


@pytest.fixture(autouse=True)
def photos(inside: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with photos, whose threads are this process's."""
    monkeypatch.delenv("DIPTYCH_SEARCH", raising=False)
    monkeypatch.setattr("diptych.model.device.prepare", lambda device, threads: torch.device("cpu"))
    return write_photos(inside.root / "photos", PHOTOS)


def test_a_folder_becomes_a_collection_that_is_remembered(
    model: Path, photos: Path, inside: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    assert diptych("index", model, "--collection", "pics", "--images", "photos", "--json") == 0
    first = json.loads(capfd.readouterr().out)
    assert (first["collection"], first["model"], first["images"], first["embedded"]) == ("pics", str(model), 2, 2)

    write_photos(photos, ["c.png"], first=9)
    assert diptych("index", model, "--collection", "pics") == 0
    said = capfd.readouterr().out
    assert "3 images indexed: 2 unchanged, 1 embedded, 0 of known content, 0 rows removed" in said
    assert "`diptych serve --collection pics` searches them" in said.replace(f"serve {model} ", "serve ")
    assert (inside.search / "pics" / "collection.json").exists()

    assert diptych("index", "--collection", "pics", "--remove") == 0
    assert not (inside.search / "pics").exists()
    assert (photos / "a.png").exists()


def test_a_table_and_broken_files(model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("files.csv").write_text("file,year\na.png,2020\nbroken.png,2021\n")
    assert diptych("index", model, "--collection", "years", "--table", "files.csv", "--images", "photos") == 0
    shown = capfd.readouterr()
    assert "1 images indexed" in shown.out
    assert "1 left out as unreadable" in shown.out
    assert "warning: broken.png is left out: truncated or damaged PNG" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--collection", "birds"], 1, "There is no collection birds. There are none yet. Make it from a folder"),
        (["--images", "photos"], 2, "make a collection of their own: name it by --collection"),
        (["--collection", "../up", "--images", "photos"], 1, "'../up' cannot name a collection"),
        (["--collection", "birds", "--remove"], 1, "There is no collection birds"),
        (["--collection", "birds", "--images", "nowhere"], 1, "nowhere, does not exist"),
        (["--collection", "birds", "--table", "nowhere.csv"], 2, "does not exist"),
    ],
)
def test_what_cannot_be_indexed_is_refused(
    model: Path, arguments: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert diptych("index", model, *arguments) == code
    assert message in " ".join(capfd.readouterr().err.split())


def test_without_a_version_the_message_says_what_makes_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert diptych("index", "--collection", "pics", "--images", "photos") == 1
    assert "neither a champion nor a challenger yet: `diptych run` makes a version" in capfd.readouterr().err
