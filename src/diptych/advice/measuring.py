"""Measurement of a proposal and of alternatives by cross-validation, within a stated time.

Only images of train and val take part. The alternatives are compared by the towers alone, normalized: whether the
fusion is used, each training decides on val.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.advice.recipe import Choice, Proposal
from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.project.workspace import Workspace
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import Gain, judge
from diptych.stages import preprocess, validate
from diptych.training.cross_validation import CrossValidation

FOLDS = 5
PROPOSAL = "proposal"
_STAGE = "qb_norm"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A recipe as it ranked images that it had not seen.

    Attributes:
        name: what differs from the proposal.
        changes: the keys that differ.
        folds: number of folds that it was trained on.
        rsum: mean RSUM over these folds, of normalized towers.
        gain: gain over the proposal on the same folds, with the interval over images; None: it is the proposal.
        seconds: mean seconds of a fold, features apart.
    """

    name: str
    changes: tuple[Choice, ...]
    folds: int
    rsum: float
    gain: Gain | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "name": self.name,
            "changes": {choice.key: choice.value for choice in self.changes},
            "folds": self.folds,
            "rsum": self.rsum,
            "gain": self.gain and self.gain._asdict(),
            "seconds": self.seconds,
        }


def alternatives(params: Params) -> dict[str, tuple[Choice, ...]]:
    """Return the changes of each alternative to `params` by its name, the most different first."""
    train = params.train
    made: dict[str, dict[str, Any]] = {}
    towers = {name: getattr(train, name) for name in ("image_tower", "text_tower")}
    released = train.epochs - max(tower.frozen_epochs for tower in towers.values())
    if all(tower.frozen_epochs and tower.lr_multiplier for tower in towers.values()):
        frozen = {"lr_multiplier": 0.0, "frozen_epochs": 0, "top_layers": None}
        changes = {f"train.{name}.{key}": value for name in towers for key, value in frozen.items()}
        made["towers stay frozen"] = {**changes, "train.epochs": train.epochs - released}
        if released > 1:
            made["half as many epochs after the release"] = {"train.epochs": train.epochs - released // 2}
    elif train.epochs > 1:
        made["half as many epochs"] = {"train.epochs": (train.epochs + 1) // 2}
    learning = {name: tower for name, tower in towers.items() if tower.lr_multiplier}
    if params.model.image_tower.pretrained and learning:
        slower = {f"train.{name}.lr_multiplier": round(tower.lr_multiplier / 3, 4) for name, tower in learning.items()}
        made["towers learn at a third of the rate"] = slower
    if deep := {name: tower.top_layers for name, tower in learning.items() if (tower.top_layers or 0) > 1}:
        made["one layer less learns"] = {f"train.{name}.top_layers": layers - 1 for name, layers in deep.items()}
    dropouts = {f"model.{name}.channel_dropout": getattr(params.model, name).channel_dropout for name in towers}
    if any(dropouts.values()):
        made["half the channel dropout"] = {key: value / 2 for key, value in dropouts.items()}
    else:
        made["channel dropout"] = dict.fromkeys(dropouts, 0.2)
    return {
        name: tuple(Choice(key, value, f"measured: {name}") for key, value in changes.items())
        for name, changes in made.items()
    }


def measure(
    workspace: Workspace, proposal: Proposal, minutes: float, device: torch.device
) -> tuple[Measured, list[Measured]]:
    """Measure a proposal and its alternatives for about `minutes`, and return the best and all that were measured.

    The proposal and each alternative are trained on the first fold, then on the next. An alternative that is clearly
    worse is dropped. A training begins only if one like it would end within the time; the proposal's first always does.
    The best is an alternative only if it is clearly better: its 95 % interval lies above zero.

    Raises:
        DiptychError: the dataset is refused, or a training fails.
    """
    ends = time.monotonic() + 60 * minutes
    params = _towers_alone(proposal.params)
    prepared = _prepare(workspace, params)
    validation = CrossValidation(
        prepared, FOLDS, roles=("train", "val"), params=params, cache=workspace.features, device=device
    )
    candidates: dict[str, tuple[Choice, ...]] = {PROPOSAL: (), **alternatives(params)}
    trials: dict[str, list[Trial]] = {name: [] for name in candidates}
    for fold in range(FOLDS):
        for name, changes in candidates.items():
            if _is_worse(trials, name) or len(trials[name]) < fold or not _fits(trials, name, ends):
                continue
            settings = _towers_alone(proposal.with_choices(*changes).params)
            trials[name].append(_train(validation, settings, fold, name))
    measured = [_summary(name, candidates[name], own, trials[PROPOSAL]) for name, own in trials.items() if own]
    best = max(measured, key=lambda one: (one.gain is not None and one.gain.low > 0, one.gain is None, one.rsum))
    return best, measured


@dataclass(frozen=True)
class Trial:
    """Ranks of the test part of a fold by a training."""

    ranks: Ranks
    image_of_caption: NDArray[np.int64]
    seconds: float


def _train(validation: CrossValidation, params: Params, fold: int, name: str) -> Trial:
    started = time.monotonic()
    part = validation.folds[fold]
    ranks = validation.ranks(params, part)[_STAGE]
    trial = Trial(ranks, part.test.image_of_caption, time.monotonic() - started)
    _log.info("%s, fold %d: RSUM %.1f, %.0f s", name, fold + 1, metrics_from_ranks(*ranks)["rsum"], trial.seconds)
    return trial


def _fits(trials: dict[str, list[Trial]], name: str, ends: float) -> bool:
    """Return whether a training is likely to end in time, judged by its own last one or else the proposal's."""
    known = trials[name] or trials[PROPOSAL]
    return not known or time.monotonic() + min(trial.seconds for trial in known) <= ends


def _is_worse(trials: dict[str, list[Trial]], name: str) -> bool:
    """Return whether an alternative was clearly worse so far."""
    own = trials[name]
    return name != PROPOSAL and bool(own) and _gain(own, trials[PROPOSAL][: len(own)]).high < 0


def _summary(name: str, changes: tuple[Choice, ...], own: list[Trial], proposal: list[Trial]) -> Measured:
    gain = None if name == PROPOSAL else _gain(own, proposal[: len(own)])
    rsum = float(np.mean([metrics_from_ranks(*trial.ranks)["rsum"] for trial in own]))
    return Measured(name, changes, len(own), rsum, gain, float(np.mean([trial.seconds for trial in own])))


def _gain(own: list[Trial], proposal: list[Trial]) -> Gain:
    """Return the gain over the proposal on the same folds, whose queries are taken together."""
    owners = np.concatenate(list(_numbered(own)))
    return judge({PROPOSAL: _joined(proposal), "own": _joined(own)}, owners).gains["own"][PROPOSAL]


def _numbered(trials: list[Trial]) -> Iterator[NDArray[np.int64]]:
    """Yield the image of each caption, with the images of all folds numbered on."""
    before = 0
    for trial in trials:
        yield trial.image_of_caption + before
        before += len(trial.ranks.i2t.rank)


def _joined(trials: list[Trial]) -> Ranks:
    """Return the ranks of all folds as those of one gallery."""
    sides = zip(*(trial.ranks for trial in trials), strict=True)
    return Ranks(*(Outcomes(*map(np.concatenate, zip(*side, strict=True))) for side in sides))


def _towers_alone(params: Params) -> Params:
    """Return the settings without the fusion, which costs time and changes nothing here."""
    objectives = params.train.objectives.model_copy(update={"itm": 0.0})
    train = params.train.model_copy(update={"objectives": objectives, "fusion_epochs": None})
    return params.model_copy(update={"train": train})


def _prepare(workspace: Workspace, params: Params) -> Prepared:
    """Validate and preprocess the dataset by `params`, apart from the project's own results."""
    own = Workspace(workspace.local / "advice")
    for link, target in ((own.data, workspace.data), (own.local / "cache", workspace.local / "cache")):
        link.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(target).resolve(), target_is_directory=True)
    with chdir(workspace.root):
        validate.run(own, params)
        preprocess.run(own, params)
    return Prepared(own.prepared, params.data.splits)
