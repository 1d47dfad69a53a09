"""`diptych embed`: files for other search engines, and a refusal to overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import diptych
from searching import write_photos
from tiny_model import write_tiny_model

from diptych.project.workspace import Workspace


def test_embeddings_are_written_once(
    inside: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DIPTYCH_SEARCH", raising=False)
    monkeypatch.setattr("diptych.model.device.prepare", lambda device, threads: torch.device("cpu"))
    model = write_tiny_model(tmp_path / "model")
    write_photos(inside.root / "photos", ["a.png", "b.png"])
    arguments = (model, "--collection", "pics")
    assert diptych("embed", "out", *arguments) == 1
    assert "pics is not indexed with the model" in capfd.readouterr().err
    assert diptych("index", *arguments, "--images", "photos") == 0
    capfd.readouterr()

    assert diptych("embed", "out", *arguments, "--dtype", "int8", "--json") == 0
    assert json.loads(capfd.readouterr().out)["compression"] == "int8"
    assert np.load("out/img_emb/img_emb_0.npy").shape == (2, 17)
    assert diptych("embed", "out", *arguments) == 1
    assert "out is there already" in capfd.readouterr().err
