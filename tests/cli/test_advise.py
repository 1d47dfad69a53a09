"""`diptych advise`: what is printed and written, and what is refused before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from advised import FACTS, FOLDER, TOWERS, word_lengths
from command import diptych

from diptych.advice import facts, measuring, timing
from diptych.advice.facts import read_facts
from diptych.advice.measuring import PROPOSAL, Measured, Trial
from diptych.advice.recipe import Choice
from diptych.advice.timing import Speed
from diptych.config import load_params
from diptych.project.workspace import Workspace
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import Gain

OUTCOMES = Outcomes(np.array([1, 20]), np.zeros(2), np.zeros(2), np.zeros(2, bool))
TRIALS = (Trial(Ranks(OUTCOMES, OUTCOMES), np.arange(2), 60.0),) * 3
FEWER = Measured("fewer", (Choice("train.epochs", 9, "measured: fewer"),), TRIALS, Gain(9.0, 4.0, 14.0, 0.0))
MEASURED = [Measured(PROPOSAL, (), TRIALS), FEWER, Measured("none", ()), Measured("bad", (), failure="it fails")]


TINY = (FOLDER / "tiny.yaml").read_text()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, inside: Workspace) -> Iterator[None]:
    """A dataset and towers as in `advised`, on a machine whose speed is known."""
    inside.presets.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.yaml"):
        (inside.presets / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(facts, "read_facts", lambda _: FACTS)
    monkeypatch.setattr(facts, "find_towers", lambda _: TOWERS)
    monkeypatch.setattr("diptych.advice.recipe.caption_lengths", word_lengths)
    monkeypatch.setattr(timing, "measure_speed", lambda *_: Speed(0.001, 0.02, 0.01, 0.01))
    monkeypatch.setattr(measuring, "measure", lambda *_: MEASURED)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_proposal_is_shown_with_reasons_and_changes_no_params(
    inside: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    inside.params.write_text(TINY)
    assert diptych("advise") == 0
    out = capsys.readouterr().out
    assert "The preset flickr8k-cpu, which trains pretrained towers further, with" in out
    assert "  preprocess.image_size: 240\n      the size that the image tower was made for" in out
    assert "`cp .diptych/advice/params.yaml params.yaml`" in out
    assert inside.params.read_text() == TINY
    assert load_params(inside.advised).preprocess.image_size == 240


def test_it_is_written_where_that_is_asked_for_again_and_again(
    inside: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    inside.params.write_text(TINY)
    for _ in range(2):
        assert diptych("advise", "--write") == 0
        assert load_params(inside.params).preprocess.image_size == 240
        assert "Train with `diptych run`." in capsys.readouterr().out


def test_advice_that_was_taken_gives_way_to_later_advice(inside: Workspace) -> None:
    inside.params.write_text(TINY)
    for arguments in (("--write",), ("--minutes", "8"), ("--minutes", "8", "--write")):
        assert diptych("advise", *arguments) == 0
    assert "no time for more" in inside.params.read_text()


@pytest.mark.parametrize("path", [".diptych/advice", ".diptych/advice/params.yaml"])
def test_what_is_in_the_way_is_named_before_anything_is_measured(
    inside: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    monkeypatch.setattr(timing, "measure_speed", None)
    if path.endswith(".yaml"):
        (inside.root / path).mkdir(parents=True)
    else:
        (inside.root / path).parent.mkdir(exist_ok=True)
        (inside.root / path).write_text("")
    assert diptych("advise") == 1
    assert f"{path} is where the proposal is written" in capsys.readouterr().err


def test_less_time_than_one_training_is_refused_before_it_is_spent(
    inside: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "measure", None)
    monkeypatch.setattr(Speed, "minutes", lambda *_: 16.2)
    assert diptych("advise", "--measure", "12") == 1
    refusal = "A training of the proposal takes about 16 minutes here, so --measure 12 could compare it with nothing"
    assert f"{refusal}. Allow --measure 32 at least." in capsys.readouterr().err


def test_a_missing_preset_is_brought_back_by_git(inside: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (inside.presets / "scenes.yaml").unlink()
    assert diptych("advise") == 1
    assert "git checkout" in capsys.readouterr().err


def test_what_a_killed_measurement_left_is_removed(inside: Workspace) -> None:
    left = inside.local / "advice" / "measured" / "artifacts"
    left.mkdir(parents=True)
    assert diptych("advise") == 0
    assert not left.parent.exists()


def test_edits_are_refused_before_anything_is_measured(
    inside: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside.params.write_text(TINY + "# mine\n")
    monkeypatch.setattr(timing, "measure_speed", None)
    assert diptych("advise", "--measure", "60", "--write") == 1
    assert "has edits that would be lost" in capsys.readouterr().err
    assert inside.params.read_text().endswith("# mine\n")


def test_what_was_measured_is_shown_and_taken(inside: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("advise", "--measure", "500") == 0
    out = capsys.readouterr().out.splitlines()
    assert "  proposal  300.0 300.0 300.0  60 s a training" in out
    assert "  fewer     300.0 300.0 300.0  gain +9.0 (+4.0 to +14.0)  60 s a training" in out
    assert "  none      not tried: there was no time" in out
    assert "  bad       it fails" in out
    assert "Taken: fewer." in out
    assert load_params(inside.advised).train.epochs == 9


def test_a_proposal_that_stays_is_said(
    inside: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "measure", lambda *_: [Measured(PROPOSAL, (), TRIALS[:1])])
    assert diptych("advise", "--measure", "500") == 0
    assert "The proposal stays: no alternative is clearly better; 3 folds at least" in capsys.readouterr().out


def test_programs_read_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("advise", "--measure", "500", "--json") == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert content["preset"] == "flickr8k-cpu"
    assert content["choices"]["train.epochs"] == {"value": 9, "reason": "measured: fewer"}
    assert [one["name"] for one in content["measured"]] == [PROPOSAL, "fewer", "none", "bad"]
    assert content["written"] is False


@pytest.mark.parametrize("arguments", [("--minutes", "0"), ("--measure", "-1"), ("--minutes", "nan")])
def test_times_that_are_none_are_refused(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("advise", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_without_a_dataset_the_way_to_one_is_said(
    monkeypatch: pytest.MonkeyPatch, inside: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(facts, "read_facts", read_facts)
    assert diptych("advise") == 1
    assert "diptych data import" in capsys.readouterr().err
    assert not inside.advised.exists()
