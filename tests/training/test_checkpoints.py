"""Checkpoints: the old one or the new one, never half of one, and never another training's."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from diptych.errors import DiptychError
from diptych.files import digested
from diptych.training.checkpoints import Checkpoints


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    checkpoints.save({"step": 3, "weights": torch.arange(3)})
    checkpoints.save_best({"weights": torch.arange(4)})
    again = Checkpoints(tmp_path, {"seed": 0})
    state = again.load()
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["weights"], torch.arange(3))
    assert torch.equal(again.load_best()["weights"], torch.arange(4))


def test_another_training_does_not_see_it(tmp_path: Path) -> None:
    Checkpoints(tmp_path, {"seed": 0}).save({"step": 3})
    assert Checkpoints(tmp_path, {"seed": 1}).load() is None


def test_a_damaged_checkpoint_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save({"step": 3})
    state = checkpoints.folder / "state.pt"
    state.write_bytes(state.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load() is None
    assert "damaged" in caplog.text
    assert not checkpoints.folder.exists()


def test_of_several_processes_the_first_removes_what_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save({"step": 3})
    (checkpoints.folder / "state.pt").write_bytes(b"half")
    monkeypatch.setattr("diptych.training.checkpoints.rank", lambda: 1)
    assert checkpoints.load() is None
    assert checkpoints.folder.exists()


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", {})
    checkpoints.folder.mkdir(parents=True)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    with digested(checkpoints.folder / "state.pt") as file:
        torch.save({"trap": Trap()}, file)
    assert checkpoints.load() is None
    assert not (tmp_path / "sprung").exists()


def test_a_failed_write_keeps_the_old_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save({"step": 3})

    def full(state: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiptychError, match="free disk space"):
        checkpoints.save({"step": 4})
    monkeypatch.undo()
    state = checkpoints.load()
    assert state is not None
    assert state["step"] == 3
    assert [path.name for path in checkpoints.folder.iterdir()] == ["state.pt"]


def test_discarding_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save({"step": 3})
    checkpoints.discard()
    assert list(tmp_path.iterdir()) == []


def test_discarding_leaves_the_last_few_of_other_trainings(tmp_path: Path) -> None:
    """Also of those that had come to their first best weights only."""
    others = [Checkpoints(tmp_path, {"seed": seed}) for seed in range(5)]
    for age, other in enumerate(others):
        other.save_best({"weights": torch.arange(4)}) if age % 2 else other.save({"step": 3})
        os.utime(other.folder, (age, age))
    Checkpoints(tmp_path, {}).discard()
    assert {path.name for path in tmp_path.iterdir()} == {other.key for other in others[-3:]}


@pytest.mark.parametrize("name", ["state.pt", "best.safetensors"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.7, 0.99])
def test_a_single_bit_that_changed_is_noticed(tmp_path: Path, name: str, place: float) -> None:
    """Neither torch nor safetensors would."""
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save_best({"weights": torch.randn(1000)})
    checkpoints.save({"step": 3, "weights": torch.randn(1000)})
    content = bytearray((checkpoints.folder / name).read_bytes())
    content[int(len(content) * place)] ^= 1
    (checkpoints.folder / name).write_bytes(content)
    assert checkpoints.load() is None


@pytest.mark.parametrize("rest", [b"cut off", None])
def test_a_checkpoint_whose_best_weights_are_damaged_or_gone_is_dropped(tmp_path: Path, rest: bytes | None) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save_best({"weights": torch.arange(4)})
    checkpoints.save({"step": 3})
    best = checkpoints.folder / "best.safetensors"
    best.unlink() if rest is None else best.write_bytes(rest)
    with pytest.raises(DiptychError, match=r"best\.safetensors is lost .* run again"):
        checkpoints.load_best()
    assert checkpoints.load() is None
