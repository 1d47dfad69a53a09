"""A training that is killed at any moment ends with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch
from tiny import make_model, open_prepared, train_settings, write_prepared

from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.loop import Setup, Trainer

KILLS = 10
CPU = torch.device("cpu")


def test_ten_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    """A frozen tower with kept features, released later; dropout, matching and SimCLR draw random numbers."""
    torch.set_num_threads(1)
    write_prepared(tmp_path / "p")
    seconds = time.perf_counter()
    assert wait(start(tmp_path, "whole")) == 0
    seconds = time.perf_counter() - seconds
    moments, killed = random.Random(0), 0
    while killed < KILLS:
        child = start(tmp_path, "broken")
        time.sleep(moments.uniform(0.1, 0.6) * seconds)
        os.kill(child, signal.SIGKILL)
        killed += wait(child) == -signal.SIGKILL
        if (tmp_path / "broken.pt").exists():
            # Finished before its time: all over again.
            (tmp_path / "broken.pt").unlink()
            Checkpoints(tmp_path / "broken", {}).discard()
    assert wait(start(tmp_path, "broken")) == 0
    whole, broken = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "broken"))
    assert all(torch.equal(tensor, broken[name]) for name, tensor in whole.items())


def start(folder: Path, name: str) -> int:
    """Trains in a child, which has all imports made already; the child's process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(folder, name)
            status = 0
        finally:
            os._exit(status)
    return child


def wait(child: int) -> int:
    """The exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(folder: Path, name: str) -> None:
    prepared = open_prepared(folder / "p")
    model = make_model(prepared.settings["vocabulary_size"])
    objectives = {"itm": 1.0, "simclr_text": 0.1}
    trainer = Trainer(
        model,
        prepared.split("train"),
        prepared.split("val"),
        train_settings(epochs=4, checkpoint_every=1, image_tower={"frozen_epochs": 2}, objectives=objectives),
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
