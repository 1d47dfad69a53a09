"""diptych: its Trainer on the prepared data, measured by the Trainer's own reports.

All code that depends on Trainer is here: `settings_for` makes a task's changes of params.yaml, `run_trainer` builds the
Trainer as the train stage does, and the two watches read its reports.

    cd WORKSPACE && PYTHONPATH=…/src:…/benchmarks …/.venv/bin/python -m peers.diptych_side --steps=20
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diptych.config import Params, Train, load_params
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.model.device import choose_precision, keep_freed_memory
from diptych.model.dual_encoder import build_model
from diptych.project.workspace import Workspace
from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.loop import REPORT_EVERY, Report, Setup, Trainer
from peers.clock import EpochClock, now
from peers.task import Result, Task, answer


class EnoughError(Exception):
    """The measurement is complete; the training ends."""


class SpeedWatch:
    """Speed between reports, in the first epoch for which the features of frozen towers are cached.

    Losses are reported every REPORT_EVERY steps. Other reports follow an epoch, and mark its end.
    """

    def __init__(self, warmup_epochs: int, warmup_steps: int, steps: int) -> None:
        self._warmup_epochs = warmup_epochs
        self._warmup_steps = warmup_steps
        self._steps = steps
        self._epoch_began = 0
        self.marks: list[tuple[int, float]] = []
        self.losses: list[float] = []

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Take a report of the Trainer."""
        if "loss" not in values:
            self._end_epoch(step)
            return
        self.losses.append(round(values["loss"], 4))
        if self._warmup_epochs == 0 and step - self._epoch_began >= self._warmup_steps:
            self.marks.append((step, now()))
            if step - self.marks[0][0] >= self._steps:
                raise EnoughError

    def _end_epoch(self, step: int) -> None:
        if len(self.marks) > 1:
            raise EnoughError
        self.marks.clear()
        if step > self._epoch_began:
            self._warmup_epochs = max(0, self._warmup_epochs - 1)
        self._epoch_began = step

    def steps_per_second(self) -> float:
        """Return the speed between the first and the last mark."""
        if len(self.marks) < 2:
            raise SystemExit(f"diptych: an epoch is too short to measure; it needs {2 * REPORT_EVERY} steps or more.")
        (first, begin), (last, end) = self.marks[0], self.marks[-1]
        return (last - first) / (end - begin)


class EpochWatch:
    """Val RSUM over seconds: the clock stops between the report of the speed, which ends an epoch, and that of val."""

    def __init__(self, budget: float) -> None:
        self._clock = EpochClock()
        self._budget = budget

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Seconds of training and val RSUM so far."""
        return self._clock.epochs

    def __call__(self, values: dict[str, float], _: int) -> None:
        """Take a report of the Trainer."""
        if "images_per_second" in values:
            self._clock.pause()
        if "val_rsum" in values:
            self._clock.record(values["val_rsum"])
            if self._clock.is_over(self._budget):
                raise EnoughError
            self._clock.resume()


def settings_for(task: Task, train: Train) -> Train:
    """Return params.yaml's `train` with the changes of the task.

    A measurement of speed has only the contrastive objective and no checkpoints within an epoch, like the peers. Every
    layer learns of the towers that the task does not freeze. A training for recall is that of params.yaml.
    """
    changes: dict[str, Any] = {
        "batch_size": task.batch_size or train.batch_size,
        "epochs": task.epochs or 100,
        "precision": {"fp32": "no", "bf16": "bf16"}[task.precision],
        "learning_rate": task.learning_rate or train.learning_rate,
    }
    if not task.epochs:
        changes |= {
            "objectives": {"contrastive": 1.0, "itm": 0.0},
            "checkpoint_every": 1_000_000,
            "patience": None,
            "fusion_epochs": None,
        }
    towers = {"image_tower": task.frozen != "none", "text_tower": task.frozen == "both"}
    for tower, frozen in towers.items():
        if frozen or not task.epochs:
            lr_multiplier = 0.0 if frozen else getattr(train, tower).lr_multiplier or 1.0
            changes[tower] = {"lr_multiplier": lr_multiplier}
    return Train.model_validate(train.model_dump() | changes)


def run_trainer(params: Params, settings: Train, report: Report, device: str, scratch: Path) -> None:
    """Train as the train stage does, until the end or until `report` ends it; cache features in `scratch`."""
    keep_freed_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    prepared = Prepared(Workspace().prepared, params.data.splits)
    model = build_model(
        params.model,
        prepared.settings["image_size"],
        prepared.settings["vocabulary_size"],
        settings.temperature,
    )
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(
            model,
            prepared.split("train"),
            prepared.split("val"),
            settings,
            Setup(
                seed=params.seed,
                evaluation_batch=params.evaluate.batch_size,
                checkpoints=Checkpoints(Path(checkpoints), {"process": os.getpid()}),
                report=report,
                device=torch.device(device),
                features=FeatureCache(
                    scratch / "features",
                    limit_gib=settings.features_gib,
                    device=torch.device(device),
                    precision=choose_precision(settings.precision, torch.device(device)),
                ),
            ),
        )
        with contextlib.suppress(EnoughError):
            trainer.run()


def pairs_per_step(split: PreparedSplit, settings: Train) -> float:
    """Return the mean number of captions in a step."""
    captions = np.minimum(np.diff(split.caption_ranges), settings.captions_per_image)
    return float(captions.mean() * settings.batch_size)


def perform(task: Task) -> Result:
    """Measure the speed of training, or train and evaluate after each epoch."""
    params = load_params(Path(task.params))
    settings = settings_for(task, params.train)
    described = {"settings": describe(task, settings)}
    if task.epochs:
        epochs = EpochWatch(task.budget)
        run_trainer(params, settings, epochs, task.device, Path(task.scratch))
        return described | {"epochs": epochs.epochs}
    # The first epoch computes the features of frozen towers.
    speed = SpeedWatch(0 if task.frozen == "none" else 1, task.warmup_steps, task.steps)
    run_trainer(params, settings, speed, task.device, Path(task.scratch))
    split = Prepared(Workspace().prepared, params.data.splits).split("train")
    pairs = speed.steps_per_second() * pairs_per_step(split, settings)
    return described | {"pairs_per_second": pairs, "losses": speed.losses}


def describe(task: Task, settings: Train) -> str:
    """Describe the measurement for the reader of the figures."""
    objectives = "contrastive and ITM" if settings.objectives.itm else "contrastive alone"
    return (
        f"diptych: Trainer, {settings.batch_size} images a step with up to {settings.captions_per_image} captions "
        f"each, padded to the longest, {task.precision}, {objectives}, AdamW {settings.learning_rate:g}, weight decay "
        f"{settings.weight_decay:g}, cosine with {settings.warmup:.0%} warm-up"
    )


if __name__ == "__main__":
    answer(__doc__, perform)
