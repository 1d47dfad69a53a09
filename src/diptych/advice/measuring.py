"""Measurement of a proposal and of alternatives by cross-validation, within a stated time.

Only images of train and val take part. The alternatives are compared by the towers alone, after query-bank
normalization: whether a fusion is used, each training decides on val.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.advice.recipe import Choice, Proposal, frozen_epochs, frozen_towers
from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.files import remove
from diptych.project.workspace import Workspace
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import Gain, gain_over_folds, judge
from diptych.stages import preprocess, validate
from diptych.training.cross_validation import CrossValidation

FOLDS = 5
FEWEST = 3
"""Images of val of which a fold still has two."""
ENOUGH_FOLDS = 3
"""Number of folds from which an alternative may replace the proposal: fewer say nothing of the luck of a training."""
PROPOSAL = "proposal"
_STAGE = "qb_norm"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """Ranks of the test part of a fold by a training, which took some seconds besides its features."""

    ranks: Ranks
    image_of_caption: NDArray[np.int64]
    seconds: float

    @property
    def rsum(self) -> float:
        """RSUM of the ranks."""
        return metrics_from_ranks(*self.ranks)["rsum"]


@dataclass(frozen=True)
class Measured:
    """A recipe as it ranked images that it had not seen.

    Attributes:
        name: what differs from the proposal.
        changes: the keys that differ.
        trials: its trainings, one on each of the first folds.
        gain: gain over the proposal on the same folds, with an interval; None: it is the proposal. The interval is over
            folds, or with fewer than `ENOUGH_FOLDS` over images, which says nothing of the luck of a training.
        failure: why it could not be trained; empty: it could.
    """

    name: str
    changes: tuple[Choice, ...]
    trials: tuple[Trial, ...] = ()
    gain: Gain | None = None
    failure: str = ""

    @property
    def is_better(self) -> bool:
        """True if it ranks clearly better than the proposal."""
        return self.gain is not None and len(self.trials) >= ENOUGH_FOLDS and self.gain.low > 0

    @property
    def is_worse(self) -> bool:
        """True if it ranks clearly worse than the proposal so far."""
        return self.gain is not None and self.gain.high < 0

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "name": self.name,
            "changes": {choice.key: choice.value for choice in self.changes},
            "rsum": [trial.rsum for trial in self.trials],
            "seconds": [trial.seconds for trial in self.trials],
            "gain": self.gain and self.gain._asdict(),
            "failure": self.failure,
        }


def alternatives(params: Params) -> dict[str, tuple[Choice, ...]]:
    """Return the changes of each alternative to `params` by its name, the most different first."""
    train = params.train
    made: dict[str, dict[str, Any]] = {}
    towers = {name: getattr(train, name) for name in ("image_tower", "text_tower")}
    learning = {name: tower for name, tower in towers.items() if tower.lr_multiplier}
    released = train.epochs - frozen_epochs(params)
    if changes := frozen_towers(params):
        made["towers stay frozen"] = {**changes, "train.epochs": train.epochs - released}
    if params.model.image_tower.pretrained and learning:
        slower = {f"train.{name}.lr_multiplier": round(tower.lr_multiplier / 2, 4) for name, tower in learning.items()}
        made["towers learn at half the rate"] = slower
    if smoothing := train.objectives.label_smoothing:
        made["targets smoothed half as much"] = {"train.objectives.label_smoothing": smoothing / 2}
    else:
        made["smoothed targets"] = {"train.objectives.label_smoothing": 0.2}
    if deep := {name: tower.top_layers for name, tower in learning.items() if (tower.top_layers or 0) > 1}:
        made["one layer less learns"] = {f"train.{name}.top_layers": layers - 1 for name, layers in deep.items()}
    dropouts = {f"model.{name}.channel_dropout": getattr(params.model, name).channel_dropout for name in towers}
    if any(dropouts.values()):
        made["half the channel dropout"] = {key: value / 2 for key, value in dropouts.items()}
    else:
        made["channel dropout"] = dict.fromkeys(dropouts, 0.2)
    if learning:
        made["twice as many epochs in which towers learn"] = {"train.epochs": train.epochs + released}
    return {
        name: tuple(Choice(key, value, f"measured: {name}") for key, value in changes.items())
        for name, changes in made.items()
    }


def measure(workspace: Workspace, proposal: Proposal, minutes: float, device: torch.device) -> list[Measured]:
    """Measure a proposal and its alternatives for about `minutes`, and return the proposal, then the alternatives.

    Each is trained on the first fold, then on the next. An alternative that is clearly worse is dropped, and so is one
    that cannot be trained. A training begins only if one like it would end in time; the proposal's first always does.

    Raises:
        DiptychError: the dataset is refused, or the proposal cannot be trained.
    """
    ends = time.monotonic() + 60 * minutes
    with _prepared(workspace, proposal.params) as prepared:
        params, cache = _for_folds(proposal.params, prepared), workspace.features
        folds: Any = {"roles": ("train", "val"), "params": params, "cache": cache, "device": device}
        return _measure(CrossValidation(prepared, FOLDS, **folds), proposal, ends)


def _measure(validation: CrossValidation, proposal: Proposal, ends: float) -> list[Measured]:
    proposed = Measured(PROPOSAL, ())
    others = [Measured(name, changes) for name, changes in alternatives(proposal.params).items()]
    for fold in range(FOLDS):
        if fold and not _fits(proposed, proposed, ends):
            break
        proposed = _after(proposed, proposed, validation, proposal)
        for index, other in enumerate(others):
            is_out = other.is_worse or other.failure or len(other.trials) < fold
            if not is_out and _fits(other, proposed, ends):
                others[index] = _after(other, proposed, validation, proposal)
    return [proposed, *others]


def best_of(measured: list[Measured]) -> Measured:
    """Return the alternative that gains most of those that are clearly better, or else the proposal."""
    better = [one for one in measured if one.is_better]
    return max(better, key=lambda one: one.gain.rsum if one.gain else 0.0, default=measured[0])


def _after(before: Measured, proposed: Measured, validation: CrossValidation, proposal: Proposal) -> Measured:
    """Return a recipe with one more trial, on the next fold."""
    fold, params = len(before.trials), _towers_alone(proposal.with_choices(*before.changes).params)
    try:
        validation.store_features(params)
        started = time.monotonic()
        part = validation.folds[fold]
        ranks = validation.ranks(params, part)[_STAGE]
    except DiptychError as error:
        if before.name == PROPOSAL:
            raise
        _log.warning("%s cannot be trained: %s", before.name, error)
        return replace(before, failure=str(error))
    trial = Trial(ranks, part.test.image_of_caption, time.monotonic() - started)
    _log.info("%s, fold %d of %d: RSUM %.1f, %.0f s", before.name, fold + 1, FOLDS, trial.rsum, trial.seconds)
    trials = (*before.trials, trial)
    gain = None if before.name == PROPOSAL else _gain(trials, proposed.trials[: len(trials)])
    return replace(before, trials=trials, gain=gain)


def _fits(candidate: Measured, proposed: Measured, ends: float) -> bool:
    """Return whether a training is likely to end in time, judged by its own trials or else the proposal's."""
    trials = candidate.trials or proposed.trials
    return time.monotonic() + min(trial.seconds for trial in trials) <= ends


