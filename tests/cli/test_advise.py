"""`diptych advise`: what is printed and written, and what is refused before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from advised import FACTS, PRESETS, TOWERS
from command import diptych

from diptych.advice import facts, measuring, timing
from diptych.advice.measuring import Measured
from diptych.advice.recipe import Choice
from diptych.advice.timing import Speed
from diptych.config import load_params
from diptych.project.workspace import Workspace
from diptych.retrieval.uncertainty import Gain

BETTER = Measured("fewer", (Choice("train.epochs", 9, "measured: fewer"),), 1, 310.0, Gain(9.0, 4.0, 14.0, 0.0), 60.0)
PROPOSAL = Measured("proposal", (), 1, 301.0, None, 90.0)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, inside: Workspace) -> Iterator[None]:
    """A dataset and towers as in `advised`, on a machine whose speed is known."""
    inside.presets.mkdir(exist_ok=True)
    for name, text in PRESETS.items():
        (inside.presets / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(facts, "read_facts", lambda _: FACTS)
    monkeypatch.setattr(facts, "find_towers", lambda _: TOWERS)
    monkeypatch.setattr(timing, "measure_speed", lambda *_: Speed(0.001, 0.02, 0.01))
    monkeypatch.setattr(measuring, "measure", lambda *_: (BETTER, [PROPOSAL, BETTER]))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_proposal_is_shown_with_reasons_and_changes_nothing(
    inside: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = inside.params.read_bytes() if inside.params.exists() else None
    assert diptych("advise") == 0
    out = capsys.readouterr().out
    assert "The preset flickr8k-cpu, with" in out
    assert "  preprocess.image_size: 240\n      what the image tower was made for" in out
    assert "`diptych advise --write` takes it." in out
    assert (inside.params.read_bytes() if inside.params.exists() else None) == before


def test_it_is_written_where_that_is_asked_for(inside: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    inside.params.write_text(PRESETS["tiny"])
    assert diptych("advise", "--write") == 0
    assert load_params(inside.params).preprocess.image_size == 240
    assert "Train with `diptych run`." in capsys.readouterr().out


def test_edits_of_params_are_not_lost(inside: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    inside.params.write_text(PRESETS["tiny"] + "# mine\n")
    assert diptych("advise", "--write") == 1
    assert "has edits that would be lost" in capsys.readouterr().err
    assert inside.params.read_text().endswith("# mine\n")


def test_what_was_measured_is_shown_and_taken(inside: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    inside.params.write_text(PRESETS["tiny"])
    assert diptych("advise", "--measure", "5", "--write") == 0
    out = capsys.readouterr().out
    assert "fewer      310.0  1 fold(s), 60 s  +9.0 (+4.0 to +14.0)" in out
    assert load_params(inside.params).train.epochs == 9


def test_programs_read_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("advise", "--measure", "5", "--json") == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert content["preset"] == "flickr8k-cpu"
    assert content["choices"]["train.epochs"] == {"value": 9, "reason": "measured: fewer"}
    assert [one["name"] for one in content["measured"]] == ["proposal", "fewer"]
    assert content["written"] is False


@pytest.mark.parametrize("arguments", [("--minutes", "0"), ("--measure", "-1"), ("--minutes", "nan")])
def test_times_that_are_none_are_refused(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("advise", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_without_a_dataset_the_way_to_one_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    assert diptych("advise") == 1
    assert "diptych data import" in capsys.readouterr().err
    assert not Path(".diptych/advice").exists()
