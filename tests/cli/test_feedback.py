"""`diptych feedback`: marks become a drop and judgements, by which a version is measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from command import diptych
from searching import photo, write_photos
from tiny_model import write_tiny_model

from diptych.project.workspace import Workspace
from diptych.serving.feedback import Mark, Marks
from diptych.serving.index import Index


@pytest.fixture
def model(inside: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with which two photos are indexed, and a mark on one of them."""
    monkeypatch.delenv("DIPTYCH_SEARCH", raising=False)
    monkeypatch.setattr("diptych.model.device.prepare", lambda device, threads: torch.device("cpu"))
    folder = write_tiny_model(tmp_path / "model")
    write_photos(inside.root / "photos", ["a.png", "b.png"])
    assert diptych("index", folder, "--collection", "pics", "--images", "photos") == 0
    digest = hashlib.sha256(photo(1)).hexdigest()
    fields = {"collection": "pics", "model": "tiny", "index_version": 1, "when": "2026-11-30T10:00:00+00:00"}
    Marks(inside.feedback).add(Mark(query="a dog", hash=digest, right=True, **fields))
    return folder


def test_marks_are_exported_and_measured_by(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(workspace: Workspace, params: object, collection: str) -> Index:
        from diptych.registry.serving import open_index

        return open_index(workspace, collection, model)

    monkeypatch.setattr("diptych.registry.serving.latest_index", opened)
    arguments = ("--collection", "pics", "--drop", "inbox/users", "--qrels", "judged", "--json")
    capfd.readouterr()
    assert diptych("feedback", "export", *arguments) == 0
    assert json.loads(capfd.readouterr().out) == {"pairs": 1, "judgements": 1}
    assert [path.name for path in Path("inbox/users/images").iterdir()] == [
        f"{hashlib.sha256(photo(1)).hexdigest()}.png"
    ]

    assert diptych("feedback", "evaluate", "judged", model, "--collection", "pics", "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["queries"], found["recall_at_10"]) == (1, 100.0)
    assert diptych("feedback", "export", *arguments) == 1
    assert "inbox/users is there already" in capfd.readouterr().err


def test_without_marks_or_without_a_target_it_says_so(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert diptych("feedback", "export", "--collection", "pics") == 2
    assert "Say what to write" in capfd.readouterr().err
    assert diptych("feedback", "export", "--collection", "birds", "--qrels", "judged") == 1
    assert "Nobody has marked a result of birds yet" in capfd.readouterr().err