def _gain(own: tuple[Trial, ...], proposed: tuple[Trial, ...]) -> Gain:
    """Return the gain over the proposal on the same folds."""
    if len(own) >= ENOUGH_FOLDS:
        pairs = zip(own, proposed, strict=True)
        return gain_over_folds(np.array([[trial.rsum - other.rsum for trial, other in pairs]]), FOLDS)
    owners = np.concatenate(list(_numbered(own)))
    return judge({PROPOSAL: _joined(proposed), "own": _joined(own)}, owners).gains["own"][PROPOSAL]


def _numbered(trials: tuple[Trial, ...]) -> Iterator[NDArray[np.int64]]:
    """Yield the image of each caption, with the images of all folds numbered on."""
    before = 0
    for trial in trials:
        yield trial.image_of_caption + before
        before += len(trial.ranks.i2t.rank)


def _joined(trials: tuple[Trial, ...]) -> Ranks:
    """Return the ranks of all folds as those of one gallery."""
    sides = zip(*(trial.ranks for trial in trials), strict=True)
    return Ranks(*(Outcomes(*map(np.concatenate, zip(*side, strict=True))) for side in sides))


def _towers_alone(params: Params) -> Params:
    """Return the settings without the fusion, which costs time and changes nothing here."""
    objectives = params.train.objectives.model_copy(update={"itm": 0.0, "itm_share": 1.0})
    train = params.train.model_copy(update={"objectives": objectives, "fusion_epochs": None})
    return params.model_copy(update={"train": train})


def _for_folds(params: Params, prepared: Prepared) -> Params:
    """Return the settings with the share of val that a run has."""
    train, val = (len(prepared.rows_of([role])) for role in ("train", "val"))
    if val < FEWEST:
        raise DiptychError(
            f"{val} image(s) are there to choose on (data.splits), and to measure takes {FEWEST} at least. Import more "
            "with `diptych data import`."
        )
    splits = params.data.splits.model_copy(update={"held_out": val / (train + val)})
    return params.model_copy(update={"data": params.data.model_copy(update={"splits": splits})})


def measuring_folder(workspace: Workspace) -> Path:
    """Return the folder of a measurement, which a kill may leave behind."""
    return workspace.local / "advice" / "measured"


@contextmanager
def _prepared(workspace: Workspace, params: Params) -> Iterator[Prepared]:
    """Validate and preprocess the dataset by `params`, apart from the project's own results; in the end remove it.

    The caches are the project's, so that a run does not compute the same again.
    """
    if not workspace.data.exists():
        raise DiptychError(f"{workspace.data} is not on this disk, where a measurement reads it: `dvc pull data.dvc`.")
    apart = Workspace(measuring_folder(workspace))
    remove(apart.root)
    for link, target in ((apart.data, workspace.data), (apart.local / "cache", workspace.local / "cache")):
        link.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target.resolve(), target_is_directory=True)
    try:
        validate.run(apart, params)
        preprocess.run(apart, params)
        yield Prepared(apart.prepared, params.data.splits)
    finally:
        remove(apart.root)
