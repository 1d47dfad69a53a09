"""A training that is killed at any moment ends with the weights of one that was not."""

from __future__ import annotations

import importlib
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from interrupting import forget_accelerator, measure_no_speed
from tiny import make_model, open_prepared, train_settings, write_prepared

from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.loop import Setup, Trainer

pytestmark = pytest.mark.slow

KILLS = 10
CPU = torch.device("cpu")


def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen tower with kept features, released later; dropout, matching and SimCLR draw random numbers."""
    torch.set_num_threads(1)
    measure_no_speed(monkeypatch)
    forget_accelerator()
    # What each child would import.
    importlib.import_module("accelerate")
    importlib.import_module("torch._dynamo")
    write_prepared(tmp_path / "p")
    status, seconds = wait(start(tmp_path, "whole"))
    assert status == 0
    moments, killed = random.Random(0), 0
    while killed < KILLS:
        status, _ = wait(start(tmp_path, "broken", after=moments.uniform(0.1, 0.6) * seconds))
        assert status in (0, -signal.SIGPROF)
        killed += status == -signal.SIGPROF
        if (tmp_path / "broken.pt").exists():
            # Finished before its time: all over again.
            (tmp_path / "broken.pt").unlink()
            Checkpoints(tmp_path / "broken", {}).discard()
    assert wait(start(tmp_path, "broken"))[0] == 0
    whole, broken = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "broken"))
    assert all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())


def start(folder: Path, name: str, after: float = 0.0) -> int:
    """Trains in a child, which has all imports made already; the child's process id.

    The system kills it `after` so many seconds of its own CPU time, which do not depend on what else runs; 0: never.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, after)
            train(folder, name)
            status = 0
        finally:
            os._exit(status)
    return child


def wait(child: int) -> tuple[int, float]:
    """The exit code, or minus the signal; and the CPU time in seconds."""
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime


def train(folder: Path, name: str) -> None:
    prepared = open_prepared(folder / "p")
    model = make_model(prepared.settings["vocabulary_size"])
    objectives = {"itm": 1.0, "simclr_text": 0.1}
    trainer = Trainer(
        model,
        prepared.split("train"),
        prepared.split("val"),
        train_settings(epochs=2, checkpoint_every=1, image_tower={"frozen_epochs": 1}, objectives=objectives),
        Setup(
            seed=0,
            evaluation_batch=8,
            checkpoints=Checkpoints(folder / name, {}),
            report=lambda values, step: None,
            device=CPU,
            features=FeatureCache(folder / f"{name}-features", limit_gib=1, device=CPU, precision="no"),
        ),
    )
    trainer.run()
    torch.save(model.state_dict(), folder / f"{name}.tmp")
    (folder / f"{name}.tmp").rename(folder / f"{name}.pt")
